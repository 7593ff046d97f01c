/* Folding (T10, T11, P42): what a run of changes to rows becomes, by hand-made cases, and against a model
 * that applies the same changes one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sinks/fold.h"
#include "sinks/projection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Used columns: id (the key), a (always comes), b (may come unchanged). */
static uint32_t key_at[] = {0};
static int maybe[] = {-1, -1, 0};
static struct spate_projection projection = {.index = 0}, other_projection = {.index = 3};
static const struct spate_version version = {.projection = &projection,
                                             .used_count = 3,
                                             .key_at = key_at,
                                             .key_count = 1,
                                             .maybe = maybe,
                                             .maybe_count = 1};
static const struct spate_version later = {.projection = &projection,
                                           .used_count = 3,
                                           .key_at = key_at,
                                           .key_count = 1,
                                           .maybe = maybe,
                                           .maybe_count = 1};
static const struct spate_version other = {.projection = &other_projection,
                                           .used_count = 3,
                                           .key_at = key_at,
                                           .key_count = 1,
                                           .maybe = maybe,
                                           .maybe_count = 1};

static struct spate_value text(const char *s)
{
    struct spate_value value = {.kind = s ? SPATE_VALUE_TEXT : SPATE_VALUE_ABSENT};

    if (s)
        value.text = spate_slice_str(s);
    return value;
}

enum { MOST = 64 };
static struct spate_value store[MOST][5];
static struct spate_item items[MOST];
static size_t count;

/* b NULL: it was not sent. old NULL: the key stayed. */
static void add(enum spate_op op, const char *key, const char *old, const char *a, const char *b)
{
    struct spate_value *v = store[count];

    v[0] = v[3] = text(key);
    v[1] = text(a);
    v[2] = text(b);
    v[4] = text(old);
    items[count] = (struct spate_item){.op = op,
                                       .n = count + 1,
                                       .version = &version,
                                       .key = &v[3],
                                       .old_key = old ? &v[4] : NULL,
                                       .values = op == SPATE_OP_DELETE ? NULL : v};
    count++;
}

static int reset(void **state)
{
    (void)state;
    count = 0;
    return 0;
}

static const struct spate_entry *entry(const struct spate_piece *piece, const char *key)
{
    for (size_t i = 0; i < piece->count; i++)
        if (spate_slice_is(piece->entries[i].key[0].text, key))
            return &piece->entries[i];
    return NULL;
}

static void assert_entry(const struct spate_piece *piece, const char *key, char op, const char *a,
                         const char *b)
{
    const struct spate_entry *e = entry(piece, key);

    assert_non_null(e);
    assert_int_equal(e->op, op);
    if (op == 'd') {
        assert_null(e->values);
        return;
    }
    assert_true(spate_slice_is(e->values[1].text, a));
    if (b)
        assert_true(e->values[2].kind == SPATE_VALUE_TEXT && spate_slice_is(e->values[2].text, b));
    else
        assert_int_equal(e->values[2].kind, SPATE_VALUE_ABSENT);
}

static void the_last_state_wins(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_INSERT, "1", NULL, "x", "big");
    add(SPATE_OP_UPDATE, "1", NULL, "y", "big2");
    add(SPATE_OP_UPDATE, "2", NULL, "z", "w");
    assert_int_equal(spate_fold(&piece, items, count), 3);
    assert_int_equal(piece.count, 2);
    assert_entry(&piece, "1", 'u', "y", "big2");
    assert_entry(&piece, "2", 'u', "z", "w");
    assert_true(entry(&piece, "1")->fresh);
    assert_false(entry(&piece, "2")->fresh);
    assert_int_equal(entry(&piece, "1")->n, 2);
    spate_piece_fini(&piece);
}

static void unsent_values_come_from_the_earlier_state(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_INSERT, "1", NULL, "x", "big");
    add(SPATE_OP_UPDATE, "1", NULL, "y", NULL);
    add(SPATE_OP_UPDATE, "2", NULL, "p", NULL);
    add(SPATE_OP_UPDATE, "2", NULL, "q", NULL);
    add(SPATE_OP_UPDATE, "3", NULL, "p", "b3");
    add(SPATE_OP_UPDATE, "3", NULL, "q", NULL);
    assert_int_equal(spate_fold(&piece, items, count), 6);
    assert_entry(&piece, "1", 'u', "y", "big");
    assert_entry(&piece, "2", 'p', "q", NULL);
    assert_entry(&piece, "3", 'u', "q", "b3");
    /* The items are as they were: a batch may be applied again. */
    assert_int_equal(items[1].values[2].kind, SPATE_VALUE_ABSENT);
    spate_piece_fini(&piece);
}

