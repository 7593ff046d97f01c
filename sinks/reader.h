/* sinks/reader.h - the stream as one sink hears it: every change once, in order, or the reason why not.
 *
 * Owns the bus reader and the place in the stream. Shows only what is durable.
 * Thread:  the sink's. Blocks: spate_feed_wait, for at most timeout_ms. */
#ifndef SPATE_SINKS_READER_H
#define SPATE_SINKS_READER_H

#include "bus/bus.h"
#include "core/arena.h"
#include "core/log.h"
#include "sinks/place.h"

/* A place that outlives the process: where the last complete transaction ends. */
struct spate_mark {
    struct spate_place place;
    struct spate_bus_pos at; /* the record that completed it */
    char uuid[37];
};

struct spate_event {
    enum {
        SPATE_EVENT_CHANGE,  /* head and line are to be used before the next call */
        SPATE_EVENT_PASSED,  /* a heartbeat or the like: nothing but the mark moved */
        SPATE_EVENT_EPOCH,   /* a new epoch began: what was open of the old one is void */
        SPATE_EVENT_STALE,   /* a table is not what its messages said, exactly at the last change taken; the
                                caller moves the mark (spate_feed_pass) */
        SPATE_EVENT_SNAPSHOT /* of the snapshot that this sink asked for, exactly at the last change taken;
                                the caller moves the mark (spate_feed_pass) */
    } kind;
    bool boundary; /* feed->mark moved: what was heard up to here may be stored */
    struct spate_head head;
    struct spate_slice line;
    struct spate_bus_pos pos;
};

struct spate_feed {
    struct spate_reader *reader; /* owned */
    const char *driver;
    const char *file, *name; /* of the sink, for remedies that can be typed as they stand; borrowed. Messages
                                `to` the name are meant for it */
    const char *request;     /* whose messages are heard; NULL or "": nothing was asked for; borrowed */
    bool asks;               /* BEGINNING: at the snapshot-begin of the request, and nowhere else */
    bool holding;            /* a chunk is being collected: the mark stays before it */
    bool stale;  /* why it failed: a part of the stream is missing, and a snapshot makes up for it */
    bool behind; /* the request began at a place that was passed; the caller clears it */
    struct spate_bus_pos from; /* `asks`: where it has waited from */
    char *topic;
    struct spate_follower follower;
    struct spate_mark mark;
    enum {
        SPATE_FEED_BEGINNING, /* a new sink: no place yet, waiting for a record to begin after */
        SPATE_FEED_ANCHORING, /* the next record read should be the mark's own */
        SPATE_FEED_FOLLOWING
    } state;
    uint64_t begin_epoch; /* BEGINNING: the newest epoch known */
    bool gap;             /* retention took something before what comes next */
    struct spate_bus_pos gap_from, gap_to;
    int64_t seen_us;    /* the time of the message that was read last */
    int64_t hole_ms;    /* since when something is missing; 0: nothing is */
    uint64_t hole_seen; /* the last number that is missing */
    struct {
        uint64_t taken, duplicates, old_epochs, holes, skipped;
    } count;
    const struct spate_bus_pos *skips; /* borrowed: what is passed by there when it is no message of ours */
    size_t skip_count;
    struct spate_arena arena;
    struct spate_log_limit hole_log;
};

/* How long a hole may stay before the sink is STALE. */
#define SPATE_HOLE_MS 60000

/* SPATE_FAIL (retry): no such topic yet. Follow with _begin or _resume. */
SPATE_CHECKED enum spate_rc spate_feed_open(struct spate_feed *feed, struct spate_bus *bus, const char *topic,
                                            struct spate_err *err);
void spate_feed_close(struct spate_feed *feed);

/* A new sink: from the oldest record of the newest epoch that the bus still holds, after the first one that
 * completes a transaction. */
SPATE_CHECKED enum spate_rc spate_feed_begin(struct spate_feed *feed, uint64_t newest_epoch, const char *uuid,
                                             struct spate_err *err);
/* A new sink that asks for everything: stands at the end of the log as it is now, and begins at the
 * snapshot-begin of its request. To be called before the request is sent, so that nothing behind it is missed
 * (docs/hazards.md); then _epoch, and again later with `same`, to wait from the same place. */
SPATE_CHECKED enum spate_rc spate_feed_await(struct spate_feed *feed, bool same, struct spate_err *err);
/* What `_schemas` said of the newest epoch after that. */
void spate_feed_epoch(struct spate_feed *feed, uint64_t newest_epoch, const char *uuid);
/* Goes (back) to a mark. That its record is still the same is checked when it is read. */
SPATE_CHECKED enum spate_rc spate_feed_resume(struct spate_feed *feed, const struct spate_mark *mark,
                                              struct spate_err *err);

/* SPATE_OK: *event. SPATE_AGAIN: nothing more is durable now. SPATE_FAIL: as the bus says, or fatal: exit
 * code FENCED: this sink cannot go on exactly (the text says what it missed, and the remedy); REFUSED: a
 * record that it cannot read stands there (K29). */
SPATE_CHECKED enum spate_rc spate_feed_next(struct spate_feed *feed, struct spate_event *event,
                                            struct spate_err *err);
/* All up to this event of a snapshot may be stored. */
void spate_feed_pass(struct spate_feed *feed, struct spate_event *event);
/* SPATE_OK: ask next(). SPATE_AGAIN: time is up. */
SPATE_CHECKED enum spate_rc spate_feed_wait(struct spate_feed *feed, int timeout_ms, struct spate_err *err);

#endif
