#include "sinks/reader.h"

#include "core/alloc.h"
#include "core/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum spate_rc spate_stream_open(struct spate_stream *stream, struct spate_bus *bus, const char *topic,
                                struct spate_err *err)
{
    struct spate_start oldest = {.from = SPATE_START_OLDEST};

    *stream = (struct spate_stream){.driver = bus->ops->name};
    if (spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, oldest, &stream->reader, err) != SPATE_OK)
        return SPATE_FAIL;
    stream->topic = spate_strdup(topic);
    return SPATE_OK;
}

void spate_stream_close(struct spate_stream *stream)
{
    spate_reader_close(stream->reader);
    free(stream->topic);
    spate_arena_fini(&stream->arena);
    *stream = (struct spate_stream){0};
}

enum spate_rc spate_stream_begin(struct spate_stream *stream, uint64_t newest_epoch, const char *uuid,
                                 struct spate_err *err)
{
    struct spate_start oldest = {.from = SPATE_START_OLDEST};

    stream->state = SPATE_STREAM_BEGINNING;
    stream->begin_epoch = newest_epoch;
    stream->follower = (struct spate_follower){0};
    memcpy(stream->follower.uuid, uuid, sizeof stream->follower.uuid - 1);
    stream->gap = false;
    stream->hole_ms = 0;
    return spate_reader_seek(stream->reader, oldest, err);
}

enum spate_rc spate_stream_resume(struct spate_stream *stream, const struct spate_mark *mark, struct spate_err *err)
{
    struct spate_start at = {.from = SPATE_START_AT, .pos = mark->at};

    stream->mark = *mark;
    stream->follower.last = mark->place;
    stream->follower.complete = mark->place;
    memcpy(stream->follower.uuid, mark->uuid, sizeof stream->follower.uuid);
    stream->state = SPATE_STREAM_ANCHORING;
    stream->gap = false;
    stream->hole_ms = 0;
    return spate_reader_seek(stream->reader, at, err);
}

static void set_mark(struct spate_stream *stream, const struct spate_message *message)
{
    stream->mark.place = stream->follower.complete;
    stream->mark.at = message->pos;
    memcpy(stream->mark.uuid, stream->follower.uuid, sizeof stream->mark.uuid);
}

#define STALE_REMEDY                                                                                                \
    "its tables no longer follow the source. `spate sink -c FILE --restart NAME` begins anew where a new sink would; "    \
    "rows that changed in between have to be loaded again by hand"

static enum spate_rc stale_hole(struct spate_stream *stream, uint64_t seen, struct spate_err *err)
{
    char from[SPATE_BUS_POS_TEXT], to[SPATE_BUS_POS_TEXT], where[2 * SPATE_BUS_POS_TEXT + 40] = "";

    if (stream->gap) {
        spate_bus_pos_format(stream->driver, stream->gap_from, from);
        spate_bus_pos_format(stream->driver, stream->gap_to, to);
        snprintf(where, sizeof where, " (retention took %s to %s)", from, to);
    }
    err->exit_code = SPATE_EXIT_FENCED;
    if (seen <= stream->follower.last.n) {
        spate_bus_pos_format(stream->driver, stream->mark.at, from);
        return spate_fail(err, SPATE_FATAL,
                          "STALE: what was applied last (n=%" PRIu64 " of epoch %" PRIu64 ", at %s) is not on the "
                          "bus, nor is what follows it; the bus has lost its end: " STALE_REMEDY,
                          stream->follower.last.n, stream->follower.last.epoch, from);
    }
    return spate_fail(err, SPATE_FATAL,
                      "STALE: changes n=%" PRIu64 " to n=%" PRIu64 " of epoch %" PRIu64
                      " are not on the bus%s: " STALE_REMEDY,
                      stream->follower.last.n + 1, seen, stream->follower.last.epoch, where);
}

static enum spate_rc diverged(struct spate_stream *stream, const struct spate_head *head, struct spate_err *err)
{
    char ours[SPATE_POS_TEXT], theirs[SPATE_POS_TEXT];

