/* Globs match names byte by byte, and a slip of the finger finds its word. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/glob.h"
#include "core/options.h"

static const struct {
    const char *pattern, *schema, *table;
    bool match;
} matches[] = {
    {"public.orders", "public", "orders", true},
    {"public.orders", "public", "order", false},
    {"public.orders", "public", "orders2", false},
    {"public.orders", "private", "orders", false},
    {"orders", "anything", "orders", true},
    {"*", "a", "b", true},
    {"*.*", "a", "b", true},
    {"public.*", "public", "", true},
    {"p*c.o*s", "public", "orders", true},
    {"public.or?ers", "public", "orders", true},
    {"public.or?ers", "public", "orers", false},
    {"public.?", "public", "\xc3\xa4", true}, /* one character, two bytes */
    {"public.?", "public", "ab", false},
    {"public.*\xa4", "public", "\xc3\xa4", false}, /* no match may begin inside a character */
    {"public.a*b*c", "public", "abbbcbc", true},
    {"public.a*b*c", "public", "abbbcb", false},
    {"public.*aaaaaaaaaaaaaaaab", "public", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false},
    {"public.Orders", "public", "orders", false}, /* nothing is folded */
    {"\"odd.schema\".t", "odd.schema", "t", true},
    {"\"a*\".t", "a*", "t", true},
    {"\"a*\".t", "ab", "t", false},
    {"\"a\"\"b\".\"c?\"", "a\"b", "c?", true},
    {"\"a\".*", "a", "x.y", true},
};

static void globs_match(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(matches); i++) {
        struct spate_glob *glob;
        struct spate_err err = {0};

        assert_int_equal(spate_glob_new(matches[i].pattern, &glob, &err), SPATE_OK);
        if (spate_glob_match(glob, spate_slice_str(matches[i].schema), spate_slice_str(matches[i].table)) !=
            matches[i].match)
            fail_msg("%s on %s.%s", matches[i].pattern, matches[i].schema, matches[i].table);
        spate_glob_free(glob);
    }
}

static void malformed_globs_are_refused(void **state)
{
    static const char *const patterns[] = {"",     ".",        "a.",     ".a",     "a.b.c", "\"a",
                                           "a\"b", "\"a\"b.c", "\"\".a", "a.\"\"", "a.b\"", "a.\"b\".c"};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(patterns); i++) {
        struct spate_glob *glob;
        struct spate_err err = {0};

        if (spate_glob_new(patterns[i], &glob, &err) != SPATE_FAIL)
            fail_msg("taken: %s", patterns[i]);
        assert_null(glob);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_non_null(strstr(err.text, "expected schema.table"));
    }
}

static void exact_means_one_table(void **state)
{
    static const struct {
        const char *pattern;
        bool exact;
    } cases[] = {{"a.b", true}, {"b", false}, {"a.*", false}, {"?.b", false}, {"\"*\".b", true}};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_glob *glob;
        struct spate_err err = {0};

        assert_int_equal(spate_glob_new(cases[i].pattern, &glob, &err), SPATE_OK);
        assert_int_equal(spate_glob_exact(glob), cases[i].exact);
        spate_glob_free(glob);
    }
}

static void slips_find_their_word(void **state)
{
    static const char *const words[] = {"connector", "source", "tables", "bus", "log_level", "path"};
    static const struct {
        const char *word, *near;
    } cases[] = {
        {"conector", "connector"},
        {"sorce", "source"},
        {"tabels", "tables"},
        {"bsu", "bus"},
        {"TABLES", "tables"},
        {"loglevel", "log_level"},
        {"pth", "path"},
        {"zzz", NULL},
        {"", NULL},
        {"something_else", NULL},
        {"b", NULL},
        {"tablet", "tables"},
        {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NULL},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        const char *near = spate_nearest(cases[i].word, words, SPATE_COUNT(words));

        if ((near == NULL) != (cases[i].near == NULL) || (near && strcmp(near, cases[i].near) != 0))
            fail_msg("%s: got %s", cases[i].word, near ? near : "nothing");
    }
    assert_null(spate_nearest("tables", words, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(globs_match),
        cmocka_unit_test(malformed_globs_are_refused),
        cmocka_unit_test(exact_means_one_table),
        cmocka_unit_test(slips_find_their_word),
    };

    return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
