/* tests/unit/bus_kill_test.c - a writer killed at any point, and what the next one finds. SEED repeats
 * a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/segment.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

/* What a child tells its parent, and what survives it. */
struct told {
    _Atomic uint64_t published, acked;
    _Atomic int failed;
};

static struct spate_bus *open_bus(const struct bus_scratch *s)
{
    struct spate_bus *bus = NULL;
    struct spate_err err = {0};

    check(spate_bus_open(&s->config, &bus, &err), &err);
    return bus;
}

/* The number of the last record of the log. */
static uint64_t last_record(struct spate_bus *bus, enum spate_visibility see, uint64_t *broken)
{
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    uint64_t n = 0;
    enum spate_rc rc;

    if (spate_bus_reader_open(bus, "log", see, oldest, &r, &err) != SPATE_OK)
        return 0;
    while ((rc = spate_reader_next(r, &m, &err)) == SPATE_OK) {
        const uint64_t number = m.kind == SPATE_MESSAGE_RECORD ? bus_log_number(&m) : 0;
        if (number != n + 1)
            ++*broken;
        n = number ? number : n + 1;
    }
    if (rc == SPATE_FAIL)
        ++*broken;
    spate_reader_close(r);
    return n;
}

/* The same by the log's last piece alone, as a connector does it. */
static uint64_t resume_after(struct spate_bus *bus, uint64_t *broken)
{
    struct spate_reader *r;
    struct spate_message m;
    struct spate_bus_pos before;
    struct spate_err err = {0};
    uint64_t n = 0;

    if (spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err) != SPATE_OK)
        return 0;
    before = spate_reader_end(r);
    while (n == 0 && spate_reader_back(r, before, &before, &err) == SPATE_OK)
        while (spate_reader_next(r, &m, &err) == SPATE_OK) {
            const uint64_t number = bus_log_number(&m);
            *broken += number == 0 || (n != 0 && number != n + 1);
            n = number;
        }
    spate_reader_close(r);
    return n;
}

static void child_acked(void *arg, uint64_t token)
{
    struct told *told = arg;

    atomic_store(&told->acked, token);
}

/* Publishes from the log's end on until it is killed. */
static _Noreturn void child(const struct bus_scratch *s, unsigned flags, struct told *told, uint64_t seed)
{
    struct spate_bus *bus = NULL;
    struct spate_writer *w = NULL;
    struct spate_err err = {0};
    uint64_t broken = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (spate_bus_open(&s->config, &bus, &err) != SPATE_OK ||
        spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err) != SPATE_OK) {
        fprintf(stderr, "child: %s\n", err.text);
        atomic_store(&told->failed, 1);
        _exit(1);
    }
    for (uint64_t n = resume_after(bus, &broken) + 1;;) {
        char values[8][BUS_LOG_MOST];
        struct spate_record records[8];
        const size_t count = 1 + bus_log_random(&seed) % 8;
        size_t taken = 0;
        for (size_t i = 0; i < count; i++)
            records[i] = (struct spate_record){
                .key = {.at = "key", .len = 3}, .value = bus_log_value(n + i, values[i]), .token = n + i};
        enum spate_rc rc = spate_writer_publish(w, records, count, &taken, &err);
        n += taken;
        atomic_store(&told->published, n - 1);
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(w, 0, child_acked, told, &err);
        if (rc == SPATE_FAIL || broken) {
            fprintf(stderr, "child: %s\n", err.text);
            atomic_store(&told->failed, 1);
            _exit(1);
        }
    }
}

