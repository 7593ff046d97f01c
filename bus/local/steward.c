/* bus/local/steward.c - one thread's rounds. */
#include "bus/local/steward.h"

#include "bus/bus.h"
#include "bus/local/aid.h"
#include "bus/local/bell.h"
#include "bus/local/lock.h"
#include "bus/local/retain.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GATHER_LEAST (UINT64_C(16) << 10)
#define GATHER_MS    5
#define GATHER_MOST  (UINT64_C(1) << 20)
#define FULL_NAP_MS  50 /* between two attempts while the disk is full */
#define BLOCKED_MS   1  /* between two looks at what is open */
#define QUEUE_MS     5  /* between two attempts to become the one that works */
#define STILL_MS     8  /* without progress of the one that works, until others repair what blocks it */
#define LOOK_MS      50 /* between two looks whether the hot tier is still the one that others see */
#define COMPLAIN_MS  10000

struct spate_local_steward {
    struct spate_local_topic topic; /* a copy: descriptors and mappings are the writer's, the manifest ours */
    struct spate_local_errand *errand;
    struct spate_local_archive archive;
    struct spate_local_repair repair;
    struct spate_local_retain retain;
    struct spate_local_aid aid;
    bool owns;
    bool working;      /* the steward's lock is ours, archive is initialised */
    uint64_t made;     /* the base that was made ahead of time */
    uint64_t told;     /* the watermark that the writer was told of ... */
    int64_t told_ms;   /* ... and when that moved */
    int64_t looked_ms; /* when the hot tier was looked at */
    struct spate_log_limit complained, failed_retain;
    pthread_t thread;
    int event_fd;
    _Atomic bool stop, failed;
    _Atomic bool rung;    /* set after the eventfd was written, so that clearing costs nothing else */
    struct spate_err err; /* written before failed is set, never after */
};

static void nap(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L}, NULL);
}

