/* tests/unit/buslab_outage_test.c - L3 and L4 once more, with the files' own story: every call that changes a
 * file of the durable root is written down while a bus is at work (an owned topic with values in files of
 * their own and retention, a shared one with two writers, recoveries in between), and
 * tests/support/bus_outage.c, a program that knows nothing of a bus, makes of it what a power cut at any call
 * may leave. Whatever was acknowledged before is there, in order, once; no position is used twice.
 * SPATE_POWER_CUTS: how many; SEED: which.
 *
 * The definitions below of calls like pwrite take the place of the C library's in this program. */
#undef _FORTIFY_SOURCE /* its headers define some of the names that are defined here */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/broken.h"
#include "bus/local/layout.h"
#include "core/log.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_outage.h"
#include "tests/support/bus_scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)
#define KEEPS                                                                                                \
    (UINT64_C(3) << 20) /* bytes that retention leaves, but for one segment and its large values             \
                         */
#define LARGE 300000    /* more than a segment takes */
#define MOST  (LARGE + 8192)

/* ---- the recorder ---- */

static struct {
    pthread_mutex_t lock; /* held over the call and its entry: the log tells the calls in their order */
    FILE *log;            /* NULL: nothing is written down */
    dev_t dev;
    struct {
        ino_t ino;
        uint32_t id;
    } known[4096];
    uint32_t count, last;
} story = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void tell(struct outage_entry entry, const void *bytes, const void *more, size_t more_len)
{
    static const char zeros[8];
    const size_t len = entry.len;

    entry.len += (uint32_t)more_len;
    const size_t hole = -(sizeof entry + entry.len) & 7;
    if (fwrite(&entry, sizeof entry, 1, story.log) != 1 ||
        (len > 0 && fwrite(bytes, len, 1, story.log) != 1) ||
        (more_len > 0 && fwrite(more, more_len, 1, story.log) != 1) ||
        (hole > 0 && fwrite(zeros, hole, 1, story.log) != 1))
        abort();
}

static uint32_t lookup(const struct stat *st)
{
    for (uint32_t i = story.count; st->st_dev == story.dev && i-- > 0;)
        if (story.known[i].ino == st->st_ino)
            return story.known[i].id;
    return 0;
}

/* 0: not one of ours, or nobody writes down. */
static uint32_t id_of(int fd)
{
    struct stat st;

    return story.log && fstat(fd, &st) == 0 ? lookup(&st) : 0;
}

static uint32_t born(int dir, const char *name)
{
    struct stat st;

    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
        story.count == sizeof story.known / sizeof story.known[0])
        abort();
    story.known[story.count].ino = st.st_ino;
    story.known[story.count++].id = ++story.last;
    return story.last;
}

static void tell_name(enum outage_what what, uint32_t file, uint32_t dir, const char *name, const char *to)
{
    tell((struct outage_entry){.what = what, .file = file, .dir = dir, .len = (uint32_t)strlen(name) + 1},
         name, to, to ? strlen(to) + 1 : 0);
}

#define LOCKED(body)                                                                                         \
    do {                                                                                                     \
        pthread_mutex_lock(&story.lock);                                                                     \
        body;                                                                                                \
        const int saved = errno;                                                                             \
        pthread_mutex_unlock(&story.lock);                                                                   \
        errno = saved;                                                                                       \
    } while (0)

