/* connector/stream.c - the walk of one row change, and the turn that drives it. */
#include "connector/stream.h"

#include "connector/explain.h"
#include "connector/lsn.h"
#include "connector/schemas.h"
#include "connector/status.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>

#define TURN_FRAMES   4096   /* then timers get their turn */
#define TURN_READS    1024   /* of one frame that is larger than libpq's buffer */
#define DENSE_US      1000   /* frames nearer than this are dense traffic */
#define PAUSE_NS      200000 /* what lets the server fill the socket instead of sending piecemeal (P97) */
#define LITTLE_BYTES  8192   /* fewer in the socket are not worth a read while more come */
#define GLANCE_MS     2000   /* how often it is looked whether somebody else opened an epoch */
#define FULL_RETRY_MS 5      /* the bus is full: how often it is asked again */

/* ---- waiting inside a turn ---- */

enum spate_rc spate_stream_serve(struct spate_stream *stream, int fd, struct spate_err *err)
{
    for (;;) {
        struct pollfd fds[3] = {{.fd = spate_signals_fd(), .events = POLLIN},
                                {.fd = spate_writer_fd(stream->publisher.stream), .events = POLLIN},
                                {.fd = fd, .events = POLLIN}};

        poll(fds, 3, fd < 0 ? 5 : 100);
        if (spate_signals_stop())
            return SPATE_END;
        if (spate_publisher_poll(&stream->publisher, &stream->ledger, err))
            return SPATE_FAIL;
        if (stream->repl.copying &&
            spate_replication_tend(&stream->repl, &stream->ledger, spate_clock_ms(), false, err))
            return SPATE_FAIL;
        spate_status_turn(stream->config->status, stream, spate_clock_ms());
        if (fd < 0 || fds[2].revents)
            return SPATE_OK;
    }
}

/* ---- schemas ---- */

enum spate_rc spate_stream_cover(struct spate_stream *stream, uint32_t oid, struct spate_table *raw,
                                 struct spate_cover **cover, struct spate_err *err)
{
    return spate_cover_make(stream->config->privacy, &stream->catalog, oid, raw, NULL, 0,
                            spate_relations_cover(&stream->relations, oid), cover, err);
}

enum spate_rc spate_stream_offer(struct spate_stream *stream, const struct spate_cover *cover,
                                 const struct spate_table **version, bool *fresh, struct spate_err *err)
{
    char name[300], quoted[320];
    enum spate_rc rc;

    *version = spate_versions_take(stream->versions, spate_relation_copy(cover->table), fresh);
    if (!*fresh)
        return SPATE_OK;
    while ((rc = spate_publisher_schema(&stream->publisher, *version, err)) == SPATE_AGAIN) {
        rc = spate_stream_serve(stream, -1, err);
        if (rc != SPATE_OK)
            return rc;
    }
    if (rc != SPATE_OK)
        return rc;
    snprintf(name, sizeof name, "%.*s.%.*s", SPATE_SLICE_ARG((*version)->schema),
             SPATE_SLICE_ARG((*version)->name));
    spate_log(SPATE_LOG_INFO, "schema", "table=%s v=%" PRIu32 " columns=%zu key=%zu",
              spate_log_quote(quoted, sizeof quoted, name), (*version)->v, (*version)->column_count,
              (*version)->key_count);
    return SPATE_OK;
}

enum spate_rc spate_stream_schemas_durable(struct spate_stream *stream, struct spate_err *err)
{
    enum spate_rc rc;

    while ((rc = spate_publisher_schemas_durable(&stream->publisher, 5, err)) == SPATE_AGAIN) {
        rc = spate_stream_serve(stream, -1, err);
        if (rc != SPATE_OK)
            return rc;
    }
    SPATE_FAILPOINT(connector_schemas_durable);
    return rc;
}

enum spate_rc spate_stream_version(struct spate_stream *stream, const struct spate_cover *cover,
                                   const struct spate_table **version, struct spate_err *err)
{
    bool fresh = false;
    enum spate_rc rc = spate_stream_offer(stream, cover, version, &fresh, err);

    if (rc != SPATE_OK || !fresh)
        return rc;
    return spate_stream_schemas_durable(stream, err);
}

/* ---- frame → change → line ---- */

/* For those who look: the held change was published, with so many bytes. */
static void count(struct spate_stream *stream, size_t bytes)
{
    stream->counts.changes[stream->tx.held.op]++;
    stream->counts.bytes += bytes;
}

