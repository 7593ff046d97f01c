/* bus/kafka/words.c - what a failure means, in words for people, and what to do about it. */
#include "bus/kafka/kafka.h"
#include "bus/kafka/properties.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define COMPLAINT_MS 60000 /* an older one explains nothing any more */
#define SAY_AGAIN_MS 3600000

/* What is done about a code (HAZARDS 8). A code that is not here is mended by a broker or a human while we
 * wait, or by reading the stream's end anew: tried again, for ever. */
static const struct action {
    rd_kafka_resp_err_t code;
    enum spate_verdict verdict;
    const char *does;
} actions[] = {
    {RD_KAFKA_RESP_ERR__FATAL, SPATE_RETRY,
     "a new producer, and the topic's end is read to see what arrived"},
    {RD_KAFKA_RESP_ERR__FENCED, SPATE_RETRY,
     "a new producer, and the topic's end is read to see what arrived"},
    {RD_KAFKA_RESP_ERR__MSG_TIMED_OUT, SPATE_RETRY,
     "any record that is reported as failed: nothing behind it counts as durable, the topic is opened anew "
     "and "
     "its end read"},
    {RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, SPATE_RETRY, "nothing is read or confirmed until one answers"},
    {RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, SPATE_RETRY,
     "a topic that this connector has published to: exit code 3; else it is made, or waited for"},
    {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, SPATE_RETRY,
     "nothing is published or confirmed; the message names user, rights and command; tried again"},
    {RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, SPATE_RETRY, "the same"},
    {RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED, SPATE_RETRY,
     "the same; a password_file is read anew at each attempt"},
    {RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, SPATE_RETRY,
     "nothing behind it is confirmed; the message names the setting; tried again. A change that is larger "
     "than "
     "the topic allows when it is opened: exit code 4, with table and remedy"},
    {RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, SPATE_RETRY,
     "nothing is confirmed until enough brokers are back"},
    {RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, SPATE_RETRY, "nothing is confirmed until the broker has room"},
    {RD_KAFKA_RESP_ERR_INVALID_RECORD, SPATE_FATAL, "stop"},
    {RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, SPATE_FATAL, "stop: the topic's name"},
    {RD_KAFKA_RESP_ERR_INVALID_CONFIG, SPATE_FATAL, "stop: a setting of a topic"},
    {RD_KAFKA_RESP_ERR_POLICY_VIOLATION, SPATE_FATAL, "stop: a setting of a topic that the cluster forbids"},
    {RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION, SPATE_FATAL, "stop: the brokers are too old"},
    {RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT, SPATE_FATAL, "stop: the topic's format is too old"},
    {RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS, SPATE_FATAL, "stop"},
    {RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, SPATE_FATAL, "stop: the brokers, or librdkafka, are too old"},
    {RD_KAFKA_RESP_ERR__INVALID_ARG, SPATE_FATAL, "stop: a property of librdkafka"},
};

static enum spate_verdict verdict_of(rd_kafka_resp_err_t code)
{
    for (size_t i = 0; i < SPATE_COUNT(actions); i++)
        if (actions[i].code == code)
            return actions[i].verdict;
    return SPATE_RETRY;
}

void spate_kafka_errors(struct spate_buf *out)
{
    spate_buf_puts(out, "| code | what is done |\n| --- | --- |\n");
    for (size_t i = 0; i < SPATE_COUNT(actions); i++)
        spate_buf_printf(out, "| `%s` | %s |\n", rd_kafka_err2name(actions[i].code), actions[i].does);
}

/* Does the last complaint say more than the code? */
static bool about_connections(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR__TRANSPORT:
    case RD_KAFKA_RESP_ERR__TIMED_OUT:
    case RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE:
    case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
    case RD_KAFKA_RESP_ERR__RESOLVE:
    case RD_KAFKA_RESP_ERR__SSL:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
    case RD_KAFKA_RESP_ERR__WAIT_CACHE:
    case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
    case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
    case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
        return true;
    default:
        return false;
    }
}

static bool has_certificate(const struct spate_kafka_config *config)
{
    return spate_kafka_said(config, "ssl.certificate.location") ||
           spate_kafka_said(config, "ssl.certificate.pem") ||
           spate_kafka_said(config, "ssl.keystore.location");
}

static void principal(const struct spate_kafka_config *config, char *out, size_t size)
{
    const char *user = spate_kafka_said(config, "sasl.username");

    if (spate_kafka_uses_sasl(config) && user)
        snprintf(out, size, "User:%.80s", user);
    else if (spate_kafka_uses_tls(config) && has_certificate(config))
        snprintf(out, size, "the user that the client certificate names");
    else
        snprintf(out, size, "User:ANONYMOUS");
}

