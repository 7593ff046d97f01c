/* connector/session.c - the order of events before the first frame. */
#include "connector/session.h"

#include "connector/check.h"
#include "connector/explain.h"
#include "connector/failover.h"
#include "connector/lists.h"
#include "connector/lsn.h"
#include "connector/opening.h"
#include "connector/preflight.h"
#include "connector/privacy.h"
#include "connector/schemas.h"
#include "connector/setup.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"

#include <inttypes.h>
#include <stdio.h>

#define CONNECT_MS 15000
#define ROUNDS     6 /* setting up, an epoch on purpose, and looking once more: never more than that */

/* ---- the bus ---- */

/* The bus was opened anew: is it the one that this process has published to (K10)? */
static enum spate_rc same_bus(const struct spate_stream *stream, const struct spate_epoch_record *before,
                              struct spate_err *err)
{
    const struct spate_epoch *now = &stream->epoch.epoch, *then = &before->epoch;

    if (!before->present ||
        (stream->epoch.present &&
         (now->epoch > then->epoch || (now->epoch == then->epoch && spate_slice_eq(now->uuid, then->uuid)))))
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s held epoch %" PRIu64 " (%.*s) and holds %s now: the bus was emptied or "
        "replaced while this connector was publishing to it. Nothing more was confirmed. When the "
        "loss is accepted: spate connector -c FILE --new-epoch " SPATE_AFTER_NEW_EPOCH,
        stream->publisher.schemas_topic, then->epoch, SPATE_SLICE_ARG(then->uuid),
        stream->epoch.present ? "another one" : "none");
}

enum spate_rc spate_session_bus(struct spate_stream *stream, struct spate_err *err)
{
    struct spate_epoch_record before = stream->epoch;
    enum spate_rc rc = spate_publisher_open(&stream->publisher, stream->config, err);

    /* What an earlier opening had found may be more than the bus kept. */
    spate_relations_fini(&stream->relations);
    spate_versions_free(stream->versions);
    stream->versions = spate_versions_new();
    spate_told_forget(stream->told);
    stream->epoch = (struct spate_epoch_record){0};
    SPATE_FAILPOINT(connector_bus_opened);
    if (rc == SPATE_OK)
        rc = spate_schemas_refresh(stream, err);
    if (rc == SPATE_OK)
        rc = same_bus(stream, &before, err);
    /* What was known stays known until the bus was seen again. */
    if (rc == SPATE_OK || !before.present) {
        spate_epoch_drop(&before);
    } else {
        spate_epoch_drop(&stream->epoch);
        stream->epoch = before;
    }
    /* Half of `_schemas` would be taken for all of it: an open publisher says that it was read to its end. */
    if (rc != SPATE_OK)
        spate_publisher_close(&stream->publisher);
    return rc;
}

/* ---- source ---- */

static enum spate_rc catalog_wait(void *arg, int fd, struct spate_err *err)
{
    return spate_stream_serve(arg, fd, err);
}

/* first: in this process. Whoever runs on is not sent away by what changes later: the server's own words come
 * then, and what is missing is waited for (P67). */
static enum spate_rc connect_source(struct spate_stream *stream, bool first, struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    char application[80];
    struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    enum spate_rc rc;

    snprintf(application, sizeof application, "spate_%.60s", config->name);
    rc = spate_pg_connect(&where, CONNECT_MS, &stream->sql, err);
    if (rc == SPATE_OK && first)
        rc = spate_check_start(stream->sql, config, err);
    if (rc != SPATE_OK)
        return rc;
    where.replication = true;
    rc = spate_replication_connect(&stream->repl, &where, err);
    stream->catalog = (struct spate_catalog){
        .conn = stream->sql,
        .publication = config->source.publication,
        .wait = catalog_wait,
        .arg = stream,
    };
    return rc;
}

/* ---- the place ---- */

/* One connector at a time opens an epoch or takes the slot over: on a bus that knows no owner two of them
 * would open two epochs, or one would go on in an epoch that the other has just ended (K15). The lock is the
 * session's on the source, and goes with it. */
