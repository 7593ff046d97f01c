/* bus/kafka/check.c - the configuration as a whole, before any broker is asked: what is refused, and what is
 * warned about at each start. */
#include "bus/kafka/properties.h"
#include "core/alloc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* "localhost:9092": a connection that nobody on the network can listen to. */
static bool loopback(const char *broker, size_t len)
{
    static const char *const names[] = {"localhost", "127.", "[::1]", "::1"};

    for (size_t i = 0; i < SPATE_COUNT(names); i++) {
        const size_t named = strlen(names[i]);

        if (len >= named && strncasecmp(broker, names[i], named) == 0 &&
            (names[i][named - 1] == '.' || len == named || broker[named] == ':'))
            return true;
    }
    return false;
}

static bool all_loopback(const char *brokers)
{
    while (*brokers) {
        const size_t blank = strspn(brokers, ", "), len = strcspn(brokers + blank, ", ");

        if (len > 0 && !loopback(brokers + blank, len))
            return false;
        brokers += blank + len;
    }
    return true;
}

static void warn(const char *words)
{
    if (spate_kafka_worth_saying(words))
        spate_log(SPATE_LOG_WARN, "kafka-config", "words=\"%s\"", words);
}

static enum spate_rc check_security(const struct spate_kafka_config *config, struct spate_err *err)
{
    const bool tls = spate_kafka_uses_tls(config), sasl = spate_kafka_uses_sasl(config);
    const bool near = all_loopback(config->brokers);
    const char *verify = spate_kafka_said(config, "enable.ssl.certificate.verification");
    const char *name = spate_kafka_said(config, "ssl.endpoint.identification.algorithm");
    const bool has_password =
        config->password_env || config->password_file || spate_kafka_said(config, "sasl.password");

    if (config->password_env && config->password_file)
        return spate_kafka_refuse(
            err, "bus.kafka.password_env and bus.kafka.password_file both name the password's place; "
                 "keep one");
    if ((config->password_env || config->password_file) && spate_kafka_said(config, "sasl.password"))
        return spate_kafka_refuse(err,
                                  "the password is in bus.kafka.properties.sasl.password and also in "
                                  "bus.kafka.password_%s; keep the latter",
                                  config->password_env ? "env" : "file");
    if (sasl && !spate_kafka_mechanism(config))
        return spate_kafka_refuse(
            err, "bus.kafka.properties: security.protocol says that we log in, and sasl.mechanism is "
                 "missing: write PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI (Kerberos)");
    if (sasl && !tls && spate_kafka_mechanism(config) &&
        strcasecmp(spate_kafka_mechanism(config), "PLAIN") == 0 && !near)
        return spate_kafka_refuse(
            err,
            "bus.kafka.properties.security.protocol: sasl_plaintext with the mechanism PLAIN sends "
            "the password in the clear over the network to %.200s; write security.protocol: "
            "sasl_ssl (and ssl.ca.location: FILE), on a listener of the brokers that has TLS",
            config->brokers);
    if (!sasl && (has_password || spate_kafka_said(config, "sasl.username")))
        warn("a user or password is given for Kafka, but security.protocol is neither sasl_ssl nor "
             "sasl_plaintext: nobody logs in");
    if (!tls && !near)
        warn(
            sasl
                ? "the connection to Kafka is not encrypted: everybody on the way can read all rows; "
                  "security.protocol: sasl_ssl mends it"
                : "the connection to Kafka is neither encrypted nor logged in: everybody on the way can read "
                  "and change all rows; security.protocol: ssl or sasl_ssl mends it");
    if (tls && verify && strncasecmp(verify, "t", 1) != 0 && strcmp(verify, "1") != 0)
        warn(
            "enable.ssl.certificate.verification is off: anybody can pretend to be the broker, read all rows "
            "and take the password; remove it and give ssl.ca.location");
    else if (tls && name && strcasecmp(name, "none") == 0)
        warn("ssl.endpoint.identification.algorithm is none: any server with a certificate of this authority "
             "can pretend to be the broker; remove it and use the names in the brokers' certificates");
    if (spate_kafka_uses_scram(config) && rd_kafka_version() < SPATE_KAFKA_SCRAM_GOOD)
        warn("SCRAM logins of this librdkafka (older than 2.6.1) are refused by Kafka 4 (K34); a newer "
             "librdkafka (Debian 13 has one), client certificates, or PLAIN over TLS get in");
    return SPATE_OK;
}

