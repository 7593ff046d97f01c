/* connector/catalog.c - three queries, and rows into tables. */
#include "connector/catalog.h"

#include "core/alloc.h"
#include "core/buf.h"
#include "pg/pg.h"

#include <stdlib.h>

/* One row per replicated column, in the order in which pgoutput sends them (attnum). Positions count from 1;
 * 0 = not part of it. A deferrable primary key identifies nothing (P47), as in the server's own code. */
static const char select_columns[] =
    "SELECT c.oid, n.nspname, c.relname, c.relreplident, a.attname, a.atttypid, a.atttypmod, t.typlen,"
    " pg_catalog.format_type(a.atttypid, a.atttypmod), b.oid,"
    " CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(b.oid, b.mod) ELSE '' END,"
    " coalesce(pg_catalog.array_position(k.keys, a.attnum), 0),"
    " coalesce(pg_catalog.array_position(x.keys, a.attnum), 0)"
    " FROM pg_catalog.pg_class c"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " %s"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped %s"
    " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
    " CROSS JOIN LATERAL ("
    "   WITH RECURSIVE d(oid, mod, typtype, typbasetype, typtypmod) AS ("
    "     SELECT t.oid, a.atttypmod, t.typtype, t.typbasetype, t.typtypmod"
    "     UNION ALL SELECT u.oid, d.typtypmod, u.typtype, u.typbasetype, u.typtypmod"
    "     FROM d JOIN pg_catalog.pg_type u ON d.typtype = 'd' AND u.oid = d.typbasetype)"
    "   SELECT d.oid, d.mod FROM d WHERE d.typtype <> 'd') b"
    " LEFT JOIN LATERAL (SELECT (pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts] "
    "AS keys"
    "   FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate"
    "   AND i.indisvalid) k ON true"
    " LEFT JOIN LATERAL (SELECT (pg_catalog.string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts] "
    "AS keys"
    "   FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) x ON c.relreplident = 'i'"
    " %s ORDER BY c.oid, a.attnum";

/* What is published of it. All tables: */
static const char join_published[] =
    "JOIN pg_catalog.pg_publication_tables p"
    " ON p.pubname = $1 AND p.schemaname = n.nspname AND p.tablename = c.relname";
/* One table, published or not. That view locks every table of the publication for a moment on some servers
 * from 15 on, and so waits for whoever rewrites any of them; this does not. A list of columns counts for the
 * table alone, and not where all tables or its whole schema are published. */
static const char join_one[] =
    "LEFT JOIN LATERAL (SELECT CASE WHEN r.prattrs IS NOT NULL AND NOT b.puballtables AND NOT EXISTS ("
    "   SELECT 1 FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = b.oid"
    "   AND s.pnnspid = c.relnamespace) THEN ARRAY(SELECT l.attname FROM pg_catalog.pg_attribute l"
    "   WHERE l.attrelid = c.oid AND l.attnum = ANY (r.prattrs)) END AS attnames, %s AS generated"
    " FROM pg_catalog.pg_publication b LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid"
    " AND r.prrelid = c.oid WHERE b.pubname = $1) p ON true";

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

static enum spate_rc run(struct spate_catalog *catalog, const char *sql, int count, const char *const *values,
                         PGresult **res, struct spate_err *err)
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

/* The column that holds the key's position: the row's identity now (docs/message-format.md, `key`). */
static int key_column(char identity)
{
    return identity == SPATE_IDENTITY_INDEX                                        ? C_INDEX
           : identity == SPATE_IDENTITY_DEFAULT || identity == SPATE_IDENTITY_FULL ? C_PK
                                                                                   : -1;
}

/* Rows first..first+count-1 are one table's columns. */
static struct spate_table *make_table(const PGresult *res, int first, int count)
{
    char identity = *PQgetvalue(res, first, C_IDENTITY);
    int by = key_column(identity);
    size_t key_count = 0;
    struct spate_table *table;

    for (int i = 0; by >= 0 && i < count; i++)
        key_count += cell_u32(res, first + i, by) > 0;
    /* Under FULL a column list may leave out part of the primary key: then nothing identifies a row. */
    for (int i = 0; by >= 0 && i < count; i++)
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

/* Generated columns are never sent before server 18 (P38); from 18 the publication's own list says which.
 * From 15 on a publication may list columns (P49). */
static void columns_sql(struct spate_buf *sql, PGconn *conn, bool one)
{
    int version = PQserverVersion(conn);
    struct spate_buf join = {0};
    const char *which =
        version >= 180000 && one
            ? "AND (a.attname = ANY (p.attnames) OR (p.attnames IS NULL AND (a.attgenerated = '' OR "
              "(a.attgenerated = 's' AND coalesce(p.generated, false)))))"
        : version >= 180000
            ? "AND (a.attname = ANY (p.attnames) OR (p.attnames IS NULL AND a.attgenerated = ''))"
        : version >= 150000
            ? "AND a.attgenerated = '' AND (p.attnames IS NULL OR a.attname = ANY (p.attnames))"
            : "AND a.attgenerated = ''";

    if (one && version >= 150000)
        spate_buf_printf(&join, join_one, version >= 180000 ? "b.pubgencols = 's'" : "false");
    else
        spate_buf_printf(&join, "%s%s", one ? "LEFT " : "", join_published);
    spate_buf_reset(sql);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    spate_buf_printf(sql, select_columns, spate_buf_str(&join), which, one ? "WHERE c.oid = $2::oid" : "");
#pragma GCC diagnostic pop
    spate_buf_fini(&join);
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
    rc = run(catalog, spate_buf_str(&sql), 1, &catalog->publication, &res, err);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc;
    rows = PQntuples(res);
    *tables = spate_alloc(((size_t)rows + 1) * sizeof **tables);
    for (int first = 0, next; first < rows; first = next) {
        uint32_t oid = cell_u32(res, first, C_OID);

        for (next = first + 1; next < rows && cell_u32(res, next, C_OID) == oid;)
            next++;
        (*tables)[(*count)++] = (struct spate_catalog_table){oid, make_table(res, first, next - first)};
    }
    PQclear(res);
    return SPATE_OK;
}

void spate_catalog_tables_free(struct spate_catalog_table *tables, size_t count)
{
    for (size_t i = 0; i < count; i++)
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
    columns_sql(&sql, catalog->conn, true);
    rc = run(catalog, spate_buf_str(&sql), 2, values, &res, err);
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
    rc = run(catalog, select_types, 2, values, &res, err);
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
