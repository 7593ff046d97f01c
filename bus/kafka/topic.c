/* bus/kafka/topic.c - a topic as the cluster has it: looked up, made when it is missing, checked. */
#include "bus/kafka/topic.h"

#include "bus/kafka/settings.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/signals.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define PATIENCE_MS     5000  /* for the brokers to answer at all */
#define MAKING_MS       10000 /* for a topic to be made and to get a leader */
#define FIRST_SLICE_MS  500
#define AFTER_MAKING_MS 50

static enum spate_rc stopped(struct spate_err *err)
{
    return spate_fail(err, SPATE_RETRY, "told to stop while waiting for the brokers");
}

static int64_t left_until(int64_t deadline_ms)
{
    const int64_t left = deadline_ms - spate_clock_ms();

    return left > 0 ? left : 0;
}

/* What the cluster knows of one topic (or of all: topic NULL). In growing slices, so that a refused login or
 * a signal ends the waiting, and a slow line does not. */
static enum spate_rc metadata(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name,
                              int64_t deadline_ms, const struct rd_kafka_metadata **found,
                              struct spate_err *err)
{
    rd_kafka_topic_t *topic = name ? rd_kafka_topic_new(handle, name, NULL) : NULL;
    rd_kafka_resp_err_t code;
    int64_t slice = FIRST_SLICE_MS;
    enum spate_rc rc = SPATE_OK;

    if (name && !topic)
        return spate_kafka_fail(kafka, err, rd_kafka_last_error(), NULL, "asking for topic %s", name);
    for (;; slice *= 2) {
        const int64_t left = left_until(deadline_ms);

        code = rd_kafka_metadata(handle, name == NULL, topic, found, (int)(left < slice ? left + 1 : slice));
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
            break;
        if (spate_signals_stop()) {
            rc = stopped(err);
            break;
        }
        if (left == 0 || spate_kafka_hopeless(handle) ||
            (code != RD_KAFKA_RESP_ERR__TIMED_OUT && code != RD_KAFKA_RESP_ERR__TRANSPORT)) {
            rc = spate_kafka_fail(kafka, err, code, NULL,
                                  name ? "asking for topic %s" : "asking for topics%s", name ? name : "");
            break;
        }
    }
    if (topic)
        rd_kafka_topic_destroy(topic);
    return rc;
}

struct shape {
    rd_kafka_resp_err_t code; /* of the topic */
    int brokers, partitions, replicas;
    bool has_leader;
};

static enum spate_rc look(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name,
                          int64_t deadline_ms, struct shape *shape, struct spate_err *err)
{
    const struct rd_kafka_metadata *found;
    const struct rd_kafka_metadata_topic *topic;

    if (metadata(kafka, handle, name, deadline_ms, &found, err) != SPATE_OK)
        return SPATE_FAIL;
    *shape = (struct shape){.code = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, .brokers = found->broker_cnt};
    if (found->topic_cnt == 1) {
        topic = &found->topics[0];
        shape->code = topic->err;
        shape->partitions = topic->partition_cnt;
        if (topic->partition_cnt > 0) {
            shape->replicas = topic->partitions[0].replica_cnt;
            shape->has_leader = topic->partitions[0].leader >= 0;
        }
    }
    rd_kafka_metadata_destroy(found);
    return SPATE_OK;
}

static bool missing(const struct shape *shape)
{
    return shape->code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
           shape->code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
           shape->code == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
}

/* No leader is a matter of moments after a topic was made or a broker was lost. */
static bool settling(const struct shape *shape)
{
    return shape->code == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
           (shape->code == RD_KAFKA_RESP_ERR_NO_ERROR && !shape->has_leader);
}

static enum spate_rc pause_for(int ms, struct spate_err *err)
{
    struct pollfd fd = {.fd = spate_signals_fd(), .events = POLLIN};

    poll(&fd, 1, ms);
    return spate_signals_stop() ? stopped(err) : SPATE_OK;
}

/* Looks until the topic stands there with a leader. `made`: it is on its way, so a missing one is waited for.
 */
