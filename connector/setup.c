/* connector/setup.c - globs to tables, tables to a publication, and a slot. */
#include "connector/setup.h"

#include "connector/catalog.h"
#include "connector/cover.h"
#include "connector/lists.h"
#include "connector/owned.h"
#include "connector/status.h"
#include "core/alloc.h"
#include "core/failpoint.h"
#include "core/glob.h"
#include "core/log.h"

#include <stdlib.h>
#include <string.h>

/* Every table that a publication may hold. `usable`: its rows can be identified, so that publishing it does
 * not make the application's UPDATE and DELETE fail (P47); a deferrable primary key does not count, and
 * a partitioned table is as good as its worst leaf. `root`: its topmost partitioned table. */
static const char select_candidates[] =
    " SELECT n.nspname, c.relname, coalesce(pg_catalog.pg_partition_root(c.oid), c.oid) <> c.oid,"
    " CASE WHEN c.relkind = 'p' THEN (SELECT bool_and(t.relid IN (SELECT u.oid FROM usable u))"
    "   FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf OR t.relid = c.oid)"
    "  ELSE c.oid IN (SELECT u.oid FROM usable u) END,"
    " c.oid IN (SELECT p.oid FROM published p),"
    " r.relname, rn.nspname"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)"
    " JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace"
    " WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
    " AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'"
    " ORDER BY n.nspname, c.relname";
static const char usable_tables[] =
    ", usable AS MATERIALIZED (SELECT l.oid FROM pg_catalog.pg_class l WHERE l.relkind IN ('r', 'p')"
    " AND (l.relreplident = 'f' OR (l.relreplident IN ('d', 'i') AND EXISTS ("
    "   SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = l.oid AND i.indisvalid AND i.indimmediate"
    "   AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END))))";
enum { T_SCHEMA, T_TABLE, T_IS_PART, T_USABLE, T_PUBLISHED, T_ROOT, T_ROOT_SCHEMA };

static struct spate_slice cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

static void add_name(struct spate_buf *out, const PGresult *res, int row)
{
    spate_pg_ident(out, cell(res, row, T_SCHEMA));
    spate_buf_putc(out, '.');
    spate_pg_ident(out, cell(res, row, T_TABLE));
}

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    return SPATE_FAIL;
}

/* A name without wildcards that no table has: probably a slip of the finger. */
static enum spate_rc nothing_matches(const PGresult *res, const char *pattern, struct spate_err *err)
{
    size_t count = (size_t)PQntuples(res);
    char **names = spate_zalloc((count + 1) * sizeof *names);
    const char *nearest;

    for (size_t i = 0; i < count; i++) {
        struct spate_buf name = {0};

        spate_buf_printf(&name, "%s.%s", PQgetvalue(res, (int)i, T_SCHEMA), PQgetvalue(res, (int)i, T_TABLE));
        names[i] = spate_strdup(spate_buf_str(&name));
        spate_buf_fini(&name);
    }
    nearest = spate_nearest(pattern, (const char *const *)names, count);
    spate_fail(err, SPATE_FATAL,
               "tables: there is no table \"%s\" in the source that could be published (ordinary or "
               "partitioned, neither temporary nor unlogged)%s%s%s",
               pattern, nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
    return refuse(err);
}

/* Left out, and told of by the checks of the start; refused where it is named without wildcards. */
static enum spate_rc no_identity(const PGresult *res, int row, bool exact, struct spate_err *err)
{
    struct spate_buf name = {0};

