/* connector/admission_where.c - are the conditions of a request some that the source can test? */
#include "connector/admitting.h"

#include "connector/query.h"
#include "pg/pg.h"

#include <string.h>

static void does_not_fit(struct spate_admitting *look, const struct spate_column *column, const char *op)
{
    bool operator_missing = !strcmp(look->err->sqlstate, "42883") || !strcmp(look->err->sqlstate, "42725");

    spate_buf_printf(&look->refusal->reason, "the condition on column \"%.*s\" of %s ",
                     SPATE_SLICE_ARG(column->name), spate_buf_str(&look->name));
    if (operator_missing) {
        spate_buf_printf(&look->refusal->reason, "cannot be tested: type %.*s has no operator %s",
                         SPATE_SLICE_ARG(column->type), op);
        spate_buf_puts(&look->refusal->remedy, "compare another column, or leave the condition out");
    } else {
        /* The server's words quote the value. */
        spate_buf_printf(&look->refusal->reason, "has a value that does not fit its type %.*s (%s)",
                         SPATE_SLICE_ARG(column->type), spate_pg_condition(look->err->sqlstate));
        spate_buf_printf(&look->refusal->remedy,
                         "write it as Postgres prints values of type %.*s, with dates as YYYY-MM-DD",
                         SPATE_SLICE_ARG(column->type));
    }
}

/* One condition alone, as the readers will put it: sets the value, casts it, and lets the server plan the
 * comparison. */
static enum spate_rc try_one(struct spate_admitting *look, struct spate_plan_table *one)
{
    const char *values[] = {one->where[0].value};
    struct spate_query_term term;
    struct spate_query_bound bound;
    struct spate_buf sql = {0};
    PGresult *set = NULL, *res = NULL;
    enum spate_rc rc;

    if (spate_query_terms(one, false, &term) == 0)
        return SPATE_OK; /* is null */
    spate_query_bind(&sql, &term, 1);
    rc = spate_admitting_ask(look, spate_buf_str(&sql), 1, values, &set);
    if (rc == SPATE_OK) {
        bound = (struct spate_query_bound){.type = PQgetvalue(set, 0, 0), .op = PQgetvalue(set, 0, 1)};
        spate_buf_reset(&sql);
        spate_buf_printf(&sql, "SELECT (pg_catalog.current_setting('spate.v0')::%s) IS NULL", bound.type);
        rc = spate_admitting_ask(look, spate_buf_str(&sql), 0, NULL, &res);
        PQclear(res);
        res = NULL;
    }
    if (rc == SPATE_OK) {
        spate_buf_reset(&sql);
        spate_buf_puts(&sql, "SELECT 1 FROM ");
        spate_query_root(&sql, one);
        spate_buf_puts(&sql, " WHERE ");
        spate_query_where(&sql, one, NULL, &bound);
        spate_buf_puts(&sql, " LIMIT 0");
        rc = spate_admitting_ask(look, spate_buf_str(&sql), 0, NULL, &res);
        PQclear(res);
    }
    PQclear(set);
    spate_buf_fini(&sql);
    return rc;
}

static bool is_of_the_request(const struct spate_err *err)
{
    return !strncmp(err->sqlstate, "22", 2) || !strncmp(err->sqlstate, "42", 2) ||
           !strncmp(err->sqlstate, "23", 2) || !strncmp(err->sqlstate, "0A", 2) ||
           !strncmp(err->sqlstate, "P0", 2) || !strncmp(err->sqlstate, "XX", 2);
}

enum spate_rc spate_admission_try(PGconn *conn, struct spate_plan_table *table, bool *fits,
                                  struct spate_refusal *refusal, struct spate_err *err)
{
    const struct spate_control_table from = {.schema = table->table->schema, .table = table->table->name};
    struct spate_admitting look = {.conn = conn, .from = &from, .refusal = refusal, .err = err};
    enum spate_rc rc = SPATE_OK;

    *fits = true;
    spate_admission_name(&look.name, from.schema, from.table);
    for (size_t i = 0; *fits && rc == SPATE_OK && i < table->where_count; i++) {
        struct spate_plan_table one = *table;

        one.where = &table->where[i];
        one.where_count = 1;
        rc = try_one(&look, &one);
        if (rc == SPATE_FAIL && PQstatus(conn) == CONNECTION_OK && is_of_the_request(err)) {
            does_not_fit(&look, &table->table->columns[table->where[i].column], table->where[i].op);
            *fits = false;
            rc = SPATE_OK;
        } else if (rc == SPATE_FAIL) {
            *fits = false;
            rc = spate_admitting_failed(&look, "trying the conditions");
        }
    }
    if (rc == SPATE_OK)
        rc = spate_admitting_give_up(&look); /* nothing was written */
    spate_buf_fini(&look.name);
    return rc;
}