static enum spate_rc look_settled(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name, bool made,
                                  int64_t deadline_ms, struct shape *shape, struct spate_err *err)
{
    for (;;) {
        if (look(kafka, handle, name, deadline_ms, shape, err) != SPATE_OK)
            return SPATE_FAIL;
        if (!settling(shape) && !(made && missing(shape)))
            return SPATE_OK;
        if (left_until(deadline_ms) == 0)
            return spate_kafka_fail(kafka, err, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
                                    "no broker leads it; are enough brokers up?", "asking for topic %s",
                                    name);
        if (pause_for(AFTER_MAKING_MS, err) != SPATE_OK)
            return SPATE_FAIL;
    }
}

/* Decision 7, K11. Partitions can be added, never taken away. */
static enum spate_rc one_partition(const struct spate_kafka *kafka, const char *name,
                                   const struct shape *shape, struct spate_err *err)
{
    if (shape->partitions == 1)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s has %d partitions, and a stream has one: only there do transactions keep their "
        "order (K11). Run: kafka-topics.sh --bootstrap-server %.100s --delete --topic %s, which "
        "removes what it holds, and start the connector with --new-epoch, which makes it anew; or "
        "give the connector another name",
        name, shape->partitions, kafka->config->brokers, name);
}

/* `flags` is 0 for readers, who make nothing. */
static enum spate_rc not_there(struct spate_kafka *kafka, const char *name, unsigned flags,
                               const struct shape *shape, struct spate_err *err)
{
    if (!missing(shape))
        return spate_kafka_fail(kafka, err, shape->code, NULL, "asking for topic %s", name);
    err->missing = true;
    if (!(flags & SPATE_TOPIC_CREATE))
        return spate_fail(err, SPATE_RETRY,
                          "there is no topic %s on %.200s yet; its connector makes it when it starts, unless "
                          "bus.kafka.create is false",
                          name, kafka->config->brokers);
    return spate_fail(err, SPATE_RETRY,
                      "there is no topic %s, and bus.kafka.create is false. Run: kafka-topics.sh "
                      "--bootstrap-server %.100s --create --topic %s --partitions 1 --replication-factor %d "
                      "--config min.insync.replicas=%d --config cleanup.policy=%s --config "
                      "message.timestamp.type=LogAppendTime, or remove bus.kafka.create",
                      name, kafka->config->brokers, name, shape->brokers < 3 ? shape->brokers : 3,
                      shape->brokers < 3 ? 1 : 2, flags & SPATE_TOPIC_KEEP ? "compact" : "delete");
}

/* The brokers do not agree on a topic at once: one names a leader that does not know of it yet. */
static bool passing(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
    case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE:
    case RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH:
    case RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH:
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR__TIMED_OUT: /* of a slice */
    case RD_KAFKA_RESP_ERR__TRANSPORT:
        return true;
    default:
        return false;
    }
}

/* One end: RD_KAFKA_OFFSET_BEGINNING or RD_KAFKA_OFFSET_END, which as times mean the ends to a broker. */
static rd_kafka_resp_err_t ask_end(rd_kafka_t *handle, const char *name, int64_t which, int timeout_ms,
                                   int64_t *offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *partition = rd_kafka_topic_partition_list_add(list, name, 0);
    rd_kafka_resp_err_t code;

    partition->offset = which;
    code = rd_kafka_offsets_for_times(handle, list, timeout_ms);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
        code = partition->err;
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR && partition->offset < 0)
        code = RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE;
    *offset = partition->offset;
    rd_kafka_topic_partition_list_destroy(list);
    return code;
}

rd_kafka_resp_err_t spate_kafka_ends(rd_kafka_t *handle, const char *name, int timeout_ms, int64_t *low,
                                     int64_t *high)
{
    const rd_kafka_resp_err_t code = ask_end(handle, name, RD_KAFKA_OFFSET_BEGINNING, timeout_ms, low);

    return code == RD_KAFKA_RESP_ERR_NO_ERROR ? ask_end(handle, name, RD_KAFKA_OFFSET_END, timeout_ms, high)
                                              : code;
}

static enum spate_rc watermarks(struct spate_kafka *kafka, rd_kafka_t *handle, int64_t deadline_ms,
                                struct spate_kafka_topic *topic, struct spate_err *err)
{
    rd_kafka_resp_err_t code;
    int64_t slice = FIRST_SLICE_MS;

