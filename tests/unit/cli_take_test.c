/* A requester that prints: which lines are handed out, when it asks again, and when it has everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/take.h"

#define META ",\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\""

struct fixture {
    struct spate_take take;
    struct spate_buf out, line;
    uint64_t n; /* of the last change that was fed */
    struct spate_err err;
    enum spate_rc rc;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    spate_take_init(&f->take, "me", "r1");
    spate_take_add(&f->take, spate_slice_str("public"), spate_slice_str("t"));
    f->n = 5;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_take_fini(&f->take);
    spate_buf_fini(&f->out);
    spate_buf_fini(&f->line);
    free(f);
    return 0;
}

__attribute__((format(printf, 2, 3))) static void feed(struct fixture *f, const char *fmt, ...)
{
    char text[1000];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    spate_buf_reset(&f->line);
    spate_buf_printf(&f->line, "{\"spate\":1,%s}", text);
    f->rc = spate_take_line(&f->take, spate_buf_view(&f->line), &f->out, &f->err);
}

#define ADDRESS ",\"to\":\"me\",\"request\":\"r1\""
#define TABLE   ",\"schema\":\"public\",\"table\":\"t\""

static void begin(struct fixture *f)
{
    feed(f,
         "\"op\":\"snapshot-begin\",\"at\":%d,\"epoch\":1" ADDRESS ",\"end\":\"0000000000000500\"" META
         ",\"tables\":[{\"schema\":\"public\",\"table\":\"t\"}]",
         (int)f->n);
    assert_int_equal(f->rc, SPATE_OK);
}

static void chunk(struct fixture *f, const char *by, int no, const char *what)
{
    feed(f, "\"op\":\"chunk\",\"at\":%d,\"epoch\":1" ADDRESS TABLE META ",\"v\":1,\"by\":\"%s\",\"no\":%d,%s",
         (int)f->n, by, no, what);
    assert_int_equal(f->rc, SPATE_OK);
}

#define RANGE "\"range\":{\"from\":\"(0,0)\",\"to\":\"(8,0)\"},\"dropped\":[]"

static void row(struct fixture *f, const char *by, int no, int id)
{
    feed(f,
         "\"op\":\"read\",\"at\":%d,\"epoch\":1" ADDRESS TABLE META
         ",\"v\":1,\"by\":\"%s\",\"no\":%d,\"key\":{\"id\":%d},\"after\":{\"id\":%d,\"row\":true}",
         (int)f->n, by, no, id, id);
    assert_int_equal(f->rc, SPATE_OK);
}

static void end_of_chunk(struct fixture *f, const char *by, int no, int count, const char *resume)
{
    feed(f,
         "\"op\":\"chunk-end\",\"at\":%d,\"epoch\":1" ADDRESS TABLE META
         ",\"v\":1,\"by\":\"%s\",\"no\":%d,\"count\":%d,\"resume\":\"%s\"",
         (int)f->n, by, no, count, resume);
    assert_int_equal(f->rc, SPATE_OK);
}

static void end_of_ranges(struct fixture *f, int chunks, const char *resume)
{
    feed(f,
         "\"op\":\"ranges-end\",\"at\":%d,\"epoch\":1" ADDRESS META
         ",\"tables\":[{\"schema\":\"public\",\"table\":\"t\",\"chunks\":%d,\"resume\":\"%s\"}]",
         (int)f->n, chunks, resume);
    assert_int_equal(f->rc, SPATE_OK);
}

/* A transaction of one change; `rest` follows the key. */
static void change_of(struct fixture *f, const char *op, const char *table, int id, const char *rest)
{
    f->n++;
    feed(f,
         "\"op\":\"%s\",\"n\":%d,\"epoch\":1,\"schema\":\"public\",\"table\":\"%s\",\"pos\":\"%016X."
         "00000001\","
         "\"end\":\"%016X\",\"xid\":7" META ",\"v\":1,\"key\":{\"id\":%d},%s",
         op, (int)f->n, table, 0x1000 * (unsigned)f->n, 0x1000 * (unsigned)f->n + 8, id, rest);
    assert_int_equal(f->rc, SPATE_OK);
}

