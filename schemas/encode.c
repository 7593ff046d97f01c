/* Changes to lines. The order of the fields is docs/message-format.md's; the value rule is value.c's.
 *
 *   {"spate":1,"op":…,"n":…,"epoch":…,"schema":…,"table":…,"pos":…,"end":…,"xid":…,"ts":…,"source":…,"v":…,
 *    "key":…,"before":…,"after":…,"unchanged":[…]}                      insert, update, delete
 *    "tables":[…],"cascade":…,"restart":…,"key":null}                   truncate, no schema, table, v
 *    "prefix":…,"content":…,"key":null}                                 message, no schema, table, v */

#include "schemas/encode.h"

#include "core/clock.h"
#include "schemas/codec.h"
#include "schemas/json.h"

#include <string.h>

static void put_hex(char *out, uint64_t value, int count)
{
    static const char digits[] = "0123456789ABCDEF";

    while (count-- > 0) {
        out[count] = digits[value & 15];
        value >>= 4;
    }
}

void spate_lsn_format(uint64_t lsn, char out[SPATE_LSN_TEXT])
{
    put_hex(out, lsn, SPATE_LSN_TEXT);
}

void spate_pos_format(struct spate_pos pos, char out[SPATE_POS_TEXT])
{
    put_hex(out, pos.commit_lsn, 16);
    out[16] = '.';
    put_hex(out + 17, pos.ordinal, 8);
}

void spate_encode_lsn(struct spate_buf *out, uint64_t lsn)
{
    spate_buf_reserve(out, SPATE_LSN_TEXT + 2);
    out->data[out->len] = '"';
    spate_lsn_format(lsn, out->data + out->len + 1);
    out->data[out->len + SPATE_LSN_TEXT + 1] = '"';
    out->len += SPATE_LSN_TEXT + 2;
}

void spate_encode_time(struct spate_buf *out, int64_t wall_us)
{
    SPATE_JSON_ADD(out, ",\"ts\":\"");
    spate_buf_reserve(out, SPATE_TIMESTAMP_LEN + 1);
    spate_clock_format(wall_us, out->data + out->len);
    out->len += SPATE_TIMESTAMP_LEN;
    spate_buf_putc(out, '"');
}

void spate_encode_ts(struct spate_buf *out, int64_t wall_us, struct spate_slice source)
{
    spate_encode_time(out, wall_us);
    SPATE_JSON_ADD(out, ",\"source\":");
    spate_json_put_name(out, source);
}

static enum spate_rc refuse(const struct spate_change *change, struct spate_slice column, const char *why,
                            struct spate_err *err)
{
    const struct spate_table *table = change->table;
    char pos[SPATE_POS_TEXT];

    spate_pos_format(change->pos, pos);
    spate_fail(err, SPATE_QUARANTINE,
               "%s%.*s%s%s; the change cannot be written as a message: look at the row in the "
               "source, and at the server's version",
               column.len != 0 ? "column " : "", SPATE_SLICE_ARG(column), column.len != 0 ? ": " : "", why);
    err->lsn = change->pos.commit_lsn;
    if (table != NULL)
        return spate_err_context(err, "%s at %.*s in %.*s.%.*s", spate_op_name(change->op), SPATE_POS_TEXT,
                                 pos, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
    return spate_err_context(err, "%s at %.*s", spate_op_name(change->op), SPATE_POS_TEXT, pos);
}

/* A value of the old row that Postgres did send. An old key has NULL in every place that is not of the
 * replica identity, whatever the row holds there (P41): that is no value. */
static bool sent_before(const struct spate_change *change, size_t i)
{
    return change->before != NULL && change->before[i].kind != SPATE_VALUE_ABSENT &&
           (change->before[i].kind == SPATE_VALUE_TEXT || change->before_full ||
            change->table->columns[i].identity);
}

/* The row as it is now. What was not sent again is unchanged, so the old row's value is the value wherever
 * that was sent: in the whole old row of FULL (P44), and in the old key (P43). */
static const struct spate_value *value_now(const struct spate_change *change, size_t i)
{
    static const struct spate_value absent = {.kind = SPATE_VALUE_ABSENT};

    if (change->after != NULL && change->after[i].kind != SPATE_VALUE_ABSENT)
        return &change->after[i];
    return sent_before(change, i) ? &change->before[i] : &absent;
}

static enum spate_rc put_key(struct spate_buf *out, const struct spate_change *change, struct spate_err *err)
{
    const struct spate_table *table = change->table;
    const char *why = NULL;

