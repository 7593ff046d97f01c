/* connector/emit.c - snapshot messages into the stream: always between two transactions, a chunk in one
 * piece. */
#include "connector/woven.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/failpoint.h"
#include "core/log.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static struct spate_addressed head_of(const struct spate_stream *stream, const struct spate_asked *asked)
{
    return (struct spate_addressed){
        .at = stream->tx.next_n - 1,
        .epoch = stream->tx.epoch,
        .to = spate_slice_str(asked->sink),
        .request = spate_slice_str(asked->id),
        .wall_us = spate_clock_wall_us(),
        .source = stream->tx.source,
    };
}

/* Room for one more line. */
static enum spate_rc make_room(struct spate_stream *stream, struct spate_err *err)
{
    return spate_publisher_full(&stream->publisher) ? spate_publisher_flush(&stream->publisher, err)
                                                    : SPATE_OK;
}

/* A line that stands alone. */
static enum spate_rc put_line(struct spate_weave *weave, struct spate_stream *stream, struct spate_err *err)
{
    return spate_publisher_line(&stream->publisher, spate_buf_view(&weave->emit.line),
                                (struct spate_slice){0}, spate_clock_wall_us(), err);
}

static struct spate_named_table *names_of(const struct spate_asked *asked)
{
    struct spate_named_table *tables = spate_alloc((asked->count + 1) * sizeof *tables);

    for (size_t i = 0; i < asked->count; i++)
        tables[i] = (struct spate_named_table){.schema = asked->tables[i].plan->table->schema,
                                               .table = asked->tables[i].plan->table->name,
                                               .chunks = asked->tables[i].no,
                                               .resume = spate_slice_str(asked->tables[i].token)};
    return tables;
}

enum spate_rc spate_emit_begin(struct spate_weave *weave, struct spate_stream *stream,
                               struct spate_asked *asked, struct spate_err *err)
{
    struct spate_snapshot_begin begin = {.head = head_of(stream, asked), .count = asked->count};
    struct spate_named_table *tables;
    uint64_t end = stream->ledger.published > stream->floor ? stream->ledger.published : stream->floor;
    enum spate_rc rc = make_room(stream, err);

    if (rc != SPATE_OK)
        return rc;
    tables = names_of(asked);
    begin.tables = tables;
    begin.end = end > stream->ledger.confirmed ? end : stream->ledger.confirmed;
    spate_buf_reset(&weave->emit.line);
    spate_encode_snapshot_begin(&weave->emit.line, &begin);
    free(tables);
    rc = put_line(weave, stream, err);
    SPATE_FAILPOINT(connector_snapshot_begun);
    return rc;
}

enum spate_rc spate_emit_ranges_end(struct spate_weave *weave, struct spate_stream *stream,
                                    struct spate_asked *asked, struct spate_err *err)
{
    struct spate_ranges_end end = {.head = head_of(stream, asked), .count = asked->count};
    struct spate_named_table *tables;
    enum spate_rc rc = make_room(stream, err);

    if (rc != SPATE_OK)
        return rc;
    tables = names_of(asked);
    end.tables = tables;
    spate_buf_reset(&weave->emit.line);
    spate_encode_ranges_end(&weave->emit.line, &end);
    free(tables);
    rc = put_line(weave, stream, err);
    SPATE_FAILPOINT(connector_ranges_end);
    return rc;
}

/* ---- a chunk ---- */

static struct spate_chunk describe(const struct spate_weave *weave, const struct spate_stream *stream,
                                   const struct spate_slot *slot)
{
    return (struct spate_chunk){
        .head = head_of(stream, slot->asked),
        .table = slot->table->version,
        .chunk = {.by = weave->by, .no = slot->table->no + 1},
        .by_keys = slot->by_keys,
        .from = slot->from,
        .to = slot->by_keys ? 0 : slot->job->reached,
        .since = spate_slice_str(slot->by_keys ? "" : slot->table->token),
        .keys = slot->by_keys ? spate_buf_view(&slot->keys_json) : spate_slice_str("[]"),
    };
}

static void add_dropped(struct spate_buf *out, struct spate_slice key)
{
    spate_buf_putc(out, out->len ? ',' : '[');
    spate_buf_slice(out, key);
}

