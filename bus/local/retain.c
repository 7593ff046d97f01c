/* bus/local/retain.c - what is due, and what is held. */
#include "bus/local/retain.h"

#include "bus/bus.h"
#include "bus/local/broken.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define LOOK_MS     1000
#define HELD_MS     100 /* while a writer waits */
#define COMPLAIN_MS 10000
#define WATCHED_MS  600000 /* nobody is taken for dead whom this process has not seen dead for so long */
#define REARM       10     /* percent below an alarm before it is given again */

static const unsigned alarms[] = {80, 50};

void spate_local_retain_init(struct spate_local_retain *r)
{
    *r = (struct spate_local_retain){.hold = UINT64_MAX, .stops = UINT64_MAX, .limit = UINT64_MAX};
}

void spate_local_retain_fini(struct spate_local_retain *r)
{
    spate_local_kept_fini(&r->kept);
    free(r->holders);
    spate_local_retain_init(r);
}

void spate_local_retain_pause(struct spate_local_retain *r)
{
    r->next_ms = 0; /* what others add and remove meanwhile is seen by its base, and by the floor */
}

int64_t spate_local_retain_ms(const struct spate_local_manifest *manifest)
{
    return manifest->ruled && !manifest->keeps && manifest->retention_ms > 0 ? manifest->retention_ms
                                                                             : INT64_MAX;
}

enum spate_rc spate_local_retain_rule(struct spate_local_topic *topic, unsigned flags, struct spate_err *err)
{
    struct spate_local_manifest *m = &topic->manifest;
    const struct spate_local_place *place = topic->place;
    const bool keeps = (flags & SPATE_TOPIC_KEEP) != 0;

    if (m->ruled && (flags & SPATE_TOPIC_SHARED) && !(flags & SPATE_TOPIC_RULE))
        return SPATE_OK;
    if (m->ruled && m->keeps == keeps && m->retention_ms == place->retention_ms &&
        m->retention_bytes == place->retention_bytes && m->hold_expire_ms == place->hold_expire_ms)
        return SPATE_OK;
    m->ruled = true;
    m->keeps = keeps;
    m->retention_ms = place->retention_ms;
    m->retention_bytes = place->retention_bytes;
    m->hold_expire_ms = place->hold_expire_ms;
    return spate_local_manifest_write(topic, err);
}

uint64_t spate_local_retain_limit(const struct spate_local_manifest *rules, int dir)
{
    struct statvfs fs;

    if (rules->keeps || rules->retention_bytes < 0)
        return UINT64_MAX;
    if (rules->retention_bytes > 0)
        return (uint64_t)rules->retention_bytes;
    if (fstatvfs(dir, &fs) != 0)
        return UINT64_MAX;
    return (uint64_t)fs.f_blocks * fs.f_frsize / 2;
}

/* The rules may have been changed by another process since (a SHARED topic's). */
static enum spate_rc read_rules(struct spate_local_retain *r, const struct spate_local_topic *topic,
                                struct spate_local_topic *fresh, struct spate_err *err)
{
    *fresh = *topic;
    const enum spate_rc rc = spate_local_manifest_read(fresh, err);
    if (rc == SPATE_FAIL)
        return rc;
    if (rc == SPATE_END || fresh->manifest.generation != topic->manifest.generation)
        return spate_fail(err, SPATE_RETRY, "the log of topic %s was removed or begun anew meanwhile",
                          topic->name);
    r->rules = fresh->manifest;
    r->limit = spate_local_retain_limit(&r->rules, topic->durable_fd);
    return SPATE_OK;
}

static struct spate_local_holder *holder_of(struct spate_local_retain *r, const char *name)
{
    for (size_t i = 0; i < r->holder_count; i++)
        if (strcmp(r->holders[i].name, name) == 0)
            return &r->holders[i];
    r->holders = spate_realloc(r->holders, (r->holder_count + 1) * sizeof *r->holders);
    struct spate_local_holder *holder = &r->holders[r->holder_count++];
    *holder = (struct spate_local_holder){.alive = true};
    memcpy(holder->name, name, strlen(name) + 1);
    return holder;
}

struct look {
    struct spate_local_retain *r;
    const struct spate_local_topic *topic;
    uint64_t log;
    int64_t now_ms, wall_ns;
};

/* A process that restarts, a machine that comes up again after days, and a clock that jumps: none of them may
 * pass for a holder that is gone. */
static bool is_gone(const struct look *look, const struct spate_local_holder *holder,
                    const struct spate_local_named_view *view)
{
    const int64_t expire_ms = look->r->rules.hold_expire_ms;
    const int64_t least_ms = expire_ms < WATCHED_MS ? expire_ms : WATCHED_MS;
    const int64_t watched_ms = look->now_ms - holder->dead_ms;
    int64_t silent_ms = (look->wall_ns - (int64_t)view->mark.ts_ns) / 1000000;

    if (silent_ms < 0) /* the clock has stepped back since: what was seen counts */
        silent_ms = watched_ms;
    return expire_ms > 0 && holder->dead_ms != 0 && silent_ms > expire_ms && watched_ms >= least_ms;
}

