/* bus/kafka/settings.c - a topic's settings: made with ours, or held against what the topic is for.
 *
 * A setting that would lose or reorder records is refused with the command that mends it. What is only unwise
 * is said. What we may not see (least privilege: no DescribeConfigs) is said once and taken as it is. */
#include "bus/kafka/settings.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a record batch, around the largest record that fits: 61 bytes of the batch, some of the record, and the
 * fields before both in a request. */
#define OVERHEAD      512
#define UNKNOWN_MOST  ((size_t)1000000 - OVERHEAD) /* brokers take 1 048 588 bytes unless told otherwise */
#define PEERS_MS      INT64_C(3600000)             /* who is there is said anew every few seconds */
#define REPLICAS_GOOD 3
#define SLICE_MS      100 /* how long a signal may wait */
#define GRACE_MS      500 /* the request has the deadline itself, and answers then */

struct settings {
    char cleanup[40];
    int64_t retention_ms, retention_bytes, max_message_bytes, min_insync;
    bool unclean, source_time; /* leaders without all records; message.timestamp.type=CreateTime */
};

/* --- waiting for the brokers ------------------------------------------------------------------------------
 */

static rd_kafka_AdminOptions_t *options_until(rd_kafka_t *handle, int64_t deadline_ms)
{
    rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(handle, RD_KAFKA_ADMIN_OP_ANY);
    const int64_t left = deadline_ms - spate_clock_ms();
    char words[8];

    (void)rd_kafka_AdminOptions_set_request_timeout(options, left > 100 ? (int)left : 100, words,
                                                    sizeof words);
    return options;
}

/* The answer, or NULL with err filled. */
static rd_kafka_event_t *answer(struct spate_kafka *kafka, rd_kafka_queue_t *queue, int64_t deadline_ms,
                                const char *what, const char *topic, struct spate_err *err)
{
    rd_kafka_event_t *event = NULL;
    rd_kafka_resp_err_t code;

    while (!event && spate_clock_ms() < deadline_ms + GRACE_MS) {
        event = rd_kafka_queue_poll(queue, SLICE_MS);
        if (!event && spate_signals_stop()) {
            (void)spate_fail(err, SPATE_RETRY, "told to stop while waiting for the brokers");
            return NULL;
        }
    }
    code = event ? rd_kafka_event_error(event) : RD_KAFKA_RESP_ERR__TIMED_OUT;
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        return event;
    (void)spate_kafka_fail(kafka, err, code, event ? rd_kafka_event_error_string(event) : NULL, "%s %s", what,
                           topic);
    if (event)
        rd_kafka_event_destroy(event);
    return NULL;
}

/* --- making ------------------------------------------------------------------------------------------------
 */

static void put(rd_kafka_NewTopic_t *topic, const char *name, const char *value)
{
    (void)rd_kafka_NewTopic_set_config(topic, name, value); /* fails for an empty name only */
}

static void put_number(rd_kafka_NewTopic_t *topic, const char *name, int64_t value)
{
    char text[24];

    snprintf(text, sizeof text, "%" PRId64, value);
    put(topic, name, text);
}

static void put_all(const struct spate_kafka_config *config, rd_kafka_NewTopic_t *topic, unsigned flags,
                    int replicas)
{
    const int64_t insync = config->min_insync_replicas > 0 ? config->min_insync_replicas
                           : replicas >= REPLICAS_GOOD     ? 2
                                                           : 1;

    put(topic, "cleanup.policy", flags & SPATE_TOPIC_KEEP ? "compact" : "delete"); /* K26 */
    if (flags & SPATE_TOPIC_VOLATILE)
        put_number(topic, "retention.ms", PEERS_MS);
    else if (!(flags & SPATE_TOPIC_KEEP))
        put_number(topic, "retention.ms", config->retention_ms > 0 ? config->retention_ms : -1);
    put(topic, "retention.bytes", "-1");
    put_number(topic, "min.insync.replicas", insync); /* K13 */
    put(topic, "unclean.leader.election.enable", "false");
    put_number(topic, "max.message.bytes", config->max_message_bytes); /* K7 */
    put(topic, "message.timestamp.type", "LogAppendTime");
    put(topic, "compression.type", "producer");
}

