/* A YAML file into structs: what is taken, and the words for what is not. */
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
#include "core/alloc.h"

struct item {
    struct spate_group_item item;
    char *from, *where;
    struct spate_pairs columns;
    struct spate_strings key;
};

struct bus {
    char *path;
    int64_t segment;
};

struct config {
    char *name, *url, *secret;
    bool create;
    int64_t count, pause, size;
    int level;
    struct spate_strings tables;
    struct spate_group items;
    struct spate_lists lists;
    struct spate_maps maps;
    struct bus bus;
    int untouched;
};

static const char *const levels[] = {"debug", "info", "warn", NULL};

static const struct spate_option item_options[] = {
    {.key = "from",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct item, from),
     .flags = SPATE_OPT_REQUIRED},
    {.key = "where", .type = SPATE_OPT_STRING, .offset = offsetof(struct item, where)},
    {.key = "columns", .type = SPATE_OPT_MAP, .offset = offsetof(struct item, columns)},
    {.key = "key", .type = SPATE_OPT_LIST, .offset = offsetof(struct item, key)},
};
static const struct spate_option_group item_group = {
    .size = sizeof(struct item), .options = item_options, .count = SPATE_COUNT(item_options), .item = "ITEM"};

static const struct spate_option options[] = {
    {.key = "connector",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct config, name),
     .flags = SPATE_OPT_REQUIRED,
     .doc = "Its name."},
    {.key = "source.postgres.url",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct config, url),
     .flags = SPATE_OPT_REQUIRED | SPATE_OPT_URL},
    {.key = "source.postgres.secret",
     .type = SPATE_OPT_STRING,
     .offset = offsetof(struct config, secret),
     .flags = SPATE_OPT_SECRET},
    {.key = "source.postgres.create",
     .type = SPATE_OPT_BOOL,
     .offset = offsetof(struct config, create),
     .fallback = "true"},
    {.key = "count",
     .type = SPATE_OPT_INT,
     .offset = offsetof(struct config, count),
     .fallback = "3",
     .min = 1,
     .max = 9},
    {.key = "pause", .type = SPATE_OPT_DURATION, .offset = offsetof(struct config, pause), .fallback = "10s"},
    {.key = "size", .type = SPATE_OPT_BYTES, .offset = offsetof(struct config, size)},
    {.key = "log_level",
     .type = SPATE_OPT_ENUM,
     .offset = offsetof(struct config, level),
     .fallback = "info",
     .choices = levels},
    {.key = "tables",
     .type = SPATE_OPT_LIST,
     .offset = offsetof(struct config, tables),
     .fallback = "a.*, b.*"},
    {.key = "items", .type = SPATE_OPT_GROUP, .offset = offsetof(struct config, items), .group = &item_group},
    {.key = "lists", .type = SPATE_OPT_LISTS, .offset = offsetof(struct config, lists)},
    {.key = "maps", .type = SPATE_OPT_MAPS, .offset = offsetof(struct config, maps)},
};
static const struct spate_option bus_options[] = {
    {.key = "local.path", .type = SPATE_OPT_STRING, .offset = offsetof(struct bus, path)},
    {.key = "local.segment_bytes", .type = SPATE_OPT_BYTES, .offset = offsetof(struct bus, segment)},
};
static const struct spate_option_table tables[] = {
    {.prefix = "", .options = options, .count = SPATE_COUNT(options)},
    {.prefix = "bus",
     .offset = offsetof(struct config, bus),
     .options = bus_options,
     .count = SPATE_COUNT(bus_options)},
};

/* The shortest right beginning; cases put their lines behind it, from line 3 on. */
#define HEAD "connector: shop\nsource: {postgres: {url: x}}\n"

static char path[64];

static enum spate_rc load_bytes(const char *text, size_t len, struct config *config, struct spate_err *err)
{
    FILE *out = fopen(path, "w");

    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, len, out), len);
    fclose(out);
    memset(config, 0xA5, sizeof *config); /* nothing may rely on a zeroed struct */
    return spate_config_load(path, tables, SPATE_COUNT(tables), config, err);
}

static enum spate_rc load(const char *text, struct config *config, struct spate_err *err)
{
    return load_bytes(text, strlen(text), config, err);
}

