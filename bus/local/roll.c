/* bus/local/roll.c - going over to the next segment, and what is said when that cannot be. */
#include "bus/local/roll.h"

#include "bus/local/broken.h"
#include "bus/local/spill.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#define COMPLAIN_MS 10000

static void enter(struct spate_local_append *a, const struct spate_local_segment *seg)
{
    spate_local_segment_unmap(&a->seg);
    a->seg = *seg;
    a->populated = seg->passed >= seg->cap
                       ? seg->cap
                       : spate_local_tail_bytes(atomic_load(&spate_local_header(seg)->tail));
    a->spilled = 0;
}

/* What a writer is told that has to wait. `missing`: bytes without which it goes on waiting; 0: it is not
 * that. */
struct stall {
    enum spate_log_level level;
    bool hot; /* it is about the shared memory, else about the disk */
    uint64_t missing;
    const char *why, *remedy;
};

static enum spate_rc stalled(struct spate_local_append *a, struct stall stall)
{
    const struct spate_local_topic *topic = a->topic;
    char path[SPATE_LOCAL_PATH] = "?", quoted[512], missing[48] = "";
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    unsigned hidden;

    atomic_fetch_add(&topic->ctl->stalls, 1);
    if (!spate_log_due(&a->complained, spate_clock_ms(), COMPLAIN_MS, &hidden))
        return SPATE_AGAIN;
    if (!stall.hot)
        snprintf(path, sizeof path, "%s", topic->place->path);
    else if (spate_local_place_hot_path(topic->place, path, &ignored) != SPATE_OK)
        strcpy(path, "?");
    if (stall.missing > 0)
        snprintf(missing, sizeof missing, " missing_bytes=%" PRIu64, stall.missing);
    spate_log(stall.level, stall.hot ? "bus-hot-full" : "bus-disk-full",
              "topic=%s path=%s%s durable=%016" PRIx64 " why=\"%s\" remedy=\"%s\"", topic->name,
              spate_log_quote(quoted, sizeof quoted, path), missing, atomic_load(&topic->ctl->durable),
              stall.why, stall.remedy);
    return SPATE_AGAIN;
}

