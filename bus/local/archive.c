/* bus/local/archive.c - hot tier to disk. */
#include "bus/local/archive.h"

#include "bus/local/place.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GROUP_MOST  (UINT64_C(16) << 20)
#define CHUNK       (UINT64_C(2) << 20) /* handed to the disk while the next one is copied */
#define GROUP_LEAST (UINT64_C(64) << 10)
#define COMPLAIN_MS 10000

int (*spate_local_archive_sync_hook)(int fd);

static int sync_data(int fd)
{
    return spate_local_archive_sync_hook ? spate_local_archive_sync_hook(fd) : fdatasync(fd);
}

/* Removes hot segments that nobody needs: archived, synced, and not the one that is written. Among them those
 * that a frozen writer made anew after they had gone: it will not use them (roll, in append.c). */
static void trim(struct spate_local_archive *a)
{
    const uint64_t done = spate_local_base_of(a->pos, a->cap), head = atomic_load(&a->topic->ctl->head);
    const uint64_t upto = done < head ? done : head;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    uint64_t base;

    if (a->topic->manifest.is_volatile || upto <= a->trimmed)
        return;
    while (spate_local_segment_next(a->topic->hot_fd, 0, &base, &ignored) == SPATE_OK && base < upto)
        if (!spate_local_segment_remove(a->topic->hot_fd, base))
            return;
    a->trimmed = upto;
}

void spate_local_archive_init(struct spate_local_archive *archive, const struct spate_local_topic *topic)
{
    *archive =
        (struct spate_local_archive){.topic = topic,
                                     .cap = topic->manifest.cap,
                                     .pos = topic->manifest.is_volatile ? atomic_load(&topic->ctl->settled)
                                                                        : atomic_load(&topic->ctl->durable),
                                     .group = GROUP_MOST,
                                     .fd = -1};
    const uint64_t distrust = atomic_load(&topic->ctl->distrust);
    archive->distrust = distrust != 0 && distrust == spate_local_base_of(archive->pos, archive->cap);
}

void spate_local_archive_fini(struct spate_local_archive *archive)
{
    spate_local_segment_unmap(&archive->hot);
    if (archive->fd >= 0)
        close(archive->fd);
    archive->fd = -1;
}

/* How far the log is final from pos on, at most one group and one segment. */
static enum spate_rc run(struct spate_local_archive *a, uint64_t *upto, bool *ended, struct spate_err *err)
{
    const uint64_t from = a->pos - a->hot.base;
    uint64_t at = from, size;
    uint32_t len;

    *ended = a->spills = false;
    while (at < a->cap && at - from < a->group) {
        struct spate_local_record *record = spate_local_record_at(&a->hot, at);
        switch (spate_local_step(record, a->cap - at, &size, &len)) {
        case SPATE_LOCAL_STEP_RECORD:
            a->spills = a->spills || record->type == SPATE_LOCAL_SPILL;
            at += size;
            continue;
        case SPATE_LOCAL_STEP_PAD:
            at += size;
            continue;
        case SPATE_LOCAL_STEP_END:
            at += SPATE_LOCAL_UNIT;
            *ended = true;
            break;
        case SPATE_LOCAL_STEP_OPEN:
            break;
        default:
            return spate_fail(err, SPATE_FATAL,
                              "the shared memory of topic %s is damaged at position %016" PRIx64
                              "; stop every spate of this bus and remove its hot root",
                              a->topic->name, a->hot.base + at);
        }
        break;
    }
    *ended = *ended || at == a->cap;
    *upto = at;
    return SPATE_OK;
}