static void kill_often(unsigned flags, int rounds)
{
    struct bus_scratch s;
    struct told *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 10) : (uint64_t)spate_clock_wall_us();
    uint64_t broken = 0;

    print_message("SEED=%llu\n", (unsigned long long)seed);
    bus_scratch_init(&s, (int64_t)CAP);
    for (int i = 0; i < rounds; i++) {
        const uint64_t before = atomic_load(&told->published);
        const int64_t deadline = spate_clock_ms() + 20000;
        const uint64_t child_seed = bus_log_random(&seed);
        const pid_t pid = fork();
        if (pid == 0)
            child(&s, flags, told, child_seed);
        while (atomic_load(&told->published) == before && !atomic_load(&told->failed)) {
            assert_true(spate_clock_ms() < deadline);
            sched_yield();
        }
        /* The moment of the kill is what this test is about. */
        nanosleep(&(struct timespec){.tv_nsec = (long)(bus_log_random(&seed) % 8000000)}, NULL);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        assert_int_equal(atomic_load(&told->failed), 0);
    }
    struct spate_bus *bus = open_bus(&s);
    struct spate_writer *w;
    struct spate_err err = {0};
    check(spate_bus_writer_open(bus, "log", flags, &w, &err), &err);
    assert_int_equal(spate_writer_end(w).at, spate_writer_durable(w).at);
    const uint64_t n = last_record(bus, SPATE_SEE_DURABLE, &broken);
    print_message("%llu records, %llu acknowledged\n", (unsigned long long)n,
                  (unsigned long long)atomic_load(&told->acked));
    assert_int_equal(broken, 0);
    assert_true(n >= atomic_load(&told->acked));
    assert_true(n >= atomic_load(&told->published));
    spate_writer_close(w);
    spate_bus_close(bus);
    bus_scratch_fini(&s);
    munmap(told, sizeof *told);
}

static void a_killed_owner_loses_nothing(void **state)
{
    (void)state;
    kill_often(0, 60);
}

static void a_killed_sharer_loses_nothing(void **state)
{
    (void)state;
    kill_often(SPATE_TOPIC_SHARED, 30);
}

/* States that a kill between two instructions leaves, made by hand in the hot segment. */
static void after_fetch_add(struct spate_local_segment *seg, uint64_t tail)
{
    (void)tail;
    atomic_fetch_add(&spate_local_header(seg)->tail, UINT64_C(1) << SPATE_LOCAL_TAIL_SHIFT | 192);
}

static void after_claim(struct spate_local_segment *seg, uint64_t tail)
{
    after_fetch_add(seg, tail);
    struct spate_local_record *record = spate_local_record_at(seg, tail);
    atomic_store(&record->word, spate_local_word(SPATE_LOCAL_CLAIM, 0, 1, 192));
}

static void during_copy(struct spate_local_segment *seg, uint64_t tail)
{
    after_claim(seg, tail);
    memset(spate_local_record_at(seg, tail)->payload, 0x02, 100);
}

static void before_commit_of_a_batch(struct spate_local_segment *seg, uint64_t tail)
{
    after_claim(seg, tail);
    for (uint64_t at = tail + 64; at < tail + 192; at += 64)
        atomic_store(&spate_local_record_at(seg, at)->word, spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, 30));
}

static void past_the_end_before_end(struct spate_local_segment *seg, uint64_t tail)
{
    atomic_fetch_add(&spate_local_header(seg)->tail,
                     UINT64_C(1) << SPATE_LOCAL_TAIL_SHIFT | (CAP - tail + 64));
}

static void after_end(struct spate_local_segment *seg, uint64_t tail)
{
    past_the_end_before_end(seg, tail);
    atomic_store(&spate_local_record_at(seg, tail)->word, spate_local_word(SPATE_LOCAL_END, 0, 0, 0));
}

static void the_next_writer_settles_every_state(void **state)
{
    static void (*const leave[])(struct spate_local_segment *, uint64_t) = {
        after_fetch_add,         after_claim, during_copy, before_commit_of_a_batch,
        past_the_end_before_end, after_end};
    struct bus_scratch s;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};
    uint64_t n = 0, broken = 0;

    (void)state;
    bus_scratch_init(&s, (int64_t)CAP);
    struct spate_bus *bus = open_bus(&s);
    for (size_t i = 0; i < sizeof leave / sizeof leave[0]; i++) {
        char path[256];
        struct spate_writer *w;
        struct spate_reader *tip;
        struct spate_message m;
        struct spate_local_segment seg;
        check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
        check(bus_log_publish(w, n + 1, n + 5, &acks, &err), &err);
        n += 5;
        const uint64_t end = spate_writer_end(w).at;
        spate_writer_close(w);

        snprintf(path, sizeof path, "%s/log", s.hot);
        const int dir = open(path, O_RDONLY | O_DIRECTORY);
        check(spate_local_segment_map(dir, end - end % CAP, CAP, SPATE_LOCAL_MAP_WRITE, &seg, &err), &err);
        leave[i](&seg, end % CAP);
        check(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP,
                                    (struct spate_start){.from = SPATE_START_AT, .pos = {.at = end}}, &tip,
                                    &err),
              &err);
        assert_int_equal(spate_reader_next(tip, &m, &err), SPATE_AGAIN); /* nobody is shown half a record */
        spate_local_segment_unmap(&seg);
        close(dir);

        check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
        check(bus_log_publish(w, n + 1, n + 5, &acks, &err), &err);
        for (int k = 1; k <= 5; k++) {
            check(bus_log_next(tip, &m, &err), &err);
            assert_int_equal(bus_log_number(&m), ++n);
        }
        spate_reader_close(tip);
        spate_writer_close(w);
    }
    assert_int_equal(last_record(bus, SPATE_SEE_DURABLE, &broken), n);
    assert_int_equal(broken, 0);
    spate_bus_close(bus);
    bus_scratch_fini(&s);
}

