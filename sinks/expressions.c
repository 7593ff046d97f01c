/* sinks/expressions.c - what the target's own parser says about the team's SQL: is it what an index
 * expression may be (immutable, no subquery), which columns it uses, what type comes out.
 *
 * An empty temporary table with the source's columns stands for the row; an index on each expression makes
 * the target check it and write down the columns. Everything is rolled back. */
#include "core/alloc.h"
#include "sinks/projection.h"

#include <stdio.h>
#include <stdlib.h>

static struct spate_slice type_of(const struct spate_column *column)
{
    return column->base.len ? column->base : column->type;
}

/* A cast of text to these goes through a function, which need not read what the type's input reads: regclass,
 * where it looks for a table named "-", and types for which somebody made such a cast. A domain may stand
 * over one. (Those of these three built-in types read the same.) */
#define OWN_CAST                                                                                             \
    "EXISTS (SELECT FROM pg_catalog.pg_cast WHERE castsource = 'text'::regtype AND castmethod = 'f' AND "    \
    "casttarget = t AND t NOT IN ('name', '\"char\"', 'xml')) OR EXISTS (SELECT FROM pg_catalog.pg_type "    \
    "WHERE "                                                                                                 \
    "oid = t AND typtype = 'd')"

/* The types that the target knows by the source's spelling; the others are staged as text. The answer decides
 * what may stand in CREATE TABLE: to_regtype takes a type's name and nothing else. */
static enum spate_rc ask_types(struct spate_version *version, struct spate_store *store,
                               struct spate_err *err)
{
    const struct spate_table *table = version->table;
    struct spate_buf sql = {0};
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < table->column_count && rc == SPATE_OK; i++) {
        struct spate_slice type = type_of(&table->columns[i]);
        PGresult *res = NULL;
        bool known = false, own_cast = false;

        for (size_t j = 0; j < i && !version->stage_types[i]; j++) {
            if (!spate_slice_eq(type, type_of(&table->columns[j])))
                continue;
            version->stage_types[i] = spate_strdup(version->stage_types[j]);
            version->as_text[i] = version->as_text[j];
            version->own_cast[i] = version->own_cast[j];
        }
        if (version->stage_types[i])
            continue;
        spate_buf_reset(&sql);
        spate_buf_puts(&sql, "SELECT t IS NOT NULL, " OWN_CAST " FROM to_regtype(");
        spate_pg_literal(&sql, type);
        spate_buf_puts(&sql, ") AS t");
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
        if (rc == SPATE_OK) {
            known = PQgetvalue(res, 0, 0)[0] == 't';
            own_cast = PQgetvalue(res, 0, 1)[0] == 't';
        } else if (rc == SPATE_FAIL && strncmp(err->sqlstate, "42", 2) == 0)
            rc = SPATE_OK; /* a spelling that this server does not even parse */
        PQclear(res);
        version->as_text[i] = !known;
        version->own_cast[i] = own_cast;
        version->stage_types[i] = known ? spate_strndup(type.at, type.len) : spate_strdup("pg_catalog.text");
    }
    spate_buf_fini(&sql);
    return rc;
}

static void check_table_sql(const struct spate_version *version, struct spate_buf *sql)
{
    spate_buf_puts(sql, "CREATE TEMP TABLE spate_check (");
    for (size_t i = 0; i < version->table->column_count; i++) {
        spate_buf_puts(sql, i ? ", " : "");
        spate_pg_ident(sql, version->table->columns[i].name);
        spate_buf_printf(sql, " %s", version->stage_types[i]);
    }
    spate_buf_puts(sql, ") ON COMMIT DROP");
}

/* The server's words, where they stand in the file, and what to do. */
static enum spate_rc refuse(const struct spate_version *version, const char *what, int line,
                            struct spate_err *err)
{
    const struct spate_projection *projection = version->projection;
    const char *remedy = "";

    if (err->verdict == SPATE_RETRY)
        return SPATE_FAIL;
    if (strcmp(err->sqlstate, "42P17") == 0)
        remedy = ". It has to give the same result whenever it is run again: make time zones and formats "
                 "explicit, as "
                 "in \"created AT TIME ZONE 'UTC'\"";
    else if (strcmp(err->sqlstate, "42703") == 0)
        remedy = ". It may use the source table's columns by their bare names";
    else if (strcmp(err->sqlstate, "0A000") == 0)
        remedy = ". It may use the row's own columns and immutable functions, no subquery and no aggregate";
    err->verdict = SPATE_FATAL;
    err->exit_code = SPATE_EXIT_REFUSED;
    spate_err_context(err, "%s:%d: tables.%s.%s over source table %.*s.%.*s", projection->sink->path,
                      line ? line : projection->config->item.line, projection->config->item.name, what,
                      SPATE_SLICE_ARG(version->table->schema), SPATE_SLICE_ARG(version->table->name));
    size_t used = strlen(err->text);
    snprintf(err->text + used, sizeof err->text - used, "%s", remedy);
    return SPATE_FAIL;
}

static enum spate_rc ask_expression(struct spate_version *version, struct spate_store *store, size_t number,
                                    const char *expr, const char *test, const char *what, int line,
                                    struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    spate_buf_printf(&sql, "CREATE INDEX spate_check_%zu ON pg_temp.spate_check (((%s\n) IS %s))", number,
                     expr, test);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    return rc == SPATE_FAIL ? refuse(version, what, line, err) : rc;
}

