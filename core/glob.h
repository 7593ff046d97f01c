/* core/glob.h - table globs: schema.table with * and ?, each part quoted like SQL where it has dots. */
#ifndef SPATE_CORE_GLOB_H
#define SPATE_CORE_GLOB_H

#include "core/err.h"
#include "core/slice.h"

#include <stdbool.h>

struct spate_glob;

/* A pattern without a dot means a table of any schema. "" inside quotes is one quote; * and ? inside quotes
 * are ordinary characters. SPATE_FAIL (fatal, CONFIG): the pattern is malformed. */
SPATE_CHECKED enum spate_rc spate_glob_new(const char *pattern, struct spate_glob **glob,
                                           struct spate_err *err);
bool spate_glob_match(const struct spate_glob *glob, struct spate_slice schema, struct spate_slice table);
bool spate_glob_exact(const struct spate_glob *glob); /* no wildcard in it, and a schema */
void spate_glob_free(struct spate_glob *glob);

#endif
