/* bus/kafka/properties.c - librdkafka's properties: the table of those that carry correctness, and setting
 * them.
 *
 * Everything that is not in the table passes through as the file has it. What is in it was found to lose,
 * double or reorder records otherwise (docs/hazards.md, the bus), so a file may say the same or nothing. */
#include "bus/kafka/properties.h"

#include "bus/kafka/kafka.h"
#include "core/alloc.h"
#include "core/buf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum role_set { PRODUCERS = 1, CONSUMERS = 2, ALL = 4 };

enum demand {
    SAME,  /* the value and no other; `or_else` is another spelling of it */
    MOST,  /* a number, at most the value */
    LEAST, /* a number, at least the value */
    OURS,  /* not to be given at all */
    NO_USE /* has no effect: warned about */
};

static const struct rule {
    const char *name, *alias;
    enum role_set roles; /* which handles get the value */
    enum demand demand;
    const char *value, *or_else;
    const char *reason; /* why nothing else is taken; for people */
} rules[] = {
    {"metadata.broker.list", "bootstrap.servers", 0, OURS, NULL, NULL,
     "the brokers are named in bus.kafka.brokers"},
    {"transactional.id", NULL, 0, OURS, NULL, NULL,
     "records are numbered, and sinks take each number once: Kafka's transactions would add nothing but "
     "readers that wait for them"},
    {"group.id", "group.instance.id", 0, OURS, NULL, NULL,
     "sinks keep their position with their rows and belong to no consumer group (K20, K22)"},
    {"message.max.bytes", NULL, 0, OURS, NULL, NULL,
     "it follows the topic's max.message.bytes (K7); bus.kafka.max_message_bytes says what topics are made "
     "with"},
    {"enabled_events", NULL, 0, OURS, NULL, NULL, "it is for programs, not for files"},
    {"log.queue", NULL, 0, SAME, "false", NULL, "librdkafka's complaints would be seen too late"},
    {"enable.idempotence", NULL, PRODUCERS, SAME, "true", NULL,
     "without it a retried request reorders records (K1)"},
    {"request.required.acks", "acks", PRODUCERS, SAME, "all", "-1",
     "with fewer acknowledgements a broker that fails takes records along that the source was told are safe "
     "(K13)"},
    {"message.timeout.ms", "delivery.timeout.ms", PRODUCERS, SAME, "0", NULL,
     "a record that times out leaves a hole in the stream (K2): waiting has no end"},
    {"enable.gapless.guarantee", NULL, PRODUCERS, SAME, "true", NULL,
     "a failed batch would leave a hole in the stream (K3)"},
    {"max.in.flight.requests.per.connection", "max.in.flight", PRODUCERS, MOST, "5", NULL,
     "the broker keeps five batches in order, not more (K1)"},
    {"message.send.max.retries", "retries", PRODUCERS, SAME, "2147483647", NULL,
     "a record that is given up leaves a hole in the stream (K2)"},
    {"queuing.strategy", NULL, 0, SAME, "fifo", NULL, "it would reorder records (K1)"},
    {"delivery.report.only.error", NULL, PRODUCERS, SAME, "false", NULL,
     "the source is told what is durable by the reports of success (K17)"},
    {"queue.buffering.max.messages", NULL, PRODUCERS, LEAST, "131072", NULL,
     "the bus counts what waits itself, and stops reading the source earlier (K8)"},
    {"queue.buffering.max.kbytes", NULL, PRODUCERS, LEAST, "65536", NULL,
     "the bus counts what waits itself, and stops reading the source earlier (K8)"},
    {"partitioner", NULL, 0, NO_USE, NULL, NULL, "a stream has one partition (K12)"},
    {"allow.auto.create.topics", NULL, ALL, SAME, "false", NULL,
     "topics that brokers make by themselves have wrong settings (K9); bus.kafka.create makes right ones"},
    {"api.version.request", NULL, 0, SAME, "true", NULL,
     "without it the client guesses what the broker can, and falls back to formats that lose numbering (K1)"},
    {"enable.auto.commit", "auto.commit.enable", CONSUMERS, SAME, "false", NULL,
     "an offset could pass rows that were not applied; the position stands with the rows (K20)"},
    {"enable.auto.offset.store", NULL, CONSUMERS, SAME, "false", NULL,
     "an offset could pass rows that were not applied; the position stands with the rows (K20)"},
    {"auto.offset.reset", NULL, CONSUMERS, SAME, "error", NULL,
     "a lost position would be passed over silently (K21); sinks say what is missing instead"},
    {"check.crcs", NULL, CONSUMERS, SAME, "true", NULL, "damaged bytes would become rows (K28)"},
    {"isolation.level", NULL, CONSUMERS, SAME, "read_committed", NULL,
     "what another program wrote and took back would be read (K30)"},
    {"enable.partition.eof", NULL, CONSUMERS, SAME, "true", NULL,
     "the end of the stream would not be noticed, which starting rests on"},
};

