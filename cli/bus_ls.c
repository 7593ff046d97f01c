/* cli/bus_ls.c - all topics of a local bus, and the facts of one. */
#include "cli/bus.h"
#include "cli/columns.h"

#include "bus/local/local.h"
#include "core/alloc.h"
#include "core/metric.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>

const char *spate_cli_bus_kind(const struct spate_local_seen *seen, char out[SPATE_KIND])
{
    snprintf(out, SPATE_KIND, "%s%s%s", seen->topic.manifest.is_volatile ? "volatile" : "durable",
             seen->shared ? ", shared" : "", seen->topic.manifest.keeps ? ", kept" : "");
    return out;
}

static const char *gate_word(const struct spate_local_seen *seen)
{
    switch (atomic_load(&seen->ctl.gate_why)) {
    case SPATE_LOCAL_GATE_DISK:
        return "disk";
    case SPATE_LOCAL_GATE_HOLD:
        return "hold";
    default:
        return "promise";
    }
}

#define STILL_MS 1000
#define LOOK_MS  50

/* At full speed the log is now and then as far ahead of the disk as it may be; only a disk that does not move
 * is worth a word. */
static bool stands_still(const struct spate_local_seen *seen)
{
    for (int waited_ms = 0; waited_ms < STILL_MS; waited_ms += LOOK_MS) {
        if (spate_local_look_durable(seen) != seen->durable)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000L}, NULL);
    }
    return true;
}

/* A holder's limit is told as soon as it stands ahead, the disk's when the last segment is full. What the
 * manifest promises is renewed ahead of need. */
static bool at_the_gate(const struct spate_local_seen *seen)
{
    const uint64_t cap = seen->topic.manifest.cap, head = seen->hot ? atomic_load(&seen->ctl.head) : 0;

    if (!seen->hot || seen->writer_count == 0 || head + cap <= atomic_load(&seen->ctl.gate))
        return false;
    return atomic_load(&seen->ctl.gate_why) == SPATE_LOCAL_GATE_HOLD ||
           (atomic_load(&seen->ctl.gate_why) == SPATE_LOCAL_GATE_DISK && seen->tip >= head + cap &&
            stands_still(seen));
}

bool spate_cli_bus_stopped(const struct spate_local_seen *seen, struct spate_buf *out)
{
    char quantity[SPATE_QUANTITY];

    if (!at_the_gate(seen))
        return false;
    if (atomic_load(&seen->ctl.gate_why) == SPATE_LOCAL_GATE_HOLD)
        spate_buf_printf(
            out,
            "%s takes nothing beyond its present segment: its archive is at its limit, and a reader "
            "holds what it has not passed, from %016" PRIx64
            " on. spate bus readers %s shows who; let it catch up, or: spate bus release NAME %s",
            seen->topic.name, atomic_load(&seen->ctl.hold), seen->topic.name, seen->topic.name);
    else
        spate_buf_printf(
            out,
            "%s takes nothing beyond its present segment: %s are not durable yet, as much as shared "
            "memory may hold. The disk of %s is full or slow; make room there, and it goes on by "
            "itself",
            seen->topic.name, spate_quantity_bytes(seen->tip - seen->durable, quantity),
            seen->topic.place->path);
    return true;
}

static void json_position(struct spate_buf *out, const char *name, uint64_t pos)
{
    char text[SPATE_BUS_POS_TEXT];

    spate_bus_pos_format("local", (struct spate_bus_pos){.at = pos}, text);
    spate_buf_printf(out, ",\"%s\":\"%s\"", name, text);
}

static void json_counts(const struct spate_local_seen *seen, struct spate_buf *out)
{
    uint64_t hot = 0, archived = 0;

    for (size_t i = 0; i < seen->segment_count; i++) {
        hot += seen->segments[i].hot;
        archived += seen->segments[i].archived;
    }
    spate_buf_printf(out,
                     ",\"segment_bytes\":%" PRIu64 ",\"segments_hot\":%" PRIu64
                     ",\"segments_archived\":%" PRIu64 ",\"hot_bytes\":%" PRIu64 ",\"archive_bytes\":%" PRIu64
                     ",\"spills\":%" PRIu64 ",\"spill_bytes\":%" PRIu64,
                     seen->topic.manifest.cap, hot, archived, seen->hot_bytes, seen->archive_bytes,
                     seen->spills, seen->spill_bytes);
}

