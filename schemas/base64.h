/* schemas/base64.h - RFC 4648 base64 with padding, for bytes that are no text. */
#ifndef SPATE_SCHEMAS_BASE64_H
#define SPATE_SCHEMAS_BASE64_H

#include "core/buf.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>

void spate_base64_encode(struct spate_buf *out, struct spate_slice bytes);

/* Writes at most text.len / 4 * 3 bytes to `out` and their number to *len. False: not the one way in which
 * some bytes are written (wrong length, foreign character, padding inside, stray bits at the end). */
bool spate_base64_decode(struct spate_slice text, char *out, size_t *len);

#endif
