/* bus/local/look.h - what there is of a topic, for people who ask.
 *
 * It only looks: it takes no lock, rings no bell, makes nothing, and reads files with pread(2), so that
 * whoever writes meanwhile does not notice, and a file that is cut or removed under it is an answer and no
 * signal. What it says was true at some moment of the look, each figure at its own.
 *
 * Thread: any, one at a time. Blocks: reads the directory, of each segment the header; _walk reads a segment.
 */
#ifndef SPATE_BUS_LOCAL_LOOK_H
#define SPATE_BUS_LOCAL_LOOK_H

#include "bus/local/layout.h"
#include "bus/local/lock.h"
#include "bus/local/segment.h"
#include "bus/local/spill.h"
#include "bus/local/topic.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_local_seen_segment {
    uint64_t base;
    bool hot, archived;     /* where its file is; in both while it is being archived */
    uint64_t hot_bytes;     /* what the files take of shared memory ... */
    uint64_t archive_bytes; /* ... and of the disk */
    uint64_t used;          /* bytes of records that were taken in it, at most cap */
    uint64_t indices;       /* records at most: a fenced claim burns indices */
    bool sealed;            /* nobody writes it any more: `indices` is final */
    int64_t created_us;     /* wall clock */
    bool cut;               /* its file in shared memory is shorter than it was made */
    bool good;              /* one of its files has a header that is one */
};

struct spate_local_seen_writer {
    unsigned slot; /* 0: the owner of a topic with one writer */
    char who[SPATE_LOCAL_OWNER];
};

struct spate_local_seen {
    struct spate_local_topic topic;  /* durable_fd and manifest; hot_fd, where shared memory has the topic */
    struct spate_local_ctl ctl;      /* a copy */
    bool hot;                        /* the hot tier is valid, and ctl says something */
    bool shared;                     /* many writers */
    char steward[SPATE_LOCAL_OWNER]; /* who archives, repairs and removes now; empty: nobody */
    uint64_t first, durable,
        tip; /* of what can be read; without a hot tier durable and tip are the archive's */
    struct spate_local_seen_segment *segments; /* owned; by base, rising */
    size_t segment_count;
    uint64_t hot_bytes, archive_bytes; /* of all files, spill files among them */
    uint64_t spills, spill_bytes;
    struct spate_local_seen_writer *writers; /* owned; those that live */
    size_t writer_count;
};

/* SPATE_END: no such topic. On any result it may, and has to, be finished. */
SPATE_CHECKED enum spate_rc spate_local_look(struct spate_local_seen *seen,
                                             const struct spate_local_place *place, const char *topic,
                                             struct spate_err *err);
/* The manifest and ctl alone. */
SPATE_CHECKED enum spate_rc spate_local_look_page(struct spate_local_seen *seen,
                                                  const struct spate_local_place *place, const char *topic,
                                                  struct spate_err *err);
void spate_local_look_fini(struct spate_local_seen *seen);
/* How far the log is durable by now; what the look saw where that cannot be told. */
uint64_t spate_local_look_durable(const struct spate_local_seen *seen);

/* The header of the record that stands at `pos`, or of the next one behind what is padded there: *at says
 * where. SPATE_END: there is none (yet). SPATE_FAIL: the position is no record's, or what stands there is
 * damaged. */
SPATE_CHECKED enum spate_rc spate_local_look_at(const struct spate_local_seen *seen, uint64_t pos,
                                                struct spate_local_record *header, uint64_t *at,
                                                struct spate_err *err);
/* What the record says of the file that has its value; false: it has its value itself, or cannot be read now.
 */
bool spate_local_look_spilled(const struct spate_local_seen *seen, uint64_t pos,
                              const struct spate_local_record *header, struct spate_local_spill_ref *ref);
/* How many records lie from `pos` up to `end`, at most. -1: that cannot be told. */
int64_t spate_local_look_between(const struct spate_local_seen *seen, uint64_t pos, uint64_t end);

struct spate_bus_holds;
/* The named readers of a topic, and how near they bring it to its limit (bus/open.h). It looks at no segment
 * but the one that is held. */
void spate_local_look_holds(const struct spate_local_place *place, const char *topic,
                            struct spate_bus_holds *holds);

/* What a walk through one file of a segment finds. */
struct spate_local_walk {
    uint64_t indices;                       /* the last record's, and one */
    uint64_t records, keyed, spills, bytes; /* bytes: key and value of the records in the segment itself */
    uint64_t pads, pad_bytes;
    uint64_t first_ns, last_ns; /* lowest and highest time of the records */
    uint64_t upto;              /* offset where it ended */
    enum { SPATE_LOCAL_WALK_OPEN, SPATE_LOCAL_WALK_ENDED, SPATE_LOCAL_WALK_DAMAGED } end;
    uint64_t next;    /* where the log goes on after an END, or a full segment */
    char damage[240]; /* what is wrong at `upto` */
};

/* Reads the segment's file in shared memory, or in the archive; with `crc` every byte of it, spill files
 * too. SPATE_END: the file is gone. */
SPATE_CHECKED enum spate_rc spate_local_look_walk(const struct spate_local_seen *seen, uint64_t base,
                                                  bool archived, bool crc, struct spate_local_walk *walk,
                                                  struct spate_err *err);

#endif
