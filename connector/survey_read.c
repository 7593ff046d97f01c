/* connector/survey_read.c - a survey from the catalogs themselves: the views and functions beside them lock
 * the tables that they tell of. */
#include "connector/survey.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/hash.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS    30000
#define FETCH        500 /* tables whose columns are asked for at once */
#define ONE_COMMAND  3   /* CREATE TABLE ... PARTITION OF takes 2 steps from the table to its place */
#define BACK_US      INT64_C(60000000) /* the server counts what was altered late, by ten seconds and more */
#define PAGE_HEADERS 40                /* the longest a WAL page has */

#define ALTERED_SQL                                                                                          \
    " pg_catalog.pg_stat_get_tuples_updated('pg_catalog.pg_attribute'::pg_catalog.regclass),"                \
    " (pg_catalog.pg_stat_get_tuples_updated('pg_catalog.pg_enum'::pg_catalog.regclass)"                     \
    "  + (SELECT coalesce(sum(a.attrelid::pg_catalog.int8 * 2039 + a.attnum::pg_catalog.int4 * a.attnum), "  \
    "0)"                                                                                                     \
    "   FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"    \
    "   AND NOT a.attisdropped WHERE c.relkind = 'c')) % 9223372036854775807"
static const char head_sql[] =
    "SELECT p.oid, p.xmin, pg_catalog.pg_snapshot_xmin(s), pg_catalog.pg_snapshot_xmax(s)," ALTERED_SQL
    " FROM pg_catalog.pg_current_snapshot() s LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $1";

/* One row for each file, and one for each partitioned table that is published as itself. `member`: what the
 * publication names, by itself, by its schema or as everything; `placed`: the topmost of them above a
 * partition. */
#define MEMBERS_SQL                                                                                          \
    "WITH RECURSIVE pub AS MATERIALIZED (SELECT oid, puballtables, pubviaroot, xmin"                         \
    "  FROM pg_catalog.pg_publication WHERE pubname = $1),"                                                  \
    " member AS MATERIALIZED (SELECT r.prrelid AS relid, r.oid AS way, r.xmin AS since FROM pub"             \
    "   JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid"                                         \
    "  UNION ALL SELECT c.oid, pub.oid, pub.xmin FROM pub JOIN pg_catalog.pg_class c ON pub.puballtables"    \
    "   WHERE c.relkind IN ('r', 'p') AND c.relpersistence IN ('p', 'u') AND c.oid >= 16384"
#define SCHEMAS_SQL /* from 15 on */                                                                         \
    "  UNION ALL SELECT c.oid, n.oid, n.xmin FROM pub"                                                       \
    "   JOIN pg_catalog.pg_publication_namespace n ON n.pnpubid = pub.oid"                                   \
    "   JOIN pg_catalog.pg_class c ON c.relnamespace = n.pnnspid WHERE c.relkind IN ('r', 'p')"              \
    "   AND c.relpersistence IN ('p', 'u') AND c.oid NOT IN (SELECT r.prrelid"                               \
    "   FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = n.pnpubid)"
#define TABLES_SQL                                                                                           \
    "), up AS (SELECT i.inhrelid AS rel, i.inhparent AS anc, 1 AS depth,"                                    \
    "   i.xmin::pg_catalog.text || ':' || i.cmin::pg_catalog.text AS links FROM pg_catalog.pg_inherits i"    \
    "   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE c.relispartition"                             \
    "  UNION ALL SELECT u.rel, i.inhparent, u.depth + 1, u.links || ' ' || i.xmin::pg_catalog.text || ':'"   \
    "   || i.cmin::pg_catalog.text FROM up u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.anc"            \
    "   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE c.relispartition),"                           \
    " placed AS (SELECT DISTINCT ON (u.rel) u.rel, u.anc, m.way, m.since, u.links FROM up u"                 \
    "   JOIN member m ON m.relid = u.anc ORDER BY u.rel, u.depth DESC),"                                     \
    " files AS (SELECT CASE WHEN pub.pubviaroot AND p.rel IS NOT NULL THEN p.anc ELSE c.oid END AS top,"     \
    "   c.oid AS leaf, CASE WHEN p.rel IS NOT NULL AND (pub.pubviaroot OR m.relid IS NULL) THEN p.way"       \
    "    ELSE m.way END AS way, CASE WHEN p.rel IS NOT NULL AND (pub.pubviaroot OR m.relid IS NULL)"         \
    "    THEN p.since ELSE m.since END AS since, c.relfilenode, c.relpersistence, c.xmin AS touched, "       \
    "p.links"                                                                                                \
    "   FROM pub CROSS JOIN pg_catalog.pg_class c LEFT JOIN placed p ON p.rel = c.oid"                       \
    "   LEFT JOIN member m ON m.relid = c.oid WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u')"      \
    "   AND (p.rel IS NOT NULL OR m.relid IS NOT NULL)"                                                      \
    "  UNION ALL SELECT m.relid, 0, m.way, m.since, 0, 'p', c.xmin, '' FROM pub"                             \
    "   JOIN member m ON pub.pubviaroot JOIN pg_catalog.pg_class c ON c.oid = m.relid AND c.relkind = 'p'"   \
    "   WHERE m.relid NOT IN (SELECT p.rel FROM placed p))"                                                  \
    " SELECT f.top, n.nspname, c.relname, f.way, f.since, c.xmin, f.leaf, f.relfilenode, f.relpersistence,"  \
    "  f.touched, f.links FROM files f JOIN pg_catalog.pg_class c ON c.oid = f.top"                          \
    "  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
