#include "sinks/start.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/fact.h"
#include "sinks/known.h"
#include "sinks/late.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define TABLE_PATIENCE_MS 3000 /* how long a table may be missing from `_schemas` before it is late */

bool spate_sink_pause(int ms)
{
    struct pollfd stop = {.fd = spate_signals_fd(), .events = POLLIN};

    if (!spate_signals_stop())
        poll(&stop, 1, ms);
    return !spate_signals_stop();
}

/* 0.1 s to 10 s (30 s where somebody must mend something), with jitter so that many sinks do not come back as
 * one. */
static bool back_off(struct spate_sink *sink, const struct spate_err *err)
{
    unsigned doublings = sink->failures < 7 ? sink->failures : 7;
    int64_t ms = INT64_C(100) << doublings;

    sink->failures++;
    ms = spate_pg_pace_ms(err->sqlstate, ms > 10000 ? 10000 : ms);
    return spate_sink_pause((int)(ms / 2 + spate_clock_us() % (ms / 2 + 1)));
}

static bool wanted(void *arg, struct spate_slice schema, struct spate_slice table)
{
    const struct spate_sink *sink = arg;

    for (size_t i = 0; i < sink->projection_count; i++)
        if (spate_slice_is(schema, sink->projections[i].source_schema) &&
            spate_slice_is(table, sink->projections[i].source_table))
            return true;
    return false;
}

static enum spate_rc open_topics(struct spate_sink *sink, struct spate_err *err)
{
    char name[300], topic[300];

