#include "sinks/projection.h"

#include "core/alloc.h"
#include "sinks/copy.h"
#include "sinks/fact.h"
#include "sinks/follow.h"
#include "sinks/generation.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

/* One part of schema.table, as SQL reads it: quoted as it stands, else folded to lower case. Returns what
 * follows, or NULL when it is malformed. */
static const char *read_part(const char *at, struct spate_buf *out)
{
    if (*at != '"') {
        const char *start = at;
        for (; *at && *at != '.'; at++) {
            if (*at == '"' || isspace((unsigned char)*at))
                return NULL;
            spate_buf_putc(out, (char)((*at & 0x80) ? *at : tolower((unsigned char)*at)));
        }
        return at == start ? NULL : at;
    }
    for (at++; *at; at++) {
        if (*at == '"' && *++at != '"')
            return out->len ? at : NULL;
        spate_buf_putc(out, *at);
    }
    return NULL;
}

const char *spate_projection_place(const struct spate_projection *projection, char *out, size_t size)
{
    snprintf(out, size, "%s:%d: tables.%s", projection->sink->path, projection->config->item.line,
             projection->config->item.name);
    return out;
}

static enum spate_rc parse_source(struct spate_projection *projection, struct spate_err *err)
{
    struct spate_buf schema = {0}, table = {0};
    const char *at = read_part(projection->config->from, &schema);
    bool good = at && *at == '.' && (at = read_part(at + 1, &table)) != NULL && *at == 0;
    char place[300];

    if (good) {
        projection->source_schema = spate_strndup(schema.data, schema.len);
        projection->source_table = spate_strndup(table.data, table.len);
    }
    spate_buf_fini(&schema);
    spate_buf_fini(&table);
    if (good)
        return SPATE_OK;
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(
        err, SPATE_FATAL,
        "%s.from: '%.100s' is no schema.table; parts with dots, spaces or capitals are quoted like in "
        "SQL: 'public.\"Order Lines\"'",
        spate_projection_place(projection, place, sizeof place), projection->config->from);
}

enum spate_rc spate_projection_init(struct spate_projection *projection, const struct spate_sink_config *sink,
                                    size_t index, struct spate_err *err)
{
    const struct spate_sink_table_config *tables = sink->tables.at;
    struct spate_buf target = {0};
    char fact[SPATE_FACT_MAX];

    *projection = (struct spate_projection){.config = &tables[index], .sink = sink, .index = index};
    spate_pg_ident(&target, spate_slice_str(sink->into.schema));
    spate_buf_putc(&target, '.');
    spate_pg_ident(&target, spate_slice_str(tables[index].item.name));
    projection->target = spate_strndup(target.data, target.len);
    spate_buf_reset(&target);
    spate_buf_printf(&target, "%s.%s", sink->into.schema, tables[index].item.name);
    projection->label = spate_strdup(spate_fact(fact, spate_buf_str(&target)));
    spate_buf_fini(&target);
    spate_load_init(projection);
    return parse_source(projection, err);
}

void spate_projection_fini(struct spate_projection *projection)
{
    for (size_t i = 0; i < projection->version_count; i++)
        spate_version_free(projection->versions[i]);
    for (size_t i = 0; i < projection->retired_count; i++)
        spate_version_free(projection->retired[i]);
    free(projection->retired);
    free(projection->versions);
    free(projection->unfit);
    free(projection->source_schema);
    free(projection->source_table);
    free(projection->target);
    free(projection->label);
    spate_load_fini(&projection->load);
    *projection = (struct spate_projection){0};
}

/* The column that an expression is the mere name of, or -1. `"a""b"` and AbC as SQL reads them. */
static int bare_column(const struct spate_table *table, const char *expr)
{
    struct spate_buf word = {0}, name = {0};
    const char *at = expr + strspn(expr, " \t\r\n"), *end;
    size_t len = strlen(at);
    int column = -1;

    while (len > 0 && strchr(" \t\r\n", at[len - 1]))
        len--;
    spate_buf_add(&word, at, len);
    end = read_part(spate_buf_str(&word), &name);
    if (end && *end == 0)
        column = spate_table_column(table, spate_buf_view(&name));
    spate_buf_fini(&word);
    spate_buf_fini(&name);
    return column;
}

