/* bus/local/recovery.h - what a writer does before its first record: recover from the archive when the hot
 * tier is lost, or settle what a killed predecessor left in it.
 *
 * The caller holds the topic's writer lock, so nobody writes meanwhile and nothing has to be waited for.
 * Blocks: recovery waits for the disk. */
#ifndef SPATE_BUS_LOCAL_RECOVERY_H
#define SPATE_BUS_LOCAL_RECOVERY_H

#include "bus/local/segment.h"
#include "bus/local/topic.h"

/* Begins a new generation: cuts the newest archive segment at its first bad record, writes END there with the
 * next base, and goes on at a base above any that was ever handed out. The topic is attached afterwards. */
SPATE_CHECKED enum spate_rc spate_local_recover(struct spate_local_topic *topic, struct spate_err *err);

/* How many bytes of `seg` at its beginning are sound; *ended: an END or the full segment follows, so that
 * nothing needs to be cut. With `crc` false only the structure is looked at. */
uint64_t spate_local_scan(const struct spate_local_segment *seg, uint64_t from, bool crc, bool *ended);

/* Makes every record of `seg` from `from` to its tail final. SPATE_OK: the segment is open for more;
 * SPATE_END: it has ended. */
SPATE_CHECKED enum spate_rc spate_local_settle(struct spate_local_segment *seg, uint64_t from,
                                               struct spate_local_ctl *ctl, struct spate_err *err);

/* Bases are reserved in the manifest this many at a time, because it is synced before one is used. */
#define SPATE_LOCAL_RESERVE 16

#endif
