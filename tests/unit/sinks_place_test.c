/* The acceptance rule (docs/hazards.md): tables of cases, and random schedules of writers that fail in every
 * way, with the control that must fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sinks/place.h"

#include <stdlib.h>
#include <string.h>

static struct spate_head change(uint64_t epoch, uint64_t n, uint64_t commit, uint32_t ordinal, uint64_t end)
{
    return (struct spate_head){.op = SPATE_OP_INSERT,
                               .op_name = spate_slice_str("insert"),
                               .n = n,
                               .epoch = epoch,
                               .has_pos = true,
                               .pos = {commit, ordinal},
                               .end = end};
}

static struct spate_head at(enum spate_op op, uint64_t epoch, uint64_t n, uint64_t end)
{
    return (struct spate_head){
        .op = op, .op_name = spate_slice_str("heartbeat"), .n = n, .epoch = epoch, .end = end};
}

/* Stands after n=10, the end of the transaction that committed at 100. */
static struct spate_follower follower(void)
{
    struct spate_follower f = {.last = {.epoch = 2, .n = 10, .pos = {100, 3}}, .uuid = "uuid-2"};

    f.complete = f.last;
    return f;
}

static void judges_changes(void **state)
{
    static const struct {
        uint64_t epoch, n, commit;
        uint32_t ordinal;
        enum spate_judgement expected;
    } cases[] = {
        {2, 11, 120, 1, SPATE_JUDGE_TAKE},
        {2, 11, 100, 3, SPATE_JUDGE_DIVERGED}, /* the next number at a place that was passed */
        {2, 11, 90, 1, SPATE_JUDGE_DIVERGED},
        {2, 10, 100, 3, SPATE_JUDGE_DUPLICATE},
        {2, 1, 20, 1, SPATE_JUDGE_DUPLICATE},
        {2, 10, 120, 1, SPATE_JUDGE_DIVERGED}, /* numbering began lower after the log lost its end (K25) */
        {2, 12, 130, 1, SPATE_JUDGE_HOLE},
        {1, 11, 120, 1, SPATE_JUDGE_OLD_EPOCH},
        {1, 9999, 9999, 1, SPATE_JUDGE_OLD_EPOCH},
        {3, 1, 120, 1, SPATE_JUDGE_HOLE}, /* its epoch message was not met */
    };
    struct spate_follower f = follower();

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spate_head head = change(cases[i].epoch, cases[i].n, cases[i].commit, cases[i].ordinal, 0);
        assert_int_equal(spate_follower_judge(&f, &head), cases[i].expected);
    }
}

static void an_open_transaction_goes_on_with_its_own_commit(void **state)
{
    struct spate_follower f = follower();
    struct spate_head first = change(2, 11, 120, 1, 0), second = change(2, 12, 120, 2, 130),
                      foreign = change(2, 12, 140, 1, 0), beat = at(SPATE_OP_HEARTBEAT, 2, 11, 150);

    (void)state;
    assert_false(spate_follower_take(&f, &first));
    assert_true(spate_follower_open(&f));
    assert_int_equal(f.complete.n, 10);
    assert_int_equal(spate_follower_judge(&f, &foreign), SPATE_JUDGE_DIVERGED);
    assert_int_equal(spate_follower_judge(&f, &beat), SPATE_JUDGE_DIVERGED);
    assert_int_equal(spate_follower_judge(&f, &first), SPATE_JUDGE_DUPLICATE);
    assert_int_equal(spate_follower_judge(&f, &second), SPATE_JUDGE_TAKE);
    assert_true(spate_follower_take(&f, &second));
    assert_false(spate_follower_open(&f));
    assert_int_equal(f.complete.n, 12);
}