/* What is better than librdkafka's own default, and a file may change. */
static const struct preset {
    enum role_set roles;
    const char *name, *value;
    bool newer; /* librdkafka 2.0.2 does not know it */
} presets[] = {
    {ALL, "client.id", "spate", false},
    {ALL, "socket.keepalive.enable", "true", false},
    /* A broker that went away without a word is noticed within a minute, not two. */
    {ALL, "socket.timeout.ms", "30000", false},
    {ALL, "reconnect.backoff.max.ms", "3000", false},
    {ALL, "topic.metadata.refresh.interval.ms", "30000", false}, /* K11: noticed within half a minute */
    {PRODUCERS, "compression.codec", "lz4", false},
    {PRODUCERS, "linger.ms", "5", false},
    /* K31, for each topic that is read. What was fetched is several times larger unpacked, and each record
     * costs some hundred bytes besides, which librdkafka does not count. A larger batch is fetched all the
     * same. */
    {CONSUMERS, "queued.max.messages.kbytes", "4096", false},
    {CONSUMERS, "queued.min.messages", "20000", false},
    {CONSUMERS, "fetch.message.max.bytes", "262144", false},
    {CONSUMERS, "fetch.max.bytes", "8388608", false},
    {CONSUMERS, "fetch.error.backoff.ms", "100", false},
    {CONSUMERS, "fetch.wait.max.ms", "100", false}, /* a seek waits for the fetch that is out */
    {CONSUMERS, "fetch.queue.backoff.ms", "5",
     true}, /* else newer ones pause a second when the queue is full */
};

/* --- what the file says ----------------------------------------------------------------------------------
 */

const char *spate_kafka_said(const struct spate_kafka_config *config, const char *name)
{
    for (size_t i = config->properties.count; i-- > 0;)
        if (strcmp(config->properties.at[i].key, name) == 0)
            return config->properties.at[i].value;
    return NULL;
}

static bool protocol_is(const struct spate_kafka_config *config, const char *a, const char *b)
{
    const char *protocol = spate_kafka_said(config, "security.protocol");

    return protocol && (strcasecmp(protocol, a) == 0 || strcasecmp(protocol, b) == 0);
}

bool spate_kafka_uses_tls(const struct spate_kafka_config *config)
{
    return protocol_is(config, "ssl", "sasl_ssl");
}

bool spate_kafka_uses_sasl(const struct spate_kafka_config *config)
{
    return protocol_is(config, "sasl_plaintext", "sasl_ssl");
}

const char *spate_kafka_mechanism(const struct spate_kafka_config *config)
{
    const char *said = spate_kafka_said(config, "sasl.mechanism");

    return said ? said : spate_kafka_said(config, "sasl.mechanisms");
}

bool spate_kafka_uses_scram(const struct spate_kafka_config *config)
{
    return spate_kafka_uses_sasl(config) && spate_kafka_mechanism(config) &&
           strncasecmp(spate_kafka_mechanism(config), "SCRAM-", 6) == 0;
}

enum spate_rc spate_kafka_refuse(struct spate_err *err, const char *fmt, ...)
{
    char text[sizeof err->text];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL, "%s", text);
}

/* "bus.kafka.properties.acks (line 12)" */
const char *spate_kafka_place(const struct spate_pair *pair, char *out, size_t size)
{
    if (pair->line > 0)
        snprintf(out, size, "bus.kafka.properties.%.80s (line %d)", pair->key, pair->line);
    else
        snprintf(out, size, "bus.kafka.properties.%.80s", pair->key);
    return out;
}

static bool number(const char *text, long long *out)
{
    char *end;

    errno = 0;
    *out = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0';
}

static bool satisfies(const struct rule *rule, const char *value)
{
    long long has, bound;

    switch (rule->demand) {
    case SAME:
        return strcasecmp(value, rule->value) == 0 ||
               (rule->or_else && strcasecmp(value, rule->or_else) == 0);
    case MOST:
        return number(value, &has) && number(rule->value, &bound) && has >= 1 && has <= bound;
    case LEAST:
        return number(value, &has) && number(rule->value, &bound) && has >= bound;
    case OURS:
        return false;
    case NO_USE:
        break;
    }
    return true;
}

enum spate_rc spate_kafka_rules_hold(const struct spate_pair *pair, struct spate_err *err)
{
    char at[140];

