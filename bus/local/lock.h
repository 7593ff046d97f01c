/* bus/local/lock.h - the kernel lock that makes a process the writer of a topic.
 *
 * It is a byte range of writers.lck in the durable root (so that two hot roots cannot both own a topic), tied
 * to the open file: it dies with the process, whatever kills it. Blocks: _wait, for at most timeout_ms. */
#ifndef SPATE_BUS_LOCAL_LOCK_H
#define SPATE_BUS_LOCAL_LOCK_H

#include "core/err.h"

#include <stdbool.h>

SPATE_CHECKED enum spate_rc spate_local_lock_open(int dir, int *fd, struct spate_err *err);
/* SPATE_AGAIN: somebody else holds it. */
SPATE_CHECKED enum spate_rc spate_local_lock_try(int fd, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_lock_wait(int fd, int timeout_ms, struct spate_err *err);
void spate_local_lock_release(int fd);
bool spate_local_lock_held(int fd); /* by somebody else? for readers; fd may be read-only */

/* The owner signs the file, since the kernel does not say who holds such a lock. */
void spate_local_lock_sign(int fd);
#define SPATE_LOCAL_OWNER 128
void spate_local_lock_owner(int fd, char out[SPATE_LOCAL_OWNER]); /* "process 123 on host h" */

#endif
