/* sinks/lossless.c - assignments that keep a value bit for bit. All others need an explicit cast:
 * Postgres itself would round numeric(10,2) from 1.005 to 1.01 without a word. */
#include "sinks/projection.h"

/* OIDs of pg_catalog, which never change. */
enum {
    INT8 = 20,
    INT2 = 21,
    INT4 = 23,
    TEXT = 25,
    FLOAT4 = 700,
    FLOAT8 = 701,
    VARCHAR = 1043,
    DATE = 1082,
    TIME = 1083,
    TIMESTAMP = 1114,
    TIMESTAMPTZ = 1184,
    INTERVAL = 1186,
    TIMETZ = 1266,
    VARBIT = 1562,
    NUMERIC = 1700,
    NAME = 19
};

static bool wider_mod(uint32_t type, int from, int to)
{
    if (to == -1 || from == to)
        return true;
    if (from == -1)
        return false;
    switch (type) {
    case VARCHAR:
    case VARBIT:
        return to >= from;
    case TIME:
    case TIMETZ:
    case TIMESTAMP:
    case TIMESTAMPTZ:
        return to >= from;
    case NUMERIC: {
        /* ((precision << 16) | scale) + 4; a negative scale (11 bits, two's complement) is left to a cast. */
        int from_scale = (from - 4) & 0x7ff, to_scale = (to - 4) & 0x7ff;
        int from_whole = (((from - 4) >> 16) & 0xffff) - from_scale,
            to_whole = (((to - 4) >> 16) & 0xffff) - to_scale;

        return from_scale < 1024 && to_scale < 1024 && to_scale == from_scale && to_whole >= from_whole;
    }
    default:
        return false;
    }
}

bool spate_type_lossless(uint32_t from, int from_mod, uint32_t to, int to_mod)
{
    if (from == to)
        return wider_mod(from, from_mod, to_mod);
    if (to_mod != -1)
        return false;
    switch (from) {
    case INT2:
        return to == INT4 || to == INT8 || to == NUMERIC || to == FLOAT4 || to == FLOAT8;
    case INT4:
        return to == INT8 || to == NUMERIC || to == FLOAT8;
    case INT8:
        return to == NUMERIC;
    case FLOAT4:
        return to == FLOAT8;
    case VARCHAR:
    case NAME:
        return to == TEXT || to == VARCHAR;
    case TEXT:
        return to == VARCHAR;
    case DATE:
        return to == TIMESTAMP;
    default:
        return false;
    }
}
