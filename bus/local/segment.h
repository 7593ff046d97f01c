/* bus/local/segment.h - segment files: making one so that any crash leaves either a whole one or a temp file,
 * mapping, listing and removing them.
 *
 * Thread: any; two processes may make the same segment at once, one wins and both use it.
 * Blocks: _create may wait for the disk. */
#ifndef SPATE_BUS_LOCAL_SEGMENT_H
#define SPATE_BUS_LOCAL_SEGMENT_H

#include "bus/local/layout.h"
#include "bus/local/sigbus.h"

#include <stdbool.h>
#include <stdint.h>

#define SPATE_LOCAL_PASS (UINT64_C(1) << 20) /* what stays mapped behind the place in use */

struct spate_local_segment {
    unsigned char *at; /* the mapping, header first; NULL: none */
    uint64_t base, cap;
    uint64_t size;   /* bytes of records that the file had when it was looked at; an archive file grows */
    int fd;          /* kept open for archive files (size), else -1 */
    uint64_t passed; /* offset below which this mapping's pages were given back; cap: they are all kept */
    uint64_t blocks; /* that the file had when it was mapped ... */
    ino_t ino;       /* ... and which file it was */
    struct spate_local_guard *guard;
};

static inline struct spate_local_segment_header *spate_local_header(const struct spate_local_segment *seg)
{
    return (struct spate_local_segment_header *)(void *)seg->at;
}
static inline struct spate_local_record *spate_local_record_at(const struct spate_local_segment *seg,
                                                               uint64_t offset)
{
    return (struct spate_local_record *)(void *)(seg->at + SPATE_LOCAL_HEADER + offset);
}

/* Reads the last byte of a record that goes on in another page, so that a cut shows before the record is
 * given to anybody. Whether it does go on. */
static inline bool spate_local_record_touch(const struct spate_local_record *record, uint64_t offset,
                                            uint32_t len)
{
    const uint64_t size = SPATE_LOCAL_RECORD_HEADER + len;

    if (__builtin_expect(offset % SPATE_LOCAL_HEADER + size <= SPATE_LOCAL_HEADER, 1))
        return false;
    (void)*((const volatile unsigned char *)record + size - 1);
    return true;
}

/* Makes a segment whose pages are all there already (a sparse file on a full tmpfs would kill the writer with
 * SIGBUS). SPATE_OK: it exists now, whoever made it. SPATE_AGAIN: no room for it. */
SPATE_CHECKED enum spate_rc spate_local_segment_create(int dir, uint64_t base, uint64_t cap,
                                                       struct spate_err *err);

/* Maps all pages of a hot segment when it is entered, and keeps them: no page fault and no kernel call on the
 * way, for as much memory as a segment has in each process that maps it. For programs that measure, or that
 * have a processor of their own; set before anything is opened. */
extern bool spate_local_segment_keep;

enum spate_local_map { SPATE_LOCAL_MAP_WRITE, SPATE_LOCAL_MAP_READ, SPATE_LOCAL_MAP_ARCHIVE };

/* SPATE_END: there is no such segment. SPATE_FAIL (fatal): the file is not what its name says. */
SPATE_CHECKED enum spate_rc spate_local_segment_map(int dir, uint64_t base, uint64_t cap,
                                                    enum spate_local_map how, struct spate_local_segment *seg,
                                                    struct spate_err *err);
void spate_local_segment_unmap(struct spate_local_segment *seg);
/* All below `offset` was dealt with: its pages leave this process, a megabyte at a time, so that what a
 * process has mapped does not grow with the segment. The bytes stay; a look back brings their pages in again.
 */
void spate_local_segment_give_back(struct spate_local_segment *seg, uint64_t offset);
static inline void spate_local_segment_pass(struct spate_local_segment *seg, uint64_t offset)
{
    if (offset > seg->passed + 2 * SPATE_LOCAL_PASS)
        spate_local_segment_give_back(seg, offset);
}

/* Did the mapping meet the end of its file where it should not have? Costs a load. */
static inline bool spate_local_segment_cut(const struct spate_local_segment *seg)
{
    return spate_local_guard_cut(seg->guard);
}
/* The same, and whether the file in `dir`, where it still is, has all that it had: a cut in the middle of a
 * page raises no signal. Costs a call of the kernel. */
bool spate_local_segment_whole(const struct spate_local_segment *seg, int dir);
/* SPATE_FAIL (fatal) with what to do about it. */
SPATE_CHECKED enum spate_rc spate_local_segment_was_cut(const struct spate_local_segment *seg, bool archived,
                                                        struct spate_err *err);

void spate_local_segment_look(struct spate_local_segment *seg); /* renews `size` of an archive file */

#define SPATE_LOCAL_FILE 32
void spate_local_segment_name(uint64_t base, char out[SPATE_LOCAL_FILE]);
bool spate_local_segment_remove(int dir, uint64_t base);

/* The lowest base at or above / the highest base below `pos`; SPATE_END: there is none. */
SPATE_CHECKED enum spate_rc spate_local_segment_next(int dir, uint64_t pos, uint64_t *base,
                                                     struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_segment_prev(int dir, uint64_t pos, uint64_t *base,
                                                     struct spate_err *err);

/* A new file under a temporary name, `.<what>.<pid>.<number>.tmp`, that no sweep removes while its descriptor
 * is open. -1, with errno: it cannot be made. */
#define SPATE_LOCAL_TEMP 64
int spate_local_temp_make(int dir, const char *what, char name[SPATE_LOCAL_TEMP]);
void spate_local_segment_sweep(int dir); /* removes temp files that crashes left */
void spate_local_segment_clear(int dir); /* removes every file: a hot tier that is no longer valid */

/* For tests: called with "create: made", "create: linked" and "create: done" when not NULL. */
extern void (*spate_local_segment_hook)(const char *where);

#endif
