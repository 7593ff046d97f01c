#include "sinks/stale.h"

#include "core/clock.h"
#include "core/log.h"
#include "sinks/fact.h"
#include "sinks/script.h"
#include "sinks/start.h"

#include <inttypes.h>
#include <stdio.h>

#define LOST_EVERY_MS INT64_C(3600000) /* a table whose rows vanish more often has another writer */

/* Does the projection use one of the columns that are meant? */
static bool uses(const struct spate_version *version, const struct spate_stale *stale)
{
    for (size_t c = 0; c < stale->column_count; c++)
        for (size_t i = 0; i < version->used_count; i++)
            if (spate_slice_eq(version->table->columns[version->used[i]].name, stale->columns[c]))
                return true;
    return stale->column_count == 0;
}

/* What is asked for and has not begun reads the table later than now. What loads goes on to its end, and is
 * wanted again whoever asked for it: everything of the table was meant to come. */
static void want(struct spate_sink *sink, struct spate_projection *projection)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_loading_table *table = &loading->tables[projection->index];

    if (spate_load_is_whole(projection->load.kind) && spate_taking_loads(sink, projection)) {
        table->wanted = true;
    } else if (!table->asked || table->conditional || loading->begun) {
        (void)spate_loading_want(sink, projection);
    }
}

void spate_stale_tell(const struct spate_sink *sink, const struct spate_projection *projection,
                      const char *why)
{
    const bool wanted =
        sink->loading.tables[projection->index].wanted || sink->loading.tables[projection->index].asked;
    char fact[SPATE_FACT_MAX], source[300], from[SPATE_FACT_MAX];

    snprintf(source, sizeof source, "%.120s.%.120s", projection->source_schema, projection->source_table);
    if (wanted)
        spate_log(
            SPATE_LOG_WARN, "table-stale",
            "table=%s source=%s why=%s n=%" PRIu64
            " detail=\"what it holds may differ from the source in a way that no change tells: everything is "
            "asked for again\"",
            projection->label, spate_fact(from, source), spate_fact(fact, why), sink->feed.follower.last.n);
    else
        spate_log(
            SPATE_LOG_WARN, "table-stale",
            "table=%s source=%s why=%s n=%" PRIu64
            " detail=\"what it holds may differ from the source in a way that no change tells, until it is "
            "loaded again\" remedy=\"spate snapshot -c %s --sink %s\"",
            projection->label, spate_fact(from, source), spate_fact(fact, why), sink->feed.follower.last.n,
            sink->config->path, sink->config->name);
}

/* What is complete, with its position; where there is none yet, without. */
static enum spate_rc commit(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_mark heard = sink->feed.mark;
    enum spate_rc rc;

    if (sink->done.place.epoch == 0) {
        spate_script_add(&sink->apply, "COMMIT");
        rc = spate_script_run(&sink->apply, err);
        if (rc == SPATE_OK)
            sink->apply.open = false;
        else
            spate_apply_rollback(&sink->apply);
        return rc;
    }
    sink->feed.mark = sink->done; /* a change may have been heard, and is not in the batch */
    rc = spate_sink_flush(sink, sink->batch.complete, true, err);
    sink->feed.mark = heard;
    return rc;
}

/* Stored together with the position. */
static enum spate_rc mark(struct spate_sink *sink, struct spate_projection **tables, size_t count,
                          const char *why, struct spate_err *err)
{
    enum spate_rc rc;

    spate_load_outdate(&sink->apply, tables, count, why);
    rc = commit(sink, err);
    if (rc == SPATE_OK)
        rc = spate_load_outdated(&sink->apply, tables, count, why, err);
    if (rc != SPATE_OK)
        return rc;
    for (size_t t = 0; t < count; t++) {
        want(sink, tables[t]);
        spate_stale_tell(sink, tables[t], why);
    }
    sink->marked += count;
    return SPATE_OK;
}

