/* sinks/apply.h - changes into the team's tables: stage, merge, position, in one target transaction.
 *
 * A large piece is staged with COPY, a small batch goes as literals in one round trip together with its
 * merge, its position and COMMIT (T32). A source transaction larger than memory is applied in pieces inside
 * one open target transaction, and committed when it is complete. Thread: the sink's. Blocks: on the target;
 * when a stop was asked for it goes on for a while, then cancels. */
#ifndef SPATE_SINKS_APPLY_H
#define SPATE_SINKS_APPLY_H

#include "core/buf.h"
#include "sinks/fold.h"
#include "sinks/store.h"

struct spate_step;

struct spate_apply {
    struct spate_store *store;
    struct spate_projection *projections; /* borrowed: whose progress is stored with the position */
    size_t projection_count;
    struct spate_piece piece;
    struct spate_buf sql;     /* statements not sent yet */
    struct spate_step *steps; /* owned: what each of them is */
    size_t step_count, step_capacity;
    struct spate_buf chunk; /* COPY data on its way */
    bool open;              /* BEGIN was sent, COMMIT was not: earlier pieces wait in it */
    bool deferrable;        /* SET CONSTRAINTS ALL DEFERRED is needed */
    uint64_t transactions;  /* of the target, counted: which of them a staging table was last filled in */
    unsigned plain_pause; /* so many pieces more without plain INSERTs, after one met a row that was there */
    int64_t stop_ms;      /* when the stop was first noticed while waiting */
    uint64_t rows;        /* staged, ever */
    uint64_t missing;     /* partial updates and deletes that found no row, in this process, committed */
    uint64_t missing_now; /* the same in the open transaction */
    uint64_t plain_failed;
    uint64_t swept; /* rows that ends of snapshots removed */
    bool judges;    /* the script has a step that a complete table is judged by (spate_load_strict) */
    const struct spate_version *lost;  /* a change found no row in a table that holds all of them */
    const struct spate_version *lacks; /* the same, once the run has failed for it */
    bool trying;                       /* all of it will be taken back */
};

void spate_apply_init(struct spate_apply *apply, struct spate_store *store);
void spate_apply_fini(struct spate_apply *apply);

/* BEGIN, when no transaction is open; sent with what comes next. */
void spate_apply_begin(struct spate_apply *apply);

/* Staging table and statements of a version, on this connection. Never inside a transaction. */
SPATE_CHECKED enum spate_rc spate_apply_prepare(struct spate_apply *apply,
                                                const struct spate_version *version, struct spate_err *err);

/* Applies the items in order. With a mark: writes it, and how far snapshots came, and commits; without:
 * leaves the transaction open. SPATE_FAIL: rolled back or the connection is gone (err->verdict: retry, or the
 * target refused something; exit code FENCED: a table that was complete lacks a row, and the text says all
 * that is known of it, T12). Whether a COMMIT that failed with the connection took effect is not known:
 * connect again and read the position (T2). */
SPATE_CHECKED enum spate_rc spate_apply_run(struct spate_apply *apply, const struct spate_item *items,
                                            size_t count, const struct spate_mark *mark, const char *log_id,
                                            const struct spate_counts *counts, struct spate_err *err);
void spate_apply_rollback(struct spate_apply *apply);

/* Which item the target refuses: the first one that fails with all before it. Applies nothing. Fills *err
 * with what the target says about it. SPATE_AGAIN: none of them fails by itself. SPATE_FAIL: a try failed for
 * another reason (retry), which says nothing about any row. */
SPATE_CHECKED enum spate_rc spate_apply_isolate(struct spate_apply *apply, const struct spate_item *items,
                                                size_t count, size_t *culprit, struct spate_err *err);

#endif
