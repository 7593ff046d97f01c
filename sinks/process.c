/* sinks/process.c - all sinks of one process: a thread each, sharing nothing, failing apart. */
#include "sinks/run.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/fact.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct runner {
    pthread_t thread;
    struct spate_sink_config config; /* a copy that knows where to report to */
    struct spate_sink_orders orders;
    bool started, joined;
    enum spate_exit result;
    int64_t ended_us; /* which one stopped first */
};

static void *run(void *arg)
{
    struct runner *runner = arg;
    struct spate_err err = {0};
    char context[SPATE_FACT_MAX + 10], name[SPATE_FACT_MAX];

    snprintf(context, sizeof context, "sink=%s", spate_fact(name, runner->config.name));
    spate_log_context(context);
    if (spate_sink_run(&runner->config, &runner->orders, &err) != SPATE_OK) {
        spate_log_err(SPATE_LOG_ERROR, "sink-stopped", &err);
        runner->result = err.exit_code ? err.exit_code : SPATE_EXIT_FAILED;
    }
    spate_sink_status_ended(runner->config.status, runner->result == SPATE_EXIT_OK ? NULL : &err);
    runner->ended_us = spate_clock_us();
    spate_log_context(NULL);
    return NULL;
}

/* Once a stop was asked for, each sink has its deadline; without one they run as long as they like. */
static bool join(struct runner *runner, int64_t *stop_ms)
{
    char name[SPATE_FACT_MAX];

    for (;;) {
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100 * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        if (pthread_timedjoin_np(runner->thread, NULL, &until) == 0)
            return true;
        if (!spate_signals_stop())
            continue;
        if (*stop_ms == 0)
            *stop_ms = spate_clock_ms();
        if (spate_clock_ms() - *stop_ms > runner->config.stop_deadline_ms) {
            spate_log(SPATE_LOG_ERROR, "stop-deadline",
                      "sink=%s deadline_ms=%" PRId64
                      " detail=\"the target did not answer in time; what was not committed "
                      "is read again at the next start\"",
                      spate_fact(name, runner->config.name), runner->config.stop_deadline_ms);
            return false;
        }
    }
}

/* A name may hold a '=', a position never does. */
const char *spate_sink_skip_of(const char *order, const char *name)
{
    const char *equals = strrchr(order, '=');
    const size_t len = strlen(name);

    return equals && (size_t)(equals - order) == len && memcmp(order, name, len) == 0 ? equals + 1 : NULL;
}

static bool names_no_sink(const char *option, const char *word)
{
    char fact[SPATE_FACT_MAX];

    spate_log(SPATE_LOG_ERROR, "config", "detail=\"%s names no sink of these files\" name=%s", option,
              spate_fact(fact, word));
    return false;
}

/* Each order is for one of the sinks. */
static bool check_orders(const struct spate_sink_config *configs, size_t count,
                         const struct spate_sink_orders *orders)
{
    bool found = !orders->restart;

    for (size_t i = 0; i < count && !found; i++)
        found = strcmp(configs[i].name, orders->restart) == 0;
    if (!found)
        return names_no_sink("--restart", orders->restart);
    for (size_t s = 0; s < orders->skip_count; s++) {
        found = false;
        for (size_t i = 0; i < count && !found; i++)
            found = spate_sink_skip_of(orders->skip[s], configs[i].name) != NULL;
        if (!found)
            return names_no_sink("--skip", orders->skip[s]);
    }
    return true;
}

static enum spate_exit first_result(const struct runner *runners, size_t count)
{
    enum spate_exit result = SPATE_EXIT_OK;
    int64_t first = INT64_MAX;

    for (size_t i = 0; i < count; i++)
        if (runners[i].joined && runners[i].result != SPATE_EXIT_OK && runners[i].ended_us < first) {
            first = runners[i].ended_us;
            result = runners[i].result;
        }
    return result;
}

enum spate_exit spate_sinks_run(const struct spate_sink_config *configs, size_t count,
                                const struct spate_sink_orders *orders)
{
    struct spate_sinks_status *status;
    struct runner *runners;
    struct spate_err err = {0};
    const char *listen;
    enum spate_exit result = SPATE_EXIT_OK;
    bool late = false;
    int64_t stop_ms = 0;
    char name[SPATE_FACT_MAX];

    if (!check_orders(configs, count, orders))
        return SPATE_EXIT_CONFIG;
    if (spate_sinks_status_listen(configs, count, &listen, &err) != SPATE_OK) {
        spate_log_err(SPATE_LOG_ERROR, "config", &err);
        return SPATE_EXIT_CONFIG;
    }
    status = spate_sinks_status_open(configs, count, listen);
    runners = spate_zalloc(count * sizeof *runners);
    for (size_t i = 0; i < count; i++) {
        struct runner *runner = &runners[i];

        runner->config = configs[i];
        runner->config.status = spate_sinks_status_of(status, i);
        runner->orders = *orders;
        runner->started = pthread_create(&runner->thread, NULL, run, runner) == 0;
        if (!runner->started) {
            spate_log(SPATE_LOG_ERROR, "thread", "sink=%s detail=\"no thread could be started\"",
                      spate_fact(name, configs[i].name));
            result = SPATE_EXIT_FAILED;
            spate_signals_request();
            break;
        }
    }
    for (size_t i = 0; i < count; i++)
        if (runners[i].started)
            late |= !(runners[i].joined = join(&runners[i], &stop_ms));
    if (result == SPATE_EXIT_OK)
        result = first_result(runners, count);
    if (late)
        return SPATE_EXIT_DEADLINE; /* a thread may still be using its runner, and report */
    spate_sinks_status_close(status);
    free(runners);
    return result;
}
