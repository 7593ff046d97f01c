/* connector/desk.c - the desk's thread: between the data plane's queues and the topic `_control`.
 *
 * Whatever fails here is tried again, and never stops the stream: requesters that hear nothing send again. */
#include "connector/counter.h"

#include "core/alloc.h"
#include "core/clock.h"
#include "core/signals.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define READ_MOST     256 /* records per turn */
#define PUBLISH_MOST  64
#define BUSY_MS       10 /* a reader has no descriptor: so long errands may wait */
#define CALM_MS       50
#define PAUSE_FIRST   200
#define PAUSE_LAST    5000
#define LAST_WORDS_MS 500
#define OUTGOING_MOST 4096 /* lines; beyond it nothing more is read */

/* ---- queues: any thread ---- */

void spate_order_free(struct spate_order *order)
{
    if (!order)
        return;
    spate_plan_free(order->plan);
    free(order->request);
    free(order->sink);
    free(order->schema);
    free(order->table);
    free(order->keys);
    free(order->why);
    free(order->xids);
    free(order);
}

static void wake(int fd)
{
    if (eventfd_write(fd, 1) != 0)
        return; /* the counter is full: it is awake */
}

void spate_desk_hand(struct spate_desk *desk, struct spate_order *order)
{
    order->next = NULL;
    order->session = desk->session;
    pthread_mutex_lock(&desk->lock);
    *desk->orders_end = order;
    desk->orders_end = &order->next;
    pthread_mutex_unlock(&desk->lock);
    wake(desk->orders_fd);
}

/* Under the lock. */
static struct spate_order *first_order(struct spate_desk *desk)
{
    struct spate_order *order = desk->orders;

    if (order) {
        desk->orders = order->next;
        if (!desk->orders)
            desk->orders_end = &desk->orders;
    }
    return order;
}

struct spate_order *spate_desk_take(struct spate_desk *desk)
{
    struct spate_order *order;
    eventfd_t ignored;

    pthread_mutex_lock(&desk->lock);
    while ((order = first_order(desk)) != NULL && order->session != desk->current)
        spate_order_free(order); /* of a session that is over: its requester asks again */
    if (!desk->orders && eventfd_read(desk->orders_fd, &ignored) != 0)
        ignored = 0; /* nobody had woken us */
    pthread_mutex_unlock(&desk->lock);
    return order;
}

int spate_desk_fd(struct spate_desk *desk)
{
    return desk->orders_fd;
}

static void send_errand(struct spate_desk *desk, struct spate_errand *errand)
{
    pthread_mutex_lock(&desk->lock);
    if (errand->kind == SPATE_ERRAND_SESSION)
        desk->current = errand->session;
    else if (errand->kind == SPATE_ERRAND_LEAVE)
        desk->current = 0;
    *desk->errands_end = errand;
    desk->errands_end = &errand->next;
    pthread_mutex_unlock(&desk->lock);
    wake(desk->inbox_fd);
}

static struct spate_errand *errand_new(enum spate_errand_kind kind)
{
    struct spate_errand *errand = spate_zalloc(sizeof *errand);

    errand->kind = kind;
    return errand;
}

static void errand_free(struct spate_errand *errand)
{
    free(errand->request);
    free(errand->schema);
    free(errand->table);
    spate_buf_fini(&errand->line);
    free(errand);
}

void spate_desk_session(struct spate_desk *desk, uint64_t session, uint64_t epoch)
{
    struct spate_errand *errand = errand_new(SPATE_ERRAND_SESSION);

    errand->session = session;
    errand->epoch = epoch;
    send_errand(desk, errand);
}

void spate_desk_leave(struct spate_desk *desk)
{
    send_errand(desk, errand_new(SPATE_ERRAND_LEAVE));
}

void spate_desk_replan(struct spate_desk *desk, const char *request, struct spate_slice schema,
                       struct spate_slice table)
{
    struct spate_errand *errand = errand_new(SPATE_ERRAND_REPLAN);

    errand->request = spate_strdup(request);
    errand->schema = spate_strndup(schema.at, schema.len);
    errand->table = spate_strndup(table.at, table.len);
    send_errand(desk, errand);
}

void spate_desk_forget(struct spate_desk *desk, const char *request)
{
    struct spate_errand *errand = errand_new(SPATE_ERRAND_FORGET);

    errand->request = spate_strdup(request);
    send_errand(desk, errand);
}

