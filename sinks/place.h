/* sinks/place.h - where a follower of the stream stands, and what the next record is to it.
 *
 * Pure: no bus, no clock. This is the acceptance rule of docs/hazards.md; everything else about exactly-once
 * rests on it. Whatever writers do to the log - duplicates, zombies, holes - the accepted records are 1, 2, 3
 * ... once each. */
#ifndef SPATE_SINKS_PLACE_H
#define SPATE_SINKS_PLACE_H

#include "schemas/codec.h"

#include <stdbool.h>
#include <stdint.h>

struct spate_place {
    uint64_t epoch;
    uint64_t n;
    struct spate_pos pos; /* of change n; where counting began from an `at`: {its `end`, 0} */
};

struct spate_follower {
    struct spate_place last;     /* the last accepted record */
    struct spate_place complete; /* the last one that completed a transaction: only this is ever stored */
    char uuid[37];               /* of the epoch */
};

enum spate_judgement {
    SPATE_JUDGE_TAKE,      /* the next change */
    SPATE_JUDGE_PASS,      /* an `at` record that stands exactly here: all is well, nothing to apply */
    SPATE_JUDGE_EPOCH,     /* an epoch message: decode it and ask spate_follower_judge_epoch */
    SPATE_JUDGE_DUPLICATE, /* seen before */
    SPATE_JUDGE_OLD_EPOCH, /* a zombie of an older epoch */
    SPATE_JUDGE_HOLE,      /* something before it is missing; it may still come */
    SPATE_JUDGE_ENTER,     /* (epochs) the next epoch continues ours: an open transaction is discarded */
    SPATE_JUDGE_STALE,     /* (epochs) continuity is broken between ours and this one */
    SPATE_JUDGE_DIVERGED,  /* number and place contradict each other: another history */
    SPATE_JUDGE_UNKNOWN    /* an op of a later version: passed by */
};

enum spate_judgement spate_follower_judge(const struct spate_follower *follower,
                                          const struct spate_head *head);
enum spate_judgement spate_follower_judge_epoch(const struct spate_follower *follower,
                                                const struct spate_epoch *epoch);

/* After TAKE: moves on. True when the change completed its transaction. */
bool spate_follower_take(struct spate_follower *follower, const struct spate_head *head);
/* After ENTER, and for a sink that begins at an epoch message. */
void spate_follower_enter(struct spate_follower *follower, const struct spate_epoch *epoch);
/* A new sink begins after a change with `end`, at a heartbeat, or at a snapshot-begin: their `end` says how
 * far the bus holds everything. False: one cannot begin at this record. */
bool spate_follower_begin(struct spate_follower *follower, const struct spate_head *head);

static inline bool spate_follower_open(const struct spate_follower *follower)
{
    return follower->last.n != follower->complete.n;
}

/* Is this the record after which `place` was stored? */
bool spate_place_matches(const struct spate_place *place, const struct spate_head *head);

#endif
