/* Lines to snapshots; encode_snapshot.c has the layout. The rows of a read are decode_rows.c's. */

#include "schemas/decode.h"
#include "schemas/snapshot.h"

/* Digits without sign or leading zero, up to max. */
static bool number(const char **at, const char *end, uint64_t max, uint64_t *out)
{
    const char *start = *at;
    uint64_t value = 0;

    while (*at < end && **at >= '0' && **at <= '9' && value <= max)
        value = value * 10 + (uint64_t)(*(*at)++ - '0');
    *out = value;
    return *at > start && value <= max && (*start != '0' || *at == start + 1);
}

bool spate_tid_parse(struct spate_slice text, uint64_t *tid)
{
    uint64_t page, line;
    const char *at, *end;

    if (text.len < 5 || text.at[0] != '(' || text.at[text.len - 1] != ')')
        return false;
    at = text.at + 1;
    end = text.at + text.len - 1;
    if (!number(&at, end, UINT32_MAX, &page) || at == end || *at++ != ',' ||
        !number(&at, end, UINT16_MAX, &line) || at != end)
        return false;
    *tid = SPATE_TID(page, line);
    return true;
}

static struct spate_addressed addressed(const struct spate_head *head, const struct spate_meta *meta)
{
    return (struct spate_addressed){.at = head->n,
                                    .epoch = head->epoch,
                                    .to = head->to,
                                    .request = head->request,
                                    .wall_us = meta->ts_us,
                                    .source = meta->source};
}

static bool read_by(struct spate_json *json, struct spate_chunk_name *name)
{
    struct spate_slice text;
    uint64_t by;

    if (!spate_json_string(json, &text))
        return false;
    if (!spate_decode_hex(text, SPATE_BY_TEXT, &by))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected 8 hex digits in lower case");
    name->by = (uint32_t)by;
    return true;
}

static bool read_no(struct spate_json *json, struct spate_chunk_name *name)
{
    return spate_json_u64(json, UINT64_MAX, &name->no) &&
           (name->no != 0 || spate_json_fail(json, SPATE_JSON_SYNTAX, "chunks count from 1"));
}

static bool read_tid(struct spate_json *json, uint64_t *tid)
{
    struct spate_slice text;

    return spate_json_string(json, &text) &&
           (spate_tid_parse(text, tid) ||
            spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a page and a line as (128,0)"));
}

static bool read_range(struct spate_json *json, struct spate_chunk *out)
{
    struct spate_slice name;
    bool from = false, to = false;

    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"from\""))
            ok = from = read_tid(json, &out->from);
        else if (spate_decode_named(json, name, "\"to\""))
            ok = to = read_tid(json, &out->to);
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && !(from && to))
        return spate_decode_missing(json, from ? "\"to\"" : "\"from\"");
    if (json->why == NULL && out->from > out->to) {
        json->field = "\"range\":";
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "the range ends before it begins");
    }
    return json->why == NULL;
}

static bool read_array(struct spate_json *json, struct spate_slice *raw)
{
    if (spate_json_peek(json) != '[')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected an array");
    return spate_json_skip(json, raw);
}

enum spate_rc spate_decode_chunk(struct spate_slice line, struct spate_chunk *out, struct spate_arena *arena,
                                 struct spate_err *err)
{
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true, range = false;

    *out = (struct spate_chunk){0};
    if (spate_decode_begin(line, SPATE_OP_CHUNK, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    out->head = addressed(&head, &meta);
    out->schema = head.schema;
    out->name = head.table;
    out->v = meta.v;
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_BY)
            ok = read_by(json, &out->chunk);
        else if (field == SPATE_FIELD_NO)
            ok = read_no(json, &out->chunk);
        else if (field == SPATE_FIELD_RANGE)
            ok = range = read_range(json, out);
        else if (field == SPATE_FIELD_KEYS)
            ok = out->by_keys = read_array(json, &out->keys);
        else if (field == SPATE_FIELD_SINCE)
            ok = spate_json_name(json, &out->since);
        else if (field == SPATE_FIELD_DROPPED)
            ok = read_array(json, &out->dropped);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    if (json->why == NULL && range == out->by_keys) {
        json->field = "\"range\":";
        spate_json_fail(json, SPATE_JSON_SYNTAX, "a chunk has either a range or keys");
    }
    return spate_decode_end(&decoder,
                            spate_field_bit(SPATE_FIELD_BY) | spate_field_bit(SPATE_FIELD_NO) |
                                spate_field_bit(SPATE_FIELD_DROPPED),
                            err);
}

enum spate_rc spate_decode_chunk_end(struct spate_slice line, struct spate_chunk_end *out,
                                     struct spate_arena *arena, struct spate_err *err)
{
    struct spate_decoder decoder;
    struct spate_json *json = &decoder.json;
    struct spate_head head;
    struct spate_meta meta;
    bool ok = true;

