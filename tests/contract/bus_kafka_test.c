/* tests/contract/bus_kafka_test.c - what can happen to a topic on a real broker under a writer or reader:
 * made anew (F54), more partitions (F55), records removed (F56), a tail that is gone (F57), offsets that are
 * no records (K33). SPATE_TEST_BROKERS names the broker; every test has a topic of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "bus/open.h"
#include "core/clock.h"
#include "core/log.h"

#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_MS 20000

struct fixture {
    struct spate_bus_config config;
    struct spate_pair property;
    struct spate_bus *bus;
    rd_kafka_t *admin;
    rd_kafka_queue_t *answers;
    char topic[64];
};

static rd_kafka_t *handle(const struct fixture *f, const char *key, const char *value)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    rd_kafka_conf_set(conf, "bootstrap.servers", f->config.kafka.brokers, NULL, 0);
    rd_kafka_conf_set(conf, "log_level", "0", NULL, 0);
    if (key)
        rd_kafka_conf_set(conf, key, value, NULL, 0);
    return rd_kafka_new(RD_KAFKA_PRODUCER, conf, NULL, 0);
}

static int set_up_with(void **state, size_t properties)
{
    static unsigned topics;
    struct fixture *f = calloc(1, sizeof *f);
    struct spate_err err = {0};

    snprintf(f->topic, sizeof f->topic, "faults-%d-%lld-%u", (int)getpid(), (long long)spate_clock_us(),
             topics++);
    f->config.kafka.brokers = getenv("SPATE_TEST_BROKERS");
    f->config.kafka.create = true;
    f->config.kafka.max_message_bytes = 1 << 20;
    f->property = (struct spate_pair){.key = (char *)(uintptr_t) "topic.metadata.refresh.interval.ms",
                                      .value = (char *)(uintptr_t) "100"};
    f->config.kafka.properties = (struct spate_pairs){.at = &f->property, .count = properties};
    spate_log_level_set(SPATE_LOG_ERROR);
    if (spate_bus_open(&f->config, &f->bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    f->admin = handle(f, NULL, NULL);
    f->answers = rd_kafka_queue_new(f->admin);
    *state = f;
    return 0;
}

static int set_up(void **state)
{
    return set_up_with(state, 0);
}

/* Looks at the partitions ten times a second. */
static int set_up_watchful(void **state)
{
    return set_up_with(state, 1);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_bus_close(f->bus);
    rd_kafka_queue_destroy(f->answers);
    rd_kafka_destroy(f->admin);
    free(f);
    return 0;
}

/* --- administration ------------------------------------------------------------------------------------- */

/* The answer to an administrative request, which names what it is about: SPATE_AGAIN when that is not so yet.
 */
static void answered(struct fixture *f)
{
    rd_kafka_event_t *event = rd_kafka_queue_poll(f->answers, PATIENCE_MS);

    assert_non_null(event);
    if (rd_kafka_event_error(event))
        fail_msg("%s", rd_kafka_event_error_string(event));
    rd_kafka_event_destroy(event);
}

static void delete_topic(struct fixture *f)
{
    rd_kafka_DeleteTopic_t *doomed = rd_kafka_DeleteTopic_new(f->topic);

    rd_kafka_DeleteTopics(f->admin, &doomed, 1, NULL, f->answers);
    answered(f);
    rd_kafka_DeleteTopic_destroy(doomed);
}

/* How many partitions the topic has as the broker tells it; 0: there is none. */
static int partitions(struct fixture *f)
{
    const struct rd_kafka_metadata *metadata;
    int count = 0;

    assert_int_equal(rd_kafka_metadata(f->admin, 1, NULL, &metadata, PATIENCE_MS), 0);
    for (int i = 0; i < metadata->topic_cnt; i++)
        if (strcmp(metadata->topics[i].topic, f->topic) == 0)
            count = metadata->topics[i].partition_cnt;
    rd_kafka_metadata_destroy(metadata);
    return count;
}

