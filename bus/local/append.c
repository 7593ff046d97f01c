/* bus/local/append.c - publishing into a segment. */
#include "bus/local/append.h"

#include "bus/local/bell.h"
#include "bus/local/broken.h"
#include "bus/local/roll.h"
#include "bus/local/spill.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <string.h>
#include <sys/mman.h>

#define RECORD_MOST (UINT64_C(16) << 20)  /* and at most a quarter of a segment */
#define BATCH_BYTES (UINT64_C(256) << 10) /* records that become visible together */
#define AHEAD       (UINT64_C(1) << 20)   /* pages that are mapped with one call */

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
                                          .max_inline = spate_local_append_most(topic),
                                          .seg = {.fd = -1}};
}

void spate_local_append_fini(struct spate_local_append *append)
{
    spate_local_segment_unmap(&append->seg);
}

void spate_local_append_abandon(struct spate_local_append *a)
{
    const struct spate_local_ctl *ctl = a->topic->ctl;
    uint64_t at = atomic_load(a->topic->manifest.is_volatile ? &ctl->settled : &ctl->durable), size;
    uint32_t len;

    if (!a->seg.at || at >= a->seg.base + a->seg.cap)
        return;
    for (at = at > a->seg.base ? at - a->seg.base : 0; at < a->seg.cap; at += size) {
        struct spate_local_record *record = spate_local_record_at(&a->seg, at);
        uint64_t word = atomic_load(&record->word);
        const enum spate_local_step step = spate_local_step(record, a->seg.cap - at, &size, &len);
        if (step == SPATE_LOCAL_STEP_RECORD || step == SPATE_LOCAL_STEP_PAD)
            continue;
        size = spate_local_len_of(word);
        if (step != SPATE_LOCAL_STEP_OPEN || size == 0 || size % SPATE_LOCAL_UNIT != 0)
            return; /* the end, or somebody's room whose length nobody knows yet: a repair's business */
        if (word == spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)size) &&
            atomic_compare_exchange_strong(&record->word, &word,
                                           spate_local_word(SPATE_LOCAL_PAD, 0, 0, (uint32_t)size)))
            atomic_fetch_add(&a->topic->ctl->pads, 1);
    }
}

enum take { TOOK, FENCED, ENDED };

/* Takes `total` bytes for `count` records. TOOK: the region is CLAIMed at *at, with indices from *idx.
 * FENCED: somebody padded it over before. ENDED: the segment has no room for it, and says so. */
static inline __attribute__((always_inline)) enum take take(struct spate_local_append *a, uint64_t total,
                                                            uint64_t count, uint64_t *at, uint32_t *idx)
{
    struct spate_local_segment_header *header = spate_local_header(&a->seg);
    const uint64_t cap = a->seg.cap;
    uint64_t expected = 0;

    const uint64_t more = count << SPATE_LOCAL_TAIL_SHIFT | total;
    uint64_t old = atomic_load_explicit(&header->tail, memory_order_relaxed);
    /* Looked at first, so that a writer runs past the end at most once per segment. */
    if (spate_local_tail_bytes(old) >= cap)
        return ENDED;
    if (a->alone)
        atomic_store_explicit(&header->tail, old + more, memory_order_relaxed);
    else
        old = atomic_fetch_add_explicit(&header->tail, more, memory_order_relaxed);
    const uint64_t offset = spate_local_tail_bytes(old);
    *at = offset;
    *idx = (uint32_t)(old >> SPATE_LOCAL_TAIL_SHIFT);
    SPATE_FAILPOINT(local_taken);
    if (__builtin_expect(offset >= cap, 0))
        return ENDED;
    struct spate_local_record *record = spate_local_record_at(&a->seg, offset);
    if (__builtin_expect(total > cap - offset, 0)) {
        if (!SPATE_BROKEN(NO_END))
            atomic_compare_exchange_strong(&record->word, &expected,
                                           spate_local_word(SPATE_LOCAL_END, 0, 0, 0));
        return ENDED;
    }
    const uint64_t word = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);
    if (SPATE_BROKEN(PLAIN_CLAIM)) {
        atomic_store(&record->word, word);
        return TOOK;
    }
    return atomic_compare_exchange_strong_explicit(&record->word, &expected, word, memory_order_acquire,
                                                   memory_order_relaxed)
               ? TOOK
               : FENCED;
}

/* The same, as often as it takes, and from one segment to the next. */
static enum spate_rc claim(struct spate_local_append *a, uint64_t total, uint64_t count, uint64_t *at,
                           uint32_t *idx, struct spate_err *err)
{
    for (;;) {
        const enum take took = take(a, total, count, at, idx);
        if (took == TOOK)
            return SPATE_OK;
        if (spate_local_segment_cut(&a->seg))
            return spate_local_segment_was_cut(&a->seg, false, err);
        if (took == FENCED)
            continue;
        const enum spate_rc rc = spate_local_roll_on(a, err);
        if (rc != SPATE_OK)
            return rc;
    }
}