    for (;; slice *= 2) {
        const int64_t left = left_until(deadline_ms);

        code = spate_kafka_ends(handle, topic->name, (int)(left < slice ? left + 1 : slice), &topic->low,
                                &topic->high);
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR)
            return SPATE_OK;
        if (!passing(code) || left == 0)
            return spate_kafka_fail(kafka, err, code, NULL, "asking for the ends of topic %s", topic->name);
        if (pause_for(AFTER_MAKING_MS, err) != SPATE_OK)
            return SPATE_FAIL;
    }
}

enum spate_rc spate_kafka_topic_look(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name,
                                     struct spate_kafka_topic *topic, struct spate_err *err)
{
    const int64_t deadline_ms = spate_clock_ms() + PATIENCE_MS;
    struct shape shape;

    *topic = (struct spate_kafka_topic){.retention_ms = INT64_MAX};
    snprintf(topic->name, sizeof topic->name, "%s", name);
    if (look_settled(kafka, handle, name, false, deadline_ms, &shape, err) != SPATE_OK)
        return SPATE_FAIL;
    if (shape.code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return not_there(kafka, name, 0, &shape, err);
    if (one_partition(kafka, name, &shape, err) != SPATE_OK)
        return SPATE_FAIL;
    return watermarks(kafka, handle, deadline_ms, topic, err);
}

static enum spate_rc open_with(struct spate_kafka *kafka, rd_kafka_t *handle, unsigned flags,
                               struct spate_kafka_topic *topic, struct spate_err *err)
{
    int64_t deadline_ms = spate_clock_ms() + PATIENCE_MS;
    struct shape shape;

    if (look_settled(kafka, handle, topic->name, false, deadline_ms, &shape, err) != SPATE_OK)
        return SPATE_FAIL;
    if (missing(&shape) && (flags & SPATE_TOPIC_CREATE) && kafka->config->create) {
        deadline_ms = spate_clock_ms() + MAKING_MS;
        if (spate_kafka_settings_create(kafka, handle, topic->name, flags, shape.brokers, deadline_ms, err) !=
            SPATE_OK)
            return SPATE_FAIL;
        SPATE_FAILPOINT(kafka_topic_created);
        if (look_settled(kafka, handle, topic->name, true, deadline_ms, &shape, err) != SPATE_OK)
            return SPATE_FAIL;
    }
    if (shape.code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return not_there(kafka, topic->name, flags, &shape, err);
    if (one_partition(kafka, topic->name, &shape, err) != SPATE_OK ||
        spate_kafka_settings_check(kafka, handle, flags, shape.replicas, deadline_ms, topic, err) != SPATE_OK)
        return SPATE_FAIL;
    return watermarks(kafka, handle, deadline_ms, topic, err);
}

enum spate_rc spate_kafka_topic_open(struct spate_kafka *kafka, const char *name, unsigned flags,
                                     struct spate_kafka_topic *topic, struct spate_err *err)
{
    rd_kafka_t *handle;
    enum spate_rc rc;

