/* H (docs/hazards.md, snapshots): which delivered transactions a snapshot misses, and the keys they touched;
 * against a naive list as well. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "connector/hidden.h"

static struct spate_hidden *hidden;
static struct spate_err err;

static int set_up(void **state)
{
    (void)state;
    err = (struct spate_err){0};
    hidden = spate_hidden_new(1000);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_hidden_free(hidden);
    return 0;
}

static struct spate_snapshot at(const char *text)
{
    struct spate_snapshot snapshot;

    assert_int_equal(spate_snapshot_parse(text, &snapshot, &err), SPATE_OK);
    return snapshot;
}

static bool sees(const char *text, uint32_t xid)
{
    struct spate_snapshot snapshot = at(text);
    bool answer = spate_snapshot_sees(&snapshot, xid);

    spate_snapshot_fini(&snapshot);
    return answer;
}

static void touch(uint32_t table, const char *key)
{
    spate_hidden_touch(hidden, table, spate_slice_str(key));
}

static void transaction(uint32_t xid, uint64_t lsn, uint32_t table, const char *key)
{
    spate_hidden_begin(hidden, xid, lsn);
    if (key)
        touch(table, key);
    spate_hidden_commit(hidden);
}

static void prune(const char *text)
{
    struct spate_snapshot snapshot = at(text);

    spate_hidden_prune(hidden, &snapshot);
    spate_snapshot_fini(&snapshot);
}

static bool touched(const char *text, uint32_t table, const char *key)
{
    struct spate_snapshot snapshot = at(text);
    struct spate_touched set;
    bool answer;

    spate_hidden_touched(hidden, &snapshot, table, &set);
    answer = spate_touched_has(&set, spate_slice_str(key));
    spate_touched_fini(&set);
    spate_snapshot_fini(&snapshot);
    return answer;
}

static uint32_t missed(const char *text, uint64_t lsn)
{
    struct spate_snapshot snapshot = at(text);
    uint32_t xid = 0;
    bool answer = spate_hidden_missed(hidden, &snapshot, lsn, &xid);

    spate_snapshot_fini(&snapshot);
    return answer ? xid : 0;
}

/* ---- snapshots ---- */

static void a_snapshot_is_read(void **state)
{
    (void)state;
    struct spate_snapshot one = at("10:20:10,14,15"), other;

    assert_int_equal(one.xmin, 10);
    assert_int_equal(one.xmax, 20);
    assert_int_equal(one.count, 3);
    assert_int_equal(one.xip[2], 15);
    spate_snapshot_copy(&other, &one);
    spate_snapshot_fini(&one);
    assert_int_equal(other.xip[1], 14);
    spate_snapshot_fini(&other);
    one = at("18446744073709551615:18446744073709551615:");
    assert_int_equal(one.count, 0);
    spate_snapshot_copy(&other, &one);
    assert_null(other.xip);
    spate_snapshot_fini(&other);
}

static void what_is_no_snapshot_is_refused(void **state)
{
    static const char *const wrong[] = {"",        "10",          "10:20",       "20:10:",
                                        "10:20:9", "10:20:20",    "10:20:12,",   "10:20:,12",
                                        "a:20:",   "10:20:14,13", "10:20:14,14", "10:20:14 ",
                                        "-1:20:",  "10::",        "10:20:0x1",   "10:18446744073709551616:"};
    struct spate_snapshot snapshot;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (spate_snapshot_parse(wrong[i], &snapshot, &err) != SPATE_FAIL)
            fail_msg("\"%s\" was taken", wrong[i]);
        assert_non_null(strstr(err.text, wrong[i]));
        assert_null(snapshot.xip);
    }
}

static void P91_a_snapshot_sees_what_is_over(void **state)
{
    (void)state;
    assert_true(sees("10:20:10,14,15", 9));
    assert_false(sees("10:20:10,14,15", 10));
    assert_true(sees("10:20:10,14,15", 11));
    assert_false(sees("10:20:10,14,15", 14));
    assert_false(sees("10:20:10,14,15", 15));
    assert_true(sees("10:20:10,14,15", 16));
    assert_true(sees("10:20:10,14,15", 19));
    assert_false(sees("10:20:10,14,15", 20));
    assert_false(sees("10:20:10,14,15", 21));
    assert_true(sees("20:20:", 19));
    assert_false(sees("20:20:", 20));
}