    add_name(&name, res, row);
    spate_fail(
        err, SPATE_FATAL,
        "table %s has no usable replica identity (no primary key, or a deferrable one): publishing it would "
        "make the application's UPDATE and DELETE fail. Mend it with: ALTER TABLE %s ADD PRIMARY KEY (...), "
        "or: ALTER TABLE %s REPLICA IDENTITY FULL",
        spate_buf_str(&name), spate_buf_str(&name), spate_buf_str(&name));
    spate_buf_fini(&name);
    if (exact)
        return refuse(err);
    *err = (struct spate_err){0};
    return SPATE_OK;
}

/* The globs, and which candidates they mean. */
struct choice {
    PGresult *res;
    struct spate_glob **globs;
    size_t glob_count;
    bool *chosen; /* per row */
    bool *exact;  /* per row: some glob names it without wildcards */
    bool *left;   /* per row: it has no identity */
    bool later;   /* the publication exists: nothing is refused */
};

static void choice_fini(struct choice *choice)
{
    for (size_t i = 0; i < choice->glob_count; i++)
        spate_glob_free(choice->globs[i]);
    free(choice->globs);
    free(choice->chosen);
    free(choice->exact);
    free(choice->left);
    PQclear(choice->res);
}

static int order_of(struct spate_slice a, struct spate_slice b)
{
    int order = memcmp(a.at, b.at, a.len < b.len ? a.len : b.len);

    return order ? order : (a.len > b.len) - (a.len < b.len);
}

/* Rows stand in the order of the names' bytes, as the server orders names. */
static int row_of(const PGresult *res, struct spate_slice schema, struct spate_slice table)
{
    int low = 0, high = PQntuples(res);

    while (low < high) {
        int row = low + (high - low) / 2;
        int order = order_of(cell(res, row, T_SCHEMA), schema);

        if (order == 0)
            order = order_of(cell(res, row, T_TABLE), table);
        if (order == 0)
            return row;
        if (order < 0)
            low = row + 1;
        else
            high = row;
    }
    return -1;
}

/* A partition whose root is chosen comes through its root (publish_via_partition_root, P50). */
static void drop_parts(struct choice *choice)
{
    for (int row = 0; row < PQntuples(choice->res); row++) {
        int root;

        if (!choice->chosen[row] || PQgetvalue(choice->res, row, T_IS_PART)[0] != 't')
            continue;
        root = row_of(choice->res, cell(choice->res, row, T_ROOT_SCHEMA), cell(choice->res, row, T_ROOT));
        if (root >= 0 && choice->chosen[root])
            choice->chosen[row] = false;
    }
}

/* A name that means nothing, and a table that cannot be published though it is named, are refused. */
static enum spate_rc choose(PGconn *sql, const struct spate_connector_config *config, struct choice *choice,
                            struct spate_err *err)
{
    const char *publication = config->source.publication;
    struct spate_buf text = {0};
    enum spate_rc rc;
    size_t rows;

    spate_buf_puts(&text, "WITH RECURSIVE ");
    spate_catalog_published_sql(&text, sql);
    spate_buf_puts(&text, usable_tables);
    spate_buf_puts(&text, select_candidates);
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &publication, PGRES_TUPLES_OK, &choice->res, err);
    spate_buf_fini(&text);
    if (rc != SPATE_OK)
        return rc;
    rows = (size_t)PQntuples(choice->res);
    choice->globs = spate_zalloc((config->tables.count + 1) * sizeof(void *));
    choice->chosen = spate_zalloc(rows + 1);
    choice->exact = spate_zalloc(rows + 1);
    choice->left = spate_zalloc(rows + 1);
    for (size_t g = 0; g < config->tables.count; g++) {
        bool any = false;

        if (spate_glob_new(config->tables.at[g], &choice->globs[g], err))
            return SPATE_FAIL; /* spate_connector_check has looked at all of them */
        choice->glob_count = g + 1;
        for (size_t row = 0; row < rows; row++) {
            if (!spate_glob_match(choice->globs[g], cell(choice->res, (int)row, T_SCHEMA),
                                  cell(choice->res, (int)row, T_TABLE)))
                continue;
            any = choice->chosen[row] = true;
            choice->exact[row] |= spate_glob_exact(choice->globs[g]);
        }
        if (!any && !choice->later && spate_glob_exact(choice->globs[g]))
            return nothing_matches(choice->res, config->tables.at[g], err);
    }
    drop_parts(choice);
    for (size_t row = 0; row < rows; row++) {
        if (!choice->chosen[row] || PQgetvalue(choice->res, (int)row, T_USABLE)[0] == 't' ||
            PQgetvalue(choice->res, (int)row, T_PUBLISHED)[0] == 't')
            continue;
        choice->chosen[row] = false;
        choice->left[row] = true;
        if (!choice->later && no_identity(choice->res, (int)row, choice->exact[row], err))
            return SPATE_FAIL;
    }
    return SPATE_OK;
}

enum spate_rc spate_setup_publication(PGconn *sql, const struct spate_connector_config *config,
                                      struct spate_err *err)
{
    struct choice choice = {0};
    struct spate_buf text = {0};
    unsigned count = 0;
    char quoted[300];
    enum spate_rc rc = choose(sql, config, &choice, err);

