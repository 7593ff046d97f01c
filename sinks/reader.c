#include "sinks/reader.h"

#include "core/alloc.h"
#include "core/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum spate_rc spate_feed_open(struct spate_feed *feed, struct spate_bus *bus, const char *topic,
                              struct spate_err *err)
{
    struct spate_start oldest = {.from = SPATE_START_OLDEST};

    *feed = (struct spate_feed){.driver = bus->ops->name, .file = "FILE", .name = "NAME"};
    if (spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, oldest, &feed->reader, err) != SPATE_OK)
        return SPATE_FAIL;
    feed->topic = spate_strdup(topic);
    return SPATE_OK;
}

void spate_feed_close(struct spate_feed *feed)
{
    spate_reader_close(feed->reader);
    free(feed->topic);
    spate_arena_fini(&feed->arena);
    *feed = (struct spate_feed){0};
}

static void stand_anew(struct spate_feed *feed)
{
    feed->gap = false;
    feed->hole_ms = 0;
    feed->holding = false;
    feed->stale = false;
}

enum spate_rc spate_feed_begin(struct spate_feed *feed, uint64_t newest_epoch, const char *uuid,
                               struct spate_err *err)
{
    struct spate_start oldest = {.from = SPATE_START_OLDEST};

    feed->state = SPATE_FEED_BEGINNING;
    feed->asks = false;
    spate_feed_epoch(feed, newest_epoch, uuid);
    stand_anew(feed);
    return spate_reader_seek(feed->reader, oldest, err);
}

void spate_feed_epoch(struct spate_feed *feed, uint64_t newest_epoch, const char *uuid)
{
    feed->begin_epoch = newest_epoch;
    feed->follower = (struct spate_follower){0};
    memcpy(feed->follower.uuid, uuid, sizeof feed->follower.uuid - 1);
}

#define STALE_REMEDY                                                                                         \
    "its tables no longer follow the source. `spate sink -c %s --restart %s` begins anew where a new "       \
    "sink would; with `snapshot: auto` in its file it asks for everything then"

/* The driver knows what happened to the log, and not that sinks have a way on (K10, K25). */
static enum spate_rc lost_log(struct spate_feed *feed, struct spate_err *err)
{
    char words[sizeof err->text];

    if (err->verdict != SPATE_FATAL || err->exit_code != SPATE_EXIT_FENCED)
        return spate_err_context(err, "topic %s", feed->topic);
    snprintf(words, sizeof words, "%s", err->text);
    feed->stale = true;
    return spate_fail(err, SPATE_FATAL,
                      "STALE: %.400s; after n=%" PRIu64 " of epoch %" PRIu64
                      " nothing is known: " STALE_REMEDY,
                      words, feed->follower.last.n, feed->follower.last.epoch, feed->file, feed->name);
}

enum spate_rc spate_feed_await(struct spate_feed *feed, bool same, struct spate_err *err)
{
    struct spate_start start = {.from = SPATE_START_NOW};

    if (same)
        start = (struct spate_start){.from = SPATE_START_AT, .pos = feed->from};
    if (spate_reader_seek(feed->reader, start, err) != SPATE_OK)
        return lost_log(feed, err);
    if (!same)
        feed->from = spate_reader_end(feed->reader);
    feed->state = SPATE_FEED_BEGINNING;
    feed->asks = true;
    stand_anew(feed);
    return SPATE_OK;
}

enum spate_rc spate_feed_resume(struct spate_feed *feed, const struct spate_mark *mark, struct spate_err *err)
{
    struct spate_start at = {.from = SPATE_START_AT, .pos = mark->at};

    feed->mark = *mark;
    feed->follower.last = mark->place;
    feed->follower.complete = mark->place;
    memcpy(feed->follower.uuid, mark->uuid, sizeof feed->follower.uuid);
    feed->state = SPATE_FEED_ANCHORING;
    stand_anew(feed);
    return spate_reader_seek(feed->reader, at, err) == SPATE_OK ? SPATE_OK : lost_log(feed, err);
}

static void set_mark(struct spate_feed *feed, struct spate_bus_pos pos)
{
    feed->mark.place = feed->follower.complete;
    feed->mark.at = pos;
    memcpy(feed->mark.uuid, feed->follower.uuid, sizeof feed->mark.uuid);
}

void spate_feed_pass(struct spate_feed *feed, struct spate_event *event)
{
    set_mark(feed, event->pos);
    event->boundary = true;
}

static enum spate_rc stale_hole(struct spate_feed *feed, uint64_t seen, struct spate_err *err)
{
    char from[SPATE_BUS_POS_TEXT], to[SPATE_BUS_POS_TEXT], where[2 * SPATE_BUS_POS_TEXT + 40] = "";

