/* cli/sink.c - spate sink -c FILE [-c FILE ...] [--restart NAME] [--skip NAME=POSITION ...] */
#include "cli/cli.h"

#include "config/load.h"
#include "core/alloc.h"
#include "core/log.h"
#include "sinks/sink.h"

#include <stdlib.h>
#include <string.h>

static const struct spate_cli_text text = {
    .usage = "spate sink -c FILE [-c FILE ...] [--restart NAME] [--skip NAME=POSITION ...]",
    .help =
        "Runs the sinks of all files given, side by side in one process. Each hears the stream, keeps its\n"
        "team's tables, and fails alone. SIGTERM or Ctrl-C: what is being applied is finished; exit 0.\n\n"
        "  -c, --config FILE   a sink's file; give it once for each sink (config/billing.yaml is one to "
        "copy)\n"
        "      --restart NAME  the sink of that name forgets its position and begins as a new one would; "
        "the\n"
        "                      rows in its tables stay\n"
        "      --skip NAME=POSITION\n"
        "                      the sink of that name passes by the record at this place of the bus, which is "
        "no\n"
        "                      message of ours and stopped it; written into its row of spate_sink\n"
        "  -h, --help          this text\n\n"
        "Exit codes: 0 stopped in order, 1 an error, 2 configuration, 3 the stream's continuity is broken "
        "for\n"
        "a sink, 4 a sink cannot do exactly what was asked, 5 told to stop, but a target did not answer in\n"
        "time. With many sinks: that of the first that stopped.\n",
};

static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                        {"restart", required_argument, NULL, 'r'},
                                        {"skip", required_argument, NULL, 's'},
                                        {NULL, 0, NULL, 0}};

struct sinks {
    struct spate_sink_config *at; /* owned */
    size_t count;
    const char **skips; /* owned; each is argv's */
    struct spate_sink_orders orders;
};

static enum spate_exit load(struct sinks *sinks, const char *path)
{
    struct spate_sink_config *config;
    struct spate_err err = {0};

    if (spate_cli_other_kind(&text, path, "connector"))
        return SPATE_EXIT_CONFIG;
    sinks->at = spate_realloc(sinks->at, (sinks->count + 1) * sizeof(*sinks->at));
    config = &sinks->at[sinks->count];
    memset(config, 0, sizeof *config);
    config->path = path;
    if (spate_config_load(path, spate_sink_tables, spate_sink_table_count, config, &err) != SPATE_OK)
        return spate_cli_failed(&err);
    sinks->count++;
    for (size_t i = 0; i + 1 < sinks->count; i++)
        if (strcmp(sinks->at[i].name, config->name) == 0)
            return spate_cli_misuse(&text, "%s and %s are both the sink '%s'; give one of them another name",
                                    sinks->at[i].path, path, config->name);
    return SPATE_EXIT_OK;
}

static void add_skip(struct sinks *sinks, const char *order)
{
    sinks->skips = spate_realloc(sinks->skips, (sinks->orders.skip_count + 1) * sizeof *sinks->skips);
    sinks->skips[sinks->orders.skip_count++] = order;
    sinks->orders.skip = sinks->skips;
}

/* Is this order for one of the sinks? */
static bool known(const struct sinks *sinks, const char *restart, const char *skip)
{
    for (size_t i = 0; i < sinks->count; i++) {
        const char *name = sinks->at[i].name;

        if ((restart && strcmp(name, restart) == 0) || (skip && spate_sink_skip_of(skip, name)))
            return true;
    }
    return false;
}

static enum spate_exit run(const struct sinks *sinks)
{
    const struct spate_sink_orders *orders = &sinks->orders;
    int level = SPATE_LOG_ERROR;

    for (size_t i = 0; i < sinks->count; i++)
        if (sinks->at[i].log_level < level)
            level = sinks->at[i].log_level; /* one process has one level: the most talkative */
    if (orders->restart && !known(sinks, orders->restart, NULL))
        return spate_cli_misuse(&text, "--restart %s: none of the files is the sink of that name",
                                orders->restart);
    for (size_t i = 0; i < orders->skip_count; i++)
        if (!known(sinks, NULL, orders->skip[i]))
            return spate_cli_misuse(
                &text,
                "--skip %s: none of the files is the sink of that name; expected NAME=POSITION, as "
                "the sink's last words say it",
                orders->skip[i]);
    spate_log_level_set((enum spate_log_level)level);
    return spate_sinks_run(sinks->at, sinks->count, orders);
}

enum spate_exit spate_cli_sink(int argc, char **argv)
{
    struct sinks sinks = {0};
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    while (result == SPATE_EXIT_OK &&
           (got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            goto out;
        if (got == 'c')
            result = load(&sinks, optarg);
        else if (got == 's')
            add_skip(&sinks, optarg);
        else if (sinks.orders.restart)
            result =
                spate_cli_misuse(&text, "--restart takes one name; restart the others one after another");
        else
            sinks.orders.restart = optarg;
    }
    if (result == SPATE_EXIT_OK && optind < argc)
        result = spate_cli_misuse(&text, "'%s' is not understood; files go behind -c", argv[optind]);
    else if (result == SPATE_EXIT_OK && sinks.count == 0)
        result = spate_cli_misuse(&text, "no file; name one with -c FILE");
    else if (result == SPATE_EXIT_OK)
        result = run(&sinks);
out:
    if (result == SPATE_EXIT_DEADLINE) /* a sink that did not end in time still reads its file's settings */
        return result;
    for (size_t i = 0; i < sinks.count; i++)
        spate_options_fini(&sinks.at[i], spate_sink_tables, spate_sink_table_count);
    free(sinks.at);
    free(sinks.skips);
    return result;
}
