/* Publisher, ledger and recovery over a bus that refuses, delays and loses (docs/hazards.md, I5, K2, K8):
 * what may be confirmed to Postgres is durable on the bus, with everything before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "connector/publisher.h"
#include "connector/recovery.h"
#include "core/log.h"
#include "tests/support/bus_faulty.h"
#include "tests/support/bus_memory.h"

#include <stdio.h>

#define TOPIC "shop"

static struct bus_memory memory;
static struct bus_faulty faulty;
static struct spate_publisher publisher;
static struct spate_ledger ledger;
static struct spate_epoch_record newest;
static struct spate_err err;

static void open_writer(void)
{
    publisher.count = publisher.done = 0;
    publisher.failed = false;
    assert_int_equal(spate_bus_writer_open(&faulty.bus, TOPIC, SPATE_TOPIC_CREATE, &publisher.stream, &err),
                     SPATE_OK);
}

static int set_up(void **state)
{
    struct spate_epoch epoch = {.epoch = 1,
                                .end = 100,
                                .source = spate_slice_str(TOPIC),
                                .uuid = spate_slice_str("00000000-0000-4000-8000-000000000000"),
                                .why = spate_slice_str("test")};

    (void)state;
    spate_log_level_set(SPATE_LOG_ERROR);
    err = (struct spate_err){0};
    bus_memory_init(&memory);
    bus_faulty_init(&faulty, &memory.bus, 3);
    publisher.name = publisher.slot = TOPIC;
    publisher.max_record = BUS_MEMORY_MOST;
    snprintf(publisher.topic, sizeof publisher.topic, "%s", TOPIC);
    open_writer();
    spate_ledger_init(&ledger, 1024);
    spate_ledger_start(&ledger, 100);
    epoch.identity.system = epoch.identity.database = epoch.identity.slot = epoch.identity.publication =
        spate_slice_str("x");
    spate_epoch_keep(&newest, &epoch);
    spate_publisher_epoch(&publisher, &epoch, 0);
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    faulty.write.seen = 0; /* scripts count changes: n is the record */
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_writer_close(publisher.stream);
    spate_buf_fini(&publisher.bytes);
    spate_ledger_fini(&ledger);
    spate_epoch_drop(&newest);
    bus_memory_fini(&memory);
    return 0;
}

/* One transaction of one change for each n; it ends at 100 + 10 n + 5. */
static uint64_t end_of(uint64_t n)
{
    return 100 + 10 * n + 5;
}

static void put(uint64_t first, uint64_t last)
{
    for (uint64_t n = first; n <= last; n++) {
        struct spate_change change = {
            .op = SPATE_OP_MESSAGE,
            .n = n,
            .epoch = 1,
            .pos = {end_of(n) - 5, 1},
            .end = end_of(n),
            .xid = 7,
            .source = spate_slice_str(TOPIC),
            .prefix = spate_slice_str("test"),
            .content = spate_slice_str("row"),
        };
        uint64_t token = 0;

        spate_ledger_received(&ledger, change.end);
        assert_int_equal(spate_ledger_add(&ledger, change.end, &token, &err), SPATE_OK);
        assert_int_equal(spate_publisher_change(&publisher, &change, token, &err), SPATE_OK);
    }
}

/* What a follower has accepted by now. */
static uint64_t accepted(void)
{
    const struct bus_memory_topic *topic = bus_memory_topic(&memory, TOPIC);
    struct spate_rule rule = {.epoch = 1};
    struct spate_arena arena = {0};

    for (size_t i = 0; i < topic->end; i++) {
        struct spate_head head;

        assert_int_equal(spate_decode_head(spate_slice(topic->records[i].bytes + topic->records[i].key_len,
                                                       topic->records[i].value_len),
                                           &head, &arena, &err),
                         SPATE_OK);
        assert_int_not_equal(spate_rule_feed(&rule, &head), SPATE_DIVERGED);
    }
    spate_arena_fini(&arena);
    return rule.last;
}

static void I5_holds(void)
{
    assert_true(ledger.confirmed <= end_of(accepted()));
}

