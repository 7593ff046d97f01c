/* bus/kafka/writer.c - a topic's writer: one idempotent producer, and what it was told to be durable.
 *
 * The promise to hand tokens back in order and without a hole is kept here, not by librdkafka: reports are
 * numbered, and the first one that is missing, wrong or out of order ends the writer (K2, K4). Whoever
 * publishes then opens a new one and goes on from what the log holds. */
#include "bus/kafka/log.h"
#include "bus/kafka/watch.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH           64
#define RECORDS_MOST    65536
#define BYTES_MOST      ((size_t)16 << 20)
#define RECORD_OVERHEAD 256 /* librdkafka's own per record */
#define WIRE_OVERHEAD   512 /* the protocol's around one record, which max_message_bytes leaves out */
#define FLUSH_MS        1000
#define SILENT_MS       5000 /* without a report, while some are due: worth a line in the log */
#define SILENT_EVERY_MS 30000

struct writer {
    struct spate_writer base;
    struct spate_kafka *kafka;
    struct spate_kafka_topic topic;
    unsigned flags;
    rd_kafka_t *handle; /* of a shared topic: made with the first record, for most never have one */
    rd_kafka_topic_t *log;
    int event_fd; /* rung by librdkafka when a report is there */
    struct spate_kafka_watch *watch;
    uint64_t *tokens;         /* ring of token_cap (a power of two), by running number */
    size_t token_cap;         /* grows up to RECORDS_MOST */
    uint64_t taken, reported; /* running numbers: of the last record handed over, of the last acknowledged */
    size_t records, bytes;    /* with librdkafka, whether they will be acknowledged or not */
    int64_t durable;          /* the offset after the last acknowledged record */
    bool failed;
    struct spate_err failure;
    spate_durable_fn *hand_back; /* while poll runs */
    void *arg;
    bool moved;       /* a report came during this poll */
    int64_t heard_ms; /* since when reports are due and none came */
    bool silent;      /* that was said */
    struct spate_log_limit silence;
};

static bool is_volatile(const struct writer *w)
{
    return (w->flags & SPATE_TOPIC_VOLATILE) != 0;
}

static enum spate_rc failed(const struct writer *w, struct spate_err *err)
{
    *err = w->failure;
    return SPATE_FAIL;
}

/* Nothing more is acknowledged from here on. `failure` has been filled. */
static void stop(struct writer *w)
{
    w->failed = true;
    /* A refusal that comes with a report is not about one record: others behind it may be in the log. */
    if (w->failure.verdict == SPATE_QUARANTINE)
        w->failure.verdict = SPATE_RETRY;
}

static void fail_delivery(struct writer *w, rd_kafka_resp_err_t code, const char *detail)
{
    spate_kafka_fail(w->kafka, &w->failure, code, detail, "publishing to topic %s after offset %" PRId64,
                     w->topic.name, w->durable - 1);
    stop(w);
}

/* K10, F54: 2.0.2 knows no topic ids, but a topic that was made anew begins at 0 again. */
static void fail_incarnation(struct writer *w, int64_t offset)
{
    w->failure.exit_code = SPATE_EXIT_FENCED;
    spate_fail(
        &w->failure, SPATE_FATAL,
        "topic incarnation changed: a record published to topic %s after offset %" PRId64
        " was stored at offset %" PRId64
        "; the topic was deleted and made anew, or lost its tail, while this process ran. What it held "
        "may be lost: compare with the source, then begin a new epoch (spate connector --new-epoch)",
        w->topic.name, w->durable - 1, offset);
    stop(w);
}

/* librdkafka takes a batch whose answer was lost for stored when the broker took a later one, or called it a
 * duplicate (K6). That rests on the broker's memory of this producer, which a topic that was made anew or a
 * leader without a past does not have; the log itself is asked instead. */