int openat(int dir, const char *name, int flags, ...)
{
    mode_t mode = 0;
    int fd = -1;

    if (flags & O_CREAT) {
        va_list args;
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    if (!(flags & (O_CREAT | O_TRUNC)))
        return (int)syscall(SYS_openat, dir, name, flags, mode);
    LOCKED({
        struct stat st;
        const bool there = fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
        const uint32_t parent = id_of(dir);
        fd = (int)syscall(SYS_openat, dir, name, flags, mode);
        if (fd >= 0 && parent != 0 && !there)
            tell_name(OUTAGE_CREATE, born(dir, name), parent, name, NULL);
        else if (fd >= 0 && parent != 0 && (flags & O_TRUNC))
            tell((struct outage_entry){.what = OUTAGE_SIZE, .file = id_of(fd)}, NULL, NULL, 0);
    });
    return fd;
}

int mkdirat(int dir, const char *name, mode_t mode)
{
    int rc = -1;

    LOCKED({
        const uint32_t parent = id_of(dir);
        rc = (int)syscall(SYS_mkdirat, dir, name, mode);
        if (rc == 0 && parent != 0)
            tell_name(OUTAGE_MKDIR, born(dir, name), parent, name, NULL);
    });
    return rc;
}

static void tell_write(int fd, const void *bytes, ssize_t done, uint64_t offset)
{
    const uint32_t id = id_of(fd);

    if (done > 0 && id != 0)
        tell((struct outage_entry){.what = OUTAGE_WRITE, .file = id, .offset = offset, .len = (uint32_t)done},
             bytes, NULL, 0);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset)
{
    ssize_t done = -1;

    LOCKED({
        done = syscall(SYS_pwrite64, fd, bytes, len, offset);
        tell_write(fd, bytes, done, (uint64_t)offset);
    });
    return done;
}

ssize_t write(int fd, const void *bytes, size_t len)
{
    ssize_t done = -1;

    LOCKED({
        const off_t offset = lseek(fd, 0, SEEK_CUR);
        done = syscall(SYS_write, fd, bytes, len);
        tell_write(fd, bytes, done, (uint64_t)offset);
    });
    return done;
}

int ftruncate(int fd, off_t size)
{
    int rc = -1;

    LOCKED({
        rc = (int)syscall(SYS_ftruncate, fd, size);
        if (rc == 0 && id_of(fd) != 0)
            tell((struct outage_entry){.what = OUTAGE_SIZE, .file = id_of(fd), .offset = (uint64_t)size},
                 NULL, NULL, 0);
    });
    return rc;
}

int posix_fallocate(int fd, off_t offset, off_t len)
{
    struct stat st;
    int why = 0;

    LOCKED({
        const bool grows = fstat(fd, &st) == 0 && st.st_size < offset + len;
        why = syscall(SYS_fallocate, fd, 0, offset, len) == 0 ? 0 : errno;
        if (why == 0 && grows && id_of(fd) != 0)
            tell((struct outage_entry){.what = OUTAGE_SIZE,
                                       .file = id_of(fd),
                                       .offset = (uint64_t)(offset + len)},
                 NULL, NULL, 0);
    });
    return why;
}

static int sync_and_tell(int fd, long call)
{
    struct stat st;
    int rc = -1;

    LOCKED({
        rc = (int)syscall(call, fd);
        if (rc == 0 && id_of(fd) != 0 && fstat(fd, &st) == 0)
            tell((struct outage_entry){.what = S_ISDIR(st.st_mode) ? OUTAGE_SYNC_DIR : OUTAGE_SYNC,
                                       .file = id_of(fd)},
                 NULL, NULL, 0);
    });
    return rc;
}

int fsync(int fd)
{
    return sync_and_tell(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return sync_and_tell(fd, SYS_fdatasync);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    int rc = -1;

    LOCKED({
        rc = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, 0);
        if (rc == 0 && id_of(from_dir) != 0)
            tell_name(OUTAGE_RENAME, 0, id_of(from_dir), from, to);
    });
    return rc;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    int rc = -1;

    LOCKED({
        rc = (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
        if (rc == 0 && id_of(from_dir) != 0)
            tell_name(OUTAGE_LINK, 0, id_of(from_dir), from, to);
    });
    return rc;
}

int unlinkat(int dir, const char *name, int flags)
{
    int rc = -1;

    LOCKED({
        rc = (int)syscall(SYS_unlinkat, dir, name, flags);
        if (rc == 0 && id_of(dir) != 0)
            tell_name(OUTAGE_UNLINK, 0, id_of(dir), name, NULL);
    });
    return rc;
}

/* ---- records ---- */

enum stream { ALONE, FIRST, SECOND, STREAMS }; /* the owned topic's writer, and two of the shared one */
enum { HANDED_ALONE = STREAMS, HANDED_MANY };  /* counters: highest position that anybody was told */

static const char *topic_of(enum stream stream)
{
    return stream == ALONE ? "log" : "many";
}

/* Which bytes record n of a stream has: some look like records. */
static struct spate_slice value_of(enum stream stream, uint64_t n, unsigned char *out)
{
    uint64_t dice = n * STREAMS + stream;
    size_t len = 32 + bus_log_random(&dice) % 2500;

    if (stream == ALONE && n % 173 == 100)
        len += LARGE;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word = bus_log_random(&dice);
        if (word & 1)
            word = (word & 2 ? UINT64_C(2) : UINT64_C(3)) << 56 | (word % 4096 & ~UINT64_C(63));
        memcpy(out + i, &word, 8);
    }
    memcpy(out, &n, sizeof n);
    out[8] = (unsigned char)stream;
    return spate_slice((const char *)out, len);
}

/* SPATE_END: its bytes are not what was published. */
static enum spate_rc tell_apart(const struct spate_message *m, enum stream *stream, uint64_t *n)
{
    static unsigned char expected[MOST + 8];

    if (m->value.len < 32)
        return SPATE_END;
    memcpy(n, m->value.at, sizeof *n);
    *stream = (enum stream)(unsigned char)m->value.at[8];
    if (*stream >= STREAMS || !spate_slice_eq(value_of(*stream, *n, expected), m->value))
        return SPATE_END;
    return SPATE_OK;
}

/* ---- the bus at work ---- */

struct work {
    struct bus_scratch scratch;
    struct spate_bus *bus;
    struct spate_writer *writers[STREAMS];
    uint64_t next[STREAMS]; /* number of the next record */
    uint64_t seed;
    char log[160];
};

static void good_at(enum spate_rc rc, const struct spate_err *err, int line)
{
    if (rc != SPATE_OK)
        fail_msg("line %d, rc %d: %s", line, rc, err->text);
}
#define good(rc, err) good_at((rc), (err), __LINE__)

static void promise(unsigned counter, uint64_t value)
{
    LOCKED({
        if (story.log)
            tell((struct outage_entry){.what = OUTAGE_PROMISE, .dir = counter, .offset = value}, NULL, NULL,
                 0);
    });
}

static void acknowledged(void *arg, uint64_t token)
{
    promise(*(const enum stream *)arg, token);
}

static void publish_some(struct work *w, enum stream stream, size_t most)
{
    static unsigned char values[8][MOST + 8];
    struct spate_record records[8];
    struct spate_err err = {0};
    const int64_t deadline = spate_clock_ms() + 30000;
    size_t done = 0, taken;
    const size_t count = 1 + (size_t)(bus_log_random(&w->seed) % most);

    for (size_t i = 0; i < count; i++)
        records[i] = (struct spate_record){.key = {.at = "key", .len = 3},
                                           .value = value_of(stream, w->next[stream] + i, values[i]),
                                           .token = w->next[stream] + i};
    while (done < count) {
        enum spate_rc rc =
            spate_writer_publish(w->writers[stream], records + done, count - done, &taken, &err);
        done += taken;
        promise(stream == ALONE ? HANDED_ALONE : HANDED_MANY, spate_writer_end(w->writers[stream]).at);
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(w->writers[stream], rc == SPATE_AGAIN ? 50 : 0, acknowledged, &stream,
                                   &err);
        if (rc == SPATE_FAIL || spate_clock_ms() > deadline)
            fail_msg("stream %d: %s", stream, err.text);
    }
    w->next[stream] += count;
}

static void settle(struct work *w)
{
    struct spate_err err = {0};
    const int64_t deadline = spate_clock_ms() + 30000;

    for (enum stream s = 0; s < STREAMS; s++)
        while (spate_writer_durable(w->writers[s]).at < spate_writer_end(w->writers[s]).at) {
            if (spate_writer_poll(w->writers[s], 20, acknowledged, &s, &err) == SPATE_FAIL ||
                spate_clock_ms() > deadline)
                fail_msg("stream %d: %s", s, err.text);
        }
    for (enum stream s = 0; s < STREAMS; s++)
        (void)!spate_writer_poll(w->writers[s], 0, acknowledged, &s, &err);
}

static unsigned flags_of(enum stream stream)
{
    return SPATE_TOPIC_CREATE | (stream == ALONE ? 0 : SPATE_TOPIC_SHARED);
}

static void begin(struct work *w)
{
    struct spate_err err = {0};

    good(spate_bus_open(&w->scratch.config, &w->bus, &err), &err);
    for (enum stream s = 0; s < STREAMS; s++)
        good(spate_bus_writer_open(w->bus, topic_of(s), flags_of(s), &w->writers[s], &err), &err);
}

static void end(struct work *w)
{
    for (enum stream s = 0; s < STREAMS; s++)
        spate_writer_close(w->writers[s]);
    spate_bus_close(w->bus);
}

struct found {
    uint64_t first[STREAMS], last[STREAMS];
    const char *wrong;
    char text[600];
};

static void wrong(struct found *f, const char *what, const char *more)
{
    f->wrong = f->text;
    snprintf(f->text, sizeof f->text, "%s: %.500s", what, more);
}

/* All of a topic that is durable: each stream's records without a hole and in order. */
static void read_topic(struct spate_bus *bus, const char *topic, struct found *f)
{
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_AGAIN;
    uint64_t n, pos = 0, bytes = 0, least = UINT64_MAX;
    enum stream s;

    if (spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_OLDEST},
                              &r, &err) != SPATE_OK) {
        if (!err.missing) /* the cut was before the topic was made */
            wrong(f, "a reader", err.text);
        return;
    }
    while (!f->wrong && (rc = spate_reader_next(r, &m, &err)) == SPATE_OK) {
        char place[160];
        if (m.kind != SPATE_MESSAGE_RECORD) { /* retention was faster: it begins behind it */
            for (s = 0; s < STREAMS; s++)
                if ((s == ALONE) == (strcmp(topic, "log") == 0))
                    f->first[s] = f->last[s] = 0;
            bytes = 0;
            least = UINT64_MAX;
            continue;
        }
        const bool sound = tell_apart(&m, &s, &n) == SPATE_OK;
        snprintf(place, sizeof place, "topic %s, position %llx, record %llu after %llu", topic,
                 (unsigned long long)m.pos.at, sound ? (unsigned long long)n : 0,
                 sound ? (unsigned long long)f->last[s] : 0);
        if (!sound)
            wrong(f, "other bytes than were published", place);
        else if (m.pos.at <= pos || (f->last[s] != 0 && n != f->last[s] + 1))
            wrong(f, "out of order", place);
        if (!sound)
            break;
        if (f->first[s] == 0)
            f->first[s] = n;
        bytes += m.value.len + SPATE_LOCAL_UNIT;
        least = least < n ? least : n;
        f->last[s] = n;
        pos = m.pos.at;
    }
    if (!f->wrong && rc != SPATE_AGAIN)
        wrong(f, "a reader stops", err.text);
    if (!f->wrong && least > 1 && least != UINT64_MAX && bytes < KEEPS - 2 * CAP - 2 * LARGE) {
        snprintf(f->text, sizeof f->text, "retention left %llu bytes of topic %s, from record %llu on",
                 (unsigned long long)bytes, topic, (unsigned long long)least);
        f->wrong = f->text;
    }
    spate_reader_close(r);
}

