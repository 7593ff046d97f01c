/* bus/local/append.c - publishing into a segment. */
#include "bus/local/append.h"

#include "bus/local/bell.h"
#include "bus/local/recovery.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define HOT_MOST    UINT64_C(4)           /* segments between the archiver and the head, both included */
#define RECORD_MOST (UINT64_C(16) << 20)  /* and at most a quarter of a segment */
#define BATCH_BYTES (UINT64_C(256) << 10) /* records that become visible together */
#define AHEAD       (UINT64_C(1) << 20)   /* pages that are mapped with one call */
#define COMPLAIN_MS 10000

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void spate_local_append_init(struct spate_local_append *append, struct spate_local_topic *topic)
{
    const uint64_t quarter = topic->manifest.cap / 4;

    *append = (struct spate_local_append){.topic = topic, .seg = {.fd = -1}};
    append->max_record = (size_t)(quarter < RECORD_MOST ? quarter : RECORD_MOST);
    append->gen = 1 + atomic_fetch_add(&topic->ctl->writers[0].gen, 1);
}

void spate_local_append_fini(struct spate_local_append *append)
{
    spate_local_segment_unmap(&append->seg);
}

static void enter(struct spate_local_append *a, const struct spate_local_segment *seg)
{
    spate_local_segment_unmap(&a->seg);
    a->seg = *seg;
    a->settled = 0;
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

/* A volatile topic keeps the segment before the current one; readers of older positions are told of the gap.
 */
static enum spate_rc forget(struct spate_local_append *a, uint64_t oldest, struct spate_err *err)
{
    uint64_t base;
    enum spate_rc rc;

    if (oldest > atomic_load(&a->topic->ctl->first))
        atomic_store(&a->topic->ctl->first, oldest); /* said before it is done */
    while ((rc = spate_local_segment_next(a->topic->hot_fd, 0, &base, err)) == SPATE_OK && base < oldest)
        if (!spate_local_segment_remove(a->topic->hot_fd, base))
            break;
    return rc == SPATE_FAIL ? rc : SPATE_OK;
}

/* Goes over to the next segment. Any crash in here leaves at most a temp file, or a segment that the next
 * writer goes on with. */
static enum spate_rc roll(struct spate_local_append *a, struct spate_err *err)
{
    struct spate_local_topic *topic = a->topic;
    struct spate_local_manifest *m = &topic->manifest;
    struct spate_local_segment_header *header = spate_local_header(&a->seg);
    const uint64_t old = a->seg.base, next = old + a->seg.cap;
    uint64_t unsealed = 0;
    enum spate_rc rc;

    atomic_compare_exchange_strong(&header->sealed, &unsealed,
                                   atomic_load(&header->tail) >> SPATE_LOCAL_TAIL_SHIFT);
    SPATE_FAILPOINT(local_sealed);
    if (!m->is_volatile) {
        const uint64_t oldest = spate_local_base_of(atomic_load(&topic->ctl->durable), a->seg.cap);
        if (oldest <= next && next - oldest >= HOT_MOST * a->seg.cap)
            return full(a, SPATE_LOG_INFO, "the disk does not keep up", "a faster disk, or wait");
    }
    rc = spate_local_manifest_read(topic, err);
    if (rc == SPATE_END)
        return spate_fail(err, SPATE_FATAL, "the manifest of topic %s below %s was removed", topic->name,
                          topic->place->path);
    if (rc == SPATE_OK && next > m->highest) {
        m->highest = next + (SPATE_LOCAL_RESERVE - 1) * a->seg.cap;
        rc = spate_local_manifest_write(topic, err);
        if (rc == SPATE_FAIL && err->verdict == SPATE_RETRY)
            return full(a, SPATE_LOG_ERROR, "the manifest cannot be written: the disk is full",
                        "make room below bus.local.path");
    }
    if (rc != SPATE_OK)
        return rc;
    SPATE_FAILPOINT(local_promised);
    rc = spate_local_segment_create(topic->hot_fd, next, a->seg.cap, err);
    if (rc == SPATE_AGAIN)
        return full(a, SPATE_LOG_WARN, "the shared memory is full",
                    "enlarge it (docker: --shm-size), or set bus.local.hot or bus.local.segment_bytes");
    if (rc != SPATE_OK)
        return rc;
    struct spate_local_segment seg;
    rc = spate_local_segment_map(topic->hot_fd, next, a->seg.cap, SPATE_LOCAL_MAP_WRITE, &seg, err);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL
                   ? rc
                   : spate_fail(err, SPATE_RETRY, "the segment %016" PRIx64 " of topic %s vanished", next,
                                topic->name);
    SPATE_FAILPOINT(local_created);
    atomic_store(&topic->ctl->head, next);
    enter(a, &seg);
    SPATE_FAILPOINT(local_rolled);
    return m->is_volatile ? forget(a, old, err) : SPATE_OK;
}

/* From the segment of the durable watermark on: all that stands behind it is final already. */
static enum spate_rc first_segment(struct spate_local_append *a, struct spate_err *err)
{
    const struct spate_local_topic *topic = a->topic;
    const uint64_t cap = topic->manifest.cap, durable = atomic_load(&topic->ctl->durable);
    const uint64_t head = atomic_load(&topic->ctl->head);
    const uint64_t base =
        topic->manifest.is_volatile || durable > head ? head : spate_local_base_of(durable, cap);
    struct spate_local_segment seg;
    enum spate_rc rc = spate_local_segment_map(topic->hot_fd, base, cap, SPATE_LOCAL_MAP_WRITE, &seg, err);

    if (rc != SPATE_OK)
        return rc;
    enter(a, &seg);
    if (durable > base && durable < base + cap)
        a->settled = durable - base;
    return SPATE_OK;
}

enum spate_rc spate_local_append_settle(struct spate_local_append *a, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (!a->seg.at)
        rc = first_segment(a, err);
    while (rc == SPATE_OK) {
        rc = spate_local_settle(&a->seg, a->settled, a->topic->ctl, err);
        if (rc == SPATE_OK) {
            a->settled = spate_local_tail_bytes(atomic_load(&spate_local_header(&a->seg)->tail));
            return SPATE_OK;
        }
        if (rc == SPATE_END)
            rc = roll(a, err);
    }
    return rc;
}

/* Takes `total` bytes for `count` records. On SPATE_OK the region is CLAIMed at *at, with indices from *idx.
 */
static enum spate_rc claim(struct spate_local_append *a, uint64_t total, uint64_t count, uint64_t *at,
                           uint32_t *idx, struct spate_err *err)
{
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
        }
        if (offset < cap) {
            struct spate_local_record *record = spate_local_record_at(&a->seg, offset);
            uint64_t expected = 0;
            if (total <= cap - offset) {
                const uint64_t word = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);
                if (atomic_compare_exchange_strong_explicit(&record->word, &expected, word,
                                                            memory_order_acquire, memory_order_relaxed)) {
                    *at = offset;
                    return SPATE_OK;
                }
                continue; /* somebody fenced this claim: take another */
            }
            atomic_compare_exchange_strong(&record->word, &expected,
                                           spate_local_word(SPATE_LOCAL_END, 0, 0, 0));
        }
        const enum spate_rc rc = roll(a, err);
        if (rc != SPATE_OK)
            return rc;
    }
}

