/* tests/bench/bus_flow.c - how many messages a second come through, every one to every reader.
 * Arguments: bus | alone | drain | pipe | unix | tcp | mq | memcpy | atomics, writers, readers, bytes,
 * messages in all, and for the bus the words copy (readers take every payload out, as read(2) does) and
 * unchecked (records carry no checksum). `alone` is the bus without readers; with `drain` they begin when all
 * is written, and only they are timed; `memcpy` copies pieces of that size into such a segment; `atomics` is
 * what a publish cannot do without.
 *
 * The kernel's transports: one write per message and reader, readers take up to 64 KiB at once; each reader
 * has one channel that all writers share. Readers of the bus check the sequence of each writer. */
#include "tests/bench/bus_bench.h"

#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define BUFFER (1 << 20) /* of a pipe or a socket */

struct run {
    const char *kind;
    int writers, readers;
    size_t bytes;
    uint64_t messages; /* of all writers */
    bool copy;
    unsigned flags;
    struct bus_scratch scratch;
    int in[BENCH_PROCESSES], out[BENCH_PROCESSES];
    mqd_t queues[BENCH_PROCESSES];
};

static bool is(const struct run *run, const char *kind)
{
    return strcmp(run->kind, kind) == 0;
}

static bool on_bus(const struct run *run)
{
    return is(run, "bus") || is(run, "alone") || is(run, "drain");
}

static uint64_t share(const struct run *run)
{
    return run->messages / (uint64_t)run->writers;
}

/* All begin together; the time of the run is that from the first beginning to the last end. */
static void begin(const struct run *run)
{
    uint64_t none = 0;

    bench_meet(&bench->ready, (uint64_t)(run->writers + run->readers));
    atomic_compare_exchange_strong(&bench->began, &none, bench_now());
}

static void end(void)
{
    const uint64_t now = bench_now();
    uint64_t last = atomic_load(&bench->ended);

    while (last < now && !atomic_compare_exchange_weak(&bench->ended, &last, now))
        ;
}

static void bus_write(const struct run *run, int me)
{
    struct spate_err err = {0};
    struct spate_bus *bus = bench_bus(&run->scratch);
    struct spate_writer *w = bench_writer(
        bus, "flow", run->flags | SPATE_TOPIC_VOLATILE | (run->writers > 1 ? SPATE_TOPIC_SHARED : 0));
    char *value = calloc(1, run->bytes);
    const uint64_t count = share(run);

    bench_meet(&bench->open, (uint64_t)run->writers);
    bench_meet(&bench->mapped, (uint64_t)(run->writers + run->readers));
    if (!is(run, "drain"))
        begin(run);
    const uint64_t cpu = bench_cpu_ns();
    for (uint64_t n = 1; n <= count; n++) {
        const uint64_t word = (uint64_t)me << 56 | n;
        size_t taken;
        memcpy(value, &word, sizeof word);
        const struct spate_record record = {.value = spate_slice(value, run->bytes), .ts_us = 1};
        if (spate_writer_publish(w, &record, 1, &taken, &err) == SPATE_FAIL)
            bench_die("publish: %s", err.text);
        if (taken == 0)
            n--;
    }
    atomic_store(&bench->of[me].cpu_ns, bench_cpu_ns() - cpu);
    if (is(run, "drain"))
        begin(run);
    end();
    bench_meet(&bench->go, (uint64_t)(run->writers + run->readers)); /* its end is no reader's loss */
    spate_writer_close(w);
    spate_bus_close(bus);
}

