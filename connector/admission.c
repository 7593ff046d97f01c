/* connector/admission.c - who asks, for which columns of which tables, under which conditions. */
#include "connector/admission.h"

#include "connector/cover.h"
#include "connector/permits.h"
#include "core/alloc.h"
#include "core/options.h"
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

void spate_refusal_fini(struct spate_refusal *refusal)
{
    spate_buf_fini(&refusal->reason);
    spate_buf_fini(&refusal->remedy);
}

void spate_admission_name(struct spate_buf *out, struct spate_slice schema, struct spate_slice table)
{
    spate_pg_ident(out, schema);
    spate_buf_putc(out, '.');
    spate_pg_ident(out, table);
}

/* ---- without the source ---- */

/* The connector's file is the connector's: its path helps whoever may change it. */
static void not_allowed(const struct spate_connector_config *config, const struct spate_control *request,
                        const struct spate_control_table *table, struct spate_refusal *refusal)
{
    struct spate_buf name = {0};

    spate_admission_name(&name, table->schema, table->table);
    spate_buf_printf(&refusal->reason,
                     "\"%.*s\" may not ask for the rows of %s: snapshots.allow of connector %s ",
                     SPATE_SLICE_ARG(request->sink), spate_buf_str(&name), config->name);
    spate_buf_puts(&refusal->reason, spate_permits_requester(config, request->sink)
                                         ? "allows it other tables"
                                         : "does not name this requester");
    spate_buf_printf(&refusal->remedy,
                     "in the connector's file say snapshots: {allow: {\"%.*s\": \"%.*s.%.*s\"}} (it holds "
                     "globs, separated by commas) and restart the connector",
                     SPATE_SLICE_ARG(request->sink), SPATE_SLICE_ARG(table->schema),
                     SPATE_SLICE_ARG(table->table));
    spate_buf_fini(&name);
}

static bool conditions_are_some(const struct spate_control_table *table, struct spate_refusal *refusal)
{
    for (size_t i = 0; i < table->where_count; i++) {
        const struct spate_condition *condition = &table->where[i];

        if (spate_condition_op_known(condition->op, condition->null))
            continue;
        spate_buf_printf(&refusal->reason, "condition %zu on %.*s.%.*s: there is no operator \"%.*s\"%s",
                         i + 1, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->table),
                         SPATE_SLICE_ARG(condition->op), condition->null ? " for null" : "");
        spate_buf_puts(&refusal->remedy,
                       condition->null
                           ? "compare with null by \"is\" or \"is not\""
                           : "use one of = <> < <= > >= ; all conditions of a table have to hold");
        return false;
    }
    return true;
}

bool spate_admission_may(const struct spate_connector_config *config, const struct spate_control *request,
                         struct spate_refusal *refusal)
{
    if (request->table_count == 0) {
        spate_buf_puts(&refusal->reason, "the request names no table");
        spate_buf_puts(&refusal->remedy,
                       "name what is wanted: \"tables\":[{\"schema\":\"public\",\"table\":\"orders\"}]");
        return false;
    }
    for (size_t i = 0; i < request->table_count; i++) {
        const struct spate_control_table *table = &request->tables[i];

        if (!request->some && !spate_permits_table(config, request->sink, table->schema, table->table)) {
            not_allowed(config, request, table, refusal);
            return false;
        }
        for (size_t j = 0; j < i; j++)
            if (spate_slice_eq(table->schema, request->tables[j].schema) &&
                spate_slice_eq(table->table, request->tables[j].table)) {
                spate_buf_printf(&refusal->reason, "the request names %.*s.%.*s twice",
                                 SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->table));
                spate_buf_puts(&refusal->remedy, "name a table once; send a second request for other "
                                                 "conditions on it");
                return false;
            }
        if (!conditions_are_some(table, refusal))
            return false;
    }
    return true;
}

/* ---- with it ---- */

static void no_column(const struct spate_table *table, struct spate_slice name, struct spate_refusal *refusal)
{
    const char **names = spate_alloc((table->column_count + 1) * sizeof *names);
    char *word = spate_strndup(name.at, name.len);
    const char *nearest;

    for (size_t i = 0; i < table->column_count; i++)
        names[i] = spate_strndup(table->columns[i].name.at, table->columns[i].name.len);
    nearest = spate_nearest(word, names, table->column_count);
    spate_buf_printf(&refusal->reason, "%.*s.%.*s has no column \"%s\" that is published",
                     SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name), word);
    if (nearest) {
        spate_buf_printf(&refusal->remedy, "did you mean \"%s\"?", nearest);
    } else {
        spate_buf_puts(&refusal->remedy, "its columns are ");
        for (size_t i = 0; i < table->column_count && i < 50; i++)
            spate_buf_printf(&refusal->remedy, "%s%s", i ? ", " : "", names[i]);
        if (table->column_count > 50)
            spate_buf_puts(&refusal->remedy, " and more");
    }
    for (size_t i = 0; i < table->column_count; i++)
        free((void *)(uintptr_t)names[i]);
    free(names);
    free(word);
}

static bool take_columns(const struct spate_control_table *from, struct spate_plan_table *table,
                         struct spate_refusal *refusal)
{
    const struct spate_table *shape = table->table;