static enum spate_rc lock_opening(struct spate_stream *stream, struct spate_err *err)
{
    const char *slot = stream->config->source.slot;
    PGresult *res = NULL;
    bool mine;
    enum spate_rc rc = spate_pg_exec_params(
        stream->sql,
        "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('spate epoch ' || $1, 0))", 1,
        &slot, PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    mine = PQntuples(res) == 1 && PQgetvalue(res, 0, 0)[0] == 't';
    PQclear(res);
    return mine ? SPATE_OK
                : spate_fail(err, SPATE_RETRY,
                             "another connector is starting from replication slot \"%s\" at this moment",
                             slot);
}

static enum spate_rc unlock_opening(struct spate_stream *stream, struct spate_err *err)
{
    return spate_pg_exec_params(stream->sql, "SELECT pg_catalog.pg_advisory_unlock_all()", 0, NULL,
                                PGRES_TUPLES_OK, NULL, err);
}

/* Held shared by a connector while it streams, and alone by one that opens an epoch: whatever slots they
 * read, those of one name on one source know of each other by it. *mine: it was to be had. */
static enum spate_rc lock_stream(struct spate_stream *stream, bool alone, bool *mine, struct spate_err *err)
{
    const char *name = stream->config->name;
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(
        stream->sql,
        alone
            ? "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('spate stream ' || $1, 0))"
            : "SELECT pg_catalog.pg_try_advisory_lock_shared("
              "pg_catalog.hashtextextended('spate stream ' || $1, 0))",
        1, &name, PGRES_TUPLES_OK, &res, err);

    *mine = rc == SPATE_OK && PQntuples(res) == 1 && PQgetvalue(res, 0, 0)[0] == 't';
    PQclear(res);
    return rc;
}

/* Who streams under our name. */
static enum spate_rc name_streamer(struct spate_stream *stream, struct spate_err *err)
{
    const char *name = stream->config->name;
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(
        stream->sql,
        "SELECT pg_catalog.string_agg(pid::text, ', ') FROM pg_catalog.pg_locks, LATERAL (SELECT"
        " pg_catalog.hashtextextended('spate stream ' || $1, 0) AS key) k WHERE locktype = 'advisory' AND "
        "granted"
        " AND pid <> pg_catalog.pg_backend_pid() AND (classid::bigint << 32 | objid::bigint) = k.key",
        1, &name, PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    rc = spate_fail(
        err, SPATE_RETRY,
        "a new epoch of stream \"%s\" is to be opened, and another connector of that name streams at "
        "this moment (server process %s): what it publishes and confirms would be dropped by every "
        "reader. Stop it first, or give one of the two another name (connector:); the epoch is opened "
        "when it is gone. Is only its connection left (a frozen process, a host that died): SELECT "
        "pg_terminate_backend(PID) for each of them",
        name, PQgetvalue(res, 0, 0));
    PQclear(res);
    return rc;
}

/* An epoch is never opened beside a connector that is still streaming: what that one confirms would fall into
 * the past. SPATE_AGAIN: opening is ours now, and what was found before may be old: look again. */
static enum spate_rc take_opening(struct spate_stream *stream, const struct spate_source_state *source,
                                  bool *mine, struct spate_err *err)
{
    const char *slot = stream->config->source.slot;
    enum spate_rc rc;

    if (*mine)
        return SPATE_OK;
    if (source->slot.exists && source->slot.active_pid)
        return spate_fail(
            err, SPATE_RETRY,
            "a new epoch is to be opened, and replication slot \"%s\" is in use by server process "
            "%" PRId64 ": another connector, or an earlier connection that the server has not yet "
            "given up (at most wal_sender_timeout). It is opened when the slot is free",
            slot, source->slot.active_pid);
    rc = lock_opening(stream, err);
    if (rc == SPATE_OK)
        rc = lock_stream(stream, true, mine, err);
    if (rc == SPATE_OK && !*mine)
        rc = name_streamer(stream, err);
    if (rc == SPATE_OK)
        rc = spate_schemas_refresh(stream, err);
    *mine = rc == SPATE_OK;
    return rc == SPATE_OK ? SPATE_AGAIN : rc;
}

/* A standby took over, and the stream goes on there (P73). */
static enum spate_rc continue_on_standby(struct spate_stream *stream, const struct spate_source_state *source,
                                         struct spate_err *err)
{
    char why[160];

