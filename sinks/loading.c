#include "sinks/loading.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/hash.h"
#include "sinks/fact.h"
#include "sinks/stale.h"
#include "sinks/start.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define LOOK_MS   100   /* between looks at `_control` while the stream keeps us busy */
#define LOOK_IDLE 20    /* while it does not */
#define AGAIN_MS  10000 /* for the connector to go back to where a chunk was lost */
#define KEYS_MOST 1000  /* in one reread */
#define LATER_MS  5000  /* before a table is asked for again that was not there */
#define PAUSE_MS  1000  /* between requests that began too early */

enum spate_rc spate_loading_init(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;

    if (loading->tables)
        return SPATE_OK;
    loading->percent = -1;
    loading->left_s = -1;
    loading->tables = spate_zalloc(sink->projection_count * sizeof *loading->tables);
    return spate_asking_init(&loading->asking, sink->bus, sink->config->from, err);
}

void spate_loading_fini(struct spate_sink *sink)
{
    struct spate_loading *loading = &sink->loading;

    spate_asking_fini(&loading->asking);
    free(loading->tables);
    free(loading->wish);
    free(loading->over);
    spate_buf_fini(&loading->unended);
    *loading = (struct spate_loading){0};
}

static bool is_auto(const struct spate_sink *sink)
{
    return sink->config->snapshot == SPATE_SINK_AUTO;
}

uint64_t spate_loading_rows(const struct spate_sink *sink)
{
    uint64_t rows = 0;

    for (size_t p = 0; sink->loading.tables && p < sink->projection_count; p++)
        rows += sink->loading.tables[p].rows;
    return rows;
}

bool spate_loading_want(struct spate_sink *sink, const struct spate_projection *projection)
{
    if (is_auto(sink))
        sink->loading.tables[projection->index].wanted = true;
    return is_auto(sink);
}

/* ---- a request's life ---- */

/* Nothing of the last one counts any more. */
void spate_loading_clear(struct spate_loading *loading)
{
    free(loading->wish);
    free(loading->over);
    loading->wish = loading->over = NULL;
    loading->wish_len = 0;
    loading->request[0] = '\0';
    loading->begun = loading->recall = loading->send = loading->again = loading->lost = false;
    loading->answered = loading->over_by_hand = loading->awaited = false;
    loading->again_ms = loading->all_sent_ms = 0;
    loading->reread = NULL;
    loading->percent = -1;
    loading->left_s = -1;
    loading->estimate = 0;
}

void spate_loading_begin(struct spate_sink *sink, const char *request)
{
    struct spate_loading *loading = &sink->loading;

    snprintf(loading->request, sizeof loading->request, "%s", request);
    loading->send = true;
    loading->asked_ms = loading->heard_ms = spate_clock_ms();
}

/* What is wanted becomes a request of a new name. */
static void begin_wanted(struct spate_sink *sink, const char *why)
{
    struct spate_loading *loading = &sink->loading;
    size_t count = 0;
    char uuid[37];

    spate_loading_clear(loading);
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_loading_table *table = &loading->tables[p];

        *table = (struct spate_loading_table){.asked = table->wanted};
        count += table->asked;
    }
    spate_uuid(uuid);
    spate_loading_begin(sink, uuid);
    spate_log(SPATE_LOG_INFO, "snapshot-asked", "request=%s tables=%zu why=\"%s\"", loading->request, count,
              why);
}

/* What is wanted now follows under another name. */
static void renew(struct spate_sink *sink, const char *why)
{
    struct spate_loading *loading = &sink->loading;
    const int64_t now = spate_clock_ms();
    char old[SPATE_REQUEST_MOST], quoted[600];
    bool any = false;

    spate_log(SPATE_LOG_WARN, "snapshot-renewed", "request=%s detail=%s", loading->request,
              spate_log_quote(quoted, sizeof quoted, why));
    memcpy(old, loading->request, sizeof old);
    for (size_t p = 0; p < sink->projection_count; p++)
        any |= loading->tables[p].wanted;
    spate_loading_clear(loading);
    if (any) /* what was asked for with conditions was a person's wish, who can see that it has ended */
        begin_wanted(sink, "what was asked for before does not fit any more");
    loading->send_ms = loading->renewed_ms && now - loading->renewed_ms < PAUSE_MS ? now + PAUSE_MS : now;
    loading->renewed_ms = now;
    (void)spate_loading_say_short(sink, SPATE_CONTROL_CANCEL, old);
}

