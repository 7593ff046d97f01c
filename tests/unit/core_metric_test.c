/* One table, two renderings: what is not known is null, or absent; what people named cannot break a page. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/metric.h"

struct facts {
    char name[32], text[64];
    uint64_t count, lsn;
    int64_t number, seconds_us, time_us;
    int flag, state;
    uint64_t red, blue;
};

static const char *const states[] = {"open", "shut", NULL};

#define AT(member) offsetof(struct facts, member)
static const struct spate_metric table[] = {
    {"name", SPATE_METRIC_INFO, AT(name), .help = ""},
    {"text", SPATE_METRIC_TEXT, AT(text), .help = ""},
    {"seen_total", SPATE_METRIC_COUNT, AT(count), .help = "Seen."},
    {"size_bytes", SPATE_METRIC_NUMBER, AT(number), .help = "Size."},
    {"age_seconds", SPATE_METRIC_SECONDS, AT(seconds_us), .help = "Age."},
    {"begun", SPATE_METRIC_TIME, AT(time_us), .help = "Begun."},
    {"lsn", SPATE_METRIC_LSN, AT(lsn), .help = "Place."},
    {"well", SPATE_METRIC_FLAG, AT(flag), .help = "Well."},
    {"door", SPATE_METRIC_STATE, AT(state), .choices = states, .help = "Door."},
    {"balls_total", SPATE_METRIC_COUNT, AT(red), .label = "colour", .value = "red", .help = "Balls."},
    {"balls_total", SPATE_METRIC_COUNT, AT(blue), .label = "colour", .value = "blue"},
};
static const struct spate_metric_set set = {
    .prefix = "x", .label = "name", .label_offset = AT(name), .table = table, .count = SPATE_COUNT(table)};

static const struct facts known = {.name = "a",
                                   .text = "t",
                                   .count = UINT64_MAX,
                                   .lsn = 0x1A00000002B,
                                   .number = 0,
                                   .seconds_us = 61000007,
                                   .time_us = 1795280461310681,
                                   .flag = 1,
                                   .state = 1,
                                   .red = 2,
                                   .blue = 3};
static const struct facts unknown = {
    .name = "b", .number = -1, .seconds_us = -1, .flag = -1, .state = -1, .count = 5};

static char *json(const struct facts *facts)
{
    struct spate_buf out = {0};

    spate_metric_json(&out, table, SPATE_COUNT(table), facts);
    spate_buf_str(&out);
    return out.data;
}

static void json_has_values_or_null(void **state)
{
    char *text = json(&known);

    (void)state;
    assert_string_equal(text,
                        "\"name\":\"a\",\"text\":\"t\",\"seen_total\":18446744073709551615,\"size_bytes\":0,"
                        "\"age_seconds\":61.000007,\"begun\":\"2026-11-21T17:01:01.310681Z\","
                        "\"lsn\":\"1A0/2B\",\"well\":true,\"door\":\"shut\","
                        "\"balls_total\":{\"red\":2,\"blue\":3}");
    free(text);
    text = json(&unknown);
    assert_string_equal(text, "\"name\":\"b\",\"text\":null,\"seen_total\":5,\"size_bytes\":null,"
                              "\"age_seconds\":null,\"begun\":null,\"lsn\":null,\"well\":null,\"door\":null,"
                              "\"balls_total\":{\"red\":0,\"blue\":0}");
    free(text);
}

static void prometheus_has_families_and_leaves_out_what_is_not_known(void **state)
{
    const struct facts facts[] = {known, unknown};
    struct spate_buf out = {0};

    (void)state;
    spate_metric_prometheus(&out, &set, facts, sizeof facts[0], 2);
    assert_string_equal(
        spate_buf_str(&out),
        "# HELP x_info What this is; always 1.\n# TYPE x_info gauge\nx_info{name=\"a\"} "
        "1\nx_info{name=\"b\"} 1\n"
        "# HELP x_seen_total Seen.\n# TYPE x_seen_total counter\n"
        "x_seen_total{name=\"a\"} 18446744073709551615\nx_seen_total{name=\"b\"} 5\n"
        "# HELP x_size_bytes Size.\n# TYPE x_size_bytes gauge\nx_size_bytes{name=\"a\"} 0\n"
        "# HELP x_age_seconds Age.\n# TYPE x_age_seconds gauge\nx_age_seconds{name=\"a\"} 61.000007\n"
        "# HELP x_begun_timestamp_seconds Begun.\n# TYPE x_begun_timestamp_seconds gauge\n"
        "x_begun_timestamp_seconds{name=\"a\"} 1795280461.310681\n"
        "# HELP x_lsn Place.\n# TYPE x_lsn gauge\nx_lsn{name=\"a\"} 1786706395179\n"
        "# HELP x_well Well.\n# TYPE x_well gauge\nx_well{name=\"a\"} 1\n"
        "# HELP x_door Door.\n# TYPE x_door gauge\n"
        "x_door{name=\"a\",state=\"open\"} 0\nx_door{name=\"a\",state=\"shut\"} 1\n"
        "# HELP x_balls_total Balls.\n# TYPE x_balls_total counter\n"
        "x_balls_total{name=\"a\",colour=\"red\"} 2\nx_balls_total{name=\"a\",colour=\"blue\"} 3\n"
        "x_balls_total{name=\"b\",colour=\"red\"} 0\nx_balls_total{name=\"b\",colour=\"blue\"} 0\n");
    spate_buf_fini(&out);
}

/* A family of which nothing is known has no HELP either: readers take that for an empty family. */
static void a_family_without_samples_is_left_out(void **state)
{
    struct spate_buf out = {0};

    (void)state;
    spate_metric_prometheus(&out, &set, &unknown, sizeof unknown, 1);
    assert_null(strstr(spate_buf_str(&out), "size_bytes"));
    assert_null(strstr(out.data, "begun"));
    assert_null(strstr(out.data, "door"));
    assert_non_null(strstr(out.data, "seen_total{name=\"b\"} 5"));
    spate_buf_fini(&out);
}

static void what_people_wrote_cannot_break_a_page(void **state)
{
    static const struct {
        const char *text, *quoted;
    } cases[] = {
        {"", "\"\""},
        {"a\"b\\c\nd", "\"a\\\"b\\\\c\\nd\""},
        {"tab\there\x01\x7f", "\"tab here  \""},
        {"gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x90\x98",
         "\"gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x90\x98\""},
        {"\xFF", "\"\xEF\xBF\xBD\""},
        {"x\xC3", "\"x\xEF\xBF\xBD\""}, /* cut in a character */
        {"x\xE2\x82", "\"x\xEF\xBF\xBD\xEF\xBF\xBD\""},
        {"\xC0\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\""}, /* overlong */
        {"\xE0\x80\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
        {"\xED\xA0\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},                 /* a surrogate */
        {"\xF4\x90\x80\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""}, /* beyond U+10FFFF */
        {"\xF5\x80\x80\x80", "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\""},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_buf out = {0};

        spate_metric_quote(&out, cases[i].text);
        assert_string_equal(spate_buf_str(&out), cases[i].quoted);
        spate_buf_fini(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_has_values_or_null),
        cmocka_unit_test(prometheus_has_families_and_leaves_out_what_is_not_known),
        cmocka_unit_test(a_family_without_samples_is_left_out),
        cmocka_unit_test(what_people_wrote_cannot_break_a_page),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
