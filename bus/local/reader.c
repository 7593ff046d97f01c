/* bus/local/reader.c - a topic's reader: messages in place, sleeping, seeking. */
#include "bus/local/broken.h"
#include "bus/local/cursor.h"
#include "bus/local/idle.h"
#include "bus/local/local.h"
#include "bus/local/named.h"
#include "bus/local/recovery.h"
#include "bus/local/spill.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct reader {
    struct spate_reader base;
    struct spate_local_cursor at;
    struct spate_local_idle idle;
    uint64_t records; /* that were read */
    struct spate_local_named named;
    uint64_t named_records; /* of `records`, those that its mark counts */
    bool failed;            /* wait met an error that the next call of next reports */
    struct spate_err err;
    struct spate_local_spill_view spill; /* the value of the last message, where it had a file of its own */
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

/* A value with a file of its own. SPATE_END: retention took it meanwhile, and there is a gap to report.
 * SPATE_AGAIN: a recovery took it, of a log that is another one now; the cursor stands there. */
static enum spate_rc map_spill(struct reader *r, const struct spate_local_record *record, uint32_t len,
                               struct spate_err *err)
{
    enum spate_rc rc = spate_local_spill_map(&r->at.topic, r->at.pos, record, len, &r->spill, err);

    if (rc != SPATE_END)
        return rc;
    rc = spate_local_cursor_lose(&r->at, err);
    if (rc != SPATE_END)
        return rc == SPATE_OK ? SPATE_END : rc;
    if (r->at.topic.ctl && !spate_local_topic_current(&r->at.topic)) {
        r->at.looked_ms = 0;
        rc = spate_local_cursor_renew(&r->at, err);
        return rc == SPATE_OK ? SPATE_AGAIN : rc;
    }
    return spate_fail(err, SPATE_FATAL,
                      "the log of topic %s is damaged at position %016" PRIx64 ": its spill file %016" PRIx64
                      ".spill below %s is gone: restore it from a copy, or begin anew behind it",
                      r->at.topic.name, r->at.pos, r->at.pos, r->at.topic.place->path);
}

static void tell_gap(struct reader *r, struct spate_message *message)
{
    *message = (struct spate_message){
        .kind = SPATE_MESSAGE_GAP, .pos = {.at = r->at.gap}, .next = {.at = r->at.pos}};
    r->at.gap = 0;
}

/* Everything but the value. */
static inline void show(struct reader *r, const struct spate_local_record *record, uint32_t len,
                        uint32_t keylen, struct spate_message *message)
{
    message->kind = SPATE_MESSAGE_RECORD;
    message->pos.at = r->at.pos;
    r->at.pos += spate_local_footprint(len);
    r->at.target = r->at.pos;
    r->records++;
    message->next.at = r->at.pos;
    message->ts_us = (int64_t)record->ts_ns / 1000;
    message->key = spate_slice((const char *)record->payload, keylen);
}

/* Once: whoever may write the segment may change it between a look and its use (L13). */
static inline uint32_t keylen_of(const struct spate_local_record *record, uint32_t len)
{
    const uint16_t said = *(const volatile uint16_t *)&record->keylen;

    return said < len || SPATE_BROKEN(TRUST_LENGTH) ? said : len;
}

static enum spate_rc next_slowly(struct reader *r, struct spate_message *message, struct spate_err *err)
{
    struct spate_local_record *record = NULL;
    uint32_t len = 0;

    if (r->spill.at && spate_local_spill_unmap(&r->at.topic, &r->spill, err) != SPATE_OK)
        return SPATE_FAIL;
    if (r->failed) {
        r->failed = false;
        *err = r->err;
        return SPATE_FAIL;
    }
    enum spate_rc rc = r->at.gap ? SPATE_OK : look(r, &record, &len, err);
    if (rc != SPATE_OK)
        return rc;
    if (r->at.gap) {
        tell_gap(r, message);
        return SPATE_OK;
    }
    const uint32_t keylen = keylen_of(record, len);
    if (record->type != SPATE_LOCAL_DATA) {
        rc = map_spill(r, record, len, err);
        if (rc == SPATE_AGAIN)
            return next_slowly(r, message, err);
        if (rc == SPATE_END)
            tell_gap(r, message);
        if (rc != SPATE_OK)
            return rc == SPATE_END ? SPATE_OK : rc;
        message->value = spate_slice(r->spill.at, r->spill.len);
    } else {
        message->value = spate_slice((const char *)record->payload + keylen, len - keylen);
    }
    show(r, record, len, keylen, message);
    return SPATE_OK;
}

