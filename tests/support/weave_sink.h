/* tests/support/weave_sink.h - a requester that follows the log, for tests/unit/cli_weave_test.c: what it
 * holds, what of it survives a restart, when a chunk is taken, and when the sweep may come (docs/hazards.md,
 * snapshots). */
#ifndef SPATE_TESTS_SUPPORT_WEAVE_SINK_H
#define SPATE_TESTS_SUPPORT_WEAVE_SINK_H

#include "tests/support/weave_connector.h"

enum phase {
    WAITING, /* it has asked, or will; its own snapshot-begin has not come */
    LOADING,
    COMPLETE /* holds exactly what exists */
};

/* What stands in the target, and moves in one transaction. */
struct held {
    int pos, n;  /* in the log; the last change taken */
    bool placed; /* n means something: it follows */
    enum phase phase;
    bool late; /* LATE_BEGIN: no chunk has come yet */
    int request, no;
    struct token token;
    bool ranges_known;
    uint32_t present, marked, listed;
    int a[KEYS], toast[KEYS];
};

struct sink {
    struct held now, stored;
    bool asked, lost;
    bool hole;  /* it has met what is further on */
    bool eager; /* applies the rows of a chunk before its end */
    struct {
        bool open;
        struct record head;
        struct row rows[4 * KEYS];
        int count;
    } chunk;
};

static struct sink sinks[SINKS];
static int last_request;
static bool idle;             /* nobody writes any more, and timers run out */
static const char *violation; /* what a complete sink must never meet */

/* ---- rows ---- */

static bool in_generation_only(const struct held *held)
{
    return held->phase == LOADING && !held->late && control != NO_GENERATION;
}

static bool knows(const struct held *held, int key)
{
    return (held->present >> key & 1) && (!in_generation_only(held) || (held->marked >> key & 1));
}

static void whole(struct held *held, int key, int a, int toast)
{
    held->present |= 1u << key;
    held->marked |= 1u << key;
    held->listed &= ~(1u << key);
    held->a[key] = a;
    held->toast[key] = toast;
}

static void gone(struct held *held, int key)
{
    if (held->phase == COMPLETE && !(held->present >> key & 1))
        violation = "a delete found no row";
    held->present &= ~(1u << key);
    held->marked &= ~(1u << key);
    held->listed &= ~(1u << key);
}

/* A partial change found no row that it may touch (P94). */
static void missing(struct held *held, int key)
{
    if (held->phase == COMPLETE)
        violation = "a partial update found no row";
    else if (held->phase == LOADING && !held->late)
        held->listed |= 1u << key;
}

static void apply(struct held *held, const struct op *op)
{
    int toast = op->toast;
    bool known;

    switch (op->what) {
    case TRUNCATE:
        held->present = held->marked = held->listed = 0;
        break;
    case INSERT:
        whole(held, op->key, op->a, op->toast);
        break;
    case DELETE:
        gone(held, op->key);
        break;
    case UPDATE:
        if (!op->unchanged)
            whole(held, op->key, op->a, op->toast);
        else if (knows(held, op->key))
            held->a[op->key] = op->a;
        else
            missing(held, op->key);
        break;
    case MOVE:
        known = knows(held, op->key);
        if (op->unchanged && known)
            toast = held->toast[op->key];
        gone(held, op->key);
        if (!op->unchanged || known) {
            whole(held, op->to, op->a, toast);
        } else {
            held->present &= ~(1u << op->to);
            held->marked &= ~(1u << op->to);
            missing(held, op->to);
        }
        break;
    }
}

static void apply_transaction(struct held *held, int n)
{
    const struct transaction *tx = &source.transactions[source.wal[n - 1]];

    for (int i = 0; i < tx->count; i++)
        apply(held, &tx->ops[i]);
}

/* ---- what the log says ---- */

static void forget_load(struct held *held)
{
    held->no = 0;
    held->token = (struct token){0};
    held->ranges_known = false;
    held->marked = held->listed = 0;
}

static void want_anew(struct sink *sink);

/* Rows that were touched behind a flow's beginning are left out of its chunks: they are in the stream, for
 * whoever follows from there on. So a beginning that is not at our place, where two writers wrote, is that of
 * a flow whose chunks we could not tell from those that are for us: it is asked for under another name. */
