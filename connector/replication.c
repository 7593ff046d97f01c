/* connector/replication.c - the streaming protocol inside COPY BOTH.
 *
 *   server:  'w' start u64 | walEnd u64 | send time i64 | pgoutput's bytes
 *            'k' walEnd u64 | send time i64 | reply requested u8
 *   client:  'r' written u64 | flushed u64 | applied u64 | time i64 | reply requested u8
 *
 * written is what was received; flushed and applied are what the ledger says is durable (P1). */
#include "connector/replication.h"

#include "connector/culprit.h"
#include "connector/lsn.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/signals.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>

/* After the confirmable LSN moved: often enough for the slot, rare on the wire; at once, nearly, when nothing
 * is outstanding. */
#define STATUS_SOON_MS   100
#define STATUS_IDLE_MS   10
#define STATUS_LATEST_MS 10000 /* and at least this often (P7) */
#define IDLE_DEFAULT_MS  60000 /* our own read timer where the server has none (P9) */
#define CONNECT_MS       15000
#define PRESSED          50   /* reply requests in a second; a shutdown brings thousands */
#define CANCEL_MS        1000 /* how long a server may take to hear that it is to cancel */

enum spate_rc spate_replication_connect(struct spate_replication *repl, const struct spate_pg_where *where,
                                        struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc;

    *repl = (struct spate_replication){0};
    rc = spate_pg_connect(where, CONNECT_MS, &repl->conn, err);
    if (rc != SPATE_OK)
        return rc;
    rc = spate_pg_exec(repl->conn,
                       "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'",
                       PGRES_TUPLES_OK, &res, err); /* in milliseconds, unlike SHOW */
    if (rc == SPATE_OK && PQntuples(res) == 1)
        repl->sender_timeout_ms = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
    PQclear(res);
    if (rc != SPATE_OK)
        spate_replication_close(repl);
    return rc;
}

void spate_replication_close(struct spate_replication *repl)
{
    PQfinish(repl->conn);
    *repl = (struct spate_replication){0};
}

/* Waits for the result of a command that was sent. */
static enum spate_rc await_result(struct spate_replication *repl, bool (*tick)(void *arg, int seconds),
                                  void *arg, PGresult **res, struct spate_err *err)
{
    int64_t started_ms = spate_clock_ms(), ticked_ms = started_ms;

    for (;;) {
        struct pollfd fds[2] = {{.fd = PQsocket(repl->conn), .events = POLLIN},
                                {.fd = spate_signals_fd(), .events = POLLIN}};
        int flushed = PQflush(repl->conn);

        if (flushed < 0 || !PQconsumeInput(repl->conn))
            return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
        if (!PQisBusy(repl->conn)) {
            *res = PQgetResult(repl->conn);
            return SPATE_OK;
        }
        if (flushed > 0)
            fds[0].events |= POLLOUT;
        poll(fds, 2, 1000);
        if (spate_signals_stop()) {
            spate_pg_cancel(repl->conn, CANCEL_MS);
            return SPATE_END;
        }
        if (tick && spate_clock_ms() - ticked_ms >= 1000) {
            ticked_ms = spate_clock_ms();
            if (!tick(arg, (int)((ticked_ms - started_ms) / 1000))) {
                spate_pg_cancel(repl->conn, CANCEL_MS);
                return SPATE_AGAIN;
            }
        }
    }
}

enum spate_rc spate_replication_command(struct spate_replication *repl, const char *sql,
                                        ExecStatusType expect, bool (*tick)(void *arg, int seconds),
                                        void *arg, PGresult **res, struct spate_err *err)
{
    PGresult *result = NULL;
    enum spate_rc rc;

    *res = NULL;
    if (!PQsendQuery(repl->conn, sql))
        return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
    rc = await_result(repl, tick, arg, &result, err);
    if (rc != SPATE_OK)
        return rc;
    if (PQresultStatus(result) != expect) {
        spate_pg_fail(err, repl->conn, result, "%.40s", sql);
        PQclear(result);
        return SPATE_FAIL;
    }
    if (expect != PGRES_COPY_BOTH) {
        PGresult *more;

        while ((more = PQgetResult(repl->conn)))
            PQclear(more);
    }
    *res = result;
    return SPATE_OK;
}

