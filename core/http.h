/* core/http.h - a few pages for whoever looks at a running process: GET and HEAD, nothing else.
 *
 * No authentication and no TLS: what is served holds no secret and no row value, and it is served on loopback
 * unless the configuration names another address. Connections, their memory and their time are bounded.
 *
 * Thread: pages are written by the server's own thread; opening and closing belong to one thread.
 * Blocks: spate_http_close, until the page that is being written is done. */
#ifndef SPATE_CORE_HTTP_H
#define SPATE_CORE_HTTP_H

#include "core/buf.h"
#include "core/err.h"

#include <stddef.h>

struct spate_http;

struct spate_http_page {
    const char *path;                                     /* "/status" */
    const char *type;                                     /* of its content */
    unsigned (*write)(void *arg, struct spate_buf *body); /* appends the body; returns the status code */
    const char *about;                                    /* one line for the index, which is at "/" */
};

/* "9187" (loopback), "127.0.0.1:9187", "localhost:9187", "[::1]:9187"; port 0: any that is free, which is
 * logged. SPATE_FAIL (fatal, CONFIG): it is none of these. */
SPATE_CHECKED enum spate_rc spate_http_check(const char *listen, struct spate_err *err);

/* Never fails: looking is not what the process is for. An address that is taken is told and tried again every
 * few seconds, since the process that this one replaces may still have it. `listen` has passed the check and
 * is copied; pages and arg outlive the server. */
struct spate_http *spate_http_open(const char *listen, const struct spate_http_page *pages, size_t count,
                                   void *arg);
void spate_http_close(struct spate_http *http); /* accepts NULL */

#endif
