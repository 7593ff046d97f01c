/* Lines to heads and metas: what every reader needs of every message.
 *
 *   {"spate":1,"op":…,"n"|"at":…,"epoch":…,"to":…,"request":…,"schema":…,"table":…,"pos":…,"end":…,   the
 * head "xid":…,"ts":…,"source":…,"v":…,                                                               the
 * meta …}                                                             decode_rows.c and decode_rare.c
 *
 * Fields of the head stand in this order and before all others, or the message is refused: a reader that
 * stops early must not overlook one. */

#include "schemas/decode.h"

#define FIELD(name)                                                                                          \
    {                                                                                                        \
        "\"" name "\":", sizeof(name) + 2                                                                    \
    }

static const struct spate_slice fields[] = {
    FIELD("spate"),     FIELD("op"),          FIELD("n"),       FIELD("at"),       FIELD("epoch"),
    FIELD("to"),        FIELD("request"),     FIELD("schema"),  FIELD("table"),    FIELD("pos"),
    FIELD("end"),       FIELD("xid"),         FIELD("ts"),      FIELD("source"),   FIELD("v"),
    FIELD("by"),        FIELD("no"),          FIELD("key"),     FIELD("before"),   FIELD("after"),
    FIELD("unchanged"), FIELD("tables"),      FIELD("cascade"), FIELD("restart"),  FIELD("prefix"),
    FIELD("content"),   FIELD("uuid"),        FIELD("why"),     FIELD("identity"), FIELD("previous"),
    FIELD("follower"),  FIELD("fingerprint"), FIELD("columns"), FIELD("range"),    FIELD("keys"),
    FIELD("since"),     FIELD("dropped"),     FIELD("count"),   FIELD("resume"),   FIELD("gone"),
    FIELD("state"),
};
_Static_assert(sizeof(fields) / sizeof(fields[0]) == SPATE_FIELD_COUNT, "every field has a name");

struct spate_decoder spate_decoder_over(struct spate_slice line, size_t offset, const struct spate_head *head,
                                        struct spate_arena *arena)
{
    return (struct spate_decoder){.json = spate_json_over(line, offset, arena), .head = head};
}

enum spate_field spate_decode_field(struct spate_decoder *decoder, enum spate_field guess)
{
    struct spate_json *json = &decoder->json;
    struct spate_slice name;

    decoder->column = (struct spate_slice){0};
    if (spate_json_peek(json) == '}')
        return SPATE_FIELD_NONE;
    /* Our own writers: one of the next fields, spelled exactly so. */
    for (size_t i = guess; i < SPATE_FIELD_COUNT; i++) {
        size_t len = fields[i].len;

        if (len <= (size_t)(json->end - json->at) && json->at[1] == fields[i].at[1] &&
            memcmp(json->at, fields[i].at, len) == 0) {
            json->at += len;
            json->field = fields[i].at;
            return (enum spate_field)i;
        }
    }
    json->field = NULL;
    if (!spate_json_field(json, &name))
        return SPATE_FIELD_NONE;
    for (size_t i = 0; i < SPATE_FIELD_COUNT; i++)
        if (spate_slice_eq(name, spate_slice(fields[i].at + 1, fields[i].len - 3))) {
            json->field = fields[i].at;
            return (enum spate_field)i;
        }
    return SPATE_FIELD_FOREIGN;
}

enum spate_field spate_decode_body(struct spate_decoder *decoder)
{
    enum spate_field field = spate_decode_field(decoder, SPATE_FIELD_BY);

    if (field >= SPATE_FIELD_COUNT)
        return field;
    if (field <= SPATE_FIELD_V || (decoder->seen & spate_field_bit(field)) != 0) {
        spate_json_fail(&decoder->json, SPATE_JSON_SYNTAX, "the field stands twice, or not where it belongs");
        return SPATE_FIELD_NONE;
    }
    decoder->seen |= spate_field_bit(field);
    return field;
}

enum spate_rc spate_decode_refuse(const struct spate_decoder *decoder, struct spate_err *err)
{
    const struct spate_json *json = &decoder->json;
    const struct spate_head *head = decoder->head;
    struct spate_slice column = decoder->column;

