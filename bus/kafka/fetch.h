/* bus/kafka/fetch.h - librdkafka's side of a reader: a consumer of partition 0 without a group, its queue,
 * and what it tells beside the records.
 *
 * Thread: its owner's. Blocks: as each function says. */
#ifndef SPATE_BUS_KAFKA_FETCH_H
#define SPATE_BUS_KAFKA_FETCH_H

#include "bus/kafka/topic.h"

#define SPATE_KAFKA_BATCH 512

struct spate_kafka_amount {
    int64_t bytes, records;
};

struct spate_kafka_fetch {
    struct spate_kafka *kafka;
    struct spate_kafka_topic topic;
    rd_kafka_t *handle;
    rd_kafka_topic_t *log;
    rd_kafka_queue_t *queue;
    bool running;
    rd_kafka_message_t *batch[SPATE_KAFKA_BATCH]; /* taken from the queue, from `at` on not looked at yet */
    size_t at, count;
    struct spate_kafka_amount drained; /* looked at since the queue was empty */
    struct spate_kafka_amount full;    /* where librdkafka stops fetching; 0: it wakes up by itself */
    int64_t down_ms, asked_ms;         /* since when there was no broker; when that was looked at last */
    bool silent;                       /* and a line said so */
    struct spate_log_limit silence;
};

/* Looks the topic up (seconds at most; retry: there is none yet). To be closed also after a failure. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_open(struct spate_kafka_fetch *fetch, struct spate_kafka *kafka,
                                                   const char *topic, struct spate_err *err);
void spate_kafka_fetch_close(struct spate_kafka_fetch *fetch);

/* Begins at that offset; nothing when it runs already. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_start(struct spate_kafka_fetch *fetch, int64_t offset,
                                                    struct spate_err *err);
/* Forgets what was fetched and not looked at. */
void spate_kafka_fetch_stop(struct spate_kafka_fetch *fetch);

/* With an empty batch: takes what librdkafka has, and waits up to timeout_ms for the first of it. `pos` is
 * the offset after the last record that was looked at. SPATE_AGAIN: nothing came. SPATE_FAIL: nothing will,
 * the topic is gone or may not be read. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_fill(struct spate_kafka_fetch *fetch, int64_t pos,
                                                   int timeout_ms, struct spate_err *err);
/* The next one of the batch, which is the caller's then. NULL: the batch is used up. */
rd_kafka_message_t *spate_kafka_fetch_take(struct spate_kafka_fetch *fetch);

/* The oldest offset kept and the next to be written, as the leader knows them now. Waits for brokers that
 * start or look for a leader, ten seconds at most, and not after a stop was asked for. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_ends(struct spate_kafka_fetch *fetch, int64_t *low,
                                                   int64_t *high, struct spate_err *err);
/* The end that the last answer to a fetch told; -1: none yet. Never waits. */
int64_t spate_kafka_fetch_end_told(const struct spate_kafka_fetch *fetch);

/* An error that passes by itself: a leader is being found, a broker started. */
bool spate_kafka_fetch_passes(rd_kafka_resp_err_t code);

/* "<cluster>/<topic>". Waits like spate_kafka_fetch_ends. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_name(struct spate_kafka_fetch *fetch, char *out, size_t size,
                                                   struct spate_err *err);

/* SPATE_FAIL with verdict retry when a stop was asked for. */
SPATE_CHECKED enum spate_rc spate_kafka_fetch_may_wait(const struct spate_kafka_fetch *fetch,
                                                       struct spate_err *err);

#endif
