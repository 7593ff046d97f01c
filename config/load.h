/* config/load.h - a YAML file into structs, by option tables; every error names file, line and key. */
#ifndef SPATE_CONFIG_LOAD_H
#define SPATE_CONFIG_LOAD_H

#include "core/buf.h"
#include "core/err.h"
#include "core/options.h"

#include <stdbool.h>

/* Reads `path`. Unknown key, wrong type, out of range, missing required key, duplicate key: fatal with
 * exit code CONFIG, text "FILE:LINE: KEY: expected .., got ..; did you mean ..?". On failure `into` holds
 * nothing that needs freeing. On success free with spate_options_fini. The members that the tables describe
 * are set to their defaults first; the struct's other members are left as they are. */
SPATE_CHECKED enum spate_rc spate_config_load(const char *path, const struct spate_option_table *tables,
                                              size_t count, void *into, struct spate_err *err);

/* Which kind of file is it: does its outermost mapping have this key? Fails as loading does where the file
 * cannot be read. */
SPATE_CHECKED enum spate_rc spate_config_has(const char *path, const char *key, bool *has,
                                             struct spate_err *err);

/* The effective settings as YAML with defaults filled in, secrets and passwords in URLs masked. */
void spate_config_print(struct spate_buf *out, const struct spate_option_table *tables, size_t count,
                        const void *from);

/* The reference in Markdown, for one file kind. */
void spate_config_reference(struct spate_buf *out, const char *title, const char *intro,
                            const struct spate_option_table *tables, size_t count);

/* Replaces the password in a libpq URL or conninfo string by "***". Appends to out. */
void spate_config_mask_url(struct spate_buf *out, const char *url);

#endif
