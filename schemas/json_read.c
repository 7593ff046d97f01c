#include "schemas/base64.h"
#include "schemas/json.h"
#include "schemas/utf8.h"

#include <string.h>

bool spate_json_fail(struct spate_json *json, enum spate_json_cause cause, const char *why)
{
    if (json->why == NULL) {
        json->cause = cause;
        json->why = why;
        json->where = (size_t)(json->at - json->start);
        json->end = json->at; /* sticky: nothing more is to be had */
    }
    return false;
}

char spate_json_peek_far(struct spate_json *json)
{
    while (json->at < json->end) {
        char c = *json->at;

        if (c == '\n' || c == '\r' || c == '\t')
            json->breaks = true;
        else if (c != ' ')
            return c;
        json->at++;
    }
    return 0;
}

bool spate_json_take(struct spate_json *json, char c)
{
    if (spate_json_peek(json) != c || json->at == json->end)
        return spate_json_fail(json, SPATE_JSON_SYNTAX,
                               c == '{'   ? "expected an object"
                               : c == '[' ? "expected an array"
                               : c == ':' ? "expected a colon"
                                          : "expected a comma or the end of the object");
    json->at++;
    return true;
}

bool spate_json_finish(struct spate_json *json)
{
    if (spate_json_peek(json) != 0 || json->at != json->end)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "something follows the end of the message");
    return json->why == NULL;
}

bool spate_json_field(struct spate_json *json, struct spate_slice *name)
{
    char c = spate_json_peek(json);

    if (c == '}') {
        json->at++;
        return false;
    }
    if (c != '"')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a field's name or the end of the object");
    return spate_json_string(json, name) && spate_json_take(json, ':');
}

bool spate_json_after(struct spate_json *json)
{
    char c = spate_json_peek(json);

    if (c == '}')
        return true;
    if (c != ',')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a comma or the end of the object");
    json->at++;
    if (spate_json_peek(json) != '"')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a field's name");
    return true;
}

bool spate_json_element(struct spate_json *json, bool *first)
{
    char c = spate_json_peek(json);

    if (c == ']') {
        json->at++;
        return false;
    }
    if (*first) {
        *first = false;
        if (c == 0)
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "the array does not end");
        return true;
    }
    if (c != ',')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a comma or the end of the array");
    json->at++;
    if (spate_json_peek(json) == ']')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected an element");
    return true;
}

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const char *at, const char *end)
{
    int32_t value = 0;

    if (4 > end - at)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = at[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;

        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Length of the escape at `at`, or 0 when JSON knows no such escape. */
static size_t escape(const char *at, const char *end)
{
    switch (at[1]) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        return 2;
    case 'u':
        return hex4(at + 2, end) < 0 ? 0 : 6;
    default:
        return 0;
    }
}

/* Moves over the string's content to its closing quote; *escaped: there is something to resolve. */
static bool string_end(struct spate_json *json, bool *escaped)
{
    const char *at = json->at, *end = json->end;
    const char *why = "the string does not end";
    enum spate_json_cause cause = SPATE_JSON_SYNTAX;

    *escaped = false;
    while ((at = spate_utf8_scan(at, end)) < end) {
        unsigned char c = (unsigned char)*at;

        if (c == '"') {
            json->at = at;
            return true;
        }
        if (c == 0x7f) {
            at++;
        } else if (c >= 0x80) {
            size_t len;

            while (at < end && (unsigned char)*at >= 0x80 && (len = spate_utf8_sequence(at, end)) != 0)
                at += len;
            if (at < end && (unsigned char)*at >= 0x80) {
                cause = SPATE_JSON_UTF8;
                why = "the string is not valid UTF-8";
                break;
            }
        } else if (c == '\\') {
            size_t len = 2 > end - at ? 0 : escape(at, end);

            if (len == 0) {
                why = 2 > end - at ? why : "the string has an escape that JSON does not know";
                break;
            }
            *escaped = true;
            at += len;
        } else {
            why = "the string has a bare control character";
            break;
        }
    }
    json->at = at;
    return spate_json_fail(json, cause, why);
}

bool spate_json_skip_string(struct spate_json *json)
{
    bool escaped;

    if (spate_json_peek(json) != '"')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a string");
    json->at++;
    if (!string_end(json, &escaped))
        return false;
    json->at++;
    return true;
}

static char *put_utf8(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 63));
        *to++ = (char)(0x80 | (code & 63));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 63));
        *to++ = (char)(0x80 | (code >> 6 & 63));
        *to++ = (char)(0x80 | (code & 63));
    }
    return to;
}

