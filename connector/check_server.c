/* connector/check_server.c - the source's settings, the role, and room for one more. */
#include "connector/check.h"

#include "connector/failover.h"
#include "core/alloc.h"
#include "pg/pg.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LEAST_KEEP_MIB 1024 /* a slot that may keep less is lost in an ordinary night */
#define ROLE_SOON_S    (14 * 86400)
#define ROLE_SESSIONS  4 /* stream, catalog, watch, and the one that admits requests; readers come on top */

/* The minors in which known data losses of logical decoding were fixed (P57). */
static void judge_version(const struct spate_server_facts *facts, struct spate_findings *list)
{
    static const struct {
        int major, minor;
    } least[] = {{14, 18}, {15, 13}, {16, 9}, {17, 5}};
    int major = facts->version / 10000, minor = facts->version % 10000;

    if (major < 14) {
        spate_find(list, SPATE_FINDING_ERROR, "server-version", "the server is PostgreSQL %d.%d", major,
                   minor);
        spate_find_why(list, "spate reads from PostgreSQL 14 on");
        spate_find_fix(list, SPATE_MEND_HAND, "upgrade the server");
    }
    for (size_t i = 0; i < SPATE_COUNT(least); i++) {
        if (major != least[i].major || minor >= least[i].minor)
            continue;
        spate_find(list, SPATE_FINDING_WARNING, "server-version", "the server is PostgreSQL %d.%d", major,
                   minor);
        spate_find_why(list,
                       "it can lose changes when a publication is altered or DDL runs beside open "
                       "transactions; fixed in %d.%d",
                       major, least[i].minor);
        spate_find_fix(list, SPATE_MEND_HAND, "install %d.%d or a later minor version", major,
                       least[i].minor);
    }
}

static void add_name(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

static void judge_role(const struct spate_server_facts *facts, const struct spate_connector_config *config,
                       struct spate_findings *list)
{
    int64_t sessions = ROLE_SESSIONS + config->snapshots.parallel;
    struct spate_buf role = {0};

    add_name(&role, facts->user);
    if (!facts->may_replicate) {
        spate_find(list, SPATE_FINDING_ERROR, "role-replication", "the source's role %s may not replicate",
                   spate_buf_str(&role));
        spate_find_why(list, "a slot can only be read by a role with REPLICATION (P65)");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER ROLE %s REPLICATION;", spate_buf_str(&role));
    }
    if (facts->superuser) {
        spate_find(list, SPATE_FINDING_NOTE, "role-superuser", "role %s is a superuser",
                   spate_buf_str(&role));
        spate_find_why(list, "LOGIN, REPLICATION and SELECT are enough");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "a role of its own for the connector: README.md has its "
                       "GRANT lines");
    }
    if (facts->role_connections >= 0 && facts->role_connections < sessions) {
        spate_find(list, SPATE_FINDING_WARNING, "role-connections",
                   "role %s may have %" PRId64 " connections", spate_buf_str(&role), facts->role_connections);
        spate_find_why(list, "the connector has up to %" PRId64 ", with snapshots.parallel: %" PRId64,
                       sessions, config->snapshots.parallel);
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER ROLE %s CONNECTION LIMIT %" PRId64 ";",
                       spate_buf_str(&role), sessions + 2);
    }
    if (facts->role_expires_s < ROLE_SOON_S) {
        spate_find(list, SPATE_FINDING_WARNING, "role-expires",
                   "the password of role %s expires in %" PRId64 " days", spate_buf_str(&role),
                   facts->role_expires_s / 86400);
        spate_find_why(list, "from then on the connector is refused, and its slot keeps WAL (P67)");
        spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER ROLE %s VALID UNTIL 'infinity';",
                       spate_buf_str(&role));
    }
    spate_buf_fini(&role);
}

bool spate_check_is_standby_name(const char *names, const char *application)
{
    static const char stops[] = " \t\n,()";

    while (*names) {
        size_t len;

        names += strspn(names, stops);
        if (*names == '"') {
            char plain[256];
            size_t used = 0;

            for (names++; *names && (*names != '"' || names[1] == '"'); names++) {
                names += *names == '"';
                if (used + 1 < sizeof plain)
                    plain[used++] = *names;
            }
            plain[used] = '\0';
            names += *names == '"';
            if (strcasecmp(plain, application) == 0)
                return true;
            continue;
        }
        len = strcspn(names, stops);
        if ((len == 1 && *names == '*') ||
            (len > 0 && len == strlen(application) && strncasecmp(names, application, len) == 0))
            return true;
        names += len;
    }
    return false;
}

