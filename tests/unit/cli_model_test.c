/* The whole bridge over random histories (docs/hazards.md, X32): Postgres whose slot goes back, writers that
 * are killed, frozen and live on as zombies, a bus that loses and repeats, snapshot chunks, and a follower.
 *
 * Everything between them is the product's own: numbering, ledger, publisher, the tail, the comparison, the
 * sink's reader and its rule. Only the loop around them (connector/stream.c, which needs a socket) is played
 * here. After every step: what the follower took is 1, 2, 3 ... once each, its rows are the source's at that
 * number, and nothing that the slot has confirmed is missing. At the end it has everything.
 *
 * The controls are rules that look right; each must break, or this test proves nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "connector/ledger.h"
#include "connector/publisher.h"
#include "connector/recovery.h"
#include "connector/transaction.h"
#include "core/clock.h"
#include "core/log.h"
#include "sinks/reader.h"
#include "tests/support/bus_faulty.h"
#include "tests/support/bus_memory.h"

#include <inttypes.h>

enum { TXS = 20, MOST_CHANGES = 4, CHANGES = TXS * MOST_CHANGES, KEYS = 4, WRITERS = 10, STEPS = 700 };

#define TOPIC "shop"
#define UUID  "00000000-0000-4000-8000-000000000001"

enum control {
    THE_RULE,
    GREATEST_NUMBER,     /* a new writer goes on after the greatest n of the log */
    FROM_THE_BEGINNING,  /* ... replays the rule from the log's beginning, with the confirmed n */
    NO_ANCHOR_RULE,      /* the follower takes a chunk wherever it meets it */
    NO_NUMBER_RULE,      /* the follower takes every change it meets */
    LIES_ABOUT_LOSSES,   /* the driver hands tokens back behind a record that it lost */
    SWAPS_WITHOUT_A_WORD /* a producer that is not idempotent (K1) */
};

/* ---- Postgres ---- */

struct wal_tx {
    uint64_t commit, end;
    unsigned changes;
    uint64_t last_n; /* n of its last change */
};

struct source {
    struct wal_tx txs[TXS];
    size_t committed;          /* of txs */
    uint64_t opening;          /* where the epoch begins: what committed before has no number */
    uint64_t confirmed, saved; /* the slot, and what a crash takes it back to (P15) */
    uint64_t total;            /* changes that have a number */
    unsigned key[CHANGES + 1]; /* of change n; its value is n */
    uint64_t rows[CHANGES + 1][KEYS];
};

/* ---- one connector ---- */

struct writer {
    struct spate_publisher publisher;
    struct spate_ledger ledger;
    struct spate_transaction tx;
    struct spate_recheck recheck;
    struct spate_tail tail;
    uint64_t floor, wal_end;
    size_t tx_at;      /* what its socket gives next */
    unsigned frame_at; /* 0: Begin; then changes; then Commit */
    size_t sent;       /* transactions that the server has sent it */
    bool over;         /* the bus refused: nothing more is read */
};

struct world {
    uint64_t random, seed;
    enum control control;
    enum { KEEPS_ALL, KEEPS_THE_SLOTS, KEEPS_LITTLE } retention;
    struct source source;
    struct bus_memory memory;
    struct bus_faulty bus;
    struct spate_epoch_record epoch;
    struct spate_buf epoch_line;
    struct writer *writers[WRITERS]; /* the newest first: it owns the slot */
    struct spate_feed feed;
    uint64_t taken;      /* n that the follower took last */
    uint64_t rows[KEYS]; /* what it made of it */
    uint64_t recoveries, compared, chunks, duplicates;
    char violation[400];
};

static struct world world; /* large: the writers' batches */
static struct writer pool[WRITERS];
static struct {
    uint64_t recoveries, compared, chunks, duplicates, injected[BUS_FAULTS];
} totals;

static uint64_t below(uint64_t n)
{
    return bus_faulty_random(&world.random) % n;
}

static void __attribute__((format(printf, 1, 2))) violated(const char *fmt, ...)
{
    va_list args;

    if (world.violation[0])
        return;
    va_start(args, fmt);
    vsnprintf(world.violation, sizeof world.violation, fmt, args);
    va_end(args);
}

