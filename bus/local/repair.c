/* bus/local/repair.c - who blocks a place in the log, and making it final. */
#include "bus/local/repair.h"

#include "bus/local/broken.h"
#include "bus/local/lock.h"
#include "bus/local/spill.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <inttypes.h>

int spate_local_repair_free_ms = 2;
int spate_local_repair_claim_ms = 1000;

static uint64_t taken(const struct spate_local_segment *seg)
{
    const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(seg)->tail));

    return tail < seg->cap ? tail : seg->cap;
}

/* The region at `at` was never claimed: no byte of it was written, and none will be, once its start is lost
 * to its owner (I3). So it is padded slot by slot up to whatever stands next. */
static void pad_free(const struct spate_local_segment *seg, uint64_t at, uint64_t end)
{
    for (; at < end; at += SPATE_LOCAL_UNIT) {
        uint64_t expected = 0;
        if (!atomic_compare_exchange_strong(&spate_local_record_at(seg, at)->word, &expected,
                                            spate_local_word(SPATE_LOCAL_PAD, 0, 0, SPATE_LOCAL_UNIT)))
            return;
    }
}

static bool owner_lives(const struct spate_local_repair *r, uint64_t word, struct spate_local_ctl *ctl)
{
    const unsigned slot = (unsigned)(word >> 44) & 0xfff, gen = (unsigned)(word >> 32) & 0xfff;

    if (r->alone || slot >= SPATE_LOCAL_WRITERS || (atomic_load(&ctl->writers[slot].gen) & 0xfff) != gen)
        return false;
    if (slot == r->slot)
        return gen == (r->gen & 0xfff);
    return spate_local_lock_alone(r->lock_fd, (int)slot);
}

static enum spate_rc damaged(const struct spate_local_segment *seg, uint64_t offset, struct spate_err *err)
{
    return spate_fail(
        err, SPATE_FATAL,
        "the shared memory of the bus is damaged at position %016" PRIx64
        "; stop every spate of this bus and remove its hot root: what is not durable yet will be "
        "sent again by the source",
        seg->base + offset);
}

enum spate_rc spate_local_repair(struct spate_local_repair *r, const struct spate_local_segment *seg,
                                 uint64_t offset, struct spate_local_ctl *ctl, struct spate_err *err)
{
    const uint64_t end = taken(seg);
    struct spate_local_record *record = spate_local_record_at(seg, offset);
    uint64_t word = atomic_load(&record->word), size;
    uint32_t len;

    switch (spate_local_step(record, seg->cap - offset, &size, &len)) {
    case SPATE_LOCAL_STEP_OPEN:
        break;
    case SPATE_LOCAL_STEP_BAD:
        return damaged(seg, offset, err);
    default:
        return SPATE_OK;
    }
    if (offset >= end)
        return SPATE_END;
    if (SPATE_BROKEN(NO_REPAIR))
        return SPATE_AGAIN;
    if (r->since_us == 0 || r->pos != seg->base + offset || r->word != word) {
        r->pos = seg->base + offset;
        r->word = word;
        r->since_us = spate_clock_us();
    }
    const bool lives = word == 0 ? !r->alone : owner_lives(r, word, ctl);
    const int64_t most = 1000 * (word == 0 ? spate_local_repair_free_ms : spate_local_repair_claim_ms);
    if (lives && ((word == 0 && r->sole) || spate_clock_us() - r->since_us < most))
        return SPATE_AGAIN;
    r->since_us = 0;
    /* Somebody cut the file, and what was published reads as zeros: that must not become final. */
    if (!spate_local_segment_whole(seg, r->hot_fd))
        return spate_local_segment_was_cut(seg, false, err);
    SPATE_FAILPOINT(local_settle);
    if (word == 0) {
        pad_free(seg, offset, end);
    } else {
        const uint64_t total = spate_local_len_of(word);
        if (total == 0 || total % SPATE_LOCAL_UNIT != 0 || total > seg->cap - offset)
            return damaged(seg, offset, err);
        if (!atomic_compare_exchange_strong(&record->word, &word,
                                            spate_local_word(SPATE_LOCAL_PAD, 0, 0, (uint32_t)total)))
            return SPATE_OK; /* it was committed after all */
        spate_local_spill_remove_one(r->spill_fd, seg->base + offset);
    }
    atomic_fetch_add(&ctl->pads, 1);
    if (lives)
        atomic_fetch_add(&ctl->fences, 1);
    return SPATE_OK;
}
