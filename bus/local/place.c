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
#include <time.h>
#include <unistd.h>

#define META         "bus.meta"
#define LOCK_WAIT_MS 2000
#define LIVES        "bus.lives" /* every writer has a shared lock on it */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTE_ORDER_NAME "little"
#else
#define BYTE_ORDER_NAME "big"
#endif

bool spate_local_name_good(const char *topic)
{
    const size_t len = strspn(topic, "abcdefghijklmnopqrstuvwxyz0123456789._-");

    return len > 0 && len <= SPATE_LOCAL_NAME && topic[len] == '\0' && !strchr("._-", topic[0]);
}

const char *spate_local_place_remote(uint32_t type)
{
    static const struct {
        uint32_t type;
        const char *name;
    } remote[] = {
        {0x6969, "NFS"},        {0x01021997, "9p"},       {0x65735546, "FUSE"},   {0x517B, "SMB"},
        {0xFF534D42, "CIFS"},   {0xFE534D42, "SMB"},      {0x00C36400, "CephFS"}, {0x5346414F, "AFS"},
        {0x6B414653, "AFS"},    {0x73757245, "Coda"},     {0x564C, "NCP"},        {0x01161970, "GFS2"},
        {0x7461636F, "OCFS2"},  {0x0BD00BD0, "Lustre"},   {0x47504653, "GPFS"},   {0x19830326, "BeeGFS"},
        {0xAAD7AAEA, "PanFS"},  {0x20030528, "OrangeFS"}, {0x786F4256, "vboxsf"}, {0xBACBACBC, "vmhgfs"},
        {0x7C7C6673, "prl_fs"}, {0x61636673, "ACFS"},     {0xBEEFDEAD, "SNFS"},   {0x013111A8, "IBRIX"},
    };

    for (size_t i = 0; i < sizeof remote / sizeof remote[0]; i++)
        if (type == remote[i].type)
            return remote[i].name;
    return NULL;
}

/* Shared mappings, locks and fdatasync mean what they say only on a local file system. */
static enum spate_rc refuse_remote(int fd, const char *path, struct spate_err *err)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) != 0)
        return spate_fail(err, SPATE_FATAL, "cannot examine the file system of %s: %s", path,
                          strerror(errno));
    const char *name = spate_local_place_remote((uint32_t)fs.f_type);
    if (name)
        return spate_fail(err, SPATE_FATAL,
                          "%s is on %s, where locks and shared memory do not reach every process; put the "
                          "bus on a local disk (bus.local.path, bus.local.hot)",
                          path, name);
    return SPATE_OK;
}

/* `ours`: a name that we made up ourselves, in a directory where anybody may put a link of that name. */
static enum spate_rc open_root(const char *path, bool ours, int *fd, struct spate_err *err)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (ours ? O_NOFOLLOW : 0));
    if (*fd < 0 && errno == ENOENT)
        return SPATE_END;
    if (*fd < 0 && (errno == ENOTDIR || errno == ELOOP))
        return spate_fail(
            err, SPATE_FATAL,
            ours ? "%s is no directory of a bus; see who made it, and remove it, or set bus.local.hot"
                 : "%s is not a directory (bus.local.path, bus.local.hot)",
            path);
    if (*fd < 0)
        return spate_fail(
            err, SPATE_FATAL, "cannot open the directory %s: %s; this process runs as uid %u%s", path,
            strerror(errno), (unsigned)geteuid(),
            errno == EACCES
                ? ", and the bus may be read by its owner and its group: `stat -c %U:%G DIRECTORY` "
                  "names them, `usermod -a -G GROUP USER` lets a user in"
                : "");
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
    return open_root(place->path, false, durable_fd, err);
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

/* Which durable root it is, by whatever path or device it is reached. 0: it cannot be told. */
static uint64_t identity(int durable_fd)
{
    struct statx st;
    uint64_t words[4];

    if (statx(durable_fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) != 0)
        return 0;
    const bool born =
        (st.stx_mask & STATX_BTIME) != 0; /* device numbers change when a disk is mounted again */
    words[0] = st.stx_ino;
    words[1] = born ? (uint64_t)st.stx_btime.tv_sec : st.stx_dev_major;
    words[2] = born ? st.stx_btime.tv_nsec : st.stx_dev_minor;
    words[3] = born;
    return spate_fnv64(SPATE_FNV64_START, words, sizeof words) | 1;
}

struct meta {
    uint64_t hot, bus;
    char path[512]; /* of the durable root, as it was called when the hot root was made */
};

