/* tests/unit/buslab_crowd_test.c - L1, L2, L5 and L15: writers killed and frozen at every point, fenced and
 * begun anew; thirty readers, one sequence. Each with a rule taken away, which has to show. SEED repeats a
 * run, LAB_KILLS is the number of kills and of freezes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "tests/lab/lab.h"

#include <stdio.h>

#if defined(__SANITIZE_THREAD__)
#define WATCHED 1 /* by a race detector: threads instead of processes, nobody is killed */
#else
#define WATCHED 0
#endif

static const unsigned volatile_topic = SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE;
static const unsigned durable_topic = SPATE_TOPIC_SHARED;

static int faults(void)
{
    return (int)lab_number("LAB_KILLS", WATCHED ? 20 : 60);
}

static void run(struct lab_plan *plan, struct lab_outcome *out, const char *title)
{
    char path[128], hot[128];

    plan->seed = plan->seed ? plan->seed : lab_seed();
    plan->threads = WATCHED;
    lab_directories(plan, path, hot);
    lab_run(plan, out);
    lab_remove(plan);
    if (!plan->mute)
        lab_print(title, plan, out);
}

static void holds(struct lab_plan plan, const char *title)
{
    struct lab_outcome out;

    if (WATCHED) {
        plan.freezes += plan.kills;
        plan.kills = 0;
    }
    run(&plan, &out, title);
    if (out.wrong)
        fail_msg("%s, SEED=%llu: %s", title, (unsigned long long)plan.seed, out.what);
    assert_true(out.kills >= plan.kills && out.freezes >= plan.freezes);
    assert_true(out.published > 0 && out.delivered >= out.published * (uint64_t)plan.readers);
}

/* Without the rule the crowd must notice, in one of a few runs: how often it is hit is a matter of luck. */
static void notices(struct lab_plan plan, enum spate_broken rule, const char *title)
{
    struct lab_outcome out = {0};
    int runs = 0;

    plan.mute = true;
    spate_broken = rule;
    for (; runs < 10 && !out.wrong; runs++) {
        plan.seed = lab_seed() + (uint64_t)runs;
        run(&plan, &out, title);
    }
    spate_broken = SPATE_BROKEN_NOTHING;
    if (!out.wrong)
        fail_msg("%s: ten runs, and nobody noticed", title);
    print_message("# %s: noticed in run %d: %s\n", title, runs, out.what);
}

/* --- L1: killed after the fetch-add, after the claim, while it copies, after the commit, and anywhere */

static void L1_killed_writers_lose_nothing_volatile(void **state)
{
    (void)state;
    holds(
        (struct lab_plan){
            .flags = volatile_topic, .writers = 5, .readers = 3, .kills = faults(), .rolls = 20},
        "L1 volatile");
}

static void L1_killed_writers_lose_nothing_durable(void **state)
{
    (void)state;
    holds((struct lab_plan){.flags = durable_topic,
                            .writers = 5,
                            .readers = 4,
                            .kills = faults(),
                            .rolls = 10,
                            .points = lab_points_all},
          "L1 durable, stewards too");
}

static void L1_killed_writers_lose_nothing_thirty_readers(void **state)
{
    (void)state;
    holds(
        (struct lab_plan){
            .flags = volatile_topic, .writers = 5, .readers = 30, .kills = faults(), .rolls = 5},
        "L1 thirty readers");
}

static void L1_control_without_repair(void **state)
{
    (void)state;
    notices(
        (struct lab_plan){
            .flags = volatile_topic, .writers = 3, .readers = 2, .kills = 60, .patience_ms = 1500},
        SPATE_BROKEN_NO_REPAIR, "L1 without repair");
}

/* --- L2: frozen at the same points, fenced, resumed */

static struct lab_plan frozen(unsigned flags, int writers, int readers, int count)
{
    return (struct lab_plan){.flags = flags,
                             .writers = writers,
                             .readers = readers,
                             .freezes = count,
                             .claim_ms = 4,
                             .freeze_ms = 20};
}

static void L2_frozen_writers_publish_again_volatile(void **state)
{
    (void)state;
    holds(frozen(volatile_topic, 5, 3, faults()), "L2 volatile");
}

