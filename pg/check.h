/* pg/check.h - what can be said of the way to a server before it is asked anything, and why it cannot be
 * reached: findings that source and target share.
 *
 * Thread: the caller's. Blocks: on a look at a file. */
#ifndef SPATE_PG_CHECK_H
#define SPATE_PG_CHECK_H

#include "core/finding.h"
#include "pg/pg.h"

/* TLS (P68), a password in the url, a password file that others may read. */
void spate_pg_check_where(const struct spate_pg_where *where, struct spate_findings *list);

/* What a failed attempt means: a pooler (P69), a missing line of pg_hba.conf, a right, an encoding (P84). */
void spate_pg_check_refused(const struct spate_pg_where *where, const struct spate_err *err,
                            struct spate_findings *list);

/* Is something between us and the server (P69)? It would answer with a process of its own. */
SPATE_CHECKED enum spate_rc spate_pg_check_direct(PGconn *conn, struct spate_findings *list,
                                                  struct spate_err *err);

#endif
