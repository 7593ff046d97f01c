/* bus/local/lock.c - writers.lck. */
#include "bus/local/lock.h"

#include "bus/local/layout.h"
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

static struct flock one_byte(int place, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = place, .l_len = 1};
}

enum spate_rc spate_local_lock_try(int fd, int place, enum spate_local_lock how, struct spate_err *err)
{
    struct flock lock = one_byte(place, how == SPATE_LOCAL_LOCK_ALONE ? F_WRLCK : F_RDLCK);

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return SPATE_OK;
    if (errno == EAGAIN || errno == EACCES || errno == EINTR)
        return SPATE_AGAIN;
    return spate_fail(err, SPATE_FATAL, "cannot lock the file writers.lck: %s", strerror(errno));
}

enum spate_rc spate_local_lock_wait(int fd, int place, enum spate_local_lock how, int timeout_ms,
                                    struct spate_err *err)
{
    const int64_t deadline = spate_clock_ms() + timeout_ms;

    for (;;) {
        const enum spate_rc rc = spate_local_lock_try(fd, place, how, err);
        if (rc != SPATE_AGAIN || spate_clock_ms() >= deadline)
            return rc;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

enum spate_rc spate_local_lock_slot(int fd, unsigned *slot, struct spate_err *err)
{
    for (unsigned i = 1; i < SPATE_LOCAL_WRITERS; i++) {
        const enum spate_rc rc = spate_local_lock_try(fd, (int)i, SPATE_LOCAL_LOCK_ALONE, err);
        if (rc != SPATE_AGAIN) {
            *slot = i;
            return rc;
        }
    }
    return SPATE_AGAIN;
}

void spate_local_lock_release(int fd, int place)
{
    struct flock lock = one_byte(place, F_UNLCK);

    fcntl(fd, F_OFD_SETLK, &lock);
}

static bool conflicts(int fd, int place, short type)
{
    struct flock lock = one_byte(place, type);

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool spate_local_lock_alone(int fd, int place)
{
    return conflicts(fd, place, F_RDLCK);
}

bool spate_local_lock_held(int fd, int place)
{
    return conflicts(fd, place, F_WRLCK);
}

/* Lines of one size behind the bytes that are locked. */
static off_t line_of(unsigned slot)
{
    return (off_t)slot * SPATE_LOCAL_OWNER;
}

void spate_local_lock_sign(int fd, unsigned slot)
{
    char host[64] = "", text[SPATE_LOCAL_OWNER] = "";

    if (gethostname(host, sizeof host - 1) != 0)
        strcpy(host, "?");
    snprintf(text, sizeof text - 1, "process %d on host %s", (int)getpid(), host);
    text[sizeof text - 1] = '\n';
    /* Only a courtesy to whoever finds the place taken: a full disk must not stop the owner here. */
    if (pwrite(fd, text, sizeof text, line_of(slot)) != (ssize_t)sizeof text)
        return;
}

void spate_local_lock_signed(int fd, unsigned slot, char out[SPATE_LOCAL_OWNER])
{
    const ssize_t got = pread(fd, out, SPATE_LOCAL_OWNER - 1, line_of(slot));

    out[got < 0 ? 0 : got] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (out[0] == '\0')
        snprintf(out, SPATE_LOCAL_OWNER, "another process");
}

void spate_local_lock_sign_steward(int fd)
{
    spate_local_lock_sign(fd, SPATE_LOCAL_LOCK_STEWARD);
}

void spate_local_lock_steward(int fd, char out[SPATE_LOCAL_OWNER])
{
    spate_local_lock_signed(fd, SPATE_LOCAL_LOCK_STEWARD, out);
}

void spate_local_lock_owner(int fd, char out[SPATE_LOCAL_OWNER])
{
    unsigned slot = 0;

    if (!spate_local_lock_alone(fd, SPATE_LOCAL_LOCK_TOPIC))
        for (slot = SPATE_LOCAL_WRITERS - 1; slot > 0 && !spate_local_lock_alone(fd, (int)slot); slot--)
            ;
    spate_local_lock_signed(fd, slot, out);
}
