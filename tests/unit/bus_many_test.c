/* tests/unit/bus_many_test.c - thirty readers see one sequence; no wake-up is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/bell.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct report {
    _Atomic uint64_t ready, sleeps, slowest_us;
};

/* A reader process: exits 0 when it saw records 1..last, each once and whole, and none of them late. */
static _Noreturn void reader(const struct bus_scratch *s, enum spate_visibility see, uint64_t last,
                             int64_t most_us, struct report *report)
{
    struct spate_bus *bus = NULL;
    struct spate_reader *r = NULL;
    struct spate_message m;
    struct spate_err err = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (spate_bus_open(&s->config, &bus, &err) != SPATE_OK ||
        spate_bus_reader_open(bus, "log", see, oldest, &r, &err) != SPATE_OK) {
        fprintf(stderr, "reader: %s\n", err.text);
        _exit(1);
    }
    atomic_fetch_add(&report->ready, 1);
    for (uint64_t n = 1; n <= last; n++) {
        enum spate_rc rc;
        while ((rc = spate_reader_next(r, &m, &err)) == SPATE_AGAIN) {
            atomic_fetch_add(&report->sleeps, 1);
            if (spate_reader_wait(r, 10000, &err) != SPATE_OK) {
                fprintf(stderr, "reader: nothing after record %llu for 10 s\n", (unsigned long long)n - 1);
                _exit(2);
            }
        }
        const int64_t late = spate_clock_us() - m.ts_us;
        if (rc != SPATE_OK || m.kind != SPATE_MESSAGE_RECORD || bus_log_number(&m) != n) {
            fprintf(stderr, "reader: record %llu is not there: %s\n", (unsigned long long)n, err.text);
            _exit(3);
        }
        uint64_t slowest = atomic_load(&report->slowest_us);
        while (late > (int64_t)slowest &&
               !atomic_compare_exchange_weak(&report->slowest_us, &slowest, (uint64_t)late))
            ;
        if (most_us && late > most_us) {
            fprintf(stderr, "reader: record %llu came %lld us late\n", (unsigned long long)n,
                    (long long)late);
            _exit(4);
        }
    }
    _exit(0);
}

struct crowd {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_writer *writer;
    struct report *report;
    pid_t pids[30];
    size_t count;
};

static void gather(struct crowd *c, size_t readers, uint64_t last, int64_t most_us)
{
    struct spate_err err = {0};
    const int64_t deadline = spate_clock_ms() + 20000;

    c->report = mmap(NULL, sizeof *c->report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bus_scratch_init(&c->scratch, (int64_t)CAP);
    check(spate_bus_open(&c->scratch.config, &c->bus, &err), &err);
    check(spate_bus_writer_open(c->bus, "log", SPATE_TOPIC_CREATE, &c->writer, &err), &err);
    for (c->count = 0; c->count < readers; c->count++) {
        c->pids[c->count] = fork();
        if (c->pids[c->count] == 0)
            reader(&c->scratch, c->count % 2 ? SPATE_SEE_DURABLE : SPATE_SEE_TIP, last, most_us, c->report);
    }
    while (atomic_load(&c->report->ready) < readers) {
        assert_true(spate_clock_ms() < deadline);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void part(struct crowd *c)
{
    int bad = 0;

    for (size_t i = 0; i < c->count; i++) {
        int status;
        assert_int_equal(waitpid(c->pids[i], &status, 0), c->pids[i]);
        bad += status != 0;
    }
    assert_int_equal(bad, 0);
    print_message("%llu waits, slowest %llu us\n", (unsigned long long)atomic_load(&c->report->sleeps),
                  (unsigned long long)atomic_load(&c->report->slowest_us));
    spate_writer_close(c->writer);
    spate_bus_close(c->bus);
    bus_scratch_fini(&c->scratch);
    munmap(c->report, sizeof *c->report);
}

static void thirty_readers_see_one_sequence(void **state)
{
    enum { RECORDS = 60000 };
    struct crowd c;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};

    (void)state;
    gather(&c, 30, RECORDS, 0);
    check(bus_log_publish(c.writer, 1, RECORDS, &acks, &err), &err);
    check(bus_log_settle(c.writer, RECORDS, &acks, &err), &err);
    assert_false(acks.broken);
    part(&c);
}

/* With naps of ten seconds, a lost ring shows as a record that comes seconds late. */
static void no_wake_up_is_lost(void **state)
{
    struct crowd c;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 10) : (uint64_t)spate_clock_wall_us();
    enum { RECORDS = 20000 };

    (void)state;
    print_message("SEED=%llu\n", (unsigned long long)seed);
    spate_local_bell_nap_ms = 10000;
    gather(&c, 6, RECORDS, 3000000);
    for (uint64_t n = 1; n <= RECORDS;) {
        char value[BUS_LOG_MOST];
        const struct spate_record record = {.key = {.at = "key", .len = 3},
                                            .value = bus_log_value(n, value),
                                            .ts_us = spate_clock_us(),
                                            .token = n};
        size_t taken = 0;
        assert_int_not_equal(spate_writer_publish(c.writer, &record, 1, &taken, &err), SPATE_FAIL);
        assert_int_not_equal(spate_writer_poll(c.writer, 0, bus_log_acked, &acks, &err), SPATE_FAIL);
        n += taken;
        const int64_t until = spate_clock_us() + (int64_t)(bus_log_random(&seed) % 200);
        if (bus_log_random(&seed) % 2)
            while (spate_clock_us() < until)
                ;
        else if (bus_log_random(&seed) % 4 == 0)
            nanosleep(&(struct timespec){.tv_nsec = (long)(bus_log_random(&seed) % 300000)}, NULL);
    }
    check(bus_log_settle(c.writer, RECORDS, &acks, &err), &err);
    part(&c);
    spate_local_bell_nap_ms = SPATE_LOCAL_NAP_MS;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thirty_readers_see_one_sequence),
        cmocka_unit_test(no_wake_up_is_lost),
    };
    return cmocka_run_group_tests_name("bus_many", tests, NULL, NULL);
}
