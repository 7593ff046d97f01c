/* connector/admitting.h - what the files of admission share: one table of a request on its way to a plan, and
 * the words in which it is refused. Internal to the admission. */
#ifndef SPATE_CONNECTOR_ADMITTING_H
#define SPATE_CONNECTOR_ADMITTING_H

#include "connector/admission.h"

#define SPATE_ADMITTING_MS 10000 /* for one answer of the source's; its own limit is shorter */

struct spate_admitting {
    const struct spate_connector_config *config;
    PGconn *conn;
    const struct spate_control_table *from;
    struct spate_refusal *refusal;
    struct spate_err *err;
    struct spate_buf name; /* "schema"."table" */
    PGresult *res;         /* of the look at it */
    const char *user;      /* our role; in res */
};

static inline struct spate_slice spate_admitting_cell(const PGresult *res, int row, int column)
{
    return spate_slice(PQgetvalue(res, row, column), (size_t)PQgetlength(res, row, column));
}

static inline bool spate_admitting_true(const PGresult *res, int row, int column)
{
    return PQgetvalue(res, row, column)[0] == 't';
}

SPATE_CHECKED enum spate_rc spate_admitting_ask(struct spate_admitting *look, const char *sql, int count,
                                                const char *const *values, PGresult **res);
/* It is refused, the words were put already: ends the transaction. */
SPATE_CHECKED enum spate_rc spate_admitting_give_up(struct spate_admitting *look);
/* A statement failed. What the source says of the request, the requester hears (SPATE_OK: refused;
 * SPATE_AGAIN: somebody's lock); what it says of itself, we (SPATE_FAIL). */
SPATE_CHECKED enum spate_rc spate_admitting_failed(struct spate_admitting *look, const char *doing);

/* Words: reason and remedy. */
void spate_admitting_not_there(struct spate_admitting *look);
const char *spate_admitting_wrong_kind(char kind, char persistence); /* NULL: of a kind that can be read */
void spate_admitting_refuse_kind(struct spate_admitting *look, char kind, const char *why);
void spate_admitting_not_published(struct spate_admitting *look, const char *oid);
void spate_admitting_not_granted(struct spate_admitting *look, const char *on, struct spate_slice schema,
                                 bool usage);
void spate_admitting_secured(struct spate_admitting *look, const char *on);

#endif
