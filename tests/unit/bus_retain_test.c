/* tests/unit/bus_retain_test.c - what retention takes and what it leaves: by age, by bytes, with spill files,
 * after a kill in the middle, with a wrong clock, and for whom it holds (LOCALBUS 5.3, 5.4). One step at a
 * time, while nobody writes; together with writers and readers it is L6 and L7 (buslab_retain_test.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/retain.h"
#include "bus/local/segment.h"
#include "core/hash.h"
#include "core/log.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP      (UINT64_C(1) << 20)
#define SEGMENTS 6
#define HOUR_NS  INT64_C(3600000000000)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct fixture {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_local_place place;
    struct spate_local_topic topic;
    struct spate_local_retain retain;
    char logged[8192];
};

static void keep_line(void *arg, const char *line, size_t len)
{
    struct fixture *f = arg;
    const size_t at = strlen(f->logged);

    snprintf(f->logged + at, sizeof f->logged - at, "%.*s", (int)len, line);
}

/* A log of SEGMENTS whole segments and one that is begun; nobody writes, and the test is its steward. */
static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct bus_log_acks acks = {0};
    struct spate_writer *w;
    struct spate_err err = {0};

    bus_scratch_init(&f->scratch, (int64_t)CAP);
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    for (uint64_t n = 1; spate_writer_end(w).at < (SEGMENTS + 1) * CAP + CAP / 8; n += 16)
        check(bus_log_publish(w, n, n + 15, &acks, &err), &err);
    while (spate_writer_durable(w).at < spate_writer_end(w).at)
        assert_int_not_equal(spate_writer_poll(w, 100, bus_log_acked, &acks, &err), SPATE_FAIL);
    spate_writer_close(w);
    f->place = (struct spate_local_place){.path = f->scratch.path, .hot = f->scratch.hot};
    check(spate_local_topic_open(&f->topic, &f->place, "log", &err), &err);
    check(spate_local_topic_attach(&f->topic, true, &err), &err);
    spate_local_retain_init(&f->retain);
    spate_log_to(keep_line, f);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_log_to(NULL, NULL);
    spate_local_retain_fini(&f->retain);
    spate_local_topic_close(&f->topic);
    spate_bus_close(f->bus);
    bus_scratch_fini(&f->scratch);
    free(f);
    return 0;
}

/* What the topic is to keep. */
static void rule(struct fixture *f, int64_t ms, int64_t bytes, unsigned flags)
{
    struct spate_err err = {0};

    f->place.retention_ms = ms;
    f->place.retention_bytes = bytes;
    check(spate_local_retain_rule(&f->topic, flags, &err), &err);
}

static void step(struct fixture *f)
{
    struct spate_err err = {0};

    f->retain.next_ms = 0;
    check(spate_local_retain_step(&f->retain, &f->topic, &err), &err);
}

static void path_of(const struct fixture *f, uint64_t pos, const char *suffix, char out[300])
{
    snprintf(out, 300, "%s/log/%016" PRIx64 "%s", f->scratch.path, pos, suffix);
}

static bool there(const struct fixture *f, uint64_t pos, const char *suffix)
{
    char path[300];

    path_of(f, pos, suffix, path);
    return access(path, F_OK) == 0;
}

/* Segment i, counted from 1, was written so long ago. */
static void make_old(const struct fixture *f, uint64_t i, int64_t age_ns)
{
    const int64_t ns = spate_clock_wall_us() * 1000 - age_ns;
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                      {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}};
    char path[300];

    path_of(f, i * CAP, ".seg", path);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Segments 1..gone are away, everywhere, and nothing else is. */
static void expect_gone_at(struct fixture *f, uint64_t gone, int line)
{
    struct spate_local_topic topic;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    const uint64_t first = (gone + 1) * CAP;

    for (uint64_t i = 1; i <= SEGMENTS + 1; i++)
        if (there(f, i * CAP, ".seg") != (i > gone))
            fail_msg("line %d: segment %d of %d is%s there", line, (int)i, SEGMENTS + 1,
                     i > gone ? " not" : "");
    assert_int_equal(atomic_load(&f->topic.ctl->first), first);
    check(spate_local_topic_open(&topic, &f->place, "log", &err), &err);
    assert_int_equal(topic.manifest.first, first);
    spate_local_topic_close(&topic);
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    check(spate_reader_next(r, &m, &err), &err);
    assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
    assert_int_equal(m.pos.at, first);
    const struct spate_start at = {.from = SPATE_START_AT, .pos = {.at = CAP}};
    check(spate_reader_seek(r, at, &err), &err);
    check(spate_reader_next(r, &m, &err), &err);
    assert_int_equal(m.kind, gone ? SPATE_MESSAGE_GAP : SPATE_MESSAGE_RECORD);
    assert_int_equal(m.pos.at, CAP);
    if (gone)
        assert_int_equal(m.next.at, first);
    spate_reader_close(r);
}
#define expect_gone(f, gone) expect_gone_at((f), (gone), __LINE__)

