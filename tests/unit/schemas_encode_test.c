/* Changes to lines: every op, every class of value, and the golden lines of schemas/golden. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/schemas_fixture.h"
#include "tests/support/schemas_golden.h"

/* ---- golden lines ---- */

static void add(struct spate_buf *lines, const struct spate_change *change)
{
    struct spate_err err = {0};

    assert_int_equal(spate_encode_change(lines, change, &err), SPATE_OK);
    spate_buf_putc(lines, '\n');
}

static void golden_inserts(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT), *kinds = fixture_kinds();
    struct spate_value row[] = {T("42"),    T("12.50"),     T("t"),
                                T("{a,b}"), T("{\"k\":1}"), T("left\nat \"the\" door")};
    struct spate_value low[] = {
        T("-32768"), T("-2147483648"), T("-9223372036854775808"),   T("NaN"), T("-Infinity"),
        T("f"),      T("null"),        T("{\"a\" : 1, \"a\" : 2}"), T(""),    T("-Infinity"),
        T("0")};
    struct spate_value high[] = {T("32767"),
                                 T("2147483647"),
                                 T("9007199254740991"),
                                 T("1e+20"),
                                 T("1e-320"),
                                 T("t"),
                                 T("[1, {\"$bytes\": \"x\"}]"),
                                 T("\"s\""),
                                 T("\xd0\x96\x7f"),
                                 T("1e400"),
                                 T("150")};
    struct spate_value none[11];
    struct spate_change change = fixture_change(SPATE_OP_INSERT, orders, NULL, row);
    struct spate_buf lines = {0};

    (void)state;
    add(&lines, &change);
    change.end = 0x16B3790;
    change.n = 1043;
    change.pos.ordinal = 4;
    change.table = kinds;
    change.after = low;
    add(&lines, &change);
    change.after = high;
    add(&lines, &change);
    for (size_t i = 0; i < SPATE_COUNT(none); i++)
        none[i] = VALUE_NULL;
    change.after = none;
    add(&lines, &change);
    none[8] = T("caf\xe9");                /* latin1 in an SQL_ASCII database (P83) */
    none[6] = T("{\"$bytes\": \"AA==\"}"); /* a jsonb that a reader would take for bytes */
    add(&lines, &change);
    golden("insert", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
    spate_table_free(kinds);
}

