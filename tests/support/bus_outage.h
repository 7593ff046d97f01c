/* tests/support/bus_outage.h - what a process did to the files below a directory, call by call.
 *
 * Written by tests/unit/buslab_outage_test.c, read by tests/support/bus_outage.c, which makes of it what a
 * power cut may leave. Both know nothing of a bus here: only of files. Entries stand one after the other,
 * each followed by `len` bytes. */
#ifndef SPATE_TESTS_SUPPORT_BUS_OUTAGE_H
#define SPATE_TESTS_SUPPORT_BUS_OUTAGE_H

#include <stdint.h>

enum outage_what {
    OUTAGE_MKDIR = 1, /* file: the new one; dir, name */
    OUTAGE_CREATE,    /* file: the new one; dir, name */
    OUTAGE_WRITE,     /* file, offset, bytes */
    OUTAGE_SIZE,      /* file, offset: the new size */
    OUTAGE_SYNC,      /* file */
    OUTAGE_SYNC_DIR,  /* file: of the directory */
    OUTAGE_RENAME,    /* dir, bytes: both names, each with its NUL */
    OUTAGE_LINK,      /* dir, bytes: both names */
    OUTAGE_UNLINK,    /* dir, name */
    OUTAGE_PROMISE    /* dir: which counter, offset: what it has reached now. What was promised to somebody */
};

struct outage_entry {
    uint32_t what, file, dir, len;
    uint64_t offset;
};

#define OUTAGE_ROOT     1 /* the directory that all begins with */
#define OUTAGE_COUNTERS 8

#endif
