/* cli/bus_inspect.c - one topic: its segments, and the record at a position. */
#include "cli/bus.h"
#include "cli/columns.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/metric.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one record ---- */

/* "local:00000000000012c0", or the sixteen digits alone. */
static enum spate_rc parse_at(const char *text, uint64_t *pos, struct spate_err *err)
{
    char whole[SPATE_BUS_POS_TEXT];
    struct spate_bus_pos at;

    snprintf(whole, sizeof whole, "%s%s", strchr(text, ':') ? "" : "local:", text);
    if (spate_bus_pos_parse("local", whole, &at, err) != SPATE_OK)
        return SPATE_FAIL;
    *pos = at.at;
    return SPATE_OK;
}

static const char *stamp(uint64_t ns, char out[SPATE_TIMESTAMP_LEN + 1])
{
    spate_clock_format((int64_t)(ns / 1000), out);
    out[SPATE_TIMESTAMP_LEN] = '\0';
    return out;
}

static void flag_words(unsigned flags, struct spate_buf *out)
{
    static const char *const names[] = {"key",        "tombstone",  "batch-first",
                                        "batch-last", "compressed", "unchecked"};

    for (size_t i = 0; i < SPATE_COUNT(names); i++)
        if (flags & 1u << i)
            spate_buf_printf(out, "%s%s", out->len ? " " : "", names[i]);
}

static void show_record(const struct spate_local_seen *seen, const struct spate_local_record *record,
                        uint64_t at, bool json, struct spate_buf *out)
{
    const uint64_t word = atomic_load(&record->word),
                   next = at + spate_local_footprint(spate_local_len_of(word));
    uint64_t value = spate_local_len_of(word) - record->keylen;
    struct spate_local_spill_ref ref;
    struct spate_buf flags = {0};
    char when[SPATE_TIMESTAMP_LEN + 1], file[64] = "";

    if (spate_local_look_spilled(seen, at, record, &ref)) {
        value = ref.length;
        snprintf(file, sizeof file, "%016" PRIx64 ".spill", at);
    }
    flag_words(record->flags, &flags);
    stamp(record->ts_ns, when);
    if (json)
        spate_buf_printf(out,
                         "{\"position\":\"local:%016" PRIx64 "\",\"next\":\"local:%016" PRIx64
                         "\",\"flags\":\"%s\",\"time\":\"%s\",\"index\":%" PRIu32
                         ",\"key_bytes\":%u,\"value_bytes\":%" PRIu64
                         ",\"value_file\":%s%s%s,\"key_hash\":%" PRIu32 ",\"crc\":\"%08" PRIx32
                         "\",\"slot\":%u,\"gen\":%u}\n",
                         at, next, spate_buf_str(&flags), when, record->idx, record->keylen, value,
                         file[0] ? "\"" : "", file[0] ? file : "null", file[0] ? "\"" : "", record->keyhash,
                         record->crc, (unsigned)(word >> 44 & 0xfff), (unsigned)(word >> 32 & 0xfff));
    else
        spate_buf_printf(out,
                         "position  %016" PRIx64 "\nnext      %016" PRIx64 "\nflags     %s\ntime      %s\n"
                         "index     %" PRIu32 "\nkey       %u bytes, hash %08" PRIx32 "\nvalue     %" PRIu64
                         " bytes%s%s\ncrc       %08" PRIx32 "\nwriter    slot %u, gen %u\n",
                         at, next, flags.len ? spate_buf_str(&flags) : "none", when, record->idx,
                         record->keylen, record->keyhash, value, file[0] ? " in the file " : "", file,
                         record->crc, (unsigned)(word >> 44 & 0xfff), (unsigned)(word >> 32 & 0xfff));
    spate_buf_fini(&flags);
}

static enum spate_exit inspect_at(const struct spate_cli_bus *bus, const struct spate_local_seen *seen,
                                  struct spate_buf *out)
{
    struct spate_local_record record;
    struct spate_err err = {0};
    uint64_t pos, at = 0;

    if (parse_at(bus->at, &pos, &err) != SPATE_OK)
        return spate_cli_misuse(bus->text, "--at: %s", err.text);
    const enum spate_rc rc = spate_local_look_at(seen, pos, &record, &at, &err);
    if (rc == SPATE_FAIL)
        return spate_cli_failed(&err);
    if (rc == SPATE_END) {
        (void)spate_fail(&err, SPATE_RETRY,
                         "no record stands at %016" PRIx64 ": %s has them from %016" PRIx64
                         " up to %016" PRIx64,
                         pos, seen->topic.name, seen->first, seen->tip);
        return spate_cli_failed(&err);
    }
    show_record(seen, &record, at, bus->json, out);
    return SPATE_EXIT_OK;
}

/* ---- segments ---- */

