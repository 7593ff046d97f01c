/* connector/connector.c - the loop that reads like a table of contents. */
#include "connector/connector.h"

#include "connector/lsn.h"
#include "connector/privacy.h"
#include "connector/session.h"
#include "connector/status.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define LEDGER_CAP       65536 /* unconfirmed transactions; beyond it the source waits */
#define BACKOFF_FIRST_MS 100
#define BACKOFF_LAST_MS  10000

struct connector {
    struct spate_privacy *privacy;
    struct spate_connector_config config; /* a copy that knows where to report to */
    struct spate_stream stream;
    bool new_epoch;
    bool connected_before;
    int64_t backoff_ms;
    uint64_t reached; /* the greatest LSN that a connection before this one confirmed */
    struct spate_log_limit limit;
    const char *said_file; /* where the error that was logged last was raised */
    int said_line;
    uint64_t poison_lsn; /* where undecodable bytes came last time */
    unsigned random;
};

static enum spate_rc back_off(struct connector *c, const struct spate_err *err)
{
    struct pollfd fd = {.fd = spate_signals_fd(), .events = POLLIN};
    int64_t pause_ms = spate_pg_pace_ms(err->sqlstate, c->backoff_ms);
    unsigned hidden = 0;

    if (c->stream.ledger.confirmed > c->reached)
        c->reached = c->stream.ledger.confirmed;
    /* The same failure again is told sparsely; another one at once. */
    if (err->file != c->said_file || err->line != c->said_line)
        c->limit.next_ms = 0;
    c->said_file = err->file;
    c->said_line = err->line;
    if (spate_log_due(&c->limit, spate_clock_ms(), 10000, &hidden)) {
        spate_log_err(SPATE_LOG_WARN, "disconnected", err);
        spate_log(SPATE_LOG_INFO, "reconnecting", "in_ms=%" PRId64 " unsaid=%u", pause_ms, hidden);
    }
    c->backoff_ms = c->backoff_ms * 2 > BACKOFF_LAST_MS ? BACKOFF_LAST_MS : c->backoff_ms * 2;
    /* Jitter, so that many connectors do not come back in step. */
    pause_ms = pause_ms * 3 / 4 + rand_r(&c->random) % (pause_ms / 2 + 1);
    poll(&fd, 1, (int)pause_ms);
    return spate_signals_stop() ? SPATE_END : SPATE_OK;
}

static enum spate_rc stream_until_over(struct connector *c, struct spate_err *err)
{
    int64_t began_ms = spate_clock_ms(), now_ms = began_ms;
    enum spate_rc rc;

    while ((rc = spate_stream_turn(&c->stream, now_ms, err)) == SPATE_OK) {
        spate_stream_wait(&c->stream, now_ms);
        now_ms = spate_clock_ms();
        spate_status_turn(c->config.status, &c->stream, now_ms);
        /* It held for longer than the pause before it, or came further than any before: the next failure is a
         * new one, not the same again. */
        if (c->backoff_ms > BACKOFF_FIRST_MS &&
            (now_ms - began_ms > c->backoff_ms || c->stream.ledger.confirmed > c->reached)) {
            c->backoff_ms = BACKOFF_FIRST_MS;
            c->limit = (struct spate_log_limit){0};
        }
    }
    return rc;
}

/* The connection is over. What the bus has made durable meanwhile is told to the server if it still listens:
 * a server that shuts down waits for exactly that (P10). */
static void leave(struct connector *c)
{
    struct spate_err ignored = {0};

    if (c->stream.publisher.stream && !c->stream.publisher.failed &&
        spate_publisher_poll(&c->stream.publisher, &c->stream.ledger, &ignored) == SPATE_OK)
        spate_replication_finish(&c->stream.repl, &c->stream.ledger, 500);
    spate_session_close(&c->stream);
}

/* Bytes that make no sense may be a broken wire: tried once more, then it is the source that sends them. */
static bool worth_another_try(struct connector *c, const struct spate_err *err)
{
    if (err->verdict == SPATE_RETRY)
        return true;
    if (err->verdict != SPATE_FATAL || err->exit_code != SPATE_EXIT_OK || !err->lsn || err->sqlstate[0] ||
        err->lsn == c->poison_lsn)
        return false;
    c->poison_lsn = err->lsn;
    return true;
}