    for (size_t i = 0; i < table->key_count; i++) {
        const struct spate_column *column = &table->columns[table->key[i]];
        const struct spate_value *value = value_now(change, table->key[i]);

        spate_buf_putc(out, i == 0 ? '{' : ',');
        if (value->kind == SPATE_VALUE_ABSENT)
            return refuse(change, column->name,
                          "the key column was sent neither with the old row nor with the new", err);
        spate_buf_slice(out, column->json_name);
        if (!spate_encode_value(out, column, value, &why))
            return refuse(change, column->name, why, err);
    }
    if (table->key_count == 0)
        SPATE_JSON_ADD(out, "null");
    else
        spate_buf_putc(out, '}');
    return SPATE_OK;
}

static enum spate_rc put_before(struct spate_buf *out, const struct spate_change *change,
                                struct spate_err *err)
{
    const struct spate_table *table = change->table;
    const char *why = NULL;
    char open = '{';

    SPATE_JSON_ADD(out, ",\"before\":");
    if (change->before == NULL) {
        SPATE_JSON_ADD(out, "null");
        return SPATE_OK;
    }
    for (size_t i = 0; i < table->column_count; i++) {
        const struct spate_column *column = &table->columns[i];

        if (!sent_before(change, i))
            continue;
        spate_buf_putc(out, open);
        open = ',';
        spate_buf_slice(out, column->json_name);
        if (!spate_encode_value(out, column, &change->before[i], &why))
            return refuse(change, column->name, why, err);
    }
    if (open == '{')
        spate_buf_putc(out, '{');
    spate_buf_putc(out, '}');
    return SPATE_OK;
}

static enum spate_rc put_after(struct spate_buf *out, const struct spate_change *change,
                               struct spate_err *err)
{
    const struct spate_table *table = change->table;
    const char *why = NULL;
    size_t missing = 0;
    char open = '{';

    SPATE_JSON_ADD(out, ",\"after\":");
    if (change->after == NULL) {
        SPATE_JSON_ADD(out, "null,\"unchanged\":[]");
        return SPATE_OK;
    }
    for (size_t i = 0; i < table->column_count; i++) {
        const struct spate_column *column = &table->columns[i];
        const struct spate_value *value = value_now(change, i);

        if (value->kind == SPATE_VALUE_ABSENT) {
            missing++;
            continue;
        }
        spate_buf_putc(out, open);
        open = ',';
        spate_buf_slice(out, column->json_name);
        if (!spate_encode_value(out, column, value, &why))
            return refuse(change, column->name, why, err);
    }
    if (open == '{')
        spate_buf_putc(out, '{');
    SPATE_JSON_ADD(out, "},\"unchanged\":[");
    if (missing > 0 && change->op == SPATE_OP_INSERT)
        return refuse(change, (struct spate_slice){0}, "a new row came without the value of a column", err);
    for (size_t i = 0; missing > 0; i++) {
        if (value_now(change, i)->kind != SPATE_VALUE_ABSENT)
            continue;
        missing--;
        spate_buf_add(out, table->columns[i].json_name.at,
                      table->columns[i].json_name.len - 1); /* no colon */
        if (missing > 0)
            spate_buf_putc(out, ',');
    }
    spate_buf_putc(out, ']');
    return SPATE_OK;
}

static enum spate_rc put_row(struct spate_buf *out, const struct spate_change *change, struct spate_err *err)
{
    SPATE_JSON_ADD(out, ",\"v\":");
    spate_json_put_u64(out, change->table->v);
    SPATE_JSON_ADD(out, ",\"key\":");
    if (put_key(out, change, err) != SPATE_OK || put_before(out, change, err) != SPATE_OK ||
        put_after(out, change, err) != SPATE_OK)
        return SPATE_FAIL;
    spate_buf_putc(out, '}');
    return SPATE_OK;
}

static void put_truncate(struct spate_buf *out, const struct spate_change *change)
{
    SPATE_JSON_ADD(out, ",\"tables\":[");
    for (size_t i = 0; i < change->table_count; i++) {
        const struct spate_table *table = change->tables[i];

        spate_buf_puts(out, i == 0 ? "{\"schema\":" : ",{\"schema\":");
        spate_buf_slice(out, table->json_schema);
        SPATE_JSON_ADD(out, ",\"table\":");
        spate_buf_slice(out, table->json_name);
        SPATE_JSON_ADD(out, ",\"v\":");
        spate_json_put_u64(out, table->v);
        spate_buf_putc(out, '}');
    }
    spate_buf_puts(out, change->cascade ? "],\"cascade\":true" : "],\"cascade\":false");
    spate_buf_puts(out, change->restart ? ",\"restart\":true" : ",\"restart\":false");
    SPATE_JSON_ADD(out, ",\"key\":null}");
}

static void put_message(struct spate_buf *out, const struct spate_change *change)
{
    SPATE_JSON_ADD(out, ",\"prefix\":");
    spate_json_put_text(out, change->prefix);
    SPATE_JSON_ADD(out, ",\"content\":");
    spate_json_put_text(out, change->content);
    SPATE_JSON_ADD(out, ",\"key\":null}");
}

/* What is wrong with a change before any value is looked at, or NULL. */
static const char *contradiction(const struct spate_change *change)
{
    bool before = change->before != NULL, after = change->after != NULL;

    switch (change->op) {
    case SPATE_OP_INSERT:
        if (before || !after)
            return "an insert has a new row and no old one";
        break;
    case SPATE_OP_UPDATE:
        if (!after)
            return "an update has a new row";
        break;
    case SPATE_OP_DELETE:
        if (!before || after)
            return "a delete has an old row and no new one";
        break;
    case SPATE_OP_TRUNCATE:
        for (size_t i = 0; i < change->table_count; i++)
            if (change->tables[i]->v == 0)
                return "a truncated table has no v yet: its schema message comes first";
        return change->table_count == 0 ? "a truncate names at least one table" : NULL;
    case SPATE_OP_MESSAGE:
        return NULL;
    default:
        return "this op is no change";
    }
    if (change->table == NULL)
        return "a row change belongs to a table";
    return change->table->v == 0 ? "the table has no v yet: its schema message comes first" : NULL;
}

enum spate_rc spate_encode_change(struct spate_buf *out, const struct spate_change *change,
                                  struct spate_err *err)
{
    const char *wrong = contradiction(change);
    size_t start = out->len;
    char pos[SPATE_POS_TEXT];

