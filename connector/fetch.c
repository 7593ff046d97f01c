/* connector/fetch.c - chunks over a connection.
 *
 *   BEGIN .. READ ONLY; LOCK; SELECT snapshot, stamps     -- one round trip
 *   SELECT set_config(..)                                  -- only with conditions or keys
 *   COPY (..) TO STDOUT; SELECT position; COMMIT           -- one more
 *
 * A range that turns out too large or too slow is called off and read again with each row's place, so that it
 * can be cut between two rows; or in a smaller piece. What was read before a cut is as true as a whole chunk:
 * the snapshot was one, and the WAL position is taken later. */
#include "connector/fetch.h"

#include "connector/query.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/signals.h"
#include "pg/pg.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS 5000
#define CANCEL_MS  1000  /* until the server has heard that it is to stop */
#define DRAIN_MS   1000  /* until it has stopped */
#define LOCK_MS    2000  /* others queue behind a lock that waits (P90) */
#define SOFT_MS    800   /* a chunk that takes longer is cut (P92) */
#define RANGE_MS   5000  /* statement_timeout: the server's own end of it, when we hang */
#define ROW_MS     60000 /* the same where there may be but one row, of up to a gigabyte */
#define SLACK_MS   5000  /* beyond the server's own limit nothing is to be expected any more */
#define CLOCK_ROWS 256   /* rows between two looks at the clock while there is always more to read */

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
    uint32_t *columns;                   /* which column the field after next is */
    size_t room, field_count;
};

/* What a COPY came to. */
enum end {
    END_WHOLE,
    END_LARGE, /* more bytes than wanted */
    END_SLOW,
    END_FAILED /* the job says why */
};

static void own(const char *text, char **copy)
{
    *copy = text ? spate_strdup(text) : NULL;
}

struct spate_fetch *spate_fetch_new(const struct spate_connector_config *config, const atomic_bool *off,
                                    int off_fd)
{
    struct spate_fetch *fetch = spate_zalloc(sizeof *fetch);
    char *url, *env, *file, application[80];

    own(config->source.url, &url);
    own(config->source.password_env, &env);
    own(config->source.password_file, &file);
    own(config->source.publication, &fetch->publication);
    own(config->name, &fetch->name);
    snprintf(application, sizeof application, "spate_%.50s_snapshot", config->name);
    fetch->where = (struct spate_pg_where){.what = "source",
                                           .url = url,
                                           .password_env = env,
                                           .password_file = file,
                                           .application_name = spate_strdup(application)};
    fetch->off = off;
    fetch->off_fd = off_fd;
    return fetch;
}

void spate_fetch_leave(struct spate_fetch *fetch)
{
    PQfinish(fetch->conn);
    fetch->conn = NULL;
    fetch->broken = false;
    spate_buf_trim(&fetch->text, 0);
}

void spate_fetch_free(struct spate_fetch *fetch)
{
    if (!fetch)
        return;
    spate_fetch_leave(fetch);
    free((char *)(uintptr_t)fetch->where.url);
    free((char *)(uintptr_t)fetch->where.password_env);
    free((char *)(uintptr_t)fetch->where.password_file);
    free((char *)(uintptr_t)fetch->where.application_name);
    free(fetch->publication);
    free(fetch->name);
    free(fetch->terms);
    free(fetch->values);
    free(fetch->fields);
    free(fetch->columns);
    spate_buf_fini(&fetch->sql);
    spate_buf_fini(&fetch->text);
    free(fetch);
}

/* ---- waiting ---- */

static bool is_off(const struct spate_fetch *fetch)
{
    return atomic_load(fetch->off) || spate_signals_stop();
}

/* SPATE_AGAIN: time is up. SPATE_END: called off. */
static enum spate_rc wait_for(struct spate_fetch *fetch, bool out, int64_t deadline_ms, struct spate_err *err)
{
    struct pollfd fds[3] = {{.fd = PQsocket(fetch->conn), .events = (short)(out ? POLLIN | POLLOUT : POLLIN)},
                            {.fd = fetch->off_fd, .events = POLLIN},
                            {.fd = spate_signals_fd(), .events = POLLIN}};

    for (;;) {
        int64_t left = deadline_ms - spate_clock_ms();

        if (is_off(fetch))
            return SPATE_END;
        if (left <= 0)
            return SPATE_AGAIN;
        if (fds[0].fd < 0)
            return spate_pg_fail(err, fetch->conn, NULL, "reading for a snapshot");
        if (poll(fds, 3, (int)(left < 1000 ? left : 1000)) > 0 && fds[0].revents)
            return SPATE_OK;
    }
}