/* The key as the row's own line has it: ,"key":{...},"after": - found without parsing the row. */
static enum spate_rc dropped_row(struct spate_buf *out, const struct spate_slot *slot,
                                 const struct spate_chunk_row *row, struct spate_err *err)
{
    const struct spate_table *table = slot->table->version;
    struct spate_value *key = spate_zalloc((table->key_count + 1) * sizeof *key);
    const char *at = slot->job->keys_text.data + row->key_at;
    struct spate_buf json = {0};
    enum spate_rc rc;

    for (size_t k = 0; k < table->key_count; k++) {
        uint32_t len;

        memcpy(&len, at, sizeof len);
        key[k] = (struct spate_value){.kind = SPATE_VALUE_TEXT, .text = spate_slice(at + sizeof len, len)};
        at += sizeof len + len;
    }
    rc = spate_encode_key_values(&json, table, key, err);
    if (rc == SPATE_OK)
        add_dropped(out, spate_buf_view(&json));
    spate_buf_fini(&json);
    free(key);
    return rc;
}

/* Keys that were asked for and touched: nothing is said of them here. */
static enum spate_rc dropped_keys(struct spate_weave *weave, struct spate_buf *out,
                                  const struct spate_slot *slot, const struct spate_touched *touched,
                                  struct spate_err *err)
{
    const struct spate_table *table = slot->table->version;
    struct spate_value *values = spate_zalloc((table->column_count + 1) * sizeof *values);
    struct spate_buf json = {0};
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; rc == SPATE_OK && i < slot->key_count; i++) {
        const struct spate_value *key = slot->keys + i * table->key_count;

        for (size_t k = 0; k < table->key_count; k++)
            values[table->key[k]] = key[k];
        spate_buf_reset(&weave->key);
        spate_hidden_key(&weave->key, table, values);
        if (!spate_touched_has(touched, spate_buf_view(&weave->key)))
            continue;
        spate_buf_reset(&json);
        rc = spate_encode_key_values(&json, table, key, err);
        if (rc == SPATE_OK)
            add_dropped(out, spate_buf_view(&json));
    }
    spate_buf_fini(&json);
    free(values);
    return rc;
}

/* SPATE_END: none can be told to be, any row may have been touched. Else which rows are true here: those that
 * nothing touched which the snapshot missed and the stream has said. Taken once, at the place where the chunk
 * begins; nothing is delivered before it ends. */
static enum spate_rc choose_rows(struct spate_weave *weave, const struct spate_slot *slot,
                                 struct spate_buf *dropped, struct spate_err *err)
{
    const struct spate_job *job = slot->job;
    struct spate_touched touched = {0};
    enum spate_rc rc = SPATE_OK;

    if (job->row_count > weave->emit.drop_cap) {
        weave->emit.drop_cap = job->row_count;
        weave->emit.drop = spate_realloc(weave->emit.drop, weave->emit.drop_cap * sizeof *weave->emit.drop);
    }
    spate_hidden_touched(weave->hidden, &job->snapshot, slot->table->watch, &touched);
    if (touched.all) {
        spate_touched_fini(&touched);
        return SPATE_END;
    }
    weave->emit.count = 0;
    for (size_t i = 0; rc == SPATE_OK && i < job->row_count; i++) {
        const struct spate_chunk_row *row = &job->rows[i];

        weave->emit.drop[i] =
            touched.count && row->key_len &&
            spate_touched_has(&touched, spate_slice(job->keys_text.data + row->key_at, row->key_len));
        if (!weave->emit.drop[i])
            weave->emit.count++;
        else if (!slot->by_keys)
            rc = dropped_row(dropped, slot, row, err);
        weave->counts.dropped += weave->emit.drop[i];
    }
    if (rc == SPATE_OK && slot->by_keys && touched.count)
        rc = dropped_keys(weave, dropped, slot, &touched, err);
    spate_touched_fini(&touched);
    spate_buf_puts(dropped, dropped->len ? "]" : "[]");
    return rc;
}

static enum spate_rc open_chunk(struct spate_weave *weave, struct spate_stream *stream,
                                struct spate_slot *slot, struct spate_err *err)
{
    struct spate_chunk chunk = describe(weave, stream, slot);
    struct spate_buf dropped = {0};
    enum spate_rc rc = make_room(stream, err);

