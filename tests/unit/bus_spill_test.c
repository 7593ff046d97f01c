/* tests/unit/bus_spill_test.c - values that no segment takes: files of their own, whole or not at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/segment.h"
#include "bus/local/spill.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define CAP    (UINT64_C(1) << 20)
#define INLINE (CAP / 4) /* the longest key plus value that stands in a segment */
#define MOST   (6u << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct fixture {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    const char *mounted;
    char *value; /* MOST bytes */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct spate_err err = {0};

    f->value = malloc(MOST);
    bus_scratch_init(&f->scratch, (int64_t)CAP);
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_bus_close(f->bus);
    if (f->mounted)
        umount2(f->mounted, MNT_DETACH);
    bus_scratch_fini(&f->scratch);
    free(f->value);
    free(f);
    return 0;
}

/* The lengths that matter, and small ones between them. */
static size_t length_of(uint64_t n)
{
    static const size_t lengths[] = {40,      INLINE - 3, INLINE - 2, 100,        CAP - 32,   CAP,
                                     CAP + 1, 7,          MOST,       4096 * 100, INLINE + 1, 60};

    return lengths[n % (sizeof lengths / sizeof lengths[0])];
}

static struct spate_slice fill_value(char *value, uint64_t n)
{
    uint64_t seed = n;
    const size_t len = length_of(n);

    for (size_t i = 0; i < len; i += 8) {
        const uint64_t word = bus_log_random(&seed);
        memcpy(value + i, &word, len - i < 8 ? len - i : 8);
    }
    return spate_slice(value, len);
}

static struct spate_writer *open_writer(struct fixture *f, unsigned flags)
{
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE | flags, &w, &err), &err);
    return w;
}

static struct spate_reader *open_reader(struct fixture *f, enum spate_visibility see)
{
    struct spate_reader *r = NULL;
    struct spate_err err = {0};

    check(spate_bus_reader_open(f->bus, "log", see, oldest, &r, &err), &err);
    return r;
}

static enum spate_rc offer(struct fixture *f, struct spate_writer *w, uint64_t n, size_t *taken,
                           struct spate_err *err)
{
    const struct spate_record record = {
        .key = {.at = "key", .len = 3}, .value = fill_value(f->value, n), .ts_us = (int64_t)n, .token = n};

    return spate_writer_publish(w, &record, 1, taken, err);
}

static void publish(struct fixture *f, struct spate_writer *w, uint64_t first, uint64_t last,
                    struct bus_log_acks *acks)
{
    struct spate_err err = {0};

    for (uint64_t n = first; n <= last; n++) {
        size_t taken = 0;
        while (taken == 0) {
            if (offer(f, w, n, &taken, &err) == SPATE_FAIL)
                fail_msg("record %llu: %s", (unsigned long long)n, err.text);
            if (spate_writer_poll(w, taken ? 0 : 100, bus_log_acked, acks, &err) == SPATE_FAIL)
                fail_msg("record %llu: %s", (unsigned long long)n, err.text);
        }
    }
}

static void expect(struct fixture *f, struct spate_reader *r, uint64_t n)
{
    struct spate_message m;
    struct spate_err err = {0};

    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_int_equal(m.ts_us, n);
    assert_true(spate_slice_is(m.key, "key"));
    assert_int_equal(m.value.len, length_of(n));
    assert_true(spate_slice_eq(m.value, fill_value(f->value, n)));
}

static void expect_all(struct fixture *f, enum spate_visibility see, uint64_t first, uint64_t last)
{
    struct spate_reader *r = open_reader(f, see);
    struct spate_message m;
    struct spate_err err = {0};

    for (uint64_t n = first; n <= last; n++)
        expect(f, r, n);
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    spate_reader_close(r);
}

/* The files of the topic in one of the roots whose names end so; the path of the last one. */
static int files(const char *root, const char *end, char *path)
{
    char folder[256];
    int count = 0;
    const struct dirent *entry;

    snprintf(folder, sizeof folder, "%s/log", root);
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        const size_t len = strlen(entry->d_name), most = strlen(end);
        if (len < most || strcmp(entry->d_name + len - most, end) != 0)
            continue;
        count++;
        if (path)
            snprintf(path, 512, "%s/%s", folder, entry->d_name);
    }
    closedir(dir);
    return count;
}

