/* sinks/blame.h - which column of a row it is that the target refuses. Thread: the sink's. Blocks: on the
 * target, shortly. */
#ifndef SPATE_SINKS_BLAME_H
#define SPATE_SINKS_BLAME_H

#include "core/buf.h"
#include "sinks/item.h"
#include "sinks/store.h"

/* Has the target read each value of the row by itself, and evaluate each expression by itself: the first
 * that fails with this SQLSTATE is named, quoted, in `out`. Nothing is added when none of them does, or when
 * there was no time. Outside a transaction. */
void spate_blame_column(const struct spate_store *store, const struct spate_item *item, const char *sqlstate,
                        struct spate_buf *out);

#endif
