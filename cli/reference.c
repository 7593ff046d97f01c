/* cli/reference.c - spate reference: config/REFERENCE.md, from the option tables themselves. */
#include "cli/cli.h"

#include "config/load.h"
#include "connector/connector.h"
#include "sinks/sink.h"

static const struct spate_cli_text text = {
    .usage = "spate reference",
    .help =
        "Prints the reference of all configuration keys as Markdown. config/REFERENCE.md is this output.\n",
};

static const struct option options[] = {{NULL, 0, NULL, 0}};

enum spate_exit spate_cli_reference(int argc, char **argv)
{
    struct spate_buf out = {0};
    enum spate_exit result = SPATE_EXIT_OK;

    if (spate_cli_next(argc, argv, "", options, &text, &result) != -1)
        return result;
    if (optind < argc)
        return spate_cli_misuse(&text, "'%s' is not understood", argv[optind]);
    spate_buf_puts(&out,
                   "# Configuration reference\n\n"
                   "Written by `spate reference`; `make check-docs` holds it against the program. A key with "
                   "dots is a nested mapping: `a.b: 1` here is `a: {b: 1}` in a file.\n\n");
    spate_config_reference(&out, "The connector's file",
                           "For `spate connector -c FILE`. `config/connector.yaml` is one to copy.",
                           spate_connector_tables, spate_connector_table_count);
    spate_buf_putc(&out, '\n');
    spate_config_reference(
        &out, "A sink's file",
        "For `spate sink -c FILE`. `config/billing.yaml` and `config/search.yaml` are two to copy.",
        spate_sink_tables, spate_sink_table_count);
    result = spate_cli_print(&out);
    spate_buf_fini(&out);
    return result;
}
