/* connector/query.c - text of queries. */
#include "connector/query.h"

#include "pg/pg.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <string.h>

/* What is hashed: the leaf and all its ancestors with their columns, keys and identity; what the publication
 * says about them. Rows of the catalog as JSON, so that a column which a later server adds to it counts as
 * well. hashtextextended, since md5 is refused under FIPS. Every chunk asks this, so each table of the
 * catalog is entered by an index, however many tables there are. */
static const char stamp_head[] =
    "(SELECT coalesce(pg_catalog.pg_relation_filenode(sc.oid), 0) || '/' || pg_catalog.to_hex("
    "pg_catalog.hashtextextended(pg_catalog.concat_ws('|', "
    "(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(',', sr.oid, sr.relreplident,"
    " (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', sa.attnum, sa.attname, sa.atttypid,"
    " sa.atttypmod, sa.attgenerated, pg_catalog.format_type(sa.atttypid, sa.atttypmod)), ';' ORDER BY "
    "sa.attnum)"
    " FROM pg_catalog.pg_attribute sa WHERE sa.attrelid = sr.oid AND sa.attnum > 0 AND NOT sa.attisdropped),"
    " (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', si.indexrelid, si.indkey, si.indnkeyatts,"
    " si.indisprimary, si.indisreplident, si.indimmediate, si.indisvalid), ';' ORDER BY si.indexrelid)"
    " FROM pg_catalog.pg_index si WHERE si.indrelid = sr.oid AND (si.indisprimary OR si.indisreplident))"
    "), '|' ORDER BY sr.oid) FROM pg_catalog.pg_class sr WHERE sr.oid = ANY (st.tree)),"
    " (pg_catalog.to_jsonb(sp) - 'pubowner' - 'pubname')::text,"
    " (SELECT pg_catalog.string_agg(pg_catalog.to_jsonb(spr)::text, '|' ORDER BY spr.oid)"
    " FROM pg_catalog.pg_publication_rel spr WHERE spr.prrelid = ANY (st.tree) AND spr.prpubid = sp.oid)";
static const char stamp_schemas[] =
    ", (SELECT pg_catalog.string_agg(pg_catalog.to_jsonb(spn)::text, '|' ORDER BY spn.oid)"
    " FROM pg_catalog.pg_publication_namespace spn WHERE spn.pnpubid = sp.oid AND spn.pnnspid = ANY ("
    "ARRAY(SELECT sr.relnamespace FROM pg_catalog.pg_class sr WHERE sr.oid = ANY (st.tree))))";

void spate_query_stamp(struct spate_buf *sql, int server_version, const char *oid, const char *publication)
{
    spate_buf_puts(sql, stamp_head);
    if (server_version >= 150000)
        spate_buf_puts(sql, stamp_schemas);
    spate_buf_printf(
        sql,
        "), 0)) FROM pg_catalog.pg_class sc CROSS JOIN LATERAL (SELECT pg_catalog.array_append("
        "ARRAY(SELECT sx.relid::oid FROM pg_catalog.pg_partition_ancestors(sc.oid) sx), sc.oid)"
        " AS tree) st LEFT JOIN pg_catalog.pg_publication sp ON sp.pubname = %s WHERE sc.oid = %s)",
        publication, oid);
}

bool spate_query_same_shape(const char *stamp, const char *other)
{
    const char *hash = strchr(stamp, '/'), *other_hash = strchr(other, '/');

    return hash && other_hash && strcmp(hash, other_hash) == 0;
}

/* What is cast is text, and text is cast to regclass by a function that knows names only; from bpchar it goes
 * the way of the type's input. Strategies of a btree: 1 <, 2 <=, 3 =, 4 >=, 5 >. */
