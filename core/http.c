/* core/http.c - libmicrohttpd behind a listening socket of our own, so that what went wrong has a name. */
#include "core/http.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS    32          /* at once; more wait in the kernel's queue */
#define CONNECTION_MEM (16 * 1024) /* of one: a request line and headers fit many times */
#define IDLE_S         10          /* a connection that says nothing is closed */
#define RETRY_MS       2000
#define BACKLOG        16
#define THREAD_STACK   (256 * 1024)

struct spate_http {
    char *listen; /* as configured */
    struct sockaddr_storage address;
    socklen_t address_len;
    const struct spate_http_page *pages;
    size_t count;
    void *arg;
    struct MHD_Daemon *daemon;
    pthread_t waiter; /* while the address is taken */
    bool waiting;
    int stop_fd;
};

/* ---- where ---- */

static enum spate_rc bad_address(const char *listen, struct spate_err *err)
{
    err->exit_code = SPATE_EXIT_CONFIG;
    return spate_fail(err, SPATE_FATAL,
                      "status.listen: \"%.100s\" is no address to listen on; write a port (9187: on this "
                      "machine only), 127.0.0.1:9187, [::1]:9187, or 0.0.0.0:9187 for every interface",
                      listen);
}

/* Splits at the last colon outside brackets and lets the resolver read the numbers. */
static bool resolve(const char *listen, struct sockaddr_storage *address, socklen_t *len)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    const char *colon = strrchr(listen, ':'), *port = colon ? colon + 1 : listen;
    char host[64] = "127.0.0.1", *name = host;

    if (colon && snprintf(host, sizeof host, "%.*s", (int)(colon - listen), listen) >= (int)sizeof host)
        return false;
    if (strcmp(host, "localhost") == 0)
        strcpy(host, "127.0.0.1");
    if (name[0] == '[' && name[strlen(name) - 1] == ']') {
        name[strlen(name) - 1] = '\0';
        name++;
    } else if (strchr(name, ':')) {
        return false; /* an IPv6 address without brackets: which part is the port? */
    }
    if (!*name || !*port || strlen(port) > 5 || port[strspn(port, "0123456789")] || atoi(port) > 65535 ||
        getaddrinfo(name, port, &hints, &found) != 0)
        return false;
    memcpy(address, found->ai_addr, found->ai_addrlen);
    *len = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

enum spate_rc spate_http_check(const char *listen, struct spate_err *err)
{
    struct sockaddr_storage address;
    socklen_t len;

    return resolve(listen, &address, &len) ? SPATE_OK : bad_address(listen, err);
}

static bool is_loopback(const struct sockaddr_storage *address)
{
    if (address->ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
}

/* ---- answers ---- */

static enum MHD_Result send_body(struct MHD_Connection *connection, unsigned code, const char *type,
                                 struct spate_buf *body)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_COPY);
    enum MHD_Result result = MHD_NO;

    spate_buf_fini(body);
    if (!response)
        return MHD_NO; /* the connection is closed; nothing else suffers */
    if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES &&
        MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store") == MHD_YES &&
        MHD_add_response_header(response, "X-Content-Type-Options", "nosniff") == MHD_YES &&
        (code != MHD_HTTP_METHOD_NOT_ALLOWED ||
         MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD") == MHD_YES))
        result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static void index_page(const struct spate_http *http, struct spate_buf *body)
{
    for (size_t i = 0; i < http->count; i++)
        spate_buf_printf(body, "%-14s %s\n", http->pages[i].path, http->pages[i].about);
}

static enum MHD_Result answer(void *arg, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **seen)
{
    static const char plain[] = "text/plain; charset=utf-8";
    const struct spate_http *http = arg;
    struct spate_buf body = {0};
    bool root = strcmp(url, "/") == 0;

    (void)version, (void)upload;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        if (*upload_size) { /* a body that nobody wants */
            *upload_size = 0;
            return MHD_YES;
        }
        spate_buf_puts(&body, "These pages are for looking: GET or HEAD.\n");
        return send_body(connection, MHD_HTTP_METHOD_NOT_ALLOWED, plain, &body);
    }
    if (!*seen) { /* the headers are here; MHD wants to be asked once more before it is answered */
        *seen = (void *)(uintptr_t)http;
        return MHD_YES;
    }
    for (size_t i = 0; i < http->count; i++)
        if (strcmp(url, http->pages[i].path) == 0) {
            unsigned code = http->pages[i].write(http->arg, &body);

            return send_body(connection, code, http->pages[i].type, &body);
        }
    if (!root)
        spate_buf_puts(&body, "There is no such page. There are:\n");
    index_page(http, &body);
    return send_body(connection, root ? MHD_HTTP_OK : MHD_HTTP_NOT_FOUND, plain, &body);
}

