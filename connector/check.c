/* connector/check.c - all that is asked of a source, in one order: for `spate check`, and for a start. */
#include "connector/check.h"

#include "connector/catalog.h"
#include "connector/privacy.h"
#include "connector/relation.h"
#include "core/alloc.h"
#include "core/log.h"
#include "core/signals.h"
#include "pg/check.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS 10000
#define LINES_MOST 20 /* of one kind in the log: `spate check` lists them all */

/* ---- a start ---- */

static void log_finding(const struct spate_finding *finding)
{
    struct spate_buf text = {0};
    char quoted[1400];

    spate_finding_text(finding, &text);
    spate_log(SPATE_LOG_WARN, "preflight", "kind=%s text=%s", finding->kind,
              spate_log_quote(quoted, sizeof quoted, spate_buf_str(&text)));
    spate_buf_fini(&text);
}

static size_t earlier(const struct spate_findings *list, size_t at)
{
    size_t count = 0;

    for (size_t i = 0; i < at; i++)
        count +=
            list->at[i].severity == SPATE_FINDING_WARNING && strcmp(list->at[i].kind, list->at[at].kind) == 0;
    return count;
}

static void log_warnings(const struct spate_findings *list)
{
    size_t hidden = 0, told = 0;

    for (size_t i = 0; i < list->count && told < 10 * LINES_MOST; i++) {
        if (list->at[i].severity != SPATE_FINDING_WARNING)
            continue;
        if (earlier(list, i) >= LINES_MOST) {
            hidden++;
            continue;
        }
        told++;
        log_finding(&list->at[i]);
    }
    if (hidden)
        spate_log(SPATE_LOG_WARN, "preflight",
                  "kind=more text=\"more of the same: spate check -c FILE lists everything\"");
}

static enum spate_rc conclude(struct spate_findings *list, enum spate_rc rc, struct spate_err *err)
{
    const struct spate_finding *wrong = rc == SPATE_OK ? spate_findings_error(list, 0) : NULL;

    if (rc == SPATE_OK)
        log_warnings(list);
    if (wrong)
        rc = spate_finding_refuse(wrong, err);
    spate_findings_fini(list);
    return rc;
}

enum spate_rc spate_check_start(PGconn *sql, const struct spate_connector_config *config,
                                struct spate_err *err)
{
    struct spate_findings list = {0};

    return conclude(&list, spate_check_server(sql, config, &list, err), err);
}

enum spate_rc spate_check_start_making(PGconn *sql, const struct spate_connector_config *config,
                                       struct spate_err *err)
{
    struct spate_findings list = {0};
    enum spate_rc rc = spate_check_globs(sql, config, true, NULL, &list, err);
    const struct spate_finding *wrong = rc == SPATE_OK ? spate_findings_error(&list, 0) : NULL;

    /* What is only warned about is told when it stands (spate_check_start_tables). */
    if (wrong)
        rc = spate_finding_refuse(wrong, err);
    spate_findings_fini(&list);
    return rc;
}

enum spate_rc spate_check_start_tables(PGconn *sql, const struct spate_connector_config *config,
                                       struct spate_err *err)
{
    struct spate_findings list = {0};
    bool exists;
    enum spate_rc rc = spate_check_publication(sql, config, &exists, &list, err);

    if (rc == SPATE_OK)
        rc = spate_check_globs(sql, config, false, NULL, &list, err);
    if (rc == SPATE_OK)
        rc = spate_check_tables(sql, config, &list, err);
    return conclude(&list, rc, err);
}

/* ---- what sinks will see ---- */

void spate_source_tables_fini(struct spate_source_tables *tables)
{
    for (size_t i = 0; i < tables->count; i++)
        spate_table_free(tables->at[i]);
    free(tables->at);
    *tables = (struct spate_source_tables){0};
}

static enum spate_rc wait_readable(void *arg, int fd, struct spate_err *err)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLIN}, {.fd = spate_signals_fd(), .events = POLLIN}};

    (void)arg, (void)err;
    poll(fds, 2, 1000);
    return spate_signals_stop() ? SPATE_END : SPATE_OK;
}

static void keep(struct spate_source_tables *tables, struct spate_table *table)
{
    tables->at = spate_realloc(tables->at, (tables->count + 1) * sizeof(void *));
    tables->at[tables->count++] = table;
}

/* Planning the question takes far longer than answering it. */
static enum spate_rc prepare(struct spate_catalog *catalog, struct spate_err *err)
{
    struct spate_buf text = {0};
    enum spate_rc rc;

    spate_catalog_prepare_sql(&text, catalog->conn);
    rc = spate_pg_exec(catalog->conn, spate_buf_str(&text), PGRES_COMMAND_OK, NULL, err);
    catalog->prepared = rc == SPATE_OK;
    spate_buf_fini(&text);
    return rc;
}

