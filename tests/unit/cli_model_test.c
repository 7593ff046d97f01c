/* The whole bridge over random histories (docs/hazards.md, X32): Postgres whose slot goes back, connectors
 * that are killed, frozen and live on as zombies, a bus that loses and repeats, retention, new epochs,
 * snapshot chunks, and a follower.
 *
 * Everything between them is the product's own: numbering, ledger, publisher, the tail, the judge, the
 * comparison, the sink's reader and its rule. Only the loop around them is played
 * (tests/support/model_writer.h). After every step: what the follower took is 1, 2, 3 ... once each, its rows
 * are the source's at that number, nothing that the slot has confirmed is missing, and nobody raises a false
 * alarm. At the end it has everything.
 *
 * The controls are rules that look right; each must break, or this test proves nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/clock.h"
#include "core/log.h"
#include "tests/support/model_writer.h"

enum { STEPS = 700 };

static struct {
    uint64_t recoveries, compared, chunks, duplicates, epochs, stale, injected[BUS_FAULTS];
} totals;

/* ---- the follower ---- */

static void take_change(uint64_t change)
{
    if (world.control != NO_NUMBER_RULE && change != world.taken + 1)
        violated("the follower took change %" PRIu64 " after %" PRIu64, change, world.taken);
    if (change > CHANGES)
        return;
    world.taken = change;
    world.rows[world.source.key[change]] = change;
}

/* A chunk carries its rows in "request": one number and a comma for each key. */
static void take_chunk(const struct spate_head *head)
{
    const char *at = head->request.at;

    for (size_t i = 0; i < KEYS; i++, at++) {
        char *next;

        world.rows[i] = strtoull(at, &next, 10);
        at = next;
    }
    world.chunks++;
}

static void check_rows(void)
{
    if (memcmp(world.rows, world.source.rows[world.taken], sizeof world.rows) != 0)
        violated("after change %" PRIu64 " the follower's rows are not the source's", world.taken);
}

/* What was open of the old epoch is void; the new one must begin where the last complete transaction ended.
 */
static void take_epoch(uint64_t epoch)
{
    if (world.follows && world.base[epoch] != world.complete)
        violated("epoch %" PRIu64 " begins after change %" PRIu64
                 ", and a follower that enters it has %" PRIu64,
                 epoch, world.base[epoch], world.complete);
    world.follows = true;
    world.taken = world.complete = world.base[epoch];
    memcpy(world.rows, world.source.rows[world.taken], sizeof world.rows);
}

/* The control followers do not ask the rule about everything. */
static void follow_wrongly(void)
{
    for (; world.wrong_at < stream()->end; world.wrong_at++) {
        const struct spate_head head = head_at(world.wrong_at);

        if (world.control == NO_NUMBER_RULE && spate_op_counts(head.op))
            take_change(world.base[head.epoch] + head.n);
        else if (world.control == NO_ANCHOR_RULE && head.op == SPATE_OP_CHUNK)
            take_chunk(&head);
        else
            continue;
        check_rows();
    }
}

void follow(void)
{
    struct spate_event event;
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_AGAIN;

    while (world.control != NO_NUMBER_RULE && !world.stale &&
           (rc = spate_feed_next(&world.feed, &event, &err)) == SPATE_OK) {
        if (event.kind == SPATE_EVENT_EPOCH)
            take_epoch(event.head.epoch);
        else if (event.kind == SPATE_EVENT_CHANGE)
            take_change(world.base[event.head.epoch] + event.head.n);
        else if (event.head.op == SPATE_OP_CHUNK)
            take_chunk(&event.head);
        if (event.boundary)
            world.complete = world.taken;
        check_rows();
    }
    /* A zombie's transaction that comes in between, or a repetition that makes the log's end look older than
     * it is: the opening of an epoch names a place that followers have passed. They are reloaded in vain, but
     * nothing is lost. */
    if (rc == SPATE_FAIL && strstr(err.text, "STALE: epoch") &&
        (world.slipped || world.base[world.epoch.epoch.epoch] < world.complete))
        world.stale = true;
    else if (rc == SPATE_FAIL)
        violated("the follower stopped: %s", err.text);
    if (world.control == NO_NUMBER_RULE || world.control == NO_ANCHOR_RULE)
        follow_wrongly();
}