static enum spate_rc ask_expressions(struct spate_version *version, struct spate_store *store,
                                     struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < version->output_count && rc == SPATE_OK; i++) {
        struct spate_output *output = &version->outputs[i];
        char what[200];

        if (output->use_count > 0)
            continue; /* a column of the source, known beforehand */
        snprintf(what, sizeof what, "columns.%.150s", output->name);
        rc = ask_expression(version, store, i, output->expr, "NULL", what, output->line, err);
    }
    if (rc == SPATE_OK && version->where)
        rc = ask_expression(version, store, version->output_count, version->where, "NOT TRUE", "where", 0,
                            err);
    return rc;
}

static void add_use(uint32_t **uses, size_t *count, uint32_t column)
{
    *uses = spate_realloc(*uses, (*count + 1) * sizeof **uses);
    (*uses)[(*count)++] = column;
}

/* What the target wrote down about each index: the columns it depends on. */
static enum spate_rc read_uses(struct spate_version *version, struct spate_store *store,
                               struct spate_err *err)
{
    static const char sql[] =
        "SELECT substr(i.relname, 13)::int8, d.refobjsubid - 1 FROM pg_catalog.pg_depend d "
        "JOIN pg_catalog.pg_class i ON i.oid = d.objid WHERE d.classid = 'pg_class'::regclass "
        "AND d.refclassid = 'pg_class'::regclass AND d.refobjid = 'pg_temp.spate_check'::regclass "
        "AND d.refobjsubid > 0 AND i.relkind = 'i' GROUP BY 1, 2 ORDER BY 1, 2";
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec(store->conn, sql, PGRES_TUPLES_OK, &res, err);

    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        size_t number = strtoull(PQgetvalue(res, r, 0), NULL, 10);
        uint32_t column = (uint32_t)strtoul(PQgetvalue(res, r, 1), NULL, 10);

        if (number < version->output_count)
            add_use(&version->outputs[number].uses, &version->outputs[number].use_count, column);
        else
            add_use(&version->where_uses, &version->where_use_count, column);
    }
    PQclear(res);
    return rc;
}

/* The types that come out, as the target resolves them: of a query over the empty table. */
static enum spate_rc ask_results(struct spate_version *version, struct spate_store *store,
                                 struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(&sql, "SELECT ");
    for (size_t i = 0; i < version->output_count; i++)
        spate_buf_printf(&sql, "%s(%s\n)", i ? ", " : "", version->outputs[i].expr);
    spate_buf_puts(&sql, " FROM pg_temp.spate_check");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_FAIL) {
        rc = refuse(version, "columns", 0, err);
    } else if (rc == SPATE_OK && (size_t)PQnfields(res) != version->output_count) {
        (void)spate_fail(err, SPATE_FATAL, "an entry is more than one expression");
        rc = refuse(version, "columns", 0, err);
    }
    for (size_t i = 0; rc == SPATE_OK && i < version->output_count; i++) {
        version->outputs[i].type_oid = PQftype(res, (int)i);
        version->outputs[i].type_mod = PQfmod(res, (int)i);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

static enum spate_rc ask_type_names(struct spate_version *version, struct spate_store *store,
                                    struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(&sql, "SELECT format_type(o::oid, m) FROM (VALUES ");
    for (size_t i = 0; i < version->output_count; i++)
        spate_buf_printf(&sql, "%s(%zu, %u, %d)", i ? ", " : "", i, version->outputs[i].type_oid,
                         version->outputs[i].type_mod);
    spate_buf_puts(&sql, ") v (i, o, m) ORDER BY i");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    for (size_t i = 0; rc == SPATE_OK && i < version->output_count; i++) {
        free(version->outputs[i].type);
        version->outputs[i].type = spate_strdup(PQgetvalue(res, (int)i, 0));
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

static enum spate_rc make_check_table(struct spate_version *version, struct spate_store *store,
                                      struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    check_table_sql(version, &sql);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    if (rc == SPATE_FAIL && strcmp(err->sqlstate, "42501") == 0) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(
            err, SPATE_FATAL,
            "role %s may not make temporary tables in target database %s, and rows are staged in one: "
            "as its owner run GRANT TEMPORARY ON DATABASE \"%s\" TO \"%s\"",
            PQuser(store->conn), PQdb(store->conn), PQdb(store->conn), PQuser(store->conn));
    }
    return rc;
}

enum spate_rc spate_version_ask(struct spate_version *version, struct spate_store *store,
                                struct spate_err *err)
{
    struct spate_err ignored = {0};
    enum spate_rc rc = ask_types(version, store, err);

    if (rc == SPATE_OK)
        rc = spate_pg_exec(store->conn, "BEGIN", PGRES_COMMAND_OK, NULL, err);
    if (rc != SPATE_OK)
        return rc;
    rc = make_check_table(version, store, err);
    if (rc == SPATE_OK)
        rc = ask_expressions(version, store, err);
    if (rc == SPATE_OK)
        rc = read_uses(version, store, err);
    if (rc == SPATE_OK)
        rc = ask_results(version, store, err);
    if (rc == SPATE_OK)
        rc = ask_type_names(version, store, err);
    if (PQstatus(store->conn) == CONNECTION_OK &&
        spate_pg_exec(store->conn, "ROLLBACK", PGRES_COMMAND_OK, NULL, &ignored) == SPATE_FAIL &&
        rc == SPATE_OK) {
        *err = ignored;
        rc = SPATE_FAIL;
    }
    return rc;
}
