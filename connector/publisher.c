/* connector/publisher.c - the batch, and four writers. */
#include "connector/publisher.h"

#include "connector/epoch.h"
#include "connector/status.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "core/signals.h"
#include "schemas/json.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#define BATCH_BYTES     ((size_t)64 * 1024)
#define KEEP_BYTES      ((size_t)512 * 1024) /* a batch buffer that a large row made larger is given back */
#define DURABLE_POLL_MS 5 /* records without a token wake nobody: looked at again this often */

struct topic {
    const char *suffix;
    unsigned flags;
    size_t offset; /* of the writer in struct spate_publisher */
};

static const struct topic topics[] = {
    /* The stream first: its lock is what keeps a second connector from touching Postgres. */
    {"", SPATE_TOPIC_CREATE, offsetof(struct spate_publisher, stream)},
    {"._schemas", SPATE_TOPIC_CREATE | SPATE_TOPIC_KEEP, offsetof(struct spate_publisher, schemas)},
    {"._control", SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED | SPATE_TOPIC_RULE,
     offsetof(struct spate_publisher, control)},
    {"._peers", SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED | SPATE_TOPIC_VOLATILE | SPATE_TOPIC_RULE,
     offsetof(struct spate_publisher, peers)},
};

static struct spate_writer **writer_of(struct spate_publisher *publisher, const struct topic *topic)
{
    return (struct spate_writer **)(void *)((char *)publisher + topic->offset);
}

static enum spate_rc sleep_unless_stopped(int64_t ms)
{
    struct pollfd fd = {.fd = spate_signals_fd(), .events = POLLIN};

    poll(&fd, 1, (int)ms);
    return spate_signals_stop() ? SPATE_END : SPATE_OK;
}

static enum spate_rc open_topic(struct spate_publisher *publisher, const struct topic *topic,
                                struct spate_status *status, struct spate_err *err)
{
    struct spate_log_limit limit = {0};
    int64_t pause_ms = 100;
    char name[256];
    unsigned hidden;

    snprintf(name, sizeof name, "%s%s", publisher->topic, topic->suffix);
    for (;;) {
        *err = (struct spate_err){0};
        if (spate_bus_writer_open(publisher->bus, name, topic->flags, writer_of(publisher, topic), err) ==
            SPATE_OK)
            return SPATE_OK;
        if (err->verdict != SPATE_RETRY)
            return spate_err_context(err, "topic %s", name);
        if (spate_signals_stop())
            return SPATE_END;
        if (spate_log_due(&limit, spate_clock_ms(), 60000, &hidden))
            spate_log_err(SPATE_LOG_WARN, "waiting-for-bus", err);
        spate_status_state(status, SPATE_CONNECTOR_WAITING_BUS, err->text);
        if (sleep_unless_stopped(pause_ms) != SPATE_OK)
            return SPATE_END;
        pause_ms = pause_ms * 2 > 2000 ? 2000 : pause_ms * 2;
    }
}

enum spate_rc spate_publisher_open(struct spate_publisher *publisher,
                                   const struct spate_connector_config *config, struct spate_err *err)
{
    enum spate_rc rc;

    *publisher = (struct spate_publisher){.name = config->name, .slot = config->source.slot};
    if (spate_topic_escape(config->name, publisher->topic, sizeof publisher->topic, err))
        return SPATE_FAIL;
    snprintf(publisher->schemas_topic, sizeof publisher->schemas_topic, "%s._schemas", publisher->topic);
    if (spate_bus_open(&config->bus, &publisher->bus, err))
        return config->path && err->exit_code == SPATE_EXIT_CONFIG
                   ? spate_err_context(err, "%s", config->path)
                   : SPATE_FAIL;
    for (size_t i = 0; i < sizeof topics / sizeof topics[0]; i++) {
        rc = open_topic(publisher, &topics[i], config->status, err);
        if (rc != SPATE_OK)
            return rc;
    }
    publisher->max_record = spate_writer_max_record(publisher->stream);
    publisher->flushed_ms = spate_clock_ms();
    return SPATE_OK;
}

