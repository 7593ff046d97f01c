/* bus/local/recovery.h - what a writer does before its first record when the hot tier is lost: recover from
 * the archive.
 *
 * The caller holds the steward's lock, so nobody archives meanwhile: what others still publish into a hot
 * tier that is no more is never durable, and they are told so. Blocks: recovery waits for the disk. */
#ifndef SPATE_BUS_LOCAL_RECOVERY_H
#define SPATE_BUS_LOCAL_RECOVERY_H

#include "bus/local/segment.h"
#include "bus/local/topic.h"

/* Begins a new generation: cuts the newest archive segment at its first bad record, writes END there with the
 * next base, and goes on at a base above any that was ever handed out. The topic is attached afterwards. */
SPATE_CHECKED enum spate_rc spate_local_recover(struct spate_local_topic *topic, struct spate_err *err);

/* How many bytes of `seg` at its beginning are sound; *ended: an END or the full segment follows, so that
 * nothing needs to be cut. `spills`: the directory of the files of large values, which have to be sound as
 * well; -1: these are not looked at. */
uint64_t spate_local_scan(const struct spate_local_segment *seg, uint64_t from, int spills, bool *ended);

/* Bases are reserved in the manifest this many at a time, because it is synced before one is used. */
#define SPATE_LOCAL_RESERVE 16

#endif
