/* sinks/generation.c - how a snapshot of tables begins: where its generation goes; and how it ends: what is
 * not of it goes (T16). */
#include "sinks/generation.h"

#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "sinks/apply.h"
#include "sinks/copy.h"
#include "sinks/projection.h"
#include "sinks/script.h"
#include "sinks/takeover.h"

#include <inttypes.h>
#include <stdio.h>

/* Nobody but the owner moves a load (T3): no row, and the division fails. */
void spate_load_guard(const struct spate_store *store, struct spate_buf *sql)
{
    spate_buf_printf(sql,
                     "WITH ours AS (SELECT 1 FROM %s.spate_sink WHERE generation = %" PRId64 " AND sink = ",
                     store->schema, store->generation);
    spate_pg_literal(sql, spate_slice_str(store->config->name));
    spate_buf_puts(sql, " FOR UPDATE) SELECT 1 / count(*) FROM ours");
}

static void add(struct spate_apply *apply, struct spate_buf *sql)
{
    spate_script_add(apply, spate_buf_str(sql));
    spate_buf_reset(sql);
}

static void drop_sql(const struct spate_load *load, struct spate_buf *sql)
{
    spate_buf_printf(sql, "DROP TABLE IF EXISTS %s, %s, %s", load->marks, load->list, load->shadow);
    if (!load->copied)
        spate_buf_printf(sql, ", %s", load->copy);
}

/* The columns of the target's key, in the order of the source's; k0, k1, ... are theirs in tables of ours. */
static const char *key_name(const struct spate_version *version, size_t k)
{
    for (size_t i = 0; i < version->output_count; i++)
        if (version->outputs[i].key && version->outputs[i].bare == (int)version->table->key[k])
            return version->outputs[i].name;
    return "";
}

/* Logged, as every table: a crash of the target empties one that is not, and an empty table of marks means
 * that every row is old - the sweep would remove them all. */
static void add_keys_table(struct spate_apply *apply, const struct spate_projection *projection,
                           const char *name)
{
    const struct spate_version *version = projection->current;
    struct spate_buf sql = {0};

    spate_buf_printf(&sql, "CREATE TABLE %s AS SELECT ", name);
    for (size_t k = 0; k < version->key_count; k++) {
        spate_buf_puts(&sql, k ? ", " : "");
        spate_pg_ident(&sql, spate_slice_str(key_name(version, k)));
        spate_buf_printf(&sql, " AS k%zu", k);
    }
    spate_buf_printf(&sql, " FROM %s WITH NO DATA", projection->target);
    add(apply, &sql);
    spate_buf_printf(&sql, "ALTER TABLE %s ADD PRIMARY KEY (", name);
    for (size_t k = 0; k < version->key_count; k++)
        spate_buf_printf(&sql, "%sk%zu", k ? ", " : "", k);
    spate_buf_putc(&sql, ')');
    add(apply, &sql);
    spate_buf_fini(&sql);
}

/* Which of these tables refer to each other or to themselves, which hold any row, and which have another key
 * than the one by which rows come, that a row from before may hold on to: three words for each. */
static enum spate_rc look(struct spate_apply *apply, struct spate_projection *const *tables, size_t count,
                          PGresult **res, struct spate_err *err)
{
    struct spate_buf sql = {0};
    enum spate_rc rc;

    spate_buf_puts(&sql, "WITH t(i, oid) AS (VALUES ");
    for (size_t i = 0; i < count; i++) {
        spate_buf_printf(&sql, "%s(%zu, ", i ? ", " : "", i);
        spate_pg_literal(&sql, spate_slice_str(tables[i]->target));
        spate_buf_puts(&sql, "::regclass::oid)");
    }
    spate_buf_puts(&sql,
                   ") SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint f WHERE f.contype = 'f' AND "
                   "((f.conrelid = t.oid AND f.confrelid IN (SELECT oid FROM t)) OR (f.confrelid = t.oid "
                   "AND f.conrelid IN (SELECT oid FROM t)))), CASE i");
    for (size_t i = 0; i < count; i++) {
        spate_buf_printf(&sql, " WHEN %zu THEN EXISTS (SELECT FROM %s)", i, tables[i]->target);
        if (tables[i]->load.copied)
            spate_buf_printf(&sql, " OR EXISTS (SELECT FROM %s)", tables[i]->load.copy);
    }
    spate_buf_puts(&sql, " END, EXISTS (SELECT FROM pg_catalog.pg_constraint u WHERE u.conrelid = t.oid AND "
                         "u.contype IN ('u', 'x') AND u.condeferrable) FROM t ORDER BY i");
    rc = spate_pg_exec(apply->store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, res, err);
    spate_buf_fini(&sql);
    return rc;
}