static void a_log_that_nobody_rules_keeps_all(void **state)
{
    struct fixture *f = *state;

    f->topic.manifest.ruled = false;
    f->topic.manifest.retention_bytes = 1;
    struct spate_err err = {0};
    check(spate_local_manifest_write(&f->topic, &err), &err);
    step(f);
    expect_gone(f, 0);
}

static void the_oldest_go_when_there_are_too_many_bytes(void **state)
{
    struct fixture *f = *state;

    rule(f, 0, 10 << 20, 0);
    step(f);
    expect_gone(f, 0);
    rule(f, 0, 5 << 20, 0); /* of seven, 6 times 1 MiB + 4 KiB and a piece, four are below it */
    step(f);
    expect_gone(f, 2);
    assert_true(f->retain.kept.bytes <= 5 << 20);
    step(f);
    expect_gone(f, 2);
    assert_int_equal(atomic_load(&f->topic.ctl->gaps), 2);
}

static void the_newest_stays_whatever_is_said(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 1; i <= SEGMENTS + 1; i++)
        make_old(f, i, 9 * HOUR_NS);
    rule(f, 1, 1, 0);
    step(f);
    expect_gone(f, SEGMENTS);
    step(f);
    expect_gone(f, SEGMENTS);
}

static void what_is_too_old_goes(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 1; i <= 3; i++)
        make_old(f, i, 2 * HOUR_NS);
    rule(f, 3 * 3600000, 1 << 30, 0);
    assert_int_equal(spate_local_retain_ms(&f->topic.manifest), 3 * 3600000);
    step(f);
    expect_gone(f, 0);
    rule(f, 3600000, 1 << 30, 0);
    step(f);
    expect_gone(f, 3);
}

/* Written by a clock that was ahead, or seen by one that stepped back: nothing is older than itself. And what
 * lies behind a segment that stays, stays. */
static void a_clock_that_steps_back_removes_nothing(void **state)
{
    struct fixture *f = *state;

    make_old(f, 1, -1000 * HOUR_NS);
    for (uint64_t i = 2; i <= 4; i++)
        make_old(f, i, 2 * HOUR_NS);
    rule(f, 3600000, 0, 0);
    step(f);
    expect_gone(f, 0);
}

static void what_is_to_be_kept_is_kept(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 1; i <= SEGMENTS; i++)
        make_old(f, i, 9 * HOUR_NS);
    rule(f, 1000, 1, SPATE_TOPIC_KEEP);
    assert_true(spate_local_retain_ms(&f->topic.manifest) == INT64_MAX);
    step(f);
    expect_gone(f, 0);
    assert_false(f->retain.blocked);
}

static void by_default_half_of_the_file_system(void **state)
{
    struct fixture *f = *state;
    struct statvfs fs;

    rule(f, 0, 0, 0);
    assert_true(spate_local_retain_ms(&f->topic.manifest) == INT64_MAX);
    step(f);
    assert_int_equal(statvfs(f->scratch.path, &fs), 0);
    assert_int_equal(f->retain.limit, (uint64_t)fs.f_blocks * fs.f_frsize / 2);
    expect_gone(f, 0);
}

static void put_file(const struct fixture *f, uint64_t pos, const char *suffix, off_t size)
{
    char path[300];

    path_of(f, pos, suffix, path);
    const int fd = open(path, O_RDWR | O_CREAT, 0640);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    close(fd);
}

