#include "sinks/start.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/copy.h"
#include "sinks/fact.h"
#include "sinks/generation.h"
#include "sinks/late.h"
#include "sinks/stale.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define TABLE_PATIENCE_MS  3000  /* how long a table may be missing from `_schemas` before it is late */
#define SCHEMA_PATIENCE_MS 10000 /* how long a version that a change names may be */

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

/* What the target table fitted, when `table` came after that: the sink may follow it (sinks/follow.h). */
static const struct spate_table *fitted_before(const struct spate_sink *sink,
                                               const struct spate_projection *projection,
                                               const struct spate_table *table)
{
    const struct spate_table *fitted =
        projection->load.fitted
            ? spate_registry_find(&sink->registry, table->schema, table->name, projection->load.fitted)
            : NULL;

    return fitted && spate_registry_precedes(&sink->registry, fitted, table) ? fitted : NULL;
}

/* Its current version was made, or looked at again. */
static enum spate_rc fitted(struct spate_sink *sink, struct spate_projection *projection, bool followed,
                            struct spate_err *err)
{
    const bool same = followed && projection->same;
    const uint32_t v = projection->current->table->v;
    const bool later = !projection->load.fitted || followed;
    enum spate_rc rc = SPATE_OK;

    if (later && projection->load.fitted != v)
        rc = spate_load_fitted(&sink->store, projection, same, err);
    projection->before = NULL;
    projection->same = false;
    return rc;
}

static enum spate_rc make_version(struct spate_sink *sink, struct spate_projection *projection,
                                  const struct spate_table *table, struct spate_version **version,
                                  struct spate_err *err)
{
    enum spate_rc rc;

    projection->before = fitted_before(sink, projection, table);
    rc = spate_projection_version(projection, &sink->store, table, version, err);
    if (rc != SPATE_OK)
        projection->before = NULL;
    return rc;
}

static const struct spate_table *newest(const struct spate_sink *sink,
                                        const struct spate_projection *projection)
{
    return spate_registry_find(&sink->registry, spate_slice_str(projection->source_schema),
                               spate_slice_str(projection->source_table), 0);
}