static void values_of_every_length_pass(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f, 0);
    struct spate_reader *tip = open_reader(f, SPATE_SEE_TIP);

    assert_true(spate_writer_max_record(w) >= (size_t)1 << 30);
    publish(f, w, 1, 48, &acks);
    for (uint64_t n = 1; n <= 48; n++)
        expect(f, tip, n);
    check(bus_log_settle(w, 48, &acks, &err), &err);
    assert_false(acks.broken);
    assert_int_equal(files(f->scratch.path, ".spill", NULL), 48 / 12 * 7);
    assert_int_equal(files(f->scratch.path, ".tmp", NULL), 0);
    expect_all(f, SPATE_SEE_DURABLE, 1, 48);
    spate_reader_close(tip);
    spate_writer_close(w);
    bus_scratch_reboot(&f->scratch);
    expect_all(f, SPATE_SEE_DURABLE, 1, 48); /* what the archive alone holds */
    w = open_writer(f, 0);                   /* and after its recovery */
    publish(f, w, 49, 60, &acks);
    check(bus_log_settle(w, 60, &acks, &err), &err);
    expect_all(f, SPATE_SEE_DURABLE, 1, 60);
    spate_writer_close(w);
}

/* Small ones around a large one, all offered at once. */
static void a_large_one_among_small_ones_keeps_its_place(void **state)
{
    struct fixture *f = *state;
    struct spate_record records[9];
    char *values[9];
    struct spate_writer *w = open_writer(f, 0);
    struct spate_err err = {0};
    size_t taken = 0;

    for (uint64_t n = 0; n < 9; n++) {
        values[n] = malloc(MOST);
        records[n] = (struct spate_record){.key = {.at = "key", .len = 3},
                                           .value = fill_value(values[n], 1 + n),
                                           .ts_us = (int64_t)(1 + n),
                                           .token = 1 + n};
    }
    check(spate_writer_publish(w, records, 9, &taken, &err), &err);
    assert_int_equal(taken, 9);
    expect_all(f, SPATE_SEE_TIP, 1, 9);
    for (int i = 0; i < 9; i++)
        free(values[i]);
    spate_writer_close(w);
}

static void a_volatile_topic_keeps_them_in_shared_memory_and_forgets_them(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f, SPATE_TOPIC_VOLATILE);
    struct spate_reader *r = open_reader(f, SPATE_SEE_TIP);
    struct spate_message m;

    for (uint64_t n = 1; n <= 12; n++) {
        publish(f, w, n, n, &acks);
        expect(f, r, n);
    }
    assert_int_equal(files(f->scratch.path, ".spill", NULL), 0);
    assert_true(files(f->scratch.hot, ".spill", NULL) > 0);
    check(spate_reader_seek(
              r, (struct spate_start){.from = SPATE_START_AT, .pos = {.at = spate_writer_end(w).at}}, &err),
          &err);
    publish(f, w, 13, 12 * 20, &acks);
    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(m.kind, SPATE_MESSAGE_GAP);
    /* Two segments of a megabyte, and no file of a record that is gone. */
    uint64_t first = m.next.at;
    assert_true(files(f->scratch.hot, ".spill", NULL) <= 2 * 12);
    while (bus_log_next(r, &m, &err) == SPATE_OK && m.kind == SPATE_MESSAGE_RECORD) {
        assert_true(m.pos.at >= first);
        assert_true(spate_slice_eq(m.value, fill_value(f->value, (uint64_t)m.ts_us)));
        if (m.ts_us == 12 * 20)
            break;
    }
    assert_int_equal(m.ts_us, 12 * 20);
    spate_reader_close(r);
    spate_writer_close(w);
}

/* Publishes one that spills and says where its file is. */
static void publish_one(struct fixture *f, char path[512])
{
    struct spate_writer *w = open_writer(f, 0);
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};

    publish(f, w, 6, 7, &acks);
    check(bus_log_settle(w, 7, &acks, &err), &err);
    assert_int_equal(files(f->scratch.path, ".spill", path), 1);
    spate_writer_close(w);
}

