/* sinks/merge_sql.c - the statements that stage and merge one version of one table. Pure.
 *
 * A piece's rows go into a temporary table whose columns have the source's names and types, plus three of our
 * own: what to do, which values came, and the old key of a row that moved. The team's expressions are
 * evaluated over that table alone, so that no name in them can mean anything else, each followed by a
 * newline, so that a comment at its end ends there.
 *
 * With a copy (sinks/copy.h) rows are merged into it first, each column as it is, and then into the team's
 * table: whole rows as they were staged, the others as the copy has them now (sinks/copy_sql.c).
 *
 * While a snapshot of the table is under way some statements are added, which keep the marks of its
 * generation and the re-read list (sinks/load_sql.c). */
#include "sinks/merge_sql.h"

#include "core/alloc.h"
#include "sinks/generation.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static void choose_names(const struct spate_version *version, struct spate_names *names)
{
    size_t most = 0;

    for (size_t i = 0; i < version->used_count; i++) {
        struct spate_slice name = version->table->columns[version->used[i]].name;
        size_t tildes = 0;
        while (tildes < name.len && name.at[tildes] == '~')
            tildes++;
        most = tildes > most ? tildes : most;
    }
    if (most > 50)
        most = 50; /* a name has at most 63 bytes */
    memset(names->prefix, '~', most + 1);
    names->prefix[most + 1] = 0;
}

void spate_sql_ident(struct spate_buf *out, const char *name)
{
    spate_pg_ident(out, spate_slice_str(name));
}

static void source_ident(struct spate_buf *out, const struct spate_version *version, size_t used_at)
{
    spate_pg_ident(out, version->table->columns[version->used[used_at]].name);
}

static char *take(struct spate_buf *buf)
{
    char *text = spate_strndup(spate_buf_str(buf), buf->len);

    spate_buf_fini(buf);
    return text;
}

static void stage_table(struct spate_version *version, const struct spate_names *names)
{
    struct spate_buf table = {0}, stage = {0}, columns = {0};

    spate_buf_printf(&stage, "pg_temp.spate_s%zu_%u", version->projection->index, version->table->v);
    spate_buf_printf(&table, "CREATE TEMP TABLE spate_s%zu_%u (\"%sop\" pg_catalog.\"char\"",
                     version->projection->index, version->table->v, names->prefix);
    spate_buf_printf(&columns, "(\"%sop\"", names->prefix);
    if (version->maybe_count) {
        spate_buf_printf(&table, ", \"%smask\" pg_catalog.text", names->prefix);
        spate_buf_printf(&columns, ", \"%smask\"", names->prefix);
        for (size_t k = 0; k < version->key_count; k++) {
            spate_buf_printf(&table, ", \"%sold%zu\" %s", names->prefix, k,
                             version->stage_types[version->table->key[k]]);
            spate_buf_printf(&columns, ", \"%sold%zu\"", names->prefix, k);
        }
    }
    for (size_t i = 0; i < version->used_count; i++) {
        spate_buf_puts(&table, ", ");
        source_ident(&table, version, i);
        spate_buf_printf(&table, " %s", version->stage_types[version->used[i]]);
        spate_buf_puts(&columns, ", ");
        source_ident(&columns, version, i);
    }
    spate_buf_puts(&table, ") ON COMMIT DELETE ROWS");
    spate_buf_putc(&columns, ')');
    version->sql.table = take(&table);
    version->sql.stage = take(&stage);
    version->sql.columns = take(&columns);
}

/* The rows as parameters: $1 is what to do, and so on in the order of the staging table's columns. */
static void array_source(const struct spate_version *version, const struct spate_names *names,
                         struct spate_buf *from, struct spate_buf *arguments)
{
    size_t count = 1;