static void fail_unplaced(struct writer *w)
{
    spate_fail(&w->failure, SPATE_RETRY,
               "topic %s: the brokers took a record after offset %" PRId64
               ", but do not say where it stands; the topic is opened anew and read instead",
               w->topic.name, w->durable - 1);
    stop(w);
}

/* Called by librdkafka from rd_kafka_poll. */
static void delivered(rd_kafka_t *handle, const rd_kafka_message_t *m, void *opaque)
{
    struct writer *w = opaque;
    const uint64_t number = (uintptr_t)m->_private;
    const bool lost = SPATE_FAILPOINT_FAILS(kafka_report);

    (void)handle;
    w->records--;
    w->bytes -= m->len + m->key_len + RECORD_OVERHEAD;
    if (is_volatile(w))
        w->reported = number; /* nobody asks what became of it */
    if (w->failed || is_volatile(w))
        return; /* K2: later records may well arrive, but behind a hole */
    if (m->err != RD_KAFKA_RESP_ERR_NO_ERROR || lost) {
        char why[400] = "";
        if (m->err == RD_KAFKA_RESP_ERR__FATAL)
            rd_kafka_fatal_error(w->handle, why, sizeof why);
        fail_delivery(w, lost ? RD_KAFKA_RESP_ERR__MSG_TIMED_OUT : m->err, why[0] ? why : NULL);
        return;
    }
    if (number != w->reported + 1) {
        spate_fail(&w->failure, SPATE_RETRY,
                   "topic %s: record %" PRIu64 " since opening was stored at offset %" PRId64
                   " before record %" PRIu64
                   "; nothing behind that is taken as durable, the topic is opened anew",
                   w->topic.name, number, m->offset, w->reported + 1);
        stop(w);
        return;
    }
    if (m->offset < 0) {
        fail_unplaced(w);
        return;
    }
    if (m->offset < w->durable) {
        fail_incarnation(w, m->offset);
        return;
    }
    w->durable = m->offset + 1;
    w->reported = number;
    w->moved = true;
    SPATE_FAILPOINT(kafka_reported);
    const uint64_t token = w->tokens[number & (w->token_cap - 1)];
    if (token != 0 && w->hand_back)
        w->hand_back(w->arg, token);
}

/* Whether librdkafka rings when a report is there; -1: no more. */
static void ring(struct writer *w, int event_fd)
{
    const uint64_t one = 1;
    rd_kafka_queue_t *reports = rd_kafka_queue_get_main(w->handle);

    rd_kafka_queue_io_event_enable(reports, event_fd, &one, sizeof one);
    rd_kafka_queue_destroy(reports);
}

/* Ends the producer. A destruction that hangs (K32) must not ring a descriptor that is another's by then. */
static void let_go(struct writer *w)
{
    if (w->log)
        rd_kafka_topic_destroy(w->log);
    if (w->handle)
        ring(w, -1);
    spate_kafka_client_free(w->handle);
    w->log = NULL;
    w->handle = NULL;
}

static enum spate_rc start(struct writer *w, struct spate_err *err)
{
    const bool shared = (w->flags & SPATE_TOPIC_SHARED) != 0;

    if (spate_kafka_client(w->kafka, shared ? SPATE_KAFKA_SHARED : SPATE_KAFKA_PRODUCER,
                           w->topic.max_message_bytes + WIRE_OVERHEAD, delivered, w, &w->handle,
                           err) != SPATE_OK)
        return SPATE_FAIL;
    w->log = rd_kafka_topic_new(w->handle, w->topic.name, NULL);
    if (!w->log)
        return spate_kafka_fail(w->kafka, err, rd_kafka_last_error(), NULL, "preparing topic %s",
                                w->topic.name);
    ring(w, w->event_fd);
    if (!shared)
        w->watch = spate_kafka_watch_start(w->handle, w->log, w->event_fd);
    return SPATE_OK;
}

