/* bus/local/topic.c - a topic's directories and manifest, and how far its log may grow. */
#include "bus/local/topic.h"

#include "bus/bus.h"
#include "bus/local/named.h"
#include "bus/local/note.h"
#include "bus/local/recovery.h"
#include "bus/local/segment.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROMISE_VOLATILE 65536 /* bases promised at once of a volatile topic */

enum spate_rc spate_local_manifest_write(struct spate_local_topic *topic, struct spate_err *err)
{
    const struct spate_local_manifest *m = &topic->manifest;
    char text[512];

    snprintf(text, sizeof text,
             "spate-local-topic 1\nlog %s\ncap %" PRIu64 "\nhighest %016" PRIx64 "\nfirst %016" PRIx64
             "\ngeneration %" PRIu64 "\nhot %016" PRIx64 "\nvolatile %d\nunchecked %d\n",
             m->log_id, m->cap, m->highest, m->first, m->generation, m->hot, m->is_volatile, m->is_unchecked);
    if (m->ruled)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "keeps %d\nretention_ms %" PRId64 "\nretention_bytes %" PRId64 "\nhold_expire_ms %" PRId64
                 "\n",
                 m->keeps, m->retention_ms, m->retention_bytes, m->hold_expire_ms);
    if (spate_local_note_write(topic->durable_fd, "manifest", text, true, err) != SPATE_OK)
        return spate_err_context(err, "topic %s below %s", topic->name, topic->place->path);
    return SPATE_OK;
}

/* What is kept; a log that nobody has ruled yet, or an earlier version, keeps all. */
static bool read_rules(const char *text, struct spate_local_manifest *m)
{
    uint64_t keeps, ms, bytes, expire;

    m->retention_bytes = -1;
    if (!spate_local_note_u64(text, "keeps", 10, &keeps))
        return true;
    if (!spate_local_note_u64(text, "retention_ms", 10, &ms) ||
        !spate_local_note_u64(text, "retention_bytes", 10, &bytes) ||
        !spate_local_note_u64(text, "hold_expire_ms", 10, &expire) || (int64_t)ms < 0 ||
        (int64_t)bytes < -1 || (int64_t)expire < 0)
        return false;
    m->ruled = true;
    m->keeps = keeps != 0;
    m->retention_ms = (int64_t)ms;
    m->retention_bytes = (int64_t)bytes;
    m->hold_expire_ms = (int64_t)expire;
    return true;
}

static bool is_sane(const struct spate_local_manifest *m)
{
    const uint64_t most = UINT64_C(1) << 62; /* so that no sum of positions wraps */

    return m->cap >= SPATE_LOCAL_HEADER && (m->cap & (m->cap - 1)) == 0 && m->cap <= UINT64_C(1) << 32 &&
           m->highest % m->cap == 0 && m->first % m->cap == 0 && m->highest < most && m->first < most;
}

enum spate_rc spate_local_manifest_read(struct spate_local_topic *topic, struct spate_err *err)
{
    struct spate_local_manifest m = {.cap = 0};
    char text[SPATE_LOCAL_NOTE_SIZE], version[8];
    uint64_t is_volatile, is_unchecked = 0;
    const enum spate_rc rc = spate_local_note_read(topic->durable_fd, "manifest", text, err);

    if (rc == SPATE_FAIL)
        return spate_err_context(err, "topic %s below %s", topic->name, topic->place->path);
    if (rc != SPATE_OK)
        return rc;
    if (!spate_local_note_get(text, "spate-local-topic", version, sizeof version) ||
        strcmp(version, "1") != 0)
        return spate_fail(
            err, SPATE_FATAL,
            "topic %s below %s was written by another version of spate; use the spate that wrote "
            "it",
            topic->name, topic->place->path);
    if (!spate_local_note_get(text, "log", m.log_id, sizeof m.log_id) ||
        !spate_local_note_u64(text, "cap", 10, &m.cap) ||
        !spate_local_note_u64(text, "highest", 16, &m.highest) ||
        !spate_local_note_u64(text, "first", 16, &m.first) ||
        !spate_local_note_u64(text, "generation", 10, &m.generation) ||
        !spate_local_note_u64(text, "hot", 16, &m.hot) ||
        !spate_local_note_u64(text, "volatile", 10, &is_volatile) || !read_rules(text, &m) || !is_sane(&m))
        return spate_fail(err, SPATE_FATAL,
                          "the manifest of topic %s below %s is damaged: a line is missing or wrong",
                          topic->name, topic->place->path);
    m.is_volatile = is_volatile != 0;
    m.is_unchecked = spate_local_note_u64(text, "unchecked", 10, &is_unchecked) && is_unchecked != 0;
    topic->manifest = m;
    return SPATE_OK;
}

