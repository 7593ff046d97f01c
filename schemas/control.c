/* Lines of `_control` to requests and answers.
 *
 * People write requests by hand: fields stand in any order, what is not known is passed by, null is the same
 * as leaving an optional field out, and every error says which field of which table was expected to hold
 * what. */

#include "schemas/control.h"

#include "core/alloc.h"
#include "schemas/decode.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    MAX_TABLES = 10000,
    MAX_COLUMNS = 1600, /* Postgres' own limit */
    MAX_CONDITIONS = 100,
    MAX_KEYS = 100000,
    MAX_NAME = 63
};

#define OP(name) (1u << SPATE_CONTROL_##name)
#define ALL      (OP(UNKNOWN) | KNOWN)
#define KNOWN    (ASKS | ANSWERS | OP(STARTED))
#define ASKS     (OP(REQUEST) | OP(CANCEL) | OP(REREAD) | OP(FINISHED))
#define ANSWERS  (OP(ACCEPTED) | OP(REFUSED) | OP(PROGRESS))
#define NO_OP    0u

enum field {
    FIELD_SPATE,
    FIELD_OP,
    FIELD_EPOCH,
    FIELD_TO,
    FIELD_REQUEST,
    FIELD_SCHEMA,
    FIELD_TABLE,
    FIELD_TS,
    FIELD_SOURCE,
    FIELD_SINK,
    FIELD_TABLES,
    FIELD_AGAIN,
    FIELD_APPEND,
    FIELD_SOME,
    FIELD_CHUNK,
    FIELD_KEYS,
    FIELD_REASON,
    FIELD_REMEDY,
    FIELD_STATE,
    FIELD_WHY,
    FIELD_ROWS,
    FIELD_ESTIMATE,
    FIELD_PERCENT,
    FIELD_RATE,
    FIELD_LEFT,
    FIELD_COUNT
};

/* Which ops have the field, and which must. A field that the op does not have is passed by like an unknown
 * one.
 */
static const struct {
    const char *quoted;
    unsigned ops, needed;
} fields[] = {
    [FIELD_SPATE] = {"\"spate\"", ALL, ALL},
    [FIELD_OP] = {"\"op\"", ALL, ALL},
    [FIELD_EPOCH] = {"\"epoch\"", OP(STARTED), OP(STARTED)},
    [FIELD_TO] = {"\"to\"", KNOWN, ANSWERS},
    [FIELD_REQUEST] = {"\"request\"", ASKS | ANSWERS, ASKS | ANSWERS},
    [FIELD_SCHEMA] = {"\"schema\"", OP(REREAD), OP(REREAD)},
    [FIELD_TABLE] = {"\"table\"", OP(REREAD), OP(REREAD)},
    [FIELD_TS] = {"\"ts\"", KNOWN, NO_OP},
    [FIELD_SOURCE] = {"\"source\"", KNOWN, NO_OP},
    [FIELD_SINK] = {"\"sink\"", ASKS, ASKS},
    [FIELD_TABLES] = {"\"tables\"", OP(REQUEST) | OP(ACCEPTED) | OP(PROGRESS), OP(REQUEST) | OP(ACCEPTED)},
    [FIELD_AGAIN] = {"\"again\"", OP(REQUEST), NO_OP},
    [FIELD_APPEND] = {"\"append\"", OP(REQUEST), NO_OP},
    [FIELD_SOME] = {"\"some\"", OP(REQUEST), NO_OP},
    [FIELD_CHUNK] = {"\"chunk\"", OP(REREAD), NO_OP},
    [FIELD_KEYS] = {"\"keys\"", OP(REREAD), OP(REREAD)},
    [FIELD_REASON] = {"\"reason\"", OP(REFUSED), OP(REFUSED)},
    [FIELD_REMEDY] = {"\"remedy\"", OP(REFUSED), NO_OP},
    [FIELD_STATE] = {"\"state\"", OP(PROGRESS), OP(PROGRESS)},
    [FIELD_WHY] = {"\"why\"", OP(PROGRESS), NO_OP},
    [FIELD_ROWS] = {"\"rows\"", OP(PROGRESS), NO_OP},
    [FIELD_ESTIMATE] = {"\"estimate\"", OP(PROGRESS), NO_OP},
    [FIELD_PERCENT] = {"\"percent\"", OP(PROGRESS), NO_OP},
    [FIELD_RATE] = {"\"rate\"", OP(PROGRESS), NO_OP},
    [FIELD_LEFT] = {"\"left_s\"", OP(PROGRESS), NO_OP},
};
_Static_assert(SPATE_COUNT(fields) == FIELD_COUNT && FIELD_COUNT <= 32, "every field has a row and a bit");

