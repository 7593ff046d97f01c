/* bus/local/layout.c - making and checking the bytes of segments and records. */
#include "bus/local/layout.h"

#include "bus/local/broken.h"
#include "core/clock.h"
#include "core/hash.h"

#include <inttypes.h>
#include <string.h>

/* Two numbers as they stand one behind the other in memory. As one word, because a word that is read back
 * over the smaller ones it was written as waits for them. */
static inline uint64_t behind(uint32_t first, uint32_t second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return first | (uint64_t)second << 32;
#else
    return (uint64_t)first << 32 | second;
#endif
}

/* The fields under the checksum, as they stand in memory without a hole between them: position; len, idx;
 * ts_ns; keyhash, then keylen, type, flags. */
uint32_t spate_local_record_crc(const struct spate_local_record *record, uint64_t pos, uint32_t len,
                                const void *key, const void *value, size_t value_len)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint32_t kind = record->keylen | (uint32_t)record->type << 16 | (uint32_t)record->flags << 24;
#else
    const uint32_t kind = (uint32_t)record->keylen << 16 | (uint32_t)record->type << 8 | record->flags;
#endif
    const uint64_t fields[4] = {pos, behind(len, record->idx), record->ts_ns, behind(record->keyhash, kind)};

    if (record->keylen == 0)
        return spate_crc32c_head(fields, value, value_len);
    return spate_crc32c(spate_crc32c_head(fields, key, record->keylen), value, value_len);
}

bool spate_local_record_good(const struct spate_local_record *record, uint64_t pos, uint32_t len)
{
    struct spate_local_record head;

    /* A copy: whoever may write the segment may change it between a look and its use (L13). */
    memcpy(&head, record, sizeof head);
    if (head.keylen > len)
        return false;
    return head.crc == spate_local_record_crc(&head, pos, len, record->payload, record->payload + head.keylen,
                                              len - head.keylen);
}

static uint32_t header_crc(const struct spate_local_segment_header *header)
{
    uint32_t crc = spate_crc32c(0, header, offsetof(struct spate_local_segment_header, crc));

    return spate_crc32c(crc, &header->created_ns, sizeof header->created_ns);
}

void spate_local_segment_header_make(struct spate_local_segment_header *header, uint64_t base, uint64_t cap)
{
    memset(header, 0, sizeof *header);
    header->magic = SPATE_LOCAL_SEGMENT_MAGIC;
    header->base = base;
    header->cap = cap;
    header->unit = (uint32_t)SPATE_LOCAL_UNIT;
    header->created_ns = (uint64_t)spate_clock_wall_us() * 1000;
    header->crc = header_crc(header);
}

enum spate_rc spate_local_segment_header_check(const struct spate_local_segment_header *header, uint64_t base,
                                               uint64_t cap, struct spate_err *err)
{
    if (header->magic == __builtin_bswap64(SPATE_LOCAL_SEGMENT_MAGIC))
        return spate_fail(
            err, SPATE_FATAL,
            "segment %016" PRIx64 " was written by a machine of the other byte order; read it there", base);
    if (header->magic >> 16 == SPATE_LOCAL_SEGMENT_MAGIC >> 16 && header->magic != SPATE_LOCAL_SEGMENT_MAGIC)
        return spate_fail(
            err, SPATE_FATAL,
            "segment %016" PRIx64 " has format version %u, this spate knows version %u; use the "
            "spate that wrote it",
            base, (unsigned)(header->magic & 0xffff), (unsigned)(SPATE_LOCAL_SEGMENT_MAGIC & 0xffff));
    if (header->magic != SPATE_LOCAL_SEGMENT_MAGIC || header->crc != header_crc(header))
        return spate_fail(err, SPATE_FATAL, "the header of segment %016" PRIx64 " is damaged", base);
    if (header->base != base || header->cap != cap || header->unit != SPATE_LOCAL_UNIT)
        return spate_fail(err, SPATE_FATAL,
                          "the file of segment %016" PRIx64 " holds segment %016" PRIx64 " of %" PRIu64
                          " bytes, expected %" PRIu64 "; files were renamed or mixed",
                          base, header->base, header->cap, cap);
    return SPATE_OK;
}

enum spate_rc spate_local_end_next(const struct spate_local_record *record, uint64_t pos, uint64_t base,
                                   uint64_t cap, uint64_t *next, struct spate_err *err)
{
    const uint32_t len = spate_local_len_of(record->word);

    *next = base + cap;
    if (len == 0)
        return SPATE_OK;
    if (len == sizeof *next && spate_local_record_good(record, pos, len)) {
        memcpy(next, record->payload, sizeof *next);
        if (*next > pos && *next % cap == 0)
            return SPATE_OK;
    }
    return spate_fail(err, SPATE_FATAL,
                      "the end of segment %016" PRIx64 " at position %016" PRIx64 " is damaged", base, pos);
}

void spate_local_cut_make(unsigned char out[SPATE_LOCAL_UNIT], uint64_t pos, uint64_t next_base)
{
    struct spate_local_record record = {.ts_ns = (uint64_t)spate_clock_wall_us() * 1000};

    record.word = spate_local_word(SPATE_LOCAL_END, 0, 0, sizeof next_base);
    record.crc = spate_local_record_crc(&record, pos, sizeof next_base, NULL, &next_base, sizeof next_base);
    memset(out, 0, SPATE_LOCAL_UNIT);
    memcpy(out, &record, sizeof record);
    memcpy(out + SPATE_LOCAL_RECORD_HEADER, &next_base, sizeof next_base);
}

enum spate_local_step spate_local_step(struct spate_local_record *record, uint64_t room, uint64_t *size,
                                       uint32_t *len)
{
    const uint64_t word = atomic_load_explicit(&record->word, memory_order_acquire);

    *len = spate_local_len_of(word);
    switch (spate_local_state_of(word)) {
    case SPATE_LOCAL_COMMIT:
        *size = spate_local_footprint(*len);
        if ((*size > room || record->keylen > *len) && !SPATE_BROKEN(TRUST_LENGTH))
            return SPATE_LOCAL_STEP_BAD;
        return SPATE_LOCAL_STEP_RECORD;
    case SPATE_LOCAL_PAD:
        *size = *len;
        if (*size == 0 || *size % SPATE_LOCAL_UNIT != 0 || *size > room)
            return SPATE_LOCAL_STEP_BAD;
        return SPATE_LOCAL_STEP_PAD;
    case SPATE_LOCAL_END:
        *size = SPATE_LOCAL_UNIT;
        return *len == 0 || *len == sizeof(uint64_t) ? SPATE_LOCAL_STEP_END : SPATE_LOCAL_STEP_BAD;
    case SPATE_LOCAL_FREE:
        return word == 0 ? SPATE_LOCAL_STEP_OPEN : SPATE_LOCAL_STEP_BAD;
    case SPATE_LOCAL_CLAIM:
        return SPATE_LOCAL_STEP_OPEN;
    default:
        return SPATE_LOCAL_STEP_BAD;
    }
}
