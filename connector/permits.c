/* connector/permits.c - requester globs, lists of table globs, hours of the day. */
#include "connector/permits.h"

#include "core/alloc.h"
#include "core/glob.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY_MIN (24 * 60)

/* A requester's name has no parts as a table's has: * and ? over the whole of it. */
static bool name_matches(const char *pattern, struct spate_slice name)
{
    const char *star = NULL;
    size_t at = 0, back = 0;

    while (at < name.len) {
        if (*pattern == '*') {
            star = ++pattern;
            back = at;
        } else if (*pattern != '\0' && (*pattern == '?' || *pattern == name.at[at])) {
            pattern++;
            at++;
        } else if (star) {
            pattern = star;
            at = ++back;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

/* The next glob of a list with commas; one in double quotes belongs to a name. *at moves behind it. NULL: no
 * more. The caller frees it. */
static char *next_glob(const char **at)
{
    const char *from = *at + strspn(*at, ", \t"), *end;
    bool quoted = false;

    for (end = from; *end != '\0' && (quoted || *end != ','); end++)
        if (*end == '"')
            quoted = !quoted;
    *at = end;
    while (end > from && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    return end == from ? NULL : spate_strndup(from, (size_t)(end - from));
}

/* Minutes since midnight, or -1. 24:00 is a day's end. */
static int read_minute(const char **at)
{
    const char *s = *at;
    int hour, minute;

    for (int i = 0; i < 5; i++)
        if (i == 2 ? s[i] != ':' : s[i] < '0' || s[i] > '9')
            return -1;
    hour = (s[0] - '0') * 10 + s[1] - '0';
    minute = (s[3] - '0') * 10 + s[4] - '0';
    *at = s + 5;
    return minute > 59 || hour > 24 || (hour == 24 && minute > 0) ? -1 : hour * 60 + minute;
}

static bool read_hours(const char *text, int *from, int *to)
{
    *from = read_minute(&text);
    if (*from < 0 || *text++ != '-')
        return false;
    *to = read_minute(&text);
    return *to >= 0 && *text == '\0' && *from % DAY_MIN != *to % DAY_MIN;
}

static enum spate_rc check_globs(const struct spate_pair *pair, struct spate_err *err)
{
    const char *at = pair->value;
    size_t count = 0;
    char *text;

    while ((text = next_glob(&at)) != NULL) {
        struct spate_glob *glob = NULL;
        enum spate_rc rc = spate_glob_new(text, &glob, err);

        spate_glob_free(glob);
        free(text);
        if (rc != SPATE_OK)
            return rc;
        count++;
    }
    if (count)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "names no table; expected table globs separated by commas, such as \"public.*\". To "
                      "allow a requester nothing, leave it out");
}

enum spate_rc spate_permits_check(const struct spate_connector_config *config, const char *path,
                                  struct spate_err *err)
{
    const struct spate_pairs *allow = &config->snapshots.allow;
    int from, to;

    for (size_t i = 0; i < allow->count; i++)
        if (check_globs(&allow->at[i], err) != SPATE_OK)
            return spate_err_context(err, "%s:%d: snapshots.allow.%s", path, allow->at[i].line,
                                     allow->at[i].key);
    if (!config->snapshots.hours || read_hours(config->snapshots.hours, &from, &to))
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "%s: snapshots.hours: expected HH:MM-HH:MM in local time, such as 22:00-06:00, and two "
                      "different times; got \"%.40s\". Leave it out to read at any time",
                      path, config->snapshots.hours);
}

bool spate_permits_requester(const struct spate_connector_config *config, struct spate_slice requester)
{
    const struct spate_pairs *allow = &config->snapshots.allow;

    for (size_t i = 0; i < allow->count; i++)
        if (name_matches(allow->at[i].key, requester))
            return true;
    return allow->count == 0;
}

static bool list_matches(const char *list, struct spate_slice schema, struct spate_slice table)
{
    bool found = false;
    char *text;

    while (!found && (text = next_glob(&list)) != NULL) {
        struct spate_err err = {0};
        struct spate_glob *glob = NULL;

        if (spate_glob_new(text, &glob, &err) == SPATE_OK) /* checked at start */
            found = spate_glob_match(glob, schema, table);
        spate_glob_free(glob);
        free(text);
    }
    return found;
}

bool spate_permits_table(const struct spate_connector_config *config, struct spate_slice requester,
                         struct spate_slice schema, struct spate_slice table)
{
    const struct spate_pairs *allow = &config->snapshots.allow;

    for (size_t i = 0; i < allow->count; i++)
        if (name_matches(allow->at[i].key, requester) && list_matches(allow->at[i].value, schema, table))
            return true;
    return allow->count == 0;
}

bool spate_permits_now(const struct spate_connector_config *config, int64_t wall_us, int64_t *left_ms)
{
    time_t seconds = (time_t)(wall_us / 1000000);
    struct tm local;
    int from, to, until;
    int64_t now_ms;
    bool open;

    if (left_ms)
        *left_ms = INT64_MAX;
    if (!config->snapshots.hours || !read_hours(config->snapshots.hours, &from, &to) ||
        !localtime_r(&seconds, &local))
        return true;
    now_ms = (local.tm_hour * 60 + local.tm_min) * INT64_C(60000) + local.tm_sec * INT64_C(1000) +
             wall_us / 1000 % 1000;
    from %= DAY_MIN;
    to %= DAY_MIN;
    open = from < to || to == 0 ? now_ms >= from * INT64_C(60000) && (to == 0 || now_ms < to * INT64_C(60000))
                                : now_ms >= from * INT64_C(60000) || now_ms < to * INT64_C(60000);
    until = open ? to : from;
    if (left_ms) {
        *left_ms = until * INT64_C(60000) - now_ms;
        if (*left_ms <= 0)
            *left_ms += DAY_MIN * INT64_C(60000);
    }
    return open;
}
