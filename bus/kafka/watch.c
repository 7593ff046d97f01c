/* bus/kafka/watch.c - a thread that sleeps, asks for the topic's metadata, and sleeps (K11, F55). */
#include "bus/kafka/watch.h"

#include "core/alloc.h"
#include "core/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define EVERY_MS 30000 /* or topic.metadata.refresh.interval.ms, when that is less */
#define ASK_MS   1000

struct spate_kafka_watch {
    rd_kafka_t *handle;
    rd_kafka_topic_t *topic;
    int event_fd;
    int64_t every_ms;
    atomic_int partitions;
    pthread_t thread;
    pthread_mutex_t lock; /* of stop */
    pthread_cond_t wake;
    bool stop;
};

static int64_t interval(rd_kafka_t *handle)
{
    char text[32];
    size_t size = sizeof text;

    if (rd_kafka_conf_get(rd_kafka_conf(handle), "topic.metadata.refresh.interval.ms", text, &size) !=
        RD_KAFKA_CONF_OK)
        return EVERY_MS;
    const long ms = strtol(text, NULL, 10);
    return ms > 0 && ms < EVERY_MS ? ms : EVERY_MS;
}

/* False: told to stop. */
static bool rest(struct spate_kafka_watch *watch)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += watch->every_ms / 1000;
    until.tv_nsec += watch->every_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&watch->lock);
    while (!watch->stop && pthread_cond_timedwait(&watch->wake, &watch->lock, &until) == 0)
        ;
    const bool stop = watch->stop;
    pthread_mutex_unlock(&watch->lock);
    return !stop;
}

static void look(struct spate_kafka_watch *watch)
{
    const struct rd_kafka_metadata *metadata;

    if (rd_kafka_metadata(watch->handle, 0, watch->topic, &metadata, ASK_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return; /* whoever publishes hears of that by itself */
    if (metadata->topic_cnt == 1 && metadata->topics[0].err == RD_KAFKA_RESP_ERR_NO_ERROR &&
        metadata->topics[0].partition_cnt != 1) {
        const uint64_t one = 1;
        atomic_store(&watch->partitions, metadata->topics[0].partition_cnt);
        (void)!write(watch->event_fd, &one, sizeof one); /* full: it is readable already */
    }
    rd_kafka_metadata_destroy(metadata);
}

static void *run(void *arg)
{
    while (rest(arg))
        look(arg);
    return NULL;
}

struct spate_kafka_watch *spate_kafka_watch_start(rd_kafka_t *handle, rd_kafka_topic_t *topic, int event_fd)
{
    struct spate_kafka_watch *watch = spate_zalloc(sizeof *watch);
    pthread_condattr_t monotonic;

    watch->handle = handle;
    watch->topic = topic;
    watch->event_fd = event_fd;
    watch->every_ms = interval(handle);
    atomic_init(&watch->partitions, 1);
    pthread_mutex_init(&watch->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&watch->thread, NULL, run, watch) == 0)
        return watch;
    pthread_cond_destroy(&watch->wake);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
    return NULL;
}

int spate_kafka_watch_partitions(const struct spate_kafka_watch *watch)
{
    return watch ? atomic_load_explicit(&watch->partitions, memory_order_relaxed) : 1;
}

void spate_kafka_watch_stop(struct spate_kafka_watch *watch)
{
    if (!watch)
        return;
    pthread_mutex_lock(&watch->lock);
    watch->stop = true;
    pthread_cond_signal(&watch->wake);
    pthread_mutex_unlock(&watch->lock);
    pthread_join(watch->thread, NULL);
    pthread_cond_destroy(&watch->wake);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
}
