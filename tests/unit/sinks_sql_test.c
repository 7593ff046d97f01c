/* What a projection becomes: the columns it uses, what it refuses for them, and the statements. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sinks/generation.h"
#include "sinks/projection.h"
#include "tests/support/schemas_fixture.h"

#include <stdlib.h>
#include <string.h>

struct world {
    struct spate_sink_config sink;
    struct spate_sink_table_config config;
    struct spate_projection projection;
    struct spate_table *table;
    struct spate_version *version;
    struct spate_pair columns[8];
    char *key[4];
    int key_line[4];
};

/* What the target would answer: each output uses the columns named in `uses`, a bare column itself. */
static void fake_answers(struct world *w, const char *const *uses, const char *where_uses)
{
    struct spate_version *v = w->version;

    for (size_t i = 0; i < w->table->column_count; i++)
        v->stage_types[i] = spate_strndup(w->table->columns[i].type.at, w->table->columns[i].type.len);
    for (size_t i = 0; i < v->output_count; i++) {
        bool known = v->outputs[i].use_count > 0;

        for (size_t c = 0; !known && c < w->table->column_count; c++) {
            char name[64];

            snprintf(name, sizeof name, "%.*s", SPATE_SLICE_ARG(w->table->columns[c].name));
            if ((int)c == v->outputs[i].bare || (uses && uses[i] && strstr(uses[i], name))) {
                v->outputs[i].uses = spate_realloc(v->outputs[i].uses, 8 * sizeof(uint32_t));
                v->outputs[i].uses[v->outputs[i].use_count++] = (uint32_t)c;
                if (v->outputs[i].bare >= 0)
                    break;
            }
        }
    }
    for (size_t c = 0; where_uses && c < w->table->column_count; c++) {
        char name[64];

        snprintf(name, sizeof name, "%.*s", SPATE_SLICE_ARG(w->table->columns[c].name));
        if (strstr(where_uses, name)) {
            v->where_uses = spate_realloc(v->where_uses, 8 * sizeof(uint32_t));
            v->where_uses[v->where_use_count++] = (uint32_t)c;
        }
    }
}

static void open_world(struct world *w, enum spate_identity identity, const char *where,
                       const char *const *columns, const char *key)
{
    struct spate_err err = {0};

    *w = (struct world){.table = fixture_orders(identity)};
    w->sink = (struct spate_sink_config){.path = "team.yaml", .name = "team", .into = {.schema = "team"}};
    w->config = (struct spate_sink_table_config){.item = {.name = "Inv", .line = 7},
                                                 .from = "public.orders",
                                                 .where = where ? spate_strdup(where) : NULL};
    for (size_t i = 0; columns && columns[i]; i += 2) {
        w->columns[i / 2] =
            (struct spate_pair){(char *)(uintptr_t)columns[i], (char *)(uintptr_t)columns[i + 1], 9};
        w->config.columns = (struct spate_pairs){w->columns, i / 2 + 1};
    }
    if (key) {
        w->key[0] = (char *)(uintptr_t)key;
        w->config.key = (struct spate_strings){w->key, w->key_line, 1};
    }
    w->sink.tables = (struct spate_group){&w->config, 1};
    assert_int_equal(spate_projection_init(&w->projection, &w->sink, 0, &err), SPATE_OK);
    w->version = spate_version_new(&w->projection, w->table);
}

static void close_world(struct world *w)
{
    spate_version_free(w->version);
    spate_projection_fini(&w->projection);
    spate_table_free(w->table);
    free(w->config.where);
}