static const char *die_at;
static int die_after;

static void die(const char *where)
{
    if (strcmp(where, die_at) == 0 && die_after-- == 0)
        kill(getpid(), SIGKILL);
}

static int temp_files(const char *root)
{
    char path[256];
    int count = 0;
    const struct dirent *entry;

    snprintf(path, sizeof path, "%s/log", root);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL)
        count += strstr(entry->d_name, ".tmp") != NULL;
    closedir(dir);
    return count;
}

static void a_crash_in_roll_over_is_finished_by_the_next(void **state)
{
    static const char *const points[] = {"create: made", "create: linked", "create: done"};
    struct bus_scratch s;
    struct spate_err err = {0};
    struct told *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t broken = 0;
    int left_behind = 0;

    (void)state;
    bus_scratch_init(&s, (int64_t)CAP);
    struct spate_bus *bus = open_bus(&s);
    struct spate_writer *w;
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    spate_writer_close(w);
    for (int round = 0; round < 6; round++) {
        const pid_t pid = fork();
        int status;
        if (pid == 0) {
            die_at = points[round % 3];
            die_after = round / 3;
            spate_local_segment_hook = die;
            child(&s, 0, told, (uint64_t)round);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        left_behind += temp_files(s.hot);
        check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
        assert_int_equal(temp_files(s.hot) + temp_files(s.path), 0);
        spate_writer_close(w);
        assert_true(last_record(bus, SPATE_SEE_DURABLE, &broken) >= atomic_load(&told->published));
        assert_int_equal(broken, 0);
    }
    assert_true(left_behind > 0); /* else the hook was never in the middle of it */
    spate_bus_close(bus);
    bus_scratch_fini(&s);
    munmap(told, sizeof *told);
}

static void a_second_writer_names_the_process_that_owns_the_topic(void **state)
{
    struct bus_scratch s;
    struct told *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct spate_writer *w;
    struct spate_err err = {0};
    char pid_text[32];
    const int64_t deadline = spate_clock_ms() + 10000;

    (void)state;
    bus_scratch_init(&s, (int64_t)CAP);
    const pid_t pid = fork();
    if (pid == 0)
        child(&s, 0, told, 1);
    while (atomic_load(&told->published) == 0) {
        assert_true(spate_clock_ms() < deadline);
        sched_yield();
    }
    struct spate_bus *bus = open_bus(&s);
    snprintf(pid_text, sizeof pid_text, "process %d ", (int)pid);
    assert_int_equal(spate_bus_writer_open(bus, "log", 0, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, pid_text));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err); /* the kernel gave the lock back */
    spate_writer_close(w);
    spate_bus_close(bus);
    bus_scratch_fini(&s);
    munmap(told, sizeof *told);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_writer_settles_every_state),
        cmocka_unit_test(a_killed_owner_loses_nothing),
        cmocka_unit_test(a_killed_sharer_loses_nothing),
        cmocka_unit_test(a_crash_in_roll_over_is_finished_by_the_next),
        cmocka_unit_test(a_second_writer_names_the_process_that_owns_the_topic),
    };
    return cmocka_run_group_tests_name("bus_kill", tests, NULL, NULL);
}
