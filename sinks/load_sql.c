/* sinks/load_sql.c - what a load adds to the statements of a version: the marks of its generation, and the
 * re-read list (sinks/load.h). Pure. */
#include "sinks/merge_sql.h"

#include <inttypes.h>

/* "FROM the table that tells which rows the generation has AS o WHERE o.key = s.x0". A row that the copy kept
 * other columns of is not known. */
static void known(const struct spate_sql *sql, char letter)
{
    const struct spate_load *load = &sql->version->projection->load;
    bool marked = load->kind == SPATE_LOAD_MARKED;

    spate_buf_printf(sql->create, "FROM %s AS o WHERE ", marked && !sql->to.own ? load->marks : sql->to.name);
    spate_sql_match(sql, "o", marked && !sql->to.own, letter);
    if (!sql->to.own)
        return;
    spate_buf_printf(sql->create, " AND o.shape = %" PRId64, sql->version->copy.shape);
    if (!marked)
        return;
    spate_buf_printf(sql->create, " AND EXISTS (SELECT FROM %s AS g WHERE ", load->marks);
    spate_sql_match(sql, "g", true, letter);
    spate_buf_putc(sql->create, ')');
}

/* What was looked for and is not known has to be read again, by the key that it has now (P94). */
static void list_sql(const struct spate_sql *sql, char kind)
{
    struct spate_buf *create = sql->create;

    spate_buf_printf(create, "INSERT INTO %s SELECT ", sql->version->projection->load.list);
    for (size_t k = 0; k < sql->version->key_count; k++)
        spate_buf_printf(create, "%ss.n%zu", k ? ", " : "", k);
    spate_buf_puts(create, " FROM (SELECT ");
    spate_sql_keys(sql, kind == 'm', 'k');
    spate_buf_puts(create, ", ");
    spate_sql_keys(sql, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = '%c') AS s WHERE NOT EXISTS (SELECT ",
                     sql->names->from, sql->names->prefix, kind);
    known(sql, 'k');
    spate_buf_puts(create, ") ON CONFLICT DO NOTHING");
}

static void off_sql(const struct spate_sql *sql, bool move)
{
    spate_buf_printf(sql->create, "DELETE FROM %s AS t USING (SELECT ", sql->version->projection->load.list);
    spate_sql_keys(sql, move, 'k');
    spate_buf_printf(sql->create, " FROM %s WHERE \"%sop\" IN (%s)) AS s WHERE ", sql->names->from,
                     sql->names->prefix, move ? "'m'" : "'d', 'r', 'u', 'k'");
    spate_sql_match(sql, "t", true, 'k');
}

static void mark_sql(const struct spate_sql *sql)
{
    spate_buf_printf(sql->create, "INSERT INTO %s SELECT ", sql->version->projection->load.marks);
    spate_sql_keys(sql, false, 'k');
    spate_sql_come_in(sql);
    spate_buf_puts(sql->create, " ON CONFLICT DO NOTHING");
}

/* A row that was deleted while nobody listened may stand where another one moves to now. */
static void clear_sql(const struct spate_sql *sql)
{
    struct spate_buf *create = sql->create;

    spate_buf_printf(create, "DELETE FROM %s AS t USING (SELECT ", sql->to.name);
    spate_sql_keys(sql, true, 'k');
    spate_buf_puts(create, ", ");
    spate_sql_keys(sql, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = 'm') AS s WHERE ", sql->names->from,
                     sql->names->prefix);
    spate_sql_match(sql, "t", false, 'n');
    spate_buf_puts(create, " AND EXISTS (SELECT ");
    known(sql, 'k');
    spate_buf_putc(create, ')');
    if (sql->version->projection->load.kind == SPATE_LOAD_MARKED) {
        spate_buf_puts(create, " AND NOT EXISTS (SELECT ");
        known(sql, 'n');
        spate_buf_putc(create, ')');
    }
}

static void mark_move_sql(const struct spate_sql *sql)
{
    struct spate_buf *create = sql->create;

    spate_buf_printf(create, "UPDATE %s AS t SET ", sql->version->projection->load.marks);
    for (size_t k = 0; k < sql->version->key_count; k++)
        spate_buf_printf(create, "%sk%zu = s.n%zu", k ? ", " : "", k, k);
    spate_buf_puts(create, " FROM (SELECT ");
    spate_sql_keys(sql, true, 'k');
    spate_buf_puts(create, ", ");
    spate_sql_keys(sql, false, 'n');
    spate_buf_printf(create, " FROM %s WHERE \"%sop\" = 'm') AS s WHERE ", sql->names->from,
                     sql->names->prefix);
    spate_sql_match(sql, "t", true, 'k');
}

void spate_sql_load(const struct spate_sql *sql, struct spate_merge *merge)
{
    const struct spate_load *load = &sql->version->projection->load;

    /* Without a load it is for tables that are not known to be complete: their rows may be stale as well. */
    if (sql->version->maybe_count > 0 && load->kind != SPATE_LOAD_EMPTY && load->kind != SPATE_LOAD_SHADOW) {
        merge->load.clear = spate_sql_prepare(sql, 'c');
        clear_sql(sql);
    }
    if (load->kind == SPATE_LOAD_NONE)
        return;
    merge->load.off = spate_sql_prepare(sql, 'f');
    off_sql(sql, false);
    if (load->kind == SPATE_LOAD_MARKED) {
        merge->load.mark = spate_sql_prepare(sql, 'k');
        mark_sql(sql);
        merge->load.unmark = spate_sql_prepare(sql, 'e');
        spate_sql_erase(sql, load->marks, true);
    }
    if (sql->version->maybe_count == 0)
        return;
    merge->load.list = spate_sql_prepare(sql, 'l');
    list_sql(sql, 'p');
    merge->load.list_move = spate_sql_prepare(sql, 'n');
    list_sql(sql, 'm');
    merge->load.off_move = spate_sql_prepare(sql, 'o');
    off_sql(sql, true);
    if (load->kind == SPATE_LOAD_MARKED) {
        merge->load.mark_move = spate_sql_prepare(sql, 'v');
        mark_move_sql(sql);
    }
}
