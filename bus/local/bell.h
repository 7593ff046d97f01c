/* bus/local/bell.h - sleeping until a doorbell rings, across processes, and the seats of those who spin.
 *
 * No ring is lost: the publisher's commit, its look at `waiting`, the sleeper's store of `waiting` and its
 * second look at the log are all sequentially consistent, so in their one order either the publisher sees
 * the flag or the sleeper sees the record. Every sleep ends after 100 ms at the latest, because a reader
 * that may write the bell page may also spoil it.
 *
 * As many processes as there are processors but one may spin at a time. A spinner takes a seat: it writes the
 * monotonic time at which its turn is over, a few microseconds ahead, by compare-and-swap. A seat whose time
 * has come is free, and so is one whose time is further away than any turn lasts; nobody has to give one
 * back, so who is killed or stopped while it spins leaves nothing behind (L9). Thread: any. Blocks:
 * spate_local_bell_sleep only. */
#ifndef SPATE_BUS_LOCAL_BELL_H
#define SPATE_BUS_LOCAL_BELL_H

#include "bus/local/layout.h"

#include <stdbool.h>
#include <stdint.h>

#define SPATE_LOCAL_NAP_MS 100
extern int spate_local_bell_nap_ms; /* SPATE_LOCAL_NAP_MS; a test raises it, so that a lost ring shows */

void spate_local_bell_wake(struct spate_local_doorbell *door);

/* Call after what the sleepers wait for was stored (seq_cst). No kernel call when nobody sleeps. */
static inline void spate_local_bell_ring(struct spate_local_doorbell *door)
{
    if (atomic_load_explicit(&door->waiting, memory_order_seq_cst))
        spate_local_bell_wake(door);
}

/* Sleeping is in three acts: ticket = _prepare; look once more; _sleep with the ticket. */
static inline uint32_t spate_local_bell_prepare(struct spate_local_doorbell *door)
{
    const uint32_t ticket = atomic_load_explicit(&door->bell, memory_order_seq_cst);
    atomic_store_explicit(&door->waiting, 1, memory_order_seq_cst);
    return ticket;
}
void spate_local_bell_sleep(struct spate_local_doorbell *door, uint32_t ticket, int timeout_ms);

#define SPATE_LOCAL_TURN_NS 20000 /* the longest turn of a spinner */

struct spate_local_seat {
    _Atomic uint64_t *at; /* NULL: none */
    uint64_t until;
};

uint64_t spate_local_bell_now_ns(void); /* monotonic, the same in every process of the machine */
/* How many may spin at once: the processors that this process may use, without one. */
unsigned spate_local_bell_seats(void);
/* A turn of SPATE_LOCAL_TURN_NS from `now` on; false: all seats are taken. */
bool spate_local_seat_take(struct spate_local_bell *bell, uint64_t now, struct spate_local_seat *seat);
void spate_local_seat_leave(struct spate_local_bell *bell, struct spate_local_seat *seat);

#endif
