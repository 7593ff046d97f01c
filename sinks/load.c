/* sinks/load.c - what is stored of tables and their snapshots in <schema>.spate_table, and where the keys
 * stand that have to be read again. How a snapshot begins and ends is in sinks/generation.c. */
#include "sinks/load.h"

#include "core/alloc.h"
#include "core/hash.h"
#include "core/log.h"
#include "schemas/snapshot.h"
#include "sinks/generation.h"
#include "sinks/projection.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const kind_names[] = {
    [SPATE_LOAD_NONE] = "none",     [SPATE_LOAD_EMPTY] = "empty", [SPATE_LOAD_MARKED] = "marked",
    [SPATE_LOAD_SHADOW] = "shadow", [SPATE_LOAD_ADD] = "add",
};

const char *spate_load_kind_name(enum spate_load_kind kind)
{
    return kind_names[kind];
}

static enum spate_load_kind kind_named(const char *name)
{
    for (size_t i = 0; i < sizeof kind_names / sizeof *kind_names; i++)
        if (strcmp(kind_names[i], name) == 0)
            return (enum spate_load_kind)i;
    return SPATE_LOAD_NONE;
}

/* Names that no table of the team has, however long its own are: schema, and a hash of the table's name. */
static char *own_name(const char *schema, const char *what, const char *table)
{
    struct spate_buf name = {0};
    char own[48], *out;

    snprintf(own, sizeof own, "spate_%s_%016" PRIx64, what,
             spate_fnv64(SPATE_FNV64_START, table, strlen(table)));
    spate_pg_ident(&name, spate_slice_str(schema));
    spate_buf_putc(&name, '.');
    spate_pg_ident(&name, spate_slice_str(own));
    out = spate_strndup(name.data, name.len);
    spate_buf_fini(&name);
    return out;
}

void spate_load_init(struct spate_projection *projection)
{
    const char *schema = projection->sink->into.schema, *table = projection->config->item.name;

    projection->load = (struct spate_load){
        .resume = spate_strdup(""),
        .stored.resume = spate_strdup(""),
        .marks = own_name(schema, "mark", table),
        .list = own_name(schema, "list", table),
        .shadow = own_name(schema, "new", table),
        .copy = own_name(schema, "copy", table),
    };
}

void spate_load_fini(struct spate_load *load)
{
    free(load->resume);
    free(load->stored.resume);
    free(load->stored_hash);
    free(load->outdated);
    free(load->marks);
    free(load->list);
    free(load->shadow);
    free(load->copy);
    *load = (struct spate_load){0};
}

static void set_text(char **to, const char *text)
{
    char *copy = text ? spate_strdup(text) : NULL;

    free(*to);
    *to = copy;
}

void spate_load_resume(struct spate_load *load, struct spate_slice token)
{
    char *copy = spate_strndup(token.len ? token.at : "", token.len);

    free(load->resume);
    load->resume = copy;
}

void spate_load_rewind(struct spate_projection *projection)
{
    struct spate_load *load = &projection->load;

    load->chunk = load->stored.chunk;
    load->ranges = load->stored.ranges;
    load->ranges_known = load->stored.ranges_known;
    set_text(&load->resume, load->stored.resume);
    load->dirty = false;
}

void spate_load_stored(struct spate_projection *projection)
{
    struct spate_load *load = &projection->load;

    load->stored.chunk = load->chunk;
    load->stored.ranges = load->ranges;
    load->stored.ranges_known = load->ranges_known;
    set_text(&load->stored.resume, load->resume);
    load->dirty = false;
}

void spate_load_set(struct spate_projection *projection, enum spate_load_kind kind, const char *request)
{
    struct spate_load *load = &projection->load;

    load->kind = kind;
    load->target = kind == SPATE_LOAD_SHADOW ? load->shadow : NULL;
    snprintf(load->request, sizeof load->request, "%s", kind == SPATE_LOAD_NONE ? "" : request);
    load->listed = false;
    load->chunk = load->ranges = 0;
    load->ranges_known = false;
    set_text(&load->resume, "");
    spate_load_stored(projection);
    load->edition++;
    for (size_t i = 0; i < projection->version_count; i++)
        spate_version_sql(projection->versions[i]);
}