static void fini(struct config *config)
{
    spate_options_fini(config, tables, SPATE_COUNT(tables));
}

static void fills_defaults(void **state)
{
    struct spate_err err = {0};
    struct config config;

    (void)state;
    assert_int_equal(load(HEAD, &config, &err), SPATE_OK);
    assert_string_equal(config.name, "shop");
    assert_string_equal(config.url, "x");
    assert_null(config.secret);
    assert_true(config.create);
    assert_int_equal(config.count, 3);
    assert_int_equal(config.pause, 10000);
    assert_int_equal(config.size, 0);
    assert_int_equal(config.level, 1);
    assert_int_equal(config.tables.count, 2);
    assert_string_equal(config.tables.at[1], "b.*");
    assert_int_equal(config.items.count, 0);
    assert_null(config.bus.path);
    fini(&config);
    assert_null(config.name);
    assert_int_equal(config.tables.count, 0);
}

static void takes_every_kind(void **state)
{
    static const char text[] = "connector: 'quoted: name'\n"
                               "source:\n"
                               "  postgres:\n"
                               "    url: postgres://u:p@h/d\n"
                               "    secret: s3cret\n"
                               "    create: no\n"
                               "count: 9\npause: 500ms\nsize: 64MiB\nlog_level: warn\n"
                               "tables: public.*\n"
                               "bus: {local: {path: /var/x, segment_bytes: 4096}}\n"
                               "items:\n"
                               "  invoices:\n"
                               "    from: public.orders\n"
                               "    where: \"status = 'paid'\"\n"
                               "    columns: {z: id, a: 1, m: true, n: 'null'}\n"
                               "    key: [z, a]\n"
                               "  'odd.name': {from: b}\n";
    struct spate_err err = {0};
    struct config config;
    struct item *items;

    (void)state;
    assert_int_equal(load(text, &config, &err), SPATE_OK);
    assert_string_equal(config.name, "quoted: name");
    assert_string_equal(config.secret, "s3cret");
    assert_false(config.create);
    assert_int_equal(config.count, 9);
    assert_int_equal(config.pause, 500);
    assert_int_equal(config.size, 64 << 20);
    assert_int_equal(config.level, 2);
    assert_int_equal(config.tables.count, 1); /* one text is a list of one, and replaces the default */
    assert_string_equal(config.tables.at[0], "public.*");
    assert_int_equal(config.tables.line[0], 11);
    assert_string_equal(config.bus.path, "/var/x");
    assert_int_equal(config.bus.segment, 4096);
    assert_int_equal(config.items.count, 2);
    items = config.items.at;
    assert_string_equal(items[0].item.name, "invoices");
    assert_int_equal(items[0].item.line, 14);
    assert_string_equal(items[0].where, "status = 'paid'");
    assert_int_equal(items[0].columns.count, 4);
    assert_string_equal(items[0].columns.at[0].key, "z"); /* the file's order, not the alphabet's */
    assert_string_equal(items[0].columns.at[1].value, "1");
    assert_string_equal(items[0].columns.at[2].value, "true");
    assert_string_equal(items[0].columns.at[3].value, "null");
    assert_int_equal(items[0].columns.at[3].line, 17);
    assert_int_equal(items[0].key.count, 2);
    assert_string_equal(items[1].item.name, "odd.name");
    assert_int_equal(items[1].columns.count, 0);
    fini(&config);
}

