/* bus/local: what writers leave behind that were stopped at the wrong moment, and everybody else's way past
 * it. */
#include "bus/local/archive.h"
#include "bus/local/place.h"
#include "bus/local/segment.h"
#include "bus/local/topic.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>

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

/* Who was stopped on its way to making a segment makes it anew when all others are long past it. The steward
 * of a volatile topic goes on at the head, and does not wait there. */
static void L2_a_segment_that_was_made_anew_keeps_no_steward(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, SPATE_TOPIC_VOLATILE);
    struct spate_local_archive archive;
    const uint64_t forgotten = head(l);
    uint64_t n = 1;
    enum spate_rc rc;

    (void)state;
    roll(l, writer, 3, &n);
    assert_true(atomic_load(&l->topic.ctl->first) > forgotten);
    assert_int_equal(atomic_load(&l->topic.ctl->settled), forgotten);
    OK(spate_local_segment_create(l->topic.hot_fd, forgotten, CAP, &l->err));
    spate_local_archive_init(&archive, &l->topic);
    while ((rc = spate_local_archive_step(&archive, &l->err)) == SPATE_OK)
        ;
    assert_int_equal(rc, SPATE_END);
    assert_int_equal(atomic_load(&l->topic.ctl->settled), spate_local_topic_tip(&l->topic));
    spate_local_archive_fini(&archive);
    spate_writer_close(writer);
    end(l);
}

/* A writer that slept through the loss of the shared memory and its recovery makes a segment of the old log
 * in the new one's directory. No reader sees that, whatever it looks for there. */
static void L2_a_segment_of_a_lost_hot_tier_is_nobodys(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, 0);
    const uint64_t never = head(l) + CAP;
    struct spate_reader *reader;
    struct spate_message m = {0};

    (void)state;
    put(l, writer, 1);
    spate_writer_close(writer);
    bus_scratch_reboot(&l->scratch);
    OK(spate_bus_writer_open(l->bus, "t", 0, &writer, &l->err));
    put(l, writer, 2);
    OK(spate_local_topic_attach(&l->topic, true, &l->err));
    assert_true(head(l) > never);
    while (atomic_load(&l->topic.ctl->durable) < spate_local_topic_tip(&l->topic))
        usleep(1000); /* the steward has swept, and sleeps */
    OK(spate_local_segment_create(l->topic.hot_fd, never, CAP, &l->err));
    OK(spate_bus_reader_open(l->bus, "t", SPATE_SEE_TIP,
                             (struct spate_start){.from = SPATE_START_AT, .pos = {.at = never}}, &reader,
                             &l->err));
    OK(spate_reader_next(reader, &m, &l->err));
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_int_equal(bus_log_number(&m), 2);
    spate_reader_close(reader);
    spate_writer_close(writer);
    end(l);
}

struct looker {
    struct left *l;
    _Atomic bool stop;
    uint64_t looks, holes;
};

static void *keep_looking(void *arg)
{
    struct looker *looker = arg;

    for (; !atomic_load(&looker->stop); looker->looks++)
        looker->holes += !spate_local_topic_whole(&looker->l->topic);
    return NULL;
}

/* Who opens a topic looks whether its shared memory is whole, while its writers go on and forget what is
 * past: that is no reason to recover, and lose the rest. */
static void L10_a_log_that_moves_on_is_whole(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, SPATE_TOPIC_VOLATILE);
    struct looker looker = {.l = l};
    const int64_t deadline = spate_clock_ms() + 10000;
    pthread_t thread;
    uint64_t n = 1;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, keep_looking, &looker), 0);
    for (int i = 0; i < 60 && spate_clock_ms() < deadline; i++)
        roll(l, writer, 1, &n);
    atomic_store(&looker.stop, true);
    pthread_join(thread, NULL);
    print_message("%llu looks\n", (unsigned long long)looker.looks);
    assert_true(looker.looks > 0);
    assert_int_equal(looker.holes, 0);
    spate_writer_close(writer);
    end(l);
}

