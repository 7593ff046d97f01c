/* <spate/bus.h> - the local bus of spate, for other programs: publish records to a topic, read topics back.
 *
 * A topic is a log in shared memory with an archive on the disk; many processes read it and write it, and no
 * server stands between them. While messages flow neither end calls the kernel. Manual: spatebus(3).
 *
 *   cc reader.c $(pkg-config --cflags --libs spate-bus)
 *
 * Results   SPATEBUS_OK, SPATEBUS_AGAIN (not now; nothing is lost), SPATEBUS_FAIL (*error says why; it may
 *           be NULL). What opens gives NULL where it fails.
 * Threads   a handle belongs to one thread at a time; different handles may be used by different threads. A
 *           bus outlives its writers and readers. A writer has a thread of its own, in which all signals but
 *           SIGBUS are blocked.
 * Blocks    only what takes timeout_ms, for at most that long; opening and closing may wait for the disk.
 * Forking   a handle works in the process that opened it. In a child of fork() each call on it fails with
 *           SPATEBUS_E_FORKED, and closing it there leaves it alone: open your own. Descriptors are
 *           close-on-exec; a child that neither closes nor execs keeps its parent's topics owned.
 * Signals   a SIGBUS handler makes an error of a segment file that somebody cuts while it is mapped; it hands
 *           on what is not the library's (struct spatebus_options, no_guard).
 * Memory    small allocations abort the process when there is none left. */
#ifndef SPATE_BUS_H
#define SPATE_BUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPATEBUS_API __attribute__((visibility("default")))

enum { SPATEBUS_FAIL = -1, SPATEBUS_AGAIN = 0, SPATEBUS_OK = 1 };

/* What to do about a failure. */
enum {
    SPATEBUS_E_RETRY = 1, /* the same thing may work later; a writer or reader that says so is opened anew */
    SPATEBUS_E_MISSING = 2, /* no such topic, or bus, yet: whoever makes it has not started */
    SPATEBUS_E_RECORD = 3,  /* this record is refused (too long, empty), the writer is fine */
    SPATEBUS_E_FATAL = 4,   /* a human must decide: no permission, a damaged log, another version */
    SPATEBUS_E_FORKED = 5,  /* the handle is a parent's */
    SPATEBUS_E_CALL = 6     /* the call itself is wrong */
};
struct spatebus_error {
    int code;
    char text[1020]; /* what happened, to what, and what to do next; NUL-terminated */
};

struct spatebus;
struct spatebus_writer;
struct spatebus_reader;

SPATEBUS_API const char *spatebus_version(void); /* of the library, "0.1.0" */

/* What the library has to say by itself (warnings: a full disk, a reader let go of) goes to stderr, or to
 * this function; NULL: nowhere. A line ends with a newline and is not NUL-terminated. Called from any thread;
 * to be set before the first spatebus_open(). */
typedef void spatebus_log_fn(void *arg, const char *line, size_t len);
SPATEBUS_API void spatebus_log_to(spatebus_log_fn *fn, void *arg);

struct spatebus_options {
    size_t size;           /* sizeof(struct spatebus_options), so that later versions can add to it */
    const char *hot;       /* the directory in shared memory; NULL: derived from the path, below /dev/shm */
    int64_t segment_bytes; /* of topics that are made: a power of two, 1 MiB to 1 GiB; 0: by the room */
    /* How much of a topic that this program owns or makes (SHARED: or opens with SPATEBUS_RULE) stays on the
     * disk; whole segments go, the oldest first. */
    int64_t retention_ms;    /* 0: seven days; -1: age removes nothing */
    int64_t retention_bytes; /* 0: half of the file system; -1: no limit */
    int no_guard; /* leave SIGBUS alone: a segment file that somebody cuts while it is in use kills then */
};

/* Names the bus whose directory is `path`; nothing is opened or made before the first writer or reader. The
 * strings are copied. options: NULL for the defaults. */
SPATEBUS_API struct spatebus *spatebus_open(const char *path, const struct spatebus_options *options,
                                            struct spatebus_error *error);
/* Accepts NULL, as every _close does. Writers and readers must be closed before. */
SPATEBUS_API void spatebus_close(struct spatebus *bus);

/* Calls `each` with the name of every topic there is. A stream of a connector is a topic of its name. */
typedef void spatebus_topic_fn(void *arg, const char *topic);
SPATEBUS_API int spatebus_topics(struct spatebus *bus, spatebus_topic_fn *each, void *arg,
                                 struct spatebus_error *error);

/* --- writing -------------------------------------------------------------------------------- */

enum {
    SPATEBUS_CREATE = 1,   /* make the topic when it is missing */
    SPATEBUS_KEEP = 2,     /* nothing is ever removed from it; counts as the options' retention does */
    SPATEBUS_VOLATILE = 4, /* in memory only: survives processes, not the machine; nothing is acknowledged */
    SPATEBUS_SHARED = 8,   /* many writers at once; without it this one owns the topic until it is closed */
    SPATEBUS_UNCHECKED = 16, /* of a volatile topic that is made: records carry no checksum */
    SPATEBUS_RULE = 32       /* of a SHARED topic that is there: what the options say of retention counts */
};

struct spatebus_record {
    const void *key; /* may be empty; at most 65535 bytes */
    size_t key_len;
    const void *value; /* must not be empty */
    size_t value_len;
    int64_t ts_us;  /* a time to hand on to readers, microseconds since 1970; 0: none */
    uint64_t token; /* 0: no acknowledgement wanted; else handed back by spatebus_poll() */
};

