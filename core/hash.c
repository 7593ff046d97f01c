#include "core/hash.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

static uint32_t crc_table[8][256];
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static void crc_table_make(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (UINT32_C(0x82f63b78) & (0U - (crc & 1U)));
        crc_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++)
            crc_table[t][i] = (crc_table[t - 1][i] >> 8) ^ crc_table[0][crc_table[t - 1][i] & 0xff];
}

static uint32_t crc_plain(uint32_t crc, const unsigned char *at, size_t len)
{
    pthread_once(&crc_once, crc_table_make);
    while (len >= 8) {
        uint32_t low, high;

        memcpy(&low, at, 4);
        memcpy(&high, at + 4, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        low = __builtin_bswap32(low);
        high = __builtin_bswap32(high);
#endif
        low ^= crc;
        crc = crc_table[7][low & 0xff] ^ crc_table[6][(low >> 8) & 0xff] ^ crc_table[5][(low >> 16) & 0xff] ^
              crc_table[4][low >> 24] ^ crc_table[3][high & 0xff] ^ crc_table[2][(high >> 8) & 0xff] ^
              crc_table[1][(high >> 16) & 0xff] ^ crc_table[0][high >> 24];
        at += 8;
        len -= 8;
    }
    while (len--)
        crc = (crc >> 8) ^ crc_table[0][(crc ^ *at++) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const unsigned char *at, size_t len)
{
    uint64_t wide = crc;

    while (len >= 8) {
        uint64_t word;

        memcpy(&word, at, 8);
        wide = _mm_crc32_u64(wide, word);
        at += 8;
        len -= 8;
    }
    crc = (uint32_t)wide;
    while (len--)
        crc = _mm_crc32_u8(crc, *at++);
    return crc;
}
#endif

uint32_t spate_crc32c(uint32_t crc, const void *at, size_t len)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc_sse42(crc, at, len);
#endif
    return ~crc_plain(crc, at, len);
}

uint64_t spate_fnv64(uint64_t hash, const void *at, size_t len)
{
    const unsigned char *byte = at;

    while (len--) {
        hash ^= *byte++;
        hash *= UINT64_C(0x100000001b3);
    }
    return hash;
}

uint32_t spate_murmur2(const void *at, size_t len)
{
    const uint32_t m = UINT32_C(0x5bd1e995);
    const unsigned char *byte = at;
    uint32_t hash = UINT32_C(0x9747b28c) ^ (uint32_t)len;

    for (; len >= 4; byte += 4, len -= 4) {
        uint32_t k =
            (uint32_t)byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 | (uint32_t)byte[3] << 24;

        k *= m;
        k ^= k >> 24;
        k *= m;
        hash *= m;
        hash ^= k;
    }
    if (len == 3)
        hash ^= (uint32_t)byte[2] << 16;
    if (len >= 2)
        hash ^= (uint32_t)byte[1] << 8;
    if (len >= 1) {
        hash ^= byte[0];
        hash *= m;
    }
    hash ^= hash >> 13;
    hash *= m;
    hash ^= hash >> 15;
    return hash;
}

void spate_uuid(char out[37])
{
    unsigned char raw[16];
    size_t got = 0;

    while (got < sizeof raw) {
        ssize_t n = getrandom(raw + got, sizeof raw - got, 0);

        if (n < 0) /* only EINTR is possible for so few bytes */
            continue;
        got += (size_t)n;
    }
    raw[6] = (unsigned char)((raw[6] & 0x0f) | 0x40);
    raw[8] = (unsigned char)((raw[8] & 0x3f) | 0x80);
    for (int i = 0, at = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            out[at++] = '-';
        snprintf(out + at, 3, "%02x", raw[i]);
        at += 2;
    }
}