static void names_of_tables_are_read_like_sql(void **state)
{
    static const struct {
        const char *from, *schema, *table;
    } cases[] = {
        {"public.orders", "public", "orders"},
        {"Public.Orders", "public", "orders"},
        {"\"Public\".\"Order Lines\"", "Public", "Order Lines"},
        {"\"a.b\".\"c\"\"d\"", "a.b", "c\"d"},
        {"orders", NULL, NULL},
        {"public.", NULL, NULL},
        {".orders", NULL, NULL},
        {"a.b.c", NULL, NULL},
        {"public.\"open", NULL, NULL},
        {"public.or ders", NULL, NULL},
        {"public.\"\"", NULL, NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spate_sink_table_config config = {.item = {.name = "t", .line = 4},
                                                 .from = (char *)(uintptr_t)cases[i].from};
        struct spate_sink_config sink = {.path = "f.yaml", .into = {.schema = "s"}, .tables = {&config, 1}};
        struct spate_projection projection;
        struct spate_err err = {0};
        enum spate_rc rc = spate_projection_init(&projection, &sink, 0, &err);

        if (cases[i].schema) {
            assert_int_equal(rc, SPATE_OK);
            assert_string_equal(projection.source_schema, cases[i].schema);
            assert_string_equal(projection.source_table, cases[i].table);
        } else {
            assert_int_equal(rc, SPATE_FAIL);
            assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
            assert_non_null(strstr(err.text, "f.yaml:4: tables.t.from"));
        }
        spate_projection_fini(&projection);
    }
}

static void all_columns_by_default(void **state)
{
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, NULL, NULL);
    fake_answers(&w, NULL, NULL);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_int_equal(w.version->output_count, 6);
    assert_int_equal(w.version->used_count, 6);
    assert_int_equal(w.version->maybe_count, 4); /* total, tags, doc, notes; not the key, not the boolean */
    assert_true(w.version->outputs[0].key);
    spate_version_sql(w.version);
    assert_string_equal(w.version->sql.stage, "pg_temp.spate_s0_3");
    assert_string_equal(
        w.version->sql.columns,
        "(\"~op\", \"~mask\", \"~old0\", \"id\", \"total\", \"paid\", \"tags\", \"doc\", \"notes\")");
    assert_non_null(strstr(w.version->sql.create, "INSERT INTO \"team\".\"Inv\" AS t (\"id\", \"total\", "
                                                  "\"paid\", \"tags\", \"doc\", \"notes\") SELECT "
                                                  "(\"id\"\n), (\"total\"\n), "));
    assert_non_null(strstr(w.version->sql.create,
                           " ON CONFLICT (\"id\") DO UPDATE SET \"total\" = EXCLUDED.\"total\", "));
    assert_non_null(strstr(w.version->sql.create,
                           "\"total\" = CASE WHEN s.m0 THEN s.v1 ELSE t.\"total\" END, \"paid\" = s.v2, "));
    assert_non_null(w.version->sql.large.partial);
    assert_non_null(w.version->sql.large.move);
    /* A small piece comes as arrays of text, cast to the same columns; nothing is staged for it. */
    assert_non_null(strstr(w.version->sql.create,
                           "PREPARE spate_ds0_3 (text[], text[], text[], text[], text[], text[], "
                           "text[], text[], text[]) AS DELETE FROM \"team\".\"Inv\" AS t"));
    assert_non_null(strstr(w.version->sql.create, "u.c5::numeric(10,2) AS \"total\""));
    assert_string_equal(w.version->sql.small.move, "EXECUTE spate_ms0_3");
    close_world(&w);
}

static void full_identity_leaves_nothing_out(void **state)
{
    static const char *const columns[] = {"inv", "id", "t", "total * 2 -- twice", NULL};
    static const char *const uses[] = {NULL, "total"};
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_FULL, "paid and notes > ''", columns, "inv");
    fake_answers(&w, uses, "paid notes");
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_int_equal(w.version->maybe_count, 0);
    assert_int_equal(w.version->used_count, 4); /* id, total, paid, notes */
    assert_true(w.version->want[5]);
    assert_false(w.version->want[3]);
    assert_true(w.version->want_key[0]);
    assert_false(w.version->want_key[1]);
    spate_version_sql(w.version);
    assert_null(w.version->sql.large.partial);
    /* A comment at the end of an expression ends there, and rows staged without values are kept from `where`.
     */
    assert_non_null(strstr(w.version->sql.create, "(total * 2 -- twice\n)"));
    assert_non_null(
        strstr(w.version->sql.create, "WHEN 'u' THEN (paid and notes > ''\n) IS NOT TRUE ELSE false END"));
    assert_non_null(
        strstr(w.version->sql.create,
               "WHERE CASE WHEN \"~op\" IN ('u', 'r') THEN (paid and notes > ''\n) ELSE false END"));
    close_world(&w);
}

