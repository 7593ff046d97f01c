/* sinks/check_target.c - server, schema, rights, and who else writes there. */
#include "sinks/check_target.h"

#include "pg/check.h"

#include <string.h>

enum {
    T_STANDBY,
    T_READ_ONLY,
    T_ENCODING,
    T_DATABASE,
    T_ROLE,
    T_TEMPORARY,
    T_CREATE_SCHEMA,
    T_SCHEMA,
    T_USAGE,
    T_CREATE,
    T_OWN_TABLES, /* of ours that are there */
    T_OWN_RIGHTS,
    T_SUPERUSER,
    T_RUNNING
};

/* $1: the schema; $2: what the sink's advisory lock hashes. */
static const char target_sql[] =
    "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on' OR "
    "current_setting('default_transaction_read_only') = 'on',"
    " pg_encoding_to_char(d.encoding), quote_ident(current_database()), quote_ident(current_user),"
    " has_database_privilege(d.oid, 'TEMPORARY'), has_database_privilege(d.oid, 'CREATE'),"
    " n.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE'), false),"
    " coalesce(has_schema_privilege(n.oid, 'CREATE'), false),"
    " (SELECT count(*) FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname IN"
    "  ('spate_sink', 'spate_table')),"
    " NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname IN"
    "  ('spate_sink', 'spate_table') AND NOT (has_table_privilege(c.oid, 'SELECT') AND"
    "  has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND"
    "  has_table_privilege(c.oid, 'DELETE'))),"
    " (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user),"
    " EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid "
    "="
    "  1 AND l.database = d.oid AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($2, 0))"
    " FROM pg_catalog.pg_database d LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = $1"
    " WHERE d.datname = current_database()";

static bool truth(const PGresult *res, int column)
{
    return PQgetvalue(res, 0, column)[0] == 't';
}

static const char *cell(const PGresult *res, int column)
{
    return PQgetvalue(res, 0, column);
}

static void judge_server(PGconn *conn, const PGresult *res, struct spate_findings *list)
{
    const int version = PQserverVersion(conn);

    if (version < 140000) {
        spate_find(list, SPATE_FINDING_WARNING, "target-version", "the target is PostgreSQL %d",
                   version / 10000);
        spate_find_why(list, "sinks are tried with 14 and later");
        spate_find_fix(list, SPATE_MEND_HAND, "upgrade the server");
    }
    if (truth(res, T_STANDBY)) {
        spate_find(list, SPATE_FINDING_ERROR, "target-standby", "the target is a standby");
        spate_find_why(list, "nothing can be written there; the sink would wait until it is promoted");
        spate_find_fix(list, SPATE_MEND_FILE,
                       "into.postgres.url: the primary; or several hosts, and "
                       "target_session_attrs=read-write");
    } else if (truth(res, T_READ_ONLY)) {
        spate_find(list, SPATE_FINDING_ERROR, "target-read-only",
                   "transactions of role %s in the target are read-only", cell(res, T_ROLE));
        spate_find_why(list, "default_transaction_read_only is on for the role, the database or the server");
        spate_find_fix(list, SPATE_MEND_TARGET,
                       "ALTER ROLE %s IN DATABASE %s SET default_transaction_read_only = off;",
                       cell(res, T_ROLE), cell(res, T_DATABASE));
    }
    if (strcmp(cell(res, T_ENCODING), "UTF8") != 0) {
        spate_find(list, SPATE_FINDING_WARNING, "target-encoding", "the target database's encoding is %s",
                   cell(res, T_ENCODING));
        spate_find_why(list, "text that it cannot hold stops the sink");
        spate_find_fix(list, SPATE_MEND_HAND, "a database that was created with ENCODING 'UTF8'");
    }
    if (truth(res, T_SUPERUSER)) {
        spate_find(list, SPATE_FINDING_NOTE, "target-superuser", "role %s is a superuser", cell(res, T_ROLE));
        spate_find_why(list, "a role that owns the schema is enough");
    }
}

static void grant(struct spate_findings *list, const PGresult *res, const char *kind, const char *right,
                  const char *on, const char *why)
{
    spate_find(list, SPATE_FINDING_ERROR, kind, "role %s lacks %s on %s", cell(res, T_ROLE), right, on);
    spate_find_why(list, "%s", why);
    spate_find_fix(list, SPATE_MEND_TARGET, "GRANT %s ON %s TO %s;", right, on, cell(res, T_ROLE));
}

