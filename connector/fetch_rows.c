/* connector/fetch_rows.c - rows from the source into a job: by COPY, which is fast, or, where rows may be
 * large, through a cursor, which can end behind any row.
 *
 * COPY can only be called off, which costs what it has read, and a line in the server's log: it is for ranges
 * that are expected to fit. */
#include "connector/fetching.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "schemas/snapshot.h"

#include <stdio.h>
#include <string.h>

#define CLOCK_ROWS 256 /* rows between two looks at the clock while there is always more to read */
#define FETCH_MOST 64  /* rows at a time through a cursor */

bool spate_copy_split(char *line, size_t len, struct spate_value *values, size_t count)
{
    char *at = line, *end = line + len - 1;

    if (len == 0 || *end != '\n')
        return false;
    if (count == 0)
        return len == 1;
    for (size_t i = 0; i < count; i++) {
        char *stop = memchr(at, '\t', (size_t)(end - at));
        char *from, *to;

        if ((stop == NULL) != (i + 1 == count)) /* the last one, and it alone, has no tab behind it */
            return false;
        stop = stop ? stop : end;
        from = to = at == stop ? NULL : memchr(at, '\\', (size_t)(stop - at));
        if (from && stop - at == 2 && from == at && at[1] == 'N') {
            values[i] = (struct spate_value){.kind = SPATE_VALUE_NULL};
            at = stop + 1;
            continue;
        }
        while (from && from < stop) {
            char c = *from++;

            if (c == '\\' && from < stop) {
                c = *from++;
                c = c == 'n'   ? '\n'
                    : c == 't' ? '\t'
                    : c == 'r' ? '\r'
                    : c == 'b' ? '\b'
                    : c == 'f' ? '\f'
                    : c == 'v' ? '\v'
                               : c;
            }
            *to++ = c;
        }
        values[i] = (struct spate_value){SPATE_VALUE_TEXT, spate_slice(at, (size_t)((to ? to : stop) - at))};
        at = stop + 1;
    }
    return at == end + 1;
}

/* What a column has that no field fills: nothing, or what the file puts in place of values. */
static struct spate_value unread(const struct spate_plan_table *table, size_t column)
{
    const struct spate_cover *cover = table->cover;

    switch (table->all || table->asked[column] ? spate_cover_treatment(cover, column) : SPATE_SHOWN) {
    case SPATE_NULLED:
        return (struct spate_value){.kind = SPATE_VALUE_NULL};
    case SPATE_CONSTANT:
        return (struct spate_value){SPATE_VALUE_TEXT, cover->columns[cover->from[column]].constant};
    case SPATE_SHOWN:
    case SPATE_EXCLUDED:
    case SPATE_HASHED:
        break;
    }
    return (struct spate_value){.kind = SPATE_VALUE_ABSENT};
}

/* Which fields a row has: its columns, and in front of them its place or its key's number. */
void spate_fetch_prepare(struct spate_fetch *fetch, const struct spate_job *job)
{
    const struct spate_table *shape = job->table->table;
    size_t need = shape->column_count + 1;

    if (need > fetch->room) {
        fetch->values = spate_realloc(fetch->values, need * sizeof *fetch->values);
        fetch->fields = spate_realloc(fetch->fields, need * sizeof *fetch->fields);
        fetch->columns = spate_realloc(fetch->columns, need * sizeof *fetch->columns);
        fetch->room = need;
    }
    fetch->field_count = 0;
    for (size_t i = 0; i < shape->column_count; i++) {
        fetch->values[i] = unread(job->table, i);
        if (spate_plan_reads(job->table, i))
            fetch->columns[fetch->field_count++] = (uint32_t)i;
    }
    if (!spate_cover_plain(job->table->cover) && fetch->digest_room < fetch->field_count) {
        fetch->digest_room = fetch->field_count;
        fetch->digests = spate_realloc(fetch->digests, fetch->digest_room * SPATE_DIGEST);
    }
}

/* What leaves is the hash alone. */
static void hash_fields(struct spate_fetch *fetch, const struct spate_job *job)
{
    const struct spate_cover *cover = job->table->cover;

    if (spate_cover_plain(cover) || cover->hashed == 0)
        return;
    for (size_t i = 0; i < fetch->field_count; i++) {
        struct spate_value *value = &fetch->values[fetch->columns[i]];

        if (spate_cover_treatment(cover, fetch->columns[i]) != SPATE_HASHED ||
            value->kind != SPATE_VALUE_TEXT)
            continue;
        spate_privacy_digest(cover->privacy, value->text, fetch->digests + i * SPATE_DIGEST);
        value->text = spate_slice(fetch->digests + i * SPATE_DIGEST, SPATE_DIGEST);
    }
}

