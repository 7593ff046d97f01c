/* tests/contract/bus_kafka_faults_test.c - the Kafka driver over scripted faults (F50, F52), on librdkafka's
 * mock cluster: what is acknowledged stands in the log, in order, whatever the brokers answer.
 *
 * The publisher here is the smallest that keeps docs/hazards.md's promise: when the writer fails, it opens a
 * new one, reads what the log holds by the acceptance rule (n is taken only after n - 1), and goes on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/kafka/log.h"
#include "bus/open.h"
#include "core/clock.h"
#include "core/log.h"

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PRODUCE 0 /* the protocol's numbers of requests */
#define FETCH   1
#define BROKERS 3

struct fixture {
    rd_kafka_t *host; /* whose threads the cluster runs on */
    rd_kafka_mock_cluster_t *cluster;
    char brokers[200];
    struct spate_pair properties[8];
    struct spate_bus_config config;
    struct spate_bus *bus;
    unsigned topics;
};

static int set_up(void **state)
{
    /* Quick to try again, so that dozens of faults fit into seconds. */
    static const char *const quick[][2] = {{"linger.ms", "1"},
                                           {"retry.backoff.ms", "10"},
                                           {"reconnect.backoff.ms", "10"},
                                           {"reconnect.backoff.max.ms", "50"},
                                           {"fetch.wait.max.ms", "20"},
                                           {"topic.metadata.refresh.fast.interval.ms", "20"}};
    struct fixture *f = calloc(1, sizeof *f);
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    struct spate_err err = {0};

    f->host = rd_kafka_new(RD_KAFKA_PRODUCER, conf, NULL, 0);
    f->cluster = rd_kafka_mock_cluster_new(f->host, BROKERS);
    snprintf(f->brokers, sizeof f->brokers, "%s", rd_kafka_mock_cluster_bootstraps(f->cluster));
    f->config.kafka.brokers = f->brokers;
    f->config.kafka.create = true;
    f->config.kafka.max_message_bytes = 1 << 20;
    for (size_t i = 0; i < sizeof quick / sizeof quick[0]; i++)
        f->properties[i] = (struct spate_pair){.key = (char *)(uintptr_t)quick[i][0],
                                               .value = (char *)(uintptr_t)quick[i][1]};
    f->config.kafka.properties =
        (struct spate_pairs){.at = f->properties, .count = sizeof quick / sizeof quick[0]};
    spate_log_level_set(SPATE_LOG_ERROR);
    if (spate_bus_open(&f->config, &f->bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_bus_close(f->bus);
    rd_kafka_mock_cluster_destroy(f->cluster);
    rd_kafka_destroy(f->host);
    free(f);
    return 0;
}

static const char *new_topic(struct fixture *f)
{
    static char name[32];

    snprintf(name, sizeof name, "shop%u", f->topics++);
    assert_int_equal(rd_kafka_mock_topic_create(f->cluster, name, 1, BROKERS), 0);
    return name;
}

/* The mock cluster has no settings of topics to check. */
static enum spate_rc open_unchecked(struct fixture *f, const char *name, struct spate_writer **w,
                                    struct spate_err *err)
{
    struct spate_kafka *kafka = (struct spate_kafka *)f->bus;
    struct spate_kafka_topic topic;
    rd_kafka_t *handle;
    enum spate_rc rc = spate_kafka_client(kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, err);

    if (rc != SPATE_OK)
        return rc;
    rc = spate_kafka_topic_look(kafka, handle, name, &topic, err);
    spate_kafka_client_free(handle);
    topic.max_message_bytes = 1000000;
    return rc == SPATE_OK ? spate_kafka_writer_of(kafka, &topic, 0, w, err) : rc;
}

static struct spate_writer *open_writer(struct fixture *f, const char *topic)
{
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    while (open_unchecked(f, topic, &w, &err) != SPATE_OK)
        if (err.verdict != SPATE_RETRY || spate_clock_ms() > deadline)
            fail_msg("writer: %s", err.text);
    return w;
}

static struct spate_reader *open_reader(struct fixture *f, const char *topic)
{
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_reader *r = NULL;
    struct spate_err err = {0};

    while (spate_bus_reader_open(f->bus, topic, SPATE_SEE_DURABLE,
                                 (struct spate_start){.from = SPATE_START_OLDEST}, &r, &err) != SPATE_OK)
        if (err.verdict != SPATE_RETRY || spate_clock_ms() > deadline)
            fail_msg("reader: %s", err.text);
    return r;
}

/* Reads what there is; returns the greatest n that the acceptance rule takes after `last`. */
static uint64_t read_on(struct spate_reader *r, uint64_t last)
{
    struct spate_message m;
    struct spate_err err = {0};
    enum spate_rc rc;

    while ((rc = spate_reader_next(r, &m, &err)) == SPATE_OK) {
        const uint64_t n = strtoull(m.value.at, NULL, 10);
        assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
        last += n == last + 1;
    }
    if (rc != SPATE_AGAIN)
        fail_msg("next: %s", err.text);
    return last;
}

static uint64_t accepted(struct fixture *f, const char *topic)
{
    struct spate_reader *r = open_reader(f, topic);
    const uint64_t last = read_on(r, 0);

    spate_reader_close(r);
    return last;
}

struct publisher {
    struct fixture *f;
    const char *topic;
    struct spate_writer *w;
    uint64_t sent, acked; /* numbers */
    unsigned failures;
    struct spate_err why; /* of the last */
};

static void on_durable(void *arg, uint64_t token)
{
    struct publisher *p = arg;

    assert_int_equal(token, p->acked + 1); /* none twice, none passed over */
    p->acked = token;
}

/* After a failure: nothing more comes from the old writer; the log says where to go on. */
static void recover(struct publisher *p)
{
    const uint64_t acked = p->acked;
    struct spate_record record = {.value = spate_slice("9", 1), .token = 9};
    struct spate_err err = {0};
    size_t taken = 7;

    p->failures++;
    assert_int_equal(spate_writer_poll(p->w, 50, on_durable, p, &err), SPATE_FAIL);
    assert_int_equal(spate_writer_publish(p->w, &record, 1, &taken, &err), SPATE_FAIL);
    assert_int_equal(taken, 0);
    assert_int_equal(p->acked, acked); /* K2: later records may have arrived, behind a hole */
    if (err.verdict != SPATE_RETRY)
        fail_msg("%s", err.text);
    assert_non_null(strstr(err.text, p->topic));
    spate_writer_close(p->w);
    p->w = open_writer(p->f, p->topic);
    p->sent = accepted(p->f, p->topic);
    assert_true(p->sent >= acked);
    p->acked = p->sent;
}

static void send_up_to(struct publisher *p, uint64_t last)
{
    char value[24];

    while (p->sent < last) {
        const int len = snprintf(value, sizeof value, "%llu", (unsigned long long)p->sent + 1);
        const struct spate_record record = {
            .key = spate_slice("k", 1), .value = spate_slice(value, (size_t)len), .token = p->sent + 1};
        size_t taken;
        const enum spate_rc rc = spate_writer_publish(p->w, &record, 1, &taken, &p->why);
        p->sent += taken;
        if (rc == SPATE_FAIL)
            recover(p);
    }
}

static void poll_once(struct publisher *p, int timeout_ms)
{
    if (spate_writer_poll(p->w, timeout_ms, on_durable, p, &p->why) == SPATE_FAIL)
        recover(p);
}

/* Until everything up to `last` was published and acknowledged. */
static void bring(struct publisher *p, uint64_t last)
{
    const int64_t deadline = spate_clock_ms() + 30000;

    while (p->acked < last) {
        send_up_to(p, last);
        poll_once(p, 20);
        assert_true(spate_clock_ms() < deadline);
    }
}

/* In several requests, so that there are some in flight when a fault comes. */
static void bring_in_steps(struct publisher *p, uint64_t last)
{
    for (uint64_t upto = p->sent + 3; upto < last; upto += 3) {
        send_up_to(p, upto);
        poll_once(p, 2);
    }
    bring(p, last);
}

static void finish(struct publisher *p, uint64_t last)
{
    spate_writer_close(p->w);
    assert_int_equal(accepted(p->f, p->topic), last);
}

/* K2, K4: the error that nobody can wait for. */
static void a_failed_delivery_ends_the_writer_and_a_new_one_goes_on(void **state)
{
    struct fixture *f = *state;
    struct publisher p = {.f = f, .topic = new_topic(f)};

    p.w = open_writer(f, p.topic);
    bring(&p, 5);
    rd_kafka_mock_push_request_errors(f->cluster, PRODUCE, 1, RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED);
    bring_in_steps(&p, 40);
    assert_true(p.failures > 0);
    finish(&p, 40);
}

/* F52: every pair of these, while requests are in flight. The mock cluster checks no sequences, so it takes a
 * batch behind one that it refused; librdkafka then reports the refused one as stored, without an offset. */
static void what_is_acknowledged_survives_every_pair_of_errors(void **state)
{
    static const rd_kafka_resp_err_t errors[] = {
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,   RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        RD_KAFKA_RESP_ERR__TRANSPORT,          RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
    };
    enum { ERRORS = sizeof errors / sizeof errors[0] };
    struct fixture *f = *state;
    unsigned failures = 0, clean = 0;

    for (int i = 0; i < ERRORS * ERRORS; i++) {
        struct publisher p = {.f = f, .topic = new_topic(f)};
        p.w = open_writer(f, p.topic);
        bring(&p, 3);
        rd_kafka_mock_push_request_errors(f->cluster, PRODUCE, 2, errors[i / ERRORS], errors[i % ERRORS]);
        bring_in_steps(&p, 30);
        rd_kafka_mock_clear_request_errors(f->cluster, PRODUCE);
        finish(&p, 30);
        failures += p.failures;
        clean += p.failures == 0;
    }
    print_message("%u pairs without a failure, %u failures\n", clean, failures);
    assert_true(clean > 0);    /* most are retried by librdkafka alone */
    assert_true(failures > 0); /* some are not */
}

/* Publishes 1..9 as a producer does by default, with one time-out; returns how many the rule accepts. */
static uint64_t publish_bare(struct fixture *f, const char *topic)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char value[2] = "1";

    rd_kafka_conf_set(conf, "bootstrap.servers", f->brokers, NULL, 0);
    rd_kafka_conf_set(conf, "linger.ms", "0", NULL, 0);
    rd_kafka_conf_set(conf, "batch.num.messages", "1", NULL, 0);
    rd_kafka_conf_set(conf, "log_level", "0", NULL, 0);
    rd_kafka_t *bare = rd_kafka_new(RD_KAFKA_PRODUCER, conf, NULL, 0);
    rd_kafka_topic_t *log = rd_kafka_topic_new(bare, topic, NULL);
    for (; value[0] <= '9'; value[0]++) {
        if (value[0] == '2') {
            assert_int_equal(rd_kafka_flush(bare, 10000), 0);
            rd_kafka_mock_push_request_errors(f->cluster, PRODUCE, 1, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT);
        }
        assert_int_equal(rd_kafka_produce(log, 0, RD_KAFKA_MSG_F_COPY, value, 1, NULL, 0, NULL), 0);
    }
    assert_int_equal(rd_kafka_flush(bare, 10000), 0);
    rd_kafka_topic_destroy(log);
    rd_kafka_destroy(bare);
    return accepted(f, topic);
}

/* The control that shows that these scripts bite (K1). On a busy machine the requests may not overlap. */
static void without_idempotence_the_same_errors_reorder(void **state)
{
    struct fixture *f = *state;
    uint64_t last = 9;

    for (int attempt = 0; attempt < 20 && last == 9; attempt++)
        last = publish_bare(f, new_topic(f));
    assert_true(last < 9);
}

/* F50: the leader moves, brokers go and come, and a reader follows all along. */
static void leaders_move_under_writer_and_reader(void **state)
{
    struct fixture *f = *state;
    struct publisher p = {.f = f, .topic = new_topic(f)};
    struct spate_reader *r = open_reader(f, p.topic);
    const int64_t deadline = spate_clock_ms() + 60000;
    uint64_t last = 0, read = 0;

    p.w = open_writer(f, p.topic);
    for (int round = 0; round < 50; round++) {
        const int32_t leader = 1 + round % BROKERS;
        send_up_to(&p, last + 10);
        if (round % 10 == 5)
            rd_kafka_mock_broker_set_down(f->cluster, leader);
        rd_kafka_mock_partition_set_leader(f->cluster, p.topic, 0,
                                           round % 10 == 5 ? 1 + (round + 1) % BROKERS : leader);
        bring(&p, last += 20);
        rd_kafka_mock_broker_set_up(f->cluster, leader);
    }
    while (read < last) {
        struct spate_err err = {0};
        read = read_on(r, read);
        assert_int_not_equal(spate_reader_wait(r, 100, &err), SPATE_FAIL);
        assert_true(spate_clock_ms() < deadline);
    }
    spate_reader_close(r);
    finish(&p, last);
}

/* F51 in short: nobody answers for a while; nothing is lost, and nothing is acknowledged meanwhile. */
static void all_brokers_go_and_come_back(void **state)
{
    struct fixture *f = *state;
    struct publisher p = {.f = f, .topic = new_topic(f)};

    p.w = open_writer(f, p.topic);
    bring(&p, 10);
    for (int32_t broker = 1; broker <= BROKERS; broker++)
        rd_kafka_mock_broker_set_down(f->cluster, broker);
    const int64_t until = spate_clock_ms() + 1500;
    const uint64_t acked = p.acked;
    send_up_to(&p, 30);
    while (spate_clock_ms() < until && p.failures == 0)
        poll_once(&p, 100);
    assert_int_equal(p.acked, acked);
    for (int32_t broker = 1; broker <= BROKERS; broker++)
        rd_kafka_mock_broker_set_up(f->cluster, broker);
    bring(&p, 60);
    finish(&p, 60);
}

/* What a fetch is answered with does not move the reader past anything. */
static void a_reader_passes_over_nothing_when_fetches_fail(void **state)
{
    static const rd_kafka_resp_err_t errors[] = {
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR__TRANSPORT, RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH};
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        struct publisher p = {.f = f, .topic = new_topic(f)};
        p.w = open_writer(f, p.topic);
        bring(&p, 50);
        rd_kafka_mock_push_request_errors(f->cluster, FETCH, 2, errors[i], errors[i]);
        finish(&p, 50);
        rd_kafka_mock_clear_request_errors(f->cluster, FETCH);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_failed_delivery_ends_the_writer_and_a_new_one_goes_on, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_is_acknowledged_survives_every_pair_of_errors, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(without_idempotence_the_same_errors_reorder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(leaders_move_under_writer_and_reader, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_brokers_go_and_come_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reader_passes_over_nothing_when_fetches_fail, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
