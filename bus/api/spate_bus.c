/* bus/api/spate_bus.c - the library for other programs: bus/api/spate_bus.h over bus/bus.h.
 *
 * It adds nothing to the way of a message but a look at two words: a record and a message have one layout on
 * both sides, and the error of the inside, a kilobyte, is the handle's. */
#include "bus/api/spate_bus.h"

#include "bus/bus.h"
#include "bus/local/local.h"
#include "bus/local/sigbus.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/version.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAME(ours, theirs, a, b)                                                                             \
    _Static_assert(offsetof(struct ours, a) == offsetof(struct theirs, b), #a " is where " #b " is")
SAME(spatebus_record, spate_record, key, key.at);
SAME(spatebus_record, spate_record, key_len, key.len);
SAME(spatebus_record, spate_record, value, value.at);
SAME(spatebus_record, spate_record, value_len, value.len);
SAME(spatebus_record, spate_record, ts_us, ts_us);
SAME(spatebus_record, spate_record, token, token);
_Static_assert(sizeof(struct spatebus_record) == sizeof(struct spate_record), "an array of them, too");
SAME(spatebus_message, spate_message, kind, kind);
SAME(spatebus_message, spate_message, pos, pos);
SAME(spatebus_message, spate_message, next, next);
SAME(spatebus_message, spate_message, ts_us, ts_us);
SAME(spatebus_message, spate_message, key, key.at);
SAME(spatebus_message, spate_message, key_len, key.len);
SAME(spatebus_message, spate_message, value, value.at);
SAME(spatebus_message, spate_message, value_len, value.len);
_Static_assert(sizeof(struct spatebus_message) == sizeof(struct spate_message), "one layout");
_Static_assert((int)SPATEBUS_RECORD == 0 && (int)SPATEBUS_GAP == 1, "as in struct spate_message");
_Static_assert((int)SPATEBUS_CREATE == (int)SPATE_TOPIC_CREATE &&
                   (int)SPATEBUS_KEEP == (int)SPATE_TOPIC_KEEP &&
                   (int)SPATEBUS_VOLATILE == (int)SPATE_TOPIC_VOLATILE &&
                   (int)SPATEBUS_SHARED == (int)SPATE_TOPIC_SHARED &&
                   (int)SPATEBUS_UNCHECKED == (int)SPATE_TOPIC_UNCHECKED &&
                   (int)SPATEBUS_RULE == (int)SPATE_TOPIC_RULE,
               "the flags of a topic");

#define FLAGS_ALL                                                                                            \
    (SPATEBUS_CREATE | SPATEBUS_KEEP | SPATEBUS_VOLATILE | SPATEBUS_SHARED | SPATEBUS_UNCHECKED |            \
     SPATEBUS_RULE)

#define DAY_MS INT64_C(86400000)

/* How often this process is a child of a fork since the library was used first (L14). */
static atomic_uint forks;

struct spatebus {
    struct spate_bus *in;
    unsigned forks;
};

struct spatebus_writer {
    struct spate_writer *in;
    unsigned forks;
    bool is_volatile;
    struct spate_err err;
};

struct spatebus_reader {
    struct spate_reader *in;
    unsigned forks;
    struct spate_err err;
};

static void count_fork(void)
{
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
}

static void begin(void)
{
    pthread_atfork(NULL, NULL, count_fork);
    if (spate_log_on(SPATE_LOG_INFO) && !spate_log_on(SPATE_LOG_DEBUG))
        spate_log_level_set(SPATE_LOG_WARN); /* the rest is for who operates a connector */
}

static inline bool forked(unsigned when)
{
    return __builtin_expect(when != atomic_load_explicit(&forks, memory_order_relaxed), 0);
}

static int refuse(struct spatebus_error *error, int code, const char *text)
{
    if (error) {
        error->code = code;
        snprintf(error->text, sizeof error->text, "%s", text);
    }
    return SPATEBUS_FAIL;
}

static int refuse_forked(struct spatebus_error *error)
{
    return refuse(error, SPATEBUS_E_FORKED,
                  "this handle was opened by the parent of this process, before fork(): open one here");
}

static int fail(struct spatebus_error *error, const struct spate_err *err)
{
    static const int codes[] = {[SPATE_RETRY] = SPATEBUS_E_RETRY,
                                [SPATE_QUARANTINE] = SPATEBUS_E_RECORD,
                                [SPATE_FATAL] = SPATEBUS_E_FATAL};

    return refuse(error,
                  err->missing && err->verdict == SPATE_RETRY ? SPATEBUS_E_MISSING : codes[err->verdict],
                  err->text);
}

static int result(enum spate_rc rc, struct spatebus_error *error, struct spate_err *err)
{
    if (__builtin_expect(rc == SPATE_OK, 1))
        return SPATEBUS_OK;
    if (rc != SPATE_FAIL)
        return SPATEBUS_AGAIN;
    const int failed = fail(error, err);
    *err = (struct spate_err){0}; /* what it says of one failure is not to be said of the next */
    return failed;
}

const char *spatebus_version(void)
{
    return spate_version;
}

void spatebus_log_to(spatebus_log_fn *fn, void *arg)
{
    spate_log_to(fn, arg);
}

/* A program may change its directory while the bus is open. */
static char *absolute(const char *path)
{
    char here[PATH_MAX];

    if (!path || path[0] == '/' || path[0] == '\0' || !getcwd(here, sizeof here))
        return path ? spate_strdup(path) : NULL;
    const size_t size = strlen(here) + strlen(path) + 2;
    char *whole = spate_alloc(size);
    snprintf(whole, size, "%s/%s", here, path);
    return whole;
}

struct spatebus *spatebus_open(const char *path, const struct spatebus_options *options,
                               struct spatebus_error *error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct spatebus_options all = {.size = sizeof all};
    struct spate_err err = {0};
    struct spate_bus *in;

    pthread_once(&once, begin);
    if (options && (options->size < sizeof options->size || options->size > sizeof all)) {
        refuse(
            error, SPATEBUS_E_CALL,
            "struct spatebus_options: size is not sizeof(struct spatebus_options), or the program was built "
            "with a newer <spate/bus.h> than this library's");
        return NULL;
    }
    if (options)
        memcpy(&all, options, options->size);
    char *at_path = absolute(path), *at_hot = absolute(all.hot);
    const enum spate_rc rc = spate_local_bus_open(at_path, at_hot, all.segment_bytes, &in, &err);
    free(at_path);
    free(at_hot);
    if (rc != SPATE_OK) {
        fail(error, &err);
        return NULL;
    }
    struct spate_local_place *at = &((struct spate_local_bus *)in)->place;
    at->retention_ms = all.retention_ms == 0 ? 7 * DAY_MS : all.retention_ms < 0 ? 0 : all.retention_ms;
    at->retention_bytes = all.retention_bytes;
    at->hold_expire_ms = DAY_MS;
    if (all.no_guard)
        spate_local_guard_bare();
    struct spatebus *bus = spate_zalloc(sizeof *bus);
    bus->in = in;
    bus->forks = atomic_load(&forks);
    return bus;
}

void spatebus_close(struct spatebus *bus)
{
    if (bus && !forked(bus->forks))
        spate_bus_close(bus->in);
    free(bus);
}

int spatebus_topics(struct spatebus *bus, spatebus_topic_fn *each, void *arg, struct spatebus_error *error)
{
    struct spate_err err = {0};

    if (forked(bus->forks))
        return refuse_forked(error);
    return result(spate_bus_topics(bus->in, each, arg, &err), error, &err);
}

struct spatebus_writer *spatebus_writer_open(struct spatebus *bus, const char *topic, unsigned flags,
                                             struct spatebus_error *error)
{
    struct spate_err err = {0};
    struct spate_writer *in;

    if (forked(bus->forks)) {
        refuse_forked(error);
        return NULL;
    }
    if ((flags & ~(unsigned)FLAGS_ALL) != 0) {
        refuse(error, SPATEBUS_E_CALL, "spatebus_writer_open: flags that this library does not know");
        return NULL;
    }
    if (spate_bus_writer_open(bus->in, topic, flags, &in, &err) != SPATE_OK) {
        fail(error, &err);
        return NULL;
    }
    struct spatebus_writer *writer = spate_zalloc(sizeof *writer);
    writer->in = in;
    writer->forks = bus->forks;
    writer->is_volatile = (flags & SPATEBUS_VOLATILE) != 0;
    return writer;
}

int spatebus_publish(struct spatebus_writer *writer, const struct spatebus_record *records, size_t count,
                     size_t *taken, struct spatebus_error *error)
{
    size_t ignored;

    if (forked(writer->forks))
        return refuse_forked(error);
    return result(spate_writer_publish(writer->in, (const struct spate_record *)(const void *)records, count,
                                       taken ? taken : &ignored, &writer->err),
                  error, &writer->err);
}

static void no_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

int spatebus_poll(struct spatebus_writer *writer, int timeout_ms, spatebus_durable_fn *fn, void *arg,
                  struct spatebus_error *error)
{
    if (forked(writer->forks))
        return refuse_forked(error);
    return result(spate_writer_poll(writer->in, timeout_ms, fn ? fn : no_token, arg, &writer->err), error,
                  &writer->err);
}

int spatebus_flush(struct spatebus_writer *writer, int timeout_ms, spatebus_durable_fn *fn, void *arg,
                   struct spatebus_error *error)
{
    if (forked(writer->forks))
        return refuse_forked(error);
    if (writer->is_volatile)
        return SPATEBUS_OK;

    const int64_t deadline = spate_clock_ms() + timeout_ms;
    const uint64_t end = spate_writer_end(writer->in).at; /* later ones of others are not waited for */
    for (;;) {
        const int64_t left = deadline - spate_clock_ms();
        /* Tokens wake poll, and not every record has one: so it is asked again after a moment. */
        const int ms = left > 10 ? 10 : left > 0 ? (int)left : 0;
        const bool there = spate_writer_durable(writer->in).at >= end;
        const int rc = spatebus_poll(writer, there ? 0 : ms, fn, arg, error);
        if (rc == SPATEBUS_FAIL || (there && rc == SPATEBUS_AGAIN))
            return there ? SPATEBUS_OK : rc;
        if (!there && left <= 0)
            return SPATEBUS_AGAIN;
    }
}

int spatebus_writer_fd(struct spatebus_writer *writer)
{
    return forked(writer->forks) ? -1 : spate_writer_fd(writer->in);
}

uint64_t spatebus_writer_end(struct spatebus_writer *writer)
{
    return forked(writer->forks) ? 0 : spate_writer_end(writer->in).at;
}

uint64_t spatebus_writer_durable(struct spatebus_writer *writer)
{
    return forked(writer->forks) ? 0 : spate_writer_durable(writer->in).at;
}

size_t spatebus_writer_most(struct spatebus_writer *writer)
{
    return forked(writer->forks) ? 0 : spate_writer_max_record(writer->in);
}

/* In a forked child there is no thread to stop, and what is locked is the parent's: nothing is touched. */
void spatebus_writer_close(struct spatebus_writer *writer)
{
    if (writer && !forked(writer->forks))
        spate_writer_close(writer->in);
    free(writer);
}

static struct spate_start start(uint64_t from)
{
    if (from == SPATEBUS_OLDEST)
        return (struct spate_start){.from = SPATE_START_OLDEST};
    if (from == SPATEBUS_NOW)
        return (struct spate_start){.from = SPATE_START_NOW};
    return (struct spate_start){.from = SPATE_START_AT, .pos = {.at = from}};
}

struct spatebus_reader *spatebus_reader_open(struct spatebus *bus, const char *topic, int see, uint64_t from,
                                             struct spatebus_error *error)
{
    struct spate_err err = {0};
    struct spate_reader *in;

    if (forked(bus->forks)) {
        refuse_forked(error);
        return NULL;
    }
    if (see != SPATEBUS_TIP && see != SPATEBUS_DURABLE) {
        refuse(error, SPATEBUS_E_CALL, "spatebus_reader_open: see is SPATEBUS_TIP or SPATEBUS_DURABLE");
        return NULL;
    }
    if (spate_bus_reader_open(bus->in, topic, see == SPATEBUS_TIP ? SPATE_SEE_TIP : SPATE_SEE_DURABLE,
                              start(from), &in, &err) != SPATE_OK) {
        fail(error, &err);
        return NULL;
    }
    struct spatebus_reader *reader = spate_zalloc(sizeof *reader);
    reader->in = in;
    reader->forks = bus->forks;
    return reader;
}

int spatebus_next(struct spatebus_reader *reader, struct spatebus_message *message, int timeout_ms,
                  struct spatebus_error *error)
{
    struct spate_message *inside = (struct spate_message *)(void *)message;

    if (forked(reader->forks))
        return refuse_forked(error);
    enum spate_rc rc = spate_reader_next(reader->in, inside, &reader->err);
    if (rc == SPATE_AGAIN && timeout_ms > 0 &&
        (rc = spate_reader_wait(reader->in, timeout_ms, &reader->err)) == SPATE_OK)
        rc = spate_reader_next(reader->in, inside, &reader->err); /* once: it is rarely woken for nothing */
    return result(rc, error, &reader->err);
}

int spatebus_seek(struct spatebus_reader *reader, uint64_t to, struct spatebus_error *error)
{
    if (forked(reader->forks))
        return refuse_forked(error);
    return result(spate_reader_seek(reader->in, start(to), &reader->err), error, &reader->err);
}

uint64_t spatebus_reader_end(struct spatebus_reader *reader)
{
    return forked(reader->forks) ? 0 : spate_reader_end(reader->in).at;
}

const char *spatebus_reader_log(struct spatebus_reader *reader)
{
    return forked(reader->forks) ? "" : spate_reader_log_id(reader->in);
}

int spatebus_enlist(struct spatebus_reader *reader, const char *name, int hold, struct spatebus_error *error)
{
    if (forked(reader->forks))
        return refuse_forked(error);
    return result(spate_reader_enlist(reader->in, name, hold != 0, &reader->err), error, &reader->err);
}

void spatebus_passed(struct spatebus_reader *reader, uint64_t pos)
{
    if (!forked(reader->forks))
        spate_reader_passed(reader->in, (struct spate_bus_pos){.at = pos});
}

void spatebus_reader_close(struct spatebus_reader *reader)
{
    if (reader && !forked(reader->forks))
        spate_reader_close(reader->in);
    free(reader);
}
