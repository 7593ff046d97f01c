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
    const char *driver;
    struct spate_reader *reader;
    struct spate_arena arena;
    struct spate_head head; /* of the current record */
    struct spate_message message;
    unsigned foreign; /* records that are none of ours */
    bool second;      /* somebody has looked at them before, and told */
};

#define FOREIGN_TOLD 3

static const char *where(const struct pass *pass, char at[SPATE_BUS_POS_TEXT])
{
    spate_bus_pos_format(pass->driver, pass->message.pos, at);
    return at;
}

/* The next record's head. SPATE_AGAIN: the end of what is durable. Where anyone may write, a line may be none
 * of ours: it is passed by with a word, since it carries no number and so can hide none. */
static enum spate_rc step(struct pass *pass, struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT];

    for (;;) {
        enum spate_rc rc = spate_reader_next(pass->reader, &pass->message, err);

        if (rc != SPATE_OK)
            return rc;
        if (pass->message.kind == SPATE_MESSAGE_GAP)
            continue;
        spate_arena_reset(&pass->arena);
        if (spate_decode_head(pass->message.value, &pass->head, &pass->arena, err) == SPATE_OK)
            return SPATE_OK;
        if (err->verdict != SPATE_QUARANTINE)
            return spate_err_context(err, "reading the stream's tail at %s", where(pass, at));
        spate_err_context(err, "a record at %s in the stream's topic is passed by", where(pass, at));
        if (!pass->second && pass->foreign++ < FOREIGN_TOLD)
            spate_log_err(SPATE_LOG_WARN, "foreign-record", err);
        *err = (struct spate_err){0};
    }
}

/* What any record tells, accepted or not. */
static void note(struct spate_tail *tail, const struct spate_head *head, uint64_t epoch)
{
    tail->bus.stream_empty = false;
    if (head->epoch > tail->bus.stream_epoch)
        tail->bus.stream_epoch = head->epoch;
    if (head->epoch == epoch && head->has_pos && head->pos.commit_lsn > tail->bus.last_commit)
        tail->bus.last_commit = head->pos.commit_lsn;
}

/* What is known to be part of the stream reaches so far. */
static void reach(struct spate_tail *tail, const struct spate_head *head, uint64_t n)
{
    if (head->end > tail->bus.greatest_end)
        tail->bus.greatest_end = head->end;
    if (head->end && n > tail->bus.last_n)
        tail->bus.last_n = n;
}

/* ---- the anchor ---- */

/* What is decoded again from C is numbered from `first`: the n of the last change whose transaction is
 * confirmed. All of them stand on the bus, so it is the greatest n among the confirmed records, wherever they
 * are: a zombie's repetition of an older one may come after it (K15). Looking backwards, one knows that
 * nothing greater is hidden further back once a record was met that ends exactly at C, or the change after
 * `first`; and when C is not beyond the epoch's opening, at the beginning of the epoch. */
struct search {
    const struct spate_epoch *epoch;
    uint64_t confirmed;          /* C */
    bool found, proven, opening; /* opening: the epoch's own message was met */
    uint64_t first;
    /* The smallest n that is not confirmed, and its last record; 0: none was met. */
    uint64_t next_n;
    struct spate_pos next_pos;
    struct spate_bus_pos next_at;
    /* The last heartbeat that is not confirmed. */
    struct spate_head beat;
    struct spate_bus_pos beat_next;
};

static void anchor_here(struct search *search, struct spate_tail *tail, struct spate_rule *rule,
                        const struct pass *pass, uint64_t n)
{
    const struct spate_head *head = &pass->head;

    search->found = true;
    search->first = n;
    rule->last = n;
    rule->pos = head->has_pos ? head->pos : (struct spate_pos){head->end, 0};
    tail->from = pass->message.next;
}

/* The epoch's own message: before its first change. Of an opening that was repeated followers have taken the
 * first. */
static void meet_opening(struct search *search, struct spate_tail *tail, struct spate_rule *rule,
                         const struct pass *pass, bool first_of_piece)
{
    reach(tail, &pass->head, 0);
    search->opening = true;
    if (first_of_piece && (!search->found || search->first == 0))
        anchor_here(search, tail, rule, pass, 0);
}

/* A confirmed record: is its number the greatest? The rule is replayed from behind the last record with that
 * number. There a follower has accepted it, whichever of its repetitions it took; a place that is further on
 * would only make T lower, which is safe, one before a hole was healed would make it higher, which is not. */
