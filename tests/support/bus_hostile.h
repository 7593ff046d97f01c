/* tests/support/bus_hostile.h - a bus whose files somebody rewrites at will, and clients that come upon it
 * (L13).
 *
 * The files are made once by a real writer and kept in memory; patches are applied to what is on the disk,
 * and after each trial what was touched is put back. A patch is: file, kind, then what the kind needs.
 * Clients may refuse, with words; they may not crash, loop, or hand out bytes from outside of a segment. */
#ifndef SPATE_TESTS_SUPPORT_BUS_HOSTILE_H
#define SPATE_TESTS_SUPPORT_BUS_HOSTILE_H

#include "bus/local/layout.h"
#include "bus/local/look.h"
#include "bus/local/named.h"
#include "bus/local/segment.h"
#include "core/hash.h"
#include "tests/support/bus_log.h"
#include "tests/support/bus_scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOSTILE_CAP (UINT64_C(1) << 20)

enum hostile_kind {
    HOSTILE_WORD,   /* u32 slot, u8 state, u32 len: the word of a record, or of what stands there */
    HOSTILE_BYTES,  /* u32 offset, u8 n, n bytes */
    HOSTILE_CUT,    /* u32 size */
    HOSTILE_TEXT,   /* u8 n, n bytes: the whole of a small file, with its checksum made right */
    HOSTILE_U64,    /* u32 offset, u64 */
    HOSTILE_RECORD, /* u32 slot: makes the checksum of the record right that seems to stand there */
    HOSTILE_HEADER, /* makes the checksum of a segment's header right, or of the marks of a reader */
    HOSTILE_REMOVE, /* the file */
    HOSTILE_KINDS
};

struct hostile_file {
    char name[64]; /* below its root */
    bool hot;
    mode_t mode;
    unsigned char *bytes;
    size_t len;
};

struct hostile {
    struct bus_scratch scratch;
    int root[2]; /* durable, hot */
    struct hostile_file files[32];
    size_t count;
    uint64_t violations; /* bytes handed out that no segment can hold, positions that go back */
};

static inline void hostile_die(const char *what)
{
    fprintf(stderr, "bus_hostile: %s\n", what);
    abort();
}

static inline void hostile_good(enum spate_rc rc, const struct spate_err *err)
{
    if (rc != SPATE_OK)
        hostile_die(err->text);
}

static inline void hostile_collect(struct hostile *h, bool hot, int root, const char *below)
{
    const int fd = openat(root, below[0] ? below : ".", O_RDONLY | O_DIRECTORY);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    if (!dir)
        hostile_die("cannot list a directory");
    while ((entry = readdir(dir)) != NULL) {
        char name[512];
        struct stat st;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s%s%s", below, below[0] ? "/" : "", entry->d_name);
        if (fstatat(root, name, &st, 0) != 0)
            continue;
        if (S_ISDIR(st.st_mode)) {
            hostile_collect(h, hot, root, name);
            continue;
        }
        if (h->count == sizeof h->files / sizeof h->files[0] || strlen(name) >= sizeof h->files[0].name)
            hostile_die("too many files");
        struct hostile_file *file = &h->files[h->count++];
        memcpy(file->name, name, strlen(name) + 1);
        file->hot = hot;
        file->mode = st.st_mode & 0777;
        file->len = (size_t)st.st_size;
        file->bytes = malloc(file->len + 1);
        const int in = openat(root, name, O_RDONLY);
        if (!file->bytes || in < 0 || read(in, file->bytes, file->len) != st.st_size)
            hostile_die("cannot read a file");
        close(in);
    }
    closedir(dir);
}

static inline int hostile_by_name(const void *a, const void *b)
{
    const struct hostile_file *x = a, *y = b;

    return x->hot != y->hot ? x->hot - y->hot : strcmp(x->name, y->name);
}

/* A log of two segments in the archive, the last of them in shared memory as well, with a value in a file of
 * its own, and a reader that has a name. */
