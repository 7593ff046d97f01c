#include "sinks/blame.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "sinks/projection.h"

#include <stdlib.h>
#include <string.h>

#define ENOUGH_MS 5000

struct trial {
    const struct spate_store *store;
    const struct spate_item *item;
    const char *sqlstate;
    int64_t until_ms;
    struct spate_buf sql;
    char **values; /* of the row, by position in `used`; NULL: is null, or did not come */
};

static bool fails(struct trial *trial, int count, const char *const *values)
{
    struct spate_err err = {0};
    PGresult *res = NULL;
    int64_t left_ms = trial->until_ms - spate_clock_ms();
    enum spate_rc rc;

    if (left_ms <= 0 || PQstatus(trial->store->conn) != CONNECTION_OK)
        return false;
    rc =
        spate_pg_ask(trial->store->conn, spate_buf_str(&trial->sql), count, values, (int)left_ms, &res, &err);
    PQclear(res);
    return rc == SPATE_FAIL && strcmp(err.sqlstate, trial->sqlstate) == 0;
}

/* "$1::type": a parameter is read by the type's own input. */
static void add_value(struct trial *trial, size_t used_at, int number)
{
    const struct spate_version *version = trial->item->version;

    spate_buf_printf(&trial->sql, "$%d::%s", number, version->stage_types[version->used[used_at]]);
}

static bool value_fails(struct trial *trial, size_t used_at)
{
    const char *value = trial->values[used_at];

    if (!value)
        return false;
    spate_buf_reset(&trial->sql);
    spate_buf_puts(&trial->sql, "SELECT ");
    add_value(trial, used_at, 1);
    return fails(trial, 1, &value);
}

static bool output_fails(struct trial *trial, const struct spate_output *output)
{
    const struct spate_version *version = trial->item->version;
    const char **values;
    int count = 0;
    bool failed;

    if (output->bare >= 0 || output->use_count == 0)
        return false;
    values = spate_zalloc(output->use_count * sizeof *values);
    spate_buf_reset(&trial->sql);
    spate_buf_printf(&trial->sql, "SELECT (%s\n) FROM (SELECT ", output->expr);
    for (size_t at = 0; at < version->used_count; at++)
        for (size_t u = 0; u < output->use_count; u++) {
            if (version->used[at] != output->uses[u])
                continue;
            spate_buf_puts(&trial->sql, count ? ", " : "");
            values[count++] = trial->values[at];
            add_value(trial, at, count);
            spate_buf_puts(&trial->sql, " AS ");
            spate_pg_ident(&trial->sql, version->table->columns[version->used[at]].name);
            break;
        }
    spate_buf_puts(&trial->sql, ") AS spate_rows");
    failed = fails(trial, count, values);
    free(values);
    return failed;
}

void spate_blame_column(const struct spate_store *store, const struct spate_item *item, const char *sqlstate,
                        struct spate_buf *out)
{
    const struct spate_version *version = item->version;
    struct trial trial = {
        .store = store, .item = item, .sqlstate = sqlstate, .until_ms = spate_clock_ms() + ENOUGH_MS};
    bool found = false;

    if (!item->values)
        return;
    trial.values = spate_zalloc((version->used_count + 1) * sizeof *trial.values);
    for (size_t i = 0; i < version->used_count; i++)
        if (item->values[i].kind == SPATE_VALUE_TEXT)
            trial.values[i] = spate_strndup(item->values[i].text.at, item->values[i].text.len);
    for (size_t i = 0; i < version->used_count && !found; i++) {
        found = value_fails(&trial, i);
        if (found)
            spate_pg_ident(out, version->table->columns[version->used[i]].name);
    }
    for (size_t i = 0; i < version->output_count && !found; i++) {
        found = output_fails(&trial, &version->outputs[i]);
        if (found)
            spate_pg_ident(out, spate_slice_str(version->outputs[i].name));
    }
    for (size_t i = 0; i < version->used_count; i++)
        free(trial.values[i]);
    free(trial.values);
    spate_buf_fini(&trial.sql);
}
