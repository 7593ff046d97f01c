/* sinks/run.h - one sink's loop, on one thread. Internal to sinks/. */
#ifndef SPATE_SINKS_RUN_H
#define SPATE_SINKS_RUN_H

#include "sinks/sink.h"

/* Runs until a stop is asked for (SPATE_OK) or the sink cannot go on (SPATE_FAIL; err says why, with the exit
 * code). What can pass by itself is retried with back-off and does not end it. */
SPATE_CHECKED enum spate_rc spate_sink_run(const struct spate_sink_config *config,
                                           const struct spate_sink_orders *orders, struct spate_err *err);

#endif