static void take_begin(struct sink *sink, const struct record *record)
{
    struct held *held = &sink->now;

    if (control != ANY_BEGIN && held->placed &&
        (held->phase == WAITING ? record->n != held->n : held->phase == LOADING && record->n < held->n)) {
        want_anew(sink);
        return;
    }
    if (held->phase != WAITING || (held->placed && record->n != held->n))
        return; /* it goes on */
    if (control != HOLE_KEEPS)
        forget_load(held);
    held->n = record->n;
    held->placed = true;
    held->phase = LOADING;
    held->late = control == LATE_BEGIN;
}

static void take_head(struct sink *sink, const struct record *record)
{
    const struct held *held = &sink->now;
    bool follows = record->by_keys || is_none(record->since) || is_same(record->since, held->token);

    sink->chunk.open = false;
    if (held->phase != LOADING) {
        sink->lost |= held->phase == WAITING; /* its begin was not for us to take */
        return;
    }
    if (record->n != held->n || record->no <= held->no)
        return;
    if (record->no > held->no + 1 || (!follows && control != NO_SINCE)) {
        sink->lost = true;
        return;
    }
    sink->chunk.open = true;
    sink->chunk.head = *record;
    sink->chunk.count = 0;
}

static bool belongs(const struct sink *sink, const struct record *record)
{
    return sink->chunk.open && record->no == sink->chunk.head.no &&
           (record->by == sink->chunk.head.by || control == NO_BY);
}

static void take_row(struct sink *sink, const struct row *row)
{
    whole(&sink->now, row->key, row->a, row->toast);
}

static void take_read(struct sink *sink, const struct record *record)
{
    if (!belongs(sink, record))
        return;
    if (sink->chunk.count == 4 * KEYS) {
        sink->chunk.open = false;
        return;
    }
    sink->chunk.rows[sink->chunk.count++] = record->row;
    if (sink->eager)
        take_row(sink, &record->row);
}

static void take_end(struct sink *sink, const struct record *record)
{
    struct held *held = &sink->now;
    const struct record *head = &sink->chunk.head;
    uint32_t absent = head->keys & ~head->dropped;

    if (!belongs(sink, record))
        return;
    sink->chunk.open = false;
    if (record->count != sink->chunk.count && control != NO_BY) {
        sink->lost = true;
        return;
    }
    if (held->late) {
        held->late = false;
        held->marked = held->listed = 0;
    }
    for (int i = 0; i < sink->chunk.count; i++) {
        take_row(sink, &sink->chunk.rows[i]);
        absent &= ~(1u << sink->chunk.rows[i].key);
    }
    if (head->by_keys)
        held->listed &= ~absent; /* they do not exist */
    else
        held->ranges_known = false; /* the table begins anew, or it was false */
    held->no = record->no;
    if (!head->by_keys) /* an answer to keys says nothing of the ranges */
        held->token = record->resume;
}

/* One that does not fit comes from another flow of the same request, or a chunk is missing: the connector has
 * sent all that it knows of, so nothing comes unless it is told where we are. */
static void take_ranges_end(struct sink *sink, const struct record *record)
{
    struct held *held = &sink->now;

    if (held->phase != LOADING || record->n != held->n)
        return;
    if (record->no == held->no && (control == NO_END_CHAIN || is_same(record->resume, held->token)))
        held->ranges_known = true;
    else if (!held->ranges_known)
        sink->lost = true;
}

static void take_change(struct sink *sink, const struct record *record)
{
    struct held *held = &sink->now;

    if (!held->placed || record->n != held->n + 1)
        return; /* not followed yet, a repetition, or behind a hole */
    sink->hole = false;
    if (sink->chunk.open) {
        sink->chunk.open = false;
        sink->lost = true;
    }
    held->n = record->n;
    apply_transaction(held, held->n);
}

static void sink_take(int i)
{
    struct sink *sink = &sinks[i];
    const struct record *record;

    if (sink->now.pos >= bus.durable || sink->now.pos < bus.oldest)
        return;
    record = &bus.records[sink->now.pos++];
    sink->hole |= sink->now.placed && record->n > sink->now.n + (record->kind == CHANGE);
    if (record->kind == CHANGE) {
        take_change(sink, record);
        return;
    }
    if (record->sink != i || record->request != sink->now.request)
        return;
    switch (record->kind) {
    case BEGIN:
        take_begin(sink, record);
        break;
    case CHUNK:
        take_head(sink, record);
        break;
    case READ:
        take_read(sink, record);
        break;
    case CHUNK_END:
        take_end(sink, record);
        break;
    case RANGES_END:
        take_ranges_end(sink, record);
        break;
    case CHANGE:
    case HEARTBEAT:
        break;
    }
}

