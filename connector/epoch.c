/* connector/epoch.c - the checks, each with the words for the person who is woken by it. */
#include "connector/epoch.h"

#include "connector/lsn.h"
#include "core/alloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define WAY_ON                                                                                               \
    "Nothing was confirmed or published. When the loss is accepted: spate connector -c FILE "                \
    "--new-epoch " SPATE_AFTER_NEW_EPOCH

/* One allocation for all the strings. */
static struct spate_slice put(char **to, struct spate_slice s)
{
    char *at = *to;

    memcpy(at, s.len ? s.at : "", s.len);
    at[s.len] = 0;
    *to = at + s.len + 1;
    return spate_slice(at, s.len);
}

void spate_epoch_keep(struct spate_epoch_record *record, const struct spate_epoch *epoch)
{
    struct spate_epoch e = *epoch;
    size_t size = e.source.len + e.uuid.len + e.why.len + e.identity.system.len + e.identity.database.len +
                  e.identity.slot.len + e.identity.publication.len + 7;
    char *text = spate_alloc(size), *to = text;

    e.source = put(&to, e.source);
    e.uuid = put(&to, e.uuid);
    e.why = put(&to, e.why);
    e.identity.system = put(&to, e.identity.system);
    e.identity.database = put(&to, e.identity.database);
    e.identity.slot = put(&to, e.identity.slot);
    e.identity.publication = put(&to, e.identity.publication);
    free(record->text);
    *record = (struct spate_epoch_record){.present = true, .epoch = e, .text = text};
}

void spate_epoch_drop(struct spate_epoch_record *record)
{
    free(record->text);
    *record = (struct spate_epoch_record){0};
}

static enum spate_continuity broken(struct spate_err *err)
{
    err->verdict = SPATE_FATAL;
    err->exit_code = SPATE_EXIT_FENCED;
    return SPATE_CONTINUITY_BROKEN;
}

/* A standby was promoted that kept our slot in step, and the bus holds nothing from beyond the fork: what it
 * holds is true of this server, too (P73, P74). */
static bool failed_over(const struct spate_source_state *now, const struct spate_source_identity *then,
                        const struct spate_bus_state *bus)
{
    return now->timeline > then->timeline && now->slot.exists && now->slot.synced && now->fork > 0 &&
           bus->greatest_end <= now->fork && bus->last_commit <= now->fork;
}

/* Why not, in the middle of a sentence. */
static void name_fork(const struct spate_source_state *now, const struct spate_bus_state *bus, char *out,
                      size_t size)
{
    if (!now->fork)
        snprintf(out, size, "where the histories parted is not known");
    else if (bus->greatest_end > now->fork || bus->last_commit > now->fork)
        snprintf(out, size,
                 "they parted at %X/%X, and the bus goes beyond that: synchronized_standby_slots keeps the "
                 "connector behind its standbys",
                 LSN(now->fork));
    else
        snprintf(out, size,
                 "they parted at %X/%X, but the slot was not kept in step by a standby "
                 "(source.postgres.failover)",
                 LSN(now->fork));
}

/* Another server, another database, another history (P73, P75, P76). */
static bool same_source(const struct spate_source_state *now, const struct spate_source_identity *then,
                        const struct spate_bus_state *bus, struct spate_err *err)
{
    char fork[200];

    if (!spate_slice_is(then->system, now->system))
        spate_fail(
            err, SPATE_FATAL,
            "the source is another cluster: its system identifier is %s, and the stream was read from "
            "%.*s. Its log positions mean other data. Either the URL points at the wrong server, or the "
            "server was made anew (initdb, pg_upgrade, restore into a new cluster). " WAY_ON,
            now->system, SPATE_SLICE_ARG(then->system));
    else if (then->database_oid != now->database_oid || !spate_slice_is(then->database, now->database))
        spate_fail(err, SPATE_FATAL,
                   "the source is another database: %s (OID %" PRIu32 "), and the stream was read from %.*s "
                   "(OID %" PRIu32 "). Either the URL names the wrong database, or it was dropped and made "
                   "anew, or renamed. " WAY_ON,
                   now->database, now->database_oid, SPATE_SLICE_ARG(then->database), then->database_oid);
    else if (then->timeline != now->timeline && !failed_over(now, then, bus)) {
        name_fork(now, bus, fork, sizeof fork);
        spate_fail(
            err, SPATE_FATAL,
            "the source is on timeline %" PRIu32 ", and the stream was read on timeline %" PRIu32
            ": a standby was promoted or a backup restored. From the fork on, the same log positions "
            "name other data; what the bus holds up to %X/%X may contain changes that this server never "
            "had (%s). " WAY_ON,
            now->timeline, then->timeline, LSN(bus->greatest_end), fork);
    } else if (now->wal < bus->greatest_end || now->wal < bus->last_commit)
        spate_fail(err, SPATE_FATAL,
                   "the source's WAL went back: it ends at %X/%X, and the bus already holds changes up to "
                   "%X/%X. The server was restored from an older copy of its disk. " WAY_ON,
                   LSN(now->wal),
                   LSN(bus->greatest_end > bus->last_commit ? bus->greatest_end : bus->last_commit));
    else
        return true;
    return false;
}