static void offer(struct left *l, struct spate_writer *writer, uint64_t token)
{
    char value[BUS_LOG_MOST];
    const struct spate_record record = {
        .key = spate_slice("key", 3), .value = bus_log_value(token, value), .token = token};
    size_t taken;

    OK(spate_writer_publish(writer, &record, 1, &taken, &l->err));
}

/* Two writers share a topic, and the steward of one makes durable what the other published: the other sleeps
 * in poll, and is woken for it. */
static void L8_who_waits_for_another_ones_steward_is_woken(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *one = begin(l, SPATE_TOPIC_SHARED), *other;
    struct bus_log_acks acks = {0};
    int64_t longest = 0;

    (void)state;
    OK(spate_bus_writer_open(l->bus, "t", SPATE_TOPIC_SHARED, &other, &l->err));
    for (uint64_t token = 1; token <= 500; token++) {
        put(l, one, token); /* wakes its steward, or keeps it busy */
        const int64_t before = spate_clock_ms();
        offer(l, other, token);
        while (acks.last < token && spate_clock_ms() - before < 3000)
            if (spate_writer_poll(other, 3000, bus_log_acked, &acks, &l->err) == SPATE_FAIL)
                fail_msg("%s", l->err.text);
        const int64_t took = spate_clock_ms() - before;
        longest = took > longest ? took : longest;
    }
    print_message("longest %lld ms\n", (long long)longest);
    assert_int_equal(acks.last, 500);
    assert_true(longest < 1500);
    spate_writer_close(other);
    spate_writer_close(one);
    end(l);
}

/* A writer that dies before its record is durable, of a topic that another one shares and is silent on: the
 * silent one's steward makes it durable, and sinks see it. */
static void L1_what_a_dead_sharer_left_becomes_durable(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *silent = begin(l, SPATE_TOPIC_SHARED);
    struct spate_local_segment seg;
    const int64_t deadline = spate_clock_ms() + 10000;

    (void)state;
    /* As a writer would leave it that was killed at once: taken and claimed by a slot that nobody has. */
    OK(spate_local_segment_map(l->topic.hot_fd, head(l), CAP, SPATE_LOCAL_MAP_WRITE, &seg, &l->err));
    const uint64_t at = spate_local_tail_bytes(
        atomic_fetch_add(&spate_local_header(&seg)->tail, UINT64_C(1) << SPATE_LOCAL_TAIL_SHIFT | 64));
    atomic_store(&spate_local_record_at(&seg, at)->word, spate_local_word(SPATE_LOCAL_CLAIM, 77, 1, 64));
    while (atomic_load(&l->topic.ctl->durable) < seg.base + at + 64 && spate_clock_ms() < deadline)
        usleep(1000);
    assert_int_equal(atomic_load(&l->topic.ctl->durable), seg.base + at + 64);
    spate_local_segment_unmap(&seg);
    spate_writer_close(silent);
    end(l);
}

/* The very segment that goes to the disk next is removed, and nothing of it was there yet: the writer hears
 * that it cannot become durable, instead of waiting for ever. */
static void L4_a_head_that_was_removed_is_noticed(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, SPATE_TOPIC_SHARED);
    struct bus_log_acks acks = {0};
    const int64_t deadline = spate_clock_ms() + 10000;
    enum spate_rc rc = SPATE_AGAIN;

    (void)state;
    assert_int_equal(atomic_load(&l->topic.ctl->durable), head(l));
    assert_true(spate_local_segment_remove(l->topic.hot_fd, head(l)));
    offer(l, writer, 1);
    while (rc == SPATE_AGAIN && spate_clock_ms() < deadline)
        rc = spate_writer_poll(writer, 100, bus_log_acked, &acks, &l->err);
    assert_int_equal(rc, SPATE_FAIL);
    assert_int_equal(l->err.verdict, SPATE_RETRY);
    assert_int_equal(acks.last, 0);
    spate_writer_close(writer);
    OK(spate_bus_writer_open(l->bus, "t", SPATE_TOPIC_SHARED, &writer, &l->err));
    offer(l, writer, 1);
    while (acks.last < 1 && spate_clock_ms() < deadline)
        if (spate_writer_poll(writer, 100, bus_log_acked, &acks, &l->err) == SPATE_FAIL)
            fail_msg("%s", l->err.text);
    assert_int_equal(acks.last, 1);
    spate_writer_close(writer);
    end(l);
}

