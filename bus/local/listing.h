/* bus/local/listing.h - the names in a directory, without an allocation: stewards look often, and a process
 * may fork beside them.
 *
 * Thread: a listing's owner; any number at once of one directory. Blocks: nothing but the file system. */
#ifndef SPATE_BUS_LOCAL_LISTING_H
#define SPATE_BUS_LOCAL_LISTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spate_local_listing {
    int fd; /* a view of the directory with a place of its own */
    size_t at, have;
    _Alignas(uint64_t) unsigned char bytes[4096];
};

/* false, with errno: the directory cannot be opened. Then there is nothing to close. */
bool spate_local_listing_open(struct spate_local_listing *listing, int dir);
/* The next name but . and .., valid until the next call. NULL: there is none (errno 0), or why it failed. */
const char *spate_local_listing_next(struct spate_local_listing *listing);
void spate_local_listing_close(struct spate_local_listing *listing);

#endif