/* Measured on a standby of 15: it says 725:729: while 725 runs on the primary. */
static void P91_a_standby_is_not_believed(void **state)
{
    struct spate_snapshot snapshot = at("725:729:");

    (void)state;
    assert_true(spate_snapshot_sees(&snapshot, 725));
    spate_snapshot_doubt(&snapshot);
    assert_false(spate_snapshot_sees(&snapshot, 725));
    assert_false(spate_snapshot_sees(&snapshot, 728));
    assert_true(spate_snapshot_sees(&snapshot, 724));
    spate_snapshot_fini(&snapshot);
}

static void P21_xids_are_widened_near_xmax(void **state)
{
    static const struct {
        uint64_t xmax;
        uint32_t xid;
        uint64_t wide;
    } cases[] = {
        {1000, 999, 999},
        {1000, 1000, 1000},
        {1000, 1001, 1001},
        {0x100000005, 0xfffffffe, 0xfffffffe},
        {0x100000005, 3, 0x100000003},
        {0x1fffffffe, 3, 0x200000003}, /* after the wrap, behind an xmax from before it */
        {0x1fffffffe, 0xfffffffd, 0x1fffffffd},
        {0x700000000, 0xffffffff, 0x6ffffffff},
        {0x700000000, 0x80000000, 0x680000000},
        {0x700000000, 0x7fffffff, 0x77fffffff},
        {1000, 0xfffffff0, 0xfffffff0}, /* nothing came before the first */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spate_snapshot snapshot = {.xmin = cases[i].xmax, .xmax = cases[i].xmax};
        uint64_t wide = spate_snapshot_widen(&snapshot, cases[i].xid);

        if (wide != cases[i].wide)
            fail_msg("case %zu: %llx", i, (unsigned long long)wide);
    }
    assert_false(sees("4294967290:4294967300:4294967294,4294967298", 0xfffffffe));
    assert_true(sees("4294967290:4294967300:4294967294,4294967298", 0xffffffff));
    assert_false(sees("4294967290:4294967300:4294967294,4294967298", 2));
    assert_true(sees("4294967290:4294967300:4294967294,4294967298", 3));
    assert_false(sees("4294967290:4294967300:4294967294,4294967298", 4));
}

/* ---- the list ---- */

static void P91_keys_of_a_missed_transaction_are_touched(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    transaction(14, 200, 1, "b");
    transaction(12, 300, 2, "a");
    transaction(13, 400, 0, NULL);
    assert_false(touched("14:15:14", 1, "a"));
    assert_true(touched("14:15:14", 1, "b"));
    assert_false(touched("14:15:14", 1, "c"));
    assert_false(touched("14:15:14", 2, "a"));
    assert_true(touched("12:15:12", 2, "a"));
    assert_false(touched("12:15:12", 1, "b"));
    assert_true(touched("10:11:", 1, "a"));
    assert_true(touched("10:11:", 1, "b"));
}

static void one_that_was_delivered_before_the_request_is_missed(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    transaction(14, 200, 1, "b");
    transaction(12, 300, 2, "a");
    assert_int_equal(missed("11:15:11,14", 99), 0);
    assert_int_equal(missed("11:15:11,14", 100), 11);
    assert_int_equal(missed("14:15:14", 199), 0);
    assert_int_equal(missed("14:15:14", 200), 14);
    assert_int_equal(missed("12:15:12", 299), 0);
    assert_int_equal(missed("15:15:", UINT64_MAX), 0);
    assert_int_equal(missed("13:13:", UINT64_MAX), 14);
}

