#include "sinks/follow.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"
#include "sinks/fact.h"
#include "sinks/generation.h"
#include "sinks/status.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define ATTEMPT_MS 2000 /* how long readers queue behind one */
#define PAUSE_MS   1000 /* how long they do not */
#define TELL_MS    10000

/* What has to be done to the table, clause by clause. */
struct follow {
    struct spate_buf clauses;
    bool empty; /* the target table has no row: any type may become any other */
    bool
        rekeys; /* a column of the key gets another type: what a load keeps by key does not fit it any more */
};

static const struct spate_output *named(const struct spate_version *version, const char *name)
{
    for (size_t i = 0; i < version->output_count; i++)
        if (strcmp(version->outputs[i].name, name) == 0)
            return &version->outputs[i];
    return NULL;
}

SPATE_PRINTF(2, 3)
static void clause(struct follow *follow, const char *fmt, ...)
{
    char text[1000];
    va_list args;
    int len;

    va_start(args, fmt);
    len = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (len < 0 || (size_t)len >= sizeof text)
        return; /* the preflight refuses what is not done */
    if (follow->clauses.len)
        spate_buf_puts(&follow->clauses, ", ");
    spate_buf_puts(&follow->clauses, text);
}

enum { C_NAME, C_QUOTED, C_TYPE, C_MOD, C_MUST, C_OURS };

static const char columns_sql[] =
    "SELECT a.attname, quote_ident(a.attname), a.atttypid, a.atttypmod, a.attnotnull AND NOT a.atthasdef AND "
    "a.attidentity = '' AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p WHERE p.conrelid = c.oid AND "
    "p.contype = 'p' AND a.attnum = ANY (p.conkey)), r.rolname = current_user FROM pg_catalog.pg_attribute a "
    "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = "
    "c.relnamespace "
    "JOIN pg_catalog.pg_roles r ON r.oid = c.relowner "
    "WHERE c.relname = $1 AND n.nspname = $2 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/* The old type exactly as it was, and every value of it one of the new type. `old` NULL: the source got the
 * column since, and an attempt that was cut short has made it already. */
static void widen(struct follow *follow, const struct spate_output *output, const struct spate_output *old,
                  const PGresult *res, int r)
{
    const uint32_t type = (uint32_t)strtoul(PQgetvalue(res, r, C_TYPE), NULL, 10);
    const int mod = atoi(PQgetvalue(res, r, C_MOD));

    if (follow->empty && output->bare >= 0 &&
        !spate_type_lossless(output->type_oid, output->type_mod, type, mod)) {
        clause(follow, "ALTER COLUMN %s TYPE %s USING NULL", PQgetvalue(res, r, C_QUOTED), output->type);
        follow->rekeys |= output->key;
        return;
    }
    if (output->bare < 0 || (old && (old->bare < 0 || type != old->type_oid || mod != old->type_mod)) ||
        spate_type_lossless(output->type_oid, output->type_mod, type, mod) ||
        !spate_type_lossless(type, mod, output->type_oid, output->type_mod))
        return;
    clause(follow, "ALTER COLUMN %s TYPE %s", PQgetvalue(res, r, C_QUOTED), output->type);
    follow->rekeys |= output->key;
}

static void compare(struct follow *follow, const struct spate_version *version,
                    const struct spate_version *before, const PGresult *res)
{
    const bool all = version->projection->config->columns.count == 0;
    bool *there = spate_zalloc((version->output_count + 1) * sizeof *there);

    for (int r = 0; r < PQntuples(res); r++) {
        const char *name = PQgetvalue(res, r, C_NAME);
        const struct spate_output *output = named(version, name), *old = named(before, name);

        if (output) {
            there[output - version->outputs] = true;
            if (old || all)
                widen(follow, output, old, res, r);
        } else if (all && old && PQgetvalue(res, r, C_MUST)[0] == 't') {
            clause(follow, "ALTER COLUMN %s DROP NOT NULL", PQgetvalue(res, r, C_QUOTED));
        }
    }
    for (size_t i = 0; all && i < version->output_count; i++) {
        const struct spate_output *output = &version->outputs[i];
        struct spate_buf quoted = {0};

        if (there[i] || named(before, output->name))
            continue;
        spate_pg_ident(&quoted, spate_slice_str(output->name));
        clause(follow, "ADD COLUMN %s %s", spate_buf_str(&quoted), output->type);
        spate_buf_fini(&quoted);
    }
    free(there);
}

