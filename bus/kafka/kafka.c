/* bus/kafka/kafka.c - the bus handle, what its topics are, and how to open them. */
#include "bus/kafka/kafka.h"

#include "bus/kafka/log.h"
#include "bus/kafka/topic.h"
#include "core/alloc.h"

#include <stdlib.h>

static enum spate_rc writer_open(struct spate_bus *base, const char *topic, unsigned flags,
                                 struct spate_writer **writer, struct spate_err *err)
{
    return spate_kafka_writer_open((struct spate_kafka *)base, topic, flags, writer, err);
}

/* What a broker shows to consumers is below the high watermark, so replicated: there is no tip beyond it. */
static enum spate_rc reader_open(struct spate_bus *base, const char *topic, enum spate_visibility see,
                                 struct spate_start start, struct spate_reader **reader,
                                 struct spate_err *err)
{
    (void)see;
    return spate_kafka_reader_open((struct spate_kafka *)base, topic, start, reader, err);
}

static enum spate_rc topics(struct spate_bus *base, void (*each)(void *arg, const char *topic), void *arg,
                            struct spate_err *err)
{
    return spate_kafka_topics((struct spate_kafka *)base, each, arg, err);
}

static void close_bus(struct spate_bus *base)
{
    struct spate_kafka *kafka = (struct spate_kafka *)base;

    spate_kafka_fini(kafka);
    free(kafka);
}

static const struct spate_bus_ops kafka_ops = {.name = "kafka",
                                               .unit = "messages",
                                               .writer_open = writer_open,
                                               .reader_open = reader_open,
                                               .topics = topics,
                                               .close = close_bus};

enum spate_rc spate_kafka_bus_open(const struct spate_kafka_config *config, struct spate_bus **bus,
                                   struct spate_err *err)
{
    if (spate_kafka_check(config, err) != SPATE_OK)
        return SPATE_FAIL;
    struct spate_kafka *kafka = spate_zalloc(sizeof *kafka);
    kafka->bus.ops = &kafka_ops;
    spate_kafka_init(kafka, config);
    *bus = &kafka->bus;
    return SPATE_OK;
}
