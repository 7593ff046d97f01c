/* What is worth a word about the slot, and what is not (P60). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "connector/watch.h"

#define MIB ((int64_t)1 << 20)

static struct spate_watch_memory memory;
static struct spate_slot_look look;
static char said[8192];

static void tell(void *arg, enum spate_log_level level, const char *event, const char *text)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    size_t len = strlen(said);

    (void)arg;
    snprintf(said + len, sizeof said - len, "%s %s: %s\n", levels[level], event, text);
}

static int set_up(void **state)
{
    (void)state;
    memory = (struct spate_watch_memory){0};
    look = (struct spate_slot_look){.looked_us = 1,
                                    .exists = true,
                                    .active = 1,
                                    .status = SPATE_WAL_RESERVED,
                                    .safe_bytes = -1,
                                    .keep_bytes = -1};
    return 0;
}

/* What is said at the `times`-th look like this, and nothing at those before. */
static const char *looks(int times)
{
    for (int i = 1; i <= times; i++) {
        assert_string_equal(said, "");
        spate_watch_judge(&memory, &look, "spate", 64 * MIB, tell, NULL);
    }
    return said;
}

static void expect(int times, const char *event, const char *words)
{
    said[0] = '\0';
    looks(times);
    if (strncmp(said, event, strlen(event)) != 0 || !strstr(said, words) ||
        strchr(said, '\n') != said + strlen(said) - 1)
        fail_msg("expected %s ... %s, said: %s", event, words, said);
}

static void expect_silence(int times)
{
    said[0] = '\0';
    looks(times);
    assert_string_equal(said, "");
}

static void retain(int64_t bytes, int64_t behind)
{
    look.retained_bytes = bytes;
    look.behind_bytes = behind;
}

static void growth_is_told_at_each_doubling(void **state)
{
    (void)state;
    retain(64 * MIB - 1, 0);
    expect_silence(5);
    retain(64 * MIB, 64 * MIB);
    expect(3, "warn slot-retains", "keeps 64 MiB");
    assert_non_null(strstr(said, "slot \"spate\""));
    assert_non_null(strstr(said, "only the disk's end"));
    retain(127 * MIB, 127 * MIB);
    expect_silence(5);
    retain(700 * MIB, 700 * MIB); /* three doublings at once: one word */
    expect(3, "warn slot-retains", "keeps 700 MiB");
    expect_silence(5);
    retain(32 * MIB, 0);
    expect_silence(5); /* not yet half of the first threshold */
    retain(31 * MIB, 0);
    expect(1, "info slot-released", "keeps 31 MiB");
    expect_silence(5);
}

/* A busy source writes much between two heartbeats: that comes and goes, and is no news. */
static void what_does_not_last_is_not_told(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        retain(500 * MIB, 500 * MIB);
        expect_silence(2);
        retain(MIB, MIB);
        expect_silence(1);
    }
}

static void growing_anew_is_told_anew(void **state)
{
    (void)state;
    retain(1024 * MIB, 0);
    expect(3, "warn slot-retains", "1024 MiB");
    retain(100 * MIB, 0);
    expect_silence(3);
    retain(1024 * MIB, 0);
    expect(3, "warn slot-retains", "1024 MiB");
}

static void the_words_say_whose_fault_it_is(void **state)
{
    (void)state;
    look.keep_bytes = 10240 * MIB;
    look.safe_bytes = 9000 * MIB;
    retain(100 * MIB, 99 * MIB);
    expect(3, "warn slot-retains", "The connector is behind");
    assert_non_null(strstr(said, "max_slot_wal_keep_size is 10240 MiB"));
    retain(200 * MIB, 3 * MIB);
    expect(3, "warn slot-retains", "pg_prepared_xacts");
    assert_non_null(strstr(said, "connector is not behind"));
}

static void the_status_is_told_when_it_changes(void **state)
{
    (void)state;
    look.keep_bytes = 100 * MIB;
    look.safe_bytes = 90 * MIB;
    expect_silence(3);
    look.status = SPATE_WAL_EXTENDED;
    expect(1, "warn slot-extended", "max_wal_size");
    expect_silence(3);
    look.status = SPATE_WAL_UNRESERVED;
    expect(1, "warn slot-in-danger", "pg_reload_conf()");
    look.status = SPATE_WAL_EXTENDED;
    expect(1, "info slot-recovered", "extended again");
    look.status = SPATE_WAL_RESERVED;
    expect(1, "info slot-recovered", "reserved again");
    look.status = SPATE_WAL_UNKNOWN;
    expect_silence(1);
    look.status = SPATE_WAL_LOST;
    look.safe_bytes = -1;
    look.retained_bytes = -1;
    expect(1, "error slot-lost", "max_slot_wal_keep_size is 100 MiB");
    expect_silence(3);
}

static void little_room_is_told_before_the_slot_is_taken(void **state)
{
    (void)state;
    look.keep_bytes = 1000 * MIB;
    look.safe_bytes = 200 * MIB;
    expect_silence(3);
    look.safe_bytes = 199 * MIB;
    expect(1, "warn slot-room", "199 MiB more WAL");
    expect_silence(3);
    look.safe_bytes = 49 * MIB;
    expect(1, "warn slot-room", "that is 4 % of");
    look.safe_bytes = 250 * MIB;
    expect_silence(3); /* near the edge it is not told again and again */
    look.safe_bytes = 400 * MIB;
    expect(1, "info slot-room-again", "400 MiB");
    look.safe_bytes = 0;
    expect(1, "warn slot-room", "that is 0 %");
}

/* Without a limit nothing is scarce; a slot that is not there is for the data plane to explain, and another
 * one of its name begins anew. */
static void nothing_is_said_of_what_is_not_known(void **state)
{
    (void)state;
    look.safe_bytes = 0;
    expect_silence(3);
    look.keep_bytes = 100 * MIB;
    look.safe_bytes = -1;
    expect_silence(3);
    look.retained_bytes = -1;
    expect_silence(3);
    retain(64 * MIB, 0);
    expect(3, "warn slot-retains", "64 MiB");
    look.exists = false;
    expect_silence(3);
    look.exists = true;
    expect(3, "warn slot-retains", "64 MiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(growth_is_told_at_each_doubling, set_up),
        cmocka_unit_test_setup(what_does_not_last_is_not_told, set_up),
        cmocka_unit_test_setup(growing_anew_is_told_anew, set_up),
        cmocka_unit_test_setup(the_words_say_whose_fault_it_is, set_up),
        cmocka_unit_test_setup(the_status_is_told_when_it_changes, set_up),
        cmocka_unit_test_setup(little_room_is_told_before_the_slot_is_taken, set_up),
        cmocka_unit_test_setup(nothing_is_said_of_what_is_not_known, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