/* T25: whoever holds it can be asked. */
static void name_holders(const struct spate_version *version, struct spate_store *store, int64_t since_ms)
{
    static const char sql[] =
        "SELECT coalesce(string_agg(DISTINCT format('pid %s (%s, %s, %s since %s)', a.pid, a.usename, "
        "a.application_name, a.state, date_trunc('second', a.xact_start)), ', '), 'somebody') FROM "
        "pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = "
        "'relation' "
        "AND l.granted AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM "
        "pg_catalog.pg_database "
        "WHERE datname = current_database()) AND l.relation = (SELECT c.oid FROM pg_catalog.pg_class c JOIN "
        "pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = $1 AND n.nspname = $2)";
    PGresult *res = NULL;
    struct spate_err err = {0};
    char quoted[1200];

    if (spate_version_query(version, store, sql, &res, &err) == SPATE_OK) {
        char words[1000];

        spate_log(SPATE_LOG_WARN, "follow-waits",
                  "table=%s waiting_s=%lld held_by=%s detail=\"a column has to be altered, as it was at the "
                  "source; tried again until the table is free\"",
                  version->projection->label, (long long)((spate_clock_ms() - since_ms) / 1000),
                  spate_log_quote(quoted, sizeof quoted, PQgetvalue(res, 0, 0)));
        snprintf(words, sizeof words, "to alter %.200s, which is held by %.700s", version->projection->target,
                 PQgetvalue(res, 0, 0));
        spate_sink_status_state(store->config->status, SPATE_SINK_RETRYING, words);
    }
    PQclear(res);
}

static bool pause_a_while(void)
{
    struct pollfd stop = {.fd = spate_signals_fd(), .events = POLLIN};

    if (!spate_signals_stop())
        poll(&stop, 1, PAUSE_MS);
    return !spate_signals_stop();
}

/* One statement, in a transaction of its own. */
static enum spate_rc attempt(struct spate_store *store, const char *sql, struct spate_err *err)
{
    struct spate_buf all = {0};
    struct spate_err ignored = {0};
    enum spate_rc rc;

    spate_buf_printf(&all, "BEGIN; SET LOCAL lock_timeout = '%dms'; %s; COMMIT", ATTEMPT_MS, sql);
    rc = spate_pg_exec(store->conn, spate_buf_str(&all), PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_FAIL && PQstatus(store->conn) == CONNECTION_OK &&
        PQtransactionStatus(store->conn) != PQTRANS_IDLE &&
        spate_pg_exec(store->conn, "ROLLBACK", PGRES_COMMAND_OK, NULL, &ignored) != SPATE_OK)
        rc = spate_fail(err, SPATE_RETRY, "target: a transaction could not be ended");
    spate_buf_fini(&all);
    return rc;
}

static bool is_held(const char *sqlstate)
{
    return strcmp(sqlstate, "55P03") == 0 || strcmp(sqlstate, "40P01") == 0;
}

static enum spate_rc alter(struct spate_version *version, struct spate_store *store, const char *sql,
                           struct spate_err *err)
{
    const int64_t start = spate_clock_ms();
    int64_t told = 0;
    char quoted[4000];

    for (;;) {
        enum spate_rc rc = attempt(store, sql, err);

        if (rc == SPATE_OK) {
            spate_log(SPATE_LOG_INFO, "table-followed", "table=%s sql=%s", version->projection->label,
                      spate_log_quote(quoted, sizeof quoted, sql));
            if (told)
                spate_sink_status_state(store->config->status, SPATE_SINK_STREAMING, NULL);
            return SPATE_OK;
        }
        if (rc == SPATE_END || PQstatus(store->conn) != CONNECTION_OK)
            return rc;
        if (!is_held(err->sqlstate)) {
            char words[400];

            if (err->verdict == SPATE_RETRY)
                return SPATE_FAIL;
            snprintf(words, sizeof words, "%.*s", (int)sizeof words - 1, err->text);
            return spate_version_refuse(version, err,
                                        "the source's table was altered, and the target's "
                                        "cannot be, by %.300s: %s",
                                        sql, words);
        }
        if (told == 0 || spate_clock_ms() - told > TELL_MS) {
            told = spate_clock_ms();
            name_holders(version, store, start);
        }
        *err = (struct spate_err){0};
        if (!pause_a_while())
            return SPATE_END;
    }
}

