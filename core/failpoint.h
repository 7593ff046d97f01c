/* core/failpoint.h - places where a test may make the process die, freeze, dawdle or fail.
 *
 * Without -DFAILPOINTS the macros are nothing. With it (make VARIANT=failpoints) the environment says what
 * happens where, and at which hit:
 *
 *   SPATE_FP="connector_confirm=kill@3,sink_sent=stop@1,local_sync=fail@2,sink_read=sleep:200@5"
 *
 *   kill      SIGKILL to ourselves: nothing is flushed, nothing is cleaned up
 *   stop      SIGSTOP to ourselves: a zombie in the making, until somebody sends SIGCONT
 *   sleep:MS  the thread sleeps
 *   fail      the place fails as if its system call had; only where the table says that it can
 *
 * @N is the hit at which it happens, once; without it, the first. What happens is written to stderr first.
 * `spate failpoints` lists the table below; tests/integration/test_failpoints.py has a case for each name.
 *
 * Thread: any; hits are counted across threads. Init: once, before there are threads. */
#ifndef SPATE_CORE_FAILPOINT_H
#define SPATE_CORE_FAILPOINT_H

#include "core/err.h"
#include "core/failpoint.h"

#include <stdbool.h>
#include <stdio.h>

/* X(name, process that meets it, kind of bus, can it fail, what is true there) */
#define SPATE_FAILPOINTS(X)                                                                                  \
    X(connector_bus_opened, "connector", "any", false, "all writers are open; _schemas was not read yet")    \
    X(connector_publication_created, "connector", "any", false, "the publication exists, the slot may not")  \
    X(connector_slot_created, "connector", "any", false, "the slot exists, no epoch says so")                \
    X(connector_slot_dropped, "connector", "any", false, "an invalidated slot is gone, its epoch is not")    \
    X(connector_schema_published, "connector", "any", false, "a schema is offered to _schemas")              \
    X(connector_schemas_durable, "connector", "any", false, "schemas are durable, nothing uses them yet")    \
    X(connector_epoch_before, "connector", "any", false, "an epoch is about to open, on _schemas first")     \
    X(connector_epoch_known, "connector", "any", false, "it is durable on _schemas, and not in the stream")  \
    X(connector_epoch_open, "connector", "any", false, "it is durable on both")                              \
    X(connector_settle, "connector", "any", false, "waiting until all that was written is durable")          \
    X(connector_tail, "connector", "any", false, "the place is about to be sought in the stream's tail")     \
    X(connector_tail_found, "connector", "any", false, "it was found, and the slot not yet started")         \
    X(connector_started, "connector", "any", false, "START_REPLICATION was accepted")                        \
    X(connector_received, "connector", "any", false, "a frame was read, and nothing done with it")           \
    X(connector_mid_transaction, "connector", "any", false, "a change is encoded, and more follow it")       \
    X(connector_compared, "connector", "any", false, "what came again was found on the bus")                 \
    X(connector_publish, "connector", "any", true, "a batch is about to be offered to the bus")              \
    X(connector_published, "connector", "any", false, "the bus took it; nobody knows yet if it is durable")  \
    X(connector_durable, "connector", "any", false, "the ledger was told of something durable")              \
    X(connector_heartbeat, "connector", "any", false, "a heartbeat is about to be published")                \
    X(connector_confirm, "connector", "any", false, "a status that moves the slot is about to be sent")      \
    X(connector_confirmed, "connector", "any", false, "it was sent")                                         \
    X(connector_chunk_locked, "connector", "any", false, "a chunk's snapshot is taken, no row of it read")   \
    X(connector_chunk_read, "connector", "any", false, "its rows are read, its transaction still open")      \
    X(connector_chunk_ready, "connector", "any", false, "a chunk was read, and waits for its place")         \
    X(connector_snapshot_begun, "connector", "any", false, "snapshot-begin is on its way to the bus")        \
    X(connector_chunk_begun, "connector", "any", false, "a chunk's first line is on its way, no row of it")  \
    X(connector_chunk_half, "connector", "any", false, "its first row as well, and not its end")             \
    X(connector_chunk_end, "connector", "any", false, "all of the chunk is on its way to the bus")           \
    X(connector_ranges_end, "connector", "any", false, "so is the word that all ranges were sent")           \
    X(connector_stale_published, "connector", "any", false, "stale is on its way to the bus, nobody knows")  \
    X(connector_stale_durable, "connector", "any", false, "it is durable, and not yet remembered as told")   \
    X(connector_storage_published, "connector", "any", false, "what was told of a table is on _schemas")     \
    X(connector_stop, "connector", "any", false,                                                             \
      "told to stop: all is durable, the last status is not sent")                                           \
    X(local_recover, "connector", "local", false, "the manifest promises new bases, nothing stands there")   \
    X(local_cut, "connector", "local", false, "the archive's end was cut, and no hot segment begun")         \
    X(local_note_written, "connector", "local", false, "a small file is synced under its temporary name")    \
    X(local_segment_made, "connector", "local", false, "a hot segment is made, under its temporary name")    \
    X(local_segment_linked, "connector", "local", false, "it has its name, and the temporary one still")     \
    X(local_taken, "connector", "local", false, "room was taken, and nobody's name stands in it")            \
    X(local_claimed, "connector", "local", false, "room was claimed for records, none is written")           \
    X(local_filled, "connector", "local", false, "records are written, and not committed")                   \
    X(local_committed, "connector", "local", false, "they are committed; nobody was woken")                  \
    X(local_settle, "connector", "local", false, "an unfinished claim is about to be padded over")           \
    X(local_sealed, "connector", "local", false, "a segment is sealed, and no next one made")                \
    X(local_promised, "connector", "local", false, "the manifest promises the next segment's base")          \
    X(local_created, "connector", "local", false, "the next segment is made, and not the head")              \
    X(local_rolled, "connector", "local", false, "it is the head, and empty")                                \
    X(local_file_made, "connector", "local", false, "an archive file is synced under its temporary name")    \
    X(local_file_renamed, "connector", "local", false, "it has its name, its directory is not synced")       \
    X(local_spill, "connector", "local", true, "a large value's file is open, under a temporary name")       \
    X(local_spilled, "connector", "local", false, "the value is written and synced there")                   \
    X(local_spill_called, "connector", "local", false, "it is called by a claimed position, uncommitted")    \
    X(local_write, "connector", "local", true, "a group is about to be written to the archive")              \
    X(local_sync, "connector", "local", true, "it is written, and about to be synced")                       \
    X(local_synced, "connector", "local", false, "it is synced, and the watermark not moved")                \
    X(local_durable, "connector", "local", false, "the watermark moved, and nobody was told")                \
    X(local_floor, "connector", "local", false, "the manifest says what retention takes, it is there still") \
    X(kafka_topic_created, "connector", "kafka", false, "a topic was made, and nothing opened on it")        \
    X(kafka_opened, "connector", "kafka", false, "a topic was looked at, and has no producer yet")           \
    X(kafka_produce, "connector", "kafka", false, "a record is about to be handed to librdkafka")            \
    X(kafka_produced, "connector", "kafka", false, "librdkafka has it; the broker may have it or not")       \
    X(kafka_report, "connector", "kafka", true, "a report came, and nothing was done with it")               \
    X(kafka_reported, "connector", "kafka", false, "it counts as durable, and its token is not handed back") \
    X(kafka_close, "connector", "kafka", false,                                                              \
      "a writer is about to be closed, with or without its records")                                         \
    X(sink_locked, "sink", "any", false, "the advisory lock is ours, the row still names the predecessor")   \
    X(sink_owned, "sink", "any", false, "a new generation owns the sink")                                    \
    X(sink_table_made, "sink", "any", false, "a target table was made, and is not marked ready")             \
    X(sink_tables_ready, "sink", "any", false, "all tables are marked ready, nothing was read")              \
    X(sink_read, "sink", "any", false, "a message was heard, and nothing done with it")                      \
    X(sink_epoch, "sink", "any", false, "an epoch was heard, and what was open before it not dropped yet")   \
    X(sink_merge, "sink", "any", false, "a batch is about to be brought into the target")                    \
    X(sink_piece, "sink", "any", false, "a piece of a transaction is in the target, uncommitted")            \
    X(sink_merged, "sink", "any", false, "all rows of a batch are in the script; the position is not")       \
    X(sink_commit, "sink", "any", false, "rows and position are in the script; COMMIT is not sent")          \
    X(sink_sent, "sink", "any", false, "a script is on its way, no answer was read")                         \
    X(sink_committed, "sink", "any", true, "COMMIT was answered, and nothing remembers it")                  \
    X(sink_position, "sink", "any", false, "a position without rows is about to be stored")                  \
    X(sink_positioned, "sink", "any", false, "it was stored, and nothing remembers it")                      \
    X(sink_load_begin, "sink", "any", false, "tables of a snapshot are made, and nothing of it committed")   \
    X(sink_chunk_applied, "sink", "any", false, "a chunk's rows and progress are in the script, no COMMIT")  \
    X(sink_sweep, "sink", "any", false, "all rows of a snapshot came; the old ones are about to go")         \
    X(sink_swept, "sink", "any", false, "they are gone, and nothing remembers it")

