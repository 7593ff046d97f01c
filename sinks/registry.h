/* sinks/registry.h - what `<connector>._schemas` says: versions of the tables a sink listens to, and the
 * epochs.
 *
 * Thread: the sink's. Blocks: never; it reads what is durable there now. */
#ifndef SPATE_SINKS_REGISTRY_H
#define SPATE_SINKS_REGISTRY_H

#include "bus/bus.h"
#include "core/arena.h"
#include "schemas/codec.h"

struct spate_registry {
    struct spate_reader *reader; /* owned */
    const char *driver;          /* of the bus, for positions in texts */
    char *topic;
    /* Every version of every table there is; only the wanted ones are kept whole. */
    struct spate_table **tables;
    size_t table_count, table_capacity;
    char **names; /* "schema.table" of all tables, once each: for "did you mean" */
    size_t name_count;
    uint32_t *slots; /* where a name stands in names, plus one; by hash; a power of two of them */
    size_t slot_count;
    char **gone; /* those of the wanted ones that are not published any more, by the connector's last word */
    size_t gone_count;
    bool (*wanted)(void *arg, struct spate_slice schema, struct spate_slice table);
    void *arg;
    bool has_epoch;
    uint64_t epoch; /* the newest */
    char uuid[37];
    struct spate_arena arena;
};

/* SPATE_FAIL (retry): there is no such topic yet. */
SPATE_CHECKED enum spate_rc
spate_registry_open(struct spate_registry *registry, struct spate_bus *bus, const char *topic,
                    bool (*wanted)(void *, struct spate_slice, struct spate_slice), void *arg,
                    struct spate_err *err);
/* Reads on to the end of what is durable. */
SPATE_CHECKED enum spate_rc spate_registry_read(struct spate_registry *registry, struct spate_err *err);
/* v 0: the version published last. NULL: not there. */
const struct spate_table *spate_registry_find(const struct spate_registry *registry,
                                              struct spate_slice schema, struct spate_slice table,
                                              uint32_t v);
/* Has the connector said that it does not publish the table any more? */
bool spate_registry_gone(const struct spate_registry *registry, const char *schema, const char *table);
/* Was a version published before another one of the same table? A version that is published again counts as
 * new. */
bool spate_registry_precedes(const struct spate_registry *registry, const struct spate_table *first,
                             const struct spate_table *second);
void spate_registry_close(struct spate_registry *registry);

#endif
