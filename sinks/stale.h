/* sinks/stale.h - a table that needs everything again, though each of its changes was heard: the source says
 * so in the stream (`stale`), or the target shows it.
 *
 * What is stored of the table says so from then on, in one target transaction with the position; until
 * everything came, changes that find no row are counted and do not stop the sink. `snapshot: auto` asks at
 * once; `manual` says with which command.
 *
 * Thread: the sink's. Blocks: on the target. Internal to sinks/. */
#ifndef SPATE_SINKS_STALE_H
#define SPATE_SINKS_STALE_H

#include "sinks/reader.h"

struct spate_sink;
struct spate_projection;
struct spate_version;

/* `stale` in the stream; moves the mark past it. *rewound as in spate_sink_version_at. */
SPATE_CHECKED enum spate_rc spate_stale_hear(struct spate_sink *sink, struct spate_event *event,
                                             bool *rewound, struct spate_err *err);

/* The same for another reason, found by the sink itself between transactions or before one is applied:
 * commits what is complete, and the position up to there. No target transaction is open. */
SPATE_CHECKED enum spate_rc spate_stale_mark(struct spate_sink *sink, struct spate_projection *projection,
                                             const char *why, struct spate_err *err);

/* Labels were added to types of the projections marked `labelled`, after a batch was refused for lack of
 * them. One that was renamed looks the same, and then rows hold what it was called before. SPATE_FAIL, retry.
 */
enum spate_rc spate_stale_labelled(struct spate_sink *sink, struct spate_err *err);

/* Says that the table is marked, and what comes of it. */
void spate_stale_tell(const struct spate_sink *sink, const struct spate_projection *projection,
                      const char *why);

/* *err says that a change met no row in a table that held exactly what exists (T12). With `snapshot: auto`
 * the table is marked once in a while, and *err says to try again: rows may be lost before `stale` tells of
 * it (P33). Else the sink stops, as *err says. The transaction was rolled back. */
void spate_stale_lost(struct spate_sink *sink, struct spate_err *err);

#endif
