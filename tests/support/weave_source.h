/* tests/support/weave_source.h - a source under MVCC for tests/unit/cli_weave_test.c: one table of a few
 * pages, a log in commit order, and a visibility that comes later and in another order (P91). */
#ifndef SPATE_TESTS_SUPPORT_WEAVE_SOURCE_H
#define SPATE_TESTS_SUPPORT_WEAVE_SOURCE_H

#include "connector/hidden.h"
#include "core/alloc.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 12, PAGES = 6, OPS = 3, MOST_TRANSACTIONS = 1200, MOST_VERSIONS = 6000 };
#define FIRST_XID UINT64_C(0x1ffffffe0) /* 32 bits wrap on the way (P21) */

/* ---- chance ---- */

static uint64_t chance_state;

static uint32_t chance(uint32_t below)
{
    uint64_t z = (chance_state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * below >> 32);
}

static bool percent(uint32_t p)
{
    return chance(100) < p;
}

/* ---- the table ---- */

struct row {
    int key, a, toast;
};

enum what { INSERT, UPDATE, DELETE, MOVE, TRUNCATE };

struct op {
    enum what what;
    int key, to; /* MOVE: the new key */
    int a, toast;
    bool unchanged; /* toast is not in the message (P42) */
};

enum life { RUNNING, INVISIBLE, VISIBLE, ABORTED };

struct transaction {
    enum life life;
    struct op ops[OPS];
    int count;
    uint32_t keys; /* touched, old ones of moves too */
    bool truncates;
};

struct version {
    struct row row;
    int page, xmin, xmax; /* transactions; xmax -1: none; xmin -1: it never was */
};

static struct {
    struct transaction transactions[MOST_TRANSACTIONS];
    int count;
    int wal[MOST_TRANSACTIONS], wal_count; /* in commit order; the commit LSN is the place from 1 */
    struct version versions[MOST_VERSIONS];
    int version_count;
    int pages, filenode, values;
    int under_way; /* transactions that hold locks: running, or committed and not visible */
    bool locked;   /* exclusively: nobody reads or writes */
} source;

static void source_start(void)
{
    source.count = source.wal_count = source.version_count = source.values = source.under_way = 0;
    source.locked = false;
    source.pages = PAGES;
    source.filenode = 1;
}

static bool is_visible(int transaction)
{
    return source.transactions[transaction].life == VISIBLE;
}

enum { NONE = -1, LOCKED = -2 };

/* The version that a writer may change. */
static int live(int key)
{
    for (int i = 0; i < source.version_count; i++) {
        const struct version *v = &source.versions[i];

        if (v->row.key != key || v->xmin < 0 || (v->xmax >= 0 && is_visible(v->xmax)))
            continue;
        return is_visible(v->xmin) && v->xmax < 0 ? i : LOCKED;
    }
    return NONE;
}

static void put(int key, int a, int toast, int xmin)
{
    if (percent(10))
        source.pages++;
    if (source.version_count == MOST_VERSIONS)
        abort();
    source.versions[source.version_count++] =
        (struct version){{key, a, toast}, (int)chance((uint32_t)source.pages), xmin, -1};
}

static void commit(int transaction)
{
    source.transactions[transaction].life = INVISIBLE;
    source.wal[source.wal_count++] = transaction;
}

static void finish(int transaction, enum life life)
{
    source.transactions[transaction].life = life;
    source.under_way--;
    if (source.transactions[transaction].truncates)
        source.locked = false;
}

static void write_op(struct transaction *tx, int id)
{
    int key = (int)chance(KEYS), old = live(key), to;
    uint32_t kind = chance(100);
    struct op op = {.key = key, .a = ++source.values, .toast = source.values};

    if (tx->keys & (1u << key) || old == LOCKED)
        return;
    if (old == NONE) {
        op.what = INSERT;
        put(key, op.a, op.toast, id);
    } else if (kind < 25) {
        op.what = DELETE;
        source.versions[old].xmax = id;
    } else if (kind < 40) {
        to = (int)chance(KEYS);
        if (to == key || tx->keys & (1u << to) || live(to) != NONE)
            return;
        op.what = MOVE;
        op.to = to;
        op.unchanged = percent(50);
        source.versions[old].xmax = id;
        put(to, op.a, op.unchanged ? source.versions[old].row.toast : op.toast, id);
        tx->keys |= 1u << to;
    } else {
        op.what = UPDATE;
        op.unchanged = percent(60);
        source.versions[old].xmax = id;
        put(key, op.a, op.unchanged ? source.versions[old].row.toast : op.toast, id);
    }
    tx->keys |= 1u << key;
    tx->ops[tx->count++] = op;
}

