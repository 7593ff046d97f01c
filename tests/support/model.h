/* tests/support/model.h - a world in which histories happen (tests/unit/cli_model_test.c): Postgres with one
 * slot, a bus in memory that does it wrong, and what everybody should see of it.
 *
 * Changes are counted from 1 over all epochs here; `n` of epoch e counts from that epoch's base. One thread,
 * one world at a time. */
#ifndef SPATE_TESTS_SUPPORT_MODEL_H
#define SPATE_TESTS_SUPPORT_MODEL_H

#include "connector/epoch.h"
#include "sinks/reader.h"
#include "tests/support/bus_faulty.h"
#include "tests/support/bus_memory.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { TXS = 20, MOST_CHANGES = 4, CHANGES = TXS * MOST_CHANGES, KEYS = 4, WRITERS = 10, EPOCHS = 5 };

#define TOPIC "shop"

enum control {
    THE_RULE,
    GREATEST_NUMBER,     /* a new writer goes on after the greatest n of the log */
    FROM_THE_BEGINNING,  /* ... replays the rule from the log's beginning, with the confirmed n */
    NO_ANCHOR_RULE,      /* the follower takes a chunk wherever it meets it */
    NO_NUMBER_RULE,      /* the follower takes every change it meets */
    LIES_ABOUT_LOSSES,   /* the driver hands tokens back behind a record that it lost */
    SWAPS_WITHOUT_A_WORD /* a producer that is not idempotent (K1) */
};

struct wal_tx {
    uint64_t commit, end;
    unsigned changes;
    uint64_t last; /* the number of its last change */
};

struct source {
    struct wal_tx txs[TXS];
    size_t committed;          /* of txs */
    uint64_t opening;          /* where the stream begins: what committed before has no number */
    uint64_t confirmed, saved; /* the slot, and what a crash takes it back to (P15) */
    uint64_t total;            /* changes that have a number */
    unsigned key[CHANGES + 1]; /* of a change; its value is its number */
    uint64_t rows[CHANGES + 1][KEYS];
};

struct world {
    uint64_t random;
    enum control control;
    /* What retention may take: nothing; what the slot cannot go back to; all but the last record. */
    enum retention { KEEPS_ALL, KEEPS_THE_SLOTS, KEEPS_LITTLE } retention;
    struct source source;
    struct bus_memory memory;
    struct bus_faulty bus;
    struct spate_epoch_record epoch; /* the newest, as `_schemas` has it */
    uint64_t base[EPOCHS + 1];       /* by epoch: changes before its n=1 */
    struct spate_buf opening[EPOCHS + 1];
    struct spate_feed feed;
    bool follows;        /* false: it has not met the epoch yet */
    uint64_t taken;      /* the change that the follower took last */
    uint64_t complete;   /* ... with its whole transaction */
    uint64_t rows[KEYS]; /* what it made of it */
    size_t wrong_at;     /* how far a wrong follower has read */
    size_t declared_at;  /* the stream's end when the newest epoch was decided upon */
    bool slipped, stale; /* a zombie wrote between an opener's look and its word; a follower gave up for it */
    uint64_t recoveries, compared, chunks, duplicates, epochs;
    char violation[600];
};

static struct world world;

static inline uint64_t below(uint64_t n)
{
    return bus_faulty_random(&world.random) % n;
}

static inline void __attribute__((format(printf, 1, 2))) violated(const char *fmt, ...)
{
    va_list args;

    if (world.violation[0])
        return;
    va_start(args, fmt);
    vsnprintf(world.violation, sizeof world.violation, fmt, args);
    va_end(args);
}

static inline struct bus_memory_topic *stream(void)
{
    return bus_memory_topic(&world.memory, TOPIC);
}

static inline void append(struct spate_slice line)
{
    const struct spate_record record = {.value = line};

    bus_memory_append(stream(), &record);
}

