/* connector/counter.c - requests heard, checked, answered and handed over. */
#include "connector/counter.h"

#include "core/alloc.h"
#include "core/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What nobody answered for so long, nobody waits for. */
#define OLD_US       INT64_C(3600000000)
#define UNHEARD_MOST 256

/* ---- answers ---- */

static void send(struct spate_desk *desk, const struct spate_control *control)
{
    struct spate_buf line = {0};

    spate_encode_control(&line, control);
    spate_desk_send(desk, spate_buf_view(&line));
    spate_buf_fini(&line);
}

static struct spate_control answer(const struct spate_desk *desk, enum spate_control_op op,
                                   struct spate_slice to, struct spate_slice request)
{
    return (struct spate_control){.op = op,
                                  .to = to,
                                  .request = request,
                                  .wall_us = spate_clock_wall_us(),
                                  .source = spate_slice_str(desk->config->name),
                                  .left_s = -1};
}

static void refuse(struct spate_desk *desk, struct spate_slice to, struct spate_slice request,
                   struct spate_slice reason, struct spate_slice remedy)
{
    struct spate_control control = answer(desk, SPATE_CONTROL_REFUSED, to, request);
    char name[160], who[160], why[900], mend[900], text[900];
    unsigned hidden = 0;

    control.reason = reason;
    control.remedy = remedy;
    send(desk, &control);
    if (!spate_log_due(&desk->refusal_limit, spate_clock_ms(), 1000, &hidden))
        return;
    snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(request));
    spate_log_quote(name, sizeof name, text);
    snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(to));
    spate_log_quote(who, sizeof who, text);
    snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(reason));
    spate_log_quote(why, sizeof why, text);
    snprintf(text, sizeof text, "%.*s", SPATE_SLICE_ARG(remedy));
    spate_log(SPATE_LOG_WARN, "snapshot-refused", "request=%s to=%s reason=%s remedy=%s unsaid=%u", name, who,
              why, spate_log_quote(mend, sizeof mend, text), hidden);
}

void spate_counter_refuse(struct spate_desk *desk, struct spate_slice to, struct spate_slice request,
                          const struct spate_refusal *refusal)
{
    refuse(desk, to, request, spate_buf_view(&refusal->reason), spate_buf_view(&refusal->remedy));
}

void spate_counter_tell(struct spate_desk *desk, struct spate_slice to, struct spate_slice request,
                        const char *state, struct spate_slice why)
{
    struct spate_control control = answer(desk, SPATE_CONTROL_PROGRESS, to, request);

    control.state = spate_slice_str(state);
    control.why = why;
    send(desk, &control);
}

void spate_counter_started(struct spate_desk *desk)
{
    struct spate_control control =
        answer(desk, SPATE_CONTROL_STARTED, (struct spate_slice){0}, (struct spate_slice){0});

    control.epoch = desk->epoch;
    send(desk, &control);
}

/* ---- what is known ---- */

struct spate_known **spate_counter_find(struct spate_desk *desk, struct spate_slice request)
{
    struct spate_known **link = &desk->known;

    while (*link && !spate_slice_is(request, (*link)->request))
        link = &(*link)->next;
    return link;
}

void spate_counter_replanned(struct spate_replan *replan)
{
    free(replan->schema);
    free(replan->table);
    free(replan);
}

void spate_counter_drop(struct spate_desk *desk, struct spate_known **link)
{
    struct spate_known *known = *link;

    *link = known->next;
    desk->known_count--;
    while (known->replans) {
        struct spate_replan *next = known->replans->next;

        spate_counter_replanned(known->replans);
        known->replans = next;
    }
    free(known->request);
    free(known->sink);
    spate_buf_fini(&known->line);
    spate_buf_fini(&known->accepted);
    free(known);
}

static const char *ended_as(const struct spate_desk *desk, struct spate_slice request)
{
    for (size_t i = 0; i < SPATE_DESK_ENDED; i++)
        if (desk->ended[i].request && spate_slice_is(request, desk->ended[i].request))
            return desk->ended[i].state;
    return NULL;
}

static void end(struct spate_desk *desk, struct spate_slice request, const char *state)
{
    if (ended_as(desk, request))
        return;
    free(desk->ended[desk->ended_next].request);
    desk->ended[desk->ended_next].request = spate_strndup(request.at, request.len);
    desk->ended[desk->ended_next].state = state;
    desk->ended_next = (desk->ended_next + 1) % SPATE_DESK_ENDED;
}

