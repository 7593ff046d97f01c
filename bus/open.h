/* bus/open.h - which bus a configuration means, and opening it. */
#ifndef SPATE_BUS_OPEN_H
#define SPATE_BUS_OPEN_H

#include "bus/bus.h"
#include "core/options.h"

#include <stdbool.h>
#include <stdint.h>

/* Embedded in the configuration structs of connector and sinks; the option table below fills it. */
struct spate_bus_config {
    char *local_path;              /* bus.local.path: the durable root */
    char *local_hot;               /* bus.local.hot: the shared-memory root; NULL: derived from the path */
    int64_t local_segment_bytes;   /* bus.local.segment_bytes; 0: chosen when the topic is made */
    int64_t local_retention_ms;    /* bus.local.retention; 0: age removes nothing */
    int64_t local_retention_bytes; /* bus.local.retention_bytes; 0: half of the file system */
    int64_t local_hold_expire_ms;  /* bus.local.hold_expire; 0: never */
    struct spate_kafka_config {
        char *brokers;                 /* "k1:9092,k2:9092"; NULL: the bus is local */
        struct spate_pairs properties; /* of librdkafka, passed through */
        char *password_env;            /* where sasl.password is, read at each opening */
        char *password_file;
        bool create;                 /* make topics that are missing */
        int64_t replication_factor;  /* of topics that we make; 0: 3, or as many as there are brokers */
        int64_t min_insync_replicas; /* 0: 2, or 1 where there is one replica only */
        int64_t retention_ms;        /* of the stream; 0: no limit by age */
        int64_t max_message_bytes;   /* largest record of topics that we make */
    } kafka;
};

/* Options under "bus."; offsets are relative to struct spate_bus_config. */
enum { SPATE_BUS_OPTIONS = 15 }; /* a constant, so that others' static tables can name it */
extern const struct spate_option spate_bus_options[SPATE_BUS_OPTIONS];
extern const size_t spate_bus_option_count;

/* Opens the bus; makes nothing on disk or at a broker before the first writer. The configuration is copied.
 */
SPATE_CHECKED enum spate_rc spate_bus_open(const struct spate_bus_config *config, struct spate_bus **bus,
                                           struct spate_err *err);

/* The bus that a command line names: "kafka:HOST:PORT[,HOST:PORT]", or else the directory of a local one.
 * Fills *config, which borrows `text`. */
void spate_bus_named(const char *text, struct spate_bus_config *config);

/* Escapes a name that a bus cannot carry, reversibly (P85): the rule and its inverse stand in bus/open.c.
 * Names of [a-z0-9][a-z0-9._]* stay as they are. Writes a NUL-terminated topic name. */
SPATE_CHECKED enum spate_rc spate_topic_escape(const char *name, char *out, size_t size,
                                               struct spate_err *err);
/* The inverse, for showing a name to people; false: no such topic name was ever made from a name. */
bool spate_topic_unescape(const char *topic, char *out, size_t size);

/* Who reads a connector's stream under a name, and what is held for them (spate_reader_enlist). */
struct spate_bus_holds { /* -1, or empty: not known, or there is none (Kafka: all of it) */
    int64_t readers;     /* names that a process has now */
    int64_t holders;     /* names that hold, whether a process has them or not */
    int64_t bytes;       /* from the lowest position that is held to what is durable */
    int64_t limit_bytes; /* as many are kept before the writer has to wait */
    int64_t age_us;      /* of the record at that position */
    char by[130];        /* whose position that is */
};
/* Looks, and disturbs nobody. Blocks: reads a few small files. */
void spate_bus_look_holds(const struct spate_bus_config *config, const char *connector,
                          struct spate_bus_holds *holds);

/* What is wrong with the bus that a configuration means, or will be one day, for a process that publishes the
 * stream of this connector (`writes`) or reads it: reachable, rights, room, topics and their settings. Writes
 * nothing. Blocks: on the brokers, for some seconds. */
void spate_bus_check(const struct spate_bus_config *config, const char *connector, bool writes,
                     struct spate_findings *list);

#endif
