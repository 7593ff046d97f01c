/* cli/bus_readers.c - readers that are known by a name, and letting go of what they hold. */
#include "cli/bus.h"
#include "cli/columns.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/metric.h"
#include "core/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct spate_local_named_view view;
    bool of_this_log;  /* else its position is one of a log that was removed */
    bool lost;         /* retention took some of what it has not passed */
    uint64_t end;      /* of what it may see now */
    uint64_t bytes;    /* that it has not passed; as far as they are there */
    int64_t records;   /* at most; -1: cannot be told */
    int64_t behind_us; /* age of the first of them; -1: not known */
    int64_t said_us;   /* since it said where it is */
    int64_t left_us;   /* of a dead holder: until it is released by itself; -1: never, or not to be */
};

struct readers {
    struct entry *entries; /* owned */
    size_t count;
};

static void note_view(void *arg, const struct spate_local_named_view *view)
{
    struct readers *readers = arg;

    readers->entries = spate_realloc(readers->entries, (readers->count + 1) * sizeof *readers->entries);
    readers->entries[readers->count++] = (struct entry){.view = *view, .records = -1, .behind_us = -1};
}

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    const int order = strcmp(x->view.name, y->view.name);

    return order ? order : strcmp(x->view.topic, y->view.topic);
}

/* ---- how far behind ---- */

static int64_t since(uint64_t ts_ns, int64_t now_us)
{
    const int64_t us = now_us - (int64_t)(ts_ns / 1000);

    return us > 0 ? us : 0; /* the clock may have stepped back */
}

static void measure(struct entry *entry, const struct spate_local_seen *seen)
{
    const struct spate_local_manifest *manifest = &seen->topic.manifest;
    const int64_t now_us = spate_clock_wall_us();
    struct spate_local_record header;
    struct spate_err ignored = {0};
    uint64_t pos = entry->view.mark.pos, at;

    entry->said_us = entry->view.marked ? since(entry->view.mark.ts_ns, now_us) : -1;
    entry->left_us = -1;
    entry->of_this_log =
        entry->view.marked && entry->view.mark.log == spate_local_log_number(manifest->log_id);
    if (!entry->of_this_log)
        return;
    entry->end = manifest->is_volatile ? seen->tip : seen->durable;
    entry->lost = pos < seen->first;
    if (entry->lost)
        pos = seen->first;
    entry->bytes = entry->end > pos ? entry->end - pos : 0;
    entry->records = spate_local_look_between(seen, pos, entry->end);
    if (entry->records == 0 || entry->bytes == 0)
        entry->behind_us = 0;
    else if (spate_local_look_at(seen, pos, &header, &at, &ignored) == SPATE_OK && at < entry->end)
        entry->behind_us = since(header.ts_ns, now_us);
    if (entry->view.holds && !entry->view.alive && manifest->hold_expire_ms > 0) {
        entry->left_us = manifest->hold_expire_ms * 1000 - entry->said_us;
        if (entry->left_us < 0)
            entry->left_us = 0;
    }
}

/* Each topic is looked at once, whoever reads it. */
static enum spate_exit measure_all(const struct spate_cli_bus *bus, struct readers *readers)
{
    enum spate_exit result = SPATE_EXIT_OK;

    for (size_t t = 0; t < bus->topic_count; t++) {
        struct spate_local_seen seen;
        struct spate_err err = {0};
        bool looked = false;

        for (size_t i = 0; i < readers->count; i++) {
            if (strcmp(readers->entries[i].view.topic, bus->topics[t]) != 0)
                continue;
            if (!looked && spate_local_look(&seen, bus->place, bus->topics[t], &err) != SPATE_OK) {
                spate_local_look_fini(&seen);
                if (err.text[0])
                    result = spate_cli_failed(&err);
                break;
            }
            looked = true;
            measure(&readers->entries[i], &seen);
        }
        if (looked)
            spate_local_look_fini(&seen);
    }
    return result;
}

static enum spate_exit gather(const struct spate_cli_bus *bus, struct readers *readers)
{
    struct spate_err err = {0};

    if (bus->topic && !spate_cli_bus_has(bus, bus->topic))
        return spate_cli_bus_no_topic(bus, bus->topic);
    if (spate_local_named_list(bus->place, bus->topic, note_view, readers, &err) != SPATE_OK)
        return spate_cli_failed(&err);
    if (readers->count > 0)
        qsort(readers->entries, readers->count, sizeof *readers->entries, by_name);
    return SPATE_EXIT_OK;
}

/* ---- showing ---- */

static const char *hold_word(const struct entry *entry)
{
    if (entry->view.holds)
        return "holds";
    if (!(entry->view.mark.flags & SPATE_LOCAL_MARK_HOLDS))
        return "no";
    return entry->view.release.why == SPATE_LOCAL_RELEASE_EXPIRED ? "expired" : "released";
}

