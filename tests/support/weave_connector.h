/* tests/support/weave_connector.h - the log, and a connector that weaves chunks into it (docs/hazards.md,
 * snapshots), for tests/unit/cli_weave_test.c. H, snapshots and what a chunk's snapshot missed are the
 * product's own; the order of events around them is played, so that everything may come at any moment. */
#ifndef SPATE_TESTS_SUPPORT_WEAVE_CONNECTOR_H
#define SPATE_TESTS_SUPPORT_WEAVE_CONNECTOR_H

#include "tests/support/weave_source.h"

enum { SINKS = 2, SLOTS = 4, MOST_LOG = 20000, INBOX = 4096, WATCH = 1 };

/* What a control leaves out; each must diverge. XMIN_XMAX looks like a way to do without the list of those
 * that hold a lock: but a transaction that is committed and not visible may be younger than everything that
 * is over. */
enum control {
    RULE,
    WATERMARK,     /* low and high watermarks instead of visibility */
    NO_TOUCHED,    /* rows are emitted whatever touched them */
    NO_TRUNCATE,   /* a TRUNCATE touches nothing */
    NO_REDO,       /* what was delivered before the request counts as touched like everything else */
    EARLY_PRUNE,   /* H forgets what a chunk that is out has not seen */
    NO_W,          /* nothing is known after a restart */
    XMIN_XMAX,     /* after a restart: wait until S.xmin has passed the xmax of its beginning */
    END_AT_PLAN,   /* the range's end is taken before R */
    NO_STAMP,      /* a table that was rewritten goes on where it was */
    NO_REREAD,     /* the re-read list is not asked for */
    NO_GENERATION, /* partial updates are applied to stale rows */
    LATE_BEGIN,    /* marks are kept from the first chunk on only */
    ANY_BEGIN,     /* chunks are taken wherever their flow began */
    NO_BY,         /* a chunk is what stands between a beginning and an end, whoever wrote it */
    NO_SINCE,      /* chunks are chained by their number alone */
    NO_END_CHAIN,  /* ranges-end counts whoever wrote it */
    HOLE_KEEPS,    /* token, marks and list outlive a hole */
    MARKS_LOST,    /* a sink's restart loses its marks */
    LIST_LOST,     /* ... its list */
    TOKEN_AHEAD,   /* the chunk's number and token are stored before its rows */
    CONTROLS
};

static enum control control;

/* ---- the log ---- */

struct token {
    int filenode, next, end; /* all 0: none */
};

enum kind { CHANGE, HEARTBEAT, BEGIN, CHUNK, READ, CHUNK_END, RANGES_END };

struct record {
    enum kind kind;
    int n; /* of a change; else `at` */
    int sink, request;
    unsigned by;
    int no; /* RANGES_END: chunks */
    bool by_keys;
    uint32_t keys, dropped;
    struct token since, resume; /* RANGES_END: resume */
    int count;
    struct row row;
};

static struct {
    struct record records[MOST_LOG];
    int count, durable, oldest;
    struct record zombie[MOST_LOG]; /* on their way from a writer that is thought dead */
    int zombie_at, zombie_count;
} bus;

static void append(struct record record)
{
    if (bus.count == MOST_LOG)
        abort();
    bus.records[bus.count++] = record;
}

static void append_zombie(void)
{
    if (bus.zombie_at < bus.zombie_count)
        append(bus.zombie[bus.zombie_at++]);
}

static void publish(struct record record)
{
    if (bus.zombie_at < bus.zombie_count && percent(70))
        append_zombie();
    append(record);
}

/* What was not acknowledged is lost; or some of it comes later, among what others write. */
static void lose_tail(void)
{
    int keep = bus.durable + (int)chance((uint32_t)(bus.count - bus.durable) + 1);

    if (bus.zombie_at == bus.zombie_count && percent(70)) {
        bus.zombie_at = bus.zombie_count = 0;
        for (int i = keep + (percent(30) ? (int)chance((uint32_t)(bus.count - keep) + 1) : 0); i < bus.count;
             i++)
            bus.zombie[bus.zombie_count++] = bus.records[i];
    }
    bus.count = bus.durable = keep;
}

