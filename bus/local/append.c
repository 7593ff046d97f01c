/* bus/local/append.c - publishing into a segment. */
#include "bus/local/append.h"

#include "bus/local/bell.h"
#include "bus/local/broken.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define RECORD_MOST (UINT64_C(16) << 20)  /* and at most a quarter of a segment */
#define BATCH_BYTES (UINT64_C(256) << 10) /* records that become visible together */
#define AHEAD       (UINT64_C(1) << 20)   /* pages that are mapped with one call */
#define COMPLAIN_MS 10000

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

size_t spate_local_append_most(const struct spate_local_topic *topic)
{
    const uint64_t quarter = topic->manifest.cap / 4;

    return (size_t)(quarter < RECORD_MOST ? quarter : RECORD_MOST);
}

void spate_local_append_init(struct spate_local_append *append, struct spate_local_topic *topic,
                             struct spate_local_errand *errand, uint32_t slot, uint32_t gen)
{
    *append = (struct spate_local_append){.topic = topic,
                                          .errand = errand,
                                          .unchecked = topic->manifest.is_unchecked,
                                          .slot = slot,
                                          .gen = gen,
                                          .max_record = spate_local_append_most(topic),
                                          .seg = {.fd = -1}};
}

void spate_local_append_fini(struct spate_local_append *append)
{
    spate_local_segment_unmap(&append->seg);
}

static void enter(struct spate_local_append *a, const struct spate_local_segment *seg)
{
    spate_local_segment_unmap(&a->seg);
    a->seg = *seg;
    a->populated = spate_local_tail_bytes(atomic_load(&spate_local_header(seg)->tail));
}

static enum spate_rc full(struct spate_local_append *a, enum spate_log_level level, const char *why,
                          const char *remedy)
{
    char path[SPATE_LOCAL_PATH] = "?", quoted[512];
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    unsigned hidden;

    atomic_fetch_add(&a->topic->ctl->stalls, 1);
    if (spate_log_due(&a->complained, spate_clock_ms(), COMPLAIN_MS, &hidden)) {
        if (spate_local_place_hot_path(a->topic->place, path, &ignored) != SPATE_OK)
            strcpy(path, "?");
        spate_log(level, "bus-hot-full",
                  "topic=%s path=%s needed_bytes=%" PRIu64 " durable=%016" PRIx64 " why=\"%s\" remedy=\"%s\"",
                  a->topic->name, spate_log_quote(quoted, sizeof quoted, path),
                  SPATE_LOCAL_HEADER + a->seg.cap, atomic_load(&a->topic->ctl->durable), why, remedy);
    }
    return SPATE_AGAIN;
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
        return full(a, SPATE_LOG_INFO, "the disk does not keep up", "a faster disk, or wait");
    case SPATE_LOCAL_GATE_HOLD:
        return full(a, SPATE_LOG_WARN,
                    "the archive is at its limit, and a named reader holds what it has not passed",
                    "start that reader (spate bus readers shows it), or let it go (spate bus release NAME)");
    default: /* the steward is about to promise more; if it cannot, it says so */
        atomic_fetch_add(&ctl->stalls, 1);
        return SPATE_AGAIN;
    }
}

/* A volatile topic keeps the segment before the current one; readers of older positions are told of the gap.
 */
static enum spate_rc forget(struct spate_local_append *a, uint64_t oldest, struct spate_err *err)
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
            return full(a, SPATE_LOG_ERROR, "the manifest cannot be written: the disk is full",
                        "make room below bus.local.path");
        if (rc != SPATE_OK)
            return rc;
        spate_local_topic_gate(a->topic, false);
    }
    if (next > atomic_load(&a->topic->ctl->gate))
        return closed(a);
    rc = spate_local_segment_create(a->topic->hot_fd, next, cap, err);
    return rc == SPATE_AGAIN
               ? full(a, SPATE_LOG_WARN, "the shared memory is full",
                      "enlarge it (docker: --shm-size), or set bus.local.hot or bus.local.segment_bytes")
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
        return a->topic->manifest.is_volatile && old != 0 ? forget(a, next - cap, err) : SPATE_OK;
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

/* Takes `total` bytes for `count` records. On SPATE_OK the region is CLAIMed at *at, with indices from *idx.
 */
