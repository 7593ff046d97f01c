/* tests/support/model_writer.h - one connector of tests/support/model.h: the loop of connector/session.c and
 * connector/stream.c, played over the product's own parts. */
#ifndef SPATE_TESTS_SUPPORT_MODEL_WRITER_H
#define SPATE_TESTS_SUPPORT_MODEL_WRITER_H

#include "connector/ledger.h"
#include "connector/publisher.h"
#include "connector/recovery.h"
#include "connector/transaction.h"
#include "tests/support/model.h"

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

static struct writer pool[WRITERS];     /* large: the batches */
static struct writer *writers[WRITERS]; /* the newest first: it owns the slot */

void follow(void);

/* A zombie's turn: some of what it has in flight lands. */
static inline void deliver(struct writer *w)
{
    struct spate_err err = {0};

    if (w->publisher.stream && bus_faulty_deliver(w->publisher.stream, 1 + below(3), &err) == SPATE_FAIL)
        violated("delivery: %s", err.text);
}

/* ---- where to go on (connector/session.c) ---- */

/* What the two wrong ways believe to be the last number. */
static inline uint64_t wrong_tail(void)
{
    struct spate_rule rule = {.epoch = 1, .last = confirmed_changes()};
    uint64_t greatest = rule.last;

    rule.pos.commit_lsn = rule.last ? world.source.confirmed - 1 : 0;
    for (size_t i = 0; i < stream()->end; i++) {
        const struct spate_head head = head_at(i);

        if (spate_op_counts(head.op) && head.n > greatest)
            greatest = head.n;
        spate_rule_feed(&rule, &head);
    }
    return world.control == GREATEST_NUMBER ? greatest : rule.last;
}

static inline void check_tail(const struct spate_tail *tail)
{
    const uint64_t base = world.base[world.epoch.epoch.epoch], confirmed = confirmed_changes();

    if (world.retention != KEEPS_LITTLE && tail->first != (confirmed > base ? confirmed - base : 0))
        violated("numbering goes on after n=%" PRIu64 " of epoch %" PRIu64
                 ", and the slot has confirmed %" PRIu64 " changes, %" PRIu64 " of them before that epoch",
                 tail->first, world.epoch.epoch.epoch, confirmed, base);
    if (base + tail->last > world.taken && !world.stale)
        violated("a new writer goes on after change %" PRIu64 ", and a follower has %" PRIu64,
                 base + tail->last, world.taken);
}

/* Publishes and waits until it is durable. False: the bus failed it. */
static inline bool settled(struct writer *w)
{
    struct spate_err err = {0};
    enum spate_rc rc;

    while ((rc = spate_publisher_flush(&w->publisher, &err)) == SPATE_AGAIN)
        if (bus_faulty_deliver(w->publisher.stream, SIZE_MAX, &err) == SPATE_FAIL)
            return false;
    while (rc == SPATE_OK && bus_faulty_deliver(w->publisher.stream, SIZE_MAX, &err) == SPATE_OK)
        continue;
    return rc == SPATE_OK && spate_publisher_settle(&w->publisher, &w->ledger, &err) == SPATE_OK;
}

/* The epoch's word on the stream. Zombies do not wait for it. */
static inline bool publish_epoch(struct writer *w)
{
    if (below(2))
        deliver(writers[1 + below(2)]);
    world.slipped = world.slipped || stream()->end != world.declared_at;
    spate_publisher_epoch(&w->publisher, &world.epoch.epoch, 0);
    return settled(w);
}

/* Looks at slot and bus until they meet; `new_epoch`: --new-epoch. False: the bus failed, or it is killed. */
static inline bool find_place(struct writer *w, bool new_epoch)
{
    for (int round = 0; round < 6; round++) {
        const struct spate_source_state source = source_state();
        struct spate_err err = {0};

        if (!settled(w))
            return false;
        follow();
        if (spate_recovery_tail(&world.memory.bus, TOPIC, &world.epoch, source.slot.confirmed, &w->tail,
                                &err) != SPATE_OK)
            violated("no tail was found: %s", err.text);
        switch (spate_epoch_judge("spate", "spate", &source, &world.epoch, &w->tail.bus, &err)) {
        case SPATE_CONTINUITY_HALF:
            if (!publish_epoch(w))
                return false;
            continue;
        case SPATE_CONTINUITY_GOES_ON:
            if (!new_epoch || world.epoch.epoch.epoch == EPOCHS)
                return true;
            declare_epoch(w->tail.bus.greatest_end, SPATE_PREVIOUS_CONTINUES, w->tail.bus.last_n);
            if (below(4) == 0 || !publish_epoch(w)) /* killed between the two topics, or failed */
                return false;
            new_epoch = false;
            continue;
        default:
            violated("a false alarm: %s", err.text);
            return true;
        }
    }
    violated("slot and bus do not come to rest");
    return true;
}

