/* core/finding.c - what a check found, collected and printed. */
#include "core/finding.h"

#include "core/alloc.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const severities[] = {"note", "warning", "error"};
static const char *const mends[] = {"hand", "source", "target", "shell", "file"};

const char *spate_severity_name(enum spate_severity severity)
{
    return severities[severity];
}

const char *spate_mend_name(enum spate_mend mend)
{
    return mends[mend];
}

static char *format(const char *fmt, va_list args) SPATE_PRINTF(1, 0);
static char *format(const char *fmt, va_list args)
{
    va_list again;
    int len;
    char *text;

    va_copy(again, args);
    len = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    text = spate_alloc((size_t)(len > 0 ? len : 0) + 1);
    text[0] = '\0';
    vsnprintf(text, (size_t)(len > 0 ? len : 0) + 1, fmt, args);
    return text;
}

void spate_findings_fini(struct spate_findings *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->at[i].about);
        free(list->at[i].what);
        free(list->at[i].why);
        free(list->at[i].fix);
    }
    free(list->at);
    free(list->place);
    *list = (struct spate_findings){0};
}

void spate_findings_place(struct spate_findings *list, const char *fmt, ...)
{
    va_list args;

    free(list->place);
    va_start(args, fmt);
    list->place = format(fmt, args);
    va_end(args);
}

void spate_find(struct spate_findings *list, enum spate_severity severity, const char *kind, const char *fmt,
                ...)
{
    va_list args;

    if (list->count == list->cap) {
        list->cap = list->cap ? list->cap * 2 : 16;
        list->at = spate_realloc(list->at, list->cap * sizeof *list->at);
    }
    list->at[list->count] = (struct spate_finding){
        .severity = severity, .kind = kind, .about = spate_strdup(list->place ? list->place : "")};
    va_start(args, fmt);
    list->at[list->count].what = format(fmt, args);
    va_end(args);
    list->count++;
}

void spate_find_about(struct spate_findings *list, const char *fmt, ...)
{
    struct spate_finding *last = &list->at[list->count - 1];
    va_list args;

    free(last->about);
    va_start(args, fmt);
    last->about = format(fmt, args);
    va_end(args);
}

void spate_find_why(struct spate_findings *list, const char *fmt, ...)
{
    struct spate_finding *last = &list->at[list->count - 1];
    va_list args;

    free(last->why);
    va_start(args, fmt);
    last->why = format(fmt, args);
    va_end(args);
}

void spate_find_fix(struct spate_findings *list, enum spate_mend mend, const char *fmt, ...)
{
    struct spate_finding *last = &list->at[list->count - 1];
    va_list args;

    free(last->fix);
    va_start(args, fmt);
    last->fix = format(fmt, args);
    va_end(args);
    last->mend = mend;
}

void spate_find_err(struct spate_findings *list, const char *kind, const struct spate_err *err)
{
    spate_find(list, SPATE_FINDING_ERROR, kind, "%s", err->text);
}

/* Where a statement begins in a text: behind a colon, or "run". */
static const char *statement_in(const char *text)
{
    static const char *const verbs[] = {"ALTER ",  "GRANT ",     "CREATE ",   "DROP ",
                                        "DELETE ", "SELECT pg_", "TRUNCATE ", "REINDEX "};
    static const char *const before[] = {": ", "run ", "Either "};

    for (const char *at = text; *at; at++)
        for (size_t v = 0; v < SPATE_COUNT(verbs); v++) {
            if (strncmp(at, verbs[v], strlen(verbs[v])) != 0)
                continue;
            for (size_t b = 0; b < SPATE_COUNT(before); b++)
                if ((size_t)(at - text) >= strlen(before[b]) &&
                    strncmp(at - strlen(before[b]), before[b], strlen(before[b])) == 0)
                    return at;
        }
    return NULL;
}

/* It ends with a semicolon outside quotes, or with the sentence. */
static size_t statement_length(const char *at)
{
    char quote = '\0';
    size_t len = 0;

    for (; at[len]; len++) {
        if (quote) {
            quote = at[len] == quote ? '\0' : quote;
            continue;
        }
        if (at[len] == '\'' || at[len] == '"')
            quote = at[len];
        else if (at[len] == ';' || (at[len] == '.' && (at[len + 1] == ' ' || !at[len + 1])))
            break;
    }
    return len;
}

void spate_find_statement(struct spate_findings *list, enum spate_mend mend)
{
    const char *at = statement_in(list->at[list->count - 1].what);

    if (at)
        spate_find_fix(list, mend, "%.*s;", (int)statement_length(at), at);
}

size_t spate_findings_of(const struct spate_findings *list, enum spate_severity severity)
{
    size_t count = 0;

    for (size_t i = 0; i < list->count; i++)
        count += list->at[i].severity == severity;
    return count;
}

const struct spate_finding *spate_findings_error(const struct spate_findings *list, size_t from)
{
    for (size_t i = from; i < list->count; i++)
        if (list->at[i].severity == SPATE_FINDING_ERROR)
            return &list->at[i];
    return NULL;
}

