/* chunk_read URL PUBLICATION [PARALLEL] - reads chunks of a database as the connector does, on orders from
 * stdin, one a line, words separated by tabs; what comes of each is one line of JSON.
 *
 *   plan SCHEMA TABLE COLUMNS(,|*) [COLUMN OP VALUE]..   what is read from now on; says the leaves
 *   range LEAF FROM TO BYTES                             tids as numbers; nothing is answered before `take`
 *   keys BYTES VALUE..                                   as many values as a key has columns, for each key
 *   look | nudge
 *   take                                                 waits for one of them, and says what came of it
 *   cancel
 *   pace BYTES                                           the whole of leaf 0 in chunks of adapting size
 *   memory                                               VmHWM in KiB */
#include "connector/catalog.h"
#include "connector/chunk.h"
#include "connector/query.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/metric.h"
#include "core/signals.h"
#include "pg/pg.h"
#include "schemas/snapshot.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#define WORDS_MAX 2000

static struct spate_connector_config config;
static PGconn *conn;
static struct spate_readers *readers;
static struct spate_plan *plan;
static struct spate_value *keys; /* their texts are owned */
static size_t key_room;

static void die(const char *text)
{
    fprintf(stderr, "chunk_read: %s\n", text);
    exit(1);
}

static PGresult *ask(const char *sql, int count, const char *const *values)
{
    struct spate_err err = {0};
    PGresult *res;

    if (spate_pg_exec_params(conn, sql, count, values, PGRES_TUPLES_OK, &res, &err) != SPATE_OK)
        die(err.text);
    return res;
}

static enum spate_rc wait_readable(void *arg, int fd, struct spate_err *err)
{
    struct pollfd at = {.fd = fd, .events = POLLIN};

    (void)arg, (void)err;
    poll(&at, 1, 1000);
    return SPATE_OK;
}

/* ---- plans ---- */

static struct spate_table *table_of(const char *schema, const char *name)
{
    struct spate_catalog catalog = {
        .conn = conn, .publication = config.source.publication, .wait = wait_readable};
    struct spate_catalog_table *tables;
    struct spate_table *found = NULL;
    struct spate_err err = {0};
    size_t count;

    if (spate_catalog_load(&catalog, &tables, &count, &err) != SPATE_OK)
        die(err.text);
    for (size_t i = 0; i < count; i++)
        if (spate_slice_is(tables[i].table->schema, schema) && spate_slice_is(tables[i].table->name, name)) {
            found = tables[i].table;
            tables[i].table = NULL;
        }
    spate_catalog_tables_free(tables, count);
    return found;
}

static const char leaves_sql[] =
    " FROM (SELECT c.oid FROM pg_class c WHERE c.oid = %s AND c.relkind <> 'p' UNION ALL"
    " SELECT t.relid FROM pg_partition_tree(%s) t WHERE t.isleaf AND t.level > 0) l"
    " JOIN pg_class c ON c.oid = l.oid ORDER BY l.oid";

