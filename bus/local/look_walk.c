/* bus/local/look_walk.c - one file of a segment, record by record. */
#include "bus/local/look.h"

#include "core/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WINDOW      (UINT64_C(1) << 20)
#define RECORD_MOST (UINT64_C(16) << 20) /* what is longer has a file of its own (bus/local/append.c) */

/* A stretch of the file in memory, beginning on a record's boundary. */
struct window {
    int fd;
    bool archived;
    uint64_t cap; /* of the segment */
    uint64_t at;  /* offset of data in the records */
    uint64_t len, room;
    unsigned char *data; /* owned */
};

/* Brings [offset, offset + len) in, anew when `again`. False: the file is shorter. */
static bool need(struct window *w, uint64_t offset, uint64_t len, bool again)
{
    uint64_t want = len > WINDOW ? len : WINDOW;

    if (!again && offset >= w->at && len <= w->len && offset - w->at <= w->len - len)
        return true;
    if (want > w->cap - offset)
        want = w->cap - offset;
    if (want > w->room) {
        w->data = spate_realloc(w->data, want);
        w->room = want;
    }
    w->at = offset;
    w->len = 0;
    while (w->len < want) {
        const ssize_t got =
            pread(w->fd, w->data + w->len, want - w->len, (off_t)(SPATE_LOCAL_HEADER + offset + w->len));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        w->len += (uint64_t)got;
    }
    return w->len >= len;
}

static struct spate_local_record *record_at(const struct window *w, uint64_t offset)
{
    return (struct spate_local_record *)(void *)(w->data + (offset - w->at));
}

SPATE_PRINTF(2, 3) static void damaged(struct spate_local_walk *walk, const char *fmt, ...)
{
    va_list args;

    walk->end = SPATE_LOCAL_WALK_DAMAGED;
    va_start(args, fmt);
    vsnprintf(walk->damage, sizeof walk->damage, fmt, args);
    va_end(args);
}

/* A record that is being committed while it is read may look torn once, not twice. */
static bool sound(const struct spate_local_seen *seen, struct window *w, uint64_t base, uint64_t offset,
                  uint64_t size, uint32_t len)
{
    const struct spate_local_record *record = record_at(w, offset);

    if ((record->flags & SPATE_LOCAL_UNCHECKED) && seen->topic.manifest.is_volatile)
        return true;
    if (spate_local_record_good(record, base + offset, len))
        return true;
    return need(w, offset, size, true) && spate_local_record_good(record_at(w, offset), base + offset, len);
}

static bool take(const struct spate_local_seen *seen, struct window *w, uint64_t base, uint64_t offset,
                 uint64_t size, uint32_t len, bool crc, struct spate_local_walk *walk)
{
    const struct spate_local_record *record = record_at(w, offset);

    if (size > spate_local_footprint(RECORD_MOST)) { /* and nothing is allocated on its word */
        damaged(walk, "a record of %" PRIu32 " bytes, and none is that long", len);
        return false;
    }
    if (crc) {
        if (!need(w, offset, size, false)) {
            damaged(walk, "the file ends inside a record of %" PRIu32 " bytes", len);
            return false;
        }
        if (!sound(seen, w, base, offset, size, len)) {
            damaged(walk, "a record of %" PRIu32 " bytes does not have its checksum", len);
            return false;
        }
        record = record_at(w, offset);
        if (record->type == SPATE_LOCAL_SPILL &&
            !spate_local_spill_sound(spate_local_spill_dir(&seen->topic), base + offset, record, len, true)) {
            damaged(walk, "the file of its value, %016" PRIx64 ".spill, is missing or damaged",
                    base + offset);
            return false;
        }
    }
    walk->records++;
    walk->indices = (uint64_t)record->idx + 1;
    walk->keyed += record->keylen > 0;
    walk->spills += record->type == SPATE_LOCAL_SPILL;
    walk->bytes += len;
    if (walk->first_ns == 0 || record->ts_ns < walk->first_ns)
        walk->first_ns = record->ts_ns;
    if (record->ts_ns > walk->last_ns)
        walk->last_ns = record->ts_ns;
    return true;
}

static void ended(struct window *w, uint64_t base, uint64_t offset, struct spate_local_walk *walk)
{
    struct spate_err err = {.verdict = SPATE_RETRY};

    walk->end = SPATE_LOCAL_WALK_ENDED;
    if (!need(w, offset, SPATE_LOCAL_UNIT, false))
        damaged(walk, "the file ends inside the segment's END");
    else if (spate_local_end_next(record_at(w, offset), base + offset, base, w->cap, &walk->next, &err) !=
             SPATE_OK)
        damaged(walk, "%s", err.text);
}

static void walk_on(const struct spate_local_seen *seen, struct window *w, uint64_t base, bool crc,
                    struct spate_local_walk *walk)
{
    uint64_t size = 0;
    uint32_t len;

    for (; walk->upto < w->cap; walk->upto += size) {
        const uint64_t at = walk->upto;

        /* The archive's newest file ends where the archiver is; what it has put behind that may be torn. */
        if ((crc && w->archived && seen->hot && base + at >= seen->durable) ||
            !need(w, at, SPATE_LOCAL_RECORD_HEADER, false))
            return;
        switch (spate_local_step(record_at(w, at), w->cap - at, &size, &len)) {
        case SPATE_LOCAL_STEP_RECORD:
            if (!take(seen, w, base, at, size, len, crc, walk))
                return;
            continue;
        case SPATE_LOCAL_STEP_PAD:
            walk->pads++;
            walk->pad_bytes += size;
            continue;
        case SPATE_LOCAL_STEP_END:
            ended(w, base, at, walk);
            return;
        case SPATE_LOCAL_STEP_OPEN:
            return;
        case SPATE_LOCAL_STEP_BAD:
            damaged(walk, "what stands there is no record");
            return;
        }
    }
    walk->end = SPATE_LOCAL_WALK_ENDED; /* full to the last byte */
    walk->next = base + w->cap;
}

enum spate_rc spate_local_look_walk(const struct spate_local_seen *seen, uint64_t base, bool archived,
                                    bool crc, struct spate_local_walk *walk, struct spate_err *err)
{
    const int dir = archived ? seen->topic.durable_fd : seen->topic.hot_fd;
    struct spate_local_segment_header header;
    struct window w = {.fd = -1, .archived = archived, .cap = seen->topic.manifest.cap};
    char name[SPATE_LOCAL_FILE];

    *walk = (struct spate_local_walk){.end = SPATE_LOCAL_WALK_OPEN};
    spate_local_segment_name(base, name);
    w.fd = dir < 0 ? -1 : openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (w.fd < 0)
        return dir < 0 || errno == ENOENT
                   ? SPATE_END
                   : spate_fail(err, SPATE_FATAL, "cannot open the segment %s: %s", name, strerror(errno));
    if (pread(w.fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
        damaged(walk, "the file is shorter than a header");
    else if (spate_local_segment_header_check(&header, base, w.cap, err) != SPATE_OK)
        damaged(walk, "%s", err->text);
    else
        walk_on(seen, &w, base, crc, walk);
    close(w.fd);
    free(w.data);
    if (walk->end == SPATE_LOCAL_WALK_OPEN && base + walk->upto < seen->durable)
        damaged(walk, "nothing stands there, though the log is durable up to %016" PRIx64, seen->durable);
    return SPATE_OK;
}
