/* connector/admission_source.c - one table of a request as the source's catalog has it, under a lock: what is
 * found stays true until the transaction ends, and the stamp tells later whether it still is (P90, P95). */
#include "connector/admitting.h"

#include "connector/catalog.h"
#include "connector/cover.h"
#include "connector/query.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* $1 publication, $2 schema, $3 table. What pg_publication_tables would say, without the locks that the view
 * takes on some servers: with publish_via_partition_root a table that is listed, unless one above it is; else
 * whatever has rows of its own and is listed, or below one that is. */
static const char look_sql[] =
    "PREPARE spate_look(text, text, text) AS SELECT c.oid, c.relkind, c.relpersistence,"
    " pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), pg_catalog.has_table_privilege(c.oid, "
    "'SELECT'),"
    " pg_catalog.row_security_active(c.oid), current_user,"
    " coalesce(pg_catalog.pg_relation_is_publishable(c.oid) AND"
    "  CASE WHEN b.puballtables AND b.pubviaroot THEN NOT c.relispartition"
    "   WHEN b.pubviaroot THEN k.own AND NOT k.kin"
    "   ELSE c.relkind = 'r' AND (b.puballtables OR k.own OR k.kin) END, false), %s"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_catalog.pg_publication b ON b.pubname = $1"
    " CROSS JOIN LATERAL (SELECT coalesce(bool_or(x.oid = c.oid), false) AS own,"
    "   coalesce(bool_or(x.oid <> c.oid), false) AS kin"
    "   FROM pg_catalog.unnest(c.oid || ARRAY(SELECT a.relid::oid FROM "
    "pg_catalog.pg_partition_ancestors(c.oid) a)) o(oid) JOIN pg_catalog.pg_class x ON x.oid = o.oid"
    "   WHERE (EXISTS (SELECT 1 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = b.oid AND r.prrelid = "
    "x.oid)%s)"
    "  ) k WHERE n.nspname = $2 AND c.relname = $3; ";
static const char in_schema[] = " OR EXISTS (SELECT 1 FROM pg_catalog.pg_publication_namespace s"
                                " WHERE s.pnpubid = b.oid AND s.pnnspid = x.relnamespace)";
/* Filters count where the table itself is named. */
static const char look_filter[] =
    "CASE WHEN NOT b.puballtables AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_publication_namespace s"
    " WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace) THEN (SELECT pg_catalog.pg_get_expr(r.prqual, "
    "r.prrelid)"
    " FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = b.oid AND r.prrelid = c.oid) END";

enum { L_OID, L_KIND, L_PERSISTENCE, L_USAGE, L_SELECT, L_SECURITY, L_USER, L_PUBLISHED, L_FILTER };

/* $1 the table's OID, $2 publication. */
static const char leaves_head[] =
    "PREPARE spate_leaves(oid, text) AS SELECT l.oid, n.nspname, l.relname, l.relkind, l.relpersistence,"
    " coalesce(pg_catalog.pg_relation_size(l.oid), 0) / pg_catalog.current_setting('block_size')::bigint,"
    " CASE WHEN l.reltuples < 0 OR l.relpages <= 0 THEN -1 ELSE l.reltuples / l.relpages *"
    "  (coalesce(pg_catalog.pg_relation_size(l.oid), 0) / pg_catalog.current_setting('block_size')::bigint) "
    "END,"
    " pg_catalog.has_schema_privilege(l.relnamespace, 'USAGE'),"
    " pg_catalog.has_table_privilege(l.oid, 'SELECT'), pg_catalog.row_security_active(l.oid),"
    " coalesce(pg_catalog.pg_relation_size(l.oid), 0), ";
static const char leaves_tail[] =
    " FROM (SELECT $1 AS oid UNION SELECT t.relid FROM pg_catalog.pg_partition_tree($1::regclass) t"
    "  WHERE t.isleaf) o JOIN pg_catalog.pg_class l ON l.oid = o.oid AND l.relkind <> 'p'"
    " JOIN pg_catalog.pg_namespace n ON n.oid = l.relnamespace ORDER BY l.oid";
enum {
    F_OID,
    F_SCHEMA,
    F_TABLE,
    F_KIND,
    F_PERSISTENCE,
    F_PAGES,
    F_ROWS,
    F_USAGE,
    F_SELECT,
    F_SECURITY,
    F_BYTES,
    F_STAMP
};

