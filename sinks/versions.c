/* sinks/versions.c - which version of a source's table is met, and the target table as that one needs it.
 * Part of sinks/start.h. */
#include "sinks/start.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "sinks/copy.h"
#include "sinks/fact.h"
#include "sinks/generation.h"
#include "sinks/late.h"
#include "sinks/stale.h"

#include <stdio.h>

#define SCHEMA_PATIENCE_MS 10000 /* how long a version that a change names may be missing from `_schemas` */

/* What the target table fitted, when `table` came after that: the sink may follow it (sinks/follow.h). */
static const struct spate_table *fitted_before(const struct spate_sink *sink,
                                               const struct spate_projection *projection,
                                               const struct spate_table *table)
{
    const struct spate_table *fitted =
        projection->load.fitted
            ? spate_registry_find(&sink->registry, table->schema, table->name, projection->load.fitted)
            : NULL;

    return fitted && spate_registry_precedes(&sink->registry, fitted, table) ? fitted : NULL;
}

/* Its current version was made, or looked at again. */
static enum spate_rc fitted(struct spate_sink *sink, struct spate_projection *projection, bool followed,
                            struct spate_err *err)
{
    const bool same = followed && projection->same;
    const uint32_t v = projection->current->table->v;
    const bool later = !projection->load.fitted || followed;
    enum spate_rc rc = SPATE_OK;

    if (later && projection->load.fitted != v)
        rc = spate_load_fitted(&sink->store, projection, same, err);
    projection->before = NULL;
    projection->same = false;
    return rc;
}

static enum spate_rc make_version(struct spate_sink *sink, struct spate_projection *projection,
                                  const struct spate_table *table, struct spate_version **version,
                                  struct spate_err *err)
{
    enum spate_rc rc;

    projection->before = fitted_before(sink, projection, table);
    rc = spate_projection_version(projection, &sink->store, table, version, err);
    if (rc != SPATE_OK)
        projection->before = NULL;
    return rc;
}

const struct spate_table *spate_sink_newest(const struct spate_sink *sink,
                                            const struct spate_projection *projection)
{
    return spate_registry_find(&sink->registry, spate_slice_str(projection->source_schema),
                               spate_slice_str(projection->source_table), 0);
}

enum spate_rc spate_sink_check_table(struct spate_sink *sink, struct spate_projection *projection,
                                     struct spate_err *err)
{
    const struct spate_table *table = spate_sink_newest(sink, projection);
    bool followed = false;
    enum spate_rc rc;

    projection->current = NULL;
    if (projection->late) /* what was loading is of a table that nobody publishes any more */
        return projection->load.kind == SPATE_LOAD_NONE ? SPATE_OK
                                                        : spate_load_void(&sink->store, projection, err);
    projection->current =
        fitted_before(sink, projection, table) ? NULL : spate_projection_find(projection, table);
    if (projection->current) { /* after a failure: the team may have altered its table meanwhile */
        rc = spate_version_preflight(projection->current, &sink->store, err);
    } else {
        rc = make_version(sink, projection, table, &projection->current, err);
        followed = projection->before != NULL;
    }
    if (rc == SPATE_OK)
        rc = spate_copy_fit_all(projection, &sink->store, err);
    if (rc == SPATE_OK)
        rc = fitted(sink, projection, followed, err);
    if (rc == SPATE_OK)
        spate_load_compare(projection);
    return rc;
}

/* The schema is durable on `_schemas` before the first message that uses it. */
static enum spate_rc find_table(struct spate_sink *sink, const struct spate_projection *projection,
                                uint32_t v, const struct spate_table **table, struct spate_err *err)
{
    struct spate_slice schema = spate_slice_str(projection->source_schema);
    struct spate_slice name = spate_slice_str(projection->source_table);
    int64_t start = spate_clock_ms();

    while (!(*table = spate_registry_find(&sink->registry, schema, name, v))) {
        enum spate_rc rc = spate_registry_read(&sink->registry, err);

        if (rc != SPATE_OK)
            return rc;
        if (spate_registry_find(&sink->registry, schema, name, v))
            continue;
        if (spate_clock_ms() - start > SCHEMA_PATIENCE_MS) {
            err->exit_code = SPATE_EXIT_FENCED;
            return spate_fail(
                err, SPATE_FATAL,
                "topic %s has no version %u of table %s.%s, which a change on the stream was written "
                "with: the topic was cut or replaced. `spate connector --new-epoch` publishes it again",
                sink->registry.topic, v, projection->source_schema, projection->source_table);
        }
        if (!spate_sink_pause(50))
            return SPATE_END;
    }
    return SPATE_OK;
}

bool spate_sink_knows(const struct spate_sink *sink, const struct spate_projection *projection, uint32_t v)
{
    for (size_t i = 0; i < projection->version_count; i++)
        if (projection->versions[i]->table->v == v)
            return projection->versions[i]->state->serial == sink->store.serial &&
                   !fitted_before(sink, projection, projection->versions[i]->table);
    return false;
}

