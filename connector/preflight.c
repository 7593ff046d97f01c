/* connector/preflight.c - questions to the source before anything is started. */
#include "connector/preflight.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

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
        " coalesce(s.confirmed_flush_lsn::text, ''), coalesce(s.active_pid, 0), %s"
        " FROM pg_catalog.pg_database d LEFT JOIN pg_catalog.pg_replication_slots s"
        " ON s.slot_name = $1 WHERE d.datname = pg_catalog.current_database()",
        invalidation_column(sql),
        PQserverVersion(sql) >= 170000 ? "coalesce(s.failover, false), coalesce(s.synced, false)"
                                       : "false, false");
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
        state->slot.failover = PQgetvalue(res, 0, 10)[0] == 't';
        state->slot.synced = PQgetvalue(res, 0, 11)[0] == 't';
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
    enum spate_rc rc = spate_pg_exec_params(sql, "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1",
                                            1, &publication, PGRES_TUPLES_OK, &res, err);

    if (rc == SPATE_OK)
        *exists = PQntuples(res) == 1;
    PQclear(res);
    return rc;
}
