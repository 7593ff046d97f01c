#include "sinks/registry.h"

#include "core/alloc.h"
#include "core/hash.h"
#include "core/log.h"

#include <stdlib.h>

enum spate_rc spate_registry_open(struct spate_registry *registry, struct spate_bus *bus, const char *topic,
                                  bool (*wanted)(void *, struct spate_slice, struct spate_slice), void *arg,
                                  struct spate_err *err)
{
    struct spate_start oldest = {.from = SPATE_START_OLDEST};

    *registry = (struct spate_registry){.driver = bus->ops->name, .wanted = wanted, .arg = arg};
    if (spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, oldest, &registry->reader, err) != SPATE_OK)
        return SPATE_FAIL;
    registry->topic = spate_strdup(topic);
    return SPATE_OK;
}

/* The slot that holds the name, or the empty one where it belongs. */
static uint32_t *slot_of(const struct spate_registry *registry, const char *name, size_t len)
{
    size_t mask = registry->slot_count - 1;
    size_t i = (size_t)spate_fnv64(SPATE_FNV64_START, name, len) & mask;

    while (registry->slots[i] && strcmp(registry->names[registry->slots[i] - 1], name) != 0)
        i = (i + 1) & mask;
    return &registry->slots[i];
}

/* A source may have thousands of tables, and each start reads all of their names. */
static void grow_names(struct spate_registry *registry)
{
    if (registry->name_count * 2 < registry->slot_count)
        return;
    free(registry->slots);
    registry->slot_count = registry->slot_count ? registry->slot_count * 2 : 64;
    registry->slots = spate_zalloc(registry->slot_count * sizeof *registry->slots);
    registry->names = spate_realloc(registry->names, registry->slot_count * sizeof *registry->names);
    for (size_t i = 0; i < registry->name_count; i++)
        *slot_of(registry, registry->names[i], strlen(registry->names[i])) = (uint32_t)i + 1;
}

static void keep_name(struct spate_registry *registry, const struct spate_head *head)
{
    struct spate_buf name = {0};
    uint32_t *slot;

    spate_buf_slice(&name, head->schema);
    spate_buf_putc(&name, '.');
    spate_buf_slice(&name, head->table);
    spate_buf_str(&name);
    grow_names(registry);
    slot = slot_of(registry, name.data, name.len);
    if (!*slot) {
        registry->names[registry->name_count++] = spate_strndup(name.data, name.len);
        *slot = (uint32_t)registry->name_count;
    }
    spate_buf_fini(&name);
}

/* A version that is published again (after a restart) moves to the end: the last one is the table's present.
 * Its struct stays the same, because others point at it. */
static void keep_table(struct spate_registry *registry, struct spate_table *table)
{
    for (size_t i = 0; i < registry->table_count; i++) {
        struct spate_table *old = registry->tables[i];
        if (old->v == table->v && spate_slice_eq(old->schema, table->schema) &&
            spate_slice_eq(old->name, table->name)) {
            memmove(&registry->tables[i], &registry->tables[i + 1],
                    (registry->table_count - i - 1) * sizeof *registry->tables);
            registry->tables[registry->table_count - 1] = old;
            spate_table_free(table);
            return;
        }
    }
    if (registry->table_count == registry->table_capacity) {
        registry->table_capacity = registry->table_capacity ? registry->table_capacity * 2 : 16;
        registry->tables =
            spate_realloc(registry->tables, registry->table_capacity * sizeof *registry->tables);
    }
    registry->tables[registry->table_count++] = table;
}

static enum spate_rc read_epoch(struct spate_registry *registry, struct spate_slice line,
                                struct spate_err *err)
{
    struct spate_epoch epoch;
    size_t len;

    if (spate_decode_epoch(line, &epoch, &registry->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (registry->has_epoch && epoch.epoch <= registry->epoch)
        return SPATE_OK;
    len = epoch.uuid.len < sizeof registry->uuid ? epoch.uuid.len : sizeof registry->uuid - 1;
    memcpy(registry->uuid, epoch.uuid.at, len);
    registry->uuid[len] = 0;
    registry->epoch = epoch.epoch;
    registry->has_epoch = true;
    return SPATE_OK;
}

/* What is no message of ours cannot be a schema that we miss: a version that is not found is told when a
 * change names it. */
static enum spate_rc foreign(struct spate_registry *registry, const struct spate_message *message,
                             struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT];

    spate_bus_pos_format(registry->driver, message->pos, at);
    if (err->verdict != SPATE_QUARANTINE) {
        err->exit_code = SPATE_EXIT_REFUSED;
        return spate_err_context(err, "at %s", at);
    }
    spate_err_context(err, "topic %s: a record at %s is passed by", registry->topic, at);
    spate_log_err(SPATE_LOG_WARN, "foreign-record", err);
    *err = (struct spate_err){0};
    return SPATE_OK;
}

static size_t find_gone(const struct spate_registry *registry, const char *name)
{
    size_t i = 0;

    while (i < registry->gone_count && strcmp(registry->gone[i], name) != 0)
        i++;
    return i;
}

static enum spate_rc read_storage(struct spate_registry *registry, struct spate_slice line,
                                  struct spate_err *err)
{
    struct spate_storage storage;
    struct spate_buf name = {0};
    size_t at;