/* DDL is not in the stream (P32): what a new column holds in rows that nobody changed since, nobody says. */
static void tell_added(struct spate_sink *sink, const struct spate_version *before,
                       const struct spate_version *now)
{
    for (size_t i = 0; before && i < now->used_count; i++) {
        const struct spate_column *column = &now->table->columns[now->used[i]];
        char name[150], fact[SPATE_FACT_MAX];

        if (spate_table_column(before->table, column->name) >= 0)
            continue;
        snprintf(name, sizeof name, "%.*s", SPATE_SLICE_ARG(column->name));
        if (sink->config->snapshot == SPATE_SINK_AUTO)
            spate_log(SPATE_LOG_INFO, "column-added",
                      "table=%s column=%s detail=\"rows that were written before may lack it: the table is "
                      "asked for again\"",
                      now->projection->label, spate_fact(fact, name));
        else
            spate_log(
                SPATE_LOG_WARN, "column-added",
                "table=%s column=%s detail=\"rows that were written before keep what the target has "
                "there; if the source filled them with a default, `spate snapshot --sink %s` loads them "
                "again\"",
                now->projection->label, spate_fact(fact, name), sink->config->name);
    }
}

static bool is_unfit(const struct spate_projection *projection, uint32_t v)
{
    for (size_t i = 0; i < projection->unfit_count; i++)
        if (projection->unfit[i] == v)
            return true;
    return false;
}

/* What was complete before is in the target before the table changes its shape, or the sink stops for it. */
static enum spate_rc flush_before(struct spate_sink *sink, struct spate_err *err)
{
    const struct spate_mark heard = sink->feed.mark;
    enum spate_rc rc = SPATE_OK;

    if (sink->batch.complete == 0 || sink->done.place.epoch == 0)
        return SPATE_OK;
    sink->feed.mark = sink->done; /* the change that names the version is not in the batch */
    rc = spate_sink_flush(sink, sink->batch.complete, true, err);
    sink->feed.mark = heard;
    return rc;
}

/* A change of a version that is past does not fit the table of today: the source's type was another one, say,
 * and a person altered the target's in the meantime. It is passed by, and everything is needed. */
static enum spate_rc pass_by(struct spate_sink *sink, struct spate_projection *projection, uint32_t v,
                             const struct spate_err *why, struct spate_err *err)
{
    char quoted[1400];

    projection->unfit =
        spate_realloc(projection->unfit, (projection->unfit_count + 1) * sizeof *projection->unfit);
    projection->unfit[projection->unfit_count++] = v;
    spate_log(SPATE_LOG_WARN, "version-passed-by", "table=%s v=%u newest=%u detail=%s", projection->label, v,
              spate_sink_newest(sink, projection)->v, spate_log_quote(quoted, sizeof quoted, why->text));
    return spate_stale_mark(sink, projection, "altered", err);
}

static enum spate_rc new_version(struct spate_sink *sink, struct spate_projection *projection,
                                 const struct spate_table *table, struct spate_version **version,
                                 struct spate_err *err)
{
    struct spate_err refused = {0};
    enum spate_rc rc = flush_before(sink, err);

    if (rc != SPATE_OK)
        return rc;
    rc = make_version(sink, projection, table, version, &refused);
    if (rc == SPATE_FAIL && refused.verdict != SPATE_RETRY && refused.exit_code == SPATE_EXIT_REFUSED) {
        rc = spate_registry_read(&sink->registry, err);
        if (rc != SPATE_OK)
            return rc;
        *version = NULL;
        if (spate_sink_newest(sink, projection) != table)
            return pass_by(sink, projection, table->v, &refused, err);
        rc = SPATE_FAIL;
    }
    if (rc == SPATE_FAIL)
        *err = refused;
    return rc;
}

/* A table that the projection meets for the first time, or anew. */
static enum spate_rc take_version(struct spate_sink *sink, struct spate_projection *projection,
                                  const struct spate_table *table, struct spate_version *version, bool known,
                                  struct spate_err *err)
{
    const bool followed = projection->before != NULL, same = projection->same;
    enum spate_rc rc;

    if (!known && !same)
        tell_added(sink, projection->current, version);
    projection->current = version;
    if (followed || !projection->load.fitted) {
        rc = fitted(sink, projection, followed, err);
        if (rc != SPATE_OK)
            return rc;
    }
    if (projection->late)
        return spate_late_came(sink, projection, err);
    /* The rows that are there were written by what the newest version says, or have to be loaded again. */
    if (!known && spate_sink_newest(sink, projection) == table) {
        spate_load_compare(projection);
        if (projection->load.changed)
            (void)spate_loading_want(sink, projection);
    }
    return SPATE_OK;
}

enum spate_rc spate_sink_version(struct spate_sink *sink, struct spate_projection *projection, uint32_t v,
                                 struct spate_version **version, struct spate_err *err)
{
    const struct spate_table *table;
    bool known;
    enum spate_rc rc;

    *version = NULL;
    if (projection->current && projection->current->table->v == v) {
        *version = projection->current;
        return SPATE_OK;
    }
    /* A shape that the table has again is published again. */
    rc = spate_registry_read(&sink->registry, err);
    if (rc == SPATE_OK)
        rc = find_table(sink, projection, v, &table, err);
    if (rc != SPATE_OK || (is_unfit(projection, v) && table != spate_sink_newest(sink, projection)))
        return rc;
    *version = spate_projection_find(projection, table);
    known = *version != NULL && !fitted_before(sink, projection, table);
    if (!known)
        rc = new_version(sink, projection, table, version, err);
    for (size_t i = 0; rc == SPATE_OK && i < projection->version_count; i++) /* a copy changes them all */
        rc = spate_apply_prepare(&sink->apply, projection->versions[i], err);
    if (rc != SPATE_OK || !*version)
        return rc;
    return take_version(sink, projection, table, *version, known, err);
}