static enum spate_rc refuse_meta(const char *what, const char *path, struct spate_err *err)
{
    return spate_fail(err, SPATE_FATAL,
                      "%s was made by %s; run the spate that made it, or remove the directory while no spate "
                      "runs: what is durable is kept",
                      path, what);
}

/* SPATE_END: no bus.meta, or one that an earlier boot left (a hot root on a disk): whatever stands beside it
 * may be torn. */
static enum spate_rc read_meta(int hot_fd, const char *path, struct meta *meta, struct spate_err *err)
{
    char text[SPATE_LOCAL_NOTE_SIZE], boot[64], was[64], version[16], order[16];
    enum spate_rc rc = spate_local_note_read(hot_fd, META, text, err);

    *meta = (struct meta){0};
    if (rc == SPATE_FAIL)
        return spate_err_context(err, "shared memory %s; it can be removed while no spate runs", path);
    if (rc != SPATE_OK)
        return rc;
    if (!spate_local_note_get(text, "spate-local-bus", version, sizeof version) || strcmp(version, "1") != 0)
        return refuse_meta("another version of spate", path, err);
    if (!spate_local_note_get(text, "order", order, sizeof order) || strcmp(order, BYTE_ORDER_NAME) != 0)
        return refuse_meta("a machine of the other byte order", path, err);
    boot_id(boot);
    if (!spate_local_note_get(text, "boot", was, sizeof was) ||
        !spate_local_note_u64(text, "hot", 16, &meta->hot))
        return refuse_meta("another version of spate", path, err);
    if (!spate_local_note_u64(text, "bus", 16, &meta->bus) ||
        !spate_local_note_get(text, "path", meta->path, sizeof meta->path))
        meta->bus = 0;
    return strcmp(boot, was) == 0 ? SPATE_OK : SPATE_END;
}

