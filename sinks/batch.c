#include "sinks/batch.h"

#include "core/alloc.h"
#include "sinks/projection.h"

#include <inttypes.h>
#include <stdlib.h>

void spate_batch_fini(struct spate_batch *batch)
{
    free(batch->items);
    free(batch->scratch);
    spate_arena_fini(&batch->arena[0]);
    spate_arena_fini(&batch->arena[1]);
    *batch = (struct spate_batch){0};
}

static struct spate_arena *arena_of(struct spate_batch *batch)
{
    return &batch->arena[batch->active];
}

static struct spate_item *push(struct spate_batch *batch)
{
    if (batch->count == batch->capacity) {
        batch->capacity = batch->capacity ? batch->capacity * 2 : 1024;
        batch->items = spate_realloc(batch->items, batch->capacity * sizeof *batch->items);
    }
    batch->items[batch->count] = (struct spate_item){0};
    return &batch->items[batch->count++];
}

/* Text that borrows from the line is copied; what the decoder unescaped is in the arena already. */
static struct spate_value keep(struct spate_arena *arena, struct spate_slice line, struct spate_value value)
{
    if (value.kind == SPATE_VALUE_TEXT && value.text.len && value.text.at >= line.at &&
        value.text.at < line.at + line.len)
        value.text = spate_arena_copy(arena, value.text);
    return value;
}

/* The old key where it is another one. `before` may hold nothing, the old key, or the whole old row. */
static const struct spate_value *moved_from(struct spate_arena *arena, struct spate_slice line,
                                            const struct spate_version *version,
                                            const struct spate_rows *rows)
{
    struct spate_value *old;
    bool moved = false;

    if (!rows->has_before)
        return NULL;
    for (size_t k = 0; k < version->key_count; k++) {
        const struct spate_value *value = &rows->before[version->table->key[k]];
        if (value->kind != SPATE_VALUE_TEXT)
            return NULL; /* `before` is another identity than the key (USING INDEX beside it) */
        moved |= !spate_slice_eq(value->text, rows->key[k].text);
    }
    if (!moved)
        return NULL;
    old = spate_arena_alloc(arena, version->key_count * sizeof *old);
    for (size_t k = 0; k < version->key_count; k++)
        old[k] = keep(arena, line, rows->before[version->table->key[k]]);
    return old;
}

static enum spate_rc lacks(const struct spate_version *version, const struct spate_head *head, size_t column,
                           const char *what, struct spate_err *err)
{
    return spate_fail(
        err, SPATE_QUARANTINE,
        "%.*s n=%" PRIu64 " of %.*s.%.*s has no value for %s %.*s, which this sink needs; on the source "
        "check the table's REPLICA IDENTITY",
        SPATE_SLICE_ARG(head->op_name), head->n, SPATE_SLICE_ARG(head->schema), SPATE_SLICE_ARG(head->table),
        what, SPATE_SLICE_ARG(version->table->columns[column].name));
}

/* The columns that are used, in the order of version->used. */
static enum spate_rc narrow(struct spate_batch *batch, const struct spate_version *version,
                            struct spate_slice line, const struct spate_head *head,
                            const struct spate_rows *rows, struct spate_item *item, struct spate_err *err)
{
    struct spate_value *values = spate_arena_alloc(arena_of(batch), version->used_count * sizeof *values);

    for (size_t i = 0; i < version->used_count; i++) {
        values[i] = keep(arena_of(batch), line, rows->after[version->used[i]]);
        if (values[i].kind == SPATE_VALUE_ABSENT &&
            (head->op == SPATE_OP_READ || (version->maybe[i] < 0 && head->op == SPATE_OP_INSERT)))
            return lacks(version, head, version->used[i], "column", err);
    }
    /* A key that was not sent again stands in the old tuple only (P43). */
    for (size_t k = 0; k < version->key_count; k++)
        values[version->key_at[k]] = item->key[k];
    for (size_t i = 0; i < version->used_count; i++)
        if (values[i].kind == SPATE_VALUE_ABSENT && version->maybe[i] < 0)
            return lacks(version, head, version->used[i], "column", err);
    item->values = values;
    return SPATE_OK;
}

