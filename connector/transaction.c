/* connector/transaction.c - numbering, and the one change of look-ahead. */
#include "connector/transaction.h"

#include "connector/lsn.h"
#include "core/alloc.h"

#include <inttypes.h>
#include <libpq-fe.h>
#include <stdlib.h>

void spate_transaction_start(struct spate_transaction *tx, struct spate_slice source, uint64_t epoch,
                             uint64_t first)
{
    spate_transaction_release(tx);
    tx->open = false;
    tx->source = source;
    tx->epoch = epoch;
    tx->next_n = first + 1;
    tx->skip_below = 0;
    tx->has_align = false;
}

void spate_transaction_fini(struct spate_transaction *tx)
{
    spate_transaction_release(tx);
    free(tx->before);
    free(tx->after);
    free(tx->raw);
    free(tx->digests);
    free((void *)tx->tables);
    *tx = (struct spate_transaction){0};
}

void spate_transaction_release(struct spate_transaction *tx)
{
    PQfreemem(tx->buffer);
    tx->buffer = NULL;
    tx->holding = false;
}

enum spate_rc spate_transaction_begin(struct spate_transaction *tx, const struct spate_pgoutput *msg,
                                      struct spate_err *err)
{
    if (tx->open) {
        err->lsn = msg->begin.commit_lsn;
        return spate_fail(err, SPATE_FATAL,
                          "the source began transaction %" PRIu32 " inside transaction %" PRIu32
                          ", where a Commit was expected",
                          msg->begin.xid, tx->xid);
    }
    tx->open = true;
    tx->commit_lsn = msg->begin.commit_lsn;
    tx->commit_us = msg->begin.commit_us;
    tx->xid = msg->begin.xid;
    tx->ordinal = 0;
    tx->passed_by = tx->commit_lsn < tx->skip_below;
    return SPATE_OK;
}

enum spate_rc spate_transaction_commit(struct spate_transaction *tx, const struct spate_pgoutput *msg,
                                       struct spate_err *err)
{
    err->lsn = msg->commit.commit_lsn;
    if (!tx->open)
        return spate_fail(err, SPATE_FATAL, "the source committed at %X/%X without a Begin",
                          LSN(msg->commit.commit_lsn));
    if (msg->commit.commit_lsn != tx->commit_lsn || msg->commit.end_lsn <= msg->commit.commit_lsn)
        return spate_fail(err, SPATE_FATAL,
                          "the source committed transaction %" PRIu32 " at %X/%X (end %X/%X), and its Begin "
                          "said %X/%X",
                          tx->xid, LSN(msg->commit.commit_lsn), LSN(msg->commit.end_lsn),
                          LSN(tx->commit_lsn));
    err->lsn = 0;
    tx->open = false;
    return SPATE_OK;
}

static void need_columns(struct spate_transaction *tx, size_t columns)
{
    if (columns <= tx->columns)
        return;
    tx->columns = columns < 32 ? 32 : columns;
    tx->before = spate_realloc(tx->before, tx->columns * sizeof *tx->before);
    tx->after = spate_realloc(tx->after, tx->columns * sizeof *tx->after);
    tx->raw = spate_realloc(tx->raw, tx->columns * sizeof *tx->raw);
}

/* For both rows of one change. */
static char *need_digests(struct spate_transaction *tx, const struct spate_cover *cover)
{
    size_t room = spate_cover_plain(cover) ? 0 : 2 * cover->hashed * SPATE_DIGEST;

    if (room > tx->digest_room) {
        tx->digest_room = room;
        tx->digests = spate_realloc(tx->digests, room);
    }
    return tx->digests;
}

static enum spate_rc no_relation(const struct spate_transaction *tx, uint32_t oid, struct spate_err *err)
{
    err->lsn = tx->commit_lsn;
    return spate_fail(err, SPATE_FATAL,
                      "the source sent a change of the table with OID %" PRIu32 " in the transaction that "
                      "commits at %X/%X, and never described that table (a Relation message was expected)",
                      oid, LSN(tx->commit_lsn));
}

static enum spate_rc misfit(const struct spate_transaction *tx, const struct spate_table *table,
                            const struct spate_pgoutput_tuple *tuple, struct spate_err *err)
{
    err->lsn = tx->commit_lsn;
    return spate_fail(err, SPATE_FATAL,
                      "a row of %.*s.%.*s has %u columns, and the table was described with %zu, in the "
                      "transaction that commits at %X/%X",
                      SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name), tuple->count,
                      table->column_count, LSN(tx->commit_lsn));
}

/* One row, as messages may have it. From here on nobody knows what the source sent. */
static void take_values(struct spate_transaction *tx, const struct spate_relation *relation,
                        const struct spate_pgoutput_tuple *tuple, struct spate_value *out, char **digests)
{
    bool plain = spate_cover_plain(relation->cover);
    const struct spate_table *sent = plain ? relation->table : relation->cover->raw;
    struct spate_value *values = plain ? out : tx->raw;

    spate_pgoutput_values(tuple, values);
    /* An old key has NULL where a column is not part of it: not sent, which is not NULL (P41). */
    for (size_t i = 0; !tuple->whole && i < sent->column_count; i++)
        if (!sent->columns[i].identity)
            values[i].kind = SPATE_VALUE_ABSENT;
    if (!plain)
        spate_cover_values(relation->cover, values, tuple->whole, out, digests);
}

