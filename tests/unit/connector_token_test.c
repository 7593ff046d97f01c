/* A resume token goes on where a table stood, and only while everything about it is as it was (HAZARDS 6.6).
 */
#include "connector/woven.h"
#include "schemas/snapshot.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

struct fixture {
    struct spate_plan_leaf leaves[2];
    struct spate_plan_condition where;
    bool asked[2];
    struct spate_plan_table plan;
    uint64_t ends[3];
    struct spate_asked_table table;
};

static struct spate_table *make_table(const char *type, uint32_t oid)
{
    struct spate_slice empty = {0};
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 2, 1);

    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("integer"), empty, 23, -1, 4,
                           true, SPATE_CLASS_INT);
    spate_table_set_column(table, 1, spate_slice_str("v"), spate_slice_str(type), empty, oid, -1, -1, false,
                           SPATE_CLASS_TEXT);
    table->key[0] = 0;
    spate_table_seal(table);
    return table;
}

static void make(struct fixture *f)
{
    *f = (struct fixture){
        .leaves = {{.oid = 100, .name = "a", .stamp = "1/x", .pages = 10},
                   {.oid = 101, .name = "b", .stamp = "2/x", .pages = 20}},
        .where = {.column = 1, .op = "=", .value = "x"},
        .asked = {true, true},
    };
    f->plan = (struct spate_plan_table){.table = make_table("text", 25),
                                        .asked = f->asked,
                                        .leaves = f->leaves,
                                        .leaf_count = 2,
                                        .where = &f->where,
                                        .where_count = 1};
    f->table = (struct spate_asked_table){.plan = &f->plan, .ends = f->ends};
}

static void drop(struct fixture *f)
{
    spate_table_free(f->plan.table);
}

/* The token of a table that is in the middle of its second leaf. */
static const char *middle(struct fixture *f, struct spate_buf *token)
{
    f->table.sent_leaf = 1;
    f->table.sent_next = SPATE_TID(7, 0);
    f->ends[1] = SPATE_TID(20, 0);
    f->table.rows = 12345;
    spate_token_write(&f->table, token);
    return spate_buf_str(token);
}

static void goes_on_where_it_stood(void **state)
{
    struct spate_buf token = {0};
    struct fixture f, later;

    (void)state;
    make(&f);
    make(&later);
    assert_int_equal(spate_token_read(&later.table, middle(&f, &token)), SPATE_TOKEN_FITS);
    assert_int_equal(later.table.leaf, 1);
    assert_int_equal(later.table.next, SPATE_TID(7, 0));
    assert_int_equal(later.table.ends[1], SPATE_TID(20, 0));
    assert_false(later.table.read);
    assert_int_equal(later.table.rows, 12345);
    spate_buf_fini(&token);
    drop(&f);
    drop(&later);
}

static void a_table_that_was_sent_stays_sent(void **state)
{
    struct spate_buf token = {0};
    struct fixture f, later;

    (void)state;
    make(&f);
    make(&later);
    f.table.sent_leaf = 2;
    spate_token_write(&f.table, &token);
    assert_int_equal(spate_token_read(&later.table, spate_buf_str(&token)), SPATE_TOKEN_FITS);
    assert_true(later.table.read && later.table.sent);
    spate_buf_fini(&token);
    drop(&f);
    drop(&later);
}

static void whatever_changed_begins_anew(void **state)
{
    struct spate_buf token = {0};
    struct fixture f, later;
    const char *text;

    (void)state;
    make(&f);
    text = middle(&f, &token);

    make(&later); /* TRUNCATE, VACUUM FULL, CLUSTER: another file */
    later.leaves[0].stamp = "9/x";
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&later.table, text));
    drop(&later);

    make(&later); /* dropped and made again under its name */
    later.leaves[1].oid = 7;
    assert_int_equal(SPATE_TOKEN_REPLACED, spate_token_read(&later.table, text));
    drop(&later);

    make(&later); /* a partition more or less */
    later.plan.leaf_count = 1;
    assert_int_equal(SPATE_TOKEN_REPLACED, spate_token_read(&later.table, text));
    drop(&later);

    make(&later); /* other columns */
    later.asked[1] = false;
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&later.table, text));
    drop(&later);

    make(&later); /* another condition */
    later.where.value = "y";
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&later.table, text));
    drop(&later);

    make(&later); /* another shape */
    spate_table_free(later.plan.table);
    later.plan.table = make_table("jsonb", 3802);
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&later.table, text));
    drop(&later);

    make(&later);
    assert_int_equal(later.table.leaf, 0); /* a refusal leaves it at its beginning */
    assert_int_equal(spate_token_read(&later.table, text), SPATE_TOKEN_FITS);
    drop(&later);
    spate_buf_fini(&token);
    drop(&f);
}

static void a_token_is_untrusted(void **state)
{
    static const char *const texts[] = {
        "",
        "1",
        "1:0:0:0:0:0:0",
        "2:zz:0:0:0:0:0:0",
        "2:0000000000000000:0000000000000000:0:0:0:0",
        "2:ffffffffffffffffff:ffffffffffffffffff:ffffffffffffffffffff:0:0:0:0"};
    struct spate_buf token = {0}, longer = {0};
    struct fixture f;

    (void)state;
    make(&f);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&f.table, texts[i]));
    spate_buf_printf(&longer, "%sx", middle(&f, &token));
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&f.table, spate_buf_str(&longer)));

    /* Its own, and out of the table: a leaf that is not there, a place behind the end. */
    spate_buf_reset(&token);
    f.table.sent_leaf = 3;
    f.table.sent_next = 0;
    spate_token_write(&f.table, &token);
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&f.table, spate_buf_str(&token)));
    spate_buf_reset(&token);
    f.table.sent_leaf = 0;
    f.table.sent_next = SPATE_TID(30, 0);
    spate_token_write(&f.table, &token);
    assert_int_equal(SPATE_TOKEN_ANEW, spate_token_read(&f.table, spate_buf_str(&token)));
    spate_buf_fini(&token);
    spate_buf_fini(&longer);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_where_it_stood),
        cmocka_unit_test(a_table_that_was_sent_stays_sent),
        cmocka_unit_test(whatever_changed_begins_anew),
        cmocka_unit_test(a_token_is_untrusted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
