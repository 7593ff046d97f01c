/* Snapshots to lines.
 *
 *   {"spate":1,"op":…,"at":…,"epoch":…,"to":…,"request":…,"schema":…,"table":…,"end":…,"ts":…,"source":…,"v":…,
 *    "tables":[{"schema":…,"table":…},…]}                   snapshot-begin: end, no schema, table, v
 *    "by":…,"no":…,"range":{…},"since":…,"dropped":[…]}     chunk; or "keys":[…] instead of range and since
 *    "by":…,"no":…,"key":{…}|null,"after":{…}}              read: no ts, source
 *    "by":…,"no":…,"count":…,"resume":…}                    chunk-end
 *    "tables":[{"schema":…,"table":…,"chunks":…,"resume":…},…]}   ranges-end: no schema, table, v */

#include "schemas/snapshot.h"

#include "schemas/encode.h"
#include "schemas/json.h"

#include <stdio.h>

void spate_tid_format(uint64_t tid, char out[SPATE_TID_TEXT])
{
    snprintf(out, SPATE_TID_TEXT, "(%u,%u)", (unsigned)(tid >> 16 & UINT32_MAX), (unsigned)(tid & 0xffff));
}

static void put_head(struct spate_buf *out, enum spate_op op, const struct spate_addressed *head)
{
    SPATE_JSON_ADD(out, "{\"spate\":1,\"op\":\"");
    spate_buf_puts(out, spate_op_name(op));
    SPATE_JSON_ADD(out, "\",\"at\":");
    spate_json_put_u64(out, head->at);
    SPATE_JSON_ADD(out, ",\"epoch\":");
    spate_json_put_u64(out, head->epoch);
    SPATE_JSON_ADD(out, ",\"to\":");
    spate_json_put_name(out, head->to);
    SPATE_JSON_ADD(out, ",\"request\":");
    spate_json_put_name(out, head->request);
}

/* The head of what belongs to a chunk, up to and including `no`. A read leaves time and source to its chunk:
 * it is written millions of times. */
static void put_chunk_head(struct spate_buf *out, enum spate_op op, const struct spate_addressed *head,
                           const struct spate_table *table, struct spate_chunk_name chunk)
{
    put_head(out, op, head);
    SPATE_JSON_ADD(out, ",\"schema\":");
    spate_buf_slice(out, table->json_schema);
    SPATE_JSON_ADD(out, ",\"table\":");
    spate_buf_slice(out, table->json_name);
    if (op != SPATE_OP_READ)
        spate_encode_ts(out, head->wall_us, head->source);
    SPATE_JSON_ADD(out, ",\"v\":");
    spate_json_put_u64(out, table->v);
    SPATE_JSON_ADD(out, ",\"by\":\"");
    for (int shift = 28; shift >= 0; shift -= 4)
        spate_buf_putc(out, "0123456789abcdef"[chunk.by >> shift & 15]);
    SPATE_JSON_ADD(out, "\",\"no\":");
    spate_json_put_u64(out, chunk.no);
}

static void put_tables(struct spate_buf *out, const struct spate_named_table *tables, size_t count,
                       bool chunks)
{
    SPATE_JSON_ADD(out, ",\"tables\":[");
    for (size_t i = 0; i < count; i++) {
        spate_buf_puts(out, i == 0 ? "{\"schema\":" : ",{\"schema\":");
        spate_json_put_name(out, tables[i].schema);
        SPATE_JSON_ADD(out, ",\"table\":");
        spate_json_put_name(out, tables[i].table);
        if (chunks) {
            SPATE_JSON_ADD(out, ",\"chunks\":");
            spate_json_put_u64(out, tables[i].chunks);
            SPATE_JSON_ADD(out, ",\"resume\":");
            spate_json_put_name(out, tables[i].resume);
        }
        spate_buf_putc(out, '}');
    }
    SPATE_JSON_ADD(out, "]}");
}

void spate_encode_snapshot_begin(struct spate_buf *out, const struct spate_snapshot_begin *begin)
{
    put_head(out, SPATE_OP_SNAPSHOT_BEGIN, &begin->head);
    SPATE_JSON_ADD(out, ",\"end\":");
    spate_encode_lsn(out, begin->end);
    spate_encode_ts(out, begin->head.wall_us, begin->head.source);
    put_tables(out, begin->tables, begin->count, false);
}

void spate_encode_ranges_end(struct spate_buf *out, const struct spate_ranges_end *end)
{
    put_head(out, SPATE_OP_RANGES_END, &end->head);
    spate_encode_ts(out, end->head.wall_us, end->head.source);
    put_tables(out, end->tables, end->count, true);
}

static void put_array(struct spate_buf *out, struct spate_slice array)
{
    if (array.len == 0)
        SPATE_JSON_ADD(out, "[]");
    else
        spate_buf_slice(out, array);
}

