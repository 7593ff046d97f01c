/* sinks/generation.h - how a snapshot of tables begins and ends. Internal to sinks/load. */
#ifndef SPATE_SINKS_GENERATION_H
#define SPATE_SINKS_GENERATION_H

#include "core/buf.h"
#include "core/err.h"
#include "sinks/load.h"

struct spate_version;

/* Changes the kind and what depends on it, in memory: a load at its beginning, or none. */
void spate_load_set(struct spate_projection *projection, enum spate_load_kind kind, const char *request);

/* In memory: what is stored says that the rows are written by the current version from here on. */
void spate_load_rewrite(struct spate_projection *projection);

/* `outdated`, in memory. */
void spate_load_note(struct spate_projection *projection, const char *outdated);

/* "none", "empty", ...: as stored. */
const char *spate_load_kind_name(enum spate_load_kind kind);

/* Of the file's lines about the table, and the columns of the source that they use: a row that was written
 * with others of them has to come again. What else changes in the source's schema does not matter. */
#define SPATE_LOAD_HASH 17
void spate_load_hash_version(const struct spate_projection *projection, const struct spate_version *version,
                             char out[SPATE_LOAD_HASH]);
void spate_load_hash(const struct spate_projection *projection,
                     char out[SPATE_LOAD_HASH]); /* the current one */

/* Appends a query that fails unless this process owns the sink still (T3). */
void spate_load_guard(const struct spate_store *store, struct spate_buf *sql);

/* " WHERE table_name = ... AND sink = ..." of spate_table */
void spate_load_where(const struct spate_projection *projection, struct spate_buf *sql);

/* The tables beside the table, if nobody holds them. Outside a transaction. */
void spate_load_drop(struct spate_store *store, const struct spate_projection *projection);

/* Ends a load whose own tables are not what they should be. */
SPATE_CHECKED enum spate_rc spate_load_void(struct spate_store *store, struct spate_projection *projection,
                                            struct spate_err *err);

#endif