/* Where in the message the reader is, for the error. */
struct reader {
    struct spate_json json;
    struct spate_control *out;
    size_t table; /* from 1; 0: not in a table */
    size_t item;  /* from 1: which column, condition or key; 0: none */
    const char *item_name;
};

static bool fail(struct reader *r, const char *why)
{
    return spate_json_fail(&r->json, SPATE_JSON_SYNTAX, why);
}

static enum spate_control_op op_of(struct spate_slice name)
{
    for (int op = 0; op < SPATE_CONTROL_UNKNOWN; op++)
        if (spate_slice_is(name, spate_control_op_name((enum spate_control_op)op)))
            return (enum spate_control_op)op;
    return SPATE_CONTROL_UNKNOWN;
}

bool spate_condition_op_known(struct spate_slice op, bool null)
{
    static const char *const with_null[] = {"is", "is not"};
    static const char *const with_value[] = {"=", "<>", "<", "<=", ">", ">="};

    if (null)
        return spate_slice_is(op, with_null[0]) || spate_slice_is(op, with_null[1]);
    for (size_t i = 0; i < SPATE_COUNT(with_value); i++)
        if (spate_slice_is(op, with_value[i]))
            return true;
    return false;
}

/* Names of requesters and requests go into logs, metrics and target tables. */
static bool is_name(struct spate_slice name)
{
    for (size_t i = 0; i < name.len; i++) {
        unsigned char c = (unsigned char)name.at[i];

        if (c < 0x20 || c == 0x7f)
            return false;
        if (c == 0xc2 && i + 1 < name.len && (unsigned char)name.at[i + 1] >= 0x80 &&
            (unsigned char)name.at[i + 1] < 0xa0) /* the control characters beyond ASCII */
            return false;
    }
    return name.len >= 1 && name.len <= MAX_NAME;
}

static bool read_name(struct reader *r, struct spate_slice *out)
{
    struct spate_slice name;

    if (!spate_json_name(&r->json, &name))
        return false;
    if (!is_name(name))
        return fail(r, "expected a name of 1 to 63 bytes without control characters");
    *out = name;
    return true;
}

/* Of a schema, a table or a column. */
static bool read_object_name(struct reader *r, struct spate_slice *out)
{
    if (!spate_json_name(&r->json, out))
        return false;
    if (memchr(out->at, 0, out->len) != NULL)
        return fail(r, spate_decode_nul);
    return out->len != 0 || fail(r, "expected a name that is not empty");
}

static bool read_number(struct reader *r, double *out)
{
    struct spate_slice raw;
    char c = spate_json_peek(&r->json), text[64];

    if (c < '0' || c > '9')
        return fail(r, "expected a number that is not negative");
    if (!spate_json_skip(&r->json, &raw))
        return false;
    if (raw.len >= sizeof(text))
        return fail(r, "the number has too many digits");
    memcpy(text, raw.at, raw.len);
    text[raw.len] = 0;
    *out = strtod(text, NULL);
    return true;
}

static bool read_columns(struct reader *r, struct spate_control_table *table)
{
    struct spate_slice *columns = NULL;
    bool first = true;

    r->item_name = "column";
    if (!spate_json_take(&r->json, '['))
        return false;
    while (spate_json_element(&r->json, &first)) {
        r->item = table->column_count + 1;
        if (table->column_count == MAX_COLUMNS)
            return fail(r, "a table has at most 1600 columns");
        columns = spate_decode_more(r->json.arena, columns, table->column_count, sizeof(*columns));
        if (!read_object_name(r, &columns[table->column_count]))
            return false;
        table->columns = columns;
        table->column_count++;
    }
    r->item = 0;
    if (r->json.why == NULL && table->column_count == 0)
        return fail(r, "expected at least one column; leave the field out to ask for all");
    return r->json.why == NULL;
}

static bool check_op(struct reader *r, const struct spate_condition *condition)
{
    if (spate_condition_op_known(condition->op, condition->null))
        return true;
    r->json.field = "\"op\"";
    if (!condition->null && spate_condition_op_known(condition->op, true))
        return fail(r, "\"is\" and \"is not\" go with null only; expected = <> < <= > or >=");
    if (condition->null && spate_condition_op_known(condition->op, false))
        return fail(r, "null goes with \"is\" and \"is not\" only");
    return fail(r, "expected one of = <> < <= > >= or, with null, \"is\" or \"is not\"");
}