static void L2_frozen_and_killed_writers_durable(void **state)
{
    struct lab_plan plan = frozen(durable_topic, 5, 4, faults() / 2);

    (void)state;
    plan.kills = faults() / 2;
    plan.points = lab_points_all;
    holds(plan, "L2 durable, stewards too, and kills");
}

static void L2_frozen_writers_thirty_readers(void **state)
{
    (void)state;
    holds(frozen(volatile_topic, 5, 30, faults() / 2), "L2 thirty readers");
}

/* And while the file of a value that no segment takes is made, synced and called by its position. */
static void L1_L2_large_values(void **state)
{
    struct lab_plan plan = frozen(durable_topic, 5, 3, faults() / 4);

    (void)state;
    plan.kills = faults() / 4;
    plan.points = lab_points_large;
    plan.large = true;
    holds(plan, "L1, L2 large values");
}

static void L2_control_plain_commit(void **state)
{
    struct lab_plan plan = frozen(volatile_topic, 5, 3, 200);

    (void)state;
    plan.patience_ms = 3000;
    notices(plan, SPATE_BROKEN_PLAIN_COMMIT, "L2 with plain stores to commit");
}

static void L2_control_plain_claim(void **state)
{
    struct lab_plan plan = frozen(volatile_topic, 5, 3, 200);

    (void)state;
    plan.patience_ms = 3000;
    notices(plan, SPATE_BROKEN_PLAIN_CLAIM, "L2 with plain stores to claim");
}

/* --- L5: thirty readers and five writers see one sequence; fencing a healthy writer costs it a try, no more
 */

static void L5_one_sequence_for_thirty_readers(void **state)
{
    (void)state;
    holds((struct lab_plan){.flags = volatile_topic, .writers = 5, .readers = 30, .rolls = WATCHED ? 1 : 8},
          "L5 volatile");
}

static void L5_one_sequence_for_thirty_readers_durable(void **state)
{
    (void)state;
    holds((struct lab_plan){.flags = durable_topic, .writers = 5, .readers = 30, .rolls = WATCHED ? 1 : 5},
          "L5 durable");
}

static void L5_one_sequence_though_everybody_is_fenced(void **state)
{
    (void)state;
    holds((struct lab_plan){.flags = volatile_topic,
                            .writers = 5,
                            .readers = 3,
                            .rolls = WATCHED ? 1 : 8,
                            .free_ms = -1,
                            .claim_ms = -1},
          "L5 without patience");
}

static void L5_control_plain_commit(void **state)
{
    (void)state;
    notices((struct lab_plan){.flags = volatile_topic,
                              .writers = 5,
                              .readers = 3,
                              .rolls = 40,
                              .free_ms = -1,
                              .claim_ms = -1,
                              .patience_ms = 3000},
            SPATE_BROKEN_PLAIN_COMMIT, "L5 with plain stores to commit");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L5_one_sequence_for_thirty_readers),
        cmocka_unit_test(L5_one_sequence_for_thirty_readers_durable),
        cmocka_unit_test(L5_one_sequence_though_everybody_is_fenced),
        cmocka_unit_test(L1_killed_writers_lose_nothing_volatile),
        cmocka_unit_test(L1_killed_writers_lose_nothing_durable),
        cmocka_unit_test(L1_killed_writers_lose_nothing_thirty_readers),
        cmocka_unit_test(L2_frozen_writers_publish_again_volatile),
        cmocka_unit_test(L2_frozen_and_killed_writers_durable),
        cmocka_unit_test(L2_frozen_writers_thirty_readers),
        cmocka_unit_test(L1_L2_large_values),
    };
    const struct CMUnitTest controls[] = {
        cmocka_unit_test(L5_control_plain_commit),
        cmocka_unit_test(L1_control_without_repair),
        cmocka_unit_test(L2_control_plain_commit),
        cmocka_unit_test(L2_control_plain_claim),
    };
    const int failed = cmocka_run_group_tests_name("buslab_crowd", tests, NULL, NULL);

    /* A race detector would stop at what they do. */
    return WATCHED ? failed : failed + cmocka_run_group_tests_name("buslab_controls", controls, NULL, NULL);
}
