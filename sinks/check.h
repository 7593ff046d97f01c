/* sinks/check.h - what would keep a sink from doing exactly what its file says, found out beforehand and
 * without making anything: bus, target, rights, tables, projections, place in the stream.
 *
 * The target is asked what a start asks it, by the same functions; where its parser judges an expression,
 * that happens in a temporary table of a transaction that is rolled back. Thread: main. Blocks: on bus and
 * target. */
#ifndef SPATE_SINKS_CHECK_H
#define SPATE_SINKS_CHECK_H

#include "core/finding.h"
#include "schemas/table.h"
#include "sinks/sink.h"

/* What the connector's file says, where it was given as well. */
struct spate_sink_check {
    bool with_connector;
    const struct spate_bus_config *bus;      /* the connector's; borrowed */
    const struct spate_table *const *tables; /* what its source publishes, or will; borrowed */
    size_t table_count;
    bool known; /* the source could be asked */
    /* May a sink of this name ask for this table (snapshots.allow)? NULL: nobody knows. */
    bool (*may_ask)(const void *arg, const char *sink, struct spate_slice schema, struct spate_slice table);
    const void *arg;
};

void spate_sink_check(const struct spate_sink_config *config, const struct spate_sink_check *with,
                      struct spate_findings *list);

#endif
