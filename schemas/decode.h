/* schemas/decode.h - what the decoders of all messages share: the names of fields, and errors. Internal. */
#ifndef SPATE_SCHEMAS_DECODE_H
#define SPATE_SCHEMAS_DECODE_H

#include "core/err.h"
#include "schemas/codec.h"
#include "schemas/json.h"

/* Every field of a message's outermost object that this program knows, in the order in which they are
 * written: first those by which a reader decides, then what follows them in every message, then the rest. */
enum spate_field {
    SPATE_FIELD_SPATE,
    SPATE_FIELD_OP,
    SPATE_FIELD_N,
    SPATE_FIELD_AT,
    SPATE_FIELD_EPOCH,
    SPATE_FIELD_TO,
    SPATE_FIELD_REQUEST,
    SPATE_FIELD_SCHEMA,
    SPATE_FIELD_TABLE,
    SPATE_FIELD_POS,
    SPATE_FIELD_END, /* the last of the head */
    SPATE_FIELD_XID,
    SPATE_FIELD_TS,
    SPATE_FIELD_SOURCE,
    SPATE_FIELD_V, /* the last of the meta */
    SPATE_FIELD_BY,
    SPATE_FIELD_NO,
    SPATE_FIELD_KEY,
    SPATE_FIELD_BEFORE,
    SPATE_FIELD_AFTER,
    SPATE_FIELD_UNCHANGED,
    SPATE_FIELD_TABLES,
    SPATE_FIELD_CASCADE,
    SPATE_FIELD_RESTART,
    SPATE_FIELD_PREFIX,
    SPATE_FIELD_CONTENT,
    SPATE_FIELD_UUID,
    SPATE_FIELD_WHY,
    SPATE_FIELD_IDENTITY,
    SPATE_FIELD_PREVIOUS,
    SPATE_FIELD_FOLLOWER,
    SPATE_FIELD_FINGERPRINT,
    SPATE_FIELD_COLUMNS,
    SPATE_FIELD_RANGE,
    SPATE_FIELD_KEYS,
    SPATE_FIELD_SINCE,
    SPATE_FIELD_DROPPED,
    SPATE_FIELD_READS, /* "count" */
    SPATE_FIELD_RESUME,
    SPATE_FIELD_GONE,
    SPATE_FIELD_STATE,
    SPATE_FIELD_COUNT,
    SPATE_FIELD_FOREIGN = SPATE_FIELD_COUNT, /* a later addition: its value is skipped */
    SPATE_FIELD_NONE                         /* the object ends here, or the reader has failed */
};

/* Where in a message the decoder is; the reader's errors get their place from it. */
struct spate_decoder {
    struct spate_json json;
    const struct spate_head *head; /* NULL while it is being read */
    struct spate_slice column;     /* for the error; empty where no column applies */
    uint64_t seen;                 /* one bit for each enum spate_field */
};
_Static_assert(SPATE_FIELD_COUNT <= 64, "fields fit the bits of seen");

struct spate_decoder spate_decoder_over(struct spate_slice line, size_t offset, const struct spate_head *head,
                                        struct spate_arena *arena);

/* Consumes the next field's name and colon; `guess` is where to look first. At the end it consumes nothing.
 */
enum spate_field spate_decode_field(struct spate_decoder *decoder, enum spate_field guess);
/* The same for what stands behind the meta: a field for the second time, or one that belongs before, is a
 * failure. */
enum spate_field spate_decode_body(struct spate_decoder *decoder);

/* Checks that the line ends here and that all `needed` fields were seen (bits), then fills *err on failure.
 */
enum spate_rc spate_decode_end(struct spate_decoder *decoder, uint64_t needed, struct spate_err *err);
/* SPATE_FAIL with the reader's failure and its place. */
enum spate_rc spate_decode_refuse(const struct spate_decoder *decoder, struct spate_err *err);

/* Head and meta of a message that must be of this op; on success *decoder stands at what follows. */
enum spate_rc spate_decode_begin(struct spate_slice line, enum spate_op op, struct spate_head *head,
                                 struct spate_meta *meta, struct spate_decoder *decoder,
                                 struct spate_arena *arena, struct spate_err *err);

/* In a nested object: is the field of this name (given in quotes)? Errors are about it from then on. */
bool spate_decode_named(struct spate_json *json, struct spate_slice name, const char *quoted);
/* Fails: the nested object ended without this field. */
bool spate_decode_missing(struct spate_json *json, const char *quoted);
/* Doubles an array of `count` elements in the arena when it is full (at 0 and at powers of two). */
void *spate_decode_more(struct spate_arena *arena, const void *array, size_t count, size_t size);

bool spate_decode_u32(struct spate_json *json, uint32_t *out);
bool spate_decode_ts(struct spate_json *json, int64_t *wall_us);
/* Exactly `count` hex digits in lower case; false without a failure when the text is anything else. */
bool spate_decode_hex(struct spate_slice text, size_t count, uint64_t *out);
/* Postgres' text again, from whatever kind of JSON it travelled as. */
bool spate_decode_value(struct spate_json *json, struct spate_value *value);

/* A value that goes back to Postgres: there is no text with a NUL, and where it ended there something else
 * would be asked for. */
extern const char spate_decode_nul[];
bool spate_decode_has_nul(const struct spate_value *value);

static inline uint64_t spate_field_bit(enum spate_field field)
{
    return UINT64_C(1) << field;
}

#endif
