/* tests/bench/bus_rtt.c - a message there and an answer back, closed loop, two processes on two processors:
 * half the round trip. Arguments: raw | spin | wait | unix, rounds, bytes.
 *
 *   raw   one word in a cache line each way, and nothing else: what the machine itself needs
 *   spin  two topics of the local bus, both ends look without pause
 *   wait  the same, both ends wait as any reader does and may sleep
 *   unix  a socket pair, blocking */
#include "tests/bench/bus_bench.h"

#include <sys/socket.h>

#define PER_SAMPLE 8 /* round trips, so that the clock's own cost does not count */

struct run {
    const char *kind;
    uint64_t rounds;
    size_t bytes;
    struct bus_scratch scratch;
    int pair[2];
};

struct side {
    const struct run *run;
    int me;
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *r;
    char *buffer;
};

static void raw_send(struct side *s, uint64_t n)
{
    atomic_store_explicit(&bench->line[s->me * 16], n, memory_order_release);
}

static void raw_receive(struct side *s, uint64_t n)
{
    while (atomic_load_explicit(&bench->line[(1 - s->me) * 16], memory_order_acquire) != n)
        ;
}

static void bus_send(struct side *s, uint64_t n)
{
    struct spate_err err = {0};
    size_t taken;

    memcpy(s->buffer, &n, sizeof n);
    const struct spate_record record = {.value = spate_slice(s->buffer, s->run->bytes), .ts_us = 1};
    if (spate_writer_publish(s->w, &record, 1, &taken, &err) != SPATE_OK)
        bench_die("publish: %s", err.text);
}

static void bus_receive(struct side *s, uint64_t n)
{
    struct spate_err err = {0};
    struct spate_message m;
    const bool spin = s->run->kind[0] == 's';
    enum spate_rc rc;
    uint64_t got = 0;

    while ((rc = spate_reader_next(s->r, &m, &err)) == SPATE_AGAIN)
        if (!spin && spate_reader_wait(s->r, 10000, &err) != SPATE_OK)
            bench_die("no answer for 10 s");
    if (rc == SPATE_OK && m.kind == SPATE_MESSAGE_RECORD)
        memcpy(&got, m.value.at, sizeof got);
    if (got != n)
        bench_die("expected message %" PRIu64 ", got %" PRIu64 ": %s", n, got, err.text);
}

static void unix_send(struct side *s, uint64_t n)
{
    (void)n;
    if (write(s->run->pair[s->me], s->buffer, s->run->bytes) != (ssize_t)s->run->bytes)
        bench_die("write: %s", strerror(errno));
}

static void unix_receive(struct side *s, uint64_t n)
{
    size_t got = 0;

    (void)n;
    while (got < s->run->bytes) {
        const ssize_t more = read(s->run->pair[s->me], s->buffer, s->run->bytes - got);
        if (more <= 0)
            bench_die("read: %s", strerror(errno));
        got += (size_t)more;
    }
}

static void open_bus(struct side *s)
{
    static const char *const topics[] = {"ping", "pong"};

    s->bus = bench_bus(&s->run->scratch);
    s->w = bench_writer(s->bus, topics[s->me], SPATE_TOPIC_VOLATILE);
    bench_meet(&bench->open, 2);
    s->r = bench_reader(s->bus, topics[1 - s->me]);
}

static void process(void *arg, int me)
{
    const struct run *run = arg;
    struct side s = {.run = run, .me = me};
    void (*send)(struct side *, uint64_t) = bus_send, (*receive)(struct side *, uint64_t) = bus_receive;
    const uint64_t samples = run->rounds / PER_SAMPLE;
    uint64_t *took = calloc(samples, sizeof *took);

    bench_pin((unsigned)me);
    s.buffer = calloc(1, run->bytes);
    if (run->kind[0] == 'r') {
        send = raw_send;
        receive = raw_receive;
    } else if (run->kind[0] == 'u') {
        send = unix_send;
        receive = unix_receive;
    } else {
        open_bus(&s);
    }
    bench_meet(&bench->ready, 2);
    for (uint64_t i = 0, n = 1; i < samples; i++) {
        const uint64_t from = bench_now();
        for (int k = 0; k < PER_SAMPLE; k++, n++) {
            if (me == 0)
                send(&s, n);
            receive(&s, n);
            if (me == 1)
                send(&s, n);
        }
        took[i] = (bench_now() - from) / (2 * PER_SAMPLE);
    }
    if (me == 0)
        printf("kind=%s bytes=%zu p50_ns=%" PRIu64 " p99_ns=%" PRIu64 "\n", run->kind, run->bytes,
               bench_quantile(took, samples, 500), bench_quantile(took, samples, 990));
    fflush(stdout);
    spate_reader_close(s.r);
    bench_meet(&bench->go, 2);
    spate_writer_close(s.w);
    spate_bus_close(s.bus);
}

int main(int argc, char **argv)
{
    struct run run = {.kind = argc > 1 ? argv[1] : "spin",
                      .rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 100000,
                      .bytes = argc > 3 ? strtoul(argv[3], NULL, 10) : 64};

    bench_init();
    if (run.bytes < sizeof(uint64_t) || socketpair(AF_UNIX, SOCK_STREAM, 0, run.pair) != 0)
        return 2;
    bus_scratch_init(&run.scratch, INT64_C(256) << 20);
    const bool good = bench_run(2, process, &run);
    bus_scratch_fini(&run.scratch);
    return good ? 0 : 1;
}
