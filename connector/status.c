/* connector/status.c - facts from two threads, pages for a third. */
#include "connector/status.h"

#include "connector/stream.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/http.h"
#include "core/metric.h"
#include "core/version.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_MS 100
#define MARKS     64
/* What a source's WAL may be ahead of what its walsender shows us without meaning that something waits. */
#define UNSEEN_BYTES ((uint64_t)64 * 1024)

/* Everything up to change n was given to the bus when the ledger had handed out `token`. */
struct mark {
    uint64_t token, n;
    int64_t commit_us;
};

struct spate_status {
    const struct spate_connector_config *config;
    pthread_mutex_t lock; /* of facts */
    struct spate_connector_facts facts;
    struct spate_http *http;
    struct spate_watch *watch;

    /* the data plane's own */
    int64_t sampled_ms;
    struct mark marks[MARKS]; /* a ring: what was not durable at the last samples, oldest first */
    size_t first, count;
};

/* ---- the pages, in their own thread ---- */

void spate_status_facts(struct spate_status *status, struct spate_connector_facts *facts)
{
    pthread_mutex_lock(&status->lock);
    *facts = status->facts;
    pthread_mutex_unlock(&status->lock);
    spate_memory_look(&facts->memory);
    spate_bus_look_holds(&status->config->bus, facts->connector, &facts->holds);
    spate_connector_report_derive(facts, spate_clock_wall_us(), spate_clock_ms());
}

static unsigned page_status(void *arg, struct spate_buf *body)
{
    struct spate_connector_facts facts;

    spate_status_facts(arg, &facts);
    spate_connector_report_status(&facts, body);
    return 200;
}

static unsigned page_metrics(void *arg, struct spate_buf *body)
{
    struct spate_connector_facts facts;

    spate_status_facts(arg, &facts);
    spate_connector_report_metrics(&facts, body);
    return 200;
}

static unsigned page_ready(void *arg, struct spate_buf *body)
{
    struct spate_connector_facts facts;

    spate_status_facts(arg, &facts);
    spate_connector_report_health(&facts, body);
    return facts.now.live && facts.now.ready ? 200 : 503;
}

static unsigned page_live(void *arg, struct spate_buf *body)
{
    struct spate_connector_facts facts;

    spate_status_facts(arg, &facts);
    spate_connector_report_health(&facts, body);
    return facts.now.live ? 200 : 503;
}

static const struct spate_http_page pages[] = {
    {"/status", SPATE_METRIC_JSON_TYPE, page_status, "everything that is known, as JSON"},
    {"/metrics", SPATE_METRIC_PROMETHEUS_TYPE, page_metrics, "the same for Prometheus"},
    {"/health", SPATE_METRIC_JSON_TYPE, page_ready,
     "200 while it is live and ready, else 503; with the reason"},
    {"/health/live", SPATE_METRIC_JSON_TYPE, page_live, "200 unless it hangs: only then does a restart help"},
};

/* ---- opening and closing ---- */

static void on_look(void *arg, const struct spate_slot_look *look)
{
    struct spate_status *status = arg;
    char *server = status->facts.server;
    const size_t size = sizeof status->facts.server;

    pthread_mutex_lock(&status->lock);
    status->facts.look = *look;
    snprintf(server, size, "%d.%d", look->server / 10000, look->server % 10000);
    pthread_mutex_unlock(&status->lock);
}

static void take(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text ? text : "");
}

#define TAKE(member, text) take(status->facts.member, sizeof status->facts.member, (text))

struct spate_status *spate_status_open(const struct spate_connector_config *config)
{
    struct spate_status *status = spate_zalloc(sizeof *status);
    int64_t now_us = spate_clock_wall_us();

    status->config = config;
    pthread_mutex_init(&status->lock, NULL);
    TAKE(connector, config->name);
    TAKE(version, spate_version);
    TAKE(slot, config->source.slot);
    TAKE(publication, config->source.publication);
    status->facts.started_us = status->facts.state_since_us = now_us;
    status->facts.look = (struct spate_slot_look){.active = -1,
                                                  .status = SPATE_WAL_UNKNOWN,
                                                  .retained_bytes = -1,
                                                  .safe_bytes = -1,
                                                  .keep_bytes = -1,
                                                  .xmin_age = -1};
    status->facts.plane.retention_us = -1;
    status->facts.plane.tables = status->facts.plane.tables_unlogged = -1;
    /* Until the bus has all that the source has, the source may have had something since before we started.
     */
    status->facts.plane.behind_since_us = now_us;
    status->watch = spate_watch_start(config, on_look, status);
    if (config->status_listen)
        status->http = spate_http_open(config->status_listen, pages, SPATE_COUNT(pages), status);
    return status;
}

