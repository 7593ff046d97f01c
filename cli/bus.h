/* cli/bus.h - spate bus: what is on the local bus, who reads and who writes it.
 *
 * Thread: main. Blocks: while files are read. It disturbs nobody (bus/local/look.h); `release` alone writes.
 */
#ifndef SPATE_CLI_BUS_H
#define SPATE_CLI_BUS_H

#include "bus/local/look.h"
#include "bus/local/named.h"
#include "cli/cli.h"
#include "cli/stream.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_cli_bus {
    struct spate_cli_stream stream;
    const struct spate_local_place *place; /* of the bus; NULL: it is no local one */
    const struct spate_cli_text *text;
    char **topics; /* owned; sorted */
    size_t topic_count;
    const char *name;  /* of a reader; or NULL */
    const char *topic; /* or NULL: all of them */
    const char *at;    /* inspect: a position; or NULL */
    bool json, verify;
    char topic_escaped[SPATE_STREAM_TOPIC], name_escaped[SPATE_STREAM_TOPIC]; /* as the bus writes them */
};

enum spate_exit spate_cli_bus_ls(struct spate_cli_bus *bus);
enum spate_exit spate_cli_bus_readers(struct spate_cli_bus *bus);
enum spate_exit spate_cli_bus_inspect(struct spate_cli_bus *bus);
enum spate_exit spate_cli_bus_release(struct spate_cli_bus *bus);

bool spate_cli_bus_has(const struct spate_cli_bus *bus, const char *topic);
/* "no topic NAME on the bus ...; did you mean" to stderr. */
enum spate_exit spate_cli_bus_no_topic(const struct spate_cli_bus *bus, const char *topic);

/* "durable, shared, kept" */
#define SPATE_KIND 64
const char *spate_cli_bus_kind(const struct spate_local_seen *seen, char out[SPATE_KIND]);
/* What keeps a writer from going on to the next segment, with the remedy; false: nothing does. */
bool spate_cli_bus_stopped(const struct spate_local_seen *seen, struct spate_buf *out);
/* A line for each segment that somebody cut in shared memory, with the remedy. */
void spate_cli_bus_cut(const struct spate_local_seen *seen, struct spate_buf *out);
/* "gate":..., "why":... and so on: the facts of one topic, without braces. */
void spate_cli_bus_topic_json(const struct spate_local_seen *seen, struct spate_buf *out);

#endif
