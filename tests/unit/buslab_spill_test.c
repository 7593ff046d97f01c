/* tests/unit/buslab_spill_test.c - L1, L2: writers that are killed and frozen while a value that no segment
 * takes is on its way to a file of its own. What was taken comes once, whole and in order; what was not
 * leaves no file behind. SEED repeats a run, LAB_SPILLS is how often somebody is hit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/local.h"
#include "bus/local/repair.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "tests/lab/lab.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP   (UINT64_C(1) << 20)
#define LARGE ((size_t)300 << 10) /* more than a quarter of a segment */
#define SMALL ((size_t)100)
#define EACH  6 /* records of a victim */

static const enum spate_failpoint points[] = {
    SPATE_FP_local_spill,        SPATE_FP_local_spilled, SPATE_FP_local_taken,    SPATE_FP_local_claimed,
    SPATE_FP_local_spill_called, SPATE_FP_local_filled,  SPATE_FP_local_committed};

struct note { /* what a victim says of itself; outlives it */
    _Atomic uint64_t tried, taken;
};

/* --- the victim */

static enum spate_failpoint where;
static int hit, with;

static bool strike(enum spate_failpoint point)
{
    if (point == where && --hit == 0)
        kill(getpid(), with);
    return false;
}

static size_t length_of(uint64_t writer, uint64_t seq)
{
    return (writer + seq) % 3 == 0 ? SMALL : LARGE + (size_t)(seq % 100 * 64 + writer % 64);
}

static struct spate_slice value_of(uint64_t writer, uint64_t seq)
{
    static char bytes[LARGE + 8192];
    const size_t len = length_of(writer, seq);

    memset(bytes, (int)('a' + (writer * 7 + seq) % 26), len);
    memcpy(bytes, &writer, sizeof writer);
    memcpy(bytes + sizeof writer, &seq, sizeof seq);
    return spate_slice(bytes, len);
}

static enum spate_rc publish(struct spate_writer *w, uint64_t writer, uint64_t seq, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + 10000;
    const struct spate_record record = {.key = {.at = "k", .len = 1}, .value = value_of(writer, seq)};
    size_t taken = 0;
    enum spate_rc rc;

    do
        rc = spate_writer_publish(w, &record, 1, &taken, err);
    while (rc == SPATE_AGAIN && spate_clock_ms() < deadline);
    return rc;
}

static _Noreturn void play(const struct lab_plan *plan, uint64_t writer, struct note *note)
{
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (spate_local_bus_open(plan->path, plan->hot, (int64_t)CAP, &bus, &err) != SPATE_OK ||
        spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | plan->flags, &w, &err) != SPATE_OK) {
        fprintf(stderr, "victim: %s\n", err.text);
        _exit(1);
    }
    spate_failpoint_hook = strike;
    for (uint64_t seq = 1; seq <= EACH; seq++) {
        atomic_store(&note->tried, seq);
        if (publish(w, writer, seq, &err) != SPATE_OK) {
            fprintf(stderr, "victim: %s\n", err.text);
            _exit(1);
        }
        atomic_store(&note->taken, seq);
    }
    spate_failpoint_hook = NULL;
    spate_writer_close(w);
    spate_bus_close(bus);
    _exit(0);
}

/* --- who watches */

struct watch {
    struct spate_reader *reader;
    uint64_t writer, seq; /* of the last record */
    uint64_t spilled;     /* records with a file of their own */
};

/* Reads one record and holds it against what its writer wrote. false: there is none. */
static bool look(struct watch *watch, int64_t deadline_ms)
{
    struct spate_message m;
    struct spate_err err = {0};
    enum spate_rc rc;

    while ((rc = spate_reader_next(watch->reader, &m, &err)) == SPATE_AGAIN && spate_clock_ms() < deadline_ms)
        (void)!spate_reader_wait(watch->reader, 20, &err);
    if (rc == SPATE_AGAIN)
        return false;
    check(rc, &err);
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_true(m.value.len >= 16);
    memcpy(&watch->writer, m.value.at, 8);
    memcpy(&watch->seq, m.value.at + 8, 8);
    assert_true(spate_slice_eq(m.value, value_of(watch->writer, watch->seq)));
    watch->spilled += m.value.len > CAP / 4;
    return true;
}

