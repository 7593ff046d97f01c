/* connector/admission_source.c - one table of a request as the source's catalog has it, under a lock: what is
 * found stays true until the transaction ends, and the stamp tells later whether it still is (P90, P95). */
#include "connector/admission.h"

#include "connector/catalog.h"
#include "connector/query.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/options.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS 10000

/* $1 publication, $2 schema, $3 table. No function in it waits for a table's lock but those behind
 * pg_publication_tables, on some servers. */
static const char look_head[] =
    "SELECT c.oid, c.relkind, c.relpersistence, pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),"
    " pg_catalog.has_table_privilege(c.oid, 'SELECT'), pg_catalog.row_security_active(c.oid), current_user,"
    " p.tablename IS NOT NULL,"
    " (SELECT pg_catalog.format('%I.%I', up.schemaname, up.tablename) FROM "
    "pg_catalog.pg_partition_ancestors(c.oid) a"
    "  JOIN pg_catalog.pg_class u ON u.oid = a.relid JOIN pg_catalog.pg_namespace un ON un.oid = "
    "u.relnamespace"
    "  JOIN pg_catalog.pg_publication_tables up ON up.pubname = $1 AND up.schemaname = un.nspname"
    "   AND up.tablename = u.relname WHERE u.oid <> c.oid LIMIT 1),"
    " (SELECT pg_catalog.format('%I.%I', lp.schemaname, lp.tablename) FROM pg_catalog.pg_publication_tables "
    "lp"
    "  JOIN pg_catalog.pg_namespace ln ON ln.nspname = lp.schemaname"
    "  JOIN pg_catalog.pg_class l ON l.relnamespace = ln.oid AND l.relname = lp.tablename"
    "  WHERE c.relkind = 'p' AND lp.pubname = $1 AND EXISTS (SELECT 1 FROM"
    "   pg_catalog.pg_partition_ancestors(l.oid) a WHERE a.relid = c.oid) ORDER BY 1 LIMIT 1),";
static const char look_filter[] = " p.rowfilter";
static const char look_no_filter[] = " NULL";
static const char look_tail[] =
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_catalog.pg_publication_tables p ON p.pubname = $1 AND p.schemaname = n.nspname"
    "  AND p.tablename = c.relname"
    " WHERE n.nspname = $2 AND c.relname = $3";
enum {
    L_OID,
    L_KIND,
    L_PERSISTENCE,
    L_USAGE,
    L_SELECT,
    L_SECURITY,
    L_USER,
    L_PUBLISHED,
    L_ROOT,
    L_PART,
    L_FILTER
};

/* $1 the table's OID, $2 publication. */
static const char leaves_head[] =
    "SELECT l.oid, n.nspname, l.relname, l.relkind, l.relpersistence,"
    " coalesce(pg_catalog.pg_relation_size(l.oid), 0) / pg_catalog.current_setting('block_size')::bigint,"
    " CASE WHEN l.reltuples < 0 OR l.relpages <= 0 THEN -1 ELSE l.reltuples / l.relpages *"
    "  (coalesce(pg_catalog.pg_relation_size(l.oid), 0) / pg_catalog.current_setting('block_size')::bigint) "
    "END,"
    " pg_catalog.has_schema_privilege(l.relnamespace, 'USAGE'),"
    " pg_catalog.has_table_privilege(l.oid, 'SELECT'), pg_catalog.row_security_active(l.oid),"
    " coalesce(pg_catalog.pg_relation_size(l.oid), 0), ";
static const char leaves_tail[] =
    " FROM pg_catalog.pg_class l JOIN pg_catalog.pg_namespace n ON n.oid = l.relnamespace"
    " WHERE (l.oid = $1::oid AND l.relkind <> 'p') OR l.oid IN (SELECT t.relid FROM"
    "  pg_catalog.pg_partition_tree($1::oid::regclass) t WHERE t.isleaf) ORDER BY l.oid";
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

/* Who is in the way; the table itself first. */
static const char select_holder[] =
    "SELECT l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), coalesce(k.relname, '?')"
    " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
    " LEFT JOIN pg_catalog.pg_class k ON k.oid = l.relation"
    " WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid <> "
    "pg_catalog.pg_backend_pid()"
    " AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())"
    " ORDER BY k.relname = $1 DESC, l.granted DESC LIMIT 1";