#define LARGE (UINT64_C(300) << 10)

static int sync_but_the_archive(int fd)
{
    struct stat st;

    errno = EIO;
    return fstat(fd, &st) == 0 && (uint64_t)st.st_size == LARGE ? 0 : -1;
}

/* Somebody watches the tip, and stands before a large value that is not durable when the power goes: the
 * recovery takes its file. That is no damage: who watches goes on in what the log is now. */
static void L4_a_large_value_that_recovery_took_is_no_damage(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, 0);
    struct spate_reader *reader;
    struct spate_message m = {0};
    struct bus_log_acks acks = {0};
    const int64_t deadline = spate_clock_ms() + 10000;
    char *large = calloc(1, LARGE), file[200];
    const struct spate_record record = {.value = spate_slice(large, LARGE)};
    enum spate_rc rc = SPATE_AGAIN;
    size_t taken;

    (void)state;
    assert_non_null(large);
    OK(spate_bus_reader_open(l->bus, "t", SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_OLDEST},
                             &reader, &l->err));
    offer(l, writer, 1);
    while (acks.last < 1 && spate_clock_ms() < deadline)
        rc = spate_writer_poll(writer, 100, bus_log_acked, &acks, &l->err);
    OK(spate_reader_next(reader, &m, &l->err));
    const uint64_t durable = atomic_load(&l->topic.ctl->durable), base = head(l);
    spate_local_archive_sync_hook = sync_but_the_archive;
    OK(spate_writer_publish(writer, &record, 1, &taken, &l->err));
    while (rc != SPATE_FAIL && spate_clock_ms() < deadline)
        rc = spate_writer_poll(writer, 100, bus_log_acked, &acks, &l->err);
    assert_int_equal(rc, SPATE_FAIL);
    spate_writer_close(writer);
    spate_local_archive_sync_hook = NULL;
    bus_scratch_reboot(&l->scratch);
    snprintf(file, sizeof file, "%.120s/t/%016llx.seg", l->scratch.path, (unsigned long long)base);
    assert_int_equal(truncate(file, (off_t)(SPATE_LOCAL_HEADER + durable - base)), 0);
    OK(spate_bus_writer_open(l->bus, "t", 0, &writer, &l->err));
    put(l, writer, 2);
    while ((rc = spate_reader_next(reader, &m, &l->err)) == SPATE_AGAIN && spate_clock_ms() < deadline)
        if (spate_reader_wait(reader, 50, &l->err) == SPATE_FAIL)
            break;
    OK(rc);
    assert_int_equal(bus_log_number(&m), 2);
    free(large);
    spate_reader_close(reader);
    spate_writer_close(writer);
    end(l);
}

static const char *doomed;

static void remove_doomed(const char *where)
{
    if (doomed && strcmp(where, "create: made") == 0)
        bus_scratch_remove(doomed);
}

/* The directory of the shared memory is removed while a segment is made in it: that is for opening anew, and
 * no reason to give up. */
