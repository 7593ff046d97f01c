/* cli/connector.c - spate connector -c FILE [--new-epoch | --drop] */
#include "cli/cli.h"

#include "config/load.h"
#include "connector/connector.h"
#include "connector/owned.h"
#include "core/log.h"

#include <string.h>

static const struct spate_cli_text text = {
    .usage = "spate connector -c FILE [--new-epoch | --drop]",
    .help =
        "Runs beside a database: reads its logical replication stream and publishes every row change on the\n"
        "bus, until SIGTERM or Ctrl-C; then it publishes and confirms what it has read and exits 0.\n\n"
        "  -c, --config FILE  the connector's file (config/connector.yaml is one to copy)\n"
        "      --new-epoch    go on although continuity is broken: the slot was lost, moved or belongs to\n"
        "                     another cluster. What was missed stays missed; sinks begin anew. Give it "
        "once,\n"
        "                     by hand, never in a unit file\n"
        "      --drop         remove from the source what the connector made there, and end: the slot, and "
        "the\n"
        "                     publication if it is this connector's. Refused while a connector reads\n"
        "  -h, --help         this text\n\n"
        "Exit codes: 0 stopped in order, 1 an error, 2 configuration, 3 continuity is broken (see\n"
        "--new-epoch), 4 the source cannot do what was asked, 5 told to stop but could not flush in time.\n",
};

static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                        {"new-epoch", no_argument, NULL, 'n'},
                                        {"drop", no_argument, NULL, 'd'},
                                        {NULL, 0, NULL, 0}};

/* What was done is said, also where it ended halfway. */
static enum spate_exit drop(const struct spate_connector_config *config)
{
    struct spate_buf said = {0};
    struct spate_err err = {0};
    enum spate_rc rc = spate_owned_drop(config, &said, &err);
    enum spate_exit result = spate_cli_print(&said);

    spate_buf_fini(&said);
    return rc == SPATE_FAIL ? spate_cli_failed(&err) : rc == SPATE_END ? SPATE_EXIT_FAILED : result;
}

static enum spate_exit run(const char *path, bool new_epoch, bool dropping)
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
    if (dropping) {
        enum spate_exit result = drop(&config);

        spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
        return result;
    }
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
    bool new_epoch = false, dropping = false;
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    while ((got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            return result;
        if (got == 'c' && path)
            return spate_cli_misuse(&text, "one connector has one file; -c was given twice");
        if (got == 'c')
            path = optarg;
        else if (got == 'd')
            dropping = true;
        else
            new_epoch = true;
    }
    if (optind < argc)
        return spate_cli_misuse(&text, "'%s' is not understood; the file goes behind -c", argv[optind]);
    if (!path)
        return spate_cli_misuse(&text, "no file; name it with -c FILE");
    if (dropping && new_epoch)
        return spate_cli_misuse(&text, "--drop ends a stream and --new-epoch begins one; give one of them");
    return run(path, new_epoch, dropping);
}