static void begin_to_tell(const struct work *w)
{
    struct stat st;

    assert_int_equal(stat(w->scratch.path, &st), 0);
    pthread_mutex_lock(&story.lock);
    story.dev = st.st_dev;
    story.known[story.count].ino = st.st_ino;
    story.known[story.count++].id = story.last = OUTAGE_ROOT;
    story.log = fopen(w->log, "w");
    pthread_mutex_unlock(&story.lock);
    assert_non_null(story.log);
}

static int write_the_story(void **state)
{
    struct work *w = calloc(1, sizeof *w);
    const char *env = getenv("SEED");

    spate_log_level_set(SPATE_LOG_ERROR);
    setenv("TMPDIR", "/dev/shm", 1); /* what a sync costs is not the question here */
    w->seed = env ? strtoull(env, NULL, 10) : (uint64_t)spate_clock_wall_us();
    print_message("SEED=%llu\n", (unsigned long long)w->seed);
    bus_scratch_init(&w->scratch, (int64_t)CAP);
    w->scratch.config.local_retention_bytes = (int64_t)KEEPS;
    snprintf(w->log, sizeof w->log, "%s-story", w->scratch.path);
    begin_to_tell(w);
    for (enum stream s = 0; s < STREAMS; s++)
        w->next[s] = 1;
    for (int phase = 0; phase < 4; phase++) {
        begin(w);
        for (int step = 0; step < 180; step++) {
            const uint64_t dice = bus_log_random(&w->seed);
            publish_some(w, dice % 3 == 0 ? FIRST : dice % 3 == 1 ? SECOND : ALONE, 8);
            if (dice % 61 == 60)
                settle(w);
        }
        if (phase % 2)
            settle(w);
        end(w);
        if (phase == 3)
            break;
        if (phase > 0) { /* the shared memory is lost: what was not durable is sent again */
            struct found f = {.wrong = NULL};
            struct spate_err err = {0};
            bus_scratch_remove(w->scratch.hot);
            mkdir(w->scratch.hot, 0700);
            begin(w);
            read_topic(w->bus, "log", &f);
            read_topic(w->bus, "many", &f);
            if (f.wrong)
                fail_msg("%s %s", f.wrong, err.text);
            for (enum stream s = 0; s < STREAMS; s++)
                w->next[s] = f.last[s] + 1;
            end(w);
        }
    }
    pthread_mutex_lock(&story.lock);
    fclose(story.log);
    story.log = NULL;
    pthread_mutex_unlock(&story.lock);
    *state = w;
    return 0;
}