void spate_finding_text(const struct spate_finding *finding, struct spate_buf *out)
{
    spate_buf_puts(out, finding->what);
    if (finding->why)
        spate_buf_printf(out, ": %s", finding->why);
    if (finding->fix)
        spate_buf_printf(out, ". Mend it with: %s", finding->fix);
}

enum spate_rc spate_finding_refuse(const struct spate_finding *finding, struct spate_err *err)
{
    struct spate_buf text = {0};

    spate_finding_text(finding, &text);
    err->exit_code = SPATE_EXIT_REFUSED;
    spate_fail(err, SPATE_FATAL, "%s", spate_buf_str(&text));
    spate_buf_fini(&text);
    return SPATE_FAIL;
}

/* ---- for people ---- */

/* Lines after the first stand below it. */
static void indented(struct spate_buf *out, const char *label, const char *text)
{
    spate_buf_printf(out, "  %s: ", label);
    for (; *text; text++) {
        spate_buf_putc(out, *text);
        if (*text == '\n' && text[1])
            spate_buf_puts(out, "       ");
    }
    spate_buf_putc(out, '\n');
}

static void print_one(const struct spate_finding *finding, struct spate_buf *out)
{
    spate_buf_printf(out, "%s [%s] %s%s%s\n", severities[finding->severity], finding->kind, finding->about,
                     finding->about[0] ? ": " : "", finding->what);
    if (finding->why)
        indented(out, "why", finding->why);
    if (finding->fix)
        indented(out, "fix", finding->fix);
}

static void count_words(struct spate_buf *out, size_t count, const char *word)
{
    spate_buf_printf(out, "%zu %s%s", count, word, count == 1 ? "" : "s");
}

void spate_findings_print(const struct spate_findings *list, struct spate_buf *out)
{
    for (int severity = SPATE_FINDING_ERROR; severity >= SPATE_FINDING_NOTE; severity--)
        for (size_t i = 0; i < list->count; i++)
            if ((int)list->at[i].severity == severity)
                print_one(&list->at[i], out);
    count_words(out, spate_findings_of(list, SPATE_FINDING_ERROR), "error");
    spate_buf_puts(out, ", ");
    count_words(out, spate_findings_of(list, SPATE_FINDING_WARNING), "warning");
    spate_buf_puts(out, ", ");
    count_words(out, spate_findings_of(list, SPATE_FINDING_NOTE), "note");
    spate_buf_putc(out, '\n');
}

/* ---- JSON ---- */

/* How many bytes of UTF-8 stand here; 0: none that a reader of JSON would take. */
static size_t utf8(const unsigned char *at)
{
    size_t len = at[0] < 0x80                    ? 1
                 : at[0] >= 0xC2 && at[0] < 0xE0 ? 2
                 : (at[0] & 0xF0) == 0xE0        ? 3
                 : at[0] >= 0xF0 && at[0] < 0xF5 ? 4
                                                 : 0;

    for (size_t i = 1; i < len; i++)
        if ((at[i] & 0xC0) != 0x80)
            return 0;
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] >= 0xA0) ||
        (at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] >= 0x90))
        return 0;
    return len;
}

static void json_text(struct spate_buf *out, const char *name, const char *text)
{
    spate_buf_printf(out, "\"%s\":", name);
    if (!text) {
        spate_buf_puts(out, "null");
        return;
    }
    spate_buf_putc(out, '"');
    for (size_t len; *text; text += len) {
        len = utf8((const unsigned char *)text);
        if (len == 0) { /* a name out of a database that knows no encoding */
            spate_buf_puts(out, "\\ufffd");
            len = 1;
        } else if (*text == '"' || *text == '\\') {
            spate_buf_printf(out, "\\%c", *text);
        } else if ((unsigned char)*text < 0x20) {
            spate_buf_printf(out, "\\u%04x", (unsigned)*text);
        } else {
            spate_buf_add(out, text, len);
        }
    }
    spate_buf_putc(out, '"');
}

void spate_findings_json(const struct spate_findings *list, struct spate_buf *out)
{
    spate_buf_puts(out, "{\"findings\":[");
    for (size_t i = 0; i < list->count; i++) {
        const struct spate_finding *finding = &list->at[i];

        spate_buf_puts(out, i ? ",\n{" : "\n{");
        json_text(out, "severity", severities[finding->severity]);
        spate_buf_putc(out, ',');
        json_text(out, "kind", finding->kind);
        spate_buf_putc(out, ',');
        json_text(out, "about", finding->about);
        spate_buf_putc(out, ',');
        json_text(out, "what", finding->what);
        spate_buf_putc(out, ',');
        json_text(out, "why", finding->why);
        spate_buf_putc(out, ',');
        json_text(out, "fix", finding->fix);
        spate_buf_putc(out, ',');
        json_text(out, "where", finding->fix ? mends[finding->mend] : NULL);
        spate_buf_putc(out, '}');
    }
    spate_buf_printf(out, "],\n\"errors\":%zu,\"warnings\":%zu,\"notes\":%zu}\n",
                     spate_findings_of(list, SPATE_FINDING_ERROR),
                     spate_findings_of(list, SPATE_FINDING_WARNING),
                     spate_findings_of(list, SPATE_FINDING_NOTE));
}
