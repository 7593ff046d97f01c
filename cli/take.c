/* cli/take.c - the acceptance rule and the rule for chunks, put together for a reader that prints. */
#include "cli/take.h"

#include "core/alloc.h"
#include "schemas/field.h"

#include <stdlib.h>
#include <string.h>

void spate_take_init(struct spate_take *take, const char *to, const char *request)
{
    *take = (struct spate_take){.to = to, .request = request, .changes = true};
}

void spate_take_add(struct spate_take *take, struct spate_slice schema, struct spate_slice table)
{
    take->tables = spate_realloc(take->tables, (take->table_count + 1) * sizeof *take->tables);
    take->tables[take->table_count++] = (struct spate_take_table){
        .schema = spate_strndup(schema.at, schema.len), .name = spate_strndup(table.at, table.len)};
}

static void forget(struct spate_take_table *table)
{
    free(table->schema);
    free(table->name);
    free(table->resume);
    spate_keys_clear(&table->again);
}

void spate_take_fini(struct spate_take *take)
{
    for (size_t i = 0; i < take->table_count; i++)
        forget(&take->tables[i]);
    free(take->tables);
    spate_buf_fini(&take->held);
    spate_buf_fini(&take->keys);
    spate_buf_fini(&take->dropped_keys);
    spate_arena_fini(&take->arena);
}

static struct spate_take_table *find(const struct spate_take *take, struct spate_slice schema,
                                     struct spate_slice table)
{
    for (size_t i = 0; i < take->table_count; i++)
        if (spate_slice_is(table, take->tables[i].name) && spate_slice_is(schema, take->tables[i].schema))
            return &take->tables[i];
    return NULL;
}

static void print(struct spate_take *take, struct spate_buf *out, struct spate_slice line)
{
    spate_buf_slice(out, line);
    spate_buf_putc(out, '\n');
    if (out != &take->held)
        take->count++;
}

/* --- chunks --------------------------------------------------------------------------------------------- */

static void open_chunk(struct spate_take *take, const struct spate_chunk *chunk)
{
    struct spate_take_table *table = find(take, chunk->schema, chunk->name);

    take->in = NULL;
    if (!table || chunk->chunk.no <= table->taken)
        return; /* a repetition, or a table that we did not ask for */
    /* A range goes on where the last one ended, or begins the table anew: chunks of two writers, or from
     * before and after a request that was sent again, need not end at the same page. */
    if (chunk->chunk.no > table->taken + 1 ||
        (!chunk->by_keys && chunk->since.len > 0 &&
         (!table->resume || !spate_slice_is(chunk->since, table->resume)))) {
        take->lost = true;
        return;
    }
    take->in = table;
    take->chunk = chunk->chunk;
    take->reads = 0;
    take->by_keys = chunk->by_keys;
    spate_buf_trim(&take->held, 1 << 20);
    spate_buf_reset(&take->keys);
    spate_buf_reset(&take->dropped_keys);
    if (chunk->by_keys) {
        spate_buf_slice(&take->keys, chunk->keys);
        spate_buf_slice(&take->dropped_keys, chunk->dropped);
    }
}

static bool of_open_chunk(const struct spate_take *take, struct spate_slice schema, struct spate_slice name,
                          struct spate_chunk_name chunk)
{
    return take->in && chunk.by == take->chunk.by && chunk.no == take->chunk.no &&
           take->in == find(take, schema, name);
}

static enum spate_rc read_row(struct spate_take *take, struct spate_slice line, const struct spate_head *head,
                              struct spate_err *err)
{
    struct spate_chunk_name chunk;
    struct spate_meta meta;
    struct spate_slice after;

