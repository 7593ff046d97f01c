/* connector/check_slot.c - the slot: is it ours to read, can it still be read, and what does it keep? */
#include "connector/check.h"

#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    S_PLUGIN,
    S_DATABASE,
    S_HERE, /* current_database() */
    S_TEMPORARY,
    S_ACTIVE_PID,
    S_ACTIVE_USER,
    S_ACTIVE_APPLICATION,
    S_OURS,
    S_STATUS,
    S_WHY,
    S_RETAINED,
    S_SAFE,
    S_XMIN_AGE,
    S_FREEZE_AGE
};

/* %s: what versions from 16 and 17 on say of an invalidated slot (P60, P61). */
static const char slot_sql[] =
    "SELECT coalesce(s.plugin, 'physical'), coalesce(s.database, ''), pg_catalog.current_database(),"
    " s.temporary, s.active_pid, coalesce(a.usename, '?'), coalesce(a.application_name, '?'),"
    " a.application_name = pg_catalog.current_setting('application_name'), coalesce(s.wal_status, ''), %s,"
    " pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() THEN"
    "  pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END, s.restart_lsn)"
    "  ::bigint, s.safe_wal_size, pg_catalog.age(s.catalog_xmin),"
    " pg_catalog.current_setting('autovacuum_freeze_max_age')"
    " FROM pg_catalog.pg_replication_slots s"
    " LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1";

static const char *cell(const PGresult *res, int column)
{
    return PQgetvalue(res, 0, column);
}

static int64_t number(const PGresult *res, int column)
{
    return PQgetisnull(res, 0, column) ? -1 : strtoll(cell(res, column), NULL, 10);
}

static void missing(const struct spate_connector_config *config, bool published, struct spate_findings *list)
{
    struct spate_buf slot = {0};

    spate_pg_literal(&slot, spate_slice_str(config->source.slot));
    spate_find(list, config->source.create ? SPATE_FINDING_NOTE : SPATE_FINDING_ERROR,
               config->source.create ? "slot-will-be-made" : "slot-missing",
               "replication slot %s does not exist", spate_buf_str(&slot));
    spate_find_why(list, "%s",
                   config->source.create
                       ? "the connector makes it at its first start; that waits for transactions that are "
                         "open (P70). If there was one, its stream is broken: spate connector says how to go "
                         "on"
                       : "the place up to which changes were read is kept there, and source.postgres.create "
                         "is false");
    if (!config->source.create)
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "SELECT pg_create_logical_replication_slot(%s, 'pgoutput');%s", spate_buf_str(&slot),
                       published ? "" : " -- once the publication is there");
    spate_buf_fini(&slot);
}

/* Could it ever be read as configured? */
static bool judge_kind(const PGresult *res, const char *slot, struct spate_findings *list)
{
    if (strcmp(cell(res, S_PLUGIN), "pgoutput") != 0) {
        spate_find(list, SPATE_FINDING_ERROR, "slot-plugin", "replication slot \"%s\" uses the plugin \"%s\"",
                   slot, cell(res, S_PLUGIN));
        spate_find_why(list, "spate reads pgoutput; another program may need this one");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "SELECT pg_drop_replication_slot('%s'); -- if nobody needs it; else another name in "
                       "source.postgres.slot",
                       slot);
    } else if (strcmp(cell(res, S_DATABASE), cell(res, S_HERE)) != 0) {
        spate_find(list, SPATE_FINDING_ERROR, "slot-database",
                   "replication slot \"%s\" belongs to database \"%s\", and the url names \"%s\"", slot,
                   cell(res, S_DATABASE), cell(res, S_HERE));
        spate_find_why(list, "a slot is read in its own database alone (P66)");
        spate_find_fix(list, SPATE_MEND_FILE,
                       "source.postgres.slot: another name; or the other database in "
                       "the url");
    } else if (cell(res, S_TEMPORARY)[0] == 't') {
        spate_find(list, SPATE_FINDING_ERROR, "slot-temporary", "replication slot \"%s\" is temporary", slot);
        spate_find_why(list, "it belongs to one session and vanishes with it");
        spate_find_fix(list, SPATE_MEND_FILE, "source.postgres.slot: another name");
    } else {
        return true;
    }
    return false;
}

static void judge_reader(const PGresult *res, const char *slot, struct spate_findings *list)
{
    if (PQgetisnull(res, 0, S_ACTIVE_PID))
        return;
    if (cell(res, S_OURS)[0] == 't') {
        spate_find(list, SPATE_FINDING_NOTE, "slot-active", "this connector is running (server process %s)",
                   cell(res, S_ACTIVE_PID));
        return;
    }
    spate_find(list, SPATE_FINDING_WARNING, "slot-active",
               "replication slot \"%s\" is in use by server process %s (user %s, application %s)", slot,
               cell(res, S_ACTIVE_PID), cell(res, S_ACTIVE_USER), cell(res, S_ACTIVE_APPLICATION));
    spate_find_why(list, "a slot has one reader: the connector would wait (P62)");
    spate_find_fix(list, SPATE_MEND_SOURCE,
                   "SELECT pg_terminate_backend(%s); -- stop that program first, or give one of the two a "
                   "slot of its own",
                   cell(res, S_ACTIVE_PID));
}