static enum spate_rc session(struct connector *c, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (!c->stream.publisher.stream) {
        spate_status_state(c->config.status, SPATE_CONNECTOR_WAITING_BUS, NULL);
        rc = spate_session_bus(&c->stream, err);
    }
    /* What asks for snapshots is heard from now on; the topics are there. */
    if (rc == SPATE_OK && !c->stream.weave)
        rc = spate_weave_open(&c->config, &c->stream.weave, err);
    if (rc == SPATE_OK) {
        spate_status_state(c->config.status, SPATE_CONNECTOR_OPENING, NULL);
        rc = spate_session_open(&c->stream, &c->new_epoch, !c->connected_before, err);
    }
    /* What it warns about is said once, not at each attempt to get the slot. */
    c->connected_before = c->connected_before || c->stream.sql;
    if (rc == SPATE_OK) {
        spate_status_streaming(c->config.status, &c->stream);
        rc = stream_until_over(c, err);
    }
    return rc;
}

/* SIGTERM: nothing more is read; what was read is made durable, and said. */
static enum spate_rc stop(struct connector *c, struct spate_err *err)
{
    struct spate_stream *stream = &c->stream;
    int64_t until_ms = spate_clock_ms() + stream->config->stop_deadline_ms;
    enum spate_rc rc = SPATE_OK;

    spate_status_state(c->config.status, SPATE_CONNECTOR_STOPPING, NULL);
    if (!stream->publisher.stream || !stream->repl.copying) {
        spate_session_close(stream);
        return SPATE_OK;
    }
    spate_transaction_release(&stream->tx);
    for (;;) {
        rc = spate_publisher_flush(&stream->publisher, err);
        if (rc == SPATE_FAIL || spate_publisher_poll(&stream->publisher, &stream->ledger, err))
            return SPATE_FAIL;
        if (rc == SPATE_OK && spate_ledger_idle(&stream->ledger))
            break;
        if (spate_clock_ms() > until_ms) {
            err->exit_code = SPATE_EXIT_DEADLINE;
            err->lsn = stream->ledger.confirmed;
            return spate_fail(
                err, SPATE_FATAL,
                "told to stop, but the bus did not make everything durable within %" PRId64
                " ms (stop_deadline): confirmed up to %X/%X; the rest is read again at the next start",
                stream->config->stop_deadline_ms, LSN(stream->ledger.confirmed));
        }
        struct pollfd fd = {.fd = spate_writer_fd(stream->publisher.stream), .events = POLLIN};
        poll(&fd, 1, 5);
    }
    SPATE_FAILPOINT(connector_stop);
    spate_replication_finish(&stream->repl, &stream->ledger, 1000);
    spate_log(SPATE_LOG_INFO, "stopped",
              "slot=%s lsn=%X/%X epoch=%" PRIu64 " n=%" PRIu64 " changes=%" PRIu64 " stalled_ms=%" PRIu64,
              stream->config->source.slot, LSN(stream->ledger.confirmed), stream->tx.epoch,
              stream->tx.next_n - 1, stream->changes, stream->stalled_us / 1000);
    spate_session_close(stream);
    return SPATE_OK;
}

static void connector_free(struct connector *c)
{
    spate_session_close(&c->stream);
    spate_weave_close(c->stream.weave);
    spate_publisher_close(&c->stream.publisher);
    spate_transaction_fini(&c->stream.tx);
    spate_relations_fini(&c->stream.relations);
    spate_versions_free(c->stream.versions);
    spate_told_free(c->stream.told);
    spate_epoch_drop(&c->stream.epoch);
    spate_ledger_fini(&c->stream.ledger);
    spate_privacy_free(c->privacy);
    free(c);
}

enum spate_rc spate_connector_run(const struct spate_connector_config *config, bool new_epoch,
                                  struct spate_err *err)
{
    struct connector *c = calloc(1, sizeof *c);
    enum spate_rc rc;
    bool again;

    if (!c)
        return spate_fail(err, SPATE_FATAL, "no memory to start");
    if (spate_privacy_new(config, &c->privacy, err) != SPATE_OK) {
        free(c);
        return SPATE_FAIL;
    }
    c->config = *config;
    c->config.privacy = c->privacy;
    c->config.status = spate_status_open(&c->config);
    c->stream.config = &c->config;
    c->stream.told = spate_told_new();
    c->new_epoch = new_epoch;
    c->backoff_ms = BACKOFF_FIRST_MS;
    c->random = (unsigned)spate_clock_us();
    spate_ledger_init(&c->stream.ledger, LEDGER_CAP);
    spate_log_level_set((enum spate_log_level)config->log_level);
    for (;;) {
        *err = (struct spate_err){0};
        rc = session(c, err);
        if (rc == SPATE_END) {
            rc = stop(c, err);
            break;
        }
        again = worth_another_try(c, err);
        spate_status_failed(c->config.status, err, again);
        leave(c);
        if (c->stream.publisher.failed)
            spate_publisher_close(&c->stream.publisher);
        if (!again)
            break;
        if (back_off(c, err) == SPATE_END) {
            rc = SPATE_OK;
            break;
        }
    }
    spate_status_close(c->config.status);
    connector_free(c);
    return rc;
}
