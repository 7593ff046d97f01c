/* connector/weave.c - the weave's turn: what threads have done, what is due in the stream, what is read next.
 */
#include "connector/weave.h"

#include "connector/woven.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/hash.h"
#include "core/log.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define ASK_MS     10     /* how often the server is asked how far it has come */
#define MARK_MS    20     /* a chunk that takes so long to become durable tells of a slow disk */
#define CHOKED_MS  1      /* what is durable now wakes nobody */
#define NUDGE_MS   20     /* a chunk that waits longer than this is worth a message */
#define EXPIRES_MS 600000 /* nothing was heard of a requester that has everything */
#define LOOK_AT    4096   /* transactions in H that are worth a look at what is visible */
#define LOOK_MS    1000

/* ---- life ---- */

enum spate_rc spate_weave_open(const struct spate_connector_config *config, struct spate_weave **weave,
                               struct spate_err *err)
{
    struct spate_weave *w = spate_zalloc(sizeof *w);

    w->config = config;
    w->hidden = spate_hidden_new((size_t)config->snapshots.keys_bytes);
    if (spate_desk_open(config, &w->desk, err) != SPATE_OK) {
        spate_weave_close(w);
        return SPATE_FAIL;
    }
    *weave = w;
    return SPATE_OK;
}

void spate_weave_close(struct spate_weave *weave)
{
    if (!weave)
        return;
    if (weave->desk)
        spate_weave_leave(weave);
    spate_readers_close(weave->readers);
    weave->readers = NULL;
    while (weave->asked) { /* no job is out any more */
        weave->asked->out = 0;
        spate_weave_sift(weave);
    }
    spate_desk_close(weave->desk);
    spate_hidden_free(weave->hidden);
    spate_order_free(weave->before);
    spate_snapshot_fini(&weave->seen.snapshot);
    free(weave->watches);
    free(weave->emit.drop);
    spate_buf_fini(&weave->emit.head);
    spate_buf_fini(&weave->emit.line);
    spate_buf_fini(&weave->key);
    free(weave);
}

void spate_weave_leave(struct spate_weave *weave)
{
    weave->live = false;
    spate_desk_leave(weave->desk);
    for (struct spate_asked *at = weave->asked; at; at = at->next)
        spate_weave_drop(weave, at);
    if (weave->readers)
        spate_readers_cancel(weave->readers);
    spate_weave_sift(weave);
}

void spate_weave_session(struct spate_weave *weave, uint64_t epoch)
{
    char uuid[37];

    spate_weave_leave(weave);
    spate_hidden_clear(weave->hidden);
    weave->session++;
    spate_uuid(uuid);
    weave->by = (uint32_t)spate_fnv64(SPATE_FNV64_START, uuid, 36);
    weave->reached = weave->last_commit = 0;
    memset(weave->marks, 0, sizeof weave->marks);
    weave->before_known = weave->nudge_off = false;
    spate_order_free(weave->before);
    weave->before = NULL;
    spate_snapshot_fini(&weave->seen.snapshot);
    weave->seen.set = false;
    weave->looking = weave->nudging = false;
    weave->memo.table = NULL;
    weave->live = true;
    weave->due_lsn = UINT64_MAX;
    spate_desk_session(weave->desk, weave->session, epoch);
}

/* ---- the stream ---- */

void spate_weave_begin(struct spate_weave *weave, uint32_t xid, uint64_t commit_lsn)
{
    spate_hidden_begin(weave->hidden, xid, commit_lsn);
    weave->open_commit = commit_lsn;
    if (commit_lsn > weave->reached)
        weave->reached = commit_lsn;
}

void spate_weave_commit(struct spate_weave *weave, uint64_t end_lsn)
{
    spate_hidden_commit(weave->hidden);
    weave->last_commit = weave->open_commit;
    if (end_lsn > weave->reached)
        weave->reached = end_lsn;
}

static uint32_t watch_of(struct spate_weave *weave, const struct spate_table *table)
{
    if (weave->memo.table == table)
        return weave->memo.watch;
    weave->memo.table = table;
    weave->memo.watch = SPATE_NO_WATCH;
    for (size_t i = 0; i < weave->watch_count; i++)
        if (spate_slice_is(table->schema, weave->watches[i].schema) &&
            spate_slice_is(table->name, weave->watches[i].name))
            weave->memo.watch = weave->watches[i].number;
    return weave->memo.watch;
}