/* The bytes of a record beside its segment count with it, and go with it. */
static void spill_files_go_with_their_segment(void **state)
{
    struct fixture *f = *state;

    put_file(f, CAP, ".spill", 1 << 20);
    put_file(f, 2 * CAP + 640, ".spill", 30 << 20);
    put_file(f, 3 * CAP, ".spill", 1 << 20);
    put_file(f, 99 * CAP, ".spill", 64 << 20); /* of a record that is not archived yet */
    rule(f, 0, 40 << 20, 0);
    step(f);
    assert_int_equal(f->retain.kept.count, SEGMENTS + 1);
    assert_true(f->retain.kept.bytes > 38 << 20 && f->retain.kept.bytes < 40 << 20);
    expect_gone(f, 0);
    rule(f, 0, 38 << 20, 0);
    step(f); /* one is enough, since its spill file goes as well */
    expect_gone(f, 1);
    assert_false(there(f, CAP, ".spill"));
    assert_true(there(f, 2 * CAP + 640, ".spill"));
    rule(f, 0, 8 << 20, 0);
    step(f);
    expect_gone(f, 2);
    assert_false(there(f, 2 * CAP + 640, ".spill"));
    assert_true(there(f, 3 * CAP, ".spill") && there(f, 99 * CAP, ".spill"));
}

/* Killed after the manifest said so, before the files were gone. */
static void what_a_killed_predecessor_left_is_removed(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};

    rule(f, 0, 100 << 20, 0);
    f->topic.manifest.first = 3 * CAP;
    check(spate_local_manifest_write(&f->topic, &err), &err);
    f->topic.manifest.first = CAP;
    put_file(f, CAP + 64, ".spill", 10);
    step(f);
    expect_gone(f, 2);
    assert_false(there(f, CAP + 64, ".spill"));
}

/* Whoever owns a topic rules it; a guest's configuration changes nothing that is there. */
static void a_guest_rules_only_what_is_new(void **state)
{
    struct fixture *f = *state;

    rule(f, 0, 2 << 20, 0);
    rule(f, 0, 1, SPATE_TOPIC_SHARED | SPATE_TOPIC_CREATE);
    assert_int_equal(f->topic.manifest.retention_bytes, 2 << 20);
    rule(f, 0, 3 << 20, SPATE_TOPIC_SHARED | SPATE_TOPIC_RULE);
    assert_int_equal(f->topic.manifest.retention_bytes, 3 << 20);
    f->topic.manifest.ruled = false;
    rule(f, 5000, 0, SPATE_TOPIC_SHARED);
    struct spate_err err = {0};
    check(spate_local_manifest_read(&f->topic, &err), &err);
    assert_true(f->topic.manifest.ruled);
    assert_int_equal(f->topic.manifest.retention_ms, 5000);
}

/* The same of a topic with many writers, whoever works as its steward meanwhile. */
static void of_a_shared_topic_the_connectors_word_counts(void **state)
{
    struct fixture *f = *state;
    struct bus_scratch elsewhere = f->scratch;
    struct spate_writer *guest, *connector, *late;
    struct spate_local_topic topic;
    struct spate_bus *other;
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    const int64_t deadline = spate_clock_ms() + 10000;

    elsewhere.config.local_retention_ms = 1234567;
    check(spate_bus_open(&elsewhere.config, &other, &err), &err);
    check(spate_bus_writer_open(f->bus, "talk", SPATE_TOPIC_SHARED | SPATE_TOPIC_CREATE, &guest, &err), &err);
    check(bus_log_publish(guest, 1, 20, &acks, &err), &err);
    check(spate_bus_writer_open(other, "talk", SPATE_TOPIC_SHARED | SPATE_TOPIC_CREATE | SPATE_TOPIC_RULE,
                                &connector, &err),
          &err);
    check(spate_local_topic_open(&topic, &f->place, "talk", &err), &err);
    for (uint64_t n = 100; topic.manifest.retention_ms != 1234567 && spate_clock_ms() < deadline; n += 3) {
        check(bus_log_publish(guest, n, n, &acks, &err), &err);
        check(bus_log_publish(connector, n + 1, n + 2, &acks, &err), &err);
        assert_int_not_equal(spate_writer_poll(connector, 10, bus_log_acked, &acks, &err), SPATE_FAIL);
        check(spate_local_manifest_read(&topic, &err), &err);
    }
    assert_int_equal(topic.manifest.retention_ms, 1234567);
    check(spate_bus_writer_open(f->bus, "talk", SPATE_TOPIC_SHARED | SPATE_TOPIC_CREATE, &late, &err), &err);
    check(bus_log_publish(late, 1, 20, &acks, &err), &err);
    assert_int_equal(spate_writer_retention_ms(late), 1234567);
    spate_writer_close(late);
    check(spate_local_manifest_read(&topic, &err), &err);
    assert_int_equal(topic.manifest.retention_ms, 1234567);
    spate_local_topic_close(&topic);
    spate_writer_close(guest);
    spate_writer_close(connector);
    spate_bus_close(other);
}

