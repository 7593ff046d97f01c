/* bus/local/place.h - where a bus lives: the durable root on a disk and the hot root in shared memory.
 *
 * The hot root's name is derived from the durable root's real path and owner unless it is given, so that all
 * processes meet. bus.meta in the hot root names its incarnation (`hot`): a topic's manifest that names
 * another one means that the shared memory was lost since, or that it is another container's.
 * Thread: that of the bus handle for _init and _fini; the rest reads only.
 * Blocks: _make waits for the disk. */
#ifndef SPATE_BUS_LOCAL_PLACE_H
#define SPATE_BUS_LOCAL_PLACE_H

#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>

#define SPATE_LOCAL_NAME 128 /* longest topic name */

struct spate_local_place {
    char *path;            /* the durable root as configured; owned */
    char *hot;             /* the hot root as configured, or NULL; owned */
    int64_t segment_bytes; /* 0: by the size of the hot file system */
    /* What a topic is to keep, as this process is configured (bus/local/retain.h). */
    int64_t retention_ms;    /* 0: age removes nothing */
    int64_t retention_bytes; /* of each topic; 0: half of the file system */
    int64_t hold_expire_ms;  /* 0: a dead holder holds for ever */
};

/* Makes what is missing of both roots; several processes may do so at once. *hot_id is the incarnation of the
 * hot root. The caller closes both descriptors. */
SPATE_CHECKED enum spate_rc spate_local_place_make(const struct spate_local_place *place, int *durable_fd,
                                                   int *hot_fd, uint64_t *hot_id, struct spate_err *err);
/* Opens the durable root; SPATE_END: it does not exist. */
SPATE_CHECKED enum spate_rc spate_local_place_durable(const struct spate_local_place *place, int *durable_fd,
                                                      struct spate_err *err);
/* Opens the hot root without making anything; SPATE_END: it does not exist, or is of an earlier boot. */
SPATE_CHECKED enum spate_rc spate_local_place_hot(const struct spate_local_place *place, int *hot_fd,
                                                  uint64_t *hot_id, struct spate_err *err);
/* The hot root's path, for messages and for opening; SPATE_FAIL: the durable root is missing. */
#define SPATE_LOCAL_PATH 4096
SPATE_CHECKED enum spate_rc spate_local_place_hot_path(const struct spate_local_place *place,
                                                       char out[SPATE_LOCAL_PATH], struct spate_err *err);

/* What a new topic's segments should hold: the configured size, or 64 MiB (4 MiB for topics with "._" in
 * their name), less when the hot file system is small. */
uint64_t spate_local_place_cap(const struct spate_local_place *place, int hot_fd, const char *topic);

/* A file that was made in this directory: the group may read it, and write it where it may write the
 * directory, whatever the umask says. */
void spate_local_open_up(int dir, int fd);

/* Says that a writer of this bus lives, until the descriptor is closed: another bus then leaves this hot root
 * alone. -1: it could not be said. */
int spate_local_place_live(int hot_fd);

/* The name of a file system (statfs) that is not of this machine alone; NULL: it is. */
const char *spate_local_place_remote(uint32_t type);

bool spate_local_name_good(const char *topic); /* [a-z0-9][a-z0-9._-]{0,127} */

#endif