static enum spate_rc next(struct spate_reader *base, struct spate_message *message, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    uint32_t len;
    const struct spate_local_record *record = spate_local_cursor_quick(&r->at, &len);

    if (!record || r->spill.at)
        return next_slowly(r, message, err);
    const uint32_t keylen = keylen_of(record, len);
    message->value = spate_slice((const char *)record->payload + keylen, len - keylen);
    show(r, record, len, keylen, message);
    return SPATE_OK;
}

static bool ready(struct reader *r)
{
    struct spate_local_record *record;
    uint32_t len;

    if (spate_local_cursor_quick(&r->at, &len) || r->at.gap || r->failed)
        return true;
    const enum spate_rc rc = look(r, &record, &len, &r->err);
    r->failed = rc == SPATE_FAIL;
    return rc != SPATE_AGAIN;
}

static bool ready_of(void *arg)
{
    return ready(arg);
}

/* Nobody rings for a detached reader, or one that may not write the bell page. */
static bool poll_alone(struct reader *r, int64_t deadline)
{
    const long most = r->at.topic.ctl ? 1 : SPATE_LOCAL_LOOK_MS;
    const int64_t left = deadline - spate_clock_ms();

    nanosleep(&(struct timespec){.tv_nsec = (left < most ? (long)left : most) * 1000000L}, NULL);
    return ready(r);
}

static enum spate_rc wait_reader(struct spate_reader *base, int timeout_ms, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    const int64_t deadline = timeout_ms > 0 ? spate_clock_ms() + timeout_ms : 0;

    (void)err; /* what goes wrong here is kept for next(), which has to be called anyway */
    if (ready(r))
        return SPATE_OK;
    if (r->named.at)
        spate_local_named_waits(&r->named, r->at.pos, spate_clock_ms());
    while (timeout_ms > 0 && spate_clock_ms() < deadline) {
        const struct spate_local_idle_for what = {.bell = &r->at.topic.bell,
                                                  .durable = r->at.see == SPATE_SEE_DURABLE,
                                                  .records = r->records,
                                                  .ready = ready_of,
                                                  .arg = r};
        if (!r->at.topic.ctl || !r->at.topic.bell) {
            if (poll_alone(r, deadline))
                return SPATE_OK;
            continue;
        }
        if (spate_local_idle_wait(&r->idle, &what, deadline))
            return SPATE_OK;
    }
    return SPATE_AGAIN;
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
    const uint64_t at = spate_local_scan(&seg, 0, -1, &ended);
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

static enum spate_rc enlist(struct spate_reader *base, const char *name, bool hold, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    const struct spate_local_topic *topic = &r->at.topic;

    if (hold && topic->manifest.is_volatile)
        return spate_fail(err, SPATE_FATAL,
                          "topic %s is volatile: nothing is kept of it, so nothing can be held", topic->name);
    spate_local_named_leave(&r->named);
    r->named_records = r->records;
    return spate_local_named_enlist(&r->named, topic->place, name, topic->name, topic->manifest.log_id, hold,
                                    r->at.target > r->at.pos ? r->at.target : r->at.pos, err);
}

static void passed(struct spate_reader *base, struct spate_bus_pos pos)
{
    struct reader *r = (struct reader *)base;

    spate_local_named_passed(&r->named, pos.at, r->records - r->named_records);
    r->named_records = r->records;
}

static void close_reader(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    spate_local_named_leave(&r->named);
    if (spate_local_spill_unmap(&r->at.topic, &r->spill, &ignored) != SPATE_OK)
        spate_log_err(SPATE_LOG_WARN, "bus-value-cut", &ignored);
    spate_local_cursor_fini(&r->at);
    free(r);
}

static const struct spate_reader_ops reader_ops = {.next = next,
                                                   .wait = wait_reader,
                                                   .seek = seek,
                                                   .back = back,
                                                   .end = end,
                                                   .log_id = log_id,
                                                   .enlist = enlist,
                                                   .passed = passed,
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
    r->named.fd = -1;
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
