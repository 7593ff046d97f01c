/* connector/cover_source.c - what a cover needs to know of the source: kin, names, and how a constant is
 * printed. */
#include "connector/cover.h"

#include "core/alloc.h"
#include "core/buf.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* $1: a child's OID, or 0 for all. */
static const char select_kin[] =
    "WITH RECURSIVE up(oid, above) AS ("
    " SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i WHERE $1::oid IN (0, i.inhrelid)"
    " UNION SELECT u.oid, i.inhparent FROM up u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.above)"
    " SELECT u.oid, n.nspname, c.relname FROM up u JOIN pg_catalog.pg_class c ON c.oid = u.above"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
    " ORDER BY u.oid";

static struct spate_slice cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

/* One block: the array, and the names behind it. */
enum spate_rc spate_cover_kin(struct spate_catalog *catalog, uint32_t oid, struct spate_kin **kin,
                              size_t *count, struct spate_err *err)
{
    char number[16];
    const char *values[] = {number};
    PGresult *res = NULL;
    size_t bytes = 0;
    enum spate_rc rc;
    char *text;

    *kin = NULL;
    *count = 0;
    snprintf(number, sizeof number, "%u", oid);
    rc = spate_catalog_ask(catalog, select_kin, 1, values, &res, err);
    if (rc != SPATE_OK)
        return rc;
    *count = (size_t)PQntuples(res);
    for (int row = 0; row < PQntuples(res); row++)
        bytes += cell(res, row, 1).len + cell(res, row, 2).len;
    *kin = spate_alloc((*count + 1) * sizeof **kin + bytes);
    text = (char *)(*kin + *count + 1);
    for (int row = 0; row < PQntuples(res); row++) {
        struct spate_slice schema = cell(res, row, 1), name = cell(res, row, 2);

        memcpy(text, schema.at, schema.len);
        memcpy(text + schema.len, name.at, name.len);
        (*kin)[row] =
            (struct spate_kin){(uint32_t)strtoul(PQgetvalue(res, row, 0), NULL, 10),
                               spate_slice(text, schema.len), spate_slice(text + schema.len, name.len)};
        text += schema.len + name.len;
    }
    PQclear(res);
    return SPATE_OK;
}

static enum spate_rc refuse(struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_REFUSED;
    err->sqlstate[0] = '\0';
    return SPATE_FAIL;
}

/* ---- constants ---- */

/* The constant as the source prints it: 1.5 in a numeric(10,2) is 1.50, and true is t. A text that a cast
 * would cut in silence does not fit. */
static enum spate_rc settle_constant(const struct spate_cover *cover, struct spate_catalog *catalog, size_t i,
                                     struct spate_err *err)
{
    struct spate_cover_column *column = &cover->columns[i];
    const struct spate_column *c = &cover->raw->columns[i];
    struct spate_buf sql = {0};
    char *text = spate_strndup(column->constant.len ? column->constant.at : "", column->constant.len);
    const char *values[] = {text};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(
        &sql,
        "SELECT pg_catalog.format('%s', v), pg_catalog.length(pg_catalog.rtrim(pg_catalog.format('%s', v)))"
        " < pg_catalog.length(pg_catalog.rtrim($1)) AND (SELECT t.typcategory IN ('S', 'V') FROM"
        " pg_catalog.pg_type t WHERE t.oid = ");
    spate_buf_printf(&sql, "%u) FROM (SELECT $1::text::%.*s AS v) o", c->oid, SPATE_SLICE_ARG(c->type));
    rc = spate_catalog_ask(catalog, spate_buf_str(&sql), 1, values, &res, err);
    if (rc == SPATE_OK && PQgetvalue(res, 0, 1)[0] != 't') {
        free((char *)(uintptr_t)column->constant.at);
        column->constant = spate_slice(spate_strndup(PQgetvalue(res, 0, 0), (size_t)PQgetlength(res, 0, 0)),
                                       (size_t)PQgetlength(res, 0, 0));
    } else if (rc == SPATE_OK || (rc == SPATE_FAIL && err->verdict != SPATE_RETRY)) {
        spate_fail(err, SPATE_FATAL,
                   "mask: the constant \"%.100s\" is no value of column %.*s of %.*s.%.*s, which has type "
                   "%.*s. Give one that "
                   "can be cast to it, or mask the column with null",
                   text, SPATE_SLICE_ARG(c->name), SPATE_SLICE_ARG(cover->raw->schema),
                   SPATE_SLICE_ARG(cover->raw->name), SPATE_SLICE_ARG(c->type));
        rc = refuse(err);
    }
    PQclear(res);
    spate_buf_fini(&sql);
    free(text);
    return rc;
}

