/* bus/local/topic.h - one topic's directories, its manifest, and the pages that everybody maps.
 *
 * The manifest (on the disk) is the truth about the log: its id, its segment size, the highest base that may
 * have been used, and the generation. The hot tier is valid iff bus.meta names the manifest's `hot` and ctl
 * its generation; otherwise, and only then, a writer recovers from the archive (bus/local/recovery.h).
 * Thread: that of the handle; an archiver reads fds and ctl.
 * Blocks: writing a manifest waits for the disk. */
#ifndef SPATE_BUS_LOCAL_TOPIC_H
#define SPATE_BUS_LOCAL_TOPIC_H

#include "bus/local/layout.h"
#include "bus/local/place.h"
#include "bus/local/sigbus.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct spate_local_manifest {
    char log_id[37];
    uint64_t cap;
    uint64_t highest;    /* no base above it was ever handed out */
    uint64_t first;      /* the log's beginning, then retention's floor */
    uint64_t generation; /* counts recoveries */
    uint64_t hot;        /* the incarnation of the hot root that holds the hot tier */
    bool is_volatile;
    bool is_unchecked;       /* records carry no checksum */
    bool keeps;              /* SPATE_TOPIC_KEEP: retention takes nothing */
    bool ruled;              /* the following were said, by whoever may (bus/local/retain.h) */
    int64_t retention_ms;    /* 0: age removes nothing */
    int64_t retention_bytes; /* 0: half of the file system; -1: no limit */
    int64_t hold_expire_ms;  /* a dead holder holds for so long; 0: for ever */
};

struct spate_local_topic {
    const struct spate_local_place *place;
    char name[SPATE_LOCAL_NAME + 1];
    int durable_fd; /* its directory in the durable root; -1: closed */
    int hot_fd;     /* its directory in the hot root; -1: detached */
    int live_fd;    /* says that a writer of this hot root lives; -1: it is not one */
    struct spate_local_manifest manifest;
    struct spate_local_ctl *ctl;   /* NULL: detached */
    struct spate_local_bell *bell; /* NULL: detached, or a reader that may not write it */
    ino_t ctl_ino;
    struct spate_local_guard *ctl_guard, *bell_guard; /* somebody may cut them under us */
};

/* Opens the durable directory and reads the manifest. SPATE_END: no such topic. A failure leaves nothing
 * open. */
SPATE_CHECKED enum spate_rc spate_local_topic_open(struct spate_local_topic *topic,
                                                   const struct spate_local_place *place, const char *name,
                                                   struct spate_err *err);
/* The same for a writer: makes directories and, with `create`, the topic; `shared`: the group may write it.
 * Its lock is taken by the caller between _make and _found: nothing but directories and the lock file exists
 * before. */
SPATE_CHECKED enum spate_rc spate_local_topic_make(struct spate_local_topic *topic,
                                                   const struct spate_local_place *place, const char *name,
                                                   bool create, bool shared, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_topic_found(struct spate_local_topic *topic, unsigned flags,
                                                    struct spate_err *err); /* flags: spate_topic_flags */

SPATE_CHECKED enum spate_rc spate_local_manifest_read(struct spate_local_topic *topic, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_manifest_write(struct spate_local_topic *topic,
                                                       struct spate_err *err);

/* SPATE_FAIL (fatal): the directory `fd` of the topic is a stranger's, where anybody may make directories. */
SPATE_CHECKED enum spate_rc spate_local_topic_stranger(const struct spate_local_topic *topic, int root,
                                                       int fd, struct spate_err *err);

/* Maps ctl and bell when the hot tier is valid (SPATE_OK); SPATE_END: it is not. Readers map ctl read-only.
 */
SPATE_CHECKED enum spate_rc spate_local_topic_attach(struct spate_local_topic *topic, bool writer,
                                                     struct spate_err *err);
void spate_local_topic_detach(struct spate_local_topic *topic);
/* Is what is attached still what others find? It is not after the hot root was removed, or recovered. */
bool spate_local_topic_current(const struct spate_local_topic *topic);

/* Does the path still lead to the durable directory that is open? */
bool spate_local_topic_in_place(const struct spate_local_topic *topic);
/* SPATE_FAIL (fatal) when not: what is written now nobody finds. */
SPATE_CHECKED enum spate_rc spate_local_topic_gone(const struct spate_local_topic *topic,
                                                   struct spate_err *err);

/* Opens, and makes where missing, the hot directory alone; *hot_id is the incarnation of the hot root. */
SPATE_CHECKED enum spate_rc spate_local_topic_hot(struct spate_local_topic *topic, uint64_t *hot_id,
                                                  struct spate_err *err);
/* Makes ctl and bell of a new generation in an emptied hot directory and attaches them. */
SPATE_CHECKED enum spate_rc spate_local_topic_renew(struct spate_local_topic *topic, uint64_t head,
                                                    uint64_t first, uint64_t durable, struct spate_err *err);

/* The end of all that was taken of an attached topic: where the next record will stand. */
uint64_t spate_local_topic_tip(const struct spate_local_topic *topic);
/* Is the hot tier whole: the segment of the durable position (where it was begun) and the head? */
bool spate_local_topic_whole(const struct spate_local_topic *topic);

/* Sees to it that the manifest promises the bases that the log comes to next: read, changed and synced when
 * half of what was promised is used. Only the steward, or an owner, does so: nobody else writes the manifest.
 * SPATE_AGAIN: no room for it on the disk. */
SPATE_CHECKED enum spate_rc spate_local_topic_promise(struct spate_local_topic *topic, struct spate_err *err);
/* How far the log may grow now (ctl's gate); `held`: a named reader holds the archive at its limit. */
void spate_local_topic_gate(const struct spate_local_topic *topic, bool held);

void spate_local_topic_close(struct spate_local_topic *topic);

#endif
