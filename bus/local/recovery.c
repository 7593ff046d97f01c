/* bus/local/recovery.c - after a power cut, and after the shared memory was lost. */
#include "bus/local/recovery.h"

#include "bus/local/broken.h"
#include "bus/local/spill.h"
#include "core/failpoint.h"
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

uint64_t spate_local_scan(const struct spate_local_segment *seg, uint64_t from, int spills, bool *ended)
{
    uint64_t at = from, size, next;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    uint32_t len;

    *ended = false;
    while (at + SPATE_LOCAL_UNIT <= seg->size) {
        struct spate_local_record *record = spate_local_record_at(seg, at);
        const uint64_t pos = seg->base + at;
        switch (spate_local_step(record, seg->size - at, &size, &len)) {
        case SPATE_LOCAL_STEP_RECORD:
            if ((!spate_local_record_good(record, pos, len) ||
                 (record->type == SPATE_LOCAL_SPILL && spills >= 0 &&
                  !spate_local_spill_sound(spills, pos, record, len, true))) &&
                !SPATE_BROKEN(NO_CUT))
                return at;
            break;
        case SPATE_LOCAL_STEP_PAD:
            break;
        case SPATE_LOCAL_STEP_END:
            *ended = spate_local_end_next(record, pos, seg->base, seg->cap, &next, &ignored) == SPATE_OK;
            return at;
        default:
            return at;
        }
        at += size;
    }
    *ended = at == seg->cap;
    return at;
}

/* Cuts the newest archive segment after its last sound record. All that is kept is synced, since it may have
 * been only in the page cache of a machine that is still up. */
static enum spate_rc cut(struct spate_local_topic *topic, uint64_t base, uint64_t next, struct spate_err *err)
{
    struct spate_local_segment seg;
    char name[SPATE_LOCAL_FILE];
    bool ended;
    enum spate_rc rc = spate_local_segment_map(topic->durable_fd, base, topic->manifest.cap,
                                               SPATE_LOCAL_MAP_ARCHIVE, &seg, err);

    if (rc == SPATE_END)
        return spate_fail(err, SPATE_RETRY, "the newest segment vanished during recovery");
    if (rc != SPATE_OK)
        return spate_err_context(err, "topic %s below %s", topic->name, topic->place->path);
    const uint64_t at = spate_local_scan(&seg, 0, topic->durable_fd, &ended);
    spate_local_segment_unmap(&seg);

    spate_local_segment_name(base, name);
    const int fd = openat(topic->durable_fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    unsigned char unit[SPATE_LOCAL_UNIT];
    spate_local_cut_make(unit, base + at, next);
    errno = 0;
    const bool good =
        fd >= 0 &&
        (ended || at == topic->manifest.cap ||
         pwrite(fd, unit, sizeof unit, (off_t)(SPATE_LOCAL_HEADER + at)) == (ssize_t)sizeof unit) &&
        fdatasync(fd) == 0;
    const int why = errno ? errno : ENOSPC;
    if (fd >= 0)
        close(fd);
    if (!good)
        return spate_fail(err, why == ENOSPC ? SPATE_RETRY : SPATE_FATAL,
                          "cannot end the segment %s of topic %s below %s: %s", name, topic->name,
                          topic->place->path, strerror(why));
    /* No record says of them. Only now, so that whatever stops this is done again. */
    spate_local_spill_remove(topic->durable_fd, base + at, next);
    spate_log(SPATE_LOG_INFO, "bus-recovered", "topic=%s end=%016" PRIx64 " next=%016" PRIx64, topic->name,
              base + at, next);
    return SPATE_OK;
}

enum spate_rc spate_local_recover(struct spate_local_topic *topic, struct spate_err *err)
{
    struct spate_local_manifest *m = &topic->manifest;
    uint64_t archived = 0, hot_id;
    enum spate_rc rc = spate_local_topic_hot(topic, &hot_id, err);

    if (rc != SPATE_OK)
        return rc;
    spate_local_segment_sweep(topic->durable_fd);
    rc = spate_local_segment_prev(topic->durable_fd, UINT64_MAX, &archived, err);
    if (rc == SPATE_FAIL)
        return rc;
    const bool has_archive = rc == SPATE_OK;
    uint64_t next = (has_archive && archived > m->highest ? archived : m->highest) + m->cap;
    if (SPATE_BROKEN(SAME_BASE) && has_archive)
        next = archived + m->cap;

    /* First the promise that no base up to this one is handed out again, then anything that rests on it. */
    m->highest = next + (SPATE_LOCAL_RESERVE - 1) * m->cap;
    m->generation++;
    m->hot = hot_id;
    if (m->is_volatile)
        m->first = next; /* what the shared memory held is gone */
    if ((rc = spate_local_manifest_write(topic, err)) != SPATE_OK)
        return rc;
    SPATE_FAILPOINT(local_recover);
    if (has_archive && (rc = cut(topic, archived, next, err)) != SPATE_OK)
        return rc;
    if (!has_archive)
        spate_local_spill_remove(topic->durable_fd, 0, next);
    SPATE_FAILPOINT(local_cut);
    spate_local_segment_clear(topic->hot_fd);
    rc = spate_local_segment_create(topic->hot_fd, next, m->cap, err);
    if (rc == SPATE_AGAIN)
        return spate_fail(err, SPATE_RETRY,
                          "the hot file system has no room for a segment of %" PRIu64
                          " bytes of topic %s; enlarge it "
                          "(docker: --shm-size), or set bus.local.hot or bus.local.segment_bytes",
                          m->cap, topic->name);
    if (rc != SPATE_OK)
        return rc;
    return spate_local_topic_renew(topic, next, m->first, m->is_volatile ? 0 : next, err);
}