static enum spate_rc claim(struct spate_local_append *a, uint64_t total, uint64_t count, uint64_t *at,
                           uint32_t *idx, struct spate_err *err)
{
    const uint64_t word = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);

    for (;;) {
        struct spate_local_segment_header *header = spate_local_header(&a->seg);
        const uint64_t cap = a->seg.cap;
        uint64_t offset = spate_local_tail_bytes(atomic_load_explicit(&header->tail, memory_order_relaxed));
        /* Looked at first, so that a writer runs past the end at most once per segment. */
        if (offset < cap) {
            const uint64_t old = atomic_fetch_add_explicit(
                &header->tail, count << SPATE_LOCAL_TAIL_SHIFT | total, memory_order_relaxed);
            offset = spate_local_tail_bytes(old);
            *idx = (uint32_t)(old >> SPATE_LOCAL_TAIL_SHIFT);
            SPATE_FAILPOINT(local_taken);
        }
        if (offset < cap) {
            struct spate_local_record *record = spate_local_record_at(&a->seg, offset);
            uint64_t expected = 0;
            if (total <= cap - offset) {
                if (SPATE_BROKEN(PLAIN_CLAIM)) {
                    atomic_store(&record->word, word);
                } else if (!atomic_compare_exchange_strong_explicit(
                               &record->word, &expected, word, memory_order_acquire, memory_order_relaxed)) {
                    if (spate_local_segment_cut(&a->seg))
                        return spate_local_segment_was_cut(&a->seg, false, err);
                    continue; /* somebody fenced this claim: take another */
                }
                *at = offset;
                return SPATE_OK;
            }
            if (!SPATE_BROKEN(NO_END))
                atomic_compare_exchange_strong(&record->word, &expected,
                                               spate_local_word(SPATE_LOCAL_END, 0, 0, 0));
        }
        if (spate_local_segment_cut(&a->seg))
            return spate_local_segment_was_cut(&a->seg, false, err);
        seal(&a->seg);
        const enum spate_rc rc = roll(a, a->seg.base, err);
        if (rc != SPATE_OK)
            return rc;
    }
}

/* Everything but the word. The checksum is taken from the source, while that is in the cache. */
static void fill(struct spate_local_record *record, const struct spate_record *in, uint64_t pos, uint32_t idx,
                 unsigned flags, bool unchecked)
{
    const size_t len = in->key.len + in->value.len;

    record->ts_ns = (uint64_t)in->ts_us * 1000;
    record->idx = idx;
    record->keyhash = in->key.len > 0 ? spate_murmur2(in->key.at, in->key.len) : 0;
    record->keylen = (uint16_t)in->key.len;
    record->type = SPATE_LOCAL_DATA;
    record->flags = (uint8_t)(flags | (in->key.len > 0 ? SPATE_LOCAL_HAS_KEY : 0));
    if (unchecked)
        record->flags |= SPATE_LOCAL_UNCHECKED;
    record->crc = unchecked ? 0
                            : spate_local_record_crc(record, pos, (uint32_t)len, in->key.at, in->value.at,
                                                     in->value.len);
    if (in->key.len > 0)
        memcpy(record->payload, in->key.at, in->key.len);
    memcpy(record->payload + in->key.len, in->value.at, in->value.len);
}

static enum spate_rc refuse(const struct spate_local_append *a, const struct spate_record *in,
                            struct spate_err *err)
{
    if (in->value.len == 0)
        return spate_fail(err, SPATE_QUARANTINE, "a record for topic %s has no value", a->topic->name);
    if (in->key.len > UINT16_MAX)
        return spate_fail(err, SPATE_QUARANTINE,
                          "the key of a record for topic %s has %zu bytes, the bus takes %d", a->topic->name,
                          in->key.len, UINT16_MAX);
    if (in->value.len > a->max_record || in->key.len > a->max_record - in->value.len)
        return spate_fail(
            err, SPATE_QUARANTINE,
            "a record for topic %s has %zu bytes, the bus takes %zu; a larger bus.local.segment_bytes "
            "(a quarter of it, at most %" PRIu64 ") counts when a topic is made anew",
            a->topic->name, in->key.len + in->value.len, a->max_record, RECORD_MOST);
    return SPATE_OK;
}

/* How many of the records go together: what still fits this segment, at most a batch. */
static enum spate_rc gather(const struct spate_local_append *a, const struct spate_record *records,
                            size_t count, size_t *n, uint64_t *total, struct spate_err *err)
{
    const uint64_t tail = spate_local_tail_bytes(spate_local_header(&a->seg)->tail);
    const uint64_t room = tail < a->seg.cap ? a->seg.cap - tail : 0;
    const uint64_t most = room < BATCH_BYTES ? room : BATCH_BYTES;

    *total = 0;
    for (*n = 0; *n < count && *n < SPATE_LOCAL_BATCH; (*n)++) {
        const enum spate_rc rc = refuse(a, &records[*n], err);
        if (rc != SPATE_OK)
            return *n > 0 ? SPATE_OK : rc; /* those before it first; it is met again */
        const uint64_t size = spate_local_footprint(records[*n].key.len + records[*n].value.len);
        if (*n > 0 && *total + size > most)
            break;
        *total += size;
    }
    return SPATE_OK;
}

