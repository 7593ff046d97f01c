/* connector/preflight.c - questions to the source before anything is started. */
#include "connector/preflight.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    return SPATE_FAIL;
}

static void warn_about(const char *about, const char *text)
{
    char quoted[900];

    spate_log(SPATE_LOG_WARN, "preflight", "about=%s text=%s", about,
              spate_log_quote(quoted, sizeof quoted, text));
}

/* The minors in which known data losses of logical decoding were fixed. */
static void check_minor(PGconn *sql)
{
    static const struct {
        int major, minor;
    } least[] = {{13, 21}, {14, 18}, {15, 13}, {16, 9}, {17, 5}};
    int version = PQserverVersion(sql);
    char text[300];

    for (size_t i = 0; i < sizeof least / sizeof least[0]; i++) {
        if (version / 10000 != least[i].major || version % 10000 >= least[i].minor)
            continue;
        snprintf(text, sizeof text,
                 "server %d.%d can lose changes when a publication is altered or DDL runs beside open "
                 "transactions; fixed in %d.%d: install that minor version or a later one",
                 version / 10000, version % 10000, least[i].major, least[i].minor);
        warn_about("server_version", text);
    }
}

static enum spate_rc check_wal_level(const char *level, struct spate_err *err)
{
    if (strcmp(level, "logical") == 0)
        return SPATE_OK;
    spate_fail(
        err, SPATE_FATAL,
        "the source has wal_level = %s, and changes can only be read with wal_level = logical. Mend it "
        "with: ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        level);
    return refuse(err);
}

static enum spate_rc check_role(const char *user, bool may_replicate, struct spate_err *err)
{
    if (may_replicate)
        return SPATE_OK;
    spate_fail(err, SPATE_FATAL,
               "the source's role \"%s\" may not replicate. Mend it with: ALTER ROLE \"%s\" REPLICATION",
               user, user);
    return refuse(err);
}

static bool names_us(const char *names, const char *application)
{
    return strchr(names, '*') != NULL || strstr(names, application) != NULL;
}

static void check_settings(const char *sync_names, const char *keep_size, const char *sender_timeout,
                           const char *commit, const char *application)
{
    char text[600];

    if (sync_names[0] && names_us(sync_names, application)) {
        snprintf(
            text, sizeof text,
            "synchronous_standby_names = '%s' matches this connector (application_name %s): the source's "
            "commits then wait until the bus has made them durable, and hang while the connector is down. "
            "Unless that is wanted, name the real standbys there instead",
            sync_names, application);
        warn_about("synchronous_standby_names", text);
    }
    if (strcmp(keep_size, "-1") == 0)
        warn_about(
            "max_slot_wal_keep_size",
            "max_slot_wal_keep_size is not limited: while this connector is down its slot keeps WAL until "
            "the source's disk is full. Set it to what the disk can spare (ALTER SYSTEM SET "
            "max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf()); beyond it the slot is lost instead, "
            "and "
            "sinks must copy anew");
    if (strcmp(sender_timeout, "0") == 0)
        warn_about("wal_sender_timeout",
                   "wal_sender_timeout = 0: the source never notices a dead connection, and a crashed "
                   "connector's slot stays busy until TCP gives up. The connector keeps a timer of its own");
    if (strcmp(commit, "off") == 0)
        warn_about("synchronous_commit",
                   "synchronous_commit = off on the source: changes arrive about 100 ms late, when its WAL "
                   "writer flushes (P98)");
}

enum spate_rc spate_preflight_server(PGconn *sql, const struct spate_connector_config *config, bool warn,
                                     struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc;

    (void)config;
    rc =
        spate_pg_exec(sql,
                      "SELECT pg_catalog.current_setting('wal_level'), current_user,"
                      " (SELECT r.rolreplication OR r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = "
                      "current_user), pg_catalog.current_setting('synchronous_standby_names'),"
                      " (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = "
                      "'max_slot_wal_keep_size'),"
                      " (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'wal_sender_timeout'),"
                      " pg_catalog.current_setting('synchronous_commit'),"
                      " pg_catalog.current_setting('application_name')",
                      PGRES_TUPLES_OK, &res, err);
    if (rc != SPATE_OK)
        return rc;
    rc = check_wal_level(PQgetvalue(res, 0, 0), err);
    if (rc == SPATE_OK)
        rc = check_role(PQgetvalue(res, 0, 1), PQgetvalue(res, 0, 2)[0] == 't', err);
    if (rc == SPATE_OK && warn) {
        check_minor(sql);
        check_settings(PQgetvalue(res, 0, 3), PQgetvalue(res, 0, 4), PQgetvalue(res, 0, 5),
                       PQgetvalue(res, 0, 6), PQgetvalue(res, 0, 7));
    }
    PQclear(res);
    return rc;
}

static void take_text(char *out, size_t size, const PGresult *res, int column)
{
    snprintf(out, size, "%s", PQgetvalue(res, 0, column));
}

enum spate_rc spate_preflight_identify(struct spate_replication *repl, struct spate_source_state *state,
                                       struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec(repl->conn, "IDENTIFY_SYSTEM", PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    take_text(state->system, sizeof state->system, res, 0);
    state->timeline = (uint32_t)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
    if (!spate_pg_lsn_parse(PQgetvalue(res, 0, 2), &state->wal))
        rc = spate_fail(err, SPATE_FATAL, "IDENTIFY_SYSTEM answered with the log position \"%s\"",
                        PQgetvalue(res, 0, 2));
    PQclear(res);
    return rc;
}

/* 16 knows that a slot conflicts, 17 says why, before 16 wal_status says it all (P60, P61). */
static const char *invalidation_column(PGconn *sql)
{
    int version = PQserverVersion(sql);

    return version >= 170000   ? "coalesce(s.invalidation_reason, '')"
           : version >= 160000 ? "CASE WHEN s.conflicting THEN 'conflict with recovery' ELSE '' END"
                               : "''";
}

enum spate_rc spate_preflight_state(struct spate_replication *repl, PGconn *sql, const char *slot,
                                    struct spate_source_state *state, struct spate_err *err)
{
    struct spate_buf text = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    *state = (struct spate_source_state){0};
    rc = spate_preflight_identify(repl, state, err);
    if (rc != SPATE_OK)
        return rc;
    spate_buf_printf(
        &text,
        "SELECT d.datname, d.oid, s.slot_name IS NOT NULL, coalesce(s.plugin, 'physical'),"
        " coalesce(s.database, ''), coalesce(s.wal_status, ''), %s, coalesce(s.restart_lsn::text, ''),"
        " coalesce(s.confirmed_flush_lsn::text, ''), coalesce(s.active_pid, 0)"
        " FROM pg_catalog.pg_database d LEFT JOIN pg_catalog.pg_replication_slots s"
        " ON s.slot_name = $1 WHERE d.datname = pg_catalog.current_database()",
        invalidation_column(sql));
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &slot, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&text);
    if (rc != SPATE_OK)
        return rc;
    take_text(state->database, sizeof state->database, res, 0);
    state->database_oid = (uint32_t)strtoul(PQgetvalue(res, 0, 1), NULL, 10);
    state->slot.exists = PQgetvalue(res, 0, 2)[0] == 't';
    if (state->slot.exists) {
        take_text(state->slot.plugin, sizeof state->slot.plugin, res, 3);
        take_text(state->slot.database, sizeof state->slot.database, res, 4);
        take_text(state->slot.status, sizeof state->slot.status, res, 5);
        take_text(state->slot.invalidation, sizeof state->slot.invalidation, res, 6);
        state->slot.has_restart = spate_pg_lsn_parse(PQgetvalue(res, 0, 7), &state->slot.restart);
        state->slot.active_pid = strtoll(PQgetvalue(res, 0, 9), NULL, 10);
        /* A logical slot without a position is still being made, by us before we were killed for example: it
         * is finished, or vanishes with the session that makes it (P70). An epoch must not begin on it. */
        if (!spate_pg_lsn_parse(PQgetvalue(res, 0, 8), &state->slot.confirmed) &&
            strcmp(state->slot.plugin, "physical") != 0)
            rc = spate_fail(
                err, SPATE_RETRY,
                "replication slot \"%s\" is still being made by server process %s, which waits for "
                "transactions that are open; it is tried again",
                slot, PQgetvalue(res, 0, 9));
    }
    PQclear(res);
    return rc;
}

enum spate_rc spate_preflight_confirmed(PGconn *sql, const char *slot, uint64_t *confirmed,
                                        struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(
        sql, "SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = $1", 1, &slot,
        PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    if (PQntuples(res) != 1 || !spate_pg_lsn_parse(PQgetvalue(res, 0, 0), confirmed))
        rc = spate_fail(err, SPATE_RETRY, "replication slot \"%s\" vanished while it was being used", slot);
    PQclear(res);
    return rc;
}

enum spate_rc spate_preflight_publication(PGconn *sql, const char *publication, bool *exists,
                                          struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(sql,
                                            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate,"
                                            " pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1",
                                            1, &publication, PGRES_TUPLES_OK, &res, err);
    if (rc != SPATE_OK)
        return rc;
    *exists = PQntuples(res) == 1;
    if (*exists && PQgetvalue(res, 0, 0)[0] != 't') {
        /* Sinks mirror tables: a publication that hides deletes would leave rows behind for ever. */
        char quoted[300];

        spate_log(
            SPATE_LOG_WARN, "preflight",
            "about=publication publication=%s text=\"it does not publish insert, update, delete and truncate "
            "alike: what it leaves out never reaches the bus; mend with ALTER PUBLICATION ... SET (publish = "
            "'insert, update, delete, truncate')\"",
            spate_log_quote(quoted, sizeof quoted, publication));
    }
    PQclear(res);
    return SPATE_OK;
}