static void judge_lost(const PGresult *res, const struct spate_connector_config *config,
                       struct spate_findings *list)
{
    const char *slot = config->source.slot;

    spate_find(list, SPATE_FINDING_ERROR, "slot-lost",
               "replication slot \"%s\" was invalidated by the server (wal_status %s%s%s)", slot,
               cell(res, S_STATUS), cell(res, S_WHY)[0] ? ", reason " : "", cell(res, S_WHY));
    spate_find_why(list, "the WAL that it stood at is gone: the stream cannot go on without a gap (P60)");
    if (config->source.create)
        spate_find_fix(list, SPATE_MEND_SHELL, "spate connector -c '%s' --new-epoch",
                       config->path ? config->path : "FILE");
    else
        spate_find_fix(
            list, SPATE_MEND_SOURCE,
            "SELECT pg_drop_replication_slot('%s'); SELECT "
            "pg_create_logical_replication_slot('%s', 'pgoutput'); -- then spate connector -c FILE "
            "--new-epoch",
            slot, slot);
}

static void judge_retained(const PGresult *res, const struct spate_connector_config *config,
                           struct spate_findings *list)
{
    const int64_t retained = number(res, S_RETAINED), safe = number(res, S_SAFE);
    const char *slot = config->source.slot, *status = cell(res, S_STATUS);
    const bool danger = strcmp(status, "unreserved") == 0;
    const bool much = retained > config->source.retained_warning_bytes;
    char room[80] = "";

    if (safe >= 0)
        snprintf(room, sizeof room, ", %" PRId64 " MiB until max_slot_wal_keep_size", safe >> 20);
    spate_find(list, danger || much ? SPATE_FINDING_WARNING : SPATE_FINDING_NOTE,
               danger ? "slot-unreserved"
               : much ? "slot-retains"
                      : "slot",
               "replication slot \"%s\" keeps %" PRId64 " MiB of WAL (wal_status %s%s)", slot,
               retained > 0 ? retained >> 20 : 0, status, room);
    if (danger)
        spate_find_why(list, "the next checkpoint may take it away, and every sink copies anew (P60)");
    else if (much)
        spate_find_why(list,
                       "the source cannot remove what the connector has not confirmed; "
                       "retained_warning is %" PRId64 " MiB",
                       config->source.retained_warning_bytes >> 20);
    if (danger || much)
        spate_find_fix(list, SPATE_MEND_HAND,
                       "start the connector and see why it is behind; a slot that nobody needs: spate "
                       "connector -c FILE --drop");
}

/* P72: a slot that is not read holds back the catalogs' vacuum as well. */
static void judge_xmin(const PGresult *res, const char *slot, struct spate_findings *list)
{
    const int64_t age = number(res, S_XMIN_AGE), most = number(res, S_FREEZE_AGE);

    if (age < 0 || most <= 0 || age < most / 2)
        return;
    spate_find(list, SPATE_FINDING_WARNING, "slot-catalog-xmin",
               "replication slot \"%s\" holds back the catalogs: its catalog_xmin is %" PRId64
               " transactions old",
               slot, age);
    spate_find_why(list,
                   "vacuum cannot clean the system catalogs beyond it, and autovacuum_freeze_max_age is "
                   "%" PRId64,
                   most);
    spate_find_fix(list, SPATE_MEND_HAND,
                   "start the connector; a slot that nobody needs: spate connector -c "
                   "FILE --drop");
}

enum spate_rc spate_check_slot(PGconn *sql, const struct spate_connector_config *config, bool published,
                               struct spate_findings *list, struct spate_err *err)
{
    const char *slot = config->source.slot;
    int version = PQserverVersion(sql);
    struct spate_buf text = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    spate_buf_printf(&text, slot_sql,
                     version >= 170000   ? "coalesce(s.invalidation_reason, '')"
                     : version >= 160000 ? "CASE WHEN s.conflicting THEN 'conflict with recovery' ELSE '' END"
                                         : "''");
#pragma GCC diagnostic pop
    rc = spate_pg_exec_params(sql, spate_buf_str(&text), 1, &slot, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&text);
    if (rc != SPATE_OK)
        return rc;
    if (PQntuples(res) == 0) {
        missing(config, published, list);
    } else if (judge_kind(res, slot, list)) {
        judge_reader(res, slot, list);
        if (strcmp(cell(res, S_STATUS), "lost") == 0 || cell(res, S_WHY)[0])
            judge_lost(res, config, list);
        else
            judge_retained(res, config, list);
        judge_xmin(res, slot, list);
    }
    PQclear(res);
    return SPATE_OK;
}