/* The held change is known to be the final one of its transaction (end) or not (0). */
static enum spate_rc settle(struct spate_stream *stream, uint64_t end, struct spate_err *err)
{
    struct spate_change *change = &stream->tx.held;
    enum spate_rc rc;

    if (!stream->tx.holding)
        return SPATE_OK;
    change->end = end;
    if (end) {
        stream->counts.ended_n = change->n;
        stream->counts.ended_us = change->commit_us;
    }
    if (change->n <= stream->tail.last) {
        /* It stands on the bus already, durably: compared, not published again. */
        rc = spate_recheck_change(&stream->recheck, change, err);
        SPATE_FAILPOINT(connector_compared);
        if (rc == SPATE_OK && end)
            rc = spate_ledger_found(&stream->ledger, end, err);
    } else {
        const size_t before = stream->publisher.bytes.len;
        uint64_t token = 0;

        rc = end ? spate_ledger_add(&stream->ledger, end, &token, err) : SPATE_OK;
        if (rc == SPATE_OK)
            rc = spate_publisher_change(&stream->publisher, change, token, err);
        if (rc == SPATE_OK)
            count(stream, stream->publisher.bytes.len - before);
        stream->changes++;
        if (!end)
            SPATE_FAILPOINT(connector_mid_transaction);
    }
    spate_transaction_release(&stream->tx);
    return rc;
}

static enum spate_rc on_relation(struct spate_stream *stream, const struct spate_pgoutput *msg,
                                 struct spate_err *err)
{
    struct spate_table *table = NULL;
    const struct spate_table *version = NULL,
                             *before = spate_relations_find(&stream->relations, msg->relation.oid);
    struct spate_cover *cover = NULL;
    enum spate_rc rc = spate_relation_resolve(&stream->relations, &stream->catalog, msg, &table, err);

    if (rc == SPATE_OK)
        rc = spate_stream_cover(stream, msg->relation.oid, table, &cover, err);
    if (rc == SPATE_OK)
        rc = spate_stream_version(stream, cover, &version, err);
    if (rc == SPATE_OK)
        spate_relations_set(&stream->relations, msg->relation.oid, version, cover);
    else
        spate_cover_free(cover);
    /* It was altered: were rows rewritten with it (P32)? */
    if (rc == SPATE_OK && before && before != version)
        spate_status_survey_soon(stream->config->status);
    return rc;
}

static enum spate_rc on_commit(struct spate_stream *stream, const struct spate_pgoutput *msg,
                               struct spate_err *err)
{
    if (spate_transaction_commit(&stream->tx, msg, err))
        return SPATE_FAIL;
    spate_ledger_received(&stream->ledger, msg->commit.end_lsn);
    spate_weave_commit(stream->weave, msg->commit.end_lsn);
    if (stream->tx.holding)
        return settle(stream, msg->commit.end_lsn, err);
    /* Nothing of it was for us: its end is like a keepalive's walEnd, and a heartbeat will carry it. */
    if (msg->commit.end_lsn > stream->repl.wal_end)
        stream->repl.wal_end = msg->commit.end_lsn;
    return SPATE_OK;
}

/* It explains the new files that the tables have now. */
static void note_truncate(struct spate_stream *stream, const struct spate_pgoutput *msg)
{
    struct spate_slice at = msg->truncate.at;

    for (uint32_t i = 0; i < msg->truncate.count; i++)
        spate_told_truncate(stream->told, spate_pgoutput_oid(&at), stream->tx.xid);
}

/* Takes one frame; *taken: the frame's buffer is held now. Publishes one change at most. */
static enum spate_rc on_frame(struct spate_stream *stream, struct spate_frame *frame, bool *taken,
                              struct spate_err *err)
{
    struct spate_pgoutput msg;
    enum spate_rc rc = spate_pgoutput_decode(frame->data, &msg, err);

