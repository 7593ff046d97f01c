/* bus/local/named.c - marks, the lock that says who lives, and releases. */
#include "bus/local/named.h"

#include "bus/local/layout.h"
#include "bus/local/listing.h"
#include "bus/local/sigbus.h"
#include "core/clock.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALIVE_MS   10000
#define AHEAD      SPATE_LOCAL_UNIT
#define LOOKS_MOST 64 /* at a file whose marks are being written */

uint64_t spate_local_log_number(const char *log_id)
{
    return spate_fnv64(SPATE_FNV64_START, log_id, strlen(log_id));
}

static uint64_t wall_ns(void)
{
    return (uint64_t)spate_clock_wall_us() * 1000;
}

static bool mark_good(const struct spate_local_mark *mark)
{
    return mark->magic == SPATE_LOCAL_MARK_MAGIC &&
           mark->crc == spate_crc32c(0, mark, offsetof(struct spate_local_mark, crc));
}

static bool release_good(const struct spate_local_release *release)
{
    return release->magic == SPATE_LOCAL_RELEASE_MAGIC &&
           release->crc == spate_crc32c(0, release, offsetof(struct spate_local_release, crc));
}

/* The newer valid one; NULL: none. */
static const struct spate_local_mark *newer(const struct spate_local_marks *marks)
{
    const bool first = mark_good(&marks->mark[0]), second = mark_good(&marks->mark[1]);

    if (first && second)
        return marks->mark[0].gen > marks->mark[1].gen ? &marks->mark[0] : &marks->mark[1];
    return first ? &marks->mark[0] : second ? &marks->mark[1] : NULL;
}

void spate_local_named_make_root(int durable_root)
{
    /* Who reads the bus is in its group, and makes what is its own there itself. */
    if (mkdirat(durable_root, SPATE_LOCAL_READERS, 02770) == 0 &&
        fchmodat(durable_root, SPATE_LOCAL_READERS, 02770, 0) == 0)
        fsync(durable_root);
}

static int open_dir(int dir, const char *name)
{
    return openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* SPATE_END: nobody was ever named here. */
static enum spate_rc open_readers(const struct spate_local_place *place, bool make, int *fd,
                                  struct spate_err *err)
{
    int root;
    const enum spate_rc rc = spate_local_place_durable(place, &root, err);

    *fd = -1;
    if (rc != SPATE_OK)
        return rc;
    if (make)
        spate_local_named_make_root(root);
    *fd = open_dir(root, SPATE_LOCAL_READERS);
    const int why = errno;
    close(root);
    if (*fd >= 0)
        return SPATE_OK;
    if (why == ENOENT && !make)
        return SPATE_END;
    err->missing = why == ENOENT;
    return spate_fail(err, why == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                      "cannot open %s/" SPATE_LOCAL_READERS ", where readers with a name say how far they "
                      "are: %s; the bus' owner (the connector) makes it when it starts, for its group; this "
                      "process runs as uid %u",
                      place->path, strerror(why), (unsigned)geteuid());
}

/* Opens the file of a name and topic for writing. *fd stays -1 with SPATE_FAIL. */
static enum spate_rc make_file(int readers, const struct spate_local_place *place, const char *name,
                               const char *topic, int *fd, struct spate_err *err)
{
    struct stat st;

    *fd = -1;
    if (mkdirat(readers, name, 02770) == 0 && fchmodat(readers, name, 02770, 0) == 0)
        fsync(readers);
    const int dir = open_dir(readers, name);
    if (dir >= 0)
        *fd = openat(dir, topic, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0660);
    int why = errno;
    if (*fd >= 0)
        why = fstat(*fd, &st) != 0 ? errno : !S_ISREG(st.st_mode) ? EINVAL : 0;
    if (why == 0 && st.st_size < (off_t)sizeof(struct spate_local_marks)) {
        spate_local_open_up(dir, *fd);
        /* A hole on a full disk would kill who writes there through a mapping. */
        why = posix_fallocate(*fd, 0, sizeof(struct spate_local_marks));
        if (why == 0)
            fsync(dir);
    }
    if (dir >= 0)
        close(dir);
    if (why == 0)
        return SPATE_OK;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return spate_fail(err, why == ENOSPC || why == EDQUOT ? SPATE_RETRY : SPATE_FATAL,
                      "cannot write %s/" SPATE_LOCAL_READERS
                      "/%s/%s, where the reader %s says how far it is: "
                      "%s; this process runs as uid %u",
                      place->path, name, topic, name, strerror(why), (unsigned)geteuid());
}

static struct flock whole(short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET};
}