static void a_row_that_was_deleted_begins_anew(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_DELETE, "1", NULL, NULL, NULL);
    add(SPATE_OP_INSERT, "1", NULL, "new", "b");
    add(SPATE_OP_INSERT, "2", NULL, "x", "b");
    add(SPATE_OP_DELETE, "2", NULL, NULL, NULL);
    add(SPATE_OP_UPDATE, "1", NULL, "newer", NULL);
    assert_int_equal(spate_fold(&piece, items, count), 5);
    assert_entry(&piece, "1", 'r', "newer", "b");
    assert_entry(&piece, "2", 'd', NULL, NULL);
    assert_false(entry(&piece, "1")->fresh);
    assert_true(entry(&piece, "2")->fresh);
    spate_piece_fini(&piece);
}

static void whole_key_moves_fold(void **state)
{
    struct spate_piece piece = {0};

    (void)state; /* the rotation of T9: 1 -> 99, 2 -> 1, 99 -> 2 */
    add(SPATE_OP_UPDATE, "99", "1", "one", "b1");
    add(SPATE_OP_UPDATE, "1", "2", "two", "b2");
    add(SPATE_OP_UPDATE, "2", "99", "one", NULL);
    assert_int_equal(spate_fold(&piece, items, count), 3);
    assert_entry(&piece, "99", 'd', NULL, NULL);
    assert_entry(&piece, "1", 'r', "two", "b2");
    assert_entry(&piece, "2", 'r', "one", "b1");
    spate_piece_fini(&piece);
}

static void a_partial_key_move_stands_alone(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_INSERT, "5", NULL, "x", "b");
    add(SPATE_OP_UPDATE, "8", "7", "moved", NULL); /* P42: b is not in the message at all */
    add(SPATE_OP_UPDATE, "8", NULL, "after", NULL);
    assert_int_equal(spate_fold(&piece, items, count), 1);
    assert_int_equal(spate_fold(&piece, items + 1, count - 1), 1);
    assert_entry(&piece, "8", 'm', "moved", NULL);
    assert_true(spate_slice_is(piece.entries[0].old_key[0].text, "7"));
    assert_int_equal(spate_fold(&piece, items + 2, count - 2), 1);
    assert_entry(&piece, "8", 'p', "after", NULL);
    spate_piece_fini(&piece);
}

static void truncate_and_a_new_version_end_the_piece(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_INSERT, "1", NULL, "x", "b");
    add(SPATE_OP_TRUNCATE, "0", NULL, NULL, NULL);
    add(SPATE_OP_INSERT, "1", NULL, "y", "b");
    add(SPATE_OP_INSERT, "1", NULL, "z", "b");
    add(SPATE_OP_INSERT, "2", NULL, "z", "b");
    items[3].version = &other; /* another table: its key 1 is another row */
    items[4].version = &later;
    assert_int_equal(spate_fold(&piece, items, count), 1);
    assert_int_equal(spate_fold(&piece, items + 1, count - 1), 1);
    assert_int_equal(piece.kind, SPATE_PIECE_TRUNCATE);
    assert_ptr_equal(piece.truncate, &items[1]);
    assert_int_equal(spate_fold(&piece, items + 2, count - 2), 2);
    assert_int_equal(piece.kind, SPATE_PIECE_ROWS);
    assert_int_equal(piece.count, 2);
    assert_int_equal(spate_fold(&piece, items + 4, count - 4), 1);
    spate_piece_fini(&piece);
}

/* A table by keys 0..KEYS-1; what a target does with items one by one, and with pieces. */
enum { KEYS = 6 };
struct row {
    bool there;
    char a[16], b[16];
};

static int key_of(const struct spate_value *value)
{
    return atoi(value->text.at);
}

