/* bus/local/retain.h - how much of a topic's archive stays: by age, by bytes, and for whom it is held.
 *
 * The oldest segments go, whole, with the spill files of their records, while the last byte of one is older
 * than the topic's limit or the archive is larger than its limit. The newest always stays. The manifest says
 * so, synced, and ctl too, before anything is unlinked; so a reader that looks for what is gone finds the
 * gap. The age is that of the segment's file, so a clock that steps back
 * removes nothing.
 *
 * A topic that is kept (SPATE_TOPIC_KEEP) loses nothing; of a volatile one there is no archive.
 *
 * A segment that a holder (bus/local/named.h) has not passed does not go: then `blocked` is set, and the
 * writer may begin no further segment. But nobody waits for a holder that lives and has read all that there
 * is: what it needs is the rest (of a transaction that is larger than the limit), and the log grows beyond.
 * Thread: that of whoever holds the topic's steward lock. Blocks: waits for the disk when something is
 * removed. */
#ifndef SPATE_BUS_LOCAL_RETAIN_H
#define SPATE_BUS_LOCAL_RETAIN_H

#include "bus/local/kept.h"
#include "bus/local/named.h"
#include "bus/local/topic.h"
#include "core/log.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_local_holder { /* a name that holds; for expiry and alarms */
    char name[SPATE_LOCAL_NAME + 1];
    uint64_t pos;
    bool alive;
    bool waits;        /* has read all there is, and needs what comes next to be done with what it holds */
    bool seen;         /* at this look */
    int64_t dead_ms;   /* monotonic: since when it is seen dead; 0: it lives */
    uint64_t released; /* gen of the mark that does not hold any longer, when nothing could be written down */
    unsigned alarm;    /* the highest that was given, in percent */
};

struct spate_local_retain {
    struct spate_local_manifest rules; /* as of the last look */
    struct spate_local_kept kept;
    uint64_t limit;  /* of kept.bytes as it counts now; UINT64_MAX: none */
    uint64_t looked; /* base of the segment that was archived into at the last look at the directory */
    int64_t next_ms; /* monotonic: when it is looked at again */
    uint64_t hold;   /* lowest position that a holder needs; UINT64_MAX: none */
    uint64_t
        stops;    /* the same of those that have something to read: nobody waits for one who waits himself */
    bool blocked; /* the archive is at its limit, and what would go is held */
    bool swept;   /* what a killed predecessor left below the floor is removed */
    struct spate_local_holder *holders;
    size_t holder_count;
    struct spate_log_limit complained;
};

void spate_local_retain_init(struct spate_local_retain *retain);
void spate_local_retain_fini(struct spate_local_retain *retain);
/* Another one may hold the lock now. What is known of the archive stays known (looking through all of it at
 * each lone record would cost more than the record), and who was seen dead. */
void spate_local_retain_pause(struct spate_local_retain *retain);

/* Looks, and removes what is due. Cheap when nothing is (a comparison, and a look at the named readers once a
 * second), so it may be called at each turn. Sets ctl->hold and ctl->first, and topic->manifest.first after
 * it wrote the manifest, which nobody else may do meanwhile: the steward's lock is held. SPATE_FAIL: the
 * directory or the manifest cannot be read or written; nothing was removed that the manifest still promises,
 * and the next call tries again. */
SPATE_CHECKED enum spate_rc spate_local_retain_step(struct spate_local_retain *retain,
                                                    struct spate_local_topic *topic, struct spate_err *err);

/* Takes over what this process' configuration says of the topic, into the manifest (synced, where something
 * changes): always for an owned topic and one that is new (its manifest has no rules yet); of a SHARED one
 * only with SPATE_TOPIC_RULE, so that a guest's defaults change nothing. The caller holds the steward's lock,
 * and has read the manifest under it. */
SPATE_CHECKED enum spate_rc spate_local_retain_rule(struct spate_local_topic *topic, unsigned flags,
                                                    struct spate_err *err);

/* How many bytes the archive below `dir` may take by these rules; UINT64_MAX: as many as there is room for.
 */
uint64_t spate_local_retain_limit(const struct spate_local_manifest *rules, int dir);

/* For spate_writer_retention_ms: INT64_MAX when age removes nothing. */
int64_t spate_local_retain_ms(const struct spate_local_manifest *manifest);

#endif
