/* The messages that are not changes: heartbeat, stale, epoch, schema, storage. */

#include "schemas/class.h"
#include "schemas/codec.h"
#include "schemas/encode.h"
#include "schemas/json.h"

static void put_begin(struct spate_buf *out, enum spate_op op)
{
    SPATE_JSON_ADD(out, "{\"spate\":1,\"op\":\"");
    spate_buf_puts(out, spate_op_name(op));
    spate_buf_putc(out, '"');
}

static void put_table(struct spate_buf *out, struct spate_slice schema, struct spate_slice table)
{
    SPATE_JSON_ADD(out, ",\"schema\":");
    spate_json_put_name(out, schema);
    SPATE_JSON_ADD(out, ",\"table\":");
    spate_json_put_name(out, table);
}

static void put_end(struct spate_buf *out, uint64_t end)
{
    SPATE_JSON_ADD(out, ",\"end\":");
    spate_encode_lsn(out, end);
}

/* Begins a message that stands between transactions. */
static void put_between(struct spate_buf *out, enum spate_op op, uint64_t at, uint64_t epoch)
{
    put_begin(out, op);
    SPATE_JSON_ADD(out, ",\"at\":");
    spate_json_put_u64(out, at);
    SPATE_JSON_ADD(out, ",\"epoch\":");
    spate_json_put_u64(out, epoch);
}

static void put_at(struct spate_buf *out, enum spate_op op, uint64_t at, uint64_t epoch, uint64_t end)
{
    put_between(out, op, at, epoch);
    put_end(out, end);
}

void spate_encode_stale(struct spate_buf *out, const struct spate_stale *stale)
{
    put_between(out, SPATE_OP_STALE, stale->at, stale->epoch);
    put_table(out, stale->schema, stale->table);
    put_end(out, stale->end);
    spate_encode_ts(out, stale->wall_us, stale->source);
    SPATE_JSON_ADD(out, ",\"v\":");
    spate_json_put_u64(out, stale->v);
    SPATE_JSON_ADD(out, ",\"why\":");
    spate_json_put_name(out, stale->why);
    if (stale->column_count > 0)
        SPATE_JSON_ADD(out, ",\"columns\":[");
    for (size_t i = 0; i < stale->column_count; i++) {
        if (i > 0)
            spate_buf_putc(out, ',');
        spate_json_put_name(out, stale->columns[i]);
    }
    spate_buf_puts(out, stale->column_count > 0 ? "]}" : "}");
}

void spate_encode_storage(struct spate_buf *out, const struct spate_storage *storage)
{
    put_begin(out, SPATE_OP_STORAGE);
    SPATE_JSON_ADD(out, ",\"epoch\":");
    spate_json_put_u64(out, storage->epoch);
    put_table(out, storage->schema, storage->table);
    put_end(out, storage->end);
    spate_encode_ts(out, storage->wall_us, storage->source);
    spate_buf_puts(out, storage->gone ? ",\"gone\":true" : ",\"gone\":false");
    SPATE_JSON_ADD(out, ",\"state\":");
    spate_json_put_name(out, storage->state);
    spate_buf_putc(out, '}');
}

void spate_encode_heartbeat(struct spate_buf *out, const struct spate_heartbeat *heartbeat)
{
    put_at(out, SPATE_OP_HEARTBEAT, heartbeat->at, heartbeat->epoch, heartbeat->end);
    spate_encode_ts(out, heartbeat->wall_us, heartbeat->source);
    spate_buf_putc(out, '}');
}

