/* What is judged of a server: versions, roles and settings that no server of the tests has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "connector/check.h"

#include <stdio.h>
#include <string.h>

static const struct spate_server_facts good = {.version = 150018,
                                               .wal_level = "logical",
                                               .encoding = "UTF8",
                                               .user = "spate",
                                               .application = "spate_shop",
                                               .sync_standbys = "",
                                               .commit = "on",
                                               .may_replicate = true,
                                               .keep_mib = 50000,
                                               .sender_timeout_ms = 60000,
                                               .slots_most = 10,
                                               .senders_most = 10,
                                               .role_connections = -1,
                                               .role_expires_s = INT64_MAX};

/* The kinds that are found, with their severities: "wal-level:error table:note". */
static const char *found(struct spate_server_facts facts)
{
    static char text[600];
    const struct spate_connector_config config = {.snapshots = {.parallel = 2}};
    struct spate_findings list = {0};

    text[0] = '\0';
    spate_check_judge_server(&facts, &config, &list);
    for (size_t i = 0; i < list.count; i++) {
        const struct spate_finding *finding = &list.at[i];

        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s:%s", i ? " " : "", finding->kind,
                 spate_severity_name(finding->severity));
        assert_non_null(finding->why);
        assert_true(finding->fix || finding->severity == SPATE_FINDING_NOTE);
    }
    spate_findings_fini(&list);
    return text;
}

static void a_good_server_is_no_news(void **state)
{
    (void)state;
    assert_string_equal(found(good), "");
}

static void versions_that_lose_changes_or_are_too_old(void **state)
{
    static const struct {
        int version;
        const char *found;
    } cases[] = {
        {130021, "server-version:error"},
        {140017, "server-version:warning"},
        {140018, ""},
        {150012, "server-version:warning"},
        {150013, ""},
        {160008, "server-version:warning"},
        {160009, ""},
        {170004, "server-version:warning"},
        {170005, ""},
        {180000, ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_server_facts facts = good;

        facts.version = cases[i].version;
        assert_string_equal(found(facts), cases[i].found);
    }
}

static void a_standby_is_a_source_from_16_on(void **state)
{
    struct spate_server_facts facts = good;

    (void)state;
    facts.standby = true;
    assert_string_equal(found(facts), "standby:error");
    facts.version = 160009;
    assert_string_equal(found(facts), "standby:note");
}

static void settings_that_hurt_one_day(void **state)
{
    struct spate_server_facts facts = good;

    (void)state;
    facts.idle_slot_ms = 3600000; /* 18 */
    assert_string_equal(found(facts), "slot-idle-timeout:warning");
    facts = good;
    facts.encoding = "SQL_ASCII";
    assert_string_equal(found(facts), "server-encoding:note");
    facts = good;
    facts.slots = 10;
    assert_string_equal(found(facts), "slots-used-up:warning");
    facts.slot_exists = true;
    assert_string_equal(found(facts), "");
    facts = good;
    facts.superuser = true;
    assert_string_equal(found(facts), "role-superuser:note");
}

static void synchronous_standby_names_are_names(void **state)
{
    static const struct {
        const char *names;
        bool ours;
    } cases[] = {
        {"", false},
        {"*", true},
        {"ANY 1 (*)", true},
        {"spate_shop", true},
        {"SPATE_Shop", true},
        {"spate_shop2", false},
        {"my_spate_shop", false},
        {"FIRST 2 (a, spate_shop, b)", true},
        {"ANY 1 (a,b)", false},
        {"\"spate_shop\"", true},
        {"\"a \"\"b\", \"spate shop\"", false},
        {"\"spate", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (spate_check_is_standby_name(cases[i].names, "spate_shop") != cases[i].ours)
            fail_msg("%s", cases[i].names);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_server_is_no_news),
        cmocka_unit_test(versions_that_lose_changes_or_are_too_old),
        cmocka_unit_test(a_standby_is_a_source_from_16_on),
        cmocka_unit_test(settings_that_hurt_one_day),
        cmocka_unit_test(synchronous_standby_names_are_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
