/* sinks/known.c - the sink's name on its bus. */
#include "sinks/known.h"

#include "core/clock.h"
#include "core/log.h"
#include "sinks/start.h"

#define AGAIN_MS    5000
#define COMPLAIN_MS 60000
#define RARELY_MS   3600000

enum spate_rc spate_known_check(const struct spate_sink_config *config, struct spate_err *err)
{
    if (!config->hold || !config->bus.kafka.brokers)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "%s: hold: nobody can hold on Kafka, where retention is the topic's own: remove the "
                      "line, and give the topic a retention.ms beyond the longest outage of a sink "
                      "(bus.kafka.retention in the connector's file)",
                      config->path);
}

static enum spate_rc take_name(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t now = spate_clock_ms();
    struct spate_err why = {0};
    char name[300];
    unsigned hidden;

    if (sink->known || now < sink->known_ms)
        return SPATE_OK;
    sink->known_ms = now + AGAIN_MS;
    if (spate_topic_escape(sink->config->name, name, sizeof name, &why) == SPATE_OK &&
        spate_reader_enlist(sink->feed.reader, name, sink->config->hold, &why) == SPATE_OK) {
        sink->known = true;
        return SPATE_OK;
    }
    if (sink->config->hold && why.verdict != SPATE_RETRY) {
        *err = why;
        return spate_err_context(err, "%s says hold", sink->config->path);
    }
    /* Of who has the name: a predecessor that does not die, or another sink of the same name. */
    if (spate_log_due(&sink->known_log, now, sink->config->hold ? COMPLAIN_MS : RARELY_MS, &hidden))
        spate_log_err(sink->config->hold ? SPATE_LOG_WARN : SPATE_LOG_INFO, "not-known-on-bus", &why);
    return SPATE_OK;
}

enum spate_rc spate_known_turn(struct spate_sink *sink, struct spate_err *err)
{
    if (take_name(sink, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!sink->known)
        return SPATE_OK;
    /* The record at the mark is looked at again by who goes on from there. */
    if (sink->store.stored)
        spate_reader_passed(sink->feed.reader, sink->store.mark.at);
    else if (sink->feed.asks)
        spate_reader_passed(sink->feed.reader, sink->feed.from);
    return SPATE_OK;
}
