/* tests/unit/bus_faults_test.c - full and failing disks, damaged files, shared memory that is not
 * ours. Mounts of a few megabytes need root; without it those tests are skipped and say so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/archive.h"
#include "bus/local/layout.h"
#include "bus/local/segment.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

static _Atomic int failures;
static int fail_with;

static int failing_sync(int fd)
{
    if (atomic_load(&failures) > 0) {
        atomic_fetch_sub(&failures, 1);
        errno = fail_with;
        return -1;
    }
    return fdatasync(fd);
}

struct fixture {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    const char *mounted;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct spate_err err = {0};

    spate_local_archive_sync_hook = failing_sync; /* before any archiver runs */
    bus_scratch_init(&f->scratch, (int64_t)CAP);
    f->scratch.config.local_retention_bytes = INT64_C(1) << 50; /* what is full stays full */
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    atomic_store(&failures, 0);
    spate_bus_close(f->bus);
    if (f->mounted)
        umount2(f->mounted, MNT_DETACH);
    bus_scratch_fini(&f->scratch);
    free(f);
    return 0;
}

static struct spate_writer *open_writer(struct fixture *f)
{
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    return w;
}

/* Reads records 1..last from the beginning. */
static void expect_all(struct fixture *f, enum spate_visibility see, uint64_t last)
{
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};

    check(spate_bus_reader_open(f->bus, "log", see, oldest, &r, &err), &err);
    for (uint64_t n = 1; n <= last; n++) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    spate_reader_close(r);
}

static bool mount_small(struct fixture *f, const char *path, const char *size)
{
    if (mount("tmpfs", path, "tmpfs", 0, size) != 0) {
        print_message("skipped: mounting a small file system needs root: %s\n", strerror(errno));
        return false;
    }
    f->mounted = path;
    return true;
}

/* Publishes record n when there is room. */
static bool offer(struct spate_writer *w, uint64_t n, struct bus_log_acks *acks)
{
    char value[BUS_LOG_MOST];
    const struct spate_record record = {
        .key = {.at = "key", .len = 3}, .value = bus_log_value(n, value), .token = n};
    struct spate_err err = {0};
    size_t taken = 0;
    const enum spate_rc rc = spate_writer_publish(w, &record, 1, &taken, &err);

    if (rc == SPATE_FAIL || spate_writer_poll(w, 0, bus_log_acked, acks, &err) == SPATE_FAIL)
        fail_msg("record %llu: %s", (unsigned long long)n, err.text);
    return taken == 1;
}

static void a_full_disk_stops_publishing_and_heals(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    uint64_t n = 0;

    if (!mount_small(f, f->scratch.path, "size=3m")) {
        skip();
        return;
    }
    struct spate_writer *w = open_writer(f);
    while (offer(w, n + 1, &acks))
        n++;
    /* Full for good: nothing moves any more, however often it is asked. */
    uint64_t before;
    do {
        before = acks.last;
        for (int i = 0; i < 5; i++)
            assert_int_not_equal(spate_writer_poll(w, 100, bus_log_acked, &acks, &err), SPATE_FAIL);
        while (offer(w, n + 1, &acks))
            n++;
    } while (acks.last != before);
    assert_true(acks.last < n);
    assert_true(spate_writer_durable(w).at < spate_writer_end(w).at);
    const uint64_t stuck = acks.last;

    assert_int_equal(mount("tmpfs", f->scratch.path, "tmpfs", MS_REMOUNT, "size=64m"), 0);
    check(bus_log_settle(w, n, &acks, &err), &err); /* heals by itself */
    check(bus_log_publish(w, n + 1, n + 1000, &acks, &err), &err);
    check(bus_log_settle(w, n + 1000, &acks, &err), &err);
    assert_false(acks.broken);
    assert_true(acks.last > stuck);
    spate_writer_close(w);
    expect_all(f, SPATE_SEE_DURABLE, n + 1000);
}