bool spate_loading_renew(struct spate_sink *sink, const char *why, int64_t every_ms)
{
    struct spate_loading *loading = &sink->loading;

    if (loading->renewed_ms && spate_clock_ms() - loading->renewed_ms < every_ms)
        return false;
    for (size_t p = 0; p < sink->projection_count; p++)
        loading->tables[p].wanted |= loading->tables[p].asked && !loading->tables[p].conditional;
    renew(sink, why);
    return true;
}

void spate_loading_lost(struct spate_sink *sink, const char *why)
{
    struct spate_loading *loading = &sink->loading;
    char quoted[600];
    unsigned hidden;

    loading->broken++;
    loading->lost = true;
    if (spate_log_due(&loading->lost_log, spate_clock_ms(), 10000, &hidden))
        spate_log(SPATE_LOG_WARN, "chunk-dropped", "request=%s n=%" PRIu64 " detail=%s hidden=%u",
                  loading->request, sink->feed.follower.last.n, spate_log_quote(quoted, sizeof quoted, why),
                  hidden);
}

/* The connector is told, then it is forgotten; what came meanwhile to be wanted follows. */
static void finish(struct spate_sink *sink)
{
    struct spate_loading *loading = &sink->loading;

    if (!spate_loading_say_short(sink, SPATE_CONTROL_FINISHED, loading->request))
        return; /* said at the next turn */
    spate_log(SPATE_LOG_INFO, "snapshot-finished", "request=%s rows=%" PRIu64 " s=%.1f", loading->request,
              spate_loading_rows(sink), (double)(spate_clock_ms() - loading->asked_ms) / 1000.0);
    loading->finished++;
    spate_loading_clear(loading);
    spate_asking_rest(&loading->asking);
}

/* ---- what is stored ---- */

static void go_on(struct spate_sink *sink, const struct spate_projection *under_way)
{
    struct spate_loading *loading = &sink->loading;

    if (strcmp(loading->request, under_way->load.request) != 0) {
        spate_loading_clear(loading);
        spate_loading_begin(sink, under_way->load.request);
        for (size_t p = 0; p < sink->projection_count; p++)
            loading->tables[p] = (struct spate_loading_table){.wanted = loading->tables[p].wanted,
                                                              .began_ms = spate_clock_ms()};
    }
    loading->begun = true;
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_loading_table *table = &loading->tables[p];

        table->asked = spate_taking_loads(sink, &sink->projections[p]);
        table->conditional = table->asked && sink->projections[p].load.kind == SPATE_LOAD_ADD;
        loading->recall |= table->conditional && !loading->wish;
    }
}

/* A sink without a place begins at the snapshot-begin of all its tables. */
static void want_all(struct spate_sink *sink)
{
    if (sink->loading.request[0]) { /* asked for already: its begin is met, or met again */
        sink->loading.begun = false;
        return;
    }
    for (size_t p = 0; p < sink->projection_count; p++)
        sink->loading.tables[p].wanted = !sink->projections[p].late;
    begin_wanted(sink, "the sink is new");
}

/* The file was changed while the table was loading: what came is of another projection. */
static enum spate_rc void_load(struct spate_sink *sink, struct spate_projection *projection,
                               struct spate_err *err)
{
    char request[SPATE_REQUEST_MOST];
    bool others = false;
    enum spate_rc rc;

    memcpy(request, projection->load.request, sizeof request);
    spate_log(SPATE_LOG_WARN, "projection-changed",
              "table=%s request=%s detail=\"while it was loading: it begins again\"", projection->label,
              request);
    rc = spate_load_abandon(&sink->apply, &projection, 1, true, err);
    if (rc != SPATE_OK)
        return rc;
    sink->loading.tables[projection->index].wanted = true;
    for (size_t p = 0; p < sink->projection_count; p++)
        others |= sink->projections[p].load.kind != SPATE_LOAD_NONE &&
                  strcmp(sink->projections[p].load.request, request) == 0;
    if (!others)
        (void)spate_loading_say_short(sink, SPATE_CONTROL_CANCEL, request);
    return SPATE_OK;
}

