/* Snapshots woven into the stream (docs/hazards.md): random schedules of a source whose commits become
 * visible late and in another order, rows that move between pages, partial updates, key moves, TRUNCATE and
 * rewrites; two requesters; connectors that are killed in the middle of a chunk, and write on as zombies; a
 * log that loses its tail and its beginning; sinks that fall back to what they stored. At the end each sink
 * holds exactly what exists.
 *
 * The controls each leave one rule out, and must diverge, or this test proves nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/support/weave_sink.h"

enum { STEPS = 260, SETTLES = 6000 };

enum verdict { RIGHT, WRONG, STUCK };

static uint64_t steps_taken;
static bool slow; /* much is on its way to the bus when a connector dies */

/* ---- one step ---- */

static void kill_connector(void)
{
    lose_tail();
    connector_down();
}

static void retain(void)
{
    int floor = bus.oldest + (int)chance((uint32_t)(bus.durable - bus.oldest) + 1);

    bus.oldest = floor;
}

static void disturb(void)
{
    int sink = (int)chance(SINKS);
    uint32_t what = chance(100);

    if (what < 30)
        kill_connector();
    else if (what < 65)
        sink_restart(&sinks[sink]);
    else if (what < 70)
        retain();
    else if (what < 75)
        sink_cancel(sink);
    else if (what < 85)
        sink_change(sink);
    else
        source_calm();
    if (what >= 92)
        source_rewrite();
}

static void step_source(bool quiet)
{
    uint32_t what = chance(100);

    if (what < 55 && !quiet)
        source_write();
    else if (what < 65 || (quiet && what < 30))
        source_end_one();
    else
        source_settle();
}

static void step_connector(bool quiet)
{
    uint32_t what = chance(100);
    int sink = (int)chance(SINKS);

    if (!connector.up) {
        if (what < 40)
            connector_up();
        return;
    }
    if (!connector.before_known && what < 40)
        connector_rebuild();
    else if (what < 25)
        connector_deliver();
    else if (what < 35)
        connector_hear(sink);
    else if (what < 75)
        connector_read(sink);
    else
        connector_emit(sink);
    /* The most delicate moment: what is on its way says where a generation begins. */
    if (!quiet && bus.count > 0 && bus.records[bus.count - 1].kind == BEGIN && percent(8))
        kill_connector();
}

static void step_sink(void)
{
    int sink = (int)chance(SINKS);
    uint32_t what = chance(100);

    sink_look(sink);
    if (what < 70)
        for (int i = 1 + (int)chance(4); i > 0; i--)
            sink_take(sink);
    else if (what < 82)
        sink_store(&sinks[sink]);
    else if (what < 91)
        sink_ask(sink);
    else
        sink_finish(sink);
}

static void step(bool quiet)
{
    uint32_t what = chance(100);

    steps_taken++;
    idle = quiet;
    if (what < 20)
        step_source(quiet);
    else if (what < 60)
        step_connector(quiet);
    else if (what < 85)
        step_sink();
    else if (what < 90)
        bus.durable +=
            slow && !quiet && percent(80) ? 0 : (int)chance((uint32_t)(bus.count - bus.durable) + 1);
    else if (what < 93)
        connector_confirm();
    else if (what < 96)
        for (int i = 1 + (int)chance(8); i > 0; i--)
            append_zombie();
    else if (!quiet)
        disturb();
}

/* ---- one schedule ---- */

static bool is_over(void)
{
    if (source.under_way || !connector.up || bus.zombie_at < bus.zombie_count)
        return false;
    for (int i = 0; i < SINKS; i++)
        if (sinks[i].now.phase != COMPLETE || sinks[i].now.n != source.wal_count)
            return false;
    return true;
}

static void start(uint64_t seed)
{
    chance_state = seed;
    violation = NULL;
    source_start();
    bus.count = bus.durable = bus.oldest = bus.zombie_at = bus.zombie_count = 0;
    last_request = 0;
    slow = percent(30);
    memset(control_of, 0, sizeof control_of);
    connector_start();
    for (int i = 5 + (int)chance(40); i > 0; i--) {
        source_write();
        if (percent(70))
            source_settle();
    }
    connector_up();
    connector_rebuild();
    for (int i = (int)chance((uint32_t)source.wal_count + 1); i > 0; i--)
        connector_deliver();
    bus.durable = bus.count;
    for (int i = 0; i < SINKS; i++)
        sink_start(i);
}

