/* config/load.c - a YAML file into structs.
 *
 * The whole document is composed first (libyaml keeps the marks), then walked along the option tables. The
 * depth of the walk is that of the tables, so a file cannot make it recurse further. An anchor or alias is
 * plain YAML and means the value it names; a merge key ("<<") is an unknown key like any other. */
#include "config/load.h"

#include "config/keys.h"
#include "config/scalar.h"
#include "config/yaml.h"
#include "core/alloc.h"

#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX 4096 /* of one mapping or list: finding duplicates is quadratic */

/* One struct that is being filled: the whole file, or one element of a group. */
struct scope {
    struct spate_yaml *file;
    struct spate_keys keys;
    const char *name; /* "" or "tables.invoices.", put before keys in messages */
    char *into;
    bool *seen; /* per option, in the order of the tables */
};

static enum spate_rc walk(struct scope *scope, yaml_node_t *node, const char *level);

/* A url or conninfo that slipped to a place where none belongs has its password with it. */
static bool may_hold_password(const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;

    return (strstr(text, "://") && strchr(text, '@')) || (strstr(text, "password") && strchr(text, '='));
}

/* What stands there instead, for people: a scalar's text (cut short), or what kind of node it is. */
static void describe(struct spate_buf *out, const yaml_node_t *node, bool secret)
{
    if (node->type == YAML_MAPPING_NODE) {
        spate_buf_puts(out, "a mapping");
    } else if (node->type == YAML_SEQUENCE_NODE) {
        spate_buf_puts(out, "a list");
    } else if (node->data.scalar.length == 0) {
        spate_buf_puts(out, "nothing");
    } else if (secret || may_hold_password(node)) {
        spate_buf_puts(out, "something else (kept secret)");
    } else {
        size_t len = node->data.scalar.length < 60 ? node->data.scalar.length : 60;

        spate_buf_putc(out, '"');
        for (size_t i = 0; i < len; i++) {
            unsigned char c = node->data.scalar.value[i];

            spate_buf_putc(out, c < 0x20 || c == 0x7F ? ' ' : (char)c);
        }
        spate_buf_puts(out, len < node->data.scalar.length ? "...\"" : "\"");
    }
}