static enum spate_rc send_all(struct spate_fetch *fetch, int sent, int64_t deadline_ms, struct spate_err *err)
{
    int left = sent ? 1 : -1;

    while (left > 0) {
        left = PQflush(fetch->conn);
        if (left > 0) {
            enum spate_rc rc = wait_for(fetch, true, deadline_ms, err);

            if (rc != SPATE_OK)
                return rc;
            if (!PQconsumeInput(fetch->conn))
                left = -1;
        }
    }
    return left == 0 ? SPATE_OK : spate_pg_fail(err, fetch->conn, NULL, "reading for a snapshot");
}

/* The next result; NULL: the command is over. */
static enum spate_rc next_result(struct spate_fetch *fetch, PGresult **res, int64_t deadline_ms,
                                 struct spate_err *err)
{
    *res = NULL;
    while (PQisBusy(fetch->conn)) {
        enum spate_rc rc = wait_for(fetch, false, deadline_ms, err);

        if (rc != SPATE_OK)
            return rc;
        if (!PQconsumeInput(fetch->conn))
            break; /* PQgetResult says so */
    }
    *res = PQgetResult(fetch->conn);
    return SPATE_OK;
}

/* Tells the server to stop what runs, and waits for its end, for a bounded time; off or not. */
static void call_off(struct spate_fetch *fetch)
{
    int64_t deadline_ms;
    char *line;

    if (fetch->broken || PQtransactionStatus(fetch->conn) != PQTRANS_ACTIVE)
        return;
    spate_pg_cancel(fetch->conn, CANCEL_MS);
    deadline_ms = spate_clock_ms() + DRAIN_MS;
    while (PQtransactionStatus(fetch->conn) == PQTRANS_ACTIVE && !fetch->broken) {
        struct pollfd fd = {.fd = PQsocket(fetch->conn), .events = POLLIN};
        int64_t left = deadline_ms - spate_clock_ms();
        int got = PQgetCopyData(fetch->conn, &line, 1);

        if (got > 0) {
            PQfreemem(line);
        } else if (got == 0 || PQisBusy(fetch->conn)) {
            fetch->broken =
                left <= 0 || poll(&fd, 1, (int)left) < 0 || (fd.revents && !PQconsumeInput(fetch->conn));
        } else {
            PGresult *res = PQgetResult(fetch->conn);

            fetch->broken = PQstatus(fetch->conn) != CONNECTION_OK;
            PQclear(res);
        }
    }
}

/* ---- what a failure means ---- */

static const char *const changed_states[] = {"42P01", "42703", "3F000",
                                             "42809"}; /* the table is another one */

static bool one_of(const char *state, const char *const *states, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(state, states[i]) == 0)
            return true;
    return false;
}

static const char *what_of(const struct spate_job *job, char out[200])
{
    if (!job->table)
        snprintf(out, 200, "asking the source for a snapshot");
    else
        snprintf(out, 200, "reading %.*s.%.*s for a snapshot", SPATE_SLICE_ARG(job->table->table->schema),
                 SPATE_SLICE_ARG(job->table->table->name));
    return out;
}

static void add_text(struct spate_err *err, const char *text)
{
    size_t len = strlen(err->text);

    snprintf(err->text + len, sizeof err->text - len, "%s", text);
}

/* The server's own words name what is missing; here is what gives it. Two things have the same code: their
 * words follow the server's language, the function that raised them does not (P65). */
static void remedy_rights(struct spate_fetch *fetch, struct spate_job *job, const PGresult *res)
{
    const char *raised = res ? PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION) : NULL;
    struct spate_buf text = {0}, role = {0};

    spate_pg_ident(&role, spate_slice_str(PQuser(fetch->conn)));
    if (raised && strcmp(raised, "check_enable_rls") == 0) {
        spate_buf_printf(
            &text, ": a snapshot that lacks rows would be wrong, so none is taken: ALTER ROLE %s BYPASSRLS",
            spate_buf_str(&role));
    } else if (job->table) {
        spate_buf_puts(&text, ": GRANT USAGE ON SCHEMA ");
        spate_pg_ident(&text, job->table->table->schema);
        spate_buf_printf(&text, " TO %s; GRANT SELECT ON %s TO %s", spate_buf_str(&role),
                         job->table->leaf_count > 0 ? job->table->leaves[job->leaf].name : "the table",
                         spate_buf_str(&role));
    }
    add_text(&job->err, spate_buf_str(&text));
    spate_buf_fini(&text);
    spate_buf_fini(&role);
}

