/* connector/check_tables.c - each published table as the server stores it (a partitioned one: its leaves):
 * may the application still change it, can its rows be read, and what of it does not come. */
#include "connector/check.h"

#include "core/alloc.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The catalogs themselves: the view pg_publication_tables locks every table for a moment. %s, %s, %s: what
 * versions from 15 and 18 on know of filters, lists, schemas and generated columns. */
static const char published_sql[] =
    "WITH pub AS (SELECT * FROM pg_catalog.pg_publication WHERE pubname = $1), named AS ("
    " SELECT r.prrelid AS relid, %s FROM pg_catalog.pg_publication_rel r JOIN pub ON r.prpubid = pub.oid"
    " %s"
    " UNION ALL SELECT c.oid, NULL, NULL FROM pg_catalog.pg_class c, pub WHERE pub.puballtables"
    "  AND c.relkind IN ('r', 'p') AND c.oid >= 16384 AND c.relnamespace <> 'pg_catalog'::regnamespace"
    "  AND c.relpersistence <> 't'),"
    " stored AS (SELECT l.oid, min(n.filter) FILTER (WHERE l.oid = n.relid) AS filter,"
    "  min(n.list) FILTER (WHERE l.oid = n.relid) AS list FROM named n"
    "  JOIN pg_catalog.pg_class c ON c.oid = n.relid"
    "  CROSS JOIN LATERAL (SELECT c.oid WHERE c.relkind = 'r' UNION ALL SELECT t.relid FROM"
    "   pg_catalog.pg_partition_tree(c.oid) t WHERE c.relkind = 'p' AND t.isleaf) l(oid) GROUP BY l.oid)"
    " SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname), pg_catalog.quote_ident(n.nspname),"
    " c.relpersistence, c.relkind, c.relreplident,"
    " coalesce(k.keys, '{}'), coalesce((SELECT pg_catalog.quote_ident(ic.relname) FROM pg_catalog.pg_index i"
    "   JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid WHERE i.indrelid = c.oid AND i.indisunique"
    "   AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS ("
    "    SELECT 1 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attnotnull"
    "    AND a.attnum = ANY (i.indkey::int2[])) ORDER BY ic.relname LIMIT 1), ''),"
    " pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),"
    " pg_catalog.has_table_privilege(c.oid, 'SELECT') OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a"
    "  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    "  AND (s.list IS NULL OR a.attnum = ANY (s.list::int2[]))"
    "  AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')),"
    " pg_catalog.row_security_active(c.oid),"
    " c.relreplident <> 'f' AND s.filter IS NOT NULL AND NOT (SELECT "
    "coalesce(pg_catalog.array_agg(m[1]::int2),"
    "  '{}') FROM pg_catalog.regexp_matches(s.filter, ':varattno ([0-9]+)', 'g') m) <@ coalesce(k.keys, "
    "'{}'),"
    " s.list IS NOT NULL AND (c.relreplident = 'f' OR NOT coalesce(k.keys, '{}') <@ s.list::int2[]),"
    " (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM"
    "  pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped%s),"
    " EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> ''"
    "  AND a.attnum = ANY (k.keys)%s),"
    " (SELECT pg_catalog.string_agg(DISTINCT e.extname, ', ') FROM pg_catalog.pg_attribute a"
    "  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = a.atttypid"
    "  AND d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e'"
    "  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid WHERE a.attrelid = c.oid AND a.attnum > 0"
    "  AND NOT a.attisdropped), current_user, pub.pubupdate OR pub.pubdelete"
    " FROM stored s JOIN pg_catalog.pg_class c ON c.oid = s.oid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace CROSS JOIN pub"
    " LEFT JOIN LATERAL (SELECT (pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts] "
    "AS keys FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid"
    "  AND i.indisvalid AND i.indimmediate AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN"
    "  i.indisreplident ELSE false END) k ON true ORDER BY 1";
enum {
    T_NAME,
    T_SCHEMA,
    T_PERSISTENCE,
    T_KIND,
    T_IDENTITY,
    T_KEYS,
    T_INDEX, /* one that could be the identity */
    T_USAGE,
    T_SELECT,
    T_RLS,
    T_FILTER,    /* looks at columns outside the identity */
    T_LIST,      /* leaves columns of the identity out */
    T_GENERATED, /* columns that are not sent */
    T_GENERATED_KEY,
    T_EXTENSIONS,
    T_ROLE,
    T_CHANGES
};

