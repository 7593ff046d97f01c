/* tests/unit/bus_clock_test.c - the wall clock jumps under a bus at work: nothing is lost, late or removed by
 * it.
 *
 * The definition of clock_gettime below takes the place of the C library's in this program. */
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DAY  86400
#define EACH 700 /* records between two jumps: a roll-over now and then */

static _Atomic int64_t shift_s;

int clock_gettime(clockid_t clock, struct timespec *now)
{
    const int rc = (int)syscall(SYS_clock_gettime, clock, now);

    if (rc == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += shift_s;
    return rc;
}

static void the_clock_steps_back_and_forth(void **state)
{
    static const int64_t jumps[] = {0,  -3600,           DAY, -30 * DAY, -20 * 365 * DAY, 2 * DAY,
                                    -1, -50 * 365 * DAY, 0};
    const struct spate_start oldest = {.from = SPATE_START_OLDEST};
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_writer *w, *many;
    struct spate_reader *r, *again;
    struct spate_message m;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0}, many_acks = {0};
    uint64_t n = 0;

    (void)state;
    bus_scratch_init(&scratch, INT64_C(1) << 20);
    scratch.config.local_retention_ms = INT64_C(7) * DAY * 1000;
    scratch.config.local_hold_expire_ms = INT64_C(1) * DAY * 1000;
    check(spate_bus_open(&scratch.config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(spate_bus_writer_open(bus, "many", SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED, &many, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    check(spate_reader_enlist(r, "anna", true, &err), &err);
    for (size_t i = 0; i < sizeof jumps / sizeof jumps[0]; i++) {
        shift_s = jumps[i];
        const int64_t off = spate_clock_wall_us() / 1000000 - (int64_t)time(NULL) - jumps[i];
        assert_true(off >= -5 && off <= 5); /* it is our clock that the bus reads */
        check(bus_log_publish(w, n + 1, n + EACH, &acks, &err), &err);
        check(bus_log_publish(many, n + 1, n + EACH, &many_acks, &err), &err);
        check(bus_log_settle(w, n + EACH, &acks, &err), &err);
        check(bus_log_settle(many, n + EACH, &many_acks, &err), &err);
        for (uint64_t upto = n + EACH; n < upto; n++) {
            check(bus_log_next(r, &m, &err), &err);
            assert_int_equal(bus_log_number(&m), n + 1);
        }
        spate_reader_passed(r, m.next);
        const int64_t began = spate_clock_ms();
        assert_int_equal(spate_reader_wait(r, 20, &err), SPATE_AGAIN);
        assert_true(spate_clock_ms() - began < 10000);
    }
    /* All of it is there still: from the beginning, too. */
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &again, &err), &err);
    for (uint64_t i = 1; i <= n; i++) {
        check(bus_log_next(again, &m, &err), &err);
        assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
        assert_int_equal(bus_log_number(&m), i);
    }
    spate_reader_close(again);
    spate_reader_close(r);
    spate_writer_close(many);
    spate_writer_close(w);
    spate_bus_close(bus);
    bus_scratch_fini(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_clock_steps_back_and_forth)};

    return cmocka_run_group_tests_name("bus_clock", tests, NULL, NULL);
}
