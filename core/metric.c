/* core/metric.c - one table, two renderings. */
#include "core/metric.h"

#include "core/clock.h"

#include <inttypes.h>
#include <string.h>

static const void *at(const void *facts, const struct spate_metric *metric)
{
    return (const char *)facts + metric->offset;
}

static int64_t number(const void *facts, const struct spate_metric *metric)
{
    return *(const int64_t *)at(facts, metric);
}

static int small(const void *facts, const struct spate_metric *metric)
{
    return *(const int *)at(facts, metric);
}

/* How many bytes of well-formed UTF-8 stand here: 0 when the first one begins no character. */
static size_t sequence(const unsigned char *text)
{
    unsigned char c = text[0];
    size_t len = c < 0x80                ? 1
                 : c >= 0xC2 && c < 0xE0 ? 2
                 : (c & 0xF0) == 0xE0    ? 3
                 : c >= 0xF0 && c < 0xF5 ? 4
                                         : 0;

    for (size_t i = 1; i < len; i++) /* a NUL is no continuation either, so nothing is read beyond it */
        if ((text[i] & 0xC0) != 0x80)
            return 0;
    if ((c == 0xE0 && text[1] < 0xA0) || (c == 0xED && text[1] >= 0xA0) || (c == 0xF0 && text[1] < 0x90) ||
        (c == 0xF4 && text[1] >= 0x90))
        return 0;
    return len;
}

/* Both formats escape quotes, backslashes and line ends alike; JSON the other control characters too, which
 * have no business in a label either. */
void spate_metric_quote(struct spate_buf *out, const char *text)
{
    const unsigned char *c = (const unsigned char *)text;

    spate_buf_putc(out, '"');
    while (*c) {
        size_t len = sequence(c);

        if (len == 0) {
            spate_buf_puts(out, "\xEF\xBF\xBD");
            len = 1;
        } else if (*c == '"' || *c == '\\') {
            spate_buf_printf(out, "\\%c", *c);
        } else if (*c == '\n') {
            spate_buf_puts(out, "\\n");
        } else if (*c < 0x20 || *c == 0x7F) {
            spate_buf_putc(out, ' ');
        } else {
            spate_buf_add(out, c, len);
        }
        c += len;
    }
    spate_buf_putc(out, '"');
}

static void seconds(struct spate_buf *out, int64_t us)
{
    spate_buf_printf(out, "%" PRId64 ".%06" PRId64, us / 1000000, us % 1000000);
}

static bool known(const void *facts, const struct spate_metric *metric)
{
    switch (metric->kind) {
    case SPATE_METRIC_COUNT:
        return true;
    case SPATE_METRIC_NUMBER:
    case SPATE_METRIC_SECONDS:
        return number(facts, metric) >= 0;
    case SPATE_METRIC_TIME:
        return number(facts, metric) > 0;
    case SPATE_METRIC_LSN:
        return *(const uint64_t *)at(facts, metric) != 0;
    case SPATE_METRIC_FLAG:
    case SPATE_METRIC_STATE:
        return small(facts, metric) >= 0;
    case SPATE_METRIC_INFO:
    case SPATE_METRIC_TEXT:
        return *(const char *)at(facts, metric) != '\0';
    }
    return false;
}

/* ---- JSON ---- */

