/* connector/owned.c - whose publication it is, and removing what a connector leaves on its source. */
#include "connector/owned.h"

#include "core/failpoint.h"
#include "pg/pg.h"

#include <stdio.h>
#include <string.h>

#define CONNECT_MS 15000

static void comment(const struct spate_connector_config *config, struct spate_buf *out)
{
    spate_buf_printf(out, "made by spate connector %s", config->name);
}

static void quoted(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

void spate_owned_mark_sql(const struct spate_connector_config *config, struct spate_buf *sql)
{
    struct spate_buf words = {0};

    comment(config, &words);
    spate_buf_puts(sql, "; COMMENT ON PUBLICATION ");
    quoted(sql, config->source.publication);
    spate_buf_puts(sql, " IS ");
    spate_pg_literal(sql, spate_buf_view(&words));
    spate_buf_fini(&words);
}

enum spate_rc spate_owned_publication(PGconn *sql, const struct spate_connector_config *config, bool *exists,
                                      bool *ours, struct spate_err *err)
{
    struct spate_buf words = {0};
    const char *values[2] = {config->source.publication, NULL};
    PGresult *res = NULL;
    enum spate_rc rc;

    *exists = *ours = false;
    comment(config, &words);
    values[1] = spate_buf_str(&words);
    rc = spate_pg_exec_params(
        sql,
        "SELECT coalesce(pg_catalog.obj_description(p.oid, 'pg_publication') = $2, false)"
        " AND pg_catalog.pg_has_role(p.pubowner, 'USAGE') FROM pg_catalog.pg_publication p WHERE p.pubname = "
        "$1",
        2, values, PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK) {
        *exists = PQntuples(res) == 1;
        *ours = *exists && PQgetvalue(res, 0, 0)[0] == 't';
    }
    PQclear(res);
    spate_buf_fini(&words);
    return rc;
}

/* ---- --drop ---- */

static enum spate_rc in_use(const char *slot, const PGresult *res, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(
        err, SPATE_FATAL,
        "replication slot \"%s\" is in use by server process %s (user %s, application %s): stop that "
        "connector "
        "first. Nothing was dropped. If only its connection is left: SELECT pg_terminate_backend(%s)",
        slot, PQgetvalue(res, 0, 2), PQgetvalue(res, 0, 3), PQgetvalue(res, 0, 4), PQgetvalue(res, 0, 2));
}

static enum spate_rc drop_slot(PGconn *sql, const struct spate_connector_config *config,
                               struct spate_buf *said, struct spate_err *err)
{
    const char *slot = config->source.slot;
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(
        sql,
        "SELECT coalesce(s.plugin, 'physical'), s.database IS DISTINCT FROM pg_catalog.current_database(),"
        " s.active_pid, coalesce(a.usename, '?'), coalesce(a.application_name, '?')"
        " FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = "
        "s.active_pid"
        " WHERE s.slot_name = $1",
        1, &slot, PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    if (PQntuples(res) == 0) {
        spate_buf_printf(said, "replication slot \"%s\" does not exist: nothing to drop\n", slot);
    } else if (strcmp(PQgetvalue(res, 0, 0), "pgoutput") != 0 || PQgetvalue(res, 0, 1)[0] == 't') {
        err->exit_code = SPATE_EXIT_REFUSED;
        rc =
            spate_fail(err, SPATE_FATAL,
                       "replication slot \"%s\" is none of this connector's: its plugin is %s, or it belongs "
                       "to another database. Nothing was dropped",
                       slot, PQgetvalue(res, 0, 0));
    } else if (!PQgetisnull(res, 0, 2)) {
        rc = in_use(slot, res, err);
    } else {
        rc = spate_pg_exec_params(sql, "SELECT pg_catalog.pg_drop_replication_slot($1)", 1, &slot,
                                  PGRES_TUPLES_OK, NULL, err);
        if (rc == SPATE_FAIL && strcmp(err->sqlstate, "55006") == 0)
            err->exit_code = SPATE_EXIT_REFUSED; /* somebody came meanwhile; the server names them */
        if (rc == SPATE_OK)
            spate_buf_printf(said, "dropped replication slot \"%s\"\n", slot);
        SPATE_FAILPOINT(connector_slot_dropped);
    }
    PQclear(res);
    return rc;
}

static enum spate_rc drop_publication(PGconn *sql, const struct spate_connector_config *config,
                                      struct spate_buf *said, struct spate_err *err)
{
    struct spate_buf statement = {0};
    bool exists, ours;
    enum spate_rc rc = spate_owned_publication(sql, config, &exists, &ours, err);

    spate_buf_puts(&statement, "DROP PUBLICATION ");
    quoted(&statement, config->source.publication);
    if (rc == SPATE_OK && ours)
        rc = spate_pg_exec(sql, spate_buf_str(&statement), PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_OK && ours)
        spate_buf_printf(said, "dropped publication \"%s\"\n", config->source.publication);
    else if (rc == SPATE_OK && exists)
        spate_buf_printf(said,
                         "left publication \"%s\": this connector did not make it, or no longer owns it. If "
                         "nobody needs it, its owner drops it with: %s;\n",
                         config->source.publication, spate_buf_str(&statement));
    else if (rc == SPATE_OK)
        spate_buf_printf(said, "publication \"%s\" does not exist: nothing to drop\n",
                         config->source.publication);
    spate_buf_fini(&statement);
    return rc;
}

enum spate_rc spate_owned_drop(const struct spate_connector_config *config, struct spate_buf *said,
                               struct spate_err *err)
{
    char application[80];
    const struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    PGconn *sql = NULL;
    enum spate_rc rc;

    snprintf(application, sizeof application, "spate_%.50s_drop", config->name);
    rc = spate_pg_connect(&where, CONNECT_MS, &sql, err);
    /* The slot first: read on without its publication it would be broken (P55). */
    if (rc == SPATE_OK)
        rc = drop_slot(sql, config, said, err);
    if (rc == SPATE_OK)
        rc = drop_publication(sql, config, said, err);
    PQfinish(sql);
    if (rc == SPATE_OK)
        spate_buf_puts(said, "left what is on the bus: its readers may need it. A connector of this name "
                             "starts again with --new-epoch only\n");
    return rc;
}