static void let_go(const struct look *look, struct spate_local_holder *holder,
                   const struct spate_local_named_view *view)
{
    struct spate_err err = {.verdict = SPATE_RETRY};
    const uint64_t end = atomic_load(&look->topic->ctl->durable);

    spate_log(
        SPATE_LOG_ERROR, "bus-hold-expired",
        "topic=%s reader=%s position=%016" PRIx64 " end=%016" PRIx64 " silent_s=%" PRId64
        " detail=\"no process has this name, and it said nothing for longer than bus.local.hold_expire: "
        "nothing is kept for it any longer\"",
        look->topic->name, view->name, view->mark.pos, end,
        (look->wall_ns - (int64_t)view->mark.ts_ns) / 1000000000);
    if (spate_local_named_release(look->topic->place, view->name, look->topic->name, end,
                                  SPATE_LOCAL_RELEASE_EXPIRED, &err) == SPATE_FAIL)
        spate_log_err(SPATE_LOG_WARN, "bus-hold-expired", &err);
    holder->released = view->mark.gen;
}

static void look_at(void *arg, const struct spate_local_named_view *view)
{
    const struct look *look = arg;
    struct spate_local_retain *r = look->r;

    if (!view->marked || !view->holds || view->mark.log != look->log)
        return;
    struct spate_local_holder *holder = holder_of(r, view->name);
    holder->alive = view->alive;
    if (view->alive)
        holder->dead_ms = 0;
    else if (holder->dead_ms == 0)
        holder->dead_ms = look->now_ms;
    if (holder->released != view->mark.gen && is_gone(look, holder, view))
        let_go(look, holder, view);
    if (holder->released == view->mark.gen)
        return;
    holder->seen = true;
    holder->pos = view->mark.pos;
    holder->waits = view->alive && view->mark.pos + (uint64_t)view->mark.ahead * SPATE_LOCAL_UNIT >=
                                       atomic_load(&look->topic->ctl->durable);
    if (holder->pos < r->hold)
        r->hold = holder->pos;
    if (holder->pos < r->stops && !holder->waits)
        r->stops = holder->pos;
}

/* How near the limits are because of a holder, in percent. */
static unsigned nearness(const struct look *look, uint64_t pos, uint64_t *bytes, int64_t *age_s)
{
    const struct spate_local_retain *r = look->r;
    const struct spate_local_kept *kept = &r->kept;
    double part = 0, old = 0;
    size_t i = 0;

    while (i + 1 < kept->count && kept->at[i + 1].base <= pos)
        i++;
    *bytes = spate_local_kept_behind(kept, pos);
    *age_s = 0;
    if (i + 1 < kept->count && look->wall_ns > kept->at[i].last_ns)
        *age_s = (look->wall_ns - kept->at[i].last_ns) / 1000000000;
    if (i + 1 < kept->count && r->limit != UINT64_MAX)
        part = (double)*bytes * 100 / (double)(r->limit ? r->limit : 1);
    if (r->rules.retention_ms > 0)
        old = (double)*age_s * 1000 * 100 / (double)r->rules.retention_ms;
    part = part > old ? part : old;
    return part > 1000 ? 1000 : (unsigned)part;
}

static void warn(const struct look *look, struct spate_local_holder *holder)
{
    uint64_t bytes;
    int64_t age_s;
    const unsigned percent = nearness(look, holder->pos, &bytes, &age_s);
    unsigned level = 0;

    for (size_t i = 0; i < sizeof alarms / sizeof alarms[0] && level == 0; i++)
        if (percent >= alarms[i])
            level = alarms[i];
    if (level > holder->alarm) {
        holder->alarm = level;
        spate_log(SPATE_LOG_WARN, "bus-hold-behind",
                  "topic=%s reader=%s percent=%u bytes=%" PRIu64 " limit_bytes=%" PRIu64 " age_s=%" PRId64
                  " retention_s=%" PRId64
                  " alive=%s remedy=\"at 100 percent the writer waits for this reader; "
                  "see what keeps it, or `spate bus release %s`\"",
                  look->topic->name, holder->name, percent, bytes, look->r->limit, age_s,
                  look->r->rules.retention_ms / 1000, holder->alive ? "yes" : "no", holder->name);
    } else if (percent + REARM < holder->alarm) {
        holder->alarm = level;
    }
}

static enum spate_rc look_at_holders(struct look *look, struct spate_err *err)
{
    struct spate_local_retain *r = look->r;
    const uint64_t before = r->hold;
    size_t left = 0;

    r->hold = r->stops = UINT64_MAX;
    for (size_t i = 0; i < r->holder_count; i++)
        r->holders[i].seen = false;
    if (spate_local_named_list(look->topic->place, look->topic->name, look_at, look, err) != SPATE_OK) {
        r->hold = r->stops = before;
        return SPATE_FAIL;
    }
    for (size_t i = 0; i < r->holder_count; i++)
        if (r->holders[i].seen || r->holders[i].released != 0)
            r->holders[left++] = r->holders[i];
    r->holder_count = left;
    for (size_t i = 0; i < r->holder_count; i++)
        if (r->holders[i].seen)
            warn(look, &r->holders[i]);
    atomic_store(&look->topic->ctl->hold, r->hold);
    return SPATE_OK;
}