static void refused(struct fixture *f, const char *words)
{
    struct spate_reader *r = open_reader(f, SPATE_SEE_DURABLE);
    struct spate_message m;
    struct spate_err err = {0};

    assert_int_equal(bus_log_next(r, &m, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    if (!strstr(err.text, words) || !strstr(err.text, "damaged at position") || !strstr(err.text, ".spill"))
        fail_msg("no word of \"%s\": %s", words, err.text);
    spate_reader_close(r);
}

static void overwrite(const char *path, off_t at, const void *bytes, size_t len)
{
    const int fd = open(path, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, at), (ssize_t)len);
    close(fd);
}

static void a_file_that_is_not_what_was_written_is_refused(void **state)
{
    struct fixture *f = *state;
    char path[512], away[520];
    struct spate_writer *w;

    publish_one(f, path);
    w = open_writer(f, 0);
    snprintf(away, sizeof away, "%s.away", path);
    for (int attached = 1; attached >= 0; attached--) {
        assert_int_equal(rename(path, away), 0);
        refused(f, "is gone");
        assert_int_equal(symlink(away, path), 0);
        struct spate_reader *r = open_reader(f, SPATE_SEE_DURABLE);
        struct spate_message m;
        struct spate_err err = {0};
        assert_int_equal(bus_log_next(r, &m, &err), SPATE_FAIL); /* nobody is led elsewhere */
        assert_int_equal(err.verdict, SPATE_FATAL);
        spate_reader_close(r);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0700), 0);
        refused(f, "no file");
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(rename(away, path), 0);
        expect_all(f, SPATE_SEE_DURABLE, 6, 7);

        assert_int_equal(truncate(path, (off_t)length_of(6) - 1), 0);
        refused(f, "was cut");
        assert_int_equal(truncate(path, (off_t)length_of(6)), 0);
        refused(f, "other bytes");
        fill_value(f->value, 6);
        overwrite(path, 0, f->value, length_of(6));
        expect_all(f, SPATE_SEE_DURABLE, 6, 7);
        assert_int_equal(truncate(path, (off_t)length_of(6) + 1), 0);
        refused(f, "was cut");
        assert_int_equal(truncate(path, (off_t)length_of(6)), 0);
        if (attached) {
            spate_writer_close(w);
            bus_scratch_reboot(&f->scratch);
        }
    }
    expect_all(f, SPATE_SEE_DURABLE, 6, 7);
}

/* Somebody cuts it while a reader has it: no signal kills, and the reader says so. */
static void a_file_that_is_cut_while_it_is_read_is_noticed(void **state)
{
    struct fixture *f = *state;
    char path[512];
    struct spate_message m;
    struct spate_err err = {0};

    publish_one(f, path);
    struct spate_reader *r = open_reader(f, SPATE_SEE_DURABLE);
    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(truncate(path, 4096), 0);
    uint64_t sum = 0;
    for (size_t i = 0; i < m.value.len; i += 512)
        sum += (unsigned char)m.value.at[i];
    assert_true(sum > 0);
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "was cut while"));
    spate_reader_close(r);
}

/* A record that says something else of its file than any writer says. */
static void a_record_that_lies_of_its_file_is_refused(void **state)
{
    struct fixture *f = *state;
    char path[512], segment[512], name[SPATE_LOCAL_FILE];
    struct spate_local_spill_ref ref;
    struct spate_local_record head;
    unsigned char payload[3 + sizeof ref];

    publish_one(f, path);
    spate_local_segment_name(CAP, name);
    snprintf(segment, sizeof segment, "%s/log/%s", f->scratch.path, name);
    const int fd = open(segment, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &head, sizeof head, SPATE_LOCAL_HEADER), sizeof head);
    assert_int_equal(pread(fd, payload, sizeof payload, SPATE_LOCAL_HEADER + sizeof head), sizeof payload);
    assert_int_equal(head.type, SPATE_LOCAL_SPILL);
    memcpy(&ref, payload + 3, sizeof ref);
    assert_int_equal(ref.length, length_of(6));
    static const struct {
        uint64_t length;
        uint32_t zero;
        uint8_t type;
        uint32_t shorter;
    } lies[] = {{0, 0, SPATE_LOCAL_SPILL, 0},
                {UINT64_MAX, 0, SPATE_LOCAL_SPILL, 0},
                {UINT64_C(1) << 31, 0, SPATE_LOCAL_SPILL, 0},
                {CAP + 1, 7, SPATE_LOCAL_SPILL, 0},
                {CAP + 1, 0, 2, 0},
                {CAP + 1, 0, 255, 0},
                {CAP + 1, 0, SPATE_LOCAL_SPILL, 1},
                {CAP + 1, 0, SPATE_LOCAL_SPILL, 16}};
    struct spate_writer *w = open_writer(f, 0); /* else a recovery would cut there */
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct spate_local_record lie = head;
        struct spate_local_spill_ref other = {.length = lies[i].length, .crc = ref.crc, .zero = lies[i].zero};
        const uint32_t len = (uint32_t)sizeof payload - lies[i].shorter;
        memcpy(payload + 3, &other, sizeof other);
        lie.type = lies[i].type;
        lie.word = spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, len);
        lie.crc = spate_local_record_crc(&lie, CAP, len, payload, payload + 3, len - 3);
        assert_int_equal(pwrite(fd, &lie, sizeof lie, SPATE_LOCAL_HEADER), sizeof lie);
        assert_int_equal(pwrite(fd, payload, sizeof payload, SPATE_LOCAL_HEADER + sizeof lie),
                         sizeof payload);
        spate_writer_close(w);
        bus_scratch_reboot(&f->scratch); /* so that the archive is read */
        struct spate_reader *r = open_reader(f, SPATE_SEE_DURABLE);
        struct spate_message m;
        struct spate_err err = {0};
        const enum spate_rc rc = spate_reader_next(r, &m, &err);
        assert_true(rc != SPATE_OK); /* a log that ends before it, or one that is damaged */
        spate_reader_close(r);
        w = NULL;
    }
    close(fd);
}

