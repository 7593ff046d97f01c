/* connector/report.h - what a connector says of itself while it runs: the facts, and how they are shown.
 *
 * Pure: no clock, no lock, no I/O. connector/status.h gathers the facts and serves the pages. */
#ifndef SPATE_CONNECTOR_REPORT_H
#define SPATE_CONNECTOR_REPORT_H

#include "bus/bus.h"
#include "bus/open.h"
#include "connector/watch.h"
#include "core/buf.h"
#include "core/err.h"
#include "core/memory.h"

#include <stdbool.h>
#include <stdint.h>

enum spate_connector_state {
    SPATE_CONNECTOR_STARTING,     /* nothing is open */
    SPATE_CONNECTOR_WAITING_BUS,  /* opening the bus; the detail says what it waits for, if for anything */
    SPATE_CONNECTOR_OPENING,      /* the bus is ours; connecting to the source, finding the place */
    SPATE_CONNECTOR_WAITING_SLOT, /* another one uses the slot, or it is still being made */
    SPATE_CONNECTOR_STREAMING,    /* START_REPLICATION was accepted */
    SPATE_CONNECTOR_RETRYING,     /* the last attempt failed, the next one comes after a pause */
    SPATE_CONNECTOR_STOPPING,     /* a stop was asked for: making durable what was read */
    SPATE_CONNECTOR_FENCED,       /* continuity is broken; the process is about to end */
    SPATE_CONNECTOR_STOPPED       /* stopped by another error; the process is about to end */
};
extern const char *const spate_connector_states[];

/* What the data plane knows. */
struct spate_plane_facts {
    uint64_t epoch, n, durable_n; /* n: the last change read; durable_n: the last one that is durable */
    uint64_t received_lsn, published_lsn, durable_lsn, confirmed_lsn;
    int64_t behind_since_us; /* wall: the oldest thing not durable is of this time; 0: nothing waits */
    int64_t turned_ms;       /* monotonic: the last turn */
    int64_t progress_ms;     /* monotonic: when last something became durable, or nothing had to */
    int64_t batch_changes, batch_bytes, unconfirmed_transactions;
    int64_t retention_us; /* how long the bus keeps a record at least; -1: no limit by age, or not known */
    char bus_end[SPATE_BUS_POS_TEXT], bus_durable[SPATE_BUS_POS_TEXT];
    uint64_t inserts, updates, deletes, truncates, messages, bytes, heartbeats;
    int64_t stalled_us;
    int64_t snapshots; /* under way */
    uint64_t snapshot_requests, snapshot_chunks, snapshot_rows, snapshot_dropped, snapshot_redone,
        snapshot_restarted;
    int64_t tables, tables_unlogged; /* published now; -1: not yet known */
    uint64_t tables_added, tables_removed, stale;
};

struct spate_connector_facts {
    char connector[128], version[16], bus[16], topic[240], slot[64], publication[64], server[16];
    int64_t started_us;

    enum spate_connector_state state;
    int64_t state_since_us;
    char detail[1000]; /* what the state waits for, where that is known */

    struct spate_plane_facts plane;
    struct spate_slot_look look;
    uint64_t sessions, retries;
    struct spate_memory memory;
    struct spate_bus_holds holds;

    struct {
        char text[1000], sqlstate[6], verdict[12];
        int64_t at_us;
    } error;

    /* Made of the above by spate_connector_report_derive. */
    struct {
        int live, ready;
        char reason[1200];
        int state, status, exists; /* the enums and the bool again, as the table wants them */
        uint64_t source_lsn;
        int64_t lag_bytes, lag_us, lag_changes;
    } now;
};

/* The data plane turns at least once a second while it streams; after so much silence it is taken for hung.
 */
#define SPATE_CONNECTOR_HUNG_MS 30000
/* Something waits for the bus and nothing became durable for so long: not ready. */
#define SPATE_CONNECTOR_STUCK_MS 30000

void spate_connector_report_derive(struct spate_connector_facts *facts, int64_t wall_us, int64_t now_ms);

/* The facts were derived. */
void spate_connector_report_status(const struct spate_connector_facts *facts, struct spate_buf *out);
void spate_connector_report_metrics(const struct spate_connector_facts *facts, struct spate_buf *out);
void spate_connector_report_health(const struct spate_connector_facts *facts, struct spate_buf *out);

/* What each figure is, as Markdown. */
void spate_connector_report_reference(struct spate_buf *out);

#endif
