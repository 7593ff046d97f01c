#include "sinks/status.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/http.h"
#include "core/metric.h"
#include "core/version.h"
#include "sinks/start.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_MS 100

struct spate_sink_status {
    pthread_mutex_t lock; /* of facts */
    struct spate_sink_facts facts;
    /* the sink's own */
    int64_t sampled_ms;
    char veil[SPATE_SINK_VEIL];
};

struct spate_sinks_status {
    struct spate_http *http;
    size_t count;
    struct spate_sink_status sinks[];
};

/* ---- the pages, in their own thread ---- */

void spate_sink_status_facts(struct spate_sink_status *status, struct spate_sink_facts *facts)
{
    pthread_mutex_lock(&status->lock);
    *facts = status->facts;
    pthread_mutex_unlock(&status->lock);
}

/* A derived copy of everything; freed by the caller. */
static struct spate_sink_facts *take_facts(struct spate_sinks_status *all)
{
    struct spate_sink_facts *facts = spate_alloc(all->count * sizeof *facts);

    for (size_t i = 0; i < all->count; i++) {
        spate_sink_status_facts(&all->sinks[i], &facts[i]);
        spate_sink_report_derive(&facts[i], spate_clock_wall_us(), spate_clock_ms());
    }
    return facts;
}

static unsigned page_status(void *arg, struct spate_buf *body)
{
    struct spate_sinks_status *all = arg;
    struct spate_sink_facts *facts = take_facts(all);
    struct spate_memory memory;

    spate_memory_look(&memory);
    spate_sink_report_status(facts, all->count, &memory, body);
    free(facts);
    return 200;
}

static unsigned page_metrics(void *arg, struct spate_buf *body)
{
    struct spate_sinks_status *all = arg;
    struct spate_sink_facts *facts = take_facts(all);
    struct spate_memory memory;

    spate_memory_look(&memory);
    spate_sink_report_metrics(facts, all->count, &memory, body);
    free(facts);
    return 200;
}

static unsigned health(struct spate_sinks_status *all, struct spate_buf *body,
                       int (*well)(const struct spate_sink_facts *, size_t))
{
    struct spate_sink_facts *facts = take_facts(all);
    unsigned code = well(facts, all->count) ? 200 : 503;

    spate_sink_report_health(facts, all->count, body);
    free(facts);
    return code;
}

static unsigned page_ready(void *arg, struct spate_buf *body)
{
    return health(arg, body, spate_sink_report_ready);
}

static unsigned page_live(void *arg, struct spate_buf *body)
{
    return health(arg, body, spate_sink_report_live);
}

static const struct spate_http_page pages[] = {
    {"/status", SPATE_METRIC_JSON_TYPE, page_status, "everything that is known of each sink, as JSON"},
    {"/metrics", SPATE_METRIC_PROMETHEUS_TYPE, page_metrics, "the same for Prometheus"},
    {"/health", SPATE_METRIC_JSON_TYPE, page_ready,
     "200 while all sinks are live and ready, else 503; with the reason"},
    {"/health/live", SPATE_METRIC_JSON_TYPE, page_live,
     "200 unless one hangs: only then does a restart help"},
};

/* ---- opening and closing ---- */

enum spate_rc spate_sinks_status_listen(const struct spate_sink_config *configs, size_t count,
                                        const char **listen, struct spate_err *err)
{
    const struct spate_sink_config *first = NULL;

    *listen = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!configs[i].status_listen)
            continue;
        if (spate_http_check(configs[i].status_listen, err) != SPATE_OK)
            return spate_err_context(err, "%s", configs[i].path ? configs[i].path : configs[i].name);
        if (first && strcmp(first->status_listen, configs[i].status_listen) != 0) {
            err->exit_code = SPATE_EXIT_CONFIG;
            return spate_fail(err, SPATE_FATAL,
                              "status.listen is %s in %s and %s in %s, and one process has one place for the "
                              "pages of all its sinks: give the same in both, or in one of them only",
                              first->status_listen, first->path, configs[i].status_listen, configs[i].path);
        }
        first = first ? first : &configs[i];
    }
    if (first)
        *listen = first->status_listen;
    return SPATE_OK;
}

static void take(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text ? text : "");
}

#define TAKE(member, text) take(status->facts.member, sizeof status->facts.member, (text))

static void status_init(struct spate_sink_status *status, const struct spate_sink_config *config)
{
    pthread_mutex_init(&status->lock, NULL);
    TAKE(sink, config->name);
    TAKE(from, config->from);
    TAKE(schema, config->into.schema);
    TAKE(version, spate_version);
    status->facts.started_us = status->facts.state_since_us = spate_clock_wall_us();
    status->facts.progress.behind_since_us = status->facts.started_us;
    status->facts.progress.lag_bytes = status->facts.progress.lag_messages = -1;
    status->facts.progress.last_batch = status->facts.progress.last_apply_us = -1;
    status->facts.progress.snapshot_rows = status->facts.progress.snapshot_percent = -1;
    status->facts.progress.snapshot_left_us = -1;
}