/* A call of memcpy costs as much as copying so little. */
static inline void copy(unsigned char *to, const char *from, size_t len)
{
    if (len > 256 || len < 16) {
        memcpy(to, from, len);
        return;
    }
    for (size_t at = 0; at + 16 <= len; at += 16)
        memcpy(to + at, from + at, 16);
    memcpy(to + len - 16, from + len - 16, 16);
}

/* Everything but the word. The checksum is taken from the source, while that is in the cache. */
static inline __attribute__((always_inline)) void fill(struct spate_local_record *record,
                                                       const struct spate_record *in,
                                                       enum spate_local_type type, uint64_t pos, uint32_t idx,
                                                       unsigned flags, bool unchecked)
{
    const size_t len = in->key.len + in->value.len;

    record->ts_ns = (uint64_t)in->ts_us * 1000;
    record->idx = idx;
    record->keyhash = in->key.len > 0 ? spate_murmur2(in->key.at, in->key.len) : 0;
    record->keylen = (uint16_t)in->key.len;
    record->type = (uint8_t)type;
    record->flags = (uint8_t)(flags | (in->key.len > 0 ? SPATE_LOCAL_HAS_KEY : 0));
    if (unchecked)
        record->flags |= SPATE_LOCAL_UNCHECKED;
    record->crc = unchecked ? 0
                            : spate_local_record_crc(record, pos, (uint32_t)len, in->key.at, in->value.at,
                                                     in->value.len);
    if (in->key.len > 0)
        copy(record->payload, in->key.at, in->key.len);
    copy(record->payload + in->key.len, in->value.at, in->value.len);
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
    if (in->value.len > SPATE_LOCAL_SPILL_MOST - in->key.len)
        return spate_fail(err, SPATE_QUARANTINE, "a record for topic %s has %zu bytes, the bus takes %zu",
                          a->topic->name, in->key.len + in->value.len, SPATE_LOCAL_SPILL_MOST);
    return SPATE_OK;
}

static bool is_large(const struct spate_local_append *a, const struct spate_record *in)
{
    return in->key.len + in->value.len > a->max_inline;
}

/* How many of the records go together: what still fits this segment, at most a batch. 0: the first one is too
 * large for a segment. */
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
        if (is_large(a, &records[*n]))
            break;
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
static inline bool commit(struct spate_local_append *a, uint64_t at, uint64_t total, size_t first_len)
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

/* A claim that cannot be filled: nobody waits for it. */
static void give_up(struct spate_local_append *a, uint64_t at, uint64_t total)
{
    uint64_t claimed = spate_local_word(SPATE_LOCAL_CLAIM, a->slot, a->gen, (uint32_t)total);

    atomic_compare_exchange_strong(&spate_local_record_at(&a->seg, at)->word, &claimed,
                                   spate_local_word(SPATE_LOCAL_PAD, 0, 0, (uint32_t)total));
}

/* Publishes what stands in `spill`. SPATE_END: its file was removed while we slept, with the claim. */
static enum spate_rc append_spill(struct spate_local_append *a, const struct spate_record *in,
                                  struct spate_local_spill *spill, uint64_t *end, struct spate_err *err)
{
    const struct spate_record ref = {
        .key = in->key,
        .value = spate_slice((const char *)&spill->ref, sizeof spill->ref),
        .ts_us = in->ts_us,
    };
    const size_t len = ref.key.len + ref.value.len;
    const uint64_t total = spate_local_footprint(len);
    bool committed;

    do {
        uint64_t at = 0;
        uint32_t idx = 0;
        enum spate_rc rc = claim(a, total, 1, &at, &idx, err);
        if (rc != SPATE_OK)
            return rc;
        SPATE_FAILPOINT(local_claimed);
        populate(a, at + total);
        /* Before the commit: who sees the record finds the file. */
        rc = spate_local_spill_call(spill, a->seg.base + at, err);
        if (rc != SPATE_OK) {
            give_up(a, at, total);
            return rc;
        }
        fill(spate_local_record_at(&a->seg, at), &ref, SPATE_LOCAL_SPILL, a->seg.base + at, idx, 0,
             a->unchecked);
        SPATE_FAILPOINT(local_filled);
        committed = commit(a, at, total, len);
        if (spate_local_segment_cut(&a->seg))
            return spate_local_segment_was_cut(&a->seg, false, err);
        *end = a->seg.base + at + total;
    } while (!committed);
    return SPATE_OK;
}

/* A segment says of how much it can, else retention has nothing to take but all at once. */
static uint64_t spill_share(const struct spate_local_append *a)
{
    return a->topic->manifest.is_volatile ? a->seg.cap : 4 * a->seg.cap;
}