static void unend(struct spate_desk *desk, struct spate_slice request)
{
    for (size_t i = 0; i < SPATE_DESK_ENDED; i++)
        if (desk->ended[i].request && spate_slice_is(request, desk->ended[i].request)) {
            free(desk->ended[i].request);
            desk->ended[i].request = NULL;
        }
}

void spate_counter_forget(struct spate_desk *desk, const char *request)
{
    struct spate_known **link = spate_counter_find(desk, spate_slice_str(request));

    if (*link && (*link)->due)
        (*link)->handed = false; /* it was asked again meanwhile */
    else if (*link)
        spate_counter_drop(desk, link);
}

void spate_counter_leave(struct spate_desk *desk)
{
    for (struct spate_known **link = &desk->known; *link;)
        if ((*link)->handed)
            spate_counter_drop(desk, link); /* its requester sends it again when it sees `started` */
        else
            link = &(*link)->next;
}

char *spate_counter_passes(struct spate_desk *desk, struct spate_slice line)
{
    static const char *const passing[] = {"waiting", "reading", "sent", "rereading"};
    struct spate_err ignored = {0};
    struct spate_control control;
    struct spate_known *known;

    spate_arena_reset(&desk->passing);
    if (spate_decode_control(line, &control, &desk->passing, &ignored) != SPATE_OK)
        return NULL;
    known = *spate_counter_find(desk, control.request);
    if (control.op == SPATE_CONTROL_ACCEPTED && known) {
        spate_buf_reset(&known->accepted);
        spate_buf_slice(&known->accepted, line);
    }
    if (control.op != SPATE_CONTROL_PROGRESS)
        return NULL;
    if (spate_slice_is(control.state, "finished"))
        end(desk, control.request, "finished");
    else if (spate_slice_is(control.state, "cancelled"))
        end(desk, control.request, "cancelled");
    for (size_t i = 0; i < SPATE_COUNT(passing); i++) /* an end is never left out */
        if (spate_slice_is(control.state, passing[i]))
            return spate_strndup(control.request.at, control.request.len);
    return NULL;
}

/* ---- hearing ---- */

static bool has_tokens(const struct spate_control *control)
{
    for (size_t i = 0; i < control->table_count; i++)
        if (control->tables[i].resume.len || control->tables[i].chunk)
            return true;
    return false;
}

static void take_line(struct spate_known *known, struct spate_slice line)
{
    spate_buf_reset(&known->line);
    spate_buf_slice(&known->line, line);
    known->due = true;
    known->since_ms = spate_clock_ms();
    known->next_ms = 0;
    known->told_ms = 0;
}

/* A requester has one request at a time: one that was restarted before it heard an answer asks with another
 * id. The data plane sees to those that it has. */
static void supersede(struct spate_desk *desk, struct spate_slice sink)
{
    for (struct spate_known **link = &desk->known; *link;) {
        struct spate_known *known = *link;

        if (known->handed || !spate_slice_is(sink, known->sink)) {
            link = &known->next;
            continue;
        }
        spate_counter_tell(desk, sink, spate_slice_str(known->request), "cancelled",
                           spate_slice_str("the same requester sent another request"));
        spate_counter_drop(desk, link);
    }
}

static void hear_new(struct spate_desk *desk, const struct spate_control *control, struct spate_slice line)
{
    struct spate_refusal refusal = {0};

    supersede(desk, control->sink);
    if (desk->known_count >= SPATE_DESK_KNOWN) {
        refuse(desk, control->sink, control->request,
               spate_slice_str("64 requests are being answered, and more are not held"),
               spate_slice_str(
                   "ask again when some are finished (spate snapshot --list), or put more tables into one "
                   "request"));
    } else if (!spate_admission_may(desk->config, control, &refusal)) {
        spate_counter_refuse(desk, control->sink, control->request, &refusal);
    } else {
        struct spate_known *known = spate_zalloc(sizeof *known);

        known->request = spate_strndup(control->request.at, control->request.len);
        known->sink = spate_strndup(control->sink.at, control->sink.len);
        take_line(known, line);
        known->next = NULL;
        *spate_counter_find(desk, control->request) = known; /* at the end: first come, first served */
        desk->known_count++;
        unend(desk, control->request);
    }
    spate_refusal_fini(&refusal);
}