static void refused(const char *where, const char *where_uses, const char *const *columns,
                    const char *const *uses, const char *key, const char *word)
{
    struct spate_err err = {0};
    struct world w;

    open_world(&w, SPATE_IDENTITY_DEFAULT, where, columns, key);
    fake_answers(&w, uses, where_uses);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "team.yaml:7: tables.Inv"));
    assert_non_null(strstr(err.text, word));
    close_world(&w);
}

static void needs_copy(const char *where, const char *where_uses, const char *const *columns,
                       const char *const *uses, const char *word)
{
    struct spate_err err = {0};
    struct world w;

    open_world(&w, SPATE_IDENTITY_DEFAULT, where, columns, NULL);
    fake_answers(&w, uses, where_uses);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_non_null(w.version->copy_why);
    assert_non_null(strstr(w.version->copy_why, word));
    close_world(&w);
}

static void what_may_come_unchanged_is_kept_where_it_is_needed(void **state)
{
    static const char *const mixed[] = {"id", "id", "x", "notes || tags", NULL}, *const mixed_uses[] = {
                                                                                     NULL, "notes tags"};
    static const char *const half[] = {"id", "id", "x", "notes || paid", NULL}, *const half_uses[] = {
                                                                                    NULL, "notes paid"};

    (void)state;
    needs_copy("notes <> ''", "notes", NULL, NULL, "where: a row that begins to match");
    needs_copy("paid", "paid", NULL, NULL, "source column total"); /* which it needs as it needs all */
    needs_copy(NULL, NULL, mixed, mixed_uses, "columns.x: the expression needs several");
    needs_copy(NULL, NULL, half, half_uses, "source column notes");
}

/* The columns of a copy: the key, the others by name and type, and of which of them the row was kept. */
static void a_copy_has_the_columns_that_are_used(void **state)
{
    static const char *const narrow[] = {"id", "id", "x", "notes || tags::text", NULL};
    static const char *const uses[] = {NULL, "notes tags"};
    struct spate_err err = {0};
    struct spate_slice type;
    int64_t shapes[3];
    struct world w;

    (void)state;
    for (int i = 0; i < 3; i++) {
        open_world(&w, i == 2 ? SPATE_IDENTITY_FULL : SPATE_IDENTITY_DEFAULT, NULL, narrow, NULL);
        type = w.table->columns[5].type;
        if (i == 1)
            w.table->columns[5].type = spate_slice_str("character varying(9)");
        fake_answers(&w, uses, NULL);
        assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
        assert_int_equal(w.version->copy_why == NULL, i == 2);
        assert_int_equal(w.version->copy.output_count, 4); /* id, tags, notes, shape */
        assert_string_equal(w.version->copy.outputs[0].name, "k0");
        assert_true(w.version->copy.outputs[0].key);
        assert_memory_equal(w.version->copy.outputs[2].name, "notes_", 6);
        assert_string_equal(w.version->copy.outputs[3].name, "shape");
        shapes[i] = w.version->copy.shape;
        w.table->columns[5].type = type;
        close_world(&w);
    }
    assert_true(shapes[0] != shapes[1]);
    assert_true(shapes[0] == shapes[2]); /* who comes whole can go into the same copy */
}

static void what_never_comes_unchanged_is_not(void **state)
{
    static const char *const fixed[] = {"id", "id", "x", "id || paid", "n", "upper(notes)", NULL};
    static const char *const uses[] = {NULL, "id paid", "notes"};
    static const char *const narrow[] = {"id", "id", "p", "paid", NULL};
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, fixed, NULL);
    fake_answers(&w, uses, NULL);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_int_equal(w.version->maybe_count, 1);
    close_world(&w);

    open_world(&w, SPATE_IDENTITY_DEFAULT, "paid", narrow, NULL);
    fake_answers(&w, NULL, "paid");
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_int_equal(w.version->maybe_count, 0);
    close_world(&w);
}

static void the_key_is_the_sources_key(void **state)
{
    static const char *const changed[] = {"id", "id + 0", NULL}, *const changed_uses[] = {"id"};
    static const char *const other[] = {"id", "id", "p", "paid", NULL};
    static const char *const none[] = {"p", "paid", NULL};

    (void)state;
    refused(NULL, NULL, changed, changed_uses, "id", "id + 0");
    refused(NULL, NULL, changed, changed_uses, NULL, "key column id");
    refused(NULL, NULL, other, NULL, "p", "no column of the source's key");
    refused(NULL, NULL, other, NULL, "q", "none of the table's columns");
    refused(NULL, NULL, none, NULL, NULL, "key column id");
}