static void touch(struct spate_weave *weave, uint32_t watch, const struct spate_table *table,
                  const struct spate_value *values)
{
    spate_buf_reset(&weave->key);
    spate_hidden_key(&weave->key, table, values);
    spate_hidden_touch(weave->hidden, watch, spate_buf_view(&weave->key));
}

static bool has_key(const struct spate_table *table, const struct spate_value *values)
{
    for (size_t k = 0; values && k < table->key_count; k++)
        if (values[table->key[k]].kind != SPATE_VALUE_TEXT)
            return false;
    return values != NULL;
}

/* The key now; of an update whose key was not sent again, the old tuple's (P43): so without it nothing moved.
 */
void spate_weave_change(struct spate_weave *weave, const struct spate_change *change)
{
    uint32_t watch;

    if (weave->watch_count == 0)
        return;
    for (size_t i = 0; i < change->table_count && change->op == SPATE_OP_TRUNCATE; i++)
        if ((watch = watch_of(weave, change->tables[i])) != SPATE_NO_WATCH)
            spate_hidden_touch_all(weave->hidden, watch);
    if (change->op > SPATE_OP_DELETE || (watch = watch_of(weave, change->table)) == SPATE_NO_WATCH)
        return;
    if (change->table->key_count == 0) {
        spate_hidden_touch_all(weave->hidden, watch);
        return;
    }
    if (has_key(change->table, change->after))
        touch(weave, watch, change->table, change->after);
    if (has_key(change->table, change->before))
        touch(weave, watch, change->table, change->before);
    else if (!has_key(change->table, change->after))
        spate_hidden_touch_all(weave->hidden, watch); /* neither tuple has all of it: any row may be meant */
}

/* ---- what is due in the stream ---- */

/* Between two transactions, and behind all that was published before this session. */
static bool at_boundary(const struct spate_stream *stream)
{
    const struct spate_transaction *tx = &stream->tx;

    return (!tx->open || (tx->ordinal == 0 && !tx->holding)) && tx->next_n > stream->tail.last;
}

bool spate_weave_emitting(const struct spate_weave *weave)
{
    return weave->emit.headed;
}

bool spate_weave_wants(const struct spate_weave *weave, const struct spate_stream *stream)
{
    return weave->live && weave->reached >= weave->due_lsn && at_boundary(stream);
}

/* What is published is durable in order, so a change that comes now waits for all chunks before it: for two
 * of them at most where the disk is slow, and not for as much as the bus takes. */
static bool choked(const struct spate_weave *weave, const struct spate_stream *stream)
{
    const uint64_t durable = spate_writer_durable(stream->publisher.stream).at;
    unsigned ahead = 0, oldest = weave->mark;

    for (unsigned i = 1; i <= SPATE_MARKS; i++) {
        unsigned at = (weave->mark + SPATE_MARKS - i) % SPATE_MARKS;

        if (weave->marks[at] <= durable)
            break;
        oldest = at;
        ahead++;
    }
    return ahead == SPATE_MARKS || (ahead >= 2 && spate_clock_ms() - weave->marked_ms[oldest] >= MARK_MS);
}

static enum spate_rc mark_end(struct spate_weave *weave, struct spate_stream *stream, struct spate_err *err)
{
    enum spate_rc rc = spate_publisher_flush(&stream->publisher, err);

    weave->marks[weave->mark] = spate_writer_end(stream->publisher.stream).at;
    weave->marked_ms[weave->mark] = spate_clock_ms();
    weave->mark = (weave->mark + 1) % SPATE_MARKS;
    return rc == SPATE_FAIL ? rc : SPATE_OK;
}

/* From which LSN on something can be put into the stream; UINT64_MAX: nothing waits for it. */
static uint64_t due_lsn(const struct spate_weave *weave)
{
    uint64_t due = UINT64_MAX;

    if (weave->before)
        return 0;
    for (const struct spate_asked *at = weave->asked; at; at = at->next) {
        if (at->dead || !weave->before_known)
            continue;
        if (!at->begun || (spate_asked_all_sent(at) && !at->ranges_end))
            return 0;
        if (!weave->choked && at->slots && at->slots->state == SPATE_SLOT_READY && at->slots->job->lsn < due)
            due = at->slots->job->lsn;
    }
    return due;
}