static void takes_lists_and_maps_by_name(void **state)
{
    struct spate_err err = {0};
    struct spate_buf first = {0}, second = {0};
    struct config config;

    (void)state;
    assert_int_equal(load(HEAD "lists:\n  public.a: [x, y]\n  b: z\n"
                               "maps:\n  public.a:\n    x: hash\n    y: null\n    z: {constant: 'a b'}\n"
                               "    e: {constant: ''}\n  b: {q: \"null\"}\n",
                          &config, &err),
                     SPATE_OK);
    assert_int_equal(config.lists.count, 2);
    assert_string_equal(config.lists.at[0].key, "public.a");
    assert_int_equal(config.lists.at[0].line, 4);
    assert_int_equal(config.lists.at[0].list.count, 2);
    assert_string_equal(config.lists.at[0].list.at[1], "y");
    assert_string_equal(config.lists.at[1].list.at[0], "z");
    assert_int_equal(config.maps.count, 2);
    assert_int_equal(config.maps.at[0].map.count, 4);
    assert_string_equal(config.maps.at[0].map.at[0].value, "hash");
    assert_string_equal(config.maps.at[0].map.at[1].value, "null");
    assert_string_equal(config.maps.at[0].map.at[2].value, "constant a b");
    assert_string_equal(config.maps.at[0].map.at[3].value, "constant ");
    assert_int_equal(config.maps.at[0].map.at[2].line, 10);
    assert_string_equal(config.maps.at[1].map.at[0].value, "null");
    spate_config_print(&first, tables, SPATE_COUNT(tables), &config);
    fini(&config);
    if (load_bytes(first.data, first.len, &config, &err) != SPATE_OK)
        fail_msg("%s\n%s", err.text, spate_buf_str(&first));
    spate_config_print(&second, tables, SPATE_COUNT(tables), &config);
    fini(&config);
    assert_string_equal(spate_buf_str(&first), spate_buf_str(&second));
    spate_buf_fini(&first);
    spate_buf_fini(&second);
}

static void aliases_mean_what_they_name(void **state)
{
    struct spate_err err = {0};
    struct config config;

    (void)state;
    assert_int_equal(load(HEAD "items:\n  a: &a {from: x, key: [k]}\n  b: *a\n", &config, &err), SPATE_OK);
    assert_int_equal(config.items.count, 2);
    assert_string_equal(((struct item *)config.items.at)[1].from, "x");
    fini(&config);
}

struct mistake {
    const char *text;
    int line;
    const char *words[4];
};

