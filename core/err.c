#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum spate_rc spate_fail_at(struct spate_err *err, enum spate_verdict verdict, const char *file, int line,
                            const char *fmt, ...)
{
    va_list args;

    err->verdict = verdict;
    err->file = file;
    err->line = line;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    return SPATE_FAIL;
}

enum spate_rc spate_err_context(struct spate_err *err, const char *fmt, ...)
{
    char text[sizeof err->text];
    size_t len, room;
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    len = n < 0 ? 0 : (size_t)n;
    if (len + 2 < sizeof text) { /* the older words are cut where the room ends */
        memcpy(text + len, ": ", 2);
        room = sizeof text - len - 3;
        n = (int)strnlen(err->text, room);
        memcpy(text + len + 2, err->text, (size_t)n);
        text[len + 2 + (size_t)n] = '\0';
    }
    memcpy(err->text, text, sizeof text);
    return SPATE_FAIL;
}

const char *spate_verdict_name(enum spate_verdict verdict)
{
    switch (verdict) {
    case SPATE_RETRY:
        return "retry";
    case SPATE_QUARANTINE:
        return "quarantine";
    case SPATE_FATAL:
        return "fatal";
    }
    return "unknown";
}
