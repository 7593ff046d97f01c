/* core/log.h - one logfmt line per event on stderr: time, level, event=tag, then facts.
 *
 * Thread: any; a line is written with one write(2). No row value above debug, never a secret.
 *   spate_log(SPATE_LOG_INFO, "connected", "slot=%s lsn=%X/%X", slot, hi, lo);
 * Values with spaces are quoted by the caller with spate_log_quote. */
#ifndef SPATE_CORE_LOG_H
#define SPATE_CORE_LOG_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>

enum spate_log_level { SPATE_LOG_DEBUG, SPATE_LOG_INFO, SPATE_LOG_WARN, SPATE_LOG_ERROR };

void spate_log_level_set(enum spate_log_level level); /* default INFO */
bool spate_log_on(enum spate_log_level level);

/* Lines go to this function instead of stderr, with their newline and without a NUL; NULL: nowhere. For a
 * library in another program. Before there are threads. */
void spate_log_to(void (*sink)(void *arg, const char *line, size_t len), void *arg);

/* Facts that every line of this thread carries, e.g. "sink=billing". Copied; NULL clears. */
void spate_log_context(const char *facts);

void spate_log(enum spate_log_level level, const char *event, const char *fmt, ...) SPATE_PRINTF(3, 4);

/* Logs an error once, where the decision is taken: verdict, sqlstate, lsn and text. */
void spate_log_err(enum spate_log_level level, const char *event, const struct spate_err *err);

/* The text in double quotes, with quotes, backslashes and control characters escaped; cut at the end
 * if it does not fit. Returns out. */
const char *spate_log_quote(char *out, size_t size, const char *text);

/* A repeated event: true the 1st time and then at most once per `every_ms`; *hidden says how many were
 * kept quiet since. `state` is zeroed by its owner. */
struct spate_log_limit {
    int64_t next_ms;
    unsigned hidden;
};
bool spate_log_due(struct spate_log_limit *state, int64_t now_ms, int64_t every_ms, unsigned *hidden);

#endif
