/* Requests and answers: golden lines, names of all kinds, what people write by hand, every mistake they make.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "schemas/codec.h"
#include "schemas/control.h"
#include "tests/support/schemas_fixture.h"
#include "tests/support/schemas_golden.h"

static enum spate_rc decode(const char *line, struct spate_control *out, struct spate_arena *arena,
                            struct spate_err *err)
{
    return spate_decode_control(spate_slice_str(line), out, arena, err);
}

/* ---- one of each ---- */

#define EXAMPLES 10

struct examples {
    struct spate_slice columns[2];
    struct spate_condition where[3];
    struct spate_control_table tables[2], from[1];
    struct spate_control all[EXAMPLES];
};

struct names {
    struct spate_slice sink, request, table, column, token;
};

/* Every op with every field. */
static void make(struct examples *e, struct names names)
{
    struct spate_control common = {
        .request = names.request, .wall_us = FIXTURE_US, .source = S("shop"), .left_s = -1};
    size_t i = 0;

    *e = (struct examples){
        .columns = {S("id"), names.column},
        .where = {{names.column, S(">="), false, S("10.50")},
                  {S("doc"), S("="), false, S("{\"a\": \"caf\\u00e9\"}")},
                  {S("gone"), S("is not"), true, {0}}},
        .tables = {{.schema = S("public"), .table = S("customers")},
                   {.schema = S("public"), .table = names.table}},
        .from = {{.schema = S("public"), .table = names.table, .resume = names.token, .chunk = 12}},
    };
    e->tables[1].columns = e->columns;
    e->tables[1].column_count = 2;
    e->tables[1].where = e->where;
    e->tables[1].where_count = 3;
    e->tables[1].rows = 12000;
    e->tables[1].pages = 64;
    e->tables[1].of = 128;
    e->tables[1].chunks = 3;
    for (size_t j = 0; j < EXAMPLES; j++)
        e->all[j] = common;

    e->all[i].op = SPATE_CONTROL_REQUEST;
    e->all[i].sink = names.sink;
    e->all[i].tables = e->tables;
    e->all[i++].table_count = 2;
    e->all[i].op = SPATE_CONTROL_REQUEST; /* once more, from where it was */
    e->all[i].sink = names.sink;
    e->all[i].tables = e->from;
    e->all[i].table_count = 1;
    e->all[i].again = true;
    e->all[i].append = true;
    e->all[i++].some = true;
    e->all[i].op = SPATE_CONTROL_REQUEST; /* for a sink */
    e->all[i++].to = names.sink;
    e->all[i].op = SPATE_CONTROL_CANCEL;
    e->all[i++].sink = names.sink;
    e->all[i].op = SPATE_CONTROL_REREAD;
    e->all[i].sink = names.sink;
    e->all[i].schema = S("public");
    e->all[i].table = names.table;
    e->all[i].chunk = 3;
    e->all[i++].keys = S("[{\"id\":7},{\"id\":\"]\\\"\"}]");
    e->all[i].op = SPATE_CONTROL_FINISHED;
    e->all[i++].sink = names.sink;
    e->all[i].op = SPATE_CONTROL_STARTED;
    e->all[i].request = (struct spate_slice){0};
    e->all[i++].epoch = 2;
    e->all[i].op = SPATE_CONTROL_ACCEPTED;
    e->all[i].to = names.sink;
    e->all[i].tables = e->tables;
    e->all[i++].table_count = 2;
    e->all[i].op = SPATE_CONTROL_REFUSED;
    e->all[i].to = names.sink;
    e->all[i].reason = S("public.orders has no column \"totl\"");
    e->all[i++].remedy = S("ask for total");
    e->all[i].op = SPATE_CONTROL_PROGRESS;
    e->all[i].to = names.sink;
    e->all[i].state = S("reading");
    e->all[i].why = S("transaction 745 is not visible yet");
    e->all[i].rows = 4000;
    e->all[i].estimate = 12000;
    e->all[i].percent = 33.25;
    e->all[i].rate = 1234.56;
    e->all[i].left_s = 7;
    e->all[i].tables = e->tables;
    e->all[i++].table_count = 2;
    assert_int_equal(i, EXAMPLES);
}

