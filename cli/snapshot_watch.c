/* cli/snapshot_watch.c - requests of others: listing, following and cancelling them, and asking a sink to
 * ask. */
#include "cli/snapshot.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/options.h"
#include "core/signals.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY_AGAIN_MS 3000
#define GLANCE_MS    100
#define SETTLE_MS    2000  /* between a requester's last word and the connector's */
#define CANCEL_MS    10000 /* for the connector's answer */
#define HOUR_US      INT64_C(3600000000)

/* --- listing
 * ------------------------------------------------------------------------------------------------ */

enum { COLUMNS = 9 };

struct sheet {
    char *(*rows)[COLUMNS]; /* owned texts */
    size_t count;
};

static void put_row(struct sheet *sheet, struct spate_buf cells[COLUMNS])
{
    sheet->rows = spate_realloc(sheet->rows, (sheet->count + 1) * sizeof *sheet->rows);
    for (int i = 0; i < COLUMNS; i++) {
        sheet->rows[sheet->count][i] = spate_strdup(spate_buf_str(&cells[i]));
        spate_buf_fini(&cells[i]);
    }
    sheet->count++;
}

static void put_entry(struct sheet *sheet, const struct spate_book *book,
                      const struct spate_book_entry *entry, int64_t now_us)
{
    struct spate_buf cells[COLUMNS] = {0};
    const bool silent = spate_book_silent(entry, now_us);
    const char *why = entry->over && entry->reason ? entry->reason : entry->why;
    int64_t age_s = (now_us - entry->heard_us) / 1000000;

    spate_buf_puts(&cells[0], entry->request);
    spate_buf_puts(&cells[1], entry->requester);
    spate_buf_puts(&cells[2], entry->state);
    spate_buf_printf(&cells[3], "%" PRIu64, entry->rows);
    spate_buf_printf(&cells[4], entry->estimate ? "%" PRIu64 : "-", entry->estimate);
    spate_buf_printf(&cells[5], "%.1f", entry->percent);
    spate_buf_printf(&cells[6], entry->rate >= 1 && !silent ? "%.0f/s" : "-", entry->rate);
    if (entry->left_s >= 0 && !entry->over && !silent)
        spate_buf_printf(&cells[7], "%" PRId64 " s", entry->left_s);
    else
        spate_buf_puts(&cells[7], "-");
    spate_buf_printf(&cells[8], "%" PRId64 " s ago", age_s < 0 ? 0 : age_s);
    if (silent && entry->heard_us < book->started_us)
        spate_buf_puts(&cells[8], ": the connector was started again, and nobody has asked again yet");
    else if (silent)
        spate_buf_puts(&cells[8], ": is the connector running, and its source? (its log, /status)");
    else if (why)
        spate_buf_printf(&cells[8], ": %s", why);
    put_row(sheet, cells);
}

static enum spate_exit print_sheet(const struct sheet *sheet)
{
    size_t widths[COLUMNS] = {0};
    struct spate_buf out = {0};
    enum spate_exit result;

    for (size_t row = 0; row < sheet->count; row++)
        for (int i = 0; i < COLUMNS; i++) {
            size_t len = strlen(sheet->rows[row][i]);
            widths[i] = len > widths[i] ? len : widths[i];
        }
    for (size_t row = 0; row < sheet->count; row++)
        for (int i = 0; i < COLUMNS; i++) {
            const bool number = i >= 3 && i <= 7, last = i == COLUMNS - 1;
            const int width = last ? 0 : number ? (int)widths[i] : -(int)widths[i];

            spate_buf_printf(&out, "%*s%s", width, sheet->rows[row][i], last ? "\n" : "  ");
        }
    result = spate_cli_print(&out);
    spate_buf_fini(&out);
    return result;
}

enum spate_exit spate_snapshot_list(struct spate_snapshot *snapshot)
{
    static const char *const titles[COLUMNS] = {"REQUEST", "REQUESTER", "STATE", "ROWS", "OF",
                                                "%",       "RATE",      "LEFT",  "HEARD"};
    const int64_t now_us = spate_clock_wall_us();
    struct spate_buf cells[COLUMNS] = {0};
    struct spate_snapshot_line line;
    struct spate_err err = {0};
    struct sheet sheet = {0};
    enum spate_exit result = spate_snapshot_line_open(snapshot, &line, true);