    *topic = (struct spate_kafka_topic){0};
    snprintf(topic->name, sizeof topic->name, "%s", name);
    if (spate_kafka_client(kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, err) != SPATE_OK)
        return SPATE_FAIL;
    rc = open_with(kafka, handle, flags, topic, err);
    spate_kafka_client_free(handle);
    return rc;
}

/* ---- looking alone ---- */

static void tell_missing(struct spate_kafka *kafka, const char *name, unsigned flags, bool writes,
                         const struct shape *shape)
{
    struct spate_findings *list = kafka->findings;
    struct spate_err err = {0};

    if (!missing(shape)) {
        (void)not_there(kafka, name, flags, shape, &err);
        spate_find_err(list, "topic", &err);
    } else if (!writes || kafka->config->create) {
        spate_find(list, SPATE_FINDING_NOTE, writes ? "topic-will-be-made" : "stream-not-there",
                   "there is no topic %s yet", name);
        spate_find_why(list, "the connector makes it when it starts, with %d brokers there now",
                       shape->brokers);
        if (writes && kafka->config->replication_factor > shape->brokers) {
            spate_find(list, SPATE_FINDING_ERROR, "topic-replicas",
                       "topic %s is to have %d replicas, and there are %d brokers", name,
                       (int)kafka->config->replication_factor, shape->brokers);
            spate_find_why(list, "it cannot be made so");
            spate_find_fix(list, SPATE_MEND_FILE, "bus.kafka.replication_factor: %d", shape->brokers);
        }
    } else {
        spate_find(list, SPATE_FINDING_ERROR, "topic-missing", "there is no topic %s", name);
        spate_find_why(list, "bus.kafka.create is false, so the connector waits until somebody makes it");
        spate_find_fix(list, SPATE_MEND_SHELL,
                       "kafka-topics.sh --bootstrap-server %.200s --create --topic %s --partitions 1 "
                       "--replication-factor %d --config min.insync.replicas=%d --config cleanup.policy=%s "
                       "--config message.timestamp.type=LogAppendTime",
                       kafka->config->brokers, name, shape->brokers < 3 ? shape->brokers : 3,
                       shape->brokers < 3 ? 1 : 2, flags & SPATE_TOPIC_KEEP ? "compact" : "delete");
    }
}

/* Asked for by its name, a missing topic would be made by a broker that makes topics by itself. */
static enum spate_rc listed(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name,
                            int64_t deadline_ms, struct shape *shape, struct spate_err *err)
{
    const struct rd_kafka_metadata *found;
    enum spate_rc rc = metadata(kafka, handle, NULL, deadline_ms, &found, err);

    if (rc != SPATE_OK)
        return rc;
    *shape = (struct shape){.code = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, .brokers = found->broker_cnt};
    for (int i = 0; i < found->topic_cnt; i++)
        if (strcmp(found->topics[i].topic, name) == 0)
            shape->code = RD_KAFKA_RESP_ERR_NO_ERROR;
    rd_kafka_metadata_destroy(found);
    return SPATE_OK;
}

void spate_kafka_topic_check(struct spate_kafka *kafka, rd_kafka_t *handle, const char *name, unsigned flags,
                             bool writes)
{
    const int64_t deadline_ms = spate_clock_ms() + PATIENCE_MS;
    struct spate_kafka_topic topic = {0};
    struct spate_err err = {0};
    struct shape shape;

    snprintf(topic.name, sizeof topic.name, "%s", name);
    if (listed(kafka, handle, name, deadline_ms, &shape, &err) != SPATE_OK) {
        spate_find_err(kafka->findings, "brokers", &err);
    } else if (missing(&shape)) {
        tell_missing(kafka, name, flags, writes, &shape);
    } else if (look_settled(kafka, handle, name, false, deadline_ms, &shape, &err) != SPATE_OK) {
        spate_find_err(kafka->findings, "topic", &err);
    } else if (shape.code != RD_KAFKA_RESP_ERR_NO_ERROR) {
        tell_missing(kafka, name, flags, writes, &shape);
    } else if (one_partition(kafka, name, &shape, &err) != SPATE_OK) {
        spate_find_err(kafka->findings, "topic-partitions", &err);
    } else if (spate_kafka_settings_check(kafka, handle, flags, shape.replicas, deadline_ms, &topic, &err) !=
               SPATE_OK) {
        spate_find_err(kafka->findings, "topic-setting", &err);
    }
}

/* Names that spate_topic_escape() could have made: [a-z0-9][a-z0-9._-]*. Kafka's own begin with two
 * underscores. */
static bool could_be_ours(const char *name)
{
    char shown[250];

    return name[0] != '_' && name[0] != '.' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(name) &&
           spate_topic_unescape(name, shown, sizeof shown);
}

enum spate_rc spate_kafka_topics(struct spate_kafka *kafka, void (*each)(void *arg, const char *topic),
                                 void *arg, struct spate_err *err)
{
    const struct rd_kafka_metadata *found;
    rd_kafka_t *handle;
    enum spate_rc rc;

    if (spate_kafka_client(kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, err) != SPATE_OK)
        return SPATE_FAIL;
    rc = metadata(kafka, handle, NULL, spate_clock_ms() + PATIENCE_MS, &found, err);
    if (rc == SPATE_OK) {
        for (int i = 0; i < found->topic_cnt; i++)
            if (could_be_ours(found->topics[i].topic))
                each(arg, found->topics[i].topic);
        rd_kafka_metadata_destroy(found);
    }
    spate_kafka_client_free(handle);
    return rc;
}
