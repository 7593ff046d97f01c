/* connector/culprit.h - which table's change it is that the server cannot send (P83, P84, P87).
 *
 * Its error names an LSN and no table. So the changes that wait in the slot are looked at once more, on the
 * server alone: in binary form, which does not double a bytea, and in the database's own encoding, which
 * converts nothing. Only the change's relation comes back; nothing is confirmed, and the connector's memory
 * holds none of it.
 *
 * Thread: the data plane, whose stream has just ended. Blocks: for a minute at most; heeds a stop. */
#ifndef SPATE_CONNECTOR_CULPRIT_H
#define SPATE_CONNECTOR_CULPRIT_H

#include "connector/connector.h"
#include "core/buf.h"

#include <stdbool.h>
#include <stdint.h>

/* The LSN in the words that the server adds to an error of its output plugin, in whatever language; 0: none.
 */
uint64_t spate_culprit_lsn(const char *context);

/* Appends "schema"."table" of the change at this LSN. False: it could not be found out. */
bool spate_culprit_table(const struct spate_connector_config *config, uint64_t lsn, struct spate_buf *table);

#endif
