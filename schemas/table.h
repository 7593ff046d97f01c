/* schemas/table.h - one version of one table's schema, as the messages name it by (schema, table, v).
 *
 * The same struct is made by the connector (from Relation messages and the catalog) and by readers (from
 * schema messages). The fingerprint is a pure function of the canonical form, so both sides and every
 * restart agree on it (docs/message-format.md, schemas). */
#ifndef SPATE_SCHEMAS_TABLE_H
#define SPATE_SCHEMAS_TABLE_H

#include "core/err.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a value of the column is written as JSON (docs/message-format.md). Domains: as their base type. */
enum spate_class {
    SPATE_CLASS_TEXT,  /* always a string */
    SPATE_CLASS_INT,   /* int2, int4: always a number */
    SPATE_CLASS_INT8,  /* a number within +-(2^53-1), else a string */
    SPATE_CLASS_FLOAT, /* float4, float8: a number when finite, else a string */
    SPATE_CLASS_BOOL,  /* true, false (Postgres says t, f) */
    SPATE_CLASS_JSONB  /* objects and arrays as they are, scalars as a string of their text */
};

/* By the OID of a base type in pg_catalog; everything else is TEXT. */
enum spate_class spate_class_of(uint32_t base_type_oid);

enum spate_identity { /* REPLICA IDENTITY */
                      SPATE_IDENTITY_DEFAULT = 'd',
                      SPATE_IDENTITY_NOTHING = 'n',
                      SPATE_IDENTITY_FULL = 'f',
                      SPATE_IDENTITY_INDEX = 'i'
};

struct spate_column {
    struct spate_slice name; /* owned by the table */
    struct spate_slice type; /* as format_type() spells it under search_path pg_catalog: "numeric(10,2)" */
    struct spate_slice base; /* for a domain: its base type, spelled the same way; else empty */
    uint32_t oid;            /* pg_attribute.atttypid */
    int32_t mod;             /* pg_attribute.atttypmod */
    int16_t len;             /* pg_type.typlen; -1: variable, so it can come unchanged (TOAST) */
    bool identity;           /* part of the replica identity (every column under FULL) */
    enum spate_class json_class;
    struct spate_slice
        mask; /* what the connector's file puts in place of values ("null", "hash 1f2e3d4c"): other
                 values, another mask, another version; empty: they are the source's; owned */
    struct spate_slice json_name; /* `"name":` escaped, ready to be written; owned by the table */
};

struct spate_table {
    struct spate_slice schema, name;           /* owned */
    struct spate_slice json_schema, json_name; /* the same as quoted JSON strings; owned */
    uint32_t v;                                /* 0 until it has been given one */
    enum spate_identity identity;
    size_t column_count;
    struct spate_column *columns; /* in the order of the Relation message; owned */
    size_t key_count;             /* 0: the table's rows have no key (key is null in messages) */
    uint32_t *key;                /* indexes into columns, in key order; owned */
    uint64_t fingerprint;         /* set by spate_table_seal */
};

/* A builder: copies what it is given. `seal` computes json forms and the fingerprint; call it once, last. */
struct spate_table *spate_table_new(struct spate_slice schema, struct spate_slice name,
                                    enum spate_identity identity, size_t column_count, size_t key_count);
void spate_table_set_column(struct spate_table *table, size_t i, struct spate_slice name,
                            struct spate_slice type, struct spate_slice base, uint32_t oid, int32_t mod,
                            int16_t len, bool identity, enum spate_class json_class);
void spate_table_set_mask(struct spate_table *table, size_t i,
                          struct spate_slice mask); /* after the column */
void spate_table_seal(struct spate_table *table);
void spate_table_free(struct spate_table *table); /* accepts NULL */

/* Index of a column by name, or -1. */
int spate_table_column(const struct spate_table *table, struct spate_slice name);

#endif