void spate_local_steward_wake(struct spate_local_errand *errand)
{
    atomic_store(&errand->asleep, 0);
    syscall(SYS_futex, &errand->asleep, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void signal_writer(struct spate_local_steward *s)
{
    const uint64_t one = 1;

    /* A full counter (EAGAIN) is a signal as well. */
    if (write(s->event_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        return;
    atomic_store(&s->rung, true);
}

/* How far all is durable, or final where that is all there is. */
static uint64_t reached(const struct spate_local_steward *s)
{
    const struct spate_local_ctl *ctl = s->topic.ctl;

    return atomic_load(s->topic.manifest.is_volatile ? &ctl->settled : &ctl->durable);
}

static bool wanted(const struct spate_local_steward *s)
{
    return atomic_load(&s->errand->roused) || atomic_load(&s->errand->written) > reached(s);
}

/* Somebody else's steward may have done what the writer waits for. */
static void report(struct spate_local_steward *s)
{
    const uint64_t written = atomic_load(&s->errand->written);

    if (s->told >= written || reached(s) < written)
        return;
    s->told = written;
    signal_writer(s);
}

static enum spate_rc replaced(const struct spate_local_topic *topic, struct spate_err *err)
{
    return spate_fail(err, SPATE_RETRY,
                      "the shared memory of topic %s was removed or replaced under this process; opening the "
                      "topic anew recovers it from the disk, and what was not durable has to be sent again",
                      topic->name);
}

/* One step of the archive, and the repair of what stops it. SPATE_OK: there was something to do. SPATE_END:
 * nothing is open. SPATE_AGAIN: the disk is full, or (*blocked) somebody has room and has not filled it. */
static enum spate_rc tend(struct spate_local_archive *archive, struct spate_local_repair *repair,
                          bool *blocked, struct spate_err *err)
{
    enum spate_rc rc = spate_local_archive_step(archive, err);

    *blocked = false;
    if (rc != SPATE_END || !archive->hot.at)
        return rc;
    rc =
        spate_local_repair(repair, &archive->hot, archive->pos - archive->hot.base, archive->topic->ctl, err);
    *blocked = rc == SPATE_AGAIN;
    if (rc == SPATE_OK) /* who looked meanwhile found nothing, and sleeps; nobody commits here any more */
        spate_local_bell_ring(&archive->topic->bell->tip);
    return rc;
}

enum spate_rc spate_local_steward_settle(const struct spate_local_topic *topic,
                                         const struct spate_local_repair *as, struct spate_err *err)
{
    const uint64_t upto = spate_local_topic_tip(topic);
    struct spate_local_archive archive;
    struct spate_local_repair repair = *as;
    bool moved = false, blocked;
    enum spate_rc rc = SPATE_OK;

    spate_local_archive_init(&archive, topic);
    while (archive.pos < upto && rc != SPATE_END) {
        rc = tend(&archive, &repair, &blocked, err);
        moved = moved || rc == SPATE_OK;
        if (rc == SPATE_FAIL || (rc == SPATE_AGAIN && !blocked))
            break;
        if (blocked)
            nap(BLOCKED_MS);
    }
    spate_local_archive_fini(&archive);
    if (moved)
        spate_local_bell_ring(&topic->bell->durable);
    return rc == SPATE_FAIL || (rc == SPATE_AGAIN && !blocked) ? rc : SPATE_OK;
}

/* Half way through the head the next segment is made, with all its pages. No room now is the writer's
 * business when it gets there. */
static void make_ahead(struct spate_local_steward *s)
{
    const struct spate_local_segment *seg = &s->archive.hot;
    const struct spate_local_ctl *ctl = s->topic.ctl;
    const uint64_t next = seg->base + seg->cap;
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    if (!seg->at || s->made == next || atomic_load(&ctl->head) != seg->base ||
        next > atomic_load(&ctl->gate) ||
        spate_local_tail_bytes(atomic_load(&spate_local_header(seg)->tail)) < seg->cap / 2)
        return;
    s->made = next;
    if (spate_local_segment_create(s->topic.hot_fd, next, seg->cap, &ignored) == SPATE_FAIL)
        return;
}

static void complain(struct spate_local_steward *s)
{
    char quoted[512];
    unsigned hidden;

    if (spate_log_due(&s->complained, spate_clock_ms(), COMPLAIN_MS, &hidden))
        spate_log(
            SPATE_LOG_ERROR, "bus-disk-full",
            "topic=%s path=%s missing_bytes=%d remedy=\"the manifest cannot be written: make room there; "
            "spate goes on by itself\"",
            s->topic.name, spate_log_quote(quoted, sizeof quoted, s->topic.place->path),
            (int)SPATE_LOCAL_HEADER);
}

/* Retention. What goes wrong there is said, and tried again: the archive grows meanwhile. */
static void keep_less(struct spate_local_steward *s)
{
    struct spate_err err = {.verdict = SPATE_RETRY};
    char quoted[512];
    unsigned hidden;

    if (spate_local_retain_step(&s->retain, &s->topic, &err) != SPATE_FAIL)
        return;
    if (spate_log_due(&s->failed_retain, spate_clock_ms(), COMPLAIN_MS, &hidden))
        spate_log(
            SPATE_LOG_ERROR, "bus-retention-failed",
            "topic=%s why=%s remedy=\"mend what it names below bus.local.path; spate tries again by itself\"",
            s->topic.name, spate_log_quote(quoted, sizeof quoted, err.text));
}

/* What this process is configured to keep counts from now on. */
static void rule(struct spate_local_steward *s)
{
    struct spate_err err = {.verdict = SPATE_RETRY};

    if (spate_local_retain_rule(&s->topic, s->errand->flags, &err) == SPATE_FAIL)
        spate_log_err(SPATE_LOG_WARN, "bus-retention-failed", &err);
}

/* SPATE_FAIL: nobody else sees what this process has mapped. */
static enum spate_rc look(struct spate_local_steward *s)
{
    const int64_t now = spate_clock_ms();

    if (now - s->looked_ms < LOOK_MS)
        return SPATE_OK;
    s->looked_ms = now;
    return spate_local_topic_current(&s->topic) ? SPATE_OK : replaced(&s->topic, &s->err);
}

/* Everything beside the records. */
static enum spate_rc keep_house(struct spate_local_steward *s)
{
    enum spate_rc rc = look(s);

    if (rc == SPATE_OK)
        rc = spate_local_topic_promise(&s->topic, &s->err);
    if (rc == SPATE_AGAIN)
        complain(s);
    if (rc == SPATE_FAIL)
        return rc;
    keep_less(s);
    spate_local_topic_gate(&s->topic, s->retain.blocked);
    make_ahead(s);
    return SPATE_OK;
}

/* Syncing back to back costs a quarter of a processor that the data's own thread could use. When records come
 * so fast that a group was not small, a few milliseconds more make the next one ten times larger; a lone
 * record never waits. */
static void gather(const struct spate_local_steward *s, uint64_t group)
{
    if (s->topic.manifest.is_volatile || (group >= GATHER_LEAST && group < GATHER_MOST))
        nap(GATHER_MS);
}

static void give_back(struct spate_local_steward *s)
{
    spate_local_archive_fini(&s->archive);
    spate_local_retain_pause(&s->retain);
    s->working = false;
    if (!s->owns)
        spate_local_lock_release(s->repair.lock_fd, SPATE_LOCAL_LOCK_STEWARD);
}

/* Sleeps until something is published, by whomever. */
static enum spate_rc rest(struct spate_local_steward *s)
{
    struct spate_local_doorbell *tip = &s->topic.bell->tip;
    const uint32_t ticket = spate_local_bell_prepare(tip);
    bool blocked;
    const enum spate_rc rc = tend(&s->archive, &s->repair, &blocked, &s->err);

    if (rc == SPATE_END && !atomic_load(&s->stop))
        spate_local_bell_sleep(tip, ticket, INT_MAX);
    else if (blocked)
        nap(BLOCKED_MS);
    return blocked ? SPATE_END : rc;
}

/* One round of the one that works. SPATE_END: there is nothing left, and nobody wants more. */
static enum spate_rc work_round(struct spate_local_steward *s, bool stop)
{
    const uint64_t before = s->archive.pos;
    bool blocked;
    enum spate_rc rc = keep_house(s);

    if (rc != SPATE_OK)
        return rc;
    atomic_store(&s->errand->roused, false);
    rc = tend(&s->archive, &s->repair, &blocked, &s->err);
    if (rc == SPATE_END && !stop) {
        if (!s->owns) /* not a moment longer than there is work: frozen with the lock, we stop the others */
            return SPATE_END;
        rc = rest(s);
        if (rc == SPATE_END)
            return SPATE_OK;
    }
    if (rc == SPATE_OK) {
        spate_local_topic_gate(&s->topic, s->retain.blocked);
        spate_local_bell_ring(&s->topic.bell->durable);
        signal_writer(s);
        if (!stop)
            gather(s, s->archive.pos - before);
    } else if (rc == SPATE_AGAIN && stop && !blocked) {
        return SPATE_END; /* the disk is full: the next writer goes on from here */
    } else if (rc == SPATE_AGAIN) {
        nap(blocked ? BLOCKED_MS : FULL_NAP_MS);
        return SPATE_OK;
    }
    return rc;
}

/* The one that works may be frozen: what blocks readers of the tip is repaired all the same. What goes wrong
 * here, it will meet as well. */
static void help(struct spate_local_steward *s)
{
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    if (spate_local_aid(&s->aid, &s->topic, &s->repair, reached(s), &ignored) == SPATE_FAIL)
        spate_local_aid_fini(&s->aid);
}

/* Sleeps until the writer wants something, without a place in any bell. Somebody else's writer may hang, and
 * its steward with it, or have died before its records were durable: looked at once a second. */
static void sleep_unwanted(struct spate_local_steward *s)
{
    const struct timespec most = {.tv_sec = 1};

    atomic_store(&s->errand->asleep, 1);
    if (!wanted(s) && !atomic_load(&s->stop))
        syscall(SYS_futex, &s->errand->asleep, FUTEX_WAIT_PRIVATE, 1, &most, NULL, 0);
    atomic_store(&s->errand->asleep, 0);
    if (spate_local_topic_tip(&s->topic) <= reached(s))
        spate_local_aid_fini(&s->aid);
    else if (spate_local_lock_alone(s->repair.lock_fd, SPATE_LOCAL_LOCK_STEWARD))
        help(s);
    else
        atomic_store(&s->errand->roused, true);
}

/* Another steward works: its progress is our writer's. */
static enum spate_rc queue(struct spate_local_steward *s)
{
    struct spate_local_doorbell *door = &s->topic.bell->durable;
    const uint32_t ticket = spate_local_bell_prepare(door);

    if (wanted(s))
        spate_local_bell_sleep(door, ticket, s->aid.pos > reached(s) ? BLOCKED_MS : QUEUE_MS);
    const uint64_t now = reached(s);
    if (now != s->told) {
        s->told = now;
        s->told_ms = spate_clock_ms();
        atomic_store(&s->errand->roused, false); /* a writer at the gate says so at each attempt */
        signal_writer(s);
    } else if (spate_clock_ms() - s->told_ms >= STILL_MS) {
        help(s);
    }
    return look(s) == SPATE_OK ? SPATE_AGAIN : SPATE_FAIL; /* the other may work on another hot tier */
}

/* SPATE_OK: the steward's lock is ours now. SPATE_AGAIN: not now. SPATE_END: told to stop, with nothing to
 * do. */
static enum spate_rc begin(struct spate_local_steward *s, bool stop)
{
    if (!s->owns) {
        if (!wanted(s)) {
            report(s);
            if (!stop)
                sleep_unwanted(s);
            return stop ? SPATE_END : SPATE_AGAIN;
        }
        const enum spate_rc rc = spate_local_lock_try(s->repair.lock_fd, SPATE_LOCAL_LOCK_STEWARD,
                                                      SPATE_LOCAL_LOCK_ALONE, &s->err);
        if (rc == SPATE_AGAIN && stop)
            return SPATE_END; /* whoever has it goes on with ours */
        if (rc == SPATE_AGAIN)
            return queue(s);
        if (rc != SPATE_OK)
            return rc;
        if (!spate_local_topic_current(&s->topic)) {
            spate_local_lock_release(s->repair.lock_fd, SPATE_LOCAL_LOCK_STEWARD);
            return replaced(&s->topic, &s->err);
        }
        spate_local_lock_sign_steward(s->repair.lock_fd);
    }
    /* Whoever worked before may have changed it; or died in the middle of a recovery. */
    if (spate_local_manifest_read(&s->topic, &s->err) != SPATE_OK ||
        s->topic.manifest.generation != s->topic.ctl->generation) {
        if (!s->owns)
            spate_local_lock_release(s->repair.lock_fd, SPATE_LOCAL_LOCK_STEWARD);
        return replaced(&s->topic, &s->err);
    }
    if ((s->errand->flags & SPATE_TOPIC_RULE) != 0 && !s->owns) /* it may have joined while another worked */
        rule(s);
    spate_local_aid_fini(&s->aid);
    spate_local_archive_init(&s->archive, &s->topic);
    s->working = true;
    s->repair.since_us = 0;
    report(s);
    return SPATE_OK;
}

static void *work(void *arg)
{
    struct spate_local_steward *s = arg;
    enum spate_rc rc;

    for (;;) {
        const bool stop = atomic_load(&s->stop);
        if (!s->working) {
            rc = begin(s, stop);
        } else {
            rc = work_round(s, stop);
            if (rc == SPATE_END)
                give_back(s);
        }
        if (rc == SPATE_FAIL)
            break;
        if (rc == SPATE_END && stop)
            break;
    }
    spate_local_aid_fini(&s->aid);
    if (s->working)
        give_back(s);
    if (rc != SPATE_FAIL)
        return NULL;
    atomic_store(&s->failed, true);
    signal_writer(s);
    return NULL;
}

enum spate_rc spate_local_steward_start(const struct spate_local_topic *topic,
                                        const struct spate_local_repair *as, bool owns,
                                        struct spate_local_errand *errand,
                                        struct spate_local_steward **steward, struct spate_err *err)
{
    struct spate_local_steward *s = spate_zalloc(sizeof *s);
    sigset_t all, before;

    s->topic = *topic;
    s->repair = *as;
    s->repair.alone = false; /* our own writer lives */
    s->repair.sole = owns;
    s->owns = owns;
    s->errand = errand;
    spate_local_retain_init(&s->retain);
    s->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    sigfillset(&all);
    sigdelset(&all, SIGBUS);                     /* bus/local/sigbus.h */
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the process' own threads */
    const int why = s->event_fd < 0 ? errno : pthread_create(&s->thread, NULL, work, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (why != 0) {
        if (s->event_fd >= 0)
            close(s->event_fd);
        free(s);
        return spate_fail(err, SPATE_RETRY, "cannot start the steward of topic %s: %s", topic->name,
                          strerror(why));
    }
    *steward = s;
    return SPATE_OK;
}

void spate_local_steward_stop(struct spate_local_steward *s)
{
    if (!s)
        return;
    atomic_store(&s->stop, true);
    spate_local_steward_wake(s->errand);
    spate_local_bell_wake(&s->topic.bell->tip);
    pthread_join(s->thread, NULL);
    spate_local_retain_fini(&s->retain);
    close(s->event_fd);
    free(s);
}

int spate_local_steward_fd(const struct spate_local_steward *s)
{
    return s->event_fd;
}

void spate_local_steward_clear(struct spate_local_steward *s)
{
    uint64_t count;

    if (atomic_exchange(&s->rung, false) && read(s->event_fd, &count, sizeof count) < 0)
        return; /* nothing to take: somebody was faster, or it was taken with the signal before */
}

const struct spate_err *spate_local_steward_error(const struct spate_local_steward *s)
{
    return atomic_load(&s->failed) ? &s->err : NULL;
}
