/* connector/check_publication.c - the publication, and the tables that the file means. */
#include "connector/check.h"

#include "core/alloc.h"
#include "core/glob.h"
#include "pg/pg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the publication by itself ---- */

enum { P_EXISTS, P_CHANGES, P_VIA_ROOT, P_PARTITIONED, P_ANY, P_ALL };

static void quoted(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

static void judge_publication(const PGresult *res, const char *publication, struct spate_findings *list)
{
    struct spate_buf name = {0};

    quoted(&name, publication);
    if (PQgetvalue(res, 0, P_CHANGES)[0] != 't') {
        /* Sinks mirror tables: a publication that hides deletes would leave rows behind for ever. */
        spate_find(list, SPATE_FINDING_WARNING, "publication-operations",
                   "publication %s does not publish insert, update, delete and truncate alike",
                   spate_buf_str(&name));
        spate_find_why(list, "what it leaves out never reaches the bus, and tables of sinks differ then");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate');",
                       spate_buf_str(&name));
    }
    if (PQgetvalue(res, 0, P_VIA_ROOT)[0] != 't' && PQgetvalue(res, 0, P_PARTITIONED)[0] == 't') {
        spate_find(list, SPATE_FINDING_WARNING, "publication-partitions",
                   "publication %s has partitioned tables and publishes each partition under its own name",
                   spate_buf_str(&name));
        spate_find_why(list, "a row that moves between partitions is then a delete of one table and an "
                             "insert into another, and sinks have to name each partition (P50)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER PUBLICATION %s SET (publish_via_partition_root = true);", spate_buf_str(&name));
    }
    if (PQgetvalue(res, 0, P_ANY)[0] != 't') {
        spate_find(list, SPATE_FINDING_WARNING, "publication-empty", "publication %s has no table",
                   spate_buf_str(&name));
        spate_find_why(list, "nothing will be read");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "ALTER PUBLICATION %s ADD TABLE ..., as the owner of these tables",
                       spate_buf_str(&name));
    }
    if (PQgetvalue(res, 0, P_ALL)[0] == 't') {
        spate_find(list, SPATE_FINDING_NOTE, "publication-all-tables", "publication %s is FOR ALL TABLES",
                   spate_buf_str(&name));
        spate_find_why(list, "a new table without a primary key is published at once, and the application's "
                             "UPDATE and DELETE of it fail (P47)");
    }
    spate_buf_fini(&name);
}

enum spate_rc spate_check_publication(PGconn *sql, const struct spate_connector_config *config, bool *exists,
                                      struct spate_findings *list, struct spate_err *err)
{
    static const char look_15[] =
        " OR EXISTS (SELECT 1 FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid)";
    const char *publication = config->source.publication;
    struct spate_buf text = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_printf(
        &text,
        "SELECT true, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,"
        " EXISTS (SELECT 1 FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_class c ON c.oid ="
        " r.prrelid AND c.relkind = 'p' WHERE r.prpubid = p.oid) OR (p.puballtables AND EXISTS (SELECT 1 FROM"
        " pg_catalog.pg_class c WHERE c.relkind = 'p')),"
        " p.puballtables OR EXISTS (SELECT 1 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid)%s,"
        " p.puballtables FROM pg_catalog.pg_publication p WHERE p.pubname = $1",
        PQserverVersion(sql) >= 150000 ? look_15 : "");
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &publication, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&text);
    if (rc != SPATE_OK)
        return rc;
    *exists = PQntuples(res) == 1;
    if (*exists)
        judge_publication(res, publication, list);
    PQclear(res);
    return SPATE_OK;
}

/* ---- the tables that the file means ---- */

