/* config/scalar.h - one option's text to its member and back. Internal to config/. */
#ifndef SPATE_CONFIG_SCALAR_H
#define SPATE_CONFIG_SCALAR_H

#include "core/buf.h"
#include "core/options.h"

#include <stdbool.h>

/* Parses text for BOOL, INT, DURATION, BYTES, ENUM or STRING. False: not what the option takes; the member is
 * untouched then. A STRING is copied (and the old one freed). */
bool spate_scalar_parse(const struct spate_option *option, const char *text, void *member);

/* Sets the member to the option's fallback, as if the file had said it. LIST: its items, parted by commas. */
void spate_scalar_fallback(const struct spate_option *option, void *member);

/* "a duration such as 10s from 1s to 1h": what the option takes, for errors and the reference. */
void spate_scalar_expected(const struct spate_option *option, struct spate_buf *out);

/* The member as one would write it, unquoted. False: it is unset (a STRING that is NULL). */
bool spate_scalar_format(const struct spate_option *option, const void *member, struct spate_buf *out);

#endif
