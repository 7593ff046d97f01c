/* sinks/preflight.c - does the team's table fit what the file says? Made when it is missing; else everything
 * that would fail later, or go wrong in silence, is refused now with the statement that mends it.
 */
#include "core/alloc.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "sinks/fact.h"
#include "sinks/projection.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum spate_rc spate_version_refuse(const struct spate_version *version, struct spate_err *err,
                                   const char *fmt, ...)
{
    char place[300], text[900];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(err, SPATE_FATAL, "%s: %s",
                      spate_projection_place(version->projection, place, sizeof place), text);
}

static void add_ident(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

static const struct spate_output *output_named(const struct spate_version *version, const char *name)
{
    for (size_t i = 0; i < version->output_count; i++)
        if (strcmp(version->outputs[i].name, name) == 0)
            return &version->outputs[i];
    return NULL;
}

static enum spate_rc create_table(struct spate_version *version, struct spate_store *store,
                                  struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;
    size_t keys = 0;

    if (store->looking)
        return SPATE_OK; /* whether it may be made is looked at for the schema as a whole */
    if (store->stored && store->ready[version->projection->index])
        return spate_version_refuse(
            version, err,
            "%s was dropped, and what it held is not in the stream from here on. Restore it; or "
            "let the sink begin anew with `spate sink -c %s --restart %s`%s",
            version->projection->target, store->config->path, store->config->name,
            store->config->snapshot == SPATE_SINK_AUTO
                ? ", which brings every row again"
                : ", and have all rows brought by `spate snapshot --sink`");
    spate_buf_printf(&sql, "CREATE TABLE %s (", version->projection->target);
    for (size_t i = 0; i < version->output_count; i++) {
        spate_buf_puts(&sql, i ? ", " : "");
        add_ident(&sql, version->outputs[i].name);
        spate_buf_printf(&sql, " %s", version->outputs[i].type);
    }
    for (size_t k = 0; k < version->key_count; k++)
        for (size_t i = 0; i < version->output_count; i++) {
            if (!version->outputs[i].key || version->outputs[i].bare != (int)version->table->key[k])
                continue;
            spate_buf_puts(&sql, keys++ ? ", " : ", PRIMARY KEY (");
            add_ident(&sql, version->outputs[i].name);
            break;
        }
    spate_buf_puts(&sql, "))");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    SPATE_FAILPOINT(sink_table_made);
    if (rc == SPATE_OK) {
        spate_log(store->stored ? SPATE_LOG_WARN : SPATE_LOG_INFO, "table-created", "table=%s%s",
                  version->projection->label,
                  !store->stored ? ""
                  : store->config->snapshot == SPATE_SINK_AUTO
                      ? " detail=\"rows from before now are asked for\""
                      : " detail=\"rows from before now are not in it: `spate snapshot --sink` loads them\"");
    } else if (rc == SPATE_FAIL && strcmp(err->sqlstate, "42501") == 0) {
        rc = spate_version_refuse(
            version, err, "%s does not exist and role %s may not make it: as the schema's owner run %s;",
            version->projection->target, PQuser(store->conn), spate_buf_str(&sql));
    } else if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY) {
        err->verdict = SPATE_FATAL;
        err->exit_code = SPATE_EXIT_REFUSED;
        spate_err_context(err, "%s does not exist and cannot be made", version->projection->target);
    }
    spate_buf_fini(&sql);
    return rc;
}

enum {
    T_KIND,
    T_RLS,
    T_INSERT,
    T_UPDATE,
    T_DELETE,
    T_SELECT,
    T_TRIGGER,
    T_TRIGGER_TABLE,
    T_RULE,
    T_UNLOGGED
};

enum spate_rc spate_version_query(const struct spate_version *version, struct spate_store *store,
                                  const char *sql, PGresult **res, struct spate_err *err)
{
    const char *values[] = {version->projection->config->item.name, store->config->into.schema};

    return spate_pg_exec_params(store->conn, sql, 2, values, PGRES_TUPLES_OK, res, err);
}