/* %s: as in check_tables.c, schemas that are published whole. */
static const char candidates_sql[] =
    "WITH pub AS (SELECT * FROM pg_catalog.pg_publication WHERE pubname = $1), named AS ("
    " SELECT r.prrelid AS relid FROM pg_catalog.pg_publication_rel r JOIN pub ON r.prpubid = pub.oid"
    " UNION SELECT c.oid FROM pg_catalog.pg_class c, pub WHERE pub.puballtables AND c.relkind IN ('r', 'p')"
    " %s)"
    " SELECT c.oid, n.nspname, c.relname, pg_catalog.format('%%I.%%I', n.nspname, c.relname), c.relkind,"
    " c.relpersistence, (SELECT bool_and(l.relreplident = 'f' OR (l.relreplident IN ('d', 'i') AND EXISTS ("
    "    SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = l.oid AND i.indisvalid AND i.indimmediate"
    "    AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END)))"
    "   FROM (SELECT c.oid WHERE c.relkind <> 'p' UNION ALL SELECT t.relid FROM"
    "    pg_catalog.pg_partition_tree(c.oid) t WHERE c.relkind = 'p' AND t.isleaf) x(oid)"
    "   JOIN pg_catalog.pg_class l ON l.oid = x.oid),"
    " pg_catalog.pg_has_role(c.relowner, 'USAGE'),"
    " EXISTS (SELECT 1 FROM named WHERE named.relid = c.oid) OR (c.relispartition AND EXISTS (SELECT 1 FROM"
    "  pg_catalog.pg_partition_ancestors(c.oid) a JOIN named ON named.relid = a.relid)),"
    " CASE WHEN c.relispartition THEN rn.nspname END, CASE WHEN c.relispartition THEN r.relname END"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)"
    " LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
    " AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%%'"
    " ORDER BY 2, 3";
enum {
    T_OID,
    T_SCHEMA,
    T_TABLE,
    T_NAME,
    T_KIND,
    T_PERSISTENCE,
    T_USABLE,
    T_OWNED,
    T_PUBLISHED,
    T_ROOT_SCHEMA,
    T_ROOT
};

struct look {
    PGresult *res;
    const struct spate_connector_config *config;
    struct spate_glob **globs; /* owned */
    size_t glob_count;
    bool making;
    struct spate_chosen *out; /* may be NULL */
    struct spate_findings *list;
    struct spate_buf chosen; /* names, for CREATE PUBLICATION */
    size_t chosen_count;
    struct spate_buf unowned;
    size_t unowned_count, others;
};