static const char *cell(const PGresult *res, int row, int column)
{
    return PQgetvalue(res, row, column);
}

static bool truth(const PGresult *res, int row, int column)
{
    return cell(res, row, column)[0] == 't';
}

static void quoted(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

/* P47: our publication would break the application's UPDATE and DELETE. */
static bool judge_identity(const PGresult *res, int row, struct spate_findings *list)
{
    const char *name = cell(res, row, T_NAME), *index = cell(res, row, T_INDEX);

    if (cell(res, row, T_IDENTITY)[0] == 'f' || strcmp(cell(res, row, T_KEYS), "{}") != 0)
        return true;
    if (!truth(res, row, T_CHANGES))
        return false; /* a publication of inserts alone harms nobody */
    spate_find(list, SPATE_FINDING_WARNING, "table-identity", "table %s has no usable replica identity",
               name);
    spate_find_why(list, "it is published, so the server refuses the application's UPDATE and DELETE; a "
                         "deferrable primary key does not count (P47)");
    if (index[0])
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;", name,
                       index);
    else
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER TABLE %s REPLICA IDENTITY FULL; -- a primary key is better, where rows have "
                       "one",
                       name);
    return false;
}

/* P48, P49: the server refuses changes that it could not judge or describe. */
static void judge_parts(const PGresult *res, int row, const char *publication, struct spate_findings *list)
{
    const char *name = cell(res, row, T_NAME);
    struct spate_buf into = {0};

    quoted(&into, publication);
    if (truth(res, row, T_FILTER)) {
        spate_find(list, SPATE_FINDING_WARNING, "table-filter",
                   "the publication's row filter of table %s uses columns outside its replica identity",
                   name);
        spate_find_why(list, "the server refuses the application's UPDATE and DELETE of it (P48)");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER TABLE %s REPLICA IDENTITY FULL;", name);
    }
    if (truth(res, row, T_LIST)) {
        spate_find(list, SPATE_FINDING_WARNING, "table-columns",
                   "the publication's column list of table %s leaves out columns of its replica identity",
                   name);
        spate_find_why(list, "the server refuses the application's UPDATE and DELETE of it (P49)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER PUBLICATION %s DROP TABLE %s; ALTER PUBLICATION %s ADD TABLE %s; -- or with a "
                       "list that has the key, behind the name",
                       spate_buf_str(&into), name, spate_buf_str(&into), name);
    }
    if (truth(res, row, T_GENERATED_KEY)) {
        spate_find(list, SPATE_FINDING_WARNING, "table-generated-key",
                   "the replica identity of table %s has a generated column, which is not published", name);
        spate_find_why(list, "rows cannot be told apart by what is sent, and newer servers refuse UPDATE and "
                             "DELETE (P38)");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER TABLE %s REPLICA IDENTITY FULL;", name);
    } else if (!PQgetisnull(res, row, T_GENERATED)) {
        spate_find(list, SPATE_FINDING_NOTE, "table-generated", "table %s has generated columns: %s", name,
                   cell(res, row, T_GENERATED));
        spate_find_why(list, "they are not sent; a sink can compute them, or leave them out (P38)");
    }
    spate_buf_fini(&into);
}

/* P53: the stream needs no SELECT, and knows no row-level security; a snapshot needs the one and refuses the
 * other. */
