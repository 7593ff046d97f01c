/* sinks/fold.h - a run of changes becomes a piece: at most one entry per row, ready for a set-based merge.
 *
 * Pure: no database. Inside a piece all deletes are applied before all upserts, so the order of changes to
 * different rows does not matter any more, and the last state of each row is all that counts (T10).
 * What that would get wrong ends the piece: a TRUNCATE, and a key that moves while a value of the row was not
 * sent (P42): both stand in a piece of their own; and keys that a snapshot answered, which stand among
 * themselves. A row of a snapshot is an upsert of a row that may be there. */
#ifndef SPATE_SINKS_FOLD_H
#define SPATE_SINKS_FOLD_H

#include "core/arena.h"
#include "sinks/item.h"

enum spate_entry_op {
    SPATE_ENTRY_DELETE = 'd',
    SPATE_ENTRY_UPSERT = 'u',  /* every used column is known */
    SPATE_ENTRY_REPLACE = 'r', /* deleted, then inserted again: columns that are the team's own begin anew */
    SPATE_ENTRY_PARTIAL = 'p', /* some used columns are ABSENT: their values did not change (T11) */
    SPATE_ENTRY_MOVE = 'm',    /* partial, and the key changes: stands alone in its piece */
    SPATE_ENTRY_ANSWERED = 'k' /* no change: the key was looked up for the re-read list, which it leaves */
};

struct spate_entry {
    const struct spate_version *version;
    const struct spate_value *key, *old_key, *values;
    uint64_t n; /* of the last change folded into it */
    uint64_t hash;
    enum spate_entry_op op;
    bool fresh; /* the piece itself brought the row into being: before it, there was none */
};

struct spate_piece {
    enum { SPATE_PIECE_ROWS, SPATE_PIECE_TRUNCATE } kind;
    const struct spate_item *truncate;
    struct spate_entry *entries; /* owned, as is the rest */
    size_t count, capacity;
    uint32_t *slots;
    size_t slot_count;
    bool answers;                          /* it is about answered keys alone */
    const struct spate_version **versions; /* by projection: which version this piece is about */
    size_t version_count;
    struct spate_arena arena; /* filled-in rows */
};

/* All zero is a valid empty piece. Folds items from the first on until the piece has to end; returns how many
 * went in, at least one when count > 0. The items are not changed; entries borrow from them and from the
 * piece. */
size_t spate_fold(struct spate_piece *piece, const struct spate_item *items, size_t count);
void spate_piece_fini(struct spate_piece *piece);

#endif
