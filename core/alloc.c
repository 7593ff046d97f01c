#include "core/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *at, size_t size)
{
    if (!at) {
        fprintf(stderr, "level=error event=out_of_memory bytes=%zu\n", size);
        abort();
    }
    return at;
}

void *spate_alloc(size_t size)
{
    return checked(malloc(size ? size : 1), size);
}

void *spate_zalloc(size_t size)
{
    return checked(calloc(1, size ? size : 1), size);
}

void *spate_realloc(void *old, size_t size)
{
    return checked(realloc(old, size ? size : 1), size);
}

char *spate_strdup(const char *str)
{
    return spate_strndup(str, strlen(str));
}

char *spate_strndup(const char *at, size_t len)
{
    char *copy = spate_alloc(len + 1);

    if (len)
        memcpy(copy, at, len);
    copy[len] = '\0';
    return copy;
}