/* ---- what requesters say ---- */

enum word { REQUEST, REREAD, FINISHED, CANCEL };

struct message {
    enum word word;
    int request, no;
    struct token resume;
    bool again;
    uint32_t keys;
};

static struct {
    struct message messages[INBOX];
    int count, taken;
    bool started; /* the connector says so */
} control_of[SINKS];

static void say(int sink, struct message message)
{
    if (control_of[sink].count == INBOX)
        abort();
    control_of[sink].messages[control_of[sink].count++] = message;
}

/* ---- the connector ---- */

enum slot_state { DUE, READING, DONE, READY };

struct slot {
    enum slot_state state;
    bool by_keys, discard;
    uint32_t keys;
    int from, to, id;
    /* what the reader found */
    struct spate_snapshot snapshot;
    struct row rows[KEYS];
    int count, lsn, pages;
    bool changed;
    int low; /* WATERMARK: delivered when it was given out */
};

struct asked {
    bool active, begun, ranges_end;
    int request, r, no;
    int filenode, next, end; /* of what is given out next; end 0: not known */
    bool read;               /* all of it was given out */
    struct token sent;
    bool done; /* `sent` is the whole table */
    int plan_end;
    struct slot *slots[SLOTS];
    int count;
    uint32_t reread;
};

static struct {
    bool up, before_known;
    unsigned by;
    int confirmed; /* the slot's */
    int delivered, last;
    struct spate_hidden *hidden;
    uint64_t xmax_at_start;
    struct asked asked[SINKS];
    int next_id;
    struct spate_snapshot seen; /* to be forgotten once all slots below `barrier` are gone */
    bool seen_set;
    int barrier;
} connector;

static struct {
    uint64_t redone, anew, chunks, dropped, sessions;
} counts;

static void free_slot(struct slot *slot)
{
    spate_snapshot_fini(&slot->snapshot);
    free(slot);
}

static void take_slot_out(struct asked *asked, int i)
{
    free_slot(asked->slots[i]);
    asked->count--;
    memmove(asked->slots + i, asked->slots + i + 1, (size_t)(asked->count - i) * sizeof asked->slots[0]);
}

static void drop_asked(struct asked *asked)
{
    bool any = false;

    while (asked->count)
        take_slot_out(asked, 0);
    *asked = (struct asked){0};
    for (int i = 0; i < SINKS; i++)
        any |= connector.asked[i].active;
    if (!any && connector.hidden)
        spate_hidden_forget(connector.hidden, WATCH);
}

static void connector_down(void)
{
    connector.up = false;
    for (int i = 0; i < SINKS; i++)
        drop_asked(&connector.asked[i]);
    spate_hidden_clear(connector.hidden);
    spate_snapshot_fini(&connector.seen);
    connector.seen_set = false;
}

/* T: the last number that a follower of the whole log has accepted. */
static int accepted(int upto)
{
    int last = 0;

    for (int i = 0; i < upto; i++)
        if (bus.records[i].kind == CHANGE && bus.records[i].n == last + 1)
            last++;
    return last;
}

static void connector_up(void)
{
    struct spate_snapshot now = source_snapshot();

    counts.sessions++;
    bus.durable = bus.count; /* the writer's open has settled that */
    connector.up = true;
    connector.before_known = false;
    connector.by = 1 + chance(1u << 30);
    connector.last = accepted(bus.count);
    connector.delivered = connector.confirmed;
    connector.xmax_at_start = now.xmax;
    spate_snapshot_fini(&now);
    for (int i = 0; i < SINKS; i++)
        control_of[i].started = true;
}