static bool read_condition(struct reader *r, struct spate_condition *out)
{
    struct spate_json *json = &r->json;
    struct spate_value value = {0};
    struct spate_slice name;
    bool column = false, op = false;

    *out = (struct spate_condition){0};
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"column\""))
            ok = column = read_object_name(r, &out->column);
        else if (spate_decode_named(json, name, "\"op\""))
            ok = op = spate_json_string(json, &out->op);
        else if (spate_decode_named(json, name, "\"value\""))
            ok = spate_decode_value(json, &value) &&
                 (!spate_decode_has_nul(&value) || fail(r, spate_decode_nul));
        else
            ok = spate_json_skip(json, NULL);
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && !(column && op && value.kind != SPATE_VALUE_ABSENT))
        return spate_decode_missing(json, !column ? "\"column\"" : !op ? "\"op\"" : "\"value\"");
    out->null = value.kind == SPATE_VALUE_NULL;
    out->value = value.text;
    return json->why == NULL && check_op(r, out);
}

static bool read_where(struct reader *r, struct spate_control_table *table)
{
    struct spate_condition *where = NULL;
    bool first = true;

    r->item_name = "condition";
    if (!spate_json_take(&r->json, '['))
        return false;
    while (spate_json_element(&r->json, &first)) {
        r->item = table->where_count + 1;
        if (table->where_count == MAX_CONDITIONS)
            return fail(r, "a table has at most 100 conditions");
        where = spate_decode_more(r->json.arena, where, table->where_count, sizeof(*where));
        if (!read_condition(r, &where[table->where_count]))
            return false;
        table->where = where;
        table->where_count++;
    }
    r->item = 0;
    return r->json.why == NULL;
}

/* The fields of a table that the op has; all others are passed by. */
static bool read_table_field(struct reader *r, struct spate_slice name, struct spate_control_table *out)
{
    struct spate_json *json = &r->json;
    enum spate_control_op op = r->out->op;
    bool asks = op == SPATE_CONTROL_REQUEST, tells = op == SPATE_CONTROL_PROGRESS;

    if (spate_json_null(json))
        return true;
    if (asks && spate_decode_named(json, name, "\"columns\""))
        return read_columns(r, out);
    if (asks && spate_decode_named(json, name, "\"where\""))
        return read_where(r, out);
    if (asks && spate_decode_named(json, name, "\"resume\""))
        return spate_json_name(json, &out->resume);
    if (asks && spate_decode_named(json, name, "\"chunk\""))
        return spate_json_u64(json, UINT64_MAX, &out->chunk);
    if (!asks && spate_decode_named(json, name, "\"rows\""))
        return spate_json_u64(json, UINT64_MAX, &out->rows);
    if (!asks && spate_decode_named(json, name, "\"pages\""))
        return spate_json_u64(json, UINT64_MAX, &out->pages);
    if (tells && spate_decode_named(json, name, "\"of\""))
        return spate_json_u64(json, UINT64_MAX, &out->of);
    if (tells && spate_decode_named(json, name, "\"chunks\""))
        return spate_json_u64(json, UINT64_MAX, &out->chunks);
    return spate_json_skip(json, NULL);
}

static bool read_table(struct reader *r, struct spate_control_table *out)
{
    struct spate_json *json = &r->json;
    struct spate_slice name;
    bool schema = false, table = false;

    *out = (struct spate_control_table){0};
    if (!spate_json_take(json, '{'))
        return false;
    while (spate_json_field(json, &name)) {
        bool ok;

        if (spate_decode_named(json, name, "\"schema\""))
            ok = schema = read_object_name(r, &out->schema);
        else if (spate_decode_named(json, name, "\"table\""))
            ok = table = read_object_name(r, &out->table);
        else
            ok = read_table_field(r, name, out);
        if (!ok || !spate_json_after(json))
            return false;
    }
    if (json->why == NULL && !(schema && table))
        return spate_decode_missing(json, schema ? "\"table\"" : "\"schema\"");
    return json->why == NULL;
}