static int files(const char *root, const char *end)
{
    char path[256];
    int count = 0;
    const struct dirent *entry;

    snprintf(path, sizeof path, "%s/log", root);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        const size_t len = strlen(entry->d_name);
        count += len > strlen(end) && strcmp(entry->d_name + len - strlen(end), end) == 0;
    }
    closedir(dir);
    return count;
}

/* One victim: hit once, frozen ones thawed after others have gone past them. Every record of it that came is
 * checked; `own` counts ours. */
static void round_of(const struct lab_plan *plan, struct spate_writer *w, struct watch *watch,
                     uint64_t victim, uint64_t *own, uint64_t *seed)
{
    struct note *note = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct spate_err err = {0};
    uint64_t seen = 0, mine = *own;
    int status = 0;
    bool gone = false;

    where = points[lab_random(seed) % (sizeof points / sizeof points[0])];
    hit = (int)(1 + lab_random(seed) % 3);
    with = lab_random(seed) % 2 ? SIGSTOP : SIGKILL;
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0)
        play(plan, victim, note);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    /* Others are not kept from publishing, nor from being read. */
    for (int i = 0; i < 2; i++)
        check(publish(w, 1, ++*own, &err), &err);
    const int64_t deadline = spate_clock_ms() + 20000;
    for (bool thawed = false; mine < *own || !gone || seen < atomic_load(&note->taken);) {
        if (mine == *own && !thawed) {
            if (WIFSTOPPED(status)) {
                kill(pid, SIGCONT);
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFEXITED(status));
                assert_int_equal(WEXITSTATUS(status), 0);
                assert_int_equal(atomic_load(&note->taken), EACH);
            }
            thawed = gone = true;
            continue;
        }
        if (!look(watch, deadline))
            fail_msg("SEED=%llu point %d hit %d signal %d: %llu of %llu, own %llu of %llu",
                     (unsigned long long)plan->seed, (int)where, hit, with, (unsigned long long)seen,
                     (unsigned long long)atomic_load(&note->taken), (unsigned long long)mine,
                     (unsigned long long)*own);
        if (watch->writer == 1) {
            assert_int_equal(watch->seq, ++mine);
        } else {
            assert_int_equal(watch->writer, victim);
            assert_int_equal(watch->seq, ++seen);
            assert_true(seen <= atomic_load(&note->tried));
        }
    }
    /* One that was committed, and not noted any more. */
    while (look(watch, 0)) {
        assert_int_equal(watch->writer, victim);
        assert_int_equal(watch->seq, ++seen);
        assert_true(seen <= atomic_load(&note->tried));
    }
    munmap(note, 4096);
}

static void crowd(unsigned flags)
{
    struct lab_plan plan = {.seed = lab_seed(), .flags = flags};
    const bool fleeting = (flags & SPATE_TOPIC_VOLATILE) != 0;
    const long rounds = lab_number("LAB_SPILLS", 24);
    char path[128], hot[128];
    struct spate_bus *bus;
    struct spate_writer *w;
    struct watch watch = {0};
    struct spate_err err = {0};
    uint64_t own = 0, seed = plan.seed;

    lab_directories(&plan, path, hot);
    spate_local_repair_claim_ms = 20;
    check(spate_local_bus_open(plan.path, plan.hot, (int64_t)CAP, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_OLDEST},
                                &watch.reader, &err),
          &err);
    for (uint64_t i = 0; i < (uint64_t)rounds; i++)
        round_of(&plan, w, &watch, 2 + i, &own, &seed);
    spate_writer_close(w);
    if (!fleeting) {
        /* A writer that opens sweeps away what was never called by a position. */
        check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err), &err);
        assert_int_equal(files(plan.path, ".tmp"), 0);
        if ((uint64_t)files(plan.path, ".spill") != watch.spilled)
            fail_msg("SEED=%llu: %d spill files of %llu records", (unsigned long long)plan.seed,
                     files(plan.path, ".spill"), (unsigned long long)watch.spilled);
        spate_writer_close(w);
    }
    print_message("seed %llu: %ld victims, %llu values in files of their own\n",
                  (unsigned long long)plan.seed, rounds, (unsigned long long)watch.spilled);
    spate_reader_close(watch.reader);
    spate_bus_close(bus);
    lab_remove(&plan);
}

