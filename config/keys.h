/* config/keys.h - the tree that dotted option keys describe, level by level. Internal to config/.
 *
 * A level is named by its dotted path ("" is the root, "source.postgres" one below). Its children are either
 * options or further levels; a table's own prefix is part of the path. */
#ifndef SPATE_CONFIG_KEYS_H
#define SPATE_CONFIG_KEYS_H

#include "core/buf.h"
#include "core/options.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>

struct spate_keys {
    const struct spate_option_table *tables;
    size_t count;
};

struct spate_key {
    struct spate_slice name;           /* the component at this level: "postgres" */
    const struct spate_option *option; /* NULL: a further level */
    size_t offset;                     /* of the option's member in the outer struct */
    size_t index;                      /* of the option among all options of all tables */
};

/* Writes the dotted key of one option, its table's prefix included. Returns out. */
const char *spate_keys_full(const struct spate_option_table *table, const struct spate_option *option,
                            struct spate_buf *out);

/* Calls `each` for every child of the level once, in the order of the tables, until it returns false. */
void spate_keys_children(const struct spate_keys *keys, const char *level,
                         bool (*each)(void *arg, const struct spate_key *key), void *arg);

size_t spate_keys_options(const struct spate_keys *keys); /* how many options there are in all */

#endif
