/* connector/check.h - what is wrong with a source, or will be one day: findings with the statement that mends
 * each (docs/hazards.md). `spate check` prints them; the connector's start runs the same functions, refuses
 * at the first error and logs what is warned about.
 *
 * Nothing is written anywhere. Works with the role that runs the connector.
 * Thread: the data plane before streaming, or main. Blocks: on the source, in ordinary queries. */
#ifndef SPATE_CONNECTOR_CHECK_H
#define SPATE_CONNECTOR_CHECK_H

#include "connector/connector.h"
#include "connector/epoch.h"
#include "core/finding.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- the server ---- */

/* What one look tells; texts are borrowed from it. Sizes in MiB, times in ms, -1: no limit. */
struct spate_server_facts {
    int version;
    const char *wal_level, *encoding, *user, *application, *sync_standbys, *commit;
    bool may_replicate, superuser, standby, slot_exists;
    int64_t keep_mib, sender_timeout_ms, idle_slot_ms;
    int64_t slots, slots_most, senders, senders_most;
    int64_t role_connections; /* -1: no limit */
    int64_t role_expires_s;   /* INT64_MAX: never */
};
/* Pure. */
void spate_check_judge_server(const struct spate_server_facts *facts,
                              const struct spate_connector_config *config, struct spate_findings *list);
/* Is this application among synchronous_standby_names (P11)? Pure. */
bool spate_check_is_standby_name(const char *names, const char *application);

SPATE_CHECKED enum spate_rc spate_check_server(PGconn *sql, const struct spate_connector_config *config,
                                               struct spate_findings *list, struct spate_err *err);

/* ---- what is published ---- */

/* The publication by itself; *exists says whether it is there. */
SPATE_CHECKED enum spate_rc spate_check_publication(PGconn *sql, const struct spate_connector_config *config,
                                                    bool *exists, struct spate_findings *list,
                                                    struct spate_err *err);
/* Each of its tables: may the application still change it (P47), can its rows be read (P53), what is missing.
 */
SPATE_CHECKED enum spate_rc spate_check_tables(PGconn *sql, const struct spate_connector_config *config,
                                               struct spate_findings *list, struct spate_err *err);
/* What `tables:` means and the publication lacks (P56); with `making`, what keeps us from making it, and
 * (unless NULL) which tables it would have. */
struct spate_chosen {
    uint32_t *oids; /* owned by the caller */
    size_t count;
};
SPATE_CHECKED enum spate_rc spate_check_globs(PGconn *sql, const struct spate_connector_config *config,
                                              bool making, struct spate_chosen *chosen,
                                              struct spate_findings *list, struct spate_err *err);

/* ---- the slot ---- */

SPATE_CHECKED enum spate_rc spate_check_slot(PGconn *sql, const struct spate_connector_config *config,
                                             bool published, struct spate_findings *list,
                                             struct spate_err *err);

/* ---- exclude and mask ---- */

struct spate_catalog;
struct spate_table;

/* The rules, the key of hashes, and the names. *privacy may be NULL; it is freed by spate_privacy_free. */
SPATE_CHECKED enum spate_rc spate_check_privacy(PGconn *sql, const struct spate_connector_config *config,
                                                struct spate_privacy **privacy, struct spate_findings *list,
                                                struct spate_err *err);
/* One table, by config->privacy. Takes raw. *table: as sinks will see it, the caller's; NULL: there is a
 * finding. */
SPATE_CHECKED enum spate_rc spate_check_covered(struct spate_catalog *catalog,
                                                const struct spate_connector_config *config, uint32_t oid,
                                                struct spate_table *raw, struct spate_table **table,
                                                struct spate_findings *list, struct spate_err *err);

/* ---- source and bus ---- */

/* Would a start go on where the stream ended (P58-P60, P73-P76)? `repl`: a replication connection. */
void spate_check_stream(const struct spate_connector_config *config, PGconn *repl, PGconn *sql,
                        struct spate_findings *list);

/* ---- all of it ---- */

/* The connector's start, when the source answers for the first time: warnings are logged (event preflight).
 * SPATE_FAIL: REFUSED at the first error, with its remedy; or the source failed. */
SPATE_CHECKED enum spate_rc spate_check_start(PGconn *sql, const struct spate_connector_config *config,
                                              struct spate_err *err);
/* The same when the publication is missing and about to be made. */
SPATE_CHECKED enum spate_rc spate_check_start_making(PGconn *sql, const struct spate_connector_config *config,
                                                     struct spate_err *err);
/* The same of what is published, once per process, when the publication is there. */
SPATE_CHECKED enum spate_rc spate_check_start_tables(PGconn *sql, const struct spate_connector_config *config,
                                                     struct spate_err *err);

/* What sinks will see of a source: the tables that are published, or will be. */
struct spate_source_tables {
    bool known;
    struct spate_table **at; /* owned, sealed, without a v */
    size_t count;
};
void spate_source_tables_fini(struct spate_source_tables *tables);

/* `spate check`: connects as the connector does, by SQL and for replication, and looks at everything. What
 * cannot be reached is a finding. */
void spate_check_source(const struct spate_connector_config *config, struct spate_findings *list,
                        struct spate_source_tables *tables);

#endif
