/* cli/take.h - a requester without a database: which lines of the stream are the rows that were asked for.
 *
 * The rule for chunks is that of docs/message-format.md, and the one for everything else is sinks/place.h.
 * What is handed out, in its order, is a true picture: a reader that keeps the last line of every key has, at
 * the end, what the source has at that place of the stream. A row that changes meanwhile comes as its change,
 * in its place; where the change lacks values (P94), or where changes are not wanted, its key is put on a
 * list and the row is asked for again. Without this, a row that an update moves between two chunks would be
 * missed (HAZARDS 6.6).
 *
 * Pure: no bus, no clock. Memory: one chunk, and the keys that are to be read again. */
#ifndef SPATE_CLI_TAKE_H
#define SPATE_CLI_TAKE_H

#include "cli/keys.h"
#include "core/arena.h"
#include "schemas/codec.h"
#include "schemas/control.h"
#include "schemas/snapshot.h"
#include "sinks/place.h"

struct spate_take_table {
    char *schema, *name; /* owned */
    uint64_t taken;      /* greatest `no` taken */
    char *resume;        /* owned; its token, or NULL */
    struct spate_keys again;
};

struct spate_take {
    const char *to, *request;        /* who we are, what we asked for; borrowed */
    bool changes;                    /* hand out changes as well; else their rows are read again */
    bool rows;                       /* hand out `after` alone */
    struct spate_take_table *tables; /* owned */
    size_t table_count;
    struct spate_follower follower;
    bool placed;     /* we stand in the stream */
    bool begun;      /* a snapshot-begin of this request was met where we stood */
    bool renew;      /* ask anew, under another id, after spate_take_renew */
    bool ended;      /* ranges-end was met, and all chunks that it counts were taken */
    bool lost;       /* a chunk is missing: ask again from the tokens; whoever does clears it */
    bool hole;       /* records before the one that came last are missing */
    bool reread;     /* keys were answered for; cleared by whoever looks */
    bool dropped;    /* some of them were not, and stay on the list */
    uint64_t count;  /* lines handed out */
    uint64_t chunks; /* taken */
    uint64_t foreign, truncated;
    /* the chunk that is open */
    struct spate_take_table *in; /* NULL: none */
    struct spate_chunk_name chunk;
    uint64_t reads;
    bool by_keys;
    struct spate_buf held, keys, dropped_keys;
    struct spate_arena arena;
};

void spate_take_init(struct spate_take *take, const char *to, const char *request);
void spate_take_add(struct spate_take *take, struct spate_slice schema, struct spate_slice table);
void spate_take_fini(struct spate_take *take);

/* One record of the stream; appends lines that are to be printed, each with its newline. SPATE_FAIL:
 * continuity is broken (FENCED), or the record was written by a newer program; nothing more can be taken. */
SPATE_CHECKED enum spate_rc spate_take_line(struct spate_take *take, struct spate_slice line,
                                            struct spate_buf *out, struct spate_err *err);

/* Forgets what was taken; the place in the stream stays. `request` is to be another one then. */
void spate_take_renew(struct spate_take *take);

/* Everything came, and nothing is to be read again. */
bool spate_take_done(const struct spate_take *take);
/* The first table with keys to be read again, or NULL. */
struct spate_take_table *spate_take_again(const struct spate_take *take);
size_t spate_take_held(const struct spate_take *take); /* bytes of keys */

#endif
