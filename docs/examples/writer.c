/* Publishes each line of standard input to a topic of the local bus, and ends when all are on the disk.
 *
 *   cc writer.c -o writer $(pkg-config --cflags --libs spate-bus)
 *   ./writer /var/lib/spate/bus notes <notes.txt */
#include <spate/bus.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct spatebus_error why;
    char line[65536];
    struct spatebus *bus = spatebus_open(argc == 3 ? argv[1] : "", NULL, &why);
    struct spatebus_writer *writer =
        bus ? spatebus_writer_open(bus, argv[2], SPATEBUS_CREATE | SPATEBUS_SHARED, &why) : NULL;
    int rc = writer ? SPATEBUS_OK : SPATEBUS_FAIL;

    while (rc == SPATEBUS_OK && fgets(line, sizeof line, stdin)) {
        struct spatebus_record record = {0};
        record.value = line;
        record.value_len = strcspn(line, "\n");
        while (record.value_len > 0 &&
               (rc = spatebus_publish(writer, &record, 1, NULL, &why)) == SPATEBUS_AGAIN)
            spatebus_poll(writer, 100, NULL, NULL, NULL); /* no room now: wait until the disk has some */
    }
    if (rc == SPATEBUS_OK)
        while ((rc = spatebus_flush(writer, 1000, NULL, NULL, &why)) == SPATEBUS_AGAIN)
            ;
    if (rc != SPATEBUS_OK)
        fprintf(stderr, "%s\n", argc == 3 ? why.text : "usage: writer BUS TOPIC");
    spatebus_writer_close(writer);
    spatebus_close(bus);
    return rc != SPATEBUS_OK;
}