static void meet_confirmed(struct search *search, struct spate_tail *tail, struct spate_rule *rule,
                           const struct pass *pass, bool nearer)
{
    const uint64_t n = pass->head.n;

    reach(tail, &pass->head, n);
    if (pass->head.end == search->confirmed)
        search->proven = true;
    if (!search->found || n > search->first || (n == search->first && nearer && !(n == 0 && search->opening)))
        anchor_here(search, tail, rule, pass, n);
}

static void meet_unconfirmed(struct search *search, const struct pass *pass, bool nearer)
{
    const uint64_t n = pass->head.n;

    if (search->next_n && (n > search->next_n || (n == search->next_n && !nearer)))
        return;
    search->next_n = n;
    search->next_pos = pass->head.pos;
    search->next_at = pass->message.pos;
}

/* One piece of the log, up to `before`. A record of it comes before all that was met already. */
static enum spate_rc search_piece(struct search *search, struct spate_tail *tail, struct spate_rule *rule,
                                  struct pass *pass, struct spate_bus_pos before, struct spate_err *err)
{
    const struct search later = *search;
    bool begins_older = false, begun = false, opened = false;
    enum spate_rc rc;

    while ((rc = step(pass, err)) == SPATE_OK && pass->message.pos.at < before.at) {
        const struct spate_head *head = &pass->head;

        note(tail, head, rule->epoch);
        begins_older = begun ? begins_older : head->epoch < rule->epoch;
        begun = true;
        if (head->epoch != rule->epoch)
            continue;
        if (head->op == SPATE_OP_EPOCH) {
            meet_opening(search, tail, rule, pass, !opened);
            opened = true;
        } else if (spate_rule_anchor(head, rule->epoch, search->confirmed)) {
            meet_confirmed(search, tail, rule, pass, !later.found || search->first > later.first);
        } else if (spate_op_counts(head->op)) {
            meet_unconfirmed(search, pass, !later.next_n || search->next_n < later.next_n);
        } else if (head->op == SPATE_OP_HEARTBEAT && !later.beat.end) {
            search->beat = (struct spate_head){.op = head->op, .n = head->n, .end = head->end};
            search->beat_next = pass->message.next;
        }
    }
    /* Nothing of this epoch is confirmed, and the piece reaches back to the epoch before. */
    if (opened && begins_older && search->confirmed <= search->epoch->end)
        search->proven = true;
    if (search->found && search->first > 0 && search->next_n == search->first + 1 &&
        tail->bus.greatest_end >= search->confirmed)
        search->proven = true;
    return rc == SPATE_FAIL ? rc : SPATE_OK;
}

/* Retention took everything at or below C; all that is left has been met. The change with the smallest number
 * says where to join: what committed before it was on the bus, and C is not beyond that. Its last record is
 * behind any hole that was healed. */
static void join_at_change(struct spate_tail *tail, struct spate_rule *rule, const struct pass *pass,
                           const struct search *search)
{
    char at[SPATE_BUS_POS_TEXT];

    tail->bus.greatest_end = search->confirmed;
    tail->has_align = true;
    tail->align = search->next_pos;
    tail->first = rule->last = search->next_n - 1;
    tail->from = search->next_at;
    spate_bus_pos_format(pass->driver, search->next_at, at);
    spate_log(SPATE_LOG_WARN, "anchor-removed",
              "at=%s lsn=%X/%X n=%" PRIu64
              " detail=\"retention removed what the slot has confirmed: changes before this one are taken as "
              "removed from the bus as well\"",
              at, LSN(search->next_pos.commit_lsn), search->next_n);
}

/* Only heartbeats are left. */
static void join_at_heartbeat(struct spate_tail *tail, struct spate_rule *rule, const struct search *search)
{
    reach(tail, &search->beat, search->beat.n);
    tail->first = rule->last = search->beat.n;
    rule->pos = (struct spate_pos){search->beat.end, 0};
    tail->skip_below = search->beat.end;
    tail->from = search->beat_next;
}

/* A log from which nothing was removed begins with an epoch's opening; one that does not was made anew. */
static enum spate_rc look_at_oldest(struct spate_tail *tail, struct pass *pass, struct spate_err *err)
{
    enum spate_rc rc = spate_reader_seek(pass->reader, (struct spate_start){.from = SPATE_START_OLDEST}, err);

    if (rc == SPATE_OK)
        rc = step(pass, err);
    tail->bus.remade = rc == SPATE_OK && pass->message.pos.at == 0 && pass->head.op != SPATE_OP_EPOCH;
    return rc;
}

/* The stream ends in another epoch than `_schemas`: the judge has a word for that, when looking further back
 * cannot change it. A zombie of the epoch before may have had the last word (K15). */