static void begin_table(struct spate_apply *apply, struct spate_projection *projection,
                        enum spate_load_kind kind, const char *request)
{
    struct spate_load *load = &projection->load;
    struct spate_buf sql = {0};
    char hash[SPATE_LOAD_HASH];

    spate_buf_printf(&sql, "DROP TABLE IF EXISTS %s, %s, %s", load->marks, load->list, load->shadow);
    add(apply, &sql);
    add_keys_table(apply, projection, load->list);
    if (kind == SPATE_LOAD_MARKED)
        add_keys_table(apply, projection, load->marks);
    if (kind == SPATE_LOAD_SHADOW) {
        spate_buf_printf(&sql, "CREATE TABLE %s (LIKE %s INCLUDING ALL)", load->shadow,
                         spate_version_held(projection->current).name);
        add(apply, &sql);
    }
    spate_load_hash(projection, hash);
    spate_buf_printf(&sql,
                     "UPDATE %s.spate_table SET load_kind = '%s', chunk = 0, resume = '', ranges = NULL",
                     apply->store->schema, spate_load_kind_name(kind));
    /* From here on the table is between two pictures. */
    if (kind != SPATE_LOAD_ADD)
        spate_buf_printf(&sql, ", snapshotted = false, outdated = NULL, projection = '%s'%s", hash,
                         load->copied ? "" : ", copy = NULL");
    spate_buf_puts(&sql, ", request = ");
    spate_pg_literal(&sql, spate_slice_str(request));
    spate_load_where(projection, &sql);
    add(apply, &sql);
    spate_buf_fini(&sql);
}

static enum spate_rc refused(struct spate_apply *apply, struct spate_err *err)
{
    struct spate_store *store = apply->store;
    struct spate_err check = {0};

    if (err->verdict == SPATE_RETRY)
        return SPATE_FAIL;
    /* What stands behind it may be that the sink's place is gone. */
    spate_apply_rollback(apply);
    if (PQstatus(store->conn) == CONNECTION_OK && spate_store_check(store, &check) == SPATE_FAIL) {
        *err = check;
        return SPATE_FAIL;
    }
    err->exit_code = SPATE_EXIT_REFUSED;
    if (strcmp(err->sqlstate, "42501") != 0) {
        err->verdict = SPATE_FATAL;
        return spate_err_context(err, "a snapshot cannot begin");
    }
    return spate_fail(
        err, SPATE_FATAL,
        "role %s may not make the tables that a snapshot needs in target schema %s: as its owner "
        "run GRANT USAGE, CREATE ON SCHEMA %s TO %s",
        PQuser(store->conn), store->schema, store->schema, PQuser(store->conn));
}

/* After the kinds changed: what is prepared is about other tables. */
static enum spate_rc prepare(struct spate_apply *apply, struct spate_projection *const *tables, size_t count,
                             struct spate_err *err)
{
    for (size_t i = 0; i < count; i++)
        for (size_t v = 0; v < tables[i]->version_count; v++) {
            enum spate_rc rc = spate_apply_prepare(apply, tables[i]->versions[v], err);

            if (rc != SPATE_OK)
                return rc;
        }
    return SPATE_OK;
}