/* One call maps a megabyte of pages, instead of a fault for each: less than one call in a thousand records.
 */
static void populate(struct spate_local_append *a, uint64_t upto)
{
    if (upto <= a->populated || upto > a->seg.cap)
        return;
    const uint64_t page = SPATE_LOCAL_HEADER;
    const uint64_t from = a->populated & ~(page - 1);
    uint64_t len = upto - from > AHEAD ? upto - from : AHEAD;
    if (len > a->seg.cap - from)
        len = a->seg.cap - from;
    /* An old kernel says no, and every page faults by itself. */
    if (madvise(a->seg.at + SPATE_LOCAL_HEADER + from, len, MADV_POPULATE_WRITE) != 0)
        len = AHEAD < a->seg.cap - from ? AHEAD : a->seg.cap - from;
    a->populated = from + len;
}

/* Makes the region visible: all of its records or none. false: somebody fenced us, and no reader will ever
 * see this try. */
static bool commit(struct spate_local_append *a, uint64_t at, uint64_t total, size_t first_len)
{
    struct spate_local_record *first = spate_local_record_at(&a->seg, at);
    uint64_t claimed = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);
    const uint64_t committed = spate_local_word(SPATE_LOCAL_COMMIT, a->slot, a->gen, (uint32_t)first_len);

    /* Before the commit: whoever sees that the steward sleeps afterwards knows that it saw this (bell.h). */
    if (a->errand)
        atomic_store_explicit(&a->errand->written, a->seg.base + at + total, memory_order_relaxed);
    if (SPATE_BROKEN(PLAIN_COMMIT)) {
        atomic_store(&first->word, committed);
        return true;
    }
    return atomic_compare_exchange_strong_explicit(&first->word, &claimed, committed, memory_order_seq_cst,
                                                   memory_order_relaxed);
}

enum spate_rc spate_local_append(struct spate_local_append *a, const struct spate_record *records,
                                 size_t count, size_t *taken, uint64_t ends[SPATE_LOCAL_BATCH],
                                 struct spate_err *err)
{
    enum spate_rc rc = spate_local_append_enter(a, err);

    while (rc == SPATE_OK) {
        uint64_t total = 0, at = 0;
        uint32_t idx = 0;
        size_t n = 0;
        rc = gather(a, records, count, &n, &total, err);
        if (rc == SPATE_OK)
            rc = claim(a, total, n, &at, &idx, err);
        if (rc != SPATE_OK)
            break;
        SPATE_FAILPOINT(local_claimed);
        populate(a, at + total);

        uint64_t offset = at;
        for (size_t i = 0; i < n; i++) {
            struct spate_local_record *record = spate_local_record_at(&a->seg, offset);
            const uint64_t len = records[i].key.len + records[i].value.len;
            const unsigned flags = n == 1       ? 0
                                   : i == 0     ? SPATE_LOCAL_BATCH_FIRST
                                   : i == n - 1 ? SPATE_LOCAL_BATCH_LAST
                                                : 0;
            fill(record, &records[i], a->seg.base + offset, idx + (uint32_t)i, flags, a->unchecked);
            if (i > 0) /* out of sight until the first one is committed */
                atomic_store_explicit(&record->word,
                                      spate_local_word(SPATE_LOCAL_COMMIT, a->slot, a->gen, (uint32_t)len),
                                      memory_order_relaxed);
            offset += spate_local_footprint(len);
            ends[i] = a->seg.base + offset;
        }
        SPATE_FAILPOINT(local_filled);
        const bool committed = commit(a, at, total, records[0].key.len + records[0].value.len);
        if (spate_local_segment_cut(&a->seg)) /* into pages that no reader has */
            return spate_local_segment_was_cut(&a->seg, false, err);
        if (!committed)
            continue;
        SPATE_FAILPOINT(local_committed);
        *taken = n;
        spate_local_segment_pass(&a->seg, offset);
        spate_local_bell_ring(&a->topic->bell->tip);
        if (a->errand)
            spate_local_steward_tell(a->errand);
        return SPATE_OK;
    }
    return rc;
}
