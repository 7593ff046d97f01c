/* tests/unit/buslab_idle_test.c - L8 and L9: readers that fall asleep while a writer commits, and readers
 * that are killed asleep or while they spin. Each with a rule taken away, which has to show. SEED repeats a
 * run; LAB_ROUNDS and LAB_KILLS make it longer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/bell.h"
#include "bus/local/broken.h"
#include "tests/lab/lab.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

enum { READERS = 4, LATE_MS = 1000, PATIENCE_MS = 20000 };

/* What the processes of a test tell each other. */
struct board {
    _Atomic uint64_t ready;
    _Atomic uint64_t seen[READERS];
};

struct scene {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_writer *writer;
    struct spate_local_bell *bell;
    struct board *board;
    pid_t pids[READERS];
    uint64_t seed, published;
};

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

/* The bell page of the only topic, as any process maps it. */
static struct spate_local_bell *map_bell(const char *hot)
{
    static const char *const below[] = {"/log/bell", "/*/log/bell"};
    glob_t found;
    char pattern[160];
    void *at = MAP_FAILED;

    for (int i = 0; i < 2 && at == MAP_FAILED; i++) {
        snprintf(pattern, sizeof pattern, "%s%s", hot, below[i]);
        if (glob(pattern, 0, NULL, &found) == 0) {
            const int fd = open(found.gl_pathv[0], O_RDWR | O_CLOEXEC);
            at = mmap(NULL, SPATE_LOCAL_HEADER, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            close(fd);
            globfree(&found);
        }
    }
    assert_true(at != MAP_FAILED);
    return at;
}

static void scene_begin(struct scene *s)
{
    struct spate_err err = {0};

    memset(s, 0, sizeof *s);
    s->seed = lab_seed();
    s->board = mmap(NULL, sizeof *s->board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s->board != MAP_FAILED);
    bus_scratch_init(&s->scratch, 64 << 20);
    check(spate_bus_open(&s->scratch.config, &s->bus, &err), &err);
    check(spate_bus_writer_open(s->bus, "log", SPATE_TOPIC_CREATE | SPATE_TOPIC_VOLATILE, &s->writer, &err),
          &err);
    s->bell = map_bell(s->scratch.hot);
}

static void scene_end(struct scene *s)
{
    for (int i = 0; i < READERS; i++)
        if (s->pids[i] > 0) {
            kill(s->pids[i], SIGKILL);
            waitpid(s->pids[i], NULL, 0);
        }
    spate_writer_close(s->writer);
    spate_bus_close(s->bus);
    munmap(s->bell, SPATE_LOCAL_HEADER);
    munmap(s->board, sizeof *s->board);
    bus_scratch_fini(&s->scratch);
}

static void publish(struct scene *s)
{
    struct spate_err err = {0};
    size_t taken;
    const uint64_t n = ++s->published;
    const struct spate_record record = {.value = spate_slice((const char *)&n, sizeof n), .ts_us = 1};

    check(spate_writer_publish(s->writer, &record, 1, &taken, &err), &err);
}

/* A process that reads from now on, until it is killed. */
static _Noreturn void read_on(const struct scene *s, int me)
{
    struct spate_bus *bus = NULL;
    struct spate_reader *r = NULL;
    struct spate_message m;
    struct spate_err err = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (spate_bus_open(&s->scratch.config, &bus, &err) != SPATE_OK ||
        spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_NOW}, &r,
                              &err) != SPATE_OK) {
        fprintf(stderr, "reader: %s\n", err.text);
        _exit(1);
    }
    atomic_fetch_add(&s->board->ready, 1);
    for (;;) {
        enum spate_rc rc;
        while ((rc = spate_reader_next(r, &m, &err)) == SPATE_AGAIN)
            (void)!spate_reader_wait(r, PATIENCE_MS, &err);
        if (rc != SPATE_OK || m.kind != SPATE_MESSAGE_RECORD) {
            fprintf(stderr, "reader: %s\n", err.text);
            _exit(2);
        }
        uint64_t n;
        memcpy(&n, m.value.at, sizeof n);
        atomic_store(&s->board->seen[me], n);
    }
}