void spate_status_close(struct spate_status *status)
{
    if (!status)
        return;
    spate_http_close(status->http);
    spate_watch_stop(status->watch);
    pthread_mutex_destroy(&status->lock);
    free(status);
}

/* ---- states ---- */

/* Under the lock. Whatever comes while nothing streams is older than the moment when that ended. */
static void set_state(struct spate_status *status, enum spate_connector_state state, const char *detail)
{
    struct spate_connector_facts *facts = &status->facts;
    int64_t now_us = spate_clock_wall_us();

    if (facts->state != state)
        facts->state_since_us = now_us;
    if (state != SPATE_CONNECTOR_STREAMING && facts->plane.behind_since_us == 0)
        facts->plane.behind_since_us = now_us;
    facts->state = state;
    TAKE(detail, detail);
}

void spate_status_state(struct spate_status *status, enum spate_connector_state state, const char *waits_for)
{
    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    set_state(status, state, waits_for);
    pthread_mutex_unlock(&status->lock);
}

void spate_status_failed(struct spate_status *status, const struct spate_err *err, bool again)
{
    bool in_use = strcmp(err->sqlstate, "55006") == 0;
    enum spate_connector_state state = again && in_use                       ? SPATE_CONNECTOR_WAITING_SLOT
                                       : again                               ? SPATE_CONNECTOR_RETRYING
                                       : err->exit_code == SPATE_EXIT_FENCED ? SPATE_CONNECTOR_FENCED
                                                                             : SPATE_CONNECTOR_STOPPED;

    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    set_state(status, state, NULL);
    if (again)
        status->facts.retries++;
    TAKE(error.text, err->text);
    TAKE(error.sqlstate, err->sqlstate);
    TAKE(error.verdict, spate_verdict_name(err->verdict));
    status->facts.error.at_us = spate_clock_wall_us();
    pthread_mutex_unlock(&status->lock);
}

/* ---- samples ---- */

/* What became durable since, and what is on its way now. The ledger knows tokens; marks say what they mean.
 */
static void keep_marks(struct spate_status *status, const struct spate_stream *stream, uint64_t *durable_n)
{
    const struct spate_ledger *ledger = &stream->ledger;
    struct mark *newest;

    while (status->count > 0 && status->marks[status->first].token < ledger->first) {
        *durable_n = status->marks[status->first].n;
        status->first = (status->first + 1) % MARKS;
        status->count--;
    }
    if (spate_ledger_idle(ledger)) {
        if (stream->counts.ended_n > *durable_n)
            *durable_n = stream->counts.ended_n;
        return;
    }
    newest = &status->marks[(status->first + status->count + MARKS - 1) % MARKS];
    if (status->count > 0 && newest->token == ledger->next - 1)
        return;
    if (status->count < MARKS) /* else the newest one stands for more */
        newest = &status->marks[(status->first + status->count++) % MARKS];
    *newest = (struct mark){ledger->next - 1, stream->counts.ended_n, stream->counts.ended_us};
}

static bool waits_here(const struct spate_stream *stream)
{
    return !spate_ledger_idle(&stream->ledger) || stream->tx.open || stream->tx.holding ||
           !spate_publisher_empty(&stream->publisher);
}

static uint64_t shown_by(const struct spate_stream *stream)
{
    return stream->ledger.received > stream->repl.wal_end ? stream->ledger.received : stream->repl.wal_end;
}

/* Of which time is the oldest thing that is not durable? 0: there is none. */
static int64_t behind_since(const struct spate_status *status, const struct spate_stream *stream,
                            const struct spate_slot_look *look, int64_t before_us)
{
    if (status->count > 0)
        return status->marks[status->first].commit_us;
    if (stream->tx.open)
        return stream->tx.commit_us;
    if (waits_here(stream) || !stream->dry)
        return before_us ? before_us : spate_clock_wall_us();
    /* Idle: has the source written what its walsender has not shown us yet? Then it is decoding. */
    if (look->wal > shown_by(stream) + UNSEEN_BYTES)
        return before_us ? before_us : look->looked_us;
    return 0;
}

