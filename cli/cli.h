/* cli/cli.h - the subcommands: argument handling and calls, nothing else. */
#ifndef SPATE_CLI_CLI_H
#define SPATE_CLI_CLI_H

#include "core/err.h"

enum spate_exit spate_cli_connector(int argc, char **argv);
enum spate_exit spate_cli_sink(int argc, char **argv);
enum spate_exit spate_cli_tap(int argc, char **argv);
enum spate_exit spate_cli_reference(int argc, char **argv); /* writes config/REFERENCE.md to stdout */

#endif