/* The words of a value that does not fit stay on the server: which column it was for is said instead. */
static void remedy_value(struct spate_job *job)
{
    const struct spate_plan_table *table = job->table;
    struct spate_buf names = {0};
    char what[200];

    for (size_t i = 0; i < table->where_count; i++) {
        spate_buf_puts(&names, i ? ", " : "");
        spate_buf_slice(&names, table->table->columns[table->where[i].column].name);
    }
    (void)!spate_fail(&job->err, SPATE_QUARANTINE, "%s: %s: %s%s%s", what_of(job, what),
                      spate_pg_condition(job->err.sqlstate),
                      job->kind == SPATE_JOB_KEYS
                          ? "one of the keys that were asked for does not fit its column"
                      : names.len ? ""
                                  : "the publication's row filter fails on one of the rows",
                      job->kind == SPATE_JOB_KEYS && names.len ? ", or " : "",
                      names.len ? "a value does not fit its column, in a condition on " : "");
    add_text(&job->err, spate_buf_str(&names));
    spate_buf_fini(&names);
}

/* The job's outcome of a failure that err tells; res may be NULL. */
static void fail_job(struct spate_fetch *fetch, struct spate_job *job, const PGresult *res)
{
    const char *state = job->err.sqlstate;

    job->outcome = SPATE_JOB_FAILED;
    if (PQstatus(fetch->conn) != CONNECTION_OK) {
        fetch->broken = true;
        job->err.verdict = SPATE_RETRY;
    } else if (one_of(state, changed_states, SPATE_COUNT(changed_states))) {
        job->outcome = SPATE_JOB_CHANGED;
    } else if (strcmp(state, "55P03") == 0 || strcmp(state, "57014") == 0 || strncmp(state, "40", 2) == 0) {
        job->outcome = SPATE_JOB_BUSY;
    } else if (strcmp(state, "42501") == 0) {
        job->err.verdict = SPATE_QUARANTINE; /* an answer to whoever asked, not a reason to wait */
        remedy_rights(fetch, job, res);
    } else if (strncmp(state, "22", 2) == 0 && job->table) {
        remedy_value(job);
    }
}

/* From the rc of waiting: the job's outcome. */
static void fail_wait(struct spate_fetch *fetch, struct spate_job *job, enum spate_rc rc)
{
    char what[200];

    if (rc == SPATE_END) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "%s: called off", what_of(job, what));
    } else if (rc == SPATE_AGAIN) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "%s: the source does not answer", what_of(job, what));
        fetch->broken = true;
    } else {
        fail_job(fetch, job, NULL);
        fetch->broken = true;
        job->err.verdict = SPATE_RETRY;
    }
    if (rc == SPATE_END)
        call_off(fetch);
}

/* ---- commands ---- */

