/* bus/local/place.c - finding, checking and making the two roots. */
#include "bus/local/place.h"

#include "bus/local/note.h"
#include "core/clock.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define META "bus.meta"

bool spate_local_name_good(const char *topic)
{
    const size_t len = strspn(topic, "abcdefghijklmnopqrstuvwxyz0123456789._-");

    return len > 0 && len <= SPATE_LOCAL_NAME && topic[len] == '\0' && !strchr("._-", topic[0]);
}

/* Shared mappings, locks and fdatasync mean what they say only on a local file system. */
static enum spate_rc refuse_remote(int fd, const char *path, struct spate_err *err)
{
    static const struct {
        uint32_t magic;
        const char *name;
    } remote[] = {{0x6969, "NFS"}, {0x01021997, "9p"},   {0x65735546, "FUSE"},
                  {0x517B, "SMB"}, {0xFF534D42, "CIFS"}, {0xFE534D42, "SMB2"}};
    struct statfs fs;

    if (fstatfs(fd, &fs) != 0)
        return spate_fail(err, SPATE_FATAL, "cannot examine the file system of %s: %s", path,
                          strerror(errno));
    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        if ((uint32_t)fs.f_type == remote[i].magic)
            return spate_fail(
                err, SPATE_FATAL,
                "%s is on %s, where locks and shared memory do not reach every process; put the "
                "bus on a local disk (bus.local.path, bus.local.hot)",
                path, remote[i].name);
    return SPATE_OK;
}

static enum spate_rc open_root(const char *path, int *fd, struct spate_err *err)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return errno == ENOENT ? SPATE_END
                               : spate_fail(err, SPATE_FATAL, "%s is not a directory (bus.local.path)", path);
    if (*fd < 0)
        return spate_fail(err, SPATE_FATAL, "cannot open the directory %s: %s; this process runs as uid %u",
                          path, strerror(errno), (unsigned)geteuid());
    const enum spate_rc rc = refuse_remote(*fd, path, err);
    if (rc != SPATE_OK) {
        close(*fd);
        *fd = -1;
    }
    return rc;
}

enum spate_rc spate_local_place_durable(const struct spate_local_place *place, int *durable_fd,
                                        struct spate_err *err)
{
    return open_root(place->path, durable_fd, err);
}

enum spate_rc spate_local_place_hot_path(const struct spate_local_place *place, char out[SPATE_LOCAL_PATH],
                                         struct spate_err *err)
{
    char real[PATH_MAX];
    struct stat st;

    if (place->hot) {
        snprintf(out, SPATE_LOCAL_PATH, "%s", place->hot);
        return SPATE_OK;
    }
    if (!realpath(place->path, real) || stat(real, &st) != 0) {
        err->missing = errno == ENOENT;
        return spate_fail(err, SPATE_RETRY, "there is no bus at %s: %s", place->path, strerror(errno));
    }
    snprintf(out, SPATE_LOCAL_PATH, "/dev/shm/spate-%u-%016" PRIx64, (unsigned)st.st_uid,
             spate_fnv64(SPATE_FNV64_START, real, strlen(real)));
    return SPATE_OK;
}

static void boot_id(char out[64])
{
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, out, 63);

    if (fd >= 0)
        close(fd);
    if (got < 0)
        got = 0;
    out[got] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (out[0] == '\0')
        strcpy(out, "unknown");
}

/* SPATE_END: no bus.meta, or one that an earlier boot left (a hot root on a disk): whatever stands beside it
 * may be torn. */
static enum spate_rc read_meta(int hot_fd, uint64_t *hot_id, struct spate_err *err)
{
    char text[SPATE_LOCAL_NOTE_SIZE], boot[64], was[64];
    const enum spate_rc rc = spate_local_note_read(hot_fd, META, text, err);

    if (rc != SPATE_OK)
        return rc;
    boot_id(boot);
    if (!spate_local_note_get(text, "boot", was, sizeof was) ||
        !spate_local_note_u64(text, "hot", 16, hot_id))
        return spate_fail(err, SPATE_FATAL,
                          "the file " META " is of another version; remove the hot root while "
                          "no spate runs");
    return strcmp(boot, was) == 0 ? SPATE_OK : SPATE_END;
}

/* /dev/shm is open to everybody, so a directory of our name may be a stranger's. */
static enum spate_rc refuse_stranger(const struct spate_local_place *place, int hot_fd, const char *path,
                                     struct spate_err *err)
{
    struct stat hot, durable;

    if (fstat(hot_fd, &hot) != 0 || stat(place->path, &durable) != 0)
        return spate_fail(err, SPATE_FATAL, "cannot examine %s: %s", path, strerror(errno));
    if (!place->hot && hot.st_uid != durable.st_uid && hot.st_uid != geteuid() && hot.st_uid != 0)
        return spate_fail(
            err, SPATE_FATAL,
            "%s belongs to uid %u, but the bus at %s to uid %u; remove it, or set bus.local.hot", path,
            (unsigned)hot.st_uid, place->path, (unsigned)durable.st_uid);
    return SPATE_OK;
}

enum spate_rc spate_local_place_hot(const struct spate_local_place *place, int *hot_fd, uint64_t *hot_id,
                                    struct spate_err *err)
{
    char path[SPATE_LOCAL_PATH];
    enum spate_rc rc = spate_local_place_hot_path(place, path, err);