struct look {
    const struct spate_connector_config *config;
    PGconn *conn;
    const struct spate_control_table *from;
    struct spate_refusal *refusal;
    struct spate_err *err;
    struct spate_buf name; /* "schema"."table" */
    PGresult *res;         /* of the look */
};

static struct spate_slice cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

static bool is_true(const PGresult *res, int row, int column)
{
    return PQgetvalue(res, row, column)[0] == 't';
}

enum spate_rc spate_admission_prepare(PGconn *conn, struct spate_err *err)
{
    return spate_pg_exec(conn,
                         "SET lock_timeout = '200ms'; SET statement_timeout = '8s'; SET row_security = off;"
                         " SET default_transaction_read_only = on",
                         PGRES_COMMAND_OK, NULL, err);
}

/* SPATE_OK: refused. The words were put already. */
static enum spate_rc give_up(struct look *look)
{
    if (PQtransactionStatus(look->conn) == PQTRANS_IDLE)
        return SPATE_OK;
    return spate_pg_exec(look->conn, "ROLLBACK", PGRES_COMMAND_OK, NULL, look->err);
}

/* Somebody's lock is in the way. SPATE_AGAIN with words, unless asking who fails as well. */
static enum spate_rc busy(struct look *look)
{
    char *table = spate_strndup(look->from->table.at, look->from->table.len);
    const char *values[] = {table};
    PGresult *res = NULL;
    enum spate_rc rc = give_up(look);

    if (rc == SPATE_OK)
        rc = spate_pg_ask(look->conn, select_holder, 1, values, ANSWER_MS, &res, look->err);
    free(table);
    if (rc != SPATE_OK)
        return rc;
    spate_buf_reset(&look->refusal->reason);
    spate_buf_reset(&look->refusal->remedy);
    spate_buf_printf(&look->refusal->reason, "a lock on %s was not granted in time",
                     spate_buf_str(&look->name));
    if (PQntuples(res) == 1) {
        spate_buf_printf(
            &look->refusal->reason,
            ": process %s of the source (role %s, application \"%s\") holds \"%s\" for itself alone",
            PQgetvalue(res, 0, 0), PQgetvalue(res, 0, 1), PQgetvalue(res, 0, 2), PQgetvalue(res, 0, 3));
        spate_buf_printf(
            &look->refusal->remedy,
            "let its transaction end (SELECT * FROM pg_stat_activity WHERE pid = %s), then ask again",
            PQgetvalue(res, 0, 0));
    } else {
        spate_buf_puts(&look->refusal->remedy,
                       "ask again when the source is less busy: SELECT * FROM pg_locks "
                       "WHERE mode = 'AccessExclusiveLock' shows who holds what");
    }
    PQclear(res);
    return SPATE_AGAIN;
}

/* A statement failed. What the source says of the request, the requester hears; what it says of itself, we.
 */
static enum spate_rc failed(struct look *look, const char *doing)
{
    const char *state = look->err->sqlstate;

    if (PQstatus(look->conn) != CONNECTION_OK || state[0] == '\0' || !strncmp(state, "57P", 3))
        return SPATE_FAIL;
    if (!strcmp(state, "55P03") || !strcmp(state, "57014") || !strncmp(state, "40", 2))
        return busy(look);
    if (PQtransactionStatus(look->conn) == PQTRANS_ACTIVE)
        return SPATE_FAIL;
    if (!strcmp(state, "42P01") || !strcmp(state, "3F000")) {
        spate_buf_printf(&look->refusal->reason, "%s was dropped meanwhile", spate_buf_str(&look->name));
        spate_buf_puts(&look->refusal->remedy, "ask without it");
    } else {
        spate_buf_printf(&look->refusal->reason, "%s of %s: %s", doing, spate_buf_str(&look->name),
                         look->err->text);
        spate_buf_puts(&look->refusal->remedy, "mend that on the source, then ask again");
    }
    return give_up(look);
}

static enum spate_rc ask(struct look *look, const char *sql, int count, const char *const *values,
                         PGresult **res)
{
    *look->err = (struct spate_err){0};
    return spate_pg_ask(look->conn, sql, count, values, ANSWER_MS, res, look->err);
}

