/* core/buf.h - a growing byte buffer. Grows by doubling; spate_buf_trim gives a spike back. */
#ifndef SPATE_CORE_BUF_H
#define SPATE_CORE_BUF_H

#include "core/err.h"
#include "core/slice.h"

#include <stddef.h>
#include <string.h>

struct spate_buf {
    char *data; /* owned; NULL while cap is 0 */
    size_t len, cap;
};

/* All zero is a valid empty buffer. */
void spate_buf_fini(struct spate_buf *buf);
void spate_buf_grow(struct spate_buf *buf, size_t more); /* room for `more` bytes after len */
void spate_buf_trim(struct spate_buf *buf, size_t keep); /* empties; frees the memory if cap > keep */
void spate_buf_printf(struct spate_buf *buf, const char *fmt, ...) SPATE_PRINTF(2, 3);
const char *spate_buf_str(struct spate_buf *buf); /* NUL-terminated view; len does not count the NUL */

static inline void spate_buf_reset(struct spate_buf *buf)
{
    buf->len = 0;
}

static inline void spate_buf_reserve(struct spate_buf *buf, size_t more)
{
    if (more > buf->cap - buf->len)
        spate_buf_grow(buf, more);
}

static inline void spate_buf_add(struct spate_buf *buf, const void *at, size_t len)
{
    if (len == 0)
        return;
    spate_buf_reserve(buf, len);
    memcpy(buf->data + buf->len, at, len);
    buf->len += len;
}

static inline void spate_buf_puts(struct spate_buf *buf, const char *str)
{
    spate_buf_add(buf, str, strlen(str));
}

static inline void spate_buf_putc(struct spate_buf *buf, char c)
{
    spate_buf_reserve(buf, 1);
    buf->data[buf->len++] = c;
}

static inline void spate_buf_slice(struct spate_buf *buf, struct spate_slice s)
{
    spate_buf_add(buf, s.at, s.len);
}

static inline struct spate_slice spate_buf_view(const struct spate_buf *buf)
{
    return spate_slice(buf->data, buf->len);
}

#endif