static const struct mistake mistakes[] = {
    {HEAD "tabels: [a]\n",
     3,
     {"tabels:", "one of the keys connector, source", "got \"tabels\"", "did you mean tables?"}},
    {HEAD "bus: {local: {pth: x}}\n", 3, {"bus.local.pth:", "path, segment_bytes", "did you mean path?"}},
    {HEAD "bus: {kafka: {brokers: x}}\n", 3, {"bus.kafka:", "expected the key local"}},
    {"connector: shop\nsource: {postgres: {url: x, crate: true}}\n",
     2,
     {"source.postgres.crate", "did you mean create?"}},
    {HEAD "source.postgres.create: true\n", 3, {"source.postgres.create", "expected one of the keys"}},
    {HEAD "<<: {count: 3}\n", 3, {"<<:", "expected one of the keys"}},
    {HEAD "count: many\n", 3, {"count:", "expected a whole number, from 1 to 9", "got \"many\""}},
    {HEAD "count: 10\n", 3, {"count:", "from 1 to 9", "got \"10\""}},
    {HEAD "count: 3.5\n", 3, {"count:", "whole number"}},
    {HEAD "count: 99999999999999999999\n", 3, {"count:", "whole number"}},
    {HEAD "count: [1]\n", 3, {"count:", "got a list"}},
    {HEAD "count:\n", 3, {"count:", "got nothing"}},
    {HEAD "count: ~\n", 3, {"count:", "whole number"}},
    {HEAD "pause: 10\n", 3, {"pause:", "a duration such as 500ms, 10s or 2m", "got \"10\""}},
    {HEAD "pause: -1s\n", 3, {"pause:", "a duration"}},
    {HEAD "pause: 9223372036854775807d\n", 3, {"pause:", "a duration"}},
    {HEAD "size: 64MB\n", 3, {"size:", "a size such as 64MiB or 1GiB"}},
    {HEAD "log_level: wran\n", 3, {"log_level:", "one of debug, info, warn", "did you mean warn?"}},
    {HEAD "log_level: {a: b}\n", 3, {"log_level:", "got a mapping"}},
    {HEAD "tables: {a: b}\n", 3, {"tables:", "a list of texts", "got a mapping"}},
    {HEAD "tables: [a, [b]]\n", 3, {"tables:", "a list of texts", "got a list"}},
    {HEAD "tables: [a, '']\n", 3, {"tables:", "got nothing"}},
    {HEAD "lists: [a]\n", 3, {"lists:", "a mapping of names to lists of texts", "got a list"}},
    {HEAD "lists:\n  a: {b: c}\n", 4, {"lists.a:", "a list of texts", "got a mapping"}},
    {HEAD "lists:\n  a:\n", 4, {"lists.a:", "a list of texts", "got nothing"}},
    {HEAD "lists:\n  a: [b]\n  a: [c]\n", 5, {"lists.a:", "each key once"}},
    {HEAD "maps:\n  a: [b]\n", 4, {"maps.a:", "a mapping of names to texts", "got a list"}},
    {HEAD "maps:\n  a:\n    b: {c: d, e: f}\n", 5, {"maps.a.b:", "one word with a text", "got a mapping"}},
    {HEAD "maps:\n  a:\n    b:\n", 5, {"maps.a.b:", "got nothing"}},
    {HEAD "items: [a]\n", 3, {"items:", "a mapping", "got a list"}},
    {HEAD "items:\n  a: {where: x}\n", 4, {"items.a.from:", "expected a text", "got no such key"}},
    {HEAD "items:\n  a:\n", 4, {"items.a.from:", "got no such key"}},
    {HEAD "items:\n  a: {from: x, were: y}\n", 4, {"items.a.were:", "did you mean where?"}},
    {HEAD "items:\n  a:\n    from: x\n    columns:\n      b: [1]\n",
     7,
     {"items.a.columns.b:", "a text", "got a list"}},
    {HEAD "items:\n  a: {from: x}\n  a: {from: y}\n", 5, {"items.a:", "each key once", "first on line 4"}},
    {HEAD "connector: again\n", 3, {"connector:", "each key once", "first on line 1"}},
    {"source: {postgres: {url: x}}\n", 1, {"connector:", "got no such key", "Its name."}},
    {"connector: a\nsource:\n  postgres:\n    create: true\n",
     3,
     {"source.postgres.url:", "got no such key"}},
    {"connector: a\nsource: x\n", 2, {"source:", "expected a mapping", "got \"x\""}},
    {"connector: a\nsource:\n", 2, {"source:", "expected a mapping", "got nothing"}},
    {"connector: ''\n", 1, {"connector:", "expected a text", "got nothing"}},
    {"connector: \"a\\0b\"\n", 1, {"connector:", "expected a text"}},
    {"- a\n- b\n", 1, {"expected a mapping", "got a list"}},
    {"{[a]: b}\n", 1, {"a name before the colon", "got a list"}},
    {HEAD "bus:\n\tlocal: x\n", 4, {"a tab indents this line"}},
    {HEAD "bus: {local: {path: x}\n", 4, {"this is not YAML"}},
    {HEAD "count: *nobody\n", 3, {"this is not YAML", "undefined alias"}},
    {HEAD "---\nconnector: b\n", 4, {"one document", "second one"}},
    {HEAD "source: \"\xff\"\n", 3, {"this is not YAML"}},
};

static void names_every_mistake(void **state)
{
    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(mistakes); i++) {
        const struct mistake *mistake = &mistakes[i];
        struct spate_err err = {0};
        struct config config;
        char place[96];

        if (load(mistake->text, &config, &err) != SPATE_FAIL)
            fail_msg("taken: %s", mistake->text);
        snprintf(place, sizeof place, "%s:%d: ", path, mistake->line);
        if (strncmp(err.text, place, strlen(place)) != 0)
            fail_msg("%s: expected %s, got %s", mistake->text, place, err.text);
        for (size_t w = 0; w < SPATE_COUNT(mistake->words) && mistake->words[w]; w++)
            if (!strstr(err.text, mistake->words[w]))
                fail_msg("%s: expected '%s' in: %s", mistake->text, mistake->words[w], err.text);
        assert_int_equal(err.verdict, SPATE_FATAL);
        assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
        assert_null(config.name); /* nothing is left that needs freeing */
        assert_null(config.items.at);
    }
}

