/* bus/local/check.c - could the bus live here? Nothing is made. */
#include "bus/local/local.h"
#include "bus/local/topic.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SEGMENTS      4  /* of a topic that may stand in shared memory */
#define DISK_SEGMENTS 16 /* of the stream: what a pause of its readers may cost */

/* The nearest directory above that is there. */
static void existing_above(const char *path, char out[SPATE_LOCAL_PATH])
{
    struct stat st;
    char *slash;

    snprintf(out, SPATE_LOCAL_PATH, "%s", path[0] ? path : ".");
    while (stat(out, &st) != 0 && (slash = strrchr(out, '/')) != NULL && slash != out)
        *slash = '\0';
    if (stat(out, &st) != 0)
        snprintf(out, SPATE_LOCAL_PATH, "%s", path[0] == '/' ? "/" : ".");
}

static void rights(const char *kind, const char *what, const char *path, const struct stat *st, bool writes,
                   struct spate_findings *list)
{
    spate_find(list, SPATE_FINDING_ERROR, kind,
               "%s %s may not be %s by this user (uid %u); it belongs to uid %u", what, path,
               writes ? "written" : "read", (unsigned)geteuid(), (unsigned)st->st_uid);
    spate_find_why(list, "%s",
                   writes ? "the connector keeps the stream there"
                          : "a sink reads the stream there; what the connector makes, its group may read");
    if (writes)
        spate_find_fix(list, SPATE_MEND_SHELL, "chown -R %u '%s'", (unsigned)geteuid(), path);
    else
        spate_find_fix(list, SPATE_MEND_SHELL,
                       "usermod -a -G \"$(stat -c %%G '%s')\" \"$(id -nu %u)\" # then log in again", path,
                       (unsigned)geteuid());
}

/* One of the two roots. Returns whether it is there. */
static bool check_root(const char *what, const char *kind, const char *path, bool writes,
                       struct spate_findings *list)
{
    char above[SPATE_LOCAL_PATH];
    struct stat st;

    if (stat(path, &st) == 0) {
        if (!S_ISDIR(st.st_mode)) {
            spate_find(list, SPATE_FINDING_ERROR, kind, "%s %s is not a directory", what, path);
            spate_find_why(list, "each topic is a directory below it");
            spate_find_fix(list, SPATE_MEND_FILE,
                           "bus.local.path: the name of a directory, which is made when "
                           "it is missing");
            return false;
        }
        if (access(path, writes ? R_OK | W_OK | X_OK : R_OK | X_OK) != 0)
            rights(kind, what, path, &st, writes, list);
        return true;
    }
    if (errno == EACCES) {
        existing_above(path, above);
        spate_find(list, SPATE_FINDING_ERROR, kind, "%s %s cannot be looked at by this user (uid %u): %s",
                   what, path, (unsigned)geteuid(), strerror(EACCES));
        spate_find_why(list, "a directory above it does not let this user through");
        spate_find_fix(list, SPATE_MEND_SHELL, "namei -l '%s' # shows which", path);
        return false;
    }
    if (!writes)
        return false;
    existing_above(path, above);
    if (access(above, W_OK | X_OK) == 0)
        return false; /* it will be made */
    spate_find(list, SPATE_FINDING_ERROR, kind,
               "%s %s does not exist, and this user (uid %u) may not make it below %s", what, path,
               (unsigned)geteuid(), above);
    spate_find_why(list, "the connector keeps the stream there");
    spate_find_fix(list, SPATE_MEND_SHELL, "install -d -m 2750 -o %u '%s'", (unsigned)geteuid(), path);
    return false;
}

static void check_room(const char *path, const char *kind, const char *what, uint64_t wanted, const char *fix,
                       struct spate_findings *list)
{
    char above[SPATE_LOCAL_PATH];
    struct statvfs fs;
    uint64_t room;

    existing_above(path, above);
    if (statvfs(above, &fs) != 0)
        return;
    room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room >= wanted)
        return;
    spate_find(list, SPATE_FINDING_WARNING, kind, "%s has room for %" PRIu64 " MiB at %s", what, room >> 20,
               above);
    spate_find_why(list,
                   "the stream and the topics beside it may take %" PRIu64
                   " MiB more; without room the connector stops reading, and the "
                   "source keeps its WAL",
                   wanted >> 20);
    spate_find_fix(list, SPATE_MEND_SHELL, "%s", fix);
}

/* A log that another version wrote, or a stranger's (bus/local/topic.h). */
static bool check_log(const struct spate_local_place *place, const char *name, struct spate_findings *list)
{
    struct spate_local_topic topic;
    struct spate_err err = {0};
    enum spate_rc rc = spate_local_topic_open(&topic, place, name, &err);

    if (rc == SPATE_OK)
        spate_local_topic_close(&topic);
    if (rc == SPATE_FAIL)
        spate_find_err(list, "bus-log", &err);
    return rc == SPATE_OK;
}

