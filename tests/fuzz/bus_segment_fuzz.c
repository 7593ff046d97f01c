/* Any bytes in any file of a local bus (L13): segments of both tiers, ctl and bell, bus.meta, the manifest,
 * what a named reader says, a spill file. Readers and writers refuse with words, or go on; they never crash,
 * and hand out nothing from outside of a segment. The input is a list of patches
 * (tests/support/bus_hostile.h). */
#include "core/log.h"
#include "tests/support/bus_hostile.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static struct hostile hostile;

static void clean_up(void)
{
    hostile_fini(&hostile);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
    if (hostile.count == 0) {
        spate_log_level_set(SPATE_LOG_ERROR);
        hostile_init(&hostile);
        atexit(clean_up);
    }
    if (size > 4096)
        return 0;
    hostile_trial(&hostile, data, size);
    if (hostile.violations > 0)
        abort();
    return 0;
}
