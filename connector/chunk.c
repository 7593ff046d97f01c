/* connector/chunk.c - reader threads: a queue of work, a list of what is done, and the pace. */
#include "connector/chunk.h"

#include "connector/fetch.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define IDLE_S   60   /* a connection without work is let go */
#define CLOSE_MS 1800 /* what closing waits for threads */

struct reader {
    struct spate_readers *readers;
    struct spate_fetch *fetch; /* owned */
    pthread_t thread;
    bool started, ended;
    struct spate_job *running; /* NULL: none. The thread's while it works, else nobody's */
    atomic_bool off;           /* what runs is to end */
    int off_fd;
};

struct spate_readers {
    pthread_mutex_t lock; /* everything below */
    pthread_cond_t work, end;
    struct spate_job *queue, **queue_tail; /* to be done, oldest first */
    struct spate_job *done, **done_tail;
    int done_fd;
    bool closing;
    unsigned users; /* threads, and whoever opened it: the last one frees it */
    size_t count;
    struct reader reader[];
};

void spate_job_free(struct spate_job *job)
{
    if (!job)
        return;
    spate_snapshot_fini(&job->snapshot);
    spate_buf_fini(&job->lines);
    spate_buf_fini(&job->keys_text);
    free(job->rows);
    free(job);
}

static void free_list(struct spate_job *job)
{
    while (job) {
        struct spate_job *next = job->next;

        spate_job_free(job);
        job = next;
    }
}

/* Under the lock. */
static void hand_over(struct spate_readers *readers, struct spate_job *job)
{
    job->next = NULL;
    *readers->done_tail = job;
    readers->done_tail = &job->next;
    (void)eventfd_write(readers->done_fd, 1); /* when the counter is full, it is readable */
}

static struct spate_job *first_of_queue(struct spate_readers *readers)
{
    struct spate_job *job = readers->queue;

    if (job) {
        readers->queue = job->next;
        if (!readers->queue)
            readers->queue_tail = &readers->queue;
        job->next = NULL;
    }
    return job;
}

static void deadline_in(struct timespec *until, int64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, until);
    until->tv_sec += ms / 1000;
    until->tv_nsec += ms % 1000 * 1000000;
    if (until->tv_nsec >= 1000000000) {
        until->tv_sec++;
        until->tv_nsec -= 1000000000;
    }
}

/* The next piece of work; NULL: the end. */
static struct spate_job *next_job(struct spate_readers *readers, struct reader *reader)
{
    struct spate_job *job;
    struct timespec until;

    pthread_mutex_lock(&readers->lock);
    deadline_in(&until, IDLE_S * 1000);
    while (!readers->closing && !readers->queue)
        if (pthread_cond_timedwait(&readers->work, &readers->lock, &until) == ETIMEDOUT) {
            pthread_mutex_unlock(&readers->lock);
            spate_fetch_leave(reader->fetch);
            pthread_mutex_lock(&readers->lock);
            deadline_in(&until, IDLE_S * 1000);
        }
    job = readers->closing ? NULL : first_of_queue(readers);
    reader->running = job;
    atomic_store(&reader->off, false);
    (void)eventfd_read(reader->off_fd, &(eventfd_t){0});
    pthread_mutex_unlock(&readers->lock);
    return job;
}

static void free_readers(struct spate_readers *readers)
{
    free_list(readers->queue);
    free_list(readers->done);
    for (size_t i = 0; i < readers->count; i++) {
        spate_fetch_free(readers->reader[i].fetch);
        if (readers->reader[i].off_fd >= 0)
            close(readers->reader[i].off_fd);
    }
    close(readers->done_fd);
    pthread_cond_destroy(&readers->work);
    pthread_cond_destroy(&readers->end);
    pthread_mutex_destroy(&readers->lock);
    free(readers);
}

/* Under the lock, which it gives back. */
static void leave(struct spate_readers *readers)
{
    bool last = --readers->users == 0;

    pthread_mutex_unlock(&readers->lock);
    if (last)
        free_readers(readers);
}

static void *read_chunks(void *arg)
{
    struct reader *reader = arg;
    struct spate_readers *readers = reader->readers;
    struct spate_job *job;

    while ((job = next_job(readers, reader))) {
        spate_fetch_run(reader->fetch, job);
        pthread_mutex_lock(&readers->lock);
        reader->running = NULL;
        hand_over(readers, job);
        pthread_mutex_unlock(&readers->lock);
    }
    spate_fetch_leave(reader->fetch);
    pthread_mutex_lock(&readers->lock);
    reader->ended = true;
    pthread_cond_broadcast(&readers->end);
    leave(readers);
    return NULL;
}

enum spate_rc spate_readers_open(const struct spate_connector_config *config, struct spate_readers **out,
                                 struct spate_err *err)
{
    size_t count = config->snapshots.parallel > 0 ? (size_t)config->snapshots.parallel : 1;
    struct spate_readers *readers = spate_zalloc(sizeof *readers + count * sizeof readers->reader[0]);
    pthread_condattr_t attr;
    int failed = 0;

