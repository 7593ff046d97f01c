/* config/print.c - the effective settings as YAML, with nothing secret in it. */
#include "config/keys.h"
#include "config/load.h"
#include "config/scalar.h"
#include "core/alloc.h"

#include <ctype.h>
#include <stdint.h>
#include <string.h>

struct printer {
    struct spate_buf *out;
    struct spate_keys keys;
    const char *level;
    const char *from;
    size_t depth;
};

static void print_level(struct spate_buf *out, const struct spate_keys *keys, const char *level,
                        const void *from, size_t depth);

static void indent(struct spate_buf *out, size_t depth)
{
    for (size_t i = 0; i < depth * 2; i++)
        spate_buf_putc(out, ' ');
}

/* The character at str and its length in bytes. A byte that is no UTF-8 stands for itself. */
static uint32_t character(const char *str, size_t *len)
{
    const unsigned char *byte = (const unsigned char *)str;
    size_t more = byte[0] >= 0xF0 ? 3 : byte[0] >= 0xE0 ? 2 : byte[0] >= 0xC0 ? 1 : 0;
    uint32_t c = more == 3   ? byte[0] & 0x07u
                 : more == 2 ? byte[0] & 0x0Fu
                 : more == 1 ? byte[0] & 0x1Fu
                             : byte[0];

    *len = 1;
    for (size_t i = 1; i <= more; i++, *len = i) {
        if ((byte[i] & 0xC0) != 0x80) {
            *len = 1;
            return byte[0];
        }
        c = c << 6 | (byte[i] & 0x3Fu);
    }
    return c;
}

/* Would YAML take the character for a line's end, or refuse it, when it stood there unescaped? */
static bool needs_escape(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029 || c == 0xFEFF ||
           (c >= 0xFFFE && c < 0x10000);
}

/* Always in double quotes: no text can then be taken for something else. */
static void text(struct spate_buf *out, const char *str)
{
    size_t len;

    spate_buf_putc(out, '"');
    for (; *str; str += len) {
        uint32_t c = character(str, &len);

        if (c == '"' || c == '\\')
            spate_buf_printf(out, "\\%c", (int)c);
        else if (needs_escape(c))
            spate_buf_printf(out, "\\u%04x", c);
        else
            spate_buf_add(out, str, len);
    }
    spate_buf_putc(out, '"');
}

static void print_string(const struct printer *printer, const struct spate_option *option, const char *str)
{
    struct spate_buf masked = {0};

    if (option->flags & SPATE_OPT_SECRET)
        spate_buf_puts(&masked, "***");
    else if (option->flags & SPATE_OPT_URL)
        spate_config_mask_url(&masked, str);
    else
        spate_buf_puts(&masked, str);
    text(printer->out, spate_buf_str(&masked));
    spate_buf_fini(&masked);
}

static void print_list(const struct printer *printer, const struct spate_strings *list)
{
    spate_buf_puts(printer->out, " [");
    for (size_t i = 0; i < list->count; i++) {
        spate_buf_puts(printer->out, i ? ", " : "");
        text(printer->out, list->at[i]);
    }
    spate_buf_puts(printer->out, "]");
}

static void print_map(const struct printer *printer, const struct spate_option *option,
                      const struct spate_pairs *pairs)
{
    if (pairs->count == 0)
        spate_buf_puts(printer->out, " {}");
    for (size_t i = 0; i < pairs->count; i++) {
        spate_buf_putc(printer->out, '\n');
        indent(printer->out, printer->depth + 1);
        text(printer->out, pairs->at[i].key);
        spate_buf_puts(printer->out, ": ");
        text(printer->out, option->flags & SPATE_OPT_SECRET && spate_secret_name(pairs->at[i].key)
                               ? "***"
                               : pairs->at[i].value);
    }
}

