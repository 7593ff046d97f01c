/* The options of a sink's file. */
#include "sinks/sink.h"

#include "core/alloc.h"

static const struct spate_option table_options[] = {
    {.key = "from",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_table_config, from),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "The source's table as schema.table, each part quoted like SQL where it has dots or capitals."},
    {.key = "where",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_table_config, where),
     .doc =
         "SQL over the source's row, evaluated by the target. Rows for which it is true are kept; a row that "
         "stops matching is deleted."},
    {.key = "columns",
     .type = SPATE_OPT_MAP,
     .offset = offsetof(struct spate_sink_table_config, columns),
     .doc = "The team's columns: name -> SQL over the source's row, evaluated by the target. Empty: all "
            "columns, "
            "under their own names."},
    {.key = "key",
     .type = SPATE_OPT_LIST,
     .offset = offsetof(struct spate_sink_table_config, key),
     .doc = "The columns of the team's table that hold the source's key, all of it and nothing else. Empty: "
            "those "
            "whose expression is a key column."},
};

static const struct spate_option_group table_group = {
    .size = sizeof(struct spate_sink_table_config),
    .options = table_options,
    .count = SPATE_COUNT(table_options),
    .item = "TABLE",
};

static const char *const snapshot_modes[] = {"auto", "manual", NULL};
static const char *const snapshot_ends[] = {"sweep", "swap", NULL};
static const char *const log_levels[] = {"debug", "info", "warn", "error", NULL};

static const struct spate_option sink_options[] = {
    {.key = "sink",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, name),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "The sink's name. Its position is stored under it; one process at a time owns it."},
    {.key = "from",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, from),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "The connector whose stream it hears."},
    {.key = "into.postgres.url",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, into.url),
     .flags = SPATE_OPT_REQUIRED | SPATE_OPT_URL,
     .doc = "The target database, a libpq URL or conninfo string. sslmode is verify-full unless it says "
            "otherwise."},
    {.key = "into.postgres.password_env",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, into.password_env),
     .doc = "The environment variable that holds the password."},
    {.key = "into.postgres.password_file",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, into.password_file),
     .doc = "The file whose first line is the password; read anew at each connection attempt."},
    {.key = "into.postgres.schema",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, into.schema),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "The team's schema. The tables, and the sink's position beside them, live here; it is made when "
            "it is "
            "missing."},
    {.key = "snapshot",
     .type = SPATE_OPT_ENUM,
     .offset = offsetof(struct spate_sink_config, snapshot),
     .fallback = "auto",
     .choices = snapshot_modes,
     .doc = "When the sink asks the connector for all rows that exist. auto: when it is new, when a table is "
            "new or its lines in this file changed, and when it missed a part of the stream. manual: only "
            "when `spate snapshot --sink` tells it to; it begins at the oldest message that the bus holds, "
            "and stops when a part is missing."},
    {.key = "on_snapshot",
     .type = SPATE_OPT_ENUM,
     .offset = offsetof(struct spate_sink_config, on_snapshot),
     .fallback = "sweep",
     .choices = snapshot_ends,
     .doc = "What readers of a table see while all its rows come anew. sweep: rows are corrected as they "
            "come, and at the end those that no longer exist are removed. swap: the table stays as it was, "
            "and becomes the new one in one transaction at the end; that takes room for a second copy."},
    {.key = "hold",
     .type = SPATE_OPT_BOOL,
     .offset = offsetof(struct spate_sink_config, hold),
     .fallback = "false",
     .doc =
         "Whether the bus keeps what this sink has not applied beyond bus.local.retention and "
         "retention_bytes. When its archive is at that limit the connector waits, and the source keeps its "
         "WAL, until the sink goes on, is released (spate bus release NAME), or has been away for "
         "bus.local.hold_expire. On the embedded bus only."},
    {.key = "tables",
     .type = SPATE_OPT_GROUP,
     .offset = offsetof(struct spate_sink_config, tables),
     .flags = SPATE_OPT_REQUIRED,
     .group = &table_group,
     .doc = "The team's tables."},
    {.key = "stop_deadline",
     .type = SPATE_OPT_DURATION,
     .offset = offsetof(struct spate_sink_config, stop_deadline_ms),
     .fallback = "10s",
     .min = 100,
     .max = 600000,
     .doc = "After SIGTERM the batch at hand is finished and the position stored within this time."},
    {.key = "log_level",
     .type = SPATE_OPT_ENUM,
     .offset = offsetof(struct spate_sink_config, log_level),
     .fallback = "info",
     .choices = log_levels,
     .doc = "The least level that is logged: debug, info, warn or error."},
    {.key = "status.listen",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct spate_sink_config, status_listen),
     .doc = "Where /status (JSON), /metrics (Prometheus) and /health of all sinks of the process are served: "
            "a port for this machine only (9188), or ADDRESS:PORT. They need no password and hold no secret "
            "and no row value. Nowhere unless given; files of one process that give it give the same."},
};

const struct spate_option_table spate_sink_tables[] = {
    {.prefix = "", .offset = 0, .options = sink_options, .count = SPATE_COUNT(sink_options)},
    {.prefix = "bus",
     .offset = offsetof(struct spate_sink_config, bus),
     .options = spate_bus_options,
     .count = SPATE_BUS_OPTIONS},
};
const size_t spate_sink_table_count = SPATE_COUNT(spate_sink_tables);
