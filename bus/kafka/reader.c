/* bus/kafka/reader.c - a topic's reader: partition 0 by offset, without a consumer group.
 *
 * Two offsets carry the promises of bus/bus.h: `pos`, from where records are still to come, and `known`, the
 * end as a broker last told it. While pos is below known, next() waits for the network. A compacted or
 * transactional log has offsets without a record (K33): the end-of-partition event of librdkafka moves pos
 * over those at the end. */
#include "bus/kafka/log.h"
#include "bus/kafka/topic.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define BATCH           512
#define BACK_RECORDS    4096
#define ANSWER_MS       30000 /* for records that are known to be there */
#define ASK_MS          10000 /* for one question to a broker */
#define SLICE_MS        1000  /* between two looks at the signals */
#define LOOK_MS         500   /* between two looks whether the log has grown to where this reader waits */
#define SILENT_MS       5000  /* without any broker: worth a line in the log */
#define SILENT_EVERY_MS 30000
#define DAMAGED_MOST    3 /* a record that is damaged on its way is fetched again so many times (F14) */

struct amount {
    int64_t bytes, records;
};

struct reader {
    struct spate_reader base;
    struct spate_kafka *kafka;
    struct spate_kafka_topic topic;
    rd_kafka_t *handle;
    rd_kafka_topic_t *log;
    rd_kafka_queue_t *queue;
    bool fetching;
    int64_t pos, known;
    int64_t reached;  /* the log was at least that long while this reader looked (K25) */
    bool beyond;      /* pos is above the end: nothing can be fetched from there, it waits */
    int64_t look_ms;  /* when to ask again, while beyond */
    bool from_oldest; /* nothing read yet, and whatever is the oldest will do */
    bool gap;
    int64_t gap_from;            /* up to pos */
    struct amount drained, full; /* taken since the queue was empty; where librdkafka stops fetching */
    unsigned damaged;            /* times in a row that what stands at pos could not be read */
    int64_t down_ms;             /* since when there was no broker; 0: there is one */
    bool silent;                 /* that was said */
    struct spate_log_limit silence;
    bool failed; /* wait met an error that the next call of next reports */
    struct spate_err failure;
    rd_kafka_message_t *batch[BATCH];
    size_t at, count;
    rd_kafka_message_t *lent; /* what the caller looks at */
    char log_id[320];
};

static void give_back(struct reader *r)
{
    if (r->lent)
        rd_kafka_message_destroy(r->lent);
    r->lent = NULL;
}

/* Stops; the next fetch begins at pos. */
static void restart(struct reader *r)
{
    give_back(r);
    while (r->at < r->count)
        rd_kafka_message_destroy(r->batch[r->at++]);
    r->at = r->count = 0;
    if (r->fetching)
        rd_kafka_consume_stop(r->log, 0);
    r->fetching = false;
}

static enum spate_rc fetch(struct reader *r, struct spate_err *err)
{
    if (r->fetching)
        return SPATE_OK;
    if (rd_kafka_consume_start_queue(r->log, 0, r->pos, r->queue) != 0)
        return spate_kafka_fail(r->kafka, err, rd_kafka_last_error(), NULL,
                                "reading topic %s from offset %" PRId64, r->topic.name, r->pos);
    r->fetching = true;
    return SPATE_OK;
}

static enum spate_rc lost_its_tail(const struct reader *r, int64_t high, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s ends at offset %" PRId64 ", but was read up to offset %" PRId64
        " before: it lost its tail (an unclean leader election, a restored disk), or was deleted "
        "and made anew",
        r->topic.name, high, r->reached);
}

/* Worth asking again: a leader is being found, or a broker started. */
static bool passes(rd_kafka_resp_err_t code)
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

static enum spate_rc told_to_stop(const struct reader *r, struct spate_err *err)
{
    return spate_fail(err, SPATE_RETRY, "told to stop while topic %s gave no answer", r->topic.name);
}