static void add_entry(const struct entry *entry, struct spate_columns *columns)
{
    char quantity[SPATE_QUANTITY];

    spate_columns_add(columns, "%s", entry->view.name);
    spate_columns_add(columns, "%s", entry->view.topic);
    if (entry->view.alive)
        spate_columns_add(columns, "process %" PRIu32, entry->view.mark.pid);
    else
        spate_columns_add(columns, "gone");
    if (!entry->of_this_log) {
        spate_columns_add(columns, "%s", entry->view.marked ? "of an earlier log" : "not said");
        for (int i = 0; i < 3; i++)
            spate_columns_add(columns, "-");
    } else {
        spate_columns_add(columns, "%016" PRIx64, entry->view.mark.pos);
        spate_columns_add(columns, "%s%s", spate_quantity_bytes(entry->bytes, quantity),
                          entry->lost ? " and a gap" : "");
        spate_columns_add(columns, entry->records < 0 ? "?" : "%" PRId64, entry->records);
        spate_columns_add(columns, "%s",
                          entry->behind_us < 0 ? "?" : spate_quantity_time(entry->behind_us, quantity));
    }
    spate_columns_add(columns, "%s", hold_word(entry));
    spate_columns_add(columns, "%s", spate_quantity_time(entry->said_us, quantity));
}

static void note_entry(const struct entry *entry, struct spate_buf *out)
{
    const struct spate_local_named_view *view = &entry->view;
    char quantity[SPATE_QUANTITY];

    if (entry->of_this_log && entry->lost)
        spate_buf_printf(out, "! %s has not passed what retention took of %s: it meets a gap%s\n", view->name,
                         view->topic,
                         view->alive ? "" : " when it comes back; a sink then asks for its tables anew");
    if (view->holds && !view->alive && entry->left_us >= 0)
        spate_buf_printf(
            out, "! %s is gone and holds %s; it is released by itself in about %s (bus.local.hold_expire)\n",
            view->name, view->topic, spate_quantity_time(entry->left_us, quantity));
    else if (view->holds && !view->alive)
        spate_buf_printf(out,
                         "! %s is gone and holds %s until somebody releases it: spate bus release %s %s\n",
                         view->name, view->topic, view->name, view->topic);
}

static void json_entry(const struct entry *entry, struct spate_buf *out)
{
    char pos[SPATE_BUS_POS_TEXT];

    spate_buf_printf(out, "{\"reader\":\"%s\",\"topic\":\"%s\",\"alive\":%s,\"pid\":", entry->view.name,
                     entry->view.topic, entry->view.alive ? "true" : "false");
    if (entry->view.alive)
        spate_buf_printf(out, "%" PRIu32, entry->view.mark.pid);
    else
        spate_buf_puts(out, "null");
    spate_buf_printf(out, ",\"hold\":\"%s\"", hold_word(entry));
    if (entry->of_this_log) {
        spate_bus_pos_format("local", (struct spate_bus_pos){.at = entry->view.mark.pos}, pos);
        spate_buf_printf(out, ",\"position\":\"%s\",\"lag_bytes\":%" PRIu64 ",\"gap\":%s", pos, entry->bytes,
                         entry->lost ? "true" : "false");
        if (entry->records >= 0)
            spate_buf_printf(out, ",\"lag_records\":%" PRId64, entry->records);
        if (entry->behind_us >= 0)
            spate_buf_printf(out, ",\"lag_seconds\":%.3f", (double)entry->behind_us / 1e6);
        spate_buf_printf(out, ",\"records\":%" PRIu64, entry->view.mark.records);
    }
    if (entry->said_us >= 0)
        spate_buf_printf(out, ",\"said_seconds_ago\":%.3f", (double)entry->said_us / 1e6);
    if (entry->left_us >= 0)
        spate_buf_printf(out, ",\"released_in_seconds\":%.0f", (double)entry->left_us / 1e6);
    spate_buf_putc(out, '}');
}

static void print_json(const struct readers *readers, struct spate_buf *out)
{
    spate_buf_puts(out, "{\"readers\":[");
    for (size_t i = 0; i < readers->count; i++) {
        spate_buf_puts(out, i ? "," : "");
        json_entry(&readers->entries[i], out);
    }
    spate_buf_puts(out, "]}\n");
}