static void judges_what_stands_between(void **state)
{
    struct spate_follower f = follower();
    struct spate_head here = at(SPATE_OP_HEARTBEAT, 2, 10, 150), past = at(SPATE_OP_HEARTBEAT, 2, 9, 90),
                      above = at(SPATE_OP_HEARTBEAT, 2, 11, 160), old = at(SPATE_OP_HEARTBEAT, 1, 50, 500),
                      chunk = at(SPATE_OP_CHUNK, 2, 10, 0), odd = at(SPATE_OP_UNKNOWN, 2, 99, 0);

    (void)state;
    assert_int_equal(spate_follower_judge(&f, &here), SPATE_JUDGE_PASS);
    assert_int_equal(spate_follower_judge(&f, &chunk), SPATE_JUDGE_PASS);
    assert_int_equal(spate_follower_judge(&f, &past), SPATE_JUDGE_DUPLICATE);
    assert_int_equal(spate_follower_judge(&f, &above), SPATE_JUDGE_HOLE);
    assert_int_equal(spate_follower_judge(&f, &old), SPATE_JUDGE_OLD_EPOCH);
    assert_int_equal(spate_follower_judge(&f, &odd), SPATE_JUDGE_UNKNOWN);
}

static struct spate_epoch epoch(uint64_t number, int previous, uint64_t of, uint64_t n, const char *uuid)
{
    struct spate_epoch e = {
        .epoch = number, .end = 500, .uuid = spate_slice_str(uuid), .previous_epoch = of, .previous_n = n};

    if (previous == 1)
        e.previous = SPATE_PREVIOUS_CONTINUES;
    else
        e.previous = previous == 2 ? SPATE_PREVIOUS_BROKEN : SPATE_PREVIOUS_NONE;
    return e;
}

static void judges_epochs(void **state)
{
    struct spate_follower f = follower();
    struct spate_head open = change(2, 11, 120, 1, 0), next = change(3, 1, 600, 1, 610);
    struct spate_epoch good = epoch(3, 1, 2, 10, "uuid-3"), ahead = epoch(3, 1, 2, 11, "uuid-3"),
                       behind = epoch(3, 1, 2, 9, "uuid-3"), broken = epoch(3, 2, 2, 10, "uuid-3"),
                       skipped = epoch(4, 1, 3, 10, "uuid-4"), same = epoch(2, 1, 1, 5, "uuid-2"),
                       rival = epoch(2, 1, 1, 5, "other"), old = epoch(1, 0, 0, 0, "uuid-1");

    (void)state;
    assert_int_equal(spate_follower_judge_epoch(&f, &ahead), SPATE_JUDGE_STALE);
    assert_int_equal(spate_follower_judge_epoch(&f, &behind), SPATE_JUDGE_STALE);
    assert_int_equal(spate_follower_judge_epoch(&f, &broken), SPATE_JUDGE_STALE);
    assert_int_equal(spate_follower_judge_epoch(&f, &skipped), SPATE_JUDGE_STALE);
    assert_int_equal(spate_follower_judge_epoch(&f, &same), SPATE_JUDGE_DUPLICATE);
    assert_int_equal(spate_follower_judge_epoch(&f, &rival), SPATE_JUDGE_DIVERGED);
    assert_int_equal(spate_follower_judge_epoch(&f, &old), SPATE_JUDGE_OLD_EPOCH);

    /* A transaction left open is void: the epoch names the last complete number, and that is what counts. */
    (void)spate_follower_take(&f, &open);
    assert_int_equal(spate_follower_judge_epoch(&f, &good), SPATE_JUDGE_ENTER);
    spate_follower_enter(&f, &good);
    assert_false(spate_follower_open(&f));
    assert_string_equal(f.uuid, "uuid-3");
    assert_int_equal(spate_follower_judge(&f, &open), SPATE_JUDGE_OLD_EPOCH);
    assert_int_equal(spate_follower_judge(&f, &next), SPATE_JUDGE_TAKE);
}

