/* cli/snapshot_ask.c - what every way of asking needs: tables from globs, `_control`, and words for people.
 */
#include "cli/snapshot.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/glob.h"
#include "core/options.h"
#include "core/signals.h"
#include "sinks/registry.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define RETRY_MS 100

/* --- waiting for a topic ---------------------------------------------------------------------------------
 */

/* Sleeps a little; false: the time is up, or a stop was asked for. */
static bool again(const struct spate_snapshot *snapshot, int64_t since_ms)
{
    struct pollfd fd = {.fd = spate_signals_fd(), .events = POLLIN};

    if (spate_clock_ms() - since_ms > snapshot->wait_ms || spate_signals_stop())
        return false;
    poll(&fd, 1, RETRY_MS);
    return !spate_signals_stop();
}

static enum spate_exit no_topic(const struct spate_snapshot *snapshot, const struct spate_err *err)
{
    if (!err->missing)
        return spate_cli_failed(err);
    fprintf(
        stderr,
        "spate: %s: no connector %s has run on this bus yet, or it is one that answers no requests; start "
        "it (spate connector -c FILE), or name another with --stream\n",
        err->text, snapshot->stream.name);
    return SPATE_EXIT_DEADLINE;
}

/* --- tables ----------------------------------------------------------------------------------------------
 */

static bool wanted(void *arg, struct spate_slice schema, struct spate_slice table)
{
    (void)arg, (void)schema, (void)table;
    return true;
}

static enum spate_exit read_registry(struct spate_snapshot *snapshot, struct spate_registry *registry)
{
    char topic[SPATE_STREAM_TOPIC + 16];
    const int64_t since_ms = spate_clock_ms();

    spate_cli_stream_beside(&snapshot->stream, "_schemas", topic);
    for (;;) {
        struct spate_err err = {0};

        if (spate_registry_open(registry, snapshot->stream.bus, topic, wanted, NULL, &err) == SPATE_OK) {
            if (spate_registry_read(registry, &err) == SPATE_OK)
                return SPATE_EXIT_OK;
            spate_registry_close(registry);
        }
        if (err.verdict != SPATE_RETRY || !again(snapshot, since_ms))
            return no_topic(snapshot, &err);
    }
}

static void add_table(struct spate_snapshot_tables *tables, struct spate_slice schema,
                      struct spate_slice name)
{
    for (size_t i = 0; i < tables->count; i++)
        if (spate_slice_eq(tables->at[i].schema, schema) && spate_slice_eq(tables->at[i].table, name))
            return;
    tables->at = spate_realloc(tables->at, (tables->count + 1) * sizeof *tables->at);
    tables->at[tables->count++] = (struct spate_control_table){
        .schema = spate_slice(spate_strndup(schema.at, schema.len), schema.len),
        .table = spate_slice(spate_strndup(name.at, name.len), name.len),
    };
}

static enum spate_exit no_match(const struct spate_snapshot *snapshot, const char *pattern,
                                const struct spate_registry *registry)
{
    const char *near = spate_nearest(pattern, (const char *const *)registry->names, registry->name_count);
    const char *bare[256];
    size_t count = 0;

    for (; count < registry->name_count && count < SPATE_COUNT(bare); count++) {
        const char *dot = strchr(registry->names[count], '.');
        bare[count] = dot ? dot + 1 : registry->names[count];
    }
    if (!near)
        near = spate_nearest(pattern, bare, count);
    return spate_cli_misuse(snapshot->text,
                            "--tables '%s': the stream %s has no such table%s%s%s It knows %zu of them. A "
                            "table that was never in the publication is named whole, as schema.table",
                            pattern, snapshot->stream.name, near ? "; did you mean " : "", near ? near : "",
                            near ? "?" : ".", registry->name_count);
}

static enum spate_exit resolve_glob(struct spate_snapshot *snapshot, const char *pattern,
                                    const struct spate_registry *registry,
                                    struct spate_snapshot_tables *tables)
{
    struct spate_buf schema = {0}, name = {0};
    enum spate_exit result = SPATE_EXIT_OK;
    struct spate_glob *glob;
    struct spate_err err = {0};
    bool found = false;

    if (spate_glob_new(pattern, &glob, &err) != SPATE_OK)
        return spate_cli_misuse(snapshot->text, "--tables: %s", err.text);
    for (size_t i = 0; i < registry->table_count; i++) {
        const struct spate_table *table = registry->tables[i];

        if (!spate_glob_match(glob, table->schema, table->name))
            continue;
        add_table(tables, table->schema, table->name);
        tables->some = tables->some || !spate_glob_exact(glob);
        found = true;
    }
    /* The connector knows more tables than were ever in the stream, and says what is wrong with this one. */
    if (!found && spate_words_table(pattern, &schema, &name))
        add_table(tables, spate_buf_view(&schema), spate_buf_view(&name));
    else if (!found)
        result = no_match(snapshot, pattern, registry);
    spate_buf_fini(&schema);
    spate_buf_fini(&name);
    spate_glob_free(glob);
    return result;
}