static bool in_log(int transaction)
{
    for (int i = 0; i < bus.count; i++)
        if (bus.records[i].kind == CHANGE && source.wal[bus.records[i].n - 1] == transaction)
            return true;
    return false;
}

/* W: who holds the lock on an xid now, less those that the log does not hold. */
static void connector_rebuild(void)
{
    for (int i = 0; i < source.count; i++)
        if (source.transactions[i].life < VISIBLE && in_log(i) && control != NO_W && control != XMIN_XMAX) {
            spate_hidden_begin(connector.hidden, xid_of(i), 0);
            spate_hidden_commit(connector.hidden);
        }
    connector.before_known = true;
}

static void touch(int key)
{
    char text = (char)('a' + key);

    spate_hidden_touch(connector.hidden, WATCH, spate_slice(&text, 1));
}

static void connector_deliver(void)
{
    const struct transaction *tx;
    bool watched = false;

    if (connector.delivered == source.wal_count)
        return;
    tx = &source.transactions[source.wal[connector.delivered]];
    connector.delivered++;
    for (int i = 0; i < SINKS; i++)
        watched |= connector.asked[i].active;
    spate_hidden_begin(connector.hidden, xid_of(source.wal[connector.delivered - 1]),
                       (uint64_t)connector.delivered);
    for (int key = 0; key < KEYS && watched; key++)
        if (tx->keys >> key & 1)
            touch(key);
    if (tx->truncates && watched && control != NO_TRUNCATE)
        spate_hidden_touch_all(connector.hidden, WATCH);
    spate_hidden_commit(connector.hidden);
    if (connector.delivered > connector.last) {
        publish((struct record){.kind = CHANGE, .n = connector.delivered});
        connector.last = connector.delivered;
    }
}

/* Between two transactions, and behind all that was published before this session. */
static bool at_boundary(void)
{
    return connector.before_known && connector.delivered >= connector.last;
}

static void connector_confirm(void)
{
    int most = accepted(bus.durable);

    if (most > connector.delivered)
        most = connector.delivered;
    if (most > connector.confirmed)
        connector.confirmed += (int)chance((uint32_t)(most - connector.confirmed) + 1);
}

/* ---- requests ---- */

static bool is_none(struct token t)
{
    return t.filenode == 0;
}

static bool is_same(struct token a, struct token b)
{
    return a.filenode == b.filenode && a.next == b.next && a.end == b.end;
}

static void plan(struct asked *asked, struct token resume)
{
    asked->filenode = source.filenode;
    asked->plan_end = source.pages;
    asked->read = asked->done = asked->ranges_end = false;
    asked->next = asked->end = 0;
    asked->sent = (struct token){0};
    if (is_none(resume) || (resume.filenode != source.filenode && control != NO_STAMP))
        return;
    asked->sent = resume;
    asked->next = resume.next;
    asked->end = resume.end;
    asked->read = asked->done = resume.next >= resume.end;
}

static void connector_hear(int sink)
{
    struct asked *asked = &connector.asked[sink];
    struct message m;

    if (control_of[sink].taken == control_of[sink].count)
        return;
    m = control_of[sink].messages[control_of[sink].taken];
    if (m.word == REQUEST && source.locked)
        return; /* the catalog is looked at under a lock */
    control_of[sink].taken++;
    if (m.word == REQUEST) {
        if (asked->active && asked->request == m.request && !m.again)
            return; /* accepted again: nothing restarts */
        drop_asked(asked);
        asked->active = true;
        asked->request = m.request;
        asked->no = m.no;
        plan(asked, m.resume);
    } else if (asked->active && asked->request == m.request && m.word == REREAD) {
        asked->reread |= m.keys;
        if (m.no > asked->no)
            asked->no = m.no;
    } else if (asked->active && asked->request == m.request) {
        drop_asked(asked);
    }
}

/* ---- chunks ---- */