/* A sink that has its place: what is under way goes on, and what lacks something is wanted. */
static enum spate_rc settle_placed(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const struct spate_projection *under_way = NULL;

    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];
        const struct spate_load *load = &projection->load;
        enum spate_rc rc;

        if (projection->late)
            continue;
        if (load->changed && load->kind != SPATE_LOAD_NONE && load->kind != SPATE_LOAD_ADD) {
            rc = void_load(sink, projection, err);
            if (rc != SPATE_OK)
                return rc;
        }
        if (load->kind != SPATE_LOAD_NONE) {
            if (!under_way || strcmp(load->request, loading->request) == 0)
                under_way = projection;
        } else if (is_auto(sink) && !loading->rest && (!load->ready || load->changed)) {
            /* What had begun, and does not load any more, was void. */
            loading->tables[p].wanted |= !loading->tables[p].asked || loading->begun;
        } else if (load->outdated && !loading->tables[p].asked) {
            spate_stale_tell(sink, projection, load->outdated);
        } else if (load->changed) {
            spate_log(SPATE_LOG_WARN, "projection-changed",
                      "table=%s detail=\"rows that were written before are as the file was then; `spate "
                      "snapshot --sink %s` loads them again\"",
                      projection->label, sink->config->name);
        }
    }
    if (under_way)
        go_on(sink, under_way);
    else if (loading->begun) /* the last commit took effect, and nobody heard its answer */
        for (size_t p = 0; p < sink->projection_count; p++)
            loading->tables[p].asked = false;
    return SPATE_OK;
}

enum spate_rc spate_loading_settle(struct spate_sink *sink, struct spate_err *err)
{
    if (spate_loading_init(sink, err) != SPATE_OK)
        return SPATE_FAIL;
    sink->feed.request = sink->loading.request;
    if (sink->store.stored)
        return settle_placed(sink, err);
    if (is_auto(sink))
        want_all(sink);
    return SPATE_OK;
}

/* ---- ending ---- */

/* What loads for the request is complete, or is given up: all of it at once. */
static enum spate_rc end_tables(struct spate_sink *sink, bool complete, struct spate_err *err)
{
    struct spate_projection **tables = spate_alloc(sink->projection_count * sizeof *tables);
    size_t count = 0;
    enum spate_rc rc = SPATE_OK;

    for (size_t p = 0; p < sink->projection_count; p++)
        if (spate_taking_loads(sink, &sink->projections[p]))
            tables[count++] = &sink->projections[p];
    if (count > 0)
        spate_sink_status_busy(sink->config->status, sink);
    if (count > 0 && complete)
        rc = spate_load_finish(&sink->apply, tables, count, err);
    else if (count > 0)
        rc = spate_load_abandon(&sink->apply, tables, count, false, err);
    for (size_t t = 0; t < count; t++)
        for (size_t v = 0; rc == SPATE_OK && v < tables[t]->version_count; v++)
            rc = spate_apply_prepare(&sink->apply, tables[t]->versions[v], err);
    for (size_t p = 0; rc == SPATE_OK && p < sink->projection_count; p++)
        sink->loading.tables[p].asked = false;
    for (size_t t = 0; rc == SPATE_OK && complete && t < count; t++) /* what happened meanwhile */
        if (tables[t]->load.outdated)
            (void)spate_loading_want(sink, tables[t]);
    free(tables);
    return rc;
}

enum spate_rc spate_loading_behind(struct spate_sink *sink, bool *rewound, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const char *why = loading->replaced ? "a table was replaced while it was read"
                                        : "it began at a place that this sink had passed, or did not hear";
    enum spate_rc rc;

    sink->feed.behind = loading->replaced = false;
    *rewound = sink->apply.open;
    if (sink->apply.open)
        spate_apply_rollback(&sink->apply);
    spate_taking_break(sink, why);
    for (size_t p = 0; p < sink->projection_count; p++)
        loading->tables[p].wanted |= loading->tables[p].asked && !loading->tables[p].conditional;
    /* In the target first: the position must not pass what has told us while marks of that request stand. */
    rc = end_tables(sink, false, err);
    if (rc == SPATE_OK)
        renew(sink, why);
    if (rc == SPATE_OK && *rewound)
        rc = spate_sink_rewind(sink, err);
    return rc;
}

/* The request is no more. What came stays; a table that was to be complete is not. */
/* While it was loaded a table was between two pictures: what came went into the new one, in part or alone. */
static void tell_incomplete(const struct spate_sink *sink)
{
    for (size_t p = 0; p < sink->projection_count; p++) {
        const struct spate_projection *projection = &sink->projections[p];

        if (projection->load.kind != SPATE_LOAD_NONE && projection->load.kind != SPATE_LOAD_ADD)
            spate_log(SPATE_LOG_WARN, "table-incomplete",
                      "table=%s request=%s detail=\"its load ended before its end: it may lack what changed "
                      "since it "
                      "began, until it is loaded\" remedy=\"spate snapshot -c %s --sink %s\"",
                      projection->label, projection->load.request, sink->config->path, sink->config->name);
    }
}

/* A table was dropped that the bus still knows; it may be made again, or it is said to be gone in a moment.
 */
