/* A replication command that is given up while the server is frozen. The server is a thread on a Unix socket:
 * it lets one connection in and then neither answers it nor takes another, as a stopped postmaster does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "connector/replication.h"
#include "core/clock.h"

struct server {
    char dir[32], path[64], url[96];
    int listener;
    pthread_t thread;
};

static void *serve(void *arg)
{
    /* AuthenticationOk, BackendKeyData, ReadyForQuery. */
    static const char welcome[] = "R\0\0\0\10\0\0\0\0"
                                  "K\0\0\0\14\0\0\0\1\0\0\0\2"
                                  "Z\0\0\0\5I";
    const struct server *server = arg;
    char bytes[512];
    int fd = accept(server->listener, NULL, NULL);

    if (fd < 0)
        return NULL;
    if (read(fd, bytes, sizeof bytes) > 0 &&
        send(fd, welcome, sizeof welcome - 1, MSG_NOSIGNAL) == (ssize_t)sizeof welcome - 1)
        while (read(fd, bytes, sizeof bytes) > 0)
            ;
    close(fd);
    return NULL;
}

static void server_start(struct server *server)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    strcpy(server->dir, "/tmp/spate-test-XXXXXX");
    assert_non_null(mkdtemp(server->dir));
    snprintf(server->path, sizeof server->path, "%s/.s.PGSQL.5432", server->dir);
    snprintf(server->url, sizeof server->url, "host=%s user=u dbname=d sslmode=disable gssencmode=disable",
             server->dir);
    server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(server->listener >= 0);
    strcpy(at.sun_path, server->path);
    assert_int_equal(bind(server->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(server->listener, 8), 0);
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
}

static void server_stop(struct server *server)
{
    pthread_join(server->thread, NULL);
    close(server->listener);
    unlink(server->path);
    rmdir(server->dir);
}

static bool give_up(void *arg, int seconds)
{
    *(int *)arg = seconds;
    return false;
}

static void a_frozen_server_does_not_hold_a_command_that_was_given_up(void **state)
{
    struct spate_replication repl = {0};
    struct spate_err err = {0};
    struct server server;
    PGresult *res = NULL;
    int seconds = 0;
    int64_t began_ms;

    (void)state;
    server_start(&server);
    repl.conn = PQconnectdb(server.url);
    if (PQstatus(repl.conn) != CONNECTION_OK)
        fail_msg("%s", PQerrorMessage(repl.conn));
    began_ms = spate_clock_ms();
    alarm(20); /* without a limit it would wait for ever */
    assert_int_equal(spate_replication_command(&repl, "CREATE_REPLICATION_SLOT s LOGICAL pgoutput",
                                               PGRES_TUPLES_OK, give_up, &seconds, &res, &err),
                     SPATE_AGAIN);
    alarm(0);
    assert_true(seconds >= 1);
    assert_true(spate_clock_ms() - began_ms < 10000);
    assert_null(res);
    spate_replication_close(&repl);
    server_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frozen_server_does_not_hold_a_command_that_was_given_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
