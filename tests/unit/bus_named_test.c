/* tests/unit/bus_named_test.c - readers with a name: whose it is, what their marks say when they are torn,
 * cut, foreign or hostile, and releases (LOCALBUS 5.3). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/local/layout.h"
#include "bus/local/named.h"
#include "bus/local/sigbus.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"
#include "tests/support/check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP (UINT64_C(1) << 20)

static const struct spate_start oldest = {.from = SPATE_START_OLDEST};

struct fixture {
    struct bus_scratch scratch;
    struct spate_local_place place;
    struct spate_bus *bus;
    struct spate_writer *writer; /* of "log", with 10 records */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct bus_log_acks acks = {0};
    struct spate_err err = {0};

    bus_scratch_init(&f->scratch, (int64_t)CAP);
    f->place = (struct spate_local_place){.path = f->scratch.path, .hot = f->scratch.hot};
    check(spate_bus_open(&f->scratch.config, &f->bus, &err), &err);
    check(spate_bus_writer_open(f->bus, "log", SPATE_TOPIC_CREATE, &f->writer, &err), &err);
    check(bus_log_publish(f->writer, 1, 10, &acks, &err), &err);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    spate_writer_close(f->writer);
    spate_bus_close(f->bus);
    bus_scratch_fini(&f->scratch);
    free(f);
    return 0;
}

static struct spate_reader *open_reader(struct fixture *f)
{
    struct spate_reader *r = NULL;
    struct spate_err err = {0};

    check(spate_bus_reader_open(f->bus, "log", SPATE_SEE_TIP, oldest, &r, &err), &err);
    return r;
}

static uint64_t read_one(struct spate_reader *r)
{
    struct spate_message m;
    struct spate_err err = {0};

    check(bus_log_next(r, &m, &err), &err);
    return m.next.at;
}

static struct spate_local_named_view look(struct fixture *f, const char *name)
{
    struct spate_local_named_view view;
    struct spate_err err = {0};

    check(spate_local_named_look(&f->place, name, "log", &view, &err), &err);
    return view;
}

static void file_of(const struct fixture *f, const char *name, char out[400])
{
    snprintf(out, 400, "%s/readers/%s/log", f->scratch.path, name);
}

static void a_name_says_how_far_its_reader_is(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r = open_reader(f);
    struct spate_err err = {0};

    spate_reader_passed(r, (struct spate_bus_pos){.at = 77}); /* not enlisted: nothing happens */
    check(spate_reader_enlist(r, "billing", false, &err), &err);
    uint64_t next = 0;
    for (int i = 0; i < 4; i++)
        next = read_one(r);
    spate_reader_passed(r, (struct spate_bus_pos){.at = next});
    struct spate_local_named_view view = look(f, "billing");
    assert_true(view.marked && view.alive && !view.holds);
    assert_int_equal(view.mark.pos, next);
    assert_int_equal(view.mark.records, 4);
    assert_int_equal(view.mark.pid, getpid());
    assert_true(llabs((long long)(view.mark.ts_ns / 1000) - spate_clock_wall_us()) < 60000000);
    spate_reader_close(r);
    view = look(f, "billing");
    assert_true(view.marked && !view.alive);
    assert_int_equal(view.mark.pos, next);

    /* Begun anew, it is known to be no further than either says. */
    r = open_reader(f);
    check(spate_reader_enlist(r, "billing", true, &err), &err);
    view = look(f, "billing");
    assert_true(view.alive && view.holds);
    assert_int_equal(view.mark.pos, CAP);
    assert_int_equal(view.mark.records, 4);
    next = read_one(r);
    spate_reader_passed(r, (struct spate_bus_pos){.at = next});
    assert_int_equal(look(f, "billing").mark.pos, next);
    check(spate_reader_enlist(r, "billing", false, &err), &err); /* it holds no longer, and says so */
    view = look(f, "billing");
    assert_true(view.alive && !view.holds);
    assert_int_equal(view.mark.pos, next);
    spate_reader_close(r);
}

