/* connector/survey_judge.c - two surveys, and what happened between them that no message carried. */
#include "connector/survey.h"

#include "core/alloc.h"

#include <stdlib.h>
#include <string.h>

#define TYPE_TEXT    25
#define TYPE_VARCHAR 1043

struct judge {
    const struct spate_survey *known, *now;
    const struct spate_survey_rules *rules;
    void (*tell)(void *arg, const struct spate_survey_finding *finding);
    void *arg;
    bool differs, other_publication;
    const char **columns; /* of the table that is judged; as many as it has at most */
    size_t column_count, column_cap;
    const struct spate_survey_table **named; /* all of now, by name */
};

static void find(struct judge *judge, enum spate_survey_news news, const struct spate_survey_table *table,
                 const char *why, const struct spate_survey_table *other)
{
    const struct spate_survey_finding finding = {.news = news,
                                                 .table = table,
                                                 .why = why,
                                                 .other = other,
                                                 .columns = judge->columns,
                                                 .column_count =
                                                     strcmp(why, "columns") == 0 ? judge->column_count : 0};

    judge->differs = true;
    judge->tell(judge->arg, &finding);
}

/* ---- names ---- */

static int names_cmp(const struct spate_survey_table *one, const struct spate_survey_table *other)
{
    int order = strcmp(one->schema, other->schema);

    return order ? order : strcmp(one->name, other->name);
}

static int by_name(const void *a, const void *b)
{
    return names_cmp(*(const struct spate_survey_table *const *)a,
                     *(const struct spate_survey_table *const *)b);
}

static const struct spate_survey_table **sorted_by_name(const struct spate_survey *survey)
{
    const struct spate_survey_table **named = spate_alloc((survey->count + 1) * sizeof(void *));

    for (size_t i = 0; i < survey->count; i++)
        named[i] = &survey->tables[i];
    qsort(named, survey->count, sizeof *named, by_name);
    return named;
}

static bool is_named(const struct spate_survey_table **named, size_t count,
                     const struct spate_survey_table *table)
{
    return bsearch(&table, named, count, sizeof *named, by_name) != NULL;
}

/* ---- one table that was known ---- */

/* Xids as the snapshot of now counts them; what is older than four billion transactions is taken for newer,
 * once in as many. */
static uint64_t whole_xid(const struct spate_survey *now, uint32_t xid)
{
    uint64_t whole = (now->next & ~UINT64_C(0xffffffff)) | xid;

    return whole >= now->next && whole > UINT32_MAX ? whole - (UINT64_C(1) << 32) : whole;
}

static bool truncated(const struct judge *judge, const struct spate_survey_table *table,
                      const struct spate_survey_leaf *leaf)
{
    for (size_t i = 0; i < judge->rules->truncate_count; i++) {
        const struct spate_survey_truncate *truncate = &judge->rules->truncates[i];

        if (truncate->xid == leaf->xmin && (truncate->oid == leaf->oid || truncate->oid == table->oid))
            return true;
    }
    return false;
}

/* Files that nothing in the stream explains, and partitions that came or went with rows. */
struct files {
    bool rewritten, partitions, differ;
};

static struct files compare_files(const struct judge *judge, const struct spate_survey_table *known,
                                  const struct spate_survey_table *now)
{
    const struct spate_survey_leaf *old = judge->known->leaves + known->first,
                                   *new = judge->now->leaves + now->first;
    struct files files = {0};
    size_t o = 0, n = 0;

    while (o < known->leaf_count || n < now->leaf_count) {
        if (n == now->leaf_count || (o < known->leaf_count && old[o].oid < new[n].oid)) {
            files.partitions = files.differ = true; /* detached or dropped */
            o++;
        } else if (o == known->leaf_count || new[n].oid < old[o].oid) {
            files.differ = true;
            /* Made as a partition and empty then; a file of its own making, or a TRUNCATE's. */
            if (!new[n].inside || (new[n].file != new[n].oid && !truncated(judge, now, &new[n])))
                files.partitions = true;
            n++;
        } else {
            if (old[o].file != new[n].file) {
                files.differ = true;
                files.rewritten |= !truncated(judge, now, &new[n]);
            }
            o++;
            n++;
        }
    }
    return files;
}

static const struct spate_survey_column *of_number(const struct spate_survey_columns *columns, int32_t number)
{
    for (size_t i = 0; i < spate_survey_columns_count(columns); i++)
        if (spate_survey_column_at(columns, i)->number == number)
            return spate_survey_column_at(columns, i);
    return NULL;
}

