/* What a connector says of itself, from samples of a stream that is played by hand over a real bus. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "connector/status.h"
#include "connector/stream.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"
#include "tests/support/bus_scratch.h"

static struct bus_scratch scratch;
static struct spate_connector_config config;
static struct spate_stream stream;
static struct spate_status *status;
static struct spate_connector_facts facts;
static struct spate_err err;
static int64_t now_ms;

static int set_up(void **state)
{
    static char name[] = "shop", slot[] = "spate", publication[] = "spate", url[] = "host=/nowhere";

    (void)state;
    err = (struct spate_err){0};
    bus_scratch_init(&scratch, 0);
    config = (struct spate_connector_config){.name = name,
                                             .bus = scratch.config,
                                             .source = {.slot = slot,
                                                        .publication = publication,
                                                        .url = url,
                                                        .watch_ms = 3600000,
                                                        .retained_warning_bytes = 1 << 28}};
    stream = (struct spate_stream){.config = &config};
    spate_ledger_init(&stream.ledger, 1024);
    spate_ledger_start(&stream.ledger, 100);
    assert_int_equal(spate_publisher_open(&stream.publisher, &config, &err), SPATE_OK);
    stream.repl.copying = true;
    stream.repl.said = 100;
    stream.tx.epoch = 3;
    stream.tx.next_n = 8;
    stream.tail.last = 7;
    stream.dry = true;
    status = spate_status_open(&config);
    now_ms = spate_clock_ms();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_status_close(status);
    spate_publisher_close(&stream.publisher);
    spate_ledger_fini(&stream.ledger);
    bus_scratch_fini(&scratch);
    return 0;
}

/* Lets a sample's time pass and looks. */
static const struct spate_connector_facts *sampled(void)
{
    now_ms += 1000;
    spate_status_turn(status, &stream, now_ms);
    spate_status_facts(status, &facts);
    return &facts;
}

/* A transaction of `changes` was given to the bus, which has not made it durable. Returns its token. */
static uint64_t publish(uint64_t changes, uint64_t end, int64_t commit_us)
{
    uint64_t token = 0;

    spate_ledger_received(&stream.ledger, end);
    assert_int_equal(spate_ledger_add(&stream.ledger, end, &token, &err), SPATE_OK);
    stream.tx.next_n += changes;
    stream.counts.ended_n = stream.tx.next_n - 1;
    stream.counts.ended_us = commit_us;
    return token;
}

static int64_t ago_s(int64_t seconds)
{
    return spate_clock_wall_us() - seconds * 1000000;
}

static void lag_is_what_was_published_and_is_not_durable(void **state)
{
    uint64_t first, second;

    (void)state;
    spate_status_streaming(status, &stream);
    assert_int_equal(sampled()->plane.n, 7);
    assert_int_equal(facts.plane.durable_n, 7);
    assert_int_equal(facts.plane.epoch, 3);
    assert_int_equal(facts.now.lag_changes, 0);
    assert_int_equal(facts.now.lag_us, 0);
    assert_int_equal(facts.now.lag_bytes, 0);

    first = publish(10, 150, ago_s(500));
    sampled();
    second = publish(5, 200, ago_s(40));
    assert_int_equal(sampled()->plane.n, 22);
    assert_int_equal(facts.plane.durable_n, 7);
    assert_int_equal(facts.now.lag_changes, 15);
    assert_in_range(facts.now.lag_us, 499 * 1000000, 520 * 1000000); /* the oldest one counts */
    assert_int_equal(facts.now.lag_bytes, 100);
    assert_int_equal(facts.plane.unconfirmed_transactions, 2);

    spate_ledger_durable(&stream.ledger, first);
    assert_int_equal(sampled()->plane.durable_n, 17);
    assert_int_equal(facts.now.lag_changes, 5);
    assert_in_range(facts.now.lag_us, 39 * 1000000, 60 * 1000000);

    spate_ledger_durable(&stream.ledger, second);
    assert_int_equal(sampled()->plane.durable_n, 22);
    assert_int_equal(facts.now.lag_changes, 0);
    assert_int_equal(facts.now.lag_us, 0);
    assert_int_equal(facts.plane.durable_lsn, 200);
    assert_int_equal(facts.plane.confirmed_lsn, 100); /* known here, and not yet said to the source */
}