static void start(struct spate_local_topic *topic, const struct spate_local_place *place, const char *name)
{
    *topic = (struct spate_local_topic){.place = place, .durable_fd = -1, .hot_fd = -1, .live_fd = -1};
    snprintf(topic->name, sizeof topic->name, "%s", name);
}

enum spate_rc spate_local_topic_open(struct spate_local_topic *topic, const struct spate_local_place *place,
                                     const char *name, struct spate_err *err)
{
    int root;

    start(topic, place, name);
    enum spate_rc rc = spate_local_place_durable(place, &root, err);
    if (rc != SPATE_OK)
        return rc;
    topic->durable_fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    const int why = errno;
    close(root);
    if (topic->durable_fd < 0)
        return why == ENOENT ? SPATE_END
                             : spate_fail(err, SPATE_FATAL, "cannot open the topic %s below %s: %s", name,
                                          place->path, strerror(why));
    rc = spate_local_manifest_read(topic, err);
    if (rc != SPATE_OK)
        spate_local_topic_close(topic);
    return rc;
}

/* Where anybody may make directories, one of our name may be a stranger's. */
enum spate_rc spate_local_topic_stranger(const struct spate_local_topic *topic, int root, int fd,
                                         struct spate_err *err)
{
    struct stat above, st, durable;

    if (fstat(root, &above) != 0 || fstat(fd, &st) != 0 || !(above.st_mode & S_IWOTH) ||
        st.st_uid == above.st_uid || st.st_uid == geteuid() || st.st_uid == 0 ||
        (topic->durable_fd >= 0 && fstat(topic->durable_fd, &durable) == 0 && st.st_uid == durable.st_uid))
        return SPATE_OK;
    return spate_fail(
        err, SPATE_FATAL,
        "the directory of topic %s belongs to uid %u, in a directory of the bus that anybody may "
        "write; remove it, and take the right to write from others (chmod o-w)",
        topic->name, (unsigned)st.st_uid);
}

static enum spate_rc make_dir(const struct spate_local_topic *topic, int root, bool create, bool shared,
                              int *fd, struct spate_err *err)
{
    const char *name = topic->name;
    bool made = false;

    if (create && mkdirat(root, name, 0750) == 0)
        made = true;
    else if (create && errno != EEXIST)
        return spate_fail(err, errno == ENOSPC ? SPATE_RETRY : SPATE_FATAL,
                          "cannot make the directory of topic %s: %s; this process runs as uid %u", name,
                          strerror(errno), (unsigned)geteuid());
    *fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*fd < 0 && errno == ENOENT) {
        err->missing = true;
        return spate_fail(err, SPATE_RETRY, "there is no topic %s yet", name);
    }
    if (*fd < 0)
        return spate_fail(err, SPATE_FATAL,
                          "cannot open the directory of topic %s: %s; this process runs as uid %u", name,
                          strerror(errno), (unsigned)geteuid());
    if (made &&
        fchmod(*fd, shared ? 02770 : 02750) != 0) /* mkdir takes neither the umask's bits nor setgid */
        return spate_fail(err, SPATE_FATAL, "cannot let the group into the directory of topic %s: %s", name,
                          strerror(errno));
    if (made)
        fsync(root);
    return spate_local_topic_stranger(topic, root, *fd, err);
}

