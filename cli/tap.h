/* cli/tap.h - watching one stream: what to show, and showing it.
 *
 * Thread: main. Blocks: in the bus' wait and while standard output takes nothing; a stop ends both. */
#ifndef SPATE_CLI_TAP_H
#define SPATE_CLI_TAP_H

#include "bus/bus.h"
#include "core/err.h"
#include "core/glob.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_TAP_TOPIC 256

struct spate_tap {
    struct spate_bus *bus; /* owned */
    const char *stream;    /* as the user named it, or NULL */
    char *owned;           /* the stream's name where a file or the bus gave it */
    char topic[SPATE_TAP_TOPIC];
    struct spate_glob **globs; /* owned; none: all tables, and messages of no table */
    size_t glob_count;
    unsigned ops; /* bit per enum spate_op; 0: all */
    struct spate_start start;
    enum spate_visibility see;
    uint64_t limit; /* 0: no limit */
    bool show_pos;
};

/* Shows until the limit, a stop, or the closed pipe behind standard output: all three are OK. */
enum spate_exit spate_tap_run(const struct spate_tap *tap);

#endif
