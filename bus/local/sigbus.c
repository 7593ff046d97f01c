/* bus/local/sigbus.c - the table of mappings, and the handler that reads it. */
#include "bus/local/sigbus.h"

#include "core/alloc.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SOME  64
#define TAKEN ((uintptr_t)1) /* a place whose mapping is not written down yet */

/* Tables are added and never freed: the handler walks them at any moment, without a lock. */
struct table {
    struct spate_local_guard guards[SOME];
    struct table *_Atomic next;
};

static struct table first;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction before;
static uintptr_t page_size;
static atomic_bool bare;

static struct spate_local_guard *find(uintptr_t address)
{
    for (struct table *t = &first; t; t = atomic_load(&t->next))
        for (size_t i = 0; i < SOME; i++) {
            struct spate_local_guard *guard = &t->guards[i];
            const uintptr_t from = atomic_load(&guard->from), upto = atomic_load(&guard->upto);
            /* Looked at again: another thread may be giving the place to another mapping. */
            if (from > TAKEN && address >= from && address < upto && atomic_load(&guard->from) == from)
                return guard;
        }
    return NULL;
}

/* Zeros from the page on, since a file is cut at its end. Only what a handler may do: atomics, and mmap as
 * the bare call that it is. */
static bool mend(uintptr_t address)
{
    struct spate_local_guard *guard = find(address);

    if (!guard)
        return false;
    const uintptr_t page = address & ~(page_size - 1);
    const size_t len = (atomic_load(&guard->upto) - page + page_size - 1) & ~(page_size - 1);
    atomic_store(&guard->cut, true);
    return syscall(SYS_mmap, page, len, guard->writes ? PROT_READ | PROT_WRITE : PROT_READ,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0L) == (long)page;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    const int saved = errno;

    /* One that was sent (kill) has no address. */
    if (info->si_code > 0 && mend((uintptr_t)info->si_addr)) {
        errno = saved;
        return;
    }
    errno = saved;
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else if (info->si_code > 0 || before.sa_handler == SIG_DFL) {
        /* Dies of it when it returns to the same instruction, or here and now when it was only sent. */
        struct sigaction fatal = {.sa_handler = SIG_DFL};
        sigaction(SIGBUS, &fatal, NULL);
        if (info->si_code <= 0)
            raise(SIGBUS);
    }
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (atomic_load(&bare))
        return;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

void spate_local_guard_bare(void)
{
    atomic_store(&bare, true);
}

/* A free place, without a lock: a process may be forked at any moment. */
static struct spate_local_guard *take(void)
{
    for (struct table *t = &first;; t = atomic_load(&t->next)) {
        for (size_t i = 0; i < SOME; i++) {
            uintptr_t none = 0;
            if (atomic_compare_exchange_strong(&t->guards[i].from, &none, TAKEN))
                return &t->guards[i];
        }
        if (!atomic_load(&t->next)) {
            struct table *none = NULL, *more = spate_zalloc(sizeof *more);
            if (!atomic_compare_exchange_strong(&t->next, &none, more))
                free(more); /* another thread was first */
        }
    }
}

struct spate_local_guard *spate_local_guard_add(const void *at, size_t len, bool writes)
{
    pthread_once(&once, install);
    struct spate_local_guard *guard = take();
    atomic_store(&guard->cut, false);
    guard->writes = writes;
    atomic_store(&guard->upto, (uintptr_t)at + len);
    atomic_store(&guard->from, (uintptr_t)at);
    return guard;
}

void spate_local_guard_remove(struct spate_local_guard *guard)
{
    if (guard)
        atomic_store(&guard->from, 0);
}