static void L4_a_directory_that_goes_while_it_is_written_is_made_anew(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *writer = begin(l, SPATE_TOPIC_VOLATILE);
    char value[BUS_LOG_MOST], hot[160];
    const struct spate_record record = {.key = spate_slice("key", 3), .value = bus_log_value(1, value)};
    enum spate_rc rc = SPATE_OK;
    size_t taken;

    (void)state;
    snprintf(hot, sizeof hot, "%.120s/t", l->scratch.hot);
    doomed = hot;
    spate_local_segment_hook = remove_doomed;
    for (int i = 0; rc == SPATE_OK && i < 100000; i++)
        rc = spate_writer_publish(writer, &record, 1, &taken, &l->err);
    doomed = NULL;
    assert_int_equal(rc, SPATE_FAIL);
    assert_int_equal(l->err.verdict, SPATE_RETRY);
    spate_writer_close(writer);
    OK(spate_bus_writer_open(l->bus, "t", SPATE_TOPIC_VOLATILE, &writer, &l->err));
    put(l, writer, 2);
    spate_local_segment_hook = NULL;
    spate_writer_close(writer);
    end(l);
}

static uint64_t mapped_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned long long pages = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu", &pages), 1);
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* The shared memory was replaced under a writer that has no room for a thread: it fails. What it takes when
 * it has room again becomes durable. */
static void L4_a_writer_that_cannot_begin_anew_does_so_later(void **state)
{
    struct left left, *l = &left;
    struct spate_writer *one = begin(l, SPATE_TOPIC_SHARED), *other;
    struct bus_log_acks acks = {0};
    const int64_t deadline = spate_clock_ms() + 10000;
    struct rlimit before, tight;
    pthread_attr_t usual, large;
    char value[BUS_LOG_MOST], hot[160];
    size_t taken;

    (void)state;
    snprintf(hot, sizeof hot, "%.120s/t", l->scratch.hot);
    bus_scratch_remove(hot);
    OK(spate_bus_writer_open(l->bus, "t", SPATE_TOPIC_SHARED, &other, &l->err));
    const struct spate_record record = {
        .key = spate_slice("key", 3), .value = bus_log_value(1, value), .token = 1};
    /* There is room for segments, and none for a stack. */
    assert_int_equal(pthread_getattr_default_np(&usual), 0);
    pthread_attr_init(&large);
    pthread_attr_setstacksize(&large, 256 << 20);
    assert_int_equal(pthread_setattr_default_np(&large), 0);
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    tight = before;
    tight.rlim_cur = mapped_bytes() + (64 << 20);
    assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
    const enum spate_rc rc = spate_writer_publish(one, &record, 1, &taken, &l->err);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(pthread_setattr_default_np(&usual), 0);
    pthread_attr_destroy(&large);
    pthread_attr_destroy(&usual);
    assert_int_equal(rc, SPATE_FAIL);
    OK(spate_writer_publish(one, &record, 1, &taken, &l->err));
    while (acks.last < 1 && spate_clock_ms() < deadline)
        if (spate_writer_poll(one, 100, bus_log_acked, &acks, &l->err) == SPATE_FAIL)
            fail_msg("%s", l->err.text);
    assert_int_equal(acks.last, 1);
    spate_writer_close(other);
    spate_writer_close(one);
    end(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L6_a_reader_in_a_forgotten_segment_gets_past_a_dead_claim),
        cmocka_unit_test(L2_a_segment_that_was_made_anew_keeps_no_steward),
        cmocka_unit_test(L2_a_segment_of_a_lost_hot_tier_is_nobodys),
        cmocka_unit_test(L10_a_log_that_moves_on_is_whole),
        cmocka_unit_test(L8_who_waits_for_another_ones_steward_is_woken),
        cmocka_unit_test(L1_what_a_dead_sharer_left_becomes_durable),
        cmocka_unit_test(L4_a_head_that_was_removed_is_noticed),
        cmocka_unit_test(L4_a_large_value_that_recovery_took_is_no_damage),
        cmocka_unit_test(L4_a_directory_that_goes_while_it_is_written_is_made_anew),
        cmocka_unit_test(L4_a_writer_that_cannot_begin_anew_does_so_later),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