/* A value written as nothing, ~ or null. Quoted, it is a text like any other. */
static bool is_null(const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;

    if (node->type != YAML_SCALAR_NODE || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return false;
    return node->data.scalar.length == 0 || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 ||
           strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0;
}

/* The text of a scalar, or NULL when the node is none: null, no scalar, or with a NUL inside. */
static const char *text_of(const yaml_node_t *node)
{
    if (node->type != YAML_SCALAR_NODE || is_null(node))
        return NULL;
    if (strlen((const char *)node->data.scalar.value) != node->data.scalar.length)
        return NULL;
    return (const char *)node->data.scalar.value;
}

/* A key as it may stand in a message. */
static const char *shown(const yaml_node_t *name)
{
    return may_hold_password(name) ? "(not shown)" : text_of(name);
}

static enum spate_rc expected(struct scope *scope, const yaml_node_t *node, const char *key, const char *what,
                              bool secret, const char *nearest)
{
    struct spate_buf text = {0}, name = {0};

    spate_buf_printf(&name, "%s%s", scope->name, key);
    spate_buf_printf(&text, "expected %s, got ", what);
    describe(&text, node, secret);
    if (nearest)
        spate_buf_printf(&text, "; did you mean %s?", nearest);
    spate_yaml_fail(scope->file, spate_yaml_line(node), spate_buf_str(&name), &text);
    spate_buf_fini(&text);
    spate_buf_fini(&name);
    return SPATE_FAIL;
}

static enum spate_rc expected_option(struct scope *scope, const yaml_node_t *node,
                                     const struct spate_option *option, const char *key)
{
    struct spate_buf what = {0};
    const char *nearest = NULL;
    size_t choices = 0;

    spate_scalar_expected(option, &what);
    while (option->type == SPATE_OPT_ENUM && option->choices[choices])
        choices++;
    if (choices && text_of(node))
        nearest = spate_nearest(text_of(node), option->choices, choices);
    expected(scope, node, key, spate_buf_str(&what),
             (option->flags & (SPATE_OPT_SECRET | SPATE_OPT_URL)) != 0, nearest);
    spate_buf_fini(&what);
    return SPATE_FAIL;
}

/* --- values ------------------------------------------------------------------------------------------- */

static enum spate_rc load_list(struct scope *scope, yaml_node_t *node, const char *key,
                               struct spate_strings *list)
{
    yaml_document_t *doc = &scope->file->doc;
    size_t count = 1;

    if (node->type == YAML_SEQUENCE_NODE)
        count = (size_t)(node->data.sequence.items.top - node->data.sequence.items.start);
    if (count > ENTRIES_MAX)
        return expected(scope, node, key, "fewer entries", false, NULL);
    list->at = spate_zalloc((count + 1) * sizeof(*list->at));
    list->line = spate_zalloc((count + 1) * sizeof(*list->line));
    for (size_t i = 0; i < count; i++) {
        yaml_node_t *item = node;
        const char *text;

        if (node->type == YAML_SEQUENCE_NODE)
            item = yaml_document_get_node(doc, node->data.sequence.items.start[i]);
        text = text_of(item);
        if (!text || *text == '\0')
            return expected(scope, item, key, "a list of texts", false, NULL);
        list->line[i] = spate_yaml_line(item);
        list->at[list->count++] = spate_strdup(text);
    }
    return SPATE_OK;
}

static size_t pairs_of(const yaml_node_t *node)
{
    return (size_t)(node->data.mapping.pairs.top - node->data.mapping.pairs.start);
}

/* Checks the keys of a mapping: each a text, none of them twice, not too many. */
static enum spate_rc check_mapping(struct scope *scope, yaml_node_t *node, const char *key, const char *what)
{
    yaml_document_t *doc = &scope->file->doc;

    if (node->type != YAML_MAPPING_NODE)
        return expected(scope, node, key, what, false, NULL);
    if (pairs_of(node) > ENTRIES_MAX)
        return expected(scope, node, key, "fewer entries", false, NULL);
    for (size_t i = 0; i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);

        if (!text_of(name) || *text_of(name) == '\0')
            return expected(scope, name, key, "a name before the colon", false, NULL);
        for (size_t j = 0; j < i; j++) {
            yaml_node_t *earlier = yaml_document_get_node(doc, node->data.mapping.pairs.start[j].key);
            struct spate_buf full = {0}, text = {0};

            if (strcmp(text_of(earlier), text_of(name)) != 0)
                continue;
            spate_buf_printf(&full, "%s%s%s%s", scope->name, key, *key ? "." : "", shown(name));
            spate_buf_printf(&text,
                             "expected each key once, got it again (first on line %d); remove one of them",
                             spate_yaml_line(earlier));
            spate_yaml_fail(scope->file, spate_yaml_line(name), spate_buf_str(&full), &text);
            spate_buf_fini(&full);
            spate_buf_fini(&text);
            return SPATE_FAIL;
        }
    }
    return SPATE_OK;
}

static enum spate_rc load_map(struct scope *scope, yaml_node_t *node, const char *key,
                              struct spate_pairs *pairs)
{
    yaml_document_t *doc = &scope->file->doc;

    if (check_mapping(scope, node, key, "a mapping of names to texts") != SPATE_OK)
        return SPATE_FAIL;
    pairs->at = spate_zalloc((pairs_of(node) + 1) * sizeof(*pairs->at));
    for (size_t i = 0; i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        const char *text = text_of(value);
        struct spate_buf full = {0};

        if (!text || *text == '\0') {
            spate_buf_printf(&full, "%s.%s", key, text_of(name));
            expected(scope, value, spate_buf_str(&full), "a text", false, NULL);
            spate_buf_fini(&full);
            return SPATE_FAIL;
        }
        pairs->at[pairs->count++] = (struct spate_pair){
            .key = spate_strdup(text_of(name)), .value = spate_strdup(text), .line = spate_yaml_line(name)};
    }
    return SPATE_OK;
}

