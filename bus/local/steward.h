/* bus/local/steward.h - the thread of a writer that keeps its topic going: it makes what is published durable
 * in groups, pads over what dead and frozen writers left, makes the next segment ahead of time, promises
 * bases, and says how far the log may grow.
 *
 * One steward of a topic works at a time: it holds the steward's lock. An owner's does so from open to close.
 * The writers of a SHARED topic have one each, which asks for the lock while something that its writer
 * published is not durable (volatile: not final) yet, and gives it back at once. So when the one that works
 * is killed, another goes on. While it is frozen (SIGSTOP) the others still pad over what blocks the readers
 * of the tip (bus/local/aid.h), but nothing becomes durable, and after SPATE_LOCAL_HOT_MOST segments nothing
 * more is taken: two that archive at once could put an older file over a newer one.
 *
 * Thread: _start, _stop, _fd, _clear and _error belong to the writer's thread. Blocks: _stop waits for one
 * last pass. */
#ifndef SPATE_BUS_LOCAL_STEWARD_H
#define SPATE_BUS_LOCAL_STEWARD_H

#include "bus/local/archive.h"
#include "bus/local/repair.h"

/* What a writer and its steward tell each other without a kernel call. */
struct spate_local_errand {
    _Atomic uint64_t written; /* where the writer's last record ends; stored before that is committed */
    _Atomic uint32_t asleep;  /* the steward waits here (futex); 1: wake it after a commit */
    _Atomic bool roused;      /* the writer wants the steward though nothing is open: it met the gate */
    unsigned flags;           /* the writer's own, as it was opened */
};

struct spate_local_steward;

/* `as` says which locks and slot are ours; `owns`: the steward's lock is held already, and stays so. Topic
 * and errand outlive the steward, and the topic stays as it is meanwhile. */
SPATE_CHECKED enum spate_rc spate_local_steward_start(const struct spate_local_topic *topic,
                                                      const struct spate_local_repair *as, bool owns,
                                                      struct spate_local_errand *errand,
                                                      struct spate_local_steward **steward,
                                                      struct spate_err *err);
void spate_local_steward_stop(struct spate_local_steward *steward); /* accepts NULL */

int spate_local_steward_fd(
    const struct spate_local_steward *steward);                      /* readable when something is durable */
void spate_local_steward_clear(struct spate_local_steward *steward); /* takes that signal away */
/* NULL while all is well; else why nothing more will become durable. */
const struct spate_err *spate_local_steward_error(const struct spate_local_steward *steward);

void spate_local_steward_wake(struct spate_local_errand *errand);
static inline void spate_local_steward_tell(struct spate_local_errand *errand)
{
    if (atomic_load_explicit(&errand->asleep, memory_order_seq_cst))
        spate_local_steward_wake(errand);
}

/* With the steward's lock held and no steward of ours at work: all that is there now becomes final and, but
 * for a volatile topic, durable. What living writers have open is waited for, or padded over when it takes
 * too long. SPATE_AGAIN: the disk is full. */
SPATE_CHECKED enum spate_rc spate_local_steward_settle(const struct spate_local_topic *topic,
                                                       const struct spate_local_repair *as,
                                                       struct spate_err *err);

#endif