/* The same shape under the same rules as before: so are the constants. */
static bool take_constants(struct spate_cover *cover, const struct spate_cover *before)
{
    if (!before || !before->columns || before->privacy != cover->privacy ||
        before->raw->fingerprint != cover->raw->fingerprint ||
        memcmp(before->effective, cover->effective,
               spate_privacy_rules(cover->privacy) * sizeof *cover->effective) != 0)
        return false;
    for (size_t i = 0; i < cover->raw->column_count; i++) {
        struct spate_slice constant = before->columns[i].constant;

        if (cover->columns[i].treatment != SPATE_CONSTANT)
            continue;
        free((char *)(uintptr_t)cover->columns[i].constant.at);
        cover->columns[i].constant =
            spate_slice(spate_strndup(constant.len ? constant.at : "", constant.len), constant.len);
    }
    return true;
}

static enum spate_rc settle_constants(struct spate_cover *cover, struct spate_catalog *catalog,
                                      const struct spate_cover *before, struct spate_err *err)
{
    enum spate_rc rc = SPATE_OK;

    if (spate_cover_plain(cover) || take_constants(cover, before))
        return SPATE_OK;
    for (size_t i = 0; rc == SPATE_OK && i < cover->raw->column_count; i++)
        if (cover->columns[i].treatment == SPATE_CONSTANT)
            rc = settle_constant(cover, catalog, i, err);
    return rc;
}

/* ---- names ---- */

/* Does the source's table have a column of that rule now? Then the shape lacks it for another reason than its
 * name: a publication's column list, or it was added later. */
static enum spate_rc is_there(const struct spate_privacy *privacy, struct spate_catalog *catalog,
                              uint32_t oid, size_t rule, bool *there, struct spate_err *err)
{
    char number[16];
    const char *values[] = {number};
    PGresult *res = NULL;
    enum spate_rc rc;

    *there = false;
    snprintf(number, sizeof number, "%u", oid);
    rc = spate_catalog_ask(catalog,
                           "SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND"
                           " a.attnum > 0 AND NOT a.attisdropped",
                           1, values, &res, err);
    for (int row = 0; rc == SPATE_OK && row < PQntuples(res); row++)
        *there |= spate_privacy_names(privacy, rule, cell(res, row, 0));
    PQclear(res);
    return rc;
}

static enum spate_rc lost_table(const struct spate_cover *cover, const struct spate_cover *before,
                                size_t rule, struct spate_err *err)
{
    spate_fail(err, SPATE_FATAL,
               "%s: table %.*s.%.*s has become %.*s.%.*s, of which this rule does not speak, so its columns "
               "would leave as "
               "they are. Nothing of it was published under the new name. Write both names before the colon, "
               "\"%.*s.%.*s|%.*s.%.*s\", and start again",
               spate_privacy_where(cover->privacy, rule), SPATE_SLICE_ARG(before->raw->schema),
               SPATE_SLICE_ARG(before->raw->name), SPATE_SLICE_ARG(cover->raw->schema),
               SPATE_SLICE_ARG(cover->raw->name), SPATE_SLICE_ARG(before->raw->schema),
               SPATE_SLICE_ARG(before->raw->name), SPATE_SLICE_ARG(cover->raw->schema),
               SPATE_SLICE_ARG(cover->raw->name));
    return refuse(err);
}

static enum spate_rc lost_column(const struct spate_cover *cover, size_t rule, struct spate_err *err)
{
    const char *word = spate_privacy_word(cover->privacy, rule);

