/* core/alloc.h - small allocations, which abort when memory is gone.
 *
 * Sizes that come from outside (a length on the wire, a file) are range-checked by the caller
 * before they get here. */
#ifndef SPATE_CORE_ALLOC_H
#define SPATE_CORE_ALLOC_H

#include <stddef.h>

void *spate_alloc(size_t size) __attribute__((malloc, returns_nonnull));
void *spate_zalloc(size_t size) __attribute__((malloc, returns_nonnull));
void *spate_realloc(void *old, size_t size) __attribute__((returns_nonnull));
char *spate_strdup(const char *str) __attribute__((malloc, returns_nonnull));
char *spate_strndup(const char *at, size_t len) __attribute__((malloc, returns_nonnull));

#define SPATE_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#endif