    if (!sink->bus && spate_bus_open(&sink->config->bus, &sink->bus, err) != SPATE_OK)
        return SPATE_FAIL;
    sink->store.source_driver = sink->bus->ops->name;
    snprintf(name, sizeof name, "%s._schemas", sink->config->from);
    if (spate_topic_escape(name, topic, sizeof topic, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!sink->registry.reader &&
        spate_registry_open(&sink->registry, sink->bus, topic, wanted, sink, err) != SPATE_OK)
        return SPATE_FAIL;
    if (spate_topic_escape(sink->config->from, topic, sizeof topic, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!sink->feed.reader)
        return spate_feed_open(&sink->feed, sink->bus, topic, err);
    return SPATE_OK;
}

/* A sink may be started before its connector ever ran: it waits. */
static enum spate_rc await_stream(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_log_limit limit = {0}, trouble = {0};
    unsigned hidden;

    for (;;) {
        struct spate_err now = {0};
        char quoted[600], from[SPATE_FACT_MAX];
        enum spate_rc rc = open_topics(sink, &now);

        if (rc == SPATE_OK)
            rc = spate_registry_read(&sink->registry, &now);
        if (rc == SPATE_FAIL && now.verdict != SPATE_RETRY) {
            *err = now;
            return SPATE_FAIL;
        }
        if (rc == SPATE_OK && sink->registry.has_epoch)
            return SPATE_OK;
        spate_sink_status_state(sink->config->status, SPATE_SINK_WAITING_CONNECTOR,
                                rc == SPATE_OK ? "it has not published yet" : now.text);
        /* A broker that does not answer, or refuses us, is no connector's fault: somebody may have to act. */
        if (rc == SPATE_FAIL && !now.missing) {
            if (spate_log_due(&trouble, spate_clock_ms(), 60000, &hidden))
                spate_log_err(SPATE_LOG_WARN, "waiting-for-bus", &now);
        } else if (spate_log_due(&limit, spate_clock_ms(), 60000, &hidden))
            spate_log(SPATE_LOG_INFO, "waiting-for-connector", "from=%s detail=%s",
                      spate_fact(from, sink->config->from),
                      spate_log_quote(quoted, sizeof quoted,
                                      rc == SPATE_OK ? "it has not published yet" : now.text));
        if (!spate_sink_pause(200))
            return SPATE_END;
    }
}

static enum spate_rc open_store(struct spate_sink *sink, struct spate_err *err)
{
    for (;;) {
        struct spate_err now = {0};
        enum spate_rc rc;

        spate_sink_status_state(sink->config->status, SPATE_SINK_OPENING, NULL);
        rc = spate_store_open(&sink->store, &now);
        if (rc == SPATE_OK)
            return SPATE_OK;
        if (rc == SPATE_FAIL && now.verdict != SPATE_RETRY) {
            *err = now;
            return SPATE_FAIL;
        }
        if (rc == SPATE_FAIL) {
            spate_log_err(SPATE_LOG_WARN, "target-unreachable", &now);
            spate_sink_status_failed(sink->config->status, &now);
        }
        if (rc == SPATE_END || !back_off(sink, &now))
            return SPATE_END;
    }
}

/* Waits a moment for tables that the connector is just about to publish, and for ever for the first one. */
static enum spate_rc await_tables(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t start = spate_clock_ms();

    for (;;) {
        size_t late = 0;
        enum spate_rc rc;

        for (size_t i = 0; i < sink->projection_count; i++) {
            sink->projections[i].late = spate_sink_newest(sink, &sink->projections[i]) == NULL;
            late += sink->projections[i].late;
        }
        if (late == 0)
            return SPATE_OK;
        if (spate_clock_ms() - start > TABLE_PATIENCE_MS) {
            spate_late_tell(sink);
            if (late < sink->projection_count || sink->store.stored)
                return SPATE_OK;
            spate_sink_status_state(sink->config->status, SPATE_SINK_WAITING_CONNECTOR,
                                    "it publishes none of the tables yet");
        }
        if (!spate_sink_pause(100))
            return SPATE_END;
        rc = spate_registry_read(&sink->registry, err);
        if (rc != SPATE_OK)
            return rc;
    }
}

/* Every table of the file, before anything is applied. */
static enum spate_rc check_tables(struct spate_sink *sink, struct spate_err *err)
{
    enum spate_rc rc = spate_store_claim_tables(&sink->store, err);

    if (rc == SPATE_OK)
        rc = spate_load_read(&sink->store, sink->projections, sink->projection_count, err);
    if (rc == SPATE_OK)
        rc = await_tables(sink, err);
    for (size_t i = 0; rc == SPATE_OK && i < sink->projection_count; i++)
        rc = spate_sink_check_table(sink, &sink->projections[i], err);
    if (rc == SPATE_OK)
        rc = spate_store_tables_ready(&sink->store, sink->projections, err);
    SPATE_FAILPOINT(sink_tables_ready);
    return rc;
}

/* All statements of all versions on this connection: later, a transaction may be open. */
static enum spate_rc prepare_all(struct spate_sink *sink, struct spate_err *err)
{
    for (size_t i = 0; i < sink->projection_count; i++)
        for (size_t v = 0; v < sink->projections[i].version_count; v++) {
            enum spate_rc rc = spate_apply_prepare(&sink->apply, sink->projections[i].versions[v], err);
            if (rc != SPATE_OK)
                return rc;
        }
    return SPATE_OK;
}

static enum spate_rc broken(struct spate_sink *sink, const char *what, const char *ours, const char *theirs,
                            struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_FENCED;
    sink->feed.stale = true;
    return spate_fail(
        err, SPATE_FATAL,
        "STALE: %s is %s now, this sink stands at n=%" PRIu64 " of %s: the bus was emptied or replaced, "
        "and what was on it before is not known. `spate sink -c %s --restart %s` begins anew; then `spate "
        "snapshot --sink %s` loads its tables again",
        what, theirs, sink->store.mark.place.n, ours, sink->config->path, sink->config->name,
        sink->config->name);
}

/* A new sink that asks for everything. The epoch is read again once the feed stands: those that opened before
 * are known then, and those behind are met. */
static enum spate_rc await_begin(struct spate_sink *sink, struct spate_err *err)
{
    if (spate_feed_await(&sink->feed, sink->loading.awaited, err) != SPATE_OK ||
        spate_registry_read(&sink->registry, err) != SPATE_OK)
        return SPATE_FAIL;
    spate_feed_epoch(&sink->feed, sink->registry.epoch, sink->registry.uuid);
    sink->loading.awaited = true;
    return SPATE_OK;
}

static enum spate_rc stand(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_mark *mark = &sink->store.mark;
    const char *log_id = spate_reader_log_id(sink->feed.reader);

    sink->feed.file = sink->config->path;
    sink->feed.name = sink->config->name;
    sink->feed.skips = sink->store.skips;
    sink->feed.skip_count = sink->store.skip_count;
    spate_batch_clear(&sink->batch);
    spate_taking_forget(sink);
    for (size_t i = 0; i < sink->projection_count; i++)
        spate_load_rewind(&sink->projections[i]);
    sink->parked = false;
    sink->event_ms = spate_clock_ms();
    sink->done = sink->store.stored ? *mark : (struct spate_mark){0};
    if (!sink->store.stored && sink->config->snapshot == SPATE_SINK_AUTO)
        return await_begin(sink, err);
    if (!sink->store.stored)
        return spate_feed_begin(&sink->feed, sink->registry.epoch, sink->registry.uuid, err);
    if (strcmp(log_id, sink->store.log_id) != 0)
        return broken(sink, "the bus' log", sink->store.log_id, log_id, err);
    if (sink->registry.epoch == mark->place.epoch && strcmp(sink->registry.uuid, mark->uuid) != 0)
        return broken(sink, "the stream's epoch", mark->uuid, sink->registry.uuid, err);
    return spate_feed_resume(&sink->feed, mark, err);
}

enum spate_rc spate_sink_rewind(struct spate_sink *sink, struct spate_err *err)
{
    const enum spate_rc rc = stand(sink, err);

    return rc == SPATE_OK ? spate_known_turn(sink, err) : rc;
}

static enum spate_rc open_projections(struct spate_sink *sink, struct spate_err *err)
{
    size_t count = sink->config->tables.count;

    if (count == 0) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(err, SPATE_FATAL, "%s: tables: at least one table is needed", sink->config->path);
    }
    sink->projections = spate_zalloc(count * sizeof *sink->projections);
    for (size_t i = 0; i < count; i++) {
        sink->projection_count = i + 1;
        if (spate_projection_init(&sink->projections[i], sink->config, i, err) != SPATE_OK)
            return SPATE_FAIL;
    }
    sink->apply.projections = sink->projections;
    sink->apply.projection_count = count;
    return SPATE_OK;
}

static void log_start(const struct spate_sink *sink)
{
    char pos[SPATE_POS_TEXT], from[SPATE_FACT_MAX];

    spate_fact(from, sink->config->from);
    if (!sink->store.stored) {
        spate_log(SPATE_LOG_INFO, "streaming", "from=%s place=new epoch=%" PRIu64, from,
                  sink->registry.epoch);
        return;
    }
    spate_pos_format(sink->store.mark.place.pos, pos);
    spate_log(SPATE_LOG_INFO, "streaming", "from=%s epoch=%" PRIu64 " n=%" PRIu64 " pos=%.25s", from,
              sink->store.mark.place.epoch, sink->store.mark.place.n, pos);
}

/* Another process may have owned the sink meanwhile: its counters go on from where they stand in the target.
 */
static enum spate_rc take_store(struct spate_sink *sink, struct spate_err *err)
{
    enum spate_rc rc = open_store(sink, err);

