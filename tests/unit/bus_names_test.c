/* tests/unit/bus_names_test.c - topic names (P85), positions as text, and what a configuration may say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/place.h"
#include "bus/open.h"

#include <stdio.h>
#include <string.h>

static void names_that_a_bus_can_carry_stay_as_they_are(void **state)
{
    static const char *const names[] = {"shop",          "0", "a.b", "a_b",
                                        "shop._schemas", "x", "xyz", "db2.orders__1"};
    char out[SPATE_LOCAL_NAME + 1];
    struct spate_err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(spate_topic_escape(names[i], out, sizeof out, &err), SPATE_OK);
        assert_string_equal(out, names[i]);
    }
}

/* P85: reversible, so two names never share a topic. */
static void every_name_comes_back(void **state)
{
    char name[8], topic[SPATE_LOCAL_NAME + 1], back[SPATE_LOCAL_NAME + 1];
    struct spate_err err = {0};

    (void)state;
    for (int first = 1; first < 256; first++)
        for (int second = 0; second < 256; second++) {
            name[0] = (char)first;
            name[1] = (char)second;
            name[2] = second ? 'Z' : '\0';
            name[3] = '\0';
            assert_int_equal(spate_topic_escape(name, topic, sizeof topic, &err), SPATE_OK);
            assert_true(spate_local_name_good(topic));
            assert_true(spate_topic_unescape(topic, back, sizeof back));
            assert_string_equal(back, name);
        }
    /* Names that look like escapes themselves. */
    static const char *const tricky[] = {"x--a",  "x-2d-2da", "-2d",   "--",   "X--",
                                         "a-2db", "Shop",     "shop ", "Größe"};
    for (size_t i = 0; i < sizeof tricky / sizeof tricky[0]; i++) {
        assert_int_equal(spate_topic_escape(tricky[i], topic, sizeof topic, &err), SPATE_OK);
        assert_true(spate_local_name_good(topic));
        assert_true(spate_topic_unescape(topic, back, sizeof back));
        assert_string_equal(back, tricky[i]);
        for (size_t k = 0; k < i; k++) {
            assert_int_equal(spate_topic_escape(tricky[k], back, sizeof back, &err), SPATE_OK);
            assert_string_not_equal(topic, back);
        }
    }
    assert_false(spate_topic_unescape("a-", back, sizeof back));
    assert_false(spate_topic_unescape("a-zz", back, sizeof back));
    assert_false(spate_topic_unescape("", back, sizeof back));
}

static void names_that_do_not_fit_are_refused(void **state)
{
    char name[400], out[SPATE_LOCAL_NAME + 1];
    struct spate_err err = {0};

    (void)state;
    assert_int_equal(spate_topic_escape("", out, sizeof out, &err), SPATE_FAIL);
    memset(name, 'a', sizeof name);
    name[SPATE_LOCAL_NAME] = '\0';
    assert_int_equal(spate_topic_escape(name, out, sizeof out, &err), SPATE_OK);
    name[SPATE_LOCAL_NAME] = 'a';
    name[SPATE_LOCAL_NAME + 1] = '\0';
    assert_int_equal(spate_topic_escape(name, out, sizeof out, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "129 bytes"));
    assert_int_equal(spate_topic_escape("AA", out, 6, &err), SPATE_FAIL);
    assert_int_equal(spate_topic_escape("AA", out, 2, &err), SPATE_FAIL);
    assert_false(spate_local_name_good(".hidden"));
    assert_false(spate_local_name_good("a/b"));
    assert_false(spate_local_name_good(".."));
    assert_false(spate_local_name_good(""));
}

static void positions_have_one_spelling(void **state)
{
    static const char *const bad[] = {"",
                                      "local:",
                                      "local:12",
                                      "kafka:12",
                                      "local:00000000000000zz",
                                      "local:0000000000000040 ",
                                      "LOCAL:0000000000000040",
                                      "local:00000000000000400"};
    char text[SPATE_BUS_POS_TEXT];
    struct spate_bus_pos pos;
    struct spate_err err = {0};

    (void)state;
    spate_bus_pos_format("local", (struct spate_bus_pos){.at = 64}, text);
    assert_string_equal(text, "local:0000000000000040");
    spate_bus_pos_format("kafka", (struct spate_bus_pos){.at = 64}, text);
    assert_string_equal(text, "kafka:64");
    assert_int_equal(spate_bus_pos_parse("kafka", "kafka:18446744073709551616", &pos, &err), SPATE_FAIL);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(spate_bus_pos_parse("local", bad[i], &pos, &err), SPATE_FAIL);
}

static void a_configuration_that_means_no_bus_is_refused(void **state)
{
    char path[] = "/nowhere";
    const struct spate_bus_config bad[] = {{.local_path = NULL},
                                           {.local_path = path, .local_segment_bytes = 3 << 20},
                                           {.local_path = path, .local_segment_bytes = 4096}};
    struct spate_bus *bus;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct spate_err err = {0};
        assert_int_equal(spate_bus_open(&bad[i], &bus, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_non_null(strstr(err.text, "bus.local."));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_that_a_bus_can_carry_stay_as_they_are),
        cmocka_unit_test(every_name_comes_back),
        cmocka_unit_test(names_that_do_not_fit_are_refused),
        cmocka_unit_test(positions_have_one_spelling),
        cmocka_unit_test(a_configuration_that_means_no_bus_is_refused),
    };
    return cmocka_run_group_tests_name("bus_names", tests, NULL, NULL);
}