static void golden_updates(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT),
                       *full = fixture_orders(SPATE_IDENTITY_FULL);
    struct spate_value after[] = {T("42"), T("12.50"), T("t"), T("{a,b}"), T("{\"k\":1}"), ABSENT};
    struct spate_value old_key[] = {T("41"), VALUE_NULL, VALUE_NULL, VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_value before[] = {T("42"), VALUE_NULL, T("f"), T("{}"), T("[]"), T("a long note")};
    struct spate_change change = fixture_change(SPATE_OP_UPDATE, orders, NULL, after);
    struct spate_buf lines = {0};

    (void)state;
    change.end = 0x16B3790;
    add(&lines, &change); /* the example of docs/message-format.md */
    change.before = old_key;
    add(&lines, &change);
    change.table = full;
    change.before = before;
    change.before_full = true;
    add(&lines, &change); /* P44 */
    golden("update", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
    spate_table_free(full);
}

static void golden_deletes(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT),
                       *full = fixture_orders(SPATE_IDENTITY_FULL);
    struct spate_value old_key[] = {T("41"), VALUE_NULL, ABSENT, VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_value before[] = {T("42"), VALUE_NULL, T("f"), T("{}"), T("[]"), T("a long note")};
    struct spate_change change = fixture_change(SPATE_OP_DELETE, orders, old_key, NULL);
    struct spate_buf lines = {0};

    (void)state;
    add(&lines, &change);
    change.table = full;
    change.before = before;
    change.before_full = true;
    add(&lines, &change);
    golden("delete", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
    spate_table_free(full);
}

static void golden_truncates_and_messages(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT), *kinds = fixture_kinds();
    const struct spate_table *tables[] = {orders, kinds};
    struct spate_change change = fixture_change(SPATE_OP_TRUNCATE, NULL, NULL, NULL);
    struct spate_buf lines = {0};

    (void)state;
    change.tables = tables;
    change.table_count = 1;
    add(&lines, &change);
    change.table_count = 2;
    change.cascade = change.restart = true;
    change.end = 0x16B3790;
    add(&lines, &change);
    golden("truncate", &lines);
    spate_buf_reset(&lines);
    change = fixture_change(SPATE_OP_MESSAGE, NULL, NULL, NULL);
    change.prefix = S("audit");
    change.content = S("who: \"me\"");
    add(&lines, &change);
    change.content = S("\x00\xff");
    change.end = 0x16B3790;
    add(&lines, &change);
    golden("message", &lines);
    spate_buf_fini(&lines);
    spate_table_free(orders);
    spate_table_free(kinds);
}

static void golden_stale_and_storage(void **state)
{
    const struct spate_slice columns[] = {S("rate"), S("$bytes:x")};
    struct spate_stale stale = {.at = 1042,
                                .epoch = 1,
                                .end = 0x16B3790,
                                .wall_us = FIXTURE_US,
                                .source = S("shop"),
                                .schema = S("public"),
                                .table = S("orders"),
                                .v = 3,
                                .why = S("columns"),
                                .columns = columns,
                                .column_count = 2};
    struct spate_storage storage = {.epoch = 1,
                                    .end = 0x16B3790,
                                    .wall_us = FIXTURE_US,
                                    .source = S("shop"),
                                    .schema = S("public"),
                                    .table = S("orders"),
                                    .state = S("1 16400")};
    struct spate_buf lines = {0};

    (void)state;
    spate_encode_stale(&lines, &stale);
    spate_buf_putc(&lines, '\n');
    stale.why = S("rewritten");
    stale.column_count = 0;
    spate_encode_stale(&lines, &stale);
    spate_buf_putc(&lines, '\n');
    golden("stale", &lines);
    spate_buf_reset(&lines);
    spate_encode_storage(&lines, &storage);
    spate_buf_putc(&lines, '\n');
    storage.gone = true;
    storage.state = S("");
    spate_encode_storage(&lines, &storage);
    spate_buf_putc(&lines, '\n');
    golden("storage", &lines);
    spate_buf_fini(&lines);
}

static void golden_heartbeat_and_epochs(void **state)
{
    struct spate_heartbeat heartbeat = {
        .at = 1042, .epoch = 1, .end = 0x16B3790, .wall_us = FIXTURE_US, .source = S("shop")};
    struct spate_epoch epoch = {
        .at = 0,
        .epoch = 1,
        .end = 0x16B0000,
        .wall_us = FIXTURE_US,
        .source = S("shop"),
        .uuid = S("6f1c2a4e-0b7d-4c55-9d3e-2f8a1b0c9d7e"),
        .why = S("first start"),
        .identity = {S("7312345678901234567"), 1, S("shop"), 16384, S("spate"), S("spate")},
    };
    struct spate_buf lines = {0};

    (void)state;
    spate_encode_heartbeat(&lines, &heartbeat);
    spate_buf_putc(&lines, '\n');
    golden("heartbeat", &lines);
    spate_buf_reset(&lines);
    spate_encode_epoch(&lines, &epoch);
    spate_buf_putc(&lines, '\n');
    epoch.epoch = 2;
    epoch.at = 1042;
    epoch.why = S("the slot was dropped and made again");
    epoch.previous = SPATE_PREVIOUS_BROKEN;
    spate_encode_epoch(&lines, &epoch);
    spate_buf_putc(&lines, '\n');
    epoch.previous = SPATE_PREVIOUS_CONTINUES;
    epoch.why = S("asked for");
    epoch.previous_epoch = 1;
    epoch.previous_n = 1042;
    spate_encode_epoch(&lines, &epoch);
    spate_buf_putc(&lines, '\n');
    golden("epoch", &lines);
    spate_buf_fini(&lines);
}

static void golden_schemas(void **state)
{
    struct spate_table *tables[] = {fixture_orders(SPATE_IDENTITY_DEFAULT),
                                    fixture_orders(SPATE_IDENTITY_FULL), fixture_kinds(),
                                    fixture_masked("constant 0a1b2c3d")};
    struct spate_buf lines = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(tables); i++) {
        spate_encode_schema(&lines, tables[i], S("shop"), FIXTURE_US);
        spate_buf_putc(&lines, '\n');
        spate_table_free(tables[i]);
    }
    golden("schema", &lines);
    spate_buf_fini(&lines);
}