static void reserve_tokens(struct writer *w, size_t more)
{
    const uint64_t wanted = w->taken - w->reported + more;
    size_t cap = w->token_cap ? w->token_cap : 64;

    if (wanted <= w->token_cap)
        return;
    while (cap < wanted)
        cap *= 2;
    uint64_t *ring = spate_alloc(cap * sizeof *ring);
    for (uint64_t n = w->reported + 1; n <= w->taken; n++)
        ring[n & (cap - 1)] = w->tokens[n & (w->token_cap - 1)];
    free(w->tokens);
    w->tokens = ring;
    w->token_cap = cap;
}

static enum spate_rc check(const struct writer *w, const struct spate_record *record, struct spate_err *err)
{
    const size_t most = w->topic.max_message_bytes;

    if (record->value.len == 0)
        return spate_fail(err, SPATE_QUARANTINE, "a record for topic %s has no value", w->topic.name);
    if (record->key.len > SPATE_BUS_KEY_MOST)
        return spate_fail(err, SPATE_QUARANTINE,
                          "the key of a record for topic %s has %zu bytes, the bus takes %d", w->topic.name,
                          record->key.len, SPATE_BUS_KEY_MOST);
    if (record->value.len > most || record->key.len > most - record->value.len)
        return spate_fail(err, SPATE_QUARANTINE,
                          "a record for topic %s has %zu bytes, the topic takes %zu; raise its "
                          "max.message.bytes (kafka-configs.sh --alter --entity-type topics --entity-name %s "
                          "--add-config max.message.bytes=...), and the brokers' message.max.bytes",
                          w->topic.name, record->key.len + record->value.len, most, w->topic.name);
    return SPATE_OK;
}

static size_t size_of(const struct spate_record *record)
{
    return record->key.len + record->value.len + RECORD_OVERHEAD;
}

/* Prepares as many of the records as go together. What it returns is about the first that does not. */
static enum spate_rc gather(struct writer *w, const struct spate_record *records, size_t count,
                            rd_kafka_message_t batch[BATCH], size_t *gathered, struct spate_err *err)
{
    size_t n = 0, bytes = w->bytes;
    enum spate_rc rc = SPATE_OK;

    reserve_tokens(w, count < BATCH ? count : BATCH);
    for (; n < count && n < BATCH; n++) {
        const struct spate_record *record = &records[n];
        rc = check(w, record, err);
        if (rc == SPATE_OK && w->records + n > 0 &&
            (w->records + n >= RECORDS_MOST || size_of(record) > BYTES_MOST - bytes))
            rc = SPATE_AGAIN;
        if (rc != SPATE_OK)
            break;
        const uint64_t number = w->taken + n + 1;
        w->tokens[number & (w->token_cap - 1)] = record->token;
        bytes += size_of(record);
        batch[n] = (rd_kafka_message_t){.payload = (void *)(uintptr_t)record->value.at,
                                        .len = record->value.len,
                                        .key = record->key.len ? (void *)(uintptr_t)record->key.at : NULL,
                                        .key_len = record->key.len,
                                        ._private = (void *)(uintptr_t)number};
        SPATE_FAILPOINT(kafka_produce);
    }
    *gathered = n;
    return rc;
}

/* Hands over what fits into one call, which costs a sixth less than a call for each. */
static enum spate_rc hand_over(struct writer *w, const struct spate_record *records, size_t count,
                               size_t *taken, struct spate_err *err)
{
    rd_kafka_message_t batch[BATCH];
    size_t n, accepted = 0;
    const enum spate_rc rc = gather(w, records, count, batch, &n, err);

    *taken = 0;
    if (n == 0)
        return rc;
    if (w->taken == w->reported)
        w->heard_ms = spate_clock_ms();
    accepted = (size_t)rd_kafka_produce_batch(w->log, 0, RD_KAFKA_MSG_F_COPY, batch, (int)n);
    while (*taken < n && batch[*taken].err == RD_KAFKA_RESP_ERR_NO_ERROR) {
        w->bytes += size_of(&records[(*taken)++]);
        w->records++;
        w->taken++;
        SPATE_FAILPOINT(kafka_produced);
    }
    if (*taken == n)
        return rc;
    const rd_kafka_resp_err_t code = batch[*taken].err;
    if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL && accepted == *taken) /* K8; ours is smaller, so hardly ever */
        return SPATE_AGAIN;
    /* The refused one may have left a hole (K2), so even a record that is too large is the writer's end: its
     * size was looked at before. */
    fail_delivery(w, code, NULL);
    return failed(w, err);
}