enum spate_rc spate_batch_add(struct spate_batch *batch, const struct spate_version *version,
                              struct spate_slice line, const struct spate_head *head,
                              const struct spate_meta *meta, struct spate_err *err)
{
    const struct spate_table *table = version->table;
    struct spate_arena *arena = arena_of(batch);
    size_t room = table->column_count * 2 + table->key_count;
    struct spate_rows rows;
    struct spate_value *key;
    struct spate_item item = {.op = head->op, .n = head->n, .version = version};

    if (room > batch->scratch_count) {
        batch->scratch = spate_realloc(batch->scratch, room * sizeof *batch->scratch);
        batch->scratch_count = room;
    }
    rows = (struct spate_rows){.before = batch->scratch,
                               .after = batch->scratch + table->column_count,
                               .key = batch->scratch + 2 * table->column_count};
    if (spate_decode_rows(line, head, meta, table,
                          head->op == SPATE_OP_DELETE ? version->want_key : version->want, &rows, arena,
                          err) != SPATE_OK)
        return SPATE_FAIL;
    key = spate_arena_alloc(arena, version->key_count * sizeof *key);
    for (size_t k = 0; k < version->key_count; k++) {
        if (rows.key[k].kind != SPATE_VALUE_TEXT)
            return lacks(version, head, table->key[k], "key column", err);
        key[k] = keep(arena, line, rows.key[k]);
    }
    item.key = key;
    if (head->op == SPATE_OP_UPDATE)
        item.old_key = moved_from(arena, line, version, &rows);
    if (head->op != SPATE_OP_DELETE && narrow(batch, version, line, head, &rows, &item, err) != SPATE_OK)
        return SPATE_FAIL;
    *push(batch) = item;
    return SPATE_OK;
}

const struct spate_projection **spate_batch_add_truncate(struct spate_batch *batch, uint64_t n, size_t count)
{
    struct spate_item *item = push(batch);

    item->op = SPATE_OP_TRUNCATE;
    item->n = n;
    item->tables = spate_arena_alloc(arena_of(batch), count * sizeof *item->tables);
    item->table_count = count;
    return item->tables;
}

static const struct spate_value *copy_values(struct spate_arena *arena, const struct spate_value *from,
                                             size_t count)
{
    struct spate_value *to;

    if (!from)
        return NULL;
    to = spate_arena_alloc(arena, count * sizeof *to);
    for (size_t i = 0; i < count; i++) {
        to[i] = from[i];
        if (from[i].kind == SPATE_VALUE_TEXT)
            to[i].text = spate_arena_copy(arena, from[i].text);
    }
    return to;
}

void spate_batch_add_answer(struct spate_batch *batch, const struct spate_version *version, uint64_t n,
                            const struct spate_value *key)
{
    struct spate_item *item = push(batch);

    item->op = SPATE_OP_CHUNK;
    item->n = n;
    item->version = version;
    item->key = copy_values(arena_of(batch), key, version->key_count);
}

static void copy_item(struct spate_arena *arena, struct spate_item *to, const struct spate_item *from)
{
    *to = *from;
    if (from->op == SPATE_OP_TRUNCATE) {
        to->tables = spate_arena_alloc(arena, from->table_count * sizeof *to->tables);
        memcpy(to->tables, from->tables, from->table_count * sizeof *to->tables);
        return;
    }
    to->key = copy_values(arena, from->key, from->version->key_count);
    to->old_key = copy_values(arena, from->old_key, from->version->key_count);
    to->values = copy_values(arena, from->values, from->version->used_count);
}

void spate_batch_drop(struct spate_batch *batch, size_t count)
{
    struct spate_arena *old = arena_of(batch);
    size_t left = batch->count - count;

    if (count == 0 && left > 0)
        return;
    if (left > 0) {
        struct spate_arena *fresh = &batch->arena[!batch->active];
        for (size_t i = 0; i < left; i++) {
            struct spate_item item = batch->items[count + i];
            copy_item(fresh, &batch->items[i], &item);
        }
        batch->active = !batch->active;
    }
    batch->count = left;
    batch->complete = batch->complete > count ? batch->complete - count : 0;
    spate_arena_reset(old);
}

void spate_batch_clear(struct spate_batch *batch)
{
    spate_batch_drop(batch, batch->count);
}
