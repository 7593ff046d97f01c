/* bus/open.c - the bus that a configuration means; names and positions as text. */
#include "bus/open.h"

#include "bus/kafka/kafka.h"
#include "bus/local/local.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(struct spate_bus_config, member)

const struct spate_option spate_bus_options[] = {
    {.key = "local.path",
     .type = SPATE_OPT_STRING,
     .offset = AT(local_path),
     .doc = "Directory of the embedded bus, on a local disk; made when it is missing. The connector and its "
            "sinks "
            "name the same one."},
    {.key = "local.hot",
     .type = SPATE_OPT_STRING,
     .offset = AT(local_hot),
     .doc = "Directory of the bus in shared memory, used by it alone. Derived from local.path below /dev/shm "
            "when "
            "not given; to be given when processes do not share their /dev/shm."},
    {.key = "local.segment_bytes",
     .type = SPATE_OPT_BYTES,
     .offset = AT(local_segment_bytes),
     .min = INT64_C(1) << 20,
     .max = INT64_C(1) << 30,
     .doc = "Size of one segment file, a power of two; fixed when a topic is made. Up to four segments "
            "stand in shared memory. A message of more than a quarter of it, or of more than 16MiB, has a "
            "file of its own below local.path. By default 64MiB (4MiB for the topics beside the stream), "
            "less when the shared memory is small."},
    {.key = "local.retention",
     .type = SPATE_OPT_DURATION,
     .offset = AT(local_retention_ms),
     .fallback = "7d",
     .doc =
         "How long records are kept on the disk; 0: for ever. Whole segments go, when their last record is "
         "older. A sink that is behind for longer has to be loaded anew, unless it holds. What the "
         "connector's "
         "file says counts, for all topics of its stream; _schemas stays."},
    {.key = "local.retention_bytes",
     .type = SPATE_OPT_BYTES,
     .offset = AT(local_retention_bytes),
     .doc = "How large the archive of a topic may become before its oldest segments go, whatever their age; "
            "segments that are being written come on top of it. By default half of the file system."},
    {.key = "local.hold_expire",
     .type = SPATE_OPT_DURATION,
     .offset = AT(local_hold_expire_ms),
     .fallback = "1d",
     .doc =
         "A reader with `hold` that no process has run as for so long holds nothing any more; 0: it does for "
         "ever."},
    {.key = "kafka.brokers",
     .type = SPATE_OPT_STRING,
     .offset = AT(kafka.brokers),
     .doc = "Brokers of a Kafka cluster as host:port[,host:port]: some of them, the others are found. "
            "Instead of "
            "local.path; the connector and its sinks name the same cluster."},
    {.key = "kafka.properties",
     .type = SPATE_OPT_MAP,
     .offset = AT(kafka.properties),
     .flags = SPATE_OPT_SECRET,
     .doc = "Properties of librdkafka (its CONFIGURATION.md), passed on as they are: security.protocol, "
            "ssl.ca.location, sasl.mechanism, sasl.username, compression.type, linger.ms and so on. Those on "
            "which "
            "correctness rests are refused or warned about, with the reason."},
    {.key = "kafka.password_env",
     .type = SPATE_OPT_STRING,
     .offset = AT(kafka.password_env),
     .doc = "Environment variable that holds the password (sasl.password)."},
    {.key = "kafka.password_file",
     .type = SPATE_OPT_STRING,
     .offset = AT(kafka.password_file),
     .doc =
         "File whose first line is the password (sasl.password); read anew at each connection, and when the "
         "broker refuses it."},
    {.key = "kafka.create",
     .type = SPATE_OPT_BOOL,
     .offset = AT(kafka.create),
     .fallback = "true",
     .doc =
         "Make topics that are missing. Otherwise the connector waits until somebody has made them. Topics "
         "that are there are checked and never changed."},
    {.key = "kafka.replication_factor",
     .type = SPATE_OPT_INT,
     .offset = AT(kafka.replication_factor),
     .min = 1,
     .max = 1000,
     .doc = "Replicas of topics that are made. By default 3, or as many as there are brokers."},
    {.key = "kafka.min_insync_replicas",
     .type = SPATE_OPT_INT,
     .offset = AT(kafka.min_insync_replicas),
     .min = 1,
     .max = 1000,
     .doc =
         "How many brokers must have a record before it counts as safe, in topics that are made. By default "
         "2 with three replicas or more, else 1."},
    {.key = "kafka.retention",
     .type = SPATE_OPT_DURATION,
     .offset = AT(kafka.retention_ms),
     .fallback = "7d",
     .doc =
         "How long records of a stream are kept in topics that are made; 0: for ever. A sink that is behind "
         "for longer has to be loaded anew."},
    {.key = "kafka.max_message_bytes",
     .type = SPATE_OPT_BYTES,
     .offset = AT(kafka.max_message_bytes),
     .fallback = "16MiB",
     .min = 64 * 1024,
     .max = INT64_C(64) << 20,
     .doc = "max.message.bytes of topics that are made: the largest message is that, less half a KiB."},
};
_Static_assert(sizeof spate_bus_options / sizeof spate_bus_options[0] == SPATE_BUS_OPTIONS, "bus/open.h");
const size_t spate_bus_option_count = sizeof spate_bus_options / sizeof spate_bus_options[0];

static enum spate_rc unclear(struct spate_err *err, const char *words)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL, "%s", words);
}

enum spate_rc spate_bus_open(const struct spate_bus_config *config, struct spate_bus **bus,
                             struct spate_err *err)
{
    const struct spate_kafka_config *kafka = &config->kafka;

