#include "sinks/copy.h"

#include "core/alloc.h"
#include "core/hash.h"
#include "core/log.h"
#include "sinks/generation.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST_COLUMNS 1500 /* columns of earlier versions stay until there are so many */

static uint64_t mix(uint64_t hash, const char *at, size_t len)
{
    hash = spate_fnv64(hash, &len, sizeof len);
    return spate_fnv64(hash, at, len);
}

/* ---- its columns ---- */

/* What people can still read of the column's name, and what makes it the only one of that name and type. */
static char *column_name(const struct spate_version *version, uint32_t column)
{
    struct spate_slice name = version->table->columns[column].name;
    const char *type = version->stage_types[column];
    uint64_t hash = mix(mix(SPATE_FNV64_START, name.at, name.len), type, strlen(type));
    char text[64];
    size_t len = 0;

    for (size_t i = 0; i < name.len && len < 40; i++)
        if (((name.at[i] | 32) >= 'a' && (name.at[i] | 32) <= 'z') ||
            (name.at[i] >= '0' && name.at[i] <= '9'))
            text[len++] = (char)(name.at[i] | 32);
    snprintf(text + len, sizeof text - len, "_%016" PRIx64, hash);
    return spate_strdup(text);
}

static uint64_t mix_column(const struct spate_version *version, uint64_t hash, uint32_t column)
{
    const struct spate_column *c = &version->table->columns[column];

    hash = mix(hash, c->name.at, c->name.len);
    if (c->mask.len) /* other values */
        hash = mix(hash, c->mask.at, c->mask.len);
    return mix(hash, version->stage_types[column], strlen(version->stage_types[column]));
}

void spate_copy_columns(struct spate_version *version)
{
    const struct spate_table *table = version->table;
    struct spate_output *outputs = spate_zalloc((version->used_count + 1) * sizeof *outputs);
    uint64_t hash = SPATE_FNV64_START;
    char number[60];

    spate_copy_forget(version);
    version->copy.outputs = outputs;
    for (size_t k = 0; k < table->key_count; k++)
        hash = mix_column(version, hash, table->key[k]);
    for (size_t i = 0; i < version->used_count; i++) {
        struct spate_output *output = &outputs[version->copy.output_count++];
        uint32_t column = version->used[i];
        struct spate_buf quoted = {0};

        hash = mix_column(version, hash, column);
        for (size_t k = 0; k < table->key_count; k++)
            if (table->key[k] == column) {
                snprintf(number, sizeof number, "k%zu", k);
                output->name = spate_strdup(number);
                output->key = true;
            }
        if (!output->name)
            output->name = column_name(version, column);
        spate_pg_ident(&quoted, table->columns[column].name);
        output->expr = spate_strndup(quoted.data, quoted.len);
        spate_buf_fini(&quoted);
        output->bare = (int)column;
        output->uses = spate_alloc(sizeof *output->uses);
        output->uses[0] = column;
        output->use_count = 1;
    }
    version->copy.shape = (int64_t)(hash >> 1);
    snprintf(number, sizeof number, "%" PRId64 "::pg_catalog.int8", version->copy.shape);
    outputs[version->copy.output_count++] =
        (struct spate_output){.name = spate_strdup("shape"), .expr = spate_strdup(number), .bare = -1};
}

void spate_copy_forget(struct spate_version *version)
{
    for (size_t i = 0; i < version->copy.output_count; i++) {
        free(version->copy.outputs[i].name);
        free(version->copy.outputs[i].expr);
        free(version->copy.outputs[i].uses);
    }
    free(version->copy.outputs);
    version->copy.outputs = NULL;
    version->copy.output_count = 0;
}

struct spate_relation spate_copy_relation(const struct spate_version *version)
{
    return (struct spate_relation){.name = version->projection->load.copy,
                                   .outputs = version->copy.outputs,
                                   .output_count = version->copy.output_count,
                                   .own = true};
}

void spate_copy_rows(const struct spate_version *version, const char *table, const char *columns,
                     const char *tables, struct spate_buf *sql)
{
    spate_buf_puts(sql, "SELECT ");
    for (size_t i = 0; i < version->used_count; i++) {
        spate_buf_printf(sql, "%sc.\"%s\" AS ", i ? ", " : "", version->copy.outputs[i].name);
        spate_buf_puts(sql, version->copy.outputs[i].expr);
    }
    spate_buf_printf(sql, "%s FROM %s%s AS c WHERE c.shape = %" PRId64, columns, tables, table,
                     version->copy.shape);
}

