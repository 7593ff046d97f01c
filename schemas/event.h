/* schemas/event.h - what a message says (docs/message-format.md), in memory. Everything here is borrowed. */
#ifndef SPATE_SCHEMAS_EVENT_H
#define SPATE_SCHEMAS_EVENT_H

#include "core/slice.h"
#include "schemas/table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_FORMAT 1 /* the "spate" field */

enum spate_op {
    SPATE_OP_NONE = 0,
    SPATE_OP_INSERT,
    SPATE_OP_UPDATE,
    SPATE_OP_DELETE,
    SPATE_OP_TRUNCATE,
    SPATE_OP_MESSAGE,
    SPATE_OP_EPOCH,
    SPATE_OP_HEARTBEAT,
    SPATE_OP_SNAPSHOT_BEGIN,
    SPATE_OP_CHUNK,
    SPATE_OP_READ,
    SPATE_OP_CHUNK_END,
    SPATE_OP_RANGES_END,
    SPATE_OP_STALE,   /* a table changed in a way that no message carried */
    SPATE_OP_SCHEMA,  /* only on <connector>._schemas */
    SPATE_OP_STORAGE, /* only there, too: what the connector last knew of a table's storage */
    SPATE_OP_UNKNOWN  /* a later minor addition: a reader passes it by */
};

const char *spate_op_name(enum spate_op op);
enum spate_op spate_op_parse(struct spate_slice name);

/* Insert, update, delete, truncate, message: they carry `n`. All others carry `at`. */
static inline bool spate_op_counts(enum spate_op op)
{
    return op >= SPATE_OP_INSERT && op <= SPATE_OP_MESSAGE;
}

/* A change's place in the stream: order by commit LSN, then ordinal; never by a change's own LSN (P17-P19).
 * ordinal counts from 1 what pgoutput sent inside the transaction (P18). Text: 16 hex digits, a dot, 8 of
 * them. */
struct spate_pos {
    uint64_t commit_lsn;
    uint32_t ordinal;
};
#define SPATE_POS_TEXT 25 /* without NUL */
#define SPATE_LSN_TEXT 16

static inline int spate_pos_cmp(struct spate_pos a, struct spate_pos b)
{
    if (a.commit_lsn != b.commit_lsn)
        return a.commit_lsn < b.commit_lsn ? -1 : 1;
    return a.ordinal == b.ordinal ? 0 : a.ordinal < b.ordinal ? -1 : 1;
}

enum spate_value_kind {
    SPATE_VALUE_ABSENT = 0, /* not sent: unchanged TOAST, or not part of an old key */
    SPATE_VALUE_NULL,
    SPATE_VALUE_TEXT /* what Postgres printed; bytes, not NUL-terminated */
};

struct spate_value {
    enum spate_value_kind kind;
    struct spate_slice text;
};

/* One change to be written. `before` and `after` have table->column_count values each, or are NULL. */
struct spate_change {
    enum spate_op op;
    uint64_t n;
    uint64_t epoch;
    struct spate_pos pos;
    uint64_t end; /* the commit's end LSN on a transaction's final message, else 0 */
    uint32_t xid;
    int64_t commit_us;         /* since 1970, the source's clock: display only (P22) */
    struct spate_slice source; /* connector name */

    const struct spate_table *table; /* NULL for truncate and message */
    const struct spate_value *before, *after;
    bool before_full; /* `before` is the whole old row (FULL), not only the old key */

    const struct spate_table *const *tables; /* truncate */
    size_t table_count;
    bool cascade, restart;

    struct spate_slice prefix, content; /* message */
};

struct spate_heartbeat {
    uint64_t at, epoch, end;
    int64_t wall_us;
    struct spate_slice source;
};

/* From here on what a follower holds of this table may differ from the source, though every message was
 * heard: it has to ask for everything (docs/message-format.md; P31-P33, P51, P56). */
struct spate_stale {
    uint64_t at, epoch, end;
    int64_t wall_us;
    struct spate_slice source;
    struct spate_slice schema, table;
    uint32_t v; /* the table's version now */
    struct spate_slice
        why; /* columns, rewritten, logged, partitions, published, recreated; later ones may come */
    const struct spate_slice *columns; /* why is `columns`: those whose values are meant; else none */
    size_t column_count;
};

/* On `_schemas`: what the connector knew of a table's storage when it last compared, so that a restart finds
 * what happened while nobody looked. Names are empty in the record that says that all tables have theirs. */
struct spate_storage {
    uint64_t epoch, end; /* compared when the stream had come so far */
    int64_t wall_us;
    struct spate_slice source;
    struct spate_slice schema, table;
    bool gone;                /* it is not published under this name any more */
    struct spate_slice state; /* the connector's own words (connector/survey.h); others keep out of them */
};

/* Who the source is. Any difference to what an epoch recorded breaks continuity (P73-P76). */
struct spate_source_identity {
    struct spate_slice system; /* IDENTIFY_SYSTEM's systemid, decimal */
    uint32_t timeline;
    struct spate_slice database;
    uint32_t database_oid;
    struct spate_slice slot, publication;
};

/* How an epoch stands to the one before it, and so what a follower of that one must do. */
enum spate_previous {
    SPATE_PREVIOUS_NONE,     /* there was none: start */
    SPATE_PREVIOUS_BROKEN,   /* continuity is lost: take a snapshot */
    SPATE_PREVIOUS_CONTINUES /* it goes on from previous_epoch's previous_n */
};

struct spate_epoch {
    uint64_t at, epoch, end;
    int64_t wall_us;
    struct spate_slice source;
    struct spate_slice uuid; /* 36 characters */
    struct spate_slice why;
    struct spate_source_identity identity;
    enum spate_previous previous;
    uint64_t previous_epoch, previous_n; /* for CONTINUES */
};

#endif