static enum spate_load_kind choose(const struct spate_apply *apply, const PGresult *res, int row,
                                   bool conditional)
{
    bool related = PQgetvalue(res, row, 0)[0] == 't', rows = PQgetvalue(res, row, 1)[0] == 't';
    bool unique = PQgetvalue(res, row, 2)[0] == 't';

    if (conditional)
        return SPATE_LOAD_ADD;
    if (related || (rows && unique) || apply->store->config->on_snapshot == SPATE_SINK_SWAP)
        return SPATE_LOAD_SHADOW;
    return rows ? SPATE_LOAD_MARKED : SPATE_LOAD_EMPTY;
}

enum spate_rc spate_load_begin(struct spate_apply *apply, struct spate_projection *const *tables,
                               size_t count, const char *request, bool conditional, struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc = SPATE_OK;
    size_t fresh = 0;

    for (size_t i = 0; i < count; i++)
        fresh += tables[i]->load.kind == SPATE_LOAD_NONE || strcmp(tables[i]->load.request, request) != 0;
    if (fresh == 0)
        return SPATE_OK;
    spate_apply_begin(apply);
    spate_load_guard(apply->store, &sql);
    add(apply, &sql);
    rc = spate_script_run(apply, err);
    if (rc == SPATE_OK)
        rc = look(apply, tables, count, &res, err);
    for (size_t i = 0; rc == SPATE_OK && i < count; i++) {
        struct spate_load *load = &tables[i]->load;
        enum spate_load_kind kind = choose(apply, res, (int)i, conditional);

        if (load->kind != SPATE_LOAD_NONE && strcmp(load->request, request) == 0)
            continue;
        if (kind != SPATE_LOAD_ADD && !spate_copy_needed(tables[i]))
            load->copied = false;
        begin_table(apply, tables[i], kind, request);
        spate_load_set(tables[i], kind, request);
        load->ready &= kind == SPATE_LOAD_ADD;
        load->changed &= kind == SPATE_LOAD_ADD;
        if (kind != SPATE_LOAD_ADD) {
            spate_load_rewrite(tables[i]);
            spate_load_note(tables[i], NULL); /* it told of what was before */
        }
        load->lacks &= kind == SPATE_LOAD_ADD;
        spate_log(SPATE_LOG_INFO, "snapshot-table", "table=%s request=%s kind=%s", tables[i]->label,
                  load->request, spate_load_kind_name(kind));
    }
    if (rc == SPATE_OK)
        rc = spate_script_run(apply, err);
    if (rc == SPATE_OK)
        rc = prepare(apply, tables, count, err);
    SPATE_FAILPOINT(sink_load_begin);
    if (rc == SPATE_FAIL)
        rc = refused(apply, err);
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

/* ---- the end ---- */

static void add_end(struct spate_apply *apply, const struct spate_projection *projection, const char *more)
{
    struct spate_buf sql = {0};

    spate_buf_printf(
        &sql,
        "UPDATE %s.spate_table SET load_kind = NULL, request = NULL, chunk = NULL, resume = NULL, "
        "ranges = NULL%s",
        apply->store->schema, more);
    spate_load_where(projection, &sql);
    add(apply, &sql);
    spate_buf_fini(&sql);
}

/* What a load needed beside the table goes when nobody reads it: a backup of the target that is running holds
 * it for hours, and must not hold up the stream. What stays goes at the next start, or with the next load. */
void spate_load_drop(struct spate_store *store, const struct spate_projection *projection)
{
    struct spate_buf sql = {0};
    struct spate_err err = {0};

    spate_buf_puts(&sql, "SET LOCAL lock_timeout = '500ms'; ");
    drop_sql(&projection->load, &sql);
    if (spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, &err) == SPATE_FAIL)
        spate_log(SPATE_LOG_INFO, "snapshot-left-over",
                  "table=%s sqlstate=%s detail=\"%s stays until the next start\"", projection->label,
                  err.sqlstate, "what the snapshot kept beside it");
    spate_buf_fini(&sql);
}