static void share_conditions(const struct spate_snapshot *snapshot, struct spate_snapshot_tables *tables)
{
    tables->columns = spate_alloc((snapshot->column_count + 1) * sizeof *tables->columns);
    tables->where = spate_alloc((snapshot->where_count + 1) * sizeof *tables->where);
    for (size_t i = 0; i < snapshot->column_count; i++)
        tables->columns[i] = spate_slice_str(snapshot->columns[i]);
    for (size_t i = 0; i < snapshot->where_count; i++) {
        const struct spate_words_condition *from = &snapshot->where[i];

        tables->where[i] = (struct spate_condition){
            .column = spate_slice_str(from->column),
            .op = spate_slice_str(from->op),
            .null = !from->value,
            .value = from->value ? spate_slice_str(from->value) : (struct spate_slice){0},
        };
    }
    for (size_t i = 0; i < tables->count; i++) {
        tables->at[i].columns = tables->columns;
        tables->at[i].column_count = snapshot->column_count;
        tables->at[i].where = tables->where;
        tables->at[i].where_count = snapshot->where_count;
    }
}

enum spate_exit spate_snapshot_resolve(struct spate_snapshot *snapshot, struct spate_snapshot_tables *tables)
{
    struct spate_registry registry;
    enum spate_exit result = read_registry(snapshot, &registry);

    *tables = (struct spate_snapshot_tables){0};
    if (result != SPATE_EXIT_OK)
        return result;
    for (size_t i = 0; i < snapshot->glob_count && result == SPATE_EXIT_OK; i++)
        result = resolve_glob(snapshot, snapshot->globs[i], &registry, tables);
    /* A condition for a sink's wish needs tables to stand in: all that the stream knows. */
    if (snapshot->glob_count == 0 && snapshot->where_count > 0)
        for (size_t i = 0; i < registry.table_count; i++)
            add_table(tables, registry.tables[i]->schema, registry.tables[i]->name);
    share_conditions(snapshot, tables);
    spate_registry_close(&registry);
    return result;
}

void spate_snapshot_table_fini(struct spate_control_table *table)
{
    free((char *)(uintptr_t)table->schema.at);
    free((char *)(uintptr_t)table->table.at);
}

void spate_snapshot_tables_fini(struct spate_snapshot_tables *tables)
{
    for (size_t i = 0; i < tables->count; i++)
        spate_snapshot_table_fini(&tables->at[i]);
    free(tables->at);
    free(tables->columns);
    free(tables->where);
}

/* --- _control ---------------------------------------------------------------------------------------------
 */

enum spate_exit spate_snapshot_line_write(struct spate_snapshot *snapshot, struct spate_snapshot_line *line)
{
    const int64_t since_ms = spate_clock_ms();

    for (;;) {
        struct spate_err err = {0};

        if (spate_bus_writer_open(snapshot->stream.bus, line->topic, SPATE_TOPIC_SHARED, &line->writer,
                                  &err) == SPATE_OK)
            return SPATE_EXIT_OK;
        if (err.verdict != SPATE_RETRY || !again(snapshot, since_ms))
            return no_topic(snapshot, &err);
    }
}

enum spate_exit spate_snapshot_line_open(struct spate_snapshot *snapshot, struct spate_snapshot_line *line,
                                         bool oldest)
{
    const struct spate_start from = {.from = oldest ? SPATE_START_OLDEST : SPATE_START_NOW};
    const int64_t since_ms = spate_clock_ms();
    struct spate_bus *bus = snapshot->stream.bus;

    *line = (struct spate_snapshot_line){0};
    spate_cli_stream_beside(&snapshot->stream, "_control", line->topic);
    for (;;) {
        struct spate_err err = {0};

        if (spate_bus_reader_open(bus, line->topic, SPATE_SEE_TIP, from, &line->reader, &err) == SPATE_OK)
            return SPATE_EXIT_OK;
        if (err.verdict != SPATE_RETRY || !again(snapshot, since_ms))
            return no_topic(snapshot, &err);
    }
}

void spate_snapshot_line_close(struct spate_snapshot_line *line)
{
    spate_reader_close(line->reader);
    spate_writer_close(line->writer);
    spate_book_fini(&line->book);
    line->reader = NULL;
    line->writer = NULL;
}

static void durable(void *arg, uint64_t token)
{
    (void)token;
    *(bool *)arg = true;
}

enum spate_rc spate_snapshot_say(struct spate_snapshot_line *line, const struct spate_control *control,
                                 struct spate_err *err)
{
    struct spate_control said = *control;
    struct spate_buf text = {0};
    struct spate_record record;
    enum spate_rc rc = SPATE_AGAIN;
    bool done = false;
    size_t taken = 0;

