#include "sinks/loading.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/hash.h"
#include "sinks/fact.h"
#include "sinks/start.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define LOOK_MS   100                /* between looks at `_control` while the stream keeps us busy */
#define LOOK_IDLE 20                 /* while it does not */
#define WISH_US   INT64_C(600000000) /* so old may be what a person asked for before the sink was there */
#define LISTEN_MS 1000               /* between attempts to */
#define AGAIN_MS  10000              /* for the connector to go back to where a chunk was lost */
#define KEYS_MOST 1000               /* in one reread */
#define PAUSE_MS  1000               /* between requests that began too early */

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
    spate_buf_fini(&loading->unanswered);
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
static void clear(struct spate_loading *loading)
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

static void begin(struct spate_sink *sink, const char *request)
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

    clear(loading);
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_loading_table *table = &loading->tables[p];

        *table = (struct spate_loading_table){.asked = table->wanted};
        count += table->asked;
    }
    spate_uuid(uuid);
    begin(sink, uuid);
    spate_log(SPATE_LOG_INFO, "snapshot-asked", "request=%s tables=%zu why=\"%s\"", loading->request, count,
              why);
}

static bool say(struct spate_sink *sink, const struct spate_control *control)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_err err = {0};
    unsigned hidden;
    enum spate_rc rc = spate_asking_say(&loading->asking, control, &err);

    if (rc == SPATE_FAIL && spate_log_due(&loading->unheard, spate_clock_ms(), 60000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "control-unsaid", &err);
    return rc == SPATE_OK;
}

static bool say_short(struct spate_sink *sink, enum spate_control_op op, const char *request)
{
    struct spate_control control = {.op = op,
                                    .request = spate_slice_str(request),
                                    .sink = spate_slice_str(sink->config->name),
                                    .wall_us = spate_clock_wall_us()};

    return say(sink, &control);
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
    clear(loading);
    if (any) /* what was asked for with conditions was a person's wish, who can see that it has ended */
        begin_wanted(sink, "what was asked for before does not fit any more");
    loading->send_ms = loading->renewed_ms && now - loading->renewed_ms < PAUSE_MS ? now + PAUSE_MS : now;
    loading->renewed_ms = now;
    (void)say_short(sink, SPATE_CONTROL_CANCEL, old);
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

    if (!say_short(sink, SPATE_CONTROL_FINISHED, loading->request))
        return; /* said at the next turn */
    spate_log(SPATE_LOG_INFO, "snapshot-finished", "request=%s rows=%" PRIu64 " s=%.1f", loading->request,
              spate_loading_rows(sink), (double)(spate_clock_ms() - loading->asked_ms) / 1000.0);
    loading->finished++;
    clear(loading);
    spate_asking_rest(&loading->asking);
}

/* ---- what is stored ---- */

