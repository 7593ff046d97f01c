/* tests/unit/bus_rights_test.c - whose files a bus makes, who may do what with them, and what it refuses to
 * touch. Other users' part needs root; without it those tests are skipped and say so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/named.h"
#include "bus/local/place.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP      (UINT64_C(1) << 20)
#define STRANGER 65533
#define MEMBER   65532
#define GROUP    65531

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct fixture {
    struct bus_scratch scratch;
    char below[160], hot[160]; /* made by the bus itself */
    struct spate_bus *bus;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct spate_err err = {0};

    bus_scratch_init(&f->scratch, (int64_t)CAP);
    chmod(f->scratch.path, 0755);
    chmod(f->scratch.hot, 0755);
    snprintf(f->below, sizeof f->below, "%s/bus", f->scratch.path);
    snprintf(f->hot, sizeof f->hot, "%s/hot", f->scratch.hot);
    f->scratch.config.local_path = f->below;
    f->scratch.config.local_hot = f->hot;
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_bus_close(f->bus);
    bus_scratch_fini(&f->scratch);
    free(f);
    return 0;
}

static struct spate_writer *open_writer(struct spate_bus *bus, const char *topic, unsigned flags)
{
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    check(spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE | flags, &w, &err), &err);
    return w;
}

static void publish(struct spate_writer *w, uint64_t first, uint64_t last)
{
    struct bus_log_acks acks = {.last = first - 1};
    struct spate_err err = {0};

    check(bus_log_publish(w, first, last, &acks, &err), &err);
    check(bus_log_settle(w, last, &acks, &err), &err);
}

static struct spate_reader *open_reader(struct spate_bus *bus)
{
    struct spate_reader *r = NULL;
    struct spate_err err = {0};

    check(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, oldest, &r, &err), &err);
    return r;
}

static int walk(const char *path, void (*each)(const char *path, const struct stat *st, void *arg), void *arg)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    struct stat st;
    int count = 1;

    assert_non_null(dir);
    assert_int_equal(stat(path, &st), 0);
    each(path, &st, arg);
    while ((entry = readdir(dir)) != NULL) {
        char name[1024];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 || lstat(name, &st) != 0)
            continue;
        if (S_ISDIR(st.st_mode))
            count += walk(name, each, arg);
        else
            each(name, &st, arg), count++;
    }
    closedir(dir);
    return count;
}

static bool is_shared(const char *path)
{
    return strstr(path, "/many") || strstr(path, "/" SPATE_LOCAL_READERS);
}

static void expect_mode(const char *path, const struct stat *st, void *arg)
{
    const mode_t mode = st->st_mode & 07777;
    mode_t wanted = S_ISDIR(st->st_mode) ? (is_shared(path) ? 02770 : 02750) : is_shared(path) ? 0660 : 0640;

    (void)arg;
    if (strcmp(path + strlen(path) - 5, "/bell") == 0)
        wanted = 0660;
    if (mode != wanted)
        fail_msg("%s has mode %o, expected %o", path, (unsigned)mode, (unsigned)wanted);
}

/* LOCALBUS 3 and 5.5, whatever the umask says. */
static void modes_are_what_they_should_be(void **state)
{
    struct fixture *f = *state;
    static const mode_t masks[] = {0, 022, 077};
    struct spate_err err = {0};

    for (size_t i = 0; i < 3; i++) {
        const mode_t before = umask(masks[i]);
        struct spate_writer *own = open_writer(f->bus, "log", 0),
                            *many = open_writer(f->bus, "many", SPATE_TOPIC_SHARED);
        publish(own, 1, 5000); /* rolls, archives, trims */
        publish(many, 1, 5000);
        struct spate_reader *r = open_reader(f->bus);
        check(spate_reader_enlist(r, "anna", false, &err), &err);
        umask(before);
        assert_true(walk(f->below, expect_mode, NULL) > 12);
        assert_true(walk(f->hot, expect_mode, NULL) > 8);
        spate_reader_close(r);
        spate_writer_close(own);
        spate_writer_close(many);
        bus_scratch_remove(f->below);
        bus_scratch_remove(f->hot);
    }
}

