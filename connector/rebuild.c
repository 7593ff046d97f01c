/* connector/rebuild.c - who holds the lock on an xid, and which of them the log knows. */
#include "connector/rebuild.h"

#include "core/alloc.h"
#include "core/arena.h"
#include "core/signals.h"
#include "pg/pg.h"
#include "schemas/codec.h"

#include <stdlib.h>
#include <string.h>

#define ANSWER_MS  5000
#define CLOCK_STEP INT64_C(3600000000) /* a source's clock may have been set back by so many us */
/* Reading more of the log than this takes longer than most transactions do. */
#define SCAN_MOST ((uint64_t)512 << 20)

/* The lock of a transaction that is not prepared names its backend. One that idles, or idles inside a
 * transaction, is not committing: what it held is over (and every later snapshot sees it), or commits later
 * (and is delivered in this session). Of a backend that we may not look at all is NULL, and it stays. */
#define RUNNING_SQL                                                                                          \
    "SELECT l.transactionid::pg_catalog.text,"                                                               \
    " (EXTRACT(EPOCH FROM COALESCE(a.xact_start, p.prepared)) * 1000000)::pg_catalog.int8"                   \
    " FROM pg_catalog.pg_locks l"                                                                            \
    " LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"                                              \
    " LEFT JOIN pg_catalog.pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid"         \
    " WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted"                         \
    " AND COALESCE(a.datname, p.database, pg_catalog.current_database()) = pg_catalog.current_database()"    \
    " AND (a.state IS NULL OR a.state NOT IN ('idle', 'idle in transaction', 'idle in transaction "          \
    "(aborted)'))"

static int by_xid(const void *a, const void *b)
{
    const struct spate_running *one = a, *other = b;

    return one->xid < other->xid ? -1 : one->xid > other->xid;
}

enum spate_rc spate_rebuild_running(PGconn *conn, struct spate_running **running, size_t *count,
                                    struct spate_err *err)
{
    PGresult *res;
    enum spate_rc rc = spate_pg_ask(conn, RUNNING_SQL, 0, NULL, ANSWER_MS, &res, err);

    *running = NULL;
    *count = 0;
    if (rc == SPATE_FAIL)
        return spate_err_context(err, "looking for transactions that run on the source");
    if (rc != SPATE_OK)
        return rc;
    *count = (size_t)PQntuples(res);
    *running = spate_zalloc((*count + 1) * sizeof **running);
    for (size_t i = 0; i < *count; i++) {
        (*running)[i].xid = (uint32_t)strtoul(PQgetvalue(res, (int)i, 0), NULL, 10);
        if (!PQgetisnull(res, (int)i, 1))
            (*running)[i].started_us = strtoll(PQgetvalue(res, (int)i, 1), NULL, 10);
    }
    PQclear(res);
    qsort(*running, *count, sizeof **running, by_xid);
    return SPATE_OK;
}

enum spate_rc spate_rebuild_still(PGconn *conn, struct spate_running *running, size_t *count,
                                  struct spate_err *err)
{
    struct spate_running *now;
    size_t now_count, kept = 0;
    enum spate_rc rc = spate_rebuild_running(conn, &now, &now_count, err);

    if (rc != SPATE_OK)
        return rc;
    for (size_t i = 0; i < *count; i++)
        if (now && bsearch(&running[i], now, now_count, sizeof *now, by_xid))
            running[kept++] = running[i];
    *count = kept;
    free(now);
    return SPATE_OK;
}

/* ---- the log ---- */

struct scan {
    struct spate_reader *reader;
    struct spate_arena arena;
    uint64_t epoch;
    struct spate_running *running;
    bool *found; /* by member */
    size_t count;
    uint64_t bytes;

    /* Of the piece that was read last. */
    int64_t first, newest; /* commit times; INT64_MAX, INT64_MIN: it has no transaction's end */
    bool opened;           /* the epoch's opening is in it */
    int64_t opening;
    bool torn; /* retention took something that was not read yet */
};

/* The record that ends a transaction. */
static enum spate_rc meet_end(struct scan *scan, const struct spate_message *message,
                              const struct spate_head *head, struct spate_err *err)
{
    struct spate_meta meta;
    struct spate_running *member, key = {0};

    if (spate_decode_meta(message->value, head, &meta, &scan->arena, err))
        return SPATE_FAIL;
    if (scan->first == INT64_MAX)
        scan->first = meta.ts_us;
    if (meta.ts_us > scan->newest)
        scan->newest = meta.ts_us;
    key.xid = meta.xid;
    member = bsearch(&key, scan->running, scan->count, sizeof key, by_xid);
    if (member)
        scan->found[member - scan->running] = true;
    return SPATE_OK;
}

