/* bus/local/local.c - the bus handle: what its topics are, and how to open them. */
#include "bus/local/local.h"

#include "bus/local/broken.h"
#include "bus/local/layout.h"
#include "bus/local/named.h"
#include "core/alloc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef SPATE_CONTROLS
enum spate_broken spate_broken;
#endif

#define SEGMENT_LEAST (INT64_C(1) << 20)
#define SEGMENT_MOST  (INT64_C(1) << 30)

static enum spate_rc topics(struct spate_bus *base, void (*each)(void *arg, const char *topic), void *arg,
                            struct spate_err *err)
{
    struct spate_local_bus *bus = (struct spate_local_bus *)base;
    const struct dirent *entry;
    int root;
    enum spate_rc rc = spate_local_place_durable(&bus->place, &root, err);

    if (rc != SPATE_OK)
        return rc == SPATE_END ? SPATE_OK : rc; /* nobody has written yet */
    DIR *dir = fdopendir(root);
    if (!dir) {
        rc = spate_fail(err, SPATE_RETRY, "cannot list the topics below %s: %s", bus->place.path,
                        strerror(errno));
        close(root);
        return rc;
    }
    while ((entry = readdir(dir)) != NULL) {
        char manifest[sizeof entry->d_name + sizeof "/manifest"];
        if (!spate_local_name_good(entry->d_name) || strcmp(entry->d_name, SPATE_LOCAL_READERS) == 0)
            continue;
        strcpy(manifest, entry->d_name);
        strcat(manifest, "/manifest");
        if (faccessat(root, manifest, F_OK, 0) == 0)
            each(arg, entry->d_name);
    }
    closedir(dir);
    return SPATE_OK;
}

static void close_bus(struct spate_bus *base)
{
    struct spate_local_bus *bus = (struct spate_local_bus *)base;

    free(bus->place.path);
    free(bus->place.hot);
    free(bus);
}

static const struct spate_bus_ops local_ops = {.name = "local",
                                               .unit = "bytes",
                                               .writer_open = spate_local_writer_open,
                                               .reader_open = spate_local_reader_open,
                                               .topics = topics,
                                               .check = spate_local_check,
                                               .close = close_bus};

enum spate_rc spate_local_bus_open_at(const struct spate_local_place *place, struct spate_bus **bus,
                                      struct spate_err *err)
{
    const char *path = place->path, *hot = place->hot;
    const int64_t segment_bytes = place->segment_bytes;

    if (!path || path[0] == '\0' || strlen(path) > 3000 || (hot && (hot[0] == '\0' || strlen(hot) > 3000))) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(err, SPATE_FATAL, "no bus is configured: set bus.local.path to a directory");
    }
    if (segment_bytes != 0 && (segment_bytes < SEGMENT_LEAST || segment_bytes > SEGMENT_MOST ||
                               (segment_bytes & (segment_bytes - 1)) != 0)) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(err, SPATE_FATAL,
                          "bus.local.segment_bytes is %lld, expected a power of two from 1MiB to 1GiB",
                          (long long)segment_bytes);
    }
    struct spate_local_bus *made = spate_zalloc(sizeof *made);
    made->base.ops = &local_ops;
    made->place = *place;
    made->place.path = spate_strdup(path);
    made->place.hot = hot ? spate_strdup(hot) : NULL;
    *bus = &made->base;
    return SPATE_OK;
}

enum spate_rc spate_local_bus_open(const char *path, const char *hot, int64_t segment_bytes,
                                   struct spate_bus **bus, struct spate_err *err)
{
    const struct spate_local_place place = {
        .path = (char *)(uintptr_t)path, .hot = (char *)(uintptr_t)hot, .segment_bytes = segment_bytes};

    return spate_local_bus_open_at(&place, bus, err);
}
