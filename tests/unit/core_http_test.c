/* The pages: what is answered to whom, a port that is taken, and clients that misbehave. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/http.h"
#include "core/log.h"

#define PATIENCE_MS 20000

static int served;
static char *large;

static unsigned page_hello(void *arg, struct spate_buf *body)
{
    served++;
    spate_buf_puts(body, arg);
    return 200;
}

static unsigned page_unwell(void *arg, struct spate_buf *body)
{
    (void)arg;
    spate_buf_puts(body, "{}");
    return 503;
}

static unsigned page_large(void *arg, struct spate_buf *body)
{
    (void)arg;
    spate_buf_puts(body, large);
    return 200;
}

static const struct spate_http_page pages[] = {
    {"/hello", "text/plain", page_hello, "says hello"},
    {"/unwell", "application/json", page_unwell, "is unwell"},
    {"/large", "text/plain", page_large, "is large"},
};

static int listener(uint16_t *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static int dial(uint16_t port)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Until the server closes or says nothing more for so long. */
static char *read_all(int fd)
{
    struct spate_buf got = {0};
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    char piece[4096];
    ssize_t len;

    while (poll(&readable, 1, PATIENCE_MS) > 0 && (len = read(fd, piece, sizeof piece)) > 0)
        spate_buf_add(&got, piece, (size_t)len);
    spate_buf_str(&got);
    return got.data;
}

static void put(int fd, const char *text)
{
    size_t at = 0, len = strlen(text);

    while (at < len) {
        ssize_t wrote = send(fd, text + at, len - at, MSG_NOSIGNAL);

        if (wrote <= 0)
            return; /* it hung up: what it answered tells why */
        at += (size_t)wrote;
    }
}

static char *ask(uint16_t port, const char *request)
{
    int fd = dial(port);
    char *answer;

    assert_true(fd >= 0);
    put(fd, request);
    answer = read_all(fd);
    close(fd);
    return answer;
}

/* One request on a connection of its own. The answer is freed by the caller. */
static char *request(uint16_t port, const char *method, const char *path)
{
    char text[300];

    snprintf(text, sizeof text, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
    return ask(port, text);
}

static struct spate_http *http;
static uint16_t port;

static int set_up(void **state)
{
    char where[16];
    int fd = listener(&port);

    (void)state;
    close(fd); /* nobody else takes it within a moment */
    served = 0;
    snprintf(where, sizeof where, "%u", port);
    http = spate_http_open(where, pages, SPATE_COUNT(pages), (void *)(uintptr_t) "hello");
    return http ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    spate_http_close(http);
    http = NULL;
    return 0;
}

static void expect(const char *method, const char *path, const char *status, const char *body)
{
    char *answer = request(port, method, path);
    const char *rest = strstr(answer, "\r\n\r\n");

    if (strncmp(answer, status, strlen(status)) != 0 || !rest || strcmp(rest + 4, body) != 0)
        fail_msg("%s %s: %s", method, path, answer);
    free(answer);
}

static void pages_are_answered(void **state)
{
    char *answer;

    (void)state;
    expect("GET", "/hello", "HTTP/1.1 200 ", "hello");
    expect("GET", "/hello?a=b", "HTTP/1.1 200 ", "hello");
    assert_int_equal(served, 2);
    expect("GET", "/unwell", "HTTP/1.1 503 ", "{}");
    expect("HEAD", "/unwell", "HTTP/1.1 503 ", "");
    answer = request(port, "HEAD", "/hello");
    assert_non_null(strstr(answer, "Content-Length: 5\r\n"));
    assert_non_null(strstr(answer, "Content-Type: text/plain\r\n"));
    assert_non_null(strstr(answer, "Cache-Control: no-store\r\n"));
    assert_non_null(strstr(answer, "\r\n\r\n"));
    assert_null(strstr(answer, "hello"));
    free(answer);
    expect("GET", "/", "HTTP/1.1 200 ",
           "/hello         says hello\n/unwell        is unwell\n/large         is large\n");
}

static void anything_else_is_refused(void **state)
{
    static const char *const methods[] = {"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"};
    static const char *const paths[] = {"/nothing", "/hello/", "//hello", "/../etc/passwd", "/%2e%2e/hello"};
    char *answer;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(methods); i++) {
        answer = request(port, methods[i], "/hello");
        assert_int_equal(strncmp(answer, "HTTP/1.1 405 ", 13), 0);
        assert_non_null(strstr(answer, "Allow: GET, HEAD\r\n"));
        free(answer);
    }
    answer =
        ask(port, "POST /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody");
    assert_int_equal(strncmp(answer, "HTTP/1.1 405 ", 13), 0);
    free(answer);
    for (size_t i = 0; i < SPATE_COUNT(paths); i++) {
        answer = request(port, "GET", paths[i]);
        assert_int_equal(strncmp(answer, "HTTP/1.1 404 ", 13), 0);
        assert_non_null(strstr(answer, "/hello         says hello\n"));
        free(answer);
    }
    assert_int_equal(served, 0);
}