/* ---- one value of one class ---- */

struct value_case {
    uint32_t oid;
    const char *text; /* NULL: null */
    const char *json; /* NULL: refused */
};

enum {
    INT2 = 21,
    INT4 = 23,
    INT8 = 20,
    FLOAT4 = 700,
    FLOAT8 = 701,
    BOOLEAN = 16,
    JSONB = 3802,
    JSON = 114,
    TEXT = 25
};

static const struct value_case value_cases[] = {
    {INT4, NULL, "null"},
    {INT2, "0", "0"},
    {INT4, "-2147483648", "-2147483648"},
    {INT4, "-0", "\"-0\""},
    {INT4, "007", "\"007\""},
    {INT4, "", "\"\""},
    {INT4, "-", "\"-\""},
    {INT4, "1x", "\"1x\""},
    {INT8, "9007199254740991", "9007199254740991"},
    {INT8, "-9007199254740991", "-9007199254740991"},
    {INT8, "9007199254740992", "\"9007199254740992\""},
    {INT8, "-9007199254740992", "\"-9007199254740992\""},
    {INT8, "9223372036854775807", "\"9223372036854775807\""},
    {INT8, "-9223372036854775808", "\"-9223372036854775808\""},
    {FLOAT8, "0", "0"},
    {FLOAT8, "-0", "-0.0"}, /* a reader with whole numbers would lose the sign of -0 */
    {FLOAT8, "-0.0", "\"-0.0\""},
    {FLOAT8, "0.1", "0.1"},
    {FLOAT8, "1e+20", "1e+20"},
    {FLOAT8, "1e-320", "1e-320"},
    {FLOAT8, "5e-324", "5e-324"},
    {FLOAT8, "1.7976931348623157e+308", "1.7976931348623157e+308"},
    {FLOAT4, "3.4028235e+38", "3.4028235e+38"},
    {FLOAT8, "NaN", "\"NaN\""},
    {FLOAT8, "Infinity", "\"Infinity\""},
    {FLOAT8, "-Infinity", "\"-Infinity\""},
    {FLOAT8, ".5", "\".5\""},
    {FLOAT8, "1.", "\"1.\""},
    {FLOAT8, "1e", "\"1e\""},
    {FLOAT8, "01", "\"01\""},
    {FLOAT8, "1 ", "\"1 \""},
    {JSONB, " {}", "\" {}\""},
    {BOOLEAN, "t", "true"},
    {BOOLEAN, "f", "false"},
    {BOOLEAN, "true", "\"true\""},
    {JSONB, "{}", "{}"},
    {JSONB, "[]", "[]"},
    {JSONB, "{\"a\": [1, 2.50, -0, 1e5], \"b\": {\"c\": null, \"d\": [true, false, \"\\u0001\\n\"]}}",
     "{\"a\": [1, 2.50, -0, 1e5], \"b\": {\"c\": null, \"d\": [true, false, \"\\u0001\\n\"]}}"},
    {JSONB, "1", "\"1\""},
    {JSONB, "-0", "\"-0\""},
    {JSONB, "null", "\"null\""},
    {JSONB, "true", "\"true\""},
    {JSONB, "\"x\"", "\"\\\"x\\\"\""},
    {JSONB, "{\"$bytes\": \"AA==\"}", "\"{\\\"$bytes\\\": \\\"AA==\\\"}\""},
    {JSONB, "{\"$bytes\": 1}", "\"{\\\"$bytes\\\": 1}\""},
    {JSONB, "{\"\\u0024byte\\u0073\": 1}", "\"{\\\"\\\\u0024byte\\\\u0073\\\": 1}\""},
    {JSONB, "{\"$bytes\": 1, \"$bytes\": 2}", "\"{\\\"$bytes\\\": 1, \\\"$bytes\\\": 2}\""},
    {JSONB, "{\"$bytes\": 1, \"b\": 2}", "{\"$bytes\": 1, \"b\": 2}"},
    {JSONB, "{\"$byte\": 1}", "{\"$byte\": 1}"},
    {JSONB, "{\"\": 1}", "{\"\": 1}"},
    {JSONB, "[{\"$bytes\": 1}]", "[{\"$bytes\": 1}]"},
    {JSONB, "{\"a\":\n1}", "\"{\\\"a\\\":\\n1}\""}, /* valid, but it would break the line */
    {JSONB, "{\"a\":\"\xe9\"}", "{\"$bytes\":\"eyJhIjoi6SJ9\"}"},
    {JSONB, "", NULL},
    {JSONB, "{", NULL},
    {JSONB, "}", NULL},
    {JSONB, "[1,]", NULL},
    {JSONB, "[1 2]", NULL},
    {JSONB, "[1]]", NULL},
    {JSONB, "{\"a\":}", NULL},
    {JSONB, "{\"a\" 1}", NULL},
    {JSONB, "{a:1}", NULL},
    {JSONB, "{\"a\":1,}", NULL},
    {JSONB, "[01]", NULL},
    {JSONB, "[+1]", NULL},
    {JSONB, "[nul]", NULL},
    {JSONB, "[\"\\x\"]", NULL},
    {JSONB, "[\"\\u00g0\"]", NULL},
    {JSONB, "[\"a\nb\"]", NULL},
    {JSONB, "{\"a\": 1} x", NULL},
    {JSON, "{\"a\" : 1}", "\"{\\\"a\\\" : 1}\""},
    {TEXT, "", "\"\""},
    {TEXT, "plain", "\"plain\""},
    {TEXT, "\"\\/", "\"\\\"\\\\/\""},
    {TEXT, "\b\f\n\r\t\x01\x1f\x7f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\\u007f\""},
    {TEXT, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98\""},
    {TEXT, "\xc0\x80", "{\"$bytes\":\"wIA=\"}"},             /* overlong */
    {TEXT, "\xe0\x80\x80", "{\"$bytes\":\"4ICA\"}"},         /* overlong */
    {TEXT, "\xed\xa0\x80", "{\"$bytes\":\"7aCA\"}"},         /* a surrogate */
    {TEXT, "\xf4\x90\x80\x80", "{\"$bytes\":\"9JCAgA==\"}"}, /* above U+10FFFF */
    {TEXT, "\xf0\x9f\x90", "{\"$bytes\":\"8J+Q\"}"},         /* cut short */
    {TEXT, "a long enough text\xff", "{\"$bytes\":\"YSBsb25nIGVub3VnaCB0ZXh0/w==\"}"},
    {1700, "NaN", "\"NaN\""},
    {1700, "1", "\"1\""},
};

