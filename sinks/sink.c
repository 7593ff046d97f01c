/* sinks/sink.c - the loop: hear, collect, apply. */
#include "sinks/blame.h"
#include "sinks/run.h"

#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/follow.h"
#include "sinks/known.h"
#include "sinks/late.h"
#include "sinks/stale.h"
#include "sinks/start.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <stdio.h>

#define SOFT_ROWS     20000 /* a batch is applied at the next transaction's end */
#define SOFT_BYTES    ((size_t)6 << 20)
#define HARD_BYTES    ((size_t)12 << 20) /* a transaction that is still not complete is applied in pieces */
#define TURN          1024               /* records between looks at the clock */
#define STORE_MS      10000              /* what is passed by moves the stored position at least so often */
#define ANEW_MS       1000               /* between attempts to begin anew */
#define UNFINISHED_MS 5000               /* a transaction that stops in the middle holds no locks longer */

struct spate_counts spate_sink_counts(const struct spate_sink *sink)
{
    struct spate_counts counts = sink->before;

    counts.applied += sink->applied;
    counts.duplicates += sink->feed.count.duplicates + sink->feed.count.old_epochs;
    counts.holes += sink->feed.count.holes;
    counts.missing += sink->apply.missing;
    return counts;
}

static void tell_missing(struct spate_sink *sink)
{
    unsigned hidden;

    if (sink->apply.missing == sink->missing_told ||
        !spate_log_due(&sink->missing_log, spate_clock_ms(), 10000, &hidden))
        return;
    sink->missing_told = sink->apply.missing;
    spate_log(
        SPATE_LOG_WARN, "rows-missing",
        "count=%" PRIu64
        " detail=\"updates and deletes of rows that are not in the target, which are older than what was "
        "heard: `spate snapshot --sink %s` loads them\"",
        sink->apply.missing, sink->config->name);
}

/* The row's key as JSON: the only values that are ever shown. */
static void describe_row(const struct spate_item *item, struct spate_buf *out, struct spate_arena *arena)
{
    const struct spate_table *table = item->version->table;
    struct spate_value *row = spate_arena_alloc(arena, table->column_count * sizeof *row);
    struct spate_change change = {.op = SPATE_OP_INSERT, .table = table, .after = row};
    struct spate_err ignored = {0};

    memset(row, 0, table->column_count * sizeof *row);
    for (size_t k = 0; k < table->key_count; k++)
        row[table->key[k]] = item->key[k];
    if (spate_encode_key(out, &change, &ignored) != SPATE_OK)
        spate_buf_puts(out, "(unreadable)");
}

/* The target refuses something in these items: finds out what, and says it so that a human can mend it. */
static enum spate_rc poison(struct spate_sink *sink, size_t count, struct spate_err *err)
{
    const struct spate_item *items = sink->batch.items;
    struct spate_buf key = {0}, column = {0};
    char veiled[SPATE_SINK_VEIL];
    size_t culprit = 0;
    enum spate_rc rc = spate_apply_isolate(&sink->apply, items, count, &culprit, err);

    if (rc == SPATE_FAIL) {
        err->verdict = SPATE_RETRY;
        return SPATE_FAIL;
    }
    err->verdict = SPATE_FATAL;
    err->exit_code = SPATE_EXIT_REFUSED;
    if (rc == SPATE_AGAIN || items[culprit].op == SPATE_OP_TRUNCATE) {
        size_t first = rc == SPATE_AGAIN ? 0 : culprit, last = rc == SPATE_AGAIN ? count - 1 : culprit;

        return spate_err_context(
            err,
            "the target refuses changes n=%" PRIu64 " to n=%" PRIu64
            " (SQLSTATE %s); nothing of them was applied, mend it and start the sink again",
            items[first].n, items[last].n, err->sqlstate);
    }
    spate_blame_column(&sink->store, &items[culprit], err->sqlstate, &column);
    snprintf(veiled, sizeof veiled,
             "the target refuses a row: table %s%s%.200s, n=%" PRIu64
             ", SQLSTATE %s; nothing from there on was "
             "applied, mend it and start the sink again: %.400s. The log's line sink-stopped names its key",
             items[culprit].version->projection->target, column.len ? ", column " : "",
             spate_buf_str(&column), items[culprit].n, err->sqlstate, err->text);
    spate_sink_status_veil(sink->config->status, veiled);
    describe_row(&items[culprit], &key, &sink->arena);
    spate_err_context(err,
                      "the target refuses a row: table %s%s%.200s, key %.300s, n=%" PRIu64
                      ", SQLSTATE %s; nothing from there on was applied, mend it and start the sink again",
                      items[culprit].version->projection->target, column.len ? ", column " : "",
                      spate_buf_str(&column), spate_buf_str(&key), items[culprit].n, err->sqlstate);
    spate_buf_fini(&column);
    spate_buf_fini(&key);
    return SPATE_FAIL;
}

