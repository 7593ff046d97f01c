/* sinks/merge.h - the rows of one piece become statements. Internal to sinks/apply. */
#ifndef SPATE_SINKS_MERGE_H
#define SPATE_SINKS_MERGE_H

#include "sinks/apply.h"

/* Appends what apply->piece says to the script, and runs it where it has to: COPY reads the piece while the
 * script runs. */
SPATE_CHECKED enum spate_rc spate_merge_piece(struct spate_apply *apply, struct spate_err *err);

#endif
