/* bus/local/archiver.c - the archiving thread. */
#include "bus/local/archiver.h"

#include "bus/local/bell.h"
#include "core/alloc.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define GATHER_LEAST (UINT64_C(16) << 10)
#define GATHER_MS    5
#define GATHER_MOST  (UINT64_C(1) << 20)
#define FULL_NAP_MS  50 /* between two attempts while the disk is full */

struct spate_local_archiver {
    struct spate_local_archive archive;
    pthread_t thread;
    int event_fd;
    _Atomic bool stop, failed;
    _Atomic bool rung;        /* set after the eventfd was written, so that clearing costs nothing else */
    _Atomic uint64_t prepare; /* base of a segment to make; 0: none */
    struct spate_err err;     /* written before failed is set, never after */
};

static void signal_writer(struct spate_local_archiver *a)
{
    const uint64_t one = 1;

    /* A full counter (EAGAIN) is a signal as well. */
    if (write(a->event_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        return;
    atomic_store(&a->rung, true);
}

static void make_ahead(struct spate_local_archiver *a)
{
    const uint64_t base = atomic_exchange(&a->prepare, 0);
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    /* No room now is the writer's business when it gets there. */
    if (base != 0 &&
        spate_local_segment_create(a->archive.topic->hot_fd, base, a->archive.cap, &ignored) == SPATE_FAIL)
        return;
}

/* Syncing back to back costs a quarter of a processor that the data's own thread could use. When records come
 * so fast that a group was not small, a few milliseconds more make the next one ten times larger; a lone
 * record never waits. */
static void gather(uint64_t group)
{
    if (group >= GATHER_LEAST && group < GATHER_MOST)
        nanosleep(&(struct timespec){.tv_nsec = GATHER_MS * 1000000L}, NULL);
}

static void *work(void *arg)
{
    struct spate_local_archiver *a = arg;
    struct spate_local_doorbell *tip = &a->archive.topic->bell->tip;

    for (;;) {
        const bool stop = atomic_load(&a->stop);
        const uint64_t before = a->archive.pos;
        enum spate_rc rc = spate_local_archive_step(&a->archive, &a->err);
        make_ahead(a);
        if (rc == SPATE_END && !stop) {
            const uint32_t ticket = spate_local_bell_prepare(tip);
            rc = spate_local_archive_step(&a->archive, &a->err);
            if (rc == SPATE_END && !atomic_load(&a->stop)) {
                spate_local_bell_sleep(tip, ticket, INT_MAX);
                continue;
            }
        }
        if (rc == SPATE_OK) {
            spate_local_bell_ring(&a->archive.topic->bell->durable);
            signal_writer(a);
            if (!stop)
                gather(a->archive.pos - before);
        } else if (rc == SPATE_FAIL) {
            atomic_store(&a->failed, true);
            signal_writer(a);
            return NULL;
        } else if (stop) {
            return NULL; /* all is durable, or the disk is full: the next writer goes on from here */
        } else if (rc == SPATE_AGAIN) {
            nanosleep(&(struct timespec){.tv_nsec = FULL_NAP_MS * 1000000L}, NULL);
        }
    }
}

enum spate_rc spate_local_archiver_start(const struct spate_local_topic *topic,
                                         struct spate_local_archiver **archiver, struct spate_err *err)
{
    struct spate_local_archiver *a = spate_zalloc(sizeof *a);
    sigset_t all, before;

    spate_local_archive_init(&a->archive, topic);
    a->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the process' own threads */
    const int why = a->event_fd < 0 ? errno : pthread_create(&a->thread, NULL, work, a);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (why != 0) {
        if (a->event_fd >= 0)
            close(a->event_fd);
        free(a);
        return spate_fail(err, SPATE_RETRY, "cannot start the archiver of topic %s: %s", topic->name,
                          strerror(why));
    }
    *archiver = a;
    return SPATE_OK;
}

void spate_local_archiver_stop(struct spate_local_archiver *a)
{
    if (!a)
        return;
    atomic_store(&a->stop, true);
    spate_local_bell_wake(&a->archive.topic->bell->tip);
    pthread_join(a->thread, NULL);
    spate_local_archive_fini(&a->archive);
    close(a->event_fd);
    free(a);
}

int spate_local_archiver_fd(const struct spate_local_archiver *a)
{
    return a->event_fd;
}

void spate_local_archiver_clear(struct spate_local_archiver *a)
{
    uint64_t count;

    if (atomic_exchange(&a->rung, false) && read(a->event_fd, &count, sizeof count) < 0)
        return; /* nothing to take: somebody was faster, or it was taken with the signal before */
}

void spate_local_archiver_prepare(struct spate_local_archiver *a, uint64_t base)
{
    atomic_store(&a->prepare, base);
}

const struct spate_err *spate_local_archiver_error(const struct spate_local_archiver *a)
{
    return atomic_load(&a->failed) ? &a->err : NULL;
}
