/* core/err.h - one failure, owned by the caller, filled by the callee. */
#ifndef SPATE_CORE_ERR_H
#define SPATE_CORE_ERR_H

#include <stdbool.h>
#include <stdint.h>

#define SPATE_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))
#define SPATE_CHECKED            __attribute__((warn_unused_result))

enum spate_rc {
    SPATE_OK = 0,
    SPATE_AGAIN, /* nothing taken, nothing lost: wait, then ask again */
    SPATE_END,   /* finished cleanly */
    SPATE_FAIL   /* look at the spate_err */
};

/* What the process should do about it, decided by whoever knows the cause. */
enum spate_verdict {
    SPATE_RETRY,      /* the network, a restarting server: the same thing may work later */
    SPATE_QUARANTINE, /* this record or this table is bad, the stream is fine */
    SPATE_FATAL       /* a human must decide */
};

/* Documented exit codes of every subcommand (docs/operating.md). */
enum spate_exit {
    SPATE_EXIT_OK = 0,
    SPATE_EXIT_FAILED = 1,  /* stopped by an error that is none of the below */
    SPATE_EXIT_CONFIG = 2,  /* configuration or arguments; nothing was started */
    SPATE_EXIT_FENCED = 3,  /* continuity is broken: a human must decide (--new-epoch) */
    SPATE_EXIT_REFUSED = 4, /* a sink or the source cannot do exactly what was asked */
    SPATE_EXIT_DEADLINE = 5 /* told to stop, but could not flush in time */
};

struct spate_err {
    enum spate_verdict verdict;
    enum spate_exit exit_code; /* what a process that stops for this exits with; 0 = FAILED */
    bool missing;              /* nothing is wrong but that what was asked for is not there yet */
    uint64_t lsn;              /* 0 when no position applies */
    char sqlstate[6];          /* empty unless Postgres gave one */
    const char *file;          /* where in our source it was raised, for the debug log */
    int line;
    char text[1000]; /* what happened, to what, and what to do next; no secret, no row value */
};

#define spate_fail(err, verdict, ...) spate_fail_at((err), (verdict), __FILE__, __LINE__, __VA_ARGS__)

/* Fills *err and returns SPATE_FAIL, so that `return spate_fail(...)` reads well.
 * Text that does not fit is cut and ends with "...". Keeps err->exit_code, err->missing, err->lsn and
 * err->sqlstate. */
enum spate_rc spate_fail_at(struct spate_err *err, enum spate_verdict verdict, const char *file, int line,
                            const char *fmt, ...) SPATE_PRINTF(5, 6);

/* Puts "fmt: " before the text that is there already, unless that begins with the same words. Returns
 * SPATE_FAIL. */
enum spate_rc spate_err_context(struct spate_err *err, const char *fmt, ...) SPATE_PRINTF(2, 3);

const char *spate_verdict_name(enum spate_verdict verdict);

#endif
