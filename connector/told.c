/* connector/told.c - from a survey to `stale` and `storage`, in steps that a crash may interrupt. */
#include "connector/told.h"

#include "connector/lsn.h"
#include "connector/status.h"
#include "connector/stream.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRUNCATES_MOST 65536 /* remembered; the oldest are forgotten beyond it: a new file unexplained */
#define DURABLE_MS     5     /* what is durable now wakes nobody */
#define RECORDS        256   /* that are written in one turn */
#define VERSIONS       16    /* tables that are looked up in one turn */
#define ASK_MS         100   /* how often the server is asked how far it has come, while a survey waits */

/* One table about which something is to be written, in the order of judging. */
struct saying {
    enum spate_survey_news news;
    const struct spate_survey_table *table; /* of the survey that is judged, or of the known one */
    const char *why;
    char **columns;
    size_t column_count;
    uint32_t v; /* 0: it is gone again, the next survey will say so */
};

enum step {
    STEP_NONE,    /* nothing to tell */
    STEP_WAITING, /* for the stream to pass the survey */
    STEP_NAMING,  /* the versions of what is to be said are looked up */
    STEP_SAYING,  /* `stale` goes into the stream */
    STEP_DURABLE, /* until it is durable */
    STEP_WRITING, /* `storage` goes to _schemas */
};

struct spate_told {
    struct spate_survey_memory *memory; /* records of _schemas, until the first session */
    uint64_t broken;                    /* the newest epoch that broke with the past */
    struct spate_survey *known;         /* what followers were told of */
    bool whole;                         /* and it is all */
    struct spate_survey *heard;         /* the survey that came last: what people were told of */
    struct spate_survey *judged, *next; /* the one under way, and a newer one behind it */
    enum step step;
    struct saying *sayings;
    size_t count, cap, at;
    bool said;     /* any of it went into the stream */
    uint64_t mark; /* the stream's end when the last `stale` was written */
    struct spate_survey_truncate *truncates;
    size_t truncate_count, truncate_cap;
    int64_t ask_ms, since_us; /* when streaming began: surveys of before may know less than the session */
    bool missing_said;
    struct spate_told_counts counts;
};

/* ---- life ---- */

struct spate_told *spate_told_new(void)
{
    struct spate_told *told = spate_zalloc(sizeof *told);

    told->memory = spate_survey_memory_new();
    return told;
}

static void unsay(struct spate_told *told)
{
    for (size_t i = 0; i < told->count; i++) {
        for (size_t c = 0; c < told->sayings[i].column_count; c++)
            free(told->sayings[i].columns[c]);
        free(told->sayings[i].columns);
    }
    told->count = told->at = 0;
    told->said = false;
    told->step = STEP_NONE;
}

static void put(struct spate_survey **into, struct spate_survey *survey)
{
    spate_survey_drop(*into);
    *into = survey;
}

void spate_told_free(struct spate_told *told)
{
    if (!told)
        return;
    unsay(told);
    put(&told->known, NULL);
    put(&told->heard, NULL);
    put(&told->judged, NULL);
    put(&told->next, NULL);
    spate_survey_memory_free(told->memory);
    free(told->sayings);
    free(told->truncates);
    free(told);
}

/* ---- what _schemas holds ---- */

static void remember_anew(struct spate_told *told)
{
    spate_survey_memory_free(told->memory);
    told->memory = spate_survey_memory_new();
    unsay(told);
    put(&told->known, NULL);
    put(&told->heard, NULL);
}

void spate_told_forget(struct spate_told *told)
{
    if (!told)
        return;
    told->broken = 0;
    remember_anew(told);
}

void spate_told_epoch(struct spate_told *told, const struct spate_epoch *epoch)
{
    if (!told || epoch->epoch <= told->broken || epoch->previous == SPATE_PREVIOUS_CONTINUES)
        return;
    told->broken = epoch->epoch;
    remember_anew(told);
}

void spate_told_storage(struct spate_told *told, const struct spate_storage *storage)
{
    /* A zombie of an older epoch may still write; and what we write ourselves we know. */
    if (told && told->memory && storage->epoch >= told->broken)
        (void)!spate_survey_remember(told->memory, storage->schema, storage->table, storage->gone,
                                     storage->state);
}

