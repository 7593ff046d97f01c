/* connector_running URL - the transactions of a database that a session of the connector which begins now
 * cannot know of: one a line, xid and when it started (us since 1970; 0: not told). After a line on stdin:
 * those that still are. */
#include "connector/rebuild.h"
#include "pg/pg.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static struct spate_err err;

static void print(const struct spate_running *running, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("%" PRIu32 " %" PRId64 "\n", running[i].xid, running[i].started_us);
    printf(".\n");
    fflush(stdout);
}

static int die(void)
{
    fprintf(stderr, "connector_running: %s\n", err.text);
    return 1;
}

int main(int argc, char **argv)
{
    const struct spate_pg_where where = {.what = "source", .url = argc > 1 ? argv[1] : ""};
    struct spate_running *running;
    size_t count;
    PGconn *conn;

    if (spate_pg_connect(&where, 5000, &conn, &err) != SPATE_OK ||
        spate_rebuild_running(conn, &running, &count, &err) != SPATE_OK)
        return die();
    print(running, count);
    while (getchar() == '\n') {
        if (spate_rebuild_still(conn, running, &count, &err) != SPATE_OK)
            return die();
        print(running, count);
    }
    free(running);
    PQfinish(conn);
    return 0;
}
