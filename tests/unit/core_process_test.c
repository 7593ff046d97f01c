/* One event is one line, and a stop is asked for once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/log.h"
#include "core/signals.h"

static char captured[8192];
static int saved = -1, pipe_ends[2];

static void capture(void)
{
    fflush(stderr);
    assert_int_equal(pipe(pipe_ends), 0);
    saved = dup(STDERR_FILENO);
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[1]);
}

static const char *captured_text(void)
{
    size_t len = 0;
    ssize_t got;

    dup2(saved, STDERR_FILENO);
    close(saved);
    while ((got = read(pipe_ends[0], captured + len, sizeof captured - 1 - len)) > 0)
        len += (size_t)got;
    captured[len] = '\0';
    close(pipe_ends[0]);
    return captured;
}

static void one_event_is_one_line(void **state)
{
    const char *text;

    (void)state;
    capture();
    spate_log_level_set(SPATE_LOG_INFO);
    spate_log(SPATE_LOG_DEBUG, "hidden", "%s", "");
    spate_log_context("sink=billing");
    spate_log(SPATE_LOG_INFO, "connected", "slot=%s", "a\nb");
    spate_log_context(NULL);
    spate_log(SPATE_LOG_ERROR, "bare", "%s", "");
    text = captured_text();
    assert_null(strstr(text, "hidden"));
    assert_int_equal(strncmp(text, "time=20", 7), 0);
    assert_non_null(strstr(text, "Z level=info event=connected sink=billing slot=a b\n"));
    assert_non_null(strstr(text, " level=error event=bare"));
    assert_null(strstr(strstr(text, "event=bare"), "billing"));
}

static void long_lines_are_cut(void **state)
{
    char *word = malloc(10000);
    const char *text;

    (void)state;
    memset(word, 'w', 9999);
    word[9999] = '\0';
    capture();
    spate_log(SPATE_LOG_WARN, "long", "word=%s", word);
    spate_log(SPATE_LOG_WARN, "next", "a=%d", 1);
    text = captured_text();
    assert_true(strlen(text) < 4096);
    assert_non_null(strstr(text, "w\ntime="));
    assert_non_null(strstr(text, "event=next a=1\n"));
    free(word);
}

static void errors_say_what_they_know(void **state)
{
    struct spate_err err = {.lsn = UINT64_C(0x1A0000002B)};
    const char *text;

    (void)state;
    memcpy(err.sqlstate, "42704", 6);
    spate_fail(&err, SPATE_FATAL, "slot \"s\" is\ngone");
    capture();
    spate_log_err(SPATE_LOG_ERROR, "stopped", &err);
    text = captured_text();
    assert_non_null(strstr(text, "event=stopped verdict=fatal sqlstate=42704 lsn=1A/2B "
                                 "error=\"slot \\\"s\\\" is\\ngone\"\n"));
}

static void quoting(void **state)
{
    static const char *const cases[][2] = {
        {"", "\"\""},
        {"plain words", "\"plain words\""},
        {"a\"b\\c\n", "\"a\\\"b\\\\c\\n\""},
        {"\x01\x7f", "\"\\x01\\x7f\""},
        {"\xc3\xa4", "\"\xc3\xa4\""},
    };
    char out[64], small[8];

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++)
        assert_string_equal(spate_log_quote(out, sizeof out, cases[i][0]), cases[i][1]);
    for (size_t size = 0; size <= sizeof small; size++) { /* never beyond, always ended */
        memset(small, 'Z', sizeof small);
        spate_log_quote(small, size, "\x01\x01\x01\x01");
        if (size > 0)
            assert_true(strnlen(small, size) < size);
        for (size_t i = size; i < sizeof small; i++)
            assert_int_equal(small[i], 'Z');
    }
}

static void repeats_are_counted(void **state)
{
    struct spate_log_limit limit = {0};
    unsigned hidden = 99;

    (void)state;
    assert_true(spate_log_due(&limit, 1000, 500, &hidden));
    assert_int_equal(hidden, 0);
    assert_false(spate_log_due(&limit, 1001, 500, &hidden));
    assert_false(spate_log_due(&limit, 1499, 500, &hidden));
    assert_true(spate_log_due(&limit, 1500, 500, &hidden));
    assert_int_equal(hidden, 2);
}

/* What a child does with signals, told by its exit status. */
static int first_signal(void)
{
    struct pollfd fd = {.events = POLLIN};

    spate_signals_init();
    fd.fd = spate_signals_fd();
    if (spate_signals_stop() || poll(&fd, 1, 0) != 0)
        return 10;
    raise(SIGTERM);
    if (!spate_signals_stop() || poll(&fd, 1, 0) != 1 || poll(&fd, 1, 0) != 1)
        return 11; /* and it stays readable */
    return 12;
}

static int second_signal(void)
{
    spate_signals_init();
    raise(SIGINT);
    raise(SIGTERM);
    return 13;
}

static int asked_from_within(void)
{
    struct pollfd fd = {.events = POLLIN};

    spate_signals_request(); /* before _init: the flag only */
    if (!spate_signals_stop())
        return 14;
    spate_signals_init();
    spate_signals_request();
    fd.fd = spate_signals_fd();
    return poll(&fd, 1, 0) == 1 ? 15 : 16;
}

static int in_a_child(int (*body)(void))
{
    pid_t child = fork();
    int status;

    assert_true(child >= 0);
    if (child == 0)
        _exit(body());
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void the_first_signal_asks_and_the_second_ends(void **state)
{
    (void)state;
    assert_int_equal(in_a_child(first_signal), 12);
    assert_int_equal(in_a_child(second_signal), 128 + SIGTERM);
    assert_int_equal(in_a_child(asked_from_within), 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_event_is_one_line),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(errors_say_what_they_know),
        cmocka_unit_test(quoting),
        cmocka_unit_test(repeats_are_counted),
        cmocka_unit_test(the_first_signal_asks_and_the_second_ends),
    };

    return cmocka_run_group_tests_name("process", tests, NULL, NULL);
}
