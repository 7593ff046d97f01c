#include "sinks/apply.h"

#include "core/alloc.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "sinks/projection.h"
#include "sinks/script.h"

#include <stdlib.h>

#define SMALL_ROWS  200         /* up to so many rows of a table come as parameters, not by COPY */
#define SMALL_BYTES (64 * 1024) /* and so many bytes */
#define PLAIN_PAUSE 64

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
    enum spate_rc rc;

    if (version->projection->deferrable)
        apply->deferrable = true;
    if (version->state->serial == apply->store->serial)
        return SPATE_OK;
    rc = spate_pg_exec(apply->store->conn, version->sql.create, PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY) {
        char place[300];

        err->verdict = SPATE_FATAL;
        err->exit_code = SPATE_EXIT_REFUSED;
        spate_err_context(err, "%s: the target cannot stage it",
                          spate_projection_place(version->projection, place, sizeof place));
    }
    if (rc == SPATE_OK)
        version->state->serial = apply->store->serial;
    version->state->transaction = 0;
    return rc;
}

void spate_apply_rollback(struct spate_apply *apply)
{
    struct spate_err ignored = {0};

    spate_script_reset(apply);
    apply->open = false;
    if (PQstatus(apply->store->conn) == CONNECTION_OK &&
        PQtransactionStatus(apply->store->conn) != PQTRANS_IDLE) {
        spate_script_add(apply, "ROLLBACK");
        if (spate_script_run(apply, &ignored) != SPATE_OK)
            spate_store_close(apply->store); /* whatever state that session is in, it ends with it */
    }
}

static void begin(struct spate_apply *apply)
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

/* What a piece holds of one version. */
struct share {
    const struct spate_version *version;
    size_t rows, bytes;
    size_t erased;     /* 'd' and 'r' */
    size_t erased_old; /* of those, rows that were there before the piece */
    size_t upserted;   /* 'u' and 'r' */
    size_t partial, moved;
    bool all_fresh; /* every upserted row came into being in this piece */
};

static struct share share_of(const struct spate_piece *piece, const struct spate_version *version)
{
    struct share share = {.version = version, .all_fresh = true};

    for (size_t i = 0; i < piece->count; i++) {
        const struct spate_entry *e = &piece->entries[i];

        if (e->version != version)
            continue;
        share.rows++;
        if (share.rows <= SMALL_ROWS)
            for (size_t u = 0; u < version->used_count; u++)
                share.bytes += spate_script_value(e, u)->text.len + 4;
        if (e->op == SPATE_ENTRY_DELETE || e->op == SPATE_ENTRY_REPLACE) {
            share.erased++;
            share.erased_old += !e->fresh;
        }
        if (e->op == SPATE_ENTRY_UPSERT || e->op == SPATE_ENTRY_REPLACE) {
            share.upserted++;
            share.all_fresh &= e->fresh && e->op == SPATE_ENTRY_UPSERT;
        }
        share.partial += e->op == SPATE_ENTRY_PARTIAL;
        share.moved += e->op == SPATE_ENTRY_MOVE;
    }
    return share;
}

static bool has_op(const struct spate_entry *entry, const char *ops)
{
    return strchr(ops, (int)entry->op) != NULL;
}

/* One element of an array's text. */
static void add_element(struct spate_buf *out, const struct spate_value *value)
{
    const char *at = value->text.at, *end = at + value->text.len;

    if (value->kind != SPATE_VALUE_TEXT) {
        spate_buf_puts(out, "NULL");
        return;
    }
    spate_buf_putc(out, '"');
    while (at < end) {
        const char *from = at;

        while (at < end && *at != '"' && *at != '\\')
            at++;
        spate_buf_add(out, from, (size_t)(at - from));
        if (at < end) {
            spate_buf_putc(out, '\\');
            spate_buf_putc(out, *at++);
        }
    }
    spate_buf_putc(out, '"');
}

/* The column of the staging table that `column` counts (0: what to do), for one entry. */
static void add_column_element(struct spate_buf *out, const struct spate_entry *entry, size_t column)
{
    static const struct spate_value null = {.kind = SPATE_VALUE_NULL};
    const struct spate_version *version = entry->version;
    size_t extra = version->maybe_count ? 1 + version->key_count : 0;

    if (column == 0)
        spate_buf_putc(out, (char)entry->op);
    else if (extra && column == 1)
        spate_script_mask(entry, out);
    else if (column <= extra)
        add_element(out, entry->old_key ? &entry->old_key[column - 2] : &null);
    else
        add_element(out, spate_script_value(entry, column - 1 - extra));
}

