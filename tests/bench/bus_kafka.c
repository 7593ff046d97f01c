/* tests/bench/bus_kafka.c - the Kafka bus against librdkafka alone with the same properties, in one run:
 * nanoseconds of wall and processor time per record to publish until acknowledged, and to read back.
 * SPATE_TEST_BROKERS names the brokers. Arguments: records, bytes, batch, rounds. */
#include "bus/kafka/client.h"
#include "bus/open.h"
#include "core/clock.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static uint64_t records, acked;
static size_t bytes, batch;
static char *value;
static struct spate_bus_config config;
static struct spate_err err;

struct stamp {
    int64_t wall_us;
    double cpu_us;
};

static struct stamp now(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (struct stamp){.wall_us = spate_clock_us(),
                          .cpu_us = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
                                    (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec)};
}

static void say(const char *what, struct stamp from)
{
    const struct stamp to = now();

    printf(" %s_ns=%.0f %s_cpu_ns=%.0f", what, (double)(to.wall_us - from.wall_us) * 1e3 / (double)records,
           what, (to.cpu_us - from.cpu_us) * 1e3 / (double)records);
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, err.text);
    exit(1);
}

static void on_durable(void *arg, uint64_t token)
{
    (void)arg;
    acked = token;
}

static void publish(struct spate_bus *bus, const char *topic)
{
    struct spate_record offer[256];
    struct spate_writer *w;
    uint64_t done = 0;

    if (spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE, &w, &err) != SPATE_OK)
        fail("writer");
    const struct stamp from = now();
    acked = 0;
    while (done < records) {
        const size_t n = records - done < batch ? (size_t)(records - done) : batch;
        size_t taken;
        for (size_t i = 0; i < n; i++)
            offer[i] = (struct spate_record){
                .key = spate_slice(value, 8), .value = spate_slice(value, bytes), .token = done + i + 1};
        const enum spate_rc rc = spate_writer_publish(w, offer, n, &taken, &err);
        done += taken;
        if (rc == SPATE_FAIL ||
            spate_writer_poll(w, rc == SPATE_AGAIN ? 10 : 0, on_durable, NULL, &err) == SPATE_FAIL)
            fail("publish");
    }
    while (acked < records)
        if (spate_writer_poll(w, 100, on_durable, NULL, &err) == SPATE_FAIL)
            fail("poll");
    say("publish", from);
    spate_writer_close(w);
}

static void bare_delivered(rd_kafka_t *handle, const rd_kafka_message_t *m, void *opaque)
{
    (void)handle, (void)opaque;
    if (m->err)
        exit(2);
    acked++;
}

/* As simple as a program can be: produce, poll, and wait when the queue is as long as ours may be. */
static void bare_publish(struct spate_bus *bus, const char *topic)
{
    struct spate_writer *w;
    rd_kafka_t *handle;

    if (spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE, &w, &err) != SPATE_OK)
        fail("topic");
    spate_writer_close(w);
    if (spate_kafka_client((struct spate_kafka *)bus, SPATE_KAFKA_PRODUCER, 1000000, bare_delivered, NULL,
                           &handle, &err) != SPATE_OK)
        fail("bare producer");
    rd_kafka_topic_t *log = rd_kafka_topic_new(handle, topic, NULL);
    const struct stamp from = now();
    acked = 0;
    for (uint64_t i = 0; i < records; i++) {
        while (rd_kafka_produce(log, 0, RD_KAFKA_MSG_F_COPY, value, bytes, value, 8, NULL) != 0)
            rd_kafka_poll(handle, 10);
        if ((i + 1) % batch == 0)
            rd_kafka_poll(handle, 0);
        while (i + 1 - acked > (16 << 20) / (bytes + 264))
            rd_kafka_poll(handle, 10);
    }
    while (acked < records)
        rd_kafka_poll(handle, 100);
    say("bare_publish", from);
    rd_kafka_topic_destroy(log);
    spate_kafka_client_free(handle);
}

static uint64_t read_all(struct spate_bus *bus, const char *topic)
{
    struct spate_message m;
    struct spate_reader *r;
    uint64_t read = 0, sum = 0;

    const struct stamp from = now();
    if (spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_OLDEST},
                              &r, &err) != SPATE_OK)
        fail("reader");
    while (spate_reader_next(r, &m, &err) == SPATE_OK) {
        read++;
        sum += (unsigned char)m.value.at[0] + m.value.len;
    }
    say("read", from);
    spate_reader_close(r);
    return sum ? read : 0;
}

static uint64_t bare_read(struct spate_bus *bus, const char *topic)
{
    rd_kafka_message_t *got[512];
    uint64_t read = 0, sum = 0;
    rd_kafka_t *handle;

    const struct stamp from = now();
    if (spate_kafka_client((struct spate_kafka *)bus, SPATE_KAFKA_CONSUMER, 0, NULL, NULL, &handle, &err) !=
        SPATE_OK)
        fail("bare consumer");
    rd_kafka_topic_t *log = rd_kafka_topic_new(handle, topic, NULL);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(handle);
    rd_kafka_consume_start_queue(log, 0, RD_KAFKA_OFFSET_BEGINNING, queue);
    while (read < records) {
        const ssize_t n = rd_kafka_consume_batch_queue(queue, 5, got, 512);
        for (ssize_t i = 0; i < n; i++) {
            if (!got[i]->err) {
                read++;
                sum += ((const unsigned char *)got[i]->payload)[0] + got[i]->len;
            }
            rd_kafka_message_destroy(got[i]);
        }
    }
    say("bare_read", from);
    rd_kafka_consume_stop(log, 0);
    rd_kafka_queue_destroy(queue);
    rd_kafka_topic_destroy(log);
    spate_kafka_client_free(handle);
    return sum ? read : 0;
}

int main(int argc, char **argv)
{
    struct spate_bus *bus;
    char topic[64], bare[64];
    const int rounds = argc > 4 ? atoi(argv[4]) : 1;

    records = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    bytes = argc > 2 ? strtoul(argv[2], NULL, 10) : 222;
    batch = argc > 3 ? strtoul(argv[3], NULL, 10) : 64;
    if (batch == 0 || batch > 256 || bytes < 8)
        return 1;
    value = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) /* compresses about as well as change messages do */
        value[i] = (char)(i % 3 ? 'v' : 'a' + rand() % 26);
    config.kafka.brokers = getenv("SPATE_TEST_BROKERS");
    config.kafka.create = true;
    config.kafka.max_message_bytes = 1 << 20;
    spate_log_level_set(SPATE_LOG_ERROR);
    if (!config.kafka.brokers || spate_bus_open(&config, &bus, &err) != SPATE_OK)
        fail("SPATE_TEST_BROKERS");
    for (int round = 0; round < rounds; round++) {
        snprintf(topic, sizeof topic, "bench-%d-%d", (int)getpid(), round);
        snprintf(bare, sizeof bare, "bench-%d-%d.bare", (int)getpid(), round);
        printf("records=%" PRIu64 " bytes=%zu batch=%zu", records, bytes, batch);
        publish(bus, topic);
        bare_publish(bus, bare);
        const uint64_t read = read_all(bus, topic);
        const uint64_t bare_count = bare_read(bus, topic);
        printf(" read=%" PRIu64 "\n", read);
        if (read != records || bare_count != records)
            return 1;
    }
    spate_bus_close(bus);
    free(value);
    return 0;
}
