/* connector/admission.h - may this be read, and how: a request against the connector's file and the source's
 * catalog. Every refusal says why and gives the statement that mends it; nothing else is disturbed by one.
 *
 * Thread: the desk's. Blocks: on the source, with short statements; a lock is waited for a moment only, since
 * others queue up behind it. */
#ifndef SPATE_CONNECTOR_ADMISSION_H
#define SPATE_CONNECTOR_ADMISSION_H

#include "connector/connector.h"
#include "connector/plan.h"
#include "core/buf.h"
#include "core/err.h"
#include "schemas/control.h"

#include <libpq-fe.h>
#include <stdbool.h>

struct spate_refusal { /* zeroed by its owner; for people: no row's value, and none of the request's */
    struct spate_buf reason, remedy;
};
void spate_refusal_fini(struct spate_refusal *refusal);

/* A table without a key can be taken whole only, in one chunk; so large may it be. */
#define SPATE_WHOLE_TABLE_BYTES (INT64_C(16) << 20)

/* To be run once on a new connection: limits for what follows. */
SPATE_CHECKED enum spate_rc spate_admission_prepare(PGconn *conn, struct spate_err *err);

/* What needs no source: who asks, for tables that the file allows, each named once, with conditions that are
 * some. False: refused. */
bool spate_admission_may(const struct spate_connector_config *config, const struct spate_control *request,
                         struct spate_refusal *refusal);

/* After _may. SPATE_OK: *plan, or NULL: refused. SPATE_AGAIN: something holds a lock that is in the way; the
 * refusal names it, for when it lasts. SPATE_END: a stop was asked for. SPATE_FAIL: the source does not
 * answer; close the connection. Request and plan share nothing. */
SPATE_CHECKED enum spate_rc spate_admission_plan(const struct spate_connector_config *config, PGconn *conn,
                                                 const struct spate_control *request,
                                                 struct spate_plan **plan, struct spate_refusal *refusal,
                                                 struct spate_err *err);

/* admission_source.c: one table as the source has it. `asked_for`: its name in the request. Fills
 * table->table and table->leaves. The same results; SPATE_OK with table->table NULL: refused. After SPATE_OK
 * with a table the transaction that locked it is still open, so that conditions can be tried in it. */
SPATE_CHECKED enum spate_rc spate_admission_look(const struct spate_connector_config *config, PGconn *conn,
                                                 const struct spate_control_table *asked_for, bool append,
                                                 struct spate_plan_table *table,
                                                 struct spate_refusal *refusal, struct spate_err *err);
/* Does every condition hold water: operator known for the type, value of that type? False in *fits: refused.
 * Ends the transaction. */
SPATE_CHECKED enum spate_rc spate_admission_try(PGconn *conn, struct spate_plan_table *table, bool *fits,
                                                struct spate_refusal *refusal, struct spate_err *err);

/* "schema"."table" */
void spate_admission_name(struct spate_buf *out, struct spate_slice schema, struct spate_slice table);

#endif
