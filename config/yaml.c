/* config/yaml.c - reads a file and composes its one YAML document. */
#include "config/yaml.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FILE_MAX (1 << 20) /* a configuration of a megabyte is something else by mistake */

enum spate_rc spate_yaml_fail(struct spate_yaml *file, int line, const char *key,
                              const struct spate_buf *what)
{
    file->err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(file->err, SPATE_FATAL, "%s:%d: %s%s%.*s", file->path, line, key, *key ? ": " : "",
                      (int)what->len, what->data);
}

static enum spate_rc unreadable(struct spate_yaml *file, const char *why)
{
    file->err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(file->err, SPATE_FATAL, "%s: %s; give the path of a YAML file that can be read",
                      file->path, why);
}

static enum spate_rc read_file(struct spate_yaml *file, struct spate_buf *text)
{
    FILE *in = fopen(file->path, "re");
    size_t got;

    if (!in)
        return unreadable(file, strerror(errno));
    do {
        spate_buf_reserve(text, 1 << 14);
        got = fread(text->data + text->len, 1, 1 << 14, in);
        text->len += got;
    } while (got > 0 && text->len <= FILE_MAX);
    if (ferror(in)) {
        int why = errno;

        fclose(in);
        return unreadable(file, strerror(why));
    }
    fclose(in);
    if (text->len > FILE_MAX)
        return unreadable(file, "longer than a megabyte, so it is no configuration");
    return SPATE_OK;
}

/* Is the given line (from 0) indented by a tab? YAML forbids it, and libyaml's words for it are obscure. */
static bool tab_indents(const struct spate_buf *text, size_t line)
{
    const char *p = text->data, *end = text->data + text->len;

    while (line > 0 && p < end)
        line -= *p++ == '\n';
    while (p < end && *p == ' ')
        p++;
    return p < end && *p == '\t';
}

static enum spate_rc not_yaml(struct spate_yaml *file, const yaml_parser_t *parser,
                              const struct spate_buf *text)
{
    struct spate_buf what = {0};
    size_t line = parser->problem_mark.line;

    if (parser->error == YAML_READER_ERROR) { /* then only the offset is told */
        line = 0;
        for (size_t i = 0; i < parser->problem_offset && i < text->len; i++)
            line += text->data[i] == '\n';
    }
    if (parser->error != YAML_READER_ERROR && tab_indents(text, line))
        spate_buf_puts(&what, "a tab indents this line; YAML wants spaces");
    else
        spate_buf_printf(&what, "this is not YAML: %s%s%s (column %zu)",
                         parser->context ? parser->context : "", parser->context ? ", " : "",
                         parser->problem ? parser->problem : "unreadable", parser->problem_mark.column + 1);
    spate_yaml_fail(file, (int)line + 1, "", &what);
    spate_buf_fini(&what);
    return SPATE_FAIL;
}

/* Composes the file's one document. */
static enum spate_rc compose(struct spate_yaml *file, const struct spate_buf *text)
{
    struct spate_buf what = {0};
    yaml_document_t extra;
    yaml_parser_t parser;
    enum spate_rc rc = SPATE_OK;

    if (!yaml_parser_initialize(&parser))
        return unreadable(file, "no memory for the YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text->data, text->len);
    if (!yaml_parser_load(&parser, &file->doc)) {
        rc = not_yaml(file, &parser, text);
        goto out;
    }
    file->composed = true;
    if (!yaml_document_get_root_node(&file->doc)) {
        rc = unreadable(file, "the file says nothing");
        goto out;
    }
    if (!yaml_parser_load(&parser, &extra)) {
        rc = not_yaml(file, &parser, text);
        goto out;
    }
    if (yaml_document_get_root_node(&extra)) {
        spate_buf_puts(&what,
                       "expected one document in the file, got a second one behind ---; give it a file "
                       "of its own");
        rc = spate_yaml_fail(file, spate_yaml_line(yaml_document_get_root_node(&extra)), "", &what);
    }
    yaml_document_delete(&extra);
out:
    spate_buf_fini(&what);
    yaml_parser_delete(&parser);
    return rc;
}

enum spate_rc spate_yaml_open(struct spate_yaml *file)
{
    struct spate_buf text = {0};
    enum spate_rc rc = read_file(file, &text);

    if (rc == SPATE_OK)
        rc = compose(file, &text);
    spate_buf_fini(&text);
    return rc;
}

void spate_yaml_close(struct spate_yaml *file)
{
    if (file->composed)
        yaml_document_delete(&file->doc);
    file->composed = false;
}
