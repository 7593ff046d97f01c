/* connector/lsn.h - Postgres' positions, times and numbers, as they are printed and as the wire has them. */
#ifndef SPATE_CONNECTOR_LSN_H
#define SPATE_CONNECTOR_LSN_H

#include <stdint.h>

/* The two arguments of "%X/%X". */
#define LSN(lsn) (uint32_t)((lsn) >> 32), (uint32_t)(lsn)

/* Microseconds from 1970-01-01 to 2000-01-01, where Postgres' times begin. */
#define POSTGRES_EPOCH_US INT64_C(946684800000000)

/* Big-endian. */
static inline uint32_t spate_load_u32(const void *from)
{
    const unsigned char *p = from;

    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t spate_load_u64(const void *from)
{
    return (uint64_t)spate_load_u32(from) << 32 | spate_load_u32((const char *)from + 4);
}

static inline void spate_store_u64(void *to, uint64_t value)
{
    unsigned char *p = to;

    for (int i = 7; i >= 0; i--, value >>= 8)
        p[i] = (unsigned char)(value & 0xff);
}

#endif
