/* connector/survey.c - surveys as they are kept: in memory, shared and counted, and as text on the bus. */
#include "connector/survey.h"

#include "core/alloc.h"
#include "core/hash.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define STATE_VERSION 1 /* another one is not understood: as if nothing were known of the table */

/* ---- columns ---- */

struct spate_survey_columns {
    unsigned refs;
    size_t count;
    struct spate_survey_column at[]; /* names stand behind them */
};

struct spate_survey_columns *spate_survey_columns_new(const struct spate_survey_column *columns, size_t count)
{
    size_t names = 0;
    struct spate_survey_columns *made;
    char *at;

    for (size_t i = 0; i < count; i++)
        names += strlen(columns[i].name) + strlen(columns[i].labels) + 2;
    made = spate_alloc(sizeof *made + count * sizeof *columns + names);
    made->refs = 1;
    made->count = count;
    at = (char *)(made->at + count);
    for (size_t i = 0; i < count; i++) {
        size_t len = strlen(columns[i].name) + 1;

        made->at[i] = columns[i];
        made->at[i].name = memcpy(at, columns[i].name, len);
        at += len;
        len = strlen(columns[i].labels) + 1;
        made->at[i].labels = memcpy(at, columns[i].labels, len);
        at += len;
    }
    return made;
}

struct spate_survey_columns *spate_survey_columns_hold(struct spate_survey_columns *columns)
{
    if (columns)
        __atomic_add_fetch(&columns->refs, 1, __ATOMIC_RELAXED);
    return columns;
}

void spate_survey_columns_drop(struct spate_survey_columns *columns)
{
    if (columns && __atomic_sub_fetch(&columns->refs, 1, __ATOMIC_ACQ_REL) == 0)
        free(columns);
}

size_t spate_survey_columns_count(const struct spate_survey_columns *columns)
{
    return columns ? columns->count : 0;
}

const struct spate_survey_column *spate_survey_column_at(const struct spate_survey_columns *columns, size_t i)
{
    return &columns->at[i];
}

uint64_t spate_survey_hash(const char *name)
{
    return spate_fnv64(SPATE_FNV64_START, name, strlen(name));
}

uint64_t spate_survey_labels(const char *labels, uint32_t count, uint32_t *all)
{
    uint64_t hash = SPATE_FNV64_START;

    for (*all = 0; *labels; ++*all) {
        size_t len = strcspn(labels, "\n");

        if (*all < count)
            hash = spate_fnv64(spate_fnv64(hash, labels, len), "", 1);
        labels += len + (labels[len] == '\n');
    }
    return hash;
}

/* ---- surveys ---- */

struct spate_survey *spate_survey_hold(struct spate_survey *survey)
{
    if (survey)
        __atomic_add_fetch(&survey->refs, 1, __ATOMIC_RELAXED);
    return survey;
}