static void a_large_page_arrives_whole(void **state)
{
    const size_t len = (size_t)1 << 20;
    char *answer;

    (void)state;
    large = malloc(len + 1);
    assert_non_null(large);
    memset(large, 'x', len);
    large[len] = '\0';
    answer = request(port, "GET", "/large");
    assert_non_null(strstr(answer, "\r\n\r\n"));
    assert_int_equal(strlen(strstr(answer, "\r\n\r\n") + 4), len);
    free(answer);
    free(large);
}

/* A request that never ends, one that is no HTTP, and headers without end: the next one is answered. */
static void clients_that_misbehave_take_nothing(void **state)
{
    struct spate_buf endless = {0};
    int silent[8], half = dial(port);
    char *answer;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(silent); i++)
        silent[i] = dial(port);
    put(half, "GET /hello HT");
    free(ask(port, "\x16\x03\x01 this is no HTTP at all\r\n\r\n"));
    spate_buf_puts(&endless, "GET /hello HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 3000; i++)
        spate_buf_printf(&endless, "X-Header-%d: %050d\r\n", i, i);
    spate_buf_puts(&endless, "\r\n");
    answer = ask(port, spate_buf_str(&endless));
    assert_null(strstr(answer, "200 OK"));
    free(answer);
    spate_buf_fini(&endless);
    expect("GET", "/hello", "HTTP/1.1 200 ", "hello");
    close(half);
    for (size_t i = 0; i < SPATE_COUNT(silent); i++)
        close(silent[i]);
}

/* They are turned away or wait; however many there are, closing the server does not. */
static void more_connections_than_there_is_room_for(void **state)
{
    int fds[44]; /* 32 are served, 17 wait in the kernel; one more would wait for its SYN to be sent again */
    size_t count = 0;

    (void)state;
    while (count < SPATE_COUNT(fds) && (fds[count] = dial(port)) >= 0)
        count++;
    assert_int_equal(count, SPATE_COUNT(fds));
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    expect("GET", "/hello", "HTTP/1.1 200 ", "hello"); /* there is room again */
}

static void a_port_that_is_taken_is_tried_again(void **state)
{
    int64_t until_ms = spate_clock_ms() + PATIENCE_MS;
    uint16_t taken;
    int fd = listener(&taken), client;
    struct spate_http *later;
    char where[32];

    (void)state;
    snprintf(where, sizeof where, "127.0.0.1:%u", taken);
    later = spate_http_open(where, pages, SPATE_COUNT(pages), (void *)(uintptr_t) "later");
    assert_non_null(later);
    close(fd);
    while ((client = dial(taken)) < 0 && spate_clock_ms() < until_ms)
        poll(NULL, 0, 20);
    assert_true(client >= 0);
    close(client);
    port = taken;
    expect("GET", "/hello", "HTTP/1.1 200 ", "later");
    spate_http_close(later);
    assert_int_equal(dial(taken), -1);
}

static void one_that_waits_for_its_port_can_be_closed(void **state)
{
    int64_t began_ms = spate_clock_ms();
    uint16_t taken;
    int fd = listener(&taken);
    char where[32];

    (void)state;
    snprintf(where, sizeof where, "localhost:%u", taken);
    spate_http_close(spate_http_open(where, pages, SPATE_COUNT(pages), NULL));
    assert_true(spate_clock_ms() - began_ms < 1000);
    close(fd);
    spate_http_close(NULL);
}

static void addresses(void **state)
{
    static const char *const right[] = {"9187",           "0",          "127.0.0.1:9187", "0.0.0.0:9187",
                                        "localhost:9187", "[::1]:9187", "[::]:0",         "192.0.2.7:65535"};
    static const char *const wrong[] = {"",
                                        ":",
                                        ":9187",
                                        "127.0.0.1",
                                        "127.0.0.1:",
                                        "::1:9187",
                                        "[::1]",
                                        "[]:1",
                                        "host:9187",
                                        "127.0.0.1:http",
                                        "65536",
                                        "-1",
                                        "1.2.3:x",
                                        "127.0.0.1:+1",
                                        "9187 ",
                                        "127.0.0.1:9187:1",
                                        "999.0.0.1:1",
                                        "123456"};
    struct spate_err err;

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(right); i++) {
        err = (struct spate_err){0};
        if (spate_http_check(right[i], &err) != SPATE_OK)
            fail_msg("%s: %s", right[i], err.text);
    }
    for (size_t i = 0; i < SPATE_COUNT(wrong); i++) {
        err = (struct spate_err){0};
        if (spate_http_check(wrong[i], &err) != SPATE_FAIL)
            fail_msg("%s was taken for an address", wrong[i]);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_non_null(strstr(err.text, "status.listen"));
        assert_non_null(strstr(err.text, wrong[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_are_answered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(anything_else_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_large_page_arrives_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(clients_that_misbehave_take_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(more_connections_than_there_is_room_for, set_up, tear_down),
        cmocka_unit_test(a_port_that_is_taken_is_tried_again),
        cmocka_unit_test(one_that_waits_for_its_port_can_be_closed),
        cmocka_unit_test(addresses),
    };

    spate_log_level_set(SPATE_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
