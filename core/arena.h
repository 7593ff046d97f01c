/* core/arena.h - many small allocations, one reset. Nothing is freed singly. */
#ifndef SPATE_CORE_ARENA_H
#define SPATE_CORE_ARENA_H

#include "core/slice.h"

#include <stddef.h>

struct spate_arena_block;

struct spate_arena {
    struct spate_arena_block *head; /* the block in use; older ones are chained behind it */
    size_t used;                    /* bytes handed out since the last reset */
};

/* All zero is a valid empty arena. Memory is 16-byte aligned. */
void *spate_arena_alloc(struct spate_arena *arena, size_t size) __attribute__((returns_nonnull));
struct spate_slice spate_arena_copy(struct spate_arena *arena, struct spate_slice s);
void spate_arena_reset(struct spate_arena *arena); /* keeps one block of ordinary size for reuse */
void spate_arena_fini(struct spate_arena *arena);

#endif
