/* bus/local/cursor.c - walking a log through both tiers. */
#include "bus/local/cursor.h"

#include "bus/local/broken.h"
#include "bus/local/lock.h"
#include "bus/local/recovery.h"
#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A writer that lives for so long without a hot tier of ours has another one. */
#define FOREIGN_MOST_MS 5000
/* Between two looks whether the archive is where it was. */
#define PLACE_LOOK_MS 1000

static void leave(struct spate_local_cursor *c, uint64_t pos)
{
    spate_local_segment_unmap(&c->seg);
    c->plain = 0;
    c->pos = pos;
    if (c->target < pos)
        c->target = pos;
}

/* Walks to the record at `target` again, in whatever the log is now. */
void spate_local_cursor_stand(struct spate_local_cursor *c, uint64_t target)
{
    spate_local_segment_unmap(&c->seg);
    c->pos = spate_local_base_of(target, c->topic.manifest.cap);
    c->target = target;
    c->limit = 0;
    c->plain = 0;
}

uint64_t spate_local_cursor_first(const struct spate_local_cursor *c)
{
    const uint64_t said = c->topic.manifest.first;
    const uint64_t now = c->topic.ctl ? atomic_load(&c->topic.ctl->first) : 0;

    return said > now ? said : now;
}

/* Attaches when there is something to attach to. SPATE_OK or SPATE_END: attached or not. */
static enum spate_rc attach(struct spate_local_cursor *c, struct spate_err *err)
{
    const struct spate_local_manifest was = c->topic.manifest;
    const enum spate_rc rc = spate_local_topic_attach(&c->topic, false, err);

    /* Fatal: nothing that this process holds open leads to the log that others see now. */
    if (rc == SPATE_END && spate_local_topic_gone(&c->topic, err) != SPATE_OK)
        return SPATE_FAIL;
    if (rc != SPATE_FAIL &&
        (c->topic.manifest.cap != was.cap || strcmp(c->topic.manifest.log_id, was.log_id) != 0))
        return spate_fail(err, SPATE_FATAL, "the log of topic %s was replaced by another one", c->topic.name);
    return rc;
}

/* A writer lives, but its shared memory is not ours: another container's, or another bus.local.hot. During
 * its recovery that is so for a moment as well. */
