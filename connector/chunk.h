/* connector/chunk.h - reader threads: each has a connection to the source and reads one chunk at a time, in a
 * short transaction of its own (HAZARDS 6.6): LOCK, snapshot, the catalog's stamp, COPY of a physical range
 * or a look-up of keys, the WAL position. Rows come back encoded; what to do with them the data plane
 * decides.
 *
 * Thread: a pool belongs to the data plane, which submits and takes; nothing of it blocks but _open and
 * _close. Blocks: the reader threads, on the source. They connect when there is something to do, again after
 * a failure, and let go of the connection after a minute without work. */
#ifndef SPATE_CONNECTOR_CHUNK_H
#define SPATE_CONNECTOR_CHUNK_H

#include "connector/connector.h"
#include "connector/hidden.h"
#include "connector/plan.h"
#include "core/buf.h"
#include "core/err.h"
#include "schemas/event.h"

struct spate_chunk_row {
    size_t at, len;         /* in job->lines: what spate_encode_read_row wrote */
    size_t key_at, key_len; /* in job->keys: what spate_hidden_key wrote; len 0 without a key */
};

enum spate_job_kind {
    SPATE_JOB_RANGE, /* rows of leaf whose ctid is in [from, to) */
    SPATE_JOB_KEYS,  /* rows with the keys that are asked for */
    SPATE_JOB_LOOK,  /* nothing but the snapshot */
    SPATE_JOB_NUDGE  /* a transactional logical message with prefix `spate`, committed locally: wakes the
                        stream */
};

enum spate_job_outcome {
    SPATE_JOB_DONE,
    SPATE_JOB_CHANGED, /* the stamp is another one, or the table is gone: nothing was read */
    SPATE_JOB_BUSY,    /* the lock was not granted in time, or the statement was cut short: try again */
    SPATE_JOB_FAILED   /* err says why; err.verdict retry: the connection */
};

/* One piece of work. The caller makes it (zeroed), owns it again once it was taken, and frees it. */
struct spate_job {
    enum spate_job_kind kind;
    void *owner;                          /* the caller's */
    const struct spate_plan_table *table; /* stays until the job was taken */
    size_t leaf;
    uint64_t from, to;              /* tids */
    const struct spate_value *keys; /* KEYS: key_count times table->key_count; stays as well */
    size_t key_count;
    size_t max_bytes; /* of lines; a range with more is read in part: see `reached`. One row may be larger */

    enum spate_job_outcome outcome;
    struct spate_err err;
    struct spate_snapshot snapshot; /* S */
    uint64_t lsn;     /* L: pg_current_wal_insert_lsn(), without a page header; standby: receive LSN */
    uint64_t pages;   /* RANGE: of the leaf, after S was taken */
    uint64_t reached; /* RANGE: [from, reached) was read */
    struct spate_buf lines, keys_text;
    struct spate_chunk_row *rows; /* owned */
    size_t row_count, row_capacity;
    int64_t took_us;
    struct spate_job *next; /* the pool's */
};
void spate_job_free(struct spate_job *job); /* accepts NULL */

struct spate_readers;

/* Starts `config->snapshots.parallel` threads. */
SPATE_CHECKED enum spate_rc spate_readers_open(const struct spate_connector_config *config,
                                               struct spate_readers **readers, struct spate_err *err);
/* Cancels what runs, waits for the threads (bounded), frees what was not taken. Accepts NULL. */
void spate_readers_close(struct spate_readers *readers);
void spate_readers_submit(struct spate_readers *readers, struct spate_job *job);
/* A job that is done, or NULL. */
struct spate_job *spate_readers_take(struct spate_readers *readers);
/* Cancels what waits and what runs: each job still comes back, as FAILED (retry) or done. */
void spate_readers_cancel(struct spate_readers *readers);
int spate_readers_fd(struct spate_readers *readers); /* readable when _take may have something; for poll(2) */

/* How large the next range should be: adapts so that a chunk stays near `max_bytes` and well below a second.
 * Pure. */
struct spate_pace {
    uint64_t pages; /* of the next range; at least 1 */
};
void spate_pace_start(struct spate_pace *pace);
void spate_pace_learn(struct spate_pace *pace, const struct spate_job *job);

#endif