void spate_publisher_close(struct spate_publisher *publisher)
{
    spate_reader_close(publisher->schemas_reader);
    publisher->schemas_reader = NULL;
    for (size_t i = 0; i < sizeof topics / sizeof topics[0]; i++) {
        spate_writer_close(*writer_of(publisher, &topics[i]));
        *writer_of(publisher, &topics[i]) = NULL;
    }
    spate_bus_close(publisher->bus);
    publisher->bus = NULL;
    spate_buf_fini(&publisher->bytes);
    publisher->count = publisher->done = 0;
}

static enum spate_rc bus_failed(struct spate_publisher *publisher, const char *topic, struct spate_err *err)
{
    publisher->failed = true;
    return spate_err_context(err, "topic %s", topic);
}

/* One transaction that the bus cannot carry must have a way out that works: the slot is moved behind it. */
static enum spate_rc too_large(const struct spate_publisher *publisher, const struct spate_change *change,
                               size_t size, struct spate_err *err)
{
    struct spate_slice schema = change->table ? change->table->schema : spate_slice_str("pg_catalog");
    struct spate_slice name = change->table ? change->table->name : spate_slice_str("(logical message)");
    const uint64_t behind = change->pos.commit_lsn + 1;

    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_fail(
        err, SPATE_QUARANTINE,
        "%s on %.*s.%.*s makes a message of %zu bytes, and the bus takes %zu at most. Nothing of "
        "its transaction was confirmed, and it comes again at every start. On Kafka: "
        "kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics --entity-name %s "
        "--add-config max.message.bytes=%zu, and start again: nothing is lost. Otherwise the way on without "
        "that transaction, in this order: SELECT pg_replication_slot_advance('%s', '%X/%X'); "
        "spate connector -c FILE --new-epoch " SPATE_AFTER_NEW_EPOCH ". Before that, keep such "
        "values out of the publication (ALTER PUBLICATION ... SET TABLE with a column list)",
        spate_op_name(change->op), SPATE_SLICE_ARG(schema), SPATE_SLICE_ARG(name), size,
        publisher->max_record, publisher->topic, size + 1024, publisher->slot, (uint32_t)(behind >> 32),
        (uint32_t)behind);
}

static void append(struct spate_publisher *publisher, size_t at, size_t value_len, int64_t ts_us,
                   uint64_t token)
{
    publisher->records[publisher->count++] = (struct spate_batched){
        .at = at,
        .value_len = value_len,
        .key_len = publisher->bytes.len - at - value_len,
        .ts_us = ts_us,
        .token = token,
    };
}

enum spate_rc spate_publisher_change(struct spate_publisher *publisher, const struct spate_change *change,
                                     uint64_t token, struct spate_err *err)
{
    size_t at = publisher->bytes.len, value_len;

    if (spate_encode_change(&publisher->bytes, change, err))
        goto refused;
    value_len = publisher->bytes.len - at;
    if (change->table && spate_encode_key(&publisher->bytes, change, err))
        goto refused;
    /* The key stands in the value anyway; a bus that has no room for it as a handle goes without (a btree key
     * may be longer than it looks, since it is compressed). */
    if (publisher->bytes.len - at - value_len > SPATE_BUS_KEY_MOST)
        publisher->bytes.len = at + value_len;
    if (publisher->bytes.len - at > publisher->max_record) {
        too_large(publisher, change, publisher->bytes.len - at, err);
        goto refused;
    }
    append(publisher, at, value_len, change->commit_us, token);
    return SPATE_OK;
refused:
    publisher->bytes.len = at;
    err->lsn = change->pos.commit_lsn;
    return SPATE_FAIL;
}

void spate_publisher_heartbeat(struct spate_publisher *publisher, const struct spate_heartbeat *heartbeat,
                               uint64_t token)
{
    size_t at = publisher->bytes.len;

    spate_encode_heartbeat(&publisher->bytes, heartbeat);
    append(publisher, at, publisher->bytes.len - at, heartbeat->wall_us, token);
}

