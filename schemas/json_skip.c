/* Numbers and words, and whole values of any shape, without recursion. */

#include "schemas/json.h"

#include <string.h>

static bool word(struct spate_json *json, const char *text, size_t len)
{
    if (len > (size_t)(json->end - json->at) || memcmp(json->at, text, len) != 0)
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a value");
    json->at += len;
    return true;
}

bool spate_json_null(struct spate_json *json)
{
    if (spate_json_peek(json) != 'n')
        return false;
    return word(json, "null", 4);
}

bool spate_json_bool(struct spate_json *json, bool *out)
{
    char c = spate_json_peek(json);

    if (c != 't' && c != 'f')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected true or false");
    *out = c == 't';
    return c == 't' ? word(json, "true", 4) : word(json, "false", 5);
}

static bool digit(const struct spate_json *json)
{
    return json->at < json->end && *json->at >= '0' && *json->at <= '9';
}

static bool digits(struct spate_json *json)
{
    if (!digit(json))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a digit");
    while (digit(json))
        json->at++;
    return true;
}

static bool number(struct spate_json *json)
{
    if (*json->at == '-')
        json->at++;
    if (json->at < json->end && *json->at == '0')
        json->at++;
    else if (!digits(json))
        return false;
    if (json->at < json->end && *json->at == '.') {
        json->at++;
        if (!digits(json))
            return false;
    }
    if (json->at < json->end && (*json->at == 'e' || *json->at == 'E')) {
        json->at++;
        if (json->at < json->end && (*json->at == '+' || *json->at == '-'))
            json->at++;
        if (!digits(json))
            return false;
    }
    if (digit(json))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "the number has a leading zero");
    return true;
}

bool spate_json_u64(struct spate_json *json, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    const char *start;

    spate_json_peek(json);
    start = json->at;
    while (digit(json)) {
        unsigned next = (unsigned)(*json->at - '0');

        if (value > (max - next) / 10 || next > max)
            return spate_json_fail(json, SPATE_JSON_SYNTAX, "the number is too large");
        value = value * 10 + next;
        json->at++;
    }
    if (json->at == start || (*start == '0' && json->at - start > 1) ||
        (json->at < json->end && (*json->at == '.' || *json->at == 'e' || *json->at == 'E')))
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a whole number");
    *out = value;
    return true;
}

bool spate_json_i32(struct spate_json *json, int32_t *out)
{
    bool minus = spate_json_peek(json) == '-';
    uint64_t value;

    if (minus)
        json->at++;
    if (!spate_json_u64(json, minus ? (uint64_t)INT32_MAX + 1 : (uint64_t)INT32_MAX, &value))
        return false;
    *out = (int32_t)(minus ? -(int64_t)value : (int64_t)value);
    return true;
}

static bool scalar(struct spate_json *json, char c)
{
    switch (c) {
    case '"':
        return spate_json_skip_string(json);
    case 't':
        return word(json, "true", 4);
    case 'f':
        return word(json, "false", 5);
    case 'n':
        return word(json, "null", 4);
    default:
        if (c == '-' || (c >= '0' && c <= '9'))
            return number(json);
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a value");
    }
}

static bool key(struct spate_json *json)
{
    if (spate_json_peek(json) != '"')
        return spate_json_fail(json, SPATE_JSON_SYNTAX, "expected a field's name");
    return spate_json_skip_string(json) && spate_json_take(json, ':');
}

/* One bit for each open bracket, set where it is an object's. */
struct brackets {
    uint64_t object[SPATE_JSON_DEPTH / 64];
    size_t depth;
};

static bool open_bracket(struct spate_json *json, struct brackets *open, bool object)
{
    uint64_t bit = UINT64_C(1) << (open->depth % 64), *bits = &open->object[open->depth / 64];

    if (open->depth == SPATE_JSON_DEPTH)
        return spate_json_fail(json, SPATE_JSON_DEEP, "the value is nested too deeply");
    *bits = object ? *bits | bit : *bits & ~bit;
    open->depth++;
    json->at++;
    return true;
}

/* After a value: closes what closes here, or moves to the next element. *done: the outermost value is
 * complete. */
static bool close_brackets(struct spate_json *json, struct brackets *open, bool *done)
{
    while (open->depth > 0) {
        size_t top = open->depth - 1;
        bool object = (open->object[top / 64] >> (top % 64) & 1) != 0;
        char c = spate_json_peek(json);

        if (c == ',') {
            json->at++;
            return object ? key(json) : true;
        }
        if (c != (object ? '}' : ']'))
            return spate_json_fail(json, SPATE_JSON_SYNTAX,
                                   object ? "expected a comma or the end of the object"
                                          : "expected a comma or the end of the array");
        json->at++;
        open->depth--;
    }
    *done = true;
    return true;
}

bool spate_json_skip(struct spate_json *json, struct spate_slice *raw)
{
    struct brackets open = {.depth = 0};
    bool done = false;
    const char *start;

    spate_json_peek(json);
    start = json->at;
    while (!done) {
        char c = spate_json_peek(json);
        bool object = c == '{';

        if (object || c == '[') {
            if (!open_bracket(json, &open, object))
                return false;
            if (spate_json_peek(json) != (object ? '}' : ']')) {
                if (object && !key(json))
                    return false;
                continue; /* at the first element */
            }
        } else if (!scalar(json, c)) {
            return false;
        }
        if (!close_brackets(json, &open, &done))
            return false;
    }
    if (raw != NULL)
        *raw = spate_slice(start, (size_t)(json->at - start));
    return true;
}
