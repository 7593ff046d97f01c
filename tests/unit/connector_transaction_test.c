/* Relations and transactions: what a Relation message means, numbers, ordinals, and the one change of
 * look-ahead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/transaction.h"
#include "core/buf.h"

static struct spate_relations relations;
static struct spate_transaction tx;
static struct spate_table *orders; /* id int4 key, note text; OID 100 */
static struct spate_err err;
static struct spate_buf bytes;

static struct spate_table *make_orders(enum spate_identity identity)
{
    bool full = identity == SPATE_IDENTITY_FULL;
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("orders"), identity, 2, 1);

    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("integer"), spate_slice_str(""),
                           23, -1, 4, true, SPATE_CLASS_INT);
    spate_table_set_column(table, 1, spate_slice_str("note"), spate_slice_str("text"), spate_slice_str(""),
                           25, -1, -1, full, SPATE_CLASS_TEXT);
    table->key[0] = 0;
    spate_table_seal(table);
    return table;
}

static int set_up(void **state)
{
    (void)state;
    err = (struct spate_err){0};
    orders = make_orders(SPATE_IDENTITY_DEFAULT);
    spate_relations_set(&relations, 100, orders, NULL);
    spate_transaction_start(&tx, spate_slice_str("shop"), 3, 41);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_transaction_fini(&tx);
    spate_relations_fini(&relations);
    spate_table_free(orders);
    return 0;
}

static void u8(unsigned v)
{
    spate_buf_putc(&bytes, (char)v);
}
static void u16(unsigned v)
{
    u8(v >> 8 & 0xff), u8(v & 0xff);
}
static void u32(uint32_t v)
{
    u16(v >> 16), u16(v & 0xffff);
}

/* "a|b" with \x01 for unchanged and \x02 for NULL. */
static void tuple(char kind, const char *columns)
{
    unsigned count = 1;

    for (const char *c = columns; *c; c++)
        count += *c == '|';
    u8((unsigned char)kind), u16(count);
    for (const char *c = columns; count > 0; count--) {
        size_t len = strcspn(c, "|");

        if (*c == 1) {
            u8('u');
        } else if (*c == 2) {
            u8('n');
        } else {
            u8('t'), u32((uint32_t)len), spate_buf_add(&bytes, c, len);
        }
        c += len + 1;
    }
}

static enum spate_rc send(char kind, uint32_t oid, const char *old, char old_kind, const char *new,
                          bool *taken)
{
    struct spate_pgoutput msg;
    char *buffer;

    spate_buf_reset(&bytes);
    u8((unsigned char)kind), u32(oid);
    if (old)
        tuple(old_kind, old);
    if (new)
        tuple('N', new);
    buffer = malloc(bytes.len);
    assert_non_null(buffer);
    memcpy(buffer, bytes.data, bytes.len);
    assert_int_equal(spate_pgoutput_decode(spate_slice(buffer, bytes.len), &msg, &err), SPATE_OK);
    enum spate_rc rc = spate_transaction_change(&tx, &relations, &msg, buffer, taken, &err);
    if (!*taken)
        free(buffer);
    return rc;
}

static void begin(uint64_t commit_lsn)
{
    struct spate_pgoutput msg = {.kind = SPATE_PGOUTPUT_BEGIN,
                                 .begin = {.commit_lsn = commit_lsn, .xid = 7, .commit_us = 99}};

    assert_int_equal(spate_transaction_begin(&tx, &msg, &err), SPATE_OK);
}

static enum spate_rc commit(uint64_t commit_lsn, uint64_t end)
{
    struct spate_pgoutput msg = {.kind = SPATE_PGOUTPUT_COMMIT,
                                 .commit = {.commit_lsn = commit_lsn, .end_lsn = end}};

    return spate_transaction_commit(&tx, &msg, &err);
}