static void a_name_has_one_living_process(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *first = open_reader(f), *second = open_reader(f);
    struct spate_err err = {0};
    char expected[64];

    check(spate_reader_enlist(first, "billing", true, &err), &err);
    assert_int_equal(spate_reader_enlist(second, "billing", true, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_RETRY);
    snprintf(expected, sizeof expected, "process %d has the name billing on topic log", (int)getpid());
    assert_non_null(strstr(err.text, expected));
    spate_reader_close(first);
    check(spate_reader_enlist(second, "billing", true, &err), &err);
    spate_reader_close(second);

    /* However it ends, the name is free. */
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) {
        struct spate_reader *r = open_reader(f);
        if (spate_reader_enlist(r, "billing", true, &err) != SPATE_OK || write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    struct spate_local_named_view view = look(f, "billing");
    assert_true(view.alive && view.holds);
    assert_int_equal(view.mark.pid, child);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    view = look(f, "billing");
    assert_true(view.marked && !view.alive && view.holds);
    close(ready[0]);
    close(ready[1]);
}

/* A process that is killed in the middle of a store leaves half of a mark: the other one is whole. */
static void of_a_torn_mark_the_one_before_counts(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r = open_reader(f);
    struct spate_err err = {0};
    struct spate_local_marks marks;
    char path[400];

    check(spate_reader_enlist(r, "billing", false, &err), &err);
    const uint64_t one = read_one(r), two = read_one(r);
    spate_reader_passed(r, (struct spate_bus_pos){.at = one});
    spate_reader_passed(r, (struct spate_bus_pos){.at = two});
    file_of(f, "billing", path);
    const int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &marks, sizeof marks, 0), sizeof marks);
    assert_int_equal(look(f, "billing").mark.pos, two);
    const int newest = marks.mark[0].gen > marks.mark[1].gen ? 0 : 1;
    for (size_t at = 0; at < sizeof marks.mark[0]; at++) {
        struct spate_local_marks torn = marks;
        ((unsigned char *)&torn.mark[newest])[at] ^= 0x5a;
        assert_int_equal(pwrite(fd, &torn, sizeof torn, 0), sizeof torn);
        assert_int_equal(look(f, "billing").mark.pos, one);
    }
    memset(&marks, 0x33, sizeof marks);
    assert_int_equal(pwrite(fd, &marks, sizeof marks, 0), sizeof marks);
    assert_false(look(f, "billing").marked); /* and nothing holds by it */
    spate_reader_passed(r, (struct spate_bus_pos){.at = two});
    assert_int_equal(look(f, "billing").mark.pos, two);
    close(fd);
    spate_reader_close(r);
}

/* The position of a log that was removed says nothing of the one that took its place. */
static void a_mark_of_another_log_does_not_count(void **state)
{
    struct fixture *f = *state;
    struct spate_local_named named;
    struct spate_err err = {0};

    check(spate_local_named_enlist(&named, &f->place, "old", "log", "another-log", false, 5, &err), &err);
    spate_local_named_passed(&named, 12, 3);
    spate_local_named_leave(&named);
    struct spate_reader *r = open_reader(f);
    check(spate_reader_enlist(r, "old", false, &err), &err);
    const struct spate_local_named_view view = look(f, "old");
    assert_int_equal(view.mark.pos, CAP);
    assert_int_equal(view.mark.records, 0);
    assert_int_equal(view.mark.log, spate_local_log_number(spate_reader_log_id(r)));
    spate_reader_close(r);
}

static void a_release_lasts_until_the_reader_is_past_it(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r = open_reader(f);
    struct spate_local_named_view view;
    struct spate_err err = {0};

    assert_int_equal(
        spate_local_named_release(&f->place, "nobody", "log", 9, SPATE_LOCAL_RELEASE_OPERATOR, &err),
        SPATE_END);
    check(spate_reader_enlist(r, "slow", true, &err), &err);
    const uint64_t one = read_one(r), two = read_one(r), three = read_one(r);
    spate_reader_passed(r, (struct spate_bus_pos){.at = one});
    assert_true(look(f, "slow").holds);
    check(spate_local_named_release(&f->place, "slow", "log", three, SPATE_LOCAL_RELEASE_OPERATOR, &err),
          &err);
    view = look(f, "slow");
    assert_true(view.alive && !view.holds);
    assert_int_equal(view.release.upto, three);
    assert_int_equal(view.release.why, SPATE_LOCAL_RELEASE_OPERATOR);
    spate_reader_passed(r, (struct spate_bus_pos){.at = two});
    assert_false(look(f, "slow").holds);
    spate_reader_passed(r, (struct spate_bus_pos){.at = three});
    assert_true(look(f, "slow").holds);
    spate_reader_close(r);
}

struct names {
    char text[300];
};

static void add_name(void *arg, const struct spate_local_named_view *view)
{
    struct names *names = arg;
    const size_t len = strlen(names->text);

    snprintf(names->text + len, sizeof names->text - len, "%s/%s%s ", view->name, view->topic,
             view->marked ? "" : "?");
}

static void note(void *arg, const char *topic)
{
    struct names *names = arg;
    const size_t len = strlen(names->text);

    snprintf(names->text + len, sizeof names->text - len, "%s ", topic);
}