/* More samples than are remembered, while nothing becomes durable: what is known stays true. */
static void a_bus_that_stands_still_for_long(void **state)
{
    uint64_t tokens[200];

    (void)state;
    spate_status_streaming(status, &stream);
    for (size_t i = 0; i < 200; i++) {
        tokens[i] = publish(1, 150 + i, ago_s(1000 - (int64_t)i));
        assert_int_equal(sampled()->now.lag_changes, i + 1);
        assert_in_range(facts.now.lag_us, 999 * 1000000, 1020 * 1000000);
    }
    spate_ledger_durable(&stream.ledger, tokens[49]);
    assert_int_equal(sampled()->plane.durable_n, 57);
    spate_ledger_durable(&stream.ledger, tokens[150]); /* among those that share one mark */
    assert_in_range(sampled()->plane.durable_n, 57, 158);
    spate_ledger_durable(&stream.ledger, tokens[199]);
    assert_int_equal(sampled()->plane.durable_n, 207);
    assert_int_equal(facts.now.lag_us, 0);
}

static void a_transaction_that_is_being_read_is_as_old_as_its_commit(void **state)
{
    (void)state;
    spate_status_streaming(status, &stream);
    stream.tx.open = true;
    stream.tx.commit_us = ago_s(3600);
    stream.tx.next_n = 1000008;
    assert_in_range(sampled()->now.lag_us, INT64_C(3599000000), INT64_C(3620000000));
    assert_int_equal(facts.now.lag_changes, 1000000);
    stream.tx.commit_us = spate_clock_wall_us() + 60000000; /* the source's clock is ahead of ours */
    assert_int_equal(sampled()->now.lag_us, 0);
}

/* What was numbered before is compared again after a reconnect; it is durable all the while. */
static void after_a_reconnect_numbers_do_not_go_back(void **state)
{
    (void)state;
    spate_status_streaming(status, &stream);
    publish(10, 150, ago_s(5));
    sampled();
    stream.tail.last = 17;
    stream.tx.next_n = 3;
    spate_ledger_start(&stream.ledger, 100);
    spate_status_streaming(status, &stream);
    assert_int_equal(sampled()->plane.n, 17);
    assert_int_equal(facts.plane.durable_n, 17);
    assert_int_equal(facts.now.lag_changes, 0);
    assert_int_equal(facts.sessions, 2);
}

static void states_say_what_is_waited_for(void **state)
{
    struct spate_err busy = {.verdict = SPATE_RETRY, .sqlstate = "55006", .text = "slot in use"};
    struct spate_err down = {.verdict = SPATE_RETRY, .text = "connection refused"};
    struct spate_err fence = {.verdict = SPATE_FATAL, .exit_code = SPATE_EXIT_FENCED, .text = "slot is gone"};
    struct spate_err poison = {.verdict = SPATE_FATAL, .text = "too large"};
    static const struct {
        enum spate_connector_state state;
        int ready;
    } expected[] = {{SPATE_CONNECTOR_WAITING_SLOT, 0},
                    {SPATE_CONNECTOR_RETRYING, 0},
                    {SPATE_CONNECTOR_FENCED, 0},
                    {SPATE_CONNECTOR_STOPPED, 0}};
    const struct spate_err *const errors[] = {&busy, &down, &fence, &poison};

    (void)state;
    spate_status_facts(status, &facts);
    assert_int_equal(facts.state, SPATE_CONNECTOR_STARTING);
    assert_false(facts.now.ready);
    assert_true(facts.now.live);
    spate_status_state(status, SPATE_CONNECTOR_WAITING_BUS, "owned by process 42");
    spate_status_facts(status, &facts);
    assert_string_equal(facts.now.reason, "waiting for the bus: owned by process 42");
    assert_true(facts.now.live);
    for (size_t i = 0; i < 4; i++) {
        spate_status_failed(status, errors[i], i < 2);
        spate_status_facts(status, &facts);
        assert_int_equal(facts.state, expected[i].state);
        assert_int_equal(facts.now.ready, expected[i].ready);
        assert_true(facts.now.live);
        assert_non_null(strstr(facts.now.reason, errors[i]->text));
        assert_string_equal(facts.error.text, errors[i]->text);
    }
    assert_int_equal(facts.retries, 2);
    assert_string_equal(facts.error.verdict, "fatal");
}

