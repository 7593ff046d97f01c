/* connector/schedule.c - which chunk is read next, and what came of it. */
#include "connector/permits.h"
#include "connector/woven.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN_MS 50 /* a chunk that is not true yet */
#define RETRY_MS 500

void spate_slot_free(struct spate_slot *slot)
{
    spate_job_free(slot->job);
    spate_buf_fini(&slot->keys_json);
    spate_arena_fini(&slot->arena);
    free(slot);
}

void spate_slot_again(struct spate_weave *weave, struct spate_slot *slot, int64_t now_ms, const char *why)
{
    spate_job_free(slot->job);
    slot->job = NULL;
    slot->state = SPATE_SLOT_DUE;
    slot->due_ms = now_ms + AGAIN_MS;
    snprintf(slot->asked->why, sizeof slot->asked->why, "%.*s", (int)sizeof slot->asked->why - 1, why);
    weave->counts.redone++;
}

static bool open_readers(struct spate_weave *weave)
{
    struct spate_err err = {0};

    if (weave->readers || spate_readers_open(weave->config, &weave->readers, &err) == SPATE_OK)
        return true;
    spate_log_err(SPATE_LOG_WARN, "snapshot-readers", &err);
    return false;
}

void spate_weave_submit(struct spate_weave *weave, enum spate_job_kind kind)
{
    struct spate_job *job;

    if (!open_readers(weave))
        return;
    job = spate_zalloc(sizeof *job);
    job->kind = kind;
    job->from = weave->session;
    spate_readers_submit(weave->readers, job);
}

static void submit_slot(struct spate_weave *weave, struct spate_slot *slot)
{
    struct spate_job *job;

    if (!open_readers(weave))
        return;
    job = spate_zalloc(sizeof *job);
    job->kind = slot->by_keys ? SPATE_JOB_KEYS : SPATE_JOB_RANGE;
    job->owner = slot;
    job->table = slot->table->plan;
    job->leaf = slot->leaf;
    job->from = slot->from;
    job->to = slot->to;
    job->keys = slot->keys;
    job->key_count = slot->key_count;
    job->max_bytes = (size_t)weave->config->snapshots.chunk_bytes;
    slot->state = SPATE_SLOT_READING;
    slot->id = weave->next_id++;
    slot->asked->out++;
    spate_readers_submit(weave->readers, job);
}

/* ---- what came of it ---- */

/* What this snapshot sees may be forgotten when no chunk with an older one is out: when all that were given
 * to readers by now are gone. */
static void remember_seen(struct spate_weave *weave, const struct spate_snapshot *snapshot)
{
    if (weave->seen.set || snapshot->xmax == 0)
        return;
    spate_snapshot_copy(&weave->seen.snapshot, snapshot);
    weave->seen.barrier = weave->next_id;
    weave->seen.set = true;
}

static void forget_seen(struct spate_weave *weave)
{
    if (!weave->seen.set)
        return;
    for (const struct spate_asked *at = weave->asked; at; at = at->next)
        for (const struct spate_slot *slot = at->slots; slot; slot = slot->next)
            if (slot->state != SPATE_SLOT_DUE && !slot->discard && slot->id < weave->seen.barrier)
                return;
    spate_hidden_prune(weave->hidden, &weave->seen.snapshot);
    spate_snapshot_fini(&weave->seen.snapshot);
    weave->seen.set = false;
}

static void retire(struct spate_asked *asked, struct spate_slot *slot)
{
    for (struct spate_slot **at = &asked->slots; *at; at = &(*at)->next)
        if (*at == slot) {
            *at = slot->next;
            break;
        }
    spate_slot_free(slot);
}

