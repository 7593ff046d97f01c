/* connector/transaction.h - frames to numbered changes: Begin, changes, Commit.
 *
 * Gives each change its ordinal inside the transaction (P18) and its number `n`, and holds the newest one
 * back until the next message shows whether it was the transaction's final one, which carries `end`. The
 * held change borrows from its libpq buffer; nothing is copied, whatever the transaction's size.
 *
 * Thread: the data plane. No I/O. */
#ifndef SPATE_CONNECTOR_TRANSACTION_H
#define SPATE_CONNECTOR_TRANSACTION_H

#include "connector/pgoutput.h"
#include "connector/relation.h"
#include "core/err.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_transaction {
    bool open;
    bool passed_by; /* it belongs to before an epoch's opening: no numbers */
    uint64_t commit_lsn;
    int64_t commit_us;
    uint32_t xid, ordinal;

    uint64_t next_n;
    uint64_t epoch;
    struct spate_slice source;
    uint64_t skip_below; /* see struct spate_tail */
    bool has_align;
    struct spate_pos align;

    bool holding;
    struct spate_change held;           /* valid while holding; end is 0 */
    char *buffer;                       /* libpq's, that held borrows from; owned */
    struct spate_value *before, *after; /* owned, `columns` each */
    struct spate_value *raw; /* of a table whose rows are covered, as the source sent them; likewise */
    size_t columns;
    char *digests; /* that held borrows from; owned */
    size_t digest_room;
    const struct spate_table **tables; /* of a held truncate; owned */
    size_t table_cap;
};

/* A new connection: numbers go on after `first`. Drops what is held. */
void spate_transaction_start(struct spate_transaction *tx, struct spate_slice source, uint64_t epoch,
                             uint64_t first);
void spate_transaction_fini(struct spate_transaction *tx);

SPATE_CHECKED enum spate_rc spate_transaction_begin(struct spate_transaction *tx,
                                                    const struct spate_pgoutput *msg, struct spate_err *err);

/* Insert, update, delete, truncate or a transactional message; nothing may be held. *taken says whether the
 * change is held now, and with it `buffer`; else it was passed by.
 * SPATE_FAIL (fatal): outside a transaction, no Relation for it, or a row that does not fit its relation. */
SPATE_CHECKED enum spate_rc spate_transaction_change(struct spate_transaction *tx,
                                                     const struct spate_relations *relations,
                                                     const struct spate_pgoutput *msg, char *buffer,
                                                     bool *taken, struct spate_err *err);

/* Checks that the Commit fits its Begin and closes. What is held must have been settled before. */
SPATE_CHECKED enum spate_rc spate_transaction_commit(struct spate_transaction *tx,
                                                     const struct spate_pgoutput *msg, struct spate_err *err);

/* The held change is published or compared: its buffer is freed. */
void spate_transaction_release(struct spate_transaction *tx);

#endif
