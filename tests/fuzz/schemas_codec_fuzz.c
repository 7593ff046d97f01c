/* Any bytes as a line, and any bytes as values.
 *
 * The first byte chooses: even, the rest is a line for every decoder; odd, the rest are the values of a row,
 * which must come back unchanged from encoder and decoder. Seeds: tests/fuzz/seeds/codec. */

#include "schemas/control.h"
#include "schemas/snapshot.h"
#include "tests/support/schemas_fixture.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define COLUMNS 11 /* of fixture_kinds */

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* What could be decoded as a schema is encoded and decoded to the same again. */
static void again(struct spate_table *table, struct spate_arena *arena)
{
    struct spate_table *back = NULL;
    struct spate_buf line = {0};
    struct spate_err err = {0};

    spate_encode_schema(&line, table, S("s"), 0);
    check(spate_decode_schema(spate_buf_view(&line), &back, arena, &err) == SPATE_OK);
    check(back->fingerprint == table->fingerprint);
    spate_table_free(back);
    spate_buf_fini(&line);
}

/* What was understood of a message of _control is written and understood to the same again. */
static void read_control(struct spate_slice line, struct spate_arena *arena)
{
    struct spate_buf first = {0}, second = {0};
    struct spate_control control;
    struct spate_err err = {0};

    if (spate_decode_control(line, &control, arena, &err) != SPATE_OK) {
        check(err.text[0] != 0);
    } else if (control.op != SPATE_CONTROL_UNKNOWN) {
        spate_encode_control(&first, &control);
        check(spate_decode_control(spate_buf_view(&first), &control, arena, &err) == SPATE_OK);
        spate_encode_control(&second, &control);
        check(spate_slice_eq(spate_buf_view(&first), spate_buf_view(&second)));
    }
    spate_buf_fini(&first);
    spate_buf_fini(&second);
}

static void read_snapshot(struct spate_slice line, const struct spate_table *orders,
                          struct spate_arena *arena)
{
    struct spate_snapshot_begin begin;
    struct spate_ranges_end ranges_end;
    struct spate_chunk_end chunk_end;
    struct spate_value *keys;
    struct spate_chunk chunk;
    struct spate_buf text = {0};
    struct spate_err err = {0};
    size_t count;

    if (spate_decode_snapshot_begin(line, &begin, arena, &err) == SPATE_OK)
        spate_encode_snapshot_begin(&text, &begin);
    if (spate_decode_ranges_end(line, &ranges_end, arena, &err) == SPATE_OK)
        spate_encode_ranges_end(&text, &ranges_end);
    if (spate_decode_chunk_end(line, &chunk_end, arena, &err) == SPATE_OK)
        check(chunk_end.chunk.no != 0);
    if (spate_decode_chunk(line, &chunk, arena, &err) == SPATE_OK) {
        check(chunk.from <= chunk.to && chunk.by_keys == (chunk.keys.len != 0));
        if (spate_decode_keys(chunk.dropped, orders, &keys, &count, arena, &err) == SPATE_OK)
            for (size_t i = 0; i < count; i++)
                check(spate_encode_key_values(&text, orders, &keys[i], &err) == SPATE_OK);
    }
    if (spate_decode_keys(line, orders, &keys, &count, arena, &err) != SPATE_OK)
        check(err.text[0] != 0);
    spate_buf_fini(&text);
}

/* What was understood is written and understood to the same again. */
static void read_stale(struct spate_slice line, struct spate_arena *arena)
{
    struct spate_buf first = {0}, second = {0};
    struct spate_storage storage;
    struct spate_stale stale;
    struct spate_err err = {0};

    if (spate_decode_stale(line, &stale, arena, &err) == SPATE_OK) {
        spate_encode_stale(&first, &stale);
        check(spate_decode_stale(spate_buf_view(&first), &stale, arena, &err) == SPATE_OK);
        spate_encode_stale(&second, &stale);
    } else if (spate_decode_storage(line, &storage, arena, &err) == SPATE_OK) {
        spate_encode_storage(&first, &storage);
        check(spate_decode_storage(spate_buf_view(&first), &storage, arena, &err) == SPATE_OK);
        spate_encode_storage(&second, &storage);
    }
    check(spate_slice_eq(spate_buf_view(&first), spate_buf_view(&second)));
    spate_buf_fini(&first);
    spate_buf_fini(&second);
}