static void judge_commits(const struct spate_server_facts *facts, struct spate_findings *list)
{
    if (facts->sync_standbys[0] && spate_check_is_standby_name(facts->sync_standbys, facts->application)) {
        spate_find(list, SPATE_FINDING_WARNING, "synchronous-standby",
                   "synchronous_standby_names = '%s' matches this connector (application_name %s)",
                   facts->sync_standbys, facts->application);
        spate_find_why(list, "the source's commits then wait until the bus has made them durable, and hang "
                             "while the connector is down (P11)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET synchronous_standby_names = 'standby1'; SELECT pg_reload_conf(); "
                       "-- with the names of your standbys, or '' where there is none");
    }
    if (strcmp(facts->commit, "off") == 0) {
        spate_find(list, SPATE_FINDING_WARNING, "synchronous-commit", "synchronous_commit = off");
        spate_find_why(list, "changes arrive about 100 ms late, when the source's WAL writer flushes (P98)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET synchronous_commit = 'on'; SELECT pg_reload_conf(); -- or live "
                       "with it; a role's or database's own setting counts, too");
    }
}

static void judge_wal(const struct spate_server_facts *facts, struct spate_findings *list)
{
    if (strcmp(facts->wal_level, "logical") != 0) {
        spate_find(list, SPATE_FINDING_ERROR, "wal-level", "the source has wal_level = %s", facts->wal_level);
        spate_find_why(list, "changes can only be read with wal_level = logical; once a slot is there, the "
                             "server does not start with less (P63)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server");
    }
    if (facts->keep_mib < 0) {
        spate_find(list, SPATE_FINDING_WARNING, "slot-unlimited", "max_slot_wal_keep_size is not limited");
        spate_find_why(list, "while this connector is down its slot keeps WAL until the source's disk is "
                             "full; beyond a limit the slot is lost instead, and sinks copy anew");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); -- what "
                       "the disk can spare");
    } else if (facts->keep_mib < LEAST_KEEP_MIB) {
        spate_find(list, SPATE_FINDING_WARNING, "slot-limit-small", "max_slot_wal_keep_size = %" PRId64 " MB",
                   facts->keep_mib);
        spate_find_why(list, "an outage during which the source writes more than that loses the slot, and "
                             "every sink copies anew");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); -- what "
                       "the disk can spare");
    }
    if (facts->sender_timeout_ms == 0) {
        spate_find(list, SPATE_FINDING_WARNING, "wal-sender-timeout", "wal_sender_timeout = 0");
        spate_find_why(list, "the source never notices a dead connection, and a crashed connector's slot "
                             "stays busy until TCP gives up; the connector keeps a timer of its own (P9)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();");
    }
    if (facts->idle_slot_ms > 0) {
        spate_find(list, SPATE_FINDING_WARNING, "slot-idle-timeout",
                   "idle_replication_slot_timeout = %" PRId64 " s", facts->idle_slot_ms / 1000);
        spate_find_why(list, "when the connector is away for longer, the server takes the slot away, and "
                             "every sink copies anew (P61)");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); -- "
                       "max_slot_wal_keep_size guards the disk");
    }
}

/* They are waited for, so that neither is an error (P64). */
static void judge_room(const struct spate_server_facts *facts, struct spate_findings *list)
{
    if (!facts->slot_exists && facts->slots >= facts->slots_most) {
        spate_find(list, SPATE_FINDING_WARNING, "slots-used-up",
                   "all %" PRId64 " replication slots of the server are in use (max_replication_slots)",
                   facts->slots_most);
        spate_find_why(list, "the connector's slot cannot be made: it waits until one is free");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET max_replication_slots = %" PRId64 "; -- then restart the server",
                       facts->slots_most + 10);
    }
    if (facts->senders >= facts->senders_most) {
        spate_find(list, SPATE_FINDING_WARNING, "senders-used-up",
                   "all %" PRId64 " WAL senders of the server are in use (max_wal_senders)",
                   facts->senders_most);
        spate_find_why(list, "one that comes has to wait until another one goes");
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "ALTER SYSTEM SET max_wal_senders = %" PRId64 "; -- then restart the server",
                       facts->senders_most + 10);
    }
}

static void judge_kind(const struct spate_server_facts *facts, struct spate_findings *list)
{
    if (strcmp(facts->encoding, "SQL_ASCII") == 0) {
        spate_find(list, SPATE_FINDING_NOTE, "server-encoding", "the database's encoding is SQL_ASCII");
        spate_find_why(list, "its bytes mean nothing in particular: those that are no UTF-8 travel as "
                             "{\"$bytes\": BASE64} (P83)");
    }
    if (facts->standby && facts->version < 160000) {
        spate_find(list, SPATE_FINDING_ERROR, "standby", "the source is a standby of version %d",
                   facts->version / 10000);
        spate_find_why(list, "before version 16 changes can be read on a primary only (P77)");
        spate_find_fix(list, SPATE_MEND_FILE, "source.postgres.url: the primary");
    } else if (facts->standby) {
        spate_find(list, SPATE_FINDING_NOTE, "standby", "the source is a standby");
        spate_find_why(list,
                       "publications are made on the primary; making the slot waits until the primary "
                       "writes (SELECT pg_log_standby_snapshot() there), and replication conflicts can take "
                       "the slot away unless hot_standby_feedback is on (P77)");
    }
}

void spate_check_judge_server(const struct spate_server_facts *facts,
                              const struct spate_connector_config *config, struct spate_findings *list)
{
    judge_version(facts, list);
    judge_wal(facts, list);
    judge_role(facts, config, list);
    judge_kind(facts, list);
    judge_commits(facts, list);
    judge_room(facts, list);
    spate_failover_judge_server(facts->version, facts->standby, config, list);
}

