/* bus/local/sigbus.h - mapped files that somebody cuts while they are in use.
 *
 * Touching a page of a mapping behind the end of its file raises SIGBUS, and kills. Of the mappings that are
 * known here a handler puts zeros in the place of what is gone, and marks the mapping as cut: whoever reads
 * or writes there goes on, looks at the mark before he believes anything, and says what happened. A page that
 * the cut goes through reads as zeros without any signal; _whole finds that as well.
 *
 * The handler is installed with the first mapping. A SIGBUS of any other address goes to the handler that was
 * there before, or kills as ever. A program that installs its own afterwards has to hand on what it does not
 * know, or does without this guard.
 * Thread: any. Blocks: nothing. */
#ifndef SPATE_BUS_LOCAL_SIGBUS_H
#define SPATE_BUS_LOCAL_SIGBUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct spate_local_guard {
    _Atomic uintptr_t from, upto; /* what is mapped; from 0: not in use */
    _Atomic bool cut;
    bool writes; /* the pages in place of those that are gone may be written */
};

/* Watches over a shared mapping of a file. Never NULL; belongs to the mapping until _remove, which comes
 * before munmap. */
struct spate_local_guard *spate_local_guard_add(const void *at, size_t len, bool writes);
void spate_local_guard_remove(struct spate_local_guard *guard); /* accepts NULL */

/* Installs no handler: a library in a program that wants none. What is cut then kills, and a cut that goes
 * through a page is found as ever. Before the first mapping. */
void spate_local_guard_bare(void);

/* Was something of it missing when it was touched? What a writer committed counts only when this is false
 * afterwards; what a reader found, too. */
static inline bool spate_local_guard_cut(const struct spate_local_guard *guard)
{
    return guard && atomic_load_explicit(&guard->cut, memory_order_acquire);
}

/* Does a file of `size` bytes, which had `blocks` on the disk when it was mapped, still have them? What was
 * cut and made longer again has a hole. */
static inline bool spate_local_file_whole(const struct stat *st, uint64_t size, uint64_t blocks)
{
    return (uint64_t)st->st_size >= size && (uint64_t)st->st_blocks >= blocks;
}

#endif