static int drop_the_story(void **state)
{
    struct work *w = *state;

    unlink(w->log);
    bus_scratch_fini(&w->scratch);
    free(w);
    return 0;
}

/* ---- after the cut ---- */

static void make_image(const struct work *w, const char *image, uint64_t seed,
                       uint64_t counters[OUTAGE_COUNTERS])
{
    char command[1024], program[256], *slash;
    unsigned long long c[OUTAGE_COUNTERS];
    const ssize_t len = readlink("/proc/self/exe", program, sizeof program - 1);

    assert_true(len > 0);
    program[len] = '\0';
    for (int i = 0; i < 2 && (slash = strrchr(program, '/')) != NULL; i++)
        *slash = '\0';
    snprintf(command, sizeof command, "%s/support/bus_outage %s %s %llu", program, w->log, image,
             (unsigned long long)seed);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    assert_int_equal(fscanf(out, "%*u %*u %llu %llu %llu %llu %llu %llu %llu %llu", &c[0], &c[1], &c[2],
                            &c[3], &c[4], &c[5], &c[6], &c[7]),
                     OUTAGE_COUNTERS);
    assert_int_equal(pclose(out), 0);
    for (int i = 0; i < OUTAGE_COUNTERS; i++)
        counters[i] = c[i];
}

static void expect_acknowledged(const uint64_t counters[OUTAGE_COUNTERS], struct found *f)
{
    for (enum stream s = 0; s < STREAMS && !f->wrong; s++)
        if (f->last[s] < counters[s]) {
            char text[160];
            snprintf(text, sizeof text, "stream %d has %llu to %llu, acknowledged were %llu", s,
                     (unsigned long long)f->first[s], (unsigned long long)f->last[s],
                     (unsigned long long)counters[s]);
            wrong(f, "lost", text);
        }
}