static enum spate_rc check_rights(struct spate_version *version, struct spate_store *store,
                                  const PGresult *res, struct spate_err *err)
{
    static const char *const names[] = {"INSERT", "UPDATE", "DELETE", "SELECT"};
    const char *target = version->projection->target;

    if (strchr("rp", PQgetvalue(res, 0, T_KIND)[0]) == NULL)
        return spate_version_refuse(
            version, err, "%s is no ordinary table (relkind %s): give the team's table another name", target,
            PQgetvalue(res, 0, T_KIND));
    for (int i = 0; i < 4; i++)
        if (PQgetvalue(res, 0, T_INSERT + i)[0] != 't')
            return spate_version_refuse(
                version, err,
                "role %s lacks %s on %s: as its owner run GRANT SELECT, INSERT, UPDATE, "
                "DELETE, TRUNCATE ON %s TO \"%s\"",
                PQuser(store->conn), names[i], target, target, PQuser(store->conn));
    if (PQgetvalue(res, 0, T_RLS)[0] == 't')
        return spate_version_refuse(
            version, err,
            "row-level security of %s applies to role %s and would hide rows from it: ALTER TABLE %s "
            "DISABLE ROW LEVEL SECURITY; or give the role BYPASSRLS",
            target, PQuser(store->conn), target);
    if (!PQgetisnull(res, 0, T_TRIGGER))
        return spate_version_refuse(
            version, err,
            "%s has the row trigger %s, which would run again at each replay: ALTER TABLE %s DISABLE "
            "TRIGGER %s;",
            target, PQgetvalue(res, 0, T_TRIGGER), PQgetvalue(res, 0, T_TRIGGER_TABLE),
            PQgetvalue(res, 0, T_TRIGGER));
    if (!PQgetisnull(res, 0, T_RULE))
        return spate_version_refuse(
            version, err,
            "%s has the rewrite rule %s, which would turn what is written into something else: DROP RULE %s "
            "ON %s;",
            target, PQgetvalue(res, 0, T_RULE), PQgetvalue(res, 0, T_RULE), target);
    if (!PQgetisnull(res, 0, T_UNLOGGED))
        return spate_version_refuse(
            version, err,
            "%s is UNLOGGED: a crash of the target would empty it, but not take the position back: ALTER "
            "TABLE %s SET LOGGED;",
            PQgetvalue(res, 0, T_UNLOGGED), PQgetvalue(res, 0, T_UNLOGGED));
    return SPATE_OK;
}

enum {
    C_NAME,
    C_TYPE,
    C_MOD,
    C_TEXT,
    C_NOTNULL,
    C_DEFAULT,
    C_IDENTITY,
    C_GENERATED,
    C_DETERMINISTIC,
    C_BASE,
    C_BASEMOD,
    C_QUOTED,
    C_PRIMARY
};

/* The two ways out: the table's column as the expression is, or a cast in the file, as YAML reads it. */
static enum spate_rc refuse_lossy(const struct spate_version *version, const struct spate_output *output,
                                  const char *name, const char *type, struct spate_err *err)
{
    const char *target = version->projection->target;
    struct spate_buf cast = {0};
    enum spate_rc rc;

    spate_buf_puts(&cast, "'(");
    for (const char *c = output->expr; *c; c++) {
        if (*c == '\'')
            spate_buf_putc(&cast, '\'');
        spate_buf_putc(&cast, *c);
    }
    spate_buf_printf(&cast, ")::%s'", type);
    rc = spate_version_refuse(
        version, err,
        "%s.%s is %s, but what the file stores there (%.200s) is %s, and the value could change on the way. "
        "Either ALTER TABLE %s ALTER COLUMN %s TYPE %s USING %s::%s; or in the file, under columns%s, %s: %s",
        target, name, type, output->expr, output->type, target, name, output->type, name, output->type,
        version->projection->config->columns.count ? "" : " (which then has to name all of them)", name,
        spate_buf_str(&cast));
    spate_buf_fini(&cast);
    return rc;
}

static enum spate_rc check_column(struct spate_version *version, const PGresult *res, int r,
                                  const struct spate_output *output, struct spate_err *err)
{
    const char *target = version->projection->target, *name = PQgetvalue(res, r, C_QUOTED);
    const char *is = PQgetvalue(res, r, C_TEXT), *wanted = output->type;
    uint32_t type = (uint32_t)strtoul(PQgetvalue(res, r, C_TYPE), NULL, 10);
    uint32_t base = (uint32_t)strtoul(PQgetvalue(res, r, C_BASE), NULL, 10);
    int base_mod = atoi(PQgetvalue(res, r, C_BASEMOD));

    if (PQgetvalue(res, r, C_GENERATED)[0] || PQgetvalue(res, r, C_IDENTITY)[0] == 'a')
        return spate_version_refuse(
            version, err,
            "%s.%s is generated by the target and cannot be written: ALTER TABLE %s ALTER COLUMN %s DROP "
            "%s; or take it out of columns",
            target, name, target, name, PQgetvalue(res, r, C_GENERATED)[0] ? "EXPRESSION" : "IDENTITY");
    if (output->key && PQgetvalue(res, r, C_DETERMINISTIC)[0] != 't')
        return spate_version_refuse(
            version, err,
            "key column %s.%s has a nondeterministic collation, under which two rows of the source could "
            "share a key: ALTER TABLE %s ALTER COLUMN %s TYPE %s COLLATE \"C\";",
            target, name, target, name, wanted);
    if (type == output->type_oid && type != base)
        return SPATE_OK; /* the very domain that the expression was cast to */
    if (output->key && base != output->type_oid)
        return spate_version_refuse(
            version, err,
            "key column %s.%s is %s, the source's is %s: ALTER TABLE %s ALTER COLUMN %s TYPE %s "
            "USING %s::%s;",
            target, name, is, wanted, target, name, wanted, name, wanted);
    if (spate_type_lossless(output->type_oid, output->type_mod, base, base_mod))
        return SPATE_OK;
    return refuse_lossy(version, output, name, is, err);
}