/* While nothing streams, something may have happened since it ended. */
static void lag_grows_while_nothing_streams(void **state)
{
    struct spate_err down = {.verdict = SPATE_RETRY, .text = "connection refused"};

    (void)state;
    spate_status_streaming(status, &stream);
    assert_int_equal(sampled()->now.lag_us, 0);
    spate_status_failed(status, &down, true);
    spate_status_facts(status, &facts);
    assert_true(facts.plane.behind_since_us > 0);
    spate_connector_report_derive(&facts, spate_clock_wall_us() + 60000000, now_ms);
    assert_in_range(facts.now.lag_us, 60000000, 80000000);
}

static void streaming(struct spate_connector_facts *f, int64_t turned_ms, int64_t progress_ms, int64_t at_ms)
{
    *f = (struct spate_connector_facts){.state = SPATE_CONNECTOR_STREAMING,
                                        .plane = {.turned_ms = turned_ms, .progress_ms = progress_ms}};
    spate_connector_report_derive(f, 1, at_ms);
}

static void health_knows_a_data_plane_that_hangs_and_a_bus_that_is_stuck(void **state)
{
    struct spate_connector_facts f;

    (void)state;
    streaming(&f, 1000, 1000, 2000);
    assert_true(f.now.live && f.now.ready);
    streaming(&f, 1000, 1000 + SPATE_CONNECTOR_HUNG_MS, 1001 + SPATE_CONNECTOR_HUNG_MS);
    assert_false(f.now.live || f.now.ready);
    assert_non_null(strstr(f.now.reason, "has not turned for 30 s"));
    streaming(&f, 1000 + SPATE_CONNECTOR_STUCK_MS, 1000, 1001 + SPATE_CONNECTOR_STUCK_MS);
    assert_true(f.now.live);
    assert_false(f.now.ready);
    assert_non_null(strstr(f.now.reason, "made nothing durable for 30 s"));
    assert_null(strstr(f.now.reason, "spate bus"));
    strcpy(f.bus, "local");
    spate_connector_report_derive(&f, 1, 1001 + SPATE_CONNECTOR_STUCK_MS);
    assert_non_null(strstr(f.now.reason, "wait for it: `spate bus ls` says what stops it"));
}

/* A hung data plane is one thing; one that waits for the bus at start has nothing to turn. */
static void waiting_is_not_hanging(void **state)
{
    struct spate_connector_facts f = {.state = SPATE_CONNECTOR_WAITING_BUS};

    (void)state;
    spate_connector_report_derive(&f, 1, 3600000);
    assert_true(f.now.live);
}

static void a_test_without_a_status_reports_to_nobody(void **state)
{
    (void)state;
    spate_status_state(NULL, SPATE_CONNECTOR_STREAMING, "x");
    spate_status_turn(NULL, &stream, 1);
    spate_status_streaming(NULL, &stream);
    spate_status_failed(NULL, &err, true);
    spate_status_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lag_is_what_was_published_and_is_not_durable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_bus_that_stands_still_for_long, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_transaction_that_is_being_read_is_as_old_as_its_commit, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(after_a_reconnect_numbers_do_not_go_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(states_say_what_is_waited_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lag_grows_while_nothing_streams, set_up, tear_down),
        cmocka_unit_test(health_knows_a_data_plane_that_hangs_and_a_bus_that_is_stuck),
        cmocka_unit_test(waiting_is_not_hanging),
        cmocka_unit_test(a_test_without_a_status_reports_to_nobody),
    };

    spate_signals_init();
    spate_log_level_set(SPATE_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
