/* cli/tap.h - watching one stream: what to show, and showing it.
 *
 * Thread: main. Blocks: in the bus' wait and while standard output takes nothing; a stop ends both. */
#ifndef SPATE_CLI_TAP_H
#define SPATE_CLI_TAP_H

#include "bus/bus.h"
#include "cli/stream.h"
#include "core/err.h"
#include "core/glob.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_tap {
    struct spate_cli_stream stream;
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