    if (rc != SPATE_OK)
        return rc;
    switch (msg.kind) {
    case SPATE_PGOUTPUT_BEGIN:
        rc = spate_transaction_begin(&stream->tx, &msg, err);
        if (rc == SPATE_OK)
            spate_weave_begin(stream->weave, msg.begin.xid, msg.begin.commit_lsn);
        return rc;
    case SPATE_PGOUTPUT_COMMIT:
        return on_commit(stream, &msg, err);
    case SPATE_PGOUTPUT_RELATION:
        return on_relation(stream, &msg, err);
    case SPATE_PGOUTPUT_ORIGIN:
    case SPATE_PGOUTPUT_TYPE:
        return SPATE_OK; /* what a type is, the catalog says (P36) */
    case SPATE_PGOUTPUT_MESSAGE:
        if (!msg.message.transactional)
            return SPATE_OK; /* it may belong to a transaction that rolls back (P24) */
        if (spate_slice_is(msg.message.prefix, SPATE_NUDGE_PREFIX))
            return SPATE_OK; /* our own, to wake the stream: no change */
        break;
    case SPATE_PGOUTPUT_TRUNCATE:
        note_truncate(stream, &msg);
        break;
    case SPATE_PGOUTPUT_INSERT:
    case SPATE_PGOUTPUT_UPDATE:
    case SPATE_PGOUTPUT_DELETE:
        break;
    }
    rc = settle(stream, 0, err);
    if (rc != SPATE_OK)
        return rc;
    rc = spate_transaction_change(&stream->tx, &stream->relations, &msg, frame->buffer, taken, err);
    if (rc == SPATE_OK && *taken)
        spate_weave_change(stream->weave, &stream->tx.held);
    return rc;
}

/* ---- socket → frame ---- */

static bool has_room(const struct spate_stream *stream)
{
    return !spate_publisher_full(&stream->publisher) && !spate_ledger_full(&stream->ledger) &&
           !spate_weave_emitting(stream->weave);
}

static enum spate_rc server_leaves(struct spate_err *err)
{
    snprintf(err->sqlstate, sizeof err->sqlstate, "57P01");
    return spate_fail(err, SPATE_RETRY,
                      "the source ended the stream in order: it is shutting down or restarting");
}

/* All that the socket has, as long as there is room. */
static enum spate_rc drain(struct spate_stream *stream, int64_t now_ms, struct spate_err *err)
{
    unsigned reads = 0, enough = PQsslInUse(stream->repl.conn) ? 3 : 1;
    int frames = 0;

    stream->dry = false;
    while (frames < TURN_FRAMES && has_room(stream) && !spate_weave_wants(stream->weave, stream) &&
           !spate_told_wants(stream->told, stream)) {
        struct spate_frame frame = {0};
        bool taken = false;
        enum spate_rc rc = spate_replication_next(&stream->repl, &stream->ledger, &frame, err);

        if (rc == SPATE_AGAIN) {
            /* In dense traffic the socket is left to fill: reading it as fast as the server writes makes both
             * work on it at once, message by message (P97). */
            if (frames > 0 && stream->dense && spate_replication_queued(&stream->repl) < LITTLE_BYTES) {
                stream->dry = true;
                break;
            }
            /* TLS may hold back up to one record that poll cannot see: asked a few times more. */
            if (reads >= enough) {
                stream->dry = !spate_replication_readable(&stream->repl);
                if (stream->dry || reads > TURN_READS)
                    break;
                stream->repl.read_ms = now_ms;
            }
            if (spate_replication_read(&stream->repl, err))
                return spate_explain(stream, err);
            reads++;
            continue;
        }
        if (rc != SPATE_OK)
            return rc == SPATE_END ? server_leaves(err) : spate_explain(stream, err);
        reads = 0;
        frames++;
        stream->frame_lsn = frame.lsn ? frame.lsn : stream->frame_lsn;
        SPATE_FAILPOINT(connector_received);
        rc = on_frame(stream, &frame, &taken, err);
        if (!taken)
            PQfreemem(frame.buffer);
        if (rc != SPATE_OK) {
            if (rc == SPATE_FAIL && !err->lsn)
                err->lsn = stream->tx.open ? stream->tx.commit_lsn : stream->frame_lsn;
            return rc;
        }
        if (spate_publisher_full(&stream->publisher) &&
            spate_publisher_flush(&stream->publisher, err) == SPATE_FAIL)
            return SPATE_FAIL;
    }
    if (frames > 0) {
        int64_t now_us = spate_clock_us();

        stream->dense = now_us - stream->frame_us < DENSE_US;
        stream->frame_us = now_us;
        stream->repl.read_ms = now_ms;
    } else {
        stream->dense = false;
    }
    return SPATE_OK;
}

/* ---- what is carried when nothing changes ---- */

/* P75: walEnd never passes a transaction that the server has not sent. When it passed the one that T belongs
 * to, and T did not come again, the source no longer has what the bus holds. */
