/* connector/permits.h - what the connector's file says of requests: who may ask for which tables, and when.
 * Pure, but for the local time zone. Any thread. */
#ifndef SPATE_CONNECTOR_PERMITS_H
#define SPATE_CONNECTOR_PERMITS_H

#include "connector/connector.h"
#include "core/err.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stdint.h>

/* snapshots.allow and snapshots.hours. SPATE_FAIL (fatal, CONFIG), with the line where there is one. */
SPATE_CHECKED enum spate_rc spate_permits_check(const struct spate_connector_config *config, const char *path,
                                                struct spate_err *err);

/* May this requester ask at all; for this table? Without `allow` everybody may, for all that is published. */
bool spate_permits_requester(const struct spate_connector_config *config, struct spate_slice requester);
bool spate_permits_table(const struct spate_connector_config *config, struct spate_slice requester,
                         struct spate_slice schema, struct spate_slice table);

/* May rows be read now? *left_ms (may be NULL): how long until the answer changes; INT64_MAX: never. Where it
 * is the clocks' change, the answer is that of the wall's clock. */
bool spate_permits_now(const struct spate_connector_config *config, int64_t wall_us, int64_t *left_ms);

#endif
