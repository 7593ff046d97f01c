/* The LSN in the words that a server adds to an error of its output plugin. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "connector/culprit.h"

static void reads_the_lsn_in_any_language(void **state)
{
    (void)state;
    assert_int_equal(spate_culprit_lsn("slot \"spate\", output plugin \"pgoutput\", in the change callback, "
                                       "associated LSN 0/157FB20"),
                     0x157FB20);
    assert_int_equal(spate_culprit_lsn("Slot »s«, Ausgabe-Plugin »pgoutput«, im Callback change, "
                                       "zugehörige LSN 1A/FFFFFFFF"),
                     UINT64_C(0x1AFFFFFFFF));
    assert_int_equal(spate_culprit_lsn("a/b: associated LSN 2/3\nof x"), UINT64_C(0x200000003));
}

static void finds_none_where_there_is_none(void **state)
{
    (void)state;
    assert_int_equal(spate_culprit_lsn(NULL), 0);
    assert_int_equal(spate_culprit_lsn(""), 0);
    assert_int_equal(spate_culprit_lsn("/"), 0);
    assert_int_equal(spate_culprit_lsn("in the startup callback"), 0);
    assert_int_equal(spate_culprit_lsn("x/y and 1/z"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_lsn_in_any_language),
        cmocka_unit_test(finds_none_where_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