static bool is_of_another_epoch(const struct search *search, const struct spate_tail *tail, uint64_t epoch)
{
    if (tail->bus.stream_empty || search->found || tail->bus.stream_epoch == epoch)
        return false;
    return tail->bus.stream_epoch > epoch || search->confirmed <= search->epoch->end;
}

/* Pieces from the end towards the beginning, until the anchor is found and proven. */
static enum spate_rc find_anchor(struct spate_tail *tail, struct spate_rule *rule, struct pass *pass,
                                 const struct spate_epoch *epoch, uint64_t confirmed, struct spate_err *err)
{
    struct search search = {.epoch = epoch, .confirmed = confirmed};
    struct spate_bus_pos before = spate_reader_end(pass->reader), start;

    tail->bus.stream_empty = true;
    while (!search.proven) {
        enum spate_rc rc = spate_reader_back(pass->reader, before, &start, err);

        if (rc == SPATE_FAIL)
            return rc;
        if (rc == SPATE_END)
            break;
        if (search_piece(&search, tail, rule, pass, before, err))
            return SPATE_FAIL;
        if (is_of_another_epoch(&search, tail, rule->epoch))
            return SPATE_OK;
        before = start;
    }
    if (tail->bus.stream_empty || tail->bus.stream_epoch != rule->epoch)
        return SPATE_OK;
    if (!search.proven && !search.opening && look_at_oldest(tail, pass, err))
        return SPATE_FAIL;
    if (!search.found && search.next_n) {
        join_at_change(tail, rule, pass, &search);
        return SPATE_OK;
    }
    if (!search.found && search.beat.end) {
        join_at_heartbeat(tail, rule, &search);
        return SPATE_OK;
    }
    /* The greatest of what is left may not be the greatest there was. */
    tail->bus.undecided = !search.proven && !search.opening;
    tail->first = search.first;
    /* A Postgres crash may take C below an epoch's opening: those transactions belong to before it (P15). */
    tail->skip_below = epoch->end;
    return SPATE_OK;
}

static enum spate_rc replay(struct spate_tail *tail, struct spate_rule *rule, struct pass *pass,
                            struct spate_err *err)
{
    char at[SPATE_BUS_POS_TEXT];
    enum spate_rc rc;

    if (spate_reader_seek(pass->reader, (struct spate_start){SPATE_START_AT, tail->from}, err))
        return SPATE_FAIL;
    while ((rc = step(pass, err)) == SPATE_OK) {
        const struct spate_head *head = &pass->head;
        enum spate_ruling ruling = spate_rule_feed(rule, head);

        note(tail, head, rule->epoch);
        /* Nothing that follows a hole has been reached: a change counts when it is accepted, what stands
         * between transactions when it does not claim more than was accepted. */
        if (ruling == SPATE_ACCEPT || (ruling == SPATE_DROP && head->epoch == rule->epoch &&
                                       !spate_op_counts(head->op) && head->op != SPATE_OP_EPOCH))
            reach(tail, head, head->n);
        if (ruling != SPATE_DIVERGED)
            continue;
        err->exit_code = SPATE_EXIT_FENCED;
        err->lsn = pass->head.pos.commit_lsn;
        return spate_fail(err, SPATE_FATAL,
                          "the stream contradicts itself at %s: number %" PRIu64
                          " stands there with a place in the source's log that does not fit number %" PRIu64
                          ". Two writers with different histories wrote to it. Nothing was confirmed or "
                          "published; go on with: spate connector -c FILE --new-epoch",
                          where(pass, at), pass->head.n, rule->last);
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
    struct pass pass = {.driver = bus->ops->name};
    enum spate_rc rc;

    *tail = (struct spate_tail){0};
    rc = spate_bus_reader_open(bus, topic, SPATE_SEE_DURABLE, (struct spate_start){.from = SPATE_START_NOW},
                               &pass.reader, err);
    if (rc == SPATE_OK)
        rc = find_anchor(tail, &rule, &pass, &newest->epoch, confirmed, err);
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
    *recheck = (struct spate_recheck){.driver = bus->ops->name, .epoch = epoch, .last = tail->last};
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
    struct pass pass = {
        .driver = recheck->driver, .reader = recheck->reader, .arena = recheck->arena, .second = true};
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
        "accepted: spate connector -c FILE --new-epoch " SPATE_AFTER_NEW_EPOCH,
        change->n, spate_op_name(change->op), change->xid, LSN(change->pos.commit_lsn), change->pos.ordinal,
        SPATE_SLICE_ARG(pass.head.op_name), meta.xid, LSN(pass.head.pos.commit_lsn), pass.head.pos.ordinal);
}