/* The target's enums lack a label that the source's have (T21). *done: they have it now, or *err says who has
 * to add it. A label that was given another name looks the same: rows that have it are asked for. */
static enum spate_rc add_labels(struct spate_sink *sink, size_t count, bool *done, struct spate_err *err)
{
    struct spate_err now = {0};
    enum spate_rc rc = spate_follow_labels(&sink->store, sink->batch.items, count, done, &now);

    if (rc == SPATE_FAIL && now.verdict != SPATE_RETRY && now.exit_code != SPATE_EXIT_REFUSED)
        return SPATE_OK; /* what was refused says more */
    if (rc == SPATE_OK && *done)
        return spate_stale_labelled(sink, err);
    *done |= rc != SPATE_OK;
    if (*done)
        *err = now;
    return *done ? SPATE_FAIL : SPATE_OK;
}

static enum spate_rc apply_failed(struct spate_sink *sink, size_t count, struct spate_err *err)
{
    struct spate_err check = {0};
    bool done = false;

    if (err->verdict == SPATE_RETRY || PQstatus(sink->store.conn) != CONNECTION_OK) {
        err->verdict = SPATE_RETRY;
        return SPATE_FAIL;
    }
    /* A guard that found no row looks like a refusal; whether it was one, the row tells. */
    switch (spate_store_check(&sink->store, &check)) {
    case SPATE_OK:
        break;
    case SPATE_END:
        err->verdict = SPATE_RETRY;
        return SPATE_FAIL;
    default:
        *err = check;
        return SPATE_FAIL;
    }
    if (err->exit_code == SPATE_EXIT_FENCED) { /* it was looked into already (T12) */
        spate_stale_lost(sink, err);
        return SPATE_FAIL;
    }
    if (count && strcmp(err->sqlstate, "22P02") == 0 && add_labels(sink, count, &done, err) != SPATE_OK)
        return SPATE_FAIL;
    /* The target was altered under a prepared statement: a new connection looks at it afresh, once (T23). */
    if (spate_pg_prepare_again(err->sqlstate) && !sink->reprepared) {
        sink->reprepared = true;
        err->verdict = SPATE_RETRY;
        return SPATE_FAIL;
    }
    return count ? poison(sink, count, err) : SPATE_FAIL;
}

/* Rows of a snapshot are no changes. */
static uint64_t changes_of(const struct spate_batch *batch, size_t count)
{
    uint64_t changes = 0;

    for (size_t i = 0; i < count; i++)
        changes += batch->items[i].op != SPATE_OP_READ && batch->items[i].op != SPATE_OP_CHUNK;
    return changes;
}

enum spate_rc spate_sink_flush(struct spate_sink *sink, size_t count, bool commit, struct spate_err *err)
{
    const uint64_t changes = changes_of(&sink->batch, count);
    struct spate_counts counts;
    int64_t start = spate_clock_us();

    sink->applied += changes;
    counts = spate_sink_counts(sink);
    spate_sink_status_busy(sink->config->status, sink);
    if (spate_apply_run(&sink->apply, sink->batch.items, count, commit ? &sink->feed.mark : NULL,
                        spate_reader_log_id(sink->feed.reader), &counts, err) != SPATE_OK) {
        sink->applied -= changes;
        return apply_failed(sink, count, err);
    }
    spate_sink_status_applied(sink->config->status, count, spate_clock_us() - start);
    if (commit) {
        sink->done = sink->feed.mark;
        sink->behind_us = sink->feed.seen_us; /* until the reader finds nothing more */
        sink->stored_ms = spate_clock_ms();
        sink->failures = 0;
        sink->reprepared = false;
    }
    if (spate_log_on(SPATE_LOG_DEBUG))
        spate_log(SPATE_LOG_DEBUG, "applied", "changes=%zu commit=%d n=%" PRIu64 " us=%" PRId64, count,
                  commit, sink->feed.mark.place.n, spate_clock_us() - start);
    spate_batch_drop(&sink->batch, count);
    spate_taking_applied(sink, count);
    tell_missing(sink);
    return commit ? spate_known_turn(sink, err) : SPATE_OK;
}

