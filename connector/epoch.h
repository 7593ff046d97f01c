/* connector/epoch.h - is this still the stream that the bus holds? A pure decision (P58-P60, P73-P76, K14).
 *
 * Continuity is broken when the source is another one, or when the slot and the bus no longer meet: then
 * nothing is repaired in silence; the process stops with exit code FENCED until a human says --new-epoch.
 *
 * Pure: no I/O. The strings of struct spate_epoch_record are its own. */
#ifndef SPATE_CONNECTOR_EPOCH_H
#define SPATE_CONNECTOR_EPOCH_H

#include "core/err.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stdint.h>

/* What --new-epoch costs, for messages that name it as the remedy. */
#define SPATE_AFTER_NEW_EPOCH                                                                                \
    "(every sink then asks for everything anew; one with snapshot: manual stops as stale: "                  \
    "docs/operating.md)"

/* The newest epoch that `_schemas` holds: an epoch message that outlives the buffer it was read from. */
struct spate_epoch_record {
    bool present;
    struct spate_epoch epoch; /* its slices point into text */
    char *text;               /* owned */
};
void spate_epoch_keep(struct spate_epoch_record *record, const struct spate_epoch *epoch);
void spate_epoch_drop(struct spate_epoch_record *record);

/* What the source says of itself at this connect. */
struct spate_source_state {
    char system[32];
    uint32_t timeline;
    char database[256];
    uint32_t database_oid;
    uint64_t wal; /* how far its WAL is flushed */
    uint64_t
        fork; /* where its history parted from the stream's timeline, when that is another; 0: not known */
    struct {
        bool exists;
        char plugin[64], database[256];
        char status[16];       /* wal_status: reserved, extended, unreserved, lost; may be empty */
        char invalidation[64]; /* why it was invalidated (17+), else empty */
        bool has_restart;
        uint64_t restart, confirmed;
        int64_t active_pid; /* 0: nobody uses it */
        bool failover;      /* standbys may keep it in step (17+) */
        bool synced;        /* this server kept it in step while it was a standby */
    } slot;
};

/* What the bus says (connector/recovery.h finds it out). */
struct spate_bus_state {
    bool stream_empty;
    bool undecided; /* retention took so much that nothing tells which number comes after the slot's place */
    bool remade;    /* it begins in the middle, and nothing was removed from its beginning: another topic */
    uint64_t stream_epoch; /* of the newest record in the stream */
    uint64_t greatest_end; /* in the newest epoch; 0 when it has none */
    uint64_t last_n;       /* the last n of a complete transaction in it */
    uint64_t last_commit;  /* the greatest commit LSN in it */
};

enum spate_continuity {
    SPATE_CONTINUITY_FIRST,       /* nothing was ever published: a first start */
    SPATE_CONTINUITY_GOES_ON,     /* slot and stream meet */
    SPATE_CONTINUITY_FAILED_OVER, /* they meet on the server that took over: an epoch that continues (P73) */
    SPATE_CONTINUITY_HALF,   /* a new epoch stands in `_schemas` only: its opening was cut short, finish it */
    SPATE_CONTINUITY_BROKEN, /* *err says why, what is lost and what to do (exit code FENCED) */
    SPATE_CONTINUITY_UNUSABLE /* the slot can never be used as configured (exit code REFUSED) */
};

/* slot, publication: as configured. `newest` is the newest epoch of `_schemas`. */
enum spate_continuity spate_epoch_judge(const char *slot, const char *publication,
                                        const struct spate_source_state *source,
                                        const struct spate_epoch_record *newest,
                                        const struct spate_bus_state *bus, struct spate_err *err);

#endif
