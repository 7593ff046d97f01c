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
    va_list args;
    int len;

    va_start(args, fmt);
    len = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (len >= 0 && (size_t)len < sizeof text)
        snprintf(text + len, sizeof text - (size_t)len, ": %s", err->text);
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