static struct names plain_names(void)
{
    return (struct names){S("billing"), S("billing-5d0c1f7e"), S("orders"), S("total"),
                          S("1:9f3e:00:0:8388608:1024:3")};
}

static void golden_control(void **state)
{
    struct examples e;
    struct spate_buf lines = {0};

    (void)state;
    make(&e, plain_names());
    for (size_t i = 0; i < EXAMPLES; i++) {
        spate_encode_control(&lines, &e.all[i]);
        spate_buf_putc(&lines, '\n');
    }
    golden("control", &lines);
    spate_buf_fini(&lines);
}

static void same_table(enum spate_control_op op, const struct spate_control_table *a,
                       const struct spate_control_table *b)
{
    assert_true(spate_slice_eq(a->schema, b->schema));
    assert_true(spate_slice_eq(a->table, b->table));
    if (op != SPATE_CONTROL_REQUEST) {
        assert_true(a->rows == b->rows && a->pages == b->pages);
        assert_true(op == SPATE_CONTROL_ACCEPTED || (a->of == b->of && a->chunks == b->chunks));
        assert_int_equal(b->column_count, 0);
        return;
    }
    assert_int_equal(a->column_count, b->column_count);
    for (size_t i = 0; i < a->column_count; i++)
        assert_true(spate_slice_eq(a->columns[i], b->columns[i]));
    assert_int_equal(a->where_count, b->where_count);
    for (size_t i = 0; i < a->where_count; i++) {
        assert_true(spate_slice_eq(a->where[i].column, b->where[i].column));
        assert_true(spate_slice_eq(a->where[i].op, b->where[i].op));
        assert_true(a->where[i].null == b->where[i].null);
        assert_true(spate_slice_eq(a->where[i].value, b->where[i].value));
    }
    assert_true(spate_slice_eq(a->resume, b->resume));
    assert_true(a->chunk == b->chunk);
}

static void same(const struct spate_control *a, const struct spate_control *b)
{
    assert_int_equal(a->op, b->op);
    assert_true(spate_slice_eq(a->to, b->to));
    assert_true(spate_slice_eq(a->request, b->request));
    assert_true(spate_slice_eq(a->sink, b->sink));
    assert_true(spate_slice_eq(a->source, b->source));
    assert_true(a->wall_us == b->wall_us && a->epoch == b->epoch && a->chunk == b->chunk);
    assert_true(a->again == b->again && a->append == b->append && a->some == b->some);
    assert_true(spate_slice_eq(a->schema, b->schema));
    assert_true(spate_slice_eq(a->table, b->table));
    assert_true(spate_slice_eq(a->keys, b->keys));
    assert_true(spate_slice_eq(a->reason, b->reason));
    assert_true(spate_slice_eq(a->remedy, b->remedy));
    assert_true(spate_slice_eq(a->state, b->state));
    assert_true(spate_slice_eq(a->why, b->why));
    assert_true(a->rows == b->rows && a->estimate == b->estimate && a->left_s == b->left_s);
    assert_int_equal(a->table_count, b->table_count);
    for (size_t i = 0; i < a->table_count; i++)
        same_table(a->op, &a->tables[i], &b->tables[i]);
}

static void messages_come_back(void **state)
{
    static const struct spate_slice names[] = {
        {"billing", 7}, {"a \"b\"\\", 6}, {"$bytes:", 7}, {"\xff\xfe", 2}, {"\xd0\x96", 2},
    };
    struct spate_arena arena = {0};

    (void)state;
    for (size_t n = 0; n < SPATE_COUNT(names); n++) {
        struct examples e;

        make(&e, (struct names){names[n], names[n], names[n], names[n], names[n]});
        for (size_t i = 0; i < EXAMPLES; i++) {
            struct spate_control back;
            struct spate_buf line = {0};
            struct spate_err err = {0};

            spate_encode_control(&line, &e.all[i]);
            if (spate_decode_control(spate_buf_view(&line), &back, &arena, &err) != SPATE_OK)
                fail_msg("%s\n%s", err.text, spate_buf_str(&line));
            same(&e.all[i], &back);
            if (back.op == SPATE_CONTROL_PROGRESS) {
                assert_true(back.percent > 33.2 && back.percent < 33.4);
                assert_true(back.rate > 1234.5 && back.rate < 1234.7);
            }
            spate_buf_fini(&line);
        }
    }
    spate_arena_fini(&arena);
}

