/* schemas/encode.h - pieces that more than one kind of message writes. Internal to schemas/. */
#ifndef SPATE_SCHEMAS_ENCODE_H
#define SPATE_SCHEMAS_ENCODE_H

#include "core/buf.h"
#include "core/slice.h"
#include "schemas/event.h"

#include <stdint.h>

void spate_encode_lsn(struct spate_buf *out, uint64_t lsn);     /* quoted */
void spate_encode_time(struct spate_buf *out, int64_t wall_us); /* ,"ts":"…" */
/* ,"ts":"…","source":"…" */
void spate_encode_ts(struct spate_buf *out, int64_t wall_us, struct spate_slice source);
/* A value that is not ABSENT. False: it cannot be written, *why says why; what was appended is to be taken
 * back. */
bool spate_encode_value(struct spate_buf *out, const struct spate_column *column,
                        const struct spate_value *value, const char **why);

#endif
