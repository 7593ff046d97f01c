#include "schemas/class.h"

#include "core/alloc.h"

/* As format_type() spells them under search_path pg_catalog. A type of that name in another schema is spelled
 * with its schema, so these words mean nothing else. */
static const struct {
    const char *spelling;
    enum spate_class json_class;
} spellings[] = {
    {"smallint", SPATE_CLASS_INT},
    {"integer", SPATE_CLASS_INT},
    {"bigint", SPATE_CLASS_INT8},
    {"real", SPATE_CLASS_FLOAT},
    {"boolean", SPATE_CLASS_BOOL},
    {"jsonb", SPATE_CLASS_JSONB},
    {"double precision", SPATE_CLASS_FLOAT},
};

static const char *const classes[] = {
    [SPATE_CLASS_TEXT] = "text",   [SPATE_CLASS_INT] = "int",   [SPATE_CLASS_INT8] = "int8",
    [SPATE_CLASS_FLOAT] = "float", [SPATE_CLASS_BOOL] = "bool", [SPATE_CLASS_JSONB] = "jsonb",
};

static const struct {
    enum spate_identity identity;
    const char *name;
} identities[] = {
    {SPATE_IDENTITY_DEFAULT, "default"},
    {SPATE_IDENTITY_NOTHING, "nothing"},
    {SPATE_IDENTITY_FULL, "full"},
    {SPATE_IDENTITY_INDEX, "index"},
};

enum spate_class spate_class_by(uint32_t oid, struct spate_slice base)
{
    if (base.len == 0)
        return spate_class_of(oid);
    for (size_t i = 0; i < SPATE_COUNT(spellings); i++)
        if (spate_slice_is(base, spellings[i].spelling))
            return spellings[i].json_class;
    return SPATE_CLASS_TEXT;
}

const char *spate_class_name(enum spate_class json_class)
{
    return classes[json_class];
}

bool spate_class_parse(struct spate_slice name, enum spate_class *out)
{
    for (size_t i = 0; i < SPATE_COUNT(classes); i++)
        if (spate_slice_is(name, classes[i])) {
            *out = (enum spate_class)i;
            return true;
        }
    return false;
}

const char *spate_identity_name(enum spate_identity identity)
{
    for (size_t i = 0; i < SPATE_COUNT(identities); i++)
        if (identities[i].identity == identity)
            return identities[i].name;
    return identities[0].name;
}

bool spate_identity_parse(struct spate_slice name, enum spate_identity *out)
{
    for (size_t i = 0; i < SPATE_COUNT(identities); i++)
        if (spate_slice_is(name, identities[i].name)) {
            *out = identities[i].identity;
            return true;
        }
    return false;
}