static enum spate_rc publish(struct spate_writer *base, const struct spate_record *records, size_t count,
                             size_t *taken, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;
    enum spate_rc rc = SPATE_OK;

    *taken = 0;
    if (w->failed)
        return failed(w, err);
    if (!w->log && start(w, err) != SPATE_OK) {
        let_go(w); /* the next publish begins anew */
        return SPATE_FAIL;
    }
    while (rc == SPATE_OK && *taken < count) {
        size_t some;
        rc = hand_over(w, records + *taken, count - *taken, &some, err);
        *taken += some;
    }
    return rc;
}

/* A broker that is gone is no error: librdkafka tries for ever. But somebody should hear of it. */
static void listen_for_silence(struct writer *w)
{
    const int64_t now = spate_clock_ms();
    struct spate_err why = {0};
    char quoted[1200];
    unsigned hidden;

    if (w->moved || w->taken == w->reported) {
        if (w->silent)
            spate_log(SPATE_LOG_INFO, "bus-back", "topic=%s after_s=%lld", w->topic.name,
                      (long long)(now - w->heard_ms) / 1000);
        w->silent = false;
        w->heard_ms = now;
        return;
    }
    if (now - w->heard_ms < SILENT_MS || !spate_log_due(&w->silence, now, SILENT_EVERY_MS, &hidden))
        return;
    w->silent = true;
    spate_kafka_fail(w->kafka, &why, RD_KAFKA_RESP_ERR__TIMED_OUT, NULL, "publishing to topic %s",
                     w->topic.name);
    spate_log(SPATE_LOG_WARN, "bus-silent",
              "topic=%s for_s=%lld records=%" PRIu64
              " detail=%s words=\"none of these records is confirmed to "
              "the source; it goes on by itself when the brokers answer\"",
              w->topic.name, (long long)(now - w->heard_ms) / 1000, w->taken - w->reported,
              spate_log_quote(quoted, sizeof quoted, why.text));
}

/* What no report tells. */
static void look_around(struct writer *w)
{
    const int partitions = spate_kafka_watch_partitions(w->watch);
    char why[400];

    if (w->failed)
        return;
    if (partitions != 1) {
        w->failure.exit_code = SPATE_EXIT_FENCED;
        spate_fail(&w->failure, SPATE_FATAL,
                   "topic %s has %d partitions now; it had 1, which keeps the source's order and its "
                   "transactions whole. Partitions cannot be taken away: delete the topic and begin a new "
                   "epoch (spate connector --new-epoch), which makes it anew",
                   w->topic.name, partitions);
        stop(w);
    } else if (!is_volatile(w)) {
        const rd_kafka_resp_err_t code = rd_kafka_fatal_error(w->handle, why, sizeof why);
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
            fail_delivery(w, RD_KAFKA_RESP_ERR__FATAL, why);
    }
}

static enum spate_rc poll_writer(struct spate_writer *base, int timeout_ms, spate_durable_fn *durable,
                                 void *arg, struct spate_err *err)
{
    struct writer *w = (struct writer *)base;
    const int64_t deadline = timeout_ms > 0 ? spate_clock_ms() + timeout_ms : 0;
    struct pollfd fd = {.fd = w->event_fd, .events = POLLIN};

    for (;;) {
        uint64_t rings;
        w->moved = false;
        if (w->handle) {
            w->hand_back = durable;
            w->arg = arg;
            /* The bell first: what comes after it has been read rings again. */
            (void)!read(w->event_fd, &rings, sizeof rings);
            spate_kafka_client_poll(w->handle, 0);
            w->hand_back = NULL;
            look_around(w);
            if (!w->failed && !is_volatile(w))
                listen_for_silence(w);
        }
        if (w->moved)
            return SPATE_OK;
        if (w->failed)
            return failed(w, err);
        const int64_t left = timeout_ms > 0 ? deadline - spate_clock_ms() : 0;
        if (left <= 0)
            return SPATE_AGAIN;
        if (poll(&fd, 1, (int)left) < 0 && errno == EINTR)
            return SPATE_AGAIN; /* the caller may want to look at its signals */
    }
}

