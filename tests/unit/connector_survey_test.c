/* What two surveys have between them: what is said, and what is not (P31-P34, P51, P56). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "connector/survey.h"
#include "core/alloc.h"

static struct spate_survey *known, *now;
static struct spate_survey_rules rules;
static char said[4096];

static struct spate_survey_column column(int32_t number, const char *name, uint32_t type, uint32_t xmin)
{
    return (struct spate_survey_column){.number = number,
                                        .type = type,
                                        .xmin = xmin,
                                        .hash = spate_survey_hash(name),
                                        .name = name,
                                        .labels = ""};
}

static struct spate_survey *survey_of(size_t tables, size_t leaves)
{
    struct spate_survey *survey = spate_zalloc(sizeof *survey);

    survey->refs = 1;
    survey->published = true;
    survey->publication = 7;
    survey->next = 1000;
    survey->tables = spate_zalloc(tables * sizeof *survey->tables);
    survey->leaves = spate_zalloc(leaves * sizeof *survey->leaves);
    return survey;
}

static struct spate_survey_table *add(struct spate_survey *survey, uint32_t oid, const char *name)
{
    struct spate_survey_table *table = &survey->tables[survey->count++];
    const struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 23, 500)};

    *table = (struct spate_survey_table){.oid = oid,
                                         .way = 9,
                                         .since = 400,
                                         .schema = "public",
                                         .name = name,
                                         .first = survey->leaf_count,
                                         .columns = spate_survey_columns_new(columns, 2)};
    return table;
}

static struct spate_survey_leaf *leaf(struct spate_survey *survey, struct spate_survey_table *table,
                                      uint32_t oid, uint32_t file, uint32_t xmin)
{
    struct spate_survey_leaf *made = &survey->leaves[survey->leaf_count++];

    *made = (struct spate_survey_leaf){.oid = oid, .file = file, .xmin = xmin, .born = xmin};
    table->leaf_count++;
    return made;
}

static void columns_are(struct spate_survey_table *table, const struct spate_survey_column *columns,
                        size_t count)
{
    spate_survey_columns_drop(table->columns);
    table->columns = spate_survey_columns_new(columns, count);
}

static void tell(void *arg, const struct spate_survey_finding *finding)
{
    static const char *const news[] = {"memory", "added", "stale", "removed", "unlogged", "rewritten"};
    size_t len = strlen(said);

    (void)arg;
    len += (size_t)snprintf(said + len, sizeof said - len, "%s%s %s", len ? "; " : "", news[finding->news],
                            finding->table->name);
    if (finding->why[0])
        len += (size_t)snprintf(said + len, sizeof said - len, " %s", finding->why);
    for (size_t i = 0; i < finding->column_count; i++)
        len += (size_t)snprintf(said + len, sizeof said - len, " %s", finding->columns[i]);
    if (finding->other)
        snprintf(said + len, sizeof said - len, " (%s)", finding->other->name);
}

static const char *judged(void)
{
    said[0] = 0;
    spate_survey_seal(known);
    spate_survey_seal(now);
    spate_survey_judge(known, now, &rules, tell, NULL);
    return said;
}

static int set_up(void **state)
{
    (void)state;
    known = survey_of(8, 8);
    now = survey_of(8, 8);
    rules = (struct spate_survey_rules){0};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_survey_drop(known);
    spate_survey_drop(now);
    return 0;
}

/* One table on both sides, with the same file. */
static struct spate_survey_table *twin(struct spate_survey_leaf **file)
{
    struct spate_survey_table *one = add(known, 100, "t"), *other;

    leaf(known, one, 100, 100, 500);
    other = add(now, 100, "t");
    *file = leaf(now, other, 100, 100, 500);
    return other;
}

static void nothing_where_nothing_differs(void **state)
{
    struct spate_survey_leaf *file;

    (void)state;
    twin(&file);
    file->xmin = 700; /* GRANT, COMMENT, an index: the row of pg_class is another, and nothing else */
    assert_string_equal(judged(), "");
}

static void a_new_file(void **state)
{
    struct spate_survey_leaf *file;
    const struct spate_survey_truncate of_others[] = {{101, 700}, {100, 699}}, truncate = {100, 700};

    (void)state;
    twin(&file);
    file->file = 200;
    file->xmin = 700;
    assert_string_equal(judged(), "stale t rewritten");
    rules.truncates = of_others;
    rules.truncate_count = 2;
    assert_string_equal(judged(), "stale t rewritten");
    rules.say = true;
    assert_string_equal(judged(), "rewritten t");
    rules.say = false;
    rules.truncates = &truncate;
    rules.truncate_count = 1;
    assert_string_equal(judged(), "memory t");
}

