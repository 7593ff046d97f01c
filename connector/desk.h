/* connector/desk.h - the desk at which requests are handed in: reads `<connector>._control`, checks each
 * request against the connector's file and the source's catalog, refuses with reason and remedy, hands the
 * rest to the data plane, and publishes what the data plane answers.
 *
 * Thread: one of its own, with its own bus handle and its own connection to the source. The functions below
 * are called by the data plane and never block (_open and _close excepted). */
#ifndef SPATE_CONNECTOR_DESK_H
#define SPATE_CONNECTOR_DESK_H

#include "connector/connector.h"
#include "connector/plan.h"
#include "core/err.h"
#include "core/slice.h"

enum spate_order_kind {
    SPATE_ORDER_REQUEST, /* plan */
    SPATE_ORDER_REPLAN,  /* plan with one table: what was asked for with spate_desk_replan; NULL: refused, the
                            requester was told, and the request is over */
    SPATE_ORDER_CANCEL,
    SPATE_ORDER_REREAD, /* table (schema, name), keys (JSON array), chunk */
    SPATE_ORDER_FINISHED,
    SPATE_ORDER_BEFORE /* xids: see spate_desk_session */
};

struct spate_order {
    enum spate_order_kind kind;
    char *request, *sink;
    struct spate_plan *plan; /* whoever takes the order may take it (and set NULL) */
    char *schema, *table, *keys;
    char *why; /* REPLAN without a plan: what the requester was told */
    uint64_t chunk;
    uint64_t session; /* in which it was given */
    uint32_t *xids;   /* BEFORE */
    size_t xid_count;
    struct spate_order *next; /* the desk's */
};
void spate_order_free(struct spate_order *order); /* accepts NULL */

struct spate_desk;

SPATE_CHECKED enum spate_rc spate_desk_open(const struct spate_connector_config *config,
                                            struct spate_desk **desk, struct spate_err *err);
void spate_desk_close(struct spate_desk *desk);               /* accepts NULL */
struct spate_order *spate_desk_take(struct spate_desk *desk); /* NULL: none */
int spate_desk_fd(struct spate_desk *desk);                   /* readable when _take may have something */

/* The replication stream (re)started just now in this epoch: publishes `started`; and finds out which
 * transactions may have been delivered before and are not visible yet (connector/rebuild.h): ORDER_BEFORE
 * answers, with the same session number. Until then nothing may be emitted. */
void spate_desk_session(struct spate_desk *desk, uint64_t session, uint64_t epoch);

/* The session is over: requests that were handed over are forgotten, orders that were not taken are void, and
 * nothing is read from `_control` or answered before the next session, whoever of two connectors has it then.
 * Requesters ask again when they see `started`; what was asked meanwhile and nobody answered is taken up. */
void spate_desk_leave(struct spate_desk *desk);

/* The table is another one now (its stamp changed): plans it anew from the same request. */
void spate_desk_replan(struct spate_desk *desk, const char *request, struct spate_slice schema,
                       struct spate_slice table);
/* Nobody will ask about this request again (finished, cancelled, refused, expired). */
void spate_desk_forget(struct spate_desk *desk, const char *request);

/* Publishes a line on `_control`; copied. In order; while the bus is away the newest progress lines are kept
 * and older ones of the same request may be left out. */
void spate_desk_say(struct spate_desk *desk, struct spate_slice line);

#endif
