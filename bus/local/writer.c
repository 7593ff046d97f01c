/* bus/local/writer.c - a topic's writer: opening, what it has promised, and when that is durable.
 *
 * An owned topic is locked from open to close. Of a SHARED one each writer has a slot of its own; publishing
 * is the same for both. The steward beside it (bus/local/steward.h) makes things durable. */
#include "bus/local/append.h"
#include "bus/local/bell.h"
#include "bus/local/broken.h"
#include "bus/local/local.h"
#include "bus/local/lock.h"
#include "bus/local/recovery.h"
#include "bus/local/retain.h"
#include "bus/local/spill.h"
#include "bus/local/steward.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TOKENS_MOST  65536 /* acknowledgements outstanding; 16 bytes each */
#define OPEN_WAIT_MS 5000
#define OPEN_NAP_MS  2

struct promise {
    uint64_t end; /* durable once the watermark reaches it */
    uint64_t token;
};

struct writer {
    struct spate_writer base;
    struct spate_local_topic topic;
    unsigned flags;
    int lock_fd;
    unsigned slot, gen;
    struct spate_local_append append;
    bool appending; /* append is initialised */
    struct spate_local_errand errand;
    struct spate_local_steward *steward; /* but for an owned, volatile topic */
    struct promise *promises;            /* ring of promise_cap, in the order of publishing */
    size_t promise_head, promise_count, promise_cap;
    uint64_t seen; /* the watermark at the last poll */
};

static bool is_shared(const struct writer *w)
{
    return (w->flags & SPATE_TOPIC_SHARED) != 0;
}

static bool is_volatile(const struct writer *w)
{
    return (w->flags & SPATE_TOPIC_VOLATILE) != 0;
}

/* Gives up what is mapped; the locks stay. */
static void leave(struct writer *w)
{
    if (w->appending)
        spate_local_append_abandon(&w->append);
    spate_local_steward_stop(w->steward);
    w->steward = NULL;
    if (w->appending)
        spate_local_append_fini(&w->append);
    w->appending = false;
    w->gen = 0;
    spate_local_topic_detach(&w->topic);
}

static enum spate_rc reserve_promises(struct writer *w, size_t more)
{
    if (w->promise_count + more <= w->promise_cap)
        return SPATE_OK;
    if (w->promise_count + more > TOKENS_MOST)
        return SPATE_AGAIN;
    size_t cap = w->promise_cap ? w->promise_cap : 64;
    while (cap < w->promise_count + more)
        cap *= 2;
    struct promise *ring = spate_alloc(cap * sizeof *ring);
    for (size_t i = 0; i < w->promise_count; i++)
        ring[i] = w->promises[(w->promise_head + i) & (w->promise_cap - 1)];
    free(w->promises);
    w->promises = ring;
    w->promise_cap = cap;
    w->promise_head = 0;
    return SPATE_OK;
}

static enum spate_rc append_all(struct writer *w, const struct spate_record *records, size_t count,
                                size_t *taken, struct spate_err *err)
{
    uint64_t ends[SPATE_LOCAL_BATCH];

    while (*taken < count) {
        const size_t left = count - *taken, most = left < SPATE_LOCAL_BATCH ? left : SPATE_LOCAL_BATCH;
        size_t n = 0;
        enum spate_rc rc = is_volatile(w) ? SPATE_OK : reserve_promises(w, most);
        if (rc == SPATE_OK)
            rc = spate_local_append(&w->append, records + *taken, most, &n, ends, err);
        if (rc != SPATE_OK)
            return rc;
        for (size_t i = 0; i < n && !is_volatile(w); i++)
            if (records[*taken + i].token != 0)
                w->promises[(w->promise_head + w->promise_count++) & (w->promise_cap - 1)] =
                    (struct promise){.end = ends[i], .token = records[*taken + i].token};
        *taken += n;
    }
    return SPATE_OK;
}

static enum spate_rc enter(struct writer *w, struct spate_err *err);

/* Is something not durable yet that somebody wants to hear of? */
static bool is_waiting(const struct writer *w)
{
    if (w->promise_count == 0 || !w->topic.ctl)
        return false;
    const size_t last = (w->promise_head + w->promise_count - 1) & (w->promise_cap - 1);
    return w->promises[last].end > atomic_load(&w->topic.ctl->durable);
}

/* A SHARED topic's shared memory may have been lost and recovered by another writer. Where nothing of ours is
 * at stake this one goes along; else its publisher has to hear of it. */
static enum spate_rc follow(struct writer *w, struct spate_err *err)
{
    const struct spate_err *why = w->steward ? spate_local_steward_error(w->steward) : NULL;

