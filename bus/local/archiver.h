/* bus/local/archiver.h - the thread that archives one topic while its writer is open.
 *
 * It syncs back to back while there is something, rings the durable bell for readers and an eventfd for the
 * writer after each group, makes the next segment ahead of time when asked, and sleeps otherwise.
 * Thread: _start, _stop and _error belong to the writer's thread. Blocks: _stop waits for one last pass. */
#ifndef SPATE_BUS_LOCAL_ARCHIVER_H
#define SPATE_BUS_LOCAL_ARCHIVER_H

#include "bus/local/archive.h"

struct spate_local_archiver;

SPATE_CHECKED enum spate_rc spate_local_archiver_start(const struct spate_local_topic *topic,
                                                       struct spate_local_archiver **archiver,
                                                       struct spate_err *err);
void spate_local_archiver_stop(struct spate_local_archiver *archiver); /* accepts NULL */

int spate_local_archiver_fd(const struct spate_local_archiver *archiver);
void spate_local_archiver_clear(struct spate_local_archiver *archiver); /* takes the eventfd's signal away */

/* Asks for a segment at `base` to be made; its base is reserved already. */
void spate_local_archiver_prepare(struct spate_local_archiver *archiver, uint64_t base);
/* NULL while all is well; else why nothing more will become durable. */
const struct spate_err *spate_local_archiver_error(const struct spate_local_archiver *archiver);

#endif
