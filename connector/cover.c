/* connector/cover.c - a shape and the rules that speak of it; and its rows. */
#include "connector/cover.h"

#include "core/alloc.h"

#include <stdlib.h>

#define OID_TEXT 25

static struct spate_slice copy(struct spate_slice s)
{
    return s.len ? spate_slice(spate_strndup(s.at, s.len), s.len) : (struct spate_slice){0};
}

void spate_cover_free(struct spate_cover *cover)
{
    if (!cover)
        return;
    for (size_t i = 0; cover->columns && i < cover->raw->column_count; i++)
        free((char *)(uintptr_t)cover->columns[i].constant.at);
    if (cover->table != cover->raw)
        spate_table_free(cover->table);
    spate_table_free(cover->raw);
    free(cover->columns);
    free(cover->from);
    free(cover->effective);
    free(cover->spoken);
    free(cover);
}

/* Is the row known by it: its key in messages, or what the source sends of a row that is gone? Under FULL
 * that is every column, and none of them matters more than the key. */
static bool identifies(const struct spate_table *raw, size_t column)
{
    for (size_t k = 0; k < raw->key_count; k++)
        if (raw->key[k] == column)
            return true;
    return raw->identity != SPATE_IDENTITY_FULL && raw->columns[column].identity;
}

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    return SPATE_FAIL;
}

static enum spate_rc would_lose_key(const struct spate_cover *cover, size_t rule, size_t column,
                                    struct spate_err *err)
{
    const struct spate_privacy *privacy = cover->privacy;

    spate_fail(err, SPATE_FATAL,
               "%s: column %.*s belongs to the key of %.*s.%.*s, by which followers know its rows, and with "
               "\"%s\" rows "
               "could not be told apart. \"hash\" keeps keys distinct: mask: {\"%.*s.%.*s\": {%.*s: hash}}; "
               "or give the "
               "table another REPLICA IDENTITY (USING INDEX, over columns that may leave)",
               spate_privacy_where(privacy, rule), SPATE_SLICE_ARG(cover->raw->columns[column].name),
               SPATE_SLICE_ARG(cover->raw->schema), SPATE_SLICE_ARG(cover->raw->name),
               spate_treatment_name(spate_privacy_treatment(privacy, rule)),
               SPATE_SLICE_ARG(cover->raw->schema), SPATE_SLICE_ARG(cover->raw->name),
               SPATE_SLICE_ARG(cover->raw->columns[column].name));
    return refuse(err);
}

static bool same_treatment(const struct spate_privacy *privacy, size_t a, size_t b)
{
    return spate_privacy_treatment(privacy, a) == spate_privacy_treatment(privacy, b) &&
           spate_slice_eq(spate_privacy_constant(privacy, a), spate_privacy_constant(privacy, b));
}

/* One rule over all columns. `by`: which rule decided on a column, SIZE_MAX: none. */
static enum spate_rc apply(struct spate_cover *cover, size_t rule, size_t *by, struct spate_err *err)
{
    const struct spate_privacy *privacy = cover->privacy;
    enum spate_treatment treatment = spate_privacy_treatment(privacy, rule);

    for (size_t i = 0; i < cover->raw->column_count; i++) {
        if (!spate_privacy_names(privacy, rule, cover->raw->columns[i].name))
            continue;
        cover->effective[rule] = true;
        if (by[i] != SIZE_MAX && !same_treatment(privacy, by[i], rule)) {
            spate_fail(err, SPATE_FATAL,
                       "%s and %s say different things of column %.*s of %.*s.%.*s. Leave one of them",
                       spate_privacy_where(privacy, by[i]), spate_privacy_where(privacy, rule),
                       SPATE_SLICE_ARG(cover->raw->columns[i].name), SPATE_SLICE_ARG(cover->raw->schema),
                       SPATE_SLICE_ARG(cover->raw->name));
            return refuse(err);
        }
        if (treatment != SPATE_HASHED && identifies(cover->raw, i))
            return would_lose_key(cover, rule, i, err);
        if (by[i] != SIZE_MAX)
            continue;
        by[i] = rule;
        cover->columns[i].treatment = treatment;
        if (treatment == SPATE_CONSTANT)
            cover->columns[i].constant = copy(spate_privacy_constant(privacy, rule));
        cover->hashed += treatment == SPATE_HASHED;
        cover->key_hashed |= treatment == SPATE_HASHED && identifies(cover->raw, i);
    }
    return SPATE_OK;
}

