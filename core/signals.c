#include "core/signals.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static atomic_int stop_asked;
static int stop_fd = -1;

/* Async-signal-safe: an atomic and write(2). */
static void on_signal(int number)
{
    if (atomic_exchange(&stop_asked, 1))
        _exit(128 + number);
    spate_signals_request();
}

void spate_signals_init(void)
{
    struct sigaction act;

    stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    memset(&act, 0, sizeof act);
    act.sa_handler = on_signal;
    sigemptyset(&act.sa_mask);
    act.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    act.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &act, NULL);
}

int spate_signals_fd(void)
{
    return stop_fd;
}

bool spate_signals_stop(void)
{
    return atomic_load_explicit(&stop_asked, memory_order_relaxed) != 0;
}

void spate_signals_request(void)
{
    static const unsigned long long one = 1;

    atomic_store(&stop_asked, 1);
    if (stop_fd >= 0 && write(stop_fd, &one, sizeof one) < 0)
        return; /* full counter: readable already */
}