    said.wall_us = spate_clock_wall_us();
    spate_encode_control(&text, &said);
    record = (struct spate_record){.value = spate_buf_view(&text), .ts_us = said.wall_us, .token = 1};
    while (rc == SPATE_AGAIN) {
        rc = spate_writer_publish(line->writer, &record, 1, &taken, err);
        if (rc == SPATE_AGAIN && spate_writer_poll(line->writer, RETRY_MS, durable, &done, err) == SPATE_FAIL)
            rc = SPATE_FAIL;
    }
    for (int turns = 0; rc == SPATE_OK && !done && turns < 300; turns++)
        if (spate_writer_poll(line->writer, RETRY_MS, durable, &done, err) == SPATE_FAIL)
            rc = SPATE_FAIL;
    spate_buf_fini(&text);
    if (rc == SPATE_OK && !done)
        return spate_fail(err, SPATE_RETRY, "topic %s: the bus did not make a message durable within 30 s",
                          line->topic);
    return rc;
}

enum spate_rc spate_snapshot_hear(struct spate_snapshot_line *line, spate_snapshot_heard_fn *each, void *arg,
                                  struct spate_err *err)
{
    struct spate_message message;
    enum spate_rc rc;

    while ((rc = spate_reader_next(line->reader, &message, err)) == SPATE_OK) {
        struct spate_book_entry *entry;

        if (message.kind != SPATE_MESSAGE_RECORD)
            continue;
        entry = spate_book_read(&line->book, message.value, message.ts_us);
        if (each)
            each(arg, entry);
    }
    return rc == SPATE_FAIL ? SPATE_FAIL : SPATE_OK;
}

/* --- words -------------------------------------------------------------------------------------------------
 */

enum spate_exit spate_snapshot_verdict(const struct spate_book_entry *entry)
{
    if (strcmp(entry->state, "finished") == 0)
        return SPATE_EXIT_OK;
    if (strcmp(entry->state, "refused") == 0 || entry->reason) {
        fprintf(stderr, "spate: request %s of %s was refused: %s%s%s\n", entry->request, entry->requester,
                entry->reason ? entry->reason : "no reason was given", entry->remedy ? ". What to do: " : "",
                entry->remedy ? entry->remedy : "");
        return SPATE_EXIT_REFUSED;
    }
    if (strcmp(entry->state, "replaced") == 0) {
        fprintf(stderr, "spate: request %s of %s: %s; a sink does so by itself\n", entry->request,
                entry->requester,
                entry->why ? entry->why : "a table was replaced while it was read: ask again");
        return SPATE_EXIT_FAILED;
    }
    fprintf(stderr, "spate: request %s of %s: %s%s%s\n", entry->request, entry->requester, entry->state,
            entry->why ? ": " : "", entry->why ? entry->why : "");
    return SPATE_EXIT_FAILED;
}

enum spate_exit spate_snapshot_silence(const struct spate_snapshot *snapshot,
                                       const struct spate_book_entry *entry)
{
    const long long seconds = snapshot->wait_ms / 1000;

    if (snapshot->sink && !(entry && entry->asked_by_requester))
        fprintf(stderr,
                "spate: sink %s did not take the wish up within %lld s, and it was withdrawn. Is it running "
                "(spate sink -c FILE), on this bus and on the stream %s? Its log says what it is doing\n",
                snapshot->sink, seconds, snapshot->stream.name);
    else
        fprintf(
            stderr,
            "spate: connector %s did not answer within %lld s, and the request was withdrawn. It is "
            "probably not running (spate connector -c FILE), or cannot reach its source; its log says so\n",
            snapshot->stream.name, seconds);
    return SPATE_EXIT_DEADLINE;
}

void spate_snapshot_progress_show(struct spate_snapshot_progress *progress,
                                  const struct spate_book_entry *entry)
{
    const bool terminal = isatty(STDERR_FILENO) == 1;
    struct spate_buf words = {0};
    struct winsize size;

    spate_buf_printf(&words, "%s %s: ", entry->requester, entry->request);
    spate_book_describe(entry, &words);
    if (spate_book_silent(entry, spate_clock_wall_us()))
        spate_buf_puts(
            &words, "; nothing is heard of it: is the connector running, and its source? (its log, /status)");
    if (terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 &&
        words.len >= size.ws_col)
        words.len = size.ws_col - 1u; /* a line that wraps cannot be rewritten */
    spate_buf_str(&words);
    if (strncmp(progress->last, words.data, sizeof progress->last - 1) != 0) {
        snprintf(progress->last, sizeof progress->last, "%s", words.data);
        fprintf(stderr, terminal ? "\r\033[K%s" : "%s\n", words.data);
        fflush(stderr);
        progress->open = terminal;
    }
    spate_buf_fini(&words);
}

void spate_snapshot_progress_end(struct spate_snapshot_progress *progress)
{
    if (progress->open)
        fputc('\n', stderr);
    progress->open = false;
}
