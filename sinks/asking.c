#include "sinks/asking.h"

#include "bus/open.h"
#include "core/alloc.h"
#include "core/clock.h"

#include <stdio.h>
#include <stdlib.h>

#define REST_MS 2000 /* for what was said last to get on its way */

enum spate_rc spate_asking_init(struct spate_asking *asking, struct spate_bus *bus, const char *connector,
                                struct spate_err *err)
{
    char name[300], topic[300];

    *asking = (struct spate_asking){.bus = bus};
    snprintf(name, sizeof name, "%s._control", connector);
    if (spate_topic_escape(name, topic, sizeof topic, err) != SPATE_OK)
        return SPATE_FAIL;
    asking->topic = spate_strdup(topic);
    return SPATE_OK;
}

void spate_asking_fini(struct spate_asking *asking)
{
    spate_asking_rest(asking);
    spate_reader_close(asking->reader);
    spate_arena_fini(&asking->arena);
    spate_buf_fini(&asking->line);
    free(asking->topic);
    *asking = (struct spate_asking){0};
}

enum spate_rc spate_asking_listen(struct spate_asking *asking, enum spate_asking_from from,
                                  struct spate_err *err)
{
    const struct spate_start oldest = {.from = SPATE_START_OLDEST}, now = {.from = SPATE_START_NOW};
    struct spate_bus_pos at;
    enum spate_rc rc;

    if (asking->reader)
        return SPATE_OK;
    rc = spate_bus_reader_open(asking->bus, asking->topic, SPATE_SEE_DURABLE,
                               from == SPATE_ASKING_OLDEST ? oldest : now, &asking->reader, err);
    if (rc == SPATE_OK && from == SPATE_ASKING_LATELY)
        rc = spate_reader_back(asking->reader, spate_reader_end(asking->reader), &at, err);
    if (rc == SPATE_END) /* there is no more than that */
        rc = spate_reader_seek(asking->reader, oldest, err);
    if (rc != SPATE_OK) {
        spate_reader_close(asking->reader);
        asking->reader = NULL;
    }
    return rc;
}

enum spate_rc spate_asking_next(struct spate_asking *asking, struct spate_control *out,
                                struct spate_slice *line, struct spate_err *err)
{
    for (;;) {
        struct spate_message message;
        struct spate_err ignored = {0};
        enum spate_rc rc = spate_reader_next(asking->reader, &message, err);

        if (rc == SPATE_FAIL) {
            spate_reader_close(asking->reader);
            asking->reader = NULL;
        }
        if (rc != SPATE_OK)
            return rc;
        if (message.kind == SPATE_MESSAGE_GAP)
            continue;
        spate_arena_reset(&asking->arena);
        if (spate_decode_control(message.value, out, &asking->arena, &ignored) != SPATE_OK)
            continue;
        *line = message.value;
        return SPATE_OK;
    }
}

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

enum spate_rc spate_asking_say(struct spate_asking *asking, const struct spate_control *control,
                               struct spate_err *err)
{
    struct spate_record record = {.ts_us = spate_clock_wall_us()};
    size_t taken;
    enum spate_rc rc = SPATE_OK;

    if (!asking->writer)
        rc = spate_bus_writer_open(asking->bus, asking->topic, SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED,
                                   &asking->writer, err);
    if (rc == SPATE_OK) {
        spate_buf_reset(&asking->line);
        spate_encode_control(&asking->line, control);
        record.value = spate_buf_view(&asking->line);
        rc = spate_writer_publish(asking->writer, &record, 1, &taken, err);
    }
    /* On Kafka the report of a delivery comes here; nobody waits for it: what got lost is said again. */
    if (rc == SPATE_OK && spate_writer_poll(asking->writer, 0, ignore_token, NULL, err) == SPATE_FAIL)
        rc = SPATE_FAIL;
    if (rc == SPATE_FAIL) {
        spate_writer_close(asking->writer);
        asking->writer = NULL;
        return spate_err_context(err, "topic %s", asking->topic);
    }
    return rc;
}

void spate_asking_rest(struct spate_asking *asking)
{
    struct spate_err ignored = {0};
    const int64_t deadline = spate_clock_ms() + REST_MS;

    while (asking->writer && spate_writer_durable(asking->writer).at < spate_writer_end(asking->writer).at &&
           spate_clock_ms() < deadline)
        if (spate_writer_poll(asking->writer, 50, ignore_token, NULL, &ignored) == SPATE_FAIL)
            break;
    spate_writer_close(asking->writer);
    asking->writer = NULL;
}