static char meaning(char letter)
{
    switch (letter) {
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        return letter; /* a quote, a slash, a backslash */
    }
}

/* Resolves the escapes of a string whose form string_end has checked. What comes out is never longer than
 * what went in. NULL: half of a surrogate pair, which is no character. */
static char *resolve(char *to, const char *at, const char *end)
{
    while (at < end) {
        const char *slash = memchr(at, '\\', (size_t)(end - at));
        size_t run = (size_t)((slash != NULL ? slash : end) - at);

        memcpy(to, at, run);
        to += run;
        if (slash == NULL)
            break;
        at = slash + 2;
        if (slash[1] != 'u') {
            *to++ = meaning(slash[1]);
        } else {
            uint32_t code = (uint32_t)hex4(at, end), low;

            at += 4;
            if (code >= 0xdc00 && code <= 0xdfff)
                return NULL;
            if (code >= 0xd800 && code <= 0xdbff) {
                if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
                    return NULL;
                low = (uint32_t)hex4(at + 2, end);
                if (low < 0xdc00 || low > 0xdfff)
                    return NULL;
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                at += 6;
            }
            to = put_utf8(to, code);
        }
    }
    return to;
}

bool spate_json_string(struct spate_json *json, struct spate_slice *out)
{
    const char *start;
    bool escaped;
    char *bytes, *end;

    if (spate_json_peek(json) != '"')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a string");
    start = ++json->at;
    if (!string_end(json, &escaped))
        return false;
    *out = spate_slice(start, (size_t)(json->at - start));
    if (escaped) {
        bytes = spate_arena_alloc(json->arena, out->len);
        end = resolve(bytes, start, json->at);
        if (end == NULL)
            return spate_json_fail(json, SPATE_JSON_UTF8, "the string has half of a surrogate pair");
        *out = spate_slice(bytes, (size_t)(end - bytes));
    }
    json->at++;
    return true;
}

bool spate_json_name(struct spate_json *json, struct spate_slice *out)
{
    return spate_json_string(json, out) &&
           (spate_json_unescape_name(out, json->arena) ||
            spate_json_fail(json, SPATE_JSON_SYNTAX, "expected base64 after $bytes:"));
}

/* A string of JSON text that is known to be a valid string, equal to `text` after resolving escapes? */
static bool spelled(struct spate_slice raw, const char *text)
{
    char resolved[64], *end;

    if (raw.len > sizeof(resolved))
        return false;
    end = resolve(resolved, raw.at, raw.at + raw.len);
    return end != NULL && spate_slice_is(spate_slice(resolved, (size_t)(end - resolved)), text);
}

bool spate_json_only_bytes(struct spate_slice raw, struct spate_slice *value)
{
    struct spate_json json = spate_json_over(raw, 0, NULL);
    const char *name;
    bool only = false;
    char c;

    spate_json_take(&json, '{');
    /* Cheap for all that are not: the first letter of the first key. */
    c = spate_json_peek(&json);
    if (c != '"' || (json.at[1] != '$' && json.at[1] != '\\'))
        return false;
    while (spate_json_peek(&json) == '"') {
        name = json.at + 1;
        if (!spate_json_skip_string(&json) ||
            !spelled(spate_slice(name, (size_t)(json.at - 1 - name)), "$bytes"))
            return false;
        if (!spate_json_take(&json, ':') || !spate_json_skip(&json, value) || !spate_json_after(&json))
            return false;
        only = true;
    }
    return only;
}

bool spate_json_text(struct spate_json *json, struct spate_slice *out)
{
    struct spate_slice raw, text;
    struct spate_json inner;
    size_t len;
    char *bytes;

    if (spate_json_peek(json) == '"')
        return spate_json_string(json, out);
    if (spate_json_peek(json) != '{')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a string");
    if (!spate_json_skip(json, &raw))
        return false;
    if (!spate_json_only_bytes(raw, &text))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a string or $bytes");
    inner = spate_json_over(text, 0, json->arena);
    if (!spate_json_string(&inner, &text))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected base64 in $bytes");
    bytes = spate_arena_alloc(json->arena, text.len / 4 * 3 + 1);
    if (!spate_base64_decode(text, bytes, &len))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected base64 in $bytes");
    *out = spate_slice(bytes, len);
    return true;
}
