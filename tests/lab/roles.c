/* tests/lab/roles.c - a writer and a reader of the crowd. */
#include "tests/lab/lab.h"

#include "bus/local/layout.h"
#include "bus/local/local.h"
#include "core/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define AHEAD_VOLATILE 2 /* half a segment: what is read late is gone */
#define TOPIC          "log"
#define LONG_NAP_MS    10000
#define LATE_US        3000000

struct head {
    uint32_t who, len;
    uint64_t number;
};

uint64_t lab_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void nap(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* The bytes of a record: its head, then words that look like record headers as often as not. */
static size_t value_of(const struct lab_plan *plan, int who, uint64_t number, char *out)
{
    uint64_t seed = number * 64 + (uint64_t)who;
    const size_t usual = LAB_LEAST + lab_random(&seed) % (LAB_MOST - LAB_LEAST + 1);
    const size_t len = plan->large && seed % 97 == 0 ? LAB_LARGE + usual : usual;
    const struct head head = {.who = (uint32_t)who, .len = (uint32_t)len, .number = number};

    memcpy(out, &head, sizeof head);
    for (size_t i = sizeof head; i < len; i += 8) {
        uint64_t word = lab_random(&seed);
        if (word & 1) /* COMMIT or PAD with a small length */
            word = (word & 2 ? UINT64_C(2) : UINT64_C(3)) << 56 | (word % 4096 & ~UINT64_C(63));
        memcpy(out + i, &word, len - i < 8 ? len - i : 8);
    }
    return len;
}

static bool over(const struct lab *lab)
{
    return atomic_load(&lab->board->abandon) != 0;
}

static int patience_ms(const struct lab *lab)
{
    return lab->plan->patience_ms ? lab->plan->patience_ms : 20000;
}

static struct spate_bus *open_bus(struct lab *lab)
{
    struct spate_bus *bus = NULL;
    struct spate_err err = {0};
    const uint64_t cap = lab->plan->cap ? lab->plan->cap : UINT64_C(1) << 20;

    if (spate_local_bus_open(lab->plan->path, lab->plan->hot, (int64_t)cap, &bus, &err) != SPATE_OK)
        lab_wrong(lab, "the bus: %s", err.text);
    return bus;
}

/* --- writer */

static struct spate_writer *open_writer(struct lab *lab, struct spate_bus *bus, int who)
{
    const int64_t deadline = spate_clock_ms() + patience_ms(lab);
    struct spate_writer *w = NULL;
    struct spate_err err = {0};

    while (bus && !over(lab)) {
        const enum spate_rc rc =
            spate_bus_writer_open(bus, TOPIC, SPATE_TOPIC_CREATE | lab->plan->flags, &w, &err);
        if (rc == SPATE_OK)
            return w;
        if (err.verdict != SPATE_RETRY || spate_clock_ms() > deadline) {
            lab_wrong(lab, "writer %d does not open: %s", who, err.text);
            return NULL;
        }
        nap(1000);
    }
    return NULL;
}

/* Of a topic that forgets, nobody may run so far ahead that a reader is overtaken; of one that keeps, far
 * enough that readers go to the archive now and then. */
static bool may_go_on(const struct lab *lab, int who, uint64_t number)
{
    const struct lab_plan *plan = lab->plan;
    const uint64_t cap = plan->cap ? plan->cap : UINT64_C(1) << 20;
    const uint64_t room = plan->flags & SPATE_TOPIC_VOLATILE ? cap / AHEAD_VOLATILE : 6 * cap;
    uint64_t seen = UINT64_MAX;

    for (int i = 0; i < plan->readers; i++) {
        const uint64_t n = atomic_load_explicit(&lab->board->readers[i].seen[who], memory_order_relaxed);
        seen = n < seen ? n : seen;
    }
    return number - seen < room / LAB_MOST / (uint64_t)plan->writers;
}

struct acked {
    struct lab *lab;
    struct lab_writer *me;
    int who;
};

static void on_acked(void *arg, uint64_t token)
{
    struct acked *acked = arg;
    const uint64_t before = atomic_load(&acked->me->acked);

    if (token <= before || token > atomic_load(&acked->me->taken))
        lab_wrong(acked->lab, "writer %d: record %llu was acknowledged after %llu", acked->who,
                  (unsigned long long)token, (unsigned long long)before);
    atomic_store(&acked->me->acked, token);
}

/* Offers the numbers first..last until all are taken. false: this writer has to be opened anew, or all is
 * over.
 */
static bool publish(struct lab *lab, struct spate_writer *w, int who, uint64_t first, uint64_t last)
{
    static _Thread_local char values[8][LAB_LARGE + LAB_MOST];
    struct spate_record records[8];
    struct lab_writer *me = &lab->board->writers[who];
    struct acked acked = {.lab = lab, .me = me, .who = who};
    const int64_t deadline = spate_clock_ms() + patience_ms(lab);
    const bool keyed = first % 3 == 0;
    struct spate_err err = {0};

    atomic_store(&me->tried, last);
    for (uint64_t n = first; n <= last; n++)
        records[n - first] = (struct spate_record){.key = {.at = "key", .len = keyed ? 3 : 0},
                                                   .value = {.at = values[n - first]},
                                                   .ts_us = spate_clock_us(),
                                                   .token = n};
    for (uint64_t n = first; n <= last; n++)
        records[n - first].value.len = value_of(lab->plan, who, n, values[n - first]);
    for (uint64_t next = first; next <= last && !over(lab);) {
        size_t taken = 0;
        enum spate_rc rc =
            spate_writer_publish(w, records + (next - first), (size_t)(last - next + 1), &taken, &err);
        uint64_t bytes = 0;
        for (size_t i = 0; i < taken; i++)
            bytes += spate_local_footprint(records[next - first + i].key.len +
                                           records[next - first + i].value.len);
        next += taken;
        atomic_store(&me->taken, next - 1);
        atomic_fetch_add_explicit(&me->bytes, bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&me->count, taken, memory_order_relaxed);
        if (rc != SPATE_FAIL)
            rc = spate_writer_poll(w, rc == SPATE_AGAIN ? 5 : 0, on_acked, &acked, &err);
        if (rc == SPATE_FAIL) {
            if (err.verdict != SPATE_RETRY)
                lab_wrong(lab, "writer %d does not publish: %s", who, err.text);
            return false;
        }
        if (next <= last && spate_clock_ms() > deadline) {
            lab_wrong(lab, "writer %d waits for room since %d ms", who, patience_ms(lab));
            return false;
        }
    }
    return true;
}

/* All that this handle took has to become durable, if the topic is. */
static void settle(struct lab *lab, struct spate_writer *w, int who, uint64_t last)
{
    struct lab_writer *me = &lab->board->writers[who];
    struct acked acked = {.lab = lab, .me = me, .who = who};
    const int64_t deadline = spate_clock_ms() + patience_ms(lab);
    struct spate_err err = {0};

    if (lab->plan->flags & SPATE_TOPIC_VOLATILE)
        return;
    while (atomic_load(&me->acked) < last && !over(lab)) {
        if (spate_writer_poll(w, 20, on_acked, &acked, &err) == SPATE_FAIL)
            lab_wrong(lab, "writer %d does not hear that it is durable: %s", who, err.text);
        else if (spate_clock_ms() > deadline)
            lab_wrong(lab, "writer %d: record %llu was taken, and %llu is durable since %d ms", who,
                      (unsigned long long)last, (unsigned long long)atomic_load(&me->acked),
                      patience_ms(lab));
    }
}

void lab_write(struct lab *lab, int who, uint64_t seed)
{
    struct lab_writer *me = &lab->board->writers[who];
    struct spate_bus *bus = open_bus(lab);
    struct spate_writer *w = open_writer(lab, bus, who);
    const int most = lab->plan->batch ? lab->plan->batch : 6;
    uint64_t n = atomic_load(&me->tried), opened_at = n;

    while (w && !over(lab) && !atomic_load(&lab->board->stop)) {
        const uint64_t count = lab_random(&seed) % 3 ? 1 : 1 + lab_random(&seed) % (uint64_t)most;
        if (!may_go_on(lab, who, n)) {
            nap(100);
            continue;
        }
        if (lab->plan->paced && lab_random(&seed) % 4 == 0)
            nap((long)(lab_random(&seed) % 300));
        const bool failed = !publish(lab, w, who, n + 1, n + count);
        if (!failed)
            n += count;
        else if (atomic_load(&me->taken) > n) /* what was not taken is offered anew */
            n = atomic_load(&me->taken);
        if (failed || lab_random(&seed) % 3000 == 0) {
            if (!failed)
                settle(lab, w, who, n > opened_at ? n : 0);
            spate_writer_close(w);
            w = open_writer(lab, bus, who);
            opened_at = n;
        }
    }
    if (w && !over(lab))
        settle(lab, w, who, n > opened_at ? n : 0);
    spate_writer_close(w);
    spate_bus_close(bus);
}

void lab_close_log(struct lab *lab)
{
    struct spate_bus *bus = open_bus(lab);
    struct spate_writer *w = open_writer(lab, bus, LAB_WRITERS);

    if (w) {
        publish(lab, w, LAB_WRITERS, 1, 1);
        settle(lab, w, LAB_WRITERS, 1);
        atomic_store(&lab->board->end, spate_writer_end(w).at);
    }
    spate_writer_close(w);
    spate_bus_close(bus);
}

/* --- reader */

struct view {
    struct lab *lab;
    int who;
    bool durable;         /* sees what is durable only */
    uint64_t gap, behind; /* the last gap that was told */
    uint64_t next[LAB_WRITERS + 1];
    uint64_t hash;
};

static bool may_be_missing(const struct lab_writer *w, uint64_t n)
{
    const uint32_t count = atomic_load(&w->unknowns);

    for (uint32_t i = 0; i < count; i++)
        if (n >= w->unknown[i].first && n <= w->unknown[i].last)
            return true;
    return false;
}

/* Is a record kept from this reader that its writer knows to be in? */
static bool kept_waiting(struct view *v)
{
    for (int i = 0; i < v->lab->plan->writers; i++) {
        const struct lab_writer *w = &v->lab->board->writers[i];
        const uint64_t in = atomic_load(v->durable ? &w->acked : &w->taken);
        uint64_t next = v->next[i];
        while (next <= in && may_be_missing(w, next))
            next++;
        if (next <= in)
            return true;
    }
    return false;
}

/* One record: whose and which it is, and whether it is the one that has to come. */
static void look(struct view *v, const struct spate_message *m)
{
    struct head head = {0};
    static _Thread_local char expected[LAB_LARGE + LAB_MOST];

    if (m->kind != SPATE_MESSAGE_RECORD) { /* what it took, if anything, is seen by the numbers */
        v->gap = m->pos.at;
        v->behind = m->next.at;
        return;
    }
    if (m->value.len >= sizeof head)
        memcpy(&head, m->value.at, sizeof head);
    if (head.who > LAB_WRITERS || head.number == 0 ||
        value_of(v->lab->plan, (int)head.who, head.number, expected) != m->value.len ||
        memcmp(expected, m->value.at, m->value.len) != 0) {
        lab_wrong(v->lab, "reader %d: the bytes at %016llx are nobody's", v->who,
                  (unsigned long long)m->pos.at);
        return;
    }
    uint64_t *next = &v->next[head.who];
    if (head.number < *next)
        lab_wrong(v->lab, "reader %d: record %llu of writer %u comes after %llu, at %016llx", v->who,
                  (unsigned long long)head.number, head.who, (unsigned long long)*next - 1,
                  (unsigned long long)m->pos.at);
    for (; *next < head.number; ++*next)
        if (!may_be_missing(&v->lab->board->writers[head.who], *next))
            lab_wrong(
                v->lab,
                "reader %d: record %llu of writer %u is lost; after it comes %llu, at %016llx; the last gap "
                "was from %016llx to %016llx",
                v->who, (unsigned long long)*next, head.who, (unsigned long long)head.number,
                (unsigned long long)m->pos.at, (unsigned long long)v->gap, (unsigned long long)v->behind);
    ++*next;
    atomic_store_explicit(&v->lab->board->readers[v->who].seen[head.who], head.number, memory_order_relaxed);
    uint64_t mix = v->hash ^ m->pos.at ^ head.number << 8 ^ head.who;
    v->hash = lab_random(&mix);
}

void lab_read(struct lab *lab, int who)
{
    struct lab_reader *me = &lab->board->readers[who];
    struct view v = {.lab = lab, .who = who};
    struct spate_bus *bus = open_bus(lab);
    struct spate_reader *r = NULL;
    struct spate_err err = {0};
    int64_t deadline = spate_clock_ms() + patience_ms(lab), since_us = 0;

    for (int i = 0; i <= LAB_WRITERS; i++)
        v.next[i] = 1;
    v.durable = !(lab->plan->flags & SPATE_TOPIC_VOLATILE) && who % 2 == 1;
    while (bus && !r && !over(lab) &&
           spate_bus_reader_open(bus, TOPIC, v.durable ? SPATE_SEE_DURABLE : SPATE_SEE_TIP,
                                 (struct spate_start){.from = SPATE_START_OLDEST}, &r, &err) != SPATE_OK) {
        r = NULL;
        if (err.verdict != SPATE_RETRY || spate_clock_ms() > deadline)
            lab_wrong(lab, "reader %d does not open: %s", who, err.text);
        nap(1000);
    }
    atomic_store(&me->ready, 1);
    while (r && !over(lab) && v.next[LAB_WRITERS] == 1) {
        struct spate_message m;
        enum spate_rc rc = spate_reader_next(r, &m, &err);
        if (rc == SPATE_OK) {
            look(&v, &m);
            const int64_t late = spate_clock_us() - m.ts_us;
            if (lab->plan->paced && late > LATE_US)
                lab_wrong(lab, "reader %d met a record %lld us after it was published: a wake-up was lost",
                          who, (long long)late);
            if (lab->plan->paced && late > atomic_load(&me->block_us))
                atomic_store(&me->block_us, late);
            if (since_us) {
                const int64_t block = spate_clock_us() - since_us;
                if (block > atomic_load(&me->block_us))
                    atomic_store(&me->block_us, block);
            }
            since_us = deadline = 0;
            atomic_fetch_add_explicit(&me->count, 1, memory_order_relaxed);
            continue;
        }
        if (rc == SPATE_AGAIN) {
            if (!since_us && kept_waiting(&v))
                since_us = spate_clock_us();
            if (!deadline)
                deadline = spate_clock_ms() + patience_ms(lab);
            rc = spate_reader_wait(r, lab->plan->paced ? LONG_NAP_MS : since_us ? 1 : 50, &err);
        }
        if (rc == SPATE_FAIL) {
            lab_wrong(lab, "reader %d: %s", who, err.text);
            break;
        }
        if (deadline && spate_clock_ms() > deadline) {
            lab_wrong(lab, "reader %d hears nothing since %d ms%s", who, patience_ms(lab),
                      since_us ? ", though there is something" : "");
            break;
        }
    }
    for (int i = 0; i < lab->plan->writers && !over(lab); i++)
        for (uint64_t n = v.next[i]; n <= atomic_load(&lab->board->writers[i].taken); n++)
            if (!may_be_missing(&lab->board->writers[i], n))
                lab_wrong(lab, "reader %d: record %llu of writer %d did not come", who, (unsigned long long)n,
                          i);
    atomic_store(&me->hash, v.hash);
    spate_reader_close(r);
    spate_bus_close(bus);
}

void lab_wrong(struct lab *lab, const char *format, ...)
{
    struct lab_board *board = lab->board;
    va_list args;

    if (atomic_fetch_add(&board->claimed, 1) == 0) {
        va_start(args, format);
        vsnprintf(board->what, sizeof board->what, format, args);
        va_end(args);
        if (!lab->plan->mute)
            fprintf(stderr, "# lab: %s\n", board->what);
    }
    atomic_fetch_add(&board->wrong, 1);
    atomic_store(&board->abandon, 1);
}
