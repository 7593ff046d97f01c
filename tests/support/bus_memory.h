/* tests/support/bus_memory.h - a bus in the memory of one process: thousands of histories a second, and a log
 * that a test may cut at either end.
 *
 * Nobody owns a topic, as on Kafka: any number of writers append, zombies included. What is published is
 * durable at once. Positions are record numbers from 0.
 *
 * Owns its records until bus_memory_fini. Thread-safe. */
#ifndef SPATE_TESTS_SUPPORT_BUS_MEMORY_H
#define SPATE_TESTS_SUPPORT_BUS_MEMORY_H

#include "bus/bus.h"
#include "core/alloc.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUS_MEMORY_TOPICS 8
#define BUS_MEMORY_MOST   (1 << 18) /* bytes of a record */

struct bus_memory_record {
    char *bytes; /* the key, then the value; NULL once retention took it */
    size_t key_len, value_len;
    int64_t ts_us;
};

struct bus_memory_topic {
    char name[256];
    bool is_volatile;
    struct bus_memory_record *records;
    size_t cap;
    size_t oldest, end; /* records oldest..end-1 are there */
};

struct bus_memory {
    struct spate_bus bus; /* first */
    struct bus_memory_topic topics[BUS_MEMORY_TOPICS];
    size_t topic_count;
    size_t piece; /* records that spate_reader_back goes back by */
    pthread_mutex_t lock;
    pthread_cond_t grown;
};

struct bus_memory_writer {
    struct spate_writer writer; /* first */
    struct bus_memory *memory;
    struct bus_memory_topic *topic;
    uint64_t *tokens; /* not yet handed back */
    size_t count, cap;
};

struct bus_memory_reader {
    struct spate_reader reader; /* first */
    struct bus_memory *memory;
    struct bus_memory_topic *topic;
    size_t at;
};

static inline struct bus_memory_topic *bus_memory_topic(struct bus_memory *memory, const char *name)
{
    for (size_t i = 0; i < memory->topic_count; i++)
        if (strcmp(memory->topics[i].name, name) == 0)
            return &memory->topics[i];
    return NULL;
}

/* ---- writing ---- */

static inline void bus_memory_append(struct bus_memory_topic *topic, const struct spate_record *record)
{
    struct bus_memory_record *r;

    if (topic->end == topic->cap) {
        topic->cap = topic->cap ? topic->cap * 2 : 64;
        topic->records = spate_realloc(topic->records, topic->cap * sizeof *topic->records);
    }
    r = &topic->records[topic->end++];
    r->key_len = record->key.len;
    r->value_len = record->value.len;
    r->ts_us = record->ts_us;
    r->bytes = spate_zalloc(r->key_len + r->value_len);
    if (r->key_len)
        memcpy(r->bytes, record->key.at, r->key_len);
    memcpy(r->bytes + r->key_len, record->value.at, r->value_len);
}

static inline enum spate_rc bus_memory_refuse(const struct spate_record *record, struct spate_err *err)
{
    const size_t size = record->key.len + record->value.len;

    if (record->value.len == 0)
        return spate_fail(err, SPATE_QUARANTINE, "a record without a value");
    if (size > BUS_MEMORY_MOST || record->key.len > SPATE_BUS_KEY_MOST)
        return spate_fail(err, SPATE_QUARANTINE, "a record of %zu bytes, and this bus takes %d", size,
                          BUS_MEMORY_MOST);
    return SPATE_OK;
}

static inline enum spate_rc bus_memory_publish(struct spate_writer *writer,
                                               const struct spate_record *records, size_t count,
                                               size_t *taken, struct spate_err *err)
{
    struct bus_memory_writer *w = (struct bus_memory_writer *)writer;
    enum spate_rc rc = SPATE_OK;

    pthread_mutex_lock(&w->memory->lock);
    for (*taken = 0; *taken < count && rc == SPATE_OK; *taken += rc == SPATE_OK) {
        rc = bus_memory_refuse(&records[*taken], err);
        if (rc != SPATE_OK)
            continue;
        bus_memory_append(w->topic, &records[*taken]);
        if (!records[*taken].token || w->topic->is_volatile)
            continue;
        if (w->count == w->cap) {
            w->cap = w->cap ? w->cap * 2 : 64;
            w->tokens = spate_realloc(w->tokens, w->cap * sizeof *w->tokens);
        }
        w->tokens[w->count++] = records[*taken].token;
    }
    pthread_cond_broadcast(&w->memory->grown);
    pthread_mutex_unlock(&w->memory->lock);
    return rc;
}

static inline enum spate_rc bus_memory_poll(struct spate_writer *writer, int timeout_ms,
                                            spate_durable_fn *durable, void *arg, struct spate_err *err)
{
    struct bus_memory_writer *w = (struct bus_memory_writer *)writer;
    const size_t count = w->count;

    (void)timeout_ms, (void)err;
    for (size_t i = 0; i < count; i++)
        durable(arg, w->tokens[i]);
    w->count = 0;
    return count ? SPATE_OK : SPATE_AGAIN;
}

