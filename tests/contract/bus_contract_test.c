/* tests/contract/bus_contract_test.c - what bus/bus.h promises, asked of every driver. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "bus/open.h"
#include "core/clock.h"
#include "tests/contract/drivers.h"
#include "tests/support/bus_faulty.h"
#include "tests/support/bus_memory.h"
#include "tests/support/bus_scratch.h"

#include <pthread.h>

/* The table of drivers. */
static void *local_make(void)
{
    struct bus_scratch *s = malloc(sizeof *s);

    bus_scratch_init(s, 1 << 20);
    return s;
}

static struct spate_bus *local_open(void *made)
{
    const struct bus_scratch *s = made;
    struct spate_err err = {0};
    struct spate_bus *bus = NULL;

    assert_int_equal(spate_bus_open(&s->config, &bus, &err), SPATE_OK);
    return bus;
}

static void local_destroy(void *made)
{
    bus_scratch_fini(made);
    free(made);
}

static void *memory_make(void)
{
    struct bus_memory *memory = malloc(sizeof *memory);

    bus_memory_init(memory);
    return memory;
}

static struct spate_bus *memory_open(void *made)
{
    return &((struct bus_memory *)made)->bus;
}

static void memory_destroy(void *made)
{
    bus_memory_fini(made);
    free(made);
}

/* With all faults off a wrapper is no driver of its own. */
static struct spate_bus *faulty(struct spate_bus *under)
{
    struct bus_faulty *bus = malloc(sizeof *bus);

    bus_faulty_init(bus, under, 1);
    bus->owned = true;
    return &bus->bus;
}

static struct spate_bus *faulty_local_open(void *made)
{
    return faulty(local_open(made));
}

static struct spate_bus *faulty_memory_open(void *made)
{
    return faulty(memory_open(made));
}

/* A real broker, shared by all tests: each has topics of its own. */
struct kafka_scratch {
    char prefix[48];
    struct spate_bus_config config;
};

static void *kafka_make(void)
{
    static unsigned made;
    struct kafka_scratch *s = calloc(1, sizeof *s);

    snprintf(s->prefix, sizeof s->prefix, "contract-%d-%lld-%u.", (int)getpid(), (long long)spate_clock_us(),
             made++);
    s->config.kafka.brokers = getenv("SPATE_TEST_BROKERS");
    s->config.kafka.create = true;
    s->config.kafka.max_message_bytes = 1 << 20;
    return s;
}

static struct spate_bus *kafka_open(void *made)
{
    const struct kafka_scratch *s = made;
    struct spate_err err = {0};
    struct spate_bus *bus = NULL;

