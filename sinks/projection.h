/* sinks/projection.h - what the team's file means: for the sink's life (projection), and for one version of
 * the source table's schema (version), with the SQL that applies it.
 *
 * Thread: the sink's. */
#ifndef SPATE_SINKS_PROJECTION_H
#define SPATE_SINKS_PROJECTION_H

#include "core/buf.h"
#include "schemas/table.h"
#include "sinks/load.h"
#include "sinks/sink.h"
#include "sinks/store.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One column of the target. */
struct spate_output {
    char *name;
    char *expr;     /* SQL over the source's row */
    int bare;       /* the source column when expr is nothing but its name, else -1 */
    uint32_t *uses; /* source columns, ascending */
    size_t use_count;
    bool key;
    uint32_t type_oid; /* of the expression, in the target */
    int type_mod;
    char *type; /* the same as text */
    int line;   /* in the team's file; 0: it stands there by default */
};

/* What rows are merged into: the team's table; or the sink's own copy of the source's columns (sinks/copy.h),
 * from which the team's table is projected where a value may not have come. Borrows from its version. */
struct spate_relation {
    const char *name; /* quoted */
    const struct spate_output *outputs;
    size_t output_count;
    const char *where; /* or NULL */
    bool own;          /* the copy */
};

/* The statements that merge rows into one relation, each an EXECUTE of what `create` prepares. */
struct spate_merge {
    char *erase;    /* deletes what 'd', 'r' and rows outside `where` name */
    char *upsert;   /* inserts or updates 'u' and 'r' */
    char *partial;  /* updates 'p'; NULL where no value can come unchanged. Beside a copy: deletes, updates or
                       inserts 'p' and 'm', as the copy has them now */
    char *move;     /* updates 'm'; NULL likewise, and beside a copy */
    char *insert;   /* as upsert, for rows that cannot exist yet (T33); from the staging table alone */
    char *room;     /* of a copy, and beside it: deletes what stands where 'm' goes */
    char *left;     /* the same for where it was */
    char *stale;    /* of a copy: deletes 'p' whose row other columns were kept of */
    struct {        /* only while a snapshot is under way (sinks/load.h), where they are needed; else NULL */
        char *off;  /* keys of 'd', 'r', 'u' and 'k' leave the re-read list */
        char *list; /* keys of 'p' whose row is not known go on it */
        char *list_move; /* the same for 'm': the new key, and the old one leaves it */
        char *off_move;
        char *mark, *unmark; /* MARKED: what upsert brought in, what erase took out */
        char *clear;         /* a stale row that stands where 'm' moves to */
        char *mark_move;     /* MARKED: the mark goes along */
    } load;
};

/* The statements of a version; all names in them are qualified or temporary. */
struct spate_statements {
    char *table;              /* makes the staging table, run once per connection */
    char *create;             /* prepares the statements, once per connection and edition of the load */
    char *stage;              /* quoted name of the staging table, pg_temp included */
    char *columns;            /* "(op, mask, ...)" of the staging table, for COPY */
    struct spate_merge large; /* from the staging table */
    struct spate_merge small; /* from an array of text per column, given as parameters */
    struct {                  /* the same for the copy, before the team's table; all NULL without one */
        struct spate_merge large, small;
    } copy;
};

struct spate_version {
    struct spate_projection *projection;
    const struct spate_table *table; /* owned by the registry */
    struct spate_output *outputs;
    size_t output_count;
    char *where; /* the projection's, or NULL */
    uint32_t *where_uses;
    size_t where_use_count;

    bool *want;     /* by source column: decode it */
    bool *want_key; /* by source column: only the key, for deletes */
    uint32_t *used; /* source columns that are staged, ascending, the key among them */
    size_t used_count;
    uint32_t *key_at; /* where in `used` the key's columns stand, in the key's order */
    size_t key_count;
    int *maybe; /* by position in `used`: index in the mask, or -1 when it always comes */
    size_t maybe_count;
    char **stage_types; /* by source column */
    bool *as_text;      /* by source column: the target lacks the type */
    bool *own_cast;     /* by source column: text cast to it is not what its input reads */
    bool only_copy;     /* a column in use is such a one: its rows come by COPY, never as parameters */
    char *copy_why;     /* owned: what needs a copy of the source's columns, and why; NULL: nothing does */
    struct {            /* the copy's columns, if there is one */
        struct spate_output *outputs;
        size_t output_count;
        int64_t shape; /* of which columns, of which types: a row of another shape is not known */
    } copy;
    char hash[17]; /* of what the rows are written by (sinks/generation.h) */

    struct spate_statements sql;
    struct spate_version_state *state; /* owned; what changes after it was made */
};

struct spate_version_state {
    unsigned serial;      /* of the connection on which sql.table and sql.create have run; 0: none */
    unsigned edition;     /* of the load that sql.create was run for */
    uint64_t transaction; /* of the target in which the staging table was last filled */
};

