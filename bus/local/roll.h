/* bus/local/roll.h - going over to the next segment; what bus/local/append.c does when the present one is
 * full.
 *
 * Thread: the writer's. Blocks: makes a segment where nobody has, and at times waits for the manifest's sync.
 */
#ifndef SPATE_BUS_LOCAL_ROLL_H
#define SPATE_BUS_LOCAL_ROLL_H

#include "bus/local/append.h"

/* All of these: SPATE_AGAIN = not now (what is in the way was said in the log, now and then). */

/* Seals the segment that is full, and maps the one that follows. */
SPATE_CHECKED enum spate_rc spate_local_roll_on(struct spate_local_append *append, struct spate_err *err);
/* The same before it is full: the rest is left. */
SPATE_CHECKED enum spate_rc spate_local_roll_early(struct spate_local_append *append, struct spate_err *err);
/* Sees that `total` bytes can be claimed, as far as that can be known before: makes the next segment where it
 * is needed for them. */
SPATE_CHECKED enum spate_rc spate_local_roll_way(struct spate_local_append *append, uint64_t total,
                                                 struct spate_err *err);

/* A volatile topic keeps the segment before the present one; readers of what is below `oldest` are told of
 * the gap. */
SPATE_CHECKED enum spate_rc spate_local_roll_forget(struct spate_local_append *append, uint64_t oldest,
                                                    struct spate_err *err);

/* Says that there is no room, `missing` bytes of it; SPATE_AGAIN. */
SPATE_CHECKED enum spate_rc spate_local_roll_no_hot_room(struct spate_local_append *append, uint64_t missing);
SPATE_CHECKED enum spate_rc spate_local_roll_no_disk_room(struct spate_local_append *append, uint64_t missing,
                                                          const char *why);

#endif
