/* sinks/asking.h - what a sink says and hears on `<connector>._control` (docs/message-format.md).
 *
 * What is here can be forgotten at any moment: the request's id and how far it came stand in the target with
 * the rows (sinks/load.h), and a request is sent again with its tokens. When, sinks/loading.h decides.
 *
 * Thread: the sink's. Blocks: opening; else never. */
#ifndef SPATE_SINKS_ASKING_H
#define SPATE_SINKS_ASKING_H

#include "bus/bus.h"
#include "core/arena.h"
#include "core/buf.h"
#include "core/err.h"
#include "core/log.h"
#include "schemas/control.h"
#include "sinks/load.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nothing was heard of a request for so long: it is sent again. */
#define SPATE_ASK_AGAIN_MS 30000

struct spate_asking {
    struct spate_bus *bus; /* borrowed */
    char *topic;           /* owned */
    struct spate_reader *reader;
    struct spate_writer *writer; /* open while there is something to say */
    struct spate_arena arena;    /* of the message that was read last */
    struct spate_buf line;
};

SPATE_CHECKED enum spate_rc spate_asking_init(struct spate_asking *asking, struct spate_bus *bus,
                                              const char *connector, struct spate_err *err);
void spate_asking_fini(struct spate_asking *asking);

enum spate_asking_from {
    SPATE_ASKING_LATELY, /* the last megabytes, as a driver has them at hand */
    SPATE_ASKING_OLDEST
};
/* Listens from there on. Nothing when it listens already. SPATE_FAIL (retry, err->missing): there is no such
 * topic yet. */
SPATE_CHECKED enum spate_rc spate_asking_listen(struct spate_asking *asking, enum spate_asking_from from,
                                                struct spate_err *err);
/* The next message; valid until the next call. What cannot be read is for the connector to answer.
 * SPATE_AGAIN: none now. SPATE_FAIL: the topic was let go of; listen again. */
SPATE_CHECKED enum spate_rc spate_asking_next(struct spate_asking *asking, struct spate_control *out,
                                              struct spate_slice *line, struct spate_err *err);
/* SPATE_OK: the bus has it. SPATE_AGAIN: not now, say it again later. SPATE_FAIL: the same, with a reason;
 * fatal: it cannot be said on this bus. */
SPATE_CHECKED enum spate_rc spate_asking_say(struct spate_asking *asking, const struct spate_control *control,
                                             struct spate_err *err);
/* Lets the writer go; what was said is on its way. */
void spate_asking_rest(struct spate_asking *asking);

#endif
