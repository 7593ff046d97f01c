/* connector/catalog.h - what the source's catalog says of its published tables, in the canonical form of
 * schemas/table.h: exactly the columns that are replicated, in their order (P38, P49).
 *
 * Thread: the data plane, over an ordinary SQL connection of its own.
 * Blocks: never by itself. Queries are sent, and while the answer is out `wait` is called, which lets the
 *         connector answer keepalives meanwhile (P6). */
#ifndef SPATE_CONNECTOR_CATALOG_H
#define SPATE_CONNECTOR_CATALOG_H

#include "core/buf.h"
#include "core/err.h"
#include "schemas/table.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_cover;

struct spate_catalog_table {
    uint32_t oid;
    struct spate_table *table; /* sealed, without a v; owned unless there is a cover, which owns it then */
    struct spate_cover *cover; /* owned; NULL: none was made yet */
};

struct spate_catalog {
    PGconn *conn;            /* borrowed; session settings pinned by pg/ */
    const char *publication; /* borrowed */
    bool prepared;           /* spate_catalog_prepare_sql was run on conn */
    /* Returns when the descriptor is readable, or fails; SPATE_END: a stop was asked for. */
    enum spate_rc (*wait)(void *arg, int fd, struct spate_err *err);
    void *arg;
};

/* What is published, for queries of one's own: appends the list of a WITH RECURSIVE whose last member is
 * published(oid, generated, attrs), once per table in whose name pgoutput sends rows. attrs: a list of
 * columns, or NULL. $1 is the publication's name. Takes no lock on any table. */
void spate_catalog_published_sql(struct spate_buf *sql, PGconn *conn);

/* One question with text parameters; SPATE_OK: rows in *res, for PQclear. */
SPATE_CHECKED enum spate_rc spate_catalog_ask(struct spate_catalog *catalog, const char *sql, int count,
                                              const char *const *values, PGresult **res,
                                              struct spate_err *err);

/* All tables of the publication, by OID. *tables is freed with spate_catalog_tables_free. */
SPATE_CHECKED enum spate_rc spate_catalog_load(struct spate_catalog *catalog,
                                               struct spate_catalog_table **tables, size_t *count,
                                               struct spate_err *err);
void spate_catalog_tables_free(struct spate_catalog_table *tables, size_t count);

/* One table as it is now, published or not; *table is NULL when there is none with that OID. */
SPATE_CHECKED enum spate_rc spate_catalog_table(struct spate_catalog *catalog, uint32_t oid,
                                                struct spate_table **table, struct spate_err *err);

/* For whoever asks for many tables one by one: appends a statement that prepares the question above. */
void spate_catalog_prepare_sql(struct spate_buf *sql, PGconn *conn);

/* What a type is, for columns the stream knows and the catalog no longer does. */
struct spate_catalog_type {
    uint32_t oid;
    int32_t mod;
    char *name, *base; /* owned; base is "" unless the type is a domain */
    int16_t len;
    uint32_t base_oid;
};
/* Fills name, base, len and base_oid of each; a type that is gone is called "???". Free with
 * spate_catalog_types_fini. */
SPATE_CHECKED enum spate_rc spate_catalog_types(struct spate_catalog *catalog,
                                                struct spate_catalog_type *types, size_t count,
                                                struct spate_err *err);
void spate_catalog_types_fini(struct spate_catalog_type *types, size_t count);

#endif