enum { T_TOP, T_SCHEMA, T_NAME, T_WAY, T_SINCE, T_XMIN, T_LEAF, T_FILE, T_PERSISTENCE, T_TOUCHED, T_LINKS };

static const char tables_14_sql[] = MEMBERS_SQL TABLES_SQL;
static const char tables_sql[] = MEMBERS_SQL SCHEMAS_SQL TABLES_SQL;

/* How values of a type print, as far as that changes without a change of the rows: which attributes the
 * composites in it have, all in one line, and the labels of the enums in it, the oldest first. */
#define INSIDE_SQL                                                                                           \
    "WITH RECURSIVE inside AS (SELECT y.oid, y.typrelid AS rel UNION SELECT n.oid, n.typrelid"               \
    "  FROM inside i JOIN pg_catalog.pg_type t ON t.oid = i.oid CROSS JOIN LATERAL (SELECT t.typelem"        \
    "   UNION ALL SELECT t.typbasetype"                                                                      \
    "   UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, "               \
    "r.rngmultitypid)"                                                                                       \
    "   UNION ALL SELECT x.atttypid FROM pg_catalog.pg_attribute x WHERE x.attrelid = t.typrelid"            \
    "    AND x.attnum > 0 AND NOT x.attisdropped) k(oid)"                                                    \
    "  JOIN pg_catalog.pg_type n ON n.oid = k.oid AND n.oid >= 16384)"                                       \
    " SELECT pg_catalog.concat_ws(E'\\n', (SELECT pg_catalog.string_agg(x.attrelid::pg_catalog.text || '.'"  \
    "  || x.attnum::pg_catalog.text, ' ' ORDER BY x.attrelid, x.attnum) FROM inside i"                       \
    "  JOIN pg_catalog.pg_attribute x ON x.attrelid = i.rel AND x.attnum > 0 AND NOT x.attisdropped),"       \
    "  (SELECT pg_catalog.string_agg(e.enumlabel, E'\\n' ORDER BY e.oid) FROM inside i"                      \
    "  JOIN pg_catalog.pg_enum e ON e.enumtypid = i.oid))"

/* Of each pair of a published table and one of its files: its columns, once, which of them are missing in
 * the file, and (number -1) who made the file's table. */
