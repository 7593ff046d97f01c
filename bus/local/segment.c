/* bus/local/segment.c - making, mapping and listing segment files. */
#include "bus/local/segment.h"

#include "bus/local/broken.h"
#include "bus/local/listing.h"
#include "bus/local/place.h"
#include "core/failpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool spate_local_segment_keep;
void (*spate_local_segment_hook)(const char *where);

static void hook(const char *where)
{
    if (spate_local_segment_hook)
        spate_local_segment_hook(where);
}

void spate_local_segment_name(uint64_t base, char out[SPATE_LOCAL_FILE])
{
    snprintf(out, SPATE_LOCAL_FILE, "%016" PRIx64 ".seg", base);
}

int spate_local_temp_make(int dir, const char *what, char name[SPATE_LOCAL_TEMP])
{
    static _Atomic unsigned serial;
    struct stat st;

    for (;;) {
        snprintf(name, SPATE_LOCAL_TEMP, ".%s.%d.%u.tmp", what, (int)getpid(), atomic_fetch_add(&serial, 1));
        const int fd = openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
        if (fd < 0 && errno == EEXIST)
            continue; /* of a process with our pid: before, or in another container */
        if (fd < 0)
            return -1;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && st.st_nlink > 0)
            return fd;
        unlinkat(dir, name, 0); /* found by a sweep before it was locked; its process may sleep for long */
        close(fd);
    }
}

enum spate_rc spate_local_segment_create(int dir, uint64_t base, uint64_t cap, struct spate_err *err)
{
    char name[SPATE_LOCAL_FILE], what[20], temp[SPATE_LOCAL_TEMP];
    struct spate_local_segment_header header;

    spate_local_segment_name(base, name);
    if (faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return SPATE_OK;
    snprintf(what, sizeof what, "%016" PRIx64, base);
    const int fd = spate_local_temp_make(dir, what, temp);
    if (fd < 0)
        return errno == ENOSPC || errno == EDQUOT
                   ? SPATE_AGAIN
                   : spate_fail(err, errno == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                                "cannot create the segment %s: %s", name,
                                errno == ENOENT ? "its directory was removed" : strerror(errno));
    int why;

    spate_local_open_up(dir, fd);
    do /* tmpfs of older kernels gives up when a signal is pending */
        why = SPATE_BROKEN(SPARSE) ? (ftruncate(fd, (off_t)(SPATE_LOCAL_HEADER + cap)) != 0 ? errno : 0)
                                   : posix_fallocate(fd, 0, (off_t)(SPATE_LOCAL_HEADER + cap));
    while (why == EINTR);
    spate_local_segment_header_make(&header, base, cap);
    if (why == 0 && pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
        why = errno;
    hook("create: made");
    SPATE_FAILPOINT(local_segment_made);
    /* link, not rename: it fails when somebody else was first, so nobody's records are replaced. */
    if (why == 0 && linkat(dir, temp, dir, name, 0) != 0 && errno != EEXIST)
        why = errno;
    hook("create: linked");
    SPATE_FAILPOINT(local_segment_linked);
    unlinkat(dir, temp, 0);
    hook("create: done");
    close(fd);
    if (why == ENOSPC || why == EDQUOT)
        return SPATE_AGAIN;
    if (why != 0)
        return spate_fail(err, why == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                          "cannot make the segment %s of %" PRIu64 " bytes: %s", name,
                          SPATE_LOCAL_HEADER + cap,
                          why == ENOENT ? "its directory was removed" : strerror(why));
    return SPATE_OK;
}

void spate_local_segment_look(struct spate_local_segment *seg)
{
    struct stat st;

    if (seg->fd < 0 || fstat(seg->fd, &st) != 0 || (uint64_t)st.st_size < SPATE_LOCAL_HEADER)
        return;
    const uint64_t size = (uint64_t)st.st_size - SPATE_LOCAL_HEADER;
    seg->size = size < seg->cap ? size : seg->cap;
}

static const char *remedy(bool archived)
{
    return archived
               ? "Put it back from a copy, or move it away: then what it held is lost, and whoever misses "
                 "it says so"
               : "Stop all that uses this bus and remove the topic's directory in shared memory (`spate bus "
                 "ls` prints the command): it is made "
                 "anew from what is durable";
}

enum spate_rc spate_local_segment_was_cut(const struct spate_local_segment *seg, bool archived,
                                          struct spate_err *err)
{
    char name[SPATE_LOCAL_FILE];

    spate_local_segment_name(seg->base, name);
    return spate_fail(err, SPATE_FATAL, "the segment %s was cut while it was in use. %s", name,
                      remedy(archived));
}

bool spate_local_segment_whole(const struct spate_local_segment *seg, int dir)
{
    char name[SPATE_LOCAL_FILE];
    struct stat st;

    if (spate_local_segment_cut(seg))
        return false;
    spate_local_segment_name(seg->base, name);
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || st.st_ino != seg->ino)
        return true; /* removed, or another one: the mapping keeps what it has */
    return spate_local_file_whole(&st, SPATE_LOCAL_HEADER + seg->cap, seg->blocks);
}

enum spate_rc spate_local_segment_map(int dir, uint64_t base, uint64_t cap, enum spate_local_map how,
                                      struct spate_local_segment *seg, struct spate_err *err)
{
    char name[SPATE_LOCAL_FILE];
    const bool write = how == SPATE_LOCAL_MAP_WRITE;
    struct stat st;