/* Everything but the word. The checksum is taken from the source, while that is in the cache. */
static void fill(struct spate_local_record *record, const struct spate_record *in, uint64_t pos, uint32_t idx,
                 unsigned flags)
{
    const size_t len = in->key.len + in->value.len;

    record->ts_ns = (uint64_t)in->ts_us * 1000;
    record->idx = idx;
    record->keyhash = in->key.len > 0 ? spate_murmur2(in->key.at, in->key.len) : 0;
    record->keylen = (uint16_t)in->key.len;
    record->type = SPATE_LOCAL_DATA;
    record->flags = (uint8_t)(flags | (in->key.len > 0 ? SPATE_LOCAL_HAS_KEY : 0));
    record->crc = spate_local_record_crc(record, pos, (uint32_t)len, in->key.at, in->value.at, in->value.len);
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

static void ask_ahead(struct spate_local_append *a, uint64_t offset)
{
    const uint64_t next = a->seg.base + a->seg.cap;

    if (!a->archiver || a->asked == next || offset < a->seg.cap / 2 || next > a->topic->manifest.highest)
        return;
    a->asked = next;
    spate_local_archiver_prepare(a->archiver, next);
}

enum spate_rc spate_local_append(struct spate_local_append *a, const struct spate_record *records,
                                 size_t count, size_t *taken, uint64_t ends[SPATE_LOCAL_BATCH],
                                 struct spate_err *err)
{
    for (;;) {
        uint64_t total = 0, at = 0;
        uint32_t idx = 0;
        size_t n = 0;
        enum spate_rc rc = gather(a, records, count, &n, &total, err);
        if (rc == SPATE_OK)
            rc = claim(a, total, n, &at, &idx, err);
        if (rc != SPATE_OK)
            return rc;
        SPATE_FAILPOINT(local_claimed);
        populate(a, at + total);

        struct spate_local_record *first = spate_local_record_at(&a->seg, at);
        uint64_t offset = at;
        for (size_t i = 0; i < n; i++) {
            struct spate_local_record *record = spate_local_record_at(&a->seg, offset);
            const uint64_t len = records[i].key.len + records[i].value.len;
            const unsigned flags = n == 1       ? 0
                                   : i == 0     ? SPATE_LOCAL_BATCH_FIRST
                                   : i == n - 1 ? SPATE_LOCAL_BATCH_LAST
                                                : 0;
            fill(record, &records[i], a->seg.base + offset, idx + (uint32_t)i, flags);
            if (i > 0) /* out of sight until the first one is committed */
                atomic_store_explicit(&record->word,
                                      spate_local_word(SPATE_LOCAL_COMMIT, a->slot, a->gen, (uint32_t)len),
                                      memory_order_relaxed);
            offset += spate_local_footprint(len);
            ends[i] = a->seg.base + offset;
        }
        uint64_t claimed = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);
        SPATE_FAILPOINT(local_filled);
        const uint64_t committed = spate_local_word(SPATE_LOCAL_COMMIT, a->slot, a->gen,
                                                    (uint32_t)(records[0].key.len + records[0].value.len));
        if (!atomic_compare_exchange_strong_explicit(&first->word, &claimed, committed, memory_order_seq_cst,
                                                     memory_order_relaxed))
            continue; /* somebody fenced us: no reader will ever see this try */
        SPATE_FAILPOINT(local_committed);
        *taken = n;
        a->settled = offset;
        spate_local_segment_pass(&a->seg, offset);
        ask_ahead(a, offset);
        spate_local_bell_ring(&a->topic->bell->tip);
        return SPATE_OK;
    }
}

uint64_t spate_local_append_end(const struct spate_local_append *a)
{
    const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&a->seg)->tail));

    return a->seg.base + (tail < a->seg.cap ? tail : a->seg.cap);
}
