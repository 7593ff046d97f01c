/* connector/versions.h - every version of every table's schema that `<connector>._schemas` holds, or will
 * hold in a moment: fingerprint -> v (docs/message-format.md, schemas).
 *
 * Thread: the data plane. Owns the tables for the life of the process, so that a change may point at one
 * without counting; there is one per distinct shape a table ever had. */
#ifndef SPATE_CONNECTOR_VERSIONS_H
#define SPATE_CONNECTOR_VERSIONS_H

#include "core/err.h"
#include "schemas/table.h"

#include <stdbool.h>

struct spate_versions;

struct spate_versions *spate_versions_new(void);
void spate_versions_free(struct spate_versions *versions);

/* A version read back from `_schemas`; takes the table, whose v is set. A version that is there already is
 * dropped. False: another shape stands there under the same v (said once): neither is used again, whoever has
 * one of them gets a v of its own. */
SPATE_CHECKED bool spate_versions_take_known(struct spate_versions *versions, struct spate_table *table);

/* The version that stands for this sealed table without a v; takes the table. Seen before: the same v.
 * New: the next v of its (schema, table). *fresh: it must be durable on `_schemas` before the first message
 * that uses it: it is new, or the table has had another shape since and has this one again (the last one
 * published is its present). */
const struct spate_table *spate_versions_take(struct spate_versions *versions, struct spate_table *table,
                                              bool *fresh);

#endif