static void begins_where_a_transaction_ends(void **state)
{
    struct spate_follower f = {0};
    struct spate_head middle = change(2, 5, 50, 1, 0), end = change(2, 6, 50, 2, 60),
                      beat = at(SPATE_OP_HEARTBEAT, 2, 6, 90), seen = change(2, 6, 50, 2, 60),
                      next = change(2, 7, 90, 1, 95);

    (void)state;
    assert_false(spate_follower_begin(&f, &middle));
    assert_true(spate_follower_begin(&f, &end));
    assert_int_equal(f.last.n, 6);
    assert_int_equal(spate_follower_judge(&f, &end), SPATE_JUDGE_DUPLICATE);
    assert_int_equal(spate_follower_judge(&f, &next), SPATE_JUDGE_TAKE);

    /* At a heartbeat there is no change's place, but its `end` lies between the last one and the next. */
    f = (struct spate_follower){0};
    assert_true(spate_follower_begin(&f, &beat));
    assert_int_equal(spate_follower_judge(&f, &seen), SPATE_JUDGE_DUPLICATE);
    assert_int_equal(spate_follower_judge(&f, &next), SPATE_JUDGE_TAKE);
}

static void anchors_are_compared(void **state)
{
    struct spate_place place = {.epoch = 2, .n = 10, .pos = {100, 3}}, fresh = {.epoch = 2, .n = 0};
    struct spate_head same = change(2, 10, 100, 3, 110), moved = change(2, 10, 101, 3, 110),
                      beat = at(SPATE_OP_HEARTBEAT, 2, 10, 200), other = change(3, 10, 100, 3, 110),
                      opening = at(SPATE_OP_EPOCH, 2, 40, 0);

    (void)state;
    assert_true(spate_place_matches(&place, &same));
    assert_true(spate_place_matches(&place, &beat));
    assert_false(spate_place_matches(&place, &moved));
    assert_false(spate_place_matches(&place, &other));
    assert_false(spate_place_matches(&place, &opening));
    assert_true(spate_place_matches(&fresh, &opening));
}

/* The model. The WAL is a fixed list of transactions; change n stands at `wal[n]`. Writers append to one log:
 * each begins where a tail scan by the same rule tells it, loses records in the middle, repeats records,
 * dies, and comes back as a zombie that still empties its queue. */
enum { CHANGES = 40, LOG = 4000, QUEUE = 4, WRITERS = 64 };

struct model {
    struct spate_head wal[CHANGES + 1], log[LOG];
    size_t logged;
    uint64_t confirmed;
    unsigned seed;
};

struct writer {
    uint64_t next, acked, queue[QUEUE];
    size_t queued;
    bool failed;
};

static double chance(struct model *m)
{
    m->seed = m->seed * 1664525u + 1013904223u;
    return (m->seed >> 8) / (double)(1u << 24);
}

static void make_wal(struct model *m)
{
    uint64_t commit = 1000;
    uint32_t ordinal = 0;

    for (uint64_t n = 1; n <= CHANGES; n++) {
        bool ends = n == CHANGES || chance(m) < 0.5;
        m->wal[n] = change(1, n, commit, ++ordinal, ends ? commit + 50 : 0);
        if (ends) {
            commit += 100;
            ordinal = 0;
        }
    }
}

static void append(struct model *m, uint64_t n)
{
    if (m->logged < LOG)
        m->log[m->logged++] = m->wal[n];
}

/* Where the log stands for a writer that starts: by the rule, from behind the last confirmed record. */
static uint64_t tail(const struct model *m, bool naive)
{
    struct spate_follower f = {.last = {.epoch = 1}};
    uint64_t greatest = 0;
    size_t from = 0;

    for (size_t i = 0; i < m->logged; i++) {
        if (m->log[i].n > greatest)
            greatest = m->log[i].n;
        if (m->log[i].n <= m->confirmed)
            from = i + 1;
    }
    if (naive)
        return greatest;
    f.last.n = m->confirmed;
    if (m->confirmed)
        f.last.pos = m->wal[m->confirmed].pos;
    f.complete = f.last;
    for (size_t i = from; i < m->logged; i++)
        if (m->log[i].n == f.last.n + 1)
            (void)spate_follower_take(&f, &m->log[i]);
    return f.last.n;
}

static struct writer start(const struct model *m, bool naive)
{
    uint64_t at_tail = tail(m, naive);

    return (struct writer){.next = at_tail + 1, .acked = at_tail};
}

static void pop(struct writer *w)
{
    w->queued--;
    memmove(w->queue, w->queue + 1, w->queued * sizeof *w->queue);
}

