/* bus/local/reader.c - reading a log in place, from shared memory where it still is, else from the archive.
 *
 * A reader is attached while the hot tier is valid: ctl tells it how far the log is durable. Otherwise (the
 * machine was restarted and no writer has opened the topic since) it reads what the archive holds: it syncs a
 * segment's file before it believes it, and accepts what a recovery would accept. When the generation changes
 * under it, it stands in the old one at the record it stood at, and goes on where the END leads.
 *
 * A position is only ever entered by walking there from the start of its segment, so that one which is no
 * record's is found out, and nothing is read at a place that a length in a file did not lead to. */
#include "bus/local/bell.h"
#include "bus/local/local.h"
#include "bus/local/lock.h"
#include "bus/local/recovery.h"
#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DETACHED_NAP_MS 20   /* between two looks at an archive that nobody announces */
#define DETACHED_MOST   5000 /* a writer that lives for so long without a hot tier of ours has another one */
#define DENSE_US        500  /* sleeps that end closer than this: the next record is near */
#define YIELD_US        20

struct reader {
    struct spate_reader base;
    struct spate_local_topic topic;
    enum spate_visibility see;
    struct spate_local_segment seg; /* the one that holds pos; none while it does not exist */
    bool archived;                  /* seg is mapped from the archive */
    bool unsynced;                  /* and was entered without a hot tier: not looked through yet */
    uint64_t pos;                   /* the next record to look at */
    uint64_t limit;                 /* nothing at or beyond is shown now */
    uint64_t target;                /* records below are walked over */
    uint64_t gap;                   /* of a gap to report: its first position; 0: none */
    int64_t foreign_ms;             /* since when a writer lives whose hot tier is not ours; 0: no */
    int64_t looked_ms;              /* when a detached reader last looked for more */
    int64_t woke_us, woke_before_us;
    bool failed; /* wait met an error that the next call of next reports */
    struct spate_err err;
};

static void leave(struct reader *r, uint64_t pos)
{
    spate_local_segment_unmap(&r->seg);
    r->pos = pos;
    if (r->target < pos)
        r->target = pos;
}

/* Walks to the record at `target` again, in whatever the log is now. */
static void stand_at(struct reader *r, uint64_t target)
{
    spate_local_segment_unmap(&r->seg);
    r->pos = spate_local_base_of(target, r->topic.manifest.cap);
    r->target = target;
    r->limit = 0;
}

static uint64_t first_kept(const struct reader *r)
{
    const uint64_t said = r->topic.manifest.first;
    const uint64_t now = r->topic.ctl ? atomic_load(&r->topic.ctl->first) : 0;

    return said > now ? said : now;
}

/* Attaches when there is something to attach to. SPATE_OK or SPATE_END: attached or not. */
static enum spate_rc attach(struct reader *r, struct spate_err *err)
{
    const struct spate_local_manifest was = r->topic.manifest;
    const enum spate_rc rc = spate_local_topic_attach(&r->topic, false, err);

    if (rc != SPATE_FAIL &&
        (r->topic.manifest.cap != was.cap || strcmp(r->topic.manifest.log_id, was.log_id) != 0))
        return spate_fail(err, SPATE_FATAL, "the log of topic %s was replaced by another one", r->topic.name);
    return rc;
}

/* A writer lives, but its shared memory is not ours: another container's, or another bus.local.hot. During
 * its recovery that is so for a moment as well. */
