/* cli/keys.h - a set of keys as they stand in messages ({"id":42}): those that are to be read again.
 *
 * Not shared between threads. Memory: the texts and sixteen bytes each; the caller bounds it. */
#ifndef SPATE_CLI_KEYS_H
#define SPATE_CLI_KEYS_H

#include "core/buf.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>

struct spate_keys {
    char **slots;    /* owned texts; open addressing, a power of two */
    size_t capacity; /* 0: empty */
    size_t count;
    size_t bytes;
};

bool spate_keys_add(struct spate_keys *keys, struct spate_slice key); /* false: was there already */
bool spate_keys_remove(struct spate_keys *keys, struct spate_slice key);
/* Up to `most` of them as a JSON array. */
void spate_keys_array(const struct spate_keys *keys, size_t most, struct spate_buf *out);
void spate_keys_clear(struct spate_keys *keys); /* empty again, and nothing is held */

#endif
