/* config/yaml.h - one configuration file as a composed YAML document. Internal to config/. */
#ifndef SPATE_CONFIG_YAML_H
#define SPATE_CONFIG_YAML_H

#include "core/buf.h"
#include "core/err.h"

#include <stdbool.h>
#include <yaml.h>

struct spate_yaml {
    const char *path;
    yaml_document_t doc; /* valid while composed */
    bool composed;
    struct spate_err *err;
};

/* Reads file->path; the document has a root. Whatever the result, _close it. */
SPATE_CHECKED enum spate_rc spate_yaml_open(struct spate_yaml *file);
void spate_yaml_close(struct spate_yaml *file);

/* "PATH:LINE: KEY: what" into file->err, exit code CONFIG. Returns SPATE_FAIL. */
enum spate_rc spate_yaml_fail(struct spate_yaml *file, int line, const char *key,
                              const struct spate_buf *what);

static inline int spate_yaml_line(const yaml_node_t *node)
{
    return (int)node->start_mark.line + 1;
}

#endif