    if (feed->gap) {
        spate_bus_pos_format(feed->driver, feed->gap_from, from);
        spate_bus_pos_format(feed->driver, feed->gap_to, to);
        snprintf(where, sizeof where, " (retention took %s to %s)", from, to);
    }
    err->exit_code = SPATE_EXIT_FENCED;
    feed->stale = true;
    if (seen <= feed->follower.last.n) {
        spate_bus_pos_format(feed->driver, feed->mark.at, from);
        return spate_fail(err, SPATE_FATAL,
                          "STALE: what was applied last (n=%" PRIu64 " of epoch %" PRIu64
                          ", at %s) is not on the "
                          "bus, nor is what follows it; the bus has lost its end: " STALE_REMEDY,
                          feed->follower.last.n, feed->follower.last.epoch, from, feed->file, feed->name);
    }
    return spate_fail(err, SPATE_FATAL,
                      "STALE: changes n=%" PRIu64 " to n=%" PRIu64 " of epoch %" PRIu64 " (%" PRIu64
                      " of them) are not on the bus%s: " STALE_REMEDY,
                      feed->follower.last.n + 1, seen, feed->follower.last.epoch,
                      seen - feed->follower.last.n, where, feed->file, feed->name);
}

static enum spate_rc diverged(struct spate_feed *feed, const struct spate_head *head, struct spate_err *err)
{
    char ours[SPATE_POS_TEXT], theirs[SPATE_POS_TEXT];

    spate_pos_format(feed->follower.last.pos, ours);
    spate_pos_format(head->pos, theirs);
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(
        err, SPATE_FATAL,
        "history diverged: after n=%" PRIu64 " pos=%.25s of epoch %" PRIu64 " topic %s has op=%.*s n=%" PRIu64
        " pos=%.25s of epoch %" PRIu64
        ": the bus was restored from elsewhere, or two connectors use one name. Find out which; "
        "then `spate sink -c %s --restart %s` begins anew",
        feed->follower.last.n, ours, feed->follower.last.epoch, feed->topic, SPATE_SLICE_ARG(head->op_name),
        head->n, theirs, head->epoch, feed->file, feed->name);
}