static void go_on(struct spate_sink *sink, const struct spate_projection *under_way)
{
    struct spate_loading *loading = &sink->loading;

    if (strcmp(loading->request, under_way->load.request) != 0) {
        clear(loading);
        begin(sink, under_way->load.request);
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
        sink->loading.tables[p].wanted = true;
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
        (void)say_short(sink, SPATE_CONTROL_CANCEL, request);
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

        if (load->changed && load->kind != SPATE_LOAD_NONE && load->kind != SPATE_LOAD_ADD) {
            rc = void_load(sink, projection, err);
            if (rc != SPATE_OK)
                return rc;
        }
        if (load->kind != SPATE_LOAD_NONE) {
            if (!under_way || strcmp(load->request, loading->request) == 0)
                under_way = projection;
        } else if (is_auto(sink) && !loading->rest && (!load->ready || load->changed)) {
            loading->tables[p].wanted |= !loading->tables[p].asked;
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

/* ---- saying ---- */

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

static void send_request(struct spate_sink *sink)
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
    if (!say(sink, &control))
        return;
    loading->heard_ms = spate_clock_ms();
    loading->again_ms = loading->again ? loading->heard_ms : loading->again_ms;
    loading->send = loading->again = false;
    loading->all_sent_ms = 0;
    loading->reread = NULL; /* a connector that had forgotten the request has not heard of the keys either */
}

/* ---- hearing ---- */

static void copy_text(char *out, size_t size, struct spate_slice text)
{
    snprintf(out, size, "%.*s", SPATE_SLICE_ARG(text));
}

/* The request has ended before its end; what follows waits until no target transaction is open. */
static void end_early(struct spate_loading *loading, bool by_hand, const char *why, struct spate_slice reason,
                      struct spate_slice remedy)
{
    struct spate_buf words = {0};

    spate_buf_puts(&words, why);
    spate_buf_slice(&words, reason);
    spate_buf_puts(&words, remedy.len ? ". " : "");
    spate_buf_slice(&words, remedy);
    free(loading->over);
    loading->over = spate_strdup(spate_buf_str(&words));
    loading->over_by_hand = by_hand;
    spate_buf_fini(&words);
}

static void hear_progress(struct spate_sink *sink, const struct spate_control *heard)
{
    struct spate_loading *loading = &sink->loading;
    const struct spate_slice state = heard->state, none = {0};

    loading->percent = heard->percent;
    loading->left_s = heard->left_s;
    loading->estimate = heard->estimate;
    if (spate_slice_is(state, "cancelled"))
        end_early(loading, true, "it was cancelled", none, none);
    else if (spate_slice_is(state,
                            "replaced")) /* rows of the old one and of the new one are not one picture */
        sink->feed.behind = loading->replaced = true;
    else if (spate_slice_is(state, "failed"))
        end_early(loading, false, "the connector gave it up: ", heard->why, none);
    else if (spate_slice_is(state, "expired") || spate_slice_is(state, "finished"))
        loading->send = loading->again = true; /* it is not, or we would have said so */
    else if (spate_slice_is(state, "sent") || spate_slice_is(state, "rereading")) {
        if (loading->all_sent_ms == 0)
            loading->all_sent_ms = spate_clock_ms();
    } else
        loading->all_sent_ms = 0;
}

static void hear_accepted(struct spate_sink *sink, const struct spate_control *heard)
{
    struct spate_loading *loading = &sink->loading;
    uint64_t rows = 0;

    for (size_t t = 0; t < heard->table_count; t++)
        rows += heard->tables[t].rows;
    loading->estimate = rows;
    if (!loading->answered)
        spate_log(SPATE_LOG_INFO, "snapshot-accepted", "request=%s tables=%zu rows_about=%" PRIu64,
                  loading->request, heard->table_count, rows);
}

static void refuse(struct spate_sink *sink, const struct spate_control *wish, const char *reason,
                   const char *remedy)
{
    struct spate_control control = {.op = SPATE_CONTROL_REFUSED,
                                    .to = wish->sink,
                                    .request = wish->request,
                                    .wall_us = spate_clock_wall_us(),
                                    .source = spate_slice_str(sink->config->from),
                                    .reason = spate_slice_str(reason),
                                    .remedy = spate_slice_str(remedy)};

    (void)say(sink, &control);
}

/* Marks what a person asked for. False: a table that this sink does not have; of those that a pattern stood
 * for (`some`) only when it has none. */
static bool mark_wish(struct spate_sink *sink, const struct spate_control *wish,
                      struct spate_control_table *unknown)
{
    struct spate_loading_table *tables = sink->loading.tables;
    bool any = wish->table_count == 0, all = true;

    for (size_t p = 0; p < sink->projection_count; p++)
        tables[p].asked = any;
    for (size_t t = 0; t < wish->table_count; t++) {
        const struct spate_control_table *table = &wish->tables[t];
        bool found = false;

        for (size_t p = 0; p < sink->projection_count; p++) {
            const struct spate_projection *projection = &sink->projections[p];

            if (!spate_slice_is(table->table, projection->source_table) ||
                !spate_slice_is(table->schema, projection->source_schema))
                continue;
            tables[p] = (struct spate_loading_table){
                .asked = true, .wanted = tables[p].wanted, .conditional = table->where_count > 0};
            found = true;
        }
        if (!found)
            *unknown = *table;
        any |= found;
        all &= found;
    }
    return any && (all || wish->some);
}

static void keep_wish(struct spate_loading *loading, struct spate_slice line)
{
    free(loading->wish);
    loading->wish = spate_strndup(line.at, line.len);
    loading->wish_len = line.len;
}

/* `spate snapshot --sink NAME`: the request is this sink's own from here on, under the name that the person
 * gave it. */
static void hear_wish(struct spate_sink *sink, const struct spate_control *wish, struct spate_slice line)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_control_table unknown = {0};
    char words[500], request[SPATE_REQUEST_MOST], quoted[300];

    if (spate_slice_is(wish->request, loading->request))
        return; /* heard before */
    if (loading->request[0]) {
        snprintf(words, sizeof words, "sink %s is loading already: request %s", sink->config->name,
                 loading->request);
        refuse(sink, wish, words, "wait until it has finished (spate snapshot --follow), or cancel it");
        return;
    }
    if (wish->request.len >= sizeof request || wish->request.len == 0) {
        refuse(sink, wish, "the name of a request has 1 to 63 bytes", "choose a shorter one");
        return;
    }
    if (!mark_wish(sink, wish, &unknown)) {
        for (size_t p = 0; p < sink->projection_count; p++)
            loading->tables[p].asked = false;
        snprintf(words, sizeof words, "sink %s has no table from %.*s.%.*s", sink->config->name,
                 SPATE_SLICE_ARG(unknown.schema), SPATE_SLICE_ARG(unknown.table));
        refuse(sink, wish, words, "name tables of the source that stand in the sink's file under `from`");
        return;
    }
    copy_text(request, sizeof request, wish->request);
    clear(loading);
    keep_wish(loading, line);
    loading->rest = false;
    begin(sink, request);
    copy_text(words, sizeof words, wish->sink);
    spate_log(SPATE_LOG_INFO, "snapshot-asked", "request=%s by=%s", spate_fact(quoted, request), words);
}

/* What was said before this sink listened: the request under way, of which only the name stands in the target
 * when it has conditions; and the last wish of a person that nobody has answered yet. */
static void look_back(struct spate_sink *sink, const struct spate_control *heard, struct spate_slice line)
{
    struct spate_loading *loading = &sink->loading;
    const bool asks = heard->op == SPATE_CONTROL_REQUEST;

    if (loading->recall && asks && spate_slice_is(heard->request, loading->request)) {
        keep_wish(loading, line);
        loading->recall = false;
    } else if (asks && spate_slice_is(heard->to, sink->config->name) &&
               spate_clock_wall_us() - heard->wall_us < WISH_US) {
        spate_buf_reset(&loading->unanswered);
        spate_buf_slice(&loading->unanswered, line);
        copy_text(loading->unanswered_request, sizeof loading->unanswered_request, heard->request);
    } else if (spate_slice_is(heard->request, loading->unanswered_request)) {
        loading->unanswered_request[0] = '\0';
    }
}

static void take_unanswered(struct spate_sink *sink)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_slice line = spate_buf_view(&loading->unanswered);
    struct spate_arena arena = {0};
    struct spate_control wish;
    struct spate_err ignored = {0};

    if (loading->unanswered_request[0] && spate_decode_control(line, &wish, &arena, &ignored) == SPATE_OK)
        hear_wish(sink, &wish, line);
    loading->unanswered_request[0] = '\0';
    spate_arena_fini(&arena);
    spate_buf_fini(&loading->unanswered);
}

