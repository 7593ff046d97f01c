/* What stands before the first frame, as far as it needs no server: the bus is opened and `_schemas` is read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "connector/schemas.h"
#include "connector/session.h"
#include "tests/support/bus_scratch.h"

static struct bus_scratch scratch;
static struct spate_connector_config config;
static struct spate_stream stream;
static struct spate_err err;

static int set_up(void **state)
{
    static char name[] = "shop";

    (void)state;
    err = (struct spate_err){0};
    bus_scratch_init(&scratch, 0);
    config = (struct spate_connector_config){.name = name, .bus = scratch.config};
    stream = (struct spate_stream){.config = &config};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_publisher_close(&stream.publisher);
    spate_relations_fini(&stream.relations);
    spate_versions_free(stream.versions);
    spate_epoch_drop(&stream.epoch);
    bus_scratch_fini(&scratch);
    return 0;
}

static struct spate_table *new_table(void)
{
    struct spate_table *table =
        spate_table_new(spate_slice_str("public"), spate_slice_str("t"), SPATE_IDENTITY_DEFAULT, 1, 1);

    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("integer"), spate_slice_str(""),
                           23, -1, 4, true, SPATE_CLASS_INT);
    spate_table_seal(table);
    return table;
}

static void publish_schema(struct spate_publisher *publisher)
{
    struct spate_table *table = new_table();

    table->v = 7;
    assert_int_equal(spate_publisher_schema(publisher, table, &err), SPATE_OK);
    spate_table_free(table);
}

static void publish_raw(struct spate_publisher *publisher, const char *text)
{
    struct spate_record record = {.value = spate_slice_str(text)};
    size_t taken = 0;

    assert_int_equal(spate_writer_publish(publisher->schemas, &record, 1, &taken, &err), SPATE_OK);
}

static void schemas_durable(struct spate_publisher *publisher)
{
    enum spate_rc rc;

    while ((rc = spate_publisher_schemas_durable(publisher, 1000, &err)) == SPATE_AGAIN)
        ;
    assert_int_equal(rc, SPATE_OK);
}

static void what_was_read_of_schemas_is_known(void **state)
{
    struct spate_publisher before;
    bool fresh = false;

    (void)state;
    assert_int_equal(spate_publisher_open(&before, &config, &err), SPATE_OK);
    publish_schema(&before);
    publish_raw(&before, "not one of ours");
    schemas_durable(&before);
    spate_publisher_close(&before);
    if (spate_session_bus(&stream, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_non_null(stream.publisher.stream);
    assert_int_equal(spate_versions_take(stream.versions, new_table(), &fresh)->v, 7);
    assert_false(fresh);
}

/* Whoever goes on with half of `_schemas` gives old versions new numbers, and takes a stream for a new one.
 */
static void a_half_read_schemas_topic_leaves_nothing_open(void **state)
{
    struct spate_publisher before;

    (void)state;
    assert_int_equal(spate_publisher_open(&before, &config, &err), SPATE_OK);
    publish_schema(&before);
    publish_raw(&before, "{\"spate\":1,\"op\":\"schema\",");
    publish_schema(&before);
    schemas_durable(&before);
    spate_publisher_close(&before);
    assert_int_equal(spate_session_bus(&stream, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "topic shop._schemas, position"));
    assert_null(stream.publisher.stream); /* the next attempt opens and reads anew */
    assert_null(stream.publisher.bus);
}

static void put_epoch(struct spate_publisher *publisher, uint64_t number)
{
    struct spate_epoch epoch = {.epoch = number,
                                .end = 100,
                                .source = spate_slice_str("shop"),
                                .uuid = spate_slice_str("00000000-0000-4000-8000-000000000000"),
                                .why = spate_slice_str("test")};

    epoch.identity.system = epoch.identity.database = epoch.identity.slot = epoch.identity.publication =
        spate_slice_str("x");
    assert_int_equal(spate_publisher_schemas_epoch(publisher, &epoch, &err), SPATE_OK);
    schemas_durable(publisher);
}

/* What it publishes from then on every reader drops; confirming it would lose it without a word. */
static void K15_a_newer_epoch_of_somebody_else_ends_the_stream(void **state)
{
    (void)state;
    assert_int_equal(spate_session_bus(&stream, &err), SPATE_OK);
    put_epoch(&stream.publisher, 1);
    assert_int_equal(spate_schemas_refresh(&stream, &err), SPATE_OK);
    stream.tx.epoch = stream.epoch.epoch.epoch;
    assert_int_equal(stream.tx.epoch, 1);
    assert_int_equal(spate_schemas_glance(&stream, &err), SPATE_OK);
    put_epoch(&stream.publisher, 2);
    assert_int_equal(spate_schemas_glance(&stream, &err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
    assert_non_null(strstr(err.text, "another connector has opened epoch 2"));
}

/* Whoever names a table cannot write facts of his own into the log. */
static void a_table_with_spaces_in_its_name_is_quoted_in_the_log(void **state)
{
    struct spate_table *table = spate_table_new(spate_slice_str("public"), spate_slice_str("a level=error"),
                                                SPATE_IDENTITY_DEFAULT, 1, 0);
    const struct spate_table *version;
    struct spate_cover *cover;
    FILE *log = tmpfile();
    char line[1000] = "";
    bool fresh = false;
    int old = dup(STDERR_FILENO);
    enum spate_rc rc;

    (void)state;
    assert_non_null(log);
    spate_table_set_column(table, 0, spate_slice_str("id"), spate_slice_str("integer"), spate_slice_str(""),
                           23, -1, 4, false, SPATE_CLASS_INT);
    spate_table_seal(table);
    assert_int_equal(spate_cover_new(NULL, table, NULL, 0, &cover, &err), SPATE_OK);
    assert_int_equal(spate_session_bus(&stream, &err), SPATE_OK);
    assert_int_equal(dup2(fileno(log), STDERR_FILENO), STDERR_FILENO);
    rc = spate_stream_offer(&stream, cover, &version, &fresh, &err);
    assert_int_equal(dup2(old, STDERR_FILENO), STDERR_FILENO);
    close(old);
    assert_int_equal(rc, SPATE_OK);
    assert_true(fresh);
    rewind(log);
    while (!strstr(line, "event=schema"))
        assert_non_null(fgets(line, (int)sizeof line, log));
    if (!strstr(line, " table=\"public.a level=error\" v=1 "))
        fail_msg("%s", line);
    fclose(log);
    spate_cover_free(cover);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_read_of_schemas_is_known, set_up, tear_down),
        cmocka_unit_test_setup_teardown(K15_a_newer_epoch_of_somebody_else_ends_the_stream, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_half_read_schemas_topic_leaves_nothing_open, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_table_with_spaces_in_its_name_is_quoted_in_the_log, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