static void add_leaves(struct spate_plan_table *table, const char *schema, const char *name)
{
    static const char root[] = "(SELECT c.oid FROM pg_class c WHERE c.relname = $2 AND c.relnamespace = "
                               "(SELECT oid FROM pg_namespace WHERE nspname = $1))";
    const char *values[] = {schema, name, config.source.publication};
    struct spate_buf sql = {0}, leaves = {0};
    PGresult *res;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    spate_buf_printf(&leaves, leaves_sql, root, root);
#pragma GCC diagnostic pop
    spate_buf_puts(
        &sql, "SELECT c.oid, quote_ident(relnamespace::regnamespace::text) || '.' || quote_ident(relname),"
              " relnamespace::regnamespace::text, relname, pg_relation_size(c.oid) / 8192, ");
    spate_buf_puts(&sql, PQserverVersion(conn) < 150000
                             ? "NULL, "
                             : "(SELECT rowfilter FROM pg_publication_tables WHERE pubname = $3 AND "
                               "schemaname = $1 AND tablename = $2), ");
    spate_query_stamp(&sql, PQserverVersion(conn), "c.oid", "$3");
    spate_buf_slice(&sql, spate_buf_view(&leaves));
    res = ask(spate_buf_str(&sql), 3, values);
    table->leaf_count = (size_t)PQntuples(res);
    table->leaves = spate_zalloc((table->leaf_count + 1) * sizeof *table->leaves);
    for (int i = 0; i < PQntuples(res); i++) {
        struct spate_buf quoted = {0};

        spate_pg_ident(&quoted, spate_slice_str(PQgetvalue(res, i, 2)));
        spate_buf_putc(&quoted, '.');
        spate_pg_ident(&quoted, spate_slice_str(PQgetvalue(res, i, 3)));
        table->leaves[i] = (struct spate_plan_leaf){
            .oid = (uint32_t)strtoul(PQgetvalue(res, i, 0), NULL, 10),
            .name = spate_strdup(spate_buf_str(&quoted)),
            .filter = PQgetisnull(res, i, 5) ? NULL : spate_strdup(PQgetvalue(res, i, 5)),
            .stamp = spate_strdup(PQgetvalue(res, i, 6)),
            .pages = strtoull(PQgetvalue(res, i, 4), NULL, 10)};
        spate_buf_fini(&quoted);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    spate_buf_fini(&leaves);
}

static uint32_t column_of(const struct spate_table *table, const char *name)
{
    int at = spate_table_column(table, spate_slice_str(name));

    if (at < 0)
        die(name);
    return (uint32_t)at;
}

static void make_plan(char **words, size_t count)
{
    struct spate_plan_table *table;
    struct spate_table *shape = table_of(words[1], words[2]);

    if (!shape)
        die("no such published table");
    spate_plan_free(plan);
    plan = spate_zalloc(sizeof *plan);
    plan->tables = table = spate_zalloc(sizeof *plan->tables);
    plan->count = 1;
    table->table = shape;
    table->all = words[3][0] == '*';
    table->asked = spate_zalloc(shape->column_count);
    if (!table->all)
        for (char *name = strtok(words[3], ","); name; name = strtok(NULL, ","))
            table->asked[column_of(shape, name)] = true;
    for (size_t i = 0; i < shape->key_count; i++)
        table->asked[shape->key[i]] = true;
    table->where = spate_zalloc(count * sizeof *table->where);
    for (size_t i = 4; i < count; i += 3) {
        struct spate_plan_condition *condition = &table->where[table->where_count++];

        condition->column = column_of(shape, words[i]);
        condition->op = spate_strdup(words[i + 1]);
        if (strncmp(words[i + 1], "is", 2) != 0)
            condition->value = spate_strdup(words[i + 2]);
    }
    add_leaves(table, words[1], words[2]);
    printf("{\"leaves\":[");
    for (size_t i = 0; i < table->leaf_count; i++)
        printf("%s{\"pages\":%" PRIu64 ",\"stamp\":\"%s\"}", i ? "," : "", table->leaves[i].pages,
               table->leaves[i].stamp);
    printf("]}\n");
}

/* ---- jobs ---- */

static void free_keys(void)
{
    for (size_t i = 0; i < key_room; i++)
        free((char *)(uintptr_t)keys[i].text.at);
    free(keys);
    keys = NULL;
    key_room = 0;
}

static void submit(enum spate_job_kind kind, char **words, size_t count)
{
    struct spate_job *job = spate_zalloc(sizeof *job);

    job->kind = kind;
    if (kind == SPATE_JOB_RANGE || kind == SPATE_JOB_KEYS)
        job->table = &plan->tables[0];
    if (kind == SPATE_JOB_RANGE) {
        job->leaf = strtoull(words[1], NULL, 10);
        job->from = strtoull(words[2], NULL, 10);
        job->to = strtoull(words[3], NULL, 10);
        job->max_bytes = strtoull(words[4], NULL, 10);
    } else if (kind == SPATE_JOB_KEYS) {
        size_t width = job->table->table->key_count;

        job->max_bytes = strtoull(words[1], NULL, 10);
        free_keys();
        keys = spate_zalloc(count * sizeof *keys);
        key_room = count;
        for (size_t i = 2; i < count; i++)
            keys[i - 2] = (struct spate_value){SPATE_VALUE_TEXT, spate_slice_str(spate_strdup(words[i]))};
        job->keys = keys;
        job->key_count = (count - 2) / width;
    }
    spate_readers_submit(readers, job);
}

static struct spate_job *take(void)
{
    struct pollfd at = {.fd = spate_readers_fd(readers), .events = POLLIN};
    struct spate_job *job;

    while (!(job = spate_readers_take(readers)))
        poll(&at, 1, 1000);
    return job;
}

static const char *const outcomes[] = {"done", "changed", "busy", "failed"};
static const char *const verdicts[] = {"retry", "quarantine", "fatal"};

static void tell(const struct spate_job *job)
{
    struct spate_buf text = {0};

    spate_metric_quote(&text, job->err.text);
    printf("{\"outcome\":\"%s\",\"verdict\":\"%s\",\"sqlstate\":\"%s\",\"error\":%s,\"lsn\":%" PRIu64
           ",\"reached\":%" PRIu64 ",\"pages\":%" PRIu64 ",\"bytes\":%zu,\"took_us\":%" PRId64
           ",\"xmin\":%" PRIu64 ",\"xmax\":%" PRIu64 ",\"xip\":%zu,\"rows\":[",
           outcomes[job->outcome], verdicts[job->err.verdict], job->err.sqlstate, spate_buf_str(&text),
           job->lsn, job->reached, job->pages, job->lines.len, job->took_us, job->snapshot.xmin,
           job->snapshot.xmax, job->snapshot.count);
    for (size_t i = 0; i < job->row_count; i++) {
        const struct spate_chunk_row *row = &job->rows[i];

        printf("%s{\"key_len\":%zu%.*s", i ? "," : "", row->key_len, (int)row->len,
               job->lines.data + row->at);
    }
    printf("]}\n");
    spate_buf_fini(&text);
}

static void run_pace(char **words)
{
    struct spate_plan_table *table = &plan->tables[0];
    uint64_t at = 0, end = table->leaves[0].pages << 16, bytes = 0, rows = 0, chunks = 0, most = 0, cut = 0;
    int64_t began = spate_clock_us(), longest = 0;
    struct spate_pace pace;

    spate_pace_start(&pace);
    while (at < end) {
        struct spate_job *job = spate_zalloc(sizeof *job);
        uint64_t to = ((at >> 16) + pace.pages) << 16;

        job->kind = SPATE_JOB_RANGE;
        job->table = table;
        job->from = at;
        job->to = to < end ? to : end;
        job->max_bytes = strtoull(words[1], NULL, 10);
        spate_readers_submit(readers, job);
        job = take();
        if (job->outcome != SPATE_JOB_DONE)
            die(job->err.text);
        spate_pace_learn(&pace, job);
        cut += job->reached < job->to;
        at = job->reached;
        bytes += job->lines.len;
        rows += job->row_count;
        chunks++;
        most = job->lines.len > most ? job->lines.len : most;
        longest = job->took_us > longest ? job->took_us : longest;
        spate_job_free(job);
    }
    printf("{\"rows\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"chunks\":%" PRIu64 ",\"cut\":%" PRIu64
           ",\"most\":%" PRIu64 ",\"longest_us\":%" PRId64 ",\"us\":%" PRId64 "}\n",
           rows, bytes, chunks, cut, most, longest, spate_clock_us() - began);
}

static void tell_memory(void)
{
    FILE *in = fopen("/proc/self/status", "r");
    char line[200];

    while (in && fgets(line, sizeof line, in))
        if (strncmp(line, "VmHWM:", 6) == 0)
            printf("{\"kib\":%ld}\n", strtol(line + 6, NULL, 10));
    if (in)
        fclose(in);
}

static void obey(char **words, size_t count)
{
    if (strcmp(words[0], "plan") == 0) {
        make_plan(words, count);
    } else if (strcmp(words[0], "range") == 0) {
        submit(SPATE_JOB_RANGE, words, count);
    } else if (strcmp(words[0], "keys") == 0) {
        submit(SPATE_JOB_KEYS, words, count);
    } else if (strcmp(words[0], "look") == 0) {
        submit(SPATE_JOB_LOOK, words, count);
    } else if (strcmp(words[0], "nudge") == 0) {
        submit(SPATE_JOB_NUDGE, words, count);
    } else if (strcmp(words[0], "cancel") == 0) {
        spate_readers_cancel(readers);
    } else if (strcmp(words[0], "pace") == 0) {
        run_pace(words);
    } else if (strcmp(words[0], "memory") == 0) {
        tell_memory();
    } else {
        struct spate_job *job = take();

        tell(job);
        spate_job_free(job);
    }
}

int main(int argc, char **argv)
{
    struct spate_err err = {0};
    char *line = NULL, *words[WORDS_MAX];
    size_t cap = 0;

    if (argc < 3)
        die("usage: chunk_read URL PUBLICATION [PARALLEL]");
    spate_signals_init();
    setvbuf(stdout, NULL, _IOLBF, 0);
    config = (struct spate_connector_config){.name = spate_strdup("test")};
    config.source.url = argv[1];
    config.source.publication = argv[2];
    config.snapshots.parallel = argc > 3 ? strtol(argv[3], NULL, 10) : 1;
    if (spate_pg_connect(
            &(struct spate_pg_where){.what = "source", .url = argv[1], .application_name = "chunk_read"},
            5000, &conn, &err) != SPATE_OK ||
        spate_readers_open(&config, &readers, &err) != SPATE_OK)
        die(err.text);
    while (getline(&line, &cap, stdin) > 0) {
        size_t count = 0;

        line[strcspn(line, "\n")] = '\0';
        for (char *at = line; at && count < WORDS_MAX; count++)
            words[count] = strsep(&at, "\t");
        obey(words, count);
    }
    spate_readers_close(readers);
    spate_plan_free(plan);
    free_keys();
    free(line);
    free(config.name);
    PQfinish(conn);
    return 0;
}