static bool lacks_table(const struct spate_loading *loading)
{
    return !loading->over_by_hand && !loading->wish && strstr(loading->over, "there is no table") != NULL;
}

/* Asks again in a while, without what is known to be gone by then. */
static void ask_later(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const bool awaited = loading->awaited;
    bool any = false;

    if (spate_registry_read(&sink->registry, err) != SPATE_OK)
        *err = (struct spate_err){0};
    for (size_t pass = 0; pass < 2 && !any; pass++)
        for (size_t p = 0; p < sink->projection_count; p++) {
            const struct spate_projection *projection = &sink->projections[p];

            loading->tables[p].wanted =
                !projection->late && !projection->load.ready &&
                (pass ||
                 !spate_registry_gone(&sink->registry, projection->source_schema, projection->source_table));
            any |= loading->tables[p].wanted;
        }
    begin_wanted(sink, "a table was not in the source");
    loading->awaited = awaited;
    loading->send_ms = spate_clock_ms() + LATER_MS;
}

static enum spate_rc give_up(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const bool first = !sink->store.stored, by_hand = loading->over_by_hand || loading->wish;
    bool needed = first;
    char quoted[1200];
    enum spate_rc rc;

    spate_log(SPATE_LOG_WARN, "snapshot-ended", "request=%s detail=%s", loading->request,
              spate_log_quote(quoted, sizeof quoted, loading->over));
    for (size_t p = 0; p < sink->projection_count; p++)
        needed |= !by_hand && loading->tables[p].asked && !sink->projections[p].load.ready;
    tell_incomplete(sink);
    rc = end_tables(sink, false, err);
    if (rc != SPATE_OK)
        return rc;
    if (needed && lacks_table(loading)) {
        ask_later(sink, err);
        return SPATE_OK;
    }
    if (needed) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(err, SPATE_FATAL, "request %s of this sink for %s was not fulfilled: %.700s",
                          loading->request, first ? "its first snapshot" : "a snapshot", loading->over);
    }
    loading->rest = true;
    spate_loading_clear(loading);
    spate_asking_rest(&loading->asking);
    return SPATE_OK;
}

static bool is_whole(const struct spate_sink *sink, const struct spate_projection *projection)
{
    return spate_taking_loads(sink, projection) && projection->load.ranges_known &&
           projection->load.chunk >= projection->load.ranges;
}

static enum spate_rc finish_tables(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t start = spate_clock_ms();
    const struct spate_loading *loading = &sink->loading;
    enum spate_rc rc = end_tables(sink, true, err);

    if (rc != SPATE_OK)
        return rc;
    for (size_t p = 0; p < sink->projection_count; p++)
        if (loading->tables[p].began_ms)
            spate_log(SPATE_LOG_INFO, "snapshot-table-ready", "table=%s rows=%" PRIu64 " s=%.1f end_s=%.1f",
                      sink->projections[p].label, loading->tables[p].rows,
                      (double)(spate_clock_ms() - loading->tables[p].began_ms) / 1000.0,
                      (double)(spate_clock_ms() - start) / 1000.0);
    return SPATE_OK;
}

/* Asks for keys on the table's re-read list. *some: there are any. */
static enum spate_rc reread(struct spate_sink *sink, struct spate_projection *projection, bool *some,
                            struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_buf keys = {0};
    struct spate_control control = {.op = SPATE_CONTROL_REREAD,
                                    .request = spate_slice_str(loading->request),
                                    .sink = spate_slice_str(sink->config->name),
                                    .wall_us = spate_clock_wall_us(),
                                    .schema = spate_slice_str(projection->source_schema),
                                    .table = spate_slice_str(projection->source_table),
                                    .chunk = projection->load.chunk};
    size_t count = 0;
    enum spate_rc rc = spate_load_keys(&sink->store, projection, KEYS_MOST, &keys, &count, err);

    *some = count > 0;
    if (rc == SPATE_OK && *some) {
        control.keys = spate_buf_view(&keys);
        if (spate_loading_say(sink, &control)) {
            loading->reread = projection;
            loading->reread_ms = spate_clock_ms();
        }
    }
    spate_buf_fini(&keys);
    return rc;
}