/* topic: [a-z0-9][a-z0-9._-]{0,127}. Settles what a killed predecessor left. Fails with SPATEBUS_E_RETRY
 * while another process owns the topic; the text names it. */
SPATEBUS_API struct spatebus_writer *spatebus_writer_open(struct spatebus *bus, const char *topic,
                                                          unsigned flags, struct spatebus_error *error);

/* Offers `count` records in order; their bytes stay the caller's. *taken (may be NULL for one record) says
 * how many were taken: all (OK), or the first so many. AGAIN: no room now, the disk is behind or a reader
 * holds; poll, then offer the rest again. FAIL: record *taken was refused, or the writer failed. What was
 * taken in one call becomes visible in order and in as few steps as possible, before the call returns. */
SPATEBUS_API int spatebus_publish(struct spatebus_writer *writer, const struct spatebus_record *records,
                                  size_t count, size_t *taken, struct spatebus_error *error);

/* Hands back, once and in the order of publishing, the token of each record that no power cut can take back
 * any more. Waits up to timeout_ms for the first; fn may be NULL. OK: some came. AGAIN: none. FAIL: nothing
 * more will be acknowledged; close, open anew, and publish again what was not. */
typedef void spatebus_durable_fn(void *arg, uint64_t token);
SPATEBUS_API int spatebus_poll(struct spatebus_writer *writer, int timeout_ms, spatebus_durable_fn *fn,
                               void *arg, struct spatebus_error *error);
/* The same until all that was published before is durable: OK. AGAIN: not within timeout_ms. Of a volatile
 * topic nothing ever is, and the answer is OK at once. */
SPATEBUS_API int spatebus_flush(struct spatebus_writer *writer, int timeout_ms, spatebus_durable_fn *fn,
                                void *arg, struct spatebus_error *error);
/* Readable when spatebus_poll() may have something, for poll(2). -1: there is none, ask now and then. It may
 * be another one after a spatebus_publish(). */
SPATEBUS_API int spatebus_writer_fd(struct spatebus_writer *writer);
SPATEBUS_API uint64_t spatebus_writer_end(struct spatebus_writer *writer);     /* where the next will stand */
SPATEBUS_API uint64_t spatebus_writer_durable(struct spatebus_writer *writer); /* all below is durable */
SPATEBUS_API size_t spatebus_writer_most(struct spatebus_writer *writer);      /* bytes of key plus value */
SPATEBUS_API void
spatebus_writer_close(struct spatebus_writer *writer); /* does not wait for the disk: flush */

/* --- reading -------------------------------------------------------------------------------- */

/* A position is where a record stands in its topic: later ones have greater numbers, none is used twice, and
 * their difference is bytes. Keep `next` of the last message with your results, and open there again. For
 * people, and for spate tap --from: "local:%016" PRIx64. */
#define SPATEBUS_OLDEST UINT64_C(0)              /* the oldest record that is kept */
#define SPATEBUS_NOW    (~(uint64_t)UINT64_C(0)) /* what is published from now on */

enum { SPATEBUS_TIP = 0, SPATEBUS_DURABLE = 1 }; /* all that is published; or what no power cut takes back */

struct spatebus_message {
    int kind;      /* SPATEBUS_RECORD or SPATEBUS_GAP: retention took pos up to next before it was read */
    uint64_t pos;  /* of this record; of a gap: the first position that is lost */
    uint64_t next; /* where the following record begins; of a gap: the first that is kept */
    int64_t ts_us;
    const void *key; /* borrowed until the next call on this reader; read-only */
    size_t key_len;
    const void *value;
    size_t value_len;
};
enum { SPATEBUS_RECORD = 0, SPATEBUS_GAP = 1 };

/* from: SPATEBUS_OLDEST, SPATEBUS_NOW or a position; one that retention took begins with a gap, one beyond
 * the end waits there. Fails with SPATEBUS_E_MISSING while there is no such topic. */
SPATEBUS_API struct spatebus_reader *spatebus_reader_open(struct spatebus *bus, const char *topic, int see,
                                                          uint64_t from, struct spatebus_error *error);
/* The next message, waiting up to timeout_ms for it; 0: not at all. AGAIN: none came; rarely before the time.
 */
SPATEBUS_API int spatebus_next(struct spatebus_reader *reader, struct spatebus_message *message,
                               int timeout_ms, struct spatebus_error *error);
SPATEBUS_API int spatebus_seek(struct spatebus_reader *reader, uint64_t to, struct spatebus_error *error);
/* The end of what this reader may see now. */
SPATEBUS_API uint64_t spatebus_reader_end(struct spatebus_reader *reader);
/* Names this incarnation of the log; positions of another one mean nothing here. Valid until close. */
SPATEBUS_API const char *spatebus_reader_log(struct spatebus_reader *reader);

/* Makes this reader known by a name, which one living process has at a time: people see how far it is (spate
 * bus readers). With `hold` what it has not passed is kept for it, and a writer whose log is at its limit
 * then takes nothing more: AGAIN. Who is known and holds no longer enlists once more without. */
SPATEBUS_API int spatebus_enlist(struct spatebus_reader *reader, const char *name, int hold,
                                 struct spatebus_error *error);
/* All before `pos` is done with: of what is made of the records, not of what was read. Costs nanoseconds. */
SPATEBUS_API void spatebus_passed(struct spatebus_reader *reader, uint64_t pos);
SPATEBUS_API void spatebus_reader_close(struct spatebus_reader *reader);

#ifdef __cplusplus
}
#endif

#endif