/* A request and all others are looked at with the same eyes as the stream, by `spate tap` for one. */
static void the_head_of_the_stream_reads_them(void **state)
{
    struct spate_arena arena = {0};
    struct examples e;

    (void)state;
    make(&e, plain_names());
    for (size_t i = 0; i < EXAMPLES; i++) {
        struct spate_buf line = {0};
        struct spate_err err = {0};
        struct spate_head head;

        spate_encode_control(&line, &e.all[i]);
        assert_int_equal(spate_decode_head(spate_buf_view(&line), &head, &arena, &err), SPATE_OK);
        assert_int_equal(head.op, SPATE_OP_UNKNOWN);
        assert_true(spate_slice_is(head.op_name, spate_control_op_name(e.all[i].op)));
        assert_true(spate_slice_eq(head.to, e.all[i].to));
        assert_true(spate_slice_eq(head.request, e.all[i].request));
        assert_true(spate_slice_eq(head.table, e.all[i].table));
        spate_buf_fini(&line);
    }
    spate_arena_fini(&arena);
}

static void unknown_numbers_are_null(void **state)
{
    struct spate_control progress = {.op = SPATE_CONTROL_PROGRESS,
                                     .to = S("b"),
                                     .request = S("r"),
                                     .state = S("waiting"),
                                     .rate = -1,
                                     .left_s = -1},
                         back;
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_err err = {0};

    (void)state;
    progress.percent = 1e300; /* nothing that anybody could mean */
    spate_encode_control(&line, &progress);
    assert_string_equal(
        spate_buf_str(&line),
        "{\"spate\":1,\"op\":\"progress\",\"to\":\"b\",\"request\":\"r\",\"state\":\"waiting\","
        "\"rows\":0,\"estimate\":null,\"percent\":0.0,\"rate\":0.0,\"left_s\":null,\"tables\":[]}");
    assert_int_equal(spate_decode_control(spate_buf_view(&line), &back, &arena, &err), SPATE_OK);
    assert_int_equal(back.left_s, -1);
    assert_int_equal(back.estimate, 0);
    spate_buf_fini(&line);
    spate_arena_fini(&arena);
}

/* ---- by hand ---- */

