/* sinks/takeover.h - statements by which a table takes over what a load brought. Internal to sinks/load. */
#ifndef SPATE_SINKS_TAKEOVER_H
#define SPATE_SINKS_TAKEOVER_H

#include "sinks/apply.h"

struct spate_projection;

/* For a table with a copy: a query whether a row of the generation was kept with other columns than the
 * current version's, so that not all of it is known. */
void spate_takeover_mixed(const struct spate_projection *projection, struct spate_buf *sql);

/* The copy first, if there is one: then it holds exactly the generation. */
void spate_takeover_copy(struct spate_apply *apply, const struct spate_projection *projection);
/* Rows that are not of the generation leave the team's table. Of all tables before the next step, since they
 * may refer to each other. */
void spate_takeover_sweep(struct spate_apply *apply, const struct spate_projection *projection);
/* Where the generation stood beside it: what differs goes into the team's table. */
void spate_takeover_rows(struct spate_apply *apply, const struct spate_projection *projection);

#endif
