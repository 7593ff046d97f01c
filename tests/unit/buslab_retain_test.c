/* tests/unit/buslab_retain_test.c - L6 and L7: readers of rising slowness that retention overtakes, and a
 * reader at the archive's limit that nobody waits for, or everybody. Each with a rule taken away, which has
 * to show. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "bus/local/layout.h"
#include "bus/local/named.h"
#include "bus/local/topic.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define CAP         (UINT64_C(1) << 20)
#define READERS     8
#define DEADLINE_MS 60000

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

static uint64_t records_to_write(void)
{
    const char *text = getenv("LAB_RECORDS");

    return text ? strtoull(text, NULL, 10) : 30000;
}

struct world {
    struct bus_scratch scratch;
    uint64_t count;
    uint64_t *at;             /* of record n: where it stands; at[count + 1]: the end */
    _Atomic uint64_t written; /* records */
    _Atomic bool ended;       /* the writer has nothing more */
    _Atomic bool over;        /* nobody needs to go on */
    int64_t until_ms;
};

static void open_world(struct world *world, uint64_t count, int64_t limit)
{
    *world = (struct world){.count = count, .until_ms = spate_clock_ms() + DEADLINE_MS};
    bus_scratch_init(&world->scratch, (int64_t)CAP);
    world->scratch.config.local_retention_bytes = limit;
    world->scratch.config.local_hold_expire_ms = 3600000;
    world->at = calloc(count + 2, sizeof *world->at);
}

static void close_world(struct world *world)
{
    free(world->at);
    bus_scratch_fini(&world->scratch);
}

static struct spate_bus *open_bus(struct world *world)
{
    struct spate_bus *bus;
    struct spate_err err = {0};