static void bus_read(const struct run *run, int me)
{
    uint64_t last[BENCH_PROCESSES] = {0};
    struct spate_err err = {0};
    struct spate_message m;
    char *copy = malloc(run->bytes);

    while (atomic_load(&bench->open) < (uint64_t)run->writers) /* until there is a topic */
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    struct spate_bus *bus = bench_bus(&run->scratch);
    struct spate_reader *r = bench_reader(bus, "flow");
    bench_meet(&bench->mapped, (uint64_t)(run->writers + run->readers));
    begin(run);
    for (uint64_t left = share(run) * (uint64_t)run->writers; left > 0;) {
        const enum spate_rc rc = spate_reader_next(r, &m, &err);
        if (rc == SPATE_AGAIN) {
            if (spate_reader_wait(r, 10000, &err) != SPATE_OK)
                bench_die("reader %d: nothing for 10 s, %" PRIu64 " left", me, left);
            continue;
        }
        if (rc != SPATE_OK || m.kind != SPATE_MESSAGE_RECORD || m.value.len != run->bytes)
            bench_die("reader %d: %s", me, rc == SPATE_FAIL ? err.text : "a gap");
        uint64_t word;
        memcpy(&word, m.value.at, sizeof word);
        const uint64_t n = word & (UINT64_MAX >> 8);
        if (word >> 56 >= (uint64_t)run->writers || n != last[word >> 56] + 1)
            bench_die("reader %d: message %" PRIx64 " does not follow", me, word);
        last[word >> 56] = n;
        if (run->copy) {
            memcpy(copy, m.value.at, m.value.len);
            __asm__ volatile("" : : "r"(copy) : "memory");
        }
        left--;
    }
    end();
    bench_meet(&bench->go, (uint64_t)(run->writers + run->readers));
    spate_reader_close(r);
    spate_bus_close(bus);
}

static void kernel_write(struct run *run, int me)
{
    char *value = calloc(1, run->bytes);
    const uint64_t count = share(run);

    begin(run);
    const uint64_t cpu = bench_cpu_ns();
    for (uint64_t n = 1; n <= count; n++) {
        memcpy(value, &n, sizeof n);
        for (int i = 0; i < run->readers; i++) {
            const bool sent = is(run, "mq") ? mq_send(run->queues[i], value, run->bytes, 0) == 0
                                            : write(run->in[i], value, run->bytes) == (ssize_t)run->bytes;
            if (!sent)
                bench_die("%s: %s", run->kind, strerror(errno));
        }
    }
    atomic_store(&bench->of[me].cpu_ns, bench_cpu_ns() - cpu);
    end();
}

static void kernel_read(struct run *run, int me)
{
    const size_t most = 64 << 10;
    char *buffer = malloc(most);

    begin(run);
    for (uint64_t left = share(run) * (uint64_t)run->writers * run->bytes; left > 0;) {
        const ssize_t got = is(run, "mq") ? mq_receive(run->queues[me], buffer, most, NULL)
                                          : read(run->out[me], buffer, most);
        if (got <= 0)
            bench_die("%s: %s", run->kind, got == 0 ? "ended" : strerror(errno));
        left -= (uint64_t)got < left ? (uint64_t)got : left;
    }
    end();
}

static void process(void *arg, int i)
{
    struct run *run = arg;
    const bool writes = i < run->writers;
    const int me = writes ? i : i - run->writers;

    if (on_bus(run))
        (writes ? bus_write : bus_read)(run, me);
    else
        (writes ? kernel_write : kernel_read)(run, me);
}

static bool tcp_pair(int *in, int *out)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    const int one = 1, door = socket(AF_INET, SOCK_STREAM, 0);

    *in = socket(AF_INET, SOCK_STREAM, 0);
    return door >= 0 && *in >= 0 && bind(door, (struct sockaddr *)&at, sizeof at) == 0 &&
           listen(door, 1) == 0 && getsockname(door, (struct sockaddr *)&at, &len) == 0 &&
           connect(*in, (struct sockaddr *)&at, sizeof at) == 0 && (*out = accept(door, NULL, NULL)) >= 0 &&
           setsockopt(*in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0 && close(door) == 0;
}

static bool queue_open(struct run *run, int i)
{
    struct mq_attr like = {.mq_maxmsg = 10, .mq_msgsize = (long)run->bytes};
    char name[64];

    snprintf(name, sizeof name, "/spate-bench.%d.%d", (int)getpid(), i);
    run->queues[i] = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &like);
    return run->queues[i] != (mqd_t)-1 && mq_unlink(name) == 0;
}

static bool channel(struct run *run, int i)
{
    const int size = BUFFER;
    int ends[2];

    if (is(run, "mq"))
        return queue_open(run, i);
    if (is(run, "pipe")) {
        if (pipe(ends) != 0 || fcntl(ends[1], F_SETPIPE_SZ, BUFFER) < 0)
            return false;
        run->out[i] = ends[0];
        run->in[i] = ends[1];
        return true;
    }
    if (is(run, "tcp"))
        return tcp_pair(&run->in[i], &run->out[i]);
    if (!is(run, "unix") || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        return false;
    run->out[i] = ends[0];
    run->in[i] = ends[1];
    return setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size) == 0;
}

