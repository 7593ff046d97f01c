/* sinks/owners.c - which sink writes which table of the team's schema: <schema>.spate_table. Part of the
 * store. */
#include "sinks/load.h"
#include "sinks/projection.h"
#include "sinks/store.h"

#include <string.h>

static enum spate_rc claim_table(struct spate_store *store, const struct spate_sink_table_config *table,
                                 bool *ready, struct spate_err *err)
{
    struct spate_buf sql = {0};
    const char *values[] = {table->item.name, store->config->name, table->from};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_printf(
        &sql,
        "INSERT INTO %s.spate_table AS t (table_name, sink, source) VALUES ($1, $2, $3) ON CONFLICT "
        "(table_name) DO UPDATE SET source = CASE WHEN t.sink = EXCLUDED.sink THEN EXCLUDED.source ELSE "
        "t.source END RETURNING sink, ready",
        store->schema);
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 3, values, PGRES_TUPLES_OK, &res, err);
    *ready = rc == SPATE_OK && PQgetvalue(res, 0, 1)[0] == 't';
    if (rc == SPATE_OK && strcmp(PQgetvalue(res, 0, 0), store->config->name) != 0) {
        err->exit_code = SPATE_EXIT_REFUSED;
        rc = spate_fail(
            err, SPATE_FATAL,
            "%s:%d: tables.%s: sink %s writes this table already. Take it out of one of the two files; if "
            "that sink is gone: DELETE FROM %s.spate_table WHERE sink = '%s'",
            store->config->path, table->item.line, table->item.name, PQgetvalue(res, 0, 0), store->schema,
            PQgetvalue(res, 0, 0));
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_store_claim_tables(struct spate_store *store, struct spate_err *err)
{
    const struct spate_sink_table_config *tables = store->config->tables.at;
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    /* What is no longer in the file is free for others. */
    spate_buf_printf(&sql, "DELETE FROM %s.spate_table WHERE sink = ", store->schema);
    spate_pg_literal(&sql, spate_slice_str(store->config->name));
    for (size_t i = 0; i < store->config->tables.count; i++) {
        spate_buf_puts(&sql, i ? ", " : " AND table_name NOT IN (");
        spate_pg_literal(&sql, spate_slice_str(tables[i].item.name));
    }
    spate_buf_puts(&sql, store->config->tables.count ? ")" : "");
    spate_buf_puts(&sql, " RETURNING table_name, coalesce(load_kind, copy)");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++)
        if (!PQgetisnull(res, r, 1))
            rc = spate_load_forget(store, PQgetvalue(res, r, 0), err);
    PQclear(res);
    for (size_t i = 0; rc == SPATE_OK && i < store->config->tables.count; i++)
        rc = claim_table(store, &tables[i], &store->ready[i], err);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_store_tables_ready(struct spate_store *store, const struct spate_projection *projections,
                                       struct spate_err *err)
{
    struct spate_buf sql = {0};
    const char *values[] = {store->config->name};
    enum spate_rc rc;

    spate_buf_printf(
        &sql, "UPDATE %s.spate_table SET ready = true WHERE sink = $1 AND NOT ready AND table_name IN (''",
        store->schema);
    for (size_t i = 0; i < store->config->tables.count; i++) {
        if (projections[i].late)
            continue;
        spate_buf_puts(&sql, ", ");
        spate_pg_literal(&sql, spate_slice_str(projections[i].config->item.name));
    }
    spate_buf_putc(&sql, ')');
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 1, values, PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    for (size_t i = 0; rc == SPATE_OK && i < store->config->tables.count; i++)
        store->ready[i] |= !projections[i].late;
    return rc;
}
