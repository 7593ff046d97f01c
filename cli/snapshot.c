/* cli/snapshot.c - spate snapshot: what was typed, and which way of asking it means. */
#include "cli/snapshot.h"
#include "cli/cli.h"

#include "core/alloc.h"
#include "core/glob.h"
#include "core/hash.h"
#include "core/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct spate_cli_text text = {
    .usage =
        "spate snapshot --sink NAME | --tables GLOB | --list | --cancel ID | --follow [ID]  [OPTION ...]",
    .help =
        "Asks for the rows that exist now, while the stream goes on.\n\n"
        "  --sink NAME        that sink asks, and its tables are brought up to the source: rows come, change "
        "and\n"
        "                     go until they equal it. With --tables only what comes from those; with "
        "--where\n"
        "                     rows are added and corrected, and none is removed\n"
        "  --tables GLOB      source tables: schema.table with * and ?, in double quotes like SQL where a "
        "name\n"
        "                     has dots; may be given several times. Without --sink the rows are printed as\n"
        "                     they come, one message of JSON a line\n"
        "  --where CONDITION  only rows for which it holds: \"created_at >= 2026-01-01\", \"state is null\". "
        "May\n"
        "                     be given several times: all must hold\n"
        "  --columns A,B      only these, and the key's (when printing)\n"
        "      --rows         print bare rows instead of messages\n"
        "      --name NAME    ask under this name (when printing); else one is made up\n"
        "      --follow [ID]  show progress on stderr until the request is over; without anything else: of "
        "the\n"
        "                     request ID, or of the only one that is under way\n"
        "      --list         the requests that are under way; --all: and what ended within the last hour\n"
        "      --cancel ID    end a request\n"
        "      --wait SECONDS how long to wait for the first answer (30)\n"
        "  -c, --config FILE  the bus and the stream that this connector's or sink's file names\n"
        "      --bus BUS      the bus in this directory, or kafka:HOST:PORT[,HOST:PORT]; else the one in "
        "the\n"
        "                     environment variable SPATE_BUS. Kafka with TLS or a password needs -c FILE\n"
        "      --stream NAME  the connector to ask; may be left out where there is only one\n"
        "  -h, --help         this text\n\n"
        "Exit codes: 0 done, 1 failed or cancelled, 2 arguments, 3 the stream broke off, 4 refused (reason "
        "and\n"
        "remedy are printed), 5 nobody answered in time.\n",
};

enum { ROWS = 0x100, FOLLOW, LIST, ALL, CANCEL, WAIT, NAME, COLUMNS, WHERE, TABLES, SINK };

static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                        {"bus", required_argument, NULL, 'b'},
                                        {"stream", required_argument, NULL, 's'},
                                        {"sink", required_argument, NULL, SINK},
                                        {"tables", required_argument, NULL, TABLES},
                                        {"where", required_argument, NULL, WHERE},
                                        {"columns", required_argument, NULL, COLUMNS},
                                        {"rows", no_argument, NULL, ROWS},
                                        {"name", required_argument, NULL, NAME},
                                        {"follow", no_argument, NULL, FOLLOW},
                                        {"list", no_argument, NULL, LIST},
                                        {"all", no_argument, NULL, ALL},
                                        {"cancel", required_argument, NULL, CANCEL},
                                        {"wait", required_argument, NULL, WAIT},
                                        {NULL, 0, NULL, 0}};

static enum spate_exit add_glob(struct spate_snapshot *snapshot, char *pattern)
{
    struct spate_glob *glob;
    struct spate_err err = {0};

    if (spate_glob_new(pattern, &glob, &err) != SPATE_OK)
        return spate_cli_misuse(&text, "--tables: %s", err.text);
    spate_glob_free(glob);
    snapshot->globs = spate_realloc(snapshot->globs, (snapshot->glob_count + 1) * sizeof *snapshot->globs);
    snapshot->globs[snapshot->glob_count++] = pattern;
    return SPATE_EXIT_OK;
}

static enum spate_exit add_where(struct spate_snapshot *snapshot, const char *condition)
{
    struct spate_err err = {0};

    snapshot->where = spate_realloc(snapshot->where, (snapshot->where_count + 1) * sizeof *snapshot->where);
    if (spate_words_condition(condition, &snapshot->where[snapshot->where_count], &err) != SPATE_OK)
        return spate_cli_misuse(&text, "%s", err.text);
    snapshot->where_count++;
    return SPATE_EXIT_OK;
}

static enum spate_exit set_wait(struct spate_snapshot *snapshot, const char *seconds)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(seconds, &end, 10);
    if (errno || *end || *seconds < '0' || *seconds > '9' || value == 0 || value > 86400)
        return spate_cli_misuse(&text, "--wait takes seconds from 1 to 86400, not '%s'", seconds);
    snapshot->wait_ms = (int64_t)value * 1000;
    return SPATE_EXIT_OK;
}

/* Printable, and no longer than what fits into a head. */
static enum spate_exit check_name(const char *option, const char *name)
{
    size_t len = strlen(name);

    for (const char *at = name; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            len = 0;
    if (len == 0 || len >= SPATE_BOOK_NAME)
        return spate_cli_misuse(&text, "%s takes a name of 1 to %d printable bytes", option,
                                SPATE_BOOK_NAME - 1);
    return SPATE_EXIT_OK;
}

static enum spate_exit take(struct spate_snapshot *snapshot, int letter)
{
    struct spate_err err = {0};

