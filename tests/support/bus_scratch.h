/* tests/support/bus_scratch.h - a bus of a test's own: two directories that vanish with it. */
#ifndef SPATE_TESTS_SUPPORT_BUS_SCRATCH_H
#define SPATE_TESTS_SUPPORT_BUS_SCRATCH_H

#include "bus/open.h"
#include "core/clock.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bus_scratch {
    char path[128], hot[128];
    struct spate_bus_config config;
};

static inline int bus_scratch_unlink(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void bus_scratch_remove(const char *path)
{
    nftw(path, bus_scratch_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void bus_scratch_init(struct bus_scratch *s, int64_t segment_bytes)
{
    const char *tmp = getenv("TMPDIR");

    memset(s, 0, sizeof *s);
    snprintf(s->path, sizeof s->path, "%.90s/spate-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    snprintf(s->hot, sizeof s->hot, "/dev/shm/spate-test-XXXXXX");
    if (!mkdtemp(s->path) || !mkdtemp(s->hot)) {
        perror("mkdtemp");
        abort();
    }
    s->config = (struct spate_bus_config){
        .local_path = s->path, .local_hot = s->hot, .local_segment_bytes = segment_bytes};
}

static inline void bus_scratch_fini(struct bus_scratch *s)
{
    bus_scratch_remove(s->path);
    bus_scratch_remove(s->hot);
}

/* As if the machine had been switched off: the shared memory is gone. */
static inline void bus_scratch_reboot(struct bus_scratch *s)
{
    bus_scratch_remove(s->hot);
}

#endif