/* A file that is not there makes OpenSSL speak in numbers. */
static enum spate_rc check_files(const struct spate_kafka_config *config, struct spate_err *err)
{
    static const char ending[] = ".location";
    char at[140];

    for (size_t i = 0; i < config->properties.count; i++) {
        const struct spate_pair *pair = &config->properties.at[i];
        const size_t len = strlen(pair->key);

        if (strncmp(pair->key, "ssl.", 4) != 0 || len < sizeof ending ||
            strcmp(pair->key + len - (sizeof ending - 1), ending) != 0 || strcmp(pair->value, "probe") == 0)
            continue;
        if (access(pair->value, R_OK) != 0)
            return spate_kafka_refuse(err, "%s: %.300s cannot be read: %s",
                                      spate_kafka_place(pair, at, sizeof at), pair->value, strerror(errno));
    }
    return SPATE_OK;
}

/* What librdkafka finds only when a handle begins: a certificate that is none, a user without a password. No
 * broker is asked. A password that cannot be read now may be there later. */
static enum spate_rc try_out(const struct spate_kafka_config *config, struct spate_err *err)
{
    struct spate_kafka kafka = {0};
    rd_kafka_t *handle;
    char *password;
    enum spate_rc rc = spate_kafka_password(config, &password, err);

    if (rc != SPATE_OK)
        return err->verdict == SPATE_RETRY ? SPATE_OK : rc;
    spate_kafka_wipe(password);
    spate_kafka_init(&kafka, config);
    kafka.own.brokers[0] = '\0'; /* nobody is knocked at */
    rc = spate_kafka_client(&kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, err);
    if (rc == SPATE_OK)
        spate_kafka_client_free(handle);
    else {
        err->exit_code = SPATE_EXIT_CONFIG;
        err->verdict = SPATE_FATAL;
    }
    spate_kafka_fini(&kafka);
    return rc;
}

enum spate_rc spate_kafka_check(const struct spate_kafka_config *config, struct spate_err *err)
{
    rd_kafka_conf_t *conf;
    enum spate_rc rc = SPATE_OK;

    if (!config->brokers || strspn(config->brokers, ", ") == strlen(config->brokers))
        return spate_kafka_refuse(err, "bus.kafka.brokers: expected host:port[,host:port], got nothing");
    if (strstr(config->brokers, "://"))
        return spate_kafka_refuse(
            err,
            "bus.kafka.brokers: expected host:port[,host:port], got \"%.100s\"; what stands "
            "before :// belongs into bus.kafka.properties.security.protocol",
            config->brokers);
    for (size_t i = 0; i < config->properties.count && rc == SPATE_OK; i++)
        rc = spate_kafka_rules_hold(&config->properties.at[i], err);
    conf = rd_kafka_conf_new();
    for (int role = SPATE_KAFKA_ADMIN; role <= SPATE_KAFKA_CONSUMER && rc == SPATE_OK; role++)
        rc = spate_kafka_set(config, (enum spate_kafka_role)role, conf, err);
    rd_kafka_conf_destroy(conf);
    if (rc != SPATE_OK || check_security(config, err) != SPATE_OK || check_files(config, err) != SPATE_OK ||
        try_out(config, err) != SPATE_OK)
        return SPATE_FAIL;
    if (spate_kafka_worth_saying(config->brokers))
        spate_log(SPATE_LOG_INFO, "kafka", "brokers=%s security=%s librdkafka=%s", config->brokers,
                  spate_kafka_uses_sasl(config)
                      ? (spate_kafka_uses_tls(config) ? "sasl_ssl" : "sasl_plaintext")
                      : (spate_kafka_uses_tls(config) ? "ssl" : "none"),
                  rd_kafka_version_str());
    return SPATE_OK;
}