static void odd_names_do_not_collide(void **state)
{
    const struct fixture_column columns[] = {{"~op", "integer", NULL, 23, -1, 4, true},
                                             {"~~mask", "text", NULL, 25, -1, -1, false},
                                             {"a\"b", "text", NULL, 25, -1, -1, false}};
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, NULL, NULL);
    spate_version_free(w.version);
    spate_table_free(w.table);
    w.table = fixture_table("odd", SPATE_IDENTITY_DEFAULT, columns, 3, (const uint32_t[]){0}, 1);
    w.version = spate_version_new(&w.projection, w.table);
    fake_answers(&w, NULL, NULL);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    spate_version_sql(w.version);
    assert_string_equal(w.version->sql.columns,
                        "(\"~~~op\", \"~~~mask\", \"~~~old0\", \"~op\", \"~~mask\", \"a\"\"b\")");
    close_world(&w);
}

static void more_columns_than_can_be_staged_are_refused(void **state)
{
    enum { WIDE = 1598 };
    static struct fixture_column columns[WIDE];
    static char names[WIDE][16];
    struct spate_err err = {0};
    struct world w;

    (void)state;
    for (int i = 0; i < WIDE; i++) {
        snprintf(names[i], sizeof names[i], "c%d", i);
        columns[i] = (struct fixture_column){names[i], "integer", NULL, 23, -1, 4, i == 0};
    }
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, NULL, NULL);
    for (size_t count = WIDE - 1; count <= WIDE; count++) {
        spate_version_free(w.version);
        spate_table_free(w.table);
        w.table = fixture_table("wide", SPATE_IDENTITY_DEFAULT, columns, count, (const uint32_t[]){0}, 1);
        w.version = spate_version_new(&w.projection, w.table);
        fake_answers(&w, NULL, NULL);
        assert_int_equal(spate_version_plan(w.version, &err), count == WIDE ? SPATE_FAIL : SPATE_OK);
    }
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    assert_non_null(strstr(err.text, "at most 1597 can be staged"));
    close_world(&w);
}

static int numeric_mod(int precision, int scale)
{
    return ((precision << 16) | scale) + 4;
}

static void assignments_keep_values_or_ask_for_a_cast(void **state)
{
    (void)state;
    assert_true(spate_type_lossless(23, -1, 23, -1));
    assert_true(spate_type_lossless(23, -1, 20, -1)); /* int4 -> int8 */
    assert_false(spate_type_lossless(20, -1, 23, -1));
    assert_true(spate_type_lossless(20, -1, 1700, -1)); /* int8 -> numeric */
    assert_false(spate_type_lossless(20, -1, 701, -1)); /* int8 -> float8 rounds */
    assert_true(spate_type_lossless(23, -1, 701, -1));
    assert_false(spate_type_lossless(1700, -1, 1700, numeric_mod(10, 2))); /* 1.005 becomes 1.01 */
    assert_true(spate_type_lossless(1700, numeric_mod(10, 2), 1700, -1));
    assert_true(spate_type_lossless(1700, numeric_mod(10, 2), 1700, numeric_mod(12, 2)));
    assert_false(spate_type_lossless(1700, numeric_mod(10, 2), 1700, numeric_mod(10, 4)));
    assert_false(spate_type_lossless(1700, numeric_mod(12, 2), 1700, numeric_mod(10, 2)));
    assert_true(spate_type_lossless(1043, 14, 1043, 24)); /* varchar(10) -> varchar(20) */
    assert_false(spate_type_lossless(1043, 24, 1043, 14));
    assert_true(spate_type_lossless(1043, 24, 25, -1));
    assert_false(spate_type_lossless(25, -1, 1043, 24));
    assert_false(spate_type_lossless(1042, 14, 25, -1));   /* char(10) -> text drops blanks */
    assert_false(spate_type_lossless(1114, -1, 1184, -1)); /* timestamp -> timestamptz shifts */
    assert_false(spate_type_lossless(114, -1, 3802, -1));  /* json -> jsonb drops duplicates (P81) */
    assert_false(spate_type_lossless(1114, 6, 1114, 0));
    assert_true(spate_type_lossless(1114, 0, 1114, 6));
}