    if (kafka->brokers && config->local_path)
        return unclear(err,
                       "bus.local.path and bus.kafka.brokers are both set: a stream is on one bus; keep one");
    if (kafka->brokers)
        return spate_kafka_bus_open(kafka, bus, err);
    if (kafka->properties.count > 0 || kafka->password_env || kafka->password_file)
        return unclear(err,
                       "bus.kafka has properties or a password, but no brokers: add bus.kafka.brokers as "
                       "host:port[,host:port], or remove bus.kafka");
    if (!config->local_path)
        return unclear(err,
                       "no bus is configured: set bus.local.path to a directory, or bus.kafka.brokers to "
                       "host:port[,host:port]");
    return spate_local_bus_open_at(
        &(struct spate_local_place){.path = config->local_path,
                                    .hot = config->local_hot,
                                    .segment_bytes = config->local_segment_bytes,
                                    .retention_ms = config->local_retention_ms,
                                    .retention_bytes = config->local_retention_bytes,
                                    .hold_expire_ms = config->local_hold_expire_ms},
        bus, err);
}

void spate_bus_check(const struct spate_bus_config *config, const char *connector, bool writes,
                     struct spate_findings *list)
{
    char topic[256];
    struct spate_bus *bus = NULL;
    struct spate_err err = {0};

    spate_findings_place(list, "bus");
    if (spate_topic_escape(connector, topic, sizeof topic, &err) != SPATE_OK ||
        spate_bus_open(config, &bus, &err) != SPATE_OK) {
        spate_find_err(list, "bus", &err);
        return;
    }
    bus->ops->check(bus, topic, writes, list);
    spate_bus_close(bus);
}

void spate_bus_named(const char *text, struct spate_bus_config *config)
{
    static const char scheme[] = "kafka:";
    char *name = (char *)(uintptr_t)text; /* the struct owns its texts elsewhere */

    *config = (struct spate_bus_config){0};
    if (strncmp(text, scheme, sizeof scheme - 1) == 0)
        config->kafka.brokers = name + sizeof scheme - 1;
    else
        config->local_path = name;
}

/* The rule of escaping (P85): bytes of [a-z0-9._] stand for themselves, every other byte is '-' and two hex
 * digits. A name whose first byte would not be a letter or digit gets "x--" in front; "--" cannot arise
 * otherwise. So two names never collide, and spate_topic_unescape gives the name back. */
#define TOPIC_MOST SPATE_LOCAL_NAME
#define GUARD      "x--"

static bool plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
}

enum spate_rc spate_topic_escape(const char *name, char *out, size_t size, struct spate_err *err)
{
    static const char hex[] = "0123456789abcdef";
    const size_t most = size - 1 < TOPIC_MOST ? size - 1 : TOPIC_MOST;
    size_t len = 0;

    if (name[0] == '\0')
        return spate_fail(err, SPATE_FATAL, "a topic needs a name, this one is empty");
    if (!plain(name[0]) || name[0] == '.' || name[0] == '_') {
        memcpy(out, GUARD, size > sizeof GUARD ? sizeof GUARD - 1 : 0);
        len = sizeof GUARD - 1;
    }
    for (const char *at = name; *at; at++) {
        const size_t need = plain(*at) ? 1 : 3;
        if (len + need > most)
            return spate_fail(
                err, SPATE_FATAL,
                "the name \"%.60s...\" is too long for a topic: it has %zu bytes, and a topic at most "
                "%d (each byte outside a-z 0-9 . _ takes three)",
                name, strlen(name), TOPIC_MOST);
        if (need == 1) {
            out[len++] = *at;
        } else {
            out[len++] = '-';
            out[len++] = hex[(unsigned char)*at >> 4];
            out[len++] = hex[(unsigned char)*at & 15];
        }
    }
    out[len] = '\0';
    return SPATE_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool spate_topic_unescape(const char *topic, char *out, size_t size)
{
    size_t len = 0;

    if (strncmp(topic, GUARD, sizeof GUARD - 1) == 0)
        topic += sizeof GUARD - 1;
    while (*topic) {
        int byte = (unsigned char)*topic++;
        if (byte == '-') {
            const int high = hex_digit(topic[0]), low = high < 0 ? -1 : hex_digit(topic[1]);
            if (low < 0)
                return false;
            byte = high << 4 | low;
            topic += 2;
        }
        if (byte == 0 || len + 1 >= size)
            return false;
        out[len++] = (char)byte;
    }
    if (size == 0)
        return false;
    out[len] = '\0';
    return len > 0;
}

void spate_bus_pos_format(const char *driver, struct spate_bus_pos pos, char out[SPATE_BUS_POS_TEXT])
{
    if (strcmp(driver, "local") == 0)
        snprintf(out, SPATE_BUS_POS_TEXT, "%s:%016" PRIx64, driver, pos.at);
    else
        snprintf(out, SPATE_BUS_POS_TEXT, "%s:%" PRIu64, driver, pos.at);
}

enum spate_rc spate_bus_pos_parse(const char *driver, const char *text, struct spate_bus_pos *out,
                                  struct spate_err *err)
{
    const bool local = strcmp(driver, "local") == 0;
    const char *digits = local ? "0123456789abcdef" : "0123456789";
    const size_t len = strlen(driver);

    if (strncmp(text, driver, len) == 0 && text[len] == ':') {
        const char *number = text + len + 1;
        const size_t count = strspn(number, digits);
        errno = 0;
        out->at = strtoull(number, NULL, local ? 16 : 10);
        if (errno == 0 && count > 0 && number[count] == '\0' && (!local || count == 16))
            return SPATE_OK;
    }
    return spate_fail(err, SPATE_FATAL, "\"%.60s\" is no position of the %s bus: expected %s:%s", text,
                      driver, driver, local ? "<16 hex digits>" : "<number>");
}