static void deliver(struct model *m, struct writer *w)
{
    uint64_t n;

    if (w->queued == 0)
        return;
    if (chance(m) < 0.12 && w->queued > 1) { /* K2: the head is lost, what is behind it arrives */
        pop(w);
        w->failed = true;
        while (w->queued && chance(m) < 0.6) {
            append(m, w->queue[0]);
            pop(w);
        }
        return;
    }
    n = w->queue[0];
    pop(w);
    append(m, n);
    if (!w->failed && n == w->acked + 1)
        w->acked = n;
    if (chance(m) < 0.08)
        append(m, n);
}

static void run_writers(struct model *m, bool naive)
{
    static struct writer writers[WRITERS];
    size_t count = 1;

    writers[0] = start(m, naive);
    for (int step = 0; step < 6000; step++) {
        struct writer *now = &writers[count - 1];
        double x = chance(m);

        if ((now->failed || x < 0.02) && count < WRITERS) {
            if (chance(m) < 0.5)
                now->queued = 0;
            writers[count] = start(m, naive);
            count++;
        } else if (x < 0.45 && now->next <= CHANGES && now->queued < QUEUE) {
            now->queue[now->queued++] = now->next++;
        } else {
            size_t back = (size_t)(chance(m) * 3) % (count < 3 ? count : 3);
            deliver(m, &writers[count - 1 - back]);
        }
        now = &writers[count - 1];
        if (!now->failed && now->acked > m->confirmed)
            m->confirmed = now->acked;
        if (now->acked == CHANGES)
            break;
    }
    for (size_t i = 0; i < count; i++)
        while (writers[i].queued && chance(m) < 0.7) {
            append(m, writers[i].queue[0]);
            pop(&writers[i]);
        }
}

/* What a sink makes of the log: applied[] in order; it forgets all that is not complete at random crashes. */
static bool follow(struct model *m, bool rule)
{
    struct spate_follower f = {.last = {.epoch = 1}, .complete = {.epoch = 1}};
    uint64_t applied = 0;
    size_t mark = 0, i = 0;
    int crashes = 0;

    while (i < m->logged) {
        const struct spate_head *head = &m->log[i];

        if (rule) {
            enum spate_judgement judgement = spate_follower_judge(&f, head);
            if (judgement == SPATE_JUDGE_DIVERGED)
                return false;
            if (judgement == SPATE_JUDGE_TAKE && spate_follower_take(&f, head)) {
                applied = f.complete.n;
                mark = i;
            }
        } else {
            if (head->n != applied + 1)
                return false; /* the control takes what comes */
            applied = head->n;
        }
        i++;
        if (rule && crashes < 5 && chance(m) < 0.01) {
            crashes++;
            f.last = f.complete;
            i = f.complete.n ? mark : 0;
        }
    }
    /* Nothing that was confirmed is missing; where all was, all is applied. */
    return rule ? f.last.n >= m->confirmed : applied == CHANGES;
}

static unsigned violations(unsigned runs, bool rule, bool naive)
{
    static struct model m;
    unsigned bad = 0;

    for (unsigned seed = 1; seed <= runs; seed++) {
        m = (struct model){.seed = seed * 2654435761u};
        make_wal(&m);
        run_writers(&m, naive);
        bad += !follow(&m, rule);
    }
    return bad;
}

static void random_schedules_are_taken_once_and_in_order(void **state)
{
    (void)state;
    assert_int_equal(violations(20000, true, false), 0);
}

static void the_controls_fail(void **state)
{
    (void)state;
    assert_true(violations(2000, true, true) >
                200); /* writers that start at the greatest number in the log */
    assert_true(violations(2000, false, false) > 1000); /* a sink that takes what comes */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judges_changes),
        cmocka_unit_test(an_open_transaction_goes_on_with_its_own_commit),
        cmocka_unit_test(judges_what_stands_between),
        cmocka_unit_test(judges_epochs),
        cmocka_unit_test(begins_where_a_transaction_ends),
        cmocka_unit_test(anchors_are_compared),
        cmocka_unit_test(random_schedules_are_taken_once_and_in_order),
        cmocka_unit_test(the_controls_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
