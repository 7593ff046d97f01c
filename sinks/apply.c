#include "sinks/apply.h"

#include "core/alloc.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "sinks/merge.h"
#include "sinks/projection.h"
#include "sinks/script.h"

#include <inttypes.h>
#include <stdlib.h>

void spate_apply_init(struct spate_apply *apply, struct spate_store *store)
{
    *apply = (struct spate_apply){.store = store};
}

void spate_apply_fini(struct spate_apply *apply)
{
    spate_piece_fini(&apply->piece);
    spate_buf_fini(&apply->sql);
    spate_buf_fini(&apply->chunk);
    free(apply->steps);
    *apply = (struct spate_apply){0};
}

enum spate_rc spate_apply_prepare(struct spate_apply *apply, const struct spate_version *version,
                                  struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (version->projection->deferrable)
        apply->deferrable = true;
    if (version->state->serial == apply->store->serial &&
        version->state->edition == version->projection->load.edition)
        return SPATE_OK;
    if (version->state->serial != apply->store->serial) {
        rc = spate_pg_exec(apply->store->conn, version->sql.table, PGRES_COMMAND_OK, NULL, err);
        version->state->transaction = 0;
    }
    if (rc == SPATE_OK)
        rc = spate_pg_exec(apply->store->conn, version->sql.create, PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY && version->projection->load.target)
        err->verdict = SPATE_RETRY; /* the target was altered under its shadow: spate_load_read sees to it */
    if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY) {
        char place[300];

        err->verdict = SPATE_FATAL;
        err->exit_code = SPATE_EXIT_REFUSED;
        spate_err_context(err, "%s: the target cannot stage it",
                          spate_projection_place(version->projection, place, sizeof place));
    }
    if (rc == SPATE_OK) {
        version->state->serial = apply->store->serial;
        version->state->edition = version->projection->load.edition;
    }
    return rc;
}

void spate_apply_rollback(struct spate_apply *apply)
{
    struct spate_err ignored = {0};

    spate_script_reset(apply);
    apply->open = false;
    apply->lost = NULL;
    if (PQstatus(apply->store->conn) == CONNECTION_OK &&
        PQtransactionStatus(apply->store->conn) != PQTRANS_IDLE) {
        spate_script_add(apply, "ROLLBACK");
        if (spate_script_run(apply, &ignored) != SPATE_OK)
            spate_store_close(apply->store); /* whatever state that session is in, it ends with it */
    }
}

void spate_apply_begin(struct spate_apply *apply)
{
    if (apply->open)
        return;
    apply->open = true;
    apply->transactions++;
    apply->missing_now = 0;
    spate_script_add(apply, "BEGIN");
    if (apply->deferrable)
        spate_script_add(apply, "SET CONSTRAINTS ALL DEFERRED");
}

/* The tables that lose their rows: the copy and the team's, or what is loaded beside them. Returns how many.
 */
static size_t targets_of(const struct spate_projection *projection, const char *names[2])
{
    const struct spate_load *load = &projection->load;

    names[0] = load->target ? load->target : projection->target;
    names[1] = load->copy;
    return load->copied && !load->target ? 2 : 1;
}

/* What is known of a table's snapshot until here was about rows that are gone. */
static void truncate_load(struct spate_apply *apply, const struct spate_projection *projection)
{
    struct spate_buf sql = {0};

    if (projection->load.kind == SPATE_LOAD_NONE)
        return;
    spate_buf_printf(&sql, "TRUNCATE %s", projection->load.list);
    if (projection->load.kind == SPATE_LOAD_MARKED)
        spate_buf_printf(&sql, ", %s", projection->load.marks);
    spate_script_add(apply, spate_buf_str(&sql));
    spate_buf_fini(&sql);
}

/* TRUNCATE where it is possible; DELETE where a foreign key of the team, or a missing right, forbids it
 * (T17). */
static enum spate_rc apply_truncate(struct spate_apply *apply, struct spate_err *err)
{
    const struct spate_item *item = apply->piece.truncate;
    struct spate_buf sql = {0}, names = {0};
    PGresult *res = NULL;
    bool whole;
    enum spate_rc rc = spate_script_run(apply, err);

