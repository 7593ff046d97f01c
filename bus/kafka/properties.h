/* bus/kafka/properties.h - librdkafka's properties: what we set, what a file may say. Internal to bus/kafka/.
 *
 * Thread: any. Blocks: never; reads the password's file. */
#ifndef SPATE_BUS_KAFKA_PROPERTIES_H
#define SPATE_BUS_KAFKA_PROPERTIES_H

#include "bus/kafka/client.h"

/* The value that a handle gets for a property where the file says it; NULL: the file does not. */
const char *spate_kafka_said(const struct spate_kafka_config *config, const char *name);

/* Sets everything a handle of that role gets, the password too; *password is a copy of it, or NULL: wipe it.
 * SPATE_FAIL: fatal = CONFIG; retry = the password's file cannot be read now. */
SPATE_CHECKED enum spate_rc spate_kafka_apply(const struct spate_kafka_config *config,
                                              enum spate_kafka_role role, size_t max_message_bytes,
                                              rd_kafka_conf_t *conf, char **password, struct spate_err *err);

/* The same without the password and what belongs to one topic. */
SPATE_CHECKED enum spate_rc spate_kafka_set(const struct spate_kafka_config *config,
                                            enum spate_kafka_role role, rd_kafka_conf_t *conf,
                                            struct spate_err *err);
/* Refuses a property on which correctness rests and that says something else; warns about one without use. */
SPATE_CHECKED enum spate_rc spate_kafka_rules_hold(const struct spate_pair *pair, struct spate_err *err);

/* Fills err: fatal, exit code CONFIG. */
enum spate_rc spate_kafka_refuse(struct spate_err *err, const char *fmt, ...) SPATE_PRINTF(2, 3);
/* "bus.kafka.properties.acks (line 12)" */
const char *spate_kafka_place(const struct spate_pair *pair, char *out, size_t size);

/* The password of this moment. *password stays NULL where none is configured. */
SPATE_CHECKED enum spate_rc spate_kafka_password(const struct spate_kafka_config *config, char **password,
                                                 struct spate_err *err);

void spate_kafka_wipe(char *password); /* and frees it; accepts NULL */

const char *spate_kafka_mechanism(const struct spate_kafka_config *config); /* sasl.mechanism, or NULL */
bool spate_kafka_uses_tls(const struct spate_kafka_config *config);
bool spate_kafka_uses_sasl(const struct spate_kafka_config *config);
bool spate_kafka_uses_scram(const struct spate_kafka_config *config);

/* K34: librdkafka before this version builds a SCRAM nonce that Kafka 4 refuses. */
#define SPATE_KAFKA_SCRAM_GOOD 0x020601ff

#endif