    if (wrong != NULL)
        return refuse(change, (struct spate_slice){0}, wrong, err);
    spate_buf_reserve(out, 512); /* most changes: one growth at most */
    SPATE_JSON_ADD(out, "{\"spate\":1,\"op\":\"");
    spate_buf_puts(out, spate_op_name(change->op));
    SPATE_JSON_ADD(out, "\",\"n\":");
    spate_json_put_u64(out, change->n);
    SPATE_JSON_ADD(out, ",\"epoch\":");
    spate_json_put_u64(out, change->epoch);
    if (change->op <= SPATE_OP_DELETE) {
        SPATE_JSON_ADD(out, ",\"schema\":");
        spate_buf_slice(out, change->table->json_schema);
        SPATE_JSON_ADD(out, ",\"table\":");
        spate_buf_slice(out, change->table->json_name);
    }
    SPATE_JSON_ADD(out, ",\"pos\":\"");
    spate_pos_format(change->pos, pos);
    spate_buf_add(out, pos, sizeof(pos));
    spate_buf_putc(out, '"');
    if (change->end != 0) {
        SPATE_JSON_ADD(out, ",\"end\":");
        spate_encode_lsn(out, change->end);
    }
    SPATE_JSON_ADD(out, ",\"xid\":");
    spate_json_put_u64(out, change->xid);
    spate_encode_ts(out, change->commit_us, change->source);
    if (change->op == SPATE_OP_TRUNCATE) {
        put_truncate(out, change);
    } else if (change->op == SPATE_OP_MESSAGE) {
        put_message(out, change);
    } else if (put_row(out, change, err) != SPATE_OK) {
        out->len = start; /* never half a line */
        return SPATE_FAIL;
    }
    return SPATE_OK;
}

enum spate_rc spate_encode_key(struct spate_buf *out, const struct spate_change *change,
                               struct spate_err *err)
{
    const char *wrong = contradiction(change);
    size_t start = out->len;

    if (wrong != NULL)
        return refuse(change, (struct spate_slice){0}, wrong, err);
    if (change->op > SPATE_OP_DELETE || change->table->key_count == 0)
        return SPATE_OK;
    if (put_key(out, change, err) == SPATE_OK)
        return SPATE_OK;
    out->len = start;
    return SPATE_FAIL;
}
