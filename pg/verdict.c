/* pg/verdict.c - what a SQLSTATE means for us: the one table, matched by code and never by the server's
 * words, which follow its version and its language (P65). */
#include "pg/pg.h"

#include "core/alloc.h"

#include <string.h>

enum {
    VALUES = 1,  /* the server's words may quote a row's value: they never reach a log. So may those of a code
                    that is not in the table */
    PREPARED = 2 /* a prepared statement may be older than the table: prepared anew once before it counts */
};

#define SLOW_MS     10000 /* whoever holds the connection, the slot or the room may let go of it */
#define OPERATOR_MS 30000 /* somebody must grant, mend or restart something */

struct condition {
    const char *code; /* five characters, or two for the rest of a class */
    enum spate_pg_kind kind;
    unsigned flags;
    const char *name;
    const char *remedy; /* NULL: none that is always right */
};

/* A code stands before its class. */
static const struct condition conditions[] = {
    {"08P01", SPATE_PG_STOP, 0, "protocol_violation",
     "connect to Postgres itself, on its own port, without a pooler in between"},
    {"08", SPATE_PG_TRANSIENT, 0, "connection_exception", NULL},
    {"0A", SPATE_PG_STOP, PREPARED, "feature_not_supported", NULL},
    {"21000", SPATE_PG_ROW, 0, "cardinality_violation", NULL},
    {"21", SPATE_PG_ROW, 0, "cardinality_violation", NULL},
    {"22001", SPATE_PG_ROW, VALUES, "string_data_right_truncation",
     "make the target column longer, or shorten the value in the column's expression"},
    {"22003", SPATE_PG_ROW, VALUES, "numeric_value_out_of_range",
     "give the target column a type that holds the source's values"},
    {"22007", SPATE_PG_ROW, VALUES, "invalid_datetime_format",
     "give the target column the source's type, or mend the column's expression"},
    {"22008", SPATE_PG_ROW, VALUES, "datetime_field_overflow",
     "give the target column the source's type, or mend the column's expression"},
    {"22012", SPATE_PG_ROW, VALUES, "division_by_zero", "guard the expression with nullif(..., 0)"},
    {"22021", SPATE_PG_ROW, VALUES, "character_not_in_repertoire",
     "the text has bytes that are none in the encoding of that database: mend the row, or use UTF8 "
     "(SQL_ASCII for an SQL_ASCII source whose bytes are no UTF-8)"},
    {"22P02", SPATE_PG_ROW, VALUES, "invalid_text_representation",
     "give the target column the source's type, or mend the column's expression"},
    {"22P05", SPATE_PG_ROW, VALUES, "untranslatable_character",
     "the value has a character that this type or encoding cannot hold (json \\u0000 in jsonb): keep the "
     "source's "
     "type"},
    {"22", SPATE_PG_ROW, VALUES, "data_exception",
     "the row's value does not fit the target column or its expression: mend the one or the other"},
    {"23502", SPATE_PG_ROW, VALUES, "not_null_violation",
     "drop NOT NULL on the target column, or give it a value in the column's expression"},
    {"23503", SPATE_PG_ROW, VALUES, "foreign_key_violation",
     "drop the foreign key on the target table, or make it DEFERRABLE INITIALLY DEFERRED"},
    {"23505", SPATE_PG_ROW, VALUES, "unique_violation",
     "drop the target's unique constraint that the source does not have, or remove the row that was put "
     "there by "
     "hand"},
    {"23514", SPATE_PG_ROW, VALUES, "check_violation", "drop or widen the check on the target table"},
    {"23P01", SPATE_PG_ROW, VALUES, "exclusion_violation", "drop the exclusion constraint on the target"},
    {"23", SPATE_PG_ROW, VALUES, "integrity_constraint_violation",
     "drop or widen the constraint on the target table"},
    {"25006", SPATE_PG_SLOW, 0, "read_only_sql_transaction",
     "the server is read-only: a standby, or default_transaction_read_only; name the primary in the url"},
    {"25P02", SPATE_PG_TRANSIENT, 0, "in_failed_sql_transaction", NULL},
    {"25", SPATE_PG_STOP, 0, "invalid_transaction_state", NULL},
    {"26000", SPATE_PG_TRANSIENT, PREPARED, "invalid_sql_statement_name", NULL},
    {"28000", SPATE_PG_OPERATOR, 0, "invalid_authorization_specification",
     "the role must exist with LOGIN (and REPLICATION for a connector), and pg_hba.conf must let it in from "
     "here"},
    {"28P01", SPATE_PG_OPERATOR, 0, "invalid_password",
     "put the role's password where the configuration points: password_env, password_file, PGPASSWORD or a "
     "passfile; it is read anew at each attempt"},
    {"28", SPATE_PG_OPERATOR, 0, "invalid_authorization_specification", NULL},
    {"3D000", SPATE_PG_OPERATOR, 0, "invalid_catalog_name",
     "create the database, or mend its name in the url"},
    {"3F000", SPATE_PG_ROW, 0, "invalid_schema_name", "create the schema, or mend its name"},
    {"38", SPATE_PG_ROW, VALUES, "external_routine_exception",
     "a function on the target raised it: mend it, or leave it out of the expression"},
    {"39", SPATE_PG_ROW, VALUES, "external_routine_invocation_exception",
     "a function on the target raised it: mend it, or leave it out of the expression"},
    {"40002", SPATE_PG_ROW, VALUES, "transaction_integrity_constraint_violation", NULL},
    {"40P01", SPATE_PG_TRANSIENT, 0, "deadlock_detected", NULL},
    {"40", SPATE_PG_TRANSIENT, 0, "transaction_rollback", NULL},
    {"42501", SPATE_PG_OPERATOR, 0, "insufficient_privilege", "grant the role what is missing"},
    {"42703", SPATE_PG_ROW, PREPARED, "undefined_column", NULL},
    {"42704", SPATE_PG_FENCE, 0, "undefined_object", NULL},
    {"42P01", SPATE_PG_ROW, PREPARED, "undefined_table", NULL},
    {"42804", SPATE_PG_ROW, PREPARED, "datatype_mismatch", NULL},
    {"42P10", SPATE_PG_ROW, PREPARED, "invalid_column_reference", NULL},
    {"42P05", SPATE_PG_TRANSIENT, 0, "duplicate_prepared_statement", NULL},
    {"42", SPATE_PG_ROW, 0, "syntax_error_or_access_rule_violation", NULL},
    {"44", SPATE_PG_ROW, VALUES, "with_check_option_violation", NULL},
    {"53100", SPATE_PG_SLOW, 0, "disk_full", "free space on that server's disk"},
    {"53200", SPATE_PG_TRANSIENT, 0, "out_of_memory", NULL},
    {"53300", SPATE_PG_SLOW, 0, "too_many_connections",
     "raise max_connections (for a connector also max_wal_senders), or end connections that are not needed"},
    {"53400", SPATE_PG_SLOW, 0, "configuration_limit_exceeded",
     "raise the limit that the server names (for a connector max_replication_slots)"},
    {"53", SPATE_PG_SLOW, 0, "insufficient_resources", NULL},
    {"54011", SPATE_PG_ROW, 0, "too_many_columns", "use fewer of the source's columns"},
    {"54", SPATE_PG_ROW, VALUES, "program_limit_exceeded", NULL},
    {"55000", SPATE_PG_FENCE, 0, "object_not_in_prerequisite_state", NULL},
    {"55006", SPATE_PG_TRANSIENT, 0, "object_in_use", NULL},
    {"55P03", SPATE_PG_TRANSIENT, 0, "lock_not_available", NULL},
    {"55", SPATE_PG_STOP, 0, "object_not_in_prerequisite_state", NULL},
    {"57014", SPATE_PG_TRANSIENT, 0, "query_canceled", NULL},
    {"57P01", SPATE_PG_TRANSIENT, 0, "admin_shutdown", NULL},
    {"57P02", SPATE_PG_TRANSIENT, 0, "crash_shutdown", NULL},
    {"57P03", SPATE_PG_TRANSIENT, 0, "cannot_connect_now",
     "nothing to do: the server is starting, stopping or recovering"},
    {"57P04", SPATE_PG_OPERATOR, 0, "database_dropped", NULL},
    {"57P05", SPATE_PG_TRANSIENT, 0, "idle_session_timeout", NULL},
    {"57", SPATE_PG_TRANSIENT, 0, "operator_intervention", NULL},
    {"58030", SPATE_PG_SLOW, 0, "io_error", "look into that server's log and at its disk"},
    {"58P01", SPATE_PG_FENCE, 0, "undefined_file", NULL},
    {"58", SPATE_PG_STOP, 0, "system_error", NULL},
    {"P0", SPATE_PG_ROW, VALUES, "plpgsql_error",
     "a function or trigger on the target raised it: disable it for the sink's role"},
    {"XX", SPATE_PG_STOP, 0, "internal_error", NULL},
};