static enum spate_rc load_lists(struct scope *scope, yaml_node_t *node, const char *key,
                                struct spate_lists *lists)
{
    yaml_document_t *doc = &scope->file->doc;
    enum spate_rc rc = check_mapping(scope, node, key, "a mapping of names to lists of texts");

    if (rc != SPATE_OK)
        return rc;
    lists->at = spate_zalloc((pairs_of(node) + 1) * sizeof(*lists->at));
    for (size_t i = 0; rc == SPATE_OK && i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        struct spate_named_list *entry = &lists->at[lists->count++];
        struct spate_buf full = {0};

        entry->key = spate_strdup(text_of(name));
        entry->line = spate_yaml_line(name);
        spate_buf_printf(&full, "%s.%s", key, entry->key);
        if (value->type == YAML_MAPPING_NODE || is_null(value))
            rc = expected(scope, value, spate_buf_str(&full), "a list of texts", false, NULL);
        else
            rc = load_list(scope, value, spate_buf_str(&full), &entry->list);
        spate_buf_fini(&full);
    }
    return rc;
}

/* A text; or {word: text}, which becomes "word text". null is a word here: as YAML has it, there is nothing
 * else that it could mean. NULL: it is neither. */
static char *word_of(yaml_document_t *doc, yaml_node_t *node)
{
    struct spate_buf both = {0};
    yaml_node_t *name, *value;
    char *word;

    if (is_null(node) && node->data.scalar.length > 0)
        return spate_strdup("null");
    if (node->type == YAML_SCALAR_NODE)
        return text_of(node) && *text_of(node) ? spate_strdup(text_of(node)) : NULL;
    if (node->type != YAML_MAPPING_NODE || pairs_of(node) != 1)
        return NULL;
    name = yaml_document_get_node(doc, node->data.mapping.pairs.start[0].key);
    value = yaml_document_get_node(doc, node->data.mapping.pairs.start[0].value);
    if (!text_of(name) || !text_of(value))
        return NULL;
    spate_buf_printf(&both, "%s %s", text_of(name), text_of(value));
    word = spate_strdup(spate_buf_str(&both));
    spate_buf_fini(&both);
    return word;
}

static enum spate_rc load_words(struct scope *scope, yaml_node_t *node, const char *key,
                                struct spate_pairs *pairs)
{
    yaml_document_t *doc = &scope->file->doc;

    if (check_mapping(scope, node, key, "a mapping of names to texts") != SPATE_OK)
        return SPATE_FAIL;
    pairs->at = spate_zalloc((pairs_of(node) + 1) * sizeof(*pairs->at));
    for (size_t i = 0; i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        char *word = word_of(doc, value);
        struct spate_buf full = {0};

        if (!word) {
            spate_buf_printf(&full, "%s.%s", key, text_of(name));
            expected(scope, value, spate_buf_str(&full), "a text, or one word with a text behind it", false,
                     NULL);
            spate_buf_fini(&full);
            return SPATE_FAIL;
        }
        pairs->at[pairs->count++] = (struct spate_pair){
            .key = spate_strdup(text_of(name)), .value = word, .line = spate_yaml_line(name)};
    }
    return SPATE_OK;
}

static enum spate_rc load_maps(struct scope *scope, yaml_node_t *node, const char *key,
                               struct spate_maps *maps)
{
    yaml_document_t *doc = &scope->file->doc;
    enum spate_rc rc = check_mapping(scope, node, key, "a mapping of names to mappings");

