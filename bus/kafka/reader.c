/* bus/kafka/reader.c - a topic's reader: partition 0 by offset, without a consumer group.
 *
 * Two offsets carry the promises of bus/bus.h: `pos`, from where records are still to come, and `known`, the
 * end as a broker last told it. While pos is below known, next() waits for the network. A compacted or
 * transactional log has offsets without a record (K33): the end-of-partition event of librdkafka moves pos
 * over those at the end. */
#include "bus/kafka/fetch.h"
#include "bus/kafka/log.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>

#define BACK_RECORDS 4096
#define ANSWER_MS    30000 /* for records that are known to be there */
#define FETCH_MS     100   /* of that, between two looks at the signals */
#define LOOK_MS      500   /* between two looks whether the log has grown to where this reader waits */
#define DAMAGED_MOST 3     /* a record that is damaged on its way is fetched again so many times (F14) */

struct reader {
    struct spate_reader base;
    struct spate_kafka_fetch fetch;
    int64_t pos, known;
    int64_t reached;  /* the log was at least that long while this reader looked (K25) */
    bool doubtful;    /* fetches tell an end that cannot be read up to: another's open transaction (K30) */
    bool beyond;      /* pos is above the end: nothing can be fetched from there, it waits */
    int64_t look_ms;  /* when to ask again, while beyond */
    bool from_oldest; /* nothing read yet, and whatever is the oldest will do */
    bool gap;
    int64_t gap_from; /* up to pos */
    unsigned damaged; /* times in a row that what stands at pos could not be read */
    bool failed;      /* wait met an error that the next call of next reports */
    struct spate_err failure;
    rd_kafka_message_t *lent; /* what the caller looks at */
    char log_id[320];
};

static void give_back(struct reader *r)
{
    if (r->lent)
        rd_kafka_message_destroy(r->lent);
    r->lent = NULL;
}

static const char *name(const struct reader *r)
{
    return r->fetch.topic.name;
}

/* The log is that long. */
static void reach(struct reader *r, int64_t end)
{
    if (end > r->known)
        r->known = end;
    if (end > r->reached)
        r->reached = end;
}

static enum spate_rc lost_its_tail(const struct reader *r, int64_t high, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s ends at offset %" PRId64 ", but was read up to offset %" PRId64
        " before: it lost its tail (an unclean leader election, a restored disk), or was deleted "
        "and made anew",
        name(r), high, r->reached);
}

static enum spate_rc ask(struct reader *r, int64_t *low, int64_t *high, struct spate_err *err)
{
    if (spate_kafka_fetch_ends(&r->fetch, low, high, err) != SPATE_OK)
        return SPATE_FAIL;
    if (*high < r->reached)
        return lost_its_tail(r, *high, err);
    r->known = *high; /* which may be less than a fetch told */
    r->reached = *high;
    return SPATE_OK;
}

/* Stands at `pos` of a log that goes from low to known. */
static void stand(struct reader *r, int64_t pos, int64_t low)
{
    r->gap = pos < low && !r->from_oldest;
    r->gap_from = pos;
    r->pos = pos < low ? low : pos;
    if (r->pos > r->known && !r->beyond)
        spate_log(SPATE_LOG_WARN, "position-beyond-the-end",
                  "topic=%s position=%" PRId64 " end=%" PRId64
                  " words=\"the topic lost its tail, or was made anew; waiting for it to come that far\"",
                  name(r), r->pos, r->known);
    r->beyond = r->pos > r->known;
    r->look_ms = spate_clock_ms() + LOOK_MS;
}

/* The broker does not have pos. */
static enum spate_rc out_of_range(struct reader *r, struct spate_err *err)
{
    int64_t low, high;

    spate_kafka_fetch_stop(&r->fetch);
    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    stand(r, r->pos, low);
    return SPATE_OK;
}

/* Bytes that are damaged on the network are not worth a process; those on a broker's disk stay so (K28). */
static enum spate_rc met_damage(struct reader *r, const rd_kafka_message_t *m, struct spate_err *err)
{
    if (++r->damaged < DAMAGED_MOST) {
        spate_log(SPATE_LOG_WARN, "kafka-damaged", "topic=%s offset=%" PRId64 " words=\"fetched again\"",
                  name(r), r->pos);
        spate_kafka_fetch_stop(&r->fetch);
        return SPATE_OK;
    }
    return spate_fail(err, SPATE_FATAL,
                      "topic %s is damaged at or behind offset %" PRId64
                      ": %s. Fetched %d times with the same result; compare the replicas of that partition, "
                      "or mend the network in between",
                      name(r), r->pos, rd_kafka_message_errstr(m), DAMAGED_MOST);
}