    sink->before = sink->store.counts;
    sink->applied = 0;
    memset(&sink->feed.count, 0, sizeof sink->feed.count);
    sink->apply.missing = sink->missing_told = 0;
    return rc;
}

/* --skip: what is to be passed by stands in the target before it is. */
static enum spate_rc note_skips(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_sink_orders *orders = sink->orders;

    for (size_t i = 0; i < orders->skip_count; i++) {
        const char *text = spate_sink_skip_of(orders->skip[i], sink->config->name);
        struct spate_bus_pos pos;

        if (!text)
            continue;
        if (spate_bus_pos_parse(sink->bus->ops->name, text, &pos, err) != SPATE_OK) {
            err->exit_code = SPATE_EXIT_CONFIG;
            return spate_err_context(err, "--skip %.100s", orders->skip[i]);
        }
        if (spate_store_skip(&sink->store, pos, err) != SPATE_OK)
            return SPATE_FAIL;
    }
    return SPATE_OK;
}

/* A sink without a place in the stream follows nothing yet: whatever was loaded before is void. */
static enum spate_rc void_loads(struct spate_sink *sink, struct spate_err *err)
{
    struct spate_projection **some = spate_alloc(sink->projection_count * sizeof *some);
    size_t count = 0;
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < sink->projection_count && !sink->store.stored; i++)
        if (sink->projections[i].load.ready || sink->projections[i].load.kind != SPATE_LOAD_NONE)
            some[count++] = &sink->projections[i];
    if (count > 0)
        rc = spate_load_abandon(&sink->apply, some, count, true, err);
    free(some);
    return rc;
}

