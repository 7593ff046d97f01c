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
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_apply;
struct spate_projection;
struct spate_store;
struct spate_version;

/* Where the generation is. */
enum spate_load_kind {
    SPATE_LOAD_NONE,   /* no snapshot is under way */
    SPATE_LOAD_EMPTY,  /* the target was empty at its begin: every row in it is of the generation */
    SPATE_LOAD_MARKED, /* on_snapshot: sweep: keys of the generation stand in a table of marks */
    SPATE_LOAD_SHADOW, /* on_snapshot: swap: the generation is a table of its own until the end; readers see
                          the old picture until then */
    SPATE_LOAD_ADD     /* conditional: adds and corrects; every row counts as known; nothing is removed */
};

/* Does it bring everything, so that the table is between two pictures until its end? */
static inline bool spate_load_is_whole(enum spate_load_kind kind)
{
    return kind != SPATE_LOAD_NONE && kind != SPATE_LOAD_ADD;
}

#define SPATE_REQUEST_MOST 64

/* Part of struct spate_projection (`load`); written by the functions below alone, except where said. */
struct spate_load {
    bool ready;   /* holds exactly what exists: a partial update or a delete that finds no row is an error */
    bool changed; /* the stored hash of the projection is another one than the file's: it has to be loaded
                     anew */
    enum spate_load_kind kind;
    char request[SPATE_REQUEST_MOST];
    uint64_t chunk;    /* greatest `no` taken; of the batch, and stored with it. The caller moves it */
    char *resume;      /* owned; the last token, "" at first; moved with spate_load_resume */
    bool ranges_known; /* ranges-end was taken; the caller moves these two */
    uint64_t ranges;   /* chunks by then */
    bool dirty;        /* the caller's word: chunk, resume or ranges moved since they were stored */
    struct {           /* as they stand in the target */
        uint64_t chunk, ranges;
        char *resume; /* owned */
        bool ranges_known;
    } stored;
    char *stored_hash; /* of the projection that the rows were written by; owned, NULL: none */
    char *
        outdated; /* why it needs everything though all was heard (sinks/stale.h); owned, NULL: it does not */
    uint32_t fitted;  /* the source's version that the target table was made to fit last; 0: none */
    bool listed;      /* keys may stand on the re-read list: what takes them off has to be run */
    unsigned edition; /* counts changes of the statements */
    char *target;     /* SHADOW: where rows go, quoted; else NULL; borrowed */
    char *marks, *list, *shadow; /* quoted names of the tables that a load needs; owned */
    char *copy;                  /* quoted name of the sink's own copy (sinks/copy.h); owned */
    bool copied;                 /* there is one, as stored: each change goes into it as well */
    bool lacks; /* a change could not be kept as it should: everything has to come again, once its batch is
                   in the target. The reader of it takes it back */
};

/* Must a partial update or a delete find its row? (T11, T12) Not while rows are still written by another
 * projection, nor while a snapshot mends the table. */
static inline bool spate_load_strict(const struct spate_load *load)
{
    return load->ready && !load->changed && !load->lacks && load->kind == SPATE_LOAD_NONE;
}

void spate_load_init(struct spate_projection *projection);
void spate_load_fini(struct spate_load *load);

/* Reads what is stored of all tables of the file, after they were claimed. A load whose tables are gone, or
 * no longer have the shape of the target, is abandoned. */
SPATE_CHECKED enum spate_rc spate_load_read(struct spate_store *store, struct spate_projection *projections,
                                            size_t count, struct spate_err *err);
/* Sets `changed`: what the file and the current version say against what the rows were written by. Pure. */
void spate_load_compare(struct spate_projection *projection);
/* Are the rows that are there written by this version of the source's table, and by the file as it is? Pure.
 */
bool spate_load_written(struct spate_projection *projection, struct spate_version *version);
/* Back to what is stored: what was read since then is forgotten. */
void spate_load_rewind(struct spate_projection *projection);
void spate_load_resume(struct spate_load *load, struct spate_slice token);

/* snapshot-begin of these tables: chooses their kinds, makes what they need, and prepares their statements
 * anew. Leaves the target transaction open: spate_apply_run without items commits it together with the
 * position. Any failure on the way: connect again, and read the loads anew. A table that loads the same
 * request already is left alone. Needs projection->current.
 *
 * Tables that refer to each other are loaded beside themselves (SHADOW) whatever the file says: a row may
 * come before the one that it refers to, so only all of them together can take the place of the old ones. */
SPATE_CHECKED enum spate_rc spate_load_begin(struct spate_apply *apply,
                                             struct spate_projection *const *tables, size_t count,
                                             const char *request, bool conditional, struct spate_err *err);
/* The statement that stores what is dirty; spate_apply_run runs it before the position. */
void spate_load_progress_sql(const struct spate_store *store, const struct spate_projection *projection,
                             struct spate_buf *sql);
void spate_load_stored(struct spate_projection *projection); /* after that was committed */

/* In the open target transaction: the tables need everything, whatever came. A load of everything that is
 * under way goes on to its end, and another one has to follow: by swap the old picture stands still
 * meanwhile, so that changes cannot go on with it. Once that was committed, _outdated. */
void spate_load_outdate(struct spate_apply *apply, struct spate_projection *const *tables, size_t count,
                        const char *why);
SPATE_CHECKED enum spate_rc spate_load_outdated(struct spate_apply *apply,
                                                struct spate_projection *const *tables, size_t count,
                                                const char *why, struct spate_err *err);
/* The target table fits the projection's current version. `same`: rows that are there are as good as those
 * that the version would have written. Outside a transaction. */
SPATE_CHECKED enum spate_rc spate_load_fitted(struct spate_store *store, struct spate_projection *projection,
                                              bool same, struct spate_err *err);

/* Up to `most` keys of the re-read list as a JSON array of key objects (schemas/snapshot.h); *count 0: empty.
 * Outside a transaction. */
SPATE_CHECKED enum spate_rc spate_load_keys(struct spate_store *store, struct spate_projection *projection,
                                            size_t most, struct spate_buf *json, size_t *count,
                                            struct spate_err *err);

/* All chunks of all tables of a request came, and their lists are empty: removes what is not of the
 * generation (or exchanges the tables), and the tables are ready; in one target transaction of its own, which
 * changes no position. Interrupted, it is done again. */
SPATE_CHECKED enum spate_rc spate_load_finish(struct spate_apply *apply,
                                              struct spate_projection *const *tables, size_t count,
                                              struct spate_err *err);
/* Cancelled, refused, or void (a hole, a broken epoch): tokens, marks and list are gone; the rows stay. A
 * table is not ready, except after ADD to a ready one. `stale`: also forgets that it was ready. In a
 * transaction of its own. */
SPATE_CHECKED enum spate_rc spate_load_abandon(struct spate_apply *apply,
                                               struct spate_projection *const *tables, size_t count,
                                               bool stale, struct spate_err *err);

/* Drops what a load of a table that is no longer in the file left behind. */
SPATE_CHECKED enum spate_rc spate_load_forget(struct spate_store *store, const char *table,
                                              struct spate_err *err);

#endif
