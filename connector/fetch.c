/* connector/fetch.c - chunks over a connection.
 *
 *   BEGIN .. READ ONLY; LOCK; EXECUTE: snapshot, stamps    -- one round trip
 *   SELECT set_config(..)                                   -- only with conditions or keys
 *   COPY (..) TO STDOUT; SELECT position; COMMIT            -- one more
 *
 * Where rows may be large, and for keys, a cursor takes the place of COPY: it can end behind any row, and
 * what was read by then is a chunk like others. A COPY that turns out too large or too slow is called off,
 * and the range read again through a cursor, or in a smaller piece. */
#include "connector/fetching.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOCK_MS 2000 /* others queue behind a lock that waits (P90) */

/* A standby: transactions become visible inside redo, slightly before the replay position moves (6.6); and
 * a receiver that was started anew begins at its segment's start. */
#define POSITION_SQL                                                                                         \
    "CASE WHEN pg_catalog.pg_is_in_recovery() THEN greatest(pg_catalog.pg_last_wal_receive_lsn(),"           \
    " pg_catalog.pg_last_wal_replay_lsn()) ELSE pg_catalog.pg_current_wal_insert_lsn() END"

uint64_t spate_wal_position(uint64_t lsn, uint64_t page_size)
{
    uint64_t in_page = page_size ? lsn % page_size : 0;

    return in_page == 24 || in_page == 40 ? lsn - in_page : lsn;
}

static void take_position(const struct spate_fetch *fetch, struct spate_job *job, const char *text)
{
    if (spate_pg_lsn_parse(text, &job->lsn))
        job->lsn = spate_wal_position(job->lsn, fetch->page_size);
    else
        job->lsn = UINT64_MAX; /* nothing is known: no position is far enough */
}

/* ---- the transaction ---- */

static void begin_sql(struct spate_fetch *fetch, const struct spate_job *job, int limit_ms)
{
    const struct spate_plan_table *table = job->table;
    struct spate_buf *sql = &fetch->sql, name = {0};
    bool range = job->kind == SPATE_JOB_RANGE;

    if (range)
        spate_buf_printf(&name, "ONLY %s", table->leaves[job->leaf].name);
    else
        spate_query_root(&name, table);
    spate_buf_reset(sql);
    spate_buf_printf(sql,
                     "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = %d;"
                     " SET LOCAL statement_timeout = %d; SET LOCAL row_security = off;"
                     " LOCK TABLE %s IN ACCESS SHARE MODE; EXECUTE spate_look('{",
                     LOCK_MS, limit_ms, spate_buf_str(&name));
    for (size_t i = range ? job->leaf : 0; i < (range ? job->leaf + 1 : table->leaf_count); i++)
        spate_buf_printf(sql, "%s%" PRIu32, sql->data[sql->len - 1] == '{' ? "" : ",", table->leaves[i].oid);
    spate_buf_puts(sql, "}', ");
    spate_pg_literal(sql, spate_slice_str(range ? table->leaves[job->leaf].name : ""));
    spate_buf_putc(sql, ')');
    spate_buf_fini(&name);
}

/* Is the table still what was planned? For a look-up it may have been rewritten. */
static bool fits(const struct spate_job *job, const PGresult *res)
{
    bool range = job->kind == SPATE_JOB_RANGE;
    size_t first = range ? job->leaf : 0;

    if (job->table->leaf_count == 0) /* a root without partitions: there is nothing to compare */
        return true;
    for (int row = 0; row < PQntuples(res); row++) {
        const char *planned = job->table->leaves[first + (size_t)row].stamp, *now = PQgetvalue(res, row, 1);

        if (PQgetisnull(res, row, 1) || (range ? strcmp(planned, now) != 0 || *PQgetvalue(res, row, 5) != 't'
                                               : !spate_query_same_shape(planned, now)))
            return false;
    }
    return true;
}