static bool of_hash(const struct spate_survey_columns *columns, uint64_t hash)
{
    for (size_t i = 0; i < spate_survey_columns_count(columns); i++)
        if (spate_survey_column_at(columns, i)->hash == hash)
            return true;
    return false;
}

static bool is_text(uint32_t type)
{
    return type == TYPE_TEXT || type == TYPE_VARCHAR;
}

/* Labels that were added after all others print no row differently; one that was renamed does. */
static bool prints_alike(const struct spate_survey_column *old, const struct spate_survey_column *column)
{
    uint32_t count;

    if (old->label_count == 0)
        return true;
    return spate_survey_labels(column->labels, old->label_count, &count) == old->label_hash &&
           count >= old->label_count;
}

/* Has the column values that no message carried (P32, P34)? *sure: and this is why the file is another. */
static bool is_stale(const struct spate_survey_columns *known, const struct spate_survey_column *column,
                     bool rewritten, bool *sure)
{
    const struct spate_survey_column *old = of_number(known, column->number);

    *sure = true;
    if (!old) /* new; under a name that was another column's before, it is NULL where followers have values */
        return column->missing || rewritten || of_hash(known, column->hash);
    if (old->type != column->type)
        return rewritten || !is_text(old->type) || !is_text(column->type);
    if (old->hash != column->hash || !prints_alike(old, column)) /* nobody has values under this name (P34) */
        return true;
    /* Any rewrite writes out what was missing, and so touches the column's row. */
    *sure = !old->missing || column->missing;
    return rewritten && old->xmin != column->xmin;
}

static void note_column(struct judge *judge, const char *name)
{
    if (judge->column_count == judge->column_cap) {
        judge->column_cap = judge->column_cap ? judge->column_cap * 2 : 16;
        judge->columns = spate_realloc(judge->columns, judge->column_cap * sizeof *judge->columns);
    }
    judge->columns[judge->column_count++] = name;
}

static bool same_columns(const struct spate_survey_table *one, const struct spate_survey_table *other)
{
    const size_t count = spate_survey_columns_count(one->columns);

    if (one->columns == other->columns)
        return true;
    if (count != spate_survey_columns_count(other->columns))
        return false;
    for (size_t i = 0; i < count; i++) {
        const struct spate_survey_column *a = spate_survey_column_at(one->columns, i),
                                         *b = spate_survey_column_at(other->columns, i);

        if (a->number != b->number || a->type != b->type || a->xmin != b->xmin || a->hash != b->hash ||
            a->missing != b->missing || a->label_count != b->label_count || a->label_hash != b->label_hash)
            return false;
    }
    return true;
}

/* Did whoever changed these columns make each new file? Then nothing else did. */
static bool made_by(const struct judge *judge, const struct spate_survey_table *known,
                    const struct spate_survey_table *now, const uint32_t *xids, size_t count)
{
    const struct spate_survey_leaf *old = judge->known->leaves + known->first;
    size_t o = 0;

    for (size_t n = 0; n < now->leaf_count; n++) {
        const struct spate_survey_leaf *leaf = &judge->now->leaves[now->first + n];
        bool found = false;

        while (o < known->leaf_count && old[o].oid < leaf->oid)
            o++;
        if (o == known->leaf_count || old[o].oid != leaf->oid || old[o].file == leaf->file ||
            truncated(judge, now, leaf))
            continue;
        for (size_t i = 0; i < count && !found; i++)
            found = xids[i] == leaf->xmin;
        if (!found)
            return false;
    }
    return true;
}

static void judge_storage(struct judge *judge, const struct spate_survey_table *known,
                          const struct spate_survey_table *now)
{
    struct files files = compare_files(judge, known, now);
    const size_t count = spate_survey_columns_count(now->columns);
    uint32_t *makers = spate_alloc((count + 1) * sizeof *makers);
    size_t maker_count = 0;

    judge->column_count = 0;
    for (size_t i = 0; i < count; i++) {
        const struct spate_survey_column *column = spate_survey_column_at(now->columns, i);
        bool sure;

        if (!is_stale(known->columns, column, files.rewritten, &sure))
            continue;
        note_column(judge, column->name);
        if (sure)
            makers[maker_count++] = column->xmin;
    }
    if (files.partitions)
        find(judge, SPATE_NEWS_STALE, now, "partitions", NULL);
    else if (files.rewritten && !judge->rules->say && !made_by(judge, known, now, makers, maker_count))
        find(judge, SPATE_NEWS_STALE, now, "rewritten", NULL);
    else if (judge->column_count > 0)
        find(judge, SPATE_NEWS_STALE, now, "columns", NULL);
    else if (files.rewritten)
        find(judge, SPATE_NEWS_REWRITTEN, now, "", NULL);
    else if (files.differ || !same_columns(known, now))
        find(judge, SPATE_NEWS_MEMORY, now, "", NULL);
    free(makers);
}

