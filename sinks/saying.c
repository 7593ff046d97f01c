/* sinks/saying.c - what a sink says on `_control`: its request, above all. Part of sinks/loading.h. */
#include "sinks/start.h"

#include "core/clock.h"

bool spate_loading_say(struct spate_sink *sink, const struct spate_control *control)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_err err = {0};
    unsigned hidden;
    enum spate_rc rc = spate_asking_say(&loading->asking, control, &err);

    if (rc == SPATE_FAIL && spate_log_due(&loading->unheard, spate_clock_ms(), 60000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "control-unsaid", &err);
    return rc == SPATE_OK;
}

bool spate_loading_say_short(struct spate_sink *sink, enum spate_control_op op, const char *request)
{
    struct spate_control control = {.op = op,
                                    .request = spate_slice_str(request),
                                    .sink = spate_slice_str(sink->config->name),
                                    .wall_us = spate_clock_wall_us()};

    if (!spate_loading_say(sink, &control))
        return false;
    sink->loading.cancels += op == SPATE_CONTROL_CANCEL;
    return true;
}

/* The conditions by which a person asked for a source's table. */
static void conditions_of(struct spate_sink *sink, struct spate_control_table *table,
                          struct spate_arena *arena)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_err ignored = {0};
    struct spate_control wish;

    if (!loading->wish || spate_decode_control(spate_slice(loading->wish, loading->wish_len), &wish, arena,
                                               &ignored) != SPATE_OK)
        return;
    for (size_t t = 0; t < wish.table_count; t++)
        if (spate_slice_eq(wish.tables[t].schema, table->schema) &&
            spate_slice_eq(wish.tables[t].table, table->table)) {
            table->where = wish.tables[t].where;
            table->where_count = wish.tables[t].where_count;
        }
}

/* All columns that some projection of the source's table uses; none named where that is all there are, so
 * that a column that comes later is read as well. */
static void columns_of(const struct spate_sink *sink, const struct spate_projection *first,
                       struct spate_control_table *table, struct spate_arena *arena)
{
    const struct spate_table *source = first->current->table;
    struct spate_slice *names = spate_arena_alloc(arena, source->column_count * sizeof *names);
    size_t count = 0;

    for (size_t c = 0; c < source->column_count; c++) {
        bool used = false;

        for (size_t p = first->index; p < sink->projection_count && !used; p++) {
            const struct spate_projection *projection = &sink->projections[p];
            const struct spate_version *version = projection->current;

            if (!sink->loading.tables[p].asked || version->table != source)
                continue;
            for (size_t i = 0; i < version->used_count && !used; i++)
                used = version->used[i] == c;
        }
        if (used)
            names[count++] = source->columns[c].name;
    }
    if (count < source->column_count) {
        table->columns = names;
        table->column_count = count;
    }
}

static bool asked_before(const struct spate_sink *sink, size_t p)
{
    const struct spate_projection *projection = &sink->projections[p];

    for (size_t q = 0; q < p; q++)
        if (sink->loading.tables[q].asked &&
            strcmp(sink->projections[q].source_table, projection->source_table) == 0 &&
            strcmp(sink->projections[q].source_schema, projection->source_schema) == 0)
            return true;
    return false;
}

void spate_loading_send(struct spate_sink *sink)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_control control = {.op = SPATE_CONTROL_REQUEST,
                                    .request = spate_slice_str(loading->request),
                                    .sink = spate_slice_str(sink->config->name),
                                    .wall_us = spate_clock_wall_us(),
                                    .again = loading->again};

    spate_arena_reset(&sink->arena);
    control.tables = spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *control.tables);
    for (size_t p = 0; p < sink->projection_count; p++) {
        const struct spate_projection *projection = &sink->projections[p];
        struct spate_control_table *table = &control.tables[control.table_count];

        if (!loading->tables[p].asked || asked_before(sink, p))
            continue;
        *table = (struct spate_control_table){.schema = spate_slice_str(projection->source_schema),
                                              .table = spate_slice_str(projection->source_table)};
        columns_of(sink, projection, table, &sink->arena);
        if (loading->tables[p].conditional)
            conditions_of(sink, table, &sink->arena);
        if (spate_taking_loads(sink, projection)) {
            table->chunk = projection->load.chunk;
            table->resume = spate_slice_str(projection->load.resume ? projection->load.resume : "");
        }
        control.table_count++;
    }
    if (!spate_loading_say(sink, &control))
        return;
    loading->heard_ms = spate_clock_ms();
    loading->again_ms = loading->again ? loading->heard_ms : loading->again_ms;
    loading->send = loading->again = false;
    loading->all_sent_ms = 0;
    loading->reread = NULL; /* a connector that had forgotten the request has not heard of the keys either */
}
