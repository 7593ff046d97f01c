/* sinks/sink.h - one team's sink: hears the stream, keeps the team's tables; and many of them in one process.
 */
#ifndef SPATE_SINKS_SINK_H
#define SPATE_SINKS_SINK_H

#include "bus/open.h"
#include "core/err.h"
#include "core/options.h"

#include <stdbool.h>
#include <stdint.h>

struct spate_sink_status;

/* One table of the team's own schema. */
struct spate_sink_table_config {
    struct spate_group_item item; /* item.name: the team's table */
    char *from;                   /* schema.table of the source, quoted like SQL where it has dots */
    char *where;                  /* SQL over the source's row, or NULL */
    struct spate_pairs columns;   /* target column -> SQL over the source's row; empty: all of them */
    struct spate_strings key;     /* target columns; empty: the source's key */
};

enum spate_sink_asks { SPATE_SINK_AUTO, SPATE_SINK_MANUAL };
enum spate_sink_ends { SPATE_SINK_SWEEP, SPATE_SINK_SWAP };

struct spate_sink_config {
    const char *path; /* of the file, for messages; set by the caller */
    char *name;       /* sink: */
    char *from;       /* the connector whose stream it hears */
    struct spate_bus_config bus;
    struct {
        char *url, *password_env, *password_file;
        char *schema;
    } into;
    struct spate_group tables; /* of struct spate_sink_table_config */
    int snapshot;              /* enum spate_sink_asks: when it asks for everything */
    int on_snapshot;           /* enum spate_sink_ends: what readers see while it comes */
    bool hold;                 /* the bus keeps for it what it has not applied */
    int64_t stop_deadline_ms;
    int log_level;
    char *status_listen; /* where the status pages are; NULL: nowhere */
    struct spate_sink_status
        *status; /* where a run reports what it does; set by spate_sinks_run, else NULL */
};

extern const struct spate_option_table spate_sink_tables[];
extern const size_t spate_sink_table_count;

/* What a person asks of one start. Both name a sink of the process. */
struct spate_sink_orders {
    const char *restart;     /* it forgets its position and begins as a new one would; NULL: none does */
    const char *const *skip; /* "NAME=POSITION": a record that is no message of ours is passed by there, now
                              * and at every later start (K29) */
    size_t skip_count;
};

/* Runs all sinks, a thread each, until a stop is asked for or every sink has stopped by itself. A sink that
 * stops is logged with its reason; the others go on. Returns the process' exit code: OK after an orderly
 * stop, else that of the first sink that stopped.
 * After SPATE_EXIT_DEADLINE a thread may still be running: `configs` and `orders` must stay until the process
 * ends. */
enum spate_exit spate_sinks_run(const struct spate_sink_config *configs, size_t count,
                                const struct spate_sink_orders *orders);

/* The position in "NAME=POSITION" when it is for this sink, else NULL. */
const char *spate_sink_skip_of(const char *order, const char *name);

#endif
