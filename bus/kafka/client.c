/* bus/kafka/client.c - handles of librdkafka, and what it says, in words for people.
 *
 * Its log lines come from its own threads, at any time; what was said last is kept, because its calls fail
 * with "timed out" where the reason was a password. Without an error callback all of it comes as lines. */
#include "bus/kafka/client.h"

#include "bus/kafka/properties.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>

#define SAY_EVERY_MS  30000
#define FAREWELL_S    3 /* for destroying a handle, K32 */
#define PRODUCER_GOOD 0x020300ff
#define KNOCK_MS      10000 /* between two tries with a password that was refused */
#define RELOGIN_MS    2000  /* a password is read anew at most this often */
#define REFUSED_MS    10000 /* a refusal is news for so long */

/* What a handle carries: librdkafka gives it back to every callback. */
struct attached {
    pthread_mutex_t lock;
    struct spate_kafka *kafka; /* NULL from the beginning of the destruction on: lines may still come */
    spate_kafka_delivered_fn *delivered;
    void *opaque;
    char certificate[300];   /* why the last certificate was refused */
    bool hopeless;           /* a login or a certificate was refused: the same will be refused again */
    atomic_llong refused_ms; /* when a login was refused last; 0: never */
    int64_t relogin_ms;
    char *password; /* the one that was tried last; both are the polling thread's */
    rd_kafka_resp_err_t topic_trouble;
    bool all_down;
};

static char *copy(const char *text)
{
    return text ? spate_strdup(text) : NULL;
}

