/* sinks/plan.c - which source columns a projection needs, which of them can come unchanged, and whether it
 * needs a copy of them for that. Pure. */
#include "core/alloc.h"
#include "sinks/copy.h"

#include <stdio.h>
#include <stdlib.h>

#define MOST_COLUMNS 1600 /* of a Postgres table; the staging table has some of its own */

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    err->verdict = SPATE_FATAL;
    return SPATE_FAIL;
}

static bool is_key(const struct spate_table *table, size_t column)
{
    for (size_t i = 0; i < table->key_count; i++)
        if (table->key[i] == column)
            return true;
    return false;
}

/* A value of variable length may be TOASTed and then is not sent again when it did not change - unless the
 * whole old row comes along. An unknown length counts as variable. */
static bool may_be_unchanged(const struct spate_table *table, size_t column)
{
    return table->identity != SPATE_IDENTITY_FULL && table->columns[column].len < 0 && !is_key(table, column);
}

/* The first reason is enough. */
static void need_copy(struct spate_version *version, const char *what, size_t column, const char *why)
{
    struct spate_buf text = {0};

    if (version->copy_why)
        return;
    spate_buf_printf(&text,
                     "%s: %s, and the value of source column %.*s may not be sent when it did not change",
                     what, why, SPATE_SLICE_ARG(version->table->columns[column].name));
    version->copy_why = spate_strndup(text.data, text.len);
    spate_buf_fini(&text);
}

/* The key: all of the source's key, each column as it is. */
static enum spate_rc plan_key(struct spate_version *version, struct spate_err *err)
{
    const struct spate_table *table = version->table;
    const struct spate_strings *key = &version->projection->config->key;
    char place[300];

    spate_projection_place(version->projection, place, sizeof place);
    if (table->key_count == 0) {
        (void)spate_fail(
            err, SPATE_FATAL,
            "%s: source table %.*s.%.*s has no key, so its changes cannot be told apart. On the source "
            "add a primary key: ALTER TABLE ... ADD PRIMARY KEY (...)",
            place, SPATE_SLICE_ARG(table->schema), SPATE_SLICE_ARG(table->name));
        return refuse(err);
    }
    for (size_t k = 0; k < key->count; k++) {
        bool found = false;
        for (size_t i = 0; i < version->output_count; i++) {
            struct spate_output *output = &version->outputs[i];
            if (strcmp(output->name, key->at[k]) != 0)
                continue;
            found = true;
            if (output->bare >= 0 && is_key(table, (size_t)output->bare)) {
                output->key = true;
                continue;
            }
            (void)spate_fail(
                err, SPATE_FATAL,
                "%s.key: %s is '%.100s', which is no column of the source's key. The key has to be exactly "
                "the source's, each column as it is; else two rows could share one",
                place, output->name, output->expr);
            return refuse(err);
        }
        if (!found) {
            (void)spate_fail(err, SPATE_FATAL, "%s.key: %s is none of the table's columns", place,
                             key->at[k]);
            return refuse(err);
        }
    }
    for (size_t k = 0; k < table->key_count; k++) {
        bool found = false;
        for (size_t i = 0; i < version->output_count && !found; i++)
            if (version->outputs[i].bare == (int)table->key[k] &&
                (key->count == 0 || version->outputs[i].key))
                found = version->outputs[i].key = true;
        if (!found) {
            (void)spate_fail(
                err, SPATE_FATAL,
                "%s: the source's key column %.*s is not among the columns%s. Add it, for example "
                "columns: {%.*s: %.*s}",
                place, SPATE_SLICE_ARG(table->columns[table->key[k]].name), key->count ? " of key" : "",
                SPATE_SLICE_ARG(table->columns[table->key[k]].name),
                SPATE_SLICE_ARG(table->columns[table->key[k]].name));
            return refuse(err);
        }
    }
    return SPATE_OK;
}

static void plan_used(struct spate_version *version)
{
    const struct spate_table *table = version->table;

    free(version->want);
    free(version->want_key);
    free(version->used);
    free(version->maybe);
    free(version->key_at);
    version->used_count = version->maybe_count = 0;
    version->only_copy = false;
    version->want = spate_zalloc((table->column_count + 1) * sizeof *version->want);
    version->want_key = spate_zalloc((table->column_count + 1) * sizeof *version->want_key);
    version->used = spate_zalloc((table->column_count + 1) * sizeof *version->used);
    version->maybe = spate_zalloc((table->column_count + 1) * sizeof *version->maybe);
    version->key_at = spate_zalloc((table->key_count + 1) * sizeof *version->key_at);
    version->key_count = table->key_count;

    for (size_t i = 0; i < version->output_count; i++)
        for (size_t u = 0; u < version->outputs[i].use_count; u++)
            version->want[version->outputs[i].uses[u]] = true;
    for (size_t u = 0; u < version->where_use_count; u++)
        version->want[version->where_uses[u]] = true;
    for (size_t k = 0; k < table->key_count; k++)
        version->want[table->key[k]] = version->want_key[table->key[k]] = true;
    for (size_t i = 0; i < table->column_count; i++) {
        size_t at = version->used_count;
        if (!version->want[i])
            continue;
        version->maybe[at] = may_be_unchanged(table, i) ? (int)version->maybe_count++ : -1;
        version->used[version->used_count++] = (uint32_t)i;
        version->only_copy |= version->own_cast[i];
        for (size_t k = 0; k < table->key_count; k++)
            if (table->key[k] == i)
                version->key_at[k] = (uint32_t)at;
    }
}

/* Where a value that did not come may be needed all the same. */
static void plan_copy(struct spate_version *version)
{
    free(version->copy_why);
    version->copy_why = NULL;
    for (size_t i = 0; version->where && i < version->used_count; i++)
        if (version->maybe[i] >= 0)
            need_copy(version, "where", version->used[i], "a row that begins to match needs all its columns");
    for (size_t i = 0; i < version->output_count; i++) {
        const struct spate_output *output = &version->outputs[i];
        char what[200];

        snprintf(what, sizeof what, "columns.%.150s", output->name);
        for (size_t u = 0; output->use_count > 1 && u < output->use_count; u++)
            if (may_be_unchanged(version->table, output->uses[u]))
                need_copy(version, what, output->uses[u], "the expression needs several columns at once");
    }
    spate_copy_columns(version);
}

enum spate_rc spate_version_plan(struct spate_version *version, struct spate_err *err)
{
    if (plan_key(version, err) != SPATE_OK)
        return SPATE_FAIL;
    plan_used(version);
    if (version->used_count + 2 + version->key_count > MOST_COLUMNS) {
        char place[300];

        (void)spate_fail(
            err, SPATE_FATAL,
            "%s: it uses %zu columns of the source and at most %zu can be staged, since a table has at most "
            "%d columns: name fewer under columns:",
            spate_projection_place(version->projection, place, sizeof place), version->used_count,
            MOST_COLUMNS - 2 - version->key_count, MOST_COLUMNS);
        return refuse(err);
    }
    plan_copy(version);
    return SPATE_OK;
}