struct spate_sinks_status *spate_sinks_status_open(const struct spate_sink_config *configs, size_t count,
                                                   const char *listen)
{
    struct spate_sinks_status *all = spate_zalloc(sizeof *all + count * sizeof all->sinks[0]);

    all->count = count;
    for (size_t i = 0; i < count; i++)
        status_init(&all->sinks[i], &configs[i]);
    if (listen)
        all->http = spate_http_open(listen, pages, SPATE_COUNT(pages), all);
    return all;
}

struct spate_sink_status *spate_sinks_status_of(struct spate_sinks_status *all, size_t sink)
{
    return &all->sinks[sink];
}

void spate_sinks_status_close(struct spate_sinks_status *all)
{
    spate_http_close(all->http);
    for (size_t i = 0; i < all->count; i++)
        pthread_mutex_destroy(&all->sinks[i].lock);
    free(all);
}

/* ---- states ---- */

/* Under the lock. Whatever comes while nothing is heard is older than the moment when that ended. */
static void set_state(struct spate_sink_status *status, enum spate_sink_state state, const char *detail)
{
    struct spate_sink_facts *facts = &status->facts;
    int64_t now_us = spate_clock_wall_us();

    if (facts->state != state)
        facts->state_since_us = now_us;
    if (state == SPATE_SINK_STREAMING)
        facts->progress.turned_ms = spate_clock_ms();
    else if (facts->progress.behind_since_us == 0)
        facts->progress.behind_since_us = now_us;
    facts->state = state;
    facts->busy_since_ms = 0;
    TAKE(detail, detail);
}

void spate_sink_status_state(struct spate_sink_status *status, enum spate_sink_state state,
                             const char *waits_for)
{
    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    set_state(status, state, waits_for);
    pthread_mutex_unlock(&status->lock);
}

void spate_sink_status_applied(struct spate_sink_status *status, size_t changes, int64_t us)
{
    struct spate_sink_progress *progress;

    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    progress = &status->facts.progress;
    status->facts.busy_since_ms = 0;
    progress->turned_ms = spate_clock_ms();
    progress->batches++;
    progress->apply_us += us;
    progress->last_apply_us = us;
    progress->last_batch = (int64_t)changes;
    if (us > progress->longest_apply_us)
        progress->longest_apply_us = us;
    pthread_mutex_unlock(&status->lock);
}

/* Under the lock. */
static void set_error(struct spate_sink_status *status, const struct spate_err *err, const char *words)
{
    TAKE(error.text, words);
    TAKE(error.sqlstate, err->sqlstate);
    TAKE(error.verdict, spate_verdict_name(err->verdict));
    status->facts.error.at_us = spate_clock_wall_us();
}

void spate_sink_status_failed(struct spate_sink_status *status, const struct spate_err *err)
{
    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    set_state(status, SPATE_SINK_RETRYING, NULL);
    status->facts.retries++;
    set_error(status, err, err->text);
    pthread_mutex_unlock(&status->lock);
}

void spate_sink_status_veil(struct spate_sink_status *status, const char *words)
{
    if (status)
        snprintf(status->veil, sizeof status->veil, "%s", words);
}

void spate_sink_status_ended(struct spate_sink_status *status, const struct spate_err *err)
{
    enum spate_sink_state state = !err                                   ? SPATE_SINK_STOPPED
                                  : err->exit_code == SPATE_EXIT_FENCED  ? SPATE_SINK_STALE
                                  : err->exit_code == SPATE_EXIT_REFUSED ? SPATE_SINK_REFUSED
                                                                         : SPATE_SINK_FAILED;

    if (!status)
        return;
    pthread_mutex_lock(&status->lock);
    set_state(status, state, NULL);
    if (err)
        set_error(status, err, status->veil[0] ? status->veil : err->text);
    /* Nobody looks at the bus any more: how much it holds beyond is not known from here on. */
    status->facts.progress.lag_bytes = status->facts.progress.lag_messages = -1;
    status->facts.progress.bus_end[0] = '\0';
    pthread_mutex_unlock(&status->lock);
}

/* ---- samples ---- */

/* After a failure the counters go back to what the target has: what counts must not. */
static void grow(uint64_t *counter, uint64_t value)
{
    if (value > *counter)
        *counter = value;
}