static const char columns_sql[] =
    "SELECT t.top, t.rel, a.attnum, a.attname, a.atttypid, a.xmin, a.cmin, a.atthasmissing,"
    " CASE WHEN y.oid >= 16384 AND (y.typtype <> 'b' OR y.typcategory = 'A') THEN (" INSIDE_SQL ") END"
    " FROM unnest($1::pg_catalog.oid[], $2::pg_catalog.oid[]) WITH ORDINALITY t(top, rel, i)"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = t.rel AND (a.attnum = -1 OR (a.attnum > 0"
    " AND NOT a.attisdropped AND (t.rel = t.top OR a.atthasmissing)))"
    " LEFT JOIN pg_catalog.pg_type y ON y.oid = a.atttypid ORDER BY t.i, a.attnum";
enum { C_TOP, C_REL, C_NUMBER, C_NAME, C_TYPE, C_XMIN, C_CMIN, C_MISSING, C_LABELS };

/* A column that is renamed touches no row of pg_class. */
static const char altered_sql[] =
    "SELECT DISTINCT a.attrelid FROM pg_catalog.pg_attribute a WHERE a.attnum > 0"
    " AND pg_catalog.age(a.xmin) <= pg_catalog.age($1::pg_catalog.xid)";

/* What was committed up to here is in the snapshot; a standby can show what it has received. */
static const char lsn_sql[] =
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN greatest(pg_catalog.pg_last_wal_receive_lsn(),"
    " pg_catalog.pg_last_wal_replay_lsn()) ELSE pg_catalog.pg_current_wal_insert_lsn() END,"
    " pg_catalog.current_setting('wal_block_size')," ALTERED_SQL;
enum { L_LSN, L_PAGE, L_COLUMNS, L_LABELS };

static uint32_t u32(const PGresult *res, int row, int column)
{
    return (uint32_t)strtoul(PQgetvalue(res, row, column), NULL, 10);
}

/* ---- tables ---- */

/* A row of the answer, by published table. */
struct row {
    uint32_t top, leaf;
    int at;
};

static int by_top(const void *a, const void *b)
{
    const struct row *one = a, *other = b;

    if (one->top != other->top)
        return one->top < other->top ? -1 : 1;
    return one->leaf < other->leaf ? -1 : one->leaf > other->leaf;
}

static uint64_t stamp(uint64_t hash, const PGresult *res, int row)
{
    static const int fields[] = {T_XMIN, T_WAY, T_LEAF, T_FILE, T_PERSISTENCE, T_TOUCHED, T_LINKS};

    for (size_t i = 0; i < SPATE_COUNT(fields); i++)
        hash =
            spate_fnv64(hash, PQgetvalue(res, row, fields[i]), (size_t)PQgetlength(res, row, fields[i]) + 1);
    return hash;
}

/* *rows says where in the answer the links of each leaf stand. */
static void take_tables(struct spate_survey *survey, const PGresult *res, struct row *rows)
{
    const int count = PQntuples(res);
    size_t names = 1;
    char *at;

    for (int i = 0; i < count; i++) {
        rows[i] = (struct row){u32(res, i, T_TOP), u32(res, i, T_LEAF), i};
        names += (size_t)PQgetlength(res, i, T_SCHEMA) + (size_t)PQgetlength(res, i, T_NAME) + 2;
    }
    qsort(rows, (size_t)count, sizeof *rows, by_top);
    survey->tables = spate_zalloc(((size_t)count + 1) * sizeof *survey->tables);
    survey->leaves = spate_zalloc(((size_t)count + 1) * sizeof *survey->leaves);
    at = survey->names = spate_alloc(names);
    for (int i = 0; i < count; i++) {
        const int row = rows[i].at;
        struct spate_survey_table *table;

        if (i == 0 || rows[i].top != rows[i - 1].top) {
            table = &survey->tables[survey->count++];
            table->oid = rows[i].top;
            table->way = u32(res, row, T_WAY);
            table->since = u32(res, row, T_SINCE);
            table->first = survey->leaf_count;
            table->stamp = SPATE_FNV64_START;
            table->schema = strcpy(at, PQgetvalue(res, row, T_SCHEMA));
            at += strlen(at) + 1;
            table->name = strcpy(at, PQgetvalue(res, row, T_NAME));
            at += strlen(at) + 1;
        }
        table = &survey->tables[survey->count - 1];
        table->stamp = stamp(table->stamp, res, row);
        if (rows[i].leaf == 0)
            continue;
        table->unlogged |= PQgetvalue(res, row, T_PERSISTENCE)[0] == 'u';
        table->leaf_count++;
        rows[survey->leaf_count].at = row;
        survey->leaves[survey->leaf_count++] = (struct spate_survey_leaf){
            .oid = rows[i].leaf, .file = u32(res, row, T_FILE), .xmin = u32(res, row, T_TOUCHED)};
    }
}

/* ---- columns ---- */

/* Was the partition made in its place, and its branch too, before any row could be in it? `links`: who tied
 * it to its parent, and the parent to its own, and so on, each with the step inside that transaction. */
static bool made_inside(const char *links, uint32_t born, uint32_t step)
{
    bool first = true;

    while (links && *links) {
        char *end;
        uint32_t tied = (uint32_t)strtoul(links, &end, 10), at = 0;

        if (*end == ':')
            at = (uint32_t)strtoul(end + 1, &end, 10);
        if (first && (tied != born || at < step || at - step > ONE_COMMAND))
            return false;
        if (!first && tied != born && (int32_t)(tied - born) > 0)
            return false;
        if (!first && tied == born && at > step)
            return false;
        first = false;
        links = *end == ' ' ? end + 1 : end;
        if (end == links && *links)
            return false;
    }
    return !first;
}

struct fetch {
    struct spate_survey *survey;
    const PGresult *tables;
    const struct row *rows;
    struct spate_survey_table *todo[FETCH];
    size_t count;
};

static struct spate_survey_leaf *leaf_of(const struct fetch *fetch, const struct spate_survey_table *table,
                                         uint32_t oid)
{
    for (size_t i = 0; i < table->leaf_count; i++)
        if (fetch->survey->leaves[table->first + i].oid == oid)
            return &fetch->survey->leaves[table->first + i];
    return NULL;
}

/* The answer's rows of one published table, from `row` on. Returns the row behind them. */
static int take_columns(const struct fetch *fetch, const PGresult *res, int row,
                        struct spate_survey_table *table)
{
    const int first = row;
    struct spate_survey_column *columns;
    size_t count = 0;
    uint32_t labels;

    while (row < PQntuples(res) && u32(res, row, C_TOP) == table->oid)
        row++;
    columns = spate_zalloc(((size_t)(row - first) + 1) * sizeof *columns);
    for (int i = first; i < row; i++) {
        const int32_t number = (int32_t)strtol(PQgetvalue(res, i, C_NUMBER), NULL, 10);
        const bool own = u32(res, i, C_REL) == table->oid, missing = PQgetvalue(res, i, C_MISSING)[0] == 't';
        struct spate_survey_leaf *leaf = number < 0 ? leaf_of(fetch, table, u32(res, i, C_REL)) : NULL;

        if (leaf) {
            leaf->born = u32(res, i, C_XMIN);
            leaf->inside =
                made_inside(PQgetvalue(fetch->tables, fetch->rows[leaf - fetch->survey->leaves].at, T_LINKS),
                            leaf->born, u32(res, i, C_CMIN));
        } else if (number > 0 && own) {
            columns[count++] =
                (struct spate_survey_column){.number = number,
                                             .type = u32(res, i, C_TYPE),
                                             .xmin = u32(res, i, C_XMIN),
                                             .missing = missing,
                                             .hash = spate_survey_hash(PQgetvalue(res, i, C_NAME)),
                                             .name = PQgetvalue(res, i, C_NAME),
                                             .labels = PQgetvalue(res, i, C_LABELS)};
            columns[count - 1].label_hash =
                spate_survey_labels(columns[count - 1].labels, UINT32_MAX, &labels);
            columns[count - 1].label_count = labels;
        } else if (number > 0 && missing) {
            for (size_t c = 0; c < count; c++)
                columns[c].missing |= strcmp(columns[c].name, PQgetvalue(res, i, C_NAME)) == 0;
        }
    }
    table->columns = spate_survey_columns_new(columns, count);
    free(columns);
    return row;
}

static void pair(struct spate_buf *tops, struct spate_buf *rels, uint32_t top, uint32_t rel)
{
    spate_buf_printf(tops, "%s%" PRIu32, tops->len > 1 ? "," : "", top);
    spate_buf_printf(rels, "%s%" PRIu32, rels->len > 1 ? "," : "", rel);
}

static enum spate_rc fetch_columns(struct fetch *fetch, PGconn *conn, struct spate_err *err)
{
    struct spate_buf tops = {0}, rels = {0};
    const char *values[2];
    PGresult *res = NULL;
    enum spate_rc rc;

    if (fetch->count == 0)
        return SPATE_OK;
    spate_buf_putc(&tops, '{');
    spate_buf_putc(&rels, '{');
    for (size_t i = 0; i < fetch->count; i++) {
        const struct spate_survey_table *table = fetch->todo[i];

        pair(&tops, &rels, table->oid, table->oid); /* first, so that its columns are known */
        for (size_t l = 0; l < table->leaf_count; l++)
            if (fetch->survey->leaves[table->first + l].oid != table->oid)
                pair(&tops, &rels, table->oid, fetch->survey->leaves[table->first + l].oid);
    }
    spate_buf_putc(&tops, '}');
    spate_buf_putc(&rels, '}');
    values[0] = spate_buf_str(&tops);
    values[1] = spate_buf_str(&rels);
    rc = spate_pg_ask(conn, columns_sql, 2, values, ANSWER_MS, &res, err);
    if (rc == SPATE_OK) {
        int row = 0;

        for (size_t i = 0; i < fetch->count; i++)
            row = take_columns(fetch, res, row, fetch->todo[i]);
        fetch->count = 0;
    }
    PQclear(res);
    spate_buf_fini(&tops);
    spate_buf_fini(&rels);
    return rc;
}

static void share(struct spate_survey *survey, struct spate_survey_table *table,
                  const struct spate_survey *before, const struct spate_survey_table *old)
{
    table->columns = spate_survey_columns_hold(old->columns);
    for (size_t i = 0; i < table->leaf_count && i < old->leaf_count; i++) {
        survey->leaves[table->first + i].born = before->leaves[old->first + i].born;
        survey->leaves[table->first + i].inside = before->leaves[old->first + i].inside;
    }
}

/* The tables whose columns were altered since a minute before `before`, by OID. */
struct altered {
    uint32_t *oids;
    size_t count;
    bool labels; /* of enums, or attributes of composites: whoever has some */
};

static int u32_cmp(const void *a, const void *b)
{
    const uint32_t *one = a, *other = b;

    return *one < *other ? -1 : *one > *other;
}

static enum spate_rc find_altered(struct altered *altered, const struct spate_survey *survey,
                                  const struct spate_survey *before, PGconn *conn, struct spate_err *err)
{
    char since[16];
    const char *values[1] = {since};
    PGresult *res = NULL;
    enum spate_rc rc;

    if (!before)
        return SPATE_OK;
    altered->labels = survey->labels_altered != before->labels_altered;
    if (survey->columns_altered == before->columns_altered)
        return SPATE_OK;
    snprintf(since, sizeof since, "%" PRIu32, survey->back.xid);
    rc = spate_pg_ask(conn, altered_sql, 1, values, ANSWER_MS, &res, err);
    if (rc == SPATE_OK) {
        altered->count = (size_t)PQntuples(res);
        altered->oids = spate_alloc((altered->count + 1) * sizeof *altered->oids);
        for (size_t i = 0; i < altered->count; i++)
            altered->oids[i] = u32(res, (int)i, 0);
        qsort(altered->oids, altered->count, sizeof *altered->oids, u32_cmp);
    }
    PQclear(res);
    return rc;
}

static bool is_altered(const struct altered *altered, const struct spate_survey_table *old)
{
    if (altered->count > 0 &&
        bsearch(&old->oid, altered->oids, altered->count, sizeof *altered->oids, u32_cmp))
        return true;
    for (size_t i = 0; altered->labels && i < spate_survey_columns_count(old->columns); i++)
        if (spate_survey_column_at(old->columns, i)->label_count > 0)
            return true;
    return false;
}

static enum spate_rc add_columns(struct spate_survey *survey, const struct spate_survey *before,
                                 const PGresult *tables, const struct row *rows, PGconn *conn,
                                 struct spate_err *err)
{
    struct fetch fetch = {.survey = survey, .tables = tables, .rows = rows};
    struct altered altered = {0};
    enum spate_rc rc = find_altered(&altered, survey, before, conn, err);
    size_t at = 0, files = 0;

    for (size_t i = 0; rc == SPATE_OK && i < survey->count; i++) {
        struct spate_survey_table *table = &survey->tables[i];

        while (before && at < before->count && before->tables[at].oid < table->oid)
            at++;
        if (before && at < before->count && before->tables[at].oid == table->oid &&
            before->tables[at].stamp == table->stamp && !is_altered(&altered, &before->tables[at])) {
            share(survey, table, before, &before->tables[at]);
            continue;
        }
        fetch.todo[fetch.count++] = table;
        files += table->leaf_count;
        if (fetch.count == FETCH || files > FETCH) {
            rc = fetch_columns(&fetch, conn, err);
            files = 0;
        }
    }
    free(altered.oids);
    return rc == SPATE_OK ? fetch_columns(&fetch, conn, err) : rc;
}

/* ---- the whole ---- */

static enum spate_rc read_head(struct spate_survey *survey, PGconn *conn, const char *publication,
                               struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_ask(conn, head_sql, 1, &publication, ANSWER_MS, &res, err);

    if (rc == SPATE_OK) {
        survey->published = !PQgetisnull(res, 0, 0);
        survey->publication = u32(res, 0, 0);
        survey->publication_xmin = u32(res, 0, 1);
        survey->oldest = strtoull(PQgetvalue(res, 0, 2), NULL, 10);
        survey->next = strtoull(PQgetvalue(res, 0, 3), NULL, 10);
        survey->columns_altered = strtoull(PQgetvalue(res, 0, 4), NULL, 10);
        survey->labels_altered = strtoull(PQgetvalue(res, 0, 5), NULL, 10);
    }
    PQclear(res);
    return rc;
}

/* Behind a page's header stands nothing yet: what was written ends before it, and that is what a walsender
 * says on an idle server. */
static uint64_t lsn_of(const PGresult *res)
{
    uint64_t page = strtoull(PQgetvalue(res, 0, L_PAGE), NULL, 10), lsn;

    if (!spate_pg_lsn_parse(PQgetvalue(res, 0, L_LSN), &lsn))
        return 0;
    return page > PAGE_HEADERS && lsn % page <= PAGE_HEADERS ? lsn - lsn % page : lsn;
}

static enum spate_rc read_lsn(struct spate_survey *survey, PGconn *conn, struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_ask(conn, lsn_sql, 0, NULL, ANSWER_MS, &res, err);

    if (rc == SPATE_OK)
        survey->lsn = lsn_of(res);
    PQclear(res);
    return rc;
}

enum spate_rc spate_survey_moved(PGconn *conn, const struct spate_survey *since, bool *moved,
                                 struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_ask(conn, lsn_sql, 0, NULL, ANSWER_MS, &res, err);

    *moved = rc == SPATE_OK && (lsn_of(res) != since->lsn || since->oldest != since->next ||
                                strtoull(PQgetvalue(res, 0, L_COLUMNS), NULL, 10) != since->columns_altered ||
                                strtoull(PQgetvalue(res, 0, L_LABELS), NULL, 10) != since->labels_altered);
    PQclear(res);
    return rc;
}

static enum spate_rc read_all(struct spate_survey *survey, PGconn *conn, const char *publication,
                              const struct spate_survey *before, struct spate_err *err)
{
    const char *sql = PQserverVersion(conn) >= 150000 ? tables_sql : tables_14_sql;
    PGresult *res = NULL;
    struct row *rows = NULL;
    enum spate_rc rc = read_head(survey, conn, publication, err);

    survey->mid.xid = survey->back.xid = (uint32_t)survey->oldest;
    survey->mid.at_us = survey->back.at_us = survey->at_us;
    if (before && survey->at_us - before->mid.at_us < BACK_US)
        survey->mid = before->mid;
    if (before)
        survey->back = survey->at_us - before->mid.at_us < BACK_US ? before->back : before->mid;
    if (rc == SPATE_OK)
        rc = spate_pg_ask(conn, sql, 1, &publication, ANSWER_MS, &res, err);
    if (rc == SPATE_OK) {
        rows = spate_alloc(((size_t)PQntuples(res) + 1) * sizeof *rows);
        take_tables(survey, res, rows);
        rc = add_columns(survey, before, res, rows, conn, err);
    }
    if (rc == SPATE_OK)
        rc = read_lsn(survey, conn, err);
    PQclear(res);
    free(rows);
    return rc;
}

enum spate_rc spate_survey_read(PGconn *conn, const char *publication, const struct spate_survey *before,
                                struct spate_survey **out, struct spate_err *err)
{
    struct spate_survey *survey = spate_zalloc(sizeof *survey);
    const int64_t began_ms = spate_clock_ms();
    enum spate_rc rc;

    survey->refs = 1;
    survey->at_us = spate_clock_wall_us();
    /* One snapshot for all of it; and no time spent on compiling a question that is asked for ever. */
    rc = spate_pg_exec_within(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL jit = off",
                              ANSWER_MS, PGRES_COMMAND_OK, NULL, err);
    if (rc == SPATE_OK)
        rc = read_all(survey, conn, publication, before, err);
    if (rc == SPATE_OK)
        rc = spate_pg_exec_within(conn, "COMMIT", ANSWER_MS, PGRES_COMMAND_OK, NULL, err);
    if (rc != SPATE_OK) {
        spate_survey_drop(survey);
        return rc == SPATE_FAIL ? spate_err_context(err, "looking at the published tables") : rc;
    }
    survey->took_ms = spate_clock_ms() - began_ms;
    *out = survey;
    return SPATE_OK;
}