/* The table is another one now: what was read of it and is not in the stream is thrown away. */
static void begin_anew(struct spate_weave *weave, struct spate_asked *asked, struct spate_asked_table *table)
{
    struct spate_slot **at = &asked->slots;

    while (*at) {
        struct spate_slot *slot = *at;

        if (slot->table != table || slot->reread) {
            at = &slot->next;
        } else if (slot->state == SPATE_SLOT_READING) {
            slot->discard = true;
            at = &slot->next;
        } else {
            *at = slot->next;
            spate_slot_free(slot);
        }
    }
    if (table->replanning)
        return;
    table->replanning = true;
    table->sent = false;
    weave->counts.restarted++;
    spate_log(
        SPATE_LOG_INFO, "snapshot-table-anew",
        "request=%s table=%.*s.%.*s text=\"it was truncated, rewritten or altered: read from its beginning\"",
        asked->id, SPATE_SLICE_ARG(table->plan->table->schema), SPATE_SLICE_ARG(table->plan->table->name));
    spate_desk_replan(weave->desk, asked->id, table->plan->table->schema, table->plan->table->name);
}

void spate_slot_keys(struct spate_slot *slot)
{
    struct spate_err ignored = {0};
    const struct spate_table *table = slot->table->plan->table;

    spate_buf_reset(&slot->keys_json);
    for (size_t i = 0; i < slot->key_count; i++) {
        spate_buf_putc(&slot->keys_json, i ? ',' : '[');
        if (spate_encode_key_values(&slot->keys_json, table, slot->keys + i * table->key_count, &ignored))
            spate_buf_puts(&slot->keys_json, "null"); /* the key was read from such an object */
    }
    spate_buf_putc(&slot->keys_json, ']');
}

/* The keys that were too many at once. */
static void split_keys(const struct spate_slot *slot, struct spate_slot *rest)
{
    const size_t width = slot->table->plan->table->key_count, done = (size_t)slot->job->reached;

    rest->by_keys = true;
    rest->reread = slot->reread;
    rest->width = slot->width;
    rest->key_count = slot->key_count - done;
    rest->keys = spate_arena_alloc(&rest->arena, rest->key_count * width * sizeof *rest->keys);
    for (size_t i = 0; i < rest->key_count * width; i++) {
        rest->keys[i] = slot->keys[done * width + i];
        rest->keys[i].text = spate_arena_copy(&rest->arena, rest->keys[i].text);
    }
    spate_slot_keys(rest);
}

/* The rest of what was too much at once. */
static void split(struct spate_weave *weave, struct spate_slot *slot)
{
    const uint64_t reached = slot->job->reached;
    struct spate_slot *rest;

    if (reached >= (slot->by_keys ? slot->key_count : slot->to))
        return;
    rest = spate_zalloc(sizeof *rest);
    rest->asked = slot->asked;
    rest->table = slot->table;
    rest->leaf = slot->leaf;
    rest->id = weave->next_id++;
    rest->next = slot->next;
    slot->next = rest;
    if (slot->by_keys) {
        split_keys(slot, rest);
        slot->key_count = (size_t)reached;
        spate_slot_keys(slot);
        return;
    }
    rest->from = reached;
    rest->to = slot->to;
    slot->to = reached;
}

/* What was given out reaches the leaf's end: the next one is next. */
static void leave_leaf(struct spate_asked_table *table)
{
    const uint64_t end = table->ends[table->leaf];

    if (end == 0 || table->next < end)
        return;
    table->leaf++;
    table->next = 0;
    table->read = table->leaf == table->plan->leaf_count;
}

/* The leaf's size, as its first chunk saw it: taken after R, so that what was written beyond it is in the
 * stream. The chunk may be read again and see another size: the first one stays. */
static void learn_end(struct spate_asked_table *table, const struct spate_slot *slot)
{
    uint64_t *end;

    if (slot->by_keys || table->ends[slot->leaf])
        return;
    end = &table->ends[slot->leaf];
    *end = SPATE_TID(slot->job->pages, 0);
    if (*end < slot->to)
        *end = slot->to;
    if (slot->leaf == table->leaf)
        leave_leaf(table);
}