    switch (letter) {
    case 'c':
        snapshot->stream.file = optarg;
        break;
    case 'b':
        snapshot->stream.path = optarg;
        break;
    case 's':
        snapshot->stream.name = optarg;
        break;
    case SINK:
        snapshot->sink = optarg;
        return check_name("--sink", optarg);
    case TABLES:
        return add_glob(snapshot, optarg);
    case WHERE:
        return add_where(snapshot, optarg);
    case COLUMNS:
        if (spate_words_columns(optarg, &snapshot->columns, &snapshot->column_count, &err) != SPATE_OK)
            return spate_cli_misuse(&text, "%s", err.text);
        break;
    case ROWS:
        snapshot->rows = true;
        break;
    case NAME:
        snapshot->name = optarg;
        return check_name("--name", optarg);
    case FOLLOW:
        snapshot->follow = true;
        break;
    case LIST:
        snapshot->list = true;
        break;
    case ALL:
        snapshot->all = true;
        break;
    case CANCEL:
        snapshot->cancel = optarg;
        break;
    case WAIT:
        return set_wait(snapshot, optarg);
    default:
        break;
    }
    return SPATE_EXIT_OK;
}

/* Exactly one of the ways, and nothing that it would not heed. */
static enum spate_exit check(struct spate_snapshot *snapshot, int count, char **words)
{
    const bool asks = snapshot->sink || snapshot->glob_count > 0;

    if (count > 0 && (asks || snapshot->list || snapshot->cancel || !snapshot->follow || count > 1))
        return spate_cli_misuse(&text,
                                "what is '%s'? Tables are named with --tables, a request with --follow "
                                "ID or --cancel ID",
                                words[count - 1]);
    snapshot->id = count > 0 ? words[0] : NULL;
    if (asks + snapshot->list + (snapshot->cancel != NULL) > 1)
        return spate_cli_misuse(&text, "--list, --cancel and asking (--sink, --tables) are one at a time");
    if (!asks && !snapshot->list && !snapshot->cancel && !snapshot->follow)
        return spate_cli_misuse(&text, "say what to do: --sink NAME, --tables GLOB, --list, --cancel ID or "
                                       "--follow [ID]");
    if (snapshot->all && !snapshot->list)
        return spate_cli_misuse(&text, "--all belongs to --list");
    if (snapshot->follow && (snapshot->list || snapshot->cancel))
        return spate_cli_misuse(&text, "--follow goes with --sink, --tables or a request's ID");
    if (!asks && snapshot->where_count > 0)
        return spate_cli_misuse(&text, "--where goes with --sink or --tables");
    if ((snapshot->columns || snapshot->rows || snapshot->name) && (snapshot->sink || !asks))
        return spate_cli_misuse(&text,
                                "--columns, --rows and --name are for printing: --tables without --sink%s",
                                snapshot->sink ? ". A sink's file says which columns it uses" : "");
    return SPATE_EXIT_OK;
}

static enum spate_exit run(struct spate_snapshot *snapshot)
{
    if (snapshot->list)
        return spate_snapshot_list(snapshot);
    if (snapshot->cancel)
        return spate_snapshot_cancel(snapshot);
    if (snapshot->sink)
        return spate_snapshot_for_sink(snapshot);
    if (snapshot->glob_count > 0)
        return spate_snapshot_print(snapshot);
    return spate_snapshot_follow(snapshot);
}

void spate_snapshot_new_id(struct spate_snapshot *snapshot)
{
    char uuid[37];

    spate_uuid(uuid);
    snprintf(snapshot->own_id, sizeof snapshot->own_id, "%.8s%.4s", uuid, uuid + 9);
}

static void make_names(struct spate_snapshot *snapshot)
{
    char uuid[37];

    spate_uuid(uuid);
    spate_snapshot_new_id(snapshot);
    snprintf(snapshot->own_name, sizeof snapshot->own_name, "snapshot-%.8s", uuid + 28);
    if (!snapshot->name)
        snapshot->name = snapshot->own_name;
}

enum spate_exit spate_cli_snapshot(int argc, char **argv)
{
    struct spate_snapshot snapshot = {.wait_ms = 30000, .text = &text};
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    spate_log_level_set(SPATE_LOG_WARN); /* a person watches */
    while (result == SPATE_EXIT_OK &&
           (got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            goto out;
        result = take(&snapshot, got);
    }
    if (result == SPATE_EXIT_OK)
        result = check(&snapshot, argc - optind, argv + optind);
    if (result == SPATE_EXIT_OK)
        result = spate_cli_stream_open(&snapshot.stream, &text);
    if (result == SPATE_EXIT_OK) {
        make_names(&snapshot);
        result = run(&snapshot);
    }
out:
    spate_cli_stream_close(&snapshot.stream);
    for (size_t i = 0; i < snapshot.where_count; i++)
        spate_words_condition_fini(&snapshot.where[i]);
    for (size_t i = 0; i < snapshot.column_count; i++)
        free(snapshot.columns[i]);
    free(snapshot.where);
    free(snapshot.columns);
    free(snapshot.globs);
    return result;
}