void spate_desk_say(struct spate_desk *desk, struct spate_slice line)
{
    struct spate_errand *errand = errand_new(SPATE_ERRAND_SAY);

    spate_buf_slice(&errand->line, line);
    send_errand(desk, errand);
}

/* ---- lines that go out ---- */

static void outgoing_remove(struct spate_desk *desk, struct spate_outgoing **link)
{
    struct spate_outgoing *gone = *link;

    *link = gone->next;
    if (!*link)
        desk->outgoing_end = link;
    desk->outgoing_count--;
    spate_buf_fini(&gone->line);
    free(gone->progress);
    free(gone);
}

void spate_desk_send(struct spate_desk *desk, struct spate_slice line)
{
    struct spate_outgoing *new = spate_zalloc(sizeof *new), **link;

    spate_buf_slice(&new->line, line);
    new->progress = spate_counter_passes(desk, line);
    new->token = ++desk->last_token;
    /* Only the newest news is news. */
    for (link = &desk->outgoing; new->progress &&*link;)
        if (!(*link)->sent && (*link)->progress && strcmp((*link)->progress, new->progress) == 0)
            outgoing_remove(desk, link);
        else
            link = &(*link)->next;
    *desk->outgoing_end = new;
    desk->outgoing_end = &new->next;
    desk->outgoing_count++;
}

/* This one and all before it are durable. */
static void durable(void *arg, uint64_t token)
{
    struct spate_desk *desk = arg;

    while (desk->outgoing && desk->outgoing->sent && desk->outgoing->token <= token)
        outgoing_remove(desk, &desk->outgoing);
}

/* Offers the lines from *at on, as many as one call takes: on the local bus each call waits for the disk. *at
 * moves behind what was taken. */
static enum spate_rc publish_batch(struct spate_desk *desk, struct spate_outgoing **at, struct spate_err *err)
{
    struct spate_record records[PUBLISH_MOST];
    struct spate_outgoing *line = *at;
    size_t count = 0, taken = 0;
    enum spate_rc rc;

    for (; line && count < PUBLISH_MOST; line = line->next)
        records[count++] = (struct spate_record){
            .value = spate_buf_view(&line->line), .ts_us = spate_clock_wall_us(), .token = line->token};
    rc = spate_writer_publish(desk->writer, records, count, &taken, err);
    for (line = *at; taken > 0; taken--, line = line->next)
        line->sent = true;
    *at = line;
    return rc;
}

static enum spate_rc publish(struct spate_desk *desk, struct spate_err *err)
{
    struct spate_outgoing **link = &desk->outgoing, *line;
    enum spate_rc rc = SPATE_OK;

    while (*link && (*link)->sent)
        link = &(*link)->next;
    for (line = *link; line && rc == SPATE_OK;) {
        rc = publish_batch(desk, &line, err);
        if (rc != SPATE_FAIL || err->verdict != SPATE_QUARANTINE)
            continue;
        spate_log_err(SPATE_LOG_WARN, "control-unsaid", err); /* too large for this bus, or the like */
        while (*link != line)
            link = &(*link)->next;
        outgoing_remove(desk, link);
        line = *link;
        rc = SPATE_OK;
    }
    if (rc == SPATE_FAIL)
        return rc;
    return spate_writer_poll(desk->writer, 0, durable, desk, err) == SPATE_FAIL ? SPATE_FAIL : SPATE_OK;
}

/* ---- the bus ---- */

static void bus_close(struct spate_desk *desk)
{
    spate_reader_close(desk->reader);
    spate_writer_close(desk->writer);
    spate_bus_close(desk->bus);
    desk->reader = NULL;
    desk->writer = NULL;
    desk->bus = NULL;
    for (struct spate_outgoing *line = desk->outgoing; line; line = line->next)
        line->sent = false; /* what was not durable is said again: answers may come twice */
}

static void from_oldest(struct spate_desk *desk)
{
    desk->placed = false;
    desk->catching_up = true;
}