static bool read_tables(struct reader *r)
{
    struct spate_control *out = r->out;
    bool first = true;

    if (!spate_json_take(&r->json, '['))
        return false;
    while (spate_json_element(&r->json, &first)) {
        r->table = out->table_count + 1;
        if (out->table_count == MAX_TABLES)
            return fail(r, "a message has at most 10000 tables");
        out->tables = spate_decode_more(r->json.arena, out->tables, out->table_count, sizeof(*out->tables));
        if (!read_table(r, &out->tables[out->table_count++]))
            return false;
    }
    r->table = 0;
    r->json.field = fields[FIELD_TABLES].quoted;
    if (r->json.why == NULL && out->table_count == 0 && out->op == SPATE_CONTROL_REQUEST && out->to.len == 0)
        return fail(r, "expected at least one table");
    return r->json.why == NULL;
}

/* The keys stay as they are: what they are values of, the table's schema says. */
static bool read_keys(struct reader *r)
{
    struct spate_json *json = &r->json;
    size_t count = 0;
    const char *start;
    bool first = true;

    r->item_name = "key";
    if (!spate_json_take(json, '['))
        return false;
    start = json->at - 1;
    while (spate_json_element(json, &first)) {
        r->item = ++count;
        if (count > MAX_KEYS)
            return fail(r, "a message has at most 100000 keys");
        if (spate_json_peek(json) != '{')
            return fail(r, "expected an object with the key's columns");
        if (!spate_json_skip(json, NULL))
            return false;
    }
    r->item = 0;
    if (json->why == NULL && count == 0)
        return fail(r, "expected at least one key");
    r->out->keys = spate_slice(start, (size_t)(json->at - start));
    return json->why == NULL;
}

static bool read_field(struct reader *r, enum field field)
{
    struct spate_control *out = r->out;
    struct spate_json *json = &r->json;
    struct spate_slice text;
    uint64_t number = 0;

    switch (field) {
    case FIELD_SPATE:
        return spate_json_u64(json, UINT64_MAX, &number) && (number != 0 || fail(r, "there is no format 0"));
    case FIELD_OP:
        return spate_json_string(json, &text);
    case FIELD_EPOCH:
        return spate_json_u64(json, UINT64_MAX, &out->epoch);
    case FIELD_TO:
        return read_name(r, &out->to);
    case FIELD_REQUEST:
        return read_name(r, &out->request);
    case FIELD_SINK:
        return read_name(r, &out->sink);
    case FIELD_SCHEMA:
        return read_object_name(r, &out->schema);
    case FIELD_TABLE:
        return read_object_name(r, &out->table);
    case FIELD_TS:
        return spate_decode_ts(json, &out->wall_us);
    case FIELD_SOURCE:
        return spate_json_name(json, &out->source);
    case FIELD_TABLES:
        return read_tables(r);
    case FIELD_AGAIN:
        return spate_json_bool(json, &out->again);
    case FIELD_APPEND:
        return spate_json_bool(json, &out->append);
    case FIELD_SOME:
        return spate_json_bool(json, &out->some);
    case FIELD_CHUNK:
        return spate_json_u64(json, UINT64_MAX, &out->chunk);
    case FIELD_KEYS:
        return read_keys(r);
    case FIELD_REASON:
        return spate_json_name(json, &out->reason);
    case FIELD_REMEDY:
        return spate_json_name(json, &out->remedy);
    case FIELD_STATE:
        return spate_json_name(json, &out->state);
    case FIELD_WHY:
        return spate_json_name(json, &out->why);
    case FIELD_ROWS:
        return spate_json_u64(json, UINT64_MAX, &out->rows);
    case FIELD_ESTIMATE:
        return spate_json_u64(json, UINT64_MAX, &out->estimate);
    case FIELD_PERCENT:
        return read_number(r, &out->percent);
    case FIELD_RATE:
        return read_number(r, &out->rate);
    default:
        if (!spate_json_u64(json, INT64_MAX, &number))
            return false;
        out->left_s = (int64_t)number;
        return true;
    }
}

/* Who wrote it, and about which request: found even where the rest is damaged, so that it can be answered.
 * Nothing is refused here. */
