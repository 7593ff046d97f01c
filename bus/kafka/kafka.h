/* bus/kafka/kafka.h - the bus on a Kafka cluster. */
#ifndef SPATE_BUS_KAFKA_KAFKA_H
#define SPATE_BUS_KAFKA_KAFKA_H

#include "bus/bus.h"
#include "bus/open.h"

/* Checks the configuration; asks no broker yet. `config` is borrowed until the bus is closed. */
SPATE_CHECKED enum spate_rc spate_kafka_bus_open(const struct spate_kafka_config *config,
                                                 struct spate_bus **bus, struct spate_err *err);

#endif
