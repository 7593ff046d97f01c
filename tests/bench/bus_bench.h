/* tests/bench/bus_bench.h - what the programs that measure the local bus share: processes that begin
 * together, a bus of their own, and mappings whose pages are there before the clock runs.
 *
 * Every program prints one line of key=value pairs; tests/bench/bus.py compares them. */
#ifndef SPATE_TESTS_BENCH_BUS_BENCH_H
#define SPATE_TESTS_BENCH_BUS_BENCH_H

#include "bus/local/bell.h"
#include "bus/local/segment.h"
#include "tests/support/bus_scratch.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define BENCH_PROCESSES 64

/* One page that all processes of a run see. */
struct bench_shared {
    _Alignas(128) _Atomic uint64_t open, mapped, ready, go; /* stations that processes pass together */
    _Alignas(128) _Atomic uint64_t began, ended; /* ns: when the first began, when the last ended */
    _Alignas(128) _Atomic uint64_t line[3 * 16]; /* of the raw ping-pong: words 0, 16 and 32 */
    _Alignas(128) struct {
        _Atomic uint64_t cpu_ns, count;
    } of[BENCH_PROCESSES];
};

static struct bench_shared *bench;

static inline __attribute__((format(printf, 1, 2))) _Noreturn void bench_die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    kill(0,
         SIGTERM); /* the others of this run, which would wait for ever; main() begins a group of its own */
    _exit(1);
}

static inline void bench_init(void)
{
    setpgid(0, 0);
    spate_local_segment_keep = true; /* what the first touch of a page costs is not what is measured */
    bench = mmap(NULL, sizeof *bench, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bench == MAP_FAILED)
        bench_die("mmap: %s", strerror(errno));
}

static inline uint64_t bench_now(void)
{
    return spate_local_bell_now_ns();
}

static inline uint64_t bench_cpu_ns(void)
{
    struct timespec used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000 + (uint64_t)used.tv_nsec;
}

/* Waits, without taking a processor from who is still getting ready, until `count` processes are here. */
static inline void bench_meet(_Atomic uint64_t *station, uint64_t count)
{
    atomic_fetch_add(station, 1);
    while (atomic_load(station) < count)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* The n-th processor of those that this process may use, round and round. */
static inline void bench_pin(unsigned n)
{
    cpu_set_t all, one;

    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return;
    n %= (unsigned)CPU_COUNT(&all);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && n-- == 0)
            CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

/* Runs run(arg, i) in a process for each i below `count`; false: one of them failed. */
static inline bool bench_run(int count, void (*run)(void *arg, int i), void *arg)
{
    pid_t pids[BENCH_PROCESSES];
    bool good = true;

    for (int i = 0; i < count; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run(arg, i);
            _exit(0);
        }
        if (pids[i] < 0)
            bench_die("fork: %s", strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        int status = 0;
        good = waitpid(pids[i], &status, 0) == pids[i] && status == 0 && good;
    }
    return good;
}

static inline struct spate_bus *bench_bus(const struct bus_scratch *s)
{
    struct spate_bus *bus = NULL;
    struct spate_err err = {0};

    if (spate_bus_open(&s->config, &bus, &err) != SPATE_OK)
        bench_die("%s", err.text);
    return bus;
}

static inline struct spate_writer *bench_writer(struct spate_bus *bus, const char *topic, unsigned flags)
{
    struct spate_writer *writer = NULL;
    struct spate_err err = {0};

    if (spate_bus_writer_open(bus, topic, flags | SPATE_TOPIC_CREATE, &writer, &err) != SPATE_OK)
        bench_die("%s", err.text);
    return writer;
}

/* The topic exists already, and nothing is in it. The first look maps the segment. */
static inline struct spate_reader *bench_reader(struct spate_bus *bus, const char *topic)
{
    struct spate_reader *reader = NULL;
    struct spate_message message;
    struct spate_err err = {0};

    if (spate_bus_reader_open(bus, topic, SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_OLDEST},
                              &reader, &err) != SPATE_OK ||
        spate_reader_next(reader, &message, &err) != SPATE_AGAIN)
        bench_die("the reader of %s: %s", topic, err.text);
    return reader;
}

static inline int bench_compare(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The value that `of` of a thousand are not above; sorts. */
static inline uint64_t bench_quantile(uint64_t *sample, size_t count, unsigned of)
{
    qsort(sample, count, sizeof *sample, bench_compare);
    return count ? sample[(count - 1) * of / 1000] : 0;
}

#endif
