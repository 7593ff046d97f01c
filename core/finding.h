/* core/finding.h - what a check found: a list of findings, each with what, why, and what mends it.
 *
 *   spate_find(list, SPATE_FINDING_ERROR, "wal-level", "wal_level = %s", level);
 *   spate_find_about(list, "source");
 *   spate_find_why(list, "changes can only be read with wal_level = logical");
 *   spate_find_fix(list, SPATE_MEND_SOURCE, "ALTER SYSTEM SET wal_level = 'logical'; -- then restart it");
 *
 * about, why and fix belong to the finding that was added last. All texts are copied; none may hold a secret
 * or a row's value. Thread: one at a time. Blocks: never. */
#ifndef SPATE_CORE_FINDING_H
#define SPATE_CORE_FINDING_H

#include "core/buf.h"
#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>

enum spate_severity {
    SPATE_FINDING_NOTE,    /* worth knowing */
    SPATE_FINDING_WARNING, /* works now, and something will hurt later */
    SPATE_FINDING_ERROR    /* a start is refused, or fails */
};

/* Who carries out the fix. SQL is ready to type: statements end with ';', what is left to a person stands
 * behind "--". */
enum spate_mend {
    SPATE_MEND_HAND,   /* a sentence */
    SPATE_MEND_SOURCE, /* SQL on the source, by an owner or an administrator */
    SPATE_MEND_TARGET, /* SQL on the target */
    SPATE_MEND_SHELL,  /* a command */
    SPATE_MEND_FILE    /* a line of the configuration file */
};

struct spate_finding {
    enum spate_severity severity;
    enum spate_mend mend;
    const char *kind; /* static: a stable tag, "wal-level" */
    char *about;      /* "source", "table public.orders", "sink billing"; never NULL */
    char *what;
    char *why, *fix; /* may be NULL */
};

/* All zero is a valid empty list. */
struct spate_findings {
    struct spate_finding *at; /* owned */
    size_t count, cap;
    char *place; /* owned; `about` of the findings that say none, NULL: "" */
};

void spate_findings_fini(struct spate_findings *list);
/* `about` of what is added from here on. */
void spate_findings_place(struct spate_findings *list, const char *fmt, ...) SPATE_PRINTF(2, 3);

/* Adds one; the text is `what`. */
void spate_find(struct spate_findings *list, enum spate_severity severity, const char *kind, const char *fmt,
                ...) SPATE_PRINTF(4, 5);
void spate_find_about(struct spate_findings *list, const char *fmt, ...) SPATE_PRINTF(2, 3);
void spate_find_why(struct spate_findings *list, const char *fmt, ...) SPATE_PRINTF(2, 3);
void spate_find_fix(struct spate_findings *list, enum spate_mend mend, const char *fmt, ...)
    SPATE_PRINTF(3, 4);

/* An error that ended a check: what and remedy are in its text. */
void spate_find_err(struct spate_findings *list, const char *kind, const struct spate_err *err);

/* The statement that stands in the words of such an error (ALTER, GRANT, ...) becomes the last one's fix. */
void spate_find_statement(struct spate_findings *list, enum spate_mend mend);

size_t spate_findings_of(const struct spate_findings *list, enum spate_severity severity);
/* The first error from `from` on, or NULL. */
const struct spate_finding *spate_findings_error(const struct spate_findings *list, size_t from);

/* "WHAT: WHY. Mend it with: FIX" into the err's text: fatal, exit code REFUSED. Returns SPATE_FAIL. */
enum spate_rc spate_finding_refuse(const struct spate_finding *finding, struct spate_err *err);
/* The same as one line of text. */
void spate_finding_text(const struct spate_finding *finding, struct spate_buf *out);

/* For people: errors first; a summary line at the end. */
void spate_findings_print(const struct spate_findings *list, struct spate_buf *out);
/* {"findings":[{"severity","kind","about","what","why","fix","where"}],"errors":N,"warnings":N,"notes":N} */
void spate_findings_json(const struct spate_findings *list, struct spate_buf *out);

const char *spate_severity_name(enum spate_severity severity);
const char *spate_mend_name(enum spate_mend mend); /* "source": who carries it out, in JSON's `where` */

#endif