/* A statement that is longer than an error's text goes into a line of its own as well. */
static void log_statement(const char *sql)
{
    char quoted[16000];

    if (strlen(sql) > 500)
        spate_log(SPATE_LOG_ERROR, "remedy", "sql=%s", spate_log_quote(quoted, sizeof quoted, sql));
}

static enum spate_rc check_missing(struct spate_version *version, const PGresult *res, struct spate_err *err)
{
    struct spate_buf alter = {0};
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < version->output_count; i++) {
        bool found = false;
        for (int r = 0; r < PQntuples(res) && !found; r++)
            found = strcmp(PQgetvalue(res, r, C_NAME), version->outputs[i].name) == 0;
        if (found)
            continue;
        spate_buf_puts(&alter, alter.len ? ", ADD COLUMN " : "ADD COLUMN ");
        add_ident(&alter, version->outputs[i].name);
        spate_buf_printf(&alter, " %s", version->outputs[i].type);
    }
    if (alter.len)
        log_statement(spate_buf_str(&alter));
    if (alter.len)
        rc = spate_version_refuse(version, err, "%s lacks columns: ALTER TABLE %s %s;",
                                  version->projection->target, version->projection->target,
                                  spate_buf_str(&alter));
    spate_buf_fini(&alter);
    return rc;
}

/* The source's key is another one now, without this column. */
static enum spate_rc refuse_primary(const struct spate_version *version, const char *column,
                                    const char *primary, struct spate_err *err)
{
    const char *target = version->projection->target;
    struct spate_buf key = {0};
    enum spate_rc rc;

    for (size_t i = 0; i < version->output_count; i++)
        if (version->outputs[i].key) {
            spate_buf_puts(&key, key.len ? ", " : "");
            add_ident(&key, version->outputs[i].name);
        }
    rc = spate_version_refuse(
        version, err,
        "%s.%s is in the table's primary key, and the file does not supply it: the source's key "
        "is (%s). ALTER TABLE %s DROP CONSTRAINT %s, ALTER COLUMN %s DROP NOT NULL, ADD UNIQUE "
        "(%s);",
        target, column, spate_buf_str(&key), target, primary, column, spate_buf_str(&key));
    spate_buf_fini(&key);
    return rc;
}

static enum spate_rc check_columns(struct spate_version *version, struct spate_store *store,
                                   struct spate_err *err)
{
    static const char sql[] =
        "WITH RECURSIVE col AS (SELECT a.*, coalesce(l.collisdeterministic, true) AS det FROM "
        "pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = "
        "c.relnamespace "
        "LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation "
        "WHERE c.relname = $1 AND n.nspname = $2 AND a.attnum > 0 AND NOT a.attisdropped), "
        "base(num, typ, mod) AS (SELECT attnum, atttypid, atttypmod FROM col UNION ALL SELECT num, "
        "t.typbasetype, "
        "CASE WHEN mod = -1 THEN t.typtypmod ELSE mod END FROM base JOIN pg_catalog.pg_type t ON t.oid = typ "
        "AND "
        "t.typtype = 'd') "
        "SELECT attname, atttypid, atttypmod, format_type(atttypid, atttypmod), attnotnull, atthasdef, "
        "attidentity, "
        "attgenerated, det, typ, mod, quote_ident(attname), (SELECT quote_ident(conname) FROM "
        "pg_catalog.pg_constraint p WHERE p.conrelid = col.attrelid AND p.contype = 'p' AND col.attnum = ANY "
        "(p.conkey)) FROM col JOIN base ON num = attnum JOIN "
        "pg_catalog.pg_type t ON t.oid = "
        "typ AND "
        "t.typtype <> 'd' ORDER BY attnum";
    PGresult *res = NULL;
    enum spate_rc rc = spate_version_query(version, store, sql, &res, err);

