/* bus/local/look.c - a topic's files as they are, for people. */
#include "bus/local/look.h"

#include "core/alloc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEPS_MOST 4096 /* over padding, to the next record */
#define WALKS_MOST 4    /* segments that are read whole to count their records */

/* ---- directories ---- */

static bool name_number(const char *name, const char *suffix, uint64_t *number)
{
    if (strlen(name) != 16 + strlen(suffix) || strspn(name, "0123456789abcdef") != 16 ||
        strcmp(name + 16, suffix) != 0)
        return false;
    *number = strtoull(name, NULL, 16);
    return true;
}

static struct spate_local_seen_segment *segment_of(struct spate_local_seen *seen, uint64_t base)
{
    for (size_t i = 0; i < seen->segment_count; i++)
        if (seen->segments[i].base == base)
            return &seen->segments[i];
    seen->segments = spate_realloc(seen->segments, (seen->segment_count + 1) * sizeof *seen->segments);
    struct spate_local_seen_segment *made = &seen->segments[seen->segment_count++];
    *made = (struct spate_local_seen_segment){.base = base};
    return made;
}

static void note_file(struct spate_local_seen *seen, bool hot, const char *name, const struct stat *st)
{
    const uint64_t bytes = (uint64_t)st->st_blocks * 512;
    struct spate_local_seen_segment *segment;
    uint64_t number;

    *(hot ? &seen->hot_bytes : &seen->archive_bytes) += bytes;
    if (name_number(name, ".spill", &number)) {
        seen->spills++;
        seen->spill_bytes += bytes;
    } else if (name_number(name, ".seg", &number)) {
        segment = segment_of(seen, number);
        *(hot ? &segment->hot : &segment->archived) = true;
        *(hot ? &segment->hot_bytes : &segment->archive_bytes) = bytes;
        segment->cut =
            segment->cut || (hot && (uint64_t)st->st_size != SPATE_LOCAL_HEADER + seen->topic.manifest.cap);
    }
}

static enum spate_rc list(struct spate_local_seen *seen, int dir, bool hot, struct spate_err *err)
{
    const int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    struct stat st;