/* Makes the file. Of a volatile topic, in shared memory, what is past makes room for what is new. */
static enum spate_rc make_spill(struct spate_local_append *a, struct spate_slice value,
                                struct spate_local_spill *spill, struct spate_err *err)
{
    const struct spate_local_topic *topic = a->topic;
    uint64_t missing;
    enum spate_rc rc = spate_local_spill_make(spill, topic, value, &missing, err);

    if (rc == SPATE_AGAIN && !topic->manifest.is_volatile)
        return spate_local_roll_no_disk_room(a, missing, "a large value needs a file of its own");
    if (rc != SPATE_AGAIN)
        return rc;
    if (spate_local_spill_bytes(topic->hot_fd, 0, UINT64_MAX) < missing)
        return spate_local_roll_no_hot_room(a, missing);
    rc = spate_local_roll_early(a, err);
    if (rc == SPATE_OK)
        rc = spate_local_roll_forget(a, a->seg.base, err);
    if (rc == SPATE_OK)
        rc = spate_local_spill_make(spill, topic, value, &missing, err);
    return rc == SPATE_AGAIN ? spate_local_roll_no_hot_room(a, missing) : rc;
}

/* One value that no segment takes. */
static enum spate_rc append_large(struct spate_local_append *a, const struct spate_record *in, uint64_t *end,
                                  struct spate_err *err)
{
    struct spate_local_spill spill;
    enum spate_rc rc = SPATE_OK;

    if (a->spilled > 0 && a->spilled + in->value.len > spill_share(a))
        rc = spate_local_roll_early(a, err);
    do {
        /* Not for nothing: the log may have no place for the record that would tell of it. */
        if (rc != SPATE_FAIL && rc != SPATE_AGAIN)
            rc = spate_local_roll_way(a, spate_local_footprint(in->key.len + sizeof spill.ref), err);
        if (rc == SPATE_OK)
            rc = make_spill(a, in->value, &spill, err);
        if (rc != SPATE_OK)
            return rc;
        rc = append_spill(a, in, &spill, end, err);
        if (rc == SPATE_OK)
            spate_local_spill_keep(&spill);
        else
            spate_local_spill_drop(&spill);
    } while (rc == SPATE_END);
    if (rc == SPATE_OK)
        a->spilled += in->value.len;
    return rc;
}

/* What comes after a commit. */
static void tell(struct spate_local_append *a, uint64_t offset)
{
    SPATE_FAILPOINT(local_committed);
    spate_local_segment_pass(&a->seg, offset);
    spate_local_bell_ring(&a->topic->bell->tip);
    if (a->errand)
        spate_local_steward_tell(a->errand);
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
        if (rc == SPATE_OK && n == 0) {
            rc = append_large(a, &records[0], ends, err);
            *taken = rc == SPATE_OK;
            if (rc == SPATE_OK)
                tell(a, ends[0] - a->seg.base);
            return rc;
        }
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
            fill(record, &records[i], SPATE_LOCAL_DATA, a->seg.base + offset, idx + (uint32_t)i, flags,
                 a->unchecked);
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
        *taken = n;
        tell(a, offset);
        return SPATE_OK;
    }
    return rc;
}

bool spate_local_append_one(struct spate_local_append *a, const struct spate_record *in, uint64_t *end)
{
    const size_t len = in->key.len + in->value.len;
    const uint64_t total = spate_local_footprint(len);
    uint64_t at;
    uint32_t idx;

    if (!a->seg.at || in->value.len == 0 || in->value.len > a->max_inline || in->key.len > UINT16_MAX ||
        len > a->max_inline)
        return false;
    /* What is not mapped yet, or is to be given back, is the other's business. */
    const uint64_t tail = spate_local_tail_bytes(
        atomic_load_explicit(&spate_local_header(&a->seg)->tail, memory_order_relaxed));
    if (tail + total > a->populated || tail > a->seg.passed + 2 * SPATE_LOCAL_PASS)
        return false;
    if (take(a, total, 1, &at, &idx) != TOOK)
        return false;
    SPATE_FAILPOINT(local_claimed);
    struct spate_local_record *record = spate_local_record_at(&a->seg, at);
    fill(record, in, SPATE_LOCAL_DATA, a->seg.base + at, idx, 0, a->unchecked);
    SPATE_FAILPOINT(local_filled);
    if (!commit(a, at, total, len) || spate_local_segment_cut(&a->seg))
        return false;
    SPATE_FAILPOINT(local_committed);
    *end = a->seg.base + at + total;
    spate_local_bell_ring(&a->topic->bell->tip);
    if (a->errand)
        spate_local_steward_tell(a->errand);
    return true;
}