/* ---- what the rows are written by ---- */

static uint64_t mix(uint64_t hash, const char *at, size_t len)
{
    hash = spate_fnv64(hash, &len, sizeof len);
    return spate_fnv64(hash, at, len);
}

static uint64_t mix_text(uint64_t hash, const char *text)
{
    return text ? mix(hash, text, strlen(text)) : mix(hash, "\n", 1);
}

void spate_load_hash_version(const struct spate_projection *projection, const struct spate_version *version,
                             char out[SPATE_LOAD_HASH])
{
    const struct spate_sink_table_config *config = projection->config;
    uint64_t hash = mix_text(SPATE_FNV64_START, config->from);

    hash = mix_text(hash, config->where);
    for (size_t i = 0; i < config->columns.count; i++) {
        hash = mix_text(hash, config->columns.at[i].key);
        hash = mix_text(hash, config->columns.at[i].value);
    }
    for (size_t i = 0; i < config->key.count; i++)
        hash = mix_text(hash, config->key.at[i]);
    for (size_t i = 0; version && i < version->used_count; i++) {
        const struct spate_column *column = &version->table->columns[version->used[i]];

        hash = mix(hash, column->name.at, column->name.len);
        hash = mix(hash, column->type.at, column->type.len);
        if (column->mask.len)
            hash = mix(hash, column->mask.at, column->mask.len);
    }
    if (version && projection->load.copied)
        hash = mix(hash, (const char *)&version->copy.shape, sizeof version->copy.shape);
    snprintf(out, SPATE_LOAD_HASH, "%016" PRIx64, hash);
}

void spate_load_hash(const struct spate_projection *projection, char out[SPATE_LOAD_HASH])
{
    spate_load_hash_version(projection, projection->current, out);
}

bool spate_load_written(struct spate_projection *projection, struct spate_version *version)
{
    char hash[SPATE_LOAD_HASH];

    spate_load_hash_version(projection, version, hash);
    return projection->load.stored_hash && strcmp(projection->load.stored_hash, hash) == 0;
}

void spate_load_compare(struct spate_projection *projection)
{
    struct spate_load *load = &projection->load;
    char hash[SPATE_LOAD_HASH];

    spate_load_hash(projection, hash);
    load->changed = load->stored_hash && strcmp(load->stored_hash, hash) != 0;
}

/* ---- the target's side ---- */

void spate_load_where(const struct spate_projection *projection, struct spate_buf *sql)
{
    spate_buf_puts(sql, " WHERE table_name = ");
    spate_pg_literal(sql, spate_slice_str(projection->config->item.name));
    spate_buf_puts(sql, " AND sink = ");
    spate_pg_literal(sql, spate_slice_str(projection->sink->name));
}

void spate_load_progress_sql(const struct spate_store *store, const struct spate_projection *projection,
                             struct spate_buf *sql)
{
    const struct spate_load *load = &projection->load;

    spate_buf_printf(sql, "UPDATE %s.spate_table SET chunk = %" PRIu64 ", ranges = ", store->schema,
                     load->chunk);
    if (load->ranges_known)
        spate_buf_printf(sql, "%" PRIu64, load->ranges);
    else
        spate_buf_puts(sql, "NULL");
    spate_buf_puts(sql, ", resume = ");
    spate_pg_literal(sql, spate_slice_str(load->resume));
    spate_load_where(projection, sql);
    spate_buf_puts(sql, ";\n");
}

enum {
    C_READY,
    C_HASH,
    C_KIND,
    C_REQUEST,
    C_CHUNK,
    C_RESUME,
    C_RANGES,
    C_OUTDATED,
    C_FITTED,
    C_COPIED,
    C_WHOLE,
    C_LEFT
};

/* Are the tables there that this kind needs, and has the shadow the shape of its table still? Somebody may
 * have dropped them, or altered the target: then the snapshot has to be taken anew. */
