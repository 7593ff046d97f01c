/* cli/tap.c - spate tap: the stream's messages as lines, as they come. */
#include "cli/tap.h"
#include "cli/cli.h"

#include "core/alloc.h"
#include "core/log.h"
#include "core/options.h"
#include "core/signals.h"
#include "schemas/event.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct spate_cli_text text = {
    .usage = "spate tap [TABLE-GLOB ...] [-c FILE | --bus BUS] [--stream NAME] [--op OP,...] [--from "
             "oldest|now|POS] "
             "[-n COUNT]",
    .help =
        "Prints messages from the bus, one line of JSON each, as they come. Ctrl-C or a closed pipe ends "
        "it.\n\n"
        "  TABLE-GLOB         only messages of these tables: schema.table with * and ?, in double quotes "
        "like SQL\n"
        "                     where a name has dots; a truncate, and the begin and end of a snapshot, when "
        "any of\n"
        "                     its tables matches. Without globs everything is shown, heartbeats and epochs "
        "too\n"
        "  -c, --config FILE  the bus and the stream that this connector's or sink's file names\n"
        "      --bus BUS      the bus in this directory, or kafka:HOST:PORT[,HOST:PORT]; else the one in "
        "the\n"
        "                     environment variable SPATE_BUS. Kafka with TLS or a password needs -c FILE\n"
        "      --stream NAME  the connector whose stream to watch; may be left out where there is only one\n"
        "      --op OP,...    only these: insert update delete truncate message epoch heartbeat "
        "snapshot-begin\n"
        "                     chunk read chunk-end ranges-end\n"
        "      --from WHERE   now (the default), oldest, or a position as --pos prints it\n"
        "  -n, --count COUNT  end after so many messages\n"
        "      --pos          put each message's position before it, and a tab\n"
        "      --durable      show only what is durable already; else the tip, which a power cut may take "
        "back\n"
        "  -h, --help         this text\n\n"
        "A position (POS) is the bus' own word for a place in it, such as local:00000000000012c0 or\n"
        "kafka:1234: the message that\n"
        "stands there is the first one shown. It is not the \"pos\" inside messages. Lost stretches are "
        "reported on\n"
        "stderr.\n",
};

static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                        {"bus", required_argument, NULL, 'b'},
                                        {"stream", required_argument, NULL, 's'},
                                        {"op", required_argument, NULL, 'o'},
                                        {"from", required_argument, NULL, 'f'},
                                        {"count", required_argument, NULL, 'n'},
                                        {"pos", no_argument, NULL, 'p'},
                                        {"durable", no_argument, NULL, 'd'},
                                        {NULL, 0, NULL, 0}};

/* --- arguments ------------------------------------------------------------------------------------------ */

static enum spate_exit add_ops(struct spate_tap *tap, const char *list)
{
    do { /* an empty list names no op either */
        size_t len = strcspn(list, ",");
        enum spate_op op = spate_op_parse(spate_slice(list, len));

        if (op == SPATE_OP_NONE || op >= SPATE_OP_SCHEMA) {
            const char *names[SPATE_OP_SCHEMA], *near;
            char word[40];

            for (int i = SPATE_OP_INSERT; i < SPATE_OP_SCHEMA; i++)
                names[i - SPATE_OP_INSERT] = spate_op_name((enum spate_op)i);
            snprintf(word, sizeof word, "%.*s", (int)len, list);
            near = spate_nearest(word, names, SPATE_OP_SCHEMA - SPATE_OP_INSERT);
            return spate_cli_misuse(&text, "--op: there is no op '%s'%s%s%s", word,
                                    near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
        }
        tap->ops |= 1u << op;
        list += len + (list[len] == ',');
    } while (*list);
    return SPATE_EXIT_OK;
}

static enum spate_exit add_globs(struct spate_tap *tap, int count, char **patterns)
{
    struct spate_err err = {0};

    if (count == 0)
        return SPATE_EXIT_OK;
    tap->globs = spate_zalloc((size_t)count * sizeof(*tap->globs));
    for (int i = 0; i < count; i++) {
        if (spate_glob_new(patterns[i], &tap->globs[i], &err) != SPATE_OK)
            return spate_cli_misuse(&text, "%s", err.text);
        tap->glob_count++;
    }
    return SPATE_EXIT_OK;
}

static enum spate_exit parse_from(struct spate_tap *tap, const char *from)
{
    struct spate_err err = {0};

    if (!from || strcmp(from, "now") == 0) {
        tap->start.from = SPATE_START_NOW;
    } else if (strcmp(from, "oldest") == 0) {
        tap->start.from = SPATE_START_OLDEST;
    } else {
        tap->start.from = SPATE_START_AT;
        if (spate_bus_pos_parse(tap->stream.bus->ops->name, from, &tap->start.pos, &err) != SPATE_OK)
            return spate_cli_misuse(&text, "--from takes oldest, now or a position: %s", err.text);
    }
    return SPATE_EXIT_OK;
}

static enum spate_exit take(struct spate_tap *tap, const char **from, int letter)
{
    char *end;

    switch (letter) {
    case 'c':
        tap->stream.file = optarg;
        break;
    case 'b':
        tap->stream.path = optarg;
        break;
    case 's':
        tap->stream.name = optarg;
        break;
    case 'o':
        return add_ops(tap, optarg);
    case 'f':
        *from = optarg;
        break;
    case 'n':
        errno = 0;
        tap->limit = strtoull(optarg, &end, 10);
        if (errno || *end || *optarg < '0' || *optarg > '9' || tap->limit == 0)
            return spate_cli_misuse(&text, "-n takes a number from 1 on, not '%s'", optarg);
        break;
    case 'p':
        tap->show_pos = true;
        break;
    case 'd':
        tap->see = SPATE_SEE_DURABLE;
        break;
    default:
        break;
    }
    return SPATE_EXIT_OK;
}

enum spate_exit spate_cli_tap(int argc, char **argv)
{
    struct spate_tap tap = {.see = SPATE_SEE_TIP};
    const char *from = NULL;
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    spate_log_level_set(SPATE_LOG_WARN); /* a person watches */
    while (result == SPATE_EXIT_OK &&
           (got = spate_cli_next(argc, argv, "c:n:", options, &text, &result)) != -1) {
        if (got == '?')
            goto out;
        result = take(&tap, &from, got);
    }
    if (result == SPATE_EXIT_OK)
        result = add_globs(&tap, argc - optind, argv + optind);
    if (result == SPATE_EXIT_OK)
        result = spate_cli_stream_open(&tap.stream, &text);
    if (result == SPATE_EXIT_OK)
        result = parse_from(&tap, from);
    if (result == SPATE_EXIT_OK)
        result = spate_tap_run(&tap);
out:
    spate_cli_stream_close(&tap.stream);
    for (size_t i = 0; i < tap.glob_count; i++)
        spate_glob_free(tap.globs[i]);
    free(tap.globs);
    return result;
}
