/* tests/contract/drivers.h - every bus driver that the contract suite runs over. */
#ifndef SPATE_TESTS_CONTRACT_DRIVERS_H
#define SPATE_TESTS_CONTRACT_DRIVERS_H

#include "bus/bus.h"

#include <stdbool.h>

struct spate_test_driver {
    const char *name;
    bool owns; /* a second writer of a topic is refused */
    /* A new, empty bus with small segments, and another handle to the same bus; each is closed by the test.
     */
    void *(*make)(void);
    struct spate_bus *(*open)(void *made);
    void (*destroy)(void *made);
};

extern const struct spate_test_driver spate_test_drivers[];
extern const size_t spate_test_driver_count;

#endif
