/* sinks/hearing.c - what a sink hears on `_control`: the connector's answers, and what people wish. Part of
 * sinks/loading.h. */
#include "sinks/start.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "sinks/fact.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define LISTEN_MS 1000                /* between attempts to */
#define WISH_US   INT64_C(3600000000) /* so old may be what a person asked for before the sink was there */

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
        end_early(loading, true,
                  "it was cancelled by a person, or another sink of this name asked for something", none,
                  none);
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

    (void)spate_loading_say(sink, &control);
}

/* Marks what a person asked for. False: a table that this sink does not have; of those that a pattern stood
 * for (`some`) only when it has none. */
static bool mark_wish(struct spate_sink *sink, const struct spate_control *wish,
                      struct spate_control_table *unknown)
{
    struct spate_loading_table *tables = sink->loading.tables;
    bool any = wish->table_count == 0, all = true;

    for (size_t p = 0; p < sink->projection_count; p++)
        tables[p].asked = any && !sink->projections[p].late;
    for (size_t t = 0; t < wish->table_count; t++) {
        const struct spate_control_table *table = &wish->tables[t];
        bool found = false;

        for (size_t p = 0; p < sink->projection_count; p++) {
            const struct spate_projection *projection = &sink->projections[p];

            if (projection->late || !spate_slice_is(table->table, projection->source_table) ||
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
        snprintf(words, sizeof words, "sink %s has no table from %.*s.%.*s, or its connector publishes none",
                 sink->config->name, SPATE_SLICE_ARG(unknown.schema), SPATE_SLICE_ARG(unknown.table));
        refuse(sink, wish, words, "name tables of the source that stand in the sink's file under `from`");
        return;
    }
    copy_text(request, sizeof request, wish->request);
    spate_loading_clear(loading);
    keep_wish(loading, line);
    loading->rest = false;
    spate_loading_begin(sink, request);
    copy_text(words, sizeof words, wish->sink);
    spate_log(SPATE_LOG_INFO, "snapshot-asked", "request=%s by=%s", spate_fact(quoted, request), words);
}

/* Nothing more will come of the request that the message names. */
static bool ends(const struct spate_control *heard)
{
    static const char *const states[] = {"finished", "cancelled", "failed", "expired", "replaced"};

    if (heard->op == SPATE_CONTROL_CANCEL || heard->op == SPATE_CONTROL_FINISHED ||
        heard->op == SPATE_CONTROL_REFUSED)
        return true;
    for (size_t i = 0; heard->op == SPATE_CONTROL_PROGRESS && i < sizeof states / sizeof *states; i++)
        if (spate_slice_is(heard->state, states[i]))
            return true;
    return false;
}

/* What was said before this sink listened: the request under way, of which only the name stands in the target
 * when it has conditions; and the last wish of a person that has not come to an end: this sink may have died
 * before it began. */
static void look_back(struct spate_sink *sink, const struct spate_control *heard, struct spate_slice line)
{
    struct spate_loading *loading = &sink->loading;
    const bool asks = heard->op == SPATE_CONTROL_REQUEST;

    if (loading->recall && asks && spate_slice_is(heard->request, loading->request)) {
        keep_wish(loading, line);
        loading->recall = false;
    } else if (asks && spate_slice_is(heard->to, sink->config->name) &&
               spate_clock_wall_us() - heard->wall_us < WISH_US) {
        spate_buf_reset(&loading->unended);
        spate_buf_slice(&loading->unended, line);
        copy_text(loading->unended_request, sizeof loading->unended_request, heard->request);
        loading->unended_known = false;
    } else if (loading->unended_request[0] && spate_slice_is(heard->request, loading->unended_request)) {
        loading->unended_known = true;
        if (ends(heard))
            loading->unended_request[0] = '\0';
    }
}

static void take_unended(struct spate_sink *sink)
{
    struct spate_loading *loading = &sink->loading;
    struct spate_slice line = spate_buf_view(&loading->unended);
    struct spate_arena arena = {0};
    struct spate_control wish;
    struct spate_err ignored = {0};

    if (loading->unended_request[0] && !loading->request[0] &&
        spate_decode_control(line, &wish, &arena, &ignored) == SPATE_OK) {
        hear_wish(sink, &wish, line);
        /* Its beginning may have come while nobody listened: the connector is to begin again. */
        loading->again = loading->request[0] && loading->unended_known;
    }
    loading->unended_request[0] = '\0';
    spate_arena_fini(&arena);
    spate_buf_fini(&loading->unended);
}

/* Somebody withdraws what this sink asked for. The connector says so, too, when it is there; when it comes
 * later it must not be asked again; and if it was, between what was said and what was heard, it has to hear
 * of it once more. What this sink withdrew itself it hears as well. */
static void hear_cancel(struct spate_sink *sink, const struct spate_control *heard)
{
    struct spate_loading *loading = &sink->loading;
    const struct spate_slice none = {0};

    if (loading->cancels > 0)
        loading->cancels--;
    else if (loading->request[0] && !loading->over && spate_slice_is(heard->request, loading->request)) {
        end_early(loading, true, "it was cancelled", none, none);
        (void)spate_loading_say_short(sink, SPATE_CONTROL_CANCEL, loading->request);
    }
}

static void hear_one(struct spate_sink *sink, const struct spate_control *heard, struct spate_slice line)
{
    struct spate_loading *loading = &sink->loading;

    if (heard->op == SPATE_CONTROL_STARTED) {
        loading->send |= loading->request[0] != '\0';
        return;
    }
    if (heard->op == SPATE_CONTROL_CANCEL && spate_slice_is(heard->sink, sink->config->name)) {
        hear_cancel(sink, heard);
        return;
    }
    if (!spate_slice_is(heard->to, sink->config->name))
        return;
    if (heard->op == SPATE_CONTROL_REQUEST) {
        hear_wish(sink, heard, line);
        return;
    }
    /* A connector that was just started refuses to cancel what it has not heard of yet: that is no refusal of
     * the request. */
    if (!loading->request[0] || loading->over || !spate_slice_is(heard->request, loading->request))
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

enum spate_rc spate_loading_hear(struct spate_sink *sink, struct spate_err *err)
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
        loading->cancels = 0;
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
        take_unended(sink);
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
