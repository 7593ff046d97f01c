/* The one table of a sink's facts. */
#include "sinks/report.h"

#include "core/alloc.h"
#include "core/metric.h"
#include "core/version.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

const char *const spate_sink_states[] = {"starting",
                                         "waiting-for-connector",
                                         "waiting-for-owner",
                                         "opening",
                                         "loading",
                                         "streaming",
                                         "retrying",
                                         "stopped",
                                         "stale",
                                         "refused",
                                         "failed",
                                         NULL};

#define AT(member) offsetof(struct spate_sink_facts, member)

static const struct spate_metric table[] = {
    {"sink", SPATE_METRIC_INFO, AT(sink), .help = "Name of the sink."},
    {"from", SPATE_METRIC_INFO, AT(from), .help = "The connector whose stream it hears."},
    {"schema", SPATE_METRIC_INFO, AT(schema), .help = "The team's schema in the target."},
    {"bus", SPATE_METRIC_INFO, AT(bus), .help = "The bus' driver: local or kafka."},
    {"topic", SPATE_METRIC_INFO, AT(topic), .help = "The stream's topic on the bus."},
    {"version", SPATE_METRIC_INFO, AT(version), .help = "Version of spate."},
    {"started", SPATE_METRIC_TIME, AT(started_us), .help = "When the sink was started."},
    {"state", SPATE_METRIC_STATE, AT(now.state), .choices = spate_sink_states,
     .help = "What the sink is doing; the series of the present state is 1."},
    {"state_since", SPATE_METRIC_TIME, AT(state_since_us), .help = "When it came to that state."},
    {"detail", SPATE_METRIC_TEXT, AT(detail), .help = "What the state waits for, where that is known."},
    {"live", SPATE_METRIC_FLAG, AT(now.live), .help = "1 unless its thread hangs."},
    {"ready", SPATE_METRIC_FLAG, AT(now.ready), .help = "1 while it follows the stream."},
    {"epoch", SPATE_METRIC_COUNT, AT(progress.epoch), .help = "Epoch of what the target holds."},
    {"n", SPATE_METRIC_COUNT, AT(progress.n), .help = "Number of the last change that the target holds."},
    {"heard_n", SPATE_METRIC_COUNT, AT(progress.heard_n),
     .help = "Number of the last change that was heard."},
    {"pos", SPATE_METRIC_TEXT, AT(progress.pos),
     .help = "Its place in the stream: the `pos` of that change."},
    {"bus_position", SPATE_METRIC_TEXT, AT(progress.bus_position),
     .help = "Its place on the bus, which is stored with the rows."},
    {"bus_end", SPATE_METRIC_TEXT, AT(progress.bus_end), .help = "The end of the stream on the bus."},
    {"lag_seconds", SPATE_METRIC_SECONDS, AT(now.lag_us),
     .help = "Age of the oldest message that the target does not hold yet; 0: it holds all of the bus."},
    {"lag_changes", SPATE_METRIC_NUMBER, AT(now.lag_changes),
     .help = "Changes heard, of whatever table, that the target does not hold yet."},
    {"lag_bytes", SPATE_METRIC_NUMBER, AT(progress.lag_bytes),
     .help = "Bytes on the bus beyond what the target holds (local bus)."},
    {"lag_messages", SPATE_METRIC_NUMBER, AT(progress.lag_messages),
     .help = "Messages on the bus beyond what the target holds (Kafka)."},
    {"pending_changes", SPATE_METRIC_NUMBER, AT(progress.pending),
     .help = "Changes of its own tables, collected and not applied."},
    {"applied_total", SPATE_METRIC_COUNT, AT(progress.applied),
     .help = "Changes of its tables applied since the sink was made."},
    {"duplicates_total", SPATE_METRIC_COUNT, AT(progress.duplicates),
     .help = "Messages dropped because they had come before, since the sink was made."},
    {"holes_total", SPATE_METRIC_COUNT, AT(progress.holes),
     .help = "Holes met in the stream since the sink was made; those that did not heal made it stale."},
    {"hole_open", SPATE_METRIC_FLAG, AT(progress.hole),
     .help = "1 while something is missing before the next change."},
    {"missing_total", SPATE_METRIC_COUNT, AT(progress.missing),
     .help = "Updates and deletes that found no row in the target, since the sink was made."},
    {"tables_waiting", SPATE_METRIC_NUMBER, AT(progress.tables_waiting),
     .help = "Tables of its file that the connector does not publish, or not yet."},
    {"waiting_for", SPATE_METRIC_TEXT, AT(progress.waiting), .help = "Their sources."},
    {"tables_stale", SPATE_METRIC_NUMBER, AT(progress.tables_stale),
     .help =
         "Tables that may differ from the source in a way that no change tells, until everything in them has "
         "come again; with `snapshot: manual` a person has to ask for that."},
    {"stale_tables", SPATE_METRIC_TEXT, AT(progress.stale), .help = "Which, and why."},
    {"stale_total", SPATE_METRIC_COUNT, AT(progress.marked),
     .help = "How often a table became so, in this process."},
    {"row_missing_total", SPATE_METRIC_COUNT, AT(progress.lacked),
     .help = "How often because a row was missing that had to be there: alarm on it."},
    {"skipped_total", SPATE_METRIC_COUNT, AT(progress.skipped),
     .help = "Unreadable records passed by because --skip named them, in this process."},
    {"snapshot_request", SPATE_METRIC_TEXT, AT(progress.request),
     .help = "The request for everything that is under way."},
    {"snapshot_rows", SPATE_METRIC_NUMBER, AT(progress.snapshot_rows),
     .help = "Rows of it that came, in this process."},
    {"snapshot_percent", SPATE_METRIC_NUMBER, AT(progress.snapshot_percent),
     .help = "How much of it the connector has read, as it says."},
    {"snapshot_left_seconds", SPATE_METRIC_SECONDS, AT(progress.snapshot_left_us),
     .help = "How long the rest will take it, as it says."},
    {"snapshots_total", SPATE_METRIC_COUNT, AT(progress.snapshots),
     .help = "Snapshots that were completed, in this process."},
    {"chunks_dropped_total", SPATE_METRIC_COUNT, AT(progress.chunks_dropped),
     .help = "Chunks that did not come whole, or not the next one; they are asked for again."},
    {"chunks_repeated_total", SPATE_METRIC_COUNT, AT(progress.chunks_repeated),
     .help = "Chunks passed by because they had come before."},
    {"batches_total", SPATE_METRIC_COUNT, AT(progress.batches), .help = "Batches brought into the target."},
    {"apply_seconds_total", SPATE_METRIC_SECONDS, AT(progress.apply_us), .help = "Time that took."},
    {"last_batch_changes", SPATE_METRIC_NUMBER, AT(progress.last_batch),
     .help = "Changes in the last batch."},
    {"last_apply_seconds", SPATE_METRIC_SECONDS, AT(progress.last_apply_us),
     .help = "Time the last one took."},
    {"longest_apply_seconds", SPATE_METRIC_SECONDS, AT(progress.longest_apply_us),
     .help = "Time the longest one took."},
    {"retries_total", SPATE_METRIC_COUNT, AT(retries), .help = "How often an attempt failed."},
    {"last_error", SPATE_METRIC_TEXT, AT(error.text), .help = "What failed last, in words."},
    {"last_error_verdict", SPATE_METRIC_TEXT, AT(error.verdict),
     .help = "What was done about it: retry, quarantine or fatal."},
    {"last_error_sqlstate", SPATE_METRIC_TEXT, AT(error.sqlstate), .help = "The server's code for it."},
    {"last_error_at", SPATE_METRIC_TIME, AT(error.at_us), .help = "When something failed last."},
};

