/* cli/book.h - the requests that `<connector>._control` tells of, as its lines are read one after the other.
 *
 * Pure: no bus, no clock. A line that cannot be read is counted and passed by: anybody may write there. */
#ifndef SPATE_CLI_BOOK_H
#define SPATE_CLI_BOOK_H

#include "core/arena.h"
#include "core/buf.h"
#include "schemas/control.h"

#define SPATE_BOOK_NAME  64
#define SPATE_BOOK_STATE 16

struct spate_book_entry {
    char request[SPATE_BOOK_NAME];
    char requester[SPATE_BOOK_NAME]; /* who asked, and gets the rows; of a wish for a sink: the sink */
    char asker[SPATE_BOOK_NAME];     /* who wished that a sink asks; else empty */
    char state[SPATE_BOOK_STATE];    /* asked, accepted, refused, cancelled, finished, or as progress says */
    bool answered, over;             /* a connector (or the sink) said something; nothing more will come */
    bool asked_by_requester;         /* the requester's own request was seen */
    bool settled;                    /* over, and the connector said so itself */
    uint64_t rows, estimate;
    double percent, rate;
    int64_t left_s;             /* -1: unknown */
    int64_t asked_us, heard_us; /* wall clock of the first and the last line about it */
    size_t table_count;
    char *tables;                /* owned; their names */
    char *why, *reason, *remedy; /* owned; may be NULL */
};

struct spate_book {
    struct spate_book_entry **entries; /* owned; pointers stay valid */
    size_t count;
    uint64_t unreadable;
    uint64_t starts;    /* how often a connector said that it started */
    int64_t started_us; /* when it said so last */
    struct spate_arena arena;
};

void spate_book_fini(struct spate_book *book);
/* Returns what the line was about, or NULL: nothing of a request, or no message of ours. `wall_us` is used
 * where the line has no `ts`. */
struct spate_book_entry *spate_book_read(struct spate_book *book, struct spate_slice line, int64_t wall_us);
struct spate_book_entry *spate_book_find(const struct spate_book *book, const char *request);

/* Requests that nobody answered within an hour are over: no connector takes them up any more. So are those
 * that were under way when the connector started again, and that nobody asked for since: it knows nothing of
 * them. */
void spate_book_settle(struct spate_book *book, int64_t now_us);

/* Something is said of every request under way at least every ten seconds: silence is worth a word. */
#define SPATE_BOOK_SILENT_US INT64_C(20000000)
bool spate_book_silent(const struct spate_book_entry *entry, int64_t now_us);

/* "reading 1200 of about 50000 rows, 2.4 %, 800 rows/s, 61 s left" */
void spate_book_describe(const struct spate_book_entry *entry, struct spate_buf *out);

#endif