void spate_told_session(struct spate_told *told)
{
    unsay(told);
    put(&told->judged, NULL);
    put(&told->next, NULL);
    told->since_us = spate_clock_wall_us();
    if (told->known)
        return;
    told->known = spate_survey_recall(told->memory, &told->whole);
    spate_survey_memory_free(told->memory);
    told->memory = NULL;
}

/* ---- TRUNCATE ---- */

void spate_told_truncate(struct spate_told *told, uint32_t oid, uint32_t xid)
{
    if (told->truncate_count == TRUNCATES_MOST)
        memmove(told->truncates, told->truncates + 1, --told->truncate_count * sizeof *told->truncates);
    if (told->truncate_count == told->truncate_cap) {
        told->truncate_cap = told->truncate_cap ? told->truncate_cap * 2 : 16;
        told->truncates = spate_realloc(told->truncates, told->truncate_cap * sizeof *told->truncates);
    }
    told->truncates[told->truncate_count++] = (struct spate_survey_truncate){oid, xid};
}

/* Those that the judged survey has seen explain nothing any more. */
static void forget_truncates(struct spate_told *told, uint64_t oldest)
{
    size_t kept = 0;

    for (size_t i = 0; i < told->truncate_count; i++)
        if ((int32_t)(told->truncates[i].xid - (uint32_t)oldest) >= 0)
            told->truncates[kept++] = told->truncates[i];
    told->truncate_count = kept;
}

/* ---- words for people ---- */

static void add_table(struct spate_buf *out, const struct spate_survey_table *table)
{
    spate_pg_ident(out, spate_slice_str(table->schema));
    spate_buf_putc(out, '.');
    spate_pg_ident(out, spate_slice_str(table->name));
}

SPATE_PRINTF(4, 5)
static void say(enum spate_log_level level, const char *event, const struct spate_survey_table *table,
                const char *fmt, ...)
{
    char text[1200], quoted[1400], name[400];
    struct spate_buf plain = {0};
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    spate_buf_printf(&plain, "%s.%s", table->schema, table->name);
    spate_log(level, event, "table=%s text=%s", spate_log_quote(name, sizeof name, spate_buf_str(&plain)),
              spate_log_quote(quoted, sizeof quoted, text));
    spate_buf_fini(&plain);
}

struct telling {
    struct spate_told *told;
    const char *publication;
    bool all_new; /* everything differs: not a word for each table */
};

/* At once, whether or not the stream has come so far: people have to know within a minute (F20). */
static void tell_people(void *arg, const struct spate_survey_finding *finding)
{
    struct telling *telling = arg;
    struct spate_told_counts *counts = &telling->told->counts;
    struct spate_buf name = {0}, publication = {0}, other = {0};

    add_table(&name, finding->table);
    spate_pg_ident(&publication, spate_slice_str(telling->publication));
    if (finding->other)
        add_table(&other, finding->other);
    if (finding->news == SPATE_NEWS_REMOVED) {
        counts->removed++;
        if (finding->other)
            say(SPATE_LOG_WARN, "table-renamed", finding->table,
                "table %s is called %s now: followers of "
                "the old name hear no more of it",
                spate_buf_str(&name), spate_buf_str(&other));
        else
            say(SPATE_LOG_WARN, "table-removed", finding->table,
                "table %s is not in publication %s any more: its changes are not read from now on, and "
                "whoever follows it keeps what it had. If it still exists and that is a mistake: ALTER "
                "PUBLICATION %s ADD TABLE %s; every follower is then told to take it anew",
                spate_buf_str(&name), spate_buf_str(&publication), spate_buf_str(&publication),
                spate_buf_str(&name));
    } else if (finding->news == SPATE_NEWS_UNLOGGED) {
        say(SPATE_LOG_WARN, "table-unlogged", finding->table,
            "table %s is UNLOGGED: what is written to it now never reaches the stream (P33). ALTER TABLE %s "
            "SET LOGGED; followers are then told to take it anew",
            spate_buf_str(&name), spate_buf_str(&name));
    } else if (finding->news == SPATE_NEWS_ADDED ||
               (finding->news == SPATE_NEWS_STALE && strcmp(finding->why, "published") == 0)) {
        counts->added += !telling->all_new;
        if (!telling->all_new)
            say(SPATE_LOG_INFO, "table-added", finding->table, "table %s is published from now on",
                spate_buf_str(&name));
    }
    spate_buf_fini(&name);
    spate_buf_fini(&publication);
    spate_buf_fini(&other);
}

