/* Which of the transactions that run an earlier session may have delivered (docs/hazards.md, snapshots): the
 * log is read back on a real local bus. What the source says of them: tests/integration/test_rebuild.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/publisher.h"
#include "connector/rebuild.h"
#include "tests/support/bus_scratch.h"

#define MINUTE INT64_C(60000000)
#define HOUR   (60 * MINUTE)
#define NOON   (1000 * HOUR) /* when the epoch was opened */

static struct bus_scratch scratch;
static struct spate_connector_config config;
static struct spate_publisher publisher;
static struct spate_ledger ledger;
static struct spate_table *table;
static uint64_t number;
static struct spate_err err;

static int set_up(void **state)
{
    static char name[] = "shop";

    (void)state;
    err = (struct spate_err){0};
    number = 0;
    bus_scratch_init(&scratch, 1 << 20);
    config = (struct spate_connector_config){.name = name, .bus = scratch.config};
    spate_ledger_init(&ledger, 1024);
    spate_ledger_start(&ledger, 1);
    if (spate_publisher_open(&publisher, &config, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    table = spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);
    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("text"), spate_slice_str(""), 25,
                           -1, -1, true, SPATE_CLASS_TEXT);
    spate_table_seal(table);
    table->v = 1;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_publisher_close(&publisher);
    spate_ledger_fini(&ledger);
    spate_table_free(table);
    bus_scratch_fini(&scratch);
    return 0;
}

static void opening(uint64_t epoch, int64_t ts)
{
    struct spate_epoch e = {.epoch = epoch,
                            .at = number,
                            .source = spate_slice_str("shop"),
                            .wall_us = ts,
                            .uuid = spate_slice_str("00000000-0000-4000-8000-000000000000"),
                            .why = spate_slice_str("test")};

    e.identity.system = e.identity.database = e.identity.slot = e.identity.publication = spate_slice_str("x");
    spate_publisher_epoch(&publisher, &e, 0);
}

/* A transaction of two changes with `size` bytes each. */
static void transaction(uint64_t epoch, uint32_t xid, int64_t ts, size_t size)
{
    static char text[200000];

    memset(text, 'x', sizeof text);
    for (uint32_t ordinal = 1; ordinal <= 2; ordinal++) {
        const struct spate_value after[1] = {{SPATE_VALUE_TEXT, {text, size}}};
        struct spate_change change = {
            .op = SPATE_OP_INSERT,
            .n = ++number,
            .epoch = epoch,
            .pos = {number * 10, ordinal},
            .end = ordinal == 2 ? number * 10 + 1 : 0,
            .xid = xid,
            .commit_us = ts,
            .source = spate_slice_str("shop"),
            .table = table,
            .after = after,
        };

        assert_int_equal(spate_publisher_change(&publisher, &change, 0, &err), SPATE_OK);
        while (spate_publisher_full(&publisher))
            assert_int_not_equal(spate_publisher_flush(&publisher, &err), SPATE_FAIL);
    }
}

