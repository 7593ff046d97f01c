/* tests/bench/pg_bare_reader.c - the limit to measure against: reads a slot with libpq and throws everything
 * away; or publishes a constant payload for each change, as fast as librdkafka does with the connector's
 * settings.
 *
 * usage: pg_bare_reader CONNINFO SLOT PUBLICATION UNTIL_LSN PAUSE_US [BROKERS TOPIC BYTES]
 *
 * PAUSE_US 0 reads at every wake-up; 200 pauses whenever the socket ran dry (P97). Ends at the first commit
 * or keepalive at or beyond UNTIL_LSN - with brokers, when all that was published is acknowledged - and
 * prints "messages seconds". It confirms nothing, so a slot can be read again. */
#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t be64(const char *at)
{
    uint64_t value = 0;

    for (int i = 0; i < 8; i++)
        value = value << 8 | (unsigned char)at[i];
    return value;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* ---- publishing ---- */

static struct {
    rd_kafka_t *producer;
    rd_kafka_topic_t *topic;
    char *payload;
    size_t bytes;
    uint64_t refused;
} kafka;

static void delivered(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque)
{
    (void)producer, (void)opaque;
    kafka.refused += message->err != RD_KAFKA_RESP_ERR_NO_ERROR;
}

static void publish_to(const char *brokers, const char *topic, const char *bytes)
{
    static const char *const settings[][2] = {
        {"enable.idempotence", "true"},
        {"acks", "all"},
        {"message.timeout.ms", "0"},
        {"compression.codec", "lz4"},
        {"linger.ms", "5"},
        {"enable.gapless.guarantee", "true"},
        {"log_level", "3"}, /* the gapless guarantee is called experimental at each start */
    };
    static const char digits[] = "0123456789abcdef";
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[256];

    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], why, sizeof why) != RD_KAFKA_CONF_OK)
            die(settings[i][0], why);
    if (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, why, sizeof why) != RD_KAFKA_CONF_OK)
        die("brokers", why);
    rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    kafka.producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (!kafka.producer)
        die("producer", why);
    kafka.topic = rd_kafka_topic_new(kafka.producer, topic, NULL);
    kafka.bytes = strtoul(bytes, NULL, 10);
    kafka.payload = malloc(kafka.bytes);
    if (!kafka.topic || !kafka.payload || kafka.bytes == 0)
        die("topic", topic);
    for (size_t i = 0; i < kafka.bytes; i++)
        kafka.payload[i] = digits[(i * 7 + i / 16) % 16];
}

static void publish(void)
{
    while (rd_kafka_produce(kafka.topic, 0, RD_KAFKA_MSG_F_COPY, kafka.payload, kafka.bytes, NULL, 0, NULL)) {
        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
            die("produce", rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_poll(kafka.producer, 10);
    }
}

static void finish_publishing(void)
{
    if (rd_kafka_flush(kafka.producer, 60000) || kafka.refused)
        die("flush", "not everything was acknowledged");
}

/* ---- reading ---- */

/* A status that says only "alive": received and flushed stay at 0/0, so the slot does not move. */
static void say_alive(PGconn *conn)
{
    char status[34] = {'r'};

    if (PQputCopyData(conn, status, sizeof status) != 1 || PQflush(conn) < 0)
        die("status", PQerrorMessage(conn));
}

int main(int argc, char **argv)
{
    char command[512];
    unsigned high, low;
    uint64_t until, messages = 0;
    long pause_us;
    double start, alive;
    PGconn *conn;
    PGresult *res;

    if ((argc != 6 && argc != 9) || sscanf(argv[4], "%X/%X", &high, &low) != 2)
        die("usage", "pg_bare_reader CONNINFO SLOT PUBLICATION UNTIL_LSN PAUSE_US [BROKERS TOPIC BYTES]");
    if (argc == 9)
        publish_to(argv[6], argv[7], argv[8]);
    until = (uint64_t)high << 32 | low;
    pause_us = strtol(argv[5], NULL, 10);
    conn = PQconnectdb(argv[1]);
    if (PQstatus(conn) != CONNECTION_OK)
        die("connect", PQerrorMessage(conn));
    snprintf(command, sizeof command,
             "START_REPLICATION SLOT \"%s\" LOGICAL 0/0 (proto_version '1', publication_names '\"%s\"')",
             argv[2], argv[3]);
    start = alive = now();
    res = PQexec(conn, command);
    if (PQresultStatus(res) != PGRES_COPY_BOTH)
        die("start", PQerrorMessage(conn));
    PQclear(res);

    for (;;) {
        char *message;
        int len = PQgetCopyData(conn, &message, 1);

        if (len > 0) {
            uint64_t at = 0;

            if (message[0] == 'w' && len > 25) {
                messages++;
                if (kafka.producer && (message[25] == 'I' || message[25] == 'U' || message[25] == 'D'))
                    publish();
                if (message[25] == 'C' && len >= 25 + 18)
                    at = be64(message + 25 + 1 + 1 + 8);
            } else if (message[0] == 'k' && len >= 18) {
                at = be64(message + 1);
                if (message[17])
                    say_alive(conn);
            }
            PQfreemem(message);
            if (at >= until)
                break;
            continue;
        }
        if (len < 0)
            die("read", PQerrorMessage(conn));
        if (now() - alive > 1) {
            alive = now();
            say_alive(conn);
        }
        if (kafka.producer)
            rd_kafka_poll(kafka.producer, 0);
        if (pause_us)
            usleep((useconds_t)pause_us);
        if (poll(&(struct pollfd){.fd = PQsocket(conn), .events = POLLIN}, 1, 1000) < 0)
            die("poll", "failed");
        if (!PQconsumeInput(conn))
            die("read", PQerrorMessage(conn));
    }
    if (kafka.producer)
        finish_publishing();
    printf("%llu %.4f\n", (unsigned long long)messages, now() - start);
    PQfinish(conn);
    return 0;
}
