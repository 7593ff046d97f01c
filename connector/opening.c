/* connector/opening.c - an epoch's first message, and what must be true before it is published. */
#include "connector/opening.h"

#include "connector/check.h"
#include "connector/lsn.h"
#include "connector/preflight.h"
#include "connector/setup.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/hash.h"
#include "core/log.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- epochs ---- */

static enum spate_rc publish_epoch(struct spate_stream *stream, const struct spate_epoch *epoch,
                                   struct spate_err *err)
{
    spate_publisher_epoch(&stream->publisher, epoch, 0);
    return spate_publisher_settle(&stream->publisher, &stream->ledger, err);
}

/* `_schemas` first: an epoch seen there means that the schemas before it are complete; and should we die in
 * between, the judge recognises the half-open epoch and finishes it. */
static enum spate_rc open_epoch(struct spate_stream *stream, const struct spate_source_state *source,
                                const char *why, struct spate_epoch epoch, struct spate_err *err)
{
    const struct spate_epoch *newest = &stream->epoch.epoch;
    char uuid[37], quoted[300];
    enum spate_rc rc;

    spate_uuid(uuid);
    epoch.epoch = stream->tail.bus.stream_epoch;
    if (stream->epoch.present && newest->epoch > epoch.epoch)
        epoch.epoch = newest->epoch;
    epoch.previous_epoch = epoch.epoch;
    epoch.epoch++;
    epoch.wall_us = spate_clock_wall_us();
    epoch.source = spate_slice_str(stream->config->name);
    epoch.uuid = spate_slice_str(uuid);
    epoch.why = spate_slice_str(why);
    epoch.identity = (struct spate_source_identity){
        .system = spate_slice_str(source->system),
        .timeline = source->timeline,
        .database = spate_slice_str(source->database),
        .database_oid = source->database_oid,
        .slot = spate_slice_str(stream->config->source.slot),
        .publication = spate_slice_str(stream->config->source.publication),
    };
    SPATE_FAILPOINT(connector_epoch_before);
    while ((rc = spate_publisher_schemas_epoch(&stream->publisher, &epoch, err)) == SPATE_AGAIN) {
        rc = spate_stream_serve(stream, -1, err);
        if (rc != SPATE_OK)
            return rc;
    }
    if (rc == SPATE_OK)
        rc = spate_stream_schemas_durable(stream, err);
    SPATE_FAILPOINT(connector_epoch_known);
    if (rc == SPATE_OK)
        rc = publish_epoch(stream, &epoch, err);
    if (rc != SPATE_OK)
        return rc;
    SPATE_FAILPOINT(connector_epoch_open);
    spate_epoch_keep(&stream->epoch, &epoch);
    spate_log(SPATE_LOG_INFO, "epoch", "epoch=%" PRIu64 " uuid=%s lsn=%X/%X previous=%s why=%s", epoch.epoch,
              uuid, LSN(epoch.end),
              epoch.previous == SPATE_PREVIOUS_NONE     ? "none"
              : epoch.previous == SPATE_PREVIOUS_BROKEN ? "broken"
                                                        : "continues",
              spate_log_quote(quoted, sizeof quoted, why));
    return SPATE_OK;
}

/* ---- tables ---- */

/* Both are sorted by OID. What covered them on the connection before this one tells of columns that have gone
 * under another name since. */
static enum spate_rc cover_all(struct spate_stream *stream, struct spate_catalog_table *tables, size_t count,
                               struct spate_err *err)
{
    const struct spate_privacy *privacy = stream->config->privacy;
    struct spate_kin *kin = NULL;
    size_t kin_count = 0, at = 0;
    enum spate_rc rc = SPATE_OK;

    if (privacy)
        rc = spate_cover_kin(&stream->catalog, 0, &kin, &kin_count, err);
    for (size_t i = 0; rc == SPATE_OK && i < count; i++) {
        struct spate_table *raw = tables[i].table;
        size_t from;

        while (at < kin_count && kin[at].oid < tables[i].oid)
            at++;
        for (from = at; at < kin_count && kin[at].oid == tables[i].oid;)
            at++;
        tables[i].table = NULL; /* it is the cover's now, or gone */
        rc = spate_cover_make(privacy, &stream->catalog, tables[i].oid, raw, kin ? kin + from : NULL,
                              at - from, spate_relations_cover(&stream->relations, tables[i].oid),
                              &tables[i].cover, err);
        if (rc == SPATE_OK)
            tables[i].table = tables[i].cover->raw;
    }
    free(kin);
    return rc;
}

enum spate_rc spate_opening_tables(struct spate_stream *stream, struct spate_err *err)
{
    struct spate_catalog_table *tables = NULL;
    const struct spate_table *version;
    size_t count = 0;
    char quoted[300];
    enum spate_rc rc = spate_catalog_load(&stream->catalog, &tables, &count, err);