static const char bind_head[] =
    "SELECT CASE WHEN b.oid = 'regclass'::regtype THEN 'bpchar::' ELSE '' END ||"
    " pg_catalog.format_type(b.oid, -1),"
    " CASE WHEN b.typnamespace = 'pg_catalog'::regnamespace THEN o.op ELSE coalesce(("
    "SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, e.oprname)"
    " FROM pg_catalog.pg_opclass c JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily"
    " AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype AND a.amopstrategy ="
    " CASE o.op WHEN '<' THEN 1 WHEN '<=' THEN 2 WHEN '=' THEN 3 WHEN '<>' THEN 3 WHEN '>=' THEN 4 ELSE 5 END"
    " JOIN pg_catalog.pg_operator p ON p.oid = a.amopopr"
    " JOIN pg_catalog.pg_operator e ON e.oid = CASE o.op WHEN '<>' THEN p.oprnegate ELSE p.oid END"
    " JOIN pg_catalog.pg_namespace n ON n.oid = e.oprnamespace"
    " WHERE c.opcmethod = 403 AND c.opcdefault AND c.opcintype = b.oid), o.op) END,"
    " pg_catalog.length(pg_catalog.set_config('spate.v' || o.i, o.value, true))"
    " FROM (VALUES ";
static const char bind_tail[] =
    ") o(i, type, op, value) CROSS JOIN LATERAL ("
    "WITH RECURSIVE d(oid, typtype, typbasetype, typnamespace) AS ("
    " SELECT t.oid, t.typtype, t.typbasetype, t.typnamespace FROM pg_catalog.pg_type t WHERE t.oid = o.type"
    " UNION ALL SELECT u.oid, u.typtype, u.typbasetype, u.typnamespace"
    " FROM d JOIN pg_catalog.pg_type u ON d.typtype = 'd' AND u.oid = d.typbasetype)"
    " SELECT d.oid, d.typnamespace FROM d WHERE d.typtype <> 'd') b ORDER BY o.i";

void spate_query_bind(struct spate_buf *sql, const struct spate_query_term *terms, size_t count)
{
    spate_buf_puts(sql, bind_head);
    for (size_t i = 0; i < count; i++)
        spate_buf_printf(sql, "%s(%zu, %" PRIu32 "::oid, '%s', $%zu::text)", i ? ", " : "", i, terms[i].type,
                         terms[i].op, i + 1);
    spate_buf_puts(sql, bind_tail);
}

size_t spate_query_terms(const struct spate_plan_table *table, bool keys, struct spate_query_term *terms)
{
    const struct spate_table *shape = table->table;
    size_t count = 0;

    for (size_t i = 0; i < table->where_count; i++)
        if (table->where[i].value)
            terms[count++] =
                (struct spate_query_term){spate_plan_type(table, table->where[i].column), table->where[i].op};
    for (size_t i = 0; keys && i < shape->key_count; i++)
        terms[count++] = (struct spate_query_term){spate_plan_type(table, shape->key[i]), "="};
    return count;
}

void spate_query_where(struct spate_buf *sql, const struct spate_plan_table *table, const char *filter,
                       const struct spate_query_bound *bound)
{
    size_t term = 0;

    spate_buf_printf(sql, "%s%s%s", filter ? "(" : "", filter ? filter : "true", filter ? ")" : "");
    for (size_t i = 0; i < table->where_count; i++) {
        const struct spate_plan_condition *condition = &table->where[i];

        spate_buf_puts(sql, " AND ");
        spate_pg_ident(sql, table->table->columns[condition->column].name);
        if (condition->value) {
            /* A subquery is evaluated once. */
            spate_buf_printf(sql, " %s (SELECT pg_catalog.current_setting('spate.v%zu')::%s)", bound[term].op,
                             term, bound[term].type);
            term++;
        } else {
            spate_buf_puts(sql, strcmp(condition->op, "is") == 0 ? " IS NULL" : " IS NOT NULL");
        }
    }
}

/* The asked columns; true when there was one. */
static bool add_columns(struct spate_buf *sql, const struct spate_plan_table *table)
{
    const char *between = "";

    for (size_t i = 0; i < table->table->column_count; i++) {
        if (!spate_plan_reads(table, i))
            continue;
        spate_buf_puts(sql, between);
        spate_pg_ident(sql, table->table->columns[i].name);
        between = ", ";
    }
    return *between != '\0';
}