    if (result == SPATE_EXIT_OK && spate_snapshot_hear(&line, NULL, NULL, &err) != SPATE_OK)
        result = spate_cli_failed(&err);
    if (result != SPATE_EXIT_OK)
        goto out;
    for (int i = 0; i < COLUMNS; i++)
        spate_buf_puts(&cells[i], titles[i]);
    put_row(&sheet, cells);
    spate_book_settle(&line.book, now_us);
    for (size_t i = 0; i < line.book.count; i++) {
        const struct spate_book_entry *entry = line.book.entries[i];

        if (!entry->over || (snapshot->all && now_us - entry->heard_us < HOUR_US))
            put_entry(&sheet, &line.book, entry, now_us);
    }
    if (sheet.count > 1)
        result = print_sheet(&sheet);
    else
        fprintf(stderr, "spate: no request is under way%s\n",
                snapshot->all ? ", and none ended within the last hour" : "; --all shows what ended lately");
out:
    for (size_t row = 0; row < sheet.count; row++)
        for (int i = 0; i < COLUMNS; i++)
            free(sheet.rows[row][i]);
    free(sheet.rows);
    spate_snapshot_line_close(&line);
    return result;
}

/* --- one request
 * --------------------------------------------------------------------------------------------- */

/* The one with this id; without one, the only one that is under way. */
static enum spate_exit choose(struct spate_snapshot *snapshot, struct spate_book *book, const char *id,
                              struct spate_book_entry **chosen)
{
    struct spate_buf names = {0};
    size_t active = 0;

    spate_book_settle(book, spate_clock_wall_us());
    *chosen = id ? spate_book_find(book, id) : NULL;
    for (size_t i = 0; i < book->count && !*chosen; i++) {
        if (book->entries[i]->over)
            continue;
        active++;
        spate_buf_printf(&names, "%s%s of %s", active > 1 ? ", " : "", book->entries[i]->request,
                         book->entries[i]->requester);
    }
    for (size_t i = 0; i < book->count && !id && active == 1; i++)
        if (!book->entries[i]->over)
            *chosen = book->entries[i];
    if (!*chosen && id)
        fprintf(stderr, "spate: there is no request %s on %s; under way: %s\n", id, snapshot->stream.name,
                active ? spate_buf_str(&names) : "none (--list --all shows what ended lately)");
    else if (!*chosen && active > 1)
        fprintf(stderr, "spate: several requests are under way: %s; choose one by its id\n",
                spate_buf_str(&names));
    else if (!*chosen)
        fprintf(stderr, "spate: no request is under way on %s; --list --all shows what ended lately\n",
                snapshot->stream.name);
    spate_buf_fini(&names);
    return *chosen ? SPATE_EXIT_OK : SPATE_EXIT_CONFIG;
}

/* What the requester said last is counted by the connector a moment later. */
static enum spate_rc settle(struct spate_snapshot_line *line, const struct spate_book_entry *entry,
                            int64_t most_ms, struct spate_err *err)
{
    const int64_t until_ms = spate_clock_ms() + most_ms;
    enum spate_rc rc = SPATE_OK;

    while (rc != SPATE_FAIL && !entry->settled && !spate_signals_stop() && spate_clock_ms() < until_ms) {
        rc = spate_reader_wait(line->reader, GLANCE_MS, err);
        if (rc != SPATE_FAIL)
            rc = spate_snapshot_hear(line, NULL, NULL, err);
    }
    return rc;
}

/* Until the entry is over, or a stop. */
static enum spate_exit follow(struct spate_snapshot_line *line, const struct spate_book_entry *entry)
{
    struct spate_snapshot_progress progress = {0};
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_OK;