/* A standby keeps running transactions where pg_current_snapshot() does not look. */
static enum spate_rc take_snapshot(struct spate_job *job, const char *text, bool standby)
{
    if (spate_snapshot_parse(text, &job->snapshot, &job->err) != SPATE_OK) {
        job->outcome = SPATE_JOB_FAILED;
        return SPATE_FAIL;
    }
    if (standby)
        spate_snapshot_doubt(&job->snapshot);
    return SPATE_OK;
}

static bool begin(struct spate_fetch *fetch, struct spate_job *job, int limit_ms)
{
    PGresult *res;

    fetch->page_bytes = 0;
    spate_snapshot_fini(&job->snapshot);
    job->lines.len = job->keys_text.len = 0;
    job->row_count = 0;
    begin_sql(fetch, job, limit_ms);
    if (!spate_fetch_command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, LOCK_MS + limit_ms + SLACK_MS,
                             &res))
        return false;
    if (!fits(job, res)) {
        job->outcome = SPATE_JOB_CHANGED;
    } else if (take_snapshot(job, PQgetvalue(res, 0, 0), *PQgetvalue(res, 0, 3) == 't') == SPATE_OK &&
               job->kind == SPATE_JOB_RANGE) {
        job->pages = strtoull(PQgetvalue(res, 0, 2), NULL, 10);
        if (job->pages > 0)
            fetch->page_bytes = strtoull(PQgetvalue(res, 0, 4), NULL, 10) / job->pages;
    }
    PQclear(res);
    return job->outcome == SPATE_JOB_DONE;
}

/* Conditions and keys (as the source has them), as settings of the transaction. *rows is what
 * spate_query_bound points into. */
static bool bind(struct spate_fetch *fetch, struct spate_job *job, const struct spate_value *wanted,
                 struct spate_query_bound **bound, PGresult **rows)
{
    const struct spate_plan_table *table = job->table;
    bool keys = job->kind == SPATE_JOB_KEYS;
    size_t room = table->where_count + table->table->key_count, count, filled = 0;
    const char **values;
    struct spate_buf *arrays;
    bool ok;

    *rows = NULL;
    *bound = NULL;
    fetch->terms = spate_realloc(fetch->terms, (room + 1) * sizeof *fetch->terms);
    count = spate_query_terms(table, keys, fetch->terms);
    if (count == 0)
        return true;
    values = spate_zalloc(count * sizeof *values);
    arrays = spate_zalloc((table->table->key_count + 1) * sizeof *arrays);
    for (size_t i = 0; i < table->where_count; i++)
        if (table->where[i].value)
            values[filled++] = table->where[i].value;
    for (size_t i = 0; keys && i < table->table->key_count; i++) {
        spate_query_array(&arrays[i], wanted + i, table->table->key_count, job->key_count);
        values[filled++] = spate_buf_str(&arrays[i]);
    }
    spate_buf_reset(&fetch->sql);
    spate_query_bind(&fetch->sql, fetch->terms, count);
    ok = spate_fetch_command(fetch, job, spate_buf_str(&fetch->sql), (int)count, values, RANGE_MS + SLACK_MS,
                             rows);
    if (ok) {
        *bound = spate_alloc(count * sizeof **bound);
        for (int i = 0; i < PQntuples(*rows); i++)
            (*bound)[i] = (struct spate_query_bound){PQgetvalue(*rows, i, 0), PQgetvalue(*rows, i, 1)};
    }
    for (size_t i = 0; i < table->table->key_count; i++)
        spate_buf_fini(&arrays[i]);
    free(arrays);
    free((void *)values);
    return ok;
}

/* ---- one attempt ---- */

#define RANGE_ONLY                                                                                           \
    "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = " \
    "off; "

static enum spate_fetch_end by_copy(struct spate_fetch *fetch, struct spate_job *job, struct spate_buf *query)
{
    PGresult *position = NULL;
    enum spate_fetch_end end;

