/* bus/local/spill.c - making, naming, mapping and removing spill files. */
#include "bus/local/spill.h"

#include "bus/local/archive.h"
#include "bus/local/listing.h"
#include "bus/local/place.h"
#include "bus/local/segment.h"
#include "core/failpoint.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CHUNK ((size_t)2 << 20) /* handed to the disk while the next one is summed up */

static void name_of(uint64_t pos, char out[SPATE_LOCAL_SPILL_NAME])
{
    snprintf(out, SPATE_LOCAL_SPILL_NAME, "%016" PRIx64 ".spill", pos);
}

static bool pos_of(const char *name, uint64_t *pos)
{
    if (strlen(name) != 22 || strcmp(name + 16, ".spill") != 0 || strspn(name, "0123456789abcdef") != 16)
        return false;
    *pos = strtoull(name, NULL, 16);
    return true;
}

/* Takes all the room first: a disk that fills up on the way would stay full until the file is gone. */
static int reserve(struct spate_local_spill *spill, size_t len, uint64_t *missing)
{
    struct statvfs fs;
    int why;

    *missing = len;
    if (fstatvfs(spill->dir, &fs) == 0) {
        const uint64_t room = (geteuid() == 0 ? fs.f_bfree : fs.f_bavail) * fs.f_frsize;
        if (room < len) {
            *missing = len - room;
            return ENOSPC;
        }
    }
    do
        why = posix_fallocate(spill->fd, 0, (off_t)len);
    while (why == EINTR);
    return why;
}

static int write_value(struct spate_local_spill *spill, struct spate_slice value, bool sync)
{
    const char *at = value.at;
    size_t left = value.len;
    off_t offset = 0;
    uint32_t crc = 0;

    while (left > 0) {
        const size_t chunk = left < CHUNK ? left : CHUNK;
        size_t done = 0;
        crc = spate_crc32c(crc, at, chunk);
        while (done < chunk) {
            const ssize_t put = pwrite(spill->fd, at + done, chunk - done, offset + (off_t)done);
            if (put < 0 && errno == EINTR)
                continue;
            if (put <= 0)
                return put < 0 ? errno : ENOSPC;
            done += (size_t)put;
        }
        /* Only starts the writing; what it fails at, the sync that follows reports. */
        if (sync && sync_file_range(spill->fd, offset, (off_t)chunk, SYNC_FILE_RANGE_WRITE) != 0)
            errno = 0;
        at += chunk;
        left -= chunk;
        offset += (off_t)chunk;
    }
    spill->ref.crc = crc;
    if (!sync)
        return 0;
    const int failed =
        spate_local_archive_sync_hook ? spate_local_archive_sync_hook(spill->fd) : fdatasync(spill->fd);
    return failed ? errno : 0;
}

enum spate_rc spate_local_spill_make(struct spate_local_spill *spill, const struct spate_local_topic *topic,
                                     struct spate_slice value, uint64_t *missing, struct spate_err *err)
{
    const bool sync = !topic->manifest.is_volatile;
    int why;

    /* Twice: after a failed sync the pages are not to be believed, a new file is. */
    for (int attempt = 0; attempt < 2; attempt++) {
        *spill = (struct spate_local_spill){
            .dir = spate_local_spill_dir(topic), .fd = -1, .ref = {.length = value.len}};
        *missing = value.len;
        spill->fd = spate_local_temp_make(spill->dir, "spill", spill->name);
        why = spill->fd < 0 ? errno : 0;
        if (why == 0)
            spate_local_open_up(spill->dir, spill->fd);
        if (why == 0)
            why = SPATE_FAILPOINT_FAILS(local_spill) ? ENOSPC : reserve(spill, value.len, missing);
        if (why == 0)
            why = write_value(spill, value, sync);
        if (why == 0) {
            SPATE_FAILPOINT(local_spilled);
            return SPATE_OK;
        }
        spate_local_spill_drop(spill);
        if (why == ENOSPC || why == EDQUOT)
            return SPATE_AGAIN;
        if (why != EIO)
            break;
    }
    return spate_fail(
        err, SPATE_RETRY, "cannot write a value of %zu bytes of topic %s to a file of its own %s %s: %s",
        value.len, topic->name, topic->manifest.is_volatile ? "in the shared memory of the bus" : "below",
        topic->place->path, why == ENOENT ? "its directory was removed" : strerror(why));
}

enum spate_rc spate_local_spill_call(struct spate_local_spill *spill, uint64_t pos, struct spate_err *err)
{
    char name[SPATE_LOCAL_SPILL_NAME];

    name_of(pos, name);
    if (renameat(spill->dir, spill->name, spill->dir, name) != 0) {
        if (errno == ENOENT)
            return SPATE_END;
        return spate_fail(err, SPATE_RETRY, "cannot call the spill file %s by its position: %s", name,
                          strerror(errno));
    }
    strcpy(spill->name, name);
    SPATE_FAILPOINT(local_spill_called);
    return SPATE_OK;
}

void spate_local_spill_keep(struct spate_local_spill *spill)
{
    if (spill->fd >= 0)
        close(spill->fd);
    spill->fd = -1;
}

void spate_local_spill_drop(struct spate_local_spill *spill)
{
    if (spill->fd < 0)
        return;
    unlinkat(spill->dir, spill->name, 0);
    spate_local_spill_keep(spill);
}

/* What the record says; false: nothing that a writer wrote. */
static bool ref_of(const struct spate_local_record *record, uint32_t len, struct spate_local_spill_ref *ref)
{
    const uint16_t keylen = record->keylen; /* what others may change is looked at once */

    if (record->type != SPATE_LOCAL_SPILL || len != keylen + sizeof *ref)
        return false;
    memcpy(ref, record->payload + keylen, sizeof *ref);
    return ref->length > 0 && ref->length <= SPATE_LOCAL_SPILL_MOST && ref->zero == 0;
}