/* Planning these takes far longer than running them, so that is done once. */
enum spate_rc spate_admission_prepare(PGconn *conn, struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    spate_buf_puts(&sql,
                   "SET lock_timeout = '200ms'; SET statement_timeout = '8s'; SET row_security = off;"
                   " SET default_transaction_read_only = on; SET plan_cache_mode = force_generic_plan; ");
    spate_buf_printf(&sql, look_sql, PQserverVersion(conn) >= 150000 ? look_filter : "NULL",
                     PQserverVersion(conn) >= 150000 ? in_schema : "");
    spate_catalog_prepare_sql(&sql, conn);
    spate_buf_puts(&sql, leaves_head);
    spate_query_stamp(&sql, PQserverVersion(conn), "l.oid", "$2");
    spate_buf_puts(&sql, leaves_tail);
    rc = spate_pg_exec(conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    return rc;
}

static void add_literal(struct spate_buf *sql, const char *before, struct spate_slice text)
{
    spate_buf_puts(sql, before);
    spate_pg_literal(sql, text);
}

/* ---- the table by itself ---- */

/* Asks the catalog. *found: neither refused nor gone. */
static enum spate_rc look_at(struct spate_admitting *look, bool *found)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    *found = false;
    PQclear(look->res);
    look->res = NULL;
    add_literal(&sql, "EXECUTE spate_look(", spate_slice_str(look->config->source.publication));
    add_literal(&sql, ", ", look->from->schema);
    add_literal(&sql, ", ", look->from->table);
    spate_buf_putc(&sql, ')');
    rc = spate_admitting_ask(look, spate_buf_str(&sql), 0, NULL, &look->res);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? spate_admitting_failed(look, "looking up") : rc;
    if (PQntuples(look->res) == 0) {
        spate_admitting_not_there(look);
        return spate_admitting_give_up(look);
    }
    look->user = PQgetvalue(look->res, 0, L_USER);
    char kind = PQgetvalue(look->res, 0, L_KIND)[0];
    const char *wrong = spate_admitting_wrong_kind(kind, PQgetvalue(look->res, 0, L_PERSISTENCE)[0]);

    if (wrong)
        spate_admitting_refuse_kind(look, kind, wrong);
    else if (!spate_admitting_true(look->res, 0, L_PUBLISHED))
        spate_admitting_not_published(look, PQgetvalue(look->res, 0, L_OID));
    else if (!spate_admitting_true(look->res, 0, L_USAGE) || !spate_admitting_true(look->res, 0, L_SELECT))
        spate_admitting_not_granted(look, spate_buf_str(&look->name), look->from->schema,
                                    spate_admitting_true(look->res, 0, L_USAGE));
    else if (spate_admitting_true(look->res, 0, L_SECURITY))
        spate_admitting_secured(look, spate_buf_str(&look->name));
    else
        *found = true;
    return *found ? SPATE_OK : spate_admitting_give_up(look);
}

/* ---- its leaves ---- */

static bool leaf_is_readable(struct spate_admitting *look, const PGresult *res, int row, const char *name)
{
    const char *wrong =
        spate_admitting_wrong_kind(PQgetvalue(res, row, F_KIND)[0], PQgetvalue(res, row, F_PERSISTENCE)[0]);

    if (wrong) {
        spate_buf_printf(&look->refusal->reason, "partition %s of %s %s", name, spate_buf_str(&look->name),
                         wrong);
        spate_buf_printf(&look->refusal->remedy, "ALTER TABLE %s DETACH PARTITION %s; or leave the table out",
                         spate_buf_str(&look->name), name);
        return false;
    }
    if (!spate_admitting_true(res, row, F_USAGE) || !spate_admitting_true(res, row, F_SELECT)) {
        spate_admitting_not_granted(look, name, spate_admitting_cell(res, row, F_SCHEMA),
                                    spate_admitting_true(res, row, F_USAGE));
        return false;
    }
    if (spate_admitting_true(res, row, F_SECURITY)) {
        spate_admitting_secured(look, name);
        return false;
    }
    return true;
}

