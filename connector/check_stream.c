/* connector/check_stream.c - do source and bus still meet? The judge of a start (connector/epoch.h), asked
 * beforehand: what it would stop for is a finding. */
#include "connector/check.h"

#include "connector/preflight.h"
#include "connector/recovery.h"
#include "core/arena.h"
#include "schemas/codec.h"

#include <stdio.h>
#include <string.h>

static enum spate_rc open_beside(struct spate_bus *bus, const char *connector, const char *beside,
                                 char topic[300], struct spate_reader **reader, struct spate_err *err)
{
    const struct spate_start oldest = {.from = SPATE_START_OLDEST};
    char name[300];

    snprintf(name, sizeof name, "%s%s", connector, beside);
    if (spate_topic_escape(name, topic, 300, err) != SPATE_OK)
        return SPATE_FAIL;
    return reader ? spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, oldest, reader, err) : SPATE_OK;
}

/* The newest epoch of `_schemas`. What is none of ours, or damaged, is said by the start that meets it. */
static enum spate_rc newest_epoch(struct spate_bus *bus, const char *connector,
                                  struct spate_epoch_record *newest, struct spate_err *err)
{
    struct spate_reader *reader = NULL;
    struct spate_arena arena = {0};
    struct spate_message message;
    char topic[300];
    enum spate_rc rc = open_beside(bus, connector, "._schemas", topic, &reader, err);

    while (rc == SPATE_OK && (rc = spate_reader_next(reader, &message, err)) == SPATE_OK) {
        struct spate_epoch epoch;
        struct spate_head head;
        struct spate_err ignored = {0};

        spate_arena_reset(&arena);
        if (message.kind == SPATE_MESSAGE_RECORD &&
            spate_decode_head(message.value, &head, &arena, &ignored) == SPATE_OK &&
            head.op == SPATE_OP_EPOCH &&
            spate_decode_epoch(message.value, &epoch, &arena, &ignored) == SPATE_OK &&
            (!newest->present || epoch.epoch > newest->epoch.epoch))
            spate_epoch_keep(newest, &epoch);
    }
    spate_arena_fini(&arena);
    spate_reader_close(reader);
    return rc == SPATE_AGAIN ? SPATE_OK : rc;
}

static void judge(const struct spate_connector_config *config, const struct spate_source_state *source,
                  const struct spate_epoch_record *newest, const struct spate_bus_state *bus,
                  struct spate_findings *list)
{
    struct spate_err verdict = {0};

    if (spate_epoch_judge(config->source.slot, config->source.publication, source, newest, bus, &verdict) !=
        SPATE_CONTINUITY_BROKEN)
        return;
    spate_find(list, SPATE_FINDING_ERROR, "continuity", "%s", verdict.text);
    spate_find_why(list, "the stream cannot go on where it ended: a start stops with exit code 3");
    spate_find_fix(list, SPATE_MEND_SHELL, "spate connector -c '%s' --new-epoch",
                   config->path ? config->path : "FILE");
}

void spate_check_stream(const struct spate_connector_config *config, PGconn *repl, PGconn *sql,
                        struct spate_findings *list)
{
    struct spate_replication session = {.conn = repl};
    struct spate_epoch_record newest = {0};
    struct spate_source_state source = {0};
    struct spate_bus *bus = NULL;
    struct spate_tail tail = {0};
    struct spate_err err = {0};
    char topic[300];
    enum spate_rc rc = spate_bus_open(&config->bus, &bus, &err);

    if (rc == SPATE_OK)
        rc = newest_epoch(bus, config->name, &newest, &err);
    if (rc == SPATE_OK && newest.present)
        rc = spate_preflight_state(&session, sql, config->source.slot, &source, &err);
    if (rc == SPATE_OK && newest.present)
        rc = open_beside(bus, config->name, "", topic, NULL, &err);
    if (rc == SPATE_OK && newest.present)
        rc = spate_recovery_tail(bus, topic, &newest, source.slot.confirmed, &tail, &err);
    /* A connector that runs publishes and confirms while we look: what was found does not belong together. */
    if (rc == SPATE_OK && newest.present && source.slot.active_pid == 0)
        judge(config, &source, &newest, &tail.bus, list);
    else if (rc == SPATE_FAIL && !err.missing && err.verdict == SPATE_FATAL)
        spate_find_err(list, "stream", &err); /* the rest is said by the bus' own check */
    spate_epoch_drop(&newest);
    spate_bus_close(bus);
}
