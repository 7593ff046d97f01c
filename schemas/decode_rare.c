/* What follows the head and the meta of the messages that are not rows: truncate, message, stale, epoch,
 * schema, storage. A heartbeat has nothing more. */

#include "core/alloc.h"
#include "schemas/class.h"
#include "schemas/decode.h"

bool spate_decode_named(struct spate_json *json, struct spate_slice name, const char *quoted)
{
    if (!spate_slice_eq(name, spate_slice(quoted + 1, strlen(quoted) - 2)))
        return false;
    json->field = quoted;
    return true;
}

bool spate_decode_u32(struct spate_json *json, uint32_t *out)
{
    uint64_t number = 0;

    if (!spate_json_u64(json, UINT32_MAX, &number))
        return false;
    *out = (uint32_t)number;
    return true;
}

bool spate_decode_missing(struct spate_json *json, const char *quoted)
{
    if (json->why == NULL)
        json->field = quoted;
    return spate_json_fail(json, SPATE_JSON_SYNTAX, "the field is missing");
}

void *spate_decode_more(struct spate_arena *arena, const void *array, size_t count, size_t size)
{
    void *grown;

    if ((count & (count - 1)) != 0)
        return (void *)(uintptr_t)array;
    grown = spate_arena_alloc(arena, (count == 0 ? 1 : 2 * count) * size);
    if (count != 0)
        memcpy(grown, array, count * size);
    return grown;
}

bool spate_decode_hex(struct spate_slice text, size_t count, uint64_t *out)
{
    uint64_t value = 0;

    if (text.len != count)
        return false;
    for (size_t i = 0; i < count; i++) {
        char c = text.at[i];

        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
            return false;
        value = value << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    *out = value;
    return true;
}

static bool read_truncated(struct spate_json *json, struct spate_truncated *out)
{
    struct spate_slice name;
    bool schema = false, table = false;

    *out = (struct spate_truncated){0};
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"schema\""))
            ok = schema = spate_json_name(json, &out->schema);
        else if (spate_decode_named(json, name, "\"table\""))
            ok = table = spate_json_name(json, &out->table);
        else if (spate_decode_named(json, name, "\"v\""))
            ok = spate_decode_u32(json, &out->v);
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && (!schema || !table || out->v == 0))
        return spate_decode_missing(json, !schema ? "\"schema\"" : !table ? "\"table\"" : "\"v\"");
    return json->why == NULL;
}

enum spate_rc spate_decode_truncate(struct spate_slice line, const struct spate_meta *meta,
                                    struct spate_truncation *out, struct spate_arena *arena,
                                    struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(line, meta->rest, NULL, arena);
    struct spate_json *json = &decoder.json;
    bool ok = true, first = true;

    *out = (struct spate_truncation){0};
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_TABLES) {
            ok = spate_json_take(json, '[');
            while (ok && spate_json_element(json, &first)) {
                out->tables = spate_decode_more(arena, out->tables, out->count, sizeof(*out->tables));
                ok = read_truncated(json, &out->tables[out->count++]);
            }
            if (out->count == 0)
                ok = spate_json_fail(json, SPATE_JSON_SYNTAX, "a truncate names at least one table");
        } else if (field == SPATE_FIELD_CASCADE) {
            ok = spate_json_bool(json, &out->cascade);
        } else if (field == SPATE_FIELD_RESTART) {
            ok = spate_json_bool(json, &out->restart);
        } else {
            ok = spate_json_skip(json, NULL);
        }
        ok = ok && spate_json_after(json);
    }
    return spate_decode_end(&decoder,
                            spate_field_bit(SPATE_FIELD_TABLES) | spate_field_bit(SPATE_FIELD_CASCADE) |
                                spate_field_bit(SPATE_FIELD_RESTART),
                            err);
}

enum spate_rc spate_decode_message(struct spate_slice line, const struct spate_meta *meta,
                                   struct spate_slice *prefix, struct spate_slice *content,
                                   struct spate_arena *arena, struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(line, meta->rest, NULL, arena);
    struct spate_json *json = &decoder.json;
    bool ok = true;

    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_PREFIX)
            ok = spate_json_text(json, prefix);
        else if (field == SPATE_FIELD_CONTENT)
            ok = spate_json_text(json, content);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    return spate_decode_end(&decoder,
                            spate_field_bit(SPATE_FIELD_PREFIX) | spate_field_bit(SPATE_FIELD_CONTENT), err);
}