static const struct spate_metric_set set = {
    .prefix = "spate_sink",
    .label = "sink",
    .label_offset = AT(sink),
    .table = table,
    .count = SPATE_COUNT(table),
};

/* What all sinks of a process have together: once, so that a sum over sinks counts nothing twice. */
struct process_facts {
    char version[16];
    struct spate_memory memory;
};

#define OF(member) offsetof(struct process_facts, member)

static const struct spate_metric process_table[] = {
    {"version", SPATE_METRIC_INFO, OF(version), .help = "Version of spate."},
    {"memory_private_bytes", SPATE_METRIC_NUMBER, OF(memory.private_bytes),
     .help = "Memory of the process that is its own."},
    {"memory_shared_bytes", SPATE_METRIC_NUMBER, OF(memory.shared_bytes),
     .help = "Shared memory that it has mapped: the hot part of the local bus, which is there once for all "
             "processes."},
    {"memory_file_bytes", SPATE_METRIC_NUMBER, OF(memory.file_bytes),
     .help =
         "Mapped files: the program, and of the local bus what is read from its archive. The kernel takes "
         "it back when it needs room."},
};

static const struct spate_metric_set process_set = {
    .prefix = "spate_sinks",
    .label = "version",
    .label_offset = OF(version),
    .table = process_table,
    .count = SPATE_COUNT(process_table),
};

