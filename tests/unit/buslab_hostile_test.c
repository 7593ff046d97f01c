/* tests/unit/buslab_hostile_test.c - L13: files of a bus that are hostile or damaged are refused, and no byte
 * from outside of a segment is handed out. The control takes the checks of lengths away.
 * tests/fuzz/bus_segment_fuzz.c looks for more of them; SEED and HOSTILE_TRIALS here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "bus/local/place.h"
#include "core/log.h"
#include "tests/support/bus_hostile.h"

static struct hostile hostile;

static int set_up(void **state)
{
    (void)state;
    spate_log_level_set(SPATE_LOG_ERROR);
    hostile_init(&hostile);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    hostile_fini(&hostile);
    return 0;
}

static struct hostile_file *file_named(const char *name, bool hot)
{
    for (size_t i = 0; i < hostile.count; i++)
        if (hostile.files[i].hot == hot && strcmp(hostile.files[i].name, name) == 0)
            return &hostile.files[i];
    fail_msg("there is no file %s", name);
    return NULL;
}

static void put(const struct hostile_file *file, size_t at, const void *bytes, size_t len)
{
    const int fd = openat(hostile.root[file->hot], file->name, O_WRONLY);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, (off_t)at), (ssize_t)len);
    close(fd);
}

/* What a reader says of it. */
static enum spate_rc read_all(enum spate_visibility see, uint64_t *count, struct spate_err *err)
{
    struct spate_bus *bus;
    struct spate_reader *r;
    struct spate_message m;
    uint64_t last = 0;

    *count = 0;
    *err = (struct spate_err){0};
    hostile_good(spate_bus_open(&hostile.scratch.config, &bus, err), err);
    enum spate_rc rc =
        spate_bus_reader_open(bus, "log", see, (struct spate_start){.from = SPATE_START_OLDEST}, &r, err);
    if (rc == SPATE_OK) {
        while ((rc = spate_reader_next(r, &m, err)) == SPATE_OK && hostile.violations == 0) {
            hostile_touch(&hostile, &m, &last);
            ++*count;
        }
        spate_reader_close(r);
    }
    spate_bus_close(bus);
    return rc;
}

static void refused(const struct hostile_file *file, const char *word)
{
    struct spate_err err;
    uint64_t count;
    const enum spate_visibility see[] = {SPATE_SEE_TIP, SPATE_SEE_DURABLE};

    for (int i = 0; i < 2; i++) {
        const enum spate_rc rc = read_all(see[i], &count, &err);
        if (rc != SPATE_FAIL || !strstr(err.text, word))
            fail_msg("%s: rc %d after %llu records, \"%s\", expected \"%s\"", file->name, rc,
                     (unsigned long long)count, err.text, word);
    }
    assert_int_equal(hostile.violations, 0);
    hostile_restore(&hostile);
}

#define ARCHIVED "log/0000000000100000.seg" /* full, in the archive alone */
#define HOT      "log/0000000000200000.seg"

static void L13_lengths_that_leave_the_segment_are_refused(void **state)
{
    static const uint32_t lengths[] = {0xffffffff, 0x7fffffff, 0x100000, 0xfffe1, 0x80000000};
    const struct hostile_file *files[] = {file_named(ARCHIVED, false), file_named(HOT, true)};
    uint64_t count;
    struct spate_err err;

    (void)state;
    for (size_t f = 0; f < 2; f++) {
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            const uint64_t commit = spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, lengths[i]);
            const uint64_t pad = spate_local_word(SPATE_LOCAL_PAD, 0, 1, lengths[i]);
            put(files[f], SPATE_LOCAL_HEADER, &commit, sizeof commit);
            refused(files[f], "damaged");
            if (lengths[i] == 0x100000)
                continue; /* as a pad it covers the whole segment */
            put(files[f], SPATE_LOCAL_HEADER, &pad, sizeof pad);
            refused(files[f], "damaged");
        }
        const uint16_t keylen = 0xffff; /* of a record that is shorter */
        put(files[f], SPATE_LOCAL_HEADER + offsetof(struct spate_local_record, keylen), &keylen,
            sizeof keylen);
        refused(files[f], "damaged");
        for (unsigned s = 5; s < 256; s += 50) {
            const uint64_t word = (uint64_t)s << 56 | 64;
            put(files[f], SPATE_LOCAL_HEADER, &word, sizeof word);
            refused(files[f], "damaged");
        }
    }
    /* The control: the same, believed. */
    const uint64_t commit = spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, 0x00180000);
    put(files[1], SPATE_LOCAL_HEADER, &commit, sizeof commit);
    spate_broken = SPATE_BROKEN_TRUST_LENGTH;
    (void)read_all(SPATE_SEE_TIP, &count, &err);
    spate_broken = SPATE_BROKEN_NOTHING;
    assert_true(hostile.violations > 0);
    hostile.violations = 0;
    hostile_restore(&hostile);
}