static bool read_marks(int fd, struct spate_local_marks *marks)
{
    return pread(fd, marks, sizeof *marks, 0) == (ssize_t)sizeof *marks;
}

static enum spate_rc take_name(int fd, const char *name, const char *topic, struct spate_err *err)
{
    struct flock lock = whole(F_WRLCK);
    struct spate_local_marks marks;
    const struct spate_local_mark *mark;
    char who[32] = "another process";

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return SPATE_OK;
    if (errno != EAGAIN && errno != EACCES)
        return spate_fail(err, SPATE_FATAL, "cannot lock the name %s: %s", name, strerror(errno));
    mark = read_marks(fd, &marks) ? newer(&marks) : NULL;
    if (mark)
        snprintf(who, sizeof who, "process %u", mark->pid);
    return spate_fail(err, SPATE_RETRY,
                      "%s has the name %s on topic %s already: a name has one reader at a time, so stop that "
                      "one, or give this one another name",
                      who, name, topic);
}

static void write_mark(struct spate_local_named *named)
{
    struct spate_local_mark *mark = &named->mark;
    const uint64_t ahead = named->read > mark->pos ? (named->read - mark->pos + AHEAD - 1) / AHEAD : 0;

    mark->ahead = ahead < UINT32_MAX ? (uint32_t)ahead : UINT32_MAX;
    mark->gen++;
    mark->ts_ns = wall_ns();
    mark->crc = spate_crc32c(0, mark, offsetof(struct spate_local_mark, crc));
    /* Not into the newest: of a process that is killed on the way the other one counts. */
    atomic_thread_fence(memory_order_release);
    memcpy(&named->at->mark[mark->gen & 1], mark, sizeof *mark);
    atomic_thread_fence(memory_order_release);
}

enum spate_rc spate_local_named_enlist(struct spate_local_named *named, const struct spate_local_place *place,
                                       const char *name, const char *topic, const char *log_id, bool hold,
                                       uint64_t pos, struct spate_err *err)
{
    const uint64_t log = spate_local_log_number(log_id);
    int readers;

    *named = (struct spate_local_named){.fd = -1};
    if (!spate_local_name_good(name))
        return spate_fail(
            err, SPATE_FATAL,
            "\"%.140s\" is no reader's name: expected a-z 0-9 . _ - with a letter or digit first, at most %d",
            name, SPATE_LOCAL_NAME);
    enum spate_rc rc = open_readers(place, true, &readers, err);
    if (rc != SPATE_OK)
        return rc == SPATE_END ? spate_fail(err, SPATE_RETRY, "there is no bus at %s yet", place->path) : rc;
    rc = make_file(readers, place, name, topic, &named->fd, err);
    close(readers);
    if (rc == SPATE_OK)
        rc = take_name(named->fd, name, topic, err);
    if (rc == SPATE_OK) {
        named->at =
            mmap(NULL, SPATE_LOCAL_HEADER, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, named->fd, 0);
        if (named->at == MAP_FAILED) {
            named->at = NULL;
            rc = spate_fail(err, SPATE_FATAL, "cannot map the marks of reader %s: %s", name, strerror(errno));
        }
    }
    if (rc != SPATE_OK) {
        spate_local_named_leave(named);
        return rc;
    }
    named->guard = spate_local_guard_add(named->at, SPATE_LOCAL_HEADER, true);
    const struct spate_local_mark *was = newer(named->at);
    named->mark = (struct spate_local_mark){.magic = SPATE_LOCAL_MARK_MAGIC,
                                            .gen = was ? was->gen : 0,
                                            .pos = pos,
                                            .log = log,
                                            .pid = (uint32_t)getpid(),
                                            .flags = hold ? SPATE_LOCAL_MARK_HOLDS : 0};
    if (was && was->log == log) {
        named->mark.records = was->records;
        if (was->pos < pos) /* what it has done is not known here before it says so */
            named->mark.pos = was->pos;
    }
    write_mark(named);
    if (hold) /* a promise that a power cut does not take back */
        msync(named->at, sizeof *named->at, MS_SYNC);
    named->written_ms = spate_clock_ms();
    return SPATE_OK;
}