/* ---- the table by itself ---- */

static void nearest_published(struct look *look, struct spate_buf *out)
{
    const char *values[] = {look->config->source.publication};
    char *schema = spate_strndup(look->from->schema.at, look->from->schema.len);
    char *table = spate_strndup(look->from->table.at, look->from->table.len);
    struct spate_buf word = {0};
    struct spate_err ignored = {0};
    const char *nearest = NULL;
    const char **names;
    PGresult *res = NULL;
    size_t count = 0;

    spate_buf_printf(&word, "%s.%s", schema, table);
    if (spate_pg_ask(
            look->conn,
            "SELECT schemaname || '.' || tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1 "
            "LIMIT 10000",
            1, values, ANSWER_MS, &res, &ignored) == SPATE_OK)
        count = (size_t)PQntuples(res);
    names = spate_alloc((count + 1) * sizeof *names);
    for (size_t i = 0; i < count; i++)
        names[i] = PQgetvalue(res, (int)i, 0);
    nearest = spate_nearest(spate_buf_str(&word), names, count);
    if (nearest)
        spate_buf_printf(out, "did you mean %s?", nearest);
    free(names);
    PQclear(res);
    spate_buf_fini(&word);
    free(schema);
    free(table);
}

static void not_there(struct look *look)
{
    spate_buf_printf(&look->refusal->reason, "there is no table %s in the source",
                     spate_buf_str(&look->name));
    nearest_published(look, &look->refusal->remedy);
    if (look->refusal->remedy.len == 0)
        spate_buf_printf(
            &look->refusal->remedy,
            "name one that is there: SELECT schemaname, tablename FROM pg_publication_tables WHERE "
            "pubname = '%s'",
            look->config->source.publication);
}

/* NULL: of a kind that can be read. */
static const char *wrong_kind(char kind, char persistence)
{
    switch (kind) {
    case 'v':
        return "is a view: its rows are not in the source's WAL, so no copy of it could be kept current";
    case 'm':
        return "is a materialized view: its rows are not in the source's WAL, so no copy of it could be kept "
               "current";
    case 'f':
        return "is a foreign table: its rows live on another server";
    case 'r':
    case 'p':
        return persistence == 'u'   ? "is unlogged: its changes are not in the source's WAL"
               : persistence == 't' ? "is a temporary table, which its own session alone can see"
                                    : NULL;
    default:
        return "is no table";
    }
}

static void refuse_kind(struct look *look, char kind, const char *why)
{
    const char *name = spate_buf_str(&look->name);

    spate_buf_printf(&look->refusal->reason, "%s %s", name, why);
    if (kind == 'v' || kind == 'm')
        spate_buf_puts(&look->refusal->remedy, "ask for the tables that it is made of");
    else if (kind == 'f')
        spate_buf_puts(&look->refusal->remedy, "run a connector beside that server");
    else if (kind == 'r' || kind == 'p')
        spate_buf_printf(&look->refusal->remedy, "ask for an ordinary table, or: ALTER TABLE %s SET LOGGED;",
                         name);
    else
        spate_buf_puts(&look->refusal->remedy, "ask for a table");
}

static void not_published(struct look *look)
{
    const char *publication = look->config->source.publication, *name = spate_buf_str(&look->name);
    const PGresult *res = look->res;

    if (!PQgetisnull(res, 0, L_ROOT)) {
        spate_buf_printf(&look->refusal->reason,
                         "the rows of %s are published as those of %s, whose partition it is", name,
                         PQgetvalue(res, 0, L_ROOT));
        spate_buf_printf(&look->refusal->remedy, "ask for %s", PQgetvalue(res, 0, L_ROOT));
    } else if (!PQgetisnull(res, 0, L_PART)) {
        spate_buf_printf(&look->refusal->reason,
                         "publication \"%s\" publishes the partitions of %s each as a table of its own",
                         publication, name);
        spate_buf_printf(&look->refusal->remedy,
                         "ask for the partitions (%s, ..), or: ALTER PUBLICATION \"%s\" SET "
                         "(publish_via_partition_root = true);",
                         PQgetvalue(res, 0, L_PART), publication);
    } else {
        spate_buf_printf(&look->refusal->reason,
                         "%s is not in publication \"%s\": its changes would not be in the stream", name,
                         publication);
        spate_buf_puts(&look->refusal->remedy, "ALTER PUBLICATION ");
        spate_pg_ident(&look->refusal->remedy, spate_slice_str(publication));
        spate_buf_printf(&look->refusal->remedy, " ADD TABLE %s;", name);
    }
}

