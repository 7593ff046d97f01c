/* bus/kafka/client.h - one librdkafka handle: which properties it gets, and what its failures mean to people.
 *
 * Every property of librdkafka can be given in bus.kafka.properties. Those that carry correctness are set
 * here and refused or warned about when the file says otherwise (docs/hazards.md K1-K33); properties.c has
 * the table, with the reason for each.
 *
 * Thread: a handle belongs to whoever made it; spate_kafka itself is read-only once opened, except for the
 *         note of what librdkafka complained of last, which has a lock of its own. */
#ifndef SPATE_BUS_KAFKA_CLIENT_H
#define SPATE_BUS_KAFKA_CLIENT_H

#include "bus/bus.h"
#include "bus/open.h"
#include "core/log.h"

#include <librdkafka/rdkafka.h>
#include <pthread.h>

/* What a complaint of librdkafka is about, as far as it changes what people have to do. */
enum spate_kafka_trouble {
    SPATE_KAFKA_QUIET,
    SPATE_KAFKA_UNREACHABLE, /* no connection: a broker that is down, a name that is not known */
    SPATE_KAFKA_CERTIFICATE, /* TLS did not come about */
    SPATE_KAFKA_LOGIN        /* the broker does not take the user or the password */
};

#define SPATE_KAFKA_LIMITS 8

/* The bus: what all its handles share. */
struct spate_kafka {
    struct spate_bus bus;                    /* first */
    struct spate_kafka_config own;           /* a copy: files are forgotten once read */
    const struct spate_kafka_config *config; /* of it */
    struct spate_findings *findings;         /* while it is only looked at: what is said goes there */
    pthread_mutex_t lock;                    /* of all that follows */
    char complaint[512];   /* what librdkafka said last when something went wrong; no secret */
    int64_t complained_ms; /* when; an old complaint explains nothing */
    enum spate_kafka_trouble trouble;
    char *refused; /* the password that a broker did not take; the same is not tried again at once */
    int64_t refused_ms;
    struct {
        char about[24];
        struct spate_log_limit limit;
    } said[SPATE_KAFKA_LIMITS]; /* its log lines, kept from filling the log while a broker is down */
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

/* For whoever holds the struct: prepares and ends what the handles share. */
void spate_kafka_init(struct spate_kafka *kafka, const struct spate_kafka_config *config);
void spate_kafka_fini(struct spate_kafka *kafka);

/* A new handle. SPATE_FAIL, retry, without knocking: the broker refused the same password a moment ago.
 * `delivered` (producers only) is called from spate_kafka_client_poll() in the poller's thread with `opaque`.
 * max_message_bytes (producers; 0: librdkafka's own) is what the topic takes. The password is read anew.
 * *handle is the caller's, who ends it with spate_kafka_client_free(). */
typedef void spate_kafka_delivered_fn(rd_kafka_t *, const rd_kafka_message_t *, void *opaque);
SPATE_CHECKED enum spate_rc spate_kafka_client(struct spate_kafka *kafka, enum spate_kafka_role role,
                                               size_t max_message_bytes, spate_kafka_delivered_fn *delivered,
                                               void *opaque, rd_kafka_t **handle, struct spate_err *err);

/* rd_kafka_poll(); and while a broker refuses the login, the password's file is read anew: a handle would
 * knock with the old one for ever, since nothing that waits in it times out (K2). To be called by the
 * handle's owner every second or so. */
void spate_kafka_client_poll(rd_kafka_t *handle, int timeout_ms);

/* Destroys a handle, and waits for that a few seconds at most (K32): what hangs then is left to itself.
 * What a producer still has in its queue is dropped (K16). Accepts NULL. */
void spate_kafka_client_free(rd_kafka_t *handle);

/* Fills err for a failed call: the verdict that the code deserves (docs/hazards.md, error to action), the
 * words for it, and librdkafka's last complaint where that says more (a refused password, a certificate,
 * K34). `what` says what was being done: "asking for topic shop". Returns SPATE_FAIL. */
enum spate_rc spate_kafka_fail(struct spate_kafka *kafka, struct spate_err *err, rd_kafka_resp_err_t code,
                               const char *detail, const char *what, ...)
    __attribute__((format(printf, 5, 6)));

/* Has the handle learnt already that waiting is vain: a refused login, a certificate that does not verify? */
bool spate_kafka_hopeless(rd_kafka_t *handle);

/* What was said since the last call of the topic that a consumer reads: it is gone, or may not be read any
 * more. librdkafka tells that to the handle and not with the records. Of the owner's thread. */
rd_kafka_resp_err_t spate_kafka_topic_trouble(rd_kafka_t *handle);

/* Did a consumer lose its last broker since the last call? Of the owner's thread. */
bool spate_kafka_all_down(rd_kafka_t *handle);

/* True at the first time in a process, and once an hour then. For warnings about topics and properties. */
bool spate_kafka_worth_saying(const char *about);

#endif
