/* cli/main.c - one executable, many subcommands. */
#include "cli/cli.h"

#include "core/alloc.h"
#include "core/failpoint.h"
#include "core/options.h"
#include "core/signals.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command {
    const char *name;
    enum spate_exit (*run)(int argc, char **argv);
    const char *doc;
} commands[] = {
    {"connector", spate_cli_connector, "the daemon beside a database: every row change becomes a message"},
    {"sink", spate_cli_sink, "one or many sinks: messages become rows of a team's own tables"},
    {"check", spate_cli_check, "find out beforehand what would fail later, with the statement that mends it"},
    {"tap", spate_cli_tap, "watch the bus"},
    {"bus", spate_cli_bus, "what is on the local bus, who reads it and who writes it"},
    {"snapshot", spate_cli_snapshot, "ask for the rows that exist now"},
    {"reference", spate_cli_reference, "print the reference of all configuration keys"},
};

static void list(FILE *out)
{
    fputs("usage: spate COMMAND [OPTION ...]\n\n", out);
    for (size_t i = 0; i < SPATE_COUNT(commands); i++)
        fprintf(out, "  spate %-10s %s\n", commands[i].name, commands[i].doc);
    fputs("\n'spate COMMAND --help' says more. 'spate --version' names the version.\n", out);
}

static enum spate_exit unknown(const char *word)
{
    const char *names[SPATE_COUNT(commands)];
    const char *near;

    for (size_t i = 0; i < SPATE_COUNT(commands); i++)
        names[i] = commands[i].name;
    near = spate_nearest(word, names, SPATE_COUNT(commands));
    fprintf(stderr, "spate: there is no command '%s'", word);
    if (near)
        fprintf(stderr, "; did you mean %s?", near);
    fputs("\n", stderr);
    list(stderr);
    return SPATE_EXIT_CONFIG;
}

/* Were one of the first three descriptors closed, the next file that is opened would take its number, and
 * what is meant for people would be written into it. */
static void guard_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

#ifdef FAILPOINTS
/* The build for tests of crashes (core/failpoint.h). False: the process is to end with *result. */
static bool failpoints(int argc, char **argv, enum spate_exit *result)
{
    struct spate_err err = {0};

    if (argc == 2 && strcmp(argv[1], "failpoints") == 0) {
        spate_failpoint_list(stdout);
        *result = SPATE_EXIT_OK;
        return false;
    }
    if (spate_failpoint_init(getenv("SPATE_FP"), &err) == SPATE_OK)
        return true;
    fprintf(stderr, "spate: %s\nthe failpoints are:\n", err.text);
    spate_failpoint_list(stderr);
    *result = SPATE_EXIT_CONFIG;
    return false;
}
#else
static bool failpoints(int argc, char **argv, enum spate_exit *result)
{
    (void)argc, (void)argv, (void)result;
    return true;
}
#endif

int main(int argc, char **argv)
{
    enum spate_exit result;

    guard_descriptors();
    signal(SIGPIPE, SIG_IGN);
    if (!failpoints(argc, argv, &result))
        return (int)result;
    if (argc < 2) {
        list(stderr);
        return SPATE_EXIT_CONFIG;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("spate %s\n", spate_version);
        return SPATE_EXIT_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        list(stdout);
        return SPATE_EXIT_OK;
    }
    for (size_t i = 0; i < SPATE_COUNT(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0) {
            spate_signals_init();
            return (int)commands[i].run(argc - 1, argv + 1);
        }
    return (int)unknown(argv[1]);
}