static int write_all(int fd, const unsigned char *at, uint64_t len, uint64_t offset)
{
    while (len > 0) {
        const ssize_t put = pwrite(fd, at, len < CHUNK ? len : CHUNK, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? errno : ENOSPC;
        /* Only starts the writing; what it fails at, the sync that follows reports. */
        if (len > CHUNK && sync_file_range(fd, (off_t)offset, put, SYNC_FILE_RANGE_WRITE) != 0)
            errno = 0;
        at += put;
        len -= (uint64_t)put;
        offset += (uint64_t)put;
    }
    return 0;
}

/* Of a segment that is still written the words go on changing while they are copied. */
static int write_header(const struct spate_local_archive *a, int fd)
{
    const struct spate_local_segment_header *hot = spate_local_header(&a->hot);
    union {
        struct spate_local_segment_header header;
        unsigned char bytes[SPATE_LOCAL_HEADER];
    } page;

    memset(&page, 0, sizeof page);
    page.header.magic = hot->magic;
    page.header.base = hot->base;
    page.header.cap = hot->cap;
    page.header.unit = hot->unit;
    page.header.crc = hot->crc;
    page.header.created_ns = hot->created_ns;
    atomic_init(&page.header.tail, atomic_load(&hot->tail));
    atomic_init(&page.header.sealed, atomic_load(&hot->sealed));
    return write_all(fd, page.bytes, sizeof page, 0);
}

/* Writes a new file of this segment with its first `upto` bytes and puts it in place, all of it synced. The
 * hot segment has every byte of it, because it is removed only when all is archived. Returns an errno. */
static int make_file(struct spate_local_archive *a, uint64_t upto)
{
    char name[SPATE_LOCAL_FILE], temp[SPATE_LOCAL_FILE + 8];
    const int dir = a->topic->durable_fd;

    spate_local_segment_name(a->hot.base, name);
    snprintf(temp, sizeof temp, ".%s.tmp", name);
    const int fd = openat(dir, temp, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0)
        return errno;
    spate_local_open_up(dir, fd);
    int why = write_header(a, fd);
    if (why == 0)
        why = write_all(fd, a->hot.at + SPATE_LOCAL_HEADER, upto, SPATE_LOCAL_HEADER);
    if (why == 0 && sync_data(fd) != 0)
        why = errno;
    SPATE_FAILPOINT(local_file_made);
    if (why == 0 && renameat(dir, temp, dir, name) != 0)
        why = errno;
    SPATE_FAILPOINT(local_file_renamed);
    if (why == 0 && fsync(dir) != 0)
        why = errno;
    if (why != 0) {
        unlinkat(dir, temp, 0);
        close(fd);
        return why;
    }
    if (a->fd >= 0)
        close(a->fd);
    a->fd = fd;
    a->distrust = false;
    atomic_store(&a->topic->ctl->distrust, 0);
    return 0;
}

/* A failed sync: the kernel reports a page once, then calls it clean, to whoever archives after us as well.
 */
static void distrust(struct spate_local_archive *a)
{
    a->distrust = true;
    atomic_store(&a->topic->ctl->distrust, a->hot.base);
}

/* Opens the file that a predecessor began. What is below the watermark must be there; else it is made anew.
 */
static bool open_file(struct spate_local_archive *a)
{
    char name[SPATE_LOCAL_FILE];
    struct spate_local_segment_header header;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct stat st;

    spate_local_segment_name(a->hot.base, name);
    const int fd = openat(a->topic->durable_fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &st) != 0 || (uint64_t)st.st_size < SPATE_LOCAL_HEADER + (a->pos - a->hot.base) ||
        pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
        spate_local_segment_header_check(&header, a->hot.base, a->cap, &ignored) != SPATE_OK) {
        close(fd);
        return false;
    }
    a->fd = fd;
    return true;
}

/* Makes bytes [pos, base + upto) of the archive durable. Returns an errno. */
static int put(struct spate_local_archive *a, uint64_t upto, bool ended)
{
    const uint64_t from = a->pos - a->hot.base;

    /* The values are synced, and their names must be before a record in the archive speaks of them. */
    if (a->spills && fsync(a->topic->durable_fd) != 0)
        return errno;
    /* The header of a new file is synced before a record in it counts, so that a bad header later means
     * damage and not a torn beginning. */
    if (a->fd < 0 && !a->distrust && !open_file(a)) {
        const int why = make_file(a, from);
        if (why != 0)
            return why;
    }
    if (a->distrust)
        return make_file(a, upto);
    int why = SPATE_FAILPOINT_FAILS(local_write) ? ENOSPC : 0;
    if (why == 0)
        why = write_all(a->fd, a->hot.at + SPATE_LOCAL_HEADER + from, upto - from, SPATE_LOCAL_HEADER + from);
    if (why == 0 && ended) /* the final tail and count, for whoever looks at the file */
        why = write_header(a, a->fd);
    if (why == 0 && (SPATE_FAILPOINT_FAILS(local_sync) ? (errno = EIO) : sync_data(a->fd)) != 0) {
        why = errno;
        distrust(a);
    }
    if (why == EIO)
        distrust(a);
    return why;
}

/* What is synced counts only where others find it. A file that was removed meanwhile is made anew, as long as
 * its directory is there. */
static bool was_removed(const struct spate_local_archive *a)
{
    struct stat st;

    return fstat(a->fd, &st) == 0 && st.st_nlink == 0 && spate_local_topic_in_place(a->topic);
}

