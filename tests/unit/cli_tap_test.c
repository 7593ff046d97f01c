/* spate tap on a real bus: what it shows, what it passes by, and how it ends. Each run is a child of its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/open.h"
#include "cli/cli.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/signals.h"

static char scratch[64], path[96], hot[96];

#define HEAD  "{\"spate\":1,\"op\":"
#define ORDER ",\"epoch\":1,\"schema\":\"public\",\"table\":\"orders\",\"pos\":\"00000000016B3748.0000000"
#define META  "\",\"xid\":745,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\""

#define ADDRESS ",\"epoch\":1,\"to\":\"billing\",\"request\":\"r1\""
#define STAMP   ",\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\""

static const char *const lines[] = {
    HEAD "\"insert\",\"n\":1" ORDER "1" META
         ",\"v\":1,\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1}}",
    HEAD "\"update\",\"n\":2" ORDER "2" META
         ",\"v\":1,\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1}}",
    HEAD
    "\"insert\",\"n\":3,\"epoch\":1,\"schema\":\"public\",\"table\":\"odd.name\",\"pos\":\"00000000016B3748."
    "00000003" META ",\"v\":1,\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1}}",
    HEAD
    "\"truncate\",\"n\":4,\"epoch\":1,\"pos\":\"00000000016B3748.00000004\",\"end\":\"00000000016B3790" META
    ",\"tables\":[{\"schema\":\"a\",\"table\":\"b\",\"v\":1},{\"schema\":\"public\",\"table\":\"orders\","
    "\"v\":1}],"
    "\"cascade\":false,\"restart\":false,\"key\":null}",
    "this is no message",
    HEAD
    "\"heartbeat\",\"at\":4,\"epoch\":1,\"end\":\"00000000016B3790\",\"ts\":\"2026-11-21T09:14:03.123456Z\","
    "\"source\":\"shop\"}",
    HEAD "\"snapshot-begin\",\"at\":4" ADDRESS ",\"end\":\"00000000016B3790\"" STAMP
         ",\"tables\":[{\"schema\":\"a\",\"table\":\"b\"},{\"schema\":\"public\",\"table\":\"orders\"}]}",
    HEAD "\"ranges-end\",\"at\":4" ADDRESS STAMP
         ",\"tables\":[{\"schema\":\"a\",\"table\":\"b\",\"chunks\":0,\"resume\":\"\"}]}",
    HEAD "\"read\",\"at\":4" ADDRESS
         ",\"schema\":\"public\",\"table\":\"orders\",\"v\":1,\"by\":\"0a1b2c3d\","
         "\"no\":1,\"key\":{\"id\":1},\"after\":{\"id\":1}}",
};

static void publish(struct spate_bus *bus, const char *topic, const char *const *texts, size_t count)
{
    struct spate_writer *writer;
    struct spate_err err = {0};
    size_t taken;

    if (spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE, &writer, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < count; i++) {
        const struct spate_record record = {.value = spate_slice_str(texts[i]), .ts_us = 1};

        if (spate_writer_publish(writer, &record, 1, &taken, &err) != SPATE_OK)
            fail_msg("%s", err.text);
    }
    spate_writer_close(writer);
}

static struct spate_bus *open_bus(void)
{
    const struct spate_bus_config config = {
        .local_path = path, .local_hot = hot, .local_segment_bytes = 1 << 20};
    struct spate_bus *bus;
    struct spate_err err = {0};

    if (spate_bus_open(&config, &bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return bus;
}

/* A running tap; its standard output and error can be read. */
struct tap {
    pid_t pid;
    int out, err;
};

static struct tap start(const char *const *args)
{
    char *argv[24] = {"tap"};
    int argc = 1, out[2], words[2];
    struct tap tap;

    while (args[argc - 1]) {
        argv[argc] = (char *)(uintptr_t)args[argc - 1];
        argc++;
    }
    assert_int_equal(pipe(out), 0);
    assert_int_equal(pipe(words), 0);
    tap.pid = fork();
    assert_true(tap.pid >= 0);
    if (tap.pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        dup2(words[1], STDERR_FILENO);
        for (int i = 3; i < 64; i++)
            close(i);
        spate_signals_init();
        optind = 0;
        _exit((int)spate_cli_tap(argc, argv));
    }
    close(out[1]);
    close(words[1]);
    tap.out = out[0];
    tap.err = words[0];
    return tap;
}

static void read_all(int fd, struct spate_buf *into)
{
    ssize_t got;

    do {
        spate_buf_reserve(into, 4096);
        got = read(fd, into->data + into->len, 4096);
        into->len += got > 0 ? (size_t)got : 0;
    } while (got > 0);
    close(fd);
}

