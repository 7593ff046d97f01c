/* bus/bus.h - topics that carry bytes: publish records, learn when each is durable, read them back.
 *
 * A bus knows no message. Its words: topic, key, value, position. Callers never learn which driver is
 * behind it (bus/open.h chooses one).
 *
 * Thread:   every handle (bus, writer, reader) belongs to the one thread that uses it; different
 *           handles may be used by different threads. A bus outlives its writers and readers.
 * Blocks:   only spate_writer_poll() and spate_reader_wait(), for at most timeout_ms; opening, seeking and
 *           closing may wait for the disk or the broker, and so may next() and back() while what is known to
 *           be in the topic is on its way over the network.
 * Contract: tests/contract/bus_contract_test.c, run against every driver. */
#ifndef SPATE_BUS_BUS_H
#define SPATE_BUS_BUS_H

#include "core/err.h"
#include "core/finding.h"
#include "core/slice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where a record stands in its topic. The number is the driver's own (a byte position, an offset); it
 * can only be compared, stored as text and handed back. Later records have greater positions; what their
 * difference counts, spate_bus_ops.unit says, for people alone. */
struct spate_bus_pos {
    uint64_t at;
};

/* "<driver>:<number>"; the number is decimal for Kafka offsets, 16 hex digits for the local bus. */
#define SPATE_BUS_POS_TEXT 32
void spate_bus_pos_format(const char *driver, struct spate_bus_pos pos, char out[SPATE_BUS_POS_TEXT]);
/* SPATE_FAIL (fatal) when the text is no position of that driver. */
SPATE_CHECKED enum spate_rc spate_bus_pos_parse(const char *driver, const char *text,
                                                struct spate_bus_pos *out, struct spate_err *err);

enum spate_topic_flags {
    SPATE_TOPIC_CREATE = 1,   /* make it when it is missing */
    SPATE_TOPIC_KEEP = 2,     /* nothing is ever removed from it (compacted by key where the bus can) */
    SPATE_TOPIC_VOLATILE = 4, /* never acknowledged: may be gone after a reboot (on Kafka it stays a while) */
    SPATE_TOPIC_SHARED = 8,   /* many writers at once, of any number of processes */
    SPATE_TOPIC_UNCHECKED = 16, /* of a new volatile topic: records carry no checksum */
    SPATE_TOPIC_RULE = 32 /* of a SHARED topic: what this process is configured to keep counts, also when the
                             topic is there (who owns a topic rules it anyway) */
};

#define SPATE_BUS_KEY_MOST 65535 /* bytes of a key that every driver takes */

struct spate_record {
    struct spate_slice key;   /* may be empty; at most SPATE_BUS_KEY_MOST */
    struct spate_slice value; /* must not be empty */
    int64_t ts_us;  /* wall clock, the source's commit time where known; a hint that a bus may drop */
    uint64_t token; /* 0: no acknowledgement wanted; else handed back by poll */
};

struct spate_message {
    enum { SPATE_MESSAGE_RECORD, SPATE_MESSAGE_GAP } kind;
    struct spate_bus_pos pos;  /* of this record; of a gap: the first position that is lost */
    struct spate_bus_pos next; /* where the following record begins; of a gap: the first kept one */
    int64_t
        ts_us; /* as published, or when the bus took it (Kafka: its own clock, in ms: retention goes by it) */
    struct spate_slice key, value; /* borrowed until the reader's next call; read-only */
};

/* What of the log a reader is shown. */
enum spate_visibility {
    SPATE_SEE_DURABLE, /* what no power cut takes back: sinks apply nothing else */
    SPATE_SEE_TIP      /* all that is published: for people who watch */
};

struct spate_start {
    enum { SPATE_START_OLDEST, SPATE_START_NOW, SPATE_START_AT } from;
    struct spate_bus_pos pos; /* for SPATE_START_AT */
};

struct spate_bus {
    const struct spate_bus_ops *ops; /* first member of every driver's struct */
};
struct spate_writer {
    const struct spate_writer_ops *ops;
};
struct spate_reader {
    const struct spate_reader_ops *ops;
};

typedef void spate_durable_fn(void *arg, uint64_t token);

struct spate_bus_ops {
    const char *name; /* "local", "kafka" */
    const char *unit; /* what positions count, for people: "bytes", "messages"; NULL: nothing */
    enum spate_rc (*writer_open)(struct spate_bus *, const char *topic, unsigned flags,
                                 struct spate_writer **, struct spate_err *);
    enum spate_rc (*reader_open)(struct spate_bus *, const char *topic, enum spate_visibility,
                                 struct spate_start, struct spate_reader **, struct spate_err *);
    /* Names of the topics there are: calls `each` once per topic. */
    enum spate_rc (*topics)(struct spate_bus *, void (*each)(void *arg, const char *topic), void *arg,
                            struct spate_err *);
    /* Looks at what carries the stream (and its topics beside it), and makes nothing. */
    void (*check)(struct spate_bus *, const char *stream, bool writes, struct spate_findings *);
    void (*close)(struct spate_bus *);
};

