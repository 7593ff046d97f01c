/* library_talk write BUS TOPIC SEGMENT_BYTES RETENTION_BYTES [volatile] - publishes each line of stdin ("*N":
 * N bytes) and prints "durable K" when line K is; at the end of stdin it flushes. library_talk read BUS TOPIC
 * POSITION [tip] - prints "POSITION VALUE" for each record, "lost: FROM TO" for gaps.
 *
 * The other end of the conversation with docs/examples/bus_reader.py, by the library's header alone. */
#include "bus/api/spate_bus.h"

#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void said(void *arg, uint64_t token)
{
    (void)arg;
    printf("durable %" PRIu64 "\n", token);
    fflush(stdout);
}

static int put(struct spatebus_writer *writer, const char *line, size_t len, uint64_t number,
               struct spatebus_error *why)
{
    char *large = NULL;
    int rc;

    if (line[0] == '*') {
        len = strtoul(line + 1, NULL, 10);
        large = malloc(len);
        if (!large)
            abort();
        memset(large, 'a' + (int)(len % 26), len);
        line = large;
    }
    const struct spatebus_record record = {
        .key = "k", .key_len = 1, .value = line, .value_len = len, .token = number};
    while ((rc = spatebus_publish(writer, &record, 1, NULL, why)) == SPATEBUS_AGAIN)
        spatebus_poll(writer, 10, said, NULL, NULL);
    free(large);
    return rc;
}

/* What stdin has now, whole lines of it: they are few or long, so read(2) it is, and no wait for more than
 * there is. */
static int put_lines(struct spatebus_writer *writer, uint64_t *number, bool *more, struct spatebus_error *why)
{
    static char buffer[1 << 20];
    static size_t have;
    const ssize_t got = read(0, buffer + have, sizeof buffer - have);
    char *line = buffer, *end;
    int rc = SPATEBUS_OK;

    *more = got > 0;
    have += got > 0 ? (size_t)got : 0;
    while (rc == SPATEBUS_OK && (end = memchr(line, '\n', have - (size_t)(line - buffer))) != NULL) {
        rc = put(writer, line, (size_t)(end - line), ++*number, why);
        line = end + 1;
    }
    have -= (size_t)(line - buffer);
    memmove(buffer, line, have);
    return rc;
}

static int talk(struct spatebus *bus, char **argv, unsigned flags, struct spatebus_error *why)
{
    struct spatebus_writer *writer =
        spatebus_writer_open(bus, argv[3], SPATEBUS_CREATE | SPATEBUS_SHARED | flags, why);
    struct pollfd fd = {.fd = 0, .events = POLLIN};
    uint64_t number = 0;
    bool more = true;
    int rc = writer ? SPATEBUS_OK : SPATEBUS_FAIL;

    if (writer) {
        printf("open\n");
        fflush(stdout);
    }
    while (rc == SPATEBUS_OK && more) {
        if (spatebus_poll(writer, 0, said, NULL, why) == SPATEBUS_FAIL)
            rc = SPATEBUS_FAIL;
        else if (poll(&fd, 1, 1) != 0)
            rc = put_lines(writer, &number, &more, why);
    }
    if (rc == SPATEBUS_OK)
        while ((rc = spatebus_flush(writer, 1000, said, NULL, why)) == SPATEBUS_AGAIN)
            ;
    spatebus_writer_close(writer);
    return rc;
}

static int listen_to(struct spatebus *bus, char **argv, int see, struct spatebus_error *why)
{
    struct spatebus_message m;
    struct spatebus_reader *reader =
        spatebus_reader_open(bus, argv[3], see, strtoull(argv[4], NULL, 16), why);
    int rc = reader ? SPATEBUS_OK : SPATEBUS_FAIL;

    while (rc != SPATEBUS_FAIL && (rc = spatebus_next(reader, &m, 20, why)) != SPATEBUS_FAIL) {
        if (rc == SPATEBUS_AGAIN)
            fflush(stdout);
        else if (m.kind == SPATEBUS_GAP)
            printf("lost: %016" PRIx64 " %016" PRIx64 "\n", m.pos, m.next);
        else
            printf("%016" PRIx64 " %.*s\n", m.pos, (int)m.value_len, (const char *)m.value);
    }
    spatebus_reader_close(reader);
    return rc;
}

int main(int argc, char **argv)
{
    struct spatebus_error why = {.text = "usage: library_talk write|read BUS TOPIC ..."};
    struct spatebus_options options = {.size = sizeof options};
    int rc = SPATEBUS_FAIL;

    if (argc >= 6 && strcmp(argv[1], "write") == 0) {
        options.segment_bytes = strtol(argv[4], NULL, 10);
        options.retention_bytes = strtol(argv[5], NULL, 10);
    }
    struct spatebus *bus = argc >= 5 ? spatebus_open(argv[2], &options, &why) : NULL;
    if (bus && strcmp(argv[1], "write") == 0 && argc >= 6)
        rc = talk(bus, argv, SPATEBUS_RULE | (argc > 6 ? SPATEBUS_VOLATILE : 0), &why);
    else if (bus)
        rc = listen_to(bus, argv, argc > 5 ? SPATEBUS_TIP : SPATEBUS_DURABLE, &why);
    if (rc != SPATEBUS_OK)
        fprintf(stderr, "library_talk: %s\n", why.text);
    spatebus_close(bus);
    return rc != SPATEBUS_OK;
}
