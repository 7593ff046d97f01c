/* tests/support/bus_faulty.h - a bus driver that wraps another and does it wrong: records are lost, delayed,
 * repeated, swapped, refused and damaged, on the way in and on the way out, by script or by chance.
 *
 * Writers are honest about what they did, as a driver must be: after a lost record no token is handed back
 * and poll fails (`lies` is the control: then nothing is said). A writer keeps what it took in a queue until
 * poll delivers it, or bus_faulty_deliver does: so a writer that was left alone is a zombie (K15).
 *
 * Owns neither the wrapped bus nor its handles' order of closing; thread as bus/bus.h says. */
#ifndef SPATE_TESTS_SUPPORT_BUS_FAULTY_H
#define SPATE_TESTS_SUPPORT_BUS_FAULTY_H

#include "bus/bus.h"
#include "core/alloc.h"
#include "core/buf.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum bus_fault {
    BUS_LOSE,
    BUS_DELAY,
    BUS_DUPLICATE,
    BUS_REORDER, /* this record and the one after it change places */
    BUS_REFUSE_AGAIN,
    BUS_REFUSE_RETRY,
    BUS_REFUSE_FATAL,
    BUS_CORRUPT,
    BUS_FAULTS,
    BUS_NONE = BUS_FAULTS
};

struct bus_script {
    uint64_t at; /* the record: 1 is the first that this side sees */
    enum bus_fault fault;
};

/* One side: what it does wrong, and what it did. */
struct bus_faults {
    double chance[BUS_FAULTS];
    const struct bus_script *script;
    size_t script_count;
    uint64_t seen;
    uint64_t injected[BUS_FAULTS];
};

struct bus_faulty {
    struct spate_bus bus; /* first */
    struct spate_bus_ops ops;
    struct spate_bus *under;
    bool owned;        /* closing it closes what it wraps, and frees it */
    const char *topic; /* the only one that is hurt; NULL: every one */
    uint64_t random;   /* the seed */
    struct bus_faults write, read;
    double acknowledgement_lost; /* chance that a token is not handed back, while later ones are */
    bool lies;                   /* a control: losses are not reported */
    bool manual;                 /* nothing leaves a queue but by bus_faulty_deliver */
    size_t queue_most;           /* records that a writer takes before it is full; 0: any number */
    void (*corrupt)(struct spate_buf *value); /* NULL: cut in half */
};

struct bus_faulty_held {
    struct spate_buf bytes; /* the key, then the value */
    size_t key_len;
    int64_t ts_us;
    uint64_t token;
    struct spate_message message; /* readers */
    enum bus_fault fault;
    unsigned turns; /* how many polls it still waits */
};

struct bus_faulty_queue {
    struct bus_faulty_held *items;
    size_t first, count, cap; /* a plain array, moved down when it is full */
};

struct bus_faulty_writer {
    struct spate_writer writer; /* first */
    struct bus_faulty *bus;
    struct spate_writer *under; /* owned */
    struct bus_faulty_queue queue;
    uint64_t random;
    bool hurt;   /* this topic's turn */
    bool broken; /* a record was lost: nothing more is acknowledged */
    spate_durable_fn *durable;
    void *durable_arg;
};

struct bus_faulty_reader {
    struct spate_reader reader; /* first */
    struct bus_faulty *bus;
    struct spate_reader *under; /* owned */
    struct bus_faulty_queue queue;
    struct bus_faulty_held given; /* what the caller borrows */
    uint64_t random;
    bool hurt;
};

/* ---- chance and queue ---- */

