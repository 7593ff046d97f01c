/* bus/local/aid.h - repairing without being the steward.
 *
 * The one that works may be frozen itself (SIGSTOP), and then nothing becomes durable. Readers of the tip
 * need not wait for it, though: a repair needs no lock, so the stewards of other writers walk the log from
 * where it stands still, and pad over what blocks it (LOCALBUS 4.4: whoever may write the topic).
 * Thread: the steward's. Blocks: never. */
#ifndef SPATE_BUS_LOCAL_AID_H
#define SPATE_BUS_LOCAL_AID_H

#include "bus/local/repair.h"

struct spate_local_aid {
    struct spate_local_segment seg; /* the one that holds pos; none while seg.at is NULL */
    uint64_t pos;                   /* all before is final */
};

/* Goes from `reached` on as far as all is final, and looks at what is not. SPATE_OK: all is final.
 * SPATE_AGAIN: something is open, and it is not yet time. */
SPATE_CHECKED enum spate_rc spate_local_aid(struct spate_local_aid *aid,
                                            const struct spate_local_topic *topic,
                                            struct spate_local_repair *repair, uint64_t reached,
                                            struct spate_err *err);
void spate_local_aid_fini(struct spate_local_aid *aid);

#endif
