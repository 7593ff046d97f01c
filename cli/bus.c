/* cli/bus.c - spate bus ls | readers | inspect | release */
#include "cli/bus.h"

#include "bus/local/local.h"
#include "bus/open.h"
#include "core/alloc.h"
#include "core/log.h"
#include "core/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct spate_cli_text text = {
    .usage = "spate bus ls | readers [TOPIC] | inspect TOPIC [--verify] [--at POS] | release NAME [TOPIC] "
             "[-c FILE | --bus BUS] [--json]",
    .help =
        "Shows what is on the local bus, and who reads and writes it. It takes no lock and disturbs nobody;\n"
        "release alone changes something.\n\n"
        "  ls                 all topics: kind, segments on disk and in memory, positions, writers\n"
        "  readers [TOPIC]    readers that are known by a name: how far they are, what they hold\n"
        "  inspect TOPIC      one topic: its segments one by one, its writers and counters\n"
        "  release NAME [TOPIC]  what the reader NAME has not passed yet is held for it no longer (of this\n"
        "                     topic, or of all): retention may take it. The reader is told of the gap; a "
        "sink\n"
        "                     asks for its tables anew\n"
        "  -c, --config FILE  the bus that this connector's or sink's file names\n"
        "      --bus BUS      the bus in this directory; else the one in the environment variable SPATE_BUS\n"
        "      --verify       inspect: read every record and hold it against its checksum\n"
        "      --at POS       inspect: the header of the record that stands there, without its value\n"
        "      --json         the same as JSON, one line\n"
        "  -h, --help         this text\n\n"
        "Exit codes: 0; 1 when the bus cannot be read, or --verify found damage; 2 for arguments.\n",
};

static const struct option options[] = {
    {"config", required_argument, NULL, 'c'}, {"bus", required_argument, NULL, 'b'},
    {"verify", no_argument, NULL, 'v'},       {"at", required_argument, NULL, 'a'},
    {"json", no_argument, NULL, 'j'},         {NULL, 0, NULL, 0}};

static const struct word {
    const char *name;
    enum spate_exit (*run)(struct spate_cli_bus *bus);
    int least, most; /* words behind it */
    bool reader;     /* the first of them names a reader */
    const char *missing;
} words[] = {
    {"ls", spate_cli_bus_ls, 0, 0, false, NULL},
    {"readers", spate_cli_bus_readers, 0, 1, false, NULL},
    {"inspect", spate_cli_bus_inspect, 1, 1, false, "inspect needs a TOPIC; spate bus ls lists them"},
    {"release", spate_cli_bus_release, 1, 2, true,
     "release needs the NAME of a reader; spate bus readers lists them"},
};

/* ---- arguments ---- */

static enum spate_exit take_word(struct spate_cli_bus *bus, int count, char **args, const struct word **word)
{
    const char *names[SPATE_COUNT(words)], *near;

    if (count == 0)
        return spate_cli_misuse(&text, "what about the bus? ls, readers, inspect or release");
    for (size_t i = 0; i < SPATE_COUNT(words); i++) {
        names[i] = words[i].name;
        if (strcmp(args[0], words[i].name) == 0)
            *word = &words[i];
    }
    if (!*word) {
        near = spate_nearest(args[0], names, SPATE_COUNT(words));
        return spate_cli_misuse(&text, "there is no '%s'%s%s%s", args[0], near ? "; did you mean " : "",
                                near ? near : "", near ? "?" : "");
    }
    if (count - 1 < (*word)->least)
        return spate_cli_misuse(&text, "%s", (*word)->missing);
    if (count - 1 > (*word)->most)
        return spate_cli_misuse(&text, "'%s' is not understood behind %s", args[(*word)->most + 1],
                                (*word)->name);
    if ((*word)->reader)
        bus->name = args[1];
    if (count - 1 > (int)(*word)->reader)
        bus->topic = args[1 + (*word)->reader];
    if ((bus->verify || bus->at) && (*word)->run != spate_cli_bus_inspect)
        return spate_cli_misuse(&text, "%s goes with inspect", bus->verify ? "--verify" : "--at");
    return SPATE_EXIT_OK;
}

static void take(struct spate_cli_bus *bus, int letter)
{
    switch (letter) {
    case 'c':
        bus->stream.file = optarg;
        break;
    case 'b':
        bus->stream.path = optarg;
        break;
    case 'a':
        bus->at = optarg;
        break;
    case 'v':
        bus->verify = true;
        break;
    default:
        bus->json = true;
        break;
    }
}

/* ---- the bus ---- */

