/* sinks/merge_sql.c - the statements that stage and merge one version of one table. Pure.
 *
 * A piece's rows go into a temporary table whose columns have the source's names and types, plus three of our
 * own: what to do, which values came, and the old key of a row that moved. The team's expressions are
 * evaluated over that table alone, so that no name in them can mean anything else, each followed by a
 * newline, so that a comment at its end ends there.
 *
 * While a snapshot of the table is under way some statements are added, which keep the marks of its
 * generation and the re-read list (sinks/load.h). */
#include "core/alloc.h"
#include "sinks/projection.h"

#include <stdio.h>
#include <stdlib.h>

struct names {
    char prefix[72];       /* our own columns begin with more tildes than any column of the source */
    const char *from;      /* the relation that holds the rows */
    const char *suffix;    /* of the prepared statements' names */
    const char *arguments; /* their parameters' types in parentheses, or "" */
};

static void choose_names(const struct spate_version *version, struct names *names)
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

static void ident(struct spate_buf *out, const char *name)
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

/* The outputs of the key, in the order of the source's key. */
static const struct spate_output *key_output(const struct spate_version *version, size_t k)
{
    for (size_t i = 0; i < version->output_count; i++)
        if (version->outputs[i].key && version->outputs[i].bare == (int)version->table->key[k])
            return &version->outputs[i];
    return NULL; /* spate_version_plan made sure that there is one */
}