/* Sinks are up before any writer is: they find all of it in the archive. */
static void read_before(struct work *image, const uint64_t counters[OUTAGE_COUNTERS], struct found *f)
{
    struct found early = {.wrong = NULL};

    read_topic(image->bus, "log", &early);
    read_topic(image->bus, "many", &early);
    expect_acknowledged(counters, &early);
    if (early.wrong)
        wrong(f, "before a writer came", early.text);
}

/* Goes on from an image, as after the power is back. Whether all writers are open. */
static bool recover(struct work *image, const uint64_t counters[OUTAGE_COUNTERS], struct found *f)
{
    struct spate_err err = {0};

    good(spate_bus_open(&image->scratch.config, &image->bus, &err), &err);
    if (spate_broken == SPATE_BROKEN_NOTHING) /* the controls are of what a recovery does */
        read_before(image, counters, f);
    for (enum stream s = 0; s < STREAMS; s++) {
        if (spate_bus_writer_open(image->bus, topic_of(s), flags_of(s), &image->writers[s], &err) !=
            SPATE_OK) {
            wrong(f, "a writer", err.text);
            while (s > 0)
                spate_writer_close(image->writers[--s]);
            spate_bus_close(image->bus);
            return false;
        }
        /* L4: no position that anybody was told of is used again. */
        if (spate_writer_end(image->writers[s]).at <= counters[s == ALONE ? HANDED_ALONE : HANDED_MANY])
            wrong(f, "a position is used twice", topic_of(s));
    }
    if (!f->wrong)
        read_topic(image->bus, "log", f);
    if (!f->wrong)
        read_topic(image->bus, "many", f);
    expect_acknowledged(counters, f);
    return true;
}