/* ---- listening ---- */

static int listen_socket(const struct spate_http *http)
{
    int one = 1, why;
    int fd = socket(http->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        bind(fd, (const struct sockaddr *)&http->address, http->address_len) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    why = errno;
    close(fd);
    errno = why;
    return -1;
}

static void bound_to(int fd, char *out, size_t size)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    char host[64] = "?", port[8] = "?";

    if (getsockname(fd, (struct sockaddr *)&address, &len) == 0)
        getnameinfo((struct sockaddr *)&address, len, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static void tell(const struct spate_http *http, int fd)
{
    char where[80];

    bound_to(fd, where, sizeof where);
    if (is_loopback(&http->address))
        spate_log(SPATE_LOG_INFO, "status-listening", "address=%s", where);
    else
        spate_log(SPATE_LOG_WARN, "status-listening",
                  "address=%s detail=\"not loopback: whoever reaches this address can read how this process "
                  "is doing, without a password; names and positions, no rows and no secrets\"",
                  where);
}

static bool start(struct spate_http *http)
{
    unsigned flags = MHD_USE_AUTO_INTERNAL_THREAD | (http->address.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0u);
    int fd = listen_socket(http);

    if (fd < 0)
        return false;
    http->daemon = MHD_start_daemon(flags, 0, NULL, NULL, answer, http, MHD_OPTION_LISTEN_SOCKET, fd,
                                    MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                                    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEM,
                                    MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                                    MHD_OPTION_THREAD_STACK_SIZE, (size_t)THREAD_STACK, MHD_OPTION_END);
    if (!http->daemon) {
        close(fd);
        errno = ENOMEM;
        return false;
    }
    tell(http, fd);
    return true;
}

static void tell_failed(const struct spate_http *http, int why)
{
    spate_log(SPATE_LOG_WARN, "status-unavailable",
              "listen=%s detail=\"cannot listen there: %s%s; it is tried again every %d s, and all else goes "
              "on\"",
              http->listen, strerror(why),
              why == EADDRINUSE ? " (another process has the port: give each process its own status.listen)"
              : why == EADDRNOTAVAIL ? " (no interface of this machine has that address)"
                                     : "",
              RETRY_MS / 1000);
}

static void *wait_for_address(void *arg)
{
    struct spate_http *http = arg;
    struct pollfd stop = {.fd = http->stop_fd, .events = POLLIN};

    while (poll(&stop, 1, RETRY_MS) <= 0)
        if (start(http))
            break;
    return NULL;
}

struct spate_http *spate_http_open(const char *listen, const struct spate_http_page *pages, size_t count,
                                   void *arg)
{
    struct spate_http *http = spate_zalloc(sizeof *http);

    http->listen = spate_strdup(listen);
    http->pages = pages;
    http->count = count;
    http->arg = arg;
    http->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!resolve(listen, &http->address, &http->address_len) || start(http))
        return http;
    tell_failed(http, errno);
    http->waiting = pthread_create(&http->waiter, NULL, wait_for_address, http) == 0;
    return http;
}

void spate_http_close(struct spate_http *http)
{
    static const uint64_t one = 1;

    if (!http)
        return;
    if (http->waiting && write(http->stop_fd, &one, sizeof one) == sizeof one)
        pthread_join(http->waiter, NULL);
    if (http->daemon)
        MHD_stop_daemon(http->daemon);
    if (http->stop_fd >= 0)
        close(http->stop_fd);
    free(http->listen);
    free(http);
}