/* ---- other users ---- */

static bool as_root(void)
{
    if (geteuid() == 0)
        return true;
    print_message("skipped: other users need root\n");
    return false;
}

/* Runs it as another user; what it returns is the exit status. */
static void as_user(uid_t uid, gid_t group, int (*what)(struct fixture *), struct fixture *f)
{
    int status;
    const pid_t child = fork();

    if (child == 0) {
        if (setgroups(1, &group) != 0 || setgid(uid) != 0 || setuid(uid) != 0)
            _exit(99);
        _exit(what(f));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("as uid %u: status %x, line %d", (unsigned)uid, status,
                 WIFEXITED(status) ? WEXITSTATUS(status) : 0);
}

/* In the child a failure is the exit status: the number of this check. */
#define must(number, what)                                                                                   \
    do {                                                                                                     \
        if (!(what)) {                                                                                       \
            fprintf(stderr, "line %d: %s\n", __LINE__, #what);                                               \
            return (number);                                                                                 \
        }                                                                                                    \
    } while (0)

static void try_to_write(const char *path, const struct stat *st, void *arg)
{
    char name[1100];
    int *wrong = arg;
    const bool allowed = is_shared(path) || strcmp(path + strlen(path) - 5, "/bell") == 0;

    snprintf(name, sizeof name, "%s/.mine", path);
    const int fd = S_ISDIR(st->st_mode) ? open(name, O_RDWR | O_CREAT, 0600) : open(path, O_RDWR);
    if ((fd >= 0) != allowed) {
        fprintf(stderr, "%s may%s be written\n", path, fd >= 0 ? "" : " not");
        ++*wrong;
    }
    if (fd >= 0)
        close(fd);
    if (S_ISDIR(st->st_mode))
        unlink(name);
    if (!allowed && (unlink(path) == 0 || truncate(path, 0) == 0))
        ++*wrong;
}

/* Reads, is known by a name, and can change nothing else. */
static int a_member_reads(struct fixture *f)
{
    struct spate_bus *bus;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_writer *w;
    struct spate_err err = {0};
    int wrong = 0;

    must(1, spate_bus_open(&f->scratch.config, &bus, &err) == SPATE_OK);
    must(2, spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err) == SPATE_OK);
    for (uint64_t n = 1; n <= 5000; n++)
        must(3, bus_log_next(r, &m, &err) == SPATE_OK && bus_log_number(&m) == n);
    must(4, spate_reader_wait(r, 10, &err) == SPATE_AGAIN);
    must(5, spate_reader_enlist(r, "bert", false, &err) == SPATE_OK);
    spate_reader_passed(r, m.next);
    /* What a reader has mapped: read-only, but for the bell and its own marks. */
    char line[512];
    int segments = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    must(6, maps != NULL);
    while (fgets(line, sizeof line, maps)) {
        const bool own = strstr(line, "/bell") || strstr(line, "/" SPATE_LOCAL_READERS "/bert/");
        if (strstr(line, f->hot) || strstr(line, f->below)) {
            must(7, strstr(line, own ? " rw-s " : " r--s ") != NULL);
            segments += strstr(line, ".seg") != NULL;
        }
    }
    fclose(maps);
    must(8, segments > 0);
    must(9, spate_bus_writer_open(bus, "log", 0, &w, &err) == SPATE_FAIL && err.text[0] != '\0');
    must(10, strstr(err.text, "uid") != NULL);
    must(11, spate_bus_writer_open(bus, "many", SPATE_TOPIC_SHARED, &w, &err) ==
                 SPATE_OK); /* its topic as well */
    spate_writer_close(w);
    walk(f->below, try_to_write, &wrong);
    walk(f->hot, try_to_write, &wrong);
    must(12, wrong == 0);
    spate_reader_close(r);
    spate_bus_close(bus);
    return 0;
}

static int a_stranger_is_told(struct fixture *f)
{
    struct spate_bus *bus;
    struct spate_reader *r;
    struct spate_writer *w;
    struct spate_err err = {0};

    must(1, spate_bus_open(&f->scratch.config, &bus, &err) == SPATE_OK);
    must(2, spate_bus_reader_open(bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err) == SPATE_FAIL);
    must(3, strstr(err.text, "Permission denied") && strstr(err.text, f->below) &&
                strstr(err.text, "uid 65533"));
    must(4, spate_bus_writer_open(bus, "many", SPATE_TOPIC_SHARED, &w, &err) == SPATE_FAIL);
    must(5, strstr(err.text, "Permission denied") && strstr(err.text, "uid 65533"));
    spate_bus_close(bus);
    return 0;
}

static void the_group_reads_and_others_are_told(void **state)
{
    struct fixture *f = *state;

    if (!as_root()) {
        skip();
        return;
    }
    assert_int_equal(mkdir(f->below, 0750) + mkdir(f->hot, 0750), 0);
    assert_int_equal(chown(f->below, 0, GROUP) + chown(f->hot, 0, GROUP), 0);
    assert_int_equal(chmod(f->below, 02750) + chmod(f->hot, 02750), 0);
    struct spate_writer *w = open_writer(f->bus, "log", 0),
                        *many = open_writer(f->bus, "many", SPATE_TOPIC_SHARED);
    publish(w, 1, 5000);
    spate_writer_close(many);
    spate_writer_close(w); /* before the fork: a child has its parent's mappings */
    as_user(MEMBER, GROUP, a_member_reads, f);
    as_user(STRANGER, STRANGER, a_stranger_is_told, f);
    w = open_writer(f->bus, "log", 0);
    publish(w, 5001, 5100); /* nobody has spoilt it */
    spate_writer_close(w);
}

/* ---- names that others may have taken ---- */

/* A bus whose shared memory has no name of ours in its configuration. */
static struct spate_bus *open_unnamed(struct fixture *f, char hot[SPATE_LOCAL_PATH])
{
    struct spate_local_place place = {.path = f->below};
    struct spate_bus *bus = NULL;
    struct spate_err err = {0};

    mkdir(f->below, 0750);
    f->scratch.config.local_hot = NULL;
    check(spate_local_place_hot_path(&place, hot, &err), &err);
    check(spate_bus_open(&f->scratch.config, &bus, &err), &err);
    return bus;
}

static void refused(struct spate_bus *bus, const char *word)
{
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_err err = {0};

    assert_int_equal(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not say \"%s\"", err.text, word);
    assert_int_equal(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP, oldest, &r, &err), SPATE_FAIL);
}

