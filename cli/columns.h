/* cli/columns.h - rows of words under each other, and quantities as people read them. Pure functions. */
#ifndef SPATE_CLI_COLUMNS_H
#define SPATE_CLI_COLUMNS_H

#include "core/buf.h"
#include "core/err.h"

#include <stddef.h>
#include <stdint.h>

#define SPATE_COLUMNS_MOST 12

struct spate_columns {
    size_t width; /* cells of a row; at most SPATE_COLUMNS_MOST */
    char **cells; /* owned; row by row */
    size_t count;
};

void spate_columns_add(struct spate_columns *columns, const char *fmt, ...) SPATE_PRINTF(2, 3);
/* Appends all rows, each cell as wide as the widest of its column, and forgets them. */
void spate_columns_print(struct spate_columns *columns, struct spate_buf *out);

#define SPATE_QUANTITY 32
/* "0 B", "12.3 MiB". */
const char *spate_quantity_bytes(uint64_t bytes, char out[SPATE_QUANTITY]);
/* "0.3 s", "12 min", "3.5 h", "7 d"; negative: "-". */
const char *spate_quantity_time(int64_t us, char out[SPATE_QUANTITY]);

#endif
