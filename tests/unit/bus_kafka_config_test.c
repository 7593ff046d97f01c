/* What a Kafka configuration gives to librdkafka, what it refuses and what it warns about. No broker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/kafka/properties.h"
#include "bus/kafka/topic.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECRET "hunter2"

static char loopback[] = "localhost:1,127.0.0.2:1,[::1]:1";
static char far_away[] = "k1.example:9092";

/* "name=value" each; the lines are 10, 11, ... */
struct file {
    struct spate_kafka_config config;
    struct spate_pair pairs[8];
    char text[8][200];
};

static struct spate_kafka_config *file(struct file *file, char *brokers, const char *const *properties)
{
    memset(file, 0, sizeof *file);
    file->config = (struct spate_kafka_config){
        .brokers = brokers, .create = true, .max_message_bytes = 1 << 24, .properties.at = file->pairs};
    for (size_t i = 0; properties && properties[i]; i++) {
        char *equals;
        snprintf(file->text[i], sizeof file->text[i], "%s", properties[i]);
        equals = strchr(file->text[i], '=');
        assert_non_null(equals);
        *equals = '\0';
        file->pairs[i] = (struct spate_pair){.key = file->text[i], .value = equals + 1, .line = 10 + (int)i};
        file->config.properties.count++;
    }
    return &file->config;
}
#define PROPERTIES(...) ((const char *const[]){__VA_ARGS__, NULL})

/* What is written to stderr in between. */
static int real_stderr, caught;

static void catch_log(void)
{
    char name[] = "/tmp/spate-log-XXXXXX";

    caught = mkstemp(name);
    assert_true(caught >= 0);
    unlink(name);
    real_stderr = dup(STDERR_FILENO);
    dup2(caught, STDERR_FILENO);
}

static const char *caught_log(void)
{
    static char text[20000];
    ssize_t len;

    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    len = pread(caught, text, sizeof text - 1, 0);
    close(caught);
    text[len > 0 ? len : 0] = '\0';
    return text;
}

/* --- refused ----------------------------------------------------------------------------------------------
 */

