/* schemas/utf8.h - finding the bytes of a text that a JSON string cannot carry as they are.
 *
 * Pure, inline, no allocation. The scan is what encoding and decoding spend their time in, so it looks at
 * 16 bytes at once where the processor can (SSE2), else at 8 in an ordinary register. */
#ifndef SPATE_SCHEMAS_UTF8_H
#define SPATE_SCHEMAS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Not plain: control characters, DEL, the quote, the backslash, and whatever is not ASCII. */
static inline bool spate_utf8_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

/* A word whose bytes have their top bit set where the byte is not plain. Borrows run upwards only, so the
 * lowest such byte is exact and those above it may be wrong: look at no other. */
static inline uint64_t spate_utf8_special(uint64_t word)
{
    const uint64_t one = UINT64_C(0x0101010101010101), top = UINT64_C(0x8080808080808080);
    uint64_t quote = word ^ one * '"', slash = word ^ one * '\\', del = word ^ one * 0x7f;

    return (((word - one * 0x20) & ~word) | ((quote - one) & ~quote) | ((slash - one) & ~slash) |
            ((del - one) & ~del) | word) &
           top;
}

/* The first byte in [at, end) that is not plain, or end. */
static inline const char *spate_utf8_scan(const char *at, const char *end)
{
#ifdef __SSE2__
    for (; (size_t)(end - at) >= 16; at += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)at);
        /* Signed comparison: bytes above 0x7f are negative, hence below 0x20. */
        __m128i special = _mm_or_si128(
            _mm_or_si128(_mm_cmplt_epi8(v, _mm_set1_epi8(0x20)), _mm_cmpeq_epi8(v, _mm_set1_epi8('"'))),
            _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('\\')), _mm_cmpeq_epi8(v, _mm_set1_epi8(0x7f))));
        unsigned mask = (unsigned)_mm_movemask_epi8(special);

        if (mask != 0)
            return at + __builtin_ctz(mask);
    }
#endif
    for (; (size_t)(end - at) >= 8; at += 8) {
        uint64_t word;

        memcpy(&word, at, 8);
        if (spate_utf8_special(word) != 0)
            break;
    }
    while (at < end && spate_utf8_plain((unsigned char)*at))
        at++;
    return at;
}

/* Length of the valid sequence that begins at `at` with a byte above 0x7f; 0 when it is not valid UTF-8:
 * cut short, overlong, a surrogate, or above U+10FFFF (Unicode 15, table 3-7). */
static inline size_t spate_utf8_sequence(const char *at, const char *end)
{
    const unsigned char *p = (const unsigned char *)at;
    size_t left = (size_t)(end - at);

    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if ((p[0] & 0xf0) == 0xe0) {
        unsigned char low = p[0] == 0xe0 ? 0xa0 : 0x80, high = p[0] == 0xed ? 0x9f : 0xbf;

        return left >= 3 && p[1] >= low && p[1] <= high && (p[2] & 0xc0) == 0x80 ? 3 : 0;
    }
    if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        unsigned char low = p[0] == 0xf0 ? 0x90 : 0x80, high = p[0] == 0xf4 ? 0x8f : 0xbf;

        return left >= 4 && p[1] >= low && p[1] <= high && (p[2] & 0xc0) == 0x80 && (p[3] & 0xc0) == 0x80 ? 4
                                                                                                          : 0;
    }
    return 0;
}

#endif
