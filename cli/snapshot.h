/* cli/snapshot.h - spate snapshot: asking for the rows that exist now, and watching those who ask.
 *
 * Thread: main. Blocks: in the bus' waits, and while standard output takes nothing; a stop ends both. */
#ifndef SPATE_CLI_SNAPSHOT_H
#define SPATE_CLI_SNAPSHOT_H

#include "cli/book.h"
#include "cli/stream.h"
#include "cli/words.h"

#include <stdint.h>

struct spate_snapshot {
    struct spate_cli_stream stream;
    const char *sink;   /* the sink that is to ask; or NULL */
    const char *name;   /* as whom we ask */
    const char *id;     /* of a request that is there already */
    const char *cancel; /* id of the one to be cancelled */
    char **globs;       /* owned array of borrowed texts */
    size_t glob_count;
    struct spate_words_condition *where; /* owned */
    size_t where_count;
    char **columns; /* owned */
    size_t column_count;
    bool list, all, follow, rows;
    int64_t wait_ms; /* for the first answer */
    char own_name[32], own_id[16];
    const struct spate_cli_text *text;
};

void spate_snapshot_new_id(struct spate_snapshot *snapshot); /* own_id; in place */

/* --- what every way of asking needs (cli/snapshot_ask.c) ---------------------------------------------------
 */

/* The tables that were asked for, from the globs and from what _schemas knows; borrowed from the struct. */
struct spate_snapshot_tables {
    struct spate_control_table *at; /* owned, and so are their names; columns and where are alike in all */
    size_t count;
    bool some; /* a pattern stands for several: those that cannot be read are left out */
    struct spate_slice *columns;
    struct spate_condition *where;
};
enum spate_exit spate_snapshot_resolve(struct spate_snapshot *snapshot, struct spate_snapshot_tables *tables);
void spate_snapshot_table_fini(struct spate_control_table *table);
void spate_snapshot_tables_fini(struct spate_snapshot_tables *tables);

/* `<connector>._control`, read and written. */
struct spate_snapshot_line {
    struct spate_reader *reader;
    struct spate_writer *writer;
    struct spate_book book;
    char topic[SPATE_STREAM_TOPIC + 16];
};
/* Waits up to snapshot->wait_ms for a topic that is not there yet. */
enum spate_exit spate_snapshot_line_open(struct spate_snapshot *snapshot, struct spate_snapshot_line *line,
                                         bool oldest);
/* So that it can be written to as well; waits like _open. */
enum spate_exit spate_snapshot_line_write(struct spate_snapshot *snapshot, struct spate_snapshot_line *line);
void spate_snapshot_line_close(struct spate_snapshot_line *line);
/* Publishes, and waits until it is durable. */
SPATE_CHECKED enum spate_rc spate_snapshot_say(struct spate_snapshot_line *line,
                                               const struct spate_control *control, struct spate_err *err);
/* Reads what there is. `each` (may be NULL) is called for every line of a request, with its raw op. */
typedef void spate_snapshot_heard_fn(void *arg, struct spate_book_entry *entry);
SPATE_CHECKED enum spate_rc spate_snapshot_hear(struct spate_snapshot_line *line,
                                                spate_snapshot_heard_fn *each, void *arg,
                                                struct spate_err *err);

/* "refused: reason. remedy" and so on; the exit code that belongs to a request that is over. */
enum spate_exit spate_snapshot_verdict(const struct spate_book_entry *entry);
/* Nobody answered within the time: says who should have. */
enum spate_exit spate_snapshot_silence(const struct spate_snapshot *snapshot,
                                       const struct spate_book_entry *entry);

/* One line on stderr: rewritten where that is a terminal, else one for each change. */
struct spate_snapshot_progress {
    char last[256];
    bool open; /* the cursor stands behind a line of ours */
    int64_t shown_ms;
};
void spate_snapshot_progress_show(struct spate_snapshot_progress *progress,
                                  const struct spate_book_entry *entry);
void spate_snapshot_progress_end(struct spate_snapshot_progress *progress);

/* --- the ways (snapshot_watch.c, snapshot_print.c)
 * ----------------------------------------------------------- */

enum spate_exit spate_snapshot_list(struct spate_snapshot *snapshot);
enum spate_exit spate_snapshot_follow(struct spate_snapshot *snapshot);
enum spate_exit spate_snapshot_cancel(struct spate_snapshot *snapshot);
enum spate_exit spate_snapshot_for_sink(struct spate_snapshot *snapshot);
enum spate_exit spate_snapshot_print(struct spate_snapshot *snapshot);

#endif
