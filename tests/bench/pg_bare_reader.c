/* tests/bench/pg_bare_reader.c - the limit to measure against: reads a slot with libpq and throws everything
 * away.
 *
 * usage: pg_bare_reader CONNINFO SLOT PUBLICATION UNTIL_LSN PAUSE_US
 *
 * PAUSE_US 0 reads at every wake-up; 200 pauses whenever the socket ran dry (P97). Ends at the first commit
 * or keepalive at or beyond UNTIL_LSN and prints "messages seconds". It confirms nothing, so a slot can be
 * read again. */
#include <libpq-fe.h>

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t be64(const char *at)
{
    uint64_t value = 0;

    for (int i = 0; i < 8; i++)
        value = value << 8 | (unsigned char)at[i];
    return value;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* A status that says only "alive": received and flushed stay at 0/0, so the slot does not move. */
static void say_alive(PGconn *conn)
{
    char status[34] = {'r'};

    if (PQputCopyData(conn, status, sizeof status) != 1 || PQflush(conn) < 0)
        die("status", PQerrorMessage(conn));
}

int main(int argc, char **argv)
{
    char command[512];
    unsigned high, low;
    uint64_t until, messages = 0;
    long pause_us;
    double start, alive;
    PGconn *conn;
    PGresult *res;

    if (argc != 6 || sscanf(argv[4], "%X/%X", &high, &low) != 2)
        die("usage", "pg_bare_reader CONNINFO SLOT PUBLICATION UNTIL_LSN PAUSE_US");
    until = (uint64_t)high << 32 | low;
    pause_us = strtol(argv[5], NULL, 10);
    conn = PQconnectdb(argv[1]);
    if (PQstatus(conn) != CONNECTION_OK)
        die("connect", PQerrorMessage(conn));
    snprintf(command, sizeof command,
             "START_REPLICATION SLOT \"%s\" LOGICAL 0/0 (proto_version '1', publication_names '\"%s\"')",
             argv[2], argv[3]);
    start = alive = now();
    res = PQexec(conn, command);
    if (PQresultStatus(res) != PGRES_COPY_BOTH)
        die("start", PQerrorMessage(conn));
    PQclear(res);

    for (;;) {
        char *message;
        int len = PQgetCopyData(conn, &message, 1);

        if (len > 0) {
            uint64_t at = 0;

            if (message[0] == 'w' && len > 25) {
                messages++;
                if (message[25] == 'C' && len >= 25 + 18)
                    at = be64(message + 25 + 1 + 1 + 8);
            } else if (message[0] == 'k' && len >= 18) {
                at = be64(message + 1);
                if (message[17])
                    say_alive(conn);
            }
            PQfreemem(message);
            if (at >= until)
                break;
            continue;
        }
        if (len < 0)
            die("read", PQerrorMessage(conn));
        if (now() - alive > 1) {
            alive = now();
            say_alive(conn);
        }
        if (pause_us)
            usleep((useconds_t)pause_us);
        if (poll(&(struct pollfd){.fd = PQsocket(conn), .events = POLLIN}, 1, 1000) < 0)
            die("poll", "failed");
        if (!PQconsumeInput(conn))
            die("read", PQerrorMessage(conn));
    }
    printf("%llu %.4f\n", (unsigned long long)messages, now() - start);
    PQfinish(conn);
    return 0;
}