static void writes_each_value_by_its_class(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(value_cases); i++) {
        const struct value_case *c = &value_cases[i];
        const struct fixture_column column = {"c", "?", NULL, c->oid, -1, -1, false};
        struct spate_table *table = fixture_table("t", SPATE_IDENTITY_DEFAULT, &column, 1, NULL, 0);
        struct spate_value value = {c->text != NULL ? SPATE_VALUE_TEXT : SPATE_VALUE_NULL, {0}};
        struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, &value);
        struct spate_buf line = {0}, want = {0};
        struct spate_err err = {0};
        enum spate_rc rc;

        if (c->text != NULL)
            value.text = spate_slice_str(c->text);
        rc = spate_encode_change(&line, &change, &err);
        if (c->json == NULL) {
            if (rc != SPATE_FAIL)
                fail_msg("%s was taken for JSON", c->text);
            assert_int_equal(err.verdict, SPATE_QUARANTINE);
            assert_int_equal(line.len, 0); /* never half a line */
            assert_non_null(strstr(err.text, "public.t"));
            assert_non_null(strstr(err.text, "column c"));
        } else {
            assert_int_equal(rc, SPATE_OK);
            spate_buf_puts(&want, "\"after\":{\"c\":");
            spate_buf_puts(&want, c->json);
            spate_buf_puts(&want, "},");
            if (strstr(spate_buf_str(&line), spate_buf_str(&want)) == NULL)
                fail_msg("no %s in %s", want.data, line.data);
        }
        spate_buf_fini(&line);
        spate_buf_fini(&want);
        spate_table_free(table);
    }
}