/* ---- hold ---- */

static struct spate_local_named enlist(struct fixture *f, const char *name, uint64_t pos)
{
    struct spate_local_named named;
    struct spate_err err = {0};

    check(spate_local_named_enlist(&named, &f->place, name, "log", f->topic.manifest.log_id, true, pos, &err),
          &err);
    return named;
}

static void what_a_holder_needs_stays_and_the_writer_waits(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named slow = enlist(f, "slow", 2 * CAP + 64), slower = enlist(f, "slower", CAP + 128);
    struct spate_local_named other;
    struct spate_err err = {0};

    check(spate_local_named_enlist(&other, &f->place, "watcher", "log", f->topic.manifest.log_id, false, CAP,
                                   &err),
          &err); /* it has a name, and holds nothing */
    rule(f, 0, 3 << 20, 0);
    step(f);
    expect_gone(f, 0);
    assert_true(f->retain.blocked);
    assert_int_equal(atomic_load(&f->topic.ctl->hold), CAP + 128);
    assert_non_null(strstr(f->logged, "event=bus-held topic=log reader=slower"));
    assert_non_null(strstr(f->logged, "spate bus release slower"));
    spate_local_named_passed(&slower, 2 * CAP, 10);
    step(f);
    expect_gone(f, 1);
    assert_true(f->retain.blocked);
    spate_local_named_leave(&slower); /* dead or alive */
    step(f);
    expect_gone(f, 1);
    assert_true(f->retain.blocked);
    check(spate_local_named_release(&f->place, "slower", "log", 9 * CAP, SPATE_LOCAL_RELEASE_OPERATOR, &err),
          &err);
    step(f);
    expect_gone(f, 1);
    assert_int_equal(atomic_load(&f->topic.ctl->hold), 2 * CAP + 64);
    spate_local_named_passed(&slow, 7 * CAP + 64, 10);
    step(f);
    assert_false(f->retain.blocked);
    expect_gone(f, 4);
    spate_local_named_leave(&slow);
    spate_local_named_leave(&other);
    for (const char *at = f->logged; (at = strstr(at, "event=bus-held ")) != NULL; at++)
        assert_null(strstr(at + 1, "event=bus-held ")); /* once in ten seconds */
}

/* In the middle of a transaction that is larger than the limit: reader and writer would wait for each other.
 */
static void nobody_waits_for_a_holder_that_waits_itself(void **state)
{
    struct fixture *f = *state;
    const uint64_t end = atomic_load(&f->topic.ctl->durable);
    struct spate_local_named open = enlist(f, "open", CAP + 128);

    rule(f, 0, 3 << 20, 0);
    step(f);
    assert_true(f->retain.blocked);
    spate_local_named_waits(&open, end - 64, 1);
    step(f);
    assert_true(f->retain.blocked); /* it has something to read */
    spate_local_named_waits(&open, end, 2);
    step(f);
    assert_false(f->retain.blocked);
    assert_int_equal(atomic_load(&f->topic.ctl->hold), CAP + 128);
    expect_gone(f, 0); /* and what it needs, if it has to begin again, stays */
    struct spate_local_named slow = enlist(f, "slow", CAP + 64);
    step(f);
    assert_true(f->retain.blocked);
    spate_local_named_passed(&slow, end, 1);
    spate_local_named_leave(&slow);
    step(f);
    assert_false(f->retain.blocked);
    spate_local_named_leave(&open); /* whoever is dead does not read what comes next */
    step(f);
    assert_true(f->retain.blocked);
    expect_gone(f, 0);
}

static void an_old_segment_is_held_as_well(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named slow = enlist(f, "slow", CAP);

    make_old(f, 1, 2 * HOUR_NS);
    rule(f, 3600000, 0, 0);
    step(f);
    expect_gone(f, 0);
    assert_true(f->retain.blocked);
    spate_local_named_passed(&slow, 2 * CAP, 1);
    step(f);
    expect_gone(f, 1);
    assert_false(f->retain.blocked);
    spate_local_named_leave(&slow);
}