    spate_buf_reset(&fetch->sql);
    spate_buf_printf(&fetch->sql, RANGE_ONLY "COPY (%s) TO STDOUT; SELECT " POSITION_SQL "; COMMIT",
                     spate_buf_str(query));
    end = spate_fetch_copy(fetch, job, &position);
    if (end == SPATE_FETCH_WHOLE)
        take_position(fetch, job, position ? PQgetvalue(position, 0, 0) : "");
    PQclear(position);
    return end;
}

static enum spate_fetch_end by_cursor(struct spate_fetch *fetch, struct spate_job *job,
                                      struct spate_buf *query, uint64_t *place)
{
    PGresult *position = NULL;
    enum spate_fetch_end end;

    spate_buf_reset(&fetch->sql);
    spate_buf_printf(&fetch->sql, "%sDECLARE spate_rows NO SCROLL CURSOR FOR %s",
                     job->kind == SPATE_JOB_RANGE ? RANGE_ONLY : "", spate_buf_str(query));
    if (!spate_fetch_command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, RANGE_MS, &position))
        return SPATE_FETCH_FAILED;
    PQclear(position);
    end = spate_fetch_cursor(fetch, job, place);
    if (end == SPATE_FETCH_FAILED ||
        !spate_fetch_command(fetch, job, "SELECT " POSITION_SQL "; COMMIT", 0, NULL, RANGE_MS, &position))
        return SPATE_FETCH_FAILED;
    take_position(fetch, job, position ? PQgetvalue(position, 0, 0) : "");
    PQclear(position);
    return end;
}

static uint64_t pages_of(uint64_t from, uint64_t to)
{
    uint64_t pages = ((to + UINT16_MAX) >> 16) - (from >> 16);

    return pages > 0 ? pages : 1;
}

/* Of what is compressed there may be more; of rows that are dead, or not wanted, less. */
static uint64_t expected_bytes(const struct spate_fetch *fetch, const struct spate_job *job, uint64_t to)
{
    uint64_t end = job->pages << 16;

    if (job->kind != SPATE_JOB_RANGE || job->from >= end)
        return 0;
    return pages_of(job->from, to < end ? to : end) * fetch->page_bytes;
}

/* From BEGIN to the transaction's end. A range may turn out to be one for a cursor. */
static enum spate_fetch_end attempt(struct spate_fetch *fetch, struct spate_job *job, uint64_t to,
                                    bool *placed, uint64_t *place)
{
    struct spate_query_bound *bound = NULL;
    enum spate_fetch_end end = SPATE_FETCH_FAILED;
    struct spate_buf query = {0};
    PGresult *rows = NULL;
    struct spate_keys_found found = {0};
    int64_t began_us;

    if (!begin(fetch, job, *placed ? ROW_MS : RANGE_MS))
        goto out;
    SPATE_FAILPOINT(connector_chunk_locked);
    began_us = spate_clock_us();
    if (job->kind == SPATE_JOB_KEYS && !spate_fetch_unhash(fetch, job, &found))
        goto out;
    if (!bind(fetch, job, found.keys ? found.keys : job->keys, &bound, &rows))
        goto out;
    *placed = *placed || expected_bytes(fetch, job, to) > job->max_bytes * 2;
    if (job->kind == SPATE_JOB_RANGE)
        spate_query_range(&query, job->table, job->leaf, job->from, to, *placed, bound);
    else
        spate_query_keys(&query, job->table, bound);
    spate_fetch_prepare(fetch, job);
    end = *placed ? by_cursor(fetch, job, &query, place) : by_copy(fetch, job, &query);
    job->took_us = spate_clock_us() - began_us;
out:
    spate_fetch_call_off(fetch);
    spate_fetch_roll_back(fetch);
    PQclear(rows);
    free(bound);
    free(found.keys);
    spate_arena_fini(&found.arena);
    spate_buf_fini(&query);
    return end;
}