    spate_buf_printf(from, "(SELECT u.c1 AS \"%sop\"", names->prefix);
    if (version->maybe_count) {
        spate_buf_printf(from, ", u.c%zu AS \"%smask\"", ++count, names->prefix);
        for (size_t k = 0; k < version->key_count; k++)
            spate_buf_printf(from, ", u.c%zu::%s AS \"%sold%zu\"", ++count,
                             version->stage_types[version->table->key[k]], names->prefix, k);
    }
    for (size_t i = 0; i < version->used_count; i++) {
        spate_buf_printf(from, ", u.c%zu::%s AS ", ++count, version->stage_types[version->used[i]]);
        source_ident(from, version, i);
    }
    spate_buf_puts(from, " FROM unnest(");
    for (size_t i = 1; i <= count; i++) {
        spate_buf_printf(from, "%s$%zu", i > 1 ? ", " : "", i);
        spate_buf_puts(arguments, i > 1 ? ", text[]" : " (text[]");
    }
    spate_buf_puts(from, ") AS u (");
    for (size_t i = 1; i <= count; i++)
        spate_buf_printf(from, "%sc%zu", i > 1 ? ", " : "", i);
    spate_buf_puts(from, ")) AS spate_rows");
    spate_buf_putc(arguments, ')');
}

char *spate_sql_prepare(const struct spate_sql *sql, char kind)
{
    const struct spate_version *version = sql->version;
    unsigned edition = version->projection->load.edition;
    char name[100], more[20] = "";

    if (edition) /* those of earlier editions stay, unused, until the connection ends */
        snprintf(more, sizeof more, "_%u", edition);
    snprintf(name, sizeof name, "EXECUTE spate_%c%s%s%zu_%u%s", kind, sql->to.own ? "o" : "",
             sql->names->suffix, version->projection->index, version->table->v, more);
    spate_buf_printf(sql->create, "%sPREPARE %s%s AS ", sql->create->len ? ";\n" : "",
                     name + sizeof "EXECUTE " - 1,
                     sql->names->arguments[0] ? sql->names->arguments : " (integer)");
    if (!sql->names->arguments[0])
        strcat(name, " (0)");
    return spate_strdup(name);
}

void spate_sql_match(const struct spate_sql *sql, const char *alias, bool ours, char letter)
{
    for (size_t k = 0; k < sql->version->key_count; k++) {
        spate_buf_printf(sql->create, "%s%s.", k ? " AND " : "", alias);
        if (ours)
            spate_buf_printf(sql->create, "k%zu", k);
        else
            spate_sql_ident(sql->create, spate_relation_key(sql->version, &sql->to, k)->name);
        spate_buf_printf(sql->create, " = s.%c%zu", letter, k);
    }
}

void spate_sql_keys(const struct spate_sql *sql, bool old, char letter)
{
    for (size_t k = 0; k < sql->version->key_count; k++) {
        spate_buf_puts(sql->create, k ? ", " : "");
        if (old)
            spate_buf_printf(sql->create, "\"%sold%zu\"", sql->names->prefix, k);
        else
            source_ident(sql->create, sql->version, sql->version->key_at[k]);
        spate_buf_printf(sql->create, " AS %c%zu", letter, k);
    }
}

/* CASE keeps the team's condition away from rows that are staged without values. */
void spate_sql_erase(const struct spate_sql *sql, const char *table, bool ours)
{
    spate_buf_printf(sql->create, "DELETE FROM %s AS t USING (SELECT ", table);
    spate_sql_keys(sql, false, 'k');
    spate_buf_printf(sql->create, " FROM %s WHERE ", sql->names->from);
    if (sql->to.where)
        spate_buf_printf(
            sql->create,
            "CASE \"%sop\" WHEN 'd' THEN true WHEN 'r' THEN true WHEN 'u' THEN (%s\n) IS NOT TRUE ELSE "
            "false END",
            sql->names->prefix, sql->to.where);
    else
        spate_buf_printf(sql->create, "\"%sop\" IN ('d', 'r')", sql->names->prefix);
    spate_buf_puts(sql->create, ") AS s WHERE ");
    spate_sql_match(sql, "t", ours, 'k');
}

void spate_sql_come_in(const struct spate_sql *sql)
{
    spate_buf_printf(sql->create, " FROM %s WHERE ", sql->names->from);
    if (sql->to.where)
        spate_buf_printf(sql->create, "CASE WHEN \"%sop\" IN ('u', 'r') THEN (%s\n) ELSE false END",
                         sql->names->prefix, sql->to.where);
    else
        spate_buf_printf(sql->create, "\"%sop\" IN ('u', 'r')", sql->names->prefix);
}

bool spate_sql_may_be_equal(const struct spate_version *version)
{
    enum spate_load_kind kind = version->projection->load.kind;

    return kind == SPATE_LOAD_MARKED || kind == SPATE_LOAD_ADD;
}