static void place_words(const struct spate_local_seen_segment *segment, char out[32])
{
    snprintf(out, 32, "%s", segment->hot && segment->archived ? "both" : segment->hot ? "memory" : "disk");
}

/* A walk through both files of a segment. Returns false when one is damaged. */
static bool verify(const struct spate_local_seen *seen, const struct spate_local_seen_segment *segment,
                   struct spate_local_walk *shown, struct spate_buf *notes)
{
    bool good = !segment->cut;

    for (int archived = 1; archived >= 0; archived--) {
        struct spate_local_walk walk;
        struct spate_err err = {0};

        if (!(archived ? segment->archived : segment->hot))
            continue;
        const enum spate_rc rc = spate_local_look_walk(seen, segment->base, archived != 0, true, &walk, &err);
        if (rc == SPATE_END)
            continue; /* removed since: retention, or it is archived now */
        if (rc == SPATE_FAIL || walk.end == SPATE_LOCAL_WALK_DAMAGED) {
            good = false;
            spate_buf_printf(notes, "! segment %016" PRIx64 " %s, position %016" PRIx64 ": %s\n",
                             segment->base, archived ? "on disk" : "in memory", segment->base + walk.upto,
                             rc == SPATE_FAIL ? err.text : walk.damage);
        }
        *shown = walk;
    }
    return good;
}

static void json_segment(const struct spate_local_seen_segment *segment, const struct spate_local_walk *walk,
                         bool good, struct spate_buf *out)
{
    char when[SPATE_TIMESTAMP_LEN + 1];

    spate_buf_printf(out,
                     "{\"base\":\"local:%016" PRIx64 "\",\"hot\":%s,\"archived\":%s,\"hot_bytes\":%" PRIu64
                     ",\"archive_bytes\":%" PRIu64 ",\"used_bytes\":%" PRIu64 ",\"records\":%" PRIu64
                     ",\"sealed\":%s,\"created\":\"%s\"",
                     segment->base, segment->hot ? "true" : "false", segment->archived ? "true" : "false",
                     segment->hot_bytes, segment->archive_bytes, segment->used,
                     walk ? walk->records : segment->indices, segment->sealed ? "true" : "false",
                     stamp((uint64_t)segment->created_us * 1000, when));
    if (walk)
        spate_buf_printf(out,
                         ",\"good\":%s,\"pads\":%" PRIu64 ",\"pad_bytes\":%" PRIu64 ",\"spills\":%" PRIu64,
                         good ? "true" : "false", walk->pads, walk->pad_bytes, walk->spills);
    spate_buf_putc(out, '}');
}

static void add_segment(const struct spate_local_seen *seen, const struct spate_local_seen_segment *segment,
                        const struct spate_local_walk *walk, bool good, struct spate_columns *columns)
{
    char where[32], bytes[SPATE_QUANTITY], when[SPATE_TIMESTAMP_LEN + 1];

    place_words(segment, where);
    spate_columns_add(columns, "%016" PRIx64, segment->base);
    spate_columns_add(columns, "%s", where);
    spate_columns_add(
        columns, "%s",
        spate_quantity_bytes(segment->archived ? segment->archive_bytes : segment->hot_bytes, bytes));
    spate_columns_add(columns, "%" PRIu64, walk ? walk->records : segment->indices);
    spate_columns_add(columns, "%.19s", stamp((uint64_t)segment->created_us * 1000, when));
    if (walk)
        spate_columns_add(
            columns, good ? "good, %" PRIu64 " padded over" : "DAMAGED, %" PRIu64 " padded over", walk->pads);
    else
        spate_columns_add(columns, "%s",
                          segment->cut                                                ? "CUT"
                          : !segment->good                                            ? "NO HEADER"
                          : seen->hot && segment->base > atomic_load(&seen->ctl.head) ? "made ahead"
                          : segment->sealed                                           ? "full"
                          : segment->hot                                              ? "written"
                                                                                      : "ended");
}

