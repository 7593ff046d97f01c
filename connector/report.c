/* connector/report.c - the one table of a connector's facts. */
#include "connector/report.h"

#include "core/alloc.h"
#include "core/metric.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *const spate_connector_states[] = {
    "starting", "waiting-for-bus", "opening", "waiting-for-slot", "streaming",
    "retrying", "stopping",        "fenced",  "stopped",          NULL};

#define AT(member) offsetof(struct spate_connector_facts, member)

static const struct spate_metric table[] = {
    {"connector", SPATE_METRIC_INFO, AT(connector), .help = "Name of the connector."},
    {"version", SPATE_METRIC_INFO, AT(version), .help = "Version of spate."},
    {"server_version", SPATE_METRIC_INFO, AT(server), .help = "Version of the source's server."},
    {"slot", SPATE_METRIC_INFO, AT(slot), .help = "Its replication slot."},
    {"publication", SPATE_METRIC_INFO, AT(publication), .help = "Its publication."},
    {"bus", SPATE_METRIC_INFO, AT(bus), .help = "The bus' driver: local or kafka."},
    {"topic", SPATE_METRIC_INFO, AT(topic), .help = "The stream's topic on the bus."},
    {"started", SPATE_METRIC_TIME, AT(started_us), .help = "When the process started."},
    {"state", SPATE_METRIC_STATE, AT(now.state), .choices = spate_connector_states,
     .help = "What the connector is doing; the series of the present state is 1."},
    {"state_since", SPATE_METRIC_TIME, AT(state_since_us), .help = "When it came to that state."},
    {"detail", SPATE_METRIC_TEXT, AT(detail), .help = "What the state waits for, where that is known."},
    {"live", SPATE_METRIC_FLAG, AT(now.live), .help = "1 unless the data plane hangs."},
    {"ready", SPATE_METRIC_FLAG, AT(now.ready), .help = "1 while changes flow from the source to the bus."},
    {"epoch", SPATE_METRIC_COUNT, AT(plane.epoch), .help = "Epoch of the stream."},
    {"n", SPATE_METRIC_COUNT, AT(plane.n), .help = "Number of the last change that was read."},
    {"durable_n", SPATE_METRIC_COUNT, AT(plane.durable_n),
     .help = "Number of the last change that is durable on the bus."},
    {"source_lsn", SPATE_METRIC_LSN, AT(now.source_lsn), .help = "How far the source's WAL is written."},
    {"received_lsn", SPATE_METRIC_LSN, AT(plane.received_lsn), .help = "How far the source has sent it."},
    {"published_lsn", SPATE_METRIC_LSN, AT(plane.published_lsn), .help = "How far it was given to the bus."},
    {"durable_lsn", SPATE_METRIC_LSN, AT(plane.durable_lsn), .help = "How far the bus has made it durable."},
    {"confirmed_lsn", SPATE_METRIC_LSN, AT(plane.confirmed_lsn),
     .help = "How far that was confirmed to the source."},
    {"lag_bytes", SPATE_METRIC_NUMBER, AT(now.lag_bytes),
     .help = "WAL of the source that is not yet durable on the bus, with what does not concern us."},
    {"lag_seconds", SPATE_METRIC_SECONDS, AT(now.lag_us),
     .help = "Age of the oldest commit that is not yet durable on the bus; 0: nothing waits."},
    {"lag_changes", SPATE_METRIC_NUMBER, AT(now.lag_changes),
     .help = "Changes that were read and are not yet durable on the bus."},
    {"slot_exists", SPATE_METRIC_FLAG, AT(now.exists), .help = "1 while the source has the slot."},
    {"slot_active", SPATE_METRIC_FLAG, AT(look.active), .help = "1 while somebody reads from the slot."},
    {"slot_wal_status", SPATE_METRIC_STATE, AT(now.status), .choices = spate_wal_status_names,
     .help = "What the source says of the WAL that the slot needs."},
    {"slot_retained_bytes", SPATE_METRIC_NUMBER, AT(look.retained_bytes),
     .help = "WAL that the slot keeps on the source's disk."},
    {"slot_safe_bytes", SPATE_METRIC_NUMBER, AT(look.safe_bytes),
     .help = "WAL that may be written before the slot is in danger; absent without a limit."},
    {"slot_limit_bytes", SPATE_METRIC_NUMBER, AT(look.keep_bytes),
     .help = "max_slot_wal_keep_size of the source; absent without a limit."},
    {"slot_restart_lsn", SPATE_METRIC_LSN, AT(look.restart), .help = "The oldest WAL that the slot keeps."},
    {"slot_confirmed_lsn", SPATE_METRIC_LSN, AT(look.confirmed),
     .help = "What the source knows as confirmed."},
    {"slot_looked", SPATE_METRIC_TIME, AT(look.looked_us), .help = "When the slot was looked at last."},
    {"slot_xmin_age", SPATE_METRIC_NUMBER, AT(look.xmin_age),
     .help =
         "Transactions whose leftovers in the source's catalogs VACUUM cannot remove because of the slot."},
    {"tables", SPATE_METRIC_NUMBER, AT(plane.tables), .help = "Tables that are published."},
    {"tables_unlogged", SPATE_METRIC_NUMBER, AT(plane.tables_unlogged),
     .help = "Of them, those that are UNLOGGED: what is written to them never reaches the stream."},
    {"tables_added_total", SPATE_METRIC_COUNT, AT(plane.tables_added),
     .help = "Tables that came into the publication."},
    {"tables_removed_total", SPATE_METRIC_COUNT, AT(plane.tables_removed),
     .help = "Tables that left it, or their name."},
    {"stale_total", SPATE_METRIC_COUNT, AT(plane.stale),
     .help = "How often followers were told to take a table anew, for what Postgres does not send."},
    {"tables_looked", SPATE_METRIC_TIME, AT(look.surveyed_us),
     .help = "When the published tables were looked at last."},
    {"batch_changes", SPATE_METRIC_NUMBER, AT(plane.batch_changes),
     .help = "Messages that wait for the bus to take them."},
    {"batch_bytes", SPATE_METRIC_NUMBER, AT(plane.batch_bytes), .help = "Bytes of these messages."},
    {"unconfirmed_transactions", SPATE_METRIC_NUMBER, AT(plane.unconfirmed_transactions),
     .help = "Transactions that the bus has and has not yet made durable."},
    {"bus_end", SPATE_METRIC_TEXT, AT(plane.bus_end),
     .help = "The end of the stream as far as this process wrote it."},
    {"bus_durable", SPATE_METRIC_TEXT, AT(plane.bus_durable), .help = "The end of what is durable of it."},
    {"bus_retention_seconds", SPATE_METRIC_SECONDS, AT(plane.retention_us),
     .help = "How long the bus keeps a message at least: the longest outage that a sink survives."},
    {"bus_readers", SPATE_METRIC_NUMBER, AT(holds.readers),
     .help = "Readers of the stream that have a name on the local bus, and live."},
    {"bus_holders", SPATE_METRIC_NUMBER, AT(holds.holders),
     .help = "Readers for whom the bus keeps what they have not passed (`hold`), whether they live or not."},
    {"bus_held_bytes", SPATE_METRIC_NUMBER, AT(holds.bytes),
     .help = "How much that is, for the one that is furthest behind."},
    {"bus_held_limit_bytes", SPATE_METRIC_NUMBER, AT(holds.limit_bytes),
     .help = "At so much nothing more is read from the source; absent where nobody holds."},
    {"bus_held_seconds", SPATE_METRIC_SECONDS, AT(holds.age_us),
     .help = "Age of the oldest record that is held: at bus_retention_seconds nothing more is read."},
    {"bus_held_by", SPATE_METRIC_TEXT, AT(holds.by), .help = "The reader that is furthest behind of them."},
    {"changes_total", SPATE_METRIC_COUNT, AT(plane.inserts), .label = "op", .value = "insert",
     .help = "Changes published by this process."},
    {"changes_total", SPATE_METRIC_COUNT, AT(plane.updates), .label = "op", .value = "update"},
    {"changes_total", SPATE_METRIC_COUNT, AT(plane.deletes), .label = "op", .value = "delete"},
    {"changes_total", SPATE_METRIC_COUNT, AT(plane.truncates), .label = "op", .value = "truncate"},
    {"changes_total", SPATE_METRIC_COUNT, AT(plane.messages), .label = "op", .value = "message"},
    {"published_bytes_total", SPATE_METRIC_COUNT, AT(plane.bytes), .help = "Bytes of these changes."},
    {"heartbeats_total", SPATE_METRIC_COUNT, AT(plane.heartbeats), .help = "Heartbeats published."},
    {"stalled_seconds_total", SPATE_METRIC_SECONDS, AT(plane.stalled_us),
     .help = "How long the source was not read because the bus took no more."},
    {"snapshots", SPATE_METRIC_NUMBER, AT(plane.snapshots),
     .help = "Requests for snapshots that are under way."},
    {"snapshot_requests_total", SPATE_METRIC_COUNT, AT(plane.snapshot_requests),
     .help = "Requests that were begun, again after each restart."},
    {"snapshot_chunks_total", SPATE_METRIC_COUNT, AT(plane.snapshot_chunks),
     .help = "Chunks put into the stream."},
    {"snapshot_rows_total", SPATE_METRIC_COUNT, AT(plane.snapshot_rows), .help = "Rows in these chunks."},
    {"snapshot_rows_dropped_total", SPATE_METRIC_COUNT, AT(plane.snapshot_dropped),
     .help = "Rows that were left out, since the stream has said something newer of them."},
    {"snapshot_chunks_redone_total", SPATE_METRIC_COUNT, AT(plane.snapshot_redone),
     .help = "Chunks that were read again: busy, or a transaction not visible yet."},
    {"snapshot_tables_restarted_total", SPATE_METRIC_COUNT, AT(plane.snapshot_restarted),
     .help = "Tables that were read from their beginning again: TRUNCATE, DDL, a rewrite."},
    {"memory_private_bytes", SPATE_METRIC_NUMBER, AT(memory.private_bytes),
     .help = "Memory of the process that is its own."},
    {"memory_shared_bytes", SPATE_METRIC_NUMBER, AT(memory.shared_bytes),
     .help = "Shared memory that it has mapped: the hot part of the local bus, which is there once for all "
             "processes."},
    {"memory_file_bytes", SPATE_METRIC_NUMBER, AT(memory.file_bytes),
     .help =
         "Mapped files: the program, and of the local bus what is read from its archive. The kernel takes "
         "it back when it needs room."},
    {"sessions_total", SPATE_METRIC_COUNT, AT(sessions), .help = "How often streaming began."},
    {"retries_total", SPATE_METRIC_COUNT, AT(retries), .help = "How often an attempt or a session failed."},
    {"last_error", SPATE_METRIC_TEXT, AT(error.text), .help = "What failed last, in words."},
    {"last_error_verdict", SPATE_METRIC_TEXT, AT(error.verdict),
     .help = "What was done about it: retry, quarantine or fatal."},
    {"last_error_sqlstate", SPATE_METRIC_TEXT, AT(error.sqlstate), .help = "The server's code for it."},
    {"last_error_at", SPATE_METRIC_TIME, AT(error.at_us), .help = "When something failed last."},
};

