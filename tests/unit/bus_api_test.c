/* tests/unit/bus_api_test.c - the library for other programs: what each call says, in one process and after a
 * fork (L14). How it is installed and found: tests/integration/test_library.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bus/api/spate_bus.h"
#include "bus/local/named.h"
#include "tests/support/bus_scratch.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>

static struct bus_scratch scratch;
static struct spatebus *bus;

static int open_bus(void **state)
{
    (void)state;
    bus_scratch_init(&scratch, 0);
    const struct spatebus_options options = {
        .size = sizeof options, .hot = scratch.hot, .segment_bytes = 1 << 20};
    struct spatebus_error why;
    bus = spatebus_open(scratch.path, &options, &why);
    return bus ? 0 : -1;
}

static int close_bus(void **state)
{
    (void)state;
    spatebus_close(bus);
    bus_scratch_fini(&scratch);
    return 0;
}

static struct spatebus_writer *writer_of(const char *topic, unsigned flags)
{
    struct spatebus_error why = {.text = ""};
    struct spatebus_writer *writer = spatebus_writer_open(bus, topic, flags | SPATEBUS_CREATE, &why);

    assert_string_equal(why.text, "");
    assert_non_null(writer);
    return writer;
}

static struct spatebus_record record_of(const char *text)
{
    return (struct spatebus_record){.key = text, .key_len = 1, .value = text, .value_len = strlen(text)};
}

static void put(struct spatebus_writer *writer, const char *text)
{
    const struct spatebus_record record = record_of(text);
    struct spatebus_error why;

    assert_int_equal(spatebus_publish(writer, &record, 1, NULL, &why), SPATEBUS_OK);
}

static void expect(struct spatebus_reader *reader, const char *text)
{
    struct spatebus_message m;
    struct spatebus_error why = {.text = ""};

    assert_int_equal(spatebus_next(reader, &m, 5000, &why), SPATEBUS_OK);
    assert_int_equal(m.kind, SPATEBUS_RECORD);
    assert_int_equal(m.value_len, strlen(text));
    assert_memory_equal(m.value, text, m.value_len);
    assert_int_equal(m.key_len, 1);
    assert_memory_equal(m.key, text, 1);
    assert_true(m.next > m.pos);
}

/* In a process of its own: a handler stays. 0: none was installed, 1: one was. */
static int guarded(int no_guard)
{
    const struct spatebus_options options = {
        .size = sizeof options, .hot = scratch.hot, .segment_bytes = 1 << 20, .no_guard = no_guard};
    int status;

    const pid_t child = fork();
    if (child == 0) {
        struct sigaction now;
        signal(SIGBUS, SIG_DFL); /* cmocka has a handler of its own */
        struct spatebus *own = spatebus_open(scratch.path, &options, NULL);
        struct spatebus_writer *writer =
            own ? spatebus_writer_open(own, no_guard ? "bare" : "guarded", SPATEBUS_CREATE, NULL) : NULL;
        if (!writer || sigaction(SIGBUS, NULL, &now) != 0)
            _exit(2);
        const bool installed = (now.sa_flags & SA_SIGINFO) != 0 || now.sa_handler != SIG_DFL;
        spatebus_writer_close(writer);
        spatebus_close(own);
        _exit(installed);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* The first test: no mapping was made in this process yet. */
static void the_handler_of_sigbus_can_be_left_out(void **state)
{
    (void)state;
    assert_int_equal(guarded(1), 0);
    assert_int_equal(guarded(0), 1);
}

static void what_is_published_is_read_in_order(void **state)
{
    struct spatebus_error why;
    struct spatebus_message m;
    const struct spatebus_record three[] = {record_of("one"), record_of("two"), record_of("three")};
    size_t taken;

    (void)state;
    struct spatebus_writer *writer = writer_of("orders", 0);
    struct spatebus_reader *reader = spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    struct spatebus_reader *late = spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_NOW, &why);
    assert_int_equal(spatebus_next(reader, &m, 0, &why), SPATEBUS_AGAIN);
    assert_int_equal(spatebus_next(reader, &m, 20, &why), SPATEBUS_AGAIN);
    assert_int_equal(spatebus_publish(writer, three, 3, &taken, &why), SPATEBUS_OK);
    assert_int_equal(taken, 3);
    expect(reader, "one");
    expect(reader, "two");
    expect(late, "one");
    assert_int_equal(spatebus_next(late, &m, 0, &why), SPATEBUS_OK);
    assert_int_equal(spatebus_seek(reader, m.pos, &why), SPATEBUS_OK);
    expect(reader, "two");
    assert_int_equal(spatebus_seek(reader, m.next, &why), SPATEBUS_OK);
    expect(reader, "three");
    assert_int_equal(spatebus_reader_end(reader), spatebus_writer_end(writer));
    assert_int_equal(strlen(spatebus_reader_log(reader)), 36);
    spatebus_reader_close(late);
    spatebus_reader_close(reader);
    spatebus_writer_close(writer);
}

static void count_token(void *arg, uint64_t token)
{
    uint64_t *last = arg;

    assert_int_equal(token, *last + 1);
    *last = token;
}

static void tokens_come_back_once_and_flush_waits_for_all(void **state)
{
    struct spatebus_error why;
    uint64_t last = 0;

    (void)state;
    for (unsigned flags = 0; flags <= SPATEBUS_SHARED; flags += SPATEBUS_SHARED) {
        struct spatebus_writer *writer = writer_of(flags ? "shared" : "owned", flags);
        last = 0;
        for (uint64_t i = 1; i <= 100; i++) {
            struct spatebus_record record = record_of("x");
            record.token = i;
            assert_int_equal(spatebus_publish(writer, &record, 1, NULL, &why), SPATEBUS_OK);
        }
        put(writer, "without");
        assert_int_equal(spatebus_flush(writer, 10000, count_token, &last, &why), SPATEBUS_OK);
        assert_int_equal(last, 100);
        assert_true(spatebus_writer_durable(writer) >= spatebus_writer_end(writer));
        assert_int_equal(spatebus_poll(writer, 0, count_token, &last, &why), SPATEBUS_AGAIN);
        spatebus_writer_close(writer);
    }
}

static void a_volatile_topic_has_nothing_to_flush(void **state)
{
    struct spatebus_error why;

    (void)state;
    struct spatebus_writer *writer =
        writer_of("presence", SPATEBUS_VOLATILE | SPATEBUS_SHARED | SPATEBUS_UNCHECKED);
    put(writer, "here");
    assert_int_equal(spatebus_flush(writer, 10000, NULL, NULL, &why), SPATEBUS_OK);
    assert_null(spatebus_reader_open(bus, "presence", SPATEBUS_DURABLE, SPATEBUS_OLDEST, &why));
    assert_int_equal(why.code, SPATEBUS_E_FATAL);
    struct spatebus_reader *reader =
        spatebus_reader_open(bus, "presence", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    expect(reader, "here");
    spatebus_reader_close(reader);
    spatebus_writer_close(writer);
}

static void each_failure_says_what_to_do(void **state)
{
    struct spatebus_error why;
    struct spatebus_record record = {.value = "", .value_len = 0};
    struct spatebus_options later = {.size = sizeof later + 8};
    size_t taken = 9;

    (void)state;
    assert_null(spatebus_open("", NULL, &why));
    assert_int_equal(why.code, SPATEBUS_E_FATAL);
    assert_null(spatebus_open("/tmp/x", &later, &why));
    assert_int_equal(why.code, SPATEBUS_E_CALL);
    assert_null(spatebus_open("", NULL, NULL)); /* who does not ask why is not told */

    assert_null(spatebus_reader_open(bus, "nothing", SPATEBUS_TIP, SPATEBUS_OLDEST, &why));
    assert_int_equal(why.code, SPATEBUS_E_MISSING);
    assert_non_null(strstr(why.text, "there is no topic nothing"));
    assert_null(spatebus_reader_open(bus, "orders", 7, SPATEBUS_OLDEST, &why));
    assert_int_equal(why.code, SPATEBUS_E_CALL);
    assert_null(spatebus_writer_open(bus, "Not a Name", SPATEBUS_CREATE, &why));
    assert_int_equal(why.code, SPATEBUS_E_FATAL);
    assert_null(spatebus_writer_open(bus, "orders", 1u << 20, &why));
    assert_int_equal(why.code, SPATEBUS_E_CALL);
    assert_null(spatebus_writer_open(bus, "missing", 0, &why));
    assert_int_equal(why.code, SPATEBUS_E_MISSING);

    struct spatebus_writer *writer = writer_of("orders", 0);
    assert_null(spatebus_writer_open(bus, "orders", 0, &why)); /* it has an owner */
    assert_int_equal(why.code, SPATEBUS_E_RETRY);
    assert_int_equal(spatebus_publish(writer, &record, 1, &taken, &why), SPATEBUS_FAIL);
    assert_int_equal(why.code, SPATEBUS_E_RECORD);
    assert_int_equal(taken, 0);
    record = (struct spatebus_record){.value = scratch.path, .value_len = spatebus_writer_most(writer) + 1};
    assert_int_equal(spatebus_publish(writer, &record, 1, &taken, &why), SPATEBUS_FAIL);
    assert_int_equal(why.code, SPATEBUS_E_RECORD);
    put(writer, "and goes on");
    spatebus_writer_close(writer);
    spatebus_writer_close(NULL);
    spatebus_reader_close(NULL);
    spatebus_close(NULL);
}

static void a_relative_path_is_meant_from_where_it_was_opened(void **state)
{
    char here[400], relative[200];
    struct spatebus_error why;

    (void)state;
    assert_non_null(getcwd(here, sizeof here));
    spatebus_writer_close(writer_of("orders", 0));
    assert_int_equal(chdir(scratch.path), 0);
    snprintf(relative, sizeof relative, "../%s", strrchr(scratch.path, '/') + 1);
    const struct spatebus_options options = {.size = sizeof options, .hot = scratch.hot};
    struct spatebus *near = spatebus_open(relative, &options, &why);
    assert_int_equal(chdir(here), 0);
    struct spatebus_reader *reader =
        spatebus_reader_open(near, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    assert_non_null(reader);
    spatebus_reader_close(reader);
    spatebus_close(near);
}

static void note_name(void *arg, const char *topic)
{
    strcat(strcat(arg, topic), " ");
}

static void topics_are_listed(void **state)
{
    char names[200] = "";
    struct spatebus_error why;

    (void)state;
    assert_int_equal(spatebus_topics(bus, note_name, names, &why), SPATEBUS_OK);
    assert_string_equal(names, "");
    spatebus_writer_close(writer_of("a", 0));
    assert_int_equal(spatebus_topics(bus, note_name, names, &why), SPATEBUS_OK);
    assert_string_equal(names, "a ");
}

static void readers_with_a_name_are_known_and_unique(void **state)
{
    struct spatebus_error why;
    struct spate_local_named_view view;
    struct spate_err err = {0};
    const struct spate_local_place place = {.path = scratch.path, .hot = scratch.hot};

    (void)state;
    struct spatebus_writer *writer = writer_of("orders", 0);
    put(writer, "one");
    put(writer, "two");
    struct spatebus_reader *reader = spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    struct spatebus_reader *second = spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    assert_int_equal(spatebus_enlist(reader, "audit", 1, &why), SPATEBUS_OK);
    assert_int_equal(spatebus_enlist(second, "audit", 0, &why), SPATEBUS_FAIL);
    assert_int_equal(why.code, SPATEBUS_E_RETRY);
    assert_int_equal(spatebus_enlist(second, "no name", 0, &why), SPATEBUS_FAIL);
    assert_int_equal(why.code, SPATEBUS_E_FATAL);
    expect(reader, "one");
    const uint64_t end = spatebus_reader_end(reader);
    spatebus_passed(reader, end);
    spatebus_passed(second, 1); /* nothing where nobody is enlisted */
    assert_int_equal(spate_local_named_look(&place, "audit", "orders", &view, &err), SPATE_OK);
    assert_true(view.alive && view.holds);
    assert_int_equal(view.mark.pos, end);
    spatebus_reader_close(reader);
    assert_int_equal(spatebus_enlist(second, "audit", 0, &why), SPATEBUS_OK);
    assert_int_equal(spate_local_named_look(&place, "audit", "orders", &view, &err), SPATE_OK);
    assert_true(view.alive && !view.holds);
    spatebus_reader_close(second);
    spatebus_writer_close(writer);
}

/* The line of a topic's manifest that begins with `name`. */
static void expect_rule(const char *topic, const char *name, const char *value)
{
    char path[400], line[200], want[200];
    bool found = false;

    snprintf(path, sizeof path, "%s/%s/manifest", scratch.path, topic);
    snprintf(want, sizeof want, "%s %s\n", name, value);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        found = found || strcmp(line, want) == 0;
    fclose(file);
    if (!found)
        fail_msg("%s does not say \"%s %s\"", path, name, value);
}

static void what_the_options_say_is_kept(void **state)
{
    struct spatebus_error why;
    const struct spatebus_options options = {.size = sizeof options,
                                             .hot = scratch.hot,
                                             .segment_bytes = 1 << 20,
                                             .retention_ms = 3600000,
                                             .retention_bytes = 5 << 20};
    const unsigned shared = SPATEBUS_CREATE | SPATEBUS_SHARED;

    (void)state;
    spatebus_writer_close(writer_of("owned", 0));
    expect_rule("owned", "retention_ms", "604800000");
    expect_rule("owned", "retention_bytes", "0");
    spatebus_writer_close(writer_of("shared", SPATEBUS_SHARED));
    struct spatebus *other = spatebus_open(scratch.path, &options, &why);
    spatebus_writer_close(spatebus_writer_open(other, "owned", 0, &why));
    expect_rule("owned", "retention_ms", "3600000");
    expect_rule("owned", "retention_bytes", "5242880");
    spatebus_writer_close(spatebus_writer_open(other, "shared", shared, &why));
    expect_rule("shared", "retention_ms", "604800000"); /* a guest changes nothing ... */
    spatebus_writer_close(spatebus_writer_open(other, "shared", shared | SPATEBUS_RULE, &why));
    expect_rule("shared", "retention_ms", "3600000"); /* ... unless it says so */
    spatebus_close(other);
}

enum { WRITERS = 3, READERS = 2, EACH = 3000 };

struct crowd {
    struct spatebus_writer *writer;
    struct spatebus_reader *reader;
    unsigned number;
    uint64_t seen[WRITERS];
};

static void *write_all(void *arg)
{
    struct crowd *one = arg;
    struct spatebus_error why;
    uint64_t value[2] = {one->number, 0};
    int rc = SPATEBUS_OK;

    for (value[1] = 1; rc != SPATEBUS_FAIL && value[1] <= EACH; value[1]++) {
        const struct spatebus_record record = {.value = value, .value_len = sizeof value};
        while ((rc = spatebus_publish(one->writer, &record, 1, NULL, &why)) == SPATEBUS_AGAIN)
            spatebus_poll(one->writer, 1, NULL, NULL, NULL);
    }
    while (rc != SPATEBUS_FAIL &&
           (rc = spatebus_flush(one->writer, 1000, NULL, NULL, &why)) == SPATEBUS_AGAIN)
        ;
    return rc == SPATEBUS_OK ? NULL : one;
}

static void *read_all(void *arg)
{
    struct crowd *one = arg;
    struct spatebus_message m;
    struct spatebus_error why;
    uint64_t value[2];

    for (int left = WRITERS * EACH; left > 0; left--) {
        if (spatebus_next(one->reader, &m, 20000, &why) != SPATEBUS_OK || m.value_len != sizeof value)
            return one;
        memcpy(value, m.value, sizeof value);
        if (value[0] >= WRITERS || value[1] != ++one->seen[value[0]])
            return one;
    }
    return NULL;
}

/* Under ThreadSanitizer as well (L15). */
static void threads_with_handles_of_their_own_do_not_meet(void **state)
{
    struct crowd crowd[WRITERS + READERS] = {{.writer = NULL}};
    pthread_t threads[WRITERS + READERS];
    struct spatebus_error why;
    void *failed;

    (void)state;
    for (unsigned i = 0; i < WRITERS; i++)
        crowd[i] = (struct crowd){.writer = writer_of("crowd", SPATEBUS_SHARED), .number = i};
    for (unsigned i = WRITERS; i < WRITERS + READERS; i++)
        crowd[i].reader = spatebus_reader_open(bus, "crowd", i % 2 ? SPATEBUS_TIP : SPATEBUS_DURABLE,
                                               SPATEBUS_OLDEST, &why);
    for (unsigned i = 0; i < WRITERS + READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, i < WRITERS ? write_all : read_all, &crowd[i]), 0);
    for (unsigned i = 0; i < WRITERS + READERS; i++) {
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    for (unsigned i = 0; i < WRITERS + READERS; i++) {
        spatebus_reader_close(crowd[i].reader);
        spatebus_writer_close(crowd[i].writer);
    }
}

/* What a child says of its parent's handles; 0: all as promised. */
static int in_child(struct spatebus_writer *writer, struct spatebus_reader *reader)
{
    const struct spatebus_record record = record_of("from the child");
    struct spatebus_error why;
    struct spatebus_message m;

    if (spatebus_publish(writer, &record, 1, NULL, &why) != SPATEBUS_FAIL || why.code != SPATEBUS_E_FORKED)
        return 1;
    if (spatebus_poll(writer, 0, NULL, NULL, &why) != SPATEBUS_FAIL || why.code != SPATEBUS_E_FORKED)
        return 2;
    if (spatebus_next(reader, &m, 0, &why) != SPATEBUS_FAIL || why.code != SPATEBUS_E_FORKED)
        return 3;
    if (spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why) ||
        why.code != SPATEBUS_E_FORKED)
        return 4;
    spatebus_writer_close(writer);
    spatebus_reader_close(reader);

    const struct spatebus_options options = {.size = sizeof options, .hot = scratch.hot};
    struct spatebus *own = spatebus_open(scratch.path, &options, &why);
    struct spatebus_reader *mine =
        own ? spatebus_reader_open(own, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why) : NULL;
    if (!mine || spatebus_next(mine, &m, 5000, &why) != SPATEBUS_OK || m.value_len != strlen("before"))
        return 5;
    if (spatebus_writer_open(own, "orders", 0, &why) || why.code != SPATEBUS_E_RETRY) /* the parent has it */
        return 6;
    spatebus_reader_close(mine);
    spatebus_close(own);
    return 0;
}

static void L14_a_forked_child_is_refused_and_disturbs_nothing(void **state)
{
    struct spatebus_error why;
    int status;

    (void)state;
    struct spatebus_writer *writer = writer_of("orders", 0);
    struct spatebus_reader *reader = spatebus_reader_open(bus, "orders", SPATEBUS_TIP, SPATEBUS_OLDEST, &why);
    put(writer, "before");
    const pid_t child = fork();
    if (child == 0)
        _exit(in_child(writer, reader));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    put(writer, "after");
    expect(reader, "before");
    expect(reader, "after");
    assert_int_equal(spatebus_flush(writer, 10000, NULL, NULL, &why), SPATEBUS_OK);
    spatebus_reader_close(reader);
    spatebus_writer_close(writer);
}

int main(void)
{
#define BUS_TEST(fn) cmocka_unit_test_setup_teardown(fn, open_bus, close_bus)
    const struct CMUnitTest tests[] = {
        BUS_TEST(the_handler_of_sigbus_can_be_left_out),
        BUS_TEST(what_is_published_is_read_in_order),
        BUS_TEST(tokens_come_back_once_and_flush_waits_for_all),
        BUS_TEST(a_volatile_topic_has_nothing_to_flush),
        BUS_TEST(each_failure_says_what_to_do),
        BUS_TEST(a_relative_path_is_meant_from_where_it_was_opened),
        BUS_TEST(topics_are_listed),
        BUS_TEST(readers_with_a_name_are_known_and_unique),
        BUS_TEST(what_the_options_say_is_kept),
        BUS_TEST(threads_with_handles_of_their_own_do_not_meet),
        BUS_TEST(L14_a_forked_child_is_refused_and_disturbs_nothing),
    };

    return cmocka_run_group_tests_name("the library", tests, NULL, NULL);
}
