/* The rule by which a chunk is taken (docs/hazards.md): whole, the next one, in its chain, in its place; and
 * what becomes of everything else (F46). No target: the versions are there, and the batch is looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sinks/start.h"
#include "tests/support/schemas_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 6 };
static struct spate_sink sink;
static struct spate_sink_config config = {.name = (char *)(uintptr_t) "team",
                                          .from = (char *)(uintptr_t) "shop"};
static struct spate_projection projection;
static struct spate_version version;
static struct spate_version_state version_state;
static struct spate_loading_table tables[1];
static struct spate_table *table;
static bool want[COLUMNS];
static uint32_t used[COLUMNS], key_at[1];
static int maybe[COLUMNS];

static int set_up(void **state)
{
    (void)state;
    spate_log_level_set(SPATE_LOG_ERROR);
    table = fixture_orders(SPATE_IDENTITY_DEFAULT);
    for (uint32_t c = 0; c < COLUMNS; c++) {
        want[c] = true;
        used[c] = c;
        maybe[c] = -1;
    }
    version = (struct spate_version){.projection = &projection,
                                     .table = table,
                                     .want = want,
                                     .used = used,
                                     .used_count = COLUMNS,
                                     .key_at = key_at,
                                     .key_count = 1,
                                     .maybe = maybe,
                                     .state = &version_state};
    projection = (struct spate_projection){.source_schema = (char *)(uintptr_t) "public",
                                           .source_table = (char *)(uintptr_t) "orders",
                                           .label = (char *)(uintptr_t) "team.orders",
                                           .current = &version,
                                           .load = {.kind = SPATE_LOAD_EMPTY, .request = "r1"}};
    tables[0] = (struct spate_loading_table){.asked = true};
    sink = (struct spate_sink){.config = &config,
                               .projections = &projection,
                               .projection_count = 1,
                               .loading = {.tables = tables, .request = "r1", .begun = true},
                               .feed = {.driver = "local", .name = "team", .request = sink.loading.request}};
    sink.feed.follower.last = sink.feed.follower.complete = (struct spate_place){.epoch = 1, .n = 10};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_batch_fini(&sink.batch);
    spate_taking_fini(&sink.taking);
    spate_arena_fini(&sink.arena);
    free(projection.load.resume);
    spate_table_free(table);
    return 0;
}

static uint64_t at; /* where the message before this one stood on the bus */

