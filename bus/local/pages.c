/* bus/local/pages.c - ctl and bell: making them, and mapping those that the manifest speaks of. */
#include "bus/local/topic.h"

#include "core/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A page made whole in a temp file, then renamed: nobody sees half of one. */
static enum spate_rc make_page(int dir, const char *name, mode_t mode, const void *page,
                               struct spate_err *err)
{
    char temp[32];

    snprintf(temp, sizeof temp, ".%s.tmp", name);
    const int fd = openat(dir, temp, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return spate_fail(err, errno == ENOSPC || errno == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                          "cannot create %s: %s", name,
                          errno == ENOENT ? "its directory was removed" : strerror(errno));
    errno = 0;
    const bool good = fchmod(fd, mode) == 0 && /* whatever the umask says: readers ring the bell */
                      pwrite(fd, page, SPATE_LOCAL_HEADER, 0) == (ssize_t)SPATE_LOCAL_HEADER &&
                      renameat(dir, temp, dir, name) == 0;
    const int why = errno ? errno : ENOSPC;
    close(fd);
    return good ? SPATE_OK
                : spate_fail(err, why == ENOSPC || why == ENOENT ? SPATE_RETRY : SPATE_FATAL,
                             "cannot write %s: %s", name, strerror(why));
}

static enum spate_rc make_bell(const struct spate_local_topic *topic, struct spate_err *err)
{
    union {
        struct spate_local_bell bell;
        unsigned char bytes[SPATE_LOCAL_HEADER];
    } page;