static enum spate_rc concerned(struct spate_sink *sink, const struct spate_stale *stale,
                               struct spate_projection **tables, size_t *count, bool *rewound,
                               struct spate_err *err)
{
    *count = 0;
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];
        struct spate_version *version = NULL;
        enum spate_rc rc;

        if (!spate_slice_is(stale->table, projection->source_table) ||
            !spate_slice_is(stale->schema, projection->source_schema))
            continue;
        /* The table may have been altered, and no change of it have come since: it is followed now (P31). */
        rc = spate_sink_version_at(sink, projection, stale->v, &version, rewound, err);
        if (rc != SPATE_OK || *rewound)
            return rc;
        if (!version || uses(version, stale))
            tables[(*count)++] = projection;
    }
    return SPATE_OK;
}

enum spate_rc spate_stale_hear(struct spate_sink *sink, struct spate_event *event, bool *rewound,
                               struct spate_err *err)
{
    struct spate_projection **tables;
    struct spate_stale stale;
    char why[64];
    size_t count;
    enum spate_rc rc;

    spate_arena_reset(&sink->arena);
    tables = spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *tables);
    rc = spate_decode_stale(event->line, &stale, &sink->arena, err);
    if (rc == SPATE_OK)
        rc = concerned(sink, &stale, tables, &count, rewound, err);
    if (rc != SPATE_OK || *rewound)
        return rc;
    if (count > 0)
        spate_taking_break(sink, "a table is stale from here on");
    if (!sink->feed.holding)
        spate_feed_pass(&sink->feed, event);
    if (count == 0)
        return SPATE_OK;
    spate_batch_boundary(&sink->batch);
    sink->done = sink->feed.mark;
    snprintf(why, sizeof why, "%.*s", SPATE_SLICE_ARG(stale.why));
    return mark(sink, tables, count, why, err);
}

enum spate_rc spate_stale_mark(struct spate_sink *sink, struct spate_projection *projection, const char *why,
                               struct spate_err *err)
{
    struct spate_projection **tables =
        spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *tables);

    tables[0] = projection;
    return mark(sink, tables, 1, why, err);
}

/* After a batch failed: nothing that was heard since the last commit counts, and it is read again. Whatever
 * comes of it, what is stored decides. */
static void mark_failed(struct spate_sink *sink, struct spate_projection **tables, size_t count,
                        const char *why)
{
    struct spate_err failed = {0};

    if (spate_sink_rewind(sink, &failed) != SPATE_OK || mark(sink, tables, count, why, &failed) != SPATE_OK)
        spate_log_err(SPATE_LOG_WARN, "retry", &failed);
}

enum spate_rc spate_stale_labelled(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_projection **tables =
        spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *tables);
    size_t count = 0;

    for (size_t p = 0; p < sink->projection_count; p++) {
        if (sink->projections[p].labelled)
            tables[count++] = &sink->projections[p];
        sink->projections[p].labelled = false;
    }
    mark_failed(sink, tables, count, "labels");
    *err = (struct spate_err){0};
    return spate_fail(err, SPATE_RETRY, "a label was added to a type of the target");
}

void spate_stale_lost(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_version *version = sink->apply.lacks;
    struct spate_projection *projection = version ? version->projection : NULL, **tables;
    const int64_t now = spate_clock_ms();
    struct spate_err cause = *err;

    if (!projection || sink->config->snapshot != SPATE_SINK_AUTO ||
        (projection->lacked_ms && now - projection->lacked_ms < LOST_EVERY_MS))
        return;
    projection->lacked_ms = now;
    cause.exit_code = SPATE_EXIT_OK;
    spate_log_err(SPATE_LOG_ERROR, "row-missing", &cause);
    sink->lacked++;
    tables = spate_arena_alloc(&sink->arena, sink->projection_count * sizeof *tables);
    tables[0] = projection;
    mark_failed(sink, tables, 1, "row-missing");
    *err = (struct spate_err){0};
    (void)spate_fail(err, SPATE_RETRY, "table %s lacks a row; it is loaded again", projection->target);
}
