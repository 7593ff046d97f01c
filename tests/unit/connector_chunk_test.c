/* The pure parts of reading chunks: lines of COPY, positions, the pace, and the text of queries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "connector/fetch.h"
#include "connector/query.h"
#include "core/alloc.h"
#include "schemas/snapshot.h"

#define S(text) spate_slice_str(text)

static void split(const char *line, const char *const *fields, size_t count, bool fits)
{
    char *copy = spate_strdup(line);
    struct spate_value values[8];

    assert_int_equal(spate_copy_split(copy, strlen(copy), values, count), fits);
    for (size_t i = 0; fits && i < count; i++) {
        assert_int_equal(values[i].kind, fields[i] ? SPATE_VALUE_TEXT : SPATE_VALUE_NULL);
        if (fields[i])
            assert_true(spate_slice_is(values[i].text, fields[i]));
    }
    free(copy);
}

static void lines_of_copy_are_split_and_unescaped(void **state)
{
    (void)state;
    split("1\tplain\t\n", (const char *const[]){"1", "plain", ""}, 3, true);
    split("\\N\t\\\\N\t\\N\n", (const char *const[]){NULL, "\\N", NULL}, 3, true);
    split("a\\tb\\nc\\rd\\\\e\\bf\\fg\\vh\n", (const char *const[]){"a\tb\nc\rd\\e\bf\fg\vh"}, 1, true);
    split("\\.\t.\n", (const char *const[]){".", "."}, 2, true);
    split("x\\\n", (const char *const[]){"x\\"}, 1, true); /* the server never ends a field like that */
    split("\n", NULL, 0, true);
    split("\n", (const char *const[]){""}, 1, true);
}

static void a_line_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    split("1\t2\n", NULL, 3, false);
    split("1\t2\n", NULL, 0, false);
    split("1\t2", NULL, 2, false);
    split("", NULL, 1, false);
    split("", NULL, 0, false);
}

static void a_tab_too_many_is_not_lost(void **state)
{
    (void)state;
    split("1\t2\n", NULL, 1, false);
}

/* P95: a rewrite is none for who looks rows up by key. */
static void a_shape_is_what_follows_the_file(void **state)
{
    (void)state;
    assert_true(spate_query_same_shape("1/abc", "2/abc"));
    assert_false(spate_query_same_shape("1/abc", "1/abd"));
    assert_false(spate_query_same_shape("1", "1"));
}

static void a_position_behind_a_page_header_is_the_pages(void **state)
{
    (void)state;
    assert_true(spate_wal_position(0x2000 + 24, 8192) == 0x2000);
    assert_true(spate_wal_position(0x1000000 + 40, 8192) == 0x1000000);
    assert_true(spate_wal_position(0x2000 + 48, 8192) == 0x2000 + 48);
    assert_true(spate_wal_position(0x2000, 8192) == 0x2000);
    assert_true(spate_wal_position(24, 0) == 24);
}

static struct spate_job job_of(uint64_t pages, size_t bytes, int64_t took_us)
{
    return (struct spate_job){.kind = SPATE_JOB_RANGE,
                              .from = SPATE_TID(100, 0),
                              .to = SPATE_TID(100 + pages, 0),
                              .reached = SPATE_TID(100 + pages, 0),
                              .pages = 1000000,
                              .max_bytes = 1 << 20,
                              .lines = {.len = bytes},
                              .took_us = took_us};
}

static void the_pace_finds_its_size(void **state)
{
    struct spate_pace pace;

    (void)state;
    spate_pace_start(&pace);
    for (int i = 0; i < 10; i++) { /* 4 KiB a page, a page each 50 us */
        struct spate_job job = job_of(pace.pages, pace.pages * 4096, (int64_t)pace.pages * 50);

        spate_pace_learn(&pace, &job);
    }
    assert_int_equal(pace.pages, 256);
    for (int i = 0; i < 10; i++) { /* time is dearer: a page each 10 ms */
        struct spate_job job = job_of(pace.pages, pace.pages * 4096, (int64_t)pace.pages * 10000);

        spate_pace_learn(&pace, &job);
    }
    assert_in_range(pace.pages, 1, 25);
    for (int i = 0; i < 10; i++) { /* nothing is wanted of it, and it costs nothing */
        struct spate_job job = job_of(pace.pages, 0, 1);

        spate_pace_learn(&pace, &job);
    }
    assert_true(pace.pages > 100000);
}

static void the_pace_never_stands_still(void **state)
{
    struct spate_pace pace = {.pages = 64};
    struct spate_job job = job_of(64, 0, 0);

    (void)state;
    job.outcome = SPATE_JOB_BUSY;
    for (int i = 0; i < 10; i++)
        spate_pace_learn(&pace, &job);
    assert_int_equal(pace.pages, 1);
    job = job_of(1, 100u << 20, 900000); /* a page of huge rows, of which a few were read */
    job.reached = job.from + 3;
    spate_pace_learn(&pace, &job);
    assert_int_equal(pace.pages, 1);
    job.outcome = SPATE_JOB_FAILED;
    pace.pages = 7;
    spate_pace_learn(&pace, &job);
    assert_int_equal(pace.pages, 7);
}

/* ---- queries ---- */

static struct spate_plan_table plan;
static struct spate_plan_leaf leaf = {.name = (char *)"\"s\".\"t\"\"x\"", .filter = (char *)"(id > 5)"};
static bool asked[3] = {true, false, true};
static struct spate_plan_condition where[] = {
    {0, (char *)">=", (char *)"'; drop table t"}, {1, (char *)"is", NULL}, {2, (char *)"<>", (char *)"x"}};