static void not_granted(struct look *look, const char *on, struct spate_slice schema, bool usage)
{
    const char *user = PQgetvalue(look->res, 0, L_USER);
    struct spate_buf *remedy = &look->refusal->remedy;

    spate_buf_printf(&look->refusal->reason, "the connector's role \"%s\" may not read %s", user, on);
    if (!usage) {
        spate_buf_puts(remedy, "GRANT USAGE ON SCHEMA ");
        spate_pg_ident(remedy, schema);
        spate_buf_puts(remedy, " TO ");
        spate_pg_ident(remedy, spate_slice_str(user));
        spate_buf_puts(remedy, "; ");
    }
    spate_buf_printf(remedy, "GRANT SELECT ON %s TO ", on);
    spate_pg_ident(remedy, spate_slice_str(user));
    spate_buf_puts(remedy, "; (of the whole table: it is locked against DROP while it is read)");
}

/* An error beats a snapshot that is silently shorter. */
static void secured(struct look *look, const char *on)
{
    const char *user = PQgetvalue(look->res, 0, L_USER);

    spate_buf_printf(&look->refusal->reason,
                     "row-level security of %s applies to the connector's role \"%s\": it would hide rows",
                     on, user);
    spate_buf_puts(&look->refusal->remedy, "ALTER ROLE ");
    spate_pg_ident(&look->refusal->remedy, spate_slice_str(user));
    spate_buf_puts(&look->refusal->remedy, " BYPASSRLS;");
}

/* Asks the catalog. *found: neither refused nor gone. */
static enum spate_rc look_at(struct look *look, bool *found)
{
    char *schema = spate_strndup(look->from->schema.at, look->from->schema.len);
    char *table = spate_strndup(look->from->table.at, look->from->table.len);
    const char *values[] = {look->config->source.publication, schema, table};
    struct spate_buf sql = {0};
    enum spate_rc rc;

    *found = false;
    PQclear(look->res);
    look->res = NULL;
    spate_buf_puts(&sql, look_head);
    spate_buf_puts(&sql, PQserverVersion(look->conn) >= 150000 ? look_filter : look_no_filter);
    spate_buf_puts(&sql, look_tail);
    rc = ask(look, spate_buf_str(&sql), 3, values, &look->res);
    spate_buf_fini(&sql);
    free(schema);
    free(table);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? failed(look, "looking up") : rc;
    if (PQntuples(look->res) == 0) {
        not_there(look);
        return give_up(look);
    }
    char kind = PQgetvalue(look->res, 0, L_KIND)[0];
    const char *wrong = wrong_kind(kind, PQgetvalue(look->res, 0, L_PERSISTENCE)[0]);

    if (wrong)
        refuse_kind(look, kind, wrong);
    else if (!is_true(look->res, 0, L_PUBLISHED))
        not_published(look);
    else if (!is_true(look->res, 0, L_USAGE) || !is_true(look->res, 0, L_SELECT))
        not_granted(look, spate_buf_str(&look->name), look->from->schema, is_true(look->res, 0, L_USAGE));
    else if (is_true(look->res, 0, L_SECURITY))
        secured(look, spate_buf_str(&look->name));
    else
        *found = true;
    return *found ? SPATE_OK : give_up(look);
}

/* ---- its leaves ---- */

static bool leaf_is_readable(struct look *look, const PGresult *res, int row, const char *name)
{
    const char *wrong = wrong_kind(PQgetvalue(res, row, F_KIND)[0], PQgetvalue(res, row, F_PERSISTENCE)[0]);

    if (wrong) {
        spate_buf_printf(&look->refusal->reason, "partition %s of %s %s", name, spate_buf_str(&look->name),
                         wrong);
        spate_buf_printf(&look->refusal->remedy, "ALTER TABLE %s DETACH PARTITION %s; or leave the table out",
                         spate_buf_str(&look->name), name);
        return false;
    }
    if (!is_true(res, row, F_USAGE) || !is_true(res, row, F_SELECT)) {
        not_granted(look, name, cell(res, row, F_SCHEMA), is_true(res, row, F_USAGE));
        return false;
    }
    if (is_true(res, row, F_SECURITY)) {
        secured(look, name);
        return false;
    }
    return true;
}

