/* Lines to messages: order, missing and doubled fields, later additions, cut lines, wrong kinds. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "schemas/snapshot.h"
#include "tests/support/schemas_fixture.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_COLUMNS 16

/* Everything a reader may learn from one line; SPATE_OK only when all of it was understood. */
static enum spate_rc decode(struct spate_slice line, const struct spate_table *table,
                            struct spate_arena *arena, struct spate_err *err)
{
    struct spate_value before[MAX_COLUMNS], after[MAX_COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_truncation truncation;
    struct spate_slice prefix, content;
    struct spate_heartbeat heartbeat;
    struct spate_snapshot_begin begin;
    struct spate_ranges_end ranges_end;
    struct spate_chunk_name name;
    struct spate_chunk_end chunk_end;
    struct spate_chunk chunk;
    struct spate_epoch epoch;
    struct spate_stale stale;
    struct spate_storage storage;
    struct spate_table *schema = NULL;
    struct spate_head head;
    struct spate_meta meta;
    enum spate_rc rc;

    if (spate_decode_head(line, &head, arena, err) != SPATE_OK ||
        spate_decode_meta(line, &head, &meta, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    switch (head.op) {
    case SPATE_OP_TRUNCATE:
        return spate_decode_truncate(line, &meta, &truncation, arena, err);
    case SPATE_OP_MESSAGE:
        return spate_decode_message(line, &meta, &prefix, &content, arena, err);
    case SPATE_OP_HEARTBEAT:
        return spate_decode_heartbeat(line, &heartbeat, arena, err);
    case SPATE_OP_STALE:
        return spate_decode_stale(line, &stale, arena, err);
    case SPATE_OP_STORAGE:
        return spate_decode_storage(line, &storage, arena, err);
    case SPATE_OP_EPOCH:
        return spate_decode_epoch(line, &epoch, arena, err);
    case SPATE_OP_SNAPSHOT_BEGIN:
        return spate_decode_snapshot_begin(line, &begin, arena, err);
    case SPATE_OP_CHUNK:
        return spate_decode_chunk(line, &chunk, arena, err);
    case SPATE_OP_CHUNK_END:
        return spate_decode_chunk_end(line, &chunk_end, arena, err);
    case SPATE_OP_RANGES_END:
        return spate_decode_ranges_end(line, &ranges_end, arena, err);
    case SPATE_OP_READ:
        rc = spate_decode_chunk_name(line, &meta, &name, arena, err);
        return rc != SPATE_OK ? rc : spate_decode_rows(line, &head, &meta, table, NULL, &rows, arena, err);
    case SPATE_OP_SCHEMA:
        rc = spate_decode_schema(line, &schema, arena, err);
        spate_table_free(schema);
        return rc;
    default:
        return spate_decode_rows(line, &head, &meta, table, NULL, &rows, arena, err);
    }
}

static const struct spate_table *table_for(const char *line, struct spate_table *const tables[2])
{
    return strstr(line, "\"table\":\"kinds\"") != NULL ? tables[1] : tables[0];
}

static const char *const golden_names[] = {
    "insert",         "update", "delete", "truncate",  "message",    "heartbeat", "epoch",  "schema",
    "snapshot-begin", "chunk",  "read",   "chunk-end", "ranges-end", "stale",     "storage"};

/* Calls `each` with every golden line. */
static void with_golden_lines(void (*each)(char *line, size_t len, const struct spate_table *table))
{
    struct spate_table *tables[2] = {fixture_orders(SPATE_IDENTITY_DEFAULT), fixture_kinds()};
    static char line[16384];
    size_t seen = 0;

    for (size_t i = 0; i < SPATE_COUNT(golden_names); i++) {
        char path[128];
        FILE *file;

        snprintf(path, sizeof(path), "schemas/golden/%s.jsonl", golden_names[i]);
        file = fopen(path, "r");
        assert_non_null(file);
        while (fgets(line, sizeof(line), file) != NULL) {
            size_t len = strlen(line) - 1;

            line[len] = 0;
            each(line, len, table_for(line, tables));
            seen++;
        }
        fclose(file);
    }
    assert_true(seen >= 32);
    spate_table_free(tables[0]);
    spate_table_free(tables[1]);
}

static void whole_and_cut(char *line, size_t len, const struct spate_table *table)
{
    struct spate_arena arena = {0};
    struct spate_err err = {0};

    if (decode(spate_slice(line, len), table, &arena, &err) != SPATE_OK)
        fail_msg("%s\n%s", err.text, line);
    for (size_t cut = 0; cut < len; cut++) {
        char *exact = spate_strndup(line, cut); /* so that ASan sees a byte read too many */

        exact = spate_realloc(exact, cut + (cut == 0));
        if (decode(spate_slice(exact, cut), table, &arena, &err) != SPATE_FAIL)
            fail_msg("understood the first %zu bytes of %s", cut, line);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        free(exact);
    }
    spate_arena_fini(&arena);
}

static void understands_golden_lines_and_no_part_of_them(void **state)
{
    (void)state;
    with_golden_lines(whole_and_cut);
}

/* A field that this program does not know, wherever it stands behind the head, changes nothing. */
static void with_additions(char *line, size_t len, const struct spate_table *table)
{
    static const char *const before[] = {
        ",\"ts\":",     ",\"source\":",  ",\"key\":", ",\"after\":",   ",\"identity\":",
        ",\"tables\":", ",\"content\":", ",\"by\":",  ",\"dropped\":", "}"};
    struct spate_arena arena = {0};
    struct spate_err err = {0};

    for (size_t i = 0; i < SPATE_COUNT(before); i++) {
        const char *at = strcmp(before[i], "}") == 0 ? line + len - 1 : strstr(line, before[i]);
        struct spate_buf longer = {0};

        if (at == NULL)
            continue;
        spate_buf_add(&longer, line, (size_t)(at - line));
        spate_buf_puts(&longer, ",\"later\":{\"a\":[1,\"}\",{\"b\":null}],\"n\":0}");
        spate_buf_puts(&longer, at);
        if (decode(spate_buf_view(&longer), table, &arena, &err) != SPATE_OK)
            fail_msg("%s\n%s", err.text, spate_buf_str(&longer));
        spate_buf_fini(&longer);
    }
    spate_arena_fini(&arena);
}

static void passes_by_what_it_does_not_know(void **state)
{
    (void)state;
    with_golden_lines(with_additions);
}

/* White space between the tokens is JSON as well. */
static void with_blanks(char *line, size_t len, const struct spate_table *table)
{
    struct spate_arena arena = {0};
    struct spate_buf wide = {0};
    struct spate_err err = {0};
    bool quoted = false;

    for (size_t i = 0; i < len; i++) {
        if (line[i] == '"' && line[i - 1] != '\\')
            quoted = !quoted;
        if (!quoted && strchr("{}[],:", line[i]) != NULL)
            spate_buf_putc(&wide, ' ');
        spate_buf_putc(&wide, line[i]);
        if (!quoted && strchr("{}[],:", line[i]) != NULL)
            spate_buf_puts(&wide, "\t\r\n ");
    }
    if (decode(spate_buf_view(&wide), table, &arena, &err) != SPATE_OK)
        fail_msg("%s\n%s", err.text, spate_buf_str(&wide));
    spate_buf_fini(&wide);
    spate_arena_fini(&arena);
}

static void accepts_white_space(void **state)
{
    (void)state;
    with_golden_lines(with_blanks);
}

/* Any single damaged byte: never a crash, and an error where there is one has a place. */
static void with_damage(char *line, size_t len, const struct spate_table *table)
{
    static const char damage[] = {'"', '\\', '{', '}',  '[',    ']',    ',',   ':',
                                  '0', 'x',  ' ', '\0', '\x1f', '\xff', '\xc3'};
    struct spate_arena arena = {0};
    struct spate_err err = {0};

    for (size_t i = 0; i < len; i++) {
        char was = line[i];

        for (size_t j = 0; j < sizeof(damage); j++) {
            spate_arena_reset(&arena);
            line[i] = damage[j];
            err.text[0] = 0;
            if (decode(spate_slice(line, len), table, &arena, &err) != SPATE_OK)
                assert_true(strlen(err.text) > 20);
        }
        line[i] = was;
    }
    spate_arena_fini(&arena);
}

static void survives_damage(void **state)
{
    (void)state;
    with_golden_lines(with_damage);
}

/* ---- heads ---- */

static void decodes_a_head(void **state)
{
    struct spate_slice line =
        S("{\"spate\":1,\"op\":\"read\",\"at\":18446744073709551615,\"epoch\":7,\"to\":\"billing\","
          "\"request\":\"r-1\","
          "\"schema\":\"a.\\\"b\",\"table\":\"t\\u00e9\",\"pos\":\"00000000016B3748.0000000A\","
          "\"end\":\"FFFFFFFFFFFFFFFF\",\"xid\":1,\"after\":nonsense");
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;

    (void)state;
    assert_int_equal(spate_decode_head(line, &head, &arena, &err), SPATE_OK);
    assert_int_equal(head.op, SPATE_OP_READ);
    assert_true(spate_slice_is(head.op_name, "read"));
    assert_true(head.n == UINT64_MAX);
    assert_int_equal(head.epoch, 7);
    assert_true(spate_slice_is(head.to, "billing"));
    assert_true(spate_slice_is(head.request, "r-1"));
    assert_true(spate_slice_is(head.schema, "a.\"b"));
    assert_true(spate_slice_is(head.table, "t\xc3\xa9"));
    assert_true(head.has_pos);
    assert_int_equal(head.pos.commit_lsn, 0x16B3748);
    assert_int_equal(head.pos.ordinal, 10);
    assert_true(head.end == UINT64_MAX);
    assert_memory_equal(line.at + head.rest, "\"xid\"", 5); /* nothing behind it was looked at */
    spate_arena_fini(&arena);
}

static void passes_on_unknown_ops(void **state)
{
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;

    (void)state;
    assert_int_equal(
        spate_decode_head(S("{\"spate\":1,\"op\":\"vacuum\",\"at\":3,\"what\":1}"), &head, &arena, &err),
        SPATE_OK);
    assert_int_equal(head.op, SPATE_OP_UNKNOWN);
    assert_true(spate_slice_is(head.op_name, "vacuum"));
    assert_int_equal(head.n, 3);
    spate_arena_fini(&arena);
}

static void refuses_a_later_format(void **state)
{
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;

    (void)state;
    assert_int_equal(spate_decode_head(S("{\"spate\":2,\"operation\":[]}"), &head, &arena, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_non_null(strstr(err.text, "format 2"));
    spate_arena_fini(&arena);
}

#define HEAD                                                                                                 \
    "{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"s\",\"table\":\"t\",\"pos\":"           \
    "\"0000000000000001.00000001\""
#define POS "\"pos\":\"0000000000000001.00000001\""

static void refuses_bad_heads(void **state)
{
    static const struct {
        const char *line, *field;
    } cases[] = {
        {"", NULL},
        {"[]", NULL},
        {"null", NULL},
        {"{}", NULL},
        {"{\"op\":\"insert\",\"spate\":1}", "op"},
        {"{\"spate\":0,\"op\":\"insert\"}", "spate"},
        {"{\"spate\":\"1\",\"op\":\"insert\"}", "spate"},
        {"{\"spate\":1.0,\"op\":\"insert\"}", "spate"},
        {"{\"spate\":99999999999999999999,\"op\":\"insert\"}", "spate"},
        {"{\"spate\":1}", "op"},
        {"{\"spate\":1,\"n\":1,\"op\":\"insert\"}", "n"},
        {"{\"spate\":1,\"op\":5,\"n\":1}", "op"},
        {"{\"spate\":1,\"op\":\"insert\",\"epoch\":1,\"schema\":\"s\",\"table\":\"t\"," POS "}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"at\":1,\"epoch\":1}", "at"},
        {"{\"spate\":1,\"op\":\"heartbeat\",\"n\":1,\"epoch\":1}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"schema\":\"s\",\"table\":\"t\"," POS "}", "epoch"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"table\":\"t\"," POS "}", "schema"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"s\"," POS "}", "table"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"s\",\"table\":\"t\"}", "pos"},
        {"{\"spate\":1,\"op\":\"epoch\",\"at\":1,\"epoch\":1,\"ts\":1}", "end"},
        {"{\"spate\":1,\"op\":\"insert\",\"epoch\":1,\"n\":1}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"n\":1}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":-1}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":01}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1e3}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":\"1\"}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":18446744073709551616}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1 \"epoch\":1}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,}", "n"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"s\",\"table\":\"t\","
         "\"pos\":\"00000000016b3748.00000001\"}",
         "pos"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"s\",\"table\":\"t\",\"pos\":\"1."
         "1\"}",
         "pos"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"\xff\"", "schema"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"$bytes:?\"", "schema"},
        {"{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"\\ud800\"", "schema"},
        {HEAD ",\"end\":\"1\"}", "end"},
        {HEAD ",\"end\":\"0000000000000000\"}", "end"},
        {HEAD ",\"end\":1}", "end"},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_arena arena = {0};
        struct spate_err err = {0};
        struct spate_head head;
        char field[32];

        if (cases[i].field != NULL)
            snprintf(field, sizeof(field), "field \"%s\" at byte", cases[i].field);
        else
            snprintf(field, sizeof(field), "at byte ");
        if (spate_decode_head(spate_slice_str(cases[i].line), &head, &arena, &err) != SPATE_FAIL)
            fail_msg("taken for a head: %s", cases[i].line);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        if (strstr(err.text, field) == NULL)
            fail_msg("%s\nnot in: %s\nfor: %s", field, err.text, cases[i].line);
        spate_arena_fini(&arena);
    }
}

/* ---- what follows the head ---- */

#define META ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\",\"v\":3"
#define ROW2 ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}"

static void refuses_bad_metas_and_rows(void **state)
{
    static const struct {
        const char *rest, *text;
    } cases[] = {
        {",\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\",\"v\":3" ROW2, "\"xid\" "},
        {",\"xid\":7,\"source\":\"shop\",\"v\":3" ROW2, "\"ts\" "},
        {",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"v\":3" ROW2, "\"source\" "},
        {",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\"" ROW2, "\"v\" "},
        {",\"xid\":7,\"xid\":7" ROW2, "\"xid\" "},
        {",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"n\":2" ROW2, "\"n\" "},
        {",\"xid\":4294967296" ROW2, "\"xid\" "},
        {",\"xid\":7,\"ts\":\"2026-11-21 09:14:03.123456Z\"" ROW2, "\"ts\" "},
        {",\"xid\":7,\"ts\":\"2026-13-21T09:14:03.123456Z\"" ROW2, "\"ts\" "},
        {",\"xid\":7,\"ts\":12" ROW2, "\"ts\" "},
        {",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\",\"v\":0" ROW2, "\"v\" "},
        {META ",\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}", "\"key\" "},
        {META ",\"key\":{\"id\":1},\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}", "\"before\" "},
        {META ",\"key\":{\"id\":1},\"before\":null,\"unchanged\":[]}", "\"after\" "},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"}}", "\"unchanged\" "},
        {META ",\"key\":null,\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}",
         "has a key"},
        {META ",\"key\":{},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}",
         "key is missing"},
        {META ",\"key\":{\"t\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}",
         "not part of"},
        {META
         ",\"key\":{\"id\":1,\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}",
         "twice"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":null,\"unchanged\":[]}", "new row is missing"},
        {META ",\"key\":{\"id\":1},\"before\":{\"id\":1},\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[]}",
         "no old row"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1},\"unchanged\":[]}",
         "column t: the column is neither"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1},\"unchanged\":[\"t\"]}",
         "only an update"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[\"t\"]}",
         "twice"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1},\"unchanged\":[\"z\"]}",
         "no such column"},
        {META
         ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\",\"z\":1},\"unchanged\":[]}",
         "column z: this version of the table has no such column"},
        {META
         ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\",\"t\":1},\"unchanged\":[]}",
         "column t: the column stands twice"},
        {META
         ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"t\":\"x\",\"id\":1,\"t\":null},\"unchanged\":[]}",
         "twice"},
        {META
         ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":{\"$bytes\":1}},\"unchanged\":[]}",
         "base64"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":{\"$bytes\":\"A\"}},"
              "\"unchanged\":[]}",
         "base64"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":[],\"unchanged\":[]}", "expected an object"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":{}}",
         "expected an array"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":nul},\"unchanged\":[]}",
         "column t"},
        {META ROW2 "x", "follows the end"},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[],\"key\":"
              "{\"id\":1}}",
         "\"key\" "},
        {META ",\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1,\"t\":\"x\"},\"unchanged\":[],\"end\":"
              "\"\"}",
         "\"end\" "},
    };
    const struct fixture_column columns[] = {{"id", "integer", NULL, 23, -1, 4, true},
                                             {"t", "text", NULL, 25, -1, -1, false}};
    struct spate_table *table =
        fixture_table("t", SPATE_IDENTITY_DEFAULT, columns, 2, (const uint32_t[]){0}, 1);

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_arena arena = {0};
        struct spate_buf line = {0};
        struct spate_err err = {0};

        spate_buf_puts(&line, HEAD);
        spate_buf_puts(&line, cases[i].rest);
        if (decode(spate_buf_view(&line), table, &arena, &err) != SPATE_FAIL)
            fail_msg("understood: %s", spate_buf_str(&line));
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s\nnot in: %s\nfor: %s", cases[i].text, err.text, spate_buf_str(&line));
        assert_non_null(strstr(err.text, "insert message 1 of epoch 1"));
        assert_non_null(strstr(err.text, "table s.t"));
        spate_buf_fini(&line);
        spate_arena_fini(&arena);
    }
    spate_table_free(table);
}