static void json_value(struct spate_buf *out, const struct spate_metric *metric, const void *facts)
{
    char stamp[SPATE_TIMESTAMP_LEN];
    uint64_t lsn;

    if (!known(facts, metric)) {
        spate_buf_puts(out, "null");
        return;
    }
    switch (metric->kind) {
    case SPATE_METRIC_COUNT:
        spate_buf_printf(out, "%" PRIu64, *(const uint64_t *)at(facts, metric));
        break;
    case SPATE_METRIC_NUMBER:
        spate_buf_printf(out, "%" PRId64, number(facts, metric));
        break;
    case SPATE_METRIC_SECONDS:
        seconds(out, number(facts, metric));
        break;
    case SPATE_METRIC_TIME:
        spate_clock_format(number(facts, metric), stamp);
        spate_buf_printf(out, "\"%.*s\"", SPATE_TIMESTAMP_LEN, stamp);
        break;
    case SPATE_METRIC_LSN:
        lsn = *(const uint64_t *)at(facts, metric);
        spate_buf_printf(out, "\"%" PRIX32 "/%" PRIX32 "\"", (uint32_t)(lsn >> 32), (uint32_t)lsn);
        break;
    case SPATE_METRIC_FLAG:
        spate_buf_puts(out, small(facts, metric) ? "true" : "false");
        break;
    case SPATE_METRIC_STATE:
        spate_metric_quote(out, metric->choices[small(facts, metric)]);
        break;
    case SPATE_METRIC_INFO:
    case SPATE_METRIC_TEXT:
        spate_metric_quote(out, at(facts, metric));
        break;
    }
}

static size_t family_end(const struct spate_metric *table, size_t count, size_t first)
{
    size_t end = first + 1;

    while (end < count && strcmp(table[end].name, table[first].name) == 0)
        end++;
    return end;
}

void spate_metric_json(struct spate_buf *out, const struct spate_metric *table, size_t count,
                       const void *facts)
{
    for (size_t i = 0; i < count;) {
        size_t end = family_end(table, count, i);

        spate_buf_printf(out, "%s\"%s\":%s", i ? "," : "", table[i].name, table[i].label ? "{" : "");
        for (size_t first = i; i < end; i++) {
            if (table[i].label)
                spate_buf_printf(out, "%s\"%s\":", i > first ? "," : "", table[i].value);
            json_value(out, &table[i], facts);
        }
        spate_buf_puts(out, table[end - 1].label ? "}" : "");
    }
}

/* ---- Prometheus ---- */

static const char *type_of(const char *name)
{
    size_t len = strlen(name);

    return len > 6 && strcmp(name + len - 6, "_total") == 0 ? "counter" : "gauge";
}

static void head(struct spate_buf *out, const struct spate_metric_set *set, const struct spate_metric *metric)
{
    const char *suffix = metric->kind == SPATE_METRIC_TIME ? "_timestamp_seconds" : "";

    spate_buf_printf(out, "# HELP %s_%s%s %s\n# TYPE %s_%s%s %s\n", set->prefix, metric->name, suffix,
                     metric->help, set->prefix, metric->name, suffix, type_of(metric->name));
}

static void series(struct spate_buf *out, const struct spate_metric_set *set,
                   const struct spate_metric *metric, const void *facts, const char *label, const char *value)
{
    spate_buf_printf(out, "%s_%s%s{%s=", set->prefix, metric->name,
                     metric->kind == SPATE_METRIC_TIME ? "_timestamp_seconds" : "", set->label);
    spate_metric_quote(out, (const char *)facts + set->label_offset);
    if (label) {
        spate_buf_printf(out, ",%s=", label);
        spate_metric_quote(out, value);
    }
    spate_buf_puts(out, "} ");
}

static void samples(struct spate_buf *out, const struct spate_metric_set *set,
                    const struct spate_metric *metric, const void *facts)
{
    if (!known(facts, metric))
        return;
    if (metric->kind == SPATE_METRIC_STATE) {
        for (int i = 0; metric->choices[i]; i++) {
            series(out, set, metric, facts, "state", metric->choices[i]);
            spate_buf_puts(out, i == small(facts, metric) ? "1\n" : "0\n");
        }
        return;
    }
    series(out, set, metric, facts, metric->label, metric->value);
    if (metric->kind == SPATE_METRIC_COUNT || metric->kind == SPATE_METRIC_LSN)
        spate_buf_printf(out, "%" PRIu64, *(const uint64_t *)at(facts, metric));
    else if (metric->kind == SPATE_METRIC_FLAG)
        spate_buf_putc(out, small(facts, metric) ? '1' : '0');
    else if (metric->kind == SPATE_METRIC_NUMBER)
        spate_buf_printf(out, "%" PRId64, number(facts, metric));
    else
        seconds(out, number(facts, metric));
    spate_buf_putc(out, '\n');
}