static const struct spate_metric_set set = {
    .prefix = "spate_connector",
    .label = "connector",
    .label_offset = AT(connector),
    .table = table,
    .count = SPATE_COUNT(table),
};

/* ---- deriving ---- */

SPATE_PRINTF(2, 3)
static void because(struct spate_connector_facts *facts, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(facts->now.reason, sizeof facts->now.reason, fmt, args);
    va_end(args);
}

static void derive_health(struct spate_connector_facts *facts, int64_t now_ms)
{
    const struct spate_plane_facts *plane = &facts->plane;
    int64_t silent_ms = now_ms - plane->turned_ms, stuck_ms = now_ms - plane->progress_ms;

    facts->now.live = 1;
    facts->now.ready = 0;
    switch (facts->state) {
    case SPATE_CONNECTOR_STREAMING:
        if (silent_ms > SPATE_CONNECTOR_HUNG_MS) {
            facts->now.live = 0;
            because(facts, "the data plane has not turned for %" PRId64 " s: it hangs", silent_ms / 1000);
        } else if (stuck_ms > SPATE_CONNECTOR_STUCK_MS) {
            because(facts,
                    "the bus has made nothing durable for %" PRId64 " s, and %" PRId64
                    " changes wait for it%s",
                    stuck_ms / 1000, facts->now.lag_changes,
                    strcmp(facts->bus, "local") == 0 ? ": `spate bus ls` says what stops it" : "");
        } else {
            facts->now.ready = 1;
            because(facts, "streaming");
        }
        break;
    case SPATE_CONNECTOR_WAITING_BUS:
        because(facts, "waiting for the bus%s%s", facts->detail[0] ? ": " : "", facts->detail);
        break;
    case SPATE_CONNECTOR_OPENING:
        because(facts, "connecting to the source, and finding the place in the stream");
        break;
    case SPATE_CONNECTOR_STARTING:
    case SPATE_CONNECTOR_STOPPING:
        because(facts, "%s", spate_connector_states[facts->state]);
        break;
    case SPATE_CONNECTOR_WAITING_SLOT:
    case SPATE_CONNECTOR_RETRYING:
    case SPATE_CONNECTOR_FENCED:
    case SPATE_CONNECTOR_STOPPED:
        because(facts, "%s: %s", spate_connector_states[facts->state],
                facts->detail[0] ? facts->detail : facts->error.text);
        break;
    }
}