static void begin_end(struct spate_apply *apply)
{
    struct spate_buf sql = {0};

    spate_apply_begin(apply);
    spate_load_guard(apply->store, &sql);
    add(apply, &sql);
    spate_buf_fini(&sql);
}

/* What the target says to the removal of rows that are gone at the source. */
static enum spate_rc end_failed(struct spate_apply *apply, struct spate_err *err)
{
    struct spate_err check = {0};

    spate_apply_rollback(apply);
    if (err->verdict == SPATE_RETRY || PQstatus(apply->store->conn) != CONNECTION_OK) {
        err->verdict = SPATE_RETRY;
        return SPATE_FAIL;
    }
    if (spate_store_check(apply->store, &check) == SPATE_FAIL) {
        *err = check;
        return SPATE_FAIL;
    }
    err->verdict = SPATE_FATAL;
    err->exit_code = SPATE_EXIT_REFUSED;
    if (strcmp(err->sqlstate, "23503") == 0)
        return spate_err_context(err,
                                 "rows that no longer exist at the source cannot be removed, since rows of "
                                 "another table refer to them. Delete those, or drop that foreign key, and "
                                 "start the sink again: the end of the snapshot is then tried again");
    return spate_err_context(err,
                             "the end of a snapshot cannot be written; mend it and start the sink again");
}

/* A table whose columns changed while it was loaded: rows that came before the change were kept with the
 * columns of then, and need not all have come again. Such a load is not the last one (`lacks`). */
