/* pg/connect.c - a connection whose session is the same everywhere, whatever roles, databases and
 * environments say (P79): the text of a value must not depend on who reads it.
 *
 * The settings travel in the startup packet (options=-c ..), where they override ALTER ROLE .. SET, and are
 * read back: a pooler in between could have dropped them without a word. */
#include "pg/pg.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/signals.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pin {
    const char *name, *value; /* current_setting() then begins with the value */
    const char *variable; /* libpq sends this one on as a parameter of the packet, which wins over options */
};

static const struct pin pins[] = {
    {"datestyle", "ISO", "PGDATESTYLE"},
    {"intervalstyle", "postgres", NULL},
    {"extra_float_digits", "3", NULL},
    {"bytea_output", "hex", NULL},
    {"timezone", "UTC", "PGTZ"},
    {"lc_monetary", "C", NULL},
    {"search_path", "pg_catalog", NULL},
    {"quote_all_identifiers", "off", NULL}, /* the spelling of reg* values, and of types in schemas (P82) */
    {"array_nulls", "on", NULL},            /* else NULL inside an array's text is read as four letters */
    {"xmloption", "content", NULL},         /* else xml that is no document is refused */
    {"transform_null_equals", "off", NULL},
    {"gin_fuzzy_search_limit", "0", NULL}, /* else an index gives some of the rows */
    {"exit_on_error", "off", NULL},
    {"standard_conforming_strings", "on", NULL}, /* pg/text.c relies on it */
    {"default_transaction_isolation", "read committed", NULL},
    {"default_transaction_deferrable", "off", NULL},
    {"statement_timeout", "0", NULL}, /* P78: nobody's defaults for people may cut us off */
    {"lock_timeout", "0", NULL},
    {"idle_in_transaction_session_timeout", "0", NULL},
    {"jit", "off", NULL}, /* compiling a catalog query took half a second, running it a millisecond */
};

/* Unknown to older servers, which refuse a startup packet that names them: set afterwards. */
static const struct {
    int since;
    const char *name;
} later_pins[] = {{140000, "idle_session_timeout"}, {170000, "transaction_timeout"}};

/* A dead peer is noticed within half a minute (P8). The url may say otherwise. */
static const struct {
    const char *name, *value;
} dials[] = {
    {"keepalives", "1"},       {"keepalives_idle", "10"},     {"keepalives_interval", "5"},
    {"keepalives_count", "3"}, {"tcp_user_timeout", "30000"},
};

#define PARAMS_MAX 24

struct dial {
    const struct spate_pg_where *where;
    const char *names[PARAMS_MAX + 1], *values[PARAMS_MAX + 1];
    size_t count;
    struct spate_buf options; /* the user's, then the pins */
    struct spate_buf secret;
    bool sslmode_unsaid;
    int64_t deadline_ms;
};

static void param(struct dial *dial, const char *name, const char *value)
{
    if (dial->count >= PARAMS_MAX)
        abort(); /* the list below has a fixed length */
    dial->names[dial->count] = name;
    dial->values[dial->count++] = value;
    dial->names[dial->count] = dial->values[dial->count] = NULL;
}

static const char *said(const PQconninfoOption *options, const char *name)
{
    for (; options->keyword; options++)
        if (strcmp(options->keyword, name) == 0)
            return options->val && *options->val ? options->val : NULL;
    return NULL;
}

/* The password of this attempt (P67). `dial->secret` stays empty where the configuration names no source. */
static enum spate_rc password(struct dial *dial, struct spate_err *err)
{
    const struct spate_pg_where *where = dial->where;
    const char *text;
    char *line = NULL; /* of any length: a token may stand in for the password */
    size_t cap = 0;
    FILE *in;