/* ---- looking ---- */

static const char facts_sql[] =
    "SELECT pg_catalog.current_setting('wal_level'), current_user,"
    " r.rolreplication OR r.rolsuper, r.rolsuper, r.rolconnlimit,"
    " CASE WHEN pg_catalog.isfinite(r.rolvaliduntil)"
    "  THEN extract(epoch FROM r.rolvaliduntil - pg_catalog.now())::bigint END,"
    " pg_catalog.current_setting('synchronous_standby_names'),"
    " (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'max_slot_wal_keep_size'),"
    " (SELECT s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'wal_sender_timeout'),"
    " pg_catalog.current_setting('synchronous_commit'), pg_catalog.current_setting('application_name'),"
    " pg_catalog.current_setting('server_encoding'), pg_catalog.pg_is_in_recovery(),"
    " (SELECT count(*) FROM pg_catalog.pg_replication_slots),"
    " pg_catalog.current_setting('max_replication_slots'),"
    " (SELECT count(*) FROM pg_catalog.pg_stat_replication p WHERE p.application_name IS DISTINCT FROM"
    "  pg_catalog.current_setting('application_name')),"
    " pg_catalog.current_setting('max_wal_senders'),"
    " EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1),"
    " (SELECT s.setting::bigint * CASE s.unit WHEN 'min' THEN 60000 WHEN 's' THEN 1000 ELSE 1 END"
    "  FROM pg_catalog.pg_settings s WHERE s.name = 'idle_replication_slot_timeout')"
    " FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";

static int64_t number(const PGresult *res, int column, int64_t none)
{
    return PQgetisnull(res, 0, column) ? none : strtoll(PQgetvalue(res, 0, column), NULL, 10);
}

static bool truth(const PGresult *res, int column)
{
    return PQgetvalue(res, 0, column)[0] == 't';
}

/* P78, P79: what the role or the database sets for sessions, and ours overrides. Good to know when a session
 * by hand behaves otherwise. */
static enum spate_rc find_settings(PGconn *sql, struct spate_findings *list, struct spate_err *err)
{
    static const char settings_sql[] =
        "SELECT DISTINCT c FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c"
        " WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname ="
        " pg_catalog.current_database())) AND s.setrole IN (0, (SELECT r.oid FROM pg_catalog.pg_roles r WHERE"
        " r.rolname = current_user)) AND pg_catalog.lower(pg_catalog.split_part(c, '=', 1)) = ANY"
        " ('{statement_timeout,lock_timeout,idle_in_transaction_session_timeout,idle_session_timeout,"
        "transaction_timeout,datestyle,intervalstyle,extra_float_digits,bytea_output,timezone,lc_monetary,"
        "search_path,client_encoding}') ORDER BY 1";
    PGresult *res = NULL;
    struct spate_buf all = {0};
    enum spate_rc rc = spate_pg_exec(sql, settings_sql, PGRES_TUPLES_OK, &res, err);

    for (int row = 0; rc == SPATE_OK && row < PQntuples(res); row++)
        spate_buf_printf(&all, "%s%s", row ? ", " : "", PQgetvalue(res, row, 0));
    if (all.len > 0) {
        spate_find(list, SPATE_FINDING_NOTE, "session-settings",
                   "the role's or database's settings are overridden: %s", spate_buf_str(&all));
        spate_find_why(list, "the text of values and the length of readings must not depend on them (P78, "
                             "P79)");
    }
    PQclear(res);
    spate_buf_fini(&all);
    return rc;
}

enum spate_rc spate_check_server(PGconn *sql, const struct spate_connector_config *config,
                                 struct spate_findings *list, struct spate_err *err)
{
    const char *values[] = {config->source.slot};
    struct spate_server_facts facts;
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec_params(sql, facts_sql, 1, values, PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    facts = (struct spate_server_facts){
        .version = PQserverVersion(sql),
        .wal_level = PQgetvalue(res, 0, 0),
        .user = PQgetvalue(res, 0, 1),
        .may_replicate = truth(res, 2),
        .superuser = truth(res, 3),
        .role_connections = truth(res, 3) ? -1 : number(res, 4, -1),
        .role_expires_s = number(res, 5, INT64_MAX),
        .sync_standbys = PQgetvalue(res, 0, 6),
        .keep_mib = number(res, 7, -1),
        .sender_timeout_ms = number(res, 8, -1),
        .commit = PQgetvalue(res, 0, 9),
        .application = PQgetvalue(res, 0, 10),
        .encoding = PQgetvalue(res, 0, 11),
        .standby = truth(res, 12),
        .slots = number(res, 13, 0),
        .slots_most = number(res, 14, 0),
        .senders = number(res, 15, 0),
        .senders_most = number(res, 16, 0),
        .slot_exists = truth(res, 17),
        .idle_slot_ms = number(res, 18, 0),
    };
    spate_check_judge_server(&facts, config, list);
    PQclear(res);
    rc = spate_failover_check(sql, config, list, err);
    return rc == SPATE_OK ? find_settings(sql, list, err) : rc;
}
