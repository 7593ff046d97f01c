#include "core/hash.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#if defined(__x86_64__)
#include <immintrin.h>
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
/* The instruction takes a word in one cycle, and says what came out after three. So three stretches of the
 * input go side by side; the first two results are then moved over what follows them: multiplied by x^(8 n)
 * modulo the polynomial, n being the bytes that follow. The product of two 32-bit polynomials has 63 bits,
 * which the instruction itself reduces while it multiplies by x^33; so the factors are x^(8 n - 33). */
#define LONG        UINT64_C(336) /* bytes of a stretch: three of them in a kilobyte */
#define SHORT       UINT64_C(64)
#define LONG_ONCE   0xa60ce07b /* x^(8 LONG - 33) */
#define LONG_TWICE  0xcec3662e /* x^(16 LONG - 33) */
#define SHORT_ONCE  0x9e4addf8
#define SHORT_TWICE 0x0d3b6092

__attribute__((target("sse4.2"))) static inline uint64_t crc_word(uint64_t crc, const unsigned char *at)
{
    uint64_t word;

    memcpy(&word, at, sizeof word);
    return _mm_crc32_u64(crc, word);
}

__attribute__((target("sse4.2,pclmul"))) static inline uint64_t
crc_three(uint64_t crc, const unsigned char *at, uint64_t len, uint32_t once, uint32_t twice)
{
    uint64_t second = 0, third = 0;

    for (const unsigned char *end = at + len; at < end; at += 8) {
        crc = crc_word(crc, at);
        second = crc_word(second, at + len);
        third = crc_word(third, at + 2 * len);
    }
    const __m128i moved = _mm_xor_si128(
        _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)twice), 0),
        _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)second), _mm_cvtsi32_si128((int)once), 0));
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(moved)) ^ third;
}

/* Four vectors of 64 bytes side by side, each moved over the 256 bytes that the four take, and the next 256
 * added. A vector's lanes are polynomials of 128 bits; moving one by D bits multiplies its earlier half by
 * x^(D + 63) and its later half by x^(D - 1), modulo the polynomial (the product of two reflected words is
 * one bit short). At the end the sixteen lanes are moved over each other. */
#define WIDE UINT64_C(256)

#define AVX512 __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2")))

/* x^(D + 63) and x^(D - 1), each in the upper half of a word. */
#define FACTORS(early, late) (long long)(UINT64_C(late) << 32), (long long)(UINT64_C(early) << 32)

AVX512 static inline __m512i crc_move(__m512i lanes, __m512i factors, __m512i add)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, factors, 0x00),
                                     _mm512_clmulepi64_epi128(lanes, factors, 0x11), add, 0x96);
}

/* `len` is a multiple of WIDE, and not 0. */
AVX512 static uint64_t crc_wide(uint64_t crc, const unsigned char *at, uint64_t len)
{
    const __m512i by256 = _mm512_broadcast_i32x4(_mm_set_epi64x(FACTORS(0xe9a5d8be, 0x1426a815)));
    const __m512i by192 = _mm512_broadcast_i32x4(_mm_set_epi64x(FACTORS(0x7ccbbbf2, 0x31c94608)));
    const __m512i by128 = _mm512_broadcast_i32x4(_mm_set_epi64x(FACTORS(0x6577b245, 0x7417153f)));
    const __m512i by64 = _mm512_broadcast_i32x4(_mm_set_epi64x(FACTORS(0x1c19243b, 0x75bba45b)));
    const __m512i by_lane =
        _mm512_set_epi64(0, 0, FACTORS(0x3743f7bd, 0x3171d430), FACTORS(0x33ccbbbc, 0xa2158b34),
                         FACTORS(0xa46ef4aa, 0x6051243f));
    __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
    __m512i c = _mm512_loadu_si512(at + 128), d = _mm512_loadu_si512(at + 192);

    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi64_si128((long long)crc)));
    for (const unsigned char *end = at + len; (at += WIDE) < end;) {
        a = crc_move(a, by256, _mm512_loadu_si512(at));
        b = crc_move(b, by256, _mm512_loadu_si512(at + 64));
        c = crc_move(c, by256, _mm512_loadu_si512(at + 128));
        d = crc_move(d, by256, _mm512_loadu_si512(at + 192));
    }
    d = crc_move(a, by192, crc_move(b, by128, crc_move(c, by64, d)));
    const __m512i last = _mm512_maskz_mov_epi64(0xc0, d), moved = crc_move(d, by_lane, last);
    const __m128i one = _mm_xor_si128(
        _mm_xor_si128(_mm512_extracti32x4_epi32(moved, 0), _mm512_extracti32x4_epi32(moved, 1)),
        _mm_xor_si128(_mm512_extracti32x4_epi32(moved, 2), _mm512_extracti32x4_epi32(moved, 3)));
    return _mm_crc32_u64(_mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(one, 0)),
                         (uint64_t)_mm_extract_epi64(one, 1));
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t crc_sse42(uint32_t crc, const unsigned char *at,
                                                                   size_t len)
{
    uint64_t wide = crc;

    for (; len >= 3 * LONG; at += 3 * LONG, len -= 3 * LONG)
        wide = crc_three(wide, at, LONG, LONG_ONCE, LONG_TWICE);
    for (; len >= 3 * SHORT; at += 3 * SHORT, len -= 3 * SHORT)
        wide = crc_three(wide, at, SHORT, SHORT_ONCE, SHORT_TWICE);
    for (; len >= 8; at += 8, len -= 8)
        wide = crc_word(wide, at);
    crc = (uint32_t)wide;
    while (len--)
        crc = _mm_crc32_u8(crc, *at++);
    return crc;
}
#endif

#if defined(__x86_64__)
__attribute__((target("sse4.2,pclmul"))) static uint32_t crc_head_sse42(const uint64_t head[4],
                                                                        const unsigned char *at, size_t len)
{
    uint64_t crc = UINT32_MAX;

    for (int i = 0; i < 4; i++)
        crc = _mm_crc32_u64(crc, head[i]);
    for (; len >= 8; at += 8, len -= 8)
        crc = crc_word(crc, at);
    uint32_t rest = (uint32_t)crc;
    while (len--)
        rest = _mm_crc32_u8(rest, *at++);
    return rest;
}
#endif

uint32_t spate_crc32c_head(const uint64_t head[4], const void *at, size_t len)
{
#if defined(__x86_64__)
    if (len < 3 * SHORT && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        return ~crc_head_sse42(head, at, len);
#endif
    return spate_crc32c(spate_crc32c(0, head, 4 * sizeof *head), at, len);
}

uint32_t spate_crc32c(uint32_t crc, const void *at, size_t len)
{
    const unsigned char *from = at;

    crc = ~crc;
#if defined(__x86_64__)
    if (len >= WIDE && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f")) {
        crc = (uint32_t)crc_wide(crc, from, len / WIDE * WIDE);
        from += len / WIDE * WIDE;
        len %= WIDE;
    }
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        return ~crc_sse42(crc, from, len);
#endif
    return ~crc_plain(crc, from, len);
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
