/* bus_outage LOG IMAGE SEED - makes in the empty directory IMAGE what a power cut may leave of what LOG
 * tells.
 *
 * At a random call the machine stops, most often before one that syncs. What was synced stays. Of what was
 * written since, each sector of a file is old, new, or, beyond its synced end, garbage; a file ends anywhere
 * between its synced and its last end. Of the names that were made, changed or removed since their directory
 * was synced, the first few are as they were changed, in order, as in a journal. Prints the counters that
 * were promised before. */
#include "tests/support/bus_outage.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512
#define NAMES  256
#define FILES  4096

struct file {
    bool is_dir;
    unsigned char *synced, *now;
    size_t synced_len, now_len, room;
    unsigned char *dirty; /* by sector, since it was synced */
};

struct name {
    uint32_t file;
    char text[64];
};

struct dir {
    struct name synced[NAMES];
    size_t count;
    const struct outage_entry *pending[4 * NAMES];
    size_t pending_count;
};

static struct file files[FILES];
static struct dir *dirs[FILES];
static uint64_t counters[OUTAGE_COUNTERS], seed;

static void die(const char *why)
{
    fprintf(stderr, "bus_outage: %s\n", why);
    exit(1);
}

static uint64_t draw(void)
{
    uint64_t x = seed += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static struct file *file_of(uint32_t id)
{
    if (id == 0 || id >= FILES)
        die("more files than there is room for");
    return &files[id];
}

static struct dir *dir_of(uint32_t id)
{
    file_of(id)->is_dir = true;
    if (!dirs[id] && !(dirs[id] = calloc(1, sizeof *dirs[id])))
        die("no memory");
    return dirs[id];
}

static void make_room(struct file *f, size_t len)
{
    if (len <= f->room)
        return;
    size_t room = f->room ? f->room : 65536;
    while (room < len)
        room *= 2;
    unsigned char *synced = calloc(1, room), *now = calloc(1, room), *dirty = calloc(1, room / SECTOR);
    if (!synced || !now || !dirty)
        die("no memory");
    if (f->room > 0) {
        memcpy(synced, f->synced, f->room);
        memcpy(now, f->now, f->room);
        memcpy(dirty, f->dirty, f->room / SECTOR);
    }
    free(f->synced);
    free(f->now);
    free(f->dirty);
    f->synced = synced;
    f->now = now;
    f->dirty = dirty;
    f->room = room;
}

static void write_to(struct file *f, uint64_t offset, const unsigned char *bytes, size_t len)
{
    if (len == 0)
        return;
    make_room(f, offset + len);
    memcpy(f->now + offset, bytes, len);
    memset(f->dirty + offset / SECTOR, 1, (offset + len - 1) / SECTOR - offset / SECTOR + 1);
    if (f->now_len < offset + len)
        f->now_len = offset + len;
}

static void resize(struct file *f, uint64_t size)
{
    make_room(f, size);
    if (size < f->now_len)
        memset(f->now + size, 0, f->now_len - size);
    f->now_len = size;
}

static void sync_file(struct file *f)
{
    for (size_t s = 0; s < f->room / SECTOR; s++)
        if (f->dirty[s]) {
            memcpy(f->synced + s * SECTOR, f->now + s * SECTOR, SECTOR);
            f->dirty[s] = 0;
        }
    f->synced_len = f->now_len;
}

/* ---- names ---- */

static struct name *find(struct dir *d, const char *text)
{
    for (size_t i = 0; i < d->count; i++)
        if (strcmp(d->synced[i].text, text) == 0)
            return &d->synced[i];
    return NULL;
}

static void drop(struct dir *d, const char *text)
{
    struct name *name = find(d, text);

    if (name)
        *name = d->synced[--d->count];
}

static void call(struct dir *d, const char *text, uint32_t file)
{
    struct name *name = find(d, text);

    if (!name) {
        if (d->count == NAMES || strlen(text) >= sizeof name->text)
            die("too many names");
        name = &d->synced[d->count++];
    }
    name->file = file;
    snprintf(name->text, sizeof name->text, "%s", text);
}

static void apply(struct dir *d, const struct outage_entry *e)
{
    const char *text = (const char *)(e + 1), *to = text + strlen(text) + 1;
    const struct name *from;

    switch (e->what) {
    case OUTAGE_MKDIR:
    case OUTAGE_CREATE:
        call(d, text, e->file);
        break;
    case OUTAGE_RENAME:
    case OUTAGE_LINK:
        if ((from = find(d, text)) != NULL) {
            const uint32_t file = from->file;
            if (e->what == OUTAGE_RENAME)
                drop(d, text);
            call(d, to, file);
        }
        break;
    default:
        drop(d, text);
    }
}

static void settle(struct dir *d, size_t count)
{
    for (size_t i = 0; i < count; i++)
        apply(d, d->pending[i]);
    d->pending_count = 0;
}

static void replay(const struct outage_entry *e)
{
    struct dir *d;

    switch (e->what) {
    case OUTAGE_WRITE:
        write_to(file_of(e->file), e->offset, (const unsigned char *)(e + 1), e->len);
        break;
    case OUTAGE_SIZE:
        resize(file_of(e->file), e->offset);
        break;
    case OUTAGE_SYNC:
        sync_file(file_of(e->file));
        break;
    case OUTAGE_SYNC_DIR:
        d = dir_of(e->file);
        settle(d, d->pending_count);
        break;
    case OUTAGE_PROMISE:
        counters[e->dir % OUTAGE_COUNTERS] = e->offset;
        break;
    default:
        d = dir_of(e->dir);
        if (d->pending_count == sizeof d->pending / sizeof d->pending[0])
            die("too many names that are not synced");
        d->pending[d->pending_count++] = e;
        if (e->what == OUTAGE_MKDIR)
            (void)dir_of(e->file);
    }
}

/* ---- the cut ---- */

static void write_image(int at, const char *name, const struct file *f)
{
    size_t len = f->synced_len;
    unsigned char *bytes = malloc((f->now_len > f->synced_len ? f->now_len : f->synced_len) + SECTOR);

    if (!bytes)
        die("no memory");
    if (f->now_len != f->synced_len && draw() % 3 != 0) {
        const size_t low = f->now_len < f->synced_len ? f->now_len : f->synced_len;
        const size_t high = f->now_len < f->synced_len ? f->synced_len : f->now_len;
        len = draw() % 2 ? f->now_len : low + (size_t)(draw() % (high - low + 1));
    }
    const uint64_t garbage = draw() % 3; /* of a file: none, some, much */
    for (size_t s = 0; s * SECTOR < len; s++) {
        const size_t from = s * SECTOR, n = len - from < SECTOR ? len - from : SECTOR;
        const uint64_t dice = draw();
        if (from >= f->room)
            memset(bytes + from, 0, n);
        else if (f->dirty[s] && from >= f->synced_len && garbage > 0 && dice % 8 < garbage * garbage)
            for (size_t i = 0; i < n; i++)
                bytes[from + i] = (unsigned char)draw();
        else
            memcpy(bytes + from, f->dirty[s] && dice & 1024 ? f->now + from : f->synced + from, n);
    }
    const int fd = openat(at, name, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    if (fd < 0 || write(fd, bytes, len) != (ssize_t)len)
        die("cannot write the image");
    close(fd);
    free(bytes);
}

static void write_dir(int at, struct dir *d)
{
    const uint64_t dice = draw() % 4;

    settle(d, dice == 0 ? 0 : dice == 1 ? d->pending_count : (size_t)(draw() % (d->pending_count + 1)));
    for (size_t i = 0; i < d->count; i++) {
        const struct name *name = &d->synced[i];
        if (!files[name->file].is_dir) {
            write_image(at, name->text, &files[name->file]);
            continue;
        }
        if (mkdirat(at, name->text, 0750) != 0)
            die("cannot make a directory");
        const int below = openat(at, name->text, O_RDONLY | O_DIRECTORY);
        write_dir(below, dirs[name->file]);
        close(below);
    }
}

int main(int argc, char **argv)
{
    struct stat st;
    size_t calls = 0, at = 0, stop;

    const int log = argc == 4 ? open(argv[1], O_RDONLY) : -1;
    const int image = argc == 4 ? open(argv[2], O_RDONLY | O_DIRECTORY) : -1;
    if (log < 0 || image < 0 || fstat(log, &st) != 0 || st.st_size == 0)
        die("usage: bus_outage LOG IMAGE SEED");
    const unsigned char *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, log, 0);
    if (bytes == MAP_FAILED)
        die("cannot map the log");
    seed = strtoull(argv[3], NULL, 10);
    for (at = 0; at < (size_t)st.st_size; calls++) {
        const struct outage_entry *e = (const void *)(bytes + at);
        at += (sizeof *e + e->len + 7) & ~(size_t)7;
    }
    stop = 1 + (size_t)(draw() % calls);
    const bool late = draw() % 4 != 0; /* right before something is synced, where most is open */
    (void)dir_of(OUTAGE_ROOT);
    at = 0;
    for (size_t i = 0; i < stop || late; i++) {
        const struct outage_entry *e = (const void *)(bytes + at);
        if (i == calls || (i >= stop && (e->what == OUTAGE_SYNC || e->what == OUTAGE_SYNC_DIR)))
            break;
        replay(e);
        at += (sizeof *e + e->len + 7) & ~(size_t)7;
    }
    write_dir(image, dirs[OUTAGE_ROOT]);
    printf("%zu %zu", stop, calls);
    for (int i = 0; i < OUTAGE_COUNTERS; i++)
        printf(" %llu", (unsigned long long)counters[i]);
    printf("\n");
    return 0;
}