void spate_encode_chunk(struct spate_buf *out, const struct spate_chunk *chunk)
{
    char tid[SPATE_TID_TEXT];

    put_chunk_head(out, SPATE_OP_CHUNK, &chunk->head, chunk->table, chunk->chunk);
    if (chunk->by_keys) {
        SPATE_JSON_ADD(out, ",\"keys\":");
        put_array(out, chunk->keys);
    } else {
        SPATE_JSON_ADD(out, ",\"range\":{\"from\":\"");
        spate_tid_format(chunk->from, tid);
        spate_buf_puts(out, tid);
        SPATE_JSON_ADD(out, "\",\"to\":\"");
        spate_tid_format(chunk->to, tid);
        spate_buf_puts(out, tid);
        SPATE_JSON_ADD(out, "\"}");
        if (chunk->since.len != 0) {
            SPATE_JSON_ADD(out, ",\"since\":");
            spate_json_put_name(out, chunk->since);
        }
    }
    SPATE_JSON_ADD(out, ",\"dropped\":");
    put_array(out, chunk->dropped);
    spate_buf_putc(out, '}');
}

void spate_encode_chunk_end(struct spate_buf *out, const struct spate_chunk_end *end)
{
    put_chunk_head(out, SPATE_OP_CHUNK_END, &end->head, end->table, end->chunk);
    SPATE_JSON_ADD(out, ",\"count\":");
    spate_json_put_u64(out, end->count);
    SPATE_JSON_ADD(out, ",\"resume\":");
    spate_json_put_name(out, end->resume);
    spate_buf_putc(out, '}');
}

void spate_encode_read_head(struct spate_buf *out, const struct spate_chunk *chunk)
{
    put_chunk_head(out, SPATE_OP_READ, &chunk->head, chunk->table, chunk->chunk);
}

/* No value is said: it is the source's. */
static enum spate_rc refuse(const struct spate_table *table, const struct spate_column *column,
                            const char *why, struct spate_err *err)
{
    return spate_fail(err, SPATE_QUARANTINE,
                      "a row of %.*s.%.*s, column %.*s: %s; the row cannot be written as a message: look at "
                      "it in the source, and at the server's version",
                      SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name),
                      SPATE_SLICE_ARG(column->name), why);
}

static enum spate_rc put_key_column(struct spate_buf *out, const struct spate_table *table, size_t i,
                                    const struct spate_value *value, struct spate_err *err)
{
    const struct spate_column *column = &table->columns[table->key[i]];
    const char *why = "the value of a key's column is missing";

    spate_buf_putc(out, i == 0 ? '{' : ',');
    spate_buf_slice(out, column->json_name);
    if (value->kind == SPATE_VALUE_ABSENT || !spate_encode_value(out, column, value, &why))
        return refuse(table, column, why, err);
    return SPATE_OK;
}

static void end_key(struct spate_buf *out, const struct spate_table *table)
{
    if (table->key_count == 0)
        SPATE_JSON_ADD(out, "null");
    else
        spate_buf_putc(out, '}');
}

static enum spate_rc put_key(struct spate_buf *out, const struct spate_table *table,
                             const struct spate_value *values, struct spate_err *err)
{
    for (size_t i = 0; i < table->key_count; i++)
        if (put_key_column(out, table, i, &values[table->key[i]], err) != SPATE_OK)
            return SPATE_FAIL;
    end_key(out, table);
    return SPATE_OK;
}

enum spate_rc spate_encode_row_key(struct spate_buf *out, const struct spate_table *table,
                                   const struct spate_value *values, struct spate_err *err)
{
    size_t start = out->len;

    if (put_key(out, table, values, err) == SPATE_OK)
        return SPATE_OK;
    out->len = start;
    return SPATE_FAIL;
}

enum spate_rc spate_encode_read_row(struct spate_buf *out, const struct spate_table *table,
                                    const struct spate_value *values, struct spate_err *err)
{
    size_t start = out->len;
    const char *why = NULL;
    char open = '{';

    spate_buf_reserve(out, 256); /* most rows: one growth at most */
    SPATE_JSON_ADD(out, ",\"key\":");
    if (put_key(out, table, values, err) != SPATE_OK) {
        out->len = start;
        return SPATE_FAIL;
    }
    SPATE_JSON_ADD(out, ",\"after\":");
    for (size_t i = 0; i < table->column_count; i++) {
        const struct spate_column *column = &table->columns[i];

        if (values[i].kind == SPATE_VALUE_ABSENT)
            continue;
        spate_buf_putc(out, open);
        open = ',';
        spate_buf_slice(out, column->json_name);
        if (!spate_encode_value(out, column, &values[i], &why)) {
            out->len = start; /* never half a line */
            return refuse(table, column, why, err);
        }
    }
    if (open == '{')
        spate_buf_putc(out, '{');
    SPATE_JSON_ADD(out, "}}");
    return SPATE_OK;
}

/* A boolean that came out of a message is spelled as JSON spells it; Postgres says t and f. */
static struct spate_value as_postgres(const struct spate_column *column, const struct spate_value *value)
{
    struct spate_value again = *value;

    if (column->json_class == SPATE_CLASS_BOOL && value->kind == SPATE_VALUE_TEXT &&
        (spate_slice_is(value->text, "true") || spate_slice_is(value->text, "false")))
        again.text.len = 1;
    return again;
}

enum spate_rc spate_encode_key_values(struct spate_buf *out, const struct spate_table *table,
                                      const struct spate_value *key, struct spate_err *err)
{
    size_t start = out->len;

    for (size_t i = 0; i < table->key_count; i++) {
        struct spate_value value = as_postgres(&table->columns[table->key[i]], &key[i]);

        if (put_key_column(out, table, i, &value, err) != SPATE_OK) {
            out->len = start;
            return SPATE_FAIL;
        }
    }
    end_key(out, table);
    return SPATE_OK;
}