    spate_fail(
        err, SPATE_QUARANTINE,
        "%s; the message was damaged, or something other than spate wrote it: look at it with `spate tap`",
        json->why);
    if (column.len != 0)
        spate_err_context(err, "column %.*s", SPATE_SLICE_ARG(column));
    if (json->field != NULL)
        spate_err_context(err, "field %.*s at byte %zu", (int)strcspn(json->field, ":"), json->field,
                          json->where);
    else
        spate_err_context(err, "at byte %zu", json->where);
    if (head == NULL)
        return spate_err_context(err, "message not understood");
    if (head->has_pos)
        err->lsn = head->pos.commit_lsn;
    if (head->table.len != 0)
        spate_err_context(err, "table %.*s.%.*s", SPATE_SLICE_ARG(head->schema),
                          SPATE_SLICE_ARG(head->table));
    return spate_err_context(err, "%.*s message %llu of epoch %llu not understood",
                             SPATE_SLICE_ARG(head->op_name), (unsigned long long)head->n,
                             (unsigned long long)head->epoch);
}

/* Fails with the first of the missing fields. */
static bool complete(struct spate_decoder *decoder, uint64_t needed)
{
    uint64_t missing = needed & ~decoder->seen;

    if (missing == 0)
        return decoder->json.why == NULL;
    if (decoder->json.why == NULL)
        decoder->json.field = fields[__builtin_ctzll(missing)].at;
    return spate_json_fail(&decoder->json, SPATE_JSON_SYNTAX, "the field is missing");
}

enum spate_rc spate_decode_end(struct spate_decoder *decoder, uint64_t needed, struct spate_err *err)
{
    struct spate_json *json = &decoder->json;

    if (spate_json_take(json, '}') && spate_json_finish(json) && complete(decoder, needed))
        return SPATE_OK;
    return spate_decode_refuse(decoder, err);
}

/* 16 upper-case digits, and no others: the order of texts is the order of positions. */
static bool hex(const char *at, size_t count, uint64_t *out)
{
    uint64_t value = 0;

    for (size_t i = 0; i < count; i++) {
        int digit = at[i] >= '0' && at[i] <= '9'   ? at[i] - '0'
                    : at[i] >= 'A' && at[i] <= 'F' ? at[i] - 'A' + 10
                                                   : -1;

        if (digit < 0)
            return false;
        value = value << 4 | (unsigned)digit;
    }
    *out = value;
    return true;
}

static bool read_pos(struct spate_json *json, struct spate_head *head)
{
    struct spate_slice text;
    uint64_t ordinal;

    if (!spate_json_string(json, &text))
        return false;
    if (text.len != SPATE_POS_TEXT || text.at[16] != '.' || !hex(text.at, 16, &head->pos.commit_lsn) ||
        !hex(text.at + 17, 8, &ordinal))
        return spate_json_fail(json, SPATE_JSON_SYNTAX,
                               "expected 16 hex digits, a dot, 8 hex digits in upper case");
    head->pos.ordinal = (uint32_t)ordinal;
    head->has_pos = true;
    return true;
}

static bool read_end(struct spate_json *json, struct spate_head *head)
{
    struct spate_slice text;

    if (!spate_json_string(json, &text))
        return false;
    if (text.len != SPATE_LSN_TEXT || !hex(text.at, 16, &head->end))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected 16 hex digits in upper case");
    return head->end != 0 || !spate_op_counts(head->op) ||
           spate_json_fail(json, SPATE_JSON_SYNTAX, "0 is no position of a transaction's end");
}

/* Which head fields a message of this op must have. */
static uint64_t needed_by(enum spate_op op)
{
    uint64_t needed = spate_field_bit(SPATE_FIELD_OP);
    uint64_t row = spate_field_bit(SPATE_FIELD_SCHEMA) | spate_field_bit(SPATE_FIELD_TABLE);

    if (op == SPATE_OP_UNKNOWN)
        return needed;
    if (op == SPATE_OP_SCHEMA)
        return needed | row;
    if (op == SPATE_OP_STORAGE)
        return needed | row | spate_field_bit(SPATE_FIELD_EPOCH) | spate_field_bit(SPATE_FIELD_END);
    needed |= spate_field_bit(SPATE_FIELD_EPOCH);
    needed |= spate_op_counts(op) ? spate_field_bit(SPATE_FIELD_N) | spate_field_bit(SPATE_FIELD_POS)
                                  : spate_field_bit(SPATE_FIELD_AT);
    if (op <= SPATE_OP_DELETE || (op >= SPATE_OP_CHUNK && op <= SPATE_OP_CHUNK_END) || op == SPATE_OP_STALE)
        needed |= row;
    if (op >= SPATE_OP_SNAPSHOT_BEGIN && op <= SPATE_OP_RANGES_END)
        needed |= spate_field_bit(SPATE_FIELD_TO) | spate_field_bit(SPATE_FIELD_REQUEST);
    if (op == SPATE_OP_EPOCH || op == SPATE_OP_HEARTBEAT || op == SPATE_OP_SNAPSHOT_BEGIN ||
        op == SPATE_OP_STALE)
        needed |= spate_field_bit(SPATE_FIELD_END);
    return needed;
}