/* A connection that breaks on the way is tried again; everything here can be done twice. */
static enum spate_rc settle(struct spate_sink *sink, struct spate_err *err)
{
    for (;;) {
        struct spate_err now = {0};
        enum spate_rc rc = sink->store.conn ? SPATE_OK : take_store(sink, &now);

        if (rc == SPATE_OK && sink->restart) {
            rc = spate_store_forget(&sink->store, &now);
            sink->restart = rc != SPATE_OK;
        }
        if (rc == SPATE_OK && sink->skips) {
            rc = note_skips(sink, &now);
            sink->skips = rc != SPATE_OK;
        }
        if (rc == SPATE_OK)
            rc = check_tables(sink, &now);
        if (rc == SPATE_OK)
            rc = void_loads(sink, &now);
        if (rc == SPATE_OK)
            rc = spate_loading_settle(sink, &now);
        if (rc == SPATE_OK)
            rc = prepare_all(sink, &now);
        if (rc == SPATE_OK)
            rc = spate_sink_rewind(sink, &now);
        if (rc == SPATE_OK)
            spate_sink_status_state(sink->config->status, SPATE_SINK_STREAMING, NULL);
        if (rc == SPATE_OK || rc == SPATE_END)
            return rc;
        if (now.verdict != SPATE_RETRY) {
            *err = now;
            return SPATE_FAIL;
        }
        spate_log_err(SPATE_LOG_WARN, "retry", &now);
        spate_sink_status_failed(sink->config->status, &now);
        spate_store_close(&sink->store);
        if (!back_off(sink, &now))
            return SPATE_END;
    }
}

enum spate_rc spate_sink_open(struct spate_sink *sink, const struct spate_sink_config *config,
                              const struct spate_sink_orders *orders, bool anew, struct spate_err *err)
{
    enum spate_rc rc;

    *sink = (struct spate_sink){
        .config = config,
        .orders = orders,
        .restart = anew || (orders->restart && strcmp(orders->restart, config->name) == 0),
        .skips = orders->skip_count > 0,
    };
    spate_store_init(&sink->store, config);
    sink->store.restart = sink->restart;
    spate_apply_init(&sink->apply, &sink->store);
    rc = spate_known_check(config, err);
    if (rc == SPATE_OK)
        rc = open_projections(sink, err);
    if (rc == SPATE_OK)
        rc = await_stream(sink, err);
    if (rc == SPATE_OK)
        rc = settle(sink, err);
    if (rc != SPATE_OK)
        return rc;
    sink->failures = 0;
    sink->stored_ms = spate_clock_ms();
    log_start(sink);
    return SPATE_OK;
}

enum spate_rc spate_sink_recover(struct spate_sink *sink, const struct spate_err *cause,
                                 struct spate_err *err)
{
    enum spate_rc rc;

    spate_log_err(SPATE_LOG_WARN, "retry", cause);
    spate_sink_status_failed(sink->config->status, cause);
    spate_apply_rollback(&sink->apply);
    if (!back_off(sink, cause))
        return SPATE_END;
    spate_store_close(&sink->store);
    /* The target may have been altered meanwhile: its tables are looked at again. */
    for (size_t i = 0; i < sink->projection_count; i++)
        sink->projections[i].current = NULL;
    rc = settle(sink, err);
    if (rc != SPATE_OK)
        return rc;
    spate_log(SPATE_LOG_INFO, "recovered", "epoch=%" PRIu64 " n=%" PRIu64, sink->store.mark.place.epoch,
              sink->store.mark.place.n);
    return SPATE_OK;
}

void spate_sink_close(struct spate_sink *sink)
{
    spate_feed_close(&sink->feed);
    spate_loading_fini(sink);
    spate_taking_fini(&sink->taking);
    /* Versions borrow their tables from the registry. */
    for (size_t i = 0; i < sink->projection_count; i++)
        spate_projection_fini(&sink->projections[i]);
    free(sink->projections);
    spate_registry_close(&sink->registry);
    spate_bus_close(sink->bus);
    spate_batch_fini(&sink->batch);
    spate_apply_fini(&sink->apply);
    spate_store_fini(&sink->store);
    spate_arena_fini(&sink->arena);
}
