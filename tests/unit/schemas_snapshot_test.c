/* Snapshots to lines and back: golden lines, names of all kinds, every malformed field, keys. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "schemas/snapshot.h"
#include "tests/support/schemas_fixture.h"
#include "tests/support/schemas_golden.h"

#define MAX_COLUMNS 16

static struct spate_addressed addressed(void)
{
    return (struct spate_addressed){.at = 1042,
                                    .epoch = 1,
                                    .to = S("billing"),
                                    .request = S("billing-5d0c1f7e"),
                                    .wall_us = FIXTURE_US,
                                    .source = S("shop")};
}

static struct spate_chunk chunk_of(const struct spate_table *table)
{
    return (struct spate_chunk){
        .head = addressed(),
        .table = table,
        .chunk = {.by = 0x0a1b2c3d, .no = 1},
        .from = SPATE_TID(0, 0),
        .to = SPATE_TID(128, 0),
    };
}

static struct spate_chunk_end end_of(const struct spate_table *table)
{
    return (struct spate_chunk_end){.head = addressed(),
                                    .table = table,
                                    .chunk = {.by = 0x0a1b2c3d, .no = 1},
                                    .count = 3,
                                    .resume = S("1:9f3e:00:0:8388608:1024:3")};
}

/* A table whose names need all that names can need, with a key of three columns. */
static struct spate_table *odd_table(void)
{
    const struct fixture_column columns[] = {
        {"a \"b\"\n", "text", NULL, 25, -1, -1, true},  {"$bytes:x", "bigint", NULL, 20, -1, 8, true},
        {"caf\xe9", "jsonb", NULL, 3802, -1, -1, true}, {"paid", "boolean", NULL, 16, -1, 1, true},
        {"note", "text", NULL, 25, -1, -1, false},
    };

    return fixture_table("$bytes:\xff", SPATE_IDENTITY_DEFAULT, columns, SPATE_COUNT(columns),
                         (const uint32_t[]){2, 0, 1, 3}, 4);
}

/* ---- golden lines ---- */

static void golden_begin_and_end(void **state)
{
    const struct spate_named_table tables[] = {
        {S("public"), S("orders"), 12, S("1:9f3e:00:0:8388608:1024:3")}, {S("a\"b"), S("caf\xe9"), 0, {0}}};
    struct spate_snapshot_begin begin = {addressed(), 0x16B3790, tables, 2};
    struct spate_ranges_end end = {addressed(), tables, 2};
    struct spate_buf lines = {0};

    (void)state;
    spate_encode_snapshot_begin(&lines, &begin);
    spate_buf_putc(&lines, '\n');
    golden("snapshot-begin", &lines);
    spate_buf_reset(&lines);
    spate_encode_ranges_end(&lines, &end);
    spate_buf_putc(&lines, '\n');
    golden("ranges-end", &lines);
    spate_buf_fini(&lines);
}

