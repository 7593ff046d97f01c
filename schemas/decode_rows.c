/* The rows of an insert, update, delete or read.
 *
 *   "key":{…}|null,"before":{…}|null,"after":{…}|null,"unchanged":[…]}
 *
 * A row is an object with a value for each column. Our writers put the columns in the table's order, so the
 * next column is found by comparing its name as it is written; any other order works too, more slowly. */

#include "schemas/decode.h"
#include "schemas/snapshot.h"

/* A place that was met though it holds no value (not wanted, or unchanged) points here until the row is done,
 * so that a second mention and a missing one are both noticed without memory of their own. */
static const char met[1];

static bool is_met(const struct spate_value *value)
{
    return value->kind != SPATE_VALUE_ABSENT || value->text.at == met;
}

static bool written(const struct spate_json *json, struct spate_slice text)
{
    return text.len <= (size_t)(json->end - json->at) && memcmp(json->at, text.at, text.len) == 0;
}

/* Which column the reader's next name is; consumes it with its colon. `next` is the first candidate. */
static bool read_column(struct spate_decoder *decoder, const struct spate_table *table, size_t next,
                        size_t *out)
{
    struct spate_json *json = &decoder->json;
    struct spate_slice name;
    int column;

    spate_json_peek(json);
    for (size_t i = next; i < table->column_count; i++)
        if (written(json, table->columns[i].json_name)) {
            json->at += table->columns[i].json_name.len;
            *out = i;
            return true;
        }
    if (!spate_json_name(json, &name) || !spate_json_take(json, ':'))
        return false;
    column = spate_table_column(table, name);
    decoder->column = name;
    if (column < 0)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "this version of the table has no such column");
    *out = (size_t)column;
    return true;
}

static bool read_raw(struct spate_json *json, struct spate_value *value)
{
    value->kind = SPATE_VALUE_TEXT;
    return spate_json_skip(json, &value->text);
}

bool spate_decode_value(struct spate_json *json, struct spate_value *value)
{
    switch (spate_json_peek(json)) {
    case '"':
        value->kind = SPATE_VALUE_TEXT;
        return spate_json_string(json, &value->text);
    case 'n':
        value->kind = SPATE_VALUE_NULL;
        return spate_json_null(json);
    case '{': {
        struct spate_json again = *json;
        struct spate_slice inner;

        if (!read_raw(json, value))
            return false;
        if (!spate_json_only_bytes(value->text, &inner))
            return true;
        *json = again;
        return spate_json_text(json, &value->text);
    }
    default:
        if (!read_raw(json, value))
            return false;
        /* The one number that is not written as Postgres spells it. */
        if (spate_slice_is(value->text, "-0.0"))
            value->text.len = 2;
        return true;
    }
}

const char spate_decode_nul[] = "a text of Postgres has no character 0";

bool spate_decode_has_nul(const struct spate_value *value)
{
    return value->kind == SPATE_VALUE_TEXT && value->text.len != 0 &&
           memchr(value->text.at, 0, value->text.len) != NULL;
}

/* An object of columns, or null. */
static bool read_row(struct spate_decoder *decoder, const struct spate_table *table, const bool *want,
                     struct spate_value *values, bool *present)
{
    struct spate_json *json = &decoder->json;
    size_t next = 0, i;

    *present = false;
    if (spate_json_null(json))
        return true;
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_peek(json) != '}') {
        if (!read_column(decoder, table, next, &i))
            return false;
        decoder->column = table->columns[i].name;
        if (is_met(&values[i]))
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "the column stands twice");
        if (want == NULL || want[i]) {
            if (!spate_decode_value(json, &values[i]))
                return false;
        } else {
            values[i].text.at = met;
            if (!spate_json_skip(json, NULL))
                return false;
        }
        if (!spate_json_after(json))
            return false;
        next = i + 1;
    }
    json->at++;
    decoder->column = (struct spate_slice){0};
    *present = true;
    return true;
}

static bool read_unchanged(struct spate_decoder *decoder, const struct spate_table *table,
                           struct spate_value *after, size_t *count)
{
    struct spate_json *json = &decoder->json;
    struct spate_slice name;
    bool first = true;

