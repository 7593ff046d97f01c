/* cli/tap_run.c - the loop of spate tap: bus to standard output, line by line, byte for byte. */
#include "cli/cli.h"
#include "cli/out.h"
#include "cli/tap.h"

#include "core/buf.h"
#include "core/signals.h"
#include "schemas/codec.h"
#include "schemas/snapshot.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS  200
#define GLANCE_MS 250 /* how often an idle tap looks whether anybody still reads */

struct show {
    const struct spate_tap *tap;
    struct spate_reader *reader;
    struct spate_arena arena;
    struct spate_cli_out out;
    uint64_t shown, unreadable;
};

static bool any_glob(const struct spate_tap *tap, struct spate_slice schema, struct spate_slice table)
{
    for (size_t i = 0; i < tap->glob_count; i++)
        if (spate_glob_match(tap->globs[i], schema, table))
            return true;
    return false;
}

static bool truncates(struct show *show, struct spate_slice line, const struct spate_head *head)
{
    struct spate_truncation tables;
    struct spate_meta meta;
    struct spate_err err = {0};

    if (spate_decode_meta(line, head, &meta, &show->arena, &err) != SPATE_OK ||
        spate_decode_truncate(line, &meta, &tables, &show->arena, &err) != SPATE_OK)
        return false;
    for (size_t i = 0; i < tables.count; i++)
        if (any_glob(show->tap, tables.tables[i].schema, tables.tables[i].table))
            return true;
    return false;
}

/* What names several tables is shown when any of them is meant. */
static bool names_one(struct show *show, struct spate_slice line, const struct spate_head *head)
{
    const bool begins = head->op == SPATE_OP_SNAPSHOT_BEGIN;
    struct spate_snapshot_begin begin = {0};
    struct spate_ranges_end end = {0};
    struct spate_err err = {0};

    if (begins ? spate_decode_snapshot_begin(line, &begin, &show->arena, &err) != SPATE_OK
               : spate_decode_ranges_end(line, &end, &show->arena, &err) != SPATE_OK)
        return false;
    for (size_t i = 0; i < begin.count; i++)
        if (any_glob(show->tap, begin.tables[i].schema, begin.tables[i].table))
            return true;
    for (size_t i = 0; i < end.count; i++)
        if (any_glob(show->tap, end.tables[i].schema, end.tables[i].table))
            return true;
    return false;
}

static bool wanted(struct show *show, struct spate_slice line)
{
    const struct spate_tap *tap = show->tap;
    struct spate_head head;
    struct spate_err err = {0};

    if (tap->ops == 0 && tap->glob_count == 0)
        return true; /* what cannot be decoded is shown as well: one looks with this tool when things are odd
                      */
    spate_arena_reset(&show->arena);
    if (spate_decode_head(line, &head, &show->arena, &err) != SPATE_OK) {
        if (show->unreadable++ == 0)
            fprintf(stderr, "spate: a message is passed by, the filter cannot read it: %s\n", err.text);
        return false;
    }
    if (tap->ops != 0 && !(tap->ops & (1u << head.op)))
        return false;
    if (tap->glob_count == 0)
        return true;
    if (head.op == SPATE_OP_TRUNCATE)
        return truncates(show, line, &head);
    if (head.op == SPATE_OP_SNAPSHOT_BEGIN || head.op == SPATE_OP_RANGES_END)
        return names_one(show, line, &head);
    return head.table.len > 0 && any_glob(tap, head.schema, head.table);
}

static void position(const struct show *show, struct spate_bus_pos pos, char out[SPATE_BUS_POS_TEXT])
{
    spate_bus_pos_format(show->tap->stream.bus->ops->name, pos, out);
}

static enum spate_exit take(struct show *show, const struct spate_message *message)
{
    char at[SPATE_BUS_POS_TEXT], next[SPATE_BUS_POS_TEXT];

    position(show, message->pos, at);
    if (message->kind == SPATE_MESSAGE_GAP) {
        position(show, message->next, next);
        fprintf(stderr,
                "spate: messages from %s up to %s are lost to this tap: retention took them before they "
                "were read\n",
                at, next);
        return SPATE_EXIT_OK;
    }
    if (!wanted(show, message->value))
        return SPATE_EXIT_OK;
    if (show->tap->show_pos)
        spate_buf_printf(&show->out.buf, "%s\t", at);
    spate_buf_slice(&show->out.buf, message->value);
    spate_buf_putc(&show->out.buf, '\n');
    show->shown++;
    return show->out.buf.len >= SPATE_OUT_FLUSH ? spate_cli_out_flush(&show->out) : SPATE_EXIT_OK;
}

/* Shows what is there now. */
static enum spate_exit drain(struct show *show, bool *done)
{
    struct spate_err err = {0};
    struct spate_message message;
    enum spate_exit result = SPATE_EXIT_OK;

    while (result == SPATE_EXIT_OK && !*done && !spate_cli_out_over(&show->out)) {
        enum spate_rc rc = spate_reader_next(show->reader, &message, &err);

        if (rc == SPATE_AGAIN || rc == SPATE_END)
            break;
        if (rc == SPATE_FAIL)
            result = spate_cli_failed(&err);
        else
            result = take(show, &message);
        *done = show->tap->limit > 0 && show->shown >= show->tap->limit;
    }
    return result;
}

/* Opens the stream's reader; a stream that was named but is not there yet is waited for. */
static enum spate_exit attach(struct show *show)
{
    const struct spate_tap *tap = show->tap;
    bool told = false;

    while (!spate_cli_out_over(&show->out)) {
        struct spate_err err = {0};
        struct pollfd fd = {.fd = spate_signals_fd(), .events = POLLIN};

        if (spate_bus_reader_open(tap->stream.bus, tap->stream.topic, tap->see, tap->start, &show->reader,
                                  &err) == SPATE_OK)
            return SPATE_EXIT_OK;
        if (err.verdict != SPATE_RETRY)
            return spate_cli_failed(&err);
        if (!told)
            fprintf(stderr, "spate: waiting: %s\n", err.text);
        told = true;
        spate_cli_out_glance(&show->out);
        poll(&fd, 1, RETRY_MS);
    }
    return SPATE_EXIT_OK;
}

enum spate_exit spate_tap_run(const struct spate_tap *tap)
{
    struct show show = {.tap = tap};
    enum spate_exit result = attach(&show);
    struct spate_err err = {0};
    bool done = false;

    while (result == SPATE_EXIT_OK && show.reader && !done && !spate_cli_out_over(&show.out)) {
        result = drain(&show, &done);
        if (result == SPATE_EXIT_OK)
            result = spate_cli_out_flush(&show.out);
        if (result != SPATE_EXIT_OK || done || spate_cli_out_over(&show.out))
            break;
        if (spate_reader_wait(show.reader, GLANCE_MS, &err) == SPATE_FAIL)
            result = spate_cli_failed(&err);
        spate_cli_out_glance(&show.out); /* a closed pipe shows itself even when there is nothing to write */
    }
    if (show.unreadable > 1)
        fprintf(stderr, "spate: %llu messages were passed by unread\n", (unsigned long long)show.unreadable);
    spate_reader_close(show.reader);
    spate_arena_fini(&show.arena);
    spate_buf_fini(&show.out.buf);
    return result;
}