static void begin_reader(struct scene *s, int me)
{
    const uint64_t ready = atomic_load(&s->board->ready) + 1;
    const int64_t deadline = spate_clock_ms() + PATIENCE_MS;

    s->pids[me] = fork();
    if (s->pids[me] == 0)
        read_on(s, me);
    while (atomic_load(&s->board->ready) < ready) {
        assert_true(spate_clock_ms() < deadline);
        nap();
    }
}

static bool all_saw(const struct scene *s)
{
    for (int i = 0; i < READERS; i++)
        if (s->pids[i] > 0 && atomic_load(&s->board->seen[i]) < s->published)
            return false;
    return true;
}

/* Publishes one record after the other, each when all readers have the one before it and are about to sleep,
 * or asleep, or not yet. Nobody else rings for who was forgotten. True: all came within a second. */
static bool none_is_lost(long rounds)
{
    struct scene s;
    bool good = true;

    spate_local_bell_nap_ms = PATIENCE_MS;
    scene_begin(&s);
    for (int i = 0; i < READERS; i++)
        begin_reader(&s, i);
    for (long n = 0; n < rounds && good; n++) {
        const uint64_t chance = lab_random(&s.seed);
        if (chance % 8 == 0) /* sparse: the next one is slept for at once */
            nanosleep(&(struct timespec){.tv_nsec = 600000 + (long)(chance >> 8 & 0x3ffff)}, NULL);
        const uint64_t until = spate_local_bell_now_ns() + (chance >> 32 & 0xffff);
        while (spate_local_bell_now_ns() < until)
            ;
        publish(&s);
        const int64_t deadline = spate_clock_ms() + LATE_MS;
        while (!all_saw(&s) && (good = spate_clock_ms() < deadline))
            ;
    }
    if (!good)
        print_message("a reader sleeps after record %llu\n", (unsigned long long)s.published);
    scene_end(&s);
    spate_local_bell_nap_ms = SPATE_LOCAL_NAP_MS;
    return good;
}

static void L8_no_wake_up_is_lost(void **state)
{
    (void)state;
    assert_true(none_is_lost(lab_number("LAB_ROUNDS", 3000)));
}

static void L8_control_a_sleeper_that_does_not_look_again_is_forgotten(void **state)
{
    (void)state;
    spate_broken = SPATE_BROKEN_NO_RECHECK;
    const bool good = none_is_lost(200000);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_false(good);
}

/* How often the writer rang while it published so many records. */
static uint32_t rings(struct scene *s, int records)
{
    const uint32_t before = atomic_load(&s->bell->tip.bell);

    for (int i = 0; i < records; i++)
        publish(s);
    return atomic_load(&s->bell->tip.bell) - before;
}

static void L9_a_killed_sleeper_costs_one_spare_wake(void **state)
{
    const long kills = lab_number("LAB_KILLS", 40);
    struct scene s;

    (void)state;
    scene_begin(&s);
    for (long n = 0; n < kills; n++) {
        const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
        begin_reader(&s, 0);
        while (!atomic_load(&s.bell->tip.waiting)) { /* it says so before it sleeps */
            assert_true(spate_clock_ms() < deadline);
            nap();
        }
        kill(s.pids[0], SIGKILL);
        waitpid(s.pids[0], NULL, 0);
        s.pids[0] = 0;
        assert_true(rings(&s, 100) <= 1);
        assert_int_equal(rings(&s, 100), 0);
    }
    scene_end(&s);
}