/* The oldest offset and the end, as the partition's leader knows them now. */
static enum spate_rc ask(struct reader *r, int64_t *low, int64_t *high, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + ASK_MS;
    rd_kafka_resp_err_t code;

    while ((code = spate_kafka_ends(r->handle, r->topic.name, SLICE_MS, low, high)) !=
               RD_KAFKA_RESP_ERR_NO_ERROR &&
           passes(code) && spate_clock_ms() < deadline && !spate_kafka_hopeless(r->handle)) {
        if (spate_signals_stop())
            return told_to_stop(r, err);
        spate_kafka_client_poll(r->handle, 50);
    }
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return spate_kafka_fail(r->kafka, err, code, NULL, "asking for the end of topic %s", r->topic.name);
    if (*high < r->reached)
        return lost_its_tail(r, *high, err);
    r->reached = *high;
    r->known = *high;
    return SPATE_OK;
}

/* Stands at `pos` of a log that goes from low to known. */
static void stand(struct reader *r, int64_t pos, int64_t low)
{
    r->gap = pos < low;
    r->gap_from = pos;
    r->pos = pos < low ? low : pos;
    if (r->pos > r->known && !r->beyond)
        spate_log(SPATE_LOG_WARN, "position-beyond-the-end",
                  "topic=%s position=%" PRId64 " end=%" PRId64
                  " words=\"the topic lost its tail, or was made anew; waiting for it to come that far\"",
                  r->topic.name, r->pos, r->known);
    r->beyond = r->pos > r->known;
    r->look_ms = 0;
}

/* The broker does not have pos. */
static enum spate_rc out_of_range(struct reader *r, struct spate_err *err)
{
    int64_t low, high;

    restart(r);
    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    stand(r, r->pos, low);
    if (r->from_oldest)
        r->gap = false;
    return SPATE_OK;
}

/* Bytes that are damaged on the network are not worth a process; those on a broker's disk stay so (K28). */
static enum spate_rc met_damage(struct reader *r, const rd_kafka_message_t *m, struct spate_err *err)
{
    if (++r->damaged < DAMAGED_MOST) {
        spate_log(SPATE_LOG_WARN, "kafka-damaged", "topic=%s offset=%" PRId64 " detail=\"fetched again\"",
                  r->topic.name, r->pos);
        restart(r);
        return SPATE_OK;
    }
    return spate_fail(err, SPATE_FATAL,
                      "topic %s is damaged at or behind offset %" PRId64
                      ": %s. Fetched %d times with the same result; compare the replicas of that partition, "
                      "or mend the network in between",
                      r->topic.name, r->pos, rd_kafka_message_errstr(m), DAMAGED_MOST);
}

/* An event among the records. */
static enum spate_rc heed(struct reader *r, const rd_kafka_message_t *m, struct spate_err *err)
{
    switch (m->err) {
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
        if (m->offset > r->pos)
            r->pos = m->offset;
        if (r->pos > r->known)
            r->known = r->pos;
        return SPATE_OK;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
        return out_of_range(r, err);
    case RD_KAFKA_RESP_ERR__BAD_MSG:
    case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
    case RD_KAFKA_RESP_ERR_INVALID_MSG:
        return met_damage(r, m, err);
    default:
        if (passes(m->err)) /* the fetcher goes on by itself; next() knows how long is too long */
            return SPATE_OK;
        return spate_kafka_fail(r->kafka, err, m->err, rd_kafka_message_errstr(m),
                                "reading topic %s from offset %" PRId64, r->topic.name, r->pos);
    }
}

/* Before librdkafka has fetch.queue.backoff.ms, its fetcher sleeps for up to a second once its queue was
 * full, though the queue is empty soon after. Seeking to where it stands wakes it. */
static void wake_fetcher(struct reader *r)
{
    if (r->full.bytes > 0 && (r->drained.bytes >= r->full.bytes || r->drained.records >= r->full.records))
        rd_kafka_seek(r->log, 0, r->pos, 0);
    r->drained = (struct amount){0};
}

/* Takes what librdkafka has; waits for the first of it. A batch call would wait until the batch is full. */
static void fill(struct reader *r, int timeout_ms)
{
    size_t want = BATCH;
    ssize_t got = 0;

    r->at = r->count = 0;
    if (timeout_ms > 0) {
        spate_kafka_client_poll(r->handle, 0);
        got = rd_kafka_consume_batch_queue(r->queue, timeout_ms, r->batch, 1);
        if (got != 1)
            return;
        want--;
    }
    const ssize_t more = rd_kafka_consume_batch_queue(r->queue, 0, r->batch + got, want);
    r->count = (size_t)got + (more > 0 ? (size_t)more : 0);
    if (r->count == 0)
        wake_fetcher(r);
}

