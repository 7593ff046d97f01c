/* core/metric.h - facts about a running process, described by one table and shown in two ways: as JSON for
 * people and scripts, and as Prometheus text for what collects and alerts.
 *
 * A fact has one name in both. Where it is not known, it is null in JSON and absent from the metrics: a zero
 * that nobody measured would be a lie. Pure functions; the facts are a plain struct that its owner copies. */
#ifndef SPATE_CORE_METRIC_H
#define SPATE_CORE_METRIC_H

#include "core/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum spate_metric_kind {
    SPATE_METRIC_COUNT,   /* uint64_t */
    SPATE_METRIC_NUMBER,  /* int64_t; negative: not known */
    SPATE_METRIC_SECONDS, /* int64_t microseconds; negative: not known */
    SPATE_METRIC_TIME,  /* int64_t wall clock microseconds; 0: never. A metric's name gets _timestamp_seconds
                         */
    SPATE_METRIC_LSN,   /* uint64_t; 0: not known. JSON: "1A/2B3C"; a metric: bytes since the WAL began */
    SPATE_METRIC_FLAG,  /* int; negative: not known */
    SPATE_METRIC_STATE, /* int, index into choices; negative: not known. A metric: one series for each */
    SPATE_METRIC_INFO,  /* char[], never changing: JSON, and a label of PREFIX_info */
    SPATE_METRIC_TEXT   /* char[]; empty: nothing to say. JSON only */
};

struct spate_metric {
    const char *name; /* with its unit, behind a prefix; a counter's ends in _total */
    enum spate_metric_kind kind;
    size_t offset;
    const char *const *choices; /* STATE: NULL-terminated */
    const char *label, *value;  /* neighbours of one name are one family and differ in value */
    const char *help;           /* one sentence without a line's end */
};

/* Appends "name":value,... without the braces around. */
void spate_metric_json(struct spate_buf *out, const struct spate_metric *table, size_t count,
                       const void *facts);

/* Many structs of one kind, told apart by a label: sink="billing". */
struct spate_metric_set {
    const char *prefix;  /* "spate_sink" */
    const char *label;   /* "sink" */
    size_t label_offset; /* of a char[] in the struct */
    const struct spate_metric *table;
    size_t count;
};
/* Text format 0.0.4: each family once, with HELP and TYPE, all its series together. */
void spate_metric_prometheus(struct spate_buf *out, const struct spate_metric_set *set, const void *facts,
                             size_t stride, size_t fact_count);

/* The table as Markdown, for config/REFERENCE.md, so that no figure can be missing from the manual. */
void spate_metric_reference(struct spate_buf *out, const struct spate_metric_set *set);

/* Appends "text" as JSON. Bytes that are not UTF-8 become U+FFFD, so that the document stays valid. */
void spate_metric_quote(struct spate_buf *out, const char *text);

#define SPATE_METRIC_PROMETHEUS_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define SPATE_METRIC_JSON_TYPE       "application/json"

#endif
