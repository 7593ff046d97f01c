/* Where to go on, on a real local bus: anchors, an incomplete transaction at the tail, epochs, comparing. */
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/publisher.h"
#include "connector/recovery.h"
#include "tests/support/bus_scratch.h"

static struct bus_scratch scratch;
static struct spate_connector_config config;
static struct spate_publisher publisher;
static struct spate_ledger ledger;
static struct spate_table *table;
static struct spate_epoch_record newest;
static struct spate_tail tail;
static struct spate_err err;

static int set_up(void **state)
{
    static char name[] = "shop";

    (void)state;
    err = (struct spate_err){0};
    bus_scratch_init(&scratch, 0);
    config = (struct spate_connector_config){.name = name, .bus = scratch.config};
    spate_ledger_init(&ledger, 1024);
    spate_ledger_start(&ledger, 1);
    if (spate_publisher_open(&publisher, &config, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    table = spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);
    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("integer"), spate_slice_str(""),
                           23, -1, 4, true, SPATE_CLASS_INT);
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
    spate_epoch_drop(&newest);
    bus_scratch_fini(&scratch);
    return 0;
}

static struct spate_change change(uint64_t epoch, uint64_t n, uint64_t commit_lsn, uint32_t ordinal,
                                  uint64_t end)
{
    static const struct spate_value after[1] = {{SPATE_VALUE_TEXT, {"1", 1}}};

    return (struct spate_change){
        .op = SPATE_OP_INSERT,
        .n = n,
        .epoch = epoch,
        .pos = {commit_lsn, ordinal},
        .end = end,
        .xid = 7,
        .commit_us = 1000000,
        .source = spate_slice_str("shop"),
        .table = table,
        .after = after,
    };
}

static void settle(void)
{
    if (spate_publisher_settle(&publisher, &ledger, &err) != SPATE_OK)
        fail_msg("%s", err.text);
}

static void put(uint64_t epoch, uint64_t n, uint64_t commit_lsn, uint32_t ordinal, uint64_t end)
{
    struct spate_change c = change(epoch, n, commit_lsn, ordinal, end);

    assert_int_equal(spate_publisher_change(&publisher, &c, 0, &err), SPATE_OK);
    while (spate_publisher_full(&publisher))
        assert_int_not_equal(spate_publisher_flush(&publisher, &err), SPATE_FAIL);
}

static void put_heartbeat(uint64_t epoch, uint64_t at, uint64_t end)
{
    spate_publisher_heartbeat(
        &publisher,
        &(struct spate_heartbeat){.at = at, .epoch = epoch, .end = end, .source = spate_slice_str("shop")},
        0);
}

static void put_epoch(uint64_t epoch, uint64_t end)
{
    struct spate_epoch e = {.epoch = epoch,
                            .end = end,
                            .source = spate_slice_str("shop"),
                            .uuid = spate_slice_str("00000000-0000-4000-8000-000000000000"),
                            .why = spate_slice_str("test")};

    e.identity.system = e.identity.database = e.identity.slot = e.identity.publication = spate_slice_str("x");
    spate_publisher_epoch(&publisher, &e, 0);
    spate_epoch_keep(&newest, &e);
}

static void find(uint64_t confirmed)
{
    settle();
    if (spate_recovery_tail(publisher.bus, publisher.topic, &newest, confirmed, &tail, &err) != SPATE_OK)
        fail_msg("%s", err.text);
}

static void an_empty_stream(void **state)
{
    (void)state;
    find(100);
    assert_true(tail.bus.stream_empty);
}

static void everything_confirmed_leaves_nothing_to_compare(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 0);
    put(1, 2, 110, 2, 120);
    find(120);
    assert_int_equal(tail.first, 2);
    assert_int_equal(tail.last, 2);
    assert_int_equal(tail.bus.greatest_end, 120);
    assert_int_equal(tail.bus.last_n, 2);
}

static void P2_a_transaction_is_confirmed_iff_its_commit_is_below(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 140);
    put(1, 3, 150, 1, 160);
    find(120); /* 130 and 150 come again */
    assert_int_equal(tail.first, 1);
    assert_int_equal(tail.last, 3);
    find(130); /* 130 is not below 130 */
    assert_int_equal(tail.first, 1);
    find(131);
    assert_int_equal(tail.first, 2);
}

