/* connector/explain.h - the server's refusals of the stream, in words of what they mean there (HAZARDS 8).
 * What is done about a code by itself says pg/verdict.c; in the stream some mean more.
 *
 * Thread: the data plane. Both return SPATE_FAIL, with *err said anew where there is more to say. */
#ifndef SPATE_CONNECTOR_EXPLAIN_H
#define SPATE_CONNECTOR_EXPLAIN_H

#include "connector/stream.h"

/* START_REPLICATION was refused. Retry: looking at the slot again finds the words for it. */
enum spate_rc spate_explain_start(struct spate_stream *stream, struct spate_err *err);
/* The stream broke off. */
enum spate_rc spate_explain(struct spate_stream *stream, struct spate_err *err);

#endif
