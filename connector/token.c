/* connector/token.c - a resume token: how far a table is in the stream, and what must still be true of it.
 *
 * Requesters keep it unread. "2:<oids>:<stamps>:<fingerprint>:<leaf>:<next>:<end>:<rows>", all but the last
 * in hex: the hash of the leaves' oids, that of their stamps (a rewrite gives a new relfilenode, DDL another
 * shape: then the table begins anew), the shape's fingerprint, the leaf and the tid that come next, the end
 * of that leaf's range (0: not begun), rows so far. */
#include "connector/woven.h"
#include "core/hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uint64_t oids(const struct spate_plan_table *plan)
{
    uint64_t hash = SPATE_FNV64_START;

    for (size_t i = 0; i < plan->leaf_count; i++)
        hash = spate_fnv64(hash, &plan->leaves[i].oid, sizeof plan->leaves[i].oid);
    return hash;
}

static uint64_t stamps(const struct spate_plan_table *plan)
{
    uint64_t hash = SPATE_FNV64_START;

    for (size_t i = 0; i < plan->leaf_count; i++)
        hash = spate_fnv64(hash, plan->leaves[i].stamp, strlen(plan->leaves[i].stamp) + 1);
    /* What is read must be the same question as before. */
    for (size_t i = 0; i < plan->table->column_count; i++)
        hash = spate_fnv64(hash, plan->asked[i] ? "1" : "0", 1);
    for (size_t i = 0; i < plan->where_count; i++) {
        const struct spate_plan_condition *c = &plan->where[i];

        hash = spate_fnv64(hash, &c->column, sizeof c->column);
        hash = spate_fnv64(hash, c->op, strlen(c->op) + 1);
        if (c->value)
            hash = spate_fnv64(hash, c->value, strlen(c->value) + 1);
    }
    return hash;
}

void spate_token_write(const struct spate_asked_table *table, struct spate_buf *out)
{
    spate_buf_printf(
        out, "2:%016" PRIx64 ":%016" PRIx64 ":%016" PRIx64 ":%zx:%" PRIx64 ":%" PRIx64 ":%" PRIu64,
        oids(table->plan), stamps(table->plan), table->plan->table->fingerprint, table->sent_leaf,
        table->sent_next, table->sent_next ? table->ends[table->sent_leaf] : 0, table->rows);
}

enum spate_token_fit spate_token_read(struct spate_asked_table *table, const char *token)
{
    uint64_t oid, stamp, fingerprint, next, end, rows;
    size_t leaf;
    int used = 0;

    if (sscanf(token,
               "2:%16" SCNx64 ":%16" SCNx64 ":%16" SCNx64 ":%zx:%16" SCNx64 ":%16" SCNx64 ":%20" SCNu64 "%n",
               &oid, &stamp, &fingerprint, &leaf, &next, &end, &rows, &used) != 7 ||
        token[used] != 0)
        return SPATE_TOKEN_ANEW;
    if (oid != oids(table->plan))
        return SPATE_TOKEN_REPLACED;
    if (stamp != stamps(table->plan) || fingerprint != table->plan->table->fingerprint ||
        leaf > table->plan->leaf_count || (leaf == table->plan->leaf_count && (next || end)) || next > end ||
        (end && !next))
        return SPATE_TOKEN_ANEW;
    table->leaf = table->sent_leaf = leaf;
    table->next = table->sent_next = next;
    if (end)
        table->ends[leaf] = end;
    table->read = table->sent = leaf == table->plan->leaf_count;
    table->rows = rows;
    return SPATE_TOKEN_FITS;
}