static void an_incomplete_transaction_at_the_tail_goes_on_in_its_middle(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 0);
    put(1, 3, 130, 2, 0);
    find(120);
    assert_int_equal(tail.first, 1);
    assert_int_equal(tail.last, 3);
    assert_int_equal(tail.last_commit, 130);
    assert_int_equal(tail.bus.greatest_end, 120); /* what the slot may have reached */
    assert_int_equal(tail.bus.last_n, 1);         /* the last n of a complete transaction */
}

static void a_heartbeat_is_an_anchor(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put_heartbeat(1, 1, 500);
    put(1, 2, 510, 1, 520);
    find(500);
    assert_int_equal(tail.first, 1);
    assert_int_equal(tail.last, 2);
    find(499); /* the heartbeat was not confirmed: back to the change before it */
    assert_int_equal(tail.first, 1);
    assert_int_equal(tail.bus.greatest_end, 520);
}

static void P15_below_the_epochs_opening_nothing_is_numbered(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    find(90); /* a crash took the slot back */
    assert_int_equal(tail.first, 0);
    assert_int_equal(tail.last, 1);
    assert_int_equal(tail.skip_below, 100);
}

static void the_newest_epoch_is_what_counts(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 0); /* left open when the epoch broke */
    put_epoch(2, 120);
    put(2, 1, 130, 1, 0);
    put(1, 3, 130, 2, 140); /* a zombie of epoch 1 */
    put(2, 2, 130, 2, 140);
    find(120);
    assert_int_equal(tail.first, 0);
    assert_int_equal(tail.last, 2);
    assert_int_equal(tail.bus.stream_epoch, 2);
    assert_int_equal(tail.bus.greatest_end, 140);
}

static void a_half_opened_epoch_is_seen(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    settle();
    newest.epoch.epoch = 2; /* stands in _schemas only */
    find(120);
    assert_int_equal(tail.bus.stream_epoch, 1);
    assert_false(tail.bus.stream_empty);
}

static void K2_what_follows_a_hole_does_not_count(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 3, 150, 1, 160); /* 2 was never delivered */
    find(120);
    assert_int_equal(tail.last, 1);
    put(1, 2, 130, 1, 140);
    put(1, 3, 150, 1, 160);
    find(120);
    assert_int_equal(tail.last, 3);
}

/* A zombie repeats a confirmed change after newer ones: what comes again must not be numbered from there. */
static void K15_a_zombies_repetition_is_no_anchor(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 140);
    put(1, 3, 150, 1, 160);
    put(1, 1, 110, 1, 120);
    find(140);
    assert_int_equal(tail.first, 2);
    assert_int_equal(tail.last, 3);
    put_epoch(1, 100); /* even the opening may come again */
    find(140);
    assert_int_equal(tail.first, 2);
    assert_int_equal(tail.last, 3);
    find(160);
    assert_int_equal(tail.first, 3);
    assert_int_equal(tail.last, 3);
    put_heartbeat(1, 1, 125);
    find(160);
    assert_int_equal(tail.first, 3);
    assert_int_equal(tail.bus.greatest_end, 160);
}

/* Nothing is confirmed yet, and the opening comes again behind changes: followers are further than that. */
static void K15_of_a_repeated_opening_the_first_counts(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 140);
    put_epoch(1, 100);
    find(100);
    assert_int_equal(tail.first, 0);
    assert_int_equal(tail.last, 2);
    assert_int_equal(tail.bus.last_n, 2);
    put_epoch(2, 140);
    put(1, 3, 150, 1, 160); /* a zombie */
    put(2, 1, 150, 1, 160);
    put_epoch(2, 140);
    find(140);
    assert_int_equal(tail.first, 0);
    assert_int_equal(tail.last, 1);
}

/* The slot stands at no record's end (somebody advanced it): only the whole log tells. */
static void K15_without_a_proof_all_of_the_log_is_searched(void **state)
{
    enum { PAIRS = 60000 };

    (void)state;
    put_epoch(1, 100);
    for (uint64_t n = 1; n <= 5; n++)
        put(1, n, 100 + n * 10, 1, 105 + n * 10);
    for (int i = 0; i < PAIRS; i++) /* more than a reader's piece of them */
        put(1, 3, 130, 1, 135);
    find(152);
    assert_int_equal(tail.first, 5);
    assert_int_equal(tail.last, 5);
}

