/* connector/counter_work.c - what the desk does with the source: admits requests, plans tables anew, and
 * finds what an earlier session left behind. */
#include "connector/counter.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS   2000
#define IDLE_MS      60000 /* so long an unused connection is kept */
#define LOCK_MOST_MS 30000 /* so long somebody's lock is waited for, in all */
#define TRY_MS       1000
#define SOURCE_MS    2000 /* between two attempts to reach the source */
#define TELL_MS      5000
#define AGAIN_MS     100
#define LASTING_MS   2000 /* a transaction that holds its xid for so long is looked for in the log */

/* ---- the source ---- */

static enum spate_rc connect_source(struct spate_desk *desk, struct spate_err *err)
{
    const struct spate_connector_config *config = desk->config;
    char application[80];
    const struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    enum spate_rc rc = SPATE_OK;

    snprintf(application, sizeof application, "spate_%.50s_desk", config->name);
    desk->used_ms = spate_clock_ms();
    desk->conn_kept = desk->conn != NULL;
    if (desk->conn)
        return SPATE_OK;
    rc = spate_pg_connect(&where, CONNECT_MS, &desk->conn, err);
    if (rc == SPATE_OK)
        rc = spate_admission_prepare(desk->conn, err);
    return rc;
}

static void disconnect(struct spate_desk *desk)
{
    PQfinish(desk->conn);
    desk->conn = NULL;
}