static void P18_numbers_and_ordinals_count_every_change(void **state)
{
    bool taken;

    (void)state;
    begin(1000);
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_OK);
    assert_true(taken && tx.holding);
    assert_int_equal(tx.held.n, 42);
    assert_int_equal(tx.held.epoch, 3);
    assert_int_equal(tx.held.pos.commit_lsn, 1000);
    assert_int_equal(tx.held.pos.ordinal, 1);
    assert_int_equal(tx.held.xid, 7);
    spate_transaction_release(&tx);
    assert_int_equal(send('I', 100, NULL, 0, "2|b", &taken), SPATE_OK);
    assert_int_equal(tx.held.n, 43);
    assert_int_equal(tx.held.pos.ordinal, 2);
    spate_transaction_release(&tx);
    assert_int_equal(commit(1000, 1010), SPATE_OK);
    begin(1100);
    assert_int_equal(send('I', 100, NULL, 0, "3|c", &taken), SPATE_OK);
    assert_int_equal(tx.held.n, 44);
    assert_int_equal(tx.held.pos.ordinal, 1);
}

static void P41_an_old_key_says_not_sent_where_it_has_null(void **state)
{
    bool taken;

    (void)state;
    begin(1000);
    assert_int_equal(send('U', 100, "1|\x02", 'K', "2|\x01", &taken), SPATE_OK);
    assert_false(tx.held.before_full);
    assert_int_equal(tx.held.before[0].kind, SPATE_VALUE_TEXT);
    assert_int_equal(tx.held.before[1].kind, SPATE_VALUE_ABSENT);
    assert_int_equal(tx.held.after[1].kind, SPATE_VALUE_ABSENT); /* unchanged TOAST stays said (P42) */
}

static void P44_under_full_the_old_row_supplies_what_did_not_change(void **state)
{
    struct spate_table *full = make_orders(SPATE_IDENTITY_FULL);
    bool taken;

    (void)state;
    spate_relations_set(&relations, 101, full, NULL);
    begin(1000);
    assert_int_equal(send('U', 101, "1|long", 'O', "2|\x01", &taken), SPATE_OK);
    assert_true(tx.held.before_full);
    assert_int_equal(tx.held.after[1].kind, SPATE_VALUE_TEXT);
    assert_true(spate_slice_is(tx.held.after[1].text, "long"));
    spate_transaction_release(&tx);
    assert_int_equal(send('D', 101, "1|\x02", 'O', NULL, &taken), SPATE_OK);
    assert_int_equal(tx.held.before[1].kind, SPATE_VALUE_NULL); /* a whole row's NULL is NULL */
    assert_null(tx.held.after);
    spate_table_free(full);
}

static void what_does_not_fit_is_refused(void **state)
{
    bool taken;

    (void)state;
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_FAIL); /* no Begin */
    begin(1000);
    assert_int_equal(send('I', 999, NULL, 0, "1|a", &taken), SPATE_FAIL); /* no Relation (P30) */
    assert_non_null(strstr(err.text, "OID 999"));
    assert_int_equal(send('I', 100, NULL, 0, "1|a|b", &taken), SPATE_FAIL); /* three columns for two */
    assert_non_null(strstr(err.text, "public.orders"));
    assert_int_equal(err.lsn, 1000);
    assert_int_equal(commit(1001, 1010), SPATE_FAIL); /* another transaction's Commit */
    assert_int_equal(commit(1000, 1000), SPATE_FAIL);
    assert_int_equal(commit(1000, 1010), SPATE_OK);
    assert_int_equal(commit(1000, 1010), SPATE_FAIL);
    assert_int_equal(tx.next_n, 42); /* nothing of it took a number */
}

static void P15_transactions_before_the_epoch_get_no_number(void **state)
{
    bool taken;

    (void)state;
    tx.skip_below = 1000;
    begin(990);
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_OK);
    assert_false(taken || tx.holding);
    assert_int_equal(commit(990, 995), SPATE_OK);
    begin(1000);
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_OK);
    assert_true(taken);
    assert_int_equal(tx.held.n, 42);
}

