/* Any bytes as a configuration file: loaded or refused with a place, never a leak, never a crash; what was
 * loaded can be printed and loaded again with the same meaning. */
#include "config/load.h"
#include "core/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

struct item {
    struct spate_group_item item;
    char *from;
    struct spate_pairs columns;
    struct spate_strings key;
};

struct config {
    char *name, *url;
    bool create;
    int64_t count, pause, size;
    int level;
    struct spate_strings tables;
    struct spate_group items;
};

static const char *const levels[] = {"debug", "info", NULL};

static const struct spate_option item_options[] = {
    {.key = "from",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct item, from),
     .flags = SPATE_OPT_REQUIRED},
    {.key = "columns", .type = SPATE_OPT_MAP, .offset = offsetof(struct item, columns)},
    {.key = "key", .type = SPATE_OPT_LIST, .offset = offsetof(struct item, key)},
};
static const struct spate_option_group item_group = {
    .size = sizeof(struct item), .options = item_options, .count = SPATE_COUNT(item_options), .item = "ITEM"};
static const struct spate_option options[] = {
    {.key = "connector", .type = SPATE_OPT_STRING, .offset = offsetof(struct config, name)},
    {.key = "source.postgres.url", .type = SPATE_OPT_STRING, .offset = offsetof(struct config, url)},
    {.key = "source.postgres.create", .type = SPATE_OPT_BOOL, .offset = offsetof(struct config, create)},
    {.key = "count", .type = SPATE_OPT_INT, .offset = offsetof(struct config, count), .fallback = "3"},
    {.key = "heartbeat",
     .type = SPATE_OPT_DURATION,
     .offset = offsetof(struct config, pause),
     .fallback = "10s"},
    {.key = "bus.local.segment_bytes", .type = SPATE_OPT_BYTES, .offset = offsetof(struct config, size)},
    {.key = "log_level", .type = SPATE_OPT_ENUM, .offset = offsetof(struct config, level), .choices = levels},
    {.key = "tables", .type = SPATE_OPT_LIST, .offset = offsetof(struct config, tables), .fallback = "a"},
    {.key = "into", .type = SPATE_OPT_GROUP, .offset = offsetof(struct config, items), .group = &item_group},
};
static const struct spate_option_table table = {
    .prefix = "", .options = options, .count = SPATE_COUNT(options)};

static enum spate_rc load(const void *data, size_t size, struct config *config, struct spate_err *err)
{
    static int fd = -1;
    char path[64];

    if (fd < 0)
        fd = memfd_create("config", 0);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return spate_config_load(path, &table, 1, config, err);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    struct spate_buf first = {0}, second = {0};
    struct spate_err err = {0};
    struct config config;

    if (load(data, size, &config, &err) == SPATE_OK) {
        spate_config_print(&first, &table, 1, &config);
        spate_options_fini(&config, &table, 1);
        if (load(first.data, first.len, &config, &err) != SPATE_OK)
            abort();
        spate_config_print(&second, &table, 1, &config);
        spate_options_fini(&config, &table, 1);
        if (!spate_slice_eq(spate_buf_view(&first), spate_buf_view(&second)))
            abort();
    } else if (err.text[0] == '\0' || err.exit_code != SPATE_EXIT_CONFIG) {
        abort();
    }
    spate_buf_fini(&first);
    spate_buf_fini(&second);
    return 0;
}
