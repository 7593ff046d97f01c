/* tests/unit/core_failpoint_test.c - the plan is understood or refused, and happens at the hit it names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#ifndef FAILPOINTS
#define FAILPOINTS
#endif
#include "core/clock.h"
#include "core/failpoint.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void plan(const char *text)
{
    struct spate_err err = {0};

    if (spate_failpoint_init(text, &err) != SPATE_OK)
        fail_msg("%s: %s", text, err.text);
}

static void nothing_happens_without_a_plan(void **state)
{
    (void)state;
    plan(NULL);
    for (int i = 0; i < 100; i++) {
        SPATE_FAILPOINT(connector_received);
        assert_false(SPATE_FAILPOINT_FAILS(local_sync));
    }
}

static void fails_at_the_hit_that_is_named_and_only_there(void **state)
{
    (void)state;
    plan("local_sync=fail@3,connector_publish=fail");
    assert_false(SPATE_FAILPOINT_FAILS(local_sync));
    assert_true(SPATE_FAILPOINT_FAILS(connector_publish));
    assert_false(SPATE_FAILPOINT_FAILS(connector_publish));
    assert_false(SPATE_FAILPOINT_FAILS(local_sync));
    assert_true(SPATE_FAILPOINT_FAILS(local_sync));
    assert_false(SPATE_FAILPOINT_FAILS(local_sync));
    assert_false(SPATE_FAILPOINT_FAILS(local_write));
}

static void sleeps_as_long_as_it_was_told(void **state)
{
    int64_t began_ms;

    (void)state;
    plan("sink_read=sleep:60@2");
    began_ms = spate_clock_ms();
    SPATE_FAILPOINT(sink_read);
    assert_true(spate_clock_ms() - began_ms < 60);
    SPATE_FAILPOINT(sink_read);
    assert_true(spate_clock_ms() - began_ms >= 60);
}

/* Runs three hits in a child. Returns its wait status at the first change, and what it said. */
static int in_a_child(const char *text, pid_t *pid, char *said, size_t size)
{
    int out[2], status = 0;
    ssize_t got;

    assert_int_equal(pipe(out), 0);
    *pid = fork();
    assert_true(*pid >= 0);
    if (*pid == 0) {
        struct spate_err err = {0};

        dup2(out[1], STDERR_FILENO);
        if (spate_failpoint_init(text, &err) != SPATE_OK)
            _exit(9);
        for (int i = 0; i < 3; i++)
            SPATE_FAILPOINT(connector_confirm);
        _exit(0);
    }
    close(out[1]);
    assert_int_equal(waitpid(*pid, &status, WUNTRACED), *pid);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    got = read(out[0], said, size - 1);
    said[got > 0 ? got : 0] = '\0';
    close(out[0]);
    return status;
}

static void kills_and_says_so_first(void **state)
{
    char said[500];
    pid_t pid;
    int status = in_a_child("connector_confirm=kill@2", &pid, said, sizeof said);

    (void)state;
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_non_null(strstr(said, "event=failpoint name=connector_confirm action=kill hit=2"));
}

static void stops_until_it_is_told_to_go_on(void **state)
{
    char said[500];
    pid_t pid;
    int status = in_a_child("connector_confirm=stop@3", &pid, said, sizeof said);

    (void)state;
    assert_true(WIFSTOPPED(status));
    assert_non_null(strstr(said, "name=connector_confirm action=stop hit=3"));
    kill(pid, SIGCONT);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_hit_that_never_comes_does_nothing(void **state)
{
    char said[500];
    pid_t pid;
    int status = in_a_child("connector_confirm=kill@4", &pid, said, sizeof said);

    (void)state;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_string_equal(said, "");
}

static void refuses_what_it_does_not_understand(void **state)
{
    static const struct {
        const char *plan, *words;
    } cases[] = {
        {"connector_confirm", "is not NAME=ACTION"},
        {"conector_confirm=kill", "did you mean connector_confirm?"},
        {"connector_confirm=boom", "expected kill, stop, sleep:MS or fail"},
        {"connector_confirm=nothing", "expected kill"},
        {"connector_confirm=", "expected kill"},
        {"connector_confirm=kill@0", "@N"},
        {"connector_confirm=kill@x", "@N"},
        {"connector_confirm=kill@3x", "@N"},
        {"connector_confirm=kill@-1", "@N"},
        {"connector_confirm=kill@99999999999", "@N"},
        {"connector_confirm=kill:5", "expected kill"},
        {"connector_confirm=sleep", "sleep:MS"},
        {"connector_confirm=sleep:", "sleep:MS"},
        {"connector_confirm=fail", "cannot fail"},
        {"local_sync=fail,local_sync=kill", "twice"},
        {"local_sync=fail,nonsense=kill", "no failpoint \"nonsense\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct spate_err err = {0};

        if (spate_failpoint_init(cases[i].plan, &err) != SPATE_FAIL)
            fail_msg("%s was taken", cases[i].plan);
        if (!strstr(err.text, cases[i].words))
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].plan, err.text, cases[i].words);
    }
}

static void lists_every_name_once(void **state)
{
    char *text = NULL;
    size_t size = 0, lines = 0;
    FILE *out = open_memstream(&text, &size);

    (void)state;
    assert_non_null(out);
    spate_failpoint_list(out);
    fclose(out);
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    assert_int_equal(lines, SPATE_FP_COUNT);
    assert_non_null(strstr(text, "local_sync\tconnector\tlocal\tfails\t"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_happens_without_a_plan),
        cmocka_unit_test(fails_at_the_hit_that_is_named_and_only_there),
        cmocka_unit_test(sleeps_as_long_as_it_was_told),
        cmocka_unit_test(kills_and_says_so_first),
        cmocka_unit_test(stops_until_it_is_told_to_go_on),
        cmocka_unit_test(a_hit_that_never_comes_does_nothing),
        cmocka_unit_test(refuses_what_it_does_not_understand),
        cmocka_unit_test(lists_every_name_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