static struct spate_slice slice_of(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

/* Does the file mean it? *exact: by its whole name. No globs: everything is meant. */
static bool meant(const struct look *look, struct spate_slice schema, struct spate_slice table, bool *exact)
{
    bool any = look->glob_count == 0;

    for (size_t g = 0; g < look->glob_count; g++) {
        if (!spate_glob_match(look->globs[g], schema, table))
            continue;
        any = true;
        if (exact)
            *exact |= spate_glob_exact(look->globs[g]);
    }
    return any;
}

static const char *kind_name(char kind)
{
    switch (kind) {
    case 'v':
        return "a view";
    case 'm':
        return "a materialized view";
    case 'f':
        return "a foreign table";
    default:
        return "a sequence";
    }
}

/* P54: neither is in the stream. */
static void not_a_table(struct look *look, int row, bool exact)
{
    if (!exact) {
        look->others += PQgetvalue(look->res, row, T_KIND)[0] != 'S';
        return;
    }
    spate_find(look->list, look->making ? SPATE_FINDING_ERROR : SPATE_FINDING_WARNING, "table-kind",
               "tables: names %s, which is %s", PQgetvalue(look->res, row, T_NAME),
               kind_name(PQgetvalue(look->res, row, T_KIND)[0]));
    spate_find_why(look->list, "changes of ordinary and partitioned tables alone can be published (P54)");
    spate_find_fix(look->list, SPATE_MEND_FILE, "tables: the tables that it is made of");
}

static void no_identity(struct look *look, int row, bool exact)
{
    const char *name = PQgetvalue(look->res, row, T_NAME);

    spate_find(look->list, look->making && exact ? SPATE_FINDING_ERROR : SPATE_FINDING_WARNING,
               "table-left-out", "table %s has no usable replica identity and is left out", name);
    spate_find_why(look->list, "it has no primary key, or a deferrable one: publishing it would make the "
                               "application's UPDATE and DELETE fail (P47)");
    spate_find_fix(look->list, SPATE_MEND_SOURCE,
                   "ALTER TABLE %s REPLICA IDENTITY FULL; -- a primary key is better, where rows have one",
                   name);
}

static void not_published(struct look *look, int row)
{
    const char *name = PQgetvalue(look->res, row, T_NAME);
    struct spate_buf into = {0};

    quoted(&into, look->config->source.publication);
    spate_find(look->list, SPATE_FINDING_WARNING, "table-not-published",
               "table %s matches tables: but is not in the publication", name);
    spate_find_why(look->list, "its changes are not read (P56)");
    spate_find_fix(look->list, SPATE_MEND_SOURCE, "ALTER PUBLICATION %s ADD TABLE %s;", spate_buf_str(&into),
                   name);
    spate_buf_fini(&into);
}

static void choose(struct look *look, int row)
{
    if (look->out) {
        look->out->oids = spate_realloc(look->out->oids, (look->out->count + 1) * sizeof *look->out->oids);
        look->out->oids[look->out->count++] = (uint32_t)strtoul(PQgetvalue(look->res, row, T_OID), NULL, 10);
    }
    spate_buf_printf(&look->chosen, "%s%s", look->chosen_count++ ? ", " : "",
                     PQgetvalue(look->res, row, T_NAME));
    if (PQgetvalue(look->res, row, T_OWNED)[0] != 't')
        spate_buf_printf(&look->unowned, "%s%s", look->unowned_count++ ? ", " : "",
                         PQgetvalue(look->res, row, T_NAME));
}

static void judge_table(struct look *look, int row)
{
    const PGresult *res = look->res;
    const char *name = PQgetvalue(res, row, T_NAME);
    bool exact = false;

    if (!meant(look, slice_of(res, row, T_SCHEMA), slice_of(res, row, T_TABLE), &exact))
        return;
    if (!strchr("rp", PQgetvalue(res, row, T_KIND)[0])) {
        if (look->glob_count > 0)
            not_a_table(look, row, exact);
        return;
    }
    /* A partition whose root is meant comes through its root (P50). */
    if (!PQgetisnull(res, row, T_ROOT) &&
        meant(look, slice_of(res, row, T_ROOT_SCHEMA), slice_of(res, row, T_ROOT), NULL))
        return;
    if (PQgetvalue(res, row, T_PUBLISHED)[0] == 't')
        return;
    if (PQgetvalue(res, row, T_PERSISTENCE)[0] == 'u') {
        if (look->glob_count == 0)
            return;
        spate_find(look->list, look->making && exact ? SPATE_FINDING_ERROR : SPATE_FINDING_WARNING,
                   "table-unlogged", "table %s is UNLOGGED", name);
        spate_find_why(look->list, "what is written to it is in no WAL, so it cannot be published (P33)");
        spate_find_fix(look->list, SPATE_MEND_SOURCE, "ALTER TABLE %s SET LOGGED;", name);
    } else if (PQgetvalue(res, row, T_USABLE)[0] == 'f') {
        if (look->glob_count > 0)
            no_identity(look, row, exact);
    } else if (look->making) {
        choose(look, row);
    } else if (look->glob_count > 0) {
        not_published(look, row);
    }
}

/* A name without wildcards that no table has: probably a slip of the finger. */
static void judge_glob(struct look *look, size_t g)
{
    size_t count = (size_t)PQntuples(look->res);
    char **names;
    const char *nearest;

    if (!spate_glob_exact(look->globs[g]))
        return;
    for (int row = 0; row < PQntuples(look->res); row++)
        if (spate_glob_match(look->globs[g], slice_of(look->res, row, T_SCHEMA),
                             slice_of(look->res, row, T_TABLE)))
            return;
    names = spate_zalloc((count + 1) * sizeof *names);
    for (size_t i = 0; i < count; i++) {
        struct spate_buf name = {0};

        spate_buf_printf(&name, "%s.%s", PQgetvalue(look->res, (int)i, T_SCHEMA),
                         PQgetvalue(look->res, (int)i, T_TABLE));
        names[i] = spate_strdup(spate_buf_str(&name));
        spate_buf_fini(&name);
    }
    nearest = spate_nearest(look->config->tables.at[g], (const char *const *)names, count);
    spate_find(look->list, look->making ? SPATE_FINDING_ERROR : SPATE_FINDING_WARNING, "table-unknown",
               "tables: there is no table %s in the source%s%s%s", look->config->tables.at[g],
               nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    spate_find_why(look->list, "nothing of it can be read; a temporary table is of its session alone");
    spate_find_fix(look->list, SPATE_MEND_FILE, "tables: the name as it is in the source");
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* ---- making it ---- */

static void create_statement(const struct look *look, struct spate_buf *out)
{
    spate_buf_puts(out, "CREATE PUBLICATION ");
    quoted(out, look->config->source.publication);
    if (look->chosen_count)
        spate_buf_printf(out, " FOR TABLE %.*s", SPATE_SLICE_ARG(spate_buf_view(&look->chosen)));
    spate_buf_puts(out, " WITH (publish_via_partition_root = true);");
}

/* The publication is missing: by whom is it made, and could we? */
static enum spate_rc judge_making(struct look *look, PGconn *sql, struct spate_err *err)
{
    static const char rights_sql[] =
        "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),"
        " pg_catalog.quote_ident(pg_catalog.current_database()), pg_catalog.quote_ident(current_user),"
        " pg_catalog.pg_is_in_recovery(),"
        " EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1)";
    const struct spate_connector_config *config = look->config;
    const char *values[] = {config->source.slot};
    struct spate_findings *list = look->list;
    struct spate_buf make = {0}, fix = {0}, slot = {0};
    PGresult *res = NULL;
    bool may, on_standby, slot_exists;
    enum spate_rc rc = spate_pg_exec_params(sql, rights_sql, 1, values, PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    may = PQgetvalue(res, 0, 0)[0] == 't' && look->unowned_count == 0;
    on_standby = PQgetvalue(res, 0, 3)[0] == 't';
    slot_exists = PQgetvalue(res, 0, 4)[0] == 't';
    create_statement(look, &make);
    spate_pg_literal(&slot, spate_slice_str(config->source.slot));
    /* P55: what an older slot holds would be decoded with a catalog that has no such publication. */
    if (slot_exists)
        spate_buf_printf(&fix, "SELECT pg_drop_replication_slot(%s); ", spate_buf_str(&slot));
    spate_buf_puts(&fix, spate_buf_str(&make));
    if (slot_exists && !config->source.create)
        spate_buf_printf(&fix, " SELECT pg_create_logical_replication_slot(%s, 'pgoutput');",
                         spate_buf_str(&slot));
    if (look->chosen_count == 0) {
        spate_find(list, SPATE_FINDING_ERROR, "publication-nothing",
                   "publication \"%s\" is missing, and no table can be put into it",
                   config->source.publication);
        spate_find_why(list, "tables: matches none that is permanent and has a replica identity");
        spate_find_fix(list, SPATE_MEND_FILE,
                       "tables: for instance [\"public.*\"]; or create the tables first");
    } else if (config->source.create && config->tables.count == 0) {
        spate_find(list, SPATE_FINDING_ERROR, "publication-missing",
                   "publication \"%s\" is missing, and tables: does not say what belongs into it",
                   config->source.publication);
        spate_find_why(list, "create: true makes a publication of the tables that the file names");
        spate_find_fix(list, SPATE_MEND_SOURCE, "%s", spate_buf_str(&fix));
    } else if (!config->source.create || slot_exists || on_standby) {
        spate_find(list, SPATE_FINDING_ERROR, "publication-missing", "publication \"%s\" does not exist%s",
                   config->source.publication, slot_exists ? ", and the slot is older than it will be" : "");
        spate_find_why(list, "%s",
                       slot_exists ? "what the slot holds would be decoded without the publication, and fail "
                                     "(P55)"
                       : on_standby ? "it can only be made on the primary"
                                    : "it says which tables are read, and source.postgres.create is false");
        spate_find_fix(list, SPATE_MEND_SOURCE, "%s", spate_buf_str(&fix));
    } else if (!may) {
        spate_find(list, SPATE_FINDING_ERROR, "publication-owner",
                   "publication \"%s\" is missing, and role %s may not make it%s%s",
                   config->source.publication, PQgetvalue(res, 0, 2),
                   look->unowned_count ? ": it does not own " : "",
                   look->unowned_count ? spate_buf_str(&look->unowned) : "");
        spate_find_why(list, "a table is published by its owner, who needs CREATE on the database");
        spate_find_fix(list, SPATE_MEND_SOURCE, "%s", spate_buf_str(&fix));
    } else {
        spate_find(list, SPATE_FINDING_NOTE, "publication-will-be-made",
                   "publication \"%s\" does not exist yet; the connector makes it with %zu tables",
                   config->source.publication, look->chosen_count);
        spate_find_fix(list, SPATE_MEND_SOURCE, "%s", spate_buf_str(&make));
    }
    PQclear(res);
    spate_buf_fini(&make);
    spate_buf_fini(&fix);
    spate_buf_fini(&slot);
    return SPATE_OK;
}

static enum spate_rc open_globs(struct look *look, struct spate_err *err)
{
    look->globs = spate_zalloc((look->config->tables.count + 1) * sizeof(void *));
    for (size_t g = 0; g < look->config->tables.count; g++) {
        if (spate_glob_new(look->config->tables.at[g], &look->globs[g], err))
            return SPATE_FAIL;
        look->glob_count = g + 1;
    }
    return SPATE_OK;
}

enum spate_rc spate_check_globs(PGconn *sql, const struct spate_connector_config *config, bool making,
                                struct spate_chosen *chosen, struct spate_findings *list,
                                struct spate_err *err)
{
    struct look look = {.config = config, .making = making, .out = chosen, .list = list};
    const char *publication = config->source.publication;
    struct spate_buf text = {0};
    enum spate_rc rc;

    if (config->tables.count == 0 && !making)
        return SPATE_OK;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    spate_buf_printf(&text, candidates_sql,
                     PQserverVersion(sql) >= 150000
                         ? "UNION SELECT c.oid FROM pg_catalog.pg_class c JOIN"
                           " pg_catalog.pg_publication_namespace s ON s.pnnspid = c.relnamespace JOIN pub ON"
                           " s.pnpubid = pub.oid WHERE c.relkind IN ('r', 'p')"
                         : "");
#pragma GCC diagnostic pop
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &publication, PGRES_TUPLES_OK, &look.res, err);
    if (rc == SPATE_OK)
        rc = open_globs(&look, err);
    for (size_t g = 0; rc == SPATE_OK && g < look.glob_count; g++)
        judge_glob(&look, g);
    for (int row = 0; rc == SPATE_OK && row < PQntuples(look.res); row++)
        judge_table(&look, row);
    if (rc == SPATE_OK && look.others > 0) {
        spate_find(list, SPATE_FINDING_NOTE, "table-kind",
                   "tables: matches %zu views and foreign tables, which cannot be published", look.others);
        spate_find_why(list, "changes of ordinary and partitioned tables alone are in the stream (P54)");
    }
    if (rc == SPATE_OK && making)
        rc = judge_making(&look, sql, err);
    for (size_t g = 0; g < look.glob_count; g++)
        spate_glob_free(look.globs[g]);
    free(look.globs);
    PQclear(look.res);
    spate_buf_fini(&look.chosen);
    spate_buf_fini(&look.unowned);
    spate_buf_fini(&text);
    return rc;
}
