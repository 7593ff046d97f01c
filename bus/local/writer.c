/* bus/local/writer.c - a topic's writer: who owns it, what it has promised, and when that is durable.
 *
 * An owned topic is locked from open to close, and an archiver thread makes it durable. A SHARED topic is
 * locked for each publish, which archives inline: such topics carry a message now and then. */
#include "bus/local/append.h"
#include "bus/local/archiver.h"
#include "bus/local/bell.h"
#include "bus/local/local.h"
#include "bus/local/lock.h"
#include "bus/local/recovery.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TOKENS_MOST    65536 /* acknowledgements outstanding; 16 bytes each */
#define SHARED_WAIT_MS 200   /* for the lock of a shared topic; a stopped holder must not stop us */
#define OPEN_WAIT_MS   5000

struct promise {
    uint64_t end; /* durable once the watermark reaches it */
    uint64_t token;
};

struct writer {
    struct spate_writer base;
    struct spate_local_topic topic;
    unsigned flags;
    int lock_fd;
    struct spate_local_append append;
    bool appending;                        /* append is initialised */
    struct spate_local_archiver *archiver; /* of an owned, durable topic */
    struct promise *promises;              /* ring of promise_cap, in the order of publishing */
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

static void stop_appending(struct writer *w)
{
    if (w->appending)
        spate_local_append_fini(&w->append);
    w->appending = false;
}

/* With the lock held: makes sure that what is mapped is the log that others see, recovers it if need be, and
 * settles what a killed process left. SPATE_AGAIN: no room for a segment. */
static enum spate_rc catch_up(struct writer *w, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (int attempt = 0; attempt < 2; attempt++) {
        if (!spate_local_topic_current(&w->topic)) {
            stop_appending(w);
            rc = spate_local_topic_attach(&w->topic, true, err);
            if (rc == SPATE_END)
                rc = spate_local_recover(&w->topic, err);
            if (rc != SPATE_OK)
                return rc;
        }
        if (!w->appending) {
            spate_local_append_init(&w->append, &w->topic);
            w->appending = true;
        }
        rc = spate_local_append_settle(&w->append, err);
        if (rc != SPATE_END)
            return rc;
        /* ctl names a segment that is not there: somebody removed it. What was durable is in the archive. */
        stop_appending(w);
        rc = spate_local_recover(&w->topic, err);
        if (rc != SPATE_OK)
            return rc;
    }
    return spate_fail(err, SPATE_RETRY, "the hot tier of topic %s vanishes while it is made", w->topic.name);
}

/* With the lock held and no archiver running: archives all that is final. */
static enum spate_rc drain(struct writer *w, struct spate_err *err)
{
    struct spate_local_archive archive;
    enum spate_rc rc;
    bool moved = false;

    if (is_volatile(w))
        return SPATE_OK;
    spate_local_archive_init(&archive, &w->topic);
    while ((rc = spate_local_archive_step(&archive, err)) == SPATE_OK)
        moved = true;
    spate_local_archive_fini(&archive);
    if (moved)
        spate_local_bell_ring(&w->topic.bell->durable);
    return rc == SPATE_END ? SPATE_OK : rc;
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

static enum spate_rc publish(struct spate_writer *base, const struct spate_record *records, size_t count,
                             size_t *taken, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;
    enum spate_rc rc;

    *taken = 0;
    if (!is_shared(w)) {
        const struct spate_err *why = w->archiver ? spate_local_archiver_error(w->archiver) : NULL;
        if (why) {
            *err = *why;
            return SPATE_FAIL;
        }
        return append_all(w, records, count, taken, err);
    }
    rc = spate_local_lock_wait(w->lock_fd, SHARED_WAIT_MS, err);
    if (rc != SPATE_OK)
        return rc;
    rc = catch_up(w, err);
    if (rc == SPATE_OK)
        rc = append_all(w, records, count, taken, err);
    if (rc != SPATE_FAIL) {
        const enum spate_rc drained = drain(w, err);
        if (drained == SPATE_FAIL) /* taken, but not durable: the next poll tries again */
            rc = *taken == count ? SPATE_OK : SPATE_AGAIN;
    }
    spate_local_lock_release(w->lock_fd);
    return rc;
}

static uint64_t watermark(const struct writer *w)
{
    /* Detached only after a failure on a shared topic, until the next publish. */
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

static enum spate_rc poll_owned(struct writer *w, int timeout_ms, spate_durable_fn *durable, void *arg,
                                struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + timeout_ms;
    struct pollfd fd = {.fd = spate_local_archiver_fd(w->archiver), .events = POLLIN};

    for (;;) {
        const struct spate_err *why = spate_local_archiver_error(w->archiver);
        spate_local_archiver_clear(w->archiver);
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

/* Nobody archives a shared topic but those who publish on it. */
static enum spate_rc poll_shared(struct writer *w, int timeout_ms, spate_durable_fn *durable, void *arg,
                                 struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    for (;;) {
        enum spate_rc rc = deliver(w, durable, arg);
        if (rc == SPATE_OK || is_volatile(w))
            return rc;
        if (w->promise_count > 0) {
            rc = spate_local_lock_wait(w->lock_fd, 0, err);
            if (rc == SPATE_OK) {
                rc = catch_up(w, err);
                if (rc != SPATE_FAIL)
                    rc = drain(w, err);
                spate_local_lock_release(w->lock_fd);
            }
            if (rc == SPATE_FAIL)
                return rc;
            if (deliver(w, durable, arg) == SPATE_OK)
                return SPATE_OK;
        }
        const int64_t left = timeout_ms > 0 ? deadline - spate_clock_ms() : 0;
        if (left <= 0)
            return SPATE_AGAIN;
        nanosleep(&(struct timespec){.tv_nsec = (left < 20 ? left : 20) * 1000000L}, NULL);
    }
}

static enum spate_rc poll_writer(struct spate_writer *base, int timeout_ms, spate_durable_fn *durable,
                                 void *arg, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;

    if (w->archiver)
        return poll_owned(w, timeout_ms, durable, arg, err);
    if (is_shared(w))
        return poll_shared(w, timeout_ms, durable, arg, err);
    if (timeout_ms > 0) /* owned and volatile: nothing ever comes */
        poll(NULL, 0, timeout_ms);
    return SPATE_AGAIN;
}

static int writer_fd(struct spate_writer *base)
{
    const struct writer *w = (struct writer *)base;

    return w->archiver ? spate_local_archiver_fd(w->archiver) : -1;
}

static struct spate_bus_pos writer_end(struct spate_writer *base)
{
    struct writer *w = (struct writer *)base;

    if (!w->appending)
        return (struct spate_bus_pos){.at = w->seen};
    if (is_shared(w)) { /* others may have gone on */
        const uint64_t head = atomic_load(&w->topic.ctl->head);
        struct spate_local_segment seg;
        struct spate_err ignored = {.verdict = SPATE_RETRY};
        if (head > w->append.seg.base &&
            spate_local_segment_map(w->topic.hot_fd, head, w->topic.manifest.cap, SPATE_LOCAL_MAP_READ, &seg,
                                    &ignored) == SPATE_OK) {
            const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&seg)->tail));
            spate_local_segment_unmap(&seg);
            return (struct spate_bus_pos){.at = head + (tail < seg.cap ? tail : seg.cap)};
        }
    }
    return (struct spate_bus_pos){.at = spate_local_append_end(&w->append)};
}

static struct spate_bus_pos writer_durable(struct spate_writer *base)
{
    const struct writer *w = (struct writer *)base;

