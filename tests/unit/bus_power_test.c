/* tests/unit/bus_power_test.c - what a power cut leaves, and where the log goes on.
 *
 * A cut keeps all that was synced and anything of what was not: the file may end at any byte, and each sector
 * beyond the watermark may be there, old, or garbage. SPATE_POWER_CUTS sets the number of cuts, SEED the
 * seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/segment.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CAP    (UINT64_C(1) << 20)
#define SECTOR 512

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct pristine {
    struct bus_scratch scratch;
    uint64_t records;
    uint64_t *pos; /* of record i; pos[records + 1]: the end */
    uint64_t base; /* of the newest segment */
    unsigned char *newest;
    size_t newest_len;
};

static void copy_file(int from_dir, int to_dir, const char *name)
{
    char buf[65536];
    ssize_t got;
    const int from = openat(from_dir, name, O_RDONLY),
              to = openat(to_dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0640);

    assert_true(from >= 0 && to >= 0);
    while ((got = read(from, buf, sizeof buf)) > 0)
        assert_int_equal(write(to, buf, (size_t)got), got);
    close(from);
    close(to);
}

static int make_pristine(void **state)
{
    struct pristine *p = calloc(1, sizeof *p);
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};

    setenv("TMPDIR", "/dev/shm", 1); /* what a sync costs is not the question here */
    bus_scratch_init(&p->scratch, (int64_t)CAP);
    p->records = 7000;
    p->pos = calloc(p->records + 2, sizeof *p->pos);
    check(spate_bus_open(&p->scratch.config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(bus_log_publish(w, 1, p->records, &acks, &err), &err);
    check(bus_log_settle(w, p->records, &acks, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    for (uint64_t n = 1; n <= p->records; n++) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
        p->pos[n] = m.pos.at;
        p->pos[n + 1] = m.next.at;
    }
    spate_reader_close(r);
    spate_writer_close(w);
    spate_bus_close(bus);

    char path[256], name[SPATE_LOCAL_FILE];
    p->base = spate_local_base_of(p->pos[p->records], CAP);
    spate_local_segment_name(p->base, name);
    snprintf(path, sizeof path, "%s/log/%s", p->scratch.path, name);
    const int fd = open(path, O_RDONLY);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    p->newest_len = (size_t)st.st_size;
    p->newest = malloc(p->newest_len);
    assert_int_equal(read(fd, p->newest, p->newest_len), st.st_size);
    close(fd);
    *state = p;
    return 0;
}

static int drop_pristine(void **state)
{
    struct pristine *p = *state;

    bus_scratch_fini(&p->scratch);
    free(p->newest);
    free(p->pos);
    free(p);
    return 0;
}

/* The newest file as a cut may leave it: all below byte `synced` whole, the rest in any state. */
static size_t mutilate(const struct pristine *p, size_t synced, uint64_t *seed, unsigned char *out)
{
    size_t len = p->newest_len;
    const uint64_t mode = bus_log_random(seed) % 3;

    memcpy(out, p->newest, len);
    if (mode != 1)
        len = synced + bus_log_random(seed) % (len - synced + 1);
    if (mode == 0)
        return len;
    for (size_t at = synced / SECTOR * SECTOR; at < len; at += SECTOR) {
        const size_t from = at < synced ? synced : at; /* a sector is old or new, but what was synced stays */
        const size_t upto = at + SECTOR < len ? at + SECTOR : len;
        switch (bus_log_random(seed) % 4) {
        case 0:
            memset(out + from, 0, upto - from);
            break;
        case 1:
            if (from == at)
                for (size_t i = from; i < upto; i++)
                    out[i] = (unsigned char)bus_log_random(seed);
            break;
        default:
            break;
        }
    }
    return len;
}

static uint64_t highest_base(const char *path)
{
    char text[1024], name[256];
    snprintf(name, sizeof name, "%s/log/manifest", path);
    FILE *f = fopen(name, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    const char *at = strstr(text, "highest ");
    assert_non_null(at);
    return strtoull(at + 8, NULL, 16);
}

/* Recovers, and holds the log against what must be and may be there. Returns how many records survived. */
static uint64_t recover_and_check(struct bus_scratch *s, const struct pristine *p, uint64_t at_least,
                                  uint64_t already, uint64_t marker)
{
    const uint64_t highest = highest_base(s->path);
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    struct bus_log_acks acks = {.last = marker - 1};
    uint64_t n = 0;

    check(spate_bus_open(&s->config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
    assert_true(spate_writer_end(w).at > highest); /* test 4: no base is ever used twice */
    assert_int_equal(spate_writer_end(w).at, spate_writer_durable(w).at);
    const struct spate_bus_pos begin = spate_writer_end(w);
    check(bus_log_publish(w, marker, marker, &acks, &err), &err);
    check(bus_log_settle(w, marker, &acks, &err), &err);

    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    for (;;) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
        const uint64_t number = bus_log_number(&m);
        if (number > p->records)
            break;
        assert_int_equal(number, n + 1);
        assert_int_equal(m.pos.at, p->pos[number]);
        n++;
    }
    assert_true(n >= at_least);
    for (uint64_t i = already; i > 0; i--) { /* records of earlier recoveries stand before this one's */
        assert_int_equal(bus_log_number(&m), marker - i);
        check(bus_log_next(r, &m, &err), &err);
    }
    assert_int_equal(bus_log_number(&m), marker);
    assert_int_equal(m.pos.at, begin.at);
    /* Test 4: a reader that stood beyond the cut goes on at the new base. */
    check(spate_reader_seek(
              r, (struct spate_start){.from = SPATE_START_AT, .pos = {.at = p->pos[p->records + 1]}}, &err),
          &err);
    check(bus_log_next(r, &m, &err), &err);
    assert_true(bus_log_number(&m) > p->records);
    spate_reader_close(r);
    spate_writer_close(w);
    spate_bus_close(bus);
    return n;
}

static void copy_log(const struct pristine *p, struct bus_scratch *to, const unsigned char *newest,
                     size_t len)
{
    char from_path[256], to_path[256], name[SPATE_LOCAL_FILE];

    snprintf(from_path, sizeof from_path, "%s/log", p->scratch.path);
    snprintf(to_path, sizeof to_path, "%s/log", to->path);
    assert_int_equal(mkdir(to_path, 0750), 0);
    const int from = open(from_path, O_RDONLY | O_DIRECTORY), dir = open(to_path, O_RDONLY | O_DIRECTORY);
    copy_file(from, dir, "manifest");
    for (uint64_t base = CAP; base < p->base; base += CAP) {
        spate_local_segment_name(base, name);
        copy_file(from, dir, name);
    }
    spate_local_segment_name(p->base, name);
    const int fd = openat(dir, name, O_WRONLY | O_CREAT, 0640);
    assert_int_equal(write(fd, newest, len), (ssize_t)len);
    close(fd);
    close(from);
    close(dir);
}

static void L3_L4_a_power_cut_takes_nothing_that_was_durable(void **state)
{
    const struct pristine *p = *state;
    const char *env = getenv("SPATE_POWER_CUTS"), *env_seed = getenv("SEED");
    const int cuts = env ? atoi(env) : 200;
    uint64_t seed = env_seed ? strtoull(env_seed, NULL, 10) : (uint64_t)spate_clock_wall_us();
    unsigned char *newest = malloc(p->newest_len);
    uint64_t first_in_newest = 1, survived = 0;

    print_message("%d power cuts, SEED=%llu\n", cuts, (unsigned long long)seed);
    while (p->pos[first_in_newest] < p->base)
        first_in_newest++;
    for (int i = 0; i < cuts; i++) {
        const uint64_t kept =
            first_in_newest - 1 + bus_log_random(&seed) % (p->records - first_in_newest + 2);
        const uint64_t watermark = kept < first_in_newest ? p->base : p->pos[kept + 1];
        const size_t len = mutilate(p, (size_t)(SPATE_LOCAL_HEADER + watermark - p->base), &seed, newest);
        struct bus_scratch s;

        bus_scratch_init(&s, (int64_t)CAP);
        copy_log(p, &s, newest, len);
        const uint64_t n = recover_and_check(&s, p, kept, 0, p->records + 1);
        survived += n - kept;
        /* Once more, right after: what recovery wrote must be durable as well. */
        bus_scratch_reboot(&s);
        assert_int_equal(recover_and_check(&s, p, n, 1, p->records + 2), n);
        bus_scratch_fini(&s);
    }
    print_message("%llu records beyond the watermark survived as well\n", (unsigned long long)survived);
    free(newest);
}

static void a_kill_is_no_recovery(void **state)
{
    struct bus_scratch s;
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};

    (void)state;
    bus_scratch_init(&s, (int64_t)CAP);
    check(spate_bus_open(&s.config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(bus_log_publish(w, 1, 10, &acks, &err), &err);
    const struct spate_bus_pos end = spate_writer_end(w);
    spate_writer_close(w);
    /* The shared memory is still there: the log goes on where it was, in the same segment. */
    check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
    assert_int_equal(spate_writer_end(w).at, end.at);
    spate_writer_close(w);
    bus_scratch_reboot(&s);
    check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
    struct spate_bus_pos base = spate_writer_end(w);
    assert_true(base.at >= end.at + CAP - end.at % CAP);
    spate_writer_close(w);
    /* Nothing of that generation reached the disk but the promise not to use its bases again. */
    for (int i = 0; i < 3; i++) {
        bus_scratch_reboot(&s);
        check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
        assert_true(spate_writer_end(w).at > base.at);
        base = spate_writer_end(w);
        spate_writer_close(w);
    }
    spate_bus_close(bus);
    bus_scratch_fini(&s);
}

/* The machine was restarted, the connector is not up yet: sinks go on from the archive, then follow the
 * writer into the new generation without being opened anew. */
static void readers_need_only_the_archive_and_follow_a_recovery(void **state)
{
    struct bus_scratch s;
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *early, *late, *tip, *impatient;
    struct spate_message m;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};
    enum { RECORDS = 6000 };

    (void)state;
    bus_scratch_init(&s, (int64_t)CAP);
    check(spate_bus_open(&s.config, &bus, &err), &err);
    check(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    check(bus_log_publish(w, 1, RECORDS, &acks, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &early, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, oldest, &tip, &err), &err);
    for (uint64_t n = 1; n <= RECORDS / 2; n++) {
        check(bus_log_next(early, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    for (uint64_t n = 1; n <= RECORDS; n++) {
        check(bus_log_next(tip, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    check(bus_log_settle(w, RECORDS, &acks, &err), &err);
    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_NOW},
                                &impatient, &err),
          &err);
    assert_int_equal(spate_reader_next(impatient, &m, &err), SPATE_AGAIN);
    spate_writer_close(w);
    bus_scratch_reboot(&s);

    check(spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &late, &err), &err);
    for (uint64_t n = 1; n <= RECORDS; n++) {
        check(bus_log_next(late, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    assert_int_equal(spate_reader_next(late, &m, &err), SPATE_AGAIN);
    assert_int_equal(spate_reader_end(late).at, m.next.at);

    mkdir(s.hot, 0750);
    check(spate_bus_writer_open(bus, "log", 0, &w, &err), &err);
    check(bus_log_publish(w, RECORDS + 1, 2 * RECORDS, &acks, &err), &err);
    check(bus_log_settle(w, 2 * RECORDS, &acks, &err), &err);
    for (uint64_t n = RECORDS / 2 + 1; n <= 2 * RECORDS; n++) {
        check(bus_log_next(early, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    for (uint64_t n = RECORDS + 1; n <= 2 * RECORDS; n++) {
        check(bus_log_next(late, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
        check(bus_log_next(tip, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    /* Who never waits, but asks now and then, notices as well. */
    const int64_t deadline = spate_clock_ms() + 10000;
    enum spate_rc rc;
    while ((rc = spate_reader_next(impatient, &m, &err)) == SPATE_AGAIN && spate_clock_ms() < deadline)
        ;
    check(rc, &err);
    assert_int_equal(bus_log_number(&m), RECORDS + 1);
    spate_reader_close(impatient);
    spate_reader_close(early);
    spate_reader_close(late);
    spate_reader_close(tip);
    spate_writer_close(w);
    spate_bus_close(bus);
    bus_scratch_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(L3_L4_a_power_cut_takes_nothing_that_was_durable, make_pristine,
                                        drop_pristine),
        cmocka_unit_test(a_kill_is_no_recovery),
        cmocka_unit_test(readers_need_only_the_archive_and_follow_a_recovery),
    };
    return cmocka_run_group_tests_name("bus_power", tests, NULL, NULL);
}
