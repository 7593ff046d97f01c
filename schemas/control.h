/* schemas/control.h - the messages on <connector>._control: requests and answers (docs/message-format.md).
 *
 * One struct for all of them: which fields count, the op says. Pure functions; everything is borrowed. Names
 * (schemas, tables, columns, requesters) may be any bytes; texts of answers are UTF-8. */
#ifndef SPATE_SCHEMAS_CONTROL_H
#define SPATE_SCHEMAS_CONTROL_H

#include "core/arena.h"
#include "core/buf.h"
#include "core/err.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum spate_control_op {
    SPATE_CONTROL_REQUEST, /* from a requester; with `to` it is for the sink of that name */
    SPATE_CONTROL_CANCEL,
    SPATE_CONTROL_REREAD,
    SPATE_CONTROL_FINISHED,
    SPATE_CONTROL_STARTED, /* from the connector */
    SPATE_CONTROL_ACCEPTED,
    SPATE_CONTROL_REFUSED,
    SPATE_CONTROL_PROGRESS,
    SPATE_CONTROL_UNKNOWN /* a later addition: passed by */
};
const char *spate_control_op_name(enum spate_control_op op);

/* column op value; all conditions of a table must hold. */
struct spate_condition {
    struct spate_slice column;
    struct spate_slice op; /* = <> < <= > >= ; "is" and "is not" with a null value */
    bool null;
    struct spate_slice value; /* Postgres text of the column's type */
};
bool spate_condition_op_known(struct spate_slice op, bool null);

struct spate_control_table {
    struct spate_slice schema, table;
    /* request */
    const struct spate_slice *columns; /* NULL, 0: all */
    size_t column_count;
    const struct spate_condition *where;
    size_t where_count;
    struct spate_slice resume; /* the last token; empty: none */
    uint64_t chunk;            /* the greatest `no` that was taken */
    /* accepted, progress */
    uint64_t rows, pages, of, chunks; /* `rows` in accepted, and `of`, are estimates */
};

struct spate_control {
    enum spate_control_op op;
    struct spate_slice to, request;
    struct spate_slice sink; /* the requester's name: answers and rows go `to` it */
    int64_t wall_us;         /* `ts`; 0: absent */
    struct spate_slice source;
    struct spate_control_table *tables; /* request, accepted, progress */
    size_t table_count;
    bool again;                        /* request: goes on from resume and chunk, also while it is active */
    bool append;                       /* request: rows without a key are welcome, too */
    bool some;                         /* request: tables that cannot be read are left out, not refused */
    struct spate_slice schema, table;  /* reread */
    uint64_t chunk;                    /* reread: the greatest `no` taken of that table */
    struct spate_slice keys;           /* reread: JSON array of key objects, as it stands in the line */
    uint64_t epoch;                    /* started */
    struct spate_slice reason, remedy; /* refused */
    struct spate_slice state;          /* progress: what there is, docs/message-format.md lists */
    struct spate_slice why;            /* progress: what it waits for; may be empty */
    uint64_t rows, estimate;           /* progress: rows sent; 0 estimate: unknown */
    double percent, rate;              /* progress: of pages; rows per second */
    int64_t left_s;                    /* progress: time left; -1: unknown */
};

void spate_encode_control(struct spate_buf *out, const struct spate_control *control);

/* SPATE_FAIL (quarantine): no message of ours, or a field that is missing or of the wrong kind; the text
 * names the field, what was expected, and is meant for whoever wrote the message. *out is filled as far as it
 * was understood (op, sink, request), so that it can be answered. Fatal: `spate` is greater than
 * SPATE_FORMAT; again as far as it was understood. Fields that are not known are passed by. */
SPATE_CHECKED enum spate_rc spate_decode_control(struct spate_slice line, struct spate_control *out,
                                                 struct spate_arena *arena, struct spate_err *err);

#endif