    return (struct spate_bus_pos){.at = is_volatile(w) ? 0 : watermark(w)};
}

static size_t max_record(struct spate_writer *base)
{
    return ((struct writer *)base)->append.max_record;
}

static int64_t retention_ms(struct spate_writer *base)
{
    (void)base;
    return INT64_MAX;
}

static void close_writer(struct spate_writer *base)
{
    struct writer *w = (struct writer *)base;

    spate_local_archiver_stop(w->archiver);
    stop_appending(w);
    spate_local_topic_close(&w->topic);
    if (w->lock_fd >= 0)
        close(w->lock_fd); /* and with it the lock */
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

static enum spate_rc take_lock(struct writer *w, struct spate_err *err)
{
    char owner[SPATE_LOCAL_OWNER];
    enum spate_rc rc = spate_local_lock_open(w->topic.durable_fd, &w->lock_fd, err);

    if (rc == SPATE_OK)
        rc = is_shared(w) ? spate_local_lock_wait(w->lock_fd, OPEN_WAIT_MS, err)
                          : spate_local_lock_try(w->lock_fd, err);
    if (rc == SPATE_OK)
        spate_local_lock_sign(w->lock_fd);
    if (rc != SPATE_AGAIN)
        return rc;
    spate_local_lock_owner(w->lock_fd, owner);
    return spate_fail(
        err, SPATE_RETRY,
        "topic %s of the bus %s has a writer already: %s; a topic has one, so stop that one or wait "
        "until it ends",
        w->topic.name, w->topic.place->path, owner);
}

/* Everything between having the lock and the first record. */
static enum spate_rc begin(struct writer *w, struct spate_err *err)
{
    enum spate_rc rc =
        spate_local_topic_found(&w->topic, (w->flags & SPATE_TOPIC_CREATE) != 0, is_volatile(w), err);

    if (rc != SPATE_OK)
        return rc;
    rc = catch_up(w, err);
    if (rc == SPATE_AGAIN &&
        (rc = drain(w, err)) == SPATE_OK) /* a predecessor died far ahead of its archiver */
        rc = catch_up(w, err);
    if (rc == SPATE_AGAIN)
        return spate_fail(err, SPATE_RETRY,
                          "the hot file system has no room for the next segment of topic %s (%" PRIu64
                          " bytes); enlarge it (docker: --shm-size), or set bus.local.hot",
                          w->topic.name, w->topic.manifest.cap);
    if (rc != SPATE_OK)
        return rc;
    spate_local_segment_sweep(w->topic.hot_fd);
    spate_local_segment_sweep(w->topic.durable_fd);
    rc = drain(w, err);
    if (rc == SPATE_AGAIN)
        return spate_fail(
            err, SPATE_RETRY,
            "the disk below %s is full: what topic %s holds cannot be made durable; make room there",
            w->topic.place->path, w->topic.name);
    if (rc == SPATE_OK && !is_shared(w) && !is_volatile(w))
        rc = spate_local_archiver_start(&w->topic, &w->archiver, err);
    w->append.archiver = w->archiver;
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
        rc = take_lock(w, err);
    if (rc == SPATE_OK)
        rc = begin(w, err);
    if (rc != SPATE_OK) {
        close_writer(&w->base);
        return rc;
    }
    if (is_shared(w))
        spate_local_lock_release(w->lock_fd);
    *writer = &w->base;
    return SPATE_OK;
}