/* What stands beyond a hole has not been reached: neither the slot nor a new epoch may rest on it. */
static void K2_a_remnant_beyond_a_hole_is_not_reached(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 3, 150, 1, 160);
    put_heartbeat(1, 3, 170);
    find(120);
    assert_int_equal(tail.bus.greatest_end, 120);
    assert_int_equal(tail.bus.last_n, 1);
    assert_int_equal(tail.bus.last_commit, 150); /* the source had it, though: its WAL cannot be older */
    put(1, 2, 130, 1, 140);
    put(1, 3, 150, 1, 160);
    find(160);
    assert_int_equal(tail.first, 3);
    assert_int_equal(tail.last, 3);
    assert_int_equal(tail.bus.greatest_end, 160);
}

/* A number that seems to prove the place, while what the slot has reached lies further back. */
static void K15_a_proof_needs_the_slots_place_as_well(void **state)
{
    enum { PAIRS = 60000 };

    (void)state;
    put_epoch(1, 100);
    put_heartbeat(1, 0, 110);
    for (int i = 0; i < PAIRS; i++)
        put(1, 1, 120, 1, 125);
    put_epoch(1, 100);
    find(110);
    assert_int_equal(tail.first, 0);
    assert_true(tail.bus.greatest_end >= 110);
}

static void K15_a_repetition_behind_a_heartbeat_is_no_contradiction(void **state)
{
    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    put(1, 2, 130, 1, 140);
    put_heartbeat(1, 2, 141);
    put(1, 1, 110, 1, 120);
    find(141);
    assert_int_equal(tail.first, 2);
    assert_int_equal(tail.last, 2);
}

static void a_foreign_record_is_passed_by_and_a_newer_format_is_not(void **state)
{
    static const char *const lines[] = {"hello", "{\"spate\":1,\"op\":\"insert\"}",
                                        "{\"spate\":99,\"op\":\"insert\",\"n\":2}"};
    struct spate_record record = {0};
    size_t taken;

    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    settle();
    for (size_t i = 0; i < 3; i++) {
        record.value = spate_slice_str(lines[i]);
        assert_int_equal(spate_writer_publish(publisher.stream, &record, 1, &taken, &err), SPATE_OK);
        if (i == 1) {
            find(120);
            assert_int_equal(tail.last, 1);
        }
    }
    settle();
    assert_int_equal(spate_recovery_tail(publisher.bus, publisher.topic, &newest, 120, &tail, &err),
                     SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "format 99"));
}

/* A writer that was killed in its first publish into a segment leaves nothing there but padding. */
static void a_newest_segment_without_a_record_is_passed_by(void **state)
{
    char path[400];
    int fd;

    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    settle();
    spate_publisher_close(&publisher);
    bus_scratch_reboot(&scratch);
    assert_int_equal(spate_publisher_open(&publisher, &config, &err), SPATE_OK);
    /* The claim of a dead writer, as fetch-add and compare-and-swap leave it. */
    snprintf(path, sizeof path, "%s/shop/%016" PRIx64 ".seg", scratch.hot,
             spate_writer_end(publisher.stream).at);
    spate_publisher_close(&publisher);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &(uint64_t){UINT64_C(1) << 36 | 4096}, 8, 128), 8);
    assert_int_equal(pwrite(fd, &(uint64_t){UINT64_C(1) << 56 | 4096}, 8, 4096), 8);
    close(fd);
    assert_int_equal(spate_publisher_open(&publisher, &config, &err), SPATE_OK);
    find(120);
    assert_false(tail.bus.stream_empty);
    assert_int_equal(tail.bus.stream_epoch, 1);
    assert_int_equal(tail.last, 1);
}

static void a_long_tail_is_found_piece_by_piece(void **state)
{
    enum { LONG = 200000 };

    (void)state;
    put_epoch(1, 100);
    for (uint64_t n = 1; n <= LONG; n++)
        put(1, n, 100 + n * 10, 1, 105 + n * 10);
    find(100 + 1000 * 10 + 5);
    assert_int_equal(tail.first, 1000);
    assert_int_equal(tail.last, LONG);
    find(100 + LONG * 10 + 5);
    assert_int_equal(tail.first, LONG);
    assert_int_equal(tail.bus.greatest_end, 105 + LONG * 10);
}

static void P75_what_comes_again_is_compared_in_step(void **state)
{
    struct spate_recheck recheck = {0};
    struct spate_change c;

    (void)state;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 0);
    put(1, 2, 110, 2, 120);
    put_heartbeat(1, 2, 125);
    put(1, 3, 130, 1, 140);
    find(100);
    assert_int_equal(spate_recheck_open(&recheck, publisher.bus, publisher.topic, 1, &tail, &err), SPATE_OK);
    c = change(1, 1, 110, 1, 0);
    assert_int_equal(spate_recheck_change(&recheck, &c, &err), SPATE_OK);
    c = change(1, 2, 110, 2, 120);
    assert_int_equal(spate_recheck_change(&recheck, &c, &err), SPATE_OK);
    c = change(1, 3, 130, 1, 140);
    assert_int_equal(spate_recheck_change(&recheck, &c, &err), SPATE_OK);
    assert_null(recheck.reader); /* nothing is left to compare */
    spate_recheck_close(&recheck);
}