static void an_open_transaction_does_not_count(void **state)
{
    (void)state;
    spate_hidden_begin(hidden, 30, 100);
    touch(1, "a");
    assert_false(touched("20:20:", 1, "a"));
    assert_int_equal(missed("20:20:", 100), 0);
    assert_int_equal(spate_hidden_count(hidden), 0);
    spate_hidden_begin(hidden, 31, 200); /* the first one never came to its end: another session */
    touch(1, "b");
    spate_hidden_commit(hidden);
    assert_false(touched("20:20:", 1, "a"));
    assert_true(touched("20:20:", 1, "b"));
    assert_int_equal(missed("20:20:", 200), 31);
}

static void what_a_snapshot_sees_is_pruned(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    transaction(14, 200, 1, "b");
    transaction(12, 300, 2, "c");
    prune("14:15:14");
    assert_int_equal(spate_hidden_count(hidden), 1);
    assert_true(touched("10:10:", 1, "b"));
    assert_false(touched("10:10:", 1, "a"));
    prune("15:15:");
    assert_int_equal(spate_hidden_count(hidden), 0);
    assert_int_equal(spate_hidden_bytes(hidden), 0);
}

static void pruning_leaves_the_open_transaction(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    spate_hidden_begin(hidden, 12, 200);
    touch(1, "b");
    prune("100:100:");
    touch(1, "c");
    spate_hidden_commit(hidden);
    assert_int_equal(spate_hidden_count(hidden), 1);
    assert_true(touched("12:13:12", 1, "b"));
    assert_true(touched("12:13:12", 1, "c"));
}

static void a_truncate_touches_every_row(void **state)
{
    (void)state;
    spate_hidden_begin(hidden, 11, 100);
    touch(1, "a");
    touch(2, "b");
    spate_hidden_touch_all(hidden, 1);
    touch(1, "c");
    spate_hidden_commit(hidden);
    transaction(12, 200, 1, "d");
    assert_true(touched("11:12:11", 1, "z"));
    assert_false(touched("12:13:12", 1, "z")); /* only in the transaction that did it */
    assert_true(touched("12:13:12", 1, "d"));
    assert_false(touched("11:12:11", 2, "z"));
    assert_true(touched("11:12:11", 2, "b"));
}

static void a_transaction_beyond_the_cap_touches_every_row(void **state)
{
    char key[16];

    (void)state;
    transaction(10, 50, 1, "kept");
    spate_hidden_begin(hidden, 11, 100);
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "key %d", i);
        touch(1, key);
        assert_true(spate_hidden_bytes(hidden) <= 1000 + 64);
    }
    touch(2, "b"); /* there is room again */
    spate_hidden_commit(hidden);
    assert_true(touched("11:12:11", 1, "any"));
    assert_true(touched("11:12:11", 2, "b"));
    assert_false(touched("11:12:11", 2, "any"));
    assert_true(touched("10:12:10", 1, "kept"));
    assert_false(touched("10:12:10", 1, "any"));
    assert_true(spate_hidden_bytes(hidden) < 100);
    prune("12:12:");
    assert_int_equal(spate_hidden_bytes(hidden), 0);
    transaction(13, 200, 1, "a");
    assert_true(touched("13:14:13", 1, "a"));
    assert_false(touched("13:14:13", 1, "any"));
}

static void without_room_every_row_is_touched(void **state)
{
    (void)state;
    spate_hidden_free(hidden);
    hidden = spate_hidden_new(0);
    for (uint32_t i = 0; i < 100; i++)
        transaction(11 + i, 100 + i, i % 7, "a");
    for (uint32_t i = 0; i < 7; i++)
        assert_true(touched("11:11:", i, "z"));
    assert_false(touched("11:11:", 7, "z"));
}

static void a_table_is_forgotten(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    spate_hidden_begin(hidden, 12, 200);
    touch(1, "b");
    touch(2, "c");
    touch(1, "d");
    spate_hidden_commit(hidden);
    spate_hidden_begin(hidden, 13, 300);
    touch(2, "e");
    spate_hidden_touch_all(hidden, 1);
    spate_hidden_forget(hidden, 1);
    touch(1, "f"); /* somebody asks again */
    spate_hidden_commit(hidden);
    assert_false(touched("11:11:", 1, "a"));
    assert_false(touched("11:11:", 1, "b"));
    assert_true(touched("11:11:", 1, "f"));
    assert_true(touched("11:11:", 2, "c"));
    assert_true(touched("11:11:", 2, "e"));
    assert_int_equal(missed("11:11:", 100), 11); /* the transactions stay */
    spate_hidden_forget(hidden, 1);
    spate_hidden_forget(hidden, 2);
    assert_int_equal(spate_hidden_bytes(hidden), 0);
    assert_int_equal(spate_hidden_count(hidden), 3);
}

