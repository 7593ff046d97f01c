#include "sinks/place.h"

static enum spate_judgement judge_change(const struct spate_follower *f, const struct spate_head *head)
{
    int order = spate_pos_cmp(head->pos, f->last.pos);

    if (!head->has_pos)
        return SPATE_JUDGE_DIVERGED;
    if (head->n > f->last.n + 1)
        return SPATE_JUDGE_HOLE;
    /* The place is compared as well as the number: if the log lost confirmed records and numbering began
     * lower, the number alone would drop new data as duplicates (docs/hazards.md). */
    if (head->n <= f->last.n)
        return order <= 0 ? SPATE_JUDGE_DUPLICATE : SPATE_JUDGE_DIVERGED;
    if (order <= 0)
        return SPATE_JUDGE_DIVERGED;
    /* A transaction that is open goes on with its own commit LSN, or it never ended. */
    if (spate_follower_open(f) && head->pos.commit_lsn != f->last.pos.commit_lsn)
        return SPATE_JUDGE_DIVERGED;
    return SPATE_JUDGE_TAKE;
}

enum spate_judgement spate_follower_judge(const struct spate_follower *f, const struct spate_head *head)
{
    if (head->op == SPATE_OP_UNKNOWN || head->op == SPATE_OP_SCHEMA || head->op == SPATE_OP_STORAGE ||
        head->op == SPATE_OP_NONE)
        return SPATE_JUDGE_UNKNOWN;
    if (head->op == SPATE_OP_EPOCH)
        return SPATE_JUDGE_EPOCH;
    if (head->epoch < f->last.epoch)
        return SPATE_JUDGE_OLD_EPOCH;
    if (head->epoch > f->last.epoch)
        return SPATE_JUDGE_HOLE; /* its epoch message comes before it, and has not been met */
    if (spate_op_counts(head->op))
        return judge_change(f, head);
    if (head->n > f->last.n)
        return SPATE_JUDGE_HOLE;
    if (head->n < f->last.n)
        return SPATE_JUDGE_DUPLICATE;
    /* It stands between transactions by definition; inside one of ours it tells of another history. */
    return spate_follower_open(f) ? SPATE_JUDGE_DIVERGED : SPATE_JUDGE_PASS;
}

enum spate_judgement spate_follower_judge_epoch(const struct spate_follower *f,
                                                const struct spate_epoch *epoch)
{
    if (epoch->epoch < f->last.epoch)
        return SPATE_JUDGE_OLD_EPOCH;
    if (epoch->epoch == f->last.epoch)
        return spate_slice_is(epoch->uuid, f->uuid) ? SPATE_JUDGE_DUPLICATE : SPATE_JUDGE_DIVERGED;
    if (epoch->previous == SPATE_PREVIOUS_CONTINUES && epoch->previous_epoch == f->last.epoch &&
        epoch->previous_n == f->complete.n)
        return SPATE_JUDGE_ENTER;
    return SPATE_JUDGE_STALE;
}

bool spate_follower_take(struct spate_follower *f, const struct spate_head *head)
{
    f->last.n = head->n;
    f->last.pos = head->pos;
    if (head->end == 0)
        return false;
    f->complete = f->last;
    return true;
}

void spate_follower_enter(struct spate_follower *f, const struct spate_epoch *epoch)
{
    size_t len = epoch->uuid.len < sizeof f->uuid ? epoch->uuid.len : sizeof f->uuid - 1;

    f->last = (struct spate_place){.epoch = epoch->epoch, .n = 0, .pos = {epoch->end, 0}};
    f->complete = f->last;
    memcpy(f->uuid, epoch->uuid.at, len);
    f->uuid[len] = 0;
}

bool spate_follower_begin(struct spate_follower *f, const struct spate_head *head)
{
    if (head->op == SPATE_OP_HEARTBEAT || head->op == SPATE_OP_SNAPSHOT_BEGIN || head->op == SPATE_OP_STALE)
        f->last.pos = (struct spate_pos){head->end, 0};
    else if (spate_op_counts(head->op) && head->has_pos && head->end != 0)
        f->last.pos = head->pos;
    else
        return false;
    f->last.epoch = head->epoch;
    f->last.n = head->n;
    f->complete = f->last;
    return true;
}

bool spate_place_matches(const struct spate_place *place, const struct spate_head *head)
{
    if (head->epoch != place->epoch)
        return false;
    if (head->op == SPATE_OP_EPOCH)
        return place->n == 0;
    if (head->n != place->n)
        return false;
    if (spate_op_counts(head->op))
        return head->has_pos && spate_pos_cmp(head->pos, place->pos) == 0;
    return true;
}
