/* connector/woven.h - what weave.c, emit.c and answer.c share: requests, their tables, and chunks on their
 * way. Internal to the weave. Thread: the data plane. */
#ifndef SPATE_CONNECTOR_WOVEN_H
#define SPATE_CONNECTOR_WOVEN_H

#include "connector/chunk.h"
#include "connector/desk.h"
#include "connector/hidden.h"
#include "connector/plan.h"
#include "connector/stream.h"
#include "connector/weave.h"
#include "core/arena.h"

#define SPATE_MARKS 8 /* chunks that may be ahead of what is durable, where the disk is fast */

struct spate_asked;

/* One table of a request. */
struct spate_asked_table {
    struct spate_plan_table *plan;     /* the request's plan's, or the replan's */
    const struct spate_table *version; /* with a v */
    uint32_t watch;                    /* its number in H */
    uint64_t no;   /* greatest `no` that was given out to a chunk that was put into the stream */
    size_t leaf;   /* what is to be read next */
    uint64_t next; /* a tid */
    uint64_t
        *ends; /* by leaf: where its range ends, learned from its first chunk, and once; 0: not yet; owned */
    struct spate_pace pace;
    bool replanning;  /* its shape changed: nothing more is read before the desk has planned it anew */
    bool read;        /* all of it was given to readers */
    bool sent;        /* and put into the stream */
    size_t sent_leaf; /* what is in the stream: the resume token's place */
    uint64_t sent_next;
    char *token;   /* the last one given out, "" at the beginning; owned */
    uint64_t rows; /* put into the stream, as far as the requester told us before too */
};

enum spate_slot_state {
    SPATE_SLOT_DUE,     /* to be given to a reader, from due_ms on */
    SPATE_SLOT_READING, /* a job is out */
    SPATE_SLOT_READY    /* it was read, and waits until the stream has come to its L */
};

/* One chunk on its way. Slots of a request are put into the stream in the order of the list. */
struct spate_slot {
    struct spate_slot *next;
    struct spate_asked *asked;
    struct spate_asked_table *table;
    enum spate_slot_state state;
    bool discard; /* what comes back is thrown away */
    bool by_keys, reread;
    size_t leaf;
    uint64_t from, to;
    struct spate_value *keys; /* in arena */
    size_t key_count, width;  /* of them; of each */
    struct spate_buf keys_json;
    struct spate_arena arena;
    struct spate_job *job; /* READY: owned */
    uint64_t id;
    int64_t due_ms;
    int busy; /* how often it was, in a row */
};

/* One request. */
struct spate_asked {
    struct spate_asked *next;
    struct spate_plan *plan;
    char *id, *sink;
    struct spate_plan **old_plans; /* replaced ones that jobs may still point into */
    size_t old_count;
    struct spate_asked_table *tables;
    size_t count, current;
    struct spate_slot *slots; /* in order */
    unsigned out;             /* jobs with readers */
    bool dead;                /* over: freed when no job is out */
    bool begun;               /* snapshot-begin is in the stream */
    uint64_t from_lsn;        /* R: the greatest commit LSN delivered before that */
    bool ranges_end;          /* is in the stream */
    bool rereading;
    uint64_t rows, told_rows;
    int64_t began_ms, told_ms, heard_ms;
    char why[200]; /* what it waits for; "" nothing */
    const char *told_state;
};

struct spate_weave {
    const struct spate_connector_config *config;
    struct spate_desk *desk;       /* owned */
    struct spate_readers *readers; /* owned; NULL until there is something to read */
    struct spate_hidden *hidden;   /* owned */
    bool live;                     /* between session and leave */
    uint64_t session;
    uint32_t by;
    uint64_t reached; /* every commit LSN below it was delivered */
    uint64_t last_commit, open_commit;
    uint64_t due_lsn; /* from there on something can be put into the stream; UINT64_MAX: nothing waits */
    struct spate_order *before; /* what an earlier session may have delivered, to be put into H; owned */
    bool before_known;          /* H holds it */

    struct spate_asked *asked; /* in the order in which they came */
    struct spate_watch {       /* a table whose keys H remembers */
        char *schema, *name;   /* owned */
        uint32_t number;
        unsigned users;
    } * watches; /* owned */
    size_t watch_count;
    uint32_t next_watch;
    uint64_t next_id;
    struct { /* what may be forgotten, once all jobs up to barrier are gone */
        bool set;
        uint64_t barrier;
        struct spate_snapshot snapshot;
    } seen;
    int64_t look_ms;