static enum spate_rc look_at_tables(PGconn *sql, const struct spate_connector_config *config, bool published,
                                    const struct spate_chosen *chosen, struct spate_source_tables *tables,
                                    struct spate_findings *list, struct spate_err *err)
{
    struct spate_catalog catalog = {
        .conn = sql, .publication = config->source.publication, .wait = wait_readable};
    struct spate_catalog_table *found = NULL;
    size_t count = 0;
    enum spate_rc rc = SPATE_OK;

    if (published)
        rc = spate_catalog_load(&catalog, &found, &count, err);
    for (size_t i = 0; rc == SPATE_OK && i < count; i++) {
        struct spate_table *raw = found[i].table, *table = NULL;

        found[i].table = NULL;
        rc = spate_check_covered(&catalog, config, found[i].oid, raw, &table, list, err);
        if (table)
            keep(tables, table);
    }
    spate_catalog_tables_free(found, count);
    if (!published && chosen->count > 1)
        rc = prepare(&catalog, err);
    for (size_t i = 0; !published && rc == SPATE_OK && i < chosen->count; i++) {
        struct spate_table *raw = NULL, *table = NULL;

        rc = spate_catalog_table(&catalog, chosen->oids[i], &raw, err);
        if (rc == SPATE_OK && raw)
            rc = spate_check_covered(&catalog, config, chosen->oids[i], raw, &table, list, err);
        if (table)
            keep(tables, table);
    }
    tables->known = rc == SPATE_OK;
    return rc;
}

/* ---- spate check ---- */

/* The second session, which carries the stream: another door of the server, with a right of its own (P65,
 * P66). */
static void check_replication(const struct spate_connector_config *config, struct spate_pg_where *where,
                              PGconn *sql, struct spate_findings *list)
{
    struct spate_err err = {0};
    PGconn *conn = NULL;
    enum spate_rc rc;

    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->at[i].kind, "role-replication") == 0)
            return; /* it has been said */
    where->replication = true;
    rc = spate_pg_connect(where, CONNECT_MS, &conn, &err);
    if (rc == SPATE_OK)
        rc = spate_pg_exec(conn, "IDENTIFY_SYSTEM", PGRES_TUPLES_OK, NULL, &err);
    if (rc == SPATE_FAIL)
        spate_pg_check_refused(where, &err, list);
    if (rc == SPATE_OK)
        spate_check_stream(config, conn, sql, list);
    PQfinish(conn);
}

/* A question that fails is a finding as well; the others are asked all the same. */
static void note(enum spate_rc rc, struct spate_err *err, struct spate_findings *list)
{
    if (rc == SPATE_FAIL)
        spate_find_err(list, "source-failed", err);
    *err = (struct spate_err){0};
}

static void check_connected(PGconn *sql, const struct spate_connector_config *config,
                            struct spate_findings *list, struct spate_source_tables *tables)
{
    struct spate_connector_config covered = *config;
    struct spate_privacy *privacy = NULL;
    struct spate_chosen chosen = {0};
    struct spate_err err = {0};
    bool published = false;

    note(spate_pg_check_direct(sql, list, &err), &err, list);
    note(spate_check_server(sql, config, list, &err), &err, list);
    note(spate_check_publication(sql, config, &published, list, &err), &err, list);
    note(spate_check_globs(sql, config, !published, &chosen, list, &err), &err, list);
    if (published)
        note(spate_check_tables(sql, config, list, &err), &err, list);
    note(spate_check_slot(sql, config, published, list, &err), &err, list);
    note(spate_check_privacy(sql, config, &privacy, list, &err), &err, list);
    covered.privacy = privacy;
    note(look_at_tables(sql, &covered, published, &chosen, tables, list, &err), &err, list);
    spate_privacy_free(privacy);
    free(chosen.oids);
}

void spate_check_source(const struct spate_connector_config *config, struct spate_findings *list,
                        struct spate_source_tables *tables)
{
    char application[80];
    struct spate_pg_where where = {
        .what = "source",
        .url = config->source.url,
        .password_env = config->source.password_env,
        .password_file = config->source.password_file,
        .application_name = application,
    };
    struct spate_err err = {0};
    PGconn *sql = NULL;

    snprintf(application, sizeof application, "spate_%.60s", config->name);
    spate_findings_place(list, "source");
    spate_pg_check_where(&where, list);
    if (spate_pg_connect(&where, CONNECT_MS, &sql, &err) != SPATE_OK) {
        spate_pg_check_refused(&where, &err, list);
        return;
    }
    check_connected(sql, config, list, tables);
    check_replication(config, &where, sql, list);
    PQfinish(sql);
}