static void a_new_column(void **state)
{
    struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 23, 500),
                                            column(3, "w", 23, 700)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);

    (void)state;
    columns_are(table, columns, 3);
    assert_string_equal(judged(), "memory t"); /* it is NULL everywhere */
    columns[2].missing = true;
    columns_are(table, columns, 3);
    assert_string_equal(judged(), "stale t columns w"); /* DEFAULT 7 */
    columns[2].missing = false;
    columns_are(table, columns, 3);
    file->file = 200;
    file->xmin = 700;
    assert_string_equal(judged(), "stale t columns w"); /* DEFAULT random() */
    file->xmin = 701;
    assert_string_equal(judged(), "stale t rewritten"); /* and somebody else after that */
    rules.say = true;
    assert_string_equal(judged(), "stale t columns w");
}

static void an_altered_column(void **state)
{
    struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 23, 700)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);

    (void)state;
    columns_are(table, columns, 2);
    assert_string_equal(judged(), "memory t"); /* SET STATISTICS */
    file->file = 200;
    file->xmin = 700;
    assert_string_equal(judged(), "stale t columns v"); /* TYPE int USING v + 1 */
    file->file = 100;
    columns[1].type = 26; /* no rewrite, and -1 prints as 4294967295 */
    columns_are(table, columns, 2);
    assert_string_equal(judged(), "stale t columns v");
    columns[1] = column(2, "other", 23, 700);
    columns_are(table, columns, 2);
    assert_string_equal(judged(), "stale t columns other"); /* P34 */
}

static void varchar_and_text_print_alike(void **state)
{
    const struct spate_survey_column was[] = {column(1, "id", 23, 500), column(2, "v", 1043, 500)};
    const struct spate_survey_column is[] = {column(1, "id", 23, 500), column(2, "v", 25, 700)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);

    (void)state;
    columns_are(&known->tables[0], was, 2);
    columns_are(table, is, 2);
    assert_string_equal(judged(), "memory t");
}

static void dropped_and_added_under_one_name(void **state)
{
    const struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(3, "v", 23, 700)};
    struct spate_survey_leaf *file;

    (void)state;
    columns_are(twin(&file), columns, 2);
    assert_string_equal(judged(), "stale t columns v"); /* NULL everywhere; followers hold the old one's */
}

static void written_out_defaults_prove_nothing(void **state)
{
    struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 23, 600)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);

    (void)state;
    columns[1].missing = true;
    columns_are(&known->tables[0], columns, 2);
    columns[1].missing = false;
    columns[1].xmin = 700;
    columns_are(table, columns, 2);
    file->file = 200;
    file->xmin = 700;
    assert_string_equal(judged(), "stale t rewritten"); /* VACUUM FULL, or SET UNLOGGED and SET LOGGED */
}

static void labels_of_an_enum(void **state)
{
    struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 9999, 500)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);
    uint32_t all;

    (void)state;
    columns[1].labels = "sad\nok";
    columns[1].label_hash = spate_survey_labels(columns[1].labels, UINT32_MAX, &all);
    columns[1].label_count = all;
    assert_int_equal(all, 2);
    columns_are(&known->tables[0], columns, 2);
    columns[1].labels = "sad\nok\nglad";
    columns[1].label_hash = spate_survey_labels(columns[1].labels, UINT32_MAX, &columns[1].label_count);
    columns_are(table, columns, 2);
    assert_string_equal(judged(), "memory t");
    columns[1].labels = "blue\nok\nglad";
    columns[1].label_hash = spate_survey_labels(columns[1].labels, UINT32_MAX, &columns[1].label_count);
    columns_are(table, columns, 2);
    assert_string_equal(judged(), "stale t columns v");
}

static void unlogged_for_a_while(void **state)
{
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);

    (void)state;
    table->unlogged = true;
    file->file = 200;
    assert_string_equal(judged(), "unlogged t");
    known->tables[0].unlogged = true;
    assert_string_equal(judged(), "");
    table->unlogged = false;
    assert_string_equal(judged(), "stale t logged");
}

static void partitions(void **state)
{
    struct spate_survey_table *one = add(known, 100, "p"), *other = add(now, 100, "p");
    struct spate_survey_leaf *new;
    const struct spate_survey_truncate truncate = {100, 800};

    (void)state;
    leaf(known, one, 101, 101, 500);
    leaf(now, other, 101, 101, 500);
    new = leaf(now, other, 102, 102, 700);
    new->inside = true;
    assert_string_equal(judged(), "memory p"); /* CREATE TABLE ... PARTITION OF */
    new->file = 300;
    assert_string_equal(judged(), "stale p partitions"); /* SET UNLOGGED and back, with rows in between */
    new->xmin = 800;
    rules.truncates = &truncate;
    rules.truncate_count = 1;
    assert_string_equal(judged(), "memory p");
    new->file = 102;
    new->inside = false;
    assert_string_equal(judged(), "stale p partitions"); /* ATTACH */
    now->tables[0].leaf_count = 0;
    assert_string_equal(judged(), "stale p partitions"); /* DETACH, DROP */
}