    *out = NULL;
    readers->count = count;
    readers->users = 1;
    readers->queue_tail = &readers->queue;
    readers->done_tail = &readers->done;
    readers->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&readers->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&readers->work, &attr);
    pthread_cond_init(&readers->end, &attr);
    pthread_condattr_destroy(&attr);
    for (size_t i = 0; i < count; i++)
        readers->reader[i].off_fd = -1;
    if (readers->done_fd < 0)
        failed = errno;
    for (size_t i = 0; i < count && !failed; i++) {
        struct reader *reader = &readers->reader[i];

        reader->readers = readers;
        reader->off_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (reader->off_fd < 0) {
            failed = errno;
            break;
        }
        reader->fetch = spate_fetch_new(config, &reader->off, reader->off_fd);
        pthread_mutex_lock(&readers->lock);
        failed = pthread_create(&reader->thread, NULL, read_chunks, reader);
        reader->started = !failed;
        readers->users += reader->started;
        pthread_mutex_unlock(&readers->lock);
    }
    if (failed) {
        spate_readers_close(readers);
        return spate_fail(err, SPATE_RETRY,
                          "no thread or descriptor for reading snapshots: %s; see ulimit -u and ulimit -n",
                          strerror(failed));
    }
    *out = readers;
    return SPATE_OK;
}

/* Under the lock. */
static void call_off(struct spate_readers *readers)
{
    struct spate_job *job;

    while ((job = first_of_queue(readers))) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "reading for a snapshot: called off");
        hand_over(readers, job);
    }
    for (size_t i = 0; i < readers->count; i++) {
        struct reader *reader = &readers->reader[i];

        if (!reader->running)
            continue;
        atomic_store(&reader->off, true);
        (void)eventfd_write(reader->off_fd, 1);
    }
}

void spate_readers_cancel(struct spate_readers *readers)
{
    pthread_mutex_lock(&readers->lock);
    call_off(readers);
    pthread_mutex_unlock(&readers->lock);
}

/* A thread that is connecting to a host which does not answer cannot be hurried: it is left behind, touches
 * nothing of the caller's any more, and frees what is left when it comes to its end. */
void spate_readers_close(struct spate_readers *readers)
{
    struct timespec until;

    if (!readers)
        return;
    deadline_in(&until, CLOSE_MS);
    pthread_mutex_lock(&readers->lock);
    readers->closing = true;
    call_off(readers);
    pthread_cond_broadcast(&readers->work);
    for (size_t i = 0; i < readers->count; i++) {
        struct reader *reader = &readers->reader[i];

        while (reader->started && !reader->ended)
            if (pthread_cond_timedwait(&readers->end, &readers->lock, &until) == ETIMEDOUT)
                break;
    }
    for (size_t i = 0; i < readers->count; i++) {
        struct reader *reader = &readers->reader[i];

        if (reader->started && reader->ended) {
            /* It still has to give the lock back, perhaps: that takes no time, but needs it. */
            pthread_mutex_unlock(&readers->lock);
            pthread_join(reader->thread, NULL);
            pthread_mutex_lock(&readers->lock);
        } else if (reader->started) {
            pthread_detach(reader->thread);
        }
    }
    leave(readers);
}

void spate_readers_submit(struct spate_readers *readers, struct spate_job *job)
{
    pthread_mutex_lock(&readers->lock);
    job->next = NULL;
    *readers->queue_tail = job;
    readers->queue_tail = &job->next;
    pthread_cond_signal(&readers->work);
    pthread_mutex_unlock(&readers->lock);
}

struct spate_job *spate_readers_take(struct spate_readers *readers)
{
    struct spate_job *job;

    pthread_mutex_lock(&readers->lock);
    job = readers->done;
    if (job) {
        readers->done = job->next;
        job->next = NULL;
    }
    if (!readers->done) {
        readers->done_tail = &readers->done;
        (void)eventfd_read(readers->done_fd, &(eventfd_t){0});
    }
    pthread_mutex_unlock(&readers->lock);
    return job;
}

int spate_readers_fd(struct spate_readers *readers)
{
    return readers->done_fd;
}

/* ---- how much at a time ---- */

#define FIRST_PAGES 32 /* of 8 KiB: the first rows are not to be waited for */
#define MOST_PAGES  (UINT64_C(1) << 17)
#define AIM_US      200000 /* of a transaction on the source; a cut comes at four times that */

void spate_pace_start(struct spate_pace *pace)
{
    pace->pages = FIRST_PAGES;
}

static uint64_t clamp_pages(double pages)
{
    return pages < 1 ? 1 : pages > (double)MOST_PAGES ? MOST_PAGES : (uint64_t)pages;
}

void spate_pace_learn(struct spate_pace *pace, const struct spate_job *job)
{
    double pages, by_bytes, by_time, most = (double)pace->pages * 4;

    if (job->outcome == SPATE_JOB_BUSY) {
        pace->pages = clamp_pages((double)pace->pages / 2);
        return;
    }
    if (job->outcome != SPATE_JOB_DONE || job->reached <= job->from)
        return;
    /* Less than a page counts as what it is, or the next one would be too large again. */
    pages = (double)(job->reached - job->from) / 65536;
    if (job->pages > 0 && job->reached >> 16 > job->pages) /* beyond the table's end there is nothing */
        pages = (double)(job->pages > job->from >> 16 ? job->pages - (job->from >> 16) : 0);
    if (pages <= 0)
        return;
    by_bytes = job->lines.len ? pages * (double)job->max_bytes / (double)job->lines.len : most;
    by_time = job->took_us > 0 ? pages * AIM_US / (double)job->took_us : most;
    pages = by_bytes < by_time ? by_bytes : by_time;
    pace->pages = clamp_pages(pages < most ? pages : most);
}