enum spate_rc spate_replication_start(struct spate_replication *repl, const char *slot,
                                      const char *publication, uint64_t lsn, struct spate_err *err)
{
    struct spate_buf sql = {0}, name = {0};
    char text[SPATE_PG_LSN_TEXT];
    PGresult *res = NULL;
    enum spate_rc rc;

    /* publication_names is a list of identifiers inside a literal: both quotings apply. */
    spate_pg_ident(&name, spate_slice_str(publication));
    spate_buf_puts(&sql, "START_REPLICATION SLOT ");
    spate_pg_ident(&sql, spate_slice_str(slot));
    spate_buf_printf(&sql, " LOGICAL %s (proto_version '1', publication_names ", spate_pg_lsn(lsn, text));
    spate_pg_literal(&sql, spate_buf_view(&name));
    if (PQserverVersion(repl->conn) >= 140000)
        spate_buf_puts(&sql, ", messages 'true'"); /* transactional ones are changes (P24) */
    spate_buf_puts(&sql, ")");
    rc = spate_replication_command(repl, spate_buf_str(&sql), PGRES_COPY_BOTH, NULL, NULL, &res, err);
    spate_buf_fini(&sql);
    spate_buf_fini(&name);
    PQclear(res);
    if (rc != SPATE_OK)
        return rc;
    if (PQsetnonblocking(repl->conn, 1))
        return spate_pg_fail(err, repl->conn, NULL, "cannot make the replication socket non-blocking");
    SPATE_FAILPOINT(connector_started);
    repl->copying = true;
    repl->said = lsn;
    repl->read_ms = repl->status_ms = spate_clock_ms();
    return SPATE_OK;
}

/* The COPY is over: why? */
static enum spate_rc copy_ended(struct spate_replication *repl, struct spate_err *err)
{
    PGresult *res = PQgetResult(repl->conn);
    ExecStatusType status = PQresultStatus(res);

    repl->copying = false;
    if (status == PGRES_COMMAND_OK || status == PGRES_COPY_IN) {
        /* CopyDone: a walsender leaves like this when its server shuts down (P10). */
        PQclear(res);
        return SPATE_END;
    }
    spate_pg_fail(err, repl->conn, res, "the replication stream ended");
    err->lsn = spate_culprit_lsn(PQresultErrorField(res, PG_DIAG_CONTEXT));
    PQclear(res);
    return SPATE_FAIL;
}

static enum spate_rc bad_frame(char *buffer, int len, struct spate_err *err)
{
    spate_fail(err, SPATE_FATAL,
               "the source sent a replication frame of kind 0x%02X with %d bytes, which is "
               "neither data nor keepalive",
               (unsigned char)buffer[0], len);
    PQfreemem(buffer);
    return SPATE_FAIL;
}

enum spate_rc spate_replication_next(struct spate_replication *repl, struct spate_ledger *ledger,
                                     struct spate_frame *frame, struct spate_err *err)
{
    for (;;) {
        char *buffer = NULL;
        int len = PQgetCopyData(repl->conn, &buffer, 1);

        if (len == 0)
            return SPATE_AGAIN;
        if (len == -1)
            return copy_ended(repl, err);
        if (len < 0)
            return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
        if (buffer[0] == 'w' && len >= 25) {
            frame->lsn = spate_load_u64(buffer + 1);
            frame->data = spate_slice(buffer + 25, (size_t)len - 25);
            frame->buffer = buffer;
            spate_ledger_received(ledger, frame->lsn);
            return SPATE_OK;
        }
        if (buffer[0] != 'k' || len < 18)
            return bad_frame(buffer, len, err);
        uint64_t wal_end = spate_load_u64(buffer + 1);

        spate_ledger_received(ledger, wal_end);
        if (wal_end > repl->wal_end)
            repl->wal_end = wal_end;
        repl->reply_wanted |= buffer[17] != 0;
        repl->asked += buffer[17] != 0;
        PQfreemem(buffer);
    }
}

enum spate_rc spate_replication_read(struct spate_replication *repl, struct spate_err *err)
{
    if (!PQconsumeInput(repl->conn))
        return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
    return SPATE_OK;
}

bool spate_replication_readable(const struct spate_replication *repl)
{
    struct pollfd fd = {.fd = PQsocket(repl->conn), .events = POLLIN};

    return poll(&fd, 1, 0) > 0;
}

size_t spate_replication_queued(const struct spate_replication *repl)
{
    int bytes = 0;

    return ioctl(PQsocket(repl->conn), FIONREAD, &bytes) == 0 && bytes > 0 ? (size_t)bytes : 0;
}

static enum spate_rc send_status(struct spate_replication *repl, const struct spate_ledger *ledger,
                                 int64_t now_ms, bool ask, struct spate_err *err)
{
    char status[34];
    int sent;

    status[0] = 'r';
    spate_store_u64(status + 1, ledger->received);
    spate_store_u64(status + 9, ledger->confirmed);
    spate_store_u64(status + 17, ledger->confirmed);
    spate_store_u64(status + 25, (uint64_t)(spate_clock_wall_us() - POSTGRES_EPOCH_US));
    status[33] = (char)ask;
    if (ledger->confirmed != repl->said)
        SPATE_FAILPOINT(connector_confirm);
    sent = PQputCopyData(repl->conn, status, (int)sizeof status);
    if (sent < 0)
        return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
    if (sent == 0)
        return SPATE_OK; /* libpq's own buffer is full of earlier ones: they go out first */
    repl->said = ledger->confirmed;
    repl->status_ms = now_ms;
    repl->reply_wanted = false;
    repl->ask_position = false;
    return SPATE_OK;
}

