#include "connector/culprit.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"
#include "pg/pg.h"

#include <ctype.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS 10000
#define LOOK_MS    60000
#define FREE_MS    100 /* how often it is asked whether the slot is free: its walsender may be just leaving */

uint64_t spate_culprit_lsn(const char *context)
{
    const char *slash = context;
    uint64_t lsn = 0;

    while (slash && (slash = strchr(slash, '/')) != NULL) {
        const char *from = slash++;
        unsigned long long high, low;
        int taken = 0;

        while (from > context && isxdigit((unsigned char)from[-1]))
            from--;
        if (sscanf(from, "%8llX/%8llX%n", &high, &low, &taken) == 2 && from + taken > slash)
            lsn = (uint64_t)high << 32 | (uint64_t)low; /* the last one */
    }
    return lsn;
}

struct look {
    const struct spate_connector_config *config;
    PGconn *conn;
    int64_t until_ms;
    char oid[16]; /* of the relation, when it was found */
};

static enum spate_rc ask(struct look *look, const char *sql, int count, const char *const *values,
                         PGresult **res, struct spate_err *err)
{
    int64_t left_ms = look->until_ms - spate_clock_ms();

    return spate_pg_ask(look->conn, sql, count, values, left_ms > 0 ? (int)left_ms : 1, res, err);
}

/* Transactions that make at least so many messages, the first ones in the slot. */
static enum spate_rc peek(struct look *look, unsigned long most, uint64_t lsn, size_t *messages,
                          struct spate_err *err)
{
    /* The relation's OID stands behind the message's kind. Rows that share an LSN are of one table. */
    static const char sql[] =
        "SELECT count(*), min(('x' || pg_catalog.encode(pg_catalog.substr(data, 2, 4), "
        "'hex'))::bit(32)::bigint) FILTER (WHERE lsn = $4::pg_lsn AND pg_catalog.get_byte(data, 0) IN (68, "
        "73, 85)) FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, NULL, $2::integer, "
        "'proto_version', '1', 'publication_names', $3, 'binary', 'true')";
    char number[24], text[SPATE_PG_LSN_TEXT];
    struct spate_buf names = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_pg_ident(&names, spate_slice_str(look->config->source.publication));
    snprintf(number, sizeof number, "%lu", most);
    rc = ask(look, sql, 4,
             (const char *const[]){look->config->source.slot, number, spate_buf_str(&names),
                                   spate_pg_lsn(lsn, text)},
             &res, err);
    if (rc == SPATE_OK) {
        *messages = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
        snprintf(look->oid, sizeof look->oid, "%.10s", PQgetvalue(res, 0, 1));
    }
    PQclear(res);
    spate_buf_fini(&names);
    return rc;
}

/* What waits before the change is mostly little: as far as needed, twice as far each time. */
static bool find(struct look *look, uint64_t lsn, struct spate_err *err)
{
    size_t messages = 0, before = 0;

    for (unsigned long most = 1; most < 1u << 30;) {
        enum spate_rc rc = peek(look, most, lsn, &messages, err);
        struct pollfd stop = {.fd = spate_signals_fd(), .events = POLLIN};

        if (rc == SPATE_FAIL && strcmp(err->sqlstate, "55006") == 0 && spate_clock_ms() < look->until_ms) {
            poll(&stop, 1, FREE_MS);
            continue;
        }
        if (rc != SPATE_OK)
            return false;
        if (look->oid[0])
            return true;
        if (messages < most && messages == before)
            return false; /* that was all */
        before = messages;
        most = (messages > most ? messages : most) * 2;
    }
    return false;
}

static bool name_it(struct look *look, struct spate_buf *table, struct spate_err *err)
{
    PGresult *res = NULL;
    bool found = false;

    if (ask(look, "SELECT pg_catalog.set_config('client_encoding', 'UTF8', false)", 0, NULL, &res, err) ==
        SPATE_OK) {
        PQclear(res);
        res = NULL;
        if (ask(look,
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON "
                "n.oid = "
                "c.relnamespace WHERE c.oid = $1::oid",
                1, (const char *const[]){look->oid}, &res, err) == SPATE_OK)
            found = PQntuples(res) == 1;
    }
    if (found) {
        spate_pg_ident(table, spate_slice_str(PQgetvalue(res, 0, 0)));
        spate_buf_putc(table, '.');
        spate_pg_ident(table, spate_slice_str(PQgetvalue(res, 0, 1)));
    }
    PQclear(res);
    return found;
}

bool spate_culprit_table(const struct spate_connector_config *config, uint64_t lsn, struct spate_buf *table)
{
    char application[80], quoted[400];
    const struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    struct look look = {.config = config, .until_ms = spate_clock_ms() + LOOK_MS};
    struct spate_err err = {0};
    PGresult *res = NULL;
    bool found = false;

    snprintf(application, sizeof application, "spate_%.50s_look", config->name);
    spate_log(SPATE_LOG_INFO, "looking-for-table",
              "detail=\"which table's change the server cannot send: this may take a minute\"");
    if (spate_pg_connect(&where, CONNECT_MS, &look.conn, &err) == SPATE_OK &&
        ask(&look,
            "SELECT pg_catalog.set_config('client_encoding', pg_catalog.current_setting('server_encoding'), "
            "false)",
            0, NULL, &res, &err) == SPATE_OK) {
        PQclear(res);
        found = find(&look, lsn, &err) && name_it(&look, table, &err);
    }
    if (!found)
        spate_log(SPATE_LOG_WARN, "table-not-found", "error=%s",
                  spate_log_quote(quoted, sizeof quoted, err.text[0] ? err.text : "no change has that LSN"));
    PQfinish(look.conn);
    return found;
}
