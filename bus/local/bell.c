/* bus/local/bell.c - the two futex calls. Not private futexes: they are keyed by inode, so that containers
 * which share the mount wake each other. */
#include "bus/local/bell.h"

#include <limits.h>
#include <linux/futex.h>
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
