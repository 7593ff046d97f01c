/* bus/local/kept.c - the archive's directory. */
#include "bus/local/kept.h"

#include "bus/local/listing.h"
#include "bus/local/segment.h"
#include "core/alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { OTHER, SEGMENT, SPILL };

/* "<16 hex digits>.seg" and "<16 hex digits>.spill". */
static enum kind kind_of(const char *name, uint64_t *pos)
{
    if (strspn(name, "0123456789abcdef") != 16)
        return OTHER;
    *pos = strtoull(name, NULL, 16);
    if (strcmp(name + 16, ".seg") == 0)
        return SEGMENT;
    return strcmp(name + 16, ".spill") == 0 ? SPILL : OTHER;
}

void spate_local_kept_fini(struct spate_local_kept *kept)
{
    free(kept->at);
    *kept = (struct spate_local_kept){0};
}

static void add(struct spate_local_kept *kept, uint64_t base)
{
    if (kept->count == kept->room) {
        kept->room = kept->room ? kept->room * 2 : 64;
        kept->at = spate_realloc(kept->at, kept->room * sizeof *kept->at);
    }
    kept->at[kept->count++] = (struct spate_local_kept_segment){.base = base};
}

static int by_base(const void *left, const void *right)
{
    const struct spate_local_kept_segment *a = left, *b = right;

    return a->base < b->base ? -1 : a->base > b->base;
}

/* How large it is and when it was written last. One that vanished meanwhile counts nothing. */
static void measure(struct spate_local_kept_segment *segment, int dir, const char *name, bool own)
{
    struct stat st;

    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
        return;
    segment->bytes += (uint64_t)st.st_size;
    if (own)
        segment->last_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

enum spate_rc spate_local_kept_look(struct spate_local_kept *kept, int dir, uint64_t cap, uint64_t from,
                                    struct spate_err *err)
{
    struct spate_local_listing list;
    char name[SPATE_LOCAL_FILE];
    const char *entry;
    uint64_t pos;

    if (!spate_local_listing_open(&list, dir))
        return spate_fail(err, SPATE_RETRY, "cannot list the archive: %s", strerror(errno));
    if (kept->count > 0)
        kept->count--; /* the newest was not final */
    const size_t known = kept->count;
    const uint64_t above = known > 0 ? kept->at[known - 1].base + 1 : from;
    while ((entry = spate_local_listing_next(&list)) != NULL)
        if (kind_of(entry, &pos) == SEGMENT && pos >= above)
            add(kept, pos);
    spate_local_listing_close(&list);
    if (kept->count > known)
        qsort(kept->at + known, kept->count - known, sizeof *kept->at, by_base);
    for (size_t i = known; i < kept->count; i++) {
        spate_local_segment_name(kept->at[i].base, name);
        measure(&kept->at[i], dir, name, true);
    }
    if (!spate_local_listing_open(&list, dir))
        return spate_fail(err, SPATE_RETRY, "cannot list the archive: %s", strerror(errno));
    while ((entry = spate_local_listing_next(&list)) != NULL) {
        if (kind_of(entry, &pos) != SPILL || kept->count == known)
            continue;
        const struct spate_local_kept_segment key = {.base = spate_local_base_of(pos, cap)};
        struct spate_local_kept_segment *segment =
            bsearch(&key, kept->at + known, kept->count - known, sizeof key, by_base);
        if (segment)
            measure(segment, dir, entry, false);
    }
    spate_local_listing_close(&list);
    kept->bytes = 0;
    for (size_t i = 0; i < kept->count; i++)
        kept->bytes += kept->at[i].bytes;
    return SPATE_OK;
}

void spate_local_kept_renew(struct spate_local_kept *kept, int dir)
{
    struct spate_local_kept_segment now = {0}, *newest;
    char name[SPATE_LOCAL_FILE];

    if (kept->count == 0)
        return;
    newest = &kept->at[kept->count - 1];
    spate_local_segment_name(newest->base, name);
    measure(&now, dir, name, true);
    if (now.bytes > newest->bytes) { /* its spill files are counted when it is final */
        kept->bytes += now.bytes - newest->bytes;
        newest->bytes = now.bytes;
    }
    newest->last_ns = now.last_ns;
}

uint64_t spate_local_kept_behind(const struct spate_local_kept *kept, uint64_t pos)
{
    uint64_t bytes = 0;

    for (size_t i = kept->count; i > 0; i--) {
        if (i < kept->count && kept->at[i].base <= pos)
            break; /* and with it all before ends below pos */
        bytes += kept->at[i - 1].bytes;
    }
    return bytes;
}

void spate_local_kept_forget(struct spate_local_kept *kept, uint64_t first)
{
    size_t gone = 0;

    while (gone < kept->count && kept->at[gone].base < first)
        kept->bytes -= kept->at[gone++].bytes;
    if (gone > 0)
        memmove(kept->at, kept->at + gone, (kept->count - gone) * sizeof *kept->at);
    kept->count -= gone;
}

size_t spate_local_kept_remove(int dir, uint64_t first)
{
    struct spate_local_listing list;
    size_t gone = 0;
    const char *entry;
    uint64_t pos;

    if (!spate_local_listing_open(&list, dir))
        return 0;
    /* Spill files are named by positions: those of a segment that goes lie below `first` like itself. */
    while ((entry = spate_local_listing_next(&list)) != NULL) {
        const enum kind kind = kind_of(entry, &pos);
        if (kind != OTHER && pos < first && unlinkat(dir, entry, 0) == 0)
            gone += kind == SEGMENT;
    }
    spate_local_listing_close(&list);
    return gone;
}