    for (size_t i = 0; i < item->table_count; i++) {
        const char *targets[2];
        const size_t count = targets_of(item->tables[i], targets);

        for (size_t t = 0; t < count; t++) {
            spate_buf_puts(&sql, names.len ? ", " : "WITH t(oid) AS (SELECT unnest(ARRAY[");
            spate_pg_literal(&sql, spate_slice_str(targets[t]));
            spate_buf_puts(&sql, "::regclass::oid");
            spate_buf_printf(&names, "%s%s", names.len ? ", " : "", targets[t]);
        }
    }
    spate_buf_puts(
        &sql, "])) SELECT bool_and(has_table_privilege(oid, 'TRUNCATE')) AND NOT EXISTS (SELECT FROM "
              "pg_catalog.pg_constraint f WHERE f.contype = 'f' AND f.confrelid IN (SELECT oid FROM t) AND "
              "f.conrelid NOT IN (SELECT oid FROM t)) FROM t");
    if (rc == SPATE_OK)
        rc = spate_pg_exec(apply->store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_END) { /* a stop: nothing is committed, it comes again */
        spate_apply_rollback(apply);
        rc = spate_fail(err, SPATE_RETRY, "stopped");
    }
    whole = rc == SPATE_OK && PQgetvalue(res, 0, 0)[0] == 't';
    PQclear(res);
    spate_buf_reset(&sql);
    if (rc == SPATE_OK && whole) {
        spate_buf_printf(&sql, "TRUNCATE %s", spate_buf_str(&names));
        spate_script_add(apply, spate_buf_str(&sql));
    }
    for (size_t i = 0; rc == SPATE_OK && !whole && i < item->table_count; i++) {
        const char *targets[2];

        for (size_t t = targets_of(item->tables[i], targets); t-- > 0;) {
            spate_buf_reset(&sql);
            spate_buf_printf(&sql, "DELETE FROM %s", targets[t]);
            spate_script_add(apply, spate_buf_str(&sql));
        }
    }
    for (size_t i = 0; rc == SPATE_OK && i < item->table_count; i++)
        truncate_load(apply, item->tables[i]);
    spate_buf_fini(&sql);
    spate_buf_fini(&names);
    return rc;
}

static enum spate_rc apply_items(struct spate_apply *apply, const struct spate_item *items, size_t count,
                                 struct spate_err *err)
{
    while (count > 0) {
        size_t folded = spate_fold(&apply->piece, items, count);
        enum spate_rc rc;

        if (apply->piece.kind == SPATE_PIECE_TRUNCATE)
            rc = apply_truncate(apply, err);
        else
            rc = spate_merge_piece(apply, err);
        if (rc != SPATE_OK)
            return rc;
        items += folded;
        count -= folded;
    }
    return SPATE_OK;
}

/* How far snapshots came is stored with the rows that they brought. */
static bool any_dirty(const struct spate_apply *apply)
{
    for (size_t i = 0; i < apply->projection_count; i++)
        if (apply->projections[i].load.dirty)
            return true;
    return false;
}

static void add_progress(struct spate_apply *apply)
{
    for (size_t i = 0; i < apply->projection_count; i++) {
        if (!apply->projections[i].load.dirty)
            continue;
        spate_load_progress_sql(apply->store, &apply->projections[i], &apply->sql);
        spate_script_step(apply, SPATE_STEP_OTHER, NULL, 0);
    }
    SPATE_FAILPOINT(sink_chunk_applied);
}

static void add_mark(struct spate_apply *apply, const struct spate_mark *mark, const char *log_id,
                     const struct spate_counts *counts)
{
    if (any_dirty(apply))
        add_progress(apply);
    spate_store_write_sql(apply->store, &apply->sql, mark, log_id, counts);
    spate_buf_puts(&apply->sql, ";\n");
    spate_script_step(apply, SPATE_STEP_OTHER, NULL, 0);
    if (apply->open)
        spate_script_add(apply, "COMMIT");
}

static void committed(struct spate_apply *apply)
{
    apply->open = false;
    apply->missing += apply->missing_now;
    apply->missing_now = 0;
    for (size_t i = 0; i < apply->projection_count; i++)
        if (apply->projections[i].load.dirty)
            spate_load_stored(&apply->projections[i]);
}

/* T11, T12: a table that holds exactly what exists must have the row that a change was made to. */
static enum spate_rc tell_lost(struct spate_apply *apply, const struct spate_version *version,
                               const struct spate_item *items, size_t count, bool whole,
                               struct spate_err *err)
{
    const struct spate_sink_config *config = apply->store->config;
    uint64_t first = items[0].n, last = items[count - 1].n;
    struct spate_err tried = {0};
    char range[80];
    size_t culprit;