    if (why && (!is_shared(w) || w->promise_count > 0)) {
        *err = *why;
        return SPATE_FAIL;
    }
    /* A kernel call, but for those only who publish now and then: the steward sleeps. */
    if (!why && w->appending &&
        (!is_shared(w) || !atomic_load(&w->errand.asleep) || spate_local_topic_current(&w->topic)))
        return SPATE_OK;
    if (is_waiting(w)) /* the steward is about to find out; the next log's watermark says nothing of these */
        return spate_fail(err, SPATE_RETRY,
                          "the shared memory of topic %s was removed or replaced under this process before "
                          "all that it published was durable; opening the topic anew recovers it",
                          w->topic.name);
    leave(w);
    return enter(w, err);
}

/* A lone record while nothing is the matter. */
static inline bool publish_one(struct writer *w, const struct spate_record *record)
{
    const bool promise = record->token != 0 && !is_volatile(w);
    uint64_t end;

    if (!w->appending || (promise && w->promise_count == w->promise_cap) ||
        (w->steward && (spate_local_steward_error(w->steward) ||
                        (is_shared(w) && atomic_load_explicit(&w->errand.asleep, memory_order_relaxed)))) ||
        !spate_local_append_one(&w->append, record, &end))
        return false;
    if (promise)
        w->promises[(w->promise_head + w->promise_count++) & (w->promise_cap - 1)] =
            (struct promise){.end = end, .token = record->token};
    return true;
}

static enum spate_rc publish(struct spate_writer *base, const struct spate_record *records, size_t count,
                             size_t *taken, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;

    if (count == 1 && publish_one(w, records)) {
        *taken = 1;
        return SPATE_OK;
    }
    *taken = 0;
    const enum spate_rc rc = follow(w, err);
    return rc == SPATE_OK ? append_all(w, records, count, taken, err) : rc;
}

static uint64_t watermark(const struct writer *w)
{
    /* Detached only after a failure, until the next publish. */
    return w->topic.ctl ? atomic_load_explicit(&w->topic.ctl->durable, memory_order_seq_cst) : w->seen;
}

/* Hands back what the watermark has passed. */
static enum spate_rc deliver(struct writer *w, spate_durable_fn *durable, void *arg)
{
    const uint64_t upto = is_volatile(w) ? 0 : watermark(w);
    enum spate_rc rc = SPATE_AGAIN;

    w->seen = upto;
    while (w->promise_count > 0 && w->promises[w->promise_head].end <= upto) {
        const uint64_t token = w->promises[w->promise_head].token;
        w->promise_head = (w->promise_head + 1) & (w->promise_cap - 1);
        w->promise_count--;
        durable(arg, token);
        rc = SPATE_OK;
    }
    return rc;
}

static enum spate_rc poll_writer(struct spate_writer *base, int timeout_ms, spate_durable_fn *durable,
                                 void *arg, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    if (!w->steward || is_volatile(w)) { /* nothing ever comes */
        if (timeout_ms > 0)
            poll(NULL, 0, timeout_ms);
        return SPATE_AGAIN;
    }
    struct pollfd fd = {.fd = spate_local_steward_fd(w->steward), .events = POLLIN};
    for (;;) {
        const struct spate_err *why = spate_local_steward_error(w->steward);
        spate_local_steward_clear(w->steward);
        const enum spate_rc rc = deliver(w, durable, arg);
        if (rc == SPATE_OK)
            return rc;
        if (why) {
            *err = *why;
            return SPATE_FAIL;
        }
        const int64_t left = timeout_ms > 0 ? deadline - spate_clock_ms() : 0;
        if (left <= 0)
            return SPATE_AGAIN;
        if (poll(&fd, 1, (int)left) < 0 && errno == EINTR)
            return SPATE_AGAIN; /* the caller may want to look at its signals */
    }
}

static int writer_fd(struct spate_writer *base)
{
    const struct writer *w = (struct writer *)base;

    return w->steward && !is_volatile(w) ? spate_local_steward_fd(w->steward) : -1;
}

static struct spate_bus_pos writer_end(struct spate_writer *base)
{
    struct writer *w = (struct writer *)base;

    return (struct spate_bus_pos){.at = w->appending ? spate_local_topic_tip(&w->topic) : w->seen};
}

static struct spate_bus_pos writer_durable(struct spate_writer *base)
{
    const struct writer *w = (struct writer *)base;

    return (struct spate_bus_pos){.at = is_volatile(w) ? 0 : watermark(w)};
}

static size_t max_record(struct spate_writer *base)
{
    (void)base;
    return SPATE_LOCAL_SPILL_MOST;
}

static int64_t retention_ms(struct spate_writer *base)
{
    return spate_local_retain_ms(&((struct writer *)base)->topic.manifest);
}

static void close_writer(struct spate_writer *base)
{
    struct writer *w = (struct writer *)base;

    leave(w);
    spate_local_topic_close(&w->topic);
    if (w->lock_fd >= 0)
        close(w->lock_fd); /* and with it the locks */
    free(w->promises);
    free(w);
}

