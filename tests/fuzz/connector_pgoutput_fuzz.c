/* The pgoutput decoder on bytes of any kind: whatever it accepts can be walked within its bounds. */
#include "connector/pgoutput.h"
#include "connector/relation.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t walk_tuple(const struct spate_pgoutput_tuple *tuple)
{
    struct spate_value *values;
    size_t bytes = 0;

    if (!tuple->present)
        return 0;
    values = malloc(((size_t)tuple->count + 1) * sizeof *values);
    if (!values)
        abort();
    spate_pgoutput_values(tuple, values);
    for (unsigned i = 0; i < tuple->count; i++)
        for (size_t b = 0; b < values[i].text.len; b++)
            bytes += (unsigned char)values[i].text.at[b];
    free(values);
    return bytes;
}

/* A relation that was accepted becomes a table. */
static void build_table(const struct spate_pgoutput *msg)
{
    struct spate_catalog_type *types = calloc((size_t)msg->relation.count + 1, sizeof *types);
    char name[] = "text", base[] = "";
    struct spate_table *table;

    if (!types)
        abort();
    for (unsigned i = 0; i < msg->relation.count; i++)
        types[i] = (struct spate_catalog_type){.name = name, .base = base, .len = -1, .base_oid = 25};
    table = spate_relation_build(msg, types, NULL);
    if (table->column_count != msg->relation.count || !spate_relation_agrees(msg, table))
        abort();
    spate_table_free(table);
    free(types);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spate_pgoutput msg;
    struct spate_err err = {0};
    struct spate_slice at;
    size_t sum = 0;

    if (spate_pgoutput_decode(spate_slice((const char *)data, size), &msg, &err) != SPATE_OK) {
        if (err.verdict != SPATE_FATAL || !err.text[0])
            abort();
        return 0;
    }
    switch (msg.kind) {
    case SPATE_PGOUTPUT_RELATION:
        build_table(&msg);
        break;
    case SPATE_PGOUTPUT_INSERT:
    case SPATE_PGOUTPUT_UPDATE:
    case SPATE_PGOUTPUT_DELETE:
        sum += walk_tuple(&msg.change.old) + walk_tuple(&msg.change.new);
        break;
    case SPATE_PGOUTPUT_TRUNCATE:
        at = msg.truncate.at;
        for (uint32_t i = 0; i < msg.truncate.count; i++)
            sum += spate_pgoutput_oid(&at);
        break;
    default:
        break;
    }
    __asm__ volatile("" : : "r"(sum)); /* or the compiler would not read the bytes */
    return 0;
}