    if (!stream) {
        const int why = errno;

        if (fd >= 0)
            close(fd);
        return spate_fail(err, SPATE_RETRY, "cannot list the files of topic %s: %s", seen->topic.name,
                          strerror(why));
    }
    while ((entry = readdir(stream)) != NULL)
        if (fstatat(dir, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            note_file(seen, hot, entry->d_name, &st);
    closedir(stream);
    return SPATE_OK;
}

static int by_base(const void *a, const void *b)
{
    const uint64_t x = ((const struct spate_local_seen_segment *)a)->base;
    const uint64_t y = ((const struct spate_local_seen_segment *)b)->base;

    return x < y ? -1 : x > y;
}

/* ---- files ---- */

static int open_segment(const struct spate_local_seen *seen, uint64_t base, bool archived)
{
    const int dir = archived ? seen->topic.durable_fd : seen->topic.hot_fd;
    char name[SPATE_LOCAL_FILE];

    spate_local_segment_name(base, name);
    return dir < 0 ? -1 : openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

static bool read_header(const struct spate_local_seen *seen, uint64_t base, bool archived,
                        struct spate_local_segment_header *header)
{
    const int fd = open_segment(seen, base, archived);
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    if (fd < 0)
        return false;
    const bool whole = pread(fd, header, sizeof *header, 0) == (ssize_t)sizeof *header;
    close(fd);
    return whole &&
           spate_local_segment_header_check(header, base, seen->topic.manifest.cap, &ignored) == SPATE_OK;
}

/* The file in shared memory has the newer tail. */
static void look_segment(struct spate_local_seen *seen, struct spate_local_seen_segment *segment)
{
    struct spate_local_segment_header header;
    const uint64_t cap = seen->topic.manifest.cap;

    segment->good = (segment->hot && read_header(seen, segment->base, false, &header)) ||
                    (segment->archived && read_header(seen, segment->base, true, &header));
    if (!segment->good)
        return;
    const uint64_t tail = atomic_load(&header.tail), sealed = atomic_load(&header.sealed);
    const uint64_t bytes = spate_local_tail_bytes(tail);

    segment->created_us = (int64_t)(header.created_ns / 1000);
    segment->used = bytes < cap ? bytes : cap;
    segment->sealed = sealed != 0;
    segment->indices = sealed != 0 ? sealed : tail >> SPATE_LOCAL_TAIL_SHIFT;
}

static bool read_ctl(const struct spate_local_topic *topic, struct spate_local_ctl *ctl)
{
    const int fd = openat(topic->hot_fd, "ctl", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return false;
    const bool whole = pread(fd, ctl, sizeof *ctl, 0) == (ssize_t)sizeof *ctl;
    close(fd);
    return whole && ctl->magic == SPATE_LOCAL_CTL_MAGIC && ctl->generation == topic->manifest.generation &&
           ctl->cap == topic->manifest.cap;
}

uint64_t spate_local_look_durable(const struct spate_local_seen *seen)
{
    struct spate_local_ctl ctl;

    return seen->hot && read_ctl(&seen->topic, &ctl) ? atomic_load(&ctl.durable) : seen->durable;
}

static void look_hot(struct spate_local_seen *seen)
{
    struct spate_local_topic *topic = &seen->topic;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    uint64_t hot_id;
    int root;

    if (spate_local_place_hot(topic->place, &root, &hot_id, &ignored) != SPATE_OK)
        return;
    topic->hot_fd = openat(root, topic->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(root);
    seen->hot = topic->hot_fd >= 0 && hot_id == topic->manifest.hot && read_ctl(topic, &seen->ctl);
    if (!seen->hot && topic->hot_fd >= 0) {
        close(topic->hot_fd);
        topic->hot_fd = -1;
    }
}

/* ---- who writes ---- */

static void signature(int fd, unsigned place, char out[SPATE_LOCAL_OWNER])
{
    spate_local_lock_signed(fd, place, out);
    for (char *c = out; *c; c++) /* whoever may write there may write anything */
        if (*c < ' ' || *c > '~')
            *c = '?';
}

static void add_writer(struct spate_local_seen *seen, int fd, unsigned slot)
{
    seen->writers = spate_realloc(seen->writers, (seen->writer_count + 1) * sizeof *seen->writers);
    struct spate_local_seen_writer *writer = &seen->writers[seen->writer_count++];

    writer->slot = slot;
    signature(fd, slot, writer->who);
}

static void look_writers(struct spate_local_seen *seen)
{
    const int fd =
        openat(seen->topic.durable_fd, "writers.lck", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;

    seen->shared = fstat(seen->topic.durable_fd, &st) == 0 && (st.st_mode & S_IWGRP) != 0;
    if (fd < 0)
        return;
    if (spate_local_lock_alone(fd, SPATE_LOCAL_LOCK_TOPIC))
        add_writer(seen, fd, 0);
    else if (spate_local_lock_held(fd, SPATE_LOCAL_LOCK_TOPIC))
        for (unsigned slot = 1; slot < SPATE_LOCAL_WRITERS; slot++)
            if (spate_local_lock_alone(fd, (int)slot))
                add_writer(seen, fd, slot);
    if (spate_local_lock_held(fd, SPATE_LOCAL_LOCK_STEWARD))
        signature(fd, SPATE_LOCAL_LOCK_STEWARD, seen->steward);
    close(fd);
}

/* ---- all of it ---- */

static void look_ends(struct spate_local_seen *seen)
{
    struct spate_local_seen_segment *last =
        seen->segment_count > 0 ? &seen->segments[seen->segment_count - 1] : NULL;
    struct spate_local_walk walk;
    struct spate_err ignored = {.verdict = SPATE_RETRY};

    seen->first = seen->durable = seen->tip = seen->topic.manifest.first;
    if (seen->hot) {
        seen->first = atomic_load(&seen->ctl.first);
        seen->durable = atomic_load(&seen->ctl.durable);
        seen->tip = atomic_load(&seen->ctl.head);
        for (size_t i = 0; i < seen->segment_count; i++)
            if (seen->segments[i].hot && seen->segments[i].base == atomic_load(&seen->ctl.head))
                seen->tip += seen->segments[i].used;
    } else if (last && spate_local_look_walk(seen, last->base, true, false, &walk, &ignored) == SPATE_OK) {
        seen->durable = seen->tip = walk.end == SPATE_LOCAL_WALK_ENDED ? walk.next : last->base + walk.upto;
        last->used = walk.upto; /* its file says what was so when the file was begun */
        last->indices = walk.indices;
    }
}

enum spate_rc spate_local_look_page(struct spate_local_seen *seen, const struct spate_local_place *place,
                                    const char *topic, struct spate_err *err)
{
    *seen = (struct spate_local_seen){.topic = {.durable_fd = -1, .hot_fd = -1}};
    const enum spate_rc rc = spate_local_topic_open(&seen->topic, place, topic, err);
    if (rc == SPATE_OK)
        look_hot(seen);
    return rc;
}

enum spate_rc spate_local_look(struct spate_local_seen *seen, const struct spate_local_place *place,
                               const char *topic, struct spate_err *err)
{
    enum spate_rc rc = spate_local_look_page(seen, place, topic, err);
    if (rc != SPATE_OK)
        return rc;
    look_writers(seen);
    /* The hot tier first: what leaves it meanwhile is in the archive already. */
    if (seen->topic.hot_fd >= 0)
        rc = list(seen, seen->topic.hot_fd, true, err);
    if (rc == SPATE_OK)
        rc = list(seen, seen->topic.durable_fd, false, err);
    if (rc != SPATE_OK)
        return rc;
    if (seen->segment_count > 0)
        qsort(seen->segments, seen->segment_count, sizeof *seen->segments, by_base);
    for (size_t i = 0; i < seen->segment_count; i++)
        look_segment(seen, &seen->segments[i]);
    look_ends(seen);
    return SPATE_OK;
}

void spate_local_look_fini(struct spate_local_seen *seen)
{
    spate_local_topic_close(&seen->topic);
    free(seen->segments);
    free(seen->writers);
    seen->segments = NULL;
    seen->writers = NULL;
    seen->segment_count = seen->writer_count = 0;
}

/* ---- positions ---- */

static const struct spate_local_seen_segment *segment_with(const struct spate_local_seen *seen, uint64_t pos)
{
    for (size_t i = 0; i < seen->segment_count; i++)
        if (pos >= seen->segments[i].base && pos - seen->segments[i].base < seen->topic.manifest.cap)
            return &seen->segments[i];
    return NULL;
}

enum spate_rc spate_local_look_at(const struct spate_local_seen *seen, uint64_t pos,
                                  struct spate_local_record *header, uint64_t *at, struct spate_err *err)
{
    const struct spate_local_seen_segment *segment = segment_with(seen, pos);
    const uint64_t cap = seen->topic.manifest.cap;
    enum spate_rc rc = SPATE_END;
    uint64_t size;
    uint32_t len;

    if (!segment)
        return SPATE_END;
    if (pos % SPATE_LOCAL_UNIT != 0)
        return spate_fail(err, SPATE_FATAL,
                          "%016" PRIx64 " is no record's position: they are multiples of 64 (40 in hex)",
                          pos);
    int fd = segment->hot ? open_segment(seen, segment->base, false) : -1;
    if (fd < 0)
        fd = open_segment(seen, segment->base, true);
    if (fd < 0)
        return SPATE_END;
    for (unsigned steps = 0; steps < STEPS_MOST && pos - segment->base < cap; steps++, pos += size) {
        const uint64_t offset = pos - segment->base;

        if (pread(fd, header, sizeof *header, (off_t)(SPATE_LOCAL_HEADER + offset)) !=
            (ssize_t)sizeof *header)
            break; /* an archive file ends where the archiver is */
        const enum spate_local_step step = spate_local_step(header, cap - offset, &size, &len);
        if (step == SPATE_LOCAL_STEP_PAD)
            continue;
        *at = pos;
        rc = step == SPATE_LOCAL_STEP_RECORD ? SPATE_OK
             : step == SPATE_LOCAL_STEP_BAD
                 ? spate_fail(err, SPATE_FATAL,
                              "what stands at position %016" PRIx64
                              " is no record: either the position is none, or the segment is damaged",
                              pos)
                 : SPATE_END;
        break;
    }
    close(fd);
    return rc;
}

bool spate_local_look_spilled(const struct spate_local_seen *seen, uint64_t pos,
                              const struct spate_local_record *header, struct spate_local_spill_ref *ref)
{
    const struct spate_local_seen_segment *segment = segment_with(seen, pos);
    int fd = -1;

    if (!segment || header->type != SPATE_LOCAL_SPILL ||
        spate_local_len_of(atomic_load(&header->word)) != header->keylen + sizeof *ref)
        return false;
    if (segment->hot)
        fd = open_segment(seen, segment->base, false);
    if (fd < 0)
        fd = open_segment(seen, segment->base, true);
    if (fd < 0)
        return false;
    const off_t at =
        (off_t)(SPATE_LOCAL_HEADER + pos - segment->base + SPATE_LOCAL_RECORD_HEADER + header->keylen);
    const bool whole = pread(fd, ref, sizeof *ref, at) == (ssize_t)sizeof *ref;
    close(fd);
    return whole;
}

/* The end of a generation is not sealed, and its file may have been cut: its records are counted. */
static int64_t indices_of(const struct spate_local_seen *seen, const struct spate_local_seen_segment *segment,
                          unsigned *walks)
{
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct spate_local_walk walk;

    if (segment->sealed || segment->hot)
        return (int64_t)segment->indices;
    if (++*walks > WALKS_MOST ||
        spate_local_look_walk(seen, segment->base, true, false, &walk, &ignored) != SPATE_OK)
        return -1;
    return (int64_t)walk.indices;
}

/* How many indices were handed out in this segment before `pos`; -1: cannot be told. */
static int64_t index_at(const struct spate_local_seen *seen, const struct spate_local_seen_segment *segment,
                        uint64_t pos, unsigned *walks)
{
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct spate_local_record header;
    uint64_t at;
    const enum spate_rc rc = spate_local_look_at(seen, pos, &header, &at, &ignored);

    return rc == SPATE_OK ? (int64_t)header.idx : rc == SPATE_END ? indices_of(seen, segment, walks) : -1;
}

int64_t spate_local_look_between(const struct spate_local_seen *seen, uint64_t pos, uint64_t end)
{
    const uint64_t cap = seen->topic.manifest.cap;
    unsigned walks = 0;
    int64_t sum = 0;

    if (pos >= end)
        return 0;
    for (size_t i = 0; i < seen->segment_count; i++) {
        const struct spate_local_seen_segment *segment = &seen->segments[i];
        int64_t from = 0, upto;

        if (segment->base + cap <= pos || segment->base >= end)
            continue;
        if (pos > segment->base)
            from = index_at(seen, segment, pos, &walks);
        upto = end - segment->base < cap ? index_at(seen, segment, end, &walks)
                                         : indices_of(seen, segment, &walks);
        if (from < 0 || upto < 0)
            return -1;
        sum += upto > from ? upto - from : 0;
    }
    return sum;
}
