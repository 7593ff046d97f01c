/* sinks/merge.c - the rows of one piece become statements: staged, then deleted, inserted, updated. */
#include "sinks/merge.h"

#include "sinks/generation.h"
#include "sinks/projection.h"
#include "sinks/script.h"

#include <string.h>

#define SMALL_ROWS  200         /* up to so many rows of a table come as parameters, not by COPY */
#define SMALL_BYTES (64 * 1024) /* and so many bytes */
#define PLAIN_PAUSE 64

/* What a piece holds of one version. */
struct share {
    const struct spate_version *version;
    size_t rows, bytes;
    size_t erased;     /* 'd' and 'r' */
    size_t erased_old; /* of those, rows that were there before the piece */
    size_t upserted;   /* 'u' and 'r' */
    size_t partial, moved;
    size_t answered; /* 'k' */
    bool all_fresh;  /* every upserted row came into being in this piece */
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
        share.answered += e->op == SPATE_ENTRY_ANSWERED;
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

/* Where a version's rows go: with a copy that is first, then the team's table. */
struct layer {
    const struct spate_merge *merge;
    const char *where;
    bool copied; /* by COPY, into the staging table */
    bool judged; /* a row that is not there is missing (T12) */
    bool beside; /* the team's table beside a copy */
};

/* Rows that cannot be there yet need no conflict clause, which is nearly twice as fast (T33). When one is
 * there all the same (a sink that began late, or was started again), the savepoint brings the conflict clause
 * back. */
static enum spate_rc insert_plain(struct spate_apply *apply, const struct spate_version *version,
                                  const struct layer *layer, struct spate_err *err)
{
    enum spate_rc rc;

    spate_script_add(apply, "SAVEPOINT spate");
    if (spate_script_run(apply, err) != SPATE_OK)
        return SPATE_FAIL;
    execute(apply, layer->merge->insert, version, 0);
    spate_script_add(apply, "RELEASE SAVEPOINT spate");
    rc = spate_script_run(apply, err);
    if (rc == SPATE_OK || strcmp(err->sqlstate, "23505") != 0)
        return rc;
    apply->plain_pause = PLAIN_PAUSE;
    apply->plain_failed++;
    *err = (struct spate_err){0};
    spate_script_add(apply, "ROLLBACK TO SAVEPOINT spate");
    spate_script_add(apply, "RELEASE SAVEPOINT spate");
    execute(apply, layer->merge->upsert, version, 0);
    return SPATE_OK;
}

static const struct spate_load *load_of(const struct share *share)
{
    return &share->version->projection->load;
}

/* What a condition keeps out was mostly never there: only where there is none a miss tells something. So it
 * is while a snapshot is on its way: what it has not brought yet is no loss. */
static uint64_t expected_erased(const struct share *share, const struct layer *layer)
{
    if (layer->where || !layer->judged || load_of(share)->kind != SPATE_LOAD_NONE)
        return 0;
    return share->erased_old;
}

/* Then a partial change that finds no row puts its key on the re-read list instead. */
static uint64_t expected_partial(const struct share *share, const struct layer *layer, size_t count)
{
    return layer->judged && load_of(share)->kind == SPATE_LOAD_NONE ? count : 0;
}

/* Rows of a table that began empty come once, mostly: when one moved and comes twice the savepoint mends it.
 */
static bool may_be_plain(const struct share *share)
{
    enum spate_load_kind kind = load_of(share)->kind;

    return share->all_fresh ||
           (share->erased == 0 && (kind == SPATE_LOAD_EMPTY || kind == SPATE_LOAD_SHADOW));
}

/* One of a layer's statements, over what was staged with COPY or over arrays. */
static void run(struct spate_apply *apply, const struct share *share, const struct layer *layer,
                const char *sql, const char *ops, uint64_t expected)
{
    if (!sql)
        return;
    if (layer->copied)
        execute(apply, sql, share->version, expected);
    else
        execute_small(apply, sql, share->version, ops, expected);
}

/* Deletes before upserts: inside a piece that is any order (sinks/fold.h). */
static void merge_erase(struct spate_apply *apply, const struct share *share, const struct layer *layer)
{
    const struct spate_merge *merge = layer->merge;
    const char *ops = layer->where ? "dru" : "dr";

    if (load_of(share)->listed && (share->erased || share->upserted || share->answered))
        run(apply, share, layer, merge->load.off, "druk", 0);
    if (share->erased == 0 && (!layer->where || share->upserted == 0))
        return;
    run(apply, share, layer, merge->erase, ops, expected_erased(share, layer));
    run(apply, share, layer, merge->load.unmark, ops, 0);
}

static enum spate_rc merge_upsert(struct spate_apply *apply, const struct share *share,
                                  const struct layer *layer, struct spate_err *err)
{
    bool plain = layer->copied && may_be_plain(share) && apply->plain_pause == 0;

    if (share->upserted == 0)
        return SPATE_OK;
    if (plain && insert_plain(apply, share->version, layer, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!plain)
        run(apply, share, layer, layer->merge->upsert, "ur", 0);
    run(apply, share, layer, layer->merge->load.mark, "ur", 0);
    return SPATE_OK;
}

/* What is not known is listed before the rows change, since a move changes what is known. */
static void merge_partial(struct spate_apply *apply, const struct share *share, const struct layer *layer)
{
    const struct spate_merge *merge = layer->merge;

    if (share->partial) {
        run(apply, share, layer, merge->load.list, "p", 0);
        run(apply, share, layer, merge->partial, "p", expected_partial(share, layer, share->partial));
        if (!spate_load_strict(load_of(share)))
            run(apply, share, layer, merge->stale, "p", 0);
    }
    if (share->moved) {
        run(apply, share, layer, merge->load.list_move, "m", 0);
        run(apply, share, layer, merge->load.off_move, "m", 0);
        if (!spate_load_strict(load_of(share)))
            run(apply, share, layer, merge->load.clear, "m", 0);
        run(apply, share, layer, merge->room, "m", 0);
        run(apply, share, layer, merge->move, "m", expected_partial(share, layer, share->moved));
        run(apply, share, layer, merge->left, "m", 0);
        run(apply, share, layer, merge->load.mark_move, "m", 0);
    }
    if (share->partial + share->moved > 0 && merge->load.list)
        share->version->projection->load.listed = true;
}

/* Beside a copy, which has all of the row: as it is now, whatever came. */
static void merge_derived(struct spate_apply *apply, const struct share *share, const struct layer *layer)
{
    const struct spate_merge *merge = layer->merge;

    if (share->moved) {
        run(apply, share, layer, merge->room, "m", 0);
        run(apply, share, layer, merge->left, "m", 0);
    }
    if (share->partial + share->moved == 0)
        return;
    run(apply, share, layer, merge->partial, "pm", 0);
}

static enum spate_rc merge_layer(struct spate_apply *apply, const struct share *share,
                                 const struct layer *layer, struct spate_err *err)
{
    enum spate_rc rc;

    merge_erase(apply, share, layer);
    rc = merge_upsert(apply, share, layer, err);
    if (layer->beside)
        merge_derived(apply, share, layer);
    else
        merge_partial(apply, share, layer);
    return rc;
}

/* A version with other columns than the table's rows were kept with: from here on not all of them are known,
 * which is stored with what makes it so (sinks/copy.h). */
static void note_shape(struct spate_apply *apply, const struct spate_version *version)
{
    struct spate_load *load = &version->projection->load;
    struct spate_buf sql = {0};

    if (!load->copied || !load->ready || (load->stored_hash && strcmp(load->stored_hash, version->hash) == 0))
        return;
    spate_buf_printf(&sql, "UPDATE %s.spate_table SET snapshotted = false", apply->store->schema);
    spate_load_where(version->projection, &sql);
    spate_script_add(apply, spate_buf_str(&sql));
    spate_buf_fini(&sql);
    load->ready = false;
    load->lacks = true;
}

static enum spate_rc merge_version(struct spate_apply *apply, const struct share *share, bool copied,
                                   struct spate_err *err)
{
    const struct spate_version *version = share->version;
    const struct spate_load *load = load_of(share);
    const struct layer copy = {.merge = copied ? &version->sql.copy.large : &version->sql.copy.small,
                               .copied = copied,
                               .judged = true};
    const struct layer team = {.merge = copied ? &version->sql.large : &version->sql.small,
                               .where = version->where,
                               .copied = copied,
                               .judged = !load->copied,
                               .beside = load->copied};
    enum spate_rc rc = SPATE_OK;

    note_shape(apply, version);
    if (copied) {
        apply->plain_pause -= share->upserted && apply->plain_pause > 0;
        clear_stage(apply, share);
        stage_copy(apply, version);
    }
    if (load->copied)
        rc = merge_layer(apply, share, &copy, err);
    if (rc == SPATE_OK && !(load->copied && load->kind == SPATE_LOAD_SHADOW))
        rc = merge_layer(apply, share, &team, err);
    return rc;
}

enum spate_rc spate_merge_piece(struct spate_apply *apply, struct spate_err *err)
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
        copy = share.rows > SMALL_ROWS || share.bytes > SMALL_BYTES || share.version->only_copy;
        apply->rows += share.rows;
        if (merge_version(apply, &share, copy, err) != SPATE_OK)
            return SPATE_FAIL;
        any_copy |= copy;
    }
    /* COPY reads the piece while the script runs, and the next fold overwrites it. */
    if (any_copy || apply->sql.len > 4 * SMALL_BYTES)
        return spate_script_run(apply, err);
    return SPATE_OK;
}
