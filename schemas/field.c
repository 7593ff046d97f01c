#include "schemas/field.h"

#include "schemas/json.h"

bool spate_field_find(struct spate_slice line, size_t rest, const char *name, struct spate_slice *raw)
{
    struct spate_arena arena = {0}; /* for names with escapes in them */
    struct spate_json json = spate_json_over(line, rest, &arena);
    struct spate_slice field;
    bool found = false;

    while (!found && spate_json_field(&json, &field) && spate_json_skip(&json, raw)) {
        found = spate_slice_is(field, name);
        spate_json_after(&json);
    }
    spate_arena_fini(&arena);
    return found;
}

bool spate_field_elements(struct spate_slice array, void (*each)(void *arg, struct spate_slice raw),
                          void *arg)
{
    struct spate_json json = spate_json_over(array, 0, NULL);
    struct spate_slice raw;
    bool first = true;

    if (!spate_json_take(&json, '['))
        return false;
    while (spate_json_element(&json, &first)) {
        if (!spate_json_skip(&json, &raw))
            return false;
        each(arg, raw);
    }
    return spate_json_finish(&json);
}
