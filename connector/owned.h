/* connector/owned.h - what is ours on the source: the slot, and a publication that we made.
 *
 * A publication says of itself who made it, in its comment; one that was found is used and never altered or
 * dropped. Thread: the data plane before streaming, or main. Blocks: on the source. */
#ifndef SPATE_CONNECTOR_OWNED_H
#define SPATE_CONNECTOR_OWNED_H

#include "connector/connector.h"
#include "core/buf.h"
#include "core/err.h"

#include <libpq-fe.h>
#include <stdbool.h>

/* Appends "; COMMENT ON PUBLICATION .. IS 'made by spate connector NAME'": run in one transaction with its
 * making. */
void spate_owned_mark_sql(const struct spate_connector_config *config, struct spate_buf *sql);

/* *ours: it exists, this connector made it, and our role may still alter it. */
SPATE_CHECKED enum spate_rc spate_owned_publication(PGconn *sql, const struct spate_connector_config *config,
                                                    bool *exists, bool *ours, struct spate_err *err);

/* spate connector --drop: drops the slot, and the publication when it is ours; appends to *said what was done
 * and what was left, with the statement. May be run again. SPATE_FAIL: REFUSED while somebody reads the slot,
 * or the source failed; nothing was done then that was not said. */
SPATE_CHECKED enum spate_rc spate_owned_drop(const struct spate_connector_config *config,
                                             struct spate_buf *said, struct spate_err *err);

#endif
