/* connector/survey.h - what the source's catalog shows of the published tables' storage, and what two looks
 * at it have between them that no message carried.
 *
 * Postgres sends nothing for a rewrite (P32), for what happened to a table while it was unlogged (P33), for
 * partitions that are attached, detached or dropped (P51), and for the rows of a table that comes into the
 * publication (P56). All of it leaves traces in the catalog: another file, another membership, another
 * attribute row. A survey holds these traces; judging compares the survey of now with what was known when
 * followers were last told.
 *
 * Thread: a survey is never changed once it was made, and is counted: any thread may keep one.
 * Blocks: spate_survey_read, for at most half a minute, on an ordinary connection; it takes no lock on any
 *         table of the source. Everything else is pure. */
#ifndef SPATE_CONNECTOR_SURVEY_H
#define SPATE_CONNECTOR_SURVEY_H

#include "core/buf.h"
#include "core/err.h"
#include "core/slice.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_survey_column {
    int32_t number;
    uint32_t type, xmin; /* of its row in pg_attribute */
    bool missing;        /* rows of before it was added have its default without ever having been written */
    uint64_t hash;       /* of its name */
    const char *name;    /* "" where only the hash was kept */
    /* Of an enum, or what is made of one: how it prints, from the oldest label on, one a line. Of a
     * composite, or what is made of one: its attributes in the first line. */
    uint32_t label_count;
    uint64_t label_hash;
    const char *labels; /* "" where only these two were kept */
};

struct spate_survey_columns; /* counted: surveys share them while nothing changes */
size_t spate_survey_columns_count(const struct spate_survey_columns *columns);
const struct spate_survey_column *spate_survey_column_at(const struct spate_survey_columns *columns,
                                                         size_t i);

/* Something with a file of its own: the table itself, or one partition of it. */
struct spate_survey_leaf {
    uint32_t oid, file;
    uint32_t xmin; /* of its row in pg_class: who touched that last */
    uint32_t born; /* who made it; 0: not asked */
    bool inside;   /* made as a partition of what it belongs to, so empty */
};

struct spate_survey_table {
    uint32_t oid;
    uint32_t way, since; /* the row by which it is published (its table's, its schema's, everything's), its
                            xmin */
    bool unlogged;
    const char *schema, *name;
    uint64_t stamp; /* of all class rows: the same, and the columns are the same */
    size_t first, leaf_count;
    struct spate_survey_columns *columns;
};

struct spate_survey {
    unsigned refs;
    uint64_t lsn;           /* all that it shows was committed before */
    uint64_t oldest, next;  /* xids: all below are visible; none from here on is */
    int64_t at_us, took_ms; /* when it was begun */
    bool published;         /* the publication exists */
    /* How often the catalog of columns and that of labels were altered, as the server counts: a little late.
     * So what is looked at again goes back to a minute before, or two. */
    uint64_t columns_altered, labels_altered;
    struct {
        uint32_t xid;
        int64_t at_us;
    } back, mid;
    uint32_t publication, publication_xmin;
    struct spate_survey_table *tables; /* by oid */
    size_t count;
    struct spate_survey_leaf *leaves;
    size_t leaf_count;
    char *names;
};

/* `before` (may be NULL) is the last one that this thread read: what did not change is shared with it. */
SPATE_CHECKED enum spate_rc spate_survey_read(PGconn *conn, const char *publication,
                                              const struct spate_survey *before, struct spate_survey **survey,
                                              struct spate_err *err);
/* Whether anything can have changed since that survey: WAL was written, or somebody was not visible yet. */
SPATE_CHECKED enum spate_rc spate_survey_moved(PGconn *conn, const struct spate_survey *since, bool *moved,
                                               struct spate_err *err);
struct spate_survey *spate_survey_hold(struct spate_survey *survey);
void spate_survey_drop(struct spate_survey *survey); /* accepts NULL */

/* ---- memory: what a storage record holds of one table (its state) ---- */

void spate_survey_write(const struct spate_survey *survey, const struct spate_survey_table *table,
                        struct spate_buf *state);
/* The record without names: of the publication, and how far xids had come. */
void spate_survey_write_head(const struct spate_survey *survey, struct spate_buf *state);

/* A survey from records, in any order; a later one of the same names replaces the earlier. */
struct spate_survey_memory;
struct spate_survey_memory *spate_survey_memory_new(void);
void spate_survey_memory_free(struct spate_survey_memory *memory); /* accepts NULL */
/* False: the state is none that this program knows; nothing is remembered of it. */
bool spate_survey_remember(struct spate_survey_memory *memory, struct spate_slice schema,
                           struct spate_slice table, bool gone, struct spate_slice state);
/* *whole: the record without names came, so that a table that is not in it was not published. */
struct spate_survey *spate_survey_recall(const struct spate_survey_memory *memory, bool *whole);

/* ---- judging ---- */

/* A TRUNCATE that the stream delivered explains a new file. */
struct spate_survey_truncate {
    uint32_t oid, xid;
};

enum spate_survey_news {
    SPATE_NEWS_MEMORY,    /* nothing to be said; but the record of it is to be written anew */
    SPATE_NEWS_ADDED,     /* published, and all its rows were sent */
    SPATE_NEWS_STALE,     /* `why` */
    SPATE_NEWS_REMOVED,   /* `table` is the known one */
    SPATE_NEWS_UNLOGGED,  /* what is written to it from now on is not sent */
    SPATE_NEWS_REWRITTEN, /* a new file that nothing explains, and rewrites are only to be logged */
};

struct spate_survey_finding {
    enum spate_survey_news news;
    const struct spate_survey_table *table; /* of `now`; of `known` when it was removed */
    const char *why;                        /* the stream's word; "" unless it is stale */
    const struct spate_survey_table *other; /* renamed: the same table under its other name; else NULL */
    const char *const *columns;             /* why is columns; valid for the call */
    size_t column_count;
};

struct spate_survey_rules {
    bool baseline; /* a table that is not known was not looked at before: nothing is said of it */
    bool say;      /* unexplained rewrites are only to be logged */
    const struct spate_survey_truncate *truncates;
    size_t truncate_count;
};

/* Calls `tell` once for each table about which something is to be said or written; removed ones first.
 * False: nothing differs. */
bool spate_survey_judge(const struct spate_survey *known, const struct spate_survey *now,
                        const struct spate_survey_rules *rules,
                        void (*tell)(void *arg, const struct spate_survey_finding *finding), void *arg);

/* For building one by hand: takes all (tests, and spate_survey_recall). Sorts tables by oid. */
void spate_survey_seal(struct spate_survey *survey);
struct spate_survey_columns *spate_survey_columns_new(const struct spate_survey_column *columns,
                                                      size_t count);
struct spate_survey_columns *spate_survey_columns_hold(struct spate_survey_columns *columns);
void spate_survey_columns_drop(struct spate_survey_columns *columns); /* accepts NULL */
uint64_t spate_survey_hash(const char *name);
/* Of the first `count` lines; *all of them there are. */
uint64_t spate_survey_labels(const char *labels, uint32_t count, uint32_t *all);

#endif
