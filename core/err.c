#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A text that fills its room to the end was cut: it says so, lest half a statement be taken for a whole one.
 * No character is cut in two. */
static void mark_cut(struct spate_err *err)
{
    size_t at = sizeof err->text - sizeof "...";

    while (at > 0 && ((unsigned char)err->text[at] & 0xc0) == 0x80)
        at--;
    memcpy(err->text + at, "...", sizeof "...");
}

enum spate_rc spate_fail_at(struct spate_err *err, enum spate_verdict verdict, const char *file, int line,
                            const char *fmt, ...)
{
    va_list args;
    int len;

    err->verdict = verdict;
    err->file = file;
    err->line = line;
    va_start(args, fmt);
    len = vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    if (len >= (int)sizeof err->text)
        mark_cut(err);
    return SPATE_FAIL;
}

enum spate_rc spate_err_context(struct spate_err *err, const char *fmt, ...)
{
    const size_t most = sizeof err->text - sizeof ": "; /* of new words and older ones together */
    char text[sizeof err->text];
    size_t older = strlen(err->text), len, kept;
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    len = n < 0 ? 0 : (size_t)n < most ? (size_t)n : most;
    if (len > 0 && strncmp(err->text, text, len) == 0 && (err->text[len] == ' ' || err->text[len] == ':'))
        return SPATE_FAIL;
    kept = older < most - len ? older : most - len;
    memmove(err->text + len + 2, err->text, kept);
    memcpy(err->text, text, len);
    memcpy(err->text + len, ": ", 2);
    err->text[len + 2 + kept] = '\0';
    if (n > (int)len || kept < older)
        mark_cut(err);
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
