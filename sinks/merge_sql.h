/* sinks/merge_sql.h - what the builders of merge statements share. Internal to sinks/merge_sql. Pure. */
#ifndef SPATE_SINKS_MERGE_SQL_H
#define SPATE_SINKS_MERGE_SQL_H

#include "sinks/projection.h"

struct spate_names {
    char prefix[72];       /* our own columns begin with more tildes than any column of the source */
    const char *from;      /* the relation that holds the rows */
    const char *suffix;    /* of the prepared statements' names */
    const char *arguments; /* their parameters' types in parentheses, or "" */
};

/* One set of statements in the making. */
struct spate_sql {
    const struct spate_version *version;
    const struct spate_names *names;
    struct spate_relation to; /* where rows go */
    struct spate_buf *create;
};

/* Begins a statement: appends "PREPARE name AS " and returns "EXECUTE name". A statement that has no
 * parameters gets one that it does not use: only then is it planned each time it is executed, which
 * sinks/store.c relies on. */
char *spate_sql_prepare(const struct spate_sql *sql, char kind);

void spate_sql_ident(struct spate_buf *out, const char *name);

/* "t.key = s.k0 AND ...": of the relation, or of a table that has k0, k1, ... for the key's columns. */
void spate_sql_match(const struct spate_sql *sql, const char *alias, bool ours, char letter);
/* The key of a staged row, or the one it had before, as k0, k1, ... or another letter. */
void spate_sql_keys(const struct spate_sql *sql, bool old, char letter);
/* " FROM the staged rows that the relation is to hold" */
void spate_sql_come_in(const struct spate_sql *sql);
/* "INSERT INTO relation (...) SELECT expressions", and what follows the rows' source. */
void spate_sql_insert(const struct spate_sql *sql);
void spate_sql_on_conflict(const struct spate_sql *sql);
/* "UPDATE relation AS t SET ... FROM (SELECT keys as k0, ..., expressions FROM ": what came is computed, what
 * did not stays. `moves`: the key too, by the old one. */
void spate_sql_update(const struct spate_sql *sql, bool moves);
/* Deletes from a table what 'd', 'r' and rows outside `where` name. */
void spate_sql_erase(const struct spate_sql *sql, const char *table, bool ours);

/* A snapshot over rows that are there finds most of them as they should be: those are not written again. */
bool spate_sql_may_be_equal(const struct spate_version *version);

/* What a load adds (sinks/load_sql.c). */
void spate_sql_load(const struct spate_sql *sql, struct spate_merge *merge);
/* Of a copy, and of the team's table beside it, for rows that did not come whole (sinks/copy_sql.c). */
void spate_sql_copy(const struct spate_sql *sql, struct spate_merge *merge);
void spate_sql_derive(const struct spate_sql *sql, struct spate_merge *merge);

#endif
