/* cli/snapshot_print.c - a requester that prints: asks, takes its chunks from the stream, and says when it
 * has everything. */
#include "cli/out.h"
#include "cli/snapshot.h"
#include "cli/take.h"

#include "core/clock.h"
#include "core/signals.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TURN_MS      20            /* how long the loop sleeps at the stream before it looks at _control */
#define TABLE_MS     10            /* the connector looks at each table before it answers */
#define SILENT_MS    30000         /* nothing was heard of the request: it is sent again */
#define RENEW_MS     1000          /* between two requests of new names */
#define TURN_MOST_MS 500           /* at the stream, before the rest is looked at */
#define UNHEARD_MS   5000          /* all is said to be sent, and is not here */
#define LOST_MS      2000          /* between two requests for the same lost chunk */
#define PAUSE_MS     200           /* before keys are asked for again that were being changed just now */
#define HOLE_MS      60000         /* as for a sink: what is missing by then will not come */
#define KEYS_MOST    1000          /* in one message */
#define KEYS_BYTES   (256ul << 20) /* of rows that change while they are read */

struct printer {
    struct spate_snapshot *snapshot;
    struct spate_snapshot_tables tables;
    struct spate_snapshot_line line;
    struct spate_snapshot_progress progress;
    struct spate_reader *reader; /* of the stream */
    struct spate_take take;
    struct spate_cli_out out;
    struct spate_book_entry *entry; /* our request; NULL until it was heard of */
    bool talkative;                 /* progress is shown */
    bool behind;                    /* there is more in the stream than was read */
    bool silent;                    /* said once that nobody answers */
    bool begun;                     /* what is left out was said */
    bool started;                   /* the connector said so, and was not told yet what we ask for */
    int64_t sent_ms, heard_ms, lost_ms, keys_ms, hole_ms;
    uint64_t keys_asked; /* keys are on their way; 0: none */
    uint64_t chunks;     /* that were taken when one was taken last */
    int64_t moved_ms;
};

static enum spate_exit failed(const struct spate_err *err)
{
    return spate_cli_failed(err);
}

/* --- saying
 * -------------------------------------------------------------------------------------------------- */

/* Keeps the tables of the request in step with those that are taken. */
static void forget_left_out(struct spate_snapshot_tables *tables, const struct spate_take *take)
{
    size_t kept = 0;

    for (size_t i = 0; i < tables->count; i++) {
        struct spate_control_table *table = &tables->at[i];

        if (kept < take->table_count && spate_slice_is(table->table, take->tables[kept].name) &&
            spate_slice_is(table->schema, take->tables[kept].schema)) {
            tables->at[kept++] = *table;
            continue;
        }
        fprintf(stderr, "spate: %.*s.%.*s is left out: it cannot be read (name it without * to hear why)\n",
                SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->table));
        spate_snapshot_table_fini(table);
    }
    tables->count = kept;
}

/* The request, with the tokens that we hold. `again`: begin from them, whatever is on its way. */
static enum spate_exit ask(struct printer *printer, bool lost)
{
    const struct spate_snapshot *snapshot = printer->snapshot;
    struct spate_control request = {
        .op = SPATE_CONTROL_REQUEST,
        .request = spate_slice_str(snapshot->own_id),
        .sink = spate_slice_str(snapshot->name),
        .tables = printer->tables.at,
        .again = lost,
        .append = true,
        .some = printer->tables.some,
    };
    struct spate_err err = {0};

    forget_left_out(&printer->tables, &printer->take);
    request.table_count = printer->tables.count;
    for (size_t i = 0; i < request.table_count; i++) {
        const struct spate_take_table *table = &printer->take.tables[i];

        printer->tables.at[i].chunk = table->taken;
        printer->tables.at[i].resume =
            table->resume ? spate_slice_str(table->resume) : (struct spate_slice){0};
    }
    printer->sent_ms = spate_clock_ms();
    return spate_snapshot_say(&printer->line, &request, &err) == SPATE_OK ? SPATE_EXIT_OK : failed(&err);
}

static enum spate_rc say(struct printer *printer, enum spate_control_op op, struct spate_err *err)
{
    const struct spate_control control = {
        .op = op,
        .request = spate_slice_str(printer->snapshot->own_id),
        .sink = spate_slice_str(printer->snapshot->name),
    };

    return spate_snapshot_say(&printer->line, &control, err);
}

