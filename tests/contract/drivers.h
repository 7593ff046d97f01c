/* tests/contract/drivers.h - every bus driver that the contract suite runs over. */
#ifndef SPATE_TESTS_CONTRACT_DRIVERS_H
#define SPATE_TESTS_CONTRACT_DRIVERS_H

#include "bus/bus.h"

#include <stdbool.h>

struct spate_test_driver {
    const char *name;
    bool owns; /* a second writer of a topic is refused */
    /* How a bus behind a network differs. */
    bool distant;   /* what publish took is visible once it is acknowledged, not at once */
    bool own_clock; /* a message's time is the bus' own, not its record's */
    bool all_kept;  /* a volatile topic is as durable as any other, so readers cannot tell it */
    /* A new, empty bus with small segments, and another handle to the same bus; each is closed by the test.
     */
    void *(*make)(void);
    struct spate_bus *(*open)(void *made);
    void (*destroy)(void *made);
    /* What this bus' topics begin with, where one bus serves many tests. NULL: nothing. */
    const char *(*prefix)(void *made);
};

extern const struct spate_test_driver spate_test_drivers[];
extern const size_t spate_test_driver_count;

#endif