/* A row that the bus cannot carry, or one that contradicts itself: the request is over, the stream is not. */
static enum spate_rc over_for(struct spate_weave *weave, struct spate_asked *asked, enum spate_rc rc,
                              struct spate_err *err)
{
    if (rc != SPATE_FAIL || err->verdict != SPATE_QUARANTINE)
        return rc;
    spate_answer_refused(weave, asked->id, asked->sink, err->text,
                         "leave such values out (columns, or conditions), or raise what the bus takes");
    spate_weave_drop(weave, asked);
    *err = (struct spate_err){0};
    return SPATE_OK;
}

static enum spate_rc emit_head_slot(struct spate_weave *weave, struct spate_stream *stream,
                                    struct spate_asked *asked, int64_t now_ms, struct spate_err *err)
{
    struct spate_slot *slot = asked->slots;
    enum spate_rc rc = spate_emit_chunk(weave, stream, slot, err);

    if (rc == SPATE_END) { /* a TRUNCATE came in between, or more keys than are remembered */
        spate_slot_again(weave, slot, now_ms, "waits until a large transaction or a TRUNCATE is visible");
        return SPATE_OK;
    }
    if (rc != SPATE_OK)
        return over_for(weave, asked, rc, err);
    asked->slots = slot->next;
    asked->why[0] = 0;
    spate_slot_free(slot);
    return mark_end(weave, stream, err);
}

static enum spate_rc emit_one(struct spate_weave *weave, struct spate_stream *stream,
                              struct spate_asked *asked, int64_t now_ms, struct spate_err *err)
{
    enum spate_rc rc;

    if (!asked->begun) {
        rc = spate_emit_begin(weave, stream, asked, err);
        if (rc != SPATE_OK)
            return rc;
        asked->begun = true;
        asked->from_lsn = weave->last_commit; /* R */
        asked->began_ms = now_ms;
        weave->counts.requests++;
        spate_log(SPATE_LOG_INFO, "snapshot-begin", "request=%s sink=%s tables=%zu n=%" PRIu64, asked->id,
                  asked->sink, asked->count, stream->tx.next_n - 1);
    }
    if (asked->slots && asked->slots->state == SPATE_SLOT_READY && asked->slots->job->lsn <= weave->reached &&
        !choked(weave, stream))
        return emit_head_slot(weave, stream, asked, now_ms, err);
    if (spate_asked_all_sent(asked) && !asked->ranges_end) {
        rc = spate_emit_ranges_end(weave, stream, asked, err);
        if (rc != SPATE_OK)
            return rc;
        asked->ranges_end = true;
        asked->heard_ms = now_ms;
    }
    return SPATE_OK;
}

/* Transactions of earlier sessions that nobody may see yet: delivered before any request, with keys that are
 * not known. The open one has touched nothing so far. */
static void take_before(struct spate_weave *weave, const struct spate_stream *stream)
{
    for (size_t i = 0; i < weave->before->xid_count; i++) {
        spate_hidden_begin(weave->hidden, weave->before->xids[i], 0);
        spate_hidden_commit(weave->hidden);
    }
    if (stream->tx.open)
        spate_hidden_begin(weave->hidden, stream->tx.xid, stream->tx.commit_lsn);
    spate_order_free(weave->before);
    weave->before = NULL;
    weave->before_known = true;
}

static enum spate_rc emit_due(struct spate_weave *weave, struct spate_stream *stream, int64_t now_ms,
                              struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (weave->before && at_boundary(stream))
        take_before(weave, stream);
    if (weave->emit.headed) {
        rc = emit_head_slot(weave, stream, weave->emit.slot->asked, now_ms, err);
        if (rc != SPATE_OK)
            return rc;
    }
    for (struct spate_asked *at = weave->asked; rc == SPATE_OK && at; at = at->next)
        if (!at->dead && weave->before_known && at_boundary(stream))
            rc = emit_one(weave, stream, at, now_ms, err);
    return rc;
}