/* The sink dies and goes on from what its last transaction stored. */
static void restart_follower(void)
{
    const struct spate_mark mark = world.feed.mark;
    struct spate_err err = {0};

    world.taken = world.complete = world.base[mark.place.epoch] + mark.place.n;
    memcpy(world.rows, world.source.rows[world.taken], sizeof world.rows);
    world.duplicates += world.feed.count.duplicates;
    spate_feed_close(&world.feed);
    assert_int_equal(spate_feed_open(&world.feed, &world.memory.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_resume(&world.feed, &mark, &err), SPATE_OK);
}

/* ---- a history ---- */

/* Retention takes what the follower has stored, but no log is left without a record that has an `end`: a
 * heartbeat is repeated in time. KEEPS_THE_SLOTS: nor the one that the slot looks for when it goes back. */
static uint64_t keep_from(void)
{
    uint64_t at = stream()->oldest;

    for (size_t i = stream()->oldest; i < stream()->end && i <= world.feed.mark.at.at; i++) {
        const struct spate_head head = head_at(i);

        if (head.end)
            at = i;
        if (world.retention == KEEPS_THE_SLOTS && head.end >= world.source.saved)
            break;
    }
    return at;
}

/* The same process connects again; what it had given the bus is settled first. */
static void reconnect(void)
{
    struct writer *w = writers[0];

    w->sent = world.source.committed;
    if (w->over || !recover(w, false))
        start_writer(below(2), false);
}

static void step(void)
{
    struct writer *now = writers[0], *other = writers[below(3)];
    const uint64_t dice = below(1000);

    if (dice < 6) {
        start_writer(true, false);
    } else if (dice < 16) {
        start_writer(false, false);
    } else if (dice < 18) {
        start_writer(below(2), world.control == THE_RULE && world.retention == KEEPS_ALL);
    } else if (dice < 24) {
        world.source.confirmed = world.source.saved;
        reconnect();
    } else if (dice < 28) {
        reconnect();
    } else if (dice < 40) {
        world.source.saved = world.source.confirmed;
    } else if (dice < 100) {
        if (world.source.committed < TXS)
            world.source.committed++;
        now->sent = world.source.committed;
    } else if (dice < 450) {
        read_frame(now);
        if (now->over)
            start_writer(below(2), false);
    } else if (dice < 600) {
        if (flush_and_poll(now))
            start_writer(below(2), false);
    } else if (dice < 650) {
        heartbeat(now);
    } else if (dice < 690) {
        emit_chunk(now);
    } else if (dice < 920) {
        deliver(other);
    } else if (dice < 980) {
        if (other != now && other->publisher.stream) { /* a zombie reads what its socket still holds */
            read_frame(other);
            flush_and_poll(other);
        }
    } else if (dice < 984 && world.retention == KEEPS_ALL) {
        append(spate_buf_view(&world.opening[1 + below(world.epoch.epoch.epoch)])); /* once more */
    } else if (dice < 990 && world.retention != KEEPS_ALL) {
        bus_memory_expire(&world.memory, TOPIC, below(keep_from() - stream()->oldest + 1));
    } else {
        restart_follower();
    }
}

/* The faults are over: everything is read, delivered and confirmed. */
static void calm_down(void)
{
    struct source *s = &world.source;

    memset(world.bus.write.chance, 0, sizeof world.bus.write.chance);
    world.bus.acknowledgement_lost = 0;
    s->committed = TXS;
    start_writer(below(2), false);
    for (int turn = 0; turn < 1000 && !world.violation[0]; turn++) {
        struct writer *w = writers[0];

        read_frame(w);
        if (w->over)
            start_writer(true, false);
        heartbeat(w);
        deliver(w);
        deliver(writers[below(WRITERS)]);
        if (flush_and_poll(w))
            start_writer(true, false);
        follow();
        if (s->confirmed >= s->txs[TXS - 1].end)
            break;
    }
    for (int i = 0; i < 50; i++)
        deliver(writers[below(WRITERS)]);
    follow();
    if (!world.stale && (world.taken != s->total || confirmed_changes() != s->total))
        violated("in the end the follower has %" PRIu64 " changes, the slot %" PRIu64 " of %" PRIu64,
                 world.taken, confirmed_changes(), s->total);
}

static void begin_history(uint64_t seed, enum control control)
{
    struct spate_writer *w;
    struct spate_err err = {0};

    world = (struct world){.random = seed, .control = control};
    make_source(&world.source);
    world.retention = control != THE_RULE ? KEEPS_ALL : (enum retention)below(3);
    bus_memory_init(&world.memory);
    world.memory.piece = 1 + below(12);
    bus_faulty_init(&world.bus, &world.memory.bus, bus_faulty_random(&world.random));
    world.bus.manual = true;
    world.bus.queue_most = 8;
    world.bus.lies = control == LIES_ABOUT_LOSSES;
    world.bus.acknowledgement_lost = below(2) ? .3 : 0;
    world.bus.write.chance[BUS_LOSE] = world.retention == KEEPS_LITTLE ? 0 : (double)below(4) * .02;
    world.bus.write.chance[BUS_DUPLICATE] = world.retention == KEEPS_LITTLE ? 0 : (double)below(4) * .04;
    world.bus.write.chance[BUS_DELAY] = (double)below(3) * .1;
    world.bus.write.chance[BUS_REFUSE_AGAIN] = (double)below(3) * .05;
    world.bus.write.chance[BUS_REORDER] = control == SWAPS_WITHOUT_A_WORD ? .1 : 0;
    for (size_t i = 0; i < WRITERS; i++) {
        pool[i].publisher.stream = NULL;
        writers[i] = &pool[i];
    }
    assert_int_equal(spate_bus_writer_open(&world.memory.bus, TOPIC, SPATE_TOPIC_CREATE, &w, &err), SPATE_OK);
    spate_writer_close(w);
    declare_epoch(world.source.opening, SPATE_PREVIOUS_NONE, 0);
    append(spate_buf_view(&world.opening[1]));
    assert_int_equal(spate_feed_open(&world.feed, &world.memory.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_begin(&world.feed, 1, "00000000-0000-4000-8000-000000000001", &err),
                     SPATE_OK);
    follow();
    start_writer(false, false);
}

static void end_history(void)
{
    totals.recoveries += world.recoveries;
    totals.compared += world.compared;
    totals.chunks += world.chunks;
    totals.duplicates += world.duplicates + world.feed.count.duplicates;
    totals.epochs += world.epochs - 1;
    totals.stale += world.stale;
    for (int i = 0; i < BUS_FAULTS; i++)
        totals.injected[i] += world.bus.write.injected[i];
    spate_feed_close(&world.feed);
    for (size_t i = 0; i < WRITERS; i++)
        if (pool[i].publisher.stream)
            close_writer(&pool[i]);
    for (size_t i = 0; i <= EPOCHS; i++)
        spate_buf_fini(&world.opening[i]);
    spate_epoch_drop(&world.epoch);
    bus_memory_fini(&world.memory);
}

/* True when all invariants held. */
static bool history(uint64_t seed, enum control control)
{
    begin_history(seed, control);
    for (int i = 0; i < STEPS && !world.violation[0] && !world.stale; i++) {
        step();
        follow();
        /* I5: whatever the slot has confirmed, a follower has. */
        if (confirmed_changes() > world.complete && control != NO_NUMBER_RULE && !world.stale)
            violated("the slot has confirmed %" PRIu64 " changes, and a follower has %" PRIu64,
                     confirmed_changes(), world.complete);
    }
    if (!world.violation[0] && !world.stale)
        calm_down();
    if (world.violation[0] && control == THE_RULE && getenv("TELL"))
        tell();
    end_history();
    return !world.violation[0];
}

static uint64_t first_seed(void)
{
    const char *seed = getenv("SEED");

    return seed && *seed ? strtoull(seed, NULL, 10) : 1;
}

static void X32_no_history_breaks_the_rule(void **state)
{
    const unsigned histories = getenv("HISTORIES") ? (unsigned)atoi(getenv("HISTORIES")) : 20000;
    const uint64_t first = first_seed();
    const int64_t from_ms = spate_clock_ms();

    (void)state;
    memset(&totals, 0, sizeof totals);
    for (uint64_t seed = first; seed < first + histories; seed++)
        if (!history(seed, THE_RULE))
            fail_msg("SEED=%" PRIu64 " HISTORIES=1: %s", seed, world.violation);
    print_message("# %u histories from seed %" PRIu64 " in %" PRId64 " ms: %" PRIu64 " recoveries, %" PRIu64
                  " changes compared, %" PRIu64 " chunks taken, %" PRIu64 " duplicates dropped, %" PRIu64
                  " records lost, %" PRIu64 " new epochs, %" PRIu64
                  " of them met by followers a zombie had moved on\n",
                  histories, first, spate_clock_ms() - from_ms, totals.recoveries, totals.compared,
                  totals.chunks, totals.duplicates, totals.injected[BUS_LOSE], totals.epochs, totals.stale);
    /* A world in which nothing happens proves nothing. */
    if (histories >= 1000) {
        assert_true(totals.recoveries > 5 * histories);
        assert_true(totals.compared > histories);
        assert_true(totals.chunks > histories);
        assert_true(totals.duplicates > histories);
        assert_true(totals.injected[BUS_LOSE] > histories / 10);
        assert_true(totals.epochs > histories / 10 && totals.stale < totals.epochs / 4);
    }
}

static unsigned violations(enum control control)
{
    unsigned bad = 0;

    for (uint64_t seed = first_seed(); seed < first_seed() + 1000; seed++) {
        const bool good = history(seed, control);

        if (!good && bad++ == 0)
            print_message("# seed %" PRIu64 ": %s\n", seed, world.violation);
    }
    print_message("# %u of 1000 histories broke\n", bad);
    return bad;
}

#define BREAKS(name, control, most)                                                                          \
    static void name(void **state)                                                                           \
    {                                                                                                        \
        (void)state;                                                                                         \
        assert_true(violations(control) > (most));                                                           \
    }

BREAKS(X32_the_greatest_number_breaks, GREATEST_NUMBER, 100)
BREAKS(X32_replay_from_the_logs_beginning_breaks, FROM_THE_BEGINNING, 30)
BREAKS(X32_chunks_without_their_anchor_break, NO_ANCHOR_RULE, 100)
BREAKS(X32_taking_every_number_breaks, NO_NUMBER_RULE, 500)
BREAKS(K2_losses_that_are_not_reported_break, LIES_ABOUT_LOSSES, 50)
BREAKS(K1_a_producer_that_swaps_breaks, SWAPS_WITHOUT_A_WORD, 100)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(X32_no_history_breaks_the_rule),
        cmocka_unit_test(X32_the_greatest_number_breaks),
        cmocka_unit_test(X32_replay_from_the_logs_beginning_breaks),
        cmocka_unit_test(X32_chunks_without_their_anchor_break),
        cmocka_unit_test(X32_taking_every_number_breaks),
        cmocka_unit_test(K2_losses_that_are_not_reported_break),
        cmocka_unit_test(K1_a_producer_that_swaps_breaks),
    };

    spate_log_level_set(SPATE_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