static void was_read(struct spate_weave *weave, struct spate_slot *slot, int64_t now_ms)
{
    struct spate_asked *asked = slot->asked;
    struct spate_asked_table *table = slot->table;
    char why[200];
    uint32_t xid = 0;

    /* Delivered before the request began, so their keys are not known; a fixed set, so it comes to an end. */
    if (spate_hidden_missed(weave->hidden, &slot->job->snapshot, asked->from_lsn, &xid)) {
        bool earlier = spate_hidden_missed(weave->hidden, &slot->job->snapshot, 0, &xid);

        snprintf(why, sizeof why,
                 earlier ? "transaction %" PRIu32 " is not over, and an earlier session of the connector may "
                           "have delivered it (waits for a synchronous standby? pg_stat_activity.backend_xid)"
                         : "transaction %" PRIu32
                           " is committed and not visible yet (waits for a synchronous standby?)",
                 xid);
        spate_slot_again(weave, slot, now_ms, why);
        return;
    }
    slot->state = SPATE_SLOT_READY;
    asked->why[0] = 0;
    learn_end(table, slot);
    split(weave, slot);
    if (!slot->by_keys)
        spate_pace_learn(&table->pace, slot->job);
    weave->allowance -= (double)slot->job->row_count;
    SPATE_FAILPOINT(connector_chunk_ready);
}

static void take_slot(struct spate_weave *weave, struct spate_job *job, int64_t now_ms)
{
    struct spate_slot *slot = job->owner;
    struct spate_asked *asked = slot->asked;

    asked->out--;
    if (slot->discard || asked->dead) {
        spate_job_free(job);
        retire(asked, slot);
        return;
    }
    slot->job = job;
    switch (job->outcome) {
    case SPATE_JOB_DONE:
        remember_seen(weave, &job->snapshot);
        was_read(weave, slot, now_ms);
        return;
    case SPATE_JOB_CHANGED:
        if (slot->reread) { /* answered from the new table, once it is planned */
            spate_slot_again(weave, slot, now_ms + RETRY_MS, "the table was altered");
            begin_anew(weave, asked, slot->table);
            return;
        }
        slot->state = SPATE_SLOT_DUE;
        begin_anew(weave, asked, slot->table);
        return;
    case SPATE_JOB_BUSY: /* it held a reader for as long as it waited for its lock */
        slot->busy = slot->busy < 10 ? slot->busy + 1 : 10;
        spate_slot_again(weave, slot, now_ms + slot->busy * RETRY_MS, job->err.text);
        return;
    case SPATE_JOB_FAILED:
        break;
    }
    if (job->err.verdict == SPATE_RETRY) {
        spate_slot_again(weave, slot, now_ms + RETRY_MS, job->err.text);
        return;
    }
    spate_answer_refused(weave, asked->id, asked->sink, job->err.text,
                         "mend that on the source, and ask again: nothing that was sent is wrong");
    spate_desk_forget(weave->desk, asked->id);
    spate_weave_drop(weave, asked);
}

void spate_weave_jobs(struct spate_weave *weave, int64_t now_ms)
{
    struct spate_job *job;

    while (weave->readers && (job = spate_readers_take(weave->readers)) != NULL) {
        if (job->owner) {
            take_slot(weave, job, now_ms);
            continue;
        }
        if (job->from != weave->session) {
            spate_job_free(job); /* of the source as it was before */
            continue;
        }
        if (job->kind == SPATE_JOB_LOOK) {
            weave->looking = false;
            if (job->outcome == SPATE_JOB_DONE)
                remember_seen(weave, &job->snapshot);
        } else {
            weave->nudging = false;
            /* A standby, or no right to: the stream is asked for its position all the same. */
            weave->nudge_off |= job->outcome == SPATE_JOB_FAILED && job->err.verdict != SPATE_RETRY;
        }
        spate_job_free(job);
    }
    forget_seen(weave);
}

/* ---- what is read next ---- */

static bool may_read(struct spate_weave *weave, int64_t now_ms)
{
    const int64_t rate = weave->config->snapshots.rows_per_second;
    int64_t left_ms = 0;

    weave->held_ms = 0;
    if (!spate_permits_now(weave->config, spate_clock_wall_us(), &left_ms)) {
        weave->held_ms = now_ms + 1000;
        for (struct spate_asked *at = weave->asked; at; at = at->next)
            snprintf(at->why, sizeof at->why,
                     "outside the hours in which the connector's file lets rows be read (%s)",
                     weave->config->snapshots.hours);
        return false;
    }
    if (rate <= 0)
        return true;
    weave->allowance += (double)rate * (double)(now_ms - weave->allowance_ms) / 1000.0;
    weave->allowance_ms = now_ms;
    if (weave->allowance > (double)rate)
        weave->allowance = (double)rate;
    if (weave->allowance <= 0)
        weave->held_ms = now_ms + (int64_t)(-weave->allowance * 1000.0 / (double)rate) + 1;
    return weave->allowance > 0;
}

