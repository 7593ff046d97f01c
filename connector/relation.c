/* connector/relation.c - the cache by OID, and a Relation message's way to a canonical table. */
#include "connector/relation.h"

#include "core/alloc.h"

#include <stdlib.h>

/* Relation OIDs are dense numbers from one counter: a multiplication spreads them. */
static size_t slot_of(uint32_t oid, size_t cap)
{
    return (size_t)(oid * 2654435769u) & (cap - 1);
}

void spate_relations_fini(struct spate_relations *relations)
{
    for (size_t i = 0; i < relations->cap; i++)
        spate_cover_free(relations->slots[i].cover);
    for (size_t i = 0; i < relations->retired_count; i++)
        spate_cover_free(relations->retired[i]);
    free(relations->retired);
    free(relations->slots);
    spate_catalog_tables_free(relations->known, relations->known_count);
    *relations = (struct spate_relations){0};
}

void spate_relations_start(struct spate_relations *relations, struct spate_catalog_table *known,
                           size_t known_count)
{
    spate_relations_fini(relations);
    relations->known = known;
    relations->known_count = known_count;
}

const struct spate_relation *spate_relations_at(const struct spate_relations *relations, uint32_t oid)
{
    if (relations->cap == 0)
        return NULL;
    for (size_t i = slot_of(oid, relations->cap);; i = (i + 1) & (relations->cap - 1)) {
        if (relations->slots[i].oid == oid)
            return &relations->slots[i];
        if (relations->slots[i].oid == 0)
            return NULL;
    }
}

const struct spate_table *spate_relations_find(const struct spate_relations *relations, uint32_t oid)
{
    const struct spate_relation *relation = spate_relations_at(relations, oid);

    return relation ? relation->table : NULL;
}

static void insert(struct spate_relation *slots, size_t cap, struct spate_relation relation)
{
    size_t i = slot_of(relation.oid, cap);

    while (slots[i].oid != 0 && slots[i].oid != relation.oid)
        i = (i + 1) & (cap - 1);
    slots[i] = relation;
}

/* The source says what a table looks like again and again: what is the same stays. */
static struct spate_cover *replace(struct spate_relations *relations, const struct spate_relation *old,
                                   const struct spate_table *table, struct spate_cover *cover)
{
    if (old->table == table && old->cover && cover) {
        spate_cover_free(cover);
        return old->cover;
    }
    if (old->cover) {
        relations->retired =
            spate_realloc(relations->retired, (relations->retired_count + 1) * sizeof(void *));
        relations->retired[relations->retired_count++] = old->cover;
    }
    return cover;
}

void spate_relations_set(struct spate_relations *relations, uint32_t oid, const struct spate_table *table,
                         struct spate_cover *cover)
{
    const struct spate_relation *old = spate_relations_at(relations, oid);

    if (old)
        cover = replace(relations, old, table, cover);
    if ((relations->count + 1) * 2 > relations->cap) {
        size_t cap = relations->cap ? relations->cap * 2 : 64;
        struct spate_relation *slots = spate_zalloc(cap * sizeof *slots);

        for (size_t i = 0; i < relations->cap; i++)
            if (relations->slots[i].oid != 0)
                insert(slots, cap, relations->slots[i]);
        free(relations->slots);
        relations->slots = slots;
        relations->cap = cap;
    }
    relations->count += !old;
    insert(relations->slots, relations->cap, (struct spate_relation){oid, table, cover});
}

bool spate_relation_agrees(const struct spate_pgoutput *msg, const struct spate_table *table)
{
    struct spate_slice at = msg->relation.at;

    if (!spate_slice_eq(msg->relation.schema, table->schema) ||
        !spate_slice_eq(msg->relation.table, table->name) ||
        (char)table->identity != msg->relation.identity || msg->relation.count != table->column_count)
        return false;
    for (size_t i = 0; i < table->column_count; i++) {
        struct spate_pgoutput_attribute a = spate_pgoutput_attribute(&at);
        const struct spate_column *c = &table->columns[i];

        if (!spate_slice_eq(a.name, c->name) || a.oid != c->oid || a.mod != c->mod ||
            a.identity != c->identity)
            return false;
    }
    return true;
}

static int find_attribute(const struct spate_pgoutput *msg, struct spate_slice name, bool *identity)
{
    struct spate_slice at = msg->relation.at;

    for (int i = 0; i < msg->relation.count; i++) {
        struct spate_pgoutput_attribute a = spate_pgoutput_attribute(&at);

        if (spate_slice_eq(a.name, name)) {
            *identity = a.identity;
            return i;
        }
    }
    return -1;
}

static size_t count_identity(const struct spate_pgoutput *msg)
{
    struct spate_slice at = msg->relation.at;
    size_t count = 0;

    for (unsigned i = 0; i < msg->relation.count; i++)
        count += spate_pgoutput_attribute(&at).identity;
    return count;
}

/* Fills key with column numbers, in key order, and returns how many.
 * The catalog speaks of now, the message of then. Its key stands when it names the same columns as the
 * message's identity flags, or, under FULL, where every column is flagged (P45), and under NOTHING, where
 * none is, columns that the message has. Otherwise the flags are the key, in column order; under FULL there
 * is none. */
