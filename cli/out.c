/* cli/out.c - writes to standard output without being held by it. */
#include "cli/out.h"

#include "core/signals.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CHUNK 4096 /* PIPE_BUF: what a pipe that polls writable takes without blocking */

bool spate_cli_out_over(const struct spate_cli_out *out)
{
    return out->gone || spate_signals_stop();
}

/* Waits for standard output, so that a stop also ends a command whose reader sleeps. */
static bool writable(struct spate_cli_out *out, int timeout_ms)
{
    struct pollfd fds[2] = {{.fd = STDOUT_FILENO, .events = timeout_ms ? POLLOUT : 0},
                            {.fd = spate_signals_fd(), .events = POLLIN}};

    if (poll(fds, 2, timeout_ms) <= 0)
        return false;
    if (fds[0].revents & POLLERR)
        out->gone = true;
    return (fds[0].revents & (POLLOUT | POLLNVAL)) != 0;
}

void spate_cli_out_glance(struct spate_cli_out *out)
{
    writable(out, 0);
}

enum spate_exit spate_cli_out_flush(struct spate_cli_out *out)
{
    size_t at = 0;

    while (at < out->buf.len && !spate_cli_out_over(out)) {
        size_t len = out->buf.len - at < CHUNK ? out->buf.len - at : CHUNK;
        ssize_t wrote;

        if (!writable(out, 1000))
            continue;
        wrote = write(STDOUT_FILENO, out->buf.data + at, len);
        if (wrote < 0 && errno == EPIPE) {
            out->gone = true;
        } else if (wrote < 0 && errno != EINTR && errno != EAGAIN) {
            fprintf(stderr, "spate: cannot write to standard output: %s\n", strerror(errno));
            return SPATE_EXIT_FAILED;
        }
        at += wrote > 0 ? (size_t)wrote : 0;
    }
    spate_buf_reset(&out->buf);
    return SPATE_EXIT_OK;
}