static enum spate_rc take_row(struct spate_transaction *tx, const struct spate_relations *relations,
                              const struct spate_pgoutput *msg, struct spate_err *err)
{
    const struct spate_pgoutput_tuple *old = &msg->change.old, *new = &msg->change.new;
    const struct spate_relation *relation = spate_relations_at(relations, msg->change.oid);
    struct spate_change *held = &tx->held;
    const struct spate_table *table, *sent;
    char *digests;

    if (!relation)
        return no_relation(tx, msg->change.oid, err);
    table = relation->table;
    sent = spate_cover_plain(relation->cover) ? table : relation->cover->raw;
    need_columns(tx, sent->column_count);
    digests = need_digests(tx, relation->cover);
    held->table = table;
    held->before_full = old->present && old->whole;
    if (old->present) {
        if (old->count != sent->column_count)
            return misfit(tx, sent, old, err);
        take_values(tx, relation, old, tx->before, &digests);
        held->before = tx->before;
    }
    if (new->present) {
        if (new->count != sent->column_count)
            return misfit(tx, sent, new, err);
        take_values(tx, relation, new, tx->after, &digests);
        held->after = tx->after;
        /* Under FULL the old row supplies what did not change (P44). */
        for (size_t i = 0; held->before_full && i < table->column_count; i++)
            if (tx->after[i].kind == SPATE_VALUE_ABSENT)
                tx->after[i] = tx->before[i];
    }
    return SPATE_OK;
}

static enum spate_rc take_truncate(struct spate_transaction *tx, const struct spate_relations *relations,
                                   const struct spate_pgoutput *msg, struct spate_err *err)
{
    struct spate_slice at = msg->truncate.at;

    if (msg->truncate.count > tx->table_cap) {
        tx->table_cap = msg->truncate.count;
        tx->tables = spate_realloc((void *)tx->tables, tx->table_cap * sizeof(void *));
    }
    for (uint32_t i = 0; i < msg->truncate.count; i++) {
        uint32_t oid = spate_pgoutput_oid(&at);

        tx->tables[i] = spate_relations_find(relations, oid);
        if (!tx->tables[i])
            return no_relation(tx, oid, err);
    }
    tx->held.tables = tx->tables;
    tx->held.table_count = msg->truncate.count;
    tx->held.cascade = msg->truncate.cascade;
    tx->held.restart = msg->truncate.restart;
    return SPATE_OK;
}

static enum spate_op op_of(enum spate_pgoutput_kind kind)
{
    switch (kind) {
    case SPATE_PGOUTPUT_INSERT:
        return SPATE_OP_INSERT;
    case SPATE_PGOUTPUT_UPDATE:
        return SPATE_OP_UPDATE;
    case SPATE_PGOUTPUT_DELETE:
        return SPATE_OP_DELETE;
    case SPATE_PGOUTPUT_TRUNCATE:
        return SPATE_OP_TRUNCATE;
    default:
        return SPATE_OP_MESSAGE;
    }
}

/* Retention took what stood before `align` on the bus; the source sends it again all the same. */
static enum spate_rc aligned(struct spate_transaction *tx, struct spate_pos pos, bool *pass_by,
                             struct spate_err *err)
{
    int order = spate_pos_cmp(pos, tx->align);

    *pass_by = order < 0;
    if (order <= 0) {
        tx->has_align = order < 0;
        return SPATE_OK;
    }
    err->exit_code = SPATE_EXIT_FENCED;
    err->lsn = pos.commit_lsn;
    return spate_fail(
        err, SPATE_FATAL,
        "the oldest change that the bus still holds (commit %X/%X, change %" PRIu32
        ") does not come again from the source, which is at %X/%X already: the source's history is "
        "another one. Nothing was confirmed; go on with: spate connector -c FILE --new-epoch",
        LSN(tx->align.commit_lsn), tx->align.ordinal, LSN(pos.commit_lsn));
}

enum spate_rc spate_transaction_change(struct spate_transaction *tx, const struct spate_relations *relations,
                                       const struct spate_pgoutput *msg, char *buffer, bool *taken,
                                       struct spate_err *err)
{
    bool pass_by = tx->passed_by;
    enum spate_rc rc = SPATE_OK;

    *taken = false;
    if (!tx->open)
        return spate_fail(err, SPATE_FATAL, "the source sent a change (pgoutput '%c') outside a transaction",
                          (char)msg->kind);
    tx->ordinal++;
    if (!pass_by && tx->has_align) {
        struct spate_pos pos = {tx->commit_lsn, tx->ordinal};

        if (aligned(tx, pos, &pass_by, err))
            return SPATE_FAIL;
    }
    if (pass_by)
        return SPATE_OK;
    tx->held = (struct spate_change){
        .op = op_of(msg->kind),
        .n = tx->next_n,
        .epoch = tx->epoch,
        .pos = {tx->commit_lsn, tx->ordinal},
        .xid = tx->xid,
        .commit_us = tx->commit_us,
        .source = tx->source,
    };
    if (msg->kind == SPATE_PGOUTPUT_TRUNCATE) {
        rc = take_truncate(tx, relations, msg, err);
    } else if (msg->kind == SPATE_PGOUTPUT_MESSAGE) {
        tx->held.prefix = msg->message.prefix;
        tx->held.content = msg->message.content;
    } else {
        rc = take_row(tx, relations, msg, err);
    }
    if (rc != SPATE_OK)
        return rc;
    tx->next_n++;
    tx->holding = *taken = true;
    tx->buffer = buffer;
    return SPATE_OK;
}
