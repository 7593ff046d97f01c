/* connector/ledger.c - a ring of ends, and the one LSN that may be said. */
#include "connector/ledger.h"

#include "core/alloc.h"

#include <inttypes.h>
#include <stdlib.h>

#define HI(lsn) (uint32_t)((lsn) >> 32), (uint32_t)(lsn)

void spate_ledger_init(struct spate_ledger *ledger, size_t cap)
{
    uint64_t size = 1;

    while (size < cap)
        size *= 2;
    *ledger = (struct spate_ledger){.cap = size, .first = 1, .next = 1}; /* 0 means "no token" to the bus */
    ledger->ends = spate_zalloc(size * sizeof *ledger->ends);
}

void spate_ledger_fini(struct spate_ledger *ledger)
{
    free(ledger->ends);
    ledger->ends = NULL;
}

void spate_ledger_start(struct spate_ledger *ledger, uint64_t confirmed_lsn)
{
    ledger->first = ledger->next;
    ledger->published = ledger->confirmed = ledger->received = confirmed_lsn;
}

void spate_ledger_received(struct spate_ledger *ledger, uint64_t lsn)
{
    if (lsn > ledger->received)
        ledger->received = lsn;
}

/* P12: the server stores any LSN it is told, even one beyond the end of its WAL, and then silently skips
 * what comes. So the check stands here, where an end enters, and not where it leaves. */
static enum spate_rc check_end(const struct spate_ledger *ledger, uint64_t end, struct spate_err *err)
{
    if (end > ledger->received) {
        err->lsn = end;
        return spate_fail(err, SPATE_FATAL,
                          "the end %X/%X was never received on this connection (greatest received: %X/%X); "
                          "nothing was confirmed",
                          HI(end), HI(ledger->received));
    }
    if (end < ledger->published) {
        err->lsn = end;
        return spate_fail(err, SPATE_FATAL,
                          "the end %X/%X comes after %X/%X: the source's commit order went back; nothing "
                          "was confirmed",
                          HI(end), HI(ledger->published));
    }
    return SPATE_OK;
}

enum spate_rc spate_ledger_add(struct spate_ledger *ledger, uint64_t end, uint64_t *token,
                               struct spate_err *err)
{
    if (check_end(ledger, end, err))
        return SPATE_FAIL;
    if (spate_ledger_full(ledger))
        return spate_fail(err, SPATE_FATAL, "the ledger is full (%" PRIu64 " unconfirmed messages)",
                          ledger->cap);
    *token = ledger->next++;
    ledger->ends[*token & (ledger->cap - 1)] = end;
    ledger->published = end;
    return SPATE_OK;
}

void spate_ledger_durable(struct spate_ledger *ledger, uint64_t token)
{
    /* Acknowledgements come in the order of publishing, so one token stands for all before it. A token from
     * before spate_ledger_start is below first; one that was never handed out can only be a driver's bug, and
     * confirming for it would lose data: both are ignored. */
    if (token < ledger->first || token >= ledger->next)
        return;
    ledger->confirmed = ledger->ends[token & (ledger->cap - 1)];
    ledger->first = token + 1;
}

enum spate_rc spate_ledger_found(struct spate_ledger *ledger, uint64_t end, struct spate_err *err)
{
    if (check_end(ledger, end, err))
        return SPATE_FAIL;
    ledger->published = end;
    /* Only behind nothing: what is still out stands before it in the stream. */
    if (spate_ledger_idle(ledger))
        ledger->confirmed = end;
    return SPATE_OK;
}
