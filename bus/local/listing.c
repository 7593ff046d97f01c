/* bus/local/listing.c - getdents64(2), because opendir(3) allocates. */
#include "bus/local/listing.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As the kernel writes it: the manual page getdents(2). */
struct entry {
    uint64_t ino;
    int64_t next;
    unsigned short size;
    unsigned char type;
    char name[];
};

bool spate_local_listing_open(struct spate_local_listing *listing, int dir)
{
    listing->fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    listing->at = listing->have = 0;
    return listing->fd >= 0;
}

const char *spate_local_listing_next(struct spate_local_listing *l)
{
    for (;;) {
        if (l->at >= l->have) {
            const long got = syscall(SYS_getdents64, l->fd, l->bytes, sizeof l->bytes);
            if (got <= 0) {
                errno = got < 0 && errno != ENOENT ? errno : 0; /* one that was removed is empty */
                return NULL;
            }
            l->at = 0;
            l->have = (size_t)got;
        }
        const struct entry *entry = (const struct entry *)(const void *)(l->bytes + l->at);
        l->at += entry->size;
        if (strcmp(entry->name, ".") != 0 && strcmp(entry->name, "..") != 0)
            return entry->name;
    }
}

void spate_local_listing_close(struct spate_local_listing *listing)
{
    close(listing->fd);
}