#define WHOLE   "\"before\":null,\"after\":{\"id\":1},\"unchanged\":[]"
#define PARTIAL "\"before\":null,\"after\":{\"id\":1},\"unchanged\":[\"big\"]"
#define GONE    "\"before\":{\"id\":1},\"after\":null,\"unchanged\":[]"

static int printed(struct fixture *f, const char *what)
{
    int count = 0;

    for (const char *at = spate_buf_str(&f->out); (at = strstr(at, what)); at++)
        count++;
    return count;
}

static void rows_are_handed_out_chunk_by_chunk(void **state)
{
    struct fixture *f = *state;

    chunk(f, "aaaaaaaa", 1, RANGE); /* before its begin: of a life that is over */
    row(f, "aaaaaaaa", 1, 9);
    end_of_chunk(f, "aaaaaaaa", 1, 1, "x");
    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    row(f, "aaaaaaaa", 1, 1);
    row(f, "aaaaaaaa", 1, 2);
    assert_int_equal(f->out.len, 0);
    end_of_chunk(f, "aaaaaaaa", 1, 2, "t1");
    assert_int_equal(printed(f, "\"op\":\"read\""), 2);
    assert_false(spate_take_done(&f->take));
    chunk(f, "aaaaaaaa", 2,
          "\"range\":{\"from\":\"(8,0)\",\"to\":\"(9,0)\"},\"since\":\"t1\",\"dropped\":[]");
    end_of_chunk(f, "aaaaaaaa", 2, 0, "t2");
    end_of_ranges(f, 2, "t2");
    assert_true(spate_take_done(&f->take));
    assert_false(f->take.lost);
    assert_int_equal(f->take.count, 2);
    assert_string_equal(f->take.tables[0].resume, "t2");
    chunk(f, "aaaaaaaa", 3, RANGE); /* a rewrite behind the end: the table begins anew, and ends again */
    end_of_chunk(f, "aaaaaaaa", 3, 0, "t3");
    assert_false(spate_take_done(&f->take));
    end_of_ranges(f, 3, "t3");
    assert_true(spate_take_done(&f->take));
}

/* Names that came from a pattern. */
static void tables_that_are_not_read_are_left_out(void **state)
{
    struct fixture *f = *state;

    spate_take_add(&f->take, spate_slice_str("public"), spate_slice_str("gone"));
    begin(f);
    assert_int_equal(f->take.table_count, 1);
    assert_string_equal(f->take.tables[0].name, "t");
    end_of_ranges(f, 0, "");
    assert_true(spate_take_done(&f->take));
}

static void what_is_not_for_us_is_passed_by(void **state)
{
    struct fixture *f = *state;

    begin(f);
    feed(f, "\"op\":\"chunk\",\"at\":5,\"epoch\":1,\"to\":\"you\",\"request\":\"r1\"" TABLE META
            ",\"v\":1,\"by\":\"aaaaaaaa\",\"no\":7," RANGE);
    feed(f, "\"op\":\"chunk\",\"at\":5,\"epoch\":1,\"to\":\"me\",\"request\":\"r0\"" TABLE META
            ",\"v\":1,\"by\":\"aaaaaaaa\",\"no\":7," RANGE);
    assert_false(f->take.lost);
    change_of(f, "insert", "other", 1, WHOLE);
    assert_int_equal(f->out.len, 0);
    f->rc = spate_take_line(&f->take, spate_slice_str("hello"), &f->out, &f->err);
    assert_int_equal(f->rc, SPATE_OK);
    assert_int_equal(f->take.foreign, 1);
}