static enum spate_rc meet_epoch(struct spate_feed *feed, struct spate_event *event,
                                const struct spate_message *message, bool *done, struct spate_err *err)
{
    struct spate_epoch epoch;

    if (spate_decode_epoch(message->value, &epoch, &feed->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (feed->state == SPATE_FEED_BEGINNING) {
        if (epoch.epoch < feed->begin_epoch)
            return SPATE_OK;
        if (feed->asks) { /* what was asked for comes in this one */
            char uuid[sizeof feed->follower.uuid] = "";

            memcpy(uuid, epoch.uuid.at, epoch.uuid.len < sizeof uuid ? epoch.uuid.len : sizeof uuid - 1);
            spate_feed_epoch(feed, epoch.epoch, uuid);
            return SPATE_OK;
        }
    } else {
        switch (spate_follower_judge_epoch(&feed->follower, &epoch)) {
        case SPATE_JUDGE_ENTER:
            break;
        case SPATE_JUDGE_DUPLICATE:
            feed->count.duplicates++;
            return SPATE_OK;
        case SPATE_JUDGE_OLD_EPOCH:
            feed->count.old_epochs++;
            return SPATE_OK;
        case SPATE_JUDGE_DIVERGED:
            return diverged(feed, &event->head, err);
        default:
            err->exit_code = SPATE_EXIT_FENCED;
            feed->stale = true;
            return spate_fail(err, SPATE_FATAL,
                              "STALE: epoch %" PRIu64 " (%.*s) does not continue from n=%" PRIu64
                              " of epoch %" PRIu64 ", where this sink stands: " STALE_REMEDY,
                              epoch.epoch, SPATE_SLICE_ARG(epoch.why), feed->follower.complete.n,
                              feed->follower.last.epoch, feed->file, feed->name);
        }
    }
    spate_follower_enter(&feed->follower, &epoch);
    set_mark(feed, message->pos);
    feed->state = SPATE_FEED_FOLLOWING;
    feed->hole_ms = 0;
    feed->gap = false;
    event->kind = SPATE_EVENT_EPOCH;
    event->boundary = true;
    *done = true;
    return SPATE_OK;
}

/* Of the snapshot that this sink asked for. */
static bool is_ours(const struct spate_feed *feed, const struct spate_head *head)
{
    return head->op >= SPATE_OP_SNAPSHOT_BEGIN && head->op <= SPATE_OP_RANGES_END && feed->request &&
           feed->request[0] && spate_slice_is(head->request, feed->request) &&
           spate_slice_is(head->to, feed->name);
}

/* BEGINNING: true when the sink can count from here. */
static bool try_begin(struct spate_feed *feed, struct spate_event *event)
{
    const struct spate_head *head = &event->head;
    const bool begins = head->op == SPATE_OP_SNAPSHOT_BEGIN && is_ours(feed, head);

    if (feed->asks && (!begins || head->epoch != feed->begin_epoch))
        return false;
    if (head->epoch < feed->begin_epoch || !spate_follower_begin(&feed->follower, head))
        return false;
    feed->state = SPATE_FEED_FOLLOWING;
    event->kind = begins ? SPATE_EVENT_SNAPSHOT : SPATE_EVENT_PASSED;
    spate_feed_pass(feed, event);
    return true;
}

/* The last number that is missing when this record was met too early. */
static uint64_t missing_before(const struct spate_head *head)
{
    return spate_op_counts(head->op) && head->n > 0 ? head->n - 1 : head->n;
}

/* True: it is the mark's own record, and all is well. */
static bool anchored(struct spate_feed *feed, const struct spate_event *event,
                     const struct spate_message *message)
{
    char at[SPATE_BUS_POS_TEXT];

    feed->state = SPATE_FEED_FOLLOWING;
    if (message->pos.at == feed->mark.at.at && spate_place_matches(&feed->mark.place, &event->head))
        return true;
    /* Search forward: what comes next may still be n+1. If not, the hole's clock is running. */
    spate_bus_pos_format(feed->driver, feed->mark.at, at);
    spate_log(SPATE_LOG_WARN, "anchor-moved", "topic=%s pos=%s n=%" PRIu64 " found_n=%" PRIu64, feed->topic,
              at, feed->mark.place.n, event->head.n);
    feed->hole_ms = spate_clock_ms();
    feed->hole_seen = missing_before(&event->head);
    return false;
}

static enum spate_rc met_hole(struct spate_feed *feed, const struct spate_event *event, struct spate_err *err)
{
    unsigned hidden;

    if (feed->gap)
        return stale_hole(feed, missing_before(&event->head), err);
    if (feed->hole_ms == 0) {
        feed->hole_ms = spate_clock_ms();
        feed->hole_seen = missing_before(&event->head);
        feed->count.holes++;
    }
    if (spate_clock_ms() - feed->hole_ms > SPATE_HOLE_MS)
        return stale_hole(feed, feed->hole_seen, err);
    if (spate_log_due(&feed->hole_log, spate_clock_ms(), 10000, &hidden))
        spate_log(SPATE_LOG_WARN, "hole", "topic=%s after_n=%" PRIu64 " met_n=%" PRIu64 " hidden=%u",
                  feed->topic, feed->follower.last.n, event->head.n, hidden);
    return SPATE_OK;
}

/* Decides about one record. *done: it is an event for the caller. */
static enum spate_rc meet(struct spate_feed *feed, const struct spate_message *message,
                          struct spate_event *event, bool *done, struct spate_err *err)
{
    *done = false;
    if (feed->state == SPATE_FEED_ANCHORING && anchored(feed, event, message))
        return SPATE_OK;
    if (event->head.op == SPATE_OP_EPOCH)
        return meet_epoch(feed, event, message, done, err);
    if (feed->state == SPATE_FEED_BEGINNING) {
        *done = try_begin(feed, event);
        return SPATE_OK;
    }
    switch (spate_follower_judge(&feed->follower, &event->head)) {
    case SPATE_JUDGE_TAKE:
        feed->hole_ms = 0;
        feed->gap = false;
        feed->count.taken++;
        event->kind = SPATE_EVENT_CHANGE;
        event->boundary = spate_follower_take(&feed->follower, &event->head);
        if (event->boundary)
            set_mark(feed, message->pos);
        *done = true;
        return SPATE_OK;
    case SPATE_JUDGE_PASS:
        event->kind = event->head.op == SPATE_OP_STALE ? SPATE_EVENT_STALE
                      : is_ours(feed, &event->head)    ? SPATE_EVENT_SNAPSHOT
                                                       : SPATE_EVENT_PASSED;
        if (event->kind == SPATE_EVENT_PASSED && !feed->holding)
            spate_feed_pass(feed, event);
        *done = true;
        return SPATE_OK;
    case SPATE_JUDGE_DUPLICATE:
        feed->count.duplicates++;
        /* Rows that come of this beginning leave out what was touched behind it: whoever began further on
         * would miss that (F46). */
        feed->behind |= event->head.op == SPATE_OP_SNAPSHOT_BEGIN && is_ours(feed, &event->head);
        return SPATE_OK;
    case SPATE_JUDGE_OLD_EPOCH:
        feed->count.old_epochs++;
        return SPATE_OK;
    case SPATE_JUDGE_HOLE:
        return met_hole(feed, event, err);
    case SPATE_JUDGE_DIVERGED:
        return diverged(feed, &event->head, err);
    default:
        return SPATE_OK;
    }
}

/* A person has looked at what stands there, and found that it is none of ours (--skip). */
static bool is_skipped(struct spate_feed *feed, struct spate_bus_pos pos, const struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT];

    if (err->verdict != SPATE_QUARANTINE)
        return false;
    for (size_t i = 0; i < feed->skip_count; i++)
        if (feed->skips[i].at == pos.at) {
            spate_bus_pos_format(feed->driver, pos, at);
            spate_log(SPATE_LOG_WARN, "record-skipped", "topic=%s pos=%s after_n=%" PRIu64, feed->topic, at,
                      feed->follower.last.n);
            feed->count.skipped++;
            return true;
        }
    return false;
}

/* Never in silence: whether a change is lost with it, only the numbers behind it can tell (K29). What a newer
 * version wrote is a message, and not for us to pass by. */
static enum spate_rc unreadable(struct spate_feed *feed, struct spate_bus_pos pos, struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT], words[400];

    spate_bus_pos_format(feed->driver, pos, at);
    err->exit_code = SPATE_EXIT_REFUSED;
    if (err->verdict != SPATE_QUARANTINE)
        return spate_err_context(err, "topic %s at %s was written by a newer version: upgrade this sink",
                                 feed->topic, at);
    snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s at %s: a record that is no message of ours (%s), after n=%" PRIu64 " of epoch %" PRIu64
        ". Nothing from there on was applied. Look at it, and find out who wrote "
        "it; then `spate sink -c %s --skip %s=%s` passes exactly this record by. If it was a change "
        "that was damaged, its number is missing behind it and the sink stops as STALE",
        feed->topic, at, words, feed->follower.last.n, feed->follower.last.epoch, feed->file, feed->name, at);
}