void spate_query_range(struct spate_buf *sql, const struct spate_plan_table *table, size_t leaf,
                       uint64_t from, uint64_t to, bool with_place, const struct spate_query_bound *bound)
{
    char first[SPATE_TID_TEXT], behind[SPATE_TID_TEXT];

    spate_tid_format(from, first);
    spate_tid_format(to, behind);
    spate_buf_puts(sql, with_place ? "SELECT ctid, " : "SELECT ");
    if (!add_columns(sql, table) && with_place)
        sql->len -= 2;
    spate_buf_printf(sql, " FROM ONLY %s WHERE ctid >= '%s'::tid AND ctid < '%s'::tid AND ",
                     table->leaves[leaf].name, first, behind);
    spate_query_where(sql, table, table->leaves[leaf].filter, bound);
}

/* The planner may not turn it round: LATERAL with OFFSET 0 stays an inner side of a nested loop, so that rows
 * come in the keys' order and the key's index is used. */
void spate_query_keys(struct spate_buf *sql, const struct spate_plan_table *table,
                      const struct spate_query_bound *bound)
{
    const struct spate_table *shape = table->table;
    size_t first = 0;

    for (size_t i = 0; i < table->where_count; i++)
        first += table->where[i].value != NULL;
    spate_buf_puts(sql, "SELECT spate_k.n, spate_r.* FROM ROWS FROM (");
    for (size_t i = 0; i < shape->key_count; i++)
        spate_buf_printf(sql, "%sunnest(pg_catalog.current_setting('spate.v%zu')::text[])", i ? ", " : "",
                         first + i);
    spate_buf_puts(sql, ") WITH ORDINALITY spate_k(");
    for (size_t i = 0; i < shape->key_count; i++)
        spate_buf_printf(sql, "v%zu, ", i);
    spate_buf_puts(sql, "n) CROSS JOIN LATERAL (SELECT ");
    add_columns(sql, table);
    spate_buf_puts(sql, " FROM ");
    spate_query_root(sql, table);
    spate_buf_puts(sql, " WHERE ");
    for (size_t i = 0; i < shape->key_count; i++) {
        spate_pg_ident(sql, shape->columns[shape->key[i]].name);
        spate_buf_printf(sql, " %s (spate_k.v%zu)::%s AND ", bound[first + i].op, i, bound[first + i].type);
    }
    spate_query_where(sql, table, table->leaf_count > 0 ? table->leaves[0].filter : NULL, bound);
    spate_buf_puts(sql, " OFFSET 0) spate_r");
}

void spate_query_root(struct spate_buf *sql, const struct spate_plan_table *table)
{
    struct spate_buf root = {0};

    spate_pg_ident(&root, table->table->schema);
    spate_buf_putc(&root, '.');
    spate_pg_ident(&root, table->table->name);
    /* A table that is its own leaf may have children by inheritance: those are tables of their own. */
    if (table->leaf_count == 1 && strcmp(table->leaves[0].name, spate_buf_str(&root)) == 0)
        spate_buf_puts(sql, "ONLY ");
    spate_buf_slice(sql, spate_buf_view(&root));
    spate_buf_fini(&root);
}

void spate_query_array(struct spate_buf *out, const struct spate_value *keys, size_t stride, size_t count)
{
    spate_buf_putc(out, '{');
    for (size_t i = 0; i < count; i++) {
        struct spate_slice text = keys[i * stride].text;

        if (keys[i * stride].kind == SPATE_VALUE_NULL) { /* a key that no row has */
            spate_buf_puts(out, i ? ",NULL" : "NULL");
            continue;
        }
        spate_buf_puts(out, i ? ",\"" : "\"");
        for (size_t at = 0; at < text.len; at++) {
            if (text.at[at] == '"' || text.at[at] == '\\')
                spate_buf_putc(out, '\\');
            spate_buf_putc(out, text.at[at]);
        }
        spate_buf_putc(out, '"');
    }
    spate_buf_putc(out, '}');
}