static void put(struct row *row, const struct spate_value *values)
{
    row->there = true;
    snprintf(row->a, sizeof row->a, "%.*s", SPATE_SLICE_ARG(values[1].text));
    if (values[2].kind == SPATE_VALUE_TEXT)
        snprintf(row->b, sizeof row->b, "%.*s", SPATE_SLICE_ARG(values[2].text));
}

static void apply_singly(struct row *rows, const struct spate_item *item)
{
    struct row *row = &rows[key_of(item->key)];

    if (item->op == SPATE_OP_DELETE) {
        *row = (struct row){0};
    } else if (item->op == SPATE_OP_TRUNCATE) {
        memset(rows, 0, KEYS * sizeof *rows);
    } else {
        if (item->old_key) {
            *row = rows[key_of(item->old_key)];
            rows[key_of(item->old_key)] = (struct row){0};
        }
        put(row, item->values);
    }
}

static void apply_piece(struct row *rows, const struct spate_piece *piece)
{
    if (piece->kind == SPATE_PIECE_TRUNCATE)
        memset(rows, 0, KEYS * sizeof *rows);
    for (size_t i = 0; piece->kind == SPATE_PIECE_ROWS && i < piece->count; i++)
        if (piece->entries[i].op == SPATE_ENTRY_DELETE || piece->entries[i].op == SPATE_ENTRY_REPLACE)
            rows[key_of(piece->entries[i].key)] = (struct row){0};
    for (size_t i = 0; piece->kind == SPATE_PIECE_ROWS && i < piece->count; i++) {
        const struct spate_entry *e = &piece->entries[i];
        struct row *row = &rows[key_of(e->key)];

        if (e->op == SPATE_ENTRY_MOVE) {
            *row = rows[key_of(e->old_key)];
            rows[key_of(e->old_key)] = (struct row){0};
        } else if (e->op == SPATE_ENTRY_PARTIAL) {
            assert_true(row->there);
        }
        if (e->op == SPATE_ENTRY_UPSERT || e->op == SPATE_ENTRY_REPLACE)
            assert_int_equal(e->values[2].kind, SPATE_VALUE_TEXT); /* an upsert invents nothing */
        if (e->op != SPATE_ENTRY_DELETE)
            put(row, e->values);
    }
}

static const char *const names[KEYS] = {"0", "1", "2", "3", "4", "5"};
static const char *const values[] = {"v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7"};

/* One change that the source could have made to `rows`. */
static void add_random(struct row *rows, unsigned *seed)
{
    int key = rand_r(seed) % KEYS, to = rand_r(seed) % KEYS;
    const char *a = values[rand_r(seed) % 8], *b = rand_r(seed) % 2 ? values[rand_r(seed) % 8] : NULL;

    if (rand_r(seed) % 40 == 0)
        add(SPATE_OP_TRUNCATE, "0", NULL, NULL, NULL);
    else if (!rows[key].there)
        add(SPATE_OP_INSERT, names[key], NULL, a, b ? b : "ins");
    else if (rand_r(seed) % 4 == 0)
        add(SPATE_OP_DELETE, names[key], NULL, NULL, NULL);
    else if (rand_r(seed) % 3 == 0 && to != key && !rows[to].there)
        add(SPATE_OP_UPDATE, names[to], names[key], a, b);
    else
        add(SPATE_OP_UPDATE, names[key], NULL, a, b);
    apply_singly(rows, &items[count - 1]);
}

static void folded_equals_one_by_one(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    for (unsigned run = 1; run <= 20000; run++) {
        struct row expected[KEYS] = {0}, rows[KEYS] = {0};
        unsigned seed = run;
        size_t at = 0;

        count = 0;
        while (count < 40)
            add_random(expected, &seed);
        while (at < count) { /* batches end anywhere */
            size_t end = at + 1 + (size_t)rand_r(&seed) % (count - at);
            while (at < end) {
                size_t folded = spate_fold(&piece, items + at, end - at);
                assert_true(folded > 0);
                apply_piece(rows, &piece);
                at += folded;
            }
        }
        for (int k = 0; k < KEYS; k++) {
            assert_int_equal(rows[k].there, expected[k].there);
            assert_string_equal(rows[k].a, expected[k].a);
            assert_string_equal(rows[k].b, expected[k].b);
        }
    }
    spate_piece_fini(&piece);
}

