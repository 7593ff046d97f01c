/* tests/lab/lab.h - a crowd on one topic of the local bus: writers that are killed and frozen and begin anew,
 * readers that check every record, and what came of it.
 *
 * A record says who wrote it and as which of its records, and its bytes follow from that. A writer notes what
 * it is about to publish and what publish() took in memory that outlives it, so that a reader knows of each
 * number whether it has to come (taken), may come (its writer was killed in between) or must not come again.
 *
 * Processes, or threads where a race detector watches (there nobody is killed: they dawdle). Links the bus of
 * libbuslab.a: with failpoints, and with rules that can be taken away (bus/local/broken.h). */
#ifndef SPATE_TESTS_LAB_LAB_H
#define SPATE_TESTS_LAB_LAB_H

#include "bus/bus.h"
#include "core/failpoint.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    LAB_WRITERS = 16,
    LAB_READERS = 40,
    LAB_UNKNOWN = 4096,
    LAB_MOST = 1800,
    LAB_LEAST = 24,
    LAB_LARGE = 300000
};

struct lab_plan {
    uint64_t seed;
    const char *path, *hot; /* directories of this run */
    uint64_t cap;           /* of a segment; 0: 1 MiB */
    unsigned flags;         /* of the topic, without CREATE */
    int writers, readers;
    int kills, freezes;        /* the crowd goes on until there were so many of each */
    uint64_t rolls;            /* and so many segments filled */
    const char *const *points; /* where faults hit, by failpoint; ends with NULL. NULL: lab_points_publish */
    int freeze_ms;             /* the longest freeze; 0: 12 */
    int free_ms, claim_ms;     /* patience of a repair; 0: the bus' own, -1: none */
    int batch;                 /* most records of one call; 0: 6 */
    int patience_ms;           /* without news a reader or a writer gives up; 0: 20000 */
    bool large;                /* now and then a value that no segment takes: it has a file of its own */
    bool paced;   /* writers pause at random, readers sleep ten seconds: no wake-up may be lost */
    bool threads; /* instead of processes */
    bool mute;    /* of a control: what went wrong is not printed */
};

/* Where a publisher can be met, where a roll can, and where the steward can. */
extern const char *const lab_points_publish[], *const lab_points_roll[], *const lab_points_large[],
                                                                             *const lab_points_all[];

struct lab_outcome {
    uint64_t wrong;     /* findings; 0: all is well */
    char what[256];     /* the first of them */
    int kills, freezes; /* that hit */
    uint64_t published; /* records that publish() took */
    uint64_t delivered; /* by all readers together */
    uint64_t unknown;   /* records whose writer died between the commit and its own note */
    uint64_t rolls;
    uint64_t pads, fences;         /* the bus' own count */
    int64_t block_us;              /* longest that a reader was kept from a record that had been taken */
    uint64_t hits[SPATE_FP_COUNT]; /* faults by place */
};

/* Runs the plan; blocks until it is over. Makes and leaves files below plan->path and plan->hot alone. */
void lab_run(const struct lab_plan *plan, struct lab_outcome *out);
/* One line on stdout, and one more with places of faults. */
void lab_print(const char *title, const struct lab_plan *plan, const struct lab_outcome *out);

/* SEED, else the time; a number of the environment, else `otherwise`. */
uint64_t lab_seed(void);
long lab_number(const char *name, long otherwise);
uint64_t lab_random(uint64_t *state);

/* Makes both directories of a run, and removes them. */
void lab_directories(struct lab_plan *plan, char path[128], char hot[128]);
void lab_remove(const struct lab_plan *plan);

/* --- between the files of tests/lab */

struct lab_writer {
    _Alignas(128) _Atomic uint64_t tried; /* the last number that publish() was offered */
    _Atomic uint64_t taken;               /* the last one that it took */
    _Atomic uint64_t acked;               /* the last one that is durable */
    _Atomic uint64_t bytes;               /* of the log, of what was taken */
    _Atomic uint64_t count;
    _Atomic uint64_t freeze_us; /* how long the freeze is to last that it is about to enter */
    _Atomic int frozen;
    _Atomic uint32_t unknowns; /* of what follows, are filled */
    struct {
        uint64_t first, last;
    } unknown[LAB_UNKNOWN];
};

struct lab_reader {
    _Alignas(128) _Atomic uint64_t count, hash, ready;
    _Atomic uint64_t seen[LAB_WRITERS + 1]; /* the last number of each writer */
    _Atomic int64_t block_us;
};

struct lab_board {
    _Atomic int stop;    /* writers end; no more faults */
    _Atomic int abandon; /* everybody ends at once */
    _Atomic int claimed; /* the first finding has an author */
    _Atomic uint64_t wrong, end;
    _Atomic int freezes;
    _Atomic uint64_t hits[SPATE_FP_COUNT];
    char what[256];
    struct lab_writer writers[LAB_WRITERS + 1]; /* the last one says that all is said */
    struct lab_reader readers[LAB_READERS];
};

struct lab {
    const struct lab_plan *plan;
    struct lab_board *board;
};

void lab_wrong(struct lab *lab, const char *format, ...) __attribute__((format(printf, 2, 3)));
void lab_write(struct lab *lab, int who, uint64_t seed); /* until board->stop */
void lab_close_log(struct lab *lab);                     /* the last record */
void lab_read(struct lab *lab, int who);                 /* until the last record */
void lab_arm(struct lab *lab, int who, uint64_t seed);   /* faults of this process, at its failpoints */
void lab_disarm(void);

#endif