static void a_full_shared_memory_is_no_sigbus(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w;

    if (!mount_small(f, f->scratch.hot, "size=2600k")) { /* two segments, and never a third */
        skip();
        return;
    }
    w = open_writer(f);
    check(bus_log_publish(w, 1, 20000, &acks, &err), &err);
    check(bus_log_settle(w, 20000, &acks, &err), &err);
    assert_int_equal(umount2(f->scratch.hot, MNT_DETACH), 0);
    f->mounted = NULL;
    spate_writer_close(w);
    expect_all(f, SPATE_SEE_DURABLE, 20000);
}

static void a_shared_memory_without_room_is_said_at_open(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w;
    struct spate_err err = {0};

    if (!mount_small(f, f->scratch.hot, "size=900k")) {
        skip();
        return;
    }
    assert_int_equal(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, "bus.local.hot"));
}

/* As containers have it: 64 MB of shared memory carry a stream and its three companions. */
static void a_container_s_shared_memory_is_enough(void **state)
{
    struct fixture *f = *state;
    static const char *const topics[] = {"shop", "shop._schemas", "shop._control", "shop._peers"};
    const unsigned flags[] = {0, SPATE_TOPIC_KEEP, SPATE_TOPIC_SHARED,
                              SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE};
    struct spate_writer *w[4];
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};

    if (!mount_small(f, f->scratch.hot, "size=64m")) {
        skip();
        return;
    }
    spate_bus_close(f->bus);
    f->scratch.config.local_segment_bytes = 0;
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    for (int i = 0; i < 4; i++)
        check(spate_bus_writer_open(f->bus, topics[i], SPATE_TOPIC_CREATE | flags[i], &w[i], &err), &err);
    check(bus_log_publish(w[0], 1, 200000, &acks, &err), &err);
    check(bus_log_settle(w[0], 200000, &acks, &err), &err);
    assert_true(spate_writer_max_record(w[0]) >= 1 << 20);
    for (int i = 0; i < 4; i++)
        spate_writer_close(w[i]);
}

static void sync_fails_once(struct fixture *f, int with)
{
    struct spate_writer *w = open_writer(f);
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct stat before, after;
    char path[256], name[SPATE_LOCAL_FILE];

    check(bus_log_publish(w, 1, 100, &acks, &err), &err);
    check(bus_log_settle(w, 100, &acks, &err), &err);
    spate_local_segment_name(CAP, name);
    snprintf(path, sizeof path, "%s/log/%s", f->scratch.path, name);
    assert_int_equal(stat(path, &before), 0);
    fail_with = with;
    atomic_store(&failures, 1);
    check(bus_log_publish(w, 101, 200, &acks, &err), &err);
    check(bus_log_settle(w, 200, &acks, &err), &err);
    assert_int_equal(atomic_load(&failures), 0);
    assert_int_equal(stat(path, &after), 0);
    assert_true(before.st_ino != after.st_ino);
    spate_writer_close(w);
    bus_scratch_reboot(&f->scratch);
    expect_all(f, SPATE_SEE_DURABLE, 200);
}

static void a_failed_sync_is_written_again_into_a_new_file(void **state)
{
    sync_fails_once(*state, EIO);
}

/* Blocks are given out late: a full disk may show only here, and the pages are lost just so. */
static void a_sync_that_finds_no_room_is_written_again_as_well(void **state)
{
    sync_fails_once(*state, ENOSPC);
}