/* Behind this row: a place, or how many keys are looked up. */
static bool read_place(const struct spate_job *job, struct spate_slice text, uint64_t *place)
{
    if (job->kind == SPATE_JOB_RANGE) {
        if (!spate_tid_parse(text, place))
            return false;
        ++*place;
        return true;
    }
    *place = 0;
    for (size_t i = 0; i < text.len; i++)
        *place = *place * 10 + (uint64_t)(text.at[i] - '0');
    return text.len > 0;
}

/* The row whose values stand in fetch->values. */
static bool keep_row(struct spate_fetch *fetch, struct spate_job *job)
{
    const struct spate_table *shape = job->table->table;
    size_t at = job->lines.len, key_at = job->keys_text.len;
    char what[200];

    if (spate_encode_read_row(&job->lines, shape, fetch->values, &job->err) != SPATE_OK) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_err_context(&job->err, "%s", spate_fetch_what(job, what));
        return false;
    }
    if (shape->key_count > 0)
        spate_hidden_key(&job->keys_text, shape, fetch->values);
    if (job->row_count == job->row_capacity) {
        job->row_capacity = job->row_capacity ? job->row_capacity * 2 : 256;
        job->rows = spate_realloc(job->rows, job->row_capacity * sizeof *job->rows);
    }
    job->rows[job->row_count++] =
        (struct spate_chunk_row){at, job->lines.len - at, key_at, job->keys_text.len - key_at};
    return true;
}

static bool not_ours(struct spate_job *job)
{
    char what[200];

    job->outcome = SPATE_JOB_FAILED;
    (void)!spate_fail(&job->err, SPATE_FATAL, "%s: the source sent a row that does not fit the question",
                      spate_fetch_what(job, what));
    return false;
}

static bool take_line(struct spate_fetch *fetch, struct spate_job *job, char *line, size_t len)
{
    if (!spate_copy_split(line, len, fetch->fields, fetch->field_count))
        return not_ours(job);
    for (size_t i = 0; i < fetch->field_count; i++)
        fetch->values[fetch->columns[i]] = fetch->fields[i];
    hash_fields(fetch, job);
    return keep_row(fetch, job);
}

/* Lines until there are no more, or enough. */
static enum spate_fetch_end read_lines(struct spate_fetch *fetch, struct spate_job *job, int64_t soft_ms)
{
    enum spate_rc rc;
    char *line;

    for (;;) {
        int got = PQgetCopyData(fetch->conn, &line, 1);

        if (got > 0) {
            bool ok = take_line(fetch, job, line, (size_t)got);

            PQfreemem(line);
            if (!ok)
                return SPATE_FETCH_FAILED;
            if (job->lines.len > job->max_bytes * 2)
                return SPATE_FETCH_LARGE;
            if (job->row_count % CLOCK_ROWS != 0)
                continue;
            if (spate_fetch_off(fetch)) {
                spate_fetch_gave_up(fetch, job, SPATE_END);
                return SPATE_FETCH_FAILED;
            }
            if (spate_clock_ms() > soft_ms)
                return SPATE_FETCH_SLOW;
        } else if (got < 0) {
            return SPATE_FETCH_WHOLE; /* or failed, which the next result says */
        } else {
            rc = spate_fetch_wait(fetch, false, soft_ms, &job->err);
            if (rc == SPATE_AGAIN)
                return SPATE_FETCH_SLOW;
            if (rc == SPATE_OK && !PQconsumeInput(fetch->conn))
                rc = spate_pg_fail(&job->err, fetch->conn, NULL, "reading for a snapshot");
            if (rc != SPATE_OK) {
                spate_fetch_gave_up(fetch, job, rc);
                return SPATE_FETCH_FAILED;
            }
        }
    }
}

enum spate_fetch_end spate_fetch_copy(struct spate_fetch *fetch, struct spate_job *job, PGresult **position)
{
    int64_t soft_ms = spate_clock_ms() + SOFT_MS, hard_ms = soft_ms + RANGE_MS + SLACK_MS;
    bool begun = false; /* the server says so with its first rows */
    enum spate_rc rc =
        spate_fetch_send(fetch, PQsendQuery(fetch->conn, spate_buf_str(&fetch->sql)), hard_ms, &job->err);
    enum spate_fetch_end end = SPATE_FETCH_WHOLE;
    PGresult *res = NULL;
    char what[200];