static enum spate_rc take_leaves(struct look *look, struct spate_plan_table *table, int64_t *bytes,
                                 bool *taken)
{
    const char *oid = PQgetvalue(look->res, 0, L_OID);
    const char *values[] = {oid, look->config->source.publication};
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    *bytes = 0;
    *taken = false;
    spate_buf_puts(&sql, leaves_head);
    spate_query_stamp(&sql, PQserverVersion(look->conn), "l.oid", "$2");
    spate_buf_puts(&sql, leaves_tail);
    rc = ask(look, spate_buf_str(&sql), 2, values, &res);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? failed(look, "looking at the pages") : rc;
    *taken = true;
    table->leaves = spate_zalloc(((size_t)PQntuples(res) + 1) * sizeof *table->leaves);
    for (int row = 0; *taken && row < PQntuples(res); row++) {
        struct spate_plan_leaf *leaf = &table->leaves[row];
        struct spate_buf name = {0};

        spate_admission_name(&name, cell(res, row, F_SCHEMA), cell(res, row, F_TABLE));
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
    return *taken ? SPATE_OK : give_up(look);
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
        return spate_fail(err, SPATE_RETRY, "the source's catalog did not answer in %d ms", ANSWER_MS);
    poll(fds, 2, (int)(left < 1000 ? left : 1000));
    return SPATE_OK;
}

static enum spate_rc take_shape(struct look *look, struct spate_plan_table *table)
{
    int64_t until_ms = spate_clock_ms() + ANSWER_MS;
    struct spate_catalog catalog = {.conn = look->conn,
                                    .publication = look->config->source.publication,
                                    .wait = wait_readable,
                                    .arg = &until_ms};
    enum spate_rc rc = spate_catalog_table(
        &catalog, (uint32_t)strtoul(PQgetvalue(look->res, 0, L_OID), NULL, 10), &table->table, look->err);

    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? failed(look, "reading the columns") : rc;
    if (table->table)
        return SPATE_OK;
    spate_buf_printf(&look->refusal->reason, "%s has no column that is published",
                     spate_buf_str(&look->name));
    spate_buf_puts(&look->refusal->remedy, "add one, or ask without this table");
    return give_up(look);
}

/* Without a key nothing tells one row from another: rows can be appended, never corrected; so all of them
 * come in one piece, or not at all. */
static bool keyless_fits(struct look *look, const struct spate_plan_table *table, bool append, int64_t bytes)
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

static enum spate_rc lock(struct look *look)
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
    return rc == SPATE_FAIL ? failed(look, "locking") : rc;
}

static enum spate_rc look_all(struct look *look, bool append, struct spate_plan_table *table)
{
    bool found = false;
    int64_t bytes;
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
    spate_table_free(table->table);
    table->table = NULL;
    return give_up(look);
}

enum spate_rc spate_admission_look(const struct spate_connector_config *config, PGconn *conn,
                                   const struct spate_control_table *asked_for, bool append,
                                   struct spate_plan_table *table, struct spate_refusal *refusal,
                                   struct spate_err *err)
{
    struct look look = {.config = config, .conn = conn, .from = asked_for, .refusal = refusal, .err = err};
    bool empty = asked_for->schema.len == 0 || asked_for->table.len == 0;
    enum spate_rc rc;

    spate_admission_name(&look.name, asked_for->schema, asked_for->table);
    if (empty || memchr(asked_for->schema.at, 0, asked_for->schema.len) ||
        memchr(asked_for->table.at, 0, asked_for->table.len)) {
        not_there(&look);
        rc = SPATE_OK;
    } else {
        rc = look_all(&look, append, table);
    }
    PQclear(look.res);
    spate_buf_fini(&look.name);
    return rc;
}

/* ---- conditions ---- */

