/* connector/hidden.h - H of HAZARDS 6.6: transactions that the stream has delivered and that a snapshot may
 * not see yet, with the keys they touched.
 *
 * Postgres makes a commit visible after its record is in the WAL; behind a synchronous standby much later
 * (P91). So a chunk that was read under a snapshot S may miss what the stream has already said. H knows which
 * transactions those are: rows that they touched are not emitted, and a chunk that misses something which was
 * delivered before its request began is read again.
 *
 * Pure: no I/O, no clock. Thread: the data plane. */
#ifndef SPATE_CONNECTOR_HIDDEN_H
#define SPATE_CONNECTOR_HIDDEN_H

#include "core/buf.h"
#include "core/err.h"
#include "core/slice.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* pg_current_snapshot(): "xmin:xmax:xip,xip". 64-bit xids. */
struct spate_snapshot {
    uint64_t xmin, xmax;
    uint64_t *xip; /* owned; ascending */
    size_t count;
};
SPATE_CHECKED enum spate_rc spate_snapshot_parse(const char *text, struct spate_snapshot *snapshot,
                                                 struct spate_err *err);
void spate_snapshot_fini(struct spate_snapshot *snapshot);
void spate_snapshot_copy(struct spate_snapshot *to, const struct spate_snapshot *from);
/* A Begin's 32 bits, widened near xmax. */
uint64_t spate_snapshot_widen(const struct spate_snapshot *snapshot, uint32_t xid);
/* A standby does not name those that run (pg_current_snapshot() leaves them out there): from now on only what
 * is older than all of them counts as seen. */
void spate_snapshot_doubt(struct spate_snapshot *snapshot);
/* Is that transaction over, as far as this snapshot is concerned? Top-level xids only (P18). */
bool spate_snapshot_sees(const struct spate_snapshot *snapshot, uint32_t xid);

struct spate_hidden;

/* key_bytes: keys are held up to so many bytes in all; a transaction beyond it counts as having touched every
 * row of the table. */
struct spate_hidden *spate_hidden_new(size_t key_bytes);
void spate_hidden_free(struct spate_hidden *hidden);
void spate_hidden_clear(struct spate_hidden *hidden); /* a new session: nothing is known any more */

/* The stream's transactions, in order; and, with commit LSN 0, those that an earlier session may have
 * delivered (connector/rebuild.h). Keys of an open transaction count only from its commit on. `table` is a
 * small number that the caller gave a watched table. */
void spate_hidden_begin(struct spate_hidden *hidden, uint32_t xid, uint64_t commit_lsn);
void spate_hidden_touch(struct spate_hidden *hidden, uint32_t table, struct spate_slice key);
void spate_hidden_touch_all(struct spate_hidden *hidden, uint32_t table); /* TRUNCATE */
void spate_hidden_commit(struct spate_hidden *hidden);

/* Nobody asks about this table any more: its keys are given back. */
void spate_hidden_forget(struct spate_hidden *hidden, uint32_t table);
/* All that this snapshot sees may be forgotten: no chunk with an older snapshot is out. */
void spate_hidden_prune(struct spate_hidden *hidden, const struct spate_snapshot *snapshot);
size_t spate_hidden_count(const struct spate_hidden *hidden);
size_t spate_hidden_bytes(const struct spate_hidden *hidden);

/* Is there a transaction that the snapshot misses and that was delivered with a commit LSN <= lsn? *xid: one
 * of them, for messages to people. */
bool spate_hidden_missed(const struct spate_hidden *hidden, const struct spate_snapshot *snapshot,
                         uint64_t lsn, uint32_t *xid);

/* The keys of the table that were touched by delivered transactions which the snapshot misses: Touched. */
struct spate_touched {
    bool all; /* any row may have been: TRUNCATE, or beyond the cap */
    size_t count;
    struct spate_slice *keys; /* owned array; the bytes are the hidden list's, valid until it changes */
    uint32_t *slots;          /* owned */
    size_t slot_count;
};
void spate_hidden_touched(const struct spate_hidden *hidden, const struct spate_snapshot *snapshot,
                          uint32_t table, struct spate_touched *touched);
bool spate_touched_has(const struct spate_touched *touched, struct spate_slice key);
void spate_touched_fini(struct spate_touched *touched);

/* A row's key as H holds it: its columns' texts, each behind its length. From table->column_count values. */
void spate_hidden_key(struct spate_buf *out, const struct spate_table *table,
                      const struct spate_value *values);

#endif