static void bus_failed(struct spate_desk *desk, struct spate_err *err)
{
    unsigned hidden = 0;

    bus_close(desk);
    if (err->verdict == SPATE_FATAL)
        from_oldest(desk); /* it is another log now, or damaged where we stood */
    spate_err_context(err, "topic %s, where requests for snapshots are read: the stream goes on without it",
                      desk->topic);
    if (spate_log_due(&desk->bus_limit, spate_clock_ms(), 60000, &hidden))
        spate_log_err(SPATE_LOG_WARN, "control-away", err);
    desk->bus_pause_ms = desk->bus_pause_ms ? desk->bus_pause_ms * 2 : PAUSE_FIRST;
    if (desk->bus_pause_ms > PAUSE_LAST)
        desk->bus_pause_ms = PAUSE_LAST;
    desk->bus_ms = spate_clock_ms() + desk->bus_pause_ms;
}

/* Requests are taken as they come, not only when they are durable: one that a power cut takes back is sent
 * again by its requester. */
static enum spate_rc bus_open(struct spate_desk *desk, struct spate_err *err)
{
    struct spate_start start = {.from = desk->placed ? SPATE_START_AT : SPATE_START_OLDEST,
                                .pos = desk->next};
    enum spate_rc rc = spate_bus_open(&desk->config->bus, &desk->bus, err);

    if (rc == SPATE_OK)
        rc = spate_bus_writer_open(desk->bus, desk->topic, SPATE_TOPIC_CREATE | SPATE_TOPIC_SHARED,
                                   &desk->writer, err);
    if (rc == SPATE_OK)
        rc = spate_bus_reader_open(desk->bus, desk->topic, SPATE_SEE_TIP, start, &desk->reader, err);
    if (rc == SPATE_OK && desk->placed && strcmp(desk->log_id, spate_reader_log_id(desk->reader)) != 0) {
        from_oldest(desk);
        rc = spate_reader_seek(desk->reader, (struct spate_start){.from = SPATE_START_OLDEST}, err);
    }
    if (rc != SPATE_OK)
        return rc;
    free(desk->log_id);
    desk->log_id = spate_strdup(spate_reader_log_id(desk->reader));
    return SPATE_OK;
}

static enum spate_rc read_some(struct spate_desk *desk, struct spate_err *err)
{
    for (int i = 0; i < READ_MOST && desk->outgoing_count < OUTGOING_MOST; i++) {
        struct spate_message message;
        enum spate_rc rc = spate_reader_next(desk->reader, &message, err);

        if (rc == SPATE_AGAIN) {
            if (desk->catching_up)
                spate_counter_caught_up(desk);
            desk->catching_up = false;
            desk->bus_pause_ms = 0;
            return SPATE_AGAIN;
        }
        if (rc != SPATE_OK)
            return rc;
        if (message.kind == SPATE_MESSAGE_RECORD)
            spate_counter_hear(desk, message.value, message.ts_us);
        desk->next = message.next;
        desk->placed = true;
    }
    return SPATE_OK;
}

/* ---- the thread ---- */

static void run_errand(struct spate_desk *desk, const struct spate_errand *errand)
{
    switch (errand->kind) {
    case SPATE_ERRAND_SESSION:
        desk->live = true;
        desk->catching_up = true;
        desk->session = errand->session;
        desk->epoch = errand->epoch;
        spate_counter_before(desk, true);
        spate_counter_started(desk);
        break;
    case SPATE_ERRAND_LEAVE:
        desk->live = false;
        spate_counter_before(desk, false);
        spate_counter_leave(desk);
        break;
    case SPATE_ERRAND_REPLAN:
        spate_counter_replan(desk, errand);
        break;
    case SPATE_ERRAND_FORGET:
        spate_counter_forget(desk, errand->request);
        break;
    case SPATE_ERRAND_SAY:
        spate_desk_send(desk, spate_buf_view(&errand->line));
        break;
    }
}

static void run_errands(struct spate_desk *desk)
{
    struct spate_errand *errand, *next;
    eventfd_t ignored;

    pthread_mutex_lock(&desk->lock);
    errand = desk->errands;
    desk->errands = NULL;
    desk->errands_end = &desk->errands;
    if (eventfd_read(desk->inbox_fd, &ignored) != 0)
        ignored = 0; /* nobody had woken us */
    pthread_mutex_unlock(&desk->lock);
    for (; errand; errand = next) {
        next = errand->next;
        run_errand(desk, errand);
        errand_free(errand);
    }
}

