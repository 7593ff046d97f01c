/* connector/failover.c - timelines' histories, a slot's flag, and what standbys need to keep it. */
#include "connector/failover.h"

#include "connector/lsn.h"
#include "core/log.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SINCE 170000 /* slots with FAILOVER */

/* ---- before ---- */

void spate_failover_judge_server(int version, bool standby, const struct spate_connector_config *config,
                                 struct spate_findings *list)
{
    if (!config->source.failover)
        return;
    if (version < SINCE) {
        spate_find(list, SPATE_FINDING_ERROR, "failover-version",
                   "source.postgres.failover is true, and the server is PostgreSQL %d.%d", version / 10000,
                   version % 10000);
        spate_find_why(list, "slots that standbys keep in step come with PostgreSQL 17 (P74)");
        spate_find_fix(list, SPATE_MEND_FILE,
                       "source.postgres.failover: false -- after a failover the stream then needs spate "
                       "connector -c FILE --new-epoch");
    } else if (standby) {
        spate_find(list, SPATE_FINDING_ERROR, "failover-standby",
                   "source.postgres.failover is true, and the source is a standby");
        spate_find_why(list, "a slot that is made on a standby stays there alone (P77)");
        spate_find_fix(list, SPATE_MEND_FILE, "source.postgres.url: the primary; or failover: false");
    }
}

enum { V_SLOT, V_FAILOVER, V_NAMED, V_ASLEEP, V_KEEPERS, V_BLIND, V_WORKERS, V_SEES };

/* Standbys that read by way of a slot; those of them that hold back no xmin; their workers' sessions, which
 * only a role that may see everybody's statistics sees. */
static const char look_sql[] =
    "SELECT s.slot_name IS NOT NULL, coalesce(s.failover, false),"
    " pg_catalog.current_setting('synchronized_standby_slots'),"
    " (SELECT pg_catalog.string_agg(pg_catalog.btrim(w.name, ' \"'), ', ') FROM"
    "  pg_catalog.regexp_split_to_table(pg_catalog.current_setting('synchronized_standby_slots'), ',') "
    "w(name)"
    "  WHERE pg_catalog.btrim(w.name, ' \"') <> '' AND NOT EXISTS (SELECT 1 FROM"
    "  pg_catalog.pg_replication_slots a WHERE a.slot_name = pg_catalog.btrim(w.name, ' \"')"
    "  AND a.slot_type = 'physical' AND a.active)),"
    " (SELECT count(*) FROM pg_catalog.pg_replication_slots p WHERE p.slot_type = 'physical' AND p.active),"
    " (SELECT pg_catalog.string_agg(p.slot_name, ', ') FROM pg_catalog.pg_replication_slots p"
    "  WHERE p.slot_type = 'physical' AND p.active AND p.xmin IS NULL AND p.catalog_xmin IS NULL),"
    " (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.application_name LIKE '%slotsync worker'),"
    " pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')"
    " FROM (SELECT $1::name AS name) n LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = n.name";

/* What is missing on the standbys. */
static void judge_standbys(const PGresult *res, struct spate_findings *list)
{
    if (strcmp(PQgetvalue(res, 0, V_KEEPERS), "0") == 0) {
        spate_find(list, SPATE_FINDING_WARNING, "failover-no-standby",
                   "no standby reads by way of a replication slot at this moment");
        spate_find_why(list, "nobody keeps the connector's slot in step (P74)");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "on the primary: SELECT pg_create_physical_replication_slot('standby1'); on the "
                       "standby: primary_slot_name = 'standby1', dbname=... in primary_conninfo, "
                       "sync_replication_slots = on, hot_standby_feedback = on");
        return;
    }
    if (!PQgetisnull(res, 0, V_BLIND)) {
        spate_find(list, SPATE_FINDING_WARNING, "failover-feedback",
                   "the standby of physical slot %s sends no feedback", PQgetvalue(res, 0, V_BLIND));
        spate_find_why(list, "a standby keeps slots in step only with hot_standby_feedback = on (P74)");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "on that standby: ALTER SYSTEM SET hot_standby_feedback = 'on'; SELECT "
                       "pg_reload_conf();");
    }
    if (strcmp(PQgetvalue(res, 0, V_WORKERS), "0") == 0 && PQgetvalue(res, 0, V_SEES)[0] == 't') {
        spate_find(list, SPATE_FINDING_WARNING, "failover-no-worker",
                   "no standby keeps slots in step at this moment");
        spate_find_why(list, "the one that is promoted would not have the connector's slot (P74)");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "on the standby that may be promoted: ALTER SYSTEM SET sync_replication_slots = 'on'; "
                       "SELECT pg_reload_conf(); its primary_conninfo needs dbname=...");
    }
}

static void judge(const PGresult *res, const struct spate_connector_config *config,
                  struct spate_findings *list)
{
    const char *slot = config->source.slot;

