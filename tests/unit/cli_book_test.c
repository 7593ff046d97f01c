/* What _control tells of requests, as a person sees it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/book.h"

#define SECOND INT64_C(1000000)

static struct spate_book book;

static int tear_down(void **state)
{
    (void)state;
    spate_book_fini(&book);
    return 0;
}

static struct spate_book_entry *hear(const char *rest, int64_t wall_us)
{
    struct spate_buf line = {0};
    struct spate_book_entry *entry;

    spate_buf_printf(&line, "{\"spate\":1,%s}", rest);
    entry = spate_book_read(&book, spate_buf_view(&line), wall_us);
    spate_buf_fini(&line);
    return entry;
}

static void says(const struct spate_book_entry *entry, const char *words)
{
    struct spate_buf out = {0};

    spate_book_describe(entry, &out);
    assert_string_equal(spate_buf_str(&out), words);
    spate_buf_fini(&out);
}

#define REQUEST                                                                                              \
    "\"op\":\"request\",\"request\":\"r1\",\"sink\":\"billing\",\"tables\":[{\"schema\":\"public\","         \
    "\"table\":\"orders\"}]"
#define PROGRESS                                                                                             \
    "\"op\":\"progress\",\"to\":\"billing\",\"request\":\"r1\",\"rows\":1200,\"estimate\":50000,"            \
    "\"percent\":2.4,\"rate\":800.0,\"left_s\":61,\"tables\":[],\"state\":"

static void a_request_is_followed_to_its_end(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, 5 * SECOND);

    (void)state;
    assert_string_equal(entry->requester, "billing");
    assert_string_equal(entry->tables, "public.orders");
    assert_true(entry->asked_by_requester && !entry->answered && !entry->over);
    hear("\"op\":\"accepted\",\"to\":\"billing\",\"request\":\"r1\",\"tables\":[{\"schema\":\"public\","
         "\"table\":\"orders\",\"rows\":50000,\"pages\":700}]",
         6 * SECOND);
    assert_true(entry->answered);
    says(entry, "accepted, 0 rows of about 50000, 0.0 %");
    hear(PROGRESS "\"reading\"", 7 * SECOND);
    says(entry, "reading, 1200 rows of about 50000, 2.4 %, 800 rows/s, 61 s left");
    hear(REQUEST, 8 * SECOND); /* sent again, and answered again: it goes on */
    hear("\"op\":\"accepted\",\"to\":\"billing\",\"request\":\"r1\",\"tables\":[{\"schema\":\"public\","
         "\"table\":\"orders\",\"rows\":50000,\"pages\":700}]",
         8 * SECOND);
    assert_string_equal(entry->state, "reading");
    hear(PROGRESS "\"waiting\",\"why\":\"a lock on public.orders\"", 9 * SECOND);
    says(entry, "waiting (a lock on public.orders), 1200 rows of about 50000, 2.4 %, 800 rows/s, 61 s left");
    hear("\"op\":\"finished\",\"request\":\"r1\",\"sink\":\"billing\"", 10 * SECOND);
    assert_true(entry->over && !entry->settled);
    says(entry, "finished, 1200 rows");
    assert_int_equal(entry->asked_us, 5 * SECOND);
    assert_int_equal(entry->heard_us, 10 * SECOND);
    assert_int_equal(book.count, 1);
    assert_ptr_equal(spate_book_find(&book, "r1"), entry);
    assert_null(spate_book_find(&book, "r2"));
}

/* The wish goes to a sink, which then asks under the same id. */
static void a_wish_for_a_sink_is_one_request(void **state)
{
    struct spate_book_entry *entry =
        hear("\"op\":\"request\",\"to\":\"billing\",\"request\":\"r1\",\"sink\":\"snapshot-1\"", SECOND);

    (void)state;
    assert_string_equal(entry->requester, "billing");
    assert_string_equal(entry->asker, "snapshot-1");
    assert_false(entry->asked_by_requester);
    assert_ptr_equal(hear(REQUEST, SECOND), entry);
    assert_true(entry->asked_by_requester);
    hear("\"op\":\"refused\",\"to\":\"billing\",\"request\":\"r1\",\"reason\":\"no such table\",\"remedy\":"
         "\"make it\"",
         2 * SECOND);
    assert_true(entry->over);
    assert_string_equal(entry->reason, "no such table");
    assert_string_equal(entry->remedy, "make it");
}

static void what_nobody_answers_is_over_after_an_hour(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, SECOND);

    (void)state;
    spate_book_settle(&book, 3500 * SECOND);
    assert_false(entry->over);
    spate_book_settle(&book, 3700 * SECOND);
    assert_true(entry->over);
    assert_string_equal(entry->state, "expired");
    hear(REQUEST, 3701 * SECOND); /* a new life */
    assert_false(entry->over);
    assert_string_equal(entry->state, "asked");
}

