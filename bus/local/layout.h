/* bus/local/layout.h - the bytes of the local bus: segments, records, ctl and bell pages.
 *
 * Everything here is shared between processes (and, in the archive, between years), so offsets never change;
 * a change of meaning raises the version inside the magic number. All words are in native byte order; a file
 * of the other order is refused.
 *
 * segment  4096 bytes of header, then cap bytes of records; the record at position p stands at byte
 *          4096 + p - base, where base = p - p % cap
 * record   a header of 32 bytes on a 64-byte boundary, then key and value; the next record begins at the
 *          next boundary
 * word     state:8 | slot:12 | gen:12 | len:32; it only ever moves FREE -> CLAIM -> COMMIT or PAD,
 *          FREE -> PAD, FREE -> END, by compare-and-swap, and space is never used twice
 * Thread:  any; the words marked _Atomic are the only ones that change once a record is final. */
#ifndef SPATE_BUS_LOCAL_LAYOUT_H
#define SPATE_BUS_LOCAL_LAYOUT_H

#include "core/err.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_LOCAL_UNIT          UINT64_C(64)
#define SPATE_LOCAL_HEADER        UINT64_C(4096)
#define SPATE_LOCAL_RECORD_HEADER UINT64_C(32)
#define SPATE_LOCAL_LINE          128 /* words that different processes write stand this far apart */

#define SPATE_LOCAL_SEGMENT_MAGIC UINT64_C(0x5350415445530001) /* "SPATES", version 1 */
#define SPATE_LOCAL_CTL_MAGIC     UINT64_C(0x5350415445430002)
#define SPATE_LOCAL_BELL_MAGIC    UINT64_C(0x5350415445420002)

static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the bus needs lock-free 64-bit atomics");

enum spate_local_state {
    SPATE_LOCAL_FREE = 0,
    SPATE_LOCAL_CLAIM = 1,  /* len: total bytes of the claim, which may hold several records */
    SPATE_LOCAL_COMMIT = 2, /* len: key plus value */
    SPATE_LOCAL_PAD = 3,    /* len: total bytes to step over */
    SPATE_LOCAL_END = 4     /* of the segment; len 0: goes on at base + cap, 8: at the base in the payload */
};

enum spate_local_flags {
    SPATE_LOCAL_HAS_KEY = 1,
    SPATE_LOCAL_TOMBSTONE = 2,
    SPATE_LOCAL_BATCH_FIRST = 4,
    SPATE_LOCAL_BATCH_LAST = 8,
    SPATE_LOCAL_COMPRESSED = 16,
    SPATE_LOCAL_UNCHECKED = 32 /* crc is 0 and says nothing: of volatile topics that want none */
};

enum spate_local_type { SPATE_LOCAL_DATA = 0, SPATE_LOCAL_SPILL = 1 };

struct spate_local_record {
    _Atomic uint64_t word;
    uint64_t ts_ns;
    uint32_t idx; /* in the segment; strictly increasing, not dense */
    uint32_t crc;
    uint32_t keyhash;
    uint16_t keylen;
    uint8_t type;
    uint8_t flags;
    unsigned char payload[];
};
static_assert(sizeof(struct spate_local_record) == 32, "record header");
static_assert(offsetof(struct spate_local_record, crc) == 20, "record header");
static_assert(offsetof(struct spate_local_record, flags) == 31, "record header");

struct spate_local_segment_header {
    uint64_t magic;
    uint64_t base;
    uint64_t cap;
    uint32_t unit;
    uint32_t crc; /* of magic, base, cap, unit, created_ns */
    uint64_t created_ns;
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t tail;   /* records:28 | bytes:36 */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t sealed; /* count of record indices; 0: not sealed */
};
static_assert(offsetof(struct spate_local_segment_header, tail) == 128, "segment header");
static_assert(offsetof(struct spate_local_segment_header, sealed) == 256, "segment header");

#define SPATE_LOCAL_TAIL_SHIFT 36
#define SPATE_LOCAL_TAIL_BYTES ((UINT64_C(1) << SPATE_LOCAL_TAIL_SHIFT) - 1)

#define SPATE_LOCAL_WRITERS 256 /* slots; slot and gen, 12 bits each, name the owner of a claim */

#define SPATE_LOCAL_HOT_MOST UINT64_C(4) /* segments from the durable position to the head, both included */

/* Why a writer may not go on to the next segment. */
enum spate_local_gate {
    SPATE_LOCAL_GATE_PROMISE, /* the manifest does not promise its base yet */
    SPATE_LOCAL_GATE_DISK,    /* the archive is behind: as much as shared memory may hold is not durable */
    SPATE_LOCAL_GATE_HOLD /* the archive is at its limit, and a named reader holds what it has not passed */
};