/* F46 */
static void two_writers_of_one_chunk_are_told_apart(void **state)
{
    struct fixture *f = *state;

    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    row(f, "aaaaaaaa", 1, 1);
    row(f, "bbbbbbbb", 1, 3); /* of a chunk whose beginning is not here */
    row(f, "aaaaaaaa", 1, 2);
    end_of_chunk(f, "bbbbbbbb", 1, 1, "other");
    end_of_chunk(f, "aaaaaaaa", 1, 2, "t1");
    assert_int_equal(printed(f, "\"op\":\"read\""), 2);
    assert_int_equal(printed(f, "\"id\":3"), 0);
    assert_string_equal(f->take.tables[0].resume, "t1");
    chunk(f, "bbbbbbbb", 1, RANGE); /* a repetition of what was taken */
    row(f, "bbbbbbbb", 1, 3);
    end_of_chunk(f, "bbbbbbbb", 1, 1, "other");
    assert_int_equal(printed(f, "\"op\":\"read\""), 2);
    assert_false(f->take.lost);
}

static void a_broken_chunk_is_dropped_and_asked_for_again(void **state)
{
    struct fixture *f = *state;

    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    row(f, "aaaaaaaa", 1, 1);
    end_of_chunk(f, "aaaaaaaa", 1, 2, "t1");
    assert_true(f->take.lost);
    assert_int_equal(f->out.len, 0);
    assert_int_equal(f->take.tables[0].taken, 0);
    f->take.lost = false;

    chunk(f, "aaaaaaaa", 1, RANGE); /* a change in the middle: it is true at its anchor alone */
    row(f, "aaaaaaaa", 1, 1);
    change_of(f, "insert", "other", 1, WHOLE);
    assert_true(f->take.lost);
    row(f, "aaaaaaaa", 1, 2);
    end_of_chunk(f, "aaaaaaaa", 1, 2, "t1");
    assert_int_equal(f->out.len, 0);
    f->take.lost = false;

    chunk(f, "aaaaaaaa", 2, RANGE); /* the first one is missing */
    assert_true(f->take.lost);
    f->take.lost = false;
    end_of_ranges(f, 1, "t1");
    assert_true(f->take.lost);
    assert_false(spate_take_done(&f->take));
}

/* Two flows of one request whose chunks end at different pages. */
static void a_range_must_go_on_where_the_last_one_ended(void **state)
{
    struct fixture *f = *state;

    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    end_of_chunk(f, "aaaaaaaa", 1, 0, "at page 8");
    chunk(f, "bbbbbbbb", 2,
          "\"range\":{\"from\":\"(12,0)\",\"to\":\"(16,0)\"},\"since\":\"at page 12\",\"dropped\":[]");
    assert_true(f->take.lost);
    end_of_chunk(f, "bbbbbbbb", 2, 0, "at page 16");
    assert_int_equal(f->take.tables[0].taken, 1);
    f->take.lost = false;
    chunk(f, "bbbbbbbb", 2, RANGE); /* the table begins anew (TRUNCATE, a rewrite) */
    end_of_chunk(f, "bbbbbbbb", 2, 0, "at page 8");
    assert_int_equal(f->take.tables[0].taken, 2);
    assert_false(f->take.lost);
    end_of_ranges(f, 2, "at page 16"); /* as many chunks, of another writer that cut them larger */
    assert_false(spate_take_done(&f->take));
    assert_true(f->take.lost);
}

/* A re-read that was answered between chunks that another writer cuts differently. */
static void keys_do_not_move_a_range_on(void **state)
{
    struct fixture *f = *state;

    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    end_of_chunk(f, "aaaaaaaa", 1, 0, "at page 8");
    chunk(f, "aaaaaaaa", 2, "\"keys\":[{\"id\":1}],\"dropped\":[]");
    end_of_chunk(f, "aaaaaaaa", 2, 0, "at page 9");
    assert_int_equal(f->take.tables[0].taken, 2);
    assert_string_equal(f->take.tables[0].resume, "at page 8");
}

static void begin_at(struct fixture *f, int at)
{
    uint64_t n = f->n;

    f->n = (uint64_t)at;
    begin(f);
    f->n = n;
}

/* A writer that took over further back than where we began: its chunks leave out what 4 and 5 touched, which
 * we have not heard. */
