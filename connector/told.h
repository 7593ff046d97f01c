/* connector/told.h - what followers were told of the published tables' storage, and what they are still to be
 * told: `stale` in the stream, and then `storage` on `_schemas`, so that a crash between the two repeats the
 * former (docs/message-format.md, what no message carried; P31-P33, P51, P56).
 *
 * A survey (connector/survey.h) is judged when the stream has passed the LSN that it stands for, between two
 * transactions: what it shows is then explained by what was delivered, or by nothing.
 *
 * Thread: the data plane. Blocks: as the stream does where a table's shape is new. */
#ifndef SPATE_CONNECTOR_TOLD_H
#define SPATE_CONNECTOR_TOLD_H

#include "connector/survey.h"
#include "core/err.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_stream;
struct spate_told;

struct spate_told_counts {     /* for those who look */
    bool known;                /* the following two are */
    uint64_t tables, unlogged; /* published now */
    uint64_t added, removed, stale;
};

struct spate_told *spate_told_new(void);
void spate_told_free(struct spate_told *told); /* accepts NULL */

/* The next three accept NULL: somebody who reads `_schemas` and tells nobody.
 * `_schemas` is read from its beginning: what was known is void, and comes again. */
void spate_told_forget(struct spate_told *told);
void spate_told_storage(struct spate_told *told, const struct spate_storage *storage);
/* What was recorded before an epoch that broke with the past is void: its followers take everything anew. */
void spate_told_epoch(struct spate_told *told, const struct spate_epoch *epoch);

/* Streaming begins. Surveys of before are void, TRUNCATEs that came are not. */
void spate_told_session(struct spate_told *told);

/* A TRUNCATE of this table was delivered. */
void spate_told_truncate(struct spate_told *told, uint32_t oid, uint32_t xid);

/* Something is to be put here, between two transactions. */
bool spate_told_wants(const struct spate_told *told, const struct spate_stream *stream);
/* Takes a new survey, judges, publishes what is due. */
SPATE_CHECKED enum spate_rc spate_told_turn(struct spate_told *told, struct spate_stream *stream,
                                            int64_t now_ms, struct spate_err *err);

/* How long poll may sleep. */
int spate_told_due_ms(const struct spate_told *told);

struct spate_told_counts spate_told_counts(const struct spate_told *told);

#endif