static void default_outputs(struct spate_version *version)
{
    version->outputs = spate_zalloc((version->table->column_count + 1) * sizeof *version->outputs);
    for (size_t i = 0; i < version->table->column_count; i++) {
        struct spate_output *output = &version->outputs[version->output_count++];
        struct spate_slice name = version->table->columns[i].name;
        struct spate_buf quoted = {0};

        spate_pg_ident(&quoted, name);
        output->name = spate_strndup(name.at, name.len);
        output->expr = spate_strndup(quoted.data, quoted.len);
        output->bare = (int)i;
        output->uses = spate_alloc(sizeof *output->uses);
        output->uses[0] = (uint32_t)i;
        output->use_count = 1;
        spate_buf_fini(&quoted);
    }
}

static void written_outputs(struct spate_version *version)
{
    const struct spate_pairs *columns = &version->projection->config->columns;

    version->outputs = spate_zalloc(columns->count * sizeof *version->outputs);
    for (size_t i = 0; i < columns->count; i++) {
        struct spate_output *output = &version->outputs[version->output_count++];

        output->name = spate_strdup(columns->at[i].key);
        output->expr = spate_strdup(columns->at[i].value);
        output->line = columns->at[i].line;
        output->bare = bare_column(version->table, output->expr);
    }
}

struct spate_version *spate_version_new(struct spate_projection *projection, const struct spate_table *table)
{
    struct spate_version *version = spate_zalloc(sizeof *version);

    version->projection = projection;
    version->table = table;
    version->state = spate_zalloc(sizeof *version->state);
    version->stage_types = spate_zalloc((table->column_count + 1) * sizeof *version->stage_types);
    version->as_text = spate_zalloc((table->column_count + 1) * sizeof *version->as_text);
    version->own_cast = spate_zalloc((table->column_count + 1) * sizeof *version->own_cast);
    if (projection->config->where)
        version->where = spate_strdup(projection->config->where);
    if (projection->config->columns.count)
        written_outputs(version);
    else
        default_outputs(version);
    return version;
}

static void free_merge(struct spate_merge *merge)
{
    free(merge->erase);
    free(merge->upsert);
    free(merge->partial);
    free(merge->move);
    free(merge->insert);
    free(merge->room);
    free(merge->left);
    free(merge->stale);
    free(merge->load.off);
    free(merge->load.list);
    free(merge->load.list_move);
    free(merge->load.off_move);
    free(merge->load.mark);
    free(merge->load.unmark);
    free(merge->load.clear);
    free(merge->load.mark_move);
}

void spate_version_forget_sql(struct spate_version *version)
{
    free(version->sql.table);
    free(version->sql.create);
    free(version->sql.stage);
    free(version->sql.columns);
    free_merge(&version->sql.large);
    free_merge(&version->sql.small);
    free_merge(&version->sql.copy.large);
    free_merge(&version->sql.copy.small);
    version->sql = (struct spate_statements){0};
}

void spate_version_free(struct spate_version *version)
{
    if (!version)
        return;
    for (size_t i = 0; i < version->output_count; i++) {
        free(version->outputs[i].name);
        free(version->outputs[i].expr);
        free(version->outputs[i].uses);
        free(version->outputs[i].type);
    }
    for (size_t i = 0; i < version->table->column_count; i++)
        free(version->stage_types[i]);
    free(version->state);
    free(version->outputs);
    free(version->where);
    free(version->where_uses);
    free(version->want);
    free(version->want_key);
    free(version->used);
    free(version->key_at);
    free(version->maybe);
    free(version->stage_types);
    free(version->as_text);
    free(version->own_cast);
    spate_copy_forget(version);
    free(version->copy_why);
    spate_version_forget_sql(version);
    free(version);
}

struct spate_relation spate_version_team(const struct spate_version *version)
{
    return (struct spate_relation){.name = version->projection->target,
                                   .outputs = version->outputs,
                                   .output_count = version->output_count,
                                   .where = version->where};
}

struct spate_relation spate_version_held(const struct spate_version *version)
{
    return version->projection->load.copied ? spate_copy_relation(version) : spate_version_team(version);
}

const struct spate_output *spate_relation_key(const struct spate_version *version,
                                              const struct spate_relation *relation, size_t k)
{
    for (size_t i = 0; i < relation->output_count; i++)
        if (relation->outputs[i].key && relation->outputs[i].bare == (int)version->table->key[k])
            return &relation->outputs[i];
    return NULL; /* spate_version_plan made sure that there is one */
}

struct spate_version *spate_projection_find(const struct spate_projection *projection,
                                            const struct spate_table *table)
{
    for (size_t i = projection->version_count; i-- > 0;)
        if (projection->versions[i]->table == table)
            return projection->versions[i];
    return NULL;
}

