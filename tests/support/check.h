/* tests/support/check.h - what must succeed, with the words of what does not. After cmocka's headers. */
#ifndef SPATE_TESTS_SUPPORT_CHECK_H
#define SPATE_TESTS_SUPPORT_CHECK_H

#include "core/err.h"

static inline void check_at(enum spate_rc rc, const struct spate_err *err, int line)
{
    if (rc != SPATE_OK)
        fail_msg("line %d, rc %d: %s", line, rc, err->text);
}
#define check(rc, err) check_at((rc), (err), __LINE__)

#endif