/* Waits for the end with a deadline: a tap that hangs fails its test, not the whole run. */
static int end_of(pid_t pid)
{
    for (int i = 0; i < 2000; i++) {
        int status;

        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        poll(NULL, 0, 10);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return -2;
}

static int run(const char *const *args, struct spate_buf *out, struct spate_buf *err)
{
    struct tap tap = start(args);
    struct pollfd fd = {.fd = tap.out, .events = POLLIN};

    if (poll(&fd, 1, 20000) == 0)
        kill(tap.pid, SIGKILL);
    read_all(tap.out, out);
    read_all(tap.err, err);
    return end_of(tap.pid);
}

#define BUS "--bus", path
/* The path of the hot part cannot be given on the command line: a file names it. */
static char file[96];

static void shows(const char *const *args, const size_t *expected, size_t count)
{
    struct spate_buf out = {0}, err = {0}, want = {0};

    for (size_t i = 0; i < count; i++)
        spate_buf_printf(&want, "%s\n", lines[expected[i]]);
    assert_int_equal(run(args, &out, &err), SPATE_EXIT_OK);
    assert_string_equal(spate_buf_str(&out), spate_buf_str(&want));
    spate_buf_fini(&out);
    spate_buf_fini(&err);
    spate_buf_fini(&want);
}

#define SHOWS(...)                                                                                           \
    static const size_t expected[] = {__VA_ARGS__};                                                          \
    (void)state;                                                                                             \
    shows(args, expected, SPATE_COUNT(expected))

static void everything_as_it_stands(void **state)
{
    const char *args[] = {"-c", file, "--from", "oldest", "-n", "6", NULL};

    SHOWS(0, 1, 2, 3, 4, 5);
}

static void tables_and_what_names_them_among_others(void **state)
{
    const char *args[] = {"-c", file, "--from=oldest", "--count=5", "public.orders", NULL};

    SHOWS(0, 1, 3, 6, 8);
}

static void quoted_tables(void **state)
{
    const char *args[] = {"public.\"odd.name\"", "a.*", "-c", file, "--from", "oldest", "-n2", NULL};

    SHOWS(2, 3);
}

static void ops(void **state)
{
    const char *args[] = {"-c", file, "--from", "oldest", "--op", "update,heartbeat", "-n", "2", NULL};

    SHOWS(1, 5);
}

static void positions_lead_back(void **state)
{
    const char *args[] = {"-c", file, "--from", "oldest", "--pos", "-n", "3", "--durable", NULL};
    const char *from[] = {"-c", file, "--from", NULL, "-n", "1", NULL};
    struct spate_buf out = {0}, err = {0};
    char *third, *tab;
    static const size_t expected[] = {2};

    (void)state;
    assert_int_equal(run(args, &out, &err), SPATE_EXIT_OK);
    third = strchr(strchr((char *)(uintptr_t)spate_buf_str(&out), '\n') + 1, '\n') + 1;
    tab = strchr(third, '\t');
    assert_non_null(tab);
    assert_int_equal(strncmp(tab + 1, lines[2], strlen(lines[2])), 0);
    *tab = '\0';
    from[3] = third;
    shows(from, expected, 1);
    spate_buf_fini(&out);
    spate_buf_fini(&err);
}

static void now_begins_at_the_end(void **state)
{
    const char *args[] = {"-c", file, "--stream", "later", "-n", "1", NULL};
    const char *const before[] = {"{\"spate\":1,\"old\":1}"}, *const after[] = {"{\"spate\":1,\"new\":1}"};
    struct spate_bus *bus = open_bus();
    struct spate_buf out = {0}, err = {0};
    struct tap tap;

    (void)state;
    publish(bus, "later", before, 1);
    tap = start(args);
    for (int i = 0; i < 2000 && out.len == 0; i++) { /* it may take a while until the tap stands at the end */
        struct pollfd fd = {.fd = tap.out, .events = POLLIN};

        publish(bus, "later", after, 1);
        if (poll(&fd, 1, 10) > 0)
            read_all(tap.out, &out);
    }
    assert_string_equal(spate_buf_str(&out), "{\"spate\":1,\"new\":1}\n");
    read_all(tap.err, &err);
    assert_int_equal(end_of(tap.pid), SPATE_EXIT_OK);
    bus->ops->close(bus);
    spate_buf_fini(&out);
    spate_buf_fini(&err);
}

static void a_closed_pipe_ends_it(void **state)
{
    const char *args[] = {"-c", file, NULL}; /* nothing comes: it must notice while idle */
    struct tap tap = start(args);

    (void)state;
    close(tap.out);
    assert_int_equal(end_of(tap.pid), SPATE_EXIT_OK);
    close(tap.err);
}

static void an_interrupt_ends_it(void **state)
{
    const char *args[] = {"-c", file, "--from", "oldest", NULL};
    struct tap tap = start(args);
    struct pollfd fd = {.fd = tap.out, .events = POLLIN};

    (void)state;
    assert_int_equal(poll(&fd, 1, 20000), 1); /* it runs */
    kill(tap.pid, SIGINT);
    assert_int_equal(end_of(tap.pid), SPATE_EXIT_OK);
    close(tap.out);
    close(tap.err);
}

static void a_stream_must_be_chosen_among_many(void **state)
{
    const char *args[] = {BUS, NULL},
               *chosen[] = {"-c", file, "--stream", "Big Shop", "--from", "oldest", "-n", "1", NULL};
    struct spate_buf out = {0}, err = {0};
    struct spate_bus *bus = open_bus();
    char topic[64], beside[80];

    (void)state;
    assert_int_equal(spate_topic_escape("Big Shop", topic, sizeof topic, &(struct spate_err){0}), SPATE_OK);
    snprintf(beside, sizeof beside, "%s._schemas", topic);
    publish(bus, topic, lines, 1);
    publish(bus, beside, lines, 1);
    publish(bus, "orders", lines, 1); /* somebody else's: a stream has its tables beside it */
    bus->ops->close(bus);
    assert_int_equal(run(args, &out, &err), SPATE_EXIT_CONFIG);
    assert_int_equal(out.len, 0);
    assert_non_null(strstr(spate_buf_str(&err), "several streams"));
    assert_non_null(strstr(err.data, "shop"));
    assert_null(strstr(err.data, "orders"));
    assert_non_null(strstr(err.data, "Big Shop")); /* as it is called, and as --stream takes it */
    assert_int_equal(run(chosen, &out, &err), SPATE_EXIT_OK);
    assert_true(out.len > 0);
    assert_non_null(strstr(err.data, "--stream NAME"));
    assert_null(strstr(err.data, "_schemas"));
    spate_buf_fini(&out);
    spate_buf_fini(&err);
}

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *args[8], *words;
    } cases[] = {
        {{"--buss", "x"}, "did you mean --bus?"},
        {{"-c", "/no/such.yaml"}, "/no/such.yaml: No such file"},
        {{"--op", "insrt"}, "did you mean insert?"},
        {{"--op", "schema"}, "there is no op 'schema'"},
        {{"--op", ""}, "there is no op ''"},
        {{"-n", "0"}, "a number from 1"},
        {{"-n", "-1"}, "a number from 1"},
        {{"-n"}, "-n needs a value"},
        {{"--from"}, "--from needs a value"},
        {{"a.b.c"}, "more than two parts"},
        {{"-c", file, "--bus", path}, "names a bus already"},
        {{"-c", file, "--from", "yesterday"}, "--from takes oldest, now or a position"},
        {{NULL}, "no bus; name it with"},
    };

    (void)state;
    unsetenv("SPATE_BUS");
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_buf out = {0}, err = {0};

        assert_int_equal(run(cases[i].args, &out, &err), SPATE_EXIT_CONFIG);
        if (!strstr(spate_buf_str(&err), cases[i].words))
            fail_msg("'%s' is not in: %s", cases[i].words, err.data);
        assert_int_equal(out.len, 0);
        spate_buf_fini(&out);
        spate_buf_fini(&err);
    }
}

