/* pg/error.c - a failed result or connection as one spate_err: words, SQLSTATE, verdict, remedy. */
#include "pg/pg.h"

#include <stdarg.h>
#include <string.h>

static const char *field(const PGresult *res, int code)
{
    const char *text = res ? PQresultErrorField(res, code) : NULL;

    return text && *text ? text : NULL;
}

static void code_set(struct spate_err *err, const char *sqlstate)
{
    size_t len = sqlstate ? strnlen(sqlstate, sizeof err->sqlstate - 1) : 0;

    memcpy(err->sqlstate, sqlstate ? sqlstate : "", len);
    err->sqlstate[len] = '\0';
}

/* libpq's words are lines: one line for a log, without the source location of the server's error. */
static void one_line(struct spate_buf *out, const char *text)
{
    while (*text) {
        size_t len = strcspn(text, "\n");
        size_t skip = strspn(text, " \t");

        /* libpq's own guess at a remedy goes as well: ours says more. */
        if (len > skip && strncmp(text, "LOCATION:", 9) != 0 &&
            strncmp(text + skip, "Is the server", 13) != 0) {
            if (out->len > 0)
                spate_buf_puts(out, skip > 0 ? ". " : "; ");
            spate_buf_add(out, text + skip, len - skip);
        }
        text += len + (text[len] == '\n');
    }
    while (out->len > 0 && (out->data[out->len - 1] == '.' || out->data[out->len - 1] == ' '))
        out->len--;
}

/* Where the server says it happened. These are names, never values. */
static void add_place(struct spate_buf *out, const PGresult *res)
{
    const char *schema = field(res, PG_DIAG_SCHEMA_NAME), *table = field(res, PG_DIAG_TABLE_NAME);
    const char *column = field(res, PG_DIAG_COLUMN_NAME), *type = field(res, PG_DIAG_DATATYPE_NAME);
    const char *constraint = field(res, PG_DIAG_CONSTRAINT_NAME);

    if (table)
        spate_buf_printf(out, ", table %s%s%s", schema ? schema : "", schema ? "." : "", table);
    if (column)
        spate_buf_printf(out, ", column %s", column);
    if (type)
        spate_buf_printf(out, ", type %s", type);
    if (constraint)
        spate_buf_printf(out, ", constraint %s", constraint);
}

/* What the server said. DETAIL and CONTEXT are left out where they could quote the row, and CONTEXT always:
 * it quotes the statement, and COPY's quotes the line. */
static void add_words(struct spate_buf *out, const PGresult *res, const char *sqlstate)
{
    const char *detail = field(res, PG_DIAG_MESSAGE_DETAIL), *hint = field(res, PG_DIAG_MESSAGE_HINT);

    if (spate_pg_quotes_values(sqlstate)) {
        spate_buf_puts(out, spate_pg_condition(sqlstate));
        add_place(out, res);
        return;
    }
    one_line(out, field(res, PG_DIAG_MESSAGE_PRIMARY));
    if (detail)
        spate_buf_printf(out, " (%.300s)", detail);
    if (hint)
        spate_buf_printf(out, "; hint: %.300s", hint);
}

enum spate_rc spate_pg_fail(struct spate_err *err, PGconn *conn, const PGresult *res, const char *fmt, ...)
{
    const char *sqlstate = field(res, PG_DIAG_SQLSTATE);
    const char *remedy = spate_pg_remedy(sqlstate);
    enum spate_verdict verdict = spate_pg_verdict(sqlstate);
    struct spate_buf words = {0};
    char context[300];
    va_list args;

