/* sinks/load.h - one table of a sink while a snapshot of it is under way, and what is known of it afterwards.
 *
 * The state stands in <schema>.spate_table and moves in the same target transaction as rows and position
 * (T1). While a table is being loaded "the generation" is every row that came whole since snapshot-begin: a
 * row of a chunk, an insert, a whole update. A partial update touches rows of the generation only; the key of
 * one that finds none goes on the re-read list, and is asked for again (HAZARDS 6.6, P94). What is not of the
 * generation at the end is removed.
 *
 * Thread: the sink's. Blocks: on the target. */
#ifndef SPATE_SINKS_LOAD_H
#define SPATE_SINKS_LOAD_H

#include "core/buf.h"
#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_projection;
struct spate_store;

/* Where the generation is. */
enum spate_load_kind {
    SPATE_LOAD_NONE,   /* no snapshot is under way */
    SPATE_LOAD_EMPTY,  /* the target was empty at its begin: every row in it is of the generation */
    SPATE_LOAD_MARKED, /* on_snapshot: sweep: keys of the generation stand in a table of marks */
    SPATE_LOAD_SHADOW, /* on_snapshot: swap: the generation is a table of its own until the end; readers see
                          the old picture until then */
    SPATE_LOAD_ADD     /* conditional: adds and corrects; every row counts as known; nothing is removed */
};

#define SPATE_REQUEST_MOST 64

/* Part of struct spate_projection (`load`); written by the functions below alone. */
struct spate_load {
    bool
        ready; /* holds exactly what exists: a partial update or a delete that finds no row is an error now */
    bool changed; /* the stored hash of the projection is another one than the file's: it has to be loaded
                     anew */
    enum spate_load_kind kind;
    char request[SPATE_REQUEST_MOST];
    uint64_t chunk;     /* greatest `no` taken (in memory: of the batch; stored with it) */
    char *resume;       /* owned; the last token, "" at first */
    bool ranges_known;  /* ranges-end was taken */
    uint64_t ranges;    /* chunks by then */
    bool dirty;         /* chunk, resume or ranges moved since they were stored */
    char *target;       /* SHADOW: where rows go, quoted; else NULL; owned */
    char *marks, *list; /* quoted names of the tables of marks and keys to be read again; owned */
};

/* Reads what is stored of all tables of the file; part of claiming them. Sets `changed`. */
SPATE_CHECKED enum spate_rc spate_load_read(struct spate_store *store, struct spate_projection *projections,
                                            size_t count, struct spate_err *err);
void spate_load_fini(struct spate_load *load);

/* snapshot-begin: chooses the kind, makes the tables that it needs. In the open target transaction if there
 * is one (appends to the script), else in one of its own; the caller writes the position with it. Loading the
 * same request already: nothing. Statements of the projection have to be prepared anew afterwards
 * (state->serial). */
struct spate_apply;
SPATE_CHECKED enum spate_rc spate_load_begin(struct spate_apply *apply, struct spate_projection *projection,
                                             const char *request, bool conditional, struct spate_err *err);
/* Statements that store what is dirty; appended to a batch's script before its position. */
void spate_load_progress_sql(struct spate_store *store, struct spate_projection *projection,
                             struct spate_buf *sql);
void spate_load_stored(struct spate_projection *projection); /* after that was committed */

/* Up to `most` keys of the re-read list as a JSON array of key objects (schemas/snapshot.h); *count 0: empty.
 * Outside a transaction. */
SPATE_CHECKED enum spate_rc spate_load_keys(struct spate_store *store, struct spate_projection *projection,
                                            size_t most, struct spate_buf *json, size_t *count,
                                            struct spate_err *err);

/* All chunks came and the list is empty: removes what is not of the generation (or exchanges the tables), and
 * the table is ready; in one target transaction of its own, which changes no position. Interrupted, it is
 * done again. */
SPATE_CHECKED enum spate_rc spate_load_finish(struct spate_apply *apply, struct spate_projection *projection,
                                              struct spate_err *err);
/* Cancelled, refused, or void (a hole, a broken epoch): tokens, marks and list are gone; the rows stay. The
 * table is not ready, except after ADD to a ready one. `stale`: also forgets that it was ready. */
SPATE_CHECKED enum spate_rc spate_load_abandon(struct spate_apply *apply, struct spate_projection *projection,
                                               bool stale, struct spate_err *err);

#endif