static inline void hostile_init(struct hostile *h)
{
    struct spate_bus *bus;
    struct spate_writer *w;
    struct spate_reader *r;
    struct spate_err err = {0};
    struct bus_log_acks acks = {0};
    size_t taken, large;

    memset(h, 0, sizeof *h);
    setenv("TMPDIR", "/dev/shm", 1); /* nothing here waits for a disk */
    bus_scratch_init(&h->scratch, (int64_t)HOSTILE_CAP);
    hostile_good(spate_bus_open(&h->scratch.config, &bus, &err), &err);
    hostile_good(spate_bus_writer_open(bus, "log", SPATE_TOPIC_CREATE, &w, &err), &err);
    hostile_good(bus_log_publish(w, 1, 3500, &acks, &err), &err);
    large = spate_writer_max_record(w) > 600000 ? 600000 : 0;
    if (large) {
        char *value = malloc(large);
        memset(value, 'v', large);
        const struct spate_record record = {.value = spate_slice(value, large), .token = 3501};
        hostile_good(spate_writer_publish(w, &record, 1, &taken, &err), &err);
        free(value);
    }
    hostile_good(bus_log_settle(w, large ? 3501 : 3500, &acks, &err), &err);
    hostile_good(spate_bus_reader_open(bus, "log", SPATE_SEE_TIP,
                                       (struct spate_start){.from = SPATE_START_OLDEST}, &r, &err),
                 &err);
    hostile_good(spate_reader_enlist(r, "anna", false, &err), &err);
    spate_reader_passed(r, spate_reader_end(r));
    spate_reader_close(r);
    spate_writer_close(w);
    spate_bus_close(bus);
    h->root[0] = open(h->scratch.path, O_RDONLY | O_DIRECTORY);
    h->root[1] = open(h->scratch.hot, O_RDONLY | O_DIRECTORY);
    hostile_collect(h, false, h->root[0], "");
    hostile_collect(h, true, h->root[1], "");
    qsort(h->files, h->count, sizeof h->files[0], hostile_by_name);
}

static inline void hostile_fini(struct hostile *h)
{
    for (size_t i = 0; i < h->count; i++)
        free(h->files[i].bytes);
    close(h->root[0]);
    close(h->root[1]);
    bus_scratch_fini(&h->scratch);
}

static inline void hostile_empty(const char *root)
{
    DIR *dir = opendir(root);
    const struct dirent *entry;

    while (dir && (entry = readdir(dir)) != NULL) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", root, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            bus_scratch_remove(path);
    }
    closedir(dir);
}

/* The files as they were, and no other ones. The roots stay: bus.meta knows which ones they are. */
static inline void hostile_restore(struct hostile *h)
{
    hostile_empty(h->scratch.path);
    hostile_empty(h->scratch.hot);
    for (size_t i = 0; i < h->count; i++) {
        struct hostile_file *file = &h->files[i];
        char part[sizeof file->name];
        for (char *slash = strchr(strcpy(part, file->name), '/'); slash; slash = strchr(slash + 1, '/')) {
            *slash = '\0';
            mkdirat(h->root[file->hot], part, 0750);
            *slash = '/';
        }
        const int fd = openat(h->root[file->hot], file->name, O_WRONLY | O_CREAT | O_TRUNC, file->mode);
        if (fd < 0 || write(fd, file->bytes, file->len) != (ssize_t)file->len)
            hostile_die("cannot put a file back");
        close(fd);
    }
}

/* ---- patches ---- */

struct hostile_input {
    const unsigned char *at;
    size_t left;
};

static inline uint64_t hostile_number(struct hostile_input *in, size_t bytes)
{
    uint64_t n = 0;

    for (size_t i = 0; i<bytes; i++, in->at += in->left> 0, in->left -= in->left > 0)
        n |= (uint64_t)(in->left > 0 ? *in->at : 0) << 8 * i;
    return n;
}

static inline void hostile_text(int fd, struct hostile_input *in)
{
    char text[512];
    size_t n = (size_t)hostile_number(in, 1);

    n = n < in->left ? n : in->left;
    memcpy(text, in->at, n);
    in->at += n;
    in->left -= n;
    n += (size_t)snprintf(text + n, sizeof text - n, "crc %08x\n", spate_crc32c(0, text, n));
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, n, 0) != (ssize_t)n)
        hostile_die("cannot write a text");
}

static inline void hostile_record_crc(int fd, const struct hostile_file *file, uint64_t slot)
{
    const off_t at = (off_t)(SPATE_LOCAL_HEADER + slot * SPATE_LOCAL_UNIT);
    static unsigned char bytes[1 << 20];
    struct spate_local_record *record = (void *)bytes;
    const ssize_t got = pread(fd, bytes, sizeof bytes, at);
    const uint64_t base = strtoull(strchr(file->name, '/') + 1, NULL, 16);

    if (got < (ssize_t)sizeof *record)
        return;
    const uint32_t len = spate_local_len_of(record->word);
    if (len > (size_t)got - sizeof *record || record->keylen > len)
        return;
    record->crc = spate_local_record_crc(record, base + slot * SPATE_LOCAL_UNIT, len, record->payload,
                                         record->payload + record->keylen, len - record->keylen);
    if (pwrite(fd, &record->crc, sizeof record->crc, at + (off_t)offsetof(struct spate_local_record, crc)) !=
        sizeof record->crc)
        hostile_die("cannot write a checksum");
}

