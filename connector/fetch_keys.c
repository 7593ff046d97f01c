/* connector/fetch_keys.c - from hashes of keys to keys.
 *
 * A requester knows rows by keys that the file masks with hash, and asks for some of them again. Only we know
 * the hash's key, and it goes nowhere: so the source sends the key columns of every row, once for all keys
 * that are asked for, in the transaction that then looks up the rows by index. It takes as long as reading an
 * index does; it is needed only for rows that were updated in part while they were being loaded (P94). */
#include "connector/fetching.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCAN_MS    600000
#define CLOCK_ROWS 256

struct wanted {
    struct spate_slice text; /* as spate_hidden_key writes it */
    size_t n;
};

struct scan {
    struct wanted *wanted; /* sorted */
    size_t count, met, rows;
    struct spate_buf texts, key;
    struct spate_value *raw, *values; /* the row's key as it came; by column, as messages have it */
    char *digests;
};

static int compare(struct spate_slice a, struct spate_slice b)
{
    int order = memcmp(a.at, b.at, a.len < b.len ? a.len : b.len);

    return order ? order : a.len < b.len ? -1 : a.len > b.len;
}

static int by_text(const void *a, const void *b)
{
    return compare(((const struct wanted *)a)->text, ((const struct wanted *)b)->text);
}

static void sort_wanted(struct scan *scan, const struct spate_job *job)
{
    const struct spate_table *table = job->table->table;
    size_t *ends = spate_alloc((job->key_count + 1) * sizeof *ends);

    scan->wanted = spate_alloc((job->key_count + 1) * sizeof *scan->wanted);
    for (size_t i = 0; i < job->key_count; i++) {
        for (size_t k = 0; k < table->key_count; k++)
            scan->values[table->key[k]] = job->keys[i * table->key_count + k];
        spate_hidden_key(&scan->texts, table, scan->values);
        ends[i] = scan->texts.len;
    }
    for (size_t i = 0; i < job->key_count; i++) {
        size_t from = i ? ends[i - 1] : 0;

        scan->wanted[i] = (struct wanted){spate_slice(scan->texts.data + from, ends[i] - from), i};
    }
    scan->count = job->key_count;
    qsort(scan->wanted, scan->count, sizeof *scan->wanted, by_text);
    free(ends);
}

static void take_key(struct scan *scan, const struct spate_job *job, struct spate_keys_found *found)
{
    const struct spate_table *table = job->table->table;
    size_t low = 0, high = scan->count;
    char *digest = scan->digests;

    for (size_t k = 0; k < table->key_count; k++) {
        struct spate_value value = scan->raw[k];

        if (value.kind == SPATE_VALUE_TEXT &&
            spate_cover_treatment(job->table->cover, table->key[k]) == SPATE_HASHED) {
            spate_privacy_digest(job->table->cover->privacy, value.text, digest);
            value.text = spate_slice(digest, SPATE_DIGEST);
            digest += SPATE_DIGEST;
        }
        scan->values[table->key[k]] = value;
    }
    spate_buf_reset(&scan->key);
    spate_hidden_key(&scan->key, table, scan->values);
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (compare(scan->wanted[middle].text, spate_buf_view(&scan->key)) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < scan->count && compare(scan->wanted[low].text, spate_buf_view(&scan->key)) == 0; low++) {
        struct spate_value *into = found->keys + scan->wanted[low].n * table->key_count;

        scan->met++;
        for (size_t k = 0; k < table->key_count; k++)
            into[k] =
                (struct spate_value){scan->raw[k].kind, spate_arena_copy(&found->arena, scan->raw[k].text)};
    }
}

/* The COPY that has begun, to its end. */
static bool read_keys(struct spate_fetch *fetch, struct spate_job *job, struct scan *scan,
                      struct spate_keys_found *found, int64_t deadline_ms)
{
    size_t width = job->table->table->key_count;
    char what[200], *line;

