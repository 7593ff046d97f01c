/* sinks/report.h - what a sink says of itself while it runs: the facts, and how those of all sinks of a
 * process are shown.
 *
 * Pure: no clock, no lock, no I/O. sinks/status.h gathers the facts and serves the pages. */
#ifndef SPATE_SINKS_REPORT_H
#define SPATE_SINKS_REPORT_H

#include "bus/bus.h"
#include "core/buf.h"
#include "core/memory.h"
#include "schemas/event.h"

#include <stddef.h>
#include <stdint.h>

enum spate_sink_state {
    SPATE_SINK_STARTING,
    SPATE_SINK_WAITING_CONNECTOR, /* the bus, or the stream on it, is not there yet */
    SPATE_SINK_WAITING_OWNER,     /* another process owns the sink */
    SPATE_SINK_OPENING,           /* connecting to the target, checking its tables, finding the place */
    SPATE_SINK_LOADING,           /* streaming, while a snapshot that it asked for is not complete */
    SPATE_SINK_STREAMING,
    SPATE_SINK_RETRYING, /* the target, or the bus, failed; the next attempt comes after a pause */
    SPATE_SINK_STOPPED,  /* in order, because it was asked to */
    SPATE_SINK_STALE,    /* it missed part of the stream: reload it */
    SPATE_SINK_REFUSED,  /* the target, or a table, cannot do exactly what was asked */
    SPATE_SINK_FAILED    /* stopped by another error */
};
extern const char *const spate_sink_states[];

/* What the sink's thread knows while it hears and applies. */
struct spate_sink_progress {
    uint64_t epoch, n;            /* of what the target holds */
    char pos[SPATE_POS_TEXT + 1]; /* its place in the stream, and on the bus */
    char bus_position[SPATE_BUS_POS_TEXT], bus_end[SPATE_BUS_POS_TEXT];
    uint64_t heard_n;        /* the last change that was heard */
    int64_t behind_since_us; /* wall: the oldest thing heard and not applied is of this time; 0: none */
    int64_t lag_bytes, lag_messages; /* what the bus holds beyond; -1: the bus does not count so */
    int64_t pending;                 /* changes of its own tables, heard and not applied */
    int64_t turned_ms;               /* monotonic */
    int hole;                        /* something is missing before the next change */
    uint64_t applied, duplicates, holes, missing; /* since the sink was made */
    uint64_t skipped; /* records that a person asked to pass by, and that came, in this process */
    /* Of the snapshot that is asked for or under way; -1: not known, or there is none. */
    int loading;
    char request[64];
    int64_t snapshot_rows, snapshot_percent, snapshot_left_us;
    uint64_t snapshots, chunks_dropped, chunks_repeated; /* in this process */
    /* Tables that wait: for their source to be published, or for everything to come again. */
    int64_t tables_waiting, tables_stale;
    char waiting[300], stale[300];
    uint64_t marked,
        lacked; /* in this process: tables that became stale; of them, for a row that was missing */
    uint64_t batches;
    int64_t apply_us, last_apply_us, longest_apply_us, last_batch;
};

struct spate_sink_facts {
    char sink[128], from[128], version[16], bus[16], topic[240], schema[64];
    int64_t started_us;

    enum spate_sink_state state;
    int64_t state_since_us;
    char detail[1000];
    int64_t busy_since_ms; /* monotonic: since when the target is at work; 0: it is not */

    struct spate_sink_progress progress;
    uint64_t retries;
    struct {
        char text[1000], sqlstate[6], verdict[12];
        int64_t at_us;
    } error;

    /* Made of the above by spate_sink_report_derive. */
    struct {
        int state, live, ready;
        char reason[1200];
        int64_t lag_us, lag_changes;
    } now;
};

/* Its thread turns several times a second, unless the target is at work. */
#define SPATE_SINK_HUNG_MS 60000
/* The target is at work for longer than any lock is waited for: not ready. */
#define SPATE_SINK_BUSY_MS 90000

void spate_sink_report_derive(struct spate_sink_facts *facts, int64_t wall_us, int64_t now_ms);

/* All sinks of a process, and what is the process' alone; their facts were derived. */
void spate_sink_report_status(const struct spate_sink_facts *facts, size_t count,
                              const struct spate_memory *memory, struct spate_buf *out);
void spate_sink_report_metrics(const struct spate_sink_facts *facts, size_t count,
                               const struct spate_memory *memory, struct spate_buf *out);
/* Live when all are, ready when all are. */
void spate_sink_report_health(const struct spate_sink_facts *facts, size_t count, struct spate_buf *out);
int spate_sink_report_live(const struct spate_sink_facts *facts, size_t count);
int spate_sink_report_ready(const struct spate_sink_facts *facts, size_t count);

/* What each figure is, as Markdown: of a sink; of the process. */
void spate_sink_report_reference(struct spate_buf *out);
void spate_sink_report_process_reference(struct spate_buf *out);

#endif