static void whole_sql(const struct spate_projection *projection, struct spate_buf *sql)
{
    static const char shape[] =
        "(SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ',' ORDER BY "
        "attname) "
        "FROM pg_catalog.pg_attribute WHERE attnum > 0 AND NOT attisdropped AND attrelid = to_regclass(";
    const struct spate_load *load = &projection->load;

    spate_buf_puts(sql, "to_regclass(");
    spate_pg_literal(sql, spate_slice_str(load->list));
    spate_buf_puts(sql, ") IS NOT NULL AND (copy IS NULL OR to_regclass(");
    spate_pg_literal(sql, spate_slice_str(load->copy));
    spate_buf_puts(sql, ") IS NOT NULL) AND (load_kind <> 'marked' OR to_regclass(");
    spate_pg_literal(sql, spate_slice_str(load->marks));
    spate_buf_printf(sql, ") IS NOT NULL) AND (load_kind <> 'shadow' OR %s", shape);
    spate_pg_literal(sql, spate_slice_str(load->shadow));
    spate_buf_printf(sql, ")) IS NOT DISTINCT FROM %s CASE WHEN copy IS NULL THEN ", shape);
    spate_pg_literal(sql, spate_slice_str(projection->target));
    spate_buf_puts(sql, " ELSE ");
    spate_pg_literal(sql, spate_slice_str(load->copy));
    spate_buf_puts(sql, " END)))");
}

/* Did somebody hold what the last load needed when it ended? */
static void left_sql(const struct spate_projection *projection, struct spate_buf *sql)
{
    const char *names[] = {projection->load.marks, projection->load.list, projection->load.shadow};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        spate_buf_puts(sql, i ? ", to_regclass(" : "coalesce(to_regclass(");
        spate_pg_literal(sql, spate_slice_str(names[i]));
        spate_buf_puts(sql, ")");
    }
    spate_buf_puts(sql, ", CASE WHEN copy IS NULL THEN to_regclass(");
    spate_pg_literal(sql, spate_slice_str(projection->load.copy));
    spate_buf_puts(sql, ") END) IS NOT NULL");
}

static void take_row(struct spate_projection *projection, const PGresult *res)
{
    struct spate_load *load = &projection->load;
    enum spate_load_kind kind;
    bool copied;

    load->ready = PQgetvalue(res, 0, C_READY)[0] == 't';
    set_text(&load->stored_hash, PQgetisnull(res, 0, C_HASH) ? NULL : PQgetvalue(res, 0, C_HASH));
    set_text(&load->outdated, PQgetisnull(res, 0, C_OUTDATED) ? NULL : PQgetvalue(res, 0, C_OUTDATED));
    load->fitted = (uint32_t)strtoul(PQgetvalue(res, 0, C_FITTED), NULL, 10);
    kind = kind_named(PQgetvalue(res, 0, C_KIND));
    copied = PQgetvalue(res, 0, C_COPIED)[0] == 't';
    if (kind != SPATE_LOAD_NONE || load->kind != SPATE_LOAD_NONE || copied != load->copied) {
        load->copied = copied;
        spate_load_set(projection, kind, PQgetvalue(res, 0, C_REQUEST));
    }
    if (kind == SPATE_LOAD_NONE)
        return;
    load->chunk = strtoull(PQgetvalue(res, 0, C_CHUNK), NULL, 10);
    set_text(&load->resume, PQgetvalue(res, 0, C_RESUME));
    load->ranges_known = !PQgetisnull(res, 0, C_RANGES);
    load->ranges = strtoull(PQgetvalue(res, 0, C_RANGES), NULL, 10);
    load->listed = true; /* there may be keys on it */
    spate_load_stored(projection);
}

void spate_load_rewrite(struct spate_projection *projection)
{
    char hash[SPATE_LOAD_HASH];

    spate_load_hash(projection, hash);
    set_text(&projection->load.stored_hash, hash);
}

void spate_load_note(struct spate_projection *projection, const char *outdated)
{
    set_text(&projection->load.outdated, outdated);
}

enum spate_rc spate_load_fitted(struct spate_store *store, struct spate_projection *projection, bool same,
                                struct spate_err *err)
{
    struct spate_load *load = &projection->load;
    const uint32_t v = projection->current->table->v;
    struct spate_buf sql = {0};
    char hash[SPATE_LOAD_HASH];
    enum spate_rc rc;