/* The connector forgets what is under way when it starts again; who still wants it asks again. */
static void what_a_restart_leaves_is_over_unless_it_is_asked_again(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, SECOND);

    (void)state;
    hear("\"op\":\"accepted\",\"to\":\"billing\",\"request\":\"r1\",\"tables\":[]", 2 * SECOND);
    spate_book_settle(&book, 500 * SECOND);
    assert_false(entry->over); /* the connector is away: it may come back */
    hear("\"op\":\"started\",\"epoch\":1", 501 * SECOND);
    spate_book_settle(&book, 550 * SECOND);
    assert_false(entry->over);
    spate_book_settle(&book, 562 * SECOND);
    assert_true(entry->over);
    assert_string_equal(entry->state, "expired");

    hear(REQUEST, 563 * SECOND);
    hear("\"op\":\"started\",\"epoch\":1", 564 * SECOND);
    hear("\"op\":\"accepted\",\"to\":\"billing\",\"request\":\"r1\",\"tables\":[]", 565 * SECOND);
    spate_book_settle(&book, 900 * SECOND);
    assert_false(entry->over);

    hear("\"op\":\"started\",\"epoch\":1", 1000 * SECOND);
    hear("\"op\":\"started\",\"epoch\":1", 2000 * SECOND); /* the next restart does not bring it back */
    spate_book_settle(&book, 2001 * SECOND);
    assert_string_equal(entry->state, "expired");
    hear(REQUEST, 2002 * SECOND);
    assert_false(entry->over);
}

static void a_newer_request_of_a_name_takes_the_place_of_the_older(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, SECOND);

    (void)state;
    hear("\"op\":\"request\",\"request\":\"r2\",\"sink\":\"search\",\"tables\":[{\"schema\":\"public\","
         "\"table\":\"t\"}]",
         SECOND);
    assert_false(entry->over);
    hear("\"op\":\"request\",\"request\":\"r3\",\"sink\":\"billing\",\"tables\":[{\"schema\":\"public\","
         "\"table\":\"t\"}]",
         SECOND);
    assert_true(entry->over);
    assert_string_equal(entry->state, "cancelled");
}

static void a_request_ends_in_many_ways(void **state)
{
    static const char *const states[] = {"finished", "cancelled", "failed", "expired", "replaced"};

    (void)state;
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
        struct spate_buf line = {0};
        struct spate_book_entry *entry = hear(PROGRESS "\"reading\"", SECOND);

        assert_false(entry->over);
        spate_buf_printf(&line, PROGRESS "\"%s\"", states[i]);
        hear(spate_buf_str(&line), 2 * SECOND);
        assert_true(entry->over);
        assert_string_equal(entry->state, states[i]);
        spate_buf_fini(&line);
    }
}

/* The requester's last word, and the connector's: it may not have heard a `cancel`, and goes on. */
static void an_end_is_settled_by_the_connector(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, SECOND);

    (void)state;
    hear(PROGRESS "\"reading\"", 2 * SECOND);
    assert_false(entry->settled);
    hear("\"op\":\"cancel\",\"request\":\"r1\",\"sink\":\"billing\"", 3 * SECOND);
    assert_true(entry->over && !entry->settled);
    hear(PROGRESS "\"reading\"", 4 * SECOND);
    assert_false(entry->over);
    hear(PROGRESS "\"cancelled\"", 5 * SECOND);
    assert_true(entry->over && entry->settled);
}

static void silence_is_seen(void **state)
{
    struct spate_book_entry *entry = hear(REQUEST, 5 * SECOND);

    (void)state;
    hear(PROGRESS "\"reading\"", 6 * SECOND);
    assert_false(spate_book_silent(entry, 6 * SECOND + SPATE_BOOK_SILENT_US));
    assert_true(spate_book_silent(entry, 6 * SECOND + SPATE_BOOK_SILENT_US + 1));
    hear(PROGRESS "\"finished\"", 7 * SECOND);
    assert_false(spate_book_silent(entry, 70 * SECOND));
}

static void other_lines_are_passed_by(void **state)
{
    (void)state;
    assert_null(hear("\"op\":\"started\",\"epoch\":1", SECOND));
    assert_int_equal(book.starts, 1);
    assert_null(hear("\"op\":\"later\",\"request\":\"r1\"", SECOND));
    assert_null(hear("\"op\":\"request\"", SECOND));
    assert_null(spate_book_read(&book, spate_slice_str("hello"), SECOND));
    assert_int_equal(book.unreadable, 2);
    assert_int_equal(book.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_request_is_followed_to_its_end, tear_down),
        cmocka_unit_test_teardown(a_wish_for_a_sink_is_one_request, tear_down),
        cmocka_unit_test_teardown(what_nobody_answers_is_over_after_an_hour, tear_down),
        cmocka_unit_test_teardown(what_a_restart_leaves_is_over_unless_it_is_asked_again, tear_down),
        cmocka_unit_test_teardown(a_newer_request_of_a_name_takes_the_place_of_the_older, tear_down),
        cmocka_unit_test_teardown(a_request_ends_in_many_ways, tear_down),
        cmocka_unit_test_teardown(an_end_is_settled_by_the_connector, tear_down),
        cmocka_unit_test_teardown(silence_is_seen, tear_down),
        cmocka_unit_test_teardown(other_lines_are_passed_by, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
