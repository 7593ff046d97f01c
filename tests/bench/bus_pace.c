/* tests/bench/bus_pace.c - messages at a steady rate: how long one publish takes, and what it costs the
 * writer's processor. Arguments: volatile | durable | pipe, writers, readers, bytes, messages a second of all
 * writers, seconds, and the word nap (a writer sleeps between two messages; else it looks at the clock).
 *
 * Readers sleep until there is something. Writers are timed around the call alone: what waiting for the next
 * moment costs does not count. */
#include "tests/bench/bus_bench.h"

#include <fcntl.h>

struct run {
    const char *kind;
    int writers, readers;
    size_t bytes;
    uint64_t rate, seconds;
    bool nap;
    struct bus_scratch scratch;
    int in[BENCH_PROCESSES], out[BENCH_PROCESSES];
};

static bool is(const struct run *run, const char *kind)
{
    return strcmp(run->kind, kind) == 0;
}

static uint64_t share(const struct run *run)
{
    return run->rate * run->seconds / (uint64_t)run->writers;
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec used;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000 + (uint64_t)used.tv_nsec;
}

static void until(uint64_t due, bool nap)
{
    if (nap) {
        const struct timespec at = {.tv_sec = (time_t)(due / 1000000000),
                                    .tv_nsec = (long)(due % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    }
    while (bench_now() < due)
        ;
}

static void send(const struct run *run, struct spate_writer *w, const char *value)
{
    const struct spate_record record = {.value = spate_slice(value, run->bytes), .ts_us = 1};
    struct spate_err err = {0};
    size_t taken;

    if (w && spate_writer_publish(w, &record, 1, &taken, &err) != SPATE_OK)
        bench_die("publish: %s", taken == 0 && err.text[0] ? err.text : "no room");
    for (int i = 0; !w && i < run->readers; i++)
        if (write(run->in[i], value, run->bytes) != (ssize_t)run->bytes)
            bench_die("pipe: %s", strerror(errno));
}

static void write_all(struct run *run, int me)
{
    const uint64_t count = share(run), step = UINT64_C(1000000000) * (uint64_t)run->writers / run->rate;
    const unsigned flags =
        (is(run, "volatile") ? SPATE_TOPIC_VOLATILE : 0) | (run->writers > 1 ? SPATE_TOPIC_SHARED : 0);
    struct spate_bus *bus = is(run, "pipe") ? NULL : bench_bus(&run->scratch);
    struct spate_writer *w = bus ? bench_writer(bus, "pace", flags) : NULL;
    char *value = calloc(1, run->bytes);
    uint64_t *took = calloc(count, sizeof *took);
    uint64_t cpu = 0;

    prctl(PR_SET_TIMERSLACK, 1);
    bench_meet(&bench->open, (uint64_t)run->writers);
    bench_meet(&bench->ready, (uint64_t)(run->writers + run->readers));
    const uint64_t from = bench_now() + 20000000 + step * (uint64_t)me / (uint64_t)run->writers;
    for (uint64_t n = 0; n < count; n++) {
        until(from + n * step, run->nap);
        const uint64_t used = run->nap ? thread_cpu_ns() : 0, began = bench_now();
        send(run, w, value);
        took[n] = bench_now() - began;
        cpu += run->nap ? thread_cpu_ns() - used : 0;
    }
    if (me == 0)
        printf("kind=%s writers=%d readers=%d bytes=%zu p50_ns=%" PRIu64 " p99_ns=%" PRIu64
               " writer_cpu_ns=%.0f\n",
               run->kind, run->writers, run->readers, run->bytes, bench_quantile(took, count, 500),
               bench_quantile(took, count, 990), (double)cpu / (double)count);
    fflush(stdout);
    bench_meet(&bench->go, (uint64_t)(run->writers + run->readers));
    spate_writer_close(w);
    spate_bus_close(bus);
}

static void read_pipe(const struct run *run, int me)
{
    char *buffer = malloc(64 << 10);

    bench_meet(&bench->ready, (uint64_t)(run->writers + run->readers));
    for (uint64_t left = share(run) * (uint64_t)run->writers * run->bytes; left > 0;) {
        const ssize_t got = read(run->out[me], buffer, 64 << 10);
        if (got <= 0)
            bench_die("pipe: it ended");
        left -= (uint64_t)got;
    }
}

static void read_bus(const struct run *run, int me)
{
    struct spate_err err = {0};
    struct spate_message m;

    while (atomic_load(&bench->open) < (uint64_t)run->writers)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    struct spate_bus *bus = bench_bus(&run->scratch);
    struct spate_reader *r = bench_reader(bus, "pace");
    bench_meet(&bench->ready, (uint64_t)(run->writers + run->readers));
    for (uint64_t left = share(run) * (uint64_t)run->writers; left > 0; left--) {
        enum spate_rc rc;
        while ((rc = spate_reader_next(r, &m, &err)) == SPATE_AGAIN)
            if (spate_reader_wait(r, 10000, &err) != SPATE_OK)
                bench_die("reader %d: nothing for 10 s", me);
        if (rc != SPATE_OK || m.kind != SPATE_MESSAGE_RECORD)
            bench_die("reader %d: %s", me, rc == SPATE_FAIL ? err.text : "a gap");
    }
    spate_reader_close(r);
    spate_bus_close(bus);
}

static void process(void *arg, int i)
{
    struct run *run = arg;

    if (i < run->writers) {
        write_all(run, i);
        return;
    }
    (is(run, "pipe") ? read_pipe : read_bus)(run, i - run->writers);
    bench_meet(&bench->go, (uint64_t)(run->writers + run->readers));
}

int main(int argc, char **argv)
{
    struct run run = {.kind = argc > 1 ? argv[1] : "volatile",
                      .writers = argc > 2 ? atoi(argv[2]) : 1,
                      .readers = argc > 3 ? atoi(argv[3]) : 0,
                      .bytes = argc > 4 ? strtoul(argv[4], NULL, 10) : 256,
                      .rate = argc > 5 ? strtoull(argv[5], NULL, 10) : 20000,
                      .seconds = argc > 6 ? strtoull(argv[6], NULL, 10) : 1,
                      .nap = argc > 7 && strcmp(argv[7], "nap") == 0};

    bench_init();
    if (run.writers < 1 || run.writers + run.readers > BENCH_PROCESSES || run.rate == 0 || run.bytes == 0)
        return 2;
    for (int i = 0; is(&run, "pipe") && i < run.readers; i++) {
        int ends[2];
        if (pipe(ends) != 0 || fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) < 0)
            bench_die("pipe: %s", strerror(errno));
        run.out[i] = ends[0];
        run.in[i] = ends[1];
    }
    int64_t cap = INT64_C(4) << 20;
    while (cap < (int64_t)(run.rate * run.seconds * spate_local_footprint(run.bytes)))
        cap *= 2;
    bus_scratch_init(&run.scratch, cap);
    const bool good = bench_run(run.writers + run.readers, process, &run);
    bus_scratch_fini(&run.scratch);
    return good ? 0 : 1;
}
