/* bus/kafka/topic.h - a topic as the cluster has it: made with our settings, or checked against them.
 *
 * One partition, always: it keeps source transactions whole (docs/hazards.md, decision 7).
 * Thread: any, with a handle of its own. Blocks: for at most a few seconds on the brokers. */
#ifndef SPATE_BUS_KAFKA_TOPIC_H
#define SPATE_BUS_KAFKA_TOPIC_H

#include "bus/kafka/client.h"

struct spate_kafka_topic {
    char name[250];
    size_t max_message_bytes; /* what topic and broker take, less the protocol's overhead */
    int64_t retention_ms;     /* INT64_MAX: no limit by age */
    int64_t low, high;        /* offsets: the oldest kept, and the next to be written */
};

/* Looks the topic up; makes it when it is missing, `flags` (enum spate_topic_flags) has CREATE and the
 * configuration allows it; checks partitions and settings (2.5, K7, K9, K11, K13, K26).
 * SPATE_FAIL: retry = no broker answers, no leader yet, not authorized yet (a human must mend that, and then
 * it goes on by itself), or missing and not to be made; fatal (REFUSED) = a setting that would lose or
 * reorder records, with the command that mends it. What is only unwise (one replica, K13) is logged as a
 * warning. */
SPATE_CHECKED enum spate_rc spate_kafka_topic_open(struct spate_kafka *kafka, const char *name,
                                                   unsigned flags, struct spate_kafka_topic *topic,
                                                   struct spate_err *err);

/* Looks at a topic as a writer would open it, and makes nothing; what there is to say goes to
 * kafka->findings. */
void spate_kafka_topic_check(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name, unsigned flags,
                             bool writes);

/* For readers: looks it up and checks nothing but the number of partitions. retry = missing or no answer.
 * Fills name, low and high only. */
SPATE_CHECKED enum spate_rc spate_kafka_topic_look(struct spate_kafka *kafka, rd_kafka_t *handle,
                                                   const char *name, struct spate_kafka_topic *topic,
                                                   struct spate_err *err);

/* The oldest offset kept and the next to be written, as the leader knows them now.
 * rd_kafka_query_watermark_offsets() would not keep to its time: while the leader is down it waits for
 * minutes. */
rd_kafka_resp_err_t spate_kafka_ends(rd_kafka_t *handle, const char *name, int timeout_ms, int64_t *low,
                                     int64_t *high);

/* Calls `each` for every topic of the cluster whose name could be one of ours. */
SPATE_CHECKED enum spate_rc spate_kafka_topics(struct spate_kafka *kafka,
                                               void (*each)(void *arg, const char *topic), void *arg,
                                               struct spate_err *err);

#endif
