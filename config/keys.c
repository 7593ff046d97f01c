/* config/keys.c - walks dotted option keys as a tree, without ever building the tree. */
#include "config/keys.h"

const char *spate_keys_full(const struct spate_option_table *table, const struct spate_option *option,
                            struct spate_buf *out)
{
    spate_buf_reset(out);
    if (table->prefix[0] != '\0')
        spate_buf_printf(out, "%s.", table->prefix);
    spate_buf_puts(out, option->key);
    return spate_buf_str(out);
}

/* The part of a full key that stands behind the level, or NULL when it is not below it. */
static const char *below(const char *full, const char *level)
{
    size_t len = strlen(level);

    if (len == 0)
        return full;
    if (strncmp(full, level, len) != 0 || full[len] != '.')
        return NULL;
    return full + len + 1;
}

/* Has an option before number `index` the same component at this level? */
static bool seen_before(const struct spate_keys *keys, const char *level, size_t index,
                        struct spate_slice name)
{
    struct spate_buf full = {0};
    size_t at = 0;
    bool seen = false;

    for (size_t t = 0; t < keys->count && !seen && at < index; t++)
        for (size_t i = 0; i < keys->tables[t].count && !seen && at < index; i++, at++) {
            const char *rest =
                below(spate_keys_full(&keys->tables[t], &keys->tables[t].options[i], &full), level);

            seen = rest && spate_slice_eq(spate_slice(rest, strcspn(rest, ".")), name);
        }
    spate_buf_fini(&full);
    return seen;
}

void spate_keys_children(const struct spate_keys *keys, const char *level,
                         bool (*each)(void *arg, const struct spate_key *key), void *arg)
{
    struct spate_buf full = {0};
    size_t index = 0;
    bool more = true;

    for (size_t t = 0; t < keys->count && more; t++)
        for (size_t i = 0; i < keys->tables[t].count && more; i++, index++) {
            const struct spate_option *option = &keys->tables[t].options[i];
            const char *rest = below(spate_keys_full(&keys->tables[t], option, &full), level);
            struct spate_key key = {.index = index, .offset = keys->tables[t].offset + option->offset};

            if (!rest)
                continue;
            key.name = spate_slice(rest, strcspn(rest, "."));
            if (rest[key.name.len] == '\0')
                key.option = option;
            else if (seen_before(keys, level, index, key.name))
                continue;
            more = each(arg, &key);
        }
    spate_buf_fini(&full);
}

size_t spate_keys_options(const struct spate_keys *keys)
{
    size_t total = 0;

    for (size_t t = 0; t < keys->count; t++)
        total += keys->tables[t].count;
    return total;
}
