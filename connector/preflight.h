/* connector/preflight.h - what the source is at this moment: its identity, its WAL, the slot (what is wrong
 * with it: connector/check.h).
 *
 * Thread: the data plane, before streaming.
 * Blocks: on the source, in ordinary queries. */
#ifndef SPATE_CONNECTOR_PREFLIGHT_H
#define SPATE_CONNECTOR_PREFLIGHT_H

#include "connector/connector.h"
#include "connector/epoch.h"
#include "connector/replication.h"
#include "core/err.h"

#include <libpq-fe.h>
#include <stdbool.h>

/* Which server it is, and how far its WAL is flushed at this moment (IDENTIFY_SYSTEM). */
SPATE_CHECKED enum spate_rc spate_preflight_identify(struct spate_replication *repl,
                                                     struct spate_source_state *state, struct spate_err *err);

/* Fills *state from IDENTIFY_SYSTEM and the catalog. */
SPATE_CHECKED enum spate_rc spate_preflight_state(struct spate_replication *repl, PGconn *sql,
                                                  const char *slot, struct spate_source_state *state,
                                                  struct spate_err *err);

/* The slot's confirmed LSN as it is at this moment. */
SPATE_CHECKED enum spate_rc spate_preflight_confirmed(PGconn *sql, const char *slot, uint64_t *confirmed,
                                                      struct spate_err *err);

SPATE_CHECKED enum spate_rc spate_preflight_publication(PGconn *sql, const char *publication, bool *exists,
                                                        struct spate_err *err);

#endif