/* The statements of one kind of load; "%" in the words stands for the hash in names of ours. */
static void assert_statements(struct world *w, enum spate_load_kind kind, const char *const *words)
{
    const char *hash = strstr(w->projection.load.marks, "mark_") + 5;
    char text[400];

    w->projection.load.kind = kind;
    w->projection.load.target = kind == SPATE_LOAD_SHADOW ? w->projection.load.shadow : NULL;
    w->projection.load.edition++;
    spate_version_sql(w->version);
    for (; *words; words++) {
        bool absent = **words == '!';
        const char *at = *words + absent, *mark = strchr(at, '%');

        if (mark)
            snprintf(text, sizeof text, "%.*s%.16s%s", (int)(mark - at), at, hash, mark + 1);
        if ((strstr(w->version->sql.create, mark ? text : at) != NULL) == absent)
            fail_msg("kind %d: %s is %s:\n%s", (int)kind, at, absent ? "there" : "not there",
                     w->version->sql.create);
    }
}

static void a_snapshot_adds_statements_and_leaves_the_others(void **state)
{
    static const char *const none[] = {"!_mark_", "!_list_", "!_new_", "PREPARE spate_u0_3_1 (integer)",
                                       NULL};
    static const char *const empty[] = {
        "INSERT INTO \"team\".\"spate_list_%\" SELECT s.n0 FROM (SELECT \"id\" AS k0, \"id\" AS n0 FROM "
        "pg_temp.spate_s0_3 WHERE \"~op\" = 'p') AS s WHERE NOT EXISTS (SELECT FROM \"team\".\"Inv\" AS o "
        "WHERE o.\"id\" = s.k0) ON CONFLICT DO NOTHING",
        "SELECT \"~old0\" AS k0, \"id\" AS n0 FROM pg_temp.spate_s0_3 WHERE \"~op\" = 'm'",
        "!_mark_",
        "!_new_",
        "!spate_c0",
        "PREPARE spate_fs0_3_2 (text[]",
        NULL};
    static const char *const marked[] = {
        "INSERT INTO \"team\".\"spate_mark_%\" SELECT \"id\" AS k0 FROM pg_temp.spate_s0_3 WHERE \"~op\" IN "
        "('u', 'r') ON CONFLICT DO NOTHING",
        "DELETE FROM \"team\".\"spate_mark_%\" AS t USING (SELECT \"id\" AS k0 FROM pg_temp.spate_s0_3 WHERE "
        "\"~op\" IN ('d', 'r')) AS s WHERE t.k0 = s.k0",
        /* only rows of the generation are touched by a partial update */
        "= 'p') AS s, \"team\".\"spate_mark_%\" AS o WHERE t.\"id\" = s.k0 AND o.k0 = s.k0",
        "WHERE NOT EXISTS (SELECT FROM \"team\".\"spate_mark_%\" AS o WHERE o.k0 = s.k0) ON CONFLICT",
        "UPDATE \"team\".\"spate_mark_%\" AS t SET k0 = s.n0",
        "PREPARE spate_c0_3_3 (integer) AS DELETE FROM \"team\".\"Inv\"", NULL};
    static const char *const shadow[] = {"INSERT INTO \"team\".\"spate_new_%\" AS t (\"id\", ",
                                         "UPDATE \"team\".\"spate_new_%\" AS t SET ", "!\"Inv\"", "!_mark_",
                                         NULL};
    static const char *const added[] = {"INSERT INTO \"team\".\"Inv\"", "spate_c0", "!_mark_", "!_new_",
                                        NULL};
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, NULL, NULL);
    fake_answers(&w, NULL, NULL);
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_statements(&w, SPATE_LOAD_NONE, none);
    assert_null(w.version->sql.large.load.off);
    assert_statements(&w, SPATE_LOAD_EMPTY, empty);
    assert_statements(&w, SPATE_LOAD_MARKED, marked);
    assert_string_equal(w.version->sql.small.load.mark_move, "EXECUTE spate_vs0_3_3");
    assert_statements(&w, SPATE_LOAD_SHADOW, shadow);
    assert_statements(&w, SPATE_LOAD_ADD, added);
    close_world(&w);

    /* Where no value comes unchanged there is nothing to read again; a row outside `where` is not marked. */
    open_world(&w, SPATE_IDENTITY_FULL, "paid", NULL, NULL);
    fake_answers(&w, NULL, "paid");
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    assert_statements(
        &w, SPATE_LOAD_MARKED,
        (const char *const[]){"SELECT \"id\" AS k0 FROM pg_temp.spate_s0_3 WHERE CASE WHEN \"~op\" "
                              "IN ('u', 'r') THEN (paid\n) ELSE false END ON CONFLICT DO NOTHING",
                              "WHEN 'u' THEN (paid\n) IS NOT TRUE ELSE false END) AS s WHERE t.k0 "
                              "= s.k0",
                              "!INSERT INTO \"team\".\"spate_list_", NULL});
    close_world(&w);
}