void spate_local_named_passed(struct spate_local_named *named, uint64_t pos, uint64_t records)
{
    if (!named->at)
        return;
    named->mark.pos = pos;
    named->mark.records += records;
    write_mark(named);
}

void spate_local_named_waits(struct spate_local_named *named, uint64_t read, int64_t now_ms)
{
    if (!named->at || (read == named->read && now_ms - named->written_ms < ALIVE_MS))
        return;
    named->read = read;
    named->written_ms = now_ms;
    write_mark(named);
}

void spate_local_named_leave(struct spate_local_named *named)
{
    if (named->at) {
        write_mark(named); /* it lived until now */
        spate_local_guard_remove(named->guard);
        munmap(named->at, SPATE_LOCAL_HEADER);
    }
    if (named->fd >= 0)
        close(named->fd); /* and with it the lock */
    named->at = NULL;
    named->guard = NULL;
    named->fd = -1;
}

/* What stands in the file, at a moment when one of its marks is whole. */
static void look_at(int fd, struct spate_local_named_view *view)
{
    struct flock lock = whole(F_WRLCK);
    struct spate_local_marks marks;
    const struct spate_local_mark *mark = NULL;

    view->alive = fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    for (int looks = 0; !mark && looks < LOOKS_MOST; looks++) {
        if (looks > 0)
            sched_yield();
        if (!read_marks(fd, &marks))
            return;
        mark = newer(&marks);
    }
    if (!mark)
        return;
    view->marked = true;
    view->mark = *mark;
    if (release_good(&marks.release) && marks.release.log == mark->log && marks.release.upto > mark->pos)
        view->release = marks.release;
    view->holds = (mark->flags & SPATE_LOCAL_MARK_HOLDS) != 0 && view->release.magic == 0;
}

/* SPATE_END: no such file, or none that says anything. */
static enum spate_rc look_in(int dir, const char *name, const char *topic,
                             struct spate_local_named_view *view)
{
    struct stat st;
    const int fd = openat(dir, topic, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    *view = (struct spate_local_named_view){.marked = false};
    snprintf(view->name, sizeof view->name, "%s", name);
    snprintf(view->topic, sizeof view->topic, "%s", topic);
    if (fd < 0)
        return errno == ENOENT ? SPATE_END : SPATE_OK; /* of what is no business of this process: the name */
    const bool is_file = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (is_file)
        look_at(fd, view);
    close(fd);
    return is_file ? SPATE_OK : SPATE_END;
}

/* Every topic that one name was enlisted on. */
static void list_name(int dir, const char *name, spate_local_named_fn *each, void *arg)
{
    struct spate_local_named_view view;
    struct spate_local_listing files;
    const char *topic;

    if (!spate_local_listing_open(&files, dir))
        return;
    while ((topic = spate_local_listing_next(&files)) != NULL)
        if (spate_local_name_good(topic) && look_in(dir, name, topic, &view) == SPATE_OK)
            each(arg, &view);
    spate_local_listing_close(&files);
}

enum spate_rc spate_local_named_list(const struct spate_local_place *place, const char *topic,
                                     spate_local_named_fn *each, void *arg, struct spate_err *err)
{
    struct spate_local_named_view view;
    struct spate_local_listing names;
    const char *name;
    int readers;
    const enum spate_rc rc = open_readers(place, false, &readers, err);

    if (rc != SPATE_OK)
        return rc == SPATE_END ? SPATE_OK : rc;
    const bool open = spate_local_listing_open(&names, readers);
    const int why = errno;
    close(readers);
    if (!open)
        return spate_fail(err, SPATE_RETRY, "cannot list the readers below %s: %s", place->path,
                          strerror(why));
    while ((name = spate_local_listing_next(&names)) != NULL) {
        if (!spate_local_name_good(name))
            continue;
        const int dir = open_dir(names.fd, name);
        if (dir < 0)
            continue;
        if (!topic)
            list_name(dir, name, each, arg);
        else if (look_in(dir, name, topic, &view) == SPATE_OK)
            each(arg, &view);
        close(dir);
    }
    spate_local_listing_close(&names);
    return SPATE_OK;
}

enum spate_rc spate_local_named_look(const struct spate_local_place *place, const char *name,
                                     const char *topic, struct spate_local_named_view *view,
                                     struct spate_err *err)
{
    int readers;
    enum spate_rc rc;

