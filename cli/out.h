/* cli/out.h - standard output for commands that print for as long as somebody reads.
 *
 * Thread: main. Blocks: while standard output takes nothing; a stop and a closed pipe end that. */
#ifndef SPATE_CLI_OUT_H
#define SPATE_CLI_OUT_H

#include "core/buf.h"
#include "core/err.h"

#include <stdbool.h>

#define SPATE_OUT_FLUSH (1 << 16) /* bytes; when the stream pauses, all is written at once anyway */

struct spate_cli_out {
    struct spate_buf buf;
    bool gone; /* nobody reads standard output any more */
};

/* Writes all of buf. FAILED, with words on stderr, when that cannot be done. */
enum spate_exit spate_cli_out_flush(struct spate_cli_out *out);
/* A closed pipe shows itself even when there is nothing to write. */
void spate_cli_out_glance(struct spate_cli_out *out);
/* A stop was asked for, or nobody reads any more. */
bool spate_cli_out_over(const struct spate_cli_out *out);

#endif
