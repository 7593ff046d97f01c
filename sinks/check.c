/* sinks/check.c - a sink's file held against what it will meet, from the bus to the target's tables. */
#include "sinks/check.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "pg/check.h"
#include "sinks/check_target.h"
#include "sinks/known.h"
#include "sinks/projection.h"
#include "sinks/registry.h"
#include "sinks/store.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct look {
    const struct spate_sink_config *config;
    const struct spate_sink_check *with;
    struct spate_findings *list;
    struct spate_bus *bus; /* owned; NULL: cannot be opened */
    struct spate_registry registry;
    bool published; /* `_schemas` is there and has been read */
    struct spate_store store;
    struct spate_projection *projections; /* owned */
    size_t projection_count;
};

/* ---- the bus ---- */

static bool wanted(void *arg, struct spate_slice schema, struct spate_slice table)
{
    const struct look *look = arg;

    for (size_t i = 0; i < look->projection_count; i++)
        if (spate_slice_is(schema, look->projections[i].source_schema) &&
            spate_slice_is(table, look->projections[i].source_table))
            return true;
    return false;
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* Two files, one stream: they must mean the same bus. */
static void compare_buses(struct look *look)
{
    const struct spate_bus_config *theirs = look->with->bus, *ours = &look->config->bus;

    if (same_text(theirs->local_path, ours->local_path) && same_text(theirs->local_hot, ours->local_hot) &&
        (theirs->kafka.brokers != NULL) == (ours->kafka.brokers != NULL))
        return; /* some of the brokers may be named here, and others there */
    spate_find(look->list, SPATE_FINDING_ERROR, "sink-bus",
               "the sink's bus is %s, and that of connector %s is %s",
               ours->kafka.brokers ? ours->kafka.brokers
               : ours->local_path  ? ours->local_path
                                   : "unsaid",
               look->config->from,
               theirs->kafka.brokers ? theirs->kafka.brokers
               : theirs->local_path  ? theirs->local_path
                                     : "unsaid");
    spate_find_why(look->list, "the sink would wait for ever for a stream that is elsewhere");
    spate_find_fix(look->list, SPATE_MEND_FILE, "bus: as in the connector's file");
}

static void check_hold(struct look *look)
{
    struct spate_err err = {0};

    if (spate_known_check(look->config, &err) == SPATE_OK)
        return;
    spate_find(look->list, SPATE_FINDING_ERROR, "sink-hold", "%s", err.text);
    spate_find_why(look->list, "the sink would not start");
    spate_find_fix(look->list, SPATE_MEND_FILE, "%s: without the line hold", look->config->path);
}

static void read_bus(struct look *look)
{
    char name[300], topic[300];
    struct spate_err err = {0};
    enum spate_rc rc;

    if (spate_bus_open(&look->config->bus, &look->bus, &err) != SPATE_OK)
        return; /* spate_bus_check has said why */
    look->store.source_driver = look->bus->ops->name;
    snprintf(name, sizeof name, "%s._schemas", look->config->from);
    rc = spate_topic_escape(name, topic, sizeof topic, &err);
    if (rc == SPATE_OK)
        rc = spate_registry_open(&look->registry, look->bus, topic, wanted, look, &err);
    if (rc == SPATE_OK)
        rc = spate_registry_read(&look->registry, &err);
    look->published = rc == SPATE_OK && look->registry.has_epoch;
    if (rc == SPATE_FAIL && !err.missing)
        spate_find_err(look->list, "stream", &err);
}

/* ---- tables of the source ---- */

static const struct spate_table *table_of(const struct look *look, const struct spate_projection *projection)
{
    struct spate_slice schema = spate_slice_str(projection->source_schema);
    struct spate_slice name = spate_slice_str(projection->source_table);

    /* The source itself knows best; what stands on the bus is as it was when the connector looked last. */
    for (size_t i = 0; i < look->with->table_count; i++)
        if (spate_slice_eq(look->with->tables[i]->schema, schema) &&
            spate_slice_eq(look->with->tables[i]->name, name))
            return look->with->tables[i];
    if (look->with->known || !look->published)
        return NULL;
    return spate_registry_find(&look->registry, schema, name, 0);
}

static void no_source_table(struct look *look, const struct spate_projection *projection)
{
    struct spate_buf word = {0};
    const char **names = NULL;
    char **made = NULL;
    size_t count = look->registry.name_count;
    const char *near;

    spate_buf_printf(&word, "%s.%s", projection->source_schema, projection->source_table);
    made = spate_zalloc((look->with->table_count + 1) * sizeof *made);
    names = spate_zalloc((count + look->with->table_count + 1) * sizeof *names);
    for (size_t i = 0; i < count; i++)
        names[i] = look->registry.names[i];
    for (size_t i = 0; i < look->with->table_count; i++) {
        struct spate_buf name = {0};

        spate_buf_printf(&name, "%.*s.%.*s", SPATE_SLICE_ARG(look->with->tables[i]->schema),
                         SPATE_SLICE_ARG(look->with->tables[i]->name));
        names[count++] = made[i] = spate_strdup(spate_buf_str(&name));
        spate_buf_fini(&name);
    }
    near = spate_nearest(spate_buf_str(&word), names, count);
    spate_find(look->list, SPATE_FINDING_ERROR, "source-table", "connector %s publishes no table %s%s%s%s",
               look->config->from, spate_buf_str(&word), near ? "; did you mean " : "", near ? near : "",
               near ? "?" : "");
    spate_find_why(look->list, "the table would stay as it is: nothing is heard of its source");
    spate_find_fix(
        look->list, SPATE_MEND_FILE,
        "%s:%d: tables.%s.from: a published table; or, on the source: ALTER PUBLICATION ... ADD TABLE %s",
        look->config->path, projection->config->item.line, projection->config->item.name,
        spate_buf_str(&word));
    for (size_t i = 0; i < look->with->table_count; i++)
        free(made[i]);
    free(made);
    free(names);
    spate_buf_fini(&word);
}

/* ---- the place in the stream ---- */

static void stale(struct look *look, const char *what)
{
    const bool asks = look->config->snapshot == SPATE_SINK_AUTO;

    spate_find(look->list, asks ? SPATE_FINDING_WARNING : SPATE_FINDING_ERROR, "sink-stale", "%s", what);
    spate_find_why(look->list, "%s",
                   asks ? "what it missed is gone: it asks for everything when it starts"
                        : "what it missed is gone, and with snapshot: manual it stops (exit code 3)");
    spate_find_fix(look->list, SPATE_MEND_SHELL,
                   asks ? "spate sink -c '%s'" : "spate sink -c '%s' --restart %s; spate snapshot --sink %s",
                   look->config->path, look->config->name, look->config->name);
}

static void check_age(struct look *look, int64_t ts_us)
{
    /* Of the embedded bus the connector's file says how long. */
    const struct spate_bus_config *bus =
        look->with->with_connector && look->with->bus ? look->with->bus : &look->config->bus;
    const int64_t kept_ms = bus->kafka.brokers ? bus->kafka.retention_ms : bus->local_retention_ms;
    const int64_t age_ms = (spate_clock_wall_us() - ts_us) / 1000;

    if (kept_ms <= 0 || ts_us <= 0 || age_ms < kept_ms / 2)
        return;
    spate_find(look->list, SPATE_FINDING_WARNING, "sink-behind",
               "what it has to read next is %" PRId64 " hours old, and records are kept for %" PRId64,
               age_ms / 3600000, kept_ms / 3600000);
    spate_find_why(look->list, "what is removed before it is read has to be asked for anew");
    spate_find_fix(look->list, SPATE_MEND_SHELL, "spate sink -c '%s'", look->config->path);
}

static void check_place(struct look *look)
{
    const struct spate_mark *mark = &look->store.mark;
    struct spate_start start = {.from = SPATE_START_AT, .pos = mark->at};
    struct spate_reader *reader = NULL;
    struct spate_message message;
    struct spate_err err = {0};
    char topic[300];
    enum spate_rc rc;

    if (!look->store.stored || !look->published)
        return;
    if (look->registry.epoch > mark->place.epoch)
        spate_find(look->list, SPATE_FINDING_NOTE, "sink-epoch",
                   "it stands in epoch %" PRIu64 ", and the stream is in epoch %" PRIu64, mark->place.epoch,
                   look->registry.epoch);
    if (spate_topic_escape(look->config->from, topic, sizeof topic, &err) != SPATE_OK)
        return;
    rc = spate_bus_reader_open(look->bus, topic, SPATE_SEE_DURABLE, start, &reader, &err);
    if (rc == SPATE_OK && strcmp(spate_reader_log_id(reader), look->store.log_id) != 0) {
        stale(look,
              "the stream's log is another one than the one it stands in: the bus was emptied or replaced");
    } else if (rc == SPATE_OK) {
        rc = spate_reader_next(reader, &message, &err);
        if (rc == SPATE_OK && message.kind == SPATE_MESSAGE_GAP)
            stale(look, "the place where it stands is no longer on the bus");
        else if (rc == SPATE_OK)
            check_age(look, message.ts_us);
    }
    if (rc == SPATE_FAIL && !err.missing)
        spate_find_err(look->list, "stream", &err);
    spate_reader_close(reader);
}

/* ---- projections ---- */

/* It asks for everything when it is new; a connector that refuses that leaves it waiting. */
static void check_permit(struct look *look, const struct spate_table *table)
{
    const struct spate_sink_check *with = look->with;

    if (!with->may_ask || with->may_ask(with->arg, look->config->name, table->schema, table->name))
        return;
    spate_find(
        look->list, look->config->snapshot == SPATE_SINK_AUTO ? SPATE_FINDING_WARNING : SPATE_FINDING_NOTE,
        "snapshot-not-allowed", "the connector's snapshots.allow does not let sink %s ask for %.*s.%.*s",
        look->config->name, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
    spate_find_why(look->list, "rows from before it began are then missing");
    spate_find_fix(look->list, SPATE_MEND_FILE, "snapshots.allow in the connector's file: %s: \"%.*s.%.*s\"",
                   look->config->name, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
}

static void check_projection(struct look *look, struct spate_projection *projection)
{
    const struct spate_table *table = table_of(look, projection);
    struct spate_version *version;
    struct spate_err err = {0};

    spate_findings_place(look->list, "sink %s, table %s", look->config->name, projection->config->item.name);
    if (!table) {
        if (look->with->known || look->published)
            no_source_table(look, projection);
        return;
    }
    check_permit(look, table);
    if (!look->store.conn)
        return;
    if (spate_projection_version(projection, &look->store, table, &version, &err) == SPATE_FAIL) {
        spate_find_err(look->list, "projection", &err);
        spate_find_statement(look->list,
                             strstr(err.text, "REPLICA IDENTITY") ? SPATE_MEND_SOURCE : SPATE_MEND_TARGET);
        return;
    }
    if (version->copy_why) {
        spate_find(look->list, SPATE_FINDING_NOTE, "own-copy",
                   "the source columns that it uses are kept in a second table, %s", projection->load.copy);
        spate_find_why(look->list, "%s", version->copy_why);
    }
    if (version->copy_why) {
        spate_find(look->list, SPATE_FINDING_NOTE, "own-copy",
                   "the source columns that it uses are kept in a second table, %s", projection->load.copy);
        spate_find_why(look->list, "%s", version->copy_why);
    }
    for (size_t i = 0; i < table->column_count; i++)
        if (version->as_text[i]) {
            spate_find(look->list, SPATE_FINDING_NOTE, "type-unknown-in-target",
                       "the target has no type %.*s, which column %.*s is of",
                       SPATE_SLICE_ARG(table->columns[i].type), SPATE_SLICE_ARG(table->columns[i].name));
            spate_find_why(look->list, "it is taken as text");
        }
}

static bool open_projections(struct look *look)
{
    size_t count = look->config->tables.count;
    bool good = true;

    if (count == 0) {
        spate_find(look->list, SPATE_FINDING_ERROR, "configuration",
                   "%s: tables: at least one table is needed", look->config->path);
        return false;
    }
    look->projections = spate_zalloc(count * sizeof *look->projections);
    for (size_t i = 0; i < count; i++) {
        struct spate_err err = {0};

        look->projection_count = i + 1;
        if (spate_projection_init(&look->projections[i], look->config, i, &err) == SPATE_OK)
            continue;
        spate_find_err(look->list, "configuration", &err);
        good = false;
    }
    return good;
}

static void open_target(struct look *look)
{
    const struct spate_sink_config *config = look->config;
    const struct spate_pg_where where = {
        .what = "target",
        .url = config->into.url,
        .password_env = config->into.password_env,
        .password_file = config->into.password_file,
        .application_name = "spate check",
    };
    struct spate_err err = {0};

    spate_findings_place(look->list, "sink %s, target", config->name);
    spate_pg_check_where(&where, look->list);
    if (spate_store_look(&look->store, &err) == SPATE_OK) {
        spate_check_target(&look->store, look->list);
    } else if (!look->store.conn) {
        spate_pg_check_refused(&where, &err, look->list);
    } else {
        spate_find_err(look->list, "target-failed", &err);
        spate_check_target(&look->store, look->list);
    }
}

void spate_sink_check(const struct spate_sink_config *config, const struct spate_sink_check *with,
                      struct spate_findings *list)
{
    struct look look = {.config = config, .with = with, .list = list};

    spate_findings_place(list, "sink %s", config->name);
    if (!with->with_connector)
        spate_bus_check(&config->bus, config->from, false, list);
    spate_store_init(&look.store, config);
    spate_findings_place(list, "sink %s", config->name);
    if (with->with_connector)
        compare_buses(&look);
    check_hold(&look);
    if (open_projections(&look)) {
        read_bus(&look);
        open_target(&look);
        spate_findings_place(list, "sink %s", config->name);
        if (look.bus)
            check_place(&look);
        for (size_t i = 0; i < look.projection_count; i++)
            check_projection(&look, &look.projections[i]);
    }
    for (size_t i = 0; i < look.projection_count; i++)
        spate_projection_fini(&look.projections[i]);
    free(look.projections);
    spate_registry_close(&look.registry);
    spate_bus_close(look.bus);
    spate_store_fini(&look.store);
}
