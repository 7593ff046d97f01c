/* cli/connector.c - spate connector -c FILE [--new-epoch] */
#include "cli/cli.h"

#include "config/load.h"
#include "connector/connector.h"
#include "core/log.h"

#include <string.h>

static const struct spate_cli_text text = {
    .usage = "spate connector -c FILE [--new-epoch]",
    .help =
        "Runs beside a database: reads its logical replication stream and publishes every row change on the\n"
        "bus, until SIGTERM or Ctrl-C; then it publishes and confirms what it has read and exits 0.\n\n"
        "  -c, --config FILE  the connector's file (config/connector.yaml is one to copy)\n"
        "      --new-epoch    go on although continuity is broken: the slot was lost, moved or belongs to\n"
        "                     another cluster. What was missed stays missed; sinks begin anew. Give it "
        "once,\n"
        "                     by hand, never in a unit file\n"
        "  -h, --help         this text\n\n"
        "Exit codes: 0 stopped in order, 1 an error, 2 configuration, 3 continuity is broken (see\n"
        "--new-epoch), 4 the source cannot do what was asked, 5 told to stop but could not flush in time.\n",
};

static const struct option options[] = {
    {"config", required_argument, NULL, 'c'}, {"new-epoch", no_argument, NULL, 'n'}, {NULL, 0, NULL, 0}};

static enum spate_exit run(const char *path, bool new_epoch)
{
    struct spate_connector_config config;
    struct spate_err err = {0};
    enum spate_rc rc;

    memset(&config, 0, sizeof config);
    if (spate_cli_other_kind(&text, path, "sink"))
        return SPATE_EXIT_CONFIG;
    config.path = path;
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, &err) !=
        SPATE_OK)
        return spate_cli_failed(&err);
    if (spate_connector_check(&config, &err) != SPATE_OK) {
        spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
        return spate_cli_failed(&err);
    }
    spate_log_level_set((enum spate_log_level)config.log_level);
    rc = spate_connector_run(&config, new_epoch, &err);
    if (rc == SPATE_FAIL)
        spate_log_err(SPATE_LOG_ERROR, "stopped", &err);
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
    if (rc != SPATE_FAIL)
        return SPATE_EXIT_OK;
    return err.exit_code != SPATE_EXIT_OK ? err.exit_code : SPATE_EXIT_FAILED;
}

enum spate_exit spate_cli_connector(int argc, char **argv)
{
    const char *path = NULL;
    bool new_epoch = false;
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    while ((got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            return result;
        if (got == 'c' && path)
            return spate_cli_misuse(&text, "one connector has one file; -c was given twice");
        if (got == 'c')
            path = optarg;
        else
            new_epoch = true;
    }
    if (optind < argc)
        return spate_cli_misuse(&text, "'%s' is not understood; the file goes behind -c", argv[optind]);
    if (!path)
        return spate_cli_misuse(&text, "no file; name it with -c FILE");
    return run(path, new_epoch);
}