static void show_column(struct spate_cover *cover, size_t i, size_t to, const char *mask)
{
    const struct spate_column *c = &cover->raw->columns[i];

    if (cover->columns[i].treatment == SPATE_HASHED)
        spate_table_set_column(cover->table, to, c->name, spate_slice_str("text"), (struct spate_slice){0},
                               OID_TEXT, -1, -1, c->identity, SPATE_CLASS_TEXT);
    else
        spate_table_set_column(cover->table, to, c->name, c->type, c->base, c->oid, c->mod, c->len,
                               c->identity, c->json_class);
    if (mask)
        spate_table_set_mask(cover->table, to, spate_slice_str(mask));
    cover->columns[i].to = (uint32_t)to;
    cover->from[to] = (uint32_t)i;
}

/* The table as messages have it. */
static void show(struct spate_cover *cover, const size_t *by)
{
    const struct spate_table *raw = cover->raw;
    size_t shown = 0;

    for (size_t i = 0; i < raw->column_count; i++)
        shown += cover->columns[i].treatment != SPATE_EXCLUDED;
    cover->table = spate_table_new(raw->schema, raw->name, raw->identity, shown, raw->key_count);
    cover->from = spate_zalloc((shown + 1) * sizeof *cover->from);
    shown = 0;
    for (size_t i = 0; i < raw->column_count; i++)
        if (cover->columns[i].treatment != SPATE_EXCLUDED)
            show_column(cover, i, shown++,
                        by[i] == SIZE_MAX ? NULL : spate_privacy_mask(cover->privacy, by[i]));
    for (size_t k = 0; k < raw->key_count; k++) /* none of them is excluded */
        cover->table->key[k] = cover->columns[raw->key[k]].to;
    spate_table_seal(cover->table);
}

enum spate_rc spate_cover_new(const struct spate_privacy *privacy, struct spate_table *raw,
                              const struct spate_kin *kin, size_t kin_count, struct spate_cover **out,
                              struct spate_err *err)
{
    struct spate_cover *cover = spate_zalloc(sizeof *cover);
    size_t rules = spate_privacy_rules(privacy), *by;
    enum spate_rc rc = SPATE_OK;
    bool any = false;

    *out = NULL;
    cover->privacy = privacy;
    cover->raw = cover->table = raw;
    if (rules == 0) {
        *out = cover;
        return SPATE_OK;
    }
    cover->effective = spate_zalloc(rules * sizeof *cover->effective);
    cover->spoken = spate_zalloc(rules * sizeof *cover->spoken);
    cover->columns = spate_zalloc((raw->column_count + 1) * sizeof *cover->columns);
    by = spate_alloc((raw->column_count + 1) * sizeof *by);
    for (size_t i = 0; i < raw->column_count; i++)
        by[i] = SIZE_MAX;
    for (size_t i = 0; rc == SPATE_OK && i < rules; i++) {
        cover->spoken[i] = spate_privacy_speaks(privacy, i, raw->schema, raw->name, kin, kin_count);
        if (cover->spoken[i])
            rc = apply(cover, i, by, err);
        any |= cover->effective[i];
    }
    if (rc == SPATE_OK && any) {
        show(cover, by);
    } else if (rc == SPATE_OK) {
        free(cover->columns);
        cover->columns = NULL;
    }
    free(by);
    if (rc != SPATE_OK) {
        spate_cover_free(cover);
        return rc;
    }
    *out = cover;
    return SPATE_OK;
}

void spate_cover_values(const struct spate_cover *cover, const struct spate_value *raw, bool whole,
                        struct spate_value *out, char **digests)
{
    for (size_t to = 0; to < cover->table->column_count; to++) {
        const struct spate_cover_column *column = &cover->columns[cover->from[to]];
        const struct spate_value *value = &raw[cover->from[to]];

        switch (column->treatment) {
        case SPATE_EXCLUDED: /* has no place in the table */
        case SPATE_SHOWN:
            out[to] = *value;
            break;
        case SPATE_NULLED:
            out[to] = (struct spate_value){.kind = whole ? SPATE_VALUE_NULL : SPATE_VALUE_ABSENT};
            break;
        case SPATE_CONSTANT:
            out[to] = whole ? (struct spate_value){SPATE_VALUE_TEXT, column->constant}
                            : (struct spate_value){.kind = SPATE_VALUE_ABSENT};
            break;
        case SPATE_HASHED:
            out[to] = *value;
            if (value->kind != SPATE_VALUE_TEXT)
                break;
            spate_privacy_digest(cover->privacy, value->text, *digests);
            out[to].text = spate_slice(*digests, SPATE_DIGEST);
            *digests += SPATE_DIGEST;
            break;
        }
    }
}
