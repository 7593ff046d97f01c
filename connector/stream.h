/* connector/stream.h - the data plane: everything that one row change passes on its way to the bus, in the
 * order of README.md's map, stepped one bounded turn at a time.
 *
 * Thread: one, which owns all of this.
 * Blocks: spate_stream_turn never, except that a table whose shape is new holds the stream until its schema
 * is durable on the bus; feedback goes on meanwhile. spate_stream_wait sleeps until there is something to do.
 */
#ifndef SPATE_CONNECTOR_STREAM_H
#define SPATE_CONNECTOR_STREAM_H

#include "connector/catalog.h"
#include "connector/connector.h"
#include "connector/epoch.h"
#include "connector/ledger.h"
#include "connector/publisher.h"
#include "connector/recovery.h"
#include "connector/relation.h"
#include "connector/replication.h"
#include "connector/told.h"
#include "connector/transaction.h"
#include "connector/versions.h"
#include "connector/weave.h"

struct spate_stream {
    const struct spate_connector_config *config;

    /* the walk */
    struct spate_replication repl;
    struct spate_relations relations;
    struct spate_transaction tx;
    struct spate_publisher publisher;
    struct spate_ledger ledger;

    /* beside the walk */
    PGconn *sql; /* an ordinary connection, for the catalog; owned */
    struct spate_catalog catalog;
    struct spate_versions *versions; /* owned */
    bool tables_known;               /* this session has read the catalog, and published what it says */
    struct spate_epoch_record epoch; /* the newest in `_schemas` */
    struct spate_tail tail;          /* where this connection began */
    struct spate_recheck recheck;
    struct spate_weave *weave; /* snapshots; owned by the connector */
    struct spate_told *told;   /* of what no message carries; owned by the connector */

    uint64_t floor;       /* greatest end that stood on the bus when this connection began */
    int64_t heartbeat_ms; /* when the last heartbeat was published, or the connection began */
    bool dry;             /* the socket had nothing more */
    bool dense;           /* it did have, less than a millisecond before */
    int64_t frame_us;     /* when the last frame came */
    uint64_t frame_lsn;   /* for messages to people */
    uint64_t changes;     /* published on this connection */
    uint64_t stalled_us;  /* how long the source was not read, because the bus or the ledger was full */
    uint64_t durable;     /* position of the bus, and since when it stands there with more behind it */
    int64_t durable_ms;
    int64_t glance_ms; /* when `_schemas` was looked at last */

    struct { /* for those who look (connector/status.h): over all connections */
        uint64_t changes[SPATE_OP_UNKNOWN + 1]; /* published, by op */
        uint64_t bytes, heartbeats, stalled_us;
        uint64_t ended_n; /* the last change that ended its transaction, and when that was committed */
        int64_t ended_us;
    } counts;
};

/* One turn at `now_ms`: acknowledgements, frames, batch, heartbeat, status.
 * SPATE_OK: call _wait, then again. SPATE_END: a stop was asked for. SPATE_FAIL: the connection is over;
 * err->verdict says what to do. */
SPATE_CHECKED enum spate_rc spate_stream_turn(struct spate_stream *stream, int64_t now_ms,
                                              struct spate_err *err);
void spate_stream_wait(struct spate_stream *stream, int64_t now_ms);

/* For what must happen between two frames: waits until `fd` is readable (-1: at most 5 ms), while statuses
 * go out and acknowledgements come in. SPATE_END: a stop was asked for. Usable before streaming, too. */
SPATE_CHECKED enum spate_rc spate_stream_serve(struct spate_stream *stream, int fd, struct spate_err *err);

/* What of a table of the source may be shown, by the rules of the connector's file; takes `raw`, as the
 * source has it. Asks the source where there are rules. SPATE_OK, SPATE_END (stop), SPATE_FAIL: REFUSED. */
SPATE_CHECKED enum spate_rc spate_stream_cover(struct spate_stream *stream, uint32_t oid,
                                               struct spate_table *raw, struct spate_cover **cover,
                                               struct spate_err *err);
/* Gives the cover's table its v, and makes sure that the version is durable on `_schemas`. Nothing is
 * described to followers but what a cover shows. */
SPATE_CHECKED enum spate_rc spate_stream_version(struct spate_stream *stream, const struct spate_cover *cover,
                                                 const struct spate_table **version, struct spate_err *err);
/* The two halves of it, for many tables at once: publish what is new, then wait once. */
SPATE_CHECKED enum spate_rc spate_stream_offer(struct spate_stream *stream, const struct spate_cover *cover,
                                               const struct spate_table **version, bool *fresh,
                                               struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_stream_schemas_durable(struct spate_stream *stream, struct spate_err *err);

#endif