static enum spate_rc look_mixed(struct spate_apply *apply, struct spate_projection *const *tables,
                                size_t count, struct spate_err *err)
{
    enum spate_rc rc = spate_script_run(apply, err);

    for (size_t i = 0; rc == SPATE_OK && i < count; i++) {
        struct spate_load *load = &tables[i]->load;
        struct spate_buf sql = {0};
        PGresult *res = NULL;

        if (!load->copied || load->kind == SPATE_LOAD_ADD)
            continue;
        spate_takeover_mixed(tables[i], &sql);
        rc = spate_pg_exec(apply->store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
        if (rc == SPATE_END)
            rc = spate_fail(err, SPATE_RETRY, "stopped");
        if (rc == SPATE_OK)
            load->lacks = PQgetvalue(res, 0, 0)[0] == 't';
        PQclear(res);
        spate_buf_fini(&sql);
    }
    return rc;
}

/* Does the table hold exactly what exists, after the end of its load? */
static bool is_whole(const struct spate_projection *projection)
{
    const struct spate_load *load = &projection->load;

    return load->kind != SPATE_LOAD_ADD && !load->lacks && !load->outdated;
}

enum spate_rc spate_load_finish(struct spate_apply *apply, struct spate_projection *const *tables,
                                size_t count, struct spate_err *err)
{
    static const char *const free_paths[] = {"seqscan", "indexscan", "hashjoin", "mergejoin", "material"};
    int64_t start = spate_clock_ms();
    uint64_t swept = apply->swept;
    enum spate_rc rc;

    begin_end(apply);
    /* These read whole tables, of which there are statistics: the pins for small batches would be in the way.
     */
    for (size_t i = 0; i < sizeof free_paths / sizeof *free_paths; i++) {
        char sql[64];

        snprintf(sql, sizeof sql, "SET LOCAL enable_%s = on", free_paths[i]);
        spate_script_add(apply, sql);
    }
    rc = look_mixed(apply, tables, count, err);
    if (rc != SPATE_OK)
        return end_failed(apply, err);
    for (size_t i = 0; i < count; i++)
        if (!tables[i]->load.lacks)
            spate_takeover_copy(apply, tables[i]);
    for (size_t i = 0; i < count; i++)
        if (!tables[i]->load.lacks)
            spate_takeover_sweep(apply, tables[i]);
    for (size_t i = 0; i < count; i++)
        if (!tables[i]->load.lacks)
            spate_takeover_rows(apply, tables[i]);
    for (size_t i = 0; i < count; i++)
        add_end(apply, tables[i], is_whole(tables[i]) ? ", snapshotted = true" : "");
    spate_script_add(apply, "COMMIT");
    SPATE_FAILPOINT(sink_sweep);
    rc = spate_script_run(apply, err);
    SPATE_FAILPOINT(sink_swept);
    if (rc != SPATE_OK)
        return end_failed(apply, err);
    apply->open = false;
    for (size_t i = 0; i < count; i++) {
        tables[i]->load.ready |= is_whole(tables[i]);
        spate_load_set(tables[i], SPATE_LOAD_NONE, NULL);
        spate_load_drop(apply->store, tables[i]);
    }
    spate_log(SPATE_LOG_INFO, "snapshot-swept", "tables=%zu rows=%" PRIu64 " ms=%" PRId64, count,
              apply->swept - swept, spate_clock_ms() - start);
    return prepare(apply, tables, count, err);
}

enum spate_rc spate_load_abandon(struct spate_apply *apply, struct spate_projection *const *tables,
                                 size_t count, bool stale, struct spate_err *err)
{
    enum spate_rc rc;

    begin_end(apply);
    for (size_t i = 0; i < count; i++)
        add_end(apply, tables[i], stale ? ", snapshotted = false" : "");
    spate_script_add(apply, "COMMIT");
    rc = spate_script_run(apply, err);
    if (rc != SPATE_OK)
        return end_failed(apply, err);
    apply->open = false;
    for (size_t i = 0; i < count; i++) {
        tables[i]->load.ready &= !stale;
        spate_load_set(tables[i], SPATE_LOAD_NONE, NULL);
        spate_load_drop(apply->store, tables[i]);
    }
    return prepare(apply, tables, count, err);
}

void spate_load_outdate(struct spate_apply *apply, struct spate_projection *const *tables, size_t count,
                        const char *why)
{
    spate_apply_begin(apply);
    for (size_t i = 0; i < count; i++) {
        struct spate_buf sql = {0};

        if (!spate_load_is_whole(tables[i]->load.kind))
            add_end(apply, tables[i], "");
        spate_buf_printf(&sql,
                         "UPDATE %s.spate_table SET snapshotted = false, outdated = ", apply->store->schema);
        spate_pg_literal(&sql, spate_slice_str(why));
        spate_load_where(tables[i], &sql);
        add(apply, &sql);
        spate_buf_fini(&sql);
    }
}

enum spate_rc spate_load_outdated(struct spate_apply *apply, struct spate_projection *const *tables,
                                  size_t count, const char *why, struct spate_err *err)
{
    for (size_t i = 0; i < count; i++) {
        tables[i]->load.ready = false;
        spate_load_note(tables[i], why);
        if (tables[i]->load.kind != SPATE_LOAD_ADD)
            continue;
        spate_load_set(tables[i], SPATE_LOAD_NONE, NULL);
        spate_load_drop(apply->store, tables[i]);
    }
    return prepare(apply, tables, count, err);
}

enum spate_rc spate_load_void(struct spate_store *store, struct spate_projection *projection,
                              struct spate_err *err)
{
    struct spate_apply apply;
    enum spate_rc rc;

    spate_apply_init(&apply, store);
    begin_end(&apply);
    add_end(&apply, projection, ", snapshotted = false");
    spate_script_add(&apply, "COMMIT");
    rc = spate_script_run(&apply, err);
    if (rc != SPATE_OK)
        rc = end_failed(&apply, err);
    apply.open = false;
    spate_apply_fini(&apply);
    if (rc == SPATE_OK) {
        projection->load.ready = false;
        spate_load_set(projection, SPATE_LOAD_NONE, NULL);
        spate_load_drop(store, projection);
    }
    return rc;
}