static void alarms_come_at_50_and_80_percent(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named slow = enlist(f, "slow", 5 * CAP);

    rule(f, 0, 10 << 20, 0); /* it holds 2.1 of 10 */
    step(f);
    assert_string_equal(f->logged, "");
    spate_local_named_passed(&slow, 3 * CAP, 0); /* a restore from a backup, say */
    step(f);
    assert_string_equal(f->logged, "");
    spate_local_named_passed(&slow, CAP, 0);
    step(f);
    assert_non_null(strstr(f->logged, "event=bus-hold-behind topic=log reader=slow percent=6"));
    assert_non_null(strstr(f->logged, "spate bus release slow"));
    f->logged[0] = '\0';
    step(f);
    assert_string_equal(f->logged, "");
    rule(f, 0, (int64_t)7500 << 10, 0);
    step(f);
    assert_non_null(strstr(f->logged, "event=bus-hold-behind topic=log reader=slow percent=8"));
    f->logged[0] = '\0';
    spate_local_named_passed(&slow, 7 * CAP, 0);
    step(f);
    spate_local_named_passed(&slow, CAP, 0);
    step(f);
    assert_non_null(strstr(f->logged, "percent=8")); /* again, after it was better */
    spate_local_named_leave(&slow);
    expect_gone(f, 0);
}

/* One whose last sign of life is long ago: a machine that was off. */
static void die(struct fixture *f, struct spate_local_named *named, const char *name, int64_t silent_ms)
{
    char path[300];
    struct spate_local_marks marks;

    spate_local_named_leave(named);
    snprintf(path, sizeof path, "%s/readers/%s/log", f->scratch.path, name);
    const int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &marks, sizeof marks, 0), sizeof marks);
    for (int i = 0; i < 2; i++) {
        struct spate_local_mark *mark = &marks.mark[i];
        mark->ts_ns = (uint64_t)(spate_clock_wall_us() - silent_ms * 1000) * 1000;
        mark->crc = spate_crc32c(0, mark, offsetof(struct spate_local_mark, crc));
    }
    assert_int_equal(pwrite(fd, &marks, sizeof marks, 0), sizeof marks);
    close(fd);
}

static void a_dead_holder_is_let_go_and_it_is_said(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named gone = enlist(f, "gone", CAP), idle = enlist(f, "idle", 3 * CAP);
    struct spate_local_named_view view;
    struct spate_err err = {0};

    f->place.hold_expire_ms = 60000;
    rule(f, 0, 3 << 20, 0);
    die(f, &gone, "gone", 3600000);
    step(f); /* it may be about to come: this steward has not watched it yet */
    expect_gone(f, 0);
    assert_null(strstr(f->logged, "bus-hold-expired"));
    for (size_t i = 0; i < f->retain.holder_count; i++)
        if (f->retain.holders[i].dead_ms)
            f->retain.holders[i].dead_ms -= 60000; /* so long has it been watched */
    step(f);
    assert_non_null(strstr(f->logged, "event=bus-hold-expired topic=log reader=gone"));
    expect_gone(f, 2);
    assert_int_equal(atomic_load(&f->topic.ctl->hold), 3 * CAP); /* the living one holds on */
    check(spate_local_named_look(&f->place, "gone", "log", &view, &err), &err);
    assert_false(view.holds);
    assert_int_equal(view.release.why, SPATE_LOCAL_RELEASE_EXPIRED);
    f->logged[0] = '\0';
    step(f);
    assert_null(strstr(f->logged, "bus-hold-expired"));
    gone = enlist(f, "gone", CAP); /* it comes back, and meets the gap; beyond it it holds again */
    check(spate_local_named_look(&f->place, "gone", "log", &view, &err), &err);
    assert_false(view.holds);
    spate_local_named_passed(&gone, atomic_load(&f->topic.ctl->durable), 0);
    check(spate_local_named_look(&f->place, "gone", "log", &view, &err), &err);
    assert_true(view.holds);
    spate_local_named_leave(&gone);
    spate_local_named_leave(&idle);
}