    for (size_t i = 0; i < SPATE_COUNT(rules); i++) {
        const struct rule *rule = &rules[i];

        if (strcmp(pair->key, rule->name) != 0 && (!rule->alias || strcmp(pair->key, rule->alias) != 0))
            continue;
        if (rule->demand == NO_USE && spate_kafka_worth_saying(pair->key))
            spate_log(SPATE_LOG_WARN, "kafka-property", "property=%s words=\"has no effect: %s\"", pair->key,
                      rule->reason);
        if (satisfies(rule, pair->value))
            return SPATE_OK;
        spate_kafka_place(pair, at, sizeof at);
        if (rule->demand == OURS)
            return spate_kafka_refuse(err, "%s: cannot be set: %s. Remove it", at, rule->reason);
        return spate_kafka_refuse(err, "%s: expected %s%s, got \"%.60s\": %s. Remove it, or write %s", at,
                                  rule->demand == MOST    ? "at most "
                                  : rule->demand == LEAST ? "at least "
                                                          : "",
                                  rule->value, pair->value, rule->reason, rule->value);
    }
    return SPATE_OK;
}

/* --- setting ---------------------------------------------------------------------------------------------
 */

/* Common ones that librdkafka's own list lacks: it has no aliases, and nothing that is unset. */
static const char *const common[] = {
    "security.protocol",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.certificate.pem",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "ssl.keystore.location",
    "client.rack",
    "compression.type",
    "linger.ms",
    "ssl.keystore.password",
    "acks",
    "retries",
    "group.id",
    "bootstrap.servers",
    "max.in.flight",
    "transactional.id",
    "ssl.crl.location",
    "sasl.oauthbearer.config",
};

