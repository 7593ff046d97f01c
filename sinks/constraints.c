/* sinks/constraints.c - what is unique in the team's table, and what refers to it: does it bear rows that are
 * deleted and inserted again, and swaps, inside one transaction (T7, T8, T18)? Part of the preflight. */
#include "sinks/projection.h"

#include <stdlib.h>
#include <string.h>

static void add_ident(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

/* The key's columns as a sorted list of names, comparable with what check_indexes asks for. */
static void key_names(const struct spate_version *version, struct spate_buf *out)
{
    bool first = true;

    for (size_t i = 0; i < version->output_count; i++) {
        if (!version->outputs[i].key)
            continue;
        spate_buf_puts(out, first ? "" : ", ");
        add_ident(out, version->outputs[i].name);
        first = false;
    }
}

enum { I_NAME, I_EXCLUSION, I_IMMEDIATE, I_USABLE, I_CONSTRAINT, I_COLUMNS, I_MISSING_KEYS, I_EXTRA, I_KIND };

static enum spate_rc refuse_index(const struct spate_version *version, const PGresult *res, int r,
                                  struct spate_err *err)
{
    const char *target = version->projection->target, *constraint = PQgetvalue(res, r, I_CONSTRAINT);
    const char *name = PQgetvalue(res, r, I_NAME), *columns = PQgetvalue(res, r, I_COLUMNS);

    if (PQgetvalue(res, r, I_IMMEDIATE)[0] != 't')
        return spate_version_refuse(
            version, err,
            "%s has its key in the deferrable constraint %s, by which a row cannot be looked up: "
            "ALTER TABLE %s "
            "DROP CONSTRAINT %s, ADD %s (%s);",
            target, constraint, target, constraint,
            PQgetvalue(res, r, I_KIND)[0] == 'p' ? "PRIMARY KEY" : "UNIQUE", columns);
    if (PQgetvalue(res, r, I_EXCLUSION)[0] == 't')
        return spate_version_refuse(
            version, err,
            "%s has the exclusion constraint %s, which two rows that swap values violate for a moment: ALTER "
            "TABLE %s DROP CONSTRAINT %s; where it is needed, add it again as DEFERRABLE",
            target, constraint, target, constraint);
    if (*constraint)
        return spate_version_refuse(
            version, err,
            "%s has the unique constraint %s besides the key, which two rows that swap values violate for a "
            "moment: ALTER TABLE %s DROP CONSTRAINT %s, ADD CONSTRAINT %s UNIQUE (%s) DEFERRABLE INITIALLY "
            "DEFERRED;",
            target, constraint, target, constraint, constraint, columns);
    return spate_version_refuse(
        version, err,
        "%s has the unique index %s besides the key, which two rows that swap values violate for a moment: "
        "DROP INDEX %s; only a constraint can be deferrable, so where it is needed add it as one",
        target, name, name);
}

/* What is unique in the table, beside the names of the key's columns in k(name). */
static const char index_sql[] =
    "), i AS (SELECT x.*, n.nspname, xc.relname AS index_name, coalesce(quote_ident(o.conname), '') AS "
    "constr, "
    "coalesce(o.contype, 'i') AS kind, ARRAY(SELECT a.attname FROM generate_series(0, x.indnkeyatts - 1) s "
    "JOIN "
    "pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[s]) AS cols "
    "FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class xc ON xc.oid = x.indexrelid "
    "JOIN pg_catalog.pg_class c ON c.oid = x.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = "
    "c.relnamespace "
    "LEFT JOIN pg_catalog.pg_constraint o ON o.conindid = x.indexrelid AND o.conrelid = x.indrelid AND "
    "o.contype IN "
    "('p', 'u', 'x') WHERE c.relname = $1 AND n.nspname = $2 AND (x.indisunique OR x.indisexclusion)) "
    "SELECT format('%I.%I', nspname, index_name), indisexclusion, indimmediate, "
    "indisvalid AND indpred IS NULL AND indexprs IS NULL, constr, "
    "(SELECT string_agg(quote_ident(c), ', ') FROM unnest(cols) c), "
    "(SELECT count(*) FROM k WHERE name <> ALL (cols)), "
    "(SELECT count(*) FROM unnest(cols) c WHERE c NOT IN (SELECT name FROM k)), kind FROM i";

/* One immediate, whole unique index on exactly the key; what else is unique must be deferrable (T7, T8). */
static enum spate_rc check_indexes(struct spate_version *version, struct spate_store *store,
                                   struct spate_err *err)
{
    struct spate_buf sql = {0}, keys = {0};
    PGresult *res = NULL;
    bool found = false;
    enum spate_rc rc;

    spate_buf_puts(&sql, "WITH k(name) AS (VALUES ");
    for (size_t i = 0, n = 0; i < version->output_count; i++) {
        if (!version->outputs[i].key)
            continue;
        spate_buf_puts(&sql, n++ ? ", (" : "(");
        spate_pg_literal(&sql, spate_slice_str(version->outputs[i].name));
        spate_buf_puts(&sql, "::name)");
    }
    spate_buf_puts(&sql, index_sql);
    rc = spate_version_query(version, store, spate_buf_str(&sql), &res, err);
    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        bool immediate = PQgetvalue(res, r, I_IMMEDIATE)[0] == 't',
             usable = PQgetvalue(res, r, I_USABLE)[0] == 't';
        bool exclusion = PQgetvalue(res, r, I_EXCLUSION)[0] == 't';
        bool has_key = strcmp(PQgetvalue(res, r, I_MISSING_KEYS), "0") == 0;
        bool is_key = has_key && !exclusion && strcmp(PQgetvalue(res, r, I_EXTRA), "0") == 0;

        if (!immediate && !is_key)
            version->projection->deferrable = true;
        else if (exclusion || !has_key || !immediate)
            rc = refuse_index(version, res, r, err);
        else if (usable && is_key)
            found = true; /* what merely holds more columns than the key cannot be violated first */
    }
    if (rc == SPATE_OK && !found) {
        key_names(version, &keys);
        rc = spate_version_refuse(
            version, err, "%s has no unique index on its key: ALTER TABLE %s ADD UNIQUE (%s);",
            version->projection->target, version->projection->target, spate_buf_str(&keys));
    }
    PQclear(res);
    spate_buf_fini(&sql);
    spate_buf_fini(&keys);
    return rc;
}

