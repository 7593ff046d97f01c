/* connector/watch.c - looking at the slot, and what to say about it. */
#include "connector/watch.h"

#include "connector/lists.h"
#include "connector/lsn.h"
#include "connector/owned.h"
#include "connector/setup.h"
#include "connector/survey_masks.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CONNECT_MS     5000
#define ANSWER_MS      3000
#define LASTING_LOOKS  3 /* a busy source writes much between two heartbeats; what lasts is news */
#define BLIND_LOOKS    3 /* a restart of the source is no news: the data plane tells it */
#define BLIND_EVERY_MS 600000
#define AGE_FIRST      INT64_C(50000000) /* a quarter of the way to an anti-wraparound vacuum (P72) */
#define SURVEY_SHARE   20    /* a survey is made after so many times as long as the last one took, */
#define EXTEND_LOOKS   2     /* of so many surveys one looks for tables that the globs mean */
#define SURVEY_LATE_MS 30000 /* and never later: people have to know within a minute (F20) */
#define SURVEY_SOON_MS 200   /* and not sooner than this, however often it is asked for */

const char *const spate_wal_status_names[] = {"reserved", "extended", "unreserved", "lost", NULL};

/* ---- judging ---- */

struct voice {
    spate_watch_tell_fn *tell;
    void *arg;
};

SPATE_PRINTF(4, 5)
static void say(const struct voice *voice, enum spate_log_level level, const char *event, const char *fmt,
                ...)
{
    char text[1200];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    voice->tell(voice->arg, level, event, text);
}

static const char *mib(int64_t bytes, char out[32])
{
    snprintf(out, 32, "%" PRId64 " MiB", (bytes + (1 << 19)) >> 20);
    return out;
}

static int doublings_of(int64_t bytes, int64_t threshold)
{
    int doublings = 0;

    for (; bytes >= threshold && doublings < 60; bytes /= 2)
        doublings++;
    return doublings;
}

/* The slot's WAL is kept for one of two reasons, and each has its own remedy. */
static void judge_growth(struct spate_watch_memory *memory, const struct spate_slot_look *look,
                         const char *slot, int64_t threshold, const struct voice *voice)
{
    int doublings = doublings_of(look->retained_bytes, threshold);
    char size[32], behind[32], limit[32];

    memory->above = doublings > memory->doublings ? memory->above + 1 : 0;
    if (memory->above >= LASTING_LOOKS) {
        bool ours = look->behind_bytes >= look->retained_bytes / 2;

        say(voice, SPATE_LOG_WARN, "slot-retains",
            "slot \"%s\" keeps %s of WAL on the source's disk, %s of it not yet confirmed. %s. "
            "max_slot_wal_keep_size is %s",
            slot, mib(look->retained_bytes, size), mib(look->behind_bytes, behind),
            ours ? "The connector is behind: look at the lines above for what it waits for, most often the "
                   "bus. Only if it is never to come back, dropping the slot gives the disk free; sinks are "
                   "then reloaded"
                 : "The connector is not behind: a transaction that is open on the source holds it. SELECT "
                   "pid, xact_start, state, query FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER "
                   "BY xact_start; and SELECT * FROM pg_prepared_xacts find it",
            look->keep_bytes < 0 ? "not limited: only the disk's end will stop this"
                                 : mib(look->keep_bytes, limit));
        memory->doublings = doublings;
        memory->above = 0;
    } else if (memory->doublings > 0 && look->retained_bytes < threshold / 2) {
        say(voice, SPATE_LOG_INFO, "slot-released", "slot \"%s\" keeps %s of WAL again", slot,
            mib(look->retained_bytes, size));
        memory->doublings = 0;
    } else if (doublings + 1 < memory->doublings) {
        memory->doublings = doublings + 1; /* falling: growing anew is told anew */
    }
}