static void delete_and_create(struct fixture *f)
{
    const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
    rd_kafka_NewTopic_t *made = rd_kafka_NewTopic_new(f->topic, 1, 1, NULL, 0);

    delete_topic(f);
    while (partitions(f) > 0)
        assert_true(spate_clock_ms() < deadline);
    do {
        assert_true(spate_clock_ms() < deadline);
        rd_kafka_CreateTopics(f->admin, &made, 1, NULL, f->answers);
        answered(f);
    } while (partitions(f) == 0);
    rd_kafka_NewTopic_destroy(made);
}

/* Removes all records before `offset`, as retention would. */
static void delete_records(struct fixture *f, int64_t offset)
{
    rd_kafka_topic_partition_list_t *upto = rd_kafka_topic_partition_list_new(1);

    rd_kafka_topic_partition_list_add(upto, f->topic, 0)->offset = offset;
    rd_kafka_DeleteRecords_t *doomed = rd_kafka_DeleteRecords_new(upto);
    rd_kafka_DeleteRecords(f->admin, &doomed, 1, NULL, f->answers);
    answered(f);
    rd_kafka_DeleteRecords_destroy(doomed);
    rd_kafka_topic_partition_list_destroy(upto);
}

/* --- the bus -------------------------------------------------------------------------------------------- */

struct acks {
    uint64_t last;
};

static void on_durable(void *arg, uint64_t token)
{
    struct acks *acks = arg;

    assert_int_equal(token, acks->last + 1);
    acks->last = token;
}

