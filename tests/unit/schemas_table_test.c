/* Tables: the canonical form and its fingerprint, which must be the same on every machine and for ever. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/schemas_fixture.h"

#include <stdio.h>
#include <stdlib.h>

/* Golden: tests/unit/test_json_schema.py computes the same numbers from the golden schema messages. A change
 * here gives every table of every user a new v. */
static void fingerprints_are_stable(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT),
                       *full = fixture_orders(SPATE_IDENTITY_FULL), *kinds = fixture_kinds();

    (void)state;
    assert_true(orders->fingerprint == UINT64_C(0xe681a77379c38a1e));
    assert_true(full->fingerprint == UINT64_C(0xb27beb47361bf537));
    assert_true(kinds->fingerprint == UINT64_C(0xea032a476313c1ba));
    spate_table_free(orders);
    spate_table_free(full);
    spate_table_free(kinds);
}

struct shape {
    enum spate_identity identity;
    struct fixture_column columns[3];
    size_t count;
    uint32_t key[2];
    size_t key_count;
    const char *name;
    enum spate_class json_class;
};

static uint64_t fingerprint_of(const struct shape *shape)
{
    struct spate_table *table = spate_table_new(S("public"), spate_slice_str(shape->name), shape->identity,
                                                shape->count, shape->key_count);
    uint64_t fingerprint;

    for (size_t i = 0; i < shape->count; i++) {
        const struct fixture_column *c = &shape->columns[i];

        spate_table_set_column(table, i, spate_slice_str(c->name), spate_slice_str(c->type), S(""), c->oid,
                               c->mod, c->len, c->identity, i == 0 ? shape->json_class : SPATE_CLASS_TEXT);
    }
    for (size_t i = 0; i < shape->key_count; i++)
        table->key[i] = shape->key[i];
    spate_table_seal(table);
    fingerprint = table->fingerprint;
    spate_table_free(table);
    return fingerprint;
}

static void fingerprints_tell_shapes_apart(void **state)
{
    const struct shape base = {SPATE_IDENTITY_DEFAULT,
                               {{"a", "integer", NULL, 23, -1, 4, true},
                                {"b", "text", NULL, 25, -1, -1, false},
                                {"c", "text", NULL, 25, -1, -1, false}},
                               2,
                               {0, 1},
                               1,
                               "t",
                               SPATE_CLASS_INT};
    struct shape other[14];
    uint64_t prints[15];
    struct shape same = base;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(other); i++)
        other[i] = base;
    other[0].columns[0].name = "A";
    other[1].columns[0].oid = 20;
    other[2].columns[0].mod = 4;
    other[3].columns[0].len = 8;
    other[4].columns[0].identity = false;
    other[5].json_class = SPATE_CLASS_TEXT;
    other[6].identity = SPATE_IDENTITY_FULL;
    other[7].key_count = 0;
    other[8].key[0] = 1;
    other[9].key_count = 2;
    other[10].count = 3;
    other[11].columns[0] = base.columns[1]; /* the order of columns */
    other[11].columns[1] = base.columns[0];
    other[12].columns[0].name = "ab"; /* lengths are part of the form: "ab","" is not "a","b" */
    other[12].columns[1].name = "";
    other[13].key_count = 2;
    other[13].key[0] = 1;
    other[13].key[1] = 0;
    prints[14] = fingerprint_of(&base);
    for (size_t i = 0; i < SPATE_COUNT(other); i++)
        prints[i] = fingerprint_of(&other[i]);
    for (size_t i = 0; i < SPATE_COUNT(prints); i++)
        for (size_t j = 0; j < i; j++)
            if (prints[i] == prints[j])
                fail_msg("shapes %zu and %zu have one fingerprint", i, j);
    /* What only annotates, and the table's name, which v belongs to anyway. */
    same.columns[0].type = "int4";
    same.name = "renamed";
    assert_true(fingerprint_of(&same) == fingerprint_of(&base));
}