/* The property that was perhaps meant. */
static const char *nearest(rd_kafka_conf_t *conf, const char *word, char *out, size_t size)
{
    rd_kafka_topic_conf_t *topic = rd_kafka_topic_conf_new();
    size_t globals, topics, count = 0;
    const char **global = rd_kafka_conf_dump(conf, &globals);
    const char **of_topic = rd_kafka_topic_conf_dump(topic, &topics);
    const char **names = spate_alloc((globals + topics + SPATE_COUNT(common)) * sizeof *names);
    const char *near;

    for (size_t i = 0; i < SPATE_COUNT(common); i++)
        names[count++] = common[i];
    for (size_t i = 0; i + 1 < globals; i += 2) /* names and values alternate */
        names[count++] = global[i];
    for (size_t i = 0; i + 1 < topics; i += 2)
        names[count++] = of_topic[i];
    near = spate_nearest(word, names, count);
    snprintf(out, size, "%s%s%s", near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    free(names);
    rd_kafka_conf_dump_free(global, globals);
    rd_kafka_conf_dump_free(of_topic, topics);
    rd_kafka_topic_conf_destroy(topic);
    return out;
}

static enum spate_rc set(rd_kafka_conf_t *conf, const struct spate_pair *pair, struct spate_err *err)
{
    char words[300] = "", at[140], near[120] = "";

    switch (rd_kafka_conf_set(conf, pair->key, pair->value, words, sizeof words)) {
    case RD_KAFKA_CONF_OK:
        return SPATE_OK;
    case RD_KAFKA_CONF_UNKNOWN:
        nearest(conf, pair->key, near, sizeof near);
        return spate_kafka_refuse(err, "%s: librdkafka %s has no such property%s",
                                  spate_kafka_place(pair, at, sizeof at), rd_kafka_version_str(), near);
    case RD_KAFKA_CONF_INVALID:
        break;
    }
    return spate_kafka_refuse(err, "%s: librdkafka does not take the value: %s",
                              spate_kafka_place(pair, at, sizeof at),
                              spate_secret_name(pair->key) ? "not shown, since it is a secret" : words);
}

static enum spate_rc set_ours(rd_kafka_conf_t *conf, const char *name, const char *value,
                              struct spate_err *err)
{
    char words[300] = "";

    if (rd_kafka_conf_set(conf, name, value, words, sizeof words) == RD_KAFKA_CONF_OK)
        return SPATE_OK;
    return spate_kafka_refuse(err, "librdkafka %s does not take %s=%s: %s; use another version of it",
                              rd_kafka_version_str(), name, value, words);
}

static bool meant_for(enum role_set roles, enum spate_kafka_role role)
{
    if (roles & ALL)
        return true;
    if (role == SPATE_KAFKA_CONSUMER)
        return roles & CONSUMERS;
    return (roles & PRODUCERS) && role != SPATE_KAFKA_ADMIN;
}

/* The presets, then the file, then the rules: what is kept in order by a rule is the same in all three. */
enum spate_rc spate_kafka_set(const struct spate_kafka_config *config, enum spate_kafka_role role,
                              rd_kafka_conf_t *conf, struct spate_err *err)
{
    for (size_t i = 0; i < SPATE_COUNT(presets); i++)
        if (meant_for(presets[i].roles, role) &&
            rd_kafka_conf_set(conf, presets[i].name, presets[i].value, NULL, 0) != RD_KAFKA_CONF_OK &&
            !presets[i].newer)
            return set_ours(conf, presets[i].name, presets[i].value, err);
    /* Rules before the file too: a file may ask for less than a MOST, and for more than a LEAST. */
    for (size_t i = 0; i < SPATE_COUNT(rules); i++)
        if (rules[i].value && meant_for(rules[i].roles, role) &&
            set_ours(conf, rules[i].name, rules[i].value, err) != SPATE_OK)
            return SPATE_FAIL;
    for (size_t i = 0; i < config->properties.count; i++)
        if (set(conf, &config->properties.at[i], err) != SPATE_OK)
            return SPATE_FAIL;
    return set_ours(conf, "metadata.broker.list", config->brokers, err);
}

void spate_kafka_wipe(char *password)
{
    if (password)
        explicit_bzero(password, strlen(password));
    free(password);
}

enum spate_rc spate_kafka_password(const struct spate_kafka_config *config, char **password,
                                   struct spate_err *err)
{
    const char *text;
    size_t cap = 0;
    FILE *in;

    *password = NULL;
    if (config->password_env) {
        text = getenv(config->password_env);
        if (!text)
            return spate_kafka_refuse(
                err,
                "bus.kafka.password_env: the environment variable %s is not set; it is to hold the "
                "password: set it, or remove password_env",
                config->password_env);
        *password = spate_strdup(text);
    } else if (config->password_file) {
        in = fopen(config->password_file, "re");
        if (!in || getline(password, &cap, in) < 0) {
            const int why = in && feof(in) ? 0 : errno;

            if (in)
                fclose(in);
            free(*password);
            *password = NULL;
            return spate_fail(
                err, SPATE_RETRY,
                "no password for Kafka can be read from bus.kafka.password_file %s: %s; its first "
                "line is the password",
                config->password_file, why ? strerror(why) : "the file is empty");
        }
        fclose(in);
        (*password)[strcspn(*password, "\r\n")] = '\0';
    } else if ((text = spate_kafka_said(config, "sasl.password")) != NULL) {
        *password = spate_strdup(text);
    }
    return SPATE_OK;
}

enum spate_rc spate_kafka_apply(const struct spate_kafka_config *config, enum spate_kafka_role role,
                                size_t max_message_bytes, rd_kafka_conf_t *conf, char **password,
                                struct spate_err *err)
{
    enum spate_rc rc = spate_kafka_set(config, role, conf, err);
    char most[24];

    *password = NULL;
    if (rc != SPATE_OK)
        return rc;
    if (max_message_bytes > 0) { /* K7; librdkafka takes 1000 to 1000000000 */
        snprintf(most, sizeof most, "%zu",
                 max_message_bytes < 1000         ? (size_t)1000
                 : max_message_bytes > 1000000000 ? (size_t)1000000000
                                                  : max_message_bytes);
        rc = set_ours(conf, "message.max.bytes", most, err);
    }
    if (rc == SPATE_OK)
        rc = spate_kafka_password(config, password, err);
    if (rc == SPATE_OK && *password &&
        rd_kafka_conf_set(conf, "sasl.password", *password, NULL, 0) != RD_KAFKA_CONF_OK)
        rc = spate_kafka_refuse(err, "librdkafka does not take the password for Kafka: it may be empty");
    return rc;
}

/* --- for config/REFERENCE.md ------------------------------------------------------------------------------
 */

static void reference_rule(struct spate_buf *out, const struct rule *rule)
{
    static const char *const demands[] = {[SAME] = "", [MOST] = "at most ", [LEAST] = "at least "};

    spate_buf_printf(out, "| `%s`", rule->name);
    if (rule->alias)
        spate_buf_printf(out, ", `%s`", rule->alias);
    if (rule->demand == OURS)
        spate_buf_puts(out, " | not to be given");
    else if (rule->demand == NO_USE)
        spate_buf_puts(out, " | has no effect");
    else
        spate_buf_printf(out, " | %s`%s`", demands[rule->demand], rule->value);
    spate_buf_printf(out, " | %s |\n", rule->reason);
}

void spate_kafka_reference(struct spate_buf *out)
{
    spate_buf_puts(out, "| property | a file may say | because |\n| --- | --- | --- |\n");
    for (size_t i = 0; i < SPATE_COUNT(rules); i++)
        reference_rule(out, &rules[i]);
    spate_buf_puts(out, "\nThese are set as follows, and a file may say something else. (`linger.ms` and the "
                        "compression belong to the connector, `fetch` and `queued` to whoever reads.)\n\n"
                        "| property | is set to |\n| --- | --- |\n");
    for (size_t i = 0; i < SPATE_COUNT(presets); i++)
        spate_buf_printf(out, "| `%s` | `%s`%s |\n", presets[i].name, presets[i].value,
                         presets[i].newer ? ", where librdkafka knows it" : "");
}
