/* What sinks say of themselves: each by itself, and the process as a whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/log.h"
#include "sinks/status.h"

static struct spate_sink_facts streaming(const char *name)
{
    struct spate_sink_facts facts = {.state = SPATE_SINK_STREAMING, .progress = {.turned_ms = 1000}};

    snprintf(facts.sink, sizeof facts.sink, "%s", name);
    return facts;
}

static void derive(struct spate_sink_facts *facts, int64_t now_ms)
{
    spate_sink_report_derive(facts, 5000000, now_ms);
}

static void health_of_one_that_follows(void **state)
{
    struct spate_sink_facts facts = streaming("a");

    (void)state;
    derive(&facts, 1200);
    assert_true(facts.now.live && facts.now.ready);
    derive(&facts, 1001 + SPATE_SINK_HUNG_MS);
    assert_false(facts.now.live || facts.now.ready);
    assert_non_null(strstr(facts.now.reason, "it hangs"));
    /* While the target is at work there is nothing to turn: a restart would only begin the work anew. */
    facts.busy_since_ms = 1000;
    derive(&facts, 1001 + SPATE_SINK_HUNG_MS);
    assert_true(facts.now.live && facts.now.ready);
    derive(&facts, 1001 + SPATE_SINK_BUSY_MS);
    assert_true(facts.now.live);
    assert_false(facts.now.ready);
    assert_non_null(strstr(facts.now.reason, "one batch for 90 s"));
    facts = streaming("a");
    facts.progress.hole = 1;
    facts.progress.heard_n = 41;
    derive(&facts, 1200);
    assert_false(facts.now.ready);
    assert_non_null(strstr(facts.now.reason, "after n=41"));
}

static void lag(void **state)
{
    struct spate_sink_facts facts = streaming("a");

    (void)state;
    facts.progress.n = 10;
    facts.progress.heard_n = 15;
    facts.progress.behind_since_us = 2000000;
    derive(&facts, 1200);
    assert_int_equal(facts.now.lag_us, 3000000);
    assert_int_equal(facts.now.lag_changes, 5);
    facts.progress.behind_since_us = 9000000; /* the other clock is ahead */
    facts.progress.heard_n = 0;
    derive(&facts, 1200);
    assert_int_equal(facts.now.lag_us, 0);
    assert_int_equal(facts.now.lag_changes, 0);
}

static void one_that_stopped_makes_the_process_not_ready(void **state)
{
    struct spate_sink_facts facts[2] = {streaming("a"), streaming("b")};
    struct spate_buf out = {0};

    (void)state;
    facts[1].state = SPATE_SINK_STALE;
    snprintf(facts[1].error.text, sizeof facts[1].error.text, "STALE: \"n\" is gone");
    derive(&facts[0], 1200);
    derive(&facts[1], 1200);
    assert_true(spate_sink_report_live(facts, 2));
    assert_false(spate_sink_report_ready(facts, 2));
    assert_true(spate_sink_report_ready(facts, 1));
    spate_sink_report_health(facts, 2, &out);
    assert_string_equal(
        spate_buf_str(&out),
        "{\"live\":true,\"ready\":false,\"reason\":\"sink b: stale: STALE: \\\"n\\\" is gone\","
        "\"sinks\":{\"a\":{\"live\":true,\"ready\":true,\"reason\":\"streaming\"},"
        "\"b\":{\"live\":true,\"ready\":false,\"reason\":\"stale: STALE: \\\"n\\\" is gone\"}}}\n");
    spate_buf_reset(&out);
    spate_sink_report_metrics(facts, 2, &(struct spate_memory){.private_bytes = 5, .shared_bytes = -1}, &out);
    assert_non_null(strstr(spate_buf_str(&out), "spate_sink_state{sink=\"b\",state=\"stale\"} 1\n"));
    assert_non_null(strstr(out.data, "spate_sink_ready{sink=\"a\"} 1\nspate_sink_ready{sink=\"b\"} 0\n"));
    /* Memory is the process': once, not once for each sink; and what is not known is not shown. */
    assert_non_null(strstr(out.data, "\nspate_sinks_memory_private_bytes{version="));
    assert_null(strstr(out.data, "spate_sinks_memory_shared_bytes"));
    spate_buf_reset(&out);
    spate_sink_report_status(facts, 2, &(struct spate_memory){.private_bytes = 5, .shared_bytes = -1}, &out);
    assert_non_null(strstr(spate_buf_str(&out), "\"memory_private_bytes\":5,\"memory_shared_bytes\":null,"));
    spate_buf_fini(&out);
}

