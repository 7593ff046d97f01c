/* bus/local/lock.c - writers.lck. */
#include "bus/local/lock.h"
#include "bus/local/place.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RETRY_MS 1

enum spate_rc spate_local_lock_open(int dir, int *fd, struct spate_err *err)
{
    *fd = openat(dir, "writers.lck", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (*fd < 0)
        return spate_fail(err, errno == ENOSPC ? SPATE_RETRY : SPATE_FATAL,
                          "cannot open the file writers.lck: %s; this process runs as uid %u",
                          strerror(errno), (unsigned)geteuid());
    spate_local_open_up(dir, *fd);
    return SPATE_OK;
}

static struct flock whole_of_slot_0(short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
}

enum spate_rc spate_local_lock_try(int fd, struct spate_err *err)
{
    struct flock lock = whole_of_slot_0(F_WRLCK);

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return SPATE_OK;
    if (errno == EAGAIN || errno == EACCES || errno == EINTR)
        return SPATE_AGAIN;
    return spate_fail(err, SPATE_FATAL, "cannot lock the file writers.lck: %s", strerror(errno));
}

enum spate_rc spate_local_lock_wait(int fd, int timeout_ms, struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    for (;;) {
        const enum spate_rc rc = spate_local_lock_try(fd, err);
        if (rc != SPATE_AGAIN || spate_clock_ms() >= deadline)
            return rc;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

void spate_local_lock_release(int fd)
{
    struct flock lock = whole_of_slot_0(F_UNLCK);

    fcntl(fd, F_OFD_SETLK, &lock);
}

bool spate_local_lock_held(int fd)
{
    struct flock lock = whole_of_slot_0(F_WRLCK);

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

void spate_local_lock_sign(int fd)
{
    char host[64] = "", text[SPATE_LOCAL_OWNER];

    if (gethostname(host, sizeof host - 1) != 0)
        strcpy(host, "?");
    const int len = snprintf(text, sizeof text, "process %d on host %s\n", (int)getpid(), host);
    /* Only a courtesy to whoever finds the lock taken: a full disk must not stop the owner here. */
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)len, 0) != len)
        return;
}

void spate_local_lock_owner(int fd, char out[SPATE_LOCAL_OWNER])
{
    const ssize_t got = pread(fd, out, SPATE_LOCAL_OWNER - 1, 0);

    out[got < 0 ? 0 : got] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (out[0] == '\0')
        snprintf(out, SPATE_LOCAL_OWNER, "another process");
}