void spate_publisher_stale(struct spate_publisher *publisher, const struct spate_stale *stale)
{
    size_t at = publisher->bytes.len;

    spate_encode_stale(&publisher->bytes, stale);
    append(publisher, at, publisher->bytes.len - at, stale->wall_us, 0);
}

void spate_publisher_epoch(struct spate_publisher *publisher, const struct spate_epoch *epoch, uint64_t token)
{
    size_t at = publisher->bytes.len;

    spate_encode_epoch(&publisher->bytes, epoch);
    append(publisher, at, publisher->bytes.len - at, epoch->wall_us, token);
}

enum spate_rc spate_publisher_line(struct spate_publisher *publisher, struct spate_slice head,
                                   struct spate_slice rest, int64_t ts_us, struct spate_err *err)
{
    size_t at = publisher->bytes.len;

    if (head.len + rest.len > publisher->max_record)
        return spate_fail(err, SPATE_QUARANTINE,
                          "a row makes a message of %zu bytes, and the bus takes %zu at most",
                          head.len + rest.len, publisher->max_record);
    spate_buf_reserve(&publisher->bytes, head.len + rest.len);
    spate_buf_slice(&publisher->bytes, head);
    spate_buf_slice(&publisher->bytes, rest);
    append(publisher, at, head.len + rest.len, ts_us, 0);
    return SPATE_OK;
}

bool spate_publisher_full(const struct spate_publisher *publisher)
{
    return publisher->count == SPATE_PUBLISHER_RECORDS || publisher->bytes.len >= BATCH_BYTES ||
           publisher->done > 0;
}

enum spate_rc spate_publisher_flush(struct spate_publisher *publisher, struct spate_err *err)
{
    struct spate_record records[64];

    while (publisher->done < publisher->count) {
        size_t count = publisher->count - publisher->done, taken = 0;
        enum spate_rc rc;

        if (count > sizeof records / sizeof records[0])
            count = sizeof records / sizeof records[0];
        for (size_t i = 0; i < count; i++) {
            const struct spate_batched *b = &publisher->records[publisher->done + i];
            const char *value = publisher->bytes.data + b->at;

            records[i] = (struct spate_record){
                .key = spate_slice(value + b->value_len, b->key_len),
                .value = spate_slice(value, b->value_len),
                .ts_us = b->ts_us,
                .token = b->token,
            };
        }
        if (SPATE_FAILPOINT_FAILS(connector_publish))
            rc = spate_fail(err, SPATE_RETRY, "the bus took nothing, as SPATE_FP asked");
        else
            rc = spate_writer_publish(publisher->stream, records, count, &taken, err);
        SPATE_FAILPOINT(connector_published);
        publisher->done += taken;
        if (rc == SPATE_FAIL)
            return bus_failed(publisher, publisher->topic, err);
        if (rc == SPATE_AGAIN)
            return SPATE_AGAIN;
    }
    if (publisher->count)
        publisher->flushed_ms = spate_clock_ms();
    publisher->count = publisher->done = 0;
    spate_buf_trim(&publisher->bytes, KEEP_BYTES);
    return SPATE_OK;
}

static void on_durable(void *arg, uint64_t token)
{
    spate_ledger_durable(arg, token);
    SPATE_FAILPOINT(connector_durable);
}

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token; /* _schemas is waited for as a whole */
}

static enum spate_rc poll_stream(struct spate_publisher *publisher, struct spate_ledger *ledger,
                                 int timeout_ms, struct spate_err *err)
{
    enum spate_rc rc = spate_writer_poll(publisher->stream, timeout_ms, on_durable, ledger, err);

    return rc == SPATE_FAIL ? bus_failed(publisher, publisher->topic, err) : SPATE_OK;
}

enum spate_rc spate_publisher_poll(struct spate_publisher *publisher, struct spate_ledger *ledger,
                                   struct spate_err *err)
{
    return poll_stream(publisher, ledger, 0, err);
}

