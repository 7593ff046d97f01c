/* connector/recovery.c - backwards to the anchor, forwards by the rule, then in step with the decoder. */
#include "connector/recovery.h"

#include "connector/lsn.h"
#include "core/log.h"

#include <inttypes.h>

enum spate_ruling spate_rule_feed(struct spate_rule *rule, const struct spate_head *head)
{
    if (head->epoch < rule->epoch)
        return SPATE_DROP; /* a zombie of an older epoch */
    if (!spate_op_counts(head->op))
        return head->n > rule->last ? SPATE_IGNORE : SPATE_DROP; /* `at` beyond us is a hole, too */
    if (head->n == rule->last + 1 && spate_pos_cmp(head->pos, rule->pos) > 0) {
        rule->last = head->n;
        rule->pos = head->pos;
        return SPATE_ACCEPT;
    }
    if (head->n <= rule->last && spate_pos_cmp(head->pos, rule->pos) <= 0)
        return SPATE_DROP;
    return head->n > rule->last + 1 ? SPATE_IGNORE : SPATE_DIVERGED;
}

bool spate_rule_anchor(const struct spate_head *head, uint64_t epoch, uint64_t confirmed)
{
    if (head->epoch != epoch)
        return false;
    if (spate_op_counts(head->op))
        return head->pos.commit_lsn < confirmed;
    if (head->op == SPATE_OP_HEARTBEAT)
        return head->end <= confirmed;
    return head->op == SPATE_OP_EPOCH;
}

/* One pass over a stretch of the log. */
struct pass {
    struct spate_reader *reader;
    struct spate_arena arena;
    struct spate_head head; /* of the current record */
    struct spate_message message;
};

/* The next record's head. SPATE_AGAIN: the end of what is durable. A line that is no message of ours cannot
 * stand in a topic that only connectors write. */
static enum spate_rc step(struct pass *pass, struct spate_err *err)
{
    for (;;) {
        enum spate_rc rc = spate_reader_next(pass->reader, &pass->message, err);

        if (rc != SPATE_OK)
            return rc;
        if (pass->message.kind == SPATE_MESSAGE_GAP)
            continue;
        spate_arena_reset(&pass->arena);
        if (spate_decode_head(pass->message.value, &pass->head, &pass->arena, err)) {
            err->verdict = SPATE_FATAL;
            return spate_err_context(err, "reading the stream's tail at bus position %016" PRIx64,
                                     pass->message.pos.at);
        }
        return SPATE_OK;
    }
}

static void note_end(struct spate_tail *tail, const struct spate_head *head, uint64_t epoch)
{
    if (head->epoch > tail->bus.stream_epoch)
        tail->bus.stream_epoch = head->epoch;
    if (head->epoch != epoch)
        return;
    if (head->end >= tail->bus.greatest_end && head->end) {
        tail->bus.greatest_end = head->end;
        tail->bus.last_n = head->op == SPATE_OP_EPOCH ? 0 : head->n;
    }
    if (head->has_pos && head->pos.commit_lsn > tail->bus.last_commit)
        tail->bus.last_commit = head->pos.commit_lsn;
}

/* Makes a record the place after which the rule is replayed. */
static void set_anchor(struct spate_tail *tail, struct spate_rule *rule, const struct pass *pass)
{
    const struct spate_head *head = &pass->head;

    rule->pos = head->has_pos ? head->pos : (struct spate_pos){0, 0};
    rule->last = head->op == SPATE_OP_EPOCH ? 0 : head->n;
    tail->first = rule->last;
    tail->from = pass->message.next;
    tail->has_align = false;
    /* A Postgres crash may take C below an epoch's opening: those transactions belong to before it (P15). */
    tail->skip_below = head->op == SPATE_OP_EPOCH ? head->end : 0;
}

/* Retention took everything at or below C. The oldest record that is left says where to join. */
static enum spate_rc join_at_oldest(struct spate_tail *tail, struct spate_rule *rule, struct pass *pass,
                                    struct spate_err *err)
{
    enum spate_rc rc;

