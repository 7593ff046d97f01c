/* spate bus on a real bus: what it says of topics, readers, segments and records, and that looking changes
 * nothing. Each run is a child of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bus/local/look.h"
#include "bus/open.h"
#include "cli/cli.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/signals.h"

#define SEGMENT (1 << 20)

static char scratch[64], path[96], hot[96];
static bool as_group; /* runs belong to a user who may read as one of the group, and write nothing */
static struct spate_bus *bus;

/* ---- running it ---- */

struct run {
    int code;
    struct spate_buf out, err;
};

static void read_file(const char *name, struct spate_buf *into)
{
    const int fd = open(name, O_RDONLY);
    ssize_t got;

    assert_true(fd >= 0);
    do {
        spate_buf_reserve(into, 1 << 16);
        got = read(fd, into->data + into->len, 1 << 16);
        into->len += got > 0 ? (size_t)got : 0;
    } while (got > 0);
    close(fd);
}

static void forget(struct run *run)
{
    spate_buf_fini(&run->out);
    spate_buf_fini(&run->err);
}

static struct run spate_bus(const char *const *args)
{
    char *argv[16] = {"bus"}, out[96], err[96];
    int argc = 1, status;
    struct run run = {0};

    while (args[argc - 1]) {
        argv[argc] = (char *)(uintptr_t)args[argc - 1];
        argc++;
    }
    snprintf(out, sizeof out, "%s/out", scratch);
    snprintf(err, sizeof err, "%s/err", scratch);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (as_group && geteuid() == 0 && (setgid(0) != 0 || setuid(65534) != 0))
            _exit(99);
        dup2(open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
        dup2(open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
        spate_signals_init();
        optind = 0;
        _exit((int)spate_cli_bus(argc, argv));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    run.code = WEXITSTATUS(status);
    read_file(out, &run.out);
    read_file(err, &run.err);
    spate_buf_str(&run.out);
    spate_buf_str(&run.err);
    return run;
}

#define RUN(...) spate_bus((const char *const[]){__VA_ARGS__, NULL})

static void must_say(const struct run *run, const char *words)
{
    if (!strstr(run->out.data, words) && !strstr(run->err.data, words))
        fail_msg("'%s' is not in: %s%s", words, run->out.data, run->err.data);
}

/* The number behind the first `name` that follows `after`. */
static uint64_t number(const struct run *run, const char *after, const char *name, int radix)
{
    const char *at = strstr(run->out.data, after);

    at = at ? strstr(at, name) : NULL;
    if (!at)
        fail_msg("no %s behind %s in %s", name, after, run->out.data);
    return strtoull(at + strlen(name), NULL, radix);
}

/* ---- a bus with something on it ---- */

static struct spate_bus *open_bus(void)
{
    const struct spate_bus_config config = {
        .local_path = path, .local_hot = hot, .local_segment_bytes = SEGMENT};
    struct spate_bus *opened;
    struct spate_err err = {0};

    if (spate_bus_open(&config, &opened, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return opened;
}

static struct spate_writer *writer_of(const char *topic, unsigned flags)
{
    struct spate_writer *writer;
    struct spate_err err = {0};

    if (spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE | flags, &writer, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return writer;
}

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

/* Values with a word that no output may show. */
static void publish(struct spate_writer *writer, unsigned count, size_t size)
{
    char *value = spate_zalloc(size);
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_err err = {0};

    memset(value, 'x', size);
    memcpy(value, "SECRET-ROW", 10);
    for (unsigned i = 0; i < count;) {
        const struct spate_record record = {.key = spate_slice_str("SECRET-KEY"),
                                            .value = spate_slice(value, size),
                                            .ts_us = spate_clock_wall_us()};
        size_t taken;
        const enum spate_rc rc = spate_writer_publish(writer, &record, 1, &taken, &err);

        if (rc == SPATE_FAIL || spate_clock_ms() > deadline)
            fail_msg("%s", err.text);
        i += (unsigned)taken;
        if (rc == SPATE_AGAIN && spate_writer_poll(writer, 10, ignore_token, NULL, &err) == SPATE_FAIL)
            fail_msg("%s", err.text);
    }
    free(value);
}

static void settle(struct spate_writer *writer)
{
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_err err = {0};

    while (spate_writer_durable(writer).at != spate_writer_end(writer).at) {
        if (spate_writer_poll(writer, 10, ignore_token, NULL, &err) == SPATE_FAIL ||
            spate_clock_ms() > deadline)
            fail_msg("not durable: %s", err.text);
    }
}

static struct spate_reader *reader_of(const char *topic, enum spate_visibility see)
{
    struct spate_reader *reader;
    struct spate_err err = {0};

    if (spate_bus_reader_open(bus, topic, see, (struct spate_start){.from = SPATE_START_OLDEST}, &reader,
                              &err) != SPATE_OK)
        fail_msg("%s", err.text);
    return reader;
}

static struct spate_bus_pos pass(struct spate_reader *reader, unsigned count)
{
    struct spate_message message = {.kind = SPATE_MESSAGE_RECORD};
    const int64_t deadline = spate_clock_ms() + 20000;
    struct spate_err err = {0};

    for (unsigned i = 0; i < count;) {
        const enum spate_rc rc = spate_reader_next(reader, &message, &err);

        if (rc == SPATE_FAIL || spate_clock_ms() > deadline)
            fail_msg("%s", err.text);
        i += rc == SPATE_OK;
    }
    spate_reader_passed(reader, message.next);
    return message.next;
}

static int make_bus(void **state)
{
    (void)state;
    strcpy(scratch, "/tmp/spate-bus-XXXXXX");
    if (!mkdtemp(scratch))
        return -1;
    snprintf(path, sizeof path, "%s/bus", scratch);
    snprintf(hot, sizeof hot, "%s/hot", scratch);
    unsetenv("SPATE_BUS");
    bus = open_bus();
    return 0;
}

static int remove_bus(void **state)
{
    char command[128];

    (void)state;
    spate_bus_close(bus);
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return system(command) == 0 ? 0 : -1;
}

/* The hot root is given in a file, since --bus derives it. */
static const char *connector_file(void)
{
    static char file[128];
    FILE *out;

    snprintf(file, sizeof file, "%s/connector.yaml", scratch);
    out = fopen(file, "w");
    assert_non_null(out);
    fprintf(out, "connector: shop\nsource: {postgres: {url: x}}\nbus: {local: {path: %s, hot: %s}}\n", path,
            hot);
    fclose(out);
    return file;
}

/* ---- the tests ---- */

static void topics_with_their_kind_size_and_writers(void **state)
{
    const char *file = connector_file();
    struct spate_writer *stream = writer_of("shop", 0), *aside, *one, *other;
    struct run run;

    (void)state;
    aside = writer_of("shop._schemas", SPATE_TOPIC_KEEP);
    one = writer_of("shop._control", SPATE_TOPIC_SHARED);
    other = writer_of("shop._peers", SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE);
    publish(stream, 300, 8000); /* two segments and a bit */
    settle(stream);

    run = RUN("ls", "-c", file, "--json");
    assert_int_equal(run.code, 0);
    assert_int_equal(number(&run, "\"topic\":\"shop\"", "\"tip\":\"local:", 16), spate_writer_end(stream).at);
    assert_int_equal(number(&run, "\"topic\":\"shop\"", "\"durable\":\"local:", 16),
                     spate_writer_end(stream).at);
    assert_int_equal(number(&run, "\"topic\":\"shop\"", "\"oldest\":\"local:", 16), SEGMENT);
    assert_int_equal(number(&run, "\"topic\":\"shop\"", "\"segments_archived\":", 10), 3);
    assert_true(number(&run, "\"topic\":\"shop\"", "\"archive_bytes\":", 10) > 300 * 8000);
    must_say(&run, "\"topic\":\"shop._schemas\"");
    must_say(&run, "\"volatile\":true,\"shared\":true");
    char who[64];
    snprintf(who, sizeof who, "process %d on host", (int)getpid());
    must_say(&run, who);
    forget(&run);

    run = RUN("ls", "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "durable, kept");
    must_say(&run, "durable, shared");
    must_say(&run, "volatile, shared");
    must_say(&run, who);
    assert_null(strstr(run.out.data, "SECRET"));
    forget(&run);

    spate_writer_close(stream);
    spate_writer_close(aside);
    spate_writer_close(one);
    spate_writer_close(other);
    run = RUN("ls", "-c", file);
    assert_null(strstr(run.out.data, "process"));
    must_say(&run, "nobody");
    forget(&run);
}

static void remove_hot(void)
{
    char command[128];

    snprintf(command, sizeof command, "rm -rf '%s'", hot);
    assert_int_equal(system(command), 0);
}

/* Exact but for what the last claim of each full segment burned. */
static void lag_is(const struct run *run, uint64_t records, uint64_t full_segments)
{
    assert_in_range(number(run, "billing", "\"lag_records\":", 10), records, records + full_segments);
}

static void readers_with_their_lag_in_bytes_records_and_seconds(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct spate_reader *reader;
    struct spate_err err = {0};
    struct run run;

    (void)state;
    publish(writer, 400, 8000); /* more than three segments */
    settle(writer);
    reader = reader_of("shop", SPATE_SEE_DURABLE);
    if (spate_reader_enlist(reader, "billing", false, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    const struct spate_bus_pos passed = pass(reader, 50);

    run = RUN("readers", "-c", file, "--json");
    assert_int_equal(run.code, 0);
    assert_int_equal(number(&run, "billing", "\"position\":\"local:", 16), passed.at);
    assert_int_equal(number(&run, "billing", "\"lag_bytes\":", 10), spate_writer_end(writer).at - passed.at);
    lag_is(&run, 350, 3);
    assert_int_equal(number(&run, "billing", "\"pid\":", 10), getpid());
    must_say(&run, "\"lag_seconds\":");
    must_say(&run, "\"hold\":\"no\"");
    forget(&run);

    /* At a segment's border, then at the end. */
    pass(reader, 79);
    run = RUN("readers", "shop", "-c", file, "--json");
    lag_is(&run, 271, 3);
    forget(&run);
    pass(reader, 271);
    run = RUN("readers", "-c", file, "--json");
    lag_is(&run, 0, 0);
    assert_int_equal(number(&run, "billing", "\"lag_bytes\":", 10), 0);
    forget(&run);
    publish(writer, 7, 100);
    settle(writer);
    spate_reader_close(reader);
    spate_writer_close(writer);

    run = RUN("readers", "-c", file);
    must_say(&run, "gone");
    must_say(&run, "billing");
    forget(&run);
    /* Without shared memory the archive says it all. */
    remove_hot();
    run = RUN("readers", "-c", file, "--json");
    lag_is(&run, 7, 0);
    must_say(&run, "\"alive\":false,\"pid\":null");
    forget(&run);
    run = RUN("ls", "-c", file);
    must_say(&run, "not in shared memory (a reboot, and nobody wrote since): shop.");
    forget(&run);
}

static void a_holder_is_released_by_hand(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct spate_reader *reader;
    struct spate_err err = {0};
    struct run run;

    (void)state;
    publish(writer, 100, 8000);
    settle(writer);
    reader = reader_of("shop", SPATE_SEE_DURABLE);
    if (spate_reader_enlist(reader, "billing", true, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    pass(reader, 10);
    run = RUN("readers", "-c", file, "--json");
    must_say(&run, "\"hold\":\"holds\"");
    forget(&run);

    run = RUN("release", "billling", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_CONFIG);
    must_say(&run, "did you mean billing?");
    forget(&run);
    run = RUN("release", "billing", "nowhere", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_CONFIG);
    must_say(&run, "there is no topic nowhere");
    forget(&run);

    run = RUN("release", "billing", "shop", "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "held for billing no longer");
    forget(&run);
    run = RUN("readers", "-c", file, "--json");
    must_say(&run, "\"hold\":\"released\"");
    forget(&run);
    run = RUN("release", "billing", "-c", file, "--json");
    assert_int_equal(run.code, 0);
    must_say(&run, "\"released\":false");
    forget(&run);
    /* Once it is past what was let go it holds again. */
    pass(reader, 90);
    run = RUN("readers", "-c", file, "--json");
    must_say(&run, "\"hold\":\"holds\"");
    forget(&run);
    spate_reader_close(reader);
    spate_writer_close(writer);
}

static void what_stops_a_topic_is_said_with_the_remedy(void **state)
{
    const struct spate_bus_config config = {.local_path = path,
                                            .local_hot = hot,
                                            .local_segment_bytes = SEGMENT,
                                            .local_retention_bytes = SEGMENT};
    const char *file = connector_file();
    struct spate_bus_holds holds;
    struct spate_err err = {0};
    struct run run = {0};
    const int64_t deadline = spate_clock_ms() + 20000;
    bool said = false;

    (void)state;
    spate_bus_close(bus);
    if (spate_bus_open(&config, &bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    struct spate_writer *writer = writer_of("shop", 0);
    publish(writer, 10, 8000);
    settle(writer);
    struct spate_reader *reader = reader_of("shop", SPATE_SEE_DURABLE);
    if (spate_reader_enlist(reader, "billing", true, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    char *value = spate_zalloc(8000);
    const struct spate_record record = {.value = spate_slice(value, 8000), .ts_us = spate_clock_wall_us()};
    /* Nobody reads: sooner or later the writer is told to wait, and not for a moment only. */
    while (!said && spate_clock_ms() < deadline) {
        size_t taken;

        for (int i = 0; i < 50; i++)
            if (spate_writer_publish(writer, &record, 1, &taken, &err) == SPATE_FAIL)
                fail_msg("%s", err.text);
        if (spate_writer_poll(writer, 20, ignore_token, NULL, &err) == SPATE_FAIL)
            fail_msg("%s", err.text);
        forget(&run);
        run = RUN("ls", "-c", file);
        assert_int_equal(run.code, 0);
        said = strstr(run.out.data, "! shop takes nothing beyond its present segment") != NULL;
    }
    must_say(&run, "a reader holds what it has not passed, from");
    must_say(&run, "spate bus release NAME shop");
    forget(&run);
    run = RUN("ls", "--json", "-c", file);
    must_say(&run, "\"gate_why\":\"hold\"");
    spate_bus_look_holds(&config, "shop", &holds); /* what the connector's pages show */
    assert_true(holds.readers == 1 && holds.holders == 1 && holds.limit_bytes == SEGMENT);
    assert_true(holds.bytes >= holds.limit_bytes && holds.age_us >= 0);
    assert_string_equal(holds.by, "billing");
    must_say(&run, "\"retention_bytes\":1048576");
    forget(&run);
    free(value);
    spate_reader_close(reader);
    spate_writer_close(writer);
    run = RUN("release", "billing", "-c", file);
    assert_int_equal(run.code, 0);
    forget(&run);
    spate_bus_look_holds(&config, "shop", &holds);
    assert_true(holds.readers == 0 && holds.holders == 0 && holds.bytes == -1 && holds.by[0] == '\0');
    spate_bus_look_holds(&config, "nowhere", &holds);
    assert_true(holds.readers == -1 && holds.holders == -1);
    run = RUN("ls", "-c", file); /* where nobody writes, nobody waits */
    assert_null(strstr(run.out.data, "!"));
    forget(&run);
}

/* ---- inspect ---- */

static void spoil(const char *topic, uint64_t base, off_t at, const char *bytes, off_t cut)
{
    char name[160];
    int fd;

    snprintf(name, sizeof name, "%s/%s/%016" PRIx64 ".seg", path, topic, base);
    fd = open(name, O_RDWR);
    assert_true(fd >= 0);
    if (bytes)
        assert_int_equal(pwrite(fd, bytes, strlen(bytes), at), (ssize_t)strlen(bytes));
    else
        assert_int_equal(ftruncate(fd, cut), 0);
    close(fd);
}

static void damage_is_found_by_verify_alone(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct run run;
    char name[160];

    (void)state;
    publish(writer, 300, 8000);
    settle(writer);
    spate_writer_close(writer);
    run = RUN("inspect", "shop", "--verify", "-c", file, "--json");
    assert_int_equal(run.code, 0);
    assert_int_equal(number(&run, "\"segments\":", "\"records\":", 10), 130);
    must_say(&run, "\"good\":true");
    must_say(&run, "\"damage\":\"\"");
    forget(&run);

    spoil("shop", SEGMENT, 4096 + 5000, "#", 0);
    run = RUN("inspect", "shop", "-c", file);
    assert_int_equal(run.code, 0);
    assert_null(strstr(run.out.data, "DAMAGED"));
    forget(&run);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "DAMAGED");
    must_say(&run, "position 0000000000100000: a record of 8010 bytes does not have its checksum");
    must_say(&run, "put the segment's file back from a copy");
    assert_null(strstr(run.out.data, "SECRET"));
    forget(&run);

    /* A length that no writer leaves: refused before anything is read, or room made for it. */
    const struct spate_bus_config large = {
        .local_path = path, .local_hot = hot, .local_segment_bytes = 128 << 20};
    struct spate_err err = {0};
    spate_bus_close(bus);
    if (spate_bus_open(&large, &bus, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    writer = writer_of("wide", 0);
    publish(writer, 1, 100);
    settle(writer);
    spate_writer_close(writer);
    const uint64_t word = spate_local_word(SPATE_LOCAL_COMMIT, 0, 1, 100 << 20);
    snprintf(name, sizeof name, "%s/wide/%016x.seg", path, 128 << 20);
    const int fd = open(name, O_WRONLY);
    assert_int_equal(pwrite(fd, &word, sizeof word, 4096), (ssize_t)sizeof word);
    close(fd);
    run = RUN("inspect", "wide", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "a record of 104857600 bytes, and none is that long");
    forget(&run);

    spoil("shop", SEGMENT, 0, "#", 0);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    forget(&run);
    /* Cut inside a record, and to less than a header: an answer, no signal. */
    spoil("shop", 2 * SEGMENT, 0, NULL, 4096 + 12345);
    spoil("shop", SEGMENT, 0, NULL, 100);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "the file ends inside a record");
    must_say(&run, "shorter than a header");
    forget(&run);
}

static void what_was_cut_in_memory_has_its_remedy(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    char name[160], words[200];
    struct run run;

    (void)state;
    publish(writer, 20, 8000);
    settle(writer);
    spate_writer_close(writer);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, 0);
    forget(&run);
    snprintf(name, sizeof name, "%s/shop/%016x.seg", hot, SEGMENT);
    assert_int_equal(truncate(name, 4096 + 5 * 8064), 0);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "nothing stands there, though the log is durable up to");
    forget(&run);
    snprintf(words, sizeof words, "rm -r '%s/shop'", hot);
    run = RUN("ls", "-c", file);
    must_say(&run, words);
    forget(&run);
}

static void values_in_files_of_their_own_are_counted_and_verified(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct run run;
    char name[160], at[32];

    (void)state;
    publish(writer, 2, 100);
    const uint64_t pos = spate_writer_end(writer).at;
    publish(writer, 1, 3000000);
    publish(writer, 2, 100);
    settle(writer);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "of it in files of large values (1)");
    forget(&run);
    snprintf(at, sizeof at, "%016" PRIx64, pos);
    run = RUN("inspect", "shop", "--at", at, "-c", file);
    snprintf(name, sizeof name, "value     3000000 bytes in the file %s.spill", at);
    must_say(&run, name);
    forget(&run);
    run = RUN("ls", "-c", file, "--json");
    assert_int_equal(number(&run, "\"topic\":\"shop\"", "\"spills\":", 10), 1);
    assert_true(number(&run, "\"topic\":\"shop\"", "\"archive_bytes\":", 10) > 3000000);
    forget(&run);
    spate_writer_close(writer);

    snprintf(name, sizeof name, "%s/shop/%s.spill", path, at);
    const int fd = open(name, O_WRONLY);
    assert_int_equal(pwrite(fd, "#", 1, 2000000), 1);
    close(fd);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "the file of its value");
    forget(&run);
    assert_int_equal(unlink(name), 0);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    forget(&run);
}

static void what_is_not_durable_may_be_torn(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct run run;
    char name[160];
    int fd;

    (void)state;
    publish(writer, 20, 8000);
    settle(writer);
    const uint64_t durable = spate_writer_durable(writer).at;
    /* As an archiver leaves it that was killed between writing and syncing. */
    snprintf(name, sizeof name, "%s/shop/%016x.seg", path, SEGMENT);
    fd = open(name, O_RDWR);
    assert_int_equal(pwrite(fd, "torn torn torn torn torn torn", 29, (off_t)(4096 + durable - SEGMENT)), 29);
    close(fd);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, 0);
    forget(&run);
    spoil("shop", SEGMENT, (off_t)(4096 + durable - SEGMENT - 100), "torn", 0);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    forget(&run);
    spate_writer_close(writer);
}

/* Its own shared memory is gone under a living writer; or it is another container's. */
static void a_writer_elsewhere_is_told(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct run run;

    (void)state;
    remove_hot();
    run = RUN("ls", "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "! written, but not in the shared memory that this command sees: shop.");
    forget(&run);
    spate_writer_close(writer);
}

static void a_record_by_its_position_without_its_value(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0);
    struct spate_reader *reader;
    struct run run;
    char at[SPATE_BUS_POS_TEXT];

    (void)state;
    publish(writer, 3, 777);
    settle(writer);
    reader = reader_of("shop", SPATE_SEE_TIP);
    spate_bus_pos_format("local", pass(reader, 1), at);
    spate_reader_close(reader);
    run = RUN("inspect", "shop", "--at", at, "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "key       10 bytes");
    must_say(&run, "value     777 bytes");
    must_say(&run, "index     1");
    assert_null(strstr(run.out.data, "SECRET"));
    forget(&run);
    run = RUN("inspect", "shop", "--at", at + strlen("local:"), "--json", "-c", file);
    must_say(&run, "\"value_bytes\":777");
    forget(&run);

    run = RUN("inspect", "shop", "--at", "00000000001000c1", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "multiples of 64");
    forget(&run);
    run = RUN("inspect", "shop", "--at", "0000000000100040", "-c", file); /* inside the first record */
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "is no record");
    forget(&run);
    run = RUN("inspect", "shop", "--at", "0000000000900000", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "no record stands at 0000000000900000: shop has them from 0000000000100000");
    forget(&run);
    run = RUN("inspect", "shop", "--at", "kafka:12", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_CONFIG);
    forget(&run);
    spate_writer_close(writer);
}

/* ---- it disturbs nobody ---- */

/* Names, sizes and bytes of every file below. */
static uint64_t digest(const char *root, uint64_t sum)
{
    DIR *dir = opendir(root);
    const struct dirent *entry;
    uint64_t all = 0;

    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        char name[512];
        struct stat st;
        struct spate_buf bytes = {0};

        if (entry->d_name[0] == '.' && strlen(entry->d_name) < 3)
            continue;
        snprintf(name, sizeof name, "%s/%s", root, entry->d_name);
        assert_int_equal(lstat(name, &st), 0);
        uint64_t one = spate_fnv64(SPATE_FNV64_START, name, strlen(name));
        one ^= (uint64_t)st.st_mtim.tv_nsec * 31 + (uint64_t)st.st_mode;
        if (S_ISDIR(st.st_mode)) {
            one = digest(name, one);
        } else {
            read_file(name, &bytes);
            one = spate_fnv64(one, bytes.data, bytes.len);
        }
        spate_buf_fini(&bytes);
        all ^= one; /* whatever the order of the directory */
    }
    closedir(dir);
    return all ^ sum;
}

static void looking_changes_no_byte(void **state)
{
    const char *file = connector_file();
    struct spate_writer *writer = writer_of("shop", 0),
                        *shared = writer_of("shop._control", SPATE_TOPIC_SHARED);
    struct spate_reader *reader;
    struct spate_err err = {0};

    (void)state;
    publish(writer, 200, 8000);
    publish(shared, 5, 100);
    settle(writer);
    reader = reader_of("shop", SPATE_SEE_DURABLE);
    if (spate_reader_enlist(reader, "billing", true, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    pass(reader, 10);
    spate_reader_close(reader);
    spate_writer_close(writer);
    spate_writer_close(shared);
    const uint64_t before = digest(path, digest(hot, 0));
    assert_int_equal(chmod(scratch, 0777), 0);
    as_group = true;
    struct run runs[] = {RUN("ls", "-c", file), RUN("readers", "-c", file),
                         RUN("inspect", "shop", "--verify", "-c", file),
                         RUN("inspect", "shop._control", "-c", file)};

    for (size_t i = 0; i < SPATE_COUNT(runs); i++) {
        assert_int_equal(runs[i].code, 0);
        forget(&runs[i]);
    }
    as_group = false;
    assert_true(before == digest(path, digest(hot, 0)));
    /* And what does change something is seen so. */
    struct run run = RUN("release", "billing", "-c", file);
    assert_int_equal(run.code, 0);
    forget(&run);
    assert_true(before != digest(path, digest(hot, 0)));
}

/* Whoever may write there may leave anything there. */
static void litter_and_damage_of_one_topic_hide_no_other(void **state)
{
    static const char *const names[] = {"ffffffffffffffc0.seg", "0000000000000001.seg",
                                        "0000000000300000.seg", "0000000000000040.spill",
                                        ".hidden.tmp",          "notes.txt"};
    const char *file = connector_file();
    char name[200];
    struct run run;

    (void)state;
    spate_writer_close(writer_of("shop", 0));
    spate_writer_close(writer_of("spoilt", 0));
    for (size_t i = 0; i < SPATE_COUNT(names); i++) {
        snprintf(name, sizeof name, "%s/%s/%s", i % 2 ? path : hot, "shop", names[i]);
        const int fd = open(name, O_WRONLY | O_CREAT, 0640);
        assert_int_equal(write(fd, names, i * 7), (ssize_t)(i * 7));
        close(fd);
    }
    snprintf(name, sizeof name, "%s/shop/0000000000400000.seg", path);
    assert_int_equal(symlink("/etc/passwd", name), 0);
    snprintf(name, sizeof name, "%s/shop/0000000000500000.seg", path);
    assert_int_equal(mkfifo(name, 0640), 0);
    snprintf(name, sizeof name, "%s/spoilt/manifest", path);
    assert_int_equal(truncate(name, 20), 0);
    run = RUN("ls", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "spoilt");
    must_say(&run, "shop ");
    forget(&run);
    run = RUN("inspect", "shop", "--verify", "-c", file);
    assert_int_equal(run.code, SPATE_EXIT_FAILED);
    must_say(&run, "shorter than a header");
    assert_null(strstr(run.out.data, "root:"));
    forget(&run);
}

static void names_are_as_people_know_them(void **state)
{
    const char *file = connector_file();
    char topic[64], name[64];
    struct spate_err err = {0};
    struct run run;

    (void)state;
    assert_int_equal(spate_topic_escape("Shop-eu", topic, sizeof topic, &err), SPATE_OK);
    assert_int_equal(spate_topic_escape("Team 7", name, sizeof name, &err), SPATE_OK);
    struct spate_writer *writer = writer_of(topic, 0);
    publish(writer, 10, 100);
    settle(writer);
    struct spate_reader *reader = reader_of(topic, SPATE_SEE_DURABLE);
    if (spate_reader_enlist(reader, name, true, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    run = RUN("inspect", "Shop-eu", "-c", file);
    assert_int_equal(run.code, 0);
    forget(&run);
    run = RUN("release", "Team 7", "Shop-eu", "-c", file, "--json");
    assert_int_equal(run.code, 0);
    must_say(&run, "\"released\":true");
    forget(&run);
    spate_reader_close(reader);
    spate_writer_close(writer);
}

static void mistakes_are_told_with_the_way_out(void **state)
{
    const char *file = connector_file();
    const struct {
        const char *args[6], *words;
        int code;
    } cases[] = {
        {{"-c", file}, "what about the bus?", 2},
        {{"lst", "-c", file}, "did you mean ls?", 2},
        {{"inspect", "-c", file}, "inspect needs a TOPIC", 2},
        {{"release", "-c", file}, "release needs the NAME", 2},
        {{"ls", "extra", "-c", file}, "'extra' is not understood behind ls", 2},
        {{"ls", "--verify", "-c", file}, "--verify goes with inspect", 2},
        {{"inspect", "../shop", "-c", file}, "there is no topic ../shop", 2},
        {{"inspect", "shup", "-c", file}, "did you mean shop?", 2},
        {{"readers", "shup", "-c", file}, "did you mean shop?", 2},
        {{"release", "billing", "-c", file}, "no reader billing is known", 2},
        {{"ls"}, "no bus; name it with", 2},
        {{"readers", "--bus", "kafka:127.0.0.1:1"}, "readers is for the local bus", 2},
        {{"inspect", "shop", "--bus", "kafka:127.0.0.1:1"}, "kafka-topics.sh --describe", 2},
        {{"ls", "--bus", "/nonexistent/bus"}, "there is no bus at /nonexistent/bus", 1},
    };

    (void)state;
    spate_writer_close(writer_of("shop", 0));
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct run run = spate_bus(cases[i].args);

        assert_int_equal(run.code, cases[i].code);
        must_say(&run, cases[i].words);
        forget(&run);
    }
    struct run run = RUN("readers", "-c", file);
    assert_int_equal(run.code, 0);
    must_say(&run, "no reader is known by a name here");
    forget(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(topics_with_their_kind_size_and_writers, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(readers_with_their_lag_in_bytes_records_and_seconds, make_bus,
                                        remove_bus),
        cmocka_unit_test_setup_teardown(a_holder_is_released_by_hand, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(what_stops_a_topic_is_said_with_the_remedy, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(damage_is_found_by_verify_alone, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(what_was_cut_in_memory_has_its_remedy, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(values_in_files_of_their_own_are_counted_and_verified, make_bus,
                                        remove_bus),
        cmocka_unit_test_setup_teardown(what_is_not_durable_may_be_torn, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(a_writer_elsewhere_is_told, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(a_record_by_its_position_without_its_value, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(looking_changes_no_byte, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(litter_and_damage_of_one_topic_hide_no_other, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(names_are_as_people_know_them, make_bus, remove_bus),
        cmocka_unit_test_setup_teardown(mistakes_are_told_with_the_way_out, make_bus, remove_bus),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