static void nothing_is_left_of_a_value_that_found_no_room(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    size_t taken = 0;

    if (mount("tmpfs", f->scratch.path, "tmpfs", 0, "size=7m") != 0) {
        print_message("skipped: mounting a small file system needs root: %s\n", strerror(errno));
        skip();
        return;
    }
    f->mounted = f->scratch.path;
    struct spate_writer *w = open_writer(f, 0);
    publish(f, w, 5, 6, &acks); /* two megabytes are taken */
    for (int i = 0; i < 5; i++) {
        assert_int_equal(offer(f, w, 8, &taken, &err), SPATE_AGAIN); /* six more */
        assert_int_equal(taken, 0);
        assert_int_equal(files(f->scratch.path, ".tmp", NULL), 0);
    }
    assert_int_equal(mount("tmpfs", f->scratch.path, "tmpfs", MS_REMOUNT, "size=32m"), 0);
    publish(f, w, 7, 20, &acks); /* heals by itself */
    check(bus_log_settle(w, 20, &acks, &err), &err);
    assert_false(acks.broken);
    expect_all(f, SPATE_SEE_DURABLE, 5, 20);
    spate_writer_close(w);
}

/* The last bytes that a power cut left speak of a value that is not there, or not whole: they do not count,
 * and neither does the file of a record that never came to be. */
static void a_recovery_ends_the_log_before_a_value_that_is_not_there(void **state)
{
    struct fixture *f = *state;
    char path[800], orphan[560];
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f, 0);

    publish(f, w, 1, 3, &acks);
    publish(f, w, 6, 7, &acks); /* 6 spills */
    check(bus_log_settle(w, 7, &acks, &err), &err);
    assert_int_equal(files(f->scratch.path, ".spill", path), 2);
    spate_writer_close(w);
    /* The younger of both. */
    char older[512];
    DIR *dir;
    const struct dirent *entry;
    snprintf(older, sizeof older, "%s/log", f->scratch.path);
    assert_non_null(dir = opendir(older));
    while ((entry = readdir(dir)) != NULL)
        if (strstr(entry->d_name, ".spill") && strcmp(entry->d_name, strrchr(path, '/') + 1) > 0)
            snprintf(path, sizeof path, "%s/%s", older, entry->d_name);
    closedir(dir);
    overwrite(path, 100, "torn", 4);
    snprintf(orphan, sizeof orphan, "%s/log/%016llx.spill", f->scratch.path,
             (unsigned long long)(3 * CAP + 64));
    overwrite(path, 0, "torn", 4);
    close(open(orphan, O_CREAT | O_WRONLY, 0600));
    bus_scratch_reboot(&f->scratch);
    w = open_writer(f, 0);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access(orphan, F_OK), 0);
    expect_all(f, SPATE_SEE_DURABLE, 1, 3);
    memset(&acks, 0, sizeof acks);
    publish(f, w, 4, 12, &acks);
    check(bus_log_settle(w, 12, &acks, &err), &err);
    expect_all(f, SPATE_SEE_DURABLE, 1, 12);
    spate_writer_close(w);
}