/* Runs one command and keeps its only result with rows. false: the job has its outcome. */
static bool command(struct spate_fetch *fetch, struct spate_job *job, const char *sql, int count,
                    const char *const *values, int limit_ms, PGresult **rows)
{
    int64_t deadline_ms = spate_clock_ms() + limit_ms;
    PGresult *res = NULL;
    char what[200];
    enum spate_rc rc;
    int sent;

    *rows = NULL;
    sent = count > 0 ? PQsendQueryParams(fetch->conn, sql, count, NULL, values, NULL, NULL, 0)
                     : PQsendQuery(fetch->conn, sql);
    rc = send_all(fetch, sent, deadline_ms, &job->err);
    while (rc == SPATE_OK) {
        rc = next_result(fetch, &res, deadline_ms, &job->err);
        if (rc != SPATE_OK || !res)
            break;
        if (PQresultStatus(res) == PGRES_TUPLES_OK && !*rows) {
            *rows = res;
            continue;
        }
        if (PQresultStatus(res) != PGRES_COMMAND_OK && job->outcome == SPATE_JOB_DONE) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", what_of(job, what));
            fail_job(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        fail_wait(fetch, job, rc);
    if (job->outcome != SPATE_JOB_DONE) {
        PQclear(*rows);
        *rows = NULL;
        return false;
    }
    return true;
}

/* Ends the transaction, whatever its state; where that does not work the connection goes. */
static void roll_back(struct spate_fetch *fetch)
{
    PGresult *res = NULL;
    struct spate_err ignored = {0};

    if (fetch->broken || PQtransactionStatus(fetch->conn) == PQTRANS_IDLE)
        return;
    if (spate_pg_exec_within(fetch->conn, "ROLLBACK", DRAIN_MS, PGRES_COMMAND_OK, &res, &ignored) != SPATE_OK)
        fetch->broken = true;
    PQclear(res);
}

/* Index and sequential scans are no way to read a range; parallel ones would not come in order. The catalog's
 * indexes are needed by the questions about stamps, so those are forbidden only for the COPY of a range.
 * Planning that question takes longer than its answer: it is prepared. */
static void session_sql(struct spate_fetch *fetch)
{
    struct spate_buf *sql = &fetch->sql, publication = {0};

    spate_pg_literal(&publication, spate_slice_str(fetch->publication));
    spate_buf_reset(sql);
    spate_buf_puts(sql, "SET enable_seqscan = off; SET enable_tidscan = on; SET enable_hashjoin = off;"
                        " SET enable_mergejoin = off; SET max_parallel_workers_per_gather = 0; SET jit = off;"
                        " SET synchronize_seqscans = off; SET plan_cache_mode = force_generic_plan;"
                        " PREPARE spate_look(oid[], text) AS SELECT pg_catalog.pg_current_snapshot(), ");
    spate_query_stamp(sql, PQserverVersion(fetch->conn), "o.oid", spate_buf_str(&publication));
    spate_buf_puts(sql,
                   ", pg_catalog.pg_relation_size(o.oid) / pg_catalog.current_setting('block_size')::int8,"
                   " pg_catalog.pg_is_in_recovery(), o.oid = pg_catalog.to_regclass(nullif($2, '')) FROM "
                   "(VALUES (1)) one"
                   " LEFT JOIN unnest($1) WITH ORDINALITY o(oid, n) ON true ORDER BY o.n;"
                   " SELECT pg_catalog.current_setting('wal_block_size')");
    spate_buf_fini(&publication);
}

static bool connect_source(struct spate_fetch *fetch, struct spate_job *job)
{
    enum spate_rc rc = spate_pg_connect(&fetch->where, CONNECT_MS, &fetch->conn, &job->err);
    PGresult *res;

    if (rc == SPATE_OK && is_off(fetch))
        rc = SPATE_END;
    if (rc != SPATE_OK) {
        job->outcome = SPATE_JOB_FAILED;
        if (rc == SPATE_END)
            (void)!spate_fail(&job->err, SPATE_RETRY, "connecting to the source for a snapshot: called off");
        return false;
    }
    PQsetnonblocking(fetch->conn, 1);
    session_sql(fetch);
    if (!command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, CONNECT_MS, &res)) {
        fetch->broken = true; /* it must not be used without its settings */
        return false;
    }
    fetch->page_size = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
    PQclear(res);
    return true;
}

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

        if (PQgetisnull(res, row, 1) || (range ? strcmp(planned, now) != 0 || *PQgetvalue(res, row, 4) != 't'
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

    spate_snapshot_fini(&job->snapshot);
    job->lines.len = job->keys_text.len = 0;
    job->row_count = 0;
    begin_sql(fetch, job, limit_ms);
    if (!command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, LOCK_MS + limit_ms + SLACK_MS, &res))
        return false;
    if (!fits(job, res)) {
        job->outcome = SPATE_JOB_CHANGED;
    } else if (take_snapshot(job, PQgetvalue(res, 0, 0), *PQgetvalue(res, 0, 3) == 't') == SPATE_OK &&
               job->kind == SPATE_JOB_RANGE) {
        job->pages = strtoull(PQgetvalue(res, 0, 2), NULL, 10);
    }
    PQclear(res);
    return job->outcome == SPATE_JOB_DONE;
}

/* Conditions and keys, as settings of the transaction. *rows is what spate_query_bound points into. */
static bool bind(struct spate_fetch *fetch, struct spate_job *job, struct spate_query_bound **bound,
                 PGresult **rows)
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
        spate_query_array(&arrays[i], job->keys + i, table->table->key_count, job->key_count);
        values[filled++] = spate_buf_str(&arrays[i]);
    }
    spate_buf_reset(&fetch->sql);
    spate_query_bind(&fetch->sql, fetch->terms, count);
    ok = command(fetch, job, spate_buf_str(&fetch->sql), (int)count, values, RANGE_MS + SLACK_MS, rows);
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

/* ---- rows ---- */