static void writes_deep_jsonb_as_text(void **state)
{
    const struct fixture_column column = {"c", "jsonb", NULL, JSONB, -1, -1, false};
    struct spate_table *table = fixture_table("t", SPATE_IDENTITY_DEFAULT, &column, 1, NULL, 0);

    (void)state;
    for (size_t depth = 511; depth <= 513; depth++) {
        char text[1100];
        struct spate_value value = {SPATE_VALUE_TEXT, {text, 2 * depth}};
        struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, &value);
        struct spate_buf line = {0};
        struct spate_err err = {0};

        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        assert_int_equal(spate_encode_change(&line, &change, &err), SPATE_OK);
        assert_int_equal(strstr(spate_buf_str(&line), "\"c\":\"[[") != NULL, depth > 512);
        spate_buf_fini(&line);
    }
    spate_table_free(table);
}

/* ---- keys and old rows ---- */

static void expect(const struct spate_change *change, const char *tail)
{
    struct spate_buf line = {0};
    struct spate_err err = {0};
    const char *key;

    assert_int_equal(spate_encode_change(&line, change, &err), SPATE_OK);
    key = strstr(spate_buf_str(&line), ",\"key\":");
    assert_non_null(key);
    assert_string_equal(key, tail);
    spate_buf_fini(&line);
}

