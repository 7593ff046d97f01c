/* connector/survey_masks.c - one number for what becomes of a table's columns. */
#include "connector/survey_masks.h"

#include "core/hash.h"

#include <string.h>

static uint32_t mark(const struct spate_privacy *privacy, size_t rule, struct spate_slice column)
{
    const char *mask = spate_privacy_mask(privacy, rule);
    uint64_t hash = spate_fnv64(SPATE_FNV64_START, column.at, column.len);

    hash = spate_fnv64(hash, "", 1); /* a NUL between the two */
    hash = spate_fnv64(hash, mask, strlen(mask));
    return (uint32_t)(hash >> 32 ^ hash);
}

static uint32_t marks(const struct spate_privacy *privacy, const struct spate_survey_table *table)
{
    struct spate_slice schema = spate_slice_str(table->schema), name = spate_slice_str(table->name);
    uint32_t all = 0;

    for (size_t r = 0; r < spate_privacy_rules(privacy); r++) {
        if (!spate_privacy_speaks(privacy, r, schema, name, NULL, 0))
            continue;
        for (size_t c = 0; c < spate_survey_columns_count(table->columns); c++) {
            struct spate_slice column = spate_slice_str(spate_survey_column_at(table->columns, c)->name);

            if (spate_privacy_names(privacy, r, column))
                all = all * 31 + mark(privacy, r, column);
        }
    }
    return all;
}

void spate_survey_masks(struct spate_survey *survey, const struct spate_privacy *privacy)
{
    for (size_t i = 0; privacy && i < survey->count; i++)
        survey->tables[i].way ^= marks(privacy, &survey->tables[i]);
}
