/* connector/failover.h - a stream that survives its source: slots that a standby has too (17+, P73, P74).
 *
 * A standby that is promoted begins another timeline. What the bus holds is true of it only up to the fork,
 * and its slot stands in the same stream only when the standby kept it in step. With both known the stream
 * goes on in an epoch that continues; without, the judge fences (connector/epoch.h).
 *
 * Thread: the data plane, before streaming. Blocks: on the source, in ordinary queries. */
#ifndef SPATE_CONNECTOR_FAILOVER_H
#define SPATE_CONNECTOR_FAILOVER_H

#include "connector/connector.h"
#include "connector/epoch.h"
#include "connector/replication.h"
#include "core/err.h"
#include "core/finding.h"

#include <libpq-fe.h>
#include <stdint.h>

/* The option needs a server that has such slots. Pure. */
void spate_failover_judge_server(int version, bool standby, const struct spate_connector_config *config,
                                 struct spate_findings *list);
/* What a failover would find: the slot's flag, and the standbys that should keep it. Nothing before 17. */
SPATE_CHECKED enum spate_rc spate_failover_check(PGconn *sql, const struct spate_connector_config *config,
                                                 struct spate_findings *list, struct spate_err *err);

/* Where `timeline` ended in a timeline's history file: "1\t0/7D0008B0\tno recovery target specified" lines.
 * 0: it is no ancestor. Pure. */
uint64_t spate_failover_fork(const char *history, uint32_t timeline);

/* When the source is on another timeline than the stream: state->fork says where they parted. */
SPATE_CHECKED enum spate_rc spate_failover_look(struct spate_replication *repl, uint32_t timeline,
                                                struct spate_source_state *state, struct spate_err *err);

/* The slot that is there is to be one that standbys keep in step; nobody may be reading it. */
SPATE_CHECKED enum spate_rc spate_failover_mark(struct spate_replication *repl,
                                                const struct spate_connector_config *config,
                                                const struct spate_source_state *state,
                                                struct spate_err *err);

#endif