/* How much of `needed` the file system lacks; at least a byte, since it said so. */
static uint64_t lack(int dir, uint64_t needed)
{
    struct statvfs fs;
    const uint64_t room = fstatvfs(dir, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;

    return room < needed ? needed - room : 1;
}

enum spate_rc spate_local_roll_no_hot_room(struct spate_local_append *a, uint64_t missing)
{
    return stalled(a, (struct stall){.level = SPATE_LOG_WARN,
                                     .hot = true,
                                     .missing = missing,
                                     .why = "the shared memory is full",
                                     .remedy =
                                         "make room there, and it goes on by itself; or enlarge it (mount -o "
                                         "remount,size=1G; docker: --shm-size), or set bus.local.hot or "
                                         "bus.local.segment_bytes"});
}

enum spate_rc spate_local_roll_no_disk_room(struct spate_local_append *a, uint64_t missing, const char *why)
{
    return stalled(a, (struct stall){.level = SPATE_LOG_ERROR,
                                     .missing = missing,
                                     .why = why,
                                     .remedy = "make room there; spate goes on by itself"});
}

/* The steward has not let the log grow beyond `gate`. */
static enum spate_rc closed(struct spate_local_append *a)
{
    struct spate_local_ctl *ctl = a->topic->ctl;

    if (a->errand) {
        atomic_store(&a->errand->roused, true);
        spate_local_steward_tell(a->errand);
    }
    switch (atomic_load(&ctl->gate_why)) {
    case SPATE_LOCAL_GATE_DISK:
        return stalled(a, (struct stall){.level = SPATE_LOG_INFO,
                                         .hot = true,
                                         .why = "the disk does not keep up",
                                         .remedy = "nothing is lost: the writer waits for the disk of "
                                                   "bus.local.path; if this stays, a faster one"});
    case SPATE_LOCAL_GATE_HOLD: /* the steward has said who holds it (bus-held): shared memory it is not */
    default:                    /* the steward is about to promise more; if it cannot, it says so */
        atomic_fetch_add(&ctl->stalls, 1);
        return SPATE_AGAIN;
    }
}

enum spate_rc spate_local_roll_forget(struct spate_local_append *a, uint64_t oldest, struct spate_err *err)
{
    struct spate_local_ctl *ctl = a->topic->ctl;
    uint64_t base, first = atomic_load(&ctl->first);
    enum spate_rc rc;

    /* Said before it is done. */
    while (first < oldest && !atomic_compare_exchange_weak(&ctl->first, &first, oldest))
        ;
    while ((rc = spate_local_segment_next(a->topic->hot_fd, 0, &base, err)) == SPATE_OK && base < oldest) {
        if (!spate_local_segment_remove(a->topic->hot_fd, base))
            break;
        atomic_fetch_add(&ctl->gaps, 1);
    }
    spate_local_spill_remove(a->topic->hot_fd, 0, oldest);
    return rc == SPATE_FAIL ? rc : SPATE_OK;
}

/* Makes the segment `next` if nobody has. SPATE_AGAIN: it may not be made now. */
static enum spate_rc make(struct spate_local_append *a, uint64_t next, struct spate_err *err)
{
    const uint64_t cap = a->topic->manifest.cap;
    enum spate_rc rc;

    if (next > atomic_load(&a->topic->ctl->gate) && a->promises) {
        rc = spate_local_topic_promise(a->topic, err);
        if (rc == SPATE_AGAIN)
            return spate_local_roll_no_disk_room(a, lack(a->topic->durable_fd, SPATE_LOCAL_HEADER),
                                                 "the manifest cannot be written");
        if (rc != SPATE_OK)
            return rc;
        spate_local_topic_gate(a->topic, false);
    }
    if (next > atomic_load(&a->topic->ctl->gate))
        return closed(a);
    rc = spate_local_segment_create(a->topic->hot_fd, next, cap, err);
    if (rc == SPATE_AGAIN && a->topic->manifest.is_volatile && a->seg.at &&
        atomic_load(&a->topic->ctl->first) < a->seg.base) {
        /* Rather its own past than nothing new. */
        rc = spate_local_roll_forget(a, a->seg.base, err);
        if (rc == SPATE_OK)
            rc = spate_local_segment_create(a->topic->hot_fd, next, cap, err);
    }
    return rc == SPATE_AGAIN
               ? spate_local_roll_no_hot_room(a, lack(a->topic->hot_fd, SPATE_LOCAL_HEADER + cap))
               : rc;
}

/* Goes over to the segment that is written after `old` (0: to the head, wherever that is). No lock: any crash
 * in here leaves at most a temp file, or a segment that the next writer goes on with.
 *
 * Whoever was stopped between its look at the head and the making may have made a segment anew that was full,
 * archived and removed meanwhile. So the head is looked at again afterwards: it has passed such a one,
 * because nothing is removed before, and then nobody writes there. */
static enum spate_rc roll(struct spate_local_append *a, uint64_t old, struct spate_err *err)
{
    struct spate_local_ctl *ctl = a->topic->ctl;
    const uint64_t cap = a->topic->manifest.cap;
    struct spate_local_segment seg;

    for (;;) {
        uint64_t head = atomic_load(&ctl->head);
        const uint64_t next = old == 0 || head > old ? head : old + cap;
        enum spate_rc rc = next > head ? make(a, next, err) : SPATE_OK;
        if (rc != SPATE_OK)
            return rc;
        SPATE_FAILPOINT(local_created);
        rc = spate_local_segment_map(a->topic->hot_fd, next, cap, SPATE_LOCAL_MAP_WRITE, &seg, err);
        if (rc == SPATE_FAIL)
            return rc;
        head = atomic_load(&ctl->head);
        if (head > next && !SPATE_BROKEN(NO_HEAD_CHECK)) {
            if (rc == SPATE_OK)
                spate_local_segment_unmap(&seg);
            continue;
        }
        if (rc == SPATE_END)
            return spate_fail(err, SPATE_RETRY, "the segment %016" PRIx64 " of topic %s vanished", next,
                              a->topic->name);
        while (head < next && !atomic_compare_exchange_weak(&ctl->head, &head, next))
            ;
        enter(a, &seg);
        SPATE_FAILPOINT(local_rolled);
        return a->topic->manifest.is_volatile && old != 0 ? spate_local_roll_forget(a, next - cap, err)
                                                          : SPATE_OK;
    }
}

enum spate_rc spate_local_append_enter(struct spate_local_append *a, struct spate_err *err)
{
    return a->seg.at ? SPATE_OK : roll(a, 0, err);
}

static void seal(const struct spate_local_segment *seg)
{
    struct spate_local_segment_header *header = spate_local_header(seg);
    uint64_t unsealed = 0;

    atomic_compare_exchange_strong(&header->sealed, &unsealed,
                                   atomic_load(&header->tail) >> SPATE_LOCAL_TAIL_SHIFT);
    SPATE_FAILPOINT(local_sealed);
}

enum spate_rc spate_local_roll_on(struct spate_local_append *a, struct spate_err *err)
{
    seal(&a->seg);
    return roll(a, a->seg.base, err);
}

enum spate_rc spate_local_roll_way(struct spate_local_append *a, uint64_t total, struct spate_err *err)
{
    const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&a->seg)->tail));

    if (tail + total <= a->seg.cap || atomic_load(&a->topic->ctl->head) > a->seg.base)
        return SPATE_OK;
    return make(a, a->seg.base + a->seg.cap, err);
}

enum spate_rc spate_local_roll_early(struct spate_local_append *a, struct spate_err *err)
{
    struct spate_local_segment_header *header = spate_local_header(&a->seg);
    const uint64_t cap = a->seg.cap;
    uint64_t tail = atomic_load(&header->tail), free_word = 0;

    /* All that is left is taken, and no more: added at once by many writers, it would overflow. */
    while (spate_local_tail_bytes(tail) < cap)
        if (atomic_compare_exchange_weak(&header->tail, &tail, tail + (cap - spate_local_tail_bytes(tail)))) {
            atomic_compare_exchange_strong(
                &spate_local_record_at(&a->seg, spate_local_tail_bytes(tail))->word, &free_word,
                spate_local_word(SPATE_LOCAL_END, 0, 0, 0));
            break;
        }
    return spate_local_roll_on(a, err);
}