/* The slot by itself: is it there, and can it still be read (P58, P60, P61)? */
static bool slot_alive(const char *slot, const struct spate_source_state *now,
                       const struct spate_bus_state *bus, struct spate_err *err)
{
    if (!now->slot.exists) {
        spate_fail(
            err, SPATE_FATAL,
            "replication slot \"%s\" does not exist, though this stream was read from it up to %X/%X. "
            "Somebody dropped it, or the server failed over to one that never had it. Every change "
            "after %X/%X that was not read is lost to the stream (the source's WAL is now at %X/%X). " WAY_ON,
            slot, LSN(bus->greatest_end), LSN(bus->greatest_end), LSN(now->wal));
        return false;
    }
    if (strcmp(now->slot.status, "lost") == 0 || now->slot.invalidation[0]) {
        spate_fail(
            err, SPATE_FATAL,
            "replication slot \"%s\" was invalidated by the server (wal_status %s%s%s): the WAL between "
            "%X/%X, which was confirmed, and %X/%X, where the source is now, can no longer be read: up to "
            "%" PRIu64
            " bytes of WAL are lost to the stream. Usual cause: the connector was away longer than "
            "max_slot_wal_keep_size allows. " WAY_ON,
            slot, now->slot.status[0] ? now->slot.status : "unknown",
            now->slot.invalidation[0] ? ", reason " : "", now->slot.invalidation, LSN(now->slot.confirmed),
            LSN(now->wal), now->wal > now->slot.confirmed ? now->wal - now->slot.confirmed : 0);
        return false;
    }
    return true;
}

/* Slot and stream must meet: everything confirmed is on the bus (P59, K14). */
static bool slot_meets_bus(const char *slot, const struct spate_source_state *now, uint64_t reached,
                           struct spate_err *err)
{
    if (now->slot.confirmed <= reached)
        return true;
    spate_fail(
        err, SPATE_FATAL,
        "replication slot \"%s\" stands at %X/%X, beyond the last position the bus holds (%X/%X). Either "
        "the slot was dropped and made anew or moved by somebody (pg_replication_slot_advance, another "
        "program reading from it), or the bus lost its tail. Changes between %X/%X and %X/%X are lost "
        "to the stream. " WAY_ON,
        slot, LSN(now->slot.confirmed), LSN(reached), LSN(reached), LSN(now->slot.confirmed));
    return false;
}

static bool usable(const char *slot, const struct spate_source_state *now, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    if (now->slot.exists && strcmp(now->slot.plugin, "pgoutput") != 0)
        spate_fail(
            err, SPATE_FATAL,
            "replication slot \"%s\" uses the plugin \"%s\", and spate reads pgoutput. Configure another "
            "slot name (source.postgres.slot), or drop this one if nobody needs it: SELECT "
            "pg_drop_replication_slot('%s')",
            slot, now->slot.plugin, slot);
    else if (now->slot.exists && strcmp(now->slot.database, now->database) != 0)
        spate_fail(err, SPATE_FATAL,
                   "replication slot \"%s\" belongs to database \"%s\", and the URL names \"%s\" (P66). "
                   "Configure another slot name (source.postgres.slot) or the other database",
                   slot, now->slot.database, now->database);
    else
        return true;
    return false;
}