static void stage_table(struct spate_version *version, const struct names *names)
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
static void array_source(const struct spate_version *version, const struct names *names,
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

/* Appends "PREPARE name AS " and returns "EXECUTE name". A statement that has no parameters gets one that
 * it does not use: only then is it planned each time it is executed, which sinks/store.c relies on. */
static char *prepare(const struct spate_version *version, const struct names *names, struct spate_buf *create,
                     char kind)
{
    unsigned edition = version->projection->load.edition;
    char name[100], more[20] = "";

    if (edition) /* those of earlier editions stay, unused, until the connection ends */
        snprintf(more, sizeof more, "_%u", edition);
    snprintf(name, sizeof name, "EXECUTE spate_%c%s%zu_%u%s", kind, names->suffix, version->projection->index,
             version->table->v, more);
    spate_buf_printf(create, "%sPREPARE %s%s AS ", create->len ? ";\n" : "", name + sizeof "EXECUTE " - 1,
                     names->arguments[0] ? names->arguments : " (integer)");
    if (!names->arguments[0])
        strcat(name, " (0)");
    return spate_strdup(name);
}

/* Where the rows go. */
static const char *target_of(const struct spate_version *version)
{
    const struct spate_projection *projection = version->projection;

    return projection->load.target ? projection->load.target : projection->target;
}

/* "t.key = s.k0 AND ...". Tables of our own have k0, k1, ... for the key's columns. */
static void match_keys(const struct spate_version *version, struct spate_buf *out, const char *alias,
                       bool ours, char letter)
{
    for (size_t k = 0; k < version->key_count; k++) {
        spate_buf_printf(out, "%s%s.", k ? " AND " : "", alias);
        if (ours)
            spate_buf_printf(out, "k%zu", k);
        else
            ident(out, key_output(version, k)->name);
        spate_buf_printf(out, " = s.%c%zu", letter, k);
    }
}

static void join_keys(const struct spate_version *version, struct spate_buf *out)
{
    spate_buf_puts(out, " WHERE ");
    match_keys(version, out, "t", false, 'k');
}

/* The key of a staged row, or the one it had before, as k0, k1, ... or another letter. */
static void staged_keys(const struct spate_version *version, const struct names *names, struct spate_buf *out,
                        bool old, char letter)
{
    for (size_t k = 0; k < version->key_count; k++) {
        spate_buf_puts(out, k ? ", " : "");
        if (old)
            spate_buf_printf(out, "\"%sold%zu\"", names->prefix, k);
        else
            source_ident(out, version, version->key_at[k]);
        spate_buf_printf(out, " AS %c%zu", letter, k);
    }
}

/* CASE keeps the team's condition away from rows that are staged without values. */
static void erase_sql(const struct spate_version *version, const struct names *names,
                      struct spate_buf *create, bool marks)
{
    spate_buf_printf(create, "DELETE FROM %s AS t USING (SELECT ",
                     marks ? version->projection->load.marks : target_of(version));
    staged_keys(version, names, create, false, 'k');
    spate_buf_printf(create, " FROM %s WHERE ", names->from);
    if (version->where)
        spate_buf_printf(
            create,
            "CASE \"%sop\" WHEN 'd' THEN true WHEN 'r' THEN true WHEN 'u' THEN (%s\n) IS NOT TRUE ELSE "
            "false END",
            names->prefix, version->where);
    else
        spate_buf_printf(create, "\"%sop\" IN ('d', 'r')", names->prefix);
    spate_buf_puts(create, ") AS s WHERE ");
    match_keys(version, create, "t", marks, 'k');
}

/* The staged rows that the target is to hold. */
static void come_in(const struct spate_version *version, const struct names *names, struct spate_buf *create)
{
    spate_buf_printf(create, " FROM %s WHERE ", names->from);
    if (version->where)
        spate_buf_printf(create, "CASE WHEN \"%sop\" IN ('u', 'r') THEN (%s\n) ELSE false END", names->prefix,
                         version->where);
    else
        spate_buf_printf(create, "\"%sop\" IN ('u', 'r')", names->prefix);
}

/* A snapshot over rows that are there finds most of them as they should be: those are not written again. */
static bool may_be_equal(const struct spate_version *version)
{
    enum spate_load_kind kind = version->projection->load.kind;

    return kind == SPATE_LOAD_MARKED || kind == SPATE_LOAD_ADD;
}

/* Compared by image, which every type has, and which tells 1.0 from 1.00. */
void spate_version_compare(const struct spate_version *version, const char *a, const char *b, const char *op,
                           struct spate_buf *sql)
{
    const char *sides[] = {a, b};

    for (size_t side = 0; side < 2; side++) {
        size_t count = 0;

        spate_buf_puts(sql, "ROW(");
        for (size_t i = 0; i < version->output_count; i++) {
            if (version->outputs[i].key)
                continue;
            spate_buf_printf(sql, "%s%s.", count++ ? ", " : "", sides[side]);
            ident(sql, version->outputs[i].name);
        }
        spate_buf_puts(sql, ")::pg_catalog.record");
        if (side == 0)
            spate_buf_printf(sql, " OPERATOR(pg_catalog.%s) ", op);
    }
}

static void insert_sql(const struct spate_version *version, const struct names *names,
                       struct spate_buf *create)
{
    spate_buf_printf(create, "INSERT INTO %s%s (", target_of(version), may_be_equal(version) ? " AS t" : "");
    for (size_t i = 0; i < version->output_count; i++) {
        spate_buf_puts(create, i ? ", " : "");
        ident(create, version->outputs[i].name);
    }
    spate_buf_puts(create, ") SELECT ");
    for (size_t i = 0; i < version->output_count; i++)
        spate_buf_printf(create, "%s(%s\n)", i ? ", " : "", version->outputs[i].expr);
    come_in(version, names, create);
}

static void upsert_sql(const struct spate_version *version, const struct names *names,
                       struct spate_buf *create)
{
    size_t set = 0;

    insert_sql(version, names, create);
    spate_buf_puts(create, " ON CONFLICT (");
    for (size_t k = 0; k < version->key_count; k++) {
        spate_buf_puts(create, k ? ", " : "");
        ident(create, key_output(version, k)->name);
    }
    spate_buf_puts(create, ") DO ");
    for (size_t i = 0; i < version->output_count; i++) {
        if (version->outputs[i].key)
            continue;
        spate_buf_puts(create, set++ ? ", " : "UPDATE SET ");
        ident(create, version->outputs[i].name);
        spate_buf_puts(create, " = EXCLUDED.");
        ident(create, version->outputs[i].name);
    }
    if (set == 0)
        spate_buf_puts(create, "NOTHING");
    else if (may_be_equal(version)) {
        spate_buf_puts(create, " WHERE ");
        spate_version_compare(version, "t", "EXCLUDED", "*<>", create);
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

/* Partial rows exist only where no `where` uses what may be missing, and no expression mixes it with other
 * columns (sinks/plan.c): so each output is computed, or it keeps what the target has (T11). */
static void partial_sql(const struct spate_version *version, const struct names *names,
                        struct spate_buf *create, char kind)
{
    bool marked = version->projection->load.kind == SPATE_LOAD_MARKED;
    size_t set = 0;

    spate_buf_printf(create, "UPDATE %s AS t SET ", target_of(version));
    for (size_t i = 0; i < version->output_count; i++) {
        const struct spate_output *output = &version->outputs[i];
        int mask = mask_of(version, output);

        if (output->key && kind == 'p')
            continue;
        spate_buf_puts(create, set++ ? ", " : "");
        ident(create, output->name);
        if (mask < 0) {
            spate_buf_printf(create, " = s.v%zu", i);
        } else {
            spate_buf_printf(create, " = CASE WHEN s.m%d THEN s.v%zu ELSE t.", mask, i);
            ident(create, output->name);
            spate_buf_puts(create, " END");
        }
    }
    spate_buf_puts(create, " FROM (SELECT ");
    staged_keys(version, names, create, kind == 'm', 'k');
    for (size_t m = 0; m < version->maybe_count; m++)
        spate_buf_printf(create, ", substr(\"%smask\", %zu, 1) = '1' AS m%zu", names->prefix, m + 1, m);
    for (size_t i = 0; i < version->output_count; i++) {
        int mask = mask_of(version, &version->outputs[i]);
        if (mask < 0)
            spate_buf_printf(create, ", (%s\n) AS v%zu", version->outputs[i].expr, i);
        else
            spate_buf_printf(create, ", CASE WHEN substr(\"%smask\", %d, 1) = '1' THEN (%s\n) END AS v%zu",
                             names->prefix, mask + 1, version->outputs[i].expr, i);
    }
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = '%c') AS s", names->from, names->prefix, kind);
    if (marked) /* rows from before the snapshot are not what the change was made to */
        spate_buf_printf(create, ", %s AS o", version->projection->load.marks);
    join_keys(version, create);
    if (marked) {
        spate_buf_puts(create, " AND ");
        match_keys(version, create, "o", true, 'k');
    }
}

/* "FROM the table that tells which rows the generation has AS o WHERE o.key = s.x0" */
static void known(const struct spate_version *version, struct spate_buf *create, char letter)
{
    bool marked = version->projection->load.kind == SPATE_LOAD_MARKED;

    spate_buf_printf(create, "FROM %s AS o WHERE ",
                     marked ? version->projection->load.marks : target_of(version));
    match_keys(version, create, "o", marked, letter);
}

/* What was looked for and is not known has to be read again, by the key that it has now (P94). */
static void list_sql(const struct spate_version *version, const struct names *names, struct spate_buf *create,
                     char kind)
{
    spate_buf_printf(create, "INSERT INTO %s SELECT ", version->projection->load.list);
    for (size_t k = 0; k < version->key_count; k++)
        spate_buf_printf(create, "%ss.n%zu", k ? ", " : "", k);
    spate_buf_puts(create, " FROM (SELECT ");
    staged_keys(version, names, create, kind == 'm', 'k');
    spate_buf_puts(create, ", ");
    staged_keys(version, names, create, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = '%c') AS s WHERE NOT EXISTS (SELECT ", names->from,
                     names->prefix, kind);
    known(version, create, 'k');
    spate_buf_puts(create, ") ON CONFLICT DO NOTHING");
}

static void off_sql(const struct spate_version *version, const struct names *names, struct spate_buf *create,
                    bool move)
{
    spate_buf_printf(create, "DELETE FROM %s AS t USING (SELECT ", version->projection->load.list);
    staged_keys(version, names, create, move, 'k');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" IN (%s)) AS s WHERE ", names->from, names->prefix,
                     move ? "'m'" : "'d', 'r', 'u', 'k'");
    match_keys(version, create, "t", true, 'k');
}

static void mark_sql(const struct spate_version *version, const struct names *names, struct spate_buf *create)
{
    spate_buf_printf(create, "INSERT INTO %s SELECT ", version->projection->load.marks);
    staged_keys(version, names, create, false, 'k');
    come_in(version, names, create);
    spate_buf_puts(create, " ON CONFLICT DO NOTHING");
}

/* A row that was deleted while nobody listened may stand where another one moves to now. */
static void clear_sql(const struct spate_version *version, const struct names *names,
                      struct spate_buf *create)
{
    spate_buf_printf(create, "DELETE FROM %s AS t USING (SELECT ", target_of(version));
    staged_keys(version, names, create, true, 'k');
    spate_buf_puts(create, ", ");
    staged_keys(version, names, create, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = 'm') AS s WHERE ", names->from, names->prefix);
    match_keys(version, create, "t", false, 'n');
    spate_buf_puts(create, " AND EXISTS (SELECT ");
    known(version, create, 'k');
    spate_buf_putc(create, ')');
    if (version->projection->load.kind == SPATE_LOAD_MARKED) {
        spate_buf_puts(create, " AND NOT EXISTS (SELECT ");
        known(version, create, 'n');
        spate_buf_putc(create, ')');
    }
}

static void mark_move_sql(const struct spate_version *version, const struct names *names,
                          struct spate_buf *create)
{
    spate_buf_printf(create, "UPDATE %s AS t SET ", version->projection->load.marks);
    for (size_t k = 0; k < version->key_count; k++)
        spate_buf_printf(create, "%sk%zu = s.n%zu", k ? ", " : "", k, k);
    spate_buf_puts(create, " FROM (SELECT ");
    staged_keys(version, names, create, true, 'k');
    spate_buf_puts(create, ", ");
    staged_keys(version, names, create, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = 'm') AS s WHERE ", names->from, names->prefix);
    match_keys(version, create, "t", true, 'k');
}

static void load_sql(const struct spate_version *version, const struct names *names,
                     struct spate_merge *merge, struct spate_buf *create)
{
    enum spate_load_kind kind = version->projection->load.kind;

    if (kind == SPATE_LOAD_NONE)
        return;
    merge->load.off = prepare(version, names, create, 'f');
    off_sql(version, names, create, false);
    if (kind == SPATE_LOAD_MARKED) {
        merge->load.mark = prepare(version, names, create, 'k');
        mark_sql(version, names, create);
        merge->load.unmark = prepare(version, names, create, 'e');
        erase_sql(version, names, create, true);
    }
    if (version->maybe_count == 0)
        return;
    merge->load.list = prepare(version, names, create, 'l');
    list_sql(version, names, create, 'p');
    merge->load.list_move = prepare(version, names, create, 'n');
    list_sql(version, names, create, 'm');
    merge->load.off_move = prepare(version, names, create, 'o');
    off_sql(version, names, create, true);
    if (kind == SPATE_LOAD_MARKED || kind == SPATE_LOAD_ADD) {
        merge->load.clear = prepare(version, names, create, 'c');
        clear_sql(version, names, create);
    }
    if (kind == SPATE_LOAD_MARKED) {
        merge->load.mark_move = prepare(version, names, create, 'v');
        mark_move_sql(version, names, create);
    }
}

static void merge_sql(const struct spate_version *version, const struct names *names,
                      struct spate_merge *merge, struct spate_buf *create)
{
    merge->erase = prepare(version, names, create, 'd');
    erase_sql(version, names, create, false);
    merge->upsert = prepare(version, names, create, 'u');
    upsert_sql(version, names, create);
    load_sql(version, names, merge, create);
    if (version->maybe_count == 0)
        return;
    merge->partial = prepare(version, names, create, 'p');
    partial_sql(version, names, create, 'p');
    merge->move = prepare(version, names, create, 'm');
    partial_sql(version, names, create, 'm');
}

void spate_version_sql(struct spate_version *version)
{
    struct spate_buf create = {0}, rows = {0}, arguments = {0};
    struct names names = {.suffix = "", .arguments = ""};

    spate_version_forget_sql(version);
    choose_names(version, &names);
    stage_table(version, &names);
    names.from = version->sql.stage;
    merge_sql(version, &names, &version->sql.large, &create);
    version->sql.insert = prepare(version, &names, &create, 'i');
    insert_sql(version, &names, &create);

    array_source(version, &names, &rows, &arguments);
    names.from = spate_buf_str(&rows);
    names.arguments = spate_buf_str(&arguments);
    names.suffix = "s";
    merge_sql(version, &names, &version->sql.small, &create);
    version->sql.create = take(&create);
    spate_buf_fini(&rows);
    spate_buf_fini(&arguments);
}