    if (rc == SPATE_OK)
        rc = check_missing(version, res, err);
    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        const struct spate_output *output = output_named(version, PQgetvalue(res, r, C_NAME));
        const char *target = version->projection->target, *name = PQgetvalue(res, r, C_QUOTED);

        if (output)
            rc = check_column(version, res, r, output, err);
        else if (!PQgetisnull(res, r, C_PRIMARY) && PQgetvalue(res, r, C_DEFAULT)[0] == 'f' &&
                 !PQgetvalue(res, r, C_IDENTITY)[0])
            rc = refuse_primary(version, name, PQgetvalue(res, r, C_PRIMARY), err);
        else if (PQgetvalue(res, r, C_NOTNULL)[0] == 't' && PQgetvalue(res, r, C_DEFAULT)[0] == 'f' &&
                 !PQgetvalue(res, r, C_IDENTITY)[0])
            rc = spate_version_refuse(
                version, err,
                "%s.%s is NOT NULL without a default, and the file does not supply it: ALTER TABLE %s ALTER "
                "COLUMN %s DROP NOT NULL; or add it to columns",
                target, name, target, name);
    }
    PQclear(res);
    return rc;
}

static void tell_text_types(const struct spate_version *version)
{
    for (size_t i = 0; i < version->used_count; i++) {
        const struct spate_column *column = &version->table->columns[version->used[i]];
        char name[SPATE_FACT_MAX], type[SPATE_FACT_MAX], text[SPATE_FACT_MAX];

        if (!version->as_text[version->used[i]])
            continue;
        snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(column->name));
        spate_fact(name, text);
        snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(column->type));
        spate_log(SPATE_LOG_INFO, "type-unknown-in-target",
                  "table=%s column=%s type=%s handled=\"as text: take it as it is or cast it\"",
                  version->projection->label, name, spate_fact(type, text));
    }
}

enum spate_rc spate_version_preflight(struct spate_version *version, struct spate_store *store,
                                      struct spate_err *err)
{
    /* A table stands for itself and its partitions. */
    static const char sql[] =
        "WITH t AS (SELECT c.* FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = "
        "c.relnamespace "
        "WHERE c.relname = $1 AND n.nspname = $2), part AS (SELECT t.oid FROM t UNION SELECT p.relid::oid "
        "FROM t, "
        "pg_partition_tree(t.oid) p), trig AS (SELECT quote_ident(tgname) AS name, tgrelid FROM "
        "pg_catalog.pg_trigger "
        "JOIN part ON part.oid = tgrelid WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 1 = "
        "1 ORDER BY "
        "tgrelid <> (SELECT oid FROM t), tgname LIMIT 1), full_name AS (SELECT c.oid, format('%I.%I', "
        "n.nspname, "
        "c.relname) AS name, c.relpersistence FROM pg_catalog.pg_class c JOIN part ON part.oid = c.oid JOIN "
        "pg_catalog.pg_namespace n ON n.oid = c.relnamespace) "
        "SELECT t.relkind, row_security_active(t.oid), has_table_privilege(t.oid, 'INSERT'), "
        "has_table_privilege(t.oid, 'UPDATE'), has_table_privilege(t.oid, 'DELETE'), "
        "has_table_privilege(t.oid, 'SELECT'), (SELECT name FROM trig), "
        "(SELECT f.name FROM full_name f JOIN trig ON f.oid = tgrelid), "
        "(SELECT min(quote_ident(rulename)) FROM pg_catalog.pg_rewrite JOIN part ON part.oid = ev_class "
        "WHERE rulename "
        "<> '_RETURN' AND ev_enabled <> 'D'), "
        "(SELECT min(name) FROM full_name WHERE relpersistence <> 'p') FROM t";
    PGresult *res = NULL;
    bool exists = false;
    enum spate_rc rc = spate_version_query(version, store, sql, &res, err);

    if (rc == SPATE_OK) {
        exists = PQntuples(res) > 0;
        rc = exists ? check_rights(version, store, res, err) : create_table(version, store, err);
    }
    PQclear(res);
    if (rc == SPATE_OK && exists)
        rc = check_columns(version, store, err);
    if (rc == SPATE_OK && exists)
        rc = spate_version_constraints(version, store, err);
    if (rc == SPATE_OK)
        tell_text_types(version);
    return rc;
}
