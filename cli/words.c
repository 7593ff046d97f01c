/* cli/words.c - a small grammar: name, operator, value. */
#include "cli/words.h"

#include "core/alloc.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *blanks(const char *at)
{
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

/* A name up to one of `ends` or white space; quoted, it may hold anything. False: none, or not closed. */
static bool name(const char **at, const char *ends, struct spate_buf *out)
{
    const char *p = *at;

    spate_buf_reset(out);
    if (*p == '"') {
        for (p++; *p && (*p != '"' || p[1] == '"'); p++) {
            if (*p == '"')
                p++; /* "" is one quote */
            spate_buf_putc(out, *p);
        }
        if (*p++ != '"')
            return false;
    } else {
        while (*p && !isspace((unsigned char)*p) && *p != '"' && !strchr(ends, *p))
            spate_buf_putc(out, *p++);
    }
    *at = p;
    return out->len > 0;
}

static enum spate_rc unclear(struct spate_err *err, const char *text, const char *why)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "--where '%s': %s; expected COLUMN OPERATOR VALUE, as in \"created_at >= 2026-01-01\" "
                      "or \"state is null\", with one of = <> < <= > >= is, is not. Each condition is a "
                      "--where of its own, and all must hold",
                      text, why);
}

/* The operator at *at as it travels, or NULL. */
static const char *operator(const char **at)
{
    static const struct {
        const char *text, *op;
    } ops[] = {{"<=", "<="}, {">=", ">="}, {"<>", "<>"}, {"!=", "<>"}, {"=", "="}, {"<", "<"}, {">", ">"}};

    for (size_t i = 0; i < SPATE_COUNT(ops); i++) {
        const size_t len = strlen(ops[i].text);

        if (strncmp(*at, ops[i].text, len) == 0) {
            *at += len;
            return ops[i].op;
        }
    }
    return NULL;
}

/* The word at *at, if it is this one. */
static bool word(const char **at, const char *text)
{
    const size_t len = strlen(text);

    if (strncasecmp(*at, text, len) != 0 || ((*at)[len] && !isspace((unsigned char)(*at)[len])))
        return false;
    *at = blanks(*at + len);
    return true;
}

/* 'it''s', or the rest as it stands without blanks around it. Returns why not, or NULL. */
static const char *value(const char *at, struct spate_buf *out)
{
    size_t len = strlen(at);

    spate_buf_reset(out);
    if (*at == '\'') {
        for (at++; *at && (*at != '\'' || at[1] == '\''); at++) {
            if (*at == '\'')
                at++;
            spate_buf_putc(out, *at);
        }
        if (*at != '\'')
            return "the quote around the value is not closed";
        return *blanks(at + 1) ? "something follows the closing quote of the value" : NULL;
    }
    while (len > 0 && isspace((unsigned char)at[len - 1]))
        len--;
    spate_buf_add(out, at, len);
    return len == 0 ? "there is no value (an empty one is '')" : NULL;
}

enum spate_rc spate_words_condition(const char *text, struct spate_words_condition *condition,
                                    struct spate_err *err)
{
    struct spate_buf column = {0}, taken = {0};
    const char *at = blanks(text), *op, *why = NULL;

    *condition = (struct spate_words_condition){0};
    if (!name(&at, "=<>!", &column)) {
        why = *at == '"' ? "the quote around the column is not closed" : "it does not begin with a column";
        goto out;
    }
    at = blanks(at);
    op = operator(&at);
    if (op) {
        why = value(blanks(at), &taken);
    } else if (word(&at, "is")) {
        op = word(&at, "not") ? "is not" : "is";
        if (!word(&at, "null") || *at)
            why = "'is' and 'is not' are followed by null alone";
    } else {
        why = *at ? "what follows the column is no operator" : "there is no operator";
    }
    if (!why && strcasecmp(spate_buf_str(&taken), "null") == 0 && !strchr(text, '\''))
        why = "nothing is ever equal to null; write 'is null' or 'is not null'";
    if (why)
        goto out;
    condition->column = spate_strndup(column.data, column.len);
    condition->op = spate_strdup(op);
    if (strncmp(op, "is", 2) != 0)
        condition->value = spate_strdup(spate_buf_str(&taken));
out:
    spate_buf_fini(&column);
    spate_buf_fini(&taken);
    return why ? unclear(err, text, why) : SPATE_OK;
}

void spate_words_condition_fini(struct spate_words_condition *condition)
{
    free(condition->column);
    free(condition->op);
    free(condition->value);
    *condition = (struct spate_words_condition){0};
}

enum spate_rc spate_words_columns(const char *text, char ***names, size_t *count, struct spate_err *err)
{
    struct spate_buf column = {0};
    const char *at = text;
    bool fine;

    do {
        at = blanks(at);
        fine = name(&at, ",", &column);
        at = blanks(at);
        if (!fine || (*at && *at != ',')) {
            spate_buf_fini(&column);
            err->exit_code = SPATE_EXIT_CONFIG;
            return spate_fail(err, SPATE_FATAL,
                              "--columns '%s': expected names of columns with commas between them, in double "
                              "quotes where one has a comma or a blank",
                              text);
        }
        *names = spate_realloc(*names, (*count + 1) * sizeof **names);
        (*names)[(*count)++] = spate_strndup(column.data, column.len);
    } while (*at++ == ',');
    spate_buf_fini(&column);
    return SPATE_OK;
}

bool spate_words_table(const char *text, struct spate_buf *schema, struct spate_buf *table)
{
    const char *at = text;
    bool quoted = *at == '"';

    if (!name(&at, ".", schema) || *at != '.' || (!quoted && strpbrk(spate_buf_str(schema), "*?")))
        return false;
    quoted = *++at == '"';
    return name(&at, ".", table) && !*at && (quoted || !strpbrk(spate_buf_str(table), "*?"));
}
