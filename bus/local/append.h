/* bus/local/append.h - the writing end of a log: claim, fill, commit, and rolling over to the next segment.
 *
 * Correct for many writers at once (fetch-add, claim and commit by compare-and-swap), although the writer
 * lock allows one today. Thread: the writer's. Blocks: only at a roll-over, for making a segment and at times
 * for the manifest's sync. */
#ifndef SPATE_BUS_LOCAL_APPEND_H
#define SPATE_BUS_LOCAL_APPEND_H

#include "bus/bus.h"
#include "bus/local/archiver.h"
#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "core/log.h"

struct spate_local_append {
    struct spate_local_topic *topic;       /* borrowed */
    struct spate_local_archiver *archiver; /* borrowed; NULL: none makes segments ahead */
    struct spate_local_segment seg;        /* the one that is written */
    uint64_t settled;                      /* offset in seg below which everything is final */
    uint64_t populated;                    /* offset in seg up to which pages are mapped */
    uint64_t asked;                        /* the base that was asked for ahead of time */
    uint32_t slot, gen;
    size_t max_record;
    struct spate_log_limit complained;
};

void spate_local_append_init(struct spate_local_append *append, struct spate_local_topic *topic);
void spate_local_append_fini(struct spate_local_append *append);

/* Finds the end of the log and settles what a killed predecessor left open. The caller holds the writer lock.
 * SPATE_AGAIN: a new segment is needed and there is no room for it. SPATE_END: the hot tier is gone. */
SPATE_CHECKED enum spate_rc spate_local_append_settle(struct spate_local_append *append,
                                                      struct spate_err *err);

/* Publishes the first records of `records` that go together: *taken of them, whose ends stand in ends[]. At
 * most SPATE_LOCAL_BATCH. SPATE_AGAIN: no room for another segment. */
#define SPATE_LOCAL_BATCH 256
SPATE_CHECKED enum spate_rc spate_local_append(struct spate_local_append *append,
                                               const struct spate_record *records, size_t count,
                                               size_t *taken, uint64_t ends[SPATE_LOCAL_BATCH],
                                               struct spate_err *err);

/* Where the next record will stand. */
uint64_t spate_local_append_end(const struct spate_local_append *append);

#endif