    do {
        rc = step(pass, err);
        if (rc != SPATE_OK)
            return rc;
    } while (pass->head.epoch != rule->epoch);
    if (!spate_op_counts(pass->head.op)) {
        set_anchor(tail, rule, pass);
        tail->skip_below = pass->head.end;
        return SPATE_OK;
    }
    tail->has_align = true;
    tail->align = pass->head.pos;
    tail->first = rule->last = pass->head.n - 1;
    rule->pos = (struct spate_pos){0, 0};
    tail->from = pass->message.pos;
    return SPATE_OK;
}

/* Pieces from the end towards the beginning; the last anchor of the first piece that has one. */
static enum spate_rc find_anchor(struct spate_tail *tail, struct spate_rule *rule, struct pass *pass,
                                 uint64_t confirmed, struct spate_err *err)
{
    struct spate_bus_pos before = spate_reader_end(pass->reader), start;
    bool found = false;

    tail->bus.stream_empty = true;
    while (!found) {
        enum spate_rc rc = spate_reader_back(pass->reader, before, &start, err);

        if (rc == SPATE_FAIL)
            return rc;
        if (rc == SPATE_END)
            break;
        while ((rc = step(pass, err)) == SPATE_OK && pass->message.pos.at < before.at) {
            tail->bus.stream_empty = false;
            note_end(tail, &pass->head, rule->epoch);
            if (spate_rule_anchor(&pass->head, rule->epoch, confirmed)) {
                set_anchor(tail, rule, pass);
                found = true;
            }
        }
        if (rc == SPATE_FAIL)
            return rc;
        /* The stream ends in another epoch: the judge has a word for it. A piece without a record says
         * nothing: a writer that is killed in a segment's first publish leaves only padding there. */
        if (!found && !tail->bus.stream_empty && tail->bus.stream_epoch != rule->epoch)
            return SPATE_OK;
        before = start;
    }
    if (found || tail->bus.stream_empty)
        return SPATE_OK;
    if (spate_reader_seek(pass->reader, (struct spate_start){.from = SPATE_START_OLDEST}, err))
        return SPATE_FAIL;
    return join_at_oldest(tail, rule, pass, err);
}

static enum spate_rc replay(struct spate_tail *tail, struct spate_rule *rule, struct pass *pass,
                            struct spate_err *err)
{
    enum spate_rc rc;

    if (spate_reader_seek(pass->reader, (struct spate_start){SPATE_START_AT, tail->from}, err))
        return SPATE_FAIL;
    while ((rc = step(pass, err)) == SPATE_OK) {
        note_end(tail, &pass->head, rule->epoch);
        if (spate_rule_feed(rule, &pass->head) != SPATE_DIVERGED)
            continue;
        err->exit_code = SPATE_EXIT_FENCED;
        err->lsn = pass->head.pos.commit_lsn;
        return spate_fail(err, SPATE_FATAL,
                          "the stream contradicts itself at bus position %016" PRIx64 ": number %" PRIu64
                          " stands there with a place in the source's log that does not fit number %" PRIu64
                          ". Two writers with different histories wrote to it. Nothing was confirmed or "
                          "published; go on with: spate connector -c FILE --new-epoch",
                          pass->message.pos.at, pass->head.n, rule->last);
    }
    if (rc == SPATE_FAIL)
        return rc;
    tail->last = rule->last;
    tail->last_commit = rule->pos.commit_lsn;
    return SPATE_OK;
}

enum spate_rc spate_recovery_tail(struct spate_bus *bus, const char *topic,
                                  const struct spate_epoch_record *newest, uint64_t confirmed,
                                  struct spate_tail *tail, struct spate_err *err)
{
    struct spate_rule rule = {.epoch = newest->present ? newest->epoch.epoch : 0};
    struct pass pass = {0};
    enum spate_rc rc;