static void note_topic(void *arg, const char *topic)
{
    struct spate_cli_bus *bus = arg;

    bus->topics = spate_realloc(bus->topics, (bus->topic_count + 1) * sizeof *bus->topics);
    bus->topics[bus->topic_count++] = spate_strdup(topic);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Of a cluster there are its topics; the rest its own tools show. */
static enum spate_exit only_local(const struct word *word)
{
    return spate_cli_misuse(&text,
                            "%s is for the local bus. On Kafka positions are offsets: kafka-topics.sh "
                            "--describe and kcat show the "
                            "topics, and where a sink is stands beside its rows (SELECT sink, pos FROM "
                            "<schema>.spate_sink) and on "
                            "its /status",
                            word->name);
}

static enum spate_exit list_names(const struct spate_cli_bus *bus)
{
    struct spate_buf out = {0};
    enum spate_exit result;

    spate_buf_puts(&out, bus->json ? "{\"topics\":[" : "");
    for (size_t i = 0; i < bus->topic_count; i++)
        spate_buf_printf(&out, bus->json ? "%s{\"topic\":\"%s\"}" : "%s%s\n", bus->json && i ? "," : "",
                         bus->topics[i]);
    spate_buf_puts(&out, bus->json ? "]}\n" : "");
    result = spate_cli_print(&out);
    spate_buf_fini(&out);
    return result;
}

bool spate_cli_bus_has(const struct spate_cli_bus *bus, const char *topic)
{
    for (size_t i = 0; i < bus->topic_count; i++)
        if (strcmp(bus->topics[i], topic) == 0)
            return true;
    return false;
}

/* People know connectors and sinks by their own names, which a bus cannot always carry. */
static void as_on_the_bus(struct spate_cli_bus *bus)
{
    struct spate_err ignored = {0};

    if (bus->topic && !spate_cli_bus_has(bus, bus->topic) &&
        spate_topic_escape(bus->topic, bus->topic_escaped, sizeof bus->topic_escaped, &ignored) == SPATE_OK &&
        spate_cli_bus_has(bus, bus->topic_escaped))
        bus->topic = bus->topic_escaped;
    if (!bus->name ||
        spate_topic_escape(bus->name, bus->name_escaped, sizeof bus->name_escaped, &ignored) != SPATE_OK)
        bus->name_escaped[0] = '\0';
}

static enum spate_exit open_bus(struct spate_cli_bus *bus, const struct word *word)
{
    struct spate_err err = {0};
    enum spate_exit result = spate_cli_stream_bus(&bus->stream, &text);
    struct spate_local_bus *local;
    int root = -1;

    if (result != SPATE_EXIT_OK)
        return result;
    if (strcmp(bus->stream.bus->ops->name, "local") == 0) {
        local = (struct spate_local_bus *)bus->stream.bus;
        bus->place = &local->place;
        const enum spate_rc rc = spate_local_place_durable(bus->place, &root, &err);
        if (rc == SPATE_END)
            (void)spate_fail(
                &err, SPATE_RETRY,
                "there is no bus at %s: the directory is not there; a connector makes it when it "
                "starts, or the name is wrong (bus.local.path)",
                bus->place->path);
        if (rc != SPATE_OK)
            return spate_cli_failed(&err);
        close(root);
    } else if (word->run != spate_cli_bus_ls) {
        return only_local(word);
    }
    if (spate_bus_topics(bus->stream.bus, note_topic, bus, &err) != SPATE_OK)
        return spate_cli_failed(&err);
    if (bus->topic_count > 0)
        qsort(bus->topics, bus->topic_count, sizeof *bus->topics, by_name);
    as_on_the_bus(bus);
    return SPATE_EXIT_OK;
}

enum spate_exit spate_cli_bus_no_topic(const struct spate_cli_bus *bus, const char *topic)
{
    const char *near = spate_nearest(topic, (const char *const *)bus->topics, bus->topic_count);

    return spate_cli_misuse(&text, "there is no topic %s on the bus at %s%s%s%s", topic, bus->place->path,
                            near ? "; did you mean " : "; spate bus ls lists them", near ? near : "",
                            near ? "?" : "");
}

enum spate_exit spate_cli_bus(int argc, char **argv)
{
    struct spate_cli_bus bus = {.text = &text};
    const struct word *word = NULL;
    enum spate_exit result = SPATE_EXIT_OK;
    int got;

    spate_log_level_set(SPATE_LOG_WARN); /* a person watches */
    while ((got = spate_cli_next(argc, argv, "c:", options, &text, &result)) != -1) {
        if (got == '?')
            return result;
        take(&bus, got);
    }
    result = take_word(&bus, argc - optind, argv + optind, &word);
    if (result == SPATE_EXIT_OK)
        result = open_bus(&bus, word);
    if (result == SPATE_EXIT_OK)
        result = bus.place ? word->run(&bus) : list_names(&bus);
    for (size_t i = 0; i < bus.topic_count; i++)
        free(bus.topics[i]);
    free(bus.topics);
    spate_cli_stream_close(&bus.stream);
    return result;
}