static bool mark_moved(const struct spate_sink *sink)
{
    return sink->feed.state == SPATE_FEED_FOLLOWING && sink->feed.mark.place.epoch != 0 &&
           (!sink->store.stored || sink->feed.mark.at.at != sink->store.mark.at.at);
}

/* Is there something to be written besides rows? The counters of a batch are known only after its commit. */
static bool position_moved(const struct spate_sink *sink)
{
    return mark_moved(sink) ||
           (sink->store.stored && spate_sink_counts(sink).missing != sink->store.counts.missing);
}

/* Brings what is complete into the target. */
static enum spate_rc flush_complete(struct spate_sink *sink, struct spate_err *err)
{
    bool due = !sink->store.stored || spate_clock_ms() - sink->stored_ms >= STORE_MS;

    if (sink->batch.complete > 0 || (!sink->apply.open && due && position_moved(sink)))
        return spate_sink_flush(sink, sink->batch.complete, true, err);
    return SPATE_OK;
}

static enum spate_rc add_truncate(struct spate_sink *sink, const struct spate_event *event,
                                  const struct spate_meta *meta, struct spate_err *err)
{
    struct spate_truncation truncation;
    const struct spate_projection **tables;
    size_t count = 0;

    if (spate_decode_truncate(event->line, meta, &truncation, &sink->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    for (int pass = 0; pass < 2; pass++) {
        tables = pass && count ? spate_batch_add_truncate(&sink->batch, event->head.n, count) : NULL;
        count = 0;
        for (size_t p = 0; p < sink->projection_count; p++)
            for (size_t t = 0; t < truncation.count; t++) {
                if (!spate_slice_is(truncation.tables[t].table, sink->projections[p].source_table) ||
                    !spate_slice_is(truncation.tables[t].schema, sink->projections[p].source_schema))
                    continue;
                if (tables)
                    tables[count] = &sink->projections[p];
                count++;
                break;
            }
        if (count == 0)
            break;
    }
    return SPATE_OK;
}

enum spate_rc spate_sink_version_at(struct spate_sink *sink, struct spate_projection *projection, uint32_t v,
                                    struct spate_version **version, bool *rewound, struct spate_err *err)
{
    enum spate_rc rc;

    *rewound = sink->apply.open && !spate_sink_knows(sink, projection, v);
    if (*rewound) {
        spate_apply_rollback(&sink->apply);
        rc = spate_sink_rewind(sink, err);
        if (rc != SPATE_OK)
            return rc;
    }
    if (!projection->current || projection->current->table->v != v)
        spate_sink_status_busy(sink->config->status, sink);
    return spate_sink_version(sink, projection, v, version, err);
}

/* A change of one of this sink's tables goes into the batch; all others are passed by. */
static enum spate_rc add_change(struct spate_sink *sink, const struct spate_event *event, bool *rewound,
                                struct spate_err *err)
{
    const struct spate_head *head = &event->head;
    struct spate_meta meta;
    bool have_meta = false;

    *rewound = false;
    if (head->op == SPATE_OP_MESSAGE)
        return SPATE_OK;
    if (head->op == SPATE_OP_TRUNCATE) {
        spate_arena_reset(&sink->arena);
        if (spate_decode_meta(event->line, head, &meta, &sink->arena, err) != SPATE_OK)
            return SPATE_FAIL;
        return add_truncate(sink, event, &meta, err);
    }
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];
        struct spate_version *version;
        enum spate_rc rc;

        if (!spate_slice_is(head->table, projection->source_table) ||
            !spate_slice_is(head->schema, projection->source_schema))
            continue;
        if (!have_meta) {
            spate_arena_reset(&sink->arena);
            if (spate_decode_meta(event->line, head, &meta, &sink->arena, err) != SPATE_OK)
                return SPATE_FAIL;
            have_meta = true;
        }
        rc = spate_sink_version_at(sink, projection, meta.v, &version, rewound, err);
        if (rc != SPATE_OK || *rewound)
            return rc;
        if (!version)
            continue;
        if (spate_batch_add(&sink->batch, version, event->line, head, &meta, err) != SPATE_OK)
            return SPATE_FAIL;
    }
    return SPATE_OK;
}