static void an_end_has_a_state_by_its_exit_code(void **state)
{
    static char name[] = "team";
    static const struct {
        enum spate_exit code;
        const char *state;
    } cases[] = {{SPATE_EXIT_OK, "failed"},
                 {SPATE_EXIT_FAILED, "failed"},
                 {SPATE_EXIT_FENCED, "stale"},
                 {SPATE_EXIT_REFUSED, "refused"}};
    const struct spate_sink_config config = {.name = name};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_sinks_status *all = spate_sinks_status_open(&config, 1, NULL);
        struct spate_sink_status *one = spate_sinks_status_of(all, 0);
        struct spate_err err = {.verdict = SPATE_FATAL, .exit_code = cases[i].code, .text = "words"};
        struct spate_sink_facts facts;

        spate_sink_status_ended(one, &err);
        spate_sink_status_facts(one, &facts);
        derive(&facts, 1);
        assert_string_equal(spate_sink_states[facts.now.state], cases[i].state);
        assert_string_equal(facts.error.text, "words");
        spate_sink_status_veil(one, "other words");
        spate_sink_status_ended(one, &err);
        spate_sink_status_facts(one, &facts);
        assert_string_equal(facts.error.text, "other words"); /* those of the error name a row */
        spate_sink_status_ended(one, NULL);
        spate_sink_status_facts(one, &facts);
        derive(&facts, 1);
        assert_string_equal(spate_sink_states[facts.now.state], "stopped");
        spate_sinks_status_close(all);
    }
}

static void one_process_has_one_place(void **state)
{
    static char one[] = "9188", other[] = "9189", wrong[] = "nowhere";
    struct spate_sink_config configs[3] = {{.path = "a.yaml"}, {.path = "b.yaml"}, {.path = "c.yaml"}};
    const char *listen = "x";
    struct spate_err err = {0};

    (void)state;
    assert_int_equal(spate_sinks_status_listen(configs, 3, &listen, &err), SPATE_OK);
    assert_null(listen);
    configs[1].status_listen = one;
    assert_int_equal(spate_sinks_status_listen(configs, 3, &listen, &err), SPATE_OK);
    assert_string_equal(listen, "9188");
    configs[2].status_listen = one;
    assert_int_equal(spate_sinks_status_listen(configs, 3, &listen, &err), SPATE_OK);
    configs[2].status_listen = other;
    assert_int_equal(spate_sinks_status_listen(configs, 3, &listen, &err), SPATE_FAIL);
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
    assert_non_null(strstr(err.text, "b.yaml"));
    assert_non_null(strstr(err.text, "c.yaml"));
    configs[0].status_listen = wrong;
    err = (struct spate_err){0};
    assert_int_equal(spate_sinks_status_listen(configs, 3, &listen, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "a.yaml"));
}

static void a_test_without_a_status_reports_to_nobody(void **state)
{
    struct spate_err err = {0};

    (void)state;
    spate_sink_status_state(NULL, SPATE_SINK_STREAMING, "x");
    spate_sink_status_busy(NULL, NULL);
    spate_sink_status_turn(NULL, NULL, 1);
    spate_sink_status_last(NULL, NULL);
    spate_sink_status_applied(NULL, 1, 1);
    spate_sink_status_failed(NULL, &err);
    spate_sink_status_veil(NULL, "x");
    spate_sink_status_ended(NULL, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(health_of_one_that_follows),
        cmocka_unit_test(lag),
        cmocka_unit_test(one_that_stopped_makes_the_process_not_ready),
        cmocka_unit_test(an_end_has_a_state_by_its_exit_code),
        cmocka_unit_test(one_process_has_one_place),
        cmocka_unit_test(a_test_without_a_status_reports_to_nobody),
    };

    spate_log_level_set(SPATE_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