static bool read_head_field(struct spate_json *json, enum spate_field field, struct spate_head *head)
{
    switch (field) {
    case SPATE_FIELD_OP:
        if (!spate_json_string(json, &head->op_name))
            return false;
        head->op = spate_op_parse(head->op_name);
        return true;
    case SPATE_FIELD_N:
    case SPATE_FIELD_AT:
        if (head->op != SPATE_OP_UNKNOWN && spate_op_counts(head->op) != (field == SPATE_FIELD_N))
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "changes have n, all other messages have at");
        return spate_json_u64(json, UINT64_MAX, &head->n);
    case SPATE_FIELD_EPOCH:
        return spate_json_u64(json, UINT64_MAX, &head->epoch);
    case SPATE_FIELD_TO:
        return spate_json_name(json, &head->to);
    case SPATE_FIELD_REQUEST:
        return spate_json_name(json, &head->request);
    case SPATE_FIELD_SCHEMA:
        return spate_json_name(json, &head->schema);
    case SPATE_FIELD_TABLE:
        return spate_json_name(json, &head->table);
    case SPATE_FIELD_POS:
        return read_pos(json, head);
    default:
        return read_end(json, head);
    }
}

static enum spate_rc read_format(struct spate_decoder *decoder, struct spate_err *err)
{
    struct spate_json *json = &decoder->json;
    uint64_t format = 0;

    if (spate_json_take(json, '{') && spate_decode_field(decoder, SPATE_FIELD_SPATE) != SPATE_FIELD_SPATE)
        spate_json_fail(json, SPATE_JSON_SYNTAX, "a message of spate begins with the field \"spate\"");
    if (spate_json_u64(json, UINT64_MAX, &format) && format == 0)
        spate_json_fail(json, SPATE_JSON_SYNTAX, "there is no format 0");
    if (json->why != NULL || !spate_json_after(json))
        return spate_decode_refuse(decoder, err);
    if (format > SPATE_FORMAT) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_fail(
            err, SPATE_FATAL,
            "the message has format %llu, and this program reads formats up to %d: install a spate that "
            "is at least as new as the connector's",
            (unsigned long long)format, SPATE_FORMAT);
    }
    return SPATE_OK;
}

enum spate_rc spate_decode_head(struct spate_slice line, struct spate_head *head, struct spate_arena *arena,
                                struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(line, 0, NULL, arena);
    struct spate_json *json = &decoder.json;
    enum spate_field last = SPATE_FIELD_SPATE;

    *head = (struct spate_head){0};
    if (read_format(&decoder, err) != SPATE_OK)
        return SPATE_FAIL;
    for (;;) {
        const char *name = json->at;
        enum spate_field field = spate_decode_field(&decoder, (enum spate_field)(last + 1));

        if (field > SPATE_FIELD_END) { /* a field of what follows, a foreign one, or the end of the object */
            head->rest = (size_t)(name - json->start);
            break;
        }
        if (field <= last || (field > SPATE_FIELD_OP && head->op == SPATE_OP_NONE)) {
            spate_json_fail(json, SPATE_JSON_SYNTAX, "the field stands twice, or not where it belongs");
            break;
        }
        decoder.seen |= spate_field_bit(field);
        last = field;
        if (!read_head_field(json, field, head) || !spate_json_after(json))
            break;
    }
    if (!complete(&decoder, needed_by(head->op)))
        return spate_decode_refuse(&decoder, err);
    return SPATE_OK;
}