/* All seats at once, as soon as the turns of those who had them are over. */
static bool seats_come_free(struct spate_local_bell *bell)
{
    const int64_t deadline = spate_clock_ms() + LATE_MS;
    const unsigned most = spate_local_bell_seats();

    while (spate_clock_ms() < deadline) {
        struct spate_local_seat seats[SPATE_LOCAL_SEATS];
        unsigned taken = 0;
        while (taken < most && spate_local_seat_take(bell, spate_local_bell_now_ns(), &seats[taken]))
            taken++;
        for (unsigned i = 0; i < taken; i++)
            spate_local_seat_leave(bell, &seats[i]);
        if (taken == most)
            return true;
    }
    return false;
}

static _Noreturn void sit(const struct scene *s)
{
    struct spate_local_seat seat;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!spate_local_seat_take(s->bell, spate_local_bell_now_ns(), &seat))
        ;
    atomic_fetch_add(&s->board->ready, 1);
    for (;;)
        pause();
}

/* Kills processes that have a seat; true: the seats come free each time. */
static bool seats_survive(long kills)
{
    struct scene s;
    bool good = true;

    scene_begin(&s);
    for (long n = 0; n < kills && good; n++) {
        const uint64_t ready = atomic_load(&s.board->ready) + 1;
        const int64_t deadline = spate_clock_ms() + PATIENCE_MS;
        const pid_t pid = fork();
        if (pid == 0)
            sit(&s);
        while (atomic_load(&s.board->ready) < ready)
            assert_true(spate_clock_ms() < deadline);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        good = seats_come_free(s.bell);
    }
    scene_end(&s);
    return good;
}

static void L9_a_killed_spinner_leaves_its_seat(void **state)
{
    (void)state;
    if (spate_local_bell_seats() == 0)
        skip(); /* one processor: nobody spins */
    assert_true(seats_survive(lab_number("LAB_KILLS", 40)));
}

static void L9_control_a_count_of_spinners_leaks(void **state)
{
    (void)state;
    if (spate_local_bell_seats() == 0)
        skip();
    spate_broken = SPATE_BROKEN_SPIN_COUNT;
    const bool good = seats_survive(lab_number("LAB_KILLS", 40));
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_false(good);
}

/* Readers of dense traffic, killed wherever they are: chasing, spinning, yielding, asleep. */
static void L9_readers_killed_in_dense_traffic_leave_nothing(void **state)
{
    const long kills = lab_number("LAB_KILLS", 40);
    struct scene s;

    (void)state;
    scene_begin(&s);
    for (int i = 0; i < READERS; i++)
        begin_reader(&s, i);
    for (long n = 0; n < kills; n++) {
        const int victim = (int)(lab_random(&s.seed) % READERS);
        const uint64_t until = spate_local_bell_now_ns() + lab_random(&s.seed) % 3000000;
        while (spate_local_bell_now_ns() < until) {
            publish(&s);
            const uint64_t pause = spate_local_bell_now_ns() + lab_random(&s.seed) % 8000;
            while (spate_local_bell_now_ns() < pause)
                ;
        }
        kill(s.pids[victim], SIGKILL);
        waitpid(s.pids[victim], NULL, 0);
        begin_reader(&s, victim);
    }
    for (int i = 0; i < READERS; i++) {
        kill(s.pids[i], SIGKILL);
        waitpid(s.pids[i], NULL, 0);
        s.pids[i] = 0;
    }
    assert_true(rings(&s, 1000) <= 1);
    assert_int_equal(rings(&s, 1000), 0);
    assert_true(seats_come_free(s.bell));
    scene_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L8_no_wake_up_is_lost),
        cmocka_unit_test(L8_control_a_sleeper_that_does_not_look_again_is_forgotten),
        cmocka_unit_test(L9_a_killed_sleeper_costs_one_spare_wake),
        cmocka_unit_test(L9_a_killed_spinner_leaves_its_seat),
        cmocka_unit_test(L9_control_a_count_of_spinners_leaks),
        cmocka_unit_test(L9_readers_killed_in_dense_traffic_leave_nothing),
    };
    return cmocka_run_group_tests_name("buslab_idle", tests, NULL, NULL);
}