static void numbers_align_with_the_oldest_record_that_retention_left(void **state)
{
    bool taken;

    (void)state;
    tx.has_align = true;
    tx.align = (struct spate_pos){1000, 2};
    begin(1000);
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_OK);
    assert_false(taken);
    assert_int_equal(send('I', 100, NULL, 0, "2|b", &taken), SPATE_OK);
    assert_true(taken);
    assert_int_equal(tx.held.n, 42);
    assert_false(tx.has_align);
}

static void P75_a_history_that_misses_the_oldest_record_is_fenced(void **state)
{
    bool taken;

    (void)state;
    tx.has_align = true;
    tx.align = (struct spate_pos){1000, 2};
    begin(1100);
    assert_int_equal(send('I', 100, NULL, 0, "1|a", &taken), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
}

/* ---- relations ---- */

static struct spate_pgoutput relation(char identity, const char *const *names, const bool *flags,
                                      uint16_t count)
{
    static char at[4096];
    struct spate_pgoutput msg;

    spate_buf_reset(&bytes);
    u8('R'), u32(100), spate_buf_add(&bytes, "public\0orders", 14), u8((unsigned char)identity), u16(count);
    for (uint16_t i = 0; i < count; i++) {
        u8(flags[i]), spate_buf_add(&bytes, names[i], strlen(names[i]) + 1);
        u32(i == 0 ? 23 : 25), u32((uint32_t)-1);
    }
    memcpy(at, bytes.data, bytes.len);
    assert_int_equal(spate_pgoutput_decode(spate_slice(at, bytes.len), &msg, &err), SPATE_OK);
    return msg;
}

static void a_relation_agrees_only_when_all_is_the_same(void **state)
{
    const char *names[] = {"id", "note"}, *renamed[] = {"id", "remark"}, *more[] = {"id", "note", "x"};
    const bool flags[] = {true, false, false}, other[] = {true, true};
    struct spate_pgoutput msg = relation('d', names, flags, 2);

    (void)state;
    assert_true(spate_relation_agrees(&msg, orders));
    msg = relation('d', renamed, flags, 2);
    assert_false(spate_relation_agrees(&msg, orders));
    msg = relation('d', more, flags, 3);
    assert_false(spate_relation_agrees(&msg, orders));
    msg = relation('f', names, flags, 2);
    assert_false(spate_relation_agrees(&msg, orders));
    msg = relation('d', names, other, 2);
    assert_false(spate_relation_agrees(&msg, orders));
}

static struct spate_table *built(char identity, const char *const *names, const bool *flags, uint16_t count,
                                 const struct spate_table *hint)
{
    static char type[] = "text", base[] = "";
    static struct spate_catalog_type types[8];
    struct spate_pgoutput msg = relation(identity, names, flags, count);

    for (size_t i = 0; i < 8; i++)
        types[i] = (struct spate_catalog_type){.name = type, .base = base, .len = -1, .base_oid = 25};
    return spate_relation_build(&msg, types, hint);
}

static void the_key_of_then_is_not_the_key_of_now(void **state)
{
    const char *names[] = {"a", "id", "b"};
    const bool one[] = {false, true, false}, two[] = {true, false, true}, all[] = {true, true, true};
    const bool none[] = {false, false, false};
    struct spate_table *table;

    (void)state;
    table = built('d', names, one, 3, orders); /* the same key, at another place */
    assert_int_equal(table->key_count, 1);
    assert_int_equal(table->key[0], 1);
    spate_table_free(table);
    table = built('d', names, two, 3, orders); /* the stream's flags win over the catalog's key */
    assert_int_equal(table->key_count, 2);
    assert_int_equal(table->key[0], 0);
    assert_int_equal(table->key[1], 2);
    spate_table_free(table);
    table =
        built('f', names, all, 3, orders); /* P45: under FULL the flags say nothing, the primary key does */
    assert_int_equal(table->key_count, 1);
    spate_table_free(table);
    table = built('f', names, all, 3, NULL);
    assert_int_equal(table->key_count, 0);
    spate_table_free(table);
    table =
        built('n', names, none, 3, orders); /* rows are only added, and the primary key tells them apart */
    assert_int_equal(table->key_count, 1);
    assert_int_equal(table->key[0], 1);
    spate_table_free(table);
    table = built('n', names, none, 3, NULL);
    assert_int_equal(table->key_count, 0);
    spate_table_free(table);
}

static void P30_the_latest_relation_replaces_the_cached_one(void **state)
{
    struct spate_table *newer = make_orders(SPATE_IDENTITY_FULL);

    (void)state;
    spate_relations_set(&relations, 100, newer, NULL);
    assert_ptr_equal(spate_relations_find(&relations, 100), newer);
    for (uint32_t oid = 1; oid < 1000; oid++)
        if (oid != 100)
            spate_relations_set(&relations, oid, orders, NULL);
    assert_ptr_equal(spate_relations_find(&relations, 100), newer);
    assert_ptr_equal(spate_relations_find(&relations, 999), orders);
    assert_null(spate_relations_find(&relations, 1000));
    spate_relations_start(&relations, NULL, 0); /* a reconnect drops it all */
    assert_null(spate_relations_find(&relations, 100));
    spate_table_free(newer);
}

static void a_version_is_found_by_its_shape(void **state)
{
    struct spate_versions *versions = spate_versions_new();
    const struct spate_table *first, *second, *again;
    bool fresh;

    (void)state;
    first = spate_versions_take(versions, make_orders(SPATE_IDENTITY_DEFAULT), &fresh);
    assert_true(fresh);
    assert_int_equal(first->v, 1);
    second = spate_versions_take(versions, make_orders(SPATE_IDENTITY_FULL), &fresh);
    assert_true(fresh);
    assert_int_equal(second->v, 2);
    again = spate_versions_take(versions, make_orders(SPATE_IDENTITY_DEFAULT), &fresh);
    assert_ptr_equal(again, first); /* seen before: the same v; it has no order */
    assert_true(fresh);             /* and published again: the last one published is the present one */
    again = spate_versions_take(versions, make_orders(SPATE_IDENTITY_DEFAULT), &fresh);
    assert_ptr_equal(again, first);
    assert_false(fresh);
    spate_versions_free(versions);
}

static void K15_a_version_that_was_given_twice_is_not_used_again(void **state)
{
    struct spate_versions *versions = spate_versions_new();
    struct spate_table *one = make_orders(SPATE_IDENTITY_DEFAULT), *other = make_orders(SPATE_IDENTITY_FULL);
    bool fresh;

    (void)state;
    one->v = other->v = 4;
    assert_true(spate_versions_take_known(versions, one));
    assert_false(spate_versions_take_known(versions, other));
    assert_int_equal(spate_versions_take(versions, make_orders(SPATE_IDENTITY_DEFAULT), &fresh)->v, 5);
    assert_true(fresh);
    assert_int_equal(spate_versions_take(versions, make_orders(SPATE_IDENTITY_FULL), &fresh)->v, 6);
    assert_true(fresh);
    spate_versions_free(versions);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(P18_numbers_and_ordinals_count_every_change),
        T(P41_an_old_key_says_not_sent_where_it_has_null),
        T(P44_under_full_the_old_row_supplies_what_did_not_change),
        T(what_does_not_fit_is_refused),
        T(P15_transactions_before_the_epoch_get_no_number),
        T(numbers_align_with_the_oldest_record_that_retention_left),
        T(P75_a_history_that_misses_the_oldest_record_is_fenced),
        T(a_relation_agrees_only_when_all_is_the_same),
        T(the_key_of_then_is_not_the_key_of_now),
        T(P30_the_latest_relation_replaces_the_cached_one),
        T(a_version_is_found_by_its_shape),
        T(K15_a_version_that_was_given_twice_is_not_used_again),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);

    spate_buf_fini(&bytes);
    return failed;
}
