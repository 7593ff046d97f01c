/* sinks/status.h - somewhere to look while sinks run: gathers the facts of each, serves the pages for all.
 *
 * A sink's thread is never held up: it copies a small struct a few times a second, under a mutex of its own
 * that nobody holds for longer than such a copy. What is said of one sink accepts NULL.
 *
 * Thread: the sink's, except _open and _close, which belong to the process' main one. */
#ifndef SPATE_SINKS_STATUS_H
#define SPATE_SINKS_STATUS_H

#include "core/err.h"
#include "sinks/report.h"
#include "sinks/sink.h"

#include <stddef.h>
#include <stdint.h>

struct spate_sink;
struct spate_sink_status;  /* of one sink */
struct spate_sinks_status; /* of the process */

/* Where the files say that the pages are; NULL: nowhere. SPATE_FAIL (fatal, CONFIG): two of them name
 * different places, or one that is no address. */
SPATE_CHECKED enum spate_rc spate_sinks_status_listen(const struct spate_sink_config *configs, size_t count,
                                                      const char **listen, struct spate_err *err);

struct spate_sinks_status *spate_sinks_status_open(const struct spate_sink_config *configs, size_t count,
                                                   const char *listen);
struct spate_sink_status *spate_sinks_status_of(struct spate_sinks_status *all, size_t sink);
void spate_sinks_status_close(struct spate_sinks_status *all);

/* A copy of what is known, not derived. Any thread; not NULL. */
void spate_sink_status_facts(struct spate_sink_status *status, struct spate_sink_facts *facts);

/* What is being done now. `waits_for` may be NULL. */
void spate_sink_status_state(struct spate_sink_status *status, enum spate_sink_state state,
                             const char *waits_for);
/* The target is put to work, which may take long: looks at the sink. Until the next turn or batch. */
void spate_sink_status_busy(struct spate_sink_status *status, const struct spate_sink *sink);
/* Once per turn; looks at the sink when a tenth of a second has passed. */
void spate_sink_status_turn(struct spate_sink_status *status, const struct spate_sink *sink, int64_t now_ms);
/* The same at once: the sink is about to be closed. */
void spate_sink_status_last(struct spate_sink_status *status, const struct spate_sink *sink);
/* A batch of so many changes took so long. */
void spate_sink_status_applied(struct spate_sink_status *status, size_t changes, int64_t us);
/* An attempt failed and another one follows, or the sink ends with this error. */
void spate_sink_status_failed(struct spate_sink_status *status, const struct spate_err *err);
/* The error's text names a row: these words are shown in its place when the sink ends. */
#define SPATE_SINK_VEIL 800
void spate_sink_status_veil(struct spate_sink_status *status, const char *words);
/* The sink's thread is over. NULL: in order. */
void spate_sink_status_ended(struct spate_sink_status *status, const struct spate_err *err);

#endif