/* A victim is the child of a process whose own writer has a thread. ThreadSanitizer knows nothing of such a
 * child, and under AddressSanitizer one in twenty waits for ever for a lock of its allocator, which that
 * thread held. */
#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
enum { THREADS_IN_A_CHILD = 0, FORK_BESIDE_THREADS = 0 };
#elif defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
enum { THREADS_IN_A_CHILD = 1, FORK_BESIDE_THREADS = 0 };
#else
enum { THREADS_IN_A_CHILD = 1, FORK_BESIDE_THREADS = 1 };
#endif

static void L1_L2_victims_with_large_values(void **state)
{
    (void)state;
    crowd(SPATE_TOPIC_SHARED);
}

static void L1_L2_victims_with_large_values_in_shared_memory(void **state)
{
    (void)state;
    crowd(SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE);
}

/* One writer at a time. Whoever opens after a death settles what it left. */
static void L1_owners_with_large_values(void **state)
{
    enum { POINTS = sizeof points / sizeof points[0] };
    struct lab_plan plan = {.seed = lab_seed()};
    char path[128], hot[128];
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};
    struct note *notes;
    uint64_t seed = plan.seed, seen[POINTS + 2] = {0};
    int status;

    (void)state;
    if (!THREADS_IN_A_CHILD)
        skip();
    lab_directories(&plan, path, hot);
    notes = mmap(NULL, sizeof *notes * POINTS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    with = SIGKILL;
    for (uint64_t i = 0; i < POINTS; i++) {
        where = points[i];
        hit = (int)(1 + lab_random(&seed) % 3);
        fflush(NULL);
        const pid_t pid = fork();
        if (pid == 0)
            play(&plan, 2 + i, &notes[i]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
    }
    check(spate_local_bus_open(plan.path, plan.hot, (int64_t)CAP, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    struct watch watch = {0};
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE,
                                (struct spate_start){.from = SPATE_START_OLDEST}, &watch.reader, &err),
          &err);
    while (look(&watch, 0)) {
        assert_true(watch.writer >= 2 && watch.writer < 2 + POINTS);
        assert_int_equal(watch.seq, ++seen[watch.writer]);
    }
    for (uint64_t i = 0; i < POINTS; i++) {
        assert_true(seen[2 + i] >= atomic_load(&notes[i].taken));
        assert_true(seen[2 + i] <= atomic_load(&notes[i].tried));
    }
    assert_int_equal(files(plan.path, ".tmp"), 0);
    assert_int_equal(files(plan.path, ".spill"), watch.spilled);
    munmap(notes, sizeof *notes * POINTS);
    spate_reader_close(watch.reader);
    spate_writer_close(w);
    spate_bus_close(bus);
    lab_remove(&plan);
}

static void L1_L2_victims_cannot_be_forked_beside_threads_under_this_sanitizer(void **state)
{
    (void)state;
    if (!FORK_BESIDE_THREADS)
        skip();
}

int main(void)
{
    const struct CMUnitTest no_victims[] = {
        cmocka_unit_test(L1_L2_victims_cannot_be_forked_beside_threads_under_this_sanitizer),
        cmocka_unit_test(L1_owners_with_large_values),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L1_L2_victims_with_large_values),
        cmocka_unit_test(L1_L2_victims_with_large_values_in_shared_memory),
        cmocka_unit_test(L1_owners_with_large_values),
    };
    return FORK_BESIDE_THREADS ? cmocka_run_group_tests_name("buslab_spill", tests, NULL, NULL)
                               : cmocka_run_group_tests_name("buslab_spill", no_victims, NULL, NULL);
}