static int make_bus(void **state)
{
    struct spate_bus *bus;
    FILE *out;

    (void)state;
    strcpy(scratch, "/tmp/spate-tap-XXXXXX");
    if (!mkdtemp(scratch))
        return -1;
    snprintf(path, sizeof path, "%s/bus", scratch);
    snprintf(hot, sizeof hot, "%s/hot", scratch);
    snprintf(file, sizeof file, "%s/connector.yaml", scratch);
    out = fopen(file, "w");
    if (!out)
        return -1;
    fprintf(out, "connector: shop\nsource: {postgres: {url: x}}\nbus: {local: {path: %s, hot: %s}}\n", path,
            hot);
    fclose(out);
    bus = open_bus();
    publish(bus, "shop", lines, SPATE_COUNT(lines));
    publish(bus, "shop._schemas", lines, 1);
    bus->ops->close(bus);
    return 0;
}

static int remove_bus(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return system(command) == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_as_it_stands),
        cmocka_unit_test(tables_and_what_names_them_among_others),
        cmocka_unit_test(quoted_tables),
        cmocka_unit_test(ops),
        cmocka_unit_test(positions_lead_back),
        cmocka_unit_test(a_closed_pipe_ends_it),
        cmocka_unit_test(an_interrupt_ends_it),
        cmocka_unit_test(now_begins_at_the_end),
        cmocka_unit_test(a_stream_must_be_chosen_among_many),
        cmocka_unit_test(mistakes_are_named),
    };

    return cmocka_run_group_tests_name("tap", tests, make_bus, remove_bus);
}
