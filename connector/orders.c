/* connector/orders.c - what requesters want, as the desk hands it in: requests begin, go on, and are over. */
#include "connector/relation.h"
#include "connector/woven.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_REQUESTS 64

/* ---- watches: tables whose keys H remembers ---- */

static uint32_t watch(struct spate_weave *weave, const struct spate_table *table)
{
    struct spate_watch *w;

    weave->memo.table = NULL;
    for (size_t i = 0; i < weave->watch_count; i++) {
        w = &weave->watches[i];
        if (spate_slice_is(table->schema, w->schema) && spate_slice_is(table->name, w->name)) {
            w->users++;
            return w->number;
        }
    }
    weave->watches = spate_realloc(weave->watches, (weave->watch_count + 1) * sizeof *weave->watches);
    w = &weave->watches[weave->watch_count++];
    *w = (struct spate_watch){.schema = spate_strndup(table->schema.at, table->schema.len),
                              .name = spate_strndup(table->name.at, table->name.len),
                              .number = weave->next_watch++,
                              .users = 1};
    return w->number;
}

static void unwatch(struct spate_weave *weave, uint32_t number)
{
    weave->memo.table = NULL;
    for (size_t i = 0; i < weave->watch_count; i++) {
        struct spate_watch *w = &weave->watches[i];

        if (w->number != number || --w->users > 0)
            continue;
        spate_hidden_forget(weave->hidden, number);
        free(w->schema);
        free(w->name);
        *w = weave->watches[--weave->watch_count];
        return;
    }
}

/* ---- requests ---- */

static struct spate_asked *find(struct spate_weave *weave, const char *id)
{
    for (struct spate_asked *at = weave->asked; at; at = at->next)
        if (!at->dead && strcmp(at->id, id) == 0)
            return at;
    return NULL;
}

bool spate_asked_all_sent(const struct spate_asked *asked)
{
    for (size_t i = 0; i < asked->count; i++)
        if (!asked->tables[i].sent || asked->tables[i].replanning)
            return false;
    return asked->begun;
}

void spate_weave_drop(struct spate_weave *weave, struct spate_asked *asked)
{
    struct spate_slot **at = &asked->slots;

    if (asked->dead)
        return;
    asked->dead = true;
    if (weave->emit.headed && weave->emit.slot->asked == asked) {
        weave->emit.headed =
            false; /* half a chunk stands in the stream: readers count its rows, and drop it */
        weave->emit.slot = NULL;
    }
    while (*at) {
        struct spate_slot *slot = *at;

        if (slot->state == SPATE_SLOT_READING) { /* its job points at it */
            slot->discard = true;
            at = &slot->next;
            continue;
        }
        *at = slot->next;
        spate_slot_free(slot);
    }
    for (size_t i = 0; i < asked->count; i++)
        unwatch(weave, asked->tables[i].watch);
}

void spate_weave_end(struct spate_weave *weave, struct spate_asked *asked, const char *state, int64_t now_ms)
{
    spate_answer_over(weave, asked, state, now_ms);
    spate_desk_forget(weave->desk, asked->id);
    spate_weave_drop(weave, asked);
}

static void asked_free(struct spate_asked *asked)
{
    while (asked->slots) {
        struct spate_slot *slot = asked->slots;

        asked->slots = slot->next;
        spate_slot_free(slot);
    }
    for (size_t i = 0; i < asked->count; i++) {
        free(asked->tables[i].token);
        free(asked->tables[i].ends);
    }
    for (size_t i = 0; i < asked->old_count; i++)
        spate_plan_free(asked->old_plans[i]);
    free(asked->old_plans);
    spate_plan_free(asked->plan);
    free(asked->tables);
    free(asked->id);
    free(asked->sink);
    free(asked);
}

void spate_weave_sift(struct spate_weave *weave)
{
    struct spate_asked **at = &weave->asked;

    while (*at) {
        struct spate_asked *asked = *at;

        if (!asked->dead || asked->out > 0) {
            at = &asked->next;
            continue;
        }
        *at = asked->next;
        asked_free(asked);
    }
}

/* The table as it is now, from its beginning. */
static enum spate_rc set_plan(struct spate_stream *stream, struct spate_asked_table *table,
                              struct spate_plan_table *plan, struct spate_err *err)
{
    enum spate_rc rc = spate_stream_version(stream, plan->cover, &table->version, err);

    if (rc != SPATE_OK)
        return rc;
    table->plan = plan;
    table->leaf = table->sent_leaf = 0;
    table->next = table->sent_next = 0;
    free(table->ends);
    table->ends = spate_zalloc((plan->leaf_count + 1) * sizeof *table->ends);
    table->read = table->sent = plan->leaf_count == 0;
    table->rows = 0;
    free(table->token);
    table->token = spate_strdup("");
    spate_pace_start(&table->pace);
    return SPATE_OK;
}