static enum spate_rc add_failed(struct spate_sink *sink, const struct spate_event *event,
                                struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT], words[400];

    if (err->verdict != SPATE_QUARANTINE)
        return SPATE_FAIL;
    /* Its head was whole, so it is a change of ours: to pass it by would lose it (K29). */
    spate_bus_pos_format(sink->feed.driver, event->pos, at);
    snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(
        err, SPATE_FATAL,
        "topic %s at %s, n=%" PRIu64 " of epoch %" PRIu64
        ": %s. Nothing from there on was applied. It is a change, so --skip does not pass it by: "
        "mend the cause, or load this sink's tables anew (spate sink -c %s --restart %s)",
        sink->feed.topic, at, event->head.n, event->head.epoch, words, sink->config->path,
        sink->config->name);
}

static enum spate_rc take(struct spate_sink *sink, struct spate_event *event, struct spate_err *err)
{
    bool rewound = false;
    size_t bytes;

    SPATE_FAILPOINT(sink_read);
    if (event->kind == SPATE_EVENT_EPOCH || event->kind == SPATE_EVENT_CHANGE)
        spate_taking_break(sink, "the stream went on before its end");
    if (event->kind == SPATE_EVENT_EPOCH) {
        SPATE_FAILPOINT(sink_epoch);
        spate_log(SPATE_LOG_INFO, "epoch", "epoch=%" PRIu64, event->head.epoch);
        spate_batch_discard_open(&sink->batch);
        if (sink->apply.open)
            spate_apply_rollback(&sink->apply);
    }
    if (event->kind == SPATE_EVENT_CHANGE || event->kind == SPATE_EVENT_SNAPSHOT ||
        event->kind == SPATE_EVENT_STALE) {
        enum spate_rc rc = event->kind == SPATE_EVENT_CHANGE  ? add_change(sink, event, &rewound, err)
                           : event->kind == SPATE_EVENT_STALE ? spate_stale_hear(sink, event, &rewound, err)
                                                              : spate_taking_hear(sink, event, &rewound, err);

        if (rc == SPATE_FAIL)
            return add_failed(sink, event, err);
        if (rc != SPATE_OK || rewound)
            return rc;
    }
    if (event->boundary) {
        spate_batch_boundary(&sink->batch);
        sink->done = sink->feed.mark;
        if (sink->apply.open)
            return spate_sink_flush(sink, sink->batch.complete, true, err);
    }
    bytes = spate_batch_bytes(&sink->batch);
    if (sink->batch.complete > 0 && (bytes > SOFT_BYTES || sink->batch.count > SOFT_ROWS))
        return spate_sink_flush(sink, sink->batch.complete, true, err);
    if (sink->batch.complete == 0 &&
        (bytes > HARD_BYTES || sink->batch.count > 2 * SOFT_ROWS ||
         (sink->apply.open && (bytes > SOFT_BYTES || sink->batch.count > SOFT_ROWS))))
        return spate_sink_flush(sink, sink->batch.count, false, err);
    return SPATE_OK;
}

/* Nothing more to hear for now. */
static enum spate_rc idle(struct spate_sink *sink, struct spate_err *err)
{
    enum spate_rc rc = flush_complete(sink, err);

    if (rc == SPATE_OK)
        rc = spate_loading_turn(sink, true, err);
    if (rc == SPATE_OK)
        rc = spate_late_turn(sink, err);
    if (rc != SPATE_OK)
        return rc;
    if (sink->apply.open && spate_clock_ms() - sink->event_ms > UNFINISHED_MS) {
        spate_log(SPATE_LOG_INFO, "transaction-unfinished",
                  "after_n=%" PRIu64 " detail=\"rolled back; it is read again when it goes on\"",
                  sink->feed.follower.last.n);
        spate_apply_rollback(&sink->apply);
        spate_batch_clear(&sink->batch);
        spate_taking_forget(sink);
        sink->parked = true;
    }
    if (sink->batch.count == 0 && !sink->apply.open && !sink->parked && !sink->feed.hole_ms)
        sink->behind_us = 0;
    rc = spate_feed_wait(&sink->feed, 200, err);
    return rc == SPATE_AGAIN ? SPATE_OK : rc;
}