static void judge_status(struct spate_watch_memory *memory, const struct spate_slot_look *look,
                         const char *slot, const struct voice *voice)
{
    enum spate_wal_status before = memory->status, now = look->status;
    char size[32], limit[32];

    if (now == before || now == SPATE_WAL_UNKNOWN)
        return;
    memory->status = now;
    mib(look->retained_bytes, size);
    mib(look->keep_bytes, limit);
    if (now == SPATE_WAL_LOST)
        say(voice, SPATE_LOG_ERROR, "slot-lost",
            "wal_status of slot \"%s\" is lost: the source removed WAL that was not read yet, since "
            "max_slot_wal_keep_size is %s. What was in it never reaches the bus; the connector stops and "
            "says what to do",
            slot, limit);
    else if (now == SPATE_WAL_UNRESERVED)
        say(voice, SPATE_LOG_WARN, "slot-in-danger",
            "wal_status of slot \"%s\" is unreserved: it keeps %s, more than max_slot_wal_keep_size (%s), "
            "and "
            "the next checkpoint may take it away for good. Raise it now: ALTER SYSTEM SET "
            "max_slot_wal_keep_size = '...'; SELECT pg_reload_conf(); then see why the connector is behind",
            slot, size, limit);
    else if (now == SPATE_WAL_EXTENDED && before == SPATE_WAL_RESERVED)
        say(voice, SPATE_LOG_WARN, "slot-extended",
            "wal_status of slot \"%s\" is extended: it keeps %s, more than max_wal_size. Nothing is lost; "
            "the "
            "source's disk has to bear it",
            slot, size);
    else
        say(voice, SPATE_LOG_INFO, "slot-recovered", "wal_status of slot \"%s\" is %s again", slot,
            spate_wal_status_names[now]);
}

static void judge_scarcity(struct spate_watch_memory *memory, const struct spate_slot_look *look,
                           const char *slot, const struct voice *voice)
{
    int64_t percent = look->keep_bytes > 0 && look->safe_bytes >= 0
                          ? (int64_t)(100.0 * (double)look->safe_bytes / (double)look->keep_bytes)
                          : 100;
    int scarcity = percent < 5 ? 2 : percent < 20 ? 1 : 0;
    char size[32], limit[32];

    if (look->status == SPATE_WAL_LOST)
        return;
    if (scarcity > memory->scarcity) {
        say(voice, SPATE_LOG_WARN, "slot-room",
            "%s more WAL and slot \"%s\" is in danger: that is %" PRId64
            " %% of max_slot_wal_keep_size (%s). "
            "Beyond it the source takes the slot away and every sink has to ask for everything. See why the "
            "connector is "
            "behind, or raise the limit while the disk has room: ALTER SYSTEM SET max_slot_wal_keep_size = "
            "'...'; SELECT pg_reload_conf()",
            mib(look->safe_bytes, size), slot, percent, mib(look->keep_bytes, limit));
        memory->scarcity = scarcity;
    } else if (memory->scarcity > 0 && percent > 30) {
        say(voice, SPATE_LOG_INFO, "slot-room-again",
            "slot \"%s\" has room again: %s may be written before it is in danger", slot,
            mib(look->safe_bytes, size));
        memory->scarcity = 0;
    }
}

static void judge_age(struct spate_watch_memory *memory, const struct spate_slot_look *look, const char *slot,
                      const struct voice *voice)
{
    int ages = look->xmin_age > 0 ? doublings_of(look->xmin_age, AGE_FIRST) : 0;

    if (ages > memory->ages)
        say(voice, SPATE_LOG_WARN, "slot-age",
            "slot \"%s\" keeps what %" PRId64 " transactions left in the source's catalogs, which VACUUM "
            "cannot remove: they bloat, and planning "
            "gets slower. See why the connector is behind; if it is never to come back, drop the slot",
            slot, look->xmin_age);
    memory->ages = ages;
}

void spate_watch_judge(struct spate_watch_memory *memory, const struct spate_slot_look *look,
                       const char *slot, int64_t threshold_bytes, spate_watch_tell_fn *tell, void *arg)
{
    const struct voice voice = {.tell = tell, .arg = arg};

    if (!look->exists) {
        *memory = (struct spate_watch_memory){0}; /* the data plane has the words for that */
        return;
    }
    judge_status(memory, look, slot, &voice);
    judge_scarcity(memory, look, slot, &voice);
    judge_age(memory, look, slot, &voice);
    if (look->retained_bytes >= 0)
        judge_growth(memory, look, slot, threshold_bytes, &voice);
}

/* ---- looking ---- */

struct spate_watch {
    const struct spate_connector_config *config;
    void (*seen)(void *arg, const struct spate_slot_look *look);
    void *arg;
    pthread_t thread;
    int wake_fd; /* a look is wanted now, or the end */
    atomic_bool stopping;
    PGconn *conn;
    struct spate_watch_memory memory;
    unsigned blind; /* looks in a row that failed */
    int64_t blind_told_ms;
    struct spate_survey *last;  /* what was read last */
    struct spate_survey *ready; /* and not taken yet; atomic */
    int64_t surveyed_ms, surveyed_us, survey_ms, pace_ms;
    bool survey_failed, extend_failed;
    bool taken;                     /* somebody streams, and has taken a survey; atomic */
    int64_t extended_ms, extend_ms; /* when it was looked for tables that the globs mean, how long it took */
    char *left;                     /* what was said of those that are left out */
};