enum spate_continuity spate_epoch_judge(const char *slot, const char *publication,
                                        const struct spate_source_state *source,
                                        const struct spate_epoch_record *newest,
                                        const struct spate_bus_state *bus, struct spate_err *err)
{
    const struct spate_epoch *epoch = &newest->epoch;
    bool half;

    if (!usable(slot, source, err))
        return SPATE_CONTINUITY_UNUSABLE;
    err->exit_code = SPATE_EXIT_OK;
    if (!newest->present) {
        if (bus->stream_empty)
            return SPATE_CONTINUITY_FIRST;
        spate_fail(err, SPATE_FATAL,
                   "the stream holds messages of epoch %" PRIu64 ", but its _schemas topic holds no epoch: "
                   "_schemas was lost or removed. " WAY_ON,
                   bus->stream_epoch);
        return broken(err);
    }
    if (bus->stream_epoch > epoch->epoch) {
        spate_fail(err, SPATE_FATAL,
                   "the stream is at epoch %" PRIu64 ", but its _schemas topic ends with epoch %" PRIu64
                   ": _schemas lost its tail. " WAY_ON,
                   bus->stream_epoch, epoch->epoch);
        return broken(err);
    }
    if (!same_source(source, &epoch->identity, bus, err))
        return broken(err);
    if (!spate_slice_is(epoch->identity.slot, slot) ||
        !spate_slice_is(epoch->identity.publication, publication)) {
        /* Another slot stands elsewhere, another publication numbers the same WAL differently (P29). */
        spate_fail(
            err, SPATE_FATAL,
            "the configuration names slot \"%s\" and publication \"%s\", but this stream was read from "
            "slot \"%.*s\" with publication \"%.*s\". Either this is another connector, and needs a name of "
            "its own (connector:), or the old names were changed: put them back. " WAY_ON,
            slot, publication, SPATE_SLICE_ARG(epoch->identity.slot),
            SPATE_SLICE_ARG(epoch->identity.publication));
        return broken(err);
    }
    if (!slot_alive(slot, source, bus, err))
        return broken(err);
    /* An epoch is written to `_schemas` first. When the slot was never confirmed beyond its opening, nothing
     * of it is lost, whether its stream was cut off or never begun. */
    half = bus->stream_epoch < epoch->epoch;
    if (half && bus->stream_empty && source->slot.confirmed > epoch->end) {
        spate_fail(
            err, SPATE_FATAL,
            "the stream is empty, though _schemas says that epoch %" PRIu64 " began at %X/%X and the slot "
            "\"%s\" was confirmed up to %X/%X: the stream's topic was removed or lost, or retention emptied "
            "it while no connector ran. Changes between "
            "%X/%X and %X/%X are lost to it. " WAY_ON,
            epoch->epoch, LSN(epoch->end), slot, LSN(source->slot.confirmed), LSN(epoch->end),
            LSN(source->slot.confirmed));
        return broken(err);
    }
    if (bus->undecided) {
        spate_fail(
            err, SPATE_FATAL,
            "retention has removed so much of the stream that nothing on the bus tells which change comes "
            "after %X/%X, where slot \"%s\" stands. " WAY_ON,
            LSN(source->slot.confirmed), slot);
        return broken(err);
    }
    if (bus->remade) {
        spate_fail(
            err, SPATE_FATAL,
            "the stream's topic begins in the middle of epoch %" PRIu64
            ", though nothing was removed from its beginning: it was deleted and made anew. Readers that "
            "had not read all of the old one have lost changes, and their positions mean nothing. " WAY_ON,
            epoch->epoch);
        return broken(err);
    }
    if (!slot_meets_bus(slot, source, half ? epoch->end : bus->greatest_end, err))
        return broken(err);
    return half                                           ? SPATE_CONTINUITY_HALF
           : epoch->identity.timeline != source->timeline ? SPATE_CONTINUITY_FAILED_OVER
                                                          : SPATE_CONTINUITY_GOES_ON;
}
