/* pg/check.c - the way to a server, looked at from this end. */
#include "pg/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static const char *said(const PQconninfoOption *options, const char *name)
{
    for (; options->keyword; options++)
        if (strcmp(options->keyword, name) == 0)
            return options->val && *options->val ? options->val : NULL;
    return NULL;
}

static bool on_this_machine(const char *host)
{
    return host &&
           (strcasecmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0);
}

static bool one_of(const char *word, const char *const *words)
{
    for (; *words; words++)
        if (strcmp(word, *words) == 0)
            return true;
    return false;
}

/* P68: what libpq calls prefer goes on in the clear without a word, and allow begins there. */
static void check_tls(const struct spate_pg_where *where, const PQconninfoOption *url,
                      struct spate_findings *list)
{
    static const char *const open[] = {"disable", "allow", "prefer", NULL};
    static const char *const unnamed[] = {"require", "verify-ca", NULL};
    const char *host = said(url, "host"), *address = said(url, "hostaddr"), *mode = said(url, "sslmode");

    if (!host && !address)
        host = getenv("PGHOST");
    if (!mode)
        mode = getenv("PGSSLMODE");
    if (!mode || (!host && !address) || (host && (host[0] == '/' || host[0] == '@')))
        return; /* verify-full by default; a Unix socket has no TLS and needs none */
    if (one_of(mode, open)) {
        bool near = on_this_machine(address ? address : host);

        spate_find(list, near ? SPATE_FINDING_NOTE : SPATE_FINDING_WARNING, "sslmode", "sslmode=%s", mode);
        spate_find_why(list, near ? "rows and password are not encrypted on the way; within this machine "
                                    "that is bearable"
                                  : "rows and password may cross the network in the clear, and anybody in "
                                    "between could be the server");
    } else if (one_of(mode, unnamed)) {
        spate_find(list, SPATE_FINDING_NOTE, "sslmode", "sslmode=%s", mode);
        spate_find_why(list, "the connection is encrypted, but that it is this host is not verified");
    } else {
        return;
    }
    spate_find_fix(list, SPATE_MEND_FILE,
                   "the %s's url: sslmode=verify-full&sslrootcert=FILE, with the authority that signed the "
                   "server's certificate",
                   where->what);
}

static void check_secret(const struct spate_pg_where *where, const PQconninfoOption *url,
                         struct spate_findings *list)
{
    struct stat st;

    if (said(url, "password")) {
        spate_find(list, SPATE_FINDING_NOTE, "password-in-url", "the %s's url holds a password", where->what);
        spate_find_why(list,
                       "whoever may read the file knows it, and it cannot be changed without a restart");
        spate_find_fix(list, SPATE_MEND_FILE,
                       "password_file: FILE beside url, with the password in its "
                       "first line");
    }
    if (!where->password_env && where->password_file && stat(where->password_file, &st) == 0 &&
        (st.st_mode & (S_IROTH | S_IWOTH | S_IWGRP))) {
        spate_find(list, SPATE_FINDING_WARNING, "password-file", "%s has the mode %04o", where->password_file,
                   (unsigned)(st.st_mode & 07777));
        spate_find_why(list, "others on this machine may read or change the password of the %s", where->what);
        spate_find_fix(list, SPATE_MEND_SHELL, "chmod 0600 '%s'", where->password_file);
    }
}

void spate_pg_check_where(const struct spate_pg_where *where, struct spate_findings *list)
{
    PQconninfoOption *url = PQconninfoParse(where->url, NULL);

    if (url) {
        check_tls(where, url, list);
        check_secret(where, url, list);
    }
    PQconninfoFree(url);
}

/* ---- refused ---- */

static void name_hba(const struct spate_pg_where *where, struct spate_findings *list)
{
    PQconninfoOption *url = PQconninfoParse(where->url, NULL);
    const char *database = url ? said(url, "dbname") : NULL, *user = url ? said(url, "user") : NULL;

    spate_find_fix(list, SPATE_MEND_HAND,
                   "this line in the server's pg_hba.conf, then SELECT pg_reload_conf(): host \"%s\" \"%s\" "
                   "ADDRESS/32 scram-sha-256 (a logical replication connection is found by its database; "
                   "the keyword replication is for physical ones)",
                   database ? database : "DATABASE", user ? user : "ROLE");
    PQconninfoFree(url);
}

void spate_pg_check_refused(const struct spate_pg_where *where, const struct spate_err *err,
                            struct spate_findings *list)
{
    const char *text = err->text;

    if (strstr(text, "unsupported startup parameter") || strstr(text, "(P69)")) {
        spate_find(list, SPATE_FINDING_ERROR, "pooler", "%s", text);
        spate_find_why(list, "that is a connection pooler: it does not pass on the session's settings, and "
                             "PgBouncer before 1.23 no replication connection");
        spate_find_fix(list, SPATE_MEND_FILE, "the %s's url: host and port of the server itself",
                       where->what);
    } else if (strstr(text, "pg_hba.conf")) {
        spate_find(list, SPATE_FINDING_ERROR, "pg-hba", "%s", text);
        spate_find_why(list, "the server lets nobody in from here under this role");
        name_hba(where, list);
    } else if (strstr(text, "conversion between")) { /* P84 */
        spate_find(list, SPATE_FINDING_ERROR, "server-encoding", "%s", text);
        spate_find_why(list, "the database's encoding cannot be converted to UTF-8, so its values cannot be "
                             "read as text");
        spate_find_fix(list, SPATE_MEND_HAND,
                       "dump the database, and restore it into one that was created "
                       "with ENCODING 'UTF8'");
    } else {
        spate_find_err(list, where->replication ? "connect-replication" : "connect", err);
    }
}

enum spate_rc spate_pg_check_direct(PGconn *conn, struct spate_findings *list, struct spate_err *err)
{
    PGresult *res = NULL;
    enum spate_rc rc = spate_pg_exec(conn, "SELECT pg_catalog.pg_backend_pid()", PGRES_TUPLES_OK, &res, err);

    if (rc != SPATE_OK)
        return rc;
    if (strtol(PQgetvalue(res, 0, 0), NULL, 10) != PQbackendPID(conn)) {
        spate_find(list, SPATE_FINDING_WARNING, "pooler",
                   "a connection pooler stands between here and the server");
        spate_find_why(list, "with pooling by transaction or statement, sessions lose their settings and "
                             "locks in between (P69)");
        spate_find_fix(list, SPATE_MEND_FILE, "the url: host and port of the server itself");
    }
    PQclear(res);
    return SPATE_OK;
}