static enum spate_rc check_tail_came(struct spate_stream *stream, struct spate_err *err)
{
    if (stream->repl.wal_end <= stream->tail.last_commit)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_FENCED;
    err->lsn = stream->tail.last_commit;
    return spate_fail(
        err, SPATE_FATAL,
        "the bus holds changes up to number %" PRIu64 ", committed at %X/%X, and the source, which "
        "is at %X/%X, sends again only those before number %" PRIu64 ". It was restored to another "
        "history, or tables were taken out of the publication's past. Nothing more was confirmed. When "
        "the loss is accepted: spate connector -c FILE --new-epoch " SPATE_AFTER_NEW_EPOCH,
        stream->tail.last, LSN(stream->tail.last_commit), LSN(stream->repl.wal_end), stream->tx.next_n);
}

/* How long the topic may go without a record: a quarter of what it keeps them. */
static int64_t keep_alive_ms(const struct spate_stream *stream)
{
    return spate_writer_retention_ms(stream->publisher.stream) / 4;
}

/* P4: nothing is confirmed that the bus does not carry, so walEnd is carried first. */
static enum spate_rc heartbeat(struct spate_stream *stream, int64_t now_ms, struct spate_err *err)
{
    uint64_t wal_end = stream->repl.wal_end, token;

    if (stream->tx.open || stream->tx.holding || !spate_ledger_idle(&stream->ledger) ||
        !spate_publisher_empty(&stream->publisher) || spate_weave_emitting(stream->weave))
        return SPATE_OK;
    if (stream->tx.next_n <= stream->tail.last)
        return check_tail_came(stream, err);
    /* The bus already carries everything up to the floor, and the source has come past it. */
    if (stream->floor > stream->ledger.published && wal_end >= stream->floor)
        return spate_ledger_found(&stream->ledger, stream->floor, err);
    if (wal_end <= stream->ledger.published || wal_end <= stream->floor) {
        /* Nothing new to say. A topic that age would empty must not lose its last word: without it a restart
         * could not tell an idle stream from a lost one. */
        if (!stream->ledger.confirmed || now_ms - stream->publisher.flushed_ms < keep_alive_ms(stream))
            return SPATE_OK;
        wal_end = stream->ledger.confirmed > stream->floor ? stream->ledger.confirmed : stream->floor;
        token = 0;
    } else {
        if (!stream->repl.reply_wanted && now_ms - stream->heartbeat_ms < stream->config->heartbeat_ms)
            return SPATE_OK;
        if (spate_ledger_add(&stream->ledger, wal_end, &token, err))
            return SPATE_FAIL;
    }
    spate_publisher_heartbeat(&stream->publisher,
                              &(struct spate_heartbeat){.at = stream->tx.next_n - 1,
                                                        .epoch = stream->tx.epoch,
                                                        .end = wal_end,
                                                        .wall_us = spate_clock_wall_us(),
                                                        .source = stream->tx.source},
                              token);
    stream->heartbeat_ms = now_ms;
    stream->counts.heartbeats++;
    SPATE_FAILPOINT(connector_heartbeat);
    spate_log(SPATE_LOG_DEBUG, "heartbeat", "lsn=%X/%X n=%" PRIu64, LSN(wal_end), stream->tx.next_n - 1);
    return spate_publisher_flush(&stream->publisher, err) == SPATE_FAIL ? SPATE_FAIL : SPATE_OK;
}

/* F9: a source that stops in order waits until all of its WAL is confirmed, and what a bus that is down does
 * not take is not. So the connection is given up after the time after which the source would give up a
 * connector that is dead. Nothing is lost by it: it comes again, when the bus does. When the bus is full
 * nothing more is read, and so it cannot be known what the source is about to do. */
static enum spate_rc heed_standstill(struct spate_stream *stream, int64_t now_ms, struct spate_err *err)
{
    struct spate_writer *writer = stream->publisher.stream;
    uint64_t durable = spate_writer_durable(writer).at;
    bool pressed = spate_replication_pressed(&stream->repl, now_ms), full = !has_room(stream);

    if (durable != stream->durable || durable >= spate_writer_end(writer).at) {
        stream->durable = durable;
        stream->durable_ms = now_ms;
    }
    if ((!pressed && !full) || now_ms - stream->durable_ms <= spate_replication_patience_ms(&stream->repl))
        return SPATE_OK;
    return spate_fail(
        err, SPATE_RETRY,
        "the bus has made nothing durable for %" PRId64
        " s, and %s: the connection to the source is given up, so that a shutdown of the source is "
        "not held up. What is not confirmed comes again when the bus is back",
        (now_ms - stream->durable_ms) / 1000,
        pressed ? "the source waits for that to shut down" : "it is full");
}

