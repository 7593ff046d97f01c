#include "sinks/taking.h"

#include "core/clock.h"
#include "core/log.h"
#include "sinks/fact.h"
#include "sinks/start.h"

#include <inttypes.h>
#include <stdio.h>

#define RENEW_MS 60000 /* a row that lacks a column once more is an error */

void spate_taking_fini(struct spate_taking *taking)
{
    spate_buf_fini(&taking->keys);
    spate_buf_fini(&taking->dropped);
    *taking = (struct spate_taking){0};
}

bool spate_taking_loads(const struct spate_sink *sink, const struct spate_projection *projection)
{
    return projection->load.kind != SPATE_LOAD_NONE &&
           strcmp(projection->load.request, sink->loading.request) == 0;
}

static bool is_source(const struct spate_projection *projection, struct spate_slice schema,
                      struct spate_slice table)
{
    return spate_slice_is(table, projection->source_table) &&
           spate_slice_is(schema, projection->source_schema);
}

/* The next projection, from *at on, that loads the source's table. Several may: they began together, and go
 * on in step. */
static struct spate_projection *loads_next(struct spate_sink *sink, struct spate_slice schema,
                                           struct spate_slice table, size_t *at)
{
    while (*at < sink->projection_count) {
        struct spate_projection *projection = &sink->projections[(*at)++];

        if (is_source(projection, schema, table) && spate_taking_loads(sink, projection))
            return projection;
    }
    return NULL;
}

static void let_go(struct spate_sink *sink)
{
    sink->taking.open = false;
    sink->feed.holding = false;
}

void spate_taking_break(struct spate_sink *sink, const char *why)
{
    if (!sink->taking.open)
        return;
    spate_batch_cut(&sink->batch, sink->taking.start);
    let_go(sink);
    spate_loading_lost(sink, why);
}

void spate_taking_forget(struct spate_sink *sink)
{
    let_go(sink);
    sink->taking.start = 0;
}

void spate_taking_applied(struct spate_sink *sink, size_t count)
{
    struct spate_taking *taking = &sink->taking;

    taking->start = taking->start > count ? taking->start - count : 0;
}

static bool names(const struct spate_snapshot_begin *begin, const struct spate_projection *projection)
{
    for (size_t t = 0; t < begin->count; t++)
        if (is_source(projection, begin->tables[t].schema, begin->tables[t].table))
            return true;
    return false;
}

/* Those that the message names, that were asked for, and that do not load yet; with conditions or without. */
static enum spate_rc begin_tables(struct spate_sink *sink, const struct spate_snapshot_begin *begin,
                                  bool conditional, size_t *began, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_projection **tables =
        spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *tables);
    size_t count = 0;

    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_loading_table *table = &loading->tables[p];

        if (!table->asked || table->conditional != conditional || !names(begin, &sink->projections[p]) ||
            spate_taking_loads(sink, &sink->projections[p]))
            continue;
        table->began_ms = spate_clock_ms();
        table->rows = 0;
        tables[count++] = &sink->projections[p];
    }
    *began += count;
    return count ? spate_load_begin(&sink->apply, tables, count, loading->request, conditional, err)
                 : SPATE_OK;
}

/* From here on the tables' generation counts. It comes again when the connector starts again: then what is
 * loading goes on. Begin and position are committed together. */
static enum spate_rc hear_begin(struct spate_sink *sink, struct spate_event *event, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_snapshot_begin begin;
    size_t began = 0;
    enum spate_rc rc = spate_decode_snapshot_begin(event->line, &begin, &sink->arena, err);

    if (rc == SPATE_OK && sink->batch.complete > 0)
        rc = spate_sink_flush(sink, sink->batch.complete, true, err);
    if (rc == SPATE_OK)
        rc = begin_tables(sink, &begin, false, &began, err);
    if (rc == SPATE_OK)
        rc = begin_tables(sink, &begin, true, &began, err);
    if (rc != SPATE_OK)
        return rc;
    spate_feed_pass(&sink->feed, event);
    if (began == 0)
        return SPATE_OK;
    loading->begun = true;
    loading->lost = false;
    spate_log(SPATE_LOG_INFO, "snapshot-began", "request=%s tables=%zu n=%" PRIu64, loading->request, began,
              event->head.n);
    return spate_sink_flush(sink, 0, true, err);
}

static enum spate_rc versions_of(struct spate_sink *sink, struct spate_slice schema, struct spate_slice table,
                                 uint32_t v, bool *rewound, struct spate_err *err)
{
    struct spate_projection *projection;
    struct spate_version *version;
    enum spate_rc rc = SPATE_OK;

    for (size_t at = 0; rc == SPATE_OK && !*rewound && (projection = loads_next(sink, schema, table, &at));)
        rc = spate_sink_version_at(sink, projection, v, &version, rewound, err);
    return rc;
}

