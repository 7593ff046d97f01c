/* connector/versions.c - a hash table by (schema, table); a chain holds that table's versions. */
#include "connector/versions.h"

#include "core/alloc.h"
#include "core/hash.h"

#include <stdlib.h>

#define BUCKETS 4096u

struct version {
    struct version *next;
    struct spate_table *table; /* owned */
    bool ambiguous;            /* another shape was published under the same v: it is not used again */
    uint64_t said;             /* when it was published last: the greatest is the table's present */
};

struct spate_versions {
    uint64_t said;
    struct version *buckets[BUCKETS];
};

struct spate_versions *spate_versions_new(void)
{
    return spate_zalloc(sizeof(struct spate_versions));
}

void spate_versions_free(struct spate_versions *versions)
{
    if (!versions)
        return;
    for (size_t i = 0; i < BUCKETS; i++) {
        struct version *next;

        for (struct version *at = versions->buckets[i]; at; at = next) {
            next = at->next;
            spate_table_free(at->table);
            free(at);
        }
    }
    free(versions);
}

static struct version **bucket(struct spate_versions *versions, const struct spate_table *table)
{
    uint64_t hash = spate_fnv64(SPATE_FNV64_START, table->schema.at, table->schema.len);

    hash = spate_fnv64(hash, "", 1); /* a NUL, so that ("a","bc") and ("ab","c") differ */
    hash = spate_fnv64(hash, table->name.at, table->name.len);
    return &versions->buckets[hash % BUCKETS];
}

static bool same_name(const struct spate_table *a, const struct spate_table *b)
{
    return spate_slice_eq(a->schema, b->schema) && spate_slice_eq(a->name, b->name);
}

static struct version *find(struct version *at, const struct spate_table *table)
{
    while (at &&
           (at->ambiguous || at->table->fingerprint != table->fingerprint || !same_name(at->table, table)))
        at = at->next;
    return at;
}

static void push(struct spate_versions *versions, struct version **into, struct spate_table *table)
{
    struct version *version = spate_alloc(sizeof *version);

    *version = (struct version){.next = *into, .table = table, .said = ++versions->said};
    *into = version;
}

/* Was another shape of the table published after this one? */
static bool is_past(const struct version *at, const struct version *known)
{
    for (; at; at = at->next)
        if (at->said > known->said && same_name(at->table, known->table))
            return true;
    return false;
}

bool spate_versions_take_known(struct spate_versions *versions, struct spate_table *table)
{
    struct version **into = bucket(versions, table), *known = find(*into, table);

    if (known) {
        known->said = ++versions->said;
        spate_table_free(table);
        return true;
    }
    for (struct version *at = *into; at; at = at->next)
        if (same_name(at->table, table) && at->table->v == table->v) {
            const bool news = !at->ambiguous;

            at->ambiguous = true;
            spate_table_free(table);
            return !news;
        }
    push(versions, into, table);
    return true;
}

const struct spate_table *spate_versions_take(struct spate_versions *versions, struct spate_table *table,
                                              bool *fresh)
{
    struct version **into = bucket(versions, table);
    struct version *known = find(*into, table);
    uint32_t greatest = 0;

    *fresh = !known || is_past(*into, known);
    if (known && *fresh)
        known->said = ++versions->said;
    if (known) {
        spate_table_free(table);
        return known->table;
    }
    for (const struct version *at = *into; at; at = at->next)
        if (same_name(at->table, table) && at->table->v > greatest)
            greatest = at->table->v;
    table->v = greatest + 1;
    push(versions, into, table);
    return table;
}