/* ---- the turn ---- */

enum spate_rc spate_stream_turn(struct spate_stream *stream, int64_t now_ms, struct spate_err *err)
{
    enum spate_rc rc;

    if (spate_signals_stop())
        return SPATE_END;
    /* What the bus made durable first, so that the status at the end of this turn says it. */
    if (spate_publisher_poll(&stream->publisher, &stream->ledger, err))
        return SPATE_FAIL;
    /* A batch that the bus would not take is offered again before anything is read: back pressure. */
    if (spate_publisher_full(&stream->publisher) &&
        spate_publisher_flush(&stream->publisher, err) == SPATE_FAIL)
        return SPATE_FAIL;
    rc = drain(stream, now_ms, err);
    if (rc == SPATE_OK) {
        rc = spate_weave_turn(stream->weave, stream, now_ms, err);
        rc = rc == SPATE_AGAIN ? SPATE_OK : rc; /* a chunk is in the middle: it goes on in the next turn */
    }
    if (rc == SPATE_OK)
        rc = spate_told_turn(stream->told, stream, now_ms, err);
    if (rc != SPATE_OK)
        return rc;
    /* The socket ran dry, or the turn is over: nothing waits in a batch for more to come. */
    if (spate_publisher_flush(&stream->publisher, err) == SPATE_FAIL)
        return SPATE_FAIL;
    if (heartbeat(stream, now_ms, err))
        return SPATE_FAIL;
    if (heed_standstill(stream, now_ms, err))
        return SPATE_FAIL;
    if (now_ms - stream->glance_ms >= GLANCE_MS) {
        stream->glance_ms = now_ms;
        rc = spate_schemas_glance(stream, err);
        if (rc != SPATE_OK)
            return rc;
    }
    /* Last, and once per turn however often the server asked (P10). Back pressure never stops it (P6). */
    return spate_replication_tend(&stream->repl, &stream->ledger, now_ms, has_room(stream), err);
}

static int64_t heartbeat_due_ms(const struct spate_stream *stream, int64_t now_ms)
{
    int64_t due = stream->heartbeat_ms + stream->config->heartbeat_ms - now_ms;

    if (stream->repl.wal_end <= stream->ledger.published || due > 1000)
        return 1000;
    return due < 0 ? FULL_RETRY_MS : due;
}

void spate_stream_wait(struct spate_stream *stream, int64_t now_ms)
{
    bool room = has_room(stream) && spate_publisher_empty(&stream->publisher);
    int64_t timeout_ms = spate_replication_due_ms(&stream->repl, &stream->ledger, now_ms);
    int64_t began_us = room ? 0 : spate_clock_us();
    int writer_fd = spate_writer_fd(stream->publisher.stream);
    struct pollfd fds[5] = {{.fd = spate_signals_fd(), .events = POLLIN},
                            {.fd = writer_fd, .events = POLLIN},
                            {.fd = PQsocket(stream->repl.conn)}};

    spate_weave_fds(stream->weave, fds + 3);
    if (room && !stream->dry)
        return;
    if (room && stream->dense) {
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        return;
    }
    if (heartbeat_due_ms(stream, now_ms) < timeout_ms)
        timeout_ms = heartbeat_due_ms(stream, now_ms);
    if ((!room || (writer_fd < 0 && !spate_ledger_idle(&stream->ledger))) && timeout_ms > FULL_RETRY_MS)
        timeout_ms = FULL_RETRY_MS;
    if (room && (spate_weave_wants(stream->weave, stream) || spate_told_wants(stream->told, stream)))
        return;
    if (room && spate_told_due_ms(stream->told) < timeout_ms)
        timeout_ms = spate_told_due_ms(stream->told);
    if (room && spate_weave_due_ms(stream->weave, now_ms) < timeout_ms)
        timeout_ms = spate_weave_due_ms(stream->weave, now_ms);
    if (room)
        fds[2].events |= POLLIN;
    if (stream->repl.flush_pending)
        fds[2].events |= POLLOUT;
    poll(fds, 5, (int)timeout_ms);
    if (!room) {
        uint64_t stalled_us = (uint64_t)(spate_clock_us() - began_us);

        stream->stalled_us += stalled_us;
        stream->counts.stalled_us += stalled_us;
    }
    if (fds[2].revents & POLLIN)
        stream->repl.read_ms = spate_clock_ms();
}