/* Many writers: one opens while another is making a file. */
static void a_sweep_leaves_what_somebody_is_making(void **state)
{
    struct fixture *f = *state;
    char name[SPATE_LOCAL_TEMP], other[SPATE_LOCAL_TEMP];
    const int dir = open(f->scratch.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int fd = spate_local_temp_make(dir, "spill", name);

    assert_true(dir >= 0 && fd >= 0);
    close(spate_local_temp_make(dir, "spill", other)); /* whoever made it is dead */
    spate_local_segment_sweep(dir);
    assert_int_equal(faccessat(dir, name, F_OK, 0), 0);
    assert_int_not_equal(faccessat(dir, other, F_OK, 0), 0);
    close(fd);
    spate_local_segment_sweep(dir);
    assert_int_not_equal(faccessat(dir, name, F_OK, 0), 0);
    close(dir);
}

static void what_no_file_takes_is_refused(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w = open_writer(f, 0);
    const size_t most = spate_writer_max_record(w);
    struct spate_err err = {0};
    size_t taken = 9;

    for (int key = 0; key < 2; key++) { /* their bytes are not looked at */
        const struct spate_record record = {.key = spate_slice("k", (size_t)key),
                                            .value = spate_slice(f->value, most + 1 - (size_t)key)};
        assert_int_equal(spate_writer_publish(w, &record, 1, &taken, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        assert_int_equal(taken, 0);
    }
    assert_int_equal(files(f->scratch.path, ".tmp", NULL), 0);
    spate_writer_close(w);
}

/* Retention takes whole segments, so none may tell of more than its share. */
static void a_segment_tells_of_so_many_bytes_and_no_more(void **state)
{
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_writer *w = open_writer(f, 0);
    const int dir = open(f->scratch.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int log = openat(dir, "log", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    publish(f, w, 1, 60, &acks); /* five of six megabytes, and others */
    check(bus_log_settle(w, 60, &acks, &err), &err);
    uint64_t all = 0;
    for (uint64_t base = CAP; base <= spate_writer_end(w).at; base += CAP) {
        const uint64_t bytes = spate_local_spill_bytes(log, base, base + CAP);
        assert_true(bytes <= 4 * CAP || bytes < MOST + 8192); /* or one that is larger */
        all += bytes;
    }
    assert_true(all > 5 * MOST);
    assert_int_equal(all, spate_local_spill_bytes(log, 0, UINT64_MAX));
    close(log);
    close(dir);
    spate_writer_close(w);
    expect_all(f, SPATE_SEE_DURABLE, 1, 60);
}

/* L6 for large values: a reader has their segment mapped still, and their files are gone. */
static void L6_what_retention_took_is_a_gap(void **state)
{
    enum { LAST = 160 };
    struct fixture *f = *state;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    struct spate_message m;
    uint64_t n = 1, gaps = 0, lost = 0, next = 0;
    bool after_gap = false;

    spate_bus_close(f->bus);
    f->scratch.config.local_retention_bytes = 24 << 20;
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    struct spate_writer *w = open_writer(f, 0);
    publish(f, w, 1, 12, &acks);
    check(bus_log_settle(w, 12, &acks, &err), &err);
    struct spate_reader *r = open_reader(f, SPATE_SEE_DURABLE);
    check(bus_log_next(r, &m, &err), &err);
    next = m.next.at;
    publish(f, w, 13, LAST, &acks);
    check(bus_log_settle(w, LAST, &acks, &err), &err);
    while (n < LAST) {
        check(bus_log_next(r, &m, &err), &err);
        if (m.kind == SPATE_MESSAGE_GAP) {
            assert_false(after_gap);
            after_gap = true;
            gaps++;
            assert_int_equal(m.pos.at, next);
        } else {
            const uint64_t seen = (uint64_t)m.ts_us;
            assert_true(after_gap ? seen > n : seen == n + 1);
            assert_true(m.pos.at == next || (!after_gap && m.pos.at > next));
            assert_int_equal(m.value.len, length_of(seen));
            assert_true(spate_slice_eq(m.value, fill_value(f->value, seen)));
            lost += seen - n - 1;
            n = seen;
            after_gap = false;
        }
        next = m.next.at;
    }
    assert_true(gaps > 0 && lost > 0);
    assert_true(files(f->scratch.path, ".spill", NULL) < LAST / 12 * 7);
    spate_reader_close(r);
    spate_writer_close(w);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* First: the test runner takes SIGBUS for itself before each test, and the bus only once. */
        TEST(a_file_that_is_cut_while_it_is_read_is_noticed),
        TEST(values_of_every_length_pass),
        TEST(a_large_one_among_small_ones_keeps_its_place),
        TEST(a_volatile_topic_keeps_them_in_shared_memory_and_forgets_them),
        TEST(a_file_that_is_not_what_was_written_is_refused),
        TEST(a_record_that_lies_of_its_file_is_refused),
        TEST(nothing_is_left_of_a_value_that_found_no_room),
        TEST(a_recovery_ends_the_log_before_a_value_that_is_not_there),
        TEST(a_sweep_leaves_what_somebody_is_making),
        TEST(what_no_file_takes_is_refused),
        TEST(a_segment_tells_of_so_many_bytes_and_no_more),
        TEST(L6_what_retention_took_is_a_gap),
    };
    return cmocka_run_group_tests_name("bus_spill", tests, NULL, NULL);
}
