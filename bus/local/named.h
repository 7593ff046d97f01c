/* bus/local/named.h - readers that are known by a name: readers/<name>/<topic> below the durable root.
 *
 * The file is mapped by the one process that has the name, which says in it how far it is; a lock on the file
 * tells whether that process lives. Everybody else reads it with pread(2) and believes nothing without its
 * checksum, since whoever may read the bus may write there. Two marks are written alternately, so that one is
 * whole at any time; the newer valid one counts. What a mark says is for people and for `hold`; where a
 * program goes on after a restart it keeps with its results.
 *
 * Thread: an enlisted reader's own; the rest any. Blocks: _enlist and _release may wait for the disk. */
#ifndef SPATE_BUS_LOCAL_NAMED_H
#define SPATE_BUS_LOCAL_NAMED_H

#include "bus/local/place.h"
#include "core/err.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#define SPATE_LOCAL_READERS "readers" /* the directory's name, and therefore no topic's */

#define SPATE_LOCAL_MARK_MAGIC    UINT64_C(0x53504154454d0001) /* "SPATEM", version 1 */
#define SPATE_LOCAL_RELEASE_MAGIC UINT64_C(0x5350415445520001) /* "SPATER", version 1 */

enum spate_local_mark_flags { SPATE_LOCAL_MARK_HOLDS = 1 };

struct spate_local_mark {
    uint64_t magic;
    uint64_t gen;     /* counts the marks; of two valid ones the higher wins */
    uint64_t pos;     /* all before it is done with */
    uint64_t records; /* that were read under this name since the log is known to it */
    uint64_t ts_ns;   /* wall clock: when it was written, at least every ten seconds while the reader waits */
    uint64_t log;     /* spate_local_log_number of the log that pos is of */
    uint32_t pid;     /* a hint for people */
    uint32_t flags;
    uint32_t ahead; /* how much further it has read, in units of 64 bytes; ~0: that much or more */
    uint32_t crc;   /* crc32c of the 60 bytes before */
};
static_assert(sizeof(struct spate_local_mark) == 64, "a mark is one line");

enum spate_local_release_why { SPATE_LOCAL_RELEASE_OPERATOR = 1, SPATE_LOCAL_RELEASE_EXPIRED = 2 };

/* What lies below `upto` need not be held for this name any longer. Once its mark has reached upto, it holds
 * again. */
struct spate_local_release {
    uint64_t magic;
    uint64_t upto;
    uint64_t ts_ns;
    uint64_t log;
    uint32_t why;
    uint32_t uid; /* who did it */
    uint32_t spare[5];
    uint32_t crc; /* crc32c of the 60 bytes before */
};
static_assert(sizeof(struct spate_local_release) == 64, "a release is one line");

struct spate_local_marks { /* the file's 192 bytes */
    struct spate_local_mark mark[2];
    struct spate_local_release release;
};

/* Of spate_local_manifest.log_id. */
uint64_t spate_local_log_number(const char *log_id);

/* The reader's side. */
struct spate_local_named {
    int fd;                       /* holds the lock; -1: not enlisted */
    struct spate_local_marks *at; /* mapped; NULL: not enlisted */
    struct spate_local_mark mark; /* as written last */
    uint64_t read;                /* where the reader stands */
    int64_t written_ms;
    struct spate_local_guard *guard; /* others may write the file, and so cut it */
};

/* Takes the name for this topic and writes the first mark: at `pos`, or at what the mark there says when that
 * is lower. `name` as spate_local_name_good. SPATE_FAIL: retry = a living process has it (the text says
 * which); fatal = no such name, or no permission. */
SPATE_CHECKED enum spate_rc spate_local_named_enlist(struct spate_local_named *named,
                                                     const struct spate_local_place *place, const char *name,
                                                     const char *topic, const char *log_id, bool hold,
                                                     uint64_t pos, struct spate_err *err);
/* All before `pos` is done with; `records` more were read since the last mark. */
void spate_local_named_passed(struct spate_local_named *named, uint64_t pos, uint64_t records);
/* The reader has read all before `read`, waits, and lives: says so where that is new, or long ago. Costs a
 * comparison or two else. */
void spate_local_named_waits(struct spate_local_named *named, uint64_t read, int64_t now_ms);
/* Gives the name back; the mark stays. Accepts one that is not enlisted. */
void spate_local_named_leave(struct spate_local_named *named);

/* Everybody's side: one name's line about one topic. */
struct spate_local_named_view {
    char name[SPATE_LOCAL_NAME + 1];
    char topic[SPATE_LOCAL_NAME + 1];
    bool marked;                        /* a valid mark is there; else only the name */
    struct spate_local_mark mark;       /* the newer valid one */
    struct spate_local_release release; /* magic 0: none that counts for this mark */
    bool alive;                         /* a process has the name now */
    bool holds;                         /* wants to hold, and was not released */
};

typedef void spate_local_named_fn(void *arg, const struct spate_local_named_view *view);

/* Calls `each` for each name and topic (`topic` NULL: all of them), in no order. No readers: SPATE_OK. */
SPATE_CHECKED enum spate_rc spate_local_named_list(const struct spate_local_place *place, const char *topic,
                                                   spate_local_named_fn *each, void *arg,
                                                   struct spate_err *err);
/* SPATE_END: nobody is or was known by that name on that topic. */
SPATE_CHECKED enum spate_rc spate_local_named_look(const struct spate_local_place *place, const char *name,
                                                   const char *topic, struct spate_local_named_view *view,
                                                   struct spate_err *err);
/* Nothing below `upto` (the end of the topic now) is held for it any longer: the next look of the topic's
 * writer sees it, within a second or so. SPATE_END: no such name and topic. */
SPATE_CHECKED enum spate_rc spate_local_named_release(const struct spate_local_place *place, const char *name,
                                                      const char *topic, uint64_t upto,
                                                      enum spate_local_release_why why,
                                                      struct spate_err *err);

/* Makes the directory for readers, open to the group whatever the umask says; a writer does so when it opens,
 * since a reader may have no right to. Says nothing when it cannot: who enlists hears of it. */
void spate_local_named_make_root(int durable_root);

#endif