static void judge_rights(struct spate_store *store, const PGresult *res, struct spate_findings *list)
{
    struct spate_buf on = {0};
    const bool all_there = strcmp(cell(res, T_OWN_TABLES), "2") == 0;

    spate_buf_printf(&on, "DATABASE %s", cell(res, T_DATABASE));
    if (!truth(res, T_TEMPORARY))
        grant(list, res, "target-temporary", "TEMPORARY", spate_buf_str(&on),
              "rows are staged in temporary tables");
    spate_buf_reset(&on);
    spate_buf_printf(&on, "SCHEMA %s", store->schema);
    if (!truth(res, T_SCHEMA) && !truth(res, T_CREATE_SCHEMA)) {
        spate_find(list, SPATE_FINDING_ERROR, "target-schema",
                   "schema %s does not exist in the target, and role %s may not make it", store->schema,
                   cell(res, T_ROLE));
        spate_find_why(list, "the sink's tables and its position stand there");
        spate_find_fix(list, SPATE_MEND_TARGET, "CREATE SCHEMA %s AUTHORIZATION %s;", store->schema,
                       cell(res, T_ROLE));
    } else if (!truth(res, T_SCHEMA)) {
        spate_find(list, SPATE_FINDING_NOTE, "target-schema-will-be-made",
                   "schema %s does not exist in the target; the sink makes it", store->schema);
    } else if (!truth(res, T_USAGE)) {
        grant(list, res, "target-schema", "USAGE, CREATE", spate_buf_str(&on),
              "the sink's tables and its position stand there");
    } else if (!truth(res, T_CREATE)) {
        /* Where all is made already it can live without. */
        spate_find(list, all_there ? SPATE_FINDING_WARNING : SPATE_FINDING_ERROR, "target-schema",
                   "role %s lacks CREATE on schema %s", cell(res, T_ROLE), store->schema);
        spate_find_why(list, "the sink makes the tables of its position, and those that are missing");
        spate_find_fix(list, SPATE_MEND_TARGET, "GRANT CREATE ON SCHEMA %s TO %s;", store->schema,
                       cell(res, T_ROLE));
    }
    if (truth(res, T_USAGE) && !truth(res, T_OWN_RIGHTS)) {
        spate_find(list, SPATE_FINDING_ERROR, "target-position",
                   "role %s may not write %s.spate_sink and %s.spate_table", cell(res, T_ROLE), store->schema,
                   store->schema);
        spate_find_why(list, "the sink's position stands there, written with the rows");
        spate_find_fix(list, SPATE_MEND_TARGET,
                       "GRANT SELECT, INSERT, UPDATE, DELETE ON %s.spate_sink, %s.spate_table TO %s;",
                       store->schema, store->schema, cell(res, T_ROLE));
    }
    spate_buf_fini(&on);
}

/* Another sink's tables, or a stream that this name followed before. */
static void judge_owners(struct spate_store *store, struct spate_findings *list)
{
    const struct spate_sink_table_config *tables = store->config->tables.at;
    struct spate_buf sql = {0};
    struct spate_err err = {0};
    PGresult *res = NULL;

    spate_buf_printf(&sql, "SELECT table_name, sink FROM %s.spate_table WHERE sink <> ", store->schema);
    spate_pg_literal(&sql, spate_slice_str(store->config->name));
    if (spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, &err) == SPATE_FAIL)
        spate_find_err(list, "target-failed", &err);
    for (int row = 0; row < PQntuples(res); row++)
        for (size_t i = 0; i < store->config->tables.count; i++) {
            if (strcmp(PQgetvalue(res, row, 0), tables[i].item.name) != 0)
                continue;
            spate_buf_reset(&sql);
            spate_pg_literal(&sql, spate_slice_str(PQgetvalue(res, row, 1)));
            spate_find(list, SPATE_FINDING_ERROR, "table-owner", "sink %s writes table %s already",
                       PQgetvalue(res, row, 1), tables[i].item.name);
            spate_find_why(list, "two sinks of one table would undo each other's work");
            spate_find_fix(
                list, SPATE_MEND_TARGET,
                "DELETE FROM %s.spate_table WHERE sink = %s; -- if that sink is gone; else take the "
                "table out of one of the two files",
                store->schema, spate_buf_str(&sql));
        }
    PQclear(res);
    res = NULL;
    spate_buf_reset(&sql);
    spate_buf_printf(&sql, "SELECT source FROM %s.spate_sink WHERE sink = ", store->schema);
    spate_pg_literal(&sql, spate_slice_str(store->config->name));
    if (spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, &err) == SPATE_OK &&
        PQntuples(res) > 0 && strcmp(PQgetvalue(res, 0, 0), store->config->from) != 0) {
        spate_find(list, SPATE_FINDING_ERROR, "sink-source",
                   "sink %s followed the stream of %s until now, and the file says from: %s",
                   store->config->name, PQgetvalue(res, 0, 0), store->config->from);
        spate_find_why(list, "its position means a place in that stream");
        spate_find_fix(list, SPATE_MEND_FILE, "sink: another name for another source");
    }
    PQclear(res);
    spate_buf_fini(&sql);
}

void spate_check_target(struct spate_store *store, struct spate_findings *list)
{
    struct spate_buf lock = {0};
    const char *values[2] = {store->config->into.schema, NULL};
    struct spate_err err = {0};
    PGresult *res = NULL;

    spate_buf_printf(&lock, "spate sink %s.%s", store->config->into.schema, store->config->name);
    values[1] = spate_buf_str(&lock);
    if (spate_pg_check_direct(store->conn, list, &err) == SPATE_OK &&
        spate_pg_exec_params(store->conn, target_sql, 2, values, PGRES_TUPLES_OK, &res, &err) == SPATE_OK) {
        judge_server(store->conn, res, list);
        judge_rights(store, res, list);
        if (truth(res, T_RUNNING)) {
            spate_find(list, SPATE_FINDING_NOTE, "sink-running", "the sink is running");
            spate_find_why(list, "a second process of this name would wait");
        }
        if (truth(res, T_USAGE) && truth(res, T_OWN_RIGHTS) && strcmp(cell(res, T_OWN_TABLES), "2") == 0)
            judge_owners(store, list);
    } else {
        spate_find_err(list, "target-failed", &err);
    }
    PQclear(res);
    spate_buf_fini(&lock);
}