static void decodes_rows_in_any_order_and_only_what_is_wanted(void **state)
{
    static const char line[] =
        HEAD META ",\"unchanged\":[],\"after\":{\"notes\":\"a\\u00e9\\ud83d\\udc18\",\"doc\":{\"a\":[1,{}]},"
                  "\"id\":1,\"tags\":"
                  "{\"$bytes\":\"/w==\"},\"total\":null,\"paid\":false},\"key\":{\"id\":1},\"before\":null}";
    const bool few[] = {false, true, false, false, true, false};
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_value before[6], after[6], key[1];
    struct spate_rows rows = {.before = before, .after = after, .key = key};
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    (void)state;
    assert_int_equal(spate_decode_head(S(line), &head, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_meta(S(line), &head, &meta, &arena, &err), SPATE_OK);
    assert_int_equal(meta.xid, 7);
    assert_true(meta.ts_us == FIXTURE_US);
    assert_int_equal(meta.v, 3);
    assert_int_equal(spate_decode_rows(S(line), &head, &meta, orders, NULL, &rows, &arena, &err), SPATE_OK);
    assert_true(rows.has_after && !rows.has_before);
    assert_true(spate_slice_is(after[0].text, "1"));
    assert_int_equal(after[1].kind, SPATE_VALUE_NULL);
    assert_true(spate_slice_is(after[2].text, "false"));
    assert_true(spate_slice_is(after[3].text, "\xff"));
    assert_true(spate_slice_is(after[4].text, "{\"a\":[1,{}]}"));
    assert_true(spate_slice_is(after[5].text, "a\xc3\xa9\xf0\x9f\x90\x98"));
    assert_true(spate_slice_is(key[0].text, "1"));

    assert_int_equal(spate_decode_rows(S(line), &head, &meta, orders, few, &rows, &arena, &err), SPATE_OK);
    for (size_t i = 0; i < 6; i++) {
        assert_int_equal(after[i].kind, !few[i]  ? SPATE_VALUE_ABSENT
                                        : i == 1 ? SPATE_VALUE_NULL
                                                 : SPATE_VALUE_TEXT);
        if (!few[i])
            assert_null(after[i].text.at);
    }
    assert_true(spate_slice_is(key[0].text, "1")); /* always whole */
    spate_arena_fini(&arena);
    spate_table_free(orders);
}

static void strings_without_escapes_borrow_from_the_line(void **state)
{
    static const char line[] =
        HEAD META ",\"key\":{\"t\":\"abc\"},\"before\":null,\"after\":{\"t\":\"abc\"},\"unchanged\":[]}";
    const struct fixture_column column = {"t", "text", NULL, 25, -1, -1, true};
    struct spate_table *table =
        fixture_table("t", SPATE_IDENTITY_DEFAULT, &column, 1, (const uint32_t[]){0}, 1);
    struct spate_value before[1], after[1], key[1];
    struct spate_rows rows = {.before = before, .after = after, .key = key};
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    (void)state;
    assert_int_equal(spate_decode_head(S(line), &head, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_meta(S(line), &head, &meta, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_rows(S(line), &head, &meta, table, NULL, &rows, &arena, &err), SPATE_OK);
    assert_ptr_equal(after[0].text.at, strstr(line, "\"after\"") + strlen("\"after\":{\"t\":\""));
    assert_int_equal(arena.used, 0);
    spate_arena_fini(&arena);
    spate_table_free(table);
}

static void refuses_bad_rare_messages(void **state)
{
    static const char *const cases[] = {
        "{\"spate\":1,\"op\":\"truncate\",\"n\":1,\"epoch\":1," POS
        ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\","
        "\"source\":\"s\",\"tables\":[],\"cascade\":false,\"restart\":false,\"key\":null}",
        "{\"spate\":1,\"op\":\"truncate\",\"n\":1,\"epoch\":1," POS
        ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\","
        "\"source\":\"s\",\"tables\":[{\"schema\":\"s\",\"table\":\"t\"}],\"cascade\":false,\"restart\":"
        "false,\"key\":null}",
        "{\"spate\":1,\"op\":\"truncate\",\"n\":1,\"epoch\":1," POS
        ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\","
        "\"source\":\"s\",\"tables\":[{\"schema\":\"s\",\"table\":\"t\",\"v\":1}],\"restart\":false,\"key\":"
        "null}",
        "{\"spate\":1,\"op\":\"message\",\"n\":1,\"epoch\":1," POS
        ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\","
        "\"source\":\"s\",\"prefix\":\"p\",\"key\":null}",
        "{\"spate\":1,\"op\":\"message\",\"n\":1,\"epoch\":1," POS
        ",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\","
        "\"source\":\"s\",\"prefix\":\"p\",\"content\":[],\"key\":null}",
        "{\"spate\":1,\"op\":\"epoch\",\"at\":1,\"epoch\":1,\"end\":\"0000000000000001\",\"uuid\":\"u\","
        "\"why\":\"w\","
        "\"identity\":{\"system\":\"1\",\"timeline\":1,\"database\":\"d\",\"database_oid\":1,\"slot\":\"s\","
        "\"publication\":"
        "\"p\"},\"previous\":\"broken\",\"follower\":\"continue\"}",
        "{\"spate\":1,\"op\":\"epoch\",\"at\":1,\"epoch\":1,\"end\":\"0000000000000001\",\"uuid\":\"u\","
        "\"why\":\"w\","
        "\"identity\":{\"system\":\"1\",\"timeline\":1,\"database\":\"d\",\"database_oid\":1,\"slot\":\"s\"},"
        "\"previous\":"
        "null,\"follower\":\"start\"}",
        "{\"spate\":1,\"op\":\"epoch\",\"at\":1,\"epoch\":1,\"end\":\"0000000000000001\",\"uuid\":\"u\","
        "\"why\":\"w\","
        "\"identity\":{\"system\":\"1\",\"timeline\":1,\"database\":\"d\",\"database_oid\":1,\"slot\":\"s\","
        "\"publication\":"
        "\"p\"},\"previous\":{\"epoch\":1},\"follower\":\"continue\"}",
        /* a schema message whose key or fingerprint does not belong to its columns */
        "{\"spate\":1,\"op\":\"schema\",\"schema\":\"s\",\"table\":\"t\",\"v\":1,\"fingerprint\":"
        "\"0000000000000000\","
        "\"identity\":\"default\",\"key\":null,\"columns\":[]}",
        "{\"spate\":1,\"op\":\"schema\",\"schema\":\"s\",\"table\":\"t\",\"v\":1,\"fingerprint\":"
        "\"0000000000000000\","
        "\"identity\":\"default\",\"key\":[\"z\"],\"columns\":[]}",
        "{\"spate\":1,\"op\":\"schema\",\"schema\":\"s\",\"table\":\"t\",\"v\":1,\"fingerprint\":"
        "\"0000000000000000\","
        "\"identity\":\"other\",\"key\":null,\"columns\":[]}",
        "{\"spate\":1,\"op\":\"schema\",\"schema\":\"s\",\"table\":\"t\",\"v\":1,\"fingerprint\":"
        "\"0000000000000000\","
        "\"identity\":\"full\",\"key\":null,\"columns\":[{\"name\":\"a\",\"type\":\"x\",\"oid\":1,\"mod\":-1,"
        "\"len\":70000,"
        "\"identity\":true}]}",
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_arena arena = {0};
        struct spate_err err = {0};

        if (decode(spate_slice_str(cases[i]), NULL, &arena, &err) != SPATE_FAIL)
            fail_msg("understood: %s", cases[i]);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        spate_arena_fini(&arena);
    }
}

static void refuses_rows_of_messages_without_rows(void **state)
{
    static const char line[] =
        "{\"spate\":1,\"op\":\"heartbeat\",\"at\":1,\"epoch\":1,\"end\":\"0000000000000001\"}";
    struct spate_table *kinds = fixture_kinds();
    struct spate_value before[11], after[11];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_heartbeat heartbeat;
    struct spate_epoch epoch;
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    (void)state;
    assert_int_equal(spate_decode_head(S(line), &head, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_meta(S(line), &head, &meta, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_rows(S(line), &head, &meta, kinds, NULL, &rows, &arena, &err), SPATE_FAIL);
    assert_int_equal(spate_decode_heartbeat(S(line), &heartbeat, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_epoch(S(line), &epoch, &arena, &err), SPATE_FAIL);
    spate_arena_fini(&arena);
    spate_table_free(kinds);
}

static void takes_the_masks_of_columns(void **state)
{
    struct spate_table *masked = fixture_masked("constant 0a1b2c3d"),
                       *other = fixture_masked("constant 0a1b2c3e"), *again = NULL;
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    spate_encode_schema(&line, masked, S("shop"), FIXTURE_US);
    assert_int_equal(spate_decode_schema(spate_buf_view(&line), &again, &arena, &err), SPATE_OK);
    assert_true(again->fingerprint == masked->fingerprint);
    assert_true(spate_slice_is(again->columns[1].mask, "hash 1f2e3d4c"));
    assert_int_equal(again->columns[0].mask.len, 0);
    /* Other values under the same names are another version. */
    assert_false(other->fingerprint == masked->fingerprint);
    spate_table_free(again);
    spate_table_free(other);
    spate_table_free(masked);
    spate_arena_fini(&arena);
    spate_buf_fini(&line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(understands_golden_lines_and_no_part_of_them),
        cmocka_unit_test(passes_by_what_it_does_not_know),
        cmocka_unit_test(takes_the_masks_of_columns),
        cmocka_unit_test(accepts_white_space),
        cmocka_unit_test(survives_damage),
        cmocka_unit_test(decodes_a_head),
        cmocka_unit_test(passes_on_unknown_ops),
        cmocka_unit_test(refuses_a_later_format),
        cmocka_unit_test(refuses_bad_heads),
        cmocka_unit_test(refuses_bad_metas_and_rows),
        cmocka_unit_test(decodes_rows_in_any_order_and_only_what_is_wanted),
        cmocka_unit_test(strings_without_escapes_borrow_from_the_line),
        cmocka_unit_test(refuses_bad_rare_messages),
        cmocka_unit_test(refuses_rows_of_messages_without_rows),
    };

    return cmocka_run_group_tests_name("schemas_decode", tests, NULL, NULL);
}