/* Stop the world: the writer is closed, and a new one begins where the log says. Returns T. */
static uint64_t recover(void)
{
    struct spate_tail tail;

    spate_writer_close(publisher.stream);
    open_writer();
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    if (spate_recovery_tail(&memory.bus, TOPIC, &newest, ledger.confirmed, &tail, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    spate_ledger_start(&ledger, ledger.confirmed);
    return tail.last;
}

static void K8_a_full_bus_is_offered_the_same_again(void **state)
{
    (void)state;
    faulty.write.chance[BUS_REFUSE_AGAIN] = .5;
    put(1, 200);
    for (int turn = 0; turn < 2000 && !spate_publisher_empty(&publisher); turn++) {
        assert_int_not_equal(spate_publisher_flush(&publisher, &err), SPATE_FAIL);
        assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_OK);
        I5_holds();
    }
    assert_true(faulty.write.injected[BUS_REFUSE_AGAIN] > 50);
    assert_int_equal(accepted(), 200);
    assert_int_equal(ledger.confirmed, end_of(200));
    assert_int_equal(bus_memory_topic(&memory, TOPIC)->end,
                     201); /* nothing twice: with the epoch's opening */
}

static void a_refusal_fails_the_bus_and_confirms_nothing(void **state)
{
    static const struct bus_script refuse[] = {{5, BUS_REFUSE_RETRY}};

    (void)state;
    faulty.write.script = refuse;
    faulty.write.script_count = 1;
    put(1, 10);
    assert_int_equal(spate_publisher_flush(&publisher, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_true(publisher.failed);
    assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_OK);
    assert_int_equal(ledger.confirmed, end_of(4)); /* those before it were taken, and are durable */
    I5_holds();
    assert_int_equal(recover(), 4);
    put(5, 10);
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    assert_int_equal(accepted(), 10);
    assert_int_equal(ledger.confirmed, end_of(10));
}

static void late_acknowledgements_confirm_late(void **state)
{
    (void)state;
    faulty.manual = true;
    put(1, 50);
    assert_int_equal(spate_publisher_flush(&publisher, &err), SPATE_OK);
    assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_OK);
    assert_int_equal(ledger.confirmed, 100);
    for (uint64_t n = 1; n <= 50; n++) {
        assert_int_equal(bus_faulty_deliver(publisher.stream, 1, &err), SPATE_OK);
        assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_OK);
        assert_int_equal(ledger.confirmed, end_of(n));
    }
}

static void a_lost_acknowledgement_is_made_good_by_the_next(void **state)
{
    (void)state;
    faulty.acknowledgement_lost = .5;
    put(1, 100);
    assert_int_equal(spate_publisher_flush(&publisher, &err), SPATE_OK);
    assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_OK);
    assert_true(ledger.confirmed <= end_of(100));
    I5_holds();
    faulty.acknowledgement_lost = 0;
    put(101, 101);
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    assert_int_equal(ledger.confirmed, end_of(101));
    assert_true(spate_ledger_idle(&ledger));
}

/* Every place of a hole in a run of twenty. */
static void K2_nothing_behind_a_hole_is_confirmed(void **state)
{
    (void)state;
    for (uint64_t lost = 1; lost <= 20; lost++) {
        const struct bus_script lose = {lost, BUS_LOSE};
        uint64_t confirmed;

        if (lost > 1) {
            tear_down(NULL);
            set_up(NULL);
        }
        faulty.write.script = &lose;
        faulty.write.script_count = 1;
        put(1, 20);
        assert_int_equal(spate_publisher_flush(&publisher, &err), SPATE_OK);
        assert_int_equal(spate_publisher_poll(&publisher, &ledger, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_RETRY);
        assert_true(publisher.failed);
        assert_int_equal(bus_memory_topic(&memory, TOPIC)->end, 20); /* all others landed */
        confirmed = ledger.confirmed;
        assert_true(confirmed <= (lost == 1 ? 100 : end_of(lost - 1)));
        assert_int_equal(accepted(), lost - 1);
        assert_int_equal(recover(), lost - 1);
        put(lost, 20);
        assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
        assert_int_equal(accepted(), 20);
        assert_int_equal(ledger.confirmed, end_of(20));
    }
}

static void losses_delays_and_repetitions_at_random(void **state)
{
    enum { CHANGES = 5000 };
    uint64_t next = 1, recoveries = 0;

    (void)state;
    faulty.write.chance[BUS_LOSE] = .01;
    faulty.write.chance[BUS_DELAY] = .05;
    faulty.write.chance[BUS_DUPLICATE] = .05;
    faulty.write.chance[BUS_REFUSE_RETRY] = .005;
    faulty.acknowledgement_lost = .2;
    while (next <= CHANGES) {
        const uint64_t last = next + 20 < CHANGES ? next + 20 : CHANGES;

        put(next, last);
        next = last + 1;
        if (spate_publisher_flush(&publisher, &err) == SPATE_FAIL ||
            spate_publisher_poll(&publisher, &ledger, &err) == SPATE_FAIL) {
            assert_int_equal(err.verdict, SPATE_RETRY);
            I5_holds();
            next = recover() + 1;
            assert_true(next <= accepted() + 1);
            recoveries++;
        }
    }
    faulty.acknowledgement_lost = 0;
    memset(faulty.write.chance, 0, sizeof faulty.write.chance);
    if (spate_publisher_settle(&publisher, &ledger, &err) != SPATE_OK)
        put(recover() + 1, CHANGES);
    assert_int_equal(spate_publisher_settle(&publisher, &ledger, &err), SPATE_OK);
    assert_int_equal(accepted(), CHANGES);
    assert_true(recoveries > 20);
    assert_true(faulty.write.injected[BUS_DUPLICATE] > 100 && faulty.write.injected[BUS_DELAY] > 100);
}

int main(void)
{
#define F(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        F(K8_a_full_bus_is_offered_the_same_again), F(a_refusal_fails_the_bus_and_confirms_nothing),
        F(late_acknowledgements_confirm_late),      F(a_lost_acknowledgement_is_made_good_by_the_next),
        F(K2_nothing_behind_a_hole_is_confirmed),   F(losses_delays_and_repetitions_at_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