    for (;;) {
        int got = PQgetCopyData(fetch->conn, &line, 1);
        enum spate_rc rc = SPATE_OK;

        if (got > 0) {
            bool fits = spate_copy_split(line, (size_t)got, scan->raw, width);

            if (fits)
                take_key(scan, job, found);
            PQfreemem(line);
            if (!fits) {
                job->outcome = SPATE_JOB_FAILED;
                (void)!spate_fail(&job->err, SPATE_FATAL,
                                  "%s: the source sent a key that does not fit the question",
                                  spate_fetch_what(job, what));
                return false;
            }
            if (++scan->rows % CLOCK_ROWS == 0 && spate_fetch_off(fetch))
                rc = SPATE_END;
        } else if (got < 0) {
            return true; /* or failed, which the next result says */
        } else {
            rc = spate_fetch_wait(fetch, false, deadline_ms, &job->err);
            if (rc == SPATE_OK && !PQconsumeInput(fetch->conn))
                rc = spate_pg_fail(&job->err, fetch->conn, NULL, "reading for a snapshot");
        }
        if (rc != SPATE_OK) {
            spate_fetch_gave_up(fetch, job, rc);
            return false;
        }
    }
}

static bool run(struct spate_fetch *fetch, struct spate_job *job, struct scan *scan,
                struct spate_keys_found *found)
{
    const struct spate_table *table = job->table->table;
    int64_t deadline_ms = spate_clock_ms() + SCAN_MS + SLACK_MS;
    PGresult *res = NULL;
    enum spate_rc rc;
    char what[200];
    bool ok = true;

    spate_buf_reset(&fetch->sql);
    spate_buf_printf(&fetch->sql, "SET LOCAL statement_timeout = %d; COPY (SELECT ", SCAN_MS);
    for (size_t k = 0; k < table->key_count; k++) {
        spate_buf_puts(&fetch->sql, k ? ", " : "");
        spate_pg_ident(&fetch->sql, table->columns[table->key[k]].name);
    }
    spate_buf_puts(&fetch->sql, " FROM ");
    spate_query_root(&fetch->sql, job->table);
    spate_buf_printf(&fetch->sql, ") TO STDOUT; SET LOCAL statement_timeout = %d", ROW_MS);
    rc =
        spate_fetch_send(fetch, PQsendQuery(fetch->conn, spate_buf_str(&fetch->sql)), deadline_ms, &job->err);
    while (ok && rc == SPATE_OK) {
        rc = spate_fetch_next(fetch, &res, deadline_ms, &job->err);
        if (rc != SPATE_OK || !res)
            break;
        if (PQresultStatus(res) == PGRES_COPY_OUT) {
            ok = read_keys(fetch, job, scan, found, deadline_ms);
        } else if (PQresultStatus(res) != PGRES_COMMAND_OK && job->outcome == SPATE_JOB_DONE) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", spate_fetch_what(job, what));
            spate_fetch_failed(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        spate_fetch_gave_up(fetch, job, rc);
    return ok && job->outcome == SPATE_JOB_DONE;
}

bool spate_fetch_unhash(struct spate_fetch *fetch, struct spate_job *job, struct spate_keys_found *found)
{
    const struct spate_table *table = job->table->table;
    int64_t began_ms = spate_clock_ms();
    char name[300], quoted[320];
    struct scan scan = {0};
    bool ok;

    if (spate_cover_plain(job->table->cover) || !job->table->cover->key_hashed || table->key_count == 0)
        return true;
    scan.values = spate_zalloc((table->column_count + 1) * sizeof *scan.values);
    scan.raw = spate_zalloc(table->key_count * sizeof *scan.raw);
    scan.digests = spate_alloc(table->key_count * SPATE_DIGEST);
    found->keys = spate_zalloc((job->key_count * table->key_count + 1) * sizeof *found->keys);
    for (size_t i = 0; i < job->key_count * table->key_count; i++)
        found->keys[i].kind = SPATE_VALUE_NULL;
    sort_wanted(&scan, job);
    ok = run(fetch, job, &scan, found);
    snprintf(name, sizeof name, "%.*s.%.*s", SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
    if (ok)
        spate_log(SPATE_LOG_INFO, "snapshot-keys-searched",
                  "table=%s wanted=%zu found=%zu rows=%zu ms=%" PRId64
                  " text=\"rows are asked for by keys that are hashed: all keys of the table were read\"",
                  spate_log_quote(quoted, sizeof quoted, name), job->key_count, scan.met, scan.rows,
                  spate_clock_ms() - began_ms);
    free(scan.wanted);
    free(scan.values);
    free(scan.raw);
    free(scan.digests);
    spate_buf_fini(&scan.texts);
    spate_buf_fini(&scan.key);
    return ok;
}