/* ---- judging ---- */

static void keep_saying(void *arg, const struct spate_survey_finding *finding)
{
    struct spate_told *told = arg;
    struct saying *saying;

    if (told->count == told->cap) {
        told->cap = told->cap ? told->cap * 2 : 64;
        told->sayings = spate_realloc(told->sayings, told->cap * sizeof *told->sayings);
    }
    saying = &told->sayings[told->count++];
    *saying = (struct saying){.news = finding->news,
                              .table = finding->table,
                              .why = finding->why,
                              .column_count = finding->column_count};
    saying->columns = spate_alloc((finding->column_count + 1) * sizeof(char *));
    for (size_t i = 0; i < finding->column_count; i++)
        saying->columns[i] = spate_strdup(finding->columns[i]);
}

static struct spate_survey_rules rules_of(const struct spate_told *told, const struct spate_stream *stream)
{
    return (struct spate_survey_rules){.baseline = !told->whole,
                                       .say = stream->config->source.rewrites == SPATE_REWRITES_SAY,
                                       .truncates = told->truncates,
                                       .truncate_count = told->truncate_count};
}

static void ignore_finding(void *arg, const struct spate_survey_finding *finding)
{
    (void)arg, (void)finding;
}

static void count_tables(struct spate_told *told, const struct spate_survey *survey)
{
    told->counts.known = true;
    told->counts.tables = survey->count;
    told->counts.unlogged = 0;
    for (size_t i = 0; i < survey->count; i++)
        told->counts.unlogged += survey->tables[i].unlogged;
}

/* A new survey came. */
static void hear(struct spate_told *told, const struct spate_stream *stream, struct spate_survey *survey)
{
    const struct spate_survey *before = told->heard ? told->heard : told->known;
    struct spate_survey_rules rules = rules_of(told, stream);
    struct telling telling = {.told = told, .publication = stream->config->source.publication};

    if (survey->at_us < told->since_us) {
        spate_survey_drop(survey);
        return;
    }
    if (!survey->published) { /* P55, F19 */
        if (!told->missing_said)
            spate_log(SPATE_LOG_WARN, "publication-gone",
                      "publication=%s text=\"it was dropped: changes made from now on are refused by the "
                      "server, or from version 18 on left out in silence. Create it again; followers are "
                      "then told to take all its tables anew\"",
                      stream->config->source.publication);
        told->missing_said = true;
        spate_survey_drop(survey);
        return;
    }
    told->missing_said = false;
    rules.baseline = rules.baseline && !told->heard;
    telling.all_new = !rules.baseline && (before->publication != survey->publication ||
                                          before->publication_xmin != survey->publication_xmin);
    if (telling.all_new)
        spate_log(SPATE_LOG_WARN, "publication-changed",
                  "publication=%s text=\"it was made again, or its options were changed: followers are told "
                  "to take all its tables anew\"",
                  stream->config->source.publication);
    spate_survey_judge(before, survey, &rules, tell_people, &telling);
    count_tables(told, survey);
    put(&told->heard, spate_survey_hold(survey));
    put(&told->next, survey);
}

/* Between two transactions, and behind all that was published before this session. */
static bool at_boundary(const struct spate_stream *stream)
{
    const struct spate_transaction *tx = &stream->tx;

    return (!tx->open || (tx->ordinal == 0 && !tx->holding)) && tx->next_n > stream->tail.last &&
           !spate_weave_emitting(stream->weave);
}

static uint64_t reached(const struct spate_stream *stream)
{
    uint64_t at = stream->ledger.received;

    if (stream->tx.open)
        return stream->tx.commit_lsn > at ? stream->tx.commit_lsn : at;
    return stream->repl.wal_end > at ? stream->repl.wal_end : at;
}

bool spate_told_wants(const struct spate_told *told, const struct spate_stream *stream)
{
    return told->step == STEP_WAITING && reached(stream) >= told->judged->lsn && at_boundary(stream);
}

/* Which version followers will meet, published before they are told of it. v stays 0 where there is no such
 * table any more. */
static enum spate_rc find_version(struct spate_stream *stream, struct saying *saying, struct spate_err *err)
{
    struct spate_table *raw = NULL;
    struct spate_cover *cover = NULL;
    const struct spate_table *version = NULL;
    size_t kept = 0;
    bool fresh;
    enum spate_rc rc = spate_catalog_table(&stream->catalog, saying->table->oid, &raw, err);