static void empty_table(struct transaction *tx, int id)
{
    for (int i = 0; i < source.version_count; i++)
        if (source.versions[i].xmax < 0)
            source.versions[i].xmax = id;
    tx->truncates = source.locked = true;
    tx->ops[tx->count++] = (struct op){.what = TRUNCATE};
    source.pages = 1;
    source.filenode++;
}

/* One transaction: written now; its commit record is in the WAL at once or later. */
static void source_write(void)
{
    struct transaction *tx = &source.transactions[source.count];

    if (source.locked || source.count == MOST_TRANSACTIONS)
        return;
    memset(tx, 0, sizeof *tx);
    if (source.under_way == 0 && percent(25)) {
        empty_table(tx, source.count);
    } else {
        for (int i = 1 + (int)chance(OPS); i > 0; i--)
            write_op(tx, source.count);
    }
    if (tx->count == 0)
        return;
    source.under_way++;
    tx->life = RUNNING;
    source.count++;
    if (percent(70))
        commit(source.count - 1);
}

/* VACUUM FULL, CLUSTER: rows get other pages, and no event says so. */
static void source_rewrite(void)
{
    if (source.under_way)
        return;
    source.filenode++;
    source.pages = 1 + (int)chance(PAGES);
    for (int i = 0; i < source.version_count; i++)
        source.versions[i].page = (int)chance((uint32_t)source.pages);
}

static int one_that_is(enum life life)
{
    int found = NONE, count = 0;

    for (int i = 0; i < source.count; i++)
        if (source.transactions[i].life == life && chance((uint32_t)++count) == 0)
            found = i;
    return found;
}

static void source_end_one(void)
{
    int id = one_that_is(RUNNING);

    if (id < 0)
        return;
    if (percent(80) || source.transactions[id].truncates) {
        commit(id);
        return;
    }
    for (int i = 0; i < source.version_count; i++) {
        if (source.versions[i].xmax == id)
            source.versions[i].xmax = -1;
        if (source.versions[i].xmin == id)
            source.versions[i].xmin = -1;
    }
    finish(id, ABORTED);
}

/* The standby has acknowledged. */
static void source_settle(void)
{
    int id = one_that_is(INVISIBLE);

    if (id >= 0)
        finish(id, VISIBLE);
}

/* A moment without anybody. */
static void source_calm(void)
{
    while (one_that_is(RUNNING) >= 0)
        source_end_one();
    while (one_that_is(INVISIBLE) >= 0)
        source_settle();
}

/* pg_current_snapshot() */
static struct spate_snapshot source_snapshot(void)
{
    struct spate_snapshot s = {0};
    int end = 0;

    for (int i = 0; i < source.count; i++)
        if (source.transactions[i].life >= VISIBLE)
            end = i + 1;
    s.xmin = s.xmax = FIRST_XID + (uint64_t)end;
    s.xip = spate_alloc(sizeof *s.xip * ((size_t)source.under_way + 1));
    for (int i = 0; i < end; i++)
        if (source.transactions[i].life < VISIBLE)
            s.xip[s.count++] = FIRST_XID + (uint64_t)i;
    if (s.count)
        s.xmin = s.xip[0];
    return s;
}

/* Rows that are visible now, of pages [from, to) or of keys. */
static int source_read(bool by_keys, uint32_t keys, int from, int to, struct row rows[KEYS])
{
    int count = 0;

    for (int i = 0; i < source.version_count; i++) {
        const struct version *v = &source.versions[i];

        if (v->xmin < 0 || !is_visible(v->xmin) || (v->xmax >= 0 && is_visible(v->xmax)))
            continue;
        if (by_keys ? (keys >> v->row.key & 1) != 0 : v->page >= from && v->page < to)
            rows[count++] = v->row;
    }
    return count;
}

static inline uint32_t xid_of(int transaction)
{
    return (uint32_t)(FIRST_XID + (uint64_t)transaction);
}

#endif
