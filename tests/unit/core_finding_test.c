/* What a check found: collected, printed for people and as JSON, and turned into a refusal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/finding.h"

#include <string.h>

static void two(struct spate_findings *list)
{
    spate_findings_place(list, "source");
    spate_find(list, SPATE_FINDING_NOTE, "server", "server %d", 15);
    spate_find(list, SPATE_FINDING_ERROR, "wal-level", "wal_level = %s", "replica");
    spate_find_why(list, "no \"changes\"\ncan be read");
    spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER SYSTEM SET wal_level = 'logical';");
}

static void errors_come_first_and_are_counted(void **state)
{
    struct spate_findings list = {0};
    struct spate_buf out = {0};

    (void)state;
    two(&list);
    spate_findings_print(&list, &out);
    assert_string_equal(spate_buf_str(&out), "error [wal-level] source: wal_level = replica\n"
                                             "  why: no \"changes\"\n       can be read\n"
                                             "  fix: ALTER SYSTEM SET wal_level = 'logical';\n"
                                             "note [server] source: server 15\n"
                                             "1 error, 0 warnings, 1 note\n");
    spate_buf_fini(&out);
    spate_findings_fini(&list);
}

static void json_escapes_what_names_may_hold(void **state)
{
    struct spate_findings list = {0};
    struct spate_buf out = {0};

    (void)state;
    two(&list);
    spate_find(&list, SPATE_FINDING_WARNING, "odd", "a\\b \xE9 \xC3\xA9 \x01");
    spate_find_about(&list, "table x");
    spate_findings_json(&list, &out);
    assert_string_equal(
        spate_buf_str(&out),
        "{\"findings\":[\n"
        "{\"severity\":\"note\",\"kind\":\"server\",\"about\":\"source\",\"what\":\"server 15\",\"why\":null,"
        "\"fix\":null,\"where\":null},\n"
        "{\"severity\":\"error\",\"kind\":\"wal-level\",\"about\":\"source\",\"what\":\"wal_level = "
        "replica\",\"why\":\"no \\\"changes\\\"\\u000acan be read\",\"fix\":\"ALTER SYSTEM SET wal_level = "
        "'logical';\",\"where\":\"source\"},\n"
        "{\"severity\":\"warning\",\"kind\":\"odd\",\"about\":\"table x\",\"what\":\"a\\\\b \\ufffd "
        "\xC3\xA9 \\u0001\",\"why\":null,\"fix\":null,\"where\":null}],\n"
        "\"errors\":1,\"warnings\":1,\"notes\":1}\n");
    spate_buf_fini(&out);
    spate_findings_fini(&list);
}

static void an_error_refuses_with_its_remedy(void **state)
{
    struct spate_findings list = {0};
    struct spate_err err = {0};

    (void)state;
    two(&list);
    assert_int_equal(spate_finding_refuse(spate_findings_error(&list, 0), &err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_non_null(strstr(err.text, "Mend it with: ALTER SYSTEM"));
    assert_null(spate_findings_error(&list, 2));
    spate_findings_fini(&list);
}

static void many_find_room(void **state)
{
    struct spate_findings list = {0};

    (void)state;
    for (int i = 0; i < 1000; i++)
        spate_find(&list, SPATE_FINDING_WARNING, "many", "%d", i);
    assert_int_equal(spate_findings_of(&list, SPATE_FINDING_WARNING), 1000);
    assert_string_equal(list.at[999].what, "999");
    assert_string_equal(list.at[0].about, "");
    spate_findings_fini(&list);
}

static void the_statement_in_an_error_is_its_fix(void **state)
{
    static const struct {
        const char *text, *fix;
    } cases[] = {
        {"role a lacks INSERT on t: as its owner run GRANT INSERT ON t TO \"a;b. c\"",
         "GRANT INSERT ON t TO \"a;b. c\";"},
        {"t is UNLOGGED: ALTER TABLE t SET LOGGED;", "ALTER TABLE t SET LOGGED;"},
        {"no key: ALTER TABLE t ADD PRIMARY KEY (id); or in the file, key: [id]",
         "ALTER TABLE t ADD PRIMARY KEY (id);"},
        {"a value could change. Either ALTER TABLE t ALTER COLUMN c TYPE text. Or cast it",
         "ALTER TABLE t ALTER COLUMN c TYPE text;"},
        {"the ALTER that somebody ran did it", NULL},
    };
    struct spate_findings list = {0};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_err err = {0};

        spate_fail(&err, SPATE_FATAL, "%s", cases[i].text);
        spate_find_err(&list, "x", &err);
        spate_find_statement(&list, SPATE_MEND_TARGET);
        if (cases[i].fix)
            assert_string_equal(list.at[i].fix, cases[i].fix);
        else
            assert_null(list.at[i].fix);
    }
    spate_findings_fini(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_come_first_and_are_counted),
        cmocka_unit_test(json_escapes_what_names_may_hold),
        cmocka_unit_test(an_error_refuses_with_its_remedy),
        cmocka_unit_test(many_find_room),
        cmocka_unit_test(the_statement_in_an_error_is_its_fix),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