static void L13_headers_of_other_versions_and_machines_are_refused(void **state)
{
    const struct hostile_file *segments[] = {file_named(ARCHIVED, false), file_named(HOT, true)};
    const struct {
        size_t at;
        uint64_t value;
        const char *word;
    } fields[] = {{0, SPATE_LOCAL_SEGMENT_MAGIC + 1, "version"},
                  {0, __builtin_bswap64(SPATE_LOCAL_SEGMENT_MAGIC), "byte order"},
                  {0, 0, "damaged"},
                  {8, 0x500000, "damaged"},
                  {16, 1 << 30, "damaged"}};

    (void)state;
    for (size_t f = 0; f < 2; f++)
        for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
            put(segments[f], fields[i].at, &fields[i].value, 8);
            refused(segments[f], fields[i].word);
            if (fields[i].at == 0)
                continue;
            /* With a checksum that is right: another segment's file under this name. */
            put(segments[f], fields[i].at, &fields[i].value, 8);
            const int fd = openat(hostile.root[segments[f]->hot], segments[f]->name, O_RDWR);
            hostile_header_crc(fd, segments[f]);
            close(fd);
            refused(segments[f], "renamed or mixed");
        }
    const struct hostile_file *ctl = file_named("log/ctl", true);
    uint64_t magic = SPATE_LOCAL_CTL_MAGIC + 1;
    put(ctl, 0, &magic, sizeof magic);
    refused(ctl, "version");
    magic = __builtin_bswap64(SPATE_LOCAL_CTL_MAGIC);
    put(ctl, 0, &magic, sizeof magic);
    refused(ctl, "byte order");
}

static void rewrite(const struct hostile_file *file, const char *from, const char *to)
{
    char text[1024], *at;
    const int fd = openat(hostile.root[file->hot], file->name, O_RDWR | O_TRUNC);
    size_t len = file->len;

    assert_true(fd >= 0 && len + 64 < sizeof text);
    memcpy(text, file->bytes, len);
    text[len] = '\0';
    *strstr(text, "crc ") = '\0';
    at = strstr(text, from);
    if (!at)
        fail_msg("%s has no \"%s\"", file->name, from);
    memmove(at + strlen(to), at + strlen(from), strlen(at + strlen(from)) + 1);
    memcpy(at, to, strlen(to));
    len = strlen(text);
    snprintf(text + len, sizeof text - len, "crc %08x\n", spate_crc32c(0, text, len));
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void L13_small_files_of_other_versions_and_machines_are_refused(void **state)
{
    const struct hostile_file *meta = file_named("bus.meta", true),
                              *manifest = file_named("log/manifest", false);

    (void)state;
    rewrite(meta, "spate-local-bus 1", "spate-local-bus 2");
    refused(meta, "another version");
    rewrite(meta, "order little", "order big");
    refused(meta, "byte order");
    rewrite(meta, "order little", "odder little");
    refused(meta, "byte order");
    rewrite(manifest, "spate-local-topic 1", "spate-local-topic 2");
    refused(manifest, "version");
    rewrite(manifest, "cap 1048576", "cap 1048577");
    refused(manifest, "damaged");
    rewrite(manifest, "cap 1048576", "cap 524288"); /* every segment is another one now */
    refused(manifest, "expected");
    rewrite(manifest, "highest ", "highest f");
    refused(manifest, "damaged");
    rewrite(manifest, "first 0000000000100000", "first 0000000000100001");
    refused(manifest, "damaged");
}

/* A file of another log between ours: a reader that looked for the nearest segment went in circles. */
static void L13_a_segment_where_none_can_be_is_refused(void **state)
{
    (void)state;
    assert_int_equal(renameat(hostile.root[0], ARCHIVED, hostile.root[0], "log/0000000000180000.seg"), 0);
    refused(file_named(ARCHIVED, false), "renamed or mixed");
}

/* Any patches at all. */
static void L13_random_damage_crashes_nobody(void **state)
{
    const char *env_seed = getenv("SEED"), *env_trials = getenv("HOSTILE_TRIALS");
    uint64_t seed = env_seed ? strtoull(env_seed, NULL, 10) : (uint64_t)spate_clock_wall_us();
    const int trials = env_trials ? atoi(env_trials) : 100;

    (void)state;
    print_message("SEED=%llu\n", (unsigned long long)seed);
    for (int t = 0; t < trials; t++) {
        unsigned char data[256];
        size_t len = 0;
        for (uint64_t patches = 1 + bus_log_random(&seed) % 4; patches > 0; patches--) {
            data[len++] = (unsigned char)bus_log_random(&seed);
            data[len++] = (unsigned char)bus_log_random(&seed);
            for (uint64_t n = 4 + bus_log_random(&seed) % 20; n > 0; n--)
                data[len++] = bus_log_random(&seed) % 3 ? 0 : (unsigned char)bus_log_random(&seed);
        }
        hostile_trial(&hostile, data, len);
        assert_int_equal(hostile.violations, 0);
    }
}

static void file_systems_of_other_machines_are_refused(void **state)
{
    static const uint32_t remote[] = {0x6969,     0x01021997, 0x65735546, 0x517B,     0xFF534D42,
                                      0xFE534D42, 0x00C36400, 0x5346414F, 0x01161970, 0x7461636F,
                                      0x0BD00BD0, 0x47504653, 0x19830326, 0x786F4256, 0xBACBACBC};
    static const uint32_t here[] = {0x01021994, 0xEF53, 0x58465342, 0x9123683E, 0x2FC12FC1, 0x794C7630};

    (void)state;
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        assert_non_null(spate_local_place_remote(remote[i]));
    for (size_t i = 0; i < sizeof here / sizeof here[0]; i++)
        assert_null(spate_local_place_remote(here[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L13_lengths_that_leave_the_segment_are_refused),
        cmocka_unit_test(L13_headers_of_other_versions_and_machines_are_refused),
        cmocka_unit_test(L13_small_files_of_other_versions_and_machines_are_refused),
        cmocka_unit_test(L13_a_segment_where_none_can_be_is_refused),
        cmocka_unit_test(L13_random_damage_crashes_nobody),
        cmocka_unit_test(file_systems_of_other_machines_are_refused),
    };
    return cmocka_run_group_tests_name("buslab_hostile", tests, set_up, tear_down);
}