static enum spate_rc take_leaves(struct spate_admitting *look, struct spate_plan_table *table, int64_t *bytes,
                                 bool *taken)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    *bytes = 0;
    *taken = false;
    spate_buf_printf(&sql, "EXECUTE spate_leaves(%s", PQgetvalue(look->res, 0, L_OID));
    add_literal(&sql, ", ", spate_slice_str(look->config->source.publication));
    spate_buf_putc(&sql, ')');
    rc = spate_admitting_ask(look, spate_buf_str(&sql), 0, NULL, &res);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? spate_admitting_failed(look, "looking at the pages") : rc;
    *taken = true;
    table->leaves = spate_zalloc(((size_t)PQntuples(res) + 1) * sizeof *table->leaves);
    for (int row = 0; *taken && row < PQntuples(res); row++) {
        struct spate_plan_leaf *leaf = &table->leaves[row];
        struct spate_buf name = {0};

        spate_admission_name(&name, spate_admitting_cell(res, row, F_SCHEMA),
                             spate_admitting_cell(res, row, F_TABLE));
        *taken = leaf_is_readable(look, res, row, spate_buf_str(&name));
        leaf->oid = (uint32_t)strtoul(PQgetvalue(res, row, F_OID), NULL, 10);
        leaf->name = spate_strdup(spate_buf_str(&name));
        leaf->filter =
            PQgetisnull(look->res, 0, L_FILTER) ? NULL : spate_strdup(PQgetvalue(look->res, 0, L_FILTER));
        leaf->stamp = spate_strdup(PQgetvalue(res, row, F_STAMP));
        leaf->pages = strtoull(PQgetvalue(res, row, F_PAGES), NULL, 10);
        leaf->rows = strtod(PQgetvalue(res, row, F_ROWS), NULL);
        *bytes += strtoll(PQgetvalue(res, row, F_BYTES), NULL, 10);
        table->leaf_count = (size_t)row + 1;
        spate_buf_fini(&name);
    }
    PQclear(res);
    return *taken ? SPATE_OK : spate_admitting_give_up(look);
}

/* ---- all of it ---- */

static enum spate_rc wait_readable(void *arg, int fd, struct spate_err *err)
{
    const int64_t *until_ms = arg;
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = spate_signals_fd(), .events = POLLIN}};
    int64_t left = *until_ms - spate_clock_ms();

    if (spate_signals_stop())
        return SPATE_END;
    if (left <= 0)
        return spate_fail(err, SPATE_RETRY, "the source's catalog did not answer in %d ms",
                          SPATE_ADMITTING_MS);
    poll(fds, 2, (int)(left < 1000 ? left : 1000));
    return SPATE_OK;
}

/* What of it may be shown. Where the file's rules have come to mean something else, nothing is read. */
static enum spate_rc cover_shape(struct spate_admitting *look, struct spate_catalog *catalog,
                                 struct spate_plan_table *table)
{
    struct spate_table *raw = table->table;
    enum spate_rc rc;

    table->table = NULL;
    rc = spate_cover_make(look->config->privacy, catalog,
                          (uint32_t)strtoul(PQgetvalue(look->res, 0, L_OID), NULL, 10), raw, NULL, 0, NULL,
                          &table->cover, look->err);
    if (rc == SPATE_OK) {
        table->table = table->cover->table;
        return SPATE_OK;
    }
    if (rc != SPATE_FAIL || look->err->exit_code != SPATE_EXIT_REFUSED)
        return rc == SPATE_FAIL ? spate_admitting_failed(look, "reading the columns") : rc;
    spate_buf_printf(&look->refusal->reason,
                     "%s may not be read: its columns are not those of which the connector's "
                     "rules (exclude, mask) speak",
                     spate_buf_str(&look->name));
    spate_buf_puts(&look->refusal->remedy, look->err->text);
    *look->err = (struct spate_err){0};
    return spate_admitting_give_up(look);
}

