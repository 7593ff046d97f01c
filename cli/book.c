#include "cli/book.h"

#include "core/alloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOUR_US        INT64_C(3600000000)
#define ASKED_AGAIN_US INT64_C(60000000) /* twice as long as a requester is silent before it asks again */

void spate_book_fini(struct spate_book *book)
{
    for (size_t i = 0; i < book->count; i++) {
        struct spate_book_entry *entry = book->entries[i];

        free(entry->tables);
        free(entry->why);
        free(entry->reason);
        free(entry->remedy);
        free(entry);
    }
    free(book->entries);
    spate_arena_fini(&book->arena);
    *book = (struct spate_book){0};
}

struct spate_book_entry *spate_book_find(const struct spate_book *book, const char *request)
{
    for (size_t i = book->count; i-- > 0;)
        if (strcmp(book->entries[i]->request, request) == 0)
            return book->entries[i];
    return NULL;
}

static void put(char *out, size_t size, struct spate_slice text)
{
    size_t len = text.len < size ? text.len : size - 1;

    if (len > 0)
        memcpy(out, text.at, len);
    out[len] = 0;
}

static void keep(char **out, struct spate_slice text)
{
    free(*out);
    *out = text.len ? spate_strndup(text.at, text.len) : NULL;
}

static struct spate_book_entry *entry_of(struct spate_book *book, struct spate_slice request)
{
    char name[SPATE_BOOK_NAME];
    struct spate_book_entry *entry;

    put(name, sizeof name, request);
    entry = spate_book_find(book, name);
    if (entry)
        return entry;
    entry = spate_zalloc(sizeof *entry);
    put(entry->request, sizeof entry->request, request);
    put(entry->state, sizeof entry->state, spate_slice_str("asked"));
    entry->left_s = -1;
    book->entries = spate_realloc(book->entries, (book->count + 1) * sizeof *book->entries);
    book->entries[book->count++] = entry;
    return entry;
}

static void keep_tables(struct spate_book_entry *entry, const struct spate_control *control)
{
    struct spate_buf names = {0};

    if (control->table_count == 0)
        return;
    for (size_t i = 0; i < control->table_count; i++)
        spate_buf_printf(&names, "%s%.*s.%.*s", i ? ", " : "", SPATE_SLICE_ARG(control->tables[i].schema),
                         SPATE_SLICE_ARG(control->tables[i].table));
    entry->table_count = control->table_count;
    keep(&entry->tables, spate_buf_view(&names));
    spate_buf_fini(&names);
}

static void enter_state(struct spate_book_entry *entry, const char *state)
{
    static const char *const last[] = {"finished", "cancelled", "refused", "failed", "expired", "replaced"};

    put(entry->state, sizeof entry->state, spate_slice_str(state));
    entry->over = entry->settled = false;
    for (size_t i = 0; i < SPATE_COUNT(last); i++)
        entry->over = entry->over || strcmp(state, last[i]) == 0;
}

static void read_progress(struct spate_book_entry *entry, const struct spate_control *control)
{
    char state[SPATE_BOOK_STATE];

    put(state, sizeof state, control->state);
    enter_state(entry, state);
    entry->rows = control->rows;
    entry->estimate = control->estimate;
    entry->percent = control->percent;
    entry->rate = control->rate;
    entry->left_s = control->left_s;
    keep(&entry->why, control->why);
}

static void read_entry(struct spate_book_entry *entry, const struct spate_control *control)
{
    switch (control->op) {
    case SPATE_CONTROL_REQUEST:
        if (control->to.len) {
            put(entry->requester, sizeof entry->requester, control->to);
            put(entry->asker, sizeof entry->asker, control->sink);
        } else {
            put(entry->requester, sizeof entry->requester, control->sink);
            entry->asked_by_requester = true;
        }
        if (entry->over) /* asked again by the same name: a new life */
            enter_state(entry, "asked");
        keep_tables(entry, control);
        break;
    case SPATE_CONTROL_ACCEPTED:
        entry->answered = true;
        if (strcmp(entry->state, "asked") == 0 || entry->over) /* else it goes on, and was only asked again */
            enter_state(entry, "accepted");
        entry->estimate = 0;
        for (size_t i = 0; i < control->table_count; i++)
            entry->estimate += control->tables[i].rows;
        keep_tables(entry, control);
        break;
    case SPATE_CONTROL_REFUSED:
        entry->answered = true;
        enter_state(entry, "refused");
        entry->settled = true;
        keep(&entry->reason, control->reason);
        keep(&entry->remedy, control->remedy);
        break;
    case SPATE_CONTROL_PROGRESS:
        entry->answered = true;
        read_progress(entry, control);
        entry->settled = entry->over;
        break;
    case SPATE_CONTROL_FINISHED:
        enter_state(entry, "finished");
        keep(&entry->why, (struct spate_slice){0});
        break;
    case SPATE_CONTROL_CANCEL:
        enter_state(entry, "cancelled");
        keep(&entry->why, (struct spate_slice){0});
        break;
    default:
        break;
    }
    if (!entry->requester[0])
        put(entry->requester, sizeof entry->requester, control->sink.len ? control->sink : control->to);
}