static enum spate_rc turn(struct spate_sink *sink, struct spate_err *err)
{
    for (int i = 0; i < TURN; i++) {
        struct spate_event event;
        bool rewound = false;
        enum spate_rc rc = spate_feed_next(&sink->feed, &event, err);

        if (sink->feed.behind && rc != SPATE_FAIL) {
            enum spate_rc done = spate_loading_behind(sink, &rewound, err);

            if (done != SPATE_OK)
                return done;
            if (rewound)
                continue;
        }
        if (rc == SPATE_AGAIN)
            return idle(sink, err);
        if (rc != SPATE_OK)
            return rc;
        if (sink->behind_us == 0)
            sink->behind_us = sink->feed.seen_us;
        if (i == 0)
            sink->event_ms = spate_clock_ms();
        rc = sink->parked ? spate_sink_rewind(sink, err) : take(sink, &event, err);
        if (rc != SPATE_OK)
            return rc;
    }
    /* A sink that only passes by others' changes is never idle while they come. */
    if (sink->batch.count == 0) {
        enum spate_rc rc = flush_complete(sink, err);

        if (rc == SPATE_OK)
            rc = spate_late_turn(sink, err);
        if (rc != SPATE_OK)
            return rc;
    }
    return spate_loading_turn(sink, false, err);
}

static void log_stop(const struct spate_sink *sink, const char *why)
{
    struct spate_counts counts = spate_sink_counts(sink);

    spate_log(SPATE_LOG_INFO, "stopped",
              "reason=%s epoch=%" PRIu64 " n=%" PRIu64 " applied=%" PRIu64 " duplicates=%" PRIu64
              " holes=%" PRIu64 " missing=%" PRIu64,
              why, sink->store.mark.place.epoch, sink->store.mark.place.n, counts.applied, counts.duplicates,
              counts.holes, counts.missing);
}

/* An orderly stop: what is complete is written, then the position. What fails now is read again next time. */
static void finish(struct spate_sink *sink)
{
    struct spate_err err = {0};

    if (sink->apply.open)
        spate_apply_rollback(&sink->apply);
    else if (PQstatus(sink->store.conn) == CONNECTION_OK &&
             (sink->batch.complete > 0 || position_moved(sink)) &&
             spate_sink_flush(sink, sink->batch.complete, true, &err) != SPATE_OK)
        spate_log_err(SPATE_LOG_WARN, "last-batch", &err);
}

/* *stale: a part of the stream is missing for ever, and asking for everything makes up for it. */
static enum spate_rc run_once(const struct spate_sink_config *config, const struct spate_sink_orders *orders,
                              bool anew, bool *stale, struct spate_err *err)
{
    struct spate_sink sink;
    enum spate_rc rc = spate_sink_open(&sink, config, orders, anew, err);
    bool opened = rc == SPATE_OK;

    while (rc == SPATE_OK && !spate_signals_stop()) {
        struct spate_err now = {0};

        rc = turn(&sink, &now);
        spate_sink_status_turn(config->status, &sink, spate_clock_ms());
        if (rc == SPATE_FAIL && now.verdict == SPATE_RETRY && !spate_signals_stop()) {
            struct spate_err cause = now;
            rc = spate_sink_recover(&sink, &cause, &now);
        }
        if (rc == SPATE_FAIL)
            *err = now;
    }
    /* What was cut short by the stop is read again next time; it must not make it wait a second time. */
    if (opened && rc == SPATE_OK)
        finish(&sink);
    if (rc == SPATE_FAIL && spate_signals_stop() && err->verdict == SPATE_RETRY)
        rc = SPATE_END;
    if (opened)
        spate_sink_status_last(config->status, &sink);
    if (opened)
        log_stop(&sink, rc == SPATE_FAIL ? "error" : "asked");
    *stale = rc == SPATE_FAIL && err->exit_code == SPATE_EXIT_FENCED && sink.feed.stale &&
             config->snapshot == SPATE_SINK_AUTO;
    spate_sink_close(&sink);
    return rc == SPATE_FAIL ? SPATE_FAIL : SPATE_OK;
}

enum spate_rc spate_sink_run(const struct spate_sink_config *config, const struct spate_sink_orders *orders,
                             struct spate_err *err)
{
    bool stale;
    enum spate_rc rc = run_once(config, orders, false, &stale, err);

    while (rc == SPATE_FAIL && stale) {
        /* Rows stay readable as they are until everything has come anew. */
        spate_log_err(SPATE_LOG_ERROR, "stale", err);
        spate_log(
            SPATE_LOG_WARN, "asks-anew",
            "detail=\"nothing has to be typed: the sink begins anew by itself, and asks for everything; "
            "until it has come its tables are those of before\"");
        *err = (struct spate_err){0};
        if (!spate_sink_pause(ANEW_MS))
            return SPATE_OK;
        rc = run_once(config, orders, true, &stale, err);
    }
    return rc;
}
