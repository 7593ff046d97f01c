#include "schemas/event.h"

#define NAME(op, text) [op] = {(text), sizeof(text) - 1}

static const struct spate_slice names[] = {
    NAME(SPATE_OP_NONE, ""),
    NAME(SPATE_OP_INSERT, "insert"),
    NAME(SPATE_OP_UPDATE, "update"),
    NAME(SPATE_OP_DELETE, "delete"),
    NAME(SPATE_OP_TRUNCATE, "truncate"),
    NAME(SPATE_OP_MESSAGE, "message"),
    NAME(SPATE_OP_EPOCH, "epoch"),
    NAME(SPATE_OP_HEARTBEAT, "heartbeat"),
    NAME(SPATE_OP_SNAPSHOT_BEGIN, "snapshot-begin"),
    NAME(SPATE_OP_CHUNK, "chunk"),
    NAME(SPATE_OP_READ, "read"),
    NAME(SPATE_OP_CHUNK_END, "chunk-end"),
    NAME(SPATE_OP_RANGES_END, "ranges-end"),
    NAME(SPATE_OP_STALE, "stale"),
    NAME(SPATE_OP_SCHEMA, "schema"),
    NAME(SPATE_OP_STORAGE, "storage"),
    NAME(SPATE_OP_UNKNOWN, "unknown"),
};
_Static_assert(sizeof(names) / sizeof(names[0]) == SPATE_OP_UNKNOWN + 1, "every op has a name");

const char *spate_op_name(enum spate_op op)
{
    return names[(unsigned)op <= SPATE_OP_UNKNOWN ? op : SPATE_OP_UNKNOWN].at;
}

enum spate_op spate_op_parse(struct spate_slice name)
{
    for (int op = SPATE_OP_INSERT; op < SPATE_OP_UNKNOWN; op++)
        if (name.len == names[op].len && memcmp(name.at, names[op].at, name.len) == 0)
            return (enum spate_op)op;
    return SPATE_OP_UNKNOWN;
}