static uint64_t outline(struct spate_slice line, struct spate_control *out, struct spate_arena *arena)
{
    struct reader r = {.json = spate_json_over(line, 0, arena), .out = out};
    struct spate_json *json = &r.json;
    struct spate_slice name, raw;
    uint64_t format = 0;

    if (!spate_json_take(json, '{'))
        return 0;
    while (spate_json_field(json, &name) && spate_json_skip(json, &raw)) {
        struct spate_json value = spate_json_over(raw, 0, arena);
        struct spate_slice text;

        if (spate_slice_is(name, "spate"))
            spate_json_u64(&value, UINT64_MAX, &format);
        else if (raw.at[0] == '"' && spate_slice_is(name, "op") && spate_json_string(&value, &text))
            out->op = op_of(text);
        else if (raw.at[0] == '"' && spate_json_name(&value, &text) && is_name(text)) {
            if (spate_slice_is(name, "sink"))
                out->sink = text;
            else if (spate_slice_is(name, "request"))
                out->request = text;
            else if (spate_slice_is(name, "to"))
                out->to = text;
        }
        if (!spate_json_after(json))
            break;
    }
    return format;
}

static enum spate_rc refuse(const struct reader *r, struct spate_err *err)
{
    const struct spate_control *out = r->out;
    const struct spate_json *json = &r->json;

    spate_fail(err, SPATE_QUARANTINE,
               "%s; docs/message-format.md, \"Asking for everything\", shows how such a message is written",
               json->why);
    if (json->field != NULL)
        spate_err_context(err, "field %s at byte %zu", json->field, json->where);
    else
        spate_err_context(err, "at byte %zu", json->where);
    if (r->item != 0)
        spate_err_context(err, "%s %zu", r->item_name, r->item);
    if (r->table != 0 && out->table_count >= r->table && out->tables[r->table - 1].table.len != 0)
        spate_err_context(err, "table %.*s.%.*s", SPATE_SLICE_ARG(out->tables[r->table - 1].schema),
                          SPATE_SLICE_ARG(out->tables[r->table - 1].table));
    else if (r->table != 0)
        spate_err_context(err, "table number %zu", r->table);
    if (out->op == SPATE_CONTROL_UNKNOWN)
        return spate_err_context(err, "control message not understood");
    return spate_err_context(err, "%s%s%.*s not understood", spate_control_op_name(out->op),
                             out->request.len != 0 ? " " : "", SPATE_SLICE_ARG(out->request));
}

/* Fails with the first field that the op must have and has not. */
static bool complete(struct reader *r, uint32_t seen)
{
    const struct spate_control *out = r->out;
    unsigned bit = 1u << out->op;
    /* Addressed to a sink, it is an order from whoever operates that: the sink asks for itself. */
    bool for_sink = out->op == SPATE_CONTROL_REQUEST && out->to.len != 0;

    for (unsigned i = 0; i < FIELD_COUNT && r->json.why == NULL; i++) {
        if ((fields[i].needed & bit) == 0 || (seen >> i & 1) != 0 ||
            (for_sink && (i == FIELD_SINK || i == FIELD_TABLES)))
            continue;
        r->json.field = fields[i].quoted;
        return fail(r, "the field is missing");
    }
    return r->json.why == NULL;
}

enum spate_rc spate_decode_control(struct spate_slice line, struct spate_control *out,
                                   struct spate_arena *arena, struct spate_err *err)
{
    struct reader r = {.json = spate_json_over(line, 0, arena), .out = out};
    struct spate_json *json = &r.json;
    struct spate_slice name;
    uint64_t format;
    uint32_t seen = 0;

    *out = (struct spate_control){.op = SPATE_CONTROL_UNKNOWN, .left_s = -1};
    format = outline(line, out, arena);
    if (format > SPATE_FORMAT) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(err, SPATE_FATAL,
                          "the control message has format %llu, and this program reads formats up to %d: "
                          "install a spate that is at least as new as the one that wrote it",
                          (unsigned long long)format, SPATE_FORMAT);
    }
    spate_json_take(json, '{');
    while (spate_json_field(json, &name)) {
        unsigned field = 0, bit = 1u << out->op;
        bool ok;

        json->field = NULL;
        while (field < FIELD_COUNT && !spate_decode_named(json, name, fields[field].quoted))
            field++;
        if (field == FIELD_COUNT || (fields[field].ops & bit) == 0) {
            ok = spate_json_skip(json, NULL);
        } else if ((seen >> field & 1) != 0) {
            ok = fail(&r, "the field stands twice");
        } else if ((fields[field].needed & bit) == 0 && spate_json_null(json)) {
            ok = true;
        } else {
            seen |= 1u << field;
            ok = read_field(&r, (enum field)field);
        }
        if (!ok || !spate_json_after(json))
            break;
    }
    if (!complete(&r, seen) || !spate_json_finish(json))
        return refuse(&r, err);
    return SPATE_OK;
}
