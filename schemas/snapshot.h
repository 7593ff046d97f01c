/* schemas/snapshot.h - the messages of a snapshot in the stream (docs/message-format.md): snapshot-begin,
 * chunk, read, chunk-end, ranges-end. All carry `at`, stand between transactions, and are addressed (`to`).
 *
 * A chunk is one uninterrupted run of lines: `chunk`, its `read`s, `chunk-end`, all with the same `at`. It is
 * true exactly there (HAZARDS 6.6). Pure functions; everything is borrowed. */
#ifndef SPATE_SCHEMAS_SNAPSHOT_H
#define SPATE_SCHEMAS_SNAPSHOT_H

#include "core/arena.h"
#include "core/buf.h"
#include "core/err.h"
#include "schemas/codec.h"
#include "schemas/event.h"

/* What every one of them says. */
struct spate_addressed {
    uint64_t at, epoch;
    struct spate_slice to, request;
    int64_t wall_us;
    struct spate_slice source;
};

/* A place inside a table: page * 65536 + line pointer, so that text "(page,line)" is its ctid. */
#define SPATE_TID(page, line) (((uint64_t)(page) << 16) | (uint64_t)(line))
#define SPATE_TID_TEXT        24 /* "(4294967295,65535)" and a NUL */
void spate_tid_format(uint64_t tid, char out[SPATE_TID_TEXT]);
bool spate_tid_parse(struct spate_slice text, uint64_t *tid);

struct spate_named_table { /* in snapshot-begin and ranges-end */
    struct spate_slice schema, table;
    uint64_t chunks;           /* ranges-end: the greatest `no` of the table */
    struct spate_slice resume; /* ranges-end: the table's last token; empty: it had no range. Whoever holds
                                * another one has followed chunks that were cut differently (F46). */
};

struct spate_snapshot_begin {
    struct spate_addressed head;
    uint64_t end; /* LSN: everything up to it stands on the bus before this message */
    const struct spate_named_table *tables;
    size_t count;
};

#define SPATE_BY_TEXT 8   /* hex digits */
struct spate_chunk_name { /* which chunk a line belongs to */
    uint32_t by;          /* random per session of the connector: two chunks of the same no are told apart */
    uint64_t no;          /* from 1, without a gap, per request and table */
};

struct spate_chunk {
    struct spate_addressed head;
    const struct spate_table *table; /* encoding; its v is set */
    struct spate_slice schema, name; /* decoding */
    uint32_t v;                      /* decoding */
    struct spate_chunk_name chunk;
    bool by_keys;            /* `keys` were asked for; else the range [from, to) */
    uint64_t from, to;       /* tids */
    struct spate_slice keys; /* JSON array of key objects, as it stands in the line; "[]" */
    /* The token at which the range begins: the `resume` of the chunk before it, or of the request that it was
     * positioned by; empty where the table begins (again), and with keys. Numbers alone would not tell that a
     * chunk goes on from another place than the one that was taken last (F46). */
    struct spate_slice since;
    struct spate_slice dropped; /* as keys */
};

struct spate_chunk_end {
    struct spate_addressed head;
    const struct spate_table *table;
    struct spate_slice schema, name;
    uint32_t v;
    struct spate_chunk_name chunk;
    uint64_t count; /* reads between chunk and chunk-end */
    struct spate_slice resume;
};

struct spate_ranges_end {
    struct spate_addressed head;
    const struct spate_named_table *tables;
    size_t count;
};

void spate_encode_snapshot_begin(struct spate_buf *out, const struct spate_snapshot_begin *begin);
void spate_encode_chunk(struct spate_buf *out, const struct spate_chunk *chunk);
void spate_encode_chunk_end(struct spate_buf *out, const struct spate_chunk_end *end);
void spate_encode_ranges_end(struct spate_buf *out, const struct spate_ranges_end *end);

/* A read in two halves: what is the same for all rows of a chunk, up to and including `no` (known when the
 * chunk is published), and what a row says, which a reader thread encodes long before. A line is head + row.
 * `values` has table->column_count values; ABSENT: not asked for (never a key column: SPATE_FAIL). */
void spate_encode_read_head(struct spate_buf *out, const struct spate_chunk *chunk);
SPATE_CHECKED enum spate_rc spate_encode_read_row(struct spate_buf *out, const struct spate_table *table,
                                                  const struct spate_value *values, struct spate_err *err);
/* {"id":42} of such a row; "null" without a key. What spate_encode_read_row writes for `key`. */
SPATE_CHECKED enum spate_rc spate_encode_row_key(struct spate_buf *out, const struct spate_table *table,
                                                 const struct spate_value *values, struct spate_err *err);

/* After spate_decode_head said which op it is. The rows of a `read` come from spate_decode_rows, which
 * accepts that a column which is not wanted is not there. Slices and arrays borrow from line or arena. */
SPATE_CHECKED enum spate_rc spate_decode_snapshot_begin(struct spate_slice line,
                                                        struct spate_snapshot_begin *out,
                                                        struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_chunk(struct spate_slice line, struct spate_chunk *out,
                                               struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_chunk_end(struct spate_slice line, struct spate_chunk_end *out,
                                                   struct spate_arena *arena, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_decode_ranges_end(struct spate_slice line, struct spate_ranges_end *out,
                                                    struct spate_arena *arena, struct spate_err *err);
/* Which chunk a read belongs to; cheap: stops there. meta comes from spate_decode_meta. */
SPATE_CHECKED enum spate_rc spate_decode_chunk_name(struct spate_slice line, const struct spate_meta *meta,
                                                    struct spate_chunk_name *name, struct spate_arena *arena,
                                                    struct spate_err *err);

/* Keys as requesters and chunks write them: a JSON array of objects, each with all of the table's key
 * columns. `values` gets count * key_count texts in key order, in the arena (Postgres text, unescaped as in
 * spate_decode_rows). SPATE_FAIL (quarantine): not such an array, a column missing, unknown or null. */
SPATE_CHECKED enum spate_rc spate_decode_keys(struct spate_slice json, const struct spate_table *table,
                                              struct spate_value **values, size_t *count,
                                              struct spate_arena *arena, struct spate_err *err);
/* One key as an object, from key_count values in key order. */
SPATE_CHECKED enum spate_rc spate_encode_key_values(struct spate_buf *out, const struct spate_table *table,
                                                    const struct spate_value *key, struct spate_err *err);

#endif