static enum spate_rc refuse_foreign(struct reader *r, struct spate_err *err)
{
    char owner[SPATE_LOCAL_OWNER], hot[SPATE_LOCAL_PATH];
    const int fd = openat(r->topic.durable_fd, "writers.lck", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    const bool held = fd >= 0 && spate_local_lock_held(fd);
    enum spate_rc rc = SPATE_AGAIN;

    if (!held)
        r->foreign_ms = 0;
    else if (r->foreign_ms == 0)
        r->foreign_ms = spate_clock_ms();
    else if (spate_clock_ms() - r->foreign_ms > DETACHED_MOST &&
             spate_local_place_hot_path(r->topic.place, hot, err) == SPATE_OK) {
        spate_local_lock_owner(fd, owner);
        rc = spate_fail(
            err, SPATE_RETRY,
            "topic %s is written by %s, but its shared memory is not at %s here: give both processes "
            "the same /dev/shm (docker: --ipc), or set bus.local.hot to a directory that they share",
            r->topic.name, owner, hot);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Without a hot tier: how much of the segment a recovery would accept. Synced first, because what is only in
 * the page cache is not durable. */
static enum spate_rc raise_detached(struct reader *r, struct spate_err *err)
{
    const int64_t now = spate_clock_ms();
    bool ended;

    if (r->seg.at && r->pos >= r->seg.base + r->seg.cap)
        return SPATE_OK; /* full to the last byte: on to the next */
    if (r->seg.at && r->unsynced) {
        r->unsynced = false;
        if (fdatasync(r->seg.fd) != 0)
            return spate_fail(err, SPATE_RETRY, "cannot sync the archive of topic %s below %s: %s",
                              r->topic.name, r->topic.place->path, strerror(errno));
    } else if (now - r->looked_ms < DETACHED_NAP_MS) {
        return SPATE_AGAIN;
    } else {
        r->looked_ms = now;
        const enum spate_rc rc = attach(r, err);
        if (rc == SPATE_OK) {
            r->foreign_ms = 0;
            stand_at(r, r->pos > r->target ? r->pos : r->target);
        }
        return rc == SPATE_END ? refuse_foreign(r, err) : rc;
    }
    spate_local_segment_look(&r->seg);
    const uint64_t sound = spate_local_scan(&r->seg, 0, true, &ended);
    r->limit = r->seg.base + sound + (ended && sound < r->seg.cap ? SPATE_LOCAL_UNIT : 0);
    return r->pos < r->limit ? SPATE_OK : SPATE_AGAIN;
}

/* Renews the limit. SPATE_AGAIN: pos is still at it. */
static enum spate_rc raise_limit(struct reader *r, struct spate_err *err)
{
    if (!r->topic.ctl)
        return raise_detached(r, err);
    /* What the archive holds of this generation is below the watermark, in older ones below their END. */
    if (r->see == SPATE_SEE_TIP && !(r->seg.at && r->archived))
        r->limit = UINT64_MAX;
    else
        r->limit = atomic_load_explicit(&r->topic.ctl->durable, memory_order_seq_cst);
    return r->pos < r->limit ? SPATE_OK : SPATE_AGAIN;
}

/* The nearest base at or above `from` in either tier. */
static enum spate_rc nearest(const struct reader *r, uint64_t from, uint64_t *base, struct spate_err *err)
{
    uint64_t hot = UINT64_MAX, archived = UINT64_MAX;
    enum spate_rc rc = SPATE_END;

    /* The hot tier first: what leaves it meanwhile is in the archive already. */
    if (r->topic.hot_fd >= 0)
        rc = spate_local_segment_next(r->topic.hot_fd, from, &hot, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        hot = UINT64_MAX;
    rc = spate_local_segment_next(r->topic.durable_fd, from, &archived, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        archived = UINT64_MAX;
    *base = hot < archived ? hot : archived;
    return *base == UINT64_MAX ? SPATE_END : SPATE_OK;
}

/* Maps the segment that holds pos. SPATE_AGAIN: it does not exist (yet). May move pos: past bases that never
 * came to be, or, with a gap to report, to the oldest that is kept. */
static enum spate_rc enter(struct reader *r, struct spate_err *err)
{
    const uint64_t cap = r->topic.manifest.cap, base = spate_local_base_of(r->pos, cap);
    uint64_t other;
    enum spate_rc rc = SPATE_END;

    if (r->topic.hot_fd >= 0 && r->topic.ctl)
        rc = spate_local_segment_map(r->topic.hot_fd, base, cap, SPATE_LOCAL_MAP_READ, &r->seg, err);
    r->archived = rc == SPATE_END;
    if (rc == SPATE_END)
        rc = spate_local_segment_map(r->topic.durable_fd, base, cap, SPATE_LOCAL_MAP_ARCHIVE, &r->seg, err);
    if (rc == SPATE_OK) {
        if (r->archived)
            r->limit = 0;
        r->unsynced = !r->topic.ctl;
        return SPATE_OK;
    }
    if (rc == SPATE_FAIL)
        return spate_err_context(err, "topic %s below %s", r->topic.name, r->topic.place->path);
    const uint64_t first = first_kept(r);
    if (r->pos < first) {
        r->gap = r->target > r->pos ? r->target : r->pos;
        if (r->gap >= first)
            r->gap = 0;
        leave(r, first);
        return SPATE_OK;
    }
    rc = nearest(r, r->pos, &other, err);
    if (rc == SPATE_END)
        return SPATE_AGAIN;
    if (rc == SPATE_OK && other > r->pos)
        leave(r, other);
    return rc;
}

static enum spate_rc damaged(const struct reader *r, struct spate_err *err)
{
    return spate_fail(err, SPATE_FATAL,
                      "the log of topic %s is damaged at position %016" PRIx64 " (%s segment %016" PRIx64
                      " below %s): restore it from a copy, or begin anew behind it",
                      r->topic.name, r->pos, r->archived ? "archive" : "hot", r->seg.base,
                      r->topic.place->path);
}

/* Stands on the next record to show. SPATE_OK with r->gap set: a gap to report first. */
static enum spate_rc find(struct reader *r, struct spate_local_record **found, uint32_t *len,
                          struct spate_err *err)
{
    uint64_t size, next;
    enum spate_rc rc;

    for (;;) {
        if (r->pos >= r->limit && (r->topic.ctl || r->seg.at) && (rc = raise_limit(r, err)) != SPATE_OK)
            return rc;
        if (!r->seg.at) {
            rc = enter(r, err);
            if (rc == SPATE_AGAIN && !r->topic.ctl)
                rc = raise_detached(r, err);
            if (rc != SPATE_OK)
                return rc;
            if (r->gap)
                return SPATE_OK;
            continue;
        }
        const uint64_t offset = r->pos - r->seg.base;
        if (offset >= r->seg.cap) {
            leave(r, r->seg.base + r->seg.cap);
            continue;
        }
        if (r->archived && offset + SPATE_LOCAL_UNIT > r->seg.size) {
            spate_local_segment_look(&r->seg);
            if (offset + SPATE_LOCAL_UNIT > r->seg.size)
                return damaged(r, err); /* shorter than its own watermark */
        }
        struct spate_local_record *record = spate_local_record_at(&r->seg, offset);
        switch (spate_local_step(record, r->seg.size - offset, &size, len)) {
        case SPATE_LOCAL_STEP_OPEN:
            return r->see == SPATE_SEE_TIP && !r->archived ? SPATE_AGAIN : damaged(r, err);
        case SPATE_LOCAL_STEP_PAD:
            r->pos += size;
            continue;
        case SPATE_LOCAL_STEP_END:
            if ((rc = spate_local_end_next(record, r->pos, r->seg.base, r->seg.cap, &next, err)) != SPATE_OK)
                return rc;
            leave(r, next);
            continue;
        case SPATE_LOCAL_STEP_RECORD:
            break;
        default:
            if (r->archived) {
                const uint64_t before = r->seg.size;
                spate_local_segment_look(&r->seg);
                if (r->seg.size > before)
                    continue;
            }
            return damaged(r, err);
        }
        if (r->pos >= r->target) {
            if (r->archived && r->topic.ctl && !spate_local_record_good(record, r->pos, *len))
                return damaged(r, err);
            *found = record;
            return SPATE_OK;
        }
        r->pos += size;
        if (r->pos > r->target)
            return spate_fail(err, SPATE_FATAL,
                              "position %016" PRIx64 " of topic %s is no record's: it was not made "
                              "by this log",
                              r->target, r->topic.name);
    }
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
    const enum spate_rc rc = r->gap ? SPATE_OK : find(r, &record, &len, err);
    if (rc != SPATE_OK)
        return rc;
    if (r->gap) {
        *message =
            (struct spate_message){.kind = SPATE_MESSAGE_GAP, .pos = {.at = r->gap}, .next = {.at = r->pos}};
        r->gap = 0;
        return SPATE_OK;
    }
    const char *payload = (const char *)record->payload;
    message->kind = SPATE_MESSAGE_RECORD;
    message->pos.at = r->pos;
    r->pos += spate_local_footprint(len);
    r->target = r->pos;
    message->next.at = r->pos;
    message->ts_us = (int64_t)record->ts_ns / 1000;
    message->key = spate_slice(payload, record->keylen);
    message->value = spate_slice(payload + record->keylen, len - record->keylen);
    return SPATE_OK;
}

static bool ready(struct reader *r)
{
    struct spate_local_record *record;
    uint32_t len;

    if (r->gap || r->failed)
        return true;
    const enum spate_rc rc = find(r, &record, &len, &r->err);
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
        r->see == SPATE_SEE_DURABLE ? &r->topic.bell->durable : &r->topic.bell->tip;
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

    if (ready(r))
        return SPATE_OK;
    if (timeout_ms > 0 && r->topic.bell && soon(r))
        return SPATE_OK;
    for (;;) {
        const int64_t left = deadline - spate_clock_ms();
        if (timeout_ms <= 0 || left <= 0)
            return SPATE_AGAIN;
        if (r->topic.ctl && r->topic.bell) {
            if (sleep_attached(r, (int)left) == SPATE_OK)
                return SPATE_OK;
        } else { /* nobody rings for a detached reader, or one that may not write the bell page */
            const long ms = left < DETACHED_NAP_MS ? (long)left : r->topic.ctl ? 1 : DETACHED_NAP_MS;
            nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
            if (ready(r))
                return SPATE_OK;
        }
        if (r->topic.ctl && !spate_local_topic_current(&r->topic)) {
            /* Recovered under us, or the shared memory is gone: stand in the new generation, or in the
             * archive. */
            if (attach(r, err) == SPATE_FAIL)
                return SPATE_FAIL;
            stand_at(r, r->pos > r->target ? r->pos : r->target);
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
    const uint64_t head = atomic_load(&r->topic.ctl->head);

    if (spate_local_segment_map(r->topic.hot_fd, head, r->topic.manifest.cap, SPATE_LOCAL_MAP_READ, &seg,
                                &ignored) != SPATE_OK)
        return atomic_load(&r->topic.ctl->durable);
    const uint64_t bytes = spate_local_tail_bytes(atomic_load(&spate_local_header(&seg)->tail));
    spate_local_segment_unmap(&seg);
    return head + (bytes < seg.cap ? bytes : seg.cap);
}

static uint64_t archive_end(const struct reader *r)
{
    struct spate_local_segment seg;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    const uint64_t cap = r->topic.manifest.cap;
    uint64_t base, next_base = 0;
    bool ended;

    if (spate_local_segment_prev(r->topic.durable_fd, UINT64_MAX, &base, &ignored) != SPATE_OK ||
        spate_local_segment_map(r->topic.durable_fd, base, cap, SPATE_LOCAL_MAP_ARCHIVE, &seg, &ignored) !=
            SPATE_OK)
        return r->topic.manifest.first;
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

    if (!r->topic.ctl)
        at = archive_end(r);
    else if (r->see == SPATE_SEE_DURABLE)
        at = atomic_load(&r->topic.ctl->durable);
    else
        at = tip(r);
    return (struct spate_bus_pos){.at = at};
}

static enum spate_rc seek(struct spate_reader *base, struct spate_start start, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;

    (void)err; /* a position that is no record's is found out on the way there */
    r->gap = 0;
    r->failed = false;
    if (start.from == SPATE_START_AT)
        stand_at(r, start.pos.at);
    else if (start.from == SPATE_START_NOW)
        stand_at(r, end(base).at);
    else
        stand_at(r, first_kept(r));
    return SPATE_OK;
}

static enum spate_rc back(struct spate_reader *base, struct spate_bus_pos before, struct spate_bus_pos *start,
                          struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    uint64_t hot = 0, archived = 0;
    enum spate_rc rc = SPATE_END;

    /* The archive second: what leaves the hot tier meanwhile is there already. */
    if (r->topic.hot_fd >= 0 && r->topic.ctl)
        rc = spate_local_segment_prev(r->topic.hot_fd, before.at, &hot, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        hot = 0;
    rc = spate_local_segment_prev(r->topic.durable_fd, before.at, &archived, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        archived = 0;
    const uint64_t at = hot > archived ? hot : archived;
    if (at == 0 || at < first_kept(r)) /* the first base of a log is above 0 */
        return SPATE_END;
    r->gap = 0;
    stand_at(r, at);
    start->at = at;
    return SPATE_OK;
}

static const char *log_id(struct spate_reader *base)
{
    return ((struct reader *)base)->topic.manifest.log_id;
}

static void close_reader(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    spate_local_segment_unmap(&r->seg);
    spate_local_topic_close(&r->topic);
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
    r->see = see;
    r->seg.fd = -1;
    enum spate_rc rc = spate_local_topic_open(&r->topic, &bus->place, topic, err);
    if (rc == SPATE_END)
        rc =
            spate_fail(err, SPATE_RETRY, "there is no topic %s on the bus %s yet: its writer has not started",
                       topic, bus->place.path);
    else if (rc == SPATE_OK && r->topic.manifest.is_volatile && see == SPATE_SEE_DURABLE)
        rc = spate_fail(err, SPATE_FATAL, "topic %s is volatile: nothing on it is ever durable, read its tip",
                        topic);
    if (rc == SPATE_OK && (rc = attach(r, err)) == SPATE_END)
        rc = SPATE_OK; /* nobody writes now: what the archive holds can be read */
    if (rc == SPATE_OK)
        rc = seek(&r->base, start, err);
    if (rc != SPATE_OK) {
        close_reader(&r->base);
        return rc;
    }
    *reader = &r->base;
    return SPATE_OK;
}