static enum spate_rc refuse_foreign(struct spate_local_cursor *c, struct spate_err *err)
{
    char owner[SPATE_LOCAL_OWNER], hot[SPATE_LOCAL_PATH];
    const int fd = openat(c->topic.durable_fd, "writers.lck", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    const bool held = fd >= 0 && spate_local_lock_held(fd, SPATE_LOCAL_LOCK_TOPIC);
    enum spate_rc rc = SPATE_AGAIN;

    if (!held)
        c->foreign_ms = 0;
    else if (c->foreign_ms == 0)
        c->foreign_ms = spate_clock_ms();
    else if (spate_clock_ms() - c->foreign_ms > FOREIGN_MOST_MS &&
             spate_local_place_hot_path(c->topic.place, hot, err) == SPATE_OK) {
        spate_local_lock_owner(fd, owner);
        rc = spate_fail(
            err, SPATE_RETRY,
            "topic %s is written by %s, but its shared memory is not at %s here: give both processes "
            "the same /dev/shm (docker: --ipc), or set bus.local.hot to a directory that they share",
            c->topic.name, owner, hot);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Without a hot tier: how much of the segment a recovery would accept. Synced first, because what is only in
 * the page cache is not durable. */
static enum spate_rc raise_detached(struct spate_local_cursor *c, struct spate_err *err)
{
    const int64_t now = spate_clock_ms();
    bool ended;

    if (c->seg.at && c->pos >= c->seg.base + c->seg.cap)
        return SPATE_OK; /* full to the last byte: on to the next */
    if (c->seg.at && c->unsynced) {
        c->unsynced = false;
        if (fdatasync(c->seg.fd) != 0)
            return spate_fail(err, SPATE_RETRY, "cannot sync the archive of topic %s below %s: %s",
                              c->topic.name, c->topic.place->path, strerror(errno));
    } else if (now - c->looked_ms < SPATE_LOCAL_LOOK_MS) {
        return SPATE_AGAIN;
    } else {
        c->looked_ms = now;
        const enum spate_rc rc = attach(c, err);
        if (rc == SPATE_OK) {
            c->foreign_ms = 0;
            spate_local_cursor_stand(c, c->pos > c->target ? c->pos : c->target);
        }
        return rc == SPATE_END ? refuse_foreign(c, err) : rc;
    }
    spate_local_segment_look(&c->seg);
    const uint64_t sound = spate_local_scan(&c->seg, 0, -1, &ended);
    c->limit = c->seg.base + sound + (ended && sound < c->seg.cap ? SPATE_LOCAL_UNIT : 0);
    return c->pos < c->limit ? SPATE_OK : SPATE_AGAIN;
}

/* Renews the limit. SPATE_AGAIN: pos is still at it. */
static enum spate_rc raise_limit(struct spate_local_cursor *c, struct spate_err *err)
{
    if (!c->topic.ctl)
        return raise_detached(c, err);
    /* What the archive holds of this generation is below the watermark, in older ones below their END. */
    if (c->see == SPATE_SEE_TIP && !(c->seg.at && c->archived))
        c->limit = UINT64_MAX;
    else
        c->limit = atomic_load_explicit(&c->topic.ctl->durable, memory_order_seq_cst);
    return c->pos < c->limit ? SPATE_OK : SPATE_AGAIN;
}

/* The nearest base at or above `from` in either tier. */
static enum spate_rc nearest(const struct spate_local_cursor *c, uint64_t from, uint64_t *base,
                             struct spate_err *err)
{
    uint64_t hot = UINT64_MAX, archived = UINT64_MAX;
    enum spate_rc rc = SPATE_END;

    /* The hot tier first: what leaves it meanwhile is in the archive already. What is past is looked for
     * there alone: in the hot tier it may be a ghost. */
    if (c->topic.hot_fd >= 0 && c->topic.ctl) {
        const uint64_t durable =
            spate_local_base_of(atomic_load(&c->topic.ctl->durable), c->topic.manifest.cap);
        const uint64_t first = spate_local_cursor_first(c), least = durable > first ? durable : first;
        rc = spate_local_segment_next(c->topic.hot_fd, from > least ? from : least, &hot, err);
    }
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        hot = UINT64_MAX;
    rc = spate_local_segment_next(c->topic.durable_fd, from, &archived, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END)
        archived = UINT64_MAX;
    *base = hot < archived ? hot : archived;
    return *base == UINT64_MAX ? SPATE_END : SPATE_OK;
}

/* What lies below `first` is gone: exactly that much is told. */
static void lapped(struct spate_local_cursor *c, uint64_t first)
{
    c->gap = c->target > c->pos ? c->target : c->pos;
    if (c->gap >= first || SPATE_BROKEN(SILENT_GAP))
        c->gap = 0;
    leave(c, first);
}

/* From pos on nothing stands before `other`: bases that never came to be, or what retention took. Of that
 * this cursor may know nothing yet: without a hot tier, or with one that others have replaced meanwhile. */
static enum spate_rc jump(struct spate_local_cursor *c, uint64_t other, struct spate_err *err)
{
    struct spate_local_topic now = c->topic;
    const enum spate_rc rc = spate_local_manifest_read(&now, err);

    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_OK && strcmp(now.manifest.log_id, c->topic.manifest.log_id) == 0 &&
        now.manifest.first > c->pos) {
        c->topic.manifest.first = now.manifest.first;
        lapped(c, now.manifest.first);
    } else {
        leave(c, other);
    }
    return SPATE_OK;
}

/* Does nobody write the segment that ends there any more? Then its file in the hot tier, if there is one, may
 * be a ghost: a writer that was stopped on its way to making it made it anew, empty, after it was archived
 * and removed. */
static bool is_past(const struct spate_local_cursor *c, uint64_t end)
{
    return end <= atomic_load(&c->topic.ctl->first) || end <= atomic_load(&c->topic.ctl->durable);
}

/* SPATE_END: the hot tier does not have it, or it is to be looked for in the archive first. */
static enum spate_rc map_hot(struct spate_local_cursor *c, uint64_t base, struct spate_err *err)
{
    const uint64_t cap = c->topic.manifest.cap;

    if (c->topic.hot_fd < 0 || !c->topic.ctl || is_past(c, base + cap))
        return SPATE_END;
    const enum spate_rc rc =
        spate_local_segment_map(c->topic.hot_fd, base, cap, SPATE_LOCAL_MAP_READ, &c->seg, err);
    if (rc != SPATE_OK || !is_past(c, base + cap))
        return rc;
    spate_local_segment_unmap(&c->seg); /* it came to be past between the look and the mapping */
    return SPATE_END;
}

/* Maps the segment that holds pos. SPATE_AGAIN: it does not exist (yet). May move pos: past bases that never
 * came to be, or, with a gap to report, to the oldest that is kept. */
static enum spate_rc enter(struct spate_local_cursor *c, struct spate_err *err)
{
    const uint64_t cap = c->topic.manifest.cap, base = spate_local_base_of(c->pos, cap);
    uint64_t other;
    enum spate_rc rc = map_hot(c, base, err);

    c->archived = rc == SPATE_END;
    if (rc == SPATE_END)
        rc = spate_local_segment_map(c->topic.durable_fd, base, cap, SPATE_LOCAL_MAP_ARCHIVE, &c->seg, err);
    /* Not in the archive? But no segment of the hot tier before this one, which began at `settled`. */
    if (rc == SPATE_END && c->topic.ctl && c->pos >= spate_local_cursor_first(c) && is_past(c, base + cap) &&
        base >= atomic_load(&c->topic.ctl->settled)) {
        rc = spate_local_segment_map(c->topic.hot_fd, base, cap, SPATE_LOCAL_MAP_READ, &c->seg, err);
        c->archived = rc != SPATE_OK;
    }
    if (rc == SPATE_OK) {
        if (c->archived)
            c->limit = 0;
        c->unsynced = !c->topic.ctl;
        return SPATE_OK;
    }
    if (rc == SPATE_FAIL)
        return spate_err_context(err, "topic %s below %s", c->topic.name, c->topic.place->path);
    const uint64_t first = spate_local_cursor_first(c);
    if (c->pos < first) {
        lapped(c, first);
        return SPATE_OK;
    }
    rc = nearest(c, c->pos, &other, err);
    if (rc == SPATE_OK &&
        c->pos < spate_local_cursor_first(c)) { /* made, filled and gone since the look above */
        lapped(c, spate_local_cursor_first(c));
        return SPATE_OK;
    }
    if (rc == SPATE_END)
        return SPATE_AGAIN;
    if (rc == SPATE_OK && other % cap != 0)
        return spate_fail(err, SPATE_FATAL,
                          "topic %s below %s has segments of %" PRIu64 " bytes, and one at %016" PRIx64
                          "; files were renamed or mixed",
                          c->topic.name, c->topic.place->path, cap, other);
    return rc == SPATE_OK && other > c->pos ? jump(c, other, err) : rc;
}

static enum spate_rc was_cut(const struct spate_local_cursor *c, struct spate_err *err)
{
    if (spate_local_segment_was_cut(&c->seg, c->archived, err) == SPATE_OK)
        return SPATE_OK;
    return spate_err_context(err, "topic %s below %s", c->topic.name, c->topic.place->path);
}

static enum spate_rc damaged(const struct spate_local_cursor *c, struct spate_err *err)
{
    if (!spate_local_segment_whole(&c->seg, c->archived ? -1 : c->topic.hot_fd))
        return was_cut(c, err);
    return spate_fail(err, SPATE_FATAL,
                      "the log of topic %s is damaged at position %016" PRIx64 " (%s segment %016" PRIx64
                      " below %s): restore it from a copy, or begin anew behind it",
                      c->topic.name, c->pos, c->archived ? "archive" : "hot", c->seg.base,
                      c->topic.place->path);
}

/* Before the next call of _find only records that it would show, and nothing that it has to do. */
static void trust(struct spate_local_cursor *c)
{
    const uint64_t end = c->seg.base + c->seg.cap;
    const uint64_t pass = c->seg.base + c->seg.passed + 2 * SPATE_LOCAL_PASS + 1;

    if (c->archived || c->pos < c->target)
        return;
    c->plain = c->limit < end ? c->limit : end;
    c->plain = c->plain < pass ? c->plain : pass;
}

/* Stands on the next record to show. SPATE_OK with c->gap set: a gap to report first. */
enum spate_rc spate_local_cursor_find(struct spate_local_cursor *c, struct spate_local_record **found,
                                      uint32_t *len, struct spate_err *err)
{
    uint64_t size, next;
    enum spate_rc rc;

    c->plain = 0;
    for (;;) {
        if (c->pos >= c->limit && (c->topic.ctl || c->seg.at) && (rc = raise_limit(c, err)) != SPATE_OK)
            return rc;
        if (!c->seg.at) {
            rc = enter(c, err);
            if (rc == SPATE_AGAIN && !c->topic.ctl)
                rc = raise_detached(c, err);
            if (rc != SPATE_OK)
                return rc;
            if (c->gap)
                return SPATE_OK;
            continue;
        }
        const uint64_t offset = c->pos - c->seg.base;
        if (offset >= c->seg.cap) {
            leave(c, c->seg.base + c->seg.cap);
            continue;
        }
        if (c->archived && offset + SPATE_LOCAL_UNIT > c->seg.size) {
            spate_local_segment_look(&c->seg);
            if (offset + SPATE_LOCAL_UNIT > c->seg.size)
                return damaged(c, err); /* shorter than its own watermark */
        }
        spate_local_segment_pass(&c->seg, offset);
        struct spate_local_record *record = spate_local_record_at(&c->seg, offset);
        switch (spate_local_step(record, c->seg.size - offset, &size, len)) {
        case SPATE_LOCAL_STEP_OPEN:
            trust(c);
            if (c->see != SPATE_SEE_TIP || c->archived || spate_local_segment_cut(&c->seg))
                return damaged(c, err);
            if (c->seg.base >= spate_local_cursor_first(c))
                return SPATE_AGAIN;
            /* Forgotten with somebody's claim in it, which nobody repairs any more. */
            lapped(c, spate_local_cursor_first(c));
            if (c->gap)
                return SPATE_OK;
            continue;
        case SPATE_LOCAL_STEP_PAD:
            c->pos += size;
            continue;
        case SPATE_LOCAL_STEP_END:
            if ((rc = spate_local_end_next(record, c->pos, c->seg.base, c->seg.cap, &next, err)) != SPATE_OK)
                return rc;
            leave(c, next);
            continue;
        case SPATE_LOCAL_STEP_RECORD:
            break;
        default:
            if (c->archived) {
                const uint64_t before = c->seg.size;
                spate_local_segment_look(&c->seg);
                if (c->seg.size > before)
                    continue;
            }
            return damaged(c, err);
        }
        if (c->pos >= c->target) {
            if (c->archived && c->topic.ctl && !spate_local_record_good(record, c->pos, *len))
                return damaged(c, err);
            spate_local_record_touch(record, offset, *len);
            if (spate_local_segment_cut(&c->seg))
                return was_cut(c, err);
            trust(c);
            *found = record;
            return SPATE_OK;
        }
        c->pos += size;
        if (c->pos > c->target)
            return spate_fail(err, SPATE_FATAL,
                              "position %016" PRIx64 " of topic %s is no record's: it was not made "
                              "by this log",
                              c->target, c->topic.name);
    }
}

enum spate_rc spate_local_cursor_lose(struct spate_local_cursor *c, struct spate_err *err)
{
    const enum spate_rc rc = c->topic.ctl ? SPATE_OK : spate_local_manifest_read(&c->topic, err);

    if (rc == SPATE_FAIL)
        return rc;
    const uint64_t first = spate_local_cursor_first(c);
    if (c->pos >= first)
        return SPATE_END;
    c->gap = c->pos;
    leave(c, first);
    return SPATE_OK;
}

/* Who spins at the end of the log looks here each time; a few milliseconds more or less do not matter. */
static int64_t coarse_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

enum spate_rc spate_local_cursor_renew(struct spate_local_cursor *c, struct spate_err *err)
{
    const int64_t now = c->topic.ctl ? coarse_ms() : 0;

    if (!c->topic.ctl || now - c->looked_ms < SPATE_LOCAL_LOOK_MS)
        return SPATE_AGAIN; /* a detached one looks by itself */
    c->looked_ms = now;
    if (now - c->placed_ms >= PLACE_LOOK_MS) { /* where nobody writes, nobody else would say so */
        c->placed_ms = now;
        if (spate_local_topic_gone(&c->topic, err) == SPATE_FAIL)
            return SPATE_FAIL;
    }
    if (spate_local_topic_current(&c->topic))
        return c->seg.at && !c->archived && !spate_local_segment_whole(&c->seg, c->topic.hot_fd)
                   ? was_cut(c, err)
                   : SPATE_AGAIN;
    const enum spate_rc rc = attach(c, err);
    if (rc == SPATE_FAIL)
        return rc;
    spate_local_cursor_stand(c, c->pos > c->target ? c->pos : c->target);
    return SPATE_OK;
}

enum spate_rc spate_local_cursor_init(struct spate_local_cursor *c, const struct spate_local_place *place,
                                      const char *topic, enum spate_visibility see, struct spate_err *err)
{
    *c = (struct spate_local_cursor){.see = see, .seg = {.fd = -1}};
    enum spate_rc rc = spate_local_topic_open(&c->topic, place, topic, err);
    if (rc != SPATE_OK)
        return rc;
    rc = attach(c, err);
    return rc == SPATE_END ? SPATE_OK : rc; /* nobody writes now: what the archive holds can be read */
}

void spate_local_cursor_fini(struct spate_local_cursor *c)
{
    spate_local_segment_unmap(&c->seg);
    spate_local_topic_close(&c->topic);
}