/* Opens the file. NULL: it is there, and as long as it should be; else why not. */
static const char *open_file(int dir, uint64_t pos, const struct spate_local_record *record, uint32_t len,
                             struct spate_local_spill_ref *ref, int *fd, struct stat *st)
{
    char name[SPATE_LOCAL_SPILL_NAME];

    *fd = -1;
    *st = (struct stat){0};
    if (!ref_of(record, len, ref))
        return "the record does not say what its spill file is";
    name_of(pos, name);
    *fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0)
        return strerror(errno);
    if (fstat(*fd, st) != 0 || !S_ISREG(st->st_mode))
        return "its spill file is no file";
    return (uint64_t)st->st_size == ref->length ? NULL : "its spill file was cut";
}

static void release(struct spate_local_spill_view *view)
{
    if (view->at) {
        spate_local_guard_remove(view->guard);
        munmap(view->at, view->len);
    }
    *view = (struct spate_local_spill_view){0};
}

enum spate_rc spate_local_spill_map(const struct spate_local_topic *topic, uint64_t pos,
                                    const struct spate_local_record *record, uint32_t len,
                                    struct spate_local_spill_view *view, struct spate_err *err)
{
    struct spate_local_spill_ref ref;
    struct stat st;
    int fd;
    const int dir = spate_local_spill_dir(topic);

    *view = (struct spate_local_spill_view){0};
    const char *why = open_file(dir, pos, record, len, &ref, &fd, &st);
    if (why && fd < 0 && ref_of(record, len, &ref)) {
        if (errno == ENOENT)
            return SPATE_END;
        return spate_fail(err, errno == EACCES || errno == ELOOP ? SPATE_FATAL : SPATE_RETRY,
                          "cannot open the spill file %016" PRIx64 ".spill of topic %s below %s: %s; this "
                          "process runs as uid %u",
                          pos, topic->name, topic->place->path, why, (unsigned)geteuid());
    }
    void *at = why ? MAP_FAILED : mmap(NULL, (size_t)ref.length, PROT_READ, MAP_SHARED, fd, 0);
    const int unmapped = errno;
    if (fd >= 0)
        close(fd);
    if (!why && at == MAP_FAILED)
        return spate_fail(err, SPATE_RETRY, "cannot map a value of %" PRIu64 " bytes of topic %s: %s",
                          ref.length, topic->name, strerror(unmapped));
    if (!why) {
        *view = (struct spate_local_spill_view){
            .at = at, .len = (size_t)ref.length, .guard = spate_local_guard_add(at, ref.length, false)};
        const bool good = spate_crc32c(0, at, view->len) == ref.crc;
        if (good && !spate_local_guard_cut(view->guard))
            return SPATE_OK;
        release(view);
        why = "its spill file holds other bytes than were written";
    }
    return spate_fail(err, SPATE_FATAL,
                      "the log of topic %s is damaged at position %016" PRIx64 ": %s (%016" PRIx64
                      ".spill, %lld bytes, below %s): restore that file from a copy, or begin anew behind it",
                      topic->name, pos, why, pos, (long long)st.st_size, topic->place->path);
}

enum spate_rc spate_local_spill_unmap(const struct spate_local_topic *topic,
                                      struct spate_local_spill_view *view, struct spate_err *err)
{
    const bool cut = view->at && spate_local_guard_cut(view->guard);

    release(view);
    return cut ? spate_fail(err, SPATE_FATAL,
                            "a spill file of topic %s below %s was cut while it was read: restore it from a "
                            "copy, or begin anew behind it",
                            topic->name, topic->place->path)
               : SPATE_OK;
}

bool spate_local_spill_sound(int dir, uint64_t pos, const struct spate_local_record *record, uint32_t len,
                             bool read_it)
{
    struct spate_local_spill_ref ref;
    struct stat st;
    int fd;
    bool sound = open_file(dir, pos, record, len, &ref, &fd, &st) == NULL;

    if (sound && read_it) {
        unsigned char *chunk = malloc(CHUNK);
        uint32_t crc = 0;
        uint64_t left = ref.length;
        while (chunk && left > 0) {
            const ssize_t got = read(fd, chunk, left < CHUNK ? (size_t)left : CHUNK);
            if (got <= 0)
                break;
            crc = spate_crc32c(crc, chunk, (size_t)got);
            left -= (uint64_t)got;
        }
        sound = left == 0 && crc == ref.crc;
        free(chunk);
    }
    if (fd >= 0)
        close(fd);
    return sound;
}

static uint64_t walk(int dir, uint64_t from, uint64_t upto, bool remove)
{
    struct spate_local_listing list;
    uint64_t bytes = 0, pos;
    const char *name;
    struct stat st;

    if (!spate_local_listing_open(&list, dir))
        return 0;
    while ((name = spate_local_listing_next(&list)) != NULL) {
        if (!pos_of(name, &pos) || pos < from || pos >= upto)
            continue;
        if (remove)
            unlinkat(dir, name, 0);
        else if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            bytes += (uint64_t)st.st_blocks * 512;
    }
    spate_local_listing_close(&list);
    return bytes;
}

void spate_local_spill_remove_one(int dir, uint64_t pos)
{
    char name[SPATE_LOCAL_SPILL_NAME];

    name_of(pos, name);
    unlinkat(dir, name, 0);
}

void spate_local_spill_remove(int dir, uint64_t from, uint64_t upto)
{
    walk(dir, from, upto, true);
}

uint64_t spate_local_spill_bytes(int dir, uint64_t from, uint64_t upto)
{
    return walk(dir, from, upto, false);
}
