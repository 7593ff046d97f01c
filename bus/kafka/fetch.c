/* bus/kafka/fetch.c - taking records out of librdkafka, and asking it. */
#include "bus/kafka/fetch.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define ASK_MS          10000 /* for one question */
#define SLICE_MS        1000  /* between two looks at the signals */
#define GLANCE_MS       50    /* for a question in passing */
#define GLANCE_EVERY_MS 1000
#define SILENT_MS       5000 /* without any broker: worth a line in the log */
#define SILENT_EVERY_MS 30000

enum spate_rc spate_kafka_fetch_may_wait(const struct spate_kafka_fetch *fetch, struct spate_err *err)
{
    if (!spate_signals_stop())
        return SPATE_OK;
    return spate_fail(err, SPATE_RETRY, "told to stop while topic %s gave no answer", fetch->topic.name);
}

static int64_t number(rd_kafka_t *handle, const char *property)
{
    char text[32];
    size_t size = sizeof text;

    return rd_kafka_conf_get(rd_kafka_conf(handle), property, text, &size) == RD_KAFKA_CONF_OK
               ? strtoll(text, NULL, 10)
               : -1;
}

enum spate_rc spate_kafka_fetch_open(struct spate_kafka_fetch *fetch, struct spate_kafka *kafka,
                                     const char *topic, struct spate_err *err)
{
    fetch->kafka = kafka;
    if (spate_kafka_client(kafka, SPATE_KAFKA_CONSUMER, 0, NULL, NULL, &fetch->handle, err) != SPATE_OK ||
        spate_kafka_topic_look(kafka, fetch->handle, topic, &fetch->topic, err) != SPATE_OK)
        return SPATE_FAIL;
    if (number(fetch->handle, "fetch.queue.backoff.ms") < 0)
        fetch->full =
            (struct spate_kafka_amount){.bytes = number(fetch->handle, "queued.max.messages.kbytes") * 1024,
                                        .records = number(fetch->handle, "queued.min.messages")};
    fetch->queue = rd_kafka_queue_new(fetch->handle);
    fetch->log = rd_kafka_topic_new(fetch->handle, fetch->topic.name, NULL);
    if (!fetch->log)
        return spate_kafka_fail(kafka, err, rd_kafka_last_error(), NULL, "preparing topic %s", topic);
    return SPATE_OK;
}

void spate_kafka_fetch_close(struct spate_kafka_fetch *fetch)
{
    spate_kafka_fetch_stop(fetch);
    if (fetch->queue)
        rd_kafka_queue_destroy(fetch->queue);
    if (fetch->log)
        rd_kafka_topic_destroy(fetch->log);
    spate_kafka_client_free(fetch->handle);
}

enum spate_rc spate_kafka_fetch_start(struct spate_kafka_fetch *fetch, int64_t offset, struct spate_err *err)
{
    if (fetch->running)
        return SPATE_OK;
    if (rd_kafka_consume_start_queue(fetch->log, 0, offset, fetch->queue) != 0)
        return spate_kafka_fail(fetch->kafka, err, rd_kafka_last_error(), NULL,
                                "reading topic %s from offset %" PRId64, fetch->topic.name, offset);
    fetch->running = true;
    return SPATE_OK;
}

void spate_kafka_fetch_stop(struct spate_kafka_fetch *fetch)
{
    while (fetch->at < fetch->count)
        rd_kafka_message_destroy(fetch->batch[fetch->at++]);
    if (fetch->running)
        rd_kafka_consume_stop(fetch->log, 0);
    fetch->running = false;
}

/* Before librdkafka has fetch.queue.backoff.ms, its fetcher sleeps for up to a second once its queue was
 * full, though the queue is empty soon after. Seeking to where it stands wakes it. */
static void wake(struct spate_kafka_fetch *fetch, int64_t pos)
{
    if (fetch->full.bytes > 0 &&
        (fetch->drained.bytes >= fetch->full.bytes || fetch->drained.records >= fetch->full.records))
        rd_kafka_seek(fetch->log, 0, pos, 0);
    fetch->drained = (struct spate_kafka_amount){0};
}

static void brokers_are_back(struct spate_kafka_fetch *fetch)
{
    if (fetch->silent)
        spate_log(SPATE_LOG_INFO, "bus-back", "topic=%s after_s=%lld", fetch->topic.name,
                  (long long)(spate_clock_ms() - fetch->down_ms) / 1000);
    fetch->down_ms = 0;
    fetch->silent = false;
}