/* Compared by image, which every type has, and which tells 1.0 from 1.00. */
void spate_relation_compare(const struct spate_relation *relation, const char *a, const char *b,
                            const char *op, struct spate_buf *sql)
{
    const char *sides[] = {a, b};

    for (size_t side = 0; side < 2; side++) {
        size_t count = 0;

        spate_buf_puts(sql, "ROW(");
        for (size_t i = 0; i < relation->output_count; i++) {
            if (relation->outputs[i].key)
                continue;
            spate_buf_printf(sql, "%s%s.", count++ ? ", " : "", sides[side]);
            spate_sql_ident(sql, relation->outputs[i].name);
        }
        spate_buf_puts(sql, ")::pg_catalog.record");
        if (side == 0)
            spate_buf_printf(sql, " OPERATOR(pg_catalog.%s) ", op);
    }
}

void spate_sql_insert(const struct spate_sql *sql)
{
    struct spate_buf *create = sql->create;

    /* Under another name, since a table may be called excluded. */
    spate_buf_printf(create, "INSERT INTO %s AS t (", sql->to.name);
    for (size_t i = 0; i < sql->to.output_count; i++) {
        spate_buf_puts(create, i ? ", " : "");
        spate_sql_ident(create, sql->to.outputs[i].name);
    }
    spate_buf_puts(create, ") SELECT ");
    for (size_t i = 0; i < sql->to.output_count; i++)
        spate_buf_printf(create, "%s(%s\n)", i ? ", " : "", sql->to.outputs[i].expr);
}

void spate_sql_on_conflict(const struct spate_sql *sql)
{
    struct spate_buf *create = sql->create;
    size_t set = 0;

    spate_buf_puts(create, " ON CONFLICT (");
    for (size_t k = 0; k < sql->version->key_count; k++) {
        spate_buf_puts(create, k ? ", " : "");
        spate_sql_ident(create, spate_relation_key(sql->version, &sql->to, k)->name);
    }
    spate_buf_puts(create, ") DO ");
    for (size_t i = 0; i < sql->to.output_count; i++) {
        if (sql->to.outputs[i].key)
            continue;
        spate_buf_puts(create, set++ ? ", " : "UPDATE SET ");
        spate_sql_ident(create, sql->to.outputs[i].name);
        spate_buf_puts(create, " = EXCLUDED.");
        spate_sql_ident(create, sql->to.outputs[i].name);
    }
    if (set == 0)
        spate_buf_puts(create, "NOTHING");
    else if (spate_sql_may_be_equal(sql->version)) {
        spate_buf_puts(create, " WHERE ");
        spate_relation_compare(&sql->to, "t", "EXCLUDED", "*<>", create);
    }
}

/* Which character of the mask tells whether the output's one column came; -1: it always does. */
static int mask_of(const struct spate_version *version, const struct spate_output *output)
{
    for (size_t i = 0; i < version->used_count; i++)
        if (output->use_count == 1 && version->used[i] == output->uses[0])
            return version->maybe[i];
    return -1;
}

void spate_sql_update(const struct spate_sql *sql, bool moves)
{
    const struct spate_version *version = sql->version;
    struct spate_buf *create = sql->create;
    size_t set = 0;

    spate_buf_printf(create, "UPDATE %s AS t SET ", sql->to.name);
    for (size_t i = 0; i < sql->to.output_count; i++) {
        const struct spate_output *output = &sql->to.outputs[i];
        int mask = mask_of(version, output);

        if (output->key && !moves)
            continue;
        spate_buf_puts(create, set++ ? ", " : "");
        spate_sql_ident(create, output->name);
        if (mask < 0) {
            spate_buf_printf(create, " = s.v%zu", i);
        } else {
            spate_buf_printf(create, " = CASE WHEN s.m%d THEN s.v%zu ELSE t.", mask, i);
            spate_sql_ident(create, output->name);
            spate_buf_puts(create, " END");
        }
    }
    spate_buf_puts(create, " FROM (SELECT ");
    spate_sql_keys(sql, moves, 'k');
    for (size_t m = 0; m < version->maybe_count; m++)
        spate_buf_printf(create, ", substr(\"%smask\", %zu, 1) = '1' AS m%zu", sql->names->prefix, m + 1, m);
    for (size_t i = 0; i < sql->to.output_count; i++) {
        int mask = mask_of(version, &sql->to.outputs[i]);
        if (mask < 0)
            spate_buf_printf(create, ", (%s\n) AS v%zu", sql->to.outputs[i].expr, i);
        else
            spate_buf_printf(create, ", CASE WHEN substr(\"%smask\", %d, 1) = '1' THEN (%s\n) END AS v%zu",
                             sql->names->prefix, mask + 1, sql->to.outputs[i].expr, i);
    }
    spate_buf_puts(create, " FROM ");
}