    if (rc != SPATE_OK || !raw)
        return rc;
    rc = spate_stream_cover(stream, saying->table->oid, raw, &cover, err);
    if (rc == SPATE_OK)
        rc = spate_stream_offer(stream, cover, &version, &fresh, err);
    spate_cover_free(cover);
    if (rc != SPATE_OK)
        return rc;
    /* It may have been renamed since: then the next survey has the words. */
    if (spate_slice_is(version->schema, saying->table->schema) &&
        spate_slice_is(version->name, saying->table->name))
        saying->v = version->v;
    for (size_t i = 0; i < saying->column_count; i++)
        if (spate_table_column(version, spate_slice_str(saying->columns[i])) >= 0)
            saying->columns[kept++] = saying->columns[i];
        else
            free(saying->columns[i]); /* nobody gets it */
    if (saying->column_count > 0 && kept == 0)
        saying->news = SPATE_NEWS_MEMORY;
    saying->column_count = kept;
    return SPATE_OK;
}

static void judge(struct spate_told *told, const struct spate_stream *stream)
{
    const struct spate_survey_rules rules = rules_of(told, stream);

    unsay(told);
    spate_survey_judge(told->known, told->judged, &rules, keep_saying, told);
    told->step = STEP_NAMING;
}

/* A few in each turn: the stream goes on meanwhile. */
static enum spate_rc name_all(struct spate_told *told, struct spate_stream *stream, struct spate_err *err)
{
    unsigned named = 0;

    for (; told->at < told->count; told->at++) {
        struct saying *saying = &told->sayings[told->at];
        enum spate_rc rc;

        if (saying->news != SPATE_NEWS_STALE && saying->news != SPATE_NEWS_ADDED)
            continue;
        if (named++ == VERSIONS)
            return SPATE_OK;
        rc = find_version(stream, saying, err);
        if (rc != SPATE_OK)
            return rc;
    }
    told->at = 0;
    told->step = STEP_SAYING;
    return spate_stream_schemas_durable(stream, err);
}

/* ---- `stale` ---- */

static void publish_stale(struct spate_told *told, struct spate_stream *stream, const struct saying *saying)
{
    const uint64_t published = stream->ledger.published;
    struct spate_slice *columns = spate_alloc((saying->column_count + 1) * sizeof *columns);
    struct spate_stale stale = {.at = stream->tx.next_n - 1,
                                .epoch = stream->tx.epoch,
                                .end = published > stream->floor ? published : stream->floor,
                                .wall_us = spate_clock_wall_us(),
                                .source = stream->tx.source,
                                .schema = spate_slice_str(saying->table->schema),
                                .table = spate_slice_str(saying->table->name),
                                .v = saying->v,
                                .why = spate_slice_str(saying->why),
                                .columns = columns,
                                .column_count = saying->column_count};

    for (size_t i = 0; i < saying->column_count; i++)
        columns[i] = spate_slice_str(saying->columns[i]);
    spate_publisher_stale(&stream->publisher, &stale);
    told->counts.stale++;
    say(SPATE_LOG_WARN, "stale", saying->table,
        "what followers hold of it may differ from the source (%s): they are told to take it anew",
        saying->why);
    free(columns);
}

static enum spate_rc say_all(struct spate_told *told, struct spate_stream *stream, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (; told->at < told->count; told->at++) {
        const struct saying *saying = &told->sayings[told->at];

        if (saying->news == SPATE_NEWS_REWRITTEN)
            say(SPATE_LOG_WARN, "table-rewritten", saying->table,
                "it has new files, and the stream does not say why (source.postgres.rewrites is say): was "
                "it other than VACUUM FULL, CLUSTER or a repacking, take it anew: spate snapshot --sink");
        if (saying->news != SPATE_NEWS_STALE || !saying->v)
            continue;
        if (spate_publisher_full(&stream->publisher)) {
            rc = spate_publisher_flush(&stream->publisher, err);
            if (rc != SPATE_OK)
                return rc == SPATE_AGAIN ? SPATE_OK : rc;
        }
        publish_stale(told, stream, saying);
        told->said = true;
    }
    rc = spate_publisher_flush(&stream->publisher, err);
    if (rc != SPATE_OK)
        return rc == SPATE_AGAIN ? SPATE_OK : rc;
    if (told->said)
        SPATE_FAILPOINT(connector_stale_published);
    told->mark = spate_writer_end(stream->publisher.stream).at;
    told->at = 0;
    told->step = STEP_DURABLE;
    return SPATE_OK;
}