static void judge_rights(const PGresult *res, int row, struct spate_findings *list)
{
    const char *name = cell(res, row, T_NAME);
    struct spate_buf role = {0};

    quoted(&role, cell(res, row, T_ROLE));
    if (!truth(res, row, T_USAGE) || !truth(res, row, T_SELECT)) {
        spate_find(list, SPATE_FINDING_WARNING, "table-select", "role %s may not read table %s",
                   spate_buf_str(&role), name);
        spate_find_why(list, "its changes come all the same, but the rows that exist now cannot be asked for "
                             "(P53)");
        if (truth(res, row, T_USAGE))
            spate_find_fix(list, SPATE_MEND_SOURCE, "GRANT SELECT ON %s TO %s;", name, spate_buf_str(&role));
        else
            spate_find_fix(list, SPATE_MEND_SOURCE,
                           "GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT ON %s TO %s;",
                           cell(res, row, T_SCHEMA), spate_buf_str(&role), name, spate_buf_str(&role));
    }
    if (truth(res, row, T_RLS)) {
        spate_find(list, SPATE_FINDING_WARNING, "table-row-security",
                   "row-level security of table %s applies to role %s", name, spate_buf_str(&role));
        spate_find_why(list, "the stream brings every row, a reading would not: so no snapshot of it is "
                             "taken");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER ROLE %s BYPASSRLS;", spate_buf_str(&role));
    }
    spate_buf_fini(&role);
}

static void judge_storage(const PGresult *res, int row, struct spate_findings *list)
{
    const char *name = cell(res, row, T_NAME);

    if (cell(res, row, T_KIND)[0] == 'f') {
        spate_find(list, SPATE_FINDING_WARNING, "table-foreign", "%s, a partition, is a foreign table", name);
        spate_find_why(list, "what changes there is in no WAL of this server: it does not come");
    } else if (cell(res, row, T_PERSISTENCE)[0] == 'u') {
        spate_find(list, SPATE_FINDING_WARNING, "table-unlogged", "table %s is UNLOGGED", name);
        spate_find_why(list, "what is written to it is in no WAL, so it does not come (P33)");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER TABLE %s SET LOGGED;", name);
    }
}

/* One line for each extension, whatever the number of tables. */
static void tell_extensions(const PGresult *res, struct spate_findings *list)
{
    struct spate_buf seen = {0};

    for (int row = 0; row < PQntuples(res); row++) {
        const char *names = cell(res, row, T_EXTENSIONS);

        if (!names[0] || (seen.len && strstr(spate_buf_str(&seen), names)))
            continue;
        spate_buf_printf(&seen, "%s;", names);
        spate_find(list, SPATE_FINDING_NOTE, "types-of-extensions",
                   "types of the extension %s are published, for instance in table %s", names,
                   cell(res, row, T_NAME));
        spate_find_why(list, "a target that lacks the extension takes their values as text");
    }
    spate_buf_fini(&seen);
}

static void published_text(PGconn *sql, struct spate_buf *out)
{
    int version = PQserverVersion(sql);

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    spate_buf_printf(
        out, published_sql,
        version >= 150000 ? "r.prqual::text AS filter, r.prattrs::int2[]::text AS list"
                          : "NULL::text AS filter, NULL::text AS list",
        version >= 150000 ? "UNION ALL SELECT c.oid, NULL, NULL FROM pg_catalog.pg_class c JOIN"
                            " pg_catalog.pg_publication_namespace s ON s.pnnspid = c.relnamespace JOIN pub ON"
                            " s.pnpubid = pub.oid WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'"
                          : "",
        version >= 180000 ? " AND NOT (a.attgenerated = 's' AND (pub.pubgencols = 's' OR a.attnum = ANY"
                            " (coalesce(s.list::int2[], '{}'))))"
                          : "",
        version >= 180000 ? " AND NOT (a.attgenerated = 's' AND (pub.pubgencols = 's' OR a.attnum = ANY"
                            " (coalesce(s.list::int2[], '{}'))))"
                          : "");
#pragma GCC diagnostic pop
}

enum spate_rc spate_check_tables(PGconn *sql, const struct spate_connector_config *config,
                                 struct spate_findings *list, struct spate_err *err)
{
    const char *publication = config->source.publication;
    struct spate_buf text = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    published_text(sql, &text);
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &publication, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&text);
    if (rc != SPATE_OK)
        return rc;
    for (int row = 0; row < PQntuples(res); row++) {
        judge_storage(res, row, list);
        if (cell(res, row, T_KIND)[0] != 'r' || cell(res, row, T_PERSISTENCE)[0] != 'p')
            continue;
        if (judge_identity(res, row, list))
            judge_parts(res, row, publication, list);
        judge_rights(res, row, list);
    }
    tell_extensions(res, list);
    PQclear(res);
    return SPATE_OK;
}
