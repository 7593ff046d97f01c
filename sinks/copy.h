/* sinks/copy.h - the sink's own copy of the source columns that a projection uses, by source key.
 *
 * Postgres does not send a long value again that did not change, and a row that begins to match `where`, or
 * an expression over several columns, may need just that one. Where that can happen (spate_version_plan says
 * so) rows go into a table beside the team's first, each column as it is, and the team's rows are computed
 * from there, in the same target transaction (T1, T11, T13).
 *
 *   <schema>.spate_copy_<hash of the table's name>
 *     k0, k1, ...   the source's key
 *     shape         which columns the row was kept with, of which types
 *     NAME_HASH     a source column of one type; other versions of the source's table have other columns
 *
 * A row whose shape is not that of the version at hand is not known: a change that does not come whole finds
 * none. So nothing is ever taken for NULL that merely was not there. A copy is complete iff its table is
 * ready (sinks/load.h); `copied` is stored in spate_table (copy), and what a copy holds without that is void.
 * It stays until a load begins that needs none.
 *
 * Thread: the sink's. Blocks: on the target. */
#ifndef SPATE_SINKS_COPY_H
#define SPATE_SINKS_COPY_H

#include "sinks/projection.h"

/* The copy's columns for a version, and its shape; after spate_version_plan. Pure. */
void spate_copy_columns(struct spate_version *version);
void spate_copy_forget(struct spate_version *version);
struct spate_relation spate_copy_relation(const struct spate_version *version);

/* Appends "SELECT c.k0 AS <source's name>, ... FROM <table> AS c": rows as the team's expressions read them;
 * rows of the version's shape; what follows restricts them further, beginning with " AND". `columns` and
 * `tables`: more of each, or "". */
void spate_copy_rows(const struct spate_version *version, const char *table, const char *columns,
                     const char *tables, struct spate_buf *sql);

/* The projection has a copy from now on, if the version needs one, and the copy has the version's columns.
 * Where it had none, or lost it, the table is not ready any more, which is stored first. What a load brought
 * until then is void: SPATE_FAIL (retry): connect again, and read the loads anew. Outside a transaction. */
SPATE_CHECKED enum spate_rc spate_copy_fit(struct spate_version *version, struct spate_store *store,
                                           struct spate_err *err);
/* All versions of the projection, on a new connection. */
SPATE_CHECKED enum spate_rc spate_copy_fit_all(struct spate_projection *projection, struct spate_store *store,
                                               struct spate_err *err);
/* Does any version that is known need one? */
bool spate_copy_needed(const struct spate_projection *projection);

#endif
