/* What a connector's file may not say, beyond what the option tables hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/load.h"
#include "connector/connector.h"
#include "connector/permits.h"

static char path[64];

static int set_up(void **state)
{
    int fd;

    (void)state;
    strcpy(path, "/tmp/spate-test-XXXXXX");
    fd = mkstemp(path);
    return fd < 0 || close(fd) ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

/* Loads a file with this name and these table globs, one a line from line 2 on, and what is said of
 * snapshots.
 */
static void load(struct spate_connector_config *config, const char *name, const char *globs,
                 const char *snapshots)
{
    FILE *file = fopen(path, "w");
    struct spate_err err = {0};

    *config = (struct spate_connector_config){.path = path};
    assert_non_null(file);
    fprintf(file,
            "tables:\n%sconnector: %s\nsource: {postgres: {url: dbname=x}}\nbus: {local: {path: /x}}\n%s",
            globs, name, snapshots);
    assert_int_equal(fclose(file), 0);
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, config, &err))
        fail_msg("%s", err.text);
}

static void unload(struct spate_connector_config *config)
{
    spate_options_fini(config, spate_connector_tables, spate_connector_table_count);
}

static enum spate_rc check(const char *name, const char *globs, struct spate_err *err)
{
    struct spate_connector_config config;
    enum spate_rc rc;

    load(&config, name, globs, "");
    *err = (struct spate_err){0};
    rc = spate_connector_check(&config, err);
    unload(&config);
    return rc;
}

static void what_is_right_passes(void **state)
{
    static const char *const names[] = {"shop", "a_b", "a.b", "a.b_c", "a_.b", "Big Shop"};
    struct spate_err err;

    (void)state;
    assert_int_equal(check("shop", "- public.*\n- '*'\n- 'a.\"b.c\"'\n", &err), SPATE_OK);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (check(names[i], "- t\n", &err) != SPATE_OK)
            fail_msg("%s: %s", names[i], err.text);
}

static void a_malformed_glob_is_named_with_file_and_line(void **state)
{
    struct spate_err err;
    char wanted[128];

    (void)state;
    assert_int_equal(check("shop", "- public.*\n- a.b.c\n", &err), SPATE_FAIL);
    snprintf(wanted, sizeof wanted, "%s:3: tables: table pattern 'a.b.c'", path);
    if (strncmp(err.text, wanted, strlen(wanted)) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
}

/* The topics beside a stream are told by "._": such a stream would never be listed. */
static void a_name_like_a_side_topic_is_refused(void **state)
{
    static const char *const names[] = {"a._b", "shop._schemas", "._a", "a._"};
    struct spate_err err;

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (check(names[i], "- t\n", &err) != SPATE_FAIL)
            fail_msg("%s was taken", names[i]);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_int_equal(strncmp(err.text, path, strlen(path)), 0);
        assert_non_null(strstr(err.text, names[i]));
    }
}

static void what_snapshots_may_do_has_gentle_defaults(void **state)
{
    struct spate_connector_config config;

    (void)state;
    load(&config, "shop", "- t\n", "");
    assert_int_equal(config.snapshots.allow.count, 0);
    assert_int_equal(config.snapshots.parallel, 2);
    assert_int_equal(config.snapshots.rows_per_second, 0);
    assert_null(config.snapshots.hours);
    assert_true(config.snapshots.nudge);
    assert_int_equal(config.snapshots.chunk_bytes, 2 << 20);
    assert_int_equal(config.snapshots.keys_bytes, 16 << 20);
    assert_true(spate_permits_requester(&config, spate_slice_str("anybody")));
    assert_true(
        spate_permits_table(&config, spate_slice_str("anybody"), spate_slice_str("s"), spate_slice_str("t")));
    assert_true(spate_permits_now(&config, 0, NULL));
    unload(&config);
}