static void hear_request(struct spate_desk *desk, const struct spate_control *control,
                         struct spate_slice line)
{
    struct spate_known *known = *spate_counter_find(desk, control->request);
    const char *state = ended_as(desk, control->request);

    if (known && !spate_slice_is(control->sink, known->sink)) {
        refuse(desk, control->sink, control->request,
               spate_slice_str("another requester uses this id for a request that is being answered"),
               spate_slice_str("give each request an id of its own, such as a UUID"));
    } else if (known && control->again) {
        take_line(known, line);
    } else if (known) {
        if (known->accepted.len) /* the same request twice: nothing restarts */
            spate_desk_send(desk, spate_buf_view(&known->accepted));
    } else if (state && !control->again && !has_tokens(control)) {
        spate_counter_tell(desk, control->sink, control->request, state, (struct spate_slice){0});
    } else {
        hear_new(desk, control, line);
    }
}

struct spate_order *spate_counter_order(enum spate_order_kind kind, const struct spate_known *known)
{
    struct spate_order *order = spate_zalloc(sizeof *order);

    order->kind = kind;
    order->request = spate_strdup(known->request);
    order->sink = spate_strdup(known->sink);
    return order;
}

/* What is about a request that is known, or was. */
static void hear_about(struct spate_desk *desk, const struct spate_control *control)
{
    struct spate_known **link = spate_counter_find(desk, control->request), *known = *link;
    const char *state = ended_as(desk, control->request);
    struct spate_order *order;

    if (!known && control->op == SPATE_CONTROL_CANCEL) {
        if (state)
            spate_counter_tell(desk, control->sink, control->request, state, (struct spate_slice){0});
        else
            refuse(
                desk, control->sink, control->request,
                spate_slice_str("no request with this id is being answered"),
                spate_slice_str("it may be over, or its requester has not sent it again since the connector "
                                "was restarted; spate snapshot --list shows what there is"));
        return;
    }
    if (!known)
        return; /* its requester hears nothing, and sends the request again */
    if (control->op == SPATE_CONTROL_CANCEL && !known->handed) {
        spate_counter_tell(desk, spate_slice_str(known->sink), control->request, "cancelled",
                           (struct spate_slice){0});
        spate_counter_drop(desk, link);
        return;
    }
    order = spate_counter_order(control->op == SPATE_CONTROL_CANCEL     ? SPATE_ORDER_CANCEL
                                : control->op == SPATE_CONTROL_FINISHED ? SPATE_ORDER_FINISHED
                                                                        : SPATE_ORDER_REREAD,
                                known);
    if (control->op == SPATE_CONTROL_REREAD) {
        order->schema = spate_strndup(control->schema.at, control->schema.len);
        order->table = spate_strndup(control->table.at, control->table.len);
        order->keys = spate_strndup(control->keys.at, control->keys.len);
        order->chunk = control->chunk;
    } else {
        known->due = false;
    }
    spate_desk_hand(desk, order);
    if (control->op != SPATE_CONTROL_REREAD && !known->handed)
        spate_counter_drop(desk, link);
}

