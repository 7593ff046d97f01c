/* connector/privacy.h - what must not leave: exclude, mask and the key of hashes, as the connector's file
 * says.
 *
 * The one place that knows the rules. A rule becomes effective as a cover (connector/cover.h): nothing that
 * describes or carries a table's rows is made without one.
 *
 * Names are the contract, as in the stream (P34): a rule whose column is neither in a table's shape nor in
 * the source's table any more stops the connector, for whatever it was renamed to would leave.
 *
 * Thread: any; nothing changes after _new. Blocks: _new, on the key file; _verify, on the source. */
#ifndef SPATE_CONNECTOR_PRIVACY_H
#define SPATE_CONNECTOR_PRIVACY_H

#include "connector/connector.h"
#include "core/err.h"
#include "core/slice.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_privacy;

enum spate_treatment {
    SPATE_SHOWN,
    SPATE_EXCLUDED, /* the messages' table has no such column */
    SPATE_NULLED,
    SPATE_CONSTANT,
    SPATE_HASHED /* HMAC-SHA256 of the value's text, in hex; NULL stays NULL */
};
const char *spate_treatment_name(enum spate_treatment treatment); /* "exclude", "mask: null" */

/* What the file says, without its key: syntax, and that there is a key where one is needed. SPATE_FAIL
 * (fatal, CONFIG), with the line. */
SPATE_CHECKED enum spate_rc spate_privacy_check(const struct spate_connector_config *config, const char *path,
                                                struct spate_err *err);

/* The rules, with the key read: *privacy is NULL where the file has none. SPATE_FAIL (fatal, CONFIG). */
SPATE_CHECKED enum spate_rc spate_privacy_new(const struct spate_connector_config *config,
                                              struct spate_privacy **privacy, struct spate_err *err);
void spate_privacy_free(struct spate_privacy *privacy); /* accepts NULL */

/* Does every rule name tables that exist, and a column that one of them has? SPATE_FAIL (fatal, REFUSED): a
 * slip of the finger would leak. Accepts NULL. */
SPATE_CHECKED enum spate_rc spate_privacy_verify(const struct spate_privacy *privacy, PGconn *sql,
                                                 struct spate_err *err);

/* ---- for connector/cover.c ---- */

/* A table that this one's rows belong to as well: a partition's root, a parent by inheritance. */
struct spate_kin {
    uint32_t oid; /* the child's */
    struct spate_slice schema, name;
};

/* Rules are numbered from 0: one for each column entry of each table entry. Does rule `i` speak of this
 * table, by its own name or by kin? */
size_t spate_privacy_rules(const struct spate_privacy *privacy); /* 0 for NULL */
bool spate_privacy_speaks(const struct spate_privacy *privacy, size_t rule, struct spate_slice schema,
                          struct spate_slice table, const struct spate_kin *kin, size_t kin_count);
bool spate_privacy_names(const struct spate_privacy *privacy, size_t rule, struct spate_slice column);
/* Must a table of which it speaks have the column? An exact name says so, a glob does not. */
bool spate_privacy_strict(const struct spate_privacy *privacy, size_t rule);
/* May the column be missing ("ssn|")? */
bool spate_privacy_spares(const struct spate_privacy *privacy, size_t rule);
enum spate_treatment spate_privacy_treatment(const struct spate_privacy *privacy, size_t rule);
struct spate_slice spate_privacy_constant(const struct spate_privacy *privacy, size_t rule);
const char *spate_privacy_mask(const struct spate_privacy *privacy, size_t rule); /* for the schema message */
/* "FILE:LINE: exclude.public.t: ssn" */
const char *spate_privacy_where(const struct spate_privacy *privacy, size_t rule);
const char *spate_privacy_word(const struct spate_privacy *privacy,
                               size_t rule); /* "ssn|social", as written */

#define SPATE_DIGEST 64 /* characters; no NUL */
void spate_privacy_digest(const struct spate_privacy *privacy, struct spate_slice text,
                          char out[SPATE_DIGEST]);

#endif