/* Executes a statement over the entries of these kinds, given as an array per column. */
static void execute_small(struct spate_apply *apply, const char *sql, const struct spate_version *version,
                          const char *ops, uint64_t expected)
{
    size_t columns = 1 + version->used_count + (version->maybe_count ? 1 + version->key_count : 0);

    spate_buf_puts(&apply->sql, sql);
    for (size_t c = 0; c < columns; c++) {
        bool first = true;

        spate_buf_reset(&apply->chunk);
        spate_buf_putc(&apply->chunk, '{');
        for (size_t i = 0; i < apply->piece.count; i++) {
            const struct spate_entry *e = &apply->piece.entries[i];

            if (e->version != version || !has_op(e, ops))
                continue;
            if (!first)
                spate_buf_putc(&apply->chunk, ',');
            first = false;
            add_column_element(&apply->chunk, e, c);
        }
        spate_buf_putc(&apply->chunk, '}');
        spate_buf_puts(&apply->sql, c ? ", " : " (");
        spate_pg_literal(&apply->sql, spate_buf_view(&apply->chunk));
    }
    spate_buf_puts(&apply->sql, ");\n");
    spate_script_step(apply, expected ? SPATE_STEP_COUNTED : SPATE_STEP_OTHER, version, expected);
}

static void stage_copy(struct spate_apply *apply, const struct spate_version *version)
{
    spate_buf_printf(&apply->sql, "COPY %s ", version->sql.stage);
    spate_buf_puts(&apply->sql, version->sql.columns);
    spate_buf_puts(&apply->sql, " FROM STDIN;\n");
    spate_script_step(apply, SPATE_STEP_COPY, version, 0);
}

/* The staging table is emptied by COMMIT; a second piece inside one transaction has to do it itself. */
static void clear_stage(struct spate_apply *apply, const struct share *share)
{
    struct spate_version_state *state = share->version->state;

    if (state->transaction == apply->transactions) {
        spate_buf_printf(&apply->sql, "TRUNCATE %s;\n", share->version->sql.stage);
        spate_script_step(apply, SPATE_STEP_OTHER, share->version, 0);
    }
    state->transaction = apply->transactions;
}

static void execute(struct spate_apply *apply, const char *sql, const struct spate_version *version,
                    uint64_t expected)
{
    spate_buf_puts(&apply->sql, sql);
    spate_buf_puts(&apply->sql, ";\n");
    spate_script_step(apply, expected ? SPATE_STEP_COUNTED : SPATE_STEP_OTHER, version, expected);
}

/* Rows that cannot be there yet need no conflict clause, which is nearly twice as fast (T33). When one is
 * there all the same (a sink that began late, or was started again), the savepoint brings the conflict clause
 * back. */
static enum spate_rc insert_plain(struct spate_apply *apply, const struct spate_version *version,
                                  struct spate_err *err)
{
    enum spate_rc rc;

    spate_script_add(apply, "SAVEPOINT spate");
    if (spate_script_run(apply, err) != SPATE_OK)
        return SPATE_FAIL;
    execute(apply, version->sql.insert, version, 0);
    spate_script_add(apply, "RELEASE SAVEPOINT spate");
    rc = spate_script_run(apply, err);
    if (rc == SPATE_OK || strcmp(err->sqlstate, "23505") != 0)
        return rc;
    apply->plain_pause = PLAIN_PAUSE;
    apply->plain_failed++;
    *err = (struct spate_err){0};
    spate_script_add(apply, "ROLLBACK TO SAVEPOINT spate");
    spate_script_add(apply, "RELEASE SAVEPOINT spate");
    execute(apply, version->sql.large.upsert, version, 0);
    return SPATE_OK;
}

/* What a condition keeps out was mostly never there: only where there is none a miss tells something. */
static uint64_t expected_erased(const struct share *share)
{
    return share->version->where ? 0 : share->erased_old;
}

static bool must_erase(const struct share *share)
{
    return share->erased || (share->version->where && share->upserted);
}

/* Deletes before upserts: inside a piece that is any order (sinks/fold.h). */
static enum spate_rc merge_large(struct spate_apply *apply, const struct share *share, struct spate_err *err)
{
    const struct spate_version *version = share->version;
    const struct spate_merge *merge = &version->sql.large;