static void tables_that_come_and_go(void **state)
{
    struct spate_survey_leaf *file;
    struct spate_survey_table *table;

    (void)state;
    twin(&file);
    leaf(known, add(known, 200, "gone"), 200, 200, 500);
    leaf(now, add(now, 300, "new"), 300, 300, 1200);
    assert_string_equal(judged(), "removed gone; stale new published");
    now->tables[1].name = "gone";
    assert_string_equal(judged(), "stale gone recreated");
    now->tables[1].oid = 200;
    now->tables[1].name = "renamed";
    assert_string_equal(judged(), "removed gone (renamed); stale renamed published (gone)");
    now->tables[1].name = "gone";
    now->tables[1].way = 10;
    now->leaves[1] = known->leaves[1];
    assert_string_equal(judged(), "stale gone published"); /* taken out and put in again */
    now->tables[1].way = 9;
    assert_string_equal(judged(), "");
    now->publication_xmin = 5;
    assert_string_equal(judged(), "stale t published; stale gone published");
    now->publication_xmin = 0;
    table = &now->tables[0];
    table->name = "gone";
    now->tables[1].name = "t";
    assert_string_equal(judged(), "stale gone published (t); stale t published (gone)"); /* swapped */
}

static void a_partition_that_is_published_by_itself(void **state)
{
    struct spate_survey_leaf *new;

    (void)state;
    now->next = 1300;
    new = leaf(now, add(now, 300, "p1"), 300, 300, 1200);
    new->inside = true;
    assert_string_equal(judged(), "added p1"); /* empty then, and published from its first row on */
    new->born = 900;
    assert_string_equal(judged(), "stale p1 published"); /* older than what was known then */
    new->born = 1200;
    now->tables[0].since = 1250;
    assert_string_equal(judged(), "stale p1 published"); /* older than what it is published by */
}

static void a_baseline_says_nothing(void **state)
{
    struct spate_survey_leaf *file;

    (void)state;
    twin(&file);
    file->file = 200;
    leaf(now, add(now, 200, "other"), 200, 200, 500);
    now->publication = 8;
    rules.baseline = true;
    assert_string_equal(judged(), "stale t rewritten; memory other"); /* what is known counts all the same */
}

static void states_are_read_back(void **state)
{
    struct spate_survey_memory *memory = spate_survey_memory_new();
    struct spate_survey_column columns[] = {column(1, "id", 23, 500), column(2, "v", 9999, 700)};
    struct spate_survey_leaf *file;
    struct spate_survey_table *table = twin(&file);
    struct spate_buf text = {0};
    struct spate_survey *back;
    bool whole;

    (void)state;
    columns[1].missing = true;
    columns[1].labels = "sad\nok";
    columns[1].label_hash = spate_survey_labels(columns[1].labels, UINT32_MAX, &columns[1].label_count);
    columns_are(table, columns, 2);
    leaf(now, table, 4294967295, 4294967294, 1);
    spate_survey_write(now, table, &text);
    assert_true(spate_survey_remember(memory, spate_slice_str("public"), spate_slice_str("t"), false,
                                      spate_slice_str("1 5 5 0 0 0")));
    assert_true(spate_survey_remember(memory, spate_slice_str("public"), spate_slice_str("t"), false,
                                      spate_buf_view(&text)));
    assert_true(spate_survey_remember(memory, spate_slice_str("public"), spate_slice_str("gone"), true,
                                      spate_slice_str("")));
    assert_false(spate_survey_remember(memory, spate_slice_str("public"), spate_slice_str("odd"), false,
                                       spate_slice_str("2 what")));
    assert_true(spate_survey_remember(memory, spate_slice_str("public"), spate_slice_str("cut"), false,
                                      spate_slice(text.data, text.len / 2)));
    back = spate_survey_recall(memory, &whole);
    assert_false(whole);
    assert_int_equal(back->count, 1);
    spate_survey_drop(back);
    spate_buf_reset(&text);
    spate_survey_write_head(now, &text);
    assert_true(spate_survey_remember(memory, spate_slice_str(""), spate_slice_str(""), false,
                                      spate_buf_view(&text)));
    back = spate_survey_recall(memory, &whole);
    assert_true(whole);
    assert_int_equal(back->publication, 7);
    assert_int_equal(back->next, 1000);
    spate_survey_drop(known);
    known = back;
    assert_string_equal(judged(), "");
    spate_survey_memory_free(memory);
    spate_buf_fini(&text);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_where_nothing_differs),
        TEST(a_new_file),
        TEST(a_new_column),
        TEST(an_altered_column),
        TEST(varchar_and_text_print_alike),
        TEST(dropped_and_added_under_one_name),
        TEST(written_out_defaults_prove_nothing),
        TEST(labels_of_an_enum),
        TEST(unlogged_for_a_while),
        TEST(partitions),
        TEST(tables_that_come_and_go),
        TEST(a_partition_that_is_published_by_itself),
        TEST(a_baseline_says_nothing),
        TEST(states_are_read_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