    while (rc == SPATE_OK && end == SPATE_FETCH_WHOLE) {
        rc = spate_fetch_next(fetch, &res, begun ? hard_ms : soft_ms, &job->err);
        if (rc == SPATE_AGAIN && !begun)
            return SPATE_FETCH_SLOW;
        if (rc != SPATE_OK || !res)
            break;
        if (PQresultStatus(res) == PGRES_COPY_OUT) {
            begun = true;
            end = read_lines(fetch, job, soft_ms);
            SPATE_FAILPOINT(connector_chunk_read);
        } else if (PQresultStatus(res) == PGRES_TUPLES_OK && !*position) {
            *position = res;
            continue;
        } else if (PQresultStatus(res) != PGRES_COMMAND_OK && job->outcome == SPATE_JOB_DONE) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", spate_fetch_what(job, what));
            spate_fetch_failed(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        spate_fetch_gave_up(fetch, job, rc);
    return job->outcome == SPATE_JOB_DONE ? end : SPATE_FETCH_FAILED;
}

/* ---- through a cursor ---- */

static bool take_tuple(struct spate_fetch *fetch, struct spate_job *job, const PGresult *res, uint64_t *place)
{
    struct spate_slice first = spate_slice(PQgetvalue(res, 0, 0), (size_t)PQgetlength(res, 0, 0));

    if ((size_t)PQnfields(res) != fetch->field_count + 1 || !read_place(job, first, place))
        return not_ours(job);
    for (size_t i = 0; i < fetch->field_count; i++) {
        struct spate_value *value = &fetch->values[fetch->columns[i]];
        int at = (int)i + 1;

        value->kind = PQgetisnull(res, 0, at) ? SPATE_VALUE_NULL : SPATE_VALUE_TEXT;
        value->text = spate_slice(PQgetvalue(res, 0, at), (size_t)PQgetlength(res, 0, at));
    }
    hash_fields(fetch, job);
    return keep_row(fetch, job);
}

/* One after the other, so that memory holds one. What comes when there is enough is dropped, and read again
 * with the next chunk. */
static enum spate_fetch_end fetch_tuples(struct spate_fetch *fetch, struct spate_job *job, int most,
                                         uint64_t *place)
{
    int64_t hard_ms = spate_clock_ms() + ROW_MS + SLACK_MS;
    enum spate_fetch_end end = SPATE_FETCH_WHOLE;
    PGresult *res = NULL;
    enum spate_rc rc;
    char what[200];
    int sent, met = 0;

    spate_buf_reset(&fetch->sql);
    spate_buf_printf(&fetch->sql, "FETCH FORWARD %d FROM spate_rows", most);
    sent = PQsendQuery(fetch->conn, spate_buf_str(&fetch->sql));
    if (sent)
        PQsetSingleRowMode(fetch->conn);
    rc = spate_fetch_send(fetch, sent, hard_ms, &job->err);
    while (rc == SPATE_OK) {
        rc = spate_fetch_next(fetch, &res, hard_ms, &job->err);
        if (rc != SPATE_OK || !res)
            break;
        met += PQntuples(res);
        if (job->outcome != SPATE_JOB_DONE || end == SPATE_FETCH_LARGE) {
            /* draining */
        } else if (PQresultStatus(res) == PGRES_SINGLE_TUPLE) {
            if (take_tuple(fetch, job, res, place) && job->lines.len >= job->max_bytes)
                end = SPATE_FETCH_LARGE;
        } else if (PQresultStatus(res) != PGRES_TUPLES_OK) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", spate_fetch_what(job, what));
            spate_fetch_failed(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        spate_fetch_gave_up(fetch, job, rc);
    if (job->outcome != SPATE_JOB_DONE)
        return SPATE_FETCH_FAILED;
    return end == SPATE_FETCH_WHOLE && met == most ? SPATE_FETCH_SLOW : end; /* there may be more */
}

enum spate_fetch_end spate_fetch_cursor(struct spate_fetch *fetch, struct spate_job *job, uint64_t *place)
{
    int64_t soft_ms = spate_clock_ms() + SOFT_MS;
    enum spate_fetch_end end = SPATE_FETCH_SLOW;
    int most = 1;

    while (end == SPATE_FETCH_SLOW) {
        end = fetch_tuples(fetch, job, most, place);
        if (end == SPATE_FETCH_SLOW && spate_clock_ms() > soft_ms)
            break;
        if (job->row_count > 0) { /* as many as may still fit, and not many more than proved to be small */
            size_t each = job->lines.len / job->row_count + 1;
            size_t room = job->lines.len < job->max_bytes ? (job->max_bytes - job->lines.len) / each : 0;

            most = most * 2 < FETCH_MOST ? most * 2 : FETCH_MOST;
            most = room < (size_t)most ? (int)room : most;
            most = most < 1 ? 1 : most;
        }
    }
    SPATE_FAILPOINT(connector_chunk_read);
    return end;
}