    check(spate_bus_open(&world->scratch.config, &bus, &err), &err);
    return bus;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Publishes one record; false: not now. What stands where, the writer knows exactly: nobody else writes. */
static bool put(struct world *world, struct spate_writer *w, uint64_t n, struct spate_err *err)
{
    char value[BUS_LOG_MOST];
    const struct spate_record record = {.key = {.at = "key", .len = 3}, .value = bus_log_value(n, value)};
    size_t taken = 0;

    if (spate_writer_publish(w, &record, 1, &taken, err) == SPATE_FAIL)
        return false;
    if (taken == 0)
        return false;
    world->at[n] = spate_writer_end(w).at - spate_local_footprint(record.key.len + record.value.len);
    world->at[n + 1] = spate_writer_end(w).at;
    atomic_store(&world->written, n);
    return true;
}

/* ---- L6 ---- */

struct reader {
    struct world *world;
    struct spate_reader *in;
    unsigned slowness; /* 0: as fast as it can */
    uint64_t delivered, lost, gaps;
    char wrong[200];
};

/* A reader that is behind by `slowness` thousand records before it goes on is overtaken when that is more
 * than what is kept. It waits for the writer, not for the clock. */
static void dawdle(struct reader *r, uint64_t n)
{
    const uint64_t upto = n + 1000 * r->slowness * 4;

    while (atomic_load(&r->world->written) < upto && !atomic_load(&r->world->ended) &&
           spate_clock_ms() < r->world->until_ms)
        nap();
}

/* Every number is delivered or lies in a gap that was told, and no other does. */
static void account(struct reader *r, const struct spate_message *m, uint64_t *last)
{
    const struct world *world = r->world;
    uint64_t n = *last + 1;

    if (m->kind == SPATE_MESSAGE_GAP) {
        r->gaps++;
        if (n <= atomic_load(&world->written) && world->at[n] < m->pos.at)
            snprintf(r->wrong, sizeof r->wrong, "record %" PRIu64 " stands before the gap and never came", n);
        for (; n <= atomic_load(&world->written) && world->at[n] < m->next.at; n++)
            r->lost++;
        *last = n - 1;
        return;
    }
    while (atomic_load(&world->written) < n && spate_clock_ms() < world->until_ms)
        nap(); /* seen before the writer has noted where it stands */
    if (bus_log_number(m) != n || m->pos.at != world->at[n])
        snprintf(r->wrong, sizeof r->wrong,
                 "expected record %" PRIu64 " at %" PRIx64 ", got %" PRIu64 " at %" PRIx64, n, world->at[n],
                 bus_log_number(m), m->pos.at);
    r->delivered++;
    *last = n;
}

static void *read_all(void *arg)
{
    struct reader *r = arg;
    struct spate_message m;
    struct spate_err err = {0};
    uint64_t last = 0;

    while (last < r->world->count && !r->wrong[0]) {
        const enum spate_rc rc = spate_reader_next(r->in, &m, &err);
        if (rc == SPATE_OK)
            account(r, &m, &last);
        else if (rc == SPATE_FAIL || spate_reader_wait(r->in, 100, &err) == SPATE_FAIL)
            snprintf(r->wrong, sizeof r->wrong, "%.190s", err.text);
        else if (spate_clock_ms() > r->world->until_ms)
            snprintf(r->wrong, sizeof r->wrong, "nothing more after record %" PRIu64, last);
        if (rc == SPATE_OK && r->slowness && m.kind == SPATE_MESSAGE_RECORD && last % 1000 == 0)
            dawdle(r, last);
    }
    return NULL;
}

/* False: somebody saw something wrong, which stands in wrong. */
static bool overtaken(char wrong[200], uint64_t *gaps)
{
    struct world world;
    struct reader readers[READERS];
    pthread_t threads[READERS];
    struct spate_writer *w;
    struct spate_err err = {0};
    bool good = true;

    open_world(&world, records_to_write(), 3 << 20);
    struct spate_bus *bus = open_bus(&world);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    assert_true(spate_writer_retention_ms(w) == INT64_MAX);
    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (struct reader){.world = &world, .slowness = i};
        check(spate_bus_reader_open(bus, "log", i % 2 ? SPATE_SEE_TIP : SPATE_SEE_DURABLE, oldest,
                                    &readers[i].in, &err),
              &err);
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &readers[i]), 0);
    }
    for (uint64_t n = 1; n <= world.count;) {
        if (put(&world, w, n, &err))
            n++;
        else if (spate_clock_ms() > world.until_ms)
            fail_msg("record %" PRIu64 " finds no room: %s", n, err.text);
        else
            nap();
    }
    atomic_store(&world.ended, true);
    *gaps = 0;
    for (unsigned i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
        spate_reader_close(readers[i].in);
        *gaps += readers[i].gaps;
        if (!readers[i].wrong[0] && readers[i].delivered + readers[i].lost != world.count)
            snprintf(readers[i].wrong, sizeof readers[i].wrong, "%" PRIu64 " delivered and %" PRIu64 " lost",
                     readers[i].delivered, readers[i].lost);
        if (readers[i].wrong[0] && good) {
            snprintf(wrong, 200, "reader %u: %.180s", i, readers[i].wrong);
            good = false;
        }
    }
    spate_writer_close(w);
    spate_bus_close(bus);
    close_world(&world);
    return good;
}

static void L6_every_loss_is_told_exactly(void **state)
{
    char wrong[200] = "";
    uint64_t gaps;

    (void)state;
    if (!overtaken(wrong, &gaps))
        fail_msg("L6: %s", wrong);
    print_message("# L6: %" PRIu64 " records, %d readers, %" PRIu64 " gaps\n", records_to_write(), READERS,
                  gaps);
    assert_true(gaps > 0);
}

static void L6_control_a_silent_gap_is_noticed(void **state)
{
    char wrong[200] = "";
    uint64_t gaps;

    (void)state;
    spate_broken = SPATE_BROKEN_SILENT_GAP;
    const bool good = overtaken(wrong, &gaps);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_false(good);
    print_message("# L6 with silent gaps: %s\n", wrong);
}

/* ---- L7 ---- */

/* Does the log take nothing because of a holder? */
static bool is_held(const struct world *world)
{
    const struct spate_local_place place = {.path = (char *)(uintptr_t)world->scratch.path,
                                            .hot = (char *)(uintptr_t)world->scratch.hot};
    struct spate_local_topic topic;
    struct spate_err err = {0};
    bool held = false;

    if (spate_local_topic_open(&topic, &place, "log", &err) != SPATE_OK)
        return false;
    if (spate_local_topic_attach(&topic, false, &err) == SPATE_OK)
        held = atomic_load(&topic.ctl->gate_why) == SPATE_LOCAL_GATE_HOLD;
    spate_local_topic_close(&topic);
    return held;
}