static void wipe(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

void spate_kafka_init(struct spate_kafka *kafka, const struct spate_kafka_config *config)
{
    struct spate_kafka_config *own = &kafka->own;

    *own = *config;
    own->brokers = copy(config->brokers);
    own->password_env = copy(config->password_env);
    own->password_file = copy(config->password_file);
    own->properties.at = spate_zalloc((config->properties.count + 1) * sizeof *own->properties.at);
    for (size_t i = 0; i < config->properties.count; i++)
        own->properties.at[i] = (struct spate_pair){.key = copy(config->properties.at[i].key),
                                                    .value = copy(config->properties.at[i].value),
                                                    .line = config->properties.at[i].line};
    kafka->config = own;
    pthread_mutex_init(&kafka->lock, NULL);
}

void spate_kafka_fini(struct spate_kafka *kafka)
{
    free(kafka->own.brokers);
    free(kafka->own.password_env);
    free(kafka->own.password_file);
    for (size_t i = 0; i < kafka->own.properties.count; i++) {
        free(kafka->own.properties.at[i].key);
        wipe(kafka->own.properties.at[i].value);
    }
    free(kafka->own.properties.at);
    wipe(kafka->refused);
    pthread_mutex_destroy(&kafka->lock);
}

/* --- what librdkafka says --------------------------------------------------------------------------------
 */

/* "[thrd:host:9092/1]: host:9092/1: Connect to ... failed: ..." without the thread. */
static const char *without_thread(const char *text)
{
    const char *end = strncmp(text, "[thrd:", 6) == 0 ? strstr(text, "]: ") : NULL;

    return end ? end + 3 : text;
}

static enum spate_kafka_trouble trouble_in(const char *text)
{
    if (strstr(text, "SASL authentication error") || strstr(text, "Authentication failed") ||
        strstr(text, "SASL handshake failed") || strstr(text, "AUTH_REQ") || strstr(text, "AUTH_HANDSHAKE"))
        return SPATE_KAFKA_LOGIN;
    if (strstr(text, "SSL handshake failed") || strstr(text, "certificate") ||
        strstr(text, "alert unknown ca"))
        return SPATE_KAFKA_CERTIFICATE;
    return SPATE_KAFKA_UNREACHABLE;
}

static void note(struct spate_kafka *kafka, enum spate_kafka_trouble trouble, const char *text)
{
    pthread_mutex_lock(&kafka->lock);
    snprintf(kafka->complaint, sizeof kafka->complaint, "%.*s", (int)sizeof kafka->complaint - 1, text);
    kafka->complained_ms = spate_clock_ms();
    kafka->trouble = trouble;
    pthread_mutex_unlock(&kafka->lock);
}

/* Lines about the same thing are said twice a minute. */
static bool due(struct spate_kafka *kafka, const char *about, unsigned *hidden)
{
    bool yes;
    size_t at = 0;

    pthread_mutex_lock(&kafka->lock);
    while (at + 1 < SPATE_KAFKA_LIMITS && kafka->said[at].about[0] &&
           strcmp(kafka->said[at].about, about) != 0)
        at++;
    snprintf(kafka->said[at].about, sizeof kafka->said[at].about, "%s", about);
    yes = spate_log_due(&kafka->said[at].limit, spate_clock_ms(), SAY_EVERY_MS, hidden);
    pthread_mutex_unlock(&kafka->lock);
    return yes;
}

/* Lines that say nothing to anybody: a file has one list of properties for producers and consumers alike. */
static bool idle_talk(const char *facility, const char *text)
{
    if (strcmp(facility, "ERROR") == 0) /* the same as the line with FAIL before it */
        return strstr(text, "brokers are down") || strstr(text, "(after ");
    return strcmp(facility, "CONFWARN") == 0 &&
           (strstr(text, "property and will be ignored by") || strstr(text, "No `bootstrap.servers`") ||
            strstr(text, "enable.gapless.guarantee is experimental"));
}

static void on_log(const rd_kafka_t *handle, int level, const char *facility, const char *text)
{
    struct attached *attached = rd_kafka_opaque(handle);
    char about[24], words[sizeof attached->kafka->complaint], quoted[2 * sizeof words];
    enum spate_log_level as = level <= LOG_WARNING ? SPATE_LOG_WARN
                              : level <= LOG_INFO  ? SPATE_LOG_INFO
                                                   : SPATE_LOG_DEBUG;
    unsigned hidden = 0;

    if (strstr(text, "Coordinator load in progress")) /* of a broker that has just started */
        as = SPATE_LOG_INFO;
    if (!attached || idle_talk(facility, text))
        return;
    pthread_mutex_lock(&attached->lock);
    snprintf(words, sizeof words, "%s", without_thread(text));
    if (attached->certificate[0] && strstr(words, "certificate verify failed")) {
        snprintf(words + strcspn(words, " "), sizeof words - strcspn(words, " "), " %s",
                 attached->certificate);
        attached->certificate[0] = '\0';
    }
    if (attached->kafka) {
        const bool failed = level <= LOG_ERR || strcmp(facility, "FAIL") == 0;
        const enum spate_kafka_trouble trouble = trouble_in(words);
        snprintf(about, sizeof about, "%d%d%s", (int)as, (int)trouble, facility);
        if (failed)
            note(attached->kafka, trouble, words);
        attached->hopeless |= failed && trouble >= SPATE_KAFKA_CERTIFICATE;
        if (failed && trouble == SPATE_KAFKA_LOGIN)
            atomic_store_explicit(&attached->refused_ms, spate_clock_ms(), memory_order_relaxed);
        if (spate_log_on(as) && (as == SPATE_LOG_DEBUG || due(attached->kafka, about, &hidden)))
            spate_log(as, "librdkafka", "about=%s hidden=%u words=%s", facility, hidden,
                      spate_log_quote(quoted, sizeof quoted, words));
    }
    pthread_mutex_unlock(&attached->lock);
}

/* A refused login: is there another password now? */
static void log_in_anew(rd_kafka_t *handle, struct attached *attached)
{
    const struct spate_kafka_config *config = attached->kafka->config;
    const char *user = spate_kafka_said(config, "sasl.username");
    struct spate_err err = {0};
    char *password = NULL;

    if (!user || spate_kafka_password(config, &password, &err) != SPATE_OK || !password)
        return;
    if (!attached->password || strcmp(password, attached->password) != 0) {
        rd_kafka_error_t *error = rd_kafka_sasl_set_credentials(handle, user, password);
        if (error)
            rd_kafka_error_destroy(error);
        spate_log(SPATE_LOG_INFO, "kafka-password-read", "user=%.80s words=\"the login was refused before\"",
                  user);
    }
    spate_kafka_wipe(attached->password);
    attached->password = password;
}

void spate_kafka_client_poll(rd_kafka_t *handle, int timeout_ms)
{
    struct attached *attached = rd_kafka_opaque(handle);
    const int64_t refused_ms = atomic_load_explicit(&attached->refused_ms, memory_order_relaxed);

    if (refused_ms > 0) {
        const int64_t now = spate_clock_ms();
        if (now < refused_ms + REFUSED_MS && now >= attached->relogin_ms) {
            attached->relogin_ms = now + RELOGIN_MS;
            log_in_anew(handle, attached);
        }
    }
    rd_kafka_poll(handle, timeout_ms);
}

/* Of consumers only, in the thread that takes records: what concerns its topic is told here, and not with the
 * records. Everything else came as a line already. */
static void on_consumer_error(rd_kafka_t *handle, int code, const char *reason, void *opaque)
{
    struct attached *attached = opaque;

    (void)handle, (void)reason;
    if (code == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION || code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
        code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
        code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        attached->topic_trouble = (rd_kafka_resp_err_t)code;
    attached->all_down |= code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN;
}

bool spate_kafka_all_down(rd_kafka_t *handle)
{
    struct attached *attached = rd_kafka_opaque(handle);
    const bool yes = attached->all_down;

    attached->all_down = false;
    return yes;
}

rd_kafka_resp_err_t spate_kafka_topic_trouble(rd_kafka_t *handle)
{
    struct attached *attached = rd_kafka_opaque(handle);
    const rd_kafka_resp_err_t code = attached->topic_trouble;

    attached->topic_trouble = RD_KAFKA_RESP_ERR_NO_ERROR;
    return code;
}

static void on_delivery(rd_kafka_t *handle, const rd_kafka_message_t *message, void *opaque)
{
    struct attached *attached = opaque;

    attached->delivered(handle, message, attached->opaque);
}

/* Numbers of OpenSSL's x509_vfy.h, which are part of its interface. */
static const char *certificate_words(int code)
{
    switch (code) {
    case 9:
        return "its certificate is not valid yet; are the clocks right?";
    case 10:
        return "its certificate has expired: renew it on the broker";
    case 18:
    case 19:
    case 20:
    case 21:
        return "its certificate was not signed by an authority that is trusted here: name the right one in "
               "bus.kafka.properties.ssl.ca.location";
    case 23:
        return "its certificate was revoked";
    case 62:
    case 64:
        return "its certificate is for another name than the one it was reached by: use a name that is in "
               "the "
               "certificate in bus.kafka.brokers (and in the brokers' advertised.listeners), or renew it";
    default:
        return NULL;
    }
}

static int on_certificate(rd_kafka_t *handle, const char *broker, int32_t id, int *code, int depth,
                          const char *bytes, size_t size, char *words, size_t words_size, void *opaque)
{
    struct attached *attached = opaque;
    const char *known = certificate_words(*code);

    (void)handle, (void)id, (void)depth, (void)bytes, (void)size;
    if (*code == 0)
        return 1;
    pthread_mutex_lock(&attached->lock);
    if (known)
        snprintf(attached->certificate, sizeof attached->certificate, "TLS: %s", known);
    else
        snprintf(attached->certificate, sizeof attached->certificate,
                 "TLS: its certificate does not verify (OpenSSL's reason %d)", *code);
    pthread_mutex_unlock(&attached->lock);
    snprintf(words, words_size, "%s: %s", broker, known ? known : "it does not verify");
    return 0;
}

/* --- handles ---------------------------------------------------------------------------------------------
 */

static void detach(struct attached *attached)
{
    pthread_mutex_destroy(&attached->lock);
    spate_kafka_wipe(attached->password);
    free(attached);
}

static void listen_to(rd_kafka_conf_t *conf, enum spate_kafka_role role, struct attached *attached)
{
    rd_kafka_conf_set_opaque(conf, attached);
    rd_kafka_conf_set_log_cb(conf, on_log);
    if (role == SPATE_KAFKA_CONSUMER)
        rd_kafka_conf_set_error_cb(conf, on_consumer_error);
    if (attached->delivered)
        rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    /* A librdkafka without TLS refuses this one, and every property of TLS as well. */
    (void)rd_kafka_conf_set_ssl_cert_verify_cb(conf, on_certificate);
}

/* Directories lock a user out who knocks too often with a wrong password. Another one is tried at once. */
static bool refused_before(struct spate_kafka *kafka, const char *password)
{
    bool yes;

    pthread_mutex_lock(&kafka->lock);
    yes = kafka->refused && password && strcmp(kafka->refused, password) == 0 &&
          spate_clock_ms() < kafka->refused_ms + KNOCK_MS;
    pthread_mutex_unlock(&kafka->lock);
    return yes;
}

static void remember_refused(struct attached *attached)
{
    struct spate_kafka *kafka = attached->kafka;
    const int64_t refused_ms = atomic_load_explicit(&attached->refused_ms, memory_order_relaxed);

    if (refused_ms == 0 || !attached->password)
        return;
    pthread_mutex_lock(&kafka->lock);
    wipe(kafka->refused);
    kafka->refused = copy(attached->password);
    kafka->refused_ms = refused_ms;
    pthread_mutex_unlock(&kafka->lock);
}

enum spate_rc spate_kafka_client(struct spate_kafka *kafka, enum spate_kafka_role role,
                                 size_t max_message_bytes, spate_kafka_delivered_fn *delivered, void *opaque,
                                 rd_kafka_t **handle, struct spate_err *err)
{
    struct attached *attached = spate_zalloc(sizeof *attached);
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char words[500] = "";

    if (role == SPATE_KAFKA_PRODUCER && rd_kafka_version() < PRODUCER_GOOD && spate_kafka_worth_saying("K4"))
        spate_log(SPATE_LOG_WARN, "kafka-version",
                  "librdkafka=%s words=\"before 2.3.0 a lost connection can end a producer for good (K4): it "
                  "is made anew then, and the stream's end is read again, which costs seconds; 2.11 or newer "
                  "is better\"",
                  rd_kafka_version_str());
    pthread_mutex_init(&attached->lock, NULL);
    attached->kafka = kafka;
    attached->delivered = delivered;
    attached->opaque = opaque;
    listen_to(conf, role, attached);
    *handle = NULL;
    enum spate_rc rc =
        spate_kafka_apply(kafka->config, role, max_message_bytes, conf, &attached->password, err);
    if (rc == SPATE_OK && refused_before(kafka, attached->password))
        rc = spate_kafka_fail(kafka, err, RD_KAFKA_RESP_ERR__AUTHENTICATION, NULL, "connecting");
    if (rc != SPATE_OK) {
        rd_kafka_conf_destroy(conf);
        detach(attached);
        return rc;
    }
    *handle = rd_kafka_new(role == SPATE_KAFKA_CONSUMER ? RD_KAFKA_CONSUMER : RD_KAFKA_PRODUCER, conf, words,
                           sizeof words);
    if (*handle)
        return SPATE_OK;
    rd_kafka_conf_destroy(conf); /* it is taken only when the handle was made */
    detach(attached);
    if (rd_kafka_last_error() == RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE)
        return spate_fail(err, SPATE_RETRY, "librdkafka has no threads or memory left: %s", words);
    return spate_fail(err, SPATE_RETRY,
                      "librdkafka does not start with what bus.kafka.properties say: %s%s%.300s", words,
                      kafka->complaint[0] ? ": " : "", kafka->complaint);
}

static void *destroy(void *arg)
{
    rd_kafka_t *handle = arg;
    struct attached *attached = rd_kafka_opaque(handle);

    rd_kafka_destroy_flags(handle, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    detach(attached);
    return NULL;
}

void spate_kafka_client_free(rd_kafka_t *handle)
{
    struct attached *attached;
    struct timespec until;
    pthread_t thread;

    if (!handle)
        return;
    attached = rd_kafka_opaque(handle);
    remember_refused(attached);
    pthread_mutex_lock(&attached->lock);
    attached->kafka = NULL; /* the bus may be gone before a destruction that hangs */
    pthread_mutex_unlock(&attached->lock);
    if (pthread_create(&thread, NULL, destroy, handle) != 0) {
        destroy(handle);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += FAREWELL_S;
    if (pthread_timedjoin_np(thread, NULL, &until) != 0) {
        spate_log(
            SPATE_LOG_WARN, "kafka-handle-hangs",
            "words=\"librdkafka did not let go of a connection within %d s; it is left to itself (K32)\"",
            FAREWELL_S);
        pthread_detach(thread);
    }
}

bool spate_kafka_hopeless(rd_kafka_t *handle)
{
    struct attached *attached = rd_kafka_opaque(handle);
    bool yes;

    pthread_mutex_lock(&attached->lock);
    yes = attached->hopeless;
    pthread_mutex_unlock(&attached->lock);
    return yes;
}
