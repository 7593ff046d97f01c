/* schemas/field.h - single fields of a line as they stand there, for programs that pass text on and need not
 * know its values. Pure functions; everything is borrowed from the line. */
#ifndef SPATE_SCHEMAS_FIELD_H
#define SPATE_SCHEMAS_FIELD_H

#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>

/* `name` among the fields from offset `rest` on (of a head or a meta, schemas/codec.h). False: not there, or
 * no JSON. */
bool spate_field_find(struct spate_slice line, size_t rest, const char *name, struct spate_slice *raw);

/* Calls `each` with every element of a JSON array. False: no such array; some may have been met by then. */
bool spate_field_elements(struct spate_slice array, void (*each)(void *arg, struct spate_slice raw),
                          void *arg);

#endif