/* find_place, start and begin_streaming. */
static inline bool recover(struct writer *w, bool new_epoch)
{
    struct spate_err err = {0};

    spate_transaction_release(&w->tx);
    spate_recheck_close(&w->recheck);
    w->over = true; /* until it streams */
    if (!find_place(w, new_epoch))
        return false;
    w->over = false;
    world.recoveries++;
    if (world.control == GREATEST_NUMBER || world.control == FROM_THE_BEGINNING) {
        w->tail = (struct spate_tail){
            .first = confirmed_changes(), .last = wrong_tail(), .skip_below = world.source.opening};
    } else {
        check_tail(&w->tail);
        if (spate_recheck_open(&w->recheck, &world.memory.bus, TOPIC, world.epoch.epoch.epoch, &w->tail,
                               &err) != SPATE_OK)
            violated("comparing: %s", err.text);
    }
    spate_ledger_start(&w->ledger, world.source.confirmed);
    spate_transaction_start(&w->tx, spate_slice_str(TOPIC), world.epoch.epoch.epoch, w->tail.first);
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

static inline void close_writer(struct writer *w)
{
    spate_recheck_close(&w->recheck);
    spate_transaction_fini(&w->tx);
    spate_ledger_fini(&w->ledger);
    spate_writer_close(w->publisher.stream);
    spate_buf_fini(&w->publisher.bytes);
    w->publisher.stream = NULL;
}

/* A new connector begins; what was the newest is a zombie, or gone when `killed`. */
static inline void start_writer(bool killed, bool new_epoch)
{
    do {
        struct spate_err err = {0};
        struct writer *w;

        /* Where retention may have taken all that the slot has confirmed, the oldest record that is left is
         * taken for the accepted one: no repetition may stand just there, so no history has zombies then. */
        killed = killed || world.retention == KEEPS_LITTLE;
        w = writers[killed ? 0 : WRITERS - 1];
        if (w->publisher.stream)
            close_writer(w);
        if (!killed) {
            memmove(&writers[1], &writers[0], (WRITERS - 1) * sizeof w);
            writers[0] = w;
        }
        w->publisher.count = w->publisher.done = 0;
        w->publisher.failed = false;
        w->publisher.name = w->publisher.slot = TOPIC;
        snprintf(w->publisher.topic, sizeof w->publisher.topic, "%s", TOPIC);
        w->publisher.max_record = BUS_MEMORY_MOST;
        if (spate_bus_writer_open(&world.bus.bus, TOPIC, 0, &w->publisher.stream, &err) != SPATE_OK)
            violated("%s", err.text);
        spate_ledger_init(&w->ledger, 64);
        w->sent = world.source.committed;
        if (recover(w, new_epoch))
            return;
        killed = below(2); /* it failed before it streamed */
        new_epoch = false;
    } while (!world.violation[0]);
}

/* ---- the walk (connector/stream.c) ---- */

static inline void settle_change(struct writer *w, uint64_t end)
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

static inline void read_frame(struct writer *w)
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
        settle_change(w, 0);
        rc = spate_transaction_change(&w->tx, NULL, &msg, NULL, &taken, &err);
    } else {
        msg.kind = SPATE_PGOUTPUT_COMMIT;
        msg.commit.commit_lsn = tx->commit;
        msg.commit.end_lsn = tx->end;
        rc = spate_transaction_commit(&w->tx, &msg, &err);
        spate_ledger_received(&w->ledger, tx->end);
        settle_change(w, tx->end);
        w->wal_end = tx->end;
    }
    if (rc != SPATE_OK)
        violated("decoding: %s", err.text);
    if (w->frame_at++ <= tx->changes)
        return;
    w->frame_at = 0;
    w->tx_at++;
}

static inline bool at_rest(const struct writer *w)
{
    return !w->over && !w->tx.open && !w->tx.holding && !spate_publisher_full(&w->publisher);
}

static inline void heartbeat(struct writer *w)
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
            .at = w->tx.next_n - 1, .epoch = w->tx.epoch, .end = w->wal_end, .source = w->tx.source},
        token);
}

/* A chunk of a snapshot: all rows, true exactly here. */
static inline void emit_chunk(struct writer *w)
{
    const uint64_t at = w->tx.next_n - 1, *rows;
    struct spate_buf line = {0};
    struct spate_record record;
    struct spate_err err = {0};
    size_t taken;

    if (!at_rest(w) || at < w->tail.last || w->tx.has_align)
        return;
    rows = world.source.rows[world.base[w->tx.epoch] + at];
    if (spate_publisher_flush(&w->publisher, &err) == SPATE_OK) {
        spate_buf_printf(&line,
                         "{\"spate\":1,\"op\":\"chunk\",\"at\":%" PRIu64 ",\"epoch\":%" PRIu64
                         ",\"to\":\"m\",\"request\":\"",
                         at, w->tx.epoch);
        for (size_t i = 0; i < KEYS; i++)
            spate_buf_printf(&line, "%" PRIu64 ",", rows[i]);
        spate_buf_puts(&line, "\",\"schema\":\"public\",\"table\":\"t\"}");
        record = (struct spate_record){.value = spate_buf_view(&line)};
        (void)!spate_writer_publish(w->publisher.stream, &record, 1, &taken, &err);
    }
    spate_buf_fini(&line);
}

/* True when the bus failed it. What became durable is told to the slot's owner's server. */
static inline bool flush_and_poll(struct writer *w)
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
    if (w == writers[0] && w->ledger.confirmed > world.source.confirmed)
        world.source.confirmed = w->ledger.confirmed;
    return false;
}

#endif
