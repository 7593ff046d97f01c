/* tests/bench/snapshot_peer.c - what a snapshot is measured against, and who asks for it.
 *
 *   copy CONNINFO TABLE                      COPY TO STDOUT, thrown away
 *   publish CONNINFO TABLE PATH HOT TOPIC    the same, each line onto a topic of a local bus
 *   request PATH HOT STREAM TABLE ID         asks the connector for public.TABLE and reads the stream
 *
 * Prints JSON: rows, bytes, seconds; of a request also the seconds until the first row. */
#include "bus/open.h"
#include "core/buf.h"
#include "core/clock.h"

#include <libpq-fe.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 256

static struct spate_err err;

static void die(const char *what)
{
    fprintf(stderr, "snapshot_peer: %s\n", what);
    exit(1);
}

static void must(enum spate_rc rc)
{
    if (rc == SPATE_FAIL)
        die(err.text);
}

static struct spate_bus *open_bus(char *path, char *hot)
{
    struct spate_bus_config config = {.local_path = path, .local_hot = hot};
    struct spate_bus *bus = NULL;

    must(spate_bus_open(&config, &bus, &err));
    return bus;
}

/* ---- COPY ---- */

static void ignore_token(void *arg, uint64_t token)
{
    (void)arg, (void)token;
}

struct batch {
    struct spate_writer *writer; /* NULL: thrown away */
    struct spate_record records[BATCH];
    char *lines[BATCH];
    size_t count;
};

static void give(struct batch *batch)
{
    size_t done = 0, taken = 0;

    while (batch->writer && done < batch->count) {
        must(spate_writer_publish(batch->writer, batch->records + done, batch->count - done, &taken, &err));
        done += taken;
        must(spate_writer_poll(batch->writer, done < batch->count ? 10 : 0, ignore_token, NULL, &err));
    }
    for (size_t i = 0; i < batch->count; i++)
        PQfreemem(batch->lines[i]);
    batch->count = 0;
}

static void run_copy(const char *conninfo, const char *table, struct spate_writer *writer)
{
    PGconn *conn = PQconnectdb(conninfo);
    struct batch batch = {.writer = writer};
    unsigned long long rows = 0, bytes = 0;
    char sql[200], *line;
    int64_t began;
    int len;

    if (PQstatus(conn) != CONNECTION_OK)
        die(PQerrorMessage(conn));
    snprintf(sql, sizeof sql, "COPY public.%s TO STDOUT", table);
    began = spate_clock_us();
    if (PQresultStatus(PQexec(conn, sql)) != PGRES_COPY_OUT)
        die(PQerrorMessage(conn));
    while ((len = PQgetCopyData(conn, &line, 0)) > 0) {
        rows++;
        bytes += (unsigned)len;
        batch.lines[batch.count] = line;
        batch.records[batch.count++] = (struct spate_record){.value = spate_slice(line, (size_t)len - 1)};
        if (batch.count == BATCH)
            give(&batch);
    }
    if (len == -2)
        die(PQerrorMessage(conn));
    give(&batch);
    printf("{\"rows\":%llu,\"bytes\":%llu,\"seconds\":%.4f}\n", rows, bytes,
           (double)(spate_clock_us() - began) / 1e6);
    PQfinish(conn);
}

/* ---- asking ---- */

static void say(struct spate_bus *bus, const char *stream, const char *line)
{
    char topic[200];
    struct spate_writer *writer = NULL;
    const struct spate_record record = {.value = spate_slice_str(line), .ts_us = spate_clock_wall_us()};
    size_t taken;

    snprintf(topic, sizeof topic, "%s._control", stream);
    must(spate_bus_writer_open(bus, topic, SPATE_TOPIC_SHARED, &writer, &err));
    must(spate_writer_publish(writer, &record, 1, &taken, &err));
    spate_writer_close(writer);
}

static bool begins(struct spate_slice line, const char *with)
{
    size_t len = strlen(with);

    return line.len >= len && memcmp(line.at, with, len) == 0;
}

static bool refused(struct spate_reader *control, const char *id)
{
    struct spate_message message;

    while (spate_reader_next(control, &message, &err) == SPATE_OK)
        if (message.kind == SPATE_MESSAGE_RECORD &&
            begins(message.value, "{\"spate\":1,\"op\":\"refused\"") &&
            memmem(message.value.at, message.value.len, id, strlen(id))) {
            fprintf(stderr, "%.*s\n", SPATE_SLICE_ARG(message.value));
            return true;
        }
    return false;
}

static void run_request(char *path, char *hot, const char *stream, const char *table, const char *id)
{
    struct spate_bus *bus = open_bus(path, hot);
    struct spate_reader *reader = NULL, *control = NULL;
    struct spate_message message;
    unsigned long long rows = 0, bytes = 0;
    int64_t began, first = 0;
    char line[500], topic[200];
    bool ended = false;

    snprintf(topic, sizeof topic, "%s._control", stream);
    must(spate_bus_reader_open(bus, stream, SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_NOW},
                               &reader, &err));
    must(spate_bus_reader_open(bus, topic, SPATE_SEE_TIP, (struct spate_start){.from = SPATE_START_NOW},
                               &control, &err));
    snprintf(line, sizeof line,
             "{\"spate\":1,\"op\":\"request\",\"request\":\"%s\",\"sink\":\"%s\",\"tables\":"
             "[{\"schema\":\"public\",\"table\":\"%s\"}]}",
             id, id, table);
    began = spate_clock_us();
    say(bus, stream, line);
    while (!ended) {
        enum spate_rc rc = spate_reader_next(reader, &message, &err);

        must(rc);
        if (rc == SPATE_AGAIN) {
            must(spate_reader_wait(reader, 200, &err));
            if (refused(control, id))
                die("the request was refused");
            continue;
        }
        if (message.kind != SPATE_MESSAGE_RECORD)
            die("the reader was overtaken");
        bytes += message.value.len;
        if (begins(message.value, "{\"spate\":1,\"op\":\"read\"")) {
            first = first ? first : spate_clock_us();
            rows++;
        } else {
            ended = begins(message.value, "{\"spate\":1,\"op\":\"ranges-end\"") &&
                    memmem(message.value.at, message.value.len, id, strlen(id));
        }
    }
    printf("{\"rows\":%llu,\"bytes\":%llu,\"first\":%.4f,\"seconds\":%.4f}\n", rows, bytes,
           (double)(first - began) / 1e6, (double)(spate_clock_us() - began) / 1e6);
    snprintf(line, sizeof line, "{\"spate\":1,\"op\":\"finished\",\"request\":\"%s\",\"sink\":\"%s\"}", id,
             id);
    say(bus, stream, line);
    spate_reader_close(control);
    spate_reader_close(reader);
    spate_bus_close(bus);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "copy") == 0) {
        run_copy(argv[2], argv[3], NULL);
    } else if (argc == 7 && strcmp(argv[1], "publish") == 0) {
        struct spate_bus *bus = open_bus(argv[4], argv[5]);
        struct spate_writer *writer = NULL;

        must(spate_bus_writer_open(bus, argv[6], SPATE_TOPIC_CREATE, &writer, &err));
        run_copy(argv[2], argv[3], writer);
        spate_writer_close(writer);
        spate_bus_close(bus);
    } else if (argc == 7 && strcmp(argv[1], "request") == 0) {
        run_request(argv[2], argv[3], argv[4], argv[5], argv[6]);
    } else {
        die("usage: copy CONNINFO TABLE | publish CONNINFO TABLE PATH HOT TOPIC | request PATH HOT STREAM "
            "TABLE ID");
    }
    return 0;
}