/* Those that are left of up to four, as a number: their xids side by side, two digits each. */
static int left_of(uint64_t epoch, size_t count, const struct spate_running *members)
{
    struct spate_running running[4];
    int answer = 0;

    if (spate_publisher_settle(&publisher, &ledger, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    memcpy(running, members, count * sizeof *members);
    if (spate_rebuild_scan(publisher.bus, publisher.topic, epoch, running, &count, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < count; i++)
        answer = answer * 100 + (int)running[i].xid;
    return answer;
}

#define LEFT_OF(epoch, ...)                                                                                  \
    left_of(epoch, sizeof((struct spate_running[]){__VA_ARGS__}) / sizeof(struct spate_running),             \
            (struct spate_running[]){__VA_ARGS__})

static void P91_what_the_log_holds_stays_and_what_merely_runs_does_not(void **state)
{
    (void)state;
    opening(1, NOON);
    transaction(1, 21, NOON + 10 * HOUR, 10);
    transaction(1, 22, NOON + 10 * HOUR, 10);
    transaction(1, 23, NOON + 10 * HOUR, 10);
    assert_int_equal(LEFT_OF(1, {31, NOON + 5 * HOUR}, {22, NOON + 9 * HOUR}, {11, NOON + 4 * HOUR}), 22);
    assert_int_equal(LEFT_OF(1, {31, NOON + 5 * HOUR}), 0);
}

static void what_started_when_we_may_not_know_stays(void **state)
{
    (void)state;
    opening(1, NOON);
    transaction(1, 21, NOON + 10 * HOUR, 10);
    assert_int_equal(LEFT_OF(1, {31, 0}, {32, NOON + 9 * HOUR}), 31);
    assert_int_equal(LEFT_OF(1, {31, 0}, {32, 0}), 3132);
}

/* What committed before the epoch's opening is in no log, and in no stream that comes. */
static void P91_what_may_have_committed_before_the_epoch_stays(void **state)
{
    (void)state;
    opening(1, NOON - 9 * HOUR);
    transaction(1, 44, NOON - HOUR / 2, 10);
    number = 0;
    opening(2, NOON);
    transaction(2, 21, NOON + 10 * HOUR, 10);
    assert_int_equal(LEFT_OF(2, {41, NOON - MINUTE}, {42, NOON + HOUR - MINUTE}, {43, NOON + HOUR + MINUTE}),
                     4142);
    /* A zombie of the epoch before: its records tell nothing. */
    transaction(1, 43, NOON + 11 * HOUR, 10);
    assert_int_equal(LEFT_OF(2, {43, NOON + HOUR + MINUTE}), 0);
}

static void an_empty_epoch_decides_as_well(void **state)
{
    (void)state;
    opening(1, NOON);
    assert_int_equal(LEFT_OF(1, {41, NOON - MINUTE}, {42, NOON + 2 * HOUR}), 41);
}

/* Many pieces; the one that is looked for is at the beginning, or the reading ends before. */
static void the_log_is_read_back_as_far_as_it_takes(void **state)
{
    (void)state;
    opening(1, NOON);
    for (uint32_t i = 0; i < 60; i++)
        transaction(1, 100 + i, NOON + i * HOUR, 100000);
    transaction(1, 98, NOON + 59 * HOUR, 10);
    assert_int_equal(LEFT_OF(1, {98, NOON + 58 * HOUR}, {97, NOON + 58 * HOUR}), 98);
    assert_int_equal(LEFT_OF(1, {102, NOON + 2 * HOUR}, {97, NOON + 3 * HOUR}), 102);
    assert_int_equal(LEFT_OF(1, {150, NOON + 50 * HOUR}, {97, NOON + 3 * HOUR}), 150);
}

static void P22_a_clock_that_was_set_back_hides_nothing(void **state)
{
    (void)state;
    opening(1, NOON);
    for (uint32_t i = 0; i < 5; i++)
        transaction(1, 50 + i, NOON + 4 * HOUR, 10);
    transaction(1, 77, NOON + 5 * HOUR, 10);
    for (uint32_t i = 0; i < 30; i++) /* and now it is fifty minutes earlier */
        transaction(1, 60 + i % 10, NOON + 5 * HOUR - 50 * MINUTE, 100000);
    assert_int_equal(LEFT_OF(1, {77, NOON + 5 * HOUR - MINUTE}, {78, NOON + 5 * HOUR - MINUTE}), 77);
}

static void records_that_are_none_of_ours_are_passed_by(void **state)
{
    struct spate_record record = {.value = spate_slice_str("hello")};
    struct spate_writer *writer;
    size_t taken;

    (void)state;
    opening(1, NOON);
    transaction(1, 21, NOON + 10 * HOUR, 10);
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    spate_publisher_close(&publisher);
    publisher = (struct spate_publisher){0};
    {
        struct spate_bus *bus;

        assert_int_equal(spate_bus_open(&scratch.config, &bus, &err), SPATE_OK);
        assert_int_equal(spate_bus_writer_open(bus, "shop", 0, &writer, &err), SPATE_OK);
        assert_int_equal(spate_writer_publish(writer, &record, 1, &taken, &err), SPATE_OK);
        spate_writer_close(writer);
        spate_bus_close(bus);
    }
    assert_int_equal(spate_publisher_open(&publisher, &config, &err), SPATE_OK);
    assert_int_equal(LEFT_OF(1, {21, NOON + 9 * HOUR}, {22, NOON + 9 * HOUR}), 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(P91_what_the_log_holds_stays_and_what_merely_runs_does_not, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_started_when_we_may_not_know_stays, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P91_what_may_have_committed_before_the_epoch_stays, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(an_empty_epoch_decides_as_well, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_log_is_read_back_as_far_as_it_takes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(P22_a_clock_that_was_set_back_hides_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(records_that_are_none_of_ours_are_passed_by, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