static int64_t status_every_ms(const struct spate_replication *repl)
{
    int64_t third = repl->sender_timeout_ms / 3;

    return third > 0 && third < STATUS_LATEST_MS ? third : STATUS_LATEST_MS;
}

int64_t spate_replication_patience_ms(const struct spate_replication *repl)
{
    return repl->sender_timeout_ms > 0 ? repl->sender_timeout_ms : IDLE_DEFAULT_MS;
}

bool spate_replication_pressed(struct spate_replication *repl, int64_t now_ms)
{
    bool pressed = repl->asked > PRESSED; /* it otherwise asks twice in its timeout */

    if (now_ms - repl->asked_ms >= 1000) {
        repl->asked_ms = now_ms;
        repl->asked = 0;
    }
    return pressed;
}

static enum spate_rc flush_out(struct spate_replication *repl, struct spate_err *err)
{
    int left = PQflush(repl->conn);

    if (left < 0)
        return spate_pg_fail(err, repl->conn, NULL, "lost the replication connection");
    repl->flush_pending = left > 0;
    SPATE_FAILPOINT(connector_confirmed);
    return SPATE_OK;
}

/* Under load the last word is soon old; when nothing is on its way it is what somebody may be waiting for. */
static int64_t soon_ms(const struct spate_ledger *ledger)
{
    return spate_ledger_idle(ledger) ? STATUS_IDLE_MS : STATUS_SOON_MS;
}

enum spate_rc spate_replication_tend(struct spate_replication *repl, const struct spate_ledger *ledger,
                                     int64_t now_ms, bool reading, struct spate_err *err)
{
    int64_t since_ms = now_ms - repl->status_ms, silent_ms = now_ms - repl->read_ms;

    if (!reading)
        repl->read_ms = now_ms; /* we do not listen, so the silence says nothing about the server */
    else if (silent_ms > spate_replication_patience_ms(repl))
        return spate_fail(err, SPATE_RETRY,
                          "the source sent nothing for %" PRId64 " s, not even an answer to our own request: "
                          "the connection is taken for dead",
                          silent_ms / 1000);
    if (repl->reply_wanted || repl->ask_position || since_ms >= status_every_ms(repl) ||
        (ledger->confirmed != repl->said && since_ms >= soon_ms(ledger))) {
        /* Our own statuses keep the server from ever asking, so a silent server must be asked (P8, P9). */
        bool ask = repl->ask_position || (reading && silent_ms >= spate_replication_patience_ms(repl) / 4);

        if (send_status(repl, ledger, now_ms, ask, err))
            return SPATE_FAIL;
        repl->flush_pending = true;
    }
    return repl->flush_pending ? flush_out(repl, err) : SPATE_OK;
}

int spate_replication_due_ms(const struct spate_replication *repl, const struct spate_ledger *ledger,
                             int64_t now_ms)
{
    int64_t every = ledger->confirmed != repl->said ? soon_ms(ledger) : status_every_ms(repl);
    int64_t due = repl->status_ms + every - now_ms;

    if (repl->reply_wanted || repl->ask_position || due < 0)
        return 0;
    return due > 1000 ? 1000 : (int)due;
}

void spate_replication_finish(struct spate_replication *repl, const struct spate_ledger *ledger,
                              int timeout_ms)
{
    struct spate_err err = {0};
    int64_t until_ms = spate_clock_ms() + timeout_ms, left_ms;
    bool ended = false;
    int flushed;

    if (!repl->conn || !repl->copying)
        return;
    if (send_status(repl, ledger, spate_clock_ms(), false, &err))
        return;
    /* Closing a socket with unread bytes resets it, and a reset can take the status back from the server's
     * buffer: so what still comes is read and thrown away until the server has answered the end of COPY. */
    while ((left_ms = until_ms - spate_clock_ms()) > 0) {
        struct pollfd fd = {.fd = PQsocket(repl->conn), .events = POLLIN};
        char *buffer = NULL;
        int len;

        if (!ended)
            ended = PQputCopyEnd(repl->conn, NULL) == 1;
        flushed = PQflush(repl->conn);
        if (flushed < 0 || !PQconsumeInput(repl->conn))
            return;
        while ((len = PQgetCopyData(repl->conn, &buffer, 1)) > 0)
            PQfreemem(buffer);
        if (len < 0)
            return;
        if (flushed > 0)
            fd.events |= POLLOUT;
        poll(&fd, 1, (int)left_ms);
    }
}
