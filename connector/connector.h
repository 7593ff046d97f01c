/* connector/connector.h - the daemon beside a database: replication stream to bus, until told to stop. */
#ifndef SPATE_CONNECTOR_CONNECTOR_H
#define SPATE_CONNECTOR_CONNECTOR_H

#include "bus/open.h"
#include "core/err.h"
#include "core/options.h"

#include <stdbool.h>
#include <stdint.h>

struct spate_privacy;
struct spate_status;

enum spate_rewrites { SPATE_REWRITES_REREAD, SPATE_REWRITES_SAY };

struct spate_connector_config {
    const char *path; /* of the file, for messages; set by the caller, may be NULL */
    char *name;       /* connector: also the stream's topic */
    struct {
        char *url, *password_env, *password_file;
        char *publication, *slot;
        bool create;
        bool failover;                  /* standbys are to keep the slot in step (17+) */
        int64_t watch_ms;               /* how often the slot is looked at */
        int64_t retained_warning_bytes; /* WAL that it keeps: told from here on, at each doubling */
        int64_t catalog_ms;             /* how often the published tables are looked at */
        int rewrites;                   /* enum spate_rewrites */
    } source;
    struct spate_strings tables; /* globs */
    struct spate_lists exclude;  /* table globs -> columns that do not leave */
    struct spate_maps mask;      /* table globs -> columns, each with what takes its values' place */
    char *mask_key_file, *mask_key_env;
    struct spate_bus_config bus;
    struct {
        struct spate_pairs allow; /* requester glob -> table globs; empty: anybody, every published table */
        int64_t parallel;         /* chunks that are read at the same time */
        int64_t rows_per_second;  /* 0: as fast as it goes */
        char *hours;              /* "22:00-06:00", local time; NULL: always */
        bool nudge;               /* may write a logical message, so that an idle source's stream moves on */
        int64_t chunk_bytes, keys_bytes; /* caps: rows of a chunk, and keys that are remembered */
    } snapshots;
    int64_t heartbeat_ms;                /* how often an idle stream carries the WAL position */
    int64_t stop_deadline_ms;            /* SIGTERM: flush and confirm within this */
    int log_level;                       /* enum spate_log_level */
    char *status_listen;                 /* where the status pages are; NULL: nowhere */
    const struct spate_privacy *privacy; /* what exclude and mask come to; set as status is */
    struct spate_status *status; /* where a run reports what it does; set by spate_connector_run, else NULL */
};

extern const struct spate_option_table spate_connector_tables[];
extern const size_t spate_connector_table_count;

/* What the option tables cannot say: the name, and the globs. SPATE_FAIL (fatal, CONFIG), with file and line.
 */
SPATE_CHECKED enum spate_rc spate_connector_check(const struct spate_connector_config *config,
                                                  struct spate_err *err);

/* Runs until a stop is asked for or a human is needed. Logs what it does; err is what stopped it.
 * SPATE_OK: stopped in order, all that was received is durable and confirmed.
 * new_epoch: break continuity on purpose (docs/operating.md, fences): publishes a new epoch, then runs. */
SPATE_CHECKED enum spate_rc spate_connector_run(const struct spate_connector_config *config, bool new_epoch,
                                                struct spate_err *err);

#endif
