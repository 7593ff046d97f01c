/* bus/kafka/client.h - one librdkafka handle: which properties it gets, and what its failures mean to people.
 *
 * Every property of librdkafka can be given in bus.kafka.properties. Those that carry correctness are set
 * here and refused or warned about when the file says otherwise (docs/hazards.md K1-K33); client.c has the
 * table, with the reason for each.
 *
 * Thread: a handle belongs to whoever made it; spate_kafka itself is read-only once opened, except for the
 *         note of what librdkafka complained of last, which has a lock of its own. */
#ifndef SPATE_BUS_KAFKA_CLIENT_H
#define SPATE_BUS_KAFKA_CLIENT_H

#include "bus/bus.h"
#include "bus/open.h"

#include <librdkafka/rdkafka.h>
#include <pthread.h>

/* The bus: what all its handles share. */
struct spate_kafka {
    struct spate_bus bus;                    /* first */
    const struct spate_kafka_config *config; /* borrowed from the configuration, which outlives the bus */
    pthread_mutex_t lock;                    /* of complaint */
    char complaint[512]; /* what librdkafka said last when something went wrong; no secret */
};

enum spate_kafka_role {
    SPATE_KAFKA_ADMIN,    /* metadata, topics */
    SPATE_KAFKA_PRODUCER, /* K1-K3: idempotent, acks=all, no time-out, gapless */
    SPATE_KAFKA_SHARED,   /* a producer of a topic with many writers that nothing waits for */
    SPATE_KAFKA_CONSUMER  /* K20-K33: no group, no commits, no reset, check.crcs */
};

/* Checks the configuration without asking any broker: SPATE_FAIL (fatal, CONFIG) names the property, why it
 * is refused and what to write instead. Warnings are logged once. */
SPATE_CHECKED enum spate_rc spate_kafka_check(const struct spate_kafka_config *config, struct spate_err *err);

/* A new handle. `delivered` (producers only) is called from rd_kafka_poll() in the poller's thread with
 * `opaque`. max_message_bytes (producers; 0: librdkafka's own) is what the topic takes. The password is read
 * anew. *handle is the caller's, who destroys it. */
typedef void spate_kafka_delivered_fn(rd_kafka_t *, const rd_kafka_message_t *, void *opaque);
SPATE_CHECKED enum spate_rc spate_kafka_client(struct spate_kafka *kafka, enum spate_kafka_role role,
                                               size_t max_message_bytes, spate_kafka_delivered_fn *delivered,
                                               void *opaque, rd_kafka_t **handle, struct spate_err *err);

/* Fills err for a failed call: the verdict that the code deserves (docs/hazards.md, error to action), the
 * words for it, and librdkafka's last complaint where that says more (a refused password, a certificate,
 * K34). `what` says what was being done: "asking for topic shop". Returns SPATE_FAIL. */
enum spate_rc spate_kafka_fail(struct spate_kafka *kafka, struct spate_err *err, rd_kafka_resp_err_t code,
                               const char *detail, const char *what, ...)
    __attribute__((format(printf, 5, 6)));

#endif