    clear_stage(apply, share);
    stage_copy(apply, version);
    if (must_erase(share))
        execute(apply, merge->erase, version, expected_erased(share));
    if (share->upserted) {
        bool plain = share->all_fresh && apply->plain_pause == 0;

        apply->plain_pause -= apply->plain_pause > 0;
        if (plain && insert_plain(apply, version, err) != SPATE_OK)
            return SPATE_FAIL;
        if (!plain)
            execute(apply, merge->upsert, version, 0);
    }
    if (share->partial)
        execute(apply, merge->partial, version, share->partial);
    if (share->moved)
        execute(apply, merge->move, version, share->moved);
    return SPATE_OK;
}

static void merge_small(struct spate_apply *apply, const struct share *share)
{
    const struct spate_version *version = share->version;
    const struct spate_merge *merge = &version->sql.small;

    if (must_erase(share))
        execute_small(apply, merge->erase, version, version->where ? "dru" : "dr", expected_erased(share));
    if (share->upserted)
        execute_small(apply, merge->upsert, version, "ur", 0);
    if (share->partial)
        execute_small(apply, merge->partial, version, "p", share->partial);
    if (share->moved)
        execute_small(apply, merge->move, version, "m", share->moved);
}

static enum spate_rc apply_rows(struct spate_apply *apply, struct spate_err *err)
{
    const struct spate_piece *piece = &apply->piece;
    bool any_copy = false;

    for (size_t i = 0; i < piece->version_count; i++) {
        struct share share;
        bool copy;

        if (!piece->versions[i])
            continue;
        share = share_of(piece, piece->versions[i]);
        if (share.rows == 0) /* the item that ended the piece was the first of its table */
            continue;
        copy = share.rows > SMALL_ROWS || share.bytes > SMALL_BYTES;
        apply->rows += share.rows;
        if (!copy)
            merge_small(apply, &share);
        else if (merge_large(apply, &share, err) != SPATE_OK)
            return SPATE_FAIL;
        any_copy |= copy;
    }
    /* COPY reads the piece while the script runs, and the next fold overwrites it. */
    if (any_copy || apply->sql.len > 4 * SMALL_BYTES)
        return spate_script_run(apply, err);
    return SPATE_OK;
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
        spate_buf_puts(&sql, i ? ", " : "WITH t(oid) AS (SELECT unnest(ARRAY[");
        spate_pg_literal(&sql, spate_slice_str(item->tables[i]->target));
        spate_buf_puts(&sql, "::regclass::oid");
        spate_buf_printf(&names, "%s%s", i ? ", " : "", item->tables[i]->target);
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
        spate_buf_reset(&sql);
        spate_buf_printf(&sql, "DELETE FROM %s", item->tables[i]->target);
        spate_script_add(apply, spate_buf_str(&sql));
    }
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
            rc = apply_rows(apply, err);
        if (rc != SPATE_OK)
            return rc;
        items += folded;
        count -= folded;
    }
    return SPATE_OK;
}

enum spate_rc spate_apply_run(struct spate_apply *apply, const struct spate_item *items, size_t count,
                              const struct spate_mark *mark, const char *log_id,
                              const struct spate_counts *counts, struct spate_err *err)
{
    enum spate_rc rc;

    /* A position alone is one statement, and needs no transaction around it. */
    if (count > 0)
        begin(apply);
    SPATE_FAILPOINT(sink_merge);
    rc = apply_items(apply, items, count, err);
    SPATE_FAILPOINT(sink_merged);
    if (rc == SPATE_OK && mark) {
        spate_store_write_sql(apply->store, &apply->sql, mark, log_id, counts);
        spate_buf_puts(&apply->sql, ";\n");
        spate_script_step(apply, SPATE_STEP_OTHER, NULL, 0);
        if (apply->open)
            spate_script_add(apply, "COMMIT");
    }
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
        apply->open = false;
        apply->missing += apply->missing_now;
        apply->missing_now = 0;
        spate_store_written(apply->store, mark, log_id, counts);
    } else if (rc != SPATE_OK) {
        spate_apply_rollback(apply);
    }
    return rc;
}

/* Applies the first `count` items and takes it all back. */
static enum spate_rc try_items(struct spate_apply *apply, const struct spate_item *items, size_t count,
                               struct spate_err *err)
{
    enum spate_rc rc = spate_apply_run(apply, items, count, NULL, NULL, NULL, err);

    /* Deferred constraints speak up at the end only. */
    if (rc == SPATE_OK && apply->deferrable) {
        spate_script_add(apply, "SET CONSTRAINTS ALL IMMEDIATE");
        rc = spate_script_run(apply, err);
    }
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
