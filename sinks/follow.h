/* sinks/follow.h - what the source did to a table, done to the target by the sink itself (T21): where the
 * file says nothing of columns, a new one is added and one that is gone no longer has to be filled; where a
 * column stands as it is, its type is widened; labels are added to an enum. Everything else stops the sink
 * with the statement that mends it, and so does a table or type that another role owns.
 *
 * Only what changed at the source is followed: what the team changed in its own table is the team's.
 *
 * Thread: the sink's. Blocks: on the target; while somebody holds the table, until it is let go of or a stop
 * is asked for, in short attempts that hold nobody else up for long (T22, T25). Internal to sinks/. */
#ifndef SPATE_SINKS_FOLLOW_H
#define SPATE_SINKS_FOLLOW_H

#include "sinks/item.h"
#include "sinks/projection.h"

/* Makes the target table fit a version of the source's table whose predecessor, `before`, it did fit. Outside
 * a transaction. What cannot be followed is left for the preflight to refuse. SPATE_FAIL, retry: a snapshot
 * that was under way is void; read what is stored. */
SPATE_CHECKED enum spate_rc spate_follow_table(struct spate_version *version,
                                               const struct spate_version *before, struct spate_store *store,
                                               struct spate_err *err);

/* Are rows that were written by `before` as good as those that `now` writes? Pure. What a rewrite made of
 * them the source says by itself (sinks/stale.h). */
bool spate_follow_same(const struct spate_version *before, const struct spate_version *now);

/* The target refused an enum's label (22P02): adds those of these items that their types lack. *added: some
 * were. SPATE_FAIL, exit code REFUSED: the type is another role's; the text has the statement. Outside a
 * transaction. */
SPATE_CHECKED enum spate_rc spate_follow_labels(struct spate_store *store, const struct spate_item *items,
                                                size_t count, bool *added, struct spate_err *err);

#endif
