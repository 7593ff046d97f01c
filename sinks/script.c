/* sinks/script.c - many statements, one round trip: what is sent, what each answer means, and COPY in
 * between. */
#include "sinks/script.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/projection.h"

#include <poll.h>
#include <stdlib.h>

#define CHUNK (64 * 1024)

void spate_script_step(struct spate_apply *apply, enum spate_step_kind kind,
                       const struct spate_version *version, uint64_t expected)
{
    if (apply->step_count == apply->step_capacity) {
        apply->step_capacity = apply->step_capacity ? apply->step_capacity * 2 : 16;
        apply->steps = spate_realloc(apply->steps, apply->step_capacity * sizeof *apply->steps);
    }
    if (kind == SPATE_STEP_COUNTED && spate_load_strict(&version->projection->load))
        apply->judges = true;
    apply->steps[apply->step_count++] =
        (struct spate_step){.kind = kind, .version = version, .expected = expected};
}

void spate_script_add(struct spate_apply *apply, const char *sql)
{
    spate_buf_puts(&apply->sql, sql);
    spate_buf_puts(&apply->sql, ";\n");
    spate_script_step(apply, SPATE_STEP_OTHER, NULL, 0);
}

void spate_script_reset(struct spate_apply *apply)
{
    spate_buf_trim(&apply->sql, 256 * 1024);
    apply->step_count = 0;
    apply->judges = false;
}

/* COPY's text format: a backslash before what would end a field or a line, \N for NULL. */
static void copy_text(struct spate_buf *out, struct spate_slice text)
{
    const char *at = text.at, *end = text.at + text.len;

    spate_buf_reserve(out, 2 * text.len);
    while (at < end) {
        const char *from = at;
        char c;

        while (at < end && *at != '\\' && *at != '\n' && *at != '\t' && *at != '\r')
            at++;
        spate_buf_add(out, from, (size_t)(at - from));
        if (at == end)
            break;
        c = *at++;
        spate_buf_putc(out, '\\');
        spate_buf_putc(out, c == '\n' ? 'n' : c == '\t' ? 't' : c == '\r' ? 'r' : c);
    }
}

static bool put_chunk(struct spate_apply *apply, size_t limit)
{
    if (apply->chunk.len < limit)
        return true;
    if (apply->chunk.len && PQputCopyData(apply->store->conn, apply->chunk.data, (int)apply->chunk.len) != 1)
        return false;
    spate_buf_reset(&apply->chunk);
    return true;
}

/* A value goes in slices, so that neither our buffer nor libpq's grows to twice the largest row. */
static bool put_value(struct spate_apply *apply, const struct spate_value *value)
{
    struct spate_slice rest = value->text;

    if (value->kind != SPATE_VALUE_TEXT) {
        spate_buf_puts(&apply->chunk, "\\N");
        return true;
    }
    while (rest.len > CHUNK) {
        copy_text(&apply->chunk, spate_slice(rest.at, CHUNK));
        rest = spate_slice(rest.at + CHUNK, rest.len - CHUNK);
        if (!put_chunk(apply, 1))
            return false;
    }
    copy_text(&apply->chunk, rest);
    return put_chunk(apply, CHUNK);
}

void spate_script_mask(const struct spate_entry *entry, struct spate_buf *out)
{
    const struct spate_version *version = entry->version;

    for (size_t i = 0; i < version->used_count; i++)
        if (version->maybe[i] >= 0)
            spate_buf_putc(out, entry->values && entry->values[i].kind != SPATE_VALUE_ABSENT ? '1' : '0');
}

const struct spate_value *spate_script_value(const struct spate_entry *entry, size_t used_at)
{
    static const struct spate_value null = {.kind = SPATE_VALUE_NULL};

    if (entry->values)
        return &entry->values[used_at];
    for (size_t k = 0; k < entry->version->key_count; k++)
        if (entry->version->key_at[k] == used_at)
            return &entry->key[k];
    return &null;
}

static bool put_entry(struct spate_apply *apply, const struct spate_entry *entry)
{
    const struct spate_version *version = entry->version;
    static const struct spate_value null = {.kind = SPATE_VALUE_NULL};

    spate_buf_putc(&apply->chunk, (char)entry->op);
    if (version->maybe_count) {
        spate_buf_putc(&apply->chunk, '\t');
        spate_script_mask(entry, &apply->chunk);
        for (size_t k = 0; k < version->key_count; k++) {
            spate_buf_putc(&apply->chunk, '\t');
            if (!put_value(apply, entry->old_key ? &entry->old_key[k] : &null))
                return false;
        }
    }
    for (size_t i = 0; i < version->used_count; i++) {
        spate_buf_putc(&apply->chunk, '\t');
        if (!put_value(apply, spate_script_value(entry, i)))
            return false;
    }
    spate_buf_putc(&apply->chunk, '\n');
    return true;
}

