/* tests/bench/bus_local.c - the local bus alone: nanoseconds per record to publish, make durable and read,
 * and kernel calls are counted from outside (strace -f -c). Arguments: records, bytes, batch, directory. */
#include "bus/open.h"
#include "tests/support/bus_scratch.h"

#include <inttypes.h>
#include <sys/resource.h>

static uint64_t acked;

static void on_durable(void *arg, uint64_t token)
{
    (void)arg;
    acked = token;
}

static double cpu_s(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    const uint64_t records = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    const size_t bytes = argc > 2 ? strtoul(argv[2], NULL, 10) : 300;
    const size_t batch = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    struct bus_scratch s;
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    struct spate_record offer[256];
    char *value = malloc(bytes);
    uint64_t done = 0, again = 0, read = 0, sum = 0;

    memset(value, 'v', bytes);
    bus_scratch_init(&s, 0);
    if (batch == 0 || batch > 256 || spate_bus_open(&s.config, &bus, &err) != SPATE_OK ||
        spate_bus_writer_open(bus, "bench", SPATE_TOPIC_CREATE, &w, &err) != SPATE_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const int64_t from = spate_clock_us();
    while (done < records) {
        size_t n = records - done < batch ? (size_t)(records - done) : batch, taken;
        for (size_t i = 0; i < n; i++)
            offer[i] = (struct spate_record){
                .value = spate_slice(value, bytes), .ts_us = from, .token = done + i + 1};
        const enum spate_rc rc = spate_writer_publish(w, offer, n, &taken, &err);
        done += taken;
        if (rc == SPATE_AGAIN)
            again++;
        if (rc == SPATE_FAIL || (done / batch % 16 == 0 || rc == SPATE_AGAIN
                                     ? spate_writer_poll(w, rc == SPATE_AGAIN ? 1 : 0, on_durable, NULL, &err)
                                     : SPATE_OK) == SPATE_FAIL) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
    }
    const int64_t published = spate_clock_us();
    while (acked < records)
        if (spate_writer_poll(w, 100, on_durable, NULL, &err) == SPATE_FAIL)
            return 1;
    const int64_t durable = spate_clock_us();
    const double cpu = cpu_s();
    if (spate_bus_reader_open(bus, "bench", SPATE_SEE_DURABLE,
                              (struct spate_start){.from = SPATE_START_OLDEST}, &r, &err) != SPATE_OK)
        return 1;
    const int64_t read_from = spate_clock_us();
    while (spate_reader_next(r, &m, &err) == SPATE_OK) {
        read++;
        sum += (unsigned char)m.value.at[0] + m.value.len;
    }
    const int64_t end = spate_clock_us();
    printf("records=%" PRIu64 " bytes=%zu batch=%zu publish_ns=%.0f durable_ns=%.0f again=%" PRIu64
           " cpu_ns=%.0f read_ns=%.0f read=%" PRIu64 " sum=%" PRIu64 "\n",
           records, bytes, batch, (double)(published - from) * 1e3 / (double)records,
           (double)(durable - from) * 1e3 / (double)records, again, cpu * 1e9 / (double)records,
           (double)(end - read_from) * 1e3 / (double)read, read, sum);
    spate_reader_close(r);
    spate_writer_close(w);
    spate_bus_close(bus);
    bus_scratch_fini(&s);
    free(value);
    return read == records ? 0 : 1;
}
