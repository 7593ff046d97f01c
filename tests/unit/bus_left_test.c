/* bus/local: what writers leave behind that were stopped at the wrong moment, and everybody else's way past
 * it. */
#include "bus/local/archive.h"
#include "bus/local/place.h"
#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>

#include <cmocka.h>

#define CAP (UINT64_C(1) << 20)

struct left {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_local_place place;
    struct spate_local_topic topic; /* a second look at the same log */
    struct spate_err err;
};

#define OK(rc) check_at(rc, &l->err, __LINE__)

static void check_at(enum spate_rc rc, const struct spate_err *err, int line)
{
    if (rc != SPATE_OK)
        fail_msg("line %d: %d %s", line, rc, err->text);
}

static struct spate_writer *begin(struct left *l, unsigned flags)
{
    struct spate_writer *writer = NULL;

    memset(l, 0, sizeof *l);
    l->err.verdict = SPATE_RETRY;
    bus_scratch_init(&l->scratch, (int64_t)CAP);
    OK(spate_bus_open(&l->scratch.config, &l->bus, &l->err));
    OK(spate_bus_writer_open(l->bus, "t", flags | SPATE_TOPIC_CREATE, &writer, &l->err));
    l->place = (struct spate_local_place){.path = l->scratch.path, .hot = l->scratch.hot};
    OK(spate_local_topic_open(&l->topic, &l->place, "t", &l->err));
    OK(spate_local_topic_attach(&l->topic, true, &l->err));
    return writer;
}

static void end(struct left *l)
{
    spate_local_topic_close(&l->topic);
    spate_bus_close(l->bus);
    bus_scratch_fini(&l->scratch);
}

static void put(struct left *l, struct spate_writer *writer, uint64_t n)
{
    char value[BUS_LOG_MOST];
    const struct spate_record record = {.key = spate_slice("key", 3), .value = bus_log_value(n, value)};
    size_t taken;

    OK(spate_writer_publish(writer, &record, 1, &taken, &l->err));
}

static uint64_t head(const struct left *l)
{
    return atomic_load(&l->topic.ctl->head);
}

/* Publishes from number *n on until the log is `segments` further. */
static void roll(struct left *l, struct spate_writer *writer, uint64_t segments, uint64_t *n)
{
    for (const uint64_t upto = head(l) + segments * CAP; head(l) < upto; (*n)++)
        put(l, writer, *n);
}

/* A volatile topic's writer that takes room and dies, while others go on until its segment is forgotten: who
 * reads there is told of a gap, and of nothing but the gap, and reads on. */
static void L6_a_reader_in_a_forgotten_segment_gets_past_a_dead_claim(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, SPATE_TOPIC_VOLATILE);
    struct spate_reader *reader = NULL;
    struct spate_local_segment seg;
    struct spate_message m = {0};
    uint64_t n = 1, read = 0;

    (void)state;
    OK(spate_bus_reader_open(l->bus, "t", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_OLDEST},
                             &reader, &l->err));
    for (; n <= 100; n++)
        put(l, writer, n);
    OK(spate_local_segment_map(l->topic.hot_fd, head(l), CAP, SPATE_LOCAL_MAP_WRITE, &seg, &l->err));
    const uint64_t hole =
        seg.base + spate_local_tail_bytes(atomic_fetch_add(&spate_local_header(&seg)->tail,
                                                           UINT64_C(1) << SPATE_LOCAL_TAIL_SHIFT | 64));
    spate_local_segment_unmap(&seg);
    while (spate_reader_next(reader, &m, &l->err) == SPATE_OK)
        assert_int_equal(bus_log_number(&m), ++read);
    assert_int_equal(read, 100);
    roll(l, writer, 3, &n);
    OK(spate_reader_next(reader, &m, &l->err));
    assert_int_equal(m.kind, SPATE_MESSAGE_GAP);
    assert_int_equal(m.pos.at, hole);
    assert_int_equal(m.next.at, atomic_load(&l->topic.ctl->first));
    OK(spate_reader_next(reader, &m, &l->err));
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    for (read = bus_log_number(&m); spate_reader_next(reader, &m, &l->err) == SPATE_OK;)
        assert_int_equal(bus_log_number(&m), ++read);
    assert_int_equal(read, n - 1);
    spate_reader_close(reader);
    spate_writer_close(writer);
    end(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L6_a_reader_in_a_forgotten_segment_gets_past_a_dead_claim),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