static void make_source(struct source *s)
{
    uint64_t lsn = 1000;
    const size_t before = below(4);

    s->opening = s->total = 0;
    for (size_t i = 0; i < TXS; i++) {
        struct wal_tx *tx = &s->txs[i];

        if (i == before)
            s->opening = lsn;
        tx->commit = lsn + below(3);
        tx->end = tx->commit + 1 + below(3);
        tx->changes = (unsigned)below(MOST_CHANGES + 1); /* 0: nothing of it is published */
        lsn = tx->end + below(4);
        for (unsigned c = 0; i >= before && c < tx->changes; c++) {
            const uint64_t n = ++s->total;

            s->key[n] = (unsigned)below(KEYS);
            memcpy(s->rows[n], s->rows[n - 1], sizeof s->rows[n]);
            s->rows[n][s->key[n]] = n;
        }
        tx->last_n = s->total;
    }
    s->committed = before;
    s->confirmed = s->opening;
    s->saved = before ? s->txs[below(before)].end : s->opening;
}

/* n of the last change whose transaction is confirmed. */
static uint64_t confirmed_n(const struct source *s)
{
    uint64_t n = 0;

    for (size_t i = 0; i < TXS; i++)
        if (s->txs[i].commit < s->confirmed)
            n = s->txs[i].last_n;
    return n;
}

/* ---- the follower ---- */

static void take_change(uint64_t n)
{
    if (world.control != NO_NUMBER_RULE && n != world.taken + 1)
        violated("the follower took n=%" PRIu64 " after n=%" PRIu64, n, world.taken);
    if (n > CHANGES)
        return;
    world.taken = n;
    world.rows[world.source.key[n]] = n;
}

/* A chunk carries its rows in "request": one number and a comma for each key. */
static void take_chunk(const struct spate_head *head)
{
    const char *at = head->request.at;

    for (size_t i = 0; i < KEYS; i++, at++) {
        char *next;

        world.rows[i] = strtoull(at, &next, 10);
        at = next;
    }
    world.chunks++;
}

static void check_rows(void)
{
    if (memcmp(world.rows, world.source.rows[world.taken], sizeof world.rows) != 0)
        violated("after n=%" PRIu64 " the follower's rows are not the source's", world.taken);
}

/* The control followers do not ask the rule about everything. */
static void follow_wrongly(const struct bus_memory_topic *topic, size_t from)
{
    struct spate_arena arena = {0};

    for (size_t i = from; i < topic->end; i++) {
        const struct bus_memory_record *r = &topic->records[i];
        struct spate_head head;
        struct spate_err err = {0};

        assert_int_equal(
            spate_decode_head(spate_slice(r->bytes + r->key_len, r->value_len), &head, &arena, &err),
            SPATE_OK);
        if (world.control == NO_NUMBER_RULE && spate_op_counts(head.op)) {
            take_change(head.n);
            check_rows();
        } else if (world.control == NO_ANCHOR_RULE && head.op == SPATE_OP_CHUNK) {
            take_chunk(&head);
            check_rows();
        }
    }
    spate_arena_fini(&arena);
}

static void follow(void)
{
    static size_t seen;
    const struct bus_memory_topic *topic = bus_memory_topic(&world.memory, TOPIC);
    struct spate_event event;
    struct spate_err err = {0};
    enum spate_rc rc;

    if (world.control == NO_NUMBER_RULE) {
        seen = topic->end < seen ? 0 : seen;
        follow_wrongly(topic, seen);
        seen = topic->end;
        return;
    }
    while ((rc = spate_feed_next(&world.feed, &event, &err)) == SPATE_OK) {
        if (event.kind == SPATE_EVENT_CHANGE)
            take_change(event.head.n);
        else if (event.kind == SPATE_EVENT_PASSED && event.head.op == SPATE_OP_CHUNK)
            take_chunk(&event.head);
        check_rows();
    }
    if (rc == SPATE_FAIL)
        violated("the follower stopped: %s", err.text);
    if (world.control == NO_ANCHOR_RULE) {
        seen = topic->end < seen ? 0 : seen;
        follow_wrongly(topic, seen);
        seen = topic->end;
    }
}