    err->exit_code = SPATE_EXIT_FENCED;
    if (apply->trying)
        return spate_fail(err, SPATE_FATAL, "a change found no row");
    apply->lacks = version;
    /* Pieces before these items, in the same transaction, are not there to try with. */
    if (whole && spate_apply_isolate(apply, items, count, &culprit, &tried) == SPATE_OK &&
        tried.exit_code == SPATE_EXIT_FENCED)
        first = last = items[culprit].n;
    snprintf(range, sizeof range, first == last ? "n=%" PRIu64 : "n=%" PRIu64 " to n=%" PRIu64, first, last);
    return spate_fail(
        err, SPATE_FATAL,
        "table %s held exactly what exists, and %s changes a row that is not in it: somebody else "
        "deletes there, or a sink's table was put back from a backup. Nothing from there on was applied. "
        "`spate sink -c %s --restart %s` begins anew%s%s%s",
        version->projection->target, range, config->path, config->name,
        config->snapshot == SPATE_SINK_AUTO ? " and brings every row again" : "; `spate snapshot --sink ",
        config->snapshot == SPATE_SINK_AUTO ? "" : config->name,
        config->snapshot == SPATE_SINK_AUTO ? "" : "` then brings every row again");
}

enum spate_rc spate_apply_run(struct spate_apply *apply, const struct spate_item *items, size_t count,
                              const struct spate_mark *mark, const char *log_id,
                              const struct spate_counts *counts, struct spate_err *err)
{
    bool whole = !apply->open;
    enum spate_rc rc;

    /* A position alone is one statement, and needs no transaction around it. */
    apply->lost = NULL;
    if (!apply->trying)
        apply->lacks = NULL;
    if (count > 0 || (mark && any_dirty(apply)))
        spate_apply_begin(apply);
    SPATE_FAILPOINT(sink_merge);
    rc = apply_items(apply, items, count, err);
    SPATE_FAILPOINT(sink_merged);
    if (rc == SPATE_OK && mark && apply->judges)
        rc = spate_script_run(apply, err); /* what it answers decides whether there is a COMMIT */
    if (rc == SPATE_OK && mark)
        add_mark(apply, mark, log_id, counts);
    if (count == 0)
        SPATE_FAILPOINT(sink_position);
    else if (mark)
        SPATE_FAILPOINT(sink_commit);
    if (rc == SPATE_OK)
        rc = spate_script_run(apply, err);
    if (count == 0)
        SPATE_FAILPOINT(sink_positioned);
    else if (!mark)
        SPATE_FAILPOINT(sink_piece);
    else if (SPATE_FAILPOINT_FAILS(sink_committed))
        rc = spate_fail(err, SPATE_RETRY, "target: the answer to COMMIT was lost, as SPATE_FP asked");
    if (rc == SPATE_OK && mark) {
        committed(apply);
        spate_store_written(apply->store, mark, log_id, counts);
    } else if (rc != SPATE_OK) {
        const struct spate_version *lost = apply->lost;

        spate_apply_rollback(apply);
        if (lost)
            return tell_lost(apply, lost, items, count, whole, err);
    }
    return rc;
}

/* Applies the first `count` items and takes it all back. */
static enum spate_rc try_items(struct spate_apply *apply, const struct spate_item *items, size_t count,
                               struct spate_err *err)
{
    enum spate_rc rc;

    apply->trying = true;
    rc = spate_apply_run(apply, items, count, NULL, NULL, NULL, err);
    /* Deferred constraints speak up at the end only. */
    if (rc == SPATE_OK && apply->deferrable) {
        spate_script_add(apply, "SET CONSTRAINTS ALL IMMEDIATE");
        rc = spate_script_run(apply, err);
    }
    apply->trying = false;
    spate_apply_rollback(apply);
    return rc;
}

enum spate_rc spate_apply_isolate(struct spate_apply *apply, const struct spate_item *items, size_t count,
                                  size_t *culprit, struct spate_err *err)
{
    size_t good = 0, bad = count, middle = count;

    while (bad - good > 1 || middle == count) {
        struct spate_err tried = {0};
        enum spate_rc rc = try_items(apply, items, middle, &tried);

        if (rc == SPATE_OK && middle == count)
            return SPATE_AGAIN;
        if (rc != SPATE_OK) {
            *err = tried;
            if (tried.verdict == SPATE_RETRY || PQstatus(apply->store->conn) != CONNECTION_OK)
                return SPATE_FAIL;
        }
        if (rc == SPATE_OK)
            good = middle;
        else
            bad = middle;
        if (bad - good <= 1)
            break;
        middle = good + (bad - good) / 2;
    }
    *culprit = bad - 1;
    return SPATE_OK;
}
