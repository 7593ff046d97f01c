/* connector/ledger.h - which LSN may be confirmed to Postgres. The only place that knows.
 *
 * Every message that completes something - a transaction's final change, a heartbeat, an epoch - carries an
 * `end` and gets a token here before it is published. When the bus says that a token is durable, so is all
 * that was published before it, and its `end` may be confirmed. Nothing else may (P1, P3, P12).
 *
 * Thread: the data plane. Does no I/O, knows no clock. */
#ifndef SPATE_CONNECTOR_LEDGER_H
#define SPATE_CONNECTOR_LEDGER_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_ledger {
    uint64_t *ends;       /* ring: the end of token t stands at t % cap; owned */
    uint64_t cap;         /* a power of two */
    uint64_t first, next; /* tokens first..next-1 are published and not known to be durable */
    uint64_t published;   /* the greatest end that stands on the bus, durable or not */
    uint64_t confirmed;   /* the greatest end that is durable with all before it: may be said */
    uint64_t received;    /* the greatest LSN this connection gave us: nothing above it may be said (P12) */
};

void spate_ledger_init(struct spate_ledger *ledger, size_t cap);
void spate_ledger_fini(struct spate_ledger *ledger);

/* A new connection that starts at the slot's confirmed LSN. Tokens that are still out are forgotten: whoever
 * calls this has made sure that all the bus holds is durable, and reads it back (connector/recovery.h).
 * Tokens handed out before are never handed out again, so a late acknowledgement is recognised and ignored.
 */
void spate_ledger_start(struct spate_ledger *ledger, uint64_t confirmed_lsn);

/* Postgres showed us this LSN on this connection. 0 is no position (P16). */
void spate_ledger_received(struct spate_ledger *ledger, uint64_t lsn);

/* No room for another token: stop reading Postgres until the bus has caught up. */
static inline bool spate_ledger_full(const struct spate_ledger *ledger)
{
    return ledger->next - ledger->first == ledger->cap;
}
static inline bool spate_ledger_idle(const struct spate_ledger *ledger)
{
    return ledger->first == ledger->next;
}

/* The token for a message that carries `end` and is about to be published. The ledger must not be full.
 * SPATE_FAIL (fatal): the end was never received here, or goes back: a bug or a server that lies. */
SPATE_CHECKED enum spate_rc spate_ledger_add(struct spate_ledger *ledger, uint64_t end, uint64_t *token,
                                             struct spate_err *err);

/* The bus says that this token's record and all before it are durable. */
void spate_ledger_durable(struct spate_ledger *ledger, uint64_t token);

/* A message with this end was decoded again and found on the bus, which held it durably before this
 * connection began: the same as adding it and hearing that it is durable. */
SPATE_CHECKED enum spate_rc spate_ledger_found(struct spate_ledger *ledger, uint64_t end,
                                               struct spate_err *err);

#endif
