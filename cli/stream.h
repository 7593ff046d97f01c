/* cli/stream.h - which bus and which stream a command line means; the same words for all commands that look
 * at one: -c FILE, --bus BUS, the variable SPATE_BUS, --stream NAME.
 *
 * Thread: main. Blocks: while the bus is opened and asked for its topics. */
#ifndef SPATE_CLI_STREAM_H
#define SPATE_CLI_STREAM_H

#include "bus/bus.h"
#include "cli/cli.h"

#define SPATE_STREAM_TOPIC 256

struct spate_cli_stream {
    const char *file, *path; /* of -c and --bus, or NULL */
    const char *name;        /* the connector's; as the user, the file or the bus names it */
    struct spate_bus *bus;   /* owned */
    char *owned;             /* the name where a file or the bus gave it */
    char topic[SPATE_STREAM_TOPIC];
};

/* Fills bus alone, and the name where a file gives it. */
enum spate_exit spate_cli_stream_bus(struct spate_cli_stream *stream, const struct spate_cli_text *text);
/* Fills bus, name and topic from the words that were given. */
enum spate_exit spate_cli_stream_open(struct spate_cli_stream *stream, const struct spate_cli_text *text);
/* A topic beside the stream's own: "_schemas", "_control". */
void spate_cli_stream_beside(const struct spate_cli_stream *stream, const char *which,
                             char out[SPATE_STREAM_TOPIC + 16]);
void spate_cli_stream_close(struct spate_cli_stream *stream); /* readers and writers are closed before */

#endif