/* Whoever may read the bus may put anything there. */
static void what_others_put_there_is_not_believed(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r = open_reader(f);
    struct spate_err err = {0};
    struct names names = {""};
    char path[400], path2[400];

    static const char *const bad[] = {"", ".", "..", "a/b", "Ab", "../log", "_x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        err = (struct spate_err){0};
        assert_int_equal(spate_reader_enlist(r, bad[i], false, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
    }
    check(spate_reader_enlist(r, "good", false, &err), &err);
    /* A symbolic link in the place of a directory or of a file, a pipe that nobody reads, a file too short.
     */
    snprintf(path, sizeof path, "%s/readers/linked", f->scratch.path);
    assert_int_equal(symlink("/tmp", path), 0);
    snprintf(path, sizeof path, "%s/readers/pipe", f->scratch.path);
    assert_int_equal(mkdir(path, 0770), 0);
    file_of(f, "pipe", path);
    assert_int_equal(mkfifo(path, 0660), 0);
    snprintf(path, sizeof path, "%s/readers/file", f->scratch.path);
    assert_int_equal(mkdir(path, 0770), 0);
    file_of(f, "file", path);
    file_of(f, "good", path2);
    assert_int_equal(symlink(path2, path), 0);
    snprintf(path, sizeof path, "%s/readers/short", f->scratch.path);
    assert_int_equal(mkdir(path, 0770), 0);
    file_of(f, "short", path);
    close(open(path, O_RDWR | O_CREAT, 0660));

    check(spate_local_named_list(&f->place, "log", add_name, &names, &err), &err);
    assert_non_null(strstr(names.text, "good/log "));
    assert_non_null(strstr(names.text, "short/log? "));
    assert_null(strstr(names.text, "linked"));
    assert_null(strstr(names.text, "pipe"));
    static const char *const refused[] = {"linked", "pipe", "file"};
    for (size_t i = 0; i < 3; i++) {
        struct spate_reader *other = open_reader(f);
        err = (struct spate_err){0};
        assert_int_equal(spate_reader_enlist(other, refused[i], false, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_FATAL);
        spate_reader_close(other);
    }
    struct spate_reader *other = open_reader(f);
    check(spate_reader_enlist(other, "short", false, &err), &err); /* it is made long enough */
    assert_true(look(f, "short").marked);
    spate_reader_close(other);
    spate_reader_close(r);
}

static struct sigaction guard; /* cmocka puts its own in its place */

static void a_file_that_is_cut_kills_nobody(void **state)
{
    struct fixture *f = *state;
    struct sigaction cmockas;
    struct spate_reader *r = open_reader(f);
    struct spate_err err = {0};
    char path[400];

    check(spate_reader_enlist(r, "cut", false, &err), &err);
    file_of(f, "cut", path);
    sigaction(SIGBUS, &guard, &cmockas);
    assert_int_equal(truncate(path, 0), 0);
    const uint64_t next = read_one(r);
    spate_reader_passed(r, (struct spate_bus_pos){.at = next});
    spate_reader_passed(r, (struct spate_bus_pos){.at = next});
    spate_reader_close(r);
    r = open_reader(f);
    check(spate_reader_enlist(r, "cut", false, &err), &err);
    assert_true(look(f, "cut").marked);
    spate_reader_close(r);
    sigaction(SIGBUS, &cmockas, NULL);
}

static void the_directory_of_names_is_no_topic(void **state)
{
    struct fixture *f = *state;
    struct spate_reader *r = open_reader(f);
    struct spate_writer *w;
    struct spate_err err = {0};
    struct names names = {""};
    struct stat st;
    char path[400];

    assert_int_equal(spate_bus_writer_open(f->bus, "readers", SPATE_TOPIC_CREATE, &w, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    check(spate_reader_enlist(r, "manifest", false, &err), &err);
    snprintf(path, sizeof path, "%s/readers/manifest", f->scratch.path);
    assert_int_equal(stat(path, &st), 0);
    check(spate_bus_topics(f->bus, note, &names, &err), &err);
    assert_string_equal(names.text, "log ");
    spate_reader_close(r);
}

/* The group of the bus makes and changes what is its own there, whatever the umask says. */
static void the_group_may_have_names(void **state)
{
    struct fixture *f = *state;
    const mode_t before = umask(0077);
    struct spate_reader *r = open_reader(f);
    struct spate_err err = {0};
    struct stat st;
    char path[400];

    check(spate_reader_enlist(r, "team", false, &err), &err);
    umask(before);
    snprintf(path, sizeof path, "%s/readers", f->scratch.path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 02770);
    snprintf(path, sizeof path, "%s/readers/team", f->scratch.path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 02770);
    file_of(f, "team", path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    assert_int_equal(st.st_size, 192);
    spate_reader_close(r);
}

static void nothing_is_held_of_a_volatile_topic(void **state)
{
    struct fixture *f = *state;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_err err = {0};

    check(spate_bus_writer_open(f->bus, "chat", SPATE_TOPIC_CREATE | SPATE_TOPIC_VOLATILE, &w, &err), &err);
    check(spate_bus_reader_open(f->bus, "chat", SPATE_SEE_TIP, oldest, &r, &err), &err);
    assert_int_equal(spate_reader_enlist(r, "me", true, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    check(spate_reader_enlist(r, "me", false, &err), &err);
    spate_reader_close(r);
    spate_writer_close(w);
}

int main(void)
{
#define T(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_name_says_how_far_its_reader_is),
        T(a_name_has_one_living_process),
        T(of_a_torn_mark_the_one_before_counts),
        T(a_mark_of_another_log_does_not_count),
        T(a_release_lasts_until_the_reader_is_past_it),
        T(what_others_put_there_is_not_believed),
        T(a_file_that_is_cut_kills_nobody),
        T(the_directory_of_names_is_no_topic),
        T(the_group_may_have_names),
        T(nothing_is_held_of_a_volatile_topic),
    };
    static char page[SPATE_LOCAL_HEADER];
    spate_local_guard_remove(spate_local_guard_add(page, sizeof page, false));
    sigaction(SIGBUS, NULL, &guard);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