/* Written by writers only: a reader must never be able to move a watermark. */
struct spate_local_ctl {
    uint64_t magic;
    uint64_t generation; /* equals the manifest's, else the hot tier is not valid */
    uint64_t cap;
    uint64_t created_ns;
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t head;    /* base of the segment that is written; only grows */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t first;   /* oldest position that is kept; only grows */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t durable; /* no power cut takes back what is below */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t hold;    /* lowest position that a holder needs; ~0: none */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t gate;    /* highest base that may be written now ... */
    _Atomic uint64_t gate_why;                           /* ... and what stands behind it: spate_local_gate */
    _Atomic uint64_t promised;                           /* highest base that the manifest promises */
    _Atomic uint64_t settled;  /* of a volatile topic: all below is final, or will be soon; of others: where
                                  this hot tier began */
    _Atomic uint64_t distrust; /* base of an archive file whose sync failed, for whoever goes on; 0: none */
    _Alignas(
        SPATE_LOCAL_LINE) _Atomic uint64_t pads; /* regions that were padded over: their writer was dead */
    _Atomic uint64_t fences;                     /* or too slow */
    _Atomic uint64_t gaps;                       /* segments that retention took */
    _Atomic uint64_t stalls;                     /* times a writer was told that there is no room */
    _Alignas(SPATE_LOCAL_LINE) struct {
        _Atomic uint32_t pid, gen;
    } writers[SPATE_LOCAL_WRITERS];
};
static_assert(sizeof(struct spate_local_ctl) <= SPATE_LOCAL_HEADER, "ctl is one page");

/* One doorbell: readers write it too, so nothing but waking hangs on it. */
struct spate_local_doorbell {
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint32_t waiting;  /* a flag: a killed sleeper costs one spare wake */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint32_t bell;     /* the futex word */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint32_t spinners; /* free: a count leaks when a spinner is killed */
};

#define SPATE_LOCAL_SEATS 64

struct spate_local_bell {
    uint64_t magic;
    struct spate_local_doorbell tip;     /* rung by publish */
    struct spate_local_doorbell durable; /* rung by the archiver, so a sleeping sink costs publish nothing */
    /* Who spins has a seat up to the monotonic time (ns) that stands in it (bus/local/bell.h). */
    _Alignas(SPATE_LOCAL_LINE) _Atomic uint64_t seats[SPATE_LOCAL_SEATS];
};
static_assert(sizeof(struct spate_local_bell) <= SPATE_LOCAL_HEADER, "bell is one page");

static inline uint64_t spate_local_word(enum spate_local_state state, uint32_t slot, uint32_t gen,
                                        uint32_t len)
{
    return (uint64_t)state << 56 | (uint64_t)(slot & 0xfff) << 44 | (uint64_t)(gen & 0xfff) << 32 | len;
}
static inline unsigned spate_local_state_of(uint64_t word)
{
    return (unsigned)(word >> 56);
}
static inline uint32_t spate_local_len_of(uint64_t word)
{
    return (uint32_t)word;
}
static inline uint64_t spate_local_tail_bytes(uint64_t tail)
{
    return tail & SPATE_LOCAL_TAIL_BYTES;
}
/* Bytes that a record with `len` bytes of key and value takes in the segment. */
static inline uint64_t spate_local_footprint(uint64_t len)
{
    return (SPATE_LOCAL_RECORD_HEADER + len + SPATE_LOCAL_UNIT - 1) & ~(SPATE_LOCAL_UNIT - 1);
}
static inline uint64_t spate_local_base_of(uint64_t pos, uint64_t cap)
{
    return pos & ~(cap - 1); /* cap is a power of two */
}

/* The checksum of a record at `pos`: of its header fields, its place, and its bytes. Because the place is
 * in it, an old block of the disk cannot pass for a record. */
uint32_t spate_local_record_crc(const struct spate_local_record *record, uint64_t pos, uint32_t len,
                                const void *key, const void *value, size_t value_len);
/* The same over a record as it stands in a segment. */
bool spate_local_record_good(const struct spate_local_record *record, uint64_t pos, uint32_t len);

void spate_local_segment_header_make(struct spate_local_segment_header *header, uint64_t base, uint64_t cap);
/* SPATE_FAIL (fatal): not the segment `base` of `cap` bytes, of another version or byte order. */
SPATE_CHECKED enum spate_rc spate_local_segment_header_check(const struct spate_local_segment_header *header,
                                                             uint64_t base, uint64_t cap,
                                                             struct spate_err *err);

/* Where the log goes on after the END at `pos`; SPATE_FAIL (fatal): the END itself is damaged. */
SPATE_CHECKED enum spate_rc spate_local_end_next(const struct spate_local_record *record, uint64_t pos,
                                                 uint64_t base, uint64_t cap, uint64_t *next,
                                                 struct spate_err *err);
/* What stands at the cut after a recovery: END, and where the log goes on. */
void spate_local_cut_make(unsigned char out[SPATE_LOCAL_UNIT], uint64_t pos, uint64_t next_base);

/* One step along the log at `record`, which has `room` bytes left in its segment. Every length is held
 * against the room before anything behind it is touched. */
enum spate_local_step {
    SPATE_LOCAL_STEP_OPEN,   /* FREE or CLAIM: not final yet */
    SPATE_LOCAL_STEP_RECORD, /* *size bytes, *len of them key and value */
    SPATE_LOCAL_STEP_PAD,    /* *size bytes to pass */
    SPATE_LOCAL_STEP_END,    /* of the segment */
    SPATE_LOCAL_STEP_BAD     /* nothing that a writer can have left */
};
enum spate_local_step spate_local_step(struct spate_local_record *record, uint64_t room, uint64_t *size,
                                       uint32_t *len);

#endif