    if (rc == SPATE_OK)
        rc = cover_all(stream, tables, count, err);
    if (rc == SPATE_OK)
        spate_relations_start(&stream->relations, tables, count);
    else
        spate_catalog_tables_free(tables, count);
    for (size_t i = 0; rc == SPATE_OK && i < count; i++) {
        bool fresh;

        rc = spate_stream_offer(stream, tables[i].cover, &version, &fresh, err);
    }
    if (rc == SPATE_OK)
        rc = spate_stream_schemas_durable(stream, err);
    if (rc == SPATE_OK && count == 0)
        spate_log(SPATE_LOG_WARN, "publication-empty",
                  "publication=%s text=\"no table is published: nothing will be read until ALTER PUBLICATION "
                  "... ADD TABLE\"",
                  spate_log_quote(quoted, sizeof quoted, stream->config->source.publication));
    stream->tables_known = rc == SPATE_OK;
    malloc_trim(0); /* the answer about thousands of tables lay between what is kept of it */
    return rc;
}

/* ---- the ways to begin ---- */

/* A first start, or a slot that is to be made anew: publication before slot (P55). */
static enum spate_rc set_up(struct spate_stream *stream, struct spate_source_state *source,
                            struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    bool published = false, slot = source->slot.exists;
    enum spate_rc rc = spate_preflight_publication(stream->sql, config->source.publication, &published, err);

    if (rc != SPATE_OK)
        return rc;
    if (!config->source.create && (!published || !slot))
        return spate_setup_refuse(config, published, slot, err);
    if (!published && config->tables.count == 0) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(err, SPATE_FATAL,
                          "publication \"%s\" is missing, and tables: does not say what belongs into it; for "
                          "instance: tables: [\"public.*\"]",
                          config->source.publication);
    }
    if (!published && slot) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(
            err, SPATE_FATAL,
            "replication slot \"%s\" is older than publication \"%s\", which does not exist yet: what "
            "the slot holds would be decoded without it and fail (P55). Drop the slot, it will be made "
            "anew: SELECT pg_drop_replication_slot('%s')",
            config->source.slot, config->source.publication, config->source.slot);
    }
    if (!published)
        rc = spate_check_start_making(stream->sql, config, err);
    if (rc == SPATE_OK && !published)
        rc = spate_setup_publication(stream->sql, config, err);
    if (rc == SPATE_OK && !slot)
        rc = spate_setup_slot(&stream->repl, stream->sql, config, err);
    if (rc == SPATE_OK)
        rc = spate_preflight_state(&stream->repl, stream->sql, config->source.slot, source, err);
    return rc;
}

enum spate_rc spate_opening_first(struct spate_stream *stream, struct spate_source_state *source,
                                  struct spate_err *err)
{
    enum spate_rc rc = set_up(stream, source, err);

    if (rc == SPATE_OK)
        rc = spate_opening_tables(stream, err);
    if (rc != SPATE_OK)
        return rc;
    return open_epoch(stream, source, "first start",
                      (struct spate_epoch){.previous = SPATE_PREVIOUS_NONE, .end = source->slot.confirmed},
                      err);
}

enum spate_rc spate_opening_continue(struct spate_stream *stream, const struct spate_source_state *source,
                                     const char *why, struct spate_err *err)
{
    const struct spate_bus_state *bus = &stream->tail.bus;

    return open_epoch(stream, source, why,
                      (struct spate_epoch){.previous = SPATE_PREVIOUS_CONTINUES,
                                           .previous_n = bus->last_n,
                                           .at = bus->last_n,
                                           .end = bus->greatest_end},
                      err);
}

enum spate_rc spate_opening_break(struct spate_stream *stream, struct spate_source_state *source,
                                  const char *why, struct spate_err *err)
{
    const struct spate_connector_config *config = stream->config;
    bool lost = source->slot.exists && (!strcmp(source->slot.status, "lost") || source->slot.invalidation[0]);
    const char *end;
    char short_why[200];
    enum spate_rc rc = SPATE_OK;

    if (lost && config->source.create) {
        rc = spate_setup_drop_slot(stream->sql, config->source.slot, err);
        source->slot.exists = false;
    } else if (lost) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(
            err, SPATE_FATAL,
            "replication slot \"%s\" is invalidated and must be made anew, and source.postgres.create "
            "is false: SELECT pg_drop_replication_slot('%s'); SELECT "
            "pg_create_logical_replication_slot('%s', 'pgoutput')",
            config->source.slot, config->source.slot, config->source.slot);
    }
    if (rc == SPATE_OK)
        rc = set_up(stream, source, err);
    if (rc == SPATE_OK)
        rc = spate_opening_tables(stream, err);
    if (rc != SPATE_OK)
        return rc;
    /* The judge's first sentence is what happened; the rest is advice. */
    end = strstr(why, ". ");
    snprintf(short_why, sizeof short_why, "%.*s", end ? (int)(end - why) : (int)strlen(why), why);
    return open_epoch(stream, source, short_why,
                      (struct spate_epoch){.previous = SPATE_PREVIOUS_BROKEN,
                                           .at = stream->tail.bus.last_n,
                                           .end = source->slot.confirmed},
                      err);
}

enum spate_rc spate_opening_finish(struct spate_stream *stream, struct spate_err *err)
{
    return publish_epoch(stream, &stream->epoch.epoch, err);
}