/* The source's table was altered since the target table was made to fit. */
static enum spate_rc follow(struct spate_version *version, struct spate_store *store, struct spate_err *err)
{
    struct spate_projection *projection = version->projection;
    struct spate_version *known = spate_projection_find(projection, projection->before), *before = known;
    enum spate_rc rc = SPATE_OK;

    if (!known) {
        before = spate_version_new(projection, projection->before);
        rc = spate_version_ask(before, store, err);
        if (rc == SPATE_OK)
            rc = spate_version_plan(before, err);
    }
    projection->same = false;
    if (rc == SPATE_OK) {
        /* A row is not known to the copy with other columns than it was kept with. */
        projection->same = !projection->load.copied && spate_load_written(projection, before) &&
                           spate_follow_same(before, version);
        rc = spate_follow_table(version, before, store, err);
    } else if (rc == SPATE_FAIL && err->verdict != SPATE_RETRY) {
        *err =
            (struct spate_err){0}; /* the file was altered as well: nothing is known of what the table was */
        rc = SPATE_OK;
    }
    if (!known)
        spate_version_free(before);
    return rc;
}

/* Whether the others can still be written to the table is looked at when one of them comes. */
static void retire_others(struct spate_projection *projection, const struct spate_version *version)
{
    size_t kept = 0;

    for (size_t i = 0; i < projection->version_count; i++) {
        struct spate_version *other = projection->versions[i];

        if (other == version) {
            projection->versions[kept++] = other;
            continue;
        }
        projection->retired =
            spate_realloc(projection->retired, (projection->retired_count + 1) * sizeof *projection->retired);
        projection->retired[projection->retired_count++] = other;
    }
    projection->version_count = kept;
    projection->altered = false;
}

/* One of them comes: it is as it was made, but for the load that is under way now. */
static struct spate_version *find_retired(const struct spate_projection *projection,
                                          const struct spate_table *table, size_t *at)
{
    for (*at = 0; *at < projection->retired_count; (*at)++)
        if (projection->retired[*at]->table == table)
            return projection->retired[*at];
    return NULL;
}

static void add_version(struct spate_projection *projection, struct spate_version *version)
{
    spate_version_sql(version);
    projection->versions =
        spate_realloc(projection->versions, (projection->version_count + 1) * sizeof *projection->versions);
    projection->versions[projection->version_count++] = version;
    if (projection->altered)
        retire_others(projection, version);
}

static enum spate_rc recall(struct spate_projection *projection, size_t at, struct spate_store *store,
                            struct spate_version **out, struct spate_err *err)
{
    struct spate_version *version = projection->retired[at];
    enum spate_rc rc = projection->before ? follow(version, store, err) : SPATE_OK;

    if (rc == SPATE_OK)
        rc = spate_version_preflight(version, store, err);
    if (rc == SPATE_OK)
        rc = spate_copy_fit(version, store, err);
    if (rc != SPATE_OK)
        return rc;
    projection->retired[at] = projection->retired[--projection->retired_count];
    add_version(projection, version);
    *out = version;
    return SPATE_OK;
}

enum spate_rc spate_projection_version(struct spate_projection *projection, struct spate_store *store,
                                       const struct spate_table *table, struct spate_version **out,
                                       struct spate_err *err)
{
    struct spate_version *version = spate_projection_find(projection, table);
    size_t retired;
    enum spate_rc rc;

    if (version) { /* it had this shape before, and another one meanwhile */
        *out = version;
        rc = projection->before ? follow(version, store, err) : SPATE_OK;
        if (rc == SPATE_OK && projection->before)
            rc = spate_version_preflight(version, store, err);
        if (rc == SPATE_OK && projection->altered)
            retire_others(projection, version);
        return rc;
    }
    if (find_retired(projection, table, &retired))
        return recall(projection, retired, store, out, err);
    version = spate_version_new(projection, table);
    rc = spate_version_ask(version, store, err);
    if (rc == SPATE_OK)
        rc = spate_version_plan(version, err);
    if (rc == SPATE_OK && projection->before)
        rc = follow(version, store, err);
    if (rc == SPATE_OK)
        rc = spate_version_preflight(version, store, err);
    if (rc == SPATE_OK)
        rc = spate_copy_fit(version, store, err);
    if (rc != SPATE_OK) {
        spate_version_free(version);
        return rc;
    }
    add_version(projection, version);
    *out = version;
    return SPATE_OK;
}
