/* Is this still the stream that the bus holds? Every way in which it is not, and the words for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "connector/epoch.h"
#include "connector/failover.h"

static struct spate_source_state source;
static struct spate_bus_state bus;
static struct spate_epoch_record newest;
static struct spate_err err;

/* A stream in good order: epoch 2, slot confirmed at 0/900, the bus holds all up to 0/1000. */
static int set_up(void **state)
{
    (void)state;
    source = (struct spate_source_state){
        .system = "7001", .timeline = 1, .database = "shop", .database_oid = 5, .wal = 0x2000};
    source.slot.exists = source.slot.has_restart = true;
    strcpy(source.slot.plugin, "pgoutput");
    strcpy(source.slot.database, "shop");
    strcpy(source.slot.status, "reserved");
    source.slot.restart = 0x800;
    source.slot.confirmed = 0x900;
    bus = (struct spate_bus_state){
        .stream_epoch = 2, .greatest_end = 0x1000, .last_n = 7, .last_commit = 0xff0};
    spate_epoch_keep(&newest, &(struct spate_epoch){
                                  .epoch = 2,
                                  .end = 0x500,
                                  .uuid = spate_slice_str("u"),
                                  .why = spate_slice_str("first start"),
                                  .source = spate_slice_str("shop"),
                                  .identity = {.system = spate_slice_str("7001"),
                                               .timeline = 1,
                                               .database = spate_slice_str("shop"),
                                               .database_oid = 5,
                                               .slot = spate_slice_str("spate"),
                                               .publication = spate_slice_str("spate")},
                              });
    err = (struct spate_err){0};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    spate_epoch_drop(&newest);
    return 0;
}

static enum spate_continuity judge(void)
{
    err = (struct spate_err){0};
    return spate_epoch_judge("spate", "spate", &source, &newest, &bus, &err);
}

static void says(enum spate_continuity want, const char *words)
{
    enum spate_continuity got = judge();

    if (got != want || (words && !strstr(err.text, words)))
        fail_msg("wanted %d with \"%s\", got %d: %s", want, words ? words : "", got, err.text);
    if (want == SPATE_CONTINUITY_BROKEN) {
        assert_int_equal(err.exit_code, SPATE_EXIT_FENCED);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_non_null(strstr(err.text, "--new-epoch")); /* always the remedy, in the same breath */
    }
}

static void goes_on_when_slot_and_stream_meet(void **state)
{
    (void)state;
    says(SPATE_CONTINUITY_GOES_ON, NULL);
    source.slot.confirmed = bus.greatest_end; /* exactly met */
    says(SPATE_CONTINUITY_GOES_ON, NULL);
    source.slot.confirmed = 0x100; /* P15: went back in a crash; what comes again is compared */
    says(SPATE_CONTINUITY_GOES_ON, NULL);
    strcpy(source.slot.status, "unreserved");
    says(SPATE_CONTINUITY_GOES_ON, NULL);
}

static void nothing_published_is_a_first_start(void **state)
{
    (void)state;
    spate_epoch_drop(&newest);
    bus = (struct spate_bus_state){.stream_empty = true};
    says(SPATE_CONTINUITY_FIRST, NULL);
    source.slot.exists = false;
    says(SPATE_CONTINUITY_FIRST, NULL);
}

static void an_epoch_that_was_only_half_opened_is_finished(void **state)
{
    (void)state;
    bus = (struct spate_bus_state){.stream_empty = true};
    source.slot.confirmed = newest.epoch.end;
    says(SPATE_CONTINUITY_HALF, NULL);
    bus = (struct spate_bus_state){.stream_epoch = 1, .greatest_end = 0};
    says(SPATE_CONTINUITY_HALF, NULL);
}

static void P58_a_missing_slot(void **state)
{
    (void)state;
    source.slot.exists = false;
    says(SPATE_CONTINUITY_BROKEN, "does not exist");
    assert_non_null(strstr(err.text, "0/1000"));
}

static void P59_K14_a_slot_beyond_the_bus(void **state)
{
    (void)state;
    source.slot.confirmed = bus.greatest_end + 1;
    says(SPATE_CONTINUITY_BROKEN, "beyond the last position the bus holds");
    assert_non_null(strstr(err.text, "between 0/1000 and 0/1001"));
}

static void P60_P61_an_invalidated_slot(void **state)
{
    (void)state;
    strcpy(source.slot.status, "lost");
    says(SPATE_CONTINUITY_BROKEN, "invalidated");
    assert_non_null(strstr(err.text, "5888 bytes of WAL")); /* 0x2000 - 0x900 */
    strcpy(source.slot.status, "reserved");
    strcpy(source.slot.invalidation, "idle_timeout");
    says(SPATE_CONTINUITY_BROKEN, "idle_timeout");
}

static void P73_P76_another_source(void **state)
{
    (void)state;
    strcpy(source.system, "7002");
    says(SPATE_CONTINUITY_BROKEN, "another cluster");
    set_up(state);
    source.timeline = 2;
    says(SPATE_CONTINUITY_BROKEN, "timeline 2");
    set_up(state);
    source.database_oid = 6;
    says(SPATE_CONTINUITY_BROKEN, "another database");
}