/* What can be read on a primary and, for a slot there, on a standby. */
static const char look_sql[] =
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
    " ELSE pg_catalog.pg_current_wal_flush_lsn() END, s.slot_name IS NOT NULL, s.active, s.restart_lsn,"
    " s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size, (SELECT c.setting::bigint * 1048576 FROM"
    " pg_catalog.pg_settings c WHERE c.name = 'max_slot_wal_keep_size'), pg_catalog.age(s.catalog_xmin)"
    " FROM (VALUES (1)) AS one LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1";

static int64_t bytes_of(const PGresult *res, int column)
{
    long long bytes = PQgetisnull(res, 0, column) ? -1 : strtoll(PQgetvalue(res, 0, column), NULL, 10);

    return bytes < 0 ? -1 : bytes;
}

static int64_t between(uint64_t from, uint64_t to)
{
    return from == 0 || to == 0 ? -1 : to > from ? (int64_t)(to - from) : 0;
}

static void read_look(const PGresult *res, struct spate_slot_look *look)
{
    *look = (struct spate_slot_look){.looked_us = spate_clock_wall_us(), .status = SPATE_WAL_UNKNOWN};
    look->exists = PQgetvalue(res, 0, 1)[0] == 't';
    look->active = PQgetisnull(res, 0, 2) ? -1 : PQgetvalue(res, 0, 2)[0] == 't';
    if (!spate_pg_lsn_parse(PQgetvalue(res, 0, 0), &look->wal))
        look->wal = 0;
    if (!spate_pg_lsn_parse(PQgetvalue(res, 0, 3), &look->restart))
        look->restart = 0;
    if (!spate_pg_lsn_parse(PQgetvalue(res, 0, 4), &look->confirmed))
        look->confirmed = 0;
    for (int i = 0; spate_wal_status_names[i]; i++)
        if (strcmp(PQgetvalue(res, 0, 5), spate_wal_status_names[i]) == 0)
            look->status = (enum spate_wal_status)i;
    look->safe_bytes = bytes_of(res, 6);
    look->keep_bytes = bytes_of(res, 7);
    look->retained_bytes = between(look->restart, look->wal);
    look->xmin_age = bytes_of(res, 8);
    look->behind_bytes = between(look->confirmed, look->wal);
}

static enum spate_rc look_once(struct spate_watch *watch, struct spate_slot_look *look, struct spate_err *err)
{
    const struct spate_connector_config *config = watch->config;
    const char *slot = config->source.slot;
    char application[80];
    const struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    PGresult *res = NULL;
    enum spate_rc rc = SPATE_OK;

    snprintf(application, sizeof application, "spate_%.50s_watch", config->name);
    if (!watch->conn)
        rc = spate_pg_connect(&where, CONNECT_MS, &watch->conn, err);
    if (rc == SPATE_OK)
        rc = spate_pg_ask(watch->conn, look_sql, 1, &slot, ANSWER_MS, &res, err);
    if (rc == SPATE_OK) {
        read_look(res, look);
        look->server = PQserverVersion(watch->conn);
        look->surveyed_us = watch->surveyed_us;
        look->survey_ms = watch->survey_ms;
    } else {
        PQfinish(watch->conn);
        watch->conn = NULL;
    }
    PQclear(res);
    return rc;
}

/* Its own trouble is told once and then sparsely: whether the source answers, the data plane tells at once.
 */
static void went_blind(struct spate_watch *watch, const struct spate_err *err)
{
    if (++watch->blind < BLIND_LOOKS ||
        (watch->blind_told_ms && spate_clock_ms() - watch->blind_told_ms < BLIND_EVERY_MS))
        return;
    watch->blind_told_ms = spate_clock_ms();
    spate_log_err(SPATE_LOG_WARN, "slot-unwatched", err);
}

static void sees_again(struct spate_watch *watch)
{
    if (watch->blind_told_ms)
        spate_log(SPATE_LOG_INFO, "slot-watched", "slot=%s looks_missed=%u", watch->config->source.slot,
                  watch->blind);
    watch->blind = 0;
    watch->blind_told_ms = 0;
}