    if (PQgetvalue(res, 0, V_SLOT)[0] == 't' && PQgetvalue(res, 0, V_FAILOVER)[0] != 't') {
        spate_find(list, config->source.create ? SPATE_FINDING_NOTE : SPATE_FINDING_WARNING, "failover-slot",
                   "replication slot \"%s\" is not one that standbys keep in step", slot);
        spate_find_why(list, "%s",
                       config->source.create
                           ? "the connector turns that on at its next start"
                           : "after a failover it would be gone, and source.postgres.create is false");
        spate_find_fix(list, SPATE_MEND_SHELL,
                       "psql 'dbname=DATABASE replication=database' -c 'ALTER_REPLICATION_SLOT \"%s\" "
                       "(FAILOVER true)' # while the connector is stopped",
                       slot);
    }
    if (!PQgetvalue(res, 0, V_NAMED)[0]) {
        spate_find(list, SPATE_FINDING_WARNING, "failover-ahead", "synchronized_standby_slots is empty");
        spate_find_why(list, "the connector may be sent what no standby has yet: after a failover the bus "
                             "then holds changes that the new primary never had, and the stream is broken "
                             "(P73, P74)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET synchronized_standby_slots = 'standby1'; SELECT pg_reload_conf(); "
                       "-- the physical slots of the standbys that may be promoted");
    }
    if (!PQgetisnull(res, 0, V_ASLEEP)) {
        spate_find(list, SPATE_FINDING_WARNING, "failover-waits",
                   "synchronized_standby_slots names %s, which no standby reads at this moment",
                   PQgetvalue(res, 0, V_ASLEEP));
        spate_find_why(list, "the source sends the connector nothing until that standby is back (P74)");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "start that standby; or take its slot out of synchronized_standby_slots and reload");
    }
    judge_standbys(res, list);
}

enum spate_rc spate_failover_check(PGconn *sql, const struct spate_connector_config *config,
                                   struct spate_findings *list, struct spate_err *err)
{
    const char *values[] = {config->source.slot};
    PGresult *res = NULL;
    enum spate_rc rc;

    if (PQserverVersion(sql) < SINCE)
        return SPATE_OK;
    rc = spate_pg_exec_params(sql, look_sql, 1, values, PGRES_TUPLES_OK, &res, err);
    if (rc != SPATE_OK)
        return rc;
    if (config->source.failover) {
        judge(res, config, list);
    } else if (strcmp(PQgetvalue(res, 0, V_KEEPERS), "0") != 0 && PQgetvalue(res, 0, V_FAILOVER)[0] != 't') {
        spate_find(list, SPATE_FINDING_NOTE, "failover-off",
                   "there are standbys, and source.postgres.failover is false");
        spate_find_why(list,
                       "when one of them is promoted the slot is gone, and every sink copies anew (P73)");
        spate_find_fix(list, SPATE_MEND_FILE, "source.postgres.failover: true");
    }
    PQclear(res);
    return SPATE_OK;
}

enum spate_rc spate_failover_mark(struct spate_replication *repl, const struct spate_connector_config *config,
                                  const struct spate_source_state *state, struct spate_err *err)
{
    struct spate_buf text = {0};
    enum spate_rc rc;

    if (!config->source.failover || !config->source.create || !state->slot.exists || state->slot.failover ||
        state->slot.active_pid || PQserverVersion(repl->conn) < SINCE)
        return SPATE_OK;
    spate_buf_puts(&text, "ALTER_REPLICATION_SLOT ");
    spate_pg_ident(&text, spate_slice_str(config->source.slot));
    spate_buf_puts(&text, " (FAILOVER true)");
    rc = spate_pg_exec(repl->conn, spate_buf_str(&text), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&text);
    if (rc == SPATE_OK)
        spate_log(SPATE_LOG_INFO, "slot-failover", "slot=%s text=\"standbys may keep it in step now\"",
                  config->source.slot);
    return rc;
}

/* ---- afterwards ---- */

uint64_t spate_failover_fork(const char *history, uint32_t timeline)
{
    while (*history) {
        char *rest;
        unsigned long parent = strtoul(history, &rest, 10);
        size_t line = strcspn(history, "\n");
        char lsn[SPATE_PG_LSN_TEXT + 1];
        uint64_t end;

        if (rest != history && parent == timeline) {
            rest += strspn(rest, "\t ");
            snprintf(lsn, sizeof lsn, "%.*s", (int)strcspn(rest, "\t \n"), rest);
            return spate_pg_lsn_parse(lsn, &end) ? end : 0;
        }
        history += line + (history[line] != '\0');
    }
    return 0;
}

enum spate_rc spate_failover_look(struct spate_replication *repl, uint32_t timeline,
                                  struct spate_source_state *state, struct spate_err *err)
{
    PGresult *res = NULL;
    char command[40];
    enum spate_rc rc;

    state->fork = 0;
    if (state->timeline <= timeline || timeline == 0)
        return SPATE_OK;
    snprintf(command, sizeof command, "TIMELINE_HISTORY %" PRIu32, state->timeline);
    rc = spate_pg_exec(repl->conn, command, PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK && PQntuples(res) == 1 && PQnfields(res) == 2)
        state->fork = spate_failover_fork(PQgetvalue(res, 0, 1), timeline);
    PQclear(res);
    if (rc != SPATE_OK && strcmp(err->sqlstate, "58P01") == 0) {
        *err = (struct spate_err){0}; /* the file is gone: then nobody knows, and the judge fences */
        return SPATE_OK;
    }
    return rc;
}
