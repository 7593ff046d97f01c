/* connector/session.h - from nothing to streaming: connect, check, find the place, start
 * (docs/hazards.md, where to go on).
 *
 * Runs at every connect, the first as well as the hundredth after a network error, so there is one path only.
 *
 * Thread: the data plane. Blocks: on Postgres and the bus, until a stop is asked for. */
#ifndef SPATE_CONNECTOR_SESSION_H
#define SPATE_CONNECTOR_SESSION_H

#include "connector/stream.h"

/* Opens the bus (the writer lock comes before anything on Postgres) and reads `_schemas` to its end: versions
 * and the newest epoch. SPATE_OK, SPATE_END, SPATE_FAIL. */
SPATE_CHECKED enum spate_rc spate_session_bus(struct spate_stream *stream, struct spate_err *err);

/* *new_epoch: open one on purpose; cleared once it is done.
 * SPATE_OK: START_REPLICATION was accepted, spate_stream_turn may be called. SPATE_END: a stop was asked for.
 * SPATE_FAIL: err->verdict says what to do; call spate_session_close. */
SPATE_CHECKED enum spate_rc spate_session_open(struct spate_stream *stream, bool *new_epoch, bool first,
                                               struct spate_err *err);
void spate_session_close(struct spate_stream *stream);

#endif
