/* bus/local/reader.c - a topic's reader: messages in place, sleeping, seeking. */
#include "bus/local/bell.h"
#include "bus/local/cursor.h"
#include "bus/local/local.h"
#include "bus/local/recovery.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DENSE_US 500 /* sleeps that end closer than this: the next record is near */
#define YIELD_US 20

struct reader {
    struct spate_reader base;
    struct spate_local_cursor at;
    int64_t woke_us, woke_before_us;
    bool failed; /* wait met an error that the next call of next reports */
    struct spate_err err;
};

/* The next record, in a new generation of the log if there is one: who never waits must notice as well. */
static enum spate_rc look(struct reader *r, struct spate_local_record **record, uint32_t *len,
                          struct spate_err *err)
{
    enum spate_rc rc;

    while ((rc = spate_local_cursor_find(&r->at, record, len, err)) == SPATE_AGAIN &&
           (rc = spate_local_cursor_renew(&r->at, err)) == SPATE_OK)
        ;
    return rc;
}

static enum spate_rc next(struct spate_reader *base, struct spate_message *message, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    struct spate_local_record *record = NULL;
    uint32_t len = 0;

    if (r->failed) {
        r->failed = false;
        *err = r->err;
        return SPATE_FAIL;
    }
    enum spate_rc rc = r->at.gap ? SPATE_OK : look(r, &record, &len, err);
    if (rc != SPATE_OK)
        return rc;
    if (r->at.gap) {
        *message = (struct spate_message){
            .kind = SPATE_MESSAGE_GAP, .pos = {.at = r->at.gap}, .next = {.at = r->at.pos}};
        r->at.gap = 0;
        return SPATE_OK;
    }
    const char *payload = (const char *)record->payload;
    message->kind = SPATE_MESSAGE_RECORD;
    message->pos.at = r->at.pos;
    r->at.pos += spate_local_footprint(len);
    r->at.target = r->at.pos;
    message->next.at = r->at.pos;
    message->ts_us = (int64_t)record->ts_ns / 1000;
    message->key = spate_slice(payload, record->keylen);
    message->value = spate_slice(payload + record->keylen, len - record->keylen);
    return SPATE_OK;
}

static bool ready(struct reader *r)
{
    struct spate_local_record *record;
    uint32_t len;

    if (r->at.gap || r->failed)
        return true;
    const enum spate_rc rc = look(r, &record, &len, &r->err);
    r->failed = rc == SPATE_FAIL;
    return rc != SPATE_AGAIN;
}

/* Between sleeps in dense traffic it is cheaper for everybody to give the processor away than to sleep. */
static bool soon(struct reader *r)
{
    const int64_t now = spate_clock_us();

    if (r->woke_us - r->woke_before_us > DENSE_US || now - r->woke_us > DENSE_US)
        return false;
    do {
        sched_yield();
        if (ready(r))
            return true;
    } while (spate_clock_us() - now < YIELD_US);
    return false;
}

static enum spate_rc sleep_attached(struct reader *r, int left_ms)
{
    struct spate_local_doorbell *door =
        r->at.see == SPATE_SEE_DURABLE ? &r->at.topic.bell->durable : &r->at.topic.bell->tip;
    const uint32_t ticket = spate_local_bell_prepare(door);

    if (ready(r))
        return SPATE_OK;
    spate_local_bell_sleep(door, ticket, left_ms);
    r->woke_before_us = r->woke_us;
    r->woke_us = spate_clock_us();
    return ready(r) ? SPATE_OK : SPATE_AGAIN;
}

static enum spate_rc wait_reader(struct spate_reader *base, int timeout_ms, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    (void)err; /* what goes wrong here is kept for next(), which has to be called anyway */
    if (ready(r))
        return SPATE_OK;
    if (timeout_ms > 0 && r->at.topic.bell && soon(r))
        return SPATE_OK;
    for (;;) {
        const int64_t left = deadline - spate_clock_ms();
        if (timeout_ms <= 0 || left <= 0)
            return SPATE_AGAIN;
        if (r->at.topic.ctl && r->at.topic.bell) {
            if (sleep_attached(r, (int)left) == SPATE_OK)
                return SPATE_OK;
        } else { /* nobody rings for a detached reader, or one that may not write the bell page */
            const long ms = left < SPATE_LOCAL_LOOK_MS ? (long)left
                            : r->at.topic.ctl          ? 1
                                                       : SPATE_LOCAL_LOOK_MS;
            nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
            if (ready(r))
                return SPATE_OK;
        }
    }
}

/* The end of what is committed or claimed in the head segment. */
static uint64_t tip(const struct reader *r)
{
    struct spate_local_segment seg;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    const uint64_t head = atomic_load(&r->at.topic.ctl->head);

    if (spate_local_segment_map(r->at.topic.hot_fd, head, r->at.topic.manifest.cap, SPATE_LOCAL_MAP_READ,
                                &seg, &ignored) != SPATE_OK)
        return atomic_load(&r->at.topic.ctl->durable);
    const uint64_t bytes = spate_local_tail_bytes(atomic_load(&spate_local_header(&seg)->tail));
    spate_local_segment_unmap(&seg);
    return head + (bytes < seg.cap ? bytes : seg.cap);
}

