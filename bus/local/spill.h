/* bus/local/spill.h - a value that is too large for a segment: a file of its own beside the log.
 *
 * The record (type SPILL) holds the key, then what the file must be: its length and checksum, which the
 * record's own checksum covers. The file is called by the record's position, `<%016x>.spill`, and stands in
 * the topic's durable directory (a volatile topic's: in the hot one). It is written and synced under a
 * temporary name, called by the position once that is claimed, and only then the record is committed: who
 * sees the record finds the file. The archiver syncs the directory before such a record becomes durable.
 * A file of a position where no such record came to be says nothing to anybody: it is removed by whoever
 * padded the claim, by a recovery, or with its segment.
 *
 * Thread: any. Blocks: _make writes and syncs the whole value; _map reads it. */
#ifndef SPATE_BUS_LOCAL_SPILL_H
#define SPATE_BUS_LOCAL_SPILL_H

#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_LOCAL_SPILL_MOST ((size_t)INT32_MAX) /* key and value together: both in the writer's memory */
#define SPATE_LOCAL_SPILL_NAME SPATE_LOCAL_TEMP

/* Behind the key in the record, in the machine's byte order. */
struct spate_local_spill_ref {
    uint64_t length; /* of the value */
    uint32_t crc;    /* crc32c of it */
    uint32_t zero;
};
static_assert(sizeof(struct spate_local_spill_ref) == 16, "what a record says of its spill file");

/* A file in the making; its maker's. */
struct spate_local_spill {
    int dir;                           /* where it stands; borrowed */
    int fd;                            /* locked against sweeping while it is open; -1: there is none */
    char name[SPATE_LOCAL_SPILL_NAME]; /* as it is called now */
    struct spate_local_spill_ref ref;
};

/* Where the spill files of a topic stand. */
static inline int spate_local_spill_dir(const struct spate_local_topic *topic)
{
    return topic->manifest.is_volatile ? topic->hot_fd : topic->durable_fd;
}

/* Writes the value under a temporary name; of a durable topic it is synced. SPATE_AGAIN: no room, *missing
 * bytes of it; nothing is left behind. On SPATE_OK it has to be kept or dropped. */
SPATE_CHECKED enum spate_rc spate_local_spill_make(struct spate_local_spill *spill,
                                                   const struct spate_local_topic *topic,
                                                   struct spate_slice value, uint64_t *missing,
                                                   struct spate_err *err);
/* Calls it by a position that was claimed; again, by another, when that claim was lost. SPATE_END: the file
 * is gone (whoever padded the lost claim removed it): drop it, and make it anew. */
SPATE_CHECKED enum spate_rc spate_local_spill_call(struct spate_local_spill *spill, uint64_t pos,
                                                   struct spate_err *err);
void spate_local_spill_keep(struct spate_local_spill *spill); /* its record is committed */
void spate_local_spill_drop(struct spate_local_spill *spill); /* accepts one that was not made */

/* A spilled value, mapped read-only. */
struct spate_local_spill_view {
    void *at; /* NULL: none */
    size_t len;
    struct spate_local_guard *guard;
};

/* Maps the value of the record at `pos`, whose key and ref have `len` bytes, and holds it against length and
 * checksum. SPATE_END: there is no such file. SPATE_FAIL (fatal): it is not what the record says. */
SPATE_CHECKED enum spate_rc spate_local_spill_map(const struct spate_local_topic *topic, uint64_t pos,
                                                  const struct spate_local_record *record, uint32_t len,
                                                  struct spate_local_spill_view *view, struct spate_err *err);
/* SPATE_FAIL (fatal): the file was cut while it was mapped, and what was read there is not to be believed. */
SPATE_CHECKED enum spate_rc spate_local_spill_unmap(const struct spate_local_topic *topic,
                                                    struct spate_local_spill_view *view,
                                                    struct spate_err *err);

/* Is the file of the record at `pos` there? With `read`, also: are its bytes the right ones? */
bool spate_local_spill_sound(int dir, uint64_t pos, const struct spate_local_record *record, uint32_t len,
                             bool read);

/* The file of a position whose claim was padded over, if there is one. */
void spate_local_spill_remove_one(int dir, uint64_t pos);
/* The files of positions from `from` on and below `upto`: removes them; counts the bytes that they take. */
void spate_local_spill_remove(int dir, uint64_t from, uint64_t upto);
uint64_t spate_local_spill_bytes(int dir, uint64_t from, uint64_t upto);

#endif