static void print_lists(const struct printer *printer, const struct spate_lists *lists)
{
    if (lists->count == 0)
        spate_buf_puts(printer->out, " {}");
    for (size_t i = 0; i < lists->count; i++) {
        spate_buf_putc(printer->out, '\n');
        indent(printer->out, printer->depth + 1);
        text(printer->out, lists->at[i].key);
        spate_buf_putc(printer->out, ':');
        print_list(printer, &lists->at[i].list);
    }
}

static void print_maps(const struct printer *printer, const struct spate_option *option,
                       const struct spate_maps *maps)
{
    struct printer deeper = *printer;

    deeper.depth++;
    if (maps->count == 0)
        spate_buf_puts(printer->out, " {}");
    for (size_t i = 0; i < maps->count; i++) {
        spate_buf_putc(printer->out, '\n');
        indent(printer->out, printer->depth + 1);
        text(printer->out, maps->at[i].key);
        spate_buf_putc(printer->out, ':');
        print_map(&deeper, option, &maps->at[i].map);
    }
}

static void print_group(const struct printer *printer, const struct spate_option *option,
                        const struct spate_group *group)
{
    const struct spate_option_table table = {
        .prefix = "", .options = option->group->options, .count = option->group->count};
    const struct spate_keys keys = {&table, 1};

    if (group->count == 0)
        spate_buf_puts(printer->out, " {}");
    for (size_t i = 0; i < group->count; i++) {
        const char *element = (const char *)group->at + i * option->group->size;

        spate_buf_putc(printer->out, '\n');
        indent(printer->out, printer->depth + 1);
        text(printer->out, ((const struct spate_group_item *)(const void *)element)->name);
        spate_buf_putc(printer->out, ':');
        print_level(printer->out, &keys, "", element, printer->depth + 2);
    }
}

static void print_value(const struct printer *printer, const struct spate_option *option, const void *member)
{
    switch (option->type) {
    case SPATE_OPT_STRING:
        spate_buf_putc(printer->out, ' ');
        print_string(printer, option, *(char *const *)member);
        break;
    case SPATE_OPT_LIST:
        print_list(printer, member);
        break;
    case SPATE_OPT_MAP:
        print_map(printer, option, member);
        break;
    case SPATE_OPT_LISTS:
        print_lists(printer, member);
        break;
    case SPATE_OPT_MAPS:
        print_maps(printer, option, member);
        break;
    case SPATE_OPT_GROUP:
        print_group(printer, option, member);
        break;
    case SPATE_OPT_BOOL:
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
    case SPATE_OPT_ENUM:
        spate_buf_putc(printer->out, ' ');
        spate_scalar_format(option, member, printer->out);
        break;
    }
}

/* What is unset and has no default is left out: its absence is its value. */
static bool is_unset(const struct spate_option *option, const void *member)
{
    switch (option->type) {
    case SPATE_OPT_STRING:
        return !*(char *const *)member;
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
        return !option->fallback && option->min > 0 && *(const int64_t *)member == 0;
    default:
        return false;
    }
}

static bool print_child(void *arg, const struct spate_key *key)
{
    const struct printer *printer = arg;
    struct spate_buf deeper = {0}, below = {0};
    const void *member = printer->from + key->offset;

    if (key->option && is_unset(key->option, member))
        return true;
    if (!key->option) {
        spate_buf_printf(&deeper, "%s%s%.*s", printer->level, *printer->level ? "." : "",
                         SPATE_SLICE_ARG(key->name));
        print_level(&below, &printer->keys, spate_buf_str(&deeper), printer->from, printer->depth + 1);
        spate_buf_fini(&deeper);
        if (below.len == 0) /* a mapping of nothing would be none */
            return true;
    }
    spate_buf_putc(printer->out, '\n');
    indent(printer->out, printer->depth);
    spate_buf_slice(printer->out, key->name);
    spate_buf_putc(printer->out, ':');
    if (key->option) {
        print_value(printer, key->option, member);
        return true;
    }
    spate_buf_slice(printer->out, spate_buf_view(&below));
    spate_buf_fini(&below);
    return true;
}