    *tail = (struct spate_tail){0};
    rc = spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_NOW},
                               &pass.reader, err);
    if (rc == SPATE_OK)
        rc = find_anchor(tail, &rule, &pass, confirmed, err);
    if (rc == SPATE_OK && tail->bus.stream_epoch == rule.epoch && !tail->bus.stream_empty)
        rc = replay(tail, &rule, &pass, err);
    else if (rc == SPATE_AGAIN)
        rc = spate_fail(err, SPATE_RETRY, "topic %s ended while its tail was read", topic);
    spate_reader_close(pass.reader);
    spate_arena_fini(&pass.arena);
    return rc;
}

enum spate_rc spate_recheck_open(struct spate_recheck *recheck, struct spate_bus *bus, const char *topic,
                                 uint64_t epoch, const struct spate_tail *tail, struct spate_err *err)
{
    spate_recheck_close(recheck);
    *recheck = (struct spate_recheck){.epoch = epoch, .last = tail->last};
    if (tail->first == tail->last)
        return SPATE_OK;
    return spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE,
                                 (struct spate_start){SPATE_START_AT, tail->from}, &recheck->reader, err);
}

void spate_recheck_close(struct spate_recheck *recheck)
{
    spate_reader_close(recheck->reader);
    recheck->reader = NULL;
    spate_arena_fini(&recheck->arena);
    recheck->arena = (struct spate_arena){0};
}

/* Positions the pass at the record that was accepted under this number. Duplicates and holes before it were
 * seen by the rule already: of several records with one number the first is the accepted one, and after a
 * hole the one that healed it. */
static enum spate_rc seek_number(struct pass *pass, const struct spate_recheck *recheck, uint64_t n,
                                 struct spate_err *err)
{
    enum spate_rc rc;

    do
        rc = step(pass, err);
    while (rc == SPATE_OK &&
           !(spate_op_counts(pass->head.op) && pass->head.epoch == recheck->epoch && pass->head.n == n));
    return rc;
}

enum spate_rc spate_recheck_change(struct spate_recheck *recheck, const struct spate_change *change,
                                   struct spate_err *err)
{
    struct pass pass = {.reader = recheck->reader, .arena = recheck->arena};
    struct spate_meta meta = {0};
    enum spate_rc rc = seek_number(&pass, recheck, change->n, err);

    if (rc == SPATE_OK)
        rc = spate_decode_meta(pass.message.value, &pass.head, &meta, &pass.arena, err);
    recheck->arena = pass.arena;
    if (rc == SPATE_AGAIN)
        return spate_fail(err, SPATE_RETRY, "number %" PRIu64 " was on the bus and is no longer found there",
                          change->n);
    if (rc != SPATE_OK)
        return rc;
    if (spate_pos_cmp(pass.head.pos, change->pos) == 0 && meta.xid == change->xid &&
        meta.ts_us == change->commit_us && pass.head.end == change->end && pass.head.op == change->op) {
        if (change->n == recheck->last)
            spate_recheck_close(recheck);
        return SPATE_OK;
    }
    err->exit_code = SPATE_EXIT_FENCED;
    err->lsn = change->pos.commit_lsn;
    return spate_fail(
        err, SPATE_FATAL,
        "what the source sends again is not what the bus holds: number %" PRIu64
        " is a %s of transaction %" PRIu32 " committed at %X/%X (change %" PRIu32
        ") on the source, and a %.*s of transaction %" PRIu32 " committed at %X/%X (change %" PRIu32
        ") on the bus. The source was restored to another history, or another publication "
        "numbered its changes. Nothing more was confirmed or published. When the loss is "
        "accepted: spate connector -c FILE --new-epoch (every sink then stops as stale and is reloaded: "
        "docs/operating.md)",
        change->n, spate_op_name(change->op), change->xid, LSN(change->pos.commit_lsn), change->pos.ordinal,
        SPATE_SLICE_ARG(pass.head.op_name), meta.xid, LSN(pass.head.pos.commit_lsn), pass.head.pos.ordinal);
}