/* While nothing comes: is there still something to come from? */
static enum spate_rc still_there(struct reader *r, struct spate_err *err)
{
    const rd_kafka_resp_err_t code = spate_kafka_topic_trouble(r->handle);

    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        return SPATE_OK;
    return spate_kafka_fail(r->kafka, err, code, NULL, "reading topic %s from offset %" PRId64, r->topic.name,
                            r->pos);
}

static void brokers_are_back(struct reader *r)
{
    if (r->silent)
        spate_log(SPATE_LOG_INFO, "bus-back", "topic=%s after_s=%lld", r->topic.name,
                  (long long)(spate_clock_ms() - r->down_ms) / 1000);
    r->down_ms = 0;
    r->silent = false;
}

/* A broker that is gone is no error: librdkafka tries for ever. But somebody should hear of it. */
static void listen_for_silence(struct reader *r)
{
    const int64_t now = spate_clock_ms();
    struct spate_err why = {0};
    char quoted[1200];
    int64_t low, high;
    unsigned hidden;

    if (spate_kafka_all_down(r->handle) && r->down_ms == 0)
        r->down_ms = now;
    if (r->down_ms == 0 || now - r->down_ms < SILENT_MS)
        return;
    if (now >= r->look_ms) {
        r->look_ms = now + LOOK_MS;
        if (spate_kafka_ends(r->handle, r->topic.name, 50, &low, &high) == RD_KAFKA_RESP_ERR_NO_ERROR) {
            brokers_are_back(r);
            return;
        }
    }
    if (!spate_log_due(&r->silence, now, SILENT_EVERY_MS, &hidden))
        return;
    r->silent = true;
    spate_kafka_fail(r->kafka, &why, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "reading topic %s", r->topic.name);
    spate_log(SPATE_LOG_WARN, "bus-silent",
              "topic=%s for_s=%lld detail=%s words=\"it goes on by itself when the brokers answer\"",
              r->topic.name, (long long)(now - r->down_ms) / 1000,
              spate_log_quote(quoted, sizeof quoted, why.text));
}

/* Answers to fetches tell the end as well. */
static void raise_known(struct reader *r)
{
    int64_t low, high;

    if (r->fetching &&
        rd_kafka_get_watermark_offsets(r->handle, r->topic.name, 0, &low, &high) ==
            RD_KAFKA_RESP_ERR_NO_ERROR &&
        high > r->known)
        r->known = high;
    if (r->known > r->reached)
        r->reached = r->known;
}

/* The next record of the batch. SPATE_AGAIN: the batch is used up, or an event changed where to read. */
static enum spate_rc take(struct reader *r, struct spate_message *message, struct spate_err *err)
{
    while (r->at < r->count) {
        rd_kafka_message_t *m = r->batch[r->at++];
        if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR && m->offset >= r->pos) {
            rd_kafka_timestamp_type_t type;
            r->lent = m;
            r->pos = m->offset + 1;
            r->drained.bytes += (int64_t)(m->len + m->key_len);
            r->drained.records++;
            if (r->down_ms)
                brokers_are_back(r);
            r->damaged = 0;
            r->from_oldest = false;
            message->kind = SPATE_MESSAGE_RECORD;
            message->pos.at = (uint64_t)m->offset;
            message->next.at = (uint64_t)r->pos;
            message->ts_us = rd_kafka_message_timestamp(m, &type) * 1000;
            message->key = spate_slice(m->key, m->key_len);
            message->value = spate_slice(m->payload, m->len);
            return SPATE_OK;
        }
        const enum spate_rc rc = m->err ? heed(r, m, err) : SPATE_OK; /* else K27: fetched twice */
        rd_kafka_message_destroy(m);
        if (rc != SPATE_OK)
            return rc;
    }
    return SPATE_AGAIN;
}

/* Nothing came for long, though the end is further on. SPATE_OK: the end has moved. */
static enum spate_rc unanswered(struct reader *r, struct spate_err *err)
{
    const int64_t believed = r->known;
    int64_t low, high;

    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    if (high < believed)
        return SPATE_OK;
    return spate_kafka_fail(r->kafka, err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL,
                            "fetching topic %s from offset %" PRId64 " (its end is %" PRId64 ") for %d s",
                            r->topic.name, r->pos, high, ANSWER_MS / 1000);
}