static void facts(const struct spate_local_seen *seen, struct spate_buf *out)
{
    const struct spate_local_manifest *m = &seen->topic.manifest;
    char kind[SPATE_KIND], cap[SPATE_QUANTITY], disk[SPATE_QUANTITY], memory[SPATE_QUANTITY],
        spill[SPATE_QUANTITY];

    spate_buf_printf(out, "topic      %s (%s)\nlog        %s, generation %" PRIu64 ", segments of %s\n",
                     seen->topic.name, spate_cli_bus_kind(seen, kind), m->log_id, m->generation,
                     spate_quantity_bytes(m->cap, cap));
    spate_buf_printf(out, "size       %s on disk, %s in memory",
                     spate_quantity_bytes(seen->archive_bytes, disk),
                     spate_quantity_bytes(seen->hot_bytes, memory));
    if (seen->spills > 0)
        spate_buf_printf(out, ", %s of it in files of large values (%" PRIu64 ")",
                         spate_quantity_bytes(seen->spill_bytes, spill), seen->spills);
    spate_buf_printf(out, "\npositions  oldest %016" PRIx64, seen->first);
    if (!m->is_volatile)
        spate_buf_printf(out, ", durable up to %016" PRIx64, seen->durable);
    spate_buf_printf(out, ", tip %016" PRIx64 "\n", seen->tip);
    if (seen->hot)
        spate_buf_printf(out,
                         "gate       segments up to %016" PRIx64 " may be begun\ncounters   %" PRIu64
                         " padded over, %" PRIu64 " fenced, %" PRIu64 " segments taken by retention, %" PRIu64
                         " times no room\n",
                         atomic_load(&seen->ctl.gate), atomic_load(&seen->ctl.pads),
                         atomic_load(&seen->ctl.fences), atomic_load(&seen->ctl.gaps),
                         atomic_load(&seen->ctl.stalls));
    else
        spate_buf_puts(out, "memory     not there: a reboot, or nobody wrote since\n");
    spate_buf_printf(out, "steward    %s\n", seen->steward[0] ? seen->steward : "nobody now");
    spate_buf_printf(out, "writers    %s", seen->writer_count ? "" : "nobody\n");
    for (size_t i = 0; i < seen->writer_count; i++)
        spate_buf_printf(out, "%s%s (slot %u)\n", i ? "           " : "", seen->writers[i].who,
                         seen->writers[i].slot);
}

static enum spate_exit inspect_all(const struct spate_cli_bus *bus, const struct spate_local_seen *seen,
                                   struct spate_buf *out)
{
    static const char *const head[] = {"SEGMENT", "WHERE", "BYTES", "RECORDS", "BEGUN", "STATE"};
    struct spate_columns columns = {.width = SPATE_COUNT(head)};
    struct spate_buf notes = {0}, stopped = {0};
    bool all_good = true;

    if (bus->json) {
        spate_buf_putc(out, '{');
        spate_cli_bus_topic_json(seen, out);
        spate_buf_puts(out, ",\"segments\":[");
    } else {
        facts(seen, out);
        if (spate_cli_bus_stopped(seen, &stopped))
            spate_buf_printf(&notes, "! %s\n", spate_buf_str(&stopped));
        spate_cli_bus_cut(seen, &notes);
        for (size_t i = 0; i < SPATE_COUNT(head); i++)
            spate_columns_add(&columns, "%s", head[i]);
    }
    for (size_t i = 0; i < seen->segment_count; i++) {
        const struct spate_local_seen_segment *segment = &seen->segments[i];
        struct spate_local_walk walk = {0};
        const bool good = !bus->verify || verify(seen, segment, &walk, &notes);

        all_good = all_good && good;
        spate_buf_puts(out, bus->json && i ? "," : "");
        if (bus->json)
            json_segment(segment, bus->verify ? &walk : NULL, good, out);
        else
            add_segment(seen, segment, bus->verify ? &walk : NULL, good, &columns);
    }
    if (!all_good)
        spate_buf_puts(
            &notes,
            "  what is damaged on disk cannot be read: put the segment's file back from a copy, or move "
            "it away; whoever has not read it meets a gap, and a sink asks for its tables anew\n");
    if (bus->json) {
        spate_buf_puts(out, "]");
        if (bus->verify) {
            spate_buf_puts(out, ",\"damage\":");
            spate_metric_quote(out, spate_buf_str(&notes));
        }
        spate_buf_puts(out, "}\n");
    } else {
        spate_buf_putc(out, '\n');
        spate_columns_print(&columns, out);
        spate_buf_puts(out, notes.len ? "\n" : "");
        spate_buf_slice(out, spate_buf_view(&notes));
    }
    spate_buf_fini(&notes);
    spate_buf_fini(&stopped);
    return all_good ? SPATE_EXIT_OK : SPATE_EXIT_FAILED;
}

enum spate_exit spate_cli_bus_inspect(struct spate_cli_bus *bus)
{
    struct spate_local_seen seen;
    struct spate_buf out = {0};
    struct spate_err err = {0};
    enum spate_exit result, printed = SPATE_EXIT_OK;

    if (!spate_cli_bus_has(bus, bus->topic))
        return spate_cli_bus_no_topic(bus, bus->topic);
    const enum spate_rc rc = spate_local_look(&seen, bus->place, bus->topic, &err);
    if (rc == SPATE_END)
        (void)spate_fail(&err, SPATE_RETRY, "topic %s was removed meanwhile", bus->topic);
    if (rc != SPATE_OK)
        result = spate_cli_failed(&err);
    else
        result = bus->at ? inspect_at(bus, &seen, &out) : inspect_all(bus, &seen, &out);
    if (out.len > 0)
        printed = spate_cli_print(&out);
    spate_local_look_fini(&seen);
    spate_buf_fini(&out);
    return result != SPATE_EXIT_OK ? result : printed;
}
