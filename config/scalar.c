/* config/scalar.c - numbers with units, choices and plain text, both ways. */
#include "config/scalar.h"

#include "core/alloc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *name;
    int64_t factor;
};

/* Greatest first, so that formatting finds the greatest unit that divides. */
static const struct unit durations[] = {
    {"d", 86400000}, {"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}};
static const struct unit sizes[] = {{"TiB", INT64_C(1) << 40},
                                    {"GiB", INT64_C(1) << 30},
                                    {"MiB", INT64_C(1) << 20},
                                    {"KiB", INT64_C(1) << 10},
                                    {"B", 1}};

static bool within(const struct spate_option *option, int64_t value)
{
    if (option->min == 0 && option->max == 0)
        return value >= 0;
    return value >= option->min && value <= option->max;
}

/* Digits, then one of the units. `bare`: the factor of a number without a unit, 0 when it needs one - a zero
 * never does. */
static bool parse_number(const char *text, const struct unit *units, size_t count, int64_t bare, int64_t *out)
{
    char *end;
    long long number;

    if (*text != '-' && (*text < '0' || *text > '9'))
        return false; /* strtoll would take blanks and a plus */
    errno = 0;
    number = strtoll(text, &end, 10);
    if (errno != 0 || end == text)
        return false;
    if (*end == '\0') {
        if (bare == 0 && number != 0)
            return false;
        return !__builtin_mul_overflow((int64_t)number, bare, out);
    }
    for (size_t i = 0; i < count; i++)
        if (strcmp(end, units[i].name) == 0)
            return !__builtin_mul_overflow((int64_t)number, units[i].factor, out);
    return false;
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on"}, *const no[] = {"false", "no", "off"};

    for (size_t i = 0; i < SPATE_COUNT(yes); i++) {
        if (strcmp(text, yes[i]) == 0)
            return *out = true, true;
        if (strcmp(text, no[i]) == 0)
            return *out = false, true;
    }
    return false;
}

static bool parse_integer(const struct spate_option *option, const char *text, int64_t *member)
{
    int64_t value;
    bool right = false;

    if (option->type == SPATE_OPT_INT)
        right = parse_number(text, NULL, 0, 1, &value);
    else if (option->type == SPATE_OPT_DURATION)
        right = parse_number(text, durations, SPATE_COUNT(durations), 0, &value);
    else
        right = parse_number(text, sizes, SPATE_COUNT(sizes), 1, &value);
    if (!right || !within(option, value))
        return false;
    *member = value;
    return true;
}

bool spate_scalar_parse(const struct spate_option *option, const char *text, void *member)
{
    switch (option->type) {
    case SPATE_OPT_STRING:
        if (*text == '\0')
            return false;
        free(*(char **)member);
        *(char **)member = spate_strdup(text);
        return true;
    case SPATE_OPT_BOOL:
        return parse_bool(text, member);
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
        return parse_integer(option, text, member);
    case SPATE_OPT_ENUM:
        for (int i = 0; option->choices[i]; i++)
            if (strcmp(text, option->choices[i]) == 0) {
                *(int *)member = i;
                return true;
            }
        return false;
    case SPATE_OPT_LIST:
    case SPATE_OPT_MAP:
    case SPATE_OPT_LISTS:
    case SPATE_OPT_MAPS:
    case SPATE_OPT_GROUP:
        break; /* these are no scalars */
    }
    return false;
}

static void list_fallback(const char *text, struct spate_strings *list)
{
    while (*text) {
        size_t len = strcspn(text, ",");

        list->at = spate_realloc(list->at, (list->count + 1) * sizeof(*list->at));
        list->line = spate_realloc(list->line, (list->count + 1) * sizeof(*list->line));
        list->at[list->count] = spate_strndup(text, len);
        list->line[list->count++] = 0;
        text += len;
        text += strspn(text, ", ");
    }
}

void spate_scalar_fallback(const struct spate_option *option, void *member)
{
    if (!option->fallback)
        return;
    if (option->type == SPATE_OPT_LIST)
        list_fallback(option->fallback, member);
    else if (!spate_scalar_parse(option, option->fallback, member))
        abort(); /* the table itself is wrong: cli_tables_test catches it */
}

static void format_units(int64_t value, const struct unit *units, size_t count, struct spate_buf *out)
{
    if (value == 0) {
        spate_buf_putc(out, '0');
        return;
    }
    for (size_t i = 0; i < count; i++)
        if (value % units[i].factor == 0) {
            spate_buf_printf(out, "%" PRId64 "%s", value / units[i].factor, units[i].name);
            return;
        }
}

static void format_number(const struct spate_option *option, int64_t value, struct spate_buf *out)
{
    if (option->type == SPATE_OPT_DURATION)
        format_units(value, durations, SPATE_COUNT(durations), out);
    else if (option->type == SPATE_OPT_BYTES)
        format_units(value, sizes, SPATE_COUNT(sizes), out);
    else
        spate_buf_printf(out, "%" PRId64, value);
}

bool spate_scalar_format(const struct spate_option *option, const void *member, struct spate_buf *out)
{
    switch (option->type) {
    case SPATE_OPT_STRING:
        if (!*(char *const *)member)
            return false;
        spate_buf_puts(out, *(char *const *)member);
        return true;
    case SPATE_OPT_BOOL:
        spate_buf_puts(out, *(const bool *)member ? "true" : "false");
        return true;
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
        format_number(option, *(const int64_t *)member, out);
        return true;
    case SPATE_OPT_ENUM:
        spate_buf_puts(out, option->choices[*(const int *)member]);
        return true;
    case SPATE_OPT_LIST:
    case SPATE_OPT_MAP:
    case SPATE_OPT_LISTS:
    case SPATE_OPT_MAPS:
    case SPATE_OPT_GROUP:
        break;
    }
    return false;
}

void spate_scalar_expected(const struct spate_option *option, struct spate_buf *out)
{
    static const char *const words[] = {
        [SPATE_OPT_STRING] = "a text",
        [SPATE_OPT_BOOL] = "true or false",
        [SPATE_OPT_INT] = "a whole number",
        [SPATE_OPT_DURATION] = "a duration such as 500ms, 10s or 2m",
        [SPATE_OPT_BYTES] = "a size such as 64MiB or 1GiB",
        [SPATE_OPT_ENUM] = "one of ",
        [SPATE_OPT_LIST] = "a list of texts",
        [SPATE_OPT_MAP] = "a mapping of names to texts",
        [SPATE_OPT_LISTS] = "a mapping of names to lists of texts",
        [SPATE_OPT_MAPS] = "a mapping of names to mappings of names to texts",
        [SPATE_OPT_GROUP] = "a mapping of names to settings",
    };

    spate_buf_puts(out, words[option->type]);
    if (option->type == SPATE_OPT_ENUM)
        for (int i = 0; option->choices[i]; i++)
            spate_buf_printf(out, "%s%s", i ? ", " : "", option->choices[i]);
    if ((option->min != 0 || option->max != 0) &&
        (option->type == SPATE_OPT_INT || option->type == SPATE_OPT_DURATION ||
         option->type == SPATE_OPT_BYTES)) {
        spate_buf_puts(out, ", from ");
        format_number(option, option->min, out);
        spate_buf_puts(out, " to ");
        format_number(option, option->max, out);
    }
}
