#include "cli/keys.h"

#include "core/alloc.h"
#include "core/hash.h"

#include <stdlib.h>
#include <string.h>

#define FIRST 64

static size_t home(const struct spate_keys *keys, const char *at, size_t len)
{
    return (size_t)spate_fnv64(SPATE_FNV64_START, at, len) & (keys->capacity - 1);
}

/* Where the key is, or the free slot where it would be. */
static size_t find(const struct spate_keys *keys, const char *at, size_t len)
{
    size_t i = home(keys, at, len);

    while (keys->slots[i] && (strncmp(keys->slots[i], at, len) != 0 || keys->slots[i][len]))
        i = (i + 1) & (keys->capacity - 1);
    return i;
}

static void grow(struct spate_keys *keys)
{
    struct spate_keys old = *keys;

    keys->capacity = old.capacity ? old.capacity * 2 : FIRST;
    keys->slots = spate_zalloc(keys->capacity * sizeof *keys->slots);
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slots[i])
            keys->slots[find(keys, old.slots[i], strlen(old.slots[i]))] = old.slots[i];
    free(old.slots);
}

bool spate_keys_add(struct spate_keys *keys, struct spate_slice key)
{
    size_t i;

    if (keys->count * 4 >= keys->capacity * 3)
        grow(keys);
    i = find(keys, key.at, key.len);
    if (keys->slots[i])
        return false;
    keys->slots[i] = spate_strndup(key.at, key.len);
    keys->count++;
    keys->bytes += key.len + 1;
    return true;
}

bool spate_keys_remove(struct spate_keys *keys, struct spate_slice key)
{
    size_t hole, i;

    if (keys->count == 0)
        return false;
    hole = find(keys, key.at, key.len);
    if (!keys->slots[hole])
        return false;
    free(keys->slots[hole]);
    keys->slots[hole] = NULL;
    keys->count--;
    keys->bytes -= key.len + 1;
    /* Those behind it that the hole would hide move up. */
    for (i = (hole + 1) & (keys->capacity - 1); keys->slots[i]; i = (i + 1) & (keys->capacity - 1)) {
        size_t want = home(keys, keys->slots[i], strlen(keys->slots[i]));

        if (((i - want) & (keys->capacity - 1)) >= ((i - hole) & (keys->capacity - 1))) {
            keys->slots[hole] = keys->slots[i];
            keys->slots[i] = NULL;
            hole = i;
        }
    }
    return true;
}

void spate_keys_array(const struct spate_keys *keys, size_t most, struct spate_buf *out)
{
    size_t put = 0;

    spate_buf_putc(out, '[');
    for (size_t i = 0; i < keys->capacity && put < most; i++) {
        if (!keys->slots[i])
            continue;
        if (put++ > 0)
            spate_buf_putc(out, ',');
        spate_buf_puts(out, keys->slots[i]);
    }
    spate_buf_putc(out, ']');
}

void spate_keys_clear(struct spate_keys *keys)
{
    for (size_t i = 0; i < keys->capacity; i++)
        free(keys->slots[i]);
    free(keys->slots);
    *keys = (struct spate_keys){0};
}
