/* connector/fetch_source.c - a connection to the source that can be called off at any moment, and what its
 * failures mean. */
#include "connector/fetching.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS 5000
#define CANCEL_MS  1000 /* until the server has heard that it is to stop */
#define DRAIN_MS   1000 /* until it has stopped */

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
    free(fetch->digests);
    spate_buf_fini(&fetch->sql);
    spate_buf_fini(&fetch->text);
    free(fetch);
}

/* ---- waiting ---- */

bool spate_fetch_off(const struct spate_fetch *fetch)
{
    return atomic_load(fetch->off) || spate_signals_stop();
}

enum spate_rc spate_fetch_wait(struct spate_fetch *fetch, bool out, int64_t deadline_ms,
                               struct spate_err *err)
{
    struct pollfd fds[3] = {{.fd = PQsocket(fetch->conn), .events = (short)(out ? POLLIN | POLLOUT : POLLIN)},
                            {.fd = fetch->off_fd, .events = POLLIN},
                            {.fd = spate_signals_fd(), .events = POLLIN}};

    for (;;) {
        int64_t left = deadline_ms - spate_clock_ms();

        if (spate_fetch_off(fetch))
            return SPATE_END;
        if (left <= 0)
            return SPATE_AGAIN;
        if (fds[0].fd < 0)
            return spate_pg_fail(err, fetch->conn, NULL, "reading for a snapshot");
        if (poll(fds, 3, (int)(left < 1000 ? left : 1000)) > 0 && fds[0].revents)
            return SPATE_OK;
    }
}

enum spate_rc spate_fetch_send(struct spate_fetch *fetch, int sent, int64_t deadline_ms,
                               struct spate_err *err)
{
    int left = sent ? 1 : -1;

    while (left > 0) {
        left = PQflush(fetch->conn);
        if (left > 0) {
            enum spate_rc rc = spate_fetch_wait(fetch, true, deadline_ms, err);

            if (rc != SPATE_OK)
                return rc;
            if (!PQconsumeInput(fetch->conn))
                left = -1;
        }
    }
    return left == 0 ? SPATE_OK : spate_pg_fail(err, fetch->conn, NULL, "reading for a snapshot");
}

enum spate_rc spate_fetch_next(struct spate_fetch *fetch, PGresult **res, int64_t deadline_ms,
                               struct spate_err *err)
{
    *res = NULL;
    while (PQisBusy(fetch->conn)) {
        enum spate_rc rc = spate_fetch_wait(fetch, false, deadline_ms, err);

        if (rc != SPATE_OK)
            return rc;
        if (!PQconsumeInput(fetch->conn))
            break; /* PQgetResult says so */
    }
    *res = PQgetResult(fetch->conn);
    return SPATE_OK;
}

void spate_fetch_call_off(struct spate_fetch *fetch)
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

const char *spate_fetch_what(const struct spate_job *job, char out[200])
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
    (void)!spate_fail(&job->err, SPATE_QUARANTINE, "%s: %s: %s%s%s", spate_fetch_what(job, what),
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

void spate_fetch_failed(struct spate_fetch *fetch, struct spate_job *job, const PGresult *res)
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
    } else if (strcmp(state, "25006") == 0) {
        job->err.verdict = SPATE_QUARANTINE; /* a nudge of a server that may not write */
    } else if (strncmp(state, "22", 2) == 0 && job->table) {
        remedy_value(job);
    }
}

void spate_fetch_gave_up(struct spate_fetch *fetch, struct spate_job *job, enum spate_rc rc)
{
    char what[200];

    if (rc == SPATE_END) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "%s: called off", spate_fetch_what(job, what));
    } else if (rc == SPATE_AGAIN) {
        job->outcome = SPATE_JOB_FAILED;
        (void)!spate_fail(&job->err, SPATE_RETRY, "%s: the source does not answer",
                          spate_fetch_what(job, what));
        fetch->broken = true;
    } else {
        spate_fetch_failed(fetch, job, NULL);
        fetch->broken = true;
        job->err.verdict = SPATE_RETRY;
    }
    if (rc == SPATE_END)
        spate_fetch_call_off(fetch);
}

/* ---- commands ---- */

bool spate_fetch_command(struct spate_fetch *fetch, struct spate_job *job, const char *sql, int count,
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
    rc = spate_fetch_send(fetch, sent, deadline_ms, &job->err);
    while (rc == SPATE_OK) {
        rc = spate_fetch_next(fetch, &res, deadline_ms, &job->err);
        if (rc != SPATE_OK || !res)
            break;
        if (PQresultStatus(res) == PGRES_TUPLES_OK && !*rows) {
            *rows = res;
            continue;
        }
        if (PQresultStatus(res) != PGRES_COMMAND_OK && job->outcome == SPATE_JOB_DONE) {
            (void)!spate_pg_fail(&job->err, fetch->conn, res, "%s", spate_fetch_what(job, what));
            spate_fetch_failed(fetch, job, res);
        }
        PQclear(res);
    }
    if (rc != SPATE_OK)
        spate_fetch_gave_up(fetch, job, rc);
    if (job->outcome != SPATE_JOB_DONE) {
        PQclear(*rows);
        *rows = NULL;
        return false;
    }
    return true;
}

void spate_fetch_roll_back(struct spate_fetch *fetch)
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
                   " pg_catalog.pg_is_in_recovery(), pg_catalog.pg_table_size(o.oid), o.oid = "
                   "pg_catalog.to_regclass(nullif($2, '')) FROM "
                   "(VALUES (1)) one"
                   " LEFT JOIN unnest($1) WITH ORDINALITY o(oid, n) ON true ORDER BY o.n;"
                   " SELECT pg_catalog.current_setting('wal_block_size')");
    spate_buf_fini(&publication);
}

bool spate_fetch_connect(struct spate_fetch *fetch, struct spate_job *job)
{
    enum spate_rc rc = spate_pg_connect(&fetch->where, CONNECT_MS, &fetch->conn, &job->err);
    PGresult *res;

    if (rc == SPATE_OK && spate_fetch_off(fetch))
        rc = SPATE_END;
    if (rc != SPATE_OK) {
        job->outcome = SPATE_JOB_FAILED;
        if (rc == SPATE_END)
            (void)!spate_fail(&job->err, SPATE_RETRY, "connecting to the source for a snapshot: called off");
        fetch->broken = true; /* it must not be used without its settings */
        return false;
    }
    PQsetnonblocking(fetch->conn, 1);
    session_sql(fetch);
    if (!spate_fetch_command(fetch, job, spate_buf_str(&fetch->sql), 0, NULL, CONNECT_MS, &res)) {
        fetch->broken = true; /* nor half of them */
        return false;
    }
    fetch->page_size = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
    PQclear(res);
    return true;
}
