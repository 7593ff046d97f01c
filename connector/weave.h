/* connector/weave.h - snapshots woven into the stream (HAZARDS 6.6): which chunk is read next, whether it is
 * true, and the place in the stream where it is put.
 *
 * The stream is never paused for reading: reader threads read (connector/chunk.h), the desk talks with
 * requesters (connector/desk.h); what happens here is bookkeeping per transaction, and publishing a chunk
 * between two transactions, when everything that the chunk's snapshot saw has been delivered. All of it can
 * be lost at any moment: the requester's progress stands in its own store, and it asks again with its tokens.
 *
 * Thread: the data plane. Blocks: _close (a second or two), and a table whose shape is new, as the stream
 * itself. */
#ifndef SPATE_CONNECTOR_WEAVE_H
#define SPATE_CONNECTOR_WEAVE_H

#include "connector/connector.h"
#include "core/err.h"
#include "schemas/event.h"

#include <poll.h>

#define SPATE_NUDGE_PREFIX "spate" /* of the logical messages that we write ourselves: they are no change */

struct spate_stream;
struct spate_weave;

struct spate_weave_counts { /* for those who look: over all sessions */
    uint64_t requests, chunks, rows, dropped, redone, restarted;
    uint64_t active; /* now */
};

/* Starts the desk. The configuration stays. */
SPATE_CHECKED enum spate_rc spate_weave_open(const struct spate_connector_config *config,
                                             struct spate_weave **weave, struct spate_err *err);
void spate_weave_close(struct spate_weave *weave); /* accepts NULL */

/* Replication was accepted in this epoch: what was known of earlier sessions is void. */
void spate_weave_session(struct spate_weave *weave, uint64_t epoch);
/* The session is over: nothing is read or emitted until the next one. Requests are forgotten. */
void spate_weave_leave(struct spate_weave *weave);

/* The stream, as it is delivered. A change is told when it is known whole, before its transaction commits. */
void spate_weave_begin(struct spate_weave *weave, uint32_t xid, uint64_t commit_lsn);
void spate_weave_change(struct spate_weave *weave, const struct spate_change *change);
void spate_weave_commit(struct spate_weave *weave, uint64_t end_lsn);

/* Something is to be put here, between two transactions: nothing more is to be read before spate_weave_turn.
 */
bool spate_weave_wants(const struct spate_weave *weave, const struct spate_stream *stream);
/* Takes what threads have done, publishes what is due, and gives out new work. SPATE_AGAIN: the bus is full
 * in the middle of a chunk; nothing else may be published before the next call. */
SPATE_CHECKED enum spate_rc spate_weave_turn(struct spate_weave *weave, struct spate_stream *stream,
                                             int64_t now_ms, struct spate_err *err);
/* In the middle of a chunk: no frame may be taken, and no heartbeat published. */
bool spate_weave_emitting(const struct spate_weave *weave);

/* How long poll may sleep, and two descriptors that wake it. */
int spate_weave_due_ms(const struct spate_weave *weave, int64_t now_ms);
void spate_weave_fds(const struct spate_weave *weave, struct pollfd fds[2]);

struct spate_weave_counts spate_weave_counts(const struct spate_weave *weave);

#endif
