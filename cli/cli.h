/* cli/cli.h - the subcommands: argument handling and calls, nothing else.
 *
 * Each takes argv from its own name on, and returns the process' exit code (core/err.h). */
#ifndef SPATE_CLI_CLI_H
#define SPATE_CLI_CLI_H

#include "core/buf.h"
#include "core/err.h"
#include "core/version.h"

#include <getopt.h>
#include <stdbool.h>

enum spate_exit spate_cli_connector(int argc, char **argv);
enum spate_exit spate_cli_sink(int argc, char **argv);
enum spate_exit spate_cli_check(int argc, char **argv);
enum spate_exit spate_cli_tap(int argc, char **argv);
enum spate_exit spate_cli_bus(int argc, char **argv);
enum spate_exit spate_cli_snapshot(int argc, char **argv);
enum spate_exit spate_cli_reference(int argc, char **argv); /* writes config/REFERENCE.md to stdout */

/* What every subcommand says about itself. */
struct spate_cli_text {
    const char *usage; /* one line: "spate tap [TABLE-GLOB ...] ..." */
    const char *help;  /* the rest of --help */
};

/* getopt_long with `options` and, besides, --help. Returns the option's value; -1 at the end of the options;
 * '?' when the program is to end with *result: --help was printed, or the mistake with the usage line. */
int spate_cli_next(int argc, char **argv, const char *letters, const struct option *options,
                   const struct spate_cli_text *text, enum spate_exit *result);

/* Prints "spate COMMAND: what" and the usage line to stderr. Returns SPATE_EXIT_CONFIG. */
enum spate_exit spate_cli_misuse(const struct spate_cli_text *text, const char *fmt, ...) SPATE_PRINTF(2, 3);

/* Is the file one of the other kind ("connector" or "sink")? Then says so and returns true. A file that
 * cannot be read is none: loading it says why. */
bool spate_cli_other_kind(const struct spate_cli_text *text, const char *path, const char *kind);

/* Prints what failed to stderr and returns the exit code that belongs to it. */
enum spate_exit spate_cli_failed(const struct spate_err *err);

/* Writes all of it to stdout. FAILED, with words on stderr, when that cannot be done; OK also when the reader
 * of a pipe is gone: it has seen enough. */
enum spate_exit spate_cli_print(const struct spate_buf *text);

#endif