static bool copy_in(struct spate_apply *apply, const struct spate_version *version)
{
    spate_buf_reset(&apply->chunk);
    for (size_t i = 0; i < apply->piece.count; i++)
        if (apply->piece.entries[i].version == version && !put_entry(apply, &apply->piece.entries[i]))
            return false;
    return put_chunk(apply, 0) && PQputCopyEnd(apply->store->conn, NULL) == 1;
}

/* When a stop was asked for, what is running may end within most of the deadline; then it is cancelled. */
static void heed_stop(struct spate_apply *apply, int64_t now)
{
    if (!spate_signals_stop())
        return;
    if (apply->stop_ms == 0)
        apply->stop_ms = now;
    if (now - apply->stop_ms < apply->store->config->stop_deadline_ms / 2)
        return;
    apply->stop_ms = now; /* again later, should it not help */
    spate_log(SPATE_LOG_WARN, "apply-cancelled", "reason=stop");
    spate_pg_cancel(apply->store->conn, 1000);
}

static PGresult *await_result(struct spate_apply *apply)
{
    PGconn *conn = apply->store->conn;
    int64_t start = spate_clock_ms(), told = start;

    while (PQisBusy(conn)) {
        struct pollfd fd = {.fd = PQsocket(conn), .events = POLLIN};
        int64_t now;

        if (fd.fd < 0 || (poll(&fd, 1, 200) > 0 && !PQconsumeInput(conn)))
            break; /* PQgetResult says what happened */
        now = spate_clock_ms();
        heed_stop(apply, now);
        if (now - told > 10000) { /* T25 */
            told = now;
            spate_log(SPATE_LOG_WARN, "target-slow",
                      "waiting_ms=%lld backend_pid=%d remedy=\"SELECT pg_blocking_pids(%d) on the target\"",
                      (long long)(now - start), PQbackendPID(conn), PQbackendPID(conn));
        }
    }
    return PQgetResult(conn);
}

static void count_rows(struct spate_apply *apply, const struct spate_step *step, PGresult *res)
{
    uint64_t rows = strtoull(PQcmdTuples(res), NULL, 10);

    if (step->kind == SPATE_STEP_SWEEP)
        apply->swept += rows;
    if (step->kind == SPATE_STEP_COUNTED && rows < step->expected) {
        apply->missing_now += step->expected - rows;
        if (spate_load_strict(&step->version->projection->load))
            apply->lost = step->version;
        spate_log(SPATE_LOG_DEBUG, "rows-missing", "table=%s count=%llu", step->version->projection->label,
                  (unsigned long long)(step->expected - rows));
    }
}

enum spate_rc spate_script_run(struct spate_apply *apply, struct spate_err *err)
{
    PGconn *conn = apply->store->conn;
    enum spate_rc rc = SPATE_OK;
    size_t at = 0;
    PGresult *res;

    if (apply->step_count == 0)
        return SPATE_OK;
    apply->stop_ms = 0;
    err->sqlstate[0] = 0;
    if (!PQsendQuery(conn, spate_buf_str(&apply->sql)))
        rc = spate_pg_fail(err, conn, NULL, "target");
    SPATE_FAILPOINT(sink_sent);
    while (rc == SPATE_OK || PQstatus(conn) == CONNECTION_OK) {
        ExecStatusType status;

        res = await_result(apply);
        if (!res)
            break;
        status = PQresultStatus(res);
        if (status == PGRES_COPY_IN && at < apply->step_count) {
            PQclear(res);
            if (!copy_in(apply, apply->steps[at].version) && rc == SPATE_OK)
                rc = spate_pg_fail(err, conn, NULL, "target");
            continue;
        }
        if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
            if (rc == SPATE_OK)
                rc = spate_pg_fail(err, conn, res, "target");
        } else if (at < apply->step_count) {
            count_rows(apply, &apply->steps[at++], res);
        }
        PQclear(res);
    }
    if (rc == SPATE_OK && at < apply->step_count)
        rc = spate_fail(err, SPATE_RETRY, "target: the connection ended in the middle of a batch");
    if (rc == SPATE_OK && apply->lost)
        rc = spate_fail(err, SPATE_FATAL, "a change found no row");
    spate_script_reset(apply);
    return rc;
}
