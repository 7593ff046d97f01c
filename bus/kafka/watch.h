/* bus/kafka/watch.h - looks now and then how many partitions a topic has, beside a writer.
 *
 * Thread: has one of its own, because asking for metadata waits for a broker; it shares one number with the
 *         writer's thread. */
#ifndef SPATE_BUS_KAFKA_WATCH_H
#define SPATE_BUS_KAFKA_WATCH_H

#include <librdkafka/rdkafka.h>

struct spate_kafka_watch;

/* `handle` and `topic` are borrowed until stop; event_fd (an eventfd) is rung when the number is no longer 1.
 * NULL: no thread could be made; the look at the next opening must do. */
struct spate_kafka_watch *spate_kafka_watch_start(rd_kafka_t *handle, rd_kafka_topic_t *topic, int event_fd);

/* As last seen; 1 until then. Accepts NULL. */
int spate_kafka_watch_partitions(const struct spate_kafka_watch *watch);

/* Waits for a look that is under way, at most about a second. Accepts NULL. */
void spate_kafka_watch_stop(struct spate_kafka_watch *watch);

#endif