/* A row is updated in place only where each output is of one column, or of none that may be missing; else
 * there is a copy (sinks/plan.c), of which that is true. So each output is computed, or it keeps what the
 * relation has (T11). */
static void partial_sql(const struct spate_sql *sql, char kind)
{
    const struct spate_version *version = sql->version;
    struct spate_buf *create = sql->create;
    bool marked = version->projection->load.kind == SPATE_LOAD_MARKED;

    spate_sql_update(sql, kind == 'm');
    spate_buf_printf(create, "%s WHERE \"%sop\" = '%c') AS s", sql->names->from, sql->names->prefix, kind);
    if (marked) /* rows from before the snapshot are not what the change was made to */
        spate_buf_printf(create, ", %s AS o", version->projection->load.marks);
    spate_buf_puts(create, " WHERE ");
    spate_sql_match(sql, "t", false, 'k');
    if (sql->to.own)
        spate_buf_printf(create, " AND t.shape = %" PRId64, version->copy.shape);
    if (marked) {
        spate_buf_puts(create, " AND ");
        spate_sql_match(sql, "o", true, 'k');
    }
}

static void merge_sql(const struct spate_sql *sql, struct spate_merge *merge)
{
    const struct spate_version *version = sql->version;
    const bool beside = version->projection->load.copied && !sql->to.own;

    merge->erase = spate_sql_prepare(sql, 'd');
    spate_sql_erase(sql, sql->to.name, false);
    merge->upsert = spate_sql_prepare(sql, 'u');
    spate_sql_insert(sql);
    spate_sql_come_in(sql);
    spate_sql_on_conflict(sql);
    if (!beside)
        spate_sql_load(sql, merge);
    if (version->maybe_count == 0)
        return;
    if (beside) {
        spate_sql_derive(sql, merge);
        return;
    }
    merge->partial = spate_sql_prepare(sql, 'p');
    partial_sql(sql, 'p');
    merge->move = spate_sql_prepare(sql, 'm');
    partial_sql(sql, 'm');
    if (sql->to.own)
        spate_sql_copy(sql, merge);
}

/* The relation's statements: from the staging table, and from arrays. */
static void relation_sql(struct spate_version *version, struct spate_relation to, struct spate_names *names,
                         const char *rows, const char *arguments, struct spate_merge *large,
                         struct spate_merge *small, struct spate_buf *create)
{
    const struct spate_sql sql = {version, names, to, create};

    names->from = version->sql.stage;
    names->suffix = names->arguments = "";
    merge_sql(&sql, large);
    large->insert = spate_sql_prepare(&sql, 'i');
    spate_sql_insert(&sql);
    spate_sql_come_in(&sql);
    names->from = rows;
    names->arguments = arguments;
    names->suffix = "s";
    merge_sql(&sql, small);
}

void spate_version_sql(struct spate_version *version)
{
    const struct spate_load *load = &version->projection->load;
    struct spate_relation held = spate_version_held(version), team = spate_version_team(version);
    struct spate_buf create = {0}, rows = {0}, arguments = {0};
    struct spate_names names = {0};

    spate_version_forget_sql(version);
    spate_load_hash_version(version->projection, version, version->hash);
    choose_names(version, &names);
    stage_table(version, &names);
    array_source(version, &names, &rows, &arguments);
    if (load->target)
        held.name = load->target;
    if (held.own)
        relation_sql(version, held, &names, spate_buf_str(&rows), spate_buf_str(&arguments),
                     &version->sql.copy.large, &version->sql.copy.small, &create);
    relation_sql(version, held.own ? team : held, &names, spate_buf_str(&rows), spate_buf_str(&arguments),
                 &version->sql.large, &version->sql.small, &create);
    version->sql.create = take(&create);
    spate_buf_fini(&rows);
    spate_buf_fini(&arguments);
}
