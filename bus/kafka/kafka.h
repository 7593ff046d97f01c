/* bus/kafka/kafka.h - the bus on a Kafka cluster. */
#ifndef SPATE_BUS_KAFKA_KAFKA_H
#define SPATE_BUS_KAFKA_KAFKA_H

#include "bus/bus.h"
#include "bus/open.h"
#include "core/buf.h"

/* Checks the configuration; asks no broker yet. `config` is borrowed until the bus is closed. */
SPATE_CHECKED enum spate_rc spate_kafka_bus_open(const struct spate_kafka_config *config,
                                                 struct spate_bus **bus, struct spate_err *err);

/* The properties of librdkafka that are refused and those that are set, as Markdown. */
void spate_kafka_reference(struct spate_buf *out);
/* What is done about errors, as Markdown. */
void spate_kafka_errors(struct spate_buf *out);

#endif