/* The segment size of a topic: what its manifest says, or what it would be made with. */
static uint64_t cap_of(const struct spate_local_place *place, const char *name)
{
    char path[SPATE_LOCAL_PATH], above[SPATE_LOCAL_PATH];
    struct spate_local_topic topic;
    struct spate_err ignored = {0};
    uint64_t cap;

    if (spate_local_topic_open(&topic, place, name, &ignored) == SPATE_OK) {
        cap = topic.manifest.cap;
        spate_local_topic_close(&topic);
        return cap;
    }
    if (spate_local_place_hot_path(place, path, &ignored) != SPATE_OK)
        snprintf(path, sizeof path, "%s", place->hot ? place->hot : "/dev/shm");
    existing_above(path, above);
    const int fd = open(above, O_PATH | O_DIRECTORY | O_CLOEXEC);
    cap = spate_local_place_cap(place, fd, name);
    if (fd >= 0)
        close(fd);
    return cap;
}

/* What the files of a topic take in shared memory now. */
static uint64_t taken_by(const char *hot, const char *name)
{
    char path[SPATE_LOCAL_PATH + SPATE_LOCAL_NAME + 32];
    const struct dirent *entry;
    uint64_t bytes = 0;
    struct stat st;

    snprintf(path, sizeof path, "%s/%s", hot, name);
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir)) != NULL)
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            bytes += (uint64_t)st.st_blocks * 512;
    if (dir)
        closedir(dir);
    return bytes;
}

/* What the stream and the topics beside it may still come to take, SEGMENTS each. */
static uint64_t hot_wanted(const struct spate_local_place *place, const char *hot, const char *stream)
{
    static const char *const suffix[] = {"", "._schemas", "._control", "._peers"};
    uint64_t wanted = 0;

    for (size_t i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
        char name[SPATE_LOCAL_NAME + 16];
        snprintf(name, sizeof name, "%.100s%s", stream, suffix[i]);
        const uint64_t most = SEGMENTS * (SPATE_LOCAL_HEADER + cap_of(place, name)),
                       now = taken_by(hot, name);
        wanted += most > now ? most - now : 0;
    }
    return wanted;
}

static void check_hot(const struct spate_local_place *place, bool made, bool writes, const char *stream,
                      struct spate_findings *list)
{
    char path[SPATE_LOCAL_PATH];
    struct spate_err err = {0};
    uint64_t hot_id;
    int fd = -1;

    if (spate_local_place_hot_path(place, path, &err) != SPATE_OK)
        snprintf(path, sizeof path, "%s", place->hot ? place->hot : "/dev/shm/spate");
    if (check_root("shared memory", "bus-shared-memory", path, writes, list)) {
        if (made && spate_local_place_hot(place, &fd, &hot_id, &err) == SPATE_FAIL)
            spate_find_err(list, "bus-shared-memory", &err);
        if (fd >= 0)
            close(fd);
    }
    if (writes)
        check_room(path, "bus-shared-memory-room", "shared memory", hot_wanted(place, path, stream),
                   "mount -o remount,size=1G /dev/shm # a container: docker run --shm-size=1g; or a smaller "
                   "bus.local.segment_bytes",
                   list);
}

void spate_local_check(struct spate_bus *base, const char *stream, bool writes, struct spate_findings *list)
{
    const struct spate_local_place *place = &((struct spate_local_bus *)base)->place;
    struct spate_err err = {0};
    char name[SPATE_LOCAL_NAME + 16];
    bool made, there = false;
    int fd;

    made = check_root("the bus", "bus-path", place->path, writes, list);
    if (made) {
        if (spate_local_place_durable(place, &fd, &err) == SPATE_OK)
            close(fd);
        else if (err.text[0] && access(place->path, R_OK | X_OK) == 0)
            spate_find_err(list, "bus-path", &err); /* a file system that cannot carry it */
        there = check_log(place, stream, list);
        snprintf(name, sizeof name, "%.100s._schemas", stream);
        (void)check_log(place, name, list);
    }
    check_hot(place, made, writes, stream, list);
    if (writes)
        check_room(place->path, "bus-room", "the disk of the bus", DISK_SEGMENTS * cap_of(place, stream),
                   "df -h . # then a larger disk for bus.local.path", list);
    if (!there && !writes) {
        spate_find(list, SPATE_FINDING_NOTE, "stream-not-there", "there is no stream %s at %s yet", stream,
                   place->path);
        spate_find_why(list, "its connector makes it when it starts; the sink waits until then");
    }
}
