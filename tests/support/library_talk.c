/* library_talk write BUS TOPIC SEGMENT_BYTES RETENTION_BYTES [volatile] - publishes each line of stdin ("*N":
 * N bytes) and prints "durable K" when line K is; at the end of stdin it flushes. library_talk read BUS TOPIC
 * POSITION [tip] - prints "POSITION VALUE" for each record, "lost: FROM TO" for gaps.
 *
 * The other end of the conversation with docs/examples/bus_reader.py, by the library's header alone. */
#include "bus/api/spate_bus.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static int talk(struct spatebus *bus, char **argv, unsigned more, struct spatebus_error *why)
{
    struct spatebus_writer *writer =
        spatebus_writer_open(bus, argv[3], SPATEBUS_CREATE | SPATEBUS_SHARED | more, why);
    static char *line;
    static size_t cap;
    uint64_t number = 0;
    ssize_t len;
    int rc = writer ? SPATEBUS_OK : SPATEBUS_FAIL;

    if (writer) {
        printf("open\n");
        fflush(stdout);
    }
    while (rc == SPATEBUS_OK) {
        struct pollfd fd = {.fd = 0, .events = POLLIN};
        if (spatebus_poll(writer, 0, said, NULL, why) == SPATEBUS_FAIL)
            rc = SPATEBUS_FAIL;
        else if (poll(&fd, 1, 1) == 0)
            continue;
        else if ((len = getline(&line, &cap, stdin)) <= 0)
            break;
        else
            rc = put(writer, line, (size_t)len - (line[len - 1] == '\n'), ++number, why);
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

    setvbuf(stdin, NULL, _IONBF, 0); /* poll sees what is left */
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
