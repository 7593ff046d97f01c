/* core/slice.h - a borrowed run of bytes. Not NUL-terminated; dies with whoever owns the bytes. */
#ifndef SPATE_CORE_SLICE_H
#define SPATE_CORE_SLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct spate_slice {
    const char *at;
    size_t len;
};

static inline struct spate_slice spate_slice(const char *at, size_t len)
{
    return (struct spate_slice){.at = at, .len = len};
}

static inline struct spate_slice spate_slice_str(const char *str)
{
    return (struct spate_slice){.at = str, .len = strlen(str)};
}

static inline bool spate_slice_eq(struct spate_slice a, struct spate_slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

static inline bool spate_slice_is(struct spate_slice a, const char *str)
{
    return spate_slice_eq(a, spate_slice_str(str));
}

/* For printf: "%.*s" with SPATE_SLICE_ARG(slice). */
#define SPATE_SLICE_ARG(s) (int)(s).len, (s).at

#endif
