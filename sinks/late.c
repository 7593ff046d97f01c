#include "sinks/late.h"

#include "core/clock.h"
#include "core/log.h"
#include "sinks/fact.h"
#include "sinks/start.h"

#include <stdio.h>

#define LOOK_MS 500
#define TELL_MS 60000

bool spate_late_is(const struct spate_projection *projection)
{
    return projection->late;
}

static void tell(struct spate_sink *sink, const struct spate_projection *projection)
{
    struct spate_buf word = {0}, words = {0};
    char source[SPATE_FACT_MAX], quoted[1200];
    const char *near;

    spate_buf_printf(&word, "%s.%s", projection->source_schema, projection->source_table);
    near = spate_nearest(spate_buf_str(&word), (const char *const *)sink->registry.names,
                         sink->registry.name_count);
    spate_buf_printf(
        &words,
        "connector %s publishes no table %s%s%s%s It is followed, and everything in it asked for, as "
        "soon as it is published",
        sink->config->from, word.data, near ? "; did you mean " : "", near ? near : "", near ? "?" : ".");
    spate_log(SPATE_LOG_WARN, "waiting-for-table",
              "table=%s source=%s detail=%s remedy=\"the spelling of `from`; tables and publication of the "
              "connector: SELECT * FROM pg_publication_tables on the source\"",
              projection->label, spate_fact(source, spate_buf_str(&word)),
              spate_log_quote(quoted, sizeof quoted, spate_buf_str(&words)));
    spate_buf_fini(&word);
    spate_buf_fini(&words);
}

void spate_late_tell(struct spate_sink *sink)
{
    unsigned hidden;

    if (!spate_log_due(&sink->late_log, spate_clock_ms(), TELL_MS, &hidden))
        return;
    for (size_t p = 0; p < sink->projection_count; p++)
        if (sink->projections[p].late)
            tell(sink, &sink->projections[p]);
}

enum spate_rc spate_late_came(struct spate_sink *sink, struct spate_projection *projection,
                              struct spate_err *err)
{
    char source[300], fact[SPATE_FACT_MAX];

    projection->late = false;
    if (spate_store_tables_ready(&sink->store, sink->projections, err) != SPATE_OK)
        return SPATE_FAIL;
    snprintf(source, sizeof source, "%.120s.%.120s", projection->source_schema, projection->source_table);
    spate_log(SPATE_LOG_INFO, "table-came", "table=%s source=%s v=%u", projection->label,
              spate_fact(fact, source), projection->current->table->v);
    spate_load_compare(projection);
    if (!projection->load.ready || projection->load.changed)
        (void)spate_loading_want(sink, projection);
    return SPATE_OK;
}

enum spate_rc spate_late_turn(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t now = spate_clock_ms();
    bool any = false;

    if (sink->apply.open || now - sink->late_ms < LOOK_MS)
        return SPATE_OK;
    for (size_t p = 0; p < sink->projection_count; p++)
        any |= sink->projections[p].late;
    if (!any)
        return SPATE_OK;
    sink->late_ms = now;
    if (spate_registry_read(&sink->registry, err) != SPATE_OK)
        return SPATE_FAIL;
    for (size_t p = 0; p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];
        const struct spate_table *table =
            projection->late
                ? spate_registry_find(&sink->registry, spate_slice_str(projection->source_schema),
                                      spate_slice_str(projection->source_table), 0)
                : NULL;
        struct spate_version *version;
        enum spate_rc rc;

        if (!table)
            continue;
        rc = spate_sink_version(sink, projection, table->v, &version, err);
        if (rc != SPATE_OK)
            return rc;
    }
    spate_late_tell(sink);
    return SPATE_OK;
}