    snprintf(why, sizeof why,
             "a standby took over: timeline %" PRIu32
             ", which parted at %X/%X, beyond all that the bus holds",
             source->timeline, LSN(source->fork));
    return spate_opening_continue(stream, source, why, err);
}

/* Looks at source and bus until they meet. *source is what was true then. */
static enum spate_rc find_place(struct spate_stream *stream, struct spate_source_state *source,
                                bool *new_epoch, struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    bool mine = false;

    for (int round = 0; round < ROUNDS; round++) {
        struct spate_err verdict = {0};
        enum spate_continuity continuity;
        enum spate_rc rc;

        /* Durable before it is believed: what only stood in memory could be confirmed and then be lost. */
        rc = spate_publisher_settle(&stream->publisher, &stream->ledger, err);
        if (rc == SPATE_OK)
            rc = spate_preflight_state(&stream->repl, stream->sql, config->source.slot, source, err);
        SPATE_FAILPOINT(connector_tail);
        if (rc == SPATE_OK)
            rc = spate_recovery_tail(stream->publisher.bus, stream->publisher.topic, &stream->epoch,
                                     source->slot.confirmed, &stream->tail, err);
        /* A connector that still streams may have published meanwhile: the WAL is as new as what was found.
         */
        if (rc == SPATE_OK)
            rc = spate_preflight_identify(&stream->repl, source, err);
        if (rc == SPATE_OK && stream->epoch.present)
            rc = spate_failover_look(&stream->repl, stream->epoch.epoch.identity.timeline, source, err);
        if (rc != SPATE_OK)
            return rc;
        continuity = spate_epoch_judge(config->source.slot, config->source.publication, source,
                                       &stream->epoch, &stream->tail.bus, &verdict);
        if (continuity == SPATE_CONTINUITY_FIRST || continuity == SPATE_CONTINUITY_HALF ||
            continuity == SPATE_CONTINUITY_FAILED_OVER ||
            (*new_epoch && continuity != SPATE_CONTINUITY_UNUSABLE)) {
            rc = take_opening(stream, source, &mine, err);
            if (rc == SPATE_AGAIN)
                continue;
            if (rc != SPATE_OK)
                return rc;
        }
        switch (continuity) {
        case SPATE_CONTINUITY_UNUSABLE:
            *err = verdict;
            return SPATE_FAIL;
        case SPATE_CONTINUITY_FIRST:
            if (*new_epoch)
                spate_log(SPATE_LOG_INFO, "new-epoch",
                          "text=\"this stream was never started: an ordinary first start\"");
            *new_epoch = false;
            rc = spate_opening_first(stream, source, err);
            break;
        case SPATE_CONTINUITY_HALF:
            rc = spate_opening_finish(stream, err);
            break;
        case SPATE_CONTINUITY_BROKEN:
            if (stream->tail.bus.stream_empty || stream->tail.bus.remade || stream->tail.bus.undecided)
                spate_err_context(&verdict, "topic %s", stream->publisher.topic);
            if (!*new_epoch) {
                *err = verdict;
                return SPATE_FAIL;
            }
            spate_log_err(SPATE_LOG_WARN, "continuity-broken", &verdict);
            rc = spate_opening_break(stream, source, verdict.text, err);
            *new_epoch = rc != SPATE_OK;
            break;
        case SPATE_CONTINUITY_GOES_ON:
            if (!*new_epoch)
                return mine ? unlock_opening(stream, err) : SPATE_OK;
            rc = spate_opening_continue(stream, source, "asked for with --new-epoch", err);
            *new_epoch = rc != SPATE_OK;
            break;
        case SPATE_CONTINUITY_FAILED_OVER:
            rc = continue_on_standby(stream, source, err);
            *new_epoch &= rc != SPATE_OK;
            break;
        }
        if (rc != SPATE_OK)
            return rc;
    }
    return spate_fail(err, SPATE_RETRY,
                      "source and bus did not come to rest: somebody else moves slot \"%s\"",
                      config->source.slot);
}

/* P55: verified at every connect, since a server from 18 on skips in silence. */
static enum spate_rc need_publication(struct spate_stream *stream, struct spate_err *err)
{
    const char *publication = stream->config->source.publication;
    bool exists = false;
    enum spate_rc rc = spate_preflight_publication(stream->sql, publication, &exists, err);

