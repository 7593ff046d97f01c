/* What pg/ does with a server that is slow, frozen or inquisitive. It is played by a thread on a Unix socket,
 * which serves one connection and then leaves every other waiting, as a stopped postmaster does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "pg/pg.h"

struct server {
    char dir[32], path[64], url[96];
    int listener;
    pthread_t thread;
    bool asks; /* for a password */
    const char *encoding;
    struct spate_buf password; /* what it was given */
};

static bool get(int fd, void *into, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n = read(fd, (char *)into + at, len - at);

        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* One message; the startup packet has no type. False: the client is gone. */
static bool hear(int fd, bool typed, char *type, struct spate_buf *body)
{
    uint32_t len;

    spate_buf_reset(body);
    if ((typed && !get(fd, type, 1)) || !get(fd, &len, 4))
        return false;
    len = ntohl(len) - 4;
    spate_buf_reserve(body, len + 1);
    if (!get(fd, body->data, len))
        return false;
    body->len = len;
    spate_buf_str(body);
    return true;
}

static void say(int fd, char type, const void *body, size_t len)
{
    struct spate_buf out = {0};
    uint32_t size = htonl((uint32_t)len + 4);

    spate_buf_putc(&out, type);
    spate_buf_add(&out, &size, 4);
    spate_buf_add(&out, body, len);
    if (send(fd, out.data, out.len, MSG_NOSIGNAL) < 0)
        out.len = 0; /* the client is gone; the next read says so */
    spate_buf_fini(&out);
}

static void add16(struct spate_buf *out, unsigned value)
{
    uint16_t wire = htons((uint16_t)value);

    spate_buf_add(out, &wire, 2);
}

static void add32(struct spate_buf *out, uint32_t value)
{
    uint32_t wire = htonl(value);

    spate_buf_add(out, &wire, 4);
}

static void say_setting(int fd, const char *name, const char *value)
{
    struct spate_buf body = {0};

    spate_buf_add(&body, name, strlen(name) + 1);
    spate_buf_add(&body, value, strlen(value) + 1);
    say(fd, 'S', body.data, body.len);
    spate_buf_fini(&body);
}

/* Answers "SELECT current_setting('..'), ..": every setting is as it was asked for. */
static void say_settings(int fd, const char *sql)
{
    static const struct {
        const char *name, *value;
    } settings[] = {{"jit", "off"},
                    {"datestyle", "ISO, MDY"},
                    {"intervalstyle", "postgres"},
                    {"extra_float_digits", "3"},
                    {"bytea_output", "hex"},
                    {"timezone", "UTC"},
                    {"lc_monetary", "C"},
                    {"search_path", "pg_catalog"},
                    {"quote_all_identifiers", "off"},
                    {"array_nulls", "on"},
                    {"xmloption", "content"},
                    {"transform_null_equals", "off"},
                    {"exit_on_error", "off"},
                    {"default_transaction_isolation", "read committed"},
                    {"default_transaction_deferrable", "off"},
                    {"standard_conforming_strings", "on"}};
    struct spate_buf names = {0}, values = {0};
    unsigned count = 0;

    for (const char *at = strstr(sql, "('"); at; at = strstr(at + 2, "('"), count++) {
        const char *value = "0"; /* the timeouts, and other numbers */

        for (size_t i = 0; i < SPATE_COUNT(settings); i++)
            if (strncmp(at + 2, settings[i].name, strlen(settings[i].name)) == 0)
                value = settings[i].value;
        spate_buf_add(&names, "x", 2);
        add32(&names, 0);
        add16(&names, 0);
        add32(&names, 25); /* text */
        add16(&names, 0xffff);
        add32(&names, 0xffffffff);
        add16(&names, 0);
        add32(&values, (uint32_t)strlen(value));
        spate_buf_puts(&values, value);
    }
    for (int i = 0; i < 2; i++) {
        struct spate_buf body = {0};

        add16(&body, count);
        spate_buf_slice(&body, spate_buf_view(i ? &values : &names));
        say(fd, i ? 'D' : 'T', body.data, body.len);
        spate_buf_fini(&body);
    }
    say(fd, 'C', "SELECT 1", 9);
    say(fd, 'Z', "I", 1);
    spate_buf_fini(&names);
    spate_buf_fini(&values);
}

static void greet(struct server *server, int fd, struct spate_buf *body)
{
    char type;

    if (server->asks) {
        say(fd, 'R', "\0\0\0\3", 4); /* in clear text */
        if (!hear(fd, true, &type, body))
            return;
        spate_buf_slice(&server->password, spate_buf_view(body));
    }
    say(fd, 'R', "\0\0\0\0", 4);
    say_setting(fd, "server_version", "13.9");
    say_setting(fd, "server_encoding", "UTF8");
    say_setting(fd, "client_encoding", server->encoding);
    say(fd, 'K', "\0\0\0\1\0\0\0\2", 8);
    say(fd, 'Z', "I", 1);
}

static void *serve(void *arg)
{
    struct server *server = arg;
    struct spate_buf body = {0};
    int fd = accept(server->listener, NULL, NULL);
    char type;

    if (fd >= 0 && hear(fd, false, NULL, &body)) {
        greet(server, fd, &body);
        while (hear(fd, true, &type, &body))
            if (strstr(body.data, "current_setting"))
                say_settings(fd, body.data); /* nothing else is ever answered */
    }
    if (fd >= 0)
        close(fd);
    spate_buf_fini(&body);
    return NULL;
}

static void start(struct server *server)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    strcpy(server->dir, "/tmp/spate-pg-XXXXXX");
    assert_non_null(mkdtemp(server->dir));
    snprintf(server->path, sizeof server->path, "%s/.s.PGSQL.5432", server->dir);
    snprintf(server->url, sizeof server->url, "host=%s port=5432 user=u dbname=d", server->dir);
    memcpy(at.sun_path, server->path, strlen(server->path) + 1);
    server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(server->listener, 5), 0);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
}