/* The sink dies and goes on from what its last transaction stored. */
static void restart_follower(void)
{
    const struct spate_mark mark = world.feed.mark;
    struct spate_err err = {0};

    world.taken = mark.place.n;
    memcpy(world.rows, world.source.rows[mark.place.n], sizeof world.rows);
    world.duplicates += world.feed.count.duplicates;
    spate_feed_close(&world.feed);
    assert_int_equal(spate_feed_open(&world.feed, &world.memory.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_resume(&world.feed, &mark, &err), SPATE_OK);
}

/* ---- where to go on ---- */

/* What the two wrong ways believe to be the last number. */
static uint64_t wrong_tail(void)
{
    const struct bus_memory_topic *topic = bus_memory_topic(&world.memory, TOPIC);
    struct spate_rule rule = {.epoch = 1, .last = confirmed_n(&world.source)};
    struct spate_arena arena = {0};
    uint64_t greatest = rule.last;

    rule.pos.commit_lsn = rule.last ? world.source.confirmed - 1 : 0;
    for (size_t i = 0; i < topic->end; i++) {
        const struct bus_memory_record *r = &topic->records[i];
        struct spate_head head;
        struct spate_err err = {0};

        assert_int_equal(
            spate_decode_head(spate_slice(r->bytes + r->key_len, r->value_len), &head, &arena, &err),
            SPATE_OK);
        if (spate_op_counts(head.op) && head.n > greatest)
            greatest = head.n;
        spate_rule_feed(&rule, &head);
    }
    spate_arena_fini(&arena);
    return world.control == GREATEST_NUMBER ? greatest : rule.last;
}

/* For whoever looks into a failure: TELL=1. */
static void tell(const struct spate_tail *tail)
{
    const struct bus_memory_topic *topic = bus_memory_topic(&world.memory, TOPIC);

    fprintf(stderr,
            "C=%" PRIu64 " opening=%" PRIu64 " first=%" PRIu64 " last=%" PRIu64 " greatest_end=%" PRIu64 "\n",
            world.source.confirmed, world.source.opening, tail->first, tail->last, tail->bus.greatest_end);
    for (size_t i = topic->oldest; i < topic->end; i++)
        fprintf(stderr, "%3zu %.110s\n", i, topic->records[i].bytes + topic->records[i].key_len);
}

static void check_tail(const struct spate_tail *tail)
{
    const uint64_t first = confirmed_n(&world.source);

    if (tail->first != first && world.retention != KEEPS_LITTLE)
        violated("numbering goes on after %" PRIu64 ", and the slot has confirmed %" PRIu64, tail->first,
                 first);
    if (tail->last > world.feed.follower.last.n)
        violated("a new writer goes on after n=%" PRIu64 ", and a follower has n=%" PRIu64, tail->last,
                 world.feed.follower.last.n);
    if (world.source.confirmed > tail->bus.greatest_end)
        violated("the slot stands at %" PRIu64 ", the bus is said to end at %" PRIu64 ": a false alarm",
                 world.source.confirmed, tail->bus.greatest_end);
    if (world.violation[0] && world.control == THE_RULE && getenv("TELL"))
        tell(tail);
}

/* connector/session.c: find_place, start and begin_streaming. False: the bus failed meanwhile. */
static bool recover(struct writer *w)
{
    struct spate_err err = {0};
    enum spate_rc rc;

    spate_transaction_release(&w->tx);
    spate_recheck_close(&w->recheck);
    while ((rc = spate_publisher_flush(&w->publisher, &err)) == SPATE_AGAIN)
        (void)!bus_faulty_deliver(w->publisher.stream, SIZE_MAX, &err);
    while (rc == SPATE_OK && bus_faulty_deliver(w->publisher.stream, SIZE_MAX, &err) == SPATE_OK)
        continue;
    if (rc == SPATE_OK)
        rc = spate_publisher_settle(&w->publisher, &w->ledger, &err);
    if (rc != SPATE_OK)
        return false;
    follow();
    world.recoveries++;
    rc = spate_recovery_tail(&world.memory.bus, TOPIC, &world.epoch, world.source.confirmed, &w->tail, &err);
    if (rc != SPATE_OK)
        violated("no tail was found: %s", err.text);
    if (world.control == GREATEST_NUMBER || world.control == FROM_THE_BEGINNING)
        w->tail = (struct spate_tail){
            .first = confirmed_n(&world.source), .last = wrong_tail(), .skip_below = world.source.opening};
    else
        check_tail(&w->tail);
    if (world.control < GREATEST_NUMBER || world.control > FROM_THE_BEGINNING)
        assert_int_equal(spate_recheck_open(&w->recheck, &world.memory.bus, TOPIC, 1, &w->tail, &err),
                         SPATE_OK);
    spate_ledger_start(&w->ledger, world.source.confirmed);
    spate_transaction_start(&w->tx, spate_slice_str(TOPIC), 1, w->tail.first);
    w->tx.skip_below = w->tail.skip_below;
    w->tx.has_align = w->tail.has_align;
    w->tx.align = w->tail.align;
    w->floor = w->tail.bus.greatest_end;
    w->wal_end = world.source.confirmed;
    for (w->tx_at = 0; w->tx_at < TXS && world.source.txs[w->tx_at].commit < world.source.confirmed;)
        w->tx_at++;
    w->frame_at = 0;
    return true;
}

/* A new connector begins; what was the newest is a zombie, or gone when `killed`. */
static void close_writer(struct writer *w)
{
    spate_recheck_close(&w->recheck);
    spate_transaction_fini(&w->tx);
    spate_ledger_fini(&w->ledger);
    spate_writer_close(w->publisher.stream);
    spate_buf_fini(&w->publisher.bytes);
    w->publisher.stream = NULL;
}

static void start_writer(bool killed)
{
    /* Where retention may have taken all that the slot has confirmed, the oldest record that is left is taken
     * for the accepted one: no repetition, no hole may stand just there. Then no history has zombies. */
    killed = killed || world.retention == KEEPS_LITTLE;

    struct writer *w = world.writers[killed ? 0 : WRITERS - 1];
    struct spate_err err = {0};

    if (w->publisher.stream)
        close_writer(w);
    if (!killed) {
        memmove(&world.writers[1], &world.writers[0], (WRITERS - 1) * sizeof w);
        world.writers[0] = w;
    }
    w->publisher.count = w->publisher.done = 0;
    w->publisher.failed = w->over = false;
    w->publisher.name = w->publisher.slot = TOPIC;
    snprintf(w->publisher.topic, sizeof w->publisher.topic, "%s", TOPIC);
    w->publisher.max_record = BUS_MEMORY_MOST;
    assert_int_equal(
        spate_bus_writer_open(&world.bus.bus, TOPIC, SPATE_TOPIC_CREATE, &w->publisher.stream, &err),
        SPATE_OK);
    spate_ledger_init(&w->ledger, 64);
    w->sent = world.source.committed;
    if (!recover(w))
        violated("an empty writer could not begin");
}

/* ---- the walk (connector/stream.c) ---- */

static void settle(struct writer *w, uint64_t end)
{
    struct spate_change *change = &w->tx.held;
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_OK;
    uint64_t token = 0;

    if (!w->tx.holding)
        return;
    change->end = end;
    if (change->n <= w->tail.last) {
        if (w->recheck.reader)
            rc = spate_recheck_change(&w->recheck, change, &err);
        world.compared++;
        if (rc == SPATE_OK && end)
            rc = spate_ledger_found(&w->ledger, end, &err);
    } else {
        rc = end ? spate_ledger_add(&w->ledger, end, &token, &err) : SPATE_OK;
        if (rc == SPATE_OK)
            rc = spate_publisher_change(&w->publisher, change, token, &err);
    }
    spate_transaction_release(&w->tx);
    w->over = w->over || rc != SPATE_OK; /* a retry: retention took what was to be compared */
    if (rc != SPATE_OK && (err.verdict != SPATE_RETRY || world.retention == KEEPS_ALL))
        violated("n=%" PRIu64 ": %s", change->n, err.text);
}

static void read_frame(struct writer *w)
{
    const struct wal_tx *tx = &world.source.txs[w->tx_at];
    struct spate_pgoutput msg = {.kind = SPATE_PGOUTPUT_MESSAGE, .message.transactional = true};
    struct spate_err err = {0};
    enum spate_rc rc;
    bool taken;

    if (w->over || w->tx_at >= w->sent || spate_publisher_full(&w->publisher) ||
        spate_ledger_full(&w->ledger))
        return;
    if (w->frame_at == 0) {
        msg.kind = SPATE_PGOUTPUT_BEGIN;
        msg.begin.commit_lsn = tx->commit;
        msg.begin.xid = 700 + (uint32_t)w->tx_at;
        rc = spate_transaction_begin(&w->tx, &msg, &err);
    } else if (w->frame_at <= tx->changes) {
        msg.message.prefix = spate_slice_str("model");
        msg.message.content = spate_slice_str("row");
        settle(w, 0);
        rc = spate_transaction_change(&w->tx, NULL, &msg, NULL, &taken, &err);
    } else {
        msg.kind = SPATE_PGOUTPUT_COMMIT;
        msg.commit.commit_lsn = tx->commit;
        msg.commit.end_lsn = tx->end;
        rc = spate_transaction_commit(&w->tx, &msg, &err);
        spate_ledger_received(&w->ledger, tx->end);
        settle(w, tx->end);
        w->wal_end = tx->end;
    }
    if (rc != SPATE_OK)
        violated("decoding: %s", err.text);
    if (w->frame_at++ <= tx->changes)
        return;
    w->frame_at = 0;
    w->tx_at++;
}

static bool at_rest(const struct writer *w)
{
    return !w->over && !w->tx.open && !w->tx.holding && !spate_publisher_full(&w->publisher);
}

static void heartbeat(struct writer *w)
{
    struct spate_err err = {0};
    uint64_t token = 0;

    if (!at_rest(w) || !spate_ledger_idle(&w->ledger) || !spate_publisher_empty(&w->publisher))
        return;
    /* walEnd never passes a transaction that was not sent. */
    if (w->tx_at == TXS || world.source.txs[w->tx_at].commit > w->wal_end + 1)
        w->wal_end++;
    spate_ledger_received(&w->ledger, w->wal_end);
    if (w->tx.next_n <= w->tail.last) {
        if (w->wal_end > w->tail.last_commit && world.control == THE_RULE)
            violated("what the bus holds did not come again: a false alarm");
        return;
    }
    if (w->floor > w->ledger.published && w->wal_end >= w->floor) {
        if (spate_ledger_found(&w->ledger, w->floor, &err) != SPATE_OK)
            violated("floor: %s", err.text);
        return;
    }
    if (w->wal_end <= w->ledger.published || w->wal_end <= w->floor)
        return;
    if (spate_ledger_add(&w->ledger, w->wal_end, &token, &err) != SPATE_OK)
        violated("heartbeat: %s", err.text);
    spate_publisher_heartbeat(
        &w->publisher,
        &(struct spate_heartbeat){
            .at = w->tx.next_n - 1, .epoch = 1, .end = w->wal_end, .source = w->tx.source},
        token);
}

/* A chunk of a snapshot: all rows, true exactly here. */
static void emit_chunk(struct writer *w)
{
    const uint64_t at = w->tx.next_n - 1;
    struct spate_buf line = {0};
    struct spate_record record;
    struct spate_err err = {0};
    size_t taken;

    if (!at_rest(w) || at < w->tail.last)
        return;
    if (spate_publisher_flush(&w->publisher, &err) == SPATE_OK) {
        spate_buf_printf(&line, "{\"spate\":1,\"op\":\"chunk\",\"at\":%" PRIu64 ",\"epoch\":1,\"request\":\"",
                         at);
        for (size_t i = 0; i < KEYS; i++)
            spate_buf_printf(&line, "%" PRIu64 ",", world.source.rows[at][i]);
        spate_buf_puts(&line, "\",\"schema\":\"public\",\"table\":\"t\"}");
        record = (struct spate_record){.value = spate_buf_view(&line)};
        (void)!spate_writer_publish(w->publisher.stream, &record, 1, &taken, &err);
    }
    spate_buf_fini(&line);
}

/* True when the bus failed it. What became durable is told to the slot's owner's server. */
static bool flush_and_poll(struct writer *w)
{
    struct spate_err err = {0};

    if (w->over)
        return false;
    if (spate_publisher_flush(&w->publisher, &err) == SPATE_FAIL ||
        spate_publisher_poll(&w->publisher, &w->ledger, &err) == SPATE_FAIL) {
        if (err.verdict != SPATE_RETRY)
            violated("publishing: %s", err.text);
        w->over = true;
        return true;
    }
    if (w == world.writers[0] && w->ledger.confirmed > world.source.confirmed)
        world.source.confirmed = w->ledger.confirmed;
    return false;
}

/* ---- a history ---- */

static void append(struct spate_slice line)
{
    const struct spate_record record = {.value = line};

    bus_memory_append(bus_memory_topic(&world.memory, TOPIC), &record);
}

static void deliver(struct writer *w)
{
    struct spate_err err = {0};

    if (w->publisher.stream)
        assert_int_not_equal(bus_faulty_deliver(w->publisher.stream, 1 + below(3), &err), SPATE_FAIL);
}

/* The same process connects again; what it had given the bus is settled first. */
static void reconnect(void)
{
    struct writer *w = world.writers[0];

    w->sent = world.source.committed;
    if (w->over || !recover(w))
        start_writer(below(2));
}

/* Retention takes what the follower has stored, but no log is left without a record that has an `end`: a
 * heartbeat is repeated in time. KEEPS_THE_SLOTS: nor the one that the slot looks for when it goes back. */
static uint64_t keep_from(void)
{
    const struct bus_memory_topic *topic = bus_memory_topic(&world.memory, TOPIC);
    struct spate_arena arena = {0};
    uint64_t at = topic->oldest;

    for (size_t i = topic->oldest; i < topic->end && i <= world.feed.mark.at.at; i++) {
        const struct bus_memory_record *r = &topic->records[i];
        struct spate_head head;
        struct spate_err err = {0};

        assert_int_equal(
            spate_decode_head(spate_slice(r->bytes + r->key_len, r->value_len), &head, &arena, &err),
            SPATE_OK);
        if (head.end)
            at = i;
        if (world.retention == KEEPS_THE_SLOTS && head.end >= world.source.saved)
            break;
    }
    spate_arena_fini(&arena);
    return at;
}

static void forget(void)
{
    const size_t oldest = bus_memory_topic(&world.memory, TOPIC)->oldest;

    bus_memory_expire(&world.memory, TOPIC, below(keep_from() - oldest + 1));
}

static void step(void)
{
    struct writer *now = world.writers[0], *other = world.writers[below(3)];
    const uint64_t dice = below(1000);

    if (dice < 6) {
        start_writer(true);
    } else if (dice < 16) {
        start_writer(false);
    } else if (dice < 22) {
        world.source.confirmed = world.source.saved;
        reconnect();
    } else if (dice < 26) {
        reconnect();
    } else if (dice < 40) {
        world.source.saved = world.source.confirmed;
    } else if (dice < 100) {
        if (world.source.committed < TXS)
            world.source.committed++;
        now->sent = world.source.committed;
    } else if (dice < 450) {
        read_frame(now);
        if (now->over)
            start_writer(below(2));
    } else if (dice < 600) {
        if (flush_and_poll(now))
            start_writer(below(2));
    } else if (dice < 650) {
        heartbeat(now);
    } else if (dice < 690) {
        emit_chunk(now);
    } else if (dice < 920) {
        deliver(other);
    } else if (dice < 980) {
        if (other != now && other->publisher.stream) { /* a zombie reads what its socket still holds */
            read_frame(other);
            flush_and_poll(other);
        }
    } else if (dice < 984 && world.retention == KEEPS_ALL) {
        append(spate_buf_view(&world.epoch_line)); /* its opening, once more */
    } else if (dice < 990 && world.retention) {
        forget();
    } else {
        restart_follower();
    }
}

/* The faults are over: everything is read, delivered and confirmed. */
static void calm_down(void)
{
    struct source *s = &world.source;

    memset(world.bus.write.chance, 0, sizeof world.bus.write.chance);
    world.bus.acknowledgement_lost = 0;
    s->committed = TXS;
    start_writer(below(2));
    for (int turn = 0; turn < 1000 && !world.violation[0]; turn++) {
        struct writer *w = world.writers[0];

        read_frame(w);
        if (w->over)
            start_writer(true);
        heartbeat(w);
        deliver(w);
        deliver(world.writers[below(WRITERS)]);
        if (flush_and_poll(w))
            start_writer(true);
        follow();
        if (s->confirmed >= s->txs[TXS - 1].end)
            break;
    }
    for (int i = 0; i < 50; i++)
        deliver(world.writers[below(WRITERS)]);
    follow();
    if (world.taken != s->total || confirmed_n(s) != s->total)
        violated("in the end the follower has n=%" PRIu64 ", the slot n=%" PRIu64 " of %" PRIu64, world.taken,
                 confirmed_n(s), s->total);
}

static void begin_history(uint64_t seed, enum control control)
{
    struct spate_epoch epoch = {.epoch = 1,
                                .source = spate_slice_str(TOPIC),
                                .uuid = spate_slice_str(UUID),
                                .why = spate_slice_str("a model")};
    struct spate_err err = {0};

    world = (struct world){.random = seed, .seed = seed, .control = control};
    make_source(&world.source);
    bus_memory_init(&world.memory);
    world.memory.piece = 1 + below(12);
    bus_faulty_init(&world.bus, &world.memory.bus, bus_faulty_random(&world.random));
    world.bus.manual = true;
    world.retention = control != THE_RULE ? KEEPS_ALL : below(3);
    world.bus.queue_most = 8;
    world.bus.lies = control == LIES_ABOUT_LOSSES;
    world.bus.acknowledgement_lost = below(2) ? .3 : 0;
    world.bus.write.chance[BUS_LOSE] = (double)below(4) * .02;
    world.bus.write.chance[BUS_DUPLICATE] = (double)below(4) * .04;
    world.bus.write.chance[BUS_DELAY] = (double)below(3) * .1;
    world.bus.write.chance[BUS_REFUSE_AGAIN] = (double)below(3) * .05;
    world.bus.write.chance[BUS_REORDER] = control == SWAPS_WITHOUT_A_WORD ? .1 : 0;
    if (world.retention == KEEPS_LITTLE)
        world.bus.write.chance[BUS_DUPLICATE] = world.bus.write.chance[BUS_LOSE] = 0;
    epoch.end = world.source.opening;
    epoch.identity.system = epoch.identity.database = epoch.identity.slot = epoch.identity.publication =
        spate_slice_str("x");
    spate_epoch_keep(&world.epoch, &epoch);
    spate_encode_epoch(&world.epoch_line, &epoch);
    for (size_t i = 0; i < WRITERS; i++) {
        pool[i].publisher.stream = NULL;
        world.writers[i] = &pool[i];
    }
    {
        struct spate_writer *w;

        assert_int_equal(spate_bus_writer_open(&world.memory.bus, TOPIC, SPATE_TOPIC_CREATE, &w, &err),
                         SPATE_OK);
        spate_writer_close(w);
    }
    append(spate_buf_view(&world.epoch_line));
    assert_int_equal(spate_feed_open(&world.feed, &world.memory.bus, TOPIC, &err), SPATE_OK);
    assert_int_equal(spate_feed_begin(&world.feed, 1, UUID, &err), SPATE_OK);
    start_writer(false);
}

/* True when all invariants held. */
static bool history(uint64_t seed, enum control control)
{
    begin_history(seed, control);
    for (int i = 0; i < STEPS && !world.violation[0]; i++) {
        step();
        follow();
        /* I5: whatever the slot has confirmed, a follower has. */
        if (confirmed_n(&world.source) > world.feed.follower.complete.n && control != NO_NUMBER_RULE)
            violated("the slot has confirmed n=%" PRIu64 ", and a follower can reach n=%" PRIu64,
                     confirmed_n(&world.source), world.feed.follower.complete.n);
    }
    if (!world.violation[0])
        calm_down();
    totals.recoveries += world.recoveries;
    totals.compared += world.compared;
    totals.chunks += world.chunks;
    totals.duplicates += world.duplicates + world.feed.count.duplicates;
    for (int i = 0; i < BUS_FAULTS; i++)
        totals.injected[i] += world.bus.write.injected[i];
    spate_feed_close(&world.feed);
    for (size_t i = 0; i < WRITERS; i++)
        if (pool[i].publisher.stream)
            close_writer(&pool[i]);
    spate_epoch_drop(&world.epoch);
    spate_buf_fini(&world.epoch_line);
    bus_memory_fini(&world.memory);
    return !world.violation[0];
}

static unsigned violations(enum control control, uint64_t first, unsigned count)
{
    unsigned bad = 0;

    for (uint64_t seed = first; seed < first + count; seed++)
        bad += !history(seed, control);
    return bad;
}

static uint64_t first_seed(void)
{
    const char *seed = getenv("SEED");

    return seed && *seed ? strtoull(seed, NULL, 10) : 1;
}

static void X32_no_history_breaks_the_rule(void **state)
{
    const unsigned histories = getenv("HISTORIES") ? (unsigned)atoi(getenv("HISTORIES")) : 20000;
    const uint64_t first = first_seed();
    const int64_t from_ms = spate_clock_ms();

    (void)state;
    memset(&totals, 0, sizeof totals);
    for (uint64_t seed = first; seed < first + histories; seed++)
        if (!history(seed, THE_RULE))
            fail_msg("SEED=%" PRIu64 " HISTORIES=1: %s", seed, world.violation);
    print_message("# %u histories from seed %" PRIu64 " in %" PRId64 " ms: %" PRIu64 " recoveries, %" PRIu64
                  " changes compared, %" PRIu64 " chunks taken, %" PRIu64 " duplicates dropped, %" PRIu64
                  " records lost\n",
                  histories, first, spate_clock_ms() - from_ms, totals.recoveries, totals.compared,
                  totals.chunks, totals.duplicates, totals.injected[BUS_LOSE]);
    /* A world in which nothing happens proves nothing. */
    if (histories >= 1000) {
        assert_true(totals.recoveries > 5 * histories);
        assert_true(totals.compared > histories);
        assert_true(totals.chunks > histories);
        assert_true(totals.duplicates > histories);
        assert_true(totals.injected[BUS_LOSE] > histories / 10);
    }
}

#define BREAKS(name, control, most)                                                                          \
    static void name(void **state)                                                                           \
    {                                                                                                        \
        const unsigned bad = violations(control, first_seed(), 1000);                                        \
        (void)state;                                                                                         \
        print_message("# %u of 1000 histories broke, the last with: %s\n", bad, world.violation);            \
        assert_true(bad > (most));                                                                           \
    }

BREAKS(X32_the_greatest_number_breaks, GREATEST_NUMBER, 100)
BREAKS(X32_replay_from_the_logs_beginning_breaks, FROM_THE_BEGINNING, 30)
BREAKS(X32_chunks_without_their_anchor_break, NO_ANCHOR_RULE, 30)
BREAKS(X32_taking_every_number_breaks, NO_NUMBER_RULE, 500)
BREAKS(K2_losses_that_are_not_reported_break, LIES_ABOUT_LOSSES, 100)
BREAKS(K1_a_producer_that_swaps_breaks, SWAPS_WITHOUT_A_WORD, 100)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(X32_no_history_breaks_the_rule),
        cmocka_unit_test(X32_the_greatest_number_breaks),
        cmocka_unit_test(X32_replay_from_the_logs_beginning_breaks),
        cmocka_unit_test(X32_chunks_without_their_anchor_break),
        cmocka_unit_test(X32_taking_every_number_breaks),
        cmocka_unit_test(K2_losses_that_are_not_reported_break),
        cmocka_unit_test(K1_a_producer_that_swaps_breaks),
    };

    spate_log_level_set(SPATE_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
