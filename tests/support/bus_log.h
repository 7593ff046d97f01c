/* tests/support/bus_log.h - numbered records whose bytes follow from their number, so that any of them can be
 * checked alone. */
#ifndef SPATE_TESTS_SUPPORT_BUS_LOG_H
#define SPATE_TESTS_SUPPORT_BUS_LOG_H

#include "bus/bus.h"
#include "core/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUS_LOG_MOST 2048

static inline uint64_t bus_log_random(uint64_t *seed)
{
    uint64_t x = *seed += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The value of record n: its number, then bytes that look like record headers as often as not. */
static inline struct spate_slice bus_log_value(uint64_t n, char out[BUS_LOG_MOST])
{
    uint64_t seed = n;
    const size_t len = 24 + bus_log_random(&seed) % 600;

    memcpy(out, &n, sizeof n);
    for (size_t i = sizeof n; i < len; i += 8) {
        uint64_t word = bus_log_random(&seed);
        if (word & 1) /* COMMIT or PAD with a small length */
            word = (word & 2 ? UINT64_C(2) : UINT64_C(3)) << 56 | (word % 4096 & ~UINT64_C(63));
        memcpy(out + i, &word, len - i < 8 ? len - i : 8);
    }
    return spate_slice(out, len);
}

/* The number of a record, or 0: its bytes are not what was published. */
static inline uint64_t bus_log_number(const struct spate_message *m)
{
    char expected[BUS_LOG_MOST];
    uint64_t n;

    if (m->value.len < sizeof n)
        return 0;
    memcpy(&n, m->value.at, sizeof n);
    const struct spate_slice value = bus_log_value(n, expected);
    return spate_slice_eq(value, m->value) && spate_slice_is(m->key, "key") ? n : 0;
}

struct bus_log_acks {
    uint64_t last;
    bool broken; /* out of order, or twice */
};

static inline void bus_log_acked(void *arg, uint64_t token)
{
    struct bus_log_acks *acks = arg;

    acks->broken = acks->broken || token <= acks->last;
    acks->last = token;
}

/* Publishes records first..last, each with its number as token. */
static inline enum spate_rc bus_log_publish(struct spate_writer *w, uint64_t first, uint64_t last,
                                            struct bus_log_acks *acks, struct spate_err *err)
{
    char values[16][BUS_LOG_MOST];
    struct spate_record records[16];

    while (first <= last) {
        size_t count = 0, taken = 0;
        for (; count < 1 + first % 16 && first + count <= last; count++)
            records[count] = (struct spate_record){.key = {.at = "key", .len = 3},
                                                   .value = bus_log_value(first + count, values[count]),
                                                   .ts_us = spate_clock_us(),
                                                   .token = first + count};
        enum spate_rc rc = spate_writer_publish(w, records, count, &taken, err);
        first += taken;
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(w, rc == SPATE_AGAIN ? 100 : 0, bus_log_acked, acks, err);
        if (rc == SPATE_FAIL)
            return rc;
    }
    return SPATE_OK;
}

/* Waits until `last` is acknowledged; SPATE_AGAIN: it took more than 20 s. */
static inline enum spate_rc bus_log_settle(struct spate_writer *w, uint64_t last, struct bus_log_acks *acks,
                                           struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + 20000;

    while (acks->last < last) {
        if (spate_writer_poll(w, 200, bus_log_acked, acks, err) == SPATE_FAIL)
            return SPATE_FAIL;
        if (spate_clock_ms() > deadline)
            return SPATE_AGAIN;
    }
    return SPATE_OK;
}

/* The next message, waiting up to 20 s for it. */
static inline enum spate_rc bus_log_next(struct spate_reader *r, struct spate_message *m,
                                         struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + 20000;
    enum spate_rc rc;

    while ((rc = spate_reader_next(r, m, err)) == SPATE_AGAIN && spate_clock_ms() < deadline)
        if (spate_reader_wait(r, 1000, err) == SPATE_FAIL)
            return SPATE_FAIL;
    return rc;
}

#endif
