/* connector/fetching.h - what fetch.c, fetch_source.c and fetch_rows.c share. Internal to them. Thread: a
 * reader's. */
#ifndef SPATE_CONNECTOR_FETCHING_H
#define SPATE_CONNECTOR_FETCHING_H

#include "connector/cover.h"
#include "connector/fetch.h"
#include "connector/query.h"
#include "core/arena.h"
#include "pg/pg.h"

#define SOFT_MS  800   /* a chunk that takes longer is cut (P92) */
#define RANGE_MS 5000  /* statement_timeout: the server's own end of it, when we hang */
#define ROW_MS   60000 /* the same where there may be but one row, of up to a gigabyte */
#define SLACK_MS 5000  /* beyond the server's own limit nothing is to be expected any more */

struct spate_fetch {
    struct spate_pg_where where; /* its strings are owned */
    char *publication, *name;
    const atomic_bool *off;
    int off_fd;
    PGconn *conn;       /* NULL: not connected */
    uint64_t page_size; /* of its WAL */
    bool broken;        /* the connection is of no more use */
    struct spate_buf sql, text;
    struct spate_query_term *terms;
    struct spate_value *values, *fields; /* as many as the table has columns; and one more */
    uint32_t *columns;                   /* which column a field is, without a place in front */
    char *digests;                       /* for one row's hashed values: field_count times SPATE_DIGEST */
    size_t digest_room;
    size_t room, field_count;
    uint64_t page_bytes; /* of the table that is read, with what it holds elsewhere (TOAST) */
};

/* What reading came to. */
enum spate_fetch_end {
    SPATE_FETCH_WHOLE,
    SPATE_FETCH_LARGE, /* more bytes than wanted; there may be more rows */
    SPATE_FETCH_SLOW,  /* more time; the same */
    SPATE_FETCH_FAILED /* the job says why */
};

/* ---- fetch_source.c: the connection ---- */

bool spate_fetch_connect(struct spate_fetch *fetch, struct spate_job *job);
bool spate_fetch_off(const struct spate_fetch *fetch);
/* SPATE_AGAIN: time is up. SPATE_END: called off. */
SPATE_CHECKED enum spate_rc spate_fetch_wait(struct spate_fetch *fetch, bool out, int64_t deadline_ms,
                                             struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_fetch_send(struct spate_fetch *fetch, int sent, int64_t deadline_ms,
                                             struct spate_err *err);
/* The next result; NULL: the command is over. */
SPATE_CHECKED enum spate_rc spate_fetch_next(struct spate_fetch *fetch, PGresult **res, int64_t deadline_ms,
                                             struct spate_err *err);
/* Runs commands and keeps the first result with rows (NULL without one). false: the job has its outcome. */
bool spate_fetch_command(struct spate_fetch *fetch, struct spate_job *job, const char *sql, int count,
                         const char *const *values, int limit_ms, PGresult **rows);
/* Tells the server to stop what runs, and waits for its end, for a bounded time; off or not. */
void spate_fetch_call_off(struct spate_fetch *fetch);
/* Ends the transaction, whatever its state; where that does not work the connection goes. */
void spate_fetch_roll_back(struct spate_fetch *fetch);

/* The job's outcome: of a failure that job->err tells (res may be NULL), and of an rc of waiting. */
void spate_fetch_failed(struct spate_fetch *fetch, struct spate_job *job, const PGresult *res);
void spate_fetch_gave_up(struct spate_fetch *fetch, struct spate_job *job, enum spate_rc rc);
const char *spate_fetch_what(const struct spate_job *job, char out[200]); /* "reading public.t for a .." */

/* ---- fetch_keys.c: keys that are known by their hashes ---- */

/* The source's keys for job->keys, in their order; NULL (the value) where no row has it. keys is NULL when
 * job->keys are the source's own. */
struct spate_keys_found {
    struct spate_value *keys; /* owned */
    struct spate_arena arena; /* of their texts */
};
/* In the job's transaction; the time for it is its own. false: the job has its outcome. */
bool spate_fetch_unhash(struct spate_fetch *fetch, struct spate_job *job, struct spate_keys_found *found);

/* ---- fetch_rows.c: rows ---- */

void spate_fetch_prepare(struct spate_fetch *fetch, const struct spate_job *job);
/* fetch->sql holds COPY (..) TO STDOUT and what follows it; *position is the result of that. */
enum spate_fetch_end spate_fetch_copy(struct spate_fetch *fetch, struct spate_job *job, PGresult **position);
/* A cursor that is open, whose rows have their place in front. *place: what is behind the last row. */
enum spate_fetch_end spate_fetch_cursor(struct spate_fetch *fetch, struct spate_job *job, uint64_t *place);

#endif