static void tell_log(void *arg, enum spate_log_level level, const char *event, const char *text)
{
    const struct spate_slot_look *look = arg;
    char quoted[1400];

    spate_log(level, event, "retained_bytes=%" PRId64 " behind_bytes=%" PRId64 " text=%s",
              look->retained_bytes, look->behind_bytes, spate_log_quote(quoted, sizeof quoted, text));
}

/* ---- surveys ---- */

static enum spate_rc survey_once(struct spate_watch *watch, bool asked, struct spate_err *err)
{
    struct spate_survey *survey = NULL;
    bool moved = true;
    enum spate_rc rc = SPATE_OK;

    if (watch->last && !asked)
        rc = spate_survey_moved(watch->conn, watch->last, &moved, err);
    if (rc == SPATE_OK && moved)
        rc = spate_survey_read(watch->conn, watch->config->source.publication, watch->last, &survey, err);
    if (rc != SPATE_OK)
        return rc;
    watch->surveyed_us = spate_clock_wall_us();
    if (!survey)
        return SPATE_OK;
    spate_survey_masks(survey, watch->config->privacy);
    /* The first one asks for the columns of all tables: it says nothing of the others. */
    watch->pace_ms = watch->last ? survey->took_ms : 0;
    watch->survey_ms = survey->took_ms;
    spate_log(SPATE_LOG_DEBUG, "survey", "tables=%zu files=%zu took_ms=%" PRId64 " lsn=%" PRIx64,
              survey->count, survey->leaf_count, survey->took_ms, survey->lsn);
    spate_survey_drop(watch->last);
    watch->last = spate_survey_hold(survey);
    spate_survey_drop(__atomic_exchange_n(&watch->ready, survey, __ATOMIC_ACQ_REL));
    return SPATE_OK;
}

/* When the next one is due. One that takes long is made less often: the source has other work. */
static int64_t survey_due_ms(const struct spate_watch *watch, bool asked)
{
    int64_t every_ms = asked ? SURVEY_SOON_MS : watch->config->source.catalog_ms;

    if (every_ms < watch->pace_ms * SURVEY_SHARE)
        every_ms = watch->pace_ms * SURVEY_SHARE;
    return watch->surveyed_ms + (every_ms > SURVEY_LATE_MS ? SURVEY_LATE_MS : every_ms);
}

/* A publication of ours follows the globs of the file (F20). What is left out is said once. */
static enum spate_rc extend(struct spate_watch *watch, struct spate_err *err)
{
    const struct spate_connector_config *config = watch->config;
    struct spate_buf left = {0};
    const int64_t began_ms = spate_clock_ms();
    bool exists = false, ours = false;
    char quoted[1400];
    enum spate_rc rc;

    if (!config->source.create || config->tables.count == 0 ||
        !__atomic_load_n(&watch->taken, __ATOMIC_RELAXED) ||
        (watch->extended_ms && began_ms - watch->extended_ms < EXTEND_LOOKS * config->source.catalog_ms) ||
        began_ms - watch->extended_ms < watch->extend_ms * SURVEY_SHARE)
        return SPATE_OK;
    rc = spate_owned_publication(watch->conn, config, &exists, &ours, err);
    if (rc == SPATE_OK && exists && ours)
        rc = spate_setup_extend(watch->conn, config, &left, err);
    if (rc == SPATE_OK && exists && ours && config->exclude.count > 0)
        rc = spate_lists_update(watch->conn, config, false, err);
    if (rc == SPATE_OK && strcmp(spate_buf_str(&left), watch->left ? watch->left : "") != 0) {
        for (char *line = left.data, *end; line && (end = strchr(line, '\n')) != NULL; line = end + 1) {
            *end = 0;
            if (!watch->left || !strstr(watch->left, line))
                spate_log(SPATE_LOG_WARN, "table-left-out", "text=%s",
                          spate_log_quote(quoted, sizeof quoted, line));
            *end = '\n';
        }
        free(watch->left);
        watch->left = spate_strdup(spate_buf_str(&left));
    }
    spate_buf_fini(&left);
    watch->extended_ms = spate_clock_ms();
    watch->extend_ms = watch->extended_ms - began_ms;
    watch->extend_failed = watch->extend_failed && rc == SPATE_FAIL;
    if (rc != SPATE_FAIL || PQstatus(watch->conn) != CONNECTION_OK)
        return rc;
    /* The survey is made all the same; told once, until it goes well. */
    if (!watch->extend_failed)
        spate_log_err(SPATE_LOG_WARN, "publication-not-extended", err);
    watch->extend_failed = true;
    *err = (struct spate_err){0};
    return SPATE_OK;
}