    spate_fail(err, SPATE_FATAL,
               "%s: table %.*s.%.*s has no such column any more. If it was renamed, it would leave under its "
               "new name: "
               "nothing of that was published. Write \"%s|NEW\", both names, and start again; if it was "
               "dropped, write "
               "\"%s|\"",
               spate_privacy_where(cover->privacy, rule), SPATE_SLICE_ARG(cover->raw->schema),
               SPATE_SLICE_ARG(cover->raw->name), word, word);
    return refuse(err);
}

/* P34: the stream knows a column by its name alone. */
static enum spate_rc look_after(const struct spate_cover *cover, struct spate_catalog *catalog, uint32_t oid,
                                const struct spate_cover *before, struct spate_err *err)
{
    for (size_t i = 0; i < spate_privacy_rules(cover->privacy); i++) {
        bool had = before && before->effective && before->effective[i], there;
        enum spate_rc rc;

        if (cover->effective[i])
            continue;
        if (had && !cover->spoken[i])
            return lost_table(cover, before, i, err);
        if (!cover->spoken[i] || spate_privacy_spares(cover->privacy, i) ||
            !(had || spate_privacy_strict(cover->privacy, i)))
            continue;
        rc = is_there(cover->privacy, catalog, oid, i, &there, err);
        if (rc != SPATE_OK)
            return rc;
        if (!there)
            return lost_column(cover, i, err);
    }
    return SPATE_OK;
}

enum spate_rc spate_cover_make(const struct spate_privacy *privacy, struct spate_catalog *catalog,
                               uint32_t oid, struct spate_table *raw, const struct spate_kin *kin,
                               size_t kin_count, const struct spate_cover *before, struct spate_cover **out,
                               struct spate_err *err)
{
    struct spate_kin *asked = NULL;
    struct spate_cover *cover = NULL;
    enum spate_rc rc = SPATE_OK;

    *out = NULL;
    if (privacy && !kin) {
        rc = spate_cover_kin(catalog, oid, &asked, &kin_count, err);
        kin = asked;
    }
    if (rc == SPATE_OK)
        rc = spate_cover_new(privacy, raw, kin, kin_count, &cover, err);
    else
        spate_table_free(raw);
    free(asked);
    if (rc == SPATE_OK)
        rc = settle_constants(cover, catalog, before, err);
    if (rc == SPATE_OK && privacy)
        rc = look_after(cover, catalog, oid, before, err);
    if (rc == SPATE_OK)
        *out = cover;
    else
        spate_cover_free(cover);
    return rc;
}

/* ---- beforehand ---- */

static enum spate_rc wait_readable(void *arg, int fd, struct spate_err *err)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = spate_signals_fd(), .events = POLLIN}};

    (void)arg;
    (void)err;
    poll(fds, 2, 1000);
    return spate_signals_stop() ? SPATE_END : SPATE_OK;
}

enum spate_rc spate_cover_try(PGconn *sql, const struct spate_connector_config *config, const char *schema,
                              const char *table, struct spate_err *err)
{
    struct spate_catalog catalog = {
        .conn = sql, .publication = config->source.publication, .wait = wait_readable};
    const char *values[] = {schema, table};
    struct spate_cover *cover = NULL;
    struct spate_table *raw = NULL;
    PGresult *res = NULL;
    enum spate_rc rc;
    uint32_t oid = 0;
    bool spoken = false;

    for (size_t i = 0; i < spate_privacy_rules(config->privacy); i++)
        spoken |= spate_privacy_speaks(config->privacy, i, spate_slice_str(schema), spate_slice_str(table),
                                       NULL, 0);
    if (!spoken)
        return SPATE_OK;
    rc = spate_catalog_ask(&catalog,
                           "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
                           " ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
                           2, values, &res, err);
    if (rc == SPATE_OK && PQntuples(res) == 1)
        oid = (uint32_t)strtoul(PQgetvalue(res, 0, 0), NULL, 10);
    PQclear(res);
    if (rc == SPATE_OK && oid)
        rc = spate_catalog_table(&catalog, oid, &raw, err);
    if (rc == SPATE_OK && raw)
        rc = spate_cover_make(config->privacy, &catalog, oid, raw, NULL, 0, NULL, &cover, err);
    spate_cover_free(cover);
    return rc;
}