static void a_new_session_knows_nothing(void **state)
{
    (void)state;
    transaction(11, 100, 1, "a");
    spate_hidden_begin(hidden, 12, 200);
    spate_hidden_touch_all(hidden, 1);
    spate_hidden_clear(hidden);
    assert_int_equal(spate_hidden_count(hidden), 0);
    assert_int_equal(spate_hidden_bytes(hidden), 0);
    assert_int_equal(missed("11:11:", UINT64_MAX), 0);
    transaction(12, 200, 1, "b");
    assert_false(touched("11:11:", 1, "a"));
    assert_true(touched("11:11:", 1, "b"));
}

/* Keys with any bytes, many times the same one, and empty ones. */
static void keys_are_bytes(void **state)
{
    struct spate_snapshot snapshot = at("11:11:");
    struct spate_touched set;

    (void)state;
    spate_hidden_begin(hidden, 11, 100);
    for (int i = 0; i < 20; i++) {
        spate_hidden_touch(hidden, 1, spate_slice("a\0b", 3));
        spate_hidden_touch(hidden, 1, spate_slice("", 0));
    }
    spate_hidden_commit(hidden);
    spate_hidden_touched(hidden, &snapshot, 1, &set);
    assert_int_equal(set.count, 2);
    assert_false(set.all);
    assert_true(spate_touched_has(&set, spate_slice("a\0b", 3)));
    assert_false(spate_touched_has(&set, spate_slice("a\0c", 3)));
    assert_false(spate_touched_has(&set, spate_slice("a", 1)));
    assert_true(spate_touched_has(&set, spate_slice("", 0)));
    spate_touched_fini(&set);
}

static void a_key_is_its_columns_in_key_order(void **state)
{
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 3, 2);
    struct spate_value one[3] = {{SPATE_VALUE_TEXT, spate_slice_str("b")},
                                 {SPATE_VALUE_NULL, spate_slice("", 0)},
                                 {SPATE_VALUE_TEXT, spate_slice_str("ab")}};
    struct spate_value other[3] = {{SPATE_VALUE_TEXT, spate_slice_str("bb")},
                                   {SPATE_VALUE_ABSENT, spate_slice("", 0)},
                                   {SPATE_VALUE_TEXT, spate_slice_str("a")}};
    struct spate_buf a = {0}, b = {0};

    (void)state;
    table->key[0] = 2;
    table->key[1] = 0;
    spate_hidden_key(&a, table, one);
    spate_hidden_key(&b, table, other);
    assert_int_equal(a.len, 2 * sizeof(uint32_t) + 3);
    assert_false(spate_slice_eq(spate_buf_view(&a), spate_buf_view(&b))); /* "ab","b" is not "a","bb" */
    spate_buf_reset(&b);
    other[0].text = spate_slice_str("b");
    other[2].text = spate_slice_str("ab");
    spate_hidden_key(&b, table, other);
    assert_true(spate_slice_eq(spate_buf_view(&a), spate_buf_view(&b)));
    spate_buf_fini(&a);
    spate_buf_fini(&b);
    spate_table_free(table);
}

