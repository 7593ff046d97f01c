/* connector/relation.h - what each table looks like at this place of the stream (P30, P31, P35).
 *
 * The columns come from the Relation message; the catalog only annotates them: primary key, type spelling,
 * length. One cache per connection, by OID: a Relation message always replaces what was there,
 * and a reconnect drops it all.
 *
 * Thread: the data plane. Tables are borrowed from connector/versions.h. */
#ifndef SPATE_CONNECTOR_RELATION_H
#define SPATE_CONNECTOR_RELATION_H

#include "connector/catalog.h"
#include "connector/cover.h"
#include "connector/pgoutput.h"
#include "connector/versions.h"

struct spate_relations {
    struct spate_relation *slots; /* open addressing by OID; owned */
    size_t count, cap;
    struct spate_cover **retired; /* replaced ones: a change that is held may still borrow from them; owned */
    size_t retired_count;
    struct spate_catalog_table *known; /* what the catalog said at start, sorted by OID; owned */
    size_t known_count;
};

struct spate_relation {
    uint32_t oid;                    /* 0: free */
    const struct spate_table *table; /* as messages have it */
    struct spate_cover *cover;       /* how its rows become that; owned */
};

/* All zero is a valid empty cache. */
void spate_relations_fini(struct spate_relations *relations);
/* A new connection: forgets everything and takes the catalog's tables (spate_catalog_load). */
void spate_relations_start(struct spate_relations *relations, struct spate_catalog_table *known,
                           size_t known_count);

/* NULL: no Relation message for this OID came on this connection. */
const struct spate_table *spate_relations_find(const struct spate_relations *relations, uint32_t oid);
const struct spate_relation *spate_relations_at(const struct spate_relations *relations, uint32_t oid);
/* `table` is the version of cover->table. Takes the cover; NULL: a plain one. */
void spate_relations_set(struct spate_relations *relations, uint32_t oid, const struct spate_table *table,
                         struct spate_cover *cover);
/* How this OID was covered last on this connection: by the stream, or by what the catalog said at start;
 * NULL: not known. */
const struct spate_cover *spate_relations_cover(const struct spate_relations *relations, uint32_t oid);

/* The canonical table for a Relation message: the catalog's where it says the same, else built from the
 * message with the catalog's annotations, asked for now. *table is sealed, without a v, the caller's.
 * SPATE_OK, SPATE_END (stop asked for while waiting), SPATE_FAIL. */
SPATE_CHECKED enum spate_rc spate_relation_resolve(const struct spate_relations *relations,
                                                   struct spate_catalog *catalog,
                                                   const struct spate_pgoutput *msg,
                                                   struct spate_table **table, struct spate_err *err);

/* Whether the message and the catalog's table agree in everything that the stream knows. */
bool spate_relation_agrees(const struct spate_pgoutput *msg, const struct spate_table *table);

/* A sealed table of its own with the same canonical form and no v. */
struct spate_table *spate_relation_copy(const struct spate_table *from);

/* Builds the table from the message's columns; `types` annotates each of them, `hint` (may be NULL) is the
 * catalog's table, for its key. Pure. */
struct spate_table *spate_relation_build(const struct spate_pgoutput *msg,
                                         const struct spate_catalog_type *types,
                                         const struct spate_table *hint);

#endif
