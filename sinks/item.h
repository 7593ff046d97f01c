/* sinks/item.h - one change as a sink keeps it until it is applied: only what the projection uses. */
#ifndef SPATE_SINKS_ITEM_H
#define SPATE_SINKS_ITEM_H

#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_projection;
struct spate_version;

/* Everything it points at lives in the batch's arena. */
struct spate_item {
    enum spate_op op; /* insert, update, delete, truncate; of a snapshot: read is a whole row, chunk a key
                         that was looked up and is answered (key only) */
    uint64_t n;
    const struct spate_version *version;    /* NULL for truncate */
    const struct spate_value *key;          /* the row's identity now (on delete: then) */
    const struct spate_value *old_key;      /* where an update moved the key, else NULL */
    const struct spate_value *values;       /* version->used_count; NULL on delete and chunk */
    const struct spate_projection **tables; /* truncate: the target tables to empty */
    size_t table_count;
};

#endif
