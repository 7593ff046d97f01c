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

/* Loads and checks a file with this name and these table globs, one a line from line 2 on. */
static enum spate_rc check(const char *name, const char *globs, struct spate_err *err)
{
    struct spate_connector_config config = {.path = path};
    FILE *file = fopen(path, "w");
    enum spate_rc rc;

    assert_non_null(file);
    fprintf(file, "tables:\n%sconnector: %s\nsource: {postgres: {url: dbname=x}}\nbus: {local: {path: /x}}\n",
            globs, name);
    assert_int_equal(fclose(file), 0);
    *err = (struct spate_err){0};
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, err))
        fail_msg("%s", err->text);
    rc = spate_connector_check(&config, err);
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_right_passes),
        cmocka_unit_test(a_malformed_glob_is_named_with_file_and_line),
        cmocka_unit_test(a_name_like_a_side_topic_is_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