static void give_out(struct asked *asked)
{
    struct slot *slot;

    if (asked->count == SLOTS || (asked->next > 0 && asked->end == 0 && !asked->reread))
        return;
    if (asked->read && !asked->reread)
        return;
    slot = spate_zalloc(sizeof *slot);
    if (asked->reread && (asked->read || percent(50))) {
        slot->by_keys = true;
        slot->keys = asked->reread;
        asked->reread = 0;
    } else if (asked->read || (asked->next > 0 && asked->end == 0)) {
        free(slot);
        return;
    } else {
        slot->from = asked->next;
        slot->to = slot->from + 1 + (int)chance(3);
        if (control == END_AT_PLAN)
            asked->end = asked->plan_end;
        if (asked->end && slot->to > asked->end)
            slot->to = asked->end;
        asked->next = slot->to;
        asked->read = asked->end && asked->next >= asked->end;
    }
    asked->slots[asked->count++] = slot;
}

static void submit(struct slot *slot)
{
    slot->state = READING;
    slot->id = connector.next_id++;
    slot->low = connector.delivered;
}

/* The reader: LOCK, S, the stamp, the rows, L. */
static void read_slot(const struct asked *asked, struct slot *slot)
{
    if (source.locked)
        return;
    spate_snapshot_fini(&slot->snapshot);
    slot->snapshot = source_snapshot();
    slot->changed = !slot->by_keys && asked->filenode != source.filenode && control != NO_STAMP;
    slot->count = source_read(slot->by_keys, slot->keys, slot->from, slot->to, slot->rows);
    slot->pages = source.pages;
    slot->lsn = source.wal_count;
    slot->state = DONE;
}

static void forget_seen(void)
{
    if (!connector.seen_set)
        return;
    for (int s = 0; s < SINKS && control != EARLY_PRUNE; s++)
        for (int i = 0; i < connector.asked[s].count; i++) {
            const struct slot *slot = connector.asked[s].slots[i];

            if (slot->state != DUE && !slot->discard && slot->id < connector.barrier)
                return;
        }
    spate_hidden_prune(connector.hidden, &connector.seen);
    spate_snapshot_fini(&connector.seen);
    connector.seen_set = false;
}

static void remember_seen(const struct spate_snapshot *snapshot)
{
    if (connector.seen_set)
        return;
    spate_snapshot_copy(&connector.seen, snapshot);
    connector.barrier = connector.next_id;
    connector.seen_set = true;
}

static void begin_anew(struct asked *asked)
{
    counts.anew++;
    for (int i = asked->count - 1; i >= 0; i--)
        if (asked->slots[i]->by_keys)
            continue;
        else if (asked->slots[i]->state == READING)
            asked->slots[i]->discard = true;
        else
            take_slot_out(asked, i);
    plan(asked, (struct token){0});
}

static bool is_missed(const struct asked *asked, const struct slot *slot)
{
    uint32_t xid;

    if (control == XMIN_XMAX && slot->snapshot.xmin < connector.xmax_at_start)
        return true;
    if (control == WATERMARK || control == NO_REDO)
        return false;
    return spate_hidden_missed(connector.hidden, &slot->snapshot, (uint64_t)asked->r, &xid);
}

static void take_slot(struct asked *asked, int i)
{
    struct slot *slot = asked->slots[i];

    remember_seen(&slot->snapshot);
    if (slot->discard) {
        take_slot_out(asked, i);
    } else if (slot->changed) {
        if (!source.locked) /* planned anew, under a lock */
            begin_anew(asked);
    } else if (is_missed(asked, slot)) {
        slot->state = DUE;
        counts.redone++;
    } else {
        slot->state = READY;
        if (!slot->by_keys && asked->end == 0) {
            asked->end = slot->pages > slot->to ? slot->pages : slot->to;
            asked->read = asked->next >= asked->end;
        }
    }
    forget_seen();
}