/* P43: the key itself was stored externally and did not change. */
static void takes_an_unsent_key_from_the_old_one_P43(void **state)
{
    const struct fixture_column columns[] = {{"k", "text", NULL, TEXT, -1, -1, true},
                                             {"v", "text", NULL, TEXT, -1, -1, false},
                                             {"w", "text", NULL, TEXT, -1, -1, false}};
    struct spate_table *table =
        fixture_table("t", SPATE_IDENTITY_DEFAULT, columns, 3, (const uint32_t[]){0}, 1);
    struct spate_value before[] = {T("big"), VALUE_NULL, VALUE_NULL}, after[] = {ABSENT, T("2"), ABSENT};
    struct spate_change change = fixture_change(SPATE_OP_UPDATE, table, before, after);
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    expect(&change,
           ",\"key\":{\"k\":\"big\"},\"before\":{\"k\":\"big\"},\"after\":{\"k\":\"big\",\"v\":\"2\"},"
           "\"unchanged\":[\"w\"]}");
    before[0] = ABSENT;
    assert_int_equal(spate_encode_change(&line, &change, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_QUARANTINE);
    assert_int_equal(err.lsn, 0x16B3748);
    assert_non_null(strstr(err.text, "column k"));
    assert_int_equal(spate_encode_key(&line, &change, &err), SPATE_FAIL);
    assert_int_equal(line.len, 0);
    spate_table_free(table);
    spate_buf_fini(&line);
}

/* P42: nothing is invented for the big column when the key moves. */
static void says_what_was_not_sent_when_the_key_moves_P42(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_value before[] = {T("1"), VALUE_NULL, VALUE_NULL, VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_value after[] = {T("2"), VALUE_NULL, T("f"), ABSENT, ABSENT, ABSENT};
    struct spate_change change = fixture_change(SPATE_OP_UPDATE, orders, before, after);

    (void)state;
    expect(&change,
           ",\"key\":{\"id\":2},\"before\":{\"id\":1},\"after\":{\"id\":2,\"total\":null,\"paid\":false},"
           "\"unchanged\":[\"tags\",\"doc\",\"notes\"]}");
    spate_table_free(orders);
}

/* P44, P45: the whole old row fills what was not sent; the key stays the recorded primary key. */
static void fills_from_the_whole_old_row_P44(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_FULL);
    struct spate_value before[] = {T("1"), VALUE_NULL, T("t"), T("{}"), VALUE_NULL, T("n")};
    struct spate_value after[] = {T("1"), ABSENT, T("f"), ABSENT, ABSENT, ABSENT};
    struct spate_change change = fixture_change(SPATE_OP_UPDATE, orders, before, after);

    (void)state;
    change.before_full = true;
    expect(
        &change,
        ",\"key\":{\"id\":1},\"before\":{\"id\":1,\"total\":null,\"paid\":true,\"tags\":\"{}\",\"doc\":null,"
        "\"notes\":\"n\"},\"after\":{\"id\":1,\"total\":null,\"paid\":false,\"tags\":\"{}\",\"doc\":null,"
        "\"notes\":\"n\"},\"unchanged\":[]}");
    spate_table_free(orders);
}

/* P46: the index's columns, in the index's order. */
static void writes_keys_in_key_order_P46(void **state)
{
    const struct fixture_column columns[] = {{"a", "integer", NULL, INT4, -1, 4, true},
                                             {"b", "integer", NULL, INT4, -1, 4, false},
                                             {"c", "integer", NULL, INT4, -1, 4, true}};
    struct spate_table *table =
        fixture_table("t", SPATE_IDENTITY_INDEX, columns, 3, (const uint32_t[]){2, 0}, 2);
    struct spate_value before[] = {T("1"), VALUE_NULL, T("3")};
    struct spate_change change = fixture_change(SPATE_OP_DELETE, table, before, NULL);
    struct spate_buf key = {0};
    struct spate_err err = {0};

    (void)state;
    expect(&change,
           ",\"key\":{\"c\":3,\"a\":1},\"before\":{\"a\":1,\"c\":3},\"after\":null,\"unchanged\":[]}");
    assert_int_equal(spate_encode_key(&key, &change, &err), SPATE_OK);
    assert_string_equal(spate_buf_str(&key), "{\"c\":3,\"a\":1}");
    spate_buf_fini(&key);
    spate_table_free(table);
}

static void writes_no_bus_key_where_there_is_none(void **state)
{
    struct spate_table *kinds = fixture_kinds();
    struct spate_value row[11];
    struct spate_change change = fixture_change(SPATE_OP_INSERT, kinds, NULL, row);
    const struct spate_table *tables[] = {kinds};
    struct spate_buf key = {0};
    struct spate_err err = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(row); i++)
        row[i] = VALUE_NULL;
    assert_int_equal(spate_encode_key(&key, &change, &err), SPATE_OK);
    change = fixture_change(SPATE_OP_TRUNCATE, NULL, NULL, NULL);
    change.tables = tables;
    change.table_count = 1;
    assert_int_equal(spate_encode_key(&key, &change, &err), SPATE_OK);
    assert_int_equal(key.len, 0);
    spate_buf_fini(&key);
    spate_table_free(kinds);
}

/* P85, P83: names of any bytes stay names, and different names stay different. */
static void escapes_names_reversibly_P85(void **state)
{
    const struct fixture_column columns[] = {{"a \"b\"\n", "text", NULL, TEXT, -1, -1, true},
                                             {"caf\xe9", "text", NULL, TEXT, -1, -1, true},
                                             {"$bytes:Y2Fm6Q==", "text", NULL, TEXT, -1, -1, true}};
    struct spate_table *table =
        fixture_table("t", SPATE_IDENTITY_DEFAULT, columns, 3, (const uint32_t[]){0}, 1);
    struct spate_value after[] = {T("1"), T("2"), T("3")};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, after);

    (void)state;
    expect(&change, ",\"key\":{\"a \\\"b\\\"\\n\":\"1\"},\"before\":null,\"after\":{\"a \\\"b\\\"\\n\":\"1\","
                    "\"$bytes:Y2Fm6Q==\":\"2\",\"$bytes:JGJ5dGVzOlkyRm02UT09\":\"3\"},\"unchanged\":[]}");
    spate_table_free(table);
}