static void rows_go_into_the_copy_and_from_there(void **state)
{
    static const char *const columns[] = {"inv", "id", "x", "notes || paid -- both", NULL};
    static const char *const uses[] = {NULL, "notes paid"};
    static const char *const none[] = {
        /* into the copy first, whole: a condition of the team's is none of its business */
        "PREPARE spate_do0_3_1 (integer) AS DELETE FROM \"team\".\"spate_copy_%\" AS t USING (SELECT \"id\" "
        "AS k0 "
        "FROM pg_temp.spate_s0_3 WHERE \"~op\" IN ('d', 'r')) AS s WHERE t.\"k0\" = s.k0",
        " IN ('u', 'r') ON CONFLICT (\"k0\") DO UPDATE SET \"paid_",
        "UPDATE \"team\".\"spate_copy_%\" AS t SET \"paid_",
        /* only what was kept with the same columns is known */
        " = 'p') AS s WHERE t.\"k0\" = s.k0 AND t.shape = ",
        " WHERE \"~op\" = 'p') AS s WHERE t.\"k0\" = s.k0 AND t.shape <> ",
        /* then the team's: whole rows as they came */
        "PREPARE spate_u0_3_1 (integer) AS INSERT INTO \"team\".\"Inv\" AS t (\"inv\", \"x\") SELECT (id\n), "
        "(notes || "
        "paid -- both\n) FROM pg_temp.spate_s0_3 WHERE CASE WHEN \"~op\" IN ('u', 'r') THEN (paid\n) ELSE "
        "false END",
        /* the others as the copy has them */
        "(SELECT \"id\" AS k0, \"~mask\" FROM pg_temp.spate_s0_3 WHERE \"~op\" IN ('p', 'm')) AS s, "
        "\"team\".\"spate_copy_%\" AS c WHERE c.shape = ",
        " AND c.k0 = s.k0), spate_left AS (DELETE FROM \"team\".\"Inv\" AS t USING (SELECT \"id\" AS k0 FROM "
        "spate_rows WHERE (paid\n) IS NOT TRUE) AS s WHERE t.\"inv\" = s.k0), spate_stays AS (UPDATE ",
        " FROM spate_rows WHERE (paid\n) AND NOT EXISTS (SELECT FROM \"team\".\"Inv\" AS t, "
        "(SELECT "
        "\"id\" AS k0) AS s WHERE t.\"inv\" = s.k0)",
        "!_mark_", "!_list_", NULL};
    static const char *const marked[] = {
        "INSERT INTO \"team\".\"spate_mark_%\" SELECT \"id\" AS k0 FROM pg_temp.spate_s0_3 WHERE \"~op\" IN "
        "('u', "
        "'r') ON CONFLICT",
        " AND EXISTS (SELECT FROM \"team\".\"spate_mark_%\" AS g WHERE g.k0 = s.k0)) ON CONFLICT DO NOTHING",
        "UPDATE \"team\".\"Inv\" AS t SET \"x\" = s.v1 FROM (SELECT \"id\" AS k0, ", NULL};
    static const char *const shadow[] = {"INSERT INTO \"team\".\"spate_new_%\" AS t (\"k0\", ", "!_mark_",
                                         NULL};
    struct spate_err err = {0};
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, "paid", columns, NULL);
    fake_answers(&w, uses, "paid");
    assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
    w.projection.load.copied = true;
    assert_statements(&w, SPATE_LOAD_NONE, none);
    assert_null(w.version->sql.large.move);
    assert_null(w.version->sql.large.load.off);
    assert_statements(&w, SPATE_LOAD_MARKED, marked);
    assert_null(w.version->sql.large.load.mark); /* the generation is the copy's */
    assert_non_null(w.version->sql.copy.large.load.mark);
    assert_statements(&w, SPATE_LOAD_SHADOW, shadow);
    close_world(&w);
}

