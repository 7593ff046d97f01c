/* bus/local/repair.h - padding over what a dead or frozen writer left open (LOCALBUS 4.4).
 *
 * When to do it rests on locks and clocks; whether it is safe does not: a region has one outcome for
 * everybody, decided by compare-and-swap, and a writer that was padded over by mistake publishes anew
 * (I1-I5). Thread: any process that may write the topic, several at once. Blocks: never. */
#ifndef SPATE_BUS_LOCAL_REPAIR_H
#define SPATE_BUS_LOCAL_REPAIR_H

#include "bus/local/segment.h"
#include "bus/local/topic.h"

/* How long is waited for room that was taken and not claimed (its owner is not known), and for a claim of
 * somebody who lives. Variables for tests alone. */
extern int spate_local_repair_free_ms;  /* 2 */
extern int spate_local_repair_claim_ms; /* 1000 */

struct spate_local_repair {
    int lock_fd;        /* borrowed; whose slot is free is dead */
    int hot_fd;         /* borrowed; where the segment stands */
    int spill_fd;       /* borrowed; where the files of large values stand */
    unsigned slot, gen; /* our own: lives, though our own lock is not seen by us */
    bool alone;         /* nobody writes, not even we: all that is open was left by the dead */
    bool sole;          /* only we write: room that is not claimed yet is ours, and about to be */
    uint64_t pos, word; /* what blocks ... */
    int64_t since_us;   /* ... and when it was seen first; 0: nothing */
};

/* Looks at the region at `offset`, which readers cannot pass. SPATE_OK: it was final already, or is now: look
 * again. SPATE_AGAIN: not yet time. SPATE_END: nothing was taken there: the log ends here. SPATE_FAIL
 * (fatal): no writer can have left what stands there. `seg` is mapped for writing. */
SPATE_CHECKED enum spate_rc spate_local_repair(struct spate_local_repair *repair,
                                               const struct spate_local_segment *seg, uint64_t offset,
                                               struct spate_local_ctl *ctl, struct spate_err *err);

#endif
