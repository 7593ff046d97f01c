/* connector/lists.c - which columns a publication of ours names. */
#include "connector/lists.h"

#include "connector/owned.h"
#include "connector/privacy.h"
#include "core/log.h"
#include "pg/pg.h"

#include <stdlib.h>
#include <string.h>

/* $1 schema, $2 table, $3 publication; a row for each column that may be published. `listed`: NULL without a
 * list. */
static const char select_columns[] =
    "SELECT a.attname, a.attnum, coalesce(a.attnum = ANY (i.keys), false), r.prattrs IS NULL,"
    " coalesce(a.attnum = ANY (r.prattrs), false),"
    " c.relkind = 'r' AND NOT c.relispartition AND NOT c.relhassubclass AND c.relreplident IN ('d', 'i')"
    " AND i.keys IS NOT NULL AND r.prqual IS NULL, r.prqual IS NOT NULL"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    "  AND a.attgenerated = ''"
    " LEFT JOIN LATERAL (SELECT pg_catalog.string_to_array(x.indkey::text, ' ')::int2[] AS keys"
    "   FROM pg_catalog.pg_index x WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate"
    "   AND CASE c.relreplident WHEN 'd' THEN x.indisprimary ELSE x.indisreplident END) i ON true"
    " LEFT JOIN pg_catalog.pg_publication b ON b.pubname = $3"
    " LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid"
    " WHERE n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum";
enum { C_NAME, C_NUMBER, C_KEY, C_NO_LIST, C_LISTED, C_FIT, C_FILTER };

static bool is_true(const PGresult *res, int row, int column)
{
    return PQgetvalue(res, row, column)[0] == 't';
}

static bool excluded(const struct spate_privacy *privacy, const char *schema, const char *table,
                     const char *column)
{
    for (size_t i = 0; i < spate_privacy_rules(privacy); i++)
        if (spate_privacy_treatment(privacy, i) == SPATE_EXCLUDED &&
            spate_privacy_speaks(privacy, i, spate_slice_str(schema), spate_slice_str(table), NULL, 0) &&
            (!column || spate_privacy_names(privacy, i, spate_slice_str(column))))
            return true;
    return false;
}

static enum spate_rc look(PGconn *sql, const struct spate_connector_config *config, const char *schema,
                          const char *table, PGresult **res, struct spate_err *err)
{
    const char *values[] = {schema, table, config->source.publication};

    return spate_pg_exec_params(sql, select_columns, 3, values, PGRES_TUPLES_OK, res, err);
}

/* " (a, b)": all but what is excluded. False: no list is right, or nothing would be left out. */
static bool wanted(const struct spate_privacy *privacy, const char *schema, const char *table,
                   const PGresult *res, struct spate_buf *out)
{
    size_t before = out->len;
    int left_out = 0;

    for (int row = 0; row < PQntuples(res); row++) {
        const char *name = PQgetvalue(res, row, C_NAME);

        if (excluded(privacy, schema, table, name)) {
            left_out++;
            if (!is_true(res, row, C_KEY))
                continue;
            out->len = before; /* the cover refuses it, with the reason */
            return false;
        }
        spate_buf_puts(out, out->len == before ? " (" : ", ");
        spate_pg_ident(out, spate_slice_str(name));
    }
    if (left_out == 0 || out->len == before || !is_true(res, 0, C_FIT)) {
        out->len = before;
        return false;
    }
    spate_buf_putc(out, ')');
    return true;
}

enum spate_rc spate_lists_columns(PGconn *sql, const struct spate_connector_config *config,
                                  const char *schema, const char *table, struct spate_buf *out,
                                  struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc;

    if (PQserverVersion(sql) < 150000 || !excluded(config->privacy, schema, table, NULL))
        return SPATE_OK;
    rc = look(sql, config, schema, table, &res, err);
    if (rc == SPATE_OK)
        (void)wanted(config->privacy, schema, table, res, out);
    PQclear(res);
    return rc;
}

/* ---- later ---- */

/* Does the list there is lack only what is excluded, and columns that are younger than all that it knew? */
static bool is_ours(const struct spate_privacy *privacy, const char *schema, const char *table,
                    const PGresult *res)
{
    int youngest = 0;

    for (int row = 0; row < PQntuples(res); row++)
        if (is_true(res, row, C_LISTED))
            youngest = atoi(PQgetvalue(res, row, C_NUMBER));
    for (int row = 0; row < PQntuples(res); row++)
        if (!is_true(res, row, C_LISTED) && atoi(PQgetvalue(res, row, C_NUMBER)) < youngest &&
            !excluded(privacy, schema, table, PQgetvalue(res, row, C_NAME)))
            return false;
    return true;
}

static bool differs(const struct spate_privacy *privacy, const char *schema, const char *table,
                    const PGresult *res, bool list)
{
    if (!list || is_true(res, 0, C_NO_LIST))
        return list != !is_true(res, 0, C_NO_LIST);
    for (int row = 0; row < PQntuples(res); row++)
        if (is_true(res, row, C_LISTED) == excluded(privacy, schema, table, PQgetvalue(res, row, C_NAME)))
            return true;
    return false;
}

