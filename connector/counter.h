/* connector/counter.h - what the desk's files share: desk.c is the thread, its queues and the bus;
 * counter.c is what is heard from requesters and said to them, counter_work.c what is done for them.
 * Internal to the desk. Thread: the desk's, but for what stands under the lock. */
#ifndef SPATE_CONNECTOR_COUNTER_H
#define SPATE_CONNECTOR_COUNTER_H

#include "connector/admission.h"
#include "connector/desk.h"
#include "connector/rebuild.h"
#include "core/arena.h"
#include "core/log.h"
#include "schemas/control.h"

#include <libpq-fe.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SPATE_DESK_KNOWN 64  /* requests that are answered at once, or wait for it */
#define SPATE_DESK_ENDED 256 /* ids whose end is remembered */

/* What the data plane wants of the desk. */
enum spate_errand_kind {
    SPATE_ERRAND_SESSION,
    SPATE_ERRAND_LEAVE,
    SPATE_ERRAND_REPLAN,
    SPATE_ERRAND_FORGET,
    SPATE_ERRAND_SAY
};
struct spate_errand {
    enum spate_errand_kind kind;
    uint64_t session, epoch;
    char *request, *schema, *table;
    struct spate_buf line;
    struct spate_errand *next;
};

/* A table that has to be planned anew. */
struct spate_replan {
    char *schema, *table;
    int64_t next_ms;
    struct spate_replan *next;
};

/* A request: not yet admitted, or handed over to the data plane. */
struct spate_known {
    char *request, *sink;
    struct spate_buf line;     /* as it stood in the topic */
    struct spate_buf accepted; /* what it was answered; empty before that */
    bool due;                  /* to be admitted */
    bool handed;               /* the data plane has it */
    int64_t since_ms, next_ms, told_ms;
    struct spate_replan *replans;
    struct spate_known *next;
};

/* A line for `_control`. Kept until it is durable. */
struct spate_outgoing {
    struct spate_buf line;
    char *progress; /* of this request; NULL: must not be left out */
    uint64_t token;
    bool sent;
    struct spate_outgoing *next;
};

/* Something that was asked while nobody listened, and for which no answer was met so far. */
struct spate_unheard {
    char *request;
    struct spate_buf line;
    int64_t ts_us;
    struct spate_unheard *next;
};

struct spate_desk {
    const struct spate_connector_config *config;
    pthread_t thread;
    int inbox_fd, orders_fd; /* eventfds */
    atomic_bool stopping;
    pthread_mutex_t lock; /* of these five */
    struct spate_errand *errands, **errands_end;
    struct spate_order *orders, **orders_end;
    uint64_t current; /* the data plane's session, 0: none; orders of another one are void */

    bool live; /* between session and leave */
    uint64_t session, epoch;
    bool before_due;
    int64_t before_ms;             /* when it is looked at again */
    struct spate_running *running; /* owned; what may have been delivered before; NULL: not asked yet */
    size_t running_count;
    int64_t running_ms; /* when that was asked */

    char topic[256], stream[240];
    struct spate_bus *bus;
    struct spate_reader *reader;
    struct spate_writer *writer;
    bool placed; /* `next` is to be read next in the log `log_id`; else the oldest record */
    struct spate_bus_pos next;
    char *log_id;     /* owned */
    bool catching_up; /* what comes up to the end was said while nobody listened */
    struct spate_unheard *unheard;
    size_t unheard_count;
    int64_t bus_ms, bus_pause_ms; /* when the bus is tried again */
    struct spate_log_limit bus_limit, source_limit, foreign_limit, refusal_limit;

    struct spate_outgoing *outgoing, **outgoing_end;
    size_t outgoing_count;
    uint64_t last_token;

    struct spate_known *known;
    size_t known_count;
    struct {
        char *request;
        const char *state;
    } ended[SPATE_DESK_ENDED];
    size_t ended_next;

    PGconn *conn;
    bool conn_kept;                    /* it was there already when it was wanted last */
    int64_t used_ms, source_ms;        /* when it was used; when it may be tried again */
    struct spate_arena arena, passing; /* of a line that comes in; of one that goes out */
};

/* desk.c */
void spate_desk_send(struct spate_desk *desk, struct spate_slice line); /* as spate_desk_say, at once */
void spate_desk_hand(struct spate_desk *desk, struct spate_order *order);

/* counter.c. A line of the topic; spoken while somebody listened, or not. */
void spate_counter_hear(struct spate_desk *desk, struct spate_slice line, int64_t ts_us);
void spate_counter_caught_up(struct spate_desk *desk);
/* The data plane's lines pass here: what they say is remembered. Returns the request of a `progress` line
 * (owned by the caller), else NULL. */
char *spate_counter_passes(struct spate_desk *desk, struct spate_slice line);
struct spate_known **spate_counter_find(struct spate_desk *desk,
                                        struct spate_slice request); /* *: NULL, none */
void spate_counter_drop(struct spate_desk *desk, struct spate_known **link);
void spate_counter_replanned(struct spate_replan *replan); /* frees it */
struct spate_order *spate_counter_order(enum spate_order_kind kind, const struct spate_known *known);
void spate_counter_refuse(struct spate_desk *desk, struct spate_slice to, struct spate_slice request,
                          const struct spate_refusal *refusal);
void spate_counter_tell(struct spate_desk *desk, struct spate_slice to, struct spate_slice request,
                        const char *state, struct spate_slice why);
void spate_counter_started(struct spate_desk *desk);
void spate_counter_forget(struct spate_desk *desk, const char *request);
void spate_counter_leave(struct spate_desk *desk);
void spate_counter_fini(struct spate_desk *desk);
/* counter_work.c */
void spate_counter_replan(struct spate_desk *desk, const struct spate_errand *errand);
void spate_counter_before(struct spate_desk *desk, bool due); /* a session begins; or is over */
/* What is due: admissions, plans, and the question which transactions an earlier session left. */
void spate_counter_work(struct spate_desk *desk);

#endif