/* An event among the records. */
static enum spate_rc heed(struct reader *r, const rd_kafka_message_t *m, struct spate_err *err)
{
    switch (m->err) {
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
        if (m->offset > r->pos)
            r->pos = m->offset;
        reach(r, r->pos);
        return SPATE_OK;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
        return out_of_range(r, err);
    case RD_KAFKA_RESP_ERR__BAD_MSG:
    case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
    case RD_KAFKA_RESP_ERR_INVALID_MSG:
        return met_damage(r, m, err);
    default:
        if (spate_kafka_fetch_passes(m->err)) /* next() knows how long is too long */
            return SPATE_OK;
        return spate_kafka_fail(r->fetch.kafka, err, m->err, rd_kafka_message_errstr(m),
                                "reading topic %s from offset %" PRId64, name(r), r->pos);
    }
}

static void show(struct reader *r, rd_kafka_message_t *m, struct spate_message *message)
{
    rd_kafka_timestamp_type_t type;

    r->lent = m;
    r->pos = m->offset + 1;
    r->damaged = 0;
    r->from_oldest = false;
    reach(r, r->pos);
    message->kind = SPATE_MESSAGE_RECORD;
    message->pos.at = (uint64_t)m->offset;
    message->next.at = (uint64_t)r->pos;
    message->ts_us = rd_kafka_message_timestamp(m, &type) * 1000;
    message->key = spate_slice(m->key, m->key_len);
    message->value = spate_slice(m->payload, m->len);
}

static void show_gap(struct reader *r, struct spate_message *message)
{
    *message = (struct spate_message){
        .kind = SPATE_MESSAGE_GAP, .pos = {.at = (uint64_t)r->gap_from}, .next = {.at = (uint64_t)r->pos}};
    r->gap = false;
}

/* The next record of the batch. SPATE_AGAIN: there is none, or an event changed where to read. */
static enum spate_rc take(struct reader *r, struct spate_message *message, struct spate_err *err)
{
    rd_kafka_message_t *m;

    while (!r->gap && (m = spate_kafka_fetch_take(&r->fetch)) != NULL) {
        if (m->err == RD_KAFKA_RESP_ERR_NO_ERROR && m->offset >= r->pos) {
            show(r, m, message);
            return SPATE_OK;
        }
        const enum spate_rc rc = m->err ? heed(r, m, err) : SPATE_OK; /* else K27: fetched twice */
        rd_kafka_message_destroy(m);
        if (rc != SPATE_OK)
            return rc;
    }
    if (!r->gap)
        return SPATE_AGAIN;
    show_gap(r, message);
    return SPATE_OK;
}

/* Nothing came for long, though the end is further on. SPATE_OK: it is not. */
static enum spate_rc unanswered(struct reader *r, struct spate_err *err)
{
    const int64_t believed = r->known;
    int64_t low, high;

    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    r->doubtful = high < believed;
    if (r->doubtful)
        return SPATE_OK;
    return spate_kafka_fail(r->fetch.kafka, err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL,
                            "fetching topic %s from offset %" PRId64 " (its end is %" PRId64 ") for %d s",
                            name(r), r->pos, high, ANSWER_MS / 1000);
}

/* One step of waiting for what is known to be there. SPATE_OK: look again. */
static enum spate_rc await(struct reader *r, int64_t *deadline, struct spate_err *err)
{
    if (*deadline == 0)
        *deadline = spate_clock_ms() + ANSWER_MS;
    const enum spate_rc rc = spate_kafka_fetch_fill(&r->fetch, r->pos, FETCH_MS, err);
    if (rc != SPATE_AGAIN)
        return rc;
    if (spate_kafka_fetch_may_wait(&r->fetch, err) != SPATE_OK)
        return SPATE_FAIL;
    if (spate_clock_ms() < *deadline)
        return SPATE_OK;
    *deadline = 0;
    return unanswered(r, err);
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
        enum spate_rc rc = take(r, message, err);
        if (rc != SPATE_AGAIN || r->beyond)
            return rc;
        if (spate_kafka_fetch_start(&r->fetch, r->pos, err) != SPATE_OK)
            return SPATE_FAIL;
        rc = spate_kafka_fetch_fill(&r->fetch, r->pos, 0, err);
        if (rc == SPATE_AGAIN && r->pos < r->known)
            rc = await(r, &deadline, err);
        if (rc != SPATE_OK)
            return rc;
    }
}

/* Waits above the end until the log has come that far. SPATE_END: a signal came. */
static enum spate_rc wait_beyond(struct reader *r, int left_ms)
{
    const int64_t now = spate_clock_ms();
    const int slice = left_ms < LOOK_MS ? left_ms : LOOK_MS;
    int64_t low, high;

    if (now < r->look_ms)
        return left_ms > 0 && poll(NULL, 0, slice) < 0 && errno == EINTR ? SPATE_END : SPATE_AGAIN;
    r->look_ms = now + LOOK_MS;
    if (spate_kafka_ends(r->fetch.handle, name(r), slice, &low, &high) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        reach(r, high);
        r->beyond = r->pos > r->known;
    }
    return SPATE_AGAIN;
}

/* Waits for records. An end-of-partition event is nothing to wake up for. */
static enum spate_rc wait_fetch(struct reader *r, int left_ms)
{
    struct spate_kafka_fetch *fetch = &r->fetch;
    enum spate_rc rc = spate_kafka_fetch_start(fetch, r->pos, &r->failure);

