/* bus_talk BUS [HOT] TOPIC - holds a conversation on a topic that many write to: publishes each line of
 * stdin ("@MICROSECONDS LINE": as if then), and prints each record from the oldest on, its bytes as they are,
 * until stdin is closed. */
#include "bus/open.h"
#include "core/clock.h"
#include "core/err.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

/* SPATE_END: stdin was closed. */
static enum spate_rc put_line(struct spate_writer *writer, struct spate_err *err)
{
    static char *line;
    static size_t cap;
    ssize_t len = getline(&line, &cap, stdin);
    size_t taken;

    if (len <= 0)
        return SPATE_END;
    len -= line[len - 1] == '\n';
    char *from = line;
    int64_t ts_us = *line == '@' ? strtoll(line + 1, &from, 10) : spate_clock_wall_us();

    from += *line == '@';
    const struct spate_record record = {.value = spate_slice(from, (size_t)(line + len - from)),
                                        .ts_us = ts_us};

    return spate_writer_publish(writer, &record, 1, &taken, err);
}

static enum spate_rc print_all(struct spate_reader *reader, struct spate_err *err)
{
    struct spate_message message;
    enum spate_rc rc;

    while ((rc = spate_reader_next(reader, &message, err)) == SPATE_OK)
        if (message.kind == SPATE_MESSAGE_RECORD) {
            fwrite(message.value.at, 1, message.value.len, stdout);
            putchar('\n');
        }
    fflush(stdout);
    return rc;
}

static enum spate_rc talk(struct spate_writer *writer, struct spate_reader *reader, struct spate_err *err)
{
    struct pollfd fd = {.fd = 0, .events = POLLIN};
    enum spate_rc rc = SPATE_OK;

    while (rc == SPATE_OK || rc == SPATE_AGAIN) {
        rc = SPATE_OK;
        if (poll(&fd, 1, 0) > 0)
            rc = put_line(writer, err);
        if (rc == SPATE_OK && spate_writer_poll(writer, 0, ignore_token, NULL, err) == SPATE_FAIL)
            return SPATE_FAIL;
        if (rc == SPATE_OK)
            rc = print_all(reader, err);
        if (rc == SPATE_AGAIN)
            rc = spate_reader_wait(reader, 10, err);
    }
    return rc == SPATE_END ? SPATE_OK : rc;
}

int main(int argc, char **argv)
{
    struct spate_bus_config config = {.kafka = {.create = true}};
    const char *topic = argv[argc - 1];
    struct spate_bus *bus = NULL;
    struct spate_writer *writer = NULL;
    struct spate_reader *reader = NULL;
    struct spate_err err = {0};
    enum spate_rc rc;

    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: bus_talk BUS [HOT] TOPIC\n");
        return 2;
    }
    setvbuf(stdin, NULL, _IONBF, 0); /* poll sees what is left */
    spate_bus_named(argv[1], &config);
    if (argc == 4)
        config.local_hot = argv[2];
    rc = spate_bus_open(&config, &bus, &err);
    if (rc == SPATE_OK)
        rc = spate_bus_writer_open(bus, topic, SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED, &writer, &err);
    if (rc == SPATE_OK)
        rc = spate_bus_reader_open(bus, topic, SPATE_SEE_TIP,
                                   (struct spate_start){.from = SPATE_START_OLDEST}, &reader, &err);
    if (rc == SPATE_OK)
        rc = talk(writer, reader, &err);
    if (rc != SPATE_OK)
        fprintf(stderr, "bus_talk: %s\n", err.text);
    spate_reader_close(reader);
    spate_writer_close(writer);
    spate_bus_close(bus);
    return rc != SPATE_OK;
}
