/* connector/fetch.h - one reader's connection to the source, and one piece of work at a time over it: a chunk
 * in a short transaction of its own, which locks before its snapshot exists (P90, P92).
 *
 * Thread: a reader's (connector/chunk.c). Blocks: spate_fetch_run, on the source, until the work is done, the
 * time for it is up, or it is called off. */
#ifndef SPATE_CONNECTOR_FETCH_H
#define SPATE_CONNECTOR_FETCH_H

#include "connector/chunk.h"

#include <stdatomic.h>

struct spate_fetch;

/* off: work is to end now; off_fd becomes readable with it. Copies what it needs of the configuration. */
struct spate_fetch *spate_fetch_new(const struct spate_connector_config *config, const atomic_bool *off,
                                    int off_fd);
void spate_fetch_free(struct spate_fetch *fetch);  /* accepts NULL */
void spate_fetch_leave(struct spate_fetch *fetch); /* lets go of the connection; the next work connects */

/* Does it and fills in what came of it: outcome, err, and the results. */
void spate_fetch_run(struct spate_fetch *fetch, struct spate_job *job);

/* ---- pieces that are tested alone, pure ---- */

/* A line of COPY text, with its newline, into `count` values; escapes are resolved in place, and the texts
 * are slices of the line. false: it has not that many fields, or no end. */
bool spate_copy_split(char *line, size_t len, struct spate_value *values, size_t count);

/* Where the WAL goes on behind a page's header, the position is that of the page: nothing begins in between,
 * and no stream ever says that it is there. */
uint64_t spate_wal_position(uint64_t lsn, uint64_t page_size);

#endif
