/* cli/check.c - spate check -c FILE [-c FILE ...] [--json] [--effective] */
#include "cli/cli.h"

#include "bus/open.h"
#include "config/load.h"
#include "connector/check.h"
#include "connector/permits.h"
#include "core/alloc.h"
#include "core/finding.h"
#include "core/log.h"
#include "sinks/check.h"

#include <stdlib.h>
#include <string.h>

static const struct spate_cli_text text = {
    .usage = "spate check -c FILE [-c FILE ...] [--json] [--effective]",
    .help =
        "Finds out beforehand what would fail or hurt later: source, bus, target, rights, settings, tables. "
        "For\n"
        "each finding: what, why it matters, and the statement or setting that mends it. Writes nothing\n"
        "anywhere. Run it as the user and with the roles that will run the connector and the sinks.\n\n"
        "  -c, --config FILE  a connector's or a sink's file; together they are held against each other\n"
        "      --json         findings as JSON: severity, kind, about, what, why, fix, where (who mends it: "
        "source\n"
        "                     and target: SQL, shell, file, hand)\n"
        "      --effective    print the files with all defaults filled in, and look at nothing else\n"
        "  -h, --help         this text\n\n"
        "Exit codes: 0 nothing but notes, 1 warnings, 2 errors (a file that cannot be read is one).\n",
};

static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                        {"json", no_argument, NULL, 'j'},
                                        {"effective", no_argument, NULL, 'e'},
                                        {NULL, 0, NULL, 0}};

struct check {
    struct spate_connector_config *connectors; /* owned */
    size_t connector_count;
    struct spate_sink_config *sinks; /* owned */
    size_t sink_count;
    struct spate_findings list;
};

/* ---- the files ---- */

/* A file that is wrong is a finding: the others are looked at all the same. */
static void wrong_file(struct check *check, const char *path, const struct spate_err *err)
{
    spate_findings_place(&check->list, "%s", path);
    spate_find_err(&check->list, "configuration", err);
}

static void load_connector(struct check *check, const char *path)
{
    struct spate_connector_config config = {.path = path};
    struct spate_err err = {0};

    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, &err) !=
        SPATE_OK) {
        wrong_file(check, path, &err);
        return;
    }
    if (spate_connector_check(&config, &err) != SPATE_OK) {
        wrong_file(check, path, &err);
        spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
        return;
    }
    check->connectors =
        spate_realloc(check->connectors, (check->connector_count + 1) * sizeof *check->connectors);
    check->connectors[check->connector_count++] = config;
}

static void load_sink(struct check *check, const char *path)
{
    struct spate_sink_config config = {.path = path};
    struct spate_err err = {0};

    if (spate_config_load(path, spate_sink_tables, spate_sink_table_count, &config, &err) != SPATE_OK) {
        wrong_file(check, path, &err);
        return;
    }
    check->sinks = spate_realloc(check->sinks, (check->sink_count + 1) * sizeof *check->sinks);
    check->sinks[check->sink_count++] = config;
}

static void load(struct check *check, const char *path)
{
    struct spate_err err = {0};
    bool connector = false, sink = false;

    if (spate_config_has(path, "connector", &connector, &err) != SPATE_OK ||
        spate_config_has(path, "sink", &sink, &err) != SPATE_OK) {
        wrong_file(check, path, &err);
    } else if (!connector && !sink) {
        spate_fail(&err, SPATE_FATAL,
                   "%s has neither connector: nor sink: in its outermost mapping, so it is the file of "
                   "neither; config/ has samples of both",
                   path);
        wrong_file(check, path, &err);
    } else if (sink) {
        load_sink(check, path);
    } else {
        load_connector(check, path);
    }
}

#define TABLES_MOST 8

/* Of the bus, the part that was chosen: both together would be no file that can be used. */
static void print_file(struct spate_buf *out, const char *path, const struct spate_option_table *tables,
                       size_t count, const void *from, const struct spate_bus_config *bus)
{
    static const char kafka[] = "kafka.";
    struct spate_option_table some[TABLES_MOST];
    size_t local = 0;

    while (local < spate_bus_option_count &&
           strncmp(spate_bus_options[local].key, kafka, sizeof kafka - 1) != 0)
        local++;
    for (size_t i = 0; i < count && i < TABLES_MOST; i++) {
        some[i] = tables[i];
        if (tables[i].options != spate_bus_options || !bus->kafka.brokers == !bus->local_path)
            continue;
        some[i].options += bus->kafka.brokers ? local : 0;
        some[i].count = bus->kafka.brokers ? tables[i].count - local : local;
    }
    spate_buf_printf(out, "%s# %s\n", out->len ? "---\n" : "", path);
    spate_config_print(out, some, count < TABLES_MOST ? count : TABLES_MOST, from);
}

static void print_effective(const struct check *check, struct spate_buf *out)
{
    for (size_t i = 0; i < check->connector_count; i++)
        print_file(out, check->connectors[i].path, spate_connector_tables, spate_connector_table_count,
                   &check->connectors[i], &check->connectors[i].bus);
    for (size_t i = 0; i < check->sink_count; i++)
        print_file(out, check->sinks[i].path, spate_sink_tables, spate_sink_table_count, &check->sinks[i],
                   &check->sinks[i].bus);
}