/* Writes until all is written, or the log has stood for a while because of a holder. How many it got. */
static uint64_t write_until_blocked(struct world *world, struct spate_writer *w, uint64_t from)
{
    struct spate_err err = {0};
    int64_t since = 0;
    uint64_t n = from;

    while (n <= world->count) {
        if (put(world, w, n, &err)) {
            n++;
            since = 0;
            continue;
        }
        if (err.text[0])
            fail_msg("record %" PRIu64 ": %s", n, err.text);
        if (spate_writer_durable(w).at < spate_writer_end(w).at || !is_held(world))
            since = 0;
        else if (since == 0)
            since = spate_clock_ms();
        else if (spate_clock_ms() - since > 300) /* the steward looks ten times a second meanwhile */
            break;
        if (spate_clock_ms() > world->until_ms)
            fail_msg("record %" PRIu64 " finds no room", n);
        nap();
    }
    return n - 1;
}

struct kept {
    uint64_t lost, delivered;
};

/* Reads what there is, up to record `upto`. */
static void read_upto(struct world *world, struct spate_reader *in, uint64_t upto, uint64_t *last,
                      struct kept *kept, bool tell)
{
    struct reader r = {.world = world};
    struct spate_message m;
    struct spate_err err = {0};

    while (*last < upto) {
        check(bus_log_next(in, &m, &err), &err);
        account(&r, &m, last);
        if (r.wrong[0])
            fail_msg("L7: %s", r.wrong);
        if (tell)
            spate_reader_passed(in, m.next);
    }
    kept->lost += r.lost;
    kept->delivered += r.delivered;
}

/* One who holds and stands still, then goes on. *blocked: how many records the writer got rid of. */
static struct kept at_the_limit(unsigned flags, bool hold, uint64_t count, uint64_t *blocked)
{
    struct world world;
    struct kept kept = {0};
    struct spate_writer *w;
    struct spate_reader *in;
    struct spate_err err = {0};
    uint64_t last = 0;

    open_world(&world, count, 3 << 20);
    struct spate_bus *bus = open_bus(&world);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &in, &err), &err);
    check(spate_reader_enlist(in, "slow", hold, &err), &err);
    *blocked = write_until_blocked(&world, w, 1);
    if (*blocked < count) { /* it goes on, and so does the writer */
        read_upto(&world, in, *blocked, &last, &kept, true);
        while (atomic_load(&world.written) < count) {
            const uint64_t before = atomic_load(&world.written);
            read_upto(&world, in, write_until_blocked(&world, w, before + 1), &last, &kept, true);
            assert_true(atomic_load(&world.written) > before);
        }
    }
    read_upto(&world, in, count, &last, &kept, true);
    spate_reader_close(in);
    spate_writer_close(w);
    spate_bus_close(bus);
    close_world(&world);
    return kept;
}

#define L7_RECORDS 20000 /* seven segments, and three are kept */

static void L7_nobody_waits_for_a_reader_at_the_limit(void **state)
{
    uint64_t blocked;

    (void)state;
    const struct kept kept = at_the_limit(0, false, L7_RECORDS, &blocked);
    assert_int_equal(blocked, L7_RECORDS);
    assert_int_equal(kept.delivered + kept.lost, L7_RECORDS);
    assert_true(kept.lost > 0);
}

static void L7_with_hold_the_writer_waits_and_nothing_is_lost(void **state)
{
    static const unsigned kinds[] = {0, SPATE_TOPIC_SHARED};
    uint64_t blocked;

    (void)state;
    for (int i = 0; i < 2; i++) {
        const struct kept kept = at_the_limit(kinds[i], true, L7_RECORDS, &blocked);
        assert_true(blocked < L7_RECORDS);
        assert_int_equal(kept.lost, 0);
        assert_int_equal(kept.delivered, L7_RECORDS);
        print_message("# L7: the writer waited after record %" PRIu64 " of %d\n", blocked, L7_RECORDS);
    }
}

static void L7_control_retention_that_takes_what_is_held_is_noticed(void **state)
{
    uint64_t blocked;

    (void)state;
    spate_broken = SPATE_BROKEN_NO_HOLD;
    const struct kept kept = at_the_limit(0, true, L7_RECORDS, &blocked);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_true(kept.lost > 0);
    assert_int_equal(blocked, L7_RECORDS);
}

