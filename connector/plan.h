/* connector/plan.h - a request that was checked against the connector's file and the source's catalog: what
 * is to be read, and how. Made by the desk's thread (connector/desk.h), read by the reader threads; nobody
 * changes it while a job uses it.
 *
 * Thread: none of its own; freed by the data plane when no job is out. */
#ifndef SPATE_CONNECTOR_PLAN_H
#define SPATE_CONNECTOR_PLAN_H

#include "schemas/table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Something with pages of its own: the table itself, or one leaf of a partitioned one. */
struct spate_plan_leaf {
    uint32_t oid;
    char *name;     /* quoted "schema"."table", for SQL */
    char *filter;   /* the publication's row filter as SQL (P48), or NULL */
    char *stamp;    /* what a chunk must find unchanged: relfilenode, columns, key, replica identity */
    uint64_t pages; /* now */
    double rows;    /* the planner's estimate; negative: unknown */
};

struct spate_plan_condition {
    uint32_t column; /* of the table */
    char *op;        /* one of the known ones */
    char *value;     /* NULL: is null, is not null */
};

struct spate_cover;

struct spate_plan_table {
    struct spate_table
        *table; /* canonical, sealed, without a v; as messages show it; the cover's if there is one */
    struct spate_cover *cover; /* what of the source's table that is; owned, NULL: all of it */
    bool *asked;               /* by column; key columns always are */
    bool all;                  /* every column is asked for */
    struct spate_plan_leaf *leaves;
    size_t leaf_count;
    struct spate_plan_condition *where;
    size_t where_count;
    bool by_key;    /* the conditions say = of every key column: one look-up instead of ranges */
    char *resume;   /* the requester's token, "" without one */
    uint64_t chunk; /* greatest `no` that the requester has taken */
};

struct spate_plan {
    char *request, *sink;
    bool again, append;
    struct spate_plan_table *tables;
    size_t count;
};

/* Is the column read from the source? What is put in its values' place needs no reading. */
bool spate_plan_reads(const struct spate_plan_table *table, size_t column);
/* The type by which the source knows it. */
uint32_t spate_plan_type(const struct spate_plan_table *table, size_t column);

void spate_plan_free(struct spate_plan *plan); /* accepts NULL */
void spate_plan_table_fini(struct spate_plan_table *table);

#endif