static void fields_stand_in_any_order(void **state)
{
    static const char line[] =
        " { \"tables\" : [ { \"where\" : [ { \"value\" : 100 , \"op\" : \">=\" , \"column\" : \"total\" } ,"
        " { \"note\" : [1] , \"column\" : \"paid\" , \"op\" : \"=\" , \"value\" : true } ] , \"table\" : "
        "\"orders\" , \"schema\" : \"public\" , \"columns\" : null , \"chunk\" : null , \"resume\" : null } "
        "] ,"
        " \"later\" : { \"op\" : \"cancel\" } , \"rows\" : \"not mine\" , \"again\" : null , \"sink\" : "
        "\"anna\" ,"
        " \"request\" : \"friday\" , \"op\" : \"request\" , \"spate\" : 1 } ";
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_control out;

    (void)state;
    if (decode(line, &out, &arena, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(out.op, SPATE_CONTROL_REQUEST);
    assert_true(spate_slice_is(out.sink, "anna"));
    assert_true(spate_slice_is(out.request, "friday"));
    assert_int_equal(out.table_count, 1);
    assert_int_equal(out.tables[0].column_count, 0);
    assert_int_equal(out.tables[0].where_count, 2);
    assert_true(spate_slice_is(out.tables[0].where[0].value, "100"));
    assert_true(spate_slice_is(out.tables[0].where[1].value, "true"));
    assert_false(out.again);
    spate_arena_fini(&arena);
}

static void the_documented_request_is_understood(void **state)
{
    static char line[4096];
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_control out;
    FILE *file = fopen("docs/examples/request.json", "r");

    (void)state;
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof(line), file)); /* with its newline: kcat sends a whole file so */
    fclose(file);
    if (decode(line, &out, &arena, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_int_equal(out.tables[0].column_count, 2);
    assert_int_equal(out.tables[0].where_count, 2);
    assert_true(out.tables[0].where[1].null);
    spate_arena_fini(&arena);
}

static void later_ops_are_passed_by(void **state)
{
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_control out;

    (void)state;
    assert_int_equal(decode("{\"spate\":1,\"op\":\"pause\",\"request\":{},\"tables\":1}", &out, &arena, &err),
                     SPATE_OK);
    assert_int_equal(out.op, SPATE_CONTROL_UNKNOWN);
    spate_arena_fini(&arena);
}

/* Whoever wrote it can be told, in both cases. */
static void what_is_wrong_can_be_answered(void **state)
{
    static const char *const lines[] = {
        "{\"tables\":5,\"spate\":1,\"op\":\"request\",\"request\":\"friday\",\"sink\":\"anna\"}",
        "{\"spate\":1,\"sink\":\"anna\",\"op\":\"request\",\"request\":\"friday\",\"tables\":[{]}",
        "{\"spate\":1,\"sink\":\"anna\",\"op\":\"request\",\"request\":\"friday\"} trailing",
        "{\"spate\":2,\"tables\":{\"new\":1},\"op\":\"request\",\"request\":\"friday\",\"sink\":\"anna\"}",
    };
    struct spate_arena arena = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(lines); i++) {
        struct spate_err err = {0};
        struct spate_control out;

        assert_int_equal(decode(lines[i], &out, &arena, &err), SPATE_FAIL);
        assert_int_equal(err.verdict, i == 3 ? SPATE_FATAL : SPATE_QUARANTINE);
        assert_int_equal(err.exit_code, i == 3 ? SPATE_EXIT_REFUSED : SPATE_EXIT_OK);
        assert_int_equal(out.op, SPATE_CONTROL_REQUEST);
        assert_true(spate_slice_is(out.request, "friday"));
        assert_true(spate_slice_is(out.sink, "anna"));
    }
    spate_arena_fini(&arena);
}

#define HEAD         "{\"spate\":1,\"op\":\"request\",\"request\":\"r\",\"sink\":\"s\""
#define TABLE(rest)  HEAD ",\"tables\":[{\"schema\":\"a\",\"table\":\"t\"" rest "}]}"
#define WHERE(rest)  TABLE(",\"where\":[" rest "]")
#define REREAD(rest) "{\"spate\":1,\"op\":\"reread\",\"request\":\"r\",\"sink\":\"s\"" rest "}"
#define LONG         "0123456789012345678901234567890123456789012345678901234567890123" /* 64 */

static void mistakes_are_named(void **state)
{
    static const struct {
        const char *line, *text;
    } cases[] = {
        {"", "expected an object"},
        {"hello", "expected an object"},
        {"[]", "expected an object"},
        {"{}", "field \"spate\""},
        {"{\"spate\":1}", "field \"op\""},
        {"{\"spate\":0,\"op\":\"cancel\"}", "format 0"},
        {"{\"spate\":\"1\",\"op\":\"cancel\"}", "field \"spate\""},
        {"{\"spate\":1,\"op\":7}", "field \"op\""},
        {"{\"op\":\"cancel\",\"request\":\"r\",\"sink\":\"s\"}", "field \"spate\""},
        {"{\"spate\":1,\"op\":\"request\",\"sink\":\"s\",\"tables\":[{\"schema\":\"a\",\"table\":\"t\"}]}",
         "request not understood: field \"request\""},
        {"{\"spate\":1,\"op\":\"request\",\"request\":\"r\",\"tables\":[{\"schema\":\"a\",\"table\":\"t\"}]}",
         "field \"sink\""},
        {HEAD "}", "field \"tables\""},
        {HEAD ",\"tables\":null}", "expected an array"},
        {HEAD ",\"tables\":[]}", "at least one table"},
        {HEAD ",\"tables\":[\"a.t\"]}", "table number 1"},
        {HEAD ",\"tables\":{\"schema\":\"a\"}}", "expected an array"},
        {HEAD ",\"tables\":[{\"schema\":\"a\"}]}", "field \"table\""},
        {HEAD ",\"tables\":[{\"schema\":\"a\",\"table\":\"t\"},{\"table\":\"u\"}]}", "table .u"},
        {HEAD ",\"tables\":[{\"schema\":\"a\",\"table\":\"\"}]}", "not empty"},
        {HEAD ",\"request\":\"r\",\"tables\":[]}", "twice"},
        {HEAD ",\"ts\":\"friday\"}", "field \"ts\""},
        {HEAD ",\"append\":1}", "expected true or false"},
        {HEAD ",\"again\":\"yes\"}", "field \"again\""},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"\",\"sink\":\"s\"}", "1 to 63 bytes"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"" LONG "\",\"sink\":\"s\"}", "1 to 63 bytes"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"a\\u001bb\",\"sink\":\"s\"}", "control characters"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"a\\u007f\",\"sink\":\"s\"}", "control characters"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"a\\u009bb\",\"sink\":\"s\"}", "control characters"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"r\",\"sink\":\"$bytes:G1s=\"}", "control characters"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"r\",\"sink\":\"s\\n\"}", "field \"sink\""},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":7,\"sink\":\"s\"}", "expected a string"},
        {"{\"spate\":1,\"op\":\"cancel\",\"request\":\"r\"}", "field \"sink\""},
        {"{\"spate\":1,\"op\":\"finished\",\"sink\":\"s\"}", "field \"request\""},
        {TABLE(",\"columns\":[]"), "leave the field out"},
        {TABLE(",\"columns\":\"id\""), "field \"columns\""},
        {TABLE(",\"columns\":[\"id\",7]"), "column 2"},
        {TABLE(",\"columns\":[\"\"]"), "not empty"},
        {TABLE(",\"resume\":7"), "field \"resume\""},
        {TABLE(",\"chunk\":\"7\""), "field \"chunk\""},
        {TABLE(",\"where\":{}"), "expected an array"},
        {WHERE("\"id = 7\""), "condition 1"},
        {WHERE("{\"op\":\"=\",\"value\":7}"), "field \"column\""},
        {WHERE("{\"column\":\"id\",\"value\":7}"), "field \"op\""},
        {WHERE("{\"column\":\"id\",\"op\":\"=\"}"), "field \"value\""},
        {WHERE("{\"column\":\"id\",\"op\":\"like\",\"value\":\"x\"}"), "expected one of = <>"},
        {WHERE("{\"column\":\"id\",\"op\":\"= 1; drop\",\"value\":\"x\"}"), "expected one of = <>"},
        {WHERE("{\"column\":\"id\",\"op\":\"=\",\"value\":null}"), "null goes with"},
        {WHERE("{\"column\":\"id\",\"op\":\"is\",\"value\":true}"), "go with null only"},
        {WHERE("{\"column\":\"id\",\"op\":\"=\",\"value\":7},{\"column\":\"id\",\"op\":\"!=\",\"value\":8}"),
         "table a.t: condition 2: field \"op\""},
        {WHERE("{\"column\":\"id\",\"op\":\"=\",\"value\":\"a\\u0000b\"}"), "no character 0"},
        {WHERE("{\"column\":\"id\\u0000\",\"op\":\"=\",\"value\":1}"), "no character 0"},
        {TABLE(",\"columns\":[\"$bytes:AA==\"]"), "no character 0"},
        {REREAD(",\"schema\":\"a\",\"table\":\"t\""), "field \"keys\""},
        {REREAD(",\"schema\":\"a\",\"keys\":[{}]"), "field \"table\""},
        {REREAD(",\"table\":\"t\",\"keys\":[{}]"), "field \"schema\""},
        {REREAD(",\"schema\":\"a\",\"table\":\"t\",\"keys\":[]"), "at least one key"},
        {REREAD(",\"schema\":\"a\",\"table\":\"t\",\"keys\":[{\"id\":1},7]"), "key 2"},
        {REREAD(",\"schema\":\"a\",\"table\":\"t\",\"keys\":[{\"id\":1}"), "field \"keys\""},
        {"{\"spate\":1,\"op\":\"started\"}", "field \"epoch\""},
        {"{\"spate\":1,\"op\":\"accepted\",\"request\":\"r\",\"tables\":[]}", "field \"to\""},
        {"{\"spate\":1,\"op\":\"accepted\",\"to\":\"b\",\"request\":\"r\"}", "field \"tables\""},
        {"{\"spate\":1,\"op\":\"refused\",\"to\":\"b\",\"request\":\"r\"}", "field \"reason\""},
        {"{\"spate\":1,\"op\":\"progress\",\"to\":\"b\",\"request\":\"r\"}", "field \"state\""},
        {"{\"spate\":1,\"op\":\"progress\",\"to\":\"b\",\"request\":\"r\",\"state\":\"sent\",\"percent\":"
         "\"5\"}",
         "not negative"},
        {"{\"spate\":1,\"op\":\"progress\",\"to\":\"b\",\"request\":\"r\",\"state\":\"sent\",\"rate\":-1}",
         "not negative"},
        {"{\"spate\":1,\"op\":\"progress\",\"to\":\"b\",\"request\":\"r\",\"state\":\"sent\",\"left_s\":1.5}",
         "whole number"},
    };
    struct spate_arena arena = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_err err = {0};
        struct spate_control out;

        if (decode(cases[i].line, &out, &arena, &err) != SPATE_FAIL)
            fail_msg("understood: %s", cases[i].line);
        assert_int_equal(err.verdict, SPATE_QUARANTINE);
        assert_non_null(strstr(err.text, "not understood"));
        assert_non_null(strstr(err.text, "docs/message-format.md")); /* the remedy */
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s\nnot in: %s\nfor: %s", cases[i].text, err.text, cases[i].line);
    }
    spate_arena_fini(&arena);
}