    va_start(args, fmt);
    vsnprintf(context, sizeof context, fmt, args);
    va_end(args);
    code_set(err, sqlstate);
    if (field(res, PG_DIAG_MESSAGE_PRIMARY))
        add_words(&words, res, sqlstate);
    else if (res && *PQresultErrorMessage(res))
        one_line(&words, PQresultErrorMessage(res)); /* libpq's own: the connection broke */
    else if (conn && *PQerrorMessage(conn))
        one_line(&words, PQerrorMessage(conn));
    if (words.len == 0 && res) {
        verdict = SPATE_FATAL; /* no error, and yet not the kind of result that was asked for */
        spate_buf_printf(&words, "unexpected answer %s", PQresStatus(PQresultStatus(res)));
    } else if (words.len == 0) {
        spate_buf_puts(&words, "the connection is gone");
    }
    spate_fail(err, verdict, "%s%s%s%s%s", context, *context ? ": " : "", spate_buf_str(&words),
               remedy ? "; " : "", remedy ? remedy : "");
    spate_buf_fini(&words);
    return SPATE_FAIL;
}

/* Finds "<severity>:  <code>: " in the words of a failed connection, which libpq gives no result for. */
static const char *code_in(const char *text, char code[6])
{
    for (const char *p = strstr(text, ":  "); p; p = strstr(p + 1, ":  ")) {
        if (strspn(p + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 && p[8] == ':' && p[9] == ' ') {
            memcpy(code, p + 3, 5);
            code[5] = '\0';
            return p + 3;
        }
    }
    return NULL;
}

struct hint {
    const char *words, *remedy;
};

/* libpq's own words are English here, since nothing calls setlocale. A remedy that misses costs nothing. */
static const struct hint hints[] = {
    {"unsupported startup parameter", "this is pgbouncer, not Postgres: give the url of the server itself - "
                                      "a pooler cannot carry replication nor the "
                                      "session settings that spate pins (P69)"},
    {"root certificate file", "spate asks for sslmode=verify-full when nothing else is said: add "
                              "sslrootcert=FILE to the url, or an sslmode "
                              "that this network deserves"},
    {"certificate verify failed",
     "add sslrootcert=FILE of the authority that signed the server's certificate"},
    {"does not match host name", "name the host in the url as the server's certificate does"},
    {"server does not support SSL",
     "spate asks for sslmode=verify-full when nothing else is said: switch ssl on in the server, or add "
     "sslmode=disable to the url where this network deserves it"},
    {"could not translate host name", "mend the host in the url, or the name service of this machine"},
    {"no password supplied",
     "put the role's password where the configuration points: password_env, password_file, PGPASSWORD or a "
     "passfile"},
    {"onnection refused", "is the server running, and does it listen there (listen_addresses, port)?"},
    {"No such file or directory", "is the server running, with its socket in that directory?"},
    {"invalid ", "mend the url"},
};

enum spate_rc spate_pg_connect_failed(struct spate_err *err, const char *context, const char *words)
{
    struct spate_buf line = {0};
    const char *remedy = NULL, *plain;
    char code[6] = "";
    char *at;
    enum spate_verdict verdict;

    one_line(&line, words);
    plain = spate_buf_str(&line);
    at = (char *)code_in(plain, code);
    if (at) /* the code is told apart from the words: "FATAL: password authentication failed" */
        memmove(at - 1, at + 7, strlen(at + 7) + 1);
    code_set(err, code);
    verdict = spate_pg_verdict(code);
    for (size_t i = 0; i < sizeof hints / sizeof hints[0] && !remedy; i++)
        if (strstr(plain, hints[i].words)) {
            remedy = hints[i].remedy;
            if (strncmp(plain, "invalid ", 8) == 0) {
                verdict = SPATE_FATAL;
                err->exit_code = SPATE_EXIT_CONFIG;
            }
        }
    if (code[0] && !(remedy && strcmp(code, "08P01") == 0))
        remedy = spate_pg_remedy(code);
    spate_fail(err, verdict, "%s: %s%s%s", context, *plain ? plain : "the server did not say why",
               remedy ? "; " : "", remedy ? remedy : "");
    spate_buf_fini(&line);
    return SPATE_FAIL;
}