static const struct condition *condition_of(const char *sqlstate)
{
    for (size_t i = 0; i < SPATE_COUNT(conditions); i++)
        if (strncmp(conditions[i].code, sqlstate, strlen(conditions[i].code)) == 0)
            return &conditions[i];
    return NULL;
}

enum spate_pg_kind spate_pg_kind(const char *sqlstate)
{
    const struct condition *found;

    if (!sqlstate || !*sqlstate)
        return SPATE_PG_TRANSIENT; /* no code: the connection itself failed */
    found = condition_of(sqlstate);
    return found ? found->kind : SPATE_PG_STOP;
}

enum spate_verdict spate_pg_verdict(const char *sqlstate)
{
    switch (spate_pg_kind(sqlstate)) {
    case SPATE_PG_TRANSIENT:
    case SPATE_PG_SLOW:
    case SPATE_PG_OPERATOR:
        return SPATE_RETRY;
    case SPATE_PG_ROW:
        return SPATE_QUARANTINE;
    case SPATE_PG_FENCE:
    case SPATE_PG_STOP:
        break;
    }
    return SPATE_FATAL;
}

int64_t spate_pg_pace_ms(const char *sqlstate, int64_t backoff_ms)
{
    switch (spate_pg_kind(sqlstate)) {
    case SPATE_PG_SLOW:
        return SLOW_MS;
    case SPATE_PG_OPERATOR:
        return OPERATOR_MS;
    default:
        return backoff_ms;
    }
}