static int make_plan(void **state)
{
    struct spate_table *table = spate_table_new(S("s"), S("t\"x"), SPATE_IDENTITY_DEFAULT, 3, 2);

    (void)state;
    spate_table_set_column(table, 0, S("id"), S("integer"), S(""), 23, -1, 4, true, SPATE_CLASS_INT);
    spate_table_set_column(table, 1, S("or\"d"), S("text"), S(""), 25, -1, -1, false, SPATE_CLASS_TEXT);
    spate_table_set_column(table, 2, S("c"), S("text"), S(""), 25, -1, -1, true, SPATE_CLASS_TEXT);
    table->key[0] = 2;
    table->key[1] = 0;
    spate_table_seal(table);
    plan = (struct spate_plan_table){
        .table = table, .asked = asked, .leaves = &leaf, .leaf_count = 1, .where = where, .where_count = 3};
    return 0;
}

static int free_plan(void **state)
{
    (void)state;
    spate_table_free(plan.table);
    return 0;
}

static void no_value_stands_in_a_query(void **state)
{
    const struct spate_query_bound bound[] = {{"integer", ">="},
                                              {"public.citext", "OPERATOR(public.<>)"},
                                              {"public.citext", "OPERATOR(public.=)"},
                                              {"integer", "="}};
    struct spate_query_term terms[8];
    struct spate_buf sql = {0};

    (void)state;
    spate_query_range(&sql, &plan, 0, SPATE_TID(7, 0), SPATE_TID(9, 3), false, bound);
    assert_string_equal(
        spate_buf_str(&sql),
        "SELECT \"id\", \"c\" FROM ONLY \"s\".\"t\"\"x\" WHERE ctid >= '(7,0)'::tid AND ctid < '(9,3)'::tid "
        "AND ((id > 5)) AND \"id\" >= (SELECT pg_catalog.current_setting('spate.v0')::integer) AND "
        "\"or\"\"d\" IS NULL AND \"c\" OPERATOR(public.<>) (SELECT "
        "pg_catalog.current_setting('spate.v1')::public.citext)");
    assert_int_equal(spate_query_terms(&plan, true, terms), 4);
    assert_int_equal(terms[2].type, 25); /* keys in the key's order */
    assert_int_equal(terms[3].type, 23);
    spate_buf_reset(&sql);
    spate_query_keys(&sql, &plan, bound);
    assert_non_null(strstr(spate_buf_str(&sql), "\"c\" OPERATOR(public.=) (spate_k.v0)::public.citext AND "
                                                "\"id\" = (spate_k.v1)::integer AND ((id > 5))"));
    assert_null(strstr(spate_buf_str(&sql), "drop"));
    spate_buf_reset(&sql);
    spate_query_bind(&sql, terms, 4);
    assert_non_null(strstr(spate_buf_str(&sql), "(3, 23::oid, '=', $4::text)"));
    assert_null(strstr(spate_buf_str(&sql), "drop"));
    spate_buf_fini(&sql);
}

static void keys_become_arrays(void **state)
{
    const struct spate_value keys[] = {{SPATE_VALUE_TEXT, S("a\"b")},
                                       {SPATE_VALUE_TEXT, S("1")},
                                       {SPATE_VALUE_TEXT, S("c\\,{NULL}")},
                                       {SPATE_VALUE_TEXT, S("")}};
    struct spate_buf text = {0};

    (void)state;
    spate_query_array(&text, keys, 2, 2);
    assert_string_equal(spate_buf_str(&text), "{\"a\\\"b\",\"c\\\\,{NULL}\"}");
    spate_buf_reset(&text);
    spate_query_array(&text, keys + 1, 2, 2);
    assert_string_equal(spate_buf_str(&text), "{\"1\",\"\"}");
    spate_buf_reset(&text);
    spate_query_array(&text, keys, 2, 0);
    assert_string_equal(spate_buf_str(&text), "{}");
    spate_buf_fini(&text);
}

/* Closing wakes threads that have nothing to do; cancelling answers for work that no thread has taken. */
static void readers_without_a_source_come_to_an_end(void **state)
{
    struct spate_connector_config config = {
        .name = (char *)"test",
        .source = {.url = (char *)"postgres://nobody@127.0.0.1:1/none?sslmode=disable",
                   .publication = (char *)"p"},
        .snapshots = {.parallel = 2}};
    struct spate_readers *readers = NULL;
    struct spate_err err = {0};
    int back = 0;

    (void)state;
    assert_int_equal(spate_readers_open(&config, &readers, &err), SPATE_OK);
    for (int i = 0; i < 5; i++) {
        struct spate_job *job = spate_zalloc(sizeof *job);

        job->kind = SPATE_JOB_LOOK;
        spate_readers_submit(readers, job);
    }
    spate_readers_cancel(readers);
    while (back < 5) {
        struct spate_job *job = spate_readers_take(readers);

        if (!job)
            continue;
        assert_int_equal(job->outcome, SPATE_JOB_FAILED);
        assert_int_equal(job->err.verdict, SPATE_RETRY);
        spate_job_free(job);
        back++;
    }
    spate_readers_submit(readers, spate_zalloc(sizeof(struct spate_job)));
    spate_readers_close(readers);
    spate_readers_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_of_copy_are_split_and_unescaped),
        cmocka_unit_test(a_line_that_does_not_fit_is_refused),
        cmocka_unit_test(a_tab_too_many_is_not_lost),
        cmocka_unit_test(a_shape_is_what_follows_the_file),
        cmocka_unit_test(a_position_behind_a_page_header_is_the_pages),
        cmocka_unit_test(the_pace_finds_its_size),
        cmocka_unit_test(the_pace_never_stands_still),
        cmocka_unit_test_setup_teardown(no_value_stands_in_a_query, make_plan, free_plan),
        cmocka_unit_test(keys_become_arrays),
        cmocka_unit_test(readers_without_a_source_come_to_an_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