struct spate_writer_ops {
    enum spate_rc (*publish)(struct spate_writer *, const struct spate_record *, size_t count, size_t *taken,
                             struct spate_err *);
    enum spate_rc (*poll)(struct spate_writer *, int timeout_ms, spate_durable_fn *, void *arg,
                          struct spate_err *);
    int (*fd)(struct spate_writer *);
    struct spate_bus_pos (*end)(struct spate_writer *);
    struct spate_bus_pos (*durable)(struct spate_writer *);
    size_t (*max_record)(struct spate_writer *);
    int64_t (*retention_ms)(struct spate_writer *);
    void (*close)(struct spate_writer *);
};

struct spate_reader_ops {
    enum spate_rc (*next)(struct spate_reader *, struct spate_message *, struct spate_err *);
    enum spate_rc (*wait)(struct spate_reader *, int timeout_ms, struct spate_err *);
    enum spate_rc (*seek)(struct spate_reader *, struct spate_start, struct spate_err *);
    enum spate_rc (*back)(struct spate_reader *, struct spate_bus_pos before, struct spate_bus_pos *start,
                          struct spate_err *);
    struct spate_bus_pos (*end)(struct spate_reader *);
    const char *(*log_id)(struct spate_reader *);
    enum spate_rc (*enlist)(struct spate_reader *, const char *name, bool hold, struct spate_err *);
    void (*passed)(struct spate_reader *, struct spate_bus_pos);
    void (*close)(struct spate_reader *);
};

/* Opens a topic for publishing and owns it until closed, or until the process dies (SHARED: one of many;
 * nobody owns it meanwhile). On Kafka nobody can own a topic: there the replication slot keeps writers apart,
 * and the acceptance rule makes a zombie's records harmless (K15). Settles what a killed predecessor left,
 * and returns only when all that the topic holds is durable (docs/hazards.md, where to go on) - a volatile
 * topic excepted. SPATE_FAIL: retry = another process owns it (the text names its pid) or the disk is full
 * for now; fatal = the topic cannot be used (wrong version, no permission, wrong file system). */
SPATE_CHECKED static inline enum spate_rc spate_bus_writer_open(struct spate_bus *bus, const char *topic,
                                                                unsigned flags, struct spate_writer **writer,
                                                                struct spate_err *err)
{
    return bus->ops->writer_open(bus, topic, flags, writer, err);
}

/* SPATE_FAIL: retry = no such topic yet (err->missing), or the bus does not answer; fatal = a volatile topic
 * was asked for what is durable, where a bus can tell (Kafka: all of it is durable). A START_AT beyond the
 * end is no error: the reader waits there or, after a recovery, continues at the next base. One that is no
 * record's is told by next(). */
SPATE_CHECKED static inline enum spate_rc
spate_bus_reader_open(struct spate_bus *bus, const char *topic, enum spate_visibility see,
                      struct spate_start start, struct spate_reader **reader, struct spate_err *err)
{
    return bus->ops->reader_open(bus, topic, see, start, reader, err);
}

SPATE_CHECKED static inline enum spate_rc spate_bus_topics(struct spate_bus *bus,
                                                           void (*each)(void *arg, const char *topic),
                                                           void *arg, struct spate_err *err)
{
    return bus->ops->topics(bus, each, arg, err);
}

/* Accepts NULL. Writers and readers must be closed before. */
static inline void spate_bus_close(struct spate_bus *bus)
{
    if (bus)
        bus->ops->close(bus);
}

/* Offers `count` records in order. The bytes stay the caller's at every return.
 *   SPATE_OK     all taken (*taken == count)
 *   SPATE_AGAIN  full: the first *taken were taken; poll, then offer the rest again
 *   SPATE_FAIL   record *taken was refused, those before it were taken; err->verdict says whether the
 *                record (quarantine: too large, empty) or the bus (retry, fatal) is at fault
 * What is taken in one call becomes visible in order, in as few steps as the driver can: on the local bus
 * before the call returns, over a network by the time it is acknowledged. */
SPATE_CHECKED static inline enum spate_rc spate_writer_publish(struct spate_writer *writer,
                                                               const struct spate_record *records,
                                                               size_t count, size_t *taken,
                                                               struct spate_err *err)
{
    return writer->ops->publish(writer, records, count, taken, err);
}

/* Waits up to timeout_ms (0: not at all) and hands back each token, once and in the order of publishing,
 * whose record and all records before it in this topic are durable.
 * SPATE_FAIL: durability can no longer be promised (a failed fdatasync, a delivery error): nothing more
 * will be acknowledged; close, and recover by opening anew. SPATE_AGAIN: nothing new. */