enum spate_failpoint {
#define SPATE_FAILPOINT_ENUM(name, process, bus, fails, doc) SPATE_FP_##name,
    SPATE_FAILPOINTS(SPATE_FAILPOINT_ENUM)
#undef SPATE_FAILPOINT_ENUM
        SPATE_FP_COUNT
};

/* The names are checked in every build. */
#ifdef FAILPOINTS
#define SPATE_FAILPOINT(name)       ((void)spate_failpoint_hit(SPATE_FP_##name))
#define SPATE_FAILPOINT_FAILS(name) spate_failpoint_hit(SPATE_FP_##name)
#else
#define SPATE_FAILPOINT(name)       ((void)SPATE_FP_##name)
#define SPATE_FAILPOINT_FAILS(name) ((void)SPATE_FP_##name, false)
#endif

/* Reads `plan` as SPATE_FP is written above; NULL or empty: nothing happens anywhere. SPATE_FAIL: a word of
 * it is not understood; err names it and what there is. */
SPATE_CHECKED enum spate_rc spate_failpoint_init(const char *plan, struct spate_err *err);
/* Counts a hit and does what the plan says. true: the place is to fail. */
bool spate_failpoint_hit(enum spate_failpoint point);
/* For tests: asked at each hit, in place of the plan, when not NULL; it may kill, stop or dawdle itself, and
 * says whether the place is to fail. Set before there are threads. */
extern bool (*spate_failpoint_hook)(enum spate_failpoint point);
/* One line each: name, process, bus, "fails" or "-", what is true there; with tabs between them. */
void spate_failpoint_list(FILE *out);

#endif