static void a_flow_that_began_behind_us_is_not_taken(void **state)
{
    struct fixture *f = *state;

    begin(f);
    change_of(f, "update", "t", 2, PARTIAL);
    begin_at(f, 5); /* at or behind our begin, though we went on: it repeats itself */
    assert_true(f->take.renew);
    spate_take_renew(&f->take);
    assert_false(f->take.begun);
    assert_null(spate_take_again(&f->take));
    chunk(f, "aaaaaaaa", 1, RANGE); /* of the new request, whose begin was not met */
    assert_true(f->take.lost);
    f->take.lost = false;
    change_of(f, "insert", "t", 7, WHOLE); /* we stand where we stood */
    assert_int_equal(printed(f, "\"id\":7"), 1);
    begin_at(f, 8); /* behind a hole: not where we stand */
    assert_true(f->take.renew);
    spate_take_renew(&f->take);
    begin(f);
    assert_true(f->take.begun);
    assert_false(f->take.renew);
    begin(f); /* the connector was started again, and goes on from here */
    assert_false(f->take.renew);
    chunk(f, "aaaaaaaa", 1, RANGE);
    row(f, "aaaaaaaa", 1, 1);
    end_of_chunk(f, "aaaaaaaa", 1, 1, "t1");
    end_of_ranges(f, 1, "t1");
    assert_true(spate_take_done(&f->take));
}

static void behind_a_hole_nothing_is_taken(void **state)
{
    struct fixture *f = *state;

    begin(f);
    f->n += 2;
    chunk(f, "aaaaaaaa", 1, RANGE);
    end_of_chunk(f, "aaaaaaaa", 1, 0, "t1");
    assert_true(f->take.hole);
    assert_int_equal(f->take.tables[0].taken, 0);
    f->n = 5;
    change_of(f, "insert", "other", 1, WHOLE);
    assert_false(f->take.hole);
}

/* P94: a partial update is handed out, and its row is asked for whole. */
static void changes_come_in_their_place(void **state)
{
    struct fixture *f = *state;
    struct spate_buf keys = {0};

    begin(f);
    change_of(f, "insert", "t", 1, WHOLE);
    change_of(f, "update", "t", 2, PARTIAL);
    change_of(f, "update", "t", 3, PARTIAL);
    change_of(f, "delete", "t", 3, GONE);
    assert_int_equal(printed(f, "\n"), 4);
    end_of_ranges(f, 0, "");
    assert_false(spate_take_done(&f->take));
    change_of(f, "update", "t", 4, PARTIAL); /* who keeps the lines has that row */
    assert_ptr_equal(spate_take_again(&f->take), &f->take.tables[0]);
    spate_keys_array(&f->take.tables[0].again, 10, &keys);
    assert_string_equal(spate_buf_str(&keys), "[{\"id\":2}]");
    chunk(f, "aaaaaaaa", 1, "\"keys\":[{\"id\":2}],\"dropped\":[{\"id\":2}]"); /* touched: not this time */
    end_of_chunk(f, "aaaaaaaa", 1, 0, "");
    assert_true(f->take.reread);
    assert_true(f->take.dropped);
    assert_false(spate_take_done(&f->take));
    chunk(f, "aaaaaaaa", 2, "\"keys\":[{\"id\":2}],\"dropped\":[]");
    row(f, "aaaaaaaa", 2, 2);
    end_of_chunk(f, "aaaaaaaa", 2, 1, "");
    assert_int_equal(printed(f, "\"op\":\"read\""), 1);
    assert_true(spate_take_done(&f->take));
    spate_buf_fini(&keys);
}