    spate_local_segment_name(base, name);
    const int fd = openat(dir, name, (write ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return SPATE_END;
    if (fd < 0 || fstat(fd, &st) != 0) {
        const int why = errno;
        if (fd >= 0)
            close(fd);
        return spate_fail(err, SPATE_FATAL, "cannot open the segment %s: %s", name, strerror(why));
    }
    const uint64_t whole = SPATE_LOCAL_HEADER + cap;
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < SPATE_LOCAL_HEADER ||
        (how != SPATE_LOCAL_MAP_ARCHIVE && (uint64_t)st.st_size != whole)) {
        close(fd);
        return spate_fail(err, SPATE_FATAL,
                          "the segment %s has %lld bytes, expected %" PRIu64 ": it was cut. %s", name,
                          (long long)st.st_size, whole, remedy(how == SPATE_LOCAL_MAP_ARCHIVE));
    }
    const bool keep = spate_local_segment_keep && how != SPATE_LOCAL_MAP_ARCHIVE;
    void *at = mmap(NULL, whole, write ? PROT_READ | PROT_WRITE : PROT_READ,
                    MAP_SHARED | (keep ? MAP_POPULATE : 0), fd, 0);
    if (at == MAP_FAILED) {
        const int why = errno;
        close(fd);
        return spate_fail(err, SPATE_FATAL, "cannot map the segment %s: %s", name, strerror(why));
    }
    *seg = (struct spate_local_segment){.at = at,
                                        .base = base,
                                        .cap = cap,
                                        .size = cap,
                                        .fd = -1,
                                        .passed = keep ? cap : 0,
                                        .blocks = (uint64_t)st.st_blocks,
                                        .ino = st.st_ino,
                                        .guard = spate_local_guard_add(at, whole, write)};
    if (how == SPATE_LOCAL_MAP_ARCHIVE) {
        seg->fd = fd;
        spate_local_segment_look(seg);
    } else {
        close(fd);
    }
    const enum spate_rc rc = spate_local_segment_header_check(spate_local_header(seg), base, cap, err);
    if (rc != SPATE_OK)
        spate_local_segment_unmap(seg);
    return rc;
}

void spate_local_segment_unmap(struct spate_local_segment *seg)
{
    if (!seg->at)
        return;
    spate_local_guard_remove(seg->guard);
    munmap(seg->at, SPATE_LOCAL_HEADER + seg->cap);
    if (seg->fd >= 0)
        close(seg->fd);
    seg->at = NULL;
    seg->guard = NULL;
    seg->fd = -1;
}

void spate_local_segment_give_back(struct spate_local_segment *seg, uint64_t offset)
{
    const uint64_t upto = (offset - SPATE_LOCAL_PASS) & ~(SPATE_LOCAL_PASS - 1);

    /* It can only fail where pages are larger than 4096 bytes, and then nothing is given back. */
    madvise(seg->at + SPATE_LOCAL_HEADER + seg->passed, upto - seg->passed, MADV_DONTNEED);
    seg->passed = upto;
}

bool spate_local_segment_remove(int dir, uint64_t base)
{
    char name[SPATE_LOCAL_FILE];

    spate_local_segment_name(base, name);
    return unlinkat(dir, name, 0) == 0;
}

/* Calls `each` for every entry but . and ..; false, with errno: the directory cannot be read. */
static bool walk(int dir, void (*each)(void *arg, const char *name), void *arg)
{
    struct spate_local_listing list;
    const char *name;

    if (!spate_local_listing_open(&list, dir))
        return false;
    while ((name = spate_local_listing_next(&list)) != NULL)
        each(arg, name);
    const int why = errno;
    spate_local_listing_close(&list);
    errno = why;
    return why == 0;
}

static bool base_of_name(const char *name, uint64_t *base)
{
    char *end;

    if (strlen(name) != 20 || strcmp(name + 16, ".seg") != 0 || strspn(name, "0123456789abcdef") != 16)
        return false;
    *base = strtoull(name, &end, 16);
    return true;
}

struct search {
    uint64_t pos, best;
    bool up, found;
};

static void consider(void *arg, const char *name)
{
    struct search *s = arg;
    uint64_t base;

    if (!base_of_name(name, &base) || (s->up ? base < s->pos : base >= s->pos))
        return;
    if (!s->found || (s->up ? base < s->best : base > s->best))
        s->best = base;
    s->found = true;
}

static enum spate_rc search(int dir, struct search *s, uint64_t *base, struct spate_err *err)
{
    if (!walk(dir, consider, s))
        return spate_fail(err, SPATE_RETRY, "cannot list the segments: %s", strerror(errno));
    *base = s->best;
    return s->found ? SPATE_OK : SPATE_END;
}

enum spate_rc spate_local_segment_next(int dir, uint64_t pos, uint64_t *base, struct spate_err *err)
{
    return search(dir, &(struct search){.pos = pos, .up = true}, base, err);
}

enum spate_rc spate_local_segment_prev(int dir, uint64_t pos, uint64_t *base, struct spate_err *err)
{
    return search(dir, &(struct search){.pos = pos, .up = false}, base, err);
}

static void remove_any(void *arg, const char *name)
{
    unlinkat(*(const int *)arg, name, 0);
}

/* Who makes it has it locked; so it is left alone while its maker lives. */
static void remove_temp(void *arg, const char *name)
{
    const int dir = *(const int *)arg;
    const size_t len = strlen(name);

    if (name[0] != '.' || len <= 4 || strcmp(name + len - 4, ".tmp") != 0)
        return;
    const int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(dir, name, 0);
    if (fd >= 0)
        close(fd);
}

void spate_local_segment_sweep(int dir)
{
    walk(dir, remove_temp, &dir);
}

void spate_local_segment_clear(int dir)
{
    walk(dir, remove_any, &dir);
}