/* A request that a sink is told to make needs neither sink nor tables. */
static void a_request_for_a_sink_is_short(void **state)
{
    struct spate_arena arena = {0};
    struct spate_err err = {0};
    struct spate_control out;

    (void)state;
    assert_int_equal(
        decode("{\"spate\":1,\"op\":\"request\",\"to\":\"billing\",\"request\":\"r\",\"tables\":[]}", &out,
               &arena, &err),
        SPATE_OK);
    assert_int_equal(
        decode("{\"spate\":1,\"op\":\"request\",\"request\":\"r\",\"to\":\"billing\"}", &out, &arena, &err),
        SPATE_OK);
    assert_true(spate_slice_is(out.to, "billing"));
    assert_int_equal(out.table_count, 0);
    spate_arena_fini(&arena);
}

/* `count` times `each` between `open` and `close`. */
static enum spate_rc decode_many(const char *open, const char *each, size_t count, const char *close,
                                 struct spate_err *err)
{
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_control out;
    enum spate_rc rc;

    spate_buf_puts(&line, open);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            spate_buf_putc(&line, ',');
        spate_buf_puts(&line, each);
    }
    spate_buf_puts(&line, close);
    rc = spate_decode_control(spate_buf_view(&line), &out, &arena, err);
    spate_buf_fini(&line);
    spate_arena_fini(&arena);
    return rc;
}

