/* connector/check_privacy.c - what exclude and mask come to, table by table. */
#include "connector/check.h"

#include "connector/cover.h"
#include "connector/lists.h"
#include "connector/relation.h"
#include "core/alloc.h"
#include "pg/pg.h"

#include <stdlib.h>

enum spate_rc spate_check_privacy(PGconn *sql, const struct spate_connector_config *config,
                                  struct spate_privacy **privacy, struct spate_findings *list,
                                  struct spate_err *err)
{
    *privacy = NULL;
    if (spate_privacy_new(config, privacy, err) != SPATE_OK ||
        spate_privacy_verify(*privacy, sql, err) != SPATE_OK) {
        if (err->exit_code == SPATE_EXIT_OK)
            return SPATE_FAIL;
        spate_find_err(list, "privacy", err);
        *err = (struct spate_err){0};
    }
    return SPATE_OK;
}

/* The server still sends it: it crosses the network, and is left out here. */
static enum spate_rc note_sent(PGconn *sql, const struct spate_connector_config *config,
                               const struct spate_cover *cover, struct spate_findings *list,
                               struct spate_err *err)
{
    struct spate_buf columns = {0}, name = {0}, into = {0}, names = {0};
    char *schema = NULL, *table = NULL;
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; !spate_cover_plain(cover) && i < cover->raw->column_count; i++)
        if (cover->columns[i].treatment == SPATE_EXCLUDED) {
            spate_buf_puts(&names, names.len ? ", " : "");
            spate_buf_slice(&names, cover->raw->columns[i].name);
        }
    if (names.len == 0)
        goto out;
    schema = spate_strndup(cover->raw->schema.at, cover->raw->schema.len);
    table = spate_strndup(cover->raw->name.at, cover->raw->name.len);
    spate_pg_ident(&name, cover->raw->schema);
    spate_buf_putc(&name, '.');
    spate_pg_ident(&name, cover->raw->name);
    spate_pg_ident(&into, spate_slice_str(config->source.publication));
    rc = spate_lists_columns(sql, config, schema, table, &columns, err);
    if (rc != SPATE_OK)
        goto out;
    spate_find(list, SPATE_FINDING_NOTE, "excluded-sent",
               "table %s: %s travels from the server to the connector, though not to the bus",
               spate_buf_str(&name), spate_buf_str(&names));
    spate_find_why(list, columns.len
                             ? "the publication names all columns; with a list the server would not send it"
                             : "a column list would not be right here (an older server, REPLICA IDENTITY "
                               "FULL, partitions or children), so the connector leaves it out");
    if (columns.len)
        spate_find_fix(list, SPATE_MEND_SOURCE,
                       "BEGIN; ALTER PUBLICATION %s DROP TABLE ONLY %s; ALTER PUBLICATION %s ADD TABLE ONLY "
                       "%s%s; COMMIT;",
                       spate_buf_str(&into), spate_buf_str(&name), spate_buf_str(&into), spate_buf_str(&name),
                       spate_buf_str(&columns));
out:
    free(schema);
    free(table);
    spate_buf_fini(&columns);
    spate_buf_fini(&name);
    spate_buf_fini(&into);
    spate_buf_fini(&names);
    return rc;
}

enum spate_rc spate_check_covered(struct spate_catalog *catalog, const struct spate_connector_config *config,
                                  uint32_t oid, struct spate_table *raw, struct spate_table **table,
                                  struct spate_findings *list, struct spate_err *err)
{
    struct spate_cover *cover = NULL;
    enum spate_rc rc = spate_cover_make(config->privacy, catalog, oid, raw, NULL, 0, NULL, &cover, err);

    *table = NULL;
    if (rc == SPATE_FAIL && err->exit_code == SPATE_EXIT_REFUSED) {
        spate_find_err(list, "privacy", err);
        *err = (struct spate_err){0};
        return SPATE_OK;
    }
    if (rc == SPATE_OK && config->privacy)
        rc = note_sent(catalog->conn, config, cover, list, err);
    if (rc == SPATE_OK)
        *table = spate_relation_copy(cover->table);
    spate_cover_free(cover);
    return rc;
}