static size_t choose_key(const struct spate_pgoutput *msg, const struct spate_table *hint, uint32_t *key)
{
    bool none = msg->relation.identity == SPATE_IDENTITY_NOTHING;
    bool full = none || msg->relation.identity == SPATE_IDENTITY_FULL;
    size_t flagged = count_identity(msg), count = 0;
    struct spate_slice at = msg->relation.at;

    if (hint && (full || hint->key_count == flagged)) {
        for (; count < hint->key_count; count++) {
            bool identity = false;
            int i = find_attribute(msg, hint->columns[hint->key[count]].name, &identity);

            if (i < 0 || !(identity || none))
                break;
            key[count] = (uint32_t)i;
        }
        if (count == hint->key_count)
            return count;
    }
    if (full)
        return 0;
    count = 0;
    for (uint32_t i = 0; i < msg->relation.count; i++)
        if (spate_pgoutput_attribute(&at).identity)
            key[count++] = i;
    return count;
}

struct spate_table *spate_relation_build(const struct spate_pgoutput *msg,
                                         const struct spate_catalog_type *types,
                                         const struct spate_table *hint)
{
    struct spate_slice at = msg->relation.at;
    uint32_t *key = spate_alloc(((size_t)msg->relation.count + 1) * sizeof *key);
    size_t key_count = choose_key(msg, hint, key);
    struct spate_table *table =
        spate_table_new(msg->relation.schema, msg->relation.table,
                        (enum spate_identity)msg->relation.identity, msg->relation.count, key_count);

    for (size_t i = 0; i < msg->relation.count; i++) {
        struct spate_pgoutput_attribute a = spate_pgoutput_attribute(&at);

        spate_table_set_column(table, i, a.name, spate_slice_str(types[i].name),
                               spate_slice_str(types[i].base), a.oid, a.mod, types[i].len, a.identity,
                               spate_class_of(types[i].base_oid));
    }
    for (size_t i = 0; i < key_count; i++)
        table->key[i] = key[i];
    free(key);
    spate_table_seal(table);
    return table;
}

struct spate_table *spate_relation_copy(const struct spate_table *from)
{
    struct spate_table *table =
        spate_table_new(from->schema, from->name, from->identity, from->column_count, from->key_count);

    for (size_t i = 0; i < from->column_count; i++) {
        const struct spate_column *c = &from->columns[i];

        spate_table_set_column(table, i, c->name, c->type, c->base, c->oid, c->mod, c->len, c->identity,
                               c->json_class);
        spate_table_set_mask(table, i, c->mask);
    }
    for (size_t i = 0; i < from->key_count; i++)
        table->key[i] = from->key[i];
    spate_table_seal(table);
    return table;
}

static int by_oid(const void *a, const void *b)
{
    uint32_t x = ((const struct spate_catalog_table *)a)->oid,
             y = ((const struct spate_catalog_table *)b)->oid;

    return x < y ? -1 : x > y;
}

static const struct spate_catalog_table *find_known(const struct spate_relations *relations, uint32_t oid)
{
    struct spate_catalog_table wanted = {.oid = oid};

    return relations->known_count
               ? bsearch(&wanted, relations->known, relations->known_count, sizeof wanted, by_oid)
               : NULL;
}

const struct spate_cover *spate_relations_cover(const struct spate_relations *relations, uint32_t oid)
{
    const struct spate_relation *relation = spate_relations_at(relations, oid);
    const struct spate_catalog_table *known = find_known(relations, oid);

    return relation && relation->cover ? relation->cover : known ? known->cover : NULL;
}

enum spate_rc spate_relation_resolve(const struct spate_relations *relations, struct spate_catalog *catalog,
                                     const struct spate_pgoutput *msg, struct spate_table **table,
                                     struct spate_err *err)
{
    const struct spate_catalog_table *known = find_known(relations, msg->relation.oid);
    struct spate_table *now = NULL;
    struct spate_catalog_type *types;
    struct spate_slice at = msg->relation.at;
    enum spate_rc rc;

    if (known && spate_relation_agrees(msg, known->table)) {
        *table = spate_relation_copy(known->table);
        return SPATE_OK;
    }
    /* The table changed since we looked, or the stream is still before a change that the catalog has. */
    rc = spate_catalog_table(catalog, msg->relation.oid, &now, err);
    if (rc != SPATE_OK)
        return rc;
    if (now && spate_relation_agrees(msg, now)) {
        *table = now;
        return SPATE_OK;
    }
    types = spate_zalloc(((size_t)msg->relation.count + 1) * sizeof *types);
    for (size_t i = 0; i < msg->relation.count; i++) {
        struct spate_pgoutput_attribute a = spate_pgoutput_attribute(&at);

        types[i].oid = a.oid;
        types[i].mod = a.mod;
    }
    rc = spate_catalog_types(catalog, types, msg->relation.count, err);
    if (rc == SPATE_OK)
        *table = spate_relation_build(msg, types, now);
    spate_catalog_types_fini(types, msg->relation.count);
    free(types);
    spate_table_free(now);
    return rc;
}