static void hear_malformed(struct spate_desk *desk, const struct spate_control *control,
                           const struct spate_err *err)
{
    static const char *const remedy[] = {
        "write it as docs/message-format.md says; schemas/control.schema.json checks it beforehand",
        "update the connector, or write \"spate\":1"};
    unsigned hidden = 0;

    if (control->op >= SPATE_CONTROL_STARTED && control->op != SPATE_CONTROL_UNKNOWN)
        return; /* an answer: not for us, whatever it looks like */
    if (control->to.len)
        return;
    if (control->request.len && control->sink.len)
        refuse(desk, control->sink, control->request, spate_slice_str(err->text),
               spate_slice_str(remedy[err->verdict == SPATE_FATAL]));
    else if (spate_log_due(&desk->foreign_limit, spate_clock_ms(), 10000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "control-unreadable", err);
}

static void hear_now(struct spate_desk *desk, struct spate_slice line)
{
    struct spate_err err = {0};
    struct spate_control control;

    spate_arena_reset(&desk->arena);
    if (spate_decode_control(line, &control, &desk->arena, &err) != SPATE_OK) {
        hear_malformed(desk, &control, &err);
        return;
    }
    switch (control.op) {
    case SPATE_CONTROL_REQUEST:
        if (control.to.len == 0) /* else for the sink of that name */
            hear_request(desk, &control, line);
        break;
    case SPATE_CONTROL_CANCEL:
    case SPATE_CONTROL_REREAD:
    case SPATE_CONTROL_FINISHED:
        hear_about(desk, &control);
        break;
    case SPATE_CONTROL_STARTED:
    case SPATE_CONTROL_ACCEPTED:
    case SPATE_CONTROL_REFUSED:
    case SPATE_CONTROL_PROGRESS:
    case SPATE_CONTROL_UNKNOWN:
        break;
    }
}

/* ---- what was said while nobody listened ---- */

static void unheard_remove(struct spate_desk *desk, struct spate_slice request)
{
    struct spate_unheard **link = &desk->unheard;

    while (*link && !spate_slice_is(request, (*link)->request))
        link = &(*link)->next;
    if (*link) {
        struct spate_unheard *gone = *link;

        *link = gone->next;
        desk->unheard_count--;
        free(gone->request);
        spate_buf_fini(&gone->line);
        free(gone);
    }
}

static void unheard_add(struct spate_desk *desk, struct spate_slice request, struct spate_slice line,
                        int64_t ts_us)
{
    struct spate_unheard *new = spate_zalloc(sizeof *new), **end_of = &desk->unheard;

    unheard_remove(desk, request);
    if (desk->unheard_count >= UNHEARD_MOST) /* the oldest first: it may be answered, or given up */
        unheard_remove(desk, spate_slice_str(desk->unheard->request));
    new->request = spate_strndup(request.at, request.len);
    new->ts_us = ts_us;
    spate_buf_slice(&new->line, line);
    while (*end_of)
        end_of = &(*end_of)->next;
    *end_of = new;
    desk->unheard_count++;
}

static void hear_later(struct spate_desk *desk, struct spate_slice line, int64_t ts_us)
{
    struct spate_err ignored = {0};
    struct spate_control control;
    enum spate_rc rc;

    if (ts_us && ts_us < spate_clock_wall_us() - OLD_US)
        return; /* the topic may hold a week of them */
    spate_arena_reset(&desk->arena);
    rc = spate_decode_control(line, &control, &desk->arena, &ignored);
    if (control.request.len == 0)
        return;
    if (control.op == SPATE_CONTROL_REQUEST && control.to.len == 0) {
        unheard_add(desk, control.request, line, ts_us ? ts_us : control.wall_us);
        return;
    }
    if (rc != SPATE_OK)
        return;
    if (control.op == SPATE_CONTROL_CANCEL)
        end(desk, control.request, "cancelled");
    else if (control.op == SPATE_CONTROL_FINISHED)
        end(desk, control.request, "finished");
    else if (control.op == SPATE_CONTROL_REQUEST || control.op == SPATE_CONTROL_REREAD)
        return;
    unheard_remove(desk, control.request); /* answered, or over */
}

void spate_counter_hear(struct spate_desk *desk, struct spate_slice line, int64_t ts_us)
{
    if (desk->catching_up)
        hear_later(desk, line, ts_us);
    else
        hear_now(desk, line);
}

void spate_counter_caught_up(struct spate_desk *desk)
{
    int64_t oldest_us = spate_clock_wall_us() - OLD_US;

    while (desk->unheard) {
        struct spate_unheard *first = desk->unheard;

        desk->unheard = first->next;
        desk->unheard_count--;
        if (first->ts_us >= oldest_us)
            hear_now(desk, spate_buf_view(&first->line));
        free(first->request);
        spate_buf_fini(&first->line);
        free(first);
    }
}

void spate_counter_fini(struct spate_desk *desk)
{
    PQfinish(desk->conn);
    free(desk->running);
    while (desk->known)
        spate_counter_drop(desk, &desk->known);
    while (desk->unheard)
        unheard_remove(desk, spate_slice_str(desk->unheard->request));
    for (size_t i = 0; i < SPATE_DESK_ENDED; i++)
        free(desk->ended[i].request);
    spate_arena_fini(&desk->arena);
    spate_arena_fini(&desk->passing);
}