static void rest(struct spate_desk *desk, int64_t ms)
{
    struct pollfd fd = {.fd = desk->inbox_fd, .events = POLLIN};

    poll(&fd, 1, (int)(ms < 1 ? 1 : ms > 1000 ? 1000 : ms));
}

/* Reads and publishes; then waits for more of either. */
static void serve_bus(struct spate_desk *desk)
{
    struct spate_err err = {0};
    enum spate_rc rc = SPATE_OK, waited;
    bool more = false;

    if (!desk->bus)
        rc = bus_open(desk, &err);
    if (rc == SPATE_OK && desk->live)
        rc = read_some(desk, &err);
    more = rc == SPATE_OK && desk->live;
    if (rc != SPATE_FAIL) {
        if (desk->live)
            spate_counter_work(desk);
        rc = publish(desk, &err);
    }
    if (rc == SPATE_OK && !more) {
        waited =
            desk->live ? spate_reader_wait(desk->reader, desk->known ? BUSY_MS : CALM_MS, &err) : SPATE_OK;
        if (waited == SPATE_FAIL)
            rc = waited;
        if (!desk->live)
            rest(desk, desk->outgoing ? BUSY_MS : 1000);
    }
    if (rc == SPATE_FAIL)
        bus_failed(desk, &err);
}

/* The data plane said its last; a little time to get it out. */
static void last_words(struct spate_desk *desk)
{
    int64_t until_ms = spate_clock_ms() + LAST_WORDS_MS;
    struct spate_err err = {0};

    run_errands(desk);
    while (desk->bus && desk->outgoing && spate_clock_ms() < until_ms) {
        if (publish(desk, &err) == SPATE_FAIL)
            return;
        if (desk->outgoing)
            rest(desk, BUSY_MS);
    }
}

static void *serve(void *arg)
{
    struct spate_desk *desk = arg;

    while (!atomic_load(&desk->stopping)) {
        run_errands(desk);
        if ((!desk->live && !desk->outgoing) || spate_clock_ms() < desk->bus_ms)
            rest(desk, desk->live ? desk->bus_ms - spate_clock_ms() : 1000);
        else
            serve_bus(desk);
    }
    last_words(desk);
    bus_close(desk);
    return NULL;
}

enum spate_rc spate_desk_open(const struct spate_connector_config *config, struct spate_desk **out,
                              struct spate_err *err)
{
    struct spate_desk *desk = spate_zalloc(sizeof *desk);
    enum spate_rc rc;

    *out = NULL;
    desk->config = config;
    desk->errands_end = &desk->errands;
    desk->orders_end = &desk->orders;
    desk->outgoing_end = &desk->outgoing;
    desk->catching_up = true;
    desk->inbox_fd = desk->orders_fd = -1;
    pthread_mutex_init(&desk->lock, NULL);
    rc = spate_topic_escape(config->name, desk->stream, sizeof desk->stream, err);
    if (rc == SPATE_OK) {
        snprintf(desk->topic, sizeof desk->topic, "%s._control", desk->stream);
        desk->inbox_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        desk->orders_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (desk->inbox_fd < 0 || desk->orders_fd < 0 ||
            pthread_create(&desk->thread, NULL, serve, desk) != 0)
            rc = spate_fail(
                err, SPATE_FATAL,
                "no thread or descriptor for requests: raise the limits of this process (ulimit -n, "
                "ulimit -u)");
    }
    if (rc == SPATE_OK) {
        *out = desk;
        return SPATE_OK;
    }
    if (desk->inbox_fd >= 0)
        close(desk->inbox_fd);
    if (desk->orders_fd >= 0)
        close(desk->orders_fd);
    pthread_mutex_destroy(&desk->lock);
    free(desk);
    return rc;
}

void spate_desk_close(struct spate_desk *desk)
{
    if (!desk)
        return;
    atomic_store(&desk->stopping, true);
    wake(desk->inbox_fd);
    pthread_join(desk->thread, NULL);
    run_errands(desk);
    while (desk->orders)
        spate_order_free(first_order(desk));
    spate_counter_fini(desk);
    while (desk->outgoing)
        outgoing_remove(desk, &desk->outgoing);
    close(desk->inbox_fd);
    close(desk->orders_fd);
    pthread_mutex_destroy(&desk->lock);
    free(desk->log_id);
    free(desk);
}
