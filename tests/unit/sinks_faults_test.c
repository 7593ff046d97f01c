/* A sink's reader over a bus that does it wrong (docs/hazards.md, F57-F60): what it takes is always 1, 2, 3
 * ... once each; when it cannot go on it says why, and never calls a loss a duplicate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/log.h"
#include "sinks/reader.h"
#include "tests/support/bus_faulty.h"
#include "tests/support/bus_memory.h"
#include "tests/support/schemas_fixture.h"

#include <inttypes.h>

#define TOPIC "shop"
#define UUID  "00000000-0000-4000-8000-000000000001"

enum { CHANGES = 3000 };

static struct bus_memory memory;
static struct bus_faulty faulty;
static struct spate_table *table;
static struct spate_feed feed;
static uint64_t taken, given_up;

static void put(struct spate_slice value)
{
    const struct spate_record record = {.value = value};

    bus_memory_append(bus_memory_topic(&memory, TOPIC), &record);
}

static void put_change(uint64_t n, uint64_t commit, uint32_t ordinal, bool ends)
{
    struct spate_value row[] = {T("42"), T("12.50"), T("t"), VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, row);
    struct spate_buf line = {0};
    struct spate_err err = {0};

    change.n = n;
    change.pos = (struct spate_pos){commit, ordinal};
    change.end = ends ? commit + 8 : 0;
    assert_int_equal(spate_encode_change(&line, &change, &err), SPATE_OK);
    put(spate_buf_view(&line));
    spate_buf_fini(&line);
}

/* Transactions of one to three changes; n stands at position n. */
static void put_stream(uint64_t first, uint64_t last, uint64_t shift)
{
    for (uint64_t n = first; n <= last; n++)
        put_change(n, 1000 + shift + n / 3 * 100, (uint32_t)(n % 3 + 1), n % 3 == 2 || n == last);
}

static void put_epoch(void)
{
    const struct spate_epoch epoch = {
        .epoch = 1,
        .end = 1000,
        .source = S(TOPIC),
        .uuid = S(UUID),
        .why = S("test"),
        .identity = {
            .system = S("7"), .timeline = 1, .database = S(TOPIC), .slot = S("s"), .publication = S("p")}};
    struct spate_buf line = {0};

    spate_encode_epoch(&line, &epoch);
    put(spate_buf_view(&line));
    spate_buf_fini(&line);
}