static enum spate_rc meet(struct scan *scan, const struct spate_message *message, struct spate_err *err)
{
    struct spate_head head;
    struct spate_epoch opening;
    enum spate_rc rc = SPATE_OK;

    if (message->kind == SPATE_MESSAGE_GAP) {
        scan->torn = true;
        return SPATE_OK;
    }
    scan->bytes += message->value.len;
    spate_arena_reset(&scan->arena);
    rc = spate_decode_head(message->value, &head, &scan->arena, err);
    if (rc == SPATE_OK && head.epoch == scan->epoch) {
        if (head.op == SPATE_OP_EPOCH) {
            rc = spate_decode_epoch(message->value, &opening, &scan->arena, err);
            /* What stands before it is another epoch's. */
            scan->opened = true;
            scan->opening = rc == SPATE_OK ? opening.wall_us : INT64_MAX;
            scan->first = INT64_MAX;
            scan->newest = INT64_MIN;
        } else if (spate_op_counts(head.op) && head.end) {
            rc = meet_end(scan, message, &head, err);
        }
    }
    if (rc == SPATE_FAIL && err->verdict == SPATE_QUARANTINE) { /* none of ours: told by those who follow */
        *err = (struct spate_err){0};
        return SPATE_OK;
    }
    return rc;
}

static enum spate_rc read_piece(struct scan *scan, struct spate_bus_pos before, struct spate_err *err)
{
    struct spate_message message;
    enum spate_rc rc;

    scan->first = INT64_MAX;
    scan->newest = INT64_MIN;
    while ((rc = spate_reader_next(scan->reader, &message, err)) == SPATE_OK && message.pos.at < before.at) {
        if (meet(scan, &message, err))
            return SPATE_FAIL;
        if (spate_signals_stop())
            return SPATE_END;
    }
    return rc == SPATE_FAIL ? rc : SPATE_OK;
}

/* Pieces from the end towards the beginning. *reached: whoever started after that is found, or was never
 * delivered. */
static enum spate_rc read_back(struct scan *scan, int64_t oldest, int64_t *reached, struct spate_err *err)
{
    struct spate_bus_pos before = spate_reader_end(scan->reader), start;

    *reached = INT64_MAX;
    for (;;) {
        int64_t first = scan->first;
        enum spate_rc rc = spate_reader_back(scan->reader, before, &start, err);

        if (rc == SPATE_END) {
            *reached = first; /* the oldest record there is; what came before may have been anything */
            return SPATE_OK;
        }
        if (rc == SPATE_OK)
            rc = read_piece(scan, before, err);
        if (rc != SPATE_OK)
            return rc;
        if (scan->torn) {
            *reached = INT64_MAX;
            return SPATE_OK;
        }
        if (scan->opened) {
            *reached = scan->opening;
            return SPATE_OK;
        }
        if (scan->newest != INT64_MIN)
            *reached = scan->newest;
        if (scan->newest != INT64_MIN && (scan->newest < oldest - CLOCK_STEP || scan->bytes > SCAN_MOST))
            return SPATE_OK;
        before = start;
    }
}

/* The start of the oldest whose start is known; INT64_MAX: of none. */
static int64_t oldest_start(const struct spate_running *running, size_t count)
{
    int64_t oldest = INT64_MAX;

    for (size_t i = 0; i < count; i++)
        if (running[i].started_us && running[i].started_us < oldest)
            oldest = running[i].started_us;
    return oldest;
}

enum spate_rc spate_rebuild_scan(struct spate_bus *bus, const char *topic, uint64_t epoch,
                                 struct spate_running *running, size_t *count, struct spate_err *err)
{
    struct scan scan = {.epoch = epoch, .running = running, .count = *count};
    int64_t oldest = oldest_start(running, *count), reached;
    size_t kept = 0;
    enum spate_rc rc;

    if (oldest == INT64_MAX) /* nobody about whom the log could tell something */
        return SPATE_OK;
    qsort(running, *count, sizeof *running, by_xid);
    rc = spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_NOW},
                               &scan.reader, err);
    if (rc != SPATE_OK)
        return rc;
    scan.found = spate_zalloc(*count * sizeof *scan.found);
    scan.first = INT64_MAX;
    rc = read_back(&scan, oldest, &reached, err);
    if (rc == SPATE_FAIL)
        spate_err_context(err, "looking in topic %s for transactions that run on the source", topic);
    for (size_t i = 0; i < *count && rc == SPATE_OK; i++)
        if (scan.found[i] || running[i].started_us == 0 || running[i].started_us - CLOCK_STEP <= reached)
            running[kept++] = running[i];
    if (rc == SPATE_OK)
        *count = kept;
    spate_reader_close(scan.reader);
    spate_arena_fini(&scan.arena);
    free(scan.found);
    return rc;
}