/* ---- what it does by itself ---- */

static void sink_store(struct sink *sink)
{
    if (!sink->chunk.open)
        sink->stored = sink->now;
}

static void sink_restart(struct sink *sink)
{
    const struct held ahead = sink->now;

    sink->now = sink->stored;
    sink->chunk.open = sink->asked = sink->lost = sink->hole = false;
    if (control == MARKS_LOST)
        sink->now.marked = 0;
    if (control == LIST_LOST)
        sink->now.listed = 0;
    if (control == TOKEN_AHEAD && sink->now.phase == LOADING && ahead.phase == LOADING) {
        sink->now.no = ahead.no;
        sink->now.token = ahead.token;
    }
}

/* The old rows stay readable. */
static void want_anew(struct sink *sink)
{
    sink->now.request = ++last_request;
    sink->now.phase = WAITING;
    sink->now.late = false;
    forget_load(&sink->now);
    sink->chunk.open = sink->asked = sink->lost = false;
    sink->stored = sink->now;
}

/* Retention has overtaken it, or a hole does not heal: to the end, whose position is fixed before it asks. */
static void sink_look(int i)
{
    struct sink *sink = &sinks[i];

    if (sink->now.pos >= bus.oldest && !(sink->hole && sink->now.pos == bus.durable && percent(2)))
        return;
    sink->hole = sink->now.placed = false;
    sink->now.pos = bus.durable;
    if (control != HOLE_KEEPS) {
        want_anew(sink);
        return;
    }
    sink->now.phase = WAITING;
    sink->now.request += sink->now.request == 0;
    sink->chunk.open = sink->asked = sink->lost = sink->hole = false;
    sink->stored = sink->now;
}

static void sink_ask(int i)
{
    struct sink *sink = &sinks[i];
    const struct held *held = &sink->now;

    if (held->phase == COMPLETE)
        return;
    if (held->pos == bus.durable && percent(idle ? 20 : 1)) /* all was sent long ago, and it is not here */
        sink->lost = true;
    if (sink->asked && !sink->lost && !control_of[i].started)
        return;
    say(i, (struct message){.word = REQUEST,
                            .request = held->request,
                            .no = held->no,
                            .resume = held->token,
                            .again = sink->lost});
    sink->asked = true;
    sink->lost = control_of[i].started = false;
}

/* A key that was not found is asked for; when nothing is left, what is not of the generation goes. */
static void sink_finish(int i)
{
    struct sink *sink = &sinks[i];
    struct held *held = &sink->now;

    if (held->phase != LOADING || !held->ranges_known || sink->chunk.open)
        return;
    if (held->listed && control != NO_REREAD) {
        say(i,
            (struct message){.word = REREAD, .request = held->request, .no = held->no, .keys = held->listed});
        return;
    }
    held->present &= held->marked;
    held->phase = COMPLETE;
    sink->stored = *held;
    say(i, (struct message){.word = FINISHED, .request = held->request});
}

static void sink_cancel(int i)
{
    if (sinks[i].now.phase == COMPLETE)
        return;
    say(i, (struct message){.word = CANCEL, .request = sinks[i].now.request});
    want_anew(&sinks[i]);
}

/* The projection has one column more: what it was in the rows that are there is not known. */
static void sink_change(int i)
{
    if (sinks[i].now.phase != COMPLETE || sinks[i].chunk.open)
        return;
    for (int key = 0; key < KEYS; key++)
        sinks[i].now.toast[key] = -1;
    want_anew(&sinks[i]);
}

/* New: with whatever rows an earlier life left, at the end of the log. */
static void sink_start(int i)
{
    struct sink *sink = &sinks[i];
    int upto = (int)chance((uint32_t)accepted(bus.durable) + 1);

    memset(sink, 0, sizeof *sink);
    sink->eager = percent(50);
    for (int n = 1; n <= upto; n++)
        apply_transaction(&sink->now, n);
    sink->now.pos = bus.durable;
    want_anew(sink);
}

static bool sink_is_right(int i)
{
    const struct held *held = &sinks[i].now;
    struct row rows[KEYS];
    int count = source_read(true, (1u << KEYS) - 1, 0, 0, rows), present = __builtin_popcount(held->present);

    for (int r = 0; r < count; r++)
        if (!(held->present >> rows[r].key & 1) || held->a[rows[r].key] != rows[r].a ||
            held->toast[rows[r].key] != rows[r].toast)
            return false;
    return present == count;
}

#endif
