/* core/memory.h - what this process has in RAM: its own, and apart from it what it shares.
 *
 * The bus lies in shared memory, which every process that has it mapped counts as its own resident set: `top`
 * shows it once for each of them. What a process costs is its private part alone.
 * Thread: any. Blocks: no; reads /proc/self/status. */
#ifndef SPATE_CORE_MEMORY_H
#define SPATE_CORE_MEMORY_H

#include <stdint.h>

struct spate_memory {      /* bytes that are resident now; -1: not known */
    int64_t private_bytes; /* heap, stacks, and what was copied on write */
    int64_t shared_bytes;  /* shared memory that is mapped: the hot part of the local bus */
    int64_t file_bytes;    /* mapped files: the program, libraries, the archive of the local bus */
};

void spate_memory_look(struct spate_memory *memory);

#endif