bool spate_copy_split(char *line, size_t len, struct spate_value *values, size_t count)
{
    char *at = line, *end = line + len - 1;

    if (len == 0 || *end != '\n')
        return false;
    if (count == 0)
        return len == 1;
    for (size_t i = 0; i < count; i++) {
        char *stop = i + 1 < count ? memchr(at, '\t', (size_t)(end - at)) : end;
        char *from, *to;

        if (!stop)
            return false;
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

/* Which fields a row has: its columns, and in front of them its place or its key's number. */
static void prepare_fields(struct spate_fetch *fetch, const struct spate_job *job)
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
        fetch->values[i] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
        if (job->table->all || job->table->asked[i])
            fetch->columns[fetch->field_count++] = (uint32_t)i;
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

static bool take_row(struct spate_fetch *fetch, struct spate_job *job, char *line, size_t len, bool placed,
                     uint64_t *place)
{
    const struct spate_table *shape = job->table->table;
    size_t lead = placed ? 1 : 0, at = job->lines.len, key_at = job->keys_text.len;
    char what[200];

    if (!spate_copy_split(line, len, fetch->fields, fetch->field_count + lead) ||
        (placed && !read_place(job, fetch->fields[0].text, place))) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_FATAL, "%s: the source sent a line of COPY that is none",
                          what_of(job, what));
        return false;
    }
    for (size_t i = 0; i < fetch->field_count; i++)
        fetch->values[fetch->columns[i]] = fetch->fields[i + lead];
    if (spate_encode_read_row(&job->lines, shape, fetch->values, &job->err) != SPATE_OK) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_err_context(&job->err, "%s", what_of(job, what));
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

/* Rows until there are no more, or enough. A placed read may end behind any row, but not before the first. */
static enum end read_rows(struct spate_fetch *fetch, struct spate_job *job, bool placed, int64_t hard_ms,
                          uint64_t *place)
{
    size_t enough = placed ? job->max_bytes : job->max_bytes * 2;
    int64_t soft_ms = spate_clock_ms() + SOFT_MS;
    enum spate_rc rc;
    char *line;

    for (;;) {
        int got = PQgetCopyData(fetch->conn, &line, 1);
        bool may_end = !placed || job->row_count > 0;

        if (got > 0) {
            bool ok = take_row(fetch, job, line, (size_t)got, placed, place);

            PQfreemem(line);
            if (!ok)
                return END_FAILED;
            if (job->lines.len > enough)
                return END_LARGE;
            if (job->row_count % CLOCK_ROWS == 0 && (is_off(fetch) || spate_clock_ms() > soft_ms))
                return is_off(fetch) ? fail_wait(fetch, job, SPATE_END), END_FAILED : END_SLOW;
        } else if (got < 0) {
            return END_WHOLE; /* or failed, which the next result says */
        } else {
            rc = wait_for(fetch, false, may_end ? soft_ms : hard_ms, &job->err);
            if (rc == SPATE_AGAIN && may_end)
                return END_SLOW;
            if (rc == SPATE_OK && !PQconsumeInput(fetch->conn))
                rc = spate_pg_fail(&job->err, fetch->conn, NULL, "reading for a snapshot");
            if (rc != SPATE_OK) {
                fail_wait(fetch, job, rc);
                return END_FAILED;
            }
        }
    }
}

/* COPY, and in the same message what follows it. */
static enum end copy(struct spate_fetch *fetch, struct spate_job *job, bool placed, int limit_ms,
                     uint64_t *place)
{
    int64_t hard_ms = spate_clock_ms() + limit_ms + SLACK_MS;
    enum spate_rc rc =
        send_all(fetch, PQsendQuery(fetch->conn, spate_buf_str(&fetch->sql)), hard_ms, &job->err);
    enum end end = END_WHOLE;
    PGresult *res = NULL;
    char what[200];

    while (rc == SPATE_OK && end == END_WHOLE) {
        rc = next_result(fetch, &res, hard_ms, &job->err);
        if (rc != SPATE_OK || !res)
            break;
        if (PQresultStatus(res) == PGRES_COPY_OUT) {
            end = read_rows(fetch, job, placed, hard_ms, place);
            SPATE_FAILPOINT(connector_chunk_read);
        } else if (PQresultStatus(res) == PGRES_TUPLES_OK) {
            take_position(fetch, job, PQgetvalue(res, 0, 0));
        } else if (PQresultStatus(res) != PGRES_COMMAND_OK && job->outcome == SPATE_JOB_DONE) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", what_of(job, what));
            fail_job(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        fail_wait(fetch, job, rc);
    return job->outcome == SPATE_JOB_DONE ? end : END_FAILED;
}

/* One attempt, from BEGIN to the transaction's end. */
static enum end attempt(struct spate_fetch *fetch, struct spate_job *job, uint64_t to, bool placed,
                        uint64_t *place)
{
    int limit_ms = placed ? ROW_MS : RANGE_MS;
    struct spate_query_bound *bound = NULL;
    PGresult *rows = NULL;
    enum end end = END_FAILED;
    struct spate_buf query = {0};
    int64_t began_us;

    if (!begin(fetch, job, limit_ms))
        goto out;
    SPATE_FAILPOINT(connector_chunk_locked);
    began_us = spate_clock_us();
    if (!bind(fetch, job, &bound, &rows))
        goto out;
    if (job->kind == SPATE_JOB_RANGE)
        spate_query_range(&query, job->table, job->leaf, job->from, to, placed, bound);
    else
        spate_query_keys(&query, job->table, bound);
    spate_buf_reset(&fetch->sql);
    spate_buf_printf(&fetch->sql, "%sCOPY (%s) TO STDOUT; SELECT " POSITION_SQL "; COMMIT",
                     job->kind == SPATE_JOB_RANGE
                         ? "SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off;"
                           " SET LOCAL enable_bitmapscan = off; "
                         : "",
                     spate_buf_str(&query));
    prepare_fields(fetch, job);
    end = copy(fetch, job, placed, limit_ms, place);
    job->took_us = spate_clock_us() - began_us;
out:
    call_off(fetch);
    roll_back(fetch);
    PQclear(rows);
    free(bound);
    spate_buf_fini(&query);
    return end;
}

/* ---- kinds of work ---- */

/* What was read before a cut stays; the position is asked for now, which is later than it need be. */
static void cut_short(struct spate_fetch *fetch, struct spate_job *job, uint64_t place)
{
    PGresult *res;

    job->reached = place;
    if (fetch->broken) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "reading for a snapshot: the source did not stop sending");
    } else if (command(fetch, job, "SELECT " POSITION_SQL, 0, NULL, RANGE_MS, &res)) {
        take_position(fetch, job, PQgetvalue(res, 0, 0));
        PQclear(res);
    }
}

static uint64_t pages_of(uint64_t from, uint64_t to)
{
    uint64_t pages = ((to + UINT16_MAX) >> 16) - (from >> 16);

    return pages > 0 ? pages : 1;
}

static void run_range(struct spate_fetch *fetch, struct spate_job *job)
{
    uint64_t to = job->to, place = job->from;
    bool placed = pages_of(job->from, to) <= 1;

    for (;;) {
        enum end end = attempt(fetch, job, to, placed, &place);

        if (end == END_FAILED)
            return;
        if (end == END_WHOLE) {
            job->reached = to;
            return;
        }
        if (placed) {
            cut_short(fetch, job, place);
            return;
        }
        if (fetch->broken) {
            cut_short(fetch, job, place);
            return;
        }
        if (end == END_SLOW)
            to = ((job->from >> 16) + (pages_of(job->from, to) + 3) / 4) << 16;
        placed = end == END_LARGE || pages_of(job->from, to) <= 1;
    }
}

static void run_keys(struct spate_fetch *fetch, struct spate_job *job)
{
    uint64_t place = 0;
    enum end end = attempt(fetch, job, 0, true, &place);

    if (end == END_WHOLE)
        job->reached = job->key_count;
    else if (end != END_FAILED)
        cut_short(fetch, job, place);
}

/* The statement's snapshot exists before anything of it is evaluated, so the position is a later one. */
static const char look_sql[] =
    "SELECT pg_catalog.pg_current_snapshot(), " POSITION_SQL ", pg_catalog.pg_is_in_recovery()";

static void run_look(struct spate_fetch *fetch, struct spate_job *job)
{
    PGresult *res;

    if (!command(fetch, job, look_sql, 0, NULL, RANGE_MS, &res))
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
    if (command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, RANGE_MS, &res)) {
        take_position(fetch, job, PQgetvalue(res, 0, 0));
        PQclear(res);
    }
    roll_back(fetch);
}

void spate_fetch_run(struct spate_fetch *fetch, struct spate_job *job)
{
    job->outcome = SPATE_JOB_DONE;
    if (fetch->conn || connect_source(fetch, job)) {
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