    if (rc != SPATE_OK)
        return rc;
    maps->at = spate_zalloc((pairs_of(node) + 1) * sizeof(*maps->at));
    for (size_t i = 0; rc == SPATE_OK && i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        struct spate_named_map *entry = &maps->at[maps->count++];
        struct spate_buf full = {0};

        entry->key = spate_strdup(text_of(name));
        entry->line = spate_yaml_line(name);
        spate_buf_printf(&full, "%s.%s", key, entry->key);
        rc = load_words(scope, value, spate_buf_str(&full), &entry->map);
        spate_buf_fini(&full);
    }
    return rc;
}

static void defaults(const struct scope *scope);
static enum spate_rc missing(struct scope *scope, yaml_node_t *root);

static enum spate_rc load_item(struct scope *outer, yaml_node_t *value, const char *name,
                               const struct spate_option_group *group, void *element)
{
    const struct spate_option_table table = {.prefix = "", .options = group->options, .count = group->count};
    struct scope scope = {.file = outer->file, .keys = {&table, 1}, .name = name, .into = element};
    enum spate_rc rc = SPATE_OK;

    scope.seen = spate_zalloc(group->count + 1);
    defaults(&scope);
    if (!is_null(value)) /* "customers:" with nothing behind it: all defaults */
        rc = walk(&scope, value, "");
    if (rc == SPATE_OK)
        rc = missing(&scope, value);
    free(scope.seen);
    return rc;
}

static enum spate_rc load_group(struct scope *scope, yaml_node_t *node, const char *key,
                                const struct spate_option *option, struct spate_group *group)
{
    yaml_document_t *doc = &scope->file->doc;
    size_t size = option->group->size;
    enum spate_rc rc;

    rc = check_mapping(scope, node, key, "a mapping of names to settings");
    if (rc != SPATE_OK)
        return rc;
    group->at = spate_zalloc((pairs_of(node) + 1) * size);
    for (size_t i = 0; i < pairs_of(node) && rc == SPATE_OK; i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        char *element = (char *)group->at + group->count++ * size;
        struct spate_group_item *item = (struct spate_group_item *)(void *)element;
        struct spate_buf prefix = {0};

        item->name = spate_strdup(text_of(name));
        item->line = spate_yaml_line(name);
        spate_buf_printf(&prefix, "%s%s.%s.", scope->name, key, item->name);
        rc = load_item(scope, value, spate_buf_str(&prefix), option->group, element);
        spate_buf_fini(&prefix);
    }
    return rc;
}

static enum spate_rc load_option(struct scope *scope, yaml_node_t *node, const char *key,
                                 const struct spate_key *found)
{
    const struct spate_option *option = found->option;
    void *member = scope->into + found->offset;
    const struct spate_option_table alone = {
        .prefix = "", .offset = found->offset - option->offset, .options = option, .count = 1};

    switch (option->type) {
    case SPATE_OPT_LIST:
        if (node->type == YAML_MAPPING_NODE || is_null(node))
            return expected_option(scope, node, option, key);
        spate_options_fini(scope->into, &alone, 1); /* what the file says replaces the default */
        return load_list(scope, node, key, member);
    case SPATE_OPT_MAP:
        return load_map(scope, node, key, member);
    case SPATE_OPT_LISTS:
        return load_lists(scope, node, key, member);
    case SPATE_OPT_MAPS:
        return load_maps(scope, node, key, member);
    case SPATE_OPT_GROUP:
        return load_group(scope, node, key, option, member);
    case SPATE_OPT_STRING:
    case SPATE_OPT_BOOL:
    case SPATE_OPT_INT:
    case SPATE_OPT_DURATION:
    case SPATE_OPT_BYTES:
    case SPATE_OPT_ENUM:
        break;
    }
    if (!text_of(node) || !spate_scalar_parse(option, text_of(node), member))
        return expected_option(scope, node, option, key);
    return SPATE_OK;
}

/* --- the walk ----------------------------------------------------------------------------------------- */

struct lookup {
    const char *word;
    struct spate_key found;
    bool hit;
};

