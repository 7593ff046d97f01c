/* pg/pg.h - what connector and sinks both need of libpq: connecting with pinned session settings,
 * quoting, and errors with a verdict.
 *
 * Thread: a PGconn belongs to one thread.
 * Blocks: spate_pg_connect and spate_pg_exec, within the stated time and the second that cancelling may take;
 *         both end early with SPATE_END when a stop was asked for (core/signals.h). Only the look-up of a
 *         host's name, which is libpq's, heeds neither. */
#ifndef SPATE_PG_PG_H
#define SPATE_PG_PG_H

#include "core/buf.h"
#include "core/err.h"
#include "core/slice.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

struct spate_pg_where {
    const char *what;         /* "source" or "target", for messages; outlives the connection */
    const char *url;          /* libpq URL or conninfo */
    const char *password_env; /* name of an environment variable, or NULL */
    const char
        *password_file; /* file whose first line is the password, or NULL; read anew at each attempt (P67) */
    const char *application_name;
    bool replication; /* replication=database (P66) */
};

/* Connects and pins the session (P79, P78): client_encoding UTF8 - SQL_ASCII where the server's encoding is
 * SQL_ASCII (P83) - datestyle ISO, intervalstyle postgres, extra_float_digits 3, bytea_output hex, timezone
 * UTC, lc_monetary C, search_path pg_catalog, and all idle/statement/lock timeouts off; each is verified with
 * SHOW. sslmode is verify-full unless the URL says otherwise (P68; libpq ignores it on Unix sockets).
 * Keepalives and tcp_user_timeout are set. SPATE_OK, SPATE_END (stop asked for), SPATE_FAIL. The text never
 * holds the URL's password. */
SPATE_CHECKED enum spate_rc spate_pg_connect(const struct spate_pg_where *where, int timeout_ms,
                                             PGconn **conn, struct spate_err *err);

/* Fills *err from a result or (res NULL) the connection: "CONTEXT: server's words", SQLSTATE, and the
 * verdict of the one table in pg/verdict.c. Returns SPATE_FAIL.
 * Where the server's words may quote a value (spate_pg_quotes_values), the condition's name and the table,
 * column and constraint that the server named take their place. */
enum spate_rc spate_pg_fail(struct spate_err *err, PGconn *conn, const PGresult *res, const char *fmt, ...)
    SPATE_PRINTF(4, 5);

/* What is done about an error (HAZARDS 8): the one table is in pg/verdict.c. */
enum spate_pg_kind {
    SPATE_PG_TRANSIENT, /* tried again after 0.1 s, later after up to 10 s, for ever */
    SPATE_PG_SLOW,      /* every 10 s: a limit, room, a server that only reads */
    SPATE_PG_OPERATOR,  /* every 30 s, with the secrets read anew: a login, a right */
    SPATE_PG_FENCE,     /* the slot or the publication: looked at again, and what is lost is named */
    SPATE_PG_STOP,      /* nothing but a human helps */
    SPATE_PG_ROW        /* a row or a table: a sink finds out which, and stops with its key */
};
enum spate_pg_kind spate_pg_kind(const char *sqlstate);
int64_t spate_pg_pace_ms(const char *sqlstate, int64_t backoff_ms); /* how long until it is tried again */
bool spate_pg_prepare_again(const char *sqlstate); /* T23: with statements prepared anew it may go, once */
void spate_pg_reference(struct spate_buf *out);    /* the table, as Markdown */

/* sqlstate may be NULL or empty: the connection itself failed (retry). */
enum spate_verdict spate_pg_verdict(const char *sqlstate);
const char *spate_pg_condition(const char *sqlstate); /* "unique_violation"; never NULL */
const char *spate_pg_remedy(const char *sqlstate);    /* what to do, or NULL; spate_pg_fail appends it */
bool spate_pg_quotes_values(const char *sqlstate);    /* the server's words may hold a row's value */

/* As spate_pg_fail, from the words of a connection that never came up (they hold the SQLSTATE when the
 * connection's verbosity is PQERRORS_VERBOSE). */
enum spate_rc spate_pg_connect_failed(struct spate_err *err, const char *context, const char *words);

/* Runs one command, or several in one string (the last result counts). `expect` is PGRES_TUPLES_OK,
 * PGRES_COMMAND_OK or a PGRES_COPY_* state. `res` may be NULL; else PQclear *res, which is NULL unless
 * SPATE_OK. SPATE_END: a stop was asked for, before or meanwhile; the server was told to cancel, and the
 * transaction's fate is unknown: close the connection. */
SPATE_CHECKED enum spate_rc spate_pg_exec(PGconn *conn, const char *sql, ExecStatusType expect,
                                          PGresult **res, struct spate_err *err);
SPATE_CHECKED enum spate_rc spate_pg_exec_params(PGconn *conn, const char *sql, int count,
                                                 const char *const *values, ExecStatusType expect,
                                                 PGresult **res, struct spate_err *err);

/* The same, whether or not a stop was asked for, but for at most timeout_ms (-1: no limit): for the last
 * words of an orderly stop. Time is up: the server was told to cancel; SPATE_FAIL (retry), SQLSTATE 57014:
 * close the connection. */
SPATE_CHECKED enum spate_rc spate_pg_exec_within(PGconn *conn, const char *sql, int timeout_ms,
                                                 ExecStatusType expect, PGresult **res,
                                                 struct spate_err *err);

/* The same with parameters, for questions that must neither hold up a stop nor hang on a silent server:
 * SPATE_END when a stop was asked for, and SPATE_FAIL (retry, 57014) when time is up. */
SPATE_CHECKED enum spate_rc spate_pg_ask(PGconn *conn, const char *sql, int count, const char *const *values,
                                         int timeout_ms, PGresult **res, struct spate_err *err);

/* Asks the server to cancel the command that runs on the connection, and waits for at most timeout_ms until
 * it has heard that. Where it has not, the connection is broken: the request may still arrive. */
void spate_pg_cancel(PGconn *conn, int timeout_ms);

/* Appends "name" / 'text' quoted for SQL; works on slices with any bytes but NUL (P85). */
void spate_pg_ident(struct spate_buf *out, struct spate_slice name);
void spate_pg_literal(struct spate_buf *out, struct spate_slice text);

/* "1A/2B3C" as Postgres prints it, and back; parse returns false on anything else. */
#define SPATE_PG_LSN_TEXT 18
const char *spate_pg_lsn(uint64_t lsn, char out[SPATE_PG_LSN_TEXT]);
bool spate_pg_lsn_parse(const char *text, uint64_t *lsn);

#endif