/* Once all ranges of all tables are in, their lists are worked off; then they are complete, together. */
static enum spate_rc complete_tables(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    bool left = false, dirty = false, some = false;
    enum spate_rc rc = SPATE_OK;

    for (size_t p = 0; p < sink->projection_count; p++) {
        const struct spate_projection *projection = &sink->projections[p];

        if (loading->tables[p].asked && !is_whole(sink, projection))
            return SPATE_OK;
        left |= loading->tables[p].asked;
        dirty |= projection->load.dirty;
    }
    if (loading->reread && spate_clock_ms() - loading->reread_ms > SPATE_ASK_AGAIN_MS)
        loading->reread = NULL;
    if (left && (loading->reread || sink->apply.open))
        return SPATE_OK;
    /* What was heard stands in the target before the lists are looked at. */
    if (left && (sink->batch.complete > 0 || dirty))
        rc = spate_sink_flush(sink, sink->batch.complete, true, err);
    for (size_t p = 0; rc == SPATE_OK && left && !some && p < sink->projection_count; p++)
        if (loading->tables[p].asked)
            rc = reread(sink, &sink->projections[p], &some, err);
    if (rc == SPATE_OK && left && !some)
        rc = finish_tables(sink, err);
    if (rc == SPATE_OK && !some)
        finish(sink);
    return rc;
}

static void count_silence(struct spate_sink *sink, bool caught_up, int64_t now)
{
    struct spate_loading *loading = &sink->loading;
    bool wait_for_ranges =
        !loading->begun; /* or for the beginning, which may have come while this sink was away */

    for (size_t p = 0; p < sink->projection_count; p++)
        wait_for_ranges |=
            loading->begun && loading->tables[p].asked && !is_whole(sink, &sink->projections[p]);
    /* All was sent, and it is not here. */
    if (loading->all_sent_ms && wait_for_ranges && caught_up && now - loading->all_sent_ms > AGAIN_MS)
        loading->lost = true;
    if (loading->lost && (loading->again_ms == 0 || now - loading->again_ms > AGAIN_MS))
        loading->send = loading->again = true;
    if (now - loading->heard_ms > SPATE_ASK_AGAIN_MS) {
        loading->send = true;
        loading->heard_ms = now;
        if (!loading->answered)
            spate_log(SPATE_LOG_WARN, "snapshot-unanswered",
                      "request=%s topic=%s detail=\"no connector has answered; is that of %s running?\"",
                      loading->request, loading->asking.topic, sink->config->from);
    }
}

/* What the copies of tables lack comes with everything; what it was that they lack is in the target first. */
static void want_lacking(struct spate_sink *sink)
{
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];

        if (!projection->load.lacks || sink->apply.open)
            continue;
        projection->load.lacks = false;
        if (sink->loading.tables[p].asked && !sink->loading.begun)
            continue; /* everything is on its way */
        if (!spate_loading_want(sink, projection))
            spate_log(
                SPATE_LOG_WARN, "copy-incomplete",
                "table=%s copy=%s detail=\"changes that do not come whole find no row there until all rows "
                "have come again\" remedy=\"spate snapshot -c %s --sink %s\"",
                projection->label, projection->load.copy, sink->config->path, sink->config->name);
    }
}

enum spate_rc spate_loading_turn(struct spate_sink *sink, bool caught_up, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const int64_t now = spate_clock_ms();
    bool wanted = false;

    if (now - loading->looked_ms < (caught_up ? LOOK_IDLE : LOOK_MS))
        return SPATE_OK;
    loading->looked_ms = now;
    if (spate_loading_hear(sink, err) != SPATE_OK)
        return SPATE_FAIL;
    want_lacking(sink);
    for (size_t p = 0; p < sink->projection_count; p++)
        wanted |= loading->tables[p].wanted;
    if (!loading->request[0] && wanted)
        begin_wanted(sink, "tables are new, or their rows lack something");
    if (!loading->request[0])
        return SPATE_OK;
    if (loading->over)
        return sink->apply.open ? SPATE_OK : give_up(sink, err);
    if (sink->feed.state == SPATE_FEED_BEGINNING && sink->feed.gap) {
        sink->feed.gap = false;
        for (size_t p = 0; p < sink->projection_count; p++)
            loading->tables[p].wanted = !sink->projections[p].late;
        (void)spate_loading_say_short(sink, SPATE_CONTROL_CANCEL, loading->request);
        begin_wanted(sink, "the beginning of the last one was overtaken by retention");
        loading->awaited = true;
    }
    count_silence(sink, caught_up, now);
    /* The latest tokens make the least come twice; but where a chunk is missing all that follows is useless.
     * A sink that begins has read nothing: what is there now comes before its request. */
    if (loading->send && now >= loading->send_ms && !loading->recall &&
        (caught_up || loading->again || !loading->begun))
        spate_loading_send(sink);
    if (loading->begun)
        return complete_tables(sink, err);
    return SPATE_OK;
}
