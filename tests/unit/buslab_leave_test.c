/* tests/unit/buslab_leave_test.c - L14: a writer is closed whose publish() was left in the middle, by a jump
 * out of a signal handler for example. It pads what it claimed. (A fork: tests/unit/bus_api_test.c.) Nobody
 * else does here: the repair is taken away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "core/failpoint.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

static jmp_buf away;
static _Atomic int leave_at = -1; /* publish comes by there in this thread alone */

static bool leave(enum spate_failpoint point)
{
    if ((int)point == leave_at)
        longjmp(away, 1);
    return false;
}

static const struct spate_record *some_records(size_t count)
{
    static char values[4][BUS_LOG_MOST];
    static struct spate_record records[4];

    for (size_t i = 0; i < count; i++)
        records[i] =
            (struct spate_record){.key = {.at = "key", .len = 3}, .value = bus_log_value(900 + i, values[i])};
    return records;
}

/* One or several records, given up at the failpoint. */
static void publish_and_leave(struct spate_writer *w, size_t count, enum spate_failpoint point)
{
    struct spate_err err = {0};
    size_t taken;

    leave_at = (int)point;
    if (setjmp(away) == 0) {
        (void)!spate_writer_publish(w, some_records(count), count, &taken, &err);
        fail_msg("nobody came by");
    }
    leave_at = -1;
}

static void publish_one(struct spate_writer *w, uint64_t n)
{
    char value[BUS_LOG_MOST];
    const struct spate_record record = {.key = {.at = "key", .len = 3}, .value = bus_log_value(n, value)};
    struct spate_err err = {0};
    size_t taken;

    check(spate_writer_publish(w, &record, 1, &taken, &err), &err);
}

static void leave_with(unsigned flags, enum spate_failpoint point, size_t count, bool jumps)
{
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_writer *w, *other = NULL;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};

    spate_broken = SPATE_BROKEN_NO_REPAIR; /* before there are threads that read it */
    spate_failpoint_hook = leave;
    bus_scratch_init(&scratch, INT64_C(1) << 20);
    check(spate_bus_open(&scratch.config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err), &err);
    if (flags & SPATE_TOPIC_SHARED)
        check(spate_bus_writer_open(bus, "log", flags, &other, &err), &err);
    publish_one(w, 1);
    if (jumps)
        publish_and_leave(w, count, point);
    publish_one(w, 2);
    if (other)
        publish_one(other, 3);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_OLDEST},
                                &r, &err),
          &err);
    check(spate_reader_next(r, &m, &err), &err);
    assert_int_equal(bus_log_number(&m), 1);
    if (jumps)
        assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    spate_writer_close(w);
    for (uint64_t n = 2; n <= (other ? 3U : 2U); n++) {
        check(spate_reader_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    spate_reader_close(r);
    spate_writer_close(other);
    spate_bus_close(bus);
    bus_scratch_fini(&scratch);
    spate_broken = SPATE_BROKEN_NOTHING;
}

static void L14_a_writer_that_is_closed_pads_its_open_claim(void **state)
{
    static const unsigned kinds[] = {SPATE_TOPIC_VOLATILE, SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE, 0,
                                     SPATE_TOPIC_SHARED};

    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        leave_with(kinds[i], SPATE_FP_local_claimed, 1, true);
        leave_with(kinds[i], SPATE_FP_local_filled, 1, true);
        leave_with(kinds[i], SPATE_FP_local_filled, 4, true);
        leave_with(kinds[i], SPATE_FP_local_filled, 1, false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(L14_a_writer_that_is_closed_pads_its_open_claim)};

    return cmocka_run_group_tests_name("buslab_leave", tests, NULL, NULL);
}
