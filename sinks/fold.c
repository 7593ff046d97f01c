#include "sinks/fold.h"

#include "core/alloc.h"
#include "core/hash.h"
#include "sinks/projection.h"

#include <stdlib.h>

static uint64_t hash_key(const struct spate_version *version, const struct spate_value *key)
{
    size_t index = version->projection->index;
    uint64_t hash = spate_fnv64(SPATE_FNV64_START, &index, sizeof index);

    for (size_t i = 0; i < version->key_count; i++) {
        hash = spate_fnv64(hash, &key[i].text.len, sizeof key[i].text.len);
        hash = spate_fnv64(hash, key[i].text.at, key[i].text.len);
    }
    return hash ? hash : 1;
}

static bool same_key(const struct spate_version *version, const struct spate_value *a,
                     const struct spate_value *b)
{
    for (size_t i = 0; i < version->key_count; i++)
        if (a[i].kind != b[i].kind || !spate_slice_eq(a[i].text, b[i].text))
            return false;
    return true;
}

static void grow_slots(struct spate_piece *piece)
{
    size_t size = piece->slot_count ? piece->slot_count * 2 : 1024;

    free(piece->slots);
    piece->slots = spate_zalloc(size * sizeof *piece->slots);
    piece->slot_count = size;
    for (size_t i = 0; i < piece->count; i++) {
        size_t at = piece->entries[i].hash & (size - 1);
        while (piece->slots[at])
            at = (at + 1) & (size - 1);
        piece->slots[at] = (uint32_t)(i + 1);
    }
}

/* After one large piece come many small ones: they must not pay for its table. */
static void clear_slots(struct spate_piece *piece)
{
    if (piece->count * 8 > piece->slot_count) {
        memset(piece->slots, 0, piece->slot_count * sizeof *piece->slots);
        return;
    }
    for (size_t i = 0; i < piece->count; i++) {
        size_t at = piece->entries[i].hash & (piece->slot_count - 1);
        while (piece->slots[at] != i + 1)
            at = (at + 1) & (piece->slot_count - 1);
        piece->slots[at] = 0;
    }
}

/* The entry of a row. *is_new: there was none, and it has nothing but its key yet. */
static struct spate_entry *entry_of(struct spate_piece *piece, const struct spate_item *item,
                                    const struct spate_value *key, bool *is_new)
{
    uint64_t hash = hash_key(item->version, key);
    size_t at;

    if (piece->count * 2 >= piece->slot_count)
        grow_slots(piece);
    at = hash & (piece->slot_count - 1);
    for (; piece->slots[at]; at = (at + 1) & (piece->slot_count - 1)) {
        struct spate_entry *e = &piece->entries[piece->slots[at] - 1];
        if (e->hash == hash && e->version->projection == item->version->projection &&
            same_key(item->version, e->key, key)) {
            *is_new = false;
            return e;
        }
    }
    if (piece->count == piece->capacity) {
        piece->capacity = piece->capacity ? piece->capacity * 2 : 256;
        piece->entries = spate_realloc(piece->entries, piece->capacity * sizeof *piece->entries);
    }
    piece->entries[piece->count] = (struct spate_entry){.version = item->version, .key = key, .hash = hash};
    piece->slots[at] = (uint32_t)(++piece->count);
    *is_new = true;
    return &piece->entries[piece->count - 1];
}

static const struct spate_entry *find(const struct spate_piece *piece, const struct spate_item *item,
                                      const struct spate_value *key)
{
    uint64_t hash = hash_key(item->version, key);

    if (piece->slot_count == 0)
        return NULL;
    for (size_t at = hash & (piece->slot_count - 1); piece->slots[at];
         at = (at + 1) & (piece->slot_count - 1)) {
        const struct spate_entry *e = &piece->entries[piece->slots[at] - 1];
        if (e->hash == hash && e->version->projection == item->version->projection &&
            same_key(item->version, e->key, key))
            return e;
    }
    return NULL;
}

static bool has_absent(const struct spate_version *version, const struct spate_value *values)
{
    if (version->maybe_count == 0)
        return false;
    for (size_t i = 0; i < version->used_count; i++)
        if (values[i].kind == SPATE_VALUE_ABSENT)
            return true;
    return false;
}

