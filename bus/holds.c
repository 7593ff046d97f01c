/* bus/holds.c - what is held of a connector's stream, on the bus that a configuration means. */
#include "bus/open.h"

#include "bus/local/local.h"
#include "bus/local/look.h"

void spate_bus_look_holds(const struct spate_bus_config *config, const char *connector,
                          struct spate_bus_holds *holds)
{
    const struct spate_local_place place = {.path = config->local_path, .hot = config->local_hot};
    struct spate_err ignored = {.verdict = SPATE_RETRY};
    char topic[256];

    *holds =
        (struct spate_bus_holds){.readers = -1, .holders = -1, .bytes = -1, .limit_bytes = -1, .age_us = -1};
    if (config->local_path && spate_topic_escape(connector, topic, sizeof topic, &ignored) == SPATE_OK)
        spate_local_look_holds(&place, topic, holds);
}