/* ---- kinds of work ---- */

static void run_range(struct spate_fetch *fetch, struct spate_job *job)
{
    uint64_t to = job->to, place = job->from;
    bool placed = pages_of(job->from, to) <= 1;
    char what[200];

    for (;;) {
        enum spate_fetch_end end = attempt(fetch, job, to, &placed, &place);

        if (end == SPATE_FETCH_FAILED)
            return;
        if (end == SPATE_FETCH_WHOLE || placed) {
            job->reached = end == SPATE_FETCH_WHOLE ? to : place;
            return;
        }
        if (fetch->broken) {
            job->outcome = SPATE_JOB_FAILED;
            (void)!spate_fail(&job->err, SPATE_RETRY, "%s: the source did not stop sending",
                              spate_fetch_what(job, what));
            return;
        }
        if (job->pages > job->from >> 16 && to > job->pages << 16)
            to = job->pages << 16; /* beyond is nothing */
        if (end == SPATE_FETCH_SLOW)
            to = ((job->from >> 16) + (pages_of(job->from, to) + 3) / 4) << 16;
        placed = end == SPATE_FETCH_LARGE || pages_of(job->from, to) <= 1;
    }
}

static void run_keys(struct spate_fetch *fetch, struct spate_job *job)
{
    uint64_t place = 0;
    bool placed = true;
    enum spate_fetch_end end = attempt(fetch, job, 0, &placed, &place);

    if (end != SPATE_FETCH_FAILED)
        job->reached = end == SPATE_FETCH_WHOLE ? job->key_count : place;
}

/* The statement's snapshot exists before anything of it is evaluated, so the position is a later one. */
static const char look_sql[] =
    "SELECT pg_catalog.pg_current_snapshot(), " POSITION_SQL ", pg_catalog.pg_is_in_recovery()";

static void run_look(struct spate_fetch *fetch, struct spate_job *job)
{
    PGresult *res;

    if (!spate_fetch_command(fetch, job, look_sql, 0, NULL, RANGE_MS, &res))
        return;
    take_position(fetch, job, PQgetvalue(res, 0, 1));
    if (take_snapshot(job, PQgetvalue(res, 0, 0), *PQgetvalue(res, 0, 2) == 't') != SPATE_OK)
        job->lsn = UINT64_MAX;
    PQclear(res);
}

/* Committed locally: no standby is waited for, which may be what holds up everything else (P91). */
static void run_nudge(struct spate_fetch *fetch, struct spate_job *job)
{
    PGresult *res;

    spate_buf_reset(&fetch->sql);
    spate_buf_puts(&fetch->sql, "BEGIN READ WRITE; SET LOCAL synchronous_commit = local;"
                                " SELECT pg_catalog.pg_logical_emit_message(true, 'spate', ");
    spate_pg_literal(&fetch->sql, spate_slice_str(fetch->name));
    spate_buf_puts(&fetch->sql, "::text); COMMIT");
    if (spate_fetch_command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, RANGE_MS, &res)) {
        take_position(fetch, job, PQgetvalue(res, 0, 0));
        PQclear(res);
    }
    spate_fetch_roll_back(fetch);
}

void spate_fetch_run(struct spate_fetch *fetch, struct spate_job *job)
{
    job->outcome = SPATE_JOB_DONE;
    if (fetch->conn || spate_fetch_connect(fetch, job)) {
        if (job->kind == SPATE_JOB_RANGE)
            run_range(fetch, job);
        else if (job->kind == SPATE_JOB_KEYS)
            run_keys(fetch, job);
        else if (job->kind == SPATE_JOB_LOOK)
            run_look(fetch, job);
        else
            run_nudge(fetch, job);
    }
    if (fetch->broken || (fetch->conn && PQtransactionStatus(fetch->conn) != PQTRANS_IDLE))
        spate_fetch_leave(fetch);
}
