/* bus/local/cursor.h - standing on a record of a log, in shared memory where it still is, else in the
 * archive.
 *
 * A cursor is attached while the hot tier is valid: ctl tells it how far the log is durable. Otherwise (the
 * machine was restarted and no writer has opened the topic since) it reads what the archive holds: it syncs a
 * segment's file before it believes it, and accepts what a recovery would accept. When the generation changes
 * under it, it stands in the old one at the record it stood at, and goes on where the END leads.
 *
 * A position is only ever entered by walking there from the start of its segment, so that one which is no
 * record's is found out, and nothing is read at a place that a length in a file did not lead to.
 * Thread: the reader's. Blocks: a detached cursor waits for the disk when it enters a segment. */
#ifndef SPATE_BUS_LOCAL_CURSOR_H
#define SPATE_BUS_LOCAL_CURSOR_H

#include "bus/bus.h"
#include "bus/local/segment.h"
#include "bus/local/topic.h"

#define SPATE_LOCAL_LOOK_MS 20 /* between two looks at what nobody announces */

struct spate_local_cursor {
    struct spate_local_topic topic;
    enum spate_visibility see;
    struct spate_local_segment seg; /* the one that holds pos; none while it does not exist */
    bool archived;                  /* seg is mapped from the archive */
    bool unsynced;                  /* and was entered without a hot tier: not looked through yet */
    uint64_t pos;                   /* the next record to look at */
    uint64_t limit;                 /* nothing at or beyond is shown now */
    uint64_t target;                /* records below are walked over */
    uint64_t plain;     /* up to here the mapped hot segment may be shown as it is; 0: look first */
    uint64_t gap;       /* of a gap to report: its first position; 0: none */
    int64_t foreign_ms; /* since when a writer lives whose hot tier is not ours; 0: no */
    int64_t looked_ms;  /* when it last looked whether the hot tier came or went */
    int64_t placed_ms;  /* and whether the archive is still in its place */
};

/* Opens the topic and attaches where there is something to attach to. SPATE_END: no such topic. On any result
 * the cursor may, and has to, be finished. */
SPATE_CHECKED enum spate_rc spate_local_cursor_init(struct spate_local_cursor *cursor,
                                                    const struct spate_local_place *place, const char *topic,
                                                    enum spate_visibility see, struct spate_err *err);
void spate_local_cursor_fini(struct spate_local_cursor *cursor);

/* What belongs to the record at pos is gone. SPATE_OK: because retention took it, which is a gap to report
 * now. SPATE_END: nobody took it. */
SPATE_CHECKED enum spate_rc spate_local_cursor_lose(struct spate_local_cursor *cursor, struct spate_err *err);

/* Stands at `target`, which is walked to by the next _find. */
void spate_local_cursor_stand(struct spate_local_cursor *cursor, uint64_t target);

/* Stands on the next record to show: SPATE_OK, or SPATE_OK with cursor->gap set when a gap comes first.
 * SPATE_AGAIN: nothing now. */
SPATE_CHECKED enum spate_rc spate_local_cursor_find(struct spate_local_cursor *cursor,
                                                    struct spate_local_record **record, uint32_t *len,
                                                    struct spate_err *err);

/* The same for what nearly every record is, in a few instructions: it stands at pos, committed, in the hot
 * segment that is mapped. NULL: spate_local_cursor_find knows. */
static inline struct spate_local_record *spate_local_cursor_quick(const struct spate_local_cursor *cursor,
                                                                  uint32_t *len)
{
    if (cursor->pos >= cursor->plain)
        return NULL;
    const uint64_t offset = cursor->pos - cursor->seg.base;
    struct spate_local_record *record = spate_local_record_at(&cursor->seg, offset);
    const uint64_t word = atomic_load_explicit(&record->word, memory_order_acquire);

    *len = spate_local_len_of(word);
    if (spate_local_state_of(word) != SPATE_LOCAL_COMMIT || record->keylen > *len ||
        spate_local_footprint(*len) > cursor->seg.cap - offset || record->type != SPATE_LOCAL_DATA)
        return NULL;
    if (spate_local_record_touch(record, offset, *len) && spate_local_segment_cut(&cursor->seg))
        return NULL;
    return record;
}

/* Looks whether a writer recovered the log, or the shared memory vanished, since the cursor attached.
 * SPATE_OK: so it was, look again. SPATE_AGAIN: no. Looks at most every SPATE_LOCAL_LOOK_MS. */
SPATE_CHECKED enum spate_rc spate_local_cursor_renew(struct spate_local_cursor *cursor,
                                                     struct spate_err *err);

uint64_t spate_local_cursor_first(const struct spate_local_cursor *cursor); /* the oldest kept position */

#endif
