/* connector/catalog.c - three queries, and rows into tables. */
#include "connector/catalog.h"

#include "connector/cover.h"
#include "core/alloc.h"
#include "core/buf.h"
#include "pg/pg.h"

#include <stdlib.h>

/* What is published, from the catalogs themselves: pg_publication_tables opens every table of the publication
 * on some servers from 15 on, and so waits for whoever rewrites any of them; and it is slow where there are
 * thousands. A partition comes through its topmost published ancestor, or a partitioned table as its leaves
 * (publish_via_partition_root, P50). A list of columns counts for the table alone, and not where all tables
 * or its whole schema are published (P49). $1 is the publication. */
static const char published_head[] =
    "pub AS MATERIALIZED (SELECT b.oid, b.puballtables, b.pubviaroot, %s AS generated"
    " FROM pg_catalog.pg_publication b WHERE b.pubname = $1),"
    " named(oid) AS MATERIALIZED ("
    "  SELECT r.prrelid FROM pub JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid"
    "  UNION SELECT c.oid FROM pub JOIN pg_catalog.pg_class c ON pub.puballtables AND c.relkind IN ('r', "
    "'p')";
static const char published_schemas[] =
    "  UNION SELECT c.oid FROM pub JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = pub.oid"
    "   JOIN pg_catalog.pg_class c ON c.relnamespace = s.pnnspid AND c.relkind IN ('r', 'p')";
static const char published_tail[] =
    "), up(oid, parent) AS ("
    "  SELECT i.inhrelid, i.inhparent FROM named m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.oid"
    "   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition"
    "  UNION ALL SELECT u.oid, i.inhparent FROM up u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.parent),"
    " down(oid) AS ("
    "  SELECT m.oid FROM named m"
    "  UNION SELECT i.inhrelid FROM down d JOIN pg_catalog.pg_inherits i ON i.inhparent = d.oid"
    "   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition),"
    " published(oid, generated, attrs) AS MATERIALIZED ("
    "  SELECT c.oid, pub.generated, %s"
    "  FROM pub CROSS JOIN down d"
    "   JOIN pg_catalog.pg_class c ON c.oid = d.oid AND c.oid >= 16384 AND c.relpersistence = 'p'"
    "   LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid AND r.prrelid = c.oid"
    "  WHERE CASE WHEN pub.pubviaroot THEN c.relkind IN ('r', 'p') AND c.oid IN (SELECT m.oid FROM named m)"
    "   AND c.oid NOT IN (SELECT u.oid FROM up u WHERE u.parent IN (SELECT m.oid FROM named m))"
    "   ELSE c.relkind = 'r' END)";

/* A list of columns, or NULL: `publication` and `relation` are the rows' names. */
static const char column_list[] =
    "CASE WHEN NOT pub.puballtables AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_publication_namespace s"
    " WHERE s.pnpubid = pub.oid AND s.pnnspid = c.relnamespace) THEN r.prattrs::int2[] END";

/* One table, published or not. */
static const char published_one[] =
    "published(oid, generated, attrs) AS (SELECT c.oid, coalesce(pub.generated, false), %s"
    " FROM pg_catalog.pg_class c"
    " LEFT JOIN (SELECT b.oid, b.puballtables, %s AS generated FROM pg_catalog.pg_publication b"
    "  WHERE b.pubname = $1) pub ON true"
    " LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid AND r.prrelid = c.oid"
    " WHERE c.oid = $2::oid)";

/* One row per replicated column, in the order in which pgoutput sends them (attnum). Positions count from 1;
 * 0 = not part of it. A deferrable primary key identifies nothing (P47), as in the server's own code. What a
 * domain is made of is found once per domain, not per column. Generated columns are never sent before server
 * 18 (P38). */
static const char domains_all[] =
    ", step(dom, at, mod) AS ("
    "  SELECT t.oid, t.typbasetype, t.typtypmod FROM pg_catalog.pg_type t WHERE t.typtype = 'd'"
    "  UNION ALL SELECT s.dom, t.typbasetype, t.typtypmod FROM step s"
    "   JOIN pg_catalog.pg_type t ON t.oid = s.at AND t.typtype = 'd'),"
    " base AS MATERIALIZED (SELECT s.dom, s.at, s.mod FROM step s"
    "  JOIN pg_catalog.pg_type t ON t.oid = s.at AND t.typtype <> 'd')";
