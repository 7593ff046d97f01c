/* schemas/encode.h - pieces that more than one kind of message writes. Internal to schemas/. */
#ifndef SPATE_SCHEMAS_ENCODE_H
#define SPATE_SCHEMAS_ENCODE_H

#include "core/buf.h"
#include "core/slice.h"

#include <stdint.h>

void spate_encode_lsn(struct spate_buf *out, uint64_t lsn); /* quoted */
/* ,"ts":"…","source":"…" */
void spate_encode_ts(struct spate_buf *out, int64_t wall_us, struct spate_slice source);

#endif