void spate_encode_epoch(struct spate_buf *out, const struct spate_epoch *epoch)
{
    const struct spate_source_identity *identity = &epoch->identity;

    put_at(out, SPATE_OP_EPOCH, epoch->at, epoch->epoch, epoch->end);
    spate_encode_ts(out, epoch->wall_us, epoch->source);
    SPATE_JSON_ADD(out, ",\"uuid\":");
    spate_json_put_name(out, epoch->uuid);
    SPATE_JSON_ADD(out, ",\"why\":");
    spate_json_put_name(out, epoch->why);
    SPATE_JSON_ADD(out, ",\"identity\":{\"system\":");
    spate_json_put_name(out, identity->system);
    SPATE_JSON_ADD(out, ",\"timeline\":");
    spate_json_put_u64(out, identity->timeline);
    SPATE_JSON_ADD(out, ",\"database\":");
    spate_json_put_name(out, identity->database);
    SPATE_JSON_ADD(out, ",\"database_oid\":");
    spate_json_put_u64(out, identity->database_oid);
    SPATE_JSON_ADD(out, ",\"slot\":");
    spate_json_put_name(out, identity->slot);
    SPATE_JSON_ADD(out, ",\"publication\":");
    spate_json_put_name(out, identity->publication);
    switch (epoch->previous) {
    case SPATE_PREVIOUS_NONE:
        SPATE_JSON_ADD(out, "},\"previous\":null,\"follower\":\"start\"}");
        break;
    case SPATE_PREVIOUS_BROKEN:
        SPATE_JSON_ADD(out, "},\"previous\":\"broken\",\"follower\":\"snapshot\"}");
        break;
    case SPATE_PREVIOUS_CONTINUES:
        SPATE_JSON_ADD(out, "},\"previous\":{\"epoch\":");
        spate_json_put_u64(out, epoch->previous_epoch);
        SPATE_JSON_ADD(out, ",\"n\":");
        spate_json_put_u64(out, epoch->previous_n);
        SPATE_JSON_ADD(out, "},\"follower\":\"continue\"}");
        break;
    }
}

static void put_column(struct spate_buf *out, const struct spate_column *column)
{
    spate_buf_puts(out, "{\"name\":");
    spate_buf_add(out, column->json_name.at, column->json_name.len - 1); /* no colon */
    SPATE_JSON_ADD(out, ",\"type\":");
    spate_json_put_name(out, column->type);
    SPATE_JSON_ADD(out, ",\"oid\":");
    spate_json_put_u64(out, column->oid);
    SPATE_JSON_ADD(out, ",\"mod\":");
    spate_json_put_i32(out, column->mod);
    SPATE_JSON_ADD(out, ",\"len\":");
    spate_json_put_i32(out, column->len);
    spate_buf_puts(out, column->identity ? ",\"identity\":true" : ",\"identity\":false");
    if (column->base.len != 0) {
        SPATE_JSON_ADD(out, ",\"base\":");
        spate_json_put_name(out, column->base);
    }
    if (column->mask.len != 0) {
        SPATE_JSON_ADD(out, ",\"mask\":");
        spate_json_put_name(out, column->mask);
    }
    /* A reader finds the class by oid and base; it is said only where that would mislead it. */
    if (column->json_class != spate_class_by(column->oid, column->base)) {
        SPATE_JSON_ADD(out, ",\"class\":\"");
        spate_buf_puts(out, spate_class_name(column->json_class));
        spate_buf_putc(out, '"');
    }
    spate_buf_putc(out, '}');
}

void spate_encode_schema(struct spate_buf *out, const struct spate_table *table, struct spate_slice source,
                         int64_t wall_us)
{
    SPATE_JSON_ADD(out, "{\"spate\":1,\"op\":\"schema\",\"schema\":");
    spate_buf_slice(out, table->json_schema);
    SPATE_JSON_ADD(out, ",\"table\":");
    spate_buf_slice(out, table->json_name);
    spate_encode_ts(out, wall_us, source);
    SPATE_JSON_ADD(out, ",\"v\":");
    spate_json_put_u64(out, table->v);
    SPATE_JSON_ADD(out, ",\"fingerprint\":");
    spate_buf_putc(out, '"');
    for (int shift = 60; shift >= 0; shift -= 4)
        spate_buf_putc(out, "0123456789abcdef"[table->fingerprint >> shift & 15]);
    SPATE_JSON_ADD(out, "\",\"identity\":\"");
    spate_buf_puts(out, spate_identity_name(table->identity));
    SPATE_JSON_ADD(out, "\",\"key\":");
    for (size_t i = 0; i < table->key_count; i++) {
        const struct spate_column *column = &table->columns[table->key[i]];

        spate_buf_putc(out, i == 0 ? '[' : ',');
        spate_buf_add(out, column->json_name.at, column->json_name.len - 1);
    }
    spate_buf_puts(out, table->key_count == 0 ? "null" : "]");
    SPATE_JSON_ADD(out, ",\"columns\":[");
    for (size_t i = 0; i < table->column_count; i++) {
        if (i > 0)
            spate_buf_putc(out, ',');
        put_column(out, &table->columns[i]);
    }
    SPATE_JSON_ADD(out, "]}");
}