static void a_disk_that_fails_twice_ends_all_promises(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f);
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    char value[BUS_LOG_MOST];
    const struct spate_record record = {
        .key = {.at = "key", .len = 3}, .value = bus_log_value(101, value), .token = 101};
    size_t taken;

    check(bus_log_publish(w, 1, 100, &acks, &err), &err);
    check(bus_log_settle(w, 100, &acks, &err), &err);
    fail_with = EIO;
    atomic_store(&failures, 1000);
    check(spate_writer_publish(w, &record, 1, &taken, &err), &err);
    assert_int_equal(bus_log_settle(w, 101, &acks, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, f->scratch.path));
    assert_int_equal(acks.last, 100);
    assert_int_equal(spate_writer_publish(w, &record, 1, &taken, &err), SPATE_FAIL);
    assert_int_equal(taken, 0);
    spate_writer_close(w);

    atomic_store(&failures, 0); /* the disk was changed: what was only published is made durable by opening */
    w = open_writer(f);
    assert_int_equal(spate_writer_durable(w).at, spate_writer_end(w).at);
    spate_writer_close(w);
    expect_all(f, SPATE_SEE_DURABLE, 101);
}

static void segment_path(const char *root, uint64_t base, char out[256])
{
    char name[SPATE_LOCAL_FILE];

    spate_local_segment_name(base, name);
    snprintf(out, 256, "%s/log/%s", root, name);
}

static void overwrite(const char *path, off_t at, const void *bytes, size_t len)
{
    const int fd = open(path, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, at), (ssize_t)len);
    close(fd);
}

/* Reads until something other than a record comes, and gives that. */
static enum spate_rc read_through(struct fixture *f, enum spate_visibility see, uint64_t *count,
                                  struct spate_err *err)
{
    struct spate_reader *r;
    struct spate_message m;
    enum spate_rc rc = spate_bus_reader_open(f->bus, "log", see, oldest, &r, err);

    *count = 0;
    if (rc != SPATE_OK)
        return rc;
    while ((rc = spate_reader_next(r, &m, err)) == SPATE_OK) {
        volatile char last = m.value.len ? m.value.at[m.value.len - 1] : 0; /* every byte can be touched */
        (void)last;
        ++*count;
    }
    spate_reader_close(r);
    return rc;
}

static void a_damaged_record_is_refused_with_its_position(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_reader *r;
    struct spate_message m;
    char hot[256], archive[256], where[32];
    uint64_t count;

    struct spate_writer *w = open_writer(f);
    check(bus_log_publish(w, 1, 9000, &acks, &err), &err);
    check(bus_log_settle(w, 9000, &acks, &err), &err);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    for (int i = 0; i < 100; i++)
        check(bus_log_next(r, &m, &err), &err);
    const off_t at = (off_t)(SPATE_LOCAL_HEADER + m.pos.at % CAP);
    snprintf(where, sizeof where, "%016llx", (unsigned long long)m.pos.at);
    spate_reader_close(r);
    segment_path(f->scratch.path, CAP, archive);
    assert_int_not_equal(access((segment_path(f->scratch.hot, CAP, hot), hot), F_OK), 0);

    /* One bit of a value, in the archive. */
    overwrite(archive, at + 40, "\x5a\xa5", 2);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(count, 99);
    assert_non_null(strstr(err.text, where));
    /* A length beyond the segment. */
    const uint64_t word = spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, 0xffffffff);
    overwrite(archive, at, &word, sizeof word);
    assert_int_equal(read_through(f, SPATE_SEE_TIP, &count, &err), SPATE_FAIL);
    assert_int_equal(count, 99);
    spate_writer_close(w);
}

static void foreign_segments_are_refused(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    char path[256];
    uint64_t count, magic;

    struct spate_writer *w = open_writer(f);
    check(bus_log_publish(w, 1, 9000, &acks, &err), &err);
    check(bus_log_settle(w, 9000, &acks, &err), &err);
    segment_path(f->scratch.path, CAP, path);
    magic = __builtin_bswap64(SPATE_LOCAL_SEGMENT_MAGIC);
    overwrite(path, 0, &magic, sizeof magic);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "byte order"));
    magic = SPATE_LOCAL_SEGMENT_MAGIC + 1;
    overwrite(path, 0, &magic, sizeof magic);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "version"));
    magic = SPATE_LOCAL_SEGMENT_MAGIC;
    overwrite(path, 0, &magic, sizeof magic);
    overwrite(path, 8, &magic, sizeof magic);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_FAIL);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_FAIL);
    spate_writer_close(w);
}