enum spate_rc spate_local_topic_make(struct spate_local_topic *topic, const struct spate_local_place *place,
                                     const char *name, bool create, bool shared, struct spate_err *err)
{
    uint64_t hot_id;
    int durable, hot;

    start(topic, place, name);
    if (strcmp(name, SPATE_LOCAL_READERS) == 0)
        return spate_fail(err, SPATE_FATAL,
                          "no topic of the bus %s can be called \"" SPATE_LOCAL_READERS
                          "\": its readers with a name stand there; take another name",
                          place->path);
    enum spate_rc rc = spate_local_place_make(place, &durable, &hot, &hot_id, err);
    if (rc != SPATE_OK)
        return rc;
    spate_local_named_make_root(durable);
    rc = make_dir(topic, durable, create, shared, &topic->durable_fd, err);
    topic->manifest.cap = spate_local_place_cap(place, hot, name);
    close(durable);
    close(hot);
    return rc == SPATE_OK ? rc : spate_err_context(err, "bus %s", place->path);
}

enum spate_rc spate_local_topic_hot(struct spate_local_topic *topic, uint64_t *hot_id, struct spate_err *err)
{
    int durable, hot;
    struct stat st;

    spate_local_topic_detach(topic);
    enum spate_rc rc = spate_local_place_make(topic->place, &durable, &hot, hot_id, err);
    if (rc != SPATE_OK)
        return rc;
    rc = make_dir(topic, hot, true, fstat(topic->durable_fd, &st) == 0 && (st.st_mode & S_IWGRP) != 0,
                  &topic->hot_fd, err);
    close(durable);
    close(hot);
    return rc == SPATE_OK ? rc : spate_err_context(err, "hot root of the bus %s", topic->place->path);
}

enum spate_rc spate_local_topic_found(struct spate_local_topic *topic, unsigned flags, struct spate_err *err)
{
    const bool create = (flags & SPATE_TOPIC_CREATE) != 0, is_volatile = (flags & SPATE_TOPIC_VOLATILE) != 0;
    const uint64_t cap = topic->manifest.cap;
    uint64_t base;
    enum spate_rc rc = spate_local_manifest_read(topic, err);

    if (rc == SPATE_OK && topic->manifest.is_volatile != is_volatile)
        return spate_fail(err, SPATE_FATAL, "topic %s below %s is %s, and was opened as %s", topic->name,
                          topic->place->path, is_volatile ? "durable" : "volatile",
                          is_volatile ? "volatile" : "durable");
    if (rc != SPATE_END)
        return rc;
    if (!create) {
        err->missing = true;
        return spate_fail(err, SPATE_RETRY, "there is no topic %s below %s yet", topic->name,
                          topic->place->path);
    }
    rc = spate_local_segment_next(topic->durable_fd, 0, &base, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_OK)
        return spate_fail(
            err, SPATE_FATAL,
            "topic %s below %s has segments but no manifest: somebody removed it. Restore it, or "
            "move the directory away to begin a new log",
            topic->name, topic->place->path);
    /* The first base is cap, so that no record ever stands at position 0. */
    topic->manifest =
        (struct spate_local_manifest){.cap = cap,
                                      .first = cap,
                                      .is_volatile = is_volatile,
                                      .is_unchecked = is_volatile && (flags & SPATE_TOPIC_UNCHECKED)};
    spate_uuid(topic->manifest.log_id);
    return spate_local_manifest_write(topic, err);
}

bool spate_local_topic_in_place(const struct spate_local_topic *topic)
{
    char path[SPATE_LOCAL_PATH + SPATE_LOCAL_NAME + 2];
    struct stat open, named;

    snprintf(path, sizeof path, "%s/%s", topic->place->path, topic->name);
    return fstat(topic->durable_fd, &open) == 0 && lstat(path, &named) == 0 && open.st_dev == named.st_dev &&
           open.st_ino == named.st_ino;
}

enum spate_rc spate_local_topic_gone(const struct spate_local_topic *topic, struct spate_err *err)
{
    if (spate_local_topic_in_place(topic))
        return SPATE_OK;
    return spate_fail(err, SPATE_FATAL,
                      "the log of topic %s below %s was removed or moved under this process; start it again, "
                      "and it says what it missed",
                      topic->name, topic->place->path);
}