/* ---- `storage` ---- */

static enum spate_rc write_record(struct spate_told *told, struct spate_stream *stream,
                                  const struct saying *saying, struct spate_err *err)
{
    struct spate_buf state = {0};
    struct spate_storage storage = {.epoch = stream->tx.epoch,
                                    .end = told->judged->lsn,
                                    .wall_us = spate_clock_wall_us(),
                                    .source = stream->tx.source};
    enum spate_rc rc;

    if (!saying) {
        spate_survey_write_head(told->judged, &state);
    } else {
        storage.schema = spate_slice_str(saying->table->schema);
        storage.table = spate_slice_str(saying->table->name);
        storage.gone = saying->news == SPATE_NEWS_REMOVED;
        if (!storage.gone)
            spate_survey_write(told->judged, saying->table, &state);
    }
    storage.state = spate_buf_view(&state);
    rc = spate_publisher_storage(&stream->publisher, &storage, err);
    spate_buf_fini(&state);
    return rc;
}

static enum spate_rc write_all(struct spate_told *told, struct spate_stream *stream, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (unsigned written = 0; rc == SPATE_OK && told->at <= told->count; written++) {
        const struct saying *saying = told->at < told->count ? &told->sayings[told->at] : NULL;

        if (written == RECORDS)
            return SPATE_OK;
        rc = write_record(told, stream, saying, err);
        SPATE_FAILPOINT(connector_storage_published);
        told->at += rc == SPATE_OK;
    }
    if (rc != SPATE_OK)
        return rc == SPATE_AGAIN ? SPATE_OK : rc;
    forget_truncates(told, told->judged->oldest);
    put(&told->known, told->judged);
    told->judged = NULL;
    told->whole = true;
    unsay(told);
    return SPATE_OK;
}

/* ---- the turn ---- */

/* Nothing differs: known is the newer one from now on, which shares its memory with the thread that reads
 * them. Else it waits for the stream. */
static void take_next(struct spate_told *told, const struct spate_stream *stream)
{
    const struct spate_survey_rules rules = rules_of(told, stream);

    told->judged = told->next;
    told->next = NULL;
    if (spate_survey_judge(told->known, told->judged, &rules, ignore_finding, NULL)) {
        told->step = STEP_WAITING;
        return;
    }
    put(&told->known, told->judged);
    told->judged = NULL;
}

enum spate_rc spate_told_turn(struct spate_told *told, struct spate_stream *stream, int64_t now_ms,
                              struct spate_err *err)
{
    struct spate_survey *survey = spate_status_survey(stream->config->status);
    enum spate_rc rc = SPATE_OK;

    if (survey)
        hear(told, stream, survey);
    if (told->step == STEP_NONE && told->next)
        take_next(told, stream);
    if (told->step == STEP_WAITING && !spate_told_wants(told, stream) &&
        reached(stream) < told->judged->lsn && now_ms - told->ask_ms >= ASK_MS) {
        told->ask_ms = now_ms;
        stream->repl.ask_position = true;
    }
    if (spate_told_wants(told, stream))
        judge(told, stream);
    if (told->step == STEP_NAMING)
        rc = name_all(told, stream, err);
    if (rc == SPATE_OK && told->step == STEP_SAYING && at_boundary(stream))
        rc = say_all(told, stream, err);
    if (rc == SPATE_OK && told->step == STEP_DURABLE &&
        spate_writer_durable(stream->publisher.stream).at >= told->mark) {
        if (told->said)
            SPATE_FAILPOINT(connector_stale_durable);
        told->step = STEP_WRITING;
    }
    if (rc == SPATE_OK && told->step == STEP_WRITING)
        rc = write_all(told, stream, err);
    return rc;
}

int spate_told_due_ms(const struct spate_told *told)
{
    switch (told->step) {
    case STEP_NONE:
        return 1000;
    case STEP_WAITING:
        return ASK_MS;
    case STEP_NAMING:
    case STEP_SAYING:
    case STEP_WRITING:
        return 0;
    case STEP_DURABLE:
        break;
    }
    return DURABLE_MS;
}

struct spate_told_counts spate_told_counts(const struct spate_told *told)
{
    return told->counts;
}