static void complain(const struct look *look)
{
    const struct spate_local_retain *r = look->r;
    const struct spate_local_holder *by = NULL;
    unsigned hidden;

    for (size_t i = 0; i < r->holder_count; i++)
        if (r->holders[i].seen && !r->holders[i].waits && r->holders[i].pos == r->stops)
            by = &r->holders[i];
    if (by && spate_log_due(&look->r->complained, look->now_ms, COMPLAIN_MS, &hidden))
        spate_log(
            SPATE_LOG_ERROR, "bus-held",
            "topic=%s reader=%s position=%016" PRIx64 " bytes=%" PRIu64 " limit_bytes=%" PRIu64
            " alive=%s detail=\"the archive is at its limit, and this reader holds what would go: the "
            "writer waits\" remedy=\"let the reader go on; or `spate bus release %s`, and it sees a gap; "
            "or raise bus.local.retention_bytes and bus.local.retention\"",
            look->topic->name, by->name, by->pos, r->kept.bytes, r->limit, by->alive ? "yes" : "no",
            by->name);
}

/* How many of the oldest segments go. */
static size_t due(const struct look *look)
{
    struct spate_local_retain *r = look->r;
    const struct spate_local_kept *kept = &r->kept;
    const int64_t age_ms = r->rules.retention_ms;
    uint64_t bytes = kept->bytes;
    size_t n = 0;

    r->blocked = false;
    while (!r->rules.keeps && n + 1 < kept->count) {
        const bool old = age_ms > 0 && (look->wall_ns - kept->at[n].last_ns) / 1000000 > age_ms;
        if (!old && bytes <= r->limit)
            break;
        if (r->hold < kept->at[n + 1].base && !SPATE_BROKEN(NO_HOLD)) {
            r->blocked = r->stops < kept->at[n + 1].base;
            break;
        }
        bytes -= kept->at[n++].bytes;
    }
    return n;
}

/* Said first, synced, then done: who finds the files gone finds the floor above them as well. */
static enum spate_rc remove_below(struct spate_local_retain *r, struct spate_local_topic *topic,
                                  struct spate_local_topic *fresh, uint64_t first, struct spate_err *err)
{
    if (first > fresh->manifest.first) {
        fresh->manifest.first = first;
        if (spate_local_manifest_write(fresh, err) != SPATE_OK)
            return SPATE_FAIL;
    }
    SPATE_FAILPOINT(local_floor);
    topic->manifest.first = r->rules.first = fresh->manifest.first;
    if (atomic_load(&topic->ctl->first) < fresh->manifest.first)
        atomic_store(&topic->ctl->first, fresh->manifest.first);
    spate_local_kept_forget(&r->kept, fresh->manifest.first);
    const size_t gone = spate_local_kept_remove(topic->durable_fd, fresh->manifest.first);
    atomic_fetch_add(&topic->ctl->gaps, gone);
    if (gone > 0)
        spate_log(SPATE_LOG_INFO, "bus-retention",
                  "topic=%s segments=%zu first=%016" PRIx64 " bytes=%" PRIu64 " limit_bytes=%" PRIu64,
                  topic->name, gone, fresh->manifest.first, r->kept.bytes, r->limit);
    return SPATE_OK;
}

enum spate_rc spate_local_retain_step(struct spate_local_retain *r, struct spate_local_topic *topic,
                                      struct spate_err *err)
{
    const uint64_t base = spate_local_base_of(atomic_load(&topic->ctl->durable), topic->manifest.cap);
    struct look look = {.r = r, .topic = topic, .now_ms = spate_clock_ms()};
    struct spate_local_topic fresh;

    if (topic->manifest.is_volatile || (base == r->looked && look.now_ms < r->next_ms))
        return SPATE_OK;
    r->next_ms = look.now_ms + (r->blocked ? HELD_MS : LOOK_MS);
    look.wall_ns = spate_clock_wall_us() * 1000;
    look.log = spate_local_log_number(topic->manifest.log_id);
    if (read_rules(r, topic, &fresh, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!r->rules.ruled)
        return SPATE_OK;
    spate_local_kept_forget(&r->kept, r->rules.first);
    if (base != r->looked) {
        r->looked = 0;
        if (spate_local_kept_look(&r->kept, topic->durable_fd, topic->manifest.cap, r->rules.first, err) !=
            SPATE_OK)
            return spate_err_context(err, "topic %s below %s", topic->name, topic->place->path);
        r->looked = base;
    } else {
        spate_local_kept_renew(&r->kept, topic->durable_fd);
    }
    if (look_at_holders(&look, err) != SPATE_OK)
        return SPATE_FAIL;
    const size_t n = due(&look);
    if (r->blocked)
        complain(&look);
    if (n == 0 && r->swept)
        return SPATE_OK;
    r->swept = true;
    return remove_below(r, topic, &fresh, n > 0 ? r->kept.at[n].base : r->rules.first, err);
}
