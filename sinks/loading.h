/* sinks/loading.h - when a sink asks for everything, and what it does until its tables hold all that exists
 * (docs/hazards.md; what one table needs for it, sinks/load.h).
 *
 * One request at a time: asked for, begun (its snapshot-begin stands in the stream), all ranges taken, keys
 * read again, tables finished one by one, said to be finished. What of it a new process has to know stands in
 * the target; the rest may be forgotten.
 *
 * Thread: the sink's. Blocks: on the target, as a batch does. Internal to sinks/. */
#ifndef SPATE_SINKS_LOADING_H
#define SPATE_SINKS_LOADING_H

#include "sinks/asking.h"

struct spate_sink;

/* One table of the file. */
struct spate_loading_table {
    bool asked;       /* part of the request, and not finished */
    bool wanted;      /* to be asked for next */
    bool conditional; /* conditions go with it */
    uint64_t rows;    /* that came, in this process */
    int64_t began_ms;
};

struct spate_loading {
    struct spate_asking asking;
    struct spate_loading_table *tables; /* owned, by projection */
    char request[SPATE_REQUEST_MOST];   /* "": nothing is asked for. The feed looks at it */
    char *wish;                         /* owned: the line by which a person asked, or NULL */
    size_t wish_len;
    bool awaited;             /* a new sink: the feed has stood still for it since before it was sent */
    bool begun;               /* the snapshot-begin was met */
    bool recall;              /* the conditions of the request are to be found on `_control` again */
    bool replaced;            /* the connector says that a table became another one meanwhile */
    bool looks_back;          /* what is heard now was said before this sink listened */
    struct spate_buf unended; /* the last wish in it */
    char unended_request[SPATE_REQUEST_MOST];
    bool unended_known; /* the connector may have heard of it */
    unsigned cancels;   /* said by this sink, and not yet heard again */
    bool send, again;   /* the request is to be sent; and to go on exactly where its tokens say */
    bool lost;          /* a chunk is missing */
    bool rest;          /* a person cancelled: nothing is asked for by itself until the next start */
    char *over;         /* owned: why the request has ended before its end */
    bool over_by_hand;  /* a person wanted it to end */
    int64_t looked_ms, listen_ms, heard_ms, again_ms, all_sent_ms, renewed_ms, asked_ms,
        send_ms;                           /* not before this */
    const struct spate_projection *reread; /* whose keys were asked for, and no chunk answered yet */
    int64_t reread_ms;
    bool answered;             /* the connector has said something of this request */
    double percent;            /* as the connector says; -1: it has not */
    int64_t left_s;            /* the same */
    uint64_t estimate;         /* rows; 0: unknown */
    uint64_t finished;         /* requests */
    uint64_t broken, repeated; /* chunks dropped: not whole or not the next one, taken before */
    struct spate_log_limit unheard, lost_log;
};

SPATE_CHECKED enum spate_rc spate_loading_init(struct spate_sink *sink, struct spate_err *err);
void spate_loading_fini(struct spate_sink *sink);

/* What is stored was read (again): what is under way, and what is to be asked for. */
SPATE_CHECKED enum spate_rc spate_loading_settle(struct spate_sink *sink, struct spate_err *err);

/* Hears and says what there is on `_control`, and finishes tables that are complete; several times a second.
 * `caught_up`: nothing more is in the stream for now. SPATE_FAIL as from a batch; or fatal, exit code
 * REFUSED: the first snapshot cannot be had. */
SPATE_CHECKED enum spate_rc spate_loading_turn(struct spate_sink *sink, bool caught_up,
                                               struct spate_err *err);

/* A chunk did not come whole, or not the next one. */
void spate_loading_lost(struct spate_sink *sink, const char *why);
/* What was asked for is not what is needed any more: the same tables, in a new request. False: that was tried
 * less than `every_ms` ago. */
bool spate_loading_renew(struct spate_sink *sink, const char *why, int64_t every_ms);
/* feed.behind: the rows that come leave out what this sink has not heard since its tables' generation began.
 * What came is void, and asked for again. *rewound: what was heard and not stored is read again. */
SPATE_CHECKED enum spate_rc spate_loading_behind(struct spate_sink *sink, bool *rewound,
                                                 struct spate_err *err);
/* A table whose older rows lack something; not asked for in manual mode. */
bool spate_loading_want(struct spate_sink *sink, const struct spate_projection *projection);

/* Rows of the request that came, in this process. */
uint64_t spate_loading_rows(const struct spate_sink *sink);

/* ---- the parts of it, for each other ---- */

/* Nothing of the last request counts any more. */
void spate_loading_clear(struct spate_loading *loading);
/* A request of that name is under way from now on, and is to be sent. */
void spate_loading_begin(struct spate_sink *sink, const char *request);
/* False: the bus did not take it; it is to be said again. */
bool spate_loading_say(struct spate_sink *sink, const struct spate_control *control);
bool spate_loading_say_short(struct spate_sink *sink, enum spate_control_op op, const char *request);
/* The request, with how far it came. */
void spate_loading_send(struct spate_sink *sink);
SPATE_CHECKED enum spate_rc spate_loading_hear(struct spate_sink *sink, struct spate_err *err);

#endif
