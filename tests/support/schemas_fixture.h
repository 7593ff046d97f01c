/* tests/support/schemas_fixture.h - tables and changes that the tests of schemas/ share. */
#ifndef SPATE_TESTS_SUPPORT_SCHEMAS_FIXTURE_H
#define SPATE_TESTS_SUPPORT_SCHEMAS_FIXTURE_H

#include "core/alloc.h"
#include "schemas/codec.h"

#define S(text)    ((struct spate_slice){(text), sizeof(text) - 1})
#define T(text)    ((struct spate_value){SPATE_VALUE_TEXT, {(text), sizeof(text) - 1}})
#define ABSENT     ((struct spate_value){.kind = SPATE_VALUE_ABSENT})
#define VALUE_NULL ((struct spate_value){.kind = SPATE_VALUE_NULL})

struct fixture_column {
    const char *name, *type, *base;
    uint32_t oid;
    int32_t mod;
    int16_t len;
    bool identity;
};

static inline struct spate_table *fixture_table(const char *name, enum spate_identity identity,
                                                const struct fixture_column *columns, size_t count,
                                                const uint32_t *key, size_t key_count)
{
    struct spate_table *table =
        spate_table_new(S("public"), spate_slice_str(name), identity, count, key_count);

    for (size_t i = 0; i < count; i++) {
        const struct fixture_column *c = &columns[i];
        uint32_t base = c->base == NULL                                       ? c->oid
                        : spate_slice_is(spate_slice_str(c->base), "integer") ? 23
                                                                              : 0;

        spate_table_set_column(table, i, spate_slice_str(c->name), spate_slice_str(c->type),
                               spate_slice_str(c->base != NULL ? c->base : ""), c->oid, c->mod, c->len,
                               c->identity, spate_class_of(base));
    }
    for (size_t i = 0; i < key_count; i++)
        table->key[i] = key[i];
    table->v = 3;
    spate_table_seal(table);
    return table;
}

/* The table of the example in docs/message-format.md. */
static inline struct spate_table *fixture_orders(enum spate_identity identity)
{
    bool full = identity == SPATE_IDENTITY_FULL;
    const struct fixture_column columns[] = {
        {"id", "integer", NULL, 23, -1, 4, true},   {"total", "numeric(10,2)", NULL, 1700, 655366, -1, full},
        {"paid", "boolean", NULL, 16, -1, 1, full}, {"tags", "text[]", NULL, 1009, -1, -1, full},
        {"doc", "jsonb", NULL, 3802, -1, -1, full}, {"notes", "text", NULL, 25, -1, -1, full},
    };

    return fixture_table("orders", identity, columns, SPATE_COUNT(columns), (const uint32_t[]){0}, 1);
}

/* The same with masks, as a connector's file may have them. */
static inline struct spate_table *fixture_masked(const char *constant)
{
    struct spate_table *masked = spate_table_new(S("public"), S("people"), SPATE_IDENTITY_DEFAULT, 4, 1);

    spate_table_set_column(masked, 0, S("id"), S("integer"), S(""), 23, -1, 4, true, SPATE_CLASS_INT);
    spate_table_set_column(masked, 1, S("email"), S("text"), S(""), 25, -1, -1, false, SPATE_CLASS_TEXT);
    spate_table_set_column(masked, 2, S("paid"), S("boolean"), S(""), 16, -1, 1, false, SPATE_CLASS_BOOL);
    spate_table_set_column(masked, 3, S("name"), S("text"), S(""), 25, -1, -1, false, SPATE_CLASS_TEXT);
    spate_table_set_mask(masked, 1, S("hash 1f2e3d4c"));
    spate_table_set_mask(masked, 2, S("null"));
    spate_table_set_mask(masked, 3, spate_slice_str(constant));
    masked->v = 3;
    spate_table_seal(masked);
    return masked;
}

/* A column of each class, with a domain, no key. */
static inline struct spate_table *fixture_kinds(void)
{
    const struct fixture_column columns[] = {
        {"i2", "smallint", NULL, 21, -1, 2, false},
        {"i4", "integer", NULL, 23, -1, 4, false},
        {"i8", "bigint", NULL, 20, -1, 8, false},
        {"f4", "real", NULL, 700, -1, 4, false},
        {"f8", "double precision", NULL, 701, -1, 8, false},
        {"b", "boolean", NULL, 16, -1, 1, false},
        {"jb", "jsonb", NULL, 3802, -1, -1, false},
        {"js", "json", NULL, 114, -1, -1, false},
        {"t", "text", NULL, 25, -1, -1, false},
        {"num", "numeric", NULL, 1700, -1, -1, false},
        {"dom", "public.age", "integer", 16999, -1, 4, false},
    };

    return fixture_table("kinds", SPATE_IDENTITY_NOTHING, columns, SPATE_COUNT(columns), NULL, 0);
}

/* 2026-11-21T09:14:03.123456Z */
#define FIXTURE_US INT64_C(1795252443123456)

static inline struct spate_change fixture_change(enum spate_op op, const struct spate_table *table,
                                                 const struct spate_value *before,
                                                 const struct spate_value *after)
{
    return (struct spate_change){
        .op = op,
        .n = 1042,
        .epoch = 1,
        .pos = {0x16B3748, 3},
        .xid = 745,
        .commit_us = FIXTURE_US,
        .source = S("shop"),
        .table = table,
        .before = before,
        .after = after,
    };
}

#endif