static enum spate_rc created(struct spate_kafka *kafka, const rd_kafka_event_t *event, const char *name,
                             int replicas, int brokers, struct spate_err *err)
{
    size_t count;
    const rd_kafka_topic_result_t **results = rd_kafka_CreateTopics_result_topics(
        rd_kafka_event_CreateTopics_result((rd_kafka_event_t *)(uintptr_t)event), &count);
    rd_kafka_resp_err_t code;
    const char *words;

    if (count != 1)
        return spate_fail(err, SPATE_RETRY, "making topic %s: the brokers' answer names %zu topics", name,
                          count);
    code = rd_kafka_topic_result_error(results[0]);
    words = rd_kafka_topic_result_error_string(results[0]);
    switch (code) {
    case RD_KAFKA_RESP_ERR_NO_ERROR:
        spate_log(SPATE_LOG_INFO, "topic-made", "topic=%s replicas=%d", name, replicas);
        return SPATE_OK;
    case RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS:
        return SPATE_OK;
    case RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR:
        return spate_fail(
            err, SPATE_RETRY,
            "making topic %s: %d replicas were asked for, and %d brokers are there: %s. Start the "
            "others, or set bus.kafka.replication_factor",
            name, replicas, brokers, words ? words : "refused");
    case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(
            err, SPATE_FATAL,
            "making topic %s: %s. Kafka takes '.' and '_' for the same in the names of topics: give "
            "the connector another name",
            name, words ? words : "the brokers do not take the name");
    case RD_KAFKA_RESP_ERR_INVALID_CONFIG:
    case RD_KAFKA_RESP_ERR_POLICY_VIOLATION:
        err->exit_code = SPATE_EXIT_REFUSED;
        break;
    default:
        break;
    }
    return spate_kafka_fail(kafka, err, code, words, "making topic %s", name);
}

enum spate_rc spate_kafka_settings_create(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name,
                                          unsigned flags, int brokers, int64_t deadline_ms,
                                          struct spate_err *err)
{
    const struct spate_kafka_config *config = kafka->config;
    const int replicas = config->replication_factor > 0 ? (int)config->replication_factor
                         : brokers < REPLICAS_GOOD      ? (brokers > 0 ? brokers : 1)
                                                        : REPLICAS_GOOD;
    char words[200] = "";
    rd_kafka_NewTopic_t *topic;
    rd_kafka_AdminOptions_t *options;
    rd_kafka_queue_t *queue;
    rd_kafka_event_t *event;
    enum spate_rc rc = SPATE_FAIL;

    if (config->min_insync_replicas > replicas) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(
            err, SPATE_FATAL,
            "bus.kafka.min_insync_replicas is %" PRId64 ", and topic %s would have %d replicas: "
            "nothing could be written. Set bus.kafka.replication_factor higher, or this one lower",
            config->min_insync_replicas, name, replicas);
    }
    topic = rd_kafka_NewTopic_new(name, 1, replicas, words, sizeof words);
    if (!topic)
        return spate_fail(err, SPATE_FATAL, "making topic %s: %s", name, words);
    put_all(config, topic, flags, replicas);
    options = options_until(handle, deadline_ms);
    queue = rd_kafka_queue_new(handle);
    rd_kafka_CreateTopics(handle, &topic, 1, options, queue);
    event = answer(kafka, queue, deadline_ms, "making topic", name, err);
    if (event) {
        rc = created(kafka, event, name, replicas, brokers, err);
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_NewTopic_destroy(topic);
    return rc;
}

/* --- holding against
 * ---------------------------------------------------------------------------------------- */

static void take(struct settings *settings, const char *name, const char *value)
{
    const struct {
        const char *name;
        int64_t *number;
    } numbers[] = {{"retention.ms", &settings->retention_ms},
                   {"retention.bytes", &settings->retention_bytes},
                   {"max.message.bytes", &settings->max_message_bytes},
                   {"min.insync.replicas", &settings->min_insync}};

    for (size_t i = 0; i < SPATE_COUNT(numbers); i++)
        if (strcmp(name, numbers[i].name) == 0)
            *numbers[i].number = strtoll(value, NULL, 10);
    if (strcmp(name, "cleanup.policy") == 0)
        snprintf(settings->cleanup, sizeof settings->cleanup, "%s", value);
    else if (strcmp(name, "unclean.leader.election.enable") == 0)
        settings->unclean = strcmp(value, "true") == 0;
    else if (strcmp(name, "message.timestamp.type") == 0)
        settings->source_time = strcmp(value, "CreateTime") == 0;
}

/* SPATE_AGAIN: we may not ask. */
static enum spate_rc taken(struct spate_kafka *kafka, rd_kafka_event_t *event, const char *name,
                           struct settings *settings, struct spate_err *err)
{
    size_t resources, count;
    const rd_kafka_ConfigResource_t **resource =
        rd_kafka_DescribeConfigs_result_resources(rd_kafka_event_DescribeConfigs_result(event), &resources);
    const rd_kafka_ConfigEntry_t **entries;
    rd_kafka_resp_err_t code;

