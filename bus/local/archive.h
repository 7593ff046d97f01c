/* bus/local/archive.h - carrying final records from the hot tier to the disk, in groups, with fdatasync.
 *
 * One step copies what is final beyond the durable watermark (up to a few megabytes), syncs, and moves the
 * watermark in ctl. The archive's segment N is whole and synced before the file of N + 1 is made, so only
 * the newest file can be torn by a power cut. A hot segment is removed when it is archived, synced and no
 * longer written.
 * Of a volatile topic the same steps only find out how far the log is final.
 * Thread:  one at a time per topic: whoever holds the steward's lock.
 * Blocks:  a step waits for the disk. */
#ifndef SPATE_BUS_LOCAL_ARCHIVE_H
#define SPATE_BUS_LOCAL_ARCHIVE_H

#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "core/log.h"

struct spate_local_archive {
    const struct spate_local_topic *topic; /* borrowed; its ctl and descriptors */
    uint64_t cap;
    uint64_t pos;                   /* everything below is durable (volatile: final) */
    uint64_t trimmed;               /* the hot tier holds no segment below that could go */
    uint64_t group;                 /* most bytes between two syncs */
    struct spate_local_segment hot; /* the segment of pos */
    int fd;                         /* its file in the archive; -1: closed */
    bool spills;   /* among what goes next are records whose values have files of their own */
    bool distrust; /* a sync failed: what the page cache holds of this file is not to be believed */
    struct spate_log_limit complained;
};

void spate_local_archive_init(struct spate_local_archive *archive, const struct spate_local_topic *topic);
void spate_local_archive_fini(struct spate_local_archive *archive);

/* SPATE_OK: the watermark moved. SPATE_END: nothing is final beyond it; archive->hot holds its segment, where
 * there is one. SPATE_AGAIN: the disk is full (logged); the
 * watermark stands still, ask again later. SPATE_FAIL: the disk failed twice, nothing more can be promised.
 */
SPATE_CHECKED enum spate_rc spate_local_archive_step(struct spate_local_archive *archive,
                                                     struct spate_err *err);

/* For tests: stands in for fdatasync when not NULL; sets errno like it. */
extern int (*spate_local_archive_sync_hook)(int fd);

#endif