static void json_live(const struct spate_local_seen *seen, struct spate_buf *out)
{
    struct spate_buf words = {0};

    spate_buf_printf(out, ",\"in_memory\":%s", seen->hot ? "true" : "false");
    if (seen->hot) {
        json_position(out, "gate", atomic_load(&seen->ctl.gate));
        spate_buf_printf(out, ",\"gate_why\":\"%s\"", gate_word(seen));
        if (atomic_load(&seen->ctl.hold) != UINT64_MAX)
            json_position(out, "held_from", atomic_load(&seen->ctl.hold));
        spate_buf_printf(
            out, ",\"pads\":%" PRIu64 ",\"fences\":%" PRIu64 ",\"gaps\":%" PRIu64 ",\"stalls\":%" PRIu64,
            atomic_load(&seen->ctl.pads), atomic_load(&seen->ctl.fences), atomic_load(&seen->ctl.gaps),
            atomic_load(&seen->ctl.stalls));
    }
    spate_buf_puts(out, ",\"stopped\":");
    if (spate_cli_bus_stopped(seen, &words))
        spate_metric_quote(out, spate_buf_str(&words));
    else
        spate_buf_puts(out, "null");
    spate_buf_fini(&words);
}

void spate_cli_bus_topic_json(const struct spate_local_seen *seen, struct spate_buf *out)
{
    const struct spate_local_manifest *manifest = &seen->topic.manifest;

    spate_buf_printf(out,
                     "\"topic\":\"%s\",\"log\":\"%s\",\"volatile\":%s,\"shared\":%s,\"kept\":%s,"
                     "\"generation\":%" PRIu64,
                     seen->topic.name, manifest->log_id, manifest->is_volatile ? "true" : "false",
                     seen->shared ? "true" : "false", manifest->keeps ? "true" : "false",
                     manifest->generation);
    json_position(out, "oldest", seen->first);
    if (manifest->is_volatile)
        spate_buf_puts(out, ",\"durable\":null");
    else
        json_position(out, "durable", seen->durable);
    json_position(out, "tip", seen->tip);
    json_counts(seen, out);
    if (manifest->ruled)
        spate_buf_printf(out, ",\"retention_seconds\":%" PRId64 ",\"retention_bytes\":%" PRId64,
                         manifest->retention_ms / 1000, manifest->retention_bytes);
    json_live(seen, out);
    spate_buf_puts(out, ",\"steward\":");
    if (seen->steward[0])
        spate_metric_quote(out, seen->steward);
    else
        spate_buf_puts(out, "null");
    spate_buf_puts(out, ",\"writers\":[");
    for (size_t i = 0; i < seen->writer_count; i++) {
        spate_buf_printf(out, "%s{\"slot\":%u,\"who\":", i ? "," : "", seen->writers[i].slot);
        spate_metric_quote(out, seen->writers[i].who);
        spate_buf_putc(out, '}');
    }
    spate_buf_putc(out, ']');
}

/* ---- all topics ---- */

static const char *keeps(const struct spate_local_manifest *manifest, char out[64])
{
    char age[SPATE_QUANTITY], size[SPATE_QUANTITY];

    if (manifest->keeps || !manifest->ruled || manifest->is_volatile)
        snprintf(out, 64, "%s", manifest->is_volatile ? "while in memory" : "all");
    else
        snprintf(out, 64, "%s, %s",
                 manifest->retention_ms ? spate_quantity_time(manifest->retention_ms * 1000, age) : "any age",
                 manifest->retention_bytes > 0
                     ? spate_quantity_bytes((uint64_t)manifest->retention_bytes, size)
                 : manifest->retention_bytes < 0 ? "any size"
                                                 : "half the disk");
    return out;
}

static void add_writers(const struct spate_local_seen *seen, struct spate_columns *columns)
{
    if (seen->writer_count == 0)
        spate_columns_add(columns, "nobody");
    else if (seen->writer_count == 1)
        spate_columns_add(columns, "%s", seen->writers[0].who);
    else
        spate_columns_add(columns, "%zu, one of them %s", seen->writer_count, seen->writers[0].who);
}

