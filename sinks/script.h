/* sinks/script.h - many statements, one round trip. Internal to sinks/apply. */
#ifndef SPATE_SINKS_SCRIPT_H
#define SPATE_SINKS_SCRIPT_H

#include "sinks/apply.h"

enum spate_step_kind {
    SPATE_STEP_OTHER,
    SPATE_STEP_COPY,    /* the piece's entries of the version follow as COPY data */
    SPATE_STEP_COUNTED, /* should touch `expected` rows; fewer are counted as missing (T12) */
    SPATE_STEP_SWEEP    /* its rows are counted as swept */
};

struct spate_step {
    enum spate_step_kind kind;
    const struct spate_version *version;
    uint64_t expected;
};

/* The next statement of apply->sql is of this kind. */
void spate_script_step(struct spate_apply *apply, enum spate_step_kind kind,
                       const struct spate_version *version, uint64_t expected);
/* Appends one whole statement without meaning for the rows. */
void spate_script_add(struct spate_apply *apply, const char *sql);
void spate_script_reset(struct spate_apply *apply);

/* Sends what was added and reads all answers. SPATE_FAIL: the first error; what came after it was not run. */
SPATE_CHECKED enum spate_rc spate_script_run(struct spate_apply *apply, struct spate_err *err);

/* How an entry is staged: which values came ('1' or '0' each), and the value of a used column. */
void spate_script_mask(const struct spate_entry *entry, struct spate_buf *out);
const struct spate_value *spate_script_value(const struct spate_entry *entry, size_t used_at);

#endif