    if (resources != 1)
        return spate_fail(err, SPATE_RETRY,
                          "asking for the settings of topic %s: the answer names %zu topics", name,
                          resources);
    code = rd_kafka_ConfigResource_error(resource[0]);
    if (code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
        code == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED)
        return SPATE_AGAIN;
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return spate_kafka_fail(kafka, err, code, rd_kafka_ConfigResource_error_string(resource[0]),
                                "asking for the settings of topic %s", name);
    entries = rd_kafka_ConfigResource_configs(resource[0], &count);
    for (size_t i = 0; i < count; i++)
        if (rd_kafka_ConfigEntry_value(entries[i]))
            take(settings, rd_kafka_ConfigEntry_name(entries[i]), rd_kafka_ConfigEntry_value(entries[i]));
    return SPATE_OK;
}

static enum spate_rc ask(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name, int64_t deadline_ms,
                         struct settings *settings, struct spate_err *err)
{
    rd_kafka_ConfigResource_t *resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, name);
    rd_kafka_AdminOptions_t *options = options_until(handle, deadline_ms);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(handle);
    rd_kafka_event_t *event;
    enum spate_rc rc = SPATE_FAIL;

    rd_kafka_DescribeConfigs(handle, &resource, 1, options, queue);
    event = answer(kafka, queue, deadline_ms, "asking for the settings of topic", name, err);
    if (event) {
        rc = taken(kafka, event, name, settings, err);
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_ConfigResource_destroy(resource);
    return rc;
}

#define COMMAND 500

/* The command that mends a setting. */
static const char *command(const struct spate_kafka *kafka, const char *topic, const char *setting,
                           char out[COMMAND])
{
    snprintf(out, COMMAND,
             "kafka-configs.sh --bootstrap-server %.80s --alter --entity-type topics --entity-name %s "
             "--add-config %s",
             kafka->config->brokers, topic, setting);
    return out;
}

static void warn(const struct spate_kafka *kafka, const char *topic, const char *setting, const char *reason,
                 const char *better)
{
    char about[120], mend[COMMAND];

    if (kafka->findings) {
        spate_find(kafka->findings, SPATE_FINDING_WARNING, "topic-setting", "topic %s: %s", topic, setting);
        spate_find_why(kafka->findings, "%s", reason);
        if (better)
            spate_find_fix(kafka->findings, SPATE_MEND_SHELL, "%s", command(kafka, topic, better, mend));
        return;
    }
    snprintf(about, sizeof about, "%.80s %.30s", topic, setting);
    if (spate_kafka_worth_saying(about))
        spate_log(SPATE_LOG_WARN, "topic-setting", "topic=%s setting=%s words=\"%s%s%s\"", topic, setting,
                  reason, better ? "; better: " : "", better ? command(kafka, topic, better, mend) : "");
}

static enum spate_rc refuse(const struct spate_kafka *kafka, struct spate_err *err, const char *topic,
                            const char *setting, const char *value, const char *reason, const char *better)
{
    char mend[COMMAND];

    if (kafka->findings) {
        spate_find(kafka->findings, SPATE_FINDING_ERROR, "topic-setting", "topic %s has %s=%s", topic,
                   setting, value);
        spate_find_why(kafka->findings, "%s", reason);
        spate_find_fix(kafka->findings, SPATE_MEND_SHELL, "%s", command(kafka, topic, better, mend));
        return SPATE_OK;
    }
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(err, SPATE_FATAL, "topic %s has %s=%s: %s. Run: %s", topic, setting, value, reason,
                      command(kafka, topic, better, mend));
}

/* K26: what removes records other than by age removes changes. */
static enum spate_rc judge_cleanup(const struct spate_kafka *kafka, const char *name, unsigned flags,
                                   const struct settings *has, struct spate_err *err)
{
    const bool compacts = strstr(has->cleanup, "compact") != NULL, deletes = strstr(has->cleanup, "delete");

    if (!(flags & SPATE_TOPIC_KEEP) && compacts)
        return refuse(kafka, err, name, "cleanup.policy", has->cleanup,
                      "compaction removes changes that a sink has not read yet, and the numbers in between "
                      "(K26). If it ran already, start with --new-epoch afterwards",
                      "cleanup.policy=delete");
    if ((flags & SPATE_TOPIC_KEEP) && deletes && (has->retention_ms >= 0 || has->retention_bytes >= 0))
        return refuse(kafka, err, name, "cleanup.policy", has->cleanup,
                      "table descriptions would be removed by age while messages still need them",
                      "cleanup.policy=compact");
    return SPATE_OK;
}

