/* connector/watch.h - the slot is somebody's disk: a look at it every few seconds, whatever the data plane is
 * doing. And a look at the published tables, for what the stream does not tell (connector/survey.h).
 *
 * WAL that the slot keeps grows while the bus is down, while this process waits for its turn, or while a
 * transaction on the source stays open. It is reported before it hurts, at each doubling, and before
 * max_slot_wal_keep_size takes the slot away (P60).
 *
 * Thread: its own, with an ordinary connection of its own; it only looks. Nothing waits for it. */
#ifndef SPATE_CONNECTOR_WATCH_H
#define SPATE_CONNECTOR_WATCH_H

#include "connector/connector.h"
#include "connector/survey.h"
#include "core/log.h"

#include <stdbool.h>
#include <stdint.h>

/* In the order of wal_status' names. */
enum spate_wal_status {
    SPATE_WAL_UNKNOWN = -1,
    SPATE_WAL_RESERVED,
    SPATE_WAL_EXTENDED,   /* more than max_wal_size is kept */
    SPATE_WAL_UNRESERVED, /* the next checkpoint may remove what is needed */
    SPATE_WAL_LOST
};
extern const char *const spate_wal_status_names[];

/* What the source said, and when. */
struct spate_slot_look {
    int64_t looked_us; /* wall clock; 0: not yet */
    bool exists;
    int active; /* -1: not known */
    enum spate_wal_status status;
    uint64_t wal, restart, confirmed; /* 0: not known */
    int64_t retained_bytes;           /* -1: not known; so are the following */
    int64_t behind_bytes;             /* of it, what was not confirmed yet */
    int64_t safe_bytes;               /* that may be written before the slot is in danger; -1: no limit */
    int64_t keep_bytes;               /* max_slot_wal_keep_size; -1: no limit */
    int server;                       /* version number */
    int64_t xmin_age;    /* transactions since the oldest whose leftovers in the catalog it keeps; -1 */
    int64_t surveyed_us; /* wall clock: the published tables were looked at last; 0: not yet */
    int64_t survey_ms;   /* how long that took */
};

/* ---- what is worth a word, pure ---- */

struct spate_watch_memory { /* all zero: nothing was said */
    int doublings;          /* told about so many of the first threshold, counted from 1 */
    int above;              /* looks in a row that found more than was told */
    int scarcity;           /* 1: below a fifth of the limit was told; 2: below a twentieth */
    enum spate_wal_status status;
    int ages; /* doublings of the first age that is worth a word */
};
typedef void spate_watch_tell_fn(void *arg, enum spate_log_level level, const char *event, const char *text);
void spate_watch_judge(struct spate_watch_memory *memory, const struct spate_slot_look *look,
                       const char *slot, int64_t threshold_bytes, spate_watch_tell_fn *tell, void *arg);

/* ---- the thread ---- */

struct spate_watch;
/* `seen` is called in the watch's thread after each look. The configuration outlives the watch. NULL: no
 * thread could be started (logged). */
struct spate_watch *spate_watch_start(const struct spate_connector_config *config,
                                      void (*seen)(void *arg, const struct spate_slot_look *look), void *arg);
/* The survey that was made last, if none was taken since; the caller's. Any thread. */
struct spate_survey *spate_watch_take(struct spate_watch *watch);
/* A look at once, and a survey soon: something happened. Any thread. */
void spate_watch_now(struct spate_watch *watch);
/* Waits until a look that is under way is over, a few seconds at most; at once when a stop was asked for. */
void spate_watch_stop(struct spate_watch *watch);

#endif