static uint32_t touched_keys(const struct slot *slot, bool *all)
{
    struct spate_touched touched;
    uint32_t keys = 0;

    *all = false;
    if (control == WATERMARK) {
        for (int i = slot->low; i < connector.delivered; i++) {
            keys |= source.transactions[source.wal[i]].keys;
            *all |= source.transactions[source.wal[i]].truncates;
        }
        return keys;
    }
    spate_hidden_touched(connector.hidden, &slot->snapshot, WATCH, &touched);
    for (int key = 0; key < KEYS; key++) {
        char text = (char)('a' + key);

        keys |= (uint32_t)spate_touched_has(&touched, spate_slice(&text, 1)) << key;
    }
    *all = touched.all;
    spate_touched_fini(&touched);
    return control == NO_TOUCHED ? 0 : keys;
}

static struct record record_of(enum kind kind, int sink, const struct asked *asked)
{
    return (struct record){.kind = kind,
                           .n = connector.last,
                           .sink = sink,
                           .request = asked->request,
                           .by = connector.by,
                           .no = asked->no};
}

static void emit_chunk(int sink, struct asked *asked)
{
    struct slot *slot = asked->slots[0];
    struct record head, end;
    bool all;
    uint32_t touched = touched_keys(slot, &all);

    if (all) {
        slot->state = DUE;
        counts.redone++;
        return;
    }
    asked->no++;
    counts.chunks++;
    head = end = record_of(CHUNK, sink, asked);
    head.by_keys = end.by_keys = slot->by_keys;
    head.keys = slot->keys;
    head.since = asked->sent;
    if (!slot->by_keys) {
        asked->sent = (struct token){asked->filenode, slot->to, asked->end};
        asked->done = slot->to >= asked->end;
    }
    if (slot->by_keys)
        head.dropped = touched;
    publish(head);
    end.kind = CHUNK_END;
    end.resume = asked->sent;
    for (int i = 0; i < slot->count; i++) {
        struct record read = record_of(READ, sink, asked);

        if (touched >> slot->rows[i].key & 1) {
            counts.dropped++;
            continue;
        }
        read.row = slot->rows[i];
        publish(read);
        end.count++;
    }
    publish(end);
    take_slot_out(asked, 0);
}

static void connector_emit(int sink)
{
    struct asked *asked = &connector.asked[sink];

    if (at_boundary() && percent(2))
        publish((struct record){.kind = HEARTBEAT, .n = connector.last, .sink = -1});
    if (!asked->active || !at_boundary())
        return;
    if (!asked->begun) {
        asked->begun = true;
        asked->r = connector.delivered;
        publish(record_of(BEGIN, sink, asked));
    } else if (asked->count && asked->slots[0]->state == READY &&
               connector.delivered >= asked->slots[0]->lsn) {
        emit_chunk(sink, asked);
    } else if (asked->done && !asked->ranges_end) {
        struct record end = record_of(RANGES_END, sink, asked);

        end.resume = asked->sent;
        publish(end);
        asked->ranges_end = true;
    }
}

static void connector_read(int sink)
{
    struct asked *asked = &connector.asked[sink];
    int i;

    if (!asked->begun)
        return;
    if (percent(30))
        give_out(asked);
    if (asked->count == 0)
        return;
    i = (int)chance((uint32_t)asked->count);
    switch (asked->slots[i]->state) {
    case DUE:
        submit(asked->slots[i]);
        break;
    case READING:
        read_slot(asked, asked->slots[i]);
        break;
    case DONE:
        take_slot(asked, i);
        break;
    case READY:
        break;
    }
}

static void connector_start(void)
{
    connector.hidden = spate_hidden_new(percent(20) ? 64 : 100000);
    connector.next_id = 1;
}

static void connector_stop(void)
{
    connector_down();
    spate_hidden_free(connector.hidden);
    memset(&connector, 0, sizeof connector);
}

#endif