    if (rc == SPATE_OK && fetch->at == fetch->count)
        rc = spate_kafka_fetch_fill(fetch, r->pos, left_ms, &r->failure);
    while (rc == SPATE_OK && fetch->at < fetch->count &&
           fetch->batch[fetch->at]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        rd_kafka_message_t *m = spate_kafka_fetch_take(fetch);
        rc = heed(r, m, &r->failure);
        rd_kafka_message_destroy(m);
    }
    r->failed = rc == SPATE_FAIL;
    if (!r->doubtful)
        reach(r, spate_kafka_fetch_end_told(fetch));
    return r->failed || fetch->at < fetch->count ? SPATE_OK : SPATE_AGAIN;
}

static enum spate_rc wait_reader(struct spate_reader *base, int timeout_ms, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    const int64_t deadline = spate_clock_ms() + timeout_ms;
    int64_t left = timeout_ms;

    (void)err; /* what goes wrong here is kept for next(), which has to be called anyway */
    give_back(r);
    if (r->failed || r->gap)
        return SPATE_OK;
    do {
        const int ms = left > 0 ? (int)left : 0;
        const enum spate_rc rc = r->beyond ? wait_beyond(r, ms) : wait_fetch(r, ms);
        if (rc != SPATE_AGAIN)
            return rc == SPATE_OK ? SPATE_OK : SPATE_AGAIN;
        left = deadline - spate_clock_ms();
    } while (left > 0);
    return SPATE_AGAIN;
}

static struct spate_bus_pos end(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    if (!r->doubtful)
        reach(r, spate_kafka_fetch_end_told(&r->fetch));
    return (struct spate_bus_pos){.at = (uint64_t)r->known};
}

static void move(struct reader *r, int64_t pos, int64_t low, bool from_oldest)
{
    give_back(r);
    spate_kafka_fetch_stop(&r->fetch);
    r->failed = false;
    r->damaged = 0;
    r->beyond = false;
    r->from_oldest = from_oldest;
    stand(r, pos, low);
}

static enum spate_rc seek(struct spate_reader *base, struct spate_start start, struct spate_err *err)
{
    struct reader *r = (struct reader *)base;
    int64_t low, high;

    if (start.from == SPATE_START_AT && start.pos.at > INT64_MAX)
        return spate_fail(err, SPATE_FATAL, "%" PRIu64 " is no offset of topic %s", start.pos.at, name(r));
    if (ask(r, &low, &high, err) != SPATE_OK)
        return SPATE_FAIL;
    if (start.from == SPATE_START_AT)
        move(r, (int64_t)start.pos.at, low, false);
    else if (start.from == SPATE_START_NOW)
        move(r, high, low, false);
    else
        move(r, low, low, true);
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
    const int64_t from = before.at < (uint64_t)high ? (int64_t)before.at : high;
    move(r, from - low > BACK_RECORDS ? from - BACK_RECORDS : low, low, false);
    start->at = (uint64_t)r->pos;
    return SPATE_OK;
}

static const char *log_id(struct spate_reader *base)
{
    return ((struct reader *)base)->log_id;
}

static void close_reader(struct spate_reader *base)
{
    struct reader *r = (struct reader *)base;

    give_back(r);
    spate_kafka_fetch_close(&r->fetch);
    free(r);
}

/* Who reads is nobody's business on a broker, and what is kept its own. */
static enum spate_rc enlist(struct spate_reader *base, const char *name, bool hold, struct spate_err *err)
{
    (void)base;
    if (!hold)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(
        err, SPATE_FATAL,
        "%s cannot hold on Kafka, where retention is the topic's own: remove `hold`, and give the "
        "topic a retention.ms beyond the longest outage (bus.kafka.retention)",
        name);
}

static void passed(struct spate_reader *base, struct spate_bus_pos pos)
{
    (void)base, (void)pos;
}

static const struct spate_reader_ops reader_ops = {.next = next,
                                                   .wait = wait_reader,
                                                   .seek = seek,
                                                   .back = back,
                                                   .end = end,
                                                   .log_id = log_id,
                                                   .enlist = enlist,
                                                   .passed = passed,
                                                   .close = close_reader};

/* 2.0.2 knows no topic ids (K10): a topic that was made anew in the same cluster is told by its epochs. */
enum spate_rc spate_kafka_reader_open(struct spate_kafka *kafka, const char *topic, struct spate_start start,
                                      struct spate_reader **reader, struct spate_err *err)
{
    struct reader *r = spate_zalloc(sizeof *r);
    enum spate_rc rc;

    r->base.ops = &reader_ops;
    rc = spate_kafka_fetch_open(&r->fetch, kafka, topic, err);
    if (rc == SPATE_OK)
        rc = spate_kafka_fetch_name(&r->fetch, r->log_id, sizeof r->log_id, err);
    if (rc == SPATE_OK)
        rc = seek(&r->base, start, err);
    if (rc != SPATE_OK) {
        close_reader(&r->base);
        return rc;
    }
    *reader = &r->base;
    return SPATE_OK;
}
