/* cli/stream.c - finds the bus and, where one is enough, the stream. */
#include "cli/stream.h"

#include "bus/open.h"
#include "config/load.h"
#include "connector/connector.h"
#include "core/alloc.h"
#include "core/options.h"
#include "sinks/sink.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The bus and the stream's name from a connector's or a sink's file. */
static enum spate_exit from_file(struct spate_cli_stream *stream, const char *path)
{
    struct spate_connector_config connector;
    struct spate_sink_config sink;
    struct spate_err err = {0};
    enum spate_rc rc;
    bool is_sink;

    memset(&connector, 0, sizeof connector);
    memset(&sink, 0, sizeof sink);
    rc = spate_config_has(path, "sink", &is_sink, &err);
    if (rc == SPATE_OK && is_sink)
        rc = spate_config_load(path, spate_sink_tables, spate_sink_table_count, &sink, &err);
    else if (rc == SPATE_OK)
        rc = spate_config_load(path, spate_connector_tables, spate_connector_table_count, &connector, &err);
    if (rc == SPATE_OK)
        rc = spate_bus_open(is_sink ? &sink.bus : &connector.bus, &stream->bus, &err);
    if (rc == SPATE_OK && !stream->name)
        stream->name = stream->owned = spate_strdup(is_sink ? sink.from : connector.name);
    spate_options_fini(&sink, spate_sink_tables, spate_sink_table_count);
    spate_options_fini(&connector, spate_connector_tables, spate_connector_table_count);
    return rc == SPATE_OK ? SPATE_EXIT_OK : spate_cli_failed(&err);
}

enum spate_exit spate_cli_stream_bus(struct spate_cli_stream *stream, const struct spate_cli_text *text)
{
    const char *path = stream->path;
    struct spate_bus_config config;
    struct spate_err err = {0};

    if (stream->file && path)
        return spate_cli_misuse(text, "-c FILE names a bus already; leave out --bus");
    if (stream->file)
        return from_file(stream, stream->file);
    if (!path)
        path = getenv("SPATE_BUS");
    if (!path || !*path)
        return spate_cli_misuse(text, "no bus; name it with -c FILE, --bus BUS or the variable SPATE_BUS");
    spate_bus_named(path, &config);
    return spate_bus_open(&config, &stream->bus, &err) == SPATE_OK ? SPATE_EXIT_OK : spate_cli_failed(&err);
}

struct streams {
    char (*topics)[SPATE_STREAM_TOPIC]; /* owned: all that there are */
    size_t topic_count;
    struct spate_buf names; /* as their connectors are called: what --stream takes */
    size_t count;
};

static void note_topic(void *arg, const char *topic)
{
    struct streams *streams = arg;

    if (strlen(topic) >= SPATE_STREAM_TOPIC)
        return;
    streams->topics = spate_realloc(streams->topics, (streams->topic_count + 1) * sizeof *streams->topics);
    strcpy(streams->topics[streams->topic_count++], topic);
}

/* A connector makes both; a topic of somebody else's on the same cluster has none beside it. */
static bool has_schemas(const struct streams *streams, const char *topic)
{
    const size_t len = strlen(topic);

    for (size_t i = 0; i < streams->topic_count; i++)
        if (strncmp(streams->topics[i], topic, len) == 0 &&
            strcmp(streams->topics[i] + len, "._schemas") == 0)
            return true;
    return false;
}

/* Topics with "._" belong to a stream; the others are one each - or, where `ours`, those that have one beside
 * them. */
static void count_streams(struct streams *streams, bool ours)
{
    char name[SPATE_STREAM_TOPIC];

    spate_buf_reset(&streams->names);
    streams->count = 0;
    for (size_t i = 0; i < streams->topic_count; i++) {
        const char *topic = streams->topics[i];

        if (strstr(topic, "._") || !spate_topic_unescape(topic, name, sizeof name) ||
            (ours && !has_schemas(streams, topic)))
            continue;
        spate_buf_printf(&streams->names, "%s%s", streams->count ? ", " : "", name);
        streams->count++;
    }
}

/* The only stream that there is. */
static enum spate_exit find_stream(struct spate_cli_stream *stream, const struct spate_cli_text *text)
{
    struct streams streams = {0};
    struct spate_err err = {0};
    enum spate_exit result = SPATE_EXIT_OK;

    if (spate_bus_topics(stream->bus, note_topic, &streams, &err) != SPATE_OK) {
        result = spate_cli_failed(&err);
    } else {
        count_streams(&streams, true);
        if (streams.count == 0)
            count_streams(&streams, false);
        if (streams.count == 0)
            result = spate_cli_misuse(text,
                                      "there is no stream on the bus %s yet; start a connector, or name the "
                                      "stream with --stream NAME to wait for it",
                                      stream->path ? stream->path : getenv("SPATE_BUS"));
        else if (streams.count > 1)
            result =
                spate_cli_misuse(text, "several streams are on this bus: %s; choose one with --stream NAME",
                                 spate_buf_str(&streams.names));
        else
            stream->name = stream->owned = spate_strdup(spate_buf_str(&streams.names));
    }
    spate_buf_fini(&streams.names);
    free(streams.topics);
    return result;
}

enum spate_exit spate_cli_stream_open(struct spate_cli_stream *stream, const struct spate_cli_text *text)
{
    struct spate_err err = {0};
    enum spate_exit result = spate_cli_stream_bus(stream, text);

    if (result == SPATE_EXIT_OK && !stream->name)
        result = find_stream(stream, text);
    if (result == SPATE_EXIT_OK &&
        spate_topic_escape(stream->name, stream->topic, sizeof stream->topic, &err) != SPATE_OK)
        result = spate_cli_failed(&err);
    return result;
}

void spate_cli_stream_beside(const struct spate_cli_stream *stream, const char *which,
                             char out[SPATE_STREAM_TOPIC + 16])
{
    snprintf(out, SPATE_STREAM_TOPIC + 16, "%s.%s", stream->topic, which);
}

void spate_cli_stream_close(struct spate_cli_stream *stream)
{
    spate_bus_close(stream->bus);
    free(stream->owned);
    stream->bus = NULL;
    stream->owned = NULL;
}
