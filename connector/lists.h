/* connector/lists.h - column lists of a publication that is ours: what is excluded is then not even sent by
 * the server (15 and later).
 *
 * A list must hold the replica identity, or the application's UPDATE and DELETE fail (P47, P49): so there is
 * none under FULL, and none where other tables share the rows (partitions, children), whose identity may be
 * another one. There the connector leaves the columns out by itself, as it does with whatever is sent all the
 * same.
 *
 * Thread: the data plane, before streaming. Blocks: on the source; on locks for two seconds at most. */
#ifndef SPATE_CONNECTOR_LISTS_H
#define SPATE_CONNECTOR_LISTS_H

#include "connector/connector.h"
#include "core/buf.h"
#include "core/err.h"

#include <libpq-fe.h>

/* Appends " (a, b)" for a table of which exclude speaks; nothing where no list is right. */
SPATE_CHECKED enum spate_rc spate_lists_columns(PGconn *sql, const struct spate_connector_config *config,
                                                const char *schema, const char *table, struct spate_buf *out,
                                                struct spate_err *err);

/* Brings the lists of our own publication up to date: one for each table that exclude has come to speak of,
 * and columns that were added to a table since. A list that somebody made by hand, so that it leaves out what
 * no rule excludes, stays. What could not be done is said where `warn` asks for it. A publication that is not
 * ours is never altered. */
SPATE_CHECKED enum spate_rc spate_lists_update(PGconn *sql, const struct spate_connector_config *config,
                                               bool warn, struct spate_err *err);

#endif