static void info(struct spate_buf *out, const struct spate_metric_set *set, const char *facts, size_t stride,
                 size_t fact_count)
{
    spate_buf_printf(out, "# HELP %s_info What this is; always 1.\n# TYPE %s_info gauge\n", set->prefix,
                     set->prefix);
    for (size_t f = 0; f < fact_count; f++, facts += stride) {
        const char *comma = "";

        spate_buf_printf(out, "%s_info{", set->prefix);
        for (size_t i = 0; i < set->count; i++) {
            if (set->table[i].kind != SPATE_METRIC_INFO || !known(facts, &set->table[i]))
                continue;
            spate_buf_printf(out, "%s%s=", comma, set->table[i].name);
            spate_metric_quote(out, at(facts, &set->table[i]));
            comma = ",";
        }
        spate_buf_puts(out, "} 1\n");
    }
}

static bool any_known(const struct spate_metric *table, size_t first, size_t end, const char *facts,
                      size_t stride, size_t fact_count)
{
    for (size_t f = 0; f < fact_count; f++)
        for (size_t i = first; i < end; i++)
            if (known(facts + f * stride, &table[i]))
                return true;
    return false;
}

void spate_metric_prometheus(struct spate_buf *out, const struct spate_metric_set *set, const void *facts,
                             size_t stride, size_t fact_count)
{
    const struct spate_metric *table = set->table;

    info(out, set, facts, stride, fact_count);
    for (size_t i = 0, end; i < set->count; i = end) {
        end = family_end(table, set->count, i);
        if (table[i].kind == SPATE_METRIC_INFO || table[i].kind == SPATE_METRIC_TEXT ||
            !any_known(table, i, end, facts, stride, fact_count))
            continue;
        head(out, set, &table[i]);
        for (size_t f = 0; f < fact_count; f++)
            for (size_t row = i; row < end; row++)
                samples(out, set, &table[row], (const char *)facts + f * stride);
    }
}

/* ---- Markdown ---- */

static void reference_row(struct spate_buf *out, const struct spate_metric_set *set,
                          const struct spate_metric *metric)
{
    const char *name = metric->name;

    spate_buf_printf(out, "| `%s` | ", name);
    if (metric->kind == SPATE_METRIC_INFO)
        spate_buf_printf(out, "label of `%s_info`", set->prefix);
    else if (metric->kind == SPATE_METRIC_TEXT)
        spate_buf_puts(out, "-");
    else if (metric->kind == SPATE_METRIC_STATE)
        spate_buf_printf(out, "`%s_%s{state=...}`", set->prefix, name);
    else if (metric->label)
        spate_buf_printf(out, "`%s_%s{%s=...}`", set->prefix, name, metric->label);
    else
        spate_buf_printf(out, "`%s_%s%s`", set->prefix, name,
                         metric->kind == SPATE_METRIC_TIME ? "_timestamp_seconds" : "");
    spate_buf_printf(out, " | %s", metric->help);
    for (int i = 0; metric->kind == SPATE_METRIC_STATE && metric->choices[i]; i++)
        spate_buf_printf(out, "%s`%s`", i ? ", " : " One of ", metric->choices[i]);
    spate_buf_puts(out, metric->kind == SPATE_METRIC_STATE ? ". |\n" : " |\n");
}

void spate_metric_reference(struct spate_buf *out, const struct spate_metric_set *set)
{
    spate_buf_puts(out, "| in `/status` | in `/metrics` | meaning |\n| --- | --- | --- |\n");
    for (size_t i = 0; i < set->count; i = family_end(set->table, set->count, i))
        reference_row(out, set, &set->table[i]);
}