    *out = (struct spate_chunk_end){0};
    if (spate_decode_begin(line, SPATE_OP_CHUNK_END, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    out->head = addressed(&head, &meta);
    out->schema = head.schema;
    out->name = head.table;
    out->v = meta.v;
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_BY)
            ok = read_by(json, &out->chunk);
        else if (field == SPATE_FIELD_NO)
            ok = read_no(json, &out->chunk);
        else if (field == SPATE_FIELD_READS)
            ok = spate_json_u64(json, UINT64_MAX, &out->count);
        else if (field == SPATE_FIELD_RESUME)
            ok = spate_json_name(json, &out->resume);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    return spate_decode_end(&decoder,
                            spate_field_bit(SPATE_FIELD_BY) | spate_field_bit(SPATE_FIELD_NO) |
                                spate_field_bit(SPATE_FIELD_READS) | spate_field_bit(SPATE_FIELD_RESUME),
                            err);
}

enum spate_rc spate_decode_chunk_name(struct spate_slice line, const struct spate_meta *meta,
                                      struct spate_chunk_name *name, struct spate_arena *arena,
                                      struct spate_err *err)
{
    const uint64_t both = spate_field_bit(SPATE_FIELD_BY) | spate_field_bit(SPATE_FIELD_NO);
    struct spate_decoder decoder = spate_decoder_over(line, meta->rest, NULL, arena);
    struct spate_json *json = &decoder.json;
    bool ok = true;

    *name = (struct spate_chunk_name){0};
    while (ok && (decoder.seen & both) != both) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_BY)
            ok = read_by(json, name);
        else if (field == SPATE_FIELD_NO)
            ok = read_no(json, name);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    if (ok && (decoder.seen & both) == both)
        return SPATE_OK;
    if (json->why == NULL)
        spate_decode_missing(json,
                             (decoder.seen & spate_field_bit(SPATE_FIELD_BY)) != 0 ? "\"no\"" : "\"by\"");
    return spate_decode_refuse(&decoder, err);
}

static bool read_table(struct spate_json *json, struct spate_named_table *out, bool counted)
{
    struct spate_slice name;
    bool schema = false, table = false, chunks = !counted, resume = !counted;

    *out = (struct spate_named_table){0};
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"schema\""))
            ok = schema = spate_json_name(json, &out->schema);
        else if (spate_decode_named(json, name, "\"table\""))
            ok = table = spate_json_name(json, &out->table);
        else if (counted && spate_decode_named(json, name, "\"chunks\""))
            ok = chunks = spate_json_u64(json, UINT64_MAX, &out->chunks);
        else if (counted && spate_decode_named(json, name, "\"resume\""))
            ok = resume = spate_json_name(json, &out->resume);
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && !(schema && table && chunks && resume))
        return spate_decode_missing(json, !schema   ? "\"schema\""
                                          : !table  ? "\"table\""
                                          : !chunks ? "\"chunks\""
                                                    : "\"resume\"");
    return json->why == NULL;
}

/* snapshot-begin and ranges-end: what follows their meta. */
static enum spate_rc read_tables(struct spate_decoder *decoder, struct spate_named_table **tables,
                                 size_t *count, bool counted, struct spate_err *err)
{
    struct spate_json *json = &decoder->json;
    bool ok = true, first = true;

    while (ok) {
        enum spate_field field = spate_decode_body(decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_TABLES) {
            ok = spate_json_take(json, '[');
            while (ok && spate_json_element(json, &first)) {
                *tables = spate_decode_more(json->arena, *tables, *count, sizeof(**tables));
                ok = read_table(json, &(*tables)[(*count)++], counted);
            }
        } else {
            ok = spate_json_skip(json, NULL);
        }
        ok = ok && spate_json_after(json);
    }
    return spate_decode_end(decoder, spate_field_bit(SPATE_FIELD_TABLES), err);
}

enum spate_rc spate_decode_snapshot_begin(struct spate_slice line, struct spate_snapshot_begin *out,
                                          struct spate_arena *arena, struct spate_err *err)
{
    struct spate_named_table *tables = NULL;
    struct spate_decoder decoder;
    struct spate_head head;
    struct spate_meta meta;
    enum spate_rc rc;

    *out = (struct spate_snapshot_begin){0};
    if (spate_decode_begin(line, SPATE_OP_SNAPSHOT_BEGIN, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    out->head = addressed(&head, &meta);
    out->end = head.end;
    rc = read_tables(&decoder, &tables, &out->count, false, err);
    out->tables = tables;
    return rc;
}

enum spate_rc spate_decode_ranges_end(struct spate_slice line, struct spate_ranges_end *out,
                                      struct spate_arena *arena, struct spate_err *err)
{
    struct spate_named_table *tables = NULL;
    struct spate_decoder decoder;
    struct spate_head head;
    struct spate_meta meta;
    enum spate_rc rc;

    *out = (struct spate_ranges_end){0};
    if (spate_decode_begin(line, SPATE_OP_RANGES_END, &head, &meta, &decoder, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    out->head = addressed(&head, &meta);
    rc = read_tables(&decoder, &tables, &out->count, true, err);
    out->tables = tables;
    return rc;
}