/* Waits a moment for tables that the connector is just about to publish, and for ever for the first one. */
static enum spate_rc await_tables(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t start = spate_clock_ms();

    for (;;) {
        size_t late = 0;
        enum spate_rc rc;

        for (size_t i = 0; i < sink->projection_count; i++) {
            sink->projections[i].late = newest(sink, &sink->projections[i]) == NULL;
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

/* A table against the newest schema of its source. */
static enum spate_rc check_table(struct spate_sink *sink, struct spate_projection *projection,
                                 struct spate_err *err)
{
    const struct spate_table *table = newest(sink, projection);
    bool followed = false;
    enum spate_rc rc;

    projection->current = NULL;
    if (projection->late) /* what was loading is of a table that nobody publishes any more */
        return projection->load.kind == SPATE_LOAD_NONE ? SPATE_OK
                                                        : spate_load_void(&sink->store, projection, err);
    projection->current =
        fitted_before(sink, projection, table) ? NULL : spate_projection_find(projection, table);
    if (projection->current) { /* after a failure: the team may have altered its table meanwhile */
        rc = spate_version_preflight(projection->current, &sink->store, err);
    } else {
        rc = make_version(sink, projection, table, &projection->current, err);
        followed = projection->before != NULL;
    }
    if (rc == SPATE_OK)
        rc = spate_copy_fit_all(projection, &sink->store, err);
    if (rc == SPATE_OK)
        rc = fitted(sink, projection, followed, err);
    if (rc == SPATE_OK)
        spate_load_compare(projection);
    return rc;
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
        rc = check_table(sink, &sink->projections[i], err);
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

enum spate_rc spate_sink_rewind(struct spate_sink *sink, struct spate_err *err)
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

/* The schema is durable on `_schemas` before the first message that uses it. */
static enum spate_rc find_table(struct spate_sink *sink, const struct spate_projection *projection,
                                uint32_t v, const struct spate_table **table, struct spate_err *err)
{
    struct spate_slice schema = spate_slice_str(projection->source_schema);
    struct spate_slice name = spate_slice_str(projection->source_table);
    int64_t start = spate_clock_ms();

    while (!(*table = spate_registry_find(&sink->registry, schema, name, v))) {
        enum spate_rc rc = spate_registry_read(&sink->registry, err);

        if (rc != SPATE_OK)
            return rc;
        if (spate_registry_find(&sink->registry, schema, name, v))
            continue;
        if (spate_clock_ms() - start > SCHEMA_PATIENCE_MS) {
            err->exit_code = SPATE_EXIT_FENCED;
            return spate_fail(
                err, SPATE_FATAL,
                "topic %s has no version %u of table %s.%s, which a change on the stream was written "
                "with: the topic was cut or replaced. `spate connector --new-epoch` publishes it again",
                sink->registry.topic, v, projection->source_schema, projection->source_table);
        }
        if (!spate_sink_pause(50))
            return SPATE_END;
    }
    return SPATE_OK;
}

bool spate_sink_knows(const struct spate_sink *sink, const struct spate_projection *projection, uint32_t v)
{
    for (size_t i = 0; i < projection->version_count; i++)
        if (projection->versions[i]->table->v == v)
            return projection->versions[i]->state->serial == sink->store.serial &&
                   !fitted_before(sink, projection, projection->versions[i]->table);
    return false;
}

/* DDL is not in the stream (P32): what a new column holds in rows that nobody changed since, nobody says. */
static void tell_added(struct spate_sink *sink, const struct spate_version *before,
                       const struct spate_version *now)
{
    for (size_t i = 0; before && i < now->used_count; i++) {
        const struct spate_column *column = &now->table->columns[now->used[i]];
        char name[150], fact[SPATE_FACT_MAX];

        if (spate_table_column(before->table, column->name) >= 0)
            continue;
        snprintf(name, sizeof name, "%.*s", SPATE_SLICE_ARG(column->name));
        if (sink->config->snapshot == SPATE_SINK_AUTO)
            spate_log(SPATE_LOG_INFO, "column-added",
                      "table=%s column=%s detail=\"rows that were written before may lack it: the table is "
                      "asked for again\"",
                      now->projection->label, spate_fact(fact, name));
        else
            spate_log(
                SPATE_LOG_WARN, "column-added",
                "table=%s column=%s detail=\"rows that were written before keep what the target has "
                "there; if the source filled them with a default, `spate snapshot --sink %s` loads them "
                "again\"",
                now->projection->label, spate_fact(fact, name), sink->config->name);
    }
}

static bool is_unfit(const struct spate_projection *projection, uint32_t v)
{
    for (size_t i = 0; i < projection->unfit_count; i++)
        if (projection->unfit[i] == v)
            return true;
    return false;
}

/* What was complete before is in the target before the table changes its shape, or the sink stops for it. */
static enum spate_rc flush_before(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_mark heard = sink->feed.mark;
    enum spate_rc rc = SPATE_OK;

    if (sink->batch.complete == 0 || sink->done.place.epoch == 0)
        return SPATE_OK;
    sink->feed.mark = sink->done; /* the change that names the version is not in the batch */
    rc = spate_sink_flush(sink, sink->batch.complete, true, err);
    sink->feed.mark = heard;
    return rc;
}

/* A change of a version that is past does not fit the table of today: the source's type was another one, say,
 * and a person altered the target's in the meantime. It is passed by, and everything is needed. */
static enum spate_rc pass_by(struct spate_sink *sink, struct spate_projection *projection, uint32_t v,
                             const struct spate_err *why, struct spate_err *err)
{
    char quoted[1400];

    projection->unfit =
        spate_realloc(projection->unfit, (projection->unfit_count + 1) * sizeof *projection->unfit);
    projection->unfit[projection->unfit_count++] = v;
    spate_log(SPATE_LOG_WARN, "version-passed-by", "table=%s v=%u newest=%u detail=%s", projection->label, v,
              newest(sink, projection)->v, spate_log_quote(quoted, sizeof quoted, why->text));
    return spate_stale_mark(sink, projection, "altered", err);
}

static enum spate_rc new_version(struct spate_sink *sink, struct spate_projection *projection,
                                 const struct spate_table *table, struct spate_version **version,
                                 struct spate_err *err)
{
    struct spate_err refused = {0};
    enum spate_rc rc = flush_before(sink, err);

    if (rc != SPATE_OK)
        return rc;
    rc = make_version(sink, projection, table, version, &refused);
    if (rc == SPATE_FAIL && refused.verdict != SPATE_RETRY && refused.exit_code == SPATE_EXIT_REFUSED) {
        rc = spate_registry_read(&sink->registry, err);
        if (rc != SPATE_OK)
            return rc;
        *version = NULL;
        if (newest(sink, projection) != table)
            return pass_by(sink, projection, table->v, &refused, err);
        rc = SPATE_FAIL;
    }
    if (rc == SPATE_FAIL)
        *err = refused;
    return rc;
}

/* A table that the projection meets for the first time, or anew. */
static enum spate_rc take_version(struct spate_sink *sink, struct spate_projection *projection,
                                  const struct spate_table *table, struct spate_version *version, bool known,
                                  struct spate_err *err)
{
    const bool followed = projection->before != NULL, same = projection->same;
    enum spate_rc rc;

    if (!known && !same)
        tell_added(sink, projection->current, version);
    projection->current = version;
    if (followed || !projection->load.fitted) {
        rc = fitted(sink, projection, followed, err);
        if (rc != SPATE_OK)
            return rc;
    }
    if (projection->late)
        return spate_late_came(sink, projection, err);
    /* The rows that are there were written by what the newest version says, or have to be loaded again. */
    if (!known && newest(sink, projection) == table) {
        spate_load_compare(projection);
        if (projection->load.changed)
            (void)spate_loading_want(sink, projection);
    }
    return SPATE_OK;
}

enum spate_rc spate_sink_version(struct spate_sink *sink, struct spate_projection *projection, uint32_t v,
                                 struct spate_version **version, struct spate_err *err)
{
    const struct spate_table *table;
    bool known;
    enum spate_rc rc;

    *version = NULL;
    if (projection->current && projection->current->table->v == v) {
        *version = projection->current;
        return SPATE_OK;
    }
    /* A shape that the table has again is published again. */
    rc = spate_registry_read(&sink->registry, err);
    if (rc == SPATE_OK)
        rc = find_table(sink, projection, v, &table, err);
    if (rc != SPATE_OK || (is_unfit(projection, v) && table != newest(sink, projection)))
        return rc;
    *version = spate_projection_find(projection, table);
    known = *version != NULL && !fitted_before(sink, projection, table);
    if (!known)
        rc = new_version(sink, projection, table, version, err);
    for (size_t i = 0; rc == SPATE_OK && i < projection->version_count; i++) /* a copy changes them all */
        rc = spate_apply_prepare(&sink->apply, projection->versions[i], err);
    if (rc != SPATE_OK || !*version)
        return rc;
    return take_version(sink, projection, table, *version, known, err);
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
