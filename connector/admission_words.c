/* connector/admission_words.c - why a table cannot be read, and how to mend it. */
#include "connector/admitting.h"

#include "core/alloc.h"
#include "core/options.h"
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

/* Who is in the way; the table itself first. */
static const char select_holder[] =
    "SELECT l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), coalesce(k.relname, '?')"
    " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
    " LEFT JOIN pg_catalog.pg_class k ON k.oid = l.relation"
    " WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.pid <> "
    "pg_catalog.pg_backend_pid()"
    " AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())"
    " ORDER BY k.relname = $1 DESC, l.granted DESC LIMIT 1";

/* SPATE_OK: refused. The words were put already. */
enum spate_rc spate_admitting_give_up(struct spate_admitting *look)
{
    if (PQtransactionStatus(look->conn) == PQTRANS_IDLE)
        return SPATE_OK;
    return spate_pg_exec(look->conn, "ROLLBACK", PGRES_COMMAND_OK, NULL, look->err);
}

/* Somebody's lock is in the way. SPATE_AGAIN with words, unless asking who fails as well. */
static enum spate_rc busy(struct spate_admitting *look)
{
    char *table = spate_strndup(look->from->table.at, look->from->table.len);
    const char *values[] = {table};
    PGresult *res = NULL;
    enum spate_rc rc = spate_admitting_give_up(look);

    if (rc == SPATE_OK)
        rc = spate_pg_ask(look->conn, select_holder, 1, values, SPATE_ADMITTING_MS, &res, look->err);
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
enum spate_rc spate_admitting_failed(struct spate_admitting *look, const char *doing)
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
    return spate_admitting_give_up(look);
}

enum spate_rc spate_admitting_ask(struct spate_admitting *look, const char *sql, int count,
                                  const char *const *values, PGresult **res)
{
    *look->err = (struct spate_err){0};
    return spate_pg_ask(look->conn, sql, count, values, SPATE_ADMITTING_MS, res, look->err);
}

/* ---- refusals ---- */

static void nearest_published(struct spate_admitting *look, struct spate_buf *out)
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
            1, values, SPATE_ADMITTING_MS, &res, &ignored) == SPATE_OK)
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

void spate_admitting_not_there(struct spate_admitting *look)
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
const char *spate_admitting_wrong_kind(char kind, char persistence)
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

void spate_admitting_refuse_kind(struct spate_admitting *look, char kind, const char *why)
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

/* $1 publication, $2 the table's OID: its root that is published, and one of its partitions that is. */
static const char select_kin[] =
    "SELECT (SELECT pg_catalog.format('%I.%I', up.schemaname, up.tablename)"
    "  FROM pg_catalog.pg_partition_ancestors($2::oid::regclass) a"
    "  JOIN pg_catalog.pg_class u ON u.oid = a.relid JOIN pg_catalog.pg_namespace n ON n.oid = u.relnamespace"
    "  JOIN pg_catalog.pg_publication_tables up ON up.pubname = $1 AND up.schemaname = n.nspname"
    "   AND up.tablename = u.relname WHERE u.oid <> $2::oid LIMIT 1),"
    " (SELECT pg_catalog.format('%I.%I', lp.schemaname, lp.tablename)"
    "  FROM pg_catalog.pg_publication_tables lp JOIN pg_catalog.pg_namespace n ON n.nspname = lp.schemaname"
    "  JOIN pg_catalog.pg_class l ON l.relnamespace = n.oid AND l.relname = lp.tablename"
    "  WHERE lp.pubname = $1 AND l.oid <> $2::oid AND EXISTS (SELECT 1 FROM "
    "pg_catalog.pg_partition_ancestors(l.oid) a"
    "   WHERE a.relid = $2::oid) ORDER BY 1 LIMIT 1)";

void spate_admitting_not_published(struct spate_admitting *look, const char *oid)
{
    const char *publication = look->config->source.publication, *name = spate_buf_str(&look->name);
    struct spate_buf *reason = &look->refusal->reason, *remedy = &look->refusal->remedy;
    const char *values[] = {publication, oid};
    struct spate_err ignored = {0};
    PGresult *res = NULL;

    if (spate_pg_ask(look->conn, select_kin, 2, values, SPATE_ADMITTING_MS, &res, &ignored) != SPATE_OK)
        res = NULL; /* then without it */
    if (res && !PQgetisnull(res, 0, 0)) {
        spate_buf_printf(reason, "the rows of %s are published as those of %s, whose partition it is", name,
                         PQgetvalue(res, 0, 0));
        spate_buf_printf(remedy, "ask for %s", PQgetvalue(res, 0, 0));
    } else if (res && !PQgetisnull(res, 0, 1)) {
        spate_buf_printf(reason,
                         "publication \"%s\" publishes the partitions of %s each as a table of its own",
                         publication, name);
        spate_buf_printf(remedy,
                         "ask for the partitions (%s, ..), or: ALTER PUBLICATION \"%s\" SET "
                         "(publish_via_partition_root = true);",
                         PQgetvalue(res, 0, 1), publication);
    } else {
        spate_buf_printf(reason, "%s is not in publication \"%s\": its changes would not be in the stream",
                         name, publication);
        spate_buf_puts(remedy, "ALTER PUBLICATION ");
        spate_pg_ident(remedy, spate_slice_str(publication));
        spate_buf_printf(remedy, " ADD TABLE %s;", name);
    }
    PQclear(res);
}

void spate_admitting_not_granted(struct spate_admitting *look, const char *on, struct spate_slice schema,
                                 bool usage)
{
    struct spate_buf *remedy = &look->refusal->remedy;

    spate_buf_printf(&look->refusal->reason, "the connector's role \"%s\" may not read %s", look->user, on);
    if (!usage) {
        spate_buf_puts(remedy, "GRANT USAGE ON SCHEMA ");
        spate_pg_ident(remedy, schema);
        spate_buf_puts(remedy, " TO ");
        spate_pg_ident(remedy, spate_slice_str(look->user));
        spate_buf_puts(remedy, "; ");
    }
    spate_buf_printf(remedy, "GRANT SELECT ON %s TO ", on);
    spate_pg_ident(remedy, spate_slice_str(look->user));
    spate_buf_puts(remedy, "; (of the whole table: it is locked against DROP while it is read)");
}

/* An error beats a snapshot that is silently shorter. */
void spate_admitting_secured(struct spate_admitting *look, const char *on)
{
    spate_buf_printf(&look->refusal->reason,
                     "row-level security of %s applies to the connector's role \"%s\": it would hide rows",
                     on, look->user);
    spate_buf_puts(&look->refusal->remedy, "ALTER ROLE ");
    spate_pg_ident(&look->refusal->remedy, spate_slice_str(look->user));
    spate_buf_puts(&look->refusal->remedy, " BYPASSRLS;");
}