static void golden_chunks(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_chunk chunk = chunk_of(orders);
    struct spate_chunk_end end = end_of(orders);
    struct spate_buf lines = {0};

    (void)state;
    spate_encode_chunk(&lines, &chunk);
    spate_buf_putc(&lines, '\n');
    chunk.chunk.no = 2;
    chunk.from = SPATE_TID(128, 0);
    chunk.to = SPATE_TID(4294967295, 65535);
    chunk.since = end.resume;
    chunk.dropped = S("[{\"id\":7},{\"id\":9}]");
    spate_encode_chunk(&lines, &chunk);
    spate_buf_putc(&lines, '\n');
    chunk.chunk.no = 3;
    chunk.by_keys = true;
    chunk.keys = S("[{\"id\":7},{\"id\":42}]");
    chunk.dropped = S("[{\"id\":7}]");
    spate_encode_chunk(&lines, &chunk);
    spate_buf_putc(&lines, '\n');
    golden("chunk", &lines);
    spate_buf_reset(&lines);
    spate_encode_chunk_end(&lines, &end);
    spate_buf_putc(&lines, '\n');
    golden("chunk-end", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
}

static void put_read(struct spate_buf *line, const struct spate_chunk *chunk,
                     const struct spate_value *values)
{
    struct spate_err err = {0};

    spate_encode_read_head(line, chunk);
    if (spate_encode_read_row(line, chunk->table, values, &err) != SPATE_OK)
        fail_msg("%s", err.text);
}

static void golden_reads(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT), *kinds = fixture_kinds();
    struct spate_value row[] = {T("42"),    T("12.50"),     T("t"),
                                T("{a,b}"), T("{\"k\":1}"), T("left\nat \"the\" door")};
    struct spate_value all[] = {T("-32768"),
                                VALUE_NULL,
                                T("9007199254740993"),
                                T("-0"),
                                T("Infinity"),
                                T("f"),
                                T("{\"$bytes\": \"AA==\"}"),
                                T("null"),
                                T("caf\xe9"),
                                T("NaN"),
                                T("150")};
    struct spate_chunk chunk = chunk_of(orders);
    struct spate_buf lines = {0};

    (void)state;
    put_read(&lines, &chunk, row);
    spate_buf_putc(&lines, '\n');
    chunk.table = kinds; /* no key */
    put_read(&lines, &chunk, all);
    spate_buf_putc(&lines, '\n');
    golden("read", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
    spate_table_free(kinds);
}

/* ---- there and back ---- */

static const struct spate_slice odd_names[] = {
    {"billing", 7}, {"a \"b\"\\", 6}, {"$bytes:", 7}, {"\xff\xfe", 2}, {"\xd0\x96\x7f\x01", 4},
};

static void same_head(struct spate_addressed a, struct spate_addressed b)
{
    assert_true(a.at == b.at && a.epoch == b.epoch && a.wall_us == b.wall_us);
    assert_true(spate_slice_eq(a.to, b.to));
    assert_true(spate_slice_eq(a.request, b.request));
    assert_true(spate_slice_eq(a.source, b.source));
}

static void messages_come_back(void **state)
{
    struct spate_table *table = odd_table();
    struct spate_arena arena = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(odd_names); i++) {
        struct spate_slice name = odd_names[i];
        struct spate_named_table tables[] = {{name, S("x"), 0, {0}}, {S("x"), name, UINT64_MAX, name}};
        struct spate_chunk chunk = chunk_of(table), chunk_back;
        struct spate_chunk_end end = end_of(table), end_back;
        struct spate_snapshot_begin begin = {addressed(), UINT64_MAX, tables, 2}, begin_back;
        struct spate_ranges_end ranges = {addressed(), tables, 2}, ranges_back;
        struct spate_buf line = {0};
        struct spate_err err = {0};

        chunk.head.to = chunk.head.request = chunk.head.source = chunk.since = end.resume = name;
        chunk.head.at = UINT64_MAX;
        end.head = begin.head = ranges.head = chunk.head;
        chunk.chunk = end.chunk = (struct spate_chunk_name){UINT32_MAX, UINT64_MAX};
        chunk.dropped = S("[{\"a\":\"]\"}]");

        spate_encode_chunk(&line, &chunk);
        assert_int_equal(spate_decode_chunk(spate_buf_view(&line), &chunk_back, &arena, &err), SPATE_OK);
        same_head(chunk.head, chunk_back.head);
        assert_true(spate_slice_eq(chunk_back.schema, table->schema));
        assert_true(spate_slice_eq(chunk_back.name, table->name));
        assert_int_equal(chunk_back.v, table->v);
        assert_true(chunk_back.chunk.by == UINT32_MAX && chunk_back.chunk.no == UINT64_MAX);
        assert_false(chunk_back.by_keys);
        assert_true(chunk_back.from == chunk.from && chunk_back.to == chunk.to);
        assert_true(spate_slice_eq(chunk_back.since, name));
        assert_true(spate_slice_eq(chunk_back.dropped, chunk.dropped));

        spate_buf_reset(&line);
        chunk.by_keys = true;
        chunk.keys = chunk.dropped;
        chunk.dropped = (struct spate_slice){0};
        spate_encode_chunk(&line, &chunk);
        assert_int_equal(spate_decode_chunk(spate_buf_view(&line), &chunk_back, &arena, &err), SPATE_OK);
        assert_true(chunk_back.by_keys);
        assert_true(spate_slice_eq(chunk_back.keys, chunk.keys));
        assert_true(spate_slice_is(chunk_back.dropped, "[]"));
        assert_int_equal(chunk_back.since.len, 0);

        spate_buf_reset(&line);
        spate_encode_chunk_end(&line, &end);
        assert_int_equal(spate_decode_chunk_end(spate_buf_view(&line), &end_back, &arena, &err), SPATE_OK);
        same_head(end.head, end_back.head);
        assert_true(end_back.chunk.by == UINT32_MAX && end_back.chunk.no == UINT64_MAX);
        assert_int_equal(end_back.count, 3);
        assert_true(spate_slice_eq(end_back.resume, name));
        assert_true(spate_slice_eq(end_back.name, table->name));

        spate_buf_reset(&line);
        spate_encode_snapshot_begin(&line, &begin);
        assert_int_equal(spate_decode_snapshot_begin(spate_buf_view(&line), &begin_back, &arena, &err),
                         SPATE_OK);
        same_head(begin.head, begin_back.head);
        assert_true(begin_back.end == UINT64_MAX);
        assert_int_equal(begin_back.count, 2);
        assert_true(spate_slice_eq(begin_back.tables[0].schema, name));
        assert_true(spate_slice_eq(begin_back.tables[1].table, name));

        spate_buf_reset(&line);
        spate_encode_ranges_end(&line, &ranges);
        assert_int_equal(spate_decode_ranges_end(spate_buf_view(&line), &ranges_back, &arena, &err),
                         SPATE_OK);
        same_head(ranges.head, ranges_back.head);
        assert_int_equal(ranges_back.count, 2);
        assert_int_equal(ranges_back.tables[0].chunks, 0);
        assert_int_equal(ranges_back.tables[0].resume.len, 0);
        assert_true(ranges_back.tables[1].chunks == UINT64_MAX);
        assert_true(spate_slice_eq(ranges_back.tables[1].resume, name));
        spate_buf_fini(&line);
    }
    spate_arena_fini(&arena);
    spate_table_free(table);
}

