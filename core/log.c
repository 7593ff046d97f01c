#include "core/log.h"

#include "core/clock.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static atomic_int level_now = SPATE_LOG_INFO;
static _Thread_local char context[200];

static void to_stderr(void *arg, const char *line, size_t len)
{
    (void)arg;
    if (write(STDERR_FILENO, line, len) < 0)
        return; /* nowhere left to complain */
}

static void (*sink_now)(void *arg, const char *line, size_t len) = to_stderr;
static void *sink_arg;

void spate_log_level_set(enum spate_log_level level)
{
    atomic_store_explicit(&level_now, (int)level, memory_order_relaxed);
}

bool spate_log_on(enum spate_log_level level)
{
    return (int)level >= atomic_load_explicit(&level_now, memory_order_relaxed);
}

void spate_log_to(void (*sink)(void *arg, const char *line, size_t len), void *arg)
{
    sink_now = sink;
    sink_arg = arg;
}

void spate_log_context(const char *facts)
{
    snprintf(context, sizeof context, "%s", facts ? facts : "");
}

/* Appends and never passes the end: `at` stays a valid index of a line of `size` bytes. */
SPATE_PRINTF(4, 0)
static size_t add(char *line, size_t size, size_t at, const char *fmt, va_list args)
{
    int n = vsnprintf(line + at, size - at, fmt, args);

    if (n < 0)
        return at;
    return (size_t)n < size - at ? at + (size_t)n : size - 1;
}

SPATE_PRINTF(4, 5)
static size_t addf(char *line, size_t size, size_t at, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    at = add(line, size, at, fmt, args);
    va_end(args);
    return at;
}

void spate_log(enum spate_log_level level, const char *event, const char *fmt, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char line[2048], stamp[SPATE_TIMESTAMP_LEN];
    size_t at;
    va_list args;

    if (!spate_log_on(level))
        return;
    spate_clock_format(spate_clock_wall_us(), stamp);
    at = addf(line, sizeof line - 1, 0, "time=%.*s level=%s event=%s", SPATE_TIMESTAMP_LEN, stamp,
              names[level], event);
    if (context[0])
        at = addf(line, sizeof line - 1, at, " %s", context);
    if (fmt[0]) {
        at = addf(line, sizeof line - 1, at, " ");
        va_start(args, fmt);
        at = add(line, sizeof line - 1, at, fmt, args);
        va_end(args);
    }
    for (size_t i = 0; i < at; i++) /* one event is one line, whatever a server said */
        if (line[i] == '\n' || line[i] == '\r')
            line[i] = ' ';
    line[at++] = '\n';
    if (sink_now)
        sink_now(sink_arg, line, at);
}

void spate_log_err(enum spate_log_level level, const char *event, const struct spate_err *err)
{
    char text[2 * sizeof err->text];
    char state[24] = "", lsn[40] = "";

    if (err->sqlstate[0])
        snprintf(state, sizeof state, " sqlstate=%s", err->sqlstate);
    if (err->lsn)
        snprintf(lsn, sizeof lsn, " lsn=%X/%X", (unsigned)(err->lsn >> 32), (unsigned)err->lsn);
    spate_log(level, event, "verdict=%s%s%s error=%s", spate_verdict_name(err->verdict), state, lsn,
              spate_log_quote(text, sizeof text, err->text));
    spate_log(SPATE_LOG_DEBUG, "raised_at", "event_of=%s source=%s:%d", event, err->file ? err->file : "?",
              err->line);
}

const char *spate_log_quote(char *out, size_t size, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    size_t at = 0;

    if (size < 3) {
        if (size)
            out[0] = '\0';
        return out;
    }
    out[at++] = '"';
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (at + 6 > size) /* the longest escape, the closing quote and the NUL */
            break;
        if (c == '"' || c == '\\') {
            out[at++] = '\\';
            out[at++] = (char)c;
        } else if (c == '\n') {
            out[at++] = '\\';
            out[at++] = 'n';
        } else if (c < 0x20 || c == 0x7f) {
            out[at++] = '\\';
            out[at++] = 'x';
            out[at++] = hex[c >> 4];
            out[at++] = hex[c & 15];
        } else {
            out[at++] = (char)c;
        }
    }
    out[at++] = '"';
    out[at] = '\0';
    return out;
}

bool spate_log_due(struct spate_log_limit *state, int64_t now_ms, int64_t every_ms, unsigned *hidden)
{
    if (now_ms < state->next_ms) {
        state->hidden++;
        return false;
    }
    *hidden = state->hidden;
    state->hidden = 0;
    state->next_ms = now_ms + every_ms;
    return true;
}
