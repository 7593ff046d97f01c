/* pg/exec.c - a command and its answer, waited for with poll(2) so that a stop or a deadline ends it. */
#include "pg/pg.h"

#include "core/clock.h"
#include "core/signals.h"

#include <ctype.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define FOREVER  INT64_MAX
#define DRAIN_MS 1000 /* how long cancelling a command, and its end, may take */

struct patience {
    int64_t deadline_ms;
    bool heeds_stop;
};

/* Waits until the socket can be read (or, with `out`, written). SPATE_AGAIN: time is up. */
static enum spate_rc wait_for(PGconn *conn, bool out, const struct patience *patience, struct spate_err *err)
{
    struct pollfd fds[2] = {{.fd = PQsocket(conn), .events = (short)(out ? POLLIN | POLLOUT : POLLIN)},
                            {.fd = patience->heeds_stop ? spate_signals_fd() : -1, .events = POLLIN}};

    for (;;) {
        int64_t left = patience->deadline_ms == FOREVER ? 1000 : patience->deadline_ms - spate_clock_ms();

        if (patience->heeds_stop && spate_signals_stop())
            return SPATE_END;
        if (left <= 0)
            return SPATE_AGAIN;
        if (fds[0].fd < 0)
            return spate_pg_fail(err, conn, NULL, "%s", "");
        if (poll(fds, 2, (int)(left < 1000 ? left : 1000)) > 0 && fds[0].revents)
            return SPATE_OK;
    }
}

/* A thread of its own: takes the request and frees it. */
static void *send_cancel(void *request)
{
    char why[256];

    if (!PQcancel(request, why, sizeof why))
        why[0] = '\0'; /* the connection is closed next anyway */
    PQfreeCancel(request);
    return NULL;
}

/* PQcancel connects and then waits for the server to hang up, both without a limit: a server that is frozen,
 * or behind a cut network, would hold up whoever calls it. */