struct spate_projection {
    const struct spate_sink_table_config *config;
    const struct spate_sink_config *sink;
    size_t index;
    char *source_schema, *source_table;
    char *target; /* "schema"."table", quoted */
    char *label;  /* the same for log lines */
    struct spate_version **versions;
    size_t version_count;
    struct spate_version *current;    /* the one met last */
    const struct spate_table *before; /* what the target table fitted until the version that is made now;
                                         NULL: the target is not to be altered; borrowed */
    bool same;     /* rows that are there are as good as if the version that was made last had written them */
    bool labelled; /* a type of it was given another label just now (sinks/follow.h) */
    bool gone;     /* the source's table is not published any more */
    bool late;     /* the bus knows no such table yet (sinks/late.h) */
    bool altered;  /* the target table was, for the version that is made now */
    struct spate_version *
        *retired; /* owned: made for the table as it was before; what is in hand may use them */
    size_t retired_count;
    uint32_t *unfit; /* owned: versions that are past, and cannot be written to the table of today */
    size_t unfit_count;
    int64_t lacked_ms; /* when a row was missing that must have been there; 0: never */
    bool deferrable; /* the target table has deferrable constraints: they are deferred in each transaction */
    struct spate_load load;
};

SPATE_CHECKED enum spate_rc spate_projection_init(struct spate_projection *projection,
                                                  const struct spate_sink_config *sink, size_t index,
                                                  struct spate_err *err);
void spate_projection_fini(struct spate_projection *projection);

/* The version for a source table's schema, made and checked when it is new: asks the target's parser,
 * compares with the target table (made when it is missing), builds the SQL. Must not be called inside a
 * transaction. SPATE_FAIL, exit code REFUSED: cannot be done exactly; the text has the remedy. */
SPATE_CHECKED enum spate_rc spate_projection_version(struct spate_projection *projection,
                                                     struct spate_store *store,
                                                     const struct spate_table *table,
                                                     struct spate_version **version, struct spate_err *err);
struct spate_version *spate_projection_find(const struct spate_projection *projection,
                                            const struct spate_table *table);

/* "FILE:LINE: tables.NAME" of the projection, for messages. */
const char *spate_projection_place(const struct spate_projection *projection, char *out, size_t size);

/* Would storing a value of one type in a column of another keep it bit for bit? Pure. */
bool spate_type_lossless(uint32_t from, int from_mod, uint32_t to, int to_mod);

/* The steps of spate_projection_version, for tests. */
struct spate_version *spate_version_new(struct spate_projection *projection, const struct spate_table *table);
void spate_version_free(struct spate_version *version);
/* Asks the target: types, columns used, result types (sinks/expressions.c). */
SPATE_CHECKED enum spate_rc spate_version_ask(struct spate_version *version, struct spate_store *store,
                                              struct spate_err *err);
/* What can come unchanged, and whether the expressions need a copy for it. Pure. Fills used, want, maybe,
 * key_at, copy_why. */
SPATE_CHECKED enum spate_rc spate_version_plan(struct spate_version *version, struct spate_err *err);
/* Builds version->sql, for the kind of load that is under way. Pure. */
void spate_version_sql(struct spate_version *version);
void spate_version_forget_sql(struct spate_version *version);
struct spate_relation spate_version_team(const struct spate_version *version);
/* Where the generation of a load is, and what a change must find its row in: the copy, else the team's. */
struct spate_relation spate_version_held(const struct spate_version *version);
/* The relation's column of the k-th column of the source's key. */
const struct spate_output *spate_relation_key(const struct spate_version *version,
                                              const struct spate_relation *relation, size_t k);
/* Appends "ROW(a.x, ...) *= ROW(b.x, ...)" over what is no key; an operator of images. */
void spate_relation_compare(const struct spate_relation *relation, const char *a, const char *b,
                            const char *op, struct spate_buf *sql);
/* Makes the target table, or compares the one that is there (sinks/preflight.c). */
SPATE_CHECKED enum spate_rc spate_version_preflight(struct spate_version *version, struct spate_store *store,
                                                    struct spate_err *err);

/* Parts of it: unique indexes and foreign keys (sinks/constraints.c). */
SPATE_CHECKED enum spate_rc spate_version_constraints(struct spate_version *version,
                                                      struct spate_store *store, struct spate_err *err);
/* Runs a query about the target table: $1 is its name, $2 its schema. */
SPATE_CHECKED enum spate_rc spate_version_query(const struct spate_version *version,
                                                struct spate_store *store, const char *sql, PGresult **res,
                                                struct spate_err *err);
/* "FILE:LINE: tables.NAME: ...", exit code REFUSED. Returns SPATE_FAIL. */
enum spate_rc spate_version_refuse(const struct spate_version *version, struct spate_err *err,
                                   const char *fmt, ...) SPATE_PRINTF(3, 4);

#endif
