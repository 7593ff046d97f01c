/* connector/schemas.c - one reader that stays where it has read to. */
#include "connector/schemas.h"

#include "connector/lsn.h"
#include "core/log.h"

#include <inttypes.h>
#include <string.h>

static enum spate_rc take_message(struct spate_stream *stream, struct spate_slice line,
                                  struct spate_arena *arena, struct spate_err *err)
{
    struct spate_table *table = NULL;
    struct spate_storage storage;
    struct spate_epoch epoch;
    struct spate_head head;

    if (spate_decode_head(line, &head, arena, err))
        return SPATE_FAIL;
    if (head.op == SPATE_OP_SCHEMA) {
        if (spate_decode_schema(line, &table, arena, err))
            return SPATE_FAIL;
        if (!spate_versions_take_known(stream->versions, table))
            spate_log(
                SPATE_LOG_WARN, "schema-twice",
                "topic=%s table=%.*s.%.*s detail=\"two shapes were published under one version: two "
                "connectors of one name, or one that was frozen while another took over; neither version "
                "is used again\"",
                stream->publisher.schemas_topic, SPATE_SLICE_ARG(head.schema), SPATE_SLICE_ARG(head.table));
    } else if (head.op == SPATE_OP_EPOCH) {
        if (spate_decode_epoch(line, &epoch, arena, err))
            return SPATE_FAIL;
        spate_told_epoch(stream->told, &epoch);
        if (!stream->epoch.present || epoch.epoch > stream->epoch.epoch.epoch)
            spate_epoch_keep(&stream->epoch, &epoch);
    } else if (head.op == SPATE_OP_STORAGE) {
        if (spate_decode_storage(line, &storage, arena, err))
            return SPATE_FAIL;
        spate_told_storage(stream->told, &storage);
    }
    return SPATE_OK;
}

static bool is_ours(struct spate_slice line)
{
    static const char begin[] = "{\"spate\":";

    return line.len >= sizeof begin - 1 && memcmp(line.at, begin, sizeof begin - 1) == 0;
}

/* From where the reader stands to the end of what it knows. */
static enum spate_rc read_on(struct spate_stream *stream, struct spate_err *err)
{
    struct spate_publisher *publisher = &stream->publisher;
    struct spate_arena arena = {0};
    struct spate_message message;
    char at[SPATE_BUS_POS_TEXT];
    enum spate_rc rc;

    while ((rc = spate_reader_next(publisher->schemas_reader, &message, err)) == SPATE_OK) {
        publisher->schemas_next = message.next;
        if (message.kind != SPATE_MESSAGE_RECORD)
            continue;
        spate_arena_reset(&arena);
        rc = take_message(stream, message.value, &arena, err);
        if (rc == SPATE_OK)
            continue;
        spate_bus_pos_format(publisher->bus->ops->name, message.pos, at);
        spate_err_context(err, "topic %s, position %s", publisher->schemas_topic, at);
        /* Something that is none of ours hides no version; one of ours that is damaged does, and its number
         * would be given to another shape. */
        if (err->verdict != SPATE_QUARANTINE || is_ours(message.value)) {
            err->verdict = SPATE_FATAL;
            break;
        }
        spate_log_err(SPATE_LOG_WARN, "foreign-record", err);
        *err = (struct spate_err){0};
    }
    spate_arena_fini(&arena);
    return rc == SPATE_AGAIN ? SPATE_OK : rc;
}

enum spate_rc spate_schemas_refresh(struct spate_stream *stream, struct spate_err *err)
{
    struct spate_publisher *publisher = &stream->publisher;
    struct spate_start from = {.from = publisher->schemas_next.at ? SPATE_START_AT : SPATE_START_OLDEST,
                               .pos = publisher->schemas_next};
    enum spate_rc rc;

    if (publisher->schemas_reader) /* seeking asks for the end as it is now */
        rc = spate_reader_seek(publisher->schemas_reader, from, err);
    else
        rc = spate_bus_reader_open(publisher->bus, publisher->schemas_topic, SPATE_SEE_DURABLE, from,
                                   &publisher->schemas_reader, err);
    return rc == SPATE_OK ? read_on(stream, err) : rc;
}

enum spate_rc spate_schemas_glance(struct spate_stream *stream, struct spate_err *err)
{
    const struct spate_epoch *newest = &stream->epoch.epoch;
    enum spate_rc rc;

    if (!stream->publisher.schemas_reader)
        return SPATE_OK;
    rc = spate_reader_wait(stream->publisher.schemas_reader, 0, err);
    if (rc != SPATE_FAIL)
        rc = read_on(stream, err);
    if (rc == SPATE_FAIL && err->verdict == SPATE_RETRY) {
        *err = (struct spate_err){0}; /* a bus that does not answer is the writer's business; later, then */
        return SPATE_OK;
    }
    if (rc != SPATE_OK || newest->epoch == stream->tx.epoch)
        return rc;
    err->exit_code = SPATE_EXIT_FENCED;
    err->lsn = newest->end;
    return spate_fail(
        err, SPATE_FATAL,
        "another connector has opened epoch %" PRIu64
        " of this stream (reading slot \"%.*s\" of database %.*s, "
        "system %.*s; %.*s), and this one streamed in epoch %" PRIu64 " until now: what it has published "
        "since then every reader drops. Nothing more is confirmed. If the other one is a mistake, stop it, "
        "and go on here with: spate connector -c FILE --new-epoch " SPATE_AFTER_NEW_EPOCH
        ". If both are right, give one of them another name (connector:)",
        newest->epoch, SPATE_SLICE_ARG(newest->identity.slot), SPATE_SLICE_ARG(newest->identity.database),
        SPATE_SLICE_ARG(newest->identity.system), SPATE_SLICE_ARG(newest->why), stream->tx.epoch);
}
