/* core/signals.h - SIGTERM and SIGINT become a descriptor and a flag.
 *
 * Thread: call _init from main before any other thread starts. SIGPIPE is ignored from then on.
 * The first signal asks for an orderly stop; a second one ends the process at once with 128+signal. */
#ifndef SPATE_CORE_SIGNALS_H
#define SPATE_CORE_SIGNALS_H

#include <stdbool.h>

void spate_signals_init(void);
int spate_signals_fd(void);       /* readable once a stop was asked for, and stays so; for poll(2) */
bool spate_signals_stop(void);    /* has a stop been asked for? any thread */
void spate_signals_request(void); /* asks for a stop from within (tests, tap) */

#endif