static void alter_sql(struct spate_buf *sql, const char *publication, const char *schema, const char *table,
                      struct spate_buf *list)
{
    struct spate_buf into = {0}, name = {0};

    spate_pg_ident(&into, spate_slice_str(publication));
    spate_pg_ident(&name, spate_slice_str(schema));
    spate_buf_putc(&name, '.');
    spate_pg_ident(&name, spate_slice_str(table));
    spate_buf_printf(sql,
                     "ALTER PUBLICATION %s DROP TABLE ONLY %s; ALTER PUBLICATION %s ADD TABLE ONLY %s%s;",
                     spate_buf_str(&into), spate_buf_str(&name), spate_buf_str(&into), spate_buf_str(&name),
                     spate_buf_str(list));
    spate_buf_fini(&into);
    spate_buf_fini(&name);
}

static void say(enum spate_log_level level, const char *event, const char *schema, const char *table,
                const char *text)
{
    struct spate_buf name = {0};
    char quoted[300], words[900];

    spate_buf_printf(&name, "%s.%s", schema, table);
    spate_log(level, event, "table=%s text=%s", spate_log_quote(quoted, sizeof quoted, spate_buf_str(&name)),
              spate_log_quote(words, sizeof words, text));
    spate_buf_fini(&name);
}

/* In one transaction: no change sees the table unpublished. Where it does not work now, the columns are left
 * out here, and it is tried again at the next start. */
static enum spate_rc update_table(PGconn *sql, const struct spate_connector_config *config,
                                  const char *schema, const char *table, bool warn, struct spate_err *err)
{
    struct spate_buf list = {0}, alter = {0}, all = {0};
    struct spate_err why = {0};
    PGresult *res = NULL;
    enum spate_rc rc = look(sql, config, schema, table, &res, err);
    bool right;

    if (rc != SPATE_OK || PQntuples(res) == 0)
        goto out;
    right = wanted(config->privacy, schema, table, res, &list);
    if (!differs(config->privacy, schema, table, res, right))
        goto out;
    alter_sql(&alter, config->source.publication, schema, table, &list);
    if (is_true(res, 0, C_FILTER) || !is_ours(config->privacy, schema, table, res)) {
        spate_buf_printf(
            &all,
            "its column list is not the one that exclude asks for, and somebody seems to have made it by "
            "hand: columns that it leaves out do not arrive, and under another replica identity "
            "UPDATE fails. To bring it up to date: BEGIN; %s COMMIT",
            spate_buf_str(&alter));
        say(warn ? SPATE_LOG_WARN : SPATE_LOG_DEBUG, "column-list", schema, table, spate_buf_str(&all));
        goto out;
    }
    spate_buf_printf(&all, "BEGIN; SET LOCAL lock_timeout = '2s'; %s COMMIT", spate_buf_str(&alter));
    rc = spate_pg_exec(sql, spate_buf_str(&all), PGRES_COMMAND_OK, NULL, &why);
    if (rc == SPATE_OK) {
        say(SPATE_LOG_INFO, "column-list", schema, table,
            right ? "the publication's list of columns is up to date: what is excluded is not sent by the "
                    "server"
                  : "the publication has no list of columns for it any more, which would make the "
                    "application's "
                    "UPDATE fail (P49): what is excluded is left out by the connector");
    } else if (rc == SPATE_FAIL && PQstatus(sql) == CONNECTION_OK) {
        rc = spate_pg_exec(sql, "ROLLBACK", PGRES_COMMAND_OK, NULL, err);
        say(warn ? SPATE_LOG_WARN : SPATE_LOG_DEBUG, "column-list", schema, table, why.text);
    } else {
        *err = why;
    }
out:
    PQclear(res);
    spate_buf_fini(&list);
    spate_buf_fini(&alter);
    spate_buf_fini(&all);
    return rc;
}

enum spate_rc spate_lists_update(PGconn *sql, const struct spate_connector_config *config, bool warn,
                                 struct spate_err *err)
{
    const char *publication = config->source.publication;
    bool exists = false, ours = false;
    PGresult *res = NULL;
    enum spate_rc rc;

    if (!config->privacy || config->exclude.count == 0 || !config->source.create ||
        PQserverVersion(sql) < 150000)
        return SPATE_OK;
    rc = spate_owned_publication(sql, config, &exists, &ours, err);
    if (rc != SPATE_OK || !ours)
        return rc;
    rc = spate_pg_exec_params(sql,
                              "SELECT n.nspname, c.relname FROM pg_catalog.pg_publication b"
                              " JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid"
                              " JOIN pg_catalog.pg_class c ON c.oid = r.prrelid"
                              " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE b.pubname = $1"
                              " AND NOT b.puballtables ORDER BY c.oid",
                              1, &publication, PGRES_TUPLES_OK, &res, err);
    for (int row = 0; rc == SPATE_OK && row < PQntuples(res); row++)
        if (excluded(config->privacy, PQgetvalue(res, row, 0), PQgetvalue(res, row, 1), NULL))
            rc = update_table(sql, config, PQgetvalue(res, row, 0), PQgetvalue(res, row, 1), warn, err);
    PQclear(res);
    return rc;
}
