/* bus/local/look_holds.c - how much of a topic is kept for somebody. */
#include "bus/local/look.h"

#include "bus/local/named.h"
#include "bus/local/retain.h"
#include "bus/open.h"
#include "core/clock.h"

#include <stdio.h>

struct count {
    struct spate_bus_holds *holds;
    uint64_t log, lowest;
};

static void note(void *arg, const struct spate_local_named_view *view)
{
    struct count *count = arg;

    count->holds->readers += view->alive;
    if (!view->marked || !view->holds || view->mark.log != count->log)
        return;
    count->holds->holders++;
    if (view->mark.pos > count->lowest && count->holds->by[0] != '\0')
        return;
    count->lowest = view->mark.pos;
    snprintf(count->holds->by, sizeof count->holds->by, "%s", view->name);
}

static void measure(struct spate_local_seen *seen, uint64_t pos, struct spate_bus_holds *holds)
{
    const uint64_t cap = seen->topic.manifest.cap, base = spate_local_base_of(pos, cap);
    const uint64_t limit = spate_local_retain_limit(&seen->topic.manifest, seen->topic.durable_fd);
    const uint64_t durable = atomic_load(&seen->ctl.durable);
    struct spate_local_seen_segment segment = {.base = base, .hot = true, .archived = true};
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct spate_local_record header;
    uint64_t at;

    holds->bytes = durable > base ? (int64_t)(durable - base) : 0; /* whole segments are kept */
    holds->limit_bytes = limit > INT64_MAX ? -1 : (int64_t)limit;
    holds->age_us = 0;
    seen->segments = &segment;
    seen->segment_count = 1;
    if (pos < durable && spate_local_look_at(seen, pos, &header, &at, &ignored) == SPATE_OK) {
        holds->age_us = spate_clock_wall_us() - (int64_t)(header.ts_ns / 1000);
        holds->age_us = holds->age_us > 0 ? holds->age_us : 0; /* the clocks need not agree */
    }
    seen->segments = NULL;
    seen->segment_count = 0;
}

void spate_local_look_holds(const struct spate_local_place *place, const char *topic,
                            struct spate_bus_holds *holds)
{
    struct spate_local_seen seen;
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    struct count count = {.holds = holds};

    if (spate_local_look_page(&seen, place, topic, &ignored) == SPATE_OK) {
        count.log = spate_local_log_number(seen.topic.manifest.log_id);
        holds->readers = holds->holders = 0;
        if (spate_local_named_list(place, topic, note, &count, &ignored) != SPATE_OK)
            holds->readers = holds->holders = -1;
        else if (holds->holders > 0 && seen.hot)
            measure(&seen, count.lowest, holds);
    }
    spate_local_look_fini(&seen);
}