    while (rc != SPATE_FAIL && !entry->over && !spate_signals_stop()) {
        spate_snapshot_progress_show(&progress, entry);
        rc = spate_reader_wait(line->reader, GLANCE_MS, &err);
        if (rc != SPATE_FAIL)
            rc = spate_snapshot_hear(line, NULL, NULL, &err);
        spate_book_settle(&line->book, spate_clock_wall_us());
    }
    if (entry->over && rc != SPATE_FAIL)
        rc = settle(line, entry, SETTLE_MS, &err);
    if (entry->over && !entry->reason)
        spate_snapshot_progress_show(&progress, entry);
    spate_snapshot_progress_end(&progress);
    if (rc == SPATE_FAIL)
        return spate_cli_failed(&err);
    return entry->over ? spate_snapshot_verdict(entry) : SPATE_EXIT_OK;
}

enum spate_exit spate_snapshot_follow(struct spate_snapshot *snapshot)
{
    struct spate_book_entry *entry = NULL;
    struct spate_snapshot_line line;
    struct spate_err err = {0};
    enum spate_exit result = spate_snapshot_line_open(snapshot, &line, true);

    if (result == SPATE_EXIT_OK && spate_snapshot_hear(&line, NULL, NULL, &err) != SPATE_OK)
        result = spate_cli_failed(&err);
    if (result == SPATE_EXIT_OK)
        result = choose(snapshot, &line.book, snapshot->id, &entry);
    if (entry)
        result = follow(&line, entry);
    spate_snapshot_line_close(&line);
    return result;
}

/* Says `cancel` for whoever asked. */
static enum spate_rc withdraw(struct spate_snapshot_line *line, const char *request, const char *requester,
                              struct spate_err *err)
{
    const struct spate_control cancel = {
        .op = SPATE_CONTROL_CANCEL,
        .request = spate_slice_str(request),
        .sink = spate_slice_str(requester),
    };

    return spate_snapshot_say(line, &cancel, err);
}

/* A connector that is away, or waits for its source, hears it later, and so may a requester. */
static enum spate_exit cancelled(const struct spate_book_entry *entry)
{
    if (entry->settled) {
        fprintf(stderr, "spate: request %s of %s is cancelled\n", entry->request, entry->requester);
        return SPATE_EXIT_OK;
    }
    fprintf(stderr,
            "spate: no connector answered within %d s. Request %s of %s ends when the connector is back and "
            "has a "
            "session with its source, and its requester runs; look then (--list)\n",
            CANCEL_MS / 1000, entry->request, entry->requester);
    return SPATE_EXIT_DEADLINE;
}

enum spate_exit spate_snapshot_cancel(struct spate_snapshot *snapshot)
{
    struct spate_book_entry *entry = NULL;
    struct spate_snapshot_line line;
    struct spate_err err = {0};
    enum spate_exit result = spate_snapshot_line_open(snapshot, &line, true);

    if (result == SPATE_EXIT_OK && spate_snapshot_hear(&line, NULL, NULL, &err) != SPATE_OK)
        result = spate_cli_failed(&err);
    if (result == SPATE_EXIT_OK)
        result = choose(snapshot, &line.book, snapshot->cancel, &entry);
    if (entry && entry->over) {
        fprintf(stderr, "spate: request %s of %s is over already: %s\n", entry->request, entry->requester,
                entry->state);
    } else if (entry) {
        result = spate_snapshot_line_write(snapshot, &line);
        if (result == SPATE_EXIT_OK && withdraw(&line, entry->request, entry->requester, &err) != SPATE_OK)
            result = spate_cli_failed(&err);
        if (result == SPATE_EXIT_OK && settle(&line, entry, CANCEL_MS, &err) == SPATE_FAIL)
            result = spate_cli_failed(&err);
        if (result == SPATE_EXIT_OK)
            result = cancelled(entry);
    }
    spate_snapshot_line_close(&line);
    return result;
}

/* --- for a sink
 * ------------------------------------------------------------------------------------------------ */

/* Says the wish until the connector accepted what the sink asked for, or somebody refused. It is said again
 * while the sink does not take it up: one that is just being started hears what comes from then on. */
