/* tests/unit/bus_cut_test.c - files that somebody truncates while they are mapped: words instead of SIGBUS,
 * and nothing acknowledged that is not there.
 *
 * Each case runs in a process of its own: cmocka has a handler of SIGBUS, and the guard installs its one
 * once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/segment.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

/* In the child: says where, and ends it. */
#define must(what)                                                                                           \
    do {                                                                                                     \
        if (!(what)) {                                                                                       \
            fprintf(stderr, "line %d: %s\n", __LINE__, #what);                                               \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)
#define good(rc, err)                                                                                        \
    do {                                                                                                     \
        if ((rc) != SPATE_OK) {                                                                              \
            fprintf(stderr, "line %d: %s\n", __LINE__, (err)->text);                                         \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

struct world {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct bus_log_acks acks;
    struct spate_err err;
};

static void run(void (*scenario)(struct world *, uint64_t), uint64_t arg)
{
    struct world w = {0};
    int status;

    bus_scratch_init(&w.scratch, (int64_t)CAP);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL); /* cmocka's */
        alarm(60);
        good(spate_bus_open(&w.scratch.config, &w.bus, &w.err), &w.err);
        scenario(&w, arg);
        spate_bus_close(w.bus);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    bus_scratch_fini(&w.scratch);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("with %llu: the process ended with status %x", (unsigned long long)arg, status);
}

static void path_of(const struct world *w, bool hot, uint64_t base, char out[256])
{
    char name[SPATE_LOCAL_FILE];

    spate_local_segment_name(base, name);
    snprintf(out, 256, "%s/log/%s", hot ? w->scratch.hot : w->scratch.path, name);
}

static struct spate_writer *write_some(struct world *w, unsigned flags, uint64_t last)
{
    struct spate_writer *writer;

    good(spate_bus_writer_open(w->bus, "log", SPATE_TOPIC_CREATE | flags, &writer, &w->err), &w->err);
    good(bus_log_publish(writer, 1, last, &w->acks, &w->err), &w->err);
    if (!(flags & SPATE_TOPIC_VOLATILE))
        good(bus_log_settle(writer, last, &w->acks, &w->err), &w->err);
    return writer;
}

static struct spate_reader *read_some(struct world *w, enum spate_visibility see, uint64_t last)
{
    struct spate_reader *r;
    struct spate_message m;

    good(spate_bus_reader_open(w->bus, "log", see, oldest, &r, &w->err), &w->err);
    for (uint64_t n = 1; n <= last; n++) {
        good(bus_log_next(r, &m, &w->err), &w->err);
        must(bus_log_number(&m) == n);
    }
    return r;
}

/* On from record n: what comes is what was published, until the cut is said. Where the cut goes through a
 * page, no signal comes from that page: the one record that it goes through may end in zeros. */
static void reads_until_it_is_said(struct world *w, struct spate_reader *r, uint64_t n, uint64_t size)
{
    bool torn = size % SPATE_LOCAL_HEADER == 0;
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_message m;
    enum spate_rc rc = SPATE_OK;

    while (rc != SPATE_FAIL && spate_clock_ms() < deadline) {
        rc = spate_reader_next(r, &m, &w->err);
        if (rc == SPATE_OK && bus_log_number(&m) != ++n) {
            must(!torn && (m.pos.at - CAP + SPATE_LOCAL_HEADER) / 4096 <= size / 4096 &&
                 m.next.at - CAP + SPATE_LOCAL_HEADER > size);
            torn = true;
        } else if (rc == SPATE_AGAIN) {
            rc = spate_reader_wait(r, 100, &w->err);
        }
    }
    if (rc != SPATE_FAIL || !strstr(w->err.text, "was cut") || !strstr(w->err.text, "log")) {
        fprintf(stderr, "rc %d after record %llu: %s\n", rc, (unsigned long long)n, w->err.text);
        _exit(1);
    }
}

enum { RECORDS = 900 }; /* not a whole segment */

static void cut_under_a_reader(struct world *w, uint64_t size)
{
    struct spate_writer *writer = write_some(w, 0, RECORDS);
    struct spate_reader *tip = read_some(w, SPATE_SEE_TIP, 1), *durable = read_some(w, SPATE_SEE_DURABLE, 1);
    char path[256];

    path_of(w, true, CAP, path);
    must(truncate(path, (off_t)size) == 0);
    reads_until_it_is_said(w, tip, 1, size);
    reads_until_it_is_said(w, durable, 1, size);
    spate_reader_close(tip);
    spate_reader_close(durable);
    spate_writer_close(writer);
}

static void a_hot_segment_is_cut_under_its_readers(void **state)
{
    static const uint64_t sizes[] = {0, 100, 4096, 4097, 8192, 100000, 100352, 204800};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        run(cut_under_a_reader, sizes[i]);
}

/* A reader that has read all, and waits. */
static void cut_under_a_waiting_reader(struct world *w, uint64_t size)
{
    struct spate_writer *writer = write_some(w, 0, RECORDS);
    struct spate_reader *tip = read_some(w, SPATE_SEE_TIP, RECORDS);
    char path[256];

    path_of(w, true, CAP, path);
    must(truncate(path, (off_t)size) == 0);
    reads_until_it_is_said(w, tip, RECORDS, size);
    spate_reader_close(tip);
    spate_writer_close(writer);
}

static void a_hot_segment_is_cut_under_a_waiting_reader(void **state)
{
    (void)state;
    run(cut_under_a_waiting_reader, 0);
    run(cut_under_a_waiting_reader, 65536 + 123); /* through a page that holds records */
}

/* Cut and made as long again: its bytes are zeros, and no page is missing that would raise a signal. */
static void cut_and_grown(struct world *w, uint64_t size)
{
    struct spate_writer *writer = write_some(w, 0, RECORDS);
    struct spate_reader *tip = read_some(w, SPATE_SEE_TIP, 1);
    char path[256];

    path_of(w, true, CAP, path);
    must(truncate(path, (off_t)size) == 0);
    must(truncate(path, (off_t)(SPATE_LOCAL_HEADER + CAP)) == 0);
    reads_until_it_is_said(w, tip, 1, size);
    spate_reader_close(tip);
    spate_writer_close(writer);
}

static void a_hot_segment_is_cut_and_made_as_long_again(void **state)
{
    (void)state;
    run(cut_and_grown, 20000);
    run(cut_and_grown, 300000);
}

static void archive_cut(struct world *w, uint64_t size)
{
    struct spate_writer *writer =
        write_some(w, 0, 9000); /* several segments: the first is in the archive alone */
    struct spate_reader *r = read_some(w, SPATE_SEE_DURABLE, 1);
    char path[256];

    path_of(w, false, CAP, path);
    must(truncate(path, (off_t)size) == 0);
    /* In the archive each record's checksum is looked at. */
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_message m;
    enum spate_rc rc;
    uint64_t n = 1;
    while ((rc = spate_reader_next(r, &m, &w->err)) == SPATE_OK && spate_clock_ms() < deadline)
        must(bus_log_number(&m) == ++n);
    must(rc == SPATE_FAIL && w->err.verdict == SPATE_FATAL);
    must(strstr(w->err.text, "was cut") || strstr(w->err.text, "damaged"));
    spate_reader_close(r);
    spate_writer_close(writer);
}

static void an_archive_segment_is_cut_under_its_reader(void **state)
{
    (void)state;
    run(archive_cut, 0);
    run(archive_cut, 4096);
    run(archive_cut, 65536 + 1000);
}

/* Publishes on until the bus refuses. Whatever was acknowledged until then is on the disk. */
static void cut_under_a_writer(struct world *w, uint64_t size)
{
    const bool is_volatile = size & 1;
    struct spate_writer *writer = write_some(w, is_volatile ? SPATE_TOPIC_VOLATILE : 0, 100);
    const int64_t deadline = spate_clock_ms() + 20000;
    char path[256], value[BUS_LOG_MOST];
    enum spate_rc rc = SPATE_OK;
    uint64_t n = 100;
    size_t taken;

    path_of(w, true, CAP, path);
    must(truncate(path, (off_t)size) == 0);
    while (rc != SPATE_FAIL && spate_clock_ms() < deadline) {
        const struct spate_record record = {
            .key = {.at = "key", .len = 3}, .value = bus_log_value(n + 1, value), .token = n + 1};
        rc = spate_writer_publish(writer, &record, 1, &taken, &w->err);
        if (rc == SPATE_OK)
            n++;
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(writer, 1, bus_log_acked, &w->acks, &w->err);
    }
    if (rc != SPATE_FAIL || !strstr(w->err.text, "was cut")) {
        fprintf(stderr, "rc %d: %s\n", rc, w->err.text);
        _exit(1);
    }
    must(!w->acks.broken);
    spate_writer_close(writer);
    if (is_volatile)
        return;
    /* What the words say to do: then all that was acknowledged is there. */
    *strrchr(path, '/') = '\0';
    bus_scratch_remove(path);
    good(spate_bus_writer_open(w->bus, "log", SPATE_TOPIC_CREATE, &writer, &w->err), &w->err);
    spate_reader_close(read_some(w, SPATE_SEE_DURABLE, w->acks.last));
    spate_writer_close(writer);
}

static void a_hot_segment_is_cut_under_its_writer(void **state)
{
    static const uint64_t sizes[] = {0, 100, 4096, 5000, 28672, 40960, 1, 4097, 20481};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        run(cut_under_a_writer, sizes[i]);
}

/* Neither ctl nor bell is the log. */
static void ctl_cut(struct world *w, uint64_t arg)
{
    struct spate_writer *writer = write_some(w, 0, 100);
    struct spate_reader *r = read_some(w, SPATE_SEE_TIP, 100);
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_message m;
    char path[256];
    enum spate_rc rc;

    (void)arg;
    snprintf(path, sizeof path, "%s/log/ctl", w->scratch.hot);
    must(truncate(path, 0) == 0);
    do {
        rc = spate_reader_next(r, &m, &w->err);
        if (rc == SPATE_AGAIN)
            rc = spate_reader_wait(r, 50, &w->err);
    } while (rc != SPATE_FAIL && spate_clock_ms() < deadline);
    must(rc == SPATE_FAIL && strstr(w->err.text, "was cut"));
    rc = bus_log_publish(writer, 101, 150, &w->acks, &w->err);
    if (rc == SPATE_OK)
        rc = bus_log_settle(writer, 150, &w->acks, &w->err);
    must(rc == SPATE_FAIL ||
         w->acks.last == 150); /* it notices in a moment; until then the disk has all of it */
    spate_writer_close(writer);
    spate_reader_close(r);
    good(spate_bus_writer_open(w->bus, "log", SPATE_TOPIC_CREATE, &writer, &w->err),
         &w->err); /* makes it anew */
    spate_reader_close(read_some(w, SPATE_SEE_DURABLE, w->acks.last));
    spate_writer_close(writer);
}

/* Readers may write the bell, so one of them may cut or spoil it: all go on, those who come later too, and
 * nothing is recovered for it. */
static void bell_cut(struct world *w, uint64_t spoil)
{
    struct spate_writer *writer = write_some(w, 0, 100);
    struct spate_reader *r = read_some(w, SPATE_SEE_TIP, 100), *late;
    struct spate_message m;
    char path[256];

    snprintf(path, sizeof path, "%s/log/bell", w->scratch.hot);
    const int fd = open(path, O_RDWR);
    if (spoil)
        must(pwrite(fd, "not a bell at all", 17, 0) == 17);
    else
        must(ftruncate(fd, 0) == 0);
    close(fd);
    late = read_some(w, SPATE_SEE_DURABLE, 100);
    good(bus_log_publish(writer, 101, 200, &w->acks, &w->err), &w->err);
    good(bus_log_settle(writer, 200, &w->acks, &w->err), &w->err);
    for (uint64_t n = 101; n <= 200; n++) {
        good(bus_log_next(r, &m, &w->err), &w->err);
        must(bus_log_number(&m) == n);
        good(bus_log_next(late, &m, &w->err), &w->err);
        must(bus_log_number(&m) == n);
    }
    const struct spate_bus_pos end = spate_writer_end(writer);
    spate_writer_close(writer);
    good(spate_bus_writer_open(w->bus, "log", 0, &writer, &w->err), &w->err);
    must(spate_writer_end(writer).at == end.at);
    good(bus_log_publish(writer, 201, 210, &w->acks, &w->err), &w->err);
    for (uint64_t n = 201; n <= 210; n++) {
        good(bus_log_next(r, &m, &w->err), &w->err);
        must(bus_log_number(&m) == n);
    }
    spate_reader_close(late);
    spate_reader_close(r);
    spate_writer_close(writer);
}

static void ctl_or_bell_are_cut(void **state)
{
    (void)state;
    run(ctl_cut, 0);
    run(bell_cut, 0);
    run(bell_cut, 1);
}

/* ---- what is not ours ---- */

static sigjmp_buf back;

static void on_sigbus(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

static volatile unsigned char *cut_page(const struct world *w)
{
    char path[256];
    snprintf(path, sizeof path, "%s/theirs", w->scratch.hot);
    const int fd = open(path, O_RDWR | O_CREAT, 0600);
    must(fd >= 0 && ftruncate(fd, 8192) == 0);
    volatile unsigned char *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(at != MAP_FAILED && ftruncate(fd, 0) == 0);
    return at;
}

static void the_program_s_own(struct world *w, uint64_t arg)
{
    (void)arg;
    struct sigaction action = {.sa_handler = on_sigbus};
    sigaction(SIGBUS, &action, NULL);
    struct spate_writer *writer = write_some(w, 0, 10);
    volatile unsigned char *at = cut_page(w);
    if (sigsetjmp(back, 1) == 0) {
        at[5000] = 1;
        must(false);
    }
    spate_writer_close(writer);
}

static void nobody_s(struct world *w, uint64_t arg)
{
    int status;
    struct spate_writer *writer = write_some(w, 0, 10);
    const pid_t child = fork();

    if (child == 0) {
        if (arg)
            kill(getpid(), SIGBUS);
        else
            *cut_page(w) = 1;
        _exit(0);
    }
    must(waitpid(child, &status, 0) == child);
    must(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    spate_writer_close(writer);
}

static void a_signal_that_is_not_ours_goes_to_whom_it_went(void **state)
{
    (void)state;
    run(the_program_s_own, 0);
    run(nobody_s, 0);
    run(nobody_s, 1); /* sent by kill */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hot_segment_is_cut_under_its_readers),
        cmocka_unit_test(a_hot_segment_is_cut_under_a_waiting_reader),
        cmocka_unit_test(a_hot_segment_is_cut_and_made_as_long_again),
        cmocka_unit_test(an_archive_segment_is_cut_under_its_reader),
        cmocka_unit_test(a_hot_segment_is_cut_under_its_writer),
        cmocka_unit_test(ctl_or_bell_are_cut),
        cmocka_unit_test(a_signal_that_is_not_ours_goes_to_whom_it_went),
    };
    return cmocka_run_group_tests_name("bus_cut", tests, NULL, NULL);
}