static void judge_known(struct judge *judge, const struct spate_survey_table *known,
                        const struct spate_survey_table *now)
{
    if (names_cmp(known, now) != 0) {
        find(judge, SPATE_NEWS_STALE, now, "published", known);
    } else if (known->way != now->way || judge->other_publication) {
        find(judge, SPATE_NEWS_STALE, now, "published", NULL);
    } else if (now->unlogged) { /* what is missed meanwhile is told when it is over (P33) */
        if (!known->unlogged)
            find(judge, SPATE_NEWS_UNLOGGED, now, "", NULL);
    } else if (known->unlogged) {
        find(judge, SPATE_NEWS_STALE, now, "logged", NULL);
    } else {
        judge_storage(judge, known, now);
    }
}

/* ---- tables that came and went ---- */

/* All its rows were sent: it is a partition that was made in its place, since the last survey, and after that
 * place was published. Of any other table one cannot know. */
static bool born_published(const struct judge *judge, const struct spate_survey_table *table)
{
    const struct spate_survey_leaf *leaf = &judge->now->leaves[table->first];
    uint64_t born;

    if (table->leaf_count != 1 || leaf->oid != table->oid || !leaf->inside || leaf->file != leaf->oid)
        return false;
    born = whole_xid(judge->now, leaf->born);
    return born >= judge->known->next && born > whole_xid(judge->now, table->since);
}

static void judge_new(struct judge *judge, const struct spate_survey_table **known_named,
                      const struct spate_survey_table *table)
{
    if (table->unlogged)
        find(judge, SPATE_NEWS_UNLOGGED, table, "", NULL);
    else if (judge->rules->baseline)
        find(judge, SPATE_NEWS_MEMORY, table, "", NULL);
    else if (is_named(known_named, judge->known->count, table))
        find(judge, SPATE_NEWS_STALE, table, "recreated", NULL);
    else if (born_published(judge, table))
        find(judge, SPATE_NEWS_ADDED, table, "", NULL);
    else
        find(judge, SPATE_NEWS_STALE, table, "published", NULL);
}

/* Merges both lists by OID; `gone` first, so that a name that another table has now is written last. */
static void walk(struct judge *judge, bool gone, const struct spate_survey_table **known_named)
{
    const struct spate_survey *known = judge->known, *now = judge->now;
    size_t k = 0, n = 0;

    while (k < known->count || n < now->count) {
        const struct spate_survey_table *old = k < known->count ? &known->tables[k] : NULL,
                                        *new = n < now->count ? &now->tables[n] : NULL;

        if (new && (!old || new->oid < old->oid)) {
            if (!gone)
                judge_new(judge, known_named, new);
            n++;
            continue;
        }
        if (gone && (!new || old->oid < new->oid || names_cmp(old, new) != 0) &&
            !is_named(judge->named, now->count, old))
            find(judge, SPATE_NEWS_REMOVED, old, "", new &&new->oid == old->oid ? new : NULL);
        if (new && old->oid == new->oid) {
            if (!gone)
                judge_known(judge, old, new);
            n++;
        }
        k++;
    }
}

bool spate_survey_judge(const struct spate_survey *known, const struct spate_survey *now,
                        const struct spate_survey_rules *rules,
                        void (*tell)(void *arg, const struct spate_survey_finding *finding), void *arg)
{
    struct judge judge = {.known = known, .now = now, .rules = rules, .tell = tell, .arg = arg};
    const struct spate_survey_table **known_named = sorted_by_name(known);

    judge.named = sorted_by_name(now);
    judge.other_publication = !rules->baseline && (known->publication != now->publication ||
                                                   known->publication_xmin != now->publication_xmin);
    walk(&judge, true, known_named);
    walk(&judge, false, known_named);
    free(known_named);
    free(judge.named);
    free(judge.columns);
    return judge.differs || judge.other_publication || rules->baseline;
}