    if (spate_decode_storage(line, &storage, &registry->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!registry->wanted(registry->arg, storage.schema, storage.table))
        return SPATE_OK;
    spate_buf_slice(&name, storage.schema);
    spate_buf_putc(&name, '.');
    spate_buf_slice(&name, storage.table);
    at = find_gone(registry, spate_buf_str(&name));
    if (storage.gone && at == registry->gone_count) {
        registry->gone = spate_realloc(registry->gone, (at + 1) * sizeof *registry->gone);
        registry->gone[registry->gone_count++] = spate_strdup(spate_buf_str(&name));
    } else if (!storage.gone && at < registry->gone_count) {
        free(registry->gone[at]);
        registry->gone[at] = registry->gone[--registry->gone_count];
    }
    spate_buf_fini(&name);
    return SPATE_OK;
}

bool spate_registry_gone(const struct spate_registry *registry, const char *schema, const char *table)
{
    struct spate_buf name = {0};
    bool gone;

    spate_buf_printf(&name, "%s.%s", schema, table);
    gone = find_gone(registry, spate_buf_str(&name)) < registry->gone_count;
    spate_buf_fini(&name);
    return gone;
}

static enum spate_rc read_message(struct spate_registry *registry, const struct spate_message *message,
                                  struct spate_err *err)
{
    struct spate_head head;
    struct spate_table *table;

    spate_arena_reset(&registry->arena);
    if (spate_decode_head(message->value, &head, &registry->arena, err) != SPATE_OK)
        return foreign(registry, message, err);
    if (head.op == SPATE_OP_EPOCH)
        return read_epoch(registry, message->value, err);
    if (head.op == SPATE_OP_STORAGE)
        return read_storage(registry, message->value, err);
    if (head.op != SPATE_OP_SCHEMA)
        return SPATE_OK;
    keep_name(registry, &head);
    if (!registry->wanted(registry->arg, head.schema, head.table))
        return SPATE_OK;
    if (spate_decode_schema(message->value, &table, &registry->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    keep_table(registry, table);
    return SPATE_OK;
}

enum spate_rc spate_registry_read(struct spate_registry *registry, struct spate_err *err)
{
    struct spate_message message;

    for (;;) {
        enum spate_rc rc = spate_reader_next(registry->reader, &message, err);

        if (rc == SPATE_AGAIN)
            return SPATE_OK;
        if (rc != SPATE_OK)
            return spate_err_context(err, "topic %s", registry->topic);
        if (message.kind == SPATE_MESSAGE_GAP) {
            err->exit_code = SPATE_EXIT_FENCED;
            return spate_fail(
                err, SPATE_FATAL,
                "topic %s has lost its beginning, and with it schemas that messages refer to: restore "
                "the bus' directory, or start the connector with --new-epoch",
                registry->topic);
        }
        if (read_message(registry, &message, err) != SPATE_OK) {
            /* A schema that cannot be read would make every message that uses it unreadable. */
            if (err->verdict == SPATE_QUARANTINE)
                err->verdict = SPATE_FATAL;
            return spate_err_context(err, "topic %s", registry->topic);
        }
    }
}

const struct spate_table *spate_registry_find(const struct spate_registry *registry,
                                              struct spate_slice schema, struct spate_slice table, uint32_t v)
{
    for (size_t i = registry->table_count; i-- > 0;) {
        const struct spate_table *t = registry->tables[i];
        if ((v == 0 || t->v == v) && spate_slice_eq(t->name, table) && spate_slice_eq(t->schema, schema))
            return t;
    }
    return NULL;
}

bool spate_registry_precedes(const struct spate_registry *registry, const struct spate_table *first,
                             const struct spate_table *second)
{
    for (size_t i = registry->table_count; i-- > 0;)
        if (registry->tables[i] == first || registry->tables[i] == second)
            return registry->tables[i] == second && first != second;
    return false;
}

void spate_registry_close(struct spate_registry *registry)
{
    spate_reader_close(registry->reader);
    for (size_t i = 0; i < registry->table_count; i++)
        spate_table_free(registry->tables[i]);
    for (size_t i = 0; i < registry->name_count; i++)
        free(registry->names[i]);
    for (size_t i = 0; i < registry->gone_count; i++)
        free(registry->gone[i]);
    free(registry->gone);
    free(registry->tables);
    free(registry->names);
    free(registry->slots);
    free(registry->topic);
    spate_arena_fini(&registry->arena);
    *registry = (struct spate_registry){0};
}
