/* tests/unit/buslab_full_test.c - L11: shared memory or disk without room, wherever the bus may meet it. Said
 * with the path and the bytes that are missing, never a SIGBUS, and healed without opening anew. With
 * segments that are made without their pages it has to show. Each scenario has small file systems of its own,
 * which needs root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/bus.h"
#include "bus/local/broken.h"
#include "bus/local/local.h"
#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP   (UINT64_C(1) << 20)
#define MOST  ((size_t)3 << 20)
#define QUIET 250 /* ms without progress: it is stuck */

enum where { HOT, DISK };

struct scenario {
    const char *name;
    unsigned flags;
    enum where full;
    size_t leave;  /* bytes of room that are left */
    size_t len;    /* of a value */
    int rounds;    /* 0: of the manifest */
    bool gives_up; /* a volatile topic that has a past gives it up, and goes on */
    int before;    /* records before the room is gone */
    int after;     /* records that have to pass once there is room */
    const char *event;
};

struct place {
    char root[64], path[96], hot[96];
};

struct tally {
    uint64_t offered, acked;
};

/* In the child: what is not as it should be ends it. */
#define must(condition, ...)                                                                                 \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "line %d: %s: ", __LINE__, #condition);                                          \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fprintf(stderr, "\n");                                                                           \
            _exit(3);                                                                                        \
        }                                                                                                    \
    } while (0)

static void small(const char *path, const char *size)
{
    must(mkdir(path, 0700) == 0 && mount("tmpfs", path, "tmpfs", 0, size) == 0, "%s: %s", path,
         strerror(errno));
}

static void take_room(const struct place *at, enum where where, size_t leave)
{
    const char *root = where == HOT ? at->hot : at->path;
    char name[128];
    struct statvfs fs;

    snprintf(name, sizeof name, "%s/somebody-else's", root);
    const int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0 && statvfs(root, &fs) == 0, "%s", strerror(errno));
    const uint64_t room = fs.f_bfree * fs.f_frsize;
    must(room > leave + 4096, "%llu bytes of room", (unsigned long long)room);
    must(posix_fallocate(fd, 0, (off_t)(room - leave)) == 0, "no file of %llu bytes",
         (unsigned long long)(room - leave));
    close(fd);
}

static void give_room(const struct place *at, enum where where)
{
    char name[128];

    snprintf(name, sizeof name, "%s/somebody-else's", where == HOT ? at->hot : at->path);
    must(unlink(name) == 0, "%s", strerror(errno));
}

static void acked(void *arg, uint64_t token)
{
    struct tally *t = arg;

    must(token == t->acked + 1, "token %llu after %llu", (unsigned long long)token,
         (unsigned long long)t->acked);
    t->acked = token;
}

static const char *value_of(uint64_t n, size_t len)
{
    static char bytes[MOST];

    memset(bytes, (int)('a' + n % 26), len);
    memcpy(bytes, &n, sizeof n);
    return bytes;
}

/* One record, offered once. */
static bool offer(struct spate_writer *w, size_t len, struct tally *t)
{
    struct spate_err err = {0};
    const struct spate_record record = {.value = {.at = value_of(t->offered + 1, len), .len = len},
                                        .token = t->offered + 1};
    size_t taken = 0;

    must(spate_writer_publish(w, &record, 1, &taken, &err) != SPATE_FAIL, "%s", err.text);
    t->offered += taken;
    must(spate_writer_poll(w, taken ? 0 : 5, acked, t, &err) != SPATE_FAIL, "%s", err.text);
    return taken == 1;
}

/* Publishes `most` records; gives up when nothing moves. */
static bool publish(struct spate_writer *w, size_t len, int most, struct tally *t)
{
    int64_t quiet_ms = spate_clock_ms();

    for (int i = 0; i < most;) {
        const uint64_t was = t->acked;
        if (offer(w, len, t)) {
            i++;
            quiet_ms = spate_clock_ms();
        } else if (t->acked != was) {
            quiet_ms = spate_clock_ms();
        } else if (spate_clock_ms() - quiet_ms > QUIET) {
            return false;
        }
    }
    return true;
}

static void settle(struct spate_writer *w, struct tally *t)
{
    const int64_t deadline = spate_clock_ms() + 10000;
    struct spate_err err = {0};

    while (t->acked < t->offered) {
        must(spate_clock_ms() < deadline, "%llu of %llu are durable", (unsigned long long)t->acked,
             (unsigned long long)t->offered);
        must(spate_writer_poll(w, 100, acked, t, &err) != SPATE_FAIL, "%s", err.text);
    }
}