/* The holder is dead, and an operator lets it go while the writer waits. */
static void L7_a_released_holder_lets_the_writer_go_on(void **state)
{
    struct world world;
    struct spate_writer *w;
    struct spate_reader *in;
    struct spate_err err = {0};

    (void)state;
    open_world(&world, L7_RECORDS, 3 << 20);
    struct spate_bus *bus = open_bus(&world);
    const struct spate_local_place place = {.path = world.scratch.path, .hot = world.scratch.hot};
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &in, &err), &err);
    check(spate_reader_enlist(in, "slow", true, &err), &err);
    spate_reader_close(in);
    const uint64_t blocked = write_until_blocked(&world, w, 1);
    assert_true(blocked < L7_RECORDS);
    /* However long it takes: what is held is held also for the dead, until hold_expire. */
    check(spate_local_named_release(&place, "slow", "log", spate_writer_durable(w).at,
                                    SPATE_LOCAL_RELEASE_OPERATOR, &err),
          &err);
    for (uint64_t n = blocked + 1; n <= L7_RECORDS;) {
        if (put(&world, w, n, &err))
            n++;
        else if (spate_clock_ms() > world.until_ms)
            fail_msg("record %" PRIu64 " finds no room after the release: %s", n, err.text);
        else
            nap();
    }
    uint64_t last = 0;
    struct kept kept = {0};
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE,
                                (struct spate_start){.from = SPATE_START_AT, .pos = {.at = world.at[1]}}, &in,
                                &err),
          &err);
    read_upto(&world, in, L7_RECORDS, &last, &kept, false);
    assert_true(kept.lost > 0);
    assert_int_equal(kept.delivered + kept.lost, L7_RECORDS);
    spate_reader_close(in);
    spate_writer_close(w);
    spate_bus_close(bus);
    close_world(&world);
}

/* Neither a writer that begins anew nor a machine that was off makes anybody forget who holds. */
static void L7_a_hold_outlives_restarts_and_a_reboot(void **state)
{
    struct world world;
    struct spate_writer *w;
    struct spate_reader *in;
    struct spate_err err = {0};
    struct kept kept = {0};
    uint64_t last = 0;

    (void)state;
    open_world(&world, L7_RECORDS, 3 << 20);
    struct spate_bus *bus = open_bus(&world);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &in, &err), &err);
    check(spate_reader_enlist(in, "slow", true, &err), &err);
    spate_reader_close(in); /* it is off as well */
    uint64_t written = write_until_blocked(&world, w, 1);
    for (int i = 0; i < 4; i++) {
        spate_writer_close(w);
        if (i == 3)
            bus_scratch_reboot(&world.scratch);
        check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
        const uint64_t more = write_until_blocked(&world, w, written + 1);
        if (i < 3) /* what was begun was full already; a recovery begins a segment, and no second one */
            assert_int_equal(more, written);
        else
            assert_true(world.at[more + 1] - world.at[written + 1] <= CAP);
        written = more;
    }
    assert_true(written < L7_RECORDS);
    world.count = written;
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &in, &err), &err);
    check(spate_reader_enlist(in, "slow", true, &err), &err);
    read_upto(&world, in, written, &last, &kept, true);
    assert_int_equal(kept.delivered, written);
    assert_int_equal(kept.lost, 0);
    spate_reader_close(in);
    spate_writer_close(w);
    spate_bus_close(bus);
    close_world(&world);
}

#if defined(__SANITIZE_THREAD__)
#define WATCHED                                                                                              \
    1 /* by a race detector: that is buslab_crowd_test's (L15), and too slow for what is timed here */
#else
#define WATCHED 0
#endif

int main(void)
{
    if (WATCHED)
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L6_every_loss_is_told_exactly),
        cmocka_unit_test(L6_control_a_silent_gap_is_noticed),
        cmocka_unit_test(L7_nobody_waits_for_a_reader_at_the_limit),
        cmocka_unit_test(L7_with_hold_the_writer_waits_and_nothing_is_lost),
        cmocka_unit_test(L7_control_retention_that_takes_what_is_held_is_noticed),
        cmocka_unit_test(L7_a_released_holder_lets_the_writer_go_on),
        cmocka_unit_test(L7_a_hold_outlives_restarts_and_a_reboot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
