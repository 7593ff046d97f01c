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

/* What the connector says of tables that it published once. */
static void tell_gone(struct spate_projection *projection, bool gone)
{
    char source[300], fact[SPATE_FACT_MAX];

    if (projection->gone == gone)
        return;
    projection->gone = gone;
    snprintf(source, sizeof source, "%.120s.%.120s", projection->source_schema, projection->source_table);
    if (gone)
        spate_log(SPATE_LOG_WARN, "source-table-gone",
                  "table=%s source=%s detail=\"the connector does not publish it any more: it was dropped, "
                  "got another "
                  "name, or was taken out of the publication. The target keeps what it has\"",
                  projection->label, spate_fact(fact, source));
    else
        spate_log(SPATE_LOG_INFO, "source-table-back", "table=%s source=%s", projection->label,
                  spate_fact(fact, source));
}

static enum spate_rc take_late(struct spate_sink *sink, struct spate_projection *projection,
                               struct spate_err *err)
{
    const struct spate_table *table =
        spate_registry_find(&sink->registry, spate_slice_str(projection->source_schema),
                            spate_slice_str(projection->source_table), 0);
    struct spate_version *version;

    return table ? spate_sink_version(sink, projection, table->v, &version, err) : SPATE_OK;
}

enum spate_rc spate_late_turn(struct spate_sink *sink, struct spate_err *err)
{
    const int64_t now = spate_clock_ms();
    enum spate_rc rc;

    if (sink->apply.open || now - sink->late_ms < LOOK_MS)
        return SPATE_OK;
    sink->late_ms = now;
    rc = spate_registry_read(&sink->registry, err);
    for (size_t p = 0; rc == SPATE_OK && p < sink->projection_count; p++) {
        struct spate_projection *projection = &sink->projections[p];

        if (projection->late)
            rc = take_late(sink, projection, err);
        else
            tell_gone(projection, spate_registry_gone(&sink->registry, projection->source_schema,
                                                      projection->source_table));
    }
    for (size_t p = 0; rc == SPATE_OK && p < sink->projection_count; p++)
        if (sink->projections[p].late) {
            spate_late_tell(sink);
            break;
        }
    return rc;
}