static void hear_one(struct spate_sink *sink, const struct spate_control *heard, struct spate_slice line)
{
    struct spate_loading *loading = &sink->loading;

    if (heard->op == SPATE_CONTROL_STARTED) {
        loading->send |= loading->request[0] != '\0';
        return;
    }
    if (!spate_slice_is(heard->to, sink->config->name))
        return;
    if (heard->op == SPATE_CONTROL_REQUEST) {
        hear_wish(sink, heard, line);
        return;
    }
    if (!loading->request[0] || !spate_slice_is(heard->request, loading->request))
        return;
    loading->heard_ms = spate_clock_ms();
    if (heard->op == SPATE_CONTROL_ACCEPTED)
        hear_accepted(sink, heard);
    else if (heard->op == SPATE_CONTROL_PROGRESS)
        hear_progress(sink, heard);
    else if (heard->op == SPATE_CONTROL_REFUSED)
        end_early(loading, false, "the connector refused it: ", heard->reason, heard->remedy);
    loading->answered = true;
}

static enum spate_rc hear(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_control heard;
    struct spate_slice line;
    enum spate_rc rc = SPATE_OK;
    unsigned hidden;

    if (loading->recall && loading->asking.reader && !loading->looks_back) {
        spate_reader_close(loading->asking.reader);
        loading->asking.reader = NULL;
    }
    if (!loading->asking.reader) {
        if (spate_clock_ms() < loading->listen_ms)
            return SPATE_OK;
        loading->listen_ms = spate_clock_ms() + LISTEN_MS;
        rc = spate_asking_listen(&loading->asking,
                                 loading->recall ? SPATE_ASKING_OLDEST : SPATE_ASKING_LATELY, err);
        loading->looks_back = rc == SPATE_OK;
    }
    while (rc == SPATE_OK && (rc = spate_asking_next(&loading->asking, &heard, &line, err)) == SPATE_OK) {
        if (loading->looks_back)
            look_back(sink, &heard, line);
        else
            hear_one(sink, &heard, line);
    }
    if (rc == SPATE_AGAIN && loading->looks_back) {
        loading->looks_back = false;
        if (loading->recall)
            end_early(loading, true, "its conditions are no longer on the bus: ask again",
                      (struct spate_slice){0}, (struct spate_slice){0});
        loading->recall = false;
        loading->send |= loading->request[0] != '\0'; /* `started` may have been said meanwhile */
        take_unanswered(sink);
    }
    if (rc == SPATE_FAIL && !err->missing &&
        spate_log_due(&loading->unheard, spate_clock_ms(), 60000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "control-unheard", err);
    if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY && loading->request[0] && !sink->store.stored) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_err_context(err, "a new sink asks for everything on topic %s", loading->asking.topic);
    }
    *err = (struct spate_err){0};
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
    rc = end_tables(sink, false, err);
    if (rc != SPATE_OK)
        return rc;
    if (needed) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(err, SPATE_FATAL, "request %s of this sink for %s was not fulfilled: %.700s",
                          loading->request, first ? "its first snapshot" : "a snapshot", loading->over);
    }
    loading->rest = true;
    clear(loading);
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
        if (say(sink, &control)) {
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
    bool wait_for_ranges = false;

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

enum spate_rc spate_loading_turn(struct spate_sink *sink, bool caught_up, struct spate_err *err)
{
    struct spate_loading *loading = &sink->loading;
    const int64_t now = spate_clock_ms();
    bool wanted = false;

    if (now - loading->looked_ms < (caught_up ? LOOK_IDLE : LOOK_MS))
        return SPATE_OK;
    loading->looked_ms = now;
    if (hear(sink, err) != SPATE_OK)
        return SPATE_FAIL;
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
            loading->tables[p].wanted = true;
        (void)say_short(sink, SPATE_CONTROL_CANCEL, loading->request);
        begin_wanted(sink, "the beginning of the last one was overtaken by retention");
        loading->awaited = true;
    }
    count_silence(sink, caught_up, now);
    /* The latest tokens make the least come twice; but where a chunk is missing all that follows is useless.
     * A sink that begins has read nothing: what is there now comes before its request. */
    if (loading->send && now >= loading->send_ms && !loading->recall &&
        (caught_up || loading->again || !loading->begun))
        send_request(sink);
    if (loading->begun)
        return complete_tables(sink, err);
    return SPATE_OK;
}