    *hot_fd = -1;
    if (rc == SPATE_OK)
        rc = open_root(path, hot_fd, err);
    if (rc == SPATE_OK)
        rc = refuse_stranger(place, *hot_fd, path, err);
    if (rc == SPATE_OK)
        rc = read_meta(*hot_fd, hot_id, err);
    if (rc != SPATE_OK && *hot_fd >= 0) {
        close(*hot_fd);
        *hot_fd = -1;
    }
    return rc;
}

void spate_local_open_up(int dir, int fd)
{
    struct stat st;

    if (fstat(dir, &st) == 0 && (st.st_mode & S_IWGRP) && fchmod(fd, 0660) != 0)
        return; /* another one of the group made it, and did so already */
}

/* The hot root belongs to whom the bus belongs to: made by another one of the group, it would be refused. */
static enum spate_rc hot_is_ours_to_make(const struct spate_local_place *place, const char *hot,
                                         struct spate_err *err)
{
    struct stat durable;

    if (access(hot, F_OK) == 0 || geteuid() == 0 || stat(place->path, &durable) != 0 ||
        durable.st_uid == geteuid())
        return SPATE_OK;
    err->missing = true;
    return spate_fail(err, SPATE_RETRY,
                      "the shared memory of the bus at %s, %s, is not there yet: its owner (uid %u, the "
                      "connector's) makes it",
                      place->path, hot, (unsigned)durable.st_uid);
}

/* mkdir -p; the group may read, and files inherit the group. */
static enum spate_rc make_path(const char *path, struct spate_err *err)
{
    char part[SPATE_LOCAL_PATH];
    const size_t len = strlen(path);

    if (len == 0 || len >= sizeof part)
        return spate_fail(err, SPATE_FATAL, "the path of the bus is empty or too long");
    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 02750) != 0 && errno != EEXIST)
            return spate_fail(err, errno == ENOSPC ? SPATE_RETRY : SPATE_FATAL,
                              "cannot make the directory %s: %s; this process runs as uid %u", part,
                              strerror(errno), (unsigned)geteuid());
    }
    return SPATE_OK;
}

static enum spate_rc write_meta(int hot_fd, uint64_t *hot_id, struct spate_err *err)
{
    char text[512], boot[64];

    if (getrandom(hot_id, sizeof *hot_id, 0) != (ssize_t)sizeof *hot_id)
        *hot_id = (uint64_t)spate_clock_wall_us() << 8 ^ (uint64_t)getpid();
    boot_id(boot);
    snprintf(text, sizeof text,
             "spate-local-bus 1\norder %s\nboot %s\nunit 64\nhot %016" PRIx64 "\ncreated_us %" PRId64 "\n",
             *(const char *)&(const int){1} ? "little" : "big", boot, *hot_id, spate_clock_wall_us());
    return spate_local_note_write(hot_fd, META, text, false, err);
}

enum spate_rc spate_local_place_make(const struct spate_local_place *place, int *durable_fd, int *hot_fd,
                                     uint64_t *hot_id, struct spate_err *err)
{
    char path[SPATE_LOCAL_PATH];
    enum spate_rc rc;

    *durable_fd = *hot_fd = -1;
    if ((rc = make_path(place->path, err)) != SPATE_OK)
        return rc;
    if ((rc = open_root(place->path, durable_fd, err)) != SPATE_OK ||
        (rc = spate_local_place_hot_path(place, path, err)) != SPATE_OK ||
        (rc = hot_is_ours_to_make(place, path, err)) != SPATE_OK || (rc = make_path(path, err)) != SPATE_OK ||
        (rc = open_root(path, hot_fd, err)) != SPATE_OK ||
        (rc = refuse_stranger(place, *hot_fd, path, err)) != SPATE_OK)
        goto out;
    /* Two first writers must agree on one incarnation. */
    while ((rc = flock(*hot_fd, LOCK_EX) == 0 ? SPATE_OK : SPATE_FAIL) == SPATE_FAIL && errno == EINTR)
        ;
    if (rc != SPATE_OK) {
        rc = spate_fail(err, SPATE_FATAL, "cannot lock %s: %s", path, strerror(errno));
        goto out;
    }
    rc = read_meta(*hot_fd, hot_id, err);
    if (rc == SPATE_END)
        rc = write_meta(*hot_fd, hot_id, err);
    flock(*hot_fd, LOCK_UN);
    if (rc == SPATE_FAIL)
        spate_err_context(err, "hot root %s", path);
out:
    if (rc == SPATE_END)
        rc = spate_fail(err, SPATE_RETRY, "the bus at %s was removed meanwhile", place->path);
    if (rc != SPATE_OK) {
        if (*durable_fd >= 0)
            close(*durable_fd);
        if (*hot_fd >= 0)
            close(*hot_fd);
        *durable_fd = *hot_fd = -1;
    }
    return rc;
}

uint64_t spate_local_place_cap(const struct spate_local_place *place, int hot_fd, const char *topic)
{
    const bool aside = strstr(topic, "._") != NULL;
    uint64_t cap = aside ? UINT64_C(4) << 20 : UINT64_C(64) << 20;
    struct statfs fs;

    if (place->segment_bytes > 0)
        return (uint64_t)place->segment_bytes;
    if (fstatfs(hot_fd, &fs) != 0 || fs.f_blocks == 0)
        return cap;
    /* Up to four segments of the stream and of three small topics must fit: 4/8 + 3 * 4/64 < 3/4. */
    const uint64_t size = (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize;
    const uint64_t most = size / (aside ? 64 : 8);
    while (cap > most && cap > UINT64_C(1) << 20)
        cap /= 2;
    return cap;
}