static inline void hostile_header_crc(int fd, const struct hostile_file *file)
{
    if (strstr(file->name, ".seg")) {
        struct spate_local_segment_header header;
        if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
            return;
        uint32_t crc = spate_crc32c(0, &header, offsetof(struct spate_local_segment_header, crc));
        header.crc = spate_crc32c(crc, &header.created_ns, sizeof header.created_ns);
        (void)!pwrite(fd, &header, 64, 0);
    } else if (strstr(file->name, SPATE_LOCAL_READERS)) {
        unsigned char lines[192];
        if (pread(fd, lines, sizeof lines, 0) != (ssize_t)sizeof lines)
            return;
        for (size_t i = 0; i < sizeof lines; i += 64) {
            const uint32_t crc = spate_crc32c(0, lines + i, 60);
            memcpy(lines + i + 60, &crc, sizeof crc);
        }
        (void)!pwrite(fd, lines, sizeof lines, 0);
    }
}

static inline void hostile_patch(struct hostile *h, struct hostile_input *in)
{
    struct hostile_file *file = &h->files[hostile_number(in, 1) % h->count];
    const enum hostile_kind kind = (enum hostile_kind)(hostile_number(in, 1) % HOSTILE_KINDS);
    const int fd = openat(h->root[file->hot], file->name, O_RDWR);
    const uint64_t units = file->len / SPATE_LOCAL_UNIT + 1;

    if (fd < 0)
        return; /* removed by a patch before */
    if (kind == HOSTILE_WORD) {
        const uint64_t slot = hostile_number(in, 4) % units;
        const enum spate_local_state state = (enum spate_local_state)hostile_number(in, 1);
        const uint64_t word = spate_local_word(state, 0, 1, (uint32_t)hostile_number(in, 4));
        (void)!pwrite(fd, &word, sizeof word, (off_t)(SPATE_LOCAL_HEADER + slot * SPATE_LOCAL_UNIT));
    } else if (kind == HOSTILE_BYTES) {
        const off_t at = (off_t)(hostile_number(in, 4) % (file->len + 1));
        size_t n = (size_t)hostile_number(in, 1);
        n = n < in->left ? n : in->left;
        (void)!pwrite(fd, in->at, n, at);
        in->at += n;
        in->left -= n;
    } else if (kind == HOSTILE_U64) {
        const off_t at = (off_t)(hostile_number(in, 4) % (file->len + 1));
        const uint64_t n = hostile_number(in, 8);
        (void)!pwrite(fd, &n, sizeof n, at);
    } else if (kind == HOSTILE_CUT) {
        (void)!ftruncate(fd, (off_t)(hostile_number(in, 4) % (file->len + 4096)));
    } else if (kind == HOSTILE_TEXT) {
        hostile_text(fd, in);
    } else if (kind == HOSTILE_RECORD) {
        const uint64_t slot = hostile_number(in, 4) % units;
        if (strstr(file->name, ".seg"))
            hostile_record_crc(fd, file, slot);
    } else if (kind == HOSTILE_HEADER) {
        hostile_header_crc(fd, file);
    } else {
        unlinkat(h->root[file->hot], file->name, 0);
    }
    close(fd);
}

/* ---- clients ---- */

static inline void hostile_words(const struct hostile *h, const struct spate_err *err)
{
    (void)h;
    if (err->text[0] == '\0')
        hostile_die("refused without a word");
}

/* Every byte that was given away is read; none of them may lie outside of its segment. */
static inline void hostile_touch(struct hostile *h, const struct spate_message *m, uint64_t *last)
{
    static volatile unsigned char sum;
    const size_t len = m->key.len + m->value.len;

    if (m->next.at <= m->pos.at || m->pos.at < *last)
        h->violations++;
    *last = m->pos.at;
    if (m->kind != SPATE_MESSAGE_RECORD)
        return;
    const bool spilled = m->value.at != m->key.at + m->key.len;
    const uint64_t inside = spilled ? m->key.len : len;
    if (m->pos.at % HOSTILE_CAP + SPATE_LOCAL_RECORD_HEADER + inside > HOSTILE_CAP || len > 2 * HOSTILE_CAP) {
        h->violations++;
        return; /* touching it is what would crash */
    }
    for (size_t i = 0; i < m->key.len; i += 63)
        sum = (unsigned char)(sum + m->key.at[i]);
    for (size_t i = 0; i < m->value.len; i += 63)
        sum = (unsigned char)(sum + m->value.at[i]);
    if (m->value.len > 0)
        sum = (unsigned char)(sum + m->value.at[m->value.len - 1]);
}