static void a_large_piece_leaves_a_small_one_clean(void **state)
{
    enum { MANY = 5000 };
    static struct spate_item many[MANY];
    static struct spate_value held[MANY][4];
    static char keys[MANY][16];
    struct spate_piece piece = {0};

    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(keys[i], sizeof keys[i], "%d", i);
        held[i][0] = held[i][3] = text(keys[i]);
        held[i][1] = held[i][2] = text("v");
        many[i] = (struct spate_item){
            .op = SPATE_OP_INSERT, .n = 1, .version = &version, .key = &held[i][3], .values = held[i]};
    }
    assert_int_equal(spate_fold(&piece, many, MANY), MANY);
    assert_int_equal(piece.count, MANY);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(spate_fold(&piece, many + i, 1), 1);
        assert_int_equal(piece.count, 1);
        assert_true(piece.entries[0].fresh);
        assert_int_equal(piece.entries[0].op, SPATE_ENTRY_UPSERT);
    }
    assert_int_equal(spate_fold(&piece, many, MANY), MANY);
    assert_int_equal(piece.count, MANY);
    spate_piece_fini(&piece);
}

static void a_row_of_a_snapshot_may_have_been_there(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_READ, "1", NULL, "x", "big");
    add(SPATE_OP_UPDATE, "1", NULL, "y", NULL);
    add(SPATE_OP_UPDATE, "2", NULL, "p", NULL);
    add(SPATE_OP_READ, "2", NULL, "q", "b2");
    add(SPATE_OP_DELETE, "3", NULL, NULL, NULL);
    add(SPATE_OP_READ, "3", NULL, "again", "b3");
    add(SPATE_OP_READ, "4", NULL, "gone", "b4");
    add(SPATE_OP_DELETE, "4", NULL, NULL, NULL);
    assert_int_equal(spate_fold(&piece, items, count), count);
    assert_entry(&piece, "1", 'u', "y", "big");
    assert_entry(&piece, "2", 'u', "q", "b2");
    assert_entry(&piece, "3", 'r', "again", "b3");
    assert_entry(&piece, "4", 'd', NULL, NULL);
    for (size_t i = 0; i < piece.count; i++)
        assert_false(piece.entries[i].fresh);
    spate_piece_fini(&piece);
}

/* A partial change before an answer and one after it end differently: the order has to be kept. */
static void answered_keys_stand_among_themselves(void **state)
{
    struct spate_piece piece = {0};

    (void)state;
    add(SPATE_OP_UPDATE, "1", NULL, "p", NULL);
    add(SPATE_OP_CHUNK, "1", NULL, NULL, NULL);
    add(SPATE_OP_CHUNK, "2", NULL, NULL, NULL);
    add(SPATE_OP_UPDATE, "1", NULL, "q", NULL);
    for (size_t i = 1; i < 3; i++)
        items[i].values = NULL;
    assert_int_equal(spate_fold(&piece, items, count), 1);
    assert_false(piece.answers);
    assert_int_equal(spate_fold(&piece, items + 1, count - 1), 2);
    assert_true(piece.answers);
    assert_int_equal(piece.count, 2);
    assert_int_equal(entry(&piece, "1")->op, 'k');
    assert_null(entry(&piece, "2")->values);
    assert_int_equal(spate_fold(&piece, items + 3, count - 3), 1);
    assert_false(piece.answers);
    assert_entry(&piece, "1", 'p', "q", NULL);
    spate_piece_fini(&piece);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_last_state_wins, reset),
        cmocka_unit_test_setup(unsent_values_come_from_the_earlier_state, reset),
        cmocka_unit_test_setup(a_row_that_was_deleted_begins_anew, reset),
        cmocka_unit_test_setup(whole_key_moves_fold, reset),
        cmocka_unit_test_setup(a_partial_key_move_stands_alone, reset),
        cmocka_unit_test_setup(truncate_and_a_new_version_end_the_piece, reset),
        cmocka_unit_test_setup(folded_equals_one_by_one, reset),
        cmocka_unit_test_setup(a_large_piece_leaves_a_small_one_clean, reset),
        cmocka_unit_test_setup(a_row_of_a_snapshot_may_have_been_there, reset),
        cmocka_unit_test_setup(answered_keys_stand_among_themselves, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
