/* bus/local/bell.c - the two futex calls, and the seats. Not private futexes: they are keyed by inode, so
 * that containers which share the mount wake each other. */
#include "bus/local/bell.h"

#include "bus/local/broken.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int spate_local_bell_nap_ms = SPATE_LOCAL_NAP_MS;

void spate_local_bell_wake(struct spate_local_doorbell *door)
{
    atomic_store_explicit(&door->waiting, 0, memory_order_seq_cst);
    atomic_fetch_add_explicit(&door->bell, 1, memory_order_seq_cst);
    syscall(SYS_futex, &door->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void spate_local_bell_sleep(struct spate_local_doorbell *door, uint32_t ticket, int timeout_ms)
{
    const int ms = timeout_ms < spate_local_bell_nap_ms ? timeout_ms : spate_local_bell_nap_ms;
    const struct timespec nap = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L};

    syscall(SYS_futex, &door->bell, FUTEX_WAIT, ticket, &nap, NULL, 0);
}

uint64_t spate_local_bell_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

unsigned spate_local_bell_seats(void)
{
    static _Atomic unsigned known; /* seats + 1; 0: not looked yet */
    unsigned seats = atomic_load_explicit(&known, memory_order_relaxed);
    cpu_set_t set;

    if (seats == 0) {
        seats = sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
        if (seats == 1 && sysconf(_SC_NPROCESSORS_ONLN) > 1)
            seats = 2; /* pinned; whom it waits for has another one, as a rule */
        seats = seats > SPATE_LOCAL_SEATS + 1 ? SPATE_LOCAL_SEATS + 1 : seats < 1 ? 1 : seats;
        atomic_store_explicit(&known, seats, memory_order_relaxed);
    }
    return seats - 1;
}

/* L9's control: the count of the tip's spinners, which nobody takes back for the dead. */
static bool take_counted(struct spate_local_bell *bell, struct spate_local_seat *seat)
{
    if (atomic_fetch_add(&bell->tip.spinners, 1) < spate_local_bell_seats()) {
        seat->at = &bell->seats[0];
        return true;
    }
    atomic_fetch_sub(&bell->tip.spinners, 1);
    return false;
}

bool spate_local_seat_take(struct spate_local_bell *bell, uint64_t now, struct spate_local_seat *seat)
{
    const unsigned seats = spate_local_bell_seats();

    seat->at = NULL;
    if (SPATE_BROKEN(SPIN_COUNT))
        return take_counted(bell, seat);
    for (unsigned i = 0; i < seats; i++) {
        uint64_t until = atomic_load_explicit(&bell->seats[i], memory_order_relaxed);
        if (until > now && until - now <= SPATE_LOCAL_TURN_NS)
            continue;
        seat->until = now + SPATE_LOCAL_TURN_NS;
        if (atomic_compare_exchange_strong_explicit(&bell->seats[i], &until, seat->until,
                                                    memory_order_relaxed, memory_order_relaxed)) {
            seat->at = &bell->seats[i];
            return true;
        }
    }
    return false;
}

void spate_local_seat_leave(struct spate_local_bell *bell, struct spate_local_seat *seat)
{
    uint64_t until = seat->until;

    if (!seat->at)
        return;
    if (SPATE_BROKEN(SPIN_COUNT))
        atomic_fetch_sub(&bell->tip.spinners, 1);
    else /* unless the turn is over and somebody else sits there */
        atomic_compare_exchange_strong_explicit(seat->at, &until, 0, memory_order_relaxed,
                                                memory_order_relaxed);
    seat->at = NULL;
}
