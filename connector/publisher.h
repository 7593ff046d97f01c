/* connector/publisher.h - lines onto the bus: one batch buffer, four writers (the walk's last room before
 * bus/bus.h).
 *
 * Lines are encoded straight into the batch; nothing is allocated per change and no transaction is kept.
 * A batch goes out when it is large enough or when the socket ran dry.
 *
 * Thread: the data plane.
 * Blocks: spate_publisher_open (until it owns the topics) and spate_publisher_settle. */
#ifndef SPATE_CONNECTOR_PUBLISHER_H
#define SPATE_CONNECTOR_PUBLISHER_H

#include "bus/bus.h"
#include "connector/connector.h"
#include "connector/ledger.h"
#include "core/buf.h"
#include "core/err.h"
#include "schemas/codec.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_PUBLISHER_RECORDS 1024

struct spate_publisher {
    const char *name; /* the connector's; borrowed */
    const char *slot; /* for messages; borrowed */
    char topic[240], schemas_topic[256];
    struct spate_bus *bus;
    struct spate_writer *stream, *schemas, *control, *peers;
    struct spate_reader *schemas_reader; /* of `_schemas`, and where it goes on (connector/schemas.h) */
    struct spate_bus_pos schemas_next;
    struct spate_buf bytes; /* keys and values of the batch, one after the other */
    struct spate_batched {
        size_t at, value_len, key_len; /* the key stands behind the value */
        int64_t ts_us;
        uint64_t token;
    } records[SPATE_PUBLISHER_RECORDS];
    size_t count; /* records in the batch */
    size_t done;  /* of them the bus has taken already (it said AGAIN) */
    size_t max_record;
    int64_t flushed_ms; /* when the stream was given records last; opening counts */
    bool failed;        /* the bus can promise nothing more: close, open anew, and recover */
};

/* Opens the bus and takes the stream's writer lock first: nothing is started on Postgres before (K15). While
 * another process owns it, waits with back-off and names the owner once.
 * SPATE_OK, SPATE_END (stop asked for), SPATE_FAIL. */
SPATE_CHECKED enum spate_rc spate_publisher_open(struct spate_publisher *publisher,
                                                 const struct spate_connector_config *config,
                                                 struct spate_err *err);
void spate_publisher_close(struct spate_publisher *publisher); /* drops what is still in the batch */

/* Appends to the batch, which must not be full. Tokens come from the ledger; 0: none.
 * SPATE_FAIL (quarantine): the change cannot be encoded or is larger than the bus takes; err->lsn is set and
 * the text names table, size and remedy. Nothing was appended. */
SPATE_CHECKED enum spate_rc spate_publisher_change(struct spate_publisher *publisher,
                                                   const struct spate_change *change, uint64_t token,
                                                   struct spate_err *err);
void spate_publisher_heartbeat(struct spate_publisher *publisher, const struct spate_heartbeat *heartbeat,
                               uint64_t token);
void spate_publisher_stale(struct spate_publisher *publisher, const struct spate_stale *stale);
void spate_publisher_epoch(struct spate_publisher *publisher, const struct spate_epoch *epoch,
                           uint64_t token);

/* A line of a snapshot, made of two parts that are put together here; it has no key and no token. SPATE_FAIL
 * (quarantine): it is larger than the bus takes; nothing was appended. */
SPATE_CHECKED enum spate_rc spate_publisher_line(struct spate_publisher *publisher, struct spate_slice head,
                                                 struct spate_slice rest, int64_t ts_us,
                                                 struct spate_err *err);

/* Time to flush: nothing more may be appended before. */
bool spate_publisher_full(const struct spate_publisher *publisher);
static inline bool spate_publisher_empty(const struct spate_publisher *publisher)
{
    return publisher->count == 0;
}

/* Offers the batch to the bus. SPATE_OK: all taken, the batch is empty. SPATE_AGAIN: the bus is full; keep
 * timers going and call again. */
SPATE_CHECKED enum spate_rc spate_publisher_flush(struct spate_publisher *publisher, struct spate_err *err);

/* Collects acknowledgements into the ledger without waiting. */
SPATE_CHECKED enum spate_rc spate_publisher_poll(struct spate_publisher *publisher,
                                                 struct spate_ledger *ledger, struct spate_err *err);

/* Flushes and waits until all of the stream is durable. SPATE_END: a stop was asked for meanwhile. */
SPATE_CHECKED enum spate_rc spate_publisher_settle(struct spate_publisher *publisher,
                                                   struct spate_ledger *ledger, struct spate_err *err);

/* Publishes on `_schemas` at once; key and value are borrowed for the call. The table's v is set.
 * SPATE_AGAIN: full, call again. Durable when spate_publisher_schemas_durable says so. */
SPATE_CHECKED enum spate_rc spate_publisher_schema(struct spate_publisher *publisher,
                                                   const struct spate_table *table, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_publisher_storage(struct spate_publisher *publisher,
                                                    const struct spate_storage *storage,
                                                    struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_publisher_schemas_epoch(struct spate_publisher *publisher,
                                                          const struct spate_epoch *epoch,
                                                          struct spate_err *err);
/* SPATE_OK: all of `_schemas` is durable; SPATE_AGAIN: not yet. Waits up to timeout_ms. */
SPATE_CHECKED enum spate_rc spate_publisher_schemas_durable(struct spate_publisher *publisher, int timeout_ms,
                                                            struct spate_err *err);

#endif