static void show_gap(struct reader *r, struct spate_message *message)
{
    *message = (struct spate_message){
        .kind = SPATE_MESSAGE_GAP, .pos = {.at = (uint64_t)r->gap_from}, .next = {.at = (uint64_t)r->pos}};
    r->gap = false;
}

static enum spate_rc next(struct spate_reader *base, struct spate_message *message, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    int64_t deadline = 0;

    give_back(r);
    if (r->failed) {
        r->failed = false;
        *err = r->failure;
        return SPATE_FAIL;
    }
    for (;;) {
        if (r->gap) {
            show_gap(r, message);
            return SPATE_OK;
        }
        enum spate_rc rc = take(r, message, err);
        if (rc != SPATE_AGAIN)
            return rc;
        if (r->gap)
            continue;
        if (r->beyond)
            return SPATE_AGAIN;
        if (fetch(r, err) != SPATE_OK)
            return SPATE_FAIL;
        fill(r, 0);
        if (r->count > 0)
            continue;
        if (still_there(r, err) != SPATE_OK)
            return SPATE_FAIL;
        if (r->pos >= r->known)
            return SPATE_AGAIN;
        if (deadline == 0)
            deadline = spate_clock_ms() + ANSWER_MS;
        fill(r, 100);
        listen_for_silence(r);
        if (r->count == 0 && spate_signals_stop())
            return told_to_stop(r, err);
        if (r->count == 0 && spate_clock_ms() > deadline) {
            if (unanswered(r, err) != SPATE_OK)
                return SPATE_FAIL;
            deadline = 0;
        }
    }
}

/* Waits above the end until the log has come that far. */
static enum spate_rc wait_beyond(struct reader *r, int64_t left_ms)
{
    const int64_t now = spate_clock_ms();
    int64_t low, high;

    if (now >= r->look_ms) {
        r->failed = ask(r, &low, &high, &r->failure) != SPATE_OK;
        if (r->failed)
            return SPATE_OK;
        stand(r, r->pos, low);
        if (!r->beyond)
            return SPATE_OK;
        r->look_ms = spate_clock_ms() + LOOK_MS;
    }
    if (left_ms > 0 && poll(NULL, 0, (int)(left_ms < LOOK_MS ? left_ms : LOOK_MS)) < 0 && errno == EINTR)
        return SPATE_END; /* the caller may want to look at its signals */
    return SPATE_AGAIN;
}

/* Waits for records. An end-of-partition event is nothing to wake up for. */
static enum spate_rc wait_fetch(struct reader *r, int64_t left_ms)
{
    r->failed = fetch(r, &r->failure) != SPATE_OK;
    if (r->failed)
        return SPATE_OK;
    if (r->at == r->count)
        fill(r, (int)left_ms);
    while (r->at < r->count && r->batch[r->at]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        rd_kafka_message_t *m = r->batch[r->at++];
        r->failed = heed(r, m, &r->failure) != SPATE_OK;
        rd_kafka_message_destroy(m);
    }
    if (r->at == r->count && !r->failed) {
        r->failed = still_there(r, &r->failure) != SPATE_OK;
        listen_for_silence(r);
    }
    return r->at < r->count || r->failed ? SPATE_OK : SPATE_AGAIN;
}

static enum spate_rc wait_reader(struct spate_reader *base, int timeout_ms, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    (void)err; /* what goes wrong here is kept for next(), which has to be called anyway */
    give_back(r);
    for (;;) {
        if (r->failed || r->gap)
            return SPATE_OK;
        const int64_t left = timeout_ms > 0 ? deadline - spate_clock_ms() : 0;
        const enum spate_rc rc = r->beyond ? wait_beyond(r, left) : wait_fetch(r, left > 0 ? left : 0);
        raise_known(r);
        if (rc == SPATE_OK && !r->beyond && !r->failed && !r->gap && r->at == r->count)
            continue; /* the log has grown up to pos */
        if (rc == SPATE_OK)
            return SPATE_OK;
        if (rc == SPATE_END || timeout_ms <= 0 || spate_clock_ms() >= deadline)
            return SPATE_AGAIN;
    }
}

static struct spate_bus_pos end(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    raise_known(r);
    return (struct spate_bus_pos){.at = (uint64_t)r->known};
}