    spate_pos_format(stream->follower.last.pos, ours);
    spate_pos_format(head->pos, theirs);
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(err, SPATE_FATAL,
                      "history diverged: after n=%" PRIu64 " pos=%.25s of epoch %" PRIu64
                      " topic %s has op=%.*s n=%" PRIu64 " pos=%.25s of epoch %" PRIu64
                      ": the bus was restored from elsewhere, or two connectors use one name. Find out which; "
                      "then `spate sink -c FILE --restart NAME` begins anew",
                      stream->follower.last.n, ours, stream->follower.last.epoch, stream->topic,
                      SPATE_SLICE_ARG(head->op_name), head->n, theirs, head->epoch);
}

static enum spate_rc meet_epoch(struct spate_stream *stream, struct spate_event *event,
                                const struct spate_message *message, bool *done, struct spate_err *err)
{
    struct spate_epoch epoch;

    if (spate_decode_epoch(message->value, &epoch, &stream->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (stream->state == SPATE_STREAM_BEGINNING) {
        if (epoch.epoch < stream->begin_epoch)
            return SPATE_OK;
    } else {
        switch (spate_follower_judge_epoch(&stream->follower, &epoch)) {
        case SPATE_JUDGE_ENTER:
            break;
        case SPATE_JUDGE_DUPLICATE:
            stream->count.duplicates++;
            return SPATE_OK;
        case SPATE_JUDGE_OLD_EPOCH:
            stream->count.old_epochs++;
            return SPATE_OK;
        case SPATE_JUDGE_DIVERGED:
            return diverged(stream, &event->head, err);
        default:
            err->exit_code = SPATE_EXIT_FENCED;
            return spate_fail(err, SPATE_FATAL,
                              "STALE: epoch %" PRIu64 " (%.*s) does not continue from n=%" PRIu64 " of epoch %" PRIu64
                              ", where this sink stands: " STALE_REMEDY,
                              epoch.epoch, SPATE_SLICE_ARG(epoch.why), stream->follower.complete.n,
                              stream->follower.last.epoch);
        }
    }
    spate_follower_enter(&stream->follower, &epoch);
    set_mark(stream, message);
    stream->state = SPATE_STREAM_FOLLOWING;
    stream->hole_ms = 0;
    stream->gap = false;
    event->kind = SPATE_EVENT_EPOCH;
    event->boundary = true;
    *done = true;
    return SPATE_OK;
}

/* BEGINNING: true when the sink can count from here. */
static bool try_begin(struct spate_stream *stream, struct spate_event *event, const struct spate_message *message)
{
    if (event->head.epoch < stream->begin_epoch || !spate_follower_begin(&stream->follower, &event->head))
        return false;
    set_mark(stream, message);
    stream->state = SPATE_STREAM_FOLLOWING;
    event->kind = SPATE_EVENT_PASSED;
    event->boundary = true;
    return true;
}

/* True: it is the mark's own record, and all is well. */
static bool anchored(struct spate_stream *stream, const struct spate_event *event, const struct spate_message *message)
{
    char at[SPATE_BUS_POS_TEXT];

    stream->state = SPATE_STREAM_FOLLOWING;
    if (message->pos.at == stream->mark.at.at && spate_place_matches(&stream->mark.place, &event->head))
        return true;
    /* Search forward: what comes next may still be n+1 (HAZARDS 6.4). If not, the hole's clock is running. */
    spate_bus_pos_format(stream->driver, stream->mark.at, at);
    spate_log(SPATE_LOG_WARN, "anchor-moved", "topic=%s pos=%s n=%" PRIu64 " found_n=%" PRIu64, stream->topic, at,
              stream->mark.place.n, event->head.n);
    stream->hole_ms = spate_clock_ms();
    stream->hole_seen = event->head.n;
    return false;
}

static enum spate_rc met_hole(struct spate_stream *stream, const struct spate_event *event, struct spate_err *err)
{
    unsigned hidden;

    if (stream->gap)
        return stale_hole(stream, event->head.n - (spate_op_counts(event->head.op) ? 1 : 0), err);
    if (stream->hole_ms == 0) {
        stream->hole_ms = spate_clock_ms();
        stream->hole_seen = event->head.n;
        stream->count.holes++;
    }
    if (spate_log_due(&stream->hole_log, spate_clock_ms(), 10000, &hidden))
        spate_log(SPATE_LOG_WARN, "hole", "topic=%s after_n=%" PRIu64 " met_n=%" PRIu64 " hidden=%u", stream->topic,
                  stream->follower.last.n, event->head.n, hidden);
    return SPATE_OK;
}

/* Decides about one record. *done: it is an event for the caller. */
static enum spate_rc meet(struct spate_stream *stream, const struct spate_message *message,
                          struct spate_event *event, bool *done, struct spate_err *err)
{
    *done = false;
    if (stream->state == SPATE_STREAM_ANCHORING && anchored(stream, event, message))
        return SPATE_OK;
    if (event->head.op == SPATE_OP_EPOCH)
        return meet_epoch(stream, event, message, done, err);
    if (stream->state == SPATE_STREAM_BEGINNING) {
        *done = try_begin(stream, event, message);
        return SPATE_OK;
    }
    switch (spate_follower_judge(&stream->follower, &event->head)) {
    case SPATE_JUDGE_TAKE:
        stream->hole_ms = 0;
        stream->gap = false;
        stream->count.taken++;
        event->kind = SPATE_EVENT_CHANGE;
        event->boundary = spate_follower_take(&stream->follower, &event->head);
        if (event->boundary)
            set_mark(stream, message);
        *done = true;
        return SPATE_OK;
    case SPATE_JUDGE_PASS:
        event->kind = SPATE_EVENT_PASSED;
        event->boundary = true;
        set_mark(stream, message);
        *done = true;
        return SPATE_OK;
    case SPATE_JUDGE_DUPLICATE:
        stream->count.duplicates++;
        return SPATE_OK;
    case SPATE_JUDGE_OLD_EPOCH:
        stream->count.old_epochs++;
        return SPATE_OK;
    case SPATE_JUDGE_HOLE:
        return met_hole(stream, event, err);
    case SPATE_JUDGE_DIVERGED:
        return diverged(stream, &event->head, err);
    default:
        return SPATE_OK;
    }
}

enum spate_rc spate_stream_next(struct spate_stream *stream, struct spate_event *event, struct spate_err *err)
{
    struct spate_message message;
    bool done = false;

    while (!done) {
        enum spate_rc rc = spate_reader_next(stream->reader, &message, err);

        if (rc == SPATE_AGAIN && stream->hole_ms && spate_clock_ms() - stream->hole_ms > SPATE_HOLE_MS)
            return stale_hole(stream, stream->hole_seen, err);
        if (rc == SPATE_AGAIN && stream->state == SPATE_STREAM_ANCHORING && stream->hole_ms == 0) {
            stream->hole_ms = spate_clock_ms(); /* the mark lies beyond the log's end: its tail was lost */
            stream->hole_seen = stream->follower.last.n;
        }
        if (rc == SPATE_FAIL)
            return spate_err_context(err, "topic %s", stream->topic);
        if (rc != SPATE_OK)
            return rc;
        if (message.kind == SPATE_MESSAGE_GAP) {
            if (stream->state != SPATE_STREAM_BEGINNING) {
                /* Whether that was anything this sink needed is known at the next number. */
                stream->state = SPATE_STREAM_FOLLOWING;
                stream->gap = true;
                stream->gap_from = message.pos;
                stream->gap_to = message.next;
            }
            continue;
        }
        spate_arena_reset(&stream->arena);
        event->line = message.value;
        event->boundary = false;
        if (spate_decode_head(message.value, &event->head, &stream->arena, err) != SPATE_OK ||
            meet(stream, &message, event, &done, err) != SPATE_OK) {
            char at[SPATE_BUS_POS_TEXT];

            /* One record that cannot be read is a hole that nothing will heal: a human must look (K29). */
            if (err->verdict == SPATE_QUARANTINE)
                err->verdict = SPATE_FATAL;
            spate_bus_pos_format(stream->driver, message.pos, at);
            return spate_err_context(err, "topic %s at %s", stream->topic, at);
        }
    }
    return SPATE_OK;
}

enum spate_rc spate_stream_wait(struct spate_stream *stream, int timeout_ms, struct spate_err *err)
{
    return spate_reader_wait(stream->reader, timeout_ms, err);
}