static void print_text(const struct readers *readers, struct spate_buf *out)
{
    static const char *const head[] = {"READER",  "TOPIC",  "WHO",  "POSITION", "LAG",
                                       "RECORDS", "BEHIND", "HOLD", "SAID AGO"};
    struct spate_columns columns = {.width = SPATE_COUNT(head)};
    struct spate_buf notes = {0};

    if (readers->count == 0) {
        spate_buf_puts(out,
                       "no reader is known by a name here; readers without one (spate tap) leave no trace\n");
        return;
    }
    for (size_t i = 0; i < SPATE_COUNT(head); i++)
        spate_columns_add(&columns, "%s", head[i]);
    for (size_t i = 0; i < readers->count; i++) {
        add_entry(&readers->entries[i], &columns);
        note_entry(&readers->entries[i], &notes);
    }
    spate_columns_print(&columns, out);
    spate_buf_puts(out, notes.len ? "\n" : "");
    spate_buf_slice(out, spate_buf_view(&notes));
    spate_buf_fini(&notes);
}

enum spate_exit spate_cli_bus_readers(struct spate_cli_bus *bus)
{
    struct readers readers = {0};
    struct spate_buf out = {0};
    enum spate_exit result = gather(bus, &readers);

    if (result == SPATE_EXIT_OK) {
        result = measure_all(bus, &readers);
        if (bus->json)
            print_json(&readers, &out);
        else
            print_text(&readers, &out);
        const enum spate_exit printed = spate_cli_print(&out);
        result = result != SPATE_EXIT_OK ? result : printed;
    }
    spate_buf_fini(&out);
    free(readers.entries);
    return result;
}

/* ---- releasing ---- */

static enum spate_exit nobody(const struct spate_cli_bus *bus, const struct readers *readers)
{
    const char **names = spate_alloc((readers->count + 1) * sizeof *names);
    const char *near;
    enum spate_exit result;

    for (size_t i = 0; i < readers->count; i++)
        names[i] = readers->entries[i].view.name;
    near = spate_nearest(bus->name, names, readers->count);
    result = spate_cli_misuse(
        bus->text, "no reader %s is known on %s%s%s%s", bus->name, bus->topic ? bus->topic : bus->place->path,
        near ? "; did you mean " : "; spate bus readers lists them", near ? near : "", near ? "?" : "");
    free(names);
    return result;
}

static enum spate_exit release(const struct spate_cli_bus *bus, const struct entry *entry,
                               struct spate_buf *out)
{
    const struct spate_local_named_view *view = &entry->view;
    char quantity[SPATE_QUANTITY];
    struct spate_err err = {0};
    enum spate_rc rc;

    if (!view->holds || !entry->of_this_log) {
        if (bus->json)
            spate_buf_printf(out, "%s{\"reader\":\"%s\",\"topic\":\"%s\",\"released\":false}",
                             out->len ? "," : "", view->name, view->topic);
        else
            spate_buf_printf(out, "%s holds nothing on %s\n", view->name, view->topic);
        return SPATE_EXIT_OK;
    }
    rc = spate_local_named_release(bus->place, view->name, view->topic, entry->end,
                                   SPATE_LOCAL_RELEASE_OPERATOR, &err);
    if (rc == SPATE_END)
        (void)spate_fail(&err, SPATE_RETRY, "the reader %s was removed from %s meanwhile", view->name,
                         view->topic);
    if (rc != SPATE_OK)
        return spate_cli_failed(&err);
    if (bus->json)
        spate_buf_printf(
            out, "%s{\"reader\":\"%s\",\"topic\":\"%s\",\"released\":true,\"upto\":\"local:%016" PRIx64 "\"}",
            out->len ? "," : "", view->name, view->topic, entry->end);
    else
        spate_buf_printf(
            out,
            "%s: %s below %016" PRIx64 " are held for %s no longer; retention may take them. Where it "
            "does, %s meets a gap (a sink asks for its tables anew). Once it has passed that position "
            "it holds again\n",
            view->topic, spate_quantity_bytes(entry->bytes, quantity), entry->end, view->name, view->name);
    return SPATE_EXIT_OK;
}

enum spate_exit spate_cli_bus_release(struct spate_cli_bus *bus)
{
    struct readers readers = {0};
    struct spate_buf out = {0}, all = {0};
    enum spate_exit result = gather(bus, &readers);
    size_t found = 0;

    if (result == SPATE_EXIT_OK)
        result = measure_all(bus, &readers);
    for (size_t i = 0; i < readers.count && result == SPATE_EXIT_OK; i++) {
        const char *name = readers.entries[i].view.name;

        if (strcmp(name, bus->name) != 0 && strcmp(name, bus->name_escaped) != 0)
            continue;
        found++;
        result = release(bus, &readers.entries[i], &out);
    }
    if (result == SPATE_EXIT_OK && found == 0) {
        result = nobody(bus, &readers);
    } else if (found > 0) {
        spate_buf_printf(&all, bus->json ? "{\"released\":[%s]}\n" : "%s", spate_buf_str(&out));
        const enum spate_exit printed = spate_cli_print(&all);
        result = result != SPATE_EXIT_OK ? result : printed;
    }
    spate_buf_fini(&out);
    spate_buf_fini(&all);
    free(readers.entries);
    return result;
}