static void open_feed(void)
{
    struct spate_err err = {0};

    assert_int_equal(spate_feed_open(&feed, &faulty.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_begin(&feed, 1, UUID, &err), SPATE_OK);
}

static int set_up(void **state)
{
    struct spate_writer *w;
    struct spate_err err = {0};

    (void)state;
    spate_log_level_set(SPATE_LOG_ERROR);
    bus_memory_init(&memory);
    bus_faulty_init(&faulty, &memory.bus, 7);
    table = fixture_orders(SPATE_IDENTITY_DEFAULT);
    assert_int_equal(spate_bus_writer_open(&memory.bus, TOPIC, SPATE_TOPIC_CREATE, &w, &err), SPATE_OK);
    spate_writer_close(w);
    put_epoch();
    taken = given_up = 0;
    open_feed();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_feed_close(&feed);
    spate_table_free(table);
    bus_memory_fini(&memory);
    return 0;
}

/* Takes what there is. SPATE_AGAIN: nothing more for now. */
static enum spate_rc follow(struct spate_err *err)
{
    struct spate_event event;
    enum spate_rc rc;

    while ((rc = spate_feed_next(&feed, &event, err)) == SPATE_OK)
        if (event.kind == SPATE_EVENT_CHANGE)
            assert_int_equal(event.head.n, ++taken);
    return rc;
}

static void is_stale(const char *words)
{
    struct spate_err err = {0};

    assert_int_equal(follow(&err), SPATE_AGAIN);
    assert_int_not_equal(feed.hole_ms, 0);
    feed.hole_ms -= SPATE_HOLE_MS + 1; /* a minute later */
    assert_int_equal(follow(&err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

/* The sink dies and goes on from where its target stands. */
static void restart(void)
{
    const struct spate_mark mark = feed.mark;
    struct spate_err err = {0};

    spate_feed_close(&feed);
    assert_int_equal(spate_feed_open(&feed, &faulty.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_resume(&feed, &mark, &err), SPATE_OK);
    taken = mark.place.n;
}

static void F57_what_the_bus_lost_behind_a_sink_is_no_duplicate(void **state)
{
    struct spate_err err = {0};

    (void)state;
    put_stream(1, 30, 0);
    assert_int_equal(follow(&err), SPATE_AGAIN);
    assert_int_equal(taken, 30);
    bus_memory_cut(&memory, TOPIC, 10); /* 21..30 are gone */

    /* Nothing came since: the place that the sink stored is not there. */
    restart();
    is_stale("the bus has lost its end");

    /* Numbering began anew at 21, with later changes of the source. */
    put_stream(21, 25, 50000);
    restart();
    assert_int_equal(follow(&err),
                     SPATE_AGAIN); /* 21..25 stand before the mark: the sink does not see them */
    put_stream(26, 40, 50000);
    restart();
    assert_int_equal(follow(&err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_non_null(strstr(err.text, "diverged"));
    assert_int_equal(taken, 30);
    assert_int_equal(feed.count.duplicates, 0);
}

static void F57_a_running_sink_notices_it_too(void **state)
{
    struct spate_err err = {0};

    (void)state;
    put_stream(1, 30, 0);
    assert_int_equal(follow(&err), SPATE_AGAIN);
    bus_memory_cut(&memory, TOPIC, 10);
    put_epoch();               /* so that the numbers do not fall on their old places by chance */
    put_stream(21, 45, 50000); /* it reads on at position 31 */
    assert_int_equal(follow(&err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_int_equal(taken, 30);
    assert_int_equal(feed.count.duplicates, 0);
}

static void F58_each_duplicate_is_dropped_and_counted(void **state)
{
    struct spate_err err = {0};

    (void)state;
    faulty.read.chance[BUS_DUPLICATE] = .2;
    put_stream(1, CHANGES, 0);
    assert_int_equal(follow(&err), SPATE_AGAIN);
    assert_int_equal(taken, CHANGES);
    assert_int_equal(feed.count.taken, CHANGES);
    assert_true(faulty.read.injected[BUS_DUPLICATE] > CHANGES / 10);
    assert_int_equal(feed.count.duplicates, faulty.read.injected[BUS_DUPLICATE]);
    assert_int_equal(feed.count.holes, 0);
}

static void delays_and_refusals_lose_nothing(void **state)
{
    struct spate_err err = {0};

    (void)state;
    faulty.read.chance[BUS_DELAY] = .1;
    faulty.read.chance[BUS_REFUSE_RETRY] = .1;
    put_stream(1, CHANGES, 0);
    for (int turn = 0; turn < 10 * CHANGES && taken < CHANGES; turn++)
        if (follow(&err) == SPATE_FAIL) {
            assert_int_equal(err.verdict, SPATE_RETRY);
            restart();
        }
    assert_int_equal(taken, CHANGES);
    assert_true(faulty.read.injected[BUS_DELAY] > 0 && faulty.read.injected[BUS_REFUSE_RETRY] > 0);
    assert_int_equal(feed.count.duplicates + feed.count.holes, 0);
}

static void F59_what_comes_too_early_is_not_applied(void **state)
{
    static const struct bus_script swap[] = {{12, BUS_REORDER}};
    struct spate_err err = {0};

    (void)state;
    faulty.read.script = swap;
    faulty.read.script_count = 1;
    put_stream(1, 30, 0); /* the twelfth record is n=11: 12 comes before it */
    assert_int_equal(follow(&err), SPATE_AGAIN);
    assert_int_equal(faulty.read.injected[BUS_REORDER], 1);
    assert_int_equal(taken, 11); /* 12 was met too early, and passed */
    assert_int_equal(feed.count.holes, 2);
    is_stale("changes n=12 to n=12");

    /* Whoever reads it again in order has it. */
    restart();
    assert_int_equal(follow(&err), SPATE_AGAIN);
    assert_int_equal(taken, 30);
}

static void F59_reordered_and_repeated_at_random(void **state)
{
    (void)state;
    faulty.read.chance[BUS_REORDER] = .02;
    faulty.read.chance[BUS_DUPLICATE] = .1;
    put_stream(1, CHANGES, 0);
    for (int turn = 0; turn < CHANGES && taken < CHANGES; turn++) {
        struct spate_err err = {0};

        assert_int_equal(follow(&err), SPATE_AGAIN);
        if (taken == CHANGES)
            break;
        given_up++;
        is_stale("STALE: changes n=");
        restart();
    }
    assert_int_equal(taken, CHANGES);
    assert_true(given_up > 5);
}

static void cut_in_its_head(struct spate_buf *value)
{
    value->len = 30;
}

static void F60_damage_stops_it_at_the_place(void **state)
{
    static const struct bus_script damage[] = {{6, BUS_CORRUPT}};
    const struct spate_bus_pos fifth = {5};
    struct spate_err err = {0};

    (void)state;
    faulty.read.script = damage;
    faulty.read.script_count = 1;
    faulty.corrupt = cut_in_its_head;
    put_stream(1, 30, 0); /* the sixth record is n=5 */
    assert_int_equal(follow(&err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "topic shop at kafka:5:"));
    assert_non_null(strstr(err.text, "after n=4 of epoch 1"));
    assert_non_null(strstr(err.text, "--skip NAME=kafka:5"));
    assert_int_equal(taken, 4);

    /* Passed by on request: it was a change, and its number is missing. */
    faulty.read.seen = 0;
    spate_feed_close(&feed);
    open_feed();
    feed.skips = &fifth;
    feed.skip_count = 1;
    taken = 0;
    is_stale("changes n=5 to n=5");
    assert_int_equal(feed.count.skipped, 1);
    assert_int_equal(taken, 4);
}

static void replace_with_foreign(struct spate_buf *value)
{
    value->len = 0;
    spate_buf_puts(value, "hello, is anybody there?");
}

static void F60_any_damaged_record_stops_it_and_no_other(void **state)
{
    (void)state;
    put_stream(1, 60, 0);
    faulty.corrupt = replace_with_foreign;
    for (uint64_t at = 2; at <= 60; at++) {
        const struct bus_script damage = {at, BUS_CORRUPT};
        struct spate_err err = {0};

        faulty.read.script = &damage;
        faulty.read.script_count = 1;
        faulty.read.seen = 0;
        spate_feed_close(&feed);
        open_feed();
        taken = 0;
        assert_int_equal(follow(&err), SPATE_FAIL);
        assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
        assert_int_equal(taken, at - 2);
    }
}

static void from_the_future(struct spate_buf *value)
{
    value->len = 0;
    spate_buf_puts(value, "{\"spate\":2,\"op\":\"insert\",\"n\":5,\"epoch\":1,\"novelty\":true}");
}

static void F60_an_older_sink_does_not_guess_at_a_newer_version(void **state)
{
    static const struct bus_script damage[] = {{6, BUS_CORRUPT}};
    const struct spate_bus_pos fifth = {5};
    struct spate_err err = {0};

    (void)state;
    faulty.read.script = damage;
    faulty.read.script_count = 1;
    faulty.corrupt = from_the_future;
    feed.skips = &fifth; /* no person can know that it does not matter */
    feed.skip_count = 1;
    put_stream(1, 30, 0);
    assert_int_equal(follow(&err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "kafka:5"));
    assert_non_null(strstr(err.text, "newer version"));
    assert_null(strstr(err.text, "--skip"));
    assert_int_equal(taken, 4);
    assert_int_equal(feed.count.skipped, 0);
}

int main(void)
{
#define F(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        F(F57_what_the_bus_lost_behind_a_sink_is_no_duplicate),
        F(F57_a_running_sink_notices_it_too),
        F(F58_each_duplicate_is_dropped_and_counted),
        F(delays_and_refusals_lose_nothing),
        F(F59_what_comes_too_early_is_not_applied),
        F(F59_reordered_and_repeated_at_random),
        F(F60_damage_stops_it_at_the_place),
        F(F60_any_damaged_record_stops_it_and_no_other),
        F(F60_an_older_sink_does_not_guess_at_a_newer_version),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