/* What changes the rows that are there changes the hash; what else the source alters does not. */
static void the_hash_is_of_what_the_rows_are_written_by(void **state)
{
    static const char *const columns[] = {"id", "id", "t", "total", NULL}, *const other[] = {"id", "id", "t",
                                                                                             "total + 1",
                                                                                             NULL};
    static const char *const uses[] = {NULL, "total"};
    const struct {
        const char *where;
        const char *const *columns;
        bool wider, same;
    } cases[] = {{NULL, columns, false, true},
                 {"paid", columns, false, false},
                 {NULL, other, false, false},
                 {NULL, NULL, false, false},
                 {NULL, columns, true, true}};
    char first[SPATE_LOAD_HASH] = "";

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct spate_err err = {0};
        struct world w;
        char hash[SPATE_LOAD_HASH];
        struct spate_slice type;

        open_world(&w, SPATE_IDENTITY_FULL, cases[i].where, cases[i].columns, NULL);
        type = w.table->columns[5].type;
        if (cases[i].wider) /* a column that the projection does not use is altered */
            w.table->columns[5].type = spate_slice_str("bytea");
        fake_answers(&w, cases[i].columns ? uses : NULL, cases[i].where);
        assert_int_equal(spate_version_plan(w.version, &err), SPATE_OK);
        w.projection.current = w.version;
        spate_load_hash(&w.projection, hash);
        if (i == 0)
            strcpy(first, hash);
        assert_int_equal(strcmp(first, hash) == 0, cases[i].same);
        spate_load_compare(&w.projection);
        assert_false(w.projection.load.changed); /* nothing is stored yet */
        w.projection.load.stored_hash = spate_strdup(first);
        spate_load_compare(&w.projection);
        assert_int_equal(w.projection.load.changed, !cases[i].same);
        w.table->columns[5].type = type;
        close_world(&w);
    }
}

static void a_rewind_forgets_what_was_not_stored(void **state)
{
    struct world w;

    (void)state;
    open_world(&w, SPATE_IDENTITY_DEFAULT, NULL, NULL, NULL);
    spate_load_set(&w.projection, SPATE_LOAD_MARKED, "q1");
    assert_string_equal(w.projection.load.request, "q1");
    w.projection.load.chunk = 3;
    spate_load_resume(&w.projection.load, spate_slice_str("token3"));
    spate_load_stored(&w.projection);
    w.projection.load.chunk = 5;
    w.projection.load.ranges_known = w.projection.load.dirty = true;
    spate_load_resume(&w.projection.load, spate_slice_str("token5"));
    spate_load_rewind(&w.projection);
    assert_int_equal(w.projection.load.chunk, 3);
    assert_string_equal(w.projection.load.resume, "token3");
    assert_false(w.projection.load.ranges_known || w.projection.load.dirty);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_tables_are_read_like_sql),
        cmocka_unit_test(all_columns_by_default),
        cmocka_unit_test(full_identity_leaves_nothing_out),
        cmocka_unit_test(what_may_come_unchanged_is_kept_where_it_is_needed),
        cmocka_unit_test(a_copy_has_the_columns_that_are_used),
        cmocka_unit_test(rows_go_into_the_copy_and_from_there),
        cmocka_unit_test(what_never_comes_unchanged_is_not),
        cmocka_unit_test(the_key_is_the_sources_key),
        cmocka_unit_test(odd_names_do_not_collide),
        cmocka_unit_test(more_columns_than_can_be_staged_are_refused),
        cmocka_unit_test(assignments_keep_values_or_ask_for_a_cast),
        cmocka_unit_test(a_snapshot_adds_statements_and_leaves_the_others),
        cmocka_unit_test(the_hash_is_of_what_the_rows_are_written_by),
        cmocka_unit_test(a_rewind_forgets_what_was_not_stored),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