    if (spate_bus_open(&s->config, &bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return bus;
}

static const char *kafka_prefix(void *made)
{
    return ((struct kafka_scratch *)made)->prefix;
}

const struct spate_test_driver spate_test_drivers[] = {
    {.name = "local", .owns = true, .make = local_make, .open = local_open, .destroy = local_destroy},
    {.name = "kafka",
     .distant = true,
     .own_clock = true,
     .all_kept = true,
     .make = kafka_make,
     .open = kafka_open,
     .destroy = free,
     .prefix = kafka_prefix},
    {.name = "memory", .make = memory_make, .open = memory_open, .destroy = memory_destroy},
    {.name = "faulty(local)",
     .owns = true,
     .make = local_make,
     .open = faulty_local_open,
     .destroy = local_destroy},
    {.name = "faulty(memory)", .make = memory_make, .open = faulty_memory_open, .destroy = memory_destroy},
};
const size_t spate_test_driver_count = sizeof spate_test_drivers / sizeof spate_test_drivers[0];

struct fixture {
    const struct spate_test_driver *driver;
    void *made;
    struct spate_bus *bus;
};

static int set_up(void **state)
{
    struct fixture *f = malloc(sizeof *f);

    f->driver = *state;
    f->made = f->driver->make();
    f->bus = f->driver->open(f->made);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_bus_close(f->bus);
    f->driver->destroy(f->made);
    free(f);
    return 0;
}

static size_t prefix_len(struct fixture *f)
{
    return f->driver->prefix ? strlen(f->driver->prefix(f->made)) : 0;
}

/* The name that a topic has on this bus; valid until the next call. */
static const char *named(struct fixture *f, const char *topic)
{
    static char name[128];

    snprintf(name, sizeof name, "%s%s", f->driver->prefix ? f->driver->prefix(f->made) : "", topic);
    return name;
}

static struct spate_writer *open_writer(struct fixture *f, const char *topic, unsigned flags)
{
    struct spate_err err = {0};
    struct spate_writer *w = NULL;

    if (spate_bus_writer_open(f->bus, named(f, topic), flags, &w, &err) != SPATE_OK)
        fail_msg("writer of %s: %s", topic, err.text);
    return w;
}

static struct spate_reader *open_reader(struct fixture *f, const char *topic, enum spate_visibility see,
                                        struct spate_start start)
{
    struct spate_err err = {0};
    struct spate_reader *r = NULL;

    if (spate_bus_reader_open(f->bus, named(f, topic), see, start, &r, &err) != SPATE_OK)
        fail_msg("reader of %s: %s", topic, err.text);
    return r;
}

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct acks {
    uint64_t last;
    size_t count;
    bool in_order;
};

static void acked(void *arg, uint64_t token)
{
    struct acks *a = arg;

    a->in_order = a->in_order && token == a->last + 1;
    a->last = token;
    a->count++;
}

static void await(struct spate_writer *w, struct acks *a, uint64_t last)
{
    const int64_t deadline = spate_clock_ms() + 10000;
    struct spate_err err = {0};

    while (a->last < last) {
        if (spate_writer_poll(w, 1000, acked, a, &err) == SPATE_FAIL)
            fail_msg("poll: %s", err.text);
        assert_true(spate_clock_ms() < deadline);
    }
}

/* Until all that was published can be read. */
static void settle(struct fixture *f, struct spate_writer *w, struct acks *a)
{
    const int64_t deadline = spate_clock_ms() + 10000;
    struct spate_err err = {0};

    while (f->driver->distant && spate_writer_durable(w).at < spate_writer_end(w).at) {
        if (spate_writer_poll(w, 1000, acked, a, &err) == SPATE_FAIL)
            fail_msg("poll: %s", err.text);
        assert_true(spate_clock_ms() < deadline);
    }
}

static void put(struct spate_writer *w, const char *key, const char *value, uint64_t token)
{
    const struct spate_record record = {.key = spate_slice_str(key),
                                        .value = spate_slice_str(value),
                                        .ts_us = 1700000000000000 + (int64_t)token,
                                        .token = token};
    struct spate_err err = {0};
    size_t taken = 9;

    if (spate_writer_publish(w, &record, 1, &taken, &err) != SPATE_OK)
        fail_msg("publish: %s", err.text);
    assert_int_equal(taken, 1);
}

/* Waits for the next message. */
static struct spate_message get(struct spate_reader *r)
{
    const int64_t deadline = spate_clock_ms() + 10000;
    struct spate_message m = {0};
    struct spate_err err = {0};
    enum spate_rc rc;

    while ((rc = spate_reader_next(r, &m, &err)) == SPATE_AGAIN) {
        assert_true(spate_clock_ms() < deadline);
        assert_true(spate_reader_wait(r, 1000, &err) != SPATE_FAIL);
    }
    if (rc != SPATE_OK)
        fail_msg("next: %s", err.text);
    return m;
}

static void expect_nothing(struct spate_reader *r)
{
    struct spate_message m;
    struct spate_err err = {0};

    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
}

static void expect(struct spate_reader *r, const char *value)
{
    const struct spate_message m = get(r);

    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_true(spate_slice_is(m.value, value));
}

static void gives_back_what_was_published(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *r = open_reader(*state, "shop", SPATE_SEE_TIP, oldest);

    put(w, "k1", "one", 1);
    put(w, "", "two", 2);
    const struct spate_message one = get(r);
    assert_true(spate_slice_is(one.key, "k1"));
    assert_true(spate_slice_is(one.value, "one"));
    if (f->driver->own_clock)
        assert_true(llabs(one.ts_us - spate_clock_wall_us()) < 60000000);
    else
        assert_int_equal(one.ts_us, 1700000000000001);
    const struct spate_bus_pos next = one.next, pos = one.pos;
    const struct spate_message two = get(r);
    assert_int_equal(two.key.len, 0);
    assert_true(spate_slice_is(two.value, "two"));
    assert_true(two.pos.at >= next.at && next.at > pos.at);
    expect_nothing(r);
    settle(f, w, &(struct acks){0});
    assert_true(spate_writer_end(w).at >= two.next.at);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void acknowledges_each_token_once_in_order(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct acks a = {.in_order = true};
    struct spate_err err = {0};

    for (uint64_t i = 1; i <= 1000; i++) {
        put(w, "k", "v", i);
        put(w, "k", "nobody asks for this one", 0);
    }
    await(w, &a, 1000);
    assert_true(a.in_order);
    assert_int_equal(a.count, 1000);
    assert_int_equal(spate_writer_poll(w, 0, acked, &a, &err), SPATE_AGAIN);
    assert_int_equal(a.count, 1000);
    spate_writer_close(w);
}

static void shows_sinks_only_what_is_durable(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *r = open_reader(f, "shop", SPATE_SEE_DURABLE, oldest);
    const int64_t deadline = spate_clock_ms() + 10000;
    struct acks a = {.in_order = true};
    char value[32];
    bool seen = false;

    for (uint64_t i = 1; i <= 2000; i++) {
        snprintf(value, sizeof value, "%llu", (unsigned long long)i);
        put(w, "k", value, i);
        struct spate_message m;
        struct spate_err err = {0};
        while (spate_reader_next(r, &m, &err) == SPATE_OK) {
            /* Over a network the word that it is durable may come to the reader first. */
            assert_true(m.next.at <= (f->driver->distant ? spate_writer_end(w) : spate_writer_durable(w)).at);
            seen = spate_slice_is(m.value, "2000");
        }
    }
    await(w, &a, 2000);
    while (f->driver->distant && spate_reader_end(r).at < spate_writer_durable(w).at) {
        struct spate_err err = {0};
        assert_int_not_equal(spate_reader_wait(r, 100, &err), SPATE_FAIL);
        assert_true(spate_clock_ms() < deadline);
    }
    assert_int_equal(spate_reader_end(r).at, spate_writer_durable(w).at);
    assert_int_equal(spate_writer_end(w).at, spate_writer_durable(w).at);
    struct spate_message m;
    struct spate_err err = {0};
    while (spate_reader_next(r, &m, &err) == SPATE_OK)
        seen = spate_slice_is(m.value, "2000");
    if (!seen)
        fail_msg("the last record was acknowledged, and is not shown");
    spate_reader_close(r);
    spate_writer_close(w);
}

static void takes_batches_over_many_segments(void **state)
{
    enum { BATCH = 300, BATCHES = 60 };
    static char values[BATCH][200];
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *r = open_reader(*state, "shop", SPATE_SEE_DURABLE, oldest);
    struct acks a = {.in_order = true};
    uint64_t token = 0, read = 0;
    struct spate_err err = {0};

    for (int b = 0; b < BATCHES; b++) {
        struct spate_record records[BATCH];
        for (int i = 0; i < BATCH; i++) {
            token++;
            snprintf(values[i], sizeof values[i], "%llu %.*s", (unsigned long long)token, (int)(token % 150),
                     "................................................................................"
                     "......................................................................");
            records[i] = (struct spate_record){.value = spate_slice_str(values[i]), .token = token};
        }
        for (size_t done = 0, taken; done < BATCH; done += taken) {
            const enum spate_rc rc = spate_writer_publish(w, records + done, BATCH - done, &taken, &err);
            assert_int_not_equal(rc, SPATE_FAIL);
            if (rc == SPATE_AGAIN)
                assert_int_not_equal(spate_writer_poll(w, 1000, acked, &a, &err), SPATE_FAIL);
        }
    }
    await(w, &a, token);
    assert_true(a.in_order);
    while (read < token) {
        const struct spate_message m = get(r);
        assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
        assert_int_equal(strtoull(m.value.at, NULL, 10), ++read);
    }
    spate_reader_close(r);
    spate_writer_close(w);
}

static void refuses_an_empty_record_and_takes_those_before_it(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    const struct spate_record records[] = {{.value = spate_slice("good", 4)}, {.key = spate_slice("k", 1)}};
    struct spate_err err = {0};
    size_t taken = 0;

    assert_int_equal(spate_writer_publish(w, records, 2, &taken, &err), SPATE_FAIL);
    assert_int_equal(taken, 1);
    assert_int_equal(err.verdict, SPATE_QUARANTINE);
    spate_writer_close(w);
}

static void refuses_a_record_that_is_too_large_and_says_how_large(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *r = open_reader(*state, "shop", SPATE_SEE_TIP, oldest);
    const size_t most = spate_writer_max_record(w);
    /* More than that takes a driver of gigabytes too long. */
    const size_t len = most < (size_t)24 << 20 ? most : (size_t)24 << 20;
    char *big = calloc(1, len + 1); /* what is refused is not looked at */
    struct spate_record record = {.value = spate_slice(big, most + 1)};
    struct spate_err err = {0};
    char number[32];
    size_t taken = 9;

    snprintf(number, sizeof number, "%zu", most + 1);
    assert_int_equal(spate_writer_publish(w, &record, 1, &taken, &err), SPATE_FAIL);
    assert_int_equal(taken, 0);
    assert_int_equal(err.verdict, SPATE_QUARANTINE);
    assert_non_null(strstr(err.text, number));
    record.value.len = len;
    memset(big, 'x', len);
    for (int i = 0; i < 9; i++) {
        enum spate_rc rc;
        while ((rc = spate_writer_publish(w, &record, 1, &taken, &err)) == SPATE_AGAIN)
            assert_int_not_equal(spate_writer_poll(w, 1000, acked, &(struct acks){0}, &err), SPATE_FAIL);
        if (rc != SPATE_OK)
            fail_msg("%s", err.text);
        const struct spate_message m = get(r);
        assert_int_equal(m.value.len, len);
        assert_memory_equal(m.value.at, big, len);
    }
    free(big);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void starts_where_it_is_told(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *all = open_reader(*state, "shop", SPATE_SEE_TIP, oldest);
    struct spate_err err = {0};

    put(w, "", "one", 0);
    put(w, "", "two", 0);
    settle(*state, w, &(struct acks){0});
    struct spate_reader *now =
        open_reader(*state, "shop", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_NOW});
    put(w, "", "three", 0);
    expect(now, "three");
    expect(all, "one");
    const struct spate_bus_pos two = get(all).pos;
    struct spate_reader *at =
        open_reader(*state, "shop", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_AT, .pos = two});
    expect(at, "two");
    expect(at, "three");
    assert_int_equal(spate_reader_seek(at, (struct spate_start){.from = SPATE_START_AT, .pos = two}, &err),
                     SPATE_OK);
    expect(at, "two");
    assert_int_equal(spate_reader_seek(at, oldest, &err), SPATE_OK);
    expect(at, "one");
    spate_reader_close(at);
    spate_reader_close(now);
    spate_reader_close(all);
    spate_writer_close(w);
}

static void reads_backwards_in_pieces(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    enum { RECORDS = 20000 };
    struct spate_err err = {0};
    char value[220];
    struct acks a = {.in_order = true};
    unsigned char *met = calloc(RECORDS + 1, 1);

    for (uint64_t i = 1; i <= RECORDS; i++) {
        const int len = snprintf(value, sizeof value, "%-200llu", (unsigned long long)i);
        const struct spate_record record = {.value = spate_slice(value, (size_t)len), .token = i};
        enum spate_rc rc;
        size_t taken;
        while ((rc = spate_writer_publish(w, &record, 1, &taken, &err)) == SPATE_AGAIN)
            assert_int_not_equal(spate_writer_poll(w, 1000, acked, &a, &err), SPATE_FAIL);
        assert_int_equal(rc, SPATE_OK);
    }
    await(w, &a, RECORDS);
    struct spate_reader *r = open_reader(*state, "shop", SPATE_SEE_DURABLE, oldest);
    struct spate_bus_pos before = spate_reader_end(r), start;
    enum spate_rc rc;
    int pieces = 0;
    while ((rc = spate_reader_back(r, before, &start, &err)) == SPATE_OK) {
        struct spate_message m;
        assert_true(start.at < before.at);
        while (spate_reader_next(r, &m, &err) == SPATE_OK && m.pos.at < before.at)
            met[strtoull(m.value.at, NULL, 10)]++;
        before = start;
        pieces++;
    }
    assert_int_equal(rc, SPATE_END);
    assert_true(pieces > 1);
    for (int i = 1; i <= RECORDS; i++)
        assert_int_equal(met[i], 1);
    free(met);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void goes_on_after_reopening(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f, "shop", SPATE_TOPIC_CREATE);
    char id[64];

    put(w, "", "one", 0);
    const struct spate_bus_pos before = spate_writer_end(w);
    spate_writer_close(w);
    w = open_writer(f, "shop", 0);
    assert_true(spate_writer_durable(w).at >= before.at); /* opening waits until all of it is durable */
    put(w, "", "two", 0);
    struct spate_reader *r = open_reader(f, "shop", SPATE_SEE_TIP, oldest);
    snprintf(id, sizeof id, "%s", spate_reader_log_id(r));
    expect(r, "one");
    const struct spate_message two = get(r);
    assert_true(spate_slice_is(two.value, "two"));
    assert_true(two.pos.at >= before.at);
    spate_reader_close(r);
    r = open_reader(f, "shop", SPATE_SEE_TIP, oldest);
    assert_string_equal(spate_reader_log_id(r), id);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void a_missing_topic_may_come_later(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};
    struct spate_reader *r;
    struct spate_writer *w;

    assert_int_equal(spate_bus_reader_open(f->bus, named(f, "nobody"), SPATE_SEE_TIP, oldest, &r, &err),
                     SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_true(err.missing);
    assert_int_equal(spate_bus_writer_open(f->bus, named(f, "nobody"), 0, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
}

static void a_second_writer_is_told_who_the_first_is_where_a_topic_has_one_owner(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w, *second;
    struct spate_err err = {0};
    char pid[32];

    w = open_writer(f, "shop", SPATE_TOPIC_CREATE);
    if (!f->driver
             ->owns) { /* K15: nobody can be kept out; what both write stands there in the order it came */
        struct spate_reader *r = open_reader(f, "shop", SPATE_SEE_TIP, oldest);
        struct acks one = {.in_order = true}, two = {.in_order = true};

        second = open_writer(f, "shop", 0);
        put(w, "", "first", 1);
        await(w, &one, 1);
        put(second, "", "second", 1);
        await(second, &two, 1);
        put(w, "", "third", 2);
        await(w, &one, 2);
        expect(r, "first");
        expect(r, "second");
        expect(r, "third");
        spate_reader_close(r);
        spate_writer_close(second);
        spate_writer_close(w);
        return;
    }
    snprintf(pid, sizeof pid, "process %d", (int)getpid());
    assert_int_equal(spate_bus_writer_open(f->bus, named(f, "shop"), SPATE_TOPIC_CREATE, &second, &err),
                     SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, pid));
    spate_writer_close(w);
    w = open_writer(f, "shop", SPATE_TOPIC_CREATE);
    spate_writer_close(w);
}

static void many_write_a_shared_topic(void **state)
{
    struct fixture *f = *state;
    const unsigned flags = SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED;
    struct spate_writer *a = open_writer(*state, "shop._control", flags);
    struct spate_writer *b = open_writer(*state, "shop._control", flags);
    struct spate_reader *r = open_reader(*state, "shop._control", SPATE_SEE_DURABLE, oldest);
    struct acks acks_a = {.in_order = true}, acks_b = {.in_order = true};
    char value[32];

    for (uint64_t i = 1; i <= 50; i++) {
        snprintf(value, sizeof value, "a%llu", (unsigned long long)i);
        put(a, "", value, i);
        settle(f, a, &acks_a);
        snprintf(value, sizeof value, "b%llu", (unsigned long long)i);
        put(b, "", value, i);
        settle(f, b, &acks_b);
    }
    await(a, &acks_a, 50);
    await(b, &acks_b, 50);
    assert_true(acks_a.in_order && acks_b.in_order);
    if (!f->driver->distant) /* elsewhere a writer knows its own records only */
        assert_int_equal(spate_writer_end(a).at, spate_writer_end(b).at);
    for (int i = 1; i <= 50; i++) {
        snprintf(value, sizeof value, "a%d", i);
        expect(r, value);
        snprintf(value, sizeof value, "b%d", i);
        expect(r, value);
    }
    spate_reader_close(r);
    spate_writer_close(a);
    spate_writer_close(b);
}

static void a_volatile_topic_is_never_acknowledged(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w =
        open_writer(f, "shop._peers", SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE);
    struct spate_reader *r = open_reader(f, "shop._peers", SPATE_SEE_TIP, oldest), *durable;
    struct acks a = {0};
    struct spate_err err = {0};

    put(w, "me", "here", 1);
    expect(r, "here");
    assert_int_equal(spate_writer_poll(w, 50, acked, &a, &err), SPATE_AGAIN);
    assert_int_equal(a.count, 0);
    if (!f->driver->all_kept)
        assert_int_equal(
            spate_bus_reader_open(f->bus, named(f, "shop._peers"), SPATE_SEE_DURABLE, oldest, &durable, &err),
            SPATE_FAIL);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void *publish_one(void *arg)
{
    struct spate_writer *w = arg;

    put(w, "", "wake up", 0);
    return NULL;
}

static void waits_no_longer_than_told_and_wakes_for_a_record(void **state)
{
    struct spate_writer *w = open_writer(*state, "shop", SPATE_TOPIC_CREATE);
    struct spate_reader *r = open_reader(*state, "shop", SPATE_SEE_DURABLE, oldest);
    struct spate_err err = {0};
    pthread_t thread;
    int64_t from = spate_clock_ms();

    assert_int_equal(spate_reader_wait(r, 20, &err), SPATE_AGAIN);
    assert_true(spate_clock_ms() - from >= 19);
    for (int round = 0; round < 100; round++) {
        from = spate_clock_ms();
        assert_int_equal(pthread_create(&thread, NULL, publish_one, w), 0);
        expect(r, "wake up");
        assert_true(spate_clock_ms() - from < 5000);
        pthread_join(thread, NULL);
    }
    spate_reader_close(r);
    spate_writer_close(w);
}

struct seen {
    struct fixture *f;
    unsigned topics;
};

static void count_topic(void *arg, const char *topic)
{
    struct seen *seen = arg;
    const size_t len = prefix_len(seen->f);

    if (len > 0 && strncmp(topic, seen->f->driver->prefix(seen->f->made), len) != 0)
        return; /* another test's */
    topic += len;
    seen->topics |= strcmp(topic, "shop") == 0 ? 1 : strcmp(topic, "shop._schemas") == 0 ? 2 : 4;
}

static void lists_its_topics(void **state)
{
    struct fixture *f = *state;
    struct seen seen = {.f = f};
    struct spate_err err = {0};

    assert_int_equal(spate_bus_topics(f->bus, count_topic, &seen, &err), SPATE_OK);
    assert_int_equal(seen.topics, 0);
    spate_writer_close(open_writer(f, "shop", SPATE_TOPIC_CREATE));
    spate_writer_close(open_writer(f, "shop._schemas", SPATE_TOPIC_CREATE | SPATE_TOPIC_KEEP));
    assert_int_equal(spate_bus_topics(f->bus, count_topic, &seen, &err), SPATE_OK);
    assert_int_equal(seen.topics, 3);
}

/* A name is for people and changes nothing of what is read. Only the local bus can hold; the others say so,
 * and go on without. */
static void a_reader_may_have_a_name(void **state)
{
    struct fixture *f = *state;
    const bool holds = strcmp(f->bus->ops->name, "local") == 0;
    struct acks acks = {.in_order = true};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f, "log", SPATE_TOPIC_CREATE);

    put(w, "k", "first", 1);
    put(w, "k", "second", 2);
    put(w, "k", "third", 3);
    await(w, &acks, 3);
    struct spate_reader *r = open_reader(f, "log", SPATE_SEE_DURABLE, oldest);
    spate_reader_passed(r, (struct spate_bus_pos){.at = 1}); /* without a name: nothing */
    assert_int_equal(spate_reader_enlist(r, "billing", false, &err), SPATE_OK);
    expect(r, "first");
    spate_reader_passed(r, get(r).next);
    if (spate_reader_enlist(r, "billing", true, &err) != (holds ? SPATE_OK : SPATE_FAIL))
        fail_msg("hold: %s", err.text);
    if (!holds) {
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_non_null(strstr(err.text, "hold"));
    }
    expect(r, "third");
    spate_reader_close(r);
    r = open_reader(f, "log", SPATE_SEE_DURABLE, oldest); /* where it goes on is the reader's own to know */
    err = (struct spate_err){0};
    assert_int_equal(spate_reader_enlist(r, "billing", false, &err), SPATE_OK);
    expect(r, "first");
    spate_reader_close(r);
    spate_writer_close(w);
}

static void positions_survive_as_text(void **state)
{
    struct fixture *f = *state;
    const char *name = f->bus->ops->name;
    const uint64_t values[] = {0, 1, 64, 0xdeadbeef, INT64_MAX};
    char text[SPATE_BUS_POS_TEXT];
    struct spate_bus_pos pos;
    struct spate_err err = {0};

    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        spate_bus_pos_format(name, (struct spate_bus_pos){.at = values[i]}, text);
        assert_int_equal(spate_bus_pos_parse(name, text, &pos, &err), SPATE_OK);
        assert_true(pos.at == values[i]);
    }
    assert_int_equal(spate_bus_pos_parse(name, "elsewhere:12", &pos, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
}

#define BUS_TEST(fn, driver)                                                                                 \
    {                                                                                                        \
#fn, fn, set_up, tear_down, (void *)(uintptr_t)(driver)                                              \
    }

static void kafka_needs_a_broker_in_SPATE_TEST_BROKERS(void **state)
{
    (void)state;
    skip();
}

int main(void)
{
    const char *brokers = getenv("SPATE_TEST_BROKERS");
    int failed = 0;

    for (size_t i = 0; i < spate_test_driver_count; i++) {
        const struct spate_test_driver *driver = &spate_test_drivers[i];
        if (strcmp(driver->name, "kafka") == 0 && !(brokers && *brokers)) {
            const struct CMUnitTest none[] = {cmocka_unit_test(kafka_needs_a_broker_in_SPATE_TEST_BROKERS)};
            failed += cmocka_run_group_tests_name(driver->name, none, NULL, NULL);
            continue;
        }
        const struct CMUnitTest tests[] = {
            BUS_TEST(gives_back_what_was_published, driver),
            BUS_TEST(acknowledges_each_token_once_in_order, driver),
            BUS_TEST(shows_sinks_only_what_is_durable, driver),
            BUS_TEST(takes_batches_over_many_segments, driver),
            BUS_TEST(refuses_an_empty_record_and_takes_those_before_it, driver),
            BUS_TEST(refuses_a_record_that_is_too_large_and_says_how_large, driver),
            BUS_TEST(starts_where_it_is_told, driver),
            BUS_TEST(reads_backwards_in_pieces, driver),
            BUS_TEST(goes_on_after_reopening, driver),
            BUS_TEST(a_missing_topic_may_come_later, driver),
            BUS_TEST(a_second_writer_is_told_who_the_first_is_where_a_topic_has_one_owner, driver),
            BUS_TEST(many_write_a_shared_topic, driver),
            BUS_TEST(a_volatile_topic_is_never_acknowledged, driver),
            BUS_TEST(waits_no_longer_than_told_and_wakes_for_a_record, driver),
            BUS_TEST(lists_its_topics, driver),
            BUS_TEST(a_reader_may_have_a_name, driver),
            BUS_TEST(positions_survive_as_text, driver),
        };
        failed += cmocka_run_group_tests_name(driver->name, tests, NULL, NULL);
    }
    return failed != 0;
}