/* Inside a piece a row may be deleted and inserted again: what refers to it must wait for the end of the
 * transaction with its judgement, and must not act on its own (T18). Tables of this sink that refer to each
 * other are covered, each as the one that is referred to. */
static enum spate_rc check_references(struct spate_version *version, struct spate_store *store,
                                      struct spate_err *err)
{
    static const char sql[] =
        "WITH t AS (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = "
        "c.relnamespace "
        "WHERE c.relname = $1 AND n.nspname = $2) "
        "SELECT f.condeferrable AND f.confdeltype = 'a' AND f.confupdtype = 'a', format('%I.%I', n.nspname, "
        "c.relname), "
        "quote_ident(f.conname), "
        "(SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY o) FROM unnest(f.conkey) WITH ORDINALITY k "
        "(num, o) JOIN "
        "pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.num), "
        "(SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY o) FROM unnest(f.confkey) WITH ORDINALITY "
        "k (num, o) JOIN "
        "pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.num), f.condeferrable, "
        "f.confrelid IN (SELECT oid FROM t) "
        "FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class c ON c.oid = f.conrelid "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE f.contype = 'f' AND f.conparentid = "
        "0 "
        "AND (f.confrelid IN (SELECT oid FROM t) OR f.conrelid IN (SELECT oid FROM t)) ORDER BY 2, 3";
    const char *target = version->projection->target;
    PGresult *res = NULL;
    enum spate_rc rc = spate_version_query(version, store, sql, &res, err);

    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        const char *child = PQgetvalue(res, r, 1), *name = PQgetvalue(res, r, 2);

        if (PQgetvalue(res, r, 5)[0] == 't')
            version->projection->deferrable = true;
        if (PQgetvalue(res, r, 6)[0] == 't' && PQgetvalue(res, r, 0)[0] != 't')
            rc = spate_version_refuse(
                version, err,
                "foreign key %s of %s refers to %s and acts or judges at once, though a row may be deleted "
                "and "
                "inserted again inside one transaction: ALTER TABLE %s DROP CONSTRAINT %s, ADD CONSTRAINT %s "
                "FOREIGN KEY (%s) REFERENCES %s (%s) DEFERRABLE INITIALLY DEFERRED;",
                name, child, target, child, name, name, PQgetvalue(res, r, 3), target, PQgetvalue(res, r, 4));
    }
    PQclear(res);
    return rc;
}

enum spate_rc spate_version_constraints(struct spate_version *version, struct spate_store *store,
                                        struct spate_err *err)
{
    enum spate_rc rc = check_indexes(version, store, err);

    return rc == SPATE_OK ? check_references(version, store, err) : rc;
}
