/* schemas/class.h - the words of a schema message. Internal to schemas/. */
#ifndef SPATE_SCHEMAS_CLASS_H
#define SPATE_SCHEMAS_CLASS_H

#include "core/slice.h"
#include "schemas/table.h"

#include <stdbool.h>

/* The class of a column by its type's OID or, for a domain, by the spelling of its base type. */
enum spate_class spate_class_by(uint32_t oid, struct spate_slice base);

const char *spate_class_name(enum spate_class json_class);
bool spate_class_parse(struct spate_slice name, enum spate_class *out);
const char *spate_identity_name(enum spate_identity identity);
bool spate_identity_parse(struct spate_slice name, enum spate_identity *out);

#endif