    struct { /* the chunk that is being put into the stream */
        struct spate_slot *slot;
        size_t row;
        bool headed;
        int64_t wall_us;
        bool *drop; /* by row */
        size_t drop_cap;
        uint64_t count;
        struct spate_buf head, line;
    } emit;
    uint64_t marks[SPATE_MARKS]; /* where the last chunks end on the bus */
    int64_t marked_ms[SPATE_MARKS];
    unsigned mark;
    bool choked; /* a chunk waits until the one before the last is durable */
    int64_t ask_ms, wait_ms;
    bool nudging, nudge_off, looking;
    unsigned busy;    /* slots of all requests */
    int64_t held_ms;  /* until then nothing new is read: rate, hours */
    double allowance; /* rows that may be read now, under rows_per_second */
    int64_t allowance_ms;
    struct spate_buf key; /* scratch */
    struct {              /* the table that was looked up last */
        const struct spate_table *table;
        uint32_t watch;
    } memo;
    struct spate_weave_counts counts;
};

#define SPATE_NO_WATCH UINT32_MAX

/* answer.c: what requesters are told. */
void spate_answer_accepted(struct spate_weave *weave, const struct spate_asked *asked);
void spate_answer_refused(struct spate_weave *weave, const char *id, const char *sink, const char *reason,
                          const char *remedy);
/* At most once a second unless the state is another one than that told last. */
void spate_answer_progress(struct spate_weave *weave, struct spate_asked *asked, int64_t now_ms);
void spate_answer_over(struct spate_weave *weave, struct spate_asked *asked, const char *state,
                       int64_t now_ms);

/* emit.c: into the stream. SPATE_AGAIN: the bus is full. */
SPATE_CHECKED enum spate_rc spate_emit_begin(struct spate_weave *weave, struct spate_stream *stream,
                                             struct spate_asked *asked, struct spate_err *err);
/* The slot is READY and true. When it is in the stream (SPATE_OK), it is taken off its list and freed. */
SPATE_CHECKED enum spate_rc spate_emit_chunk(struct spate_weave *weave, struct spate_stream *stream,
                                             struct spate_slot *slot, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_emit_ranges_end(struct spate_weave *weave, struct spate_stream *stream,
                                                  struct spate_asked *asked, struct spate_err *err);

/* token.c: where a table goes on. */
void spate_token_write(const struct spate_asked_table *table, struct spate_buf *out);
enum spate_token_fit {
    SPATE_TOKEN_FITS, /* the table goes on where it stood */
    SPATE_TOKEN_ANEW, /* it was truncated, rewritten or altered, or the token is none: from its beginning */
    SPATE_TOKEN_REPLACED /* it is another table now, or other partitions */
};
enum spate_token_fit spate_token_read(struct spate_asked_table *table, const char *token);

/* orders.c: what requesters want, and requests. */
SPATE_CHECKED enum spate_rc spate_weave_orders(struct spate_weave *weave, struct spate_stream *stream,
                                               int64_t now_ms, struct spate_err *err);
/* Frees requests that are over and have no job out. */
void spate_weave_sift(struct spate_weave *weave);
bool spate_asked_all_sent(const struct spate_asked *asked);

/* schedule.c: which chunk is read next, and what came of it. */
void spate_weave_jobs(struct spate_weave *weave, int64_t now_ms);
void spate_weave_schedule(struct spate_weave *weave, int64_t now_ms);
void spate_weave_submit(struct spate_weave *weave, enum spate_job_kind kind); /* LOOK, NUDGE */
/* It is read once more, a little later. */
void spate_slot_again(struct spate_weave *weave, struct spate_slot *slot, int64_t now_ms, const char *why);
void spate_slot_append(struct spate_asked *asked, struct spate_slot *slot); /* behind those of its request */
void spate_slot_free(struct spate_slot *slot);
/* Writes keys_json from the keys. */
void spate_slot_keys(struct spate_slot *slot);
/* The request is over: nothing more of it is read or said; its memory goes when no job is out. */
void spate_weave_drop(struct spate_weave *weave, struct spate_asked *asked);
/* The same, and everybody is told: the requester in which state, the desk that nobody will ask about it. */
void spate_weave_end(struct spate_weave *weave, struct spate_asked *asked, const char *state, int64_t now_ms);

#endif