    if (rc != SPATE_OK)
        goto out;
    spate_buf_puts(&text, "CREATE PUBLICATION ");
    spate_pg_ident(&text, spate_slice_str(config->source.publication));
    for (int row = 0; rc == SPATE_OK && row < PQntuples(choice.res); row++) {
        if (!choice.chosen[row])
            continue;
        spate_buf_puts(&text, count++ ? ", " : " FOR TABLE ");
        add_name(&text, choice.res, row);
        rc = spate_cover_try(sql, config, PQgetvalue(choice.res, row, T_SCHEMA),
                             PQgetvalue(choice.res, row, T_TABLE), err);
        if (rc == SPATE_OK)
            rc = spate_lists_columns(sql, config, PQgetvalue(choice.res, row, T_SCHEMA),
                                     PQgetvalue(choice.res, row, T_TABLE), &text, err);
    }
    if (rc != SPATE_OK)
        goto out;
    spate_buf_puts(&text, " WITH (publish_via_partition_root = true)");
    if (count == 0) {
        spate_fail(err, SPATE_FATAL,
                   "tables: no table of the source can be published: the globs match none that is permanent "
                   "and has a replica identity. Create the tables first, or name others");
        rc = refuse(err);
        goto out;
    }
    spate_owned_mark_sql(config, &text);
    rc = spate_pg_exec(sql, spate_buf_str(&text), PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_FAIL)
        spate_err_context(err,
                          "cannot create publication \"%s\" for %u tables (its maker must own them; an owner "
                          "can create it beforehand)",
                          config->source.publication, count);
    SPATE_FAILPOINT(connector_publication_created);
    if (rc == SPATE_OK)
        spate_log(SPATE_LOG_INFO, "publication-created", "publication=%s tables=%u",
                  spate_log_quote(quoted, sizeof quoted, config->source.publication), count);
out:
    spate_buf_fini(&text);
    choice_fini(&choice);
    return rc;
}

/* ---- later ---- */

/* A table more, whose making somebody else may not have finished: another time, then. */
static enum spate_rc add_one(PGconn *sql, const struct spate_connector_config *config, const PGresult *res,
                             int row, struct spate_buf *left, struct spate_err *err)
{
    struct spate_buf text = {0}, name = {0};
    char quoted[300];
    enum spate_rc rc;

    add_name(&name, res, row);
    spate_buf_puts(&text, "ALTER PUBLICATION ");
    spate_pg_ident(&text, spate_slice_str(config->source.publication));
    spate_buf_printf(&text, " ADD TABLE %s", spate_buf_str(&name));
    rc = spate_cover_try(sql, config, PQgetvalue(res, row, T_SCHEMA), PQgetvalue(res, row, T_TABLE), err);
    if (rc == SPATE_OK)
        rc = spate_lists_columns(sql, config, PQgetvalue(res, row, T_SCHEMA), PQgetvalue(res, row, T_TABLE),
                                 &text, err);
    if (rc == SPATE_OK)
        rc = spate_pg_exec(sql, spate_buf_str(&text), PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_OK) {
        spate_log(SPATE_LOG_INFO, "publication-extended", "table=%s",
                  spate_log_quote(quoted, sizeof quoted, spate_buf_str(&name)));
    } else if (rc == SPATE_FAIL && PQstatus(sql) == CONNECTION_OK) {
        if (err->sqlstate[0])
            spate_buf_printf(left,
                             "table %s matches tables: and could not be added to the publication (%s). Its "
                             "owner can: %s\n",
                             spate_buf_str(&name), spate_pg_condition(err->sqlstate), spate_buf_str(&text));
        else /* exclude or mask cannot be kept */
            spate_buf_printf(left, "table %s matches tables: and was left out of the publication: %s\n",
                             spate_buf_str(&name), err->text);
        *err = (struct spate_err){0};
        rc = SPATE_OK;
    }
    spate_buf_fini(&text);
    spate_buf_fini(&name);
    return rc;
}

enum spate_rc spate_setup_extend(PGconn *sql, const struct spate_connector_config *config,
                                 struct spate_buf *left, struct spate_err *err)
{
    struct choice choice = {.later = true};
    enum spate_rc rc = spate_pg_exec(sql, "SET lock_timeout = '1s'", PGRES_COMMAND_OK, NULL, err);

    if (rc == SPATE_OK)
        rc = choose(sql, config, &choice, err);
    for (int row = 0; rc == SPATE_OK && row < PQntuples(choice.res); row++) {
        if (choice.left[row]) {
            spate_buf_puts(left, "table ");
            add_name(left, choice.res, row);
            spate_buf_puts(
                left, " matches tables: and was left out of the publication: it has no usable replica "
                      "identity, so publishing it would make the application's UPDATE and DELETE fail (P47). "
                      "Mend it with: ALTER TABLE ");
            add_name(left, choice.res, row);
            spate_buf_puts(left, " ADD PRIMARY KEY (...)\n");
        } else if (choice.chosen[row] && PQgetvalue(choice.res, row, T_PUBLISHED)[0] != 't') {
            rc = add_one(sql, config, choice.res, row, left, err);
        }
    }
    if (rc == SPATE_OK)
        rc = spate_pg_exec(sql, "RESET lock_timeout", PGRES_COMMAND_OK, NULL, err);
    choice_fini(&choice);
    return rc;
}

