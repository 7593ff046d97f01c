#include "core/buf.h"

#include "core/alloc.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void spate_buf_fini(struct spate_buf *buf)
{
    free(buf->data);
    *buf = (struct spate_buf){0};
}

void spate_buf_grow(struct spate_buf *buf, size_t more)
{
    size_t cap = buf->cap ? buf->cap : 64;

    if (more > SIZE_MAX / 4 - buf->len) /* no honest caller comes near */
        abort();
    while (cap < buf->len + more)
        cap *= 2;
    buf->data = spate_realloc(buf->data, cap);
    buf->cap = cap;
}

void spate_buf_trim(struct spate_buf *buf, size_t keep)
{
    if (buf->cap > keep)
        spate_buf_fini(buf);
    buf->len = 0;
}

void spate_buf_printf(struct spate_buf *buf, const char *fmt, ...)
{
    va_list args, again;
    int len;

    va_start(args, fmt);
    va_copy(again, args);
    len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (len < 0)
        abort();
    spate_buf_reserve(buf, (size_t)len + 1);
    vsnprintf(buf->data + buf->len, (size_t)len + 1, fmt, again);
    va_end(again);
    buf->len += (size_t)len;
}

const char *spate_buf_str(struct spate_buf *buf)
{
    spate_buf_reserve(buf, 1);
    buf->data[buf->len] = '\0';
    return buf->data;
}
