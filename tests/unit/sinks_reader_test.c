/* The feed over a bus of canned records: beginning, going on, gaps, holes, epochs, garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/log.h"
#include "schemas/snapshot.h"
#include "sinks/reader.h"
#include "tests/support/schemas_fixture.h"

#include <stdio.h>
#include <string.h>

/* Position i is record i, unless retention has taken it. */
enum { MOST = 64 };
static char lines[MOST][600];
static size_t written, oldest, visible;

struct canned {
    struct spate_reader base;
    size_t at;
    bool gap_told;
};
static struct canned canned;

static enum spate_rc canned_next(struct spate_reader *reader, struct spate_message *message,
                                 struct spate_err *err)
{
    struct canned *c = (struct canned *)reader;

    (void)err;
    if (c->at < oldest) {
        *message = (struct spate_message){.kind = SPATE_MESSAGE_GAP, .pos = {c->at}, .next = {oldest}};
        c->at = oldest;
        return SPATE_OK;
    }
    if (c->at >= visible)
        return SPATE_AGAIN;
    *message =
        (struct spate_message){.pos = {c->at}, .next = {c->at + 1}, .value = spate_slice_str(lines[c->at])};
    c->at++;
    return SPATE_OK;
}

static enum spate_rc canned_wait(struct spate_reader *reader, int timeout_ms, struct spate_err *err)
{
    (void)reader, (void)timeout_ms, (void)err;
    return SPATE_AGAIN;
}

static enum spate_rc canned_seek(struct spate_reader *reader, struct spate_start start, struct spate_err *err)
{
    (void)err;
    ((struct canned *)reader)->at = start.from == SPATE_START_AT    ? start.pos.at
                                    : start.from == SPATE_START_NOW ? visible
                                                                    : oldest;
    return SPATE_OK;
}

static struct spate_bus_pos canned_end(struct spate_reader *reader)
{
    (void)reader;
    return (struct spate_bus_pos){visible};
}

static void canned_close(struct spate_reader *reader)
{
    (void)reader;
}

static const struct spate_reader_ops canned_reader = {
    .next = canned_next, .wait = canned_wait, .seek = canned_seek, .end = canned_end, .close = canned_close};

static enum spate_rc canned_open(struct spate_bus *bus, const char *topic, enum spate_visibility see,
                                 struct spate_start start, struct spate_reader **reader,
                                 struct spate_err *err)
{
    (void)bus, (void)topic, (void)err;
    assert_int_equal(see, SPATE_SEE_DURABLE);
    canned = (struct canned){.base = {&canned_reader}};
    *reader = &canned.base;
    return canned_seek(*reader, start, err);
}

static const struct spate_bus_ops canned_ops = {.name = "local", .reader_open = canned_open};
static struct spate_bus bus = {&canned_ops};
static struct spate_table *table;

static void keep(struct spate_buf *buf)
{
    assert_true(written < MOST && buf->len < sizeof lines[0]);
    memcpy(lines[written], buf->data, buf->len);
    lines[written++][buf->len] = 0;
    visible = written;
    spate_buf_fini(buf);
}

static void write_change(uint64_t epoch, uint64_t n, uint64_t commit, uint32_t ordinal, bool ends)
{
    struct spate_value row[] = {T("42"), T("12.50"), T("t"), VALUE_NULL, VALUE_NULL, VALUE_NULL};
    struct spate_change change = fixture_change(SPATE_OP_INSERT, table, NULL, row);
    struct spate_buf buf = {0};
    struct spate_err err = {0};

    change.epoch = epoch;
    change.n = n;
    change.pos = (struct spate_pos){commit, ordinal};
    change.end = ends ? commit + 8 : 0;
    assert_int_equal(spate_encode_change(&buf, &change, &err), SPATE_OK);
    keep(&buf);
}

static void write_heartbeat(uint64_t epoch, uint64_t n, uint64_t end)
{
    struct spate_heartbeat beat = {
        .at = n, .epoch = epoch, .end = end, .wall_us = FIXTURE_US, .source = S("shop")};
    struct spate_buf buf = {0};

    spate_encode_heartbeat(&buf, &beat);
    keep(&buf);
}

static void write_epoch(uint64_t number, bool continues, uint64_t n)
{
    char uuid[37];
    struct spate_epoch epoch = {.at = n,
                                .epoch = number,
                                .end = number * 1000,
                                .wall_us = FIXTURE_US,
                                .source = S("shop"),
                                .why = S("test"),
                                .previous = continues ? SPATE_PREVIOUS_CONTINUES : SPATE_PREVIOUS_BROKEN,
                                .previous_epoch = number - 1,
                                .previous_n = n,
                                .identity = {.system = S("7"),
                                             .timeline = 1,
                                             .database = S("shop"),
                                             .database_oid = 5,
                                             .slot = S("spate"),
                                             .publication = S("spate")}};
    struct spate_buf buf = {0};

    snprintf(uuid, sizeof uuid, "00000000-0000-4000-8000-%012u", (unsigned)number);
    epoch.uuid = spate_slice_str(uuid);
    spate_encode_epoch(&buf, &epoch);
    keep(&buf);
}