/* The hot root of another bus: one that is in use is left alone, one that was left behind is taken over. */
static enum spate_rc refuse_other(const struct spate_local_place *place, int hot_fd, const char *path,
                                  const struct meta *meta, struct spate_err *err)
{
    const int fd = openat(hot_fd, LIVES, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    const bool free = fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0;

    if (fd >= 0)
        close(fd);
    if (free)
        return SPATE_END;
    return spate_fail(
        err, SPATE_FATAL,
        "%s is the shared memory of another bus, at %s, which has a living writer; this is the bus at "
        "%s: set bus.local.hot to a directory of its own for one of them",
        path, meta->path, place->path);
}

int spate_local_place_live(int hot_fd)
{
    const int fd = openat(hot_fd, LIVES, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

    if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0) {
        close(
            fd); /* somebody looks at this moment whether anybody lives; he fails, or we do when we attach */
        return -1;
    }
    return fd;
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
    struct meta meta = {0};
    int durable = -1;
    enum spate_rc rc = spate_local_place_hot_path(place, path, err);

    *hot_fd = -1;
    if (rc == SPATE_OK)
        rc = open_root(path, !place->hot, hot_fd, err);
    if (rc == SPATE_OK)
        rc = refuse_stranger(place, *hot_fd, path, err);
    if (rc == SPATE_OK)
        rc = read_meta(*hot_fd, path, &meta, err);
    if (rc == SPATE_OK && meta.bus != 0)
        rc = open_root(place->path, false, &durable, err);
    if (rc == SPATE_OK && meta.bus != 0 && identity(durable) != meta.bus)
        rc = SPATE_END; /* another bus', or one that was here before this one: nothing in it is ours */
    *hot_id = meta.hot;
    if (durable >= 0)
        close(durable);
    if (rc != SPATE_OK && *hot_fd >= 0) {
        close(*hot_fd);
        *hot_fd = -1;
    }
    return rc;
}

void spate_local_open_up(int dir, int fd)
{
    struct stat st;

    /* Another one of the group may have made it: then he did so already. */
    if (fstat(dir, &st) != 0 || fchmod(fd, 0640 | (st.st_mode & S_IWGRP)) != 0)
        return;
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

/* The group may read, and files inherit it, whatever the umask says; mkdir itself takes neither. */
static void settle_mode(const char *made)
{
    const int fd = open(made, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == geteuid())
        (void)!fchmod(fd, 02750);
    if (fd >= 0)
        close(fd);
}

/* Its name is durable before anything in it is. */
static void sync_above(const char *made)
{
    char above[SPATE_LOCAL_PATH];
    char *slash = strrchr(strcpy(above, made), '/');

    if (slash)
        slash[slash == above] = '\0';
    const int fd = open(slash ? above : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return; /* a directory that we may pass through and not read */
    fsync(fd);
    close(fd);
}

/* mkdir -p. */
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
        if (mkdir(part, 0750) == 0) {
            settle_mode(part);
            sync_above(part);
        } else if (errno != EEXIST) {
            return spate_fail(err, errno == ENOSPC ? SPATE_RETRY : SPATE_FATAL,
                              "cannot make the directory %s: %s; this process runs as uid %u", part,
                              strerror(errno), (unsigned)geteuid());
        }
    }
    return SPATE_OK;
}

static enum spate_rc write_meta(const struct spate_local_place *place, int durable_fd, int hot_fd,
                                uint64_t *hot_id, struct spate_err *err)
{
    char text[2048], boot[64], real[PATH_MAX];
    const int lives = openat(hot_fd, LIVES, O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0640);

    if (lives < 0)
        return spate_fail(err, errno == ENOSPC || errno == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                          "cannot create the file " LIVES ": %s", strerror(errno));
    spate_local_open_up(hot_fd, lives);
    close(lives);
    if (getrandom(hot_id, sizeof *hot_id, 0) != (ssize_t)sizeof *hot_id)
        *hot_id = (uint64_t)spate_clock_wall_us() << 8 ^ (uint64_t)getpid();
    if (!realpath(place->path, real))
        snprintf(real, sizeof real, "%s", place->path);
    real[strcspn(real, "\n")] = '\0';
    boot_id(boot);
    snprintf(text, sizeof text,
             "spate-local-bus 1\norder " BYTE_ORDER_NAME "\nboot %s\nunit 64\nhot %016" PRIx64
             "\ncreated_us %" PRId64 "\nbus %016" PRIx64 "\npath %.500s\n",
             boot, *hot_id, spate_clock_wall_us(), identity(durable_fd), real);
    return spate_local_note_write(hot_fd, META, text, false, err);
}

/* Two first writers must agree on one incarnation. */
static enum spate_rc agree(const struct spate_local_place *place, int durable_fd, int hot_fd,
                           const char *path, uint64_t *hot_id, struct spate_err *err)
{
    struct meta meta;
    enum spate_rc rc;

    const int64_t deadline = spate_clock_ms() + LOCK_WAIT_MS;
    while (flock(hot_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EINTR && errno != EWOULDBLOCK)
            return spate_fail(err, SPATE_FATAL, "cannot lock %s: %s", path, strerror(errno));
        if (spate_clock_ms() >= deadline) /* who may read the directory may lock it, too */
            return spate_fail(
                err, SPATE_RETRY,
                "somebody keeps a lock on %s, which is held for a moment only when a bus begins; "
                "`fuser -v %s` shows who",
                path, path);
        nanosleep(&(struct timespec){.tv_nsec = 1000000L}, NULL);
    }
    rc = read_meta(hot_fd, path, &meta, err);
    if (rc == SPATE_OK && meta.bus != 0 && meta.bus != identity(durable_fd))
        rc = refuse_other(place, hot_fd, path, &meta, err);
    *hot_id = meta.hot;
    if (rc == SPATE_END && (rc = write_meta(place, durable_fd, hot_fd, hot_id, err)) == SPATE_FAIL)
        (void)spate_err_context(err, "hot root %s", path);
    flock(hot_fd, LOCK_UN);
    return rc;
}

enum spate_rc spate_local_place_make(const struct spate_local_place *place, int *durable_fd, int *hot_fd,
                                     uint64_t *hot_id, struct spate_err *err)
{
    char path[SPATE_LOCAL_PATH];
    enum spate_rc rc;

    *durable_fd = *hot_fd = -1;
    if ((rc = make_path(place->path, err)) != SPATE_OK)
        return rc;
    if ((rc = open_root(place->path, false, durable_fd, err)) == SPATE_OK &&
        (rc = spate_local_place_hot_path(place, path, err)) == SPATE_OK &&
        (rc = hot_is_ours_to_make(place, path, err)) == SPATE_OK && (rc = make_path(path, err)) == SPATE_OK &&
        (rc = open_root(path, !place->hot, hot_fd, err)) == SPATE_OK &&
        (rc = refuse_stranger(place, *hot_fd, path, err)) == SPATE_OK)
        rc = agree(place, *durable_fd, *hot_fd, path, hot_id, err);
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