/* The machine's own speed: pieces of that size from a hot buffer into mapped shared memory, page after page.
 */
static int copy_memory(const struct run *run)
{
    const size_t size = run->messages * run->bytes;
    char *to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *from = malloc(run->bytes);

    if (to == MAP_FAILED || !from || madvise(to, size, MADV_POPULATE_WRITE) != 0)
        return 1;
    memset(from, 'v', run->bytes);
    const uint64_t began = bench_now();
    for (size_t at = 0; at + run->bytes <= size; at += run->bytes) {
        memcpy(to + at, from, run->bytes);
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
    }
    const double took = (double)(bench_now() - began);
    printf("kind=memcpy bytes=%zu rate=%.0f\n", run->bytes, (double)run->messages * 1e9 / took);
    return 0;
}

/* Two compare-and-swaps on lines that follow each other: what is left of an owner's publish when everything
 * else is taken away. */
static int count_atomics(const struct run *run)
{
    enum { LINES = 1 << 10 };
    static _Alignas(128) _Atomic uint64_t word[LINES * 16];
    const uint64_t began = bench_now();

    for (uint64_t n = 0; n < run->messages; n++) {
        const uint64_t at = n % LINES * 16;
        uint64_t was = atomic_load_explicit(&word[at], memory_order_relaxed);
        if (atomic_compare_exchange_strong(&word[at], &was, n)) {
            was = n;
            atomic_compare_exchange_strong(&word[at], &was, n + 1);
        }
    }
    printf("kind=atomics ns=%.2f\n", (double)(bench_now() - began) / (double)run->messages);
    return 0;
}

int main(int argc, char **argv)
{
    struct run run = {.kind = argc > 1 ? argv[1] : "bus",
                      .writers = argc > 2 ? atoi(argv[2]) : 1,
                      .readers = argc > 3 ? atoi(argv[3]) : 1,
                      .bytes = argc > 4 ? strtoul(argv[4], NULL, 10) : 64,
                      .messages = argc > 5 ? strtoull(argv[5], NULL, 10) : 1000000};
    uint64_t cpu = 0;

    for (int i = 6; i < argc; i++) {
        run.copy = run.copy || strcmp(argv[i], "copy") == 0;
        run.flags |= strcmp(argv[i], "unchecked") == 0 ? SPATE_TOPIC_UNCHECKED : 0;
    }
    bench_init();
    if (is(&run, "memcpy"))
        return copy_memory(&run);
    if (is(&run, "atomics"))
        return count_atomics(&run);
    if (is(&run, "alone"))
        run.readers = 0;
    if (run.bytes < sizeof(uint64_t) || run.writers < 1 || run.writers + run.readers > BENCH_PROCESSES)
        return 2;
    for (int i = 0; i < run.readers && !on_bus(&run); i++)
        if (!channel(&run, i))
            bench_die("%s: %s", run.kind, strerror(errno));
    /* One segment takes it all: a volatile topic keeps no more than one behind the head. */
    int64_t cap = INT64_C(4) << 20;
    while (cap < (int64_t)(run.messages * spate_local_footprint(run.bytes)))
        cap *= 2;
    bus_scratch_init(&run.scratch, cap);
    const bool good = bench_run(run.writers + run.readers, process, &run);
    bus_scratch_fini(&run.scratch);
    for (int i = 0; i < run.writers; i++)
        cpu += atomic_load(&bench->of[i].cpu_ns);
    const double took = (double)(atomic_load(&bench->ended) - atomic_load(&bench->began));
    const uint64_t sent = share(&run) * (uint64_t)run.writers;
    printf("kind=%s writers=%d readers=%d bytes=%zu rate=%.0f deliveries=%.0f writer_cpu_ns=%.1f\n", run.kind,
           run.writers, run.readers, run.bytes, (double)sent * 1e9 / took,
           (double)sent * run.readers * 1e9 / took, (double)cpu / (double)sent);
    return good ? 0 : 1;
}