/* Died when the clock was a year ahead; and the steward of a topic with many writers changes. */
static void a_dead_holder_is_let_go_though_the_clock_stepped_back(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named gone = enlist(f, "gone", CAP);

    f->place.hold_expire_ms = 700000;
    rule(f, 0, 3 << 20, 0);
    die(f, &gone, "gone", INT64_C(-365) * 24 * 3600000);
    step(f);
    assert_int_equal(f->retain.holder_count, 1);
    f->retain.holders[0].dead_ms -= 650000;
    spate_local_retain_pause(&f->retain);
    step(f);
    expect_gone(f, 0);
    f->retain.holders[0].dead_ms -= 100000;
    spate_local_retain_pause(&f->retain);
    step(f);
    assert_non_null(strstr(f->logged, "event=bus-hold-expired topic=log reader=gone"));
    expect_gone(f, 4);
}

static void a_living_holder_never_expires(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named idle = enlist(f, "idle", CAP), back = enlist(f, "back", CAP);

    f->place.hold_expire_ms = 1;
    rule(f, 0, 3 << 20, 0);
    /* One that is dead only now, and one that was dead and is back. */
    for (int i = 0; i < 3; i++) {
        die(f, &back, "back", 3600000);
        back = enlist(f, "back", CAP);
        step(f);
    }
    expect_gone(f, 0);
    assert_null(strstr(f->logged, "bus-hold-expired"));
    spate_local_named_leave(&back);
    spate_local_named_leave(&idle);
}

static void of_a_dead_holder_nothing_expires_with_0(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named gone = enlist(f, "gone", CAP);

    f->place.hold_expire_ms = 0;
    rule(f, 0, 3 << 20, 0);
    die(f, &gone, "gone", INT64_C(1000) * 3600000);
    step(f);
    for (size_t i = 0; i < f->retain.holder_count; i++)
        f->retain.holders[i].dead_ms -= 100000000;
    step(f);
    expect_gone(f, 0);
}

/* A reader in the archive whose hot tier was replaced meanwhile knows of no floor but the one it read long
 * ago: it passed over what retention had taken, without a word. */
static void a_reader_of_a_replaced_hot_tier_meets_the_gap(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_writer *w;
    struct spate_err err = {0};
    uint64_t last = 0;

    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    do {
        check(spate_reader_next(r, &m, &err), &err);
        assert_int_equal(m.kind, SPATE_MESSAGE_RECORD);
        last = bus_log_number(&m);
    } while (m.next.at < CAP + CAP / 2);

    bus_scratch_reboot(&f->scratch);
    spate_local_topic_close(&f->topic);
    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    spate_writer_close(w);
    check(spate_local_topic_open(&f->topic, &f->place, "log", &err), &err);
    check(spate_local_topic_attach(&f->topic, true, &err), &err);
    rule(f, 0, 3 << 20, 0);
    step(f);
    const uint64_t first = atomic_load(&f->topic.ctl->first);
    assert_true(first > 2 * CAP);

    bool met = false;
    while (!met) { /* what it has mapped stays whole */
        check(bus_log_next(r, &m, &err), &err);
        met = m.kind == SPATE_MESSAGE_GAP;
        if (!met)
            assert_int_equal(bus_log_number(&m), ++last);
    }
    assert_int_equal(m.pos.at, 2 * CAP);
    assert_int_equal(m.next.at, first);
    check(bus_log_next(r, &m, &err), &err);
    assert_int_equal(m.pos.at, first);
    assert_true(bus_log_number(&m) > last + 1);
    spate_reader_close(r);
}

int main(void)
{
#define T(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_log_that_nobody_rules_keeps_all),
        T(the_oldest_go_when_there_are_too_many_bytes),
        T(the_newest_stays_whatever_is_said),
        T(what_is_too_old_goes),
        T(a_clock_that_steps_back_removes_nothing),
        T(what_is_to_be_kept_is_kept),
        T(by_default_half_of_the_file_system),
        T(spill_files_go_with_their_segment),
        T(what_a_killed_predecessor_left_is_removed),
        T(a_guest_rules_only_what_is_new),
        T(of_a_shared_topic_the_connectors_word_counts),
        T(what_a_holder_needs_stays_and_the_writer_waits),
        T(nobody_waits_for_a_holder_that_waits_itself),
        T(an_old_segment_is_held_as_well),
        T(alarms_come_at_50_and_80_percent),
        T(a_dead_holder_is_let_go_and_it_is_said),
        T(a_dead_holder_is_let_go_though_the_clock_stepped_back),
        T(a_living_holder_never_expires),
        T(of_a_dead_holder_nothing_expires_with_0),
        T(a_reader_of_a_replaced_hot_tier_meets_the_gap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