enum spate_rc spate_decode_begin(struct spate_slice line, enum spate_op op, struct spate_head *head,
                                 struct spate_meta *meta, struct spate_decoder *decoder,
                                 struct spate_arena *arena, struct spate_err *err)
{
    if (spate_decode_head(line, head, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (head->op != op)
        return spate_fail(err, SPATE_QUARANTINE, "expected a message of op %s and met one of op %.*s",
                          spate_op_name(op), SPATE_SLICE_ARG(head->op_name));
    if (spate_decode_meta(line, head, meta, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    *decoder = spate_decoder_over(line, meta->rest, head, arena);
    return SPATE_OK;
}

enum spate_rc spate_decode_heartbeat(struct spate_slice line, struct spate_heartbeat *out,
                                     struct spate_arena *arena, struct spate_err *err)
{
    struct spate_decoder decoder;
    struct spate_head head;
    struct spate_meta meta;

    if (spate_decode_begin(line, SPATE_OP_HEARTBEAT, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    while (spate_decode_body(&decoder) != SPATE_FIELD_NONE)
        if (!spate_json_skip(&decoder.json, NULL) || !spate_json_after(&decoder.json))
            break;
    *out = (struct spate_heartbeat){
        .at = head.n, .epoch = head.epoch, .end = head.end, .wall_us = meta.ts_us, .source = meta.source};
    return spate_decode_end(&decoder, 0, err);
}

enum spate_rc spate_decode_stale(struct spate_slice line, struct spate_stale *out, struct spate_arena *arena,
                                 struct spate_err *err)
{
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_slice *columns = NULL;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true, first = true;

    if (spate_decode_begin(line, SPATE_OP_STALE, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    *out = (struct spate_stale){.at = head.n,
                                .epoch = head.epoch,
                                .end = head.end,
                                .wall_us = meta.ts_us,
                                .source = meta.source,
                                .schema = head.schema,
                                .table = head.table,
                                .v = meta.v};
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_WHY) {
            ok = spate_json_name(json, &out->why);
        } else if (field == SPATE_FIELD_COLUMNS) {
            ok = spate_json_take(json, '[');
            while (ok && spate_json_element(json, &first)) {
                columns = spate_decode_more(arena, columns, out->column_count, sizeof(*columns));
                ok = spate_json_name(json, &columns[out->column_count++]);
            }
        } else {
            ok = spate_json_skip(json, NULL);
        }
        ok = ok && spate_json_after(json);
    }
    out->columns = columns;
    return spate_decode_end(&decoder, spate_field_bit(SPATE_FIELD_WHY), err);
}

enum spate_rc spate_decode_storage(struct spate_slice line, struct spate_storage *out,
                                   struct spate_arena *arena, struct spate_err *err)
{
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true;

    if (spate_decode_begin(line, SPATE_OP_STORAGE, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    *out = (struct spate_storage){.epoch = head.epoch,
                                  .end = head.end,
                                  .wall_us = meta.ts_us,
                                  .source = meta.source,
                                  .schema = head.schema,
                                  .table = head.table};
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_GONE)
            ok = spate_json_bool(json, &out->gone);
        else if (field == SPATE_FIELD_STATE)
            ok = spate_json_name(json, &out->state);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    return spate_decode_end(&decoder, spate_field_bit(SPATE_FIELD_GONE) | spate_field_bit(SPATE_FIELD_STATE),
                            err);
}

static bool read_identity(struct spate_json *json, struct spate_source_identity *out)
{
    static const char *const needed[] = {"\"system\"",       "\"timeline\"", "\"database\"",
                                         "\"database_oid\"", "\"slot\"",     "\"publication\""};
    struct spate_slice name;
    unsigned seen = 0;

    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        unsigned i = 0;
        bool ok;

        while (i < SPATE_COUNT(needed) && !spate_decode_named(json, name, needed[i]))
            i++;
        seen |= 1u << i;
        if (i == 0)
            ok = spate_json_name(json, &out->system);
        else if (i == 1)
            ok = spate_decode_u32(json, &out->timeline);
        else if (i == 2)
            ok = spate_json_name(json, &out->database);
        else if (i == 3)
            ok = spate_decode_u32(json, &out->database_oid);
        else if (i == 4)
            ok = spate_json_name(json, &out->slot);
        else if (i == 5)
            ok = spate_json_name(json, &out->publication);
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    for (unsigned i = 0; i < SPATE_COUNT(needed); i++)
        if ((seen >> i & 1) == 0)
            return spate_decode_missing(json, needed[i]);
    return json->why == NULL;
}

static bool read_previous(struct spate_json *json, struct spate_epoch *out)
{
    struct spate_slice text;
    bool epoch = false, n = false;

    out->previous = SPATE_PREVIOUS_NONE;
    if (spate_json_null(json))
        return true;
    if (spate_json_peek(json) == '"') {
        out->previous = SPATE_PREVIOUS_BROKEN;
        return spate_json_string(json, &text) &&
               (spate_slice_is(text, "broken") ||
                spate_json_fail(json, SPATE_JSON_SYNTAX, "expected null, \"broken\", or an epoch and its n"));
    }
    out->previous = SPATE_PREVIOUS_CONTINUES;
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &text)) {
        bool ok;

        if (spate_decode_named(json, text, "\"epoch\""))
            ok = epoch = spate_json_u64(json, UINT64_MAX, &out->previous_epoch);
        else if (spate_decode_named(json, text, "\"n\""))
            ok = n = spate_json_u64(json, UINT64_MAX, &out->previous_n);
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    return epoch && n ? json->why == NULL : spate_decode_missing(json, epoch ? "\"n\"" : "\"epoch\"");
}

enum spate_rc spate_decode_epoch(struct spate_slice line, struct spate_epoch *out, struct spate_arena *arena,
                                 struct spate_err *err)
{
    static const char *const followers[] = {[SPATE_PREVIOUS_NONE] = "start",
                                            [SPATE_PREVIOUS_BROKEN] = "snapshot",
                                            [SPATE_PREVIOUS_CONTINUES] = "continue"};
    struct spate_slice follower = {0};
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true;

    if (spate_decode_begin(line, SPATE_OP_EPOCH, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    *out = (struct spate_epoch){
        .at = head.n, .epoch = head.epoch, .end = head.end, .wall_us = meta.ts_us, .source = meta.source};
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_UUID)
            ok = spate_json_name(json, &out->uuid);
        else if (field == SPATE_FIELD_WHY)
            ok = spate_json_name(json, &out->why);
        else if (field == SPATE_FIELD_IDENTITY)
            ok = read_identity(json, &out->identity);
        else if (field == SPATE_FIELD_PREVIOUS)
            ok = read_previous(json, out);
        else if (field == SPATE_FIELD_FOLLOWER)
            ok = spate_json_string(json, &follower);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    if (spate_decode_end(&decoder,
                         spate_field_bit(SPATE_FIELD_UUID) | spate_field_bit(SPATE_FIELD_WHY) |
                             spate_field_bit(SPATE_FIELD_IDENTITY) | spate_field_bit(SPATE_FIELD_PREVIOUS) |
                             spate_field_bit(SPATE_FIELD_FOLLOWER),
                         err) != SPATE_OK)
        return SPATE_FAIL;
    /* What a follower must do is said twice, and nobody should act on half of a contradiction. */
    if (spate_slice_is(follower, followers[out->previous]))
        return SPATE_OK;
    json->field = "\"follower\":";
    spate_json_fail(json, SPATE_JSON_SYNTAX, "it does not agree with previous");
    return spate_decode_refuse(&decoder, err);
}

/* A schema message, before it is a table: the key comes before the columns. */
struct draft {
    struct spate_slice *key;
    size_t key_count;
    struct spate_column *columns;
    size_t column_count;
    enum spate_identity identity;
    uint64_t fingerprint;
};

static bool read_draft_column(struct spate_json *json, struct spate_column *out)
{
    struct spate_slice name, text = {0};
    bool seen_name = false, seen_oid = false, seen_mod = false, seen_len = false, seen_identity = false,
         said = false;
    int32_t number = 0;

    *out = (struct spate_column){0};
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"name\"")) {
            ok = seen_name = spate_json_name(json, &out->name);
        } else if (spate_decode_named(json, name, "\"type\"")) {
            ok = spate_json_name(json, &out->type);
        } else if (spate_decode_named(json, name, "\"oid\"")) {
            ok = seen_oid = spate_decode_u32(json, &out->oid);
        } else if (spate_decode_named(json, name, "\"mod\"")) {
            ok = seen_mod = spate_json_i32(json, &out->mod);
        } else if (spate_decode_named(json, name, "\"len\"")) {
            ok = seen_len = spate_json_i32(json, &number) &&
                            ((number >= INT16_MIN && number <= INT16_MAX) ||
                             spate_json_fail(json, SPATE_JSON_SYNTAX, "the number is too large"));
            out->len = (int16_t)(ok ? number : 0);
        } else if (spate_decode_named(json, name, "\"identity\"")) {
            ok = seen_identity = spate_json_bool(json, &out->identity);
        } else if (spate_decode_named(json, name, "\"base\"")) {
            ok = spate_json_name(json, &out->base);
        } else if (spate_decode_named(json, name, "\"mask\"")) {
            ok = spate_json_name(json, &out->mask);
        } else if (spate_decode_named(json, name, "\"class\"")) {
            ok = said = spate_json_string(json, &text) &&
                        (spate_class_parse(text, &out->json_class) ||
                         spate_json_fail(json, SPATE_JSON_SYNTAX, "there is no class of that name"));
        } else {
            ok = spate_json_skip(json, NULL);
        }
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && !(seen_name && seen_oid && seen_mod && seen_len && seen_identity))
        return spate_decode_missing(json, !seen_name  ? "\"name\""
                                          : !seen_oid ? "\"oid\""
                                          : !seen_mod ? "\"mod\""
                                          : !seen_len ? "\"len\""
                                                      : "\"identity\"");
    if (!said)
        out->json_class = spate_class_by(out->oid, out->base);
    return json->why == NULL;
}

static bool read_draft_field(struct spate_json *json, enum spate_field field, struct draft *draft)
{
    struct spate_slice text = {0};
    bool first = true;

    switch (field) {
    case SPATE_FIELD_FINGERPRINT:
        if (!spate_json_string(json, &text))
            return false;
        return spate_decode_hex(text, 16, &draft->fingerprint) ||
               spate_json_fail(json, SPATE_JSON_SYNTAX, "expected 16 hex digits in lower case");
    case SPATE_FIELD_IDENTITY:
        return spate_json_string(json, &text) &&
               (spate_identity_parse(text, &draft->identity) ||
                spate_json_fail(json, SPATE_JSON_SYNTAX, "expected default, nothing, full or index"));
    case SPATE_FIELD_KEY:
        if (spate_json_null(json))
            return true;
        if (!spate_json_take(json, '['))
            return false;
        while (spate_json_element(json, &first)) {
            draft->key = spate_decode_more(json->arena, draft->key, draft->key_count, sizeof(*draft->key));
            if (!spate_json_name(json, &draft->key[draft->key_count++]))
                return false;
        }
        return json->why == NULL;
    case SPATE_FIELD_COLUMNS:
        if (!spate_json_take(json, '['))
            return false;
        while (spate_json_element(json, &first)) {
            draft->columns =
                spate_decode_more(json->arena, draft->columns, draft->column_count, sizeof(*draft->columns));
            if (!read_draft_column(json, &draft->columns[draft->column_count++]))
                return false;
        }
        return json->why == NULL;
    default:
        return spate_json_skip(json, NULL);
    }
}

/* NULL when a column of the key is not among the columns. */
static struct spate_table *build(const struct draft *draft, const struct spate_head *head,
                                 const struct spate_meta *meta)
{
    struct spate_table *table =
        spate_table_new(head->schema, head->table, draft->identity, draft->column_count, draft->key_count);

    table->v = meta->v;
    for (size_t i = 0; i < draft->column_count; i++) {
        const struct spate_column *column = &draft->columns[i];

        spate_table_set_column(table, i, column->name, column->type, column->base, column->oid, column->mod,
                               column->len, column->identity, column->json_class);
        spate_table_set_mask(table, i, column->mask);
    }
    for (size_t i = 0; i < draft->key_count; i++) {
        int column = spate_table_column(table, draft->key[i]);

        if (column < 0) {
            spate_table_free(table);
            return NULL;
        }
        table->key[i] = (uint32_t)column;
    }
    spate_table_seal(table);
    return table;
}

enum spate_rc spate_decode_schema(struct spate_slice line, struct spate_table **out,
                                  struct spate_arena *arena, struct spate_err *err)
{
    struct draft draft = {.identity = SPATE_IDENTITY_DEFAULT};
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_table *table;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true;

    if (spate_decode_begin(line, SPATE_OP_SCHEMA, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        ok = read_draft_field(json, field, &draft) && spate_json_after(json);
    }
    if (spate_decode_end(&decoder,
                         spate_field_bit(SPATE_FIELD_FINGERPRINT) | spate_field_bit(SPATE_FIELD_IDENTITY) |
                             spate_field_bit(SPATE_FIELD_KEY) | spate_field_bit(SPATE_FIELD_COLUMNS),
                         err) != SPATE_OK)
        return SPATE_FAIL;
    table = build(&draft, &head, &meta);
    if (table == NULL) {
        json->field = "\"key\":";
        spate_json_fail(json, SPATE_JSON_SYNTAX, "it names a column that the table does not have");
        return spate_decode_refuse(&decoder, err);
    }
    if (table->fingerprint != draft.fingerprint) {
        spate_table_free(table);
        json->field = "\"fingerprint\":";
        spate_json_fail(json, SPATE_JSON_SYNTAX, "it does not belong to these columns");
        return spate_decode_refuse(&decoder, err);
    }
    *out = table;
    return SPATE_OK;
}