static bool look(void *arg, const struct spate_key *key)
{
    struct lookup *lookup = arg;

    if (!spate_slice_is(key->name, lookup->word))
        return true;
    lookup->found = *key;
    lookup->hit = true;
    return false;
}

struct names {
    char *at[64]; /* owned */
    size_t count;
};

static bool collect(void *arg, const struct spate_key *key)
{
    struct names *names = arg;

    if (names->count < SPATE_COUNT(names->at))
        names->at[names->count++] = spate_strndup(key->name.at, key->name.len);
    return true;
}

static enum spate_rc unknown_key(struct scope *scope, const yaml_node_t *name, const char *level)
{
    struct names names = {0};
    struct spate_buf what = {0}, full = {0};
    const char *near;

    spate_keys_children(&scope->keys, level, collect, &names);
    near = spate_nearest(text_of(name), (const char *const *)names.at, names.count);
    spate_buf_puts(&what, names.count == 1 ? "the key " : "one of the keys ");
    for (size_t i = 0; i < names.count; i++)
        spate_buf_printf(&what, "%s%s", i ? ", " : "", names.at[i]);
    spate_buf_printf(&full, "%s%s%s", level, *level ? "." : "", shown(name));
    expected(scope, name, spate_buf_str(&full), spate_buf_str(&what), false, near);
    for (size_t i = 0; i < names.count; i++)
        free(names.at[i]);
    spate_buf_fini(&what);
    spate_buf_fini(&full);
    return SPATE_FAIL;
}

static enum spate_rc walk(struct scope *scope, yaml_node_t *node, const char *level)
{
    yaml_document_t *doc = &scope->file->doc;
    enum spate_rc rc = check_mapping(scope, node, level, "a mapping (keys, each with a value)");

    for (size_t i = 0; rc == SPATE_OK && i < pairs_of(node); i++) {
        yaml_node_t *name = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].key);
        yaml_node_t *value = yaml_document_get_node(doc, node->data.mapping.pairs.start[i].value);
        struct lookup lookup = {.word = text_of(name)};
        struct spate_buf full = {0};

        spate_keys_children(&scope->keys, level, look, &lookup);
        spate_buf_printf(&full, "%s%s%s", level, *level ? "." : "", lookup.word);
        if (!lookup.hit) {
            rc = unknown_key(scope, name, level);
        } else if (lookup.found.option) {
            scope->seen[lookup.found.index] = true;
            rc = load_option(scope, value, spate_buf_str(&full), &lookup.found);
        } else {
            rc = walk(scope, value, spate_buf_str(&full));
        }
        spate_buf_fini(&full);
    }
    return rc;
}

/* The line of the deepest mapping on the way to a key, which is where the key should have been. */
static int nearest_line(struct spate_yaml *file, yaml_node_t *node, const char *key)
{
    int line = spate_yaml_line(node);

    while (node && node->type == YAML_MAPPING_NODE) {
        size_t len = strcspn(key, ".");
        yaml_node_t *deeper = NULL;

        for (size_t i = 0; i < pairs_of(node) && !deeper; i++) {
            yaml_node_t *name = yaml_document_get_node(&file->doc, node->data.mapping.pairs.start[i].key);

            if (name->data.scalar.length == len && memcmp(name->data.scalar.value, key, len) == 0) {
                line = spate_yaml_line(name);
                deeper = yaml_document_get_node(&file->doc, node->data.mapping.pairs.start[i].value);
            }
        }
        node = deeper;
        key += key[len] ? len + 1 : len;
    }
    return line;
}

static enum spate_rc missing(struct scope *scope, yaml_node_t *root)
{
    struct spate_buf full = {0}, name = {0}, text = {0};
    enum spate_rc rc = SPATE_OK;
    size_t index = 0;

