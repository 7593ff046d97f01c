/* sinks/asking.h - the requester: when a sink asks for everything, what it has heard of it on
 * `<connector>._control`, and what it says there (docs/message-format.md).
 *
 * The request's id and its progress stand in the target with the rows (sinks/load.h); what is here can be
 * forgotten at any moment: a request is sent again with its tokens when the connector says that it
 * (re)started, when nothing was heard of it for 30 s, or when a chunk was lost.
 *
 * Thread: the sink's. Blocks: opening; else never. */
#ifndef SPATE_SINKS_ASKING_H
#define SPATE_SINKS_ASKING_H

#include "bus/bus.h"
#include "core/arena.h"
#include "core/err.h"
#include "sinks/load.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPATE_ASK_AGAIN_MS 30000

struct spate_asking {
    struct spate_reader *reader; /* of _control; owned */
    struct spate_writer *writer; /* the same; owned */
    char *topic;
    const char *sink;                 /* our name: what is `to` us; borrowed */
    char request[SPATE_REQUEST_MOST]; /* "" when nothing is asked for */
    bool conditional;
    int64_t heard_ms; /* when the connector said something about the request */
    bool send;        /* the request is to be sent (again) now */
    bool reread_out;  /* keys were asked for, and no chunk answered yet */
    struct spate_arena arena;
};

#endif