static void judge_replicas(const struct spate_kafka *kafka, const char *name, int replicas,
                           const struct settings *has)
{
    if (has->min_insync > replicas) /* newer brokers ask for no more than there are */
        warn(kafka, name, "min.insync.replicas",
             "it is more than the topic has replicas, and older brokers take nothing then; whether this one "
             "does "
             "shows itself",
             "min.insync.replicas=1");
    if (replicas == 1 && kafka->findings)
        warn(kafka, name, "replicas=1",
             "with one replica a broker's lost disk or a power cut takes records along that the source was "
             "told are safe (K13); three brokers and three replicas keep them",
             NULL);
    else if (replicas == 1 && spate_kafka_worth_saying("replicas=1")) /* the same for each topic */
        spate_log(
            SPATE_LOG_WARN, "topic-setting",
            "topic=%s setting=replicas=1 words=\"with one replica a broker's lost disk or a power cut takes "
            "records along that the source was told are safe (K13); three brokers and three replicas keep "
            "them\"",
            name);
    else if (replicas > 1 && has->min_insync < 2)
        warn(kafka, name, "min.insync.replicas",
             "a record counts as safe when one broker has it; if that one is lost, so is the record (K13)",
             "min.insync.replicas=2");
    if (has->unclean)
        warn(kafka, name, "unclean.leader.election.enable",
             "a broker that lacks records may become leader, and they are gone for all (K13)",
             "unclean.leader.election.enable=false");
}

static void judge_age(const struct spate_kafka *kafka, const char *name, unsigned flags,
                      const struct settings *has)
{
    const int64_t wanted = kafka->config->retention_ms > 0 ? kafka->config->retention_ms : -1;
    char reason[240], better[60];

    if (has->source_time)
        warn(kafka, name, "message.timestamp.type",
             "retention goes by the clock of the connector's machine; when that is wrong, fresh records are "
             "removed or the broker refuses them",
             "message.timestamp.type=LogAppendTime");
    if (flags & (SPATE_TOPIC_KEEP | SPATE_TOPIC_VOLATILE))
        return;
    if (has->retention_bytes >= 0)
        warn(kafka, name, "retention.bytes",
             "records are removed by size, however young they are; a sink that is behind is loaded anew then",
             "retention.bytes=-1");
    if (has->retention_ms != wanted) {
        snprintf(reason, sizeof reason,
                 "records are kept for %" PRId64 " ms (-1: for ever), and bus.kafka.retention says %" PRId64
                 "; a sink that is behind for longer is loaded anew",
                 has->retention_ms, wanted);
        snprintf(better, sizeof better, "retention.ms=%" PRId64, wanted);
        warn(kafka, name, "retention.ms", reason, better);
    }
}

enum spate_rc spate_kafka_settings_check(struct spate_kafka *kafka, rd_kafka_t *handle, unsigned flags,
                                         int replicas, int64_t deadline_ms, struct spate_kafka_topic *topic,
                                         struct spate_err *err)
{
    struct settings has = {.cleanup = "delete", .retention_ms = -1, .retention_bytes = -1, .min_insync = 1};
    const enum spate_rc rc = ask(kafka, handle, topic->name, deadline_ms, &has, err);
    char value[24];

    topic->max_message_bytes = UNKNOWN_MOST;
    topic->retention_ms = INT64_MAX;
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_AGAIN) {
        warn(kafka, topic->name, "DESCRIBE_CONFIGS",
             "the settings may not be looked at, so nobody knows whether they keep records safe, and a "
             "record may "
             "have a megabyte; grant DESCRIBE_CONFIGS on the topic to have them checked",
             NULL);
        return SPATE_OK;
    }
    if (judge_cleanup(kafka, topic->name, flags, &has, err) != SPATE_OK)
        return SPATE_FAIL;
    judge_replicas(kafka, topic->name, replicas, &has);
    judge_age(kafka, topic->name, flags, &has);
    if (has.max_message_bytes < 16 * OVERHEAD) {
        snprintf(value, sizeof value, "%" PRId64, has.max_message_bytes);
        return refuse(kafka, err, topic->name, "max.message.bytes", value, "hardly a record fits into that",
                      "max.message.bytes=16777216");
    }
    topic->max_message_bytes = (size_t)has.max_message_bytes - OVERHEAD;
    if (has.retention_ms >= 0 && strstr(has.cleanup, "delete"))
        topic->retention_ms = has.retention_ms;
    return SPATE_OK;
}