static void what_correctness_rests_on_is_refused_with_the_reason(void **state)
{
    static const struct {
        const char *property, *words[3];
    } cases[] = {
        {"enable.idempotence=false", {"K1", "expected true", "Remove it"}},
        {"acks=1", {"K13", "expected all", "\"1\""}},
        {"request.required.acks=0", {"K13", "expected all"}},
        {"message.timeout.ms=300000", {"K2", "expected 0", "hole"}},
        {"delivery.timeout.ms=1", {"K2"}},
        {"enable.gapless.guarantee=false", {"K3"}},
        {"max.in.flight.requests.per.connection=6", {"K1", "at most 5"}},
        {"max.in.flight=1000000", {"K1", "at most 5"}},
        {"retries=3", {"K2"}},
        {"message.send.max.retries=0", {"K2"}},
        {"queuing.strategy=lifo", {"K1"}},
        {"delivery.report.only.error=true", {"K17"}},
        {"queue.buffering.max.messages=100", {"K8", "at least"}},
        {"queue.buffering.max.kbytes=100", {"K8", "at least"}},
        {"transactional.id=x", {"cannot be set", "transactions"}},
        {"group.id=team", {"K20", "cannot be set", "position"}},
        {"message.max.bytes=1000", {"K7", "bus.kafka.max_message_bytes"}},
        {"bootstrap.servers=x:1", {"bus.kafka.brokers"}},
        {"metadata.broker.list=x:1", {"bus.kafka.brokers"}},
        {"allow.auto.create.topics=true", {"K9", "bus.kafka.create"}},
        {"api.version.request=false", {"expected true"}},
        {"enable.auto.commit=true", {"K20"}},
        {"enable.auto.offset.store=true", {"K20"}},
        {"auto.offset.reset=earliest", {"K21", "expected error"}},
        {"check.crcs=false", {"K28"}},
        {"isolation.level=read_uncommitted", {"K30"}},
        {"enable.partition.eof=false", {"expected true"}},
        {"log.queue=true", {"expected false"}},
        {"aks=all", {"no such property"}},
        {"retires=3", {"did you mean retries?"}},
        {"security.protokol=ssl", {"did you mean security.protocol?"}},
        {"sasl.pasword=x", {"did you mean sasl.password?"}},
        {"linger.ms=soon", {"does not take the value"}},
        {"compression.type=rar", {"does not take the value"}},
        {"ssl.ca.location=/no/such/file", {"/no/such/file cannot be read", "No such file"}},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_err err = {0};
        struct file f;
        char name[100];

        assert_int_equal(spate_kafka_check(file(&f, loopback, PROPERTIES(cases[i].property)), &err),
                         SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        snprintf(name, sizeof name, "bus.kafka.properties.%.*s (line 10)",
                 (int)strcspn(cases[i].property, "="), cases[i].property);
        if (!strstr(err.text, name))
            fail_msg("%s: the place is missing in: %s", cases[i].property, err.text);
        for (size_t w = 0; w < SPATE_COUNT(cases[i].words) && cases[i].words[w]; w++)
            if (!strstr(err.text, cases[i].words[w]))
                fail_msg("%s: \"%s\" is missing in: %s", cases[i].property, cases[i].words[w], err.text);
    }
}

static void a_file_may_say_what_is_done_anyway(void **state)
{
    static const char *const same[] = {
        "enable.idempotence=true",
        "acks=all",
        "acks=-1",
        "request.required.acks=-1",
        "message.timeout.ms=0",
        "max.in.flight=5",
        "max.in.flight=1",
        "enable.auto.commit=false",
        "auto.offset.reset=error",
        "check.crcs=true",
        "retries=2147483647",
        "allow.auto.create.topics=false",
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(same); i++) {
        struct spate_err err = {0};
        struct file f;
        if (spate_kafka_check(file(&f, loopback, PROPERTIES(same[i])), &err) != SPATE_OK)
            fail_msg("%s: %s", same[i], err.text);
    }
}

/* --- what handles get -------------------------------------------------------------------------------------
 */

static void has(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char text[200] = "";
    size_t size = sizeof text;

    if (rd_kafka_conf_get(conf, name, text, &size) != RD_KAFKA_CONF_OK)
        fail_msg("%s is not there", name);
    if (strcmp(text, value) != 0)
        fail_msg("%s is %s, not %s", name, text, value);
}

static rd_kafka_conf_t *applied(struct spate_kafka_config *config, enum spate_kafka_role role, size_t most)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    struct spate_err err = {0};
    char *password;

    if (spate_kafka_apply(config, role, most, conf, &password, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    spate_kafka_wipe(password);
    return conf;
}

static void every_role_gets_what_keeps_records(void **state)
{
    struct file f;
    rd_kafka_conf_t *conf;

    (void)state;
    for (int role = SPATE_KAFKA_PRODUCER; role <= SPATE_KAFKA_SHARED; role++) {
        conf = applied(file(&f, loopback, NULL), (enum spate_kafka_role)role, 5000000);
        has(conf, "enable.idempotence", "true");
        has(conf, "enable.gapless.guarantee", "true");
        has(conf, "acks", "-1");
        has(conf, "message.timeout.ms", "0");
        has(conf, "max.in.flight", "5");
        has(conf, "retries", "2147483647");
        has(conf, "compression.codec", "lz4");
        has(conf, "linger.ms", "5");
        has(conf, "message.max.bytes", "5000000");
        has(conf, "allow.auto.create.topics", "false");
        has(conf, "socket.keepalive.enable", "true");
        has(conf, "client.id", "spate");
        has(conf, "metadata.broker.list", loopback);
        rd_kafka_conf_destroy(conf);
    }
    conf = applied(file(&f, loopback, NULL), SPATE_KAFKA_CONSUMER, 0);
    has(conf, "enable.auto.commit", "false");
    has(conf, "enable.auto.offset.store", "false");
    has(conf, "auto.offset.reset", "error");
    has(conf, "check.crcs", "true");
    has(conf, "isolation.level", "read_committed");
    has(conf, "enable.partition.eof", "true");
    has(conf, "allow.auto.create.topics", "false");
    has(conf, "queued.max.messages.kbytes", "4096");
    rd_kafka_conf_destroy(conf);
}

/* TLS verifies the broker and its name where nothing else is said, in every version. */
static void verification_is_on_by_default(void **state)
{
    struct file f;
    rd_kafka_conf_t *conf;

    (void)state;
    for (int role = SPATE_KAFKA_ADMIN; role <= SPATE_KAFKA_CONSUMER; role++) {
        conf =
            applied(file(&f, far_away, PROPERTIES("security.protocol=ssl")), (enum spate_kafka_role)role, 0);
        has(conf, "enable.ssl.certificate.verification", "true");
        has(conf, "ssl.endpoint.identification.algorithm", "https");
        rd_kafka_conf_destroy(conf);
    }
}

static void the_file_changes_what_is_free(void **state)
{
    const char *const *free_ones = PROPERTIES("linger.ms=20", "compression.type=zstd", "client.id=mine",
                                              "max.in.flight=2", "queued.max.messages.kbytes=1000",
                                              "queue.buffering.max.messages=500000", "fetch.wait.max.ms=7");
    struct file f;
    rd_kafka_conf_t *conf = applied(file(&f, loopback, free_ones), SPATE_KAFKA_PRODUCER, 0);

    (void)state;
    has(conf, "queue.buffering.max.ms", "20");
    has(conf, "compression.codec", "zstd");
    has(conf, "client.id", "mine");
    has(conf, "max.in.flight.requests.per.connection", "2");
    has(conf, "queue.buffering.max.messages", "500000");
    rd_kafka_conf_destroy(conf);
    conf = applied(&f.config, SPATE_KAFKA_CONSUMER, 0);
    has(conf, "queued.max.messages.kbytes", "1000");
    has(conf, "fetch.wait.max.ms", "7");
    rd_kafka_conf_destroy(conf);
}

/* One list of properties serves connector and sinks: those of the other side make no noise. */
static void properties_of_the_other_side_make_no_noise(void **state)
{
    struct file f;
    struct spate_kafka kafka = {0};
    struct spate_err err = {0};
    const char *log;

    (void)state;
    spate_kafka_init(
        &kafka, file(&f, loopback, PROPERTIES("fetch.min.bytes=1", "linger.ms=9", "retries=2147483647")));
    catch_log();
    for (int role = SPATE_KAFKA_ADMIN; role <= SPATE_KAFKA_CONSUMER; role++) {
        rd_kafka_t *handle = NULL;
        if (spate_kafka_client(&kafka, (enum spate_kafka_role)role, 0, NULL, NULL, &handle, &err) != SPATE_OK)
            break;
        spate_kafka_client_free(handle);
    }
    log = caught_log();
    assert_string_equal(err.text, "");
    assert_null(strstr(log, "ignored"));
    spate_kafka_fini(&kafka);
}

/* --- warnings ----------------------------------------------------------------------------------------------
 */

static const char *log_of_check(char *brokers, const char *const *properties)
{
    struct spate_err err = {0};
    struct file f;
    enum spate_rc rc;
    const char *log;

    catch_log();
    rc = spate_kafka_check(file(&f, brokers, properties), &err);
    log = caught_log();
    if (rc != SPATE_OK)
        fail_msg("%s", err.text);
    return log;
}

static void said(const char *log, const char *words)
{
    if (!strstr(log, words))
        fail_msg("\"%s\" is missing in: %s", words, log);
}

/* Each is said once in a process, so the cases do not repeat one. */
static void what_is_unwise_is_warned_about(void **state)
{
    char first_seen[] = "localhost:2";
    const char *log;

    (void)state;
    log = log_of_check(first_seen, NULL);
    assert_null(strstr(log, "level=warn"));
    said(log, "event=kafka ");
    said(log, rd_kafka_version_str());
    said(log_of_check(far_away, NULL), "neither encrypted nor logged in");
    said(log_of_check(far_away,
                      PROPERTIES("security.protocol=ssl", "enable.ssl.certificate.verification=false")),
         "anybody can pretend to be the broker");
    said(log_of_check(far_away,
                      PROPERTIES("security.protocol=SSL", "ssl.endpoint.identification.algorithm=none")),
         "ssl.endpoint.identification.algorithm is none");
    said(log_of_check(loopback, PROPERTIES("partitioner=murmur2")), "K12");
    said(log_of_check(loopback, PROPERTIES("sasl.username=u", "sasl.password=" SECRET)), "nobody logs in");
    log = log_of_check(loopback, PROPERTIES("security.protocol=sasl_ssl", "sasl.mechanism=SCRAM-SHA-256",
                                            "sasl.username=u", "sasl.password=" SECRET));
    if (rd_kafka_version() < SPATE_KAFKA_SCRAM_GOOD)
        said(log, "K34");
    assert_null(strstr(log, SECRET));
    assert_null(strstr(log_of_check(far_away, NULL), "neither")); /* said already */
}

static void a_password_in_the_clear_stays_on_this_machine(void **state)
{
    const char *const *plain = PROPERTIES("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN",
                                          "sasl.username=u", "sasl.password=" SECRET);
    char near_and_far[] = "localhost:1,k2.example:1", trap[] = "localhost.evil.example:1";
    char *const bad[] = {far_away, near_and_far, trap};
    struct spate_err err = {0};
    struct file f;

    (void)state;
    if (spate_kafka_check(file(&f, loopback, plain), &err) != SPATE_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < SPATE_COUNT(bad); i++) {
        assert_int_equal(spate_kafka_check(file(&f, bad[i], plain), &err), SPATE_FAIL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        said(err.text, "in the clear");
        said(err.text, "sasl_ssl");
        assert_null(strstr(err.text, SECRET));
    }
}

/* --- the password ------------------------------------------------------------------------------------------
 */

static void write_file(const char *path, const char *text)
{
    FILE *out = fopen(path, "w");

    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static void the_password_is_read_anew_each_time(void **state)
{
    char path[] = "/tmp/spate-password-XXXXXX", name[] = "SPATE_TEST_KAFKA_PASSWORD";
    struct spate_err err = {0};
    struct file f;
    rd_kafka_conf_t *conf;
    char *password;

    (void)state;
    close(mkstemp(path));
    file(&f, loopback, PROPERTIES("security.protocol=sasl_ssl", "sasl.mechanism=PLAIN", "sasl.username=u"));
    f.config.password_file = path;
    for (int i = 0; i < 2; i++) {
        write_file(path, i ? "second\r\n" : "first\nnot this line\n");
        conf = applied(&f.config, SPATE_KAFKA_PRODUCER, 0);
        has(conf, "sasl.password", i ? "second" : "first");
        rd_kafka_conf_destroy(conf);
    }
    unlink(path);
    conf = rd_kafka_conf_new();
    assert_int_equal(spate_kafka_apply(&f.config, SPATE_KAFKA_ADMIN, 0, conf, &password, &err), SPATE_FAIL);
    rd_kafka_conf_destroy(conf);
    assert_int_equal(err.verdict, SPATE_RETRY); /* whoever mends the file need not start us again */
    said(err.text, path);
    assert_int_equal(spate_kafka_check(&f.config, &err), SPATE_OK);

    f.config.password_file = NULL;
    f.config.password_env = name;
    unsetenv(name);
    assert_int_equal(spate_kafka_check(&f.config, &err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
    said(err.text, name);
    setenv(name, "third", 1);
    conf = applied(&f.config, SPATE_KAFKA_CONSUMER, 0);
    has(conf, "sasl.password", "third");
    rd_kafka_conf_destroy(conf);
    f.config.password_file = path;
    assert_int_equal(spate_kafka_check(&f.config, &err), SPATE_FAIL);
    said(err.text, "keep one");
}

static void a_login_that_lacks_something_is_refused_in_words(void **state)
{
    static const struct {
        const char *properties[4];
        const char *words;
    } cases[] = {
        {{"security.protocol=sasl_ssl"}, "sasl.mechanism is missing"},
        {{"security.protocol=sasl_ssl", "sasl.mechanism=PLAIN", "sasl.username=u"}, "sasl.password"},
        {{"security.protocol=ssl", "ssl.key.pem=" SECRET}, "ssl.key.pem"},
        {{"security.protocol=ssl", "ssl.ca.location=/etc/hostname"}, "ssl.ca.location"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        const char *properties[5] = {NULL};
        struct spate_err err = {0};
        struct file f;
        const char *log;

        memcpy(properties, cases[i].properties, sizeof cases[i].properties);
        catch_log();
        assert_int_equal(spate_kafka_check(file(&f, loopback, properties), &err), SPATE_FAIL);
        log = caught_log();
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        said(err.text, cases[i].words);
        assert_null(strstr(err.text, SECRET));
        assert_null(strstr(log, SECRET));
    }
}

/* --- failures ----------------------------------------------------------------------------------------------
 */

static void codes_have_the_verdict_that_they_deserve(void **state)
{
    static const struct {
        rd_kafka_resp_err_t code;
        enum spate_verdict verdict;
        const char *words;
    } cases[] = {
        {RD_KAFKA_RESP_ERR__TRANSPORT, SPATE_RETRY, "no answer from the brokers"},
        {RD_KAFKA_RESP_ERR__TIMED_OUT, SPATE_RETRY, "k1.example:9092"},
        {RD_KAFKA_RESP_ERR__FATAL, SPATE_RETRY, "_FATAL"},
        {RD_KAFKA_RESP_ERR__FENCED, SPATE_RETRY, "_FENCED"},
        {RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, SPATE_RETRY, "OUT_OF_ORDER"},
        {RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, SPATE_RETRY, "UNKNOWN_TOPIC_OR_PART"},
        {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, SPATE_RETRY, "kafka-acls.sh"},
        {RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, SPATE_RETRY, "max.message.bytes"},
        {RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, SPATE_RETRY, "min.insync.replicas"},
        {RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, SPATE_RETRY, "disk"},
        {RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION, SPATE_FATAL, "UNSUPPORTED_VERSION"},
        {RD_KAFKA_RESP_ERR_INVALID_RECORD, SPATE_FATAL, "INVALID_RECORD"},
    };
    struct spate_kafka kafka = {0};
    struct file f;

    (void)state;
    spate_kafka_init(&kafka, file(&f, far_away, NULL));
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_err err = {0};
        assert_int_equal(spate_kafka_fail(&kafka, &err, cases[i].code, NULL, "writing to topic %s", "shop"),
                         SPATE_FAIL);
        if (err.verdict != cases[i].verdict)
            fail_msg("%s: %s", spate_verdict_name(err.verdict), err.text);
        said(err.text, "writing to topic shop: ");
        said(err.text, cases[i].words);
    }
    spate_kafka_fini(&kafka);
}

/* librdkafka's calls say "timed out"; the reason is in what it said before. */
static void the_last_complaint_becomes_the_reason(void **state)
{
    const char *const *login = PROPERTIES("security.protocol=sasl_ssl", "sasl.mechanism=SCRAM-SHA-512",
                                          "sasl.username=u", "sasl.password=" SECRET);
    struct spate_kafka kafka = {0};
    struct spate_err err = {0};
    struct file f;

    (void)state;
    spate_kafka_init(&kafka, file(&f, far_away, login));
    snprintf(kafka.complaint, sizeof kafka.complaint, "k1: SASL authentication error: Authentication failed");
    kafka.complained_ms = spate_clock_ms();
    kafka.trouble = SPATE_KAFKA_LOGIN;
    (void)spate_kafka_fail(&kafka, &err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "asking");
    assert_int_equal(err.verdict, SPATE_RETRY);
    said(err.text, "SASL authentication error");
    said(err.text, "User:u");
    if (rd_kafka_version() < SPATE_KAFKA_SCRAM_GOOD) {
        said(err.text, "K34");
        said(err.text, rd_kafka_version_str());
        said(err.text, "newer librdkafka");
        said(err.text, "client certificates");
        said(err.text, "PLAIN");
    } else {
        said(err.text, "password_file is read anew");
    }
    kafka.complained_ms -= 3600000; /* an hour ago: explains nothing now */
    (void)spate_kafka_fail(&kafka, &err, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "asking");
    said(err.text, "no answer from the brokers");
    spate_kafka_fini(&kafka);
}

/* Directories lock users out: the same password waits ten seconds, another one is tried at once. */
static void a_refused_password_is_not_tried_again_at_once(void **state)
{
    const char *const *login = PROPERTIES("security.protocol=sasl_ssl", "sasl.mechanism=PLAIN",
                                          "sasl.username=u", "sasl.password=" SECRET);
    struct spate_kafka kafka = {0};
    struct spate_err err = {0};
    struct file f;
    rd_kafka_t *handle;

    (void)state;
    spate_kafka_init(&kafka, file(&f, loopback, login));
    catch_log();
    for (int i = 0; i < 3; i++) { /* refused just now, a minute ago, another one */
        kafka.refused = spate_strdup(i < 2 ? SECRET : "another");
        kafka.refused_ms = spate_clock_ms() - (i == 1 ? 60000 : 0);
        if (spate_kafka_client(&kafka, SPATE_KAFKA_ADMIN, 0, NULL, NULL, &handle, &err) == SPATE_OK) {
            spate_kafka_client_free(handle);
            assert_int_not_equal(i, 0);
        } else {
            assert_int_equal(i, 0);
            assert_int_equal(err.verdict, SPATE_RETRY);
        }
        spate_kafka_wipe(kafka.refused);
        kafka.refused = NULL;
    }
    assert_null(strstr(caught_log(), SECRET));
    assert_null(strstr(err.text, SECRET));
    spate_kafka_fini(&kafka);
}

static void a_broker_that_is_down_has_its_reason_named(void **state)
{
    char nobody[] = "127.0.0.1:1"; /* tcpmux: nobody has it */
    struct spate_kafka kafka = {0};
    struct spate_kafka_topic topic;
    struct spate_err err = {0};
    struct file f;

    (void)state;
    spate_kafka_init(&kafka, file(&f, nobody, NULL));
    catch_log();
    assert_int_equal(spate_kafka_topic_open(&kafka, "shop", SPATE_TOPIC_CREATE, &topic, &err), SPATE_FAIL);
    said(caught_log(), "Connection refused");
    assert_int_equal(err.verdict, SPATE_RETRY);
    said(err.text, "topic shop");
    said(err.text, "127.0.0.1:1");
    said(err.text, "Connection refused");
    spate_kafka_fini(&kafka);
}

/* --- which bus
 * ---------------------------------------------------------------------------------------------- */

static void one_bus_and_no_other(void **state)
{
    char path[] = "/nowhere", scheme[] = "SSL://k1:9092", commas[] = ", ";
    struct spate_pair pair = {.key = path, .value = path};
    const struct {
        struct spate_bus_config config;
        const char *words;
    } cases[] = {
        {{0}, "bus.kafka.brokers"},
        {{.local_path = path, .kafka.brokers = loopback}, "both set"},
        {{.local_path = path, .kafka.properties = {&pair, 1}}, "no brokers"},
        {{.kafka.password_file = path}, "no brokers"},
        {{.kafka.brokers = scheme}, "security.protocol"},
        {{.kafka.brokers = commas}, "host:port"},
    };
    struct spate_bus_config config;
    struct spate_bus *bus;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_err err = {0};
        assert_int_equal(spate_bus_open(&cases[i].config, &bus, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        said(err.text, cases[i].words);
    }
    spate_bus_named("kafka:k1:9092,k2:9092", &config);
    assert_string_equal(config.kafka.brokers, "k1:9092,k2:9092");
    assert_null(config.local_path);
    spate_bus_named("./kafka:k1", &config);
    assert_string_equal(config.local_path, "./kafka:k1");
    assert_null(config.kafka.brokers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_correctness_rests_on_is_refused_with_the_reason),
        cmocka_unit_test(a_file_may_say_what_is_done_anyway),
        cmocka_unit_test(every_role_gets_what_keeps_records),
        cmocka_unit_test(verification_is_on_by_default),
        cmocka_unit_test(the_file_changes_what_is_free),
        cmocka_unit_test(properties_of_the_other_side_make_no_noise),
        cmocka_unit_test(what_is_unwise_is_warned_about),
        cmocka_unit_test(a_password_in_the_clear_stays_on_this_machine),
        cmocka_unit_test(the_password_is_read_anew_each_time),
        cmocka_unit_test(a_login_that_lacks_something_is_refused_in_words),
        cmocka_unit_test(codes_have_the_verdict_that_they_deserve),
        cmocka_unit_test(the_last_complaint_becomes_the_reason),
        cmocka_unit_test(a_refused_password_is_not_tried_again_at_once),
        cmocka_unit_test(a_broker_that_is_down_has_its_reason_named),
        cmocka_unit_test(one_bus_and_no_other),
    };
    return cmocka_run_group_tests_name("bus_kafka_config", tests, NULL, NULL);
}