static void a_link_of_our_name_is_not_followed(void **state)
{
    struct fixture *f = *state;
    char hot[SPATE_LOCAL_PATH];
    struct spate_bus *bus = open_unnamed(f, hot);
    struct stat st;

    assert_int_equal(symlink(f->scratch.hot, hot), 0);
    refused(bus, "remove it, or set bus.local.hot");
    assert_int_equal(lstat(hot, &st), 0);
    char meta[200];
    snprintf(meta, sizeof meta, "%s/bus.meta", f->scratch.hot);
    assert_int_not_equal(access(meta, F_OK), 0);
    unlink(hot);
    spate_bus_close(bus);
}

static void a_directory_of_a_stranger_is_refused(void **state)
{
    struct fixture *f = *state;
    char hot[SPATE_LOCAL_PATH];

    if (!as_root()) {
        skip();
        return;
    }
    struct spate_bus *bus = open_unnamed(f, hot);
    assert_int_equal(mkdir(hot, 0777), 0);
    assert_int_equal(chown(hot, STRANGER, STRANGER), 0);
    refused(bus, "belongs to uid 65533");
    bus_scratch_remove(hot);
    spate_bus_close(bus);

    /* A topic's, where anybody may make one. */
    mkdir(f->hot, 0777);
    char topic[180];
    snprintf(topic, sizeof topic, "%s/log", f->hot);
    assert_int_equal(chmod(f->hot, 01777) + mkdir(topic, 0777) + chown(topic, STRANGER, STRANGER), 0);
    struct spate_writer *w;
    struct spate_err err = {0};
    assert_int_equal(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "belongs to uid 65533"));
}

