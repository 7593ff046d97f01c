/* Prints what is on a topic of the local bus, from the oldest record on, and then what comes.
 *
 *   cc reader.c -o reader $(pkg-config --cflags --libs spate-bus)
 *   ./reader /var/lib/spate/bus shop */
#include <inttypes.h>
#include <spate/bus.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct spatebus_error why;
    struct spatebus_message m;
    struct spatebus *bus = spatebus_open(argc == 3 ? argv[1] : "", NULL, &why);
    struct spatebus_reader *reader =
        bus ? spatebus_reader_open(bus, argv[2], SPATEBUS_DURABLE, SPATEBUS_OLDEST, &why) : NULL;
    int got = reader ? SPATEBUS_AGAIN : SPATEBUS_FAIL;

    while (got != SPATEBUS_FAIL && (got = spatebus_next(reader, &m, 1000, &why)) != SPATEBUS_FAIL) {
        if (got == SPATEBUS_AGAIN)
            fflush(stdout);
        else if (m.kind == SPATEBUS_GAP)
            printf("lost: %016" PRIx64 " to %016" PRIx64 "\n", m.pos, m.next);
        else
            printf("%016" PRIx64 " %.*s\n", m.pos, (int)m.value_len, (const char *)m.value);
    }
    fprintf(stderr, "%s\n", argc == 3 ? why.text : "usage: reader BUS TOPIC");
    spatebus_reader_close(reader);
    spatebus_close(bus);
    return 1;
}