static void tell_anew(struct spate_weave *weave, const char *id, const struct spate_table *table)
{
    weave->counts.restarted++;
    spate_log(
        SPATE_LOG_INFO, "snapshot-table-anew",
        "request=%s table=%.*s.%.*s text=\"it was truncated, rewritten or altered: read from its beginning\"",
        id, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
}

/* Another table under the same name (a swap by renaming, DROP and CREATE), or other partitions: the stream
 * says nothing of the rows that went with them, and those of them that were sent already would stay for ever.
 * Only a new request begins a new generation. */
static void end_replaced(struct spate_weave *weave, struct spate_asked *asked, int64_t now_ms)
{
    snprintf(asked->why, sizeof asked->why,
             "a table was replaced while it was read (renamed, or dropped and made again, or a partition): "
             "ask again "
             "with a new request");
    spate_weave_end(weave, asked, "replaced", now_ms);
}

static enum spate_rc take_request(struct spate_weave *weave, struct spate_stream *stream,
                                  struct spate_order *order, int64_t now_ms, struct spate_err *err)
{
    struct spate_plan *plan = order->plan;
    struct spate_asked *asked = spate_zalloc(sizeof *asked), **last = &weave->asked;
    enum spate_rc rc = SPATE_OK;
    bool other = false;

    order->plan = NULL;
    asked->plan = plan;
    asked->id = spate_strdup(plan->request);
    asked->sink = spate_strdup(plan->sink);
    asked->tables = spate_zalloc((plan->count + 1) * sizeof *asked->tables);
    asked->began_ms = asked->heard_ms = now_ms;
    asked->told_state = "";
    for (size_t i = 0; rc == SPATE_OK && i < plan->count; i++) {
        struct spate_asked_table *table = &asked->tables[i];

        rc = set_plan(stream, table, &plan->tables[i], err);
        if (rc != SPATE_OK)
            break;
        table->watch = watch(weave, plan->tables[i].table);
        table->no = plan->tables[i].chunk;
        asked->count = i + 1;
        switch (spate_token_read(table, plan->tables[i].resume)) {
        case SPATE_TOKEN_FITS:
            free(table->token);
            table->token = spate_strdup(plan->tables[i].resume);
            break;
        case SPATE_TOKEN_ANEW:
            if (plan->tables[i].resume[0])
                tell_anew(weave, asked->id, plan->tables[i].table);
            break;
        case SPATE_TOKEN_REPLACED:
            other = true;
            break;
        }
    }
    while (*last)
        last = &(*last)->next;
    *last = asked;
    if (rc != SPATE_OK) {
        spate_weave_drop(weave, asked);
        return rc;
    }
    if (other)
        end_replaced(weave, asked, now_ms);
    else
        spate_answer_accepted(weave, asked);
    return SPATE_OK;
}

/* A requester has one request at a time: a sink that was started again before it heard of its first one does
 * not know that one's id any more. */
static void supersede(struct spate_weave *weave, const char *sink, int64_t now_ms)
{
    for (struct spate_asked *at = weave->asked; at; at = at->next) {
        if (at->dead || strcmp(at->sink, sink) != 0)
            continue;
        spate_weave_end(weave, at, "cancelled", now_ms);
    }
}

static enum spate_rc on_request(struct spate_weave *weave, struct spate_stream *stream,
                                struct spate_order *order, int64_t now_ms, struct spate_err *err)
{
    struct spate_asked *known = find(weave, order->request);
    size_t active = 0;

    if (known && strcmp(known->sink, order->sink) != 0) {
        spate_answer_refused(weave, order->request, order->sink,
                             "a request with this id is under way for another name",
                             "give the request an id of its own");
        return SPATE_OK;
    }
    if (known && !order->plan->again) {
        known->heard_ms = now_ms;
        spate_answer_accepted(weave, known);
        return SPATE_OK;
    }
    if (known)
        spate_weave_drop(weave, known);
    supersede(weave, order->sink, now_ms);
    for (const struct spate_asked *at = weave->asked; at; at = at->next)
        active += !at->dead;
    if (active >= MOST_REQUESTS) {
        spate_answer_refused(weave, order->request, order->sink, "too many requests are under way",
                             "ask again when one of them is over: spate snapshot --list");
        spate_desk_forget(weave->desk, order->request);
        return SPATE_OK;
    }
    return take_request(weave, stream, order, now_ms, err);
}

static struct spate_asked_table *table_of(struct spate_asked *asked, struct spate_slice schema,
                                          struct spate_slice name)
{
    for (size_t i = 0; i < asked->count; i++)
        if (spate_slice_eq(asked->tables[i].plan->table->schema, schema) &&
            spate_slice_eq(asked->tables[i].plan->table->name, name))
            return &asked->tables[i];
    return NULL;
}

/* Keys that were to be read again, of a table whose key is another one now: they are asked for anew. */
static void drop_misfits(struct spate_asked *asked, const struct spate_asked_table *table)
{
    struct spate_slot **at = &asked->slots;

    while (*at) {
        struct spate_slot *slot = *at;

        if (slot->table != table || !slot->reread || slot->state == SPATE_SLOT_READING ||
            slot->width == table->plan->table->key_count) {
            at = &slot->next;
            continue;
        }
        *at = slot->next;
        spate_slot_free(slot);
    }
}

/* A rewrite or a TRUNCATE keeps the oid. */
static bool replaced(const struct spate_plan_table *was, const struct spate_plan_table *is)
{
    for (size_t i = 0; i < was->leaf_count; i++) {
        size_t k = 0;

        while (k < is->leaf_count && is->leaves[k].oid != was->leaves[i].oid)
            k++;
        if (k == is->leaf_count)
            return true;
    }
    return false;
}

/* The desk has looked at the table again. Without a plan the requester was told already. */
static enum spate_rc on_replan(struct spate_weave *weave, struct spate_stream *stream,
                               struct spate_order *order, int64_t now_ms, struct spate_err *err)
{
    struct spate_asked *asked = find(weave, order->request);
    struct spate_asked_table *table;
    enum spate_rc rc;

    if (!asked)
        return SPATE_OK;
    if (!order->plan || order->plan->count != 1) {
        spate_weave_drop(weave, asked);
        return SPATE_OK;
    }
    table = table_of(asked, order->plan->tables[0].table->schema, order->plan->tables[0].table->name);
    if (!table || !table->replanning)
        return SPATE_OK;
    if (replaced(table->plan, &order->plan->tables[0])) {
        end_replaced(weave, asked, now_ms);
        return SPATE_OK;
    }
    rc = set_plan(stream, table, &order->plan->tables[0], err);
    if (rc != SPATE_OK)
        return rc;
    asked->old_plans = spate_realloc(asked->old_plans, (asked->old_count + 1) * sizeof(void *));
    asked->old_plans[asked->old_count++] = order->plan;
    order->plan = NULL;
    table->replanning = false;
    drop_misfits(asked, table);
    asked->ranges_end = false;
    if ((size_t)(table - asked->tables) < asked->current)
        asked->current = (size_t)(table - asked->tables);
    return SPATE_OK;
}

/* Keys that were updated in part while their rows were nowhere to be found (P94). */
static void on_reread(struct spate_weave *weave, const struct spate_order *order, int64_t now_ms)
{
    struct spate_asked *asked = find(weave, order->request);
    struct spate_asked_table *table;
    struct spate_slot *slot;
    struct spate_err why = {0};
    struct spate_slice keys;

    if (!asked)
        return; /* it sends its request again when it hears nothing */
    asked->heard_ms = now_ms;
    table = table_of(asked, spate_slice_str(order->schema), spate_slice_str(order->table));
    slot = spate_zalloc(sizeof *slot);
    keys = spate_arena_copy(&slot->arena, spate_slice_str(order->keys)); /* the order goes, the slot stays */
    if (!table || spate_decode_keys(keys, table->version, &slot->keys, &slot->key_count, &slot->arena,
                                    &why) != SPATE_OK) {
        spate_answer_refused(weave, asked->id, asked->sink,
                             table ? why.text : "reread names a table that the request does not",
                             "name a table of the request, and all columns of its key for each of `keys`");
        spate_slot_free(slot);
        return;
    }
    slot->asked = asked;
    slot->table = table;
    slot->by_keys = slot->reread = true;
    slot->width = table->version->key_count;
    slot->due_ms = now_ms;
    slot->id = weave->next_id++;
    spate_slot_keys(slot);
    if (order->chunk > table->no)
        table->no = order->chunk;
    asked->rereading = true;
    spate_slot_append(asked, slot);
}

static void on_over(struct spate_weave *weave, const struct spate_order *order, const char *state,
                    int64_t now_ms)
{
    struct spate_asked *asked = find(weave, order->request);

    if (asked)
        spate_weave_end(weave, asked, state, now_ms);
    else
        spate_desk_forget(weave->desk, order->request);
}

enum spate_rc spate_weave_orders(struct spate_weave *weave, struct spate_stream *stream, int64_t now_ms,
                                 struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;
    struct spate_order *order;

    while (rc == SPATE_OK && !weave->emit.headed && (order = spate_desk_take(weave->desk)) != NULL) {
        switch (order->kind) {
        case SPATE_ORDER_REQUEST:
            rc = on_request(weave, stream, order, now_ms, err);
            break;
        case SPATE_ORDER_REPLAN:
            rc = on_replan(weave, stream, order, now_ms, err);
            break;
        case SPATE_ORDER_CANCEL:
            on_over(weave, order, "cancelled", now_ms);
            break;
        case SPATE_ORDER_REREAD:
            on_reread(weave, order, now_ms);
            break;
        case SPATE_ORDER_FINISHED:
            on_over(weave, order, "finished", now_ms);
            break;
        case SPATE_ORDER_BEFORE:
            if (order->session == weave->session && !weave->before_known) {
                spate_order_free(weave->before);
                weave->before = order;
                order = NULL;
            }
            break;
        }
        spate_order_free(order);
    }
    return rc;
}