/* Creating a slot waits for every transaction that is writing (P70): say which. */
static bool name_blockers(void *arg, int seconds)
{
    struct spate_err err = {0};
    PGresult *res = NULL;
    char user[300], application[300];

    if (seconds >= 300)
        return false;
    if (seconds % 10 != 5)
        return true;
    if (spate_pg_exec(
            arg,
            "SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), extract(epoch FROM "
            "now() - xact_start)::int FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL "
            "UNION ALL SELECT 0, owner, 'prepared ' || gid, extract(epoch FROM now() - prepared)::int "
            "FROM pg_catalog.pg_prepared_xacts ORDER BY 4 DESC LIMIT 3",
            PGRES_TUPLES_OK, &res, &err) != SPATE_OK)
        return true;
    for (int row = 0; row < PQntuples(res); row++)
        spate_log(SPATE_LOG_WARN, "slot-waits",
                  "waited_s=%d text=\"creating the slot waits for an open transaction\" pid=%s user=%s "
                  "application=%s open_s=%s",
                  seconds, PQgetvalue(res, row, 0),
                  spate_log_quote(user, sizeof user, PQgetvalue(res, row, 1)),
                  spate_log_quote(application, sizeof application, PQgetvalue(res, row, 2)),
                  PQgetvalue(res, row, 3));
    PQclear(res);
    return true;
}

enum spate_rc spate_setup_slot(struct spate_replication *repl, PGconn *sql,
                               const struct spate_connector_config *config, struct spate_err *err)
{
    struct spate_buf text = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(&text, "CREATE_REPLICATION_SLOT ");
    spate_pg_ident(&text, spate_slice_str(config->source.slot));
    /* The words of 15 are the same as NOEXPORT_SNAPSHOT, which 14 knows alone; FAILOVER needs them (P74). */
    spate_buf_puts(&text, config->source.failover ? " LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"
                                                  : " LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    spate_status_state(config->status, SPATE_CONNECTOR_WAITING_SLOT,
                       "making the slot waits until transactions that are open on the source have ended");
    rc =
        spate_replication_command(repl, spate_buf_str(&text), PGRES_TUPLES_OK, name_blockers, sql, &res, err);
    spate_status_state(config->status, SPATE_CONNECTOR_OPENING, NULL);
    spate_buf_fini(&text);
    if (rc == SPATE_AGAIN)
        return spate_fail(
            err, SPATE_RETRY,
            "creating replication slot \"%s\" was given up after five minutes: open transactions kept "
            "it waiting (named above). End them, or wait; it is tried again",
            config->source.slot);
    SPATE_FAILPOINT(connector_slot_created);
    if (rc == SPATE_OK)
        spate_log(SPATE_LOG_INFO, "slot-created", "slot=%s lsn=%s", config->source.slot,
                  PQgetvalue(res, 0, 1));
    PQclear(res);
    return rc;
}

enum spate_rc spate_setup_drop_slot(PGconn *sql, const char *slot, struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(sql, "SELECT pg_catalog.pg_drop_replication_slot($1)", 1, &slot,
                                            PGRES_TUPLES_OK, &res, err);

    PQclear(res);
    SPATE_FAILPOINT(connector_slot_dropped);
    if (rc == SPATE_OK)
        spate_log(SPATE_LOG_INFO, "slot-dropped", "slot=%s text=\"it was invalidated\"", slot);
    return rc;
}

enum spate_rc spate_setup_refuse(const struct spate_connector_config *config, bool publication_exists,
                                 bool slot_exists, struct spate_err *err)
{
    struct spate_buf text = {0};

    if (!publication_exists) {
        spate_buf_puts(&text, "CREATE PUBLICATION ");
        spate_pg_ident(&text, spate_slice_str(config->source.publication));
        spate_buf_puts(&text, " FOR TABLE ... WITH (publish_via_partition_root = true); ");
    }
    if (!publication_exists && slot_exists) {
        /* The slot's old WAL would be decoded with a catalog that has no such publication (P55). */
        spate_buf_puts(&text, "SELECT pg_drop_replication_slot(");
        spate_pg_literal(&text, spate_slice_str(config->source.slot));
        spate_buf_puts(&text, "); ");
    }
    if (!slot_exists || !publication_exists) {
        spate_buf_puts(&text, "SELECT pg_create_logical_replication_slot(");
        spate_pg_literal(&text, spate_slice_str(config->source.slot));
        spate_buf_puts(&text, ", 'pgoutput')");
    }
    spate_fail(
        err, SPATE_FATAL,
        "the source has no %s%s%s, and source.postgres.create is false. Create it, in this order: %s; or "
        "set create: true",
        publication_exists ? "" : "publication", !publication_exists && !slot_exists ? " and no " : "",
        slot_exists ? "" : "replication slot", spate_buf_str(&text));
    spate_buf_fini(&text);
    return refuse(err);
}
