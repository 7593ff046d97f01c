/* bus/local/lock.h - kernel locks that say who lives: the writers of a topic, and which of them is its
 * steward.
 *
 * They are bytes of writers.lck in the durable root (so that two hot roots cannot both own a topic), tied to
 * the open file: they die with the process, whatever kills it. Nothing on the way of a record takes one.
 *
 *   byte 0        who owns the topic holds it alone; the writers of a SHARED topic hold it together
 *   byte 1..255   a writer's slot; an owner has slot 0 and no other byte
 *   byte 256      the steward: whoever archives, repairs, and changes the manifest
 *
 * Thread: any; a handle's threads share its locks. Blocks: _wait, for at most timeout_ms. */
#ifndef SPATE_BUS_LOCAL_LOCK_H
#define SPATE_BUS_LOCAL_LOCK_H

#include "core/err.h"

#include <stdbool.h>

enum { SPATE_LOCAL_LOCK_TOPIC = 0, SPATE_LOCAL_LOCK_STEWARD = 256 };
enum spate_local_lock { SPATE_LOCAL_LOCK_ALONE, SPATE_LOCAL_LOCK_TOGETHER };

SPATE_CHECKED enum spate_rc spate_local_lock_open(int dir, int *fd, struct spate_err *err);
/* SPATE_AGAIN: somebody else holds it. A lock that is ours already changes its kind. */
SPATE_CHECKED enum spate_rc spate_local_lock_try(int fd, int place, enum spate_local_lock how,
                                                 struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_lock_wait(int fd, int place, enum spate_local_lock how,
                                                  int timeout_ms, struct spate_err *err);
/* The lowest free slot of a SHARED topic's writer. SPATE_AGAIN: all are taken. */
SPATE_CHECKED enum spate_rc spate_local_lock_slot(int fd, unsigned *slot, struct spate_err *err);
void spate_local_lock_release(int fd, int place);

/* By another handle than this one? fd may be read-only. */
bool spate_local_lock_alone(int fd, int place); /* held alone: a writer in its slot lives, a steward works */
bool spate_local_lock_held(int fd, int place);  /* held, alone or together */

/* Who has a slot signs the file there, since the kernel does not say who holds such a lock. */
#define SPATE_LOCAL_OWNER 128
void spate_local_lock_sign(int fd, unsigned slot);
void spate_local_lock_signed(int fd, unsigned slot, char out[SPATE_LOCAL_OWNER]); /* "process 1 on host h" */
/* The steward signs as well, in its own place. */
void spate_local_lock_sign_steward(int fd);
void spate_local_lock_steward(int fd, char out[SPATE_LOCAL_OWNER]);
/* Any living writer's signature, but this handle's own. */
void spate_local_lock_owner(int fd, char out[SPATE_LOCAL_OWNER]);

#endif