static inline int bus_memory_fd(struct spate_writer *writer)
{
    (void)writer;
    return -1;
}

static inline struct spate_bus_pos bus_memory_writer_end(struct spate_writer *writer)
{
    return (struct spate_bus_pos){((struct bus_memory_writer *)writer)->topic->end};
}

static inline size_t bus_memory_max_record(struct spate_writer *writer)
{
    (void)writer;
    return BUS_MEMORY_MOST;
}

static inline int64_t bus_memory_retention_ms(struct spate_writer *writer)
{
    (void)writer;
    return INT64_MAX;
}

static inline void bus_memory_writer_close(struct spate_writer *writer)
{
    free(((struct bus_memory_writer *)writer)->tokens);
    free(writer);
}

static inline enum spate_rc bus_memory_writer_open(struct spate_bus *bus, const char *name, unsigned flags,
                                                   struct spate_writer **writer, struct spate_err *err)
{
    static const struct spate_writer_ops ops = {
        .publish = bus_memory_publish,
        .poll = bus_memory_poll,
        .fd = bus_memory_fd,
        .end = bus_memory_writer_end,
        .durable = bus_memory_writer_end,
        .max_record = bus_memory_max_record,
        .retention_ms = bus_memory_retention_ms,
        .close = bus_memory_writer_close,
    };
    struct bus_memory *memory = (struct bus_memory *)bus;
    struct bus_memory_topic *topic = bus_memory_topic(memory, name);
    struct bus_memory_writer *w;

    if (!topic) {
        if (!(flags & SPATE_TOPIC_CREATE) || memory->topic_count == BUS_MEMORY_TOPICS)
            return spate_fail(err, SPATE_RETRY, "there is no topic %s", name);
        topic = &memory->topics[memory->topic_count++];
        snprintf(topic->name, sizeof topic->name, "%s", name);
        topic->is_volatile = flags & SPATE_TOPIC_VOLATILE;
    }
    w = spate_zalloc(sizeof *w);
    *w = (struct bus_memory_writer){.writer = {&ops}, .memory = memory, .topic = topic};
    *writer = &w->writer;
    return SPATE_OK;
}

/* ---- reading ---- */

static inline enum spate_rc bus_memory_next(struct spate_reader *reader, struct spate_message *message,
                                            struct spate_err *err)
{
    struct bus_memory_reader *r = (struct bus_memory_reader *)reader;
    const struct bus_memory_topic *topic = r->topic;
    enum spate_rc rc = SPATE_OK;

    (void)err;
    pthread_mutex_lock(&r->memory->lock);
    if (r->at < topic->oldest) {
        *message = (struct spate_message){.kind = SPATE_MESSAGE_GAP, .pos = {r->at}, .next = {topic->oldest}};
        r->at = topic->oldest;
    } else if (r->at >= topic->end) {
        rc = SPATE_AGAIN;
    } else {
        const struct bus_memory_record *record = &topic->records[r->at];

        *message = (struct spate_message){
            .kind = SPATE_MESSAGE_RECORD,
            .pos = {r->at},
            .next = {r->at + 1},
            .ts_us = record->ts_us,
            .key = spate_slice(record->bytes, record->key_len),
            .value = spate_slice(record->bytes + record->key_len, record->value_len),
        };
        r->at++;
    }
    pthread_mutex_unlock(&r->memory->lock);
    return rc;
}

static inline enum spate_rc bus_memory_wait(struct spate_reader *reader, int timeout_ms,
                                            struct spate_err *err)
{
    struct bus_memory_reader *r = (struct bus_memory_reader *)reader;
    struct timespec until;
    int timed_out = 0;
    bool something;

    (void)err;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    until.tv_sec += timeout_ms / 1000 + until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&r->memory->lock);
    while (!(something = r->at < r->topic->end) && timed_out != ETIMEDOUT)
        timed_out = pthread_cond_timedwait(&r->memory->grown, &r->memory->lock, &until);
    pthread_mutex_unlock(&r->memory->lock);
    return something ? SPATE_OK : SPATE_AGAIN;
}

static inline enum spate_rc bus_memory_seek(struct spate_reader *reader, struct spate_start start,
                                            struct spate_err *err)
{
    struct bus_memory_reader *r = (struct bus_memory_reader *)reader;

    (void)err;
    pthread_mutex_lock(&r->memory->lock);
    r->at = start.from == SPATE_START_AT    ? start.pos.at
            : start.from == SPATE_START_NOW ? r->topic->end
                                            : r->topic->oldest;
    pthread_mutex_unlock(&r->memory->lock);
    return SPATE_OK;
}

static inline enum spate_rc bus_memory_back(struct spate_reader *reader, struct spate_bus_pos before,
                                            struct spate_bus_pos *start, struct spate_err *err)
{
    struct bus_memory_reader *r = (struct bus_memory_reader *)reader;
    const size_t oldest = r->topic->oldest;