static void who_may_ask_is_found_by_globs(void **state)
{
    static const struct {
        const char *who, *schema, *table;
        bool asks, gets;
    } cases[] = {
        {"billing", "public", "orders", true, true},
        {"billing", "public", "customers", true, true},
        {"billing", "public", "secrets", true, false},
        {"billing", "other", "orders", true, false},
        {"billing", "odd,one", "a.b", true, true},
        {"Billing", "public", "orders", false, false},
        {"billing2", "public", "orders", false, false},
        {"snapshot-1a", "public", "anything", true, true},
        {"snapshot-", "public", "x", true, true},
        {"snapshot", "public", "x", false, false},
        {"a.b.c", "any", "log", true, true},
        {"a.c", "any", "log", false, false},
        {"xab-yab", "s", "t", true, true},
        {"xab-ya", "s", "t", false, false},
        {"", "public", "orders", false, false},
    };
    struct spate_connector_config config;
    struct spate_err err = {0};

    (void)state;
    load(&config, "shop", "- t\n",
         "snapshots:\n  allow:\n    billing: ' public.orders,public.customers ,\"odd,one\".\"a.b\",'\n"
         "    'snapshot-*': public.*\n    'a.*.c': log\n    '?ab*ab': 's.t'\n");
    if (spate_connector_check(&config, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_slice who = spate_slice_str(cases[i].who);

        if (spate_permits_requester(&config, who) != cases[i].asks ||
            spate_permits_table(&config, who, spate_slice_str(cases[i].schema),
                                spate_slice_str(cases[i].table)) != cases[i].gets)
            fail_msg("%s asks for %s.%s", cases[i].who, cases[i].schema, cases[i].table);
    }
    unload(&config);
}

static void a_rule_that_allows_nothing_or_is_malformed_is_named_with_its_line(void **state)
{
    static const char *const bad[][2] = {{"a.b.c", "table pattern 'a.b.c'"}, {"' , '", "names no table"}};
    struct spate_connector_config config;
    char text[128], wanted[128];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct spate_err err = {0};

        snprintf(text, sizeof text, "snapshots:\n  allow:\n    ok: t\n    bad: %s\n", bad[i][0]);
        load(&config, "shop", "- t\n", text);
        assert_int_equal(spate_connector_check(&config, &err), SPATE_FAIL);
        snprintf(wanted, sizeof wanted, "%s:9: snapshots.allow.bad: %s", path, bad[i][1]);
        if (strncmp(err.text, wanted, strlen(wanted)) != 0)
            fail_msg("%s", err.text);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        unload(&config);
    }
}

#define MINUTE INT64_C(60000)

static void hours_are_kept_across_midnight(void **state)
{
    static const struct {
        const char *hours;
        int at; /* minutes since midnight */
        bool open;
        int left;
    } cases[] = {
        {"22:00-06:00", 0, true, 360},     {"22:00-06:00", 359, true, 1},    {"22:00-06:00", 360, false, 960},
        {"22:00-06:00", 1320, true, 480},  {"09:30-17:00", 569, false, 1},   {"09:30-17:00", 570, true, 450},
        {"09:30-17:00", 1020, false, 990}, {"18:00-24:00", 1080, true, 360}, {"18:00-24:00", 1439, true, 1},
        {"18:00-24:00", 0, false, 1080},   {"18:00-00:00", 1439, true, 1},   {"00:00-01:00", 0, true, 60},
        {"00:00-01:00", 1439, false, 1},
    };

    (void)state;
    assert_int_equal(setenv("TZ", "UTC", 1), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_connector_config config = {0};
        int64_t left = 0;
        bool open;

        config.snapshots.hours = strdup(cases[i].hours);
        open = spate_permits_now(&config, (86400 * INT64_C(20000) + cases[i].at * 60) * 1000000, &left);
        if (open != cases[i].open || left != cases[i].left * MINUTE)
            fail_msg("%s at minute %d: %s, %lld ms left", cases[i].hours, cases[i].at, open ? "open" : "shut",
                     (long long)left);
        free(config.snapshots.hours);
    }
}

static void hours_that_are_none_are_refused(void **state)
{
    static const char *const bad[] = {"'22-06'",        "'22:00'",       "'22:00-22:00'",
                                      "'24:00-00:00'",  "'25:00-01:00'", "'22:60-01:00'",
                                      "'22:00-06:00 '", "night",         "'24:01-02:00'"};
    struct spate_connector_config config;
    char text[128];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct spate_err err = {0};

        snprintf(text, sizeof text, "snapshots: {hours: %s}\n", bad[i]);
        load(&config, "shop", "- t\n", text);
        if (spate_connector_check(&config, &err) != SPATE_FAIL)
            fail_msg("%s was taken", bad[i]);
        assert_non_null(strstr(err.text, "snapshots.hours: expected HH:MM-HH:MM"));
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        unload(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_right_passes),
        cmocka_unit_test(a_malformed_glob_is_named_with_file_and_line),
        cmocka_unit_test(a_name_like_a_side_topic_is_refused),
        cmocka_unit_test(what_snapshots_may_do_has_gentle_defaults),
        cmocka_unit_test(who_may_ask_is_found_by_globs),
        cmocka_unit_test(a_rule_that_allows_nothing_or_is_malformed_is_named_with_its_line),
        cmocka_unit_test(hours_are_kept_across_midnight),
        cmocka_unit_test(hours_that_are_none_are_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