/* Only with all of it known: a slot that this server kept in step, and a fork beyond everything published. */
static void P73_P74_a_standby_that_took_over(void **state)
{
    (void)state;
    source.timeline = 2;
    says(SPATE_CONTINUITY_BROKEN, "where the histories parted is not known");
    source.fork = 0x1000;
    says(SPATE_CONTINUITY_BROKEN, "was not kept in step");
    source.slot.synced = true;
    says(SPATE_CONTINUITY_FAILED_OVER, NULL);
    source.fork = 0xfff;
    says(SPATE_CONTINUITY_BROKEN, "the bus goes beyond that");
    source.fork = 0x1000;
    bus.last_commit = 0x1001; /* a transaction of which only the beginning is there */
    says(SPATE_CONTINUITY_BROKEN, "the bus goes beyond that");
    bus.last_commit = 0xff0;
    source.slot.confirmed = 0x1008; /* made anew by the new primary */
    says(SPATE_CONTINUITY_BROKEN, "beyond the last position the bus holds");
    source.slot.confirmed = 0x900;
    strcpy(source.slot.status, "lost");
    says(SPATE_CONTINUITY_BROKEN, "was invalidated");
    strcpy(source.slot.status, "reserved");
    source.timeline = 1;
    newest.epoch.identity.timeline = 3; /* back to an older one: that is a restored backup */
    says(SPATE_CONTINUITY_BROKEN, "timeline 1");
}

static void P73_where_timelines_parted(void **state)
{
    static const char history[] = "1\t0/3000060\tno recovery target specified\n\n"
                                  "2\t16/B374D848\tno recovery target specified\n";

    (void)state;
    assert_int_equal(spate_failover_fork(history, 1), 0x3000060);
    assert_int_equal(spate_failover_fork(history, 2), 0x16B374D848);
    assert_int_equal(spate_failover_fork(history, 3), 0);
    assert_int_equal(spate_failover_fork("", 1), 0);
    assert_int_equal(spate_failover_fork("# a word\n1\tnothing\n", 1), 0);
    assert_int_equal(spate_failover_fork("1\t0/10", 1), 0x10);
}

static void P75_wal_that_went_back(void **state)
{
    (void)state;
    source.wal = bus.greatest_end - 1;
    says(SPATE_CONTINUITY_BROKEN, "WAL went back");
    source.wal = bus.greatest_end;
    bus.last_commit = 0x1800; /* an incomplete transaction at the tail counts, too */
    says(SPATE_CONTINUITY_BROKEN, "WAL went back");
}

static void P29_other_names_are_another_stream(void **state)
{
    (void)state;
    err = (struct spate_err){0};
    assert_int_equal(spate_epoch_judge("spate", "other", &source, &newest, &bus, &err),
                     SPATE_CONTINUITY_BROKEN);
    assert_non_null(strstr(err.text, "publication \"other\""));
    assert_int_equal(spate_epoch_judge("other", "spate", &source, &newest, &bus, &err),
                     SPATE_CONTINUITY_BROKEN);
    /* Another connector that took this one's name by mistake: that its slot is missing is not the point. */
    source.slot.exists = false;
    assert_int_equal(spate_epoch_judge("other", "spate", &source, &newest, &bus, &err),
                     SPATE_CONTINUITY_BROKEN);
    assert_non_null(strstr(err.text, "needs a name of its own"));
}

static void P66_a_slot_that_is_not_ours_to_use(void **state)
{
    (void)state;
    strcpy(source.slot.plugin, "test_decoding");
    says(SPATE_CONTINUITY_UNUSABLE, "test_decoding");
    assert_int_equal(err.exit_code, SPATE_EXIT_REFUSED);
    strcpy(source.slot.plugin, "pgoutput");
    strcpy(source.slot.database, "other");
    says(SPATE_CONTINUITY_UNUSABLE, "belongs to database");
}

static void a_stream_that_was_lost(void **state)
{
    (void)state;
    bus = (struct spate_bus_state){.stream_empty = true};
    says(SPATE_CONTINUITY_BROKEN, "the stream is empty");
}

static void K10_a_topic_that_was_made_anew(void **state)
{
    (void)state;
    bus.remade = true;
    says(SPATE_CONTINUITY_BROKEN, "deleted and made anew");
}

static void K24_retention_that_took_every_proof(void **state)
{
    (void)state;
    bus.undecided = true;
    says(SPATE_CONTINUITY_BROKEN, "retention has removed so much");
}

static void schemas_that_were_lost(void **state)
{
    (void)state;
    bus.stream_epoch = 3;
    says(SPATE_CONTINUITY_BROKEN, "lost its tail");
    spate_epoch_drop(&newest);
    says(SPATE_CONTINUITY_BROKEN, "holds no epoch");
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(goes_on_when_slot_and_stream_meet),
        T(nothing_published_is_a_first_start),
        T(an_epoch_that_was_only_half_opened_is_finished),
        T(P58_a_missing_slot),
        T(P59_K14_a_slot_beyond_the_bus),
        T(P60_P61_an_invalidated_slot),
        T(P73_P76_another_source),
        T(P73_P74_a_standby_that_took_over),
        T(P73_where_timelines_parted),
        T(P75_wal_that_went_back),
        T(P29_other_names_are_another_stream),
        T(P66_a_slot_that_is_not_ours_to_use),
        T(a_stream_that_was_lost),
        T(K10_a_topic_that_was_made_anew),
        T(K24_retention_that_took_every_proof),
        T(schemas_that_were_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