static struct spate_feed feed;

static int set_up(void **state)
{
    struct spate_err err = {0};

    (void)state;
    spate_log_level_set(SPATE_LOG_ERROR);
    written = oldest = visible = 0;
    table = fixture_orders(SPATE_IDENTITY_DEFAULT);
    return spate_feed_open(&feed, &bus, "shop", &err) != SPATE_OK;
}

static int tear_down(void **state)
{
    (void)state;
    spate_feed_close(&feed);
    spate_table_free(table);
    return 0;
}

static void next_is(int kind, uint64_t n, bool boundary)
{
    struct spate_event event;
    struct spate_err err = {0};

    assert_int_equal(spate_feed_next(&feed, &event, &err), SPATE_OK);
    assert_int_equal(event.kind, kind);
    assert_int_equal(feed.follower.last.n, n);
    assert_int_equal(event.boundary, boundary);
}

static void nothing_more(void)
{
    struct spate_event event;
    struct spate_err err = {0};

    assert_int_equal(spate_feed_next(&feed, &event, &err), SPATE_AGAIN);
}

static void fails_with(enum spate_exit exit_code, const char *first, const char *second)
{
    struct spate_event event;
    struct spate_err err = {0};

    assert_int_equal(spate_feed_next(&feed, &event, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_int_equal(err.exit_code, exit_code);
    assert_non_null(strstr(err.text, first));
    assert_non_null(strstr(err.text, second));
}

static void begin(uint64_t epoch)
{
    struct spate_err err = {0};

    assert_int_equal(spate_feed_begin(&feed, epoch, "00000000-0000-4000-8000-000000000001", &err), SPATE_OK);
}

static void resume(uint64_t epoch, uint64_t n, uint64_t commit, uint32_t ordinal, uint64_t at)
{
    struct spate_mark mark = {.place = {.epoch = epoch, .n = n, .pos = {commit, ordinal}}, .at = {at}};
    struct spate_err err = {0};

    snprintf(mark.uuid, sizeof mark.uuid, "00000000-0000-4000-8000-%012u", (unsigned)epoch);
    assert_int_equal(spate_feed_resume(&feed, &mark, &err), SPATE_OK);
}

static void a_new_sink_begins_at_the_epoch(void **state)
{
    (void)state;
    write_change(1, 5, 700, 1, true); /* of an older epoch */
    write_epoch(2, false, 5);
    write_change(2, 1, 2100, 1, false);
    write_change(2, 2, 2100, 2, true);
    begin(2);
    next_is(SPATE_EVENT_EPOCH, 0, true);
    assert_int_equal(feed.mark.at.at, 1);
    next_is(SPATE_EVENT_CHANGE, 1, false);
    next_is(SPATE_EVENT_CHANGE, 2, true);
    assert_int_equal(feed.mark.at.at, 3);
    nothing_more();
}

static void a_new_sink_begins_inside_a_running_stream(void **state)
{
    (void)state;
    write_epoch(1, false, 0);
    write_change(1, 1, 1100, 1, true);
    write_change(1, 2, 1200, 1, false);
    write_change(1, 3, 1200, 2, true);
    write_change(1, 4, 1300, 1, true);
    oldest = 2; /* retention has taken the beginning: the transaction it cut is passed by */
    begin(1);
    next_is(SPATE_EVENT_PASSED, 3, true);
    next_is(SPATE_EVENT_CHANGE, 4, true);

    written = visible = oldest = 0;
    write_change(1, 8, 1200, 2, false);
    write_heartbeat(1, 9, 1400);
    write_change(1, 10, 1500, 1, true);
    begin(1);
    next_is(SPATE_EVENT_PASSED, 9, true);
    next_is(SPATE_EVENT_CHANGE, 10, true);
}

static void a_known_sink_goes_on_after_its_mark(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_change(1, 2, 1200, 1, true);
    write_change(1, 1, 1100, 1, true); /* a zombie */
    write_change(1, 3, 1300, 1, true);
    resume(1, 2, 1200, 1, 1);
    next_is(SPATE_EVENT_CHANGE, 3, true);
    assert_int_equal(feed.count.duplicates, 1);
    nothing_more();
}

static void holes_heal_or_make_it_stale(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_change(1, 3, 1300, 1, true); /* n=2 was lost on the way */
    resume(1, 1, 1100, 1, 0);
    nothing_more();
    assert_int_equal(feed.count.holes, 1);
    write_change(1, 2, 1200, 1, true);
    write_change(1, 3, 1300, 1, true);
    next_is(SPATE_EVENT_CHANGE, 2, true);
    next_is(SPATE_EVENT_CHANGE, 3, true);
    nothing_more();

    write_change(1, 6, 1600, 1, true);
    nothing_more();
    feed.hole_ms -= SPATE_HOLE_MS + 1; /* a minute later */
    fails_with(SPATE_EXIT_FENCED, "STALE: changes n=4 to n=5", "--restart");
}

static void a_gap_names_what_was_missed(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 9; n++)
        write_change(1, n, 1000 + 100 * n, 1, true);
    resume(1, 2, 1200, 1, 1);
    oldest = 5; /* n=3 to n=5 are gone */
    fails_with(SPATE_EXIT_FENCED, "STALE: changes n=3 to n=5", "retention took");

    /* Retention took the mark's own record, but nothing behind it: nothing is missed. */
    resume(1, 2, 1200, 1, 1);
    oldest = 2;
    next_is(SPATE_EVENT_CHANGE, 3, true);
}

static void a_gap_before_a_heartbeat_counts_too(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_change(1, 2, 1200, 1, true);
    write_change(1, 3, 1300, 1, true);
    write_heartbeat(1, 3, 1400);
    resume(1, 1, 1100, 1, 0);
    oldest = 3;
    fails_with(SPATE_EXIT_FENCED, "changes n=2 to n=3", "--restart");
}

static void another_history_is_refused(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_change(1, 2, 1250, 1, true); /* after a restored backup: another n=2 */
    resume(1, 2, 1200, 1, 1);
    fails_with(SPATE_EXIT_FENCED, "history diverged", "n=2");
}

static void a_lost_end_is_noticed(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    resume(1, 7, 1700, 1, 40);
    nothing_more();
    feed.hole_ms -= SPATE_HOLE_MS + 1;
    fails_with(SPATE_EXIT_FENCED, "the bus has lost its end", "--restart");
}

static void epochs_are_entered_or_refused(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_change(1, 2, 1200, 1, false); /* never completed */
    write_epoch(2, true, 1);
    write_change(1, 3, 1200, 2, true); /* a zombie goes on */
    write_change(2, 1, 2100, 1, true);
    write_epoch(3, false, 1);
    resume(1, 1, 1100, 1, 0);
    next_is(SPATE_EVENT_CHANGE, 2, false);
    next_is(SPATE_EVENT_EPOCH, 0, true);
    assert_string_equal(feed.mark.uuid, "00000000-0000-4000-8000-000000000002");
    next_is(SPATE_EVENT_CHANGE, 1, true);
    assert_int_equal(feed.count.old_epochs, 1);
    fails_with(SPATE_EXIT_FENCED, "STALE: epoch 3", "--restart");
}

static void K29_garbage_stops_it_with_the_place(void **state)
{
    const struct spate_bus_pos second = {1};

    (void)state;
    write_change(1, 1, 1100, 1, true);
    snprintf(lines[written++], sizeof lines[0], "%s", "{\"hello\":1}");
    visible = written;
    resume(1, 1, 1100, 1, 0);
    write_change(1, 2, 1200, 1, true);
    fails_with(SPATE_EXIT_REFUSED, "topic shop at local:0000000000000001",
               "--skip NAME=local:0000000000000001");

    /* A person has looked at it. */
    feed.skips = &second;
    feed.skip_count = 1;
    resume(1, 1, 1100, 1, 0);
    next_is(SPATE_EVENT_CHANGE, 2, true);
    assert_int_equal(feed.count.skipped, 1);

    /* It was a change that was damaged: the numbers behind it tell. */
    written = 2;
    write_change(1, 3, 1300, 1, true);
    resume(1, 1, 1100, 1, 0);
    nothing_more();
    assert_int_equal(feed.count.holes, 1);
    feed.hole_ms -= SPATE_HOLE_MS + 1;
    fails_with(SPATE_EXIT_FENCED, "STALE: changes n=2 to n=2", "--restart");

    /* What can be read is never skipped, nor what a newer version wrote. */
    written = 1;
    write_change(1, 2, 1200, 1, true);
    resume(1, 1, 1100, 1, 0);
    next_is(SPATE_EVENT_CHANGE, 2, true);
    snprintf(lines[1], sizeof lines[0], "%s", "{\"spate\":2,\"op\":\"insert\",\"n\":2}");
    resume(1, 1, 1100, 1, 0);
    fails_with(SPATE_EXIT_REFUSED, "topic shop at local:0000000000000001", "upgrade this sink");
}

static void write_begin(uint64_t epoch, uint64_t n, const char *to, const char *request)
{
    struct spate_snapshot_begin message = {.head = {.at = n,
                                                    .epoch = epoch,
                                                    .to = spate_slice_str(to),
                                                    .request = spate_slice_str(request),
                                                    .wall_us = FIXTURE_US,
                                                    .source = S("shop")},
                                           .end = 1500};
    struct spate_buf buf = {0};

    spate_encode_snapshot_begin(&buf, &message);
    keep(&buf);
}

static void a_sink_that_asks_begins_at_its_own_snapshot(void **state)
{
    struct spate_err err = {0};

    (void)state;
    write_epoch(1, false, 0);
    write_change(1, 1, 1100, 1, true);
    write_begin(1, 1, "NAME", "r1"); /* before it asked: of an earlier life, by chance of the same name */
    feed.request = "r1";
    assert_int_equal(spate_feed_await(&feed, false, &err), SPATE_OK);
    spate_feed_epoch(&feed, 1, "00000000-0000-4000-8000-000000000001");
    write_change(1, 2, 1200, 1, true);
    write_heartbeat(1, 2, 1300);
    write_begin(1, 2, "other", "r1");
    write_begin(1, 2, "NAME", "r0");
    nothing_more();
    /* The stream goes on in another epoch meanwhile: what was asked for comes in that one. */
    write_epoch(2, true, 2);
    write_begin(1, 2, "NAME", "r1"); /* a zombie's */
    nothing_more();
    write_begin(2, 0, "NAME", "r1");
    write_change(2, 1, 2100, 1, true);
    next_is(SPATE_EVENT_SNAPSHOT, 0, true);
    assert_int_equal(feed.mark.place.epoch, 2);
    assert_int_equal(feed.mark.place.pos.commit_lsn, 1500);
    assert_string_equal(feed.mark.uuid, "00000000-0000-4000-8000-000000000002");
    next_is(SPATE_EVENT_CHANGE, 1, true);

    /* Its target failed before that was stored: it waits again from the same place. */
    assert_int_equal(spate_feed_await(&feed, true, &err), SPATE_OK);
    spate_feed_epoch(&feed, 2, "00000000-0000-4000-8000-000000000002");
    next_is(SPATE_EVENT_SNAPSHOT, 0, true);

    /* Retention took what came meanwhile: what was asked for may be in it. */
    oldest = visible;
    assert_int_equal(spate_feed_await(&feed, true, &err), SPATE_OK);
    nothing_more();
    assert_true(feed.gap);
}

static void what_is_for_others_is_passed_by(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_begin(1, 1, "other", "r9");
    write_begin(1, 1, "NAME", "r1");
    write_begin(1, 0, "NAME", "r1"); /* a zombie's, of a place that was passed */
    write_heartbeat(1, 1, 1400);
    write_begin(1, 2, "NAME", "r1"); /* beyond what was heard */
    resume(1, 1, 1100, 1, 0);
    feed.request = "r1";
    next_is(SPATE_EVENT_PASSED, 1, true);
    assert_int_equal(feed.mark.at.at, 1);
    next_is(SPATE_EVENT_SNAPSHOT, 1, false); /* the caller moves the mark */
    assert_int_equal(feed.mark.at.at, 1);
    feed.holding = true; /* a chunk is open: whatever stands in it is no place to go on from */
    next_is(SPATE_EVENT_PASSED, 1, false);
    assert_int_equal(feed.mark.at.at, 1);
    assert_int_equal(feed.count.duplicates, 1);
    assert_true(feed.behind); /* its rows would leave out what this one has passed */
    nothing_more();
    assert_int_equal(feed.count.holes, 1);
}

static void an_end_that_a_snapshot_makes_up_for_is_told_apart(void **state)
{
    (void)state;
    write_change(1, 1, 1100, 1, true);
    write_epoch(2, false, 1);
    resume(1, 1, 1100, 1, 0);
    fails_with(SPATE_EXIT_FENCED, "STALE", "--restart");
    assert_true(feed.stale);
    written = 1;
    write_change(1, 2, 1050, 1, true);
    resume(1, 1, 1100, 1, 0);
    fails_with(SPATE_EXIT_FENCED, "history diverged", "n=2");
    assert_false(feed.stale); /* which of two histories is the right one, only a person knows */
}

int main(void)
{
#define FEED(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        FEED(a_new_sink_begins_at_the_epoch),
        FEED(a_new_sink_begins_inside_a_running_stream),
        FEED(a_known_sink_goes_on_after_its_mark),
        FEED(holes_heal_or_make_it_stale),
        FEED(a_gap_names_what_was_missed),
        FEED(a_gap_before_a_heartbeat_counts_too),
        FEED(another_history_is_refused),
        FEED(a_lost_end_is_noticed),
        FEED(epochs_are_entered_or_refused),
        FEED(K29_garbage_stops_it_with_the_place),
        FEED(a_sink_that_asks_begins_at_its_own_snapshot),
        FEED(what_is_for_others_is_passed_by),
        FEED(an_end_that_a_snapshot_makes_up_for_is_told_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
