/* connector/replication.h - the replication connection: frames in, feedback out, timers (P1, P4, P6-P10).
 *
 * Owns the socket after START_REPLICATION. What may be confirmed it asks the ledger; nothing else writes
 * an LSN to the server.
 *
 * Thread: the data plane.
 * Blocks: spate_replication_connect, _command, _start and _finish, each within a bound and until a stop is
 *         asked for; never while streaming. */
#ifndef SPATE_CONNECTOR_REPLICATION_H
#define SPATE_CONNECTOR_REPLICATION_H

#include "connector/ledger.h"
#include "core/err.h"
#include "core/slice.h"
#include "pg/pg.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

struct spate_replication {
    PGconn *conn;              /* owned; NULL when closed */
    int64_t sender_timeout_ms; /* the server's wal_sender_timeout; 0: it never drops us (P9) */
    uint64_t wal_end;          /* greatest walEnd of a keepalive: safe to carry when nothing is open (P4) */
    bool reply_wanted;         /* the server asked; answered once per drain (P6, P10) */
    bool ask_position;         /* the server is to be asked, with the next status, how far it has come */
    bool flush_pending;        /* libpq still has bytes for the socket */
    bool copying;              /* between START_REPLICATION and the end of COPY */
    uint64_t said;             /* the flush LSN of the last status */
    int64_t status_ms;         /* when the last status went out */
    int64_t read_ms;           /* when the last byte came in */
    unsigned asked;            /* how often the server asked for a reply since asked_ms */
    int64_t asked_ms;
};

/* One message of the stream. `buffer` belongs to the caller: PQfreemem it when `data` is no longer needed. */
struct spate_frame {
    struct spate_slice data; /* pgoutput's bytes, inside buffer */
    char *buffer;
    uint64_t lsn; /* the header's, for messages to people: 0 is common (P16), never an identity (P17) */
};

SPATE_CHECKED enum spate_rc spate_replication_connect(struct spate_replication *repl,
                                                      const struct spate_pg_where *where,
                                                      struct spate_err *err);
void spate_replication_close(struct spate_replication *repl);

/* Runs a replication command that may take long. `tick` (may be NULL) is called about once a second while it
 * does, with the seconds so far; false gives up. Giving up and a stop cancel it on the server (P70):
 * SPATE_AGAIN and SPATE_END. */
SPATE_CHECKED enum spate_rc spate_replication_command(struct spate_replication *repl, const char *sql,
                                                      ExecStatusType expect,
                                                      bool (*tick)(void *arg, int seconds), void *arg,
                                                      PGresult **res, struct spate_err *err);

/* START_REPLICATION at exactly this LSN. */
SPATE_CHECKED enum spate_rc spate_replication_start(struct spate_replication *repl, const char *slot,
                                                    const char *publication, uint64_t lsn,
                                                    struct spate_err *err);

/* The next message that is buffered. Keepalives are taken in on the way.
 *   SPATE_OK     *frame is filled
 *   SPATE_AGAIN  nothing whole is buffered: spate_replication_read, or wait
 *   SPATE_END    the server ended the stream in order: it is shutting down (P10)
 *   SPATE_FAIL   the connection is lost, or the server reported an error */
SPATE_CHECKED enum spate_rc spate_replication_next(struct spate_replication *repl,
                                                   struct spate_ledger *ledger, struct spate_frame *frame,
                                                   struct spate_err *err);

/* Takes what the socket has without waiting. */
SPATE_CHECKED enum spate_rc spate_replication_read(struct spate_replication *repl, struct spate_err *err);
/* Is there anything to read at this moment? */
bool spate_replication_readable(const struct spate_replication *repl);
/* How many bytes wait in the socket (of TLS records, where there is TLS). */
size_t spate_replication_queued(const struct spate_replication *repl);

/* Sends the status when it is due: at once for a reply, soon after the confirmable LSN moved, and often
 * enough that nobody times out (P7). `reading`: false under back pressure, when silence is our own doing.
 * SPATE_FAIL (retry): the server has been silent for too long (P8). */
SPATE_CHECKED enum spate_rc spate_replication_tend(struct spate_replication *repl,
                                                   const struct spate_ledger *ledger, int64_t now_ms,
                                                   bool reading, struct spate_err *err);
/* Does the server ask for replies without pause? So it does when it shuts down and waits for us (P10). */
bool spate_replication_pressed(struct spate_replication *repl, int64_t now_ms);
/* How long a silence may last: the server's own timeout, or ours where it has none (P8, P9). */
int64_t spate_replication_patience_ms(const struct spate_replication *repl);
/* How long poll may sleep until _tend has something to do. */
int spate_replication_due_ms(const struct spate_replication *repl, const struct spate_ledger *ledger,
                             int64_t now_ms);

/* The last word: final status, end of COPY, and waits at most timeout_ms until the server has read it, so
 * that closing the socket cannot take it back. */
void spate_replication_finish(struct spate_replication *repl, const struct spate_ledger *ledger,
                              int timeout_ms);

#endif
