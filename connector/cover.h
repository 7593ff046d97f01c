/* connector/cover.h - one shape of a table, and what of it may be shown: the table as the messages have it,
 * and the way from the source's rows to its rows.
 *
 * Whatever describes or carries rows is made from a cover's `table`, in which an excluded column does not
 * exist: no encoder can write what it has no name for. Without rules a cover is plain: both tables are one.
 *
 * Thread: any; nothing changes once it is made. */
#ifndef SPATE_CONNECTOR_COVER_H
#define SPATE_CONNECTOR_COVER_H

#include "connector/catalog.h"
#include "connector/privacy.h"
#include "schemas/event.h"
#include "schemas/table.h"

struct spate_cover_column { /* of the source's table */
    enum spate_treatment treatment;
    uint32_t to;                 /* its place in the messages' table, unless it is excluded */
    struct spate_slice constant; /* as the source prints a value of the column's type; owned */
};

struct spate_cover {
    const struct spate_privacy *privacy; /* borrowed; NULL without rules */
    struct spate_table *raw;             /* as the source has it; owned, sealed, without a v */
    struct spate_table *table;           /* as messages have it; the same one when plain */
    struct spate_cover_column *columns;  /* by raw column; NULL: plain */
    uint32_t *from;                      /* by column of table: its raw column; NULL: plain */
    bool *effective;                     /* by rule: it has found its column here */
    bool *spoken;                        /* by rule: it speaks of this table */
    size_t hashed;                       /* how many columns are */
    bool key_hashed;
};

/* Takes raw (sealed, without a v). Pure. SPATE_FAIL (fatal, REFUSED): a rule would make rows lose their key,
 * or two rules disagree about a column; raw is gone then as well. */
SPATE_CHECKED enum spate_rc spate_cover_new(const struct spate_privacy *privacy, struct spate_table *raw,
                                            const struct spate_kin *kin, size_t kin_count,
                                            struct spate_cover **cover, struct spate_err *err);
void spate_cover_free(struct spate_cover *cover); /* accepts NULL */

/* The source's values into the messages', by raw column to by column of table. `sent`: the tuple is whole, so
 * that what is put in place of values can be said also where the value was not sent. Hashes are written to
 * *digests, which has room for cover->hashed times SPATE_DIGEST, and is moved. Not for plain covers. */
void spate_cover_values(const struct spate_cover *cover, const struct spate_value *raw, bool whole,
                        struct spate_value *out, char **digests);

static inline bool spate_cover_plain(const struct spate_cover *cover)
{
    return !cover || !cover->columns;
}
/* What becomes of a column of cover->table, and its type in the source. */
static inline enum spate_treatment spate_cover_treatment(const struct spate_cover *cover, size_t column)
{
    return spate_cover_plain(cover) ? SPATE_SHOWN : cover->columns[cover->from[column]].treatment;
}

/* ---- cover_source.c: with the source's catalog ---- */

/* The kin of one table, or of all (oid 0), by child's OID. Free with free(). */
SPATE_CHECKED enum spate_rc spate_cover_kin(struct spate_catalog *catalog, uint32_t oid,
                                            struct spate_kin **kin, size_t *count, struct spate_err *err);

/* _new, with the constants as the source prints them, and the names looked after. `kin` may be NULL: asked
 * for now. `before`: what this OID was covered by until now, or NULL. SPATE_OK, SPATE_END (stop), SPATE_FAIL:
 * fatal, REFUSED: a rule has lost its column, or a constant does not fit its column's type. Takes raw. */
SPATE_CHECKED enum spate_rc spate_cover_make(const struct spate_privacy *privacy,
                                             struct spate_catalog *catalog, uint32_t oid,
                                             struct spate_table *raw, const struct spate_kin *kin,
                                             size_t kin_count, const struct spate_cover *before,
                                             struct spate_cover **cover, struct spate_err *err);

/* Before anything is made: would this table have a cover? OK where no rule speaks of it. */
SPATE_CHECKED enum spate_rc spate_cover_try(PGconn *sql, const struct spate_connector_config *config,
                                            const char *schema, const char *table, struct spate_err *err);

#endif