/* Reads what there is: all of it, or of a volatile topic the end of it. */
static void read_all(struct spate_bus *bus, unsigned flags, size_t len, uint64_t last)
{
    const bool fleeting = (flags & SPATE_TOPIC_VOLATILE) != 0;
    const struct spate_start oldest = {.from = SPATE_START_OLDEST};
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    uint64_t n = 0, number;

    must(spate_bus_reader_open(bus, "log", fleeting ? SPATE_SEE_TIP : SPATE_SEE_DURABLE, oldest, &r, &err) ==
             SPATE_OK,
         "%s", err.text);
    while (n < last) {
        must(spate_reader_next(r, &m, &err) == SPATE_OK, "record %llu: %s", (unsigned long long)n + 1,
             err.text);
        must(m.kind == SPATE_MESSAGE_RECORD && m.value.len == len, "record %llu", (unsigned long long)n + 1);
        memcpy(&number, m.value.at, sizeof number);
        must(number == n + 1 || (fleeting && n == 0), "%llu after %llu", (unsigned long long)number,
             (unsigned long long)n);
        must(memcmp(m.value.at, value_of(number, len), len) == 0, "its bytes");
        n = number;
    }
    spate_reader_close(r);
}

/* A recovery, which begins with the manifest, on a disk that is full. */
static void open_without_room(struct spate_bus *bus, const struct place *at, const char *topic,
                              unsigned flags)
{
    struct spate_writer *w;
    struct spate_err err = {0};

    take_room(at, DISK, 0);
    must(spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE | flags, &w, &err) == SPATE_FAIL, "it opened");
    must(err.verdict == SPATE_RETRY && strstr(err.text, "No space left") && strstr(err.text, at->path), "%s",
         err.text);
    give_room(at, DISK);
    must(spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE | flags, &w, &err) == SPATE_OK, "%s", err.text);
    spate_writer_close(w);
}

static _Noreturn void play_manifest(const struct place *at)
{
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};
    struct tally t = {0};
    char hot[128];

    must(spate_local_bus_open(at->path, at->hot, (int64_t)CAP, &bus, &err) == SPATE_OK, "%s", err.text);
    must(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err) == SPATE_OK, "%s", err.text);
    must(publish(w, 600, 100, &t), "stuck with room");
    settle(w, &t);
    spate_writer_close(w);
    snprintf(hot, sizeof hot, "%s/log/ctl", at->hot);
    must(unlink(hot) == 0, "%s", strerror(errno)); /* as after a reboot */
    open_without_room(bus, at, "log", 0);
    open_without_room(bus, at, "new", 0);
    open_without_room(bus, at, "crowd", SPATE_TOPIC_SHARED);
    read_all(bus, 0, 600, t.offered);
    spate_bus_close(bus);
    _exit(0);
}

static _Noreturn void play(const struct scenario *s, const struct place *at)
{
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_err err = {0};
    struct tally t = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    must(unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "%s",
         strerror(errno));
    small(at->path, "size=64m");
    small(at->hot, "size=9m");
    if (s->rounds == 0)
        play_manifest(at);
    must(spate_local_bus_open(at->path, at->hot, (int64_t)CAP, &bus, &err) == SPATE_OK, "%s", err.text);
    must(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE | s->flags, &w, &err) == SPATE_OK, "%s",
         err.text);
    must(publish(w, s->len, s->before, &t), "stuck with room");
    if (!(s->flags & SPATE_TOPIC_VOLATILE))
        settle(w, &t);

    for (int round = 0; round < s->rounds; round++) {
        take_room(at, s->full, s->leave);
        const bool went_on = publish(w, s->len, 40 * (int)(CAP / s->len + 1), &t);
        must(went_on == (s->gives_up && round > 0), "it %s", went_on ? "went on" : "stopped");
        give_room(at, s->full);
        must(publish(w, s->len, s->after, &t), "stuck after %llu records, with room",
             (unsigned long long)t.offered);
        if (!(s->flags & SPATE_TOPIC_VOLATILE))
            settle(w, &t);
    }
    read_all(bus, s->flags, s->len, t.offered);
    spate_writer_close(w);
    spate_bus_close(bus);
    _exit(0);
}

