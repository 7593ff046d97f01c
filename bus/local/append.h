/* bus/local/append.h - the writing end of a log: claim, fill, commit, and rolling over to the next segment
 * (LOCALBUS 4.1).
 *
 * Any number of writers at once: room is taken with fetch-add, claimed and committed by compare-and-swap, so
 * that anybody may pad over a writer that died or sleeps, and a writer that was padded over notices and
 * publishes anew. No kernel call but at a roll-over. Thread: the writer's. Blocks: only at a roll-over, for
 * making a segment that nobody has made ahead. */
#ifndef SPATE_BUS_LOCAL_APPEND_H
#define SPATE_BUS_LOCAL_APPEND_H

#include "bus/bus.h"
#include "bus/local/segment.h"
#include "bus/local/steward.h"
#include "bus/local/topic.h"
#include "core/log.h"

struct spate_local_append {
    struct spate_local_topic *topic;   /* borrowed */
    struct spate_local_errand *errand; /* borrowed; of the steward, where there is one */
    bool promises;                     /* there is none: bases are promised at the roll-over (volatile) */
    bool unchecked;                    /* records carry no checksum */
    bool alone; /* of an owned topic: nobody else takes room, so that needs no locked instruction */
    struct spate_local_segment seg; /* the one that is written */
    uint64_t populated;             /* offset in seg up to which pages are mapped */
    uint32_t slot, gen;
    uint64_t spilled;  /* bytes of the values that this writer spilled since it entered seg */
    size_t max_inline; /* a record's longest key plus value in the segment itself */
    struct spate_log_limit complained;
};

void spate_local_append_init(struct spate_local_append *append, struct spate_local_topic *topic,
                             struct spate_local_errand *errand, uint32_t slot, uint32_t gen);
void spate_local_append_fini(struct spate_local_append *append);
/* Pads what this writer has claimed and never committed: its publish() was left by a jump out of a signal
 * handler. Nobody has to wait for it then (L14). */
void spate_local_append_abandon(struct spate_local_append *append);
/* Maps the head, so that what is wrong with it is known before the first record. */
SPATE_CHECKED enum spate_rc spate_local_append_enter(struct spate_local_append *append,
                                                     struct spate_err *err);

/* The longest key plus value that a record of such a topic holds in itself; what is longer spills
 * (bus/local/spill.h). */
size_t spate_local_append_most(const struct spate_local_topic *topic);

/* Publishes the first records of `records` that go together: *taken of them, whose ends stand in ends[]. At
 * most SPATE_LOCAL_BATCH. SPATE_AGAIN: the log may not go on to another segment now, or has no room for it.
 */
#define SPATE_LOCAL_BATCH 256
SPATE_CHECKED enum spate_rc spate_local_append(struct spate_local_append *append,
                                               const struct spate_record *records, size_t count,
                                               size_t *taken, uint64_t ends[SPATE_LOCAL_BATCH],
                                               struct spate_err *err);

/* One record, where nothing stands in the way: a few dozen instructions. false: it is not published;
 * spate_local_append does it, or says why not. */
bool spate_local_append_one(struct spate_local_append *append, const struct spate_record *record,
                            uint64_t *end);

#endif