/* Postgres prints t and f; a key that was asked for in a message says true and false. */
static void a_boolean_key_has_two_spellings(void **state)
{
    static const char *const texts[4] = {"t", "true", "f", "false"};
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);
    struct spate_buf keys[4] = {{0}};

    (void)state;
    spate_table_set_column(table, 0, spate_slice_str("b"), spate_slice_str("boolean"), spate_slice_str(""),
                           16, -1, 1, true, SPATE_CLASS_BOOL);
    for (size_t i = 0; i < 4; i++) {
        struct spate_value value = {SPATE_VALUE_TEXT, spate_slice_str(texts[i])};

        spate_hidden_key(&keys[i], table, &value);
    }
    assert_true(spate_slice_eq(spate_buf_view(&keys[0]), spate_buf_view(&keys[1])));
    assert_true(spate_slice_eq(spate_buf_view(&keys[2]), spate_buf_view(&keys[3])));
    assert_false(spate_slice_eq(spate_buf_view(&keys[0]), spate_buf_view(&keys[2])));
    for (size_t i = 0; i < 4; i++)
        spate_buf_fini(&keys[i]);
    spate_table_free(table);
}

/* A source that answers nothing for millions of transactions: what is held stays bounded, and never says less
 * than is so. */
static void a_very_long_list_is_merged(void **state)
{
    const uint32_t start = 0xfff00000; /* across the wrap of 32 bits */
    char text[64];

    (void)state;
    for (uint32_t i = 0; i < 3000000; i++)
        transaction(start + (i ^ 5), 1000 + i, 1, i == 77 ? "x" : i == 2999999 ? "y" : NULL);
    assert_true(spate_hidden_count(hidden) <= 1 << 20);
    snprintf(text, sizeof text, "%llu:%llu:", (unsigned long long)start, (unsigned long long)start);
    assert_true(touched(text, 1, "x"));
    assert_true(touched(text, 1, "y"));
    assert_false(touched(text, 1, "z"));
    assert_int_not_equal(missed(text, 1000), 0);
    assert_int_equal(missed(text, 999), 0);
    snprintf(text, sizeof text, "%llu:%llu:%llu", (unsigned long long)start + 72,
             (unsigned long long)start + 5000000, (unsigned long long)start + (77 ^ 5));
    assert_int_equal(missed(text, UINT64_MAX), start + (77 ^ 5));
    prune(text);
    assert_int_equal(spate_hidden_count(hidden), 1);
    assert_true(touched(text, 1, "x"));
    assert_false(touched(text, 1, "y"));
    snprintf(text, sizeof text, "%llu:%llu:", (unsigned long long)start + 5000000,
             (unsigned long long)start + 5000000);
    prune(text);
    assert_int_equal(spate_hidden_count(hidden), 0);
    assert_int_equal(spate_hidden_bytes(hidden), 0);
}

/* ---- against a naive list ---- */

enum { XIDS = 60, KEYS = 8, TABLES = 3 };

struct naive {
    bool delivered, all[TABLES], keys[TABLES][KEYS];
    uint64_t lsn;
};

static void compare(const struct naive *naive, const char *text, uint32_t base)
{
    struct spate_snapshot snapshot = at(text);
    uint32_t xid;

    for (uint32_t t = 0; t < TABLES; t++) {
        struct spate_touched set;

        spate_hidden_touched(hidden, &snapshot, t, &set);
        for (uint32_t k = 0; k < KEYS; k++) {
            char key[8];
            bool wanted = false;

            snprintf(key, sizeof key, "k%u", k);
            for (uint32_t x = 0; x < XIDS; x++)
                wanted |= naive[x].delivered && (naive[x].all[t] || naive[x].keys[t][k]) &&
                          !spate_snapshot_sees(&snapshot, base + x);
            assert_int_equal(spate_touched_has(&set, spate_slice_str(key)), wanted);
        }
        spate_touched_fini(&set);
    }
    for (uint64_t lsn = 0; lsn <= XIDS; lsn += 7) {
        bool wanted = false;

        for (uint32_t x = 0; x < XIDS; x++)
            wanted |= naive[x].delivered && naive[x].lsn <= lsn && !spate_snapshot_sees(&snapshot, base + x);
        assert_int_equal(spate_hidden_missed(hidden, &snapshot, lsn, &xid), wanted);
    }
    spate_snapshot_fini(&snapshot);
}