static int writer_fd(struct spate_writer *base)
{
    return ((struct writer *)base)->event_fd;
}

static struct spate_bus_pos writer_durable(struct spate_writer *base)
{
    return (struct spate_bus_pos){.at = (uint64_t)((struct writer *)base)->durable};
}

static struct spate_bus_pos writer_end(struct spate_writer *base)
{
    const struct writer *w = (struct writer *)base;
    const uint64_t outstanding = is_volatile(w) ? 0 : w->taken - w->reported;

    return (struct spate_bus_pos){.at = (uint64_t)w->durable + outstanding};
}

static size_t max_record(struct spate_writer *base)
{
    return ((struct writer *)base)->topic.max_message_bytes;
}

static int64_t retention_ms(struct spate_writer *base)
{
    return ((struct writer *)base)->topic.retention_ms;
}

/* K16: what is not on its way after a moment is simply not confirmed, and published again by the next. */
static void close_writer(struct spate_writer *base)
{
    struct writer *w = (struct writer *)base;

    SPATE_FAILPOINT(kafka_close);
    spate_kafka_watch_stop(w->watch);
    if (w->handle) {
        if (!w->failed && w->records > 0)
            rd_kafka_flush(w->handle, FLUSH_MS);
        rd_kafka_purge(w->handle,
                       RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT | RD_KAFKA_PURGE_F_NON_BLOCKING);
    }
    let_go(w);
    if (w->event_fd >= 0)
        close(w->event_fd);
    free(w->tokens);
    free(w);
}

static const struct spate_writer_ops writer_ops = {.publish = publish,
                                                   .poll = poll_writer,
                                                   .fd = writer_fd,
                                                   .end = writer_end,
                                                   .durable = writer_durable,
                                                   .max_record = max_record,
                                                   .retention_ms = retention_ms,
                                                   .close = close_writer};

enum spate_rc spate_kafka_writer_of(struct spate_kafka *kafka, const struct spate_kafka_topic *topic,
                                    unsigned flags, struct spate_writer **writer, struct spate_err *err)
{
    struct writer *w = spate_zalloc(sizeof *w);
    enum spate_rc rc = SPATE_OK;

    w->base.ops = &writer_ops;
    w->kafka = kafka;
    w->topic = *topic;
    w->flags = flags;
    w->durable = topic->high; /* what consumers are shown is replicated: durable as this bus has it (K13) */
    w->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (w->event_fd < 0)
        rc = spate_fail(err, SPATE_RETRY, "no event descriptor for the writer of topic %s: %s", topic->name,
                        strerror(errno));
    if (rc == SPATE_OK && (flags & SPATE_TOPIC_SHARED) == 0)
        rc = start(w, err);
    if (rc != SPATE_OK) {
        close_writer(&w->base);
        return rc;
    }
    *writer = &w->base;
    return SPATE_OK;
}

enum spate_rc spate_kafka_writer_open(struct spate_kafka *kafka, const char *name, unsigned flags,
                                      struct spate_writer **writer, struct spate_err *err)
{
    struct spate_kafka_topic topic;

    if (spate_kafka_topic_open(kafka, name, flags, &topic, err) != SPATE_OK)
        return SPATE_FAIL;
    SPATE_FAILPOINT(kafka_opened);
    return spate_kafka_writer_of(kafka, &topic, flags, writer, err);
}
