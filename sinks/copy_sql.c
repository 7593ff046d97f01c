/* sinks/copy_sql.c - what is merged into a copy besides what goes into any relation, and how the team's rows
 * follow from it. Pure. */
#include "sinks/copy.h"
#include "sinks/merge_sql.h"

#include <inttypes.h>

/* "DELETE FROM relation AS t USING (the keys of staged rows of one kind) AS s WHERE they match" */
static void delete_sql(const struct spate_sql *sql, const char *op, bool old)
{
    spate_buf_printf(sql->create, "DELETE FROM %s AS t USING (SELECT ", sql->to.name);
    spate_sql_keys(sql, old, 'k');
    spate_buf_printf(sql->create, " FROM %s WHERE \"%sop\" = '%s') AS s WHERE ", sql->names->from,
                     sql->names->prefix, op);
    spate_sql_match(sql, "t", false, 'k');
}

/* Whatever stood at a key that a row left or took was wrong already, unless it is the row itself. */
static void move_sql(const struct spate_sql *sql, struct spate_merge *merge)
{
    merge->room = spate_sql_prepare(sql, 'r');
    delete_sql(sql, "m", false);
    merge->left = spate_sql_prepare(sql, 'y');
    delete_sql(sql, "m", true);
}

void spate_sql_copy(const struct spate_sql *sql, struct spate_merge *merge)
{
    move_sql(sql, merge);
    /* It missed this change; a version that the row has the shape of may come again. */
    merge->stale = spate_sql_prepare(sql, 'x');
    delete_sql(sql, "p", false);
    spate_buf_printf(sql->create, " AND t.shape <> %" PRId64, sql->version->copy.shape);
}

/* "WITH spate_rows AS (what the copy has of the staged rows that did not come whole)": what the team's
 * expressions see, looked up once; and which of their values came. */
static void changed_rows(const struct spate_sql *sql)
{
    const struct spate_version *version = sql->version;
    struct spate_buf keys = {0}, mask = {0};
    struct spate_sql inner = *sql;

    inner.create = &keys;
    spate_buf_puts(&keys, "(SELECT ");
    spate_sql_keys(&inner, false, 'k');
    spate_buf_printf(&keys, ", \"%smask\" FROM %s WHERE \"%sop\" IN ('p', 'm')) AS s, ", sql->names->prefix,
                     sql->names->from, sql->names->prefix);
    spate_buf_printf(&mask, ", s.\"%smask\"", sql->names->prefix);
    spate_buf_puts(sql->create, "WITH spate_rows AS MATERIALIZED (");
    spate_copy_rows(version, version->projection->load.copy, spate_buf_str(&mask), spate_buf_str(&keys),
                    sql->create);
    for (size_t k = 0; k < version->key_count; k++)
        spate_buf_printf(sql->create, " AND c.k%zu = s.k%zu", k, k);
    spate_buf_puts(sql->create, "), ");
    spate_buf_fini(&keys);
    spate_buf_fini(&mask);
}

static void matching(const struct spate_sql *sql)
{
    if (sql->to.where)
        spate_buf_printf(sql->create, "spate_rows WHERE (%s\n)", sql->to.where);
    else
        spate_buf_puts(sql->create, "spate_rows WHERE true");
}

/* Rows leave and enter `where` as they are now, whatever part of them came (T13). What stays keeps the values
 * of columns that did not come: they are the same, and a long one is not written again. No row is in two of
 * the three parts. */
void spate_sql_derive(const struct spate_sql *sql, struct spate_merge *merge)
{
    struct spate_buf *create = sql->create;

    move_sql(sql, merge);
    merge->partial = spate_sql_prepare(sql, 'p');
    changed_rows(sql);
    if (sql->to.where) {
        spate_buf_printf(create, "spate_left AS (DELETE FROM %s AS t USING (SELECT ", sql->to.name);
        spate_sql_keys(sql, false, 'k');
        spate_buf_printf(create, " FROM spate_rows WHERE (%s\n) IS NOT TRUE) AS s WHERE ", sql->to.where);
        spate_sql_match(sql, "t", false, 'k');
        spate_buf_puts(create, "), ");
    }
    if (sql->to.output_count > sql->version->key_count) {
        spate_buf_puts(create, "spate_stays AS (");
        spate_sql_update(sql, false);
        matching(sql);
        spate_buf_puts(create, ") AS s WHERE ");
        spate_sql_match(sql, "t", false, 'k');
        spate_buf_puts(create, "), ");
    }
    create->len -= 2; /* the last comma */
    spate_buf_putc(create, ' ');
    spate_sql_insert(sql);
    spate_buf_puts(create, " FROM ");
    matching(sql);
    spate_buf_printf(create, " AND NOT EXISTS (SELECT FROM %s AS t, (SELECT ", sql->to.name);
    spate_sql_keys(sql, false, 'k');
    spate_buf_puts(create, ") AS s WHERE ");
    spate_sql_match(sql, "t", false, 'k');
    spate_buf_putc(create, ')');
}
