/* bus/local/kept.h - what the archive of a topic holds: its segments with their spill files, and their age.
 *
 * Thread: one at a time. Blocks: looking at a directory. */
#ifndef SPATE_BUS_LOCAL_KEPT_H
#define SPATE_BUS_LOCAL_KEPT_H

#include "core/err.h"

#include <stddef.h>
#include <stdint.h>

struct spate_local_kept_segment {
    uint64_t base;
    uint64_t bytes;  /* of its file and the spill files of its records */
    int64_t last_ns; /* when its last byte was written */
};

struct spate_local_kept {
    struct spate_local_kept_segment *at; /* oldest first; all but the last are final */
    size_t count, room;
    uint64_t bytes; /* of all of them */
};

void spate_local_kept_fini(struct spate_local_kept *kept);

/* Adds the segments at and above `from` that came since the last look, and looks at the newest again. */
SPATE_CHECKED enum spate_rc spate_local_kept_look(struct spate_local_kept *kept, int dir, uint64_t cap,
                                                  uint64_t from, struct spate_err *err);
/* The newest may have grown since. */
void spate_local_kept_renew(struct spate_local_kept *kept, int dir);
/* Bytes that stand at or above the segment of `pos`. */
uint64_t spate_local_kept_behind(const struct spate_local_kept *kept, uint64_t pos);
void spate_local_kept_forget(struct spate_local_kept *kept, uint64_t first); /* what lies below */
/* Unlinks all segments and spill files below `first`. How many segments went is returned. */
size_t spate_local_kept_remove(int dir, uint64_t first);

#endif
