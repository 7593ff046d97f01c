/* core/clock.h - monotonic time for every timeout, wall time for display only (T31). */
#ifndef SPATE_CORE_CLOCK_H
#define SPATE_CORE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

int64_t spate_clock_ms(void);      /* monotonic, never goes back */
int64_t spate_clock_us(void);      /* monotonic */
int64_t spate_clock_wall_us(void); /* since 1970-01-01 UTC */

#define SPATE_TIMESTAMP_LEN 27 /* 2026-11-21T09:14:03.123456Z */

/* Writes exactly SPATE_TIMESTAMP_LEN bytes, no NUL. Years outside 0000..9999 are clamped. */
void spate_clock_format(int64_t wall_us, char out[SPATE_TIMESTAMP_LEN]);

#endif
