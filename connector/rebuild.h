/* connector/rebuild.h - which transactions an earlier session of this stream may have delivered that no
 * snapshot sees yet (HAZARDS 6.6, after a restart).
 *
 * A transaction keeps the lock on its own xid until after it is visible; so those in question are among the
 * holders of such a lock at the moment when replication has been accepted (everything not confirmed then
 * comes again and is known by itself). Most of them are over a moment later. Of the rest, ones that merely
 * run were never delivered: the log is read back to the start of the oldest of them, since a commit cannot
 * precede its start. What cannot be decided stays in the list: chunks then wait until it is over.
 *
 * Thread: the desk's. Blocks: on the source and the bus. */
#ifndef SPATE_CONNECTOR_REBUILD_H
#define SPATE_CONNECTOR_REBUILD_H

#include "bus/bus.h"
#include "core/err.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_running { /* a transaction with an xid that is not over */
    uint32_t xid;
    int64_t started_us; /* since 1970, the source's clock; 0: the source does not tell us */
};

/* pg_locks, with pg_stat_activity and pg_prepared_xacts for the start where they tell it. Those of other
 * databases are left out, and those that idle inside a transaction: they commit later, in this session.
 * *running is freed by the caller. Needs no privileges; without pg_read_all_stats it knows no start.
 * SPATE_END: a stop was asked for. */
SPATE_CHECKED enum spate_rc spate_rebuild_running(PGconn *conn, struct spate_running **running, size_t *count,
                                                  struct spate_err *err);

/* Keeps in `running` only those that spate_rebuild_running still finds; *count is adjusted. */
SPATE_CHECKED enum spate_rc spate_rebuild_still(PGconn *conn, struct spate_running *running, size_t *count,
                                                struct spate_err *err);

/* Keeps in `running` only those that the stream's log holds, or of which it cannot tell; *count is adjusted.
 * Reads backwards from the end, to where commits are an hour older than the oldest known start (clocks step),
 * or to the epoch's opening, the oldest record, or half a gigabyte: who started before that stays.
 * SPATE_END: a stop was asked for. */
SPATE_CHECKED enum spate_rc spate_rebuild_scan(struct spate_bus *bus, const char *topic, uint64_t epoch,
                                               struct spate_running *running, size_t *count,
                                               struct spate_err *err);

#endif
