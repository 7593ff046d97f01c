/* schemas/codec.h - messages to lines of JSON and back. Pure functions; no state, no allocation per column.
 *
 * Encoding appends one line WITHOUT its newline. Decoding takes one line without its newline; every byte
 * is untrusted. The deciding fields come first (docs/message-format.md), so that decode_head stops early. */
#ifndef SPATE_SCHEMAS_CODEC_H
#define SPATE_SCHEMAS_CODEC_H

#include "core/arena.h"
#include "core/buf.h"
#include "core/err.h"
#include "schemas/event.h"

/* SPATE_FAIL (quarantine) only where the change contradicts itself: a value count that does not fit, a jsonb
 * text that is no JSON, a key column that is absent from both tuples. Text that is not valid UTF-8 becomes
 * {"$bytes":"<base64>"}. */
SPATE_CHECKED enum spate_rc spate_encode_change(struct spate_buf *out, const struct spate_change *change,
                                                struct spate_err *err);
void spate_encode_heartbeat(struct spate_buf *out, const struct spate_heartbeat *heartbeat);
void spate_encode_epoch(struct spate_buf *out, const struct spate_epoch *epoch);
void spate_encode_stale(struct spate_buf *out, const struct spate_stale *stale);
void spate_encode_storage(struct spate_buf *out, const struct spate_storage *storage);
/* A schema message for _schemas; table->v must be set. */
void spate_encode_schema(struct spate_buf *out, const struct spate_table *table, struct spate_slice source,
                         int64_t wall_us);

/* The row's key as JSON, for the bus key: {"id":42}; appends nothing when the table has no key. */
SPATE_CHECKED enum spate_rc spate_encode_key(struct spate_buf *out, const struct spate_change *change,
                                             struct spate_err *err);

/* The fields by which a reader decides. Slices borrow from the line, or from the arena where escapes had
 * to be resolved. */
struct spate_head {
    enum spate_op op;
    struct spate_slice op_name;
    uint64_t n; /* `n` or `at`, see spate_op_counts */
    uint64_t epoch;
    struct spate_slice to, request, schema, table; /* empty when absent */
    bool has_pos;
    struct spate_pos pos;
    uint64_t end; /* 0 when absent */
    size_t rest;  /* offset of the first field that is not of the head */
};

/* SPATE_FAIL: quarantine = not a message of ours (not JSON, no "spate" first, a field of the wrong kind);
 * fatal = "spate" is greater than SPATE_FORMAT: this program is too old for it. */
SPATE_CHECKED enum spate_rc spate_decode_head(struct spate_slice line, struct spate_head *head,
                                              struct spate_arena *arena, struct spate_err *err);

/* What follows the head up to and including `v`. */
struct spate_meta {
    uint32_t xid;
    int64_t ts_us;
    struct spate_slice source;
    uint32_t v;  /* 0 when absent (truncate, message) */
    size_t rest; /* offset of the first field after these */
};
SPATE_CHECKED enum spate_rc spate_decode_meta(struct spate_slice line, const struct spate_head *head,
                                              struct spate_meta *meta, struct spate_arena *arena,
                                              struct spate_err *err);

/* The rows of an insert, update, delete or read. `before` and `after` point at column_count values each,
 * which the caller provides; they are filled whole (ABSENT where the message has no such column). Values are
 * Postgres text again: strings unescaped, numbers and jsonb as the raw slice, true and false as they are.
 * A column that the table does not have, or one that is neither in `after` nor in `unchanged`, is an error
 * (quarantine): nothing is invented. `want`, when not NULL, has column_count flags: values of other columns
 * are skipped and stay ABSENT. */
struct spate_rows {
    /* When `before` is an old key, the other columns stay ABSENT. */
    bool has_before, has_after;
    struct spate_value *before, *after;
    /* table->key_count values in key order: the row's identity now, the old values on a delete. The caller's
     * too; when it is NULL, spate_decode_rows takes them from the arena. Always whole, whatever is wanted. */
    struct spate_value *key;
};
SPATE_CHECKED enum spate_rc spate_decode_rows(struct spate_slice line, const struct spate_head *head,
                                              const struct spate_meta *meta, const struct spate_table *table,
                                              const bool *want, struct spate_rows *rows,
                                              struct spate_arena *arena, struct spate_err *err);

struct spate_truncated {
    struct spate_slice schema, table;
    uint32_t v;
};
struct spate_truncation {
    struct spate_truncated *tables; /* in the arena */
    size_t count;
    bool cascade, restart;
};
SPATE_CHECKED enum spate_rc spate_decode_truncate(struct spate_slice line, const struct spate_meta *meta,
                                                  struct spate_truncation *out, struct spate_arena *arena,
                                                  struct spate_err *err);

SPATE_CHECKED enum spate_rc spate_decode_message(struct spate_slice line, const struct spate_meta *meta,
                                                 struct spate_slice *prefix, struct spate_slice *content,
                                                 struct spate_arena *arena, struct spate_err *err);

/* Whole messages that are rare. Slices borrow from line or arena. */
SPATE_CHECKED enum spate_rc spate_decode_heartbeat(struct spate_slice line, struct spate_heartbeat *out,
                                                   struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_stale(struct spate_slice line, struct spate_stale *out,
                                               struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_storage(struct spate_slice line, struct spate_storage *out,
                                                 struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_epoch(struct spate_slice line, struct spate_epoch *out,
                                               struct spate_arena *arena, struct spate_err *err);
/* On success *table is a sealed table of its own (free with spate_table_free). A fingerprint in the message
 * that differs from the computed one is an error. */
SPATE_CHECKED enum spate_rc spate_decode_schema(struct spate_slice line, struct spate_table **table,
                                                struct spate_arena *arena, struct spate_err *err);

void spate_pos_format(struct spate_pos pos, char out[SPATE_POS_TEXT]);
void spate_lsn_format(uint64_t lsn, char out[SPATE_LSN_TEXT]);

#endif