void spate_connector_report_derive(struct spate_connector_facts *facts, int64_t wall_us, int64_t now_ms)
{
    const struct spate_plane_facts *plane = &facts->plane;
    uint64_t durable =
        plane->durable_lsn > facts->look.confirmed ? plane->durable_lsn : facts->look.confirmed;
    uint64_t source = plane->received_lsn > facts->look.wal ? plane->received_lsn : facts->look.wal;

    facts->now.state = (int)facts->state;
    facts->now.exists = facts->look.looked_us ? facts->look.exists : -1;
    facts->now.status = facts->look.exists ? (int)facts->look.status : -1;
    facts->now.source_lsn = source;
    facts->now.lag_bytes = source == 0 || durable == 0 ? -1
                           : source > durable          ? (int64_t)(source - durable)
                                                       : 0;
    facts->now.lag_changes = plane->n > plane->durable_n ? (int64_t)(plane->n - plane->durable_n) : 0;
    /* The two clocks need not agree. */
    facts->now.lag_us =
        plane->behind_since_us && wall_us > plane->behind_since_us ? wall_us - plane->behind_since_us : 0;
    derive_health(facts, now_ms);
}

/* ---- showing ---- */

void spate_connector_report_status(const struct spate_connector_facts *facts, struct spate_buf *out)
{
    spate_buf_putc(out, '{');
    spate_metric_json(out, table, SPATE_COUNT(table), facts);
    spate_buf_puts(out, "}\n");
}

void spate_connector_report_metrics(const struct spate_connector_facts *facts, struct spate_buf *out)
{
    spate_metric_prometheus(out, &set, facts, sizeof *facts, 1);
}

void spate_connector_report_health(const struct spate_connector_facts *facts, struct spate_buf *out)
{
    spate_buf_printf(out, "{\"live\":%s,\"ready\":%s,\"reason\":", facts->now.live ? "true" : "false",
                     facts->now.ready ? "true" : "false");
    spate_metric_quote(out, facts->now.reason);
    spate_buf_puts(out, "}\n");
}

void spate_connector_report_reference(struct spate_buf *out)
{
    spate_metric_reference(out, &set);
}