void spate_slot_append(struct spate_asked *asked, struct spate_slot *slot)
{
    struct spate_slot **at = &asked->slots;

    while (*at)
        at = &(*at)->next;
    *at = slot;
}

/* "= value" for every column of the key: one look-up. */
static void keys_from_conditions(struct spate_slot *slot, const struct spate_plan_table *plan)
{
    const struct spate_table *table = plan->table;

    slot->by_keys = true;
    slot->key_count = 1;
    slot->keys = spate_arena_alloc(&slot->arena, table->key_count * sizeof *slot->keys);
    for (size_t k = 0; k < table->key_count; k++)
        for (size_t c = 0; c < plan->where_count; c++)
            if (plan->where[c].column == table->key[k] && strcmp(plan->where[c].op, "=") == 0)
                slot->keys[k] = (struct spate_value){.kind = SPATE_VALUE_TEXT,
                                                     .text = spate_slice_str(plan->where[c].value)};
    spate_slot_keys(slot);
}

/* False: nothing of this request can be given out now. */
static bool next_slot(struct spate_weave *weave, struct spate_asked *asked)
{
    struct spate_asked_table *table;
    struct spate_slot *slot;

    while (asked->current < asked->count && asked->tables[asked->current].read &&
           !asked->tables[asked->current].replanning)
        asked->current++;
    if (asked->current == asked->count)
        return false;
    table = &asked->tables[asked->current];
    if (table->replanning || (table->next > 0 && !table->ends[table->leaf]))
        return false; /* the leaf's first chunk tells where it ends */
    slot = spate_zalloc(sizeof *slot);
    slot->asked = asked;
    slot->table = table;
    slot->leaf = table->leaf;
    slot->id = weave->next_id++;
    if (table->plan->by_key) {
        keys_from_conditions(slot, table->plan);
        table->read = true;
    } else {
        const uint64_t end = table->ends[table->leaf];

        slot->from = table->next;
        slot->to = ((table->next >> 16) + table->pace.pages) << 16;
        if (end && slot->to > end)
            slot->to = end;
        table->next = slot->to;
        leave_leaf(table);
    }
    spate_slot_append(asked, slot);
    return true;
}

static size_t count_slots(const struct spate_asked *asked)
{
    size_t count = 0;

    for (const struct spate_slot *slot = asked->slots; slot; slot = slot->next)
        count++;
    return count;
}

/* So many chunks are on their way that every reader is busy and one more is ready; requests share them, each
 * has one at least: none waits for another's end, or for another's locks. */
static void make_slots(struct spate_weave *weave)
{
    const size_t most = (size_t)weave->config->snapshots.parallel + 1;
    size_t live = 0, share;

    for (const struct spate_asked *at = weave->asked; at; at = at->next)
        live += !at->dead && at->begun;
    share = live > 0 && most / live > 0 ? most / live : 1;
    for (struct spate_asked *at = weave->asked; at; at = at->next)
        for (size_t count = count_slots(at); !at->dead && at->begun && count < share && next_slot(weave, at);)
            count++;
}

void spate_weave_schedule(struct spate_weave *weave, int64_t now_ms)
{
    bool asked = false;

    for (const struct spate_asked *at = weave->asked; at; at = at->next)
        asked |= !at->dead && at->begun;
    if (!asked || !may_read(weave, now_ms))
        return;
    make_slots(weave);
    for (struct spate_asked *at = weave->asked; at; at = at->next)
        for (struct spate_slot *slot = at->slots; slot && !at->dead; slot = slot->next)
            if (slot->state == SPATE_SLOT_DUE && slot->due_ms <= now_ms && !slot->table->replanning)
                submit_slot(weave, slot);
}
