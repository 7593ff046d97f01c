/* bus/local/idle.h - how a reader waits at the end of a log (LOCALBUS 4.3).
 *
 *   chase   A record that follows within half a microsecond comes from a writer at full speed. A reader that
 *           takes each one as it comes fights with it for every cache line, and both crawl; so it stays away
 *           for 3 us, then longer, up to 19 us, while enough piles up meanwhile. Where little does - two
 *           processes that answer each other - it does not stay away again for a while.
 *   dense   Records that come every few microseconds: it spins for 5 us if there is a seat
 * (bus/local/bell.h), else it gives the processor away for up to 20 us. sleep   Else at once, in the futex;
 * the writer pays a kernel call only for who sleeps. Thread: the reader's. Blocks: spate_local_idle_wait,
 * until the deadline. */
#ifndef SPATE_BUS_LOCAL_IDLE_H
#define SPATE_BUS_LOCAL_IDLE_H

#include "bus/local/bell.h"

#include <stdbool.h>
#include <stdint.h>

struct spate_local_idle {
    uint64_t began_ns;   /* when the last wait began */
    uint64_t records;    /* and what had been read by then */
    unsigned away_us;    /* of a chase; 0: none is on */
    unsigned passed_by;  /* waits that do not stay away, because little piled up when it was tried */
    unsigned forbearing; /* how many the next time */
    uint64_t sleeps, spins, yields; /* for tests */
};

/* What it waits for. `records` is how many were read up to now; `ready` looks whether there is another. */
struct spate_local_idle_for {
    /* Where the reader keeps its bell page: a look may attach it to another one, or to none. */
    struct spate_local_bell *const *bell;
    bool durable; /* records become visible in groups, and their bell is another one */
    uint64_t records;
    bool (*ready)(void *arg);
    void *arg;
};

/* false: nothing came up to the deadline (of spate_clock_ms). true: something did, or the bell page is
 * another one now. */
bool spate_local_idle_wait(struct spate_local_idle *idle, const struct spate_local_idle_for *what,
                           int64_t deadline_ms);

#endif