static inline void hostile_read(struct hostile *h, struct spate_bus *bus, enum spate_visibility see)
{
    const struct spate_start oldest = {.from = SPATE_START_OLDEST};
    struct spate_reader *r;
    struct spate_message m;
    struct spate_bus_pos start;
    struct spate_err err = {0};
    enum spate_rc rc;
    uint64_t last = 0, count = 0;

    if (spate_bus_reader_open(bus, "log", see, oldest, &r, &err) != SPATE_OK) {
        hostile_words(h, &err);
        return;
    }
    if (spate_reader_enlist(r, "anna", false, &err) == SPATE_FAIL)
        hostile_words(h, &err);
    while ((rc = spate_reader_next(r, &m, &err)) == SPATE_OK && ++count < 100000)
        hostile_touch(h, &m, &last);
    if (rc == SPATE_OK)
        h->violations++; /* more records than the segments have room for */
    if (rc == SPATE_FAIL)
        hostile_words(h, &err);
    spate_reader_passed(r, spate_reader_end(r));
    if (spate_reader_back(r, spate_reader_end(r), &start, &err) == SPATE_OK) {
        for (last = 0, count = 0; spate_reader_next(r, &m, &err) == SPATE_OK && count < 10; count++)
            hostile_touch(h, &m, &last);
    }
    spate_reader_close(r);
}

/* A writer settles or recovers what it finds, and publishes, or refuses. */
static inline void hostile_write(struct hostile *h, struct spate_bus *bus)
{
    struct bus_log_acks acks = {0};
    struct spate_writer *w;
    struct spate_err err = {0};
    enum spate_rc rc = spate_bus_writer_open(bus, "log", 0, &w, &err);

    if (rc != SPATE_OK) {
        hostile_words(h, &err);
        return;
    }
    char value[BUS_LOG_MOST];
    for (uint64_t n = 5000; n < 5003; n++) {
        const struct spate_record record = {
            .key = {.at = "key", .len = 3}, .value = bus_log_value(n, value), .token = n};
        size_t taken;
        rc = spate_writer_publish(w, &record, 1, &taken, &err);
        if (rc == SPATE_OK)
            rc = spate_writer_poll(w, 0, bus_log_acked, &acks, &err);
        if (rc == SPATE_FAIL)
            hostile_words(h, &err);
    }
    spate_writer_close(w);
}

/* Somebody asks what there is, with all that `spate bus` can say. */
static inline void hostile_look(struct hostile *h)
{
    const struct spate_local_place place = {.path = h->scratch.path, .hot = h->scratch.hot};
    struct spate_local_seen seen;
    struct spate_local_record header;
    struct spate_local_spill_ref ref;
    struct spate_local_walk walk;
    struct spate_err err = {0};
    uint64_t at = 0, pos;

    const enum spate_rc rc = spate_local_look(&seen, &place, "log", &err);
    if (rc == SPATE_FAIL)
        hostile_words(h, &err);
    for (size_t i = 0; rc == SPATE_OK && i < seen.segment_count && i < 16; i++) {
        for (int archived = 0; archived < 2; archived++)
            (void)!spate_local_look_walk(&seen, seen.segments[i].base, archived, true, &walk, &err);
        pos = seen.segments[i].base;
        for (int n = 0; n < 20 && spate_local_look_at(&seen, pos, &header, &at, &err) == SPATE_OK; n++) {
            (void)spate_local_look_spilled(&seen, at, &header, &ref);
            (void)spate_local_look_between(&seen, at, seen.tip);
            pos = at + spate_local_footprint(spate_local_len_of(header.word));
        }
    }
    spate_local_look_fini(&seen);
}

/* One trial: patches as long as there is input, then everybody who may come. */
static inline void hostile_trial(struct hostile *h, const unsigned char *data, size_t size)
{
    struct hostile_input in = {.at = data, .left = size};
    struct spate_bus *bus;
    struct spate_err err = {0};

    while (in.left > 0)
        hostile_patch(h, &in);
    hostile_good(spate_bus_open(&h->scratch.config, &bus, &err), &err);
    hostile_look(h);
    hostile_read(h, bus, SPATE_SEE_TIP);
    hostile_read(h, bus, SPATE_SEE_DURABLE);
    hostile_write(h, bus);
    hostile_read(h, bus, SPATE_SEE_DURABLE);
    spate_bus_close(bus);
    hostile_restore(h);
}

#endif