static void there_are_limits(void **state)
{
    static const struct {
        const char *open, *each, *close;
        size_t most;
        const char *text;
    } cases[] = {
        {HEAD ",\"tables\":[", "{\"schema\":\"a\",\"table\":\"t\"}", "]}", 10000, "10000 tables"},
        {HEAD ",\"tables\":[{\"schema\":\"a\",\"table\":\"t\",\"columns\":[", "\"c\"", "]}]}", 1600, "1600"},
        {HEAD ",\"tables\":[{\"schema\":\"a\",\"table\":\"t\",\"where\":[",
         "{\"column\":\"c\",\"op\":\"=\",\"value\":1}", "]}]}", 100, "100 conditions"},
        {"{\"spate\":1,\"op\":\"reread\",\"request\":\"r\",\"sink\":\"s\",\"schema\":\"a\",\"table\":\"t\","
         "\"keys\":[",
         "{\"id\":1}", "]}", 100000, "100000 keys"},
    };
    struct spate_err err = {0};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        assert_int_equal(decode_many(cases[i].open, cases[i].each, cases[i].most, cases[i].close, &err),
                         SPATE_OK);
        assert_int_equal(decode_many(cases[i].open, cases[i].each, cases[i].most + 1, cases[i].close, &err),
                         SPATE_FAIL);
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s\nnot in: %s", cases[i].text, err.text);
    }
}