static inline uint64_t bus_faulty_random(uint64_t *random)
{
    uint64_t x = *random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline double bus_faulty_chance(uint64_t *random)
{
    return (double)(bus_faulty_random(random) >> 11) / 9007199254740992.0;
}

static inline enum bus_fault bus_faulty_pick(struct bus_faults *side, uint64_t *random)
{
    enum bus_fault picked = BUS_NONE;
    double x;

    side->seen++;
    for (size_t i = 0; i < side->script_count; i++)
        if (side->script[i].at == side->seen)
            picked = side->script[i].fault;
    x = picked == BUS_NONE ? bus_faulty_chance(random) : 1;
    for (int i = 0; i < BUS_FAULTS && picked == BUS_NONE; i++) {
        if (x < side->chance[i])
            picked = (enum bus_fault)i;
        x -= side->chance[i];
    }
    if (picked != BUS_NONE)
        side->injected[picked]++;
    return picked;
}

static inline struct bus_faulty_held *bus_faulty_push(struct bus_faulty_queue *q)
{
    if (q->first + q->count == q->cap) {
        if (q->count && q->first)
            memmove(q->items, q->items + q->first, q->count * sizeof *q->items);
        q->first = 0;
        if (q->count == q->cap) {
            q->cap = q->cap ? q->cap * 2 : 16;
            q->items = spate_realloc(q->items, q->cap * sizeof *q->items);
        }
    }
    q->items[q->first + q->count] = (struct bus_faulty_held){.fault = BUS_NONE};
    return &q->items[q->first + q->count++];
}

static inline struct bus_faulty_held *bus_faulty_head(struct bus_faulty_queue *q)
{
    return &q->items[q->first];
}

static inline void bus_faulty_shift(struct bus_faulty_queue *q)
{
    spate_buf_fini(&bus_faulty_head(q)->bytes);
    q->first++;
    q->count--;
}

static inline void bus_faulty_clear(struct bus_faulty_queue *q)
{
    while (q->count)
        bus_faulty_shift(q);
    q->first = 0;
}

static inline void bus_faulty_damage(struct bus_faulty *bus, struct bus_faulty_held *held)
{
    struct spate_buf value = {0};

    spate_buf_add(&value, held->bytes.data + held->key_len, held->bytes.len - held->key_len);
    if (bus->corrupt)
        bus->corrupt(&value);
    else
        value.len = value.len / 2 + 1;
    held->bytes.len = held->key_len;
    spate_buf_slice(&held->bytes, spate_buf_view(&value));
    spate_buf_fini(&value);
}

/* ---- writing ---- */

static inline struct spate_record bus_faulty_record(const struct bus_faulty_held *held)
{
    return (struct spate_record){
        .key = spate_slice(held->bytes.data, held->key_len),
        .value = spate_slice(held->bytes.data + held->key_len, held->bytes.len - held->key_len),
        .ts_us = held->ts_us,
        .token = held->token,
    };
}

/* Delivers at most `most` records of what the writer took. SPATE_AGAIN: nothing was left. */
static inline enum spate_rc bus_faulty_deliver(struct spate_writer *writer, size_t most,
                                               struct spate_err *err)
{
    struct bus_faulty_writer *w = (struct bus_faulty_writer *)writer;
    struct bus_faulty_queue *q = &w->queue;
    enum spate_rc rc = q->count ? SPATE_OK : SPATE_AGAIN;

    for (; rc == SPATE_OK && most > 0 && q->count > 0; most--) {
        struct bus_faulty_held *held = bus_faulty_head(q);
        struct spate_record record;
        size_t taken = 0;

        if (held->fault == BUS_DELAY && held->turns > 0) {
            held->turns--;
            break;
        }
        if (held->fault == BUS_REORDER && q->count > 1) {
            const struct bus_faulty_held first = held[0];

            held[0] = held[1];
            held[1] = first;
            held[1].fault = BUS_NONE;
        }
        if (held->fault == BUS_LOSE) {
            w->broken = w->broken || !w->bus->lies;
            bus_faulty_shift(q);
            continue;
        }
        if (held->fault == BUS_CORRUPT)
            bus_faulty_damage(w->bus, held);
        held->fault = held->fault == BUS_DUPLICATE ? BUS_DUPLICATE : BUS_NONE;
        if (w->broken)
            held->token = 0;
        record = bus_faulty_record(held);
        rc = spate_writer_publish(w->under, &record, 1, &taken, err);
        if (rc == SPATE_OK && held->fault == BUS_DUPLICATE) {
            held->fault = BUS_NONE; /* it stays at the head, and goes out once more */
            held->token = 0;
        } else if (rc == SPATE_OK) {
            bus_faulty_shift(q);
        }
    }
    return rc;
}

static inline enum spate_rc bus_faulty_publish(struct spate_writer *writer,
                                               const struct spate_record *records, size_t count,
                                               size_t *taken, struct spate_err *err)
{
    struct bus_faulty_writer *w = (struct bus_faulty_writer *)writer;
    struct bus_faulty *bus = w->bus;

    if (!w->hurt)
        return spate_writer_publish(w->under, records, count, taken, err);
    for (*taken = 0; *taken < count; (*taken)++) {
        const struct spate_record *record = &records[*taken];
        struct bus_faulty_held *held;
        enum bus_fault fault;

        /* What no bus takes, this one refuses in the same words. */
        if (record->value.len == 0 || record->key.len > SPATE_BUS_KEY_MOST ||
            record->key.len + record->value.len > spate_writer_max_record(w->under)) {
            size_t none = 0;

            return spate_writer_publish(w->under, record, 1, &none, err);
        }
        if (bus->queue_most && w->queue.count >= bus->queue_most)
            return SPATE_AGAIN;
        fault = bus_faulty_pick(&bus->write, &w->random);
        if (fault == BUS_REFUSE_AGAIN)
            return SPATE_AGAIN;
        if (fault == BUS_REFUSE_RETRY || fault == BUS_REFUSE_FATAL)
            return spate_fail(err, fault == BUS_REFUSE_RETRY ? SPATE_RETRY : SPATE_FATAL,
                              "the bus refused a record, as it was told to");
        held = bus_faulty_push(&w->queue);
        spate_buf_slice(&held->bytes, record->key);
        spate_buf_slice(&held->bytes, record->value);
        held->key_len = record->key.len;
        held->ts_us = record->ts_us;
        held->token = record->token;
        held->fault = fault;
        held->turns = fault == BUS_DELAY ? 1 + (unsigned)(bus_faulty_chance(&w->random) * 4) : 0;
    }
    /* A bus that is not slow shows at once what it took. */
    if (!bus->manual && bus_faulty_deliver(writer, SIZE_MAX, err) == SPATE_FAIL)
        return SPATE_FAIL;
    return SPATE_OK;
}

static inline void bus_faulty_durable(void *arg, uint64_t token)
{
    struct bus_faulty_writer *w = arg;

    if (w->bus->acknowledgement_lost > 0 && bus_faulty_chance(&w->random) < w->bus->acknowledgement_lost)
        return;
    w->durable(w->durable_arg, token);
}

static inline enum spate_rc bus_faulty_poll(struct spate_writer *writer, int timeout_ms,
                                            spate_durable_fn *durable, void *arg, struct spate_err *err)
{
    struct bus_faulty_writer *w = (struct bus_faulty_writer *)writer;
    enum spate_rc rc;

    w->durable = durable;
    w->durable_arg = arg;
    if (!w->bus->manual && bus_faulty_deliver(writer, SIZE_MAX, err) == SPATE_FAIL)
        return SPATE_FAIL;
    rc = spate_writer_poll(w->under, timeout_ms, bus_faulty_durable, w, err);
    if (rc != SPATE_FAIL && w->broken)
        return spate_fail(err, SPATE_RETRY, "a record was not delivered: the bus lost it, as it was told to");
    return rc;
}

static inline int bus_faulty_fd(struct spate_writer *writer)
{
    return spate_writer_fd(((struct bus_faulty_writer *)writer)->under);
}

static inline struct spate_bus_pos bus_faulty_writer_end(struct spate_writer *writer)
{
    const struct bus_faulty_writer *w = (struct bus_faulty_writer *)writer;

    return (struct spate_bus_pos){spate_writer_end(w->under).at + w->queue.count};
}

static inline struct spate_bus_pos bus_faulty_writer_durable(struct spate_writer *writer)
{
    return spate_writer_durable(((struct bus_faulty_writer *)writer)->under);
}

static inline size_t bus_faulty_max_record(struct spate_writer *writer)
{
    return spate_writer_max_record(((struct bus_faulty_writer *)writer)->under);
}

static inline int64_t bus_faulty_retention_ms(struct spate_writer *writer)
{
    return spate_writer_retention_ms(((struct bus_faulty_writer *)writer)->under);
}

/* What is in the queue still is not published: close is no flush. */
static inline void bus_faulty_writer_close(struct spate_writer *writer)
{
    struct bus_faulty_writer *w = (struct bus_faulty_writer *)writer;

    spate_writer_close(w->under);
    bus_faulty_clear(&w->queue);
    free(w->queue.items);
    free(w);
}

static inline enum spate_rc bus_faulty_writer_open(struct spate_bus *base, const char *topic, unsigned flags,
                                                   struct spate_writer **writer, struct spate_err *err)
{
    static const struct spate_writer_ops ops = {
        .publish = bus_faulty_publish,
        .poll = bus_faulty_poll,
        .fd = bus_faulty_fd,
        .end = bus_faulty_writer_end,
        .durable = bus_faulty_writer_durable,
        .max_record = bus_faulty_max_record,
        .retention_ms = bus_faulty_retention_ms,
        .close = bus_faulty_writer_close,
    };
    struct bus_faulty *bus = (struct bus_faulty *)base;
    struct bus_faulty_writer *w;
    struct spate_writer *under;
    enum spate_rc rc = spate_bus_writer_open(bus->under, topic, flags, &under, err);

    if (rc != SPATE_OK)
        return rc;
    w = spate_zalloc(sizeof *w);
    w->writer.ops = &ops;
    w->bus = bus;
    w->under = under;
    w->random = bus_faulty_random(&bus->random);
    w->hurt = !bus->topic || strcmp(topic, bus->topic) == 0;
    *writer = &w->writer;
    return SPATE_OK;
}

/* ---- reading ---- */

static inline void bus_faulty_keep(struct bus_faulty_queue *q, const struct spate_message *m,
                                   enum bus_fault fault, unsigned turns)
{
    struct bus_faulty_held *held = bus_faulty_push(q);

    spate_buf_slice(&held->bytes, m->key);
    spate_buf_slice(&held->bytes, m->value);
    held->key_len = m->key.len;
    held->message = *m;
    held->fault = fault;
    held->turns = turns;
}

/* The head of the queue is the caller's now, until his next call. */
static inline enum spate_rc bus_faulty_give(struct bus_faulty_reader *r, struct spate_message *message)
{
    struct bus_faulty_held *head = bus_faulty_head(&r->queue);

    if (head->turns > 0) {
        head->turns--;
        return SPATE_AGAIN;
    }
    if (head->fault == BUS_CORRUPT)
        bus_faulty_damage(r->bus, head);
    spate_buf_fini(&r->given.bytes);
    r->given = *head;
    head->bytes = (struct spate_buf){0};
    bus_faulty_shift(&r->queue);
    *message = r->given.message;
    message->key = spate_slice(r->given.bytes.data, r->given.key_len);
    message->value =
        spate_slice(r->given.bytes.data + r->given.key_len, r->given.bytes.len - r->given.key_len);
    return SPATE_OK;
}

static inline enum spate_rc bus_faulty_next(struct spate_reader *reader, struct spate_message *message,
                                            struct spate_err *err)
{
    struct bus_faulty_reader *r = (struct bus_faulty_reader *)reader;
    struct spate_message second;
    enum spate_rc rc;

    if (!r->hurt)
        return spate_reader_next(r->under, message, err);
    for (;;) {
        enum bus_fault fault;

        if (r->queue.count)
            return bus_faulty_give(r, message);
        rc = spate_reader_next(r->under, message, err);
        if (rc != SPATE_OK || message->kind == SPATE_MESSAGE_GAP)
            return rc;
        fault = bus_faulty_pick(&r->bus->read, &r->random);
        switch (fault) {
        case BUS_LOSE:
            continue;
        case BUS_DELAY:
        case BUS_REFUSE_AGAIN:
            bus_faulty_keep(&r->queue, message, BUS_NONE,
                            fault == BUS_DELAY ? 1 + (unsigned)(bus_faulty_chance(&r->random) * 4) : 1);
            continue;
        case BUS_REORDER: /* nothing may stand behind it yet: then it is met in its own place */
            bus_faulty_keep(&r->queue, message, BUS_NONE, 0);
            rc = spate_reader_next(r->under, &second, err);
            if (rc == SPATE_FAIL)
                return rc;
            if (rc == SPATE_OK) {
                struct bus_faulty_held first;

                bus_faulty_keep(&r->queue, &second, BUS_NONE, 0);
                first = r->queue.items[r->queue.first];
                r->queue.items[r->queue.first] = r->queue.items[r->queue.first + 1];
                r->queue.items[r->queue.first + 1] = first;
            } else {
                r->bus->read.injected[BUS_REORDER]--;
            }
            continue;
        case BUS_DUPLICATE:
            bus_faulty_keep(&r->queue, message, BUS_NONE, 0);
            bus_faulty_keep(&r->queue, message, BUS_NONE, 0);
            continue;
        case BUS_CORRUPT:
            bus_faulty_keep(&r->queue, message, BUS_CORRUPT, 0);
            continue;
        case BUS_REFUSE_RETRY:
        case BUS_REFUSE_FATAL:
            bus_faulty_keep(&r->queue, message, BUS_NONE, 0);
            return spate_fail(err, fault == BUS_REFUSE_RETRY ? SPATE_RETRY : SPATE_FATAL,
                              "the bus does not answer, as it was told to");
        default:
            return SPATE_OK;
        }
    }
}

static inline enum spate_rc bus_faulty_wait(struct spate_reader *reader, int timeout_ms,
                                            struct spate_err *err)
{
    struct bus_faulty_reader *r = (struct bus_faulty_reader *)reader;

    return r->queue.count ? SPATE_OK : spate_reader_wait(r->under, timeout_ms, err);
}

static inline enum spate_rc bus_faulty_seek(struct spate_reader *reader, struct spate_start start,
                                            struct spate_err *err)
{
    struct bus_faulty_reader *r = (struct bus_faulty_reader *)reader;

    bus_faulty_clear(&r->queue);
    return spate_reader_seek(r->under, start, err);
}

static inline enum spate_rc bus_faulty_back(struct spate_reader *reader, struct spate_bus_pos before,
                                            struct spate_bus_pos *start, struct spate_err *err)
{
    struct bus_faulty_reader *r = (struct bus_faulty_reader *)reader;

    bus_faulty_clear(&r->queue);
    return spate_reader_back(r->under, before, start, err);
}

static inline struct spate_bus_pos bus_faulty_reader_end(struct spate_reader *reader)
{
    return spate_reader_end(((struct bus_faulty_reader *)reader)->under);
}

static inline const char *bus_faulty_log_id(struct spate_reader *reader)
{
    return spate_reader_log_id(((struct bus_faulty_reader *)reader)->under);
}

static inline enum spate_rc bus_faulty_enlist(struct spate_reader *reader, const char *name, bool hold,
                                              struct spate_err *err)
{
    return spate_reader_enlist(((struct bus_faulty_reader *)reader)->under, name, hold, err);
}

static inline void bus_faulty_passed(struct spate_reader *reader, struct spate_bus_pos pos)
{
    spate_reader_passed(((struct bus_faulty_reader *)reader)->under, pos);
}

static inline void bus_faulty_reader_close(struct spate_reader *reader)
{
    struct bus_faulty_reader *r = (struct bus_faulty_reader *)reader;

    spate_reader_close(r->under);
    bus_faulty_clear(&r->queue);
    free(r->queue.items);
    spate_buf_fini(&r->given.bytes);
    free(r);
}

static inline enum spate_rc bus_faulty_reader_open(struct spate_bus *base, const char *topic,
                                                   enum spate_visibility see, struct spate_start start,
                                                   struct spate_reader **reader, struct spate_err *err)
{
    static const struct spate_reader_ops ops = {
        .next = bus_faulty_next,
        .wait = bus_faulty_wait,
        .seek = bus_faulty_seek,
        .back = bus_faulty_back,
        .end = bus_faulty_reader_end,
        .log_id = bus_faulty_log_id,
        .enlist = bus_faulty_enlist,
        .passed = bus_faulty_passed,
        .close = bus_faulty_reader_close,
    };
    struct bus_faulty *bus = (struct bus_faulty *)base;
    struct bus_faulty_reader *r;
    struct spate_reader *under;
    enum spate_rc rc = spate_bus_reader_open(bus->under, topic, see, start, &under, err);

    if (rc != SPATE_OK)
        return rc;
    r = spate_zalloc(sizeof *r);
    r->reader.ops = &ops;
    r->bus = bus;
    r->under = under;
    r->random = bus_faulty_random(&bus->random);
    r->hurt = !bus->topic || strcmp(topic, bus->topic) == 0;
    *reader = &r->reader;
    return SPATE_OK;
}

/* ---- the bus ---- */

static inline enum spate_rc bus_faulty_topics(struct spate_bus *base,
                                              void (*each)(void *arg, const char *topic), void *arg,
                                              struct spate_err *err)
{
    return spate_bus_topics(((struct bus_faulty *)base)->under, each, arg, err);
}

static inline void bus_faulty_close(struct spate_bus *base)
{
    struct bus_faulty *bus = (struct bus_faulty *)base;

    if (!bus->owned)
        return;
    spate_bus_close(bus->under);
    free(bus);
}

/* No fault is set: whoever wants one sets it afterwards, at any time. */
static inline void bus_faulty_init(struct bus_faulty *bus, struct spate_bus *under, uint64_t seed)
{
    *bus = (struct bus_faulty){.under = under, .random = seed};
    bus->ops = (struct spate_bus_ops){
        .name = under->ops->name, /* positions are written as the wrapped driver's */
        .writer_open = bus_faulty_writer_open,
        .reader_open = bus_faulty_reader_open,
        .topics = bus_faulty_topics,
        .close = bus_faulty_close,
    };
    bus->bus.ops = &bus->ops;
}

#endif