/* Who may read the directory may lock it: a bus does not wait for that for ever. */
static void a_lock_that_somebody_keeps_is_said(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w;
    struct spate_err err = {0};

    spate_writer_close(open_writer(f->bus, "log", 0));
    const int fd = open(f->hot, O_RDONLY | O_DIRECTORY);
    assert_true(fd >= 0 && flock(fd, LOCK_SH) == 0);
    assert_int_equal(spate_bus_writer_open(f->bus, "log", 0, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, "fuser"));
    close(fd);
    spate_writer_close(open_writer(f->bus, "log", 0));
}

/* Two configurations that name one directory in shared memory: the second bus leaves the first one alone. */
static void two_buses_do_not_share_their_shared_memory(void **state)
{
    struct fixture *f = *state;
    struct spate_bus_config second = f->scratch.config;
    struct spate_bus *bus;
    struct spate_err err = {0};
    struct spate_message m;
    char other[180];

    snprintf(other, sizeof other, "%s/bus2", f->scratch.path);
    second.local_path = other;
    check(spate_bus_open(&second, &bus, &err), &err);
    struct spate_writer *w = open_writer(f->bus, "log", 0), *theirs;
    publish(w, 1, 100);
    refused(bus, f->below);
    refused(bus, other);
    publish(w, 101, 200);
    struct spate_reader *r = open_reader(f->bus);
    for (uint64_t n = 1; n <= 200; n++) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    spate_reader_close(r);
    spate_writer_close(w);
    /* Nobody is there any more: it is taken over, and what was durable of the first one is in its own
     * archive. */
    theirs = open_writer(bus, "log", 0);
    publish(theirs, 1, 10);
    spate_writer_close(theirs);
    w = open_writer(f->bus, "log", 0);
    r = open_reader(f->bus);
    for (uint64_t n = 1; n <= 200; n++) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    spate_reader_close(r);
    spate_writer_close(w);
    spate_bus_close(bus);
}

/* ---- what goes away ---- */

static void a_reader_before_any_writer_is_told_to_wait(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r;
    struct spate_message m;
    struct spate_err err = {0};

    assert_int_equal(spate_bus_reader_open(f->bus, "log", SPATE_SEE_TIP, oldest, &r, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_true(err.missing);
    struct stat st;
    assert_int_not_equal(stat(f->below, &st), 0); /* it made nothing */
    spate_writer_close(open_writer(f->bus, "log", 0));
    r = open_reader(f->bus);
    assert_int_equal(spate_reader_next(r, &m, &err), SPATE_AGAIN);
    struct spate_writer *w = open_writer(f->bus, "log", 0);
    publish(w, 1, 1);
    check(bus_log_next(r, &m, &err), &err);
    spate_reader_close(r);
    spate_writer_close(w);
}

/* Publishes until the writer says that it cannot go on. */
static void publish_until_refused(struct spate_writer *w, uint64_t n, const char *word)
{
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};
    const int64_t deadline = spate_clock_ms() + 20000;
    enum spate_rc rc = SPATE_OK;
    char value[BUS_LOG_MOST];

    while (rc != SPATE_FAIL && spate_clock_ms() < deadline) {
        const struct spate_record record = {.value = bus_log_value(n, value), .token = n};
        size_t taken = 0;
        rc = spate_writer_publish(w, &record, 1, &taken, &err);
        n += taken;
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(w, 10, bus_log_acked, &acks, &err);
    }
    assert_int_equal(rc, SPATE_FAIL);
    if (!strstr(err.text, word) || !strstr(err.text, "log"))
        fail_msg("\"%s\" does not say \"%s\"", err.text, word);
}

static void the_archive_is_removed_under_everybody(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};
    struct spate_message m;
    struct spate_writer *w = open_writer(f->bus, "log", 0);

    publish(w, 1, 100);
    struct spate_reader *r = open_reader(f->bus);
    bus_scratch_remove(f->below);
    publish_until_refused(w, 101, "removed or moved"); /* nothing was acknowledged into the void */
    spate_writer_close(w);
    w = open_writer(f->bus, "log", 0); /* a new log */
    publish(w, 1, 10);
    const int64_t deadline = spate_clock_ms() + 20000;
    enum spate_rc rc;
    while ((rc = spate_reader_next(r, &m, &err)) != SPATE_FAIL && spate_clock_ms() < deadline)
        if (rc == SPATE_AGAIN)
            (void)!spate_reader_wait(r, 100, &err);
    assert_int_equal(rc, SPATE_FAIL);
    assert_non_null(strstr(err.text, "removed"));
    spate_reader_close(r);
    spate_writer_close(w);
}

