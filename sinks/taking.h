/* sinks/taking.h - what comes in the stream for the request of this sink: its begin, chunks, and their end.
 *
 * A chunk is taken iff it is the next one of its table and goes on exactly where the last one ended, all of
 * it stands between the same two transactions, its lines are of one and the same chunk, and none is missing
 * (docs/hazards.md). Everything else is dropped: chunks of a zombie, or of a session that died on the way,
 * are never mixed into another (F46).
 *
 * Thread: the sink's. Internal to sinks/. */
#ifndef SPATE_SINKS_TAKING_H
#define SPATE_SINKS_TAKING_H

#include "core/buf.h"
#include "schemas/snapshot.h"
#include "sinks/reader.h"

struct spate_sink;
struct spate_projection;

/* The chunk that is being heard. */
struct spate_taking {
    bool open, by_keys;
    struct spate_chunk_name name;
    struct spate_projection *first; /* of those that load its table */
    uint32_t v;
    uint64_t reads;
    size_t start;                   /* items of the batch before it */
    struct spate_buf keys, dropped; /* as they came */
};
void spate_taking_fini(struct spate_taking *taking);

/* One event of a snapshot. *rewound as in spate_sink_version_at. */
SPATE_CHECKED enum spate_rc spate_taking_hear(struct spate_sink *sink, struct spate_event *event,
                                              bool *rewound, struct spate_err *err);
/* Something else stands where the chunk should go on. */
void spate_taking_break(struct spate_sink *sink, const char *why);
/* The batch was cleared: what it held of a chunk is gone, and will be read again. */
void spate_taking_forget(struct spate_sink *sink);
/* The first `count` items of the batch were applied. Rows of a chunk that breaks later stay: each is true at
 * its place. */
void spate_taking_applied(struct spate_sink *sink, size_t count);

/* Does the projection load this table for the present request? */
bool spate_taking_loads(const struct spate_sink *sink, const struct spate_projection *projection);

#endif