/* A chunk waits for its L: the server says how far it has come when it is asked, and when there is nothing
 * more in its WAL that it could have sent, a message of ours gives it something. */
static void hurry(struct spate_weave *weave, struct spate_stream *stream, int64_t now_ms)
{
    if (weave->due_lsn == UINT64_MAX || weave->due_lsn <= weave->reached) {
        weave->wait_ms = now_ms;
        return;
    }
    if (now_ms - weave->ask_ms >= ASK_MS) {
        weave->ask_ms = now_ms;
        stream->repl.ask_position = true;
    }
    if (now_ms - weave->wait_ms < NUDGE_MS || weave->nudging || weave->nudge_off ||
        !weave->config->snapshots.nudge)
        return;
    weave->wait_ms = now_ms;
    weave->nudging = true;
    spate_weave_submit(weave, SPATE_JOB_NUDGE);
}

/* H is kept short also while nobody asks for anything. */
static void look(struct spate_weave *weave, int64_t now_ms)
{
    if (spate_hidden_count(weave->hidden) < LOOK_AT || weave->looking || now_ms - weave->look_ms < LOOK_MS)
        return;
    weave->look_ms = now_ms;
    weave->looking = true;
    spate_weave_submit(weave, SPATE_JOB_LOOK);
}

static void tell_all(struct spate_weave *weave, int64_t now_ms)
{
    weave->counts.active = 0;
    for (struct spate_asked *at = weave->asked; at; at = at->next) {
        if (at->dead)
            continue;
        weave->counts.active++;
        if (at->ranges_end && now_ms - at->heard_ms > EXPIRES_MS) {
            spate_weave_end(weave, at, "expired", now_ms);
        } else {
            spate_answer_progress(weave, at, now_ms);
        }
    }
}

enum spate_rc spate_weave_turn(struct spate_weave *weave, struct spate_stream *stream, int64_t now_ms,
                               struct spate_err *err)
{
    enum spate_rc rc;

    if (!weave->live)
        return SPATE_OK;
    if (!stream->tx.open && stream->repl.wal_end > weave->reached)
        weave->reached = stream->repl.wal_end;
    rc = spate_weave_orders(weave, stream, now_ms, err);
    if (rc == SPATE_OK)
        spate_weave_jobs(weave, now_ms);
    if (rc == SPATE_OK)
        rc = emit_due(weave, stream, now_ms, err);
    if (rc == SPATE_OK || rc == SPATE_AGAIN) {
        spate_weave_schedule(weave, now_ms);
        look(weave, now_ms);
        weave->choked = choked(weave, stream);
        weave->due_lsn = due_lsn(weave);
        hurry(weave, stream, now_ms);
        tell_all(weave, now_ms);
        spate_weave_sift(weave);
    }
    return rc;
}

/* ---- waiting ---- */

int spate_weave_due_ms(const struct spate_weave *weave, int64_t now_ms)
{
    int64_t due = 1000;

    if (!weave->live)
        return 1000;
    if (weave->emit.headed)
        return 0;
    if (weave->due_lsn != UINT64_MAX)
        due = ASK_MS;
    if (weave->choked)
        due = CHOKED_MS;
    for (const struct spate_asked *at = weave->asked; at; at = at->next)
        for (const struct spate_slot *slot = at->slots; slot; slot = slot->next)
            if (slot->state == SPATE_SLOT_DUE && slot->due_ms - now_ms < due)
                due = slot->due_ms > now_ms ? slot->due_ms - now_ms : 0;
    if (weave->held_ms > now_ms && weave->held_ms - now_ms < due)
        due = weave->held_ms - now_ms;
    return (int)due;
}

void spate_weave_fds(const struct spate_weave *weave, struct pollfd fds[2])
{
    fds[0] = (struct pollfd){.fd = spate_desk_fd(weave->desk), .events = POLLIN};
    fds[1] = (struct pollfd){.fd = weave->readers ? spate_readers_fd(weave->readers) : -1, .events = POLLIN};
}

struct spate_weave_counts spate_weave_counts(const struct spate_weave *weave)
{
    return weave->counts;
}