static void never_prints_a_secret(void **state)
{
    static const char *const texts[] = {
        "connector: a\nsource: {postgres: {url: x, secret: [hunter2]}}\n",
        "connector: a\nsource: {postgres: {url: x, secret: hunter2\n",
        "connector: a\nsource: {postgres: {url: {hunter2: x}}}\n",
        "connector: a\nsource: {postgres: 'postgres://u:hunter2@h/d'}\n",
        "connector: a\nsource: {postgres: {postgres://u:hunter2@h/d}}\n",
        "connector: a\nsource: {postgres: 'host=h password=hunter2'}\n",
        "connector: a\nsource: {postgres: {url: x, 'password=hunter2': 1, 'password=hunter2': 2}}\n",
        "connector: a\nsource: {postgres: {url: x, create: 'postgres://u:hunter2@h/d'}}\n",
        "connector: a\nsource: {postgres: {url: x, secret: {hunter2: hunter2}}}\n",
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(texts); i++) {
        struct spate_err err = {0};
        struct config config;

        assert_int_equal(load(texts[i], &config, &err), SPATE_FAIL);
        assert_null(strstr(err.text, "hunter2"));
    }
}

static void names_a_file_that_cannot_be_read(void **state)
{
    struct spate_err err = {0};
    struct config config;

    (void)state;
    assert_int_equal(spate_config_load("/no/such/file.yaml", tables, 2, &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "/no/such/file.yaml: No such file or directory"));
    assert_int_equal(err.exit_code, SPATE_EXIT_CONFIG);
    assert_int_equal(spate_config_load("/", tables, 2, &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "/: Is a directory"));
    assert_int_equal(load("", &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "the file says nothing"));
    assert_int_equal(load("# only a comment\n", &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "the file says nothing"));
}

static void refuses_what_is_too_large(void **state)
{
    struct spate_buf text = {0};
    struct spate_err err = {0};
    struct config config;

    (void)state;
    spate_buf_puts(&text, HEAD "tables: [");
    while (text.len < (1 << 20))
        spate_buf_puts(&text, "aaaaaaaaaaaaaaaa, ");
    spate_buf_puts(&text, "b]\n");
    assert_int_equal(load_bytes(text.data, text.len, &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "longer than a megabyte"));
    spate_buf_reset(&text);
    spate_buf_puts(&text, HEAD "items:\n");
    for (int i = 0; i < 5000; i++)
        spate_buf_printf(&text, "  i%d: {from: x}\n", i);
    assert_int_equal(load_bytes(text.data, text.len, &config, &err), SPATE_FAIL);
    assert_non_null(strstr(err.text, "expected fewer entries"));
    spate_buf_fini(&text);
}

static void tells_kinds_of_file_apart(void **state)
{
    struct spate_err err = {0};
    struct config config;
    bool has;

    (void)state;
    assert_int_equal(load(HEAD, &config, &err), SPATE_OK);
    fini(&config);
    assert_int_equal(spate_config_has(path, "connector", &has, &err), SPATE_OK);
    assert_true(has);
    assert_int_equal(spate_config_has(path, "sink", &has, &err), SPATE_OK);
    assert_false(has);
    assert_int_equal(spate_config_has("/no/such", "sink", &has, &err), SPATE_FAIL);
}

/* What is printed can be loaded again and means the same; secrets are not in it. */
static void prints_what_it_loaded(void **state)
{
    static const char text[] =
        "connector: \"a \\\"b\\\" \\x07\"\n"
        "source: {postgres: {url: 'postgres://u:hunter2@h/d', secret: hunter2}}\n"
        "size: 3KiB\nbus: {local: {path: /p}}\n"
        "items: {t: {from: x, columns: {c: 'a::int', d: \"x\\ny\\N\\L\\ufeff\\uffffä\"}, key: [c, d]}}\n";
    struct spate_err err = {0};
    struct spate_buf first = {0}, second = {0};
    struct config config;

    (void)state;
    assert_int_equal(load(text, &config, &err), SPATE_OK);
    spate_config_print(&first, tables, SPATE_COUNT(tables), &config);
    fini(&config);
    assert_null(strstr(spate_buf_str(&first), "hunter2"));
    assert_non_null(strstr(first.data, "url: \"postgres://u:***@h/d\""));
    assert_non_null(strstr(first.data, "size: 3KiB"));
    assert_non_null(strstr(first.data, "pause: 10s"));
    if (load_bytes(first.data, first.len, &config, &err) != SPATE_OK)
        fail_msg("%s\n%s", err.text, first.data);
    assert_string_equal(config.name, "a \"b\" \a");
    assert_string_equal(((struct item *)config.items.at)->columns.at[1].value,
                        "x\ny\xc2\x85\xe2\x80\xa8\xef\xbb\xbf\xef\xbf\xbfä");
    spate_config_print(&second, tables, SPATE_COUNT(tables), &config);
    fini(&config);
    assert_string_equal(spate_buf_str(&second), spate_buf_str(&first));
    spate_buf_fini(&first);
    spate_buf_fini(&second);
}

