/* bus/local/broken.h - rules of the bus that a test may take away, to see that it notices.
 *
 * In every build but -DSPATE_CONTROLS the macro is the constant 0. There a test sets spate_broken to one of
 * the names below before it opens anything: its own assertions must fail then.
 *
 * Thread: set before there are threads and processes, read by all. */
#ifndef SPATE_BUS_LOCAL_BROKEN_H
#define SPATE_BUS_LOCAL_BROKEN_H

enum spate_broken {
    SPATE_BROKEN_NOTHING,
    SPATE_BROKEN_PLAIN_COMMIT,  /* L1, L2: the commit is a store, not a compare-and-swap */
    SPATE_BROKEN_PLAIN_CLAIM,   /* L2: so is the claim */
    SPATE_BROKEN_NO_REPAIR,     /* L1: nobody pads what the dead left */
    SPATE_BROKEN_NO_RECHECK,    /* L8: a sleeper does not look again after it said that it waits */
    SPATE_BROKEN_SPIN_COUNT,    /* L9: spinners are counted up and down */
    SPATE_BROKEN_SILENT_GAP,    /* L6: what retention took is passed over without a word */
    SPATE_BROKEN_NO_HOLD,       /* L7: retention takes what a holder needs */
    SPATE_BROKEN_NO_HEAD_CHECK, /* L10: a late segment is used although the head has passed it */
    SPATE_BROKEN_SPARSE,        /* L11: segments are made without their pages */
    SPATE_BROKEN_NO_END,        /* L12: the last bytes of a segment are left as they are */
    SPATE_BROKEN_TRUST_LENGTH,  /* L13: a length is believed */
    SPATE_BROKEN_NO_CUT,        /* L3: a recovery believes what it finds behind the first bad record */
    SPATE_BROKEN_SAME_BASE,     /* L4: a recovery goes on where the log ends, and not at a new base */
    SPATE_BROKEN_KEEP_CLAIM     /* L16: a slot is issued while a claim of its last owner is open */
};

#ifdef SPATE_CONTROLS
extern enum spate_broken spate_broken; /* bus/local/local.c */
#define SPATE_BROKEN(what) (spate_broken == SPATE_BROKEN_##what)
#else
#define SPATE_BROKEN(what) 0
#endif

#endif
