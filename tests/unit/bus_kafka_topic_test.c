/* Looking a topic up while brokers fail, against librdkafka's scripted brokers (F52). Real ones are in
 * tests/integration/test_kafka_topics.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/kafka/topic.h"
#include "core/clock.h"

#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOPIC "shop"

struct brokers {
    rd_kafka_t *owner;
    rd_kafka_mock_cluster_t *cluster;
    struct spate_kafka_config config;
    struct spate_kafka kafka;
    rd_kafka_t *handle;
};

static int begin(void **state)
{
    struct brokers *brokers = calloc(1, sizeof *brokers);
    struct spate_err err = {0};
    char words[200];

    brokers->owner = rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), words, sizeof words);
    assert_non_null(brokers->owner);
    brokers->cluster = rd_kafka_mock_cluster_new(brokers->owner, 2);
    brokers->config.brokers = strdup(rd_kafka_mock_cluster_bootstraps(brokers->cluster));
    rd_kafka_mock_topic_create(brokers->cluster, TOPIC, 1, 1);
    rd_kafka_mock_partition_set_leader(brokers->cluster, TOPIC, 0, 2);
    spate_kafka_init(&brokers->kafka, &brokers->config);
    if (spate_kafka_client(&brokers->kafka, SPATE_KAFKA_CONSUMER, 0, NULL, NULL, &brokers->handle, &err))
        fail_msg("%s", err.text);
    *state = brokers;
    return 0;
}

static int end(void **state)
{
    struct brokers *brokers = *state;

    spate_kafka_client_free(brokers->handle);
    spate_kafka_fini(&brokers->kafka);
    rd_kafka_mock_cluster_destroy(brokers->cluster);
    rd_kafka_destroy(brokers->owner);
    free(brokers->config.brokers);
    free(brokers);
    return 0;
}

static void the_ends_are_those_of_the_log(void **state)
{
    struct brokers *brokers = *state;
    struct spate_kafka_topic topic;
    struct spate_err err = {0};
    rd_kafka_topic_t *writer = rd_kafka_topic_new(brokers->owner, TOPIC, NULL);

    if (spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(topic.low, 0);
    assert_int_equal(topic.high, 0);
    rd_kafka_brokers_add(brokers->owner, brokers->config.brokers);
    for (int i = 0; i < 3; i++)
        assert_int_equal(rd_kafka_produce(writer, 0, RD_KAFKA_MSG_F_COPY, TOPIC, 4, NULL, 0, NULL), 0);
    assert_int_equal(rd_kafka_flush(brokers->owner, 10000), RD_KAFKA_RESP_ERR_NO_ERROR);
    rd_kafka_topic_destroy(writer);
    if (spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(topic.low, 0);
    assert_int_equal(topic.high, 3);
}

/* The other broker says who leads, and that one does not answer: the wait keeps to its time. */
static void a_leader_that_is_down_is_not_waited_for_without_end(void **state)
{
    struct brokers *brokers = *state;
    struct spate_kafka_topic topic;
    struct spate_err err = {0};
    int64_t begun;

    if (spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    rd_kafka_mock_broker_set_down(brokers->cluster, 2);
    begun = spate_clock_ms();
    assert_int_equal(spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err),
                     SPATE_FAIL);
    assert_in_range(spate_clock_ms() - begun, 0, 8000);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, "topic " TOPIC));
    rd_kafka_mock_broker_set_up(brokers->cluster, 2);
    for (int i = 0; i < 10 && spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err);
         i++)
        ; /* each waits for seconds */
    assert_int_equal(spate_kafka_topic_look(&brokers->kafka, brokers->handle, TOPIC, &topic, &err), SPATE_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_ends_are_those_of_the_log, begin, end),
        cmocka_unit_test_setup_teardown(a_leader_that_is_down_is_not_waited_for_without_end, begin, end),
    };
    return cmocka_run_group_tests_name("bus_kafka_topic", tests, NULL, NULL);
}