/* Brackets without end: refused, without a deep stack. */
static void nesting_is_bounded(void **state)
{
    struct spate_arena arena = {0};
    struct spate_buf line = {0};
    struct spate_err err = {0};
    struct spate_control out;

    (void)state;
    spate_buf_puts(&line, HEAD ",\"later\":");
    for (int i = 0; i < 100000; i++)
        spate_buf_puts(&line, "[");
    assert_int_equal(spate_decode_control(spate_buf_view(&line), &out, &arena, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "nested too deeply"));
    assert_true(spate_slice_is(out.sink, "s"));
    spate_buf_fini(&line);
    spate_arena_fini(&arena);
}

static void conditions_have_no_sql(void **state)
{
    static const char *const good[] = {"=", "<>", "<", "<=", ">", ">="};
    static const char *const bad[] = {
        "", "like", "==", "!=", "IS", "is  not", "= ", "~", "in", "or", "is distinct from"};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(good); i++) {
        assert_true(spate_condition_op_known(spate_slice_str(good[i]), false));
        assert_false(spate_condition_op_known(spate_slice_str(good[i]), true));
    }
    assert_true(spate_condition_op_known(S("is"), true) && spate_condition_op_known(S("is not"), true));
    assert_false(spate_condition_op_known(S("is"), false) || spate_condition_op_known(S("is not"), false));
    assert_false(spate_condition_op_known(S("=\0"), false));
    for (size_t i = 0; i < SPATE_COUNT(bad); i++)
        assert_false(spate_condition_op_known(spate_slice_str(bad[i]), false) ||
                     spate_condition_op_known(spate_slice_str(bad[i]), true));
}

/* ---- damage ---- */

static void no_part_of_a_line_is_understood(void **state)
{
    static const char damage[] = {'"', '\\', '{', '}', '[',  ']',    ',',
                                  ':', '0',  'x', ' ', '\0', '\xff', '\xc3'};
    struct examples e;

    (void)state;
    make(&e, plain_names());
    for (size_t i = 0; i < EXAMPLES; i++) {
        struct spate_arena arena = {0};
        struct spate_buf line = {0};
        struct spate_err err = {0};
        struct spate_control out;

        spate_encode_control(&line, &e.all[i]);
        for (size_t cut = 0; cut < line.len; cut++) {
            char *exact = spate_strndup(line.data, cut); /* so that ASan sees a byte read too many */

            spate_arena_reset(&arena);
            assert_int_equal(spate_decode_control(spate_slice(exact, cut), &out, &arena, &err), SPATE_FAIL);
            free(exact);
        }
        for (size_t at = 0; at < line.len; at++) {
            char was = line.data[at];

            for (size_t j = 0; j < sizeof(damage); j++) {
                spate_arena_reset(&arena);
                line.data[at] = damage[j];
                if (spate_decode_control(spate_buf_view(&line), &out, &arena, &err) != SPATE_OK)
                    assert_true(strlen(err.text) > 20);
            }
            line.data[at] = was;
        }
        spate_buf_fini(&line);
        spate_arena_fini(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_control),
        cmocka_unit_test(messages_come_back),
        cmocka_unit_test(the_head_of_the_stream_reads_them),
        cmocka_unit_test(unknown_numbers_are_null),
        cmocka_unit_test(fields_stand_in_any_order),
        cmocka_unit_test(the_documented_request_is_understood),
        cmocka_unit_test(later_ops_are_passed_by),
        cmocka_unit_test(what_is_wrong_can_be_answered),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(a_request_for_a_sink_is_short),
        cmocka_unit_test(there_are_limits),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(conditions_have_no_sql),
        cmocka_unit_test(no_part_of_a_line_is_understood),
    };

    return cmocka_run_group_tests_name("schemas_control", tests, NULL, NULL);
}