    if (rc != SPATE_OK || exists)
        return rc;
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(
        err, SPATE_FATAL,
        "publication \"%s\" is gone from the source: changes made without it cannot be read. Create it "
        "again; changes made in between are refused by the server, and then the slot must be made anew: "
        "drop slot \"%s\" and run spate connector -c FILE --new-epoch",
        publication, stream->config->source.slot);
}

/* P62: who holds our slot? */
static void name_owner(struct spate_stream *stream, struct spate_err *err)
{
    const char *slot = stream->config->source.slot;
    struct spate_err ignored = {0};
    PGresult *res = NULL;
    char words[400];

    if (spate_pg_exec_params(
            stream->sql,
            "SELECT a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''),"
            " coalesce(pg_catalog.host(a.client_addr), 'local socket')"
            " FROM pg_catalog.pg_replication_slots s"
            " JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1",
            1, &slot, PGRES_TUPLES_OK, &res, &ignored) != SPATE_OK)
        return;
    if (PQntuples(res) == 1) {
        snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
        spate_fail(err, SPATE_RETRY,
                   "replication slot \"%s\" is in use by server process %s (user %s, application %s, from "
                   "%s): another "
                   "connector, or our own earlier connection that the server has not yet given up (at most "
                   "wal_sender_timeout). It is tried again. Server: %s",
                   slot, PQgetvalue(res, 0, 0), PQgetvalue(res, 0, 1), PQgetvalue(res, 0, 2),
                   PQgetvalue(res, 0, 3), words);
    }
    PQclear(res);
}

static enum spate_rc start(struct spate_stream *stream, uint64_t confirmed, struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    const uint64_t epoch = stream->epoch.epoch.epoch;
    uint64_t again = 0;
    bool shared = false;
    enum spate_rc rc = lock_opening(stream, err);

    if (rc != SPATE_OK)
        return rc;
    rc = spate_replication_start(&stream->repl, config->source.slot, config->source.publication, confirmed,
                                 err);
    if (rc == SPATE_FAIL && strcmp(err->sqlstate, "55006") == 0)
        name_owner(stream, err);
    if (rc == SPATE_FAIL)
        return spate_explain_start(stream, err);
    if (rc != SPATE_OK)
        return rc;
    /* While we waited for the slot its former owner may have confirmed more, and the server forwards an
     * old start without a word. Now that the slot is ours it can no longer move. */
    rc = spate_preflight_confirmed(stream->sql, config->source.slot, &again, err);
    if (rc == SPATE_OK && again != confirmed)
        return spate_fail(
            err, SPATE_RETRY,
            "replication slot \"%s\" moved from %X/%X to %X/%X while it was being started: starting over",
            config->source.slot, LSN(confirmed), LSN(again));
    /* So may what it published to `_schemas`, which numbers the versions of tables. */
    if (rc == SPATE_OK)
        rc = spate_schemas_refresh(stream, err);
    if (rc == SPATE_OK && stream->epoch.epoch.epoch != epoch)
        return spate_fail(err, SPATE_RETRY,
                          "epoch %" PRIu64 " was opened from replication slot \"%s\" while it was being "
                          "started: starting over",
                          stream->epoch.epoch.epoch, config->source.slot);
    if (rc == SPATE_OK)
        rc = unlock_opening(stream, err);
    if (rc == SPATE_OK)
        rc = lock_stream(stream, false, &shared, err);
    if (rc == SPATE_OK && !shared)
        rc =
            spate_fail(err, SPATE_RETRY,
                       "another connector is opening an epoch of stream \"%s\" at this moment", config->name);
    return rc;
}

static void begin_streaming(struct spate_stream *stream, uint64_t confirmed)
{
    const struct spate_tail *tail = &stream->tail;

    spate_transaction_start(&stream->tx, spate_slice_str(stream->config->name), stream->epoch.epoch.epoch,
                            tail->first);
    stream->tx.skip_below = tail->skip_below;
    stream->tx.has_align = tail->has_align;
    stream->tx.align = tail->align;
    stream->floor = tail->bus.greatest_end;
    stream->heartbeat_ms = stream->durable_ms = spate_clock_ms();
    stream->frame_lsn = confirmed;
    stream->frame_us = 0;
    stream->changes = stream->stalled_us = 0;
    stream->dry = false;
    stream->dense = false;
    spate_weave_session(stream->weave, stream->epoch.epoch.epoch);
    spate_told_session(stream->told);
    spate_log(
        SPATE_LOG_INFO, "streaming", "slot=%s lsn=%X/%X epoch=%" PRIu64 " n=%" PRIu64 " compare=%" PRIu64,
        stream->config->source.slot, LSN(confirmed), stream->tx.epoch, tail->last, tail->last - tail->first);
}

enum spate_rc spate_session_open(struct spate_stream *stream, bool *new_epoch, bool first,
                                 struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    struct spate_source_state source;
    char quoted[300];
    enum spate_rc rc;

    spate_transaction_release(&stream->tx); /* what was held comes again */
    stream->tables_known = false;
    rc = connect_source(stream, first, err);
    if (rc == SPATE_OK && first)
        rc = spate_privacy_verify(config->privacy, stream->sql, err);
    /* While we were away another connector may have published for this stream. */
    if (rc == SPATE_OK)
        rc = spate_schemas_refresh(stream, err);
    if (rc == SPATE_OK)
        rc = find_place(stream, &source, new_epoch, err);
    if (rc == SPATE_OK)
        rc = need_publication(stream, err);
    if (rc == SPATE_OK)
        rc = spate_lists_update(stream->sql, config, first, err);
    if (rc == SPATE_OK)
        rc = spate_failover_mark(&stream->repl, config, &source, err);
    if (rc == SPATE_OK && first)
        rc = spate_check_start_tables(stream->sql, config, err);
    if (rc != SPATE_OK)
        return rc;
    SPATE_FAILPOINT(connector_tail_found);
    spate_ledger_start(&stream->ledger, source.slot.confirmed);
    rc = start(stream, source.slot.confirmed, err);
    if (rc != SPATE_OK)
        return rc;
    spate_log(SPATE_LOG_INFO, "connected",
              "system=%s timeline=%" PRIu32 " database=%s server=%d slot=%s lsn=%X/%X", source.system,
              source.timeline, spate_log_quote(quoted, sizeof quoted, source.database),
              PQserverVersion(stream->sql), config->source.slot, LSN(source.slot.confirmed));
    /* Only now that the slot is ours: versions that another connector would publish as well must not be.
     * Where this session opened an epoch, with the stream's lock alone, it has published them. */
    rc = stream->tables_known ? SPATE_OK : spate_opening_tables(stream, err);
    if (rc == SPATE_OK)
        rc = spate_recheck_open(&stream->recheck, stream->publisher.bus, stream->publisher.topic,
                                stream->epoch.epoch.epoch, &stream->tail, err);
    if (rc == SPATE_OK)
        begin_streaming(stream, source.slot.confirmed);
    return rc;
}

void spate_session_close(struct spate_stream *stream)
{
    if (stream->weave)
        spate_weave_leave(stream->weave);
    spate_recheck_close(&stream->recheck);
    spate_replication_close(&stream->repl);
    PQfinish(stream->sql);
    stream->sql = NULL;
    stream->catalog.conn = NULL;
    spate_transaction_release(&stream->tx);
}