    if (rc != SPATE_OK)
        return rc;
    rc = choose_rows(weave, slot, &dropped, err);
    if (rc == SPATE_OK) {
        chunk.dropped = spate_buf_view(&dropped);
        spate_buf_reset(&weave->emit.line);
        spate_encode_chunk(&weave->emit.line, &chunk);
        spate_buf_reset(&weave->emit.head);
        spate_encode_read_head(&weave->emit.head, &chunk);
        rc = put_line(weave, stream, err);
    }
    spate_buf_fini(&dropped);
    if (rc == SPATE_OK) {
        weave->emit.slot = slot;
        weave->emit.row = 0;
        weave->emit.wall_us = chunk.head.wall_us;
        weave->emit.headed = true;
    }
    SPATE_FAILPOINT(connector_chunk_begun);
    return rc;
}

static enum spate_rc put_rows(struct spate_weave *weave, struct spate_stream *stream,
                              const struct spate_job *job, struct spate_err *err)
{
    for (; weave->emit.row < job->row_count; weave->emit.row++) {
        const struct spate_chunk_row *row = &job->rows[weave->emit.row];
        enum spate_rc rc;

        if (weave->emit.drop[weave->emit.row])
            continue;
        rc = make_room(stream, err);
        if (rc == SPATE_OK)
            rc = spate_publisher_line(&stream->publisher, spate_buf_view(&weave->emit.head),
                                      spate_slice(job->lines.data + row->at, row->len), weave->emit.wall_us,
                                      err);
        if (rc != SPATE_OK)
            return rc;
        if (weave->emit.row == 0)
            SPATE_FAILPOINT(connector_chunk_half);
    }
    return SPATE_OK;
}

/* What stands in the stream once the chunk is complete. */
static void moved(struct spate_weave *weave, const struct spate_slot *slot)
{
    struct spate_asked_table *table = slot->table;

    table->no++;
    table->rows += weave->emit.count;
    slot->asked->rows += weave->emit.count;
    weave->counts.chunks++;
    weave->counts.rows += weave->emit.count;
    if (slot->reread)
        return;
    if (slot->by_keys || slot->job->reached >= table->ends[slot->leaf]) {
        table->sent_leaf = slot->by_keys ? table->plan->leaf_count : slot->leaf + 1;
        table->sent_next = 0;
    } else {
        table->sent_leaf = slot->leaf;
        table->sent_next = slot->job->reached;
    }
    table->sent = table->sent_leaf == table->plan->leaf_count;
}

static enum spate_rc close_chunk(struct spate_weave *weave, struct spate_stream *stream,
                                 struct spate_slot *slot, struct spate_err *err)
{
    struct spate_chunk_end end = {.head = head_of(stream, slot->asked),
                                  .table = slot->table->version,
                                  .chunk = {.by = weave->by, .no = slot->table->no + 1},
                                  .count = weave->emit.count};
    struct spate_buf token = {0};
    enum spate_rc rc = make_room(stream, err);

    if (rc != SPATE_OK)
        return rc;
    moved(weave, slot);
    /* An answer to keys says nothing of where the ranges go on: no requester takes its token. */
    if (!slot->by_keys) {
        spate_token_write(slot->table, &token);
        free(slot->table->token);
        slot->table->token = spate_strndup(token.data, token.len);
    }
    end.resume = spate_slice_str(slot->table->token);
    spate_buf_reset(&weave->emit.line);
    spate_encode_chunk_end(&weave->emit.line, &end);
    spate_buf_fini(&token);
    weave->emit.slot = NULL;
    weave->emit.headed = false;
    rc = put_line(weave, stream, err);
    SPATE_FAILPOINT(connector_chunk_end);
    return rc;
}

enum spate_rc spate_emit_chunk(struct spate_weave *weave, struct spate_stream *stream,
                               struct spate_slot *slot, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (!weave->emit.headed) {
        rc = open_chunk(weave, stream, slot, err);
    }
    if (rc == SPATE_OK)
        rc = put_rows(weave, stream, slot->job, err);
    return rc == SPATE_OK ? close_chunk(weave, stream, slot, err) : rc;
}