enum spate_rc spate_publisher_settle(struct spate_publisher *publisher, struct spate_ledger *ledger,
                                     struct spate_err *err)
{
    for (;;) {
        enum spate_rc rc = spate_publisher_flush(publisher, err);

        SPATE_FAILPOINT(connector_settle);
        if (rc == SPATE_FAIL || poll_stream(publisher, ledger, DURABLE_POLL_MS, err))
            return SPATE_FAIL;
        if (rc == SPATE_OK &&
            spate_writer_durable(publisher->stream).at >= spate_writer_end(publisher->stream).at)
            return SPATE_OK;
        if (spate_signals_stop())
            return SPATE_END;
    }
}

static enum spate_rc publish_schemas(struct spate_publisher *publisher, struct spate_slice key,
                                     struct spate_slice value, int64_t ts_us, struct spate_err *err)
{
    struct spate_record record = {.key = key, .value = value, .ts_us = ts_us};
    size_t taken = 0;
    enum spate_rc rc = spate_writer_publish(publisher->schemas, &record, 1, &taken, err);

    return rc == SPATE_FAIL ? bus_failed(publisher, publisher->schemas_topic, err) : rc;
}

enum spate_rc spate_publisher_schema(struct spate_publisher *publisher, const struct spate_table *table,
                                     struct spate_err *err)
{
    struct spate_buf value = {0}, key = {0};
    int64_t now_us = spate_clock_wall_us();
    enum spate_rc rc;

    spate_encode_schema(&value, table, spate_slice_str(publisher->name), now_us);
    /* One key per version, so that compaction removes none. */
    spate_buf_printf(&key, "{\"schema\":%.*s,\"table\":%.*s,\"v\":%" PRIu32 "}",
                     SPATE_SLICE_ARG(table->json_schema), SPATE_SLICE_ARG(table->json_name), table->v);
    rc = publish_schemas(publisher, spate_buf_view(&key), spate_buf_view(&value), now_us, err);
    SPATE_FAILPOINT(connector_schema_published);
    spate_buf_fini(&value);
    spate_buf_fini(&key);
    return rc;
}

enum spate_rc spate_publisher_storage(struct spate_publisher *publisher, const struct spate_storage *storage,
                                      struct spate_err *err)
{
    struct spate_buf value = {0}, key = {0};
    enum spate_rc rc;

    spate_encode_storage(&value, storage);
    /* The newest of each table is what compaction keeps. */
    spate_buf_puts(&key, "{\"schema\":");
    spate_json_put_name(&key, storage->schema);
    spate_buf_puts(&key, ",\"table\":");
    spate_json_put_name(&key, storage->table);
    spate_buf_puts(&key, ",\"storage\":true}");
    rc = publish_schemas(publisher, spate_buf_view(&key), spate_buf_view(&value), storage->wall_us, err);
    spate_buf_fini(&value);
    spate_buf_fini(&key);
    return rc;
}

enum spate_rc spate_publisher_schemas_epoch(struct spate_publisher *publisher,
                                            const struct spate_epoch *epoch, struct spate_err *err)
{
    struct spate_buf value = {0}, key = {0};
    enum spate_rc rc;

    spate_encode_epoch(&value, epoch);
    spate_buf_printf(&key, "{\"epoch\":%" PRIu64 "}", epoch->epoch);
    rc = publish_schemas(publisher, spate_buf_view(&key), spate_buf_view(&value), epoch->wall_us, err);
    spate_buf_fini(&value);
    spate_buf_fini(&key);
    return rc;
}

enum spate_rc spate_publisher_schemas_durable(struct spate_publisher *publisher, int timeout_ms,
                                              struct spate_err *err)
{
    if (spate_writer_poll(publisher->schemas, timeout_ms, ignore_token, NULL, err) == SPATE_FAIL)
        return bus_failed(publisher, publisher->schemas_topic, err);
    return spate_writer_durable(publisher->schemas).at >= spate_writer_end(publisher->schemas).at
               ? SPATE_OK
               : SPATE_AGAIN;
}