static uint64_t archive_end(const struct reader *r)
{
    struct spate_local_segment seg;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    const uint64_t cap = r->at.topic.manifest.cap;
    uint64_t base, next_base = 0;
    bool ended;

    if (spate_local_segment_prev(r->at.topic.durable_fd, UINT64_MAX, &base, &ignored) != SPATE_OK ||
        spate_local_segment_map(r->at.topic.durable_fd, base, cap, SPATE_LOCAL_MAP_ARCHIVE, &seg, &ignored) !=
            SPATE_OK)
        return r->at.topic.manifest.first;
    const uint64_t at = spate_local_scan(&seg, 0, true, &ended);
    uint64_t end = base + at;
    if (ended && at < cap &&
        spate_local_end_next(spate_local_record_at(&seg, at), end, base, cap, &next_base, &ignored) ==
            SPATE_OK)
        end = next_base;
    spate_local_segment_unmap(&seg);
    return end;
}

static struct spate_bus_pos end(struct spate_reader *base)
{
    const struct reader *r = (struct reader *)base;
    uint64_t at;

    if (!r->at.topic.ctl)
        at = archive_end(r);
    else if (r->at.see == SPATE_SEE_DURABLE)
        at = atomic_load(&r->at.topic.ctl->durable);
    else
        at = tip(r);
    return (struct spate_bus_pos){.at = at};
}

static enum spate_rc seek(struct spate_reader *base, struct spate_start start, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;

    (void)err; /* a position that is no record's is found out on the way there */
    r->at.gap = 0;
    r->failed = false;
    if (start.from == SPATE_START_AT)
        spate_local_cursor_stand(&r->at, start.pos.at);
    else if (start.from == SPATE_START_NOW)
        spate_local_cursor_stand(&r->at, end(base).at);
    else
        spate_local_cursor_stand(&r->at, spate_local_cursor_first(&r->at));
    return SPATE_OK;
}

static enum spate_rc back(struct spate_reader *base, struct spate_bus_pos before, struct spate_bus_pos *start,
                          struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    uint64_t hot = 0, archived = 0;
    enum spate_rc rc = SPATE_END;

    /* The archive second: what leaves the hot tier meanwhile is there already. */
    if (r->at.topic.hot_fd >= 0 && r->at.topic.ctl)
        rc = spate_local_segment_prev(r->at.topic.hot_fd, before.at, &hot, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        hot = 0;
    rc = spate_local_segment_prev(r->at.topic.durable_fd, before.at, &archived, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        archived = 0;
    const uint64_t at = hot > archived ? hot : archived;
    if (at == 0 || at < spate_local_cursor_first(&r->at)) /* the first base of a log is above 0 */
        return SPATE_END;
    r->at.gap = 0;
    spate_local_cursor_stand(&r->at, at);
    start->at = at;
    return SPATE_OK;
}

static const char *log_id(struct spate_reader *base)
{
    return ((struct reader *)base)->at.topic.manifest.log_id;
}

static void close_reader(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    spate_local_cursor_fini(&r->at);
    free(r);
}

static const struct spate_reader_ops reader_ops = {.next = next,
                                                   .wait = wait_reader,
                                                   .seek = seek,
                                                   .back = back,
                                                   .end = end,
                                                   .log_id = log_id,
                                                   .close = close_reader};

enum spate_rc spate_local_reader_open(struct spate_bus *base, const char *topic, enum spate_visibility see,
                                      struct spate_start start, struct spate_reader **reader,
                                      struct spate_err *err)
{
    struct spate_local_bus *bus = (struct spate_local_bus *)base;

    if (!spate_local_name_good(topic))
        return spate_fail(err, SPATE_FATAL, "\"%s\" is no topic name", topic);
    struct reader *r = spate_zalloc(sizeof *r);
    r->base.ops = &reader_ops;
    enum spate_rc rc = spate_local_cursor_init(&r->at, &bus->place, topic, see, err);
    err->missing = rc == SPATE_END;
    if (rc == SPATE_END)
        rc =
            spate_fail(err, SPATE_RETRY, "there is no topic %s on the bus %s yet: its writer has not started",
                       topic, bus->place.path);
    else if (rc == SPATE_OK && r->at.topic.manifest.is_volatile && see == SPATE_SEE_DURABLE)
        rc = spate_fail(err, SPATE_FATAL, "topic %s is volatile: nothing on it is ever durable, read its tip",
                        topic);
    if (rc == SPATE_OK)
        rc = seek(&r->base, start, err);
    if (rc != SPATE_OK) {
        close_reader(&r->base);
        return rc;
    }
    *reader = &r->base;
    return SPATE_OK;
}
