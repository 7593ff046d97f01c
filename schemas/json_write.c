#include "schemas/base64.h"
#include "schemas/json.h"
#include "schemas/utf8.h"

#include <string.h>

static const char hex[] = "0123456789abcdef";

void spate_json_put_u64(struct spate_buf *out, uint64_t value)
{
    char text[20];
    size_t at = sizeof(text);

    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    spate_buf_add(out, text + at, sizeof(text) - at);
}

void spate_json_put_i32(struct spate_buf *out, int32_t value)
{
    if (value < 0)
        spate_buf_putc(out, '-');
    spate_json_put_u64(out, value < 0 ? (uint64_t) - (int64_t)value : (uint64_t)value);
}

/* DEL is legal in JSON, but a terminal that shows the line would act on it like on the others. */
static void put_escape(struct spate_buf *out, unsigned char c)
{
    char text[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};

    switch (c) {
    case '"':
    case '\\':
        text[1] = (char)c;
        break;
    case '\b':
        text[1] = 'b';
        break;
    case '\t':
        text[1] = 't';
        break;
    case '\n':
        text[1] = 'n';
        break;
    case '\f':
        text[1] = 'f';
        break;
    case '\r':
        text[1] = 'r';
        break;
    default:
        spate_buf_add(out, text, 6);
        return;
    }
    spate_buf_add(out, text, 2);
}

bool spate_json_put_string(struct spate_buf *out, struct spate_slice text)
{
    size_t start = out->len;
    const char *at = text.at, *run = at, *end = text.len != 0 ? at + text.len : at;

    spate_buf_reserve(out, text.len + 2);
    out->data[out->len++] = '"';
    while ((at = spate_utf8_scan(at, end)) < end) {
        if ((unsigned char)*at >= 0x80) {
            do {
                size_t len = spate_utf8_sequence(at, end);

                if (len == 0) {
                    out->len = start;
                    return false;
                }
                at += len;
            } while (at < end && (unsigned char)*at >= 0x80);
            continue;
        }
        spate_buf_add(out, run, (size_t)(at - run));
        put_escape(out, (unsigned char)*at);
        run = ++at;
    }
    spate_buf_add(out, run, (size_t)(end - run));
    spate_buf_putc(out, '"');
    return true;
}

void spate_json_put_text(struct spate_buf *out, struct spate_slice text)
{
    if (spate_json_put_string(out, text))
        return;
    SPATE_JSON_ADD(out, "{\"$bytes\":\"");
    spate_base64_encode(out, text);
    SPATE_JSON_ADD(out, "\"}");
}

static const char marker[] = "$bytes:";
enum { MARKER = sizeof(marker) - 1 };

static bool marked(struct spate_slice name)
{
    return name.len >= MARKER && memcmp(name.at, marker, MARKER) == 0;
}

void spate_json_put_name(struct spate_buf *out, struct spate_slice name)
{
    if (!marked(name) && spate_json_put_string(out, name))
        return;
    spate_buf_putc(out, '"');
    spate_buf_add(out, marker, MARKER);
    spate_base64_encode(out, name);
    spate_buf_putc(out, '"');
}

bool spate_json_unescape_name(struct spate_slice *name, struct spate_arena *arena)
{
    struct spate_slice text;
    size_t len;
    char *bytes;

    if (!marked(*name))
        return true;
    text = spate_slice(name->at + MARKER, name->len - MARKER);
    bytes = spate_arena_alloc(arena, text.len / 4 * 3 + 1);
    if (!spate_base64_decode(text, bytes, &len))
        return false;
    *name = spate_slice(bytes, len);
    return true;
}
