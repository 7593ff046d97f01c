/* bus/kafka/kafka.c - the bus handle, what its topics are, and how to open them. */
#include "bus/kafka/kafka.h"

#include "bus/kafka/log.h"
#include "bus/kafka/topic.h"
#include "core/alloc.h"

#include <stdio.h>
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

/* The topics that a connector opens, as it opens them: one that is beside the stream is said to be missing
 * only where the stream is there. */
static void check(struct spate_bus *base, const char *stream, bool writes, struct spate_findings *list)
{
    struct spate_kafka *kafka = (struct spate_kafka *)base;
    char beside[270];
    struct spate_err err = {0};
    rd_kafka_t *handle;

    kafka->findings = list;
    if (rd_kafka_version() < 0x020300ff) {
        spate_find(list, SPATE_FINDING_NOTE, "kafka-version", "librdkafka is %s", rd_kafka_version_str());
        spate_find_why(list,
                       "before 2.3.0 a lost connection can end a producer for good (K4): it is made anew "
                       "then, which costs seconds");
        spate_find_fix(list, SPATE_MEND_HAND, "librdkafka 2.11 or newer");
    }
    if (spate_kafka_client(kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, &err) != SPATE_OK) {
        spate_find_err(list, "brokers", &err);
    } else {
        const size_t before = list->count;

        spate_kafka_topic_check(kafka, handle, stream, SPATE_TOPIC_CREATE, writes);
        snprintf(beside, sizeof beside, "%.240s._schemas", stream);
        /* Brokers that do not answer are not asked twice. */
        if (list->count == before || list->at[list->count - 1].severity != SPATE_FINDING_ERROR)
            spate_kafka_topic_check(kafka, handle, beside, SPATE_TOPIC_CREATE | SPATE_TOPIC_KEEP, writes);
        spate_kafka_client_free(handle);
    }
    kafka->findings = NULL;
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
                                               .check = check,
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
