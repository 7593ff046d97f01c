/* sinks/known.h - a sink is known to its bus by name: people see how far it is, and with `hold` the bus keeps
 * for it what it has not applied.
 *
 * The name is a process' own for as long as it lives; one that takes a sink over from a frozen one gets it
 * later, and until then what that one held is held.
 * Thread: the sink's. Blocks: may wait for the disk, when the name is taken. Internal to sinks/. */
#ifndef SPATE_SINKS_KNOWN_H
#define SPATE_SINKS_KNOWN_H

#include "core/err.h"

struct spate_sink;
struct spate_sink_config;

/* SPATE_FAIL (fatal): the file says `hold`, and its bus cannot. */
SPATE_CHECKED enum spate_rc spate_known_check(const struct spate_sink_config *config, struct spate_err *err);

/* Takes the name where it is not this process' yet, and tells the bus what is done with. To be called when
 * the stream is open, and whenever the stored place moved; tries for the name at most every few seconds.
 * SPATE_FAIL (fatal): it is to hold, and may not write where it has to. */
SPATE_CHECKED enum spate_rc spate_known_turn(struct spate_sink *sink, struct spate_err *err);

#endif
