/* The value rule: a number only where every reader holds it exactly, else Postgres' own text. A text that is
 * not of its class (which Postgres never sends) travels as the string that it is. */

#include "schemas/encode.h"

#include "schemas/json.h"

/* Within +-(2^53-1), in the one way Postgres prints it: no sign but minus, no leading zero, no -0. */
static bool is_safe_integer(struct spate_slice text)
{
    static const uint64_t limit = (UINT64_C(1) << 53) - 1;
    bool minus = text.len > 0 && text.at[0] == '-';
    size_t digits = text.len - minus;
    uint64_t value = 0;

    if (digits == 0 || digits > 16)
        return false;
    for (size_t i = minus; i < text.len; i++) {
        unsigned digit = (unsigned)(unsigned char)text.at[i] - '0';

        if (digit > 9)
            return false;
        value = value * 10 + digit;
    }
    return value <= limit && (text.at[minus] != '0' || (digits == 1 && !minus));
}

static void put_float(struct spate_buf *out, struct spate_slice text)
{
    struct spate_json json = spate_json_over(text, 0, NULL);
    char c = text.len > 0 ? text.at[0] : 0;

    /* NaN, Infinity and -Infinity are no JSON (P80). -0 is, but readers that keep whole numbers apart from
     * floating ones lose its sign, so it is spelled -0.0, which Postgres never prints. */
    if ((c != '-' && (c < '0' || c > '9')) || !spate_json_skip(&json, NULL) || json.at != json.end ||
        spate_slice_is(text, "-0.0"))
        spate_json_put_text(out, text);
    else if (text.len == 2 && text.at[0] == '-' && text.at[1] == '0')
        SPATE_JSON_ADD(out, "-0.0");
    else
        spate_buf_slice(out, text);
}

/* False: the text is no JSON at all. */
static bool put_jsonb(struct spate_buf *out, struct spate_slice text, const char **why)
{
    struct spate_json json = spate_json_over(text, 0, NULL);
    struct spate_slice raw = {0};
    char first = spate_json_peek(&json);
    bool whole = spate_json_skip(&json, &raw) && spate_json_finish(&json);

    if (!whole && json.cause == SPATE_JSON_SYNTAX) {
        *why = json.why;
        return false;
    }
    /* As a string: scalars; bytes that are no UTF-8 and depths that ask too much of a reader; a line break,
     * which Postgres never prints, between the values, or blanks around them; what a reader would take for
     * bytes. */
    if (!whole || json.breaks || raw.len != text.len || (first != '{' && first != '[') ||
        (first == '{' && spate_json_only_bytes(raw, &raw)))
        spate_json_put_text(out, text);
    else
        spate_buf_slice(out, text);
    return true;
}

bool spate_encode_value(struct spate_buf *out, const struct spate_column *column,
                        const struct spate_value *value, const char **why)
{
    struct spate_slice text = value->text;

    if (value->kind == SPATE_VALUE_NULL) {
        SPATE_JSON_ADD(out, "null");
        return true;
    }
    switch (column->json_class) {
    case SPATE_CLASS_INT:
    case SPATE_CLASS_INT8:
        if (!is_safe_integer(text))
            break;
        spate_buf_slice(out, text);
        return true;
    case SPATE_CLASS_FLOAT:
        put_float(out, text);
        return true;
    case SPATE_CLASS_BOOL:
        if (text.len != 1 || (text.at[0] != 't' && text.at[0] != 'f'))
            break;
        if (text.at[0] == 't')
            SPATE_JSON_ADD(out, "true");
        else
            SPATE_JSON_ADD(out, "false");
        return true;
    case SPATE_CLASS_JSONB:
        return put_jsonb(out, text, why);
    case SPATE_CLASS_TEXT:
        break;
    }
    spate_json_put_text(out, text);
    return true;
}
