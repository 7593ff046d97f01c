#include "core/arena.h"

#include "core/alloc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 64 * 1024, ALIGN = 16 };

struct spate_arena_block {
    struct spate_arena_block *older;
    size_t at, cap;
    _Alignas(ALIGN) char data[];
};

static struct spate_arena_block *block_new(size_t cap, struct spate_arena_block *older)
{
    struct spate_arena_block *block = spate_alloc(sizeof *block + cap);

    block->older = older;
    block->at = 0;
    block->cap = cap;
    return block;
}

void *spate_arena_alloc(struct spate_arena *arena, size_t size)
{
    struct spate_arena_block *block = arena->head;
    void *at;

    if (size > SIZE_MAX / 4)
        abort();
    size = (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (!block || size > block->cap - block->at) {
        if (block && size > BLOCK_BYTES / 4) {
            /* A large piece gets a block of its own behind the one in use, which goes on being filled. */
            struct spate_arena_block *own = block_new(size, block->older);

            block->older = own;
            own->at = size;
            arena->used += size;
            return own->data;
        }
        block = block_new(size > BLOCK_BYTES ? size : BLOCK_BYTES, block);
        arena->head = block;
    }
    at = block->data + block->at;
    block->at += size;
    arena->used += size;
    return at;
}

struct spate_slice spate_arena_copy(struct spate_arena *arena, struct spate_slice s)
{
    char *at;

    if (s.len == 0)
        return spate_slice("", 0);
    at = spate_arena_alloc(arena, s.len);
    memcpy(at, s.at, s.len);
    return spate_slice(at, s.len);
}

static void blocks_free(struct spate_arena_block *block)
{
    while (block) {
        struct spate_arena_block *older = block->older;

        free(block);
        block = older;
    }
}

void spate_arena_reset(struct spate_arena *arena)
{
    struct spate_arena_block *block = arena->head;

    arena->used = 0;
    if (!block)
        return;
    if (block->cap != BLOCK_BYTES) {
        spate_arena_fini(arena);
        return;
    }
    blocks_free(block->older);
    block->older = NULL;
    block->at = 0;
}

void spate_arena_fini(struct spate_arena *arena)
{
    blocks_free(arena->head);
    *arena = (struct spate_arena){0};
}