    (void)err;
    if (before.at <= oldest)
        return SPATE_END;
    r->at = before.at - oldest > r->memory->piece ? before.at - r->memory->piece : oldest;
    start->at = r->at;
    return SPATE_OK;
}

static inline struct spate_bus_pos bus_memory_reader_end(struct spate_reader *reader)
{
    return (struct spate_bus_pos){((struct bus_memory_reader *)reader)->topic->end};
}

static inline const char *bus_memory_log_id(struct spate_reader *reader)
{
    return ((struct bus_memory_reader *)reader)->topic->name;
}

/* It keeps nothing for anybody, and says so. */
static inline enum spate_rc bus_memory_enlist(struct spate_reader *reader, const char *name, bool hold,
                                              struct spate_err *err)
{
    (void)reader;
    return hold ? spate_fail(err, SPATE_FATAL, "%s cannot hold here", name) : SPATE_OK;
}

static inline void bus_memory_passed(struct spate_reader *reader, struct spate_bus_pos pos)
{
    (void)reader, (void)pos;
}

static inline void bus_memory_reader_close(struct spate_reader *reader)
{
    free(reader);
}

static inline enum spate_rc bus_memory_reader_open(struct spate_bus *bus, const char *name,
                                                   enum spate_visibility see, struct spate_start start,
                                                   struct spate_reader **reader, struct spate_err *err)
{
    static const struct spate_reader_ops ops = {
        .next = bus_memory_next,
        .wait = bus_memory_wait,
        .seek = bus_memory_seek,
        .back = bus_memory_back,
        .end = bus_memory_reader_end,
        .log_id = bus_memory_log_id,
        .enlist = bus_memory_enlist,
        .passed = bus_memory_passed,
        .close = bus_memory_reader_close,
    };
    struct bus_memory *memory = (struct bus_memory *)bus;
    struct bus_memory_topic *topic = bus_memory_topic(memory, name);
    struct bus_memory_reader *r;

    err->missing = !topic;
    if (!topic)
        return spate_fail(err, SPATE_RETRY, "there is no topic %s", name);
    if (topic->is_volatile && see == SPATE_SEE_DURABLE)
        return spate_fail(err, SPATE_FATAL, "topic %s is volatile: nothing in it is durable", name);
    r = spate_zalloc(sizeof *r);
    *r = (struct bus_memory_reader){.reader = {&ops}, .memory = memory, .topic = topic};
    *reader = &r->reader;
    return bus_memory_seek(*reader, start, err);
}

/* ---- the bus ---- */

static inline enum spate_rc bus_memory_topics(struct spate_bus *bus,
                                              void (*each)(void *arg, const char *topic), void *arg,
                                              struct spate_err *err)
{
    struct bus_memory *memory = (struct bus_memory *)bus;

    (void)err;
    for (size_t i = 0; i < memory->topic_count; i++)
        each(arg, memory->topics[i].name);
    return SPATE_OK;
}

static inline void bus_memory_close(struct spate_bus *bus)
{
    (void)bus; /* a bus is opened many times; the records go with bus_memory_fini */
}

static inline void bus_memory_init(struct bus_memory *memory)
{
    /* The positions are numbers, written as Kafka's. */
    static const struct spate_bus_ops ops = {
        .name = "kafka",
        .writer_open = bus_memory_writer_open,
        .reader_open = bus_memory_reader_open,
        .topics = bus_memory_topics,
        .close = bus_memory_close,
    };

    *memory = (struct bus_memory){.bus = {&ops}, .piece = 1000};
    pthread_mutex_init(&memory->lock, NULL);
    pthread_cond_init(&memory->grown, NULL);
}

/* Retention: the oldest `count` records of a topic go. */
static inline void bus_memory_expire(struct bus_memory *memory, const char *name, size_t count)
{
    struct bus_memory_topic *topic = bus_memory_topic(memory, name);

    for (; count > 0 && topic->oldest < topic->end; count--, topic->oldest++) {
        free(topic->records[topic->oldest].bytes);
        topic->records[topic->oldest].bytes = NULL;
    }
}

/* The log loses its last `count` records, as after an unclean election (K14, K25). */
static inline void bus_memory_cut(struct bus_memory *memory, const char *name, size_t count)
{
    struct bus_memory_topic *topic = bus_memory_topic(memory, name);

    for (; count > 0 && topic->oldest < topic->end; count--)
        free(topic->records[--topic->end].bytes);
}

static inline void bus_memory_fini(struct bus_memory *memory)
{
    for (size_t i = 0; i < memory->topic_count; i++) {
        bus_memory_cut(memory, memory->topics[i].name, SIZE_MAX);
        free(memory->topics[i].records);
    }
    pthread_mutex_destroy(&memory->lock);
    pthread_cond_destroy(&memory->grown);
}

#endif