static void P75_any_difference_is_a_fence(void **state)
{
    struct spate_change other[] = {
        change(1, 1, 111, 1, 120), change(1, 1, 110, 2, 120), change(1, 1, 110, 1, 121),
        change(1, 1, 110, 1, 0),   change(1, 1, 110, 1, 120), change(1, 1, 110, 1, 120),
        change(1, 1, 110, 1, 120),
    };

    (void)state;
    other[4].xid = 8;
    other[5].commit_us++;
    other[6].op = SPATE_OP_DELETE;
    put_epoch(1, 100);
    put(1, 1, 110, 1, 120);
    find(100);
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        struct spate_recheck recheck = {0};

        err = (struct spate_err){0};
        assert_int_equal(spate_recheck_open(&recheck, publisher.bus, publisher.topic, 1, &tail, &err),
                         SPATE_OK);
        assert_int_equal(spate_recheck_change(&recheck, &other[i], &err), SPATE_FAIL);
        assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
        assert_non_null(strstr(err.text, "--new-epoch"));
        spate_recheck_close(&recheck);
    }
}

/* A btree compresses its keys, so one of 200 kB is legal; the bus goes without a handle then. */
static void a_key_longer_than_the_bus_takes_is_left_out(void **state)
{
    static char key[200000];
    const struct spate_value after[1] = {{SPATE_VALUE_TEXT, {key, sizeof key}}};
    struct spate_change c = change(1, 1, 110, 1, 120);

    (void)state;
    memset(key, 'b', sizeof key);
    spate_table_free(table);
    table = spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);
    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("text"), spate_slice_str(""), 25,
                           -1, -1, true, SPATE_CLASS_TEXT);
    spate_table_seal(table);
    table->v = 1;
    c.table = table;
    c.after = after;
    put_epoch(1, 100);
    assert_int_equal(spate_publisher_change(&publisher, &c, 0, &err), SPATE_OK);
    find(120);
    assert_int_equal(tail.last, 1);
}

static void an_oversized_row_is_refused_with_its_table(void **state)
{
    size_t size = publisher.max_record = 1 << 20; /* what the bus takes is more than a test should make */
    char *large = malloc(size);
    struct spate_value after[1] = {{SPATE_VALUE_TEXT, {large, size}}};
    struct spate_change c = change(1, 1, 110, 1, 120);

    (void)state;
    assert_non_null(large);
    memset(large, '7', size);
    c.after = after;
    assert_int_equal(spate_publisher_change(&publisher, &c, 0, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_QUARANTINE);
    assert_int_equal(err.lsn, 110);
    assert_non_null(strstr(err.text, "public.t"));
    assert_true(spate_publisher_empty(&publisher)); /* nothing of it stays */
    free(large);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(an_empty_stream),
        T(everything_confirmed_leaves_nothing_to_compare),
        T(P2_a_transaction_is_confirmed_iff_its_commit_is_below),
        T(an_incomplete_transaction_at_the_tail_goes_on_in_its_middle),
        T(a_heartbeat_is_an_anchor),
        T(P15_below_the_epochs_opening_nothing_is_numbered),
        T(the_newest_epoch_is_what_counts),
        T(a_half_opened_epoch_is_seen),
        T(K2_what_follows_a_hole_does_not_count),
        T(K15_a_zombies_repetition_is_no_anchor),
        T(K15_of_a_repeated_opening_the_first_counts),
        T(K15_without_a_proof_all_of_the_log_is_searched),
        T(K2_a_remnant_beyond_a_hole_is_not_reached),
        T(K15_a_proof_needs_the_slots_place_as_well),
        T(K15_a_repetition_behind_a_heartbeat_is_no_contradiction),
        T(a_foreign_record_is_passed_by_and_a_newer_format_is_not),
        T(a_newest_segment_without_a_record_is_passed_by),
        T(a_long_tail_is_found_piece_by_piece),
        T(P75_what_comes_again_is_compared_in_step),
        T(P75_any_difference_is_a_fence),
        T(a_key_longer_than_the_bus_takes_is_left_out),
        T(an_oversized_row_is_refused_with_its_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