    spate_load_hash(projection, hash);
    spate_buf_printf(&sql, "UPDATE %s.spate_table SET fitted = %" PRIu32, store->schema, v);
    if (same)
        spate_buf_printf(&sql, ", projection = '%s'", hash);
    spate_load_where(projection, &sql);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    if (rc != SPATE_OK)
        return rc;
    load->fitted = v;
    if (same)
        set_text(&load->stored_hash, hash);
    return SPATE_OK;
}

static enum spate_rc read_one(struct spate_store *store, struct spate_projection *projection,
                              struct spate_err *err)
{
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(
        &sql,
        "SELECT snapshotted, projection, coalesce(load_kind, 'none'), coalesce(request, ''), "
        "coalesce(chunk, 0), coalesce(resume, ''), ranges, outdated, coalesce(fitted, 0), copy IS NOT NULL, "
        "load_kind IS NULL OR (");
    whole_sql(projection, &sql);
    spate_buf_puts(&sql, "), load_kind IS NULL AND ");
    left_sql(projection, &sql);
    spate_buf_printf(&sql, " FROM %s.spate_table", store->schema);
    spate_load_where(projection, &sql);
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
    if (rc == SPATE_OK && PQntuples(res) == 0)
        rc = spate_fail(err, SPATE_RETRY, "%s.spate_table has lost the row of %s", store->schema,
                        projection->label);
    if (rc == SPATE_OK)
        take_row(projection, res);
    if (rc == SPATE_OK && PQgetvalue(res, 0, C_WHOLE)[0] != 't') {
        spate_log(SPATE_LOG_WARN, "snapshot-void",
                  "table=%s request=%s detail=\"what it kept beside the table was dropped, or the table was "
                  "altered: all rows have to come again\"",
                  projection->label, projection->load.request);
        rc = spate_load_void(store, projection, err);
    } else if (rc == SPATE_OK && PQgetvalue(res, 0, C_LEFT)[0] == 't') {
        spate_load_drop(store, projection);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_load_read(struct spate_store *store, struct spate_projection *projections, size_t count,
                              struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; rc == SPATE_OK && i < count; i++)
        rc = read_one(store, &projections[i], err);
    return rc;
}

enum spate_rc spate_load_keys(struct spate_store *store, struct spate_projection *projection, size_t most,
                              struct spate_buf *json, size_t *count, struct spate_err *err)
{
    const struct spate_table *table = projection->current->table;
    struct spate_value *key = NULL;
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc = SPATE_OK;

    *count = 0;
    spate_buf_putc(json, '[');
    if (projection->load.listed) {
        for (size_t k = 0; k < table->key_count; k++)
            spate_buf_printf(&sql, "%s k%zu::text", k ? "," : "SELECT", k);
        spate_buf_printf(&sql, " FROM %s LIMIT %zu", projection->load.list, most);
        rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_TUPLES_OK, &res, err);
        key = spate_zalloc((table->key_count + 1) * sizeof *key);
    }
    for (int r = 0; rc == SPATE_OK && res && r < PQntuples(res); r++) {
        for (size_t k = 0; k < table->key_count; k++)
            key[k] = (struct spate_value){
                .kind = SPATE_VALUE_TEXT,
                .text = spate_slice(PQgetvalue(res, r, (int)k), (size_t)PQgetlength(res, r, (int)k))};
        spate_buf_puts(json, r ? "," : "");
        rc = spate_encode_key_values(json, table, key, err);
        *count += rc == SPATE_OK;
    }
    spate_buf_putc(json, ']');
    if (rc == SPATE_OK && *count == 0)
        projection->load.listed = false;
    free(key);
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

enum spate_rc spate_load_forget(struct spate_store *store, const char *table, struct spate_err *err)
{
    static const char *const kinds[] = {"mark", "list", "new", "copy"};
    struct spate_buf sql = {0};
    enum spate_rc rc;

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char *name = own_name(store->config->into.schema, kinds[i], table);

        spate_buf_printf(&sql, "DROP TABLE IF EXISTS %s;", name);
        free(name);
    }
    rc = spate_pg_exec(store->conn, spate_buf_str(&sql), PGRES_COMMAND_OK, NULL, err);
    spate_buf_fini(&sql);
    return rc;
}