uint64_t spate_local_topic_tip(const struct spate_local_topic *topic)
{
    struct spate_local_segment seg;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    const uint64_t head = atomic_load(&topic->ctl->head);

    if (spate_local_segment_map(topic->hot_fd, head, topic->manifest.cap, SPATE_LOCAL_MAP_READ, &seg,
                                &ignored) != SPATE_OK)
        return head;
    const uint64_t tail = spate_local_tail_bytes(atomic_load(&spate_local_header(&seg)->tail));
    spate_local_segment_unmap(&seg);
    return head + (tail < seg.cap ? tail : seg.cap);
}

static bool is_whole(const struct spate_local_topic *topic, uint64_t head)
{
    const uint64_t cap = topic->manifest.cap, durable = atomic_load(&topic->ctl->durable);
    const uint64_t from =
        topic->manifest.is_volatile || durable > head ? head : spate_local_base_of(durable, cap);
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    uint64_t base = from;

    for (uint64_t at = from; at <= head; at = base + cap)
        if (spate_local_segment_next(topic->hot_fd, at, &base, &ignored) != SPATE_OK || base != at)
            return false;
    return true;
}

bool spate_local_topic_whole(const struct spate_local_topic *topic)
{
    for (;;) {
        const uint64_t head = atomic_load(&topic->ctl->head);
        if (is_whole(topic, head))
            return true;
        if (atomic_load(&topic->ctl->head) == head) /* else its writers forgot that segment meanwhile */
            return false;
    }
}

enum spate_rc spate_local_topic_promise(struct spate_local_topic *topic, struct spate_err *err)
{
    struct spate_local_manifest *m = &topic->manifest;
    /* Of a volatile topic, whose writers wait for no disk and for no steward either: terabytes. */
    const uint64_t ahead = (m->is_volatile ? PROMISE_VOLATILE : SPATE_LOCAL_RESERVE) * m->cap;
    const uint64_t head = atomic_load(&topic->ctl->head);

    if (atomic_load(&topic->ctl->promised) >= head + ahead / 2)
        return SPATE_OK;
    enum spate_rc rc = spate_local_manifest_read(topic, err);
    if (rc == SPATE_END)
        return spate_fail(err, SPATE_FATAL, "the manifest of topic %s below %s was removed", topic->name,
                          topic->place->path);
    if (rc == SPATE_OK && m->highest < head + ahead) {
        m->highest = head + ahead;
        rc = spate_local_manifest_write(topic, err);
    }
    if (rc == SPATE_FAIL)
        return err->verdict == SPATE_RETRY ? SPATE_AGAIN : rc;
    atomic_store(&topic->ctl->promised, m->highest);
    SPATE_FAILPOINT(local_promised);
    return SPATE_OK;
}

void spate_local_topic_gate(const struct spate_local_topic *topic, bool held)
{
    struct spate_local_ctl *ctl = topic->ctl;
    const uint64_t cap = topic->manifest.cap, head = atomic_load(&ctl->head);
    uint64_t gate = atomic_load(&ctl->promised), why = SPATE_LOCAL_GATE_PROMISE;

    if (!topic->manifest.is_volatile) {
        const uint64_t hot =
            spate_local_base_of(atomic_load(&ctl->durable), cap) + (SPATE_LOCAL_HOT_MOST - 1) * cap;
        if (hot < gate) {
            gate = hot;
            why = SPATE_LOCAL_GATE_DISK;
        }
        if (held && head < gate) {
            gate = head;
            why = SPATE_LOCAL_GATE_HOLD;
        }
    }
    if (atomic_load(&ctl->gate) == gate && atomic_load(&ctl->gate_why) == why)
        return;
    atomic_store(&ctl->gate_why, why);
    atomic_store(&ctl->gate, gate);
}

void spate_local_topic_close(struct spate_local_topic *topic)
{
    spate_local_topic_detach(topic);
    if (topic->durable_fd >= 0)
        close(topic->durable_fd);
    topic->durable_fd = -1;
}