/* Whether a changed row fulfils a condition, the source alone can say. */
static void without_changes_their_rows_are_read_again(void **state)
{
    struct fixture *f = *state;

    f->take.changes = false;
    f->take.rows = true;
    begin(f);
    chunk(f, "aaaaaaaa", 1, RANGE);
    row(f, "aaaaaaaa", 1, 1);
    end_of_chunk(f, "aaaaaaaa", 1, 1, "t1");
    assert_string_equal(spate_buf_str(&f->out), "{\"id\":1,\"row\":true}\n");
    change_of(f, "update", "t", 2, WHOLE);
    change_of(f, "insert", "t", 3, WHOLE);
    change_of(f, "delete", "t", 3, GONE);
    assert_int_equal(printed(f, "\n"), 1);
    assert_int_equal(f->take.tables[0].again.count, 1);
    end_of_ranges(f, 1, "t1");
    chunk(f, "aaaaaaaa", 2, "\"keys\":[{\"id\":2}],\"dropped\":[]"); /* it does not fulfil it */
    end_of_chunk(f, "aaaaaaaa", 2, 0, "t1");
    assert_true(spate_take_done(&f->take));
}

static void a_truncate_empties_the_list(void **state)
{
    struct fixture *f = *state;

    begin(f);
    change_of(f, "update", "t", 2, PARTIAL);
    f->n++;
    feed(
        f,
        "\"op\":\"truncate\",\"n\":%d,\"epoch\":1,\"pos\":\"%016X.00000001\",\"end\":\"%016X\",\"xid\":7" META
        ",\"tables\":[{\"schema\":\"public\",\"table\":\"t\",\"v\":1}],\"cascade\":false,\"restart\":false,"
        "\"key\":null",
        (int)f->n, 0x1000 * (unsigned)f->n, 0x1000 * (unsigned)f->n + 8);
    assert_int_equal(f->rc, SPATE_OK);
    assert_int_equal(printed(f, "\"op\":\"truncate\""), 1);
    assert_null(spate_take_again(&f->take));
}

static void epoch(struct fixture *f, int number, const char *previous)
{
    feed(
        f,
        "\"op\":\"epoch\",\"at\":0,\"epoch\":%d,\"end\":\"0000000000900000\"" META
        ",\"uuid\":\"00000000-0000-4000-8000-00000000000%d\",\"why\":\"test\",\"identity\":{\"system\":\"1\","
        "\"timeline\":1,\"database\":\"d\",\"database_oid\":5,\"slot\":\"s\",\"publication\":\"p\"},%s",
        number, number, previous);
}

static void an_epoch_is_entered_or_ends_it(void **state)
{
    struct fixture *f = *state;

    begin(f);
    epoch(f, 1, "\"previous\":null,\"follower\":\"start\""); /* repeated: we began inside it */
    assert_int_equal(f->rc, SPATE_OK);
    chunk(f, "aaaaaaaa", 1, RANGE);
    epoch(f, 2, "\"previous\":{\"epoch\":1,\"n\":5},\"follower\":\"continue\"");
    assert_int_equal(f->rc, SPATE_OK);
    assert_int_equal(f->take.follower.last.epoch, 2);
    assert_true(f->take.lost);
    epoch(f, 3, "\"previous\":\"broken\",\"follower\":\"snapshot\"");
    assert_int_equal(f->rc, SPATE_FAIL);
    assert_int_equal(f->err.exit_code, SPATE_EXIT_FENCED);
    assert_non_null(strstr(f->err.text, "Ask again"));
}

#define TAKE_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TAKE_TEST(rows_are_handed_out_chunk_by_chunk),
        TAKE_TEST(tables_that_are_not_read_are_left_out),
        TAKE_TEST(what_is_not_for_us_is_passed_by),
        TAKE_TEST(two_writers_of_one_chunk_are_told_apart),
        TAKE_TEST(a_broken_chunk_is_dropped_and_asked_for_again),
        TAKE_TEST(a_range_must_go_on_where_the_last_one_ended),
        TAKE_TEST(keys_do_not_move_a_range_on),
        TAKE_TEST(a_flow_that_began_behind_us_is_not_taken),
        TAKE_TEST(behind_a_hole_nothing_is_taken),
        TAKE_TEST(changes_come_in_their_place),
        TAKE_TEST(without_changes_their_rows_are_read_again),
        TAKE_TEST(a_truncate_empties_the_list),
        TAKE_TEST(an_epoch_is_entered_or_ends_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
