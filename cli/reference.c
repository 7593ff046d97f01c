/* cli/reference.c - spate reference: config/REFERENCE.md, from the tables themselves. */
#include "cli/cli.h"

#include "bus/kafka/kafka.h"
#include "config/load.h"
#include "connector/connector.h"
#include "connector/report.h"
#include "pg/pg.h"
#include "sinks/report.h"
#include "sinks/sink.h"

static const struct spate_cli_text text = {
    .usage = "spate reference",
    .help = "Prints the reference of all configuration keys, of Kafka's properties, of errors and of the "
            "figures\n"
            "that are served, as Markdown. config/REFERENCE.md is this output.\n",
};

static const struct option options[] = {{NULL, 0, NULL, 0}};

static void properties(struct spate_buf *out)
{
    spate_buf_puts(out,
                   "\n## Properties of librdkafka\n\n"
                   "Any of them may stand in `bus.kafka.properties`, except as follows: correctness rests "
                   "on these, so a file may say the same or nothing. Ids such as K2 are explained in "
                   "docs/hazards.md.\n\n");
    spate_kafka_reference(out);
}

static void errors(struct spate_buf *out)
{
    spate_buf_puts(
        out,
        "\n## Errors of Postgres, and what is done about them\n\n"
        "By SQLSTATE, the longest that fits. *again*: after 0.1 s, later after up to 10 s, for ever; so is a "
        "connection that broke. *slowly*: every 10 s. *operator*: every 30 s, with the secrets read anew. "
        "*fence*: source and slot are looked at again, and what is lost is named (exit code 3 or 4). *stop*: "
        "exit code 1 or 4. *row*: on the target the row is found, and this sink stops with table, key, `n` "
        "and "
        "remedy (exit code 4); *prepared anew first*: once, on a new connection, before that. Any other "
        "code: "
        "*stop*.\n\n");
    spate_pg_reference(out);
    spate_buf_puts(out,
                   "\n## Errors of Kafka, and what is done about them\n\n"
                   "What is not listed is tried again, for ever, and nothing is confirmed meanwhile.\n\n");
    spate_kafka_errors(out);
}

static void figures(struct spate_buf *out)
{
    spate_buf_puts(out,
                   "\n## Figures of a connector\n\n"
                   "Served where `status.listen` says. What is not known is null in `/status` and absent "
                   "from `/metrics`, where an LSN is a number of bytes. Every series has the label "
                   "`connector`.\n\n");
    spate_connector_report_reference(out);
    spate_buf_puts(out, "\n## Figures of a sink\n\n"
                        "The same, below `sinks.NAME` in `/status` and with the label `sink` in `/metrics`, "
                        "for each sink of the process.\n\n");
    spate_sink_report_reference(out);
    spate_buf_puts(out, "\nOf the process, once for all its sinks, at the top of `/status`:\n\n");
    spate_sink_report_process_reference(out);
}

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
    properties(&out);
    errors(&out);
    figures(&out);
    result = spate_cli_print(&out);
    spate_buf_fini(&out);
    return result;
}
