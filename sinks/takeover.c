#include "sinks/takeover.h"

#include "sinks/copy.h"
#include "sinks/script.h"

#include <inttypes.h>

static void add(struct spate_apply *apply, struct spate_buf *sql, enum spate_step_kind kind)
{
    spate_buf_puts(sql, ";\n");
    spate_buf_add(&apply->sql, sql->data, sql->len);
    spate_script_step(apply, kind, NULL, 0);
    spate_buf_reset(sql);
}

static void ident(struct spate_buf *sql, const char *name)
{
    spate_pg_ident(sql, spate_slice_str(name));
}

/* " WHERE t.key = o.key AND ...": t is the relation, o may be a table of ours with k0, k1, ... */
static void join_key(const struct spate_version *version, const struct spate_relation *relation, bool ours,
                     struct spate_buf *sql)
{
    for (size_t k = 0; k < version->key_count; k++) {
        const char *name = spate_relation_key(version, relation, k)->name;

        spate_buf_puts(sql, k ? " AND t." : " WHERE t.");
        ident(sql, name);
        spate_buf_puts(sql, " = o.");
        if (ours)
            spate_buf_printf(sql, "k%zu", k);
        else
            ident(sql, name);
    }
}

/* "(SELECT the team's columns, or k0, k1, ... of its key, FROM the copy's rows) AS alias": the expressions
 * see rows of the source alone. */
static void projected(const struct spate_version *version, bool keys, const char *alias,
                      struct spate_buf *sql)
{
    struct spate_relation team = spate_version_team(version);

    spate_buf_puts(sql, "(SELECT ");
    for (size_t k = 0; keys && k < version->key_count; k++)
        spate_buf_printf(sql, "%s(%s\n) AS k%zu", k ? ", " : "", spate_relation_key(version, &team, k)->expr,
                         k);
    for (size_t i = 0; !keys && i < team.output_count; i++) {
        spate_buf_printf(sql, "%s(%s\n) AS ", i ? ", " : "", team.outputs[i].expr);
        ident(sql, team.outputs[i].name);
    }
    spate_buf_puts(sql, " FROM (");
    spate_copy_rows(version, version->projection->load.copy, "", "", sql);
    spate_buf_puts(sql, ") AS spate_rows");
    if (team.where)
        spate_buf_printf(sql, " WHERE (%s\n)", team.where);
    spate_buf_printf(sql, ") AS %s", alias);
}

static const char *generation(const struct spate_load *load)
{
    return load->kind == SPATE_LOAD_MARKED ? load->marks : load->shadow;
}

static void sweep_held(struct spate_apply *apply, const struct spate_projection *projection,
                       enum spate_step_kind kind)
{
    const struct spate_load *load = &projection->load;
    struct spate_relation held = spate_version_held(projection->current);
    struct spate_buf sql = {0};

    spate_buf_printf(&sql, "ANALYZE %s", generation(load));
    add(apply, &sql, SPATE_STEP_OTHER);
    spate_buf_printf(&sql, "DELETE FROM %s AS t WHERE NOT EXISTS (SELECT FROM %s AS o", held.name,
                     generation(load));
    join_key(projection->current, &held, load->kind == SPATE_LOAD_MARKED, &sql);
    spate_buf_putc(&sql, ')');
    add(apply, &sql, kind);
    spate_buf_fini(&sql);
}

static void add_columns(const struct spate_relation *relation, const char *alias, bool keys,
                        struct spate_buf *sql)
{
    size_t count = 0;

    for (size_t i = 0; i < relation->output_count; i++) {
        struct spate_buf name = {0};

        if (relation->outputs[i].key && !keys)
            continue;
        ident(&name, relation->outputs[i].name);
        spate_buf_puts(sql, count++ ? ", " : "");
        if (keys)
            spate_buf_printf(sql, "%s%s", alias, spate_buf_str(&name));
        else
            spate_buf_printf(sql, "%s = EXCLUDED.%s", spate_buf_str(&name), spate_buf_str(&name));
        spate_buf_fini(&name);
    }
}

/* The old table takes over what differs, so that what the team hung on it - grants, views, keys, indexes,
 * columns of its own - stays; what is equal is not written. `from` is a relation with its columns. */
