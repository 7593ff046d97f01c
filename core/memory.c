/* core/memory.c - resident memory by kind, as the kernel counts it. */
#include "core/memory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "RssAnon:     1234 kB" at the beginning of a line. */
static int64_t kilobytes(const char *text, const char *name)
{
    const char *line = strstr(text, name);

    return line ? (int64_t)strtoll(line + strlen(name), NULL, 10) * 1024 : -1;
}

void spate_memory_look(struct spate_memory *memory)
{
    const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    char text[4096];
    const ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = '\0';
    memory->private_bytes = kilobytes(text, "\nRssAnon:");
    memory->shared_bytes = kilobytes(text, "\nRssShmem:");
    memory->file_bytes = kilobytes(text, "\nRssFile:");
}
