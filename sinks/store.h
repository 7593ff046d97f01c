/* sinks/store.h - one sink's session with its target: who owns the sink, and how far it got.
 *
 * The position stands in the team's own schema and is written in the same transaction as the rows (T1):
 *   <schema>.spate_sink    one row per sink: place in the stream, generation, owner, counters
 *   <schema>.spate_table   which sink writes which table
 * Thread: the sink's. Blocks: all of it, on the target; a stop that is asked for ends each call early. */
#ifndef SPATE_SINKS_STORE_H
#define SPATE_SINKS_STORE_H

#include "core/buf.h"
#include "pg/pg.h"
#include "sinks/reader.h"
#include "sinks/sink.h"

struct spate_counts {
    uint64_t applied;    /* changes of this sink's tables */
    uint64_t duplicates; /* dropped */
    uint64_t holes;
    uint64_t missing; /* partial updates and deletes that found no row */
};

struct spate_store {
    bool *ready; /* owned, by table of the file: it stood there complete before (spate_table.ready) */
    const struct spate_sink_config *config;
    const char *source_driver; /* of the bus: which positions the stored text may hold */
    PGconn *conn;
    unsigned serial; /* counts connections: what was prepared on an older one is gone */
    char *schema;    /* quoted */
    int64_t generation;
    bool looking;                /* for spate_sink_check: nothing is made, claimed or locked */
    bool restart;                /* what is stored will be forgotten: it need not be readable */
    bool stored;                 /* there is a stored mark; false: a new sink */
    struct spate_mark mark;      /* as stored; the guard of the next write */
    char log_id[100];            /* of the log the mark belongs to */
    struct spate_counts counts;  /* since the sink was made; written with the position */
    struct spate_bus_pos *skips; /* owned: records that a person has asked to pass by */
    size_t skip_count;
};

void spate_store_init(struct spate_store *store, const struct spate_sink_config *config);
void spate_store_fini(struct spate_store *store);

/* Connects, pins the session, makes schema and tables when they are missing, waits until no other process
 * owns the sink (naming the owner), raises the generation - which fences whoever owned it before (T3) - and
 * reads the stored mark. SPATE_END: a stop was asked for. SPATE_FAIL: retry = connect again later; fatal =
 * the text says why. */
SPATE_CHECKED enum spate_rc spate_store_open(struct spate_store *store, struct spate_err *err);
/* Connects and pins the session alone, and reads the stored mark where there is one (sinks/check.h). */
SPATE_CHECKED enum spate_rc spate_store_look(struct spate_store *store, struct spate_err *err);
void spate_store_close(struct spate_store *store);

/* Forgets the position: --restart. */
SPATE_CHECKED enum spate_rc spate_store_forget(struct spate_store *store, struct spate_err *err);

/* --skip: the position stands in the sink's row from now on (`skipped`), for whoever reads the table later.
 */
SPATE_CHECKED enum spate_rc spate_store_skip(struct spate_store *store, struct spate_bus_pos pos,
                                             struct spate_err *err);

/* Owns all tables of the file, or says which sink owns one of them. */
SPATE_CHECKED enum spate_rc spate_store_claim_tables(struct spate_store *store, struct spate_err *err);
/* All tables of the file are there and fit, but for those that are late (sinks/late.h): one that is missing
 * from now on was dropped by somebody. `projections` are by table of the file. */
struct spate_projection;
SPATE_CHECKED enum spate_rc spate_store_tables_ready(struct spate_store *store,
                                                     const struct spate_projection *projections,
                                                     struct spate_err *err);

/* Appends one statement that writes the mark, guarded by the stored one and the generation: it raises an
 * error when another process has moved either (T1, T3). */
void spate_store_write_sql(const struct spate_store *store, struct spate_buf *sql,
                           const struct spate_mark *mark, const char *log_id,
                           const struct spate_counts *counts);
/* After that was committed. */
void spate_store_written(struct spate_store *store, const struct spate_mark *mark, const char *log_id,
                         const struct spate_counts *counts);
/* After an error: is it still ours to write? SPATE_FAIL (fatal): another process took over, or the row is
 * gone. */
SPATE_CHECKED enum spate_rc spate_store_check(struct spate_store *store, struct spate_err *err);

#endif
