/* bus_put PATH HOT TOPIC - publishes each line of stdin on a topic of a local bus that nobody owns just now,
 * as kcat does on Kafka. Ends when all of it is durable. */
#include "bus/open.h"
#include "core/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

static enum spate_rc put_all(struct spate_writer *writer, struct spate_err *err)
{
    char *line = NULL;
    size_t cap = 0, taken;
    ssize_t len;
    enum spate_rc rc = SPATE_OK;

    while (rc == SPATE_OK && (len = getline(&line, &cap, stdin)) > 0) {
        const struct spate_record record = {.value = spate_slice(line, (size_t)len - (line[len - 1] == '\n')),
                                            .ts_us = spate_clock_wall_us()};

        rc = spate_writer_publish(writer, &record, 1, &taken, err);
    }
    free(line);
    while (rc == SPATE_OK && spate_writer_durable(writer).at < spate_writer_end(writer).at)
        rc = spate_writer_poll(writer, 100, ignore_token, NULL, err) == SPATE_FAIL ? SPATE_FAIL : SPATE_OK;
    return rc;
}

int main(int argc, char **argv)
{
    struct spate_bus_config config = {0};
    struct spate_bus *bus = NULL;
    struct spate_writer *writer = NULL;
    struct spate_err err = {0};
    enum spate_rc rc;

    if (argc != 4) {
        fprintf(stderr, "usage: bus_put PATH HOT TOPIC <LINES\n");
        return 2;
    }
    config.local_path = argv[1];
    config.local_hot = argv[2];
    rc = spate_bus_open(&config, &bus, &err);
    if (rc == SPATE_OK)
        rc = spate_bus_writer_open(bus, argv[3], 0, &writer, &err);
    if (rc == SPATE_OK)
        rc = put_all(writer, &err);
    if (rc != SPATE_OK)
        fprintf(stderr, "bus_put: %s\n", err.text);
    spate_writer_close(writer);
    spate_bus_close(bus);
    return rc != SPATE_OK;
}