/* Why this is not the next chunk of its table, or NULL. `since` is what holds chunks together: their number
 * alone says nothing of where one begins, when two sessions of the connector cut the table differently. */
static const char *not_next(const struct spate_load *load, const struct spate_chunk *chunk)
{
    if (chunk->chunk.no > load->chunk + 1)
        return "a chunk before it is missing";
    if (chunk->since.len && !spate_slice_is(chunk->since, load->resume ? load->resume : ""))
        return "it does not go on where the last one ended";
    return NULL;
}

static enum spate_rc hear_chunk(struct spate_sink *sink, struct spate_event *event, bool *rewound,
                                struct spate_err *err)
{
    struct spate_taking *taking = &sink->taking;
    struct spate_projection *first;
    struct spate_chunk chunk;
    const char *why;
    size_t at = 0;
    enum spate_rc rc;

    if (spate_decode_chunk(event->line, &chunk, &sink->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    first = loads_next(sink, chunk.schema, chunk.name, &at);
    if (!first || chunk.chunk.no <= first->load.chunk) {
        sink->loading.repeated += first ? 1 : 0;
        /* Its beginning stood in a hole, or came while this sink was away: it has to begin again. What a
         * person asked for keeps its name. */
        if (!sink->loading.begun && sink->loading.wish)
            spate_loading_lost(sink, "the beginning of the request was not met");
        else if (!sink->loading.begun)
            sink->feed.behind = true;
        if (!taking->open)
            spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    /* The one before it was cut short when its writer died, or is a zombie's: this one may come whole. */
    spate_taking_break(sink, "another one began before its end");
    why = not_next(&first->load, &chunk);
    if (why) {
        spate_loading_lost(sink, why);
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    rc = versions_of(sink, chunk.schema, chunk.name, chunk.v, rewound, err);
    if (rc != SPATE_OK || *rewound)
        return rc;
    if (!spate_taking_loads(sink, first)) { /* its rows are of a version that is past (sinks/stale.h) */
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    taking->open = sink->feed.holding = true;
    taking->by_keys = chunk.by_keys;
    taking->name = chunk.chunk;
    taking->first = first;
    taking->v = chunk.v;
    taking->reads = 0;
    taking->start = sink->batch.count;
    spate_buf_reset(&taking->keys);
    spate_buf_reset(&taking->dropped);
    if (chunk.by_keys) {
        spate_buf_slice(&taking->keys, chunk.keys);
        spate_buf_slice(&taking->dropped, chunk.dropped);
    }
    return SPATE_OK;
}

/* Is the line of the chunk that is open? */
static bool is_of(const struct spate_taking *taking, struct spate_slice schema, struct spate_slice table,
                  struct spate_chunk_name name)
{
    return taking->open && name.by == taking->name.by && name.no == taking->name.no &&
           is_source(taking->first, schema, table);
}

static enum spate_rc hear_read(struct spate_sink *sink, struct spate_event *event, struct spate_err *err)
{
    const struct spate_head *head = &event->head;
    struct spate_taking *taking = &sink->taking;
    struct spate_projection *projection;
    struct spate_chunk_name name;
    struct spate_meta meta;

    if (!taking->open) {
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    if (spate_decode_meta(event->line, head, &meta, &sink->arena, err) != SPATE_OK ||
        spate_decode_chunk_name(event->line, &meta, &name, &sink->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!is_of(taking, head->schema, head->table, name))
        return SPATE_OK;
    if (meta.v != taking->v) {
        spate_taking_break(sink, "its rows are of another version than it says");
        return SPATE_OK;
    }
    for (size_t at = 0; (projection = loads_next(sink, head->schema, head->table, &at));) {
        if (spate_batch_add(&sink->batch, projection->current, event->line, head, &meta, err) == SPATE_OK)
            continue;
        /* The file's columns were asked for as the table was then. */
        spate_taking_break(sink, err->text);
        if (err->verdict != SPATE_QUARANTINE || !spate_loading_renew(sink, err->text, RENEW_MS))
            return SPATE_FAIL;
        *err = (struct spate_err){0};
        return SPATE_OK;
    }
    taking->reads++;
    return SPATE_OK;
}

static bool same_key(const struct spate_value *a, const struct spate_value *b, size_t count)
{
    for (size_t k = 0; k < count; k++)
        if (!spate_slice_eq(a[k].text, b[k].text))
            return false;
    return true;
}

/* Keys that were asked for: those that were not dropped are answered now, whether there was a row or not. A
 * dropped one was touched behind this place, and what touched it is still to come. */
static enum spate_rc add_answers(struct spate_sink *sink, const struct spate_version *version, uint64_t n,
                                 struct spate_err *err)
{
    const struct spate_table *table = version->table;
    const struct spate_taking *taking = &sink->taking;
    const size_t width = version->key_count;
    struct spate_value *keys, *dropped;
    size_t count, dropped_count;

    if (spate_decode_keys(spate_buf_view(&taking->keys), table, &keys, &count, &sink->arena, err) !=
            SPATE_OK ||
        spate_decode_keys(spate_buf_view(&taking->dropped), table, &dropped, &dropped_count, &sink->arena,
                          err) != SPATE_OK)
        return SPATE_FAIL;
    for (size_t i = 0; i < count; i++) {
        size_t d = 0;

        while (d < dropped_count && !same_key(&keys[i * width], &dropped[d * width], width))
            d++;
        if (d == dropped_count)
            spate_batch_add_answer(&sink->batch, version, n, &keys[i * width]);
    }
    return SPATE_OK;
}

/* The chunk is whole: with the next commit it is part of the tables, and so is how far they came. */
static enum spate_rc taken(struct spate_sink *sink, struct spate_event *event,
                           const struct spate_chunk_end *end, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_taking *taking = &sink->taking;
    struct spate_projection *projection;

    for (size_t at = 0; (projection = loads_next(sink, end->schema, end->name, &at));) {
        if (taking->by_keys && add_answers(sink, projection->current, event->head.n, err) != SPATE_OK)
            return SPATE_FAIL;
        projection->load.chunk = end->chunk.no;
        if (!taking->by_keys) {
            spate_load_resume(&projection->load, end->resume);
            projection->load.ranges_known = false; /* after ranges-end: the table began again */
        }
        projection->load.dirty = true;
        loading->tables[projection->index].rows += end->count;
        if (taking->by_keys)
            loading->reread = NULL;
    }
    loading->lost = false;
    loading->again_ms = 0;
    let_go(sink);
    spate_feed_pass(&sink->feed, event);
    return SPATE_OK;
}

static enum spate_rc hear_chunk_end(struct spate_sink *sink, struct spate_event *event, struct spate_err *err)
{
    struct spate_taking *taking = &sink->taking;
    struct spate_chunk_end end;

    if (!taking->open) {
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    if (spate_decode_chunk_end(event->line, &end, &sink->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!is_of(taking, end.schema, end.name, end.chunk))
        return SPATE_OK;
    if (end.count != taking->reads) {
        spate_taking_break(sink, "rows of it are missing");
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    return taken(sink, event, &end, err);
}

static enum spate_rc hear_ranges_end(struct spate_sink *sink, struct spate_event *event,
                                     struct spate_err *err)
{
    struct spate_ranges_end end;

    spate_taking_break(sink, "its end never came");
    if (spate_decode_ranges_end(event->line, &end, &sink->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    for (size_t t = 0; t < end.count; t++) {
        const struct spate_named_table *table = &end.tables[t];
        struct spate_projection *projection;

        for (size_t at = 0; (projection = loads_next(sink, table->schema, table->table, &at));) {
            struct spate_load *load = &projection->load;

            /* A number alone may be that of other cuts. */
            if (!spate_slice_is(table->resume, load->resume ? load->resume : "")) {
                if (!load->ranges_known)
                    spate_loading_lost(sink, "the ranges ended, and chunks are missing");
                continue;
            }
            load->ranges_known = load->dirty = true;
            load->ranges = table->chunks;
        }
    }
    spate_feed_pass(&sink->feed, event);
    return SPATE_OK;
}

enum spate_rc spate_taking_hear(struct spate_sink *sink, struct spate_event *event, bool *rewound,
                                struct spate_err *err)
{
    spate_arena_reset(&sink->arena);
    if (!spate_slice_is(event->head.request, sink->loading.request)) { /* it was given up a moment ago */
        spate_feed_pass(&sink->feed, event);
        return SPATE_OK;
    }
    switch (event->head.op) {
    case SPATE_OP_SNAPSHOT_BEGIN:
        spate_taking_break(sink, "the connector began again");
        return hear_begin(sink, event, err);
    case SPATE_OP_CHUNK:
        return hear_chunk(sink, event, rewound, err);
    case SPATE_OP_READ:
        return hear_read(sink, event, err);
    case SPATE_OP_CHUNK_END:
        return hear_chunk_end(sink, event, err);
    default:
        return hear_ranges_end(sink, event, err);
    }
}
