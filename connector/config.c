/* connector/config.c - what a connector's file may say. */
#include "connector/connector.h"

#include "connector/permits.h"
#include "connector/privacy.h"
#include "core/alloc.h"
#include "core/glob.h"
#include "core/http.h"
#include "core/log.h"

#include <string.h>

/* In the order of enum spate_log_level. */
static const char *const levels[] = {"debug", "info", "warn", "error", NULL};

/* In the order of enum spate_rewrites. */
static const char *const rewrites[] = {"reread", "say", NULL};

#define AT(member) offsetof(struct spate_connector_config, member)

static const struct spate_option options[] = {
    {.key = "connector",
     .type = SPATE_OPT_STRING,
     .offset = AT(name),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "Name of this connector: also the name of its stream on the bus, which sinks give as `from`. "
            "It has no \"._\" in it, which marks the topics beside a stream."},
    {.key = "source.postgres.url",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.url),
     .flags = SPATE_OPT_REQUIRED | SPATE_OPT_URL,
     .doc = "libpq URL or conninfo of the source database. sslmode is verify-full unless it says otherwise."},
    {.key = "source.postgres.password_env",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.password_env),
     .doc = "Environment variable that holds the password."},
    {.key = "source.postgres.password_file",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.password_file),
     .doc = "File whose first line is the password; read anew at each attempt to connect."},
    {.key = "source.postgres.publication",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.publication),
     .fallback = "spate",
     .doc = "Publication that says which tables are read. When another one is named later, the connector "
            "stops with exit code 3 until it is started with --new-epoch; every sink then asks for "
            "everything anew."},
    {.key = "source.postgres.slot",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.slot),
     .fallback = "spate",
     .doc = "Logical replication slot, used by this connector alone. When another one is named later, the "
            "connector stops with exit code 3 until it is started with --new-epoch; every sink then "
            "asks for everything anew."},
    {.key = "source.postgres.create",
     .type = SPATE_OPT_BOOL,
     .offset = AT(source.create),
     .fallback = "false",
     .doc =
         "Create the publication and the slot when they are missing. Otherwise they are taken as they are."},
    {.key = "source.postgres.failover",
     .type = SPATE_OPT_BOOL,
     .offset = AT(source.failover),
     .fallback = "false",
     .doc = "The slot is one that standbys keep in step (PostgreSQL 17 or newer), so that the stream goes on "
            "after one of them was promoted: docs/operating.md says what primary and standby need. With "
            "create, a slot that is not one of these becomes one."},
    {.key = "source.postgres.watch",
     .type = SPATE_OPT_DURATION,
     .offset = AT(source.watch_ms),
     .fallback = "10s",
     .min = 100,
     .max = 3600000,
     .doc = "How often a connection of its own looks at the slot: how much WAL it keeps, and whether the "
            "source is about to take it away. It goes on while the bus is down."},
    {.key = "source.postgres.retained_warning",
     .type = SPATE_OPT_BYTES,
     .offset = AT(source.retained_warning_bytes),
     .fallback = "256MiB",
     .min = 1 << 20,
     .max = INT64_C(1) << 50,
     .doc = "WAL kept by the slot that is worth a warning; each doubling is worth another."},
    {.key = "source.postgres.catalog_every",
     .type = SPATE_OPT_DURATION,
     .offset = AT(source.catalog_ms),
     .fallback = "10s",
     .min = 100,
     .max = 60000,
     .doc = "How often the published tables are looked at, for what Postgres does not send: rewrites, "
            "partitions that come and go, tables that are added to the publication or removed. Followers are "
            "then told to take the table anew."},
    {.key = "source.postgres.rewrites",
     .type = SPATE_OPT_ENUM,
     .offset = AT(source.rewrites),
     .fallback = "reread",
     .choices = rewrites,
     .doc = "When a table has a new file that the stream does not explain: reread tells followers to take it "
            "anew; say only logs it, for sources where VACUUM FULL, CLUSTER or pg_repack run regularly. With "
            "say, SET UNLOGGED and SET LOGGED between two looks, and TRUNCATE of one partition, are only "
            "logged as well."},
    {.key = "tables",
     .type = SPATE_OPT_LIST,
     .offset = AT(tables),
     .doc = "Table globs (schema.table with * and ?) that belong into the publication. Needed when create is "
            "true; without create, tables that match and are not published are only warned about."},
    {.key = "exclude",
     .type = SPATE_OPT_LISTS,
     .offset = AT(exclude),
     .doc =
         "Columns that never reach the bus: table globs, each with a list of columns. Messages and schemas "
         "have no such column. Not for a column of the key. \"old|new\" gives the names that a table or a "
         "column has had; \"old|\" may be missing. A rule that has lost its column stops the connector."},
    {.key = "mask",
     .type = SPATE_OPT_MAPS,
     .offset = AT(mask),
     .doc = "Columns whose values never reach the bus: table globs, each with columns and what stands there "
            "instead: hash (HMAC-SHA256 of the text, in hex; the column becomes text; keeps keys distinct), "
            "null, or {constant: TEXT}. Names as in exclude."},
    {.key = "mask_key_file",
     .type = SPATE_OPT_STRING,
     .offset = AT(mask_key_file),
     .doc = "File with the key of hash, 16 bytes or more, read at start. Another key gives every hashed "
            "value, and so every hashed key, another identity: each sink takes the tables anew."},
    {.key = "mask_key_env",
     .type = SPATE_OPT_STRING,
     .offset = AT(mask_key_env),
     .doc = "Environment variable with that key, where there is no mask_key_file."},
    {.key = "snapshots.allow",
     .type = SPATE_OPT_MAP,
     .offset = AT(snapshots.allow),
     .doc = "Who may ask for the rows that exist now, and of which tables: a requester's name (the sink's; * "
            "and ? stand for any) with table globs separated by commas. Rules add up; who is in none is "
            "refused. Without it, whoever may write to the topic of requests may ask for every published "
            "table. Requests of `spate snapshot --tables` come from names that begin with snapshot-."},
    {.key = "snapshots.parallel",
     .type = SPATE_OPT_INT,
     .offset = AT(snapshots.parallel),
     .fallback = "2",
     .min = 1,
     .max = 8,
     .doc = "Connections to the source that read rows for requests at the same time."},
    {.key = "snapshots.rows_per_second",
     .type = SPATE_OPT_INT,
     .offset = AT(snapshots.rows_per_second),
     .fallback = "0",
     .doc = "How many rows all requests together read from the source in a second; 0: as fast as it goes."},
    {.key = "snapshots.hours",
     .type = SPATE_OPT_STRING,
     .offset = AT(snapshots.hours),
     .doc = "When rows are read for requests, as HH:MM-HH:MM in local time (22:00-06:00). Requests that come "
            "at another time, or last longer, wait. Always unless given."},
    {.key = "snapshots.nudge",
     .type = SPATE_OPT_BOOL,
     .offset = AT(snapshots.nudge),
     .fallback = "true",
     .doc = "May write a logical message to the source's WAL while a request is answered, so that the stream "
            "of an idle source moves on and rows come at once. With false nothing is ever written; rows may "
            "then wait for the source to write something or to say how far its WAL is."},
    {.key = "snapshots.chunk_bytes",
     .type = SPATE_OPT_BYTES,
     .offset = AT(snapshots.chunk_bytes),
     .fallback = "2MiB",
     .min = 64 << 10,
     .max = 16 << 20,
     .doc =
         "About how much is read from the source in one piece: each is a short transaction of its own. Two "
         "for each connection are held in memory."},
    {.key = "snapshots.keys_bytes",
     .type = SPATE_OPT_BYTES,
     .offset = AT(snapshots.keys_bytes),
     .fallback = "16MiB",
     .min = 64 << 10,
     .max = 1 << 30,
     .doc = "How much is held of the keys that changed while requests are answered. A transaction that goes "
            "beyond it makes the tables that it touched wait until it is visible."},
    {.key = "heartbeat",
     .type = SPATE_OPT_DURATION,
     .offset = AT(heartbeat_ms),
     .fallback = "10s",
     .min = 100,
     .max = 3600000,
     .doc = "How often the WAL position is carried by a message while the source writes WAL but no published "
            "change; this is what lets the source remove that WAL."},
    {.key = "stop_deadline",
     .type = SPATE_OPT_DURATION,
     .offset = AT(stop_deadline_ms),
     .fallback = "10s",
     .min = 100,
     .max = 3600000,
     .doc = "After SIGTERM, what was read is made durable and confirmed within this time; beyond it the exit "
            "code is 5."},
    {.key = "log_level",
     .type = SPATE_OPT_ENUM,
     .offset = AT(log_level),
     .fallback = "info",
     .choices = levels,
     .doc = "What is logged on stderr."},
    {.key = "status.listen",
     .type = SPATE_OPT_STRING,
     .offset = AT(status_listen),
     .doc =
         "Where /status (JSON), /metrics (Prometheus) and /health are served: a port for this machine only "
         "(9187), or ADDRESS:PORT. They need no password and hold no secret and no row value. Nowhere "
         "unless given."},
};

