/* sinks/fact.h - names as values of log lines: as they are where that is plain, else quoted. */
#ifndef SPATE_SINKS_FACT_H
#define SPATE_SINKS_FACT_H

#include "core/log.h"

#include <stdio.h>
#include <string.h>

#define SPATE_FACT_MAX 300

/* A name that somebody chose must not be able to write facts of its own. Returns out. */
static inline const char *spate_fact(char out[SPATE_FACT_MAX], const char *name)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";

    if (*name && name[strspn(name, plain)] == 0 && strlen(name) < SPATE_FACT_MAX) {
        snprintf(out, SPATE_FACT_MAX, "%s", name);
        return out;
    }
    return spate_log_quote(out, SPATE_FACT_MAX, name);
}

#endif