static enum spate_rc take_shape(struct spate_admitting *look, struct spate_plan_table *table)
{
    int64_t until_ms = spate_clock_ms() + SPATE_ADMITTING_MS;
    struct spate_catalog catalog = {.conn = look->conn,
                                    .publication = look->config->source.publication,
                                    .prepared = true,
                                    .wait = wait_readable,
                                    .arg = &until_ms};
    enum spate_rc rc = spate_catalog_table(
        &catalog, (uint32_t)strtoul(PQgetvalue(look->res, 0, L_OID), NULL, 10), &table->table, look->err);

    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? spate_admitting_failed(look, "reading the columns") : rc;
    if (table->table)
        return cover_shape(look, &catalog, table);
    spate_buf_printf(&look->refusal->reason, "%s has no column that is published",
                     spate_buf_str(&look->name));
    spate_buf_puts(&look->refusal->remedy, "add one, or ask without this table");
    return spate_admitting_give_up(look);
}

/* Without a key nothing tells one row from another: rows can be appended, never corrected; so all of them
 * come in one piece, or not at all. */
static bool keyless_fits(struct spate_admitting *look, const struct spate_plan_table *table, bool append,
                         int64_t bytes)
{
    const char *name = spate_buf_str(&look->name);

    if (table->table->key_count > 0 || (append && bytes <= SPATE_WHOLE_TABLE_BYTES))
        return true;
    spate_buf_printf(&look->refusal->reason, "the rows of %s have no key", name);
    if (append)
        spate_buf_printf(&look->refusal->reason,
                         ", so they can only be read in one piece, and %" PRId64
                         " MiB are more than the %" PRId64 " MiB that this is offered for",
                         bytes >> 20, SPATE_WHOLE_TABLE_BYTES >> 20);
    else
        spate_buf_puts(&look->refusal->reason,
                       ": whoever keeps a copy could not tell which of its rows is meant");
    spate_buf_printf(&look->refusal->remedy, "ALTER TABLE %s ADD PRIMARY KEY (...);%s", name,
                     append ? ""
                            : " or, where rows are only ever appended, say \"append\":true in the request");
    return false;
}

static enum spate_rc lock(struct spate_admitting *look)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    /* The lock before the snapshot (P90). The children of an ordinary table are tables of their own. */
    spate_buf_printf(&sql,
                     "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE %s%s IN ACCESS SHARE MODE",
                     PQgetvalue(look->res, 0, L_KIND)[0] == 'p' ? "" : "ONLY ", spate_buf_str(&look->name));
    *look->err = (struct spate_err){0};
    rc = spate_pg_exec(look->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, look->err);
    spate_buf_fini(&sql);
    return rc == SPATE_FAIL ? spate_admitting_failed(look, "locking") : rc;
}

static enum spate_rc look_all(struct spate_admitting *look, bool append, struct spate_plan_table *table)
{
    bool found = false;
    int64_t bytes = 0;
    enum spate_rc rc = look_at(look, &found);

    if (rc != SPATE_OK || !found)
        return rc;
    rc = lock(look);
    if (rc != SPATE_OK || PQtransactionStatus(look->conn) != PQTRANS_INTRANS)
        return rc;
    rc = look_at(look, &found); /* now it stays */
    if (rc == SPATE_OK && found)
        rc = take_leaves(look, table, &bytes, &found);
    if (rc == SPATE_OK && found)
        rc = take_shape(look, table);
    if (rc != SPATE_OK || !found || !table->table || keyless_fits(look, table, append, bytes))
        return rc;
    spate_cover_free(table->cover);
    table->cover = NULL;
    table->table = NULL;
    return spate_admitting_give_up(look);
}

enum spate_rc spate_admission_look(const struct spate_connector_config *config, PGconn *conn,
                                   const struct spate_control_table *asked_for, bool append,
                                   struct spate_plan_table *table, struct spate_refusal *refusal,
                                   struct spate_err *err)
{
    struct spate_admitting look = {
        .config = config, .conn = conn, .from = asked_for, .refusal = refusal, .err = err};
    bool empty = asked_for->schema.len == 0 || asked_for->table.len == 0;
    enum spate_rc rc;

    spate_admission_name(&look.name, asked_for->schema, asked_for->table);
    if (empty || memchr(asked_for->schema.at, 0, asked_for->schema.len) ||
        memchr(asked_for->table.at, 0, asked_for->table.len)) {
        spate_admitting_not_there(&look);
        rc = SPATE_OK;
    } else {
        rc = look_all(&look, append, table);
    }
    PQclear(look.res);
    spate_buf_fini(&look.name);
    return rc;
}
