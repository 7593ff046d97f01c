/* connector/query.h - the SQL by which a snapshot looks at a table and reads it (HAZARDS 6.6).
 *
 * No value that came from the bus ever stands in it: values are parameters of spate_query_bind, which puts
 * them into settings of the transaction, since COPY takes no parameters. Names come from the catalog and are
 * quoted. Pure: text only. */
#ifndef SPATE_CONNECTOR_QUERY_H
#define SPATE_CONNECTOR_QUERY_H

#include "connector/plan.h"
#include "core/buf.h"
#include "schemas/event.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An expression of type text: the stamp of the table whose OID is the expression `oid` ("c.oid"), as the
 * publication named by the expression `publication` ("$1", "'spate'") sees it. "FILENODE/HASH"; NULL when
 * there is no such table. FILENODE is another one after TRUNCATE and after every rewrite; HASH after any
 * change of columns, keys, replica identity, the place in a partition tree, or of what the publication says
 * about the table: its columns, its row filter, and whether it is there at all (P48, P49, P95). */
void spate_query_stamp(struct spate_buf *sql, int server_version, const char *oid, const char *publication);
/* The same table with the same meaning, though perhaps rewritten: only HASH counts. */
bool spate_query_same_shape(const char *stamp, const char *other);

/* One value that a read compares with: a condition's, or all keys' values of one key column. */
struct spate_query_term {
    uint32_t type;  /* the column's */
    const char *op; /* as in schemas/control.h; "is" and "is not" are no terms */
};

/* "SELECT ..." with a parameter ($1..) for each term: sets spate.v0, spate.v1, .. for this transaction and
 * answers with a row for each, in order: the type to cast to (a domain's base type, without a modifier, which
 * would round or cut), and the operator as it is to be spelled: types of extensions have their own, which
 * search_path = pg_catalog does not find (X41). */
void spate_query_bind(struct spate_buf *sql, const struct spate_query_term *terms, size_t count);
struct spate_query_bound { /* such a row; borrowed */
    const char *type, *op;
};

/* The table's terms, in the order in which `bound` is expected below: its conditions; then, for look-ups, its
 * key columns. `terms` has room for where_count + key_count; the result is how many there are. */
size_t spate_query_terms(const struct spate_plan_table *table, bool keys, struct spate_query_term *terms);

/* "(filter) AND (condition) AND .."; "true" without any. */
void spate_query_where(struct spate_buf *sql, const struct spate_plan_table *table, const char *filter,
                       const struct spate_query_bound *bound);

/* SELECT over [from, to) of a leaf, the asked columns in table order. with_place: the row's ctid first. */
void spate_query_range(struct spate_buf *sql, const struct spate_plan_table *table, size_t leaf,
                       uint64_t from, uint64_t to, bool with_place, const struct spate_query_bound *bound);
/* SELECT of the rows with the keys in spate.vN (text arrays): first which of the keys it is, from 1, then as
 * above; in the keys' order. */
void spate_query_keys(struct spate_buf *sql, const struct spate_plan_table *table,
                      const struct spate_query_bound *bound);
/* What is locked and read for that: the table itself, or the root of its partitions. */
void spate_query_root(struct spate_buf *sql, const struct spate_plan_table *table);

/* One key column's values as a text array: keys[i * stride] for i < count. */
void spate_query_array(struct spate_buf *out, const struct spate_value *keys, size_t stride, size_t count);

#endif
