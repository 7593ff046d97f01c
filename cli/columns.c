/* cli/columns.c - tables and quantities for people. */
#include "cli/columns.h"

#include "core/alloc.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void spate_columns_add(struct spate_columns *columns, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    columns->cells = spate_realloc(columns->cells, (columns->count + 1) * sizeof *columns->cells);
    columns->cells[columns->count++] = spate_strdup(text);
}

void spate_columns_print(struct spate_columns *columns, struct spate_buf *out)
{
    size_t widest[SPATE_COLUMNS_MOST] = {0};

    for (size_t i = 0; i < columns->count; i++) {
        const size_t len = strlen(columns->cells[i]);

        if (len > widest[i % columns->width])
            widest[i % columns->width] = len;
    }
    for (size_t i = 0; i < columns->count; i++) {
        const size_t column = i % columns->width;

        if (column + 1 == columns->width)
            spate_buf_printf(out, "%s\n", columns->cells[i]);
        else
            spate_buf_printf(out, "%-*s  ", (int)widest[column], columns->cells[i]);
        free(columns->cells[i]);
    }
    free(columns->cells);
    columns->cells = NULL;
    columns->count = 0;
}

const char *spate_quantity_bytes(uint64_t bytes, char out[SPATE_QUANTITY])
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes / 1024;
    size_t unit = 0;

    for (; value >= 1024 && unit + 1 < SPATE_COUNT(units); unit++)
        value /= 1024;
    if (bytes < 1024)
        snprintf(out, SPATE_QUANTITY, "%" PRIu64 " B", bytes);
    else
        snprintf(out, SPATE_QUANTITY, "%.1f %s", value, units[unit]);
    return out;
}

const char *spate_quantity_time(int64_t us, char out[SPATE_QUANTITY])
{
    const double s = (double)us / 1e6;

    if (us < 0)
        snprintf(out, SPATE_QUANTITY, "-");
    else if (s < 120)
        snprintf(out, SPATE_QUANTITY, "%.1f s", s);
    else if (s < 7200)
        snprintf(out, SPATE_QUANTITY, "%.0f min", s / 60);
    else if (s < 48 * 3600)
        snprintf(out, SPATE_QUANTITY, "%.1f h", s / 3600);
    else
        snprintf(out, SPATE_QUANTITY, "%.1f d", s / 86400);
    return out;
}