    for (size_t t = 0; t < scope->keys.count && rc == SPATE_OK; t++)
        for (size_t i = 0; i < scope->keys.tables[t].count && rc == SPATE_OK; i++, index++) {
            const struct spate_option *option = &scope->keys.tables[t].options[i];

            if (!(option->flags & SPATE_OPT_REQUIRED) || scope->seen[index])
                continue;
            spate_buf_printf(&name, "%s%s", scope->name,
                             spate_keys_full(&scope->keys.tables[t], option, &full));
            spate_buf_puts(&text, "expected ");
            spate_scalar_expected(option, &text);
            spate_buf_printf(&text, ", got no such key; add it (%s)", option->doc ? option->doc : "required");
            rc = spate_yaml_fail(scope->file, nearest_line(scope->file, root, spate_buf_str(&full)),
                                 spate_buf_str(&name), &text);
        }
    spate_buf_fini(&full);
    spate_buf_fini(&name);
    spate_buf_fini(&text);
    return rc;
}

/* Only the members that the tables describe are touched: nobody else knows the struct's size. */
static void clear(const struct spate_option *option, void *member)
{
    static const size_t sizes[] = {
        [SPATE_OPT_STRING] = sizeof(char *),
        [SPATE_OPT_BOOL] = sizeof(bool),
        [SPATE_OPT_INT] = sizeof(int64_t),
        [SPATE_OPT_DURATION] = sizeof(int64_t),
        [SPATE_OPT_BYTES] = sizeof(int64_t),
        [SPATE_OPT_ENUM] = sizeof(int),
        [SPATE_OPT_LIST] = sizeof(struct spate_strings),
        [SPATE_OPT_MAP] = sizeof(struct spate_pairs),
        [SPATE_OPT_LISTS] = sizeof(struct spate_lists),
        [SPATE_OPT_MAPS] = sizeof(struct spate_maps),
        [SPATE_OPT_GROUP] = sizeof(struct spate_group),
    };

    memset(member, 0, sizes[option->type]);
}

static void defaults(const struct scope *scope)
{
    for (size_t t = 0; t < scope->keys.count; t++)
        for (size_t i = 0; i < scope->keys.tables[t].count; i++) {
            const struct spate_option *option = &scope->keys.tables[t].options[i];
            void *member = scope->into + scope->keys.tables[t].offset + option->offset;

            clear(option, member);
            spate_scalar_fallback(option, member);
        }
}

/* --- the whole file ------------------------------------------------------------------------------------ */

enum spate_rc spate_config_load(const char *path, const struct spate_option_table *tables, size_t count,
                                void *into, struct spate_err *err)
{
    struct spate_yaml file = {.path = path, .err = err};
    struct scope scope = {.file = &file, .keys = {tables, count}, .name = "", .into = into};
    enum spate_rc rc;

    scope.seen = spate_zalloc(spate_keys_options(&scope.keys) + 1);
    defaults(&scope);
    rc = spate_yaml_open(&file);
    if (rc == SPATE_OK)
        rc = walk(&scope, yaml_document_get_root_node(&file.doc), "");
    if (rc == SPATE_OK)
        rc = missing(&scope, yaml_document_get_root_node(&file.doc));
    spate_yaml_close(&file);
    if (rc != SPATE_OK)
        spate_options_fini(into, tables, count);
    free(scope.seen);
    return rc;
}

enum spate_rc spate_config_has(const char *path, const char *key, bool *has, struct spate_err *err)
{
    struct spate_yaml file = {.path = path, .err = err};
    enum spate_rc rc = spate_yaml_open(&file);
    yaml_node_t *root;

    *has = false;
    if (rc == SPATE_OK) {
        root = yaml_document_get_root_node(&file.doc);
        for (size_t i = 0; root->type == YAML_MAPPING_NODE && i < pairs_of(root); i++) {
            const char *name =
                text_of(yaml_document_get_node(&file.doc, root->data.mapping.pairs.start[i].key));

            *has |= name && strcmp(name, key) == 0;
        }
    }
    spate_yaml_close(&file);
    return rc;
}
