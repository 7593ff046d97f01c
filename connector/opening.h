/* connector/opening.h - opening an epoch: what is missing on the source is made, the tables' schemas are
 * published, and then the epoch itself, on `_schemas` and on the stream.
 *
 * Which of the ways applies is for the judge to say (connector/epoch.h).
 *
 * Thread: the data plane, before streaming.
 * Blocks: on Postgres and the bus, until a stop is asked for (SPATE_END). */
#ifndef SPATE_CONNECTOR_OPENING_H
#define SPATE_CONNECTOR_OPENING_H

#include "connector/epoch.h"
#include "connector/stream.h"
#include "core/err.h"

/* Each published table's schema stands on `_schemas` before any change, so that a sink can check its file.
 * Done at every connect. */
SPATE_CHECKED enum spate_rc spate_opening_tables(struct spate_stream *stream, struct spate_err *err);

/* The very first message of a stream. Fills *source anew. */
SPATE_CHECKED enum spate_rc spate_opening_first(struct spate_stream *stream,
                                                struct spate_source_state *source, struct spate_err *err);

/* An epoch that stands on `_schemas` only: its opening was cut short. */
SPATE_CHECKED enum spate_rc spate_opening_finish(struct spate_stream *stream, struct spate_err *err);

/* --new-epoch where nothing is wrong, or a standby took over (`why`): the numbers begin anew, the history
 * goes on. */
SPATE_CHECKED enum spate_rc spate_opening_continue(struct spate_stream *stream,
                                                   const struct spate_source_state *source, const char *why,
                                                   struct spate_err *err);

/* --new-epoch where continuity is broken. `why` is what the judge said. Fills *source anew. */
SPATE_CHECKED enum spate_rc spate_opening_break(struct spate_stream *stream,
                                                struct spate_source_state *source, const char *why,
                                                struct spate_err *err);

#endif