    if (!spate_json_take(json, '['))
        return false;
    while (spate_json_element(json, &first)) {
        int column;

        if (!spate_json_name(json, &name))
            return false;
        decoder->column = name;
        column = spate_table_column(table, name);
        if (column < 0)
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "this version of the table has no such column");
        if (is_met(&after[column]))
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "the column stands twice");
        after[column].text.at = met;
        (*count)++;
    }
    decoder->column = (struct spate_slice){0};
    return json->why == NULL;
}

/* The place among the key's columns of the reader's next name. */
static bool read_key_column(struct spate_decoder *decoder, const struct spate_table *table, size_t next,
                            size_t *out)
{
    size_t column;

    if (next < table->key_count && written(&decoder->json, table->columns[table->key[next]].json_name)) {
        decoder->json.at += table->columns[table->key[next]].json_name.len;
        *out = next;
        return true;
    }
    if (!read_column(decoder, table, 0, &column))
        return false;
    for (*out = 0; *out < table->key_count; ++*out)
        if (table->key[*out] == column)
            return true;
    decoder->column = table->columns[column].name;
    return spate_json_fail(&decoder->json, SPATE_JSON_SYNTAX, "the column is not part of the table's key");
}

static bool read_key(struct spate_decoder *decoder, const struct spate_table *table, struct spate_value *key)
{
    struct spate_json *json = &decoder->json;
    size_t found = 0, i;

    if (spate_json_null(json))
        return table->key_count == 0 ||
               spate_json_fail(json, SPATE_JSON_SYNTAX, "the table has a key, and the message has none");
    if (table->key_count == 0)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "the table has no key, and the message has one");
    if (!spate_json_take(json, '{'))
        return false;
    for (; spate_json_peek(json) != '}'; found++) {
        if (!read_key_column(decoder, table, found, &i))
            return false;
        decoder->column = table->columns[table->key[i]].name;
        if (is_met(&key[i]))
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "the column stands twice");
        if (!spate_decode_value(json, &key[i]) || !spate_json_after(json))
            return false;
    }
    if (found < table->key_count)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "a column of the table's key is missing");
    decoder->column = (struct spate_slice){0};
    json->at++;
    return true;
}

/* Every column has its value or is said to be unchanged, and the rows are those that the op has. A snapshot
 * has only the columns that its requester asked for. */
static bool check_rows(struct spate_decoder *decoder, const struct spate_table *table, const bool *want,
                       const struct spate_rows *rows, size_t unchanged)
{
    struct spate_json *json = &decoder->json;
    enum spate_op op = decoder->head->op;
    bool after = op != SPATE_OP_DELETE, before = op == SPATE_OP_DELETE;

    json->field = "\"after\":";
    if (rows->has_after != after)
        return spate_json_fail(json, SPATE_JSON_SYNTAX,
                               after ? "a new row is missing" : "a delete has no new row");
    if (unchanged != 0 && op != SPATE_OP_UPDATE)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "only an update has unchanged columns");
    if (op != SPATE_OP_UPDATE && rows->has_before != before) {
        json->field = "\"before\":";
        return spate_json_fail(json, SPATE_JSON_SYNTAX,
                               before ? "the old row is missing" : "there is no old row");
    }
    for (size_t i = 0; i < table->column_count; i++) {
        struct spate_value *value = &rows->after[i];

        if (after && !is_met(value) && (op != SPATE_OP_READ || want == NULL || want[i])) {
            decoder->column = table->columns[i].name;
            return spate_json_fail(json, SPATE_JSON_SYNTAX,
                                   "the column is neither in after nor in unchanged");
        }
        if (value->kind == SPATE_VALUE_ABSENT)
            value->text.at = NULL;
        if (rows->before[i].kind == SPATE_VALUE_ABSENT)
            rows->before[i].text.at = NULL;
    }
    return true;
}

