/* What people type: conditions, columns, tables; and the set of keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/keys.h"
#include "cli/words.h"
#include "core/alloc.h"

static void conditions_are_understood(void **state)
{
    static const struct {
        const char *text, *column, *op, *value;
    } cases[] = {
        {"created_at >= 2026-01-01", "created_at", ">=", "2026-01-01"},
        {"id=7", "id", "=", "7"},
        {" id <>  7 ", "id", "<>", "7"},
        {"id!=7", "id", "<>", "7"},
        {"id<7", "id", "<", "7"},
        {"a<=b c", "a", "<=", "b c"},
        {"n > -1", "n", ">", "-1"},
        {"state is null", "state", "is", NULL},
        {"state IS  NOT\tNULL", "state", "is not", NULL},
        {"state = 'it''s'", "state", "=", "it's"},
        {"state = ''", "state", "=", ""},
        {"state = 'null'", "state", "=", "null"},
        {"\"Odd \"\"name\" = x", "Odd \"name", "=", "x"},
        {"is is null", "is", "is", NULL},
        {"issue = is", "issue", "=", "is"},
        {"doc = {\"a\": \"b'c\"}", "doc", "=", "{\"a\": \"b'c\"}"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_words_condition got;
        struct spate_err err = {0};

        if (spate_words_condition(cases[i].text, &got, &err) != SPATE_OK)
            fail_msg("%s: %s", cases[i].text, err.text);
        assert_string_equal(got.column, cases[i].column);
        assert_string_equal(got.op, cases[i].op);
        if (cases[i].value)
            assert_string_equal(got.value, cases[i].value);
        else
            assert_null(got.value);
        assert_true(spate_condition_op_known(spate_slice_str(got.op), got.value == NULL));
        spate_words_condition_fini(&got);
    }
}

static void wrong_conditions_are_named(void **state)
{
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"", "does not begin with a column"},
        {"= 7", "does not begin with a column"},
        {"\"open = 7", "quote around the column"},
        {"id", "no operator"},
        {"id like 7", "is no operator"},
        {"id isnull", "is no operator"},
        {"id >", "no value"},
        {"id = null", "is null"},
        {"id is 7", "null alone"},
        {"id is null and x = 7", "null alone"},
        {"id is not", "null alone"},
        {"state = 'open", "not closed"},
        {"state = 'a' or 'b'", "something follows"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_words_condition got;
        struct spate_err err = {0};

        if (spate_words_condition(cases[i].text, &got, &err) != SPATE_FAIL)
            fail_msg("'%s' was taken", cases[i].text);
        if (!strstr(err.text, cases[i].why) || !strstr(err.text, "expected COLUMN OPERATOR VALUE"))
            fail_msg("'%s': %s", cases[i].text, err.text);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_null(got.column);
    }
}

static void columns_are_separated_by_commas(void **state)
{
    struct spate_err err = {0};
    char **names = NULL;
    size_t count = 0;

    (void)state;
    assert_int_equal(spate_words_columns("id, \"a,b\" ,c", &names, &count, &err), SPATE_OK);
    assert_int_equal(count, 3);
    assert_string_equal(names[0], "id");
    assert_string_equal(names[1], "a,b");
    assert_string_equal(names[2], "c");
    assert_int_equal(spate_words_columns("d,", &names, &count, &err), SPATE_FAIL);
    assert_int_equal(spate_words_columns("d e", &names, &count, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "commas"));
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

static void only_a_whole_name_is_a_table(void **state)
{
    struct spate_buf schema = {0}, table = {0};

    (void)state;
    assert_true(spate_words_table("public.orders", &schema, &table));
    assert_string_equal(spate_buf_str(&schema), "public");
    assert_string_equal(spate_buf_str(&table), "orders");
    assert_true(spate_words_table("\"a.*\".\"b\"\"?\"", &schema, &table));
    assert_string_equal(spate_buf_str(&schema), "a.*");
    assert_string_equal(spate_buf_str(&table), "b\"?");
    assert_false(spate_words_table("orders", &schema, &table));
    assert_false(spate_words_table("public.*", &schema, &table));
    assert_false(spate_words_table("pub?ic.orders", &schema, &table));
    assert_false(spate_words_table("a.b.c", &schema, &table));
    assert_false(spate_words_table(".b", &schema, &table));
    spate_buf_fini(&schema);
    spate_buf_fini(&table);
}

/* Against a plain array of flags, with as many collisions as a small table has. */
static void a_set_of_keys_forgets_nothing(void **state)
{
    enum { KEYS = 300 };
    bool there[KEYS] = {false};
    struct spate_keys keys = {0};
    struct spate_buf array = {0};
    unsigned seed = 7;
    size_t count = 0;

    (void)state;
    for (int turn = 0; turn < 20000; turn++) {
        char text[32];
        int i;

        seed = seed * 1103515245u + 12345u;
        i = (int)(seed >> 16) % KEYS;
        snprintf(text, sizeof text, "{\"id\":%d}", i);
        if (seed & 0x8000) {
            assert_int_equal(spate_keys_add(&keys, spate_slice_str(text)), !there[i]);
            count += !there[i];
            there[i] = true;
        } else {
            assert_int_equal(spate_keys_remove(&keys, spate_slice_str(text)), there[i]);
            count -= there[i];
            there[i] = false;
        }
        assert_int_equal(keys.count, count);
    }
    spate_keys_array(&keys, 2, &array);
    assert_int_equal(array.data[0], '[');
    spate_buf_str(&array);
    assert_ptr_equal(strchr(array.data, ','), strrchr(array.data, ','));
    spate_keys_clear(&keys);
    assert_int_equal(keys.bytes, 0);
    spate_buf_reset(&array);
    spate_keys_array(&keys, 2, &array);
    assert_string_equal(spate_buf_str(&array), "[]");
    spate_buf_fini(&array);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conditions_are_understood),       cmocka_unit_test(wrong_conditions_are_named),
        cmocka_unit_test(columns_are_separated_by_commas), cmocka_unit_test(only_a_whole_name_is_a_table),
        cmocka_unit_test(a_set_of_keys_forgets_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
