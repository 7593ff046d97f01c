#include "sinks/store.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/fact.h"
#include "sinks/status.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void spate_store_init(struct spate_store *store, const struct spate_sink_config *config)
{
    struct spate_buf schema = {0};

    *store = (struct spate_store){.config = config};
    store->ready = spate_zalloc((config->tables.count + 1) * sizeof *store->ready);
    spate_pg_ident(&schema, spate_slice_str(config->into.schema));
    store->schema = spate_strndup(schema.data, schema.len);
    spate_buf_fini(&schema);
}

void spate_store_fini(struct spate_store *store)
{
    spate_store_close(store);
    free(store->schema);
    free(store->ready);
    free(store->skips);
    store->schema = NULL;
    store->ready = NULL;
    store->skips = NULL;
    store->skip_count = 0;
}

void spate_store_close(struct spate_store *store)
{
    PQfinish(store->conn);
    store->conn = NULL;
}

/* Position and rows are committed together, so a crash of the target that forgets the last commits forgets
 * both (T5).
 *
 * Plans must not depend on statistics: staged rows have none, and those of a table that just grew, or is full
 * of dead rows, are wrong (T34: scanning all of the target for each staged row took minutes). A bitmap scan
 * always has an index condition, so with every other path forbidden rows are found by the key. The planner
 * does without it for a table of one row; so each execution is planned anew, when it sees how large the table
 * is now. */
static const char pin_sql[] =
    "SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off; "
    "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET jit = off; "
    "SET plan_cache_mode = force_custom_plan; SET synchronous_commit = off; "
    "SET standard_conforming_strings = on; SET transform_null_equals = off; SET lock_timeout = '60s'; "
    "SET default_transaction_isolation = 'read committed'; SET xmloption = content; "
    "SET client_min_messages = warning";