static inline struct spate_head head_at(size_t at)
{
    static struct spate_arena arena;
    const struct bus_memory_record *r = &stream()->records[at];
    struct spate_head head;
    struct spate_err err = {0};

    spate_arena_reset(&arena);
    if (spate_decode_head(spate_slice(r->bytes + r->key_len, r->value_len), &head, &arena, &err) != SPATE_OK)
        violated("record %zu: %s", at, err.text);
    return head;
}

/* ---- Postgres ---- */

static inline void make_source(struct source *s)
{
    uint64_t lsn = 1000;
    const size_t before = below(4);

    s->opening = s->total = 0;
    for (size_t i = 0; i < TXS; i++) {
        struct wal_tx *tx = &s->txs[i];

        if (i == before)
            s->opening = lsn;
        tx->commit = lsn + below(3);
        tx->end = tx->commit + 1 + below(3);
        tx->changes = (unsigned)below(MOST_CHANGES + 1); /* 0: nothing of it is published */
        lsn = tx->end + below(4);
        for (unsigned c = 0; i >= before && c < tx->changes; c++) {
            const uint64_t change = ++s->total;

            s->key[change] = (unsigned)below(KEYS);
            memcpy(s->rows[change], s->rows[change - 1], sizeof s->rows[change]);
            s->rows[change][s->key[change]] = change;
        }
        tx->last = s->total;
    }
    s->committed = before;
    s->confirmed = s->opening;
    s->saved = before ? s->txs[below(before)].end : s->opening;
}

/* How many changes committed below this LSN. */
static inline uint64_t changes_below(uint64_t lsn)
{
    uint64_t count = 0;

    for (size_t i = 0; i < TXS; i++)
        if (world.source.txs[i].commit < lsn)
            count = world.source.txs[i].last;
    return count;
}

static inline uint64_t confirmed_changes(void)
{
    return changes_below(world.source.confirmed);
}

static inline struct spate_source_state source_state(void)
{
    struct spate_source_state s = {
        .system = "7", .timeline = 1, .database = TOPIC, .database_oid = 5, .wal = 1 << 30};

    s.slot.exists = s.slot.has_restart = true;
    snprintf(s.slot.plugin, sizeof s.slot.plugin, "pgoutput");
    snprintf(s.slot.database, sizeof s.slot.database, TOPIC);
    snprintf(s.slot.status, sizeof s.slot.status, "reserved");
    s.slot.restart = s.slot.confirmed = world.source.confirmed;
    return s;
}

/* ---- epochs ---- */

/* Writes the next epoch into `_schemas`; the stream is told by the caller. */
static inline void declare_epoch(uint64_t end, enum spate_previous previous, uint64_t previous_n)
{
    const uint64_t number = world.epoch.present ? world.epoch.epoch.epoch + 1 : 1;
    char uuid[37];
    struct spate_epoch epoch = {.at = previous_n,
                                .epoch = number,
                                .end = end,
                                .source = spate_slice_str(TOPIC),
                                .why = spate_slice_str("a model"),
                                .previous = previous,
                                .previous_epoch = number - 1,
                                .previous_n = previous_n,
                                .identity = {.system = spate_slice_str("7"),
                                             .timeline = 1,
                                             .database = spate_slice_str(TOPIC),
                                             .database_oid = 5,
                                             .slot = spate_slice_str("spate"),
                                             .publication = spate_slice_str("spate")}};

    snprintf(uuid, sizeof uuid, "00000000-0000-4000-8000-%012u", (unsigned)number);
    epoch.uuid = spate_slice_str(uuid);
    spate_epoch_keep(&world.epoch, &epoch);
    spate_encode_epoch(&world.opening[number], &epoch);
    world.base[number] = changes_below(end);
    world.declared_at = stream()->end;
    world.epochs++;
}

/* ---- the log, for whoever looks into a failure (TELL=1) ---- */

static inline void tell(void)
{
    for (size_t i = stream()->oldest; i < stream()->end; i++)
        fprintf(stderr, "%3zu %.110s\n", i, stream()->records[i].bytes + stream()->records[i].key_len);
    fprintf(stderr, "C=%" PRIu64 " saved=%" PRIu64 " opening=%" PRIu64 "\n", world.source.confirmed,
            world.source.saved, world.source.opening);
}

#endif