/* Hears one message, which is used up. True: the mark moved to it. */
static bool hear(struct spate_buf *line)
{
    struct spate_event event = {.kind = SPATE_EVENT_SNAPSHOT, .line = spate_buf_view(line), .pos = {++at}};
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    bool rewound = false;

    assert_int_equal(spate_decode_head(event.line, &event.head, &arena, &err), SPATE_OK);
    if (spate_taking_hear(&sink, &event, &rewound, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_false(rewound);
    if (event.boundary)
        spate_batch_boundary(&sink.batch);
    spate_arena_fini(&arena);
    spate_buf_fini(line);
    return event.boundary;
}

static struct spate_addressed head(void)
{
    return (struct spate_addressed){.at = 10,
                                    .epoch = 1,
                                    .to = S("team"),
                                    .request = S("r1"),
                                    .wall_us = FIXTURE_US,
                                    .source = S("shop")};
}

static struct spate_chunk chunk_of(uint32_t by, uint64_t no, const char *since)
{
    return (struct spate_chunk){.head = head(),
                                .table = table,
                                .chunk = {by, no},
                                .to = SPATE_TID(1, 0),
                                .keys = S("[]"),
                                .dropped = S("[]"),
                                .since = spate_slice_str(since)};
}

static bool chunk(uint32_t by, uint64_t no, const char *since)
{
    struct spate_chunk message = chunk_of(by, no, since);
    struct spate_buf line = {0};

    spate_encode_chunk(&line, &message);
    return hear(&line);
}

static bool keys(uint32_t by, uint64_t no, const char *asked, const char *dropped)
{
    struct spate_chunk message = chunk_of(by, no, "");
    struct spate_buf line = {0};

    message.by_keys = true;
    message.keys = spate_slice_str(asked);
    message.dropped = spate_slice_str(dropped);
    spate_encode_chunk(&line, &message);
    return hear(&line);
}

static bool row(uint32_t by, uint64_t no, const char *id)
{
    struct spate_value values[COLUMNS] = {
        {SPATE_VALUE_TEXT, spate_slice_str(id)}, T("1.00"), T("t"), VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_chunk message = chunk_of(by, no, "");
    struct spate_err err = {0};
    struct spate_buf line = {0};

    spate_encode_read_head(&line, &message);
    assert_int_equal(spate_encode_read_row(&line, table, values, &err), SPATE_OK);
    return hear(&line);
}

static bool end(uint32_t by, uint64_t no, uint64_t count, const char *resume)
{
    struct spate_chunk_end message = {
        .head = head(), .table = table, .chunk = {by, no}, .count = count, .resume = spate_slice_str(resume)};
    struct spate_buf line = {0};

    spate_encode_chunk_end(&line, &message);
    return hear(&line);
}

static void ranges_end(uint64_t chunks, const char *resume)
{
    struct spate_named_table named = {
        .schema = S("public"), .table = S("orders"), .chunks = chunks, .resume = spate_slice_str(resume)};
    struct spate_ranges_end message = {.head = head(), .tables = &named, .count = 1};
    struct spate_buf line = {0};

    spate_encode_ranges_end(&line, &message);
    assert_true(hear(&line));
}

static void stands(uint64_t no, const char *token, size_t rows)
{
    assert_int_equal(projection.load.chunk, no);
    assert_string_equal(projection.load.resume ? projection.load.resume : "", token);
    assert_int_equal(sink.batch.complete, rows);
    assert_int_equal(sink.batch.count, rows);
    assert_false(sink.feed.holding);
}

/* One chunk of one row. */
static void whole(uint32_t by, uint64_t no, const char *since, const char *resume)
{
    chunk(by, no, since);
    row(by, no, "7");
    end(by, no, 1, resume);
}

static void a_whole_chunk_moves_the_mark_at_its_end(void **state)
{
    (void)state;
    assert_false(chunk(1, 1, ""));
    assert_true(sink.feed.holding);
    assert_false(row(1, 1, "1"));
    assert_false(row(1, 1, "2"));
    assert_int_equal(sink.batch.complete, 0);
    assert_true(end(1, 1, 2, "a"));
    stands(1, "a", 2);
    assert_int_equal(sink.feed.mark.at.at, at);
    assert_int_equal(sink.batch.items[1].op, SPATE_OP_READ);
    whole(1, 2, "a", "b");
    stands(2, "b", 3);
    assert_true(projection.load.dirty);
    assert_false(sink.loading.lost);
    /* An empty one counts as well. */
    chunk(1, 3, "b");
    end(1, 3, 0, "c");
    stands(3, "c", 3);
}

static void what_came_before_is_passed_by(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    assert_true(chunk(2, 1, ""));
    assert_true(row(2, 1, "1"));
    assert_true(end(2, 1, 1, "z"));
    stands(1, "a", 1);
    assert_int_equal(sink.loading.repeated, 1);
    assert_false(sink.loading.lost);
}

static void a_missing_chunk_is_asked_for(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    whole(1, 3, "b", "c");
    stands(1, "a", 1);
    assert_true(sink.loading.lost);
    /* The connector goes back to where the tokens say. */
    whole(1, 2, "a", "b");
    stands(2, "b", 2);
    assert_false(sink.loading.lost);
}

static void F46_a_number_alone_does_not_chain_chunks(void **state)
{
    /* Two sessions cut the table differently: 2 of the first ends at b, that of the second further on at c.
     */
    (void)state;
    whole(1, 1, "", "a");
    whole(1, 2, "a", "b");
    whole(2, 2, "a", "c"); /* a repetition */
    whole(2, 3, "c", "d"); /* what lies between b and c never came */
    stands(2, "b", 2);
    assert_true(sink.loading.lost);
    whole(2, 3, "b", "d");
    stands(3, "d", 3);
    /* A table that begins again needs nothing before it. */
    whole(2, 4, "", "e");
    stands(4, "e", 4);
}

static void F46_lines_of_two_chunks_are_never_mixed(void **state)
{
    (void)state;
    chunk(1, 1, "");
    row(1, 1, "1");
    row(2, 1, "666"); /* a zombie's */
    row(1, 2, "667");
    assert_false(end(2, 1, 1, "z"));
    row(1, 1, "2");
    assert_true(end(1, 1, 2, "a"));
    stands(1, "a", 2);

    /* Cut short: its successor's comes whole. */
    chunk(1, 2, "a");
    row(1, 2, "3");
    chunk(2, 2, "a");
    row(2, 2, "4");
    row(1, 2, "5");
    assert_false(end(1, 2, 2, "y"));
    assert_true(end(2, 2, 1, "b"));
    stands(2, "b", 3);
    assert_int_equal(sink.batch.items[2].key[0].text.at[0], '4');
}

static void a_chunk_with_missing_rows_is_dropped(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    chunk(1, 2, "a");
    row(1, 2, "1");
    assert_true(end(1, 2, 2, "b"));
    stands(1, "a", 1);
    assert_true(sink.loading.lost);
    assert_int_equal(sink.loading.broken, 1);
    row(1, 2, "1");
    end(1, 2, 1, "b"); /* its tail once more, without a head */
    stands(1, "a", 1);
}

static void a_change_inside_breaks_it(void **state)
{
    (void)state;
    chunk(1, 1, "");
    row(1, 1, "1");
    spate_taking_break(&sink, "the stream went on before its end");
    row(1, 1, "2");
    end(1, 1, 2, "a");
    stands(0, "", 0);
    assert_true(sink.loading.lost);
}

static void rows_that_were_applied_already_stay(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    chunk(1, 2, "a");
    row(1, 2, "1");
    row(1, 2, "2");
    spate_batch_drop(&sink.batch, 2); /* a piece of it went to the target */
    spate_taking_applied(&sink, 2);
    row(1, 2, "3");
    spate_taking_break(&sink, "test");
    assert_int_equal(sink.batch.count, 0);
    whole(1, 2, "a", "b");
    stands(2, "b", 1);
}

static void ranges_end_with_the_chain_that_was_taken(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    ranges_end(1, "z"); /* of another flow, which has as many chunks */
    assert_false(projection.load.ranges_known);
    assert_true(sink.loading.lost);
    whole(1, 2, "a", "b");
    ranges_end(2, "b");
    assert_true(projection.load.ranges_known && projection.load.ranges == 2);
    /* It begins again: there is another end to come. */
    whole(2, 3, "", "c");
    assert_false(projection.load.ranges_known);
}

static void keys_that_were_looked_up_are_answered(void **state)
{
    (void)state;
    whole(1, 1, "", "a");
    ranges_end(1, "a");
    sink.loading.reread = &projection;
    keys(1, 2, "[{\"id\":1},{\"id\":2},{\"id\":3}]", "[{\"id\":2}]");
    row(1, 2, "1");
    assert_true(end(1, 2, 1, "a"));
    stands(2, "a", 4); /* a row before, the row of 1, and the answers for 1 and 3: 2 was touched meanwhile */
    assert_int_equal(sink.batch.items[2].op, SPATE_OP_CHUNK);
    assert_int_equal(sink.batch.items[3].key[0].text.at[0], '3');
    assert_true(projection.load.ranges_known);
    assert_null(sink.loading.reread);
}

static void another_table_or_none_is_passed_by(void **state)
{
    (void)state;
    projection.load.kind = SPATE_LOAD_NONE; /* finished already */
    assert_true(chunk(1, 1, ""));
    assert_true(row(1, 1, "1"));
    assert_true(end(1, 1, 1, "a"));
    stands(0, "", 0);
    assert_false(sink.loading.lost);
}

static void F46_a_beginning_that_was_not_met_is_asked_for_anew(void **state)
{
    (void)state;
    projection.load.kind = SPATE_LOAD_NONE; /* snapshot-begin stood in a hole */
    sink.loading.begun = false;
    assert_true(chunk(1, 1, ""));
    assert_true(sink.feed.behind);
    stands(0, "", 0);
    /* A person's request keeps its name. */
    sink.feed.behind = false;
    sink.loading.wish = spate_strdup("{}");
    assert_true(chunk(1, 1, ""));
    assert_true(sink.loading.lost && !sink.feed.behind);
    free(sink.loading.wish);
    sink.loading.lost = false;
    /* The rest of it belongs to nobody once another request stands in its place. */
    sink.feed.behind = false;
    snprintf(sink.loading.request, sizeof sink.loading.request, "r2");
    assert_true(chunk(1, 2, "a"));
    assert_true(row(1, 2, "1"));
    assert_true(end(1, 2, 1, "b"));
    assert_false(sink.feed.behind || sink.loading.lost);
}

int main(void)
{
#define TAKING(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TAKING(a_whole_chunk_moves_the_mark_at_its_end),
        TAKING(what_came_before_is_passed_by),
        TAKING(a_missing_chunk_is_asked_for),
        TAKING(F46_a_number_alone_does_not_chain_chunks),
        TAKING(F46_lines_of_two_chunks_are_never_mixed),
        TAKING(a_chunk_with_missing_rows_is_dropped),
        TAKING(a_change_inside_breaks_it),
        TAKING(rows_that_were_applied_already_stay),
        TAKING(ranges_end_with_the_chain_that_was_taken),
        TAKING(keys_that_were_looked_up_are_answered),
        TAKING(another_table_or_none_is_passed_by),
        TAKING(F46_a_beginning_that_was_not_met_is_asked_for_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
