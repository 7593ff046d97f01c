/* sinks/late.h - tables of the file that are not on the bus yet: the connector does not publish them, or not
 * by this name. The sink waits for them, says so, and follows its other tables meanwhile.
 *
 * Thread: the sink's. Blocks: as start.h. Internal to sinks/. */
#ifndef SPATE_SINKS_LATE_H
#define SPATE_SINKS_LATE_H

#include "core/err.h"

#include <stdbool.h>

struct spate_sink;
struct spate_projection;

/* Is its source's schema not known? Then it has no version, and there is nothing that it could load. */
bool spate_late_is(const struct spate_projection *projection);
/* Says what it waits for, when it is time to. */
void spate_late_tell(struct spate_sink *sink);
/* Looks for them, twice a second, and says when the connector stops to publish one. A target transaction may
 * be open: then it is left for later. */
SPATE_CHECKED enum spate_rc spate_late_turn(struct spate_sink *sink, struct spate_err *err);
/* Its current version was made: the table is one of the sink's from here on, and needs everything. */
SPATE_CHECKED enum spate_rc spate_late_came(struct spate_sink *sink, struct spate_projection *projection,
                                            struct spate_err *err);

#endif