static void refuses_changes_that_contradict_themselves(void **state)
{
    struct spate_table *orders = fixture_orders(SPATE_IDENTITY_DEFAULT);
    struct spate_value row[] = {T("1"), T("2"), T("t"), T("{}"), T("{}"), T("n")};
    struct spate_value hole[] = {T("1"), T("2"), T("t"), T("{}"), T("{}"), ABSENT};
    struct spate_change cases[] = {
        fixture_change(SPATE_OP_INSERT, orders, NULL, NULL),
        fixture_change(SPATE_OP_INSERT, orders, row, row),
        fixture_change(SPATE_OP_INSERT, orders, NULL, hole),
        fixture_change(SPATE_OP_UPDATE, orders, row, NULL),
        fixture_change(SPATE_OP_DELETE, orders, NULL, NULL),
        fixture_change(SPATE_OP_DELETE, orders, row, row),
        fixture_change(SPATE_OP_INSERT, NULL, NULL, row),
        fixture_change(SPATE_OP_TRUNCATE, NULL, NULL, NULL),
        fixture_change(SPATE_OP_HEARTBEAT, orders, NULL, row),
    };
    struct spate_change unnumbered = fixture_change(SPATE_OP_INSERT, orders, NULL, row);
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        assert_int_equal(spate_encode_change(&line, &cases[i], &err), SPATE_FAIL);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        assert_int_equal(line.len, 0);
    }
    orders->v = 0;
    assert_int_equal(spate_encode_change(&line, &unnumbered, &err), SPATE_FAIL);
    spate_buf_fini(&line);
    spate_table_free(orders);
}

/* An error names the place and never shows the value. */
static void errors_show_no_value(void **state)
{
    const struct fixture_column column = {"doc", "jsonb", NULL, JSONB, -1, -1, false};
    struct spate_table *table = fixture_table("t", SPATE_IDENTITY_DEFAULT, &column, 1, NULL, 0);
    struct spate_value value = T("{\"password\": secret}");
    struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, &value);
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    assert_int_equal(spate_encode_change(&line, &change, &err), SPATE_FAIL);
    assert_null(strstr(err.text, "secret"));
    assert_null(strstr(err.text, "password"));
    assert_non_null(strstr(err.text, "00000000016B3748.00000003"));
    spate_buf_fini(&line);
    spate_table_free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_inserts),
        cmocka_unit_test(golden_updates),
        cmocka_unit_test(golden_deletes),
        cmocka_unit_test(golden_truncates_and_messages),
        cmocka_unit_test(golden_heartbeat_and_epochs),
        cmocka_unit_test(golden_stale_and_storage),
        cmocka_unit_test(golden_schemas),
        cmocka_unit_test(writes_each_value_by_its_class),
        cmocka_unit_test(writes_deep_jsonb_as_text),
        cmocka_unit_test(takes_an_unsent_key_from_the_old_one_P43),
        cmocka_unit_test(says_what_was_not_sent_when_the_key_moves_P42),
        cmocka_unit_test(fills_from_the_whole_old_row_P44),
        cmocka_unit_test(writes_keys_in_key_order_P46),
        cmocka_unit_test(writes_no_bus_key_where_there_is_none),
        cmocka_unit_test(escapes_names_reversibly_P85),
        cmocka_unit_test(refuses_changes_that_contradict_themselves),
        cmocka_unit_test(errors_show_no_value),
    };

    return cmocka_run_group_tests_name("schemas_encode", tests, NULL, NULL);
}
