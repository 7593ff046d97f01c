/* bus/kafka/settings.h - a topic's settings: which ones ours are made with, and what to say of the ones that
 * are there (docs/hazards.md, topic and client settings). Internal to bus/kafka/.
 *
 * Thread: any, with a handle of its own. Blocks: until the deadline at most. */
#ifndef SPATE_BUS_KAFKA_SETTINGS_H
#define SPATE_BUS_KAFKA_SETTINGS_H

#include "bus/kafka/topic.h"

/* Asks the brokers for the topic's settings, and holds them against what the topic is for. Fills
 * max_message_bytes and retention_ms. SPATE_FAIL as spate_kafka_topic_open. */
SPATE_CHECKED enum spate_rc spate_kafka_settings_check(struct spate_kafka *kafka, rd_kafka_t *handle,
                                                       unsigned flags, int replicas, int64_t deadline_ms,
                                                       struct spate_kafka_topic *topic,
                                                       struct spate_err *err);

/* Makes the topic. SPATE_OK also when somebody else was faster. */
SPATE_CHECKED enum spate_rc spate_kafka_settings_create(struct spate_kafka *kafka, rd_kafka_t *handle,
                                                        const char *name, unsigned flags, int brokers,
                                                        int64_t deadline_ms, struct spate_err *err);

#endif