static enum spate_exit ask_for_keys(struct printer *printer, const struct spate_take_table *table)
{
    struct spate_buf keys = {0};
    struct spate_control reread = {
        .op = SPATE_CONTROL_REREAD,
        .request = spate_slice_str(printer->snapshot->own_id),
        .sink = spate_slice_str(printer->snapshot->name),
        .schema = spate_slice_str(table->schema),
        .table = spate_slice_str(table->name),
        .chunk = table->taken,
    };
    struct spate_err err = {0};
    enum spate_rc rc;

    spate_keys_array(&table->again, KEYS_MOST, &keys);
    reread.keys = spate_buf_view(&keys);
    rc = spate_snapshot_say(&printer->line, &reread, &err);
    spate_buf_fini(&keys);
    printer->keys_asked = table->taken + 1;
    printer->keys_ms = spate_clock_ms();
    return rc == SPATE_OK ? SPATE_EXIT_OK : failed(&err);
}

/* --- hearing
 * ------------------------------------------------------------------------------------------------- */

static void heard(void *arg, struct spate_book_entry *entry)
{
    struct printer *printer = arg;

    if (!entry)
        return;
    if (strcmp(entry->request, printer->snapshot->own_id) == 0) {
        printer->entry = entry;
        if (entry->answered) {
            printer->heard_ms = spate_clock_ms();
            printer->silent = false;
        }
    }
}

static enum spate_exit hear(struct printer *printer)
{
    struct spate_book *book = &printer->line.book;
    const uint64_t starts = book->starts;
    struct spate_err err = {0};

    if (spate_reader_wait(printer->line.reader, 0, &err) == SPATE_FAIL ||
        spate_snapshot_hear(&printer->line, heard, printer, &err) != SPATE_OK)
        return failed(&err);
    printer->started = printer->started || book->starts != starts;
    if (printer->entry && printer->talkative && printer->entry->answered)
        spate_snapshot_progress_show(&printer->progress, printer->entry);
    return SPATE_EXIT_OK;
}

/* --- taking
 * --------------------------------------------------------------------------------------------------- */

static void tell_gap(const struct printer *printer, const struct spate_message *message)
{
    char from[SPATE_BUS_POS_TEXT], to[SPATE_BUS_POS_TEXT];
    const char *driver = printer->snapshot->stream.bus->ops->name;

    spate_bus_pos_format(driver, message->pos, from);
    spate_bus_pos_format(driver, message->next, to);
    fprintf(
        stderr,
        "spate: the bus has removed %s up to %s before it was read: whoever reads the output is too slow for "
        "the bus' retention. Ask again, into a file\n",
        from, to);
}

/* What is there now, for a while. */
static enum spate_exit drain(struct printer *printer, bool *done)
{
    struct spate_message message;
    struct spate_err err = {0};
    enum spate_exit result = SPATE_EXIT_OK;
    const int64_t until_ms = spate_clock_ms() + TURN_MOST_MS;
    unsigned lines = 0;

    while (result == SPATE_EXIT_OK && !spate_cli_out_over(&printer->out)) {
        enum spate_rc rc = spate_reader_next(printer->reader, &message, &err);

        printer->behind = rc == SPATE_OK;
        if (rc == SPATE_AGAIN || rc == SPATE_END)
            break;
        if (rc == SPATE_FAIL)
            return failed(&err);
        if (message.kind == SPATE_MESSAGE_GAP) {
            tell_gap(printer, &message);
            return SPATE_EXIT_FENCED;
        }
        if (spate_take_line(&printer->take, message.value, &printer->out.buf, &err) != SPATE_OK) {
            spate_cli_out_flush(&printer->out); /* what was printed is said to be not all */
            return failed(&err);
        }
        if (printer->take.begun && !printer->begun) {
            printer->begun = true;
            forget_left_out(&printer->tables, &printer->take);
        }
        *done = spate_take_done(&printer->take);
        if (*done)
            break;
        if (printer->out.buf.len >= SPATE_OUT_FLUSH)
            result = spate_cli_out_flush(&printer->out);
        /* Neither a slow pipe nor a busy stream must keep us from hearing. */
        if (++lines % 256 == 0 && spate_clock_ms() > until_ms)
            break;
    }
    return result == SPATE_EXIT_OK ? spate_cli_out_flush(&printer->out) : result;
}

/* --- what is due
 * ---------------------------------------------------------------------------------------------- */