    if (where->password_env) {
        text = getenv(where->password_env);
        if (!text) {
            err->exit_code = SPATE_EXIT_CONFIG;
            return spate_fail(
                err, SPATE_FATAL,
                "%s: the environment variable %s is not set; password_env promises the password "
                "there: set it, or remove password_env",
                where->what, where->password_env);
        }
        spate_buf_puts(&dial->secret, text);
    } else if (where->password_file) {
        in = fopen(where->password_file, "re");
        if (!in || getline(&line, &cap, in) < 0) {
            int why = in && feof(in) ? 0 : errno;

            if (in)
                fclose(in);
            free(line);
            return spate_fail(
                err, SPATE_RETRY,
                "%s: no password can be read from password_file %s: %s; its first line is the password",
                where->what, where->password_file, why ? strerror(why) : "the file is empty");
        }
        fclose(in);
        line[strcspn(line, "\r\n")] = '\0';
        spate_buf_puts(&dial->secret, line);
        explicit_bzero(line, cap);
        free(line);
    }
    return SPATE_OK;
}

/* libpq's complaint about a malformed url quotes it, and so perhaps its password. */
static enum spate_rc malformed(const struct spate_pg_where *where, const char *words, struct spate_err *err)
{
    if (strchr(where->url, '@') || strstr(where->url, "password"))
        words = "not shown, since it may hold a password; percent-encode special characters";
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(
        err, SPATE_FATAL,
        "%s: the url is neither postgres://user@host:port/database nor \"host=.. dbname=..\": %.*s",
        where->what, (int)strcspn(words, "\n"), words);
}

/* A slash or an @ in a password that is not percent-encoded makes libpq take the rest for the name of a
 * database or host, and names are shown. (A host may begin with @: an abstract socket.) */
static bool torn(const PQconninfoOption *url)
{
    const char *host = said(url, "host"), *database = said(url, "dbname");

    return (host && strchr(host + 1, '@')) || (database && strchr(database, '@'));
}

/* Everything that is passed beside the url. Later parameters win over what the url says. */
static enum spate_rc prepare(struct dial *dial, const PQconninfoOption *url, struct spate_err *err)
{
    const char *user_options = said(url, "options");
    bool service = said(url, "service") || getenv("PGSERVICE");

    if (!user_options)
        user_options = getenv("PGOPTIONS");
    if (user_options)
        spate_buf_printf(&dial->options, "%s ", user_options);
    for (size_t i = 0; i < SPATE_COUNT(pins); i++) {
        spate_buf_printf(&dial->options, "-c %s=", pins[i].name);
        for (const char *c = pins[i].value; *c; c++) /* the server splits the packet's options at blanks */
            spate_buf_printf(&dial->options, "%s%c", *c == ' ' ? "\\" : "", *c);
        spate_buf_putc(&dial->options, ' ');
    }

    param(dial, "dbname", dial->where->url); /* first: it is expanded in place */
    param(dial, "options", spate_buf_str(&dial->options));
    param(dial, "client_encoding", "UTF8");
    if (!said(url, "application_name"))
        param(dial, "application_name", dial->where->application_name);
    if (dial->where->replication)
        param(dial, "replication", "database");
    for (size_t i = 0; i < SPATE_COUNT(dials); i++)
        if (!said(url, dials[i].name))
            param(dial, dials[i].name, dials[i].value);
    if (password(dial, err) != SPATE_OK)
        return SPATE_FAIL;
    if (dial->secret.len > 0)
        param(dial, "password", spate_buf_str(&dial->secret));
    /* P68. A service file may say it too, which only libpq can read: then its effective value is looked at.
     */
    dial->sslmode_unsaid = !said(url, "sslmode") && !getenv("PGSSLMODE");
    if (dial->sslmode_unsaid && !service)
        param(dial, "sslmode", "verify-full");
    return SPATE_OK;
}

static const char *place(const struct spate_pg_where *where, PGconn *conn, char *out, size_t size)
{
    const char *host = conn ? PQhost(conn) : NULL, *port = conn ? PQport(conn) : NULL;
    const char *database = conn ? PQdb(conn) : NULL, *user = conn ? PQuser(conn) : NULL;

    snprintf(out, size, "cannot connect to the %s (host %s, port %s, database %s, role %s)", where->what,
             host && *host ? host : "local socket", port && *port ? port : "default",
             database && *database ? database : "default", user && *user ? user : "default");
    return out;
}

static enum spate_rc failed(const struct dial *dial, PGconn *conn, struct spate_err *err)
{
    char context[400];
    size_t len;