    if (!spate_local_name_good(name) || !spate_local_name_good(topic))
        return SPATE_END;
    rc = open_readers(place, false, &readers, err);
    if (rc != SPATE_OK)
        return rc;
    const int dir = open_dir(readers, name);
    rc = dir < 0 ? SPATE_END : look_in(dir, name, topic, view);
    if (dir >= 0)
        close(dir);
    close(readers);
    return rc;
}

/* Opens the file of somebody else's name. */
static enum spate_rc open_theirs(const struct spate_local_place *place, const char *name, const char *topic,
                                 int *fd, struct spate_err *err)
{
    int readers;
    enum spate_rc rc = open_readers(place, false, &readers, err);

    *fd = -1;
    if (rc != SPATE_OK)
        return rc;
    const int dir = open_dir(readers, name);
    if (dir >= 0)
        *fd = openat(dir, topic, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0)
        rc = errno == ENOENT ? SPATE_END
                             : spate_fail(err, SPATE_FATAL,
                                          "cannot write %s/" SPATE_LOCAL_READERS
                                          "/%s/%s: %s; this process runs as uid %u",
                                          place->path, name, topic, strerror(errno), (unsigned)geteuid());
    if (dir >= 0)
        close(dir);
    close(readers);
    return rc;
}

enum spate_rc spate_local_named_release(const struct spate_local_place *place, const char *name,
                                        const char *topic, uint64_t upto, enum spate_local_release_why why,
                                        struct spate_err *err)
{
    struct spate_local_named_view view;
    int fd;
    enum spate_rc rc = spate_local_named_look(place, name, topic, &view, err);

    if (rc == SPATE_OK && !view.marked)
        rc = SPATE_END;
    if (rc == SPATE_OK)
        rc = open_theirs(place, name, topic, &fd, err);
    if (rc != SPATE_OK)
        return rc;
    struct spate_local_release line = {.magic = SPATE_LOCAL_RELEASE_MAGIC,
                                       .upto = upto > view.mark.pos ? upto : view.mark.pos + 1,
                                       .ts_ns = wall_ns(),
                                       .log = view.mark.log,
                                       .why = (uint32_t)why,
                                       .uid = (uint32_t)geteuid()};
    line.crc = spate_crc32c(0, &line, offsetof(struct spate_local_release, crc));
    errno = 0;
    const bool good =
        pwrite(fd, &line, sizeof line, offsetof(struct spate_local_marks, release)) == (ssize_t)sizeof line &&
        fdatasync(fd) == 0;
    const int cause = errno ? errno : ENOSPC;
    close(fd);
    return good ? SPATE_OK
                : spate_fail(err, SPATE_RETRY, "cannot write the release of %s: %s", name, strerror(cause));
}
