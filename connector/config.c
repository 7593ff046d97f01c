/* connector/config.c - what a connector's file may say. */
#include "connector/connector.h"

#include "core/alloc.h"
#include "core/log.h"

/* In the order of enum spate_log_level. */
static const char *const levels[] = {"debug", "info", "warn", "error", NULL};

#define AT(member) offsetof(struct spate_connector_config, member)

static const struct spate_option options[] = {
    {.key = "connector",
     .type = SPATE_OPT_STRING,
     .offset = AT(name),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "Name of this connector: also the name of its stream on the bus, which sinks give as `from`."},
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
     .doc = "Publication that says which tables are read. Changing it later opens a new epoch."},
    {.key = "source.postgres.slot",
     .type = SPATE_OPT_STRING,
     .offset = AT(source.slot),
     .fallback = "spate",
     .doc = "Logical replication slot, used by this connector alone."},
    {.key = "source.postgres.create",
     .type = SPATE_OPT_BOOL,
     .offset = AT(source.create),
     .fallback = "false",
     .doc =
         "Create the publication and the slot when they are missing. Otherwise they are taken as they are."},
    {.key = "tables",
     .type = SPATE_OPT_LIST,
     .offset = AT(tables),
     .doc = "Table globs (schema.table with * and ?) that belong into the publication. Needed when create is "
            "true; without create, tables that match and are not published are only warned about."},
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
};

const struct spate_option_table spate_connector_tables[] = {
    {"", 0, options, SPATE_COUNT(options)},
    {"bus", offsetof(struct spate_connector_config, bus), spate_bus_options, SPATE_BUS_OPTIONS},
};
const size_t spate_connector_table_count = SPATE_COUNT(spate_connector_tables);