static bool digits(const char *at, int count, int64_t *out)
{
    *out = 0;
    while (count-- > 0) {
        if (*at < '0' || *at > '9')
            return false;
        *out = *out * 10 + (*at++ - '0');
    }
    return true;
}

/* 2026-11-21T09:14:03.123456Z, the inverse of spate_clock_format. */
bool spate_decode_ts(struct spate_json *json, int64_t *out)
{
    struct spate_slice text;
    int64_t year, month, day, hour, minute, second, micro, era, of_era;
    const char *at;

    if (!spate_json_string(json, &text))
        return false;
    at = text.at;
    if (text.len != 27 || at[4] != '-' || at[7] != '-' || at[10] != 'T' || at[13] != ':' || at[16] != ':' ||
        at[19] != '.' || at[26] != 'Z' || !digits(at, 4, &year) || !digits(at + 5, 2, &month) ||
        !digits(at + 8, 2, &day) || !digits(at + 11, 2, &hour) || !digits(at + 14, 2, &minute) ||
        !digits(at + 17, 2, &second) || !digits(at + 20, 6, &micro) || month < 1 || month > 12 || day < 1 ||
        day > 31 || hour > 23 || minute > 59 || second > 59)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a time as 2026-11-21T09:14:03.123456Z");
    /* Days of the civil date; years begin in March, eras have 400 years. */
    year -= month <= 2;
    era = (year >= 0 ? year : year - 399) / 400;
    of_era = year - era * 400;
    of_era = of_era * 365 + of_era / 4 - of_era / 100 + (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 +
             day - 1;
    *out = (((era * 146097 + of_era - 719468) * 24 + hour) * 60 + minute) * 60 + second;
    *out = *out * 1000000 + micro;
    return true;
}

static bool read_meta_field(struct spate_json *json, enum spate_field field, struct spate_meta *meta)
{
    uint64_t number = 0;

    switch (field) {
    case SPATE_FIELD_XID:
        if (!spate_json_u64(json, UINT32_MAX, &number))
            return false;
        meta->xid = (uint32_t)number;
        return true;
    case SPATE_FIELD_TS:
        return spate_decode_ts(json, &meta->ts_us);
    case SPATE_FIELD_SOURCE:
        return spate_json_name(json, &meta->source);
    default:
        if (!spate_json_u64(json, UINT32_MAX, &number))
            return false;
        meta->v = (uint32_t)number;
        return number != 0 || spate_json_fail(json, SPATE_JSON_SYNTAX, "versions count from 1");
    }
}

enum spate_rc spate_decode_meta(struct spate_slice line, const struct spate_head *head,
                                struct spate_meta *meta, struct spate_arena *arena, struct spate_err *err)
{
    struct spate_decoder decoder = spate_decoder_over(line, head->rest, head, arena);
    struct spate_json *json = &decoder.json;
    enum spate_field last = SPATE_FIELD_END;
    uint64_t needed = 0;

    *meta = (struct spate_meta){0};
    for (;;) {
        const char *name = json->at;
        enum spate_field field = spate_decode_field(&decoder, (enum spate_field)(last + 1));

        if (field == SPATE_FIELD_FOREIGN) {
            if (!spate_json_skip(json, NULL) || !spate_json_after(json))
                break;
            continue;
        }
        if (field > SPATE_FIELD_V) {
            meta->rest = (size_t)(name - json->start);
            break;
        }
        if (field <= last) {
            spate_json_fail(json, SPATE_JSON_SYNTAX, "the field stands twice, or not where it belongs");
            break;
        }
        decoder.seen |= spate_field_bit(field);
        last = field;
        if (!read_meta_field(json, field, meta) || !spate_json_after(json))
            break;
    }
    if (spate_op_counts(head->op))
        needed = spate_field_bit(SPATE_FIELD_XID) | spate_field_bit(SPATE_FIELD_TS) |
                 spate_field_bit(SPATE_FIELD_SOURCE);
    if ((head->op >= SPATE_OP_INSERT && head->op <= SPATE_OP_DELETE) ||
        (head->op >= SPATE_OP_CHUNK && head->op <= SPATE_OP_CHUNK_END) || head->op == SPATE_OP_SCHEMA ||
        head->op == SPATE_OP_STALE)
        needed |= spate_field_bit(SPATE_FIELD_V);
    if (!complete(&decoder, needed))
        return spate_decode_refuse(&decoder, err);
    return SPATE_OK;
}