static enum spate_rc seek(struct spate_reader *base, struct spate_start start, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    int64_t low, high;

    restart(r);
    r->failed = false;
    r->damaged = 0;
    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    r->from_oldest = start.from == SPATE_START_OLDEST;
    if (start.from == SPATE_START_AT && start.pos.at > INT64_MAX)
        return spate_fail(err, SPATE_FATAL, "%" PRIu64 " is no offset of topic %s", start.pos.at,
                          r->topic.name);
    stand(r, start.from == SPATE_START_AT ? (int64_t)start.pos.at : r->from_oldest ? low : high, low);
    return SPATE_OK;
}

static enum spate_rc back(struct spate_reader *base, struct spate_bus_pos before, struct spate_bus_pos *start,
                          struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    int64_t low, high;

    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    if (before.at <= (uint64_t)low)
        return SPATE_END;
    int64_t from = before.at > (uint64_t)high ? high : (int64_t)before.at;
    from = from - low > BACK_RECORDS ? from - BACK_RECORDS : low;
    restart(r);
    r->failed = false;
    r->damaged = 0;
    r->from_oldest = false;
    stand(r, from, low);
    start->at = (uint64_t)from;
    return SPATE_OK;
}

static const char *log_id(struct spate_reader *base)
{
    return ((struct reader *)base)->log_id;
}

static void close_reader(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    restart(r);
    if (r->queue)
        rd_kafka_queue_destroy(r->queue);
    if (r->log)
        rd_kafka_topic_destroy(r->log);
    spate_kafka_client_free(r->handle);
    free(r);
}

static const struct spate_reader_ops reader_ops = {.next = next,
                                                   .wait = wait_reader,
                                                   .seek = seek,
                                                   .back = back,
                                                   .end = end,
                                                   .log_id = log_id,
                                                   .close = close_reader};

static int64_t number(rd_kafka_t *handle, const char *property)
{
    char text[32];
    size_t size = sizeof text;

    return rd_kafka_conf_get(rd_kafka_conf(handle), property, text, &size) == RD_KAFKA_CONF_OK
               ? strtoll(text, NULL, 10)
               : -1;
}

/* 2.0.2 knows no topic ids (K10): one that was made anew in the same cluster is told by its epochs. */
static enum spate_rc name_log(struct reader *r, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + ASK_MS;
    char *cluster;

    while (!(cluster = rd_kafka_clusterid(r->handle, SLICE_MS)) && spate_clock_ms() < deadline)
        if (spate_signals_stop())
            return told_to_stop(r, err);
    if (!cluster)
        return spate_kafka_fail(r->kafka, err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL,
                                "asking for the cluster's id");
    snprintf(r->log_id, sizeof r->log_id, "%.60s/%s", cluster, r->topic.name);
    rd_kafka_mem_free(r->handle, cluster);
    return SPATE_OK;
}

enum spate_rc spate_kafka_reader_open(struct spate_kafka *kafka, const char *topic, struct spate_start start,
                                      struct spate_reader **reader, struct spate_err *err)
{
    struct reader *r = spate_zalloc(sizeof *r);

    r->base.ops = &reader_ops;
    r->kafka = kafka;
    enum spate_rc rc = spate_kafka_client(kafka, SPATE_KAFKA_CONSUMER, 0, NULL, NULL, &r->handle, err);
    if (rc == SPATE_OK)
        rc = spate_kafka_topic_look(kafka, r->handle, topic, &r->topic, err);
    if (rc == SPATE_OK)
        rc = name_log(r, err);
    if (rc == SPATE_OK) {
        r->log = rd_kafka_topic_new(r->handle, r->topic.name, NULL);
        r->queue = rd_kafka_queue_new(r->handle);
        if (number(r->handle, "fetch.queue.backoff.ms") < 0)
            r->full = (struct amount){.bytes = number(r->handle, "queued.max.messages.kbytes") * 1024,
                                      .records = number(r->handle, "queued.min.messages")};
        if (!r->log)
            rc = spate_kafka_fail(kafka, err, rd_kafka_last_error(), NULL, "preparing topic %s", topic);
    }
    if (rc == SPATE_OK)
        rc = seek(&r->base, start, err);
    if (rc != SPATE_OK) {
        close_reader(&r->base);
        return rc;
    }
    *reader = &r->base;
    return SPATE_OK;
}
