/* core/glob.c - table globs. Names are compared byte by byte as the database holds them: nothing is folded to
 * lower case, so that what a message says can be pasted into a glob. */
#include "core/glob.h"

#include "core/alloc.h"

#include <stdint.h>
#include <stdlib.h>

enum { ANY_ONE = 256, ANY_RUN = 257 }; /* beside the 256 literal bytes */

struct part {
    uint16_t *code; /* owned: a byte, ANY_ONE or ANY_RUN each */
    size_t len;
};

struct spate_glob {
    struct part schema, table;
    bool exact;
};

static enum spate_rc malformed(struct spate_err *err, const char *pattern, const char *why)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(
        err, SPATE_FATAL,
        "table pattern '%s': %s; expected schema.table with * and ?, each part in double quotes "
        "where it has dots",
        pattern, why);
}

/* Reads one part at *at and leaves *at behind it. Returns why it cannot, or NULL. */
static const char *part_read(const char **at, struct part *part)
{
    const char *p = *at;

    part->code = spate_alloc((strlen(p) + 1) * sizeof(*part->code));
    if (*p == '"') {
        for (p++; *p != '"' || p[1] == '"'; p++) {
            if (*p == '\0')
                return "the quote is not closed";
            if (*p == '"')
                p++; /* "" is one quote */
            part->code[part->len++] = (unsigned char)*p;
        }
        p++;
        if (*p != '\0' && *p != '.')
            return "something follows the closing quote";
    } else {
        for (; *p != '\0' && *p != '.'; p++) {
            if (*p == '"')
                return "a quote stands in the middle of a name";
            part->code[part->len++] = *p == '*' ? ANY_RUN : *p == '?' ? ANY_ONE : (unsigned char)*p;
        }
    }
    *at = p;
    return part->len == 0 ? "a name is empty" : NULL;
}

static bool part_exact(const struct part *part)
{
    for (size_t i = 0; i < part->len; i++)
        if (part->code[i] >= ANY_ONE)
            return false;
    return true;
}

enum spate_rc spate_glob_new(const char *pattern, struct spate_glob **glob, struct spate_err *err)
{
    struct spate_glob *new = spate_zalloc(sizeof(*new));
    const char *at = pattern;
    const char *why = part_read(&at, &new->table);

    *glob = NULL;
    if (!why && *at == '.') {
        at++;
        new->schema = new->table;
        new->table = (struct part){0};
        why = part_read(&at, &new->table);
        if (!why && *at != '\0')
            why = "there are more than two parts";
    }
    if (why) {
        spate_glob_free(new);
        return malformed(err, pattern, why);
    }
    new->exact = new->schema.code &&part_exact(&new->schema) && part_exact(&new->table);
    *glob = new;
    return SPATE_OK;
}

/* One character, not one byte: behind its first byte come the continuation bytes of UTF-8. */
static size_t character(struct spate_slice s, size_t at)
{
    size_t end = at + 1;

    while (end < s.len && ((unsigned char)s.at[end] & 0xC0) == 0x80)
        end++;
    return end;
}

static bool part_match(const struct part *part, struct spate_slice name)
{
    size_t i = 0, at = 0;
    size_t star = SIZE_MAX, star_at = 0; /* the last * met, and how far it reaches so far */

    while (at < name.len) {
        if (i < part->len && part->code[i] == ANY_RUN) {
            star = i++;
            star_at = at;
        } else if (i < part->len && part->code[i] == ANY_ONE) {
            i++;
            at = character(name, at);
        } else if (i < part->len && part->code[i] == (unsigned char)name.at[at]) {
            i++;
            at++;
        } else if (star != SIZE_MAX) {
            i = star + 1;
            at = star_at = character(name, star_at);
        } else {
            return false;
        }
    }
    while (i < part->len && part->code[i] == ANY_RUN)
        i++;
    return i == part->len;
}

bool spate_glob_match(const struct spate_glob *glob, struct spate_slice schema, struct spate_slice table)
{
    if (glob->schema.code && !part_match(&glob->schema, schema))
        return false;
    return part_match(&glob->table, table);
}

bool spate_glob_exact(const struct spate_glob *glob)
{
    return glob->exact;
}

void spate_glob_free(struct spate_glob *glob)
{
    if (!glob)
        return;
    free(glob->schema.code);
    free(glob->table.code);
    free(glob);
}