/* It comes again in another place: what was acknowledged is still there. */
static void the_shared_memory_is_removed_under_everybody(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};
    struct spate_message m;
    struct spate_writer *w = open_writer(f->bus, "log", 0);

    publish(w, 1, 100);
    struct spate_reader *r = open_reader(f->bus);
    bus_scratch_remove(f->hot);
    publish_until_refused(w, 101, "removed");
    spate_writer_close(w);
    w = open_writer(f->bus, "log", 0);
    publish(w, 5001, 5010);
    uint64_t n = 0;
    for (int i = 0; n != 5010 && i < 100000; i++) { /* the same reader, without being opened anew */
        check(bus_log_next(r, &m, &err), &err);
        if (m.kind == SPATE_MESSAGE_RECORD && m.key.len > 0)
            n = bus_log_number(&m);
        assert_true(i >= 100 || n == (uint64_t)i + 1);
    }
    spate_reader_close(r);
    spate_writer_close(w);
}

/* A file of the archive is removed while it is written: it is made anew from shared memory. */
static void an_archive_file_is_removed_under_its_writer(void **state)
{
    struct fixture *f = *state;
    struct spate_err err = {0};
    struct spate_message m;
    struct spate_writer *w = open_writer(f->bus, "log", 0);
    char path[256];

    publish(w, 1, 100);
    snprintf(path, sizeof path, "%s/log/%016llx.seg", f->below, (unsigned long long)CAP);
    assert_int_equal(unlink(path), 0);
    publish(w, 101, 200);
    assert_int_equal(access(path, F_OK), 0);
    spate_writer_close(w);
    bus_scratch_remove(f->hot); /* the archive alone has all of it */
    struct spate_reader *r = NULL;
    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_DURABLE, oldest, &r, &err), &err);
    for (uint64_t n = 1; n <= 200; n++) {
        check(bus_log_next(r, &m, &err), &err);
        assert_int_equal(bus_log_number(&m), n);
    }
    spate_reader_close(r);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(modes_are_what_they_should_be),
        TEST(the_group_reads_and_others_are_told),
        TEST(a_link_of_our_name_is_not_followed),
        TEST(a_directory_of_a_stranger_is_refused),
        TEST(a_lock_that_somebody_keeps_is_said),
        TEST(two_buses_do_not_share_their_shared_memory),
        TEST(a_reader_before_any_writer_is_told_to_wait),
        TEST(the_archive_is_removed_under_everybody),
        TEST(the_shared_memory_is_removed_under_everybody),
        TEST(an_archive_file_is_removed_under_its_writer),
    };
    return cmocka_run_group_tests_name("bus_rights", tests, NULL, NULL);
}