/* Head, meta, name and rows of a read. */
static enum spate_rc decode_read(struct spate_slice line, const struct spate_table *table, const bool *want,
                                 struct spate_chunk_name *name, struct spate_rows *rows,
                                 struct spate_arena *arena, struct spate_err *err)
{
    struct spate_head head;
    struct spate_meta meta;

    if (spate_decode_head(line, &head, arena, err) != SPATE_OK ||
        spate_decode_meta(line, &head, &meta, arena, err) != SPATE_OK ||
        spate_decode_chunk_name(line, &meta, name, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    return spate_decode_rows(line, &head, &meta, table, want, rows, arena, err);
}

static void rows_have_the_asked_columns_and_a_whole_key(void **state)
{
    struct spate_table *table = odd_table();
    const bool want[] = {false, true, false, false, true};
    struct spate_value in[] = {T("k"), T("-9223372036854775808"), T("{\"a\":[1,\"]\"]}"), T("t"), T("x")};
    struct spate_value before[MAX_COLUMNS], after[MAX_COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_chunk chunk = chunk_of(table);
    struct spate_chunk_name name;
    struct spate_arena arena = {0};
    struct spate_buf line = {0}, key = {0};
    struct spate_err err = {0};

    (void)state;
    put_read(&line, &chunk, in);
    assert_int_equal(spate_encode_row_key(&key, table, in, &err), SPATE_OK);
    assert_non_null(strstr(spate_buf_str(&line), spate_buf_str(&key)));
    assert_int_equal(decode_read(spate_buf_view(&line), table, NULL, &name, &rows, &arena, &err), SPATE_OK);
    assert_true(name.by == chunk.chunk.by && name.no == chunk.chunk.no);
    assert_true(rows.has_after && !rows.has_before);
    for (size_t i = 0; i < 5; i++)
        assert_true(spate_slice_eq(after[i].text, i == 3 ? S("true") : in[i].text));
    for (size_t i = 0; i < 4; i++)
        assert_true(spate_slice_eq(rows.key[i].text, after[table->key[i]].text));

    /* Not asked for: not in the line, and nobody misses it who does not want it. */
    in[4] = ABSENT;
    spate_buf_reset(&line);
    put_read(&line, &chunk, in);
    assert_null(strstr(spate_buf_str(&line), "note"));
    assert_int_equal(decode_read(spate_buf_view(&line), table, NULL, &name, &rows, &arena, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "column note"));
    assert_int_equal(decode_read(spate_buf_view(&line), table, want, &name, &rows, &arena, &err), SPATE_FAIL);
    assert_int_equal(decode_read(spate_buf_view(&line), table,
                                 (const bool[]){false, true, false, false, false}, &name, &rows, &arena,
                                 &err),
                     SPATE_OK);
    assert_int_equal(after[0].kind, SPATE_VALUE_ABSENT);
    assert_int_equal(after[4].kind, SPATE_VALUE_ABSENT);
    assert_null(after[4].text.at);
    assert_true(spate_slice_is(after[1].text, "-9223372036854775808"));
    assert_true(spate_slice_is(rows.key[1].text, "k"));

    spate_buf_fini(&line);
    spate_buf_fini(&key);
    spate_arena_fini(&arena);
    spate_table_free(table);
}

/* A change must name each column; that a read need not is no licence for the others. */
static void only_reads_may_lack_columns(void **state)
{
    static const char line[] =
        "{\"spate\":1,\"op\":\"insert\",\"n\":1,\"epoch\":1,\"schema\":\"public\",\"table\":\"orders\","
        "\"pos\":"
        "\"0000000000000001.00000001\",\"xid\":7,\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\","
        "\"v\":3,\"key\":{\"id\":1},\"before\":null,\"after\":{\"id\":1},\"unchanged\":[]}";
    const bool want[] = {true, false, false, false, false, false};
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_value before[MAX_COLUMNS], after[MAX_COLUMNS];
    struct spate_rows rows = {.before = before, .after = after};
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_head head;
    struct spate_meta meta;

    (void)state;
    assert_int_equal(spate_decode_head(S(line), &head, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_meta(S(line), &head, &meta, &arena, &err), SPATE_OK);
    assert_int_equal(spate_decode_rows(S(line), &head, &meta, orders, want, &rows, &arena, &err), SPATE_FAIL);
    spate_arena_fini(&arena);
    spate_table_free(orders);
}

static void a_row_that_cannot_be_written_leaves_nothing(void **state)
{
    struct spate_table *table = odd_table();
    struct spate_value row[] = {T("k"), T("1"), T("{}"), T("t"), T("x")};
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    spate_buf_puts(&line, "before");
    row[2] = T("{no json}");
    assert_int_equal(spate_encode_read_row(&line, table, row, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_QUARANTINE);
    assert_null(strstr(err.text, "no json}")); /* no value of a row in a log */
    assert_int_equal(spate_encode_row_key(&line, table, row, &err), SPATE_FAIL);
    row[2] = ABSENT;
    assert_int_equal(spate_encode_read_row(&line, table, row, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "key's column is missing"));
    assert_string_equal(spate_buf_str(&line), "before");
    spate_buf_fini(&line);
    spate_table_free(table);
}

/* ---- tids ---- */

static void tids_are_ctids(void **state)
{
    static const char *const bad[] = {"",          "(,)",    "(1)",    "(1,)",   "(,1)",
                                      "(1,2",      "1,2)",   "(01,2)", "(1,02)", "(4294967296,0)",
                                      "(0,65536)", "(-1,0)", "(1, 2)", "(1,2) ", "(99999999999999999999,0)",
                                      "(1,2,3)",   "(1;2)"};
    static const uint64_t good[] = {0, SPATE_TID(0, 1), SPATE_TID(128, 0), SPATE_TID(4294967295, 65535)};
    char text[SPATE_TID_TEXT];
    uint64_t tid;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(good); i++) {
        spate_tid_format(good[i], text);
        assert_true(spate_tid_parse(spate_slice_str(text), &tid));
        assert_true(tid == good[i]);
    }
    assert_string_equal(text, "(4294967295,65535)");
    for (size_t i = 0; i < SPATE_COUNT(bad); i++)
        if (spate_tid_parse(spate_slice_str(bad[i]), &tid))
            fail_msg("taken for a tid: %s", bad[i]);
}

/* ---- malformed ---- */

#define HEAD(op)                                                                                             \
    "{\"spate\":1,\"op\":\"" op "\",\"at\":5,\"epoch\":1,\"to\":\"b\",\"request\":\"r\",\"schema\":\"s\","   \
    "\"table\":\"t\""
#define META  ",\"ts\":\"2026-11-21T09:14:03.123456Z\",\"source\":\"shop\",\"v\":3"
#define NAME  ",\"by\":\"0a1b2c3d\",\"no\":1"
#define RANGE ",\"range\":{\"from\":\"(0,0)\",\"to\":\"(1,0)\"}"
#define BEGIN "{\"spate\":1,\"op\":\"snapshot-begin\",\"at\":5,\"epoch\":1,\"to\":\"b\",\"request\":\"r\""
#define ENDS  "{\"spate\":1,\"op\":\"ranges-end\",\"at\":5,\"epoch\":1,\"to\":\"b\",\"request\":\"r\""

static enum spate_rc decode_any(struct spate_slice line, struct spate_arena *arena, struct spate_err *err)
{
    struct spate_snapshot_begin begin;
    struct spate_ranges_end ranges_end;
    struct spate_chunk_end chunk_end;
    struct spate_chunk_name name;
    struct spate_chunk chunk;
    struct spate_head head;
    struct spate_meta meta;

    if (spate_decode_head(line, &head, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (head.op == SPATE_OP_SNAPSHOT_BEGIN)
        return spate_decode_snapshot_begin(line, &begin, arena, err);
    if (head.op == SPATE_OP_CHUNK)
        return spate_decode_chunk(line, &chunk, arena, err);
    if (head.op == SPATE_OP_CHUNK_END)
        return spate_decode_chunk_end(line, &chunk_end, arena, err);
    if (head.op == SPATE_OP_RANGES_END)
        return spate_decode_ranges_end(line, &ranges_end, arena, err);
    if (spate_decode_meta(line, &head, &meta, arena, err) != SPATE_OK)
        return SPATE_FAIL;
    return spate_decode_chunk_name(line, &meta, &name, arena, err);
}

static void refuses_malformed_messages(void **state)
{
    static const struct {
        const char *line, *text;
    } cases[] = {
        {"{\"spate\":1,\"op\":\"chunk\",\"n\":5}", "all other messages have at"},
        {"{\"spate\":1,\"op\":\"chunk\",\"at\":5,\"epoch\":1,\"request\":\"r\"}", "\"to\""},
        {"{\"spate\":1,\"op\":\"chunk\",\"at\":5,\"epoch\":1,\"to\":\"b\"}", "\"request\""},
        {"{\"spate\":1,\"op\":\"chunk\",\"at\":5,\"epoch\":1,\"to\":\"b\",\"request\":\"r\"}", "\"schema\""},
        {"{\"spate\":1,\"op\":\"chunk-end\",\"at\":5,\"epoch\":1,\"to\":\"b\",\"request\":\"r\"}",
         "\"schema\""},
        {"{\"spate\":1,\"op\":\"read\",\"at\":5,\"epoch\":1,\"to\":1}", "\"to\""},
        {HEAD("chunk") "}", "\"v\""},
        {HEAD("chunk-end") "}", "\"v\""},
        {HEAD("read") "}", "\"v\""},
        {HEAD("chunk") META RANGE ",\"no\":1,\"dropped\":[]}", "\"by\""},
        {HEAD("chunk") META RANGE ",\"by\":\"0a1b2c3d\",\"dropped\":[]}", "\"no\""},
        {HEAD("chunk") META RANGE NAME "}", "\"dropped\""},
        {HEAD("chunk") META NAME ",\"dropped\":[]}", "either a range or keys"},
        {HEAD("chunk") META NAME RANGE ",\"keys\":[],\"dropped\":[]}", "either a range or keys"},
        {HEAD("chunk") META NAME RANGE RANGE ",\"dropped\":[]}", "twice"},
        {HEAD("chunk") META NAME ",\"keys\":{},\"dropped\":[]}", "expected an array"},
        {HEAD("chunk") META NAME RANGE ",\"dropped\":null}", "expected an array"},
        {HEAD("chunk") META NAME RANGE ",\"since\":5,\"dropped\":[]}", "\"since\""},
        {HEAD("chunk") META ",\"by\":\"0A1B2C3D\",\"no\":1" RANGE ",\"dropped\":[]}", "lower case"},
        {HEAD("chunk") META ",\"by\":\"0a1b2c3\",\"no\":1" RANGE ",\"dropped\":[]}", "8 hex digits"},
        {HEAD("chunk") META ",\"by\":169552957,\"no\":1" RANGE ",\"dropped\":[]}", "\"by\""},
        {HEAD("chunk") META ",\"by\":\"0a1b2c3d\",\"no\":0" RANGE ",\"dropped\":[]}", "count from 1"},
        {HEAD("chunk") META ",\"by\":\"0a1b2c3d\",\"no\":-1" RANGE ",\"dropped\":[]}", "\"no\""},
        {HEAD("chunk") META NAME ",\"range\":[],\"dropped\":[]}", "expected an object"},
        {HEAD("chunk") META NAME ",\"range\":{\"from\":\"(0,0)\"},\"dropped\":[]}", "\"to\""},
        {HEAD("chunk") META NAME ",\"range\":{\"to\":\"(0,0)\"},\"dropped\":[]}", "\"from\""},
        {HEAD("chunk") META NAME ",\"range\":{\"from\":0,\"to\":1},\"dropped\":[]}", "\"from\""},
        {HEAD("chunk") META NAME ",\"range\":{\"from\":\"0\",\"to\":\"(1,0)\"},\"dropped\":[]}", "(128,0)"},
        {HEAD("chunk") META NAME ",\"range\":{\"from\":\"(1,0)\",\"to\":\"(0,9)\"},\"dropped\":[]}",
         "ends before"},
        {HEAD("chunk-end") META NAME ",\"count\":1}", "\"resume\""},
        {HEAD("chunk-end") META NAME ",\"resume\":\"\"}", "\"count\""},
        {HEAD("chunk-end") META NAME ",\"count\":-1,\"resume\":\"\"}", "\"count\""},
        {HEAD("chunk-end") META NAME ",\"count\":1,\"resume\":1}", "\"resume\""},
        {HEAD("chunk-end") META NAME ",\"count\":1,\"count\":1,\"resume\":\"\"}", "twice"},
        {HEAD("chunk-end") META NAME ",\"count\":1,\"resume\":\"\"}}", "follows the end"},
        {HEAD("read") META ",\"no\":1,\"key\":null}", "\"by\""},
        {HEAD("read") META ",\"by\":\"0a1b2c3d\"}", "\"no\""},
        {HEAD("read") META ",\"by\":\"0a1b2c3d\",\"by\":\"0a1b2c3d\"}", "twice"},
        {BEGIN META ",\"tables\":[]}", "\"end\""},
        {BEGIN ",\"end\":\"1\",\"tables\":[]}", "\"end\""},
        {BEGIN ",\"end\":\"0000000000000001\"}", "\"tables\""},
        {BEGIN ",\"end\":\"0000000000000001\",\"tables\":{}}", "expected an array"},
        {BEGIN ",\"end\":\"0000000000000001\",\"tables\":[\"s.t\"]}", "expected an object"},
        {BEGIN ",\"end\":\"0000000000000001\",\"tables\":[{\"table\":\"t\"}]}", "\"schema\""},
        {BEGIN ",\"end\":\"0000000000000001\",\"tables\":[{\"schema\":\"s\"}]}", "\"table\""},
        {ENDS ",\"tables\":[{\"schema\":\"s\",\"table\":\"t\"}]}", "\"chunks\""},
        {ENDS ",\"tables\":[{\"schema\":\"s\",\"table\":\"t\",\"chunks\":\"1\"}]}", "\"chunks\""},
        {ENDS ",\"tables\":[{\"schema\":\"s\",\"table\":\"t\",\"chunks\":1}]}", "\"resume\""},
        {ENDS "}", "\"tables\""},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_arena arena = {0};
        struct spate_err err = {0};

        if (decode_any(spate_slice_str(cases[i].line), &arena, &err) != SPATE_FAIL)
            fail_msg("understood: %s", cases[i].line);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s\nnot in: %s\nfor: %s", cases[i].text, err.text, cases[i].line);
        spate_arena_fini(&arena);
    }
}

static void the_name_of_a_chunk_is_all_that_is_looked_at(void **state)
{
    static const char line[] = HEAD("read") META ",\"later\":[{}]" NAME ",\"key\":nonsense";
    struct spate_arena arena = {0};
    struct spate_err err = {0};

    (void)state;
    assert_int_equal(decode_any(S(line), &arena, &err), SPATE_OK);
    spate_arena_fini(&arena);
}

static void one_message_is_not_taken_for_another(void **state)
{
    static const char line[] = HEAD("chunk-end") META NAME ",\"count\":1,\"resume\":\"\"}";
    struct spate_ranges_end ranges_end;
    struct spate_chunk chunk;
    struct spate_arena arena = {0};
    struct spate_err err = {0};

    (void)state;
    assert_int_equal(spate_decode_chunk(S(line), &chunk, &arena, &err), SPATE_FAIL);
    assert_int_equal(spate_decode_ranges_end(S(line), &ranges_end, &arena, &err), SPATE_FAIL);
    spate_arena_fini(&arena);
}

/* ---- keys ---- */

static void keys_come_back(void **state)
{
    const struct spate_value keys[][4] = {
        {T("{\"a\": \"}],[{\"}"), T("a\"b\\"), T("1"), T("t")},
        {T("\"{\\\"k\\\": 1}\""), T("{\"id\":1}"), T("9223372036854775807"), T("f")},
        {T("[]"), T(""), T("0"), T("true")},
        {T("5"), T("caf\xe9"), T("-1"), T("false")},
        {T("{\"$bytes\": \"AA==\"}"), T("\xd0\x96\x01\n"), T("9007199254740992"), T("t")},
    };
    struct spate_table *table = odd_table();
    struct spate_value *values;
    struct spate_arena arena = {0};
    struct spate_buf text = {0};
    struct spate_err err = {0};
    size_t count;

    (void)state;
    spate_buf_putc(&text, '[');
    for (size_t i = 0; i < SPATE_COUNT(keys); i++) {
        if (i > 0)
            spate_buf_putc(&text, ',');
        assert_int_equal(spate_encode_key_values(&text, table, keys[i], &err), SPATE_OK);
    }
    spate_buf_putc(&text, ']');
    assert_null(strstr(spate_buf_str(&text), "\"true\"")); /* as the source would write it */
    if (spate_decode_keys(spate_buf_view(&text), table, &values, &count, &arena, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(count, SPATE_COUNT(keys));
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < 3; j++) {
            assert_int_equal(values[4 * i + j].kind, SPATE_VALUE_TEXT);
            assert_true(spate_slice_eq(values[4 * i + j].text, keys[i][j].text));
        }
        assert_true(spate_slice_is(values[4 * i + 3].text, keys[i][3].text.at[0] == 't' ? "true" : "false"));
    }
    /* By hand: any order, and numbers as strings. */
    assert_int_equal(spate_decode_keys(S("[ { \"paid\" : true, \"$bytes:JGJ5dGVzOng=\" : \"7\", "
                                         "\"$bytes:Y2Fm6Q==\" : [ 1 ], \"a \\\"b\\\"\\u000a\" : 5 } ]"),
                                       table, &values, &count, &arena, &err),
                     SPATE_OK);
    assert_int_equal(count, 1);
    assert_true(spate_slice_is(values[0].text, "[ 1 ]"));
    assert_true(spate_slice_is(values[1].text, "5"));
    assert_true(spate_slice_is(values[2].text, "7"));
    assert_true(spate_slice_is(values[3].text, "true"));
    assert_int_equal(spate_decode_keys(S(" [ ] "), table, &values, &count, &arena, &err), SPATE_OK);
    assert_int_equal(count, 0);
    spate_buf_fini(&text);
    spate_arena_fini(&arena);
    spate_table_free(table);
}

static void refuses_malformed_keys(void **state)
{
    static const struct {
        const char *keys, *text;
    } cases[] = {
        {"", "no JSON array"},
        {"{\"id\":1}", "no JSON array"},
        {"[{\"id\":1}", "no JSON array"},
        {"[{\"id\":1}]x", "no JSON array"},
        {"[{\"id\":1},]", "no JSON array"},
        {"[1]", "key 1 of table public.orders"},
        {"[null]", "key 1 of"},
        {"[{}]", "is missing"},
        {"[{\"id\":1},{\"id\":null}]", "key 2 of table public.orders, column id"},
        {"[{\"id\":1,\"id\":1}]", "twice"},
        {"[{\"id\":1,\"paid\":true}]", "not part of the table's key"},
        {"[{\"id\":1,\"z\":1}]", "no such column"},
        {"[{\"id\":{\"$bytes\":\"?\"}}]", "base64"},
        {"[{\"id\":\"1\\u0000\"}]", "no character 0"},
        {"[{\"id\":{\"$bytes\":\"AA==\"}}]", "no character 0"},
    };
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT), *kinds = fixture_kinds();
    struct spate_value *values;
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    size_t count;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        if (spate_decode_keys(spate_slice_str(cases[i].keys), orders, &values, &count, &arena, &err) !=
            SPATE_FAIL)
            fail_msg("understood: %s", cases[i].keys);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s\nnot in: %s\nfor: %s", cases[i].text, err.text, cases[i].keys);
    }
    assert_int_equal(spate_decode_keys(S("[{\"id\":1}]"), kinds, &values, &count, &arena, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "the table has no key"));
    spate_arena_fini(&arena);
    spate_table_free(orders);
    spate_table_free(kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_begin_and_end),
        cmocka_unit_test(golden_chunks),
        cmocka_unit_test(golden_reads),
        cmocka_unit_test(messages_come_back),
        cmocka_unit_test(rows_have_the_asked_columns_and_a_whole_key),
        cmocka_unit_test(only_reads_may_lack_columns),
        cmocka_unit_test(a_row_that_cannot_be_written_leaves_nothing),
        cmocka_unit_test(tids_are_ctids),
        cmocka_unit_test(refuses_malformed_messages),
        cmocka_unit_test(the_name_of_a_chunk_is_all_that_is_looked_at),
        cmocka_unit_test(one_message_is_not_taken_for_another),
        cmocka_unit_test(keys_come_back),
        cmocka_unit_test(refuses_malformed_keys),
    };

    return cmocka_run_group_tests_name("schemas_snapshot", tests, NULL, NULL);
}
