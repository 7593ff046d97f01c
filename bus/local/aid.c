/* bus/local/aid.c - a walk along the tip of a log. */
#include "bus/local/aid.h"

/* Maps the segment that holds pos. SPATE_END: nothing stands there yet. */
static enum spate_rc enter(struct spate_local_aid *a, const struct spate_local_topic *topic,
                           struct spate_err *err)
{
    const uint64_t cap = topic->manifest.cap, head = atomic_load(&topic->ctl->head);

    if (a->seg.at && a->pos < a->seg.base + cap)
        return SPATE_OK;
    spate_local_segment_unmap(&a->seg);
    if (a->pos >= head + cap)
        return SPATE_END;
    enum spate_rc rc = spate_local_segment_map(topic->hot_fd, spate_local_base_of(a->pos, cap), cap,
                                               SPATE_LOCAL_MAP_WRITE, &a->seg, err);
    if (rc == SPATE_OK && a->seg.base < atomic_load(&topic->ctl->first)) {
        spate_local_segment_unmap(&a->seg); /* made anew by somebody who slept */
        rc = SPATE_END;
    }
    if (rc == SPATE_END && a->pos < head) { /* gone already: all of it was final */
        a->pos = head;
        rc = spate_local_segment_map(topic->hot_fd, head, cap, SPATE_LOCAL_MAP_WRITE, &a->seg, err);
    }
    return rc;
}

enum spate_rc spate_local_aid(struct spate_local_aid *a, const struct spate_local_topic *topic,
                              struct spate_local_repair *repair, uint64_t reached, struct spate_err *err)
{
    uint64_t size;
    uint32_t len;

    if (a->pos < reached) {
        spate_local_aid_fini(a);
        a->pos = reached;
    }
    for (;;) {
        enum spate_rc rc = enter(a, topic, err);
        if (rc != SPATE_OK)
            return rc == SPATE_END ? SPATE_OK : rc;
        const uint64_t offset = a->pos - a->seg.base;
        switch (spate_local_step(spate_local_record_at(&a->seg, offset), a->seg.cap - offset, &size, &len)) {
        case SPATE_LOCAL_STEP_RECORD:
        case SPATE_LOCAL_STEP_PAD:
            a->pos += size;
            spate_local_segment_pass(&a->seg, offset);
            continue;
        case SPATE_LOCAL_STEP_END:
            a->pos = a->seg.base + a->seg.cap;
            continue;
        default:
            break;
        }
        rc = spate_local_repair(repair, &a->seg, offset, topic->ctl, err);
        if (rc != SPATE_OK)
            return rc == SPATE_END ? SPATE_OK : rc;
    }
}

void spate_local_aid_fini(struct spate_local_aid *a)
{
    spate_local_segment_unmap(&a->seg);
    *a = (struct spate_local_aid){.seg = {.fd = -1}};
}