static void classes_follow_the_base_type(void **state)
{
    static const struct {
        uint32_t oid;
        enum spate_class json_class;
    } cases[] = {{16, SPATE_CLASS_BOOL},   {20, SPATE_CLASS_INT8},    {21, SPATE_CLASS_INT},
                 {23, SPATE_CLASS_INT},    {700, SPATE_CLASS_FLOAT},  {701, SPATE_CLASS_FLOAT},
                 {114, SPATE_CLASS_TEXT},  {3802, SPATE_CLASS_JSONB}, {26, SPATE_CLASS_TEXT},
                 {1700, SPATE_CLASS_TEXT}, {790, SPATE_CLASS_TEXT},   {1007, SPATE_CLASS_TEXT},
                 {0, SPATE_CLASS_TEXT},    {16384, SPATE_CLASS_TEXT}, {3807, SPATE_CLASS_TEXT}};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++)
        assert_int_equal(spate_class_of(cases[i].oid), cases[i].json_class);
}

static void finds_columns_by_name(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);

    (void)state;
    assert_int_equal(spate_table_column(orders, S("id")), 0);
    assert_int_equal(spate_table_column(orders, S("notes")), 5);
    assert_int_equal(spate_table_column(orders, S("note")), -1);
    assert_int_equal(spate_table_column(orders, S("")), -1);
    spate_table_free(orders);
    spate_table_free(NULL);
}

static void seals_the_json_of_names(void **state)
{
    struct spate_table *table = spate_table_new(S("a\"b"), S("t\n"), SPATE_IDENTITY_FULL, 1, 0);

    (void)state;
    spate_table_set_column(table, 0, S("first"), S("text"), S(""), 25, -1, -1, true, SPATE_CLASS_TEXT);
    spate_table_set_column(table, 0, S("c\\"), S("text"), S(""), 25, -1, -1, true, SPATE_CLASS_TEXT);
    spate_table_seal(table);
    assert_true(spate_slice_is(table->json_schema, "\"a\\\"b\""));
    assert_true(spate_slice_is(table->json_name, "\"t\\n\""));
    assert_true(spate_slice_is(table->columns[0].json_name, "\"c\\\\\":"));
    spate_table_free(table);
}

/* P86: as many columns as Postgres allows. */
static void holds_1600_columns_P86(void **state)
{
    struct spate_table *table = spate_table_new(S("public"), S("wide"), SPATE_IDENTITY_DEFAULT, 1600, 1),
                       *back;
    struct spate_value *values = spate_zalloc(1600 * sizeof(*values)),
                       *before = spate_zalloc(1600 * sizeof(*before));
    struct spate_rows rows = {.before = before, .after = spate_zalloc(1600 * sizeof(*values))};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, values);
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    (void)state;
    for (size_t i = 0; i < 1600; i++) {
        char name[16];

        snprintf(name, sizeof(name), "c%zu", i);
        spate_table_set_column(table, i, spate_slice_str(name), S("integer"), S(""), 23, -1, 4, i == 1599,
                               SPATE_CLASS_INT);
        values[i] = T("7");
    }
    table->key[0] = 1599;
    table->v = 1;
    spate_table_seal(table);
    spate_encode_schema(&line, table, S("shop"), FIXTURE_US);
    assert_int_equal(spate_decode_schema(spate_buf_view(&line), &back, &arena, &err), SPATE_OK);
    assert_true(back->fingerprint == table->fingerprint);
    assert_int_equal(back->column_count, 1600);
    spate_buf_reset(&line);
    assert_int_equal(spate_encode_change(&line, &change, &err), SPATE_OK);
    assert_int_equal(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_meta(spate_buf_view(&line), &head, &meta, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_rows(spate_buf_view(&line), &head, &meta, back, NULL, &rows, &arena, &err),
                     SPATE_OK);
    assert_true(spate_slice_is(rows.after[1599].text, "7"));
    assert_true(spate_slice_is(rows.key[0].text, "7"));
    free(values);
    free(before);
    free(rows.after);
    spate_buf_fini(&line);
    spate_arena_fini(&arena);
    spate_table_free(table);
    spate_table_free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fingerprints_are_stable),      cmocka_unit_test(fingerprints_tell_shapes_apart),
        cmocka_unit_test(classes_follow_the_base_type), cmocka_unit_test(finds_columns_by_name),
        cmocka_unit_test(seals_the_json_of_names),      cmocka_unit_test(holds_1600_columns_P86),
    };

    return cmocka_run_group_tests_name("schemas_table", tests, NULL, NULL);
}