static void does_not_fit(struct look *look, const struct spate_column *column, const char *op)
{
    bool operator_missing = !strcmp(look->err->sqlstate, "42883") || !strcmp(look->err->sqlstate, "42725");

    spate_buf_printf(&look->refusal->reason, "the condition on column \"%.*s\" of %s ",
                     SPATE_SLICE_ARG(column->name), spate_buf_str(&look->name));
    if (operator_missing) {
        spate_buf_printf(&look->refusal->reason, "cannot be tested: type %.*s has no operator %s",
                         SPATE_SLICE_ARG(column->type), op);
        spate_buf_puts(&look->refusal->remedy, "compare another column, or leave the condition out");
    } else {
        /* The server's words quote the value. */
        spate_buf_printf(&look->refusal->reason, "has a value that does not fit its type %.*s (%s)",
                         SPATE_SLICE_ARG(column->type), spate_pg_condition(look->err->sqlstate));
        spate_buf_printf(&look->refusal->remedy,
                         "write it as Postgres prints a %.*s, with dates as YYYY-MM-DD",
                         SPATE_SLICE_ARG(column->type));
    }
}

/* One condition alone, as the readers will put it: sets the value, casts it, and lets the server plan the
 * comparison. */
static enum spate_rc try_one(struct look *look, struct spate_plan_table *one)
{
    const char *values[] = {one->where[0].value};
    struct spate_query_term term;
    struct spate_query_bound bound;
    struct spate_buf sql = {0};
    PGresult *set = NULL, *res = NULL;
    enum spate_rc rc;

    if (spate_query_terms(one, false, &term) == 0)
        return SPATE_OK; /* is null */
    spate_query_bind(&sql, &term, 1);
    rc = ask(look, spate_buf_str(&sql), 1, values, &set);
    if (rc == SPATE_OK) {
        bound = (struct spate_query_bound){.type = PQgetvalue(set, 0, 0), .op = PQgetvalue(set, 0, 1)};
        spate_buf_reset(&sql);
        spate_buf_printf(&sql, "SELECT (pg_catalog.current_setting('spate.v0')::%s) IS NULL", bound.type);
        rc = ask(look, spate_buf_str(&sql), 0, NULL, &res);
        PQclear(res);
        res = NULL;
    }
    if (rc == SPATE_OK) {
        spate_buf_reset(&sql);
        spate_buf_puts(&sql, "SELECT 1 FROM ");
        spate_query_root(&sql, one);
        spate_buf_puts(&sql, " WHERE ");
        spate_query_where(&sql, one, NULL, &bound);
        spate_buf_puts(&sql, " LIMIT 0");
        rc = ask(look, spate_buf_str(&sql), 0, NULL, &res);
        PQclear(res);
    }
    PQclear(set);
    spate_buf_fini(&sql);
    return rc;
}

static bool is_of_the_request(const struct spate_err *err)
{
    return !strncmp(err->sqlstate, "22", 2) || !strncmp(err->sqlstate, "42", 2) ||
           !strncmp(err->sqlstate, "23", 2) || !strncmp(err->sqlstate, "0A", 2) ||
           !strncmp(err->sqlstate, "P0", 2) || !strncmp(err->sqlstate, "XX", 2);
}

enum spate_rc spate_admission_try(PGconn *conn, struct spate_plan_table *table, bool *fits,
                                  struct spate_refusal *refusal, struct spate_err *err)
{
    const struct spate_control_table from = {.schema = table->table->schema, .table = table->table->name};
    struct look look = {.conn = conn, .from = &from, .refusal = refusal, .err = err};
    enum spate_rc rc = SPATE_OK;

    *fits = true;
    spate_admission_name(&look.name, from.schema, from.table);
    for (size_t i = 0; *fits && rc == SPATE_OK && i < table->where_count; i++) {
        struct spate_plan_table one = *table;

        one.where = &table->where[i];
        one.where_count = 1;
        rc = try_one(&look, &one);
        if (rc == SPATE_FAIL && PQstatus(conn) == CONNECTION_OK && is_of_the_request(err)) {
            does_not_fit(&look, &table->table->columns[table->where[i].column], table->where[i].op);
            *fits = false;
            rc = SPATE_OK;
        } else if (rc == SPATE_FAIL) {
            *fits = false;
            rc = failed(&look, "trying the conditions");
        }
    }
    if (rc == SPATE_OK)
        rc = give_up(&look); /* nothing was written */
    spate_buf_fini(&look.name);
    return rc;
}