/* ---- looking ---- */

/* The connector that a sink of these files hears, or NULL. */
static const struct spate_connector_config *connector_of(const struct check *check,
                                                         const struct spate_sink_config *sink, size_t *index)
{
    for (*index = 0; *index < check->connector_count; ++*index)
        if (strcmp(check->connectors[*index].name, sink->from) == 0)
            return &check->connectors[*index];
    return NULL;
}

static bool may_ask(const void *arg, const char *sink, struct spate_slice schema, struct spate_slice table)
{
    const struct spate_slice name = spate_slice_str(sink);

    return spate_permits_requester(arg, name) && spate_permits_table(arg, name, schema, table);
}

static void no_connector(struct check *check, const struct spate_sink_config *sink)
{
    const char *names[64];
    size_t count = 0;
    const char *near;

    for (; count < check->connector_count && count < SPATE_COUNT(names); count++)
        names[count] = check->connectors[count].name;
    near = spate_nearest(sink->from, names, count);
    spate_findings_place(&check->list, "sink %s", sink->name);
    spate_find(&check->list, SPATE_FINDING_ERROR, "sink-from",
               "%s: from: no connector of these files is %s%s%s%s", sink->path, sink->from,
               near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
    spate_find_why(&check->list, "the sink would wait for ever for its stream");
    spate_find_fix(&check->list, SPATE_MEND_FILE, "from: %s", near ? near : names[0]);
}

static void look(struct check *check)
{
    struct spate_source_tables *tables = spate_zalloc((check->connector_count + 1) * sizeof *tables);

    for (size_t i = 0; i < check->connector_count; i++) {
        spate_check_source(&check->connectors[i], &check->list, &tables[i]);
        spate_bus_check(&check->connectors[i].bus, check->connectors[i].name, true, &check->list);
    }
    for (size_t i = 0; i < check->sink_count; i++) {
        const struct spate_sink_config *sink = &check->sinks[i];
        struct spate_sink_check with = {0};
        size_t at;
        const struct spate_connector_config *connector = connector_of(check, sink, &at);

        if (connector)
            with = (struct spate_sink_check){.with_connector = true,
                                             .bus = &connector->bus,
                                             .tables = (const struct spate_table *const *)tables[at].at,
                                             .table_count = tables[at].count,
                                             .known = tables[at].known,
                                             .may_ask = may_ask,
                                             .arg = connector};
        else if (check->connector_count > 0)
            no_connector(check, sink);
        spate_sink_check(sink, &with, &check->list);
    }
    for (size_t i = 0; i < check->connector_count; i++)
        spate_source_tables_fini(&tables[i]);
    free(tables);
}

static void fini(struct check *check)
{
    for (size_t i = 0; i < check->connector_count; i++)
        spate_options_fini(&check->connectors[i], spate_connector_tables, spate_connector_table_count);
    for (size_t i = 0; i < check->sink_count; i++)
        spate_options_fini(&check->sinks[i], spate_sink_tables, spate_sink_table_count);
    free(check->connectors);
    free(check->sinks);
    spate_findings_fini(&check->list);
}

static enum spate_exit verdict(const struct check *check)
{
    return spate_findings_of(&check->list, SPATE_FINDING_ERROR)     ? SPATE_EXIT_CONFIG
           : spate_findings_of(&check->list, SPATE_FINDING_WARNING) ? SPATE_EXIT_FAILED
                                                                    : SPATE_EXIT_OK;
}

static enum spate_exit run(struct check *check, bool json, bool effective)
{
    struct spate_buf out = {0};
    enum spate_exit printed, result;

    spate_log_level_set(SPATE_LOG_ERROR); /* what is worth knowing is a finding */
    if (effective)
        print_effective(check, &out);
    else
        look(check);
    if (!effective && json)
        spate_findings_json(&check->list, &out);
    else if (!effective || check->list.count > 0)
        spate_findings_print(&check->list, &out);
    printed = spate_cli_print(&out);
    result = verdict(check);
    spate_buf_fini(&out);
    return printed == SPATE_EXIT_OK ? result : SPATE_EXIT_CONFIG;
}

enum spate_exit spate_cli_check(int argc, char **argv)
{
    struct check check = {0};
    enum spate_exit result = SPATE_EXIT_OK;
    bool json = false, effective = false;
    size_t files = 0;
    int got;

    while ((got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            goto out;
        if (got == 'c') {
            load(&check, optarg);
            files++;
        } else if (got == 'j') {
            json = true;
        } else {
            effective = true;
        }
    }
    if (optind < argc)
        result = spate_cli_misuse(&text, "'%s' is not understood; files go behind -c", argv[optind]);
    else if (files == 0)
        result = spate_cli_misuse(&text, "no file; name one with -c FILE");
    else if (json && effective)
        result = spate_cli_misuse(&text, "--effective prints YAML, without findings; give one of the two");
    else
        result = run(&check, json, effective);
out:
    fini(&check);
    return result;
}
