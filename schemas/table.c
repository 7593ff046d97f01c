#include "schemas/table.h"

#include "core/alloc.h"
#include "core/buf.h"
#include "core/hash.h"
#include "schemas/json.h"

#include <stdlib.h>

/* OIDs of pg_catalog never change between servers or versions. */
enum {
    OID_BOOL = 16,
    OID_INT8 = 20,
    OID_INT2 = 21,
    OID_INT4 = 23,
    OID_FLOAT4 = 700,
    OID_FLOAT8 = 701,
    OID_JSONB = 3802
};

enum spate_class spate_class_of(uint32_t base_type_oid)
{
    switch (base_type_oid) {
    case OID_BOOL:
        return SPATE_CLASS_BOOL;
    case OID_INT2:
    case OID_INT4:
        return SPATE_CLASS_INT;
    case OID_INT8:
        return SPATE_CLASS_INT8;
    case OID_FLOAT4:
    case OID_FLOAT8:
        return SPATE_CLASS_FLOAT;
    case OID_JSONB:
        return SPATE_CLASS_JSONB;
    default:
        return SPATE_CLASS_TEXT;
    }
}

/* Slices of length 0 keep a NULL pointer. The bytes may be of any kind, NUL is not special. */
static struct spate_slice copy(struct spate_slice s)
{
    char *at;

    if (s.len == 0)
        return (struct spate_slice){0};
    at = spate_alloc(s.len);
    memcpy(at, s.at, s.len);
    return spate_slice(at, s.len);
}

static void drop(struct spate_slice *s)
{
    free((char *)(uintptr_t)s->at); /* ours: made by copy() */
    *s = (struct spate_slice){0};
}

struct spate_table *spate_table_new(struct spate_slice schema, struct spate_slice name,
                                    enum spate_identity identity, size_t column_count, size_t key_count)
{
    struct spate_table *table = spate_zalloc(sizeof(*table));

    table->schema = copy(schema);
    table->name = copy(name);
    table->identity = identity;
    table->column_count = column_count;
    table->columns = spate_zalloc((column_count + 1) * sizeof(*table->columns));
    table->key_count = key_count;
    table->key = spate_zalloc((key_count + 1) * sizeof(*table->key));
    return table;
}

static void column_fini(struct spate_column *column)
{
    drop(&column->name);
    drop(&column->type);
    drop(&column->base);
    drop(&column->mask);
    drop(&column->json_name);
}

void spate_table_set_column(struct spate_table *table, size_t i, struct spate_slice name,
                            struct spate_slice type, struct spate_slice base, uint32_t oid, int32_t mod,
                            int16_t len, bool identity, enum spate_class json_class)
{
    struct spate_column *column = &table->columns[i];

    column_fini(column);
    *column = (struct spate_column){
        .name = copy(name),
        .type = copy(type),
        .base = copy(base),
        .oid = oid,
        .mod = mod,
        .len = len,
        .identity = identity,
        .json_class = json_class,
    };
}

void spate_table_set_mask(struct spate_table *table, size_t i, struct spate_slice mask)
{
    drop(&table->columns[i].mask);
    table->columns[i].mask = copy(mask);
}

static uint64_t hash_number(uint64_t hash, uint64_t value, int bytes)
{
    unsigned char little[8];

    for (int i = 0; i < bytes; i++)
        little[i] = (unsigned char)(value >> (8 * i));
    return spate_fnv64(hash, little, (size_t)bytes);
}

/* The canonical form, hashed as it is laid out here; docs/message-format.md describes it. Every number is
 * little-endian and every text has its length before it, so that no two forms share their bytes. What only
 * annotates (the spelling of types) is left out: the connector may learn it late, or not at all. */
static uint64_t fingerprint(const struct spate_table *table)
{
    uint64_t hash = SPATE_FNV64_START;

    hash = hash_number(hash, (uint64_t)(unsigned char)table->identity, 1);
    hash = hash_number(hash, table->column_count, 4);
    for (size_t i = 0; i < table->column_count; i++) {
        const struct spate_column *column = &table->columns[i];

        hash = hash_number(hash, column->name.len, 4);
        hash = spate_fnv64(hash, column->name.at, column->name.len);
        hash = hash_number(hash, column->oid, 4);
        hash = hash_number(hash, (uint32_t)column->mod, 4);
        hash = hash_number(hash, (uint16_t)column->len, 2);
        hash = hash_number(hash, column->identity, 1);
        hash = hash_number(hash, (uint64_t)column->json_class, 1);
    }
    hash = hash_number(hash, table->key_count, 4);
    for (size_t i = 0; i < table->key_count; i++)
        hash = hash_number(hash, table->key[i], 4);
    for (size_t i = 0; i < table->column_count; i++) {
        const struct spate_column *column = &table->columns[i];

        if (column->mask.len == 0)
            continue; /* a table without masks has the form that it always had */
        hash = hash_number(hash, i, 4);
        hash = hash_number(hash, column->mask.len, 4);
        hash = spate_fnv64(hash, column->mask.at, column->mask.len);
    }
    return hash;
}

void spate_table_seal(struct spate_table *table)
{
    struct spate_buf text = {0};

    spate_json_put_name(&text, table->schema);
    table->json_schema = copy(spate_buf_view(&text));
    spate_buf_reset(&text);
    spate_json_put_name(&text, table->name);
    table->json_name = copy(spate_buf_view(&text));
    for (size_t i = 0; i < table->column_count; i++) {
        spate_buf_reset(&text);
        spate_json_put_name(&text, table->columns[i].name);
        spate_buf_putc(&text, ':');
        table->columns[i].json_name = copy(spate_buf_view(&text));
    }
    spate_buf_fini(&text);
    table->fingerprint = fingerprint(table);
}

void spate_table_free(struct spate_table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->column_count; i++)
        column_fini(&table->columns[i]);
    drop(&table->schema);
    drop(&table->name);
    drop(&table->json_schema);
    drop(&table->json_name);
    free(table->columns);
    free(table->key);
    free(table);
}

int spate_table_column(const struct spate_table *table, struct spate_slice name)
{
    for (size_t i = 0; i < table->column_count; i++)
        if (spate_slice_eq(table->columns[i].name, name))
            return (int)i;
    return -1;
}