static void read_line(struct spate_slice line, struct spate_arena *arena)
{
    struct spate_table *tables[2] = {fixture_orders(SPATE_IDENTITY_FULL), fixture_kinds()}, *schema = NULL;
    struct spate_value before[COLUMNS], after[COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_truncation truncation;
    struct spate_heartbeat heartbeat;
    struct spate_slice prefix, content;
    struct spate_chunk_name name;
    struct spate_epoch epoch;
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    if (spate_decode_head(line, &head, arena, &err) == SPATE_OK) {
        check(head.rest <= line.len);
        if (spate_decode_meta(line, &head, &meta, arena, &err) == SPATE_OK) {
            check(meta.rest >= head.rest && meta.rest <= line.len);
            for (size_t i = 0; i < 2; i++) {
                rows.key = NULL;
                if (spate_decode_rows(line, &head, &meta, tables[i], NULL, &rows, arena, &err) != SPATE_OK)
                    check(err.text[0] != 0);
            }
            if (spate_decode_chunk_name(line, &meta, &name, arena, &err) == SPATE_OK)
                check(name.no != 0);
            if (spate_decode_truncate(line, &meta, &truncation, arena, &err) == SPATE_OK)
                check(truncation.count > 0);
            if (spate_decode_message(line, &meta, &prefix, &content, arena, &err) != SPATE_OK)
                check(err.text[0] != 0);
        }
    }
    if (spate_decode_heartbeat(line, &heartbeat, arena, &err) != SPATE_OK)
        check(err.text[0] != 0);
    if (spate_decode_epoch(line, &epoch, arena, &err) != SPATE_OK)
        check(err.text[0] != 0);
    if (spate_decode_schema(line, &schema, arena, &err) == SPATE_OK)
        again(schema, arena);
    read_snapshot(line, tables[0], arena);
    read_control(line, arena);
    read_stale(line, arena);
    spate_table_free(schema);
    spate_table_free(tables[0]);
    spate_table_free(tables[1]);
}

/* A row of a snapshot is the row of an insert: the same values, and refused for the same reasons. */
static void write_read(const struct spate_table *kinds, const struct spate_value *in, bool written,
                       const struct spate_value *out, struct spate_arena *arena)
{
    struct spate_chunk chunk = {.head = {.to = S("b"), .request = S("r"), .source = S("s")},
                                .table = kinds,
                                .chunk = {.by = 1, .no = 1}};
    struct spate_value before[COLUMNS], after[COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_buf line = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    spate_encode_read_head(&line, &chunk);
    if (written) {
        check(spate_encode_read_row(&line, kinds, in, &err) == SPATE_OK);
        check(spate_decode_head(spate_buf_view(&line), &head, arena, &err) == SPATE_OK);
        check(spate_decode_meta(spate_buf_view(&line), &head, &meta, arena, &err) == SPATE_OK);
        check(spate_decode_rows(spate_buf_view(&line), &head, &meta, kinds, NULL, &rows, arena, &err) ==
              SPATE_OK);
        for (size_t i = 0; i < COLUMNS; i++)
            check(after[i].kind == out[i].kind && spate_slice_eq(after[i].text, out[i].text));
    } else {
        check(spate_encode_read_row(&line, kinds, in, &err) == SPATE_FAIL);
    }
    spate_buf_fini(&line);
}

static void write_values(struct spate_slice bytes, struct spate_arena *arena)
{
    struct spate_table *kinds = fixture_kinds();
    struct spate_value in[COLUMNS], before[COLUMNS], after[COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, kinds, NULL, in);
    struct spate_buf line = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    for (size_t i = 0; i < COLUMNS; i++) {
        const char *stop = bytes.len > 0 ? memchr(bytes.at, '|', bytes.len) : NULL;
        size_t len = stop != NULL ? (size_t)(stop - bytes.at) : bytes.len;

        in[i] = (struct spate_value){SPATE_VALUE_TEXT, {bytes.at, len}};
        len += stop != NULL;
        bytes = spate_slice(bytes.at + len, bytes.len - len);
    }
    if (spate_encode_change(&line, &change, &err) == SPATE_OK) {
        for (size_t i = 0; i < line.len; i++)
            check((unsigned char)line.data[i] >= 0x20);
        check(spate_decode_head(spate_buf_view(&line), &head, arena, &err) == SPATE_OK);
        check(spate_decode_meta(spate_buf_view(&line), &head, &meta, arena, &err) == SPATE_OK);
        check(spate_decode_rows(spate_buf_view(&line), &head, &meta, kinds, NULL, &rows, arena, &err) ==
              SPATE_OK);
        for (size_t i = 0; i < COLUMNS; i++) {
            bool is_bool = kinds->columns[i].json_class == SPATE_CLASS_BOOL && in[i].text.len == 1;

            check(after[i].kind == SPATE_VALUE_TEXT);
            check(spate_slice_eq(after[i].text, in[i].text) ||
                  (is_bool && spate_slice_is(after[i].text, in[i].text.at[0] == 't' ? "true" : "false")));
        }
        write_read(kinds, in, true, after, arena);
    } else {
        check(err.verdict == SPATE_QUARANTINE && line.len == 0); /* only the jsonb can be refused */
        write_read(kinds, in, false, NULL, arena);
    }
    spate_buf_fini(&line);
    spate_table_free(kinds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spate_arena arena = {0};

    if (size == 0)
        return 0;
    if (data[0] % 2 == 0)
        read_line(spate_slice((const char *)data + 1, size - 1), &arena);
    else
        write_values(spate_slice((const char *)data + 1, size - 1), &arena);
    spate_arena_fini(&arena);
    return 0;
}