    if (!take->in)
        return SPATE_OK;
    if (spate_decode_meta(line, head, &meta, &take->arena, err) != SPATE_OK ||
        spate_decode_chunk_name(line, &meta, &chunk, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!of_open_chunk(take, head->schema, head->table, chunk))
        return SPATE_OK; /* another writer's (F46) */
    take->reads++;
    if (!take->rows)
        print(take, &take->held, line);
    else if (spate_field_find(line, meta.rest, "after", &after))
        print(take, &take->held, after);
    return SPATE_OK;
}

static void keep_key(void *arg, struct spate_slice key)
{
    struct spate_take *take = arg;

    if (spate_keys_add(&take->in->again, key))
        take->dropped = true;
}

static void drop_key(void *arg, struct spate_slice key)
{
    struct spate_take *take = arg;

    spate_keys_remove(&take->in->again, key);
}

static void end_chunk(struct spate_take *take, const struct spate_chunk_end *end, struct spate_buf *out)
{
    struct spate_take_table *table = take->in;

    if (!of_open_chunk(take, end->schema, end->name, end->chunk))
        return;
    if (end->count != take->reads) {
        take->in = NULL;
        take->lost = true;
        return;
    }
    spate_buf_slice(out, spate_buf_view(&take->held));
    take->count += take->reads;
    table->taken = take->chunk.no;
    take->chunks++;
    if (!take->by_keys) {    /* keys that were read again do not move a range on */
        take->ended = false; /* behind the end: the table begins anew (TRUNCATE, a rewrite) */
        free(table->resume);
        table->resume = end->resume.len ? spate_strndup(end->resume.at, end->resume.len) : NULL;
    } else {
        spate_field_elements(spate_buf_view(&take->keys), drop_key, take);
        spate_field_elements(spate_buf_view(&take->dropped_keys), keep_key, take);
        take->reread = true;
    }
    take->in = NULL;
}

/* The end of our chunks, and not of another writer's that were cut differently: their number and the last
 * token say so. Keys that were read since raise the number. */
static bool ends_here(const struct spate_take_table *table, const struct spate_named_table *end)
{
    return table->taken >= end->chunks && spate_slice_is(end->resume, table->resume ? table->resume : "");
}

static void end_ranges(struct spate_take *take, const struct spate_ranges_end *end)
{
    size_t complete = 0;

    for (size_t i = 0; i < end->count; i++) {
        const struct spate_take_table *table = find(take, end->tables[i].schema, end->tables[i].table);

        complete += table && ends_here(table, &end->tables[i]);
    }
    if (complete == take->table_count)
        take->ended = true;
    else if (!take->ended)
        take->lost = true;
}

static enum spate_rc addressed(struct spate_take *take, struct spate_slice line,
                               const struct spate_head *head, struct spate_buf *out, struct spate_err *err)
{
    union {
        struct spate_chunk chunk;
        struct spate_chunk_end end;
        struct spate_ranges_end ranges;
    } got;

    if (!take->begun) { /* its begin did not reach us: what it left out is not known to be in our changes */
        take->lost = true;
        return SPATE_OK;
    }
    switch (head->op) {
    case SPATE_OP_CHUNK:
        if (spate_decode_chunk(line, &got.chunk, &take->arena, err) != SPATE_OK)
            return SPATE_FAIL;
        open_chunk(take, &got.chunk);
        break;
    case SPATE_OP_READ:
        return read_row(take, line, head, err);
    case SPATE_OP_CHUNK_END:
        if (spate_decode_chunk_end(line, &got.end, &take->arena, err) != SPATE_OK)
            return SPATE_FAIL;
        end_chunk(take, &got.end, out);
        break;
    case SPATE_OP_RANGES_END:
        if (spate_decode_ranges_end(line, &got.ranges, &take->arena, err) != SPATE_OK)
            return SPATE_FAIL;
        end_ranges(take, &got.ranges);
        break;
    default:
        break;
    }
    return SPATE_OK;
}

/* --- changes -------------------------------------------------------------------------------------------- */

static enum spate_rc truncated(struct spate_take *take, struct spate_slice line,
                               const struct spate_head *head, struct spate_buf *out, struct spate_err *err)
{
    struct spate_truncation truncation;
    struct spate_meta meta;
    bool ours = false;

    if (spate_decode_meta(line, head, &meta, &take->arena, err) != SPATE_OK ||
        spate_decode_truncate(line, &meta, &truncation, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    for (size_t i = 0; i < truncation.count; i++) {
        struct spate_take_table *table = find(take, truncation.tables[i].schema, truncation.tables[i].table);

        if (!table)
            continue;
        ours = true;
        spate_keys_clear(&table->again);
    }
    take->truncated += ours;
    if (ours && take->changes)
        print(take, out, line);
    return SPATE_OK;
}

static enum spate_rc change(struct spate_take *take, struct spate_slice line, const struct spate_head *head,
                            struct spate_buf *out, struct spate_err *err)
{
    struct spate_take_table *table = find(take, head->schema, head->table);
    struct spate_slice key, unchanged;
    struct spate_meta meta;
    bool partial;

    if (!table)
        return SPATE_OK;
    if (spate_decode_meta(line, head, &meta, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (!spate_field_find(line, meta.rest, "key", &key) ||
        !spate_field_find(line, meta.rest, "unchanged", &unchanged))
        return spate_fail(err, SPATE_FATAL, "change n=%llu is damaged: it has no key, or no unchanged",
                          (unsigned long long)head->n);
    partial = head->op == SPATE_OP_UPDATE && !spate_slice_is(unchanged, "[]");
    if (take->changes)
        print(take, out, line);
    /* Behind ranges-end whoever keeps the lines has every row, or its key is on the list already. */
    if (take->ended || spate_slice_is(key, "null"))
        return SPATE_OK;
    if (head->op == SPATE_OP_DELETE)
        spate_keys_remove(&table->again, key);
    else if (partial || !take->changes)
        spate_keys_add(&table->again, key);
    return SPATE_OK;
}

/* --- records -------------------------------------------------------------------------------------------- */

static bool ours(const struct spate_take *take, const struct spate_head *head)
{
    return spate_slice_is(head->request, take->request) && spate_slice_is(head->to, take->to);
}

/* Tables that came from a pattern and cannot be read are not among those that are. */
static void leave_out(struct spate_take *take, const struct spate_snapshot_begin *begin)
{
    size_t kept = 0;

    for (size_t i = 0; i < take->table_count; i++) {
        bool there = false;

        for (size_t j = 0; j < begin->count && !there; j++)
            there = spate_slice_is(begin->tables[j].table, take->tables[i].name) &&
                    spate_slice_is(begin->tables[j].schema, take->tables[i].schema);
        if (!there)
            forget(&take->tables[i]);
        else
            take->tables[kept++] = take->tables[i];
    }
    take->table_count = kept;
}

/* We begin at our own snapshot-begin: everything up to its `end` is on the bus before it. */
static enum spate_rc begin(struct spate_take *take, struct spate_slice line, const struct spate_head *head,
                           struct spate_err *err)
{
    struct spate_snapshot_begin begin;

    if (spate_decode_snapshot_begin(line, &begin, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    leave_out(take, &begin);
    if (!take->placed) {
        take->follower.last = (struct spate_place){.epoch = head->epoch, .n = head->n, .pos = {head->end, 0}};
        take->follower.complete = take->follower.last;
    }
    take->placed = take->begun = true;
    return SPATE_OK;
}

/* The begin of a flow of our request. Its chunks leave out what was touched behind it: whoever has begun
 * behind that place has not heard all of it, and needs a flow of its own. It happens where two writers wrote
 * (K15): a paused one's begin stands in the stream before that of the one that took over, which goes on
 * further back. */
static enum spate_rc flow(struct spate_take *take, struct spate_slice line, const struct spate_head *head,
                          enum spate_judgement judgement, struct spate_err *err)
{
    if (!take->begun && (!take->placed || judgement == SPATE_JUDGE_PASS))
        return begin(take, line, head, err);
    if (judgement == SPATE_JUDGE_DUPLICATE || (!take->begun && judgement == SPATE_JUDGE_HOLE))
        take->renew = true;
    return SPATE_OK;
}

void spate_take_renew(struct spate_take *take)
{
    for (size_t i = 0; i < take->table_count; i++) {
        struct spate_take_table *table = &take->tables[i];

        table->taken = 0;
        free(table->resume);
        table->resume = NULL;
        spate_keys_clear(&table->again);
    }
    take->in = NULL;
    take->begun = take->ended = take->lost = take->renew = false;
}

static enum spate_rc broken(struct spate_err *err, const char *what)
{
    err->exit_code = SPATE_EXIT_FENCED;
    return spate_fail(err, SPATE_FATAL,
                      "%s: what was printed is not the whole picture, and cannot become it. Ask again; the "
                      "connector's log says what happened",
                      what);
}

static enum spate_rc epoch(struct spate_take *take, struct spate_slice line, struct spate_err *err)
{
    struct spate_epoch next;

    if (spate_decode_epoch(line, &next, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    if (next.epoch == take->follower.last.epoch && !take->follower.uuid[0])
        return SPATE_OK; /* we began inside this one */
    switch (spate_follower_judge_epoch(&take->follower, &next)) {
    case SPATE_JUDGE_ENTER:
        spate_follower_enter(&take->follower, &next);
        take->lost = take->lost || take->in;
        take->in = NULL;
        return SPATE_OK;
    case SPATE_JUDGE_STALE:
        return broken(err, "a new epoch began, and changes were lost before it");
    case SPATE_JUDGE_DIVERGED:
        return broken(err, "the stream is another one now");
    default:
        return SPATE_OK;
    }
}

static enum spate_rc taken(struct spate_take *take, struct spate_slice line, const struct spate_head *head,
                           struct spate_buf *out, struct spate_err *err)
{
    take->hole = false;
    if (take->in) { /* true at its anchor alone: what is left of it must not be taken */
        take->in = NULL;
        take->lost = true;
    }
    spate_follower_take(&take->follower, head);
    if (head->op == SPATE_OP_TRUNCATE)
        return truncated(take, line, head, out, err);
    if (head->op == SPATE_OP_MESSAGE)
        return SPATE_OK;
    return change(take, line, head, out, err);
}

static enum spate_rc judge(struct spate_take *take, struct spate_slice line, struct spate_buf *out,
                           struct spate_err *err)
{
    enum spate_judgement judgement;
    struct spate_head head;
    bool begins;

    if (spate_decode_head(line, &head, &take->arena, err) != SPATE_OK)
        return SPATE_FAIL;
    begins = head.op == SPATE_OP_SNAPSHOT_BEGIN && ours(take, &head);
    if (!take->placed && !begins)
        return SPATE_OK;
    judgement = spate_follower_judge(&take->follower, &head);
    if (begins && flow(take, line, &head, judgement, err) != SPATE_OK)
        return SPATE_FAIL;
    switch (begins ? spate_follower_judge(&take->follower, &head) : judgement) {
    case SPATE_JUDGE_TAKE:
        return taken(take, line, &head, out, err);
    case SPATE_JUDGE_PASS:
        take->hole = false;
        return ours(take, &head) && !begins ? addressed(take, line, &head, out, err) : SPATE_OK;
    case SPATE_JUDGE_EPOCH:
        return epoch(take, line, err);
    case SPATE_JUDGE_HOLE:
        take->hole = true;
        return SPATE_OK;
    case SPATE_JUDGE_DIVERGED:
        return broken(err, "the stream contradicts itself");
    default:
        return SPATE_OK;
    }
}

enum spate_rc spate_take_line(struct spate_take *take, struct spate_slice line, struct spate_buf *out,
                              struct spate_err *err)
{
    enum spate_rc rc;

    spate_arena_reset(&take->arena);
    rc = judge(take, line, out, err);
    /* A record that is none of ours, or damaged: if it was a change, its number is missing and shows as a
     * hole; if it was part of a chunk, the chunk's count does not fit. */
    if (rc == SPATE_OK || err->verdict != SPATE_QUARANTINE)
        return rc;
    *err = (struct spate_err){0};
    take->foreign++;
    return SPATE_OK;
}

bool spate_take_done(const struct spate_take *take)
{
    return take->ended && !spate_take_again(take);
}

struct spate_take_table *spate_take_again(const struct spate_take *take)
{
    for (size_t i = 0; i < take->table_count; i++)
        if (take->tables[i].again.count > 0)
            return &take->tables[i];
    return NULL;
}

size_t spate_take_held(const struct spate_take *take)
{
    size_t bytes = 0;

    for (size_t i = 0; i < take->table_count; i++)
        bytes += take->tables[i].again.bytes + take->tables[i].again.capacity * sizeof(char *);
    return bytes;
}