/* What a human does about it, behind what happened. */
static void remedy(const struct spate_kafka_config *config, rd_kafka_resp_err_t code, char *out, size_t size)
{
    char who[120];

    principal(config, who, sizeof who);
    switch (code) {
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
        snprintf(out, size,
                 ". %s needs rights on the topics whose names begin with the stream's: a connector Describe, "
                 "DescribeConfigs, Create, Read and Write, a sink Describe and Read. Run: kafka-acls.sh "
                 "--bootstrap-server %.80s --add --allow-principal %s --operation Read (and so on) "
                 "--resource-pattern-type prefixed --topic NAME; it goes on by itself then",
                 who, config->brokers, who);
        break;
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
        snprintf(out, size,
                 ". The topic's max.message.bytes or the broker's message.max.bytes was made smaller");
        break;
    case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS:
    case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND:
        snprintf(out, size,
                 ". Fewer brokers hold the topic than its min.insync.replicas asks for: start them");
        break;
    case RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR:
        snprintf(out, size, ". The broker cannot write to its disk: look at its space and its log");
        break;
    default:
        out[0] = '\0';
    }
}

/* A broker that does not take our certificate, or misses one, ends the connection with an alert. */
static const char *certificate_remedy(const struct spate_kafka_config *config, const char *complaint)
{
    if (!strstr(complaint, "alert") ||
        (!strstr(complaint, "certificate") && !strstr(complaint, "unknown ca")))
        return "";
    return has_certificate(config)
               ? ". The broker does not take our certificate: it must be signed by an authority "
                 "of the broker's truststore, and be valid"
               : ". The broker wants to see a client certificate: name it in "
                 "bus.kafka.properties.ssl.certificate.location and ssl.key.location";
}

/* The words for a connection that does not come about, from librdkafka's last complaint. */
static void connection_words(struct spate_kafka *kafka, char *out, size_t size)
{
    const struct spate_kafka_config *config = kafka->config;
    char who[120];

    principal(config, who, sizeof who);
    pthread_mutex_lock(&kafka->lock);
    if (!kafka->complaint[0] || spate_clock_ms() > kafka->complained_ms + COMPLAINT_MS)
        snprintf(out, size, "no answer from the brokers %.200s", config->brokers);
    else if (kafka->trouble == SPATE_KAFKA_LOGIN && spate_kafka_uses_scram(config) &&
             rd_kafka_version() < SPATE_KAFKA_SCRAM_GOOD)
        snprintf(
            out, size,
            "the broker refused the SCRAM login of %s: %.250s. Kafka 4 refuses SCRAM from librdkafka before "
            "2.6.1 even where user and password are right, and this is %s (K34). Either use a newer "
            "librdkafka (Debian 13 has one), or client certificates (ssl.keystore.location), or "
            "sasl.mechanism: PLAIN with security.protocol: sasl_ssl",
            who, kafka->complaint, rd_kafka_version_str());
    else if (kafka->trouble == SPATE_KAFKA_LOGIN)
        snprintf(
            out, size,
            "the broker refused the login of %s: %.300s. Mend the user or the password; a password_file is "
            "read anew, and it goes on by itself then",
            who, kafka->complaint);
    else
        snprintf(out, size, "no connection to the brokers %.200s: %.300s%s", config->brokers,
                 kafka->complaint, certificate_remedy(config, kafka->complaint));
    pthread_mutex_unlock(&kafka->lock);
}

enum spate_rc spate_kafka_fail(struct spate_kafka *kafka, struct spate_err *err, rd_kafka_resp_err_t code,
                               const char *detail, const char *what, ...)
{
    char doing[200], words[800] = "", help[700];
    va_list args;

    va_start(args, what);
    vsnprintf(doing, sizeof doing, what, args);
    va_end(args);
    if (about_connections(code)) {
        connection_words(kafka, words, sizeof words);
        return spate_fail(err, SPATE_RETRY, "%s: %s", doing, words);
    }
    remedy(kafka->config, code, help, sizeof help);
    return spate_fail(err, verdict_of(code), "%s: %.300s (%s)%s", doing,
                      detail && *detail ? detail : rd_kafka_err2str(code), rd_kafka_err2name(code), help);
}

/* A bus is opened anew whenever a connector recovers; what was said about the same topics and properties a
 * minute ago is not worth repeating. One table for the process. */
bool spate_kafka_worth_saying(const char *about)
{
    static struct {
        char about[120];
        struct spate_log_limit limit;
    } table[32];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    size_t at = 0;
    unsigned hidden;
    bool yes;

    pthread_mutex_lock(&lock);
    while (at + 1 < SPATE_COUNT(table) && table[at].about[0] &&
           strncmp(table[at].about, about, sizeof table[at].about - 1) != 0)
        at++;
    snprintf(table[at].about, sizeof table[at].about, "%s", about);
    yes = spate_log_due(&table[at].limit, spate_clock_ms(), SAY_AGAIN_MS, &hidden);
    pthread_mutex_unlock(&lock);
    return yes;
}