    spate_pg_connect_failed(err, place(dial->where, conn, context, sizeof context), PQerrorMessage(conn));
    /* At the door of a replication connection only one right can be missing (P65): name its statement. */
    len = strlen(err->text);
    if (dial->where->replication && strcmp(err->sqlstate, "42501") == 0 && PQuser(conn))
        snprintf(err->text + len, sizeof err->text - len, ": ALTER ROLE \"%s\" REPLICATION", PQuser(conn));
    return SPATE_FAIL;
}

static enum spate_rc handshake(const struct dial *dial, PGconn *conn, struct spate_err *err)
{
    PostgresPollingStatusType want = PGRES_POLLING_WRITING;
    char context[400];

    while (want != PGRES_POLLING_OK) {
        struct pollfd fds[2] = {
            {.fd = PQsocket(conn), .events = want == PGRES_POLLING_READING ? POLLIN : POLLOUT},
            {.fd = spate_signals_fd(), .events = POLLIN}};
        int64_t left = dial->deadline_ms - spate_clock_ms();

        if (spate_signals_stop())
            return SPATE_END;
        if (want == PGRES_POLLING_FAILED || PQstatus(conn) == CONNECTION_BAD)
            return failed(dial, conn, err);
        if (left <= 0)
            return spate_fail(
                err, SPATE_RETRY,
                "%s: no answer in time; is the host up, and does a firewall let port %s through?",
                place(dial->where, conn, context, sizeof context), PQport(conn));
        if (poll(fds, 2, (int)(left < 1000 ? left : 1000)) > 0 && fds[0].revents)
            want = PQconnectPoll(conn);
    }
    return SPATE_OK;
}

/* What the server tells in passing may quote values: debug only, and never libpq's own line on stderr. */
static void notice(void *arg, const PGresult *res)
{
    char quoted[600];
    const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    if (text && spate_log_on(SPATE_LOG_DEBUG))
        spate_log(SPATE_LOG_DEBUG, "server-notice", "from=%s text=%s", (const char *)arg,
                  spate_log_quote(quoted, sizeof quoted, text));
}

/* sslmode=prefer that nobody asked for came from libpq: it would go on without TLS and without a word (P68).
 */
static bool silent_prefer(PGconn *conn)
{
    PQconninfoOption *effective = PQconninfo(conn);
    const char *mode = effective ? said(effective, "sslmode") : NULL;
    bool prefer = !mode || strcmp(mode, "prefer") == 0;

    PQconninfoFree(effective);
    return prefer;
}

static enum spate_rc start(struct dial *dial, PGconn **out, struct spate_err *err)
{
    PGconn *conn = PQconnectStartParams(dial->names, dial->values, 1);
    bool has_sslmode = false;
    enum spate_rc rc;

    for (size_t i = 0; i < dial->count; i++)
        has_sslmode |= strcmp(dial->names[i], "sslmode") == 0;
    if (conn && dial->sslmode_unsaid && !has_sslmode && silent_prefer(conn)) {
        PQfinish(conn); /* nothing was said to the server yet */
        param(dial, "sslmode", "verify-full");
        conn = PQconnectStartParams(dial->names, dial->values, 1);
    }
    *out = NULL;
    if (!conn)
        return spate_fail(err, SPATE_RETRY, "%s: out of memory while connecting", dial->where->what);
    PQsetNoticeReceiver(conn, notice, (void *)(uintptr_t)dial->where->what);
    PQsetErrorVerbosity(conn, PQERRORS_VERBOSE); /* only so do the words of a refusal hold the SQLSTATE */
    rc = handshake(dial, conn, err);
    PQsetErrorVerbosity(conn, PQERRORS_DEFAULT);
    if (rc == SPATE_OK)
        *out = conn;
    else
        PQfinish(conn);
    return rc;
}

static enum spate_rc dropped(const struct dial *dial, const char *name, const char *got, const char *asked,
                             struct spate_err *err)
{
    return spate_fail(err, SPATE_FATAL,
                      "%s: the session's %s is '%s' though '%s' was asked for; something between here and "
                      "the server dropped it: connect to the server itself, without a pooler (P69)",
                      dial->where->what, name, got, asked);
}