    table->asked = spate_zalloc((shape->column_count + 1) * sizeof *table->asked);
    table->all = from->column_count == 0;
    for (size_t i = 0; i < shape->column_count; i++)
        table->asked[i] = table->all;
    for (size_t i = 0; i < from->column_count; i++) {
        int column = spate_table_column(shape, from->columns[i]);

        if (column < 0) {
            no_column(shape, from->columns[i], refusal);
            return false;
        }
        table->asked[column] = true;
    }
    for (size_t i = 0; i < shape->key_count; i++)
        table->asked[shape->key[i]] = true; /* a row is known by its key */
    table->all = true;
    for (size_t i = 0; i < shape->column_count; i++)
        table->all = table->all && table->asked[i];
    return true;
}

/* Every key column = something, and nothing else: one row at most, found by the key's index. */
static bool is_by_key(const struct spate_plan_table *table)
{
    const struct spate_table *shape = table->table;
    size_t found = 0;

    if (shape->key_count == 0 || table->where_count != shape->key_count)
        return false;
    for (size_t k = 0; k < shape->key_count; k++)
        for (size_t i = 0; i < table->where_count; i++)
            if (table->where[i].column == shape->key[k] && strcmp(table->where[i].op, "=") == 0) {
                found++;
                break;
            }
    return found == shape->key_count;
}

static bool take_conditions(const struct spate_control_table *from, struct spate_plan_table *table,
                            struct spate_refusal *refusal)
{
    table->where = spate_zalloc((from->where_count + 1) * sizeof *table->where);
    for (size_t i = 0; i < from->where_count; i++) {
        const struct spate_condition *condition = &from->where[i];
        struct spate_plan_condition *into = &table->where[i];
        int column = spate_table_column(table->table, condition->column);

        if (column < 0) {
            no_column(table->table, condition->column, refusal);
            return false;
        }
        if (!condition->null && condition->value.len &&
            memchr(condition->value.at, 0, condition->value.len)) {
            spate_buf_printf(&refusal->reason,
                             "the value for column \"%.*s\" has a NUL byte, which no value in "
                             "Postgres has",
                             SPATE_SLICE_ARG(condition->column));
            spate_buf_puts(&refusal->remedy, "leave it out");
            return false;
        }
        if (spate_cover_treatment(table->cover, (size_t)column) != SPATE_SHOWN) {
            spate_buf_printf(&refusal->reason,
                             "column \"%.*s\" of %.*s.%.*s is masked (%s): a condition on it would "
                             "tell of the values that do not leave",
                             SPATE_SLICE_ARG(condition->column), SPATE_SLICE_ARG(table->table->schema),
                             SPATE_SLICE_ARG(table->table->name),
                             spate_treatment_name(spate_cover_treatment(table->cover, (size_t)column)));
            spate_buf_puts(&refusal->remedy, "leave the condition out, or put it on another column");
            return false;
        }
        into->column = (uint32_t)column;
        into->op = spate_strndup(condition->op.at, condition->op.len);
        into->value = condition->null ? NULL
                                      : spate_strndup(condition->value.len ? condition->value.at : "",
                                                      condition->value.len);
        table->where_count = i + 1;
    }
    table->by_key = is_by_key(table);
    return true;
}

/* SPATE_OK and *taken, or refused. */
static enum spate_rc take_table(const struct spate_connector_config *config, PGconn *conn,
                                const struct spate_control *request, const struct spate_control_table *from,
                                struct spate_plan_table *table, bool *taken, struct spate_refusal *refusal,
                                struct spate_err *err)
{
    enum spate_rc rc;

    *taken = false;
    if (!spate_permits_table(config, request->sink, from->schema, from->table)) {
        not_allowed(config, request, from, refusal);
        return SPATE_OK;
    }
    table->resume = spate_strndup(from->resume.len ? from->resume.at : "", from->resume.len);
    table->chunk = from->chunk;
    rc = spate_admission_look(config, conn, from, request->append, table, refusal, err);
    if (rc != SPATE_OK || !table->table)
        return rc;
    if (!take_columns(from, table, refusal) || !take_conditions(from, table, refusal))
        return spate_pg_exec(conn, "ROLLBACK", PGRES_COMMAND_OK, NULL, err);
    return spate_admission_try(conn, table, taken, refusal, err);
}

enum spate_rc spate_admission_plan(const struct spate_connector_config *config, PGconn *conn,
                                   const struct spate_control *request, struct spate_plan **plan,
                                   struct spate_refusal *refusal, struct spate_err *err)
{
    struct spate_plan *made = spate_zalloc(sizeof *made);
    enum spate_rc rc = SPATE_OK;
    bool taken = true;

    *plan = NULL;
    made->request = spate_strndup(request->request.at, request->request.len);
    made->sink = spate_strndup(request->sink.at, request->sink.len);
    made->again = request->again;
    made->append = request->append;
    made->tables = spate_zalloc((request->table_count + 1) * sizeof *made->tables);
    for (size_t i = 0; rc == SPATE_OK && (taken || request->some) && i < request->table_count; i++) {
        struct spate_plan_table *table = &made->tables[made->count++];

        spate_buf_reset(&refusal->reason);
        spate_buf_reset(&refusal->remedy);
        rc = take_table(config, conn, request, &request->tables[i], table, &taken, refusal, err);
        if (rc == SPATE_OK && !taken && request->some) {
            spate_plan_table_fini(table);
            *table = (struct spate_plan_table){0};
            made->count--;
        }
    }
    if (rc == SPATE_OK && made->count > 0 && (taken || request->some)) {
        *plan = made;
        return SPATE_OK;
    }
    spate_plan_free(made);
    return rc;
}