static void add_topic(const struct spate_local_seen *seen, struct spate_columns *columns)
{
    char kind[SPATE_KIND], rule[64], disk[SPATE_QUANTITY], memory[SPATE_QUANTITY];
    size_t hot = 0, archived = 0;

    for (size_t i = 0; i < seen->segment_count; i++) {
        hot += seen->segments[i].hot;
        archived += seen->segments[i].archived;
    }
    spate_columns_add(columns, "%s", seen->topic.name);
    spate_columns_add(columns, "%s", spate_cli_bus_kind(seen, kind));
    spate_columns_add(columns, "%zu: %s", archived, spate_quantity_bytes(seen->archive_bytes, disk));
    spate_columns_add(columns, "%zu: %s", hot, spate_quantity_bytes(seen->hot_bytes, memory));
    spate_columns_add(columns, "%s", keeps(&seen->topic.manifest, rule));
    spate_columns_add(columns, "%016" PRIx64, seen->first);
    if (seen->topic.manifest.is_volatile)
        spate_columns_add(columns, "-");
    else
        spate_columns_add(columns, "%016" PRIx64, seen->durable);
    spate_columns_add(columns, "%016" PRIx64, seen->tip);
    add_writers(seen, columns);
}

struct listing {
    struct spate_columns columns;
    struct spate_buf rows, notes; /* rows: of JSON */
    struct spate_buf absent;      /* topics that are not in shared memory; ... */
    struct spate_buf elsewhere;   /* ... though somebody writes them */
    uint64_t disk, memory;
    size_t count;
};

void spate_cli_bus_cut(const struct spate_local_seen *seen, struct spate_buf *out)
{
    char hot[SPATE_LOCAL_PATH] = "?";
    struct spate_err ignored = {0};

    for (size_t i = 0; i < seen->segment_count; i++) {
        if (!seen->segments[i].cut)
            continue;
        if (spate_local_place_hot_path(seen->topic.place, hot, &ignored) != SPATE_OK)
            strcpy(hot, "?");
        spate_buf_printf(
            out,
            "! somebody cut the segment %016" PRIx64
            " of %s in shared memory. Stop the connector and the sinks of this bus, then: rm -r '%s/%s' "
            "- it is made anew from what is durable, and the source sends the rest again\n",
            seen->segments[i].base, seen->topic.name, hot, seen->topic.name);
    }
}

static void notes(const struct spate_local_seen *seen, struct listing *listing)
{
    struct spate_buf words = {0};

    if (spate_cli_bus_stopped(seen, &words))
        spate_buf_printf(&listing->notes, "! %s\n", spate_buf_str(&words));
    spate_cli_bus_cut(seen, &listing->notes);
    struct spate_buf *list = seen->writer_count > 0 ? &listing->elsewhere : &listing->absent;
    if (!seen->hot && seen->topic.manifest.hot != 0)
        spate_buf_printf(list, "%s%s", list->len ? ", " : "", seen->topic.name);
    spate_buf_fini(&words);
}

static void root_line(const char *what, const char *path, uint64_t used, struct spate_buf *out)
{
    char taken[SPATE_QUANTITY], room[SPATE_QUANTITY];
    struct statvfs fs;

    spate_buf_printf(out, "%-7s %s: %s used", what, path, spate_quantity_bytes(used, taken));
    if (statvfs(path, &fs) == 0)
        spate_buf_printf(out, ", %s free", spate_quantity_bytes((uint64_t)fs.f_bavail * fs.f_frsize, room));
    spate_buf_putc(out, '\n');
}

static void json_root(const char *name, const char *path, uint64_t used, struct spate_buf *out)
{
    struct statvfs fs;

    spate_buf_printf(out, "\"%s\":", name);
    spate_metric_quote(out, path);
    spate_buf_printf(out, ",\"%s_used_bytes\":%" PRIu64, name, used);
    if (statvfs(path, &fs) == 0)
        spate_buf_printf(out, ",\"%s_free_bytes\":%" PRIu64, name, (uint64_t)fs.f_bavail * fs.f_frsize);
    spate_buf_putc(out, ',');
}

