/* sinks/check_target.h - the target as a whole: may it be written, by this role, in this schema?
 *
 * Part of sinks/check.h. Thread: main. Blocks: on the target. */
#ifndef SPATE_SINKS_CHECK_TARGET_H
#define SPATE_SINKS_CHECK_TARGET_H

#include "core/finding.h"
#include "sinks/store.h"

void spate_check_target(struct spate_store *store, struct spate_findings *list);

#endif