/* The client must have closed its connection. */
static void stop(struct server *server)
{
    pthread_join(server->thread, NULL);
    close(server->listener); /* whoever still waits to be accepted is told so */
    unlink(server->path);
    rmdir(server->dir);
}

static enum spate_rc connect_to(const struct server *server, const char *password_file, PGconn **conn,
                                struct spate_err *err)
{
    const struct spate_pg_where where = {
        .what = "source", .url = server->url, .password_file = password_file, .application_name = "test"};

    return spate_pg_connect(&where, 5000, conn, err);
}

/* A frozen server accepts nothing, so that even its refusal of a cancel request never comes. */
static void a_deadline_holds_though_the_cancel_request_hangs(void **state)
{
    struct server server = {.encoding = "UTF8"};
    struct spate_err err = {0};
    PGconn *conn;
    int64_t before;

    (void)state;
    start(&server);
    if (connect_to(&server, NULL, &conn, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    before = spate_clock_ms();
    assert_int_equal(spate_pg_exec_within(conn, "COMMIT", 50, PGRES_COMMAND_OK, NULL, &err), SPATE_FAIL);
    assert_true(spate_clock_ms() - before < 5000);
    assert_string_equal(err.sqlstate, "57014");
    assert_int_equal(err.verdict, SPATE_RETRY);
    assert_non_null(strstr(err.text, "COMMIT: no answer in time"));
    /* The request may still be on its way: it must not meet another command. */
    assert_int_equal(spate_pg_exec_within(conn, "SELECT 1", 5000, PGRES_TUPLES_OK, NULL, &err), SPATE_FAIL);
    assert_int_equal(PQstatus(conn), CONNECTION_BAD);
    PQfinish(conn);
    stop(&server);
}

/* P67: tokens that stand in for passwords have no bound that one would guess. */
static void a_password_of_any_length_is_passed_on_whole(void **state)
{
    static const size_t lengths[] = {1, 1023, 1024, 5000};

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(lengths); i++) {
        struct server server = {.asks = true, .encoding = "UTF8"};
        struct spate_buf line = {0};
        struct spate_err err = {0};
        char file[80];
        PGconn *conn;
        FILE *out;

        start(&server);
        for (size_t at = 0; at < lengths[i]; at++)
            spate_buf_putc(&line, (char)('a' + at % 26));
        snprintf(file, sizeof file, "%s/password", server.dir);
        out = fopen(file, "w");
        assert_non_null(out);
        fprintf(out, "%s\r\nnot this line\n", spate_buf_str(&line));
        fclose(out);
        if (connect_to(&server, file, &conn, &err) != SPATE_OK)
            fail_msg("%s", err.text);
        PQfinish(conn);
        unlink(file);
        stop(&server);
        assert_string_equal(spate_buf_str(&server.password), spate_buf_str(&line));
        spate_buf_fini(&server.password);
        spate_buf_fini(&line);
    }
}

static void an_encoding_that_was_not_asked_for_is_refused(void **state)
{
    struct server server = {.encoding = "LATIN1"};
    struct spate_err err = {0};
    PGconn *conn;

    (void)state;
    start(&server);
    assert_int_equal(connect_to(&server, NULL, &conn, &err), SPATE_FAIL);
    assert_int_equal(err.verdict, SPATE_FATAL);
    assert_non_null(
        strstr(err.text, "the session's client_encoding is 'LATIN1' though 'UTF8' was asked for"));
    stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_encoding_that_was_not_asked_for_is_refused),
        cmocka_unit_test(a_deadline_holds_though_the_cancel_request_hangs),
        cmocka_unit_test(a_password_of_any_length_is_passed_on_whole),
    };

    return cmocka_run_group_tests_name("pg against a played server", tests, NULL, NULL);
}
