/* connector/schemas.h - what stands on `<connector>._schemas`: versions of tables, and epochs.
 *
 * Where anyone may write, another connector may have published there since it was read last. It is read anew
 * before anything rests on it, and glanced at while streaming: a stream whose epoch somebody else has ended
 * must not go on confirming.
 *
 * Thread: the data plane. Fills stream->versions and stream->epoch. */
#ifndef SPATE_CONNECTOR_SCHEMAS_H
#define SPATE_CONNECTOR_SCHEMAS_H

#include "connector/stream.h"

/* Asks the bus, and reads all that is new. Blocks on the bus. */
SPATE_CHECKED enum spate_rc spate_schemas_refresh(struct spate_stream *stream, struct spate_err *err);

/* Reads what has come by itself, without waiting. SPATE_FAIL (fatal, FENCED): a newer epoch was opened than
 * the one that this connector streams in. */
SPATE_CHECKED enum spate_rc spate_schemas_glance(struct spate_stream *stream, struct spate_err *err);

#endif