/* A name has one request at a time: the newer one takes the place of those before it. */
static void supersede(struct spate_book *book, const struct spate_book_entry *newer,
                      struct spate_slice requester)
{
    for (size_t i = 0; i < book->count; i++) {
        struct spate_book_entry *entry = book->entries[i];

        if (entry != newer && !entry->over && entry->asked_by_requester &&
            spate_slice_is(requester, entry->requester))
            enter_state(entry, "cancelled");
    }
}

struct spate_book_entry *spate_book_read(struct spate_book *book, struct spate_slice line, int64_t wall_us)
{
    struct spate_control control;
    struct spate_book_entry *entry;
    struct spate_err err = {0};

    spate_arena_reset(&book->arena);
    if (spate_decode_control(line, &control, &book->arena, &err) != SPATE_OK) {
        book->unreadable++;
        return NULL;
    }
    if (control.op == SPATE_CONTROL_STARTED) {
        const int64_t now_us = control.wall_us ? control.wall_us : wall_us;

        spate_book_settle(book, now_us); /* what the start before this one left stays over */
        book->starts++;
        book->started_us = now_us;
    }
    if (control.request.len == 0 || control.op == SPATE_CONTROL_UNKNOWN)
        return NULL;
    entry = entry_of(book, control.request);
    if (control.op == SPATE_CONTROL_REQUEST && control.to.len == 0)
        supersede(book, entry, control.sink);
    read_entry(entry, &control);
    entry->heard_us = control.wall_us ? control.wall_us : wall_us;
    if (!entry->asked_us)
        entry->asked_us = entry->heard_us;
    return entry;
}

void spate_book_settle(struct spate_book *book, int64_t now_us)
{
    for (size_t i = 0; i < book->count; i++) {
        struct spate_book_entry *entry = book->entries[i];

        if (entry->over)
            continue;
        if (!entry->answered && now_us - entry->heard_us > HOUR_US)
            enter_state(entry, "expired");
        if (entry->answered && entry->heard_us < book->started_us &&
            now_us - book->started_us > ASKED_AGAIN_US) {
            enter_state(entry, "expired");
            keep(&entry->why,
                 spate_slice_str("the connector was started again, and nobody has asked again since"));
        }
    }
}

bool spate_book_silent(const struct spate_book_entry *entry, int64_t now_us)
{
    return !entry->over && now_us - entry->heard_us > SPATE_BOOK_SILENT_US;
}

static void put_span(struct spate_buf *out, int64_t seconds)
{
    if (seconds < 120)
        spate_buf_printf(out, "%" PRId64 " s", seconds);
    else if (seconds < 7200)
        spate_buf_printf(out, "%" PRId64 " min", seconds / 60);
    else
        spate_buf_printf(out, "%" PRId64 " h %" PRId64 " min", seconds / 3600, seconds / 60 % 60);
}

void spate_book_describe(const struct spate_book_entry *entry, struct spate_buf *out)
{
    spate_buf_printf(out, "%s", entry->state);
    if (entry->why)
        spate_buf_printf(out, " (%s)", entry->why);
    spate_buf_printf(out, ", %" PRIu64 " rows", entry->rows);
    if (entry->over)
        return;
    if (entry->estimate)
        spate_buf_printf(out, " of about %" PRIu64, entry->estimate);
    spate_buf_printf(out, ", %.1f %%", entry->percent);
    if (entry->rate >= 1)
        spate_buf_printf(out, ", %.0f rows/s", entry->rate);
    if (entry->left_s >= 0) {
        spate_buf_puts(out, ", ");
        put_span(out, entry->left_s);
        spate_buf_puts(out, " left");
    }
}
