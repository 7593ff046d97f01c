/* config/reference.c - the option tables as Markdown, so that no key can be forgotten in the manual. */
#include "config/keys.h"
#include "config/load.h"
#include "config/scalar.h"

#include <string.h>

/* A table's cell: the pipe would end it. */
static void cell(struct spate_buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            spate_buf_putc(out, '\\');
        spate_buf_putc(out, *text);
    }
}

static void row(struct spate_buf *out, const char *key, const struct spate_option *option)
{
    struct spate_buf kind = {0};

    spate_scalar_expected(option, &kind);
    spate_buf_printf(out, "| `%s` | ", key);
    cell(out, spate_buf_str(&kind));
    if (option->flags & SPATE_OPT_REQUIRED)
        spate_buf_puts(out, " | required | ");
    else if (option->fallback)
        spate_buf_printf(out, " | `%s` | ", option->fallback);
    else
        spate_buf_puts(out, " | none | ");
    cell(out, option->doc ? option->doc : "");
    spate_buf_puts(out, " |\n");
    spate_buf_fini(&kind);
}

static void heading(struct spate_buf *out)
{
    spate_buf_puts(out, "| key | takes | default | meaning |\n| --- | --- | --- | --- |\n");
}

static void group_section(struct spate_buf *out, const char *key, const struct spate_option_group *group)
{
    spate_buf_printf(out, "\nIn `%s.%s`, where %s is a name of your own:\n\n", key, group->item, group->item);
    heading(out);
    for (size_t i = 0; i < group->count; i++) {
        struct spate_buf full = {0};

        spate_buf_printf(&full, "%s.%s.%s", key, group->item, group->options[i].key);
        row(out, spate_buf_str(&full), &group->options[i]);
        spate_buf_fini(&full);
    }
}

void spate_config_reference(struct spate_buf *out, const char *title, const char *intro,
                            const struct spate_option_table *tables, size_t count)
{
    struct spate_buf full = {0};

    spate_buf_printf(out, "## %s\n\n%s\n\n", title, intro);
    heading(out);
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < tables[t].count; i++)
            row(out, spate_keys_full(&tables[t], &tables[t].options[i], &full), &tables[t].options[i]);
    for (size_t t = 0; t < count; t++)
        for (size_t i = 0; i < tables[t].count; i++)
            if (tables[t].options[i].type == SPATE_OPT_GROUP)
                group_section(out, spate_keys_full(&tables[t], &tables[t].options[i], &full),
                              tables[t].options[i].group);
    spate_buf_fini(&full);
}