/* Reads every pinned setting back in one answer; the server reports client_encoding by itself. */
static enum spate_rc verify(const struct dial *dial, PGconn *conn, const char *encoding,
                            struct spate_err *err)
{
    const char *reported;
    int left_ms = (int)(dial->deadline_ms - spate_clock_ms());
    struct spate_buf sql = {0};
    PGresult *res = NULL;
    enum spate_rc rc;

    spate_buf_puts(&sql, "SELECT ");
    for (size_t i = 0; i < SPATE_COUNT(pins); i++)
        spate_buf_printf(&sql, "%scurrent_setting('%s')", i ? ", " : "", pins[i].name);
    rc = spate_pg_exec_within(conn, spate_buf_str(&sql), left_ms > 0 ? left_ms : 1, PGRES_TUPLES_OK, &res,
                              err);
    for (size_t i = 0; rc == SPATE_OK && i < SPATE_COUNT(pins); i++) {
        const char *value = PQgetvalue(res, 0, (int)i);

        if (strncmp(value, pins[i].value, strlen(pins[i].value)) != 0)
            rc = dropped(dial, pins[i].name, value, pins[i].value, err);
    }
    reported = PQparameterStatus(conn, "client_encoding");
    if (rc == SPATE_OK && reported && strcmp(reported, encoding) != 0)
        rc = dropped(dial, "client_encoding", reported, encoding, err);
    PQclear(res);
    spate_buf_fini(&sql);
    return rc;
}

static enum spate_rc pin(const struct dial *dial, PGconn *conn, struct spate_err *err)
{
    const char *server = PQparameterStatus(conn, "server_encoding");
    bool ascii = server && strcmp(server, "SQL_ASCII") == 0;
    struct spate_buf sql = {0};
    enum spate_rc rc = SPATE_OK;

    for (size_t i = 0; i < SPATE_COUNT(pins); i++)
        if (pins[i].variable && getenv(pins[i].variable))
            spate_buf_printf(&sql, "SET %s = '%s'; ", pins[i].name, pins[i].value);

    for (size_t i = 0; i < SPATE_COUNT(later_pins); i++)
        if (PQserverVersion(conn) >= later_pins[i].since)
            spate_buf_printf(&sql, "SET %s = 0; ", later_pins[i].name);
    /* P83: such a database has bytes, not text; asking for UTF8 would end the stream at the first odd one. */
    if (ascii)
        spate_buf_puts(&sql, "SET client_encoding = 'SQL_ASCII'; ");
    if (sql.len > 0) {
        int64_t left_ms = dial->deadline_ms - spate_clock_ms();

        rc = spate_pg_exec_within(conn, spate_buf_str(&sql), left_ms > 0 ? (int)left_ms : 1, PGRES_COMMAND_OK,
                                  NULL, err);
    }
    spate_buf_fini(&sql);
    if (rc == SPATE_OK)
        rc = verify(dial, conn, ascii ? "SQL_ASCII" : "UTF8", err);
    return rc == SPATE_OK ? rc
                          : spate_err_context(err, "%s: pinning the session's settings", dial->where->what);
}

enum spate_rc spate_pg_connect(const struct spate_pg_where *where, int timeout_ms, PGconn **conn,
                               struct spate_err *err)
{
    struct dial dial = {.where = where, .deadline_ms = spate_clock_ms() + timeout_ms};
    char *words = NULL;
    PQconninfoOption *url = PQconninfoParse(where->url, &words);
    enum spate_rc rc;

    *conn = NULL;
    err->sqlstate[0] = '\0';
    if (!url || torn(url)) {
        rc = malformed(where, words ? words : "", err);
        goto out;
    }
    rc = prepare(&dial, url, err);
    if (rc == SPATE_OK)
        rc = start(&dial, conn, err);
    if (rc == SPATE_OK) {
        rc = pin(&dial, *conn, err);
        if (rc != SPATE_OK) {
            PQfinish(*conn);
            *conn = NULL;
        }
    }
out:
    PQfreemem(words);
    PQconninfoFree(url);
    spate_buf_fini(&dial.options);
    if (dial.secret.data)
        explicit_bzero(dial.secret.data, dial.secret.cap);
    spate_buf_fini(&dial.secret);
    return rc;
}