static enum verdict run(uint64_t seed)
{
    enum verdict verdict = RIGHT;
    int left = SETTLES;

    start(seed);
    for (int i = 0; i < STEPS; i++)
        step(false);
    while (!is_over() && left-- > 0)
        step(true);
    if (violation)
        verdict = WRONG;
    else if (!is_over())
        verdict = STUCK;
    for (int i = 0; i < SINKS && verdict == RIGHT; i++)
        if (!sink_is_right(i))
            verdict = WRONG;
    connector_stop();
    return verdict;
}

/* The first seed from which a schedule ends in that; 0: none did. */
static uint64_t diverges(enum control without, uint64_t runs)
{
    control = without;
    for (uint64_t seed = 1; seed <= runs; seed++)
        if (run(seed) == WRONG)
            return seed;
    return 0;
}

/* ---- the tests ---- */

/* The sanitizers look at memory, for which fewer do; what the controls prove they prove without them. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED false
#endif

#define SCHEDULES (SANITIZED ? 4000 : 40000)
#define TRIES     200000 /* the rarest control takes some ten thousand */

static void F43_F44_F45_F46_no_schedule_diverges(void **state)
{
    const char *more = getenv("SPATE_WEAVE_RUNS");
    uint64_t runs = more ? strtoull(more, NULL, 10) : SCHEDULES;

    (void)state;
    control = RULE;
    for (uint64_t seed = 1; seed <= runs; seed++) {
        enum verdict verdict = run(seed);

        if (verdict != RIGHT)
            fail_msg("schedule %llu %s: %s", (unsigned long long)seed,
                     verdict == WRONG ? "diverges" : "does not come to an end", violation ? violation : "");
    }
    print_message("# %llu schedules, %llu steps, %llu sessions, %llu chunks, %llu redone, %llu rows dropped, "
                  "%llu tables anew\n",
                  (unsigned long long)runs, (unsigned long long)steps_taken,
                  (unsigned long long)counts.sessions, (unsigned long long)counts.chunks,
                  (unsigned long long)counts.redone, (unsigned long long)counts.dropped,
                  (unsigned long long)counts.anew);
    assert_true(counts.redone > 0 && counts.dropped > 0 && counts.anew > 0);
}

static void each_control_diverges(void **state)
{
    static const char *const names[CONTROLS] = {
        [WATERMARK] = "watermarks instead of visibility",
        [NO_TOUCHED] = "no Touched",
        [NO_TRUNCATE] = "a TRUNCATE touches nothing",
        [NO_REDO] = "no redo",
        [EARLY_PRUNE] = "H is pruned under a chunk that is out",
        [NO_W] = "nothing is rebuilt after a restart",
        [XMIN_XMAX] = "after a restart: until S.xmin passed the xmax of then",
        [END_AT_PLAN] = "the range's end is taken before R",
        [NO_STAMP] = "a rewrite is not seen",
        [NO_REREAD] = "no re-read list",
        [NO_GENERATION] = "partial updates touch stale rows",
        [LATE_BEGIN] = "marks from the first chunk on",
        [ANY_BEGIN] = "chunks of a flow that began behind us",
        [NO_BY] = "a chunk is whatever stands between a beginning and an end",
        [NO_SINCE] = "chunks are chained by number alone",
        [NO_END_CHAIN] = "ranges-end of whoever wrote it",
        [HOLE_KEEPS] = "tokens and marks outlive a hole",
        [MARKS_LOST] = "a restart loses the marks",
        [LIST_LOST] = "a restart loses the re-read list",
        [TOKEN_AHEAD] = "number and token are stored before the rows",
    };

    (void)state;
    for (enum control c = RULE + 1; c < CONTROLS; c++) {
        uint64_t seed = diverges(c, TRIES);

        if (!seed)
            fail_msg("the model does not need this rule, or does not see that it is broken: %s", names[c]);
        print_message("# %s: schedule %llu diverges\n", names[c], (unsigned long long)seed);
    }
}

int main(void)
{
    const struct CMUnitTest once[] = {cmocka_unit_test(F43_F44_F45_F46_no_schedule_diverges)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(F43_F44_F45_F46_no_schedule_diverges),
        cmocka_unit_test(each_control_diverges),
    };

    return SANITIZED ? cmocka_run_group_tests_name("sanitized", once, NULL, NULL)
                     : cmocka_run_group_tests(tests, NULL, NULL);
}