static enum spate_exit due_requests(struct printer *printer, int64_t now_ms)
{
    struct spate_take *take = &printer->take;

    if (take->chunks != printer->chunks || !printer->moved_ms) {
        printer->chunks = take->chunks;
        printer->moved_ms = now_ms;
    }
    /* The connector has said its last, and we have not heard it: it did not stand where it was true. */
    if (!take->ended && !printer->behind && printer->entry && strcmp(printer->entry->state, "sent") == 0 &&
        now_ms - printer->moved_ms >= UNHEARD_MS) {
        take->lost = true;
        printer->moved_ms = now_ms;
    }
    if (take->renew && now_ms - printer->sent_ms >= RENEW_MS) {
        spate_snapshot_new_id(printer->snapshot); /* take.request is that buffer */
        spate_take_renew(take);
        printer->entry = NULL;
        printer->keys_asked = 0;
        return ask(printer, false);
    }
    if (take->lost && now_ms - printer->lost_ms >= LOST_MS) {
        take->lost = false;
        printer->lost_ms = now_ms;
        printer->started = false;
        return ask(printer, true);
    }
    if (printer->started ||
        (printer->entry && printer->entry->answered && now_ms - printer->heard_ms >= SILENT_MS &&
         now_ms - printer->sent_ms >= SILENT_MS)) {
        if (!printer->started && !printer->silent)
            fprintf(stderr,
                    "spate: nothing was heard of request %s for %d s; it is sent again. Is connector %s "
                    "running?\n",
                    printer->snapshot->own_id, SILENT_MS / 1000, printer->snapshot->stream.name);
        printer->silent = !printer->started;
        printer->started = false;
        printer->keys_asked = 0; /* another connector knows nothing of them */
        return ask(printer, false);
    }
    return SPATE_EXIT_OK;
}

static enum spate_exit due_keys(struct printer *printer, int64_t now_ms)
{
    struct spate_take *take = &printer->take;
    const struct spate_take_table *table;

    if (take->reread) {
        take->reread = false;
        printer->keys_asked = 0;
        if (!take->dropped)
            printer->keys_ms = 0; /* the next ones at once */
        take->dropped = false;
    }
    if (!take->ended || (printer->keys_asked && (printer->behind || now_ms - printer->keys_ms < SILENT_MS)) ||
        now_ms - printer->keys_ms < PAUSE_MS)
        return SPATE_EXIT_OK;
    table = spate_take_again(take);
    return table ? ask_for_keys(printer, table) : SPATE_EXIT_OK;
}

static enum spate_exit overdue(struct printer *printer, int64_t now_ms)
{
    struct spate_take *take = &printer->take;

    if (!take->hole)
        printer->hole_ms = 0;
    else if (!printer->hole_ms)
        printer->hole_ms = now_ms;
    if (printer->hole_ms && now_ms - printer->hole_ms > HOLE_MS) {
        fprintf(stderr,
                "spate: changes behind n=%" PRIu64 " of epoch %" PRIu64
                " are missing on the bus for a minute: what was printed is not the whole picture. See the "
                "connector's log, and ask again\n",
                take->follower.last.n, take->follower.last.epoch);
        return SPATE_EXIT_FENCED;
    }
    if (spate_take_held(take) > KEYS_BYTES) {
        fprintf(stderr,
                "spate: more rows change while they are read than %lu MiB of keys can hold; ask for "
                "less at a time (--tables, --where)\n",
                KEYS_BYTES >> 20);
        return SPATE_EXIT_FAILED;
    }
    if (!(printer->entry && printer->entry->answered) &&
        now_ms - printer->sent_ms > printer->snapshot->wait_ms)
        return spate_snapshot_silence(printer->snapshot, printer->entry);
    return SPATE_EXIT_OK;
}

/* --- the loop
 * -------------------------------------------------------------------------------------------------- */

static bool over(const struct printer *printer)
{
    return printer->entry && printer->entry->over;
}

/* Until everything was taken, the request is over, or it is to be given up. */
static enum spate_exit loop(struct printer *printer, bool *done)
{
    enum spate_exit result = SPATE_EXIT_OK;
    struct spate_err err = {0};