/* A snapshot in which those of `over` are over. */
static void snapshot_text(const bool *over, uint64_t base, char *out, size_t size)
{
    uint64_t xmin = base, xmax = base;
    int len;

    for (uint32_t x = 0; x < XIDS; x++)
        if (over[x])
            xmax = base + x + 1;
    while (xmin < xmax && over[xmin - base])
        xmin++;
    len = snprintf(out, size, "%llu:%llu:", (unsigned long long)xmin, (unsigned long long)xmax);
    for (uint64_t x = xmin; x < xmax; x++)
        if (!over[x - base])
            len += snprintf(out + len, size - (size_t)len, "%s%llu", out[len - 1] == ':' ? "" : ",",
                            (unsigned long long)x);
}

static void a_naive_list_says_the_same(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 300; seed++) {
        struct naive naive[XIDS] = {{0}};
        bool over[XIDS] = {false};
        uint64_t base = seed % 2 ? 700 : UINT64_C(0x2ffffffe0);
        char text[XIDS * 16];

        srand(seed);
        spate_hidden_clear(hidden);
        for (uint32_t step = 0; step < XIDS; step++) {
            uint32_t x = (uint32_t)rand() % XIDS;

            if (!naive[x].delivered && !over[x]) {
                naive[x].delivered = true;
                naive[x].lsn = step;
                spate_hidden_begin(hidden, (uint32_t)base + x, step);
                for (int i = rand() % 4; i > 0; i--) {
                    uint32_t t = (uint32_t)rand() % TABLES, k = (uint32_t)rand() % KEYS;
                    char key[8];

                    snprintf(key, sizeof key, "k%u", k);
                    touch(t, key);
                    naive[x].keys[t][k] = true;
                    if (rand() % 20 == 0) {
                        spate_hidden_touch_all(hidden, t);
                        naive[x].all[t] = true;
                    }
                }
                spate_hidden_commit(hidden);
            }
            over[(uint32_t)rand() % XIDS] = true;
            snapshot_text(over, base, text, sizeof text);
            compare(naive, text, (uint32_t)base);
            if (rand() % 4 == 0)
                prune(text);
        }
    }
}

/* Postgres says t, a message true: asked for again by a message, the key must still be known as touched. */
static void a_boolean_key_is_one_key_in_both_spellings(void **state)
{
    static const struct {
        const char *postgres, *message;
    } cases[] = {{"t", "true"}, {"f", "false"}};
    struct spate_slice empty = {0};
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);

    (void)state;
    spate_table_set_column(table, 0, spate_slice_str("b"), spate_slice_str("boolean"), empty, 16, -1, 1, true,
                           SPATE_CLASS_BOOL);
    table->key[0] = 0;
    spate_table_seal(table);
    for (size_t i = 0; i < 2; i++) {
        struct spate_value one = {.kind = SPATE_VALUE_TEXT, .text = spate_slice_str(cases[i].postgres)};
        struct spate_value other = {.kind = SPATE_VALUE_TEXT, .text = spate_slice_str(cases[i].message)};
        struct spate_buf a = {0}, b = {0};

        spate_hidden_key(&a, table, &one);
        spate_hidden_key(&b, table, &other);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);
        spate_buf_fini(&a);
        spate_buf_fini(&b);
    }
    spate_table_free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_snapshot_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_no_snapshot_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P91_a_snapshot_sees_what_is_over, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P91_a_standby_is_not_believed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P21_xids_are_widened_near_xmax, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P91_keys_of_a_missed_transaction_are_touched, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_that_was_delivered_before_the_request_is_missed, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(an_open_transaction_does_not_count, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_a_snapshot_sees_is_pruned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pruning_leaves_the_open_transaction, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_truncate_touches_every_row, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_transaction_beyond_the_cap_touches_every_row, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_room_every_row_is_touched, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_table_is_forgotten, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_session_knows_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(keys_are_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_key_is_its_columns_in_key_order, set_up, tear_down),
        cmocka_unit_test(a_boolean_key_is_one_key_in_both_spellings),
        cmocka_unit_test_setup_teardown(a_boolean_key_has_two_spellings, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_very_long_list_is_merged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_naive_list_says_the_same, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
