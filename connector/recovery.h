/* connector/recovery.h - where to go on: the stream's tail, and what is decoded again
 * (docs/hazards.md).
 *
 * The bus itself is the witness; there is no state file. Postgres sends again every transaction whose commit
 * LSN is not below the slot's confirmed LSN C. What of it stands on the bus already is compared, message by
 * message in step with a second reader, and not published twice.
 *
 * Thread: the data plane. Memory does not depend on how much there is to compare.
 * Blocks: on reading the bus only. */
#ifndef SPATE_CONNECTOR_RECOVERY_H
#define SPATE_CONNECTOR_RECOVERY_H

#include "bus/bus.h"
#include "connector/epoch.h"
#include "core/arena.h"
#include "core/err.h"
#include "schemas/codec.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stdint.h>

/* ---- the acceptance rule, pure ---- */

/* What every consumer of the stream applies (docs/hazards.md). The writer replays it from just after a place
 * it knows to be right; taking the greatest n instead would be wrong in most histories with a hole. */
struct spate_rule {
    uint64_t epoch;
    uint64_t last; /* the last accepted n */
    struct spate_pos pos;
};
enum spate_ruling { SPATE_ACCEPT, SPATE_DROP, SPATE_IGNORE, SPATE_DIVERGED };
enum spate_ruling spate_rule_feed(struct spate_rule *rule, const struct spate_head *head);

/* Is this a place from which the rule may be replayed, the slot being confirmed at `confirmed`? Everything up
 * to it is confirmed: a change of a confirmed transaction, a heartbeat, or the epoch's opening. */
bool spate_rule_anchor(const struct spate_head *head, uint64_t epoch, uint64_t confirmed);

/* ---- the tail ---- */

struct spate_tail {
    struct spate_bus_state bus;
    uint64_t first;       /* n of the first change that Postgres sends again, less one */
    uint64_t last;        /* T: greater numbers are new */
    uint64_t last_commit; /* commit LSN of T's transaction */
    uint64_t skip_below;  /* transactions with a smaller commit LSN belong to before: passed by */
    bool has_align;       /* retention took the anchor: changes before `align` are passed by */
    struct spate_pos align;
    struct spate_bus_pos from; /* where the comparing reader begins */
};

/* Reads the durable stream backwards until the anchor, then forwards to its end. Right with zombies,
 * repetitions and holes in the log (tests/unit/connector_rule_test.c). All of the stream must be durable (the
 * writer's open has seen to it). */
SPATE_CHECKED enum spate_rc spate_recovery_tail(struct spate_bus *bus, const char *topic,
                                                const struct spate_epoch_record *newest, uint64_t confirmed,
                                                struct spate_tail *tail, struct spate_err *err);

/* ---- comparing ---- */

struct spate_recheck {
    const char *driver;          /* of the bus, for positions in texts */
    struct spate_reader *reader; /* owned; NULL when there is nothing (more) to compare */
    uint64_t epoch;
    uint64_t last; /* T */
    struct spate_arena arena;
};

SPATE_CHECKED enum spate_rc spate_recheck_open(struct spate_recheck *recheck, struct spate_bus *bus,
                                               const char *topic, uint64_t epoch,
                                               const struct spate_tail *tail, struct spate_err *err);
void spate_recheck_close(struct spate_recheck *recheck);

/* The change n <= T was decoded again. SPATE_FAIL (fatal, exit code FENCED): the bus holds another one under
 * this number: the source's history is not the one the stream was made from (P75). */
SPATE_CHECKED enum spate_rc spate_recheck_change(struct spate_recheck *recheck,
                                                 const struct spate_change *change, struct spate_err *err);

#endif