    memset(&page, 0, sizeof page);
    page.bell.magic = SPATE_LOCAL_BELL_MAGIC;
    return make_page(topic->hot_fd, "bell", 0660, &page, err);
}

struct page {
    void *at; /* NULL: there is none, or this process may not have it */
    struct spate_local_guard *guard;
    ino_t ino;
};

static enum spate_rc map_page(const struct spate_local_topic *topic, const char *name, bool write,
                              struct page *page, struct spate_err *err)
{
    const int fd =
        openat(topic->hot_fd, name, (write ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;

    *page = (struct page){0};
    if (fd < 0)
        return SPATE_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < SPATE_LOCAL_HEADER) {
        close(fd);
        return spate_fail(
            err, SPATE_RETRY,
            "the file %s of topic %s in shared memory was cut; its writer makes it anew when it is "
            "started again",
            name, topic->name);
    }
    void *at = mmap(NULL, SPATE_LOCAL_HEADER, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    const int why = errno;
    close(fd);
    if (at == MAP_FAILED)
        return spate_fail(err, SPATE_RETRY, "cannot map the file %s of topic %s: %s", name, topic->name,
                          strerror(why));
    *page = (struct page){
        .at = at, .ino = st.st_ino, .guard = spate_local_guard_add(at, SPATE_LOCAL_HEADER, write)};
    return SPATE_OK;
}

/* Is what is mapped the hot tier that the manifest speaks of? SPATE_END: no; a writer makes it anew. */
static enum spate_rc check_pages(const struct spate_local_topic *topic, bool writer, struct spate_err *err)
{
    const struct spate_local_ctl *ctl = topic->ctl;
    const uint64_t knows = SPATE_LOCAL_CTL_MAGIC;

    if (!ctl)
        return SPATE_END;
    if (ctl->magic == __builtin_bswap64(knows))
        return spate_fail(
            err, SPATE_FATAL,
            "the shared memory of topic %s was written by a machine of the other byte order; set "
            "bus.local.hot to a directory of this machine",
            topic->name);
    if (!writer && ctl->magic != knows && ctl->magic >> 16 == knows >> 16)
        return spate_fail(
            err, SPATE_RETRY,
            "the shared memory of topic %s has format version %u, this spate knows version %u; run "
            "one version of spate on this bus, the writers first",
            topic->name, (unsigned)(ctl->magic & 0xffff), (unsigned)(knows & 0xffff));
    if (ctl->magic != knows || ctl->generation != topic->manifest.generation ||
        ctl->cap != topic->manifest.cap)
        return SPATE_END;
    return SPATE_OK;
}

/* Readers may write the bell, so one of them may have spoilt or cut it: no reason to do without the log. A
 * reader without one looks again by itself; a writer makes it anew. Who has the old one mapped sleeps his
 * longest nap (bus/local/bell.h). */
static enum spate_rc map_bell(struct spate_local_topic *topic, bool writer, struct spate_err *err)
{
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct page page;
    enum spate_rc rc = map_page(topic, "bell", true, &page, &ignored);
    const struct spate_local_bell *bell = page.at;

    if (bell && bell->magic != SPATE_LOCAL_BELL_MAGIC) {
        spate_local_guard_remove(page.guard);
        munmap(page.at, SPATE_LOCAL_HEADER);
        page = (struct page){0};
    }
    if (!page.at && writer) {
        rc = make_bell(topic, err);
        if (rc == SPATE_OK)
            rc = map_page(topic, "bell", true, &page, err);
        if (rc != SPATE_OK)
            return rc;
    }
    topic->bell = page.at;
    topic->bell_guard = page.guard;
    return SPATE_OK;
}

static enum spate_rc map_pages(struct spate_local_topic *topic, bool writer, struct spate_err *err)
{
    struct page ctl;
    enum spate_rc rc = map_page(topic, "ctl", writer, &ctl, err);

    topic->ctl = ctl.at;
    topic->ctl_guard = ctl.guard;
    topic->ctl_ino = ctl.ino;
    if (rc == SPATE_OK)
        rc = check_pages(topic, writer, err);
    else if (writer)
        rc = SPATE_END;
    return rc == SPATE_OK ? map_bell(topic, writer, err) : rc;
}

enum spate_rc spate_local_topic_attach(struct spate_local_topic *topic, bool writer, struct spate_err *err)
{
    uint64_t hot_id;
    int root;

    spate_local_topic_detach(topic);
    enum spate_rc rc = spate_local_place_hot(topic->place, &root, &hot_id, err);
    if (rc != SPATE_OK)
        return rc;
    rc = spate_local_manifest_read(topic, err);
    if (rc == SPATE_OK && hot_id != topic->manifest.hot)
        rc = SPATE_END;
    if (rc == SPATE_OK) {
        topic->hot_fd = openat(root, topic->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        rc = topic->hot_fd < 0 ? SPATE_END : spate_local_topic_stranger(topic, root, topic->hot_fd, err);
        if (rc == SPATE_OK)
            rc = map_pages(topic, writer, err);
        if (rc == SPATE_OK && writer)
            topic->live_fd = spate_local_place_live(root);
    }
    close(root);
    if (rc != SPATE_OK)
        spate_local_topic_detach(topic);
    return rc;
}

void spate_local_topic_detach(struct spate_local_topic *topic)
{
    spate_local_guard_remove(topic->ctl_guard);
    spate_local_guard_remove(topic->bell_guard);
    if (topic->ctl)
        munmap(topic->ctl, SPATE_LOCAL_HEADER);
    if (topic->bell)
        munmap(topic->bell, SPATE_LOCAL_HEADER);
    if (topic->hot_fd >= 0)
        close(topic->hot_fd);
    if (topic->live_fd >= 0)
        close(topic->live_fd);
    topic->live_fd = -1;
    topic->ctl_guard = topic->bell_guard = NULL;
    topic->ctl = NULL;
    topic->bell = NULL;
    topic->hot_fd = -1;
}

bool spate_local_topic_current(const struct spate_local_topic *topic)
{
    struct stat st;

    return topic->ctl && !spate_local_guard_cut(topic->ctl_guard) &&
           fstatat(topic->hot_fd, "ctl", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == topic->ctl_ino &&
           (uint64_t)st.st_size >= SPATE_LOCAL_HEADER;
}

enum spate_rc spate_local_topic_renew(struct spate_local_topic *topic, uint64_t head, uint64_t first,
                                      uint64_t durable, struct spate_err *err)
{
    union {
        struct spate_local_ctl ctl;
        unsigned char bytes[SPATE_LOCAL_HEADER];
    } page;
    struct stat st;

    enum spate_rc rc = make_bell(topic, err);
    if (rc != SPATE_OK)
        return rc;
    memset(&page, 0, sizeof page);
    page.ctl.magic = SPATE_LOCAL_CTL_MAGIC;
    page.ctl.generation = topic->manifest.generation;
    page.ctl.cap = topic->manifest.cap;
    page.ctl.created_ns = (uint64_t)spate_clock_wall_us() * 1000;
    page.ctl.head = head;
    page.ctl.first = first;
    page.ctl.durable = durable;
    page.ctl.hold = UINT64_MAX;
    page.ctl.settled = head;
    page.ctl.promised = topic->manifest.highest;
    page.ctl.gate = head;
    rc = make_page(topic->hot_fd, "ctl",
                   fstat(topic->hot_fd, &st) == 0 && (st.st_mode & S_IWGRP) != 0 ? 0660 : 0640, &page, err);
    if (rc != SPATE_OK)
        return rc;
    rc = spate_local_topic_attach(topic, true, err);
    if (rc == SPATE_END)
        return spate_fail(err, SPATE_RETRY, "the hot tier of topic %s vanished while it was made",
                          topic->name);
    if (rc == SPATE_OK)
        spate_local_topic_gate(topic, false);
    return rc;
}