static struct process_facts process_facts(const struct spate_memory *memory)
{
    struct process_facts facts = {.memory = *memory};

    snprintf(facts.version, sizeof facts.version, "%s", spate_version);
    return facts;
}

/* ---- deriving ---- */

SPATE_PRINTF(2, 3)
static void because(struct spate_sink_facts *facts, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(facts->now.reason, sizeof facts->now.reason, fmt, args);
    va_end(args);
}

static void derive_streaming(struct spate_sink_facts *facts, int64_t now_ms)
{
    int64_t busy_ms = facts->busy_since_ms ? now_ms - facts->busy_since_ms : 0;
    int64_t silent_ms = facts->busy_since_ms ? 0 : now_ms - facts->progress.turned_ms;

    if (silent_ms > SPATE_SINK_HUNG_MS) {
        facts->now.live = 0;
        because(facts, "its thread has not turned for %" PRId64 " s: it hangs", silent_ms / 1000);
    } else if (busy_ms > SPATE_SINK_BUSY_MS) {
        because(facts, "the target has been at work on one batch for %" PRId64 " s", busy_ms / 1000);
    } else if (facts->progress.hole) {
        because(facts, "changes after n=%" PRIu64 " are missing from the stream; they may still come",
                facts->progress.heard_n);
    } else {
        facts->now.ready = 1;
        if (facts->progress.loading)
            facts->now.state = SPATE_SINK_LOADING;
        if (facts->progress.loading && facts->progress.snapshot_percent >= 0)
            because(facts, "loading: %" PRId64 " %% of request %s", facts->progress.snapshot_percent,
                    facts->progress.request);
        else if (facts->progress.loading)
            because(facts, "loading: request %s waits for the connector", facts->progress.request);
        else if (facts->progress.tables_stale > 0)
            because(facts, "streaming; stale: %s", facts->progress.stale);
        else if (facts->progress.tables_waiting > 0)
            because(facts, "streaming; waits for %s, which the connector does not publish",
                    facts->progress.waiting);
        else
            because(facts, "streaming");
    }
}

void spate_sink_report_derive(struct spate_sink_facts *facts, int64_t wall_us, int64_t now_ms)
{
    const struct spate_sink_progress *progress = &facts->progress;
    const char *words = facts->detail[0] ? facts->detail : "";

    facts->now.state = (int)facts->state;
    facts->now.live = 1;
    facts->now.ready = 0;
    /* The two clocks need not agree. */
    facts->now.lag_us = progress->behind_since_us && wall_us > progress->behind_since_us
                            ? wall_us - progress->behind_since_us
                            : 0;
    facts->now.lag_changes = progress->heard_n > progress->n ? (int64_t)(progress->heard_n - progress->n) : 0;
    switch (facts->state) {
    case SPATE_SINK_LOADING:
    case SPATE_SINK_STREAMING:
        derive_streaming(facts, now_ms);
        return;
    case SPATE_SINK_RETRYING:
    case SPATE_SINK_STALE:
    case SPATE_SINK_REFUSED:
    case SPATE_SINK_FAILED:
        words = facts->error.text;
        break;
    case SPATE_SINK_STARTING:
    case SPATE_SINK_WAITING_CONNECTOR:
    case SPATE_SINK_WAITING_OWNER:
    case SPATE_SINK_OPENING:
    case SPATE_SINK_STOPPED:
        break;
    }
    because(facts, "%s%s%s", spate_sink_states[facts->state], words[0] ? ": " : "", words);
}