static enum spate_rc pin(struct spate_store *store, struct spate_err *err)
{
    static const char path_sql[] = "SELECT DISTINCT quote_ident(n.nspname) FROM pg_catalog.pg_extension e "
                                   "JOIN pg_catalog.pg_namespace n "
                                   "ON n.oid = e.extnamespace WHERE n.nspname <> 'pg_catalog' ORDER BY 1";
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    rc = spate_pg_exec(store->conn, pin_sql, PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_OK)
        rc = spate_pg_exec(store->conn, path_sql, PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK) {
        spate_buf_printf(&sql, "SET search_path = pg_catalog, %s", store->schema);
        for (int i = 0; i < PQntuples(res); i++)
            if (strcmp(PQgetvalue(res, i, 0), store->schema) != 0)
                spate_buf_printf(&sql, ", %s", PQgetvalue(res, i, 0));
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

static enum spate_rc connect_target(struct spate_store *store, struct spate_err *err)
{
    char name[64];
    struct spate_pg_where where = {
        .what = "target",
        .url = store->config->into.url,
        .password_env = store->config->into.password_env,
        .password_file = store->config->into.password_file,
        .application_name = name,
    };
    enum spate_rc rc;

    snprintf(name, sizeof name, "spate sink %s", store->config->name);
    spate_store_close(store);
    rc = spate_pg_connect(&where, 10000, &store->conn, err);
    if (rc != SPATE_OK)
        return rc;
    store->serial++;
    return pin(store, err);
}

static enum spate_rc make_schema(struct spate_store *store, struct spate_err *err)
{
    const char *values[] = {store->config->into.schema};
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc =
        spate_pg_exec_params(store->conn, "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", 1,
                             values, PGRES_TUPLES_OK, &res, err);

    if (rc == SPATE_OK && PQntuples(res) == 0) {
        spate_buf_printf(&sql, "CREATE SCHEMA IF NOT EXISTS %s", store->schema);
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
        if (rc == SPATE_FAIL && strcmp(err->sqlstate, "42501") == 0) {
            err->exit_code = SPATE_EXIT_REFUSED;
            rc = spate_fail(err, SPATE_FATAL,
                            "target schema %s does not exist and role %s may not make it: as its owner run "
                            "CREATE SCHEMA %s AUTHORIZATION %s",
                            store->schema, PQuser(store->conn), store->schema, PQuser(store->conn));
        }
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

/* What is known of a table's snapshots (sinks/load.h). */
#define LOAD_COLUMNS(next)                                                                                   \
    "snapshotted boolean NOT NULL DEFAULT false" next "projection text" next "load_kind text" next           \
    "request text" next "chunk bigint" next "resume text" next "ranges bigint" next "outdated text" next     \
    "fitted bigint" next "copy text"

/* Asked for first: CREATE TABLE IF NOT EXISTS wants the right to create even where there is nothing to do. */
static enum spate_rc make_tables(struct spate_store *store, struct spate_err *err)
{
    const char *values[] = {store->config->into.schema};
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    rc = spate_pg_exec_params(
        store->conn,
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND "
        "a.attname IN ('skipped', 'copy') AND NOT a.attisdropped) "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = "
        "c.relnamespace WHERE n.nspname = $1 AND c.relname IN ('spate_sink', 'spate_table') ORDER BY "
        "c.relname",
        1, values, PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK && PQntuples(res) < 2) {
        /* One hot row per sink: room for HOT updates on its page, and early vacuum (T28). */
        spate_buf_printf(
            &sql,
            "CREATE TABLE IF NOT EXISTS %s.spate_sink (sink text PRIMARY KEY, generation bigint NOT NULL, "
            "source text NOT NULL, log_id text, epoch bigint, epoch_uuid text, n bigint, pos text, "
            "bus_position text, owner text, applied bigint NOT NULL DEFAULT 0, "
            "duplicates bigint NOT NULL DEFAULT 0, holes bigint NOT NULL DEFAULT 0, "
            "missing bigint NOT NULL DEFAULT 0, updated timestamptz, "
            "skipped text[] NOT NULL DEFAULT '{}') WITH (fillfactor = 50, "
            "autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0); "
            "CREATE TABLE IF NOT EXISTS %s.spate_table (table_name text PRIMARY KEY, sink text NOT NULL, "
            "source text NOT NULL, "
            "ready boolean NOT NULL DEFAULT false, " LOAD_COLUMNS(", ") ")",
            store->schema, store->schema);
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
        if (rc == SPATE_FAIL && strcmp(err->sqlstate, "42501") == 0) {
            err->exit_code = SPATE_EXIT_REFUSED;
            rc = spate_fail(
                err, SPATE_FATAL,
                "role %s may not create the sink's position tables in target schema %s: as its owner run "
                "GRANT USAGE, CREATE ON SCHEMA %s TO %s",
                PQuser(store->conn), store->schema, store->schema, PQuser(store->conn));
        }
    } else if (rc == SPATE_OK && (PQgetvalue(res, 0, 0)[0] != 't' || PQgetvalue(res, 1, 0)[0] != 't')) {
        spate_buf_printf(/* made by an older version */
                         &sql,
                         "ALTER TABLE %s.spate_sink ADD COLUMN IF NOT EXISTS skipped text[] NOT NULL DEFAULT "
                         "'{}'; "
                         "ALTER TABLE %s.spate_table ADD COLUMN IF NOT EXISTS " LOAD_COLUMNS(
                             ", ADD COLUMN IF NOT EXISTS "),
                         store->schema, store->schema);
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

/* What the advisory lock of this sink hashes. */
static void lock_name(const struct spate_store *store, struct spate_buf *out)
{
    spate_buf_printf(out, "spate sink %s.%s", store->config->into.schema, store->config->name);
}

/* Names the owner, as far as the target knows it. */
static void log_owner(struct spate_store *store, const char *key)
{
    static const char sql[] =
        "SELECT coalesce((SELECT string_agg(pid::text, ' ') FROM pg_catalog.pg_locks WHERE locktype = "
        "'advisory' AND "
        "granted AND objsubid = 1 AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = "
        "current_database()) AND ((classid::bigint << 32) | objid::bigint) = hashtextextended($1, 0)), "
        "'unknown')";
    struct spate_buf owner_sql = {0};
    const char *values[] = {key}, *names[] = {store->config->name};
    PGresult *pid = NULL, *owner = NULL;
    struct spate_err ignored = {0};
    char quoted[SPATE_FACT_MAX];

    spate_buf_printf(&owner_sql, "SELECT coalesce(owner, '') FROM %s.spate_sink WHERE sink = $1",
                     store->schema);
    if (spate_pg_exec_params(store->conn, sql, 1, values, PGRES_TUPLES_OK, &pid, &ignored) == SPATE_OK &&
        spate_pg_exec_params(store->conn, spate_buf_str(&owner_sql), 1, names, PGRES_TUPLES_OK, &owner,
                             &ignored) == SPATE_OK)
        spate_log(
            SPATE_LOG_WARN, "waiting-for-owner", "owner=%s backend_pid=%s",
            spate_log_quote(quoted, sizeof quoted, PQntuples(owner) ? PQgetvalue(owner, 0, 0) : "unknown"),
            PQgetvalue(pid, 0, 0));
    PQclear(pid);
    PQclear(owner);
    spate_buf_fini(&owner_sql);
}

/* One process owns a sink name: the second one waits, and says for whom. */
static enum spate_rc lock_sink(struct spate_store *store, struct spate_err *err)
{
    struct spate_log_limit limit = {0};
    struct spate_buf key = {0};
    enum spate_rc rc;

    lock_name(store, &key);
    for (;;) {
        const char *values[] = {spate_buf_str(&key)};
        PGresult *res = NULL;
        bool ours;
        unsigned hidden;
        struct pollfd stop = {.fd = spate_signals_fd(), .events = POLLIN};

        rc = spate_pg_exec_params(store->conn, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", 1,
                                  values, PGRES_TUPLES_OK, &res, err);
        ours = rc == SPATE_OK && PQgetvalue(res, 0, 0)[0] == 't';
        PQclear(res);
        if (rc != SPATE_OK || ours)
            break;
        spate_sink_status_state(store->config->status, SPATE_SINK_WAITING_OWNER, NULL);
        if (spate_log_due(&limit, spate_clock_ms(), 30000, &hidden))
            log_owner(store, values[0]);
        poll(&stop, 1, 500);
        if (spate_signals_stop()) {
            rc = SPATE_END;
            break;
        }
    }
    spate_buf_fini(&key);
    return rc;
}

static bool parse_pos(const char *text, struct spate_pos *pos)
{
    unsigned long long lsn;
    unsigned ordinal;

    if (sscanf(text, "%16llX.%8X", &lsn, &ordinal) != 2)
        return false;
    *pos = (struct spate_pos){lsn, ordinal};
    return true;
}

enum {
    COL_GENERATION,
    COL_EPOCH,
    COL_UUID,
    COL_N,
    COL_POS,
    COL_BUS,
    COL_LOG,
    COL_APPLIED,
    COL_DUP,
    COL_HOLES,
    COL_MISSING,
    COL_SOURCE,
    COL_SKIPPED
};

static void keep_skip(struct spate_store *store, struct spate_bus_pos pos)
{
    store->skips = spate_realloc(store->skips, (store->skip_count + 1) * sizeof *store->skips);
    store->skips[store->skip_count++] = pos;
}

/* Positions with spaces between them. One of another kind of bus means nothing here. */
static void read_skips(struct spate_store *store, const char *text)
{
    store->skip_count = 0;
    while (*text) {
        const size_t len = strcspn(text, " ");
        char one[SPATE_BUS_POS_TEXT];
        struct spate_bus_pos pos;
        struct spate_err ignored = {0};

        snprintf(one, sizeof one, "%.*s", (int)len, text);
        if (spate_bus_pos_parse(store->source_driver, one, &pos, &ignored) == SPATE_OK)
            keep_skip(store, pos);
        text += len + (text[len] == ' ');
    }
}

static enum spate_rc read_mark(struct spate_store *store, const PGresult *res, struct spate_err *err)
{
    struct spate_mark *mark = &store->mark;

    store->counts = (struct spate_counts){
        .applied = strtoull(PQgetvalue(res, 0, COL_APPLIED), NULL, 10),
        .duplicates = strtoull(PQgetvalue(res, 0, COL_DUP), NULL, 10),
        .holes = strtoull(PQgetvalue(res, 0, COL_HOLES), NULL, 10),
        .missing = strtoull(PQgetvalue(res, 0, COL_MISSING), NULL, 10),
    };
    read_skips(store, PQgetvalue(res, 0, COL_SKIPPED));
    store->stored = !PQgetisnull(res, 0, COL_EPOCH);
    *mark = (struct spate_mark){0};
    store->log_id[0] = 0;
    if (!store->stored)
        return SPATE_OK;
    mark->place.epoch = strtoull(PQgetvalue(res, 0, COL_EPOCH), NULL, 10);
    mark->place.n = strtoull(PQgetvalue(res, 0, COL_N), NULL, 10);
    snprintf(mark->uuid, sizeof mark->uuid, "%.36s", PQgetvalue(res, 0, COL_UUID));
    snprintf(store->log_id, sizeof store->log_id, "%.*s", (int)sizeof store->log_id - 1,
             PQgetvalue(res, 0, COL_LOG));
    if (!parse_pos(PQgetvalue(res, 0, COL_POS), &mark->place.pos) ||
        spate_bus_pos_parse(store->source_driver, PQgetvalue(res, 0, COL_BUS), &mark->at, err) != SPATE_OK) {
        if (store->restart) {
            store->stored = false;
            *err = (struct spate_err){0};
            return SPATE_OK;
        }
        err->exit_code = SPATE_EXIT_FENCED;
        return spate_fail(
            err, SPATE_FATAL,
            "the position of sink %s in %s.spate_sink cannot be read (pos '%.40s', bus_position '%.40s'): "
            "it belongs to another kind of bus or was edited. `spate sink -c %s --restart %s` begins "
            "anew",
            store->config->name, store->schema, PQgetvalue(res, 0, COL_POS), PQgetvalue(res, 0, COL_BUS),
            store->config->path, store->config->name);
    }
    return SPATE_OK;
}

#define MARK_COLUMNS                                                                                         \
    "generation, epoch, epoch_uuid, n, pos, bus_position, log_id, applied, duplicates, holes, missing, "     \
    "source, pg_catalog.array_to_string(skipped, ' ')"

/* Whoever holds the lock is the owner: a new generation, and the position as it stands now. The row's lock
 * waits for a predecessor's last transaction to end, whichever way. */
static enum spate_rc claim(struct spate_store *store, struct spate_err *err)
{
    struct spate_buf sql = {0};
    char owner[300], host[200] = "?";
    const char *values[] = {store->config->name, store->config->from, owner};
    PGresult *res = NULL;
    enum spate_rc rc;

    gethostname(host, sizeof host - 1);
    snprintf(owner, sizeof owner, "%s %ld", host, (long)getpid());
    spate_buf_printf(
        &sql,
        "INSERT INTO %s.spate_sink AS s (sink, generation, source, owner) VALUES ($1, 1, $2, $3) "
        "ON CONFLICT (sink) DO UPDATE SET generation = s.generation + 1, owner = EXCLUDED.owner "
        "RETURNING " MARK_COLUMNS,
        store->schema);
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 3, values, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&sql);
    if (rc == SPATE_OK) {
        store->generation = strtoll(PQgetvalue(res, 0, COL_GENERATION), NULL, 10);
        rc = read_mark(store, res, err);
    }
    if (rc == SPATE_OK && strcmp(PQgetvalue(res, 0, COL_SOURCE), store->config->from) != 0) {
        err->exit_code = SPATE_EXIT_REFUSED;
        rc = spate_fail(
            err, SPATE_FATAL,
            "%s: sink %s followed the stream of '%s' until now, the file says from: %s. Use another sink "
            "name for another source",
            store->config->path, store->config->name, PQgetvalue(res, 0, COL_SOURCE), store->config->from);
    }
    PQclear(res);
    return rc;
}

/* The guarded write of the position. No row: the division fails, and with it the whole batch. */
static enum spate_rc prepare_position(struct spate_store *store, struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    spate_buf_printf(
        &sql,
        "PREPARE spate_position (bigint, bigint, bigint, bigint, bigint, text, text, bigint, bigint, "
        "bigint, bigint, text, text) AS WITH moved AS (UPDATE %s.spate_sink SET epoch = $4, n = $5, pos = "
        "$6, bus_position = $7, applied = $8, duplicates = $9, holes = $10, missing = $11, epoch_uuid = "
        "$12, log_id = $13, updated = clock_timestamp() WHERE sink = ",
        store->schema);
    spate_pg_literal(&sql, spate_slice_str(store->config->name));
    spate_buf_puts(&sql,
                   " AND generation = $1 AND epoch IS NOT DISTINCT FROM $2 AND n IS NOT DISTINCT FROM $3 "
                   "RETURNING 1) SELECT 1 / count(*) FROM moved");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_store_open(struct spate_store *store, struct spate_err *err)
{
    enum spate_rc rc = connect_target(store, err);

    if (rc == SPATE_OK)
        rc = make_schema(store, err);
    if (rc == SPATE_OK)
        rc = make_tables(store, err);
    if (rc == SPATE_OK)
        rc = lock_sink(store, err);
    SPATE_FAILPOINT(sink_locked);
    if (rc == SPATE_OK)
        rc = claim(store, err);
    SPATE_FAILPOINT(sink_owned);
    if (rc == SPATE_OK)
        rc = prepare_position(store, err);
    if (rc != SPATE_OK)
        spate_store_close(store);
    return rc;
}

enum spate_rc spate_store_look(struct spate_store *store, struct spate_err *err)
{
    static const char there_sql[] =
        "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'skipped' "
        "WHERE n.nspname = $1 AND c.relname = 'spate_sink' AND has_schema_privilege(n.oid, 'USAGE') AND "
        "has_table_privilege(c.oid, 'SELECT')";
    const char *schema[] = {store->config->into.schema}, *name[] = {store->config->name};
    struct spate_buf sql = {0};
    PGresult *there = NULL, *res = NULL;
    enum spate_rc rc;

    store->looking = true;
    rc = connect_target(store, err);
    if (rc == SPATE_OK)
        rc = spate_pg_exec_params(store->conn, there_sql, 1, schema, PGRES_TUPLES_OK, &there, err);
    if (rc == SPATE_OK && PQntuples(there) > 0) {
        spate_buf_printf(&sql, "SELECT " MARK_COLUMNS " FROM %s.spate_sink WHERE sink = $1", store->schema);
        rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 1, name, PGRES_TUPLES_OK, &res, err);
        if (rc == SPATE_OK && PQntuples(res) > 0)
            rc = read_mark(store, res, err);
    }
    PQclear(there);
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_store_forget(struct spate_store *store, struct spate_err *err)
{
    struct spate_buf sql = {0};
    const char *values[] = {store->config->name};
    enum spate_rc rc;

    /* What comes in between would be missing in a snapshot that is under way; a new one replaces its tables.
     */
    spate_buf_printf(
        &sql,
        "WITH loads AS (UPDATE %s.spate_table SET snapshotted = false, load_kind = NULL, request = "
        "NULL, chunk = NULL, resume = NULL, ranges = NULL WHERE sink = $1) "
        "UPDATE %s.spate_sink SET epoch = NULL, epoch_uuid = NULL, n = NULL, pos = NULL, "
        "bus_position = NULL, log_id = NULL WHERE sink = $1",
        store->schema, store->schema);
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 1, values, PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    store->stored = false;
    store->mark = (struct spate_mark){0};
    return rc;
}

enum spate_rc spate_store_skip(struct spate_store *store, struct spate_bus_pos pos, struct spate_err *err)
{
    struct spate_buf sql = {0};
    char at[SPATE_BUS_POS_TEXT];
    const char *values[] = {store->config->name, at};
    enum spate_rc rc;

    spate_bus_pos_format(store->source_driver, pos, at);
    spate_buf_printf(&sql,
                     "UPDATE %s.spate_sink SET skipped = skipped || $2::text WHERE sink = $1 AND NOT ($2 = "
                     "ANY (skipped))",
                     store->schema);
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 2, values, PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    if (rc == SPATE_OK)
        keep_skip(store, pos);
    return rc;
}

void spate_store_write_sql(const struct spate_store *store, struct spate_buf *sql,
                           const struct spate_mark *mark, const char *log_id,
                           const struct spate_counts *counts)
{
    char pos[SPATE_POS_TEXT], at[SPATE_BUS_POS_TEXT];

    spate_pos_format(mark->place.pos, pos);
    spate_bus_pos_format(store->source_driver, mark->at, at);
    spate_buf_printf(sql, "EXECUTE spate_position (%" PRId64, store->generation);
    if (store->stored)
        spate_buf_printf(sql, ", %" PRIu64 ", %" PRIu64, store->mark.place.epoch, store->mark.place.n);
    else
        spate_buf_puts(sql, ", NULL, NULL");
    spate_buf_printf(sql,
                     ", %" PRIu64 ", %" PRIu64 ", '%.25s', '%s', %" PRIu64 ", %" PRIu64 ", %" PRIu64
                     ", %" PRIu64 ", ",
                     mark->place.epoch, mark->place.n, pos, at, counts->applied, counts->duplicates,
                     counts->holes, counts->missing);
    spate_pg_literal(sql, spate_slice_str(mark->uuid));
    spate_buf_puts(sql, ", ");
    spate_pg_literal(sql, spate_slice_str(log_id));
    spate_buf_putc(sql, ')');
}

void spate_store_written(struct spate_store *store, const struct spate_mark *mark, const char *log_id,
                         const struct spate_counts *counts)
{
    store->stored = true;
    store->mark = *mark;
    store->counts = *counts;
    snprintf(store->log_id, sizeof store->log_id, "%s", log_id);
}

enum spate_rc spate_store_check(struct spate_store *store, struct spate_err *err)
{
    struct spate_buf sql = {0};
    const char *values[] = {store->config->name};
    PGresult *res = NULL;
    int64_t generation, n;
    enum spate_rc rc;

    spate_buf_printf(&sql, "SELECT generation, coalesce(n, -1) FROM %s.spate_sink WHERE sink = $1",
                     store->schema);
    rc = spate_pg_exec_params(store->conn, spate_buf_str(&sql), 1, values, PGRES_TUPLES_OK, &res, err);
    spate_buf_fini(&sql);
    if (rc == SPATE_FAIL && strcmp(err->sqlstate, "42P01") == 0) {
        err->exit_code = SPATE_EXIT_FENCED;
        rc = spate_fail(err, SPATE_FATAL,
                        "the position table %s.spate_sink was dropped while sink %s was running: restore it, "
                        "or start the "
                        "sink again: it then begins anew, as a new sink would",
                        store->schema, store->config->name);
    }
    if (rc == SPATE_OK) {
        generation = PQntuples(res) ? strtoll(PQgetvalue(res, 0, 0), NULL, 10) : -1;
        n = PQntuples(res) ? strtoll(PQgetvalue(res, 0, 1), NULL, 10) : -1;
        if (generation != store->generation) {
            err->exit_code = SPATE_EXIT_FENCED;
            rc = spate_fail(err, SPATE_FATAL,
                            "another process has taken over sink %s (generation %" PRId64 ", ours is %" PRId64
                            "): stop one of the two",
                            store->config->name, generation, store->generation);
        } else if (n != (store->stored ? (int64_t)store->mark.place.n : -1)) {
            err->exit_code = SPATE_EXIT_FENCED;
            rc =
                spate_fail(err, SPATE_FATAL,
                           "the position of sink %s in %s.spate_sink was changed by somebody else (n=%" PRId64
                           ", expected %" PRIu64 "): stop what writes there, then start this sink again",
                           store->config->name, store->schema, n, store->mark.place.n);
        }
    }
    PQclear(res);
    return rc;
}