enum spate_rc spate_decode_rows(struct spate_slice line, const struct spate_head *head,
                                const struct spate_meta *meta, const struct spate_table *table,
                                const bool *want, struct spate_rows *rows, struct spate_arena *arena,
                                struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(line, meta->rest, head, arena);
    struct spate_json *json = &decoder.json;
    uint64_t needed = spate_field_bit(SPATE_FIELD_KEY) | spate_field_bit(SPATE_FIELD_AFTER);
    size_t unchanged = 0;
    bool ok = true;

    rows->has_before = rows->has_after = false;
    for (size_t i = 0; i < table->column_count; i++)
        rows->before[i] = rows->after[i] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
    if (rows->key == NULL)
        rows->key = spate_arena_alloc(arena, (table->key_count + 1) * sizeof(*rows->key));
    for (size_t i = 0; i < table->key_count; i++)
        rows->key[i] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
    if (head->op != SPATE_OP_READ && (head->op < SPATE_OP_INSERT || head->op > SPATE_OP_DELETE))
        spate_json_fail(json, SPATE_JSON_SYNTAX, "a message of this op has no rows");
    while (ok) {
        enum spate_field field = spate_decode_body(&decoder);

        if (field == SPATE_FIELD_NONE)
            break;
        if (field == SPATE_FIELD_KEY)
            ok = read_key(&decoder, table, rows->key);
        else if (field == SPATE_FIELD_BEFORE)
            ok = read_row(&decoder, table, want, rows->before, &rows->has_before);
        else if (field == SPATE_FIELD_AFTER)
            ok = read_row(&decoder, table, want, rows->after, &rows->has_after);
        else if (field == SPATE_FIELD_UNCHANGED)
            ok = read_unchanged(&decoder, table, rows->after, &unchanged);
        else
            ok = spate_json_skip(json, NULL);
        ok = ok && spate_json_after(json);
    }
    if (head->op != SPATE_OP_READ)
        needed |= spate_field_bit(SPATE_FIELD_BEFORE) | spate_field_bit(SPATE_FIELD_UNCHANGED);
    if (spate_decode_end(&decoder, needed, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!check_rows(&decoder, table, want, rows, unchanged))
        return spate_decode_refuse(&decoder, err);
    return SPATE_OK;
}

/* The error of a list of keys: there is no message around it whose place could be told. */
static enum spate_rc refuse_keys(const struct spate_decoder *decoder, const struct spate_table *table,
                                 size_t index, struct spate_err *err)
{
    struct spate_slice column = decoder->column;

    return spate_fail(err, SPATE_QUARANTINE,
                      "key %zu of table %.*s.%.*s%s%.*s, byte %zu of the keys: %s; a key is an object with a "
                      "value for each column of the table's key",
                      index, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name),
                      column.len != 0 ? ", column " : "", SPATE_SLICE_ARG(column), decoder->json.where,
                      decoder->json.why);
}

static bool count_elements(struct spate_slice array, size_t *count)
{
    struct spate_json json = spate_json_over(array, 0, NULL);
    bool first = true;

    *count = 0;
    if (!spate_json_take(&json, '['))
        return false;
    while (spate_json_element(&json, &first)) {
        if (!spate_json_skip(&json, NULL))
            return false;
        ++*count;
    }
    return spate_json_finish(&json);
}

enum spate_rc spate_decode_keys(struct spate_slice text, const struct spate_table *table,
                                struct spate_value **values, size_t *count, struct spate_arena *arena,
                                struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(text, 0, NULL, arena);
    struct spate_json *json = &decoder.json;
    size_t found = 0;
    bool first = true;

    *values = NULL;
    *count = 0;
    if (!count_elements(text, &found))
        return spate_fail(err, SPATE_QUARANTINE, "the keys of table %.*s.%.*s are no JSON array",
                          SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
    *values = spate_arena_alloc(arena, (found * table->key_count + 1) * sizeof(**values));
    spate_json_take(json, '[');
    while (spate_json_element(json, &first)) {
        struct spate_value *key = *values + *count * table->key_count;

        for (size_t i = 0; i < table->key_count; i++)
            key[i] = (struct spate_value){.kind = SPATE_VALUE_ABSENT};
        if (table->key_count == 0)
            spate_json_fail(json, SPATE_JSON_SYNTAX, "the table has no key");
        read_key(&decoder, table, key);
        for (size_t i = 0; i < table->key_count && json->why == NULL; i++) {
            decoder.column = table->columns[table->key[i]].name;
            if (key[i].kind == SPATE_VALUE_NULL)
                spate_json_fail(json, SPATE_JSON_SYNTAX, "a column of a key is never null");
            else if (spate_decode_has_nul(&key[i]))
                spate_json_fail(json, SPATE_JSON_SYNTAX, spate_decode_nul);
        }
        if (json->why != NULL)
            return refuse_keys(&decoder, table, *count + 1, err);
        ++*count;
    }
    return SPATE_OK;
}