static void sample_lag(struct spate_sink_progress *progress, const struct spate_sink *sink)
{
    const char *unit = sink->bus->ops->unit;
    struct spate_bus_pos end = spate_reader_end(sink->feed.reader), at = sink->store.mark.at;
    int64_t lag = !sink->store.stored                      ? -1
                  : sink->behind_us == 0 || end.at < at.at ? 0
                                                           : (int64_t)(end.at - at.at);

    spate_bus_pos_format(sink->feed.driver, end, progress->bus_end);
    progress->lag_bytes = unit && strcmp(unit, "bytes") == 0 ? lag : -1;
    progress->lag_messages = unit && strcmp(unit, "messages") == 0 ? lag : -1;
}

static void sample_snapshot(struct spate_sink_progress *progress, const struct spate_sink *sink)
{
    const struct spate_loading *loading = &sink->loading;
    const bool any = loading->request[0] != '\0';

    progress->loading = any;
    memcpy(progress->request, loading->request, sizeof progress->request);
    progress->snapshot_rows = any ? (int64_t)spate_loading_rows(sink) : -1;
    progress->snapshot_percent = any && loading->percent >= 0 ? (int64_t)loading->percent : -1;
    progress->snapshot_left_us = any && loading->left_s >= 0 ? loading->left_s * 1000000 : -1;
    progress->snapshots = loading->finished;
    progress->chunks_dropped = loading->broken;
    progress->chunks_repeated = loading->repeated;
}

/* ", NAME (WHY)"; what does not fit is counted all the same. */
static void list(char *out, size_t size, int64_t *count, const char *name, const char *why)
{
    const size_t used = strlen(out);

    (*count)++;
    snprintf(out + used, size - used, "%s%s%s%s%s", used ? ", " : "", name, why ? " (" : "", why ? why : "",
             why ? ")" : "");
}

static void sample_tables(struct spate_sink_progress *progress, const struct spate_sink *sink)
{
    progress->tables_waiting = progress->tables_stale = 0;
    progress->waiting[0] = progress->stale[0] = '\0';
    for (size_t p = 0; p < sink->projection_count; p++) {
        const struct spate_projection *projection = &sink->projections[p];
        char source[140];

        if (projection->late || projection->gone) {
            snprintf(source, sizeof source, "%.63s.%.63s", projection->source_schema,
                     projection->source_table);
            list(progress->waiting, sizeof progress->waiting, &progress->tables_waiting, source,
                 projection->gone ? "gone" : NULL);
        } else if (projection->load.outdated) {
            list(progress->stale, sizeof progress->stale, &progress->tables_stale, projection->label,
                 projection->load.outdated);
        }
    }
    grow(&progress->marked, sink->marked);
    grow(&progress->lacked, sink->lacked);
}

static void sample(struct spate_sink_status *status, const struct spate_sink *sink, int64_t now_ms)
{
    struct spate_sink_progress progress = status->facts.progress; /* nobody else writes it */
    const struct spate_mark *mark = &sink->store.mark;
    struct spate_counts counts = spate_sink_counts(sink);

    progress.turned_ms = now_ms;
    progress.behind_since_us = sink->behind_us;
    progress.heard_n = sink->feed.follower.last.n;
    progress.pending = (int64_t)sink->batch.count;
    progress.hole = sink->feed.hole_ms != 0;
    if (sink->store.stored) {
        progress.epoch = mark->place.epoch;
        progress.n = mark->place.n;
        spate_pos_format(mark->place.pos, progress.pos);
        spate_bus_pos_format(sink->feed.driver, mark->at, progress.bus_position);
    }
    sample_lag(&progress, sink);
    sample_snapshot(&progress, sink);
    sample_tables(&progress, sink);
    grow(&progress.applied, counts.applied);
    grow(&progress.duplicates, counts.duplicates);
    grow(&progress.holes, counts.holes);
    grow(&progress.missing, counts.missing);
    grow(&progress.skipped, sink->feed.count.skipped);

    pthread_mutex_lock(&status->lock);
    TAKE(bus, sink->feed.driver);
    TAKE(topic, sink->feed.topic);
    status->facts.progress = progress;
    status->facts.busy_since_ms = 0;
    pthread_mutex_unlock(&status->lock);
}

void spate_sink_status_turn(struct spate_sink_status *status, const struct spate_sink *sink, int64_t now_ms)
{
    if (!status || now_ms - status->sampled_ms < SAMPLE_MS)
        return;
    status->sampled_ms = now_ms;
    sample(status, sink, now_ms);
}

void spate_sink_status_busy(struct spate_sink_status *status, const struct spate_sink *sink)
{
    int64_t now_ms = spate_clock_ms();

    if (!status)
        return;
    sample(status, sink, now_ms);
    pthread_mutex_lock(&status->lock);
    status->facts.busy_since_ms = now_ms;
    pthread_mutex_unlock(&status->lock);
}

void spate_sink_status_last(struct spate_sink_status *status, const struct spate_sink *sink)
{
    if (status)
        sample(status, sink, spate_clock_ms());
}