    while (result == SPATE_EXIT_OK && !*done && !spate_cli_out_over(&printer->out)) {
        int64_t now_ms;

        result = drain(printer, done);
        if (result == SPATE_EXIT_OK && !*done)
            result = hear(printer);
        if (result != SPATE_EXIT_OK || *done || over(printer))
            break;
        now_ms = spate_clock_ms();
        result = due_requests(printer, now_ms);
        if (result == SPATE_EXIT_OK)
            result = due_keys(printer, now_ms);
        if (result == SPATE_EXIT_OK)
            result = overdue(printer, now_ms);
        if (result == SPATE_EXIT_OK && spate_reader_wait(printer->reader, TURN_MS, &err) == SPATE_FAIL)
            result = failed(&err);
        spate_cli_out_glance(&printer->out);
    }
    return result;
}

/* The stream's end is fixed before the request is sent: everything that is delivered from then on is heard.
 */
static enum spate_exit open_all(struct printer *printer)
{
    struct spate_snapshot *snapshot = printer->snapshot;
    struct spate_bus *bus = snapshot->stream.bus;
    const struct spate_start now = {.from = SPATE_START_NOW};
    struct spate_err err = {0};
    enum spate_exit result = spate_snapshot_resolve(snapshot, &printer->tables);

    if (result != SPATE_EXIT_OK)
        return result;
    snapshot->wait_ms += (int64_t)printer->tables.count * TABLE_MS;
    spate_take_init(&printer->take, snapshot->name, snapshot->own_id);
    for (size_t i = 0; i < printer->tables.count; i++)
        spate_take_add(&printer->take, printer->tables.at[i].schema, printer->tables.at[i].table);
    printer->take.rows = snapshot->rows;
    /* Whether a changed row still fulfils a condition, the source says. */
    printer->take.changes = !snapshot->rows && snapshot->where_count == 0;
    if (spate_bus_reader_open(bus, snapshot->stream.topic, SPATE_SEE_DURABLE, now, &printer->reader, &err) !=
        SPATE_OK)
        return failed(&err);
    result = spate_snapshot_line_open(snapshot, &printer->line, false);
    if (result == SPATE_EXIT_OK)
        result = spate_snapshot_line_write(snapshot, &printer->line);
    return result;
}

static enum spate_exit last_words(struct printer *printer, enum spate_exit result, bool done)
{
    const struct spate_take *take = &printer->take;
    struct spate_err err = {0};

    if (done) {
        if (printer->talkative)
            fprintf(stderr, "%s %s: finished, %" PRIu64 " lines\n", printer->snapshot->name,
                    printer->snapshot->own_id, take->count);
        if (say(printer, SPATE_CONTROL_FINISHED, &err) != SPATE_OK)
            fprintf(stderr, "spate: everything came, but that could not be said on %s: %s\n",
                    printer->line.topic, err.text);
        if (take->truncated > 0 && !take->changes)
            fprintf(stderr, "spate: a table was truncated meanwhile; rows printed before that are gone\n");
        return SPATE_EXIT_OK;
    }
    if (result == SPATE_EXIT_OK && over(printer))
        return spate_snapshot_verdict(printer->entry);
    /* Nobody waits for these rows any more. */
    if (say(printer, SPATE_CONTROL_CANCEL, &err) != SPATE_OK)
        fprintf(stderr, "spate: the request could not be cancelled: %s\n", err.text);
    if (result == SPATE_EXIT_OK && printer->out.gone)
        return SPATE_EXIT_OK; /* whoever read has seen enough */
    if (result == SPATE_EXIT_OK)
        fprintf(stderr, "spate: request %s was cancelled before everything came\n",
                printer->snapshot->own_id);
    return result == SPATE_EXIT_OK ? SPATE_EXIT_FAILED : result;
}

enum spate_exit spate_snapshot_print(struct spate_snapshot *snapshot)
{
    struct printer printer = {.snapshot = snapshot};
    enum spate_exit result = open_all(&printer);
    bool done = false;

    printer.talkative = snapshot->follow || (isatty(STDERR_FILENO) == 1 && isatty(STDOUT_FILENO) == 0);
    if (result == SPATE_EXIT_OK) {
        result = ask(&printer, false);
        if (result == SPATE_EXIT_OK)
            result = loop(&printer, &done);
        spate_snapshot_progress_end(&printer.progress);
        result = last_words(&printer, result, done);
    }
    spate_reader_close(printer.reader);
    spate_snapshot_line_close(&printer.line);
    spate_take_fini(&printer.take);
    spate_snapshot_tables_fini(&printer.tables);
    spate_buf_fini(&printer.out.buf);
    return result;
}