/* A segment in shared memory that somebody cut: what the words advise must work. */
static void a_cut_segment_in_shared_memory_can_be_made_anew(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f);
    char path[256];

    check(bus_log_publish(w, 1, 100, &acks, &err), &err);
    check(bus_log_settle(w, 100, &acks, &err), &err);
    segment_path(f->scratch.hot, spate_writer_durable(w).at / CAP * CAP, path);
    spate_writer_close(w);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "it was cut"));
    assert_non_null(strstr(err.text, "shared memory"));
    *strrchr(path, '/') = '\0';
    bus_scratch_remove(path);
    spate_writer_close(open_writer(f));
    expect_all(f, SPATE_SEE_DURABLE, 100);
}

/* After a reset of the machine the newest file is shorter than anything that was ever written there. What the
 * words advise must work. */
static void a_cut_segment_can_be_moved_away(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f);
    char path[256];
    uint64_t base = 0, count;

    check(bus_log_publish(w, 1, 9000, &acks, &err), &err);
    check(bus_log_settle(w, 9000, &acks, &err), &err);
    base = spate_writer_durable(w).at / CAP * CAP;
    spate_writer_close(w);
    bus_scratch_reboot(&f->scratch);
    segment_path(f->scratch.path, base, path);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "it was cut"));
    assert_non_null(strstr(err.text, "move it away"));
    assert_int_equal(unlink(path), 0);
    w = open_writer(f);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_AGAIN);
    assert_true(count > 0 && count < 9000);
    check(bus_log_publish(w, 9001, 9100, &acks, &err), &err);
    check(bus_log_settle(w, 9100, &acks, &err), &err);
    assert_int_equal(read_through(f, SPATE_SEE_DURABLE, &count, &err), SPATE_AGAIN);
    spate_writer_close(w);
}

/* Any bytes at all in hot and archive: a reader may refuse, it may not crash (run under ASan as well). */
static void random_damage_never_crashes_a_reader(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    const char *env = getenv("SEED");
    uint64_t seed = env ? strtoull(env, NULL, 10) : (uint64_t)spate_clock_wall_us(), count;
    char hot[256], archive[256];

    print_message("SEED=%llu\n", (unsigned long long)seed);
    struct spate_writer *w = open_writer(f);
    check(bus_log_publish(w, 1, 4500, &acks, &err), &err);
    check(bus_log_settle(w, 4500, &acks, &err), &err);
    const uint64_t head = spate_writer_end(w).at / CAP * CAP;
    spate_writer_close(w);
    segment_path(f->scratch.path, CAP, archive);
    segment_path(f->scratch.hot, head, hot);
    for (int i = 0; i < 400; i++) {
        const uint64_t kind = bus_log_random(&seed) % 3;
        uint64_t word = bus_log_random(&seed);
        if (kind == 0)
            word = spate_local_word((enum spate_local_state)(word % 6), 0, 0, (uint32_t)(word >> 20));
        else if (kind == 1)
            word = spate_local_word((enum spate_local_state)(word % 6), 0, 0, (uint32_t)(word >> 40) & ~63u);
        const off_t at = (off_t)(SPATE_LOCAL_HEADER + bus_log_random(&seed) % (CAP - 64) / 64 * 64);
        overwrite(i % 2 ? hot : archive, at, &word, sizeof word);
        (void)read_through(f, SPATE_SEE_TIP, &count, &err);
        (void)read_through(f, SPATE_SEE_DURABLE, &count, &err);
    }
    bus_scratch_reboot(&f->scratch);
    (void)read_through(f, SPATE_SEE_DURABLE, &count, &err);
    mkdir(f->scratch.hot, 0750);
    w = open_writer(f); /* recovery cuts what it cannot believe, and goes on */
    spate_writer_close(w);
}

