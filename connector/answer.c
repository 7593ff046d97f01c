/* connector/answer.c - what requesters are told on `_control`. */
#include "connector/woven.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "schemas/control.h"

#include <inttypes.h>
#include <stdlib.h>

#define TELL_MS 1000  /* while something moves */
#define CALM_MS 10000 /* and while nothing does */

static void say(struct spate_weave *weave, const struct spate_control *control)
{
    struct spate_buf line = {0};

    spate_encode_control(&line, control);
    spate_desk_say(weave->desk, spate_buf_view(&line));
    spate_buf_fini(&line);
}

static struct spate_control answer(const struct spate_weave *weave, enum spate_control_op op, const char *id,
                                   const char *sink)
{
    return (struct spate_control){
        .op = op,
        .to = spate_slice_str(sink),
        .request = spate_slice_str(id),
        .wall_us = spate_clock_wall_us(),
        .source = spate_slice_str(weave->config->name),
        .left_s = -1,
    };
}

static uint64_t pages_of(const struct spate_plan_table *plan)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < plan->leaf_count; i++)
        pages += plan->leaves[i].pages;
    return pages;
}

static uint64_t rows_of(const struct spate_plan_table *plan)
{
    double rows = 0;

    for (size_t i = 0; i < plan->leaf_count; i++)
        rows += plan->leaves[i].rows > 0 ? plan->leaves[i].rows : 0;
    return (uint64_t)rows;
}

/* Pages that are in the stream, of all leaves. */
static uint64_t pages_sent(const struct spate_asked_table *table)
{
    uint64_t pages = table->sent_next >> 16;

    for (size_t i = 0; i < table->sent_leaf && i < table->plan->leaf_count; i++)
        pages += table->plan->leaves[i].pages;
    return pages;
}

void spate_answer_accepted(struct spate_weave *weave, const struct spate_asked *asked)
{
    struct spate_control control = answer(weave, SPATE_CONTROL_ACCEPTED, asked->id, asked->sink);

    control.tables = spate_zalloc((asked->count + 1) * sizeof *control.tables);
    control.table_count = asked->count;
    for (size_t i = 0; i < asked->count; i++) {
        const struct spate_plan_table *plan = asked->tables[i].plan;

        control.tables[i] = (struct spate_control_table){.schema = plan->table->schema,
                                                         .table = plan->table->name,
                                                         .rows = rows_of(plan),
                                                         .pages = pages_of(plan)};
    }
    say(weave, &control);
    free(control.tables);
}

void spate_answer_refused(struct spate_weave *weave, const char *id, const char *sink, const char *reason,
                          const char *remedy)
{
    struct spate_control control = answer(weave, SPATE_CONTROL_REFUSED, id, sink);
    char fact[900], mend[900];

    control.reason = spate_slice_str(reason);
    control.remedy = spate_slice_str(remedy);
    say(weave, &control);
    spate_log(SPATE_LOG_WARN, "snapshot-refused", "request=%s to=%s reason=%s remedy=%s", id, sink,
              spate_log_quote(fact, sizeof fact, reason), spate_log_quote(mend, sizeof mend, remedy));
}

static const char *state_of(const struct spate_asked *asked)
{
    if (asked->ranges_end)
        return asked->rereading ? "rereading" : "sent";
    return asked->why[0] || !asked->begun ? "waiting" : "reading";
}

static void tell(struct spate_weave *weave, struct spate_asked *asked, const char *state, int64_t now_ms)
{
    struct spate_control control = answer(weave, SPATE_CONTROL_PROGRESS, asked->id, asked->sink);
    uint64_t pages = 0, of = 0, left;
    const double seconds = (double)(now_ms - asked->began_ms) / 1000.0;
    const double most = (double)weave->config->snapshots.rows_per_second;

    control.tables = spate_zalloc((asked->count + 1) * sizeof *control.tables);
    control.table_count = asked->count;
    for (size_t i = 0; i < asked->count; i++) {
        const struct spate_asked_table *table = &asked->tables[i];
        uint64_t all = pages_of(table->plan), sent = table->sent ? all : pages_sent(table);

        sent = sent > all ? all : sent;
        control.tables[i] = (struct spate_control_table){.schema = table->plan->table->schema,
                                                         .table = table->plan->table->name,
                                                         .pages = sent,
                                                         .of = all,
                                                         .rows = table->rows,
                                                         .chunks = table->no};
        control.rows += table->rows;
        control.estimate += rows_of(table->plan);
        pages += sent;
        of += all;
    }
    control.state = spate_slice_str(state);
    control.why = spate_slice_str(asked->why);
    control.percent =
        asked->ranges_end || of == 0 ? (asked->ranges_end ? 100 : 0) : 100.0 * (double)pages / (double)of;
    control.rate = seconds > 0 ? (double)asked->rows / seconds : 0;
    if (most > 0 && control.rate > most) /* the first pieces come at once, and are waited for afterwards */
        control.rate = most;
    left = of - pages;
    if (asked->ranges_end)
        control.left_s = 0;
    else if (pages > 0 && seconds > 0)
        control.left_s = (int64_t)((double)left * seconds / (double)pages);
    if (!asked->ranges_end && most > 0 && pages > 0 &&
        (double)control.left_s < (double)control.rows * (double)left / (double)pages / most)
        control.left_s = (int64_t)((double)control.rows * (double)left / (double)pages / most);
    say(weave, &control);
    free(control.tables);
    asked->told_state = state;
    asked->told_ms = now_ms;
    asked->told_rows = asked->rows;
}

void spate_answer_progress(struct spate_weave *weave, struct spate_asked *asked, int64_t now_ms)
{
    const char *state = state_of(asked);
    int64_t pause_ms = asked->rows != asked->told_rows ? TELL_MS : CALM_MS;

    if (state != asked->told_state ? now_ms - asked->told_ms < 100 : now_ms - asked->told_ms < pause_ms)
        return;
    tell(weave, asked, state, now_ms);
}

void spate_answer_over(struct spate_weave *weave, struct spate_asked *asked, const char *state,
                       int64_t now_ms)
{
    tell(weave, asked, state, now_ms);
    spate_log(SPATE_LOG_INFO, "snapshot-over", "request=%s sink=%s state=%s rows=%" PRIu64 " ms=%" PRId64,
              asked->id, asked->sink, state, asked->rows, now_ms - asked->began_ms);
}