SPATE_CHECKED static inline enum spate_rc spate_writer_poll(struct spate_writer *writer, int timeout_ms,
                                                            spate_durable_fn *durable, void *arg,
                                                            struct spate_err *err)
{
    return writer->ops->poll(writer, timeout_ms, durable, arg, err);
}

/* Readable when poll may have something; for poll(2). -1: none, ask every few milliseconds. */
static inline int spate_writer_fd(struct spate_writer *writer)
{
    return writer->ops->fd(writer);
}

/* Where the next record will stand; how far the log is durable. Equal when all that this writer published is
 * durable; of a SHARED topic they need not know of other writers' records yet. */
static inline struct spate_bus_pos spate_writer_end(struct spate_writer *writer)
{
    return writer->ops->end(writer);
}
static inline struct spate_bus_pos spate_writer_durable(struct spate_writer *writer)
{
    return writer->ops->durable(writer);
}
/* The longest key plus value in bytes that publish takes. */
static inline size_t spate_writer_max_record(struct spate_writer *writer)
{
    return writer->ops->max_record(writer);
}
/* How long a record stays at least before its age removes it, in ms; INT64_MAX: age removes nothing. */
static inline int64_t spate_writer_retention_ms(struct spate_writer *writer)
{
    return writer->ops->retention_ms(writer);
}
static inline void spate_writer_close(struct spate_writer *writer)
{
    if (writer)
        writer->ops->close(writer);
}

/* SPATE_OK: *message is filled (a record, or a gap: what retention took before it was read).
 * SPATE_AGAIN: everything up to spate_reader_end(), as it was at the last open, seek or wait, or later, has
 * been read: recovery rests on it. SPATE_FAIL: retry = the bus does not answer; fatal = the log is damaged
 * (position in the text), lost its tail, or was removed or replaced under this reader. */
SPATE_CHECKED static inline enum spate_rc
spate_reader_next(struct spate_reader *reader, struct spate_message *message, struct spate_err *err)
{
    return reader->ops->next(reader, message, err);
}

/* Sleeps until next() may have something, at most timeout_ms. SPATE_OK or SPATE_AGAIN (time is up);
 * spurious SPATE_OK is possible. */
SPATE_CHECKED static inline enum spate_rc spate_reader_wait(struct spate_reader *reader, int timeout_ms,
                                                            struct spate_err *err)
{
    return reader->ops->wait(reader, timeout_ms, err);
}
SPATE_CHECKED static inline enum spate_rc spate_reader_seek(struct spate_reader *reader,
                                                            struct spate_start start, struct spate_err *err)
{
    return reader->ops->seek(reader, start, err);
}

/* For reading a log backwards in pieces: seeks to a record some way (a driver's choice, a few megabytes at
 * most one segment) before `before`, and says where. Reading on from there meets every record up to `before`.
 * SPATE_END: `before` is the oldest record already; nothing was moved. */
SPATE_CHECKED static inline enum spate_rc spate_reader_back(struct spate_reader *reader,
                                                            struct spate_bus_pos before,
                                                            struct spate_bus_pos *start,
                                                            struct spate_err *err)
{
    return reader->ops->back(reader, before, start, err);
}
/* The end of what this reader may see now. */
static inline struct spate_bus_pos spate_reader_end(struct spate_reader *reader)
{
    return reader->ops->end(reader);
}
/* Names this incarnation of the log; another one after the log was deleted and made anew. Valid until close.
 */
static inline const char *spate_reader_log_id(struct spate_reader *reader)
{
    return reader->ops->log_id(reader);
}

/* Makes this reader known by a name (bus/local/place.h says which are good), which one living process has at
 * a time: people see how far it is. With `hold`, what it has not passed yet is kept for it, beyond what
 * retention says; a writer whose log is at its limit then takes nothing more. Who is known and holds no
 * longer says so by enlisting without. SPATE_FAIL: retry = another process has the name; fatal = no such
 * name, no permission, or a bus that cannot hold (Kafka: retention is the broker's). */
SPATE_CHECKED static inline enum spate_rc spate_reader_enlist(struct spate_reader *reader, const char *name,
                                                              bool hold, struct spate_err *err)
{
    return reader->ops->enlist(reader, name, hold, err);
}

/* All before `pos` is done with, as far as this reader is concerned: of what it does with the records, not of
 * what it read. For people and for `hold`; where a program goes on after a restart it keeps with its results.
 * Costs nanoseconds; nothing where the reader is not enlisted. */
static inline void spate_reader_passed(struct spate_reader *reader, struct spate_bus_pos pos)
{
    reader->ops->passed(reader, pos);
}
static inline void spate_reader_close(struct spate_reader *reader)
{
    if (reader)
        reader->ops->close(reader);
}

#endif
