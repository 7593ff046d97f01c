/* sinks/start.h - one sink, and how it gets to where it streams: bus, target, schemas, checks, place.
 *
 * Thread: the sink's. Blocks: until what is missing is there, or a stop is asked for. Internal to sinks/. */
#ifndef SPATE_SINKS_START_H
#define SPATE_SINKS_START_H

#include "sinks/apply.h"
#include "sinks/batch.h"
#include "sinks/loading.h"
#include "sinks/projection.h"
#include "sinks/reader.h"
#include "sinks/registry.h"
#include "sinks/store.h"
#include "sinks/taking.h"

struct spate_sink {
    const struct spate_sink_config *config;
    const struct spate_sink_orders *orders;
    bool restart; /* forget the position, and what was loaded, first */
    bool skips;   /* orders name records to be skipped that the target does not know of yet */
    struct spate_bus *bus;
    struct spate_feed feed;
    struct spate_registry registry;
    struct spate_store store;
    struct spate_apply apply;
    struct spate_batch batch;
    struct spate_loading loading;         /* when it asks for everything */
    struct spate_taking taking;           /* what comes of it */
    struct spate_projection *projections; /* owned */
    size_t projection_count;
    struct spate_arena arena; /* of one message's decoding */

    int64_t stored_ms; /* when the position was written last */
    int64_t event_ms;  /* when something was heard last */
    bool parked;       /* an unfinished transaction was rolled back; it is read again when it goes on */
    bool reprepared;   /* since the last commit: a stale statement gets one new connection */
    unsigned failures; /* in a row, for the back-off */
    struct spate_counts before; /* counters of earlier processes */
    uint64_t applied;
    struct spate_log_limit missing_log;
    uint64_t missing_told;
    bool known;       /* its name on the bus is this process' (sinks/known.h) */
    int64_t known_ms; /* when that is tried again */
    struct spate_log_limit known_log;
    struct spate_mark done; /* up to what is complete in the batch; epoch 0: before all of it */
    struct spate_log_limit late_log;
    int64_t late_ms;   /* when late tables were looked for last */
    uint64_t marked;   /* tables that became stale, in this process (sinks/stale.h) */
    uint64_t lacked;   /* of them, because a row was missing */
    int64_t behind_us; /* wall: the oldest thing heard that the target does not hold; 0: it holds all */
};

/* Since the sink was made. */
struct spate_counts spate_sink_counts(const struct spate_sink *sink);

/* SPATE_OK, SPATE_END (a stop was asked for), SPATE_FAIL (this sink cannot run). `anew`: as with --restart.
 */
SPATE_CHECKED enum spate_rc spate_sink_open(struct spate_sink *sink, const struct spate_sink_config *config,
                                            const struct spate_sink_orders *orders, bool anew,
                                            struct spate_err *err);
void spate_sink_close(struct spate_sink *sink);

/* Connects to the target again after a failure, with back-off, checks the tables anew and goes back to the
 * stored place. `cause` is what made it necessary. */
SPATE_CHECKED enum spate_rc spate_sink_recover(struct spate_sink *sink, const struct spate_err *cause,
                                               struct spate_err *err);
/* Reads on from the stored place; what was read since is forgotten. */
SPATE_CHECKED enum spate_rc spate_sink_rewind(struct spate_sink *sink, struct spate_err *err);

/* The version of a table that a message names; read from `_schemas` and checked when it is new, and the
 * target table altered where a sink does so by itself. *version NULL: it is past, and what was written by it
 * does not fit the target table of today; the table is marked, since it needs everything. Commits what is
 * complete. */
SPATE_CHECKED enum spate_rc spate_sink_version(struct spate_sink *sink, struct spate_projection *projection,
                                               uint32_t v, struct spate_version **version,
                                               struct spate_err *err);

/* The same where a target transaction may be open: a version that is new needs the target's parser, which an
 * open transaction is in the way of: it is given up and read again. *rewound: the event is gone with it. */
SPATE_CHECKED enum spate_rc spate_sink_version_at(struct spate_sink *sink,
                                                  struct spate_projection *projection, uint32_t v,
                                                  struct spate_version **version, bool *rewound,
                                                  struct spate_err *err);

/* Applies the first `count` items of the batch; commits up to the stream's mark, or leaves a piece in the
 * open transaction. */
SPATE_CHECKED enum spate_rc spate_sink_flush(struct spate_sink *sink, size_t count, bool commit,
                                             struct spate_err *err);

/* The version of its source's table that was published last; NULL: none. */
const struct spate_table *spate_sink_newest(const struct spate_sink *sink,
                                            const struct spate_projection *projection);
/* The table against that version: made, followed or compared, and it is the current one. */
SPATE_CHECKED enum spate_rc
spate_sink_check_table(struct spate_sink *sink, struct spate_projection *projection, struct spate_err *err);

/* Is that version checked and prepared, so that it can be had inside a transaction? */
bool spate_sink_knows(const struct spate_sink *sink, const struct spate_projection *projection, uint32_t v);

/* Waits. False: a stop was asked for. */
bool spate_sink_pause(int ms);

#endif