static void a_damaged_manifest_stops_everybody(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f);
    struct spate_reader *r;
    char path[256];

    spate_writer_close(w);
    snprintf(path, sizeof path, "%s/log/manifest", f->scratch.path);
    overwrite(path, 60, "9", 1);
    assert_int_equal(spate_bus_writer_open(f->bus, "log", 0, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_non_null(strstr(err.text, "manifest"));
    assert_int_equal(spate_bus_reader_open(f->bus, "log", SPATE_SEE_TIP, oldest, &r, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
}

/* Another container: the writer lives, but in a shared memory that is not the reader's. */
static void a_reader_in_another_shared_memory_is_told_so(void **state)
{
    struct fixture *f = *state;
    struct spate_bus_config config = f->scratch.config;
    struct spate_err err = {0};
    struct spate_bus *elsewhere;
    struct spate_reader *r;
    struct spate_message m;
    enum spate_rc rc;
    char other[160];
    const int64_t deadline = spate_clock_ms() + 20000;

    struct spate_writer *w = open_writer(f);
    snprintf(other, sizeof other, "%s-other", f->scratch.hot);
    config.local_hot = other;
    check(spate_bus_open(&config, &elsewhere, &err), &err);
    check(spate_bus_reader_open(elsewhere, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    while ((rc = spate_reader_next(r, &m, &err)) == SPATE_AGAIN && spate_clock_ms() < deadline)
        (void)!spate_reader_wait(r, 1000, &err);
    assert_int_equal(rc, SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, "bus.local.hot"));
    assert_non_null(strstr(err.text, other));
    spate_reader_close(r);
    spate_bus_close(elsewhere);
    spate_writer_close(w);
}

static void a_log_that_leaves_is_noticed(struct fixture *f, bool moved)
{
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_reader *r, *again;
    struct spate_message m;
    enum spate_rc rc;
    char id[64], topic[160];
    const int64_t deadline = spate_clock_ms() + 20000;

    struct spate_writer *w = open_writer(f);
    check(bus_log_publish(w, 1, 10, &acks, &err), &err);
    check(bus_log_settle(w, 10, &acks, &err), &err);
    spate_writer_close(w);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    snprintf(id, sizeof id, "%s", spate_reader_log_id(r));
    snprintf(topic, sizeof topic, "%s/log", f->scratch.path);
    if (moved) {
        char aside[180];

        snprintf(aside, sizeof aside, "%s-aside", topic);
        assert_int_equal(rename(topic, aside), 0);
    } else {
        bus_scratch_remove(topic);
    }
    bus_scratch_remove(f->scratch.hot);
    mkdir(f->scratch.hot, 0750);
    w = open_writer(f);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &again, &err), &err);
    assert_string_not_equal(spate_reader_log_id(again), id);
    while ((rc = spate_reader_next(r, &m, &err)) != SPATE_FAIL && spate_clock_ms() < deadline)
        (void)!spate_reader_wait(r, 1000, &err);
    assert_int_equal(rc, SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL); /* trying again through the same descriptors never heals */
    assert_non_null(strstr(err.text, "removed or moved"));
    spate_reader_close(again);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void a_log_that_is_removed_and_made_anew_is_noticed(void **state)
{
    a_log_that_leaves_is_noticed(*state, false);
}

static void a_log_that_is_moved_and_made_anew_is_noticed(void **state)
{
    a_log_that_leaves_is_noticed(*state, true);
}

static long mapped_shared_kb(void)
{
    char line[128];
    long kb = -1;
    FILE *status = fopen("/proc/self/status", "r");

    assert_non_null(status);
    while (kb < 0 && fgets(line, sizeof line, status))
        if (strncmp(line, "RssShmem:", 9) == 0)
            kb = strtol(line + 9, NULL, 10);
    fclose(status);
    return kb;
}

/* Large segments must not count as a process' memory where nobody else has them mapped. (A container's
 * /dev/shm has 64 MiB in all.) */
static void what_was_passed_leaves_the_process(void **state)
{
    enum { RECORDS = 60000, SEGMENT = 32 << 20 }; /* some 22 MiB, in one segment */
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_reader *r;
    struct spate_message m;
    struct spate_writer *w;

    spate_bus_close(f->bus);
    f->scratch.config.local_segment_bytes = SEGMENT;
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    w = open_writer(f);
    check(bus_log_publish(w, 1, RECORDS, &acks, &err), &err);
    check(bus_log_settle(w, RECORDS, &acks, &err), &err);
    assert_true(spate_writer_end(w).at - SEGMENT > UINT64_C(18) << 20);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    for (uint64_t n = 1; n <= RECORDS; n++) {
        check(bus_log_next(r, &m, &err), &err);
        if (n % 1000 == 0)
            assert_int_equal(bus_log_number(&m), n);
    }
    /* Writer, archiver and reader keep two or three megabytes each. */
    assert_true(mapped_shared_kb() < 12 * 1024);
    spate_reader_close(r);
    spate_writer_close(w);
}

static void a_position_that_is_no_record_s_is_refused(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_reader *r;
    struct spate_message m;
    struct spate_writer *w = open_writer(f);

    check(bus_log_publish(w, 1, 100, &acks, &err), &err);
    check(bus_log_settle(w, 100, &acks, &err), &err);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE,
                                (struct spate_start){.from = SPATE_START_AT, .pos = {.at = CAP + 1}}, &r,
                                &err),
          &err);
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    spate_reader_close(r);
    spate_writer_close(w);
}

/* A volatile topic keeps two segments; whoever is slower is told exactly what he missed. */
static void an_overtaken_reader_gets_the_exact_gap(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};
    uint64_t n = 0, lost_to = 0;

    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE | SPATE_TOPIC_VOLATILE, &w, &err), &err);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_TIP, oldest, &r, &err), &err);
    check(bus_log_publish(w, 1, 10, &acks, &err), &err);
    for (int i = 0; i < 3; i++)
        check(bus_log_next(r, &m, &err), &err);
    const struct spate_bus_pos stood = m.next;
    assert_int_equal(spate_reader_seek(r, (struct spate_start){.from = SPATE_START_AT, .pos = stood}, &err),
                     SPATE_OK);
    check(bus_log_publish(w, 11, 20000, &acks, &err), &err);
    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(m.kind, SPATE_MESSAGE_GAP);
    assert_int_equal(m.pos.at, stood.at);
    lost_to = m.next.at;
    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(m.pos.at, lost_to);
    n = bus_log_number(&m);
    assert_true(n > 4);
    while (n < 20000) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), ++n);
    }
    assert_int_equal(acks.last, 0);
    spate_reader_close(r);
    spate_writer_close(w);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_full_disk_stops_publishing_and_heals),
        TEST(a_full_shared_memory_is_no_sigbus),
        TEST(a_shared_memory_without_room_is_said_at_open),
        TEST(a_container_s_shared_memory_is_enough),
        TEST(a_failed_sync_is_written_again_into_a_new_file),
        TEST(a_sync_that_finds_no_room_is_written_again_as_well),
        TEST(a_disk_that_fails_twice_ends_all_promises),
        TEST(a_damaged_record_is_refused_with_its_position),
        TEST(foreign_segments_are_refused),
        TEST(a_cut_segment_in_shared_memory_can_be_made_anew),
        TEST(a_cut_segment_can_be_moved_away),
        TEST(random_damage_never_crashes_a_reader),
        TEST(a_damaged_manifest_stops_everybody),
        TEST(a_reader_in_another_shared_memory_is_told_so),
        TEST(a_log_that_is_removed_and_made_anew_is_noticed),
        TEST(a_log_that_is_moved_and_made_anew_is_noticed),
        TEST(what_was_passed_leaves_the_process),
        TEST(a_position_that_is_no_record_s_is_refused),
        TEST(an_overtaken_reader_gets_the_exact_gap),
    };
    return cmocka_run_group_tests_name("bus_faults", tests, NULL, NULL);
}
