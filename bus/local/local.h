/* bus/local/local.h - the embedded bus: a shared-memory log per topic with an archive on the disk.
 *
 * No server process. bus/open.c makes one; everybody else sees bus/bus.h only.
 * Thread: that of the handle. Contract: tests/contract/bus_contract_test.c. */
#ifndef SPATE_BUS_LOCAL_LOCAL_H
#define SPATE_BUS_LOCAL_LOCAL_H

#include "bus/bus.h"
#include "bus/local/place.h"

#include <stdint.h>

struct spate_local_bus {
    struct spate_bus base;
    struct spate_local_place place;
};

SPATE_CHECKED enum spate_rc spate_local_bus_open(const char *path, const char *hot, int64_t segment_bytes,
                                                 struct spate_bus **bus, struct spate_err *err);

/* The same with all that a process is configured with; the place is copied. */
SPATE_CHECKED enum spate_rc spate_local_bus_open_at(const struct spate_local_place *place,
                                                    struct spate_bus **bus, struct spate_err *err);

SPATE_CHECKED enum spate_rc spate_local_writer_open(struct spate_bus *bus, const char *topic, unsigned flags,
                                                    struct spate_writer **writer, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_local_reader_open(struct spate_bus *bus, const char *topic,
                                                    enum spate_visibility see, struct spate_start start,
                                                    struct spate_reader **reader, struct spate_err *err);

/* Both roots, their room, and the logs that are there (bus/local/check.c). */
void spate_local_check(struct spate_bus *bus, const char *stream, bool writes, struct spate_findings *list);

#endif