static struct spate_writer *open_writer(struct fixture *f)
{
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    if (spate_bus_writer_open(f->bus, f->topic, SPATE_TOPIC_CREATE, &w, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return w;
}

static struct spate_reader *open_reader(struct fixture *f, struct spate_start start)
{
    struct spate_reader *r = NULL;
    struct spate_err err = {0};

    if (spate_bus_reader_open(f->bus, f->topic, SPATE_SEE_DURABLE, start, &r, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return r;
}

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

static struct spate_start at(uint64_t offset)
{
    return (struct spate_start){.from = SPATE_START_AT, .pos = {.at = offset}};
}

static enum spate_rc publish(struct spate_writer *w, uint64_t n, struct spate_err *err)
{
    char value[24];
    const int len = snprintf(value, sizeof value, "%llu", (unsigned long long)n);
    const struct spate_record record = {.value = spate_slice(value, (size_t)len), .token = n};
    size_t taken;

    return spate_writer_publish(w, &record, 1, &taken, err);
}

/* Publishes first..last and waits until all are durable. */
static void publish_all(struct spate_writer *w, struct acks *acks, uint64_t last)
{
    const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
    struct spate_err err = {0};

    for (uint64_t n = acks->last + 1; n <= last; n++)
        if (publish(w, n, &err) != SPATE_OK)
            fail_msg("%s", err.text);
    while (acks->last < last) {
        if (spate_writer_poll(w, 100, on_durable, acks, &err) == SPATE_FAIL)
            fail_msg("%s", err.text);
        assert_true(spate_clock_ms() < deadline);
    }
}

/* The writer fails within a while, whether something is published or not. */
static void expect_failure(struct spate_writer *w, struct acks *acks, bool publishing, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
    uint64_t n = acks->last;

    while (spate_writer_poll(w, 50, on_durable, acks, err) != SPATE_FAIL) {
        if (publishing && publish(w, ++n, err) == SPATE_FAIL)
            break;
        assert_true(spate_clock_ms() < deadline);
    }
}

/* The next message; waits for it. */
static enum spate_rc get(struct spate_reader *r, struct spate_message *m, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
    enum spate_rc rc;

    while ((rc = spate_reader_next(r, m, err)) == SPATE_AGAIN) {
        assert_true(spate_clock_ms() < deadline);
        assert_int_not_equal(spate_reader_wait(r, 100, err), SPATE_FAIL);
    }
    return rc;
}

static void expect(struct spate_reader *r, uint64_t n)
{
    struct spate_message m;
    struct spate_err err = {0};

    if (get(r, &m, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_int_equal(strtoull(m.value.at, NULL, 10), n);
}

static void expect_gap(struct spate_reader *r, uint64_t from, uint64_t to)
{
    struct spate_message m;
    struct spate_err err = {0};

    if (get(r, &m, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(m.kind, SPATE_MESSAGE_GAP);
    assert_int_equal(m.pos.at, from);
    assert_int_equal(m.next.at, to);
}

/* --- tests ---------------------------------------------------------------------------------------------- */

/* F54, K10 */
static void a_topic_that_was_made_anew_stops_its_writer(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct acks acks = {0};
    struct spate_err err = {0};

    publish_all(w, &acks, 10);
    delete_and_create(f);
    expect_failure(w, &acks, true, &err);
    if (err.verdict != SPATE_FATAL)
        fail_msg("%s", err.text);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_non_null(strstr(err.text, "topic incarnation changed"));
    assert_non_null(strstr(err.text, f->topic));
    assert_non_null(strstr(err.text, "offset 9"));
    assert_non_null(strstr(err.text, "--new-epoch"));
    assert_int_equal(acks.last, 10);
    spate_writer_close(w);
}

/* F55, K11 */
static void more_partitions_stop_a_writer_that_has_nothing_to_do(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct acks acks = {0};
    struct spate_err err = {0};

    publish_all(w, &acks, 3);
    rd_kafka_NewPartitions_t *more = rd_kafka_NewPartitions_new(f->topic, 4, NULL, 0);
    rd_kafka_CreatePartitions(f->admin, &more, 1, NULL, f->answers);
    answered(f);
    rd_kafka_NewPartitions_destroy(more);
    expect_failure(w, &acks, false, &err);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_non_null(strstr(err.text, "4 partitions"));
    assert_non_null(strstr(err.text, "--new-epoch"));
    spate_writer_close(w);
    assert_int_equal(spate_bus_writer_open(f->bus, f->topic, SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
}

/* F56, K24 */
static void what_retention_took_is_a_gap(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct spate_reader *running = open_reader(f, oldest);
    struct acks acks = {0};
    struct spate_err err = {0};
    struct spate_bus_pos start;

    publish_all(w, &acks, 10);
    expect(running, 1);
    expect(running, 2);
    /* What was fetched already is still shown: stand where nothing has been fetched. */
    assert_int_equal(spate_reader_seek(running, at(2), &err), SPATE_OK);
    delete_records(f, 6);
    expect_gap(running, 2, 6);
    expect(running, 7);
    struct spate_reader *late = open_reader(f, at(3));
    expect_gap(late, 3, 6);
    expect(late, 7);
    assert_int_equal(spate_reader_back(late, (struct spate_bus_pos){.at = 8}, &start, &err), SPATE_OK);
    assert_int_equal(start.at, 6);
    expect(late, 7);
    assert_int_equal(spate_reader_back(late, (struct spate_bus_pos){.at = 6}, &start, &err), SPATE_END);
    struct spate_reader *whole = open_reader(f, oldest); /* no gap for who takes what there is */
    expect(whole, 7);
    delete_records(f, 10); /* all of it */
    assert_int_equal(spate_reader_seek(whole, at(7), &err), SPATE_OK);
    expect_gap(whole, 7, 10);
    publish_all(w, &acks, 11);
    expect(whole, 11);
    spate_reader_close(whole);
    spate_reader_close(late);
    spate_reader_close(running);
    spate_writer_close(w);
}

/* F57, K25: shorter than it was when this reader read it. */
static void a_log_that_lost_its_tail_stops_its_reader(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct spate_reader *r = open_reader(f, oldest);
    struct acks acks = {0};
    struct spate_message m;
    struct spate_err err = {0};

    publish_all(w, &acks, 10);
    for (uint64_t n = 1; n <= 10; n++)
        expect(r, n);
    spate_writer_close(w);
    delete_and_create(f);
    w = open_writer(f);
    acks.last = 0;
    publish_all(w, &acks, 3);
    enum spate_rc rc = get(r, &m, &err);
    while (rc == SPATE_FAIL && err.verdict == SPATE_RETRY) { /* there was no topic for a moment */
        err = (struct spate_err){0};
        rc = spate_reader_seek(r, at(10), &err);
        if (rc == SPATE_OK)
            rc = get(r, &m, &err);
    }
    assert_int_equal(rc, SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_non_null(strstr(err.text, "offset 3,"));
    assert_non_null(strstr(err.text, "offset 10 "));
    spate_reader_close(r);
    spate_writer_close(w);
}

/* F54, K32: a topic that is gone is said, and closing does not wait for it. */
static void a_topic_that_is_gone_stops_its_reader(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct spate_reader *r = open_reader(f, oldest);
    struct acks acks = {0};
    struct spate_message m;
    struct spate_err err = {0};

    publish_all(w, &acks, 2);
    spate_writer_close(w);
    expect(r, 1);
    expect(r, 2);
    delete_topic(f);
    assert_int_equal(get(r, &m, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, f->topic));
    const int64_t from = spate_clock_ms();
    spate_reader_close(r);
    assert_true(spate_clock_ms() - from < 2500);
}

/* A sink whose mark lies beyond the end waits there, and goes on when the log has come that far. */
static void a_position_beyond_the_end_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct acks acks = {0};
    struct spate_message m;
    struct spate_err err = {0};

    publish_all(w, &acks, 3);
    struct spate_reader *r = open_reader(f, at(5));
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    const int64_t from = spate_clock_ms();
    assert_int_equal(spate_reader_wait(r, 100, &err), SPATE_AGAIN);
    assert_true(spate_clock_ms() - from >= 99);
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    publish_all(w, &acks, 6);
    expect(r, 6);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void commit(rd_kafka_t *producer, rd_kafka_topic_t *log, const char *value, bool commits)
{
    assert_null(rd_kafka_begin_transaction(producer));
    assert_int_equal(
        rd_kafka_produce(log, 0, RD_KAFKA_MSG_F_COPY, (void *)(uintptr_t)value, strlen(value), NULL, 0, NULL),
        0);
    assert_int_equal(rd_kafka_flush(producer, PATIENCE_MS), 0);
    assert_null(commits ? rd_kafka_commit_transaction(producer, PATIENCE_MS)
                        : rd_kafka_abort_transaction(producer, PATIENCE_MS));
}

/* K33: a transaction's marker has an offset and is no record; the end of the log may be one. */
static void offsets_without_a_record_are_passed_over(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct acks acks = {0};
    struct spate_message m;
    struct spate_err err = {0};

    publish_all(w, &acks, 1);
    rd_kafka_t *producer = handle(f, "transactional.id", f->topic);
    rd_kafka_topic_t *log = rd_kafka_topic_new(producer, f->topic, NULL);
    rd_kafka_error_t *error = rd_kafka_init_transactions(producer, PATIENCE_MS);
    if (error)
        fail_msg("%s", rd_kafka_error_string(error));
    commit(producer, log, "2", true);
    commit(producer, log, "taken back", false);
    struct spate_reader *r = open_reader(f, oldest);
    expect(r, 1);
    const int64_t from = spate_clock_ms();
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_OK);
    assert_true(spate_slice_is(m.value, "2"));
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    assert_true(spate_clock_ms() - from < 5000); /* not after waiting for what will never come */
    assert_int_equal(spate_reader_end(r).at, 5);
    publish_all(w, &acks, 2);
    expect(r, 2);
    spate_reader_close(r);
    spate_writer_close(w);
    rd_kafka_topic_destroy(log);
    rd_kafka_destroy(producer);
}

static void needs_a_broker_in_SPATE_TEST_BROKERS(void **state)
{
    (void)state;
    skip();
}

int main(void)
{
    const char *brokers = getenv("SPATE_TEST_BROKERS");
    const struct CMUnitTest none[] = {cmocka_unit_test(needs_a_broker_in_SPATE_TEST_BROKERS)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_topic_that_was_made_anew_stops_its_writer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(more_partitions_stop_a_writer_that_has_nothing_to_do, set_up_watchful,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_retention_took_is_a_gap, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_log_that_lost_its_tail_stops_its_reader, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_topic_that_is_gone_stops_its_reader, set_up_watchful, tear_down),
        cmocka_unit_test_setup_teardown(a_position_beyond_the_end_is_waited_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(offsets_without_a_record_are_passed_over, set_up, tear_down),
    };

    if (!(brokers && *brokers))
        return cmocka_run_group_tests(none, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