static const struct spate_writer_ops writer_ops = {.publish = publish,
                                                   .poll = poll_writer,
                                                   .fd = writer_fd,
                                                   .end = writer_end,
                                                   .durable = writer_durable,
                                                   .max_record = max_record,
                                                   .retention_ms = retention_ms,
                                                   .close = close_writer};

static enum spate_rc refuse_second(const struct writer *w, struct spate_err *err)
{
    char owner[SPATE_LOCAL_OWNER];

    spate_local_lock_owner(w->lock_fd, owner);
    return spate_fail(
        err, SPATE_RETRY,
        "topic %s of the bus %s has a writer already: %s; a topic has one, so stop that one or wait "
        "until it ends",
        w->topic.name, w->topic.place->path, owner);
}

/* The topic, alone or together, and a slot. */
static enum spate_rc take_locks(struct writer *w, struct spate_err *err)
{
    enum spate_rc rc = spate_local_lock_open(w->topic.durable_fd, &w->lock_fd, err);

    if (rc == SPATE_OK)
        rc = is_shared(w)
                 ? spate_local_lock_wait(w->lock_fd, SPATE_LOCAL_LOCK_TOPIC, SPATE_LOCAL_LOCK_TOGETHER,
                                         OPEN_WAIT_MS, err)
                 : spate_local_lock_try(w->lock_fd, SPATE_LOCAL_LOCK_TOPIC, SPATE_LOCAL_LOCK_ALONE, err);
    if (rc == SPATE_AGAIN)
        return refuse_second(w, err);
    if (rc == SPATE_OK && is_shared(w)) {
        rc = spate_local_lock_slot(w->lock_fd, &w->slot, err);
        if (rc == SPATE_AGAIN)
            return spate_fail(err, SPATE_RETRY,
                              "topic %s of the bus %s has %d writers, as many as there can be; stop one, or "
                              "wait until one ends",
                              w->topic.name, w->topic.place->path, SPATE_LOCAL_WRITERS - 1);
    }
    if (rc == SPATE_OK)
        spate_local_lock_sign(w->lock_fd, w->slot);
    return rc;
}

static struct spate_local_repair as_us(const struct writer *w)
{
    return (struct spate_local_repair){.lock_fd = w->lock_fd,
                                       .hot_fd = w->topic.hot_fd,
                                       .spill_fd = spate_local_spill_dir(&w->topic),
                                       .slot = w->slot,
                                       .gen = w->gen,
                                       .alone = !is_shared(w)};
}

/* The slot is ours in this ctl: what a former owner of it left open is a dead writer's from now on, though
 * the slot's lock is held again (L16). Before anything is waited for, or it waits for us. */
static void take_slot(struct writer *w)
{
    if (w->gen != 0 && atomic_load(&w->topic.ctl->writers[w->slot].gen) == w->gen)
        return;
    w->gen = 1 + atomic_fetch_add(&w->topic.ctl->writers[w->slot].gen, 1);
    atomic_store(&w->topic.ctl->writers[w->slot].pid, (uint32_t)getpid());
}

static enum spate_rc no_room(const struct writer *w, struct spate_err *err)
{
    return spate_fail(
        err, SPATE_RETRY,
        "the disk below %s is full: what topic %s holds cannot be made durable; make room there",
        w->topic.place->path, w->topic.name);
}

/* With the steward's lock: makes sure that what is mapped is the log that others see, recovers it if need be,
 * settles what killed processes left, and makes all of it durable. */
static enum spate_rc take_over(struct writer *w, struct spate_err *err)
{
    enum spate_rc rc = spate_local_topic_found(&w->topic, w->flags, err);

    if (rc == SPATE_OK)
        rc = spate_local_retain_rule(&w->topic, w->flags, err);
    if (rc == SPATE_OK)
        rc = spate_local_topic_attach(&w->topic, true, err);
    if (rc == SPATE_END || (rc == SPATE_OK && !spate_local_topic_whole(&w->topic)))
        rc = spate_local_recover(&w->topic, err);
    if (rc != SPATE_OK)
        return rc;
    take_slot(w);
    spate_local_segment_sweep(w->topic.hot_fd);
    spate_local_segment_sweep(w->topic.durable_fd);
    const struct spate_local_repair as = as_us(w);
    rc = SPATE_BROKEN(KEEP_CLAIM) ? SPATE_OK : spate_local_steward_settle(&w->topic, &as, err);
    if (rc == SPATE_OK)
        rc = spate_local_topic_promise(&w->topic, err);
    /* What a holder stopped stays so until the steward has looked: not a segment more at each restart. */
    if (rc == SPATE_OK)
        spate_local_topic_gate(&w->topic, atomic_load(&w->topic.ctl->gate_why) == SPATE_LOCAL_GATE_HOLD);
    return rc == SPATE_AGAIN ? no_room(w, err) : rc;
}