static void sample_bus(struct spate_plane_facts *plane, const struct spate_publisher *publisher,
                       int64_t now_ms)
{
    const char *driver = publisher->bus->ops->name;
    int64_t retention_ms = spate_writer_retention_ms(publisher->stream);
    char durable[SPATE_BUS_POS_TEXT];

    spate_bus_pos_format(driver, spate_writer_end(publisher->stream), plane->bus_end);
    spate_bus_pos_format(driver, spate_writer_durable(publisher->stream), durable);
    /* Durability moves on, or nothing waits for it. */
    if (strcmp(durable, plane->bus_durable) != 0 ||
        (strcmp(durable, plane->bus_end) == 0 && spate_publisher_empty(publisher)))
        plane->progress_ms = now_ms;
    memcpy(plane->bus_durable, durable, sizeof durable);
    plane->retention_us = retention_ms > INT64_MAX / 1000 ? -1 : retention_ms * 1000;
    plane->batch_changes = (int64_t)(publisher->count - publisher->done);
    plane->batch_bytes = (int64_t)publisher->bytes.len;
}

static void sample(struct spate_status *status, const struct spate_stream *stream, int64_t now_ms)
{
    struct spate_plane_facts plane;
    struct spate_slot_look look;

    pthread_mutex_lock(&status->lock);
    plane = status->facts.plane;
    look = status->facts.look;
    pthread_mutex_unlock(&status->lock);

    keep_marks(status, stream, &plane.durable_n);
    plane.epoch = stream->tx.epoch;
    plane.n = stream->tx.next_n - 1 > stream->tail.last ? stream->tx.next_n - 1 : stream->tail.last;
    plane.received_lsn = shown_by(stream);
    plane.published_lsn = stream->ledger.published;
    plane.durable_lsn = stream->ledger.confirmed;
    plane.confirmed_lsn = stream->repl.said;
    plane.unconfirmed_transactions = (int64_t)(stream->ledger.next - stream->ledger.first);
    plane.behind_since_us = behind_since(status, stream, &look, plane.behind_since_us);
    plane.turned_ms = now_ms;
    sample_bus(&plane, &stream->publisher, now_ms);
    plane.inserts = stream->counts.changes[SPATE_OP_INSERT];
    plane.updates = stream->counts.changes[SPATE_OP_UPDATE];
    plane.deletes = stream->counts.changes[SPATE_OP_DELETE];
    plane.truncates = stream->counts.changes[SPATE_OP_TRUNCATE];
    plane.messages = stream->counts.changes[SPATE_OP_MESSAGE];
    plane.bytes = stream->counts.bytes;
    plane.heartbeats = stream->counts.heartbeats;
    plane.stalled_us = (int64_t)stream->counts.stalled_us;
    if (stream->weave) {
        const struct spate_weave_counts counts = spate_weave_counts(stream->weave);

        plane.snapshots = (int64_t)counts.active;
        plane.snapshot_requests = counts.requests;
        plane.snapshot_chunks = counts.chunks;
        plane.snapshot_rows = counts.rows;
        plane.snapshot_dropped = counts.dropped;
        plane.snapshot_redone = counts.redone;
        plane.snapshot_restarted = counts.restarted;
    }

    if (stream->told) {
        const struct spate_told_counts counts = spate_told_counts(stream->told);

        plane.tables = counts.known ? (int64_t)counts.tables : -1;
        plane.tables_unlogged = counts.known ? (int64_t)counts.unlogged : -1;
        plane.tables_added = counts.added;
        plane.tables_removed = counts.removed;
        plane.stale = counts.stale;
    }

    pthread_mutex_lock(&status->lock);
    status->facts.plane = plane;
    pthread_mutex_unlock(&status->lock);
}

void spate_status_turn(struct spate_status *status, const struct spate_stream *stream, int64_t now_ms)
{
    if (!status || now_ms - status->sampled_ms < SAMPLE_MS || !stream->repl.copying)
        return;
    status->sampled_ms = now_ms;
    sample(status, stream, now_ms);
}

void spate_status_streaming(struct spate_status *status, const struct spate_stream *stream)
{
    if (!status)
        return;
    status->first = status->count = 0;
    status->sampled_ms = 0;
    pthread_mutex_lock(&status->lock);
    TAKE(bus, stream->publisher.bus->ops->name);
    TAKE(topic, stream->publisher.topic);
    status->facts.sessions++;
    status->facts.plane.turned_ms = status->facts.plane.progress_ms = spate_clock_ms();
    status->facts.plane.durable_n = stream->tail.last;
    pthread_mutex_unlock(&status->lock);
    spate_status_turn(status, stream, spate_clock_ms());
    spate_status_state(status, SPATE_CONNECTOR_STREAMING, NULL);
    spate_watch_now(status->watch);
}

struct spate_survey *spate_status_survey(struct spate_status *status)
{
    return status && status->watch ? spate_watch_take(status->watch) : NULL;
}

void spate_status_survey_soon(struct spate_status *status)
{
    if (status)
        spate_watch_now(status->watch);
}
