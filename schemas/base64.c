#include "schemas/base64.h"

#include <stdint.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void spate_base64_encode(struct spate_buf *out, struct spate_slice bytes)
{
    const unsigned char *p = (const unsigned char *)bytes.at;
    size_t whole = bytes.len / 3 * 3, left = bytes.len - whole;
    char *to;

    spate_buf_reserve(out, (bytes.len + 2) / 3 * 4);
    to = out->data + out->len;
    for (size_t i = 0; i < whole; i += 3, to += 4) {
        to[0] = digits[p[i] >> 2];
        to[1] = digits[(p[i] & 3) << 4 | p[i + 1] >> 4];
        to[2] = digits[(p[i + 1] & 15) << 2 | p[i + 2] >> 6];
        to[3] = digits[p[i + 2] & 63];
    }
    if (left > 0) {
        unsigned second = left == 2 ? p[whole + 1] : 0;

        to[0] = digits[p[whole] >> 2];
        to[1] = digits[(p[whole] & 3u) << 4 | second >> 4];
        to[2] = left == 2 ? digits[(second & 15) << 2] : '=';
        to[3] = '=';
        to += 4;
    }
    out->len = (size_t)(to - out->data);
}

static int digit_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool spate_base64_decode(struct spate_slice text, char *out, size_t *len)
{
    char *to = out;

    if (text.len % 4 != 0)
        return false;
    for (size_t i = 0; i < text.len; i += 4) {
        bool last = i + 4 == text.len;
        int pad = last && text.at[i + 3] == '=' ? (text.at[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t group = 0;

        for (size_t j = 0; j < 4; j++) {
            int digit = (int)j >= 4 - pad ? 0 : digit_of(text.at[i + j]);

            if (digit < 0)
                return false;
            group = group << 6 | (uint32_t)digit;
        }
        if ((pad == 1 && (group & 0xff) != 0) || (pad == 2 && (group & 0xffff) != 0))
            return false;
        *to++ = (char)(group >> 16);
        if (pad < 2)
            *to++ = (char)(group >> 8 & 0xff);
        if (pad < 1)
            *to++ = (char)(group & 0xff);
    }
    *len = (size_t)(to - out);
    return true;
}