/* The row's values, with what did not come taken from its earlier state where the piece has it. */
static const struct spate_value *filled(struct spate_piece *piece, const struct spate_item *item,
                                        const struct spate_entry *earlier)
{
    size_t count = item->version->used_count;
    struct spate_value *values;

    if (!has_absent(item->version, item->values) || !earlier || !earlier->values)
        return item->values;
    values = spate_arena_alloc(&piece->arena, count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = item->values[i].kind == SPATE_VALUE_ABSENT ? earlier->values[i] : item->values[i];
    return values;
}

static void set_row(struct spate_entry *e, const struct spate_item *item, const struct spate_value *values)
{
    bool deleted = e->op == SPATE_ENTRY_DELETE || e->op == SPATE_ENTRY_REPLACE;

    e->values = values;
    e->n = item->n;
    e->op = deleted ? SPATE_ENTRY_REPLACE : SPATE_ENTRY_UPSERT;
}

static void set_deleted(struct spate_entry *e, const struct spate_item *item)
{
    e->values = NULL;
    e->n = item->n;
    e->op = SPATE_ENTRY_DELETE;
}

/* False: the piece ends before this item. */
static bool fold_update(struct spate_piece *piece, const struct spate_item *item)
{
    const struct spate_value *from = item->old_key ? item->old_key : item->key;
    const struct spate_entry *earlier = find(piece, item, from);
    const struct spate_value *values = filled(piece, item, earlier);
    /* Two partial changes stay partial even when together they name every column: applied one by one they
     * would not make a row either, and where batches are cut must not show. */
    bool partial = has_absent(item->version, values) ||
                   (earlier && earlier->op == SPATE_ENTRY_PARTIAL && has_absent(item->version, item->values));
    bool is_new;
    struct spate_entry *e;

    if (!item->old_key) {
        if (partial && earlier && earlier->op == SPATE_ENTRY_DELETE)
            return false; /* the stream never says this; applied in order it is a missing row */
        e = entry_of(piece, item, item->key, &is_new);
        if (!partial) {
            set_row(e, item, values);
            return true;
        }
        e->op = SPATE_ENTRY_PARTIAL; /* an entry that had every value would have filled it */
        e->values = values;
        e->n = item->n;
        return true;
    }
    if (partial) {
        if (piece->count > 0)
            return false;
        e = entry_of(piece, item, item->key, &is_new);
        *e = (struct spate_entry){.version = item->version,
                                  .key = item->key,
                                  .old_key = item->old_key,
                                  .values = values,
                                  .n = item->n,
                                  .hash = e->hash,
                                  .op = SPATE_ENTRY_MOVE};
        return true;
    }
    set_deleted(entry_of(piece, item, item->old_key, &is_new), item);
    e = entry_of(piece, item, item->key, &is_new);
    if (is_new)
        e->fresh = true;
    set_row(e, item, values);
    return true;
}

static void fold_row(struct spate_piece *piece, const struct spate_item *item)
{
    bool is_new;
    struct spate_entry *e = entry_of(piece, item, item->key, &is_new);

    if (item->op == SPATE_OP_DELETE) {
        set_deleted(e, item);
        return;
    }
    if (item->op == SPATE_OP_CHUNK) {
        e->n = item->n;
        e->op = SPATE_ENTRY_ANSWERED;
        return;
    }
    /* A row of a snapshot may have been there before; an insert cannot. */
    if (is_new && item->op == SPATE_OP_INSERT)
        e->fresh = true;
    set_row(e, item, item->values);
}

/* One piece is about one version of each table: another one has other staging columns. */
static bool same_version(struct spate_piece *piece, const struct spate_version *version)
{
    size_t index = version->projection->index;

    if (index >= piece->version_count) {
        piece->versions = spate_realloc(piece->versions, (index + 1) * sizeof *piece->versions);
        while (piece->version_count <= index)
            piece->versions[piece->version_count++] = NULL;
    }
    if (!piece->versions[index])
        piece->versions[index] = version;
    return piece->versions[index] == version;
}

size_t spate_fold(struct spate_piece *piece, const struct spate_item *items, size_t count)
{
    spate_arena_reset(&piece->arena);
    piece->kind = SPATE_PIECE_ROWS;
    piece->truncate = NULL;
    piece->answers = false;
    clear_slots(piece);
    piece->count = 0;
    for (size_t i = 0; i < piece->version_count; i++)
        piece->versions[i] = NULL;

    for (size_t i = 0; i < count; i++) {
        const struct spate_item *item = &items[i];

        if (item->op == SPATE_OP_TRUNCATE) {
            if (i > 0)
                return i;
            piece->kind = SPATE_PIECE_TRUNCATE;
            piece->truncate = item;
            return 1;
        }
        if (!same_version(piece, item->version))
            return i;
        if (i == 0)
            piece->answers = item->op == SPATE_OP_CHUNK;
        else if (piece->answers != (item->op == SPATE_OP_CHUNK))
            return i;
        if (item->op == SPATE_OP_UPDATE) {
            if (!fold_update(piece, item))
                return i;
            if (piece->count == 1 && piece->entries[0].op == SPATE_ENTRY_MOVE)
                return i + 1;
        } else {
            fold_row(piece, item);
        }
    }
    return count;
}

void spate_piece_fini(struct spate_piece *piece)
{
    free(piece->entries);
    free(piece->slots);
    free(piece->versions);
    spate_arena_fini(&piece->arena);
    *piece = (struct spate_piece){0};
}