/* A broker that is gone is no error: librdkafka tries for ever. But somebody should hear of it. */
static void listen_for_silence(struct spate_kafka_fetch *fetch)
{
    const int64_t now = spate_clock_ms();
    struct spate_err why = {0};
    char quoted[1200];
    int64_t low, high;
    unsigned hidden;

    if (spate_kafka_all_down(fetch->handle) && fetch->down_ms == 0)
        fetch->down_ms = now;
    if (fetch->down_ms == 0 || now - fetch->down_ms < SILENT_MS)
        return;
    if (now - fetch->asked_ms >= GLANCE_EVERY_MS) { /* at the end of a log nothing else tells */
        fetch->asked_ms = now;
        if (spate_kafka_ends(fetch->handle, fetch->topic.name, GLANCE_MS, &low, &high) ==
            RD_KAFKA_RESP_ERR_NO_ERROR) {
            brokers_are_back(fetch);
            return;
        }
    }
    if (!spate_log_due(&fetch->silence, now, SILENT_EVERY_MS, &hidden))
        return;
    fetch->silent = true;
    spate_kafka_fail(fetch->kafka, &why, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "reading topic %s",
                     fetch->topic.name);
    spate_log(SPATE_LOG_WARN, "bus-silent",
              "topic=%s for_s=%lld detail=%s words=\"it goes on by itself when the brokers answer\"",
              fetch->topic.name, (long long)(now - fetch->down_ms) / 1000,
              spate_log_quote(quoted, sizeof quoted, why.text));
}

static enum spate_rc nothing_came(struct spate_kafka_fetch *fetch, int64_t pos, struct spate_err *err)
{
    const rd_kafka_resp_err_t code = spate_kafka_topic_trouble(fetch->handle);

    wake(fetch, pos);
    listen_for_silence(fetch);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        return SPATE_AGAIN;
    return spate_kafka_fail(fetch->kafka, err, code, NULL, "reading topic %s from offset %" PRId64,
                            fetch->topic.name, pos);
}

enum spate_rc spate_kafka_fetch_fill(struct spate_kafka_fetch *fetch, int64_t pos, int timeout_ms,
                                     struct spate_err *err)
{
    size_t want = SPATE_KAFKA_BATCH;
    ssize_t got = 0;

    fetch->at = fetch->count = 0;
    if (timeout_ms > 0) { /* for a single one: a larger batch is waited for until it is full */
        spate_kafka_client_poll(fetch->handle, 0);
        got = rd_kafka_consume_batch_queue(fetch->queue, timeout_ms, fetch->batch, 1);
        if (got != 1)
            return nothing_came(fetch, pos, err);
        want--;
    }
    const ssize_t more = rd_kafka_consume_batch_queue(fetch->queue, 0, fetch->batch + got, want);
    fetch->count = (size_t)got + (more > 0 ? (size_t)more : 0);
    return fetch->count > 0 ? SPATE_OK : nothing_came(fetch, pos, err);
}

rd_kafka_message_t *spate_kafka_fetch_take(struct spate_kafka_fetch *fetch)
{
    rd_kafka_message_t *m;

    if (fetch->at == fetch->count)
        return NULL;
    m = fetch->batch[fetch->at++];
    if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        fetch->drained.bytes += (int64_t)(m->len + m->key_len);
        fetch->drained.records++;
        if (fetch->down_ms)
            brokers_are_back(fetch);
    }
    return m;
}

bool spate_kafka_fetch_passes(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
    case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
    case RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE:
    case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
    case RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH:
    case RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH:
    case RD_KAFKA_RESP_ERR__TRANSPORT:
    case RD_KAFKA_RESP_ERR__TIMED_OUT:
    case RD_KAFKA_RESP_ERR__WAIT_CACHE:
        return true;
    default:
        return false;
    }
}

enum spate_rc spate_kafka_fetch_ends(struct spate_kafka_fetch *fetch, int64_t *low, int64_t *high,
                                     struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + ASK_MS;
    rd_kafka_resp_err_t code;

    while ((code = spate_kafka_ends(fetch->handle, fetch->topic.name, SLICE_MS, low, high)) !=
               RD_KAFKA_RESP_ERR_NO_ERROR &&
           spate_kafka_fetch_passes(code) && spate_clock_ms() < deadline &&
           !spate_kafka_hopeless(fetch->handle)) {
        if (spate_kafka_fetch_may_wait(fetch, err) != SPATE_OK)
            return SPATE_FAIL;
        spate_kafka_client_poll(fetch->handle, 50);
    }
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        return SPATE_OK;
    return spate_kafka_fail(fetch->kafka, err, code, NULL, "asking for the end of topic %s",
                            fetch->topic.name);
}

int64_t spate_kafka_fetch_end_told(const struct spate_kafka_fetch *fetch)
{
    int64_t low, high;

    if (!fetch->running || rd_kafka_get_watermark_offsets(fetch->handle, fetch->topic.name, 0, &low, &high) !=
                               RD_KAFKA_RESP_ERR_NO_ERROR)
        return -1;
    return high;
}

enum spate_rc spate_kafka_fetch_name(struct spate_kafka_fetch *fetch, char *out, size_t size,
                                     struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + ASK_MS;
    char *cluster;

    while (!(cluster = rd_kafka_clusterid(fetch->handle, SLICE_MS)) && spate_clock_ms() < deadline)
        if (spate_kafka_fetch_may_wait(fetch, err) != SPATE_OK)
            return SPATE_FAIL;
    if (!cluster)
        return spate_kafka_fail(fetch->kafka, err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL,
                                "asking for the cluster's id");
    snprintf(out, size, "%.60s/%s", cluster, fetch->topic.name);
    rd_kafka_mem_free(fetch->handle, cluster);
    return SPATE_OK;
}