static void take_over(struct spate_apply *apply, const struct spate_version *version,
                      const struct spate_relation *to, const char *from)
{
    bool only_key = to->output_count == version->key_count;
    struct spate_buf sql = {0};

    spate_buf_printf(&sql, "INSERT INTO %s AS n (", to->name); /* it may be called excluded */
    add_columns(to, "", true, &sql);
    spate_buf_puts(&sql, ") SELECT ");
    add_columns(to, "t.", true, &sql);
    spate_buf_printf(&sql, " FROM %s WHERE NOT EXISTS (SELECT FROM %s AS o", from, to->name);
    join_key(version, to, false, &sql);
    if (!only_key) {
        spate_buf_puts(&sql, " AND ");
        spate_relation_compare(to, "o", "t", "*=", &sql);
    }
    spate_buf_puts(&sql, ") ON CONFLICT (");
    for (size_t k = 0; k < version->key_count; k++) {
        spate_buf_puts(&sql, k ? ", " : "");
        ident(&sql, spate_relation_key(version, to, k)->name);
    }
    spate_buf_puts(&sql, only_key ? ") DO NOTHING" : ") DO UPDATE SET ");
    add_columns(to, "", false, &sql);
    add(apply, &sql, SPATE_STEP_OTHER);
    spate_buf_fini(&sql);
}

/* What is beside the team's table until the end. */
static void take_over_held(struct spate_apply *apply, const struct spate_projection *projection)
{
    struct spate_relation held = spate_version_held(projection->current);
    struct spate_buf from = {0};

    spate_buf_printf(&from, "%s AS t", projection->load.shadow);
    take_over(apply, projection->current, &held, spate_buf_str(&from));
    spate_buf_fini(&from);
}

static bool moves_rows(const struct spate_load *load)
{
    return load->kind == SPATE_LOAD_MARKED || load->kind == SPATE_LOAD_SHADOW;
}

void spate_takeover_mixed(const struct spate_projection *projection, struct spate_buf *sql)
{
    const struct spate_load *load = &projection->load;
    const struct spate_version *version = projection->current;

    spate_buf_printf(sql, "SELECT EXISTS (SELECT FROM %s AS t", load->target ? load->target : load->copy);
    if (load->kind == SPATE_LOAD_MARKED) {
        struct spate_relation copy = spate_copy_relation(version);

        spate_buf_printf(sql, ", %s AS o", load->marks);
        join_key(version, &copy, true, sql);
    } else {
        spate_buf_puts(sql, " WHERE true");
    }
    spate_buf_printf(sql, " AND t.shape <> %" PRId64 ")", version->copy.shape);
}

void spate_takeover_copy(struct spate_apply *apply, const struct spate_projection *projection)
{
    struct spate_buf sql = {0};

    if (!projection->load.copied || !moves_rows(&projection->load))
        return;
    sweep_held(apply, projection, SPATE_STEP_OTHER);
    if (projection->load.kind == SPATE_LOAD_SHADOW)
        take_over_held(apply, projection);
    spate_buf_printf(&sql, "ANALYZE %s", projection->load.copy);
    add(apply, &sql, SPATE_STEP_OTHER);
    spate_buf_fini(&sql);
}

void spate_takeover_sweep(struct spate_apply *apply, const struct spate_projection *projection)
{
    const struct spate_version *version = projection->current;
    struct spate_relation team = spate_version_team(version);
    struct spate_buf sql = {0};

    if (!moves_rows(&projection->load))
        return;
    if (!projection->load.copied) {
        sweep_held(apply, projection, SPATE_STEP_SWEEP);
        return;
    }
    spate_buf_printf(&sql, "DELETE FROM %s AS t WHERE NOT EXISTS (SELECT FROM ", team.name);
    projected(version, true, "o", &sql);
    join_key(version, &team, true, &sql);
    spate_buf_putc(&sql, ')');
    add(apply, &sql, SPATE_STEP_SWEEP);
    spate_buf_fini(&sql);
}

void spate_takeover_rows(struct spate_apply *apply, const struct spate_projection *projection)
{
    const struct spate_version *version = projection->current;
    struct spate_relation team = spate_version_team(version);
    struct spate_buf from = {0};

    if (projection->load.kind != SPATE_LOAD_SHADOW)
        return;
    if (!projection->load.copied) {
        take_over_held(apply, projection);
        return;
    }
    projected(version, false, "t", &from);
    take_over(apply, version, &team, spate_buf_str(&from));
    spate_buf_fini(&from);
}