/* The connection is of no more use. */
static void source_failed(struct spate_desk *desk, const struct spate_err *err)
{
    unsigned hidden = 0;

    disconnect(desk);
    if (desk->conn_kept && err->verdict == SPATE_RETRY)
        return; /* one that had been idle, and may have been dead for long: a new one may do */
    desk->source_ms = spate_clock_ms() + SOURCE_MS;
    if (spate_log_due(&desk->source_limit, spate_clock_ms(), 60000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "desk-source", err);
}

/* ---- what was delivered before ---- */

void spate_counter_before(struct spate_desk *desk, bool due)
{
    free(desk->running);
    desk->running = NULL;
    desk->before_due = due;
    desk->before_ms = 0;
}

/* Most are over in a moment: the log is only read for those that last. SPATE_AGAIN: wait a little. */
static enum spate_rc find_before(struct spate_desk *desk, struct spate_err *err)
{
    enum spate_rc rc;

    if (!desk->running) {
        rc = spate_rebuild_running(desk->conn, &desk->running, &desk->running_count, err);
        desk->running_ms = spate_clock_ms();
    } else {
        rc = spate_rebuild_still(desk->conn, desk->running, &desk->running_count, err);
    }
    if (rc != SPATE_OK || desk->running_count == 0)
        return rc;
    if (spate_clock_ms() - desk->running_ms < LASTING_MS)
        return SPATE_AGAIN;
    return spate_rebuild_scan(desk->bus, desk->stream, desk->epoch, desk->running, &desk->running_count, err);
}

static void answer_before(struct spate_desk *desk)
{
    struct spate_order *order = spate_zalloc(sizeof *order);

    order->kind = SPATE_ORDER_BEFORE;
    order->xids = spate_zalloc((desk->running_count + 1) * sizeof *order->xids);
    order->xid_count = desk->running_count;
    for (size_t i = 0; i < desk->running_count; i++)
        order->xids[i] = desk->running[i].xid;
    spate_desk_hand(desk, order);
    spate_counter_before(desk, false);
}

static void look_before(struct spate_desk *desk)
{
    struct spate_err err = {0};
    enum spate_rc rc = connect_source(desk, &err);

    if (rc == SPATE_OK)
        rc = find_before(desk, &err);
    desk->before_ms = spate_clock_ms() + AGAIN_MS;
    if (rc == SPATE_OK)
        answer_before(desk);
    else if (rc == SPATE_FAIL)
        source_failed(desk, &err); /* or the bus: both are tried again */
    else if (rc == SPATE_END)
        disconnect(desk);
}

/* ---- admission ---- */

static void tell_waiting(struct spate_desk *desk, struct spate_known *known, struct spate_slice why)
{
    int64_t now_ms = spate_clock_ms();

    if (known->told_ms && now_ms - known->told_ms < TELL_MS)
        return;
    known->told_ms = now_ms;
    spate_counter_tell(desk, spate_slice_str(known->sink), spate_slice_str(known->request), "waiting", why);
}

/* The request as it stands in the topic, planned. `only`: one table of it. The rules of
 * spate_admission_plan. */
static enum spate_rc plan(struct spate_desk *desk, struct spate_known *known, const struct spate_replan *only,
                          struct spate_plan **made, struct spate_refusal *refusal, struct spate_err *err)
{
    struct spate_control control;
    struct spate_control_table one = {0};
    enum spate_rc rc;

    *made = NULL;
    spate_arena_reset(&desk->arena);
    rc = spate_decode_control(spate_buf_view(&known->line), &control, &desk->arena, err);
    if (rc != SPATE_OK)
        return rc; /* it was decoded before */
    for (size_t i = 0; only && i < control.table_count; i++)
        if (spate_slice_is(control.tables[i].schema, only->schema) &&
            spate_slice_is(control.tables[i].table, only->table))
            one = control.tables[i];
    if (only) {
        one.resume = (struct spate_slice){0}; /* it begins anew */
        control.tables = &one;
        control.table_count = one.table.len > 0;
    }
    if (!spate_admission_may(desk->config, &control, refusal))
        return SPATE_OK;
    rc = connect_source(desk, err);
    if (rc == SPATE_OK)
        rc = spate_admission_plan(desk->config, desk->conn, &control, made, refusal, err);
    if (rc == SPATE_END)
        disconnect(desk); /* in the middle of something */
    desk->used_ms = spate_clock_ms();
    return rc;
}

static void refused(struct spate_desk *desk, struct spate_known *known, const struct spate_refusal *refusal)
{
    spate_counter_refuse(desk, spate_slice_str(known->sink), spate_slice_str(known->request), refusal);
}

/* The source did not answer. Unless a human has to mend it, it is tried again, and the requester told. */
static bool lasting(struct spate_desk *desk, struct spate_known *known, const struct spate_err *err,
                    struct spate_refusal *refusal)
{
    source_failed(desk, err);
    if (desk->conn_kept && err->verdict == SPATE_RETRY) {
        known->next_ms = 0;
        return false;
    }
    if (err->verdict == SPATE_RETRY) {
        tell_waiting(desk, known, spate_slice_str(err->text));
        return false;
    }
    spate_buf_reset(&refusal->reason);
    spate_buf_reset(&refusal->remedy);
    spate_buf_puts(&refusal->reason, err->text);
    spate_buf_puts(&refusal->remedy, "mend that on the source, then ask again");
    return true;
}

/* False: known is gone. */
static bool admit(struct spate_desk *desk, struct spate_known **link)
{
    struct spate_known *known = *link;
    struct spate_refusal refusal = {0};
    struct spate_err err = {0};
    struct spate_plan *made = NULL;
    enum spate_rc rc = plan(desk, known, NULL, &made, &refusal, &err);
    int64_t now_ms = spate_clock_ms();
    bool over = rc == SPATE_OK && !made;

    known->next_ms = now_ms + TRY_MS;
    if (made) {
        struct spate_order *order = spate_counter_order(SPATE_ORDER_REQUEST, known);

        order->plan = made;
        spate_desk_hand(desk, order);
        known->due = false;
        known->handed = true;
    } else if (rc == SPATE_AGAIN) {
        over = now_ms - known->since_ms > LOCK_MOST_MS;
        if (!over)
            tell_waiting(desk, known, spate_buf_view(&refusal.reason));
    } else if (rc == SPATE_FAIL) {
        over = lasting(desk, known, &err, &refusal);
    }
    if (over) {
        refused(desk, known, &refusal);
        if (known->handed) { /* it was asked again, and cannot be any more */
            struct spate_order *order = spate_counter_order(SPATE_ORDER_CANCEL, known);

            spate_desk_hand(desk, order);
        }
        spate_counter_drop(desk, link);
    }
    spate_refusal_fini(&refusal);
    return !over;
}

/* The same for tables that are other ones than when they were planned. Whoever holds the lock now, may: a
 * rewrite takes its time. */
static bool plan_anew(struct spate_desk *desk, struct spate_known **link)
{
    struct spate_known *known = *link;
    struct spate_replan *replan = known->replans;
    struct spate_refusal refusal = {0};
    struct spate_err err = {0};
    struct spate_plan *made = NULL;
    enum spate_rc rc = plan(desk, known, replan, &made, &refusal, &err);
    bool over = rc == SPATE_OK && !made;

    replan->next_ms = spate_clock_ms() + TRY_MS;
    if (rc == SPATE_AGAIN)
        tell_waiting(desk, known, spate_buf_view(&refusal.reason));
    else if (rc == SPATE_FAIL)
        over = lasting(desk, known, &err, &refusal);
    if (made || over) {
        struct spate_order *order = spate_counter_order(SPATE_ORDER_REPLAN, known);

        order->plan = made;
        order->schema = spate_strdup(replan->schema);
        order->table = spate_strdup(replan->table);
        if (over) {
            order->why = spate_strndup(refusal.reason.len ? refusal.reason.data : "", refusal.reason.len);
            refused(desk, known, &refusal);
        }
        spate_desk_hand(desk, order);
        known->replans = replan->next;
        spate_counter_replanned(replan);
    }
    if (over)
        spate_counter_drop(desk, link);
    spate_refusal_fini(&refusal);
    return !over;
}

void spate_counter_replan(struct spate_desk *desk, const struct spate_errand *errand)
{
    struct spate_known *known = *spate_counter_find(desk, spate_slice_str(errand->request));
    struct spate_replan **link, *replan;

    if (!known)
        return; /* forgotten meanwhile */
    for (link = &known->replans; *link; link = &(*link)->next)
        if (!strcmp((*link)->schema, errand->schema) && !strcmp((*link)->table, errand->table))
            return;
    replan = spate_zalloc(sizeof *replan);
    replan->schema = spate_strdup(errand->schema);
    replan->table = spate_strdup(errand->table);
    *link = replan;
}

void spate_counter_work(struct spate_desk *desk)
{
    int64_t now_ms = spate_clock_ms();

    if (desk->conn && now_ms - desk->used_ms > IDLE_MS)
        disconnect(desk);
    if (spate_signals_stop() || now_ms < desk->source_ms)
        return;
    if (desk->before_due && now_ms >= desk->before_ms)
        look_before(desk);
    for (struct spate_known **link = &desk->known; *link && !atomic_load(&desk->stopping);) {
        bool stays = true;

        now_ms = spate_clock_ms();
        if (now_ms < desk->source_ms)
            return;
        if ((*link)->due && now_ms >= (*link)->next_ms)
            stays = admit(desk, link);
        else if ((*link)->replans && now_ms >= (*link)->replans->next_ms)
            stays = plan_anew(desk, link);
        if (stays)
            link = &(*link)->next;
    }
}
