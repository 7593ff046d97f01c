/* connector/status.h - somewhere to look while it runs: gathers the facts, serves the pages, watches the
 * slot.
 *
 * The data plane reports here what it does; it is never held up: at most ten times a second it copies a small
 * struct under a mutex that nobody holds for longer than such a copy. All functions accept NULL, which is
 * what a test has that runs a part by itself.
 *
 * Thread: the data plane's, where nothing else is said; pages and the watch have threads of their own. */
#ifndef SPATE_CONNECTOR_STATUS_H
#define SPATE_CONNECTOR_STATUS_H

#include "connector/connector.h"
#include "connector/report.h"
#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>

struct spate_stream;
struct spate_status;
struct spate_survey;

/* Starts the pages (status.listen) and the watch on the slot. The configuration outlives it. */
struct spate_status *spate_status_open(const struct spate_connector_config *config);
void spate_status_close(struct spate_status *status);

/* A copy of what is known, derived. Any thread; not NULL. */
void spate_status_facts(struct spate_status *status, struct spate_connector_facts *facts);

/* What is being done now. `waits_for` may be NULL. */
void spate_status_state(struct spate_status *status, enum spate_connector_state state, const char *waits_for);

/* START_REPLICATION was accepted: what the stream's tail holds is durable. */
void spate_status_streaming(struct spate_status *status, const struct spate_stream *stream);

/* Once per turn; looks at the stream when a tenth of a second has passed. */
void spate_status_turn(struct spate_status *status, const struct spate_stream *stream, int64_t now_ms);

/* The survey that the watch made last, or NULL where none came since: the caller's. */
struct spate_survey *spate_status_survey(struct spate_status *status);
/* The published tables are to be looked at soon. */
void spate_status_survey_soon(struct spate_status *status);

/* A session or an attempt failed; `again`: another one follows, else the process ends. */
void spate_status_failed(struct spate_status *status, const struct spate_err *err, bool again);

#endif