static void complain(struct spate_local_archive *a, uint64_t missing)
{
    char quoted[512];
    unsigned hidden;

    if (spate_log_due(&a->complained, spate_clock_ms(), COMPLAIN_MS, &hidden))
        spate_log(SPATE_LOG_ERROR, "bus-disk-full",
                  "topic=%s path=%s missing_bytes=%" PRIu64 " durable=%016" PRIx64
                  " remedy=\"make room there; spate goes on by itself\"",
                  a->topic->name, spate_log_quote(quoted, sizeof quoted, a->topic->place->path), missing,
                  a->pos);
}

/* The writers of a volatile topic have gone on and removed what nobody looked at. */
static enum spate_rc skip(struct spate_local_archive *a, uint64_t base)
{
    const uint64_t head = atomic_load(&a->topic->ctl->head);

    if (head <= base)
        return SPATE_END;
    a->pos = head;
    atomic_store(&a->topic->ctl->settled, head);
    return SPATE_OK;
}

enum spate_rc spate_local_archive_step(struct spate_local_archive *a, struct spate_err *err)
{
    const uint64_t base = spate_local_base_of(a->pos, a->cap);
    const uint64_t head = atomic_load(&a->topic->ctl->head); /* first: it is made before it is the head */
    uint64_t upto = 0;
    bool ended = false;
    enum spate_rc rc;

    trim(a);
    if (!a->hot.at) {
        rc = spate_local_segment_map(a->topic->hot_fd, base, a->cap, SPATE_LOCAL_MAP_WRITE, &a->hot, err);
        if (rc == SPATE_OK && a->topic->manifest.is_volatile && base < atomic_load(&a->topic->ctl->first)) {
            spate_local_segment_unmap(&a->hot); /* forgotten, and made anew by somebody who slept (roll.c) */
            rc = SPATE_END;
        }
        if (rc == SPATE_END && a->topic->manifest.is_volatile)
            return skip(a, base);
        if (rc == SPATE_END && (a->pos != base || head >= base))
            return spate_fail(
                err, SPATE_RETRY,
                "a segment of topic %s vanished from shared memory before it was durable; opening the "
                "topic anew recovers it from the disk, and the source sends again what is missing",
                a->topic->name);
        if (rc != SPATE_OK)
            return rc;
    }
    rc = run(a, &upto, &ended, err);
    if (rc != SPATE_OK)
        return rc;
    if (a->hot.base + upto == a->pos && !ended) {
        const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&a->hot)->tail));
        /* Something stands there that is not final; or it is gone. */
        if (spate_local_segment_cut(&a->hot) ||
            (tail > a->pos - a->hot.base && !spate_local_segment_whole(&a->hot, a->topic->hot_fd)))
            return spate_local_segment_was_cut(&a->hot, false, err);
        return SPATE_END;
    }
    if (a->topic->manifest.is_volatile) {
        a->pos = ended ? a->hot.base + a->cap : a->hot.base + upto;
        if (ended)
            spate_local_segment_unmap(&a->hot);
        atomic_store(&a->topic->ctl->settled, a->pos);
        return SPATE_OK;
    }

    int why = put(a, upto, ended);
    if (why != 0 && why != ENOSPC && why != EDQUOT && a->distrust)
        why = put(a, upto, ended); /* once more, into a new file */
    if (why == 0 && was_removed(a)) {
        a->distrust = true;
        why = put(a, upto, ended);
    }
    if (why == EFAULT || !spate_local_segment_whole(&a->hot, a->topic->hot_fd))
        return spate_local_segment_was_cut(&a->hot, false, err); /* who knows what was copied */
    if (why == 0 && (rc = spate_local_topic_gone(a->topic, err)) != SPATE_OK)
        return rc;
    if (why == ENOSPC || why == EDQUOT) {
        a->group = GROUP_LEAST;
        complain(a, upto - (a->pos - a->hot.base));
        return SPATE_AGAIN;
    }
    if (why != 0)
        return spate_fail(err, SPATE_RETRY,
                          "cannot make topic %s durable at %s, position %016" PRIx64
                          ": %s; examine the disk, then start again",
                          a->topic->name, a->topic->place->path, a->pos, strerror(why));
    SPATE_FAILPOINT(local_synced);
    a->group = a->group < GROUP_MOST ? a->group * 2 : GROUP_MOST;
    a->pos = a->hot.base + upto;
    if (ended) {
        a->pos = a->hot.base + a->cap;
        spate_local_archive_fini(a);
    } else {
        spate_local_segment_pass(&a->hot, upto);
    }
    atomic_store_explicit(&a->topic->ctl->durable, a->pos, memory_order_seq_cst);
    SPATE_FAILPOINT(local_durable);
    trim(a);
    return SPATE_OK;
}