/* One cut. NULL: all is well. */
static const char *cut_once(const struct work *w, uint64_t seed, struct found *f)
{
    uint64_t counters[OUTAGE_COUNTERS];
    struct work image = {.seed = seed};
    struct found again = {.wrong = NULL};

    *f = (struct found){.wrong = NULL};
    bus_scratch_init(&image.scratch, (int64_t)CAP);
    image.scratch.config.local_retention_bytes = (int64_t)KEEPS;
    make_image(w, image.scratch.path, seed, counters);
    bool open = recover(&image, counters, f);
    if (!f->wrong) {
        for (enum stream s = 0; s < STREAMS; s++) {
            image.next[s] = f->last[s] + 1;
            publish_some(&image, s, 3);
        }
        settle(&image);
        end(&image);
        /* Once more, right after: what recovery wrote is durable as well, and a reader meets both. */
        bus_scratch_remove(image.scratch.hot);
        mkdir(image.scratch.hot, 0700);
        for (enum stream s = 0; s < STREAMS; s++)
            counters[s] = image.next[s] - 1;
        open = recover(&image, counters, &again);
        if (again.wrong)
            wrong(f, "after another one", again.text);
    }
    if (open)
        end(&image);
    bus_scratch_fini(&image.scratch);
    return f->wrong;
}

static void L3_L4_what_a_power_cut_leaves_of_the_files(void **state)
{
    struct work *w = *state;
    const char *env = getenv("SPATE_POWER_CUTS");
#ifdef __SANITIZE_THREAD__
    const int cuts = env ? atoi(env) : 10;
#else
    const int cuts = env ? atoi(env) : 100;
#endif
    struct found f;

    for (int i = 0; i < cuts; i++) {
        const uint64_t seed = bus_log_random(&w->seed) >> 1;
        if (cut_once(w, seed, &f))
            fail_msg("cut %d (bus_outage with seed %llu): %s", i, (unsigned long long)seed, f.text);
    }
    print_message("%d power cuts\n", cuts);
}

/* With a rule taken away the same cuts are noticed. */
static void fails_without(struct work *w, enum spate_broken rule, const char *word)
{
    struct found f;
    int i;

#ifdef __SANITIZE_THREAD__
    skip(); /* many cuts, slowly; a race shows without them */
#endif
    spate_broken = rule;
    for (i = 0; i < 2000; i++)
        if (cut_once(w, bus_log_random(&w->seed) >> 1, &f) && strstr(f.text, word))
            break;
    spate_broken = SPATE_BROKEN_NOTHING;
    print_message("noticed at cut %d: %s\n", i, f.text);
    assert_true(i < 2000);
}

static void L3_control_without_the_cut_it_is_noticed(void **state)
{
    fails_without(*state, SPATE_BROKEN_NO_CUT, "");
}

static void L4_control_with_the_same_base_it_is_noticed(void **state)
{
    fails_without(*state, SPATE_BROKEN_SAME_BASE, "a position is used twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(L3_L4_what_a_power_cut_leaves_of_the_files),
        cmocka_unit_test(L3_control_without_the_cut_it_is_noticed),
        cmocka_unit_test(L4_control_with_the_same_base_it_is_noticed),
    };
    return cmocka_run_group_tests_name("buslab_outage", tests, write_the_story, drop_the_story);
}