static enum spate_exit answer(struct spate_snapshot *snapshot, struct spate_snapshot_line *line,
                              const struct spate_control *wish, struct spate_book_entry **entry)
{
    const int64_t since_ms = spate_clock_ms();
    int64_t said_ms = 0;
    struct spate_err err = {0};

    while (!spate_signals_stop() && spate_clock_ms() - since_ms < snapshot->wait_ms) {
        if (spate_snapshot_hear(line, NULL, NULL, &err) != SPATE_OK)
            return spate_cli_failed(&err);
        *entry = spate_book_find(&line->book, snapshot->own_id);
        if (*entry && ((*entry)->answered || (*entry)->over))
            return (*entry)->over ? spate_snapshot_verdict(*entry) : SPATE_EXIT_OK;
        if (!(*entry && (*entry)->asked_by_requester) &&
            (!said_ms || spate_clock_ms() - said_ms >= SAY_AGAIN_MS)) {
            if (spate_snapshot_say(line, wish, &err) != SPATE_OK)
                return spate_cli_failed(&err);
            said_ms = spate_clock_ms();
        }
        if (spate_reader_wait(line->reader, GLANCE_MS, &err) == SPATE_FAIL)
            return spate_cli_failed(&err);
    }
    if (withdraw(line, snapshot->own_id, snapshot->sink, &err) != SPATE_OK)
        spate_cli_failed(&err);
    if (spate_signals_stop()) {
        fprintf(stderr, "spate: stopped; the wish was withdrawn\n");
        return SPATE_EXIT_FAILED;
    }
    return spate_snapshot_silence(snapshot, *entry);
}

/* The options that lead to the same stream once more. */
static void put_place(const struct spate_snapshot *snapshot, struct spate_buf *out)
{
    const struct spate_cli_stream *stream = &snapshot->stream;

    if (stream->file)
        spate_buf_printf(out, "-c %s", stream->file);
    else
        spate_buf_printf(out, "--bus %s", stream->path ? stream->path : getenv("SPATE_BUS"));
    if (!stream->owned)
        spate_buf_printf(out, " --stream %s", stream->name);
}

enum spate_exit spate_snapshot_for_sink(struct spate_snapshot *snapshot)
{
    struct spate_snapshot_tables tables = {0};
    struct spate_snapshot_line line = {0};
    struct spate_book_entry *entry = NULL;
    enum spate_exit result = SPATE_EXIT_OK;
    struct spate_control wish = {
        .op = SPATE_CONTROL_REQUEST,
        .to = spate_slice_str(snapshot->sink),
        .request = spate_slice_str(snapshot->own_id),
        .sink = spate_slice_str(snapshot->name),
    };
    struct spate_buf place = {0};

    put_place(snapshot, &place);
    if (snapshot->glob_count > 0 || snapshot->where_count > 0)
        result = spate_snapshot_resolve(snapshot, &tables);
    wish.tables = tables.at;
    wish.table_count = tables.count;
    wish.some = tables.some;
    if (result == SPATE_EXIT_OK)
        result = spate_snapshot_line_open(snapshot, &line, false);
    if (result == SPATE_EXIT_OK)
        result = spate_snapshot_line_write(snapshot, &line);
    if (result == SPATE_EXIT_OK)
        result = answer(snapshot, &line, &wish, &entry);
    if (result == SPATE_EXIT_OK && entry && !entry->over) {
        printf("%s\n", snapshot->own_id);
        fflush(stdout);
        if (snapshot->follow)
            result = follow(&line, entry);
        else
            fprintf(stderr,
                    "spate: sink %s asks as request %s: %zu table%s, about %" PRIu64
                    " rows. Watch it: spate snapshot %s --follow %s\n",
                    snapshot->sink, snapshot->own_id, entry->table_count, entry->table_count == 1 ? "" : "s",
                    entry->estimate, spate_buf_str(&place), snapshot->own_id);
    }
    spate_snapshot_line_close(&line);
    spate_snapshot_tables_fini(&tables);
    spate_buf_fini(&place);
    return result;
}
