/* connector/plan.c - giving a plan back. */
#include "connector/plan.h"

#include "connector/cover.h"

#include <stdlib.h>

void spate_plan_table_fini(struct spate_plan_table *table)
{
    for (size_t i = 0; i < table->leaf_count; i++) {
        free(table->leaves[i].name);
        free(table->leaves[i].filter);
        free(table->leaves[i].stamp);
    }
    for (size_t i = 0; i < table->where_count; i++) {
        free(table->where[i].op);
        free(table->where[i].value);
    }
    free(table->leaves);
    free(table->where);
    free(table->asked);
    free(table->resume);
    if (table->cover)
        spate_cover_free(table->cover);
    else
        spate_table_free(table->table);
}

bool spate_plan_reads(const struct spate_plan_table *table, size_t column)
{
    enum spate_treatment treatment = spate_cover_treatment(table->cover, column);

    return (table->all || table->asked[column]) && (treatment == SPATE_SHOWN || treatment == SPATE_HASHED);
}

uint32_t spate_plan_type(const struct spate_plan_table *table, size_t column)
{
    return spate_cover_plain(table->cover) ? table->table->columns[column].oid
                                           : table->cover->raw->columns[table->cover->from[column]].oid;
}

void spate_plan_free(struct spate_plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; i < plan->count; i++)
        spate_plan_table_fini(&plan->tables[i]);
    free(plan->tables);
    free(plan->request);
    free(plan->sink);
    free(plan);
}