bool spate_copy_needed(const struct spate_projection *projection)
{
    for (size_t i = 0; i < projection->version_count; i++)
        if (projection->versions[i]->copy_why)
            return true;
    return false;
}

/* ---- the table ---- */

/* What stands in the target. */
struct found {
    bool table, key; /* the key: of as many columns, each of which holds every value of the version's */
    size_t columns;
};

/* A key may have been widened since, or be wider than the one of a version that is older. */
static bool holds_key(const struct spate_version *version, const PGresult *res)
{
    size_t keys = 0;

    for (int r = 0; r < PQntuples(res); r++) {
        if (!version->copy.outputs[strtoull(PQgetvalue(res, r, 2), NULL, 10)].key)
            continue;
        if (!spate_type_lossless((uint32_t)strtoul(PQgetvalue(res, r, 4), NULL, 10), -1,
                                 (uint32_t)strtoul(PQgetvalue(res, r, 5), NULL, 10), -1))
            return false;
        keys++;
    }
    return keys == version->key_count && keys == strtoull(PQgetvalue(res, 0, 1), NULL, 10);
}

static enum spate_rc look(const struct spate_version *version, struct spate_store *store, struct found *found,
                          struct spate_buf *missing, struct spate_err *err)
{
    const char *copy = version->projection->load.copy;
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(&sql,
                   "WITH c AS (SELECT attname, atttypid FROM pg_catalog.pg_attribute WHERE attnum > 0 AND "
                   "NOT attisdropped AND attrelid = to_regclass(");
    spate_pg_literal(&sql, spate_slice_str(copy));
    spate_buf_puts(&sql, ")), w(i, name, type) AS (VALUES ");
    for (size_t i = 0; i < version->used_count; i++) {
        spate_buf_printf(&sql, "%s(%zu, '%s'::name, ", i ? ", " : "", i, version->copy.outputs[i].name);
        spate_pg_literal(&sql, spate_slice_str(version->stage_types[version->used[i]]));
        spate_buf_puts(&sql, "::regtype)");
    }
    spate_buf_puts(
        &sql,
        ") SELECT (SELECT count(*) FROM c), (SELECT count(*) FROM c WHERE attname ~ '^k[0-9]+$'), w.i, "
        "c.attname IS NULL, w.type::oid, coalesce(c.atttypid, 0) FROM w LEFT JOIN c ON c.attname = w.name "
        "ORDER BY w.i");
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK) {
        found->columns = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
        found->table = found->columns > 0;
        found->key = holds_key(version, res);
    }
    for (int r = 0; rc == SPATE_OK && r < PQntuples(res); r++) {
        size_t i = strtoull(PQgetvalue(res, r, 2), NULL, 10);

        if (PQgetvalue(res, r, 3)[0] != 't')
            continue;
        spate_buf_printf(missing, "%sADD COLUMN \"%s\" %s", missing->len ? ", " : "",
                         version->copy.outputs[i].name, version->stage_types[version->used[i]]);
        found->columns++;
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

static void create_sql(const struct spate_version *version, struct spate_buf *sql)
{
    spate_buf_printf(sql, "CREATE TABLE %s (", version->projection->load.copy);
    for (size_t i = 0; i < version->used_count; i++)
        spate_buf_printf(sql, "\"%s\" %s, ", version->copy.outputs[i].name,
                         version->stage_types[version->used[i]]);
    spate_buf_puts(sql, "shape pg_catalog.int8 NOT NULL, PRIMARY KEY (");
    for (size_t k = 0; k < version->key_count; k++)
        spate_buf_printf(sql, "%sk%zu", k ? ", " : "", k);
    spate_buf_puts(sql, "));");
}

/* What the copy should hold comes with everything. A load that is under way is over: its generation was
 * another table, or stood in the one that is gone. */
static void void_sql(const struct spate_projection *projection, struct spate_store *store,
                     struct spate_buf *sql)
{
    spate_buf_printf(sql,
                     "UPDATE %s.spate_table SET snapshotted = false, load_kind = NULL, request = NULL, "
                     "chunk = NULL, resume = NULL, ranges = NULL, copy = ",
                     store->schema);
    spate_pg_literal(sql, spate_slice_str(projection->load.copy));
    spate_load_where(projection, sql);
}

static enum spate_rc refused(const struct spate_version *version, struct spate_store *store,
                             struct spate_err *err)
{
    const char *copy = version->projection->load.copy;
    struct spate_err check = {0};

    if (err->verdict == SPATE_RETRY || PQstatus(store->conn) != CONNECTION_OK)
        return SPATE_FAIL;
    if (spate_store_check(store, &check) == SPATE_FAIL) { /* it was not ours to make */
        *err = check;
        return SPATE_FAIL;
    }
    if (strcmp(err->sqlstate, "42501") == 0)
        return spate_version_refuse(
            version, err,
            "%s, and role %s may not make or alter table %s for it: as the schema's owner "
            "run GRANT USAGE, CREATE ON SCHEMA %s TO %s",
            version->copy_why ? version->copy_why : "it has a copy of its source columns",
            PQuser(store->conn), copy, store->schema, PQuser(store->conn));
    err->verdict = SPATE_FATAL;
    err->exit_code = SPATE_EXIT_REFUSED;
    return spate_err_context(err, "%s cannot be made or altered", copy);
}

/* All versions' statements write it, or none. */
static void now_copied(struct spate_projection *projection)
{
    struct spate_load *load = &projection->load;

    load->ready = false;
    load->lacks = load->copied = true;
    load->edition++;
    for (size_t i = 0; i < projection->version_count; i++)
        spate_version_sql(projection->versions[i]);
}

/* `replace`: it is made anew where it cannot be altered. */
static enum spate_rc fit(struct spate_version *version, struct spate_store *store, bool replace,
                         struct spate_err *err)
{
    struct spate_projection *projection = version->projection;
    struct spate_load *load = &projection->load;
    struct spate_buf sql = {0}, missing = {0};
    struct found found = {0};
    bool anew;
    enum spate_rc rc;

    if (store->looking || (!load->copied && !version->copy_why))
        return SPATE_OK;
    rc = look(version, store, &found, &missing, err);
    anew = !found.table || !found.key || found.columns > MOST_COLUMNS;
    if (rc != SPATE_OK || (load->copied && !anew && missing.len == 0) || (anew && found.table && !replace)) {
        spate_buf_fini(&missing);
        return rc;
    }
    spate_load_guard(store, &sql);
    spate_buf_putc(&sql, ';');
    if (anew && found.table)
        spate_buf_printf(&sql, "DROP TABLE %s;", load->copy);
    if (anew)
        create_sql(version, &sql);
    else if (!load->copied) /* left over; somebody may hold it, so it is not dropped */
        spate_buf_printf(&sql, "DELETE FROM %s;", load->copy);
    if (!anew && missing.len)
        spate_buf_printf(&sql, "ALTER TABLE %s %s;", load->copy, spate_buf_str(&missing));
    if (anew || !load->copied)
        void_sql(projection, store, &sql);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    spate_buf_fini(&missing);
    if (rc != SPATE_OK)
        return rc == SPATE_FAIL ? refused(version, store, err) : rc;
    if (!anew && load->copied)
        return SPATE_OK;
    spate_log(SPATE_LOG_INFO, "own-copy",
              "table=%s copy=%s detail=\"the source's columns that it uses are kept "
              "there, and all rows are needed for it\"",
              projection->label, load->copy);
    if (load->kind != SPATE_LOAD_NONE)
        return spate_fail(err, SPATE_RETRY,
                          "target: %s was made while the table was loading: it begins again", load->copy);
    now_copied(projection);
    return SPATE_OK;
}

enum spate_rc spate_copy_fit(struct spate_version *version, struct spate_store *store, struct spate_err *err)
{
    return fit(version, store, true, err);
}

enum spate_rc spate_copy_fit_all(struct spate_projection *projection, struct spate_store *store,
                                 struct spate_err *err)
{
    enum spate_rc rc = projection->current ? fit(projection->current, store, true, err) : SPATE_OK;

    for (size_t i = 0; rc == SPATE_OK && i < projection->version_count; i++)
        rc = fit(projection->versions[i], store, false, err);
    return rc;
}
