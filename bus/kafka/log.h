/* bus/kafka/log.h - a topic's records: writing them with delivery reports, reading them by offset. Internal
 * to bus/kafka/; kafka.c hands them out. */
#ifndef SPATE_BUS_KAFKA_LOG_H
#define SPATE_BUS_KAFKA_LOG_H

#include "bus/kafka/client.h"
#include "bus/kafka/topic.h"

/* A writer of a topic that was looked up: its name, max_message_bytes, retention_ms and high count. */
SPATE_CHECKED enum spate_rc spate_kafka_writer_of(struct spate_kafka *kafka,
                                                  const struct spate_kafka_topic *topic, unsigned flags,
                                                  struct spate_writer **writer, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_kafka_writer_open(struct spate_kafka *kafka, const char *topic,
                                                    unsigned flags, struct spate_writer **writer,
                                                    struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_kafka_reader_open(struct spate_kafka *kafka, const char *topic,
                                                    struct spate_start start, struct spate_reader **reader,
                                                    struct spate_err *err);

#endif