/* Runs it in a process and a mount namespace of its own; what that wrote to stderr is in `said`. */
static int run(const struct scenario *s, enum spate_broken broken, char *said, size_t room)
{
    struct place at;
    int pipes[2], status = 0;
    size_t len = 0;
    ssize_t got;

    strcpy(at.root, "/tmp/spate-full-XXXXXX");
    assert_non_null(mkdtemp(at.root));
    snprintf(at.path, sizeof at.path, "%s/disk", at.root);
    snprintf(at.hot, sizeof at.hot, "%s/hot", at.root);
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        signal(SIGBUS, SIG_DFL); /* cmocka's would report and go on */
        spate_broken = broken;
        play(s, &at);
    }
    close(pipes[1]);
    while ((got = read(pipes[0], said + len, room - 1 - len)) > 0)
        len += (size_t)got;
    said[len] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    rmdir(at.path);
    rmdir(at.hot);
    rmdir(at.root);
    return status;
}

/* The line that an operator reads. */
static bool told(const struct scenario *s, const char *said)
{
    const char *line = strstr(said, s->event), *missing = line ? strstr(line, "missing_bytes=") : NULL;
    const char *end = line ? strchr(line, '\n') : NULL;
    const char *path = line ? strstr(line, s->full == HOT ? "/hot" : "/disk") : NULL;
    const char *remedy = line ? strstr(line, "remedy=") : NULL;

    return line && end && missing && missing < end && strtoull(missing + 14, NULL, 10) > 0 && path &&
           path < end && remedy && remedy < end;
}

static const struct scenario scenarios[] = {
    {"a roll of an owned topic", 0, HOT, 65536, 600, 2, false, 100, 4000, "event=bus-hot-full"},
    {"a roll of a shared topic", SPATE_TOPIC_SHARED, HOT, 65536, 600, 2, false, 100, 4000,
     "event=bus-hot-full"},
    {"a roll of a volatile topic", SPATE_TOPIC_VOLATILE, HOT, 65536, 600, 2, true, 100, 4000,
     "event=bus-hot-full"},
    {"a roll of a shared volatile topic", SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE, HOT, 65536, 600, 2, true,
     100, 4000, "event=bus-hot-full"},
    {"a value of a volatile topic", SPATE_TOPIC_VOLATILE, HOT, 1 << 20, MOST, 1, false, 0, 4,
     "event=bus-hot-full"},
    {"the archive", 0, DISK, 0, 600, 2, false, 100, 4000, "event=bus-disk-full"},
    {"the archive of a shared topic", SPATE_TOPIC_SHARED, DISK, 0, 600, 2, false, 100, 4000,
     "event=bus-disk-full"},
    {"a value's file", 0, DISK, 1 << 20, MOST, 2, false, 1, 2, "event=bus-disk-full"},
};
#define SCENARIOS (sizeof scenarios / sizeof scenarios[0])

static bool may_mount(void)
{
    if (geteuid() == 0)
        return true;
    print_message("skipped: mounting small file systems needs root\n");
    return false;
}

static void L11_no_room_is_an_error_that_heals(void **state)
{
    static char said[1 << 16];

    (void)state;
    if (!may_mount())
        skip();
    for (size_t i = 0; i < SCENARIOS; i++) {
        const int status = run(&scenarios[i], SPATE_BROKEN_NOTHING, said, sizeof said);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("%s: %s %d\n%s", scenarios[i].name, WIFSIGNALED(status) ? "signal" : "exit",
                     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), said);
        if (!told(&scenarios[i], said))
            fail_msg("%s: no %s with path, missing_bytes and remedy:\n%s", scenarios[i].name,
                     scenarios[i].event, said);
    }
}

static void L11_a_manifest_without_room_is_said_at_open(void **state)
{
    static const struct scenario manifest = {.name = "the manifest"};
    static char said[1 << 16];

    (void)state;
    if (!may_mount())
        skip();
    const int status = run(&manifest, SPATE_BROKEN_NOTHING, said, sizeof said);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("status %d\n%s", status, said);
}

/* A writer that is handed pages which are not there dies of them, or loses what it wrote. */
static void L11_control_segments_without_their_pages(void **state)
{
    static char said[1 << 16];

    (void)state;
    if (!may_mount())
        skip();
    const int status = run(&scenarios[0], SPATE_BROKEN_SPARSE, said, sizeof said);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L11_no_room_is_an_error_that_heals),
        cmocka_unit_test(L11_a_manifest_without_room_is_said_at_open),
        cmocka_unit_test(L11_control_segments_without_their_pages),
    };
    return cmocka_run_group_tests_name("buslab_full", tests, NULL, NULL);
}