enum spate_rc spate_feed_next(struct spate_feed *feed, struct spate_event *event, struct spate_err *err)
{
    struct spate_message message;
    bool done = false;

    while (!done) {
        enum spate_rc rc = spate_reader_next(feed->reader, &message, err);

        if (rc == SPATE_AGAIN && feed->hole_ms && spate_clock_ms() - feed->hole_ms > SPATE_HOLE_MS)
            return stale_hole(feed, feed->hole_seen, err);
        if (rc == SPATE_AGAIN && feed->state == SPATE_FEED_ANCHORING && feed->hole_ms == 0) {
            feed->hole_ms = spate_clock_ms(); /* the mark lies beyond the log's end: its tail was lost */
            feed->hole_seen = feed->follower.last.n;
        }
        if (rc == SPATE_FAIL)
            return lost_log(feed, err);
        if (rc != SPATE_OK)
            return rc;
        if (message.kind == SPATE_MESSAGE_GAP) {
            if (feed->state == SPATE_FEED_BEGINNING) {
                feed->gap = feed->asks; /* what was asked for may be in it */
            } else {
                /* Whether that was anything this sink needed is known at the next number. */
                feed->state = SPATE_FEED_FOLLOWING;
                feed->gap = true;
                feed->gap_from = message.pos;
                feed->gap_to = message.next;
            }
            continue;
        }
        feed->seen_us = message.ts_us;
        spate_arena_reset(&feed->arena);
        event->line = message.value;
        event->pos = message.pos;
        event->boundary = false;
        if (spate_decode_head(message.value, &event->head, &feed->arena, err) != SPATE_OK) {
            if (!is_skipped(feed, message.pos, err))
                return unreadable(feed, message.pos, err);
            *err = (struct spate_err){0};
            continue;
        }
        if (meet(feed, &message, event, &done, err) != SPATE_OK) {
            char at[SPATE_BUS_POS_TEXT];

            /* An epoch's opening that cannot be read: nothing behind it means anything to us (K29). */
            if (err->verdict == SPATE_QUARANTINE) {
                err->verdict = SPATE_FATAL;
                err->exit_code = SPATE_EXIT_REFUSED;
            }
            spate_bus_pos_format(feed->driver, message.pos, at);
            return spate_err_context(err, "topic %s at %s", feed->topic, at);
        }
    }
    return SPATE_OK;
}

enum spate_rc spate_feed_wait(struct spate_feed *feed, int timeout_ms, struct spate_err *err)
{
    return spate_reader_wait(feed->reader, timeout_ms, err);
}
