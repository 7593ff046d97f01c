/* connector_desk FILE - the desk of a connector by itself: prints what it hands to the data plane, one JSON
 * object a line, and does as stdin says, one command a line, words separated by tabs: session NUMBER EPOCH |
 * leave | replan REQUEST SCHEMA TABLE | forget REQUEST | say LINE */
#include "config/load.h"
#include "connector/desk.h"
#include "core/buf.h"
#include "core/log.h"
#include "core/signals.h"
#include "schemas/json.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const kinds[] = {"request", "replan", "cancel", "reread", "finished", "before"};

static void put(struct spate_buf *out, const char *name, const char *text)
{
    spate_buf_printf(out, ",\"%s\":", name);
    if (text)
        spate_json_put_name(out, spate_slice_str(text));
    else
        spate_buf_puts(out, "null");
}

static void put_leaf(struct spate_buf *out, const struct spate_plan_leaf *leaf)
{
    spate_buf_printf(out, "{\"oid\":%u,\"pages\":%" PRIu64 ",\"rows\":%.0f", leaf->oid, leaf->pages,
                     leaf->rows);
    put(out, "name", leaf->name);
    put(out, "filter", leaf->filter);
    put(out, "stamp", leaf->stamp);
    spate_buf_putc(out, '}');
}

static void put_table(struct spate_buf *out, const struct spate_plan_table *table)
{
    const char *comma = "";

    spate_buf_printf(out, "{\"all\":%s,\"by_key\":%s,\"chunk\":%" PRIu64, table->all ? "true" : "false",
                     table->by_key ? "true" : "false", table->chunk);
    spate_buf_puts(out, ",\"schema\":");
    spate_json_put_name(out, table->table->schema);
    spate_buf_puts(out, ",\"table\":");
    spate_json_put_name(out, table->table->name);
    put(out, "resume", table->resume);
    spate_buf_puts(out, ",\"asked\":[");
    for (size_t i = 0; i < table->table->column_count; i++)
        if (table->asked[i]) {
            spate_buf_puts(out, comma);
            spate_json_put_name(out, table->table->columns[i].name);
            comma = ",";
        }
    spate_buf_puts(out, "],\"where\":[");
    for (size_t i = 0; i < table->where_count; i++) {
        spate_buf_printf(out, "%s{\"column\":", i ? "," : "");
        spate_json_put_name(out, table->table->columns[table->where[i].column].name);
        put(out, "op", table->where[i].op);
        put(out, "value", table->where[i].value);
        spate_buf_putc(out, '}');
    }
    spate_buf_puts(out, "],\"leaves\":[");
    for (size_t i = 0; i < table->leaf_count; i++) {
        spate_buf_puts(out, i ? "," : "");
        put_leaf(out, &table->leaves[i]);
    }
    spate_buf_puts(out, "]}");
}

static void print(const struct spate_order *order)
{
    struct spate_buf out = {0};

    spate_buf_printf(&out, "{\"kind\":\"%s\",\"session\":%" PRIu64, kinds[order->kind], order->session);
    put(&out, "request", order->request);
    put(&out, "sink", order->sink);
    put(&out, "schema", order->schema);
    put(&out, "table", order->table);
    put(&out, "keys", order->keys);
    put(&out, "why", order->why);
    spate_buf_printf(&out, ",\"chunk\":%" PRIu64 ",\"xids\":[", order->chunk);
    for (size_t i = 0; i < order->xid_count; i++)
        spate_buf_printf(&out, "%s%u", i ? "," : "", order->xids[i]);
    spate_buf_puts(&out, "],\"plan\":");
    if (!order->plan)
        spate_buf_puts(&out, "null");
    for (size_t i = 0; order->plan && i < order->plan->count; i++) {
        spate_buf_puts(&out, i ? "," : "[");
        put_table(&out, &order->plan->tables[i]);
    }
    spate_buf_printf(&out, "%s,\"again\":%s}", order->plan ? "]" : "",
                     order->plan && order->plan->again ? "true" : "false");
    puts(spate_buf_str(&out));
    fflush(stdout);
    spate_buf_fini(&out);
}

static void obey(struct spate_desk *desk, char *line)
{
    char *words[5] = {line};
    size_t count = 1;

    line[strcspn(line, "\n")] = '\0';
    while (count < 4 && (words[count] = strchr(words[count - 1], '\t')) != NULL)
        *words[count++]++ = '\0';
    if (!strcmp(words[0], "session") && count == 3)
        spate_desk_session(desk, strtoull(words[1], NULL, 10), strtoull(words[2], NULL, 10));
    else if (!strcmp(words[0], "leave"))
        spate_desk_leave(desk);
    else if (!strcmp(words[0], "replan") && count == 4)
        spate_desk_replan(desk, words[1], spate_slice_str(words[2]), spate_slice_str(words[3]));
    else if (!strcmp(words[0], "forget") && count == 2)
        spate_desk_forget(desk, words[1]);
    else if (!strcmp(words[0], "say") && count == 2)
        spate_desk_say(desk, spate_slice_str(words[1]));
    else
        fprintf(stderr, "connector_desk: %s?\n", words[0]);
}

static void serve(struct spate_desk *desk)
{
    struct pollfd fds[2] = {{.fd = 0, .events = POLLIN}, {.fd = spate_desk_fd(desk), .events = POLLIN}};
    char *line = NULL;
    size_t cap = 0;

    for (;;) {
        struct spate_order *order;

        poll(fds, 2, 1000);
        while ((order = spate_desk_take(desk)) != NULL) {
            print(order);
            spate_order_free(order);
        }
        if (fds[0].revents && getline(&line, &cap, stdin) <= 0)
            break;
        if (fds[0].revents)
            obey(desk, line);
    }
    free(line);
}

int main(int argc, char **argv)
{
    struct spate_connector_config config = {.path = argv[argc - 1]};
    struct spate_desk *desk = NULL;
    struct spate_err err = {0};
    enum spate_rc rc;

    if (argc != 2) {
        fprintf(stderr, "usage: connector_desk FILE\n");
        return 2;
    }
    setvbuf(stdin, NULL, _IONBF, 0); /* poll sees what is left */
    spate_signals_init();
    rc = spate_config_load(argv[1], spate_connector_tables, spate_connector_table_count, &config, &err);
    if (rc == SPATE_OK)
        rc = spate_connector_check(&config, &err);
    if (rc == SPATE_OK)
        rc = spate_desk_open(&config, &desk, &err);
    if (rc == SPATE_OK)
        serve(desk);
    else
        fprintf(stderr, "connector_desk: %s\n", err.text);
    spate_desk_close(desk);
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
    return rc != SPATE_OK;
}