/* Of the published tables, when it is time. */
static void survey(struct spate_watch *watch, bool *asked)
{
    struct spate_err err = {0};
    enum spate_rc rc;

    if (!watch->conn || (watch->surveyed_ms && spate_clock_ms() < survey_due_ms(watch, *asked)))
        return;
    rc = extend(watch, &err);
    if (rc == SPATE_OK)
        rc = survey_once(watch, *asked, &err);
    watch->surveyed_ms = spate_clock_ms();
    *asked = false;
    if (rc != SPATE_OK) {
        PQfinish(watch->conn);
        watch->conn = NULL;
    }
    if (rc == SPATE_FAIL && !watch->survey_failed)
        spate_log_err(SPATE_LOG_WARN, "tables-unwatched", &err);
    if (rc == SPATE_OK && watch->survey_failed)
        spate_log(SPATE_LOG_INFO, "tables-watched", "publication=%s", watch->config->source.publication);
    watch->survey_failed = rc == SPATE_FAIL;
}

struct spate_survey *spate_watch_take(struct spate_watch *watch)
{
    if (!__atomic_load_n(&watch->ready, __ATOMIC_RELAXED))
        return NULL;
    __atomic_store_n(&watch->taken, true, __ATOMIC_RELAXED);
    return __atomic_exchange_n(&watch->ready, NULL, __ATOMIC_ACQ_REL);
}

/* ---- the thread ---- */

static void look(struct spate_watch *watch)
{
    struct spate_slot_look seen;
    struct spate_err err = {0};
    enum spate_rc rc = look_once(watch, &seen, &err);

    if (rc == SPATE_OK) {
        sees_again(watch);
        spate_watch_judge(&watch->memory, &seen, watch->config->source.slot,
                          watch->config->source.retained_warning_bytes, tell_log, &seen);
        watch->seen(watch->arg, &seen);
    } else if (rc == SPATE_FAIL) {
        went_blind(watch, &err);
    }
}

static void *watch_slot(void *arg)
{
    struct spate_watch *watch = arg;
    struct pollfd fds[2] = {{.fd = watch->wake_fd, .events = POLLIN},
                            {.fd = spate_signals_fd(), .events = POLLIN}};
    int64_t look_ms = 0;
    bool asked = true;

    while (!atomic_load(&watch->stopping) && !spate_signals_stop()) {
        int64_t now_ms = spate_clock_ms(), due_ms;

        if (now_ms >= look_ms) {
            look(watch);
            look_ms = spate_clock_ms() + watch->config->source.watch_ms;
        }
        survey(watch, &asked);
        due_ms = survey_due_ms(watch, asked);
        due_ms = watch->conn && due_ms < look_ms ? due_ms : look_ms;
        now_ms = spate_clock_ms();
        poll(fds, 2, due_ms > now_ms ? (int)(due_ms - now_ms) : 0);
        if (eventfd_read(watch->wake_fd, &(eventfd_t){0}) != 0)
            continue; /* nobody woke us: it is time */
        asked = true;
        look_ms = 0;
    }
    PQfinish(watch->conn);
    return NULL;
}

struct spate_watch *spate_watch_start(const struct spate_connector_config *config,
                                      void (*seen)(void *arg, const struct spate_slot_look *look), void *arg)
{
    struct spate_watch *watch = spate_zalloc(sizeof *watch);

    watch->config = config;
    watch->seen = seen;
    watch->arg = arg;
    watch->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (watch->wake_fd >= 0 && pthread_create(&watch->thread, NULL, watch_slot, watch) == 0)
        return watch;
    spate_log(SPATE_LOG_WARN, "slot-unwatched",
              "detail=\"no thread or descriptor for it: WAL that the slot keeps is not reported\"");
    if (watch->wake_fd >= 0)
        close(watch->wake_fd);
    free(watch);
    return NULL;
}

void spate_watch_now(struct spate_watch *watch)
{
    if (watch && eventfd_write(watch->wake_fd, 1) != 0)
        return; /* the counter is full: it is awake */
}

void spate_watch_stop(struct spate_watch *watch)
{
    if (!watch)
        return;
    atomic_store(&watch->stopping, true);
    spate_watch_now(watch);
    pthread_join(watch->thread, NULL);
    close(watch->wake_fd);
    spate_survey_drop(watch->last);
    spate_survey_drop(watch->ready);
    free(watch->left);
    free(watch);
}