static const char join_domains[] = " LEFT JOIN base b ON b.dom = t.oid";
/* Of one table: without a look at every type there is. */
static const char join_domains_one[] = " LEFT JOIN LATERAL (WITH RECURSIVE step(at, mod, kind) AS ("
                                       "   SELECT u.oid, t.typtypmod, u.typtype FROM pg_catalog.pg_type u"
                                       "    WHERE t.typtype = 'd' AND u.oid = t.typbasetype"
                                       "   UNION ALL SELECT u.oid, v.typtypmod, u.typtype FROM step s"
                                       "    JOIN pg_catalog.pg_type v ON v.oid = s.at AND v.typtype = 'd'"
                                       "    JOIN pg_catalog.pg_type u ON u.oid = v.typbasetype)"
                                       "  SELECT s.at, s.mod FROM step s WHERE s.kind <> 'd') b ON true";
static const char select_columns[] =
    " SELECT c.oid, n.nspname, c.relname, c.relreplident, a.attname, a.atttypid, a.atttypmod, t.typlen,"
    " pg_catalog.format_type(a.atttypid, a.atttypmod), coalesce(b.at, t.oid),"
    " CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(b.at, b.mod) ELSE '' END,"
    " coalesce(pg_catalog.array_position("
    "  (pg_catalog.string_to_array(k.indkey::text, ' ')::int2[])[1:k.indnkeyatts], a.attnum), 0),"
    " coalesce(pg_catalog.array_position("
    "  (pg_catalog.string_to_array(x.indkey::text, ' ')::int2[])[1:x.indnkeyatts], a.attnum), 0)"
    " FROM published p"
    " JOIN pg_catalog.pg_class c ON c.oid = p.oid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    "  AND (a.attnum = ANY (p.attrs) OR (p.attrs IS NULL"
    "   AND (a.attgenerated = '' OR (a.attgenerated = 's' AND p.generated))))"
    " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
    "%s"
    " LEFT JOIN pg_catalog.pg_index k ON k.indrelid = c.oid AND k.indisprimary AND k.indimmediate"
    "  AND k.indisvalid"
    " LEFT JOIN pg_catalog.pg_index x ON x.indrelid = c.oid AND x.indisreplident AND c.relreplident = 'i'"
    " ORDER BY c.oid, a.attnum";

/* For types by OID and modifier, in the order asked. */
static const char select_types[] =
    "SELECT o.ord, coalesce(t.typlen, -1), pg_catalog.format_type(o.oid, o.mod), coalesce(b.oid, o.oid),"
    " CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(b.oid, b.mod) ELSE '' END"
    " FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY o(oid, mod, ord)"
    " LEFT JOIN pg_catalog.pg_type t ON t.oid = o.oid"
    " LEFT JOIN LATERAL ("
    "   WITH RECURSIVE d(oid, mod, typtype, typbasetype, typtypmod) AS ("
    "     SELECT t.oid, o.mod, t.typtype, t.typbasetype, t.typtypmod"
    "     UNION ALL SELECT u.oid, d.typtypmod, u.typtype, u.typbasetype, u.typtypmod"
    "     FROM d JOIN pg_catalog.pg_type u ON d.typtype = 'd' AND u.oid = d.typbasetype)"
    "   SELECT d.oid, d.mod FROM d WHERE d.typtype <> 'd') b ON true"
    " ORDER BY o.ord";

/* Columns of select_columns. */
enum {
    C_OID,
    C_SCHEMA,
    C_TABLE,
    C_IDENTITY,
    C_NAME,
    C_TYPE,
    C_MOD,
    C_LEN,
    C_SPELLED,
    C_BASE_OID,
    C_BASE,
    C_PK,
    C_INDEX
};

enum spate_rc spate_catalog_ask(struct spate_catalog *catalog, const char *sql, int count,
                                const char *const *values, PGresult **res, struct spate_err *err)
{
    PGconn *conn = catalog->conn;
    PGresult *more;
    enum spate_rc rc;

    *res = NULL;
    if (!PQsendQueryParams(conn, sql, count, NULL, values, NULL, NULL, 0))
        return spate_pg_fail(err, conn, NULL, "cannot ask the source's catalog");
    for (;;) {
        int flushed = PQflush(conn);

        if (flushed < 0 || !PQconsumeInput(conn)) {
            PQclear(*res);
            *res = NULL;
            return spate_pg_fail(err, conn, NULL, "lost the catalog connection to the source");
        }
        while (!PQisBusy(conn)) {
            more = PQgetResult(conn);
            if (!more) {
                if (PQresultStatus(*res) == PGRES_TUPLES_OK)
                    return SPATE_OK;
                spate_pg_fail(err, conn, *res, "cannot read the source's catalog");
                PQclear(*res);
                *res = NULL;
                return SPATE_FAIL;
            }
            PQclear(*res);
            *res = more;
        }
        rc = catalog->wait(catalog->arg, PQsocket(conn), err);
        if (rc != SPATE_OK) {
            PQclear(*res);
            *res = NULL;
            return rc;
        }
    }
}

static struct spate_slice cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

static uint32_t cell_u32(const PGresult *res, int row, int column)
{
    return (uint32_t)strtoul(PQgetvalue(res, row, column), NULL, 10);
}

static bool is_identity(const PGresult *res, int row)
{
    switch (*PQgetvalue(res, row, C_IDENTITY)) {
    case SPATE_IDENTITY_FULL:
        return true;
    case SPATE_IDENTITY_DEFAULT:
        return cell_u32(res, row, C_PK) > 0;
    case SPATE_IDENTITY_INDEX:
        return cell_u32(res, row, C_INDEX) > 0;
    default:
        return false;
    }
}

/* The column that holds the key's position: the row's identity now (docs/message-format.md, `key`). With
 * REPLICA IDENTITY NOTHING rows are only added, and the primary key still tells them apart (F35). */
static int key_column(char identity)
{
    return identity == SPATE_IDENTITY_INDEX ? C_INDEX : C_PK;
}

/* Rows first..first+count-1 are one table's columns. */
static struct spate_table *make_table(const PGresult *res, int first, int count)
{
    char identity = *PQgetvalue(res, first, C_IDENTITY);
    int by = key_column(identity);
    size_t key_count = 0;
    struct spate_table *table;

    for (int i = 0; i < count; i++)
        key_count += cell_u32(res, first + i, by) > 0;
    /* A list of columns may leave out part of the key where no update needs it: then nothing identifies a
     * row. */
    for (int i = 0; i < count; i++)
        if (cell_u32(res, first + i, by) > key_count)
            key_count = 0;
    table = spate_table_new(cell(res, first, C_SCHEMA), cell(res, first, C_TABLE),
                            (enum spate_identity)identity, (size_t)count, key_count);
    for (int i = 0; i < count; i++) {
        int row = first + i;

        spate_table_set_column(table, (size_t)i, cell(res, row, C_NAME), cell(res, row, C_SPELLED),
                               cell(res, row, C_BASE), cell_u32(res, row, C_TYPE),
                               (int32_t)strtol(PQgetvalue(res, row, C_MOD), NULL, 10),
                               (int16_t)strtol(PQgetvalue(res, row, C_LEN), NULL, 10), is_identity(res, row),
                               spate_class_of(cell_u32(res, row, C_BASE_OID)));
        if (key_count && cell_u32(res, row, by) > 0)
            table->key[cell_u32(res, row, by) - 1] = (uint32_t)i;
    }
    spate_table_seal(table);
    return table;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"

void spate_catalog_published_sql(struct spate_buf *sql, PGconn *conn)
{
    int version = PQserverVersion(conn);

    spate_buf_printf(sql, published_head, version >= 180000 ? "b.pubgencols = 's'" : "false");
    spate_buf_puts(sql, version >= 150000 ? published_schemas : "");
    spate_buf_printf(sql, published_tail, version >= 150000 ? column_list : "NULL::int2[]");
}

static void columns_sql(struct spate_buf *sql, PGconn *conn, bool one)
{
    int version = PQserverVersion(conn);

    spate_buf_reset(sql);
    spate_buf_puts(sql, "WITH RECURSIVE ");
    if (one)
        spate_buf_printf(sql, published_one, version >= 150000 ? column_list : "NULL::int2[]",
                         version >= 180000 ? "b.pubgencols = 's'" : "false");
    else
        spate_catalog_published_sql(sql, conn);
    spate_buf_puts(sql, one ? "" : domains_all);
    spate_buf_printf(sql, select_columns, one ? join_domains_one : join_domains);
}

#pragma GCC diagnostic pop

void spate_catalog_prepare_sql(struct spate_buf *sql, PGconn *conn)
{
    struct spate_buf query = {0};

    columns_sql(&query, conn, true);
    spate_buf_printf(sql, "PREPARE spate_columns(text, oid) AS %s; ", spate_buf_str(&query));
    spate_buf_fini(&query);
}

enum spate_rc spate_catalog_load(struct spate_catalog *catalog, struct spate_catalog_table **tables,
                                 size_t *count, struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;
    int rows;

    *tables = NULL;
    *count = 0;
    columns_sql(&sql, catalog->conn, false);
    rc = spate_catalog_ask(catalog, spate_buf_str(&sql), 1, &catalog->publication, &res, err);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc;
    rows = PQntuples(res);
    *tables = spate_alloc(((size_t)rows + 1) * sizeof **tables);
    for (int first = 0, next; first < rows; first = next) {
        uint32_t oid = cell_u32(res, first, C_OID);

        for (next = first + 1; next < rows && cell_u32(res, next, C_OID) == oid;)
            next++;
        (*tables)[(*count)++] = (struct spate_catalog_table){oid, make_table(res, first, next - first), NULL};
    }
    PQclear(res);
    *tables = spate_realloc(*tables, (*count + 1) * sizeof **tables); /* there was room for one per column */
    return SPATE_OK;
}

void spate_catalog_tables_free(struct spate_catalog_table *tables, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (tables[i].cover)
            spate_cover_free(tables[i].cover);
        else
            spate_table_free(tables[i].table);
    free(tables);
}

enum spate_rc spate_catalog_table(struct spate_catalog *catalog, uint32_t oid, struct spate_table **table,
                                  struct spate_err *err)
{
    struct spate_buf sql = {0};
    char number[16];
    const char *values[] = {catalog->publication, number};
    PGresult *res = NULL;
    enum spate_rc rc;

    *table = NULL;
    snprintf(number, sizeof number, "%u", oid);
    if (catalog->prepared) {
        spate_buf_puts(&sql, "EXECUTE spate_columns(");
        spate_pg_literal(&sql, spate_slice_str(catalog->publication));
        spate_buf_printf(&sql, ", %u)", oid);
        rc = spate_catalog_ask(catalog, spate_buf_str(&sql), 0, NULL, &res, err);
    } else {
        columns_sql(&sql, catalog->conn, true);
        rc = spate_catalog_ask(catalog, spate_buf_str(&sql), 2, values, &res, err);
    }
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc;
    if (PQntuples(res) > 0)
        *table = make_table(res, 0, PQntuples(res));
    PQclear(res);
    return SPATE_OK;
}

enum spate_rc spate_catalog_types(struct spate_catalog *catalog, struct spate_catalog_type *types,
                                  size_t count, struct spate_err *err)
{
    struct spate_buf oids = {0}, mods = {0};
    const char *values[2];
    PGresult *res = NULL;
    enum spate_rc rc;

    for (size_t i = 0; i < count; i++) {
        types[i].name = types[i].base = NULL;
        spate_buf_printf(&oids, "%c%u", i ? ',' : '{', types[i].oid);
        spate_buf_printf(&mods, "%c%d", i ? ',' : '{', types[i].mod);
    }
    spate_buf_puts(&oids, count ? "}" : "{}");
    spate_buf_puts(&mods, count ? "}" : "{}");
    values[0] = spate_buf_str(&oids);
    values[1] = spate_buf_str(&mods);
    rc = spate_catalog_ask(catalog, select_types, 2, values, &res, err);
    if (rc == SPATE_OK && (size_t)PQntuples(res) != count) {
        rc = spate_fail(err, SPATE_FATAL, "the source's catalog answered for %d types instead of %zu",
                        PQntuples(res), count);
    }
    for (int i = 0; rc == SPATE_OK && i < PQntuples(res); i++) {
        types[i].len = (int16_t)strtol(PQgetvalue(res, i, 1), NULL, 10);
        types[i].name = spate_strdup(PQgetvalue(res, i, 2));
        types[i].base_oid = cell_u32(res, i, 3);
        types[i].base = spate_strdup(PQgetvalue(res, i, 4));
    }
    PQclear(res);
    spate_buf_fini(&oids);
    spate_buf_fini(&mods);
    return rc;
}

void spate_catalog_types_fini(struct spate_catalog_type *types, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(types[i].name);
        free(types[i].base);
        types[i].name = types[i].base = NULL;
    }
}