const struct spate_option_table spate_connector_tables[] = {
    {"", 0, options, SPATE_COUNT(options)},
    {"bus", offsetof(struct spate_connector_config, bus), spate_bus_options, SPATE_BUS_OPTIONS},
};
const size_t spate_connector_table_count = SPATE_COUNT(spate_connector_tables);

enum spate_rc spate_connector_check(const struct spate_connector_config *config, struct spate_err *err)
{
    const struct spate_strings *tables = &config->tables;
    const char *path = config->path ? config->path : "the configuration";

    if (config->status_listen && spate_http_check(config->status_listen, err))
        return spate_err_context(err, "%s", path);
    if (strstr(config->name, "._")) {
        err->exit_code = SPATE_EXIT_CONFIG;
        return spate_fail(
            err, SPATE_FATAL,
            "%s: connector: the name \"%s\" has \"._\" in it, which on the bus marks the topics "
            "beside a stream (shop._schemas belongs to shop): nobody would find this stream. "
            "Give it another name",
            path, config->name);
    }
    for (size_t i = 0; i < tables->count; i++) {
        struct spate_glob *glob = NULL;

        if (spate_glob_new(tables->at[i], &glob, err))
            return spate_err_context(err, "%s:%d: tables", path, tables->line ? tables->line[i] : 0);
        spate_glob_free(glob);
    }
    if (spate_privacy_check(config, path, err))
        return SPATE_FAIL;
    return spate_permits_check(config, path, err);
}