static enum spate_rc is_empty(const struct spate_projection *projection, struct spate_store *store,
                              bool *empty, struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_printf(&sql, "SELECT NOT EXISTS (SELECT FROM %s)", projection->target);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    *empty = rc == SPATE_OK && PQgetvalue(res, 0, 0)[0] == 't' && projection->load.kind != SPATE_LOAD_SHADOW;
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_follow_table(struct spate_version *version, const struct spate_version *before,
                                 struct spate_store *store, struct spate_err *err)
{
    struct spate_projection *projection = version->projection;
    struct follow follow = {0};
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc = spate_version_query(version, store, columns_sql, &res, err);

    if (rc == SPATE_OK && PQntuples(res) > 0 && PQgetvalue(res, 0, C_OURS)[0] == 't')
        rc = is_empty(projection, store, &follow.empty, err);
    if (rc == SPATE_OK && PQntuples(res) > 0 && PQgetvalue(res, 0, C_OURS)[0] == 't')
        compare(&follow, version, before, res);
    PQclear(res);
    if (follow.clauses.len) {
        spate_buf_printf(&sql, "ALTER TABLE %s %s", projection->target, spate_buf_str(&follow.clauses));
        if (projection->load.kind == SPATE_LOAD_SHADOW &&
            !projection->load.copied) /* it has to be of the same shape */
            spate_buf_printf(&sql, "; ALTER TABLE %s %s", projection->load.shadow,
                             spate_buf_str(&follow.clauses));
        rc = alter(version, store, spate_buf_str(&sql), err);
        projection->altered |= rc == SPATE_OK;
    }
    if (rc == SPATE_OK && follow.rekeys && projection->load.kind != SPATE_LOAD_NONE) {
        rc = spate_load_void(store, projection, err);
        if (rc == SPATE_OK)
            rc = spate_fail(err, SPATE_RETRY, "%s has another key now: its snapshot begins anew",
                            projection->target);
    }
    spate_buf_fini(&follow.clauses);
    spate_buf_fini(&sql);
    return rc;
}

bool spate_follow_same(const struct spate_version *before, const struct spate_version *now)
{
    for (size_t i = 0; i < now->used_count; i++) {
        const struct spate_column *column = &now->table->columns[now->used[i]], *old;
        const int at = spate_table_column(before->table, column->name);

        if (at < 0 || !before->want || !before->want[at])
            return false;
        old = &before->table->columns[at];
        if (old->oid != column->oid || !spate_slice_eq(old->base, column->base) ||
            !spate_slice_eq(old->mask, column->mask) ||
            !spate_type_lossless(old->oid, old->mod, column->oid, column->mod))
            return false;
    }
    return true;
}

/* ---- labels ---- */

enum { E_OID, E_NAME, E_OURS, E_ARRAY };

static enum spate_rc find_enum(struct spate_store *store, const char *type, PGresult **res,
                               struct spate_err *err)
{
    static const char sql[] =
        "SELECT e.oid, format('%I.%I', n.nspname, e.typname), r.rolname = current_user, t.oid <> e.oid FROM "
        "pg_catalog.pg_type t JOIN pg_catalog.pg_type e ON e.oid = CASE WHEN t.typcategory = 'A' THEN "
        "t.typelem "
        "ELSE t.oid END AND e.typtype = 'e' JOIN pg_catalog.pg_namespace n ON n.oid = e.typnamespace JOIN "
        "pg_catalog.pg_roles r ON r.oid = e.typowner WHERE t.oid = to_regtype($1)";
    const char *values[] = {type};

    return spate_pg_exec_params(store->conn, sql, 1, values, PGRES_TUPLES_OK, res, err);
}

static const struct spate_value *value_of(const struct spate_item *item, size_t used)
{
    const struct spate_version *version = item->version;

    if (item->values)
        return &item->values[used];
    for (size_t k = 0; item->key && k < version->key_count; k++)
        if (version->key_at[k] == used)
            return &item->key[k];
    return NULL;
}

/* The values that a column has in these items, as an array's text; those that stand one after the other once.
 */
static void gather(const struct spate_version *version, size_t used, const struct spate_item *items,
                   size_t count, struct spate_buf *out)
{
    struct spate_slice last = {0};

    spate_buf_putc(out, '{');
    for (size_t i = 0; i < count; i++) {
        const struct spate_value *value = items[i].version == version ? value_of(&items[i], used) : NULL;

        if (!value || value->kind != SPATE_VALUE_TEXT || (last.at && spate_slice_eq(last, value->text)))
            continue;
        last = value->text;
        spate_buf_puts(out, out->len > 1 ? ",\"" : "\"");
        for (size_t c = 0; c < last.len; c++) {
            if (last.at[c] == '"' || last.at[c] == '\\')
                spate_buf_putc(out, '\\');
            spate_buf_putc(out, last.at[c]);
        }
        spate_buf_putc(out, '"');
    }
    spate_buf_putc(out, '}');
}

static enum spate_rc add_label(const struct spate_version *version, struct spate_store *store,
                               const PGresult *type, const char *label, struct spate_err *err)
{
    struct spate_buf sql = {0};
    char quoted[400];
    enum spate_rc rc;

    spate_buf_printf(&sql, "ALTER TYPE %s ADD VALUE IF NOT EXISTS ", PQgetvalue(type, 0, E_NAME));
    spate_pg_literal(&sql, spate_slice_str(label));
    if (PQgetvalue(type, 0, E_OURS)[0] != 't') {
        rc = spate_version_refuse(
            version, err,
            "%s lacks a label that the source's enum has, and belongs to another role: as its "
            "owner run %s; (with BEFORE or AFTER where its place among the others matters), "
            "and start the sink again",
            PQgetvalue(type, 0, E_NAME), spate_buf_str(&sql));
    } else {
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
        if (rc == SPATE_OK)
            spate_log(
                SPATE_LOG_WARN, "label-added",
                "table=%s sql=%s detail=\"as the last one of the type: if the source has it elsewhere, rows "
                "sort differently here\"",
                version->projection->label, spate_log_quote(quoted, sizeof quoted, spate_buf_str(&sql)));
    }
    spate_buf_fini(&sql);
    return rc;
}

static enum spate_rc add_missing(const struct spate_version *version, size_t used, struct spate_store *store,
                                 const PGresult *type, const struct spate_item *items, size_t count,
                                 bool *added, struct spate_err *err)
{
    static const char plain_sql[] = "SELECT DISTINCT u FROM unnest($2::text[]) u WHERE u NOT IN (SELECT "
                                    "enumlabel FROM pg_catalog.pg_enum WHERE "
                                    "enumtypid = $1::oid) AND octet_length(u) BETWEEN 1 AND 63";
    static const char array_sql[] =
        "SELECT DISTINCT u FROM unnest($2::text[]) a, unnest(a::text[]) u WHERE u NOT IN (SELECT enumlabel "
        "FROM "
        "pg_catalog.pg_enum WHERE enumtypid = $1::oid) AND octet_length(u) BETWEEN 1 AND 63";
    struct spate_buf seen = {0};
    const char *values[] = {PQgetvalue(type, 0, E_OID), NULL};
    PGresult *res = NULL;
    enum spate_rc rc;

    gather(version, used, items, count, &seen);
    values[1] = spate_buf_str(&seen);
    rc = spate_pg_exec_params(store->conn, PQgetvalue(type, 0, E_ARRAY)[0] == 't' ? array_sql : plain_sql, 2,
                              values, PGRES_TUPLES_OK, &res, err);
    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        rc = add_label(version, store, type, PQgetvalue(res, r, 0), err);
        *added |= rc == SPATE_OK;
        version->projection->labelled |= rc == SPATE_OK;
    }
    PQclear(res);
    spate_buf_fini(&seen);
    return rc;
}

enum spate_rc spate_follow_labels(struct spate_store *store, const struct spate_item *items, size_t count,
                                  bool *added, struct spate_err *err)
{
    const struct spate_version *seen[64];
    size_t seen_count = 0;
    enum spate_rc rc = SPATE_OK;

    *added = false;
    for (size_t i = 0; rc == SPATE_OK && i < count && seen_count < SPATE_COUNT(seen); i++) {
        const struct spate_version *version = items[i].version;
        bool new = version != NULL;

        for (size_t s = 0; s < seen_count; s++)
            new &= seen[s] != version;
        if (!new)
            continue;
        seen[seen_count++] = version;
        for (size_t u = 0; rc == SPATE_OK && u < version->used_count; u++) {
            PGresult *type = NULL;

            if (version->as_text[version->used[u]])
                continue;
            rc = find_enum(store, version->stage_types[version->used[u]], &type, err);
            if (rc == SPATE_OK && PQntuples(type) == 1)
                rc = add_missing(version, u, store, type, items + i, count - i, added, err);
            PQclear(type);
        }
    }
    return rc;
}