static void documents_every_option(void **state)
{
    struct spate_buf out = {0};
    const char *text;

    (void)state;
    spate_config_reference(&out, "A file", "Intro.", tables, SPATE_COUNT(tables));
    text = spate_buf_str(&out);
    assert_non_null(strstr(text, "## A file\n\nIntro.\n"));
    assert_non_null(strstr(text, "| `connector` | a text | required | Its name. |"));
    assert_non_null(strstr(text, "| `count` | a whole number, from 1 to 9 | `3` |"));
    assert_non_null(strstr(text, "| `bus.local.path` | a text | none |"));
    assert_non_null(strstr(text, "| `items.ITEM.from` | a text | required |"));
    spate_buf_fini(&out);
}

static void masks_passwords_in_urls(void **state)
{
    static const char *const cases[][2] = {
        {"postgres://u:hunter2@h:5432/d", "postgres://u:***@h:5432/d"},
        {"postgresql://u:hunter2@h/d?sslmode=disable", "postgresql://u:***@h/d?sslmode=disable"},
        {"postgres://u@h/d", "postgres://u@h/d"},
        {"postgres://h:5432/d", "postgres://h:5432/d"},
        {"postgres://[::1]:5432/d", "postgres://[::1]:5432/d"},
        {"postgres://u:hunt/er@2@h/d", "postgres://u:***@h/d"},
        {"postgres://u:hunt?er2@h/d", "postgres://u:***@h/d"},
        {"postgres://u/s:hunter2@h/d", "postgres://u/s:***@h/d"},
        {"host=h scram_client_key=hunter2", "host=h scram_client_key=***"},
        {"postgres:///d?oauth_client_secret=hunter2&a=b", "postgres:///d?oauth_client_secret=***&a=b"},
        {"postgres://u@h/d?password=hunter2&a=b", "postgres://u@h/d?password=***&a=b"},
        {"postgres:///d?a=b&sslpassword=hunter2", "postgres:///d?a=b&sslpassword=***"},
        {"host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"},
        {"password = 'hun ter\\'2' host=h", "password = *** host=h"},
        {"host=h password='hunter2", "host=h password=***"},
        {"host=h password=", "host=h password=***"},
        {"host='a b' user=password", "host='a b' user=password"},
        {"", ""},
    };

    (void)state;
    for (size_t i = 0; i < SPATE_COUNT(cases); i++) {
        struct spate_buf out = {0};

        spate_config_mask_url(&out, cases[i][0]);
        assert_string_equal(spate_buf_str(&out), cases[i][1]);
        spate_buf_fini(&out);
    }
}

static int make_file(void **state)
{
    int fd;

    (void)state;
    strcpy(path, "/tmp/spate-config-XXXXXX");
    fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_defaults),
        cmocka_unit_test(takes_every_kind),
        cmocka_unit_test(takes_lists_and_maps_by_name),
        cmocka_unit_test(aliases_mean_what_they_name),
        cmocka_unit_test(names_every_mistake),
        cmocka_unit_test(never_prints_a_secret),
        cmocka_unit_test(names_a_file_that_cannot_be_read),
        cmocka_unit_test(refuses_what_is_too_large),
        cmocka_unit_test(tells_kinds_of_file_apart),
        cmocka_unit_test(prints_what_it_loaded),
        cmocka_unit_test(documents_every_option),
        cmocka_unit_test(masks_passwords_in_urls),
    };

    return cmocka_run_group_tests_name("config", tests, make_file, remove_file);
}
