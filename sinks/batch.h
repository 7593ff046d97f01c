/* sinks/batch.h - changes on their way from the stream to the target: decoded, copied, waiting.
 *
 * Holds whole transactions, and behind them the beginning of one that is not complete yet. Bounded by its
 * user: bytes() says when it is time to apply. Thread: the sink's. */
#ifndef SPATE_SINKS_BATCH_H
#define SPATE_SINKS_BATCH_H

#include "core/arena.h"
#include "core/err.h"
#include "schemas/codec.h"
#include "sinks/item.h"

struct spate_batch {
    struct spate_item *items; /* owned */
    size_t count, capacity;
    size_t complete;             /* the first so many belong to whole transactions */
    struct spate_arena arena[2]; /* one in use, the other for what stays behind */
    int active;
    struct spate_value *scratch; /* owned: decoded rows, before they are narrowed to what is used */
    size_t scratch_count;
};

/* All zero is a valid empty batch. */
void spate_batch_fini(struct spate_batch *batch);

/* Decodes what the version uses of the row and keeps a copy. SPATE_FAIL (quarantine): the message contradicts
 * its schema, or lacks a column that is needed. */
SPATE_CHECKED enum spate_rc spate_batch_add(struct spate_batch *batch, const struct spate_version *version,
                                            struct spate_slice line, const struct spate_head *head,
                                            const struct spate_meta *meta, struct spate_err *err);
/* A key that a snapshot has looked up, in the key's order; copied. */
void spate_batch_add_answer(struct spate_batch *batch, const struct spate_version *version, uint64_t n,
                            const struct spate_value *key);
/* Room for `count` target tables, to be filled by the caller. */
const struct spate_projection **spate_batch_add_truncate(struct spate_batch *batch, uint64_t n, size_t count);

/* All that was added is whole transactions. */
static inline void spate_batch_boundary(struct spate_batch *batch)
{
    batch->complete = batch->count;
}
/* Forgets all but the first `count`, which may be no less than what is complete. */
static inline void spate_batch_cut(struct spate_batch *batch, size_t count)
{
    batch->count = count;
}
/* Forgets the transaction that is not complete. */
static inline void spate_batch_discard_open(struct spate_batch *batch)
{
    batch->count = batch->complete;
}
/* The first `count` items are applied; what stays behind is kept. */
void spate_batch_drop(struct spate_batch *batch, size_t count);
void spate_batch_clear(struct spate_batch *batch);

static inline size_t spate_batch_bytes(const struct spate_batch *batch)
{
    return batch->arena[batch->active].used + batch->count * sizeof *batch->items;
}

#endif