static void list_topic(struct listing *listing, const struct spate_local_seen *seen, bool json)
{
    if (json) {
        spate_buf_puts(&listing->rows, listing->count ? ",{" : "{");
        spate_cli_bus_topic_json(seen, &listing->rows);
        spate_buf_putc(&listing->rows, '}');
    } else {
        add_topic(seen, &listing->columns);
        notes(seen, listing);
    }
    listing->disk += seen->archive_bytes;
    listing->memory += seen->hot_bytes;
    listing->count++;
}

static void print_text(const struct spate_cli_bus *bus, struct listing *listing, const char *hot,
                       struct spate_buf *out)
{
    root_line("disk", bus->place->path, listing->disk, out);
    root_line("memory", hot, listing->memory, out);
    spate_buf_putc(out, '\n');
    spate_columns_print(&listing->columns, out);
    if (listing->count == 0)
        spate_buf_puts(out, "no topic yet: a connector makes them when it starts\n");
    if (listing->elsewhere.len)
        spate_buf_printf(
            &listing->notes,
            "! written, but not in the shared memory that this command sees: %s. Either somebody removed "
            "it, and it is made anew within seconds; or the writer has another /dev/shm (containers: set "
            "bus.local.hot to a tmpfs that all of them mount)\n",
            spate_buf_str(&listing->elsewhere));
    if (listing->absent.len)
        spate_buf_printf(
            &listing->notes,
            "not in shared memory (a reboot, and nobody wrote since): %s. Readers see what is on disk; "
            "the next writer goes on behind it\n",
            spate_buf_str(&listing->absent));
    spate_buf_puts(out, listing->notes.len ? "\n" : "");
    spate_buf_slice(out, spate_buf_view(&listing->notes));
}

static void print_json(const struct spate_cli_bus *bus, const struct listing *listing, const char *hot,
                       struct spate_buf *out)
{
    spate_buf_putc(out, '{');
    json_root("path", bus->place->path, listing->disk, out);
    json_root("hot", hot, listing->memory, out);
    spate_buf_puts(out, "\"topics\":[");
    spate_buf_slice(out, spate_buf_view(&listing->rows));
    spate_buf_puts(out, "]}\n");
}

enum spate_exit spate_cli_bus_ls(struct spate_cli_bus *bus)
{
    static const char *const head[] = {"TOPIC",  "KIND",    "ON DISK", "IN MEMORY", "KEEPS",
                                       "OLDEST", "DURABLE", "TIP",     "WRITTEN BY"};
    struct listing listing = {.columns = {.width = SPATE_COUNT(head)}};
    struct spate_buf out = {0};
    char hot[SPATE_LOCAL_PATH];
    enum spate_exit result = SPATE_EXIT_OK;

    for (size_t i = 0; i < SPATE_COUNT(head) && !bus->json; i++)
        spate_columns_add(&listing.columns, "%s", head[i]);
    for (size_t i = 0; i < bus->topic_count; i++) {
        struct spate_local_seen seen;
        struct spate_err err = {0};
        const enum spate_rc rc = spate_local_look(&seen, bus->place, bus->topics[i], &err);

        if (rc == SPATE_OK)
            list_topic(&listing, &seen, bus->json);
        else if (rc == SPATE_FAIL) /* the others are shown all the same */
            result = spate_cli_failed(&err);
        spate_local_look_fini(&seen);
    }
    struct spate_err ignored = {0};
    if (spate_local_place_hot_path(bus->place, hot, &ignored) != SPATE_OK)
        snprintf(hot, sizeof hot, "?");
    if (bus->json)
        print_json(bus, &listing, hot, &out);
    else
        print_text(bus, &listing, hot, &out);
    const enum spate_exit printed = spate_cli_print(&out);
    spate_buf_fini(&out);
    spate_buf_fini(&listing.rows);
    spate_buf_fini(&listing.notes);
    spate_buf_fini(&listing.absent);
    spate_buf_fini(&listing.elsewhere);
    return result != SPATE_EXIT_OK ? result : printed;
}