bool spate_pg_prepare_again(const char *sqlstate)
{
    const struct condition *found = sqlstate && *sqlstate ? condition_of(sqlstate) : NULL;

    return found && (found->flags & PREPARED);
}

const char *spate_pg_condition(const char *sqlstate)
{
    const struct condition *found = sqlstate && *sqlstate ? condition_of(sqlstate) : NULL;

    return found ? found->name : "error";
}

const char *spate_pg_remedy(const char *sqlstate)
{
    const struct condition *found = sqlstate && *sqlstate ? condition_of(sqlstate) : NULL;

    return found ? found->remedy : NULL;
}

bool spate_pg_quotes_values(const char *sqlstate)
{
    const struct condition *found;

    if (!sqlstate || !*sqlstate)
        return false; /* libpq's own words */
    found = condition_of(sqlstate);
    return !found || (found->flags & VALUES); /* a code of somebody's own: a function made up the words */
}

static const char *const kinds[] = {
    [SPATE_PG_TRANSIENT] = "again", [SPATE_PG_SLOW] = "slowly", [SPATE_PG_OPERATOR] = "operator",
    [SPATE_PG_FENCE] = "fence",     [SPATE_PG_STOP] = "stop",   [SPATE_PG_ROW] = "row",
};

void spate_pg_reference(struct spate_buf *out)
{
    spate_buf_puts(out,
                   "| SQLSTATE | name | what is done | remedy in the message |\n| --- | --- | --- | --- |\n");
    for (size_t i = 0; i < SPATE_COUNT(conditions); i++) {
        const struct condition *c = &conditions[i];

        spate_buf_printf(out, "| `%s%s` | %s | %s%s | %s |\n", c->code, strlen(c->code) == 2 ? "..." : "",
                         c->name, kinds[c->kind], c->flags & PREPARED ? ", prepared anew first" : "",
                         c->remedy ? c->remedy : "-");
    }
}