int spate_sink_report_live(const struct spate_sink_facts *facts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!facts[i].now.live)
            return 0;
    return 1;
}

int spate_sink_report_ready(const struct spate_sink_facts *facts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!facts[i].now.live || !facts[i].now.ready)
            return 0;
    return 1;
}

/* ---- showing ---- */

static void put_flags(struct spate_buf *out, int live, int ready)
{
    spate_buf_printf(out, "\"live\":%s,\"ready\":%s", live ? "true" : "false", ready ? "true" : "false");
}

/* Of the process: the first sink that is not well, by name. */
static void put_reason(const struct spate_sink_facts *facts, size_t count, struct spate_buf *out)
{
    struct spate_buf text = {0};

    for (size_t i = 0; i < count && text.len == 0; i++)
        if (!facts[i].now.live || !facts[i].now.ready)
            spate_buf_printf(&text, "sink %s: %s", facts[i].sink, facts[i].now.reason);
    if (text.len == 0)
        spate_buf_puts(&text, "streaming");
    spate_metric_quote(out, spate_buf_str(&text));
    spate_buf_fini(&text);
}

void spate_sink_report_status(const struct spate_sink_facts *facts, size_t count,
                              const struct spate_memory *memory, struct spate_buf *out)
{
    const struct process_facts process = process_facts(memory);

    spate_buf_putc(out, '{');
    spate_metric_json(out, process_table, SPATE_COUNT(process_table), &process);
    spate_buf_putc(out, ',');
    put_flags(out, spate_sink_report_live(facts, count), spate_sink_report_ready(facts, count));
    spate_buf_puts(out, ",\"sinks\":{");
    for (size_t i = 0; i < count; i++) {
        spate_buf_puts(out, i ? "," : "");
        spate_metric_quote(out, facts[i].sink);
        spate_buf_puts(out, ":{");
        spate_metric_json(out, table, SPATE_COUNT(table), &facts[i]);
        spate_buf_putc(out, '}');
    }
    spate_buf_puts(out, "}}\n");
}

void spate_sink_report_metrics(const struct spate_sink_facts *facts, size_t count,
                               const struct spate_memory *memory, struct spate_buf *out)
{
    const struct process_facts process = process_facts(memory);

    spate_metric_prometheus(out, &set, facts, sizeof *facts, count);
    spate_metric_prometheus(out, &process_set, &process, sizeof process, 1);
}

void spate_sink_report_health(const struct spate_sink_facts *facts, size_t count, struct spate_buf *out)
{
    spate_buf_putc(out, '{');
    put_flags(out, spate_sink_report_live(facts, count), spate_sink_report_ready(facts, count));
    spate_buf_puts(out, ",\"reason\":");
    put_reason(facts, count, out);
    spate_buf_puts(out, ",\"sinks\":{");
    for (size_t i = 0; i < count; i++) {
        spate_buf_puts(out, i ? "," : "");
        spate_metric_quote(out, facts[i].sink);
        spate_buf_puts(out, ":{");
        put_flags(out, facts[i].now.live, facts[i].now.ready);
        spate_buf_puts(out, ",\"reason\":");
        spate_metric_quote(out, facts[i].now.reason);
        spate_buf_putc(out, '}');
    }
    spate_buf_puts(out, "}}\n");
}

void spate_sink_report_reference(struct spate_buf *out)
{
    spate_metric_reference(out, &set);
}

void spate_sink_report_process_reference(struct spate_buf *out)
{
    spate_metric_reference(out, &process_set);
}
