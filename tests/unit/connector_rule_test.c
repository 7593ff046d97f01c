/* Where to go on after a crash: the acceptance rule over random histories (docs/hazards.md).
 *
 * A history: writers append changes in order, fail and leave holes, append twice, live on as zombies. Each
 * new writer decides from the log where to go on. The rule must let the log's accepted sequence reach the
 * end, and two tempting rules must not: the greatest number in the log, and replaying from the log's
 * beginning with the confirmed number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/recovery.h"

enum { CHANGES = 30, LOG = 8192, QUEUE = 4, WRITERS = 1024, STEPS = 4000 };

enum method { REPLAY_FROM_ANCHOR, REPLAY_FROM_BEGINNING, GREATEST };

struct model {
    unsigned random;
    struct spate_head log[LOG];
    size_t length;
    uint64_t confirmed; /* n; its commit LSN is n * 10, its end n * 10 + 5 */
};

struct writer {
    uint64_t next, acknowledged;
    uint64_t queue[QUEUE];
    size_t queued;
    bool failed;
};

static double chance(struct model *m)
{
    return rand_r(&m->random) / ((double)RAND_MAX + 1);
}

static struct spate_head change(uint64_t n)
{
    return (struct spate_head){
        .op = SPATE_OP_INSERT, .n = n, .epoch = 1, .has_pos = true, .pos = {n * 10, 1}, .end = n * 10 + 5};
}

static void append(struct model *m, uint64_t n)
{
    assert_true(m->length < LOG);
    m->log[m->length++] = change(n);
}

/* What a new writer believes to be the last number. */
static uint64_t find_tail(const struct model *m, enum method method)
{
    struct spate_rule rule = {.epoch = 1};
    uint64_t greatest = m->confirmed;
    size_t from = 0;

    for (size_t i = 0; i < m->length; i++) {
        if (m->log[i].n > greatest)
            greatest = m->log[i].n;
        if (method == REPLAY_FROM_ANCHOR && spate_rule_anchor(&m->log[i], 1, m->confirmed * 10 + 5)) {
            from = i + 1;
            rule.last = m->log[i].n;
            rule.pos = m->log[i].pos;
        }
    }
    if (method == GREATEST)
        return greatest;
    if (method == REPLAY_FROM_BEGINNING) {
        rule.last = m->confirmed;
        rule.pos.commit_lsn = m->confirmed * 10;
    }
    for (; from < m->length; from++)
        spate_rule_feed(&rule, &m->log[from]);
    return rule.last;
}

static struct writer start(const struct model *m, enum method method)
{
    uint64_t tail = find_tail(m, method);

    return (struct writer){.next = tail + 1, .acknowledged = tail};
}

static void take(struct writer *w)
{
    for (size_t i = 1; i < w->queued; i++)
        w->queue[i - 1] = w->queue[i];
    w->queued--;
}

static void deliver(struct model *m, struct writer *w)
{
    uint64_t n;

    if (w->queued == 0)
        return;
    if (chance(m) < .12 &&
        w->queued > 1) { /* the head fails for good, later ones in flight succeed: a hole */
        take(w);
        w->failed = true;
        while (w->queued && chance(m) < .6) {
            append(m, w->queue[0]);
            take(w);
        }
        return;
    }
    n = w->queue[0];
    take(w);
    append(m, n);
    if (!w->failed && n == w->acknowledged + 1)
        w->acknowledged = n;
    if (chance(m) < .08)
        append(m, n); /* a duplicate */
}

/* True when the accepted sequence is 1..CHANGES and the last writer knows it. */
static bool history_ends_well(unsigned seed, enum method method)
{
    static struct model m;
    static struct writer writers[WRITERS];
    struct spate_rule reader = {.epoch = 1};
    struct writer *now = writers;
    size_t count = 1;

    m = (struct model){.random = seed};
    writers[0] = start(&m, method);
    for (int step = 0; step < STEPS && now->acknowledged < CHANGES && count < WRITERS && m.length < LOG - 16;
         step++) {
        double x = chance(&m);

        if (now->failed || x < .02) {
            if (chance(&m) < .5)
                now->queued = 0; /* purged; otherwise it lives on as a zombie */
            writers[count] = start(&m, method);
            now = &writers[count++];
        } else if (x < .45) {
            if (now->next <= CHANGES && now->queued < QUEUE)
                now->queue[now->queued++] = now->next++;
        } else {
            size_t back = (size_t)rand_r(&m.random) % (count < 3 ? count : 3);

            deliver(&m, &writers[count - 1 - back]);
        }
        if (!now->failed && now->acknowledged > m.confirmed)
            m.confirmed = now->acknowledged;
    }
    for (size_t i = 0; i < m.length; i++)
        spate_rule_feed(&reader, &m.log[i]);
    return now->acknowledged == CHANGES && reader.last == CHANGES;
}

static unsigned failures(enum method method, unsigned histories)
{
    unsigned bad = 0;

    for (unsigned seed = 1; seed <= histories; seed++)
        bad += !history_ends_well(seed, method);
    return bad;
}

static void X32_replay_from_the_anchor_never_fails(void **state)
{
    (void)state;
    assert_int_equal(failures(REPLAY_FROM_ANCHOR, 20000), 0);
}

static void X32_the_greatest_number_fails(void **state)
{
    (void)state;
    assert_true(failures(GREATEST, 2000) > 500);
}

static void X32_replay_from_the_beginning_fails(void **state)
{
    (void)state;
    assert_true(failures(REPLAY_FROM_BEGINNING, 2000) > 100);
}

static void rulings(void **state)
{
    struct spate_rule rule = {.epoch = 2, .last = 5, .pos = {50, 1}};
    struct spate_head head = change(5);

    (void)state;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_DROP); /* epoch 1 */
    head.epoch = 2;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_DROP); /* a duplicate */
    head = change(7);
    head.epoch = 2;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_IGNORE); /* a hole */
    head = change(6);
    head.epoch = 2;
    head.pos.commit_lsn = 40;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_DIVERGED); /* the next number at an older place */
    head = change(4);
    head.epoch = 2;
    head.pos.commit_lsn = 60;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_DIVERGED); /* numbering began lower again */
    head = (struct spate_head){.op = SPATE_OP_HEARTBEAT, .n = 6, .epoch = 2};
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_IGNORE); /* a heartbeat beyond us is a hole, too */
    head = change(6);
    head.epoch = 2;
    assert_int_equal(spate_rule_feed(&rule, &head), SPATE_ACCEPT);
    assert_int_equal(rule.last, 6);
}

static void anchors(void **state)
{
    struct spate_head head = change(5); /* commit 50, end 55 */

    (void)state;
    assert_true(spate_rule_anchor(&head, 1, 55));
    assert_false(spate_rule_anchor(&head, 1, 50)); /* confirmed iff its commit LSN is below C */
    assert_false(spate_rule_anchor(&head, 2, 55));
    head = (struct spate_head){.op = SPATE_OP_HEARTBEAT, .n = 5, .epoch = 1, .end = 60};
    assert_true(spate_rule_anchor(&head, 1, 60));
    assert_false(spate_rule_anchor(&head, 1, 59));
    head.op = SPATE_OP_EPOCH;
    assert_true(spate_rule_anchor(&head, 1, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rulings),
        cmocka_unit_test(anchors),
        cmocka_unit_test(X32_replay_from_the_anchor_never_fails),
        cmocka_unit_test(X32_the_greatest_number_fails),
        cmocka_unit_test(X32_replay_from_the_beginning_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