static uint64_t reached(const struct writer *w)
{
    return atomic_load(is_volatile(w) ? &w->topic.ctl->settled : &w->topic.ctl->durable);
}

/* Another writer's steward works: attaches beside it, and waits until it has passed all that is there now, so
 * that no claim of a former owner of our slot is open when it is used (L16). */
static enum spate_rc join(struct writer *w, int64_t deadline, struct spate_err *err)
{
    char owner[SPATE_LOCAL_OWNER];
    uint64_t upto;
    enum spate_rc rc = spate_local_topic_attach(&w->topic, true, err);

    if (rc == SPATE_OK)
        rc = spate_local_topic_found(&w->topic, w->flags & ~(unsigned)SPATE_TOPIC_CREATE, err);
    if (rc != SPATE_OK)
        return rc == SPATE_END || err->verdict == SPATE_RETRY ? SPATE_AGAIN : rc;
    take_slot(w);
    for (upto = spate_local_topic_tip(&w->topic); reached(w) < upto && !SPATE_BROKEN(KEEP_CLAIM);
         nanosleep(&(struct timespec){.tv_nsec = OPEN_NAP_MS * 1000000L}, NULL)) {
        if (!spate_local_lock_alone(w->lock_fd, SPATE_LOCAL_LOCK_STEWARD))
            return SPATE_AGAIN; /* it died, or had nothing more to do: our turn */
        if (spate_clock_ms() < deadline)
            continue;
        spate_local_lock_steward(w->lock_fd, owner);
        return spate_fail(
            err, SPATE_RETRY,
            "what topic %s of the bus %s holds does not become durable: %s keeps its archive, and "
            "does not move; let it go on, or end it",
            w->topic.name, w->topic.place->path, owner);
    }
    return SPATE_OK;
}

/* Everything between having the locks and the first record. */
static enum spate_rc enter(struct writer *w, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + OPEN_WAIT_MS;
    enum spate_rc rc;

    for (;;) {
        rc = spate_local_lock_try(w->lock_fd, SPATE_LOCAL_LOCK_STEWARD, SPATE_LOCAL_LOCK_ALONE, err);
        if (rc == SPATE_OK) {
            spate_local_lock_sign_steward(w->lock_fd);
            rc = take_over(w, err);
            if (is_shared(w))
                spate_local_lock_release(w->lock_fd, SPATE_LOCAL_LOCK_STEWARD);
            break;
        }
        if (rc == SPATE_AGAIN)
            rc = join(w, deadline, err);
        if (rc != SPATE_AGAIN)
            break;
        if (spate_clock_ms() >= deadline)
            return refuse_second(w, err);
        nanosleep(&(struct timespec){.tv_nsec = OPEN_NAP_MS * 1000000L}, NULL);
    }
    if (rc != SPATE_OK)
        return rc;
    const bool tended = is_shared(w) || !is_volatile(w);
    atomic_store(&w->errand.written, 0);
    w->errand.flags = w->flags;
    spate_local_append_init(&w->append, &w->topic, tended ? &w->errand : NULL, w->slot, w->gen);
    w->append.promises = !tended;
    w->append.alone = !is_shared(w);
    w->appending = true;
    rc = spate_local_append_enter(&w->append, err);
    const struct spate_local_repair as = as_us(w);
    if (rc == SPATE_OK && tended)
        rc = spate_local_steward_start(&w->topic, &as, !is_shared(w), &w->errand, &w->steward, err);
    if (rc != SPATE_OK)
        leave(w); /* not half of it: nothing would ever be durable */
    return rc;
}

enum spate_rc spate_local_writer_open(struct spate_bus *base, const char *topic, unsigned flags,
                                      struct spate_writer **writer, struct spate_err *err)
{
    struct spate_local_bus *bus = (struct spate_local_bus *)base;

    if (!spate_local_name_good(topic))
        return spate_fail(
            err, SPATE_FATAL,
            "\"%s\" is no topic name: expected a-z 0-9 . _ - with a letter or digit first, at most %d", topic,
            SPATE_LOCAL_NAME);
    struct writer *w = spate_zalloc(sizeof *w);
    w->base.ops = &writer_ops;
    w->flags = flags;
    w->lock_fd = w->topic.durable_fd = w->topic.hot_fd = -1;
    enum spate_rc rc = spate_local_topic_make(&w->topic, &bus->place, topic,
                                              (flags & SPATE_TOPIC_CREATE) != 0, is_shared(w), err);
    if (rc == SPATE_OK)
        rc = take_locks(w, err);
    if (rc == SPATE_OK)
        rc = enter(w, err);
    if (rc != SPATE_OK) {
        close_writer(&w->base);
        return rc;
    }
    *writer = &w->base;
    return SPATE_OK;
}