void spate_survey_drop(struct spate_survey *survey)
{
    if (!survey || __atomic_sub_fetch(&survey->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    for (size_t i = 0; i < survey->count; i++)
        spate_survey_columns_drop(survey->tables[i].columns);
    free(survey->tables);
    free(survey->leaves);
    free(survey->names);
    free(survey);
}

static int by_oid(const void *a, const void *b)
{
    const struct spate_survey_table *one = a, *other = b;

    return one->oid < other->oid ? -1 : one->oid > other->oid;
}

static int leaf_by_oid(const void *a, const void *b)
{
    const struct spate_survey_leaf *one = a, *other = b;

    return one->oid < other->oid ? -1 : one->oid > other->oid;
}

void spate_survey_seal(struct spate_survey *survey)
{
    for (size_t i = 0; i < survey->count; i++)
        qsort(survey->leaves + survey->tables[i].first, survey->tables[i].leaf_count, sizeof *survey->leaves,
              leaf_by_oid);
    qsort(survey->tables, survey->count, sizeof *survey->tables, by_oid);
}

/* ---- states ---- */

void spate_survey_write(const struct spate_survey *survey, const struct spate_survey_table *table,
                        struct spate_buf *state)
{
    size_t columns = spate_survey_columns_count(table->columns);

    spate_buf_printf(state, "%d %x %x %d %zx", STATE_VERSION, table->oid, table->way, table->unlogged,
                     table->leaf_count);
    for (size_t i = 0; i < table->leaf_count; i++) {
        const struct spate_survey_leaf *leaf = &survey->leaves[table->first + i];

        spate_buf_printf(state, " %x:%x", leaf->oid, leaf->file);
    }
    spate_buf_printf(state, " %zx", columns);
    for (size_t i = 0; i < columns; i++) {
        const struct spate_survey_column *column = &table->columns->at[i];

        spate_buf_printf(state, " %x:%x:%x:%d:%" PRIx64 ":%x:%" PRIx64, (unsigned)column->number,
                         column->type, column->xmin, column->missing, column->hash, column->label_count,
                         column->label_count ? column->label_hash : 0);
    }
}

void spate_survey_write_head(const struct spate_survey *survey, struct spate_buf *state)
{
    spate_buf_printf(state, "%d %x %x %" PRIx64, STATE_VERSION, survey->publication, survey->publication_xmin,
                     survey->next);
}

/* The next number of a state; `ends` are the characters that may follow it. */
struct state {
    const char *at;
    bool broken;
};

static uint64_t number(struct state *state, const char *ends)
{
    char *end;
    uint64_t value;

    while (*state->at == ' ' || *state->at == ':')
        state->at++;
    value = strtoull(state->at, &end, 16);
    if (end == state->at || (*end && !strchr(ends, *end)))
        state->broken = true;
    state->at = end;
    return value;
}

/* ---- memory ---- */

struct record {
    char *schema, *table, *state;
    bool gone;
};

struct spate_survey_memory {
    struct record *slots; /* open addressing by name */
    size_t count, cap;
};

struct spate_survey_memory *spate_survey_memory_new(void)
{
    return spate_zalloc(sizeof(struct spate_survey_memory));
}

void spate_survey_memory_free(struct spate_survey_memory *memory)
{
    if (!memory)
        return;
    for (size_t i = 0; i < memory->cap; i++) {
        free(memory->slots[i].schema);
        free(memory->slots[i].table);
        free(memory->slots[i].state);
    }
    free(memory->slots);
    free(memory);
}

static struct record *slot_of(struct record *slots, size_t cap, struct spate_slice schema,
                              struct spate_slice table)
{
    uint64_t hash = spate_fnv64(SPATE_FNV64_START, schema.at, schema.len);
    size_t i;

    hash = spate_fnv64(hash, "", 1);
    i = spate_fnv64(hash, table.at, table.len) & (cap - 1);
    while (slots[i].schema &&
           !(spate_slice_is(schema, slots[i].schema) && spate_slice_is(table, slots[i].table)))
        i = (i + 1) & (cap - 1);
    return &slots[i];
}

static void grow(struct spate_survey_memory *memory)
{
    size_t cap = memory->cap ? memory->cap * 2 : 64;
    struct record *slots = spate_zalloc(cap * sizeof *slots);

    for (size_t i = 0; i < memory->cap; i++)
        if (memory->slots[i].schema)
            *slot_of(slots, cap, spate_slice_str(memory->slots[i].schema),
                     spate_slice_str(memory->slots[i].table)) = memory->slots[i];
    free(memory->slots);
    memory->slots = slots;
    memory->cap = cap;
}

bool spate_survey_remember(struct spate_survey_memory *memory, struct spate_slice schema,
                           struct spate_slice table, bool gone, struct spate_slice state)
{
    char *text = spate_strndup(state.at, state.len);
    struct state words = {.at = text};
    struct record *slot;
    bool known = gone || (number(&words, " ") == STATE_VERSION && !words.broken);

    if (memory->count * 2 >= memory->cap)
        grow(memory);
    slot = slot_of(memory->slots, memory->cap, schema, table);
    if (!slot->schema) {
        slot->schema = spate_strndup(schema.at, schema.len);
        slot->table = spate_strndup(table.at, table.len);
        memory->count++;
    }
    free(slot->state);
    slot->state = text;
    slot->gone = gone || !known;
    return known;
}

static void read_table(struct spate_survey *survey, const struct record *record, struct spate_buf *leaves)
{
    struct spate_survey_table *table = &survey->tables[survey->count];
    struct state words = {.at = record->state};
    struct spate_survey_column *columns;
    size_t count;

    *table = (struct spate_survey_table){.schema = record->schema, .name = record->table};
    number(&words, " ");
    table->oid = (uint32_t)number(&words, " ");
    table->way = (uint32_t)number(&words, " ");
    table->unlogged = number(&words, " ") != 0;
    table->leaf_count = number(&words, " ");
    table->first = leaves->len / sizeof(struct spate_survey_leaf);
    for (size_t i = 0; i < table->leaf_count && !words.broken; i++) {
        struct spate_survey_leaf leaf = {0};

        leaf.oid = (uint32_t)number(&words, ":");
        leaf.file = (uint32_t)number(&words, " ");
        spate_buf_add(leaves, (const char *)&leaf, sizeof leaf);
    }
    count = number(&words, " ");
    if (words.broken || count > 65536)
        return;
    columns = spate_zalloc((count + 1) * sizeof *columns);
    for (size_t i = 0; i < count; i++) {
        columns[i].number = (int32_t)number(&words, ":");
        columns[i].type = (uint32_t)number(&words, ":");
        columns[i].xmin = (uint32_t)number(&words, ":");
        columns[i].missing = number(&words, ":") != 0;
        columns[i].hash = number(&words, ":");
        columns[i].label_count = (uint32_t)number(&words, ":");
        columns[i].label_hash = number(&words, " ");
        columns[i].name = columns[i].labels = "";
    }
    if (!words.broken) {
        table->columns = spate_survey_columns_new(columns, count);
        survey->count++;
    }
    free(columns);
}

/* Names go into one piece of memory, so that the records can be forgotten. */
static void own_names(struct spate_survey *survey)
{
    size_t size = 1;
    char *at;

    for (size_t i = 0; i < survey->count; i++)
        size += strlen(survey->tables[i].schema) + strlen(survey->tables[i].name) + 2;
    at = survey->names = spate_alloc(size);
    for (size_t i = 0; i < survey->count; i++) {
        struct spate_survey_table *table = &survey->tables[i];

        table->schema = strcpy(at, table->schema);
        at += strlen(at) + 1;
        table->name = strcpy(at, table->name);
        at += strlen(at) + 1;
    }
}

struct spate_survey *spate_survey_recall(const struct spate_survey_memory *memory, bool *whole)
{
    struct spate_survey *survey = spate_zalloc(sizeof *survey);
    struct spate_buf leaves = {0};

    survey->refs = 1;
    survey->published = true;
    survey->tables = spate_zalloc((memory->count + 1) * sizeof *survey->tables);
    *whole = false;
    for (size_t i = 0; i < memory->cap; i++) {
        const struct record *record = &memory->slots[i];
        struct state words = {.at = record->state};

        if (!record->schema || record->gone)
            continue;
        if (record->table[0]) {
            read_table(survey, record, &leaves);
            continue;
        }
        number(&words, " ");
        survey->publication = (uint32_t)number(&words, " ");
        survey->publication_xmin = (uint32_t)number(&words, " ");
        survey->next = number(&words, " ");
        *whole = !words.broken;
    }
    survey->leaf_count = leaves.len / sizeof *survey->leaves;
    survey->leaves = spate_alloc(leaves.len + 1);
    if (leaves.len)
        memcpy(survey->leaves, leaves.data, leaves.len);
    spate_buf_fini(&leaves);
    own_names(survey);
    spate_survey_seal(survey);
    return survey;
}
