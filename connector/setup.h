/* connector/setup.h - makes the publication and the slot when they are missing and asked for.
 *
 * The publication always before the slot: WAL is decoded with the catalog as it was, and a publication that
 * is younger than the slot cannot be found there (P55).
 *
 * Thread: the data plane, before streaming. Blocks: on the source; slot creation waits for open transactions.
 */
#ifndef SPATE_CONNECTOR_SETUP_H
#define SPATE_CONNECTOR_SETUP_H

#include "connector/connector.h"
#include "connector/replication.h"
#include "core/buf.h"
#include "core/err.h"

#include <libpq-fe.h>

/* Resolves the globs of `tables` and creates the publication. SPATE_FAIL: REFUSED, with the remedy. */
SPATE_CHECKED enum spate_rc spate_setup_publication(PGconn *sql, const struct spate_connector_config *config,
                                                    struct spate_err *err);

/* Adds the tables that the globs mean and that appeared since to a publication of ours, one by one, waiting
 * for no lock longer than a moment; not those that cannot be identified (P47). *left: who was left out and
 * why, a line each, for people. SPATE_FAIL: nobody could be asked. On a connection of one's own. */
SPATE_CHECKED enum spate_rc spate_setup_extend(PGconn *sql, const struct spate_connector_config *config,
                                               struct spate_buf *left, struct spate_err *err);

/* SPATE_OK, SPATE_END (stop), SPATE_FAIL: retry = open transactions kept it waiting for too long (P70). */
SPATE_CHECKED enum spate_rc spate_setup_slot(struct spate_replication *repl, PGconn *sql,
                                             const struct spate_connector_config *config,
                                             struct spate_err *err);

/* Drops a slot that the server invalidated and that nobody can read any more (--new-epoch only). */
SPATE_CHECKED enum spate_rc spate_setup_drop_slot(PGconn *sql, const char *slot, struct spate_err *err);

/* What is missing though create is false: REFUSED, with the statements in their order. */
enum spate_rc spate_setup_refuse(const struct spate_connector_config *config, bool publication_exists,
                                 bool slot_exists, struct spate_err *err);

#endif
