/* The option tables of all modules are whole, and the samples that people copy are right. Run from the root.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/load.h"
#include "connector/connector.h"
#include "core/alloc.h"
#include "sinks/sink.h"

static void check_options(const char *prefix, const struct spate_option *options, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct spate_option *option = &options[i];
        size_t len = option->doc ? strlen(option->doc) : 0;

        if (len < 10 || option->doc[len - 1] != '.')
            fail_msg("%s.%s: its doc is no sentence", prefix, option->key);
        if (option->min > option->max)
            fail_msg("%s.%s: its range is empty", prefix, option->key);
        if ((option->flags & SPATE_OPT_REQUIRED) && option->fallback)
            fail_msg("%s.%s: required, and yet it has a default", prefix, option->key);
        if ((option->type == SPATE_OPT_ENUM) != (option->choices != NULL))
            fail_msg("%s.%s: choices belong to an ENUM", prefix, option->key);
        if ((option->type == SPATE_OPT_GROUP) != (option->group != NULL))
            fail_msg("%s.%s: a group belongs to a GROUP", prefix, option->key);
        if (strstr(option->key, "url") && !(option->flags & SPATE_OPT_URL))
            fail_msg("%s.%s: a url may hold a password", prefix, option->key);
        if (option->group)
            check_options(option->key, option->group->options, option->group->count);
    }
}

static void tables_are_whole(void **state)
{
    (void)state;
    for (size_t t = 0; t < spate_connector_table_count; t++)
        check_options(spate_connector_tables[t].prefix, spate_connector_tables[t].options,
                      spate_connector_tables[t].count);
    for (size_t t = 0; t < spate_sink_table_count; t++)
        check_options(spate_sink_tables[t].prefix, spate_sink_tables[t].options, spate_sink_tables[t].count);
}

/* Loading fills in every default: one that is not what its option takes ends the program. */
static void samples_load(void **state)
{
    struct spate_connector_config connector = {0};
    struct spate_sink_config billing = {0}, search = {0};
    const struct spate_sink_table_config *table;
    struct spate_err err = {0};

    (void)state;
    if (spate_config_load("config/connector.yaml", spate_connector_tables, spate_connector_table_count,
                          &connector, &err) != SPATE_OK)
        fail_msg("%s", err.text);
    assert_string_equal(connector.name, "shop");
    assert_true(connector.source.create);
    assert_int_equal(connector.tables.count, 1);
    assert_string_equal(connector.bus.local_path, "/var/lib/spate/bus");
    assert_true(connector.heartbeat_ms > 0 && connector.stop_deadline_ms > 0);

    if (spate_config_load("config/billing.yaml", spate_sink_tables, spate_sink_table_count, &billing, &err) !=
            SPATE_OK ||
        spate_config_load("config/search.yaml", spate_sink_tables, spate_sink_table_count, &search, &err) !=
            SPATE_OK)
        fail_msg("%s", err.text);
    assert_string_equal(billing.from, connector.name);
    assert_string_equal(search.bus.local_path, connector.bus.local_path);
    assert_int_equal(billing.tables.count, 2);
    table = billing.tables.at;
    assert_string_equal(table[0].item.name, "invoices");
    assert_string_equal(table[0].columns.at[0].key, "invoice");
    assert_string_equal(table[0].key.at[0], "invoice");
    assert_int_equal(table[1].columns.count, 0);

    spate_options_fini(&connector, spate_connector_tables, spate_connector_table_count);
    spate_options_fini(&billing, spate_sink_tables, spate_sink_table_count);
    spate_options_fini(&search, spate_sink_tables, spate_sink_table_count);
}

/* The sample's other bus, which stands there behind hashes: without them, and without the first one, it
 * loads. */
static void the_other_bus_of_the_sample_loads(void **state)
{
    char path[] = "/tmp/spate-sample-XXXXXX", line[300];
    FILE *in = fopen("config/connector.yaml", "r"), *out = fdopen(mkstemp(path), "w");
    struct spate_connector_config config = {0};
    struct spate_err err = {0};
    bool skip = false, other = false;

    (void)state;
    assert_non_null(in);
    assert_non_null(out);
    while (fgets(line, sizeof line, in)) {
        skip |= strcmp(line, "  local:\n") == 0;
        other |= strcmp(line, "  # kafka:\n") == 0;
        if (other)
            fprintf(out, "  %s", line + strlen("  # "));
        else if (!skip)
            fputs(line, out);
    }
    fclose(in);
    fclose(out);
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, &err) !=
        SPATE_OK)
        fail_msg("%s", err.text);
    unlink(path);
    assert_null(config.bus.local_path);
    assert_non_null(strstr(config.bus.kafka.brokers, "k1.example"));
    assert_string_equal(config.bus.kafka.properties.at[0].key, "security.protocol");
    assert_true(config.bus.kafka.create);
    assert_int_equal(config.bus.kafka.retention_ms, INT64_C(7) * 86400000);
    assert_int_equal(config.bus.kafka.max_message_bytes, 16 << 20);
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
}

/* Passwords and keys among the properties of librdkafka are not printed; their neighbours are. */
static void secrets_among_properties_are_masked(void **state)
{
    static const char *const secrets[] = {"sasl.password",           "ssl.key.password",
                                          "ssl.keystore.password",   "ssl.key.pem",
                                          "sasl.oauthbearer.config", "sasl.oauthbearer.client.secret"};
    char path[] = "/tmp/spate-secret-XXXXXX";
    FILE *out = fdopen(mkstemp(path), "w");
    struct spate_connector_config config = {0};
    struct spate_err err = {0};
    struct spate_buf text = {0};

    (void)state;
    assert_non_null(out);
    fputs("connector: shop\nsource: {postgres: {url: \"host=h\"}}\nbus:\n  kafka:\n    brokers: k1:9092\n"
          "    properties:\n      linger.ms: 7\n      sasl.username: somebody\n      ssl.ca.pem: public\n",
          out);
    for (size_t i = 0; i < SPATE_COUNT(secrets); i++)
        fprintf(out, "      %s: hunter2\n", secrets[i]);
    fclose(out);
    if (spate_config_load(path, spate_connector_tables, spate_connector_table_count, &config, &err) !=
        SPATE_OK)
        fail_msg("%s", err.text);
    unlink(path);
    spate_config_print(&text, spate_connector_tables, spate_connector_table_count, &config);
    assert_null(strstr(spate_buf_str(&text), "hunter2"));
    for (size_t i = 0; i < SPATE_COUNT(secrets); i++) {
        char line[100];
        snprintf(line, sizeof line, "\"%s\": \"***\"", secrets[i]);
        if (!strstr(text.data, line))
            fail_msg("%s is not in %s", line, text.data);
    }
    assert_non_null(strstr(text.data, "\"linger.ms\": \"7\""));
    assert_non_null(strstr(text.data, "\"sasl.username\": \"somebody\""));
    assert_non_null(strstr(text.data, "\"ssl.ca.pem\": \"public\""));
    spate_buf_fini(&text);
    spate_options_fini(&config, spate_connector_tables, spate_connector_table_count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_whole),
        cmocka_unit_test(samples_load),
        cmocka_unit_test(the_other_bus_of_the_sample_loads),
        cmocka_unit_test(secrets_among_properties_are_masked),
    };

    return cmocka_run_group_tests_name("tables", tests, NULL, NULL);
}
