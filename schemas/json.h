/* schemas/json.h - the pieces of JSON that the codec is made of: a pull reader over one line, and a writer.
 *
 * Internal to schemas/. Pure functions. The reader's failure is sticky: after the first one every call
 * returns false and consumes nothing, so a caller may read a whole message and look at `why` once. It never
 * reads beyond `end`, never recurses, and allocates only where an escape has to be resolved (in the arena).
 */
#ifndef SPATE_SCHEMAS_JSON_H
#define SPATE_SCHEMAS_JSON_H

#include "core/arena.h"
#include "core/buf.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Arrays and objects inside one value. A jsonb text that is nested deeper travels as a string, so that no
 * reader needs a deep stack for our lines. */
#define SPATE_JSON_DEPTH 512

enum spate_json_cause {
    SPATE_JSON_FINE = 0,
    SPATE_JSON_SYNTAX, /* no JSON, cut short, or not what the message has there */
    SPATE_JSON_UTF8,   /* a string that is not valid UTF-8 */
    SPATE_JSON_DEEP    /* nested beyond SPATE_JSON_DEPTH */
};

struct spate_json {
    const char *start, *at, *end;
    struct spate_arena *arena; /* for strings with escapes; may be NULL for a reader that only skips */
    enum spate_json_cause cause;
    const char *why;   /* the first failure, NULL while there is none */
    size_t where;      /* its byte offset from start */
    const char *field; /* set by the codec: the field being read, for the error */
    bool breaks;       /* skipped white space other than a blank: it would break a line */
};

static inline struct spate_json spate_json_over(struct spate_slice text, size_t offset,
                                                struct spate_arena *arena)
{
    struct spate_json json = {.start = text.at, .at = text.at, .end = text.at, .arena = arena};

    if (text.len != 0) {
        json.end = text.at + text.len;
        json.at = text.at + (offset < text.len ? offset : text.len);
    }
    return json;
}

/* Remembers the first failure, at the byte where the reader stands. Returns false. */
bool spate_json_fail(struct spate_json *json, enum spate_json_cause cause, const char *why);

/* The next byte that is not white space, not consumed; 0 at the end and after a failure. */
char spate_json_peek_far(struct spate_json *json); /* the same where white space may stand */
static inline char spate_json_peek(struct spate_json *json)
{
    if (json->at < json->end && (unsigned char)*json->at > ' ')
        return *json->at;
    return spate_json_peek_far(json);
}
bool spate_json_take(struct spate_json *json, char c); /* consumes exactly c, after white space */
bool spate_json_finish(struct spate_json *json);       /* nothing but white space is left */

/* Inside an object the reader stands at a name or at the closing brace.
 *   _field: at a name: consumes it with its colon, returns true; at '}': consumes that, returns false.
 *   _after: after a value: consumes the comma before the next name, or stays at the '}'. */
bool spate_json_field(struct spate_json *json, struct spate_slice *name);
bool spate_json_after(struct spate_json *json);
/* Inside an array: true when an element follows, false after consuming ']'. *first is true on the first call.
 */
bool spate_json_element(struct spate_json *json, bool *first);

/* A string: borrows from the line, or from the arena when it had escapes. */
bool spate_json_string(struct spate_json *json, struct spate_slice *out);
/* A whole number without sign, up to max. */
bool spate_json_u64(struct spate_json *json, uint64_t max, uint64_t *out);
bool spate_json_i32(struct spate_json *json, int32_t *out);
bool spate_json_bool(struct spate_json *json, bool *out);
bool spate_json_null(struct spate_json *json); /* consumes null if it is there; not a failure if it is not */
/* Any value, whole; *raw (may be NULL) is its text as it stands. */
bool spate_json_skip(struct spate_json *json, struct spate_slice *raw);
/* One string with nothing resolved: consumes it and checks its bytes and escapes. */
bool spate_json_skip_string(struct spate_json *json);

/* `raw` is a valid object. True when its only key is "$bytes", in whatever spelling; *value is then what it
 * holds. */
bool spate_json_only_bytes(struct spate_slice raw, struct spate_slice *value);

/* Writers append to out. */
void spate_json_put_u64(struct spate_buf *out, uint64_t value);
void spate_json_put_i32(struct spate_buf *out, int32_t value);
/* A quoted string; false, with nothing appended, when the text is not valid UTF-8. */
bool spate_json_put_string(struct spate_buf *out, struct spate_slice text);
/* A value's text: a string, or {"$bytes":"<base64>"} when it is not valid UTF-8. */
void spate_json_put_text(struct spate_buf *out, struct spate_slice text);
/* What must be a string (names of things). Bytes that are not valid UTF-8, and names that begin with $bytes:,
 * travel as "$bytes:<base64>": reversible, and two names never become one (P85). */
void spate_json_put_name(struct spate_buf *out, struct spate_slice name);
/* The other direction: a string that was put by _put_name. */
bool spate_json_name(struct spate_json *json, struct spate_slice *out);
/* Undoes _put_name's escape in an unescaped string. False: "$bytes:" with no base64 behind it. */
bool spate_json_unescape_name(struct spate_slice *name, struct spate_arena *arena);
/* The other direction of _put_text, for a string or a $bytes object. */
bool spate_json_text(struct spate_json *json, struct spate_slice *out);

#define SPATE_JSON_ADD(out, literal) spate_buf_add((out), (literal), sizeof(literal) - 1)

#endif