static void print_level(struct spate_buf *out, const struct spate_keys *keys, const char *level,
                        const void *from, size_t depth)
{
    struct printer printer = {.out = out, .keys = *keys, .level = level, .from = from, .depth = depth};

    spate_keys_children(keys, level, print_child, &printer);
}

void spate_config_print(struct spate_buf *out, const struct spate_option_table *tables, size_t count,
                        const void *from)
{
    const struct spate_keys keys = {tables, count};
    struct spate_buf lines = {0};

    print_level(&lines, &keys, "", from, 0);
    if (lines.len > 0) /* every line began with its newline */
        spate_buf_add(out, lines.data + 1, lines.len - 1);
    spate_buf_putc(out, '\n');
    spate_buf_fini(&lines);
}

/* --- passwords in urls --------------------------------------------------------------------------------- */

static bool is_password_key(const char *at, size_t len)
{
    static const char *const keys[] = {"password", "sslpassword", "oauth_client_secret", "scram_client_key",
                                       "scram_server_key"};

    for (size_t i = 0; i < SPATE_COUNT(keys); i++)
        if (spate_slice_is(spate_slice(at, len), keys[i]))
            return true;
    return false;
}

/* scheme://user:PASSWORD@host/db?password=PASSWORD */
static void mask_uri(struct spate_buf *out, const char *url, const char *rest)
{
    const char *colon = strchr(rest, ':');
    const char *at = strrchr(rest, '@');
    const char *query;

    /* Wherever the @ stands: somebody may have forgotten to percent-encode a slash of the name or the
     * password. Rather too much is hidden than too little. */
    if (at && colon && colon < at) {
        spate_buf_add(out, url, (size_t)(colon + 1 - url));
        spate_buf_puts(out, "***");
        url = at;
        rest = at;
    }
    query = strchr(rest, '?');
    if (!query) {
        spate_buf_puts(out, url);
        return;
    }
    spate_buf_add(out, url, (size_t)(query + 1 - url));
    for (query++; *query;) {
        size_t len = strcspn(query, "&"), key = strcspn(query, "=&");

        if (is_password_key(query, key) && key < len) {
            spate_buf_add(out, query, key + 1);
            spate_buf_puts(out, "***");
        } else {
            spate_buf_add(out, query, len);
        }
        query += len;
        if (*query)
            spate_buf_putc(out, *query++);
    }
}

/* The length of a conninfo value at `at`: quoted with backslash escapes, or up to the next blank. */
static size_t value_len(const char *at)
{
    size_t len = 0;
    bool quote = *at == '\'';

    for (len = quote; at[len]; len++) {
        if (at[len] == '\\' && at[len + 1])
            len++;
        else if (quote ? at[len] == '\'' : isspace((unsigned char)at[len]))
            return len + quote;
    }
    return len;
}

void spate_config_mask_url(struct spate_buf *out, const char *url)
{
    const char *scheme = strstr(url, "://");

    if (scheme && (strncmp(url, "postgres://", 11) == 0 || strncmp(url, "postgresql://", 13) == 0)) {
        mask_uri(out, url, scheme + 3);
        return;
    }
    while (*url) {
        size_t blank = strspn(url, " \t\r\n");
        size_t key, gap;

        spate_buf_add(out, url, blank);
        url += blank;
        key = strcspn(url, "= \t\r\n");
        gap = strspn(url + key, "= \t\r\n");
        spate_buf_add(out, url, key + gap);
        if (gap > 0 && memchr(url + key, '=', gap)) {
            size_t len = value_len(url + key + gap);

            if (is_password_key(url, key))
                spate_buf_puts(out, "***");
            else
                spate_buf_add(out, url + key + gap, len);
            url += len;
        }
        url += key + gap;
    }
}