void spate_pg_cancel(PGconn *conn, int timeout_ms)
{
    PGcancel *request = PQgetCancel(conn);
    struct timespec until;
    pthread_t thread;

    if (!request)
        return;
    if (pthread_create(&thread, NULL, send_cancel, request) != 0) {
        PQfreeCancel(request);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    if (pthread_timedjoin_np(thread, NULL, &until) == 0)
        return;
    /* It may still arrive, and must then not meet another command of this connection. */
    pthread_detach(thread);
    shutdown(PQsocket(conn), SHUT_RDWR);
    while (PQconsumeInput(conn))
        continue; /* up to the end, so that libpq knows it */
}

static enum spate_rc flush(PGconn *conn, const struct patience *patience, struct spate_err *err)
{
    int left;

    while ((left = PQflush(conn)) > 0) {
        enum spate_rc rc = wait_for(conn, true, patience, err);

        if (rc != SPATE_OK)
            return rc;
        if (!PQconsumeInput(conn)) /* a server that is full of words for us takes none of ours */
            break;
    }
    return left == 0 ? SPATE_OK : spate_pg_fail(err, conn, NULL, "%s", "");
}

static bool is_copy(ExecStatusType status)
{
    return status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH;
}

static bool is_error(const PGresult *res)
{
    ExecStatusType status = PQresultStatus(res);

    return status == PGRES_FATAL_ERROR || status == PGRES_BAD_RESPONSE;
}

/* Collects results until the command is over (or COPY begins). Keeps the last one, or the first error. */
static enum spate_rc collect(PGconn *conn, PGresult **kept, const struct patience *patience,
                             struct spate_err *err)
{
    for (;;) {
        PGresult *res;

        while (PQisBusy(conn)) {
            enum spate_rc rc = wait_for(conn, false, patience, err);

            if (rc != SPATE_OK)
                return rc;
            if (!PQconsumeInput(conn))
                break; /* PQgetResult says so in its result */
        }
        res = PQgetResult(conn);
        if (!res)
            return SPATE_OK;
        if (*kept && is_error(*kept)) {
            PQclear(res);
        } else {
            PQclear(*kept);
            *kept = res;
        }
        if (is_copy(PQresultStatus(*kept)))
            return SPATE_OK;
    }
}

/* The command's first word, for context: the rest may hold values. */
static const char *verb(const char *sql, char out[16])
{
    size_t len = 0;

    sql += strspn(sql, " \t\r\n(");
    while (len < 15 && isalpha((unsigned char)sql[len])) {
        out[len] = (char)toupper((unsigned char)sql[len]);
        len++;
    }
    out[len] = '\0';
    return out;
}

static enum spate_rc finish(PGconn *conn, const char *sql, ExecStatusType expect, PGresult **res,
                            const struct patience *patience, struct spate_err *err)
{
    PGresult *got = NULL;
    char word[16];
    enum spate_rc rc;

    rc = flush(conn, patience, err);
    if (rc == SPATE_OK)
        rc = collect(conn, &got, patience, err);
    if (rc == SPATE_END || rc == SPATE_AGAIN) {
        const struct patience drain = {.deadline_ms = spate_clock_ms() + DRAIN_MS};
        struct spate_err ignored = {0};

        spate_pg_cancel(conn, DRAIN_MS);
        if (collect(conn, &got, &drain, &ignored) != SPATE_OK)
            ignored.text[0] = '\0'; /* it will end when the connection is closed */
    }
    if (rc == SPATE_AGAIN) {
        memcpy(err->sqlstate, "57014", 6);
        rc = spate_fail(err, SPATE_RETRY, "%s: no answer in time, the server was told to cancel",
                        verb(sql, word));
    } else if (rc == SPATE_OK && (!got || PQresultStatus(got) != expect)) {
        rc = spate_pg_fail(err, conn, got, "%s", verb(sql, word));
    }
    if (rc == SPATE_OK && res)
        *res = got;
    else
        PQclear(got);
    return rc;
}

static enum spate_rc run(PGconn *conn, const char *sql, int count, const char *const *values,
                         ExecStatusType expect, PGresult **res, const struct patience *patience,
                         struct spate_err *err)
{
    bool blocking = !PQisnonblocking(conn);
    enum spate_rc rc;
    char word[16];
    int sent;

    if (res)
        *res = NULL;
    if (patience->heeds_stop && spate_signals_stop())
        return SPATE_END;
    /* Even sending may block when the server reads slowly, and a stop must end that too. */
    if (blocking && PQsetnonblocking(conn, 1) != 0)
        return spate_pg_fail(err, conn, NULL, "%s", verb(sql, word));
    /* Without parameters the simple protocol, the only one that a walsender speaks. */
    sent = values ? PQsendQueryParams(conn, sql, count, NULL, values, NULL, NULL, 0) : PQsendQuery(conn, sql);
    rc = sent ? finish(conn, sql, expect, res, patience, err)
              : spate_pg_fail(err, conn, NULL, "%s", verb(sql, word));
    if (blocking && PQstatus(conn) == CONNECTION_OK && PQsetnonblocking(conn, 0) != 0 && rc == SPATE_OK) {
        if (res) {
            PQclear(*res);
            *res = NULL;
        }
        rc = spate_pg_fail(err, conn, NULL, "%s", verb(sql, word));
    }
    return rc;
}

enum spate_rc spate_pg_exec(PGconn *conn, const char *sql, ExecStatusType expect, PGresult **res,
                            struct spate_err *err)
{
    const struct patience patience = {.deadline_ms = FOREVER, .heeds_stop = true};

    return run(conn, sql, 0, NULL, expect, res, &patience, err);
}

enum spate_rc spate_pg_exec_params(PGconn *conn, const char *sql, int count, const char *const *values,
                                   ExecStatusType expect, PGresult **res, struct spate_err *err)
{
    const struct patience patience = {.deadline_ms = FOREVER, .heeds_stop = true};

    return run(conn, sql, count, values, expect, res, &patience, err);
}

enum spate_rc spate_pg_exec_within(PGconn *conn, const char *sql, int timeout_ms, ExecStatusType expect,
                                   PGresult **res, struct spate_err *err)
{
    const struct patience patience = {.deadline_ms =
                                          timeout_ms < 0 ? FOREVER : spate_clock_ms() + timeout_ms};

    return run(conn, sql, 0, NULL, expect, res, &patience, err);
}

enum spate_rc spate_pg_ask(PGconn *conn, const char *sql, int count, const char *const *values,
                           int timeout_ms, PGresult **res, struct spate_err *err)
{
    const struct patience patience = {.deadline_ms = spate_clock_ms() + timeout_ms, .heeds_stop = true};

    return run(conn, sql, count, values, PGRES_TUPLES_OK, res, &patience, err);
}
